//! Facts: what an entry says about the broker's state, small enough to stand in its header twice.

use bytes::{Buf, BufMut};

/// The most bytes of facts that one entry can hold.
pub const FACTS_BYTES_MAX: usize = 1_024;

/// What a fact is about. The numbers are part of the format and never reused; 0 is padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum FactKind {
    /// A stream: key is its id.
    Stream = 1,
    /// A producer's epoch: key is its id.
    Producer = 2,
    /// A range of the log that could not be read: key is its first position.
    Hole = 3,
    /// What lay behind the end of the log at a start and could not be proven stored: key is its first position.
    Cut = 4,
    /// A start of the broker: key is empty, value the start count.
    Start = 5,
    /// The last sequence of a producer in a stream, carried forward: key is (producer, stream).
    LastSequence = 6,
    /// The next offset of a stream, carried forward or moved up by a repair: key is the stream's id.
    NextOffset = 7,
    /// A group's cursor: key is (group, stream).
    Cursor = 8,
    /// Damage that a repair has settled: key is its first position.
    Repaired = 9,
}

impl FactKind {
    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Stream,
            2 => Self::Producer,
            3 => Self::Hole,
            4 => Self::Cut,
            5 => Self::Start,
            6 => Self::LastSequence,
            7 => Self::NextOffset,
            8 => Self::Cursor,
            9 => Self::Repaired,
            _ => return None,
        })
    }
}

/// One fact: an absolute value for a key, and the log position at which it was decided. A fold keeps, for each key,
/// the fact with the highest position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fact<'a> {
    /// What it is about.
    pub kind: FactKind,
    /// Which one; at most 255 bytes.
    pub key: &'a [u8],
    /// The log position at which it was decided.
    pub decided_at: u64,
    /// What holds from there on.
    pub value: &'a [u8],
}

/// The facts do not fit in one entry's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("facts of one entry take more than {FACTS_BYTES_MAX} bytes; split them over the entries of an atomic group")]
pub struct FactsTooLong;

/// Facts as they stand in an entry: encoded, padded with zeros to a multiple of eight.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    bytes: Vec<u8>,
}

impl Facts {
    /// Adds a fact.
    ///
    /// # Errors
    /// If it does not fit; nothing has been added then.
    pub fn push(&mut self, fact: Fact<'_>) -> Result<(), FactsTooLong> {
        let key_len = u8::try_from(fact.key.len()).map_err(|_| FactsTooLong)?;
        let value_len = u16::try_from(fact.value.len()).map_err(|_| FactsTooLong)?;
        let start = self.unpadded_len();
        let len = 4 + fact.key.len() + 8 + fact.value.len();
        if (start + len).next_multiple_of(8) > FACTS_BYTES_MAX {
            return Err(FactsTooLong);
        }
        self.bytes.truncate(start);
        self.bytes.put_u8(fact.kind as u8);
        self.bytes.put_u8(key_len);
        self.bytes.put_u16_le(value_len);
        self.bytes.put_slice(fact.key);
        self.bytes.put_u64_le(fact.decided_at);
        self.bytes.put_slice(fact.value);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        Ok(())
    }

    /// The bytes as they stand in an entry; a multiple of eight.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn unpadded_len(&self) -> usize {
        facts(&self.bytes).map(|fact| 12 + fact.key.len() + fact.value.len()).sum()
    }
}

/// The facts in `bytes`, which a header's checksum has covered. Kinds that this version does not know are passed over:
/// what must not be missed is marked in the entry's flags.
pub(crate) fn facts(mut bytes: &[u8]) -> impl Iterator<Item = Fact<'_>> {
    std::iter::from_fn(move || {
        loop {
            if bytes.len() < 12 {
                return None;
            }
            let kind = bytes.get_u8();
            let key_len = usize::from(bytes.get_u8());
            let value_len = usize::from(bytes.get_u16_le());
            if kind == 0 {
                return None;
            }
            let (key, rest) = bytes.split_at_checked(key_len)?;
            if rest.len() < 8 {
                return None;
            }
            let mut rest = rest;
            let decided_at = rest.get_u64_le();
            let (value, rest) = rest.split_at_checked(value_len)?;
            bytes = rest;
            if let Some(kind) = FactKind::from_number(kind) {
                return Some(Fact { kind, key, decided_at, value });
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_read_back_as_they_were_pushed() {
        let mut all = Facts::default();
        let first = Fact { kind: FactKind::Stream, key: b"12345678", decided_at: 40, value: b"orders" };
        let second = Fact { kind: FactKind::Start, key: b"", decided_at: 48, value: &[7; 8] };
        all.push(first).unwrap();
        all.push(second).unwrap();
        assert_eq!(all.as_bytes().len() % 8, 0);
        assert_eq!(facts(all.as_bytes()).collect::<Vec<_>>(), [first, second]);
    }

    #[test]
    fn a_fact_that_does_not_fit_changes_nothing() {
        let mut all = Facts::default();
        let fact = Fact { kind: FactKind::Hole, key: &[1; 8], decided_at: 1, value: &[2; 900] };
        all.push(fact).unwrap();
        let before = all.clone();
        assert_eq!(all.push(fact), Err(FactsTooLong));
        assert_eq!(all, before);
    }
}
