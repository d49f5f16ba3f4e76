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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RecentBatches {
    by_key: IdMap<(ProducerId, StreamId), VecDeque<RecentBatch>>,
    /// Numbers and whose they are, ascending.
    order: VecDeque<(u64, (ProducerId, StreamId))>,
    /// How many there have been.
    count: u64,
}

impl RecentBatches {
    pub(super) fn push(&mut self, batch: &BatchAppended) {
        let recent =
            RecentBatch { number: self.count, header: batch.header, base_offset: batch.base_offset, skip: batch.skip };
        self.count += 1;
        // First, since a full queue would double its room for the one that is too many.
        if self.order.len() >= RECENT_BATCHES_MAX {
            self.forget_oldest();
        }
        self.put(batch.producer, recent);
    }

    fn forget_oldest(&mut self) {
        if let Some((_, oldest)) = self.order.pop_front()
            && let Some(batches) = self.by_key.get_mut(&oldest)
        {
            batches.pop_front();
            if batches.is_empty() {
                self.by_key.remove(&oldest);
            }
        }
    }

    fn put(&mut self, producer: ProducerId, batch: RecentBatch) {
        let key = (producer, batch.header.stream);
        self.order.push_back((batch.number, key));
        // Where many streams are written to each has one; a queue would begin with room for four.
        self.by_key.entry(key).or_insert_with(|| VecDeque::with_capacity(1)).push_back(batch);
    }

    /// How many there have been: the number of the next one.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// The number of the oldest one that is remembered; of the next one if none is.
    pub(super) fn oldest(&self) -> u64 {
        self.order.front().map_or(self.count, |(number, _)| *number)
    }

    /// Those with these numbers, and whose they are, in order.
    pub(super) fn range(&self, numbers: Range<u64>) -> impl Iterator<Item = (ProducerId, &RecentBatch)> {
        let from = self.order.partition_point(|(number, _)| *number < numbers.start);
        let to = self.order.partition_point(|(number, _)| *number < numbers.end);
        self.order.range(from..to).filter_map(|(number, key)| {
            let batches = self.by_key.get(key)?;
            let at = batches.binary_search_by_key(number, |batch| batch.number).ok()?;
            Some((key.0, batches.get(at)?))
        })
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
            self.order.retain(|(_, (_, of))| *of != stream);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let kept: usize = self.by_key.values().map(VecDeque::len).sum();
        assert_eq!(kept, self.order.len());
        kept
    }

    /// The stored batch with the same last sequence.
    pub(super) fn ending_alike(&self, producer: ProducerId, header: &BatchHeader) -> Option<&RecentBatch> {
        self.holding_end(producer, header).filter(|batch| batch.header.last == header.last)
    }

    /// The offset of a dense batch's first record, where one stored batch holds all of it.
    pub(super) fn offset_of(&self, producer: ProducerId, header: &BatchHeader) -> Option<Offset> {
        let batch = self.holding_end(producer, header).filter(|batch| !batch.header.is_sparse())?;
        let first_kept = batch.header.first.get() + u64::from(batch.skip);
        let into = header.first.get().checked_sub(first_kept)?;
        Some(Offset::new(batch.base_offset.get() + into))
    }

    /// The first stored batch that ends at or behind the last sequence. Batches of a producer rise.
    fn holding_end(&self, producer: ProducerId, header: &BatchHeader) -> Option<&RecentBatch> {
        let batches = self.by_key.get(&(producer, header.stream))?;
        batches.get(batches.partition_point(|batch| batch.header.last < header.last))
    }
}
