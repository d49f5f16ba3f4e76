//! What an entry of the log changes, and how the broker's facts stand in it.

use std::ops::Range;

use bytes::{Buf, BufMut};
use tidelog_protocol::{
    AttemptId, BatchHeader, Epoch, Offset, ProducerId, ProducerName, Sequence, StreamId, StreamName, StreamSettings,
};
use tidelog_storage::{DamageKind, EntryHead, EntryKind, Fact, FactKind, Facts, FactsTooLong};

/// A stream came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamCreated {
    /// Position of the entry that made it.
    pub id: StreamId,
    /// Its name.
    pub name: StreamName,
    /// What it was made with.
    pub settings: StreamSettings,
    /// Wall clock, milliseconds since the Unix epoch.
    pub created_ms: i64,
}

/// A stream was removed, with all that was written to it. Its id never comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRemoved {
    /// The stream.
    pub id: StreamId,
    /// Position of the entry that says so.
    pub decided_at: u64,
}

/// A producer was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochRaised {
    /// Position of the entry that first made it.
    pub id: ProducerId,
    /// Its name.
    pub name: ProducerName,
    /// The epoch from here on.
    pub epoch: Epoch,
    /// Who opened it: a retry with the same attempt is the same open.
    pub attempt: AttemptId,
    /// Position of this entry.
    pub decided_at: u64,
}

/// A batch was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchAppended {
    /// The producer's header.
    pub header: BatchHeader,
    /// Whose it is.
    pub producer: ProducerId,
    /// The producer's epoch.
    pub epoch: Epoch,
    /// Offset of its first record that counts.
    pub base_offset: Offset,
    /// How many records count.
    pub span: u32,
    /// Leading records that do not.
    pub skip: u32,
    /// Wall clock at ordering.
    pub wall_ms: i64,
    /// Bytes of the entry in the log.
    pub stored_bytes: u64,
    /// Position of the entry.
    pub decided_at: u64,
}

/// A stream's next offset moved up without records: what a hole of the log may have held is passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetsSkipped {
    /// The stream.
    pub stream: StreamId,
    /// The next offset from here on, unless it is further already.
    pub next_offset: Offset,
    /// Position of the entry.
    pub decided_at: u64,
}

/// A start found that a range of the log can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoleFound {
    /// The range.
    pub positions: Range<u64>,
    /// Position of that start's entry. If that is the range's end, the log went on behind it and nothing says how much
    /// was lost.
    pub decided_at: u64,
}

/// A repair settled damage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamageSettled {
    /// What it was.
    pub kind: DamageKind,
    /// Where it lies.
    pub positions: Range<u64>,
}

/// What an entry changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A stream came to be.
    StreamCreated(StreamCreated),
    /// A stream was removed.
    StreamRemoved(StreamRemoved),
    /// A producer was opened.
    EpochRaised(EpochRaised),
    /// A batch was appended.
    BatchAppended(BatchAppended),
    /// A stream's next offset moved up.
    OffsetsSkipped(OffsetsSkipped),
    /// A hole was found.
    HoleFound(HoleFound),
    /// Damage was settled by a repair.
    DamageSettled(DamageSettled),
}

/// An entry contradicts what came before it, or can't be understood though its checksum is right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the entry at position {position} {what}")]
pub struct ReplayError {
    /// Where it stands.
    pub position: u64,
    /// What is wrong with it.
    pub what: String,
}

const STREAM_LIVE: u8 = 1;
const STREAM_REMOVED: u8 = 2;

/// The number of a kind of damage in a fact; never reused.
pub(super) const fn damage_number(kind: DamageKind) -> u8 {
    match kind {
        DamageKind::SegmentHeaderCopy => 1,
        DamageKind::SegmentHeader => 2,
        DamageKind::SegmentMissing => 3,
        DamageKind::EntryCopy => 4,
        DamageKind::Payload => 5,
        DamageKind::Hole => 6,
    }
}

const fn damage_kind(number: u8) -> Option<DamageKind> {
    Some(match number {
        1 => DamageKind::SegmentHeaderCopy,
        2 => DamageKind::SegmentHeader,
        3 => DamageKind::SegmentMissing,
        4 => DamageKind::EntryCopy,
        5 => DamageKind::Payload,
        6 => DamageKind::Hole,
        _ => return None,
    })
}

/// A fact's bytes, for [`Fact`] to borrow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedFact {
    /// What it is about.
    pub kind: FactKind,
    /// Which one.
    pub key: Vec<u8>,
    /// What holds from there on.
    pub value: Vec<u8>,
}

impl OwnedFact {
    /// The fact; whoever appends it fills in where it was decided.
    #[must_use]
    pub fn borrow(&self) -> Fact<'_> {
        Fact { kind: self.kind, key: &self.key, decided_at: 0, value: &self.value }
    }
}

impl OffsetsSkipped {
    /// As it stands in an entry.
    #[must_use]
    pub fn to_fact(&self) -> OwnedFact {
        let (key, value) = (self.stream.get().to_le_bytes().to_vec(), self.next_offset.get().to_le_bytes().to_vec());
        OwnedFact { kind: FactKind::NextOffset, key, value }
    }

    fn from_fact(fact: &Fact<'_>) -> Option<Self> {
        let stream = StreamId::new(u64::from_le_bytes(*fact.key.first_chunk()?));
        let next_offset = Offset::new(u64::from_le_bytes(*fact.value.first_chunk()?));
        Some(Self { stream, next_offset, decided_at: fact.decided_at })
    }
}

impl HoleFound {
    fn from_fact(fact: &Fact<'_>) -> Option<Self> {
        let start = u64::from_le_bytes(*fact.key.first_chunk()?);
        let end = u64::from_le_bytes(*fact.value.first_chunk()?);
        Some(Self { positions: start..end, decided_at: fact.decided_at })
    }
}

impl DamageSettled {
    /// As it stands in an entry.
    #[must_use]
    pub fn to_fact(&self) -> OwnedFact {
        let mut key = self.positions.start.to_le_bytes().to_vec();
        key.push(damage_number(self.kind));
        OwnedFact { kind: FactKind::Repaired, key, value: self.positions.end.to_le_bytes().to_vec() }
    }

    fn from_fact(fact: &Fact<'_>) -> Option<Self> {
        let (start, what) = fact.key.split_first_chunk()?;
        let kind = damage_kind(*what.first()?)?;
        Some(Self { kind, positions: u64::from_le_bytes(*start)..u64::from_le_bytes(*fact.value.first_chunk()?) })
    }
}

impl BatchAppended {
    /// The stream's next offset after this batch.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        Offset::new(self.base_offset.get() + u64::from(self.span))
    }

    /// The sequence that the producer's last record must have had before this batch; [`Sequence::NONE`] if it is the
    /// first, or anonymous.
    #[must_use]
    pub fn sequence_before(&self) -> Sequence {
        Sequence::new(self.header.previous.get() + u64::from(self.skip))
    }
}

impl StreamCreated {
    /// As it stands in an entry at position `self.id`.
    ///
    /// # Errors
    /// Never for a checked name: it fits.
    pub fn to_facts(&self) -> Result<Facts, FactsTooLong> {
        let mut facts = Facts::default();
        let fact = self.to_fact();
        facts.push(Fact { decided_at: self.id.get(), ..fact.borrow() })?;
        Ok(facts)
    }

    /// The one fact that says so.
    #[must_use]
    pub fn to_fact(&self) -> OwnedFact {
        let mut value = Vec::with_capacity(25 + self.name.as_str().len());
        value.put_u8(STREAM_LIVE);
        value.put_i64_le(self.created_ms);
        value.put_u64_le(self.settings.max_age_ms.unwrap_or(0));
        value.put_u64_le(self.settings.max_bytes.unwrap_or(0));
        value.put_slice(self.name.as_str().as_bytes());
        OwnedFact { kind: FactKind::Stream, key: self.id.get().to_le_bytes().to_vec(), value }
    }

    fn from_fact(fact: &Fact<'_>) -> Option<Self> {
        let id = u64::from_le_bytes(*fact.key.first_chunk()?);
        let (mut fixed, name) = fact.value.split_at_checked(25)?;
        if fixed.get_u8() != STREAM_LIVE {
            return None;
        }
        let created_ms = fixed.get_i64_le();
        let max_age_ms = Some(fixed.get_u64_le()).filter(|age| *age > 0);
        let max_bytes = Some(fixed.get_u64_le()).filter(|bytes| *bytes > 0);
        let name = StreamName::new(std::str::from_utf8(name).ok()?).ok()?;
        Some(Self { id: StreamId::new(id), name, settings: StreamSettings { max_age_ms, max_bytes }, created_ms })
    }
}

impl StreamRemoved {
    /// As it stands in an entry at position `self.decided_at`.
    ///
    /// # Errors
    /// Never: it is small.
    pub fn to_facts(self) -> Result<Facts, FactsTooLong> {
        let key = self.id.get().to_le_bytes();
        let mut facts = Facts::default();
        let value = [STREAM_REMOVED];
        facts.push(Fact { kind: FactKind::Stream, key: &key, decided_at: self.decided_at, value: &value })?;
        Ok(facts)
    }

    fn from_fact(fact: &Fact<'_>) -> Option<Self> {
        let id = u64::from_le_bytes(*fact.key.first_chunk()?);
        let is_removed = fact.value.first() == Some(&STREAM_REMOVED);
        is_removed.then_some(Self { id: StreamId::new(id), decided_at: fact.decided_at })
    }
}

impl EpochRaised {
    /// As it stands in an entry at position `self.decided_at`.
    ///
    /// # Errors
    /// Never for a checked name: it fits.
    pub fn to_facts(&self) -> Result<Facts, FactsTooLong> {
        let mut facts = Facts::default();
        let fact = self.to_fact();
        facts.push(Fact { decided_at: self.decided_at, ..fact.borrow() })?;
        Ok(facts)
    }

    /// The one fact that says so.
    #[must_use]
    pub fn to_fact(&self) -> OwnedFact {
        let mut value = Vec::with_capacity(24 + self.name.as_str().len());
        value.put_u64_le(self.epoch.get());
        value.put_slice(self.attempt.as_bytes());
        value.put_slice(self.name.as_str().as_bytes());
        OwnedFact { kind: FactKind::Producer, key: self.id.get().to_le_bytes().to_vec(), value }
    }

    fn from_fact(fact: &Fact<'_>) -> Option<Self> {
        let id = u64::from_le_bytes(*fact.key.first_chunk()?);
        let (mut fixed, name) = fact.value.split_at_checked(24)?;
        let epoch = Epoch::new(fixed.get_u64_le());
        let attempt = AttemptId::new(*fixed.first_chunk()?);
        let name = ProducerName::new(std::str::from_utf8(name).ok()?).ok()?;
        Some(Self { id: ProducerId::new(id), name, epoch, attempt, decided_at: fact.decided_at })
    }
}

/// The owner bytes of a batch's entry.
#[must_use]
pub fn owner(producer: ProducerId, epoch: Epoch) -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut out = bytes.as_mut_slice();
    out.put_u64_le(producer.get());
    out.put_u64_le(epoch.get());
    bytes
}

/// The producer in an entry's owner bytes.
#[must_use]
pub fn owner_producer(owner: &[u8; 16]) -> ProducerId {
    ProducerId::new(owner.as_slice().get_u64_le())
}

/// The changes that an entry makes, in order.
///
/// # Errors
/// If its checksum is right and its content makes no sense: damage from before the checksum was made.
pub fn changes(head: &EntryHead<'_>) -> Result<Vec<Change>, ReplayError> {
    let position = head.header.position;
    let error = |what: &str| ReplayError { position, what: what.to_owned() };
    if head.header.kind == EntryKind::Records {
        let header = BatchHeader::decode(head.head).map_err(|cause| error(&format!("holds no batch: {cause}")))?;
        if header.stream.get() != head.header.subject {
            return Err(error(&format!(
                "is of stream {} and holds a batch for {}",
                head.header.subject, header.stream
            )));
        }
        if u64::from(head.header.span) + u64::from(head.header.skip) != u64::from(header.count) {
            return Err(error("counts other records than its batch holds"));
        }
        let mut owner = head.header.owner.as_slice();
        return Ok(vec![Change::BatchAppended(BatchAppended {
            header,
            producer: ProducerId::new(owner.get_u64_le()),
            epoch: Epoch::new(owner.get_u64_le()),
            base_offset: Offset::new(head.header.base_offset),
            span: head.header.span,
            skip: head.header.skip,
            wall_ms: head.header.wall_ms,
            stored_bytes: head.header.stored_len(),
            decided_at: position,
        })]);
    }
    let mut changes = Vec::new();
    for fact in head.facts() {
        match fact.kind {
            FactKind::Stream => {
                let change = StreamCreated::from_fact(&fact)
                    .map(Change::StreamCreated)
                    .or_else(|| StreamRemoved::from_fact(&fact).map(Change::StreamRemoved));
                changes.push(change.ok_or_else(|| error("holds a broken stream fact"))?);
            }
            FactKind::Producer => {
                let raised = EpochRaised::from_fact(&fact).ok_or_else(|| error("holds a broken producer fact"))?;
                changes.push(Change::EpochRaised(raised));
            }
            FactKind::NextOffset => {
                let skipped = OffsetsSkipped::from_fact(&fact).ok_or_else(|| error("holds a broken offset fact"))?;
                changes.push(Change::OffsetsSkipped(skipped));
            }
            FactKind::Hole => {
                let hole = HoleFound::from_fact(&fact).ok_or_else(|| error("holds a broken hole fact"))?;
                changes.push(Change::HoleFound(hole));
            }
            // One of a kind that a later version knows settles nothing here.
            FactKind::Repaired => changes.extend(DamageSettled::from_fact(&fact).map(Change::DamageSettled)),
            _ => {}
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only_fact<T>(facts: &Facts, read: impl Fn(&Fact<'_>) -> Option<T>) -> Option<T> {
        // The facts are read back the way a replay reads them: out of the encoded bytes.
        let bytes = facts.as_bytes();
        let key_len = usize::from(bytes[1]);
        let value_len = usize::from(u16::from_le_bytes([bytes[2], bytes[3]]));
        let decided_at = u64::from_le_bytes(bytes[4 + key_len..12 + key_len].try_into().unwrap());
        let value = &bytes[12 + key_len..12 + key_len + value_len];
        read(&Fact { kind: FactKind::Stream, key: &bytes[4..4 + key_len], decided_at, value })
    }

    #[test]
    fn a_stream_with_the_longest_name_reads_back() {
        let created = StreamCreated {
            id: StreamId::new(4_096),
            name: StreamName::new("n".repeat(255)).unwrap(),
            settings: StreamSettings { max_age_ms: Some(5), max_bytes: None },
            created_ms: -1,
        };
        assert_eq!(only_fact(&created.to_facts().unwrap(), StreamCreated::from_fact), Some(created));
    }

    #[test]
    fn a_removal_reads_back_and_is_no_creation() {
        let removed = StreamRemoved { id: StreamId::new(4_096), decided_at: 8_192 };
        let facts = removed.to_facts().unwrap();
        assert_eq!(only_fact(&facts, StreamRemoved::from_fact), Some(removed));
        assert_eq!(only_fact(&facts, StreamCreated::from_fact), None);
    }

    #[test]
    fn an_epoch_reads_back() {
        let raised = EpochRaised {
            id: ProducerId::new(8),
            name: ProducerName::new("billing").unwrap(),
            epoch: Epoch::new(3),
            attempt: AttemptId::new([7; 16]),
            decided_at: 16,
        };
        assert_eq!(only_fact(&raised.to_facts().unwrap(), EpochRaised::from_fact), Some(raised));
    }
}
