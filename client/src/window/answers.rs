//! What the broker's answers do to the window.

use tidelog_protocol::{Answer, ErrorCode, Offset, Outcome, Sequence};

use super::batch::{Batch, Sent};
use super::{Ack, Numbering, Receipt, Settled, Window};
use crate::error::Error;

impl Window {
    /// Every batch of the present attachment up to ordinal `up_to` is ordered, which promises nothing yet.
    ///
    /// # Errors
    ///
    /// If so many were not sent.
    pub(crate) fn accept(&mut self, up_to: u64) -> Result<(), Error> {
        let sent = self.answered + self.sent as u64;
        if up_to > sent {
            return Err(Error::protocol(format!("it accepted batches up to number {up_to}, but {sent} were sent")));
        }
        if self.options.ack == Ack::Accepted {
            // Fits: it is at most `sent`.
            let count = usize::try_from(up_to.saturating_sub(self.answered)).unwrap_or(usize::MAX);
            for batch in self.queue.iter().take(count) {
                if let Some(stream) = self.streams.get_mut(batch.slot) {
                    stream.accept(batch.pushed_up_to);
                }
            }
        }
        Ok(())
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
            let Outcome::Refused { code, detail } = answer.outcome else {
                self.settle_stored(answer)?;
                continue;
            };
            let error = self.refusal(batch, code, detail);
            let has_failed = self.stream(slot).failure.is_some();
            if !has_failed && error.is_retryable() {
                return Ok(Settled::SendAgain(error));
            }
            if matches!(code, ErrorCode::Fenced | ErrorCode::Superseded | ErrorCode::Unauthorized) {
                // What was sent here only is refused with it.
                for batch in self.queue.iter_mut().filter(|batch| batch.sent == Sent::Here) {
                    batch.sent = Sent::Never;
                }
                return Err(error);
            }
            if !has_failed && matches!(code, ErrorCode::SequencePast | ErrorCode::SequenceOverlap) {
                if self.settle_shown() {
                    continue;
                }
                if self.cut_shown() {
                    return Ok(Settled::SendAgain(error));
                }
            }
            // What stands behind it is refused with it, unless it may have been stored before, or builds on nothing.
            let in_doubt = self.queue.iter().enumerate().any(|(index, batch)| {
                let builds_on_it = self.options.numbering != Numbering::Anonymous || index == 0;
                batch.slot == slot && batch.sent != Sent::Never && !(batch.sent == Sent::Here && builds_on_it)
            });
            self.pop_answered();
            if !has_failed {
                self.end_stream(slot, if in_doubt { error.unsettled() } else { error });
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
        let receipt = Receipt {
            first: batch.first,
            last: batch.last,
            count: batch.count,
            base_offset: answer.base_offset,
            skip,
            duplicate,
            content_crc: batch.content_crc(),
        };
        self.note_settled(batch.slot, receipt);
        self.spares.put(batch.bytes);
        Ok(())
    }

    /// The batch in front was refused because the broker has its sequences, and it no longer knows that batch. If it has
    /// shown to hold this very batch, that is a duplicate.
    fn settle_shown(&mut self) -> bool {
        let Some(batch) = self.queue.front().filter(|batch| batch.last <= self.stream(batch.slot).shown) else {
            return false;
        };
        let receipt = self.shown_receipt(batch, batch.last, batch.count);
        let slot = batch.slot;
        self.pop_answered();
        self.note_settled(slot, receipt);
        true
    }

    /// The batch in front was refused because the broker has the head of it. If it has shown to hold just these records,
    /// they are duplicates, and the others become a batch of their own, to be sent anew.
    fn cut_shown(&mut self) -> bool {
        let Some(batch) = self.queue.front() else { return false };
        let (slot, stream) = (batch.slot, self.stream(batch.slot));
        let shown = stream.shown;
        if !(batch.first <= shown && shown < batch.last) {
            return false;
        }
        let cut = batch.cut_behind(shown, stream.id, &self.limits);
        let receipt = self.shown_receipt(batch, shown, cut.head_count);
        let Some(batch) = self.queue.front_mut() else { return false };
        self.bytes = self.bytes - batch.bytes.len() + cut.tail.len();
        batch.count -= cut.head_count;
        batch.set_bytes(cut.tail);
        self.note_settled(slot, receipt);
        true
    }

    /// For the first `count` records of a batch, the last of which is `last`.
    fn shown_receipt(&self, batch: &Batch, last: Sequence, count: u32) -> Receipt {
        let found = &self.stream(batch.slot).found;
        // They stand together, with the last record that the broker told of at their end.
        let known = found.last_offset.filter(|_| found.last_sequence == last);
        let base_offset = known.and_then(|offset| offset.get().checked_sub(u64::from(count - 1)));
        let base_offset = base_offset.map(Offset::new);
        let content_crc = batch.content_crc();
        Receipt { first: batch.first, last, count, base_offset, skip: 0, duplicate: true, content_crc }
    }

    fn note_settled(&mut self, slot: usize, receipt: Receipt) {
        let collects = self.options.collect_receipts;
        self.stream_mut(slot).settle(&receipt);
        if collects {
            self.receipts.push_back((slot, receipt));
        }
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
        let what = if self.options.numbering == Numbering::Anonymous {
            format!("{} records for '{stream}'", batch.count)
        } else {
            format!("sequences {} to {} for '{stream}'", batch.first, batch.last)
        };
        let why = match code {
            ErrorCode::SequenceGap => format!("{code}: the broker expects sequence {detail}"),
            ErrorCode::SequencePast | ErrorCode::SequenceOverlap => {
                format!("{code}: the broker has sequences up to {detail}, and nothing shows that these are among them")
            }
            _ => code.to_string(),
        };
        let detail = (detail != 0).then_some(detail);
        Error::refused(code, format!("the broker refused {what} ({why})"), detail)
    }
}
