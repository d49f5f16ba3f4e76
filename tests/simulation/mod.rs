//! A whole broker with its clients on one thread, under a clock that only moves when nobody has anything to do, on a
//! simulated disk and a simulated network: programs publish, die, are taken over and wake up again; consumers follow; the
//! broker dies at any disk operation, any message, any moment. What was promised is held against what is found.
//!
//! Everything follows from a seed. Shared by the tests that must be green and by those that sabotage the broker and must
//! be red.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

pub(crate) mod consumers;
pub(crate) mod disk;
pub(crate) mod ledger;
pub(crate) mod lives;
pub(crate) mod programs;
pub(crate) mod stranger;
pub(crate) mod tally;
pub(crate) mod trace;
pub(crate) mod value;
pub(crate) mod weather;
pub(crate) mod world;

/// A check that failed says what was wrong.
pub(crate) type Checked<T = ()> = Result<T, String>;

/// Fails the check with a text unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}
