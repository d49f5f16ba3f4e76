//! Records on their way to the open batches of many streams.
//!
//! The open batches of a thousand streams do not fit a processor's nearest caches. Each record that goes straight to its
//! batch waits for memory, since the lock around the window is given back only when all that was written has arrived:
//! 150 ns, more than all else together. So records are written one behind the other first, and some thousand of them go
//! to their batches at a time, where the waits overlap, stream by stream, so that each batch gets some that stand together.
//!
//! Gathering each batch only when it is closed, from where its records were written first, was tried: noting for each
//! stream where they are is such a wait again, and a thousand streams were a sixth slower.

use bytes::BufMut;

use super::Body;

/// Bytes gathered before they go to their batches: they fit the second nearest cache with room to spare. With 16 KiB
/// hardly two records were of one stream; 512 KiB gain nothing.
const STAGED_BYTES: usize = 256 * 1024;

/// Longer records go to their batches at once: copying them twice costs more than waiting once.
const STAGED_BODY_BYTES_MAX: usize = 1024;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Staging {
    bytes: Vec<u8>,
    records: Vec<Staged>,
    /// While records are brought into their order, by slot: how many there are of the stream, then where its next one goes.
    by_slot: Vec<usize>,
    /// The records, stream by stream.
    order: Vec<Staged>,
}

/// Where a record's body is, and of which stream it is.
#[derive(Debug, Clone, Copy, Default)]
struct Staged {
    slot: usize,
    start: u32,
    len: u32,
}

impl Staging {
    /// Whether such a record goes this way.
    pub(super) fn takes(body: Body<'_>) -> bool {
        body.encoded_len() <= STAGED_BODY_BYTES_MAX
    }

    /// Takes a record in; whether that is enough now.
    pub(super) fn put(&mut self, slot: usize, body: Body<'_>) -> bool {
        // Both fit: no more than two records are beyond what is enough.
        self.records.push(Staged { slot, start: self.bytes.len() as u32, len: body.encoded_len() as u32 });
        match body {
            Body::Record(record) => record.encode_into(&mut self.bytes),
            Body::Value(value) => {
                // Its flags.
                self.bytes.put_u8(0);
                self.bytes.put_slice(value);
            }
        }
        self.bytes.len() >= STAGED_BYTES
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// What is here and where it goes: stream by stream, of each in the order in which it came.
    pub(super) fn bodies(&mut self) -> impl Iterator<Item = (usize, &[u8])> {
        self.put_in_order();
        self.order.iter().filter_map(|record| {
            let (start, len) = (record.start as usize, record.len as usize);
            Some((record.slot, self.bytes.get(start..start + len)?))
        })
    }

    /// A counting sort by slot, unless hardly two records are of one stream.
    fn put_in_order(&mut self) {
        let slots = self.records.iter().map(|record| record.slot + 1).max().unwrap_or(0);
        if self.records.len() < slots / 4 {
            self.order.clone_from(&self.records);
            return;
        }
        self.by_slot.clear();
        self.by_slot.resize(slots, 0);
        for record in &self.records {
            if let Some(count) = self.by_slot.get_mut(record.slot) {
                *count += 1;
            }
        }
        let mut before = 0;
        for count in &mut self.by_slot {
            before += std::mem::replace(count, before);
        }
        self.order.resize(self.records.len(), Staged::default());
        for record in &self.records {
            if let Some(next) = self.by_slot.get_mut(record.slot)
                && let Some(place) = self.order.get_mut(*next)
            {
                *place = *record;
                *next += 1;
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
        self.order.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stream_gets_its_records_together_and_in_their_order() {
        let mut staging = Staging::default();
        for round in 0..2 {
            let values: Vec<_> = (0..7_u8).map(|number| [round, number, 9]).collect();
            for (value, slot) in values.iter().zip([5, 0, 5, 2, 0, 5, 2]) {
                assert!(!staging.put(slot, Body::Value(value)));
            }
            let gone: Vec<_> = staging.bodies().map(|(slot, body)| (slot, body.to_vec())).collect();
            let with = |slot, number| (slot, vec![0, round, number, 9]);
            assert_eq!(gone, [with(0, 1), with(0, 4), with(2, 3), with(2, 6), with(5, 0), with(5, 2), with(5, 5)]);
            staging.clear();
            assert!(staging.is_empty() && staging.bodies().next().is_none());
        }
    }

    #[test]
    fn few_records_of_many_streams_are_not_sorted() {
        let mut staging = Staging::default();
        for (slot, value) in [(70_000, b"a"), (9, b"b"), (70_000, b"c")] {
            staging.put(slot, Body::Value(value));
        }
        let gone: Vec<_> = staging.bodies().map(|(slot, body)| (slot, body.to_vec())).collect();
        assert_eq!(gone, [(70_000, b"\0a".to_vec()), (9, b"\0b".to_vec()), (70_000, b"\0c".to_vec())]);
        assert!(staging.by_slot.is_empty(), "nothing is counted for each of 70,000");
    }

    #[test]
    fn it_is_enough_when_the_cache_is_used() {
        let mut staging = Staging::default();
        let value = [1; STAGED_BODY_BYTES_MAX - 1];
        assert!(Staging::takes(Body::Value(&value)) && !Staging::takes(Body::Value(&[1; STAGED_BODY_BYTES_MAX])));
        let taken = (1..).find(|_| staging.put(3, Body::Value(&value)));
        assert_eq!(taken, Some(STAGED_BYTES / STAGED_BODY_BYTES_MAX));
    }
}
