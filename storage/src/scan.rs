//! Walks the entries of one segment, and finds the next one behind whatever is broken. Pure: bytes in, findings out.

use std::borrow::Cow;
use std::ops::Range;

use crate::entry::{self, EntryHead, HeadError, HeadPlace};
use crate::segment::Salt;

/// An entry whose header verified, by itself or by its copy.
#[derive(Debug, Clone)]
pub(crate) struct ScannedEntry<'a> {
    pub(crate) head: EntryHead<'a>,
    /// The payload, healed where its leading bytes had to come from the copy; `None` if the bytes end before it does.
    pub(crate) payload: Option<Cow<'a, [u8]>>,
    /// The payload is what its checksum says, by itself or healed.
    pub(crate) payload_ok: bool,
    /// Everything about it verifies: header, payload, zeros, copy.
    pub(crate) is_intact: bool,
}

impl ScannedEntry<'_> {
    pub(crate) fn position(&self) -> u64 {
        self.head.header.position
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Scanned<'a> {
    Entry(ScannedEntry<'a>),
    /// Neither header nor copy can be read in this range, and an entry follows it.
    Unreadable(Range<u64>),
}

/// A valid entry of a kind, version or with flags that this version does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnknownEntry {
    pub(crate) position: u64,
    pub(crate) kind: u8,
    pub(crate) version: u8,
    pub(crate) flags: u16,
}

/// A walk over the entries of one segment.
#[derive(Debug)]
pub(crate) struct Scan<'a> {
    bytes: &'a [u8],
    salt: Salt,
    /// The segment's base: no group of it began earlier.
    base: u64,
    /// Position of the first of `bytes`.
    origin: u64,
    at: usize,
    uses_copies: bool,
    pending: Option<ScannedEntry<'a>>,
}

impl<'a> Scan<'a> {
    /// `bytes` are the segment's, from its base position on, up to where entries can stand.
    pub(crate) fn new(bytes: &'a [u8], salt: Salt, base: u64, uses_copies: bool) -> Self {
        Self { bytes, salt, base, origin: base, at: 0, uses_copies, pending: None }
    }

    /// The same, but `bytes` begin in the middle of the segment, at `origin`.
    pub(crate) fn starting_at(self, origin: u64) -> Self {
        Self { origin, ..self }
    }

    /// As [`Self::new`], but `bytes` begin in the middle of the segment, at `origin`.
    pub(crate) fn new_at(bytes: &'a [u8], salt: Salt, base: u64, origin: u64) -> Self {
        Self { bytes, salt, base, origin, at: 0, uses_copies: true, pending: None }
    }

    /// The position at which no further entry was found.
    pub(crate) fn stopped_at(&self) -> u64 {
        // A file cut by damage may end anywhere; entries begin at multiples of eight.
        (self.origin + self.at as u64).next_multiple_of(8)
    }

    pub(crate) fn next(&mut self) -> Option<Result<Scanned<'a>, UnknownEntry>> {
        if let Some(entry) = self.pending.take() {
            return Some(Ok(self.accept(entry)));
        }
        match self.head_at(self.at) {
            Ok(Some(entry)) => return Some(Ok(self.accept(entry))),
            Ok(None) => {}
            Err(unknown) => return Some(Err(unknown)),
        }
        let found = match self.find_behind(self.at)? {
            Ok(found) => found,
            Err(unknown) => return Some(Err(unknown)),
        };
        let start = self.origin + self.at as u64;
        if found.position() == start {
            return Some(Ok(self.accept(found)));
        }
        let range = start..found.position();
        self.pending = Some(found);
        Some(Ok(Scanned::Unreadable(range)))
    }

    fn accept(&mut self, entry: ScannedEntry<'a>) -> Scanned<'a> {
        let end = entry.head.header.end() - self.origin;
        self.at = usize::try_from(end).unwrap_or(usize::MAX).min(self.bytes.len());
        Scanned::Entry(entry)
    }

    /// The entry whose front header stands at `at` and says that it does.
    fn head_at(&self, at: usize) -> Result<Option<ScannedEntry<'a>>, UnknownEntry> {
        let bytes = self.bytes.get(at..).unwrap_or_default();
        let head = match entry::decode_head(bytes, &self.salt, HeadPlace::Front) {
            Ok(head) => head,
            Err(HeadError::Invalid) => return Ok(None),
            Err(HeadError::Unknown { version, kind, flags }) => {
                return Err(UnknownEntry { position: self.origin + at as u64, kind, version, flags });
            }
        };
        if head.header.position != self.origin + at as u64 || !self.is_plausible(&head) {
            return Ok(None);
        }
        Ok(Some(self.entry(head, HeadPlace::Front)))
    }

    /// The entry whose copy stands at `at`, if it begins at or behind `from`.
    fn copy_at(&self, at: usize, from: usize) -> Result<Option<ScannedEntry<'a>>, UnknownEntry> {
        let bytes = self.bytes.get(at..).unwrap_or_default();
        let head = match entry::decode_head(bytes, &self.salt, HeadPlace::Copy) {
            Ok(head) => head,
            Err(HeadError::Invalid) => return Ok(None),
            Err(HeadError::Unknown { version, kind, flags }) => {
                return Err(UnknownEntry { position: self.origin + at as u64, kind, version, flags });
            }
        };
        let stands_at = head.header.position.checked_add(head.header.copy_at());
        let fits = stands_at == Some(self.origin + at as u64)
            && head.header.position >= self.origin + from as u64
            && self.is_plausible(&head);
        Ok(fits.then(|| self.entry(head, HeadPlace::Copy)))
    }

    fn is_plausible(&self, head: &EntryHead<'_>) -> bool {
        let group_start = head.header.group_start;
        self.base <= group_start && group_start <= head.header.position
    }

    fn entry(&self, head: EntryHead<'a>, place: HeadPlace) -> ScannedEntry<'a> {
        let at = (head.header.position - self.origin) as usize;
        let bytes = self.bytes.get(at..).unwrap_or_default();
        let payload_at = head.header.payload_at() as usize;
        let payload = bytes.get(payload_at..payload_at + head.header.payload_len as usize);
        let crc = head.header.payload_crc;
        let verifies = payload.is_some_and(|payload| entry::payload_verifies(payload, crc));
        // Where the copy had to serve, the damage may lie in the leading bytes that the copy holds as well.
        let healed = payload.filter(|_| !verifies && place == HeadPlace::Copy);
        let healed = healed.map(|payload| entry::payload_with_head(payload, head.head));
        let healed = healed.filter(|payload| entry::payload_verifies(payload, crc));
        let payload_ok = verifies || healed.is_some();
        let is_intact = place == HeadPlace::Front && verifies && entry::is_intact(bytes, &head.header);
        let payload = match healed {
            Some(healed) => Some(Cow::Owned(healed)),
            None => payload.map(Cow::Borrowed),
        };
        ScannedEntry { head, payload, payload_ok, is_intact }
    }

    /// One pass over what lies behind `from`, in steps of eight bytes.
    fn find_behind(&self, from: usize) -> Option<Result<ScannedEntry<'a>, UnknownEntry>> {
        let words = self.bytes.get(from..)?.chunks_exact(8);
        for (index, word) in words.enumerate() {
            let at = from + index * 8;
            let found = match entry::claimed_place(word) {
                Some(HeadPlace::Front) if index > 0 => self.head_at(at),
                Some(HeadPlace::Copy) if self.uses_copies => self.copy_at(at, from),
                _ => continue,
            };
            match found {
                Ok(Some(found)) => return Some(Ok(found)),
                Ok(None) => {}
                Err(unknown) => return Some(Err(unknown)),
            }
        }
        None
    }
}

/// The position behind the last byte at or after `from` that is not zero, in a segment with this base.
pub(crate) fn nonzero_end(bytes: &[u8], base: u64, from: u64) -> u64 {
    let start = (from - base) as usize;
    let behind = bytes.get(start..).unwrap_or_default();
    let used = behind.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    from + used as u64
}
