//! Where the offsets of each subject stand in the log: per segment a sparse list of points, in memory while the segment
//! is young, in its footer file afterwards, so that memory does not grow with history.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::entry::EntryHeader;
use crate::plan::{POINT_SPACING_BYTES, Point, ReadPlan, Step};
use crate::segment::{Salt, SegmentHeader};

/// How many points ahead a plan carries.
const PLAN_POINTS_MAX: usize = 256;

/// Where one subject's offsets stand in one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SubjectIndex {
    pub(crate) first_offset: u64,
    pub(crate) next_offset: u64,
    pub(crate) first_wall_ms: i64,
    /// The newest older segment that holds the subject; 0 if none does.
    pub(crate) previous: u64,
    pub(crate) points: Vec<Point>,
}

impl SubjectIndex {
    /// The points from the last one at or before `offset` on.
    pub(crate) fn points_from(&self, offset: u64) -> &[Point] {
        let after = self.points.partition_point(|point| point.offset <= offset);
        self.points.get(after.saturating_sub(1)..).unwrap_or_default()
    }
}

/// The index of one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentIndex {
    pub(crate) number: u64,
    pub(crate) salt: Salt,
    pub(crate) base: u64,
    /// Position behind its last entry; `u64::MAX` while it is active.
    pub(crate) end: u64,
    pub(crate) subjects: BTreeMap<u64, SubjectIndex>,
}

impl SegmentIndex {
    pub(crate) fn new(header: &SegmentHeader) -> Self {
        Self { number: header.number, salt: header.salt, base: header.base, end: u64::MAX, subjects: BTreeMap::new() }
    }

    /// The segment's number.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Counts an entry in; `previous` says where the subject stood before this segment, if this is the first of it here.
    pub(crate) fn note(&mut self, header: &EntryHeader, previous: impl FnOnce() -> u64) {
        let point = Point { offset: header.base_offset, position: header.position };
        let subject = self.subjects.entry(header.subject).or_insert_with(|| SubjectIndex {
            first_offset: header.base_offset,
            next_offset: header.base_offset,
            first_wall_ms: header.wall_ms,
            previous: previous(),
            points: Vec::new(),
        });
        let is_far = subject.points.last().is_none_or(|last| point.position - last.position >= POINT_SPACING_BYTES);
        if is_far {
            subject.points.push(point);
        }
        subject.next_offset = header.next_offset();
    }
}

/// The index of the whole log, as far as it is in memory.
#[derive(Debug)]
pub struct Index {
    active: SegmentIndex,
    /// Sealed, and not yet readable from a footer.
    unwritten: BTreeMap<u64, Arc<SegmentIndex>>,
    /// The newest sealed segment that holds a subject.
    newest_sealed: HashMap<u64, u64>,
    /// Forgotten while the active segment was; it still has them, since its footer tells what stands in it.
    forgotten: HashSet<u64>,
    /// Sealed and not yet handed over for writing.
    to_write: Vec<Arc<SegmentIndex>>,
    /// The active segment's index stands in its footer already: only in a start.
    is_adopted: bool,
}

impl Index {
    pub(crate) fn new(header: &SegmentHeader) -> Self {
        Self {
            active: SegmentIndex::new(header),
            unwritten: BTreeMap::new(),
            newest_sealed: HashMap::new(),
            forgotten: HashSet::new(),
            to_write: Vec::new(),
            is_adopted: false,
        }
    }

    /// Takes the active segment's index from its footer, which fits: its entries need not be noted, nor the footer written.
    pub(crate) fn adopt(&mut self, footer: &SegmentIndex) {
        self.newest_sealed.extend(footer.subjects.keys().map(|subject| (*subject, footer.number)));
        self.active.subjects.clear();
        self.is_adopted = true;
    }

    /// The active segment's index, as it will be if the segment ends at `end`.
    pub(crate) fn active_ending_at(&self, end: u64) -> Arc<SegmentIndex> {
        Arc::new(SegmentIndex { end, ..self.active.clone() })
    }

    /// Counts an entry of records, in log order.
    pub(crate) fn note(&mut self, header: &EntryHeader) {
        if self.is_adopted {
            return;
        }
        let newest_sealed = &self.newest_sealed;
        self.active.note(header, || newest_sealed.get(&header.subject).copied().unwrap_or(0));
    }

    /// Seals the active segment at `end`: the log goes on in the one of `header`.
    pub(crate) fn roll(&mut self, header: &SegmentHeader, end: u64) {
        let mut sealed = std::mem::replace(&mut self.active, SegmentIndex::new(header));
        if std::mem::take(&mut self.is_adopted) {
            return;
        }
        sealed.end = end;
        let forgotten = std::mem::take(&mut self.forgotten);
        let kept = sealed.subjects.keys().filter(|subject| !forgotten.contains(subject));
        self.newest_sealed.extend(kept.map(|subject| (*subject, sealed.number)));
        let sealed = Arc::new(sealed);
        self.unwritten.insert(sealed.number, Arc::clone(&sealed));
        self.to_write.push(sealed);
    }

    /// The indexes of segments sealed since the last call, to be written as footers once the segments are durable.
    pub fn take_sealed(&mut self) -> Vec<Arc<SegmentIndex>> {
        std::mem::take(&mut self.to_write)
    }

    /// Takes back what [`Self::take_sealed`] gave, to be written later.
    pub(crate) fn put_back(&mut self, sealed: Arc<SegmentIndex>) {
        self.to_write.push(sealed);
    }

    /// Forgets the index of a segment whose footer is on disk and was read back.
    pub fn footer_written(&mut self, segment: u64) {
        self.unwritten.remove(&segment);
    }

    /// Nobody will read this subject any more: at the latest when the active segment is sealed nothing of it is in memory.
    pub fn forget(&mut self, subject: u64) {
        self.newest_sealed.remove(&subject);
        if self.active.subjects.contains_key(&subject) {
            self.forgotten.insert(subject);
        }
    }

    /// As [`Self::forget`] for all that `keeps` does not know.
    pub fn retain(&mut self, keeps: impl Fn(u64) -> bool) {
        self.newest_sealed.retain(|subject, _| keeps(*subject));
        self.forgotten.extend(self.active.subjects.keys().filter(|subject| !keeps(**subject)));
    }

    /// How many subjects it knows a sealed segment of.
    #[must_use]
    pub fn subjects(&self) -> usize {
        self.newest_sealed.len()
    }

    /// How to read `subject` from `offset` on; `None` if the log holds nothing of the subject.
    #[must_use]
    pub fn plan(&self, subject: u64, offset: u64) -> Option<ReadPlan> {
        self.plan_back_to(subject, offset, |found| found.first_offset <= offset)
    }

    /// How to find the first record of `subject`, at or behind `offset`, that was ordered at `wall_ms` or later. A plan
    /// that is used up without having found it has moved on: ask for another one from its offset.
    #[must_use]
    pub fn plan_time(&self, subject: u64, offset: u64, wall_ms: i64) -> Option<ReadPlan> {
        let mut plan = self.plan_back_to(subject, offset, |found| found.first_wall_ms < wall_ms)?;
        plan.wall_ms_min = Some(wall_ms);
        Some(plan)
    }

    fn plan_back_to(
        &self,
        subject: u64,
        offset: u64,
        is_far_enough: impl Fn(&SubjectIndex) -> bool,
    ) -> Option<ReadPlan> {
        let mut path = Vec::new();
        let mut segment = if self.active.subjects.contains_key(&subject) {
            self.active.number
        } else {
            *self.newest_sealed.get(&subject)?
        };
        while segment != 0 {
            let Some(index) = self.in_memory(segment) else {
                path.push(Step::Footer { segment, goes_back: true });
                break;
            };
            let Some(found) = index.subjects.get(&subject) else { break };
            let all = found.points_from(offset);
            if all.len() > PLAN_POINTS_MAX {
                // The plan ends in the middle of this segment: what newer ones hold does not follow directly.
                path.clear();
            }
            let points = all.iter().take(PLAN_POINTS_MAX).copied().collect();
            path.push(Step::Points { segment, end: index.end, points });
            if is_far_enough(found) {
                break;
            }
            segment = found.previous;
        }
        Some(ReadPlan { subject, offset, wall_ms_min: None, path })
    }

    fn in_memory(&self, segment: u64) -> Option<&SegmentIndex> {
        if segment == self.active.number {
            return Some(&self.active);
        }
        self.unwritten.get(&segment).map(AsRef::as_ref)
    }
}
