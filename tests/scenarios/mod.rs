//! A broker without sockets and threads: the sequencer with a real log on a simulated machine, on one thread, dying in
//! every way; what clients do to it; and what must hold whatever happens. Shared by the tests that must be green and by
//! those that sabotage the broker and must be red.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

pub(crate) mod crash;
pub(crate) mod histories;
pub(crate) mod model;
pub(crate) mod process;
pub(crate) mod rig;

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
