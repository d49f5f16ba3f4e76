//! Holds `FORMAT.md` and the code to each other: the vectors and tables of the document are read out of it, decoded by
//! plain byte arithmetic that shares nothing with the crate, and compared with the bytes that the crate writes.
//!
//! After a deliberate change of the format, `cargo test -p tidelog-storage --test format_vectors -- --ignored --nocapture`
//! prints the vectors anew.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "all of it is test code, helpers included")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use tidelog_storage::medium::{Medium, MemoryMedium, read_exact_at};
use tidelog_storage::{
    Entropy, EntryKind, Fact, FactKind, Facts, LogOptions, NewEntry, OpenedLog, ReplayTime, entry_len, open,
};

const FORMAT_MD: &str = include_str!("../FORMAT.md");

// The log of the document's vectors -----------------------------------------------------------------------------------

const WALL_MS: i64 = 1_700_000_000_000;

/// The files of the example log, and where its entries stand.
struct Example {
    files: BTreeMap<String, Vec<u8>>,
    stream: u64,
    producer: u64,
    records: u64,
    watermark: u64,
}

fn start(medium: &Arc<dyn Medium>, seed: u64, wall_ms: i64) -> OpenedLog {
    let options = LogOptions {
        segment_first_bytes: 128 << 10,
        segment_bytes: 128 << 10,
        payload_bytes_max: 64 << 10,
        entropy: Entropy::Seeded(seed),
        ..LogOptions::default()
    };
    open(medium, &options, wall_ms, &mut |_| {}).unwrap()
}

fn append_fact(log: &mut OpenedLog, kind: FactKind, value: &[u8], time: ReplayTime) -> u64 {
    let facts_of = |id: u64| {
        let mut facts = Facts::default();
        facts.push(Fact { kind, key: &id.to_le_bytes(), decided_at: id, value }).unwrap();
        facts
    };
    let len = entry_len(facts_of(0).as_bytes().len(), 0, 0) as u64;
    let id = log.appender.prepare(len).unwrap();
    let facts = facts_of(id);
    assert_eq!(log.appender.append(&[NewEntry::facts(id, &facts)], time).unwrap().position, id);
    id
}

/// Two records, numbered 1 and 2 by their producer, as `PROTOCOL.md` lays them out.
fn batch(stream: u64) -> Vec<u8> {
    let mut behind_crc = vec![1, 0, 0, 0];
    behind_crc.extend(2_u32.to_le_bytes());
    behind_crc.extend(14_u32.to_le_bytes());
    behind_crc.extend(stream.to_le_bytes());
    for sequence in [1_u64, 2, 0] {
        behind_crc.extend(sequence.to_le_bytes());
    }
    behind_crc.extend(crc32fast::hash(b"\0second").to_le_bytes());
    behind_crc.extend([0; 4]);
    behind_crc.extend(b"\x05\0one.");
    behind_crc.extend(b"\x07\0second");
    let mut batch = crc32fast::hash(&behind_crc).to_le_bytes().to_vec();
    batch.extend(behind_crc);
    batch
}

fn example() -> Example {
    let memory = MemoryMedium::new();
    let medium: Arc<dyn Medium> = Arc::new(memory);
    let mut log = start(&medium, 1, WALL_MS);
    let time = ReplayTime { wall_ms: log.time.wall_ms + 1_000, log_ms: log.time.log_ms + 1_000 };

    let mut value = vec![1];
    value.extend(WALL_MS.to_le_bytes());
    value.extend([0; 16]);
    value.extend(b"orders");
    let stream = append_fact(&mut log, FactKind::Stream, &value, time);

    let mut value = 1_u64.to_le_bytes().to_vec();
    value.extend([0xA7; 16]);
    value.extend(b"shop");
    let producer = append_fact(&mut log, FactKind::Producer, &value, time);

    let mut owner = [0; 16];
    owner[..8].copy_from_slice(&producer.to_le_bytes());
    owner[8..].copy_from_slice(&1_u64.to_le_bytes());
    let batch = batch(stream);
    let facts = Facts::default();
    let entry = NewEntry {
        kind: EntryKind::Records,
        subject: stream,
        base_offset: 0,
        span: 2,
        skip: 0,
        owner,
        facts: &facts,
        payload: &batch,
        head_len: 56,
    };
    let appended = log.appender.append(&[entry], time).unwrap();
    let mut group = log.appender.take_group().unwrap();
    assert_eq!(log.writer.commit(&mut group).unwrap().end, appended.end);
    log.writer.quiet().unwrap();
    drop(log);

    let mut log = start(&medium, 2, WALL_MS + 60_000);
    for job in std::mem::take(&mut log.jobs) {
        log.housekeeping.run(&job).unwrap();
    }
    let files = medium.list().unwrap().into_iter().map(|stat| {
        let mut bytes = vec![0; stat.len as usize];
        read_exact_at(medium.open_read(&stat.name).unwrap().as_ref(), &mut bytes, 0).unwrap();
        (stat.name, bytes)
    });
    Example { files: files.collect(), stream, producer, records: appended.position, watermark: appended.end }
}

impl Example {
    /// The bytes that the crate wrote where the document has a vector.
    fn vectors(&self) -> Vec<(&'static str, Vec<u8>)> {
        let first = &self.files["segment-0000000000000001"];
        let at = |position: u64, end: u64| first[8_192 + position as usize..8_192 + end as usize].to_vec();
        vec![
            ("segment-header", self.files["segment-0000000000000002"][..4_096].to_vec()),
            ("facts", at(self.stream, self.producer)),
            ("records", at(self.records, self.watermark)),
            ("watermark", at(self.watermark, self.watermark + 208)),
            ("footer", self.files["footer-0000000000000001"].clone()),
        ]
    }
}

// The document ----------------------------------------------------------------------------------------------------------

/// The bytes of a vector: lines of an offset and hex; what is between the lines is zeros.
fn documented(name: &str) -> Vec<u8> {
    let marker = format!("<!-- vector {name}: ");
    let (_, behind) = FORMAT_MD.split_once(&marker).unwrap_or_else(|| panic!("no vector {name}"));
    let (len, behind) = behind.split_once(" bytes -->\n```text\n").unwrap();
    let (lines, _) = behind.split_once("```").unwrap();
    let mut bytes = vec![0; len.parse().unwrap()];
    for line in lines.lines() {
        let (at, hex) = line.split_once(": ").unwrap();
        let at = usize::from_str_radix(at, 16).unwrap();
        for (index, byte) in hex.split_whitespace().enumerate() {
            bytes[at + index] = u8::from_str_radix(byte, 16).unwrap();
        }
    }
    bytes
}

/// The rows of a table: offset, bytes, and the value that the document's example has there.
fn table(name: &str) -> Vec<(usize, usize, String)> {
    let (_, behind) = FORMAT_MD.split_once(&format!("<!-- table {name} -->\n")).unwrap();
    let rows = behind.lines().take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        (cells[1].parse().unwrap(), cells[2].parse().unwrap(), cells[4].trim_matches('`').to_owned())
    })
    .collect()
}

/// Checks that a table's rows leave no gap, and that its examples are what stands in `bytes`.
fn check_table(name: &str, bytes: &[u8]) {
    let mut expected_at = 0;
    for (at, width, example) in table(name) {
        assert_eq!(at, expected_at, "table {name}: a gap or an overlap at {at}");
        expected_at = at + width;
        let field = &bytes[at..at + width];
        let found = match example.strip_prefix('"') {
            Some(_) => format!("{:?}", std::str::from_utf8(field).unwrap()),
            None if example == "zeros" => {
                assert!(field.iter().all(|byte| *byte == 0), "table {name}, offset {at}");
                continue;
            }
            None if example.starts_with("0x") => {
                format!("0x{}", field.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>())
            }
            None if width <= 8 => {
                let mut wide = [0; 8];
                wide[..width].copy_from_slice(field);
                u64::from_le_bytes(wide).to_string()
            }
            None => field.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        assert_eq!(found, example, "table {name}, offset {at}");
    }
    assert_eq!(expected_at, bytes.len(), "table {name} ends early");
}

// An independent decoder ------------------------------------------------------------------------------------------------

fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    (0..width).map(|index| u64::from(bytes[at + index]) << (8 * index)).sum()
}

/// Both copies of a segment header begin like this; returns (number, salt, base, predecessor's number).
fn decode_segment_header(bytes: &[u8]) -> Result<(u64, [u8; 8], u64, u64), &'static str> {
    if bytes.len() != 4_096 || &bytes[..4] != b"TLSG" {
        return Err("magic");
    }
    if number(bytes, 4_092, 4) != u64::from(crc32fast::hash(&bytes[..4_092])) {
        return Err("checksum");
    }
    if number(bytes, 4, 2) != 1 || number(bytes, 8, 4) != 0 {
        return Err("unknown format");
    }
    Ok((number(bytes, 32, 8), bytes[40..48].try_into().unwrap(), number(bytes, 48, 8), number(bytes, 64, 8)))
}

#[derive(Debug, PartialEq)]
struct Decoded {
    kind: u64,
    group_start: u64,
    subject: u64,
    base_offset: u64,
    span: u64,
    owner: Vec<u8>,
    facts: Vec<(u64, Vec<u8>, u64, Vec<u8>)>,
    payload: Vec<u8>,
    len: usize,
}

/// A whole entry that must begin at the first of `bytes` and be intact.
fn decode_entry(bytes: &[u8], salt: [u8; 8], position: u64) -> Result<Decoded, &'static str> {
    if bytes.len() < 208 || &bytes[..4] != b"TLEh" {
        return Err("magic");
    }
    let payload_len = number(bytes, 24, 4) as usize;
    let fact_len = number(bytes, 36, 2) as usize;
    let head_len = number(bytes, 38, 2) as usize;
    if fact_len > 1_024
        || !fact_len.is_multiple_of(8)
        || head_len > 64
        || !head_len.is_multiple_of(8)
        || head_len > payload_len
    {
        return Err("lengths");
    }
    if payload_len > 17 << 20 || (1..4).contains(&payload_len) {
        return Err("lengths");
    }
    let payload_at = 104 + fact_len;
    let copy_at = (payload_at + payload_len).div_ceil(8) * 8;
    let covered = 104 + fact_len + head_len;
    if bytes.len() < copy_at + covered {
        return Err("cut off");
    }
    let mut salted = salt.to_vec();
    salted.extend(&bytes[8..covered]);
    if number(bytes, 4, 4) != u64::from(crc32fast::hash(&salted)) {
        return Err("header checksum");
    }
    if number(bytes, 8, 8) != position || number(bytes, 16, 8) > position {
        return Err("position");
    }
    if number(bytes, 33, 1) != 1 || number(bytes, 35, 1) != 0 || !(1..=8).contains(&number(bytes, 32, 1)) {
        return Err("unknown version, flags or kind");
    }
    if &bytes[copy_at..copy_at + 4] != b"TLEc" || bytes[copy_at + 4..copy_at + covered] != bytes[4..covered] {
        return Err("copy");
    }
    if bytes[payload_at + payload_len..copy_at].iter().any(|byte| *byte != 0) {
        return Err("padding");
    }
    let payload = &bytes[payload_at..payload_at + payload_len];
    let payload_crc = if payload.is_empty() { 0 } else { u64::from(crc32fast::hash(&payload[4..])) };
    let own = if payload.is_empty() { 0 } else { number(payload, 0, 4) };
    if number(bytes, 28, 4) != payload_crc || own != payload_crc {
        return Err("payload checksum");
    }
    let mut facts = Vec::new();
    let mut rest = &bytes[104..payload_at];
    while rest.len() >= 12 && rest[0] != 0 {
        let key_len = usize::from(rest[1]);
        let value_len = number(rest, 2, 2) as usize;
        let key = rest[4..4 + key_len].to_vec();
        let decided_at = number(rest, 4 + key_len, 8);
        let value = rest[12 + key_len..12 + key_len + value_len].to_vec();
        facts.push((u64::from(rest[0]), key, decided_at, value));
        rest = &rest[12 + key_len + value_len..];
    }
    Ok(Decoded {
        kind: number(bytes, 32, 1),
        group_start: number(bytes, 16, 8),
        subject: number(bytes, 48, 8),
        base_offset: number(bytes, 56, 8),
        span: number(bytes, 64, 4),
        owner: bytes[88..104].to_vec(),
        facts,
        payload: payload.to_vec(),
        len: copy_at + covered,
    })
}

/// (segment, salt, base, end, subjects as (subject, first, next, wall, previous, points))
type Footer = (u64, Vec<u8>, u64, u64, Vec<(u64, u64, u64, i64, u64, Vec<(u64, u64)>)>);

fn decode_footer(bytes: &[u8]) -> Result<Footer, &'static str> {
    if bytes.len() < 52 || number(bytes, bytes.len() - 4, 4) != u64::from(crc32fast::hash(&bytes[..bytes.len() - 4])) {
        return Err("checksum");
    }
    if &bytes[..4] != b"TLFT" || number(bytes, 4, 4) != 1 {
        return Err("magic or version");
    }
    let mut at = 48;
    let mut subjects = Vec::new();
    for _ in 0..number(bytes, 40, 8) {
        let field = |index: usize| number(bytes, at + 8 * index, 8);
        let count = field(5) as usize;
        let points = (0..count).map(|point| (field(6 + 2 * point), field(7 + 2 * point))).collect();
        subjects.push((field(0), field(1), field(2), field(3) as i64, field(4), points));
        at += 48 + 16 * count;
    }
    if at != bytes.len() - 4 {
        return Err("length");
    }
    Ok((number(bytes, 8, 8), bytes[16..24].to_vec(), number(bytes, 24, 8), number(bytes, 32, 8), subjects))
}

// Checks ----------------------------------------------------------------------------------------------------------------

fn first_salt() -> [u8; 8] {
    // The second segment's header names the first one's salt as its predecessor's.
    documented("segment-header")[72..80].try_into().unwrap()
}

#[test]
fn the_crate_writes_the_bytes_of_the_document() {
    for (name, written) in example().vectors() {
        assert_eq!(written, documented(name), "vector {name}; written are\n{}", hex(&written));
    }
}

#[test]
fn the_tables_of_the_document_describe_its_vectors() {
    check_table("segment-header", &documented("segment-header"));
    check_table("entry-header", &documented("records")[..104]);
    check_table("facts-entry", &documented("facts")[104..160]);
    check_table("footer", &documented("footer"));
}

#[test]
fn an_independent_decoder_reads_the_documents_segment_header() {
    let header = documented("segment-header");
    let example = example();
    let (segment, salt, base, before) = decode_segment_header(&header).unwrap();
    assert_eq!((segment, base, before), (2, example.watermark + 208, 1));
    let second = &example.files["segment-0000000000000002"];
    assert_eq!(second[..4_096], second[4_096..8_192], "the header stands twice");
    assert_eq!(decode_entry(&second[8_192..], salt, base).unwrap().kind, 3, "a start writes an entry first");
}

#[test]
fn an_independent_decoder_reads_the_documents_entries() {
    let salt = first_salt();
    let example = example();
    let stream = decode_entry(&documented("facts"), salt, example.stream).unwrap();
    assert_eq!((stream.kind, stream.subject), (2, example.stream));
    let (kind, key, decided_at, value) = &stream.facts[0];
    assert_eq!((*kind, number(key, 0, 8), *decided_at), (1, example.stream, example.stream));
    assert_eq!((value[0], number(value, 1, 8), &value[25..]), (1, WALL_MS as u64, b"orders".as_slice()));

    let records = decode_entry(&documented("records"), salt, example.records).unwrap();
    assert_eq!((records.kind, records.subject), (1, example.stream));
    assert_eq!((records.base_offset, records.span), (0, 2));
    assert_eq!((number(&records.owner, 0, 8), number(&records.owner, 8, 8)), (example.producer, 1));
    assert_eq!(records.payload, batch(example.stream));

    let watermark = decode_entry(&documented("watermark"), salt, example.watermark).unwrap();
    assert_eq!((watermark.kind, watermark.len), (7, 208));
    assert_eq!(watermark.group_start, example.watermark, "it proves all before itself");
    // What an entry carries is the start of its own group: the watermark that proved the group before.
    assert_eq!(records.group_start, stream.group_start);
    assert_eq!(stream.group_start + 208, example.stream);
}

#[test]
fn an_independent_decoder_reads_the_documents_footer() {
    let example = example();
    let (segment, salt, base, end, subjects) = decode_footer(&documented("footer")).unwrap();
    assert_eq!((segment, salt.as_slice(), base), (1, first_salt().as_slice(), 0));
    assert_eq!(end, example.watermark + 208);
    let points = vec![(0, example.records)];
    assert_eq!(subjects, [(example.stream, 0, 2, WALL_MS + 1_000, 0, points)]);
}

#[test]
fn an_independent_decoder_walks_the_whole_first_segment() {
    let example = example();
    let (_, salt, base, _) = decode_segment_header(&example.files["segment-0000000000000001"][..4_096]).unwrap();
    let entries = &example.files["segment-0000000000000001"][8_192..];
    let mut at = 0;
    let mut kinds = Vec::new();
    while at < entries.len() {
        let entry = decode_entry(&entries[at..], salt, base + at as u64).unwrap();
        kinds.push(entry.kind);
        at += entry.len;
    }
    assert_eq!(kinds, [3, 7, 2, 2, 1, 7]);
    assert_eq!(at as u64, example.watermark + 208, "a sealed segment is trimmed to its last entry");
}

#[test]
fn no_flipped_bit_of_a_vector_goes_unseen() {
    let example = example();
    let salt = first_salt();
    let entries = [("facts", example.stream), ("records", example.records), ("watermark", example.watermark)];
    for (name, position) in entries {
        let good = documented(name);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_entry(&bad, salt, position).is_err(), "vector {name}, bit {bit}");
        }
        assert_eq!(decode_entry(&good, salt, position + 8).unwrap_err(), "position");
        assert_eq!(decode_entry(&good, [0; 8], position).unwrap_err(), "header checksum");
    }
    let good = documented("footer");
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(decode_footer(&bad).is_err(), "footer, bit {bit}");
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (index, line) in bytes.chunks(16).enumerate() {
        if line.iter().any(|byte| *byte != 0) {
            let digits: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(text, "{:04x}: {}", index * 16, digits.join(" ")).unwrap();
        }
    }
    text
}

#[test]
#[ignore = "prints the vectors for FORMAT.md after a deliberate change"]
fn print_vectors() {
    for (name, bytes) in example().vectors() {
        println!("<!-- vector {name}: {} bytes -->\n```text\n{}```\n", bytes.len(), hex(&bytes));
    }
}
