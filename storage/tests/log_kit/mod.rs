//! What tests of the log write to it.

use tidelog_storage::{EntryKind, Facts, FillPace, Job, JobOutcome, NewEntry, OpenedLog};

/// A payload of `len` bytes behind its checksum.
pub(crate) fn payload(len: usize, fill: u8) -> Vec<u8> {
    let body = vec![fill; len];
    [crc32fast::hash(&body).to_le_bytes().as_slice(), &body].concat()
}

/// An entry with one record.
pub(crate) fn records<'a>(subject: u64, base_offset: u64, facts: &'a Facts, payload: &'a [u8]) -> NewEntry<'a> {
    NewEntry {
        kind: EntryKind::Records,
        subject,
        base_offset,
        span: 1,
        skip: 0,
        owner: [9; 16],
        facts,
        payload,
        head_len: 8,
    }
}

/// Makes the next file if one is wanted, and gives its length.
pub(crate) fn put_spare(log: &mut OpenedLog, pace: FillPace) -> Option<u64> {
    let len = log.appender.spare_wanted()?;
    let JobOutcome::Spare(spare) = log.housekeeping.run(&Job::PrepareSpare { len, pace }).unwrap() else {
        panic!("no spare")
    };
    log.appender.put_spare(spare);
    Some(len)
}
