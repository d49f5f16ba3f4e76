//! The whole broker and its clients on one thread, from a seed: whatever dies, breaks or is late, what was promised holds.
//!
//! `cargo test` simulates 400 crashes of the broker; `TIDELOG_SIM_CRASHES=2000` that many (faster with `--release`).
//! A failure prints its seed and what led there; `TIDELOG_SEED=N` replays it. Both together begin with that seed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

#[path = "simulation/mod.rs"]
mod simulation;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use simulation::lives::{self, Mishap};
use simulation::tally::Tally;
use tidelog_storage::Sabotages;

/// Deaths of one broker; then everything is compared and another one begins.
const CRASHES_PER_SEED: u64 = 10;

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

#[test]
fn whatever_dies_breaks_or_is_late_what_was_promised_holds() {
    let (first_seed, crashes) = (from_environment("TIDELOG_SEED"), from_environment("TIDELOG_SIM_CRASHES"));
    if let (Some(seed), None) = (first_seed, crashes) {
        let outcome = lives::run(seed, CRASHES_PER_SEED, Sabotages::default()).unwrap_or_else(|text| panic!("{text}"));
        println!("{outcome:?}");
        return;
    }
    let wanted = crashes.unwrap_or(400);
    let first_seed = first_seed.unwrap_or(1);
    println!("{wanted} crashes, {CRASHES_PER_SEED} for each seed from {first_seed} on");
    #[expect(clippy::disallowed_methods, reason = "a figure for people")]
    let started = Instant::now();
    let next_seed = AtomicU64::new(first_seed);
    let all = Mutex::new(Tally::default());
    let total = || all.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || {
        while total().crashes < wanted {
            let seed = next_seed.fetch_add(1, Ordering::Relaxed);
            match std::panic::catch_unwind(|| lives::run(seed, CRASHES_PER_SEED, Sabotages::default())) {
                Ok(Ok(outcome)) => total().add(&outcome.tally),
                Ok(Err(text)) => return Some(format!("TIDELOG_SEED={seed}: {text}")),
                Err(_) => return Some(format!("TIDELOG_SEED={seed}: a panic, see above")),
            }
        }
        None
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let tally = *total();
    let minutes = started.elapsed().as_secs_f64() / 60.0;
    println!("{tally:?}");
    println!("{:.0} crashes a minute on {threads} threads", tally.crashes as f64 / minutes);
    // A simulation that meets nothing shows nothing.
    let met = [tally.at_operation, tally.at_message, tally.at_moment, tally.breaks, tally.fenced, tally.duplicates];
    assert!(met.iter().all(|count| *count >= wanted / 40), "too little happened: {tally:?}");
    assert!(tally.acknowledged > 20 * wanted && tally.seen > 20 * wanted, "too little happened: {tally:?}");
}

/// Does it to the first, the second … until a run passes untouched; returns how often that was.
fn one_after_the_other(mishap: fn(u64) -> Mishap, struck: fn(&Tally) -> u64) -> u64 {
    let seed = from_environment("TIDELOG_SEED").unwrap_or(1);
    let mut untouched = 0;
    for n in 1.. {
        let outcome = lives::run_once(seed, mishap(n), Sabotages::default())
            .unwrap_or_else(|text| panic!("TIDELOG_SEED={seed} {:?}: {text}", mishap(n)));
        if struck(&outcome.tally) == 0 {
            untouched = n;
            break;
        }
    }
    untouched - 1
}

#[test]
fn every_disk_operation_may_be_the_last() {
    let count = one_after_the_other(Mishap::PowerFailsAtOperation, |tally| tally.at_operation);
    println!("{count} operations");
    assert!(count >= 40, "{count} operations");
}

#[test]
fn every_message_may_be_the_last() {
    let count = one_after_the_other(Mishap::PowerFailsAtMessage, |tally| tally.at_message);
    println!("{count} messages");
    assert!(count >= 100, "{count} messages");
}

#[test]
fn every_message_may_be_lost_with_its_connection() {
    let count = one_after_the_other(Mishap::ConnectionBreaksAtMessage, |tally| tally.planned_breaks);
    println!("{count} messages");
    assert!(count >= 100, "{count} messages");
}

#[test]
fn a_seed_replays_the_same_history() {
    for seed in [1, 2] {
        let histories = [(); 2].map(|()| lives::run(seed, CRASHES_PER_SEED, Sabotages::default()).unwrap().digest);
        assert_eq!(histories[0], histories[1], "seed {seed}");
        assert!(histories[0].1 > 1_000, "a history of {} events", histories[0].1);
    }
}
