//! One producer under load: keeps records under way, and notes when they were due and when they were acknowledged.
//!
//! What it does for each record is to make its value and hand it to the client library; clocks are read, and everything
//! else is done, for each burst of records and for each batch that is acknowledged.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use tidelog_client::{Ack, Producer, Publisher, Receipt};
use tidelog_protocol::StreamId;
use tokio::time::Instant;

use super::due::{Moments, Waiting};
use super::ledger::{Lane, Payload};
use super::pace::{Pace, Timer};
use super::report::Latencies;
use crate::cli::connect::failed;
use crate::cli::exit::{CliError, Exit};

/// Bytes of records handed over before the task that sends them gets its turn.
const BURST_BYTES: u64 = 64 << 10;

/// What the producers of one run have in common.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Records that are durable.
    pub(super) records: Cell<u64>,
    pub(super) latencies: RefCell<Option<Latencies>>,
    /// How long after they were due records were handed over, if they are paced: what of their latency is this tool's.
    pub(super) late: RefCell<Option<Latencies>>,
    /// When the last one became durable.
    pub(super) ended: Cell<Option<Instant>>,
}

/// When a producer has sent enough.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    /// After so many records.
    Records(u64),
    Moment(Instant),
}

/// What a producer is to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Task {
    /// Which of the producers it is, from 0.
    pub(super) number: u64,
    pub(super) size: usize,
    pub(super) until: Until,
    /// Records without acknowledgement; `None` if only the window bounds them.
    pub(super) in_flight: Option<u64>,
    pub(super) ack: Ack,
    pub(super) pace: Option<Pace>,
}

/// Records of one producer for one stream.
struct Course {
    publisher: Publisher,
    sent: u64,
    /// Those that have no acknowledgement.
    waiting: Waiting,
    lane: Lane,
}

/// One producer.
pub(super) struct Load {
    task: Task,
    tally: Rc<Tally>,
    producer: Producer,
    courses: Vec<Course>,
    by_stream: HashMap<StreamId, usize>,
    /// When those that have no acknowledgement were due.
    moments: Moments,
    payload: Payload,
    timer: Option<Timer>,
    burst: u64,
    /// The streams of the records that were handed over in this burst.
    places: Vec<usize>,
    sent: u64,
    acknowledged: u64,
    durable: u64,
    random: u64,
}

/// What can be done now.
enum Next {
    /// Hand over so many records.
    Send(u64),
    /// Nothing before this moment, unless an acknowledgement comes.
    Wait(Instant),
    /// Nothing before an acknowledgement comes.
    Full,
    /// All is sent.
    Over,
}

impl Load {
    /// Prepares a producer for these streams; `publishers` has one for each.
    ///
    /// # Errors
    ///
    /// If the system gives no timer.
    pub(super) fn new(
        task: Task,
        tally: &Rc<Tally>,
        producer: Producer,
        publishers: Vec<Publisher>,
    ) -> Result<Self, CliError> {
        let by_stream = publishers.iter().zip(0..).map(|(publisher, place)| (publisher.description().id, place));
        Ok(Self {
            by_stream: by_stream.collect(),
            courses: publishers
                .into_iter()
                .map(|publisher| Course { publisher, sent: 0, waiting: Waiting::default(), lane: Lane::default() })
                .collect(),
            payload: Payload::new(task.size, task.number),
            moments: Moments::default(),
            timer: task.pace.map(|_| Timer::new()).transpose()?,
            burst: (BURST_BYTES / task.size as u64).max(1),
            places: Vec::new(),
            sent: 0,
            acknowledged: 0,
            durable: 0,
            random: task.number + 1,
            task,
            tally: Rc::clone(tally),
            producer,
        })
    }

    /// Publishes until it is enough and all of it is durable; gives what was sent to each stream.
    ///
    /// # Errors
    ///
    /// Whatever ends the producer, and acknowledgements that make no sense.
    pub(super) async fn run(mut self) -> Result<Vec<Lane>, CliError> {
        loop {
            let now = Instant::now();
            match self.next(now) {
                Next::Send(records) => {
                    let taken = self.send(records, now).await?;
                    self.take_receipts()?;
                    if taken == 0 {
                        self.acknowledgement().await?;
                    } else if self.task.in_flight != Some(1) {
                        // One record's answer is waited for in any case.
                        tokio::task::yield_now().await;
                    }
                }
                Next::Wait(due) => {
                    let Some(timer) = self.timer.take() else { continue };
                    tokio::select! {
                        biased;
                        () = timer.until(due) => {}
                        acknowledged = self.acknowledgement() => acknowledged?,
                    }
                    self.timer = Some(timer);
                }
                Next::Full => self.acknowledgement().await?,
                Next::Over => break,
            }
        }
        while self.durable < self.sent {
            self.acknowledgement().await?;
        }
        self.tally.ended.set(self.tally.ended.get().max(Some(Instant::now())));
        self.producer.close().await.map_err(|error| failed(&error))?;
        Ok(self.courses.into_iter().map(|course| course.lane).collect())
    }

    fn next(&self, now: Instant) -> Next {
        let left = match self.task.until {
            Until::Records(records) => records - self.sent,
            Until::Moment(moment) if now >= moment => 0,
            Until::Moment(_) => u64::MAX,
        };
        if left == 0 {
            return Next::Over;
        }
        let room = match self.task.in_flight {
            Some(in_flight) => in_flight - (self.sent - self.acknowledged),
            None => u64::MAX,
        };
        if room == 0 {
            return Next::Full;
        }
        let may = left.min(room).min(self.burst);
        let Some(pace) = &self.task.pace else { return Next::Send(may) };
        match pace.due_by(now).saturating_sub(self.sent) {
            0 => match (pace.due(self.sent), self.task.until) {
                // Also between the last record that is due in time and the end.
                (due, Until::Moment(moment)) if due >= moment => Next::Wait(moment),
                // What rounding makes of a moment must not be waited for again and again.
                (due, _) if due <= now => Next::Send(1),
                (due, _) => Next::Wait(due),
            },
            due => Next::Send(may.min(due)),
        }
    }

    /// Hands over up to so many records, fewer if the window is full; how many.
    async fn send(&mut self, records: u64, now: Instant) -> Result<u64, CliError> {
        while (self.places.len() as u64) < records {
            let place = self.place();
            let Some(course) = self.courses.get_mut(place) else { break };
            let value = self.payload.of(place as u32, course.sent + 1);
            let mut sending = pin!(course.publisher.send_value(value));
            // Given up, it has not taken the record.
            match poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await {
                Poll::Ready(sent) => sent.map_err(|error| failed(&error))?,
                Poll::Pending => break,
            };
            course.sent += 1;
            self.places.push(place);
        }
        Ok(self.note_sent(now))
    }

    /// Notes when the records of this burst were due. All at once: with many streams each of them is elsewhere in memory, and
    /// what is written there between two records holds up the lock that the next one takes.
    fn note_sent(&mut self, now: Instant) -> u64 {
        let mut late = self.tally.late.borrow_mut();
        for (place, number) in self.places.iter().zip(self.sent..) {
            let due = self.task.pace.map_or(now, |pace| pace.due(number));
            if let (Some(_), Some(late)) = (&self.task.pace, late.as_mut()) {
                late.add(now.saturating_duration_since(due), 1);
            }
            let Some(course) = self.courses.get_mut(*place) else { continue };
            self.moments.note(&mut course.waiting, due);
        }
        let taken = self.places.len() as u64;
        self.places.clear();
        self.sent += taken;
        taken
    }

    /// Any of the streams.
    fn place(&mut self) -> usize {
        let streams = self.courses.len();
        if streams == 1 {
            return 0;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % streams as u64) as usize
    }

    /// Waits for an acknowledgement, and takes in all that have come.
    async fn acknowledgement(&mut self) -> Result<(), CliError> {
        let is_accepted = self.task.ack == Ack::Accepted;
        let receipt = match self.courses.first() {
            // Told apart from being durable, and not by a receipt.
            Some(course) if is_accepted && self.acknowledged < self.sent => {
                tokio::select! {
                    biased;
                    receipt = self.producer.next_receipt() => receipt,
                    beyond = course.publisher.acknowledged_beyond(self.acknowledged) => {
                        let acknowledged = beyond.map_err(|error| failed(&error))?;
                        return self.accepted(acknowledged);
                    }
                }
            }
            _ => self.producer.next_receipt().await,
        };
        let Some(receipt) = receipt else { return Err(self.why_it_ended().await) };
        self.durable(receipt)?;
        self.take_receipts()
    }

    fn take_receipts(&mut self) -> Result<(), CliError> {
        while let Some(receipt) = self.producer.try_next_receipt() {
            self.durable(receipt)?;
        }
        Ok(())
    }

    /// Records up to this number are ordered, or durable.
    fn accepted(&mut self, acknowledged: u64) -> Result<(), CliError> {
        let records = acknowledged - self.acknowledged;
        self.acknowledged = acknowledged;
        match self.courses.first_mut() {
            Some(course) => course.answered(records, &mut self.moments, &self.tally),
            None => Ok(()),
        }
    }

    fn durable(&mut self, (stream, receipt): (StreamId, Receipt)) -> Result<(), CliError> {
        let records = u64::from(receipt.count);
        self.durable += records;
        self.tally.records.set(self.tally.records.get() + records);
        if self.task.ack == Ack::Accepted {
            // A batch may become durable before anybody was told that it is ordered.
            if self.durable > self.acknowledged {
                self.accepted(self.durable)?;
            }
        }
        let place = self.by_stream.get(&stream).copied();
        let Some(course) = place.and_then(|place| self.courses.get_mut(place)) else {
            return Err(not_verified("a record of another stream was acknowledged"));
        };
        course.lane.acknowledged(receipt.first, receipt.last, receipt.content_crc).map_err(not_verified)?;
        if self.task.ack != Ack::Accepted {
            self.acknowledged += records;
            course.answered(records, &mut self.moments, &self.tally)?;
        }
        Ok(())
    }

    async fn why_it_ended(&self) -> CliError {
        match self.producer.flush().await {
            Err(error) => failed(&error),
            Ok(()) => CliError::new(Exit::No, "ended", "a producer has ended before all its records were acknowledged"),
        }
    }
}

impl Course {
    /// Notes how long the next records have taken.
    fn answered(&mut self, records: u64, moments: &mut Moments, tally: &Tally) -> Result<(), CliError> {
        let mut latencies = tally.latencies.borrow_mut();
        let are_known = moments.acknowledge(&mut self.waiting, records, Instant::now(), |time, count| {
            if let Some(latencies) = latencies.as_mut() {
                latencies.add(time, count);
            }
        });
        if are_known { Ok(()) } else { Err(not_verified("more records were acknowledged than sent")) }
    }
}

/// What was acknowledged or read is not what was sent.
pub(super) fn not_verified(what: impl Into<String>) -> CliError {
    CliError::new(Exit::No, "not_verified", what)
}
