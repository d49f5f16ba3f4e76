//! Reads records back from segment files: for consumers that are behind.
//!
//! A plan says which segments to look at and where; the reader takes blocks by `pread`, checks every entry that it hands
//! out (salt, position, subject, payload checksum), and names what it can't read. It never reads at or behind the end that
//! it is given, so what is not durable, and what a start cut off, stays unseen.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::entry::{self, ENTRY_HEADER_LEN, EntryHeader, EntryKind, HeadPlace};
use crate::footer;
use crate::index::SegmentIndex;
use crate::medium::{Medium, read_exact_at};
use crate::plan::{POINT_SPACING_BYTES, Point, ReadPlan, Step};
use crate::scan::{Scan, Scanned};
use crate::segment::{ENTRIES_AT, file_offset, segment_name};
use crate::segment_files::{KnownSegment, OpenSegment, ReadError, SegmentFiles};

/// One read takes about this many bytes at most, unless a single entry is larger.
const BLOCK_BYTES: u64 = 256 * 1_024;
/// An entry's header with what it covers, at most.
const HEADER_BYTES_MAX: usize = ENTRY_HEADER_LEN + entry::HEAD_BYTES_MAX + crate::fact::FACTS_BYTES_MAX;
/// Footers kept in memory.
const FOOTERS_MAX: usize = 16;

/// One batch of a stream as it is stored.
#[derive(Debug, Clone)]
pub struct StoredBatch {
    /// Offset of its first record that counts.
    pub base_offset: u64,
    /// Offsets that it covers.
    pub span: u32,
    /// Leading records that do not count.
    pub skip: u32,
    /// Wall clock at ordering, milliseconds since the Unix epoch.
    pub wall_ms: i64,
    /// Opaque to storage.
    pub owner: [u8; 16],
    /// The payload, as its producer made it.
    pub payload: Bytes,
}

impl StoredBatch {
    /// The offset behind its last record.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.base_offset + u64::from(self.span)
    }

    fn new(header: &EntryHeader, payload: Bytes) -> Self {
        Self {
            base_offset: header.base_offset,
            span: header.span,
            skip: header.skip,
            wall_ms: header.wall_ms,
            owner: header.owner,
            payload,
        }
    }
}

/// What a read found, in offset order.
#[derive(Debug, Clone)]
pub enum ReadOutcome {
    /// A batch.
    Batch(StoredBatch),
    /// These offsets exist and can't be read.
    Damaged {
        /// The first one.
        from: u64,
        /// The one behind the last.
        to: u64,
    },
}

/// Reads segments; belongs on a thread of its own, since it waits for the disk.
#[derive(Debug)]
pub struct ColdReader {
    medium: Arc<dyn Medium>,
    segments: SegmentFiles,
    /// The most recently used last.
    footers: VecDeque<Arc<SegmentIndex>>,
}

impl ColdReader {
    pub(crate) fn new(medium: Arc<dyn Medium>, known: Vec<KnownSegment>) -> Self {
        let segments = SegmentFiles::new(Arc::clone(&medium), known);
        Self { medium, segments, footers: VecDeque::new() }
    }

    /// Reads on along `plan`: up to about `bytes_max` of payload below the log position `visible_end`. The plan has moved
    /// behind what is returned; nothing returned and a used-up plan mean that nothing more was known of.
    ///
    /// # Errors
    /// The medium's. Damage is no error but an outcome.
    pub fn read(
        &mut self,
        plan: &mut ReadPlan,
        visible_end: u64,
        bytes_max: usize,
    ) -> Result<Vec<ReadOutcome>, ReadError> {
        let mut found = Found { outcomes: Vec::new(), bytes: 0, bytes_max };
        while !found.is_full() {
            let Some(step) = plan.path.pop() else { break };
            match step {
                Step::Footer { segment, goes_back } => self.resolve(plan, segment, goes_back)?,
                Step::Points { segment, end, mut points } => {
                    self.read_points(plan, segment, end.min(visible_end), &mut points, &mut found)?;
                    if !points.is_empty() {
                        plan.path.push(Step::Points { segment, end, points });
                        break;
                    }
                    if visible_end < end {
                        // All further steps are behind the visible end as well, and do not follow directly on what was read.
                        plan.path.clear();
                    }
                }
            }
        }
        Ok(found.outcomes)
    }

    /// Turns a segment into its points, after those of older segments if the plan begins before it.
    fn resolve(&mut self, plan: &mut ReadPlan, segment: u64, goes_back: bool) -> Result<(), ReadError> {
        let Some(index) = self.footer(segment)? else {
            // The file is gone. What it held is told when the next batch behind it is found.
            if goes_back && let Some(older) = self.segments.older(segment)? {
                plan.path.push(Step::Footer { segment: older, goes_back: true });
            }
            return Ok(());
        };
        let Some(found) = index.subjects.get(&plan.subject) else {
            // Whoever sent us here only knew that this segment is the one before.
            let previous = self.segments.open(segment)?.and_then(|open| open.header.predecessor);
            if goes_back && let Some(previous) = previous {
                plan.path.push(Step::Footer { segment: previous.number, goes_back: true });
            }
            return Ok(());
        };
        let is_far_enough = match plan.wall_ms_min {
            Some(wall_ms) => found.first_wall_ms < wall_ms,
            None => found.first_offset <= plan.offset,
        };
        if goes_back && !is_far_enough && found.previous != 0 {
            // Its points can wait until they are needed: a plan that goes far back stays small.
            plan.path.push(Step::Footer { segment, goes_back: false });
            plan.path.push(Step::Footer { segment: found.previous, goes_back: true });
            return Ok(());
        }
        let points = found.points_from(plan.offset).iter().copied().collect();
        plan.path.push(Step::Points { segment, end: index.end, points });
        Ok(())
    }

    fn read_points(
        &mut self,
        plan: &mut ReadPlan,
        segment: u64,
        end: u64,
        points: &mut VecDeque<Point>,
        found: &mut Found,
    ) -> Result<(), ReadError> {
        if points.front().is_none_or(|first| first.position >= end) {
            // Not durable yet, and perhaps not even a file: the next plan will have it.
            points.clear();
            return Ok(());
        }
        let Some(open) = self.segments.open(segment)? else {
            points.clear();
            return Ok(());
        };
        let mut block = Block::default();
        while let Some(point) = points.front().copied() {
            if point.position >= end {
                points.clear();
                return Ok(());
            }
            let until = points
                .get(1)
                .map_or(end, |next| next.position)
                .min(point.position.saturating_add(POINT_SPACING_BYTES))
                .min(end);
            block.reach = reach(points, found.bytes_max.saturating_sub(found.bytes));
            let mut at = point.position;
            while at < until {
                match block.entry(&open, at, end, plan.subject)? {
                    Some((header, payload)) => {
                        at = header.end();
                        found.take(plan, &header, payload);
                    }
                    None => {
                        at = read_past_damage(&open, at, until, plan, found)?;
                        block = Block { reach: block.reach, ..Block::default() };
                    }
                }
            }
            if until == end {
                // Between here and the next point there may be more by the time that it is visible: the next plan has it.
                points.clear();
                return Ok(());
            }
            points.pop_front();
            if found.is_full() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The index of a sealed segment; `None` if there is no such segment any more.
    fn footer(&mut self, segment: u64) -> Result<Option<Arc<SegmentIndex>>, ReadError> {
        if let Some(at) = self.footers.iter().position(|index| index.number == segment)
            && let Some(index) = self.footers.remove(at)
        {
            self.footers.push_back(Arc::clone(&index));
            return Ok(Some(index));
        }
        let Some(open) = self.segments.open(segment)? else { return Ok(None) };
        let written = footer::read(self.medium.as_ref(), segment)
            .map_err(|source| ReadError { file: footer::footer_name(segment), source })?;
        let index = match written.filter(|index| index.salt == open.header.salt && index.base == open.header.base) {
            Some(index) => index,
            // A missing footer is never a gap: the segment itself knows.
            None => match self.rebuild(&open)? {
                Some(index) => index,
                None => return Ok(None),
            },
        };
        let index = Arc::new(index);
        self.footers.push_back(Arc::clone(&index));
        if self.footers.len() > FOOTERS_MAX {
            self.footers.pop_front();
        }
        Ok(Some(index))
    }
}

impl ColdReader {
    /// The index of a sealed segment, from the segment itself. Which older segment holds a subject it can't know, so each
    /// subject, absent ones too, is looked for in the segment before it.
    fn rebuild(&self, open: &OpenSegment) -> Result<Option<SegmentIndex>, ReadError> {
        let name = segment_name(open.header.number);
        let to_error = |source| ReadError { file: name.clone(), source };
        // What lies behind the end was cut off by a start and must stay unseen.
        let end = self.segments.end_of(open.header.number).map_err(to_error)?;
        let Some(end) = end else { return Ok(None) };
        let in_file = open.file.len().map_err(to_error)?.saturating_sub(ENTRIES_AT);
        let len = in_file.min(end.saturating_sub(open.header.base));
        let mut bytes = vec![0; len as usize];
        read_exact_at(open.file.as_ref(), &mut bytes, ENTRIES_AT).map_err(to_error)?;
        let previous = open.header.predecessor.map_or(0, |before| before.number);
        let mut index = SegmentIndex::new(&open.header);
        index.end = end;
        let mut scan = Scan::new(&bytes, open.header.salt, open.header.base, true);
        while let Some(Ok(scanned)) = scan.next() {
            if let Scanned::Entry(entry) = scanned
                && entry.head.header.kind == EntryKind::Records
            {
                index.note(&entry.head.header, || previous);
            }
        }
        Ok(Some(index))
    }
}

/// How far from the first point on there may be something of the stream, as far as one read goes: its entries begin close
/// behind points. Of a stream that is one of a thousand that is a sixteenth of a block. No further than for the `wanted`
/// bytes: what is read beyond is read again by the next one.
fn reach(points: &VecDeque<Point>, wanted: usize) -> u64 {
    let Some(first) = points.front() else { return 0 };
    let ahead = points.iter().map(|point| point.position.saturating_sub(first.position));
    let most = BLOCK_BYTES.min(wanted as u64);
    let last = ahead.take_while(|ahead| *ahead < most).last().unwrap_or(0);
    last + POINT_SPACING_BYTES + HEADER_BYTES_MAX as u64
}

/// The outcomes of one read.
struct Found {
    outcomes: Vec<ReadOutcome>,
    bytes: usize,
    bytes_max: usize,
}

impl Found {
    fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max
    }

    /// Counts an entry in, if it is the plan's; `None` for a payload that can't be read.
    fn take(&mut self, plan: &mut ReadPlan, header: &EntryHeader, payload: Option<Bytes>) {
        let is_wanted = header.kind == EntryKind::Records
            && header.subject == plan.subject
            && header.next_offset() > plan.offset
            && header.span > 0;
        if !is_wanted {
            return;
        }
        if let Some(wall_ms_min) = plan.wall_ms_min {
            if header.wall_ms < wall_ms_min {
                plan.offset = header.next_offset();
                return;
            }
            plan.wall_ms_min = None;
            plan.offset = plan.offset.max(header.base_offset);
        }
        if header.base_offset > plan.offset {
            self.outcomes.push(ReadOutcome::Damaged { from: plan.offset, to: header.base_offset });
        }
        match payload {
            Some(payload) => {
                self.bytes += payload.len();
                self.outcomes.push(ReadOutcome::Batch(StoredBatch::new(header, payload)));
            }
            None => {
                let from = plan.offset.max(header.base_offset);
                self.outcomes.push(ReadOutcome::Damaged { from, to: header.next_offset() });
            }
        }
        plan.offset = header.next_offset();
    }
}

/// The bytes of one `pread`.
#[derive(Debug, Default)]
struct Block {
    position: u64,
    bytes: Bytes,
    /// So many bytes a read takes, unless more are needed: as far as there may be more of the stream.
    reach: u64,
}

impl Block {
    /// The entry at a position: its header, and its payload if it holds records of `subject` that are not damaged. `None` if
    /// no valid header stands there.
    fn entry(
        &mut self,
        open: &OpenSegment,
        position: u64,
        end: u64,
        subject: u64,
    ) -> Result<Option<(EntryHeader, Option<Bytes>)>, ReadError> {
        let mut wanted = HEADER_BYTES_MAX;
        loop {
            self.load(open, position, wanted, end)?;
            let bytes = self.from(position);
            let Ok(head) = entry::decode_head(bytes, &open.header.salt, HeadPlace::Front) else { return Ok(None) };
            let header = head.header;
            if header.position != position || header.end() > end {
                return Ok(None);
            }
            if header.kind != EntryKind::Records || header.subject != subject {
                return Ok(Some((header, None)));
            }
            let payload_end = (header.payload_at() + u64::from(header.payload_len)) as usize;
            if bytes.len() < payload_end && wanted < payload_end {
                wanted = payload_end;
                continue;
            }
            let start = (position - self.position) as usize + header.payload_at() as usize;
            let range = start..start + header.payload_len as usize;
            let payload = self.bytes.get(range.clone()).map(|_| self.bytes.slice(range));
            let payload = payload.filter(|payload| entry::payload_verifies(payload, header.payload_crc));
            return Ok(Some((header, payload)));
        }
    }

    fn from(&self, position: u64) -> &[u8] {
        self.bytes.get((position - self.position) as usize..).unwrap_or_default()
    }

    /// Makes at least `needed` bytes from `position` on available, if the log has them.
    fn load(&mut self, open: &OpenSegment, position: u64, needed: usize, end: u64) -> Result<(), ReadError> {
        let available = (end - position).min(needed as u64);
        let have = self.position + self.bytes.len() as u64;
        if position >= self.position && position + available <= have {
            return Ok(());
        }
        let len = (end - position).min(self.reach.max(needed as u64)) as usize;
        let mut bytes = BytesMut::zeroed(len);
        let offset = file_offset(open.header.base, position);
        let mut filled = 0;
        while filled < len {
            let rest = bytes.get_mut(filled..).unwrap_or_default();
            match open.file.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ReadError { file: segment_name(open.header.number), source }),
            }
        }
        bytes.truncate(filled);
        *self = Self { position, bytes: bytes.freeze(), reach: self.reach };
        Ok(())
    }
}

/// Reads what can be read between `at`, where no valid header stands, and `until`; returns where to go on.
fn read_past_damage(
    open: &OpenSegment,
    at: u64,
    until: u64,
    plan: &mut ReadPlan,
    found: &mut Found,
) -> Result<u64, ReadError> {
    let to_error = |source| ReadError { file: segment_name(open.header.number), source };
    let file_len = open.file.len().map_err(to_error)?;
    let offset = file_offset(open.header.base, at);
    // Far enough that the copy behind the largest entry that begins before `until` is in it.
    let wanted = until - at + u64::from(entry::PAYLOAD_BYTES_MAX) + 4_096;
    let mut bytes = vec![0; wanted.min(file_len.saturating_sub(offset)) as usize];
    read_exact_at(open.file.as_ref(), &mut bytes, offset).map_err(to_error)?;
    let mut scan = Scan::new_at(&bytes, open.header.salt, open.header.base, at);
    while let Some(Ok(scanned)) = scan.next() {
        if let Scanned::Entry(entry) = scanned {
            if entry.position() >= until {
                return Ok(until);
            }
            let payload = entry.payload.as_deref().filter(|_| entry.payload_ok).map(Bytes::copy_from_slice);
            found.take(plan, &entry.head.header, payload);
            if entry.head.header.end() >= until {
                return Ok(entry.head.header.end());
            }
        }
    }
    Ok(until)
}
