//! A checkpoint's contents as they are stored: a head with stamp, count and digest, and the pairs.
//!
//! ```text
//! magic u32 | version u32 | log id 16 | segment u64 | salt 8 | position u64 | end u64 | header_crc u32 | reserved u32
//! start count u64 | wall_ms i64 | log_ms u64 | pairs u64 | pair bytes u64 | digest u128 | crc32 of all before u32
//! ```

use bytes::{Buf, BufMut};

use super::digest::pair_hash;
use super::{Checkpoint, CheckpointPairs, EntryMark, Stamp};
use crate::ReplayTime;
use crate::segment::{LogId, Salt};

const MAGIC: u32 = u32::from_le_bytes(*b"TLCP");
/// What the pairs mean is part of it: another version is another cache, and no reason to stop.
const VERSION: u32 = 1;
const HEAD_LEN: usize = 124;

/// What is said of the pairs as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) stamp: Stamp,
    /// How many pairs there are.
    pub(super) count: u64,
    /// Bytes of all keys and values.
    pub(super) bytes: u64,
    /// The sum of the hashes of all pairs.
    digest: u128,
}

impl Head {
    pub(super) const fn empty(stamp: Stamp) -> Self {
        Self { stamp, count: 0, bytes: 0, digest: 0 }
    }

    #[cfg(test)]
    pub(super) fn of(stamp: &Stamp, pairs: &CheckpointPairs) -> Self {
        let mut head = Self::empty(*stamp);
        pairs.iter().for_each(|(key, value)| head.count_in(key, value));
        head
    }

    pub(super) fn count_in(&mut self, key: &[u8], value: &[u8]) {
        self.count = self.count.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add((key.len() + value.len()) as u64);
        self.digest = self.digest.wrapping_add(pair_hash(key, value));
    }

    pub(super) fn count_out(&mut self, key: &[u8], value: &[u8]) {
        self.count = self.count.wrapping_sub(1);
        self.bytes = self.bytes.wrapping_sub((key.len() + value.len()) as u64);
        self.digest = self.digest.wrapping_sub(pair_hash(key, value));
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let Self { stamp: Stamp { log_id, mark, start_count, time }, count, bytes, digest } = self;
        let mut out = Vec::with_capacity(HEAD_LEN);
        out.put_u32_le(MAGIC);
        out.put_u32_le(VERSION);
        out.put_slice(&log_id.0);
        out.put_u64_le(mark.segment);
        out.put_slice(mark.salt.as_bytes());
        out.put_u64_le(mark.position);
        out.put_u64_le(mark.end);
        out.put_u32_le(mark.header_crc);
        out.put_u32_le(0);
        out.put_u64_le(*start_count);
        out.put_i64_le(time.wall_ms);
        out.put_u64_le(time.log_ms);
        out.put_u64_le(*count);
        out.put_u64_le(*bytes);
        out.put_u128_le(*digest);
        out.put_u32_le(crc32fast::hash(&out));
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (mut fields, crc) = bytes.split_at_checked(HEAD_LEN - 4).filter(|_| bytes.len() == HEAD_LEN)?;
        if crc32fast::hash(fields) != u32::from_le_bytes(*crc.first_chunk()?) {
            return None;
        }
        if fields.get_u32_le() != MAGIC || fields.get_u32_le() != VERSION {
            return None;
        }
        let mut log_id = [0; 16];
        fields.copy_to_slice(&mut log_id);
        let segment = fields.get_u64_le();
        let salt = Salt::new(fields.get_u64_le());
        let position = fields.get_u64_le();
        let end = fields.get_u64_le();
        let header_crc = fields.get_u32_le();
        fields.advance(4);
        let start_count = fields.get_u64_le();
        let time = ReplayTime { wall_ms: fields.get_i64_le(), log_ms: fields.get_u64_le() };
        let mark = EntryMark { segment, salt, position, end, header_crc };
        let fits = position < end && position.is_multiple_of(8) && end.is_multiple_of(8);
        fits.then(|| Self {
            stamp: Stamp { log_id: LogId(log_id), mark, start_count, time },
            count: fields.get_u64_le(),
            bytes: fields.get_u64_le(),
            digest: fields.get_u128_le(),
        })
    }
}

/// Head and pairs as they were found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) head: Head,
    pub(super) pairs: CheckpointPairs,
}

impl Contents {
    /// The checkpoint, if the pairs are those that the head counts and digests.
    pub(super) fn check(self) -> Result<Checkpoint, String> {
        let Self { head, pairs } = self;
        let mut found = Head::empty(head.stamp);
        pairs.iter().for_each(|(key, value)| found.count_in(key, value));
        if found.count != head.count {
            return Err(format!("it holds {} keys of {}", found.count, head.count));
        }
        if found != head {
            return Err("the digest over its keys does not fit".to_owned());
        }
        Ok(Checkpoint { stamp: head.stamp, pairs })
    }
}
