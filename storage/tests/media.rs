//! What every medium promises, and what the simulated machine does to those who rely on more.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::thread;

use tidelog_storage::medium::{
    DiskMedium, FileStat, LockError, Medium, MediumFile, MemoryMedium, SimulatedMedium, SimulatedRng, read_exact_at,
};

const SECTOR: usize = 512;

fn read_all(file: &dyn MediumFile) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(file.len().unwrap()).unwrap()];
    read_exact_at(file, &mut bytes, 0).unwrap();
    bytes
}

fn content(medium: &dyn Medium, name: &str) -> Vec<u8> {
    read_all(medium.open_read(name).unwrap().as_ref())
}

/// A file that survives: bytes, name and folder are synced.
fn durable_file(medium: &dyn Medium, name: &str, bytes: &[u8]) -> Arc<dyn MediumFile> {
    let file = medium.create(name).unwrap();
    file.write_all_at(&[bytes], 0).unwrap();
    file.sync_data().unwrap();
    medium.sync_directory().unwrap();
    file
}

fn names(medium: &dyn Medium) -> Vec<String> {
    let files = medium.list().unwrap();
    files.into_iter().map(|file| file.name).collect()
}

// What all media promise.

/// Runs a check on each medium, with a second medium on the same folder.
fn on_every_medium(check: impl Fn(&dyn Medium, &dyn Medium)) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("above").join("log");
    check(&DiskMedium::open(&path).unwrap(), &DiskMedium::open(&path).unwrap());
    let memory = MemoryMedium::new();
    check(&memory, &memory.clone());
    let simulated = SimulatedMedium::new(7);
    check(&simulated, &simulated.clone());
}

#[test]
fn written_bytes_are_read_back_through_any_handle() {
    on_every_medium(|medium, other| {
        let file = medium.create("a").unwrap();
        assert!(file.is_empty().unwrap());
        file.write_all_at(&[b"one", b"", b"two", b"three"], 2).unwrap();
        file.sync_data().unwrap();
        assert_eq!(file.len().unwrap(), 13);
        assert_eq!(read_all(file.as_ref()), b"\0\0onetwothree");
        assert_eq!(content(other, "a"), b"\0\0onetwothree");
        other.open("a").unwrap().write_all_at(&[b"TWO"], 5).unwrap();
        assert_eq!(read_all(file.as_ref()), b"\0\0oneTWOthree");
    });
}

#[test]
fn more_chunks_than_one_system_call_takes_are_all_written() {
    on_every_medium(|medium, _| {
        let bytes: Vec<u8> = (0..5_000_u32).map(|index| (index % 251) as u8).collect();
        let mut chunks: Vec<&[u8]> = bytes.chunks(2).collect();
        chunks.insert(1_024, b"");
        let file = medium.create("a").unwrap();
        file.write_all_at(&chunks, 0).unwrap();
        assert_eq!(read_all(file.as_ref()), bytes);
    });
}

#[test]
fn a_write_of_nothing_leaves_the_file_as_it_is() {
    on_every_medium(|medium, _| {
        let file = medium.create("a").unwrap();
        file.write_all_at(&[], 10).unwrap();
        file.write_all_at(&[b"", b""], 10).unwrap();
        assert_eq!(file.len().unwrap(), 0);
    });
}

#[test]
fn an_append_among_zeros_changes_neither_what_is_around_it_nor_the_length() {
    on_every_medium(|medium, other| {
        let file = medium.create("a").unwrap();
        file.write_all_at(&[&[0; 3 * 4_096]], 0).unwrap();
        let mut model = vec![0; 3 * 4_096];
        // Within a page, up to its end, over two, and up to the end of the file.
        for (offset, len) in [(0, 10), (10, 4_086), (4_096, 4_097), (8_193, 1), (8_194, 4_094)] {
            let bytes: Vec<u8> = (0..len).map(|index| (index % 251) as u8 + 1).collect();
            let (one, two) = bytes.split_at(len / 2);
            file.append_at(&[one, b"", two], offset as u64).unwrap();
            model[offset..offset + len].copy_from_slice(&bytes);
            assert_eq!(read_all(file.as_ref()), model, "{len} bytes at {offset}");
        }
        file.sync_data().unwrap();
        file.release(0, 2 * 4_096);
        assert_eq!(content(other, "a"), model);
    });
}

/// Bytes that this thread has made the system read from a disk.
fn bytes_read_from_disk() -> u64 {
    let counts = fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = counts.lines().find_map(|line| line.strip_prefix("read_bytes: ")).unwrap();
    line.parse().unwrap()
}

#[test]
fn an_append_among_zeros_that_were_released_reads_nothing_from_the_disk() {
    // Beside the build, where a disk is; in memory there is nothing to see.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let medium = DiskMedium::open(folder.path()).unwrap();
    let file = medium.create("a").unwrap();
    file.write_all_at(&[&[0; 64 << 10]], 0).unwrap();
    file.sync_data().unwrap();
    file.release(0, 64 << 10);
    let before = bytes_read_from_disk();
    // Each ends in a page that nothing of is in memory, and begins in one that the last has left there.
    for number in 0..20 {
        file.append_at(&[&[1; 3_000]], number * 3_000).unwrap();
        file.sync_data().unwrap();
    }
    assert_eq!(bytes_read_from_disk() - before, 0);
}

#[test]
fn reads_are_short_only_at_the_end() {
    on_every_medium(|medium, _| {
        let file = medium.create("a").unwrap();
        file.write_all_at(&[&[7; 200_000]], 0).unwrap();
        let mut buffer = vec![0; 150_000];
        assert_eq!(file.read_at(&mut buffer, 0).unwrap(), 150_000);
        assert!(buffer.iter().all(|byte| *byte == 7));
        assert_eq!(file.read_at(&mut buffer, 150_000).unwrap(), 50_000);
        assert_eq!(file.read_at(&mut buffer, 200_000).unwrap(), 0);
        assert_eq!(file.read_at(&mut buffer, 1 << 40).unwrap(), 0);
        let error = read_exact_at(file.as_ref(), &mut buffer, 100_000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        read_exact_at(file.as_ref(), &mut [], 1 << 40).unwrap();
    });
}

#[test]
fn a_file_that_is_cut_and_grows_again_shows_zeros() {
    on_every_medium(|medium, _| {
        let file = medium.create("a").unwrap();
        file.write_all_at(&[&[9; 200_000]], 0).unwrap();
        file.set_len(100_001).unwrap();
        assert_eq!(file.len().unwrap(), 100_001);
        file.set_len(250_000).unwrap();
        file.write_all_at(&[&[5]], 260_000).unwrap();
        let bytes = read_all(file.as_ref());
        assert_eq!(bytes.len(), 260_001);
        assert!(bytes[..100_001].iter().all(|byte| *byte == 9));
        assert!(bytes[100_001..260_000].iter().all(|byte| *byte == 0));
        file.set_len(0).unwrap();
        file.set_len(3).unwrap();
        assert_eq!(read_all(file.as_ref()), [0; 3]);
    });
}

#[test]
fn random_writes_and_lengths_agree_with_a_vector() {
    on_every_medium(|medium, _| {
        let mut rng = SimulatedRng::new(11);
        let file = medium.create("a").unwrap();
        let mut model: Vec<u8> = Vec::new();
        for _ in 0..300 {
            let offset = rng.below(200_000) as usize;
            if rng.chance(8) {
                file.set_len(offset as u64).unwrap();
                model.resize(offset, 0);
                continue;
            }
            let mut bytes = vec![0; rng.below(70_000) as usize];
            if rng.chance(2) {
                rng.fill(&mut bytes);
            }
            let (front, back) = bytes.split_at(bytes.len() / 3);
            file.write_all_at(&[front, back], offset as u64).unwrap();
            if !bytes.is_empty() {
                model.resize(model.len().max(offset + bytes.len()), 0);
                model[offset..offset + bytes.len()].copy_from_slice(&bytes);
            }
            if rng.chance(8) {
                file.sync_data().unwrap();
            }
            assert!(read_all(file.as_ref()) == model);
        }
    });
}

#[test]
fn list_names_files_with_their_lengths_in_order() {
    on_every_medium(|medium, other| {
        assert_eq!(medium.list().unwrap(), []);
        let _lock = medium.lock(true).unwrap();
        for (name, len) in [("b", 3), ("a", 0), ("c", 70_000)] {
            medium.create(name).unwrap().set_len(len).unwrap();
        }
        let stat = |name: &str, len| FileStat { name: name.to_owned(), len };
        let expected = [stat("a", 0), stat("b", 3), stat("c", 70_000)];
        assert_eq!(other.list().unwrap(), expected);
    });
}

#[test]
fn create_refuses_a_name_that_is_taken() {
    on_every_medium(|medium, _| {
        durable_file(medium, "a", b"kept");
        assert_eq!(medium.create("a").unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(content(medium, "a"), b"kept");
    });
}

#[test]
fn missing_files_are_not_found() {
    on_every_medium(|medium, _| {
        let kinds = [
            medium.open("a").unwrap_err().kind(),
            medium.open_read("a").unwrap_err().kind(),
            medium.remove("a").unwrap_err().kind(),
            medium.rename("a", "b").unwrap_err().kind(),
        ];
        assert_eq!(kinds, [ErrorKind::NotFound; 4]);
    });
}

#[test]
fn rename_moves_a_file_with_its_handles_and_never_replaces() {
    on_every_medium(|medium, _| {
        let file = durable_file(medium, "a", b"first");
        durable_file(medium, "b", b"second");
        let refused = medium.rename("a", "b").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
        assert_eq!(content(medium, "a"), b"first");
        assert_eq!(content(medium, "b"), b"second");
        medium.rename("a", "c").unwrap();
        medium.sync_directory().unwrap();
        file.write_all_at(&[b"FI"], 0).unwrap();
        assert_eq!(content(medium, "c"), b"FIrst");
        assert_eq!(names(medium), ["b", "c"]);
    });
}

#[test]
fn a_removed_file_can_be_read_by_those_who_have_it_open() {
    on_every_medium(|medium, _| {
        let file = durable_file(medium, "a", b"still here");
        medium.remove("a").unwrap();
        medium.sync_directory().unwrap();
        assert_eq!(names(medium), [""; 0]);
        assert_eq!(read_all(file.as_ref()), b"still here");
        medium.create("a").unwrap();
        assert_eq!(read_all(file.as_ref()), b"still here");
        assert_eq!(content(medium, "a"), b"");
    });
}

#[test]
fn a_handle_for_reading_cannot_write() {
    on_every_medium(|medium, _| {
        durable_file(medium, "a", b"kept");
        let file = medium.open_read("a").unwrap();
        file.write_all_at(&[b"x"], 0).unwrap_err();
        file.set_len(0).unwrap_err();
        assert_eq!(content(medium, "a"), b"kept");
    });
}

#[test]
fn names_that_are_no_plain_names_are_refused() {
    on_every_medium(|medium, _| {
        durable_file(medium, "a", b"");
        let long = "n".repeat(256);
        for name in ["", ".", "..", "a/b", "/a", "a\0", "lock", &long] {
            let kinds = [
                medium.create(name).unwrap_err().kind(),
                medium.open(name).unwrap_err().kind(),
                medium.open_read(name).unwrap_err().kind(),
                medium.rename("a", name).unwrap_err().kind(),
                medium.rename(name, "b").unwrap_err().kind(),
                medium.remove(name).unwrap_err().kind(),
            ];
            assert_eq!(kinds, [ErrorKind::InvalidInput; 6], "{name:?}");
        }
        assert_eq!(names(medium), ["a"]);
    });
}

#[test]
fn a_broker_excludes_everybody_and_readers_only_a_broker() {
    on_every_medium(|medium, other| {
        let own_pid = Some(std::process::id());
        let broker = medium.lock(true).unwrap();
        for exclusive in [true, false] {
            let LockError::Held { pid } = other.lock(exclusive).unwrap_err() else {
                panic!("the lock is held");
            };
            assert_eq!(pid, own_pid);
        }
        drop(broker);
        let reader = medium.lock(false).unwrap();
        let other_reader = other.lock(false).unwrap();
        drop(reader);
        let LockError::Held { pid } = medium.lock(true).unwrap_err() else {
            panic!("the lock is held");
        };
        assert_eq!(pid, None, "readers leave no process id");
        drop(other_reader);
        medium.lock(true).unwrap();
    });
}

#[test]
fn a_held_lock_is_an_io_error_that_would_block() {
    let medium = MemoryMedium::new();
    let _broker = medium.lock(true).unwrap();
    let error = std::io::Error::from(medium.lock(true).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    let pid = std::process::id().to_string();
    assert!(error.to_string().contains(&pid), "{error}");
}

#[test]
fn every_medium_tells_its_space_and_its_name() {
    on_every_medium(|medium, _| {
        assert!(medium.free_bytes().unwrap() > 0);
        assert!(!medium.describe().is_empty());
    });
    assert!(!MemoryMedium::new().is_persistent());
}

// The disk.

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn folders_and_files_belong_to_their_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("above").join("log");
    let medium = DiskMedium::open(&path).unwrap();
    medium.create("a").unwrap();
    let _lock = medium.lock(true).unwrap();
    assert_eq!(mode(&folder.path().join("above")), 0o700);
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("a")), 0o600);
    assert_eq!(mode(&path.join("lock")), 0o600);
    assert_eq!(medium.describe(), path.display().to_string());
    assert!(medium.is_persistent());
}

#[test]
fn opening_an_existing_folder_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("log");
    let error = DiskMedium::open_existing(&missing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains(missing.to_str().unwrap()), "{error}");
    assert!(!missing.exists());

    fs::write(&missing, "").unwrap();
    for error in [DiskMedium::open_existing(&missing).unwrap_err(), DiskMedium::open(&missing).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::NotADirectory, "{error}");
    }

    let medium = DiskMedium::open_existing(folder.path()).unwrap();
    drop(medium.lock(false).unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_reader_of_a_folder_without_a_lock_file_keeps_a_broker_out() {
    let folder = tempfile::tempdir().unwrap();
    let medium = DiskMedium::open(folder.path()).unwrap();
    let reader = medium.lock(false).unwrap();
    assert!(!folder.path().join("lock").exists());
    assert!(matches!(medium.lock(true), Err(LockError::Held { pid: None })));
    drop(reader);
    let _broker = medium.lock(true).unwrap();
    fs::remove_file(folder.path().join("lock")).unwrap();
    assert!(matches!(medium.lock(false), Err(LockError::Held { .. })));
}

#[test]
fn the_lock_file_names_the_broker() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("lock"), "4294967295 and much more than a number\n").unwrap();
    let medium = DiskMedium::open(folder.path()).unwrap();
    let _broker = medium.lock(true).unwrap();
    let text = fs::read_to_string(folder.path().join("lock")).unwrap();
    assert_eq!(text, format!("{}\n", std::process::id()));
}

#[test]
fn folders_are_not_listed_and_links_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    outside.as_file().write_all(b"secret").unwrap();
    let medium = DiskMedium::open(folder.path()).unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    symlink(outside.path(), folder.path().join("link")).unwrap();
    assert_eq!(names(&medium), ["link"]);
    for error in
        [medium.open("link").unwrap_err(), medium.open_read("link").unwrap_err(), medium.open_read("sub").unwrap_err()]
    {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert_eq!(medium.create("link").unwrap_err().kind(), ErrorKind::AlreadyExists);
}

#[test]
fn errors_name_the_file_as_it_is_called_now() {
    let folder = tempfile::tempdir().unwrap();
    let medium = DiskMedium::open(folder.path()).unwrap();
    medium.create("before").unwrap();
    let file = medium.open_read("before").unwrap();
    medium.rename("before", "after").unwrap();
    let error = file.write_all_at(&[b"x"], 0).unwrap_err();
    let path = folder.path().canonicalize().unwrap().join("after");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

// Memory.

#[test]
fn a_clone_of_a_memory_folder_finds_its_files_after_the_first_is_gone() {
    let first = MemoryMedium::new();
    let second = first.clone();
    durable_file(&first, "a", b"kept");
    drop(first);
    assert_eq!(content(&second, "a"), b"kept");
}

// The simulated machine: power cuts.

#[test]
fn what_was_synced_survives_every_crash() {
    for seed in 0..200 {
        let medium = SimulatedMedium::new(seed);
        let mut rng = SimulatedRng::new(seed);
        let mut synced = vec![0; 10_000];
        rng.fill(&mut synced);
        let file = durable_file(&medium, "a", &synced);
        for _ in 0..5 {
            let offset = rng.below(9_000) as usize;
            let mut bytes = vec![0; 1_000];
            rng.fill(&mut bytes);
            file.write_all_at(&[&bytes], offset as u64).unwrap();
            synced[offset..offset + 1_000].copy_from_slice(&bytes);
        }
        file.sync_data().unwrap();
        medium.rename("a", "b").unwrap();
        medium.sync_directory().unwrap();
        for _ in 0..3 {
            medium.crash();
            assert_eq!(names(&medium), ["b"], "seed {seed}");
            assert!(content(&medium, "b") == synced, "seed {seed}");
        }
    }
}

#[test]
fn unsynced_writes_are_lost_landed_torn_and_reordered() {
    const LEN: usize = 8 * SECTOR;
    let mut seen = BTreeSet::new();
    for seed in 0..500 {
        let medium = SimulatedMedium::new(seed);
        let file = durable_file(&medium, "a", &[1; LEN]);
        let (first, second) = (&[2; LEN / 2], &[3; LEN / 2]);
        file.write_all_at(&[first], 0).unwrap();
        file.write_all_at(&[second], LEN as u64 / 2).unwrap();
        medium.crash();
        let bytes = content(&medium, "a");
        assert_eq!(bytes.len(), LEN);
        let mut landed = Vec::new();
        for (index, sector) in bytes.chunks(SECTOR).enumerate() {
            let new = if index < 4 { 2 } else { 3 };
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is never torn");
            assert!(sector[0] == 1 || sector[0] == new);
            landed.push(sector[0] == new);
        }
        let count = landed.iter().filter(|landed| **landed).count();
        seen.insert(match count {
            0 => "lost",
            8 => "landed",
            _ if !landed[..4].contains(&true) && !landed[4..].contains(&false) => "reordered",
            _ => "torn",
        });
    }
    assert_eq!(seen, BTreeSet::from(["landed", "lost", "reordered", "torn"]));
}

#[test]
fn an_older_version_of_a_sector_can_be_the_one_that_lands() {
    let seen: BTreeSet<u8> = (0..500)
        .map(|seed| {
            let medium = SimulatedMedium::new(seed);
            let file = durable_file(&medium, "a", &[0; SECTOR]);
            for version in 1..=3 {
                file.write_all_at(&[&[version; SECTOR]], 0).unwrap();
            }
            medium.crash();
            content(&medium, "a")[0]
        })
        .collect();
    assert_eq!(seen, BTreeSet::from([0, 1, 2, 3]));
}

#[test]
fn an_unsynced_length_may_land_without_its_bytes_or_not_at_all() {
    let mut seen = BTreeSet::new();
    for seed in 0..300 {
        let medium = SimulatedMedium::new(seed);
        let file = durable_file(&medium, "a", &[1; 1_024]);
        file.write_all_at(&[&[2; 1_024]], 1_024).unwrap();
        medium.crash();
        let bytes = content(&medium, "a");
        assert!(bytes[..1_024].iter().all(|byte| *byte == 1));
        seen.insert((bytes.len(), bytes.get(1_024).copied(), bytes.get(1_536).copied()));
    }
    for outcome in [
        (1_024, None, None),
        (1_536, Some(2), None),
        (2_048, Some(0), Some(0)),
        (2_048, Some(0), Some(2)),
        (2_048, Some(2), Some(2)),
    ] {
        assert!(seen.contains(&outcome), "{outcome:?} is missing in {seen:?}");
    }
}

#[test]
fn a_cut_that_was_not_synced_may_be_undone() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let medium = SimulatedMedium::new(seed);
        let file = durable_file(&medium, "a", &[1; 4_096]);
        file.set_len(2_048).unwrap();
        medium.crash();
        let bytes = content(&medium, "a");
        assert!(bytes.iter().all(|byte| *byte == 1), "seed {seed}");
        seen.insert(bytes.len());
    }
    assert_eq!(seen, BTreeSet::from([2_048, 4_096]));
}

#[test]
fn a_cut_within_a_sector_may_be_undone_with_or_without_its_zeros() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let medium = SimulatedMedium::new(seed);
        durable_file(&medium, "a", &[1; 512]).set_len(100).unwrap();
        medium.crash();
        let bytes = content(&medium, "a");
        assert!(bytes[..100].iter().all(|byte| *byte == 1));
        seen.insert((bytes.len(), bytes.last().copied()));
    }
    let expected = [(100, Some(1)), (512, Some(0)), (512, Some(1))];
    assert_eq!(seen, BTreeSet::from(expected));
}

#[test]
fn what_a_synced_cut_removed_never_comes_back() {
    for seed in 0..100 {
        let medium = SimulatedMedium::new(seed);
        let file = durable_file(&medium, "a", &[1; 4_096]);
        file.set_len(2_048).unwrap();
        file.sync_data().unwrap();
        file.set_len(4_096).unwrap();
        medium.crash();
        let bytes = content(&medium, "a");
        assert!(bytes[2_048..].iter().all(|byte| *byte == 0), "seed {seed}");

        let file = durable_file(&medium, "b", &[1; 4_096]);
        file.set_len(2_048).unwrap();
        file.set_len(4_096).unwrap();
        file.sync_data().unwrap();
        medium.crash();
        let bytes = content(&medium, "b");
        assert_eq!(bytes.len(), 4_096);
        assert!(bytes[2_048..].iter().all(|byte| *byte == 0), "seed {seed}");
    }
}

#[test]
fn unsynced_changes_of_the_folder_survive_as_a_prefix() {
    let mut seen = BTreeSet::new();
    for seed in 0..300 {
        let medium = SimulatedMedium::new(seed);
        durable_file(&medium, "old", b"synced");
        let file = medium.create("new").unwrap();
        file.write_all_at(&[b"synced"], 0).unwrap();
        file.sync_data().unwrap();
        medium.rename("new", "named").unwrap();
        medium.remove("old").unwrap();
        medium.crash();
        let names = names(&medium);
        for name in &names {
            assert_eq!(content(&medium, name), b"synced");
        }
        seen.insert(names.join(" "));
    }
    assert_eq!(seen, BTreeSet::from_iter(["old", "new old", "named old", "named"].map(String::from)));
}

#[test]
fn the_plainest_power_cut_loses_all_that_was_not_synced() {
    let medium = SimulatedMedium::new(1);
    medium.set_write_back(0);
    let file = durable_file(&medium, "a", &[1; 2_000]);
    file.write_all_at(&[&[2; 2_000]], 1_000).unwrap();
    medium.create("b").unwrap();
    medium.crash_losing_unsynced();
    assert_eq!(names(&medium), ["a"]);
    assert_eq!(content(&medium, "a"), [1; 2_000]);
}

#[test]
fn the_system_may_write_back_what_nobody_synced() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let medium = SimulatedMedium::new(seed);
        medium.set_write_back(1);
        let file = medium.create("a").unwrap();
        file.write_all_at(&[&[1; 512]], 0).unwrap();
        medium.crash_losing_unsynced();
        seen.insert(medium.open("a").ok().map(|file| read_all(file.as_ref())));
    }
    let expected = [None, Some(vec![]), Some(vec![1; 512])];
    assert_eq!(seen, BTreeSet::from(expected));
}

#[test]
fn a_seed_replays_exactly() {
    let run = |seed| {
        let medium = SimulatedMedium::new(seed);
        let mut rng = SimulatedRng::new(99);
        let mut states = Vec::new();
        for round in 0..20 {
            let file = medium.create(&format!("file-{round}")).unwrap();
            for _ in 0..10 {
                let mut bytes = vec![0; rng.below(3_000) as usize];
                rng.fill(&mut bytes);
                file.write_all_at(&[&bytes], rng.below(20_000)).unwrap();
            }
            if rng.chance(2) {
                file.sync_data().unwrap();
                medium.sync_directory().unwrap();
            }
            medium.crash();
            for name in names(&medium) {
                states.push(content(&medium, &name));
            }
        }
        states
    };
    assert!(run(1) == run(1));
    assert!(run(1) != run(2));
}

#[test]
fn after_a_crash_old_handles_are_dead_and_locks_are_free() {
    let medium = SimulatedMedium::new(3);
    for end in [SimulatedMedium::crash, SimulatedMedium::kill] {
        let process = medium.for_this_life();
        let file = durable_file(&process, "a", b"kept");
        let lock = process.lock(true).unwrap();
        end(&medium);
        file.read_at(&mut [0; 4], 0).unwrap_err();
        file.write_all_at(&[b"lost"], 0).unwrap_err();
        file.sync_data().unwrap_err();
        file.set_len(0).unwrap_err();
        file.len().unwrap_err();
        process.list().unwrap_err();
        process.create("b").unwrap_err();
        process.open("a").unwrap_err();
        process.remove("a").unwrap_err();
        process.sync_directory().unwrap_err();
        process.free_bytes().unwrap_err();
        let new_lock = medium.lock(true).unwrap();
        drop((lock, file));
        assert!(medium.lock(true).is_err(), "an old lock does not release a new one");
        drop(new_lock);
        assert_eq!(content(&medium, "a"), b"kept");
        medium.remove("a").unwrap();
    }
}

#[test]
fn a_kill_keeps_what_was_written() {
    for seed in 0..50 {
        let medium = SimulatedMedium::new(seed);
        let file = medium.create("a").unwrap();
        file.write_all_at(&[&[1; 5_000]], 0).unwrap();
        medium.kill();
        assert_eq!(content(&medium, "a"), [1; 5_000]);
        // What was dirty still is: it is not durable, but the next process can make it so.
        medium.open("a").unwrap().sync_data().unwrap();
        medium.sync_directory().unwrap();
        medium.crash();
        assert_eq!(content(&medium, "a"), [1; 5_000]);
    }
}

#[test]
fn forks_of_one_moment_crash_apart() {
    let medium = SimulatedMedium::new(5);
    let file = durable_file(&medium, "a", &[1; 4_096]);
    file.write_all_at(&[&[2; 4_096]], 0).unwrap();
    let outcomes: BTreeSet<Vec<u8>> = (0..50)
        .map(|seed| {
            let fork = medium.fork(seed);
            fork.crash();
            content(&fork, "a")
        })
        .collect();
    assert!(outcomes.len() > 5, "{} outcomes", outcomes.len());
    assert_eq!(read_all(file.as_ref()), [2; 4_096]);
}

// The simulated machine: faults.

#[test]
fn after_a_failed_sync_a_later_ok_is_a_lie() {
    let mut lost = 0;
    for seed in 0..100 {
        let medium = SimulatedMedium::new(seed);
        medium.set_write_back(0);
        let file = durable_file(&medium, "a", &[1; 8_192]);
        file.write_all_at(&[&[2; 8_192]], 0).unwrap();
        medium.fail_sync(1);
        file.sync_data().unwrap_err();
        medium.kill();
        let file = medium.open("a").unwrap();
        assert_eq!(read_all(file.as_ref()), [2; 8_192], "reads show the new bytes");
        file.sync_data().unwrap();
        medium.crash();
        let bytes = content(&medium, "a");
        lost += u32::from(bytes.contains(&1));
    }
    assert!((50..100).contains(&lost), "lost in {lost} of 100 runs; a part may land");
}

#[test]
fn bytes_written_again_after_a_failed_sync_are_made_durable() {
    for seed in 0..100 {
        let medium = SimulatedMedium::new(seed);
        let file = durable_file(&medium, "a", &[1; 4_000]);
        file.write_all_at(&[&[2; 8_192]], 0).unwrap();
        medium.fail_sync(1);
        file.sync_data().unwrap_err();
        medium.kill();
        let file = medium.open("a").unwrap();
        let bytes = read_all(file.as_ref());
        file.write_all_at(&[&bytes], 0).unwrap();
        file.sync_data().unwrap();
        medium.crash();
        assert_eq!(content(&medium, "a"), [2; 8_192], "seed {seed}");
    }
}

#[test]
fn what_a_failed_sync_lost_can_vanish_without_a_crash() {
    let vanished = (0..50).filter(|seed| {
        let medium = SimulatedMedium::new(*seed);
        let file = durable_file(&medium, "a", &[1; 4_096]);
        medium.drop_caches();
        file.write_all_at(&[&[2; 4_096]], 0).unwrap();
        medium.drop_caches();
        assert_eq!(read_all(file.as_ref()), [2; 4_096], "dirty bytes are never dropped");
        medium.fail_sync(1);
        file.sync_data().unwrap_err();
        medium.drop_caches();
        read_all(file.as_ref()).contains(&1)
    });
    assert!(vanished.count() > 20);
}

#[test]
fn only_the_nth_sync_fails() {
    let medium = SimulatedMedium::new(1);
    let file = durable_file(&medium, "a", b"x");
    medium.fail_sync(3);
    let outcomes: Vec<bool> = (0..5).map(|_| file.sync_data().is_ok()).collect();
    assert_eq!(outcomes, [true, true, false, true, true]);
    medium.fail_sync(1);
    medium.fail_sync(0);
    file.sync_data().unwrap();
    assert_eq!(medium.syncs(), 7);
}

#[test]
fn the_end_of_a_life_takes_faults_back() {
    let medium = SimulatedMedium::new(1);
    medium.fail_sync(1);
    medium.fail_write(1);
    medium.crash_at_operation(3);
    medium.kill();
    durable_file(&medium, "a", b"x");
}

#[test]
fn a_failed_sync_of_the_folder_promises_nothing() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let medium = SimulatedMedium::new(seed);
        medium.create("a").unwrap();
        medium.fail_directory_sync(1);
        medium.sync_directory().unwrap_err();
        let fork = medium.fork(seed);
        fork.crash_losing_unsynced();
        seen.insert(names(&fork).len());
        medium.sync_directory().unwrap();
        medium.crash();
        assert_eq!(names(&medium), ["a"]);
    }
    assert_eq!(seen, BTreeSet::from([0, 1]));
}

#[test]
fn a_failed_or_stuck_write_may_leave_its_first_part() {
    for (is_short, kind) in [(false, None), (true, Some(ErrorKind::WriteZero))] {
        let mut lens = BTreeSet::new();
        for seed in 0..50 {
            let medium = SimulatedMedium::new(seed);
            let file = medium.create("a").unwrap();
            if is_short {
                medium.short_write(2);
            } else {
                medium.fail_write(2);
            }
            file.write_all_at(&[b"abc"], 0).unwrap();
            let error = file.write_all_at(&[b"de", b"fgh"], 3).unwrap_err();
            if let Some(kind) = kind {
                assert_eq!(error.kind(), kind);
            } else {
                assert_eq!(error.raw_os_error(), Some(5), "EIO");
            }
            let bytes = read_all(file.as_ref());
            assert!(b"abcdefgh".starts_with(&bytes));
            assert!(bytes.len() >= 3);
            lens.insert(bytes.len());
            file.write_all_at(&[b"defgh"], 3).unwrap();
        }
        assert_eq!(lens.contains(&8), !is_short, "a short write is never whole");
        assert!(lens.len() > 3, "{lens:?}");
    }
}

#[test]
fn a_full_disk_refuses_growth_and_nothing_else() {
    let medium = SimulatedMedium::new(1);
    medium.set_capacity_bytes(Some(10_000));
    let file = durable_file(&medium, "a", &[1; 6_000]);
    let other = durable_file(&medium, "b", &[2; 3_000]);
    assert_eq!(medium.free_bytes().unwrap(), 1_000);
    file.write_all_at(&[&[3; 2_000]], 5_000).unwrap();
    assert_eq!(medium.free_bytes().unwrap(), 0);
    let error = file.write_all_at(&[&[4; 500]], 6_900).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(file.len().unwrap(), 7_000);
    assert_eq!(read_all(file.as_ref())[6_900..], [4; 100], "what fits was written");
    file.write_all_at(&[&[5; 7_000]], 0).unwrap();
    file.sync_data().unwrap();

    other.set_len(2_000).unwrap();
    assert_eq!(medium.free_bytes().unwrap(), 1_000);
    file.write_all_at(&[&[6; 1_000]], 7_000).unwrap();
    medium.remove("b").unwrap();
    assert_eq!(medium.free_bytes().unwrap(), 2_000);

    medium.set_files_max(Some(1));
    assert_eq!(medium.create("c").unwrap_err().kind(), ErrorKind::StorageFull);
    medium.set_files_max(None);
    medium.create("c").unwrap();
}

#[test]
fn a_length_that_was_only_set_takes_no_space_and_reserves_none() {
    let medium = SimulatedMedium::new(1);
    medium.set_capacity_bytes(Some(1_000));
    let file = medium.create("a").unwrap();
    file.set_len(5_000).unwrap();
    assert_eq!(medium.used_bytes(), 0);
    file.write_all_at(&[&[1; 600]], 1_000).unwrap();
    file.write_all_at(&[&[2; 600]], 1_300).unwrap();
    assert_eq!(medium.used_bytes(), 900);
    let error = file.write_all_at(&[&[3; 200]], 4_000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(medium.free_bytes().unwrap(), 0);
    file.set_len(1_500).unwrap();
    assert_eq!(medium.free_bytes().unwrap(), 500);
}

#[test]
fn a_flipped_bit_is_on_the_disk_too() {
    let medium = SimulatedMedium::new(1);
    let file = durable_file(&medium, "a", &[0; 2_000]);
    medium.flip_bit("a", 1_500, 3).unwrap();
    let mut expected = vec![0; 2_000];
    expected[1_500] = 8;
    assert_eq!(read_all(file.as_ref()), expected);
    medium.crash();
    assert_eq!(content(&medium, "a"), expected);

    medium.set_write_back(0);
    let file = medium.open("a").unwrap();
    file.write_all_at(&[&[2; 2_000]], 0).unwrap();
    medium.flip_bit("a", 1_501, 0).unwrap();
    assert_eq!(read_all(file.as_ref())[1_499..1_503], [2, 2, 3, 2]);
    medium.crash_losing_unsynced();
    assert_eq!(content(&medium, "a")[1_499..1_503], [0, 8, 1, 0]);

    assert_eq!(medium.flip_bit("a", 2_000, 0).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert_eq!(medium.flip_bit("b", 0, 0).unwrap_err().kind(), ErrorKind::NotFound);
}

/// One of each operation; returns how many went well.
fn workload(medium: &SimulatedMedium) -> usize {
    let run = || -> Result<(), (usize, std::io::Error)> {
        let file = medium.create("a").map_err(|error| (0, error))?;
        file.write_all_at(&[&[1; 2_000]], 0).map_err(|error| (1, error))?;
        file.set_len(1_000).map_err(|error| (2, error))?;
        file.sync_data().map_err(|error| (3, error))?;
        medium.sync_directory().map_err(|error| (4, error))?;
        medium.rename("a", "b").map_err(|error| (5, error))?;
        medium.remove("b").map_err(|error| (6, error))?;
        Ok(())
    };
    run().map_or_else(|(done, _)| done, |()| 7)
}

#[test]
fn the_machine_can_stop_at_every_operation() {
    let untouched = SimulatedMedium::new(1);
    assert_eq!(workload(&untouched), 7);
    assert_eq!(untouched.operations(), 7);
    assert_eq!((untouched.writes(), untouched.syncs()), (1, 1));
    assert_eq!(untouched.directory_syncs(), 1);
    let mut half_done = BTreeSet::new();
    for stop in 1..=7 {
        for seed in 0..40 {
            let medium = SimulatedMedium::new(seed);
            medium.crash_at_operation(stop as u64);
            assert!(!medium.is_stopped());
            assert_eq!(workload(&medium), stop - 1, "that operation fails");
            assert!(medium.is_stopped());
            medium.list().unwrap_err();
            medium.open_read("a").unwrap_err();
            medium.free_bytes().unwrap_err();
            assert!(matches!(medium.lock(false), Err(LockError::Io(_))));
            medium.kill();
            assert!(!medium.is_stopped());
            half_done.insert((stop, format!("{:?}", medium.list().unwrap())));
        }
    }
    let outcomes = |stop| half_done.iter().filter(|(at, _)| *at == stop).count();
    assert_eq!(outcomes(1), 2, "created or not");
    assert!(outcomes(2) > 10, "parts of the write");
    assert_eq!(outcomes(3), 2, "cut or not");
    assert_eq!(outcomes(6), 2, "renamed or not");
    assert_eq!(outcomes(7), 2, "removed or not");
}

#[test]
fn a_sync_that_the_machine_stops_at_may_be_half_done() {
    let outcomes: BTreeSet<usize> = (0..100)
        .map(|seed| {
            let medium = SimulatedMedium::new(seed);
            medium.set_write_back(0);
            let file = durable_file(&medium, "a", &[1; 16 * SECTOR]);
            file.write_all_at(&[&[2; 16 * SECTOR]], 0).unwrap();
            medium.crash_at_operation(1);
            file.sync_data().unwrap_err();
            medium.crash_losing_unsynced();
            let bytes = content(&medium, "a");
            bytes.iter().filter(|byte| **byte == 2).count() / SECTOR
        })
        .collect();
    assert!(outcomes.contains(&0));
    assert!(outcomes.contains(&16));
    assert!(outcomes.len() > 6, "{outcomes:?}");
}

#[test]
fn a_held_sync_covers_only_what_was_written_before_it() {
    for seed in 0..50 {
        let medium = SimulatedMedium::new(seed);
        medium.set_write_back(0);
        let file = durable_file(&medium, "a", &[1; 1_024]);
        file.write_all_at(&[&[2; 600]], 512).unwrap();
        file.write_all_at(&[&[2; 424]], 1_112).unwrap();
        medium.hold_syncs();
        let syncing = Arc::clone(&file);
        let sync = thread::spawn(move || syncing.sync_data());
        medium.wait_for_held_sync();
        file.write_all_at(&[&[3; 1_024]], 1_024).unwrap();
        medium.release_syncs();
        sync.join().unwrap().unwrap();
        let fork = medium.fork(seed);
        fork.crash();
        assert!(content(&fork, "a").len() >= 1_536, "seed {seed}");
        medium.crash_losing_unsynced();
        let bytes = content(&medium, "a");
        assert_eq!(bytes.len(), 1_536);
        assert_eq!(bytes[..512], [1; 512]);
        assert_eq!(bytes[512..], [2; 1_024], "seed {seed}");
    }
}

#[test]
fn a_sync_that_hangs_ends_with_the_life_of_the_machine() {
    let medium = SimulatedMedium::new(1);
    let file = durable_file(&medium, "a", b"x");
    medium.hold_syncs();
    let sync = thread::spawn(move || file.sync_data());
    medium.wait_for_held_sync();
    medium.crash();
    sync.join().unwrap().unwrap_err();
    medium.open("a").unwrap().sync_data().unwrap();
}
