//! A full disk while the log runs: who may still write, how much, and what stays for the next start.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

mod driver;

use driver::survived::fill_a_segment;
use driver::{Driver, Spec, small_options};
use tidelog_storage::{AppendError, Job, JobOutcome, LogOptions, Room};

const RESERVE_BYTES: u64 = 128 << 10;
/// Of a segment's file, the two headers.
const HEADERS_BYTES: u64 = 8_192;
const NO_ROOM: Result<(), AppendError> = Err(AppendError::NoSegmentReady);

/// A log whose active segment is full, on a disk that is full.
fn full(seed: u64) -> Driver {
    let mut driver = Driver::started(seed, LogOptions { segment_bytes: 256 << 10, ..small_options() }).unwrap();
    fill_a_segment(&mut driver).unwrap();
    driver.disk.set_capacity_bytes(Some(driver.disk.used_bytes()));
    while driver.try_append(&[Spec::records(1, &[1; 4_000])]).is_ok() {}
    while driver.try_append(&[Spec::records(1, &[1; 20])]).is_ok() {}
    driver.commit().unwrap();
    assert!(driver.prepare_spare().is_err(), "the disk is full");
    driver
}

/// What the driver in `engine/driver.rs` does when a spare can't be prepared.
fn take_reserve(driver: &mut Driver) -> bool {
    let life = driver.life();
    let JobOutcome::Reserve(reserve) = life.log.housekeeping.run(&Job::TakeReserve).unwrap() else { panic!() };
    let is_there = reserve.is_some();
    reserve.into_iter().for_each(|reserve| life.log.appender.put_reserve(reserve));
    is_there
}

fn small(number: usize) -> Spec {
    Spec::fact(9, &[number as u8; 40])
}

/// Appends until there is no such room; each in a group of its own, as when nobody else is there.
fn exhaust(driver: &mut Driver, room: Room) -> usize {
    for number in 0.. {
        if driver.try_append_in(room, &[small(number)]).is_err() {
            return number;
        }
        driver.commit().unwrap();
    }
    unreachable!()
}

fn reserve_files(driver: &Driver) -> Vec<u64> {
    driver.names("spare-reserve-").iter().map(|name| driver.bytes_of(name).len() as u64).collect()
}

/// A start that leaves its jobs undone: on a full disk not all can be done.
fn start(driver: &mut Driver) -> Result<(), String> {
    driver.open_judged().map(|_| ()).map_err(String::from)
}

fn die(driver: &mut Driver, how: u64) {
    match how % 3 {
        0 => driver.kill(),
        1 => driver.cut_power(),
        _ => driver.cut_power_losing_unsynced(),
    }
}

#[test]
fn on_a_full_disk_the_reserve_is_for_what_helps_and_its_second_half_for_what_helps_most() {
    let mut driver = full(1);
    for room in [Room::Ordinary, Room::HalfReserve, Room::Reserve] {
        assert_eq!(driver.try_append_in(room, &[small(0)]), NO_ROOM, "nothing is at hand yet");
    }
    assert!(take_reserve(&mut driver));
    assert_eq!(driver.try_append(&[Spec::records(1, b"x")]), NO_ROOM);
    assert!(!driver.life().log.appender.is_on_reserve());

    let begin = driver.durable();
    let commits = exhaust(&mut driver, Room::HalfReserve);
    assert!(driver.life().log.appender.is_on_reserve());
    let used = driver.durable() - begin;
    let half = (RESERVE_BYTES - HEADERS_BYTES) / 2;
    assert!((half - 1_000..=half + 1_000).contains(&used), "{commits} took {used} of {half}");
    assert!(commits > 100, "{commits}");
    assert_eq!(driver.try_append(&[Spec::records(1, b"x")]), NO_ROOM, "there is room, and not for this");

    let deletions = exhaust(&mut driver, Room::Reserve);
    assert!(deletions > 100, "{deletions}");
    assert!(RESERVE_BYTES - HEADERS_BYTES - (driver.durable() - begin) < 1_000, "all of it is used");
    // The other file is not for any of them.
    assert!(!take_reserve(&mut driver));
    assert_eq!(reserve_files(&driver), [RESERVE_BYTES]);
    driver.read_everything_back().unwrap();

    driver.kill();
    start(&mut driver).unwrap();
    assert!(driver.life().log.appender.is_on_reserve(), "the disk is still full");
    assert_eq!(driver.try_append(&[Spec::records(1, b"x")]), NO_ROOM);
    assert!(exhaust(&mut driver, Room::HalfReserve) > 100);
    driver.read_everything_back().unwrap();
}

#[test]
fn free_space_takes_everybody_off_the_reserve_and_makes_it_whole() {
    for is_used_up in [false, true] {
        let mut driver = full(2);
        assert!(take_reserve(&mut driver));
        if is_used_up {
            exhaust(&mut driver, Room::Reserve);
        } else {
            driver.try_append_in(Room::Reserve, &[small(0)]).unwrap();
        }
        assert_eq!(driver.try_append(&[Spec::records(1, b"x")]), NO_ROOM);
        driver.disk.set_capacity_bytes(None);
        driver.prepare_spare().unwrap();
        driver.try_append(&[Spec::records(1, b"x")]).unwrap();
        assert!(!driver.life().log.appender.is_on_reserve());
        driver.commit().unwrap();
        driver.life().jobs.push_back(Job::FillReserve);
        driver.run_jobs().unwrap();
        assert_eq!(reserve_files(&driver), [RESERVE_BYTES; 2]);
        driver.read_everything_back().unwrap();
        driver.kill();
        driver.reopen().unwrap();
        assert_eq!(driver.names("spare-").len(), 2, "nothing is left over");
        driver.read_everything_back().unwrap();
    }
}

#[test]
fn a_file_of_the_reserve_is_given_out_once_and_never_the_last_one() {
    let mut driver = full(3);
    assert!(take_reserve(&mut driver));
    // Taken and not yet a segment: whoever looks at the folder now must not take it for one of the reserve.
    assert!(!take_reserve(&mut driver));
    assert!(driver.life().log.housekeeping.run(&Job::FillReserve).is_err(), "the disk is full");
    assert_eq!(reserve_files(&driver).iter().filter(|len| **len == RESERVE_BYTES).count(), 1);
}

#[test]
fn a_full_disk_and_a_crash_at_any_operation_leave_a_log_that_starts() {
    let mut rounds = 0;
    for at in 1.. {
        let mut driver = full(at);
        let before = driver.disk.operations();
        driver.disk.crash_at_operation(at);
        let worked = (|| {
            let life = driver.life();
            let Ok(JobOutcome::Reserve(reserve)) = life.log.housekeeping.run(&Job::TakeReserve) else { return false };
            reserve.into_iter().for_each(|reserve| life.log.appender.put_reserve(reserve));
            for number in 0..6 {
                let _ = driver.try_append_in(Room::Reserve, &[small(number)]);
                if driver.commit().is_err() {
                    return false;
                }
            }
            let _ = driver.life().log.housekeeping.run(&Job::FillReserve);
            !driver.disk.is_stopped()
        })();
        let operations = driver.disk.operations() - before;
        die(&mut driver, at);
        // And once more, with nothing freed in between.
        for again in 0..3 {
            start(&mut driver).unwrap_or_else(|text| panic!("operation {at}, start {again}: {text}"));
            driver.try_append_in(Room::Reserve, &[small(7)]).unwrap();
            driver.commit().unwrap();
            driver.read_everything_back().unwrap();
            while driver.run_job().unwrap_or(false) {}
            die(&mut driver, at + again);
        }
        driver.disk.set_capacity_bytes(None);
        driver.reopen().unwrap();
        driver.append_one(1, 4_000).unwrap();
        driver.commit().unwrap();
        driver.read_everything_back().unwrap();
        if worked {
            assert!(operations > 10, "only {operations} operations");
            break;
        }
        rounds += 1;
    }
    assert!(rounds > 10, "{rounds}");
}
