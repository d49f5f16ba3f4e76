//! Each deliberate defect of the broker must turn a history red, and the crash model too: a test that can't fail shows
//! nothing. Every one of them is found within 20 cycles of working, dying and starting again.
#![cfg(feature = "sabotage")]

mod scenarios;

use scenarios::{Checked, crash, histories};
use tidelog_storage::{Sabotage, Sabotages};

/// Cycles within which a defect must show.
const CYCLES_MAX: u64 = 20;

/// A history that says what was wrong; its seed comes first.
type History = fn(u64, Sabotages) -> Checked;

/// The defects of the broker, and the history that is written against each. Those of the storage have tests of their own.
const DEFECTS: [(Sabotage, History); 12] = [
    (Sabotage::ForgetProducers, histories::a_resent_batch_is_a_duplicate_after_a_restart),
    (Sabotage::ServeUnsynced, histories::what_a_consumer_was_given_survives),
    (Sabotage::AcceptAnyFirstSequence, histories::the_first_sequence_is_one),
    (Sabotage::FenceOnlyAtConnect, histories::an_older_session_is_fenced_at_its_next_batch),
    (Sabotage::SendRefusalsAtOnce, histories::a_refusal_that_was_told_stays_true),
    (Sabotage::AnyOldIsDuplicate, histories::only_what_is_stored_is_a_duplicate),
    (Sabotage::ReopenRaisesEpoch, histories::a_retried_open_is_the_same_open),
    (Sabotage::TrustBatchChecksum, histories::a_hostile_batch_costs_its_neighbours_nothing),
    (Sabotage::StreamByName, histories::a_stream_made_again_is_another_one),
    (Sabotage::DropDeletionEarly, histories::a_removed_stream_stays_removed),
    (Sabotage::CheckpointFromOrderedFold, histories::a_checkpoint_counts_in_only_what_is_durable),
    (Sabotage::CheckpointWithoutBranchCheck, histories::a_checkpoint_of_another_branch_is_not_believed),
];

/// What a history says to a defect, if anything; a broker that panics is red as well.
fn verdict(history: impl Fn() -> Checked + std::panic::UnwindSafe) -> Option<String> {
    match std::panic::catch_unwind(history) {
        Ok(Ok(())) => None,
        Ok(Err(text)) => Some(text),
        Err(_) => Some("a panic, see above".to_owned()),
    }
}

fn first_red(history: impl Fn(u64) -> Checked + std::panic::RefUnwindSafe) -> Option<(u64, String)> {
    (1..=CYCLES_MAX).find_map(|seed| verdict(|| history(seed)).map(|text| (seed, text)))
}

#[test]
fn each_defect_turns_the_history_red_that_is_written_against_it() {
    for (defect, history) in DEFECTS {
        let red = first_red(|seed| history(seed, Sabotages::default().with(defect)));
        let (seed, text) = red.unwrap_or_else(|| panic!("{} was not found in {CYCLES_MAX} cycles", defect.name()));
        println!("{} at seed {seed}: {text}", defect.name());
        assert!(!text.starts_with("a panic"), "{} ends in a panic instead of a finding", defect.name());
    }
}

#[test]
fn without_a_defect_the_same_histories_are_green_in_all_those_cycles() {
    for (defect, history) in DEFECTS {
        let red = first_red(|seed| history(seed, Sabotages::default()));
        assert_eq!(red, None, "the history against {}", defect.name());
    }
}

/// Deaths of one broker in the crash model: each is a cycle.
const CRASHES_PER_SEED: u64 = 10;

#[test]
fn the_crash_model_finds_each_defect_by_itself() {
    for (defect, _) in DEFECTS {
        let sabotages = Sabotages::default().with(defect);
        let red = (1..=CYCLES_MAX / CRASHES_PER_SEED).find_map(|seed| {
            let text = verdict(|| crash::run(seed, CRASHES_PER_SEED, sabotages).map(|_| ()))?;
            Some((seed, text))
        });
        let (seed, text) = red.unwrap_or_else(|| panic!("{} was not found in {CYCLES_MAX} cycles", defect.name()));
        println!("{} at seed {seed}: {}", defect.name(), text.chars().take(160).collect::<String>());
    }
}
