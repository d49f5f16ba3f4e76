//! What reading a log comes to: what a fold is given, and what is told of damage.

use std::ops::Range;

use crate::ReplayTime;
use crate::entry::EntryHead;
use crate::segment::LogId;

/// What a fold is given, in log order.
#[derive(Debug)]
pub enum Replayed<'a> {
    /// An entry.
    Entry {
        /// Its header, facts and payload head.
        head: &'a EntryHead<'a>,
        /// Whether its payload can be read.
        payload_ok: bool,
    },
    /// Positions whose entries are lost.
    Hole(Range<u64>),
}

/// What kind of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamageKind {
    /// One of the two headers of a segment; the other one served.
    SegmentHeaderCopy,
    /// Both headers of a segment; its place was worked out from its successor.
    SegmentHeader,
    /// A whole segment file.
    SegmentMissing,
    /// An entry's header, its copy or its padding; nothing is lost.
    EntryCopy,
    /// A payload: its records can't be read.
    Payload,
    /// Entries of which nothing can be read.
    Hole,
}

impl DamageKind {
    /// Whether anything that was stored can't be read because of it.
    #[must_use]
    pub const fn loses_data(self) -> bool {
        matches!(self, Self::SegmentMissing | Self::Payload | Self::Hole)
    }
}

/// One place where what is read is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What is broken.
    pub kind: DamageKind,
    /// The segment's number.
    pub segment: u64,
    /// The log positions concerned.
    pub positions: Range<u64>,
    /// The stream, producer or group, where it is known.
    pub subject: Option<u64>,
    /// The subject's offsets, where they are known.
    pub offsets: Option<Range<u64>>,
}

/// What became of the checkpoint at a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointFate {
    /// There was none.
    Absent,
    /// The start went on from it.
    Used {
        /// The position up to which it counts the log in.
        end: u64,
        /// Keys that it held.
        keys: usize,
    },
    /// Something about it did not fit; it was moved out of the way, and the log was read instead.
    SetAside {
        /// What did not fit.
        why: String,
        /// Its new name; `None` if it could not be moved.
        name: Option<String>,
    },
    /// It could not be read now; the log was read instead.
    Unavailable {
        /// Why not.
        why: String,
    },
}

/// What a start found and did.
#[derive(Debug, Clone)]
pub struct RecoveryReport {
    /// The log's identity.
    pub log_id: LogId,
    /// How many times it has been started, this time included.
    pub start_count: u64,
    /// Below this position all is proven to have been durable.
    pub proven: u64,
    /// Where the log ended; what this start writes comes behind it.
    pub end: u64,
    /// Unproven bytes that were written again before they were synced.
    pub rewritten_bytes: u64,
    /// What lies behind the end and is not provably stored. It may include records that were stored: there is no proof.
    /// It stays where it is.
    pub cut: Option<Range<u64>>,
    /// The same of earlier starts that died before they could write it down.
    pub older_cuts: Vec<Range<u64>>,
    /// All that is broken below the proven position.
    pub damages: Vec<Damage>,
    /// Files set aside, under their new names.
    pub set_aside: Vec<String>,
    /// Segments of the log, without the new one.
    pub segments: usize,
    /// Entries read.
    pub entries: u64,
    /// Bytes read of segments and footers, headers of segments aside.
    pub bytes_read: u64,
    /// What became of the checkpoint.
    pub checkpoint: CheckpointFate,
    /// The newest clocks in the log.
    pub last_time: ReplayTime,
}
