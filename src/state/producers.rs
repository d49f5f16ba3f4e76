//! The producers: who may write (epoch), and what each has written (sequences). Decides what a batch is: next,
//! duplicate, overlapping, a gap, reused, or fenced.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;

use bytes::Bytes;
use tidelog_protocol::{
    AttemptId, BatchHeader, BatchRecords, Epoch, ErrorCode, Offset, ProducerDescription, ProducerId, ProducerName,
    Sequence, StreamId,
};
use tidelog_storage::{Sabotage, Sabotages};

use crate::id_map::IdMap;

use super::change::{BatchAppended, EpochRaised, ReplayError};
use super::recent::{RecentBatch, RecentBatches};

/// A named producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerState {
    /// Its name.
    pub name: ProducerName,
    /// Who may write.
    pub epoch: Epoch,
    /// The open that raised the epoch; `None` if the entry that named it is lost and a batch alone shows the epoch.
    pub attempt: Option<AttemptId>,
    /// Position of the newest entry that shows the epoch: the one that raised it, or a batch.
    pub decided_at: u64,
}

/// What a producer has written to a stream; kept as long as there is the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceState {
    /// The last sequence stored.
    pub last: Sequence,
    /// The last record's offset.
    pub last_offset: Offset,
    /// The last record's checksum.
    pub last_record_crc: u32,
    /// Sequences may jump; never dense again from there on.
    pub is_sparse: bool,
    /// Position of the entry that holds it.
    pub decided_at: u64,
}

/// What a session was given: who it writes as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The producer, or [`ProducerId::ANONYMOUS`].
    pub producer: ProducerId,
    /// Its epoch when it attached.
    pub epoch: Epoch,
}

/// A checked batch to be judged.
#[derive(Debug, Clone, Copy)]
pub struct Admission<'a> {
    /// Its header.
    pub header: &'a BatchHeader,
    /// All of it.
    pub batch: &'a Bytes,
}

/// What a batch turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// New: append it, its first `skip` records are there already.
    Append {
        /// Leading records that are duplicates.
        skip: u32,
    },
    /// All of it is stored.
    Duplicate {
        /// The offset of its first record, where it is still known.
        base_offset: Option<Offset>,
    },
    /// Nothing of it was stored.
    Refused(Refusal),
}

/// Why a batch is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub code: ErrorCode,
    /// The expected or the last sequence, where the reason has one; otherwise 0.
    pub detail: u64,
}

impl Verdict {
    /// A refusal without detail.
    #[must_use]
    pub const fn refused(code: ErrorCode) -> Self {
        Self::Refused(Refusal { code, detail: 0 })
    }

    const fn refused_at(code: ErrorCode, detail: u64) -> Self {
        Self::Refused(Refusal { code, detail })
    }
}

/// What opening a producer comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenDecision {
    /// Raise the epoch to this one.
    Raise {
        /// The producer, if the name is known.
        id: Option<ProducerId>,
        /// The epoch to come.
        epoch: Epoch,
    },
    /// This very open has been done; its answer was lost.
    AlreadyOpen {
        /// The producer.
        id: ProducerId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// Somebody else has opened it since.
    Refused(Refusal),
}

/// All producers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProducerTable {
    producers: IdMap<ProducerId, ProducerState>,
    names: BTreeMap<ProducerName, ProducerId>,
    /// In the order of streams, so that those of a removed one are found without a look at all others.
    sequences: BTreeMap<(StreamId, ProducerId), SequenceState>,
    pub(super) recent: RecentBatches,
    sabotages: Sabotages,
}

impl ProducerTable {
    pub(super) fn new(sabotages: Sabotages) -> Self {
        Self { sabotages, ..Self::default() }
    }

    /// Whether a defect is switched on.
    #[cfg(feature = "sabotage")]
    pub(super) fn has(&self, sabotage: Sabotage) -> bool {
        self.sabotages.has(sabotage)
    }

    /// A producer by its identity.
    #[must_use]
    pub fn producer(&self, id: ProducerId) -> Option<&ProducerState> {
        self.producers.get(&id)
    }

    /// A producer's identity by its name.
    #[must_use]
    pub fn find(&self, name: &ProducerName) -> Option<ProducerId> {
        self.names.get(name).copied()
    }

    /// What a producer has written to a stream.
    #[must_use]
    pub fn sequence(&self, producer: ProducerId, stream: StreamId) -> Option<&SequenceState> {
        self.sequences.get(&(stream, producer))
    }

    /// How many named producers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.producers.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// What is told of a producer; an unknown name has id and epoch 0.
    #[must_use]
    pub fn describe(&self, name: &ProducerName) -> ProducerDescription {
        let found = self.find(name).and_then(|id| Some((id, self.producers.get(&id)?.epoch)));
        let (id, epoch) = found.unwrap_or((ProducerId::ANONYMOUS, Epoch::NONE));
        ProducerDescription { name: name.clone(), id, epoch }
    }

    pub(super) const fn sabotages(&self) -> Sabotages {
        self.sabotages
    }

    /// All identities, in no order.
    pub(super) fn ids(&self) -> impl Iterator<Item = ProducerId> {
        self.producers.keys().copied()
    }

    /// Who has written where.
    pub(super) fn sequence_keys(&self) -> impl Iterator<Item = (StreamId, ProducerId)> {
        self.sequences.keys().copied()
    }

    /// Who has written to a stream.
    pub(super) fn writers(&self, stream: StreamId) -> impl Iterator<Item = ProducerId> {
        let all = (stream, ProducerId::new(0))..=(stream, ProducerId::new(u64::MAX));
        self.sequences.range(all).map(|((_, producer), _)| *producer)
    }

    /// Puts a producer back as a checkpoint has it; the oldest of a name comes first.
    pub(super) fn restore(&mut self, id: ProducerId, producer: ProducerState) {
        self.names.entry(producer.name.clone()).or_insert(id);
        self.producers.insert(id, producer);
    }

    pub(super) fn restore_sequence(&mut self, producer: ProducerId, stream: StreamId, state: SequenceState) {
        self.sequences.insert((stream, producer), state);
    }

    /// Up to `limit` producers by name, behind `after`; and whether there are more.
    #[must_use]
    pub fn list(&self, after: Option<&ProducerName>, limit: usize) -> (Vec<ProducerDescription>, bool) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.names.range::<ProducerName, _>((from, Bound::Unbounded));
        let page = rest.by_ref().take(limit).map(|(name, _)| self.describe(name)).collect();
        (page, rest.next().is_some())
    }

    /// Decides an open: compare-and-set on the epoch that the client found, so that a retry neither fences itself nor a
    /// later session.
    #[must_use]
    pub fn open(&self, name: &ProducerName, found: Epoch, attempt: AttemptId, producers_max: u64) -> OpenDecision {
        let Some((id, state)) = self.find(name).and_then(|id| Some((id, self.producers.get(&id)?))) else {
            if found != Epoch::NONE {
                // The client found an epoch that is not there: the log went back, or it is another one.
                return OpenDecision::Refused(Refusal { code: ErrorCode::NotFound, detail: 0 });
            }
            if self.producers.len() as u64 >= producers_max {
                return OpenDecision::Refused(Refusal { code: ErrorCode::LimitReached, detail: producers_max });
            }
            return OpenDecision::Raise { id: None, epoch: Epoch::new(1) };
        };
        let raised = OpenDecision::Raise { id: Some(id), epoch: Epoch::new(state.epoch.get() + 1) };
        if self.sabotages.has(Sabotage::ReopenRaisesEpoch) {
            return raised;
        }
        if state.attempt == Some(attempt) {
            return OpenDecision::AlreadyOpen { id, epoch: state.epoch };
        }
        match found.cmp(&state.epoch) {
            Ordering::Equal => raised,
            Ordering::Less => OpenDecision::Refused(Refusal { code: ErrorCode::Fenced, detail: state.epoch.get() }),
            // Epochs never fall: the log went back, or it is another one.
            Ordering::Greater => OpenDecision::Refused(Refusal { code: ErrorCode::Damaged, detail: state.epoch.get() }),
        }
    }

    /// Whether a session may write as this producer now.
    ///
    /// # Errors
    /// The refusal.
    pub fn attach(&self, producer: ProducerId, epoch: Epoch, attempt: AttemptId) -> Result<Grant, Refusal> {
        if producer == ProducerId::ANONYMOUS {
            return Ok(Grant { producer, epoch: Epoch::NONE });
        }
        let Some(state) = self.producers.get(&producer) else {
            return Err(Refusal { code: ErrorCode::NotFound, detail: 0 });
        };
        if state.epoch < epoch {
            return Err(Refusal { code: ErrorCode::Damaged, detail: state.epoch.get() });
        }
        if state.epoch > epoch || state.attempt != Some(attempt) {
            return Err(Refusal { code: ErrorCode::Fenced, detail: state.epoch.get() });
        }
        Ok(Grant { producer, epoch })
    }

    pub(super) fn admit(&self, grant: &Grant, batch: &Admission<'_>) -> Verdict {
        let Some(producer) = self.producers.get(&grant.producer) else {
            return Verdict::refused(ErrorCode::NotFound);
        };
        let checks_epoch = !self.sabotages.has(Sabotage::FenceOnlyAtConnect);
        if checks_epoch && producer.epoch > grant.epoch {
            return Verdict::refused_at(ErrorCode::Fenced, producer.epoch.get());
        }
        if producer.epoch < grant.epoch {
            return Verdict::refused_at(ErrorCode::Damaged, producer.epoch.get());
        }
        let state = self.sequences.get(&(batch.header.stream, grant.producer));
        match batch.header.is_sparse() {
            true => self.admit_sparse(grant.producer, batch.header, state),
            false => self.admit_dense(grant.producer, batch, state),
        }
    }

    fn admit_dense(&self, producer: ProducerId, batch: &Admission<'_>, state: Option<&SequenceState>) -> Verdict {
        let header = batch.header;
        let last = state.map_or(0, |state| state.last.get());
        if state.is_some_and(|state| state.is_sparse) {
            return Verdict::refused_at(ErrorCode::SequenceMode, last);
        }
        let (first, batch_last) = (header.first.get(), header.last.get());
        let takes_any_first = self.sabotages.has(Sabotage::AcceptAnyFirstSequence) && state.is_none();
        if first == last + 1 || takes_any_first {
            return Verdict::Append { skip: 0 };
        }
        if first > last + 1 {
            return Verdict::refused_at(ErrorCode::SequenceGap, last + 1);
        }
        if batch_last > last {
            let skip = (last + 1 - first) as u32;
            let is_other = state.is_some_and(|state| record_crc(batch.batch, skip - 1) != Some(state.last_record_crc));
            return match is_other && !self.sabotages.has(Sabotage::AnyOldIsDuplicate) {
                true => Verdict::refused_at(ErrorCode::SequenceReused, last),
                false => Verdict::Append { skip },
            };
        }
        // Whatever ended with the same sequence must have had the same last record, however it was cut.
        let stored = self.recent.holding_end(producer, header);
        let is_reused = stored.is_some_and(|stored| stored.header.last == header.last && differs(stored, header))
            || state.is_some_and(|state| state.last == header.last && state.last_record_crc != header.last_record_crc);
        if is_reused && !self.sabotages.has(Sabotage::AnyOldIsDuplicate) {
            return Verdict::refused_at(ErrorCode::SequenceReused, last);
        }
        Verdict::Duplicate { base_offset: stored.and_then(|stored| stored.offset_of(header)) }
    }

    fn admit_sparse(&self, producer: ProducerId, header: &BatchHeader, state: Option<&SequenceState>) -> Verdict {
        let last = state.map_or(Sequence::NONE, |state| state.last);
        if header.previous == last {
            return Verdict::Append { skip: 0 };
        }
        if header.previous > last {
            return Verdict::refused_at(ErrorCode::SequenceGap, last.get());
        }
        if let Some(stored) = self.recent.ending_alike(producer, header) {
            if stored.header == *header {
                return Verdict::Duplicate { base_offset: Some(stored.base_offset) };
            }
            let is_same_batch = stored.header.first == header.first && stored.header.previous == header.previous;
            if is_comparable(&stored.header, header) && is_same_batch {
                return Verdict::refused_at(ErrorCode::SequenceReused, last.get());
            }
        }
        if header.last > last {
            return Verdict::refused_at(ErrorCode::SequenceOverlap, last.get());
        }
        // At or before the last one, and not known to be stored: ids may commit out of order, so a success would lie.
        match self.sabotages.has(Sabotage::AnyOldIsDuplicate) {
            true => Verdict::Duplicate { base_offset: None },
            false => Verdict::refused_at(ErrorCode::SequencePast, last.get()),
        }
    }

    /// All named producers, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ProducerId, &ProducerState)> {
        self.producers.iter().map(|(id, producer)| (*id, producer))
    }

    pub(super) fn apply_epoch(&mut self, raised: &EpochRaised) -> Result<(), ReplayError> {
        let position = raised.decided_at;
        let known = self.producers.get(&raised.id).map(|state| state.epoch);
        if known.is_some_and(|epoch| epoch >= raised.epoch) {
            let what = format!("lowers the epoch of producer '{}' to {}", raised.name, raised.epoch);
            return Err(ReplayError { position, what });
        }
        self.producers.insert(
            raised.id,
            ProducerState {
                name: raised.name.clone(),
                epoch: raised.epoch,
                attempt: Some(raised.attempt),
                decided_at: raised.decided_at,
            },
        );
        let named = *self.names.entry(raised.name.clone()).or_insert(raised.id);
        if named != raised.id {
            // The name stays with the first, whose sequences it has stood for.
            let what = format!("makes producer '{}', which producer {named} is called already", raised.name);
            return Err(ReplayError { position, what });
        }
        Ok(())
    }

    /// Counts a batch in; also where its producer's last one in the stream was decided, if it has one there.
    pub(super) fn apply_batch(&mut self, batch: &BatchAppended) -> (Option<u64>, Result<(), ReplayError>) {
        if batch.producer == ProducerId::ANONYMOUS {
            return (None, Ok(()));
        }
        let epoch = self.apply_epoch_of(batch);
        let header = &batch.header;
        let last_offset = Offset::new(batch.next_offset().get().saturating_sub(1));
        let new = SequenceState {
            last: header.last,
            last_offset,
            last_record_crc: header.last_record_crc,
            is_sparse: header.is_sparse(),
            decided_at: batch.decided_at,
        };
        let known = match self.sequences.entry((header.stream, batch.producer)) {
            Entry::Vacant(vacant) => {
                vacant.insert(new);
                self.recent.push(batch);
                return (None, epoch);
            }
            Entry::Occupied(occupied) => occupied.into_mut(),
        };
        let (before, decided_before) = (known.last, Some(known.decided_at));
        if new.last > before {
            *known = SequenceState { is_sparse: new.is_sparse || known.is_sparse, ..new };
            self.recent.push(batch);
        }
        if before != batch.sequence_before() {
            let what = format!(
                "holds records of producer {} in stream {} behind sequence {}, where {before} was the last",
                batch.producer,
                header.stream,
                batch.sequence_before()
            );
            return (decided_before, Err(ReplayError { position: batch.decided_at, what }));
        }
        (decided_before, epoch)
    }

    /// A batch was stored under the epoch of that moment, so it shows the epoch as well as the entry that raised it.
    fn apply_epoch_of(&mut self, batch: &BatchAppended) -> Result<(), ReplayError> {
        let Some(state) = self.producers.get_mut(&batch.producer) else { return Ok(()) };
        match batch.epoch.cmp(&state.epoch) {
            Ordering::Equal => state.decided_at = state.decided_at.max(batch.decided_at),
            Ordering::Greater => {
                state.epoch = batch.epoch;
                state.attempt = None;
                state.decided_at = batch.decided_at;
            }
            Ordering::Less if self.sabotages.has(Sabotage::FenceOnlyAtConnect) => {}
            Ordering::Less => {
                let what = format!(
                    "holds records of producer '{}' under epoch {}, which epoch {} had fenced",
                    state.name, batch.epoch, state.epoch
                );
                return Err(ReplayError { position: batch.decided_at, what });
            }
        }
        Ok(())
    }

    /// The stream was removed.
    pub(super) fn forget_stream(&mut self, stream: StreamId) {
        let all = (stream, ProducerId::new(0))..=(stream, ProducerId::new(u64::MAX));
        let its: Vec<_> = self.sequences.range(all).map(|(key, _)| *key).collect();
        for key in &its {
            self.sequences.remove(key);
        }
        if !its.is_empty() {
            self.recent.forget_stream(stream);
        }
    }

    /// How many recent batches are known.
    #[cfg(test)]
    pub(super) fn recent_len(&self) -> usize {
        self.recent.len()
    }

    /// As if so many batches had been stored since that none of those known now is recent.
    #[cfg(test)]
    pub(super) fn forget_recent(&mut self) {
        self.recent = RecentBatches::default();
    }

    /// Forgets what producers have written: [`Sabotage::ForgetProducers`], and nothing else.
    pub fn forget_sequences(&mut self) {
        self.sequences.clear();
        self.recent = RecentBatches::default();
    }
}

/// Whether a batch with the same last sequence as a stored one can't hold the same records.
fn differs(stored: &RecentBatch, header: &BatchHeader) -> bool {
    // Records that were skipped are not those that are stored: nothing follows from the content of such a batch.
    let is_same_batch =
        stored.skip == 0 && stored.header.first == header.first && is_comparable(&stored.header, header);
    stored.header.last_record_crc != header.last_record_crc || (is_same_batch && stored.header != *header)
}

/// Content is compared only between batches that were encoded alike.
fn is_comparable(one: &BatchHeader, other: &BatchHeader) -> bool {
    one.version == other.version && one.codec == other.codec && one.flags == other.flags
}

/// The checksum of record number `index` of a checked batch.
fn record_crc(batch: &Bytes, index: u32) -> Option<u32> {
    let record = BatchRecords::new(batch).ok()?.nth(index as usize)?;
    record.ok().map(|(_, record)| record.crc())
}
