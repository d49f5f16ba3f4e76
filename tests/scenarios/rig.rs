//! The sequencer and its log on a simulated machine, moved step by step: what the broker's threads do, on one thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidelog::counters::Counters;
use tidelog::sequencer::{LiveBatch, Now, ReplySender, Sequencer, SequencerStart, SessionKey, Sink, Step, Supply};
use tidelog::state::{Change, Grant, State};
use tidelog_protocol::{
    Answer, AttemptId, Epoch, ErrorCode, Limits, ProducerId, ProducerName, Response, ResponseResult, StreamId,
    StreamName, StreamSettings,
};
use tidelog_storage::medium::{Medium, MediumFile, SimulatedMedium, read_exact_at};
use tidelog_storage::{
    Entropy, EntryMark, FillPace, Group, GroupBytes, Housekeeping, Job, JobOutcome, LogOptions, MemoryCheckpoints,
    OpenError, ReadOutcome, RecoveryReport, Sabotage, Sabotages, Writer, open_from,
};
use tokio::sync::oneshot;

mod checkpoints;

use self::checkpoints::Folded;
use super::Checked;

/// Where entries begin in a segment's file, as `FORMAT.md` has it.
const ENTRIES_AT: u64 = 8_192;

/// What has left the sequencer and was not looked at yet.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) answers: VecDeque<(SessionKey, Answer)>,
    pub(crate) delivered: VecDeque<(StreamId, LiveBatch)>,
    pub(crate) removed: Vec<StreamId>,
    pub(crate) is_followed: bool,
}

impl Sink for Told {
    fn answer(&mut self, session: SessionKey, answer: Answer) {
        self.answers.push_back((session, answer));
    }

    fn wants(&self, _: StreamId) -> bool {
        self.is_followed
    }

    fn deliver(&mut self, stream: StreamId, batch: LiveBatch) {
        self.delivered.push_back((stream, batch));
    }

    fn remove(&mut self, stream: StreamId) {
        self.removed.push(stream);
    }
}

/// A reply to come.
pub(crate) type Reply = oneshot::Receiver<ResponseResult>;

/// How far the group at the writer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Taken,
    Written,
    Synced,
}

/// What a start found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Every change of the log, in order.
    pub(crate) changes: Vec<Change>,
    /// Their fold.
    pub(crate) state: State,
    /// What in them contradicts itself, or the checkpoint.
    pub(crate) contradictions: Vec<String>,
    pub(crate) report: RecoveryReport,
}

/// One run of the process.
pub(crate) struct Life {
    pub(crate) sequencer: Sequencer,
    writer: Writer,
    housekeeping: Housekeeping,
    reader: tidelog_storage::ColdReader,
    jobs: VecDeque<Job>,
    at_writer: Option<(Group, GroupBytes, Stage)>,
    pub(crate) told: Told,
    pub(crate) now: Now,
    _lock: Box<dyn std::any::Any + Send + Sync>,
}

/// The machine, and the broker on it.
pub(crate) struct Rig {
    pub(crate) disk: SimulatedMedium,
    pub(crate) options: LogOptions,
    pub(crate) limits: Limits,
    pub(crate) wall_ms: i64,
    pub(crate) checkpoints: MemoryCheckpoints,
    /// The one that the next one builds on.
    newest_checkpoint: Option<EntryMark>,
    life: Option<Life>,
    lives: u64,
    seed: u64,
}

/// Small segments, so that a run goes through many.
pub(crate) fn small_options(sabotages: Sabotages) -> LogOptions {
    LogOptions {
        segment_first_bytes: 64 << 10,
        segment_bytes: 96 << 10,
        payload_bytes_max: 8 << 10,
        sabotages,
        ..LogOptions::default()
    }
}

impl Rig {
    pub(crate) fn new(seed: u64, sabotages: Sabotages) -> Self {
        Self {
            disk: SimulatedMedium::new(seed),
            options: small_options(sabotages),
            limits: Limits::default(),
            wall_ms: 1_700_000_000_000,
            checkpoints: MemoryCheckpoints::new(),
            newest_checkpoint: None,
            life: None,
            lives: 0,
            seed,
        }
    }

    /// A rig whose broker runs.
    pub(crate) fn started(seed: u64, sabotages: Sabotages) -> Self {
        let mut rig = Self::new(seed, sabotages);
        rig.open().unwrap();
        rig
    }

    pub(crate) fn life(&mut self) -> &mut Life {
        self.life.as_mut().expect("the broker runs")
    }

    pub(crate) fn sequencer(&self) -> &Sequencer {
        &self.life.as_ref().expect("the broker runs").sequencer
    }

    pub(crate) fn told(&mut self) -> &mut Told {
        &mut self.life().told
    }

    fn has(&self, sabotage: Sabotage) -> bool {
        self.options.sabotages.has(sabotage)
    }

    // Lives.

    /// Starts the broker on what is there, as `broker.rs` does.
    pub(crate) fn open(&mut self) -> Result<Found, Box<OpenError>> {
        self.life = None;
        self.lives += 1;
        let sabotages = self.options.sabotages;
        let entropy = Entropy::Seeded(self.seed.wrapping_mul(0x9E37_79B9) ^ (self.lives << 40));
        let options = LogOptions { entropy, ..self.options.clone() };
        // The same moment on another machine, where nothing fails and there is no checkpoint.
        let whole = self.disk.fork(self.seed);
        let medium: Arc<dyn Medium> = Arc::new(self.disk.for_this_life());
        let mut folded = Folded::new(sabotages);
        let log = open_from(&medium, &options, self.wall_ms, &mut self.checkpoints, &mut folded)?;
        let mut contradictions = folded.contradictions;
        let whole = checkpoints::open_whole(&whole, &options, self.wall_ms);
        contradictions.extend(checkpoints::difference(&whole, &log, &folded.state));
        let (all, mut state) = (whole.changes, folded.state);
        self.newest_checkpoint = log.went_on_from;
        if sabotages.has(Sabotage::ForgetProducers) {
            state.producers.forget_sequences();
        }
        let found = Found { changes: all, state: state.clone(), contradictions, report: log.report };
        let mut sequencer = Sequencer::new(SequencerStart {
            state,
            log: log.appender,
            durable_position: log.durable,
            time: log.time,
            limits: self.limits.clone(),
            counters: Arc::new(Counters::new()),
            sabotages,
        });
        sequencer.set_durable_stamp(log.stamp);
        self.life = Some(Life {
            sequencer,
            writer: log.writer,
            housekeeping: log.housekeeping,
            reader: log.reader,
            jobs: log.jobs.into(),
            at_writer: None,
            told: Told { is_followed: true, ..Told::default() },
            now: Now { time: log.time, monotonic: Duration::ZERO },
            _lock: log.lock,
        });
        Ok(found)
    }

    /// SIGKILL: the page cache stays.
    pub(crate) fn kill(&mut self) {
        self.life = None;
        self.disk.kill();
    }

    /// A power cut: what was not synced is there or not.
    pub(crate) fn cut_power(&mut self) {
        self.life = None;
        self.disk.crash();
    }

    /// A power cut after which nothing is there that was not synced.
    pub(crate) fn cut_power_losing_unsynced(&mut self) {
        self.life = None;
        self.disk.crash_losing_unsynced();
    }

    /// An orderly end.
    pub(crate) fn close(&mut self) -> Checked {
        self.commit()?;
        self.quiet()?;
        self.life = None;
        Ok(())
    }

    // Requests.

    /// As [`Sequencer::publish`]; a new segment is prepared if it needs one.
    pub(crate) fn publish(&mut self, session: SessionKey, grant: &Grant, batch: &Bytes) -> Checked<Step> {
        self.with_room(|life| match life.sequencer.publish(session, grant, batch, life.now, &mut life.told) {
            Step::NoRoom => None,
            step => Some(step),
        })
    }

    pub(crate) fn create_stream(&mut self, name: &str, if_not_exists: bool) -> Checked<Reply> {
        let name = StreamName::new(name).unwrap();
        self.create_stream_with(&name, if_not_exists, &StreamSettings::default())
    }

    pub(crate) fn create_stream_with(
        &mut self,
        name: &StreamName,
        if_not_exists: bool,
        settings: &StreamSettings,
    ) -> Checked<Reply> {
        self.request(|life, to| life.sequencer.create_stream(name, if_not_exists, settings, life.now, to))
    }

    pub(crate) fn remove_stream(&mut self, stream: StreamId) -> Checked<Reply> {
        self.request(|life, to| life.sequencer.remove_stream(stream, life.now, to))
    }

    pub(crate) fn open_producer(&mut self, name: &str, found: u64, attempt: u8) -> Checked<Reply> {
        self.open_producer_as(&ProducerName::new(name).unwrap(), Epoch::new(found), AttemptId::new([attempt; 16]))
    }

    pub(crate) fn open_producer_as(&mut self, name: &ProducerName, found: Epoch, attempt: AttemptId) -> Checked<Reply> {
        self.request(|life, to| life.sequencer.open_producer(name, found, attempt, life.now, to))
    }

    pub(crate) fn attach(
        &mut self,
        producer: ProducerId,
        epoch: Epoch,
        attempt: AttemptId,
    ) -> (Result<Grant, ErrorCode>, Reply) {
        let (to, reply) = oneshot::channel();
        (self.life().sequencer.attach(producer, epoch, attempt, to), reply)
    }

    fn request(&mut self, mut put: impl FnMut(&mut Life, ReplySender) -> Result<(), ReplySender>) -> Checked<Reply> {
        let (to, reply) = oneshot::channel();
        let mut to = Some(to);
        self.with_room(|life| match put(life, to.take()?) {
            Ok(()) => Some(()),
            Err(back) => {
                to = Some(back);
                None
            }
        })?;
        Ok(reply)
    }

    fn with_room<T>(&mut self, mut put: impl FnMut(&mut Life) -> Option<T>) -> Checked<T> {
        for _ in 0..3 {
            if let Some(done) = put(self.life()) {
                return Ok(done);
            }
            // A fault that strikes once must not stop it; a stopped machine does.
            if let Err(error) = self.prepare_spare() {
                self.prepare_spare().map_err(|again| format!("no segment: {error}, and again: {again}"))?;
            }
        }
        Err("a prepared segment made no room".to_owned())
    }

    // The log thread.

    /// Gives the next group to the writer, unless it has one, as the driver in `engine/driver.rs` does.
    pub(crate) fn hand_over(&mut self) -> bool {
        let serves_unsynced = self.has(Sabotage::ServeUnsynced);
        let life = self.life();
        if life.at_writer.is_none()
            && let Some(group) = life.sequencer.take_group()
        {
            let bytes = group.share();
            if serves_unsynced {
                life.sequencer.apply_durable(group.end(), &bytes, &mut life.told);
            }
            life.at_writer = Some((group, bytes, Stage::Taken));
        }
        life.at_writer.is_some()
    }

    /// How far the group at the writer is.
    pub(crate) fn stage(&self) -> Option<Stage> {
        self.life.as_ref()?.at_writer.as_ref().map(|(_, _, stage)| *stage)
    }

    /// One step of the group at the writer; a failure poisons the broker.
    pub(crate) fn step(&mut self) -> Checked {
        let life = self.life();
        let Some((mut group, bytes, stage)) = life.at_writer.take() else { return Ok(()) };
        let stepped = match stage {
            Stage::Taken => life.writer.write(&mut group).map(|sealed| {
                life.jobs
                    .extend(sealed.map(|sealed| Job::TrimSegment { number: sealed.number, file_len: sealed.file_len }));
                Some(Stage::Written)
            }),
            Stage::Written => life.writer.sync().map(|()| Some(Stage::Synced)),
            Stage::Synced => life.writer.prove(&group).map(|()| None),
        };
        match stepped {
            Ok(Some(next)) => life.at_writer = Some((group, bytes, next)),
            Ok(None) => {
                life.sequencer.handle_committed(group.end(), &bytes, life.now.monotonic, &mut life.told);
                let sealed = life.sequencer.log_mut().index_mut().take_sealed();
                life.jobs.extend(sealed.into_iter().map(Job::WriteFooter));
            }
            Err(poisoned) => {
                life.sequencer.poison();
                return Err(poisoned.to_string());
            }
        }
        Ok(())
    }

    /// Commits all that was appended.
    pub(crate) fn commit(&mut self) -> Checked {
        while self.hand_over() {
            self.step()?;
        }
        Ok(())
    }

    /// Syncs the last watermark, as after a few idle milliseconds.
    pub(crate) fn quiet(&mut self) -> Checked {
        let life = self.life();
        if let Err(poisoned) = life.writer.quiet() {
            life.sequencer.poison();
            return Err(poisoned.to_string());
        }
        Ok(())
    }

    /// Whether everything that was appended is durable.
    pub(crate) fn is_quiet(&self) -> bool {
        self.stage().is_none() && self.sequencer().undurable_bytes() == 0
    }

    // The other threads.

    /// Does this job now.
    pub(crate) fn job(&mut self, job: Job) -> std::io::Result<()> {
        self.life().jobs.push_front(job);
        self.run_job().map(|_| ())
    }

    /// Does one job; a failed one waits for another try.
    pub(crate) fn run_job(&mut self) -> std::io::Result<bool> {
        let life = self.life();
        let Some(job) = life.jobs.pop_front() else { return Ok(false) };
        match life.housekeeping.run(&job) {
            Ok(JobOutcome::FooterWritten { segment }) => life.sequencer.log_mut().index_mut().footer_written(segment),
            Ok(JobOutcome::Spare(spare)) => life.sequencer.log_mut().put_spare(spare),
            Ok(JobOutcome::Reserve(reserve)) => {
                reserve.into_iter().for_each(|reserve| life.sequencer.log_mut().put_reserve(reserve));
            }
            Ok(JobOutcome::Done) => {}
            Err(error) => {
                life.jobs.push_back(job);
                return Err(error);
            }
        }
        Ok(true)
    }

    pub(crate) fn prepare_spare(&mut self) -> std::io::Result<()> {
        let life = self.life();
        if let Some(len) = life.sequencer.log().spare_wanted()
            && let JobOutcome::Spare(spare) =
                life.housekeeping.run(&Job::PrepareSpare { len, pace: FillPace::Ordinary })?
        {
            life.sequencer.log_mut().put_spare(spare);
            life.sequencer.set_supply(Supply::Coming);
        }
        Ok(())
    }

    /// Everything durable of a stream from an offset on, as a consumer that is behind gets it.
    pub(crate) fn read(&mut self, stream: StreamId, from: u64) -> Checked<Vec<ReadOutcome>> {
        let life = self.life();
        let visible_end = life.sequencer.durable_position();
        let (mut outcomes, mut next) = (Vec::new(), from);
        loop {
            let Some(mut plan) = life.sequencer.log().index().plan(stream.get(), next) else { return Ok(outcomes) };
            let mut is_new = false;
            while !plan.is_used_up() {
                let read = life.reader.read(&mut plan, visible_end, 10_000).map_err(|error| error.to_string())?;
                is_new |= !read.is_empty();
                outcomes.extend(read);
            }
            next = plan.offset();
            if !is_new {
                return Ok(outcomes);
            }
        }
    }

    // Damage.

    /// Flips a bit in the byte at a log position, in the page cache and on the disk.
    pub(crate) fn flip(&self, position: u64) {
        let names =
            self.disk.list().unwrap().into_iter().map(|file| file.name).filter(|name| name.starts_with("segment-"));
        let (base, name) =
            names.map(|name| (self.base_of(&name), name)).filter(|(base, _)| *base <= position).max().unwrap();
        self.disk.flip_bit(&name, ENTRIES_AT + position - base, 3).unwrap();
    }

    /// The base position in a segment's header.
    fn base_of(&self, name: &str) -> u64 {
        let file: Arc<dyn MediumFile> = self.disk.open_read(name).unwrap();
        let mut bytes = [0; 8];
        read_exact_at(file.as_ref(), &mut bytes, 48).unwrap();
        u64::from_le_bytes(bytes)
    }

    // Shorthand for scenarios in which nothing fails.

    /// The reply, which must have left.
    pub(crate) fn now_replied(&self, mut reply: Reply) -> Checked<ResponseResult> {
        reply.try_recv().map_err(|_| "a reply has not left though all it rests on is durable".to_owned())
    }

    /// Makes a stream, durably.
    pub(crate) fn stream(&mut self, name: &str) -> Checked<StreamId> {
        let reply = self.create_stream(name, true)?;
        self.commit()?;
        match self.now_replied(reply)? {
            ResponseResult::Ok(Response::Stream(stream)) => Ok(stream.id),
            other => Err(format!("stream '{name}' was not made: {other:?}")),
        }
    }

    /// Removes a stream, durably.
    pub(crate) fn removed(&mut self, stream: StreamId) -> Checked {
        let reply = self.remove_stream(stream)?;
        self.commit()?;
        match self.now_replied(reply)? {
            ResponseResult::Ok(Response::Stream(removed)) if removed.id == stream => Ok(()),
            other => Err(format!("stream {stream} was not removed: {other:?}")),
        }
    }

    /// Opens a producer from the epoch it has, durably, and attaches a session.
    pub(crate) fn session(&mut self, name: &str, attempt: u8) -> Checked<Grant> {
        let name = ProducerName::new(name).unwrap();
        let found = self.sequencer().durable().producers.describe(&name).epoch;
        let attempt = AttemptId::new([attempt; 16]);
        let reply = self.open_producer_as(&name, found, attempt)?;
        self.commit()?;
        let opened = match self.now_replied(reply)? {
            ResponseResult::Ok(Response::Producer(opened)) => opened,
            other => return Err(format!("producer '{name}' was not opened: {other:?}")),
        };
        let (grant, reply) = self.attach(opened.id, opened.epoch, attempt);
        let reply = self.now_replied(reply)?;
        grant.map_err(|code| format!("producer '{name}' was not attached: {code:?}, {reply:?}"))
    }

    /// Publishes and commits; the one answer to it.
    pub(crate) fn settle(&mut self, session: SessionKey, grant: &Grant, batch: &Bytes) -> Checked<Answer> {
        self.told().answers.clear();
        self.publish(session, grant, batch)?;
        self.commit()?;
        match self.told().answers.pop_front() {
            Some((to, answer)) if to == session && self.told().answers.is_empty() => Ok(answer),
            other => Err(format!("instead of one answer there was {other:?}")),
        }
    }
}
