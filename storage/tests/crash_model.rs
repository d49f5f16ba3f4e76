//! The crash model: a seeded workload on a simulated machine that dies in every way at any moment, in recovery too, and
//! a plain list that the log is held against after each start.
//!
//! `cargo test` looks at 1,000 crash states; `TIDELOG_CRASH_STATES=100000` at that many (faster with `--release`).
//! A failure prints its seed; `TIDELOG_SEED=N` replays that one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

mod driver;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use driver::chaos;
use tidelog_storage::Sabotages;

/// Deaths of one log; its start after each is a crash state.
const CRASHES_PER_SEED: u64 = 10;

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

#[test]
fn what_was_acknowledged_survives_every_crash_once_in_place_and_unchanged() {
    if let Some(seed) = from_environment("TIDELOG_SEED") {
        chaos::run(seed, CRASHES_PER_SEED, Sabotages::default()).unwrap_or_else(|text| panic!("{text}"));
        return;
    }
    let wanted = from_environment("TIDELOG_CRASH_STATES").unwrap_or(1_000);
    let (next_seed, states) = (AtomicU64::new(1), AtomicU64::new(0));
    let failures: Vec<String> = thread::scope(|scope| {
        let work = || {
            while states.load(Ordering::Relaxed) < wanted {
                let seed = next_seed.fetch_add(1, Ordering::Relaxed);
                match std::panic::catch_unwind(|| chaos::run(seed, CRASHES_PER_SEED, Sabotages::default())) {
                    Ok(Ok(seen)) => states.fetch_add(seen, Ordering::Relaxed),
                    Ok(Err(text)) => return Some(format!("TIDELOG_SEED={seed}: {text}")),
                    Err(_) => return Some(format!("TIDELOG_SEED={seed}: a panic, see above")),
                };
            }
            None
        };
        let threads: Vec<_> =
            (0..thread::available_parallelism().map_or(1, usize::from)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    println!("{} crash states, {} seeds", states.into_inner(), next_seed.into_inner() - 1);
}
