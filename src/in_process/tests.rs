use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tidelog_protocol::{CloseCode, Connection, Duplex, TransportError, read, write_all};
use tokio::time::Instant;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Does to each passage what it is told to, and then nothing.
#[derive(Debug, Default)]
struct Scripted {
    fates: Mutex<Vec<Fate>>,
    farewell: Duration,
}

impl Scripted {
    fn new(fates: impl IntoIterator<Item = Fate>) -> Arc<Self> {
        let mut fates: Vec<Fate> = fates.into_iter().collect();
        fates.reverse();
        Arc::new(Self { fates: Mutex::new(fates), farewell: SECOND })
    }
}

impl Conditions for Scripted {
    fn send(&self, _: &Passage) -> Fate {
        self.fates.lock().unwrap().pop().unwrap_or(Fate::Arrives { after: Duration::ZERO })
    }

    fn close(&self, _: u64) -> Duration {
        self.farewell
    }
}

fn arrives(after: Duration) -> Fate {
    Fate::Arrives { after }
}

async fn pair(limits: NetworkLimits, conditions: Arc<dyn Conditions>) -> (Arc<dyn Connection>, Arc<dyn Connection>) {
    let network = Network::new(limits, conditions);
    let mut listener = network.listen();
    let client = network.connector().connect().await.unwrap();
    (client, listener.accept().await.unwrap())
}

async fn fair_pair() -> (Arc<dyn Connection>, Arc<dyn Connection>) {
    pair(NetworkLimits::default(), Arc::new(Fair)).await
}

async fn quic_stream(client: &Arc<dyn Connection>, broker: &Arc<dyn Connection>) -> (Duplex, Duplex) {
    let at_client = client.open().await.unwrap();
    (at_client, broker.accept().await.unwrap())
}

async fn write(duplex: &mut Duplex, text: &str) -> Result<(), TransportError> {
    write_all(duplex.send.as_mut(), &mut [Bytes::copy_from_slice(text.as_bytes())]).await
}

/// Reads until there is no more, or why it ended.
async fn read_all(duplex: &mut Duplex) -> (String, Option<TransportError>) {
    let mut text = String::new();
    loop {
        match read(duplex.receive.as_mut(), 3).await {
            Ok(Some(bytes)) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
            Ok(None) => return (text, None),
            Err(error) => return (text, Some(error)),
        }
    }
}

fn lost() -> TransportError {
    TransportError::Lost("the connection broke".to_owned())
}

#[tokio::test]
async fn bytes_arrive_in_order_both_ways_and_end_with_a_finish() {
    let (client, broker) = fair_pair().await;
    let (mut asking, mut answering) = quic_stream(&client, &broker).await;
    write(&mut asking, "how many ").await.unwrap();
    write(&mut asking, "apples").await.unwrap();
    asking.send.finish();
    assert_eq!(read_all(&mut answering).await, ("how many apples".to_owned(), None));
    write(&mut answering, "two").await.unwrap();
    drop(answering);
    assert_eq!(read_all(&mut asking).await, ("two".to_owned(), None), "dropped unfinished it finishes");
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_its_writer_and_no_other() {
    let limits = NetworkLimits { window_bytes: 10, ..NetworkLimits::default() };
    let (client, broker) = pair(limits, Arc::new(Fair)).await;
    let (mut slow, mut unread) = quic_stream(&client, &broker).await;
    let (mut quick, mut read_at_once) = quic_stream(&client, &broker).await;
    let mut chunks = [Bytes::from_static(b"0123456"), Bytes::from_static(b"789abcdef")];
    let mut writing = pin!(write_all(slow.send.as_mut(), &mut chunks));
    assert!(poll_fn(|cx| Poll::Ready(writing.as_mut().poll(cx).is_pending())).await);
    write(&mut quick, "past it").await.unwrap();
    assert_eq!(read(read_at_once.receive.as_mut(), 99).await.unwrap().unwrap(), "past it");
    assert_eq!(read(unread.receive.as_mut(), 99).await.unwrap().unwrap(), "0123456");
    writing.await.unwrap();
    assert_eq!(read(unread.receive.as_mut(), 99).await.unwrap().unwrap(), "789");
}

#[tokio::test]
async fn only_so_many_quic_streams_are_open_at_once() {
    let limits = NetworkLimits { quic_streams_max: 1, ..NetworkLimits::default() };
    let (client, broker) = pair(limits, Arc::new(Fair)).await;
    let (_first, at_broker) = quic_stream(&client, &broker).await;
    let mut opening = pin!(client.open());
    assert!(poll_fn(|cx| Poll::Ready(opening.as_mut().poll(cx).is_pending())).await);
    let Duplex { send, receive } = at_broker;
    drop(send);
    assert!(poll_fn(|cx| Poll::Ready(opening.as_mut().poll(cx).is_pending())).await, "half of it is still open");
    drop(receive);
    opening.await.unwrap();
}

#[tokio::test]
async fn resets_and_stops_carry_their_codes() {
    let (client, broker) = fair_pair().await;
    let (mut here, mut there) = quic_stream(&client, &broker).await;
    write(&mut here, "never read").await.unwrap();
    here.send.reset(7);
    assert_eq!(read_all(&mut there).await, (String::new(), Some(TransportError::Reset { code: 7 })));
    here.receive.stop(9);
    assert_eq!(write(&mut there, "x").await, Err(TransportError::Stopped { code: 9 }));
}

#[tokio::test(start_paused = true)]
async fn a_close_is_told_with_code_and_reason_and_drops_what_is_late() {
    let late = [arrives(Duration::ZERO), arrives(2 * SECOND)];
    let (client, broker) = pair(NetworkLimits::default(), Scripted::new(late)).await;
    let (mut here, mut there) = quic_stream(&client, &broker).await;
    write(&mut here, "in time, ").await.unwrap();
    write(&mut here, "late").await.unwrap();
    let before = Instant::now();
    client.close(CloseCode::Stopping, "enough");
    assert!(matches!(client.closed().await, TransportError::Lost(_)));
    assert!(client.open().await.is_err() && write(&mut here, "x").await.is_err());
    let told = TransportError::Closed { code: CloseCode::Stopping.number(), reason: "enough".to_owned() };
    assert_eq!(read_all(&mut there).await, ("in time, ".to_owned(), Some(told.clone())));
    assert_eq!(before.elapsed(), SECOND, "the other side learns of it when it arrives");
    assert_eq!((broker.closed().await, broker.accept().await.err()), (told.clone(), Some(told)));
}

#[tokio::test]
async fn the_last_owner_of_an_end_closes_it() {
    let (client, broker) = fair_pair().await;
    drop(client);
    assert_eq!(broker.closed().await, TransportError::Closed { code: 0, reason: String::new() });
}

#[tokio::test(start_paused = true)]
async fn bytes_on_the_way_arrive_in_their_time_and_never_overtake_each_other() {
    let (client, broker) = pair(NetworkLimits::default(), Scripted::new([arrives(SECOND)])).await;
    let (mut slow, mut slow_there) = quic_stream(&client, &broker).await;
    let (mut quick, mut quick_there) = quic_stream(&client, &broker).await;
    let before = Instant::now();
    write(&mut slow, "slow").await.unwrap();
    write(&mut slow, " and behind it").await.unwrap();
    write(&mut quick, "quick").await.unwrap();
    slow.send.finish();
    quick.send.finish();
    assert_eq!(read_all(&mut quick_there).await.0, "quick");
    assert_eq!(before.elapsed(), Duration::ZERO, "another QUIC stream does not wait");
    assert_eq!(read_all(&mut slow_there).await.0, "slow and behind it");
    assert_eq!(before.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_break_loses_all_behind_its_byte_and_each_side_notices_in_its_time() {
    let cut = Cut {
        client: Loss { lands: false, noticed_after: Duration::ZERO },
        broker: Loss { lands: false, noticed_after: 5 * SECOND },
    };
    let fates = [arrives(Duration::ZERO), Fate::Breaks { kept_bytes: 2, cut }];
    let (client, broker) = pair(NetworkLimits::default(), Scripted::new(fates)).await;
    let (mut here, mut there) = quic_stream(&client, &broker).await;
    let before = Instant::now();
    write(&mut here, "ab").await.unwrap();
    write(&mut here, "cdef").await.unwrap();
    assert_eq!(write(&mut here, "x").await, Err(lost()));
    assert_eq!((client.closed().await, client.open().await.err()), (lost(), Some(lost())));
    // Half open: the broker still takes it for a good connection and answers into the void.
    write(&mut there, "answer").await.unwrap();
    assert_eq!(read_all(&mut there).await, ("abcd".to_owned(), Some(lost())));
    assert_eq!(before.elapsed(), 5 * SECOND);
    assert_eq!(read_all(&mut here).await, (String::new(), Some(lost())), "nothing leaves a broken connection");
}

#[tokio::test(start_paused = true)]
async fn what_was_under_way_lands_after_a_break_if_it_is_let() {
    for lands in [true, false] {
        let broken = Loss { lands, noticed_after: 5 * SECOND };
        let cut = Cut { client: Loss::CLEAN, broker: broken };
        let fates = [arrives(SECOND), Fate::Breaks { kept_bytes: 0, cut }];
        let (client, broker) = pair(NetworkLimits::default(), Scripted::new(fates)).await;
        let (mut here, mut there) = quic_stream(&client, &broker).await;
        write(&mut here, "on its way").await.unwrap();
        write(&mut here, "x").await.unwrap();
        let expected = if lands { "on its way" } else { "" };
        assert_eq!(read_all(&mut there).await, (expected.to_owned(), Some(lost())));
    }
}

#[tokio::test]
async fn a_writer_into_a_broken_connection_fills_its_window_and_waits() {
    let far = Duration::from_secs(3_600);
    let cut = Cut { client: Loss { lands: false, noticed_after: far }, broker: Loss::CLEAN };
    let fates = [Fate::Breaks { kept_bytes: 0, cut }];
    let limits = NetworkLimits { window_bytes: 8, ..NetworkLimits::default() };
    let (client, broker) = pair(limits, Scripted::new(fates)).await;
    let (mut here, _there) = quic_stream(&client, &broker).await;
    write(&mut here, "1234").await.unwrap();
    write(&mut here, "5678").await.unwrap();
    let mut writing = pin!(write(&mut here, "9"));
    assert!(poll_fn(|cx| Poll::Ready(writing.as_mut().poll(cx).is_pending())).await);
}

#[tokio::test]
async fn connecting_is_refused_while_nobody_listens() {
    let network = Network::default();
    let refused = || async { network.connector().connect().await.err() };
    let nobody = Some(TransportError::Unreachable("nobody listens".to_owned()));
    assert_eq!(refused().await, nobody);
    let old = network.listen();
    let mut new = network.listen();
    drop(old);
    assert_eq!(refused().await, None, "the one that was replaced takes nothing away");
    assert!(new.accept().await.is_some());
    drop(new);
    assert_eq!(refused().await, nobody);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_dies_says_nothing_and_its_clients_notice_in_their_time() {
    let network = Network::default();
    let mut listener = network.listen();
    let client = network.connector().connect().await.unwrap();
    let broker = listener.accept().await.unwrap();
    let (mut here, mut there) = quic_stream(&client, &broker).await;
    write(&mut there, "said before").await.unwrap();
    let before = Instant::now();
    let client_loss = Loss { lands: true, noticed_after: SECOND };
    network.broker_dies(|_| Cut { client: client_loss, broker: Loss::CLEAN });
    drop((there, broker, listener));
    let (text, error) = read_all(&mut here).await;
    assert_eq!(text, "said before");
    assert!(matches!(error, Some(TransportError::Lost(_))));
    assert_eq!(before.elapsed(), SECOND);
    assert!(network.connector().connect().await.is_err());
}
