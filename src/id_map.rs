//! Hash maps and sets by ids. Ids are positions of the log that the broker gave out, so nobody can choose them to collide,
//! and the standard library's hash, which is made for keys that strangers choose, cost a quarter of judging a batch of one
//! record.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// Values by id.
pub(crate) type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// A set of ids.
pub(crate) type IdSet<K> = HashSet<K, BuildHasherDefault<IdHasher>>;

/// Odd, with its bits spread: the golden ratio's (Knuth, "The Art of Computer Programming", volume 3, 6.4).
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// Multiplies each number in and folds the two halves of the product together, so that all bits of a hash depend on all
/// bits of the numbers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number ^ MULTIPLIER) * u128::from(MULTIPLIER);
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(numbers: &[u64]) -> u64 {
        let mut hasher = IdHasher::default();
        numbers.iter().for_each(|number| hasher.write_u64(*number));
        hasher.finish()
    }

    #[test]
    fn positions_of_a_log_fall_into_all_buckets_alike() {
        // As a table of 4,096 buckets takes them: the low bits, and the top seven to tell keys of one bucket apart.
        for step in [8, 64, 208, 4_096, 1 << 20, 1 << 32] {
            let mut buckets = vec![0_u32; 4_096];
            let mut tops = [0_u32; 128];
            for number in 0..16_384 {
                let hash = hash(&[number * step]);
                buckets[(hash % 4_096) as usize] += 1;
                tops[(hash >> 57) as usize] += 1;
            }
            let (most, most_tops) = (buckets.iter().max().unwrap(), tops.iter().max().unwrap());
            assert!(*most <= 24, "a bucket of 4 on the average holds {most} at step {step}");
            assert!(*most_tops <= 256, "a top of 128 on the average holds {most_tops} at step {step}");
        }
    }

    #[test]
    fn the_order_of_two_ids_counts() {
        assert_ne!(hash(&[8, 16]), hash(&[16, 8]));
        assert_ne!(hash(&[0]), hash(&[0, 0]));
    }
}
