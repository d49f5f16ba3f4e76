//! The broker's state: the fold of the log. Pure: changes in, answers out; no sockets, no files, no clock.
//!
//! There are two of it. The ordered one counts everything that has been appended and decides what is admitted; the
//! durable one counts what fdatasync has covered and is what readers and answers see. After a failed write the ordered
//! one goes with the process.

mod catalogue;
mod change;
mod holes;
mod producers;
mod recent;
mod snapshot;

pub use catalogue::{Catalogue, CreateRefusal, StreamState};
pub use change::{
    BatchAppended, Change, DamageSettled, EpochRaised, HoleFound, OffsetsSkipped, OwnedFact, ReplayError,
    StreamCreated, StreamRemoved, changes, owner, owner_producer,
};
pub use producers::{Admission, Grant, OpenDecision, ProducerState, ProducerTable, Refusal, SequenceState, Verdict};

pub use snapshot::{ChangedKeys, KeyValue};

use std::ops::Range;

use tidelog_protocol::{ErrorCode, ProducerId, StreamId};
use tidelog_storage::{Damage, DamageKind, Sabotages};

use change::damage_number;
use holes::{Holes, Settled};
use recent::RecentBatches;
use snapshot::Journal;

/// One fold of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The streams.
    pub catalogue: Catalogue,
    /// The producers, and what each has written.
    pub producers: ProducerTable,
    holes: Holes,
    /// What removed streams were called: for [`Sabotage::StreamByName`](tidelog_storage::Sabotage::StreamByName) alone.
    #[cfg(feature = "sabotage")]
    former: std::collections::HashMap<StreamId, tidelog_protocol::StreamName>,
    /// What has changed since the last checkpoint.
    journal: Journal,
}

impl State {
    /// An empty state; `sabotages` is nothing in a released binary.
    #[must_use]
    pub fn new(sabotages: Sabotages) -> Self {
        Self {
            producers: ProducerTable::new(sabotages),
            journal: Journal::kept(&RecentBatches::default()),
            ..Self::default()
        }
    }

    /// Counts a change in. Changes come in log order.
    ///
    /// # Errors
    /// What in it contradicts what came before: damage, to be told. The change is counted as far as it makes sense, and
    /// nothing ever goes back.
    pub fn apply(&mut self, change: &Change) -> Result<(), ReplayError> {
        self.journal.note(change);
        match change {
            Change::StreamCreated(created) => {
                self.give_up_name(created);
                self.catalogue.apply_created(created)
            }
            Change::StreamRemoved(removed) => self.remove(removed),
            Change::EpochRaised(raised) => self.producers.apply_epoch(raised),
            Change::BatchAppended(batch) => {
                // Both count it, whatever the other finds wrong with it.
                let (decided_before, producers) = self.producers.apply_batch(batch);
                self.journal.note_batch(batch, decided_before);
                self.catalogue.apply_batch(batch).and(producers)
            }
            Change::OffsetsSkipped(skipped) => self.catalogue.apply_skip(skipped),
            Change::HoleFound(hole) => {
                self.holes.push(hole.positions.clone());
                if hole.positions.end == hole.decided_at {
                    self.holes.mark_open_ended(hole.decided_at);
                }
                Ok(())
            }
            Change::DamageSettled(settled) => {
                if settled.kind == DamageKind::Hole {
                    self.holes.lift(&settled.positions);
                }
                let what = damage_number(settled.kind);
                self.holes.settle(Settled { what, positions: settled.positions.clone() });
                Ok(())
            }
        }
    }

    /// A name is given only when it is free. So if it is given and there is a stream of that name, that one was removed
    /// in between, and the removal stood in a hole: it must not come back for want of it.
    fn give_up_name(&mut self, created: &StreamCreated) {
        if let Some(before) = self.catalogue.find(&created.name)
            && before != created.id
            && self.stream_is_doubtful(before)
        {
            let removed = StreamRemoved { id: before, decided_at: created.id.get() };
            self.remove(&removed).expect("a stream that has a name is there");
        }
    }

    /// What producers have written to a removed stream is forgotten with it: nobody can write there again.
    fn remove(&mut self, removed: &StreamRemoved) -> Result<(), ReplayError> {
        #[cfg(feature = "sabotage")]
        if self.producers.has(tidelog_storage::Sabotage::StreamByName)
            && let Some(stream) = self.catalogue.stream(removed.id)
        {
            self.former.insert(removed.id, stream.name.clone());
        }
        self.journal.note_removed(removed.id, self.producers.writers(removed.id));
        self.producers.forget_stream(removed.id);
        self.catalogue.apply_removed(removed)
    }

    /// The stream that has the name of `id` now, if that one was removed under
    /// [`Sabotage::StreamByName`](tidelog_storage::Sabotage::StreamByName).
    #[cfg(feature = "sabotage")]
    pub(crate) fn successor(&self, id: StreamId) -> StreamId {
        self.former.get(&id).and_then(|name| self.catalogue.find(name)).unwrap_or(id)
    }

    /// Counts in a range of the log of which nothing can be read.
    pub fn apply_hole(&mut self, hole: Range<u64>) {
        self.holes.push(hole);
        self.journal.note_holes();
    }

    /// Counts in that the log goes on at `end`: of a hole that reaches up to there nothing says how much was lost. The
    /// start that goes on there says so in the log, for every later fold.
    pub fn apply_end(&mut self, end: u64) {
        if self.holes.mark_open_ended(end) {
            self.journal.note_holes();
        }
    }

    /// The ranges that leave streams, producers and absent names in doubt.
    #[must_use]
    pub fn unrepaired_holes(&self) -> &[Range<u64>] {
        &self.holes.unrepaired
    }

    /// Whether anything was ever lost of which nothing can be read, repaired or not.
    #[must_use]
    pub const fn has_known_holes(&self) -> bool {
        !self.holes.known.is_empty()
    }

    /// Whether a repair has settled this damage: it is known, and nothing is in doubt because of it.
    #[must_use]
    pub fn is_settled(&self, damage: &Damage) -> bool {
        let hole = damage_number(DamageKind::Hole);
        self.holes.is_settled(damage_number(damage.kind), &damage.positions, hole)
    }

    /// The most bytes of entries that may have been lost behind the entry at `decided_at`: in all holes behind it,
    /// repaired ones included, since what a repair decided may have been lost in a later one.
    #[must_use]
    pub fn lost_bytes_since(&self, decided_at: u64) -> u64 {
        self.holes.lost_bytes_since(decided_at)
    }

    /// The streams whose end may lie in a hole, by identity.
    #[must_use]
    pub fn streams_in_doubt(&self) -> Vec<StreamId> {
        let doubtful = self.catalogue.iter().filter(|(id, stream)| self.holes.may_hide(stream.decided_at, id.get()));
        let mut ids: Vec<_> = doubtful.map(|(id, _)| id).collect();
        ids.sort_unstable();
        ids
    }

    /// The producers of which a newer epoch may lie in a hole, by identity.
    #[must_use]
    pub fn producers_in_doubt(&self) -> Vec<ProducerId> {
        let doubtful = self.producers.iter().filter(|(id, state)| self.holes.may_hide(state.decided_at, id.get()));
        let mut ids: Vec<_> = doubtful.map(|(id, _)| id).collect();
        ids.sort_unstable();
        ids
    }

    /// Judges a batch against what is ordered so far. Nothing is changed: the caller appends and applies.
    #[must_use]
    pub fn admit(&self, grant: &Grant, batch: &Admission<'_>) -> Verdict {
        let id = batch.header.stream;
        if self.stream_is_doubtful(id) {
            return Verdict::refused(ErrorCode::Damaged);
        }
        if self.catalogue.stream(id).is_none() {
            return Verdict::refused(ErrorCode::StreamGone);
        }
        if (grant.producer == ProducerId::ANONYMOUS) != batch.header.is_anonymous() {
            return Verdict::refused(ErrorCode::Malformed);
        }
        if grant.producer == ProducerId::ANONYMOUS {
            return Verdict::Append { skip: 0 };
        }
        let is_doubtful = !self.holes.is_empty()
            && (self.producer_is_doubtful(grant.producer) || self.sequence_is_doubtful(grant.producer, id));
        if is_doubtful {
            return Verdict::refused(ErrorCode::Damaged);
        }
        self.producers.admit(grant, batch)
    }

    /// Whether what a name stands for may have been changed by entries that are lost: it is unknown, and may have been
    /// given in a hole.
    #[must_use]
    pub fn absent_name_is_doubtful(&self) -> bool {
        self.holes.may_hide(0, 0)
    }

    /// Whether a newer epoch of a producer may be lost, or all of it.
    #[must_use]
    pub fn producer_is_doubtful(&self, producer: ProducerId) -> bool {
        let decided_at = self.producers.producer(producer).map_or(0, |state| state.decided_at);
        self.holes.may_hide(decided_at, producer.get())
    }

    /// Whether newer records of a producer in a stream may be lost.
    #[must_use]
    pub fn sequence_is_doubtful(&self, producer: ProducerId, stream: StreamId) -> bool {
        let decided_at = self.producers.sequence(producer, stream).map_or(0, |state| state.decided_at);
        self.holes.may_hide(decided_at, producer.get().max(stream.get()))
    }

    /// Whether a stream's end may lie in a hole of the log, or all of it.
    #[must_use]
    pub fn stream_is_doubtful(&self, stream: StreamId) -> bool {
        let decided_at = self.catalogue.stream(stream).map_or(0, |state| state.decided_at);
        self.holes.may_hide(decided_at, stream.get())
    }
}

#[cfg(test)]
mod tests;
