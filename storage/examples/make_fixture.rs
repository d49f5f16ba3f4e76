//! Makes the fixture of format 1 that `tests/format_v1.rs` opens: a small log with three lives, two torn tails and five
//! segments, and `records.txt`, which lists every record that it holds.
//!
//! `cargo run -p tidelog-storage --example make_fixture -- FOLDER` writes `FOLDER/log` and `FOLDER/records.txt`; the folder must not exist.
//! The fixture in git was written once and stays as it is: what this version writes may change, what it can read may not
//! shrink. A later format gets a fixture of its own.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use tidelog_storage::medium::{DiskMedium, Medium};
use tidelog_storage::{
    Entropy, EntryKind, Fact, FactKind, Facts, FillPace, Group, Job, JobOutcome, LogOptions, NewEntry, OpenedLog,
    ReplayTime, entry_len, open,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

const STREAMS: [&str; 3] = ["orders", "payments", "audit"];
const WALL_MS: i64 = 1_700_000_000_000;
/// A crash loses what was in this many bytes.
const SECTOR_BYTES: u64 = 512;

fn main() -> Outcome<()> {
    let folder = std::env::args().nth(1).ok_or("say which folder to make")?;
    let folder = Path::new(&folder);
    if folder.exists() {
        return Err(format!("{} is there already", folder.display()).into());
    }
    let medium: Arc<dyn Medium> = Arc::new(DiskMedium::open(folder.join("log"))?);
    let mut story = Story { streams: Vec::new(), lines: Vec::new(), life: 0 };

    let mut life = story.start(&medium)?;
    story.make_streams(&mut life)?;
    story.publish(&mut life, 24)?;
    story.roll(&mut life)?;
    story.publish(&mut life, 15)?;
    story.publish_atomically(&mut life)?;
    story.crash(&medium, life)?;

    let mut life = story.start(&medium)?;
    story.publish(&mut life, 9)?;
    story.roll(&mut life)?;
    story.publish_atomically(&mut life)?;
    story.publish(&mut life, 6)?;
    life.writer.quiet()?;
    drop(life);

    let mut life = story.start(&medium)?;
    story.publish_atomically(&mut life)?;
    story.publish(&mut life, 5)?;
    story.crash(&medium, life)?;

    // A footer is derived: its absence must not matter. A spare is what a crash leaves behind.
    medium.remove("footer-0000000000000003")?;
    medium.create("spare-0123456789abcdef")?.write_all_at(&[&[0; 4_096]], 0)?;
    std::fs::remove_file(folder.join("log/lock"))?;
    std::fs::write(folder.join("records.txt"), story.lines.concat())?;
    Ok(())
}

struct Stream {
    name: &'static str,
    id: u64,
    tail: u64,
}

/// What has been stored so far.
struct Story {
    streams: Vec<Stream>,
    lines: Vec<String>,
    life: u64,
}

/// One records entry, before it is appended.
struct Draft {
    subject: u64,
    base_offset: u64,
    span: u32,
    skip: u32,
    payload: Vec<u8>,
    line: String,
}

impl Story {
    fn start(&mut self, medium: &Arc<dyn Medium>) -> Outcome<OpenedLog> {
        self.life += 1;
        let options = LogOptions {
            segment_first_bytes: 128 << 10,
            segment_bytes: 256 << 10,
            payload_bytes_max: 4_096,
            entropy: Entropy::Seeded(self.life),
            ..LogOptions::default()
        };
        let wall_ms = WALL_MS + self.life as i64 * 3_600_000;
        let mut log = open(medium, &options, wall_ms, &mut |_| {})?;
        for job in std::mem::take(&mut log.jobs) {
            // The reserve would be most of the fixture's bytes.
            if !matches!(job, Job::FillReserve) {
                log.housekeeping.run(&job)?;
            }
        }
        Ok(log)
    }

    fn time(&self, log: &OpenedLog) -> ReplayTime {
        let passed = self.lines.len() as i64 * 10;
        ReplayTime { wall_ms: log.time.wall_ms + passed, log_ms: log.time.log_ms + passed.unsigned_abs() }
    }

    fn make_streams(&mut self, log: &mut OpenedLog) -> Outcome<()> {
        let time = self.time(log);
        for name in STREAMS {
            let mut value = vec![1];
            value.extend(time.wall_ms.to_le_bytes());
            value.extend([0; 16]);
            value.extend(name.as_bytes());
            let id = append_fact(log, FactKind::Stream, &value, time)?;
            self.streams.push(Stream { name, id, tail: 0 });
        }
        let mut value = 1_u64.to_le_bytes().to_vec();
        value.extend([7; 16]);
        value.extend(b"shop");
        append_fact(log, FactKind::Producer, &value, time)?;
        commit(log)
    }

    /// Appends so many entries, a group for every four of them.
    fn publish(&mut self, log: &mut OpenedLog, count: usize) -> Outcome<()> {
        for index in 0..count {
            let draft = self.draft(index % STREAMS.len());
            self.append(log, &[draft])?;
            if index % 4 == 3 {
                commit(log)?;
            }
        }
        commit(log)
    }

    /// Appends one entry for each stream, together.
    fn publish_atomically(&mut self, log: &mut OpenedLog) -> Outcome<()> {
        let drafts: Vec<Draft> = (0..STREAMS.len()).map(|stream| self.draft(stream)).collect();
        self.append(log, &drafts)?;
        commit(log)
    }

    fn draft(&mut self, stream: usize) -> Draft {
        let count = self.lines.len();
        let life = self.life;
        let stream = self.streams.get_mut(stream).expect("there are three");
        let base_offset = stream.tail;
        let span = 1 + count as u32 % 3;
        let skip = u32::from(count % 7 == 5);
        let len = 40 + count * 97 % 700;
        stream.tail += u64::from(span);
        let text = format!("{}-{base_offset}-of-life-{life};", stream.name);
        let content: Vec<u8> = text.bytes().cycle().take(len).collect();
        // The first 60 bytes stand for the rest of a batch's header, so that the payload's head is a real one.
        let mut behind_crc = vec![0x5A; 60];
        behind_crc.extend(content);
        let mut payload = crc32fast::hash(&behind_crc).to_le_bytes().to_vec();
        payload.extend(behind_crc);
        let line = format!("{} {base_offset} {span} {skip} {len} {text}\n", stream.name);
        Draft { subject: stream.id, base_offset, span, skip, payload, line }
    }

    fn append(&mut self, log: &mut OpenedLog, drafts: &[Draft]) -> Outcome<()> {
        let time = self.time(log);
        append(log, drafts, time)?;
        self.lines.extend(drafts.iter().map(|draft| draft.line.clone()));
        Ok(())
    }

    /// Goes on in a new segment, long before this one is full.
    fn roll(&mut self, log: &mut OpenedLog) -> Outcome<()> {
        let len = log.appender.spare_wanted().ok_or("a spare is there")?;
        let JobOutcome::Spare(spare) = log.housekeeping.run(&Job::PrepareSpare { len, pace: FillPace::Ordinary })?
        else {
            return Err("no spare was made".into());
        };
        log.appender.put_spare(spare);
        log.appender.prepare(122_000)?;
        Ok(())
    }

    /// Ends the life in the middle of a write: a whole entry and an atomic group whose last sector never came, and no
    /// watermark behind them. The whole entry is unproven and intact, so it stays; the atomic group goes.
    fn crash(&mut self, medium: &Arc<dyn Medium>, mut log: OpenedLog) -> Outcome<()> {
        let kept = self.draft(0);
        self.append(&mut log, &[kept])?;
        let tails: Vec<u64> = self.streams.iter().map(|stream| stream.tail).collect();
        let lost = [self.draft(0), self.draft(1)];
        for (stream, tail) in self.streams.iter_mut().zip(tails) {
            stream.tail = tail;
        }
        let time = self.time(&log);
        append(&mut log, &lost, time)?;
        let mut group = log.appender.take_group().ok_or("nothing to write")?;
        log.writer.write(&mut group)?;
        drop(log);
        let files = medium.list()?;
        let newest = files.iter().filter(|file| file.name.starts_with("segment-")).max().ok_or("no segment")?;
        let file = medium.open(&newest.name)?;
        let mut bytes = vec![0; newest.len as usize];
        file.read_at(&mut bytes, 0)?;
        let last = bytes.iter().rposition(|byte| *byte != 0).ok_or("an empty segment")? as u64;
        file.write_all_at(&[&[0; SECTOR_BYTES as usize]], last / SECTOR_BYTES * SECTOR_BYTES)?;
        Ok(())
    }
}

fn append(log: &mut OpenedLog, drafts: &[Draft], time: ReplayTime) -> Outcome<()> {
    let facts = Facts::default();
    let entries: Vec<NewEntry<'_>> = drafts
        .iter()
        .map(|draft| NewEntry {
            kind: EntryKind::Records,
            subject: draft.subject,
            base_offset: draft.base_offset,
            span: draft.span,
            skip: draft.skip,
            owner: [3; 16],
            facts: &facts,
            payload: &draft.payload,
            head_len: 56,
        })
        .collect();
    log.appender.append(&entries, time)?;
    Ok(())
}

fn append_fact(log: &mut OpenedLog, kind: FactKind, value: &[u8], time: ReplayTime) -> Outcome<u64> {
    let facts_of = |id: u64| {
        let mut facts = Facts::default();
        facts.push(Fact { kind, key: &id.to_le_bytes(), decided_at: id, value }).map(|()| facts)
    };
    let len = entry_len(facts_of(0)?.as_bytes().len(), 0, 0) as u64;
    let id = log.appender.prepare(len)?;
    let facts = facts_of(id)?;
    log.appender.append(&[NewEntry::facts(id, &facts)], time)?;
    Ok(id)
}

/// Commits what is buffered, then does for sealed segments what a broker does beside.
fn commit(log: &mut OpenedLog) -> Outcome<()> {
    while let Some(mut group) = log.appender.take_group() {
        let sealed = commit_group(log, &mut group)?;
        if let Some((number, file_len)) = sealed {
            log.housekeeping.run(&Job::TrimSegment { number, file_len })?;
        }
    }
    for index in log.appender.index_mut().take_sealed() {
        log.housekeeping.run(&Job::WriteFooter(index))?;
    }
    Ok(())
}

fn commit_group(log: &mut OpenedLog, group: &mut Group) -> Outcome<Option<(u64, u64)>> {
    let committed = log.writer.commit(group)?;
    log.durable = committed.end;
    Ok(committed.sealed.map(|sealed| (sealed.number, sealed.file_len)))
}
