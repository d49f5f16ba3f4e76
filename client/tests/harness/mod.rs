//! A broker in memory that speaks the wire protocol and misbehaves as a test tells it: connections that are cut at a
//! given batch, answers that never come, refusals, lost records.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

mod channel;
mod pipe;
mod state;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidelog_client::{Client, ClientConfig};
use tidelog_protocol::{
    Answer, BatchHeader, BoxFuture, CloseCode, Connection, Connector, DeliverHeader, ErrorCode, FrameKind, Hello,
    Limits, Offset, Outcome, ProducerId, Request, RequestFrame, Response, StreamId, TransportError, WireError,
    check_batch, decode_json, encode_accepted, encode_answers, encode_deliver_header, encode_end, encode_producer_name,
};
use tokio::sync::watch;

use channel::Channel;
pub use pipe::MemoryConnection;
pub use state::{State, Stored};

/// What happens to one batch that arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// What a broker does.
    Apply,
    /// Stored, but the answer does not leave; nothing after it is answered either.
    ApplySilently,
    /// Ordered, but not yet durable: the answer comes with that of the next batch that is applied.
    Order,
    /// Accepted, and then lost with the broker's memory.
    AcceptAndLose,
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
    /// Whether batches are taken from connections.
    reads: watch::Sender<bool>,
}

impl Broker {
    pub fn new() -> Self {
        let state = State {
            log_id: "a".repeat(32),
            start_count: 1,
            limits: Limits::default(),
            token: None,
            streams: Vec::new(),
            streams_made: 0,
            producers: HashMap::new(),
            last: HashMap::new(),
            recent: Vec::new(),
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
            reads: watch::Sender::new(true),
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

    /// Stops taking batches from connections, as a broker does whose buffers are full, or goes on.
    pub fn read_batches(&self, reads: bool) {
        self.inner.reads.send_replace(reads);
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
            let channel = Channel::new(duplex);
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
            Request::AttachProducer { producer, epoch, attempt, accepted, .. } => {
                let checked = self.state().check_session(producer, epoch, attempt);
                if let Err(error) = checked {
                    return channel.respond(frame.id, Err(error)).await;
                }
                channel.respond(frame.id, Ok(Response::Attached)).await?;
                self.publish(channel, connection, producer, accepted).await
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
        tells_accepted: bool,
    ) -> Option<()> {
        let attachment = {
            let mut state = self.state();
            state.attachments.push(Vec::new());
            state.attachments.len() - 1
        };
        let mut silent = false;
        let mut held_back = Vec::new();
        let mut reads = self.inner.reads.subscribe();
        for ordinal in 1.. {
            reads.wait_for(|reads| *reads).await.ok()?;
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
                Action::Order | Action::AcceptAndLose => {
                    if action == Action::Order {
                        held_back.push(self.apply(producer, batch));
                    } else {
                        silent = true;
                    }
                    if tells_accepted {
                        channel.send_with(|out| encode_accepted(ordinal, out)).await?;
                    }
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
                held_back.push(answer);
                let mut answers = BytesMut::new();
                encode_answers(ordinal, &held_back, &mut answers);
                held_back.clear();
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
