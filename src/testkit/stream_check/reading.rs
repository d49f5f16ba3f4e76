//! Reading one stream for a check: what is there now, and what comes.

use std::fmt;
use std::ops::ControlFlow;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tidelog_client::{Client, ConnectionEvent, ConnectionEvents, Error, Reader, ReaderEvent};
use tidelog_protocol::{ErrorCode, Offset, StartAt, StreamId, StreamName};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::super::records::{StoredRecord, unpack};

/// Records read behind the place that is looked at, beyond those that are wanted.
const AHEAD_MAX: usize = 10_000;

/// Records read before the place that is looked at, to see what stands in the stream twice.
const BACK_MAX: u64 = 100_000;

/// How long the look may take that is had at a stream once the time limit has passed.
const LAST_LOOK: Duration = Duration::from_secs(5);

/// The first pause before a stream is asked for again that is not there yet, and the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Names told when there is no stream of the one that was asked for.
const NAMES_MAX: usize = 10;

/// The next record to look at, of one stream for ever.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    stream: StreamId,
    next: u64,
}

/// Why a stream can't be read on.
#[derive(Debug, Clone)]
pub(super) enum Stop {
    NoStream { name: String, others: Vec<String> },
    Removed,
    Damaged { from: Offset, to: Offset },
    Gone { from: Offset, to: Offset },
    TooSlow,
    Failed(Error),
    Other(String),
}

/// Part of a stream as it was at one moment.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) records: Vec<StoredRecord>,
    /// Where it begins.
    pub(super) from: Option<Place>,
    /// How many of these stand before the place that was looked at.
    pub(super) passed: usize,
    /// Records behind these that were not read.
    pub(super) more: u64,
    /// Why it is not everything.
    pub(super) stop: Option<Stop>,
}

impl Place {
    /// Behind a record of the stream.
    pub(super) fn behind(self, record: &StoredRecord) -> Self {
        Self { next: record.offset + 1, ..self }
    }
}

/// One stream of one broker.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) client: Client,
    pub(super) stream: String,
}

impl Source {
    /// Hands the records from `from` on to `take`, those that are still to come as well, until that has enough; gives the
    /// place it began at, or `None` if `within` has passed before.
    ///
    /// A stream that is not there yet is waited for.
    pub(super) async fn follow(
        &self,
        from: Option<Place>,
        within: Duration,
        mut take: impl FnMut(StoredRecord) -> ControlFlow<()>,
    ) -> Result<Option<Place>, Stop> {
        if within.is_zero() {
            return Ok(None);
        }
        let followed = async {
            let (mut reader, begin) = self.open_once_there(from).await?;
            let mut records = Vec::new();
            loop {
                match reader.next_batch().await.map_err(Stop::of)? {
                    Some(ReaderEvent::Batch(batch)) => unpack(batch, &mut records).map_err(Stop::of)?,
                    Some(other) => return Err(Stop::of_event(&other)),
                    // A follower has no end.
                    None => return Err(Stop::Removed),
                }
                for record in records.drain(..) {
                    if take(record).is_break() {
                        return Ok(begin);
                    }
                }
            }
        };
        match timeout_at(Instant::now() + within, followed).await {
            Ok(begin) => begin.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// What is in the stream now from `from` on, of that what `keep` wants, and at most `wanted` records and some more.
    pub(super) async fn present(
        &self,
        from: Option<Place>,
        wanted: usize,
        keep: impl Fn(&StoredRecord) -> bool,
    ) -> Look {
        let mut look = Look::default();
        let begin = from.map_or(0, |place| place.next);
        let collected = self.collect(from, begin, wanted.saturating_add(AHEAD_MAX), keep, &mut look).await;
        Look { stop: collected.err(), ..look }
    }

    /// The same from the start, and not for long: the last look of a check whose time limit has passed.
    pub(super) async fn present_soon(&self, wanted: usize, keep: impl Fn(&StoredRecord) -> bool) -> Look {
        let mut look = Look::default();
        let collecting = self.collect(None, 0, wanted.saturating_add(AHEAD_MAX), keep, &mut look);
        let collected = timeout(LAST_LOOK, collecting).await.unwrap_or(Err(Stop::TooSlow));
        Look { stop: collected.err(), ..look }
    }

    /// The same from before `from`, and not for long: what a difference is made from.
    pub(super) async fn last_look(&self, from: Option<Place>, wanted: usize) -> Look {
        let mut look = Look::default();
        let begin = from.map_or(0, |place| place.next.saturating_sub(BACK_MAX));
        let back = usize::try_from(from.map_or(0, |place| place.next - begin)).unwrap_or(usize::MAX);
        let records_max = back.saturating_add(wanted).saturating_add(AHEAD_MAX);
        let collecting = self.collect(from, begin, records_max, |_| true, &mut look);
        let collected = timeout(LAST_LOOK, collecting).await.unwrap_or(Err(Stop::TooSlow));
        Look { stop: collected.err(), ..look }
    }

    async fn collect(
        &self,
        from: Option<Place>,
        begin: u64,
        records_max: usize,
        keep: impl Fn(&StoredRecord) -> bool,
        look: &mut Look,
    ) -> Result<(), Stop> {
        let start = match begin {
            // Whatever retention has left.
            0 => StartAt::Start,
            offset => StartAt::Offset { offset: Offset::new(offset) },
        };
        let passed = from.map_or(0, |place| place.next);
        let (mut reader, begin) = self.open(from, start, false).await?;
        look.from = Some(begin);
        let mut records = Vec::new();
        while let Some(event) = reader.next_batch().await.map_err(Stop::of)? {
            match event {
                ReaderEvent::Batch(batch) => unpack(batch, &mut records).map_err(Stop::of)?,
                // What was read before may be gone by now.
                ReaderEvent::Gap { to, .. } | ReaderEvent::Damaged { to, .. } if to.get() <= passed => {}
                other => return Err(Stop::of_event(&other)),
            }
            for record in records.drain(..).filter(|record| keep(record)) {
                look.passed += usize::from(record.offset < passed);
                look.records.push(record);
            }
            if look.records.len() >= records_max {
                let end = reader.end().map_or(0, Offset::get);
                look.more = end.saturating_sub(reader.next_offset().get());
                break;
            }
        }
        Ok(())
    }

    async fn open_once_there(&self, from: Option<Place>) -> Result<(Reader, Place), Stop> {
        let start = match from {
            Some(place) => StartAt::Offset { offset: Offset::new(place.next) },
            None => StartAt::Start,
        };
        let mut pause = PAUSE_FIRST;
        loop {
            match self.open(from, start, true).await {
                // The protocol has no event for a new stream, so it is asked for again, after pauses that grow.
                Err(Stop::NoStream { .. }) if from.is_none() => {
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                opened => return opened,
            }
        }
    }

    async fn open(&self, expected: Option<Place>, start: StartAt, follow: bool) -> Result<(Reader, Place), Stop> {
        let name = StreamName::new(self.stream.clone()).map_err(|error| Stop::Other(error.to_string()))?;
        let description = match self.client.stream_info(&name).await {
            Err(error) if error.code() == Some(ErrorCode::NotFound) => return Err(self.no_stream().await),
            described => described.map_err(Stop::of)?,
        };
        if expected.is_some_and(|place| place.stream != description.id) {
            return Err(Stop::Removed);
        }
        let stream = description.id;
        let reader = self.client.reader(description).from(start).follow(follow).open().await.map_err(Stop::of)?;
        let place = Place { stream, next: reader.next_offset().get() };
        Ok((reader, place))
    }

    async fn no_stream(&self) -> Stop {
        match self.client.list_streams().await {
            Ok(streams) => Stop::NoStream {
                name: self.stream.clone(),
                others: streams.iter().map(|stream| stream.name.as_str().to_owned()).collect(),
            },
            Err(error) => Stop::of(error),
        }
    }
}

impl Stop {
    fn of(error: Error) -> Self {
        match error.code() {
            Some(ErrorCode::StreamGone) => Self::Removed,
            _ => Self::Failed(error),
        }
    }

    fn of_event(event: &ReaderEvent) -> Self {
        match event {
            ReaderEvent::Damaged { from, to } => Self::Damaged { from: *from, to: *to },
            ReaderEvent::Gap { from, to } => Self::Gone { from: *from, to: *to },
            other => Self::Other(format!("the client gave {other:?}")),
        }
    }
}

impl Stop {
    /// As a sentence of its own.
    pub(super) fn sentence(&self) -> String {
        let text = self.to_string();
        let mut characters = text.chars();
        let first = characters.next().map(|first| first.to_ascii_uppercase());
        first.into_iter().chain(characters).chain(['.']).collect()
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoStream { name, others } if others.is_empty() => {
                write!(formatter, "there is no stream '{name}', and no other either")
            }
            Self::NoStream { name, others } => {
                let told: Vec<&str> = others.iter().take(NAMES_MAX).map(String::as_str).collect();
                write!(formatter, "there is no stream '{name}'; there are: {}", told.join(", "))?;
                match others.len().saturating_sub(NAMES_MAX) {
                    0 => Ok(()),
                    more => write!(formatter, " and {more} more"),
                }
            }
            Self::Removed => formatter.write_str("it was removed since it was first looked at"),
            Self::Damaged { from, to } => write!(formatter, "the offsets {from}..{to} are damaged"),
            Self::Gone { from, to } => write!(formatter, "the offsets {from}..{to} are no longer kept"),
            Self::TooSlow => formatter.write_str("the broker did not give it in time"),
            Self::Failed(error) => write!(formatter, "{error}"),
            Self::Other(reason) => formatter.write_str(reason),
        }
    }
}

/// Listens to what happens to the connection while a check waits.
pub(super) struct Watch(ConnectionEvents);

impl Watch {
    pub(super) fn new(client: &Client) -> Self {
        Self(client.events())
    }

    /// What is wrong with the connection now, if anything is.
    pub(super) fn trouble(&mut self) -> Option<String> {
        let mut trouble = None;
        let mut context = Context::from_waker(Waker::noop());
        loop {
            let next = pin!(self.0.next());
            let Poll::Ready(Some(event)) = next.poll(&mut context) else { return trouble };
            trouble = match event {
                ConnectionEvent::Connected { .. } => None,
                ConnectionEvent::Lost { error, .. }
                | ConnectionEvent::Reconnecting { error, .. }
                | ConnectionEvent::GaveUp { error, .. } => Some(format!("The broker can't be reached: {error}")),
                _ => trouble,
            };
        }
    }
}
