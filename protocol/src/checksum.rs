//! CRC-32 over bytes that are needed twice: alone, and as the end of a whole.

use crc32fast::Hasher;

/// Joining two checksums costs as much as hashing some thousand bytes: fewer are hashed again.
const JOINED_BYTES_MIN: usize = 4_096;

/// Lets `whole` go on over `bytes`, of which `alone` is the checksum.
pub(crate) fn append(whole: &mut Hasher, alone: &Hasher, bytes: &[u8]) {
    if bytes.len() < JOINED_BYTES_MIN {
        whole.update(bytes);
    } else {
        whole.combine(alone);
    }
}

/// The checksum of `bytes`, to go on with.
pub(crate) fn hasher_of(bytes: &[u8]) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.update(bytes);
    hasher
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_ends_give_what_hashing_gives() {
        let bytes: Vec<u8> = (0..3 * JOINED_BYTES_MIN).map(|number| (number * 7 % 251) as u8).collect();
        for end_len in [0, 1, 100, JOINED_BYTES_MIN - 1, JOINED_BYTES_MIN, JOINED_BYTES_MIN + 1, bytes.len()] {
            let (before, end) = bytes.split_at(bytes.len() - end_len);
            let mut whole = hasher_of(before);
            append(&mut whole, &hasher_of(end), end);
            assert_eq!(whole.finalize(), crc32fast::hash(&bytes), "an end of {end_len} bytes");
        }
    }
}
