//! What the broker must be: a plain list of everything that was ordered, and what follows from it for a batch.
//!
//! The list is the whole truth: streams, epochs and what each producer has written are looked up in it, in the simplest
//! way, so that nothing of the broker's own tables is believed.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidelog::state::{BatchAppended, Change, EpochRaised, Grant, State, StreamCreated, StreamRemoved};
use tidelog_protocol::{
    AttemptId, BATCH_HEADER_LEN, BatchHeader, BatchRecords, Epoch, ErrorCode, Offset, ProducerId, ProducerName,
    StreamId, StreamName, StreamSettings,
};
use tidelog_storage::{ReadOutcome, entry_len};

use super::Checked;
use crate::check;

/// An entry that was ordered.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) change: Change,
    /// The batch, if it is one.
    pub(crate) bytes: Bytes,
    /// Position behind it.
    pub(crate) end: u64,
    /// The ordered fold behind it; dropped once a start has confirmed it.
    pub(crate) fold: Option<State>,
}

impl Entry {
    pub(crate) fn batch(&self) -> Option<&BatchAppended> {
        match &self.change {
            Change::BatchAppended(batch) => Some(batch),
            _ => None,
        }
    }
}

/// What a batch's answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Appended at this offset, behind so many records that were there.
    Stored { base_offset: u64, skip: u32 },
    /// All of it is stored. Its offset is this one, and must be told if it was stored just so.
    Duplicate { base_offset: Option<u64>, must_tell: bool },
    /// Nothing of it is stored.
    Refused { code: ErrorCode, detail: u64 },
}

/// A record of a producer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Written {
    sequence: u64,
    value: Bytes,
    offset: u64,
}

/// What one producer has written to one stream.
#[derive(Debug, Clone, Default)]
struct Output {
    records: Vec<Written>,
    /// Batches as they came, their offset, and how many of their records were skipped.
    batches: Vec<(Bytes, u64, u32)>,
    is_sparse: bool,
}

/// All that was ordered and not refuted by a start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    pub(crate) entries: Vec<Entry>,
    /// So many of them somebody has been told of, or has seen: they must be there for ever.
    pub(crate) must_survive: usize,
    outputs: BTreeMap<(ProducerId, StreamId), Output>,
    tails: BTreeMap<StreamId, u64>,
    epochs: BTreeMap<ProducerId, (Epoch, AttemptId)>,
}

impl Model {
    // Looking up.

    pub(crate) fn tail(&self, stream: StreamId) -> u64 {
        self.tails.get(&stream).copied().unwrap_or(0)
    }

    pub(crate) fn stream(&self, name: &StreamName) -> Option<StreamId> {
        self.entries.iter().find_map(|entry| match &entry.change {
            Change::StreamCreated(created) if created.name == *name && self.tails.contains_key(&created.id) => {
                Some(created.id)
            }
            _ => None,
        })
    }

    /// Streams that were made, removed ones too.
    pub(crate) fn streams(&self) -> Vec<StreamId> {
        let made = self.entries.iter().filter_map(|entry| match &entry.change {
            Change::StreamCreated(created) => Some(created.id),
            _ => None,
        });
        made.collect()
    }

    /// Whether a stream is there.
    pub(crate) fn has(&self, stream: StreamId) -> bool {
        self.tails.contains_key(&stream)
    }

    /// Up to and with the removal of a stream, so many entries.
    pub(crate) fn count_to_removal(&self, stream: StreamId) -> Option<usize> {
        let is_it = |entry: &Entry| matches!(entry.change, Change::StreamRemoved(removed) if removed.id == stream);
        self.entries.iter().position(is_it).map(|at| at + 1)
    }

    pub(crate) fn producer(&self, name: &ProducerName) -> Option<(ProducerId, Epoch, AttemptId)> {
        let id = self.entries.iter().find_map(|entry| match &entry.change {
            Change::EpochRaised(raised) if raised.name == *name => Some(raised.id),
            _ => None,
        })?;
        let (epoch, attempt) = self.epochs.get(&id)?;
        Some((id, *epoch, *attempt))
    }

    pub(crate) fn epoch(&self, producer: ProducerId) -> Option<(Epoch, AttemptId)> {
        self.epochs.get(&producer).copied()
    }

    /// Entries that stand below a position.
    pub(crate) fn count_below(&self, end: u64) -> usize {
        self.entries.partition_point(|entry| entry.end <= end)
    }

    /// The last sequence of a producer among the first `count` entries.
    pub(crate) fn last_sequence_of(&self, producer: ProducerId, stream: StreamId, count: usize) -> u64 {
        let batches = self.entries.iter().take(count).filter_map(Entry::batch);
        let its = batches.filter(|batch| batch.producer == producer && batch.header.stream == stream);
        its.last().map_or(0, |batch| batch.header.last.get())
    }

    /// What the broker must answer to this batch now.
    pub(crate) fn judge(&self, grant: &Grant, bytes: &Bytes) -> Expected {
        let records = BatchRecords::new(bytes).unwrap();
        let header = *records.header();
        let refused = |code, detail| Expected::Refused { code, detail };
        let Some(tail) = self.tails.get(&header.stream).copied() else { return refused(ErrorCode::StreamGone, 0) };
        let append = |skip| Expected::Stored { base_offset: tail, skip };
        if grant.producer == ProducerId::ANONYMOUS {
            return append(0);
        }
        let (epoch, _) = self.epochs[&grant.producer];
        if grant.epoch < epoch {
            return refused(ErrorCode::Fenced, epoch.get());
        }
        let nothing = Output::default();
        let output = self.outputs.get(&(grant.producer, header.stream)).unwrap_or(&nothing);
        let records: Vec<(u64, Bytes)> =
            records.map(|record| record.unwrap()).map(|(sequence, record)| (sequence.get(), record.value)).collect();
        let last = output.records.last().map_or(0, |written| written.sequence);
        if header.is_sparse() {
            return self.judge_sparse(output, &header, bytes, last, append);
        }
        if output.is_sparse {
            return refused(ErrorCode::SequenceMode, last);
        }
        let (first, batch_last) = (header.first.get(), header.last.get());
        if first > last + 1 {
            return refused(ErrorCode::SequenceGap, last + 1);
        }
        let is_stored = |(sequence, value): &(u64, Bytes)| {
            output.records.iter().any(|written| written.sequence == *sequence && written.value == *value)
        };
        if batch_last > last {
            let skip = (last + 1 - first) as usize;
            return match skip == 0 || is_stored(&records[skip - 1]) {
                true => append(skip as u32),
                false => refused(ErrorCode::SequenceReused, last),
            };
        }
        let is_end = |sequence: u64| {
            let mut ends = output.batches.iter().map(|(stored, ..)| BatchHeader::decode(stored).unwrap().last.get());
            ends.any(|end| end == sequence)
        };
        if !records.iter().all(is_stored) && is_end(batch_last) {
            // The lies told here are in every record, so whatever ended with this sequence shows them.
            return refused(ErrorCode::SequenceReused, last);
        }
        let at = output.records.iter().position(|written| written.sequence == first).unwrap();
        let offset = output.records[at].offset;
        let is_in_one_piece =
            output.records[at..].iter().zip(&records).zip(offset..).all(|((written, _), at)| written.offset == at);
        let must_tell = output.batches.iter().any(|(stored, _, skip)| stored == bytes && *skip == 0);
        Expected::Duplicate { base_offset: is_in_one_piece.then_some(offset), must_tell }
    }

    fn judge_sparse(
        &self,
        output: &Output,
        header: &BatchHeader,
        bytes: &Bytes,
        last: u64,
        append: impl Fn(u32) -> Expected,
    ) -> Expected {
        let refused = |code, detail| Expected::Refused { code, detail };
        if header.previous.get() == last {
            return append(0);
        }
        if header.previous.get() > last {
            return refused(ErrorCode::SequenceGap, last);
        }
        if let Some((_, base_offset, _)) = output.batches.iter().find(|(stored, ..)| stored == bytes) {
            return Expected::Duplicate { base_offset: Some(*base_offset), must_tell: true };
        }
        let has_its_bounds = output.batches.iter().any(|(stored, ..)| {
            let stored = BatchHeader::decode(stored).unwrap();
            (stored.previous, stored.first, stored.last) == (header.previous, header.first, header.last)
        });
        match (has_its_bounds, header.last.get() > last) {
            (true, _) => refused(ErrorCode::SequenceReused, last),
            (false, true) => refused(ErrorCode::SequenceOverlap, last),
            (false, false) => refused(ErrorCode::SequencePast, last),
        }
    }

    // What is ordered.

    pub(crate) fn order_stream(&mut self, name: &StreamName, created_ms: i64, end: u64, fold: State) -> StreamId {
        let mut created =
            StreamCreated { id: StreamId::new(0), name: name.clone(), settings: StreamSettings::default(), created_ms };
        let len = entry_len(created.to_facts().unwrap().as_bytes().len(), 0, 0) as u64;
        created.id = StreamId::new(end - len);
        let id = created.id;
        self.push(Change::StreamCreated(created), Bytes::new(), end, fold);
        id
    }

    pub(crate) fn order_removal(&mut self, stream: StreamId, end: u64, fold: State) {
        let mut removed = StreamRemoved { id: stream, decided_at: 0 };
        removed.decided_at = end - entry_len(removed.to_facts().unwrap().as_bytes().len(), 0, 0) as u64;
        self.push(Change::StreamRemoved(removed), Bytes::new(), end, fold);
    }

    pub(crate) fn order_epoch(
        &mut self,
        name: &ProducerName,
        attempt: AttemptId,
        end: u64,
        fold: State,
    ) -> (ProducerId, Epoch) {
        let known = self.producer(name);
        let epoch = Epoch::new(known.map_or(1, |(_, epoch, _)| epoch.get() + 1));
        let mut raised = EpochRaised { id: ProducerId::ANONYMOUS, name: name.clone(), epoch, attempt, decided_at: 0 };
        raised.decided_at = end - entry_len(raised.to_facts().unwrap().as_bytes().len(), 0, 0) as u64;
        raised.id = known.map_or(ProducerId::new(raised.decided_at), |(id, ..)| id);
        let id = raised.id;
        self.push(Change::EpochRaised(raised), Bytes::new(), end, fold);
        (id, epoch)
    }

    pub(crate) fn order_batch(&mut self, grant: &Grant, bytes: &Bytes, skip: u32, wall_ms: i64, end: u64, fold: State) {
        let header = BatchHeader::decode(bytes).unwrap();
        let len = entry_len(0, bytes.len(), BATCH_HEADER_LEN) as u64;
        let batch = BatchAppended {
            producer: grant.producer,
            epoch: grant.epoch,
            base_offset: Offset::new(self.tail(header.stream)),
            span: header.count - skip,
            skip,
            wall_ms,
            stored_bytes: len,
            decided_at: end - len,
            header,
        };
        self.push(Change::BatchAppended(batch), bytes.clone(), end, fold);
    }

    fn push(&mut self, change: Change, bytes: Bytes, end: u64, fold: State) {
        let entry = Entry { change, bytes, end, fold: Some(fold) };
        self.count_in(&entry);
        self.entries.push(entry);
    }

    fn count_in(&mut self, entry: &Entry) {
        match &entry.change {
            Change::StreamCreated(created) => {
                self.tails.insert(created.id, 0);
            }
            Change::StreamRemoved(removed) => {
                self.tails.remove(&removed.id);
                self.outputs.retain(|(_, stream), _| *stream != removed.id);
            }
            Change::EpochRaised(raised) => {
                self.epochs.insert(raised.id, (raised.epoch, raised.attempt));
            }
            Change::BatchAppended(batch) => {
                let base_offset = batch.base_offset.get();
                self.tails.insert(batch.header.stream, base_offset + u64::from(batch.span));
                if batch.producer == ProducerId::ANONYMOUS {
                    return;
                }
                let output = self.outputs.entry((batch.producer, batch.header.stream)).or_default();
                let new = BatchRecords::new(&entry.bytes).unwrap().skip(batch.skip as usize);
                for (offset, record) in (base_offset..).zip(new) {
                    let (sequence, record) = record.unwrap();
                    output.records.push(Written { sequence: sequence.get(), value: record.value, offset });
                }
                output.is_sparse |= batch.header.is_sparse();
                output.batches.push((entry.bytes.clone(), base_offset, batch.skip));
            }
            // No request makes these; a repair does, on a log that no broker runs on.
            Change::OffsetsSkipped(_) | Change::HoleFound(_) | Change::DamageSettled(_) => {}
        }
    }

    // After a death.

    /// Somebody has been told, or has seen, what rests on the first `count` entries.
    pub(crate) fn told(&mut self, count: usize) {
        self.must_survive = self.must_survive.max(count);
    }

    /// Holds what a start found against the list: it must be a beginning of it that holds all that anybody was told of. What
    /// is not there is gone for good then.
    pub(crate) fn judge_start(&mut self, found: &[Change], state: &State) -> Checked {
        for (at, change) in found.iter().enumerate() {
            let expected = self.entries.get(at).map(|entry| &entry.change);
            check!(expected == Some(change), "entry {at} should be\n{expected:?}\nand is\n{change:?}");
        }
        if let Some(lost) = self.entries.get(found.len()..self.must_survive).and_then(<[Entry]>::first) {
            return Err(format!("somebody was told of what is lost: {:?}", lost.change));
        }
        if let Some(fold) = found.len().checked_sub(1).and_then(|last| self.entries[last].fold.as_ref()) {
            check!(fold == state, "the fold of the log is\n{state:?}\nand was\n{fold:?}");
        }
        let mut entries = std::mem::take(&mut self.entries);
        entries.truncate(found.len());
        *self = Self::default();
        for mut entry in entries {
            self.count_in(&entry);
            entry.fold = None;
            self.entries.push(entry);
        }
        self.must_survive = self.entries.len();
        if let Some(last) = self.entries.last_mut() {
            last.fold = Some(state.clone());
        }
        Ok(())
    }

    /// Compares what a reader returned with the first `count` entries.
    pub(crate) fn compare_read(&self, stream: StreamId, from: u64, count: usize, outcomes: &[ReadOutcome]) -> Checked {
        let mut outcomes = outcomes.iter();
        for entry in self.entries.iter().take(count) {
            let Some(batch) = entry.batch() else { continue };
            if batch.header.stream != stream || batch.next_offset().get() <= from {
                continue;
            }
            let outcome = outcomes.next();
            let is_it = matches!(outcome, Some(ReadOutcome::Batch(read)) if is_read_as(entry, read));
            check!(is_it, "instead of {batch:?} a reader found {outcome:?}");
        }
        match outcomes.next() {
            None => Ok(()),
            more => Err(format!("a reader of stream {stream} found more than is durable: {more:?}")),
        }
    }
}

/// Whether what was read, or handed over alive, is this entry's batch.
pub(crate) fn is_read_as(entry: &Entry, read: &tidelog_storage::StoredBatch) -> bool {
    entry.batch().is_some_and(|batch| {
        read.base_offset == batch.base_offset.get()
            && read.span == batch.span
            && read.skip == batch.skip
            && read.wall_ms == batch.wall_ms
            && read.owner == tidelog::state::owner(batch.producer, batch.epoch)
            && read.payload == entry.bytes
    })
}
