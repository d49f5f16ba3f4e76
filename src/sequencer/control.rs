//! What is asked of the sequencer besides publishing: streams made, producers opened and attached, positions told.

use tidelog_protocol::{
    AttemptId, Epoch, ErrorCode, ProducerDescription, ProducerId, ProducerName, Response, ResponseResult, Sequence,
    StreamId, StreamName, StreamSettings, WireError,
};
use tidelog_storage::{Facts, NewEntry, Room, Sabotage, entry_len};

use super::{Now, ReplySender, Sequencer, Supply, Waiting, error_of};
use crate::state::{Change, CreateRefusal, EpochRaised, Grant, OpenDecision, StreamCreated, StreamRemoved};

impl Sequencer {
    /// Makes a stream. The answer leaves once it is durable.
    pub fn create_stream(
        &mut self,
        name: &StreamName,
        if_not_exists: bool,
        settings: &StreamSettings,
        now: Now,
        to: ReplySender,
    ) -> Result<(), ReplySender> {
        if self.is_poisoned {
            self.reply_at_once(to, error_of(ErrorCode::Poisoned));
            return Ok(());
        }
        match self.ordered.catalogue.admit_creation(name, self.limits.streams_max) {
            Ok(()) if self.ordered.absent_name_is_doubtful() => {
                self.reply_when_durable(to, error_of(ErrorCode::Damaged));
                return Ok(());
            }
            Ok(()) => {}
            Err(CreateRefusal::Exists(id)) if if_not_exists => {
                let result = self.describe(id);
                self.reply_when_durable(to, result);
                return Ok(());
            }
            Err(CreateRefusal::Exists(_)) => {
                let message = format!("there is a stream '{name}' already");
                self.reply_when_durable(to, ResponseResult::Error(WireError::new(ErrorCode::Exists, message)));
                return Ok(());
            }
            Err(CreateRefusal::LimitReached) => {
                let message = format!("there are {} streams, as many as the limit allows", self.limits.streams_max);
                self.reply_when_durable(to, ResponseResult::Error(WireError::new(ErrorCode::LimitReached, message)));
                return Ok(());
            }
        }
        let time = self.advance(now.time);
        let mut created = StreamCreated {
            id: StreamId::new(0),
            name: name.clone(),
            // No limit and a limit of zero are written alike, so they are the same.
            settings: StreamSettings {
                max_age_ms: settings.max_age_ms.filter(|age_ms| *age_ms > 0),
                max_bytes: settings.max_bytes.filter(|bytes| *bytes > 0),
            },
            created_ms: time.wall_ms,
        };
        let len = entry_len(created.to_facts().map_or(0, |facts| facts.as_bytes().len()), 0, 0) as u64;
        let Ok(position) = self.log.prepare(len) else {
            return self.no_room(to);
        };
        created.id = StreamId::new(position);
        let facts = created.to_facts().expect("a checked name fits an entry's facts");
        let appended = self.log.append(&[NewEntry::facts(position, &facts)], time).expect("room was made");
        assert_eq!(appended.position, position, "an identity is the position of the entry that made it");
        self.order(Change::StreamCreated(created.clone()), appended.end, 0, 0, now.monotonic);
        let result = self.describe(created.id);
        self.reply_when_durable(to, result);
        Ok(())
    }

    /// Removes a stream, whatever becomes of the disk: a deletion is what makes room again. The answer, the stream as it
    /// was, leaves once the removal is durable; from its order on nothing more is stored in the stream.
    ///
    /// A stream that damage has put in doubt can be removed like any other: it may be gone already, and more than gone is
    /// not asked for.
    pub fn remove_stream(&mut self, stream: StreamId, now: Now, to: ReplySender) -> Result<(), ReplySender> {
        if self.is_poisoned {
            self.reply_at_once(to, error_of(ErrorCode::Poisoned));
            return Ok(());
        }
        let Some(description) = self.ordered.catalogue.describe(stream) else {
            let is_doubtful = self.ordered.stream_is_doubtful(stream);
            let code = if is_doubtful { ErrorCode::Damaged } else { ErrorCode::StreamGone };
            self.reply_when_durable(to, error_of(code));
            return Ok(());
        };
        let time = self.advance(now.time);
        let mut removed = StreamRemoved { id: stream, decided_at: 0 };
        let len = entry_len(removed.to_facts().map_or(0, |facts| facts.as_bytes().len()), 0, 0) as u64;
        let room = self.room(Room::Reserve);
        let Ok(position) = self.log.prepare_in(room, len) else {
            return self.no_room(to);
        };
        removed.decided_at = position;
        let facts = match self.sabotages.has(Sabotage::DropDeletionEarly) {
            true => Facts::default(),
            false => removed.to_facts().expect("one small fact fits an entry"),
        };
        let entry = NewEntry::facts(stream.get(), &facts);
        let appended = self.log.append_in(room, &[entry], time).expect("room was made");
        assert_eq!(appended.position, position, "the fact says where it was decided");
        self.order(Change::StreamRemoved(removed), appended.end, 0, 0, now.monotonic);
        self.reply_when_durable(to, ResponseResult::Ok(Response::Stream(description)));
        Ok(())
    }

    /// Opens a producer: raises its epoch, by compare-and-set on the epoch that the client found.
    pub fn open_producer(
        &mut self,
        name: &ProducerName,
        found: Epoch,
        attempt: AttemptId,
        now: Now,
        to: ReplySender,
    ) -> Result<(), ReplySender> {
        if self.is_poisoned {
            self.reply_at_once(to, error_of(ErrorCode::Poisoned));
            return Ok(());
        }
        let is_doubtful = match self.ordered.producers.find(name) {
            Some(id) => self.ordered.producer_is_doubtful(id),
            None => self.ordered.absent_name_is_doubtful(),
        };
        if is_doubtful {
            self.reply_when_durable(to, error_of(ErrorCode::Damaged));
            return Ok(());
        }
        let (id, epoch) = match self.ordered.producers.open(name, found, attempt, self.limits.producers_max) {
            OpenDecision::Raise { id, epoch } => (id, epoch),
            OpenDecision::AlreadyOpen { id, epoch } => {
                self.reply_when_durable(to, opened(name, id, epoch));
                return Ok(());
            }
            OpenDecision::Refused(refusal) => {
                let message = format!("producer '{name}' can't be opened from epoch {found}");
                let error = WireError::new(refusal.code, message).with_detail(refusal.detail);
                if self.sabotages.has(Sabotage::SendRefusalsAtOnce) {
                    self.reply_at_once(to, ResponseResult::Error(error));
                } else {
                    self.reply_when_durable(to, ResponseResult::Error(error));
                }
                return Ok(());
            }
        };
        let time = self.advance(now.time);
        let mut raised =
            EpochRaised { id: id.unwrap_or(ProducerId::ANONYMOUS), name: name.clone(), epoch, attempt, decided_at: 0 };
        let len = entry_len(raised.to_facts().map_or(0, |facts| facts.as_bytes().len()), 0, 0) as u64;
        let room = self.room(Room::HalfReserve);
        let Ok(position) = self.log.prepare_in(room, len) else {
            return self.no_room(to);
        };
        raised.decided_at = position;
        raised.id = id.unwrap_or(ProducerId::new(position));
        let facts = raised.to_facts().expect("a checked name fits an entry's facts");
        let entry = NewEntry::facts(raised.id.get(), &facts);
        let appended = self.log.append_in(room, &[entry], time).expect("room was made");
        assert_eq!(appended.position, position, "an identity is the position of the entry that made it");
        let result = opened(name, raised.id, epoch);
        self.order(Change::EpochRaised(raised), appended.end, 0, 0, now.monotonic);
        self.reply_when_durable(to, result);
        Ok(())
    }

    /// Lets a session write as a producer. The answer leaves once what it rests on is durable.
    pub fn attach(
        &mut self,
        producer: ProducerId,
        epoch: Epoch,
        attempt: AttemptId,
        to: ReplySender,
    ) -> Result<Grant, ErrorCode> {
        if self.is_poisoned {
            self.reply_at_once(to, error_of(ErrorCode::Poisoned));
            return Err(ErrorCode::Poisoned);
        }
        if producer != ProducerId::ANONYMOUS && self.ordered.producer_is_doubtful(producer) {
            self.reply_when_durable(to, error_of(ErrorCode::Damaged));
            return Err(ErrorCode::Damaged);
        }
        match self.ordered.producers.attach(producer, epoch, attempt) {
            Ok(grant) => {
                self.reply_when_durable(to, ResponseResult::Ok(Response::Attached));
                Ok(grant)
            }
            Err(refusal) => {
                let message = format!("a session of producer {producer} with epoch {epoch} can't write");
                let error = WireError::new(refusal.code, message).with_detail(refusal.detail);
                self.reply_when_durable(to, ResponseResult::Error(error));
                Err(refusal.code)
            }
        }
    }

    /// What a producer has durably written to a stream.
    #[must_use]
    pub fn producer_stream(&self, producer: ProducerId, stream: StreamId) -> ResponseResult {
        if self.durable.stream_is_doubtful(stream) {
            return error_of(ErrorCode::Damaged);
        }
        if self.durable.catalogue.stream(stream).is_none() {
            return error_of(ErrorCode::StreamGone);
        }
        let is_named = producer != ProducerId::ANONYMOUS;
        if is_named
            && (self.durable.producer_is_doubtful(producer) || self.durable.sequence_is_doubtful(producer, stream))
        {
            return error_of(ErrorCode::Damaged);
        }
        if is_named && self.durable.producers.producer(producer).is_none() {
            return error_of(ErrorCode::NotFound);
        }
        let state = self.durable.producers.sequence(producer, stream);
        ResponseResult::Ok(Response::ProducerStream {
            last_sequence: state.map_or(Sequence::NONE, |state| state.last),
            last_offset: state.map(|state| state.last_offset),
            last_record_crc: state.map_or(0, |state| state.last_record_crc),
            sparse: state.is_some_and(|state| state.is_sparse),
        })
    }

    /// The reserve is drawn on only while the disk is full.
    fn room(&self, on_a_full_disk: Room) -> Room {
        let is_full = self.supply == Supply::Failed || self.log.is_on_reserve();
        if is_full { on_a_full_disk } else { Room::Ordinary }
    }

    fn no_room(&mut self, to: ReplySender) -> Result<(), ReplySender> {
        if self.supply == Supply::Coming {
            return Err(to);
        }
        self.reply_when_durable(to, error_of(ErrorCode::DiskFull));
        Ok(())
    }

    fn reply_when_durable(&mut self, to: ReplySender, result: ResponseResult) {
        let gate = self.log.content_end();
        if self.pending.is_empty() && gate <= self.durable_position {
            self.reply_at_once(to, result);
        } else {
            self.pending.push(gate, Waiting::Reply { to, result });
        }
    }

    fn reply_at_once(&self, to: ReplySender, result: ResponseResult) {
        // Whoever asked may be gone.
        drop(to.send(result));
    }

    fn describe(&self, id: StreamId) -> ResponseResult {
        match self.ordered.catalogue.describe(id) {
            Some(stream) => ResponseResult::Ok(Response::Stream(stream)),
            None => error_of(ErrorCode::NotFound),
        }
    }
}

fn opened(name: &ProducerName, id: ProducerId, epoch: Epoch) -> ResponseResult {
    ResponseResult::Ok(Response::Producer(ProducerDescription { name: name.clone(), id, epoch }))
}
