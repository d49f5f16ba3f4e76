//! A producer's window: what was handed to it and is not durable yet, in the order in which it is sent. Pure: no socket,
//! no clock, no task.
//!
//! Records gather in one open batch for each stream. A closed batch keeps its bytes until the broker has answered that
//! they are durable, so that after a lost connection the very same bytes are sent again, in the same order. Answers come
//! in the order of sending, so that one queue and two counters are all that is needed.

use std::collections::VecDeque;

use bytes::Bytes;
use tidelog_protocol::{
    Answer, BATCH_HEADER_LEN, BatchBuilder, ErrorCode, Limits, Offset, Outcome, Record, Sequence, StreamId, StreamName,
};

use crate::error::Error;

/// A batch is closed when it would grow beyond this; larger ones gain nothing and make answers coarse.
const BATCH_CONTENT_BYTES_PREFERRED: usize = 256 * 1024;

/// While this many batches are unanswered, small ones wait for company instead of being sent: their turn comes with the
/// next answer, before which they could not have become durable anyway.
const SMALL_IN_FLIGHT_MAX: usize = 4;

/// A batch of this size needs no company.
const BATCH_CONTENT_BYTES_SMALL: usize = 64 * 1024;

/// Batches that are not durable yet, open ones included.
pub(crate) const BATCHES_MAX: usize = 1024;

/// Receipts that wait to be taken, over all streams; further records wait until some are.
const RECEIPTS_MAX: usize = 4096;

/// The broker's word on one batch: its records are durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// Sequence of the batch's first record; [`Sequence::NONE`] if the producer is anonymous.
    pub first: Sequence,
    /// Sequence of its last record.
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
}

/// What is appended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Body<'a> {
    Record(&'a Record),
    Value(&'a [u8]),
}

/// Whether a record was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Push {
    /// It is in the window. `wake`: there is something to send now.
    Taken { sequence: Sequence, wake: bool },
    /// No room; nothing was changed.
    Full,
}

/// What an answers frame meant.
#[derive(Debug)]
pub(crate) enum Settled {
    /// All of it was final.
    Final,
    /// A batch was refused for now: this attachment is of no more use, the window is to be sent again later.
    SendAgain(Error),
}

/// A closed batch.
#[derive(Debug)]
struct Batch {
    slot: usize,
    bytes: Bytes,
    first: Sequence,
    last: Sequence,
    count: u32,
}

/// Where a publisher stands in its stream, and what it has in the window.
#[derive(Debug)]
pub(crate) struct StreamWindow {
    pub(crate) id: StreamId,
    pub(crate) name: StreamName,
    /// Sequence of the next record; stays [`Sequence::NONE`] for anonymous producers.
    next: Sequence,
    builder: BatchBuilder,
    /// Records taken in, and those of them whose answer is final.
    pub(crate) pushed: u64,
    pub(crate) settled: u64,
    /// The highest sequence that the broker called durable.
    pub(crate) told: Sequence,
    pub(crate) last_offset: Option<Offset>,
    pub(crate) published: u64,
    pub(crate) duplicates: u64,
    receipts: VecDeque<Receipt>,
    pub(crate) closed: bool,
    pub(crate) failure: Option<Error>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Window {
    anonymous: bool,
    limits: Limits,
    bytes_max: usize,
    content_bytes_max: usize,
    collect_receipts: bool,
    /// Closed batches, the oldest first. The first `sent` of them were handed to the present attachment.
    queue: VecDeque<Batch>,
    sent: usize,
    /// Ordinal of the last batch answered on the present attachment; the front of `queue` has the next.
    pub(crate) answered: u64,
    /// Bytes of all batches, open ones included.
    bytes: usize,
    /// Streams with an open batch, in the order of their first record.
    open: VecDeque<usize>,
    /// Whether some open batch needs no company.
    large_open: bool,
    streams: Vec<StreamWindow>,
    receipts: usize,
    /// Ends everything; the first one stays.
    pub(crate) failure: Option<Error>,
}

impl Window {
    pub(crate) fn new(anonymous: bool, bytes_max: usize, limits: Limits, collect_receipts: bool) -> Self {
        Self {
            anonymous,
            content_bytes_max: BATCH_CONTENT_BYTES_PREFERRED.min(limits.batch_content_bytes_max as usize),
            limits,
            bytes_max,
            collect_receipts,
            queue: VecDeque::new(),
            sent: 0,
            answered: 0,
            bytes: 0,
            open: VecDeque::new(),
            large_open: false,
            streams: Vec::new(),
            receipts: 0,
            failure: None,
        }
    }

    /// The slot of a stream that is already known.
    pub(crate) fn slot_of(&self, id: StreamId) -> Option<usize> {
        self.streams.iter().position(|stream| stream.id == id)
    }

    /// Adds a stream that holds this producer's records up to `last`, or finds it.
    pub(crate) fn add_stream(
        &mut self,
        id: StreamId,
        name: StreamName,
        last: Sequence,
        last_offset: Option<Offset>,
    ) -> usize {
        if let Some(slot) = self.slot_of(id) {
            self.stream_mut(slot).closed = false;
            return slot;
        }
        let next = if self.anonymous { Sequence::NONE } else { Sequence::new(last.get() + 1) };
        self.streams.push(StreamWindow {
            id,
            name,
            next,
            builder: BatchBuilder::new(),
            pushed: 0,
            settled: 0,
            told: last,
            last_offset,
            published: 0,
            duplicates: 0,
            receipts: VecDeque::new(),
            closed: false,
            failure: None,
        });
        self.streams.len() - 1
    }

    pub(crate) fn stream(&self, slot: usize) -> &StreamWindow {
        self.streams.get(slot).expect("slots come from add_stream and are never removed")
    }

    pub(crate) fn stream_mut(&mut self, slot: usize) -> &mut StreamWindow {
        self.streams.get_mut(slot).expect("slots come from add_stream and are never removed")
    }

    pub(crate) fn streams(&self) -> impl Iterator<Item = (usize, &StreamWindow)> {
        self.streams.iter().enumerate()
    }

    /// Nothing is waiting to become durable.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.open.is_empty()
    }

    /// Why `slot` takes no more records.
    pub(crate) fn failure_of(&self, slot: usize) -> Option<Error> {
        let stream = self.stream(slot);
        self.failure.clone().or_else(|| stream.failure.clone()).or_else(|| stream.closed.then_some(Error::Closed))
    }

    /// Takes a record in if there is room. A single record is always taken by an empty window.
    pub(crate) fn push(&mut self, slot: usize, body: Body<'_>) -> Result<Push, Error> {
        if let Some(failure) = self.failure_of(slot) {
            return Err(failure);
        }
        let len = match body {
            Body::Record(record) => record.encoded_len(),
            Body::Value(value) => value.len(),
        };
        if self.collect_receipts && self.receipts >= RECEIPTS_MAX || self.bytes > 0 && self.bytes + len > self.bytes_max
        {
            return Ok(Push::Full);
        }
        let builder = &self.stream(slot).builder;
        let fits = match body {
            Body::Record(record) => builder.fits(record, self.content_bytes_max),
            Body::Value(value) => builder.fits_value(value, self.content_bytes_max),
        } && builder.count() < self.limits.batch_records_max;
        let starts_batch = builder.is_empty() || !fits;
        if starts_batch && self.queue.len() + self.open.len() >= BATCHES_MAX {
            return Ok(Push::Full);
        }
        if !fits {
            self.close_batch(slot);
        }
        let limits = &self.limits;
        let stream = self.streams.get_mut(slot).expect("slots come from add_stream and are never removed");
        let before = stream.builder.content_len();
        match body {
            Body::Record(record) => stream.builder.push(record, limits)?,
            Body::Value(value) => stream.builder.push_value(value, limits)?,
        }
        let content_len = stream.builder.content_len();
        let sequence = stream.next;
        if !self.anonymous {
            stream.next = Sequence::new(sequence.get() + 1);
        }
        stream.pushed += 1;
        self.bytes += content_len - before;
        if starts_batch {
            self.bytes += BATCH_HEADER_LEN;
            self.open.push_back(slot);
        }
        let grown_up = content_len >= BATCH_CONTENT_BYTES_SMALL;
        self.large_open |= grown_up;
        let wake = !fits || self.sent < SMALL_IN_FLIGHT_MAX || grown_up && before < BATCH_CONTENT_BYTES_SMALL;
        Ok(Push::Taken { sequence, wake })
    }

    fn close_batch(&mut self, slot: usize) {
        if self.open.front() == Some(&slot) {
            self.open.pop_front();
        } else {
            self.open.retain(|open| *open != slot);
        }
        let anonymous = self.anonymous;
        let stream = self.stream_mut(slot);
        let count = stream.builder.count();
        let (first, last, bytes) = if anonymous {
            (Sequence::NONE, Sequence::NONE, stream.builder.finish_anonymous(stream.id))
        } else {
            let first = Sequence::new(stream.next.get() - u64::from(count));
            (first, Sequence::new(stream.next.get() - 1), stream.builder.finish_dense(stream.id, first))
        };
        self.queue.push_back(Batch { slot, bytes, first, last, count });
    }

    /// The next batch to write, if any is due; it counts as sent.
    pub(crate) fn next_unsent(&mut self) -> Option<Bytes> {
        if self.sent == self.queue.len() {
            self.close_due();
        }
        let batch = self.queue.get(self.sent)?;
        self.sent += 1;
        Some(batch.bytes.clone())
    }

    fn close_due(&mut self) {
        if self.sent < SMALL_IN_FLIGHT_MAX {
            while let Some(&slot) = self.open.front() {
                self.close_batch(slot);
            }
        } else if self.large_open {
            let large = |slot: &usize| self.stream(*slot).builder.content_len() >= BATCH_CONTENT_BYTES_SMALL;
            let due: Vec<usize> = self.open.iter().copied().filter(large).collect();
            for slot in due {
                self.close_batch(slot);
            }
        } else {
            return;
        }
        self.large_open = false;
    }

    /// Applies the answers to the batches with ordinals up to `up_to`.
    ///
    /// # Errors
    ///
    /// An error ends the whole producer: it is fenced, or the broker answers what was not sent. A refusal that concerns
    /// one stream for good ends only that stream.
    pub(crate) fn settle(&mut self, up_to: u64, answers: &[Answer]) -> Result<Settled, Error> {
        let next = up_to.checked_sub(answers.len() as u64);
        if next != Some(self.answered) || answers.len() > self.sent {
            return Err(Error::protocol(format!(
                "it answered {} batches up to number {up_to}, but {} were sent and {} answered before",
                answers.len(),
                self.answered + self.sent as u64,
                self.answered
            )));
        }
        for answer in answers {
            let Some(batch) = self.queue.front() else {
                return Err(Error::protocol("it answered a batch that was not sent"));
            };
            let slot = batch.slot;
            if let Outcome::Refused { code, detail } = answer.outcome {
                let failed = self.stream(slot).failure.is_some();
                let error = self.refusal(batch, code, detail);
                if !failed && error.is_retryable() {
                    return Ok(Settled::SendAgain(error));
                }
                if matches!(code, ErrorCode::Fenced | ErrorCode::Superseded | ErrorCode::Unauthorized) {
                    return Err(error);
                }
                self.pop_answered();
                if !failed {
                    self.fail_stream(slot, error);
                }
            } else {
                self.settle_stored(answer)?;
            }
        }
        Ok(Settled::Final)
    }

    fn settle_stored(&mut self, answer: &Answer) -> Result<(), Error> {
        let Some(batch) = self.pop_answered() else {
            return Err(Error::protocol("it answered a batch that was not sent"));
        };
        let duplicate = answer.outcome == Outcome::Duplicate;
        let skip = if duplicate { 0 } else { answer.skip };
        if skip >= batch.count {
            return Err(Error::protocol(format!("it skipped {skip} records of a batch of {}", batch.count)));
        }
        let kept = u64::from(batch.count - skip);
        let stream = self.stream_mut(batch.slot);
        stream.settled += u64::from(batch.count);
        stream.told = stream.told.max(batch.last);
        if duplicate {
            stream.duplicates += u64::from(batch.count);
        } else {
            stream.duplicates += u64::from(skip);
            stream.published += kept;
        }
        let last_offset = answer.base_offset.and_then(|base| base.checked_add(kept - 1));
        stream.last_offset = stream.last_offset.max(last_offset);
        if self.collect_receipts {
            self.receipts += 1;
            self.stream_mut(batch.slot).receipts.push_back(Receipt {
                first: batch.first,
                last: batch.last,
                count: batch.count,
                base_offset: answer.base_offset,
                skip,
                duplicate,
            });
        }
        Ok(())
    }

    fn pop_answered(&mut self) -> Option<Batch> {
        let batch = self.queue.pop_front()?;
        self.sent = self.sent.saturating_sub(1);
        self.answered += 1;
        self.bytes -= batch.bytes.len();
        Some(batch)
    }

    fn refusal(&self, batch: &Batch, code: ErrorCode, detail: u64) -> Error {
        let stream = &self.stream(batch.slot).name;
        let what = if self.anonymous {
            format!("{} records for '{stream}'", batch.count)
        } else {
            format!("sequences {} to {} for '{stream}'", batch.first, batch.last)
        };
        let why = match code {
            ErrorCode::SequenceGap => format!("{code}: the broker expects sequence {detail}"),
            ErrorCode::SequencePast | ErrorCode::SequenceOverlap => {
                format!("{code}: the broker has sequences up to {detail}")
            }
            _ => code.to_string(),
        };
        let detail = (detail != 0).then_some(detail);
        Error::refused(code, format!("the broker refused {what} ({why})"), detail)
    }

    /// Takes a receipt that was collected.
    pub(crate) fn take_receipt(&mut self, slot: usize) -> Option<Receipt> {
        let receipt = self.stream_mut(slot).receipts.pop_front()?;
        self.receipts -= 1;
        Some(receipt)
    }

    /// The attachment is gone: everything that is not answered is to be sent again, with ordinals from 1.
    pub(crate) fn start_anew(&mut self) {
        self.sent = 0;
        self.answered = 0;
        let (kept, dropped) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition::<VecDeque<_>, _>(|batch| self.stream(batch.slot).failure.is_none());
        self.queue = kept;
        self.bytes -= dropped.iter().map(|batch| batch.bytes.len()).sum::<usize>();
    }

    /// Compares what the broker has of a stream with what it told and what it was sent.
    pub(crate) fn check_last(&self, slot: usize, found: Sequence) -> Result<(), Error> {
        let stream = self.stream(slot);
        let sent = Sequence::new(stream.next.get().saturating_sub(1));
        if found < stream.told {
            return Err(Error::AcknowledgedLost { stream: stream.name.clone(), told: stream.told, found });
        }
        if found > sent {
            return Err(Error::WrittenByAnother { stream: stream.name.clone(), sent, found });
        }
        Ok(())
    }

    /// Ends one stream; what was not sent of it is given up, other streams go on.
    pub(crate) fn fail_stream(&mut self, slot: usize, error: Error) {
        self.stream_mut(slot).failure.get_or_insert(error);
        let mut index = 0;
        let sent = self.sent;
        let mut freed = 0;
        self.queue.retain(|batch| {
            // What is under way keeps its place: its answer is still to come.
            let keep = index < sent || batch.slot != slot;
            index += 1;
            if !keep {
                freed += batch.bytes.len();
            }
            keep
        });
        let builder = std::mem::take(&mut self.stream_mut(slot).builder);
        if !builder.is_empty() {
            freed += builder.content_len() + BATCH_HEADER_LEN;
            self.open.retain(|open| *open != slot);
        }
        self.bytes -= freed;
    }

    /// Ends everything.
    pub(crate) fn fail(&mut self, error: Error) {
        self.failure.get_or_insert(error);
    }
}

#[cfg(test)]
mod tests {
    use tidelog_protocol::{BatchHeader, check_batch};

    use super::*;

    const STORED: Answer = Answer { outcome: Outcome::Stored, base_offset: None, skip: 0 };
    const DUPLICATE: Answer = Answer { outcome: Outcome::Duplicate, base_offset: None, skip: 0 };

    fn refused(code: ErrorCode) -> Answer {
        Answer { outcome: Outcome::Refused { code, detail: 0 }, base_offset: None, skip: 0 }
    }

    fn window() -> Window {
        Window::new(false, 1 << 20, Limits::default(), true)
    }

    fn add(window: &mut Window, name: &str, last: u64) -> usize {
        let id = StreamId::new(100 + window.streams.len() as u64);
        window.add_stream(id, StreamName::new(name).unwrap(), Sequence::new(last), None)
    }

    fn push(window: &mut Window, slot: usize, value: &[u8]) -> Push {
        window.push(slot, Body::Value(value)).unwrap()
    }

    fn drain(window: &mut Window) -> Vec<Bytes> {
        std::iter::from_fn(|| window.next_unsent()).collect()
    }

    fn bounds(batch: &Bytes) -> (u64, u64) {
        let header: BatchHeader = check_batch(batch, &Limits::default()).unwrap();
        (header.first.get(), header.last.get())
    }

    #[test]
    fn an_idle_producers_record_leaves_at_once_and_a_busy_ones_travel_together() {
        let mut window = window();
        let slot = add(&mut window, "s", 0);
        for sequence in 1..=4 {
            assert_eq!(push(&mut window, slot, b"x"), Push::Taken { sequence: Sequence::new(sequence), wake: true });
            let sent = drain(&mut window);
            assert_eq!(sent.iter().map(bounds).collect::<Vec<_>>(), [(sequence, sequence)]);
        }
        for _ in 5..=50 {
            assert!(matches!(push(&mut window, slot, b"x"), Push::Taken { wake: false, .. }));
            assert!(drain(&mut window).is_empty());
        }
        window.settle(1, &[STORED]).unwrap();
        let sent = drain(&mut window);
        assert_eq!(sent.iter().map(bounds).collect::<Vec<_>>(), [(5, 50)]);
    }

    #[test]
    fn a_large_batch_does_not_wait_for_answers() {
        let mut window = window();
        let slot = add(&mut window, "s", 0);
        for _ in 0..SMALL_IN_FLIGHT_MAX {
            push(&mut window, slot, b"x");
            drain(&mut window);
        }
        assert!(matches!(push(&mut window, slot, &[0; 1000]), Push::Taken { wake: false, .. }));
        assert!(matches!(push(&mut window, slot, &[0; 65_000]), Push::Taken { wake: true, .. }));
        assert_eq!(drain(&mut window).len(), 1);
    }

    #[test]
    fn batches_stay_near_the_preferred_size() {
        let mut window = window();
        let slot = add(&mut window, "s", 0);
        while push(&mut window, slot, &[7; 10_000]) != Push::Full {}
        let sent = drain(&mut window);
        assert!(sent.len() >= 3);
        assert!(sent.iter().all(|batch| batch.len() <= BATCH_CONTENT_BYTES_PREFERRED + BATCH_HEADER_LEN));
    }

    #[test]
    fn a_full_window_refuses_and_an_empty_one_takes_any_record() {
        let mut window = Window::new(false, 1000, Limits::default(), false);
        let slot = add(&mut window, "s", 0);
        assert!(matches!(push(&mut window, slot, &[1; 5000]), Push::Taken { .. }));
        assert_eq!(push(&mut window, slot, b"y"), Push::Full);
        assert_eq!(window.stream(slot).pushed, 1);
        drain(&mut window);
        assert_eq!(push(&mut window, slot, b"y"), Push::Full);
        window.settle(1, &[STORED]).unwrap();
        assert!(window.is_empty());
        assert_eq!(window.bytes, 0);
        assert!(matches!(push(&mut window, slot, b"y"), Push::Taken { .. }));
    }

    #[test]
    fn batches_are_counted_too() {
        let mut window = window();
        let slots: Vec<usize> = (0..=BATCHES_MAX).map(|number| add(&mut window, &format!("s{number}"), 0)).collect();
        for &slot in &slots[..BATCHES_MAX] {
            assert!(matches!(push(&mut window, slot, b""), Push::Taken { .. }));
        }
        assert_eq!(push(&mut window, slots[BATCHES_MAX], b""), Push::Full);
        assert!(matches!(push(&mut window, slots[0], b""), Push::Taken { .. }), "an open batch takes more");
    }

    #[test]
    fn what_is_sent_again_is_the_same_in_the_same_order() {
        let mut window = window();
        let (a, b) = (add(&mut window, "a", 10), add(&mut window, "b", 0));
        let mut sent = Vec::new();
        for number in 0..3_u8 {
            push(&mut window, a, &[number]);
            push(&mut window, b, &[number; 2]);
            sent.extend(drain(&mut window));
        }
        assert_eq!(bounds(&sent[0]), (11, 11));
        window.settle(2, &[STORED, STORED]).unwrap();
        push(&mut window, a, b"late");
        window.start_anew();
        let again = drain(&mut window);
        assert_eq!(again[..sent.len() - 2], sent[2..]);
        // Ordinals start anew with the attachment.
        let answers = vec![DUPLICATE; again.len()];
        window.settle(again.len() as u64, &answers).unwrap();
        assert!(window.is_empty());
        assert_eq!(window.bytes, 0);
    }

    #[test]
    fn answers_count_records_offsets_and_receipts() {
        let mut window = window();
        let slot = add(&mut window, "s", 0);
        for _ in 0..3 {
            push(&mut window, slot, b"x");
        }
        drain(&mut window);
        push(&mut window, slot, b"y");
        drain(&mut window);
        let overlapping = Answer { outcome: Outcome::Stored, base_offset: Some(Offset::new(40)), skip: 1 };
        window.settle(2, &[overlapping, DUPLICATE]).unwrap();
        let stream = window.stream(slot);
        assert_eq!((stream.published, stream.duplicates), (2, 2));
        assert_eq!(stream.last_offset, Some(Offset::new(41)));
        assert_eq!((stream.told, stream.settled), (Sequence::new(4), 4));
        let receipt = window.take_receipt(slot).unwrap();
        assert_eq!((receipt.first.get(), receipt.last.get(), receipt.skip, receipt.duplicate), (1, 3, 1, false));
        assert_eq!(receipt.base_offset, Some(Offset::new(40)));
        assert!(window.take_receipt(slot).unwrap().duplicate);
        assert!(window.take_receipt(slot).is_none());
    }

    #[test]
    fn receipts_that_nobody_takes_hold_the_sender_up() {
        let mut window = window();
        let slot = add(&mut window, "s", 0);
        for ordinal in 1..=RECEIPTS_MAX as u64 {
            push(&mut window, slot, b"x");
            assert_eq!(drain(&mut window).len(), 1);
            window.settle(ordinal, &[STORED]).unwrap();
        }
        assert_eq!(push(&mut window, slot, b"x"), Push::Full);
        window.take_receipt(slot).unwrap();
        assert!(matches!(push(&mut window, slot, b"x"), Push::Taken { .. }));
    }

    #[test]
    fn a_refusal_for_now_keeps_the_batch_and_all_behind_it() {
        let mut window = window();
        let slot = add(&mut window, "s", 0);
        let mut sent = Vec::new();
        for _ in 0..3 {
            push(&mut window, slot, b"x");
            sent.extend(drain(&mut window));
        }
        let settled = window.settle(3, &[STORED, refused(ErrorCode::Busy), refused(ErrorCode::SequenceGap)]).unwrap();
        assert!(matches!(settled, Settled::SendAgain(error) if error.code() == Some(ErrorCode::Busy)));
        window.start_anew();
        assert_eq!(drain(&mut window), sent[1..]);
        assert!(window.failure_of(slot).is_none());
    }

    #[test]
    fn a_final_refusal_ends_its_stream_only() {
        let mut window = window();
        let (a, b) = (add(&mut window, "a", 0), add(&mut window, "b", 0));
        push(&mut window, a, b"1");
        drain(&mut window);
        push(&mut window, a, b"2");
        push(&mut window, b, b"1");
        drain(&mut window);
        push(&mut window, a, b"3");
        window.settle(1, &[refused(ErrorCode::StreamGone)]).unwrap();
        assert_eq!(window.failure_of(a).unwrap().code(), Some(ErrorCode::StreamGone));
        assert!(window.push(a, Body::Value(b"4")).is_err());
        // The answer to what was under way still comes, whatever it says.
        window.settle(3, &[refused(ErrorCode::Busy), STORED]).unwrap();
        assert_eq!(window.stream(b).published, 1);
        assert!(window.failure_of(b).is_none());
        assert!(window.is_empty());
        assert_eq!(window.bytes, 0);
    }

    #[test]
    fn batches_of_a_failed_stream_are_not_sent_again() {
        let mut window = window();
        let (a, b) = (add(&mut window, "a", 0), add(&mut window, "b", 0));
        push(&mut window, a, b"1");
        drain(&mut window);
        push(&mut window, a, b"2");
        push(&mut window, b, b"1");
        drain(&mut window);
        window.settle(1, &[refused(ErrorCode::SequenceReused)]).unwrap();
        window.start_anew();
        let again = drain(&mut window);
        assert_eq!(again.len(), 1);
        window.settle(1, &[STORED]).unwrap();
        assert_eq!((window.stream(b).published, window.bytes), (1, 0));
    }

    #[test]
    fn fencing_ends_everything() {
        let mut window = window();
        let slot = add(&mut window, "s", 0);
        push(&mut window, slot, b"x");
        drain(&mut window);
        let error = window.settle(1, &[refused(ErrorCode::Fenced)]).unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::Fenced));
    }

    #[test]
    fn answers_to_what_was_not_sent_are_refused() {
        let mut window = window();
        let slot = add(&mut window, "s", 0);
        push(&mut window, slot, b"x");
        drain(&mut window);
        for (up_to, count) in [(2, 1), (2, 2), (1, 2), (0, 1)] {
            let error = window.settle(up_to, &vec![STORED; count]).unwrap_err();
            assert!(matches!(error, Error::Protocol { .. }), "{error}");
        }
        window.settle(1, &[STORED]).unwrap();
    }

    #[test]
    fn what_was_told_durable_must_still_be_there() {
        let mut window = window();
        let slot = add(&mut window, "s", 5);
        push(&mut window, slot, b"x");
        drain(&mut window);
        window.settle(1, &[STORED]).unwrap();
        assert!(window.check_last(slot, Sequence::new(6)).is_ok());
        let lost = window.check_last(slot, Sequence::new(5)).unwrap_err();
        assert!(matches!(lost, Error::AcknowledgedLost { told, found, .. } if told.get() == 6 && found.get() == 5));
        let foreign = window.check_last(slot, Sequence::new(7)).unwrap_err();
        assert!(matches!(foreign, Error::WrittenByAnother { sent, found, .. } if sent.get() == 6 && found.get() == 7));
    }

    #[test]
    fn a_record_beyond_the_limits_changes_nothing() {
        let mut window = Window::new(false, 4 << 20, Limits::default(), false);
        let slot = add(&mut window, "s", 0);
        let error = window.push(slot, Body::Value(&vec![0; (1 << 20) + 1])).unwrap_err();
        assert!(matches!(error, Error::Record(_)), "{error}");
        assert!(window.is_empty());
        assert!(matches!(push(&mut window, slot, b"x"), Push::Taken { sequence, .. } if sequence.get() == 1));
    }

    #[test]
    fn anonymous_batches_have_no_sequences() {
        let mut window = Window::new(true, 1 << 20, Limits::default(), false);
        let slot = add(&mut window, "s", 0);
        assert!(matches!(push(&mut window, slot, b"x"), Push::Taken { sequence: Sequence::NONE, .. }));
        let sent = drain(&mut window);
        assert!(check_batch(&sent[0], &Limits::default()).unwrap().is_anonymous());
        window.settle(1, &[STORED]).unwrap();
        assert_eq!((window.stream(slot).settled, window.stream(slot).told), (1, Sequence::NONE));
    }
}
