//! The time of a test: the machine's, or one that stands still until the test moves it.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use crate::clock::{Clock, ManualClock, SystemClock};

/// The clock of a [`TestBroker`](super::TestBroker), or of another broker of a test.
///
/// The broker stamps records by it and measures its own durations with it. QUIC's timers run by the machine's clock
/// always, since the other side of a connection does too.
#[derive(Debug)]
pub struct TestClock {
    time: Time,
    /// The wall clock's error, in milliseconds.
    jumped_ms: Mutex<i64>,
}

#[derive(Debug)]
enum Time {
    Machine(SystemClock),
    Manual(ManualClock),
    /// Tokio's, which a paused runtime moves by itself.
    Tokio {
        started: tokio::time::Instant,
        wall_ms: i64,
    },
}

impl TestClock {
    /// The machine's, with somebody at the wall clock: for a [`Broker`](crate::Broker) of a test's own.
    #[must_use]
    pub fn of_the_machine() -> Self {
        Self { time: Time::Machine(SystemClock::new()), jumped_ms: Mutex::new(0) }
    }

    pub(super) fn manual(wall_ms: i64) -> Self {
        Self { time: Time::Manual(ManualClock::new(wall_ms)), jumped_ms: Mutex::new(0) }
    }

    /// Tokio's time, and a wall clock that shows `wall_ms` now: for a [`LocalBroker`](crate::local_broker::LocalBroker)
    /// of a test's own.
    ///
    /// # Panics
    /// Outside of a runtime, if its clock can be paused.
    #[must_use]
    pub fn of_tokio(wall_ms: i64) -> Self {
        let started = tokio::time::Instant::now();
        Self { time: Time::Tokio { started, wall_ms }, jumped_ms: Mutex::new(0) }
    }

    /// Lets time pass.
    ///
    /// # Panics
    /// If the clock is the machine's: start the broker with [`manual_clock`](super::Start::manual_clock). A broker
    /// [in process](super::Start::in_process) goes by tokio's clock: `tokio::time::advance` moves it.
    #[track_caller]
    pub fn advance(&self, by: Duration) {
        match &self.time {
            Time::Manual(clock) => clock.advance(by),
            Time::Tokio { .. } => panic!(
                "a broker in process goes by tokio's clock: move it with `tokio::time::advance(…).await` in a test with \
                 `start_paused = true`"
            ),
            Time::Machine(_) => panic!(
                "this broker runs by the machine's clock, which nobody can advance: start it with \
                 `TestBroker::start().manual_clock(…)`, or let the wall clock alone jump with `jump_ms`"
            ),
        }
    }

    /// Lets the wall clock jump, either way, as an administrator or a time server may. No time passes.
    pub fn jump_ms(&self, by_ms: i64) {
        let mut jumped = self.jumped_ms.lock().unwrap_or_else(PoisonError::into_inner);
        *jumped = jumped.saturating_add(by_ms);
    }

    /// What the wall clock shows, in milliseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.wall_ms()
    }
}

impl Clock for TestClock {
    fn wall_ms(&self) -> i64 {
        let wall_ms = match &self.time {
            Time::Machine(clock) => clock.wall_ms(),
            Time::Manual(clock) => clock.wall_ms(),
            Time::Tokio { started, wall_ms } => {
                wall_ms.saturating_add(i64::try_from(started.elapsed().as_millis()).unwrap_or(i64::MAX))
            }
        };
        wall_ms.saturating_add(*self.jumped_ms.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn monotonic(&self) -> Duration {
        match &self.time {
            Time::Machine(clock) => clock.monotonic(),
            Time::Manual(clock) => clock.monotonic(),
            Time::Tokio { started, .. } => started.elapsed(),
        }
    }
}
