//! The memory that peers can make the broker hold: one number for all of them. Whoever is about to hold bytes for a peer
//! takes them from here first, and waits, without reading on, while there are none.
//!
//! What a peer holds is returned when its [`Share`] is dropped, so nothing leaks with a task that is cancelled. Those who
//! wait are served in the order in which they came.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::counters::Counters;

/// The shared budget. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// One permit for each byte.
    bytes: Semaphore,
    capacity: u32,
    counters: Arc<Counters>,
}

impl Budget {
    /// A budget of `capacity` bytes, of which `counters` tell.
    pub(crate) fn new(capacity: u32, counters: Arc<Counters>) -> Self {
        Self { inner: Arc::new(Inner { bytes: Semaphore::new(capacity as usize), capacity, counters }) }
    }

    /// Takes `bytes`, or nothing if there are not as many or others wait already.
    pub(crate) fn try_take(&self, bytes: u32) -> Option<Share> {
        let permit = self.inner.bytes.try_acquire_many(bytes).ok()?;
        permit.forget();
        Some(self.share(bytes))
    }

    /// As [`Self::try_take`], for what can do without: leaves a quarter of the budget to those who can't.
    pub(crate) fn try_take_spare(&self, bytes: u32) -> Option<Share> {
        let kept = self.inner.capacity / 4;
        let left = self.inner.bytes.available_permits();
        if left < kept.saturating_add(bytes) as usize { None } else { self.try_take(bytes) }
    }

    /// Takes `bytes`, after all those who asked before. More than there ever is counts as everything.
    ///
    /// Cancel safe: nothing is taken by a call that was given up.
    pub(crate) async fn take(&self, bytes: u32) -> Share {
        let bytes = bytes.min(self.inner.capacity);
        if let Some(share) = self.try_take(bytes) {
            return share;
        }
        self.inner.counters.memory_waits.add(1);
        let permit = self.inner.bytes.acquire_many(bytes).await.expect("the semaphore is never closed");
        permit.forget();
        self.share(bytes)
    }

    /// Whether somebody waits, or nothing is left: those who hold bytes and make nothing of them are in the way.
    pub(crate) fn is_short(&self) -> bool {
        self.inner.bytes.available_permits() == 0
    }

    fn share(&self, bytes: u32) -> Share {
        self.inner.counters.memory_used_bytes.add(u64::from(bytes));
        Share { inner: Arc::clone(&self.inner), bytes }
    }
}

/// Bytes taken from the budget; dropping it returns them.
#[derive(Debug)]
pub(crate) struct Share {
    inner: Arc<Inner>,
    bytes: u32,
}

impl Share {
    /// How many bytes it is.
    pub(crate) const fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Adds another share of the same budget to this one.
    pub(crate) fn merge(&mut self, mut other: Share) {
        assert!(Arc::ptr_eq(&self.inner, &other.inner), "shares of one broker have one budget");
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Returns what is above `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: u32) {
        let returned = self.bytes.saturating_sub(bytes);
        self.bytes -= returned;
        self.inner.give_back(returned);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.inner.give_back(self.bytes);
    }
}

impl Inner {
    fn give_back(&self, bytes: u32) {
        if bytes > 0 {
            self.counters.memory_used_bytes.subtract(u64::from(bytes));
            self.bytes.add_permits(bytes as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn budget(capacity: u32) -> (Budget, Arc<Counters>) {
        let counters = Arc::new(Counters::new());
        (Budget::new(capacity, Arc::clone(&counters)), counters)
    }

    #[test]
    fn what_is_taken_is_missing_until_it_is_dropped() {
        let (budget, counters) = budget(100);
        let mut share = budget.try_take(60).unwrap();
        assert_eq!((share.bytes(), counters.memory_used_bytes.get()), (60, 60));
        assert!(budget.try_take(41).is_none());
        share.merge(budget.try_take(40).unwrap());
        assert!(budget.is_short());
        share.shrink_to(30);
        assert_eq!((share.bytes(), counters.memory_used_bytes.get()), (30, 30));
        drop(share);
        assert_eq!(counters.memory_used_bytes.get(), 0);
        assert!(budget.try_take(100).is_some());
    }

    #[test]
    fn whoever_asks_for_more_than_there_is_waits_and_those_behind_do_not_overtake() {
        let (budget, counters) = budget(100);
        let mut context = Context::from_waker(Waker::noop());
        let share = budget.try_take(60).unwrap();
        let mut large = pin!(budget.take(80));
        assert!(large.as_mut().poll(&mut context).is_pending());
        assert!(budget.is_short(), "somebody waits");
        assert!(budget.try_take(1).is_none(), "a small one does not overtake");
        assert_eq!(counters.memory_waits.get(), 1);
        drop(share);
        let Poll::Ready(large) = large.as_mut().poll(&mut context) else { panic!("there is enough now") };
        assert_eq!(large.bytes(), 80);
        assert!(budget.try_take(20).is_some());
    }

    #[test]
    fn a_wait_that_is_given_up_takes_nothing() {
        let (budget, counters) = budget(10);
        let share = budget.try_take(10).unwrap();
        {
            let mut waiting = pin!(budget.take(5));
            assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        drop(share);
        assert!(budget.try_take(10).is_some());
        assert_eq!(counters.memory_used_bytes.get(), 0);
    }

    #[test]
    fn what_can_do_without_leaves_a_quarter() {
        let (budget, _) = budget(100);
        assert!(budget.try_take_spare(76).is_none());
        let _share = budget.try_take_spare(75).unwrap();
        assert!(budget.try_take_spare(1).is_none() && budget.try_take(25).is_some());
    }

    #[test]
    fn more_than_there_ever_is_counts_as_everything() {
        let (budget, _) = budget(10);
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(all) = pin!(budget.take(11)).poll(&mut context) else { panic!("everything is there") };
        assert_eq!(all.bytes(), 10);
    }
}
