//! One entry of the log, byte by byte.
//!
//! ```text
//! header 104 | facts | payload | zeros to 8 | header again 104 | facts again | the payload's first head_len bytes again
//! ```
//!
//! All that a fold needs stands in the header, the facts and the payload's head, and these stand twice: before and
//! behind the payload. One checksum, seeded with the segment's secret salt, covers them, lengths included; either copy
//! proves itself. The payload has a checksum of its own, made by whoever made the payload, which is free of its
//! position: the payload's first four bytes are that checksum over all that follows.

use bytes::{Buf, BufMut, BytesMut};

use crate::fact::{self, FACTS_BYTES_MAX, Fact};
use crate::segment::Salt;

/// Bytes of the storage header.
pub const ENTRY_HEADER_LEN: usize = 104;
/// The largest payload that the format allows: 16 MiB of content, and room for its own header.
pub const PAYLOAD_BYTES_MAX: u32 = 17 << 20;
/// The most leading bytes of a payload that stand twice.
pub(crate) const HEAD_BYTES_MAX: usize = 64;

/// "TLEh": the header before the payload.
const MAGIC_HEAD: u32 = u32::from_le_bytes(*b"TLEh");
/// "TLEc": its copy behind the payload.
const MAGIC_COPY: u32 = u32::from_le_bytes(*b"TLEc");
/// Flags in the high byte must be understood; version 1 knows none.
const FLAGS_MUST_UNDERSTAND: u16 = 0xFF00;
/// The version that this crate writes and reads.
pub(crate) const ENTRY_VERSION: u8 = 1;

/// What an entry is. The numbers are part of the format and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// A batch of records of one stream.
    Records = 1,
    /// Facts alone: a stream made, an epoch raised.
    Facts = 2,
    /// The first entry of each start.
    Start = 3,
    /// A group's commit.
    Commit = 4,
    /// A stream's first offset moves up.
    Trim = 5,
    /// Names a range that could not be read.
    Hole = 6,
    /// Proves that all before it was durable; carries nothing else.
    Watermark = 7,
    /// Fills up to a boundary.
    Pad = 8,
}

impl EntryKind {
    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Records,
            2 => Self::Facts,
            3 => Self::Start,
            4 => Self::Commit,
            5 => Self::Trim,
            6 => Self::Hole,
            7 => Self::Watermark,
            8 => Self::Pad,
            _ => return None,
        })
    }

    /// Whether answers may rest on it: not on watermarks and padding, which prove and fill.
    #[must_use]
    pub const fn is_content(self) -> bool {
        !matches!(self, Self::Watermark | Self::Pad)
    }
}

/// The storage header of an entry. `magic` and `header_crc` are the codec's own business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryHeader {
    /// Log position of the entry's first byte; a multiple of eight.
    pub position: u64,
    /// Start of its commit group: all below was durable before a byte of the group was written.
    pub group_start: u64,
    /// Bytes of the payload: none, or at least four.
    pub payload_len: u32,
    /// Checksum over the payload behind its first four bytes, which are this same number; 0 if there is none.
    pub payload_crc: u32,
    /// What it is.
    pub kind: EntryKind,
    /// The high byte must be understood by whoever reads it.
    pub flags: u16,
    /// Bytes of facts; a multiple of eight.
    pub fact_len: u16,
    /// Leading bytes of the payload that stand twice; a multiple of eight.
    pub head_len: u16,
    /// Entries of this atomic group that follow.
    pub atomic_left: u32,
    /// Place in the atomic group, from 0.
    pub atomic_index: u32,
    /// The stream, producer or group it is about.
    pub subject: u64,
    /// The first offset that it adds to the subject.
    pub base_offset: u64,
    /// How many offsets it covers.
    pub span: u32,
    /// How many leading records of the payload are not part of the stream.
    pub skip: u32,
    /// Wall clock, milliseconds since the Unix epoch; never falling within a stream.
    pub wall_ms: i64,
    /// Log time in milliseconds.
    pub log_ms: u64,
    /// Opaque to this crate.
    pub owner: [u8; 16],
}

impl EntryHeader {
    /// Bytes of the whole entry in the log; a multiple of eight.
    #[must_use]
    pub fn stored_len(&self) -> u64 {
        entry_len(usize::from(self.fact_len), self.payload_len as usize, usize::from(self.head_len)) as u64
    }

    /// The position behind the entry.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.position + self.stored_len()
    }

    /// Bytes from the entry's start to the copy of its header.
    pub(crate) fn copy_at(&self) -> u64 {
        body_len(usize::from(self.fact_len), self.payload_len as usize) as u64
    }

    /// Bytes from the entry's start to its payload.
    #[must_use]
    pub fn payload_at(&self) -> u64 {
        (ENTRY_HEADER_LEN + usize::from(self.fact_len)) as u64
    }

    /// The offset behind the last one that it covers.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.base_offset.saturating_add(u64::from(self.span))
    }

    fn covered_len(&self) -> usize {
        ENTRY_HEADER_LEN + usize::from(self.fact_len) + usize::from(self.head_len)
    }
}

/// A header whose checksum verified, with the facts and the payload's head that it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryHead<'a> {
    /// The header.
    pub header: EntryHeader,
    /// Its checksum; it never leaves the broker.
    pub(crate) header_crc: u32,
    /// The encoded facts.
    fact_bytes: &'a [u8],
    /// The payload's first `head_len` bytes.
    pub head: &'a [u8],
}

impl<'a> EntryHead<'a> {
    /// The facts of this entry that this version knows.
    pub fn facts(&self) -> impl Iterator<Item = Fact<'a>> + use<'a> {
        fact::facts(self.fact_bytes)
    }
}

/// Bytes that an entry with these parts takes in the log; a multiple of eight.
#[must_use]
pub const fn entry_len(fact_len: usize, payload_len: usize, head_len: usize) -> usize {
    body_len(fact_len, payload_len) + ENTRY_HEADER_LEN + fact_len + head_len
}

const fn body_len(fact_len: usize, payload_len: usize) -> usize {
    (ENTRY_HEADER_LEN + fact_len + payload_len).next_multiple_of(8)
}

/// Why bytes are not an entry's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadError {
    /// Not one: wrong magic, impossible length, wrong checksum, or cut off.
    Invalid,
    /// A valid one of a version, kind or with flags that this crate does not know: stop, touch nothing.
    Unknown { version: u8, kind: u8, flags: u16 },
}

/// Which of the two places a header stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadPlace {
    /// Before the payload.
    Front,
    /// Behind it.
    Copy,
}

/// The place that the first four bytes claim, if any: a cheap test before [`decode_head`].
#[inline]
pub(crate) fn claimed_place(bytes: &[u8]) -> Option<HeadPlace> {
    match bytes.first_chunk::<4>().map(|magic| u32::from_le_bytes(*magic)) {
        Some(MAGIC_HEAD) => Some(HeadPlace::Front),
        Some(MAGIC_COPY) => Some(HeadPlace::Copy),
        _ => None,
    }
}

/// Reads the header at the start of `bytes` and checks it against `salt`. Whether it stands where its position says is
/// the caller's to check.
pub(crate) fn decode_head<'a>(bytes: &'a [u8], salt: &Salt, place: HeadPlace) -> Result<EntryHead<'a>, HeadError> {
    if claimed_place(bytes) != Some(place) {
        return Err(HeadError::Invalid);
    }
    let Some((mut fixed, rest)) = bytes.split_at_checked(ENTRY_HEADER_LEN) else {
        return Err(HeadError::Invalid);
    };
    fixed.advance(4);
    let header_crc = fixed.get_u32_le();
    let position = fixed.get_u64_le();
    let group_start = fixed.get_u64_le();
    let payload_len = fixed.get_u32_le();
    let payload_crc = fixed.get_u32_le();
    let kind = fixed.get_u8();
    let version = fixed.get_u8();
    let flags = fixed.get_u16_le();
    let fact_len = fixed.get_u16_le();
    let head_len = fixed.get_u16_le();
    let lengths_fit = usize::from(fact_len) <= FACTS_BYTES_MAX
        && fact_len % 8 == 0
        && usize::from(head_len) <= HEAD_BYTES_MAX
        && head_len % 8 == 0
        && u32::from(head_len) <= payload_len
        && payload_len <= PAYLOAD_BYTES_MAX
        && (payload_len >= 4 || (payload_len == 0 && payload_crc == 0));
    if !lengths_fit || position % 8 != 0 {
        return Err(HeadError::Invalid);
    }
    let (Some((fact_bytes, behind_facts)), Some(covered)) = (
        rest.split_at_checked(usize::from(fact_len)),
        bytes.get(8..ENTRY_HEADER_LEN + usize::from(fact_len) + usize::from(head_len)),
    ) else {
        return Err(HeadError::Invalid);
    };
    let Some((head, _)) = behind_facts.split_at_checked(usize::from(head_len)) else {
        return Err(HeadError::Invalid);
    };
    if covered_crc(salt, covered) != header_crc {
        return Err(HeadError::Invalid);
    }
    let Some(known_kind) = EntryKind::from_number(kind) else {
        return Err(HeadError::Unknown { version, kind, flags });
    };
    if version != ENTRY_VERSION || flags & FLAGS_MUST_UNDERSTAND != 0 {
        return Err(HeadError::Unknown { version, kind, flags });
    }
    let header = EntryHeader {
        position,
        group_start,
        payload_len,
        payload_crc,
        kind: known_kind,
        flags,
        fact_len,
        head_len,
        atomic_left: fixed.get_u32_le(),
        atomic_index: fixed.get_u32_le(),
        subject: fixed.get_u64_le(),
        base_offset: fixed.get_u64_le(),
        span: fixed.get_u32_le(),
        skip: fixed.get_u32_le(),
        wall_ms: fixed.get_i64_le(),
        log_ms: fixed.get_u64_le(),
        owner: fixed.first_chunk::<16>().copied().unwrap_or_default(),
    };
    Ok(EntryHead { header, header_crc, fact_bytes, head })
}

/// The header checksum of the entry whose front header begins `bytes`, unchecked.
pub(crate) fn stored_crc(bytes: &[u8]) -> u32 {
    bytes.get(4..8).and_then(|crc| crc.first_chunk()).map_or(0, |crc| u32::from_le_bytes(*crc))
}

fn covered_crc(salt: &Salt, covered: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(salt.as_bytes());
    hasher.update(covered);
    hasher.finalize()
}

/// Whether `payload` is what its own checksum, in its first four bytes, and its header's say. An empty one is.
pub(crate) fn payload_verifies(payload: &[u8], payload_crc: u32) -> bool {
    match payload.split_first_chunk::<4>() {
        Some((own, behind)) => u32::from_le_bytes(*own) == payload_crc && crc32fast::hash(behind) == payload_crc,
        None => payload.is_empty() && payload_crc == 0,
    }
}

/// A payload with its leading bytes as the copy behind it holds them. The caller checks what comes of it.
pub(crate) fn payload_with_head(payload: &[u8], head: &[u8]) -> Vec<u8> {
    let behind = payload.get(head.len()..).unwrap_or_default();
    [head, behind].concat()
}

/// Whether the entry in `bytes`, whose front header has verified, is intact in all the rest: payload, zeros and copy.
pub(crate) fn is_intact(bytes: &[u8], header: &EntryHeader) -> bool {
    let covered = header.covered_len();
    let payload_at = header.payload_at() as usize;
    let payload_end = payload_at + header.payload_len as usize;
    let copy_at = header.copy_at() as usize;
    let (Some(payload), Some(zeros), Some(front), Some(copy)) = (
        bytes.get(payload_at..payload_end),
        bytes.get(payload_end..copy_at),
        bytes.get(4..covered),
        bytes.get(copy_at + 4..copy_at + covered),
    ) else {
        return false;
    };
    bytes.get(copy_at..).and_then(claimed_place) == Some(HeadPlace::Copy)
        && front == copy
        && zeros.iter().all(|byte| *byte == 0)
        && payload_verifies(payload, header.payload_crc)
}

/// Appends the whole entry to `out`, which must have room for [`entry_len`] bytes. `header`'s lengths and
/// `payload_crc` are taken from `facts` and `payload`.
///
/// # Panics
/// If lengths break the format's limits: the caller has checked them.
pub(crate) fn encode_entry(
    out: &mut BytesMut,
    salt: &Salt,
    header: &EntryHeader,
    facts: &[u8],
    payload: &[u8],
    head_len: u16,
) {
    assert!(facts.len() <= FACTS_BYTES_MAX && facts.len().is_multiple_of(8), "facts are padded and bounded");
    assert!(payload.is_empty() || payload.len() >= 4, "a payload begins with its checksum");
    assert!(payload.len() <= PAYLOAD_BYTES_MAX as usize, "a payload is bounded");
    assert!(usize::from(head_len) <= HEAD_BYTES_MAX && usize::from(head_len) <= payload.len(), "the head is bounded");
    assert!(head_len.is_multiple_of(8) && header.position.is_multiple_of(8), "entries are aligned");
    let start = out.len();
    let payload_crc = payload.first_chunk::<4>().map_or(0, |crc| u32::from_le_bytes(*crc));
    out.put_u32_le(MAGIC_HEAD);
    out.put_u32_le(0);
    out.put_u64_le(header.position);
    out.put_u64_le(header.group_start);
    out.put_u32_le(payload.len() as u32);
    out.put_u32_le(payload_crc);
    out.put_u8(header.kind as u8);
    out.put_u8(ENTRY_VERSION);
    out.put_u16_le(header.flags);
    out.put_u16_le(facts.len() as u16);
    out.put_u16_le(head_len);
    out.put_u32_le(header.atomic_left);
    out.put_u32_le(header.atomic_index);
    out.put_u64_le(header.subject);
    out.put_u64_le(header.base_offset);
    out.put_u32_le(header.span);
    out.put_u32_le(header.skip);
    out.put_i64_le(header.wall_ms);
    out.put_u64_le(header.log_ms);
    out.put_slice(&header.owner);
    debug_assert_eq!(out.len() - start, ENTRY_HEADER_LEN);
    out.put_slice(facts);
    out.put_slice(payload);
    out.put_bytes(0, body_len(facts.len(), payload.len()) - (out.len() - start));

    let covered_len = ENTRY_HEADER_LEN + facts.len() + usize::from(head_len);
    let covered = out.get(start + 8..start + covered_len).expect("just written");
    let header_crc = covered_crc(salt, covered).to_le_bytes();
    if let Some(place) = out.get_mut(start + 4..start + 8) {
        place.copy_from_slice(&header_crc);
    }
    out.put_u32_le(MAGIC_COPY);
    out.extend_from_within_start(start + 4, start + covered_len);
    debug_assert_eq!(out.len() - start, entry_len(facts.len(), payload.len(), usize::from(head_len)));
}

/// `BytesMut` has no `extend_from_within`: the range is at most 1,192 bytes, so it goes over the stack.
trait ExtendFromWithin {
    fn extend_from_within_start(&mut self, from: usize, to: usize);
}

impl ExtendFromWithin for BytesMut {
    fn extend_from_within_start(&mut self, from: usize, to: usize) {
        let mut copy = [0; ENTRY_HEADER_LEN + FACTS_BYTES_MAX + HEAD_BYTES_MAX];
        let source = self.get(from..to).expect("the range has been written");
        let copy = copy.get_mut(..source.len()).expect("a header with facts and head fits");
        copy.copy_from_slice(source);
        self.extend_from_slice(copy);
    }
}
