//! Ranges of the log of which nothing can be read, and what they leave in doubt.

use std::ops::Range;

/// Holes kept apart; more are joined, which puts more in doubt and never less.
const HOLES_MAX: usize = 1_024;

/// The unrepaired holes of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Holes {
    ranges: Vec<Range<u64>>,
}

impl Holes {
    pub(super) fn push(&mut self, hole: Range<u64>) {
        if self.ranges.len() >= HOLES_MAX
            && let Some(last) = self.ranges.last_mut()
        {
            last.end = last.end.max(hole.end);
            return;
        }
        self.ranges.push(hole);
    }

    /// All of them, as they were told.
    pub(super) fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// Whether there is none: then nothing is in doubt, and no key need be looked up to know it.
    pub(super) const fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether a newer value of a key may be lost: the key was last decided before a hole, and everything that it names
    /// (the newest id is `newest_id`) is older than the hole's end. A key that has never been decided has position 0.
    pub(super) fn may_hide(&self, decided_at: u64, newest_id: u64) -> bool {
        self.ranges.iter().any(|hole| decided_at < hole.start.max(1) && newest_id < hole.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_last_decided_before_a_hole_and_older_than_its_end_are_in_doubt() {
        let mut holes = Holes::default();
        assert!(!holes.may_hide(0, 8));
        holes.push(100..200);
        assert!(holes.may_hide(50, 8));
        assert!(holes.may_hide(0, 8));
        assert!(!holes.may_hide(300, 8), "a later entry proves the key");
        assert!(!holes.may_hide(0, 200), "what was made behind the hole was not there when it happened");
        assert!(holes.may_hide(0, 150));
    }
}
