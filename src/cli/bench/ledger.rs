//! What was sent and what was read back, and whether that is the same. Pure.
//!
//! Each producer's batches in one stream are a lane: a chain of hashes over their checksums, in the order of their
//! sequences. It is made once when the broker acknowledges them and once when they are read, so that a batch that is
//! missing, there twice, elsewhere or another one shows in the end, at the cost of one step for each batch.

use tidelog_protocol::Sequence;

/// A chain of hashes. Two are equal if the same numbers went in, in the same order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Chain(u64);

impl Chain {
    fn add(&mut self, value: u64) {
        // The finalizer of SplitMix64, as a step.
        let mut mixed = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_add(value);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = mixed ^ (mixed >> 31);
    }
}

/// One side of a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Side {
    last: Sequence,
    chain: Chain,
}

impl Side {
    /// Counts a batch that follows what was counted before.
    fn add(&mut self, first: Sequence, last: Sequence, content_crc: u32) -> Result<(), String> {
        if first.get() != self.last.get() + 1 || last < first {
            return Err(format!("sequences {first} to {last} came behind sequence {}", self.last));
        }
        self.last = last;
        self.chain.add(last.get());
        self.chain.add(u64::from(content_crc));
        Ok(())
    }
}

/// One producer's records in one stream.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lane {
    sent: Side,
    read: Side,
}

impl Lane {
    /// The broker has acknowledged a batch as durable.
    ///
    /// # Errors
    ///
    /// If it does not follow the one before.
    pub(super) fn acknowledged(&mut self, first: Sequence, last: Sequence, content_crc: u32) -> Result<(), String> {
        self.sent.add(first, last, content_crc).map_err(|what| format!("acknowledged out of order: {what}"))
    }

    /// What was acknowledged, as another lane has it that has read nothing.
    pub(super) fn set_sent(&mut self, other: &Lane) {
        self.sent = other.sent;
    }

    /// A batch was read.
    ///
    /// # Errors
    ///
    /// If it does not follow the one before: something is missing, there twice or in another order.
    pub(super) fn read(&mut self, first: Sequence, last: Sequence, content_crc: u32) -> Result<(), String> {
        self.read.add(first, last, content_crc).map_err(|what| format!("read out of order: {what}"))
    }

    /// Whether all that was acknowledged was read, and nothing else.
    ///
    /// # Errors
    ///
    /// In words, if not.
    pub(super) fn settle(&self) -> Result<(), String> {
        let (sent, read) = (self.sent.last, self.read.last);
        if sent != read {
            return Err(format!("{sent} records were acknowledged and {read} read"));
        }
        match self.sent.chain == self.read.chain {
            true => Ok(()),
            false => Err("what was read has other checksums than what was sent".to_owned()),
        }
    }
}

/// The value that a record has: made when it is sent, and again when it is read.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    bytes: Vec<u8>,
}

impl Payload {
    /// For the records of one producer. Bytes that nobody's compression would make less of.
    pub(super) fn new(size: usize, producer: u64) -> Self {
        let mut chain = Chain(producer);
        let mut bytes = Vec::with_capacity(size + 8);
        while bytes.len() < size {
            chain.add(0);
            bytes.extend_from_slice(&chain.0.to_le_bytes());
        }
        bytes.truncate(size);
        Self { bytes }
    }

    /// That of the record with this sequence in stream number `stream`.
    pub(super) fn of(&mut self, stream: u32, sequence: u64) -> &[u8] {
        let mut head = [0; 12];
        let (first, second) = head.split_at_mut(8);
        first.copy_from_slice(&sequence.to_le_bytes());
        second.copy_from_slice(&stream.to_le_bytes());
        let len = head.len().min(self.bytes.len());
        if let (Some(to), Some(from)) = (self.bytes.get_mut(..len), head.get(..len)) {
            to.copy_from_slice(from);
        }
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches of three lanes' worth: first, last, checksum.
    const BATCHES: [(u64, u64, u32); 3] = [(1, 10, 7), (11, 11, 8), (12, 40, 9)];

    fn settled(read: &[(u64, u64, u32)]) -> Result<(), String> {
        let mut lane = Lane::default();
        for (first, last, crc) in BATCHES {
            lane.acknowledged(Sequence::new(first), Sequence::new(last), crc)?;
        }
        for &(first, last, crc) in read {
            lane.read(Sequence::new(first), Sequence::new(last), crc)?;
        }
        lane.settle()
    }

    #[test]
    fn what_was_sent_settles() {
        assert_eq!(settled(&BATCHES), Ok(()));
    }

    #[test]
    fn whatever_else_was_read_does_not() {
        let [a, b, c] = BATCHES;
        for (read, why) in [
            (vec![a, b], "11 read"),
            (vec![a, c], "read out of order"),
            (vec![a, b, b, c], "read out of order"),
            (vec![a, a, b, c], "read out of order"),
            (vec![b, a, c], "read out of order"),
            (vec![a, b, c, (41, 41, 1)], "41 read"),
            (vec![a, (11, 11, 5), c], "checksums"),
            // The same records in other batches are other batches.
            (vec![(1, 11, 7), c], "checksums"),
        ] {
            let told = settled(&read).unwrap_err();
            assert!(told.contains(why), "{read:?}: {told}");
        }
    }

    #[test]
    fn acknowledgements_out_of_order_are_told() {
        let mut lane = Lane::default();
        assert!(lane.acknowledged(Sequence::new(2), Sequence::new(3), 1).is_err());
    }

    #[test]
    fn each_record_has_a_value_of_its_own_as_long_as_there_is_room_for_it() {
        let mut payload = Payload::new(100, 1);
        let first = payload.of(0, 1).to_vec();
        assert_eq!(first.len(), 100);
        assert_ne!(payload.of(0, 2), first);
        assert_ne!(payload.of(1, 1), first);
        assert_eq!(payload.of(0, 1), first);
        assert_ne!(Payload::new(100, 2).of(0, 1), first);
        assert_eq!(Payload::new(3, 1).of(5, 0x0102_0304), [4, 3, 2]);
    }
}
