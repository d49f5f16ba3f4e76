//! A closed group: what one fdatasync makes durable, on its way from the appender to the writer.

use bytes::Bytes;

use crate::checkpoint::Stamp;
use crate::housekeeping::Spare;
use crate::segment::SegmentHeader;

/// Consecutive entries of a group in one buffer.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(crate) position: u64,
    pub(crate) bytes: Bytes,
}

/// The segment that a group begins.
#[derive(Debug)]
pub(crate) struct OpensSegment {
    pub(crate) header: SegmentHeader,
    pub(crate) spare: Spare,
}

/// A closed group: what one fdatasync makes durable.
#[derive(Debug)]
pub struct Group {
    pub(crate) opens: Option<OpensSegment>,
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) watermark: Bytes,
    /// Position behind its last entry, where the watermark goes.
    pub(crate) end: u64,
    pub(crate) stamp: Stamp,
    pub(crate) batches: u64,
}

impl Group {
    /// Batches of records in it; what else there is are facts alone.
    #[must_use]
    pub const fn batches(&self) -> u64 {
        self.batches
    }

    /// Position behind the group's last entry: the durable position once it is committed.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Bytes to write, the watermark aside.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes.len()).sum()
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The buffers of the group, shared: for [`GroupBytes::slice`] after the group has gone to the writer.
    #[must_use]
    pub fn share(&self) -> GroupBytes {
        GroupBytes { chunks: self.chunks.clone(), stamp: self.stamp }
    }
}

/// The bytes of a group, kept for consumers that are caught up, so that nothing is read back for them.
#[derive(Debug, Clone)]
pub struct GroupBytes {
    chunks: Vec<Chunk>,
    stamp: Stamp,
}

impl GroupBytes {
    /// What a checkpoint is stamped with that counts in all up to this group's end; to be used once that is durable.
    #[must_use]
    pub const fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// The `len` bytes at a log position, uncopied; `None` if the group does not hold them.
    #[must_use]
    pub fn slice(&self, position: u64, len: usize) -> Option<Bytes> {
        let after = self.chunks.partition_point(|chunk| chunk.position <= position);
        let chunk = self.chunks.get(after.checked_sub(1)?)?;
        let start = (position - chunk.position) as usize;
        let end = start.checked_add(len)?;
        (end <= chunk.bytes.len()).then(|| chunk.bytes.slice(start..end))
    }
}
