//! The single writer: judges, assigns offsets, appends, and answers once durable. A steppable state machine: it knows no
//! sockets, no threads and no clock, so that a test can run a whole broker on one thread.
//!
//! One publish is one function call: check, judge, encode into the open group. The caller hands closed groups to whoever
//! writes them, and says what became of them.

mod checkpoint;
mod control;

pub use checkpoint::Snapshot;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidelog_protocol::{
    Answer, BATCH_HEADER_LEN, BatchError, BatchHeader, ErrorCode, Limits, Outcome, ResponseResult, StreamId, WireError,
    check_batch,
};
use tidelog_storage::{
    AppendError, Appender, EntryKind, Facts, Group, GroupBytes, NewEntry, ReplayTime, Sabotage, Sabotages, Stamp,
    StoredBatch,
};

use crate::counters::{Counters, DuplicateCause};
use crate::pending_answers::PendingAnswers;
use crate::state::{Admission, BatchAppended, Change, Grant, Refusal, State, Verdict, owner};

/// A publishing session, as the server counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey(pub u64);

/// What time it is, handed in.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The clocks that go into entries.
    pub time: ReplayTime,
    /// Monotonic, for measuring.
    pub monotonic: Duration,
}

/// Where a control request's answer goes.
pub type ReplySender = tokio::sync::oneshot::Sender<ResponseResult>;

/// Whoever the sequencer's decisions go to.
pub trait Sink {
    /// A batch of this session is answered. Answers of a session come in the order of its batches.
    fn answer(&mut self, session: SessionKey, answer: Answer);
    /// Whether anybody is waiting for new records of this stream.
    fn wants(&self, stream: StreamId) -> bool;
    /// A batch has become durable.
    fn deliver(&mut self, stream: StreamId, batch: LiveBatch);
    /// The removal of a stream has become durable: nothing more comes of it.
    fn remove(&mut self, stream: StreamId);
}

/// A batch that has just become durable, and when it was received.
#[derive(Debug, Clone)]
pub struct LiveBatch {
    /// The batch.
    pub batch: StoredBatch,
    /// Monotonic time of its receipt.
    pub received: Duration,
}

/// What became of a request to the sequencer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is decided; the answer leaves when what it rests on is durable.
    Decided(Ordered),
    /// There is no room in the log at this moment. Nothing was done; ask again when there is.
    NoRoom,
}

/// How a batch was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordered {
    /// Appended.
    Appended,
    /// Stored before: nothing was appended.
    Duplicate,
    /// Refused.
    Refused,
}

/// Where the next segment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supply {
    /// Ready, or being prepared: whoever needs it waits.
    Coming,
    /// It could not be prepared: publishes that need it are refused until it can.
    Failed,
}

#[derive(Debug)]
struct InFlight {
    end: u64,
    change: Change,
    payload_position: u64,
    payload_len: usize,
    received: Duration,
}

enum Waiting {
    Answer { session: SessionKey, answer: Answer, received: Duration },
    Reply { to: ReplySender, result: ResponseResult },
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiting")
    }
}

/// The single writer of the log.
#[derive(Debug)]
pub struct Sequencer {
    ordered: State,
    durable: State,
    log: Appender,
    durable_position: u64,
    /// What a checkpoint of the durable fold is stamped with.
    durable_stamp: Option<Stamp>,
    in_flight: VecDeque<InFlight>,
    pending: PendingAnswers<Waiting>,
    limits: Limits,
    supply: Supply,
    is_poisoned: bool,
    last_time: ReplayTime,
    counters: Arc<Counters>,
    sabotages: Sabotages,
    no_facts: Facts,
}

/// What a sequencer starts from.
#[derive(Debug)]
pub struct SequencerStart {
    /// The fold of the recovered log.
    pub state: State,
    /// The log.
    pub log: Appender,
    /// All below is durable.
    pub durable_position: u64,
    /// The clocks of the log's newest entry.
    pub time: ReplayTime,
    /// The broker's limits.
    pub limits: Limits,
    /// Where to count.
    pub counters: Arc<Counters>,
    /// Nothing in a released binary.
    pub sabotages: Sabotages,
}

impl Sequencer {
    /// Goes on from a recovered log.
    #[must_use]
    pub fn new(start: SequencerStart) -> Self {
        let mut log = start.log;
        // Storage knows no removals: it has found the streams that are gone as well.
        log.index_mut().retain(|subject| start.state.catalogue.stream(StreamId::new(subject)).is_some());
        let mut ordered = start.state.clone();
        ordered.keep_no_journal();
        Self {
            ordered,
            durable: start.state,
            log,
            durable_position: start.durable_position,
            durable_stamp: None,
            in_flight: VecDeque::new(),
            pending: PendingAnswers::new(start.durable_position),
            limits: start.limits,
            supply: Supply::Coming,
            is_poisoned: false,
            last_time: start.time,
            counters: start.counters,
            sabotages: start.sabotages,
            no_facts: Facts::default(),
        }
    }

    /// What readers may see.
    #[must_use]
    pub const fn durable(&self) -> &State {
        &self.durable
    }

    /// What decides on the next batch: all that was appended, durable or not. Nobody outside may be told of it.
    #[must_use]
    pub const fn ordered(&self) -> &State {
        &self.ordered
    }

    /// All below is durable.
    #[must_use]
    pub const fn durable_position(&self) -> u64 {
        self.durable_position
    }

    /// The write buffer.
    #[must_use]
    pub const fn log(&self) -> &Appender {
        &self.log
    }

    /// The write buffer, to hand it spares and hand over footers.
    pub const fn log_mut(&mut self) -> &mut Appender {
        &mut self.log
    }

    /// Bytes that are appended and not yet durable: what the write buffer's limit is held against.
    #[must_use]
    pub fn undurable_bytes(&self) -> u64 {
        self.log.content_end().saturating_sub(self.durable_position)
    }

    /// Answers that wait.
    #[must_use]
    pub fn answers_waiting(&self) -> usize {
        self.pending.len()
    }

    /// Whether a write has failed: nothing is stored or acknowledged any more.
    #[must_use]
    pub const fn is_poisoned(&self) -> bool {
        self.is_poisoned
    }

    /// Says whether the next segment can be prepared.
    pub const fn set_supply(&mut self, supply: Supply) {
        self.supply = supply;
    }

    /// Judges a batch, and appends it if it is new.
    pub fn publish(
        &mut self,
        session: SessionKey,
        grant: &Grant,
        batch: &Bytes,
        now: Now,
        sink: &mut impl Sink,
    ) -> Step {
        if self.is_poisoned {
            let refusal = Refusal { code: ErrorCode::Poisoned, detail: 0 };
            self.counters.refuse(refusal.code);
            sink.answer(session, refused(refusal));
            return Step::Decided(Ordered::Refused);
        }
        let header = match self.check(batch) {
            Ok(header) => header,
            Err(error) => return self.refuse(session, Refusal { code: error.code(), detail: 0 }, now, sink),
        };
        #[cfg(feature = "sabotage")]
        let header = match self.sabotages.has(Sabotage::StreamByName) {
            true => BatchHeader { stream: self.ordered.successor(header.stream), ..header },
            false => header,
        };
        match self.ordered.admit(grant, &Admission { header: &header, batch }) {
            Verdict::Append { skip } => {
                let time = self.advance(now.time);
                let span = header.count - skip;
                let stream = self.ordered.catalogue.stream(header.stream).expect("admission found the stream");
                let base_offset = stream.tail;
                let entry = NewEntry {
                    kind: EntryKind::Records,
                    subject: header.stream.get(),
                    base_offset: base_offset.get(),
                    span,
                    skip,
                    owner: owner(grant.producer, grant.epoch),
                    facts: &self.no_facts,
                    payload: batch,
                    head_len: BATCH_HEADER_LEN as u16,
                };
                let appended = match self.log.append(&[entry], time) {
                    Ok(appended) => appended,
                    Err(AppendError::NoSegmentReady) if self.supply == Supply::Coming => return Step::NoRoom,
                    Err(AppendError::NoSegmentReady) => {
                        return self.refuse(session, Refusal { code: ErrorCode::DiskFull, detail: 0 }, now, sink);
                    }
                    Err(AppendError::TooLarge { bytes_max, .. }) => {
                        let refusal = Refusal { code: ErrorCode::BatchTooLarge, detail: bytes_max };
                        return self.refuse(session, refusal, now, sink);
                    }
                };
                let change = Change::BatchAppended(BatchAppended {
                    header,
                    producer: grant.producer,
                    epoch: grant.epoch,
                    base_offset,
                    span,
                    skip,
                    wall_ms: time.wall_ms,
                    stored_bytes: appended.end - appended.position,
                    decided_at: appended.position,
                });
                self.order(change, appended.end, appended.payload_position, batch.len(), now.monotonic);
                self.counters.records_published.add(u64::from(span));
                self.counters.bytes_published.add(batch.len() as u64);
                if skip > 0 {
                    self.counters.duplicate(DuplicateCause::Overlapping, u64::from(skip));
                }
                let answer = Answer { outcome: Outcome::Stored, base_offset: Some(base_offset), skip };
                self.pending.push(appended.end, Waiting::Answer { session, answer, received: now.monotonic });
                Step::Decided(Ordered::Appended)
            }
            Verdict::Duplicate { base_offset } => {
                let cause = base_offset.map_or(DuplicateCause::Replayed, |_| DuplicateCause::Resent);
                self.counters.duplicate(cause, u64::from(header.count));
                let answer = Answer { outcome: Outcome::Duplicate, base_offset, skip: 0 };
                self.settle(session, answer, now, sink);
                Step::Decided(Ordered::Duplicate)
            }
            Verdict::Refused(refusal) => self.refuse(session, refusal, now, sink),
        }
    }

    /// What stands in the log unchecked can cost others: recovery cuts an unproven tail at the first wrong checksum, and
    /// with it everything acknowledged behind it in the same group.
    fn check(&self, batch: &Bytes) -> Result<BatchHeader, BatchError> {
        match self.sabotages.has(Sabotage::TrustBatchChecksum) {
            true => BatchHeader::decode(batch),
            false => check_batch(batch, &self.limits),
        }
    }

    /// The next group for the writer; one at a time.
    pub fn take_group(&mut self) -> Option<Group> {
        if self.is_poisoned { None } else { self.log.take_group() }
    }

    /// A group is durable: applies it, lets the answers go that rest on it, and hands new batches to whoever waits.
    pub fn handle_committed(&mut self, end: u64, bytes: &GroupBytes, now: Duration, sink: &mut impl Sink) {
        if self.is_poisoned {
            return;
        }
        let records = self.apply_durable(end, bytes, sink);
        self.counters.group_commit_records.observe(records);
        self.durable_position = self.durable_position.max(end);
        self.durable_stamp = Some(bytes.stamp());
        self.counters.durable_position.set(self.durable_position);
        self.pending.handle_durable(end);
        self.flush_answers(now, sink);
    }

    /// Applies what stands below `end` to the durable fold; returns how many records that were.
    pub fn apply_durable(&mut self, end: u64, bytes: &GroupBytes, sink: &mut impl Sink) -> u64 {
        let mut records = 0;
        while let Some(entry) = self.in_flight.pop_front_if(|entry| entry.end <= end) {
            if let Err(error) = self.durable.apply(&entry.change) {
                // The ordered fold took the same change without complaint, so this is a bug, not damage.
                unreachable!("the durable fold refuses what the ordered one took: {error}");
            }
            let batch = match entry.change {
                Change::BatchAppended(batch) => batch,
                Change::StreamRemoved(removed) => {
                    self.log.index_mut().forget(removed.id.get());
                    sink.remove(removed.id);
                    continue;
                }
                // The last three a repair makes, on a log that no broker runs on.
                Change::StreamCreated(_)
                | Change::EpochRaised(_)
                | Change::OffsetsSkipped(_)
                | Change::HoleFound(_)
                | Change::DamageSettled(_) => continue,
            };
            records += u64::from(batch.span);
            if !sink.wants(batch.header.stream) {
                continue;
            }
            if let Some(payload) = bytes.slice(entry.payload_position, entry.payload_len) {
                let payload = unpinned(payload);
                let stored = StoredBatch {
                    base_offset: batch.base_offset.get(),
                    span: batch.span,
                    skip: batch.skip,
                    wall_ms: batch.wall_ms,
                    owner: owner(batch.producer, batch.epoch),
                    payload,
                };
                sink.deliver(batch.header.stream, LiveBatch { batch: stored, received: entry.received });
            }
        }
        records
    }

    /// A write or sync failed or hangs: nothing is acknowledged any more; what waited is unknown.
    pub fn poison(&mut self) {
        self.is_poisoned = true;
        self.counters.poison();
        self.pending.clear();
    }

    /// Hands out answers that need wait no longer.
    pub fn flush_answers(&mut self, now: Duration, sink: &mut impl Sink) {
        while let Some(waiting) = self.pending.pop_ready() {
            match waiting {
                Waiting::Answer { session, answer, received } => {
                    self.counters.publish_seconds.observe_duration(now.saturating_sub(received));
                    sink.answer(session, answer);
                }
                // Whoever asked may be gone.
                Waiting::Reply { to, result } => drop(to.send(result)),
            }
        }
    }

    fn order(&mut self, change: Change, end: u64, payload_position: u64, payload_len: usize, received: Duration) {
        if let Err(error) = self.ordered.apply(&change) {
            unreachable!("what was admitted does not apply: {error}");
        }
        self.in_flight.push_back(InFlight { end, change, payload_position, payload_len, received });
    }

    /// Wall clock and log time never fall in the log.
    fn advance(&mut self, time: ReplayTime) -> ReplayTime {
        self.last_time.wall_ms = self.last_time.wall_ms.max(time.wall_ms);
        self.last_time.log_ms = self.last_time.log_ms.max(time.log_ms);
        self.last_time
    }

    fn refuse(&mut self, session: SessionKey, refusal: Refusal, now: Now, sink: &mut impl Sink) -> Step {
        self.counters.refuse(refusal.code);
        if self.sabotages.has(Sabotage::SendRefusalsAtOnce) {
            sink.answer(session, refused(refusal));
        } else {
            self.settle(session, refused(refusal), now, sink);
        }
        Step::Decided(Ordered::Refused)
    }

    /// An answer that appends nothing, and rests on all that was appended before it.
    fn settle(&mut self, session: SessionKey, answer: Answer, now: Now, sink: &mut impl Sink) {
        self.pending.push(self.log.content_end(), Waiting::Answer { session, answer, received: now.monotonic });
        self.flush_answers(now.monotonic, sink);
    }
}

/// Payloads below this many bytes are copied for live delivery: a slice pins at most four times its length.
const LIVE_COPY_BYTES_MAX: usize = 256 * 1_024;

/// A slice pins the group buffer that it stands in: 1 MiB for each small batch of a consumer that does not read, unless
/// small ones are copied. Once for all consumers.
fn unpinned(payload: Bytes) -> Bytes {
    if payload.len() < LIVE_COPY_BYTES_MAX { Bytes::copy_from_slice(&payload) } else { payload }
}

fn refused(refusal: Refusal) -> Answer {
    let outcome = Outcome::Refused { code: refusal.code, detail: refusal.detail };
    Answer { outcome, base_offset: None, skip: 0 }
}

/// An error with the words of its code alone.
#[must_use]
pub fn error_of(code: ErrorCode) -> ResponseResult {
    ResponseResult::Error(WireError::new(code, code.name().replace('_', " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_large_beside_its_buffer_is_handed_on_uncopied() {
        let buffer = Bytes::from(vec![7; 1 << 20]);
        for (len, is_copied) in [(1, true), (LIVE_COPY_BYTES_MAX - 1, true), (LIVE_COPY_BYTES_MAX, false)] {
            let slice = unpinned(buffer.slice(..len));
            assert_eq!((slice.len(), slice.as_ptr() != buffer.as_ptr()), (len, is_copied));
        }
    }
}
