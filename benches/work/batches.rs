//! Batches as a client makes them.

use bytes::Bytes;
use tidelog_protocol::{BatchBuilder, BatchRecords, Limits, Sequence, StreamId};

/// How many records of what size a batch has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) records: u32,
    /// Bytes of each record's value.
    pub(crate) record_bytes: usize,
}

/// Some 64 KiB of small records: what a busy producer sends at once.
pub(crate) const SMALL_RECORDS: Shape = Shape { records: 600, record_bytes: 100 };
/// Some 64 KiB of larger ones.
pub(crate) const LARGE_RECORDS: Shape = Shape { records: 60, record_bytes: 1_024 };
/// What a producer sends that waits for each answer.
pub(crate) const LONE_RECORD: Shape = Shape { records: 1, record_bytes: 100 };

impl Shape {
    pub(crate) fn name(&self) -> String {
        format!("{} x {} B", self.records, self.record_bytes)
    }

    /// Bytes of all values.
    pub(crate) fn value_bytes(&self) -> u64 {
        u64::from(self.records) * self.record_bytes as u64
    }

    /// A value that no other record of the batch has.
    pub(crate) fn values(&self) -> Vec<Vec<u8>> {
        let value = |index: u32| index.to_le_bytes().into_iter().cycle().take(self.record_bytes).collect();
        (0..self.records).map(value).collect()
    }

    /// The batch that begins with `first`.
    pub(crate) fn dense(&self, stream: StreamId, first: u64) -> Bytes {
        build(&mut BatchBuilder::new(), &self.values(), stream, first)
    }
}

/// What a client does: each record into the builder, then the header and its checksums.
pub(crate) fn build(builder: &mut BatchBuilder, values: &[Vec<u8>], stream: StreamId, first: u64) -> Bytes {
    let limits = Limits::default();
    for value in values {
        builder.push_value(value, &limits).expect("small records fit");
    }
    builder.finish_dense(stream, Sequence::new(first))
}

/// What a consumer does with a batch, its checksum aside: looks at each record. Returns the bytes of all values.
pub(crate) fn decode(batch: &Bytes) -> usize {
    let records = BatchRecords::new(batch).expect("a sound batch");
    records.map(|record| record.expect("a sound record").1.value.len()).sum()
}
