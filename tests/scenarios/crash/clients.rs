//! What the programs of the crash model do, and what they must be answered.

use bytes::Bytes;
use tidelog::sequencer::SessionKey;
use tidelog::state::{Grant, State};
use tidelog_protocol::{
    AttemptId, BATCH_HEADER_LEN, Epoch, ErrorCode, ProducerId, ProducerName, Response, ResponseResult, Sequence,
    StreamId, StreamName,
};
use tidelog_storage::medium::SimulatedRng;

use super::{Asked, Checked, Crash, Foretold, NAMES, PROCESSES_MAX, Sent, Way};
use crate::check;
use crate::scenarios::model::Expected;
use crate::scenarios::process::{Made, Numbering, Output, Process, Stage, number};
use crate::scenarios::rig::Reply;

impl Crash {
    /// A process of the program starts, whatever became of those before.
    pub(super) fn new_process(&mut self, index: usize) {
        let (name, numbering) = NAMES[index];
        let name = ProducerName::new(name).unwrap();
        self.attempts += 1;
        let mut attempt = [0; 16];
        attempt[..8].copy_from_slice(&self.attempts.to_le_bytes());
        let process = Process::new(&name, numbering, AttemptId::new(attempt));
        let is_its = |other: &Process| other.name == name;
        let alive = self.processes.iter().filter(|other| is_its(other) && other.stage != Stage::Ended).count();
        if alive < PROCESSES_MAX {
            self.processes.push(process);
        }
    }

    pub(super) fn create_stream(&mut self, name: &str) -> Checked<Way> {
        let stream = StreamName::new(name).unwrap();
        let if_not_exists = self.rng.chance(2);
        let before = self.rig.sequencer().log().content_end();
        let reply = match self.rig.create_stream(name, if_not_exists) {
            Ok(reply) => reply,
            Err(text) => return self.no_room(&text),
        };
        let foretold = match self.model.stream(&stream) {
            Some(id) if if_not_exists => Foretold::Stream(id),
            Some(_) => Foretold::Error(ErrorCode::Exists, None),
            None => {
                let (end, fold) = self.appended(before)?;
                Foretold::Stream(self.model.order_stream(&stream, self.wall_ms, end, fold))
            }
        };
        self.ask(reply, foretold, None);
        Ok(Way::On)
    }

    /// Any stream that was ever made, whoever still writes to it.
    pub(super) fn remove_stream(&mut self) -> Checked<Way> {
        let streams = self.model.streams();
        if streams.is_empty() {
            return Ok(Way::On);
        }
        let stream = streams[self.rng.below(streams.len() as u64) as usize];
        let (is_there, tail) = (self.model.has(stream), self.model.tail(stream));
        let before = self.rig.sequencer().log().content_end();
        let reply = match self.rig.remove_stream(stream) {
            Ok(reply) => reply,
            Err(text) => return self.no_room(&text),
        };
        let foretold = if is_there {
            let (end, fold) = self.appended(before)?;
            self.model.order_removal(stream, end, fold);
            self.tally.removed += 1;
            Foretold::Removed(stream, tail)
        } else {
            Foretold::Error(ErrorCode::StreamGone, None)
        };
        self.ask(reply, foretold, None);
        Ok(Way::On)
    }

    /// Something was appended: up to here, and this is the fold behind it.
    fn appended(&mut self, before: u64) -> Checked<(u64, State)> {
        let sequencer = self.rig.sequencer();
        let end = sequencer.log().content_end();
        check!(end > before, "nothing was appended");
        let fold = sequencer.ordered().clone();
        self.wall_ms = self.wall_ms.max(self.rig.life().now.time.wall_ms);
        Ok((end, fold))
    }

    fn ask(&mut self, reply: Reply, foretold: Foretold, process: Option<usize>) {
        let rests_on = self.model.entries.len();
        self.asked.push(Asked { reply, foretold, rests_on, process });
    }

    fn no_room(&self, text: &str) -> Checked<Way> {
        check!(self.has_fault, "{text}");
        Ok(Way::Down)
    }

    pub(super) fn act_as(&mut self, index: usize) -> Checked<Way> {
        let process = &self.processes[index];
        if process.is_waiting {
            return Ok(Way::On);
        }
        match process.stage {
            Stage::New => {
                // It looks the epoch up in what is durable.
                self.look()?;
                let found = self.rig.sequencer().durable().producers.describe(&self.processes[index].name).epoch;
                self.processes[index].stage = Stage::Opening { found };
                self.open(index, found)
            }
            Stage::Opening { found } => {
                self.tally.reopened += 1;
                self.open(index, found)
            }
            Stage::Opened { id, epoch } => {
                self.attach(index, id, epoch);
                Ok(Way::On)
            }
            Stage::Attached { id, session, grant, .. } => self.write(index, id, session, grant),
            Stage::Attaching { .. } | Stage::Ended => Ok(Way::On),
        }
    }

    fn open(&mut self, index: usize, found: Epoch) -> Checked<Way> {
        let (name, attempt) = (self.processes[index].name.clone(), self.processes[index].attempt);
        let before = self.rig.sequencer().log().content_end();
        let reply = match self.rig.open_producer_as(&name, found, attempt) {
            Ok(reply) => reply,
            Err(text) => return self.no_room(&text),
        };
        let foretold = match self.model.producer(&name) {
            Some((id, epoch, owner)) if owner == attempt => Foretold::Producer(id, epoch),
            Some((_, epoch, _)) if epoch != found => Foretold::Error(ErrorCode::Fenced, Some(epoch.get())),
            _ => {
                let (end, fold) = self.appended(before)?;
                let (id, epoch) = self.model.order_epoch(&name, attempt, end, fold);
                self.tally.opened += 1;
                Foretold::Producer(id, epoch)
            }
        };
        self.processes[index].is_waiting = true;
        self.ask(reply, foretold, Some(index));
        Ok(Way::On)
    }

    fn attach(&mut self, index: usize, id: ProducerId, epoch: Epoch) {
        let attempt = self.processes[index].attempt;
        let (_, reply) = self.rig.attach(id, epoch, attempt);
        let foretold = match self.model.epoch(id) {
            _ if id == ProducerId::ANONYMOUS => Foretold::Attached(Grant { producer: id, epoch }),
            Some(owner) if owner == (epoch, attempt) => Foretold::Attached(Grant { producer: id, epoch }),
            Some((newer, _)) => Foretold::Error(ErrorCode::Fenced, Some(newer.get())),
            None => Foretold::Error(ErrorCode::NotFound, None),
        };
        self.processes[index].stage = Stage::Attaching { id, epoch };
        self.processes[index].is_waiting = true;
        self.ask(reply, foretold, Some(index));
    }

    /// A process with a session sends something.
    fn write(&mut self, index: usize, id: ProducerId, session: SessionKey, grant: Grant) -> Checked<Way> {
        self.look()?;
        let streams = self.rig.sequencer().durable().catalogue.list(None, 100).0;
        let mut streams: Vec<StreamId> = streams.into_iter().map(|stream| stream.id).collect();
        // Nobody has told it that a stream is gone.
        let shown = streams.len();
        let its = self.processes[index].outputs.keys();
        streams.extend(its.filter(|id| !streams[..shown].contains(id)).copied().collect::<Vec<_>>());
        if streams.is_empty() {
            return Ok(Way::On);
        }
        let stream = streams[self.rng.below(streams.len() as u64) as usize];
        let is_first_use = !self.processes[index].outputs.contains_key(&stream);
        if is_first_use {
            let next = self.first_use(index, id, stream)?;
            self.processes[index].outputs.insert(stream, Output { next, ..Output::default() });
        }
        let process = &mut self.processes[index];
        let probe = match self.rng.below(16) {
            // What a producer begins with is a case of its own.
            _ if is_first_use && self.rng.chance(3) => process.beyond(stream),
            0 | 1 => process.outputs[&stream].remembered.back().map(|made| made.bytes.clone()),
            2 => process.outputs[&stream].remembered.front().map(|made| made.bytes.clone()),
            3 => process.beyond(stream),
            4 => process.lie(stream),
            6 if self.rng.chance(2) => process.late.front().cloned(),
            6 => process.late.back().cloned(),
            5 => {
                let hostile =
                    process.outputs[&stream].remembered.back().map(|made| corrupted(&made.bytes, &mut self.rng));
                let malformed = Expected::Refused { code: ErrorCode::Malformed, detail: 0 };
                return hostile
                    .map_or(Ok(Way::On), |bytes| self.publish_expecting(malformed, session, &grant, &bytes, None));
            }
            _ => None,
        };
        if let Some(bytes) = probe {
            let expected = self.model.judge(&grant, &bytes);
            return self.publish_expecting(expected, session, &grant, &bytes, None);
        }
        let output = &process.outputs[&stream];
        if output.sent == output.window.len() {
            process.make(stream, &mut self.rng);
        }
        let Some(output) = process.outputs.get_mut(&stream) else { return Ok(Way::On) };
        let Some(Made { bytes, .. }) = output.window.get(output.sent).cloned() else { return Ok(Way::On) };
        output.sent += 1;
        let expected = self.model.judge(&grant, &bytes);
        self.publish_expecting(expected, session, &grant, &bytes, Some(stream))
    }

    /// What a process makes first: it is told where its name stands, and starts there, or somewhat earlier if it goes by a
    /// bookmark of its own.
    fn first_use(&mut self, index: usize, id: ProducerId, stream: StreamId) -> Checked<u64> {
        if id == ProducerId::ANONYMOUS {
            return Ok(1);
        }
        let count = self.durable_count();
        let last = self.model.last_sequence_of(id, stream, count);
        let told = self.rig.sequencer().producer_stream(id, stream);
        let is_it = matches!(
            told,
            ResponseResult::Ok(Response::ProducerStream { last_sequence, .. }) if last_sequence == Sequence::new(last)
        );
        check!(is_it, "{id} has written up to {last} to stream {stream} and was told {told:?}");
        self.model.told(count);
        let numbering = self.processes[index].numbering;
        let back = if numbering == Numbering::Dense { self.rng.below(7) } else { 0 };
        Ok((number(numbering, last) + 1).saturating_sub(back).max(1))
    }

    fn publish_expecting(
        &mut self,
        expected: Expected,
        session: SessionKey,
        grant: &Grant,
        bytes: &Bytes,
        is_of_window: Option<StreamId>,
    ) -> Checked<Way> {
        let before = self.rig.sequencer().log().content_end();
        if let Err(text) = self.rig.publish(session, grant, bytes) {
            return self.no_room(&text);
        }
        if let Expected::Stored { skip, .. } = expected {
            let (end, fold) = self.appended(before)?;
            self.model.order_batch(grant, bytes, skip, self.wall_ms, end, fold);
        } else {
            check!(self.rig.sequencer().log().content_end() == before, "appended what should be {expected:?}");
        }
        let rests_on = self.model.entries.len();
        let Some(line) = self.lines.get_mut(&session) else { return Err(format!("{session:?} is none")) };
        line.sent.push_back(Sent { expected, rests_on, is_of_window });
        Ok(Way::On)
    }
}

/// The batch with one bit of its content wrong.
fn corrupted(bytes: &Bytes, rng: &mut SimulatedRng) -> Bytes {
    let mut bytes = bytes.to_vec();
    let at = BATCH_HEADER_LEN + rng.below((bytes.len() - BATCH_HEADER_LEN) as u64) as usize;
    bytes[at] ^= 1 << rng.below(8);
    Bytes::from(bytes)
}
