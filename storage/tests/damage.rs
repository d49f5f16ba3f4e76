//! What becomes of a log whose segments were damaged, lost, mixed up or left over: all is told, nothing is served wrongly,
//! and what can be served is.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

mod driver;

use driver::ENTRIES_AT;
use driver::survived::{all_there, copy_of, some_entries, start};
use driver::told::{kinds, log_of_several_segments, the_same_at_each_start, told_rightly};
use tidelog_storage::medium::{Medium, SimulatedRng};
use tidelog_storage::{DamageKind, FactKind, Replayed, Sabotages, verify};

#[test]
fn a_lost_segment_is_told_and_both_neighbours_are_served() {
    let mut driver = log_of_several_segments(1);
    let names = driver.names("segment-");
    for middle in 1..names.len() - 1 {
        let mut hurt = driver.fork(middle as u64);
        hurt.remove(&names[middle]);
        let hole = hurt.base_of(&names[middle - 1])..hurt.base_of(&names[middle + 1]);
        let observed = the_same_at_each_start(&mut hurt);
        assert!(kinds(&observed).contains(&DamageKind::SegmentMissing), "{:?}", observed.report.damages);
        assert_eq!(observed.holes.len(), 1);
        assert!(observed.holes[0].start > hole.start && observed.holes[0].end == hole.end);
    }
    driver.open_judged().unwrap();
}

#[test]
fn two_lost_segments_in_a_row_are_one_hole() {
    let mut driver = log_of_several_segments(2);
    let names = driver.names("segment-");
    driver.remove(&names[1]);
    driver.remove(&names[2]);
    let observed = the_same_at_each_start(&mut driver);
    assert_eq!(observed.holes.len(), 1);
}

#[test]
fn lost_oldest_segments_are_told_and_the_rest_is_served() {
    let mut driver = log_of_several_segments(3);
    let names = driver.names("segment-");
    driver.remove(&names[0]);
    driver.remove(&names[1]);
    let observed = the_same_at_each_start(&mut driver);
    let lost = 0..driver.base_of(&names[2]);
    assert_eq!(observed.holes, [lost]);
}

#[test]
fn what_a_start_cut_off_does_not_come_back_when_its_successor_is_lost() {
    for unreadable in [false, true] {
        let mut driver = start(4, Sabotages::default()).unwrap();
        some_entries(&mut driver).unwrap();
        driver.append_one(1, 4_000).unwrap();
        let broken = driver.last();
        driver.append_one(2, 400).unwrap();
        driver.append_one(3, 400).unwrap();
        driver.take_group();
        driver.step().unwrap();
        driver.kill();
        driver.flip(broken.position + 20, 3);
        driver.flip(copy_of(&broken) + 20, 3);
        driver.reopen().unwrap();
        some_entries(&mut driver).unwrap();
        driver.close().unwrap();
        driver.kill();
        driver.reopen().unwrap();
        driver.kill();
        let names = driver.names("segment-");
        assert_eq!(names.len(), 3);
        if unreadable {
            // The newest ones: the cut one is the newest that can be read.
            for name in &names[1..] {
                driver.overwrite(name, 0, &[0xEE; 8_192]);
            }
        } else {
            driver.remove(&names[1]);
        }
        for at in 1..60 {
            let mut stopped = driver.fork(at);
            stopped.disk.crash_at_operation(at);
            let _ = stopped.open_observed();
            stopped.cut_power();
            let observed = stopped.open_observed().unwrap();
            told_rightly(&mut stopped, &observed);
            assert_eq!(observed.holes[0].start, broken.position, "stopped at operation {at}");
        }
        let observed = the_same_at_each_start(&mut driver);
        assert_eq!(observed.holes.len(), 1);
        assert_eq!(observed.holes[0].start, broken.position);
    }
}

#[test]
fn one_header_copy_of_any_segment_is_enough() {
    let driver = log_of_several_segments(5);
    for name in driver.names("segment-") {
        for copy in [0, 4_096] {
            let mut hurt = driver.fork(copy);
            hurt.disk.flip_bit(&name, copy + 60, 2).unwrap();
            let observed = hurt.open_observed().unwrap();
            assert_eq!(kinds(&observed), [DamageKind::SegmentHeaderCopy], "{name}");
            assert!(all_there(&hurt, &observed));
            hurt.read_everything_back().unwrap();
        }
    }
}

#[test]
fn an_older_segment_without_headers_is_read_by_what_its_successor_says() {
    let driver = log_of_several_segments(6);
    let names = driver.names("segment-");
    for name in &names[..names.len() - 1] {
        let mut hurt = driver.fork(1);
        hurt.disk.flip_bit(name, 60, 2).unwrap();
        hurt.disk.flip_bit(name, 4_096 + 60, 2).unwrap();
        for footers in [true, false] {
            if !footers {
                for footer in hurt.names("footer-") {
                    hurt.remove(&footer);
                }
            }
            let observed = hurt.open_observed().unwrap();
            assert_eq!(kinds(&observed), [DamageKind::SegmentHeader], "{name}");
            assert!(all_there(&hurt, &observed) && observed.holes.is_empty());
            hurt.run_jobs().unwrap();
            hurt.read_everything_back().unwrap();
            hurt.kill();
        }
    }
}

#[test]
fn behind_a_newest_segment_without_headers_the_log_goes_on_and_nothing_of_it_is_served() {
    let mut driver = log_of_several_segments(8);
    driver.reopen().unwrap();
    some_entries(&mut driver).unwrap();
    driver.close().unwrap();
    driver.kill();
    let (newest, starts) = (driver.names("segment-").pop().unwrap(), driver.lives);
    let (base, end) = (driver.base_of(&newest), driver.last().end);
    driver.overwrite(&newest, 0, &[0xEE; 8_192]);
    driver.model.entries.retain(|expected| expected.entry.end <= base);
    let observed = the_same_at_each_start(&mut driver);
    assert_eq!(observed.holes.len(), 1);
    assert!(observed.holes[0].start == base && observed.holes[0].end >= end, "{:?} for {base}..{end}", observed.holes);
    assert!(observed.report.start_count > starts, "a start count was used twice: {}", observed.report.start_count);
}

#[test]
fn segments_cut_short_are_told_from_where_they_end() {
    let driver = log_of_several_segments(9);
    let mut rng = SimulatedRng::new(9);
    for name in driver.names("segment-") {
        let len = driver.bytes_of(&name).len() as u64;
        // Half of the cuts go through entries in the newest one too, which is mostly zeros.
        let used = (driver.last().end - driver.base_of(&name)).min(len - ENTRIES_AT);
        let reach = |round| if round % 2 == 0 { used } else { len - ENTRIES_AT };
        let lens: Vec<u64> = (0..40).map(|round| ENTRIES_AT + rng.below(reach(round))).collect();
        for len in lens.into_iter().chain([5_000, 100, 0, len - 1]) {
            let mut hurt = driver.fork(rng.next_u64());
            hurt.set_len(&name, len);
            let observed = the_same_at_each_start(&mut hurt);
            let is_told = !observed.report.damages.is_empty();
            assert!(is_told, "{name} cut to {len}: {:?}", observed.report);
        }
    }
}

#[test]
fn a_lost_newest_segment_shows_in_the_one_before_it() {
    let mut driver = log_of_several_segments(29);
    driver.reopen().unwrap();
    some_entries(&mut driver).unwrap();
    driver.close().unwrap();
    driver.kill();
    driver.remove(&driver.names("segment-").pop().unwrap());
    let observed = the_same_at_each_start(&mut driver);
    assert_eq!(observed.holes.len(), 1);
}

#[test]
fn swapped_segments_are_told_and_never_served_in_each_others_place() {
    let driver = log_of_several_segments(10);
    let names = driver.names("segment-");
    for first in 0..names.len() - 1 {
        let mut hurt = driver.fork(first as u64);
        let (one, other) = (hurt.bytes_of(&names[first]), hurt.bytes_of(&names[first + 1]));
        hurt.put(&names[first], &other);
        hurt.put(&names[first + 1], &one);
        let observed = match hurt.open_observed() {
            Ok(observed) => observed,
            Err(error) => panic!("{first}: {error}"),
        };
        assert!(!observed.holes.is_empty());
        told_rightly(&mut hurt, &observed);
    }
}

#[test]
fn a_stale_copy_of_an_older_segment_under_a_newer_name_is_not_served() {
    let mut driver = log_of_several_segments(11);
    let names = driver.names("segment-");
    let old = driver.bytes_of(&names[0]);
    driver.put("segment-0000000000000042", &old);
    let observed = the_same_at_each_start(&mut driver);
    assert_eq!(observed.holes.len(), 1);
    // In the place of a newer one, it is that one that is lost.
    let mut driver = log_of_several_segments(11);
    driver.put(&names[2], &old);
    let observed = the_same_at_each_start(&mut driver);
    assert!(!observed.holes.is_empty());
}

#[test]
fn a_segment_that_ends_in_the_middle_of_a_word_is_read_to_its_end() {
    let mut driver = log_of_several_segments(26);
    let name = driver.names("segment-").remove(0);
    let len = driver.bytes_of(&name).len() as u64;
    driver.set_len(&name, len - 3);
    let observed = driver.open_observed().unwrap();
    told_rightly(&mut driver, &observed);
    assert_eq!(kinds(&observed), [DamageKind::EntryCopy]);
}

#[test]
fn what_an_interrupted_start_cut_off_is_told_by_the_next_one() {
    let mut driver = start(27, Sabotages::default()).unwrap();
    some_entries(&mut driver).unwrap();
    driver.append_one(1, 4_000).unwrap();
    let broken = driver.last();
    driver.append_one(2, 200).unwrap();
    driver.take_group();
    driver.step().unwrap();
    driver.kill();
    driver.flip(broken.position + 20, 3);
    driver.flip(copy_of(&broken) + 20, 3);
    driver.model.entries.truncate(driver.model.acknowledged);
    let segments = driver.names("segment-").len();
    let mut was_interrupted = false;
    for at in 1.. {
        let mut cut = driver.fork(at);
        cut.disk.crash_at_operation(at);
        let opened = cut.open_observed();
        cut.cut_power();
        let was_begun = cut.names("segment-").len() > segments;
        let mut was_told = false;
        verify(&cut.disk, &mut |replayed| {
            if let Replayed::Entry { head, .. } = replayed {
                was_told |= head.facts().any(|fact| fact.kind == FactKind::Cut);
            }
        })
        .unwrap();
        let again = cut.open_judged().unwrap();
        let told = again.cut.iter().chain(&again.older_cuts);
        let is_told = told.into_iter().any(|cut| cut.start == broken.position && cut.end > broken.end);
        assert!(was_told != is_told, "operation {at}: {again:?}");
        was_interrupted |= was_begun && is_told;
        if opened.is_ok() {
            break;
        }
    }
    assert!(was_interrupted, "no start was interrupted between header and start entry");
}

#[test]
fn the_medium_lists_what_the_log_made_and_nothing_else() {
    let mut driver = log_of_several_segments(28);
    driver.reopen().unwrap();
    let files = driver.disk.list().unwrap();
    let is_known = |name: &str| ["segment-", "footer-", "spare-reserve-"].iter().any(|prefix| name.starts_with(prefix));
    assert!(files.iter().all(|file| is_known(&file.name)), "{files:?}");
}
