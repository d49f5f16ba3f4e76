//! Iterates over the records of a batch without copying them.

use std::iter::FusedIterator;
use std::ops::Range;

use bytes::Bytes;

use crate::batch::BatchError;
use crate::batch_header::{BATCH_HEADER_LEN, BatchHeader};
use crate::leb128;
use crate::position::Sequence;
use crate::record::{Record, RecordError, take_bytes};

/// The records of a batch, each with its sequence ([`Sequence::NONE`] if anonymous), as slices of the batch.
///
/// Meant for a batch that was checked, by [`check_batch`](crate::check_batch) or by the broker it came from; any other
/// bytes end in an error as well, never in a panic. After an error the iterator is at its end. `nth` and `skip` pass over
/// records by their lengths alone.
#[derive(Debug, Clone)]
pub struct BatchRecords {
    batch: Bytes,
    header: BatchHeader,
    /// Where the next record's length stands in `batch`.
    position: usize,
    /// Where the next delta stands in `batch`, if sparse.
    sequence_position: usize,
    /// Sequence of the record before the next one.
    before: u64,
    remaining: u32,
}

impl BatchRecords {
    /// Starts at the first record. `batch` is exactly one batch.
    ///
    /// # Errors
    /// [`BatchError`] if the header is malformed, the length is not the header's, or the block of sequences is cut off.
    pub fn new(batch: &Bytes) -> Result<BatchRecords, BatchError> {
        let header = BatchHeader::decode(batch)?;
        let content = batch.get(BATCH_HEADER_LEN..).unwrap_or_default();
        if content.len() as u64 != u64::from(header.content_len) {
            return Err(BatchError::ContentLength { claimed: header.content_len, present: content.len() });
        }
        let block_len = if header.is_sparse() { sequences_len(content, header.count)? } else { 0 };
        Ok(BatchRecords {
            batch: batch.clone(),
            header,
            position: BATCH_HEADER_LEN + block_len,
            sequence_position: BATCH_HEADER_LEN,
            before: header.previous.get(),
            remaining: header.count,
        })
    }

    /// The batch's header.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// Records that are left.
    #[must_use]
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    /// The sequence of the record that comes next; [`Sequence::NONE`] if anonymous, `None` at the end.
    #[must_use]
    pub fn next_sequence(&self) -> Option<Sequence> {
        if self.remaining == 0 {
            return None;
        }
        self.sequence().ok().map(|(sequence, _)| Sequence::new(sequence))
    }

    /// The next record's sequence, and where the delta behind it stands.
    #[inline]
    fn sequence(&self) -> Result<(u64, usize), RecordError> {
        if self.header.is_anonymous() {
            return Ok((0, self.sequence_position));
        }
        if !self.header.is_sparse() {
            return Ok((self.before.saturating_add(1), self.sequence_position));
        }
        let mut rest = self.batch.get(self.sequence_position..).unwrap_or_default();
        let delta = leb128::take(&mut rest).map_err(|fault| RecordError::Number { field: "sequence", fault })?;
        Ok((self.before.saturating_add(delta), self.batch.len() - rest.len()))
    }

    /// Moves over the next record and returns its sequence and its body's place.
    fn step(&mut self) -> Result<(u64, Range<usize>), RecordError> {
        let (sequence, sequence_position) = self.sequence()?;
        let mut rest = self.batch.get(self.position..).unwrap_or_default();
        let body_len = take_bytes(&mut rest, "length")?.len();
        let end = self.batch.len() - rest.len();
        if self.remaining == 1 && !rest.is_empty() {
            return Err(RecordError::TrailingBytes { bytes: rest.len() });
        }
        self.sequence_position = sequence_position;
        self.before = sequence;
        self.position = end;
        self.remaining -= 1;
        Ok((sequence, end - body_len..end))
    }
}

/// Bytes that the block of `count` sequences takes at the front of `content`.
fn sequences_len(content: &[u8], count: u32) -> Result<usize, BatchError> {
    let mut rest = content;
    for index in 0..count {
        leb128::take(&mut rest).map_err(|fault| BatchError::SequenceNumber { index, fault })?;
    }
    Ok(content.len() - rest.len())
}

impl Iterator for BatchRecords {
    type Item = Result<(Sequence, Record), RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.remaining == 0 {
            return None;
        }
        let decoded = self.step().and_then(|(sequence, place)| {
            let body = self.batch.get(place).unwrap_or_default();
            Ok((Sequence::new(sequence), Record::decode_part(&self.batch, body)?))
        });
        if decoded.is_err() {
            self.remaining = 0;
        }
        Some(decoded)
    }

    fn nth(&mut self, count: usize) -> Option<Self::Item> {
        for _ in 0..count {
            if self.remaining == 0 {
                return None;
            }
            if let Err(error) = self.step() {
                self.remaining = 0;
                return Some(Err(error));
            }
        }
        self.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let remaining = self.remaining as usize;
        (remaining.min(1), Some(remaining))
    }
}

impl FusedIterator for BatchRecords {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch_builder::BatchBuilder;
    use crate::limits::Limits;
    use crate::position::StreamId;

    fn filled(count: u32) -> BatchBuilder {
        let mut builder = BatchBuilder::new();
        for index in 0..count {
            builder.push_value(format!("value {index}").as_bytes(), &Limits::default()).unwrap();
        }
        builder
    }

    fn sequences(batch: &Bytes) -> Vec<u64> {
        BatchRecords::new(batch).unwrap().map(|item| item.unwrap().0.get()).collect()
    }

    #[test]
    fn each_kind_of_batch_gives_its_sequences() {
        let stream = StreamId::new(1);
        assert_eq!(sequences(&filled(3).finish_dense(stream, Sequence::new(9))), [9, 10, 11]);
        assert_eq!(sequences(&filled(3).finish_anonymous(stream)), [0, 0, 0]);
        let chosen = [12, 500, 1 << 40].map(Sequence::new);
        let sparse = filled(3).finish_sparse(stream, Sequence::new(2), &chosen).unwrap();
        assert_eq!(sequences(&sparse), [12, 500, 1 << 40]);
    }

    #[test]
    fn passing_over_records_keeps_sequences_and_values_together() {
        let chosen = [12, 500, 501, 1 << 40].map(Sequence::new);
        let batch = filled(4).finish_sparse(StreamId::new(1), Sequence::NONE, &chosen).unwrap();
        let mut records = BatchRecords::new(&batch).unwrap();
        assert_eq!(records.next_sequence(), Some(chosen[0]));
        let (sequence, record) = records.nth(2).unwrap().unwrap();
        assert_eq!((sequence, &record.value[..]), (chosen[2], &b"value 2"[..]));
        assert_eq!((records.next_sequence(), records.remaining()), (Some(chosen[3]), 1));
        assert!(records.nth(1).is_none());
        assert_eq!((records.next_sequence(), records.remaining()), (None, 0));
    }

    #[test]
    fn unchecked_bytes_end_in_one_error() {
        let mut batch = filled(3).finish_anonymous(StreamId::new(1)).to_vec();
        batch[BATCH_HEADER_LEN] = 0x7f;
        let mut records = BatchRecords::new(&Bytes::from(batch)).unwrap();
        assert!(matches!(records.next(), Some(Err(RecordError::Overrun { field: "length", claimed: 0x7f, .. }))));
        assert!(records.next().is_none() && records.nth(5).is_none());
    }

    #[test]
    fn bytes_behind_the_last_record_are_an_error_for_whoever_passes_over_them_too() {
        let mut batch = filled(3).finish_anonymous(StreamId::new(1)).to_vec();
        batch[8] = 2;
        let batch = Bytes::from(batch);
        let trailing = RecordError::TrailingBytes { bytes: 9 };
        assert_eq!(BatchRecords::new(&batch).unwrap().last(), Some(Err(trailing.clone())));
        assert_eq!(BatchRecords::new(&batch).unwrap().nth(7), Some(Err(trailing)));
    }

    #[test]
    fn a_block_of_sequences_that_is_cut_off_is_refused_at_once() {
        let chosen = [1, 2, 3].map(Sequence::new);
        let mut batch = filled(3).finish_sparse(StreamId::new(1), Sequence::NONE, &chosen).unwrap().to_vec();
        batch.truncate(BATCH_HEADER_LEN + 2);
        batch[12] = 2;
        let refused = BatchRecords::new(&Bytes::from(batch)).unwrap_err();
        assert!(matches!(refused, BatchError::SequenceNumber { index: 2, .. }));
    }
}
