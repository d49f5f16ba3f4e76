//! The log alone, on a real folder.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;
use tidelog_protocol::{BATCH_HEADER_LEN, StreamId};
use tidelog_storage::medium::{DiskMedium, Medium};
use tidelog_storage::{
    EntryKind, Facts, FillPace, Job, JobOutcome, LogOptions, NewEntry, OpenedLog, ReadOutcome, ReadPlan, ReplayTime,
    Sealed, open,
};

use super::batches::Shape;

/// A folder on a real disk, beside the build: `/tmp` may be memory, where fdatasync means nothing.
pub(crate) fn disk_folder() -> TempDir {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(parent).expect("the build's folder for temporary files");
    tempfile::Builder::new().prefix("bench-").tempdir_in(parent).expect("a temporary folder")
}

pub(crate) fn disk(folder: &Path) -> Arc<dyn Medium> {
    Arc::new(DiskMedium::open(folder).expect("an empty folder"))
}

/// A log of batches that nobody judges.
pub(crate) struct DiskLog {
    /// Dropped before its folder is removed.
    log: OpenedLog,
    sealed: Vec<Sealed>,
    /// The next offset of each subject.
    tails: Vec<u64>,
    written: u64,
    _folder: TempDir,
}

impl DiskLog {
    /// An empty one, that `subjects` will be written to.
    pub(crate) fn new(subjects: usize) -> Self {
        let folder = disk_folder();
        let log = open(&disk(folder.path()), &LogOptions::default(), 0, &mut |_| {}).expect("an empty log opens");
        let mut log = Self { log, sealed: Vec::new(), tails: vec![0; subjects], written: 0, _folder: folder };
        for job in std::mem::take(&mut log.log.jobs) {
            log.run(&job);
        }
        log.keep_house();
        log
    }

    /// Bytes appended since it was made.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Appends a batch of `records` to the open group.
    pub(crate) fn append(&mut self, subject: usize, batch: &Bytes, records: u32) {
        let tail = self.tails.get_mut(subject).expect("one of those it was made for");
        let facts = Facts::default();
        let entry = NewEntry {
            kind: EntryKind::Records,
            subject: subject_id(subject),
            base_offset: *tail,
            span: records,
            skip: 0,
            owner: [0; 16],
            facts: &facts,
            payload: batch,
            head_len: BATCH_HEADER_LEN as u16,
        };
        self.log.appender.append(&[entry], ReplayTime::default()).expect("a file for the next segment is ready");
        *tail += u64::from(records);
        self.written += batch.len() as u64;
    }

    /// Write, fdatasync, watermark: what is appended is durable then.
    pub(crate) fn commit(&mut self) {
        let mut group = self.log.appender.take_group().expect("something was appended");
        let committed = self.log.writer.commit(&mut group).expect("nothing fails");
        self.log.durable = committed.end;
        self.sealed.extend(committed.sealed);
    }

    /// What no answer waits for: the next segment's file, footers, the ends of full segments.
    pub(crate) fn keep_house(&mut self) {
        if let Some(len) = self.log.appender.spare_wanted() {
            self.run(&Job::PrepareSpare { len, pace: FillPace::Ordinary });
        }
        for sealed in std::mem::take(&mut self.sealed) {
            self.run(&Job::TrimSegment { number: sealed.number, file_len: sealed.file_len });
        }
        for index in self.log.appender.index_mut().take_sealed() {
            self.run(&Job::WriteFooter(index));
        }
    }

    fn run(&mut self, job: &Job) {
        let OpenedLog { housekeeping, appender, .. } = &mut self.log;
        match housekeeping.run(job).expect("nothing fails") {
            JobOutcome::Spare(spare) => appender.put_spare(spare),
            JobOutcome::FooterWritten { segment } => appender.index_mut().footer_written(segment),
            JobOutcome::Reserve(_) | JobOutcome::Done => {}
        }
    }

    /// As much as `bytes` of payload, a batch to each subject in turn, 1 MiB in a group.
    pub(crate) fn fill(&mut self, shape: Shape, bytes: u64) {
        let batch = shape.dense(StreamId::new(8), 1);
        let end = self.written + bytes;
        let mut group_bytes = 0;
        while self.written < end {
            for subject in 0..self.tails.len() {
                self.append(subject, &batch, shape.records);
                group_bytes += batch.len();
            }
            if group_bytes >= 1 << 20 || self.written >= end {
                group_bytes = 0;
                self.commit();
                self.keep_house();
            }
        }
    }

    /// How to read a subject from its beginning.
    pub(crate) fn plan(&self, subject: usize) -> ReadPlan {
        self.plan_from(subject, 0)
    }

    fn plan_from(&self, subject: usize, offset: u64) -> ReadPlan {
        self.log.appender.index().plan(subject_id(subject), offset).expect("it was written to")
    }

    /// Reads on along a plan, and from the subject's beginning again behind its end; returns the bytes of the batches.
    pub(crate) fn read(&mut self, plan: &mut ReadPlan, subject: usize, bytes_max: usize) -> usize {
        loop {
            if plan.is_used_up() {
                let is_at_end = self.tails.get(subject).is_some_and(|tail| plan.offset() >= *tail);
                *plan = self.plan_from(subject, if is_at_end { 0 } else { plan.offset() });
            }
            let outcomes = self.log.reader.read(plan, self.log.durable, bytes_max).expect("nothing fails");
            let bytes = outcomes.into_iter().map(|outcome| match outcome {
                ReadOutcome::Batch(batch) => batch.payload.len(),
                ReadOutcome::Damaged { from, to } => panic!("offsets {from} to {to} are damaged"),
            });
            match bytes.sum() {
                0 => {}
                read => return read,
            }
        }
    }
}

fn subject_id(subject: usize) -> u64 {
    8 * (subject as u64 + 1)
}
