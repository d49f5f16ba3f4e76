//! A log that format 1 has once written must open for ever: the fixture, every record of it, and twice.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "all of it is test code, helpers included")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_storage::medium::{DiskMedium, Medium};
use tidelog_storage::{
    EntryKind, FactKind, Facts, JobOutcome, LogOptions, NewEntry, OpenedLog, ReadOutcome, Replayed, StoredBatch, open,
    verify,
};

const WALL_MS: i64 = 1_800_000_000_000;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1")
}

#[derive(Debug, Clone, PartialEq)]
struct Record {
    base_offset: u64,
    span: u32,
    skip: u32,
    payload: Vec<u8>,
}

impl Record {
    fn new(base_offset: u64, span: u32, skip: u32, len: usize, text: &str) -> Self {
        let mut behind_crc = vec![b'Z'; 60];
        behind_crc.extend(text.bytes().cycle().take(len));
        let mut payload = crc32fast::hash(&behind_crc).to_le_bytes().to_vec();
        payload.extend(behind_crc);
        Self { base_offset, span, skip, payload }
    }

    fn of(batch: &StoredBatch) -> Self {
        let StoredBatch { base_offset, span, skip, .. } = *batch;
        assert_eq!(batch.owner, [3; 16]);
        Self { base_offset, span, skip, payload: batch.payload.to_vec() }
    }

    fn next_offset(&self) -> u64 {
        self.base_offset + u64::from(self.span)
    }
}

/// What `records.txt` says, by stream.
fn expected() -> BTreeMap<String, Vec<Record>> {
    let mut all: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    for line in fs::read_to_string(fixture().join("records.txt")).unwrap().lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| fields[index].parse::<u32>().unwrap();
        let record = Record::new(number(1).into(), number(2), number(3), number(4) as usize, fields[5]);
        all.entry(fields[0].to_owned()).or_default().push(record);
    }
    assert_eq!(all.values().map(Vec::len).sum::<usize>(), 70);
    all
}

/// A copy of the fixture's folder, to be changed.
fn copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(fixture().join("log")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    folder
}

fn bytes_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(folder).unwrap().map(Result::unwrap);
    files.map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())).collect()
}

/// A log that was opened, the streams' ids, and for each the offsets that the fold was given.
struct Started {
    log: OpenedLog,
    streams: BTreeMap<String, u64>,
    replayed: BTreeMap<u64, Vec<(u64, u64)>>,
}

fn start(folder: &Path) -> Started {
    let medium: Arc<dyn Medium> = Arc::new(DiskMedium::open(folder).unwrap());
    let mut streams = BTreeMap::new();
    let mut producers = Vec::new();
    let mut replayed: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    let options = LogOptions { segment_first_bytes: 128 << 10, ..LogOptions::default() };
    let mut log = open(&medium, &options, WALL_MS, &mut |found| {
        let Replayed::Entry { head, payload_ok } = found else { panic!("{found:?}") };
        assert!(payload_ok);
        for fact in head.facts() {
            match fact.kind {
                FactKind::Stream => {
                    assert_eq!(fact.key, fact.decided_at.to_le_bytes());
                    assert_eq!(fact.value[0], 1);
                    streams.insert(String::from_utf8(fact.value[25..].to_vec()).unwrap(), fact.decided_at);
                }
                FactKind::Producer => producers.push(String::from_utf8(fact.value[24..].to_vec()).unwrap()),
                _ => {}
            }
        }
        if head.header.kind == EntryKind::Records {
            assert_eq!(head.head.len(), 56);
            replayed.entry(head.header.subject).or_default().push((head.header.base_offset, head.header.next_offset()));
        }
    })
    .unwrap();
    assert_eq!(producers, ["shop"]);
    for job in std::mem::take(&mut log.jobs) {
        if let JobOutcome::FooterWritten { segment } = log.housekeeping.run(&job).unwrap() {
            log.appender.index_mut().footer_written(segment);
        }
    }
    Started { log, streams, replayed }
}

impl Started {
    fn read(&mut self, stream: &str, from: u64) -> Vec<Record> {
        let subject = self.streams[stream];
        let mut next = from;
        let mut records = Vec::new();
        while let Some(mut plan) = self.log.appender.index().plan(subject, next) {
            let before = records.len();
            while !plan.is_used_up() {
                for outcome in self.log.reader.read(&mut plan, self.log.durable, 2_000).unwrap() {
                    let ReadOutcome::Batch(batch) = outcome else { panic!("{stream}: {outcome:?}") };
                    next = batch.next_offset();
                    records.push(Record::of(&batch));
                }
            }
            if records.len() == before {
                break;
            }
        }
        records
    }

    fn check(&mut self, expected: &BTreeMap<String, Vec<Record>>) {
        assert_eq!(self.streams.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (stream, records) in expected {
            let offsets: Vec<_> = records.iter().map(|record| (record.base_offset, record.next_offset())).collect();
            assert_eq!(self.replayed[&self.streams[stream]], offsets, "the fold of {stream}");
            assert_eq!(self.read(stream, 0), *records, "{stream} from the start");
            let middle = records.len() / 2;
            assert_eq!(self.read(stream, records[middle].base_offset), records[middle..], "{stream} from the middle");
        }
    }
}

#[test]
fn every_record_of_the_fixture_is_there_and_a_second_start_works_too() {
    let folder = copy();
    let mut expected = expected();
    let mut first = start(folder.path());
    let report = first.log.report.clone();
    assert_eq!((report.start_count, report.segments, report.damages.as_slice()), (4, 5, [].as_slice()));
    assert_eq!(report.log_id.to_string(), "c15c0289ec2d0a9167ec8e65a18debbe");
    let cut = report.cut.expect("the last write was torn");
    assert_eq!(cut.start, report.end);
    assert!(report.proven < report.end, "an intact entry stands behind the last proven position");
    assert!(report.rewritten_bytes >= report.end - report.proven);
    first.check(&expected);

    let orders = expected.get_mut("orders").unwrap();
    let new = Record::new(orders.last().unwrap().next_offset(), 2, 1, 500, "orders-of-life-4;");
    let facts = Facts::default();
    let entry = NewEntry {
        kind: EntryKind::Records,
        subject: first.streams["orders"],
        base_offset: new.base_offset,
        span: new.span,
        skip: new.skip,
        owner: [3; 16],
        facts: &facts,
        payload: &new.payload,
        head_len: 56,
    };
    first.log.appender.append(&[entry], first.log.time).unwrap();
    let mut group = first.log.appender.take_group().unwrap();
    first.log.durable = first.log.writer.commit(&mut group).unwrap().end;
    orders.push(new);
    assert_eq!(first.read("orders", 0), expected["orders"]);
    first.log.writer.quiet().unwrap();
    drop(first);

    let mut second = start(folder.path());
    let report = &second.log.report;
    assert_eq!((report.start_count, report.segments, report.damages.as_slice()), (5, 6, [].as_slice()));
    assert_eq!(report.cut, None, "what was cut lies behind the base of a later segment");
    assert_eq!(report.older_cuts, [], "the first start has written it down");
    second.check(&expected);
}

#[test]
fn the_fixture_verifies_without_damage_and_unchanged() {
    let folder = fixture().join("log");
    let before = bytes_of(&folder);
    let mut records = 0;
    let report = verify(&DiskMedium::open_existing(&folder).unwrap(), &mut |found| match found {
        Replayed::Entry { head, payload_ok } => {
            assert!(payload_ok);
            records += usize::from(head.header.kind == EntryKind::Records);
        }
        Replayed::Hole(range) => panic!("hole {range:?}"),
    })
    .unwrap();
    assert_eq!(report.damages, []);
    assert_eq!((report.segments, records), (5, 70));
    assert_eq!((report.foreign.as_slice(), report.stale_footers.as_slice()), ([].as_slice(), [].as_slice()));
    assert!(report.cut.is_some());
    assert_eq!(bytes_of(&folder), before, "verify changes nothing");
}

#[test]
fn a_start_leaves_what_it_cut_off_where_it_is() {
    let folder = copy();
    let before = bytes_of(folder.path());
    drop(start(folder.path()));
    let after = bytes_of(folder.path());
    for (name, bytes) in before.iter().filter(|(name, _)| name.starts_with("segment-")) {
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        assert_eq!(after[name][..used], bytes[..used], "{name}");
    }
    assert!(!after.contains_key("spare-0123456789abcdef"), "the leftover is gone");
    assert!(after.contains_key("footer-0000000000000003"), "the missing footer is made");
    for footer in before.keys().filter(|name| name.starts_with("footer-")) {
        assert_eq!(after[footer], before[footer], "{footer} fits and stays");
    }
}

#[test]
fn what_a_start_cut_off_stays_cut_off_when_the_next_segment_is_lost() {
    let folder = copy();
    let lost = folder.path().join("segment-0000000000000003");
    let base_of = |name: &str| {
        let header = fs::read(folder.path().join(name)).unwrap();
        u64::from_le_bytes(header[48..56].try_into().unwrap())
    };
    let missing = base_of("segment-0000000000000003")..base_of("segment-0000000000000004");
    fs::remove_file(&lost).unwrap();
    let mut holes = Vec::new();
    let report = verify(&DiskMedium::open_existing(folder.path()).unwrap(), &mut |found| match found {
        Replayed::Entry { head, .. } => {
            assert!(!missing.contains(&head.header.position), "cut off, and back at {}", head.header.position);
        }
        Replayed::Hole(range) => holes.push(range),
    })
    .unwrap();
    assert_eq!(holes, std::slice::from_ref(&missing));
    let told: Vec<_> = report.damages.iter().map(|damage| (damage.segment, damage.positions.clone())).collect();
    assert!(told.contains(&(3, missing)), "{told:?}");
}
