//! The header of a batch: 56 bytes, little-endian, and what must hold among its fields.
//!
//! ```text
//!  0 content_crc u32      CRC-32 over everything behind these four bytes
//!  4 version u8 = 1
//!  5 codec u8 = 0
//!  6 flags u16            1 sparse, 2 anonymous
//!  8 count u32            records
//! 12 content_len u32      bytes behind the header
//! 16 stream u64
//! 24 first u64            sequence of the first record
//! 32 last u64             sequence of the last record
//! 40 previous u64         sequence that the producer sent before the first
//! 48 last_record_crc u32  CRC-32 over the last record's body
//! 52 reserved u32 = 0
//! 56 content
//! ```

use bytes::{Buf, BufMut};

use crate::batch::BatchError;
use crate::position::{Sequence, StreamId};

/// Bytes of a batch's header.
pub const BATCH_HEADER_LEN: usize = 56;

/// Version of the batch layout.
pub(crate) const BATCH_VERSION: u8 = 1;

/// Bytes of the header that [`BatchHeader::content_crc`] does not cover: itself.
pub(crate) const CRC_LEN: usize = 4;

/// What a batch's numbers mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchFlags(u16);

impl BatchFlags {
    /// Consecutive sequences of a named producer.
    pub const DENSE: Self = Self(0);
    /// The application chose the sequences; they rise but need not be consecutive.
    pub const SPARSE: Self = Self(1);
    /// No producer name: nothing is deduplicated, and the records carry no sequence.
    pub const ANONYMOUS: Self = Self(2);

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits as they stand in the header.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }
}

/// The header of a batch, decoded; a value from [`decode`](Self::decode) or [`check_batch`](crate::check_batch) is consistent in itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// CRC-32 over everything behind the first four bytes.
    pub content_crc: u32,
    /// Layout version, 1.
    pub version: u8,
    /// How the content is encoded; 0, as it is, in version 1.
    pub codec: u8,
    /// What the numbers mean.
    pub flags: BatchFlags,
    /// Records, at least 1.
    pub count: u32,
    /// Bytes behind the header.
    pub content_len: u32,
    /// The stream that the records are for.
    pub stream: StreamId,
    /// Sequence of the first record; [`Sequence::NONE`] if anonymous.
    pub first: Sequence,
    /// Sequence of the last record; [`Sequence::NONE`] if anonymous.
    pub last: Sequence,
    /// Sequence that the producer sent before the first record; [`Sequence::NONE`] if there was none or anonymous.
    pub previous: Sequence,
    /// CRC-32 over the last record's body, without its length: what is kept for ever to recognise it.
    pub last_record_crc: u32,
}

impl BatchHeader {
    /// Reads the header at the front of `batch` and checks its shape: version, codec, flags, reserved bytes, and that
    /// count and sequences fit each other. Content and checksums are left to [`check_batch`](crate::check_batch).
    ///
    /// # Errors
    /// [`BatchError`] names the first field that is wrong.
    pub fn decode(batch: &[u8]) -> Result<BatchHeader, BatchError> {
        let header = batch.first_chunk::<BATCH_HEADER_LEN>().ok_or(BatchError::Truncated { bytes: batch.len() })?;
        let mut rest = &header[..];
        let content_crc = rest.get_u32_le();
        let version = rest.get_u8();
        if version != BATCH_VERSION {
            return Err(BatchError::UnknownVersion { version });
        }
        let codec = rest.get_u8();
        if codec != 0 {
            return Err(BatchError::UnknownCodec { codec });
        }
        let flags = BatchFlags(rest.get_u16_le());
        if ![BatchFlags::DENSE, BatchFlags::SPARSE, BatchFlags::ANONYMOUS].contains(&flags) {
            return Err(BatchError::UnknownFlags { flags: flags.bits() });
        }
        let header = BatchHeader {
            content_crc,
            version,
            codec,
            flags,
            count: rest.get_u32_le(),
            content_len: rest.get_u32_le(),
            stream: StreamId::new(rest.get_u64_le()),
            first: Sequence::new(rest.get_u64_le()),
            last: Sequence::new(rest.get_u64_le()),
            previous: Sequence::new(rest.get_u64_le()),
            last_record_crc: rest.get_u32_le(),
        };
        let reserved = rest.get_u32_le();
        if reserved != 0 {
            return Err(BatchError::Reserved { reserved });
        }
        if header.count == 0 {
            return Err(BatchError::NoRecords);
        }
        if !header.numbers_agree() {
            let BatchHeader { first, last, previous, count, .. } = header;
            return Err(BatchError::Sequences { first, last, previous, count });
        }
        Ok(header)
    }

    /// Whether count and sequences can belong to one batch of this kind.
    fn numbers_agree(&self) -> bool {
        let [first, last, previous] = [self.first.get(), self.last.get(), self.previous.get()];
        if self.is_anonymous() {
            return first == 0 && last == 0 && previous == 0;
        }
        if first == 0 || last > Sequence::MAX.get() || first > last || previous >= first {
            return false;
        }
        let span = last - first + 1;
        let count = u64::from(self.count);
        if self.is_sparse() {
            span >= count && (count > 1 || span == 1)
        } else {
            span == count && previous == first - 1
        }
    }

    /// The header's bytes, exactly as the fields say.
    #[must_use]
    pub fn encode(&self) -> [u8; BATCH_HEADER_LEN] {
        let mut header = [0; BATCH_HEADER_LEN];
        let mut rest = &mut header[..];
        rest.put_u32_le(self.content_crc);
        rest.put_u8(self.version);
        rest.put_u8(self.codec);
        rest.put_u16_le(self.flags.bits());
        rest.put_u32_le(self.count);
        rest.put_u32_le(self.content_len);
        rest.put_u64_le(self.stream.get());
        rest.put_u64_le(self.first.get());
        rest.put_u64_le(self.last.get());
        rest.put_u64_le(self.previous.get());
        rest.put_u32_le(self.last_record_crc);
        header
    }

    /// Whether the content starts with a block of sequences.
    #[must_use]
    pub const fn is_sparse(&self) -> bool {
        self.flags.contains(BatchFlags::SPARSE)
    }

    /// Whether the records carry no sequence.
    #[must_use]
    pub const fn is_anonymous(&self) -> bool {
        self.flags.contains(BatchFlags::ANONYMOUS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_contradict_each_other_are_refused() {
        let agree = |flags: BatchFlags, count: u32, previous: u64, first: u64, last: u64| {
            let [previous, first, last] = [previous, first, last].map(Sequence::new);
            let (version, stream) = (BATCH_VERSION, StreamId::new(1));
            let header = BatchHeader {
                content_crc: 0,
                version,
                codec: 0,
                flags,
                count,
                content_len: 0,
                stream,
                first,
                last,
                previous,
                last_record_crc: 0,
            };
            BatchHeader::decode(&header.encode()).is_ok()
        };
        let max = Sequence::MAX.get();
        assert!(agree(BatchFlags::DENSE, 3, 4, 5, 7));
        assert!(agree(BatchFlags::DENSE, 1, max - 1, max, max));
        assert!(!agree(BatchFlags::DENSE, 1, max, max + 1, max + 1));
        assert!(!agree(BatchFlags::DENSE, 1, u64::MAX, 0, 0));
        assert!(!agree(BatchFlags::DENSE, 2, 4, 5, 7));
        assert!(!agree(BatchFlags::DENSE, 3, 3, 5, 7));
        assert!(!agree(BatchFlags::DENSE, 3, 6, 7, 5));
        assert!(agree(BatchFlags::SPARSE, 3, 0, 5, 9));
        assert!(agree(BatchFlags::SPARSE, 1, 0, 9, 9));
        assert!(!agree(BatchFlags::SPARSE, 1, 0, 5, 9));
        assert!(!agree(BatchFlags::SPARSE, 3, 5, 5, 9));
        assert!(!agree(BatchFlags::SPARSE, 3, 0, 5, 6));
        assert!(agree(BatchFlags::ANONYMOUS, 3, 0, 0, 0));
        assert!(!agree(BatchFlags::ANONYMOUS, 3, 0, 1, 3));
        assert!(!agree(BatchFlags::ANONYMOUS, 3, 1, 0, 0));
    }
}
