//! A broker in memory that speaks the wire protocol and misbehaves as a test tells it: connections that are cut at a
//! given batch, answers that never come, refusals, lost records.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

mod pipe;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidelog_client::{Client, ClientConfig};
use tidelog_protocol::{
    Answer, AttemptId, BatchHeader, BoxFuture, CloseCode, Connection, Connector, DeliverHeader, Duplex, Epoch,
    ErrorCode, Frame, FrameDecoder, FrameKind, Hello, Limits, MediumKind, Offset, Outcome, ProducerDescription,
    ProducerId, Request, RequestFrame, Response, ResponseFrame, ResponseResult, Sequence, StartAt, StreamDescription,
    StreamId, StreamName, TransportError, Welcome, WireError, check_batch, decode_json, encode_answers,
    encode_deliver_header, encode_end, encode_json_frame, encode_producer_name, read, write_all,
};
use tokio::sync::watch;

pub use pipe::MemoryConnection;

/// What happens to one batch that arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// What a broker does.
    Apply,
    /// Stored, but the answer does not leave; nothing after it is answered either.
    ApplySilently,
    /// Stored, and the connection is cut before the answer.
    ApplyAndCut,
    /// Neither stored nor answered.
    Ignore,
    /// The connection is cut before the batch is looked at.
    Cut,
    /// Refused with this code.
    Refuse(ErrorCode),
    /// The QUIC stream is given up with this error.
    Fail(ErrorCode),
}

/// A batch as the script sees it.
pub struct Arrival {
    /// Which attachment of all, from 0.
    pub attachment: usize,
    /// Which batch of it, from 1.
    pub ordinal: u64,
    pub header: BatchHeader,
}

type Script = Box<dyn FnMut(&Arrival) -> Action + Send>;

#[derive(Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    script: Mutex<Script>,
    /// Counts appends, for followers.
    appended: watch::Sender<u64>,
}

pub struct State {
    pub log_id: String,
    pub limits: Limits,
    pub token: Option<String>,
    pub streams: Vec<FakeStream>,
    producers: HashMap<String, (ProducerId, Epoch, AttemptId)>,
    pub last: HashMap<(ProducerId, StreamId), Last>,
    /// Batches received, by attachment.
    pub attachments: Vec<Vec<Bytes>>,
    pub connects: usize,
    /// Every request seen, by name.
    pub requests: Vec<&'static str>,
    /// Errors for the next tries to connect.
    pub connect_errors: VecDeque<TransportError>,
    /// Cut the connection after applying the next request of this name, before its answer.
    pub cut_after: Option<&'static str>,
    /// Instead of what is stored, the next subscriptions send these bytes and then wait.
    pub deliveries: VecDeque<Bytes>,
    /// Cut the connection after so many deliveries of each subscription.
    pub deliveries_max: Option<u32>,
    connections: Vec<Arc<MemoryConnection>>,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Last {
    pub sequence: u64,
    pub offset: Option<u64>,
    pub crc: u32,
}

pub struct FakeStream {
    pub id: StreamId,
    pub name: StreamName,
    pub tail: u64,
    pub batches: Vec<Stored>,
}

#[derive(Clone)]
pub struct Stored {
    pub base_offset: u64,
    pub skip: u32,
    pub count: u32,
    pub producer: ProducerId,
    pub batch: Bytes,
}

impl Broker {
    pub fn new() -> Self {
        let state = State {
            log_id: "a".repeat(32),
            limits: Limits::default(),
            token: None,
            streams: Vec::new(),
            producers: HashMap::new(),
            last: HashMap::new(),
            attachments: Vec::new(),
            connects: 0,
            requests: Vec::new(),
            connect_errors: VecDeque::new(),
            cut_after: None,
            deliveries: VecDeque::new(),
            deliveries_max: None,
            connections: Vec::new(),
        };
        let inner = Inner {
            state: Mutex::new(state),
            script: Mutex::new(Box::new(|_| Action::Apply)),
            appended: watch::Sender::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    pub fn with_stream(self, name: &str) -> Self {
        self.state().add_stream(name);
        self
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap()
    }

    /// What to do with batches from now on.
    pub fn script(&self, script: impl FnMut(&Arrival) -> Action + Send + 'static) {
        *self.inner.script.lock().unwrap() = Box::new(script);
    }

    pub fn config(&self) -> ClientConfig {
        ClientConfig::new(Arc::new(self.clone())).with_timeout(Duration::from_secs(30))
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.config()).await.unwrap()
    }

    /// Cuts every connection as a broken network does.
    pub fn cut_all(&self) {
        for connection in std::mem::take(&mut self.state().connections) {
            connection.cut("cut by the test");
        }
    }

    /// Stores a batch as if somebody had published it.
    pub fn append(&self, stream: StreamId, producer: ProducerId, batch: Bytes) {
        self.state().append(stream, producer, batch, 0);
        self.inner.appended.send_modify(|count| *count += 1);
    }

    async fn serve(self, connection: Arc<MemoryConnection>) {
        while let Ok(duplex) = connection.accept().await {
            let channel = Channel { duplex, decoder: FrameDecoder::new(Limits::default()) };
            tokio::spawn(self.clone().serve_stream(channel, Arc::clone(&connection)));
        }
    }

    async fn serve_stream(self, mut channel: Channel, connection: Arc<MemoryConnection>) -> Option<()> {
        let first = channel.next().await?;
        if first.kind == FrameKind::Hello {
            let hello: Hello = decode_json(first.kind, &first.body).unwrap();
            return self.control(channel, connection, hello).await;
        }
        let frame = RequestFrame::decode(&first.body).unwrap();
        self.state().requests.push(frame.request.op());
        match frame.request {
            Request::AttachProducer { producer, epoch, attempt, .. } => {
                let checked = self.state().check_session(producer, epoch, attempt);
                if let Err(error) = checked {
                    return channel.respond(frame.id, Err(error)).await;
                }
                channel.respond(frame.id, Ok(Response::Attached)).await?;
                self.publish(channel, connection, producer).await
            }
            Request::Subscribe { stream, from, follow } => {
                let started = self.state().start(stream, from);
                match started {
                    Err(error) => channel.respond(frame.id, Err(error)).await,
                    Ok((start, tail)) => {
                        let subscribed = Response::Subscribed { start: Offset::new(start), tail: Offset::new(tail) };
                        channel.respond(frame.id, Ok(subscribed)).await?;
                        self.deliver(channel, connection, stream, start, (!follow).then_some(tail)).await
                    }
                }
            }
            other => panic!("{} does not open a QUIC stream", other.op()),
        }
    }

    async fn control(self, mut channel: Channel, connection: Arc<MemoryConnection>, hello: Hello) -> Option<()> {
        let (welcome, allowed) = {
            let state = self.state();
            (state.welcome(), state.token.is_none() || state.token == hello.token)
        };
        if !allowed {
            let error = WireError::new(ErrorCode::Unauthorized, "the token is not known");
            channel.send_json(FrameKind::Failure, &error).await?;
            connection.close(CloseCode::Unauthorized, "the token is not known");
            return None;
        }
        channel.send_json(FrameKind::Welcome, &welcome).await?;
        loop {
            let frame = channel.next().await?;
            assert_eq!(frame.kind, FrameKind::Request);
            let frame = RequestFrame::decode(&frame.body).unwrap();
            let op = frame.request.op();
            let (result, cut) = {
                let mut state = self.state();
                state.requests.push(op);
                let result = state.answer(frame.request);
                (result, state.cut_after.take_if(|name| *name == op).is_some())
            };
            if cut {
                connection.cut("cut by the test");
                return None;
            }
            channel.respond(frame.id, result).await?;
        }
    }

    async fn publish(
        self,
        mut channel: Channel,
        connection: Arc<MemoryConnection>,
        producer: ProducerId,
    ) -> Option<()> {
        let attachment = {
            let mut state = self.state();
            state.attachments.push(Vec::new());
            state.attachments.len() - 1
        };
        let mut silent = false;
        for ordinal in 1.. {
            let frame = channel.next().await?;
            assert_eq!(frame.kind, FrameKind::Publish);
            let batch = frame.body;
            let header = check_batch(&batch, &Limits::default()).expect("the client sends whole batches");
            let arrival = Arrival { attachment, ordinal, header };
            let action = (self.inner.script.lock().unwrap())(&arrival);
            self.state().attachments[attachment].push(batch.clone());
            let answer = match action {
                Action::Apply => self.apply(producer, batch),
                Action::ApplySilently => {
                    silent = true;
                    self.apply(producer, batch)
                }
                Action::ApplyAndCut => {
                    self.apply(producer, batch);
                    connection.cut("cut by the test");
                    return None;
                }
                Action::Ignore => {
                    silent = true;
                    continue;
                }
                Action::Cut => {
                    connection.cut("cut by the test");
                    return None;
                }
                Action::Refuse(code) => {
                    Answer { outcome: Outcome::Refused { code, detail: 0 }, base_offset: None, skip: 0 }
                }
                Action::Fail(code) => {
                    let error = WireError::new(code, "given up by the test");
                    channel.send_json(FrameKind::Failure, &error).await?;
                    return None;
                }
            };
            if !silent {
                let mut answers = BytesMut::new();
                encode_answers(ordinal, &[answer], &mut answers);
                channel.send(answers.freeze()).await?;
            }
        }
        None
    }

    fn apply(&self, producer: ProducerId, batch: Bytes) -> Answer {
        let answer = self.state().apply(producer, batch);
        self.inner.appended.send_modify(|count| *count += 1);
        answer
    }

    async fn deliver(
        self,
        mut channel: Channel,
        connection: Arc<MemoryConnection>,
        stream: StreamId,
        start: u64,
        end: Option<u64>,
    ) -> Option<()> {
        let scripted = self.state().deliveries.pop_front();
        if let Some(bytes) = scripted {
            channel.send(bytes).await?;
            std::future::pending::<()>().await;
        }
        let mut appended = self.inner.appended.subscribe();
        let mut named = Vec::new();
        let mut next = start;
        let mut deliveries = 0;
        loop {
            let stored = self.state().stream(stream).and_then(|stream| stream.batch_at(next));
            if let Some(stored) = stored {
                if stored.producer != ProducerId::ANONYMOUS && !named.contains(&stored.producer) {
                    named.push(stored.producer);
                    let name = self.state().name_of(stored.producer);
                    channel.send_with(|out| encode_producer_name(stored.producer, &name, out)).await?;
                }
                channel.send(deliver_frame(&stored)).await?;
                next = stored.base_offset + u64::from(stored.count - stored.skip);
                deliveries += 1;
                let cut = self.state().deliveries_max == Some(deliveries);
                if cut {
                    connection.cut("cut by the test");
                    return None;
                }
                continue;
            }
            match end {
                Some(tail) => {
                    channel.send_with(|out| encode_end(Offset::new(tail), out)).await?;
                    return None;
                }
                None => appended.changed().await.ok()?,
            }
        }
    }
}

/// A delivery of a whole stored batch.
pub fn deliver_frame(stored: &Stored) -> Bytes {
    let header = DeliverHeader {
        base_offset: Offset::new(stored.base_offset),
        time_ms: 1_000,
        producer: stored.producer,
        skip: stored.skip,
    };
    let mut frame = BytesMut::from(&encode_deliver_header(&header, stored.batch.len())[..]);
    frame.extend_from_slice(&stored.batch);
    frame.freeze()
}

impl Connector for Broker {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Connection>, TransportError>> {
        Box::pin(async {
            let connection = {
                let mut state = self.state();
                state.connects += 1;
                if let Some(error) = state.connect_errors.pop_front() {
                    return Err(error);
                }
                let (ours, theirs) = MemoryConnection::pair();
                state.connections.push(Arc::clone(&theirs));
                tokio::spawn(self.clone().serve(theirs));
                ours
            };
            Ok(connection as Arc<dyn Connection>)
        })
    }
}

impl State {
    pub fn add_stream(&mut self, name: &str) -> StreamId {
        let id = StreamId::new(1_000 + self.streams.len() as u64);
        self.streams.push(FakeStream { id, name: StreamName::new(name).unwrap(), tail: 0, batches: Vec::new() });
        id
    }

    pub fn named(&self, name: &str) -> &FakeStream {
        self.streams.iter().find(|stream| stream.name.as_str() == name).unwrap()
    }

    fn stream(&self, id: StreamId) -> Option<&FakeStream> {
        self.streams.iter().find(|stream| stream.id == id)
    }

    pub fn add_producer(&mut self, name: &str) -> ProducerId {
        let id = ProducerId::new(1 + self.producers.len() as u64);
        self.producers.insert(name.into(), (id, Epoch::NONE, AttemptId::new([0; 16])));
        id
    }

    fn name_of(&self, id: ProducerId) -> tidelog_protocol::ProducerName {
        let (name, _) = self.producers.iter().find(|(_, (found, _, _))| *found == id).unwrap();
        name.parse().unwrap()
    }

    fn welcome(&self) -> Welcome {
        Welcome {
            version: 1,
            broker: "fake/1".into(),
            log_id: self.log_id.clone(),
            start_count: 1,
            medium: MediumKind::Memory,
            limits: self.limits.clone(),
            time_ms: 0,
        }
    }

    fn check_session(&self, producer: ProducerId, epoch: Epoch, attempt: AttemptId) -> Result<(), WireError> {
        let known = self.producers.values().find(|(id, _, _)| *id == producer);
        match known {
            None if producer == ProducerId::ANONYMOUS => Ok(()),
            Some((_, current, by)) if *current == epoch && *by == attempt => Ok(()),
            _ => Err(WireError::new(ErrorCode::Fenced, "another session opened this producer")),
        }
    }

    fn answer(&mut self, request: Request) -> Result<Response, WireError> {
        let not_found = || WireError::new(ErrorCode::NotFound, "there is no such stream");
        match request {
            Request::CreateStream { name, if_not_exists, .. } => {
                let exists = self.streams.iter().any(|stream| stream.name == name);
                if exists && !if_not_exists {
                    return Err(WireError::new(ErrorCode::Exists, "there is one already"));
                }
                if !exists {
                    self.add_stream(name.as_str());
                }
                Ok(Response::Stream(self.named(name.as_str()).describe()))
            }
            Request::StreamInfo { name } => {
                let found = self.streams.iter().find(|stream| stream.name == name);
                found.map(|stream| Response::Stream(stream.describe())).ok_or_else(not_found)
            }
            Request::ListStreams { after, limit } => {
                let mut all: Vec<_> = self.streams.iter().map(FakeStream::describe).collect();
                all.sort_by(|a, b| a.name.cmp(&b.name));
                all.retain(|stream| Some(&stream.name) > after.as_ref());
                let more = all.len() > limit as usize;
                all.truncate(limit as usize);
                Ok(Response::Streams { streams: all, more })
            }
            Request::FindProducer { name } => {
                let (id, epoch) = self
                    .producers
                    .get(name.as_str())
                    .map_or_else(|| (ProducerId::ANONYMOUS, Epoch::NONE), |(id, epoch, _)| (*id, *epoch));
                Ok(Response::Producer(ProducerDescription { name, id, epoch }))
            }
            Request::OpenProducer { name, found, attempt } => {
                if !self.producers.contains_key(name.as_str()) {
                    self.add_producer(name.as_str());
                }
                let (id, epoch, by) = self.producers.get_mut(name.as_str()).unwrap();
                if *by != attempt {
                    if *epoch != found {
                        return Err(WireError::new(ErrorCode::Fenced, "another session opened this producer"));
                    }
                    *epoch = Epoch::new(epoch.get() + 1);
                    *by = attempt;
                }
                Ok(Response::Producer(ProducerDescription { name, id: *id, epoch: *epoch }))
            }
            Request::ProducerStream { producer, stream } => {
                self.stream(stream).ok_or_else(not_found)?;
                let last = self.last.get(&(producer, stream)).copied().unwrap_or_default();
                Ok(Response::ProducerStream {
                    last_sequence: Sequence::new(last.sequence),
                    last_offset: last.offset.map(Offset::new),
                    last_record_crc: last.crc,
                    sparse: false,
                })
            }
            other => Err(WireError::new(ErrorCode::UnknownRequest, other.op())),
        }
    }

    fn apply(&mut self, producer: ProducerId, batch: Bytes) -> Answer {
        let header = BatchHeader::decode(&batch).unwrap();
        let refused = |code, detail| Answer { outcome: Outcome::Refused { code, detail }, base_offset: None, skip: 0 };
        if self.stream(header.stream).is_none() {
            return refused(ErrorCode::StreamGone, 0);
        }
        if producer == ProducerId::ANONYMOUS {
            let base = self.append(header.stream, producer, batch, 0);
            return Answer { outcome: Outcome::Stored, base_offset: Some(Offset::new(base)), skip: 0 };
        }
        let last = self.last.get(&(producer, header.stream)).copied().unwrap_or_default();
        if header.first.get() > last.sequence + 1 {
            return refused(ErrorCode::SequenceGap, last.sequence + 1);
        }
        if header.last.get() <= last.sequence {
            return Answer { outcome: Outcome::Duplicate, base_offset: None, skip: 0 };
        }
        let skip = u32::try_from(last.sequence + 1 - header.first.get()).unwrap();
        let base = self.append(header.stream, producer, batch, skip);
        Answer { outcome: Outcome::Stored, base_offset: Some(Offset::new(base)), skip }
    }

    fn append(&mut self, stream: StreamId, producer: ProducerId, batch: Bytes, skip: u32) -> u64 {
        let header = BatchHeader::decode(&batch).unwrap();
        let stored = self.streams.iter_mut().find(|found| found.id == stream).unwrap();
        let base_offset = stored.tail;
        stored.tail += u64::from(header.count - skip);
        let last = Last { sequence: header.last.get(), offset: Some(stored.tail - 1), crc: header.last_record_crc };
        stored.batches.push(Stored { base_offset, skip, count: header.count, producer, batch });
        self.last.insert((producer, stream), last);
        base_offset
    }

    fn start(&self, stream: StreamId, from: StartAt) -> Result<(u64, u64), WireError> {
        let found = self.stream(stream).ok_or_else(|| WireError::new(ErrorCode::StreamGone, "removed"))?;
        let start = match from {
            StartAt::Start => 0,
            StartAt::End => found.tail,
            StartAt::Offset { offset } if offset.get() > found.tail => {
                return Err(WireError::new(ErrorCode::PositionPastEnd, "behind the end"));
            }
            StartAt::Offset { offset } => offset.get(),
            StartAt::Last { count } => found.tail.saturating_sub(count),
            StartAt::Time { .. } => 0,
        };
        Ok((start, found.tail))
    }

    /// The values stored in a stream, in order.
    pub fn values(&self, stream: &str) -> Vec<String> {
        let mut values = Vec::new();
        for stored in &self.named(stream).batches {
            let records = tidelog_protocol::BatchRecords::new(&stored.batch).unwrap();
            for record in records.skip(stored.skip as usize) {
                values.push(String::from_utf8(record.unwrap().1.value.to_vec()).unwrap());
            }
        }
        values
    }
}

impl FakeStream {
    pub fn describe(&self) -> StreamDescription {
        StreamDescription {
            name: self.name.clone(),
            id: self.id,
            head: Offset::new(0),
            tail: Offset::new(self.tail),
            bytes: 0,
            created_ms: 0,
        }
    }

    fn batch_at(&self, offset: u64) -> Option<Stored> {
        let end = |stored: &Stored| stored.base_offset + u64::from(stored.count - stored.skip);
        self.batches.iter().find(|stored| stored.base_offset <= offset && offset < end(stored)).cloned()
    }
}

struct Channel {
    duplex: Duplex,
    decoder: FrameDecoder,
}

impl Channel {
    /// `None` when the client is gone.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("the client sends whole frames") {
                return Some(frame);
            }
            let chunk = read(self.duplex.receive.as_mut(), 64 << 10).await.ok()??;
            self.decoder.push(&chunk);
        }
    }

    async fn send(&mut self, bytes: Bytes) -> Option<()> {
        write_all(self.duplex.send.as_mut(), &mut [bytes]).await.ok()
    }

    async fn send_with(&mut self, encode: impl FnOnce(&mut BytesMut)) -> Option<()> {
        let mut bytes = BytesMut::new();
        encode(&mut bytes);
        self.send(bytes.freeze()).await
    }

    async fn send_json(&mut self, kind: FrameKind, body: &impl serde::Serialize) -> Option<()> {
        self.send_with(|out| encode_json_frame(kind, body, out).unwrap()).await
    }

    async fn respond(&mut self, id: u64, result: Result<Response, WireError>) -> Option<()> {
        let result = match result {
            Ok(response) => ResponseResult::Ok(response),
            Err(error) => ResponseResult::Error(error),
        };
        self.send_json(FrameKind::Response, &ResponseFrame { id, result }).await
    }
}
