//! The power goes, and everything that was not synced with it: what was acknowledged is there all the same, and what a
//! consumer has seen, too.
//!
//! Cuts off the disk below a mounted image, so it needs root and the tools of the file system, and runs only if
//! `TIDELOG_MOUNT_TESTS=1` asks for it; otherwise it counts as ignored. `TIDELOG_POWER_CUTS` (25) says how many cuts for
//! each file system, `TIDELOG_SEED` repeats the plan of a run.

mod harness;

use std::process::ExitCode;
use std::time::Duration;

use harness::fault::run_tracer_if_asked;
use harness::folder::RunFolder;
use harness::mount::{FileSystem, why_not};
use harness::power_run::PowerRun;
use harness::random::{Random, number_from_environment};
use harness::trial;
use libtest_mimic::{Arguments, Failed};

fn main() -> ExitCode {
    if let Some(ended) = run_tracer_if_asked() {
        return ended;
    }
    let trials = [
        ("what_was_acknowledged_or_seen_survives_power_cuts_on_ext4", FileSystem::Ext4),
        ("what_was_acknowledged_or_seen_survives_power_cuts_on_xfs", FileSystem::Xfs),
    ];
    let trials = trials.map(|(name, file_system)| trial::new(name, why_not(file_system), move || cuts(file_system)));
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

fn cuts(file_system: FileSystem) -> Result<(), Failed> {
    let cuts = number_from_environment("TIDELOG_POWER_CUTS").unwrap_or(25);
    let seed = Random::seed_of_run();
    println!("TIDELOG_SEED={seed} TIDELOG_POWER_CUTS={cuts} on {file_system:?}");
    let folder = RunFolder::new();
    let deadline = Duration::from_secs(60 + 10 * cuts);
    let run = PowerRun { seed, cuts, file_system, sabotage: None, at_new_segments: false, deadline };
    match trial::block_on(run.run(folder.path())) {
        Ok(figures) => {
            println!("{figures}");
            Ok(())
        }
        Err(failure) => Err(format!("seed {seed}: {failure}; kept in {}", folder.keep().display()).into()),
    }
}
