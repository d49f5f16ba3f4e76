//! The batches stored last: what a duplicate is compared with, and where its original offsets come from.

use std::collections::VecDeque;
use std::ops::Range;

use tidelog_protocol::{BatchHeader, Offset, ProducerId, StreamId};

use crate::id_map::IdMap;

use super::change::BatchAppended;

/// Batches remembered, of all producers together: some 3 MiB, and 32 windows of 1,024 batches.
pub(super) const RECENT_BATCHES_MAX: usize = 32_768;

/// A stored batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RecentBatch {
    /// Counts up over all batches of the log.
    pub(super) number: u64,
    pub(super) header: BatchHeader,
    pub(super) base_offset: Offset,
    pub(super) skip: u32,
}

/// The recent batches of all producers, oldest forgotten first.
///
/// They stand in one queue, and what belongs to one producer in one stream is a list of numbers: where a thousand streams
/// are written to in turn, a queue of batches for each would have every one of them written to memory that has left the
/// processor's caches since.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RecentBatches {
    /// By number, and whose they are; ascending.
    batches: VecDeque<(ProducerId, RecentBatch)>,
    /// The numbers of each, ascending.
    by_key: IdMap<(ProducerId, StreamId), VecDeque<u64>>,
    /// How many there have been.
    count: u64,
}

impl RecentBatches {
    pub(super) fn push(&mut self, batch: &BatchAppended) {
        let recent =
            RecentBatch { number: self.count, header: batch.header, base_offset: batch.base_offset, skip: batch.skip };
        self.count += 1;
        // First, since a full queue would double its room for the one that is too many.
        if self.batches.len() >= RECENT_BATCHES_MAX {
            self.forget_oldest();
        }
        self.put(batch.producer, recent);
    }

    fn forget_oldest(&mut self) {
        let Some((producer, oldest)) = self.batches.pop_front() else { return };
        let key = (producer, oldest.header.stream);
        if let Some(numbers) = self.by_key.get_mut(&key) {
            numbers.pop_front();
            if numbers.is_empty() {
                self.by_key.remove(&key);
            }
        }
    }

    fn put(&mut self, producer: ProducerId, batch: RecentBatch) {
        let key = (producer, batch.header.stream);
        // Where many streams are written to each has one; a queue would begin with room for four.
        self.by_key.entry(key).or_insert_with(|| VecDeque::with_capacity(1)).push_back(batch.number);
        self.batches.push_back((producer, batch));
    }

    /// The place of the first one with this number or a higher one.
    fn place(&self, number: u64) -> usize {
        self.batches.partition_point(|(_, batch)| batch.number < number)
    }

    /// The one with this number, which is remembered.
    #[inline]
    fn numbered(&self, number: u64) -> Option<&RecentBatch> {
        // Unless a stream was removed there are no gaps.
        let dense = usize::try_from(number.wrapping_sub(self.oldest())).ok().and_then(|place| self.batches.get(place));
        match dense {
            Some((_, batch)) if batch.number == number => Some(batch),
            _ => self.batches.get(self.place(number)).map(|(_, batch)| batch),
        }
    }

    /// How many there have been: the number of the next one.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// The number of the oldest one that is remembered; of the next one if none is.
    pub(super) fn oldest(&self) -> u64 {
        self.batches.front().map_or(self.count, |(_, oldest)| oldest.number)
    }

    /// Those with these numbers, and whose they are, in order.
    pub(super) fn range(&self, numbers: Range<u64>) -> impl Iterator<Item = (ProducerId, &RecentBatch)> {
        let places = self.place(numbers.start)..self.place(numbers.end);
        self.batches.range(places).map(|(producer, batch)| (*producer, batch))
    }

    /// Those that a checkpoint has, in any order; `count` is how many there have been.
    pub(super) fn restore(mut found: Vec<(ProducerId, RecentBatch)>, count: u64) -> Self {
        let mut recent = Self { count, ..Self::default() };
        found.sort_by_key(|(_, batch)| batch.number);
        found.into_iter().for_each(|(producer, batch)| recent.put(producer, batch));
        recent
    }

    /// The stream was removed: what was written to it makes room for others.
    pub(super) fn forget_stream(&mut self, stream: StreamId) {
        let before = self.by_key.len();
        self.by_key.retain(|(_, of), _| *of != stream);
        if self.by_key.len() < before {
            self.batches.retain(|(_, batch)| batch.header.stream != stream);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let kept: usize = self.by_key.values().map(VecDeque::len).sum();
        assert_eq!(kept, self.batches.len());
        kept
    }

    /// The stored batch with the same last sequence.
    pub(super) fn ending_alike(&self, producer: ProducerId, header: &BatchHeader) -> Option<&RecentBatch> {
        self.holding_end(producer, header).filter(|batch| batch.header.last == header.last)
    }

    /// The first stored batch that ends at or behind the last sequence. Batches of a producer rise.
    pub(super) fn holding_end(&self, producer: ProducerId, header: &BatchHeader) -> Option<&RecentBatch> {
        let numbers = self.by_key.get(&(producer, header.stream))?;
        let ends_before = |number: &u64| self.numbered(*number).is_some_and(|batch| batch.header.last < header.last);
        self.numbered(*numbers.get(numbers.partition_point(ends_before))?)
    }
}

impl RecentBatch {
    /// The offset of a dense batch's first record, where this one holds all of it.
    pub(super) fn offset_of(&self, header: &BatchHeader) -> Option<Offset> {
        if self.header.is_sparse() {
            return None;
        }
        let first_kept = self.header.first.get() + u64::from(self.skip);
        let into = header.first.get().checked_sub(first_kept)?;
        Some(Offset::new(self.base_offset.get() + into))
    }
}
