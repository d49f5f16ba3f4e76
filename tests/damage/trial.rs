//! One damaged folder: what `verify` says of it, what a broker on it serves and refuses, and what a repair makes of it.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use tidelog::Broker;
use tidelog::damage::Findings;
use tidelog::repair::{plan, repair};
use tidelog_client::{Client, ReaderEvent};
use tidelog_protocol::{ErrorCode, Offset, ProducerName, Record, StartAt};
use tidelog_storage::medium::{DiskMedium, Medium};
use tidelog_storage::{Damage, DamageKind, DiskCheckpoints, Sabotages, VerifyReport};

use super::log::{Log, STREAMS, config, connect, inspect, stream_name};
use super::scratch::Scratch;

/// What came of one damaged folder.
#[derive(Debug)]
pub struct Seen {
    pub verified: VerifyReport,
    pub findings: Findings,
    /// What the start told.
    pub damages: Vec<Damage>,
    /// Offsets that readers were told are damaged, by stream.
    pub unreadable: BTreeMap<&'static str, Vec<Range<u64>>>,
    /// Streams whose readers ended before the last acknowledged record, and where.
    pub short: BTreeMap<&'static str, u64>,
    /// Streams that refuse new records.
    pub refusing: Vec<&'static str>,
}

impl Seen {
    pub fn kinds(&self) -> Vec<DamageKind> {
        self.damages.iter().map(|damage| damage.kind).collect()
    }

    /// Nothing is lost and nothing refuses.
    pub fn is_whole(&self) -> bool {
        self.unreadable.is_empty() && self.short.is_empty() && self.refusing.is_empty()
    }

    /// How many batches can't be read, of streams that go on behind them.
    pub fn batches_lost(&self, log: &Log) -> usize {
        let all = log.batches(0..u64::MAX);
        let is_lost = |subject: u64, offset: u64| {
            let lost = self.unreadable.iter().filter(|(stream, _)| id_of(&self.findings, stream) == Some(subject));
            lost.into_iter().any(|(_, ranges)| ranges.iter().any(|range| range.contains(&offset)))
        };
        all.iter().filter(|header| is_lost(header.subject, header.base_offset)).count()
    }
}

fn id_of(findings: &Findings, stream: &str) -> Option<u64> {
    findings.state.catalogue.find(&stream_name(stream)).map(|id| id.get())
}

/// A copy of the log in a folder of its own, to be hurt.
pub fn copy_of(log: &Log) -> Scratch {
    let folder = Scratch::new();
    log.write_to(folder.path());
    folder
}

/// Flips one bit of a file.
pub fn flip(folder: &Path, name: &str, at: u64, bit: u64) {
    let path = folder.join(name);
    let mut bytes = fs::read(&path).unwrap();
    bytes[at as usize] ^= 1 << bit;
    fs::write(&path, bytes).unwrap();
}

/// Verifies the folder, then lets a broker run on it: whatever is served is right, whatever is not served is told, and
/// nothing that was given out is given out again.
pub async fn look(log: &Log, folder: &Path) -> Seen {
    let (verified, findings, _) = inspect(folder);
    let broker = Broker::start(config(folder)).unwrap();
    let damages = broker.recovery_report().damages.clone();
    let client = connect(&broker).await;
    let mut seen =
        Seen { verified, findings, damages, unreadable: BTreeMap::new(), short: BTreeMap::new(), refusing: Vec::new() };
    for (stream, producer) in STREAMS {
        let expected = log.records[stream].len() as u64;
        let Some(read) = read_all(log, &client, stream).await else {
            // Not even the name is left.
            seen.short.insert(stream, 0);
            continue;
        };
        if !read.damaged.is_empty() {
            seen.unreadable.insert(stream, read.damaged);
        }
        if read.end < expected {
            seen.short.insert(stream, read.end);
        }
        match publish(&client, stream, producer).await {
            Ok(offset) => assert!(offset >= expected, "{stream}: offset {offset} was given out twice"),
            Err(code) => {
                assert_eq!(code, Some(ErrorCode::Damaged), "{stream}");
                seen.refusing.push(stream);
            }
        }
        // What is served does not change by what is appended.
        let again = read_all(log, &client, stream).await.unwrap();
        assert!(again.end >= read.end, "{stream}: read to {} and then to {}", read.end, again.end);
    }
    for short in seen.short.keys() {
        let is_told = seen.refusing.contains(short) || !seen.findings.state.unrepaired_holes().is_empty();
        assert!(is_told, "{short} ends early, and nothing says so: {seen:?}");
    }
    client.close().await;
    broker.shutdown();
    seen
}

struct Read {
    damaged: Vec<Range<u64>>,
    /// Behind the last offset that is accounted for.
    end: u64,
}

/// Reads a stream from its start; panics if a record is not what was published at its offset.
async fn read_all(log: &Log, client: &Client, stream: &str) -> Option<Read> {
    let opened = client.reader(stream_name(stream)).from(StartAt::Start).open().await;
    let mut reader = match opened {
        Ok(reader) => reader,
        Err(error) => {
            assert_eq!(error.code(), Some(ErrorCode::NotFound), "{stream}: {error}");
            return None;
        }
    };
    let expected = &log.records[stream];
    let mut read = Read { damaged: Vec::new(), end: 0 };
    while let Some(event) = reader.next_batch().await.unwrap() {
        match event {
            ReaderEvent::Batch(batch) => {
                for record in batch {
                    let record = record.unwrap();
                    let offset = record.offset.get();
                    assert_eq!(offset, read.end, "{stream}: a gap that nothing told");
                    match expected.get(offset as usize) {
                        Some(value) => assert_eq!(record.record.value, value, "{stream} offset {offset}"),
                        None => assert_eq!(&record.record.value[..], b"afterwards", "{stream} offset {offset}"),
                    }
                    read.end = offset + 1;
                }
            }
            ReaderEvent::Damaged { from, to } => {
                assert!(from.get() == read.end && to > from, "{stream}: {from}..{to} told at {}", read.end);
                read.damaged.push(from.get()..to.get());
                read.end = to.get();
            }
            other => panic!("{stream}: {other:?}"),
        }
    }
    Some(read)
}

/// Publishes one more record as the stream's own producer, and says where it went.
async fn publish(client: &Client, stream: &str, producer: Option<&str>) -> Result<u64, Option<ErrorCode>> {
    let opened = match producer {
        Some(name) => client.producer(ProducerName::new(name).unwrap()).receipts(true).open().await,
        None => client.anonymous_producer().receipts(true).open().await,
    };
    let opened = opened.map_err(|error| error.code())?;
    let publisher = opened.stream(stream_name(stream)).await.map_err(|error| error.code())?;
    publisher.send(Record::new(&b"afterwards"[..])).await.map_err(|error| error.code())?;
    publisher.flush().await.map_err(|error| error.code())?;
    let receipt = publisher.next_receipt().await.unwrap();
    Ok(receipt.base_offset.map_or(0, Offset::get))
}

/// Repairs the folder: nothing is in doubt afterwards, no offset is given twice, and a second repair has nothing to do.
pub async fn repaired(log: &Log, folder: &Path) {
    let before = file_names(folder);
    let medium: Arc<dyn Medium> = Arc::new(DiskMedium::open_existing(folder).unwrap());
    let mut checkpoints = DiskCheckpoints::new(folder);
    repair(&medium, Some(&mut checkpoints), 1_800_000_000_000, Sabotages::from_environment()).unwrap();
    let again = plan(medium.as_ref(), Sabotages::default()).unwrap();
    assert!(again.is_empty(), "a second repair would do something: {:?} {:?}", again.decisions, again.set_aside);
    drop(medium);
    let after = file_names(folder);
    let segments = |names: &[String]| names.iter().filter(|name| name.contains("segment-")).count();
    assert!(
        segments(&after) > 0 && segments(&after) >= segments(&before),
        "of {before:?} there is only {after:?} left"
    );
    let (report, findings, _) = inspect(folder);
    assert!(findings.state.unrepaired_holes().is_empty());
    assert!(report.damages.iter().all(|damage| findings.state.is_settled(damage)), "{:?}", report.damages);

    let broker = Broker::start(config(folder)).unwrap();
    let client = connect(&broker).await;
    for (stream, producer) in STREAMS {
        let made = client.create_stream(&stream_name(stream), Default::default(), true).await.unwrap();
        let expected = log.records[stream].len() as u64;
        let is_new = log.entries.iter().all(|header| header.subject != made.id.get());
        let offset = publish(&client, stream, producer).await;
        let offset = offset.unwrap_or_else(|code| panic!("{stream} still refuses: {code:?}"));
        assert!(is_new || offset >= expected, "{stream}: offset {offset} was given out twice");
        if !is_new {
            let read = read_all(log, &client, stream).await.unwrap();
            assert_eq!(read.end, offset + 1, "{stream} is not read to its end");
        }
    }
    client.create_stream(&stream_name("new-after-the-repair"), Default::default(), false).await.unwrap();
    client.close().await;
    broker.shutdown();
}

fn file_names(folder: &Path) -> Vec<String> {
    super::log::files_of(folder).into_keys().collect()
}
