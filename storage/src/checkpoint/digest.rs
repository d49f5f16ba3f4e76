//! A digest over all pairs of a checkpoint that does not depend on their order, and that a change of one pair changes
//! without a look at the others: the sum of the hashes of all pairs. Made to notice what is lost, not to fend off an attack.

/// FNV-1a, 64 bits.
const FNV_OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01B3;

/// Two 64-bit hashes of one pair, the second with another beginning. Both at once, since each step of one waits for the
/// multiplication before it.
pub(super) fn pair_hash(key: &[u8], value: &[u8]) -> u128 {
    let len = (key.len() as u64).to_le_bytes();
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
    let both = |(low, high), byte: &u8| (step(low, *byte), step(high, *byte));
    let beginning = (FNV_OFFSET, !FNV_OFFSET);
    let (low, high) =
        [len.as_slice(), key, value].into_iter().fold(beginning, |hashes, part| part.iter().fold(hashes, both));
    u128::from(mixed(high)) << 64 | u128::from(mixed(low))
}

/// The finalizer of SplitMix64: in a sum every bit of a hash must count.
fn mixed(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_one_in_the_format_description() {
        assert_eq!(format!("{:032x}", pair_hash(b"key", b"value")), VECTOR);
    }

    /// Worked out by a program of its own from the description alone.
    const VECTOR: &str = "5f11be6b61ec6736892126dca59e0a9b";

    #[test]
    fn where_a_key_ends_matters() {
        assert_ne!(pair_hash(b"ab", b"c"), pair_hash(b"a", b"bc"));
        assert_ne!(pair_hash(b"", b""), 0);
    }
}
