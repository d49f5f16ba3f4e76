//! Deliberate defects, each of which the crash tests must notice within 20 cycles: a test that can't fail shows nothing.
//!
//! Built only with the feature `sabotage`. Those that need a power cut run only where [`power_cut`](../power_cut.rs)
//! does.

mod harness;

use std::process::ExitCode;
use std::time::Duration;

use harness::broken_disk::BrokenDiskRun;
use harness::crash_run::{CrashRun, Figures};
use harness::failure::Failure;
use harness::fault::{self, Action, Fault, Kind, run_tracer_if_asked};
use harness::folder::RunFolder;
use harness::life::{Beginning, LOG_THREAD};
use harness::mount::{FileSystem, why_not};
use harness::power_run::PowerRun;
use harness::producer::Order;
use harness::random::Random;
use harness::trial;
use libtest_mimic::{Arguments, Failed};
use nix::errno::Errno;

const CYCLES: u64 = 20;
const DEADLINE: Duration = Duration::from_secs(180);

/// What SIGKILL alone brings to light.
const KILLS: [&str; 3] = ["forget-producers", "forget-producers,accept-any-first-sequence", "fence-only-at-connect"];

/// What only a power cut brings to light.
const POWER_CUTS: [&str; 3] = ["answer-before-sync", "serve-unsynced", "no-directory-sync"];

/// What only a disk that fails brings to light, as the kernel tells it: once.
const BROKEN_DISKS: [&str; 2] = ["sync-tail-without-rewrite", "retry-failed-sync"];

fn main() -> ExitCode {
    if let Some(ended) = run_tracer_if_asked() {
        return ended;
    }
    let kills = KILLS.map(|sabotage| {
        trial::new(format!("kills_notice_{sabotage}"), None, move || {
            noticed(sabotage, |seed, folder| {
                let run = CrashRun {
                    seed,
                    cycles: CYCLES,
                    sabotage: Some(sabotage.to_owned()),
                    disturbance: (sabotage == "fence-only-at-connect").then_some(Order::Claim),
                    deadline: DEADLINE,
                };
                trial::block_on(run.run(folder.path()))
            })
        })
    });
    let power_cuts = POWER_CUTS.map(|sabotage| {
        trial::new(format!("power_cuts_notice_{sabotage}"), why_not(FileSystem::Ext4), move || {
            noticed(sabotage, |seed, folder| {
                let run = PowerRun {
                    seed,
                    cuts: CYCLES,
                    file_system: FileSystem::Ext4,
                    sabotage: Some(sabotage.to_owned()),
                    at_new_segments: sabotage == "no-directory-sync",
                    deadline: DEADLINE,
                };
                trial::block_on(run.run(folder.path()))
            })
        })
    });
    let broken_disks = BROKEN_DISKS.map(|sabotage| {
        trial::new(format!("broken_disks_notice_{sabotage}"), why_not(FileSystem::Ext4), move || {
            noticed(sabotage, |seed, folder| {
                let sabotage = Some(sabotage.to_owned());
                let run = BrokenDiskRun { seed, cycles: CYCLES, sabotage, deadline: DEADLINE };
                trial::block_on(run.run(folder.path()))
            })
        })
    });
    let failing_sync = trial::new("failing_calls_notice_retry-failed-sync", fault::why_not(), || {
        noticed("retry-failed-sync", |seed, folder| trial::block_on(failing_syncs(seed, folder, "retry-failed-sync")))
    });
    let trials = kills.into_iter().chain(power_cuts).chain(broken_disks).chain([failing_sync]).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A life for each of the log's first syncs, which fails.
async fn failing_syncs(seed: u64, folder: &RunFolder, sabotage: &str) -> Result<Figures, Failure> {
    let beginning = Beginning::make(folder.path(), seed).await?;
    for n in 1..=CYCLES {
        let (kinds, thread) = (vec![Kind::Sync], LOG_THREAD.to_owned());
        let fault = Fault { kinds, thread, ..Fault::at(n, Action::Fail(Errno::EIO as i32)) };
        beginning.live(fault, Some(sabotage)).await?;
    }
    Ok(Figures { cycles: CYCLES, ..Figures::default() })
}

fn noticed(sabotage: &str, run: impl FnOnce(u64, &RunFolder) -> Result<Figures, Failure>) -> Result<(), Failed> {
    let seed = Random::seed_of_run();
    let folder = RunFolder::new();
    match run(seed, &folder) {
        Err(Failure::Violation(what)) => {
            println!("{sabotage}, seed {seed}: noticed: {what}");
            Ok(())
        }
        Err(trouble) => Err(format!("seed {seed}: {trouble}; kept in {}", folder.keep().display()).into()),
        Ok(figures) => Err(format!("{sabotage} was not noticed with seed {seed} in {figures}").into()),
    }
}
