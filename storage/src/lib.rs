//! The one log of tidelog: an append-only, segmented log with group commit, recovery that proves what it keeps, and
//! the media it stands on.
//!
//! This crate knows no network, no producers' rules and no wire protocol: payloads, owners and the keys of facts are
//! opaque to it. It is synchronous; whoever embeds it brings the threads. The bytes on disk are described in
//! `FORMAT.md` beside this crate.
//!
//! How the parts work together:
//!
//! - [`open`] locks the folder, recovers what is there and returns the parts of a running log ([`OpenedLog`]);
//!   [`open_from`] does so from a checkpoint ([`CheckpointStore`]), and reads only what lies behind that.
//! - The [`Appender`] encodes entries into the open group. It touches no file.
//! - The [`Writer`] commits one closed [`Group`] at a time: write, fdatasync, then the watermark that proves it.
//! - [`Housekeeping`] prepares the next segment file ahead, writes footers and trims sealed segments.
//! - The [`Index`] says where a stream's offsets stand; a [`ColdReader`] reads them back.
#![forbid(unsafe_code)]

mod appender;
mod checkpoint;
mod entropy;
mod entry;
mod error;
mod fact;
mod folder;
mod footer;
mod group;
mod housekeeping;
mod index;
mod measure;
pub mod medium;
mod options;
mod plan;
mod reader;
mod recovery;
mod repair;
mod report;
mod sabotage;
mod scan;
mod segment;
mod segment_files;
mod survey;
mod verify;
mod walk;
mod writer;

pub use appender::{AppendError, Appended, Appender, NewEntry, Room};
pub use checkpoint::{
    BeforeOpen, Checkpoint, CheckpointPairs, CheckpointSave, CheckpointStore, DiskCheckpoints, EntryMark, LoadError,
    MemoryCheckpoints, SaveError, Stamp,
};
pub use entropy::Entropy;
pub use entry::{ENTRY_HEADER_LEN, EntryHead, EntryHeader, EntryKind, PAYLOAD_BYTES_MAX, entry_len};
pub use error::OpenError;
pub use fact::{FACTS_BYTES_MAX, Fact, FactKind, Facts, FactsTooLong};
pub use group::{Group, GroupBytes};
pub use housekeeping::{FillPace, Housekeeping, Job, JobOutcome, Spare};
pub use index::{Index, SegmentIndex};
pub use measure::measure_syncs;
pub use options::{LogOptions, ReplayTime};
pub use plan::ReadPlan;
pub use reader::{ColdReader, ReadOutcome, StoredBatch};
pub use recovery::{Fold, OpenedLog, open, open_from};
pub use repair::{
    AsideFile, AsideReason, FactAppender, Misplaced, RepairSurvey, RepairWriteError, misplaced_segments, put_back,
    set_aside, survey_for_repair,
};
pub use report::{CheckpointFate, Damage, DamageKind, RecoveryReport, Replayed};
pub use sabotage::{Sabotage, Sabotages};
pub use segment::{LogId, Predecessor, Salt, SegmentHeader};
pub use segment_files::ReadError;
pub use verify::{VerifyError, VerifyReport, verify};
pub use writer::{Committed, Poisoned, Sealed, Writer};
