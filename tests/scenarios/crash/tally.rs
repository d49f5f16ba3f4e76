//! What a run of the crash model went through: a model that meets nothing shows nothing.

use tidelog_protocol::{Answer, ErrorCode, Outcome};
use tidelog_storage::CheckpointFate;

/// What a run went through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Starts after a death.
    pub(crate) states: u64,
    /// Of them, those that found less than had been ordered.
    pub(crate) undone: u64,
    pub(crate) stored: u64,
    pub(crate) overlaps: u64,
    pub(crate) duplicates: u64,
    pub(crate) fenced: u64,
    pub(crate) gaps: u64,
    pub(crate) reused: u64,
    pub(crate) malformed: u64,
    pub(crate) gone: u64,
    pub(crate) removed: u64,
    pub(crate) opened: u64,
    pub(crate) reopened: u64,
    pub(crate) poisoned: u64,
    pub(crate) delivered: u64,
    pub(crate) segments: u64,
    /// Starts that went on from a checkpoint.
    pub(crate) from_checkpoint: u64,
    /// Starts that set one aside.
    pub(crate) set_aside: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.states += other.states;
        self.undone += other.undone;
        self.stored += other.stored;
        self.overlaps += other.overlaps;
        self.duplicates += other.duplicates;
        self.fenced += other.fenced;
        self.gaps += other.gaps;
        self.reused += other.reused;
        self.malformed += other.malformed;
        self.gone += other.gone;
        self.removed += other.removed;
        self.opened += other.opened;
        self.reopened += other.reopened;
        self.poisoned += other.poisoned;
        self.delivered += other.delivered;
        self.segments += other.segments;
        self.from_checkpoint += other.from_checkpoint;
        self.set_aside += other.set_aside;
    }

    pub(super) fn count_fate(&mut self, fate: &CheckpointFate) {
        match fate {
            CheckpointFate::Used { .. } => self.from_checkpoint += 1,
            CheckpointFate::SetAside { .. } => self.set_aside += 1,
            CheckpointFate::Absent | CheckpointFate::Unavailable { .. } => {}
        }
    }

    pub(super) fn count(&mut self, answer: &Answer) {
        match answer.outcome {
            Outcome::Stored if answer.skip > 0 => self.overlaps += 1,
            Outcome::Stored => self.stored += 1,
            Outcome::Duplicate => self.duplicates += 1,
            Outcome::Refused { code: ErrorCode::Fenced, .. } => self.fenced += 1,
            Outcome::Refused { code: ErrorCode::SequenceGap, .. } => self.gaps += 1,
            Outcome::Refused { code: ErrorCode::SequenceReused, .. } => self.reused += 1,
            Outcome::Refused { code: ErrorCode::Malformed, .. } => self.malformed += 1,
            Outcome::Refused { code: ErrorCode::StreamGone, .. } => self.gone += 1,
            Outcome::Refused { .. } => {}
        }
    }
}
