//! One stream's part of a producer's window: where its records stand, the batch that is open, what was told.

use std::collections::VecDeque;

use tidelog_protocol::{
    BATCH_HEADER_LEN, BatchBuilder, ErrorCode, Offset, SEQUENCE_DELTA_BYTES_MAX, Sequence, StreamId, StreamName,
};
use tokio::sync::oneshot;

use crate::connection::ProducerPosition;
use crate::error::Error;

/// The broker's word on one batch: its records are durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// Sequence of the batch's first record; [`Sequence::NONE`] if the producer is anonymous.
    pub first: Sequence,
    /// Sequence of its last record. With sparse sequences those in between are the ones that were given, in order.
    pub last: Sequence,
    /// Records of the batch.
    pub count: u32,
    /// Offset of record number `skip` of the batch, those behind it follow without gaps. `None` if the broker no longer
    /// knows where a duplicate was stored.
    pub base_offset: Option<Offset>,
    /// Leading records of the batch that had been stored before.
    pub skip: u32,
    /// Whether all of it had been stored before.
    pub duplicate: bool,
    /// The checksum that the batch was sent with; readers get it with the batch
    /// ([`DeliveredBatch::content_crc`](crate::DeliveredBatch::content_crc)). If only the head of a sparse batch is meant, that
    /// of the whole.
    pub content_crc: u32,
}

impl Receipt {
    /// The offset of record number `index` of the batch, where known.
    fn offset_of(&self, index: u32) -> Option<Offset> {
        self.base_offset?.checked_add(u64::from(index.checked_sub(self.skip)?))
    }
}

/// The broker's word on one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Acknowledgement {
    /// The record's sequence; [`Sequence::NONE`] if the producer is anonymous.
    pub sequence: Sequence,
    /// Whether it is durable. If not, it is `accepted`: ordered in the broker's memory, which promises nothing by itself.
    pub durable: bool,
    /// Its offset; `None` while it is not durable, or if the broker no longer knows where a duplicate was stored.
    pub offset: Option<Offset>,
    /// Whether it had been stored before; false while it is not durable.
    pub duplicate: bool,
}

/// How a producer's records are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbering {
    /// Not at all.
    Anonymous,
    /// One by one.
    Dense,
    /// Rising, with jumps, by the application.
    Sparse,
}

/// Somebody waits for the acknowledgement of one record.
#[derive(Debug)]
struct Watcher {
    /// Which of the stream's records, counted from 1 as they were taken in.
    number: u64,
    sequence: Sequence,
    reply: oneshot::Sender<Result<Acknowledgement, Error>>,
}

/// Where a publisher stands in its stream, and what it has in the window.
// In the order in which it is written, and beginning with a cache line: what each record of a thousand streams touches
// stands together, two lines of it.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct StreamWindow {
    pub(crate) id: StreamId,
    pub(crate) failure: Option<Box<Error>>,
    pub(crate) closed: bool,
    numbering: Numbering,
    /// Sequence of the last record taken in, or of the last one stored before; [`Sequence::NONE`] for anonymous
    /// producers.
    pub(super) taken: Sequence,
    /// Records taken in.
    pub(crate) pushed: u64,
    /// Of the records in `builder`, if sparse.
    pub(super) sequences: Vec<Sequence>,
    pub(super) builder: BatchBuilder,
    /// The sequence before the open batch's first, if sparse.
    pub(super) previous: Sequence,
    /// Of the records taken in those that are ordered, and those whose answer is final.
    pub(super) accepted: u64,
    pub(crate) settled: u64,
    /// The highest sequence that the broker called durable.
    pub(crate) told: Sequence,
    /// Up to here the broker has shown to hold what this window holds, or held, under the same sequences.
    pub(super) shown: Sequence,
    pub(crate) last_offset: Option<Offset>,
    pub(crate) published: u64,
    pub(crate) duplicates: u64,
    watchers: VecDeque<Watcher>,
    /// What the broker held when it was last asked.
    pub(super) found: ProducerPosition,
    pub(crate) name: StreamName,
}

impl StreamWindow {
    pub(super) fn new(id: StreamId, name: StreamName, numbering: Numbering, found: ProducerPosition) -> Self {
        let last = found.last_sequence;
        Self {
            id,
            name,
            numbering,
            taken: last,
            builder: BatchBuilder::new(),
            sequences: Vec::new(),
            previous: last,
            pushed: 0,
            accepted: 0,
            settled: 0,
            told: last,
            found,
            shown: last,
            last_offset: found.last_offset,
            published: 0,
            duplicates: 0,
            watchers: VecDeque::new(),
            closed: false,
            failure: None,
        }
    }

    /// The sequence that the next record gets, `asked` if the application numbers its records itself.
    ///
    /// # Errors
    ///
    /// If it can't stand behind what was taken before. That ends nothing: the record is not taken, and that is all.
    pub(super) fn next_sequence(&self, asked: Option<Sequence>) -> Result<Sequence, Error> {
        let refused = |code, why: String, detail: Option<Sequence>| {
            Err(Error::refused(
                code,
                format!("the record for '{}' was not taken: {why}", self.name),
                detail.map(Sequence::get),
            ))
        };
        let taken = self.taken;
        let following = Sequence::new(taken.get() + 1);
        let sequence = match (self.numbering, asked) {
            (Numbering::Anonymous, None) => return Ok(Sequence::NONE),
            (Numbering::Anonymous, Some(_)) => {
                return refused(ErrorCode::SequenceMode, "a producer without a name has no sequences".into(), None);
            }
            (Numbering::Sparse, None) => {
                let why = "this producer's records bring sequences of their own, and it has none".into();
                return refused(ErrorCode::SequenceMode, why, None);
            }
            (Numbering::Dense, None) => following,
            (Numbering::Dense | Numbering::Sparse, Some(asked)) => asked,
        };
        if sequence == Sequence::NONE || sequence > Sequence::MAX {
            return refused(
                ErrorCode::Malformed,
                format!("sequences go from 1 to {}, not {sequence}", Sequence::MAX),
                None,
            );
        }
        // What lies at or before the last one stored may be given again from any point on, if sequences are dense: the
        // broker knows of every number up to the last one that it is stored.
        let begins_anew = self.numbering == Numbering::Dense && self.pushed == 0;
        if sequence <= taken && !begins_anew {
            let why = format!("sequence {sequence} is not behind {taken}, the last one");
            return refused(ErrorCode::SequencePast, why, Some(taken));
        }
        if sequence > following && self.numbering == Numbering::Dense {
            let why = format!("sequence {sequence} leaves a gap, {following} is the next");
            return refused(ErrorCode::SequenceGap, why, Some(following));
        }
        Ok(sequence)
    }

    /// Counts a record that is now in `builder`.
    pub(super) fn count_in(&mut self, sequence: Sequence) {
        self.taken = sequence;
        self.pushed += 1;
        if self.numbering == Numbering::Sparse {
            self.sequences.push(sequence);
        }
    }

    /// Bytes that the open batch may have in the end.
    pub(super) fn open_bytes(&self) -> usize {
        if self.builder.is_empty() {
            return 0;
        }
        BATCH_HEADER_LEN + self.builder.content_len() + self.sequences.len() * SEQUENCE_DELTA_BYTES_MAX
    }

    /// The highest sequence that this session can have written.
    pub(super) fn written_up_to(&self) -> Sequence {
        self.taken.max(self.told)
    }

    /// Whoever waits for the last record taken in hears of it through this.
    pub(super) fn watch_last(&mut self) -> oneshot::Receiver<Result<Acknowledgement, Error>> {
        let (reply, watched) = oneshot::channel();
        self.watchers.push_back(Watcher { number: self.pushed, sequence: self.taken, reply });
        watched
    }

    /// Records up to this one, counted as they were taken in, are ordered.
    pub(super) fn accept(&mut self, number: u64) {
        self.accepted = self.accepted.max(number);
        while let Some(watcher) = self.watchers.pop_front_if(|watcher| watcher.number <= number) {
            let sequence = watcher.sequence;
            // Whoever has given up waiting needs no answer; so below, too.
            let _ =
                watcher.reply.send(Ok(Acknowledgement { sequence, durable: false, offset: None, duplicate: false }));
        }
    }

    /// The next records in the order of taking in are durable.
    pub(super) fn settle(&mut self, receipt: &Receipt) {
        let before = self.settled;
        self.settled += u64::from(receipt.count);
        self.told = self.told.max(receipt.last);
        self.shown = self.shown.max(receipt.last);
        let duplicates = if receipt.duplicate { receipt.count } else { receipt.skip };
        self.duplicates += u64::from(duplicates);
        self.published += u64::from(receipt.count - duplicates);
        self.last_offset = self.last_offset.max(receipt.offset_of(receipt.count - 1));
        let settled = self.settled;
        while let Some(watcher) = self.watchers.pop_front_if(|watcher| watcher.number <= settled) {
            // Those of earlier batches have had their answer, so it is one of this batch.
            let index = u32::try_from(watcher.number.saturating_sub(before + 1)).unwrap_or(u32::MAX);
            let _ = watcher.reply.send(Ok(Acknowledgement {
                sequence: watcher.sequence,
                durable: true,
                offset: receipt.offset_of(index),
                duplicate: receipt.duplicate || index < receipt.skip,
            }));
        }
    }

    /// Nobody will be answered any more.
    pub(super) fn fail_watchers(&mut self, error: &Error) {
        for watcher in self.watchers.drain(..) {
            let _ = watcher.reply.send(Err(error.clone()));
        }
    }
}
