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
use crate::index::{POINT_SPACING_BYTES, Point, SegmentIndex};
use crate::medium::{Medium, MediumFile, read_exact_at};
use crate::scan::{Scan, Scanned};
use crate::segment::{
    self, ENTRIES_AT, HeaderCopy, Predecessor, SEGMENT_HEADER_LEN, SegmentHeader, file_offset, segment_name,
};

/// One read takes this many bytes, unless a single entry is larger.
const BLOCK_BYTES: usize = 256 * 1_024;
/// Segment files kept open for reading.
const FILES_MAX: usize = 64;
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

/// Where to look next.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Ask the footer of this segment; and, unless it has been there already, older ones if it does not go back far
    /// enough.
    Footer { segment: u64, goes_back: bool },
    /// These points of this segment.
    Points { segment: u64, end: u64, points: VecDeque<Point> },
}

/// How to read one subject from an offset on; it moves as it is read. When it is used up, the index makes a new one.
#[derive(Debug, Clone)]
pub struct ReadPlan {
    pub(crate) subject: u64,
    pub(crate) offset: u64,
    pub(crate) wall_ms_min: Option<i64>,
    /// The newest segment first; read from the back.
    pub(crate) path: Vec<Step>,
}

impl ReadPlan {
    /// The next offset that it will read.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether everything that it knew of has been read.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.path.is_empty()
    }
}

/// Why a read failed; reading again may work.
#[derive(Debug, thiserror::Error)]
#[error("could not read {file}: {source}")]
pub struct ReadError {
    /// The file.
    pub file: String,
    /// The failure.
    #[source]
    pub source: io::Error,
}

#[derive(Debug)]
struct OpenSegment {
    header: SegmentHeader,
    file: Arc<dyn MediumFile>,
}

/// Reads segments; belongs on a thread of its own, since it waits for the disk.
#[derive(Debug)]
pub struct ColdReader {
    medium: Arc<dyn Medium>,
    /// The most recently used last.
    files: VecDeque<Arc<OpenSegment>>,
    footers: VecDeque<Arc<SegmentIndex>>,
    /// Segments of which the files themselves do not tell all.
    known: Vec<KnownSegment>,
}

/// A segment whose header can't be read from its own file, or whose end not from the next one's, as recovery worked them
/// out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KnownSegment {
    pub(crate) header: SegmentHeader,
    /// Position behind its last entry.
    pub(crate) end: u64,
}

impl ColdReader {
    pub(crate) fn new(medium: Arc<dyn Medium>, known: Vec<KnownSegment>) -> Self {
        Self { medium, files: VecDeque::new(), footers: VecDeque::new(), known }
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
                }
            }
        }
        Ok(found.outcomes)
    }

    /// Turns a segment into its points, after those of older segments if the plan begins before it.
    fn resolve(&mut self, plan: &mut ReadPlan, segment: u64, goes_back: bool) -> Result<(), ReadError> {
        let Some(index) = self.footer(segment)? else {
            // The file is gone. What it held is told when the next batch behind it is found.
            if goes_back && let Some(older) = self.older_segment(segment)? {
                plan.path.push(Step::Footer { segment: older, goes_back: true });
            }
            return Ok(());
        };
        let Some(found) = index.subjects.get(&plan.subject) else {
            // Whoever sent us here only knew that this segment is the one before.
            let previous = self.segment(segment)?.and_then(|open| open.header.predecessor);
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
        let Some(open) = self.segment(segment)? else {
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
            let mut at = point.position;
            while at < until {
                match block.entry(&open, at, end)? {
                    Some((header, payload)) => {
                        at = header.end();
                        found.take(plan, &header, payload);
                    }
                    None => {
                        at = read_past_damage(&open, at, until, plan, found)?;
                        block = Block::default();
                    }
                }
            }
            points.pop_front();
            if found.is_full() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// A segment's file and header; `None` if there is no such file any more, or nothing that says where it belongs.
    fn segment(&mut self, number: u64) -> Result<Option<Arc<OpenSegment>>, ReadError> {
        if let Some(at) = self.files.iter().position(|open| open.header.number == number)
            && let Some(open) = self.files.remove(at)
        {
            self.files.push_back(Arc::clone(&open));
            return Ok(Some(open));
        }
        let name = segment_name(number);
        let file = match self.medium.open_read(&name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ReadError { file: name, source }),
        };
        let header = match self.header_in_file(number) {
            // What stands in the file is not what it should be; the segment behind it knows.
            Err(error) if is_damage(&error) => self.infer_header(number),
            read => read.map(Some),
        };
        let Some(header) = header.map_err(|source| ReadError { file: name, source })? else { return Ok(None) };
        let open = Arc::new(OpenSegment { header, file });
        self.files.push_back(Arc::clone(&open));
        if self.files.len() > FILES_MAX {
            self.files.pop_front();
        }
        Ok(Some(open))
    }

    /// The index of a sealed segment; `None` if there is no such segment any more.
    fn footer(&mut self, segment: u64) -> Result<Option<Arc<SegmentIndex>>, ReadError> {
        if let Some(at) = self.footers.iter().position(|index| index.number == segment)
            && let Some(index) = self.footers.remove(at)
        {
            self.footers.push_back(Arc::clone(&index));
            return Ok(Some(index));
        }
        let Some(open) = self.segment(segment)? else { return Ok(None) };
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
        let known = self.known.iter().find(|known| known.header.number == open.header.number);
        let end = match known.map(|known| known.end) {
            Some(end) => Some(end),
            None => self.successor(open.header.number).map_err(to_error)?.map(|(after, _)| after.base),
        };
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
                index.note(&entry.head.header, previous);
            }
        }
        Ok(Some(index))
    }

    /// The header of the segment behind `number`, and what it says of that one; `None` if no segment names it.
    fn successor(&self, number: u64) -> io::Result<Option<(SegmentHeader, Predecessor)>> {
        let mut numbers: Vec<u64> =
            self.medium.list()?.iter().filter_map(|file| segment::segment_number(&file.name)).collect();
        numbers.sort_unstable();
        let mut damaged = Vec::new();
        for later in numbers.into_iter().filter(|later| *later > number) {
            let mut header = match self.header_in_file(later) {
                Err(error) if is_damage(&error) => {
                    damaged.push(later);
                    continue;
                }
                read => read?,
            };
            // Back through those between, each by what the one behind it says.
            while let Some(lost) = damaged.pop() {
                if let Some(its) = header.predecessor.filter(|its| its.number == lost) {
                    header = self.inferred(&header, &its)?;
                }
            }
            if let Some(before) = header.predecessor
                && before.number == number
            {
                return Ok(Some((header, before)));
            }
        }
        Ok(None)
    }

    /// The header of a segment whose own copies have both become unreadable while the log was open.
    fn infer_header(&self, number: u64) -> io::Result<Option<SegmentHeader>> {
        self.successor(number)?.map(|(after, its)| self.inferred(&after, &its)).transpose()
    }

    /// The header of the segment before `after`, which names it as `its`.
    fn inferred(&self, after: &SegmentHeader, its: &Predecessor) -> io::Result<SegmentHeader> {
        let older = match self.older_number(its.number)? {
            Some(older) => self.header_in_file(older).ok(),
            None => None,
        };
        let predecessor =
            older.map(|header| Predecessor { number: header.number, salt: header.salt, base: header.base });
        Ok(SegmentHeader { number: its.number, salt: its.salt, base: its.base, predecessor, ..*after })
    }

    fn header_in_file(&self, number: u64) -> io::Result<SegmentHeader> {
        match self.known.iter().find(|known| known.header.number == number) {
            Some(known) => Ok(known.header),
            None => read_header(self.medium.open_read(&segment_name(number))?.as_ref(), number),
        }
    }

    fn older_number(&self, number: u64) -> io::Result<Option<u64>> {
        let files = self.medium.list()?;
        Ok(files.iter().filter_map(|file| segment::segment_number(&file.name)).filter(|older| *older < number).max())
    }

    fn older_segment(&self, number: u64) -> Result<Option<u64>, ReadError> {
        self.older_number(number).map_err(|source| ReadError { file: segment_name(number), source })
    }
}

/// Whether a header can't be read because of what the file holds, and not because reading failed.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
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
}

impl Block {
    /// The entry at a position: its header, and its payload unless that is damaged. `None` if no valid header stands
    /// there.
    fn entry(
        &mut self,
        open: &OpenSegment,
        position: u64,
        end: u64,
    ) -> Result<Option<(EntryHeader, Option<Bytes>)>, ReadError> {
        self.load(open, position, BLOCK_BYTES, ENTRY_HEADER_LEN, end)?;
        let mut wanted = ENTRY_HEADER_LEN + entry::HEAD_BYTES_MAX + crate::fact::FACTS_BYTES_MAX;
        loop {
            self.load(open, position, wanted, wanted, end)?;
            let bytes = self.from(position);
            let Ok(head) = entry::decode_head(bytes, &open.header.salt, HeadPlace::Front) else { return Ok(None) };
            let header = head.header;
            if header.position != position || header.end() > end {
                return Ok(None);
            }
            let payload_end = (header.payload_at() + u64::from(header.payload_len)) as usize;
            if header.kind == EntryKind::Records && bytes.len() < payload_end && wanted < payload_end {
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

    /// Makes at least `needed` bytes from `position` on available, if the log has them; reads `block` at once.
    fn load(
        &mut self,
        open: &OpenSegment,
        position: u64,
        block: usize,
        needed: usize,
        end: u64,
    ) -> Result<(), ReadError> {
        let available = (end - position).min(needed as u64);
        let have = self.position + self.bytes.len() as u64;
        if position >= self.position && position + available <= have {
            return Ok(());
        }
        let len = (end - position).min(block.max(BLOCK_BYTES) as u64) as usize;
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
        *self = Self { position, bytes: bytes.freeze() };
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
            let payload = entry.payload.filter(|_| entry.payload_ok).map(Bytes::copy_from_slice);
            found.take(plan, &entry.head.header, payload);
            if entry.head.header.end() >= until {
                return Ok(entry.head.header.end());
            }
        }
    }
    Ok(until)
}

/// Reads the header of the segment with this number from its file, from either copy.
pub(crate) fn read_header(file: &dyn MediumFile, number: u64) -> io::Result<SegmentHeader> {
    for copy in 0..2 {
        let mut bytes = vec![0; SEGMENT_HEADER_LEN];
        read_exact_at(file, &mut bytes, copy * SEGMENT_HEADER_LEN as u64)?;
        if let HeaderCopy::Valid(header) = segment::SegmentHeader::decode(&bytes)
            && header.number == number
        {
            return Ok(header);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "neither copy of the segment's header can be read"))
}
