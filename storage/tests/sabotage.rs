//! Each deliberate defect of the storage must turn a crash test red: a test that can't fail shows nothing.
#![cfg(feature = "sabotage")]

mod driver;

use driver::{Checked, chaos, survived};
use tidelog_storage::{Sabotage, Sabotages};

/// Lucks in which a history may pass in spite of the defect.
const SEEDS_MAX: u64 = 20;
/// The same for the crash model, ten crashes each.
const CHAOS_SEEDS_MAX: u64 = 120;

/// What a run with the defect found, within so many seeds.
fn first_red(seeds: u64, run: impl Fn(u64) -> Checked + std::panic::RefUnwindSafe) -> Option<String> {
    (1..=seeds).find_map(|seed| match std::panic::catch_unwind(|| run(seed)) {
        Ok(Ok(())) => None,
        Ok(Err(text)) => Some(format!("seed {seed}: {}", text.chars().take(160).collect::<String>())),
        Err(_) => Some(format!("seed {seed}: a panic")),
    })
}

fn history_turns_red(sabotage: Sabotage) {
    let history = survived::history_of(sabotage).expect("a defect of the storage has a history");
    history(1, Sabotages::default()).expect("without the defect it passes");
    let sabotages = Sabotages::default().with(sabotage);
    let red = first_red(SEEDS_MAX, |seed| history(seed, sabotages));
    println!("{}: {red:?}", sabotage.name());
    assert!(red.is_some(), "nothing noticed {}", sabotage.name());
}

fn crash_model_turns_red(sabotage: Sabotage) {
    let sabotages = Sabotages::default().with(sabotage);
    let red = first_red(CHAOS_SEEDS_MAX, |seed| chaos::run(seed, 10, sabotages).map(|_| ()));
    println!("{}: {red:?}", sabotage.name());
    assert!(red.is_some(), "nothing noticed {}", sabotage.name());
}

macro_rules! histories_turn_red {
    ($($name:ident: $sabotage:ident,)*) => {
        $(#[test] fn $name() { history_turns_red(Sabotage::$sabotage); })*
    };
}

histories_turn_red! {
    a1_notices_a_tail_synced_without_being_written_again: SyncTailWithoutRewrite,
    a1_notices_a_failed_sync_that_is_tried_again: RetryFailedSync,
    a2_notices_a_log_that_goes_on_behind_its_cut: AppendBehindCut,
    b2_notices_a_salt_that_can_be_guessed: SaltIsCounter,
    b11_notices_entries_that_claim_more_than_was_synced: StampAtEncode,
    a5_notices_answers_before_their_watermark: AnswerBeforeWatermark,
    a5_notices_a_cut_below_the_durable_position: CutAtAnyBadChecksum,
    a4_notices_headers_that_stand_once: NoHeaderCopy,
    a7_notices_a_group_split_inside_an_atomic_group: SplitAtomicGroup,
    b1_notices_a_header_written_before_the_last_sync: HeaderBeforeLastSync,
    a_power_cut_notices_answers_before_the_sync: AnswerBeforeSync,
    a_power_cut_notices_names_that_are_not_synced: NoDirectorySync,
}

#[test]
fn a2_notices_a_salt_that_repeats() {
    let sabotages = Sabotages::default().with(Sabotage::SaltIsCounter);
    let red = first_red(1, |seed| survived::entries_of_another_life_in_the_same_place(seed, sabotages));
    assert!(red.is_some(), "nothing noticed it");
}

#[test]
fn the_crash_model_notices_by_itself() {
    for sabotage in [
        Sabotage::SyncTailWithoutRewrite,
        Sabotage::AppendBehindCut,
        Sabotage::StampAtEncode,
        Sabotage::AnswerBeforeSync,
        Sabotage::NoDirectorySync,
        Sabotage::RetryFailedSync,
    ] {
        crash_model_turns_red(sabotage);
    }
}
