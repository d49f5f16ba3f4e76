//! A client that speaks the protocol by itself and does what the real one never would: it leaves gaps, sends what is
//! stored again, whole or overlapping, lies about it, and breaks checksums. Each answer is foretold.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidelog_protocol::{
    Answer, AttemptId, BatchBuilder, Connection, Connector, Duplex, Epoch, ErrorCode, Frame, FrameDecoder, FrameKind,
    Hello, Limits, Offset, Outcome, PROTOCOL_VERSION, ProducerId, Request, RequestFrame, Response, ResponseFrame,
    ResponseResult, Sequence, StreamId, Welcome, decode_answers, decode_json, encode_frame_header, encode_json_frame,
    read, write_all,
};
use tidelog_storage::medium::SimulatedRng;
use tokio::time::{sleep, timeout};

use super::Checked;
use super::value::Mark;
use super::world::{World, producer_name, stream_name};
use crate::check;

/// After so long without an answer it takes the connection for dead.
const PATIENCE: Duration = Duration::from_secs(3);
/// Batches that it remembers, to send them again.
const REMEMBERED: usize = 8;

/// One of its names, and what it knows of what that has written.
struct Stranger {
    world: Rc<World>,
    rng: SimulatedRng,
    name: String,
    stream: usize,
    /// The epoch under which each number was sent last: the bytes of what is stored.
    sent: BTreeMap<u64, u64>,
    /// Batches that are stored: bytes, first and last number, offset of the first.
    stored: VecDeque<(Bytes, u64, u64, u64)>,
}

/// What a batch is to be answered.
#[derive(Debug, Clone)]
enum Foretold {
    /// Stored behind `skip` records that were there already.
    Stored {
        bytes: Quiet,
        first: u64,
        last: u64,
        skip: u32,
    },
    Duplicate {
        base_offset: u64,
    },
    Refused {
        code: ErrorCode,
        detail: u64,
    },
}

/// Bytes that nobody wants to read in a message.
#[derive(Clone)]
struct Quiet(Bytes);

impl std::fmt::Debug for Quiet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} bytes", self.0.len())
    }
}

/// Why a session ended: something was lost on the way, or something is wrong.
enum Trouble {
    Lost,
    Wrong(String),
}

impl From<String> for Trouble {
    fn from(text: String) -> Self {
        Self::Wrong(text)
    }
}

/// Comes under one name after the other until nothing bad happens any more.
pub(crate) async fn roam(world: Rc<World>, stream: usize) -> Checked {
    let mut rng = world.luck();
    let mut number = 0;
    while !world.is_calm() {
        number += 1;
        let mut stranger = Stranger {
            world: Rc::clone(&world),
            rng: world.luck(),
            name: format!("stranger-{number}"),
            stream,
            sent: BTreeMap::new(),
            stored: VecDeque::new(),
        };
        for _ in 0..=rng.below(6) {
            match stranger.visit().await {
                Ok(()) | Err(Trouble::Lost) => {}
                Err(Trouble::Wrong(text)) => return Err(format!("{}: {text}", stranger.name)),
            }
            sleep(Duration::from_millis(rng.below(200))).await;
            if world.is_calm() {
                break;
            }
        }
    }
    Ok(())
}

impl Stranger {
    /// One connection, to its end.
    async fn visit(&mut self) -> Result<(), Trouble> {
        let connection = self.world.network.connect().await.map_err(|_| Trouble::Lost)?;
        let mut control = Talk::open(connection.as_ref()).await?;
        let hello = Hello { versions: vec![PROTOCOL_VERSION], client: "stranger/1".to_owned(), token: None };
        control.say(FrameKind::Hello, &hello).await?;
        let frame = control.hear().await?;
        check_or_wrong(frame.kind == FrameKind::Welcome, || format!("a hello was answered with {:?}", frame.kind))?;
        decode_json::<Welcome>(frame.kind, &frame.body).map_err(|error| error.to_string())?;

        let Response::Stream(stream) = control.ask(Request::StreamInfo { name: stream_name(self.stream) }).await?
        else {
            return Err("a stream was asked for".to_owned().into());
        };
        let (producer, epoch, attempt) = self.open(&mut control).await?;
        let before = self.world.ledger.borrow().acknowledged_of(&self.name, self.stream);
        let Response::ProducerStream { last_sequence, .. } =
            control.ask(Request::ProducerStream { producer, stream: stream.id }).await?
        else {
            return Err("a position was asked for".to_owned().into());
        };
        let mut last = last_sequence.get();
        self.world.ledger.borrow_mut().took_over(&self.name, self.stream, epoch.get(), before, last)?;

        let mut publishing = Talk::open(connection.as_ref()).await?;
        let attach = Request::AttachProducer { producer, epoch, attempt, attachment: 1, accepted: self.rng.chance(2) };
        publishing.ask(attach).await?;
        for _ in 0..self.rng.below(40) {
            last = self.burst(&mut publishing, stream.id, epoch.get(), last).await?;
            if self.rng.chance(3) {
                sleep(Duration::from_millis(self.rng.below(40))).await;
            }
        }
        Ok(())
    }

    async fn open(&mut self, control: &mut Talk) -> Result<(ProducerId, Epoch, AttemptId), Trouble> {
        let name = producer_name(&self.name);
        let mut bytes = [0; 16];
        self.rng.fill(&mut bytes);
        let attempt = AttemptId::new(bytes);
        let Response::Producer(found) = control.ask(Request::FindProducer { name: name.clone() }).await? else {
            return Err("a producer was asked for".to_owned().into());
        };
        self.world.ledger.borrow_mut().opening(&self.name);
        let request = Request::OpenProducer { name, found: found.epoch, attempt };
        // An open that is sent again is the same one.
        let times = 1 + self.rng.below(2);
        let mut opened = None;
        for _ in 0..times {
            let Response::Producer(producer) = control.ask(request.clone()).await? else {
                return Err("a producer was opened".to_owned().into());
            };
            let again = (producer.id, producer.epoch);
            check_or_wrong(opened.is_none_or(|before| before == again), || format!("{opened:?} became {again:?}"))?;
            opened = Some(again);
        }
        let (id, epoch) = opened.unwrap();
        self.world.ledger.borrow_mut().opened(&self.name, epoch.get())?;
        Ok((id, epoch, attempt))
    }

    /// Sends a few batches at once and compares their answers. Returns the last number stored.
    async fn burst(&mut self, talk: &mut Talk, stream: StreamId, epoch: u64, last: u64) -> Result<u64, Trouble> {
        let (mut out, mut foretold, mut last) = (BytesMut::new(), VecDeque::new(), last);
        for _ in 0..=self.rng.below(4) {
            let (bytes, expected) = self.make(stream, epoch, &mut last);
            out.extend_from_slice(&encode_frame_header(FrameKind::Publish, bytes.len()));
            out.extend_from_slice(&bytes);
            foretold.push_back(expected);
        }
        talk.write(out.freeze()).await?;
        talk.sent += foretold.len() as u64;
        while !foretold.is_empty() {
            let frame = talk.hear().await?;
            match frame.kind {
                FrameKind::Accepted => continue,
                FrameKind::Failure => return Err(Trouble::Lost),
                FrameKind::Answers => {}
                other => return Err(format!("a frame {other:?} has no place in a publishing session").into()),
            }
            let (up_to, answers) = decode_answers(&frame.body).map_err(|error| error.to_string())?;
            let unanswered = (foretold.len() - answers.len().min(foretold.len())) as u64;
            check_or_wrong(up_to + unanswered == talk.sent, || format!("{up_to} of {} are answered", talk.sent))?;
            for answer in answers {
                if matches!(answer.outcome, Outcome::Refused { code, .. } if code.is_retryable()) {
                    // The broker has no room at present, so nothing behind this can be foretold.
                    return Err(Trouble::Lost);
                }
                self.compare(&foretold.pop_front().unwrap(), answer)?;
            }
        }
        Ok(last)
    }

    fn make(&mut self, stream: StreamId, epoch: u64, last: &mut u64) -> (Bytes, Foretold) {
        let count = 1 + self.rng.below(4);
        let next = *last + 1;
        match self.rng.below(12) {
            0 => {
                let first = next + 1 + self.rng.below(3);
                let bytes = self.batch(stream, first, count, |_| epoch);
                (bytes, Foretold::Refused { code: ErrorCode::SequenceGap, detail: next })
            }
            1 => {
                let bytes = self.batch(stream, next, count, |_| epoch);
                let mut broken = BytesMut::from(bytes.as_ref());
                let at = broken.len() - 1 - self.rng.below(8) as usize;
                broken[at] ^= 1 << self.rng.below(8);
                (broken.freeze(), Foretold::Refused { code: ErrorCode::Malformed, detail: 0 })
            }
            2 if !self.stored.is_empty() => {
                let chosen = self.rng.below(self.stored.len() as u64) as usize;
                let (bytes, _, _, base_offset) = &self.stored[chosen];
                (bytes.clone(), Foretold::Duplicate { base_offset: *base_offset })
            }
            3 if !self.stored.is_empty() => {
                // The bounds of one that is stored, and other records.
                let chosen = self.rng.below(self.stored.len() as u64) as usize;
                let (_, first, end, _) = self.stored[chosen];
                let bytes = self.batch(stream, first, end + 1 - first, |_| u64::MAX);
                (bytes, Foretold::Refused { code: ErrorCode::SequenceReused, detail: *last })
            }
            4 if *last > 2 && self.sent.contains_key(&(*last - 1)) => {
                let first = *last - 1;
                let bytes = self
                    .batch(stream, first, 2 + count, |number| if number < next { self.sent[&number] } else { epoch });
                self.note(next, count, epoch);
                *last += count;
                (bytes.clone(), Foretold::Stored { bytes: Quiet(bytes), first, last: *last, skip: 2 })
            }
            _ => {
                let bytes = self.batch(stream, next, count, |_| epoch);
                self.note(next, count, epoch);
                *last += count;
                (bytes.clone(), Foretold::Stored { bytes: Quiet(bytes), first: next, last: *last, skip: 0 })
            }
        }
    }

    fn note(&mut self, first: u64, count: u64, epoch: u64) {
        self.sent.extend((first..first + count).map(|number| (number, epoch)));
    }

    fn batch(&self, stream: StreamId, first: u64, count: u64, epoch: impl Fn(u64) -> u64) -> Bytes {
        let mut builder = BatchBuilder::new();
        for number in first..first + count {
            let mark = Mark { program: self.name.clone(), stream: self.stream, number, epoch: epoch(number) };
            builder.push_value(&mark.value(), &Limits::default()).unwrap();
        }
        builder.finish_dense(stream, Sequence::new(first))
    }

    fn compare(&mut self, foretold: &Foretold, answer: Answer) -> Checked {
        let Answer { outcome, base_offset, skip } = answer;
        let mut ledger = self.world.ledger.borrow_mut();
        let is_as_foretold = match foretold {
            Foretold::Stored { skip: expected, .. } => {
                outcome == Outcome::Stored && skip == *expected && base_offset.is_some()
            }
            Foretold::Duplicate { base_offset: expected } => {
                outcome == Outcome::Duplicate && base_offset == Some(Offset::new(*expected))
            }
            Foretold::Refused { code, detail } => outcome == Outcome::Refused { code: *code, detail: *detail },
        };
        check!(is_as_foretold, "the answer to {foretold:?} was {answer:?}");
        match foretold {
            Foretold::Stored { bytes, first, last, skip } => {
                let base = base_offset.unwrap().get();
                ledger.acknowledged(&self.name, self.stream, *last);
                for (number, offset) in (first + u64::from(*skip)..=*last).zip(base..) {
                    ledger.told_offset(&self.name, self.stream, number, offset)?;
                }
                if *skip == 0 {
                    self.stored.push_back((bytes.0.clone(), *first, *last, base));
                    self.stored.truncate_front_to(REMEMBERED);
                }
            }
            // That the numbers before it are there must stay true.
            Foretold::Refused { code: ErrorCode::SequenceGap, detail } => {
                ledger.acknowledged(&self.name, self.stream, detail - 1);
            }
            Foretold::Refused { code: ErrorCode::SequenceReused, detail } => {
                ledger.acknowledged(&self.name, self.stream, *detail);
            }
            _ => {}
        }
        ledger.tally.probes += u64::from(!matches!(foretold, Foretold::Stored { .. }));
        Ok(())
    }
}

/// Keeps the newest ones.
trait TruncateFront {
    fn truncate_front_to(&mut self, len: usize);
}

impl<T> TruncateFront for VecDeque<T> {
    fn truncate_front_to(&mut self, len: usize) {
        while self.len() > len {
            self.pop_front();
        }
    }
}

/// A QUIC stream as frames.
struct Talk {
    duplex: Duplex,
    decoder: FrameDecoder,
    /// Batches sent.
    sent: u64,
}

impl Talk {
    async fn open(connection: &dyn Connection) -> Result<Self, Trouble> {
        let duplex = timeout(PATIENCE, connection.open()).await.map_err(|_| Trouble::Lost)?;
        let duplex = duplex.map_err(|_| Trouble::Lost)?;
        Ok(Self { duplex, decoder: FrameDecoder::new(Limits::default()), sent: 0 })
    }

    async fn say(&mut self, kind: FrameKind, body: &impl serde::Serialize) -> Result<(), Trouble> {
        let mut out = BytesMut::new();
        encode_json_frame(kind, body, &mut out).unwrap();
        self.write(out.freeze()).await
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), Trouble> {
        let mut chunks = [bytes];
        let written = timeout(PATIENCE, write_all(self.duplex.send.as_mut(), &mut chunks)).await;
        written.map_err(|_| Trouble::Lost)?.map_err(|_| Trouble::Lost)
    }

    async fn hear(&mut self) -> Result<Frame, Trouble> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(|error| error.to_string())? {
                return Ok(frame);
            }
            let read = timeout(PATIENCE, read(self.duplex.receive.as_mut(), 64 << 10)).await;
            match read.map_err(|_| Trouble::Lost)? {
                Ok(Some(chunk)) => self.decoder.push(&chunk),
                Ok(None) | Err(_) => return Err(Trouble::Lost),
            }
        }
    }

    /// A request and its answer. What the broker can't do at present counts as lost.
    async fn ask(&mut self, request: Request) -> Result<Response, Trouble> {
        self.say(FrameKind::Request, &RequestFrame { id: 7, request: request.clone() }).await?;
        let frame = self.hear().await?;
        check_or_wrong(frame.kind == FrameKind::Response, || format!("a request was answered with {:?}", frame.kind))?;
        let response = decode_json::<ResponseFrame>(frame.kind, &frame.body).map_err(|error| error.to_string())?;
        check_or_wrong(response.id == 7, || format!("an answer to request {}", response.id))?;
        match response.result {
            ResponseResult::Ok(response) => Ok(response),
            // A late open of its own, on a connection that was lost, may be in the way of this one.
            ResponseResult::Error(error) if error.retryable || error.code == ErrorCode::Fenced.number() => {
                Err(Trouble::Lost)
            }
            ResponseResult::Error(error) => Err(format!("{request:?} was refused: {}", error.message).into()),
        }
    }
}

fn check_or_wrong(holds: bool, text: impl FnOnce() -> String) -> Result<(), Trouble> {
    if holds { Ok(()) } else { Err(Trouble::Wrong(text())) }
}
