//! What the fuzz targets share: the files of a real log, edits to them, and what must hold whatever the files are.
//!
//! Random bytes get no further than the first checksum. So the targets start from the fixture of format 1, change it, and may
//! then mend the checksums, which no accident and no producer can do, but which reaches the code behind them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use arbitrary::Arbitrary;
use tidelog_storage::medium::{Medium, MemoryMedium};
use tidelog_storage::{EntryKind, JobOutcome, LogOptions, OpenError, OpenedLog, Replayed, open};

/// Where entries begin in a segment file.
pub const ENTRIES_AT: usize = 8_192;
const HEADER_LEN: usize = 4_096;
const ENTRY_HEADER_LEN: usize = 104;
/// Segments of the fixture are no longer than this.
const SEGMENT_LEN_MAX: u64 = 128 << 10;
/// Reads of one subject that make no end are a hang.
const READS_MAX: usize = 10_000;

/// Files of a folder, by name.
pub type Files = BTreeMap<String, Vec<u8>>;

macro_rules! fixture {
    ($($name:literal),*) => {
        [$(($name, include_bytes!(concat!("../../tests/fixtures/format-1/log/", $name)).as_slice())),*]
    };
}

/// The fixture of format 1; the newest segment without most of its zeros, so that edits hit something. [`lengthen`] gives them back.
pub fn fixture() -> Files {
    let files = fixture![
        "footer-0000000000000001",
        "footer-0000000000000002",
        "footer-0000000000000004",
        "segment-0000000000000001",
        "segment-0000000000000002",
        "segment-0000000000000003",
        "segment-0000000000000004",
        "segment-0000000000000005",
        "spare-0123456789abcdef"
    ];
    let shorten = |bytes: &[u8]| {
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes[..(used + 256).min(bytes.len())].to_vec()
    };
    files.into_iter().map(|(name, bytes)| (name.to_owned(), shorten(bytes))).collect()
}

/// Gives a segment the length that its header claims, if that is a small one: a newest segment that is shorter is damaged.
pub fn lengthen(segment: &mut Vec<u8>) {
    if segment.len() >= ENTRIES_AT {
        let len = number(segment, 96, 8).min(SEGMENT_LEN_MAX) as usize;
        segment.resize(len.max(segment.len()), 0);
    }
}

/// A change to the bytes of a file; places are taken modulo its length.
#[derive(Debug, Clone, Arbitrary)]
pub enum Edit {
    /// Flips bits.
    Flip { at: u32, bits: u8 },
    /// Writes eight bytes at a multiple of eight.
    Write { at: u32, bytes: [u8; 8] },
    /// Writes a small number as eight bytes at a multiple of eight: most fields are such.
    Number { at: u32, number: u16 },
    /// Overwrites with zeros.
    Zero { at: u32, len: u16 },
    /// Copies a range to a multiple of eight.
    Copy { from: u32, to: u32, len: u16 },
    /// Cuts the file.
    Cut { len: u32 },
    /// Appends zeros.
    Grow { len: u16 },
    /// Appends bytes.
    Append { bytes: Vec<u8> },
}

impl Edit {
    /// Makes the change.
    pub fn apply(&self, file: &mut Vec<u8>) {
        let len_now = file.len();
        let place = |at: &u32| *at as usize % len_now.max(1);
        match self {
            Self::Flip { at, bits } => {
                if let Some(byte) = file.get_mut(place(at)) {
                    *byte ^= bits;
                }
            }
            Self::Write { at, bytes } => write(file, place(at), bytes),
            Self::Number { at, number } => write(file, place(at), &u64::from(*number).to_le_bytes()),
            Self::Zero { at, len } => {
                let end = (place(at) + usize::from(*len)).min(len_now);
                file[place(at)..end].fill(0);
            }
            Self::Copy { from, to, len } => {
                let from = place(from) / 8 * 8;
                let end = (from + usize::from(*len)).min(len_now);
                let bytes = file[from..end].to_vec();
                write(file, place(to), &bytes);
            }
            Self::Cut { len } => file.truncate(place(len)),
            Self::Grow { len } => file.resize(len_now + usize::from(*len), 0),
            Self::Append { bytes } => file.extend(bytes),
        }
    }
}

/// Writes at the multiple of eight at or before `at`, without growing the file.
fn write(file: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, byte) in file[at / 8 * 8..].iter_mut().zip(bytes) {
        *to = *byte;
    }
}

fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    (0..width).map(|index| u64::from(bytes[at + index]) << (8 * index)).sum()
}

/// Makes the checksums of both copies of a segment's header right.
pub fn mend_header(segment: &mut [u8]) {
    for copy in segment.chunks_exact_mut(HEADER_LEN).take(2) {
        let crc = crc32fast::hash(&copy[..HEADER_LEN - 4]).to_le_bytes();
        copy[HEADER_LEN - 4..].copy_from_slice(&crc);
    }
}

/// Makes the checksums of everything right that looks like an entry, and the position of whatever looks like its header.
pub fn mend_entries(segment: &mut [u8]) {
    if segment.len() < ENTRIES_AT {
        return;
    }
    let salt: [u8; 8] = segment[40..48].try_into().expect("eight bytes");
    let base = number(segment, 48, 8);
    let mut at = ENTRIES_AT;
    while at + ENTRY_HEADER_LEN <= segment.len() {
        let is_head = &segment[at..at + 4] == b"TLEh";
        if is_head || &segment[at..at + 4] == b"TLEc" {
            if is_head {
                let position = base.wrapping_add((at - ENTRIES_AT) as u64);
                segment[at + 8..at + 16].copy_from_slice(&position.to_le_bytes());
                mend_payload(segment, at);
            }
            let facts = number(segment, at + 36, 2) as usize;
            let covered = ENTRY_HEADER_LEN + facts + number(segment, at + 38, 2) as usize;
            if at + covered <= segment.len() {
                let mut hasher = crc32fast::Hasher::new();
                hasher.update(&salt);
                hasher.update(&segment[at + 8..at + covered]);
                segment[at + 4..at + 8].copy_from_slice(&hasher.finalize().to_le_bytes());
            }
        }
        at += 8;
    }
}

fn mend_payload(segment: &mut [u8], at: usize) {
    let payload_at = at + ENTRY_HEADER_LEN + number(segment, at + 36, 2) as usize;
    let payload_len = number(segment, at + 24, 4) as usize;
    if payload_len >= 4 && payload_at + payload_len <= segment.len() {
        let crc = crc32fast::hash(&segment[payload_at + 4..payload_at + payload_len]).to_le_bytes();
        segment[payload_at..payload_at + 4].copy_from_slice(&crc);
        segment[at + 28..at + 32].copy_from_slice(&crc);
    }
}

/// Makes a footer's checksum right.
pub fn mend_footer(footer: &mut [u8]) {
    if let Some((covered, crc)) = footer.split_last_chunk_mut::<4>() {
        *crc = crc32fast::hash(covered).to_le_bytes();
    }
}

/// A folder in memory with these files.
pub fn folder(files: &Files) -> Arc<dyn Medium> {
    let medium = MemoryMedium::new();
    for (name, bytes) in files {
        let file = medium.create(name).expect("a plain name");
        file.write_all_at(&[bytes], 0).expect("memory");
    }
    Arc::new(medium)
}

/// What a fold was given, positions and all that it decides by.
pub type Fold = Vec<(u64, u64, u64, u64, bool)>;

/// Opens the log, does the jobs it asks for.
///
/// # Errors
/// The log's.
pub fn start(medium: &Arc<dyn Medium>) -> Result<(OpenedLog, Fold), OpenError> {
    let mut fold = Vec::new();
    let options = LogOptions { segment_first_bytes: 128 << 10, payload_bytes_max: 1 << 20, ..LogOptions::default() };
    let mut log = open(medium, &options, 1_800_000_000_000, &mut |found| match found {
        Replayed::Entry { head, payload_ok } => {
            assert!(head.facts().count() <= 1_024 / 12);
            let header = &head.header;
            let is_records = u64::from(header.kind == EntryKind::Records);
            fold.push((header.position, is_records, header.subject, header.base_offset, payload_ok));
        }
        Replayed::Hole(range) => assert!(range.start < range.end),
    })?;
    for job in std::mem::take(&mut log.jobs) {
        if let Ok(JobOutcome::FooterWritten { segment }) = log.housekeeping.run(&job) {
            log.appender.index_mut().footer_written(segment);
        }
    }
    Ok((log, fold))
}

/// Reads all that the log has of the subjects in `fold`: must end, whatever it finds.
pub fn read_all(log: &mut OpenedLog, fold: &Fold) {
    let mut subjects: Vec<u64> = fold.iter().filter(|entry| entry.1 == 1).map(|entry| entry.2).collect();
    subjects.sort_unstable();
    subjects.dedup();
    for subject in subjects {
        let mut next = 0;
        for round in 0.. {
            assert!(round < READS_MAX, "reading subject {subject} makes no end");
            let Some(mut plan) = log.appender.index().plan(subject, next) else { break };
            for step in 0.. {
                assert!(step < READS_MAX, "a plan of subject {subject} makes no end");
                if plan.is_used_up() || log.reader.read(&mut plan, log.durable, 64 << 10).is_err() {
                    break;
                }
            }
            if plan.offset() <= next {
                break;
            }
            next = plan.offset();
        }
    }
}

/// Opens whatever is in the folder, twice: a start may refuse, and must then have changed nothing; if it does not, the next
/// one must come to the same log.
pub fn check(files: &Files) {
    let medium = folder(files);
    let verified = tidelog_storage::verify(medium.as_ref(), &mut |_| {});
    let (mut log, fold) = match start(&medium) {
        Ok(started) => started,
        Err(_) => {
            let names: Vec<String> = medium.list().expect("memory").into_iter().map(|file| file.name).collect();
            assert!(names.iter().eq(files.keys()), "a refused start changed the folder");
            return;
        }
    };
    let verified = verified.expect("what starts can be verified");
    assert_eq!((verified.proven, verified.end), (log.report.proven, log.report.end), "verify and a start agree");
    read_all(&mut log, &fold);
    let end = log.report.end;
    let start_count = log.report.start_count;
    log.writer.quiet().expect("memory");
    drop(log);
    let (log, mut again) = start(&medium).expect("what started once starts again");
    again.retain(|entry| entry.0 < end);
    assert_eq!(again, fold, "the second start comes to another log");
    assert!(log.report.start_count > start_count);
}
