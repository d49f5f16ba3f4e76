//! A log on a real folder with its checkpoints in sled, and the simplest fold that shows a lost fact: per subject the next
//! offset and the newest position.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_storage::medium::{DiskMedium, Medium, SimulatedRng};
use tidelog_storage::{
    AppendError, CheckpointFate, CheckpointPairs, CheckpointSave, CheckpointStore, DiskCheckpoints, EntryKind,
    EntryMark, Facts, FillPace, Fold, Job, JobOutcome, LogOptions, NewEntry, OpenedLog, ReadOutcome, RecoveryReport,
    Replayed, Stamp, open, open_from,
};

/// What the log comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Per subject: next offset, newest position.
    pub(crate) subjects: BTreeMap<u64, (u64, u64)>,
    pub(crate) holes: Vec<Range<u64>>,
    /// What contradicts what came before.
    pub(crate) contradictions: Vec<String>,
}

impl Sums {
    fn count(&mut self, subject: u64, base_offset: u64, next_offset: u64, position: u64) {
        let expected = self.subjects.get(&subject).map_or(0, |(next, _)| *next);
        if base_offset != expected {
            self.contradictions.push(format!("subject {subject}: {base_offset} where {expected} comes next"));
        }
        self.subjects.insert(subject, (next_offset, position));
    }

    fn value_of(&self, subject: u64) -> Option<Vec<u8>> {
        let (next, position) = self.subjects.get(&subject)?;
        Some([next.to_le_bytes(), position.to_le_bytes()].concat())
    }
}

impl Fold for Sums {
    fn restore(&mut self, pairs: CheckpointPairs) -> Result<(), String> {
        for (key, value) in pairs {
            let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
            self.subjects.insert(word(&key), (word(&value[..8]), word(&value[8..])));
        }
        Ok(())
    }

    fn take(&mut self, replayed: Replayed<'_>) {
        match replayed {
            Replayed::Entry { head, .. } if head.header.kind == EntryKind::Records => {
                let header = &head.header;
                self.count(header.subject, header.base_offset, header.next_offset(), header.position);
            }
            Replayed::Entry { .. } => {}
            Replayed::Hole(range) => self.holes.push(range),
        }
    }
}

pub(crate) fn small_options() -> LogOptions {
    LogOptions {
        segment_first_bytes: 64 << 10,
        segment_bytes: 96 << 10,
        payload_bytes_max: 4 << 10,
        ..LogOptions::default()
    }
}

/// An open log.
pub(crate) struct Running {
    pub(crate) log: OpenedLog,
    pub(crate) sums: Sums,
    pub(crate) report: RecoveryReport,
    stamp: Stamp,
    changed: BTreeSet<u64>,
    builds_on: Option<EntryMark>,
}

impl Running {
    pub(crate) fn open(folder: &Path, checkpoints: &mut dyn CheckpointStore) -> Self {
        Self::open_with(folder, &small_options(), checkpoints)
    }

    pub(crate) fn open_with(folder: &Path, options: &LogOptions, checkpoints: &mut dyn CheckpointStore) -> Self {
        let medium: Arc<dyn Medium> = Arc::new(DiskMedium::open(folder).unwrap());
        let mut sums = Sums::default();
        let log = open_from(&medium, options, 0, checkpoints, &mut sums).unwrap();
        Self::of(log, sums)
    }

    /// Without a look at the checkpoint.
    pub(crate) fn open_whole(folder: &Path) -> Self {
        let medium: Arc<dyn Medium> = Arc::new(DiskMedium::open(folder).unwrap());
        let mut sums = Sums::default();
        let log = open(&medium, &small_options(), 0, &mut |replayed| sums.take(replayed)).unwrap();
        Self::of(log, sums)
    }

    fn of(mut log: OpenedLog, sums: Sums) -> Self {
        let report = log.report.clone();
        let is_used = matches!(report.checkpoint, CheckpointFate::Used { .. });
        let changed = sums.subjects.keys().copied().collect();
        let stamp = log.stamp;
        for job in std::mem::take(&mut log.jobs) {
            run(&mut log, &job);
        }
        // After one that was not used all must be saved.
        let mut running = Self { log, sums, report, stamp, changed, builds_on: None };
        if is_used {
            running.changed.clear();
        }
        running
    }

    pub(crate) fn append(&mut self, subject: u64, len: usize) {
        let (base_offset, _) = self.sums.subjects.get(&subject).copied().unwrap_or_default();
        let content = vec![subject as u8; len];
        let mut payload = crc32fast::hash(&content).to_le_bytes().to_vec();
        payload.extend_from_slice(&content);
        let facts = Facts::default();
        let entry = NewEntry {
            kind: EntryKind::Records,
            subject,
            base_offset,
            span: 1,
            skip: 0,
            owner: [0; 16],
            facts: &facts,
            payload: &payload,
            head_len: 0,
        };
        let time = self.log.time;
        let appended = match self.log.appender.append(&[entry], time) {
            Err(AppendError::NoSegmentReady) => {
                let len = self.log.appender.spare_wanted().unwrap();
                run(&mut self.log, &Job::PrepareSpare { len, pace: FillPace::Ordinary });
                self.log.appender.append(&[entry], time).unwrap()
            }
            other => other.unwrap(),
        };
        self.sums.count(subject, base_offset, base_offset + 1, appended.position);
        self.changed.insert(subject);
    }

    pub(crate) fn commit(&mut self) {
        while let Some(mut group) = self.log.appender.take_group() {
            self.stamp = group.share().stamp();
            let committed = self.log.writer.commit(&mut group).unwrap();
            self.log.durable = committed.end;
            for index in self.log.appender.index_mut().take_sealed() {
                run(&mut self.log, &Job::WriteFooter(index));
            }
        }
    }

    /// Many entries of some subjects, over several segments.
    pub(crate) fn work(&mut self, seed: u64, entries: u64) {
        let mut rng = SimulatedRng::new(seed);
        for number in 0..entries {
            self.append(1 + rng.below(7), 200 + rng.below(1_500) as usize);
            if number % 5 == 0 {
                self.commit();
            }
        }
        self.commit();
    }

    /// Saves what is durable; only changes if there is one to go on from.
    pub(crate) fn save(&mut self, checkpoints: &mut dyn CheckpointStore) {
        self.commit();
        if self.builds_on.is_none() {
            self.changed = self.sums.subjects.keys().copied().collect();
        }
        let changed = std::mem::take(&mut self.changed).into_iter();
        let changes = changed.map(|subject| (subject.to_le_bytes().to_vec(), self.sums.value_of(subject))).collect();
        checkpoints.save(CheckpointSave { stamp: self.stamp, builds_on: self.builds_on, changes }).unwrap();
        self.builds_on = Some(self.stamp.mark);
    }

    /// An orderly end.
    pub(crate) fn close(mut self) -> Sums {
        self.commit();
        self.log.writer.quiet().unwrap();
        let index = self.log.appender.closing_index().unwrap();
        run(&mut self.log, &Job::WriteFooter(index));
        self.sums
    }

    /// Every subject's offsets as a consumer that is behind gets them; damaged ones are left out.
    pub(crate) fn offsets(&mut self) -> BTreeMap<u64, Vec<u64>> {
        let subjects: Vec<u64> = self.sums.subjects.keys().copied().collect();
        subjects.into_iter().map(|subject| (subject, self.offsets_of(subject))).collect()
    }

    fn offsets_of(&mut self, subject: u64) -> Vec<u64> {
        let (mut found, mut next) = (Vec::new(), 0);
        loop {
            let Some(mut plan) = self.log.appender.index().plan(subject, next) else { return found };
            let mut is_new = false;
            while !plan.is_used_up() {
                for outcome in self.log.reader.read(&mut plan, self.log.durable, 100_000).unwrap() {
                    is_new = true;
                    if let ReadOutcome::Batch(batch) = outcome {
                        found.push(batch.base_offset);
                    }
                }
            }
            next = plan.offset();
            if !is_new {
                return found;
            }
        }
    }
}

fn run(log: &mut OpenedLog, job: &Job) {
    match log.housekeeping.run(job).unwrap() {
        JobOutcome::Spare(spare) => log.appender.put_spare(spare),
        JobOutcome::FooterWritten { segment } => log.appender.index_mut().footer_written(segment),
        _ => {}
    }
}

/// A folder with a log of several segments, a checkpoint in its middle, and some entries behind that.
pub(crate) fn written(seed: u64) -> (tempfile::TempDir, Sums) {
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoints = DiskCheckpoints::new(folder.path());
    let mut running = Running::open(folder.path(), &mut checkpoints);
    running.work(seed, 200);
    running.save(&mut checkpoints);
    running.work(seed + 1, 100);
    running.save(&mut checkpoints);
    running.work(seed + 2, 40);
    let sums = running.close();
    (folder, sums)
}

/// A copy of a folder and all in it.
pub(crate) fn copy_of(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_into(folder, copy.path());
    copy
}

pub(crate) fn copy_into(from: &Path, to: &Path) {
    for path in files_below(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&path, target).unwrap();
    }
}

pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The files of the stored checkpoint.
pub(crate) fn checkpoint_files(folder: &Path) -> Vec<PathBuf> {
    files_below(&folder.join("checkpoint"))
}

pub(crate) fn named(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix)).collect();
    paths.sort();
    paths
}
