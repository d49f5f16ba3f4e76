//! The streams: names, identities, and where each ends.

use std::collections::BTreeMap;
use std::ops::Bound;

use tidelog_protocol::{Offset, StreamDescription, StreamId, StreamName, StreamSettings};

use crate::id_map::IdMap;

use super::change::{BatchAppended, OffsetsSkipped, ReplayError, StreamCreated, StreamRemoved};

/// One stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamState {
    /// Its name.
    pub name: StreamName,
    /// What it was made with; nothing acts on it yet.
    pub settings: StreamSettings,
    /// Wall clock when it was made.
    pub created_ms: i64,
    /// The first offset kept.
    pub head: Offset,
    /// The next offset to assign.
    pub tail: Offset,
    /// Bytes that it takes in the log.
    pub stored_bytes: u64,
    /// Position of its newest entry.
    pub decided_at: u64,
}

/// Why a stream was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateRefusal {
    /// There is one of that name.
    Exists(StreamId),
    /// There are as many as the limit allows.
    LimitReached,
}

/// All streams that are there. Of one that was removed nothing is kept: ids are positions of the log and only ever new
/// ones are given, so an id that is not here is that of no stream or of a removed one, whatever became of its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue {
    streams: IdMap<StreamId, StreamState>,
    names: BTreeMap<StreamName, StreamId>,
}

impl Catalogue {
    /// A stream by its identity.
    #[must_use]
    pub fn stream(&self, id: StreamId) -> Option<&StreamState> {
        self.streams.get(&id)
    }

    /// A stream's identity by its name.
    #[must_use]
    pub fn find(&self, name: &StreamName) -> Option<StreamId> {
        self.names.get(name).copied()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// All identities, in no order.
    pub(super) fn ids(&self) -> impl Iterator<Item = StreamId> {
        self.streams.keys().copied()
    }

    /// Puts a stream back as a checkpoint has it; the oldest of a name comes first.
    pub(super) fn restore(&mut self, id: StreamId, stream: StreamState) {
        self.names.entry(stream.name.clone()).or_insert(id);
        self.streams.insert(id, stream);
    }

    /// Whether a stream of this name may be made now.
    ///
    /// # Errors
    /// [`CreateRefusal`].
    pub fn admit_creation(&self, name: &StreamName, streams_max: u64) -> Result<(), CreateRefusal> {
        if let Some(id) = self.find(name) {
            return Err(CreateRefusal::Exists(id));
        }
        if self.streams.len() as u64 >= streams_max {
            return Err(CreateRefusal::LimitReached);
        }
        Ok(())
    }

    /// What is told of a stream.
    #[must_use]
    pub fn describe(&self, id: StreamId) -> Option<StreamDescription> {
        let stream = self.streams.get(&id)?;
        Some(StreamDescription {
            name: stream.name.clone(),
            id,
            head: stream.head,
            tail: stream.tail,
            bytes: stream.stored_bytes,
            created_ms: stream.created_ms,
        })
    }

    /// Up to `limit` streams by name, behind `after`; and whether there are more.
    #[must_use]
    pub fn list(&self, after: Option<&StreamName>, limit: usize) -> (Vec<StreamDescription>, bool) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.names.range::<StreamName, _>((from, Bound::Unbounded));
        let page = rest.by_ref().take(limit).filter_map(|(_, id)| self.describe(*id)).collect();
        (page, rest.next().is_some())
    }

    pub(super) fn apply_created(&mut self, created: &StreamCreated) -> Result<(), ReplayError> {
        let position = created.id.get();
        self.streams.entry(created.id).or_insert_with(|| StreamState {
            name: created.name.clone(),
            settings: created.settings.clone(),
            created_ms: created.created_ms,
            head: Offset::new(0),
            tail: Offset::new(0),
            stored_bytes: 0,
            decided_at: position,
        });
        let named = *self.names.entry(created.name.clone()).or_insert(created.id);
        if named != created.id {
            // The name stays with the first; both keep their records.
            let what = format!("makes stream '{}', which stream {named} is called already", created.name);
            return Err(ReplayError { position, what });
        }
        Ok(())
    }

    pub(super) fn apply_removed(&mut self, removed: &StreamRemoved) -> Result<(), ReplayError> {
        let Some(stream) = self.streams.remove(&removed.id) else {
            let what = format!("removes stream {}, of which nothing is known", removed.id);
            return Err(ReplayError { position: removed.decided_at, what });
        };
        if self.names.get(&stream.name) == Some(&removed.id) {
            self.names.remove(&stream.name);
        }
        Ok(())
    }

    pub(super) fn apply_skip(&mut self, skipped: &OffsetsSkipped) -> Result<(), ReplayError> {
        let position = skipped.decided_at;
        let Some(stream) = self.streams.get_mut(&skipped.stream) else {
            let what = format!("moves the end of stream {}, of which nothing is known", skipped.stream);
            return Err(ReplayError { position, what });
        };
        stream.tail = stream.tail.max(skipped.next_offset);
        stream.decided_at = stream.decided_at.max(position);
        Ok(())
    }

    /// All streams by identity, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (StreamId, &StreamState)> {
        self.streams.iter().map(|(id, stream)| (*id, stream))
    }

    pub(super) fn apply_batch(&mut self, batch: &BatchAppended) -> Result<(), ReplayError> {
        let position = batch.decided_at;
        let id = batch.header.stream;
        let Some(stream) = self.streams.get_mut(&id) else {
            let what = format!("belongs to stream {id}, of which nothing is known");
            return Err(ReplayError { position, what });
        };
        let expected = stream.tail;
        stream.tail = stream.tail.max(batch.next_offset());
        stream.stored_bytes += batch.stored_bytes;
        stream.decided_at = stream.decided_at.max(position);
        if batch.base_offset != expected {
            let (from, name) = (batch.base_offset, &stream.name);
            let what = format!("holds records of stream '{name}' from offset {from} on, where {expected} comes next");
            return Err(ReplayError { position, what });
        }
        Ok(())
    }
}
