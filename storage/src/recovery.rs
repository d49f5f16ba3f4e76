//! Opens a log: reads what is there, decides what is proven, repeats what is not, and begins a new segment.
//!
//! The steps are numbered as in `FORMAT.md`. Nothing in the folder is written before the decision is made, and nothing is
//! served or answered before it is durable; so a crash in here repeats the decision, or decides anew with nothing
//! answered in between.

use std::any::Any;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::appender::{Appender, AppenderStart, NewEntry, Room};
use crate::checkpoint::{CheckpointPairs, CheckpointStore, EntryMark, LoadError, Place, Stamp, place};
use crate::entry::EntryKind;
use crate::error::OpenError;
use crate::fact::{Fact, FactKind, Facts};
use crate::folder::Folder;
use crate::footer;
use crate::housekeeping::{
    Housekeeping, Job, RESERVE_BYTES, RESERVE_BYTES_MIN, RESERVE_PREFIX, SPARE_PREFIX, Spare, is_full, usable_reserve,
    zeroed_file, zeroed_file_within,
};
use crate::index::{Index, SegmentIndex};
use crate::medium::{Medium, MediumFile, read_exact_at};
use crate::reader::ColdReader;
use crate::report::{CheckpointFate, Damage, RecoveryReport, Replayed};
use crate::segment::{ENTRIES_AT, LogId, Predecessor, Salt, SegmentHeader, file_offset, segment_name};
use crate::survey::{Survey, survey};
use crate::walk::{Before, Walk};
use crate::writer::{Writer, write_header};
use crate::{Entropy, LogOptions, ReplayTime, Sabotage};

/// File system blocks: what is unproven is written again from the start of the block that holds the proven end.
const BLOCK_BYTES: u64 = 4_096;

/// The parts of an open log.
#[derive(Debug)]
pub struct OpenedLog {
    /// Encodes entries.
    pub appender: Appender,
    /// Commits groups.
    pub writer: Writer,
    /// Does the work beside.
    pub housekeeping: Housekeeping,
    /// Reads back.
    pub reader: ColdReader,
    /// Work that this start left to do, in this order.
    pub jobs: Vec<Job>,
    /// The durable position: all below may be served.
    pub durable: u64,
    /// The clocks to go on from.
    pub time: ReplayTime,
    /// What a checkpoint is stamped with that counts in all up to the durable position.
    pub stamp: Stamp,
    /// The checkpoint that was gone on from.
    pub went_on_from: Option<EntryMark>,
    /// What was found.
    pub report: RecoveryReport,
    /// Keeps the folder locked; to be dropped last.
    pub lock: Box<dyn Any + Send + Sync>,
}

/// Opens the log on `medium`, making a new one in an empty folder, and hands all of it to `fold` in log order.
///
/// # Errors
/// [`OpenError`]; unless it says otherwise nothing was changed.
pub fn open(
    medium: &Arc<dyn Medium>,
    options: &LogOptions,
    wall_ms: i64,
    fold: &mut dyn FnMut(Replayed<'_>),
) -> Result<OpenedLog, OpenError> {
    /// Nothing is restored into it.
    struct Whole<'f>(&'f mut dyn FnMut(Replayed<'_>));

    impl Fold for Whole<'_> {
        fn restore(&mut self, _: CheckpointPairs) -> Result<(), String> {
            Err("there is nothing to restore it into".to_owned())
        }

        fn take(&mut self, replayed: Replayed<'_>) {
            (self.0)(replayed);
        }
    }

    open_log(medium, options, wall_ms, None, &mut Whole(fold))
}

/// What the log is folded into.
pub trait Fold {
    /// Begins with what a checkpoint holds instead of with nothing. Called at most once, before anything is taken.
    ///
    /// # Errors
    /// If it makes no sense: then nothing was restored, the checkpoint is set aside, and the whole log follows.
    fn restore(&mut self, pairs: CheckpointPairs) -> Result<(), String>;

    /// Counts in what comes next in the log.
    fn take(&mut self, replayed: Replayed<'_>);
}

/// As [`open`], but goes on from the newest checkpoint, if there is one and the log agrees with it: `fold` is given what it
/// holds, and only what lies behind it is read.
///
/// # Errors
/// [`OpenError`]; unless it says otherwise nothing was changed. Nothing that is wrong with a checkpoint is an error: it is
/// told in the report, and the whole log is read.
pub fn open_from(
    medium: &Arc<dyn Medium>,
    options: &LogOptions,
    wall_ms: i64,
    checkpoints: &mut dyn CheckpointStore,
    fold: &mut dyn Fold,
) -> Result<OpenedLog, OpenError> {
    open_log(medium, options, wall_ms, Some(checkpoints), fold)
}

/// Steps 6 and 11: the checkpoint to go on from, restored into the fold; and what became of it.
fn go_on_from(
    folder: Folder<'_>,
    survey: &Survey,
    options: &LogOptions,
    checkpoints: &mut dyn CheckpointStore,
    fold: &mut dyn Fold,
) -> Result<(Option<Stamp>, CheckpointFate), OpenError> {
    let odd = |why: String| (None, CheckpointFate::SetAside { why, name: None });
    let loaded = match checkpoints.load() {
        Ok(Some(loaded)) => loaded,
        Ok(None) => return Ok((None, CheckpointFate::Absent)),
        Err(LoadError::Odd(why)) => return Ok(odd(why)),
        Err(LoadError::Unavailable(why)) => return Ok((None, CheckpointFate::Unavailable { why })),
    };
    let mut nowhere = |_: Replayed<'_>| {};
    let walk = Walk::new(folder, options, &mut nowhere);
    if let Place::Elsewhere(why) = place(folder, survey, &loaded.stamp, options, |part| walk.own_end(part))? {
        return Ok(odd(why.to_owned()));
    }
    let fate = CheckpointFate::Used { end: loaded.stamp.mark.end(), keys: loaded.pairs.len() };
    if let Err(why) = fold.restore(loaded.pairs) {
        return Ok(odd(why));
    }
    Ok((Some(loaded.stamp), fate))
}

fn open_log(
    medium: &Arc<dyn Medium>,
    options: &LogOptions,
    wall_ms: i64,
    mut checkpoints: Option<&mut dyn CheckpointStore>,
    fold: &mut dyn Fold,
) -> Result<OpenedLog, OpenError> {
    let lock = medium.lock(true)?;
    let folder = Folder { medium: medium.as_ref() };
    let files = folder.run("list the files", medium.list())?;
    let survey = survey(folder, &files, &options.distrusted)?;
    let (stamp, mut checkpoint) = match &mut checkpoints {
        Some(checkpoints) => go_on_from(folder, &survey, options, *checkpoints, fold)?,
        None => (None, CheckpointFate::Absent),
    };
    let mut take = |replayed: Replayed<'_>| fold.take(replayed);
    let mut walk = Walk::new(folder, options, &mut take);
    if let Some(stamp) = stamp {
        walk.go_on_from(stamp);
    }
    let before = walk.walk(&survey)?;
    let (mut found, index) = walk.into_findings();
    let mut damages = survey.damages;
    damages.append(&mut found.damages);

    // Step 13: what is not proven is written again, since after a failed sync the page cache lies.
    let rewritten_bytes = folder.run("write the unproven tail again", rewrite_tail(folder, &before, options))?;

    let mut entropy = options.entropy.clone();
    let log_id = match (survey.chain.last(), stamp) {
        (Some(active), _) => active.header.log_id,
        (None, Some(stamp)) => stamp.log_id,
        (None, None) => folder.run("make an identity", new_log_id(&mut entropy))?,
    };
    let last = found.last_time;
    let time = ReplayTime {
        wall_ms: wall_ms.max(last.wall_ms),
        log_ms: last.log_ms.saturating_add(wall_ms.saturating_sub(last.wall_ms).max(0).unsigned_abs()),
    };
    // A segment that can't be read may have been opened by a start of its own.
    let start_count = found.start_count + 1 + survey.unreadable_behind.map_or(0, |behind| behind.count);

    // Steps 14 and 15.
    let predecessor = survey.chain.last().map(|active| Predecessor {
        number: active.header.number,
        salt: active.header.salt,
        base: active.header.base,
    });
    let continues_in_place = options.sabotages.has(Sabotage::AppendBehindCut) && predecessor.is_some();
    let number_max = survey.number_max.max(stamp.map_or(0, |stamp| stamp.mark.segment));
    let number = number_max + u64::from(!continues_in_place);
    let salt = match options.sabotages.has(Sabotage::SaltIsCounter) {
        true => Salt::new(number),
        false => Salt::new(folder.run("make a salt", entropy.next_u64())?),
    };
    let new_header = SegmentHeader {
        log_id,
        number,
        salt,
        base: before.end,
        start_count,
        predecessor,
        log_start: 0,
        file_len: 0,
        payload_bytes_max: options.payload_bytes_max,
        wall_ms: time.wall_ms,
        log_ms: time.log_ms,
    };
    let (header, file, is_on_reserve) = match (continues_in_place, survey.chain.last()) {
        (true, Some(active)) => {
            let file = folder.run("open the active segment", folder.medium.open(&active.name))?;
            (active.header, file, false)
        }
        _ => {
            let opened = open_segment(folder, new_header, options, &mut entropy, &found.untrimmed);
            folder.run("open a new segment", opened)?
        }
    };

    let mut index = index.unwrap_or_else(|| Index::new(&header));
    if predecessor.is_some() && !continues_in_place {
        index.roll(&header, before.active_end);
    }
    folder.run("remove a stale footer", settle_footers(folder, &mut index))?;
    let mut jobs = Vec::new();
    if let Some(active) = survey.chain.last().filter(|_| !continues_in_place) {
        jobs.push(Job::TrimSegment { number: active.header.number, file_len: before.used_file_len });
    }
    jobs.extend(found.untrimmed.iter().map(|&(number, file_len)| Job::TrimSegment { number, file_len }));
    let leftovers = files.iter().filter(|file| is_leftover(&file.name));
    jobs.extend(leftovers.map(|file| Job::RemoveLeftover { name: file.name.clone() }));
    jobs.push(Job::FillReserve);
    jobs.extend(index.take_sealed().into_iter().map(Job::WriteFooter));

    let group_start = if continues_in_place { before.end } else { header.base };
    let mut appender = Appender::new(AppenderStart {
        header,
        position: before.end,
        group_start,
        segment_bytes: options.segment_bytes,
        entropy: entropy.clone(),
        sabotages: options.sabotages,
        index,
        time,
        is_on_reserve,
    });
    let mut writer = Writer::new(Arc::clone(medium), file, header.number, header.base, before.end, options.sabotages);
    let cut = before.cut();
    let mut report = RecoveryReport {
        log_id,
        start_count,
        proven: before.proven,
        end: before.end,
        rewritten_bytes,
        cut,
        older_cuts: std::mem::take(&mut found.untold_cuts),
        damages,
        set_aside: Vec::new(),
        segments: survey.chain.len(),
        entries: found.entries,
        bytes_read: found.bytes_read,
        checkpoint: CheckpointFate::Absent,
        last_time: last,
    };
    let went_on_from = stamp.map(|stamp| stamp.mark);
    let (durable, stamp) = append_start(&mut appender, &mut writer, &report, &found.new_holes, header.file_len, time)
        .map_err(|source| folder.error("write the start entry", source))?;

    // Only now, with the decision durable, are foreign files moved out of the way.
    let mut set_aside = Vec::new();
    for name in &survey.foreign {
        let aside = format!("aside-{start_count}-{name}");
        folder.run("set a foreign segment aside", folder.medium.rename(name, &aside))?;
        set_aside.push(aside);
    }
    if !set_aside.is_empty() {
        folder.run("sync the folder", folder.medium.sync_directory())?;
    }

    if let (CheckpointFate::SetAside { name, .. }, Some(checkpoints)) = (&mut checkpoint, &mut checkpoints) {
        // One that can't be moved is odd at the next start as well, and in the way of none.
        *name = checkpoints.set_aside(&start_count.to_string()).unwrap_or_default();
    }
    report.checkpoint = checkpoint;
    report.set_aside = set_aside;

    Ok(OpenedLog {
        appender,
        writer,
        housekeeping: Housekeeping::new(Arc::clone(medium), entropy_for_spares(&mut entropy)),
        reader: ColdReader::new(Arc::clone(medium), found.known),
        jobs,
        durable,
        time,
        stamp,
        went_on_from,
        report,
        lock,
    })
}

/// What can be said of a log without changing it.
#[derive(Debug)]
pub(crate) struct Inspection {
    /// What the footers of sealed segments should say; the newest segment counts as none.
    pub(crate) sealed: Vec<Arc<SegmentIndex>>,
    pub(crate) damages: Vec<Damage>,
    pub(crate) segments: usize,
    pub(crate) entries: u64,
    pub(crate) proven: u64,
    pub(crate) end: u64,
    pub(crate) cut: Option<Range<u64>>,
    pub(crate) foreign: Vec<String>,
    pub(crate) unusable: Vec<String>,
    pub(crate) log_id: Option<LogId>,
}

/// Reads every byte of a log as a start would, and changes nothing.
pub(crate) fn inspect(
    medium: &dyn Medium,
    options: &LogOptions,
    fold: &mut dyn FnMut(Replayed<'_>),
) -> Result<Inspection, OpenError> {
    let folder = Folder { medium };
    let files = folder.run("list the files", medium.list())?;
    let survey = survey(folder, &files, &options.distrusted)?;
    let mut walk = Walk::new(folder, options, fold);
    let before = walk.walk(&survey)?;
    let (mut found, index) = walk.into_findings();
    let mut damages = survey.damages;
    damages.append(&mut found.damages);
    Ok(Inspection {
        sealed: index.map(|mut index| index.take_sealed()).unwrap_or_default(),
        damages,
        segments: survey.chain.len(),
        entries: found.entries,
        proven: before.proven,
        end: before.end,
        cut: before.cut(),
        foreign: survey.foreign,
        unusable: survey.unusable,
        log_id: survey.chain.last().map(|active| active.header.log_id),
    })
}

/// Step 13. Returns the bytes written again.
fn rewrite_tail(folder: Folder<'_>, before: &Before, options: &LogOptions) -> io::Result<u64> {
    let Some((name, base)) = &before.active else { return Ok(0) };
    if before.unproven.is_empty() {
        return Ok(0);
    }
    let file = folder.medium.open(name)?;
    let from = (file_offset(*base, before.unproven.start) / BLOCK_BYTES * BLOCK_BYTES).max(ENTRIES_AT);
    let to = file_offset(*base, before.unproven.end);
    let mut bytes = vec![0; (to - from) as usize];
    read_exact_at(file.as_ref(), &mut bytes, from)?;
    if !options.sabotages.has(Sabotage::SyncTailWithoutRewrite) {
        file.write_all_at(&[&bytes], from)?;
    }
    file.sync_data()?;
    Ok(to - from)
}

fn new_log_id(entropy: &mut Entropy) -> io::Result<LogId> {
    let mut id = [0; 16];
    let (first, second) = id.split_at_mut(8);
    first.copy_from_slice(&entropy.next_u64()?.to_le_bytes());
    second.copy_from_slice(&entropy.next_u64()?.to_le_bytes());
    Ok(LogId(id))
}

fn entropy_for_spares(entropy: &mut Entropy) -> Entropy {
    match entropy {
        Entropy::System => Entropy::System,
        Entropy::Seeded(state) => Entropy::Seeded(state.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5EED),
    }
}

/// Step 14: a zeroed file of its own, or one of the reserve if the disk is full, which is said.
fn open_segment(
    folder: Folder<'_>,
    header: SegmentHeader,
    options: &LogOptions,
    entropy: &mut Entropy,
    untrimmed: &[(u64, u64)],
) -> io::Result<(SegmentHeader, Arc<dyn MediumFile>, bool)> {
    let medium = folder.medium;
    let name = format!("{SPARE_PREFIX}{:016x}", entropy.next_u64()?);
    let len = options.segment_first_bytes.max(RESERVE_BYTES).next_multiple_of(BLOCK_BYTES);
    let (spare, is_on_reserve) = match zeroed_file(medium, &name, len) {
        Ok(file) => (Spare { name, file, len, is_written: true }, false),
        Err(error) if is_full(&error) => match from_reserve(medium)? {
            Some(reserve) => (reserve, true),
            None => {
                give_back_zeros(medium, untrimmed)?;
                let (file, len) = zeroed_file_within(medium, &name, RESERVE_BYTES)?;
                (Spare { name, file, len, is_written: true }, true)
            }
        },
        Err(error) => return Err(error),
    };
    let header = SegmentHeader { file_len: spare.len, ..header };
    write_header(medium, &spare.file, &spare.name, &header, options.sabotages)?;
    Ok((header, spare.file, is_on_reserve))
}

/// The largest file of the reserve.
fn from_reserve(medium: &dyn Medium) -> io::Result<Option<Spare>> {
    let Some(largest) = usable_reserve(medium)?.into_iter().max_by_key(|file| file.len) else { return Ok(None) };
    let file = medium.open(&largest.name)?;
    Ok(Some(Spare { name: largest.name, file, len: largest.len, is_written: true }))
}

/// Many starts in a row on a full disk, none of which lived to make the reserve whole: what is left are spares, and the
/// zeros of sealed segments. Neither holds anything.
fn give_back_zeros(medium: &dyn Medium, untrimmed: &[(u64, u64)]) -> io::Result<()> {
    for file in medium.list()?.iter().filter(|file| is_leftover(&file.name)) {
        medium.remove(&file.name)?;
    }
    medium.sync_directory()?;
    for (number, file_len) in untrimmed {
        let file = medium.open(&segment_name(*number))?;
        file.set_len(*file_len)?;
        file.sync_data()?;
    }
    Ok(())
}

fn is_leftover(name: &str) -> bool {
    name.starts_with(SPARE_PREFIX) && !name.starts_with(RESERVE_PREFIX)
}

/// A footer that says what the walk found needs neither memory nor writing. One that says anything else is removed: a
/// reader that comes by must not believe it before it is written anew.
fn settle_footers(folder: Folder<'_>, index: &mut Index) -> io::Result<()> {
    for segment in index.take_sealed() {
        let number = segment.number();
        if footer::read(folder.medium, number).is_ok_and(|there| there.as_ref() == Some(segment.as_ref())) {
            index.footer_written(number);
            continue;
        }
        index.put_back(segment);
        match folder.medium.remove(&footer::footer_name(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Step 15: what was decided becomes an entry, so that every later start decides the same.
fn append_start(
    appender: &mut Appender,
    writer: &mut Writer,
    report: &RecoveryReport,
    new_holes: &[Range<u64>],
    file_len: u64,
    time: ReplayTime,
) -> io::Result<(u64, Stamp)> {
    // A segment from the reserve is small. More holes than fit are found again by the next walk.
    let holes_told_max = (file_len.saturating_sub(RESERVE_BYTES_MIN / 2 + ENTRIES_AT) / HOLE_BYTES).min(HOLES_TOLD_MAX);
    let holes_told_max = holes_told_max as usize;
    let position = report.end;
    let start_count = report.start_count.to_le_bytes();
    let mut all = vec![Facts::default()];
    let mut push = |kind, key: &[u8], value: &[u8]| {
        let fact = Fact { kind, key, decided_at: position, value };
        let fits = all.last_mut().is_some_and(|facts| facts.push(fact).is_ok());
        if !fits {
            let mut facts = Facts::default();
            facts.push(fact).expect("one small fact fits an empty entry");
            all.push(facts);
        }
    };
    push(FactKind::Start, &[], &start_count);
    for cut in report.cut.iter().chain(&report.older_cuts).take(CUTS_TOLD_MAX) {
        push(FactKind::Cut, &cut.start.to_le_bytes(), &cut.end.to_le_bytes());
    }
    for hole in new_holes.iter().take(holes_told_max) {
        push(FactKind::Hole, &hole.start.to_le_bytes(), &hole.end.to_le_bytes());
    }
    let entries: Vec<NewEntry<'_>> =
        all.iter().map(|facts| NewEntry { kind: EntryKind::Start, ..NewEntry::facts(0, facts) }).collect();
    appender.append_in(Room::Reserve, &entries, time).map_err(io::Error::other)?;
    let mut group = appender.take_group().expect("a start entry was appended");
    let committed = writer.commit(&mut group).map_err(io::Error::other)?;
    Ok((committed.end, group.stamp))
}

/// Holes that one start writes down.
const HOLES_TOLD_MAX: u64 = 1_000;
/// Bytes of the log that one hole takes at most: its fact twice, and its share of the entry around it.
const HOLE_BYTES: u64 = 72;
/// Cuts that one start writes down: one of its own, one of each start before that died in the middle.
const CUTS_TOLD_MAX: usize = 20;
