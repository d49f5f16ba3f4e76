//! What the benches measure, each piece once: for Criterion's clock and for callgrind's count.
#![allow(dead_code, reason = "each bench uses a part of it")]

pub(crate) mod admission;
pub(crate) mod batches;
pub(crate) mod log;
pub(crate) mod rig;
