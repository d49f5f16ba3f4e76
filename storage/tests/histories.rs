//! The histories that the log survives, one by one.

mod driver;

use driver::survived;
use tidelog_storage::Sabotages;

/// Runs a history with several lucks.
fn survives(history: fn(u64, Sabotages) -> driver::Checked, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        history(seed, Sabotages::default()).unwrap_or_else(|text| panic!("seed {seed}: {text}"));
    }
}

#[test]
fn a1_nothing_is_believed_from_the_page_cache_after_a_failed_sync() {
    survives(survived::failed_sync_then_restart, 1..30);
}

#[test]
fn a2_valid_entries_behind_the_cut_do_not_come_back() {
    survives(survived::valid_entries_behind_a_cut, 1..4);
}

#[test]
fn a2_entries_of_another_life_do_not_verify_in_a_segment_of_the_same_number() {
    survives(survived::entries_of_another_life_in_the_same_place, 1..4);
}

#[test]
fn a4_one_flipped_byte_of_a_header_loses_no_state() {
    survives(survived::every_header_byte_flipped, 1..2);
}

#[test]
fn a4_an_entry_without_any_header_is_a_named_hole_and_later_ones_are_kept() {
    survives(survived::both_headers_gone, 1..4);
}

#[test]
fn a5_what_was_answered_right_before_a_kill_is_damage_and_never_cut() {
    survives(survived::killed_right_after_an_answer, 1..2);
}

#[test]
fn a7_an_atomic_group_is_whole_or_absent_at_every_crash_point() {
    survives(survived::atomic_groups_are_whole, 1..2);
}

#[test]
fn b1_a_power_cut_during_a_change_of_segments_leaves_no_damage() {
    survives(survived::stopped_during_a_change_of_segments, 1..4);
}

#[test]
fn b1_a_hole_at_the_end_of_a_segment_with_a_successor_is_damage() {
    survives(survived::hole_at_the_end_of_a_segment, 1..4);
}

#[test]
fn b2_entries_inside_a_record_are_not_taken_for_the_logs() {
    survives(survived::forged_entries_in_a_record, 1..4);
}

#[test]
fn b11_sectors_torn_both_ways_lose_nothing() {
    survives(survived::torn_sectors, 1..4);
}

#[test]
fn what_was_answered_survives_a_power_cut_that_loses_all_that_was_not_synced() {
    survives(survived::names_are_durable, 1..4);
}
