//! Producers that are paused while another takes their name over, and woken: nothing of them gets in any more.
//!
//! `TIDELOG_ZOMBIES` of them (6 unless told, one of each kind; 25 in CI, 1,000 in a soak), from `TIDELOG_SEED`, or a new one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod harness;

use harness::random::{Random, number_from_environment};
use harness::zombie_run::{Figures, ZombieRun};
use tokio::task::JoinSet;

const ZOMBIES: u64 = 6;

/// Zombies that live at the same time, each with its own broker.
const AT_ONCE: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_that_was_paused_and_taken_over_writes_nothing_when_it_wakes() {
    let seed = Random::seed_of_run();
    let zombies = number_from_environment("TIDELOG_ZOMBIES").unwrap_or(ZOMBIES);
    println!("TIDELOG_SEED={seed} TIDELOG_ZOMBIES={zombies}");
    let mut running = JoinSet::new();
    let mut total = Figures::default();
    for index in 0..zombies {
        if running.len() >= AT_ONCE {
            total = total.with(running.join_next().await.unwrap().unwrap());
        }
        let run = ZombieRun { seed, index, sabotage: None };
        running
            .spawn(async move { run.run().await.unwrap_or_else(|failure| panic!("TIDELOG_SEED={seed}: {failure}")) });
    }
    while let Some(figures) = running.join_next().await {
        total = total.with(figures.unwrap());
    }
    println!("{total}");
    assert!(total.late > 0 && total.restarts > 0, "{total}: nothing was late, or no broker was killed");
}
