//! What readers of a log get in spite of damage, of lost and stale footers, and of what lies past the end.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

mod driver;

use driver::survived::{all_there, copy_of, fill_a_segment, some_entries, start};
use driver::told::{log_of_several_segments, served_rightly};
use driver::{Driver, Spec, small_options};
use tidelog_storage::medium::SimulatedRng;
use tidelog_storage::{Job, LogOptions, ReadOutcome, Sabotages, verify};

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
        driver.append_one(1, 3_000).unwrap();
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
fn entries_larger_than_a_block_are_read_back_through_damage() {
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
    let lost = large.position..large.end;
    assert_eq!(observed.holes, [lost]);
}

/// A reader gets as many bytes at once as it takes, and meanwhile the log goes on: the rest of a plan must not step over
/// what stood between its last visible entry and its next point.
#[test]
fn a_plan_that_was_cut_at_the_visible_end_misses_nothing_that_becomes_visible() {
    for step in 1..60_u64 {
        let mut driver = start(41, Sabotages::default()).unwrap();
        for _ in 0..40 {
            driver.append_one(1, 1_500).unwrap();
        }
        driver.commit().unwrap();
        let end = driver.durable();
        let life = driver.life();
        let mut plan = life.log.appender.index().plan(1, 0).unwrap();
        // The visible end moves on from each read to the next one.
        let (mut visible, mut outcomes) = (1_700 * step, Vec::new());
        while !plan.is_used_up() {
            outcomes.extend(life.log.reader.read(&mut plan, visible.min(end), 1_000).unwrap());
            visible += 3_400;
        }
        let mut next = 0;
        for outcome in &outcomes {
            let ReadOutcome::Batch(batch) = outcome else { panic!("step {step}: {outcome:?}") };
            assert_eq!(batch.base_offset, next, "step {step}");
            next += u64::from(batch.span);
        }
        assert_eq!(plan.offset(), next);
    }
}
