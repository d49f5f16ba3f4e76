//! Builds batches one record at a time, in one buffer that is reused.

use bytes::{BufMut, Bytes, BytesMut};

use crate::batch::BatchError;
use crate::batch_header::{BATCH_HEADER_LEN, BATCH_VERSION, BatchFlags, BatchHeader, CRC_LEN};
use crate::checksum::{append, hasher_of};
use crate::leb128::{self, Buffer};
use crate::limits::{BATCH_RECORDS_MAX, Limits};
use crate::position::{Sequence, StreamId};
use crate::record::{Record, RecordError, check_value};

/// Bytes to allocate at once, at least: for one batch, or some that are smaller.
///
/// Not more: a producer of a thousand streams has as many builders, and what it writes to in turn has to fit the
/// processor's caches. With 64 KiB for each, half of such a producer's time went by waiting for memory.
const BUFFER_BYTES: usize = 4 << 10;
/// Buffers have multiples of so many bytes, so that one that was given up fits the next batch.
const BUFFER_BYTES_STEP: usize = 1 << 10;
/// Bytes to allocate at once because earlier batches were as large, at most.
const BUFFER_BYTES_MAX: usize = 320 << 10;

/// A batch under construction.
///
/// What it finishes passes [`check_batch`](crate::check_batch) under the limits it was filled with. A finished batch
/// leaves the builder empty and ready for the next.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    /// Room for the header, then the records. Empty while there is no record.
    buffer: BytesMut,
    // Numbers of 32 bits, so that all of it fits a cache line: whoever has a thousand of them goes from one to the other.
    count: u32,
    /// Bytes of the records counted in, lengths included.
    content_len: u32,
    /// Where the last record's body starts in `buffer`.
    last_body: u32,
    /// The limit for the content, from the limits of the last push.
    content_bytes_max: u32,
    /// Bytes that the next batch is made room for.
    expected: u32,
}

impl BatchBuilder {
    /// An empty builder; it allocates with the first record.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a record.
    ///
    /// # Errors
    /// [`RecordError`] if the record is beyond a limit, or [`RecordError::BatchFull`] if the batch has no room for it;
    /// the builder is unchanged.
    pub fn push(&mut self, record: &Record, limits: &Limits) -> Result<(), RecordError> {
        record.check(limits)?;
        self.start_record(record.encoded_len(), limits)?;
        record.encode_into(&mut self.buffer);
        Ok(())
    }

    /// Appends a record of only a value: the same as [`push`](Self::push) of `Record::new(value)`, without making one.
    ///
    /// # Errors
    /// As for [`push`](Self::push).
    pub fn push_value(&mut self, value: &[u8], limits: &Limits) -> Result<(), RecordError> {
        check_value(value, limits)?;
        self.start_record(value_body_len(value), limits)?;
        self.buffer.put_u8(0);
        self.buffer.put_slice(value);
        Ok(())
    }

    /// Counts a record in whose body is written later by [`write_body`](Self::write_body): whoever has many builders
    /// writes to memory that is at hand, and to each of them some records at a time. All that was counted in must be
    /// written, in the same order, before the batch is finished or a record is pushed.
    ///
    /// # Errors
    /// As for [`push`](Self::push).
    pub fn count_in(&mut self, record: &Record, limits: &Limits) -> Result<(), RecordError> {
        record.check(limits)?;
        self.count_body(record.encoded_len(), limits).map(drop)
    }

    /// [`count_in`](Self::count_in) for a record of only a value.
    ///
    /// # Errors
    /// As for [`push`](Self::push).
    pub fn count_value_in(&mut self, value: &[u8], limits: &Limits) -> Result<(), RecordError> {
        check_value(value, limits)?;
        self.count_body(value_body_len(value), limits).map(drop)
    }

    /// Writes the [body](Record::encode_into) of the next record that was counted in.
    pub fn write_body(&mut self, body: &[u8]) {
        self.write_len(body.len(), entry_len(body.len()));
        self.buffer.put_slice(body);
    }

    /// Counts a record in and writes its length; the caller writes the body.
    #[inline]
    fn start_record(&mut self, body_len: usize, limits: &Limits) -> Result<(), RecordError> {
        let entry_len = self.count_body(body_len, limits)?;
        self.write_len(body_len, entry_len);
        Ok(())
    }

    /// Gives the bytes that the record takes, its length included.
    #[inline]
    fn count_body(&mut self, body_len: usize, limits: &Limits) -> Result<usize, RecordError> {
        let entry_len = entry_len(body_len);
        let content_len = self.content_len() + entry_len;
        let content_bytes_max = u32::try_from(limits.content_bytes_max(self.count + 1)).unwrap_or(u32::MAX);
        if self.count >= limits.batch_records_bound() || content_len > content_bytes_max as usize {
            return Err(RecordError::BatchFull { count: self.count, content_len: self.content_len() });
        }
        self.count += 1;
        // Fits: it is within a limit that does.
        self.content_len = content_len as u32;
        self.content_bytes_max = content_bytes_max;
        Ok(entry_len)
    }

    #[inline]
    fn write_len(&mut self, body_len: usize, entry_len: usize) {
        if self.buffer.is_empty() {
            self.reserve_first(BATCH_HEADER_LEN + entry_len);
            self.buffer.put_bytes(0, BATCH_HEADER_LEN);
        } else {
            self.reserve(entry_len);
        }
        leb128::put(&mut Buffer(&mut self.buffer), body_len as u64);
        self.last_body = self.buffer.len() as u32;
    }

    /// Makes room for the first record of a batch, and for as many behind it as the batch before had. Small batches share
    /// an allocation: a new one is made only when the last is used up.
    fn reserve_first(&mut self, bytes: usize) {
        let expected = bytes.max(self.expected as usize);
        if !self.buffer.try_reclaim(expected) {
            self.buffer = BytesMut::with_capacity(expected.max(BUFFER_BYTES));
        }
    }

    /// Bytes that a buffer for the next batch should have, if there is no record and no room for such a batch.
    #[must_use]
    pub fn wants_buffer(&self) -> Option<usize> {
        let expected = self.expected as usize;
        let lacks_room = self.buffer.is_empty() && self.buffer.capacity() < expected.max(1);
        lacks_room.then_some(expected.max(BUFFER_BYTES))
    }

    /// Writes the next batch to this buffer, which is empty, rather than to one that would have to be allocated. Without
    /// effect if a batch is begun.
    pub fn use_buffer(&mut self, buffer: BytesMut) {
        if self.buffer.is_empty() && buffer.is_empty() {
            self.buffer = buffer;
        }
    }

    /// Makes room for `bytes` more, and doubles it for a batch that becomes larger than expected.
    #[inline]
    fn reserve(&mut self, bytes: usize) {
        if self.buffer.capacity() - self.buffer.len() < bytes {
            self.buffer.reserve(bytes.max(self.buffer.len().min(BUFFER_BYTES_MAX)));
        }
    }

    /// Whether `record` still fits when the records' bytes may be `content_bytes_max` in all; always true if the batch
    /// is empty. The block of sequences of a sparse batch comes on top: leave
    /// [`SEQUENCE_DELTA_BYTES_MAX`](crate::SEQUENCE_DELTA_BYTES_MAX) for each record.
    #[must_use]
    pub fn fits(&self, record: &Record, content_bytes_max: usize) -> bool {
        self.has_room(record.encoded_len(), content_bytes_max)
    }

    /// [`fits`](Self::fits) for a record of only a value.
    #[must_use]
    pub fn fits_value(&self, value: &[u8], content_bytes_max: usize) -> bool {
        self.has_room(value_body_len(value), content_bytes_max)
    }

    fn has_room(&self, body_len: usize, content_bytes_max: usize) -> bool {
        let behind = self.content_len() + entry_len(body_len);
        self.is_empty() || (self.count < BATCH_RECORDS_MAX && behind <= content_bytes_max)
    }

    /// Records pushed since the last batch.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of the records pushed since the last batch, lengths included.
    #[must_use]
    pub fn content_len(&self) -> usize {
        self.content_len as usize
    }

    /// Whether nothing was pushed since the last batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The batch of a named producer whose records have consecutive sequences from `first` on.
    ///
    /// # Panics
    /// If nothing was pushed, `first` is 0, or the last sequence would pass [`Sequence::MAX`].
    pub fn finish_dense(&mut self, stream: StreamId, first: Sequence) -> Bytes {
        assert!(first > Sequence::NONE, "sequences start at 1");
        let last = first.checked_add(u64::from(self.count).saturating_sub(1));
        let last = last.filter(|last| *last <= Sequence::MAX).expect("the sequences of a batch end at 2^63 - 1");
        let previous = Sequence::new(first.get() - 1);
        self.finish(BatchFlags::DENSE, stream, [first, last, previous])
    }

    /// The batch of a producer without a name.
    ///
    /// # Panics
    /// If nothing was pushed.
    pub fn finish_anonymous(&mut self, stream: StreamId) -> Bytes {
        self.finish(BatchFlags::ANONYMOUS, stream, [Sequence::NONE; 3])
    }

    /// The batch of a named producer that numbers its records itself: one of `sequences` for each record, rising, all
    /// above `previous`, which is what the producer sent before.
    ///
    /// # Errors
    /// [`BatchError`] if the sequences are not such, or the batch would be too large with them; the builder is
    /// unchanged.
    pub fn finish_sparse(
        &mut self,
        stream: StreamId,
        previous: Sequence,
        sequences: &[Sequence],
    ) -> Result<Bytes, BatchError> {
        if self.is_empty() {
            return Err(BatchError::NoRecords);
        }
        let count = self.count;
        if sequences.len() as u64 != u64::from(count) {
            return Err(BatchError::SequenceCount { count, sequences: sequences.len() });
        }
        let (Some(&first), Some(&last)) = (sequences.first(), sequences.last()) else {
            return Err(BatchError::NoRecords);
        };
        let mut before = previous;
        let mut block_len = 0;
        for (index, &sequence) in (0u32..).zip(sequences) {
            if sequence <= before || sequence > Sequence::MAX {
                return Err(BatchError::SequenceOrder { index });
            }
            block_len += leb128::encoded_len(sequence.get() - before.get());
            before = sequence;
        }
        let content_len = block_len + self.content_len();
        let max = self.content_bytes_max as usize;
        if content_len > max {
            return Err(BatchError::ContentTooLarge { count, bytes: content_len, max });
        }
        self.insert_sequences(previous, sequences, block_len);
        Ok(self.finish(BatchFlags::SPARSE, stream, [first, last, previous]))
    }

    /// Puts the block of sequences before the records, which are copied once for it.
    fn insert_sequences(&mut self, previous: Sequence, sequences: &[Sequence], block_len: usize) {
        let records = self.buffer.split();
        self.buffer.reserve(records.len() + block_len);
        self.buffer.put_bytes(0, BATCH_HEADER_LEN);
        let mut before = previous;
        for &sequence in sequences {
            leb128::put(&mut Buffer(&mut self.buffer), sequence.get() - before.get());
            before = sequence;
        }
        self.buffer.put_slice(records.get(BATCH_HEADER_LEN..).unwrap_or_default());
        // Checked to be within the limit.
        self.last_body += block_len as u32;
        self.content_len += block_len as u32;
    }

    /// Fills in the header and hands the batch out.
    fn finish(&mut self, flags: BatchFlags, stream: StreamId, [first, last, previous]: [Sequence; 3]) -> Bytes {
        assert!(!self.is_empty(), "a batch has at least one record");
        let written = self.buffer.len().saturating_sub(BATCH_HEADER_LEN);
        assert_eq!(written, self.content_len(), "all that was counted in was written");
        let content_len = self.content_len;
        let mut batch = self.buffer.split();
        // The next one is seldom larger by more than a quarter.
        self.expected =
            (batch.len() + batch.len() / 4).next_multiple_of(BUFFER_BYTES_STEP).min(BUFFER_BYTES_MAX) as u32;
        let (before, last_body) = batch.split_at(self.last_body as usize);
        let (_, before) = before.split_at(BATCH_HEADER_LEN);
        let mut header = BatchHeader {
            content_crc: 0,
            version: BATCH_VERSION,
            codec: 0,
            flags,
            count: self.count,
            content_len,
            stream,
            first,
            last,
            previous,
            last_record_crc: 0,
        };
        // The header holds the last record's checksum, and is itself below the whole one.
        let last_record = hasher_of(last_body);
        header.last_record_crc = last_record.clone().finalize();
        let mut whole = hasher_of(header.encode().split_at(CRC_LEN).1);
        whole.update(before);
        append(&mut whole, &last_record, last_body);
        header.content_crc = whole.finalize();
        batch.split_at_mut(BATCH_HEADER_LEN).0.copy_from_slice(&header.encode());
        self.count = 0;
        self.content_len = 0;
        self.last_body = 0;
        batch.freeze()
    }
}

fn value_body_len(value: &[u8]) -> usize {
    1 + value.len()
}

/// Bytes of a record in the content: its length and its body.
fn entry_len(body_len: usize) -> usize {
    leb128::encoded_len(body_len as u64) + body_len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::check_batch;
    use crate::limits::BATCH_CONTENT_BYTES_MAX;

    const STREAM: StreamId = StreamId::new(3);

    fn with(values: &[&[u8]]) -> BatchBuilder {
        let mut builder = BatchBuilder::new();
        for value in values {
            builder.push_value(value, &Limits::default()).unwrap();
        }
        builder
    }

    #[test]
    fn a_pushed_value_is_the_record_with_only_that_value() {
        let mut builder = BatchBuilder::new();
        builder.push(&Record::new("value"), &Limits::default()).unwrap();
        assert_eq!(builder.finish_anonymous(STREAM), with(&[b"value"]).finish_anonymous(STREAM));
    }

    #[test]
    fn records_counted_in_first_and_written_later_make_the_same_batch() {
        let limits = Limits::default();
        let record = Record::new("value").with_key("key");
        let mut builder = BatchBuilder::new();
        builder.count_in(&record, &limits).unwrap();
        builder.count_value_in(b"b", &limits).unwrap();
        assert_eq!(builder.count(), 2);
        let mut body = Vec::new();
        record.encode_into(&mut body);
        builder.write_body(&body);
        builder.write_body(b"\0b");
        let mut pushed = BatchBuilder::new();
        pushed.push(&record, &limits).unwrap();
        pushed.push_value(b"b", &limits).unwrap();
        assert_eq!(builder.content_len(), pushed.content_len());
        assert_eq!(builder.finish_anonymous(STREAM), pushed.finish_anonymous(STREAM));
    }

    #[test]
    #[should_panic(expected = "all that was counted in was written")]
    fn a_batch_is_not_finished_without_what_was_counted_in() {
        let mut builder = with(&[b"a"]);
        builder.count_value_in(b"b", &Limits::default()).unwrap();
        builder.finish_anonymous(STREAM);
    }

    #[test]
    fn a_buffer_that_is_handed_in_is_used_where_room_is_wanted() {
        let mut builder = BatchBuilder::new();
        let wanted = builder.wants_buffer().unwrap();
        let buffer = BytesMut::with_capacity(wanted);
        let start = buffer.as_ptr();
        builder.use_buffer(buffer);
        assert_eq!(builder.wants_buffer(), None);
        builder.push_value(b"a", &Limits::default()).unwrap();
        builder.use_buffer(BytesMut::with_capacity(wanted));
        let batch = builder.finish_anonymous(STREAM);
        assert_eq!((batch.as_ptr(), &batch), (start, &with(&[b"a"]).finish_anonymous(STREAM)));
        assert_eq!(builder.wants_buffer(), None, "small batches share one");
    }

    #[test]
    fn a_batch_that_outgrows_its_room_is_whole() {
        let limits = Limits::default();
        let mut builder = with(&[b"a"]);
        builder.finish_anonymous(STREAM);
        let value = [7; 1_000];
        (0..200).for_each(|_| builder.push_value(&value, &limits).unwrap());
        let large = builder.finish_anonymous(STREAM);
        assert_eq!(check_batch(&large, &limits).unwrap().count, 200);
        assert!(builder.wants_buffer().is_some_and(|bytes| bytes > large.len()));
    }

    #[test]
    fn a_finished_batch_leaves_the_builder_as_new() {
        let mut builder = with(&[b"a", b"b"]);
        let before = builder.finish_dense(STREAM, Sequence::new(1));
        assert!(builder.is_empty() && builder.content_len() == 0 && builder.count() == 0);
        builder.push_value(b"c", &Limits::default()).unwrap();
        let behind = builder.finish_dense(STREAM, Sequence::new(3));
        assert_eq!(behind, with(&[b"c"]).finish_dense(STREAM, Sequence::new(3)));
        assert_eq!(before, with(&[b"a", b"b"]).finish_dense(STREAM, Sequence::new(1)));
    }

    #[test]
    fn small_batches_share_an_allocation() {
        let mut builder = with(&[b"a"]);
        let first = builder.finish_anonymous(STREAM);
        builder.push_value(b"b", &Limits::default()).unwrap();
        let second = builder.finish_anonymous(STREAM);
        assert_eq!(first.as_ptr_range().end, second.as_ptr());
    }

    #[test]
    fn a_record_beyond_a_limit_leaves_the_builder_unchanged() {
        let limits = Limits { record_bytes_max: 4, ..Limits::default() };
        let mut builder = with(&[b"a"]);
        assert_eq!(builder.push_value(b"12345", &limits), Err(RecordError::TooLarge { bytes: 5, max: 4 }));
        let refused = builder.push(&Record::new("12345"), &limits);
        assert_eq!(refused, Err(RecordError::TooLarge { bytes: 5, max: 4 }));
        assert_eq!(builder.finish_anonymous(STREAM), with(&[b"a"]).finish_anonymous(STREAM));
    }

    #[test]
    fn the_largest_record_fits_a_batch_of_its_own_and_nothing_fits_beside_it() {
        let limits = Limits::default();
        let value = vec![7; limits.record_bytes_max as usize];
        let mut builder = BatchBuilder::new();
        assert!(builder.fits_value(&value, 10));
        builder.push_value(&value, &limits).unwrap();
        assert!(!builder.fits(&Record::new(""), BATCH_CONTENT_BYTES_MAX as usize));
        assert!(matches!(builder.push_value(b"", &limits), Err(RecordError::BatchFull { count: 1, .. })));
        let batch = builder.finish_sparse(STREAM, Sequence::NONE, &[Sequence::MAX]).unwrap();
        assert_eq!(check_batch(&batch, &limits).unwrap().last, Sequence::MAX);
        assert!(batch.len() + 32 + 8 <= limits.frame_bytes_max());
    }

    #[test]
    fn a_full_batch_of_many_records_passes_the_brokers_check() {
        let limits = Limits { batch_content_bytes_max: 1000, ..Limits::default() };
        let mut builder = BatchBuilder::new();
        let record = Record::new("0123456789");
        while builder.fits(&record, 1000) {
            builder.push(&record, &limits).unwrap();
        }
        assert!(matches!(builder.push(&record, &limits), Err(RecordError::BatchFull { count: 83, content_len: 996 })));
        assert!(check_batch(&builder.finish_anonymous(STREAM), &limits).is_ok());
    }

    #[test]
    fn the_number_of_records_is_limited_however_small_they_are() {
        let limits = Limits::default();
        let mut builder = BatchBuilder::new();
        while builder.fits_value(b"", usize::MAX) {
            builder.push_value(b"", &limits).unwrap();
        }
        assert_eq!(builder.count(), BATCH_RECORDS_MAX);
        assert!(matches!(builder.push_value(b"", &limits), Err(RecordError::BatchFull { .. })));
        assert!(check_batch(&builder.finish_anonymous(STREAM), &limits).is_ok());
    }

    #[test]
    fn sequences_that_do_not_rise_are_refused_and_the_records_stay() {
        let mut builder = with(&[b"a", b"b"]);
        let mut finish = |previous: u64, chosen: &[u64]| -> Result<Bytes, BatchError> {
            let chosen: Vec<_> = chosen.iter().copied().map(Sequence::new).collect();
            builder.finish_sparse(STREAM, Sequence::new(previous), &chosen)
        };
        assert_eq!(finish(0, &[1]), Err(BatchError::SequenceCount { count: 2, sequences: 1 }));
        assert_eq!(finish(5, &[5, 6]), Err(BatchError::SequenceOrder { index: 0 }));
        assert_eq!(finish(5, &[7, 7]), Err(BatchError::SequenceOrder { index: 1 }));
        assert_eq!(finish(5, &[7, 1 << 63]), Err(BatchError::SequenceOrder { index: 1 }));
        assert!(check_batch(&finish(5, &[7, (1 << 63) - 1]).unwrap(), &Limits::default()).is_ok());
        assert_eq!(finish(5, &[]), Err(BatchError::NoRecords));
    }

    #[test]
    fn a_block_of_sequences_that_does_not_fit_is_told_and_the_records_stay() {
        let limits = Limits { batch_content_bytes_max: 8, ..Limits::default() };
        let mut builder = BatchBuilder::new();
        builder.push_value(b"a", &limits).unwrap();
        builder.push_value(b"b", &limits).unwrap();
        let refused = builder.finish_sparse(STREAM, Sequence::NONE, &[Sequence::new(1), Sequence::new(129)]);
        assert_eq!(refused, Err(BatchError::ContentTooLarge { count: 2, bytes: 9, max: 8 }));
        let finished = builder.finish_sparse(STREAM, Sequence::NONE, &[Sequence::new(1), Sequence::new(128)]);
        assert!(check_batch(&finished.unwrap(), &limits).is_ok());
    }

    #[test]
    #[should_panic(expected = "at least one record")]
    fn an_empty_batch_is_a_bug_of_the_caller() {
        let _ = BatchBuilder::new().finish_anonymous(STREAM);
    }
}
