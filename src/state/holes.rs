//! Ranges of the log of which nothing can be read, what they leave in doubt, and what a repair has settled.

use std::ops::Range;

/// Holes kept apart; more are joined, which puts more in doubt and never less.
const HOLES_MAX: usize = 1_024;
/// Bytes that a loss of unknown size is taken for: 2 TiB, more than any log that one machine has lost at once.
pub(super) const OPEN_ENDED_BYTES: u64 = 1 << 41;

/// A range of the log that could not be read, repaired or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownHole {
    pub(super) range: Range<u64>,
    /// It reached up to the log's end when it was found: how much was lost behind it, nothing says.
    pub(super) is_open_ended: bool,
}

/// Damage that a repair has settled: its kind's number, and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) what: u8,
    pub(super) positions: Range<u64>,
}

/// The holes of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Holes {
    /// Those that leave keys in doubt.
    pub(super) unrepaired: Vec<Range<u64>>,
    /// All of them: entries in them may have moved what earlier entries say.
    pub(super) known: Vec<KnownHole>,
    /// What needs telling no more.
    pub(super) settled: Vec<Settled>,
}

impl Holes {
    /// Counts a hole in; one that is known already changes nothing.
    pub(super) fn push(&mut self, hole: Range<u64>) {
        if hole.is_empty() || self.known.iter().any(|known| covers(&known.range, &hole)) {
            return;
        }
        if self.known.len() < HOLES_MAX {
            self.known.push(KnownHole { range: hole.clone(), is_open_ended: false });
        } else if let Some(last) = self.known.last_mut() {
            last.range = last.range.start.min(hole.start)..last.range.end.max(hole.end);
        }
        if self.unrepaired.len() < HOLES_MAX {
            self.unrepaired.push(hole);
        } else if let Some(last) = self.unrepaired.last_mut() {
            *last = last.start.min(hole.start)..last.end.max(hole.end);
        }
    }

    /// The log went on at `end`: of a hole that reaches up to there nothing says how much was lost. Whether there is one.
    pub(super) fn mark_open_ended(&mut self, end: u64) -> bool {
        let mut is_any = false;
        for hole in self.known.iter_mut().filter(|hole| hole.range.end == end) {
            hole.is_open_ended = true;
            is_any = true;
        }
        is_any
    }

    /// Takes a range out of those that leave keys in doubt.
    pub(super) fn lift(&mut self, repaired: &Range<u64>) {
        let mut left = Vec::with_capacity(self.unrepaired.len());
        for hole in self.unrepaired.drain(..) {
            let before = hole.start..hole.end.min(repaired.start);
            let behind = hole.start.max(repaired.end)..hole.end;
            left.extend([before, behind].into_iter().filter(|rest| !rest.is_empty()));
        }
        self.unrepaired = left;
    }

    pub(super) fn settle(&mut self, settled: Settled) {
        if !self.settled.contains(&settled) {
            self.settled.push(settled);
        }
    }

    /// Whether damage of this kind, by its number, is settled by a repair. `hole` is the number of holes: a repaired hole
    /// settles all that lies in it.
    pub(super) fn is_settled(&self, what: u8, positions: &Range<u64>, hole: u8) -> bool {
        self.settled.iter().any(|settled| match settled.what == hole {
            true => covers(&settled.positions, positions),
            false => settled.what == what && settled.positions == *positions,
        })
    }

    /// Whether there is none: then nothing is in doubt, and no key need be looked up to know it.
    pub(super) const fn is_empty(&self) -> bool {
        self.unrepaired.is_empty()
    }

    /// Whether a newer value of a key may be lost: the key was last decided before a hole, and everything that it names
    /// (the newest id is `newest_id`) is older than the hole's end. A key that has never been decided has position 0.
    pub(super) fn may_hide(&self, decided_at: u64, newest_id: u64) -> bool {
        self.unrepaired.iter().any(|hole| decided_at < hole.start.max(1) && newest_id < hole.end)
    }

    /// The most bytes of entries that may have been lost since `decided_at`. Repaired holes count too: what a repair
    /// decided may have been lost in a later hole.
    pub(super) fn lost_bytes_since(&self, decided_at: u64) -> u64 {
        let behind = self.known.iter().filter(|hole| decided_at < hole.range.end);
        behind
            .map(|hole| match hole.is_open_ended {
                true => OPEN_ENDED_BYTES.max(hole.range.end - hole.range.start),
                false => hole.range.end - hole.range.start,
            })
            .fold(0, u64::saturating_add)
    }
}

fn covers(outer: &Range<u64>, inner: &Range<u64>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
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

    #[test]
    fn a_repair_lifts_what_it_covers_and_no_more() {
        let mut holes = Holes::default();
        holes.push(90..200);
        holes.push(300..400);
        holes.lift(&(100..200));
        assert_eq!(holes.unrepaired, [90..100, 300..400], "bytes that went bad since are another loss");
        assert!(holes.may_hide(50, 8));
        holes.lift(&(0..1_000));
        assert!(holes.is_empty() && !holes.may_hide(0, 0));
    }

    #[test]
    fn a_hole_that_is_found_again_is_still_one() {
        let mut holes = Holes::default();
        holes.push(100..200);
        holes.push(100..200);
        holes.push(120..180);
        assert_eq!(holes.lost_bytes_since(0), 100);
        assert_eq!(holes.lost_bytes_since(250), 0, "decided behind it");
        holes.lift(&(100..200));
        assert_eq!(holes.lost_bytes_since(50), 100, "what a repair decided may be lost itself");
        holes.mark_open_ended(200);
        assert_eq!(holes.lost_bytes_since(50), OPEN_ENDED_BYTES);
    }

    #[test]
    fn a_repaired_hole_settles_all_in_it_and_other_damage_settles_itself_alone() {
        let mut holes = Holes::default();
        holes.settle(Settled { what: 6, positions: 100..200 });
        holes.settle(Settled { what: 5, positions: 300..400 });
        assert!(holes.is_settled(3, &(120..200), 6) && holes.is_settled(6, &(100..200), 6));
        assert!(!holes.is_settled(6, &(90..200), 6));
        assert!(holes.is_settled(5, &(300..400), 6));
        assert!(!holes.is_settled(4, &(300..400), 6) && !holes.is_settled(5, &(300..350), 6));
    }
}
