//! A start from a checkpoint in sled on a real folder: it reads the tail and comes to what the whole log comes to, and
//! whatever befalls the checkpoint, it is told, kept, and changes nothing.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

mod checkpoint;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use checkpoint::{Running, Sums, checkpoint_files, copy_into, copy_of, named, written};
use tidelog_storage::medium::SimulatedRng;
use tidelog_storage::{CheckpointFate, CheckpointSave, CheckpointStore, DamageKind, DiskCheckpoints, SaveError};

fn store(folder: &Path) -> DiskCheckpoints {
    DiskCheckpoints::new(folder)
}

fn is_used(running: &Running) -> bool {
    matches!(running.report.checkpoint, CheckpointFate::Used { .. })
}

fn every_offset(sums: &Sums) -> BTreeMap<u64, Vec<u64>> {
    sums.subjects.iter().map(|(subject, (next, _))| (*subject, (0..*next).collect())).collect()
}

/// Opens `folder`, whose checkpoint is odd: it is set aside whole, and the log alone comes to the same. The next checkpoint
/// is used again.
fn is_set_aside_and_rebuilt(folder: &Path, mut checkpoints: DiskCheckpoints, expected: &Sums, case: &str) {
    let mut running = Running::open(folder, &mut checkpoints);
    let CheckpointFate::SetAside { why, name } = running.report.checkpoint.clone() else {
        panic!("{case}: {:?}", running.report.checkpoint)
    };
    let name = name.unwrap_or_else(|| panic!("{case}: {why}: not moved"));
    assert!(folder.join(&name).exists(), "{case}: {why}: {name} is not there");
    assert!(!folder.join("checkpoint").exists(), "{case}");
    assert_eq!(running.sums, *expected, "{case}: {why}");
    assert_eq!(running.offsets(), every_offset(expected), "{case}");
    let mut whole = store(folder);
    running.save(&mut whole);
    running.close();
    let again = Running::open(folder, &mut whole);
    assert!(is_used(&again), "{case}: {:?}", again.report.checkpoint);
    assert_eq!(again.sums, *expected, "{case}");
}

#[test]
fn a_start_reads_the_tail_and_comes_to_what_the_whole_log_comes_to() {
    for seed in [1, 20, 300] {
        let (folder, expected) = written(seed);
        let copy = copy_of(folder.path());
        let mut whole = Running::open_whole(copy.path());
        let mut tail = Running::open(folder.path(), &mut store(folder.path()));
        assert!(is_used(&tail), "{:?}", tail.report.checkpoint);
        assert_eq!((&tail.sums, &whole.sums), (&expected, &expected));
        assert_eq!(tail.offsets(), every_offset(&expected));
        assert_eq!(whole.offsets(), every_offset(&expected));
        assert_eq!((tail.report.end, tail.report.start_count), (whole.report.end, whole.report.start_count));
        assert_eq!((tail.log.time, &tail.report.damages), (whole.log.time, &Vec::new()));
        // 40 entries and their watermarks lie behind it, of 340.
        assert!((40..=60).contains(&tail.report.entries), "{} entries read", tail.report.entries);
        assert!(whole.report.entries > 340);
        assert!(tail.report.bytes_read * 3 < whole.report.bytes_read, "{} bytes read", tail.report.bytes_read);
    }
}

#[test]
fn a_checkpoint_at_the_very_end_leaves_nothing_to_read_but_footers() {
    let (folder, _) = written(4);
    let mut running = Running::open(folder.path(), &mut store(folder.path()));
    running.work(9, 30);
    running.save(&mut store(folder.path()));
    let expected = running.close();
    let mut again = Running::open(folder.path(), &mut store(folder.path()));
    // The watermark of the last group.
    assert_eq!(again.report.entries, 1);
    // The rest of the newest segment's file, which is zeros, and a few kilobytes.
    let newest = named(folder.path(), "segment-").iter().map(|path| fs::metadata(path).unwrap().len()).max().unwrap();
    assert!(again.report.bytes_read < newest + 8_192, "{} bytes read", again.report.bytes_read);
    assert_eq!(again.sums, expected);
    assert_eq!(again.offsets(), every_offset(&expected));
}

#[test]
fn footers_that_are_lost_or_odd_are_made_again_from_their_segments() {
    let (folder, expected) = written(5);
    for (round, take) in [0, 1, 2].into_iter().enumerate() {
        let copy = copy_of(folder.path());
        let footers = named(copy.path(), "footer-");
        assert!(footers.len() > 3, "{footers:?}");
        for (at, footer) in footers.iter().enumerate() {
            match take {
                0 => fs::remove_file(footer).unwrap(),
                1 => fs::write(footer, b"nothing").unwrap(),
                // Each has another one's.
                _ => drop(fs::copy(&named(folder.path(), "footer-")[(at + 1) % footers.len()], footer).unwrap()),
            }
        }
        let mut running = Running::open(copy.path(), &mut store(copy.path()));
        assert!(is_used(&running), "round {round}: {:?}", running.report.checkpoint);
        assert_eq!(running.sums, expected, "round {round}");
        assert_eq!(running.offsets(), every_offset(&expected), "round {round}");
        drop(running);
        let mut again = Running::open(copy.path(), &mut store(copy.path()));
        assert_eq!(again.sums, expected, "round {round}");
        assert_eq!(again.offsets(), every_offset(&expected), "round {round}");
        assert_eq!(named(copy.path(), "footer-").len(), footers.len() + 1, "round {round}");
    }
}

// What befalls it.

#[test]
fn a_removed_or_emptied_checkpoint_folder_costs_nothing_but_time() {
    let (folder, expected) = written(6);
    for keeps_folder in [false, true] {
        let copy = copy_of(folder.path());
        fs::remove_dir_all(copy.path().join("checkpoint")).unwrap();
        if keeps_folder {
            fs::create_dir(copy.path().join("checkpoint")).unwrap();
        }
        let mut running = Running::open(copy.path(), &mut store(copy.path()));
        assert_eq!(running.report.checkpoint, CheckpointFate::Absent);
        assert_eq!(running.sums, expected);
        running.save(&mut store(copy.path()));
        drop(running.close());
        let again = Running::open(copy.path(), &mut store(copy.path()));
        assert!(is_used(&again));
        assert_eq!(again.sums, expected);
    }
}

/// Does something to each file of the checkpoint in turn.
fn with_each_file_hurt(seed: u64, what: &str, hurt: impl Fn(&Path, &mut SimulatedRng)) {
    let (folder, expected) = written(seed);
    let mut rng = SimulatedRng::new(seed);
    let files = checkpoint_files(folder.path());
    assert!(files.len() >= 3, "sled has other files now: {files:?}");
    for file in files {
        let copy = copy_of(folder.path());
        let file = file.strip_prefix(folder.path()).unwrap();
        hurt(&copy.path().join(file), &mut rng);
        let case = format!("{what} {}", file.display());
        is_set_aside_and_rebuilt(copy.path(), store(copy.path()), &expected, &case);
    }
}

#[test]
fn a_file_of_it_that_is_removed_shortened_emptied_or_overwritten_is_noticed() {
    with_each_file_hurt(7, "removed", |file, _| fs::remove_file(file).unwrap());
    with_each_file_hurt(8, "shortened", |file, rng| {
        let bytes = fs::read(file).unwrap();
        fs::write(file, &bytes[..rng.below(bytes.len() as u64) as usize]).unwrap();
    });
    with_each_file_hurt(9, "emptied", |file, _| fs::write(file, b"").unwrap());
    with_each_file_hurt(10, "overwritten", |file, rng| {
        let len = fs::metadata(file).unwrap().len();
        fs::write(file, (0..len).map(|_| rng.next_u64() as u8).collect::<Vec<u8>>()).unwrap();
    });
    with_each_file_hurt(11, "grown", |file, _| {
        let mut bytes = fs::read(file).unwrap();
        bytes.extend_from_slice(&[0; 100]);
        fs::write(file, bytes).unwrap();
    });
    with_each_file_hurt(12, "joined", |file, _| fs::write(file.with_file_name("stranger"), b"x").unwrap());
}

#[test]
fn no_flipped_bit_in_its_files_reaches_the_state_or_escapes_as_a_panic() {
    let (folder, expected) = written(13);
    let mut rng = SimulatedRng::new(13);
    let files = checkpoint_files(folder.path());
    for flip in 0..60 {
        let copy = copy_of(folder.path());
        // Small files as often as the large one, and of the large one the part that holds something.
        let file = &files[flip % files.len()];
        let mut bytes = fs::read(file).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last as u64 + 1);
        let (at, bit) = (rng.below(used) as usize, rng.below(8));
        bytes[at] ^= 1 << bit;
        let file = file.strip_prefix(folder.path()).unwrap();
        fs::write(copy.path().join(file), bytes).unwrap();
        let case = format!("bit {bit} of byte {at} of {}", file.display());
        is_set_aside_and_rebuilt(copy.path(), store(copy.path()), &expected, &case);
    }
}

/// Two histories of one log from the same beginning, both with a checkpoint: the folders, and what each comes to.
fn two_branches(seed: u64) -> [(tempfile::TempDir, Sums); 2] {
    let (folder, _) = written(seed);
    let other = copy_of(folder.path());
    [(folder, 50), (other, 90)].map(|(folder, entries)| {
        let mut running = Running::open(folder.path(), &mut store(folder.path()));
        running.work(seed + entries, entries);
        running.save(&mut store(folder.path()));
        running.work(seed + entries + 1, 3 * entries);
        let sums = running.close();
        (folder, sums)
    })
}

fn put_checkpoint(from: &Path, to: &Path) {
    fs::remove_dir_all(to.join("checkpoint")).unwrap();
    copy_into(&from.join("checkpoint"), &to.join("checkpoint"));
}

#[test]
fn a_checkpoint_of_another_branch_of_the_log_is_set_aside() {
    let [(one, one_sums), (other, other_sums)] = two_branches(14);
    let held = copy_of(one.path());
    put_checkpoint(other.path(), one.path());
    is_set_aside_and_rebuilt(one.path(), store(one.path()), &one_sums, "the longer one's");
    put_checkpoint(held.path(), other.path());
    is_set_aside_and_rebuilt(other.path(), store(other.path()), &other_sums, "the shorter one's");
}

#[test]
fn a_checkpoint_of_another_log_is_set_aside() {
    let (folder, expected) = written(15);
    let (stranger, _) = written(15);
    put_checkpoint(stranger.path(), folder.path());
    is_set_aside_and_rebuilt(folder.path(), store(folder.path()), &expected, "another log's");
}

#[test]
fn an_older_checkpoint_of_the_same_history_is_used() {
    let (folder, _) = written(16);
    let old = copy_of(folder.path());
    let mut running = Running::open(folder.path(), &mut store(folder.path()));
    running.work(17, 100);
    running.save(&mut store(folder.path()));
    let expected = running.close();
    put_checkpoint(old.path(), folder.path());
    let mut running = Running::open(folder.path(), &mut store(folder.path()));
    assert!(is_used(&running), "{:?}", running.report.checkpoint);
    assert_eq!(running.sums, expected);
    assert_eq!(running.offsets(), every_offset(&expected));
}

#[test]
fn a_checkpoint_ahead_of_the_log_proves_that_bytes_are_missing_and_its_facts_count() {
    for case in ["newest removed", "newest two removed", "older copy", "all removed", "newest emptied", "newest cut"] {
        let (folder, _) = written(18);
        let old = copy_of(folder.path());
        let mut running = Running::open(folder.path(), &mut store(folder.path()));
        running.work(19, 150);
        running.save(&mut store(folder.path()));
        let stamped = running.log.durable;
        let expected = running.close();
        let mut segments = named(folder.path(), "segment-");
        let newest = segments.pop().unwrap();
        match case {
            "newest removed" => fs::remove_file(newest).unwrap(),
            "newest two removed" => {
                fs::remove_file(newest).unwrap();
                fs::remove_file(segments.pop().unwrap()).unwrap();
            }
            "older copy" => {
                put_checkpoint(folder.path(), old.path());
                fs::remove_dir_all(folder.path()).unwrap();
                fs::create_dir(folder.path()).unwrap();
                copy_into(old.path(), folder.path());
            }
            "all removed" => segments.iter().chain([&newest]).for_each(|path| fs::remove_file(path).unwrap()),
            "newest emptied" => {
                // The headers stay, the entries are gone.
                let bytes = fs::read(&newest).unwrap();
                fs::write(&newest, &bytes[..8_192]).unwrap();
            }
            _ => {
                let bytes = fs::read(&newest).unwrap();
                fs::write(&newest, &bytes[..(bytes.len() - 8_192) / 16 + 8_192]).unwrap();
            }
        }
        let mut running = Running::open(folder.path(), &mut store(folder.path()));
        assert!(is_used(&running), "{case}: {:?}", running.report.checkpoint);
        assert_eq!(running.sums.subjects, expected.subjects, "{case}: its facts count");
        assert_eq!(running.sums.contradictions, Vec::<String>::new(), "{case}");
        assert!(running.report.end >= stamped, "{case}: the log ends at {} < {stamped}", running.report.end);
        let is_told = running.report.damages.iter().any(|damage| {
            damage.kind == DamageKind::Hole && damage.positions.end >= stamped && !damage.positions.is_empty()
        });
        assert!(is_told, "{case}: {:?}", running.report.damages);
        // Nothing that was given out before is given out again, and all that follows is there at the next start. The log
        // has no trace of what the checkpoint was made at: a new one is made at once.
        running.save(&mut store(folder.path()));
        running.work(20, 60);
        let after = running.close();
        let mut again = Running::open(folder.path(), &mut store(folder.path()));
        assert!(is_used(&again), "{case}: {:?}", again.report.checkpoint);
        assert_eq!(again.sums.subjects, after.subjects, "{case}");
        let read = again.offsets();
        for (subject, (next, _)) in &after.subjects {
            let first_new = expected.subjects.get(subject).map_or(0, |(next, _)| *next);
            let new: Vec<u64> = (first_new..*next).collect();
            assert!(read[subject].ends_with(&new), "{case}: subject {subject}");
        }
    }
}

#[test]
fn segments_that_are_lost_below_the_checkpoint_are_told_and_cost_no_fact() {
    let (folder, expected) = written(21);
    let segments = named(folder.path(), "segment-");
    for (at, segment) in segments.iter().enumerate().take(segments.len() - 2) {
        let copy = copy_of(folder.path());
        fs::remove_file(copy.path().join(segment.file_name().unwrap())).unwrap();
        let mut running = Running::open(copy.path(), &mut store(copy.path()));
        let stamped = match running.report.checkpoint {
            CheckpointFate::Used { end, .. } => end,
            ref fate => panic!("{fate:?}"),
        };
        let is_told = running.report.damages.iter().any(|damage| damage.kind == DamageKind::SegmentMissing);
        let is_first = at == 0;
        assert!(is_told, "segment {at}: {:?}", running.report.damages);
        assert_eq!(running.sums.subjects, expected.subjects, "segment {at}");
        assert!(running.sums.holes.iter().all(|hole| hole.start >= stamped), "segment {at}");
        let read = running.offsets();
        for (subject, offsets) in every_offset(&expected) {
            let there = &read[&subject];
            assert!(there.iter().all(|offset| offsets.contains(offset)));
            assert!(is_first || !there.is_empty());
            assert!(there.is_sorted_by(|one, next| one < next), "segment {at} subject {subject}");
        }
        assert!(read.values().map(Vec::len).sum::<usize>() < every_offset(&expected).values().map(Vec::len).sum());
        running.close();
    }
}

#[test]
fn the_entry_it_was_made_at_may_rot_without_taking_the_checkpoint_along() {
    let (folder, _) = written(22);
    let mut running = Running::open(folder.path(), &mut store(folder.path()));
    running.work(23, 20);
    running.append(3, 600);
    running.save(&mut store(folder.path()));
    let stamped = running.log.durable;
    running.work(24, 10);
    let expected = running.close();
    let segment = named(folder.path(), "segment-").pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let base = u64::from_le_bytes(bytes[48..56].try_into().unwrap());
    let end = (8_192 + stamped - base) as usize;
    bytes[end - 816..end].fill(0xEE);
    fs::write(&segment, bytes).unwrap();
    let running = Running::open(folder.path(), &mut store(folder.path()));
    assert!(is_used(&running), "{:?}", running.report.checkpoint);
    assert_eq!(running.sums, expected);
}

// What sled does to itself.

#[test]
fn a_sled_that_hangs_or_panics_in_opening_costs_nothing_but_time() {
    let (folder, expected) = written(25);
    let copy = copy_of(folder.path());
    let panics = store(copy.path()).with_before_open(Arc::new(|| panic!("a page can't be read")));
    is_set_aside_and_rebuilt(copy.path(), panics, &expected, "panics");

    let copy = copy_of(folder.path());
    let (release, held) = channel::<()>();
    let held = Mutex::new(held);
    let (done, has_ended) = sync_channel(1);
    let hangs = store(copy.path()).with_limits(Duration::from_millis(300), Duration::from_secs(30)).with_before_open(
        Arc::new(move || {
            let _ = held.lock().unwrap().recv();
            let _ = done.try_send(());
        }),
    );
    is_set_aside_and_rebuilt(copy.path(), hangs, &expected, "hangs");
    // Let go long after, it does no harm.
    drop(release);
    has_ended.recv().unwrap();
    let again = Running::open(copy.path(), &mut store(copy.path()));
    assert!(is_used(&again), "{:?}", again.report.checkpoint);
    assert_eq!(again.sums, expected);
}

#[test]
fn a_save_that_hangs_panics_or_dies_half_way_leaves_the_one_before() {
    let (folder, _) = written(26);
    let mut running = Running::open(folder.path(), &mut store(folder.path()));
    running.work(27, 10);
    let stored = |folder: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        checkpoint_files(folder).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    };
    let before = stored(folder.path());
    let save = CheckpointSave { stamp: running.log.stamp, builds_on: None, changes: vec![(vec![1], Some(vec![2]))] };
    let panicked = store(folder.path()).with_before_open(Arc::new(|| panic!("no room"))).save(save.clone());
    assert!(matches!(&panicked, Err(SaveError::Failed(text)) if text.contains("no room")), "{panicked:?}");
    // What the panic left in the middle is not looked at.
    let left: Vec<PathBuf> = fs::read_dir(folder.path().join("checkpoint"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("new-"))
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
    fs::remove_dir_all(&left[0]).unwrap();
    assert_eq!(stored(folder.path()), before);
    let (release, held) = channel::<()>();
    let held = Mutex::new(held);
    let hangs = store(folder.path())
        .with_limits(Duration::from_secs(30), Duration::from_millis(100))
        .with_before_open(Arc::new(move || assert!(held.lock().unwrap().recv().is_err())))
        .save(save);
    assert!(matches!(hangs, Err(SaveError::Failed(_))), "{hangs:?}");
    fs::create_dir_all(folder.path().join("checkpoint/new-7/sled")).unwrap();
    fs::write(folder.path().join("checkpoint/new-7/sled/db"), b"half").unwrap();
    let expected = running.close();
    let again = Running::open(folder.path(), &mut store(folder.path()));
    assert!(is_used(&again), "{:?}", again.report.checkpoint);
    assert_eq!(again.sums, expected);
    drop(release);
}

#[test]
fn changes_are_made_to_the_checkpoint_they_are_meant_for_or_not_at_all() {
    let (folder, _) = written(28);
    let mut checkpoints = store(folder.path());
    let found = checkpoints.load().unwrap().unwrap();
    let mut stamp = found.stamp;
    stamp.start_count += 1;
    let key = found.pairs.keys().next().unwrap().clone();
    let changes = vec![(key.clone(), None), (vec![9; 8], Some(vec![7; 16]))];
    // The changes come to the same whether they are made to sled's files as they are or written anew.
    for slack_bytes in [16 << 20, 0] {
        let copy = copy_of(folder.path());
        let mut checkpoints = store(copy.path()).with_slack_bytes(slack_bytes);
        let save = CheckpointSave { stamp, builds_on: Some(found.stamp.mark), changes: changes.clone() };
        checkpoints.save(save).unwrap();
        let mut expected = found.pairs.clone();
        expected.remove(&key);
        expected.insert(vec![9; 8], vec![7; 16]);
        let after = checkpoints.load().unwrap().unwrap();
        assert_eq!((after.stamp, after.pairs), (stamp, expected));
        assert_eq!(fs::read_dir(copy.path().join("checkpoint")).unwrap().count(), 1, "the one before is removed");
    }
    let (other, _) = written(29);
    let foreign = store(other.path()).load().unwrap().unwrap().stamp.mark;
    let save = CheckpointSave { stamp, builds_on: Some(foreign), changes: changes.clone() };
    assert!(matches!(checkpoints.save(save.clone()), Err(SaveError::NothingToBuildOn(_))));
    fs::remove_dir_all(folder.path().join("checkpoint")).unwrap();
    let save = CheckpointSave { builds_on: Some(found.stamp.mark), ..save };
    assert!(matches!(checkpoints.save(save.clone()), Err(SaveError::NothingToBuildOn(_))));
    let save = CheckpointSave { builds_on: None, ..save };
    checkpoints.save(save).unwrap();
    assert_eq!(checkpoints.load().unwrap().unwrap().pairs.len(), 1);
}
