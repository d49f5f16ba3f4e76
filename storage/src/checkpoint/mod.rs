//! The checkpoint: what the fold of the log came to at one position, so that a start need not read what lies below it.
//!
//! It is a cache of the log and never more: made from what is durable, stamped with the place it was made at, counted and
//! digested as a whole, and thrown out as a whole if anything about it does not fit. Storage does not know what its keys
//! and values mean.

mod contents;
mod digest;
mod disk;
mod guard;
mod manifest;
mod memory;
mod place;

use std::collections::BTreeMap;
use std::fmt;
use std::io;

pub use disk::{BeforeOpen, DiskCheckpoints};
pub use memory::MemoryCheckpoints;
pub(crate) use place::{Place, place};

use crate::ReplayTime;
use crate::entry::EntryHeader;
use crate::segment::{LogId, Salt};

/// Keys and values of a checkpoint. What they mean only the fold knows.
pub type CheckpointPairs = BTreeMap<Vec<u8>, Vec<u8>>;

/// One entry of the log, named so that no other entry can be taken for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EntryMark {
    /// Number of its segment; the salt decides.
    pub(crate) segment: u64,
    pub(crate) salt: Salt,
    pub(crate) position: u64,
    pub(crate) end: u64,
    pub(crate) header_crc: u32,
}

impl EntryMark {
    pub(crate) fn new(segment: u64, salt: Salt, header: &EntryHeader, header_crc: u32) -> Self {
        Self { segment, salt, position: header.position, end: header.end(), header_crc }
    }

    /// The position behind the entry.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }
}

impl fmt::Debug for EntryMark {
    /// Without salt and checksum: neither leaves the broker.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntryMark").field("segment", &self.segment).field("end", &self.end).finish_non_exhaustive()
    }
}

/// What a checkpoint was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The log.
    pub log_id: LogId,
    /// The last entry that is counted in; it was durable.
    pub mark: EntryMark,
    /// How many times the log had been started.
    pub start_count: u64,
    /// The newest clocks of the log up to there.
    pub time: ReplayTime,
}

/// A checkpoint as it was loaded: whole, by its own count and digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// What it was made from.
    pub stamp: Stamp,
    /// What it holds.
    pub pairs: CheckpointPairs,
}

/// What is to be saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointSave {
    /// What the new checkpoint is made from.
    pub stamp: Stamp,
    /// The checkpoint that `changes` are to be made to; `None` if they are all there is.
    pub builds_on: Option<EntryMark>,
    /// New values, `None` for keys that are no more.
    pub changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// Why a checkpoint was not saved; the one before is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError {
    /// What the changes are to be made to is not there, or is not what it was: all of it must be saved.
    #[error("the checkpoint to go on from is not there: {0}")]
    NothingToBuildOn(String),
    /// It failed; a later one may work.
    #[error("{0}")]
    Failed(String),
}

/// Why there is no checkpoint to start from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There is one, and something about it does not fit: it is to be set aside.
    #[error("{0}")]
    Odd(String),
    /// It can't be read now, through no fault of its own.
    #[error("{0}")]
    Unavailable(String),
}

/// Where checkpoints are kept. Its methods may wait for a disk, but come back by themselves, whatever that disk does.
pub trait CheckpointStore: Send + fmt::Debug {
    /// All of the newest checkpoint, whole by its own count and digest; `None` if there is none.
    ///
    /// # Errors
    /// [`LoadError`]; nothing was changed.
    fn load(&mut self) -> Result<Option<Checkpoint>, LoadError>;

    /// Replaces the newest checkpoint. Once it returns ok the new one is durable.
    ///
    /// # Errors
    /// [`SaveError`]; the one before is as it was.
    fn save(&mut self, save: CheckpointSave) -> Result<(), SaveError>;

    /// Moves what is there out of the way, under a name with `label` in it, and never deletes it. Returns the name, `None`
    /// if there was nothing.
    ///
    /// # Errors
    /// It could not be moved.
    fn set_aside(&mut self, label: &str) -> io::Result<Option<String>>;
}

#[cfg(test)]
mod tests {
    use super::contents::{Contents, Head};
    use super::*;
    use crate::entry::EntryKind;

    pub(super) fn stamp(end: u64) -> Stamp {
        let mark = EntryMark { segment: 3, salt: Salt::new(77), position: end - 208, end, header_crc: 0xDEAD_BEEF };
        Stamp { log_id: LogId([7; 16]), mark, start_count: 4, time: ReplayTime { wall_ms: -5, log_ms: 6 } }
    }

    fn pairs(count: u8) -> CheckpointPairs {
        (0..count).map(|key| (vec![key], vec![key; usize::from(key)])).collect()
    }

    #[test]
    fn a_head_reads_back_and_no_flipped_bit_of_it_goes_unseen() {
        let head = Head::of(&stamp(4_096), &pairs(5));
        let bytes = head.encode();
        assert_eq!(Head::decode(&bytes), Some(head));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Head::decode(&bad), None, "bit {bit}");
        }
    }

    #[test]
    fn a_pair_that_is_lost_changed_or_too_many_is_noticed_by_the_whole() {
        let head = Head::of(&stamp(4_096), &pairs(5));
        let check = |pairs: CheckpointPairs| Contents { head, pairs }.check();
        assert!(check(pairs(5)).is_ok());
        assert!(check(pairs(4)).is_err());
        assert!(check(pairs(6)).is_err());
        for key in 0..5 {
            let mut changed = pairs(5);
            changed.entry(vec![key]).and_modify(|value| value.push(0));
            assert!(check(changed).is_err());
            let mut swapped = pairs(5);
            let value = swapped.remove(&vec![key]).unwrap();
            swapped.insert(vec![key, 0], value);
            assert!(check(swapped).is_err());
        }
    }

    #[test]
    fn changes_come_to_the_head_of_what_they_lead_to() {
        let mut head = Head::of(&stamp(4_096), &pairs(5));
        let mut after = pairs(5);
        head.count_out(&[1], &pairs(5)[[1].as_slice()]);
        after.remove([1].as_slice());
        head.count_out(&[2], &pairs(5)[[2].as_slice()]);
        head.count_in(&[2], b"new");
        after.insert(vec![2], b"new".to_vec());
        head.count_in(&[9], b"more");
        after.insert(vec![9], b"more".to_vec());
        assert_eq!(head, Head::of(&stamp(4_096), &after));
    }

    #[test]
    fn a_mark_does_not_print_its_secrets() {
        let text = format!("{:?}", stamp(4_096));
        assert!(!text.contains("77") && !text.contains("3735928559"), "{text}");
        assert_eq!(EntryKind::Watermark as u8, 7);
    }
}
