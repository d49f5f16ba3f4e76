//! What becomes of a log whose files were damaged, lost, mixed up or left over: all is told, nothing is served wrongly,
//! and what can be served is.

mod driver;

use driver::forgery::{Forgery, crc_of, salt_in};
use driver::survived::{all_there, copy_of, fill_a_segment, several_segments, some_entries, start};
use driver::{Driver, ENTRIES_AT, Observed, Spec, small_options};
use tidelog_storage::medium::{Medium, SimulatedRng};
use tidelog_storage::{DamageKind, EntryKind, FactKind, Job, LogOptions, OpenError, ReadOutcome, Replayed, Sabotages, verify};

fn log_of_several_segments(seed: u64) -> Driver {
    several_segments(seed, Sabotages::default()).unwrap()
}

/// Whatever a reader gets is what was written, at its offset; what it does not get is told as damaged. Returns the
/// positions of what it got.
fn served_rightly(driver: &mut Driver) -> Vec<u64> {
    let mut served = Vec::new();
    for subject in driver.model.subjects() {
        let mut next = 0;
        let records: Vec<_> = driver.model.records(subject).cloned().collect();
        for outcome in driver.read(subject, 0).unwrap() {
            match outcome {
                ReadOutcome::Batch(batch) => {
                    assert_eq!(batch.base_offset, next, "a silent gap");
                    let expected = records.iter().find(|record| record.entry.base_offset == batch.base_offset).unwrap();
                    assert_eq!(batch.payload, expected.payload);
                    assert_eq!(batch.owner, expected.entry.owner);
                    served.push(expected.entry.position);
                    next = batch.next_offset();
                }
                ReadOutcome::Damaged { from, to } => {
                    assert!(from == next && to > from, "{from}..{to} told at {next}");
                    next = to;
                }
            }
        }
    }
    served.sort_unstable();
    served
}

/// As [`served_rightly`], and all is served that a start found whole.
fn all_served(driver: &mut Driver, observed: &Observed) {
    let served = served_rightly(driver);
    let found = observed.entries.iter().zip(&observed.payloads_ok);
    let records = found.filter(|(entry, is_ok)| entry.kind == EntryKind::Records && **is_ok);
    assert_eq!(served, records.map(|(entry, _)| entry.position).collect::<Vec<_>>());
}

/// A start's entries are the model's, but for those that lie in told holes, and no hole is told for nothing.
fn told_rightly(driver: &mut Driver, observed: &Observed) {
    let is_lost = |position: u64| observed.holes.iter().any(|hole| hole.contains(&position));
    let kept: Vec<_> = driver.model.entries.iter().map(|expected| &expected.entry).collect();
    let kept: Vec<_> = kept.into_iter().filter(|entry| !is_lost(entry.position)).collect();
    assert_eq!(observed.entries.iter().collect::<Vec<_>>(), kept, "holes: {:?}", observed.holes);
    for hole in &observed.holes {
        let damages = observed.report.damages.iter().filter(|damage| damage.kind == DamageKind::Hole);
        assert!(damages.into_iter().any(|damage| damage.positions == *hole), "{hole:?} is not in the report");
    }
    all_served(driver, observed);
}

/// Starts three times; each tells the same, serves what is left rightly, and the log goes on.
fn the_same_at_each_start(driver: &mut Driver) -> Observed {
    let first = driver.open_observed().unwrap();
    told_rightly(driver, &first);
    for _ in 0..2 {
        driver.kill();
        let again = driver.open_observed().unwrap();
        assert_eq!(again.holes, first.holes);
        assert_eq!(again.entries, first.entries);
        told_rightly(driver, &again);
        driver.run_jobs().unwrap();
        all_served(driver, &again);
        for footer in driver.names("footer-") {
            driver.remove(&footer);
        }
        all_served(driver, &again);
    }
    driver.append_one(7, 100).unwrap();
    driver.commit().unwrap();
    driver.read_back(7, 0).unwrap();
    driver.kill();
    let last = driver.open_observed().unwrap();
    assert_eq!(last.holes, first.holes);
    told_rightly(driver, &last);
    driver.read_back(7, 0).unwrap();
    first
}

fn kinds(observed: &Observed) -> Vec<DamageKind> {
    observed.report.damages.iter().map(|damage| damage.kind).collect()
}

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
    assert_eq!(observed.holes, [0..driver.base_of(&names[2])]);
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
fn a_stale_footer_is_not_believed_while_the_right_one_waits_to_be_written() {
    let mut driver = start(30, Sabotages::default()).unwrap();
    some_entries(&mut driver).unwrap();
    driver.append_one(1, 4_000).unwrap();
    let broken = driver.last();
    driver.append_one(1, 200).unwrap();
    driver.take_group();
    driver.step().unwrap();
    driver.kill();
    // In another history nothing breaks: its footer knows entries that this one cuts off.
    let mut other = driver.fork(31);
    other.reopen().unwrap();
    let (name, stale) = other.names("footer-").pop().map(|name| (name.clone(), other.bytes_of(&name))).unwrap();
    driver.flip(broken.position + 20, 3);
    driver.flip(copy_of(&broken) + 20, 3);
    for _ in 0..3 {
        driver.reopen().unwrap();
        driver.append_one(1, 50).unwrap();
        driver.close().unwrap();
        driver.kill();
    }
    driver.put(&name, &stale);
    driver.open_observed().unwrap();
    driver.life().jobs.retain(|job| !matches!(job, Job::WriteFooter(index) if index.number() == 1));
    driver.run_jobs().unwrap();
    driver.read_everything_back().unwrap();
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
fn a_header_that_rots_while_the_log_is_open_is_worked_out_by_the_reader() {
    let driver = log_of_several_segments(7);
    let names = driver.names("segment-");
    for name in &names[..names.len() - 1] {
        for has_footers in [true, false] {
            let mut rotten = driver.fork(1);
            rotten.open_observed().unwrap();
            rotten.run_jobs().unwrap();
            rotten.disk.flip_bit(name, 60, 2).unwrap();
            rotten.disk.flip_bit(name, 4_096 + 60, 2).unwrap();
            for footer in rotten.names("footer-").iter().filter(|_| !has_footers) {
                rotten.remove(footer);
            }
            rotten.read_everything_back().unwrap();
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
fn segments_of_another_log_are_set_aside_or_refused_and_never_served() {
    let mut driver = log_of_several_segments(12);
    let mut other = start(99, Sabotages::default()).unwrap();
    some_entries(&mut other).unwrap();
    other.close().unwrap();
    let foreign = other.bytes_of(&other.names("segment-")[0]);
    // In the place of a lost one.
    let names = driver.names("segment-");
    let mut replaced = driver.fork(1);
    replaced.put(&names[0], &foreign);
    let observed = replaced.open_observed().unwrap();
    assert!(observed.report.set_aside.len() == 1, "{:?}", observed.report);
    assert!(kinds(&observed).contains(&DamageKind::SegmentMissing));
    told_rightly(&mut replaced, &observed);
    // Newer than all: what stood there before can't be known.
    let mut named = foreign.clone();
    named[32..40].copy_from_slice(&77_u64.to_le_bytes());
    let crc = crc32fast::hash(&named[..4_092]).to_le_bytes();
    named[4_092..4_096].copy_from_slice(&crc);
    driver.put("segment-0000000000000077", &named);
    let before = driver.snapshot();
    assert!(matches!(driver.open_observed(), Err(OpenError::OtherBranch { .. })));
    assert_eq!(driver.snapshot(), before);
}

#[test]
fn a_segment_of_another_branch_is_refused_and_nothing_is_touched() {
    let mut driver = log_of_several_segments(13);
    let mut branch = driver.fork(14);
    for life in [&mut driver, &mut branch] {
        life.reopen().unwrap();
        some_entries(life).unwrap();
        life.close().unwrap();
        life.kill();
    }
    let name = driver.names("segment-").pop().unwrap();
    driver.reopen().unwrap();
    driver.kill();
    driver.put(&name, &branch.bytes_of(&name));
    let before = driver.snapshot();
    assert!(matches!(driver.open_observed(), Err(OpenError::OtherBranch { .. })));
    assert_eq!(driver.snapshot(), before);
}

#[test]
fn a_name_behind_which_no_number_is_left_is_refused() {
    let mut driver = log_of_several_segments(14);
    driver.put("segment-9999999999999999", &[]);
    let before = driver.snapshot();
    assert!(matches!(driver.open_observed(), Err(OpenError::Contradiction { .. })));
    assert_eq!(driver.snapshot(), before);
}

#[test]
fn an_unknown_format_is_refused_and_not_one_byte_is_changed() {
    let driver = log_of_several_segments(15);
    for name in driver.names("segment-") {
        for (at, value) in [(4_usize, 2_u8), (8, 1)] {
            let mut hurt = driver.fork(1);
            let mut header = hurt.bytes_of(&name)[..4_096].to_vec();
            header[at] = value;
            let crc = crc32fast::hash(&header[..4_092]).to_le_bytes();
            header[4_092..].copy_from_slice(&crc);
            hurt.overwrite(&name, 4_096, &header);
            let before = hurt.snapshot();
            assert!(matches!(hurt.open_observed(), Err(OpenError::UnknownFormat { .. })), "{name}");
            assert!(verify(&hurt.disk, &mut |_| ()).is_err());
            assert_eq!(hurt.snapshot(), before);
        }
    }
}

#[test]
fn an_entry_that_must_be_understood_is_refused_and_not_one_byte_is_changed() {
    let driver = log_of_several_segments(16);
    for expected in [0, driver.model.entries.len() - 1] {
        let entry = driver.model.entries[expected].entry.clone();
        for copy_only in [false, true] {
            let mut hurt = driver.fork(1);
            let (name, offset) = hurt.place(entry.position);
            let segment = hurt.bytes_of(&name);
            let covered = (entry.end - copy_of(&entry)) as usize;
            for at in [offset, offset + copy_of(&entry) - entry.position] {
                let mut header = segment[at as usize..at as usize + covered].to_vec();
                // The flags' high byte.
                header[35] = 0x80;
                let crc = crc_of(salt_in(&segment), &header[8..]);
                header[4..8].copy_from_slice(&crc.to_le_bytes());
                hurt.overwrite(&name, at, &header);
            }
            if copy_only {
                hurt.flip(entry.position + 50, 1);
            }
            let before = hurt.snapshot();
            let refused = hurt.open_observed();
            assert!(matches!(refused, Err(OpenError::UnknownEntry { flags: 0x8000, .. })), "{:?}", refused.err());
            assert!(verify(&hurt.disk, &mut |_| ()).is_err());
            assert_eq!(hurt.snapshot(), before);
        }
    }
}

#[test]
fn an_unknown_kind_is_refused_but_unknown_low_flags_are_not() {
    let mut driver = start(17, Sabotages::default()).unwrap();
    some_entries(&mut driver).unwrap();
    let position = driver.durable();
    driver.close().unwrap();
    driver.kill();
    let (name, offset) = driver.place(position);
    let salt = salt_in(&driver.bytes_of(&name));
    let position = position + 208;
    let forged = Forgery { salt, position, flags: 0x0001, subject: 9 };
    driver.overwrite(&name, offset + 208, &forged.bytes());
    let mut newer = driver.fork(1);
    let observed = driver.open_observed().unwrap();
    assert_eq!(observed.entries.last().unwrap().subject, 9);
    newer.overwrite(&name, offset + 208, &Forgery { flags: 0x0101, ..forged }.bytes());
    assert!(matches!(newer.open_observed(), Err(OpenError::UnknownEntry { .. })));
}

#[test]
fn a_folder_in_use_is_refused_and_left_alone() {
    let mut driver = start(18, Sabotages::default()).unwrap();
    some_entries(&mut driver).unwrap();
    let first = driver.life.take();
    let before = driver.snapshot();
    assert!(matches!(driver.open_observed(), Err(OpenError::Locked(_))));
    assert!(matches!(verify(&driver.disk, &mut |_| ()), Err(OpenError::Locked(_))));
    assert_eq!(driver.snapshot(), before);
    driver.life = first;
    driver.close().unwrap();
    driver.reopen().unwrap();
}

#[test]
fn damaged_footers_have_no_effect_and_are_made_again() {
    let mut driver = log_of_several_segments(19);
    driver.reopen().unwrap();
    driver.kill();
    let mut rng = SimulatedRng::new(19);
    for name in driver.names("footer-") {
        let whole = driver.bytes_of(&name);
        for round in 0..60 {
            let mut hurt = driver.fork(round);
            match round % 4 {
                0 => hurt.disk.flip_bit(&name, rng.below(whole.len() as u64), (round % 8) as u8).unwrap(),
                1 => hurt.set_len(&name, rng.below(whole.len() as u64)),
                2 => hurt.remove(&name),
                // A footer of another segment.
                _ => hurt.put(&name, &driver.bytes_of(&driver.names("footer-")[round as usize % 2])),
            }
            if round % 3 == 0 {
                // While the log is open.
                let mut open = driver.fork(round);
                open.reopen().unwrap();
                let bytes = hurt.names(&name).iter().map(|name| hurt.bytes_of(name)).next();
                match bytes {
                    Some(bytes) => open.put(&name, &bytes),
                    None => open.remove(&name),
                }
                open.read_everything_back().unwrap();
            }
            hurt.reopen().unwrap();
            hurt.read_everything_back().unwrap();
            let made_again = hurt.bytes_of(&name);
            assert_eq!(made_again, whole, "{name}");
        }
    }
}

#[test]
fn readers_find_their_way_when_all_footers_vanish_at_once() {
    let mut driver = log_of_several_segments(20);
    // A stream that only the oldest segment holds, and one that skips some.
    driver.reopen().unwrap();
    for footer in driver.names("footer-") {
        driver.remove(&footer);
    }
    driver.read_everything_back().unwrap();
    for subject in driver.model.subjects() {
        for from in 0..driver.model.next_offset(subject) {
            driver.read_back(subject, from).unwrap();
        }
    }
}

#[test]
fn a_stream_is_found_past_segments_that_do_not_hold_it_with_any_footers_missing() {
    let mut driver = start(21, Sabotages::default()).unwrap();
    for life in 0..5 {
        // Stream 9 stands in the first, third and fifth segment.
        if life % 2 == 0 {
            driver.append_one(9, 100).unwrap();
        }
        driver.append_one(1, 100).unwrap();
        driver.close().unwrap();
        driver.kill();
        driver.reopen().unwrap();
    }
    let footers = driver.names("footer-");
    driver.kill();
    for missing in 0..1_u32 << footers.len() {
        let mut hurt = driver.fork(1);
        hurt.reopen().unwrap();
        for (at, footer) in footers.iter().enumerate() {
            if missing & (1 << at) != 0 {
                hurt.remove(footer);
            }
        }
        hurt.read_back(9, 0).unwrap();
        hurt.read_back(9, 1).unwrap();
        hurt.read_back(1, 0).unwrap();
    }
}

#[test]
fn what_lies_past_the_end_is_served_to_nobody_with_a_footer_or_without() {
    let mut driver = start(22, Sabotages::default()).unwrap();
    some_entries(&mut driver).unwrap();
    driver.append_one(1, 4_000).unwrap();
    let broken = driver.last();
    driver.append_one(1, 200).unwrap();
    driver.append_one(2, 200).unwrap();
    driver.take_group();
    driver.step().unwrap();
    driver.kill();
    driver.flip(broken.position + 20, 3);
    driver.flip(copy_of(&broken) + 20, 3);
    let report = driver.reopen().unwrap();
    assert!(report.cut.is_some());
    driver.read_everything_back().unwrap();
    for footer in driver.names("footer-") {
        driver.remove(&footer);
    }
    driver.kill();
    driver.open_judged().unwrap();
    driver.run_jobs().unwrap();
    for footer in driver.names("footer-") {
        driver.remove(&footer);
    }
    driver.read_everything_back().unwrap();
    // The log has gone on at the same offsets, and they are the new ones.
    driver.append_one(1, 60).unwrap();
    driver.commit().unwrap();
    driver.read_everything_back().unwrap();
}

#[test]
fn any_flipped_bit_costs_one_batch_at_most_and_is_told() {
    let driver = log_of_several_segments(23);
    let mut rng = SimulatedRng::new(23);
    for round in 0..400 {
        let mut hurt = driver.fork(round);
        let names = hurt.names("segment-");
        let name = &names[rng.below(names.len() as u64) as usize];
        let len = hurt.bytes_of(name).len() as u64;
        hurt.disk.flip_bit(name, rng.below(len), rng.below(8) as u8).unwrap();
        let verified = verify(&hurt.disk, &mut |_| ()).unwrap();
        let observed = hurt.open_observed().unwrap();
        assert_eq!(verified.damages, observed.report.damages);
        assert!(observed.holes.is_empty(), "one bit made a hole: {:?}", observed.holes);
        assert!(all_there(&hurt, &observed), "one bit cost state");
        assert!(observed.report.damages.len() <= 1);
        let unreadable = observed.payloads_ok.iter().filter(|is_ok| !**is_ok).count();
        assert!(unreadable <= 1 && unreadable <= observed.report.damages.len());
        served_rightly(&mut hurt);
        hurt.run_jobs().unwrap();
        served_rightly(&mut hurt);
    }
}

#[test]
fn a_reader_names_the_same_damage_when_it_came_after_the_start() {
    let driver = log_of_several_segments(24);
    let mut rng = SimulatedRng::new(24);
    for round in 0..60 {
        let mut hurt = driver.fork(round);
        hurt.reopen().unwrap();
        let lost = rng.below(driver.model.entries.len() as u64) as usize;
        let entry = driver.model.entries[lost].entry.clone();
        hurt.flip(entry.position + rng.below(104), 4);
        if round % 2 == 0 {
            let copy = copy_of(&entry);
            hurt.flip(copy + rng.below(104), 4);
        }
        served_rightly(&mut hurt);
    }
}

#[test]
fn a_full_log_of_options_with_larger_entries_than_a_block_is_read_back_through_damage() {
    let options = LogOptions { payload_bytes_max: 4 << 20, ..small_options() };
    let mut driver = Driver::started(25, options).unwrap();
    for subject in [1, 2, 1] {
        let mut content = vec![0; (1 << 20) + 70_000 * subject as usize];
        SimulatedRng::new(subject).fill(&mut content);
        driver.append(&[Spec::records(subject, &content)]).unwrap();
        driver.append_one(3, 500).unwrap();
        driver.commit().unwrap();
        driver.run_jobs().unwrap();
    }
    driver.read_everything_back().unwrap();
    driver.close().unwrap();
    driver.kill();
    driver.reopen().unwrap();
    let large = driver.model.entries[2].entry.clone();
    for at in [large.position + 30, copy_of(&large) + 30] {
        driver.flip(at, 2);
        served_rightly(&mut driver);
    }
    let outcomes = driver.read(2, 0).unwrap();
    assert!(outcomes.is_empty(), "nothing of it can be read: {outcomes:?}");
    driver.read_back(1, 0).unwrap();
    driver.read_back(3, 0).unwrap();
    fill_a_segment(&mut driver).unwrap();
    driver.kill();
    let observed = driver.open_observed().unwrap();
    assert_eq!(observed.holes, [large.position..large.end]);
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
