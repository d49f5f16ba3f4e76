//! Readers: one stream from some place on, every record once, in order, without gaps that are not told.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tidelog_protocol::{
    BatchRecords, BoxFuture, Delivery, Frame, FrameKind, Offset, ProducerId, ProducerName, Record, Request, Response,
    Sequence, StartAt, StreamDescription, StreamId, decode_damaged, decode_end, decode_gap, decode_producer_name,
    verify_content_crc,
};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout_at};

use crate::channel::{Channel, failure, unexpected};
use crate::connection::{Client, wrong_answer};
use crate::error::Error;
use crate::link::Link;
use crate::retry::Backoff;
use crate::target::StreamTarget;

/// How a stream is read; made by [`Client::reader`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ReaderBuilder {
    client: Client,
    target: StreamTarget,
    from: StartAt,
    follow: bool,
}

impl ReaderBuilder {
    pub(crate) fn new(client: Client, target: StreamTarget) -> Self {
        Self { client, target, from: StartAt::Start, follow: false }
    }

    /// Where to start; [`StartAt::Start`] by default.
    pub fn from(mut self, from: StartAt) -> Self {
        self.from = from;
        self
    }

    /// Whether to wait for new records at the end. Otherwise reading ends where the stream ended when it was opened.
    pub fn follow(mut self, follow: bool) -> Self {
        self.follow = follow;
        self
    }

    /// Starts reading.
    ///
    /// # Errors
    ///
    /// `not_found` if there is no such stream, `position_past_end` if it does not reach to the offset; those of the
    /// connection.
    pub async fn open(self) -> Result<Reader, Error> {
        let Self { client, target, from, follow } = self;
        let stream = target.resolve(&client).await?;
        let subscription = subscribe(client.clone(), stream.id, from, follow).await?;
        let Subscription { start, tail, .. } = subscription;
        // What retention has taken of the part that was asked for is a gap, and is told as one.
        let next = match from {
            StartAt::Offset { offset } => offset.min(start),
            _ => start,
        };
        let patience = Box::pin(sleep(client.timeout()));
        Ok(Reader {
            client,
            stream,
            next,
            end: (!follow).then_some(tail),
            names: HashMap::new(),
            state: State::Opening(Box::pin(async { Ok(subscription) })),
            fresh: true,
            backoff: Backoff::default(),
            patience,
        })
    }
}

/// What a reader gives, in the order of offsets.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ReaderEvent {
    /// Records.
    Batch(DeliveredBatch),
    /// The offsets `from..to` are no longer kept: retention has removed them.
    Gap {
        /// The first one missing.
        from: Offset,
        /// The first one behind.
        to: Offset,
    },
    /// The offsets `from..to` can't be read: their bytes are damaged.
    Damaged {
        /// The first one missing.
        from: Offset,
        /// The first one behind.
        to: Offset,
    },
}

/// A reader of one stream; a [`Stream`] of [`ReaderEvent`]s.
///
/// Every offset from the start on is accounted for: by a record, a gap or damage. After a lost connection it goes on by
/// itself behind the last offset it gave. An error is final.
///
/// Records are slices of what was received: one that is kept keeps its whole batch (see [`Record::detach`]).
///
/// ```
/// # use tidelog_client::*;
/// # use tidelog_protocol::*;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = tidelog::Broker::start(tidelog::BrokerConfig::in_memory())?;
/// # let client = Client::connect(ClientConfig::find(&broker.address().parse()?, None)?).await?;
/// # let orders = client.create_stream(&StreamName::new("orders")?, StreamSettings::default(), true).await?;
/// # let producer = client.producer(ProducerName::new("shop")?).open().await?;
/// # let publisher = producer.stream(&orders).await?;
/// # for value in ["a", "b", "c"] { publisher.publish(Record::new(value)).await?; }
/// let mut reader = client.reader(&orders).from(StartAt::Last { count: 2 }).follow(true).open().await?;
/// let mut next = reader.next_offset();
/// // With `follow` this goes on for ever; here until two records have come.
/// while next < Offset::new(3) {
///     match reader.next_batch().await? {
///         Some(ReaderEvent::Batch(batch)) => {
///             for delivered in batch {
///                 let delivered = delivered?;
///                 assert_eq!(delivered.offset, next, "no gap that is not told");
///                 println!("{}: {:?}", delivered.offset, delivered.record.value);
///                 next = Offset::new(next.get() + 1);
///             }
///         }
///         // Offsets that nobody can read any more: told, never skipped silently.
///         Some(ReaderEvent::Gap { to, .. } | ReaderEvent::Damaged { to, .. }) => next = to,
///         Some(_) | None => break,
///     }
/// }
/// # assert_eq!(next, Offset::new(3));
/// # Ok(())
/// # }
/// ```
pub struct Reader {
    client: Client,
    stream: StreamDescription,
    /// The next offset to give.
    next: Offset,
    /// Where to stop; `None` when following.
    end: Option<Offset>,
    /// Producers that the broker has named.
    names: HashMap<ProducerId, ProducerName>,
    state: State,
    /// Nothing was delivered on this subscription yet: its first batch may start before `next`.
    fresh: bool,
    backoff: Backoff,
    /// Runs while records are due; a follower at the end of its stream may wait for ever.
    patience: Pin<Box<Sleep>>,
}

enum State {
    Opening(BoxFuture<'static, Result<Subscription, Error>>),
    Streaming(Subscription),
    Ended,
}

struct Subscription {
    channel: Channel,
    start: Offset,
    tail: Offset,
    /// Keeps the connection open.
    _link: Arc<Link>,
}

/// Subscribes, trying again until the timeout.
async fn subscribe(client: Client, stream: StreamId, from: StartAt, follow: bool) -> Result<Subscription, Error> {
    let deadline = Instant::now() + client.timeout();
    let mut backoff = Backoff::default();
    let mut cause = None;
    loop {
        let error = match timeout_at(deadline, subscribe_once(&client, stream, from, follow)).await {
            Ok(Err(error)) if error.is_retryable() => error,
            Ok(done) => return done,
            Err(_) => return Err(client.timed_out("subscribing", cause)),
        };
        let next = Instant::now() + backoff.next_delay(client.jitter());
        if next >= deadline || matches!(error, Error::TimedOut { .. }) {
            return Err(match error {
                timed_out @ Error::TimedOut { .. } => timed_out,
                other => client.timed_out("subscribing", Some(other)),
            });
        }
        cause = Some(error);
        sleep_until(next).await;
    }
}

async fn subscribe_once(client: &Client, stream: StreamId, from: StartAt, follow: bool) -> Result<Subscription, Error> {
    let link = client.link().await?;
    let (channel, response) = link.open(Request::Subscribe { stream, from, follow }).await?;
    match response {
        Response::Subscribed { start, tail } => Ok(Subscription { channel, start, tail, _link: link }),
        other => Err(wrong_answer("subscribe", &other)),
    }
}

impl Reader {
    /// The stream as it was when the reader was opened.
    pub fn description(&self) -> &StreamDescription {
        &self.stream
    }

    /// The offset behind everything given so far: where another reader would go on.
    pub fn next_offset(&self) -> Offset {
        self.next
    }

    /// Where this reader stops; `None` if it follows.
    pub fn end(&self) -> Option<Offset> {
        self.end
    }

    /// The next event; `None` at the end. Cancel safe.
    ///
    /// # Errors
    ///
    /// `stream_gone` if the stream was removed, [`Error::ChecksumMismatch`] for damage on the way,
    /// [`Error::TimedOut`] if records are due and none came; those of the connection. The reader has ended then.
    pub async fn next_batch(&mut self) -> Result<Option<ReaderEvent>, Error> {
        poll_fn(|context| self.poll_event(context)).await.transpose()
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<ReaderEvent, Error>>> {
        loop {
            let taken = match &mut self.state {
                State::Ended => return Poll::Ready(None),
                State::Opening(opening) => match ready!(opening.as_mut().poll(context)) {
                    Ok(subscription) => {
                        let start = subscription.start;
                        self.state = State::Streaming(subscription);
                        self.fresh = true;
                        self.restart_patience();
                        Ok(self.pass(start).map(|(from, to)| ReaderEvent::Gap { from, to }))
                    }
                    Err(error) => return Poll::Ready(Some(Err(self.end_with(error)))),
                },
                State::Streaming(_) if self.end.is_some_and(|end| self.next >= end) => {
                    self.state = State::Ended;
                    return Poll::Ready(None);
                }
                State::Streaming(subscription) => match subscription.channel.incoming.poll_next(context) {
                    Poll::Ready(frame) => frame.and_then(|frame| self.take(frame)),
                    Poll::Pending => {
                        if self.end.is_some() && self.patience.as_mut().poll(context).is_ready() {
                            let error = self.client.timed_out("reading", None);
                            return Poll::Ready(Some(Err(self.end_with(error))));
                        }
                        return Poll::Pending;
                    }
                },
            };
            match taken {
                Ok(Some(event)) => {
                    self.backoff.reset();
                    self.restart_patience();
                    return Poll::Ready(Some(Ok(event)));
                }
                Ok(None) => {}
                Err(error) if error.is_retryable() => self.resume(&error),
                Err(error) => return Poll::Ready(Some(Err(self.end_with(error)))),
            }
        }
    }

    fn end_with(&mut self, error: Error) -> Error {
        self.state = State::Ended;
        error
    }

    fn restart_patience(&mut self) {
        if self.end.is_some() {
            let deadline = Instant::now() + self.client.timeout();
            self.patience.as_mut().reset(deadline);
        }
    }

    /// Subscribes again behind what was given.
    fn resume(&mut self, error: &Error) {
        tracing::debug!(%error, stream = %self.stream.name, next = %self.next, "reader interrupted");
        let delay = self.backoff.next_delay(self.client.jitter());
        let (client, stream, follow) = (self.client.clone(), self.stream.id, self.end.is_none());
        let from = StartAt::Offset { offset: self.next };
        self.state = State::Opening(Box::pin(async move {
            sleep(delay).await;
            subscribe(client, stream, from, follow).await
        }));
    }

    /// Moves to `to` without records and gives what of it is to be told, if anything is.
    fn pass(&mut self, to: Offset) -> Option<(Offset, Offset)> {
        let from = self.next;
        self.next = from.max(to);
        let told_to = self.end.map_or(to, |end| end.min(to));
        (from < told_to).then_some((from, told_to))
    }

    fn take(&mut self, frame: Frame) -> Result<Option<ReaderEvent>, Error> {
        match frame.kind {
            FrameKind::Deliver => self.deliver(frame).map(Some),
            FrameKind::ProducerName => {
                let (id, name) = decode_producer_name(&frame.body)?;
                self.names.insert(id, name);
                Ok(None)
            }
            FrameKind::Gap => {
                let gap = decode_gap(&frame.body)?;
                self.check_dense(gap.from)?;
                Ok(self.pass(gap.to).map(|(from, to)| ReaderEvent::Gap { from, to }))
            }
            FrameKind::Damaged => {
                let damaged = decode_damaged(&frame.body)?;
                self.check_dense(damaged.from)?;
                Ok(self.pass(damaged.to).map(|(from, to)| ReaderEvent::Damaged { from, to }))
            }
            FrameKind::End => {
                let tail = decode_end(&frame.body)?;
                match self.end {
                    // Where this reader ends was settled when it was opened; a later subscription may see more.
                    Some(end) if self.next >= end => Ok(None),
                    _ => {
                        Err(Error::protocol(format!("it ended the reading at {tail}, but {} is still due", self.next)))
                    }
                }
            }
            FrameKind::Failure => Err(failure(&frame)),
            other => Err(unexpected(other)),
        }
    }

    fn check_dense(&self, from: Offset) -> Result<(), Error> {
        if from > self.next {
            return Err(Error::protocol(format!(
                "it went on with offset {from} of '{}' where {} is due, and did not say why",
                self.stream.name, self.next
            )));
        }
        Ok(())
    }

    fn deliver(&mut self, frame: Frame) -> Result<ReaderEvent, Error> {
        let Delivery { header, batch } = Delivery::decode(frame.body)?;
        self.check_dense(header.base_offset)?;
        if !verify_content_crc(&batch) {
            return Err(Error::ChecksumMismatch { stream: self.stream.name.clone(), offset: header.base_offset });
        }
        let mut records = BatchRecords::new(&batch)?;
        if records.header().stream != self.stream.id {
            return Err(Error::protocol("it delivered a batch of another stream"));
        }
        // Offsets behind the batch; a batch keeps at least one record.
        let kept = u64::from(records.header().count.saturating_sub(header.skip));
        let behind = header.base_offset.checked_add(kept).filter(|behind| *behind > self.next);
        let (Some(behind), true) = (behind, self.fresh || header.base_offset == self.next) else {
            return Err(Error::protocol(format!(
                "it delivered {kept} records from offset {} on where {} is due",
                header.base_offset, self.next
            )));
        };
        let producer = match header.producer {
            ProducerId::ANONYMOUS => None,
            id => match self.names.get(&id) {
                Some(name) => Some(name.clone()),
                None => return Err(Error::protocol(format!("it delivered records of producer {id}, unnamed"))),
            },
        };
        // A stored batch comes whole; this reader may have asked for its middle, or for less than its end.
        let offset = self.next;
        let passed = u64::from(header.skip) + (offset.get() - header.base_offset.get());
        if let Some(last_passed) = passed.checked_sub(1) {
            // Fits: `passed` is below the batch's count.
            let last_passed = usize::try_from(last_passed).unwrap_or(usize::MAX);
            records.nth(last_passed).transpose().map_err(|error| Error::protocol(error.to_string()))?;
        }
        let next = self.end.map_or(behind, |end| end.min(behind));
        self.next = behind;
        self.fresh = false;
        Ok(ReaderEvent::Batch(DeliveredBatch { offset, next, time_ms: header.time_ms, producer, records }))
    }
}

impl Stream for Reader {
    type Item = Result<ReaderEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_event(context)
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Reader")
            .field("stream", &self.stream.name)
            .field("next", &self.next)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// Records of one producer at consecutive offsets.
#[derive(Debug, Clone)]
pub struct DeliveredBatch {
    offset: Offset,
    next: Offset,
    time_ms: i64,
    producer: Option<ProducerName>,
    records: BatchRecords,
}

impl DeliveredBatch {
    /// The first record's offset.
    pub fn base_offset(&self) -> Offset {
        self.offset
    }

    /// The offset behind the last record.
    pub fn next_offset(&self) -> Offset {
        self.next
    }

    /// How many records there are; at least one.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> u64 {
        self.next.get() - self.offset.get()
    }

    /// The broker's clock when it ordered the batch, in milliseconds since 1970; never falling within a stream.
    pub fn time_ms(&self) -> i64 {
        self.time_ms
    }

    /// Who published it; `None` if anonymous.
    pub fn producer(&self) -> Option<&ProducerName> {
        self.producer.as_ref()
    }

    /// The checksum that the producer sent the batch with, and that was compared with what has come
    /// ([`Receipt::content_crc`](crate::Receipt::content_crc)). It covers the whole batch, which may reach beyond the records
    /// that are given here.
    pub fn content_crc(&self) -> u32 {
        self.records.header().content_crc
    }

    /// The sequences of the first and the last record of the whole batch, which may reach beyond the records that are given
    /// here; [`Sequence::NONE`] for both if it is anonymous.
    pub fn sequences(&self) -> (Sequence, Sequence) {
        (self.records.header().first, self.records.header().last)
    }

    /// The records, in order.
    pub fn records(&self) -> DeliveredRecords {
        DeliveredRecords { offset: self.offset, end: self.next, records: self.records.clone() }
    }
}

impl IntoIterator for DeliveredBatch {
    type Item = Result<DeliveredRecord, Error>;
    type IntoIter = DeliveredRecords;

    fn into_iter(self) -> DeliveredRecords {
        DeliveredRecords { offset: self.offset, end: self.next, records: self.records }
    }
}

/// One record and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeliveredRecord {
    /// Its place in the stream.
    pub offset: Offset,
    /// Its place in its producer's output; [`Sequence::NONE`] if anonymous.
    pub sequence: Sequence,
    /// What was published, as slices of the batch.
    pub record: Record,
}

/// The records of a [`DeliveredBatch`]. After an error there are no more.
#[derive(Debug, Clone)]
pub struct DeliveredRecords {
    offset: Offset,
    end: Offset,
    records: BatchRecords,
}

impl Iterator for DeliveredRecords {
    type Item = Result<DeliveredRecord, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.end {
            return None;
        }
        let offset = self.offset;
        match self.records.next() {
            Some(Ok((sequence, record))) => {
                self.offset = Offset::new(offset.get() + 1);
                Some(Ok(DeliveredRecord { offset, sequence, record }))
            }
            other => {
                self.end = offset;
                let reason = match other {
                    Some(Err(error)) => error.to_string(),
                    _ => "a batch has fewer records than its header says".into(),
                };
                Some(Err(Error::protocol(reason)))
            }
        }
    }
}
