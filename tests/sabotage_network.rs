//! Deliberate defects that the tests of a bad network must notice within 20 cycles: a test that can't fail shows nothing.
//!
//! Built only with the feature `sabotage`.

mod harness;

use std::process::ExitCode;

use harness::failure::Failure;
use harness::random::Random;
use harness::trial;
use harness::zombie_run::ZombieRun;
use libtest_mimic::{Arguments, Failed};

const CYCLES: u64 = 20;

/// What lets a zombie in.
const ZOMBIES: [&str; 1] = ["fence-only-at-connect"];

fn main() -> ExitCode {
    let zombies = ZOMBIES.map(|sabotage| {
        trial::new(format!("zombies_notice_{sabotage}"), None, move || trial::block_on(let_in(sabotage)))
    });
    libtest_mimic::run(&Arguments::from_args(), zombies.into_iter().collect()).exit_code()
}

async fn let_in(sabotage: &str) -> Result<(), Failed> {
    let seed = Random::seed_of_run();
    for index in 0..CYCLES {
        match (ZombieRun { seed, index, sabotage: Some(sabotage.to_owned()) }).run().await {
            Ok(_) => {}
            Err(Failure::Violation(what)) => {
                println!("{sabotage}, seed {seed}: noticed by zombie {index}: {what}");
                return Ok(());
            }
            Err(trouble) => return Err(format!("seed {seed}: {trouble}").into()),
        }
    }
    Err(format!("{sabotage} was not noticed with seed {seed} in {CYCLES} zombies").into())
}
