//! What the log must hold: a plain list, and how what came back is held against it.

use tidelog_storage::{EntryHead, EntryKind, Fact, FactKind, NewEntry, ReadOutcome, ReplayTime, entry_len};

use super::{Checked, Observed};
use crate::check;

/// A fact that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnedFact {
    pub(crate) kind: FactKind,
    pub(crate) key: Vec<u8>,
    pub(crate) decided_at: u64,
    pub(crate) value: Vec<u8>,
}

impl OwnedFact {
    pub(crate) fn borrow(&self) -> Fact<'_> {
        Fact { kind: self.kind, key: &self.key, decided_at: self.decided_at, value: &self.value }
    }
}

/// All that a fold gets of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    pub(crate) position: u64,
    pub(crate) end: u64,
    pub(crate) subject: u64,
    pub(crate) base_offset: u64,
    pub(crate) span: u32,
    pub(crate) skip: u32,
    pub(crate) owner: [u8; 16],
    pub(crate) atomic_left: u32,
    pub(crate) atomic_index: u32,
    pub(crate) time: ReplayTime,
    pub(crate) payload_len: u32,
    pub(crate) payload_crc: u32,
    pub(crate) head: Vec<u8>,
    pub(crate) facts: Vec<OwnedFact>,
}

impl Entry {
    pub(crate) fn of(head: &EntryHead<'_>) -> Self {
        let header = head.header;
        let own = |fact: Fact<'_>| OwnedFact {
            kind: fact.kind,
            key: fact.key.to_vec(),
            decided_at: fact.decided_at,
            value: fact.value.to_vec(),
        };
        Self {
            kind: header.kind,
            position: header.position,
            end: header.end(),
            subject: header.subject,
            base_offset: header.base_offset,
            span: header.span,
            skip: header.skip,
            owner: header.owner,
            atomic_left: header.atomic_left,
            atomic_index: header.atomic_index,
            time: ReplayTime { wall_ms: header.wall_ms, log_ms: header.log_ms },
            payload_len: header.payload_len,
            payload_crc: header.payload_crc,
            head: head.head.to_vec(),
            facts: head.facts().map(own).collect(),
        }
    }

    pub(crate) fn new(
        new: &NewEntry<'_>,
        facts: Vec<OwnedFact>,
        position: u64,
        (atomic_left, atomic_index): (u32, u32),
        time: ReplayTime,
    ) -> Self {
        let len = entry_len(new.facts.as_bytes().len(), new.payload.len(), usize::from(new.head_len));
        Self {
            kind: new.kind,
            position,
            end: position + len as u64,
            subject: new.subject,
            base_offset: new.base_offset,
            span: new.span,
            skip: new.skip,
            owner: new.owner,
            atomic_left,
            atomic_index,
            time,
            payload_len: new.payload.len() as u32,
            payload_crc: new.payload.first_chunk().map_or(0, |crc| u32::from_le_bytes(*crc)),
            head: new.payload[..usize::from(new.head_len)].to_vec(),
            facts,
        }
    }
}

/// An entry that was appended, with its payload.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pub(crate) entry: Entry,
    pub(crate) payload: Vec<u8>,
}

/// All that was appended and not refuted by a start, in log order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    pub(crate) entries: Vec<Expected>,
    /// So many of them were acknowledged, or shown to a fold or a reader.
    pub(crate) acknowledged: usize,
    starts: u64,
}

impl Model {
    pub(crate) fn next_offset(&self, subject: u64) -> u64 {
        let mut records = self.records(subject).rev();
        records.next().map_or(0, |last| last.entry.base_offset + u64::from(last.entry.span))
    }

    pub(crate) fn records(&self, subject: u64) -> impl DoubleEndedIterator<Item = &Expected> {
        let is_its =
            move |expected: &&Expected| expected.entry.subject == subject && expected.entry.kind == EntryKind::Records;
        self.entries.iter().filter(is_its)
    }

    pub(crate) fn subjects(&self) -> Vec<u64> {
        let records = self.entries.iter().filter(|expected| expected.entry.kind == EntryKind::Records);
        let mut subjects: Vec<u64> = records.map(|expected| expected.entry.subject).collect();
        subjects.sort_unstable();
        subjects.dedup();
        subjects
    }

    /// Everything below a position was answered.
    pub(crate) fn acknowledge(&mut self, end: u64) {
        self.acknowledged = self.entries.partition_point(|expected| expected.entry.end <= end);
    }

    /// Holds a start without injected damage against the model; what it did not bring back is gone for good then.
    pub(crate) fn judge(&mut self, observed: &Observed, durable: u64) -> Checked {
        let (found, report) = (&observed.entries, &observed.report);
        check!(report.damages.is_empty(), "damage was told where there is none: {:?}", report.damages);
        check!(observed.holes.is_empty(), "holes were told where there are none: {:?}", observed.holes);
        check!(report.set_aside.is_empty(), "files were set aside: {:?}", report.set_aside);
        check!(report.proven <= report.end, "proven beyond the end: {report:?}");
        check!(report.cut.as_ref().is_none_or(|cut| cut.start == report.end), "the cut is not at the end: {report:?}");
        check!(report.start_count > self.starts, "the start count fell: {report:?}");
        check!(report.end <= durable, "the log ends behind what is durable");
        self.starts = report.start_count;
        self.compare(found)?;
        let lost = self.entries.get(found.len()..self.acknowledged).unwrap_or_default();
        check!(lost.is_empty(), "{} acknowledged entries are lost, the first is {:?}", lost.len(), lost[0].entry);
        let is_whole = found.last().is_none_or(|last| last.atomic_left == 0);
        check!(is_whole, "an atomic group is there in part: {:?}", found.last());
        let times = found.last().is_none_or(|last| last.time.log_ms <= report.last_time.log_ms);
        check!(times, "log time fell");
        self.entries.truncate(found.len());
        self.acknowledged = found.len();
        Ok(())
    }

    fn compare(&self, found: &[Entry]) -> Checked {
        for (at, entry) in found.iter().enumerate() {
            match self.entries.get(at) {
                Some(expected) if expected.entry == *entry => {}
                expected => {
                    let expected = expected.map(|expected| &expected.entry);
                    return Err(format!("entry {at} should be\n{expected:?}\nand is\n{entry:?}"));
                }
            }
        }
        Ok(())
    }

    /// Compares what a reader returned with all that is durable of a subject.
    pub(crate) fn compare_read(&self, subject: u64, from: u64, durable: u64, outcomes: &[ReadOutcome]) -> Checked {
        let wanted = self.records(subject).filter(|expected| {
            expected.entry.end <= durable && expected.entry.base_offset + u64::from(expected.entry.span) > from
        });
        let mut outcomes = outcomes.iter();
        for expected in wanted {
            let outcome = outcomes.next();
            let Some(ReadOutcome::Batch(batch)) = outcome else {
                return Err(format!("instead of {:?} a reader found {outcome:?}", expected.entry));
            };
            let entry = &expected.entry;
            let is_same = batch.base_offset == entry.base_offset
                && batch.span == entry.span
                && batch.skip == entry.skip
                && batch.owner == entry.owner
                && batch.wall_ms == entry.time.wall_ms
                && batch.payload == expected.payload;
            check!(is_same, "instead of {entry:?} a reader found {batch:?}");
        }
        match outcomes.next() {
            None => Ok(()),
            more => Err(format!("a reader found more than there is of {subject}: {more:?}")),
        }
    }
}
