//! Answers that wait until what they rest on is durable. Pure.
//!
//! Every answer but `accepted` rests on the log as it was when it was decided: a duplicate on its original, a refusal on
//! the epoch or the sequence that caused it. A crash may undo what is not durable, so none leaves earlier.

use std::collections::VecDeque;

/// A queue of answers in the order in which they were decided, each with the log position that must be durable first.
#[derive(Debug)]
pub struct PendingAnswers<T> {
    queue: VecDeque<(u64, T)>,
    durable: u64,
}

impl<T> PendingAnswers<T> {
    /// Nothing waits; all below `durable` is durable.
    #[must_use]
    pub const fn new(durable: u64) -> Self {
        Self { queue: VecDeque::new(), durable }
    }

    /// Adds an answer that rests on the log up to `gate`.
    ///
    /// # Panics
    /// If `gate` is lower than an earlier one: the log only grows.
    pub fn push(&mut self, gate: u64, answer: T) {
        assert!(self.queue.back().is_none_or(|(last, _)| *last <= gate), "the log's end never goes back");
        self.queue.push_back((gate, answer));
    }

    /// The durable position has moved up to `durable`.
    pub fn handle_durable(&mut self, durable: u64) {
        self.durable = self.durable.max(durable);
    }

    /// The next answer that may leave.
    pub fn pop_ready(&mut self) -> Option<T> {
        let (gate, _) = self.queue.front()?;
        if *gate > self.durable {
            return None;
        }
        self.queue.pop_front().map(|(_, answer)| answer)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes back all that wait: what they say is not known to be so.
    pub fn clear(&mut self) {
        self.queue.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_leaves_only_once_its_gate_is_durable_and_never_before_an_earlier_one() {
        let mut pending = PendingAnswers::new(100);
        pending.push(100, "already durable");
        pending.push(200, "stored");
        pending.push(200, "refused behind it");
        assert_eq!(pending.pop_ready(), Some("already durable"));
        assert_eq!(pending.pop_ready(), None);
        pending.handle_durable(199);
        assert_eq!(pending.pop_ready(), None);
        pending.handle_durable(200);
        assert_eq!(pending.pop_ready(), Some("stored"));
        assert_eq!(pending.pop_ready(), Some("refused behind it"));
        assert!(pending.is_empty());
    }

    #[test]
    fn the_durable_position_never_goes_back() {
        let mut pending = PendingAnswers::new(100);
        pending.handle_durable(50);
        pending.push(100, ());
        assert_eq!(pending.pop_ready(), Some(()));
    }
}
