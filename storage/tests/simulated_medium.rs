//! What the simulated machine does to those who rely on more than a medium promises.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::Arc;
use std::thread;

use tidelog_storage::medium::{LockError, Medium, SimulatedMedium, SimulatedRng};

mod media_kit;
use media_kit::{content, durable_file, names, read_all};

const SECTOR: usize = 512;

// Power cuts.

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
