//! What a damaged log must do all the same: tell what is lost, serve the rest, and decide the same at each start.

use tidelog_storage::{DamageKind, EntryKind, ReadOutcome, Sabotages};

use super::survived::several_segments;
use super::{Driver, Observed};

/// A closed log of several segments, its jobs done but for those of the last start.
pub(crate) fn log_of_several_segments(seed: u64) -> Driver {
    several_segments(seed, Sabotages::default()).unwrap()
}

/// Whatever a reader gets is what was written, at its offset; what it does not get is told as damaged. Returns the
/// positions of what it got.
pub(crate) fn served_rightly(driver: &mut Driver) -> Vec<u64> {
    let mut served = Vec::new();
    for subject in driver.model.subjects() {
        let mut next = 0;
        let records: Vec<_> = driver.model.records(subject).cloned().collect();
        for outcome in driver.read(subject, 0).unwrap() {
            match outcome {
                ReadOutcome::Batch(batch) => {
                    assert_eq!(batch.base_offset, next, "a silent gap");
                    let expected = records.iter().find(|record| record.entry.base_offset == batch.base_offset).unwrap();
                    assert_eq!(batch.payload, expected.payload);
                    assert_eq!(batch.owner, expected.entry.owner);
                    served.push(expected.entry.position);
                    next = batch.next_offset();
                }
                ReadOutcome::Damaged { from, to } => {
                    assert!(from == next && to > from, "{from}..{to} told at {next}");
                    next = to;
                }
            }
        }
    }
    served.sort_unstable();
    served
}

/// As [`served_rightly`], and all is served that a start found whole.
pub(crate) fn all_served(driver: &mut Driver, observed: &Observed) {
    let served = served_rightly(driver);
    let found = observed.entries.iter().zip(&observed.payloads_ok);
    let records = found.filter(|(entry, is_ok)| entry.kind == EntryKind::Records && **is_ok);
    assert_eq!(served, records.map(|(entry, _)| entry.position).collect::<Vec<_>>());
}

/// A start's entries are the model's, but for those that lie in told holes, and no hole is told for nothing.
pub(crate) fn told_rightly(driver: &mut Driver, observed: &Observed) {
    let is_lost = |position: u64| observed.holes.iter().any(|hole| hole.contains(&position));
    let kept: Vec<_> = driver.model.entries.iter().map(|expected| &expected.entry).collect();
    let kept: Vec<_> = kept.into_iter().filter(|entry| !is_lost(entry.position)).collect();
    assert_eq!(observed.entries.iter().collect::<Vec<_>>(), kept, "holes: {:?}", observed.holes);
    for hole in &observed.holes {
        let damages = observed.report.damages.iter().filter(|damage| damage.kind == DamageKind::Hole);
        assert!(damages.into_iter().any(|damage| damage.positions == *hole), "{hole:?} is not in the report");
    }
    all_served(driver, observed);
}

/// Starts three times; each tells the same, serves what is left rightly, and the log goes on.
pub(crate) fn the_same_at_each_start(driver: &mut Driver) -> Observed {
    let first = driver.open_observed().unwrap();
    told_rightly(driver, &first);
    for _ in 0..2 {
        driver.kill();
        let again = driver.open_observed().unwrap();
        assert_eq!(again.holes, first.holes);
        assert_eq!(again.entries, first.entries);
        told_rightly(driver, &again);
        driver.run_jobs().unwrap();
        all_served(driver, &again);
    }
    driver.kill();
    let without_footers = driver.open_observed().unwrap();
    driver.run_jobs().unwrap();
    for footer in driver.names("footer-") {
        driver.remove(&footer);
    }
    all_served(driver, &without_footers);
    driver.append_one(7, 100).unwrap();
    driver.commit().unwrap();
    driver.read_back(7, 0).unwrap();
    driver.kill();
    let last = driver.open_observed().unwrap();
    assert_eq!(last.holes, first.holes);
    told_rightly(driver, &last);
    driver.read_back(7, 0).unwrap();
    first
}

pub(crate) fn kinds(observed: &Observed) -> Vec<DamageKind> {
    observed.report.damages.iter().map(|damage| damage.kind).collect()
}
