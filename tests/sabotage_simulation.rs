//! Each deliberate defect that clients can come to feel must turn the simulation of the whole broker red: a test that
//! can't fail shows nothing.
//!
//! Built only with the feature `sabotage`.
#![cfg(feature = "sabotage")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

#[path = "simulation/mod.rs"]
mod simulation;

use simulation::lives;
use tidelog_storage::{Sabotage, Sabotages};

/// Deaths of one broker.
const CRASHES_PER_SEED: u64 = 10;
/// Brokers tried.
const SEEDS_MAX: u64 = 40;

fn verdict(seed: u64, sabotages: Sabotages) -> Option<String> {
    match std::panic::catch_unwind(|| lives::run(seed, CRASHES_PER_SEED, sabotages)) {
        Ok(Ok(_)) => None,
        Ok(Err(text)) => Some(text.lines().next().unwrap_or_default().to_owned()),
        Err(_) => Some("a panic, see above".to_owned()),
    }
}

#[test]
fn probe() {
    for defect in Sabotage::ALL {
        let red = (1..=SEEDS_MAX).find_map(|seed| {
            let text = verdict(seed, Sabotages::default().with(*defect))?;
            Some((seed, text))
        });
        println!("{}: {red:?}", defect.name());
    }
}
