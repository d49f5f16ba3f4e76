//! Reads every byte of a log that no broker is running on, changes nothing, and names all damage.

use std::ops::Range;

use crate::error::OpenError;
use crate::footer;
use crate::medium::Medium;
use crate::recovery;
use crate::report::{Damage, Replayed};
use crate::{LogId, LogOptions};

/// Why a folder could not be verified.
pub type VerifyError = OpenError;

/// What a folder holds.
#[derive(Debug, Clone)]
pub struct VerifyReport {
    /// The log's identity; `None` if there is no log.
    pub log_id: Option<LogId>,
    /// Segments of the log.
    pub segments: usize,
    /// Entries that can be told.
    pub entries: u64,
    /// Below this position all is proven to have been durable.
    pub proven: u64,
    /// Where the log ends.
    pub end: u64,
    /// Behind the end, not provably stored; the next start leaves it where it is.
    pub cut: Option<Range<u64>>,
    /// All damage below the proven position.
    pub damages: Vec<Damage>,
    /// Segment files that do not belong to this log.
    pub foreign: Vec<String>,
    /// Footers that can't be read or do not say what their segments hold: derived, made anew by the next start, and no damage.
    pub stale_footers: Vec<String>,
}

/// Verifies the log on `medium` under a shared lock, handing all of it to `fold` in log order.
///
/// # Errors
/// [`OpenError`]: the folder is in use, of an unknown format, or can't be read. Damage is no error but part of the report.
pub fn verify(medium: &dyn Medium, fold: &mut dyn FnMut(Replayed<'_>)) -> Result<VerifyReport, VerifyError> {
    let _lock = medium.lock(false)?;
    let found = recovery::inspect(medium, &LogOptions::default(), fold)?;
    Ok(report_of(medium, found))
}

/// What an inspection found, and footers that do not fit.
pub(crate) fn report_of(medium: &dyn Medium, found: recovery::Inspection) -> VerifyReport {
    let mut stale_footers = Vec::new();
    let files = medium.list().unwrap_or_default();
    for (name, segment) in files.iter().filter_map(|file| Some((&file.name, footer::footer_number(&file.name)?))) {
        let expected = found.sealed.iter().find(|index| index.number() == segment);
        let there = footer::read(medium, segment).ok().flatten();
        if there.is_none() || expected.is_some_and(|expected| there.as_ref() != Some(expected.as_ref())) {
            stale_footers.push(name.clone());
        }
    }
    VerifyReport {
        log_id: found.log_id,
        segments: found.segments,
        entries: found.entries,
        proven: found.proven,
        end: found.end,
        cut: found.cut,
        damages: found.damages,
        foreign: found.foreign,
        stale_footers,
    }
}
