//! How the next file is made on a disk, and what is written to it, for a log in haste and for one at leisure.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tidelog_storage::medium::{DiskMedium, Medium};
use tidelog_storage::{EntryKind, Facts, FillPace, LogOptions, OpenedLog, ReplayTime, Replayed, open};

mod log_kit;
mod thread_io;
use log_kit::{payload, put_spare, records};
use thread_io::thread_io;

const TIME: ReplayTime = ReplayTime { wall_ms: 1_000, log_ms: 1 };
const SEGMENT_BYTES: u64 = 4 << 20;
/// Of a group that is large, and of one that is small.
const LARGE: usize = 512 << 10;
const SMALL: usize = 3_000;
/// Some segments of large ones.
const GROUPS: u64 = 60;

/// Opens the log and gives the payloads' lengths that it holds.
fn opened(folder: &Path) -> (OpenedLog, Vec<usize>) {
    let medium: Arc<dyn Medium> = Arc::new(DiskMedium::open(folder).unwrap());
    let options =
        LogOptions { segment_first_bytes: SEGMENT_BYTES, segment_bytes: SEGMENT_BYTES, ..LogOptions::default() };
    let mut found = Vec::new();
    let log = open(&medium, &options, 5_000, &mut |replayed| match replayed {
        Replayed::Entry { head, payload_ok } if head.header.kind == EntryKind::Records => {
            assert!(payload_ok);
            found.push(head.header.payload_len as usize);
        }
        Replayed::Entry { .. } => {}
        Replayed::Hole(range) => panic!("hole {range:?}"),
    });
    let log = log.unwrap();
    assert_eq!(log.report.damages, []);
    (log, found)
}

/// Commits a group of one entry.
fn commit(log: &mut OpenedLog, len: usize, offset: u64) {
    let (facts, payload) = (Facts::default(), payload(len, 7));
    log.appender.append(&[records(5, offset, &facts, &payload)], TIME).unwrap();
    while let Some(mut group) = log.appender.take_group() {
        log.writer.commit(&mut group).unwrap();
    }
}

/// What the disk has to write for some segments full of large groups.
fn cost_of_segments(pace: FillPace) -> u64 {
    // Beside the build, where a disk is.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (mut log, _) = opened(folder.path());
    // The first file is the start's.
    put_spare(&mut log, pace);
    let mut offset = 0;
    while log.appender.spare_wanted().is_none() {
        commit(&mut log, LARGE, offset);
        offset += 1;
    }
    let before = thread_io("write_bytes");
    for offset in offset..offset + GROUPS {
        put_spare(&mut log, pace);
        commit(&mut log, LARGE, offset);
    }
    thread_io("write_bytes") - before
}

#[test]
fn the_disk_writes_a_log_in_haste_once() {
    let probe = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let can = rustix::fs::fallocate(&probe, rustix::fs::FallocateFlags::empty(), 0, 4_096).is_ok();
    let content = GROUPS * LARGE as u64;
    let (in_haste, zeroed) = (cost_of_segments(FillPace::Haste), cost_of_segments(FillPace::Ordinary));
    assert!(zeroed > content / 2 * 3, "{zeroed} bytes for {content}: files were zeroed ahead");
    assert!(!can || in_haste < content / 4 * 5, "{in_haste} bytes for {content}");
}

#[test]
fn small_and_large_groups_in_room_that_was_only_taken_are_there_after_a_restart() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (mut log, found) = opened(folder.path());
    assert_eq!(found, []);
    let (mut sent, mut longest) = (Vec::new(), SEGMENT_BYTES);
    // Over some segments, the ends of which no group fits exactly.
    for offset in 0..300 {
        longest = longest.max(put_spare(&mut log, FillPace::Haste).unwrap_or(0));
        let len = if offset % 5 == 0 { LARGE } else { SMALL };
        commit(&mut log, len, offset);
        sent.push(len + 4);
    }
    // As if the process had been killed.
    drop(log);
    assert_eq!(opened(folder.path()).1, sent);
    let files = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    assert!(files.max().unwrap() <= longest, "a file has grown");
}

#[test]
fn at_leisure_a_file_is_zeroed_in_steps_that_a_sync_can_wait_for() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = opened(folder.path());
    let before = thread_io("syscw");
    let len = put_spare(&mut log, FillPace::Leisure).unwrap();
    let writes = thread_io("syscw") - before;
    assert!(writes >= len / (128 << 10), "{writes} writes for {len} bytes");
}
