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

/// Brokers within which a defect must show. Most do so in the first; the larger number is for those that need a sync that
/// fails, or a segment that is cut, and a power cut at the right moment after it.
const SEEDS_MAX: u64 = 60;

/// The defects that show through the broker's front door on a disk that keeps what it has synced. The others turn the tests
/// of the storage red: they need bits that flip (no header copy, a cut at any bad checksum, a late watermark), a forger
/// (the salt that is a counter), a transaction (the split group), or a crash at one of five operations of a segment's
/// change (a header before the last sync).
const DEFECTS: [Sabotage; 14] = [
    Sabotage::SyncTailWithoutRewrite,
    Sabotage::AppendBehindCut,
    Sabotage::StampAtEncode,
    Sabotage::AnswerBeforeSync,
    Sabotage::NoDirectorySync,
    Sabotage::RetryFailedSync,
    Sabotage::ForgetProducers,
    Sabotage::ServeUnsynced,
    Sabotage::AcceptAnyFirstSequence,
    Sabotage::FenceOnlyAtConnect,
    Sabotage::SendRefusalsAtOnce,
    Sabotage::AnyOldIsDuplicate,
    Sabotage::ReopenRaisesEpoch,
    Sabotage::TrustBatchChecksum,
];

/// What the simulation says, if anything; a broker that panics is red as well.
fn verdict(seed: u64, sabotages: Sabotages) -> Option<String> {
    match std::panic::catch_unwind(|| lives::run(seed, CRASHES_PER_SEED, sabotages)) {
        Ok(Ok(_)) => None,
        Ok(Err(text)) => Some(text.lines().next().unwrap_or_default().to_owned()),
        Err(_) => Some("a panic, see above".to_owned()),
    }
}

#[test]
fn the_simulation_finds_each_defect_that_clients_can_feel() {
    let mut unnoticed = Vec::new();
    for defect in DEFECTS {
        let red = (1..=SEEDS_MAX).find_map(|seed| Some((seed, verdict(seed, Sabotages::default().with(defect))?)));
        match red {
            Some((seed, text)) => {
                println!("{} at seed {seed}: {}", defect.name(), text.chars().take(160).collect::<String>());
            }
            None => unnoticed.push(defect.name()),
        }
    }
    assert!(unnoticed.is_empty(), "not found in {} crashes each: {unnoticed:?}", SEEDS_MAX * CRASHES_PER_SEED);
}

#[test]
fn without_a_defect_the_same_seeds_are_green() {
    let red: Vec<_> = (1..=SEEDS_MAX).filter_map(|seed| Some((seed, verdict(seed, Sabotages::default())?))).collect();
    assert_eq!(red, []);
}
