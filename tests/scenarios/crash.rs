//! The crash model of the whole sequencer: several programs publish, resend, re-batch, lie and outlive their successors,
//! while the broker dies in every way at any moment, in its starts too. What it answers is foretold by the plain list of
//! [`Model`], and what comes back after each start must be a beginning of that list which holds all that anybody was told.

mod clients;
mod tally;

use std::collections::{BTreeMap, VecDeque};

use tidelog::sequencer::SessionKey;
use tidelog::state::Grant;
use tidelog_protocol::{Answer, Epoch, ErrorCode, Outcome, ProducerId, Response, ResponseResult, StreamId};
use tidelog_storage::medium::SimulatedRng;
use tidelog_storage::{MemoryCheckpoints, Sabotages};

pub(crate) use self::tally::Tally;

use super::Checked;
use super::model::{Entry, Expected, Model, is_read_as};
use super::process::{Numbering, Process, Stage};
use super::rig::{Reply, Rig};
use crate::check;

/// Starts that may fail in a row before the faults end.
const FAULTY_STARTS_MAX: u64 = 4;
/// The programs.
const NAMES: [(&str, Numbering); 5] = [
    ("anna", Numbering::Dense),
    ("bert", Numbering::Dense),
    ("carl", Numbering::Dense),
    ("dora", Numbering::Sparse),
    ("nobody", Numbering::Anonymous),
];
/// Processes of one program that may be alive at once: one owner and its zombies.
const PROCESSES_MAX: usize = 3;
/// Streams that are made.
const STREAMS: u64 = 3;

/// A batch that waits for its answer.
#[derive(Debug)]
struct Sent {
    expected: Expected,
    /// Entries that had been ordered when it was decided.
    rests_on: usize,
    /// It is the oldest unanswered of its stream's window, and not a probe.
    is_of_window: Option<StreamId>,
}

/// A session's batches, in order.
#[derive(Debug)]
struct Line {
    process: usize,
    sent: VecDeque<Sent>,
}

/// What a request's reply must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Foretold {
    Stream(StreamId),
    /// With so many records.
    Removed(StreamId, u64),
    Producer(ProducerId, Epoch),
    Attached(Grant),
    Error(ErrorCode, Option<u64>),
}

#[derive(Debug)]
struct Asked {
    reply: Reply,
    foretold: Foretold,
    rests_on: usize,
    process: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    On,
    Down,
}

struct Crash {
    rng: SimulatedRng,
    rig: Rig,
    model: Model,
    processes: Vec<Process>,
    lines: BTreeMap<SessionKey, Line>,
    asked: Vec<Asked>,
    sessions: u64,
    attempts: u64,
    /// The newest wall clock in the log.
    wall_ms: i64,
    /// What a follower of each stream gets next.
    follows: BTreeMap<StreamId, u64>,
    has_fault: bool,
    /// The checkpoint of a copy of the folder that went on by itself, and the position it was made at.
    branch: Option<(MemoryCheckpoints, u64)>,
    tally: Tally,
}

/// Dies `crashes` times by what follows from `seed`.
pub(crate) fn run(seed: u64, crashes: u64, sabotages: Sabotages) -> Checked<Tally> {
    let mut rng = SimulatedRng::new(seed);
    let rig = Rig::new(rng.next_u64(), sabotages);
    let mut crash = Crash {
        rng,
        rig,
        model: Model::default(),
        processes: Vec::new(),
        lines: BTreeMap::new(),
        asked: Vec::new(),
        sessions: 0,
        attempts: 0,
        wall_ms: 0,
        follows: BTreeMap::new(),
        has_fault: false,
        branch: None,
        tally: Tally::default(),
    };
    for index in 0..NAMES.len() {
        crash.new_process(index);
    }
    for death in 0..crashes {
        crash.start().map_err(|text| format!("death {death}: start: {text}"))?;
        crash.live().map_err(|text| format!("death {death}: {text}"))?;
        crash.die();
    }
    crash.has_fault = false;
    crash.start().map_err(|text| format!("at the end: {text}"))?;
    Ok(crash.tally)
}

// Lives and deaths.

impl Crash {
    /// Starts until it works, dying in the middle of some starts.
    fn start(&mut self) -> Checked {
        for attempt in 0.. {
            if attempt < FAULTY_STARTS_MAX && self.rng.chance(4) {
                let reach = [6, 25, 60][self.rng.below(3) as usize];
                self.set_fault(reach);
            }
            self.tally.states += 1;
            match self.rig.open() {
                Ok(found) => {
                    check!(found.report.damages.is_empty(), "damage where there is none: {:?}", found.report.damages);
                    check!(found.contradictions.is_empty(), "contradictions: {:?}", found.contradictions);
                    self.tally.undone += u64::from(found.changes.len() < self.model.entries.len());
                    self.tally.segments += found.report.segments as u64;
                    self.tally.count_fate(&found.report.checkpoint);
                    self.model.judge_start(&found.changes, &found.state)?;
                    self.wall_ms = self.rig.life().now.time.wall_ms;
                    self.follows.clear();
                    match self.read_everything() {
                        Ok(()) => return Ok(()),
                        Err(text) => check!(self.rig.disk.is_stopped(), "{text}"),
                    }
                }
                Err(error) => check!(self.has_fault, "the log did not open, for no reason: {error}"),
            }
            self.die();
        }
        Ok(())
    }

    /// Something breaks within the next `reach` operations or so.
    fn set_fault(&mut self, reach: u64) {
        let disk = &self.rig.disk;
        let at = 1 + self.rng.below(reach);
        match self.rng.below(8) {
            0..=3 => disk.crash_at_operation(at),
            4 => disk.fail_sync(1 + at / 4),
            5 => disk.fail_write(1 + at / 2),
            6 => disk.short_write(1 + at / 2),
            _ => disk.fail_directory_sync(1 + at / 12),
        }
        self.has_fault = true;
    }

    /// The process ends, or the whole machine does. Nobody hears what was not answered.
    fn die(&mut self) {
        let durable = self.rig.durable_position();
        match self.rng.below(8) {
            0..=2 => self.rig.kill(),
            3..=5 => self.rig.cut_power_losing_unsynced(),
            _ => self.rig.cut_power(),
        }
        if self.rng.chance(4) {
            self.rig.disk.drop_caches();
        }
        match &self.branch {
            // Both have gone on from where they parted, and here something else stands where it was made.
            Some((checkpoints, made_at)) if *made_at < durable => {
                self.rig.checkpoints.replace_with(checkpoints);
                self.branch = None;
            }
            _ if self.rng.chance(3) => self.hurt_checkpoint(),
            None if self.rng.chance(4) => self.branch = self.rig.branch(self.rng.next_u64()),
            _ => {}
        }
        self.has_fault = false;
        self.lines.clear();
        self.asked.clear();
        self.processes.iter_mut().for_each(Process::disconnect);
        self.rig.wall_ms += match self.rng.below(6) {
            0 => -86_400_000,
            1 => 86_400_000,
            _ => 1_000,
        };
    }

    /// The checkpoint may be lost, be older than it was, lose or change a key silently, or fail to be written from now on.
    fn hurt_checkpoint(&mut self) {
        let number = self.rng.next_u64() as usize;
        let checkpoints = &self.rig.checkpoints;
        checkpoints.fail_saves(false);
        match self.rng.below(6) {
            0 => checkpoints.clear(),
            1 | 2 => checkpoints.go_back(1 + number % 3),
            3 => drop(checkpoints.lose_key(number)),
            4 => drop(checkpoints.flip_value(number)),
            _ => checkpoints.fail_saves(true),
        }
    }

    /// Works until something fails, or for a while.
    fn live(&mut self) -> Checked {
        if self.rng.chance(2) {
            let reach = [20, 60, 150][self.rng.below(3) as usize];
            self.set_fault(reach);
        }
        for _ in 0..self.rng.below(240) {
            let way = self.act()?;
            self.hear()?;
            if way == Way::Down {
                break;
            }
        }
        if self.rng.chance(8) && !self.rig.sequencer().is_poisoned() && self.come_to_rest()? == Way::On {
            self.check_rest()?;
        }
        Ok(())
    }

    fn act(&mut self) -> Checked<Way> {
        let now = &mut self.rig.life().now;
        now.time.log_ms += 3;
        now.monotonic += std::time::Duration::from_millis(3);
        // The wall clock may jump back; the log's does not.
        now.time.wall_ms += if now.time.log_ms.is_multiple_of(17) { -40 } else { 3 };
        match self.rng.below(64) {
            0..=33 => {
                let is_alive = |index: &usize| self.processes[*index].stage != Stage::Ended;
                let alive: Vec<usize> = (0..self.processes.len()).filter(is_alive).collect();
                if alive.is_empty() {
                    return Ok(Way::On);
                }
                let chosen = self.rng.below(alive.len() as u64) as usize;
                self.act_as(alive[chosen])
            }
            34..=36 => {
                self.rig.hand_over();
                Ok(Way::On)
            }
            37..=50 => self.at_the_writer(Rig::step),
            51 | 52 => self.at_the_writer(Rig::commit),
            53 => self.at_the_writer(Rig::quiet),
            54 | 55 => Ok(self.beside(|rig| rig.run_job().map(|_| ()))),
            56 => Ok(self.beside(Rig::prepare_spare)),
            57 => self.look(),
            58 => match self.read_everything() {
                Ok(()) => Ok(Way::On),
                Err(text) => {
                    check!(self.rig.disk.is_stopped(), "{text}");
                    Ok(Way::Down)
                }
            },
            59 => {
                if self.come_to_rest()? == Way::Down {
                    return Ok(Way::Down);
                }
                self.check_rest()?;
                Ok(Way::On)
            }
            60 | 61 => {
                let name = self.rng.below(STREAMS);
                self.create_stream(&format!("stream-{name}"))
            }
            62 => {
                let index = self.rng.below(NAMES.len() as u64) as usize;
                self.new_process(index);
                Ok(Way::On)
            }
            _ => match self.rng.below(8) {
                0 => self.hang(),
                1..=3 => self.remove_stream(),
                _ => {
                    self.rig.save_checkpoint();
                    Ok(Way::On)
                }
            },
        }
    }

    /// The log thread at work. A failure poisons the broker, and then nothing leaves any more.
    fn at_the_writer(&mut self, work: impl FnOnce(&mut Rig) -> Checked) -> Checked<Way> {
        match work(&mut self.rig) {
            Ok(()) => Ok(Way::On),
            Err(text) => {
                check!(self.has_fault, "the writer failed for no reason: {text}");
                self.hear()?;
                self.live_on_poisoned()
            }
        }
    }

    /// A failure beside the log harms nothing, unless the machine has stopped.
    fn beside(&mut self, work: impl FnOnce(&mut Rig) -> std::io::Result<()>) -> Way {
        match work(&mut self.rig) {
            Err(_) if self.rig.disk.is_stopped() => Way::Down,
            outcome => {
                assert!(outcome.is_ok() || self.has_fault, "a job failed for no reason: {outcome:?}");
                Way::On
            }
        }
    }

    /// A sync hangs past its time limit, and returns ok all the same: too late.
    fn hang(&mut self) -> Checked<Way> {
        self.rig.life().sequencer.poison();
        let way = self.live_on_poisoned()?;
        while self.rig.stage().is_some() {
            if self.rig.step().is_err() {
                break;
            }
        }
        check!(self.rig.told().answers.is_empty(), "an answer left a poisoned broker: {:?}", self.rig.told().answers);
        check!(self.rig.told().delivered.is_empty(), "a consumer was served by a commit after the poison");
        Ok(way)
    }

    /// What a poisoned broker still does: refuse.
    fn live_on_poisoned(&mut self) -> Checked<Way> {
        self.tally.poisoned += 1;
        check!(self.rig.sequencer().is_poisoned(), "the writer failed and the broker goes on");
        for asked in &mut self.asked {
            let reply = asked.reply.try_recv();
            check!(reply.is_err(), "a reply left a poisoned broker: {reply:?}");
        }
        self.asked.clear();
        let before = self.rig.sequencer().log().content_end();
        for process in 0..self.processes.len() {
            let Stage::Attached { id, epoch, session, grant } = self.processes[process].stage else { continue };
            let Some(made) = self.processes[process].outputs.values().find_map(|output| output.window.back().cloned())
            else {
                continue;
            };
            self.rig.publish(session, &grant, &made.bytes)?;
            let answer = self.rig.told().answers.pop_front().map(|(_, answer)| answer.outcome);
            let poisoned = Outcome::Refused { code: ErrorCode::Poisoned, detail: 0 };
            check!(answer == Some(poisoned), "a poisoned broker answered {answer:?}");
            let (granted, reply) = self.rig.attach(id, epoch, self.processes[process].attempt);
            let reply = self.rig.now_replied(reply)?;
            check!(granted == Err(ErrorCode::Poisoned), "a poisoned broker let somebody write: {reply:?}");
        }
        let reply = self.rig.open_producer("late", 0, 1)?;
        let reply = self.rig.now_replied(reply)?;
        check!(is_error(&reply, ErrorCode::Poisoned, None), "a poisoned broker opened a producer: {reply:?}");
        let reply = self.rig.create_stream("late", true)?;
        let reply = self.rig.now_replied(reply)?;
        check!(is_error(&reply, ErrorCode::Poisoned, None), "a poisoned broker made a stream: {reply:?}");
        check!(self.rig.stage().is_some() || !self.rig.hand_over(), "a poisoned broker wrote on");
        check!(self.rig.sequencer().log().content_end() == before, "a poisoned broker appended");
        Ok(Way::Down)
    }

    fn come_to_rest(&mut self) -> Checked<Way> {
        if self.at_the_writer(Rig::commit)? == Way::Down || self.at_the_writer(Rig::quiet)? == Way::Down {
            return Ok(Way::Down);
        }
        self.hear()?;
        Ok(Way::On)
    }

    /// Everything is durable: nothing waits, the two folds are one, and followers have it all.
    fn check_rest(&mut self) -> Checked {
        check!(self.rig.is_quiet(), "something is not durable after a commit");
        let sequencer = self.rig.sequencer();
        check!(sequencer.answers_waiting() == 0, "{} answers wait for nothing", sequencer.answers_waiting());
        check!(sequencer.ordered() == sequencer.durable(), "the two folds differ at rest");
        check!(self.lines.values().all(|line| line.sent.is_empty()), "a batch was not answered");
        check!(self.asked.is_empty(), "a request was not answered");
        for (stream, next) in &self.follows {
            let tail = self.model.tail(*stream);
            check!(*next == tail, "a follower of stream {stream} got all up to {next}, which ends at {tail}");
        }
        Ok(())
    }
}

// What is seen.

impl Crash {
    fn durable_count(&self) -> usize {
        self.model.count_below(self.rig.sequencer().durable_position())
    }

    /// Somebody looks at what the broker shows of its durable state.
    fn look(&mut self) -> Checked<Way> {
        let count = self.durable_count();
        let fold = count.checked_sub(1).and_then(|last| self.model.entries[last].fold.as_ref());
        if let Some(fold) = fold {
            check!(fold == self.rig.sequencer().durable(), "the durable fold is not that of what is durable");
        }
        self.model.told(count);
        // Folds further back are of no more use.
        self.model.entries.iter_mut().take(count.saturating_sub(1)).for_each(|entry| entry.fold = None);
        Ok(Way::On)
    }

    /// A consumer reads every stream from its start.
    fn read_everything(&mut self) -> Checked {
        let count = self.durable_count();
        let streams: Vec<StreamId> =
            self.rig.sequencer().durable().catalogue.list(None, 100).0.into_iter().map(|stream| stream.id).collect();
        for stream in streams {
            let outcomes = self.rig.read(stream, 0)?;
            self.model.compare_read(stream, 0, count, &outcomes)?;
        }
        self.model.told(count);
        Ok(())
    }

    /// Takes in all that has left the broker.
    fn hear(&mut self) -> Checked {
        while let Some((session, answer)) = self.rig.told().answers.pop_front() {
            self.hear_answer(session, answer)?;
        }
        for mut asked in std::mem::take(&mut self.asked) {
            match asked.reply.try_recv() {
                Ok(reply) => self.hear_reply(&asked, reply)?,
                Err(tokio::sync::oneshot::error::TryRecvError::Empty) => self.asked.push(asked),
                Err(error) => check!(self.rig.sequencer().is_poisoned(), "a request was dropped: {error}"),
            }
        }
        while let Some((stream, live)) = self.rig.told().delivered.pop_front() {
            let batch = &live.batch;
            let is_it = |entry: &Entry| {
                entry.batch().is_some_and(|batch| batch.header.stream == stream) && is_read_as(entry, &live.batch)
            };
            let at = self.model.entries.iter().position(is_it);
            let Some(at) = at else { return Err(format!("a follower of stream {stream} got {batch:?}")) };
            let next = self.follows.entry(stream).or_insert(batch.base_offset);
            check!(*next == batch.base_offset, "a follower that expected offset {next} got {batch:?}");
            *next = batch.next_offset();
            self.model.told(at + 1);
            self.tally.delivered += 1;
        }
        for stream in std::mem::take(&mut self.rig.told().removed) {
            let count = self.model.count_to_removal(stream);
            let Some(count) = count else { return Err(format!("stream {stream} went for no reason")) };
            self.model.told(count);
            self.follows.remove(&stream);
        }
        Ok(())
    }

    fn hear_answer(&mut self, session: SessionKey, answer: Answer) -> Checked {
        let Some(line) = self.lines.get_mut(&session) else { return Err(format!("{answer:?} to nobody")) };
        let Some(sent) = line.sent.pop_front() else { return Err(format!("{answer:?} to nothing")) };
        check!(is_as_expected(&sent.expected, &answer), "instead of {:?} the answer was {answer:?}", sent.expected);
        self.model.told(sent.rests_on);
        self.tally.count(&answer);
        let process = &mut self.processes[line.process];
        match answer.outcome {
            Outcome::Refused { code: ErrorCode::Fenced, .. } => process.stage = Stage::Ended,
            Outcome::Refused { code: ErrorCode::StreamGone, .. } => {
                if let Some(stream) = sent.is_of_window {
                    process.give_up(stream);
                }
            }
            Outcome::Refused { .. } => {
                check!(sent.is_of_window.is_none(), "an honest batch of {} was refused: {answer:?}", process.name);
            }
            Outcome::Stored | Outcome::Duplicate => {
                if let Some(output) = sent.is_of_window.and_then(|stream| process.outputs.get_mut(&stream)) {
                    output.settle();
                }
            }
        }
        Ok(())
    }

    fn hear_reply(&mut self, asked: &Asked, reply: ResponseResult) -> Checked {
        let is_it = match (&asked.foretold, &reply) {
            (Foretold::Stream(id), ResponseResult::Ok(Response::Stream(stream))) => stream.id == *id,
            (Foretold::Removed(id, tail), ResponseResult::Ok(Response::Stream(stream))) => {
                stream.id == *id && stream.tail.get() == *tail
            }
            (Foretold::Producer(id, epoch), ResponseResult::Ok(Response::Producer(producer))) => {
                producer.id == *id && producer.epoch == *epoch
            }
            (Foretold::Attached(_), ResponseResult::Ok(Response::Attached)) => true,
            (Foretold::Error(code, detail), reply) => is_error(reply, *code, *detail),
            _ => false,
        };
        check!(is_it, "instead of {:?} the reply was {reply:?}", asked.foretold);
        self.model.told(asked.rests_on);
        let Some(index) = asked.process else { return Ok(()) };
        let process = &mut self.processes[index];
        process.is_waiting = false;
        match asked.foretold {
            Foretold::Producer(id, epoch) => process.stage = Stage::Opened { id, epoch },
            Foretold::Attached(grant) => {
                let Stage::Attaching { id, epoch } = process.stage else {
                    return Err(format!("{} was attached out of nowhere", process.name));
                };
                self.sessions += 1;
                let session = SessionKey(self.sessions);
                process.stage = Stage::Attached { id, epoch, session, grant };
                self.lines.insert(session, Line { process: index, sent: VecDeque::new() });
            }
            // Somebody else has the name.
            Foretold::Error(ErrorCode::Fenced, _) => process.stage = Stage::Ended,
            Foretold::Error(code, _) => return Err(format!("{} was refused: {code:?}", process.name)),
            Foretold::Stream(_) | Foretold::Removed(..) => {}
        }
        Ok(())
    }
}

fn is_as_expected(expected: &Expected, answer: &Answer) -> bool {
    let base_offset = answer.base_offset.map(|offset| offset.get());
    match (*expected, answer.outcome) {
        (Expected::Stored { base_offset: at, skip }, Outcome::Stored) => base_offset == Some(at) && answer.skip == skip,
        (Expected::Duplicate { base_offset: at, must_tell }, Outcome::Duplicate) => {
            answer.skip == 0 && (base_offset == at || (base_offset.is_none() && !must_tell))
        }
        (Expected::Refused { code, detail }, Outcome::Refused { code: told, detail: told_detail }) => {
            (code, detail) == (told, told_detail)
        }
        _ => false,
    }
}

fn is_error(reply: &ResponseResult, code: ErrorCode, detail: Option<u64>) -> bool {
    matches!(reply, ResponseResult::Error(error) if error.code == code.number() && (detail.is_none() || error.detail == detail))
}
