//! Records that say who sent them, and whose bytes can be told from that alone: a retry after a restart sends the same
//! ones, and every byte that a reader gets can be checked.
//!
//! ```text
//! producer u8 | zombie u8 | sequence u64 | random bytes | CRC-32 of all before u32      (little-endian)
//! ```

use std::fmt;

use bytes::{Buf as _, BufMut as _};

use super::random::Random;

const HEAD_BYTES: usize = 10;
const CRC_BYTES: usize = 4;

/// Which record it is. In one run, two of the same identity have the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    pub producer: u8,
    /// Sent by a session that had already been taken over: it must never be stored.
    pub is_zombie: bool,
    pub sequence: u64,
}

impl Identity {
    pub fn new(producer: u8, sequence: u64) -> Self {
        Self { producer, is_zombie: false, sequence }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zombie = if self.is_zombie { "zombie " } else { "" };
        write!(formatter, "{zombie}p{}:{}", self.producer, self.sequence)
    }
}

/// The record's bytes in the run of this seed.
pub fn encode(seed: u64, identity: Identity) -> Vec<u8> {
    let origin = seed ^ identity.sequence.rotate_left(20) ^ (u64::from(identity.producer) << 56);
    let mut random = Random::new(origin);
    random.next();
    // Mostly small, some of several pages, few of several blocks.
    let filling = match random.below(400) {
        0 => random.below(100_000),
        1..20 => random.below(9_000),
        _ => random.below(400),
    };
    let filling = usize::try_from(filling).expect("below 2^17");
    let mut bytes = Vec::with_capacity(HEAD_BYTES + filling + 8 + CRC_BYTES);
    bytes.put_u8(identity.producer);
    bytes.put_u8(u8::from(identity.is_zombie));
    bytes.put_u64_le(identity.sequence);
    while bytes.len() < HEAD_BYTES + filling {
        bytes.put_u64_le(random.next());
    }
    bytes.truncate(HEAD_BYTES + filling);
    bytes.put_u32_le(crc32fast::hash(&bytes));
    bytes
}

/// Which record these bytes are.
///
/// # Errors
///
/// Says what is wrong if they are none that was made in the run of this seed.
pub fn decode(seed: u64, bytes: &[u8]) -> Result<Identity, String> {
    let Some((mut content, mut crc)) = bytes.len().checked_sub(CRC_BYTES).map(|end| bytes.split_at(end)) else {
        return Err(format!("a record of {} bytes was never sent", bytes.len()));
    };
    if content.len() < HEAD_BYTES || crc32fast::hash(content) != crc.get_u32_le() {
        return Err(format!("a record of {} bytes does not fit its own checksum", bytes.len()));
    }
    let (producer, zombie, sequence) = (content.get_u8(), content.get_u8(), content.get_u64_le());
    let identity = Identity { producer, is_zombie: zombie != 0, sequence };
    if encode(seed, identity) != bytes {
        return Err(format!("the record {identity} has other bytes than were sent"));
    }
    Ok(identity)
}
