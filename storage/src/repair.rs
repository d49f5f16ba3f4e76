//! What repairing a log needs of storage: what is in the way, files put back and set aside, and facts appended.
//!
//! Which facts settle what was lost is the broker's to say. Nothing is ever deleted here: what can't be used gets another
//! name.

use std::io;
use std::sync::Arc;

use crate::LogOptions;
use crate::appender::{AppendError, NewEntry};
use crate::error::OpenError;
use crate::fact::{Fact, Facts};
use crate::folder::Folder;
use crate::housekeeping::{FillPace, Job, JobOutcome};
use crate::medium::Medium;
use crate::recovery::{self, OpenedLog};
use crate::report::Replayed;
use crate::segment;
use crate::survey;
use crate::verify::{VerifyReport, report_of};

/// What a misplaced segment is called while the place that is its own is being made free.
const MISPLACED_PREFIX: &str = "aside-misplaced-";

/// Why a segment file can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsideReason {
    /// It belongs to another history of this log, or to another log, and stands where one of this log should.
    OtherBranch,
    /// What its header says contradicts the segments around it.
    Contradiction,
    /// Its headers can't be read, and no other segment says what they held.
    Unreadable,
}

impl AsideReason {
    /// The word for it in the file's new name.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::OtherBranch => "branch",
            Self::Contradiction => "contradiction",
            Self::Unreadable => "unreadable",
        }
    }
}

/// A file to be set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AsideFile {
    /// Its name now.
    pub name: String,
    /// Why.
    pub reason: AsideReason,
}

/// A segment that stands under another one's name, while nothing usable stands under its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misplaced {
    /// Its name now.
    pub name: String,
    /// The name that its header says.
    pub belongs_at: String,
}

/// What a log needs before its damage can be settled, and what it holds.
#[derive(Debug, Clone)]
pub struct RepairSurvey {
    /// Files to be set aside once the log has been opened without them.
    pub set_aside: Vec<AsideFile>,
    /// What the log holds without those.
    pub report: VerifyReport,
}

impl RepairSurvey {
    /// `options` for opening the log without what is to be set aside.
    #[must_use]
    pub fn options(&self, options: LogOptions) -> LogOptions {
        let distrusted = self.set_aside.iter().filter(|file| file.reason != AsideReason::Unreadable);
        LogOptions { distrusted: distrusted.map(|file| file.name.clone()).collect(), ..options }
    }
}

/// Looks a folder through under an exclusive lock, as a start would and further: where a start refuses because one file
/// contradicts the others, this goes on without that file. Changes nothing. `make_fold` is asked for a new fold each time.
///
/// # Errors
/// [`OpenError`]: the folder is in use, of an unknown format, can't be read, or holds no segment that can be read.
pub fn survey_for_repair<F: FnMut(Replayed<'_>)>(
    medium: &dyn Medium,
    mut make_fold: impl FnMut() -> F,
) -> Result<(RepairSurvey, F), OpenError> {
    let _lock = medium.lock(true)?;
    let folder = Folder { medium };
    let files = folder.run("list the files", medium.list())?;
    let mut set_aside: Vec<AsideFile> = Vec::new();
    // Each round distrusts one file more.
    for _ in 0..=files.len() {
        let distrusted = set_aside.iter().map(|file| file.name.clone()).collect();
        let options = LogOptions { distrusted, ..LogOptions::default() };
        let mut fold = make_fold();
        let (name, reason) = match recovery::inspect(medium, &options, &mut fold) {
            Ok(found) => {
                let is_new = |name: &&String| set_aside.iter().all(|file| file.name != **name);
                let unusable = found.unusable.iter().filter(is_new).cloned();
                let unusable: Vec<_> =
                    unusable.map(|name| AsideFile { name, reason: AsideReason::Unreadable }).collect();
                set_aside.extend(unusable);
                let report = report_of(medium, found);
                return Ok((RepairSurvey { set_aside, report }, fold));
            }
            Err(OpenError::OtherBranch { file, .. }) => (file, AsideReason::OtherBranch),
            Err(OpenError::Contradiction { file, .. }) => (file, AsideReason::Contradiction),
            Err(error) => return Err(error),
        };
        if set_aside.iter().any(|file| file.name == name) {
            break;
        }
        set_aside.push(AsideFile { name, reason });
    }
    Err(OpenError::NoReadableHeader { folder: medium.describe(), segments: set_aside.len() })
}

/// The segments that stand under another one's name. They are to be put back before anything else is judged.
///
/// # Errors
/// [`OpenError`]: the folder is in use, of an unknown format, or can't be read.
pub fn misplaced_segments(medium: &dyn Medium) -> Result<Vec<Misplaced>, OpenError> {
    let _lock = medium.lock(true)?;
    find_misplaced(Folder { medium })
}

/// Segments whose header says another number than their name, where no readable segment has that number.
fn find_misplaced(folder: Folder<'_>) -> Result<Vec<Misplaced>, OpenError> {
    let files = folder.run("list the files", folder.medium.list())?;
    let (mut in_place, mut elsewhere) = (Vec::new(), Vec::new());
    for stat in &files {
        let plain = stat.name.strip_prefix(MISPLACED_PREFIX).unwrap_or(&stat.name);
        let Some(number) = segment::segment_number(plain) else { continue };
        let file = folder.run("open a segment", folder.medium.open_read(&stat.name))?;
        let Some(header) = survey::readable_header(folder, &stat.name, file.as_ref())? else { continue };
        if header.number == number && plain.len() == stat.name.len() {
            in_place.push(header);
        } else {
            elsewhere.push((stat.name.clone(), header));
        }
    }
    // Only of the log that the others are of, and only if its successor says that this very segment is missing.
    let is_missed = |header: &crate::SegmentHeader| {
        let all = in_place.iter().chain(elsewhere.iter().map(|(_, header)| header));
        let is_named = all
            .filter(|other| other.log_id == header.log_id)
            .filter_map(|other| other.predecessor)
            .any(|before| before.number == header.number && before.salt == header.salt);
        let follows = header.predecessor.is_some_and(|before| {
            in_place.iter().any(|other| other.number == before.number && other.salt == before.salt)
        });
        let is_newest = in_place.iter().all(|other| other.number < header.number);
        is_named || (is_newest && follows)
    };
    let mut misplaced: Vec<Misplaced> = Vec::new();
    for (name, header) in &elsewhere {
        let belongs_at = segment::segment_name(header.number);
        let is_free = in_place.iter().all(|other| other.number != header.number)
            && misplaced.iter().all(|other| other.belongs_at != belongs_at);
        if is_free && is_missed(header) {
            misplaced.push(Misplaced { name: name.clone(), belongs_at });
        }
    }
    Ok(misplaced)
}

/// Gives misplaced segments their own names back. Whatever unusable file stands there is moved out of the way first. Run
/// again after a crash: it goes on.
///
/// # Errors
/// [`OpenError`]; some may have been put back then.
pub fn put_back(medium: &dyn Medium) -> Result<Vec<Misplaced>, OpenError> {
    let _lock = medium.lock(true)?;
    let folder = Folder { medium };
    let mut done = Vec::new();
    // Each round gives one file its final name, after at most one other has made way.
    while let Some(next) = find_misplaced(folder)?.into_iter().next() {
        let files = folder.run("list the files", medium.list())?;
        if files.iter().any(|file| file.name == next.belongs_at) {
            let aside = free_name(&files, MISPLACED_PREFIX, &next.belongs_at);
            folder.run("move a segment out of the way", medium.rename(&next.belongs_at, &aside))?;
        }
        folder.run("put a segment back", medium.rename(&next.name, &next.belongs_at))?;
        folder.run("sync the folder", medium.sync_directory())?;
        done.push(next);
        assert!(done.len() <= files.len(), "each file is put back once");
    }
    Ok(done)
}

fn free_name(files: &[crate::medium::FileStat], prefix: &str, name: &str) -> String {
    let is_taken = |candidate: &String| files.iter().any(|file| file.name == *candidate);
    let plain = format!("{prefix}{name}");
    let numbered = (1_u32..).map(|copy| format!("{prefix}{copy}-{name}"));
    std::iter::once(plain)
        .chain(numbered)
        .find(|candidate| !is_taken(candidate))
        .expect("there is always another number")
}

/// Why a repair could not be written; what was appended before stays, and running it again goes on from there.
#[derive(Debug, thiserror::Error)]
#[error("could not {step}: {source}; running the repair again goes on from here")]
pub struct RepairWriteError {
    /// What was being done.
    pub step: &'static str,
    /// The failure.
    #[source]
    pub source: io::Error,
}

/// Appends facts to an open log that no broker runs on.
#[derive(Debug)]
pub struct FactAppender<'l> {
    log: &'l mut OpenedLog,
    pending: Facts,
    /// Where the facts that are pending will stand.
    position: u64,
}

impl<'l> FactAppender<'l> {
    /// Appends behind what is there.
    ///
    /// # Errors
    /// [`RepairWriteError`] if there is no room.
    pub fn new(log: &'l mut OpenedLog) -> Result<Self, RepairWriteError> {
        let mut appender = Self { log, pending: Facts::default(), position: 0 };
        appender.position = appender.prepare()?;
        Ok(appender)
    }

    /// Appends a fact; its position is filled in. Returns that position.
    ///
    /// # Errors
    /// [`RepairWriteError`].
    ///
    /// # Panics
    /// If the fact does not fit an entry of its own.
    pub fn push(&mut self, fact: Fact<'_>) -> Result<u64, RepairWriteError> {
        let placed = Fact { decided_at: self.position, ..fact };
        if self.pending.push(placed).is_err() {
            self.append()?;
            let placed = Fact { decided_at: self.position, ..fact };
            self.pending.push(placed).expect("one fact fits an empty entry");
        }
        Ok(self.position)
    }

    /// Makes all that was appended durable.
    ///
    /// # Errors
    /// [`RepairWriteError`]: how much of it is durable is unknown.
    pub fn commit(&mut self) -> Result<(), RepairWriteError> {
        self.append()?;
        let failed = |source| RepairWriteError { step: "write the repair", source };
        while let Some(mut group) = self.log.appender.take_group() {
            let committed = self.log.writer.commit(&mut group).map_err(|error| failed(io::Error::other(error)))?;
            self.log.durable = committed.end;
        }
        self.log.writer.quiet().map_err(|error| failed(io::Error::other(error)))?;
        // A watermark stands behind the group now.
        self.position = self.prepare()?;
        Ok(())
    }

    fn append(&mut self) -> Result<(), RepairWriteError> {
        let facts = std::mem::take(&mut self.pending);
        if !facts.as_bytes().is_empty() {
            let appended = self.log.appender.append(&[NewEntry::facts(0, &facts)], self.log.time);
            let appended = appended.map_err(|error| to_write_error(&error))?;
            assert_eq!(appended.position, self.position, "room was made for the largest entry");
        }
        self.position = self.prepare()?;
        Ok(())
    }

    /// Makes room for the largest entry of facts, and says where it will stand.
    fn prepare(&mut self) -> Result<u64, RepairWriteError> {
        let bytes = crate::entry_len(crate::FACTS_BYTES_MAX, 0, 0) as u64;
        loop {
            match self.log.appender.prepare(bytes) {
                Ok(position) => return Ok(position),
                Err(AppendError::NoSegmentReady) => self.make_spare()?,
                Err(error) => return Err(to_write_error(&error)),
            }
        }
    }

    fn make_spare(&mut self) -> Result<(), RepairWriteError> {
        let failed = |source| RepairWriteError { step: "prepare a segment", source };
        let Some(len) = self.log.appender.spare_wanted() else {
            return Err(failed(io::Error::other("no segment fits")));
        };
        if let JobOutcome::Spare(spare) =
            self.log.housekeeping.run(&Job::PrepareSpare { len, pace: FillPace::Ordinary }).map_err(failed)?
        {
            self.log.appender.put_spare(spare);
        }
        Ok(())
    }
}

fn to_write_error(error: &AppendError) -> RepairWriteError {
    RepairWriteError { step: "append to the log", source: io::Error::other(*error) }
}

/// Moves files out of the way of a log that has been opened without them; returns their new names.
///
/// # Errors
/// The medium's; some may have been moved then.
pub fn set_aside(medium: &Arc<dyn Medium>, start_count: u64, files: &[AsideFile]) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for file in files {
        let there = medium.list()?;
        if there.iter().any(|other| other.name == file.name) {
            let aside = free_name(&there, &format!("aside-{start_count}-{}-", file.reason.word()), &file.name);
            medium.rename(&file.name, &aside)?;
            names.push(aside);
        }
    }
    if !names.is_empty() {
        medium.sync_directory()?;
    }
    Ok(names)
}
