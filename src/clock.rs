//! Where time comes from: the only place in the broker that reads a clock.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The broker's two clocks, handed in so that a test can be its own time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Milliseconds since 1970-01-01 UTC, negative before it. May jump either way when the
    /// machine's clock is set: only what is shown to people and stored as a record's time uses it.
    fn wall_ms(&self) -> i64;

    /// Time since a fixed moment of this clock's own choosing; never runs backwards. Every
    /// timeout, lease and measured duration uses it.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts at zero now.
    #[expect(clippy::disallowed_methods, reason = "the one shell that reads the machine's clocks")]
    pub fn new() -> SystemClock {
        SystemClock { started: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one shell that reads the machine's clocks")]
    fn wall_ms(&self) -> i64 {
        let now = SystemTime::now();
        match now.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |millis| -millis),
        }
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A clock that stands still until it is moved: the time of a test.
#[derive(Debug)]
pub struct ManualClock {
    time: Mutex<ManualTime>,
}

#[derive(Debug, Clone, Copy)]
struct ManualTime {
    wall_ms: i64,
    monotonic: Duration,
}

impl ManualClock {
    /// A clock that shows `wall_ms` and whose monotonic time is zero.
    pub fn new(wall_ms: i64) -> ManualClock {
        ManualClock { time: Mutex::new(ManualTime { wall_ms, monotonic: Duration::ZERO }) }
    }

    /// Lets time pass on both clocks. The wall clock moves by whole milliseconds.
    pub fn advance(&self, by: Duration) {
        self.change(|time| {
            time.monotonic = time.monotonic.saturating_add(by);
            let millis = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
            time.wall_ms = time.wall_ms.saturating_add(millis);
        });
    }

    /// Sets the wall clock alone, as an administrator or a time server may; any jump is allowed.
    pub fn set_wall_ms(&self, wall_ms: i64) {
        self.change(|time| time.wall_ms = wall_ms);
    }

    fn change(&self, change: impl FnOnce(&mut ManualTime)) {
        // Plain numbers cannot be left half-changed, so a panic elsewhere does not spoil them.
        let mut time = self.time.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        change(&mut time);
    }

    fn read(&self) -> ManualTime {
        *self.time.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Clock for ManualClock {
    fn wall_ms(&self) -> i64 {
        self.read().wall_ms
    }

    fn monotonic(&self) -> Duration {
        self.read().monotonic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_wall_time_is_in_this_era() {
        let clock = SystemClock::new();
        // 2024-01-01: anything earlier means seconds were taken for milliseconds.
        assert!(clock.wall_ms() > 1_704_067_200_000);
        assert!(clock.wall_ms() < 32_503_680_000_000);
    }

    #[test]
    fn system_monotonic_time_starts_near_zero_and_never_falls() {
        let clock = SystemClock::new();
        let first = clock.monotonic();
        assert!(first < Duration::from_secs(5));
        assert!(clock.monotonic() >= first);
    }

    #[test]
    fn manual_time_moves_only_when_it_is_moved() {
        let clock = ManualClock::new(1_000);
        assert_eq!((clock.wall_ms(), clock.monotonic()), (1_000, Duration::ZERO));
        clock.advance(Duration::from_millis(250));
        assert_eq!(clock.wall_ms(), 1_250);
        assert_eq!(clock.monotonic(), Duration::from_millis(250));
    }

    #[test]
    fn setting_the_wall_clock_leaves_monotonic_time_alone() {
        let clock = ManualClock::new(1_000);
        clock.advance(Duration::from_secs(1));
        clock.set_wall_ms(-5);
        assert_eq!(clock.wall_ms(), -5);
        assert_eq!(clock.monotonic(), Duration::from_secs(1));
    }
}
