//! What a broker lets clients measure of its machine: syncs beside the log, and plain bytes over QUIC.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidelog::testkit::TestBroker;
use tidelog::{Broker, BrokerConfig};
use tidelog_client::{Client, ClientConfig, QuicConnector, Trust, TrustEnvironment};
use tidelog_protocol::{
    Connector as _, Duplex, ErrorCode, FrameDecoder, FrameKind, Hello, Limits, MEASURE_APPENDS_MAX,
    MEASURE_SOURCE_BYTES_MAX, PROTOCOL_VERSION, Request, RequestFrame, ResponseFrame, ResponseResult, WireError,
    decode_json, encode_json_frame, read, write_all,
};
use tokio::time::timeout;

fn on_disk(folder: &Path) -> BrokerConfig {
    BrokerConfig { listen: "127.0.0.1:0".parse().unwrap(), http: None, ..BrokerConfig::on_disk(folder) }
}

async fn connect(broker: &Broker) -> Client {
    let config = ClientConfig::find(&broker.address().parse().unwrap(), None).unwrap();
    Client::connect(config).await.unwrap()
}

/// What lies in a folder and is there for measuring.
fn left_in(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("measure")).collect()
}

#[tokio::test]
async fn syncs_are_measured_on_the_logs_own_disk_one_client_at_a_time_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(on_disk(folder.path())).unwrap();
    let (one, other) = (connect(&broker).await, connect(&broker).await);
    let (one_measure, other_measure) = (one.measure(), other.measure());
    // The one that comes second is told that the broker is busy, and asks again.
    let (first, second) = tokio::join!(one_measure.syncs(4_096, 64), other_measure.syncs(65_536, 32));
    let (first, second) = (first.unwrap().unwrap(), second.unwrap().unwrap());
    assert_eq!((first.len(), second.len()), (64, 32));
    assert!(first.iter().chain(&second).all(|time| !time.is_zero()));
    assert_eq!(left_in(folder.path()), [""; 0]);
    assert_eq!(broker.counters().measurements.get(), 0);
    broker.shutdown();
}

#[tokio::test]
async fn beyond_the_limits_nothing_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(on_disk(folder.path())).unwrap();
    let client = connect(&broker).await;
    for (append_bytes, appends) in
        [(0, 1), (1, 0), ((1 << 20) + 1, 1), (1, MEASURE_APPENDS_MAX + 1), (1 << 20, 65), (u32::MAX, u32::MAX)]
    {
        let refused = client.measure().syncs(append_bytes, appends).await.unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::Malformed), "{append_bytes} {appends}: {refused}");
    }
    let refused = client.measure().download(MEASURE_SOURCE_BYTES_MAX + 1).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Malformed), "{refused}");
    broker.shutdown();
}

#[tokio::test]
async fn a_broker_that_stops_does_not_wait_for_what_is_measured_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(on_disk(folder.path())).unwrap();
    let client = connect(&broker).await;
    let measuring = tokio::spawn({
        let client = client.clone();
        async move { client.measure().syncs(4_096, MEASURE_APPENDS_MAX).await }
    });
    let begins = async {
        while broker.counters().measurements.get() == 0 && !measuring.is_finished() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), begins).await.unwrap();
    tokio::task::spawn_blocking(move || broker.shutdown()).await.unwrap();
    measuring.abort();
    assert_eq!(left_in(folder.path()), [""; 0]);
}

#[tokio::test]
async fn a_file_that_a_crash_has_left_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    Broker::start(on_disk(folder.path())).unwrap().shutdown();
    std::fs::write(folder.path().join("spare-measure-sync"), b"half of it").unwrap();
    let broker = Broker::start(on_disk(folder.path())).unwrap();
    let client = connect(&broker).await;
    assert_eq!(client.measure().syncs(512, 4).await.unwrap().unwrap().len(), 4);
    broker.shutdown();
    assert_eq!(left_in(folder.path()), [""; 0]);
}

#[tokio::test]
async fn every_byte_of_an_echo_comes_back_however_many_are_under_way() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    for (message_bytes, in_flight, count) in [(1, 1, 50), (100, 1_024, 5_000), (70_000, 8, 40), (3, 0, 7)] {
        let mut echo = client.measure().echo(message_bytes).await.unwrap();
        // An echo can be used again.
        for _ in 0..2 {
            let times = echo.round_trips(in_flight, count).await.unwrap();
            assert_eq!(times.len(), count, "{message_bytes} {in_flight}");
            assert!(times.iter().all(|time| !time.is_zero()));
        }
    }
    assert_eq!(client.measure().syncs(4_096, 1).await.unwrap(), None, "no disk");
}

#[tokio::test]
async fn bytes_up_and_down_are_counted_to_the_last() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    for bytes in [0, 1, 65_536, 65_537, 20 << 20] {
        // The client compares how many it has sent and received with what the broker says.
        assert!(!client.measure().upload(bytes).await.unwrap().is_zero(), "{bytes}");
        assert!(!client.measure().download(bytes).await.unwrap().is_zero(), "{bytes}");
    }
    assert_eq!(broker.counters().records_published, 0);
}

/// A connection by hand, past its hello.
async fn by_hand(broker: &TestBroker) -> (std::sync::Arc<dyn tidelog_protocol::Connection>, Duplex) {
    let address = broker.address().parse().unwrap();
    let trust = Trust::find(&address, None, &TrustEnvironment::of_process()).unwrap();
    let connection = QuicConnector::new(&address, &trust).unwrap().connect().await.unwrap();
    let mut control = connection.open().await.unwrap();
    let hello = Hello { versions: vec![PROTOCOL_VERSION], client: String::new(), token: None };
    write_all(control.send.as_mut(), &mut [frame(FrameKind::Hello, &hello)]).await.unwrap();
    let (kind, _) = frames(&mut control, &mut FrameDecoder::new(Limits::default())).await;
    assert_eq!(kind, FrameKind::Welcome);
    (connection, control)
}

fn frame(kind: FrameKind, body: &impl serde::Serialize) -> Bytes {
    let mut out = BytesMut::new();
    encode_json_frame(kind, body, &mut out).unwrap();
    out.freeze()
}

async fn frames(duplex: &mut Duplex, decoder: &mut FrameDecoder) -> (FrameKind, Bytes) {
    loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            return (frame.kind, frame.body);
        }
        let chunk = read(duplex.receive.as_mut(), 65_536).await.unwrap().expect("a frame comes");
        decoder.push(&chunk);
    }
}

#[tokio::test]
async fn requests_in_the_wrong_place_and_bytes_before_the_answer_are_refused() {
    let broker = TestBroker::start().await;
    let (connection, mut control) = by_hand(&broker).await;

    let request = frame(FrameKind::Request, &RequestFrame { id: 1, request: Request::Echo });
    let mut together = BytesMut::from(&request[..]);
    together.extend_from_slice(b"too early");
    let mut early = connection.open().await.unwrap();
    write_all(early.send.as_mut(), &mut [together.freeze()]).await.unwrap();
    let (kind, body) = frames(&mut early, &mut FrameDecoder::new(Limits::default())).await;
    assert_eq!(kind, FrameKind::Failure);
    let failure: WireError = decode_json(kind, &body).unwrap();
    assert_eq!(failure.error_code(), Some(ErrorCode::Malformed));

    let misplaced = RequestFrame { id: 2, request: Request::MeasureSync { append_bytes: 1, appends: 1 } };
    let mut measure = connection.open().await.unwrap();
    write_all(measure.send.as_mut(), &mut [frame(FrameKind::Request, &misplaced)]).await.unwrap();
    let (kind, _) = frames(&mut measure, &mut FrameDecoder::new(Limits::default())).await;
    assert_eq!(kind, FrameKind::Failure);

    // The session goes on: an echo on the control channel is refused under its number.
    write_all(control.send.as_mut(), &mut [request]).await.unwrap();
    let (kind, body) = frames(&mut control, &mut FrameDecoder::new(Limits::default())).await;
    let response: ResponseFrame = decode_json(kind, &body).unwrap();
    let ResponseResult::Error(error) = response.result else { panic!("{response:?}") };
    assert_eq!((response.id, error.error_code()), (1, Some(ErrorCode::Malformed)));
}
