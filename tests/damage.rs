//! A broker on a folder whose bytes have gone bad: everything is told, nothing is served wrongly, what can be served is,
//! no offset is given out twice, and a repair lets all of it go on.
//!
//! `TIDELOG_FLIPS=2000` runs so many of each kind instead of 100 (a quarter of it for whole files); `TIDELOG_SEED`
//! repeats a run.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]
#![allow(dead_code, unreachable_pub, reason = "the harness has more than this needs")]

#[path = "damage/log.rs"]
mod log;
#[path = "harness/random.rs"]
mod random;
#[path = "damage/scratch.rs"]
mod scratch;
#[path = "damage/trial.rs"]
mod trial;

use std::fs;
use std::path::Path;

use tidelog_storage::{DamageKind, EntryHeader};
use tokio::sync::OnceCell;

use log::{HEADER_LEN, Log, copy_at, inspect};
use random::{Random, number_from_environment};
use scratch::Scratch;
use trial::{Seen, copy_of, flip, look, repaired};

async fn the_log() -> &'static Log {
    static LOG: OnceCell<Log> = OnceCell::const_new();
    LOG.get_or_init(|| async {
        let folder = Scratch::new();
        Log::made_in(folder.path(), 1).await
    })
    .await
}

/// Hurts a copy of the log as often as asked for, and hands each outcome to `judge`.
async fn each(
    class: &str,
    count: u64,
    hurt: impl Fn(&Log, &Path, &mut Random) -> String,
    judge: impl Fn(&Log, &Seen) -> bool,
) {
    let log = the_log().await;
    let count = match number_from_environment("TIDELOG_FLIPS") {
        Some(flips) => count * flips / 100,
        None => count,
    };
    let seed = Random::seed_of_run();
    eprintln!("{class}: {count} times, TIDELOG_SEED={seed}");
    let mut random = Random::new(seed ^ class.len() as u64);
    for number in 0..count {
        let folder = copy_of(log);
        if class.ends_with(BESIDE_A_CHECKPOINT) {
            log.write_checkpoint_to(folder.path());
        }
        let what = hurt(log, folder.path(), &mut random);
        eprintln!("{class} {number}: {what}");
        let seen = look(log, folder.path()).await;
        assert!(judge(log, &seen), "{class} {number}, {what}: {seen:#?}");
        if !seen.refusing.is_empty() || random.one_in(8) {
            repaired(log, folder.path()).await;
        }
    }
}

/// Classes of that name keep the checkpoint; the others begin without one, as if it had been removed.
const BESIDE_A_CHECKPOINT: &str = "beside a checkpoint";

/// Flips one bit of an entry, `at` so many bytes behind its beginning.
fn flip_entry(log: &Log, folder: &Path, header: &EntryHeader, at: u64, bit: u64) -> String {
    let (segment, offset) = log.place(header.position);
    flip(folder, &segment.name, offset + at, bit);
    format!("bit {bit} of byte {at} of the entry at {} in {}", header.position, segment.name)
}

fn payload_byte(random: &mut Random, header: &EntryHeader) -> u64 {
    let behind_head = u64::from(header.payload_len) - u64::from(header.head_len);
    HEADER_LEN + u64::from(header.fact_len) + u64::from(header.head_len) + random.below(behind_head)
}

/// One batch and no more can't be read; it is told by stream and offsets, by `verify`, the start and the reader alike.
fn one_payload(log: &Log, seen: &Seen) -> bool {
    let [damage] = &seen.damages[..] else { return false };
    let Some((stream, ranges)) = seen.unreadable.first_key_value() else { return false };
    damage.kind == DamageKind::Payload
        && seen.verified.damages == seen.damages
        && seen.findings.stream_of(damage) == Some(*stream)
        && damage.offsets.as_ref() == ranges.first()
        && seen.batches_lost(log) == 1
        && seen.unreadable.len() == 1
        && ranges.len() == 1
        && seen.short.is_empty()
        && seen.refusing.is_empty()
}

fn healed(kind: DamageKind) -> impl Fn(&Log, &Seen) -> bool {
    move |_, seen| seen.is_whole() && seen.kinds() == [kind] && seen.verified.damages == seen.damages
}

#[tokio::test]
async fn a_bit_in_a_sealed_payload_costs_its_batch() {
    let hurt = |log: &Log, folder: &Path, random: &mut Random| {
        let header = log.batch(random, false);
        flip_entry(log, folder, header, payload_byte(random, header), random.below(8))
    };
    each("sealed payload", 100, hurt, one_payload).await;
}

#[tokio::test]
async fn a_bit_in_an_unsealed_payload_costs_its_batch_and_is_no_torn_tail() {
    let hurt = |log: &Log, folder: &Path, random: &mut Random| {
        let header = log.batch(random, true);
        flip_entry(log, folder, header, payload_byte(random, header), random.below(8))
    };
    each("newest payload", 100, hurt, one_payload).await;
}

#[tokio::test]
async fn a_bit_in_what_stands_twice_costs_nothing() {
    for newest in [false, true] {
        // The header, its facts and the payload's head; then their copy.
        for copy in [false, true] {
            let hurt = |log: &Log, folder: &Path, random: &mut Random| {
                let header = log.batch(random, newest);
                let at = random.below(HEADER_LEN + u64::from(header.fact_len) + u64::from(header.head_len));
                let at = if copy { copy_at(header) + at } else { at };
                flip_entry(log, folder, header, at, random.below(8))
            };
            each(&format!("entry head, newest {newest}, copy {copy}"), 100, hurt, healed(DamageKind::EntryCopy)).await;
        }
    }
}

#[tokio::test]
async fn a_bit_in_one_segment_header_costs_nothing() {
    for copy in [0, 4_096] {
        let hurt = |log: &Log, folder: &Path, random: &mut Random| {
            let segment = &log.segments[random.below(log.segments.len() as u64) as usize];
            let (at, bit) = (copy + random.below(4_096), random.below(8));
            flip(folder, &segment.name, at, bit);
            format!("bit {bit} of byte {at} of {}", segment.name)
        };
        each(&format!("segment header at {copy}"), 100, hurt, healed(DamageKind::SegmentHeaderCopy)).await;
    }
}

#[tokio::test]
async fn both_headers_of_a_sealed_segment_cost_nothing() {
    let hurt = |log: &Log, folder: &Path, random: &mut Random| {
        let sealed = log.sealed();
        let segment = &sealed[random.below(sealed.len() as u64) as usize];
        flip(folder, &segment.name, random.below(4_096), random.below(8));
        flip(folder, &segment.name, 4_096 + random.below(4_096), random.below(8));
        format!("both headers of {}", segment.name)
    };
    each("both segment headers", 100, hurt, healed(DamageKind::SegmentHeader)).await;
}

#[tokio::test]
async fn both_headers_of_an_entry_cost_that_batch_and_leave_the_end_in_doubt() {
    for newest in [false, true] {
        let hurt = |log: &Log, folder: &Path, random: &mut Random| {
            let header = log.batch(random, newest);
            let len = HEADER_LEN + u64::from(header.fact_len) + u64::from(header.head_len);
            flip_entry(log, folder, header, random.below(len), random.below(8));
            flip_entry(log, folder, header, copy_at(header) + random.below(len), random.below(8))
        };
        let judge = |log: &Log, seen: &Seen| {
            let lost: usize = seen.batches_lost(log) + seen.short.len();
            seen.kinds() == [DamageKind::Hole] && seen.verified.damages == seen.damages && lost == 1
        };
        each(&format!("entry head and copy, newest {newest}"), 100, hurt, judge).await;
    }
}

/// A start from a checkpoint does not read what is below it, and knows all the same what that came to: nothing is in doubt,
/// and whoever reads the batch or verifies the folder is told.
fn one_batch_and_no_doubt(log: &Log, seen: &Seen) -> bool {
    seen.batches_lost(log) == 1 && seen.short.is_empty() && seen.refusing.is_empty() && seen.verified.damages.len() == 1
}

#[tokio::test]
async fn a_bit_in_a_sealed_payload_beside_a_checkpoint_costs_its_batch() {
    let hurt = |log: &Log, folder: &Path, random: &mut Random| {
        let header = log.batch(random, false);
        flip_entry(log, folder, header, payload_byte(random, header), random.below(8))
    };
    each(&format!("sealed payload {BESIDE_A_CHECKPOINT}"), 100, hurt, one_batch_and_no_doubt).await;
}

#[tokio::test]
async fn both_headers_of_an_entry_beside_a_checkpoint_cost_that_batch_alone() {
    let hurt = |log: &Log, folder: &Path, random: &mut Random| {
        let header = log.batch(random, false);
        let len = HEADER_LEN + u64::from(header.fact_len) + u64::from(header.head_len);
        flip_entry(log, folder, header, random.below(len), random.below(8));
        flip_entry(log, folder, header, copy_at(header) + random.below(len), random.below(8))
    };
    each(&format!("entry head and copy {BESIDE_A_CHECKPOINT}"), 100, hurt, one_batch_and_no_doubt).await;
}

#[tokio::test]
async fn a_bit_in_a_footer_costs_nothing() {
    let hurt = |log: &Log, folder: &Path, random: &mut Random| {
        let footers: Vec<_> = log.files.keys().filter(|name| name.starts_with("footer-")).collect();
        let name = footers[random.below(footers.len() as u64) as usize];
        flip(folder, name, random.below(log.files[name].len() as u64), random.below(8));
        let (report, ..) = inspect(folder);
        assert_eq!(&report.stale_footers, std::slice::from_ref(name));
        name.clone()
    };
    each("footer", 100, hurt, |_, seen| seen.is_whole() && seen.damages.is_empty()).await;
}

#[tokio::test]
async fn derived_files_cut_emptied_and_removed_are_made_anew() {
    let hurt = |log: &Log, folder: &Path, random: &mut Random| {
        let is_derived = |name: &&String| name.starts_with("footer-") || name.starts_with("spare-");
        let derived: Vec<_> = log.files.keys().filter(is_derived).collect();
        let name = derived[random.below(derived.len() as u64) as usize];
        let bytes = &log.files[name];
        let path = folder.join(name);
        match random.below(3) {
            0 => fs::write(path, &bytes[..random.below(bytes.len() as u64) as usize]).unwrap(),
            1 => fs::write(path, b"").unwrap(),
            _ => fs::remove_file(path).unwrap(),
        }
        name.clone()
    };
    each("derived file", 25, hurt, |_, seen| seen.is_whole() && seen.damages.is_empty()).await;
}

fn any_segment<'l>(log: &'l Log, random: &mut Random) -> &'l str {
    &log.segments[random.below(log.segments.len() as u64) as usize].name
}

/// Something is told; everything else was checked while looking.
fn told(_: &Log, seen: &Seen) -> bool {
    !seen.damages.is_empty() && !seen.verified.damages.is_empty()
}

#[tokio::test]
async fn segments_cut_short_are_told() {
    let hurt = |log: &Log, folder: &Path, random: &mut Random| {
        let name = any_segment(log, random);
        let len = random.below(log.files[name].len() as u64) as usize;
        fs::write(folder.join(name), &log.files[name][..len]).unwrap();
        format!("{name} cut to {len}")
    };
    each("cut short", 25, hurt, told).await;
}

#[tokio::test]
async fn emptied_segments_are_told() {
    let hurt = |log: &Log, folder: &Path, random: &mut Random| {
        let name = any_segment(log, random);
        fs::write(folder.join(name), b"").unwrap();
        format!("{name} emptied")
    };
    each("emptied", 25, hurt, told).await;
}

#[tokio::test]
async fn missing_segments_are_told() {
    let hurt = |log: &Log, folder: &Path, random: &mut Random| {
        let name = any_segment(log, random);
        fs::remove_file(folder.join(name)).unwrap();
        format!("{name} missing")
    };
    each("missing", 25, hurt, told).await;
}

#[tokio::test]
async fn swapped_segments_are_told_and_a_repair_puts_them_back() {
    let log = the_log().await;
    let swap = |log: &Log, folder: &Path, random: &mut Random| {
        let count = log.segments.len() as u64;
        let first = random.below(count);
        let second = (first + 1 + random.below(count - 1)) % count;
        let names = [first, second].map(|at| log.segments[at as usize].name.clone());
        fs::write(folder.join(&names[0]), &log.files[&names[1]]).unwrap();
        fs::write(folder.join(&names[1]), &log.files[&names[0]]).unwrap();
        format!("{} and {} swapped", names[0], names[1])
    };
    each("swapped", 25, swap, told).await;
    // Before any broker has run on them, nothing is lost.
    let mut random = Random::new(Random::seed_of_run());
    for _ in 0..8 {
        let folder = copy_of(log);
        let what = swap(log, folder.path(), &mut random);
        repaired_wholly(log, folder.path(), &what).await;
    }
}

/// A repair that gives everything back.
async fn repaired_wholly(log: &Log, folder: &Path, what: &str) {
    repaired(log, folder).await;
    let seen = look_again(log, folder).await;
    assert!(seen.is_whole() && seen.damages.is_empty(), "{what}: {seen:#?}");
}

async fn look_again(log: &Log, folder: &Path) -> Seen {
    look(log, folder).await
}

#[tokio::test]
async fn older_copies_of_a_sealed_segment_are_told() {
    let hurt = |log: &Log, folder: &Path, random: &mut Random| {
        let newest = &log.newest().name;
        let older: Vec<_> =
            log.older.iter().filter(|(name, bytes)| name != newest && is_behind(log, name, bytes)).collect();
        let (name, bytes) = older[random.below(older.len() as u64) as usize];
        fs::write(folder.join(name), bytes).unwrap();
        format!("an older {name}")
    };
    each("stale", 25, hurt, told).await;
}

/// Whether an older copy lacks something of the segment as it became, zeros behind its end aside.
fn is_behind(log: &Log, name: &str, bytes: &[u8]) -> bool {
    let now = &log.files[name];
    bytes.len() < now.len() || bytes[..now.len()] != now[..]
}

#[tokio::test]
async fn copies_under_another_number_are_told_and_never_served() {
    let hurt = |log: &Log, folder: &Path, random: &mut Random| {
        let name = any_segment(log, random);
        let newest: u64 = log.newest().name.strip_prefix("segment-").unwrap().parse().unwrap();
        let other = format!("segment-{:016}", newest + 1 + random.below(5));
        fs::write(folder.join(&other), &log.files[name]).unwrap();
        format!("{name} also as {other}")
    };
    each("copied", 25, hurt, told).await;
}
