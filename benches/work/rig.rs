//! A sequencer over a log on any medium, stepped by hand: no sockets, no threads.

use std::any::Any;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidelog::counters::Counters;
use tidelog::sequencer::{
    LiveBatch, Now, Ordered, ReplySender, Sequencer, SequencerStart, SessionKey, Sink, Snapshot, Step,
};
use tidelog::state::{Grant, State};
use tidelog_protocol::{
    Answer, AttemptId, Epoch, Limits, ProducerName, Response, ResponseResult, StreamId, StreamName, StreamSettings,
};
use tidelog_storage::medium::{Medium, MemoryMedium};
use tidelog_storage::{
    FillPace, Group, GroupBytes, Housekeeping, Job, JobOutcome, LogOptions, OpenedLog, ReplayTime, Sabotages, Writer,
    open,
};
use tokio::sync::oneshot;

const NOW: Now = Now { time: ReplayTime { wall_ms: 1, log_ms: 1 }, monotonic: Duration::ZERO };
const SESSION: SessionKey = SessionKey(1);

/// A log in memory is given up when it has become so long, in bytes.
const MEMORY_LOG_BYTES_MAX: u64 = 1 << 30;

/// Takes answers and gives them to nobody.
struct Nobody;

impl Sink for Nobody {
    fn answer(&mut self, _session: SessionKey, answer: Answer) {
        black_box(answer);
    }

    fn wants(&self, _stream: StreamId) -> bool {
        false
    }

    fn deliver(&mut self, _stream: StreamId, _batch: LiveBatch) {}

    fn remove(&mut self, _stream: StreamId) {}
}

/// See the module's documentation.
pub(crate) struct Rig {
    sequencer: Sequencer,
    writer: Writer,
    housekeeping: Housekeeping,
    /// Keeps the folder locked; dropped last.
    _lock: Box<dyn Any + Send + Sync>,
}

impl Rig {
    pub(crate) fn in_memory() -> Self {
        Self::start(&(Arc::new(MemoryMedium::new()) as Arc<dyn Medium>))
    }

    /// On an empty medium.
    pub(crate) fn start(medium: &Arc<dyn Medium>) -> Self {
        let log = open(medium, &LogOptions::default(), 0, &mut |_| {}).expect("an empty log opens");
        let OpenedLog { appender, writer, housekeeping, jobs, durable, time, stamp, lock, .. } = log;
        let mut sequencer = Sequencer::new(SequencerStart {
            state: State::new(Sabotages::default()),
            log: appender,
            durable_position: durable,
            time,
            limits: Limits::default(),
            counters: Arc::new(Counters::new()),
            sabotages: Sabotages::default(),
        });
        sequencer.set_durable_stamp(stamp);
        let mut rig = Self { sequencer, writer, housekeeping, _lock: lock };
        jobs.iter().for_each(|job| rig.run(job));
        rig.supply();
        rig
    }

    pub(crate) fn create_stream(&mut self, name: &str) -> StreamId {
        let name = StreamName::new(name).expect("a good name");
        let made = |sequencer: &mut Sequencer, to: ReplySender| {
            sequencer.create_stream(&name, true, &StreamSettings::default(), NOW, to)
        };
        let Response::Stream(stream) = self.asked(made) else { panic!("no stream was made") };
        stream.id
    }

    pub(crate) fn open_producer(&mut self, name: &str) -> Grant {
        let name = ProducerName::new(name).expect("a good name");
        let opened = |sequencer: &mut Sequencer, to: ReplySender| {
            sequencer.open_producer(&name, Epoch::NONE, AttemptId::new([1; 16]), NOW, to)
        };
        let Response::Producer(producer) = self.asked(opened) else { panic!("no producer was opened") };
        Grant { producer: producer.id, epoch: producer.epoch }
    }

    /// The answer of a request, once it is durable.
    fn asked(&mut self, ask: impl Fn(&mut Sequencer, ReplySender) -> Result<(), ReplySender>) -> Response {
        let (mut to, mut answer) = oneshot::channel();
        while let Err(back) = ask(&mut self.sequencer, to) {
            to = back;
            self.commit();
        }
        self.commit();
        match answer.try_recv() {
            Ok(ResponseResult::Ok(response)) => response,
            other => panic!("{other:?}"),
        }
    }

    /// Judges a batch and appends it.
    pub(crate) fn publish(&mut self, grant: &Grant, batch: &Bytes) {
        let step = self.sequencer.publish(SESSION, grant, batch, NOW, &mut Nobody);
        assert_eq!(step, Step::Decided(Ordered::Appended), "nothing is in the way");
    }

    /// The open group, closed, and its bytes for live delivery: what the driver hands over.
    pub(crate) fn take_group(&mut self) -> Option<(Group, GroupBytes)> {
        let group = self.sequencer.take_group()?;
        let bytes = group.share();
        Some((group, bytes))
    }

    /// What the log thread does; returns the durable position.
    pub(crate) fn write(&mut self, group: &mut Group) -> u64 {
        let committed = self.writer.commit(group).expect("nothing fails");
        if let Some(sealed) = committed.sealed {
            self.run(&Job::TrimSegment { number: sealed.number, file_len: sealed.file_len });
            let footers = self.sequencer.log_mut().index_mut().take_sealed();
            footers.into_iter().for_each(|index| self.run(&Job::WriteFooter(index)));
        }
        committed.end
    }

    /// Applies what is durable and lets the answers go.
    pub(crate) fn settle(&mut self, end: u64, bytes: &GroupBytes) {
        self.sequencer.handle_committed(end, bytes, Duration::from_millis(1), &mut Nobody);
    }

    /// All of it, until nothing waits; then a file for the next segment is ready.
    pub(crate) fn commit(&mut self) {
        while let Some((mut group, bytes)) = self.take_group() {
            let end = self.write(&mut group);
            self.settle(end, &bytes);
        }
        self.supply();
    }

    /// What a checkpoint of all of it holds.
    pub(crate) fn snapshot(&mut self) -> Snapshot {
        self.sequencer.snapshot(true).expect("a log that was just opened has a stamp")
    }

    /// Writes the active segment's footer, as a broker does that stops in order: a start with a checkpoint need not read the
    /// segment then.
    pub(crate) fn write_last_footer(&mut self) {
        let index = self.sequencer.log().closing_index().expect("nothing waits");
        self.run(&Job::WriteFooter(index));
    }

    /// Whether a log in memory is to be begun anew, before it fills that.
    pub(crate) fn is_long(&self) -> bool {
        self.sequencer.log().content_end() > MEMORY_LOG_BYTES_MAX
    }

    /// Makes a file for the next segment, if one is wanted.
    pub(crate) fn supply(&mut self) {
        if let Some(len) = self.sequencer.log().spare_wanted() {
            self.run(&Job::PrepareSpare { len, pace: FillPace::Ordinary });
        }
    }

    fn run(&mut self, job: &Job) {
        match self.housekeeping.run(job).expect("nothing fails") {
            JobOutcome::Spare(spare) => self.sequencer.log_mut().put_spare(spare),
            JobOutcome::FooterWritten { segment } => self.sequencer.log_mut().index_mut().footer_written(segment),
            JobOutcome::Reserve(_) | JobOutcome::Done => {}
        }
    }
}
