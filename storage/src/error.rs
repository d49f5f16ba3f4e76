//! Why a log could not be opened.

use std::io;

use crate::medium::LockError;

/// Why a log could not be opened. Unless it says otherwise, nothing in the folder was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Somebody else has the folder.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// Written by another version.
    #[error(
        "{file} has format {format} (flags {incompatible:#x}), which this version does not know; nothing was touched. Use the version of tidelog that wrote it, or a newer one"
    )]
    UnknownFormat {
        /// The file.
        file: String,
        /// Its format number.
        format: u16,
        /// Its incompatible flags.
        incompatible: u32,
    },
    /// An entry that must be understood and is not.
    #[error(
        "the entry at position {position} in {file} is of kind {kind}, version {version}, flags {flags:#x}, which this version does not know; nothing was touched. Use the version of tidelog that wrote it, or a newer one"
    )]
    UnknownEntry {
        /// The segment file.
        file: String,
        /// The entry's log position.
        position: u64,
        /// Its kind.
        kind: u8,
        /// Its version.
        version: u8,
        /// Its flags.
        flags: u16,
    },
    /// Segments are there, and not one header can be read.
    #[error(
        "none of the {segments} segment headers in {folder} can be read; nothing was touched. `tidelog verify {folder}` shows what is left; restore the folder from a copy"
    )]
    NoReadableHeader {
        /// The folder.
        folder: String,
        /// Segment files there.
        segments: usize,
    },
    /// A segment of the right number that belongs to another history of this log.
    #[error(
        "{file} belongs to another branch of this log than the segment behind it: files of two copies were mixed in {folder}. Nothing was touched; restore the folder from one copy"
    )]
    OtherBranch {
        /// The segment file.
        file: String,
        /// The folder.
        folder: String,
    },
    /// Positions of two segments contradict each other.
    #[error(
        "{file} begins before the segment in front of it does: the folder {folder} was tampered with. Nothing was touched"
    )]
    Contradiction {
        /// The segment file.
        file: String,
        /// The folder.
        folder: String,
    },
    /// The medium failed.
    #[error(
        "could not {step} in {folder}: {source}; nothing that was stored is lost by this, start again once the cause is mended"
    )]
    Medium {
        /// What was being done.
        step: &'static str,
        /// The folder.
        folder: String,
        /// The failure.
        #[source]
        source: io::Error,
    },
}
