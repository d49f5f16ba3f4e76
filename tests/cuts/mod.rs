//! A line that is cut at a protocol step, and the same sequence again, which settles it.
#![allow(unreachable_pub, reason = "a part of one test file")]
#![allow(clippy::indexing_slicing, reason = "below the array's length")]

pub mod plan;
pub mod rig;
pub mod sequence;
pub mod watch;
