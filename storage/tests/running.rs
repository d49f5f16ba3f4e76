//! A log at work: what it costs when idle, how it meets failing calls one by one, a full disk, odd sizes and odd clocks.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

mod driver;

use driver::survived::{fill_a_segment, some_entries, start};
use driver::{Checked, Driver, Spec, small_options};
use tidelog_storage::medium::{Medium, SimulatedMedium};
use tidelog_storage::{AppendError, EntryKind, Job, LogOptions, ReplayTime, Replayed, Room, Sabotages, verify};

#[test]
fn an_idle_log_syncs_once_and_then_never() {
    let mut driver = start(1, Sabotages::default()).unwrap();
    some_entries(&mut driver).unwrap();
    let before = driver.disk.syncs();
    driver.quiet().unwrap();
    assert_eq!(driver.disk.syncs(), before + 1);
    for _ in 0..1_000 {
        driver.quiet().unwrap();
        driver.commit().unwrap();
        driver.read_everything_back().unwrap();
    }
    assert_eq!(driver.disk.syncs(), before + 1);
    assert_eq!(driver.life().jobs.len(), 0);
}

#[test]
fn a_group_costs_one_sync_whatever_it_holds() {
    let mut driver = start(2, Sabotages::default()).unwrap();
    for entries in 1..10 {
        let before = driver.disk.syncs();
        for subject in 0..entries {
            driver.append_one(subject, 100).unwrap();
        }
        driver.commit().unwrap();
        assert_eq!(driver.disk.syncs(), before + 1);
    }
}

/// Work with everything in it: groups, atomic groups, a change of segments, housekeeping.
fn work(driver: &mut Driver) -> Checked {
    for round in 0..9 {
        driver.append(&[1, 2, 3].map(|subject| Spec::records(subject, &[round; 3_000])))?;
        driver.append_one(4, 900)?;
        driver.commit()?;
        if round % 4 == 0 {
            driver.quiet()?;
        }
        driver.run_jobs()?;
    }
    Ok(())
}

/// Lets the n-th call of a kind fail, for every n until the work passes untouched.
fn fails_at_every_call(fail: impl Fn(&SimulatedMedium, u64), is_done: impl Fn(&SimulatedMedium, u64, u64) -> bool) {
    let mut driver = start(3, Sabotages::default()).unwrap();
    fill_a_segment(&mut driver).unwrap();
    driver.close().unwrap();
    driver.kill();
    for at in 1.. {
        let mut failing = driver.fork(at);
        failing.disk.set_write_back(0);
        let before = failing.disk.operations();
        fail(&failing.disk, at);
        if failing.reopen().is_ok() && work(&mut failing).is_err() {
            // Whatever failed: what has been acknowledged is served, and if it was the writer, it takes nothing more.
            if failing.life.as_ref().is_some_and(|life| life.is_poisoned) {
                let acknowledged = failing.model.acknowledged;
                let _ = failing.append_one(5, 10);
                assert!(failing.commit().is_err(), "call {at}: a poisoned writer went on");
                assert_eq!(failing.model.acknowledged, acknowledged, "call {at}: acknowledged after a failure");
            }
            assert!(failing.disk.is_stopped() || failing.read_everything_back().is_ok(), "call {at}: readers go on");
        }
        let made = failing.disk.operations() - before;
        for end in 0..3 {
            let mut ended = failing.fork(at * 3 + end);
            match end {
                0 => ended.kill(),
                1 => ended.cut_power(),
                _ => ended.cut_power_losing_unsynced(),
            }
            ended.reopen().unwrap_or_else(|text| panic!("call {at}, end {end}: {text}"));
            ended.cut_power_losing_unsynced();
            ended.reopen().unwrap_or_else(|text| panic!("call {at}, end {end}, the start after: {text}"));
        }
        if is_done(&failing.disk, at, made) {
            assert!(at > 3, "only {at} calls");
            return;
        }
    }
}

#[test]
fn every_single_failing_sync_poisons_or_harms_nothing_and_a_restart_finds_all() {
    let calls = std::cell::Cell::new(0);
    fails_at_every_call(
        |disk, at| {
            calls.set(disk.syncs());
            disk.fail_sync(at);
        },
        |disk, at, _| disk.syncs() - calls.get() < at,
    );
}

#[test]
fn every_single_failing_write_poisons_or_harms_nothing_and_a_restart_finds_all() {
    let calls = std::cell::Cell::new(0);
    fails_at_every_call(
        |disk, at| {
            calls.set(disk.writes());
            disk.fail_write(at);
        },
        |disk, at, _| disk.writes() - calls.get() < at,
    );
}

#[test]
fn every_single_short_write_poisons_or_harms_nothing_and_a_restart_finds_all() {
    let calls = std::cell::Cell::new(0);
    fails_at_every_call(
        |disk, at| {
            calls.set(disk.writes());
            disk.short_write(at);
        },
        |disk, at, _| disk.writes() - calls.get() < at,
    );
}

#[test]
fn every_single_failing_sync_of_the_folder_poisons_or_harms_nothing_and_a_restart_finds_all() {
    let calls = std::cell::Cell::new(0);
    fails_at_every_call(
        |disk, at| {
            calls.set(disk.directory_syncs());
            disk.fail_directory_sync(at);
        },
        |disk, at, _| disk.directory_syncs() - calls.get() < at,
    );
}

#[test]
fn a_machine_that_stops_at_any_operation_finds_all_that_was_acknowledged() {
    fails_at_every_call(|disk, at| disk.crash_at_operation(at), |_, at, made| made < at);
}

#[test]
fn a_start_that_is_stopped_at_any_operation_again_and_again_loses_nothing() {
    let mut driver = start(4, Sabotages::default()).unwrap();
    some_entries(&mut driver).unwrap();
    driver.append_one(1, 2_000).unwrap();
    driver.take_group();
    driver.step().unwrap();
    for at in 1..80 {
        let mut stopped = driver.fork(at);
        stopped.cut_power();
        for again in 0..6 {
            stopped.disk.crash_at_operation(1 + (at * 7 + again * 13) % 40);
            let _ = stopped.open_judged();
            match again % 3 {
                0 => stopped.cut_power_losing_unsynced(),
                1 => stopped.cut_power(),
                _ => stopped.kill(),
            }
        }
        stopped.reopen().unwrap_or_else(|text| panic!("operation {at}: {text}"));
    }
}

#[test]
fn starts_on_a_full_disk_use_the_reserve_and_free_space_mends_all() {
    // Whether the work after a start is done, the power is cut, and somebody else takes what it gives back.
    for case in 0..6 {
        let (does_jobs, cuts_power, is_eaten) = (case < 4, case % 2 == 0, case < 2);
        let options = LogOptions { segment_bytes: 256 << 10, ..small_options() };
        let mut driver = Driver::started(5, options).unwrap();
        fill_a_segment(&mut driver).unwrap();
        some_entries(&mut driver).unwrap();
        driver.kill();
        driver.disk.set_capacity_bytes(Some(driver.disk.used_bytes()));
        for crash in 0..if is_eaten { 6 } else { 8 } {
            let what = format!("jobs {does_jobs}, power {cuts_power}, eaten {is_eaten}, crash {crash}");
            driver.open_judged().unwrap_or_else(|reason| panic!("{what}: {}", String::from(reason)));
            // A commit or a deletion still has room, a publish is refused in time, and nothing is poisoned.
            driver.try_append_in(Room::Reserve, &[Spec::fact(1, b"small")]).unwrap();
            driver.commit().unwrap();
            if driver.life().log.appender.is_on_reserve() {
                let small = driver.try_append(&[Spec::records(1, b"small")]);
                assert_eq!(small, Err(AppendError::NoSegmentReady), "{what}");
            }
            let burst: Vec<Spec> = (0..40).map(|_| Spec::records(1, &[1; 4_000])).collect();
            assert_eq!(driver.try_append(&burst), Err(AppendError::NoSegmentReady), "{what}");
            assert!(driver.prepare_spare().is_err(), "{what}: the disk is not full");
            driver.commit().unwrap();
            if does_jobs {
                while !driver.life().jobs.is_empty() {
                    let left = driver.life().jobs.len();
                    // The last one that can't be done is making the reserve whole.
                    if driver.run_job().is_err() && left == 1 {
                        break;
                    }
                }
                assert!(!driver.names("spare-reserve-").is_empty(), "{what}: nothing for the next start");
            }
            if is_eaten {
                driver.disk.set_capacity_bytes(Some(driver.disk.used_bytes()));
            }
            if cuts_power {
                driver.cut_power();
            } else {
                driver.kill();
            }
        }
        driver.disk.set_capacity_bytes(None);
        driver.reopen().unwrap();
        let whole = |driver: &Driver, name: &str| driver.bytes_of(name).len() == 128 << 10;
        assert!(driver.names("spare-reserve-").iter().filter(|name| whole(&driver, name)).count() == 2);
        fill_a_segment(&mut driver).unwrap();
        driver.read_everything_back().unwrap();
    }
}

#[test]
fn a_disk_that_was_full_is_used_again_without_a_restart() {
    let mut driver = start(6, Sabotages::default()).unwrap();
    driver.disk.set_capacity_bytes(Some(driver.disk.used_bytes()));
    while driver.try_append(&[Spec::records(1, &[1; 4_000])]).is_ok() {
        driver.commit().unwrap();
    }
    assert!(driver.prepare_spare().is_err());
    driver.read_everything_back().unwrap();
    driver.disk.set_capacity_bytes(None);
    fill_a_segment(&mut driver).unwrap();
    driver.read_everything_back().unwrap();
    assert_eq!(driver.names("spare-").len(), driver.names("spare-reserve-").len());
}

#[test]
fn a_spare_that_is_too_small_for_an_atomic_group_is_followed_by_one_that_is_not() {
    let options = LogOptions { segment_bytes: 1 << 20, ..small_options() };
    let mut driver = Driver::started(7, options).unwrap();
    driver.prepare_spare().unwrap();
    let first = driver.names("spare-");
    assert_eq!(driver.life().log.appender.spare_wanted(), None);
    let atomic: Vec<Spec> = (0..180).map(|_| Spec::records(1, &[3; 4_000])).collect();
    assert_eq!(driver.try_append(&atomic), Err(AppendError::NoSegmentReady));
    assert!(driver.life().log.appender.spare_wanted().is_some(), "nobody would ever make one that is large enough");
    driver.prepare_spare().unwrap();
    driver.append(&atomic).unwrap();
    driver.commit().unwrap();
    // The small one is not forgotten but the next segment.
    assert_eq!(driver.names("spare-"), first);
    while driver.names("segment-").len() < 3 {
        driver.try_append(&[Spec::records(2, &[4; 4_000])]).unwrap();
        driver.commit().unwrap();
    }
    assert_eq!(driver.names("spare-").len(), 2);
    let large: Vec<Spec> = (0..300).map(|_| Spec::records(1, &[3; 4_000])).collect();
    assert!(matches!(driver.try_append(&large), Err(AppendError::TooLarge { .. })));
    driver.read_everything_back().unwrap();
    driver.kill();
    driver.reopen().unwrap();
}

#[test]
fn room_that_was_made_and_not_used_is_made_again_elsewhere() {
    let options = LogOptions { segment_bytes: 1 << 20, ..small_options() };
    let mut driver = Driver::started(8, options).unwrap();
    driver.prepare_spare().unwrap();
    while driver.durable() < 100_000 {
        driver.append_one(1, 4_000).unwrap();
        driver.commit().unwrap();
    }
    // Of a segment that holds this much nothing is used, and then more is wanted than it holds.
    let begins = driver.life().log.appender.prepare(60_000).unwrap();
    let atomic: Vec<Spec> = (0..180).map(|_| Spec::records(1, &[3; 4_000])).collect();
    assert_eq!(driver.try_append(&atomic), Err(AppendError::NoSegmentReady));
    driver.append(&atomic).unwrap();
    assert_eq!(driver.model.entries[driver.model.entries.len() - atomic.len()].entry.position, begins);
    driver.commit().unwrap();
    driver.read_everything_back().unwrap();
    driver.kill();
    driver.reopen().unwrap();
    assert_eq!(driver.names("segment-").len(), 3);
}

#[test]
fn a_reader_does_not_look_for_a_segment_that_is_only_appended_to() {
    let mut driver = start(9, Sabotages::default()).unwrap();
    some_entries(&mut driver).unwrap();
    driver.prepare_spare().unwrap();
    let segments = driver.names("segment-").len();
    while driver.life().log.appender.spare_wanted().is_none() {
        driver.append_one(1, 4_000).unwrap();
    }
    assert_eq!(driver.names("segment-").len(), segments, "the next segment is a file already");
    driver.read_everything_back().unwrap();
    driver.commit().unwrap();
    driver.read_everything_back().unwrap();
}

#[test]
fn a_reader_goes_through_large_segments_whose_footers_are_not_written_yet() {
    let options = LogOptions { segment_bytes: 8 << 20, payload_bytes_max: 64 << 10, ..small_options() };
    let mut driver = Driver::started(10, options).unwrap();
    while driver.names("segment-").len() < 5 {
        driver.append(&[Spec::records(1, &[8; 17_000])]).unwrap();
        if driver.model.entries.len().is_multiple_of(50) {
            driver.append_one(2, 10).unwrap();
            driver.commit().unwrap();
        }
    }
    driver.commit().unwrap();
    driver.read_everything_back().unwrap();
    driver.run_jobs().unwrap();
    driver.read_everything_back().unwrap();
    driver.read_back(1, 300).unwrap();
}

#[test]
fn times_never_fall_whatever_the_clocks_say() {
    let mut driver = start(11, Sabotages::default()).unwrap();
    let year_ms = 365 * 86_400_000;
    let mut last = ReplayTime::default();
    for jump in [0, year_ms, -year_ms, -2 * year_ms, 3 * year_ms, 5] {
        driver.wall_ms += jump;
        driver.kill();
        driver.open_judged().unwrap();
        let started = driver.life().log.time;
        assert!(started.log_ms >= last.log_ms && started.wall_ms >= last.wall_ms, "{started:?} after {last:?}");
        for step in [5_i64, 1_000, -400, -year_ms, 7] {
            // What is appended with times that have fallen is stored with the last ones.
            let passed =
                ReplayTime { wall_ms: started.wall_ms + step, log_ms: started.log_ms.saturating_add_signed(step) };
            last = ReplayTime { wall_ms: last.wall_ms.max(passed.wall_ms), log_ms: last.log_ms.max(passed.log_ms) };
            last = ReplayTime { wall_ms: last.wall_ms.max(started.wall_ms), log_ms: last.log_ms.max(started.log_ms) };
            driver.life().time = passed;
            driver.append_one(1, 10).unwrap();
            driver.model.entries.last_mut().unwrap().entry.time = last;
        }
        driver.commit().unwrap();
    }
    driver.read_everything_back().unwrap();
    driver.kill();
    let mut before = ReplayTime::default();
    verify(&driver.disk, &mut |replayed| {
        let Replayed::Entry { head, .. } = replayed else { panic!("a hole") };
        let header = head.header;
        assert!(header.wall_ms >= before.wall_ms && header.log_ms >= before.log_ms, "{header:?}");
        before = ReplayTime { wall_ms: header.wall_ms, log_ms: header.log_ms };
    })
    .unwrap();
}

#[test]
fn log_time_moves_over_a_stop_by_the_wall_clock() {
    let mut driver = start(12, Sabotages::default()).unwrap();
    driver.append_one(1, 10).unwrap();
    driver.commit().unwrap();
    let before = driver.life().log.time.log_ms;
    driver.kill();
    driver.wall_ms += 60_000;
    driver.open_judged().unwrap();
    assert_eq!(driver.life().log.time.log_ms, before + 60_000);
    driver.kill();
    driver.wall_ms -= 600_000;
    driver.open_judged().unwrap();
    assert_eq!(driver.life().log.time.log_ms, before + 60_000);
}

#[test]
fn sealed_segments_lose_their_zeros_even_if_a_start_did_not_live_to_cut_them() {
    let mut driver = start(13, Sabotages::default()).unwrap();
    for _ in 0..4 {
        some_entries(&mut driver).unwrap();
        driver.kill();
        driver.open_judged().unwrap();
    }
    driver.run_jobs().unwrap();
    let names = driver.names("segment-");
    for name in &names[..names.len() - 1] {
        assert!(driver.bytes_of(name).len() < 16 << 10, "{name} keeps its zeros");
    }
    driver.kill();
    driver.reopen().unwrap();
}

#[test]
fn entries_of_every_kind_come_back_with_their_facts() {
    let mut driver = start(14, Sabotages::default()).unwrap();
    for kind in [EntryKind::Facts, EntryKind::Commit, EntryKind::Trim, EntryKind::Hole] {
        driver.append(&[Spec { kind, ..Spec::fact(5, &[kind as u8; 30]) }]).unwrap();
    }
    driver.append(&[Spec::fact(1, b"one"), Spec::records(1, b"and its record"), Spec::fact(1, b"two")]).unwrap();
    driver.commit().unwrap();
    driver.kill();
    driver.reopen().unwrap();
    assert_eq!(driver.model.entries.len(), 7);
}

#[test]
fn a_leftover_job_for_a_file_that_is_gone_is_done() {
    let mut driver = start(15, Sabotages::default()).unwrap();
    let job = Job::RemoveLeftover { name: "spare-0000000000000000".to_owned() };
    driver.life().log.housekeeping.run(&job).unwrap();
    assert!(driver.disk.list().unwrap().iter().all(|file| file.name != "spare-0000000000000000"));
}
