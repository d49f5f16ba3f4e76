//! What is broken in a log, in the names that people know: streams, producers and offsets. A fold that keeps, beside the
//! state, what the state alone no longer shows.

use std::collections::BTreeMap;
use std::ops::Range;

use tidelog_protocol::{Epoch, ProducerId, StreamId, StreamName};
use tidelog_storage::{Damage, Replayed};

use crate::state::{BatchAppended, Change, State, changes};

/// Offsets of a stream that hold no readable record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The stream.
    pub stream: StreamId,
    /// Its offsets.
    pub offsets: Range<u64>,
    /// The log positions of the stream's newest entry before them and of its first one behind them.
    pub between: Range<u64>,
    /// A repair passed over them, so that no offset is given twice; whether they ever held records is unknown.
    pub is_skipped: bool,
}

/// A stream whose records are there and whose name is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamelessStream {
    /// The offset behind its last readable record.
    pub next_offset: u64,
    /// Position of its newest entry.
    pub decided_at: u64,
}

/// A log's state, and what is broken in it.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// The fold.
    pub state: State,
    /// Records that are there, of streams that are.
    pub records: u64,
    records_of: BTreeMap<StreamId, u64>,
    /// Names of streams that were removed: their bytes stay where they are, so damage in them is still named.
    removed: BTreeMap<StreamId, StreamName>,
    /// Offsets that hold no readable record because their entries are lost.
    pub gaps: Vec<Gap>,
    /// Entries whose checksum is right and whose content makes no sense.
    pub broken_entries: Vec<String>,
    nameless_streams: BTreeMap<StreamId, NamelessStream>,
    nameless_producers: BTreeMap<ProducerId, Epoch>,
    has_holes: bool,
}

impl Findings {
    /// Counts in what a log shows, in log order.
    pub fn count(&mut self, replayed: &Replayed<'_>) {
        match replayed {
            Replayed::Hole(hole) => {
                self.has_holes = true;
                self.state.apply_hole(hole.clone());
            }
            Replayed::Entry { head, .. } => match changes(head) {
                Ok(changes) => changes.iter().for_each(|change| self.count_change(change)),
                Err(error) => self.broken_entries.push(error.to_string()),
            },
        }
    }

    fn count_change(&mut self, change: &Change) {
        match change {
            Change::BatchAppended(batch) => self.count_batch(batch),
            Change::OffsetsSkipped(skipped) => {
                let known = self.state.catalogue.stream(skipped.stream);
                let (tail, behind) = known.map_or((0, 0), |stream| (stream.tail.get(), stream.decided_at));
                let offsets = tail..skipped.next_offset.get();
                self.gap(skipped.stream, offsets, behind..skipped.decided_at, true);
            }
            Change::StreamRemoved(removed) => {
                if let Some(stream) = self.state.catalogue.stream(removed.id) {
                    self.removed.insert(removed.id, stream.name.clone());
                }
                self.records -= self.records_of.remove(&removed.id).unwrap_or(0);
                self.nameless_streams.remove(&removed.id);
                self.gaps.retain(|gap| gap.stream != removed.id);
            }
            _ => {}
        }
        // What contradicts earlier entries follows from the holes between them, which are told themselves.
        if let Err(error) = self.state.apply(change)
            && !self.has_holes
        {
            self.broken_entries.push(error.to_string());
        }
    }

    fn count_batch(&mut self, batch: &BatchAppended) {
        let (id, base_offset) = (batch.header.stream, batch.base_offset.get());
        self.records += u64::from(batch.span);
        *self.records_of.entry(id).or_default() += u64::from(batch.span);
        let known = self.state.catalogue.stream(id).map(|stream| (stream.tail.get(), stream.decided_at));
        let nameless = self.nameless_streams.get(&id).map(|stream| (stream.next_offset, stream.decided_at));
        let (expected, behind) = known.or(nameless).unwrap_or((0, id.get()));
        self.gap(id, expected..base_offset, behind..batch.decided_at, false);
        if known.is_none() {
            let next_offset = expected.max(batch.next_offset().get());
            self.nameless_streams.insert(id, NamelessStream { next_offset, decided_at: batch.decided_at });
        }
        if batch.producer != ProducerId::ANONYMOUS && self.state.producers.producer(batch.producer).is_none() {
            let epoch = self.nameless_producers.entry(batch.producer).or_insert(batch.epoch);
            *epoch = batch.epoch.max(*epoch);
        }
    }

    fn gap(&mut self, stream: StreamId, offsets: Range<u64>, between: Range<u64>, is_skipped: bool) {
        if !offsets.is_empty() {
            self.gaps.push(Gap { stream, offsets, between, is_skipped });
        }
    }

    /// The streams whose records are there and whose names are lost.
    pub fn nameless_streams(&self) -> impl Iterator<Item = (StreamId, NamelessStream)> {
        let all = self.nameless_streams.iter();
        all.filter(|(id, _)| self.state.catalogue.stream(**id).is_none()).map(|(id, stream)| (*id, *stream))
    }

    /// The producers whose records are there and whose names are lost.
    pub fn nameless_producers(&self) -> impl Iterator<Item = ProducerId> {
        let all = self.nameless_producers.keys();
        all.filter(|id| self.state.producers.producer(**id).is_none()).copied()
    }

    /// A stream's name, where it is known.
    #[must_use]
    pub fn stream_name(&self, id: StreamId) -> Option<&str> {
        let live = self.state.catalogue.stream(id).map(|stream| &stream.name);
        live.or_else(|| self.removed.get(&id)).map(StreamName::as_str)
    }

    /// The name of the stream that damage concerns, where it is known.
    #[must_use]
    pub fn stream_of(&self, damage: &Damage) -> Option<&str> {
        self.stream_name(StreamId::new(damage.subject?))
    }
}
