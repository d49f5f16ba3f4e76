//! Folders that a start refuses, and changes nothing in.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

mod driver;

use driver::forgery::{Forgery, crc_of, salt_in};
use driver::survived::{copy_of, some_entries, start};
use driver::told::{kinds, log_of_several_segments, told_rightly};
use tidelog_storage::{DamageKind, OpenError, Sabotages, verify};

#[test]
fn segments_of_another_log_are_set_aside_or_refused_and_never_served() {
    let mut driver = log_of_several_segments(12);
    let mut other = start(99, Sabotages::default()).unwrap();
    some_entries(&mut other).unwrap();
    other.close().unwrap();
    let foreign = other.bytes_of(&other.names("segment-")[0]);
    // In the place of a lost one.
    let names = driver.names("segment-");
    let mut replaced = driver.fork(1);
    replaced.put(&names[0], &foreign);
    let observed = replaced.open_observed().unwrap();
    assert!(observed.report.set_aside.len() == 1, "{:?}", observed.report);
    assert!(kinds(&observed).contains(&DamageKind::SegmentMissing));
    told_rightly(&mut replaced, &observed);
    // Newer than all: what stood there before can't be known.
    let mut named = foreign.clone();
    named[32..40].copy_from_slice(&77_u64.to_le_bytes());
    let crc = crc32fast::hash(&named[..4_092]).to_le_bytes();
    named[4_092..4_096].copy_from_slice(&crc);
    driver.put("segment-0000000000000077", &named);
    let before = driver.snapshot();
    assert!(matches!(driver.open_observed(), Err(OpenError::OtherBranch { .. })));
    assert_eq!(driver.snapshot(), before);
}

#[test]
fn a_segment_of_another_branch_is_refused_and_nothing_is_touched() {
    let mut driver = log_of_several_segments(13);
    let mut branch = driver.fork(14);
    for life in [&mut driver, &mut branch] {
        life.reopen().unwrap();
        some_entries(life).unwrap();
        life.close().unwrap();
        life.kill();
    }
    let name = driver.names("segment-").pop().unwrap();
    driver.reopen().unwrap();
    driver.kill();
    driver.put(&name, &branch.bytes_of(&name));
    let before = driver.snapshot();
    assert!(matches!(driver.open_observed(), Err(OpenError::OtherBranch { .. })));
    assert_eq!(driver.snapshot(), before);
}

#[test]
fn a_name_behind_which_no_number_is_left_is_refused() {
    let mut driver = log_of_several_segments(14);
    driver.put("segment-9999999999999999", &[]);
    let before = driver.snapshot();
    assert!(matches!(driver.open_observed(), Err(OpenError::Contradiction { .. })));
    assert_eq!(driver.snapshot(), before);
}

#[test]
fn an_unknown_format_is_refused_and_not_one_byte_is_changed() {
    let driver = log_of_several_segments(15);
    for name in driver.names("segment-") {
        for (at, value) in [(4_usize, 2_u8), (8, 1)] {
            let mut hurt = driver.fork(1);
            let mut header = hurt.bytes_of(&name)[..4_096].to_vec();
            header[at] = value;
            let crc = crc32fast::hash(&header[..4_092]).to_le_bytes();
            header[4_092..].copy_from_slice(&crc);
            hurt.overwrite(&name, 4_096, &header);
            let before = hurt.snapshot();
            assert!(matches!(hurt.open_observed(), Err(OpenError::UnknownFormat { .. })), "{name}");
            assert!(verify(&hurt.disk, &mut |_| ()).is_err());
            assert_eq!(hurt.snapshot(), before);
        }
    }
}

#[test]
fn an_entry_that_must_be_understood_is_refused_and_not_one_byte_is_changed() {
    let driver = log_of_several_segments(16);
    for expected in [0, driver.model.entries.len() - 1] {
        let entry = driver.model.entries[expected].entry.clone();
        for copy_only in [false, true] {
            let mut hurt = driver.fork(1);
            let (name, offset) = hurt.place(entry.position);
            let segment = hurt.bytes_of(&name);
            let covered = (entry.end - copy_of(&entry)) as usize;
            for at in [offset, offset + copy_of(&entry) - entry.position] {
                let mut header = segment[at as usize..at as usize + covered].to_vec();
                // The flags' high byte.
                header[35] = 0x80;
                let crc = crc_of(salt_in(&segment), &header[8..]);
                header[4..8].copy_from_slice(&crc.to_le_bytes());
                hurt.overwrite(&name, at, &header);
            }
            if copy_only {
                hurt.flip(entry.position + 50, 1);
            }
            let before = hurt.snapshot();
            let refused = hurt.open_observed();
            assert!(matches!(refused, Err(OpenError::UnknownEntry { flags: 0x8000, .. })), "{:?}", refused.err());
            assert!(verify(&hurt.disk, &mut |_| ()).is_err());
            assert_eq!(hurt.snapshot(), before);
        }
    }
}

#[test]
fn an_unknown_kind_is_refused_but_unknown_low_flags_are_not() {
    let mut driver = start(17, Sabotages::default()).unwrap();
    some_entries(&mut driver).unwrap();
    let position = driver.durable();
    driver.close().unwrap();
    driver.kill();
    let (name, offset) = driver.place(position);
    let salt = salt_in(&driver.bytes_of(&name));
    let position = position + 208;
    let forged = Forgery { salt, position, flags: 0x0001, subject: 9 };
    driver.overwrite(&name, offset + 208, &forged.bytes());
    let mut newer = driver.fork(1);
    let observed = driver.open_observed().unwrap();
    assert_eq!(observed.entries.last().unwrap().subject, 9);
    newer.overwrite(&name, offset + 208, &Forgery { flags: 0x0101, ..forged }.bytes());
    assert!(matches!(newer.open_observed(), Err(OpenError::UnknownEntry { .. })));
}

#[test]
fn a_folder_in_use_is_refused_and_left_alone() {
    let mut driver = start(18, Sabotages::default()).unwrap();
    some_entries(&mut driver).unwrap();
    let first = driver.life.take();
    let before = driver.snapshot();
    assert!(matches!(driver.open_observed(), Err(OpenError::Locked(_))));
    assert!(matches!(verify(&driver.disk, &mut |_| ()), Err(OpenError::Locked(_))));
    assert_eq!(driver.snapshot(), before);
    driver.life = first;
    driver.close().unwrap();
    driver.reopen().unwrap();
}
