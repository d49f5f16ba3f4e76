//! What leaves to one publishing session: its answers in order, `accepted` where asked for, and the failure that ends it.

use std::cell::RefCell;

use bytes::BytesMut;
use tidelog_protocol::{Answer, FrameKind, Outcome, WireError, encode_accepted, encode_answers, encode_json_frame};
use tokio::sync::Notify;

/// One session's outgoing answers.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: RefCell<OutboxState>,
    /// Something is to be written.
    pub(crate) filled: Notify,
    /// Answers were handed over for writing: there is room for further batches.
    pub(crate) answered: Notify,
    /// Nothing will be written any more.
    pub(crate) ended: Notify,
}

#[derive(Debug, Default)]
struct OutboxState {
    answers: Vec<Answer>,
    /// Ordinal of the last batch whose answer was handed over for writing.
    written: u64,
    /// Batches answered, handed over or not.
    answered: u64,
    wants_accepted: bool,
    accepted: u64,
    accepted_written: u64,
    refusals_waiting: u64,
    failure: Option<WireError>,
    has_failed: bool,
    has_ended: bool,
}

impl Outbox {
    pub(crate) fn new(wants_accepted: bool) -> Self {
        let outbox = Self::default();
        outbox.state.borrow_mut().wants_accepted = wants_accepted;
        outbox
    }

    /// A batch was answered; answers come in the order of the batches.
    ///
    /// Nothing is taken behind a failure: a poisoned log takes back the answers that waited, so the next one would count as
    /// that of an earlier batch.
    pub(crate) fn push(&self, answer: Answer) {
        let mut state = self.state.borrow_mut();
        if state.has_failed {
            return;
        }
        if matches!(answer.outcome, Outcome::Refused { .. }) {
            state.refusals_waiting = state.refusals_waiting.saturating_sub(1);
        }
        state.answers.push(answer);
        state.answered += 1;
        drop(state);
        self.filled.notify_one();
    }

    /// Batch number `ordinal` was ordered, or refused. `accepted` never runs past a refusal that has not left.
    pub(crate) fn ordered(&self, ordinal: u64, is_refused: bool) {
        let mut state = self.state.borrow_mut();
        if is_refused {
            if state.answered < ordinal {
                state.refusals_waiting += 1;
            }
        } else if state.wants_accepted && state.refusals_waiting == 0 {
            state.accepted = ordinal;
            drop(state);
            self.filled.notify_one();
        }
    }

    /// The session ends with this.
    pub(crate) fn fail(&self, failure: WireError) {
        let mut state = self.state.borrow_mut();
        if !state.has_failed {
            state.failure = Some(failure);
            state.has_failed = true;
        }
        drop(state);
        self.filled.notify_one();
        self.ended.notify_one();
    }

    /// Whether [`Self::fail`] was called.
    pub(crate) fn has_failed(&self) -> bool {
        self.state.borrow().has_failed
    }

    /// The writer has stopped: what is pushed from here on goes nowhere.
    pub(crate) fn end(&self) {
        self.state.borrow_mut().has_ended = true;
        self.ended.notify_one();
    }

    /// Whether [`Self::end`] was called.
    pub(crate) fn has_ended(&self) -> bool {
        self.state.borrow().has_ended
    }

    /// How many batches' answers were handed over for writing. A peer that does not read its answers holds this back, and
    /// with it what it may send.
    pub(crate) fn answered_count(&self) -> u64 {
        self.state.borrow().written
    }

    /// Encodes all that is to be written behind what is in `out`; `true` if the session ends behind it.
    pub(crate) fn take(&self, out: &mut BytesMut) -> bool {
        let mut state = self.state.borrow_mut();
        let answers = std::mem::take(&mut state.answers);
        state.written += answers.len() as u64;
        encode_answers(state.written, &answers, out);
        // Behind the answers: a refusal comes before any `accepted` that counts past it.
        if state.accepted > state.accepted_written.max(state.written) {
            encode_accepted(state.accepted, out);
            state.accepted_written = state.accepted;
        }
        let failure = state.failure.take();
        drop(state);
        if !answers.is_empty() {
            self.answered.notify_one();
        }
        match failure {
            Some(failure) => {
                // Plain data: encoding it can't fail.
                let _ = encode_json_frame(FrameKind::Failure, &failure, out);
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_protocol::{
        ANSWERS_PER_FRAME_MAX, ErrorCode, FrameDecoder, Limits, Offset, decode_accepted, decode_answers,
    };

    #[derive(Debug, PartialEq, Eq)]
    enum Seen {
        Answers { up_to: u64, outcomes: Vec<Outcome> },
        Accepted(u64),
        Failure,
    }

    const REFUSED: Outcome = Outcome::Refused { code: ErrorCode::SequenceGap, detail: 1 };

    fn answer(outcome: Outcome) -> Answer {
        Answer { outcome, base_offset: (outcome == Outcome::Stored).then_some(Offset::new(7)), skip: 0 }
    }

    /// What the peer reads of all that is written now, and whether the session ends behind it.
    fn taken(outbox: &Outbox) -> (Vec<Seen>, bool) {
        let mut out = BytesMut::new();
        let ends = outbox.take(&mut out);
        let mut decoder = FrameDecoder::new(Limits::default());
        decoder.push(&out);
        let mut seen = Vec::new();
        while let Some(frame) = decoder.next_frame().unwrap() {
            seen.push(match frame.kind {
                FrameKind::Answers => {
                    let (up_to, answers) = decode_answers(&frame.body).unwrap();
                    Seen::Answers { up_to, outcomes: answers.into_iter().map(|answer| answer.outcome).collect() }
                }
                FrameKind::Accepted => Seen::Accepted(decode_accepted(&frame.body).unwrap()),
                FrameKind::Failure => Seen::Failure,
                kind => panic!("{kind:?}"),
            });
        }
        (seen, ends)
    }

    #[test]
    fn answers_are_counted_from_one_and_split_into_bounded_frames() {
        let outbox = Outbox::new(false);
        for _ in 0..=ANSWERS_PER_FRAME_MAX {
            outbox.push(answer(Outcome::Stored));
        }
        let (seen, ends) = taken(&outbox);
        let stored =
            |up_to: usize, count: usize| Seen::Answers { up_to: up_to as u64, outcomes: vec![Outcome::Stored; count] };
        let max = ANSWERS_PER_FRAME_MAX;
        assert_eq!(seen, [stored(max, max), stored(max + 1, 1)]);
        assert!(!ends);
        assert_eq!(taken(&outbox), (vec![], false));
        outbox.push(answer(Outcome::Stored));
        assert_eq!(taken(&outbox).0, [stored(max + 2, 1)], "the count goes on");
    }

    #[test]
    fn accepted_leaves_only_where_it_was_asked_for_and_not_behind_the_final_answer() {
        let silent = Outbox::new(false);
        silent.ordered(1, false);
        assert_eq!(taken(&silent).0, []);

        let outbox = Outbox::new(true);
        outbox.ordered(1, false);
        outbox.ordered(2, false);
        assert_eq!(taken(&outbox).0, [Seen::Accepted(2)]);
        outbox.ordered(3, false);
        for _ in 0..3 {
            outbox.push(answer(Outcome::Stored));
        }
        let all = Seen::Answers { up_to: 3, outcomes: vec![Outcome::Stored; 3] };
        assert_eq!(taken(&outbox).0, [all], "the final answer says more than `accepted` would");
    }

    #[test]
    fn accepted_never_counts_past_a_refusal_that_the_peer_has_not_read() {
        let outbox = Outbox::new(true);
        outbox.ordered(1, false);
        outbox.ordered(2, true);
        outbox.ordered(3, false);
        assert_eq!(taken(&outbox).0, [Seen::Accepted(1)], "the refusal of 2 waits, so 3 is not told");
        outbox.push(answer(Outcome::Stored));
        outbox.push(answer(REFUSED));
        outbox.ordered(4, false);
        let settled = Seen::Answers { up_to: 2, outcomes: vec![Outcome::Stored, REFUSED] };
        assert_eq!(taken(&outbox).0, [settled, Seen::Accepted(4)], "the refusal first");
    }

    #[test]
    fn a_refusal_that_leaves_at_once_comes_before_accepted_too() {
        let outbox = Outbox::new(true);
        outbox.push(answer(REFUSED));
        outbox.ordered(1, true);
        outbox.ordered(2, false);
        let refused = Seen::Answers { up_to: 1, outcomes: vec![REFUSED] };
        assert_eq!(taken(&outbox).0, [refused, Seen::Accepted(2)]);
    }

    #[test]
    fn nothing_is_answered_behind_a_failure_so_no_answer_counts_as_an_earlier_batchs() {
        let outbox = Outbox::new(false);
        outbox.push(answer(Outcome::Stored));
        // Batches 2 and 3 wait when the log is poisoned; batch 4 is refused at once.
        outbox.fail(WireError::new(ErrorCode::Poisoned, "poisoned"));
        outbox.push(answer(Outcome::Refused { code: ErrorCode::Poisoned, detail: 0 }));
        let first = Seen::Answers { up_to: 1, outcomes: vec![Outcome::Stored] };
        assert_eq!(taken(&outbox), (vec![first, Seen::Failure], true));
        assert_eq!(taken(&outbox), (vec![], false), "a failure is told once");
    }

    #[test]
    fn answers_that_the_peer_does_not_read_count_as_unanswered() {
        let outbox = Outbox::new(false);
        outbox.push(answer(Outcome::Stored));
        assert_eq!(outbox.answered_count(), 0);
        taken(&outbox);
        assert_eq!(outbox.answered_count(), 1);
    }
}
