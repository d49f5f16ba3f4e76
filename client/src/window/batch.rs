//! A closed batch: the bytes that are sent, again and again if need be, until the broker has answered.

use bytes::Bytes;
use tidelog_protocol::{BatchBuilder, BatchHeader, BatchRecords, Limits, Sequence, StreamId};

use crate::connection::ProducerPosition;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) slot: usize,
    pub(super) bytes: Bytes,
    pub(super) first: Sequence,
    pub(super) last: Sequence,
    pub(super) count: u32,
    /// Records taken in for the stream up to its last one.
    pub(super) pushed_up_to: u64,
    pub(super) sent: Sent,
}

/// Whether a batch was handed out for sending: then it may be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Never,
    /// On the present attachment, or the one that was lost last: one refusal settles all behind it as well.
    Here,
    /// On an earlier one, too: what is said of it now does not settle what became of it then.
    Earlier,
}

/// A sparse batch of which the broker has the head.
#[derive(Debug)]
pub(super) struct Cut {
    /// Records up to the sequence at which it was cut.
    pub(super) head_count: u32,
    /// The records behind it, as a batch that names it as the sequence before.
    pub(super) tail: Bytes,
}

impl Batch {
    /// The last of this batch's sequences up to which `position` shows that the broker has stored this very batch, if it
    /// does.
    ///
    /// Only this session writes under its epoch and attempt, and a sparse batch is stored only behind the sequence that it
    /// names: if the broker's last record has the sequence and the checksum of this batch's last one, that record came
    /// with this batch. If it is the batch's first one, it is that record alone. Of what lies in between, one checksum
    /// says nothing about the others.
    pub(super) fn shown_stored_by(&self, position: &ProducerPosition) -> Option<Sequence> {
        let header = self.header();
        if position.last_sequence == self.last {
            return (position.last_record_crc == header.last_record_crc).then_some(self.last);
        }
        if position.last_sequence == self.first {
            let (_, first) = BatchRecords::new(&self.bytes).ok()?.next()?.ok()?;
            return (position.last_record_crc == first.crc()).then_some(self.first);
        }
        None
    }

    /// Cuts a sparse batch behind `last`, one of its sequences but not its last.
    pub(super) fn cut_behind(&self, last: Sequence, stream: StreamId, limits: &Limits) -> Cut {
        let mut tail = BatchBuilder::new();
        let mut sequences = Vec::new();
        let records = BatchRecords::new(&self.bytes).expect("the batch was built here");
        for record in records {
            let (sequence, record) = record.expect("the batch was built here");
            if sequence > last {
                tail.push(&record, limits).expect("it has been in a larger batch under the same limits");
                sequences.push(sequence);
            }
        }
        let head_count = self.count - tail.count();
        let tail = tail.finish_sparse(stream, last, &sequences).expect("the sequences rise, and fitted before");
        Cut { head_count, tail }
    }

    /// Holds other bytes from now on: those of its records that are left.
    pub(super) fn set_bytes(&mut self, bytes: Bytes) {
        self.bytes = bytes;
        self.first = self.header().first;
    }

    /// The checksum that it is sent with.
    pub(super) fn content_crc(&self) -> u32 {
        self.header().content_crc
    }

    fn header(&self) -> BatchHeader {
        BatchHeader::decode(&self.bytes).expect("the batch was built here")
    }
}
