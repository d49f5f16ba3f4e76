//! A broker's sequencer in miniature, on one thread and a simulated machine: it appends, commits in steps, lets
//! housekeeping happen in between, dies in every way there is, and holds what comes back against a plain model.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

pub(crate) mod chaos;
pub(crate) mod forgery;
pub(crate) mod model;
pub(crate) mod survived;
pub(crate) mod told;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use tidelog_storage::medium::{Medium, SimulatedMedium, read_exact_at};
use tidelog_storage::{
    AppendError, Entropy, EntryKind, FactKind, Facts, FillPace, Group, Job, JobOutcome, LogOptions, NewEntry,
    OpenError, OpenedLog, Poisoned, ReadOutcome, RecoveryReport, ReplayTime, Replayed, Room, Sabotage, open,
};

use self::model::{Entry, Expected, Model, OwnedFact};

/// A check that failed says what was wrong.
pub(crate) type Checked<T = ()> = Result<T, String>;

/// Fails the check with a text unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}

/// Positions and files: where entries begin in a segment's file, as `FORMAT.md` has it.
pub(crate) const ENTRIES_AT: u64 = 8_192;
/// Bytes of the storage header of an entry.
pub(crate) const HEADER_LEN: u64 = 104;

/// What to append; offsets are the driver's business.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) kind: EntryKind,
    pub(crate) subject: u64,
    pub(crate) span: u32,
    pub(crate) skip: u32,
    pub(crate) owner: [u8; 16],
    pub(crate) facts: Vec<OwnedFact>,
    pub(crate) payload: Vec<u8>,
    pub(crate) head_len: u16,
}

impl Spec {
    /// A batch of one record with `content` bytes behind the checksum.
    pub(crate) fn records(subject: u64, content: &[u8]) -> Self {
        let payload = payload(content);
        let head_len = (payload.len().min(56) / 8 * 8) as u16;
        let kind = EntryKind::Records;
        Self { kind, subject, span: 1, skip: 0, owner: [subject as u8; 16], facts: Vec::new(), payload, head_len }
    }

    /// An entry that holds one fact.
    pub(crate) fn fact(subject: u64, value: &[u8]) -> Self {
        let fact = OwnedFact {
            kind: FactKind::Producer,
            key: subject.to_le_bytes().to_vec(),
            decided_at: 7,
            value: value.to_vec(),
        };
        let (payload, owner) = (Vec::new(), [0; 16]);
        Self { kind: EntryKind::Facts, subject, span: 0, skip: 0, owner, facts: vec![fact], payload, head_len: 0 }
    }

    fn encoded_facts(&self) -> Facts {
        let mut facts = Facts::default();
        for fact in &self.facts {
            facts.push(fact.borrow()).unwrap();
        }
        facts
    }
}

/// `content` behind its checksum.
pub(crate) fn payload(content: &[u8]) -> Vec<u8> {
    let mut payload = crc32fast::hash(content).to_le_bytes().to_vec();
    payload.extend_from_slice(content);
    payload
}

/// What a start showed to its fold, and what it said of itself.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) entries: Vec<Entry>,
    pub(crate) payloads_ok: Vec<bool>,
    pub(crate) holes: Vec<Range<u64>>,
    pub(crate) report: RecoveryReport,
}

/// Why there is no open log.
#[derive(Debug)]
pub(crate) enum NotOpen {
    /// The log refused.
    Refused(Box<OpenError>),
    /// It opened and showed something wrong.
    Wrong(String),
}

impl From<NotOpen> for String {
    fn from(reason: NotOpen) -> Self {
        match reason {
            NotOpen::Refused(error) => format!("the log did not open: {error}"),
            NotOpen::Wrong(text) => text,
        }
    }
}

/// How far the group at the writer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Taken,
    Written,
    Synced,
}

/// One run of the process.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) log: OpenedLog,
    in_flight: Option<(Group, Stage)>,
    pub(crate) jobs: VecDeque<Job>,
    pub(crate) time: ReplayTime,
    /// The writer has failed.
    pub(crate) is_poisoned: bool,
}

/// The log on a simulated disk, through all its lives, and what it must hold.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) disk: SimulatedMedium,
    pub(crate) options: LogOptions,
    pub(crate) model: Model,
    pub(crate) life: Option<Life>,
    pub(crate) lives: u64,
    pub(crate) wall_ms: i64,
    seed: u64,
}

/// Options for small segments: what the crash tests run with.
pub(crate) fn small_options() -> LogOptions {
    LogOptions {
        segment_first_bytes: 64 << 10,
        segment_bytes: 96 << 10,
        payload_bytes_max: 4 << 10,
        ..LogOptions::default()
    }
}

impl Driver {
    pub(crate) fn new(seed: u64, options: LogOptions) -> Self {
        let disk = SimulatedMedium::new(seed);
        Self { disk, options, model: Model::default(), life: None, lives: 0, wall_ms: 1_700_000_000_000, seed }
    }

    /// A driver whose log is open and whose work left over by the start is done.
    pub(crate) fn started(seed: u64, options: LogOptions) -> Checked<Self> {
        let mut driver = Self::new(seed, options);
        driver.reopen()?;
        Ok(driver)
    }

    /// The same moment on another machine, with the luck of another seed; no process runs there.
    pub(crate) fn fork(&self, seed: u64) -> Self {
        Self {
            disk: self.disk.fork(seed),
            options: self.options.clone(),
            model: self.model.clone(),
            life: None,
            lives: self.lives,
            wall_ms: self.wall_ms,
            seed,
        }
    }

    pub(crate) fn life(&mut self) -> &mut Life {
        self.life.as_mut().expect("the log is open")
    }

    pub(crate) fn durable(&self) -> u64 {
        self.life.as_ref().map_or(0, |life| life.log.durable)
    }

    /// Opens the log and returns what it showed; nothing is judged.
    pub(crate) fn open_observed(&mut self) -> Result<Observed, OpenError> {
        self.life = None;
        self.lives += 1;
        let entropy = Entropy::Seeded(self.seed.wrapping_mul(0x9E37_79B9) ^ (self.lives << 40));
        let options = LogOptions { entropy, ..self.options.clone() };
        let medium: Arc<dyn Medium> = Arc::new(self.disk.for_this_life());
        let (mut entries, mut payloads_ok, mut holes) = (Vec::new(), Vec::new(), Vec::new());
        let mut log = open(&medium, &options, self.wall_ms, &mut |replayed| match replayed {
            Replayed::Entry { head, payload_ok } => {
                let is_own = matches!(head.header.kind, EntryKind::Start | EntryKind::Watermark | EntryKind::Pad);
                if !is_own {
                    entries.push(Entry::of(head));
                    payloads_ok.push(payload_ok);
                }
            }
            Replayed::Hole(range) => holes.push(range),
        })?;
        let report = log.report.clone();
        let (jobs, time) = (std::mem::take(&mut log.jobs).into(), log.time);
        self.life = Some(Life { log, in_flight: None, jobs, time, is_poisoned: false });
        Ok(Observed { entries, payloads_ok, holes, report })
    }

    /// Opens the log and holds it strictly against the model: no damage, nothing lost, moved or invented.
    pub(crate) fn open_judged(&mut self) -> Result<RecoveryReport, NotOpen> {
        let observed = self.open_observed().map_err(|error| NotOpen::Refused(Box::new(error)))?;
        let judged = self.model.judge(&observed, self.durable()).and_then(|()| self.read_everything_back());
        judged.map_err(NotOpen::Wrong)?;
        Ok(observed.report)
    }

    /// As [`Self::open_judged`], and does the work that the start left over.
    pub(crate) fn reopen(&mut self) -> Checked<RecoveryReport> {
        let report = self.open_judged()?;
        self.run_jobs()?;
        Ok(report)
    }

    // Ends of a life.

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
        self.life().log.writer.quiet().map_err(|error| error.to_string())?;
        self.life = None;
        Ok(())
    }

    // Appending.

    /// Appends one atomic group, if there is room.
    pub(crate) fn try_append(&mut self, specs: &[Spec]) -> Result<(), AppendError> {
        self.try_append_in(Room::Ordinary, specs)
    }

    /// Appends one atomic group, if there is such room.
    pub(crate) fn try_append_in(&mut self, room: Room, specs: &[Spec]) -> Result<(), AppendError> {
        let facts: Vec<Facts> = specs.iter().map(Spec::encoded_facts).collect();
        let mut next = BTreeMap::new();
        let mut entries = Vec::new();
        for (spec, facts) in specs.iter().zip(&facts) {
            let is_records = spec.kind == EntryKind::Records;
            let offset = next.entry(spec.subject).or_insert_with(|| self.model.next_offset(spec.subject));
            let base_offset = if is_records { *offset } else { 0 };
            *offset += u64::from(spec.span);
            entries.push(NewEntry {
                kind: spec.kind,
                subject: spec.subject,
                base_offset,
                span: spec.span,
                skip: spec.skip,
                owner: spec.owner,
                facts,
                payload: &spec.payload,
                head_len: spec.head_len,
            });
        }
        let life = self.life.as_mut().expect("the log is open");
        let appended = life.log.appender.append_in(room, &entries, life.time)?;
        let mut position = appended.position;
        for (index, (spec, new)) in specs.iter().zip(&entries).enumerate() {
            let left = (specs.len() - 1 - index) as u32;
            let entry = Entry::new(new, spec.facts.clone(), position, (left, index as u32), life.time);
            position = entry.end;
            self.model.entries.push(Expected { entry, payload: spec.payload.clone() });
        }
        let is_split = self.options.sabotages.has(Sabotage::SplitAtomicGroup) && specs.len() > 1;
        assert!(position == appended.end || is_split, "the log counts as the model does");
        Ok(())
    }

    /// Appends one atomic group, with a new segment if it needs one.
    pub(crate) fn append(&mut self, specs: &[Spec]) -> Checked {
        match self.try_append(specs) {
            Err(AppendError::NoSegmentReady) => {
                self.prepare_spare().map_err(|error| error.to_string())?;
                self.try_append(specs).map_err(|error| error.to_string())
            }
            other => other.map_err(|error| error.to_string()),
        }
    }

    /// Appends one batch with so many bytes of content.
    pub(crate) fn append_one(&mut self, subject: u64, len: usize) -> Checked {
        let fill = self.model.entries.len() as u8;
        self.append(&[Spec::records(subject, &vec![fill; len])])
    }

    pub(crate) fn prepare_spare(&mut self) -> std::io::Result<()> {
        // Now this, now that.
        let pace = [FillPace::Leisure, FillPace::Ordinary, FillPace::Haste][self.model.entries.len() % 3];
        let life = self.life();
        if let Some(len) = life.log.appender.spare_wanted()
            && let JobOutcome::Spare(spare) = life.log.housekeeping.run(&Job::PrepareSpare { len, pace })?
        {
            life.log.appender.put_spare(spare);
        }
        Ok(())
    }

    // Committing, in steps.

    /// Takes the next group for the writer, unless one is under way.
    pub(crate) fn take_group(&mut self) -> bool {
        let life = self.life();
        if life.in_flight.is_none() {
            life.in_flight = life.log.appender.take_group().map(|group| (group, Stage::Taken));
        }
        life.in_flight.is_some()
    }

    /// One step of the group under way; behind the last one it counts as acknowledged.
    pub(crate) fn step(&mut self) -> Checked {
        let stepped = self.step_at_the_writer();
        self.life().is_poisoned |= stepped.is_err();
        stepped.map_err(|error| error.to_string())
    }

    fn step_at_the_writer(&mut self) -> Result<(), Poisoned> {
        let life = self.life.as_mut().expect("the log is open");
        let Some((mut group, stage)) = life.in_flight.take() else { return Ok(()) };
        let writer = &mut life.log.writer;
        let next = match stage {
            Stage::Taken => {
                let sealed = writer.write(&mut group)?;
                life.jobs
                    .extend(sealed.map(|sealed| Job::TrimSegment { number: sealed.number, file_len: sealed.file_len }));
                Stage::Written
            }
            Stage::Written => {
                writer.sync()?;
                Stage::Synced
            }
            Stage::Synced => {
                writer.prove(&group)?;
                life.log.durable = group.end();
                self.model.acknowledge(group.end());
                let sealed = life.log.appender.index_mut().take_sealed();
                // A footer may be written once its segment is durable, which a later group proves.
                life.jobs.extend(sealed.into_iter().map(Job::WriteFooter));
                return Ok(());
            }
        };
        life.in_flight = Some((group, next));
        Ok(())
    }

    /// Commits everything that was appended.
    pub(crate) fn commit(&mut self) -> Checked {
        while self.take_group() {
            self.step()?;
        }
        Ok(())
    }

    /// Syncs the last watermark, as after a few idle milliseconds.
    pub(crate) fn quiet(&mut self) -> Checked {
        let synced = self.life().log.writer.quiet();
        self.life().is_poisoned |= synced.is_err();
        synced.map_err(|error| error.to_string())
    }

    // Work beside.

    /// Does one job; a failed one waits for another try.
    pub(crate) fn run_job(&mut self) -> std::io::Result<bool> {
        let life = self.life();
        let Some(job) = life.jobs.pop_front() else { return Ok(false) };
        match life.log.housekeeping.run(&job) {
            Ok(JobOutcome::FooterWritten { segment }) => life.log.appender.index_mut().footer_written(segment),
            Ok(JobOutcome::Spare(spare)) => life.log.appender.put_spare(spare),
            Ok(JobOutcome::Reserve(reserve)) => {
                reserve.into_iter().for_each(|reserve| life.log.appender.put_reserve(reserve));
            }
            Ok(JobOutcome::Done) => {}
            Err(error) => {
                life.jobs.push_back(job);
                return Err(error);
            }
        }
        Ok(true)
    }

    pub(crate) fn run_jobs(&mut self) -> Checked {
        while self.run_job().map_err(|error| format!("a job failed: {error}"))? {}
        Ok(())
    }

    // Reading.

    /// Everything of a subject from an offset on, as a consumer that is behind gets it.
    pub(crate) fn read(&mut self, subject: u64, from: u64) -> Checked<Vec<ReadOutcome>> {
        let life = self.life();
        let (mut outcomes, mut next) = (Vec::new(), from);
        loop {
            let Some(mut plan) = life.log.appender.index().plan(subject, next) else { return Ok(outcomes) };
            let mut is_new = false;
            while !plan.is_used_up() {
                let read =
                    life.log.reader.read(&mut plan, life.log.durable, 10_000).map_err(|error| error.to_string())?;
                is_new |= !read.is_empty();
                outcomes.extend(read);
            }
            next = plan.offset();
            if !is_new {
                return Ok(outcomes);
            }
        }
    }

    /// Reads a subject from an offset on and compares all that is durable.
    pub(crate) fn read_back(&mut self, subject: u64, from: u64) -> Checked {
        let outcomes = self.read(subject, from)?;
        self.model.compare_read(subject, from, self.durable(), &outcomes)
    }

    pub(crate) fn read_everything_back(&mut self) -> Checked {
        for subject in self.model.subjects() {
            self.read_back(subject, 0)?;
        }
        Ok(())
    }

    // Hands in the files.

    pub(crate) fn names(&self, prefix: &str) -> Vec<String> {
        let files = self.disk.list().unwrap();
        files.into_iter().map(|file| file.name).filter(|name| name.starts_with(prefix)).collect()
    }

    pub(crate) fn bytes_of(&self, name: &str) -> Vec<u8> {
        let file = self.disk.open_read(name).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        read_exact_at(file.as_ref(), &mut bytes, 0).unwrap();
        bytes
    }

    /// Every file with its bytes.
    pub(crate) fn snapshot(&self) -> Vec<(String, Vec<u8>)> {
        self.names("").into_iter().map(|name| (name.clone(), self.bytes_of(&name))).collect()
    }

    pub(crate) fn overwrite(&self, name: &str, offset: u64, bytes: &[u8]) {
        let file = self.disk.open(name).unwrap();
        file.write_all_at(&[bytes], offset).unwrap();
        file.sync_data().unwrap();
    }

    pub(crate) fn set_len(&self, name: &str, len: u64) {
        let file = self.disk.open(name).unwrap();
        file.set_len(len).unwrap();
        file.sync_data().unwrap();
    }

    /// Makes the file `name` hold `bytes`, whatever was there.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let _ = self.disk.remove(name);
        let file = self.disk.create(name).unwrap();
        file.write_all_at(&[bytes], 0).unwrap();
        file.sync_data().unwrap();
        self.disk.sync_directory().unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        self.disk.remove(name).unwrap();
        self.disk.sync_directory().unwrap();
    }

    /// The segment file that holds a log position, and the offset in it.
    pub(crate) fn place(&self, position: u64) -> (String, u64) {
        let bases = self.names("segment-").into_iter().map(|name| (self.base_of(&name), name));
        let (base, name) = bases.filter(|(base, _)| *base <= position).max().unwrap();
        (name, ENTRIES_AT + position - base)
    }

    /// The base position in a segment's header.
    pub(crate) fn base_of(&self, name: &str) -> u64 {
        let mut bytes = [0; 8];
        read_exact_at(self.disk.open_read(name).unwrap().as_ref(), &mut bytes, 48).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Flips a bit of the byte at a log position.
    pub(crate) fn flip(&self, position: u64, bit: u8) {
        let (name, offset) = self.place(position);
        self.disk.flip_bit(&name, offset, bit).unwrap();
    }

    /// The last acknowledged entry.
    pub(crate) fn last(&self) -> Entry {
        self.model.entries.last().unwrap().entry.clone()
    }
}
