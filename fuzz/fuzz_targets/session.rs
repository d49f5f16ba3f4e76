//! A peer that sends whatever it likes over the QUIC streams of one connection to a whole broker.
//!
//! The broker runs on this thread, in memory, under a paused clock. Whatever the peer does: nothing panics, what the broker
//! says is frames that decode, and an honest client is welcomed afterwards and served.
//!
//! The input is a list of steps; see [`Step`]. Most make frames of the right form around arbitrary content: random bytes get
//! no further than the first frame header.
#![no_main]

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use tidelog::BrokerConfig;
use tidelog::clock::ManualClock;
use tidelog::in_process::Network;
use tidelog::local_broker::{LocalBroker, LocalBrokerConfig, OneTurn};
use tidelog_protocol::{
    AttemptId, BATCH_HEADER_LEN, BatchBuilder, CloseCode, Connection, Duplex, Epoch, Frame, FrameDecoder, FrameKind,
    Hello, Limits, PROTOCOL_VERSION, ProducerId, ReceiveHalf, Record, Request, RequestFrame, Response, ResponseFrame,
    ResponseResult, SendHalf, Sequence, StreamId, StreamName, StreamSettings, Welcome, WireError, check_batch,
    decode_accepted, decode_answers, decode_json, encode_frame_header, encode_json_frame, read, write_all,
};
use tidelog_storage::{Entropy, Sabotages};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Steps of one input beyond which it is cut off.
const STEPS_MAX: usize = 64;
/// QUIC streams that the peer opens at most, the control channel included.
const QUIC_STREAMS_MAX: usize = 4;
/// By the paused clock: whoever makes the peer or the honest client wait for so long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(600);

fuzz_target!(|input: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime needs nothing").block_on(async {
        let config = LocalBrokerConfig {
            broker: BrokerConfig { segment_first_bytes: 1 << 20, ..BrokerConfig::in_memory() },
            clock: Arc::new(ManualClock::new(1_800_000_000_000)),
            entropy: Entropy::Seeded(1),
            pace: Rc::new(OneTurn),
            sabotages: Sabotages::default(),
        };
        let network = Network::default();
        let mut listener = network.listen();
        let mut broker = LocalBroker::open(config).expect("an empty medium opens");
        tokio::select! {
            () = broker.run(&mut listener) => panic!("the broker has ended"),
            served = timeout(HANGS_AFTER, visit(&network, input)) => served.expect("the peer or the honest client hangs"),
        }
    });
});

async fn visit(network: &Network, input: &[u8]) {
    let connection = network.connector().connect().await.expect("somebody listens");
    let mut peer = Peer { connection: Arc::clone(&connection), halves: Vec::new(), readers: Vec::new() };
    let mut input = input;
    for _ in 0..STEPS_MAX {
        let Some(step) = Step::take(&mut input) else { break };
        peer.act(step).await;
        tokio::task::yield_now().await;
    }
    // All that was begun comes to rest, also what waits for the disk.
    tokio::time::sleep(Duration::from_millis(100)).await;
    connection.close(CloseCode::Done, "");
    for reader in peer.readers {
        reader.await.expect("a reader does not panic");
    }
    honest(network).await;
}

/// What the peer does next.
struct Step<'a> {
    /// Which QUIC stream, and which of the deeds of [`Peer::act`].
    code: u8,
    content: &'a [u8],
}

impl<'a> Step<'a> {
    /// One byte for the code, two for the length of the content, little-endian; the content, as far as there is any.
    fn take(input: &mut &'a [u8]) -> Option<Self> {
        let (&[code, low, high], rest) = input.split_first_chunk()?;
        let (content, rest) = rest.split_at(usize::from(u16::from_le_bytes([low, high])).min(rest.len()));
        *input = rest;
        Some(Self { code, content })
    }
}

struct Peer {
    connection: Arc<dyn Connection>,
    halves: Vec<Box<dyn SendHalf>>,
    readers: Vec<JoinHandle<()>>,
}

impl Peer {
    async fn act(&mut self, Step { code, content }: Step<'_>) {
        let place = usize::from(code >> 6);
        match code & 0x0f {
            0 => self.write(place, Bytes::copy_from_slice(content)).await,
            1 => {
                let hello = Hello { versions: vec![PROTOCOL_VERSION], client: String::new(), token: None };
                self.write(place, json(FrameKind::Hello, &hello)).await;
            }
            2 => self.write(place, framed(FrameKind::Request, content)).await,
            3 => self.write(place, framed(FrameKind::Publish, content)).await,
            4 => self.write(place, framed(FrameKind::Publish, &mended(content))).await,
            5 => self.write(place, framed(FrameKind::Publish, &batch(content))).await,
            6 => {
                let kind = content.first().copied().and_then(|number| FrameKind::from_number(number));
                let kind = kind.unwrap_or(FrameKind::Hello);
                self.write(place, framed(kind, content.get(1..).unwrap_or_default())).await;
            }
            7 => self.with(place, |half| half.finish()),
            8 => self.with(place, |half| half.reset(7)),
            9 => tokio::time::sleep(Duration::from_millis(content.len() as u64)).await,
            10 => {
                let name = StreamName::new("s").expect("a plain name");
                let request = Request::CreateStream { name, if_not_exists: true, settings: StreamSettings::default() };
                self.write(place, json(FrameKind::Request, &RequestFrame { id: 1, request })).await;
            }
            // The anonymous producer attaches.
            11 => self.write(place, attach()).await,
            _ => tokio::task::yield_now().await,
        }
    }

    fn with(&mut self, place: usize, act: impl FnOnce(&mut dyn SendHalf)) {
        if let Some(half) = self.halves.get_mut(place) {
            act(half.as_mut());
        }
    }

    /// Writes on a QUIC stream, which is opened first if there is none at that place.
    async fn write(&mut self, place: usize, bytes: Bytes) {
        while self.halves.len() <= place.min(QUIC_STREAMS_MAX - 1) {
            let opened = timeout(Duration::from_secs(1), self.connection.open()).await;
            let Ok(Ok(Duplex { send, receive })) = opened else { return };
            self.halves.push(send);
            self.readers.push(tokio::spawn(read_frames(receive)));
        }
        if let Some(half) = self.halves.get_mut(place) {
            // A broker that has given the QUIC stream up takes no more; one that has no room is not waited for long.
            let _ = timeout(Duration::from_secs(1), write_all(half.as_mut(), &mut [bytes])).await;
        }
    }
}

/// Reads what the broker says to its end: frames, each of which decodes.
async fn read_frames(mut receive: Box<dyn ReceiveHalf>) {
    let mut decoder = FrameDecoder::new(Limits::default());
    while let Ok(Some(chunk)) = read(receive.as_mut(), 64 << 10).await {
        decoder.push(&chunk);
        while let Some(Frame { kind, body }) = decoder.next_frame().expect("the broker sends frames") {
            match kind {
                FrameKind::Welcome => drop(decode_json::<Welcome>(kind, &body).expect("a welcome decodes")),
                FrameKind::Response => {
                    let response = decode_json::<ResponseFrame>(kind, &body).expect("a response decodes");
                    if response.result == ResponseResult::Ok(Response::Measuring) {
                        return read_bytes(receive).await;
                    }
                }
                FrameKind::Failure => drop(decode_json::<WireError>(kind, &body).expect("a failure decodes")),
                FrameKind::Answers => drop(decode_answers(&body).expect("answers decode")),
                FrameKind::Accepted => drop(decode_accepted(&body).expect("accepted decodes")),
                FrameKind::Deliver | FrameKind::Gap | FrameKind::End | FrameKind::Damaged | FrameKind::ProducerName => {
                }
                other => panic!("the broker sends {other:?}"),
            }
        }
    }
}

/// Reads what is no frames, and gives it up at some point: a source goes on for long.
async fn read_bytes(mut receive: Box<dyn ReceiveHalf>) {
    let mut left: usize = 1 << 20;
    while let (Ok(Some(chunk)), true) = (read(receive.as_mut(), 64 << 10).await, left > 0) {
        left = left.saturating_sub(chunk.len());
    }
}

/// A client as it should be: hello, a stream of its own, one record in, and the durable answer to it.
async fn honest(network: &Network) {
    let connection = network.connector().connect().await.expect("somebody listens");
    let mut control = Talk::open(connection.as_ref()).await;
    let hello = Hello { versions: vec![PROTOCOL_VERSION], client: "honest".into(), token: None };
    control.say(json(FrameKind::Hello, &hello)).await;
    assert_eq!(control.hear().await.kind, FrameKind::Welcome);
    let name = StreamName::new("honest").expect("a plain name");
    let request = Request::CreateStream { name, if_not_exists: true, settings: StreamSettings::default() };
    control.say(json(FrameKind::Request, &RequestFrame { id: 1, request })).await;
    let stream = match control.response().await {
        ResponseResult::Ok(Response::Stream(stream)) => stream.id,
        other => panic!("an honest client gets no stream: {other:?}"),
    };
    let mut publish = Talk::open(connection.as_ref()).await;
    publish.say(attach()).await;
    assert_eq!(publish.response().await, ResponseResult::Ok(Response::Attached));
    let mut builder = BatchBuilder::new();
    builder.push(&Record::new(b"honest".to_vec()), &Limits::default()).expect("a small record");
    publish.say(framed(FrameKind::Publish, &builder.finish_anonymous(stream))).await;
    // Behind the one that it is ordered: it is durable.
    assert_eq!(publish.hear().await.kind, FrameKind::Accepted);
    assert_eq!(publish.hear().await.kind, FrameKind::Answers);
    connection.close(CloseCode::Done, "");
}

struct Talk {
    duplex: Duplex,
    decoder: FrameDecoder,
}

impl Talk {
    async fn open(connection: &dyn Connection) -> Self {
        Self { duplex: connection.open().await.expect("it is open"), decoder: FrameDecoder::new(Limits::default()) }
    }

    async fn say(&mut self, bytes: Bytes) {
        write_all(self.duplex.send.as_mut(), &mut [bytes]).await.expect("an honest client is listened to");
    }

    async fn response(&mut self) -> ResponseResult {
        let Frame { kind, body } = self.hear().await;
        decode_json::<ResponseFrame>(kind, &body).expect("an honest client gets its response").result
    }

    async fn hear(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("the broker sends frames") {
                return frame;
            }
            let chunk = read(self.duplex.receive.as_mut(), 64 << 10).await.expect("an honest client is answered");
            self.decoder.push(&chunk.expect("an honest client is answered"));
        }
    }
}

/// The anonymous producer's request.
fn attach() -> Bytes {
    let request = Request::AttachProducer {
        producer: ProducerId::ANONYMOUS,
        epoch: Epoch::NONE,
        attempt: AttemptId::new([0; 16]),
        attachment: 0,
        accepted: true,
    };
    json(FrameKind::Request, &RequestFrame { id: 1, request })
}

fn framed(kind: FrameKind, body: &[u8]) -> Bytes {
    [&encode_frame_header(kind, body.len())[..], body].concat().into()
}

fn json(kind: FrameKind, body: &impl serde::Serialize) -> Bytes {
    let mut out = BytesMut::new();
    encode_json_frame(kind, body, &mut out).expect("it is small");
    out.freeze()
}

/// A batch that is well made, of a record for each byte, for a stream and at a sequence from the content.
fn batch(content: &[u8]) -> Bytes {
    let mut builder = BatchBuilder::new();
    for byte in content.iter().skip(2).take(32).chain([&0]) {
        builder.push(&Record::new(vec![*byte; usize::from(*byte)]), &Limits::default()).expect("a small record");
    }
    let number = |at: usize| u64::from(content.get(at).copied().unwrap_or(0));
    // Ids are positions: those of the first things of a log are small multiples of eight.
    let stream = StreamId::new(number(0) * 8);
    match number(1) {
        0 => builder.finish_anonymous(stream),
        sequence => builder.finish_dense(stream, Sequence::new(sequence)),
    }
}

/// The content with its checksum put right: what stands behind a wrong one is never looked at.
fn mended(content: &[u8]) -> Bytes {
    let mut batch = content.to_vec();
    if batch.len() >= BATCH_HEADER_LEN {
        let content_len = (batch.len() - BATCH_HEADER_LEN) as u32;
        batch[12..16].copy_from_slice(&content_len.to_le_bytes());
        let crc = crc32fast::hash(&batch[4..]);
        batch[..4].copy_from_slice(&crc.to_le_bytes());
    }
    let batch = Bytes::from(batch);
    let _ = check_batch(&batch, &Limits::default());
    batch
}
