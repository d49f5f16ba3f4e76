//! What every medium promises.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

use std::fs;
use std::io::{ErrorKind, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use rustix::fs::{Advice, fadvise};

use tidelog_storage::medium::{
    DiskMedium, FileStat, LockError, Medium, MemoryMedium, SimulatedMedium, SimulatedRng, read_exact_at,
};

mod media_kit;
mod thread_io;
use media_kit::{content, durable_file, names, read_all};
use thread_io::thread_io;

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
        assert_eq!(content(other, "a"), model);
    });
}

#[test]
fn room_that_is_taken_reads_as_zeros_and_is_written_to_like_any_other() {
    on_every_medium(|medium, other| {
        let file = medium.create("a").unwrap();
        // Every medium here can, where its file system can.
        if !file.allocate(3 * 4_096).unwrap() {
            assert!(file.is_empty().unwrap());
            return;
        }
        let mut model = vec![0; 3 * 4_096];
        assert_eq!(content(other, "a"), model);
        file.append_at(&[b"bytes"], 4_090).unwrap();
        file.sync_data().unwrap();
        model[4_090..4_095].copy_from_slice(b"bytes");
        assert_eq!(content(other, "a"), model);
    });
}

#[test]
fn room_on_a_disk_is_taken_without_writing_it() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let medium = DiskMedium::open(folder.path()).unwrap();
    let file = medium.create("a").unwrap();
    let before = thread_io("write_bytes");
    if file.allocate(4 << 20).unwrap() {
        file.sync_data().unwrap();
        let written = thread_io("write_bytes") - before;
        assert!(written < 256 << 10, "{written} bytes were written");
        // And it is there: nobody else can have it.
        assert!(fs::metadata(folder.path().join("a")).unwrap().blocks() * 512 >= 4 << 20);
    }
}

#[test]
fn an_append_among_zeros_that_are_not_in_memory_reads_nothing_from_the_disk() {
    // Beside the build, where a disk is; in memory there is nothing to see.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let medium = DiskMedium::open(folder.path()).unwrap();
    let file = medium.create("a").unwrap();
    file.write_all_at(&[&[0; 64 << 10]], 0).unwrap();
    file.sync_data().unwrap();
    // As if others had needed the memory.
    let other = fs::File::open(folder.path().join("a")).unwrap();
    fadvise(&other, 0, NonZeroU64::new(64 << 10), Advice::DontNeed).unwrap();
    let before = thread_io("read_bytes");
    // Each ends in a page that nothing of is in memory, and begins in one that the last has left there.
    for number in 0..20 {
        file.append_at(&[&[1; 3_000]], number * 3_000).unwrap();
        file.sync_data().unwrap();
    }
    // Some page of the file system's own may have to be read, but not one for each of the fifteen begun.
    let read = thread_io("read_bytes") - before;
    assert!(read <= 3 * 4_096, "{read} bytes were read");
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
