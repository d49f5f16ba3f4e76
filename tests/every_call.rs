//! SIGKILL exactly at each call by which the broker changes its folder: each write, sync and name, in recovery, under load,
//! at a change of segments, while footers and spares are written, and in a clean stop. The n-th call of a life is the last,
//! for every n until a life passes untouched.
//!
//! Needs a system that lets processes be traced; where there is none it counts as ignored. `TIDELOG_SEED` repeats the plan
//! of a run, `TIDELOG_ROUNDS` (1) says how often it goes through all n.

mod harness;

use std::collections::BTreeMap;
use std::process::ExitCode;

use harness::fault::{Action, Fault, run_tracer_if_asked, why_not};
use harness::folder::RunFolder;
use harness::life::{Beginning, End};
use harness::random::{Random, number_from_environment};
use harness::trial;
use libtest_mimic::{Arguments, Failed};

fn main() -> ExitCode {
    if let Some(ended) = run_tracer_if_asked() {
        return ended;
    }
    let trials = vec![trial::new("what_was_promised_survives_a_kill_at_every_single_call", why_not(), kills)];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn kills() -> Result<(), Failed> {
    let seed = Random::seed_of_run();
    let rounds = number_from_environment("TIDELOG_ROUNDS").unwrap_or(1);
    println!("TIDELOG_SEED={seed} TIDELOG_ROUNDS={rounds}");
    let folder = RunFolder::new();
    let mut killed: BTreeMap<String, u64> = BTreeMap::new();
    let run = async {
        for round in 0..rounds {
            let beginning = Beginning::make(&folder.join_new(&format!("round-{round}")), seed + round).await?;
            for n in 1.. {
                let at = format!("round {round}, call {n}");
                let end = beginning.live(Fault::at(n, Action::Kill), None).await.map_err(|failure| failure.at(&at))?;
                match end {
                    End::Killed(fired) => {
                        *killed.entry(format!("{:?}s by {}", fired.kind, fired.thread)).or_default() += 1
                    }
                    End::Untouched => break,
                    other => return Err(harness::failure::Failure::Violation(format!("{at}: {other:?}"))),
                }
            }
        }
        Ok(())
    };
    let outcome = trial::block_on(run);
    println!("{} kills: {killed:?}", killed.values().sum::<u64>());
    outcome.map_err(|failure| format!("seed {seed}: {failure}; kept in {}", folder.keep().display()).into())
}
