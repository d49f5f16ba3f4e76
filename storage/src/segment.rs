//! A segment file: its name, and its header, which stands twice.
//!
//! ```text
//! header 4,096 | the same header again 4,096 | entries …
//! ```
//!
//! The file offset of an entry is [`ENTRIES_AT`] + position - base.

use std::fmt;

use bytes::{Buf, BufMut};

/// Bytes of one copy of the header.
pub(crate) const SEGMENT_HEADER_LEN: usize = 4_096;
/// Where entries begin in the file: behind both copies of the header.
pub(crate) const ENTRIES_AT: u64 = 2 * SEGMENT_HEADER_LEN as u64;
/// The on-disk format that this crate writes and reads.
pub(crate) const FORMAT: u16 = 1;

const MAGIC: u32 = u32::from_le_bytes(*b"TLSG");
const CRC_AT: usize = SEGMENT_HEADER_LEN - 4;

/// The identity of a log: made once, when the folder is first used.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogId(pub [u8; 16]);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// 64 random bits that seed every header checksum of a segment, so that no stale, misplaced or forged entry verifies.
/// It never leaves the broker, and is not printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Salt([u8; 8]);

impl Salt {
    pub(crate) const fn new(bits: u64) -> Self {
        Self(bits.to_le_bytes())
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(secret)")
    }
}

/// The segment before another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Predecessor {
    /// Its number.
    pub number: u64,
    /// Its salt: a file of the same number with another one belongs to another history.
    pub salt: Salt,
    /// Its base position.
    pub base: u64,
}

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The log it belongs to.
    pub log_id: LogId,
    /// Its number; newer segments have higher ones.
    pub number: u64,
    /// Its salt.
    pub salt: Salt,
    /// The log position of its first entry: the proven end of the segment before.
    pub base: u64,
    /// How many times the broker had started when it was made.
    pub start_count: u64,
    /// The segment before it; `None` for the first of a log.
    pub predecessor: Option<Predecessor>,
    /// The lowest position that the log still held.
    pub log_start: u64,
    /// Bytes that the file had when it was opened.
    pub file_len: u64,
    /// The largest payload of an entry.
    pub payload_bytes_max: u32,
    /// Wall clock when it was made, milliseconds since the Unix epoch.
    pub wall_ms: i64,
    /// Log time when it was made, milliseconds.
    pub log_ms: u64,
}

/// What a copy of a segment header turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderCopy {
    Valid(SegmentHeader),
    /// Its checksum is right, but its format or flags are of another version.
    Unknown {
        format: u16,
        incompatible: u32,
    },
    Invalid,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let mut bytes = [0; SEGMENT_HEADER_LEN];
        let mut out = bytes.as_mut_slice();
        out.put_u32_le(MAGIC);
        out.put_u16_le(FORMAT);
        out.put_u16_le(0);
        out.put_u32_le(0);
        out.put_u32_le(0);
        out.put_slice(&self.log_id.0);
        out.put_u64_le(self.number);
        out.put_slice(&self.salt.0);
        out.put_u64_le(self.base);
        out.put_u64_le(self.start_count);
        let before = self.predecessor.unwrap_or(Predecessor { number: 0, salt: Salt([0; 8]), base: 0 });
        out.put_u64_le(before.number);
        out.put_slice(&before.salt.0);
        out.put_u64_le(before.base);
        out.put_u64_le(self.log_start);
        out.put_u64_le(self.file_len);
        out.put_u32_le(self.payload_bytes_max);
        out.put_u32_le(0);
        out.put_i64_le(self.wall_ms);
        out.put_u64_le(self.log_ms);
        let (covered, crc) = bytes.split_at_mut(CRC_AT);
        crc.copy_from_slice(&crc32fast::hash(covered).to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> HeaderCopy {
        let Some((covered, behind)) = bytes.split_at_checked(CRC_AT) else { return HeaderCopy::Invalid };
        let crc = behind.first_chunk::<4>().map(|crc| u32::from_le_bytes(*crc));
        let mut fields = covered;
        if fields.get_u32_le() != MAGIC || crc != Some(crc32fast::hash(covered)) {
            return HeaderCopy::Invalid;
        }
        let format = fields.get_u16_le();
        fields.advance(2);
        let incompatible = fields.get_u32_le();
        fields.advance(4);
        if format != FORMAT || incompatible != 0 {
            return HeaderCopy::Unknown { format, incompatible };
        }
        let mut log_id = [0; 16];
        fields.copy_to_slice(&mut log_id);
        let number = fields.get_u64_le();
        let salt = read_salt(&mut fields);
        let base = fields.get_u64_le();
        let start_count = fields.get_u64_le();
        let before_number = fields.get_u64_le();
        let before_salt = read_salt(&mut fields);
        let before_base = fields.get_u64_le();
        let log_start = fields.get_u64_le();
        let file_len = fields.get_u64_le();
        let payload_bytes_max = fields.get_u32_le();
        fields.advance(4);
        HeaderCopy::Valid(SegmentHeader {
            log_id: LogId(log_id),
            number,
            salt,
            base,
            start_count,
            predecessor: (before_number != 0).then_some(Predecessor {
                number: before_number,
                salt: before_salt,
                base: before_base,
            }),
            log_start,
            file_len,
            payload_bytes_max,
            wall_ms: fields.get_i64_le(),
            log_ms: fields.get_u64_le(),
        })
    }
}

fn read_salt(fields: &mut &[u8]) -> Salt {
    let mut salt = [0; 8];
    fields.copy_to_slice(&mut salt);
    Salt(salt)
}

/// The file name of the segment with this number.
pub(crate) fn segment_name(number: u64) -> String {
    format!("segment-{number:016}")
}

/// The number in a segment's file name.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    name_number(name.strip_prefix("segment-")?)
}

/// The number that sixteen digits of a file name are; 0 is none.
pub(crate) fn name_number(digits: &str) -> Option<u64> {
    let is_number = digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten().filter(|number| *number != 0)
}

/// The file offset of a log position in the segment with this base.
pub(crate) const fn file_offset(base: u64, position: u64) -> u64 {
    ENTRIES_AT + position - base
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            log_id: LogId([3; 16]),
            number: 7,
            salt: Salt::new(99),
            base: 4_096,
            start_count: 2,
            predecessor: Some(Predecessor { number: 6, salt: Salt::new(98), base: 1_024 }),
            log_start: 0,
            file_len: 1 << 20,
            payload_bytes_max: 1 << 20,
            wall_ms: -5,
            log_ms: 6,
        }
    }

    #[test]
    fn a_header_reads_back() {
        assert_eq!(SegmentHeader::decode(&header().encode()), HeaderCopy::Valid(header()));
        let first = SegmentHeader { predecessor: None, ..header() };
        assert_eq!(SegmentHeader::decode(&first.encode()), HeaderCopy::Valid(first));
    }

    #[test]
    fn no_single_flipped_bit_goes_unseen() {
        let good = header().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bad), HeaderCopy::Invalid, "bit {bit}");
        }
    }

    #[test]
    fn an_unknown_format_is_told_apart_from_damage() {
        let mut other = header().encode();
        other[4] = 2;
        let crc = crc32fast::hash(&other[..CRC_AT]).to_le_bytes();
        other[CRC_AT..].copy_from_slice(&crc);
        assert_eq!(SegmentHeader::decode(&other), HeaderCopy::Unknown { format: 2, incompatible: 0 });
    }

    #[test]
    fn names_and_numbers_agree() {
        assert_eq!(segment_number(&segment_name(12)), Some(12));
        assert_eq!(segment_number("segment-12"), None);
        assert_eq!(segment_number("spare-12"), None);
        assert_eq!(segment_number("segment-+000000000000012"), None);
        assert_eq!(segment_number("segment-0000000000000000"), None);
    }
}
