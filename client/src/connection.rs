//! The client: one broker, reached again by itself when the connection is lost.

use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidelog_protocol::{
    LIST_ITEMS_MAX, ProducerDescription, ProducerId, ProducerName, Request, Response, Sequence, StatusDescription,
    StreamDescription, StreamName, StreamSettings, Welcome,
};
use tokio::sync::{Notify, broadcast};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::config::ClientConfig;
use crate::consumer::ReaderBuilder;
use crate::entropy::Entropy;
use crate::error::Error;
use crate::events::{ConnectionEvent, ConnectionEvents, EVENTS_MAX};
use crate::link::Link;
use crate::measure::Measure;
use crate::producer::ProducerBuilder;
use crate::reconnect::reconnect;
use crate::retry::Backoff;
use crate::target::StreamTarget;

/// What the broker has of one producer in one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProducerPosition {
    /// The last sequence stored, durable; [`Sequence::NONE`] if there is none.
    pub last_sequence: Sequence,
    /// Its offset, where still known.
    pub last_offset: Option<tidelog_protocol::Offset>,
    /// The checksum of that record's canonical bytes, as [`Record::crc`](tidelog_protocol::Record::crc) makes it.
    pub last_record_crc: u32,
    /// Whether the producer's sequences may jump in this stream.
    pub sparse: bool,
}

/// A broker. Clones share one connection, which is made again by itself when it is lost.
///
/// Calls go on trying until nothing has moved for the configured timeout. After a reconnect the broker must have the
/// same log as before, and not an older copy of it; otherwise every call ends with [`Error::AnotherLog`].
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) config: ClientConfig,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    phase: Phase,
    /// The log of the first connection, and how often it had been opened by the last one.
    log: Option<(String, u64)>,
    /// Tries to connect that were given up, and why the last one was.
    failures: u64,
    last_failure: Option<Error>,
    /// `None` when the client is closed: then listeners have heard everything.
    events: Option<broadcast::Sender<ConnectionEvent>>,
}

enum Phase {
    Down,
    Connecting,
    Up(Arc<Link>),
    Closed,
}

impl Client {
    /// Connects, trying again until the timeout if no broker answers yet.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] if none answered; trust and protocol errors at once.
    pub async fn connect(config: ClientConfig) -> Result<Self, Error> {
        let events = Some(broadcast::Sender::new(EVENTS_MAX));
        let state = State { phase: Phase::Down, log: None, failures: 0, last_failure: None, events };
        let client = Self { shared: Arc::new(Shared { config, state: Mutex::new(state), changed: Notify::new() }) };
        client.link().await?;
        Ok(client)
    }

    /// What happens to the connection from now on. Any number of listeners may listen.
    ///
    /// ```
    /// # use tidelog_client::*;
    /// # use tidelog_protocol::*;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let broker = tidelog::Broker::start(tidelog::BrokerConfig::in_memory())?;
    /// # let client = Client::connect(ClientConfig::find(&broker.address().parse()?, None)?).await?;
    /// let mut events = client.events();
    /// broker.shutdown();
    /// match events.next().await {
    ///     Some(ConnectionEvent::Lost { error, .. }) => assert!(error.is_retryable()),
    ///     other => panic!("{other:?}"),
    /// }
    /// client.close().await;
    /// assert!(events.next().await.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn events(&self) -> ConnectionEvents {
        let state = self.shared.lock();
        let receiver = match &state.events {
            Some(events) => events.subscribe(),
            // Closed: nothing will happen any more.
            None => broadcast::channel(1).1,
        };
        ConnectionEvents::new(receiver)
    }

    /// What the broker told when it was reached, now if it is not.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect).
    pub async fn welcome(&self) -> Result<Welcome, Error> {
        Ok(self.link().await?.welcome().clone())
    }

    /// So long without progress ends a call.
    pub fn timeout(&self) -> Duration {
        self.shared.config.timeout
    }

    pub(crate) fn jitter(&self) -> u32 {
        self.shared.config.entropy.jitter()
    }

    pub(crate) fn entropy(&self) -> &Entropy {
        &self.shared.config.entropy
    }

    /// Makes a stream.
    ///
    /// # Errors
    ///
    /// `exists` if there is one of this name, unless `if_not_exists`, which gives that one. Without `if_not_exists`
    /// this is not retried once it was sent: [`Error::Lost`] means that the stream may have been made.
    pub async fn create_stream(
        &self,
        name: &StreamName,
        settings: StreamSettings,
        if_not_exists: bool,
    ) -> Result<StreamDescription, Error> {
        self.stream_request(Request::CreateStream { name: name.clone(), if_not_exists, settings }).await
    }

    /// Removes a stream for good, with its records and what producers have written to it; gives it as it was, or `None` if
    /// it is gone already, which its own answer may have been before it was lost. Producers and readers of the stream end
    /// with `stream_gone`. One that is made under its name later is another stream.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub async fn remove_stream(&self, stream: tidelog_protocol::StreamId) -> Result<Option<StreamDescription>, Error> {
        match self.stream_request(Request::RemoveStream { stream }).await {
            Ok(description) => Ok(Some(description)),
            Err(error) if error.code() == Some(tidelog_protocol::ErrorCode::StreamGone) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks a stream up.
    ///
    /// # Errors
    ///
    /// `not_found` if there is none of this name.
    pub async fn stream_info(&self, name: &StreamName) -> Result<StreamDescription, Error> {
        self.stream_request(Request::StreamInfo { name: name.clone() }).await
    }

    /// All streams in the order of their names.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub async fn list_streams(&self) -> Result<Vec<StreamDescription>, Error> {
        let mut all: Vec<StreamDescription> = Vec::new();
        loop {
            let after = all.last().map(|stream| stream.name.clone());
            match self.request(Request::ListStreams { after: after.clone(), limit: LIST_ITEMS_MAX }).await? {
                Response::Streams { streams, more } => {
                    // A page that does not move on would go on for ever.
                    let moves = streams.first().is_some_and(|first| Some(&first.name) > after.as_ref());
                    all.extend(streams);
                    if !(more && moves) {
                        return Ok(all);
                    }
                }
                other => return Err(wrong_answer("list_streams", &other)),
            }
        }
    }

    /// Looks a producer up; `None` if the name was never opened.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub async fn find_producer(&self, name: &ProducerName) -> Result<Option<ProducerDescription>, Error> {
        let found = self.producer_request(Request::FindProducer { name: name.clone() }).await?;
        Ok((found.id != ProducerId::ANONYMOUS).then_some(found))
    }

    /// All named producers in the order of their names.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub async fn list_producers(&self) -> Result<Vec<ProducerDescription>, Error> {
        let mut all: Vec<ProducerDescription> = Vec::new();
        loop {
            let after = all.last().map(|producer| producer.name.clone());
            match self.request(Request::ListProducers { after: after.clone(), limit: LIST_ITEMS_MAX }).await? {
                Response::Producers { producers, more } => {
                    let moves = producers.first().is_some_and(|first| Some(&first.name) > after.as_ref());
                    all.extend(producers);
                    if !(more && moves) {
                        return Ok(all);
                    }
                }
                other => return Err(wrong_answer("list_producers", &other)),
            }
        }
    }

    /// What is stored of a producer in a stream.
    ///
    /// # Errors
    ///
    /// `not_found` or `stream_gone` if one of the two is not there.
    pub async fn producer_position(
        &self,
        producer: ProducerId,
        stream: tidelog_protocol::StreamId,
    ) -> Result<ProducerPosition, Error> {
        match self.request(Request::ProducerStream { producer, stream }).await? {
            Response::ProducerStream { last_sequence, last_offset, last_record_crc, sparse } => {
                Ok(ProducerPosition { last_sequence, last_offset, last_record_crc, sparse })
            }
            other => Err(wrong_answer("producer_stream", &other)),
        }
    }

    /// How the broker is.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub async fn status(&self) -> Result<StatusDescription, Error> {
        match self.request(Request::BrokerStatus).await? {
            Response::Status(status) => Ok(status),
            other => Err(wrong_answer("broker_status", &other)),
        }
    }

    /// A producer with a name: each of its records is stored once.
    pub fn producer(&self, name: ProducerName) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), Some(name))
    }

    /// A producer without a name: at least once, since nobody can tell a record that is sent again from a new one.
    pub fn anonymous_producer(&self) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), None)
    }

    /// Measurements of the broker's machine and of the connection to it.
    pub fn measure(&self) -> Measure {
        Measure::new(self.clone())
    }

    /// A reader of one stream.
    pub fn reader(&self, stream: impl Into<StreamTarget>) -> ReaderBuilder {
        ReaderBuilder::new(self.clone(), stream.into())
    }

    /// Says goodbye to the broker and waits until that has left the process. Every other call on this client and what
    /// was made from it ends with [`Error::Closed`]; close producers before, so that nothing is left unsent.
    pub async fn close(&self) {
        let phase = {
            let mut state = self.shared.lock();
            state.events = None;
            std::mem::replace(&mut state.phase, Phase::Closed)
        };
        self.shared.changed.notify_waiters();
        if let Phase::Up(link) = phase {
            link.close().await;
        }
    }

    async fn stream_request(&self, request: Request) -> Result<StreamDescription, Error> {
        let op = request.op();
        match self.request(request).await? {
            Response::Stream(stream) => Ok(stream),
            other => Err(wrong_answer(op, &other)),
        }
    }

    pub(crate) async fn producer_request(&self, request: Request) -> Result<ProducerDescription, Error> {
        let op = request.op();
        match self.request(request).await? {
            Response::Producer(producer) => Ok(producer),
            other => Err(wrong_answer(op, &other)),
        }
    }

    /// A request on the control stream, tried again until it is answered for good.
    pub(crate) async fn request(&self, request: Request) -> Result<Response, Error> {
        let deadline = Instant::now() + self.timeout();
        let mut backoff = Backoff::default();
        let mut cause = None;
        loop {
            let link = self.link().await?;
            let error = match timeout_at(deadline, link.request(request.clone())).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => error,
                Err(_) => return Err(self.timed_out("waiting for the broker's answer", cause)),
            };
            if !error.is_retryable() || !(error.is_safe_to_resend() || may_repeat(&request)) {
                return Err(error);
            }
            let next = Instant::now() + backoff.next_delay(self.jitter());
            if next >= deadline {
                return Err(self.timed_out("waiting for the broker's answer", Some(error)));
            }
            cause = Some(error);
            sleep_until(next).await;
        }
    }

    pub(crate) fn timed_out(&self, doing: &'static str, cause: Option<Error>) -> Error {
        Error::TimedOut { waited: self.timeout(), doing, cause: cause.map(Box::new) }
    }

    /// The present connection, made anew if there is none. All callers share one try.
    pub(crate) async fn link(&self) -> Result<Arc<Link>, Error> {
        let shared = &self.shared;
        let failures_before = shared.lock().failures;
        loop {
            // Registered before the state is looked at, so that no change is missed.
            let mut changed = pin!(shared.changed.notified());
            changed.as_mut().enable();
            {
                let mut state = shared.lock();
                match &state.phase {
                    Phase::Closed => return Err(Error::Closed),
                    Phase::Up(link) if !link.is_lost() => return Ok(Arc::clone(link)),
                    Phase::Connecting => {}
                    Phase::Up(_) | Phase::Down => {
                        if state.failures > failures_before
                            && let Some(error) = &state.last_failure
                        {
                            return Err(error.clone());
                        }
                        state.phase = Phase::Connecting;
                        tokio::spawn(reconnect(Arc::downgrade(shared)));
                    }
                }
            }
            changed.await;
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Client").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl State {
    fn tell(&self, event: ConnectionEvent) {
        if let Some(events) = &self.events {
            // Without listeners there is nobody to miss it.
            let _ = events.send(event);
        }
    }

    /// Forgets the present connection if it is lost, and says why it was.
    fn take_down(&mut self) -> Option<Error> {
        let Phase::Up(link) = &self.phase else { return None };
        let error = link.loss()?;
        self.phase = Phase::Down;
        Some(error)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it, and every state in it is a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records how a try ended, unless the client was closed meanwhile.
    pub(crate) fn conclude(&self, outcome: Result<Arc<Link>, Error>) {
        {
            let mut state = self.lock();
            if matches!(state.phase, Phase::Closed) {
                return;
            }
            let outcome = outcome.and_then(|link| {
                let (found, count) = (&link.welcome().log_id, link.welcome().start_count);
                match &state.log {
                    Some((first, _)) if first != found => {
                        Err(Error::AnotherLog { first: first.clone(), found: found.clone() })
                    }
                    // Starts are only ever counted up: this is an older copy of it.
                    Some((first, last)) if *last > count => Err(Error::AnotherLog {
                        first: format!("{first} at its start number {last}"),
                        found: format!("that log at its start number {count}"),
                    }),
                    _ => Ok(link),
                }
            });
            match outcome {
                Ok(link) => {
                    let welcome = link.welcome();
                    let (address, start_count) = (link.remote(), welcome.start_count);
                    let before = state.log.replace((welcome.log_id.clone(), start_count));
                    state.tell(ConnectionEvent::Connected { address, resumed: before.is_some(), start_count });
                    state.phase = Phase::Up(link);
                    // Lost meanwhile: whoever noticed found no connection to take down.
                    if let Some(error) = state.take_down() {
                        state.tell(ConnectionEvent::Lost { error });
                    }
                }
                Err(error) => {
                    state.tell(ConnectionEvent::GaveUp { error: error.clone() });
                    state.failures += 1;
                    state.last_failure = Some(error);
                    state.phase = Phase::Down;
                }
            }
        }
        self.changed.notify_waiters();
    }

    /// A connection has noticed that it is lost.
    pub(crate) fn note_loss(&self) {
        let mut state = self.lock();
        if let Some(error) = state.take_down() {
            state.tell(ConnectionEvent::Lost { error });
        }
    }

    /// A try to connect has failed, the next one follows.
    pub(crate) fn note_retry(&self, attempt: u32, delay: Duration, error: &Error) {
        self.lock().tell(ConnectionEvent::Reconnecting { attempt, delay, error: error.clone() });
    }
}

/// Whether a request may be sent again when its answer was lost: then it reads, or its second time changes nothing.
const fn may_repeat(request: &Request) -> bool {
    match request {
        Request::CreateStream { if_not_exists, .. } => *if_not_exists,
        Request::ListStreams { .. }
        // It names an id, which no other stream will ever have.
        | Request::RemoveStream { .. }
        | Request::StreamInfo { .. }
        | Request::FindProducer { .. }
        // The attempt's id makes the second one find the first.
        | Request::OpenProducer { .. }
        | Request::ProducerStream { .. }
        | Request::ListProducers { .. }
        | Request::BrokerStatus
        | Request::AttachProducer { .. }
        | Request::Subscribe { .. }
        | Request::MeasureSync { .. }
        | Request::Echo
        | Request::Sink
        | Request::Source { .. } => true,
    }
}

pub(crate) fn wrong_answer(op: &str, response: &Response) -> Error {
    // The kind alone: the rest may be long.
    let kind = match response {
        Response::Stream(_) => "stream",
        Response::Streams { .. } => "streams",
        Response::Producer(_) => "producer",
        Response::Producers { .. } => "producers",
        Response::ProducerStream { .. } => "producer_stream",
        Response::Attached => "attached",
        Response::Subscribed { .. } => "subscribed",
        Response::Status(_) => "status",
        Response::SyncsMeasured { .. } => "syncs_measured",
        Response::Measuring => "measuring",
        Response::Sunk { .. } => "sunk",
    };
    Error::protocol(format!("it answered `{op}` with `{kind}`"))
}
