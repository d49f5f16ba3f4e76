//! What the broker in memory holds, and what it answers: the rules of the protocol, and nothing of connections.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tidelog_protocol::{
    Answer, AttemptId, BatchHeader, BatchRecords, Epoch, ErrorCode, Limits, MediumKind, Offset, Outcome,
    ProducerDescription, ProducerId, Request, Response, Sequence, StartAt, StreamDescription, StreamId, StreamName,
    TransportError, Welcome, WireError,
};

use super::MemoryConnection;

pub struct State {
    pub log_id: String,
    pub start_count: u64,
    pub limits: Limits,
    pub token: Option<String>,
    pub streams: Vec<FakeStream>,
    pub streams_made: u64,
    pub producers: HashMap<String, (ProducerId, Epoch, AttemptId)>,
    pub last: HashMap<(ProducerId, StreamId), Last>,
    /// Batches of named producers that are still known: what a sparse one is compared with.
    pub recent: Vec<BatchHeader>,
    /// Batches received, by attachment.
    pub attachments: Vec<Vec<Bytes>>,
    pub connects: usize,
    /// Every request seen, by name.
    pub requests: Vec<&'static str>,
    /// Errors for the next tries to connect.
    pub connect_errors: VecDeque<TransportError>,
    /// Cut the connection after applying the next request of this name, before its answer.
    pub cut_after: Option<&'static str>,
    /// Instead of what is stored, the next subscriptions send these bytes and then wait.
    pub deliveries: VecDeque<Bytes>,
    /// Cut the connection after so many deliveries of each subscription.
    pub deliveries_max: Option<u32>,
    pub connections: Vec<Arc<MemoryConnection>>,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Last {
    pub sequence: u64,
    pub sparse: bool,
    pub offset: Option<u64>,
    pub crc: u32,
}

pub struct FakeStream {
    pub id: StreamId,
    pub name: StreamName,
    pub tail: u64,
    pub batches: Vec<Stored>,
}

#[derive(Clone)]
pub struct Stored {
    pub base_offset: u64,
    pub skip: u32,
    pub count: u32,
    pub producer: ProducerId,
    pub batch: Bytes,
}

impl State {
    pub fn add_stream(&mut self, name: &str) -> StreamId {
        let id = StreamId::new(1_000 + self.streams_made);
        self.streams_made += 1;
        self.streams.push(FakeStream { id, name: StreamName::new(name).unwrap(), tail: 0, batches: Vec::new() });
        id
    }

    pub fn named(&self, name: &str) -> &FakeStream {
        self.streams.iter().find(|stream| stream.name.as_str() == name).unwrap()
    }

    pub fn stream(&self, id: StreamId) -> Option<&FakeStream> {
        self.streams.iter().find(|stream| stream.id == id)
    }

    pub fn add_producer(&mut self, name: &str) -> ProducerId {
        let id = ProducerId::new(1 + self.producers.len() as u64);
        self.producers.insert(name.into(), (id, Epoch::NONE, AttemptId::new([0; 16])));
        id
    }

    pub fn name_of(&self, id: ProducerId) -> tidelog_protocol::ProducerName {
        let (name, _) = self.producers.iter().find(|(_, (found, _, _))| *found == id).unwrap();
        name.parse().unwrap()
    }

    pub fn welcome(&self) -> Welcome {
        Welcome {
            version: 1,
            broker: "fake/1".into(),
            log_id: self.log_id.clone(),
            start_count: self.start_count,
            medium: MediumKind::Memory,
            limits: self.limits.clone(),
            time_ms: 0,
        }
    }

    pub fn check_session(&self, producer: ProducerId, epoch: Epoch, attempt: AttemptId) -> Result<(), WireError> {
        let known = self.producers.values().find(|(id, _, _)| *id == producer);
        match known {
            None if producer == ProducerId::ANONYMOUS => Ok(()),
            Some((_, current, by)) if *current == epoch && *by == attempt => Ok(()),
            _ => Err(WireError::new(ErrorCode::Fenced, "another session opened this producer")),
        }
    }

    pub fn answer(&mut self, request: Request) -> Result<Response, WireError> {
        let not_found = || WireError::new(ErrorCode::NotFound, "there is no such stream");
        match request {
            Request::CreateStream { name, if_not_exists, .. } => {
                let exists = self.streams.iter().any(|stream| stream.name == name);
                if exists && !if_not_exists {
                    return Err(WireError::new(ErrorCode::Exists, "there is one already"));
                }
                if !exists {
                    self.add_stream(name.as_str());
                }
                Ok(Response::Stream(self.named(name.as_str()).describe()))
            }
            Request::RemoveStream { stream } => {
                let at = self.streams.iter().position(|there| there.id == stream);
                let at = at.ok_or_else(|| WireError::new(ErrorCode::StreamGone, "removed"))?;
                Ok(Response::Stream(self.streams.remove(at).describe()))
            }
            Request::StreamInfo { name } => {
                let found = self.streams.iter().find(|stream| stream.name == name);
                found.map(|stream| Response::Stream(stream.describe())).ok_or_else(not_found)
            }
            Request::ListStreams { after, limit } => {
                let mut all: Vec<_> = self.streams.iter().map(FakeStream::describe).collect();
                all.sort_by(|a, b| a.name.cmp(&b.name));
                all.retain(|stream| Some(&stream.name) > after.as_ref());
                let more = all.len() > limit as usize;
                all.truncate(limit as usize);
                Ok(Response::Streams { streams: all, more })
            }
            Request::FindProducer { name } => {
                let (id, epoch) = self
                    .producers
                    .get(name.as_str())
                    .map_or_else(|| (ProducerId::ANONYMOUS, Epoch::NONE), |(id, epoch, _)| (*id, *epoch));
                Ok(Response::Producer(ProducerDescription { name, id, epoch }))
            }
            Request::OpenProducer { name, found, attempt } => {
                if !self.producers.contains_key(name.as_str()) {
                    self.add_producer(name.as_str());
                }
                let (id, epoch, by) = self.producers.get_mut(name.as_str()).unwrap();
                if *by != attempt {
                    if *epoch != found {
                        return Err(WireError::new(ErrorCode::Fenced, "another session opened this producer"));
                    }
                    *epoch = Epoch::new(epoch.get() + 1);
                    *by = attempt;
                }
                Ok(Response::Producer(ProducerDescription { name, id: *id, epoch: *epoch }))
            }
            Request::ProducerStream { producer, stream } => {
                self.stream(stream).ok_or_else(not_found)?;
                let last = self.last.get(&(producer, stream)).copied().unwrap_or_default();
                Ok(Response::ProducerStream {
                    last_sequence: Sequence::new(last.sequence),
                    last_offset: last.offset.map(Offset::new),
                    last_record_crc: last.crc,
                    sparse: last.sparse,
                })
            }
            other => Err(WireError::new(ErrorCode::UnknownRequest, other.op())),
        }
    }

    pub fn apply(&mut self, producer: ProducerId, batch: Bytes) -> Answer {
        let header = BatchHeader::decode(&batch).unwrap();
        let refused = |code, detail| Answer { outcome: Outcome::Refused { code, detail }, base_offset: None, skip: 0 };
        if self.stream(header.stream).is_none() {
            return refused(ErrorCode::StreamGone, 0);
        }
        if producer == ProducerId::ANONYMOUS {
            let base = self.append(header.stream, producer, batch, 0);
            return Answer { outcome: Outcome::Stored, base_offset: Some(Offset::new(base)), skip: 0 };
        }
        let last = self.last.get(&(producer, header.stream)).copied().unwrap_or_default();
        if header.is_sparse() {
            return self.apply_sparse(producer, last, header, batch);
        }
        if last.sparse {
            return refused(ErrorCode::SequenceMode, last.sequence);
        }
        if header.first.get() > last.sequence + 1 {
            return refused(ErrorCode::SequenceGap, last.sequence + 1);
        }
        if header.last.get() <= last.sequence {
            return Answer { outcome: Outcome::Duplicate, base_offset: None, skip: 0 };
        }
        let skip = u32::try_from(last.sequence + 1 - header.first.get()).unwrap();
        let base = self.append(header.stream, producer, batch, skip);
        Answer { outcome: Outcome::Stored, base_offset: Some(Offset::new(base)), skip }
    }

    fn apply_sparse(&mut self, producer: ProducerId, last: Last, header: BatchHeader, batch: Bytes) -> Answer {
        let refused = |code, detail| Answer { outcome: Outcome::Refused { code, detail }, base_offset: None, skip: 0 };
        if header.previous.get() > last.sequence {
            return refused(ErrorCode::SequenceGap, last.sequence);
        }
        if header.previous.get() == last.sequence {
            let base = self.append(header.stream, producer, batch, 0);
            return Answer { outcome: Outcome::Stored, base_offset: Some(Offset::new(base)), skip: 0 };
        }
        if self.recent.contains(&header) {
            return Answer { outcome: Outcome::Duplicate, base_offset: None, skip: 0 };
        }
        let overlaps = header.last.get() > last.sequence;
        refused(if overlaps { ErrorCode::SequenceOverlap } else { ErrorCode::SequencePast }, last.sequence)
    }

    pub fn append(&mut self, stream: StreamId, producer: ProducerId, batch: Bytes, skip: u32) -> u64 {
        let header = BatchHeader::decode(&batch).unwrap();
        let stored = self.streams.iter_mut().find(|found| found.id == stream).unwrap();
        let base_offset = stored.tail;
        stored.tail += u64::from(header.count - skip);
        let last = Last {
            sequence: header.last.get(),
            sparse: header.is_sparse(),
            offset: Some(stored.tail - 1),
            crc: header.last_record_crc,
        };
        self.recent.push(header);
        stored.batches.push(Stored { base_offset, skip, count: header.count, producer, batch });
        self.last.insert((producer, stream), last);
        base_offset
    }

    pub fn start(&self, stream: StreamId, from: StartAt) -> Result<(u64, u64), WireError> {
        let found = self.stream(stream).ok_or_else(|| WireError::new(ErrorCode::StreamGone, "removed"))?;
        let start = match from {
            StartAt::Start => 0,
            StartAt::End => found.tail,
            StartAt::Offset { offset } if offset.get() > found.tail => {
                return Err(WireError::new(ErrorCode::PositionPastEnd, "behind the end"));
            }
            StartAt::Offset { offset } => offset.get(),
            StartAt::Last { count } => found.tail.saturating_sub(count),
            StartAt::Time { .. } => 0,
        };
        Ok((start, found.tail))
    }

    /// The values stored in a stream, in order.
    pub fn values(&self, stream: &str) -> Vec<String> {
        let mut values = Vec::new();
        for stored in &self.named(stream).batches {
            let records = BatchRecords::new(&stored.batch).unwrap();
            for record in records.skip(stored.skip as usize) {
                values.push(String::from_utf8(record.unwrap().1.value.to_vec()).unwrap());
            }
        }
        values
    }
}

impl FakeStream {
    pub fn describe(&self) -> StreamDescription {
        StreamDescription {
            name: self.name.clone(),
            id: self.id,
            head: Offset::new(0),
            tail: Offset::new(self.tail),
            bytes: 0,
            created_ms: 0,
        }
    }

    pub fn batch_at(&self, offset: u64) -> Option<Stored> {
        let end = |stored: &Stored| stored.base_offset + u64::from(stored.count - stored.skip);
        self.batches.iter().find(|stored| stored.base_offset <= offset && offset < end(stored)).cloned()
    }
}
