//! The log on its own: what is appended and committed is there after a restart, and can be read back.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

use std::sync::Arc;

use tidelog_storage::medium::{Medium, MemoryMedium};
use tidelog_storage::{
    EntryKind, Facts, FillPace, Job, JobOutcome, LogOptions, OpenedLog, ReadOutcome, ReplayTime, Replayed, open,
};

mod log_kit;
use log_kit::{payload, put_spare, records};

const TIME: ReplayTime = ReplayTime { wall_ms: 1_000, log_ms: 1 };

fn open_and_count(medium: &Arc<dyn Medium>) -> (OpenedLog, Vec<(u64, u64)>) {
    let mut seen = Vec::new();
    let log =
        open(medium, &LogOptions { segment_first_bytes: 128 << 10, ..LogOptions::default() }, 5_000, &mut |replayed| {
            match replayed {
                Replayed::Entry { head, payload_ok } if head.header.kind == EntryKind::Records => {
                    assert!(payload_ok);
                    seen.push((head.header.subject, head.header.base_offset));
                }
                Replayed::Entry { .. } => {}
                Replayed::Hole(range) => panic!("hole {range:?}"),
            }
        })
        .unwrap();
    assert_eq!(log.report.damages, []);
    (log, seen)
}

fn run_jobs(log: &mut OpenedLog) {
    for job in std::mem::take(&mut log.jobs) {
        if let JobOutcome::FooterWritten { segment } = log.housekeeping.run(&job).unwrap() {
            log.appender.index_mut().footer_written(segment);
        }
    }
    for sealed in log.appender.index_mut().take_sealed() {
        if let JobOutcome::FooterWritten { segment } = log.housekeeping.run(&Job::WriteFooter(sealed)).unwrap() {
            log.appender.index_mut().footer_written(segment);
        }
    }
}

fn read_all(log: &mut OpenedLog, subject: u64, from: u64) -> Vec<u64> {
    let mut offsets = Vec::new();
    let mut next = from;
    while let Some(mut plan) = log.appender.index().plan(subject, next) {
        let mut progressed = false;
        while !plan.is_used_up() {
            for outcome in log.reader.read(&mut plan, log.durable, 10_000).unwrap() {
                let ReadOutcome::Batch(batch) = outcome else { panic!("{outcome:?}") };
                assert_eq!(batch.base_offset, next);
                assert_eq!(batch.payload[4], next as u8);
                offsets.push(batch.base_offset);
                next = batch.next_offset();
                progressed = true;
            }
        }
        if !progressed {
            break;
        }
    }
    offsets
}

#[test]
fn what_was_committed_is_read_back_across_segments_and_restarts() {
    let medium: Arc<dyn Medium> = Arc::new(MemoryMedium::new());
    let facts = Facts::default();
    let mut written = Vec::new();
    for life in 0..4_u64 {
        let (mut log, seen) = open_and_count(&medium);
        assert_eq!(seen, written, "life {life}");
        run_jobs(&mut log);
        for count in 0..400_u64 {
            let subject = 5 + count % 3;
            let offset = written.iter().filter(|(of, _)| *of == subject).count() as u64;
            let payload = payload(1_000, offset as u8);
            put_spare(&mut log, FillPace::Ordinary);
            log.appender.append(&[records(subject, offset, &facts, &payload)], TIME).unwrap();
            written.push((subject, offset));
            if count % 7 == 0 {
                while let Some(mut group) = log.appender.take_group() {
                    log.durable = log.writer.commit(&mut group).unwrap().end;
                }
            }
        }
        while let Some(mut group) = log.appender.take_group() {
            log.durable = log.writer.commit(&mut group).unwrap().end;
        }
        log.writer.quiet().unwrap();
        for subject in 5..8 {
            let count = written.iter().filter(|(of, _)| *of == subject).count() as u64;
            assert_eq!(read_all(&mut log, subject, 0), (0..count).collect::<Vec<_>>());
            run_jobs(&mut log);
            assert_eq!(read_all(&mut log, subject, 77), (77..count).collect::<Vec<_>>());
        }
    }
}
