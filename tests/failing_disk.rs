//! A disk that fails: each write, sync and name in turn ends with an error, the syncs of the log in turn hang, and every
//! write is a short one. After a failed write or sync of the log nothing is acknowledged, what is durable is served, and a
//! restart finds everything that was acknowledged.
//!
//! Needs a system that lets processes be traced, and for a disk that really fails root and its tools; where there is none of
//! that a test counts as ignored. `TIDELOG_SEED` repeats the plan of a run, `TIDELOG_ROUNDS` (1) says how often it goes
//! through all calls.

mod harness;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use harness::broken_disk::BrokenDiskRun;
use harness::failure::Failure;
use harness::fault::{Action, Fault, Kind, run_tracer_if_asked, why_not};
use harness::folder::RunFolder;
use harness::life::{Beginning, End, LOG_THREAD, SYNC_TIMEOUT};
use harness::mount::{self, FileSystem};
use harness::random::{Random, number_from_environment};
use harness::trial;
use libtest_mimic::{Arguments, Failed};
use nix::errno::Errno;

fn main() -> ExitCode {
    if let Some(ended) = run_tracer_if_asked() {
        return ended;
    }
    let trials = vec![
        trial::new("a_call_that_fails_is_never_acknowledged_over", why_not(), || {
            each_call("failing", |n, random| {
                // What a broken disk says, and what one says that is full where it had promised room.
                let errno = if random.one_in(2) { Errno::EIO } else { Errno::ENOSPC };
                Fault::at(n, Action::Fail(errno as i32))
            })
        }),
        trial::new("a_sync_that_hangs_is_never_acknowledged_over", why_not(), || {
            each_call("hanging", |n, _| Fault {
                kinds: vec![Kind::Sync],
                thread: LOG_THREAD.to_owned(),
                ..Fault::at(n, Action::Delay(2 * SYNC_TIMEOUT.as_millis() as u64))
            })
        }),
        trial::new("short_writes_are_gone_on_with", why_not(), short_writes),
        trial::new(
            "a1_after_a_disk_has_failed_nothing_is_acknowledged_that_is_only_in_the_page_cache",
            mount::why_not(FileSystem::Ext4),
            broken_disk,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A life for each n, until one passes untouched.
fn each_call(what: &str, fault: impl Fn(u64, &mut Random) -> Fault) -> Result<(), Failed> {
    let seed = Random::seed_of_run();
    let rounds = number_from_environment("TIDELOG_ROUNDS").unwrap_or(1);
    println!("TIDELOG_SEED={seed} TIDELOG_ROUNDS={rounds}");
    let folder = RunFolder::new();
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    let run = async {
        for round in 0..rounds {
            let mut random = Random::new(seed + round);
            let beginning = Beginning::make(&folder.join_new(&format!("round-{round}")), seed + round).await?;
            for n in 1.. {
                let lived = beginning.live(fault(n, &mut random), None).await;
                let end = lived.map_err(|failure| failure.at(format_args!("round {round}, call {n}")))?;
                let end = match end {
                    End::Untouched => break,
                    End::DidNotStart(_) => "refused to start",
                    End::Poisoned(_) => "refused to write",
                    End::WentOn(_) => "went on",
                    End::Killed(fired) => {
                        return Err(Failure::Violation(format!("it ended by a signal after {fired}")));
                    }
                };
                *ends.entry(end).or_default() += 1;
            }
        }
        match ends.contains_key("refused to write") {
            true => Ok(()),
            false => Err(Failure::Trouble("no call was one of the log's".to_owned())),
        }
    };
    let outcome = trial::block_on(run);
    println!("{what}: {ends:?}");
    outcome.map_err(|failure| format!("seed {seed}: {failure}; kept in {}", folder.keep().display()).into())
}

fn broken_disk() -> Result<(), Failed> {
    let cycles = number_from_environment("TIDELOG_BROKEN_DISKS").unwrap_or(5);
    let seed = Random::seed_of_run();
    println!("TIDELOG_SEED={seed} TIDELOG_BROKEN_DISKS={cycles}");
    let folder = RunFolder::new();
    let run = BrokenDiskRun { seed, cycles, sabotage: None, deadline: Duration::from_secs(60 + 20 * cycles) };
    match trial::block_on(run.run(folder.path())) {
        Ok(figures) => {
            println!("{figures}");
            Ok(())
        }
        Err(failure) => Err(format!("seed {seed}: {failure}; kept in {}", folder.keep().display()).into()),
    }
}

fn short_writes() -> Result<(), Failed> {
    let seed = Random::seed_of_run();
    println!("TIDELOG_SEED={seed}");
    let folder = RunFolder::new();
    let fault = Fault { kinds: vec![Kind::Write], calls: u64::MAX, ..Fault::at(1, Action::Shorten) };
    let outcome = trial::block_on(async {
        match Beginning::make(folder.path(), seed).await?.live(fault, None).await? {
            End::WentOn(_) => Ok(()),
            other => Err(Failure::Violation(format!("{other:?}"))),
        }
    });
    outcome.map_err(|failure| format!("seed {seed}: {failure}; kept in {}", folder.keep().display()).into())
}
