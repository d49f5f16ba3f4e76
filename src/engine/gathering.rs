//! Whom the next group is held for: producers that wait for each answer come back together once they are answered, and a
//! group closed at the first of them would make the others wait for a sync more.
//!
//! Only those count that were seen to do so: a batch of a session that had nothing else unanswered, soon behind its last
//! answer. Who publishes at a pace of its own, or keeps many batches under way, is waited for by nobody.

use std::cell::Cell;
use std::time::Duration;

/// A group is held at most as long as one and a half of the last sync, which it may save each of those it is held for; ...
const SYNCS_MAX: (u32, u32) = (3, 2);
/// ... and never longer than this, however slow the disk is.
const HOLD_MAX: Duration = Duration::from_millis(1);
/// A session has come back soon if no more than so many groups were answered since its own: those that came while it was
/// on its way are in the next one.
const GROUPS_BETWEEN_MAX: u64 = 1;

/// Who has come back for the open group, and how many did for the last one.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// Groups that were answered.
    answered: Cell<u64>,
    /// Sessions with a batch in the open group that waited for an answer before it.
    back: Cell<usize>,
    /// As many were in the last group.
    expected: Cell<usize>,
    hold: Cell<Duration>,
}

/// When a session was last answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AnsweredIn(u64);

impl Gathering {
    /// What is answered at this moment.
    pub(super) fn present(&self) -> AnsweredIn {
        AnsweredIn(self.answered.get())
    }

    /// A session with nothing else unanswered has a batch in the open group; it was answered last at `answered`.
    pub(super) fn came(&self, answered: AnsweredIn) {
        if self.answered.get() - answered.0 <= GROUPS_BETWEEN_MAX {
            self.back.set(self.back.get() + 1);
        }
    }

    /// For how long others may be waited for; `None` if nobody is expected.
    pub(super) fn hold(&self) -> Option<Duration> {
        (self.back.get() < self.expected.get()).then(|| self.hold.get())
    }

    /// The open group is closed. One alone has nobody to come back with.
    pub(super) fn close(&self) {
        let back = self.back.take();
        self.expected.set(if back > 1 { back } else { 0 });
    }

    /// A group is answered that took so long to sync.
    pub(super) fn answer(&self, sync: Duration) {
        self.answered.set(self.answered.get() + 1);
        self.hold.set((sync * SYNCS_MAX.0 / SYNCS_MAX.1).min(HOLD_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNC: Duration = Duration::from_micros(100);
    const HOLD: Option<Duration> = Some(Duration::from_micros(150));

    /// A group of the sessions that were answered at these moments.
    fn commit(gathering: &Gathering, answered: &[AnsweredIn]) -> AnsweredIn {
        answered.iter().for_each(|answered| gathering.came(*answered));
        gathering.close();
        gathering.answer(SYNC);
        gathering.present()
    }

    #[test]
    fn as_many_as_came_back_last_time_are_waited_for() {
        let gathering = Gathering::default();
        let start = gathering.present();
        assert_eq!(gathering.hold(), None, "nobody was ever answered");
        let answered = commit(&gathering, &[start; 3]);
        gathering.came(answered);
        gathering.came(answered);
        assert_eq!(gathering.hold(), HOLD);
        gathering.came(answered);
        assert_eq!(gathering.hold(), None);
    }

    #[test]
    fn who_left_is_waited_for_once() {
        let gathering = Gathering::default();
        let answered = commit(&gathering, &[gathering.present(); 3]);
        assert_eq!(gathering.hold(), HOLD);
        let answered = commit(&gathering, &[answered; 2]);
        gathering.came(answered);
        assert_eq!(gathering.hold(), HOLD, "for the other one");
        gathering.came(answered);
        assert_eq!(gathering.hold(), None);
    }

    #[test]
    fn one_alone_waits_for_nobody() {
        let gathering = Gathering::default();
        let answered = commit(&gathering, &[gathering.present()]);
        assert_eq!(gathering.hold(), None);
        gathering.came(answered);
        assert_eq!(gathering.hold(), None);
    }

    #[test]
    fn who_publishes_at_a_pace_of_its_own_is_not_expected() {
        let gathering = Gathering::default();
        let long_ago = gathering.present();
        commit(&gathering, &[]);
        commit(&gathering, &[]);
        commit(&gathering, &[long_ago; 4]);
        assert_eq!(gathering.hold(), None);
    }

    #[test]
    fn a_slow_disk_holds_nobody_for_longer_than_a_millisecond() {
        let gathering = Gathering::default();
        commit(&gathering, &[gathering.present(); 2]);
        gathering.answer(Duration::from_millis(20));
        assert_eq!(gathering.hold(), Some(HOLD_MAX));
    }
}
