//! The histories that the log survives, as functions that say what was wrong: the same ones run without a defect, and
//! with the deliberate one that each must notice.

use tidelog_storage::{DamageKind, LogOptions, ReadOutcome, Sabotage, Sabotages};

use super::forgery::Forgery;
use super::model::Entry;
use super::{Checked, Driver, HEADER_LEN, Observed, Spec, small_options};
use crate::check;

/// A driver on an empty disk, with a deliberate defect or none.
pub(crate) fn start(seed: u64, sabotages: Sabotages) -> Checked<Driver> {
    Driver::started(seed, LogOptions { sabotages, ..small_options() })
}

/// A few acknowledged entries of three subjects, one with facts.
pub(crate) fn some_entries(driver: &mut Driver) -> Checked {
    driver.append_one(1, 700)?;
    driver.append_one(2, 40)?;
    driver.commit()?;
    let with_facts = Spec { facts: Spec::fact(3, b"a value").facts, ..Spec::records(3, &[9; 300]) };
    driver.append(&[with_facts])?;
    driver.append_one(1, 1_200)?;
    driver.commit()
}

/// Acknowledged entries until the log has gone on in another segment.
pub(crate) fn fill_a_segment(driver: &mut Driver) -> Checked {
    let before = driver.names("segment-").len();
    while driver.names("segment-").len() == before {
        for subject in 1..=4 {
            driver.append_one(subject, 1_500 + 300 * subject as usize)?;
        }
        driver.commit()?;
    }
    driver.run_jobs()
}

/// A closed log of several segments, some begun by a start and some when the one before was full.
pub(crate) fn several_segments(seed: u64, sabotages: Sabotages) -> Checked<Driver> {
    let mut driver = start(seed, sabotages)?;
    for _ in 0..2 {
        fill_a_segment(&mut driver)?;
        some_entries(&mut driver)?;
        driver.close()?;
        driver.kill();
        driver.reopen()?;
    }
    some_entries(&mut driver)?;
    driver.close()?;
    driver.kill();
    Ok(driver)
}

/// A1: a sync fails, the process ends, the page cache shows what never reached the disk, and a new sync would say ok.
pub(crate) fn failed_sync_then_restart(seed: u64, sabotages: Sabotages) -> Checked {
    let mut driver = start(seed, sabotages)?;
    driver.disk.set_write_back(0);
    some_entries(&mut driver)?;
    driver.append_one(2, 3_000)?;
    driver.append_one(3, 2_000)?;
    driver.disk.fail_sync(1);
    if driver.commit().is_ok() {
        driver.cut_power_losing_unsynced();
        driver.reopen()?;
        return Ok(());
    }
    check!(driver.commit().is_err() || !driver.take_group(), "a poisoned writer took a group");
    driver.kill();
    let report = driver.reopen()?;
    check!(report.rewritten_bytes > 0, "the tail was not written again: {report:?}");
    // It has been believed: now it has to be true.
    driver.cut_power_losing_unsynced();
    driver.reopen()?;
    some_entries(&mut driver)?;
    driver.kill();
    driver.disk.drop_caches();
    driver.reopen()?;
    Ok(())
}

/// A2: behind the place where the log was cut stand intact entries. A batch of the right length is put before them.
pub(crate) fn valid_entries_behind_a_cut(seed: u64, sabotages: Sabotages) -> Checked {
    let mut driver = start(seed, sabotages)?;
    some_entries(&mut driver)?;
    driver.append_one(1, 4_000)?;
    let broken = driver.last();
    // As long as a watermark.
    let bare = Spec { facts: Vec::new(), ..Spec::fact(2, b"") };
    driver.append(&[bare])?;
    let behind = driver.last();
    driver.append_one(3, 100)?;
    driver.take_group();
    driver.step()?;
    driver.kill();
    driver.flip(broken.position + 20, 3);
    driver.flip(copy_of(&broken) + 20, 3);
    let report = driver.reopen()?;
    check!(report.end == broken.position, "cut at {} instead of {}", report.end, broken.position);
    check!(report.cut.is_some_and(|cut| cut.end > behind.end), "what was cut was not told");
    // The same client again; if the log went on in place, this would end where the old entries go on.
    let position = driver.durable() + 2 * HEADER_LEN;
    let len = behind.position - position;
    let content = len - 2 * HEADER_LEN - 56 - 4;
    driver.append_one(1, content as usize)?;
    check!(driver.last().end == behind.position, "the history is not the one it should be");
    driver.commit()?;
    driver.kill();
    driver.reopen()?;
    Ok(())
}

/// A2, second form: under the entries of a new segment lie those that an earlier life wrote at the same positions of a
/// segment of the same number.
pub(crate) fn entries_of_another_life_in_the_same_place(seed: u64, sabotages: Sabotages) -> Checked {
    let mut driver = start(seed, sabotages)?;
    some_entries(&mut driver)?;
    driver.close()?;
    let mut other = driver.fork(seed + 1);
    for life in [&mut driver, &mut other] {
        life.kill();
        life.reopen()?;
    }
    other.append_one(9, 100)?;
    other.commit()?;
    let (entry, end) = (other.last(), other.durable());
    let (name, offset) = other.place(entry.position);
    let old = other.bytes_of(&name);
    driver.overwrite(&name, offset, &old[offset as usize..(offset + end - entry.position) as usize]);
    check!(driver.place(entry.position) == (name, offset), "the two lives differ");
    driver.kill();
    driver.reopen()?;
    Ok(())
}

/// A4: any one byte of a header, its facts or its payload's head is flipped, before or behind the payload: nothing is lost.
pub(crate) fn every_header_byte_flipped(seed: u64, sabotages: Sabotages) -> Checked {
    let mut driver = start(seed, sabotages)?;
    some_entries(&mut driver)?;
    let target = driver.model.entries[2].entry.clone();
    check!(!target.facts.is_empty() && target.head.len() == 56, "not the entry that was meant");
    some_entries(&mut driver)?;
    driver.close()?;
    driver.kill();
    let facts_len = target.end - copy_of(&target) - HEADER_LEN - target.head.len() as u64;
    let payload_at = HEADER_LEN + facts_len;
    for byte in 0..payload_at + target.head.len() as u64 {
        for at in [target.position + byte, copy_of(&target) + byte] {
            let mut hurt = driver.fork(seed + byte);
            hurt.flip(at, (byte % 8) as u8);
            let text = |what: &str| format!("byte {byte} of {target:?}: {what}");
            let observed = hurt.open_observed().map_err(|error| text(&error.to_string()))?;
            check!(observed.holes.is_empty(), "{}", text("a hole"));
            check!(all_there(&hurt, &observed), "{}", text("state is lost"));
            check!(observed.report.damages.len() == 1, "{}", text(&format!("{:?}", observed.report.damages)));
            let damage = &observed.report.damages[0];
            check!(
                damage.kind == DamageKind::EntryCopy && damage.positions == (target.position..target.end),
                "{}",
                text("other damage")
            );
            check!(damage.subject == Some(target.subject), "{}", text("nobody's damage"));
            // The payload's own leading bytes too: the copy heals them.
            check!(damage.offsets == Some(0..1), "{}", text("offsets are not told"));
            hurt.read_back(target.subject, 0)?;
            hurt.read_back(1, 0)?;
        }
    }
    Ok(())
}

/// A4: both headers of one entry below the durable position are gone.
pub(crate) fn both_headers_gone(seed: u64, sabotages: Sabotages) -> Checked {
    let mut driver = start(seed, sabotages)?;
    some_entries(&mut driver)?;
    let target = driver.model.entries[2].entry.clone();
    some_entries(&mut driver)?;
    driver.close()?;
    driver.kill();
    driver.flip(target.position + 30, 1);
    driver.flip(copy_of(&target) + 30, 1);
    driver.model.entries.remove(2);
    for start in 0..3 {
        let observed = driver.open_observed().map_err(|error| error.to_string())?;
        check!(all_there(&driver, &observed), "start {start}: later entries are lost: {:?}", observed.entries);
        let hole = target.position..target.end;
        check!(observed.holes == [hole.clone()], "start {start}: the hole is not told: {:?}", observed.holes);
        let damages = &observed.report.damages;
        check!(damages.len() == 1 && damages[0].positions == hole, "start {start}: {damages:?}");
        let outcomes = driver.read(target.subject, 0)?;
        let told = matches!(outcomes[..], [ReadOutcome::Damaged { from: 0, to: 1 }, ReadOutcome::Batch(_)]);
        check!(told, "start {start}: a reader is not told: {outcomes:?}");
        driver.read_back(1, 0)?;
        driver.kill();
    }
    Ok(())
}

/// A5: under steady load the process is killed right after each answer, and one bit of what was answered last flips.
pub(crate) fn killed_right_after_an_answer(seed: u64, sabotages: Sabotages) -> Checked {
    let mut driver = start(seed, sabotages)?;
    for round in 0..12_u64 {
        driver.append_one(1, 200)?;
        driver.append_one(2, 300)?;
        driver.take_group();
        // The next group fills while this one is written and synced.
        driver.append_one(3, 100)?;
        while driver.model.acknowledged < driver.model.entries.len() - 1 {
            driver.step()?;
        }
        let target = driver.model.entries[driver.model.acknowledged - 1].entry.clone();
        for byte in 0..target.end - target.position {
            if (byte + round) % 5 != 0 {
                continue;
            }
            let mut killed = driver.fork(seed + byte);
            killed.kill();
            killed.flip(target.position + byte, (byte % 8) as u8);
            killed.model.entries.truncate(killed.model.acknowledged);
            let observed = killed.open_observed().map_err(|error| error.to_string())?;
            let report = &observed.report;
            check!(all_there(&killed, &observed), "byte {byte} of the last answered entry, and it is cut: {report:?}");
            check!(report.damages.len() == 1, "byte {byte}: {:?}", report.damages);
        }
    }
    Ok(())
}

/// A7: an atomic group is there whole or not at all, wherever the machine stops; it does not fit the segment, so it
/// begins the next one.
pub(crate) fn atomic_groups_are_whole(seed: u64, sabotages: Sabotages) -> Checked {
    let mut driver = start(seed, sabotages)?;
    let atomic = || [1, 2, 3, 1].map(|subject| Spec::records(subject, &[subject as u8; 4_000]));
    let before = driver.names("segment-").len();
    while driver.names("segment-").len() == before {
        driver.append(&atomic())?;
        driver.append_one(4, 100)?;
        driver.commit()?;
    }
    // Another full one is begun, its last group is on the way.
    for _ in 0..3 {
        driver.append(&atomic())?;
    }
    driver.commit()?;
    driver.close()?;
    driver.kill();
    for at in 1.. {
        let mut cut = driver.fork(seed + at);
        cut.open_observed().map_err(|error| error.to_string())?;
        cut.disk.crash_at_operation(at);
        let mut work = || -> Checked {
            for _ in 0..7 {
                cut.prepare_spare().map_err(|error| error.to_string())?;
                cut.append(&atomic())?;
                cut.append_one(4, 100)?;
                cut.commit()?;
            }
            Ok(())
        };
        let done = work().is_ok();
        match at % 3 {
            0 => cut.cut_power_losing_unsynced(),
            1 => cut.cut_power(),
            _ => cut.kill(),
        }
        let observed = cut.open_observed().map_err(|error| error.to_string())?;
        whole_groups(&observed.entries).map_err(|text| format!("stopped at operation {at}: {text}"))?;
        if done {
            return Ok(());
        }
    }
    Ok(())
}

fn whole_groups(entries: &[Entry]) -> Checked {
    let mut next = (0, None);
    for entry in entries {
        let is_next = entry.atomic_index == next.0 && next.1.is_none_or(|left| entry.atomic_left == left);
        check!(is_next, "an atomic group is there in part, before {entry:?}");
        next = match entry.atomic_left {
            0 => (0, None),
            left => (entry.atomic_index + 1, Some(left - 1)),
        };
    }
    check!(next.0 == 0, "an atomic group is there in part, at the end");
    Ok(())
}

/// B1: the machine stops at each operation of a change of segments. What was synced before the new header is not torn
/// but would be damage, and there must be none.
pub(crate) fn stopped_during_a_change_of_segments(seed: u64, sabotages: Sabotages) -> Checked {
    let mut driver = start(seed, sabotages)?;
    driver.disk.set_write_back(0);
    driver.close()?;
    driver.kill();
    // So many groups fill the first segment.
    let mut full = driver.fork(seed);
    full.open_judged()?;
    let mut groups = 0;
    while full.try_append(&[Spec::records(1, &[7; 4_000])]).is_ok() {
        full.commit()?;
        groups += 1;
    }
    for at in 1.. {
        let mut cut = driver.fork(seed + at);
        cut.open_judged()?;
        cut.prepare_spare().map_err(|error| error.to_string())?;
        for _ in 0..groups {
            cut.append_one(1, 4_000)?;
            cut.commit()?;
        }
        let segments = cut.names("segment-").len();
        cut.disk.crash_at_operation(at);
        let done = cut.append_one(1, 4_000).and_then(|()| cut.commit()).is_ok();
        check!(!done || cut.names("segment-").len() == segments + 1, "the segment was not full");
        cut.cut_power_losing_unsynced();
        cut.open_judged().map_err(|reason| format!("stopped at operation {at}: {}", String::from(reason)))?;
        if done {
            return Ok(());
        }
    }
    Ok(())
}

/// B1: the end of a segment is gone and the next one is there.
pub(crate) fn hole_at_the_end_of_a_segment(seed: u64, sabotages: Sabotages) -> Checked {
    let mut driver = start(seed, sabotages)?;
    fill_a_segment(&mut driver)?;
    some_entries(&mut driver)?;
    driver.close()?;
    driver.kill();
    let newest = driver.names("segment-").pop().unwrap();
    let base = driver.base_of(&newest);
    let at = driver.model.entries.partition_point(|expected| expected.entry.end <= base) - 1;
    let target = driver.model.entries.remove(at).entry;
    // Zeros from the last entry to the end, as if they had never been written.
    let (name, offset) = driver.place(target.position);
    driver.overwrite(&name, offset, &vec![0; (base - target.position) as usize]);
    for start in 0..2 {
        let observed = driver.open_observed().map_err(|error| error.to_string())?;
        check!(observed.holes == std::slice::from_ref(&(target.position..base)), "start {start}: {:?}", observed.holes);
        check!(all_there(&driver, &observed), "start {start}: what comes behind the hole is lost");
        check!(observed.report.cut.is_none(), "start {start}: a cut: {:?}", observed.report);
        driver.kill();
    }
    Ok(())
}

/// B2: a record holds entries of the log, forged without the salt and copied from elsewhere in the log, and the header
/// in front of it breaks.
pub(crate) fn forged_entries_in_a_record(seed: u64, sabotages: Sabotages) -> Checked {
    let mut driver = start(seed, sabotages)?;
    some_entries(&mut driver)?;
    let copied = driver.model.entries[0].entry.clone();
    let (name, offset) = driver.place(copied.position);
    let verbatim = driver.bytes_of(&name)[offset as usize..(offset + copied.end - copied.position) as usize].to_vec();
    driver.close()?;
    driver.kill();
    driver.reopen()?;
    // A copy of an entry of an older segment, one of this segment, and forgeries for every salt that can be guessed.
    some_entries(&mut driver)?;
    let own = driver.last();
    let (name, offset) = driver.place(own.position);
    let own = driver.bytes_of(&name)[offset as usize..(offset + own.end - own.position) as usize].to_vec();
    let position = driver.durable() + 2 * HEADER_LEN;
    let mut content = vec![0; 4];
    content.extend([verbatim, own].concat());
    for guess in 0..6_u64 {
        let at = position + HEADER_LEN + 4 + content.len() as u64;
        content.resize(content.len() + (at.next_multiple_of(8) - at) as usize, 0);
        let position = at.next_multiple_of(8);
        content.extend(Forgery { salt: guess.to_le_bytes(), position, flags: 0, subject: 666 }.bytes());
    }
    driver.append(&[Spec::records(5, &content)])?;
    let hostile = driver.last();
    check!(hostile.position == position, "the record is not where the attacker thinks");
    driver.commit()?;
    some_entries(&mut driver)?;
    driver.close()?;
    driver.kill();
    let mut front = driver.fork(seed + 1);
    front.flip(hostile.position + 1, 1);
    let observed = front.open_observed().map_err(|error| error.to_string())?;
    check!(all_there(&front, &observed), "the record's own copy was not taken");
    front.read_everything_back()?;
    let mut both = driver.fork(seed + 2);
    both.flip(hostile.position + 1, 1);
    both.flip(copy_of(&hostile) + 1, 1);
    both.model.entries.retain(|expected| expected.entry != hostile);
    let observed = both.open_observed().map_err(|error| error.to_string())?;
    check!(all_there(&both, &observed), "a forged entry was taken");
    check!(observed.holes == std::slice::from_ref(&(hostile.position..hostile.end)), "{:?}", observed.holes);
    check!(both.read(666, 0)?.is_empty(), "a forged record was served");
    // A reader finds its own way past the damage, on a log that was opened before it.
    let mut late = driver.fork(seed + 3);
    late.open_judged()?;
    late.flip(hostile.position + 1, 1);
    late.flip(copy_of(&hostile) + 1, 1);
    check!(late.read(666, 0)?.is_empty() && late.read(5, 0)?.is_empty(), "a forged record was served");
    late.read_back(1, 0)?;
    late.read_back(3, 0)
}

/// B11: a group is written over a sector that holds the end of an acknowledged one, and any of its sectors is old or new.
pub(crate) fn torn_sectors(seed: u64, sabotages: Sabotages) -> Checked {
    let mut driver = start(seed, sabotages)?;
    driver.disk.set_write_back(0);
    some_entries(&mut driver)?;
    driver.append_one(1, 60)?;
    driver.append(&[1, 2, 3].map(|subject| Spec::records(subject, &[5; 900])))?;
    driver.append_one(2, 90)?;
    driver.take_group();
    driver.step()?;
    for luck in 0..200 {
        let mut torn = driver.fork(seed * 1_000 + luck);
        torn.cut_power();
        // Recovery writes over the same sectors, and dies at some point of that too.
        torn.disk.crash_at_operation(1 + luck % 12);
        let _ = torn.open_observed();
        torn.cut_power();
        torn.reopen().map_err(|text| format!("luck {luck}: {text}"))?;
    }
    Ok(())
}

/// New names are synced before what is in the files is believed.
pub(crate) fn names_are_durable(seed: u64, sabotages: Sabotages) -> Checked {
    let mut driver = Driver::new(seed, LogOptions { sabotages, ..small_options() });
    driver.disk.set_write_back(0);
    driver.open_judged()?;
    some_entries(&mut driver)?;
    driver.cut_power_losing_unsynced();
    driver.open_judged()?;
    let segments = driver.names("segment-").len();
    while driver.names("segment-").len() == segments {
        driver.append_one(1, 4_000)?;
        driver.commit()?;
    }
    driver.cut_power_losing_unsynced();
    driver.open_judged()?;
    Ok(())
}

/// Position of the copy of an entry's header.
pub(crate) fn copy_of(entry: &Entry) -> u64 {
    let copy = HEADER_LEN + facts_len(entry) + entry.head.len() as u64;
    entry.end - copy
}

fn facts_len(entry: &Entry) -> u64 {
    let facts = entry.facts.iter().map(|fact| 12 + fact.key.len() + fact.value.len()).sum::<usize>();
    facts.next_multiple_of(8) as u64
}

/// Whether a fold was given exactly the model's entries.
pub(crate) fn all_there(driver: &Driver, observed: &Observed) -> bool {
    driver.model.entries.iter().map(|expected| &expected.entry).eq(&observed.entries)
}

/// What the crash model's red needs: a defect is noticed by one of these.
pub(crate) fn history_of(sabotage: Sabotage) -> Option<fn(u64, Sabotages) -> Checked> {
    Some(match sabotage {
        Sabotage::SyncTailWithoutRewrite | Sabotage::RetryFailedSync => failed_sync_then_restart,
        Sabotage::AppendBehindCut => valid_entries_behind_a_cut,
        Sabotage::SaltIsCounter => forged_entries_in_a_record,
        Sabotage::StampAtEncode => torn_sectors,
        Sabotage::AnswerBeforeWatermark | Sabotage::CutAtAnyBadChecksum => killed_right_after_an_answer,
        Sabotage::NoHeaderCopy => every_header_byte_flipped,
        Sabotage::SplitAtomicGroup => atomic_groups_are_whole,
        Sabotage::HeaderBeforeLastSync => stopped_during_a_change_of_segments,
        Sabotage::AnswerBeforeSync | Sabotage::NoDirectorySync => names_are_durable,
        _ => return None,
    })
}
