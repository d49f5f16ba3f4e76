//! What reading a stream takes from the files: about what is its own, however many others are written among it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

use std::path::Path;
use std::sync::Arc;

use tidelog_storage::medium::{DiskMedium, Medium};
use tidelog_storage::{Facts, FillPace, LogOptions, OpenedLog, ReadOutcome, ReplayTime, open};

mod log_kit;
mod thread_io;
use log_kit::{payload, put_spare, records};
use thread_io::thread_io;

const TIME: ReplayTime = ReplayTime { wall_ms: 1_000, log_ms: 1 };
/// Where a stream is one of many, what stands this far behind one of its entries is looked through for others.
const LOOKED_THROUGH_BYTES: u64 = 16 << 10;

fn subject(stream: u64) -> u64 {
    8 * (stream + 1)
}

/// A log of so many streams in turn, each with `batches` batches of `len` bytes.
fn filled(folder: &Path, streams: u64, batches: u64, len: usize) -> OpenedLog {
    let medium: Arc<dyn Medium> = Arc::new(DiskMedium::open(folder).unwrap());
    let mut log = open(&medium, &LogOptions::default(), 5_000, &mut |_| {}).unwrap();
    let payload = payload(len - 4, 7);
    let facts = Facts::default();
    for offset in 0..batches {
        for stream in 0..streams {
            put_spare(&mut log, FillPace::Haste);
            log.appender.append(&[records(subject(stream), offset, &facts, &payload)], TIME).unwrap();
        }
        while let Some(mut group) = log.appender.take_group() {
            log.durable = log.writer.commit(&mut group).unwrap().end;
        }
    }
    log
}

/// Bytes that a whole stream takes from the files, read as a subscription reads it; and how many batches came.
fn cost_of(log: &mut OpenedLog, stream: u64) -> (u64, u64) {
    let mut next = 0;
    let before = thread_io("rchar");
    while let Some(mut plan) = log.appender.index().plan(subject(stream), next) {
        let found = next;
        while !plan.is_used_up() {
            for outcome in log.reader.read(&mut plan, log.durable, 256 << 10).unwrap() {
                let ReadOutcome::Batch(batch) = outcome else { panic!("{outcome:?}") };
                assert_eq!(batch.base_offset, next);
                next = batch.next_offset();
            }
        }
        if next == found {
            break;
        }
    }
    (thread_io("rchar") - before, next)
}

#[test]
fn a_stream_alone_is_read_hardly_more_than_once() {
    for (batches, len) in [(2_000, 4_000), (150, 60_000), (40, 250_000)] {
        let folder = tempfile::tempdir().unwrap();
        let mut log = filled(folder.path(), 1, batches, len);
        let (bytes, found) = cost_of(&mut log, 0);
        assert_eq!(found, batches);
        let content = batches * len as u64;
        assert!(bytes < content / 2 * 3, "{bytes} bytes for {content} in batches of {len}");
    }
}

#[test]
fn one_of_many_streams_is_not_read_with_all_that_stands_around_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = filled(folder.path(), 100, 40, 4_000);
    for stream in [0, 50, 99] {
        let (bytes, found) = cost_of(&mut log, stream);
        assert_eq!(found, 40);
        let most = found * (LOOKED_THROUGH_BYTES + 4_096);
        assert!(bytes < most, "{bytes} bytes for {found} batches of 4,000 bytes among others");
    }
}
