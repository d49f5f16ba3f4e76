//! Runs the real binary: starts it, loads it, kills it, and holds what it says afterwards against what it had promised.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::indexing_slicing, reason = "a JSON object gives null for a field that it does not have")]

pub mod board;
pub mod broken_disk;
pub mod broker;
pub mod command;
pub mod consumer;
pub mod crash_run;
pub mod failure;
pub mod fault;
pub mod folder;
pub mod ledger;
pub mod life;
pub mod load;
pub mod mount;
pub mod pause;
pub mod payload;
pub mod power_run;
pub mod producer;
pub mod random;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod tracer;
pub mod trial;
pub mod udp_proxy;
pub mod zombie_run;
