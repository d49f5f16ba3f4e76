//! What a checkpoint is made of: the durable fold, at the durable position. Never the ordered one: what that has counted in
//! a crash may undo, and then a checkpoint would tell of what the log does not hold.

use tidelog_storage::{Sabotage, Stamp};

use super::Sequencer;
use crate::state::{ChangedKeys, KeyValue};

/// What is to be saved, and what to take back if that fails.
#[derive(Debug)]
pub struct Snapshot {
    /// The place in the log that it is made at.
    pub stamp: Stamp,
    /// Keys and values.
    pub values: Vec<KeyValue>,
    /// The keys; for [`Sequencer::checkpoint_failed`].
    pub keys: ChangedKeys,
}

impl Sequencer {
    /// The durable fold is that of a log which was just recovered: all up to its start entry, which this stamps.
    pub const fn set_durable_stamp(&mut self, stamp: Stamp) {
        self.durable_stamp = Some(stamp);
    }

    /// What has changed in the durable fold since the last snapshot, or all of it. `None` without a stamp, or if the
    /// log is poisoned.
    pub fn snapshot(&mut self, all: bool) -> Option<Snapshot> {
        let stamp = self.durable_stamp.filter(|_| !self.is_poisoned)?;
        let keys = self.durable.take_changed();
        let values = if self.sabotages.has(Sabotage::CheckpointFromOrderedFold) {
            self.ordered.all_values()
        } else if all {
            self.durable.all_values()
        } else {
            self.durable.values_of(&keys)
        };
        Some(Snapshot { stamp, values, keys })
    }

    /// The checkpoint of these keys was not saved: the next one has them again.
    pub fn checkpoint_failed(&mut self, keys: ChangedKeys) {
        self.durable.give_back(keys);
    }

    /// The place in the log that the next snapshot is made at.
    #[must_use]
    pub const fn durable_stamp(&self) -> Option<Stamp> {
        self.durable_stamp
    }
}
