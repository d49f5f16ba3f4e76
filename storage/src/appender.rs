//! The write buffer: entries are encoded into the open group, which is closed when the writer is free for it.
//!
//! Touches no file. One group is committed at a time, in log order; while one is written and synced the next one fills.
//! Every entry carries the start of its group, because all below that was durable before a byte of the group was
//! written. When a group closes, the watermark that will prove it is encoded behind it, at the place where the next
//! group begins.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;

use crate::checkpoint::{EntryMark, Stamp};
use crate::entry::{self, EntryHeader, EntryKind, entry_len};
use crate::group::{Chunk, Group, OpensSegment};
use crate::housekeeping::Spare;
use crate::index::{Index, SegmentIndex};
use crate::segment::{ENTRIES_AT, LogId, Predecessor, Salt, SegmentHeader};
use crate::{Entropy, Facts, ReplayTime, Sabotage, Sabotages};

/// Group buffers are of this size, in bytes, unless one entry alone is larger: small enough that a slow consumer's slice
/// pins little, large enough that a group is few writes.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes of a watermark entry.
const WATERMARK_LEN: u64 = entry_len(0, 0, 0) as u64;

/// An entry to append; its position, group and checksum are the appender's business.
#[derive(Debug, Clone, Copy)]
pub struct NewEntry<'a> {
    /// What it is.
    pub kind: EntryKind,
    /// The stream, producer or group it is about.
    pub subject: u64,
    /// The first offset that it adds.
    pub base_offset: u64,
    /// Offsets that it covers.
    pub span: u32,
    /// Leading records of the payload that are not part of the stream.
    pub skip: u32,
    /// Opaque to storage.
    pub owner: [u8; 16],
    /// What it says about the state.
    pub facts: &'a Facts,
    /// Empty, or at least four bytes of which the first four are the checksum over the rest.
    pub payload: &'a [u8],
    /// Leading payload bytes that stand twice; a multiple of eight, at most 64.
    pub head_len: u16,
}

impl<'a> NewEntry<'a> {
    /// An entry that holds facts alone.
    #[must_use]
    pub const fn facts(subject: u64, facts: &'a Facts) -> Self {
        Self {
            kind: EntryKind::Facts,
            subject,
            base_offset: 0,
            span: 0,
            skip: 0,
            owner: [0; 16],
            facts,
            payload: &[],
            head_len: 0,
        }
    }

    fn len(&self) -> u64 {
        entry_len(self.facts.as_bytes().len(), self.payload.len(), usize::from(self.head_len)) as u64
    }
}

/// Where an atomic group was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Position of its first entry.
    pub position: u64,
    /// Position of the last entry's payload.
    pub payload_position: u64,
    /// Position behind it: durable once the durable position is here.
    pub end: u64,
}

/// What an entry may take its room from while the disk is full.
///
/// The reserve is small, and what a start needs of it is never given away; so it goes in the order of what helps most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// From segments prepared ahead, never from the reserve: what grows without bound.
    Ordinary,
    /// From the first half of a segment of the reserve as well: what keeps others going.
    HalfReserve,
    /// From all of it: what will make room again.
    Reserve,
}

/// Why an entry was not appended; the log is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The active segment is full and the next one is not prepared yet.
    #[error("the next segment file is not ready; wait until it is prepared")]
    NoSegmentReady,
    /// The atomic group is larger than any segment can hold.
    #[error("{bytes} bytes are more than one segment holds ({bytes_max})")]
    TooLarge {
        /// Its bytes in the log.
        bytes: u64,
        /// The most that fit.
        bytes_max: u64,
    },
}

/// Whether a spare has room for one group of `bytes` and the watermark behind it.
fn holds(spare: &Spare, bytes: u64) -> bool {
    spare.len() - ENTRIES_AT >= bytes + WATERMARK_LEN
}

/// Encodes entries into the open group.
#[derive(Debug)]
pub struct Appender {
    log_id: LogId,
    start_count: u64,
    payload_bytes_max: u32,
    segment_bytes: u64,
    entropy: Entropy,
    sabotages: Sabotages,
    index: Index,

    active: Predecessor,
    /// Nothing of the active segment may stand at or behind this position.
    limit: u64,
    active_file_len: u64,
    /// Prepared files, the smallest first: more than one only after a group did not fit the first.
    spares: Vec<Spare>,
    /// The log bytes of the largest group that no spare could hold.
    wanted_bytes: u64,
    /// A file of the reserve, at hand while the disk is full.
    reserve: Option<Spare>,
    /// The active segment is of the reserve: it is for what may be written on a full disk.
    is_on_reserve: bool,

    /// Where the next entry goes.
    position: u64,
    /// What the open group's entries carry.
    group_start: u64,
    opens: Option<OpensSegment>,
    chunks: Vec<Chunk>,
    /// The open chunk's bytes, and room behind them.
    arena: BytesMut,
    arena_position: u64,
    has_content: bool,
    /// Batches in the open group.
    batches: u64,
    content_end: u64,
    /// The newest entry, watermarks aside.
    last: Option<EntryMark>,
    closed: VecDeque<Group>,
    closed_bytes: usize,
    time: ReplayTime,
}

/// What an appender starts from: the state right after recovery.
#[derive(Debug)]
pub(crate) struct AppenderStart {
    pub(crate) header: SegmentHeader,
    pub(crate) position: u64,
    pub(crate) group_start: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) entropy: Entropy,
    pub(crate) sabotages: Sabotages,
    pub(crate) index: Index,
    pub(crate) time: ReplayTime,
    /// The disk was full, and the segment is of the reserve.
    pub(crate) is_on_reserve: bool,
}

impl Appender {
    pub(crate) fn new(start: AppenderStart) -> Self {
        let header = start.header;
        Self {
            log_id: header.log_id,
            start_count: header.start_count,
            payload_bytes_max: header.payload_bytes_max,
            segment_bytes: start.segment_bytes,
            entropy: start.entropy,
            sabotages: start.sabotages,
            index: start.index,
            active: Predecessor { number: header.number, salt: header.salt, base: header.base },
            limit: header.base + header.file_len - ENTRIES_AT,
            active_file_len: header.file_len,
            spares: Vec::new(),
            wanted_bytes: 0,
            reserve: None,
            is_on_reserve: start.is_on_reserve,
            position: start.position,
            group_start: start.group_start,
            opens: None,
            chunks: Vec::new(),
            arena: BytesMut::new(),
            arena_position: start.position,
            has_content: false,
            batches: 0,
            content_end: start.group_start,
            last: None,
            closed: VecDeque::new(),
            closed_bytes: 0,
            time: start.time,
        }
    }

    /// The index of what has been appended; what of it is durable, the caller knows.
    #[must_use]
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// The index, to hand over sealed segments' parts.
    pub const fn index_mut(&mut self) -> &mut Index {
        &mut self.index
    }

    /// The log's end, watermarks and padding aside: an answer decided now may leave once the durable position is here.
    #[must_use]
    pub const fn content_end(&self) -> u64 {
        self.content_end
    }

    /// Bytes that are in memory and not yet with the writer.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.closed_bytes + self.open_bytes()
    }

    /// Bytes of the open group.
    #[must_use]
    pub fn open_bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes.len()).sum::<usize>() + self.arena.len()
    }

    /// The length of the spare that is wanted now, if none at hand will do.
    #[must_use]
    pub fn spare_wanted(&self) -> Option<u64> {
        if self.spares.iter().any(|spare| holds(spare, self.wanted_bytes)) {
            return None;
        }
        let grown = self.active_file_len.saturating_mul(4).min(self.segment_bytes);
        let needed = ENTRIES_AT + self.wanted_bytes + WATERMARK_LEN;
        Some(grown.max(self.spare_len_min()).max(needed).next_multiple_of(4_096))
    }

    /// Takes a prepared file for the next segment.
    pub fn put_spare(&mut self, spare: Spare) {
        self.spares.push(spare);
        self.spares.sort_by_key(Spare::len);
    }

    /// Takes a file of the reserve, for what may still be written while no spare can be prepared.
    pub fn put_reserve(&mut self, reserve: Spare) {
        self.reserve = Some(reserve);
    }

    /// Whether a file of the reserve is at hand.
    #[must_use]
    pub const fn has_reserve(&self) -> bool {
        self.reserve.is_some()
    }

    /// Whether the active segment is of the reserve, because the disk was full when it was opened. Then nothing
    /// [`Room::Ordinary`] goes into it.
    #[must_use]
    pub const fn is_on_reserve(&self) -> bool {
        self.is_on_reserve
    }

    fn spare_len_min(&self) -> u64 {
        ENTRIES_AT + u64::from(self.payload_bytes_max) + 64 * 1_024 + WATERMARK_LEN
    }

    /// Makes [`Room::Ordinary`] for one entry or atomic group of `bytes` in the log and says where it will begin.
    ///
    /// # Errors
    /// As [`Self::prepare_in`].
    pub fn prepare(&mut self, bytes: u64) -> Result<u64, AppendError> {
        self.prepare_in(Room::Ordinary, bytes)
    }

    /// Makes room for one entry or atomic group of `bytes` in the log and says where it will begin.
    ///
    /// # Errors
    /// If the active segment has no such room and no other is ready, or if no segment could hold it.
    pub fn prepare_in(&mut self, room: Room, bytes: u64) -> Result<u64, AppendError> {
        if self.position + bytes + WATERMARK_LEN > self.limit_of(room) {
            let bytes_max = self.segment_bytes.max(self.spare_len_min()) - ENTRIES_AT - WATERMARK_LEN;
            if bytes > bytes_max {
                return Err(AppendError::TooLarge { bytes, bytes_max });
            }
            if let Some(fitting) = self.spares.iter().position(|spare| holds(spare, bytes)) {
                let spare = self.spares.remove(fitting);
                self.wanted_bytes = 0;
                self.roll(spare, false);
            } else if let Some(reserve) = self.take_reserve(bytes, room) {
                self.roll(reserve, true);
            } else {
                self.wanted_bytes = self.wanted_bytes.max(bytes);
                return Err(AppendError::NoSegmentReady);
            }
        }
        Ok(self.position)
    }

    /// Where the active segment ends for this kind of entry.
    fn limit_of(&self, room: Room) -> u64 {
        match room {
            Room::Ordinary if self.is_on_reserve => self.active.base,
            Room::HalfReserve if self.is_on_reserve => self.active.base + (self.limit - self.active.base) / 2,
            _ => self.limit,
        }
    }

    /// The file of the reserve, if this kind of entry may begin it.
    fn take_reserve(&mut self, bytes: u64, room: Room) -> Option<Spare> {
        let (may_begin, needed) = match room {
            Room::Ordinary => (false, bytes),
            // The second half of the one before is not for it, and is to be used up first.
            Room::HalfReserve => (!self.is_on_reserve, 2 * bytes + WATERMARK_LEN),
            Room::Reserve => (true, bytes),
        };
        self.reserve.take_if(|reserve| may_begin && holds(reserve, needed))
    }

    /// Appends one atomic group into [`Room::Ordinary`]; see [`Self::append_in`].
    ///
    /// # Errors
    /// As [`Self::prepare`]; the log is as it was then.
    ///
    /// # Panics
    /// As [`Self::append_in`].
    pub fn append(&mut self, entries: &[NewEntry<'_>], time: ReplayTime) -> Result<Appended, AppendError> {
        self.append_in(Room::Ordinary, entries, time)
    }

    /// Appends one atomic group: after any crash it is there whole or not at all. Times that lie before those of the
    /// entry before become the same as those.
    ///
    /// # Errors
    /// As [`Self::prepare_in`]; the log is as it was then.
    ///
    /// # Panics
    /// If `entries` is empty, or an entry breaks the format's limits: the caller has checked them.
    pub fn append_in(
        &mut self,
        room: Room,
        entries: &[NewEntry<'_>],
        time: ReplayTime,
    ) -> Result<Appended, AppendError> {
        assert!(!entries.is_empty(), "an atomic group has at least one entry");
        let bytes: u64 = entries.iter().map(NewEntry::len).sum();
        let position = self.prepare_in(room, bytes)?;
        // Whatever clock the caller has: readers and retention rely on times that never fall.
        let time =
            ReplayTime { wall_ms: time.wall_ms.max(self.time.wall_ms), log_ms: time.log_ms.max(self.time.log_ms) };
        self.time = time;
        let mut payload_position = position;
        for (index, new) in entries.iter().enumerate() {
            let header = EntryHeader {
                position: self.position,
                group_start: self.stamp(),
                payload_len: new.payload.len() as u32,
                payload_crc: 0,
                kind: new.kind,
                flags: 0,
                fact_len: new.facts.as_bytes().len() as u16,
                head_len: new.head_len,
                atomic_left: (entries.len() - 1 - index) as u32,
                atomic_index: index as u32,
                subject: new.subject,
                base_offset: new.base_offset,
                span: new.span,
                skip: new.skip,
                wall_ms: time.wall_ms,
                log_ms: time.log_ms,
                owner: new.owner,
            };
            payload_position = header.position + header.payload_at();
            self.make_room(header.stored_len() as usize);
            let facts = new.facts.as_bytes();
            let at = self.arena.len();
            entry::encode_entry(&mut self.arena, &self.active.salt, &header, facts, new.payload, new.head_len);
            let header_crc = entry::stored_crc(self.arena.get(at..).unwrap_or_default());
            self.last = Some(EntryMark::new(self.active.number, self.active.salt, &header, header_crc));
            self.position = header.end();
            self.has_content |= new.kind.is_content();
            if new.kind == EntryKind::Records {
                self.batches += 1;
                self.index.note(&header);
            }
            if self.sabotages.has(Sabotage::SplitAtomicGroup) && header.atomic_left > 0 {
                self.content_end = self.position;
                self.close_group();
            }
        }
        self.content_end = self.position;
        Ok(Appended { position, payload_position, end: self.position })
    }

    /// The next group for the writer, or `None` if nothing waits. The caller hands over one at a time, after the one
    /// before is committed.
    pub fn take_group(&mut self) -> Option<Group> {
        if self.closed.is_empty() && self.has_content {
            self.close_group();
        }
        let group = self.closed.pop_front()?;
        self.closed_bytes -= group.len();
        Some(group)
    }

    /// Whether anything waits for the writer.
    #[must_use]
    pub fn has_group(&self) -> bool {
        self.has_content || !self.closed.is_empty()
    }

    /// The index of the active segment as it is when the log is closed now, to be written as its footer: the next start
    /// need not read the segment for it then. `None` while anything waits for the writer.
    #[must_use]
    pub fn closing_index(&self) -> Option<Arc<SegmentIndex>> {
        let is_at_rest = !self.has_group() && self.opens.is_none();
        is_at_rest.then(|| self.index.active_ending_at(self.position))
    }

    fn stamp(&self) -> u64 {
        if self.sabotages.has(Sabotage::StampAtEncode) { self.position } else { self.group_start }
    }

    fn make_room(&mut self, bytes: usize) {
        if self.arena.capacity() - self.arena.len() < bytes {
            self.finish_chunk();
            self.arena = BytesMut::with_capacity(bytes.max(CHUNK_BYTES));
        }
    }

    fn finish_chunk(&mut self) {
        if !self.arena.is_empty() {
            let bytes = self.arena.split().freeze();
            self.chunks.push(Chunk { position: self.arena_position, bytes });
        }
        self.arena_position = self.position;
    }

    /// Closes the open group, and encodes the watermark that will prove it.
    fn close_group(&mut self) {
        self.finish_chunk();
        let end = self.position;
        self.group_start = end;
        let header = EntryHeader {
            position: end,
            group_start: end,
            payload_len: 0,
            payload_crc: 0,
            kind: EntryKind::Watermark,
            flags: 0,
            fact_len: 0,
            head_len: 0,
            atomic_left: 0,
            atomic_index: 0,
            subject: 0,
            base_offset: 0,
            span: 0,
            skip: 0,
            wall_ms: self.time.wall_ms,
            log_ms: self.time.log_ms,
            owner: [0; 16],
        };
        self.make_room(WATERMARK_LEN as usize);
        entry::encode_entry(&mut self.arena, &self.active.salt, &header, &[], &[], 0);
        let watermark = self.arena.split().freeze();
        self.position = header.end();
        self.arena_position = self.position;
        let mark = self.last.expect("a group is closed when it holds an entry");
        let stamp = Stamp { log_id: self.log_id, mark, start_count: self.start_count, time: self.time };
        let group = Group {
            opens: self.opens.take(),
            chunks: std::mem::take(&mut self.chunks),
            watermark,
            end,
            stamp,
            batches: std::mem::take(&mut self.batches),
        };
        self.closed_bytes += group.len();
        self.closed.push_back(group);
        self.has_content = false;
    }

    /// Goes on in a new segment. Its base is the end of this one, watermark included: the writer syncs all of that
    /// before it writes the new header, so the base is proven durable.
    fn roll(&mut self, spare: Spare, is_reserve: bool) {
        let was_on_reserve = std::mem::replace(&mut self.is_on_reserve, is_reserve);
        if self.has_content {
            self.close_group();
        }
        if let Some(opens) = &mut self.opens {
            // Room was made and not used, and now more is needed: the segment is not begun yet, so it only changes files.
            opens.header.file_len = spare.len();
            self.limit = opens.header.base + spare.len() - ENTRIES_AT;
            self.active_file_len = spare.len();
            let unused = std::mem::replace(&mut opens.spare, spare);
            match was_on_reserve {
                true => self.put_reserve(unused),
                false => self.put_spare(unused),
            }
            return;
        }
        let number = self.active.number + 1;
        let salt = if self.sabotages.has(Sabotage::SaltIsCounter) {
            Salt::new(number)
        } else {
            // The operating system gave random numbers when the log was opened; that it stops to is not a case to
            // survive, and a guessable salt would be worse than a stop.
            Salt::new(self.entropy.next_u64().expect("the operating system has random numbers"))
        };
        let header = SegmentHeader {
            log_id: self.log_id,
            number,
            salt,
            base: self.position,
            start_count: self.start_count,
            predecessor: Some(self.active),
            log_start: 0,
            file_len: spare.len(),
            payload_bytes_max: self.payload_bytes_max,
            wall_ms: self.time.wall_ms,
            log_ms: self.time.log_ms,
        };
        self.active = Predecessor { number, salt, base: header.base };
        self.limit = header.base + header.file_len - ENTRIES_AT;
        self.active_file_len = header.file_len;
        self.group_start = header.base;
        self.arena_position = self.position;
        self.index.roll(&header, header.base);
        self.opens = Some(OpensSegment { header, spare });
    }
}
