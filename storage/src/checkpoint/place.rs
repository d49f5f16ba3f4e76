//! Step 11 of recovery: whether the entry that a checkpoint was made at is an entry of this log. Writes nothing.

use crate::error::OpenError;
use crate::folder::Folder;
use crate::medium::read_exact_at;
use crate::scan::{Scan, Scanned};
use crate::segment::{ENTRIES_AT, file_offset};
use crate::survey::{End, Part, Survey};
use crate::{LogOptions, Sabotage};

use super::{EntryMark, Stamp};

/// What a stamp is to the log that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Its entry stands in the log, or can't be read where it should stand: what the checkpoint holds is of this log.
    Within,
    /// The log ends before it: bytes that were durable are missing.
    BehindTheEnd,
    /// It was made at an entry that this log does not have.
    Elsewhere(&'static str),
}

/// Where `stamp` stands. `end_of_newest` tells where the entries of the newest segment end; asked only when it matters.
pub(crate) fn place(
    folder: Folder<'_>,
    survey: &Survey,
    stamp: &Stamp,
    options: &LogOptions,
    end_of_newest: impl FnOnce(&Part) -> Result<u64, OpenError>,
) -> Result<Place, OpenError> {
    let Some(newest) = survey.chain.last() else { return Ok(Place::BehindTheEnd) };
    let placed = of_this_log(folder, survey, newest, stamp, end_of_newest)?;
    match placed {
        Place::Elsewhere(_) if options.sabotages.has(Sabotage::CheckpointWithoutBranchCheck) => Ok(Place::Within),
        placed => Ok(placed),
    }
}

fn of_this_log(
    folder: Folder<'_>,
    survey: &Survey,
    newest: &Part,
    stamp: &Stamp,
    end_of_newest: impl FnOnce(&Part) -> Result<u64, OpenError>,
) -> Result<Place, OpenError> {
    if newest.header.log_id != stamp.log_id {
        return Ok(Place::Elsewhere("it is of another log"));
    }
    let mark = &stamp.mark;
    let covering = survey.chain.iter().rfind(|part| part.header.base <= mark.position);
    if let Some(part) = covering.filter(|part| part.header.salt == mark.salt) {
        return in_its_segment(folder, part, mark);
    }
    if covering.is_some_and(|part| part.end == End::Open) {
        // Its segment is gone, and nothing is known of what stood behind the newest one that is there.
        return Ok(match mark.end > end_of_newest(newest)? {
            true => Place::BehindTheEnd,
            false => Place::Elsewhere(OTHER_BRANCH),
        });
    }
    let is_missing_there = survey.chain.iter().any(|part| {
        let named = part.header.predecessor.filter(|its| its.salt == mark.salt);
        named.is_some_and(|its| its.base <= mark.position && mark.end <= part.header.base)
    });
    Ok(if is_missing_there { Place::Within } else { Place::Elsewhere(OTHER_BRANCH) })
}

const OTHER_BRANCH: &str = "it was made from another branch of this log: another entry stands where it was made";

/// Its segment is there, and holds that position.
fn in_its_segment(folder: Folder<'_>, part: &Part, mark: &EntryMark) -> Result<Place, OpenError> {
    let limit = match part.end {
        End::At(end) | End::Within(end) => end,
        // What its file was made for, even if it is shorter now.
        End::Open => part.header.base + part.header.file_len.max(part.file_len).saturating_sub(ENTRIES_AT),
    };
    if mark.end > limit {
        return Ok(Place::Elsewhere(OTHER_BRANCH));
    }
    let at = file_offset(part.header.base, mark.position);
    let len = (mark.end - mark.position).min(part.file_len.saturating_sub(at));
    let mut bytes = vec![0; len as usize];
    folder.run("read the entry that the checkpoint was made at", read_exact_at(part.file.as_ref(), &mut bytes, at))?;
    let mut scan = Scan::new_at(&bytes, part.header.salt, part.header.base, mark.position);
    while let Some(Ok(scanned)) = scan.next() {
        if let Scanned::Entry(entry) = scanned {
            let is_it = entry.position() == mark.position
                && entry.head.header.end() == mark.end
                && entry.head.header_crc == mark.header_crc;
            return Ok(if is_it { Place::Within } else { Place::Elsewhere(OTHER_BRANCH) });
        }
    }
    Ok(Place::Within)
}
