//! A data folder as a broker leaves it, with all that is in it: what each stream holds, where each entry stands, and
//! older copies of its segments.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tidelog::damage::Findings;
use tidelog::{Broker, BrokerConfig};
use tidelog_client::{Client, ClientConfig};
use tidelog_protocol::{Limits, ProducerName, Record, StreamName, StreamSettings};
use tidelog_storage::medium::DiskMedium;
use tidelog_storage::{EntryHeader, EntryKind, Replayed, VerifyReport, verify};

use super::random::Random;

/// Positions and files: where entries begin in a segment's file, as `FORMAT.md` has it.
pub const ENTRIES_AT: u64 = 8_192;
/// Bytes of the storage header of an entry.
pub const HEADER_LEN: u64 = 104;

/// The streams, and who writes to each: one anonymous, two by name.
pub const STREAMS: [(&str, Option<&str>); 3] = [("events", None), ("orders", Some("shop")), ("refunds", Some("desk"))];

/// A broker with small segments.
pub fn config(folder: &Path) -> BrokerConfig {
    BrokerConfig {
        limits: Limits { record_bytes_max: 8 << 10, batch_content_bytes_max: 8 << 10, ..Limits::default() },
        segment_first_bytes: 128 << 10,
        segment_bytes: 192 << 10,
        checkpoint_bytes: 128 << 10,
        ..BrokerConfig::on_disk(folder)
    }
}

pub async fn connect(broker: &Broker) -> Client {
    Client::connect(ClientConfig::find(&broker.address().parse().unwrap(), None).unwrap()).await.unwrap()
}

pub fn stream_name(text: &str) -> StreamName {
    StreamName::new(text).unwrap()
}

/// Reads a folder as `tidelog verify` does.
pub fn inspect(folder: &Path) -> (VerifyReport, Findings, Vec<EntryHeader>) {
    let medium = DiskMedium::open_existing(folder).unwrap();
    let (mut findings, mut headers) = (Findings::default(), Vec::new());
    let report = verify(&medium, &mut |replayed| {
        findings.count(&replayed);
        if let Replayed::Entry { head, .. } = replayed {
            headers.push(head.header);
        }
    });
    (report.unwrap(), findings, headers)
}

/// One segment file.
#[derive(Debug, Clone)]
pub struct Segment {
    pub name: String,
    pub base: u64,
    /// What of it a log holds: up to the next one's base, or to the log's end.
    pub end: u64,
}

/// A data folder in memory.
#[derive(Debug)]
pub struct Log {
    pub files: BTreeMap<String, Vec<u8>>,
    /// The files of its checkpoint, by path.
    pub checkpoint: BTreeMap<PathBuf, Vec<u8>>,
    /// Every record of a stream, by offset.
    pub records: BTreeMap<&'static str, Vec<Bytes>>,
    pub entries: Vec<EntryHeader>,
    /// Ascending; the last one is the newest.
    pub segments: Vec<Segment>,
    /// Other contents that segment files had earlier.
    pub older: Vec<(String, Vec<u8>)>,
}

impl Log {
    /// Lets a broker run four times on `folder`, and takes over what it leaves.
    pub async fn made_in(folder: &Path, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut records: BTreeMap<&'static str, Vec<Bytes>> = BTreeMap::new();
        let mut older = Vec::new();
        for life in 0..4 {
            let broker = Broker::start(config(folder)).unwrap();
            let client = connect(&broker).await;
            for half in 0..2 {
                for (stream, producer) in STREAMS {
                    let made =
                        client.create_stream(&stream_name(stream), StreamSettings::default(), true).await.unwrap();
                    let opened = match producer {
                        Some(name) => client.producer(ProducerName::new(name).unwrap()).open().await.unwrap(),
                        None => client.anonymous_producer().open().await.unwrap(),
                    };
                    let publisher = opened.stream(&made).await.unwrap();
                    let all = records.entry(stream).or_default();
                    for _ in 0..6 {
                        for _ in 0..1 + random.below(6) {
                            let len = 20 + random.below(2_000) as usize;
                            let mut value = format!("{stream} {} ", all.len()).into_bytes();
                            value.resize_with(len, || random.next() as u8);
                            publisher.send(Record::new(value.clone())).await.unwrap();
                            all.push(Bytes::from(value));
                        }
                        publisher.flush().await.unwrap();
                    }
                    opened.close().await.unwrap();
                }
                if half == 0 && life > 0 {
                    older.extend(files_of(folder).into_iter().filter(|(name, _)| name.starts_with("segment-")));
                }
            }
            client.close().await;
            broker.shutdown();
        }
        Self::taken_from(folder, records, older)
    }

    fn taken_from(folder: &Path, records: BTreeMap<&'static str, Vec<Bytes>>, older: Vec<(String, Vec<u8>)>) -> Self {
        let (report, findings, entries) = inspect(folder);
        assert!(report.damages.is_empty() && report.stale_footers.is_empty(), "{report:?}");
        for (stream, _) in STREAMS {
            let id = findings.state.catalogue.find(&stream_name(stream)).unwrap();
            let tail = findings.state.catalogue.stream(id).unwrap().tail.get();
            assert_eq!(tail, records[stream].len() as u64);
        }
        let files = files_of(folder);
        let bases: Vec<(String, u64)> = files
            .iter()
            .filter(|(name, _)| name.starts_with("segment-"))
            .map(|(name, bytes)| (name.clone(), u64::from_le_bytes(bytes[48..56].try_into().unwrap())))
            .collect();
        let ends = bases.iter().skip(1).map(|(_, base)| *base).chain([report.end]);
        let segments: Vec<_> = bases
            .iter()
            .zip(ends)
            .map(|((name, base), end)| Segment { name: name.clone(), base: *base, end })
            .collect();
        assert!(segments.len() >= 6, "only {} segments", segments.len());
        let older = older.into_iter().filter(|(name, bytes)| files.get(name) != Some(bytes)).collect();
        let mut checkpoint = BTreeMap::new();
        gather(folder, Path::new("checkpoint"), &mut checkpoint);
        assert!(!checkpoint.is_empty(), "no checkpoint was made");
        Self { files, checkpoint, records, entries, segments, older }
    }

    /// Without its checkpoint, as if that had been removed: a start reads all of the log.
    pub fn write_to(&self, folder: &Path) {
        self.files.iter().for_each(|(name, bytes)| write_new(&folder.join(name), bytes));
    }

    pub fn write_checkpoint_to(&self, folder: &Path) {
        for (path, bytes) in &self.checkpoint {
            let path = folder.join(path);
            DirBuilder::new().recursive(true).mode(0o700).create(path.parent().unwrap()).unwrap();
            write_new(&path, bytes);
        }
    }

    pub fn newest(&self) -> &Segment {
        self.segments.last().unwrap()
    }

    pub fn sealed(&self) -> &[Segment] {
        &self.segments[..self.segments.len() - 1]
    }

    /// The segment of a log position, and where it stands in the file.
    pub fn place(&self, position: u64) -> (&Segment, u64) {
        let segment = self.segments.iter().rfind(|segment| segment.base <= position).unwrap();
        (segment, ENTRIES_AT + position - segment.base)
    }

    /// The batches of a position range, by their headers.
    pub fn batches(&self, within: Range<u64>) -> Vec<&EntryHeader> {
        let records = self.entries.iter().filter(|header| header.kind == EntryKind::Records);
        records.filter(|header| within.contains(&header.position)).collect()
    }

    /// A batch in a sealed segment, or in the newest one.
    pub fn batch(&self, random: &mut Random, newest: bool) -> &EntryHeader {
        let base = self.newest().base;
        let batches = self.batches(if newest { base..u64::MAX } else { 0..base });
        batches[random.below(batches.len() as u64) as usize]
    }
}

/// The file position of the copy behind an entry's payload, from the entry's beginning.
pub fn copy_at(header: &EntryHeader) -> u64 {
    (HEADER_LEN + u64::from(header.fact_len) + u64::from(header.payload_len)).next_multiple_of(8)
}

/// The files of the folder itself.
pub fn files_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    files.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

/// The files of a folder within `top`, and of those in it.
fn gather(top: &Path, folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(top.join(folder)).unwrap().map(|entry| entry.unwrap()) {
        let path = folder.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            gather(top, &path, files);
        } else {
            files.insert(path, fs::read(entry.path()).unwrap());
        }
    }
}

fn write_new(path: &Path, bytes: &[u8]) {
    // A key that others may read is refused.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(bytes).unwrap();
}
