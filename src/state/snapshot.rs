//! The fold as keys and values, for the checkpoint: what has changed, what all of it is, and the way back.
//!
//! ```text
//! 1, stream id u64                        settings, place in the log, name
//! 2, producer id u64                      epoch, attempt, place in the log, name
//! 3, producer id u64, stream id u64       the last sequence, its offset and checksum, place in the log
//! 4, number / 64 u64                      the recent batches with these numbers
//! 5                                       how many recent batches there have been, and the oldest that counts
//! 6                                       the holes, and what a repair has settled
//! ```
//!
//! A struct whose fields are written here is taken apart by name: a field that is added and not written does not compile.

use std::ops::Range;

use bytes::{Buf, BufMut};
use tidelog_protocol::{
    AttemptId, BATCH_HEADER_LEN, BatchHeader, Epoch, Offset, ProducerId, ProducerName, Sequence, StreamId, StreamName,
    StreamSettings,
};
use tidelog_storage::CheckpointPairs;

use crate::id_map::IdSet;

use super::holes::{Holes, KnownHole, Settled};
use super::recent::{RecentBatch, RecentBatches};
use super::{BatchAppended, Change, ProducerState, SequenceState, State, StreamState};

const STREAM: u8 = 1;
const PRODUCER: u8 = 2;
const SEQUENCE: u8 = 3;
const RECENT: u8 = 4;
const RECENT_COUNT: u8 = 5;
const HOLES: u8 = 6;

/// Recent batches in one value.
const BLOCK_BATCHES: u64 = 64;

/// A key and its value; `None` if the key is no more.
pub type KeyValue = (Vec<u8>, Option<Vec<u8>>);

/// What has changed since the last checkpoint. Bounded by the number of names.
#[derive(Debug, Clone, Default)]
pub struct ChangedKeys {
    streams: IdSet<StreamId>,
    producers: IdSet<ProducerId>,
    sequences: IdSet<(StreamId, ProducerId)>,
    /// The first recent batch that is new.
    recent_from: u64,
    /// The oldest recent batch that the last checkpoint may have.
    recent_oldest: u64,
    holes: bool,
    /// Where the first batch stands that was noted here.
    first_batch: Option<u64>,
}

/// The journal of a fold; it is no part of what the fold comes to.
#[derive(Debug, Clone, Default)]
pub(super) struct Journal(Option<ChangedKeys>);

impl PartialEq for Journal {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Journal {}

impl Journal {
    /// One that is kept, from now on.
    pub(super) fn kept(recent: &RecentBatches) -> Self {
        let (recent_from, recent_oldest) = (recent.count(), recent.oldest());
        Self(Some(ChangedKeys { recent_from, recent_oldest, ..ChangedKeys::default() }))
    }

    pub(super) fn note(&mut self, change: &Change) {
        let Some(changed) = &mut self.0 else { return };
        match change {
            Change::StreamCreated(created) => drop(changed.streams.insert(created.id)),
            // Noted where it is carried out: a stream may also be removed for want of its name.
            Change::StreamRemoved(_) => {}
            Change::EpochRaised(raised) => drop(changed.producers.insert(raised.id)),
            Change::OffsetsSkipped(skipped) => drop(changed.streams.insert(skipped.stream)),
            Change::HoleFound(_) | Change::DamageSettled(_) => changed.holes = true,
            // Noted with what is known of its producer.
            Change::BatchAppended(_) => {}
        }
    }

    /// Notes a batch; the one before of its producer in its stream was decided at `decided_before`.
    pub(super) fn note_batch(&mut self, batch: &BatchAppended, decided_before: Option<u64>) {
        let Some(changed) = &mut self.0 else { return };
        let first = *changed.first_batch.get_or_insert(batch.decided_at);
        if decided_before.is_some_and(|position| position >= first) {
            // That one was noted here, with all that is to be noted of this one.
            return;
        }
        changed.streams.insert(batch.header.stream);
        if batch.producer != ProducerId::ANONYMOUS {
            // A batch shows its producer's epoch as well.
            changed.producers.insert(batch.producer);
            changed.sequences.insert((batch.header.stream, batch.producer));
        }
    }

    /// A stream is removed, and with it what these have written to it.
    pub(super) fn note_removed(&mut self, stream: StreamId, writers: impl Iterator<Item = ProducerId>) {
        let Some(changed) = &mut self.0 else { return };
        changed.streams.insert(stream);
        let mut has_writers = false;
        for producer in writers {
            changed.sequences.insert((stream, producer));
            has_writers = true;
        }
        if has_writers {
            // Its recent batches stand among all others.
            changed.recent_from = changed.recent_from.min(changed.recent_oldest);
        }
    }

    pub(super) fn note_holes(&mut self) {
        if let Some(changed) = &mut self.0 {
            changed.holes = true;
        }
    }
}

impl State {
    /// Keeps no journal of its changes: for the fold that no checkpoint is made of.
    pub fn keep_no_journal(&mut self) {
        self.journal = Journal(None);
    }

    /// What has changed since this was asked last, or since the fold began; it begins anew.
    pub fn take_changed(&mut self) -> ChangedKeys {
        let next = Journal::kept(&self.producers.recent);
        std::mem::replace(&mut self.journal, next).0.unwrap_or_default()
    }

    /// Takes back what was not saved.
    pub fn give_back(&mut self, unsaved: ChangedKeys) {
        let Some(changed) = &mut self.journal.0 else { return };
        let ChangedKeys { streams, producers, sequences, recent_from, recent_oldest, holes, first_batch: _ } = unsaved;
        changed.streams.extend(streams);
        changed.producers.extend(producers);
        changed.sequences.extend(sequences);
        changed.recent_from = changed.recent_from.min(recent_from);
        changed.recent_oldest = changed.recent_oldest.min(recent_oldest);
        changed.holes |= holes;
    }

    /// The values of these keys.
    #[must_use]
    pub fn values_of(&self, changed: &ChangedKeys) -> Vec<KeyValue> {
        let mut values = Vec::new();
        for id in &changed.streams {
            values.push((stream_key(*id), self.catalogue.stream(*id).map(stream_value)));
        }
        for id in &changed.producers {
            values.push((producer_key(*id), self.producers.producer(*id).map(producer_value)));
        }
        for (stream, producer) in &changed.sequences {
            let value = self.producers.sequence(*producer, *stream).map(sequence_value);
            values.push((sequence_key(*producer, *stream), value));
        }
        self.push_recent(changed, &mut values);
        if changed.holes {
            values.push((vec![HOLES], Some(holes_value(&self.holes))));
        }
        values
    }

    /// The values of all keys.
    #[must_use]
    pub fn all_values(&self) -> Vec<KeyValue> {
        self.values_of(&ChangedKeys {
            streams: self.catalogue.ids().collect(),
            producers: self.producers.ids().collect(),
            sequences: self.producers.sequence_keys().collect(),
            recent_from: 0,
            recent_oldest: self.producers.recent.oldest(),
            holes: self.holes != Holes::default(),
            first_batch: None,
        })
    }

    fn push_recent(&self, changed: &ChangedKeys, values: &mut Vec<KeyValue>) {
        let recent = &self.producers.recent;
        let oldest = recent.oldest();
        let first_block = oldest / BLOCK_BATCHES;
        for block in changed.recent_oldest / BLOCK_BATCHES..first_block {
            values.push((recent_key(block), None));
        }
        for block in (changed.recent_from / BLOCK_BATCHES).max(first_block)..recent.count().div_ceil(BLOCK_BATCHES) {
            let batches = block * BLOCK_BATCHES..(block + 1) * BLOCK_BATCHES;
            let mut value = Vec::with_capacity(BLOCK_BATCHES as usize * RECENT_LEN);
            recent.range(batches).for_each(|(producer, batch)| put_recent(producer, batch, &mut value));
            // Those of removed streams are no more.
            values.push((recent_key(block), Some(value).filter(|value| !value.is_empty())));
        }
        // Of the block that holds it the older ones are no more, or they would be back in front of it.
        values.push((vec![RECENT_COUNT], Some([recent.count(), oldest].map(u64::to_le_bytes).concat())));
    }

    /// Becomes what a checkpoint holds.
    ///
    /// # Errors
    /// What in it makes no sense; then nothing is changed.
    pub fn restore(&mut self, pairs: CheckpointPairs) -> Result<(), String> {
        let mut restored = State::new(self.producers.sabotages());
        let mut recent = Vec::new();
        let (mut count, mut oldest) = (0, 0);
        // Streams and producers come in the order of their keys, not of their ids, and a name stays with the oldest.
        let (mut streams, mut producers) = (Vec::new(), Vec::new());
        for (key, value) in pairs {
            // Each pair goes as its piece comes, so that both are never there as a whole.
            let is_understood = restore_pair(&key, &value, &mut |piece| match piece {
                Piece::Stream(id, stream) => streams.push((id, stream)),
                Piece::Producer(id, producer) => producers.push((id, producer)),
                Piece::Sequence(producer, stream, state) => {
                    restored.producers.restore_sequence(producer, stream, state);
                }
                Piece::Recent(producer, batch) => recent.push((producer, batch)),
                Piece::RecentCount(found, from) => (count, oldest) = (found, from),
                Piece::Holes(holes) => restored.holes = holes,
            });
            is_understood.ok_or_else(|| format!("the value of key {key:02x?} makes no sense"))?;
        }
        streams.sort_by_key(|(id, _)| *id);
        producers.sort_by_key(|(id, _)| *id);
        streams.into_iter().for_each(|(id, stream)| restored.catalogue.restore(id, stream));
        producers.into_iter().for_each(|(id, producer)| restored.producers.restore(id, producer));
        recent.retain(|(_, batch)| batch.number >= oldest);
        restored.producers.recent = RecentBatches::restore(recent, count);
        restored.journal = Journal::kept(&restored.producers.recent);
        *self = restored;
        Ok(())
    }
}

/// What one pair holds.
enum Piece {
    Stream(StreamId, StreamState),
    Producer(ProducerId, ProducerState),
    Sequence(ProducerId, StreamId, SequenceState),
    Recent(ProducerId, RecentBatch),
    /// How many there have been, and the number of the oldest one that counts.
    RecentCount(u64, u64),
    Holes(Holes),
}

fn restore_pair(key: &[u8], value: &[u8], put: &mut impl FnMut(Piece)) -> Option<()> {
    let (kind, mut ids) = key.split_first()?;
    let mut value = value;
    match (*kind, ids.len()) {
        (STREAM, 8) => put(Piece::Stream(StreamId::new(ids.get_u64_le()), read_stream(value)?)),
        (PRODUCER, 8) => put(Piece::Producer(ProducerId::new(ids.get_u64_le()), read_producer(value)?)),
        (SEQUENCE, 16) => {
            let producer = ProducerId::new(ids.get_u64_le());
            put(Piece::Sequence(producer, StreamId::new(ids.get_u64_le()), read_sequence(value)?));
        }
        (RECENT, 8) => {
            while !value.is_empty() {
                let (producer, batch) = read_recent(&mut value)?;
                put(Piece::Recent(producer, batch));
            }
        }
        (RECENT_COUNT, 0) if value.len() == 16 => put(Piece::RecentCount(value.get_u64_le(), value.get_u64_le())),
        (HOLES, 0) => put(Piece::Holes(read_holes(value)?)),
        _ => return None,
    }
    Some(())
}

fn stream_key(id: StreamId) -> Vec<u8> {
    let mut key = vec![STREAM];
    key.put_u64_le(id.get());
    key
}

fn producer_key(id: ProducerId) -> Vec<u8> {
    let mut key = vec![PRODUCER];
    key.put_u64_le(id.get());
    key
}

fn sequence_key(producer: ProducerId, stream: StreamId) -> Vec<u8> {
    let mut key = vec![SEQUENCE];
    key.put_u64_le(producer.get());
    key.put_u64_le(stream.get());
    key
}

fn recent_key(block: u64) -> Vec<u8> {
    let mut key = vec![RECENT];
    key.put_u64_le(block);
    key
}

fn stream_value(stream: &StreamState) -> Vec<u8> {
    let StreamState { name, settings, created_ms, head, tail, stored_bytes, decided_at } = stream;
    let StreamSettings { max_age_ms, max_bytes } = settings;
    let mut value = Vec::with_capacity(STREAM_FIXED_LEN + name.as_str().len());
    value.put_i64_le(*created_ms);
    value.put_u64_le(head.get());
    value.put_u64_le(tail.get());
    value.put_u64_le(*stored_bytes);
    value.put_u64_le(*decided_at);
    // No limit and a limit of zero are the same, as in the log.
    value.put_u64_le(max_age_ms.unwrap_or(0));
    value.put_u64_le(max_bytes.unwrap_or(0));
    value.put_slice(name.as_str().as_bytes());
    value
}

const STREAM_FIXED_LEN: usize = 56;

fn read_stream(value: &[u8]) -> Option<StreamState> {
    let (mut fixed, name) = value.split_at_checked(STREAM_FIXED_LEN)?;
    let created_ms = fixed.get_i64_le();
    let head = Offset::new(fixed.get_u64_le());
    let tail = Offset::new(fixed.get_u64_le());
    let stored_bytes = fixed.get_u64_le();
    let decided_at = fixed.get_u64_le();
    let max_age_ms = Some(fixed.get_u64_le()).filter(|age| *age > 0);
    let max_bytes = Some(fixed.get_u64_le()).filter(|bytes| *bytes > 0);
    let name = StreamName::new(std::str::from_utf8(name).ok()?).ok()?;
    let settings = StreamSettings { max_age_ms, max_bytes };
    Some(StreamState { name, settings, created_ms, head, tail, stored_bytes, decided_at })
}

fn producer_value(producer: &ProducerState) -> Vec<u8> {
    let ProducerState { name, epoch, attempt, decided_at } = producer;
    let mut value = Vec::with_capacity(PRODUCER_FIXED_LEN + name.as_str().len());
    value.put_u64_le(epoch.get());
    value.put_u64_le(*decided_at);
    value.put_u8(u8::from(attempt.is_some()));
    value.put_slice(attempt.as_ref().map_or([0; 16].as_slice(), |attempt| attempt.as_bytes().as_slice()));
    value.put_slice(name.as_str().as_bytes());
    value
}

const PRODUCER_FIXED_LEN: usize = 33;

fn read_producer(value: &[u8]) -> Option<ProducerState> {
    let (mut fixed, name) = value.split_at_checked(PRODUCER_FIXED_LEN)?;
    let epoch = Epoch::new(fixed.get_u64_le());
    let decided_at = fixed.get_u64_le();
    let has_attempt = fixed.get_u8() == 1;
    let attempt = has_attempt.then_some(AttemptId::new(*fixed.first_chunk()?));
    let name = ProducerName::new(std::str::from_utf8(name).ok()?).ok()?;
    Some(ProducerState { name, epoch, attempt, decided_at })
}

fn sequence_value(state: &SequenceState) -> Vec<u8> {
    let SequenceState { last, last_offset, last_record_crc, is_sparse, decided_at } = state;
    let mut value = Vec::with_capacity(SEQUENCE_LEN);
    value.put_u64_le(last.get());
    value.put_u64_le(last_offset.get());
    value.put_u64_le(*decided_at);
    value.put_u32_le(*last_record_crc);
    value.put_u8(u8::from(*is_sparse));
    value
}

const SEQUENCE_LEN: usize = 29;

fn read_sequence(mut value: &[u8]) -> Option<SequenceState> {
    (value.len() == SEQUENCE_LEN).then(|| SequenceState {
        last: Sequence::new(value.get_u64_le()),
        last_offset: Offset::new(value.get_u64_le()),
        decided_at: value.get_u64_le(),
        last_record_crc: value.get_u32_le(),
        is_sparse: value.get_u8() == 1,
    })
}

/// Bytes of one recent batch.
const RECENT_LEN: usize = 28 + BATCH_HEADER_LEN;

fn put_recent(producer: ProducerId, batch: &RecentBatch, out: &mut Vec<u8>) {
    let RecentBatch { number, header, base_offset, skip } = batch;
    out.put_u64_le(*number);
    out.put_u64_le(producer.get());
    out.put_u64_le(base_offset.get());
    out.put_u32_le(*skip);
    out.put_slice(&header.encode());
}

fn read_recent(value: &mut &[u8]) -> Option<(ProducerId, RecentBatch)> {
    let (mut one, rest) = value.split_at_checked(RECENT_LEN)?;
    *value = rest;
    let number = one.get_u64_le();
    let producer = ProducerId::new(one.get_u64_le());
    let base_offset = Offset::new(one.get_u64_le());
    let skip = one.get_u32_le();
    let header = BatchHeader::decode(one).ok()?;
    Some((producer, RecentBatch { number, header, base_offset, skip }))
}

/// Tags of the ranges of holes; all others are the numbers of settled kinds of damage.
const UNREPAIRED: u8 = 0;
const KNOWN: u8 = 254;
const KNOWN_OPEN_ENDED: u8 = 255;

fn holes_value(holes: &Holes) -> Vec<u8> {
    let Holes { unrepaired, known, settled } = holes;
    let mut value = Vec::new();
    let mut put = |tag: u8, range: &Range<u64>| {
        value.put_u8(tag);
        value.put_u64_le(range.start);
        value.put_u64_le(range.end);
    };
    unrepaired.iter().for_each(|range| put(UNREPAIRED, range));
    known.iter().for_each(|hole| put(if hole.is_open_ended { KNOWN_OPEN_ENDED } else { KNOWN }, &hole.range));
    settled.iter().for_each(|settled| put(settled.what, &settled.positions));
    value
}

fn read_holes(mut value: &[u8]) -> Option<Holes> {
    let mut holes = Holes::default();
    while !value.is_empty() {
        let tag = value.try_get_u8().ok()?;
        let range = value.try_get_u64_le().ok()?..value.try_get_u64_le().ok()?;
        match tag {
            UNREPAIRED => holes.unrepaired.push(range),
            KNOWN | KNOWN_OPEN_ENDED => {
                holes.known.push(KnownHole { range, is_open_ended: tag == KNOWN_OPEN_ENDED });
            }
            what => holes.settled.push(Settled { what, positions: range }),
        }
    }
    Some(holes)
}

#[cfg(test)]
mod tests {
    use tidelog_protocol::{BatchFlags, BatchHeader};
    use tidelog_storage::Sabotages;
    use tidelog_storage::medium::SimulatedRng;

    use super::super::recent::RECENT_BATCHES_MAX;
    use super::super::{BatchAppended, EpochRaised, StreamCreated, StreamRemoved};
    use super::*;

    /// A fold of random changes, and the checkpoint that follows it.
    struct Followed {
        rng: SimulatedRng,
        state: State,
        pairs: CheckpointPairs,
        position: u64,
        streams: Vec<StreamId>,
        producers: Vec<ProducerId>,
    }

    impl Followed {
        fn new(seed: u64) -> Self {
            let state = State::new(Sabotages::default());
            let (streams, producers) = (Vec::new(), Vec::new());
            Self { rng: SimulatedRng::new(seed), state, pairs: CheckpointPairs::new(), position: 8, streams, producers }
        }

        fn change(&mut self) {
            self.position += 8;
            let position = self.position;
            let change = match self.rng.below(200) {
                _ if self.streams.is_empty() => self.created(position),
                0 => self.created(position),
                1 | 2 => self.raised(position),
                3 if self.streams.len() > 3 && self.rng.chance(4) => self.removed(position),
                _ => self.batch(position),
            };
            match &change {
                Change::StreamCreated(created) => self.streams.push(created.id),
                Change::EpochRaised(raised) if raised.id.get() == position => self.producers.push(raised.id),
                _ => {}
            }
            self.state.apply(&change).unwrap();
            if self.rng.chance(3_000) {
                self.state.apply_hole(position..position + 8);
                self.position += 8;
            }
        }

        fn created(&mut self, position: u64) -> Change {
            let settings = StreamSettings { max_age_ms: Some(5).filter(|_| self.rng.chance(2)), max_bytes: None };
            let name = StreamName::new(format!("stream-{position}")).unwrap();
            Change::StreamCreated(StreamCreated { id: StreamId::new(position), name, settings, created_ms: -7 })
        }

        fn removed(&mut self, position: u64) -> Change {
            let at = self.rng.below(self.streams.len() as u64) as usize;
            Change::StreamRemoved(StreamRemoved { id: self.streams.remove(at), decided_at: position })
        }

        fn raised(&mut self, position: u64) -> Change {
            let known = pick(&mut self.rng, &self.producers).filter(|_| self.rng.chance(2));
            let found = known.and_then(|id| Some((id, self.state.producers.producer(id)?.clone())));
            let id = known.unwrap_or(ProducerId::new(position));
            let name = found.as_ref().map(|(_, found)| found.name.clone());
            Change::EpochRaised(EpochRaised {
                id,
                name: name.unwrap_or_else(|| ProducerName::new(format!("producer-{position}")).unwrap()),
                epoch: Epoch::new(found.map_or(1, |(_, found)| found.epoch.get() + 1)),
                attempt: AttemptId::new([position as u8; 16]),
                decided_at: position,
            })
        }

        fn batch(&mut self, position: u64) -> Change {
            let stream = pick(&mut self.rng, &self.streams).unwrap();
            let producer = pick(&mut self.rng, &self.producers).filter(|_| self.rng.chance(9) || self.rng.chance(2));
            let producer = producer.unwrap_or(ProducerId::ANONYMOUS);
            let known = self.state.producers.sequence(producer, stream).copied();
            let last = known.map_or(0, |known| known.last.get());
            let is_sparse = known.is_some_and(|known| known.is_sparse) || self.rng.chance(50);
            let count = 1 + self.rng.below(5) as u32;
            let is_anonymous = producer == ProducerId::ANONYMOUS;
            let (first, end) = if is_anonymous { (0, 0) } else { (last + 1, last + u64::from(count)) };
            let header = BatchHeader {
                content_crc: self.rng.next_u64() as u32,
                version: 1,
                codec: 0,
                flags: match (is_anonymous, is_sparse) {
                    (true, _) => BatchFlags::ANONYMOUS,
                    (false, true) => BatchFlags::SPARSE,
                    (false, false) => BatchFlags::DENSE,
                },
                count,
                content_len: 10,
                stream,
                first: Sequence::new(first),
                last: Sequence::new(end),
                previous: Sequence::new(if is_anonymous { 0 } else { last }),
                last_record_crc: self.rng.next_u64() as u32,
            };
            Change::BatchAppended(BatchAppended {
                header,
                producer,
                epoch: self.state.producers.producer(producer).map_or(Epoch::NONE, |state| state.epoch),
                base_offset: self.state.catalogue.stream(stream).unwrap().tail,
                span: count,
                skip: 0,
                wall_ms: 5,
                stored_bytes: 300,
                decided_at: position,
            })
        }

        fn checkpoint(&mut self) {
            let changed = self.state.take_changed();
            let values = self.state.values_of(&changed);
            if self.rng.chance(4) {
                // The save failed.
                self.state.give_back(changed);
                return;
            }
            self.put(values);
        }

        fn put(&mut self, values: Vec<KeyValue>) {
            for (key, value) in values {
                match value {
                    Some(value) => drop(self.pairs.insert(key, value)),
                    None => drop(self.pairs.remove(&key)),
                }
            }
        }

        fn restored(&self) -> State {
            let mut restored = State::new(Sabotages::default());
            restored.restore(self.pairs.clone()).unwrap();
            restored
        }
    }

    fn pick<T: Copy>(rng: &mut SimulatedRng, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { from.get(rng.below(from.len() as u64) as usize).copied() }
    }

    #[test]
    fn what_a_checkpoint_has_gathered_change_by_change_is_the_state() {
        for seed in 1..=10 {
            let mut followed = Followed::new(seed);
            for _ in 0..1_500 {
                followed.change();
                if followed.rng.chance(40) {
                    followed.checkpoint();
                }
            }
            let changed = followed.state.take_changed();
            let values = followed.state.values_of(&changed);
            followed.put(values);
            assert_eq!(followed.restored(), followed.state, "seed {seed}");
            // What goes on from there takes the same way.
            let mut restored = followed.restored();
            std::mem::swap(&mut restored, &mut followed.state);
            for _ in 0..300 {
                followed.change();
            }
            let changed = followed.state.take_changed();
            let values = followed.state.values_of(&changed);
            followed.put(values);
            assert_eq!(followed.restored(), followed.state, "seed {seed}");
            // All of it at once is the same as bit by bit.
            let gathered = std::mem::take(&mut followed.pairs);
            let all = followed.state.all_values();
            followed.put(all);
            assert_eq!(followed.restored(), followed.state, "seed {seed}");
            assert_eq!(gathered.keys().collect::<Vec<_>>(), followed.pairs.keys().collect::<Vec<_>>(), "seed {seed}");
        }
    }

    #[test]
    fn recent_batches_survive_when_their_ring_has_gone_round() {
        let mut followed = Followed::new(77);
        for round in 0..RECENT_BATCHES_MAX * 5 / 2 {
            followed.change();
            if round % 9_999 == 0 {
                followed.checkpoint();
            }
        }
        let recent = &followed.state.producers.recent;
        assert!(recent.count() > RECENT_BATCHES_MAX as u64 * 5 / 4, "{} batches of producers", recent.count());
        let changed = followed.state.take_changed();
        let values = followed.state.values_of(&changed);
        followed.put(values);
        assert_eq!(followed.restored(), followed.state);
        let gathered: Vec<_> = followed.pairs.keys().cloned().collect();
        let all: CheckpointPairs =
            followed.state.all_values().into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        assert_eq!(gathered, all.into_keys().collect::<Vec<_>>(), "what has fallen out of the ring is no more");
    }

    #[test]
    fn pairs_that_make_no_sense_restore_nothing() {
        let mut followed = Followed::new(5);
        for _ in 0..500 {
            followed.change();
        }
        followed.state.apply_hole(5_000..5_008);
        let all = followed.state.all_values();
        followed.put(all);
        for (key, value) in followed.pairs.clone() {
            let mut cut = followed.pairs.clone();
            cut.insert(key.clone(), value.get(..value.len() - 1).unwrap().to_vec());
            let mut state = State::new(Sabotages::default());
            let is_understood = state.restore(cut).is_ok();
            // A name may lose its last letter.
            let ends_in_name = matches!(key.first(), Some(&STREAM | &PRODUCER));
            assert!(!is_understood || ends_in_name, "{key:?}");
            assert!(is_understood || state == State::new(Sabotages::default()));
        }
        let mut stranger = followed.pairs.clone();
        stranger.insert(vec![99], Vec::new());
        assert!(State::new(Sabotages::default()).restore(stranger).is_err());
    }
}
