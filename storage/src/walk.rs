//! The walk over a log: every entry in log order, up to the end that they prove. Steps 7 to 12 of recovery, and 17;
//! writes nothing.
//!
//! With a checkpoint it goes on from there: what lies below its stamp is not handed to the fold, and a segment that lies
//! wholly below it is not read, as long as its footer tells where its subjects stand.

mod stamp;

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use crate::checkpoint::Stamp;
use crate::entry::EntryKind;
use crate::error::OpenError;
use crate::fact::FactKind;
use crate::folder::Folder;
use crate::index::Index;
use crate::medium::read_exact_at;
use crate::report::{Damage, DamageKind, Replayed};
use crate::scan::{Scan, Scanned, ScannedEntry, UnknownEntry, nonzero_end};
use crate::segment::{ENTRIES_AT, file_offset};
use crate::segment_files::KnownSegment;
use crate::survey::{End, Part, Survey, UnreadableBehind};
use crate::{LogOptions, ReplayTime, Sabotage};

/// What lies behind a segment's end is looked through in steps of this many bytes.
const STEP_BYTES: u64 = 1 << 20;
/// The start entries of a segment are looked for in so many bytes.
const START_BYTES_MAX: u64 = 128 * 1_024;

/// What the log was before this start.
#[derive(Debug)]
pub(crate) struct Before {
    /// Below this all was durable (D).
    pub(crate) proven: u64,
    /// The log's end (E).
    pub(crate) end: u64,
    /// Where the entries of the newest readable segment end: before `end` if something behind them is lost.
    pub(crate) active_end: u64,
    /// What of it is not proven to be on the disk.
    pub(crate) unproven: Range<u64>,
    /// The position behind the last byte that is not zero.
    pub(crate) garbage_end: u64,
    /// How much of the active file is in use.
    pub(crate) used_file_len: u64,
    /// Name and base of the active segment.
    pub(crate) active: Option<(Arc<str>, u64)>,
}

impl Before {
    /// What lies behind the end and is not provably stored.
    pub(crate) fn cut(&self) -> Option<Range<u64>> {
        (self.garbage_end > self.active_end).then_some(self.active_end..self.garbage_end)
    }

    pub(crate) const fn nothing() -> Self {
        Self { proven: 0, end: 0, active_end: 0, unproven: 0..0, garbage_end: 0, used_file_len: 0, active: None }
    }
}

/// What the walk found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) damages: Vec<Damage>,
    /// Holes that no earlier start has written down.
    pub(crate) new_holes: Vec<Range<u64>>,
    /// What earlier starts cut off and died before they could write down.
    pub(crate) untold_cuts: Vec<Range<u64>>,
    /// Sealed segments with zeros behind their end: number, and bytes of the file to keep.
    pub(crate) untrimmed: Vec<(u64, u64)>,
    /// Segments of which the files alone do not tell a reader enough.
    pub(crate) known: Vec<KnownSegment>,
    pub(crate) start_count: u64,
    pub(crate) entries: u64,
    pub(crate) bytes_read: u64,
    pub(crate) last_time: ReplayTime,
}

/// A walk over the whole log.
pub(crate) struct Walk<'f> {
    folder: Folder<'f>,
    options: &'f LogOptions,
    fold: &'f mut dyn FnMut(Replayed<'_>),
    pub(crate) index: Option<Index>,
    findings: Findings,
    known_holes: Vec<u64>,
    known_cuts: Vec<Range<u64>>,
    /// What the fold holds already.
    stamp: Option<Stamp>,
    bytes_read: Cell<u64>,
}

impl<'f> Walk<'f> {
    pub(crate) fn new(folder: Folder<'f>, options: &'f LogOptions, fold: &'f mut dyn FnMut(Replayed<'_>)) -> Self {
        let (known_holes, known_cuts) = (Vec::new(), Vec::new());
        let (stamp, bytes_read) = (None, Cell::new(0));
        let findings = Findings::default();
        Self { folder, options, fold, index: None, findings, known_holes, known_cuts, stamp, bytes_read }
    }

    /// Goes on from what a checkpoint with this stamp holds.
    pub(crate) fn go_on_from(&mut self, stamp: Stamp) {
        self.observe(stamp.start_count, stamp.time.wall_ms, stamp.time.log_ms);
        self.stamp = Some(stamp);
    }

    /// The fold holds all that lies below this position.
    fn from(&self) -> u64 {
        self.stamp.map_or(0, |stamp| stamp.mark.end)
    }

    /// What was found; earlier starts' findings are not new.
    pub(crate) fn into_findings(self) -> (Findings, Option<Index>) {
        let Self { mut findings, index, known_holes, known_cuts, bytes_read, .. } = self;
        findings.bytes_read = bytes_read.get();
        findings.new_holes.retain(|hole| !known_holes.contains(&hole.start));
        // The start that told it counted the zeros of a torn entry in; from outside they can't be told apart.
        let is_known =
            |cut: &Range<u64>| known_cuts.iter().any(|known| known.start == cut.start && known.end >= cut.end);
        findings.untold_cuts.retain(|cut| !is_known(cut));
        (findings, index)
    }

    /// Every entry in log order, up to the end that they prove.
    pub(crate) fn walk(&mut self, survey: &Survey) -> Result<Before, OpenError> {
        // Where the part before ended, and where the log was to go on.
        let mut end = 0;
        let mut before = Before::nothing();
        if survey.chain.is_empty() && self.from() > 0 {
            // Not one segment is left of a log that a checkpoint was made from.
            self.lost_before_the_stamp(0, 0);
            before.end = self.from();
            before.proven = self.from();
        }
        for (at, part) in survey.chain.iter().enumerate() {
            match &mut self.index {
                Some(index) => index.roll(&part.header, end),
                none => *none = Some(Index::new(&part.header)),
            }
            self.observe(part.header.start_count, part.header.wall_ms, part.header.log_ms);
            self.hole(part.header.number.saturating_sub(1), end..part.header.base);
            let next = survey.chain.get(at + 1);
            let names_it = |next: &Part| next.header.predecessor.is_some_and(|its| its.number == part.header.number);
            if let Some(next) = next.filter(|next| next.header.base <= self.from())
                && let Some(passed) = self.pass_over(part, next)?
            {
                end = passed;
                if part.is_inferred || end != next.header.base || !names_it(next) {
                    self.findings.known.push(KnownSegment { header: part.header, end });
                }
                continue;
            }
            let decided = match next {
                Some(next) => self.decided_end(part, next)?,
                None => None,
            };
            // A reader finds the end of a segment in its successor, if that is there and names it.
            let is_told;
            (end, is_told) = match (part.end, decided) {
                (End::At(_) | End::Within(_), Some(decided)) => (self.sealed(part, decided)?, false),
                (End::At(end), None) => (self.sealed(part, end)?, next.is_some_and(names_it)),
                (End::Within(limit), None) => (self.orphaned(part, limit)?, false),
                (End::Open, _) => {
                    before = self.active(part, survey.unreadable_behind)?;
                    (before.active_end, before.active_end == before.end)
                }
            };
            if part.is_inferred || !is_told {
                self.findings.known.push(KnownSegment { header: part.header, end });
            }
        }
        Ok(before)
    }

    /// Where `part` ends, if the start that opened `next` found that what followed it was lost: then a hole of that start
    /// reaches up to its base.
    fn decided_end(&self, part: &Part, next: &Part) -> Result<Option<u64>, OpenError> {
        let in_file = next.file_len.saturating_sub(ENTRIES_AT);
        let mut bytes = vec![0; in_file.min(START_BYTES_MAX) as usize];
        self.folder.run("read a segment", read_exact_at(next.file.as_ref(), &mut bytes, ENTRIES_AT))?;
        self.count_read(bytes.len() as u64);
        let mut scan = self.scan(next, next.header.base, &bytes);
        let mut decided = None;
        while let Some(Ok(Scanned::Entry(entry))) = scan.next() {
            if entry.head.header.kind != EntryKind::Start {
                break;
            }
            let holes = entry.head.facts().filter(|fact| fact.kind == FactKind::Hole);
            let reaching = holes
                .filter(|hole| number(hole.value) == Some(next.header.base))
                .filter_map(|hole| number(hole.key))
                .find(|start| (part.header.base..next.header.base).contains(start));
            decided = decided.or(reaching);
        }
        Ok(decided)
    }

    fn count_read(&self, bytes: u64) {
        self.bytes_read.set(self.bytes_read.get() + bytes);
    }

    /// The segment's bytes from position `origin` to `end`.
    fn read(&self, part: &Part, origin: u64, end: u64) -> Result<Vec<u8>, OpenError> {
        let at = file_offset(part.header.base, origin);
        let in_file = part.file_len.saturating_sub(at);
        let mut bytes = vec![0; in_file.min(end - origin) as usize];
        self.folder.run("read a segment", read_exact_at(part.file.as_ref(), &mut bytes, at))?;
        self.count_read(bytes.len() as u64);
        Ok(bytes)
    }

    /// A scan of the segment's bytes from position `origin` on.
    fn scan<'b>(&self, part: &Part, origin: u64, bytes: &'b [u8]) -> Scan<'b> {
        let uses_copies = !self.options.sabotages.has(Sabotage::NoHeaderCopy);
        Scan::new(bytes, part.header.salt, part.header.base, uses_copies).starting_at(origin)
    }

    /// A segment with a successor: all of it was durable, so whatever is broken is damage.
    fn sealed(&mut self, part: &Part, end: u64) -> Result<u64, OpenError> {
        let mut origin = part.header.base;
        let holds_stamp = (part.header.base..end).contains(&self.from());
        let footer = if holds_stamp { self.footer_of(part) } else { None };
        if let Some(footer) = footer.filter(|footer| footer.end == end) {
            self.adopt(&footer);
            origin = self.from();
        }
        let bytes = self.read(part, origin, end)?;
        let mut scan = self.scan(part, origin, &bytes);
        while let Some(scanned) = scan.next() {
            match scanned.map_err(|unknown| unknown_entry(part, unknown))? {
                Scanned::Entry(entry) => self.take(part.header.number, &entry),
                Scanned::Unreadable(range) => self.hole(part.header.number, range),
            }
        }
        self.hole(part.header.number, scan.stopped_at()..end);
        self.look_behind(part, end)?;
        Ok(end)
    }

    /// What a start cut off and did not live to tell, and zeros that it did not live to give back.
    fn look_behind(&mut self, part: &Part, end: u64) -> Result<(), OpenError> {
        let mut at = file_offset(part.header.base, end);
        if part.file_len <= at {
            return Ok(());
        }
        let mut used_file_len = at;
        while at < part.file_len {
            let mut bytes = vec![0; STEP_BYTES.min(part.file_len - at) as usize];
            self.folder.run("read a segment", read_exact_at(part.file.as_ref(), &mut bytes, at))?;
            self.count_read(bytes.len() as u64);
            if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
                used_file_len = at + last as u64 + 1;
            }
            at += bytes.len() as u64;
        }
        let garbage_end = end + (used_file_len - file_offset(part.header.base, end));
        // Whoever made a checkpoint had written down every cut before it.
        if garbage_end > end && end >= self.from() {
            self.findings.untold_cuts.push(end..garbage_end);
        }
        if used_file_len < part.file_len {
            self.findings.untrimmed.push((part.header.number, used_file_len));
        }
        Ok(())
    }

    /// A segment whose successor is lost: it ends where its own entries say so, as it did for the start or the writer
    /// that began the lost one.
    fn orphaned(&mut self, part: &Part, limit: u64) -> Result<u64, OpenError> {
        let bytes = self.read(part, part.header.base, limit)?;
        let judged = self.judge(part, part.header.base, &bytes)?;
        let (end, stopped) = (judged.end.min(limit), judged.stopped);
        self.take_all(part, judged);
        // The stamp may prove more than is there.
        self.hole(part.header.number, stopped..end);
        Ok(end)
    }

    /// Where the entries of the newest segment end, by themselves.
    pub(crate) fn own_end(&self, part: &Part) -> Result<u64, OpenError> {
        let bytes = self.read(part, part.header.base, u64::MAX)?;
        Ok(self.judge(part, part.header.base, &bytes)?.end)
    }

    /// The newest segment.
    fn active(&mut self, part: &Part, behind: Option<UnreadableBehind>) -> Result<Before, OpenError> {
        let mut origin = part.header.base;
        let mut bytes = Vec::new();
        // A broker that stopped in order has left the footer that this segment needs now.
        let footer = if self.from() > part.header.base { self.footer_of(part) } else { None };
        if let Some(footer) = footer.filter(|footer| self.from() < footer.end) {
            bytes = self.read(part, self.from(), u64::MAX)?;
            if self.judge(part, self.from(), &bytes)?.end == footer.end {
                self.adopt(&footer);
                origin = self.from();
            }
        }
        if origin == part.header.base {
            bytes = self.read(part, origin, u64::MAX)?;
        }
        let judged = self.judge(part, origin, &bytes)?;
        let Judged { mut proven, mut end, stopped, .. } = judged;
        let bytes_end = origin + bytes.len() as u64;
        // The stamp may prove more than is there.
        let active_end = end.min(stopped);
        let garbage_end = nonzero_end(&bytes, origin, stopped.min(bytes_end));
        let used_file_len = file_offset(part.header.base, garbage_end.max(stopped.min(bytes_end)));
        let unproven = proven..active_end;
        self.take_all(part, judged);
        // A file is never shortened before it is sealed: what is missing may have been acknowledged.
        let made_for = part.header.base.saturating_add(part.header.file_len.saturating_sub(ENTRIES_AT));
        if part.file_len < part.header.file_len {
            end = end.max(made_for);
        }
        if let Some(behind) = behind {
            // The log goes on behind all that the unreadable segments can have held.
            end = end.max(stopped).max(garbage_end.next_multiple_of(8)) + behind.bytes;
            let lost = Damage {
                kind: DamageKind::SegmentHeader,
                segment: part.header.number + 1,
                positions: end..end,
                subject: None,
                offsets: None,
            };
            self.findings.damages.push(lost);
        }
        end = end.max(self.from());
        let lost_in = part.header.number + u64::from(behind.is_some());
        if end > active_end {
            proven = end;
            match end > self.from() {
                true => self.hole(lost_in, active_end..end),
                false => self.lost_before_the_stamp(lost_in, active_end),
            }
        }
        let active = Some((Arc::from(part.name.as_str()), part.header.base));
        Ok(Before { proven, end, active_end, unproven, garbage_end, used_file_len, active })
    }

    /// Steps 9 to 12 for a segment of which nothing behind it says where it ends. First everything is collected, then
    /// it is judged.
    fn judge<'b>(&self, part: &Part, origin: u64, bytes: &'b [u8]) -> Result<Judged<'b>, OpenError> {
        let mut scan = self.scan(part, origin, bytes);
        let mut found = Vec::new();
        while let Some(scanned) = scan.next() {
            found.push(scanned.map_err(|unknown| unknown_entry(part, unknown))?);
        }
        let stopped = scan.stopped_at();
        let stamped = self.stamp.filter(|stamp| stamp.mark.salt == part.header.salt);
        let floor = stamped.map_or(part.header.base, |stamp| stamp.mark.end);
        let mut proven = found.iter().fold(floor, |proven, scanned| match scanned {
            Scanned::Entry(entry) => proven.max(entry.head.header.group_start),
            Scanned::Unreadable(_) => proven,
        });
        let mut end = end_of_log(&found, proven, stopped);
        if self.options.sabotages.has(Sabotage::CutAtAnyBadChecksum) {
            end = end_of_log(&found, origin, stopped);
            proven = proven.min(end);
        }
        Ok(Judged { found, proven, end, stopped })
    }

    fn take_all(&mut self, part: &Part, judged: Judged<'_>) {
        for scanned in judged.found {
            match scanned {
                Scanned::Entry(entry) if entry.position() < judged.end => self.take(part.header.number, &entry),
                Scanned::Unreadable(range) => {
                    self.hole(part.header.number, range.start..range.end.min(judged.proven));
                }
                Scanned::Entry(_) => {}
            }
        }
    }

    fn take(&mut self, segment: u64, entry: &ScannedEntry<'_>) {
        let header = entry.head.header;
        self.findings.entries += 1;
        if !entry.is_intact {
            let is_records = header.kind == EntryKind::Records;
            self.findings.damages.push(Damage {
                kind: if entry.payload_ok { DamageKind::EntryCopy } else { DamageKind::Payload },
                segment,
                positions: header.position..header.end(),
                subject: is_records.then_some(header.subject),
                offsets: is_records.then(|| header.base_offset..header.next_offset()),
            });
        }
        self.observe(0, header.wall_ms, header.log_ms);
        for fact in entry.head.facts() {
            match fact.kind {
                FactKind::Start => {
                    self.observe(number(fact.value).unwrap_or(0), header.wall_ms, header.log_ms);
                }
                FactKind::Hole => self.known_holes.extend(number(fact.key)),
                FactKind::Cut => {
                    self.known_cuts.extend(number(fact.key).zip(number(fact.value)).map(|(start, end)| start..end));
                }
                _ => {}
            }
        }
        if header.kind == EntryKind::Records
            && let Some(index) = &mut self.index
        {
            index.note(&header);
        }
        if header.position >= self.from() {
            (self.fold)(Replayed::Entry { head: &entry.head, payload_ok: entry.payload_ok });
        }
    }

    fn hole(&mut self, segment: u64, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.findings.damages.push(Damage {
            kind: DamageKind::Hole,
            segment,
            positions: range.clone(),
            subject: None,
            offsets: None,
        });
        // What a checkpoint holds is known, whatever became of the entries.
        let from = self.from();
        if range.end > from {
            self.findings.new_holes.push(range.clone());
            (self.fold)(Replayed::Hole(range.start.max(from)..range.end));
        }
    }

    fn observe(&mut self, start_count: u64, wall_ms: i64, log_ms: u64) {
        let findings = &mut self.findings;
        findings.start_count = findings.start_count.max(start_count);
        findings.last_time.wall_ms = findings.last_time.wall_ms.max(wall_ms);
        findings.last_time.log_ms = findings.last_time.log_ms.max(log_ms);
    }
}

/// The number that a fact's key or value begins with.
fn number(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|number| u64::from_le_bytes(*number))
}

/// A segment's entries, and how far they go by themselves.
struct Judged<'b> {
    found: Vec<Scanned<'b>>,
    /// D, from its own entries.
    proven: u64,
    /// E, from its own entries.
    end: u64,
    /// No entry was found at or behind this position.
    stopped: u64,
}

/// Step 12: the first position at or above the proven one at which something is not intact, or at which an atomic group
/// begins that is not complete.
fn end_of_log(found: &[Scanned<'_>], proven: u64, stopped: u64) -> u64 {
    let mut atomic_start = proven;
    let mut is_complete = true;
    for scanned in found {
        match scanned {
            Scanned::Entry(entry) => {
                let header = &entry.head.header;
                if header.position < proven {
                    continue;
                }
                if header.atomic_index == 0 {
                    atomic_start = header.position;
                }
                if !entry.is_intact {
                    return atomic_start;
                }
                is_complete = header.atomic_left == 0;
            }
            Scanned::Unreadable(range) if range.end > proven => {
                return if is_complete { range.start.max(proven) } else { atomic_start };
            }
            Scanned::Unreadable(_) => {}
        }
    }
    if is_complete { stopped.max(proven) } else { atomic_start }
}

fn unknown_entry(part: &Part, unknown: UnknownEntry) -> OpenError {
    OpenError::UnknownEntry {
        file: part.name.clone(),
        position: unknown.position,
        kind: unknown.kind,
        version: unknown.version,
        flags: unknown.flags,
    }
}
