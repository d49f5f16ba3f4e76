//! The batches stored last: what a duplicate is compared with, and where its original offsets come from.

use std::collections::{HashMap, VecDeque};

use tidelog_protocol::{BatchHeader, Offset, ProducerId, StreamId};

use super::change::BatchAppended;

/// Batches remembered, of all producers together: some 6 MiB, and 64 full windows of 1,024 batches.
pub(super) const RECENT_BATCHES_MAX: usize = 65_536;

/// A stored batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RecentBatch {
    pub(super) header: BatchHeader,
    pub(super) base_offset: Offset,
    pub(super) skip: u32,
}

/// The recent batches of all producers, oldest forgotten first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RecentBatches {
    by_key: HashMap<(ProducerId, StreamId), VecDeque<RecentBatch>>,
    order: VecDeque<(ProducerId, StreamId)>,
}

impl RecentBatches {
    pub(super) fn push(&mut self, batch: &BatchAppended) {
        let key = (batch.producer, batch.header.stream);
        let recent = RecentBatch { header: batch.header, base_offset: batch.base_offset, skip: batch.skip };
        self.by_key.entry(key).or_default().push_back(recent);
        self.order.push_back(key);
        if self.order.len() > RECENT_BATCHES_MAX
            && let Some(oldest) = self.order.pop_front()
            && let Some(batches) = self.by_key.get_mut(&oldest)
        {
            batches.pop_front();
            if batches.is_empty() {
                self.by_key.remove(&oldest);
            }
        }
    }

    /// The stream was removed: what was written to it makes room for others.
    pub(super) fn forget_stream(&mut self, stream: StreamId) {
        let before = self.by_key.len();
        self.by_key.retain(|(_, of), _| *of != stream);
        if self.by_key.len() < before {
            self.order.retain(|(_, of)| *of != stream);
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
