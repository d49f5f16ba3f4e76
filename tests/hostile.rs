//! Peers that want no good, and more of everything than usual: the broker stays up, its memory stays bounded, honest
//! clients go on, and afterwards everything is as before.
//!
//! The broker is this binary, started again as a child, so that its memory, files and threads can be told from those of its
//! clients. `TIDELOG_CONNECTS` (500), `TIDELOG_BACKLOG_BYTES` (64 MiB), `TIDELOG_STREAMS` (2,000) and
//! `TIDELOG_HOSTILE_SECONDS` (9) say how much; `TIDELOG_SEED` repeats what the attackers choose. The attack itself needs
//! a Python with aioquic: the one that `TIDELOG_PYTHON` names, or `python3`. Without it, it counts as ignored.

#[path = "hostile/attack.rs"]
mod attack;
#[path = "hostile/child.rs"]
mod child;
#[path = "hostile/connects.rs"]
mod connects;
mod harness;
#[path = "hostile/raw.rs"]
mod raw;
#[path = "hostile/stalled.rs"]
mod stalled;
#[path = "hostile/streams.rs"]
mod streams;

use std::process::ExitCode;

use harness::trial;
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    if let Some(settings) = child::settings_of_this_process() {
        return child::serve(&settings);
    }
    let trials = vec![
        trial::new("memory_files_and_tasks_are_back_after_connects_and_kills", None, || {
            trial::block_on(connects::run()).map_err(Into::into)
        }),
        trial::new("stalled_readers_before_a_backlog_leave_memory_flat", None, || {
            trial::block_on(stalled::run()).map_err(Into::into)
        }),
        trial::new("many_streams_cost_little_and_share_their_syncs", None, || {
            trial::block_on(streams::run()).map_err(Into::into)
        }),
        trial::new("an_attack_by_an_independent_client_leaves_honest_ones_alone", attack::why_not(), || {
            trial::block_on(attack::run()).map_err(Into::into)
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
