//! What is published, and the check that what is read back is exactly that.

use crc32fast::Hasher;

use crate::Outcome;

const POOL_BYTES: usize = 1 << 16;
/// A record begins with its number.
pub(crate) const NUMBER_BYTES: usize = 8;

/// Records of one size: a number, then bytes that do not compress.
#[derive(Clone)]
pub(crate) struct Contents {
    pool: Vec<u8>,
    record: Vec<u8>,
}

impl Contents {
    pub(crate) fn new(record_bytes: usize) -> Self {
        assert!((NUMBER_BYTES..POOL_BYTES / 2).contains(&record_bytes), "a record has room for its number");
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut pool = Vec::with_capacity(POOL_BYTES);
        while pool.len() < POOL_BYTES {
            // xorshift64: any bytes will do that no compressor gets hold of.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            pool.extend(state.to_le_bytes());
        }
        Self { pool, record: vec![0; record_bytes] }
    }

    pub(crate) fn record_bytes(&self) -> usize {
        self.record.len()
    }

    /// Record number `number`.
    pub(crate) fn record(&mut self, number: u64) -> &[u8] {
        let (head, tail) = self.record.split_at_mut(NUMBER_BYTES);
        head.copy_from_slice(&number.to_le_bytes());
        let from = (number.wrapping_mul(97) % (POOL_BYTES as u64 / 2)) as usize;
        tail.copy_from_slice(&self.pool[from..from + tail.len()]);
        &self.record
    }

    /// The checksum over the records `0..count`, one behind the other.
    pub(crate) fn checksum(&mut self, count: u64) -> u32 {
        let mut hasher = Hasher::new();
        for number in 0..count {
            hasher.update(self.record(number));
        }
        hasher.finalize()
    }
}

/// The number that a record begins with.
pub(crate) fn number_of(record: &[u8]) -> Outcome<u64> {
    let number = record.first_chunk::<NUMBER_BYTES>().ok_or("a record is shorter than its number")?;
    Ok(u64::from_le_bytes(*number))
}

/// Takes records as they are read and holds them against what was published.
#[derive(Default)]
pub(crate) struct Check {
    seen: u64,
    hasher: Hasher,
    flaw: Option<String>,
}

impl Check {
    /// Takes the next record in.
    pub(crate) fn take(&mut self, record: &[u8]) {
        self.hasher.update(record);
        match number_of(record) {
            Ok(number) if number == self.seen => {}
            Ok(number) if self.flaw.is_none() => {
                self.flaw = Some(format!("record {number} came where {} was due", self.seen));
            }
            Err(error) => self.flaw = Some(error.to_string()),
            Ok(_) => {}
        }
        self.seen += 1;
    }

    pub(crate) fn seen(&self) -> u64 {
        self.seen
    }

    /// Whether exactly the records `0..count` came, in order.
    pub(crate) fn finish(self, count: u64, contents: &mut Contents) -> Outcome<()> {
        if let Some(flaw) = self.flaw {
            return Err(flaw.into());
        }
        if self.seen != count {
            return Err(format!("{} records were read, {count} were published", self.seen).into());
        }
        if self.hasher.finalize() != contents.checksum(count) {
            return Err("what was read has other bytes than what was published".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(numbers: &[u64], count: u64) -> Outcome<()> {
        let (mut contents, mut check) = (Contents::new(100), Check::default());
        for number in numbers {
            check.take(contents.record(*number));
        }
        check.finish(count, &mut contents)
    }

    #[test]
    fn only_what_was_published_in_its_order_passes() {
        assert!(check(&[0, 1, 2], 3).is_ok());
        assert!(check(&[0, 1], 3).is_err());
        assert!(check(&[0, 2, 1], 3).is_err());
        assert!(check(&[0, 1, 1], 3).is_err());
        assert!(check(&[0, 1, 2, 3], 3).is_err());
    }

    #[test]
    fn a_changed_byte_behind_the_number_is_noticed() {
        let (mut contents, mut check) = (Contents::new(100), Check::default());
        let mut record = contents.record(0).to_vec();
        record[99] ^= 1;
        check.take(&record);
        assert!(check.finish(1, &mut contents).is_err());
    }
}
