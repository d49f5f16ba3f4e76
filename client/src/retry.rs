//! How long to wait before the next try: exponential, bounded, jittered. Pure: the jitter is handed in.

use std::time::Duration;

/// The wait after the first failure, before jitter.
const FIRST_DELAY: Duration = Duration::from_millis(20);

/// The longest wait.
const DELAY_MAX: Duration = Duration::from_secs(1);

/// Counts failures in a row and says how long to wait after each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure: between half of and the whole of 20 ms, 40 ms … up to 1 s.
    ///
    /// `jitter` is any random number. It keeps clients that lost the same broker from coming back in one wave.
    pub(crate) fn next_delay(&mut self, jitter: u32) -> Duration {
        let whole = FIRST_DELAY.saturating_mul(1 << self.failures.min(16)).min(DELAY_MAX);
        self.failures = self.failures.saturating_add(1);
        let half = whole / 2;
        half + half.mul_f64(f64::from(jitter) / f64::from(u32::MAX))
    }

    /// Something worked: the next failure is a first one again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_second() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..8).map(|_| backoff.next_delay(u32::MAX).as_millis()).collect();
        assert_eq!(waits, [20, 40, 80, 160, 320, 640, 1000, 1000]);
    }

    #[test]
    fn jitter_shortens_by_at_most_half() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next_delay(0), Duration::from_millis(10));
        let middle = backoff.next_delay(u32::MAX / 2);
        assert!(middle > Duration::from_millis(29) && middle < Duration::from_millis(31), "{middle:?}");
    }

    #[test]
    fn success_starts_anew_and_many_failures_stay_bounded() {
        let mut backoff = Backoff::default();
        for _ in 0..1_000 {
            assert!(backoff.next_delay(7) <= DELAY_MAX);
        }
        backoff.reset();
        assert_eq!(backoff.next_delay(u32::MAX), FIRST_DELAY);
    }
}
