//! Lists of records, with what is to be said of some of them. Pure.

use super::copies::Copies;
use super::excerpt::{KEY_BYTES_SHOWN, excerpt};
use super::{count, pad};
use crate::testkit::records::StoredRecord;

/// Records shown of a list.
const RECORDS_MAX: usize = 20;

/// Records shown before the first one that is marked.
const CONTEXT_RECORDS: usize = 3;

/// Keys shown.
const KEYS_MAX: usize = 10;

/// Records shown of each key.
const RECORDS_OF_KEY_MAX: usize = 5;

/// The records as lines, a mark before those for which `note` gives something and what it gives behind them; `more` are
/// behind these and were not read. A long list is cut around the first one marked.
pub(in crate::testkit) fn list_records(
    records: &[StoredRecord],
    more: u64,
    note: impl Fn(usize) -> Option<(char, String)>,
) -> Vec<String> {
    let notes: Vec<Option<(char, String)>> = (0..records.len()).map(note).collect();
    let first = notes.iter().position(Option::is_some).unwrap_or(records.len());
    let from = if records.len() <= RECORDS_MAX { 0 } else { first.saturating_sub(CONTEXT_RECORDS) };
    let mut lines = Vec::new();
    if from > 0 {
        lines.push(format!("… {} before", count(from, "record", "records")));
    }
    for (record, note) in records.iter().zip(notes).skip(from).take(RECORDS_MAX) {
        let (mark, note) = note.unwrap_or((' ', String::new()));
        let note = if note.is_empty() { note } else { format!("; {note}") };
        lines.push(format!("{mark} {record}{note}"));
    }
    let behind = records.len().saturating_sub(from + RECORDS_MAX) as u64 + more;
    if behind > 0 {
        lines.push(format!("… and {behind} more"));
    }
    lines
}

/// A key that does not have exactly one record.
pub(in crate::testkit) struct KeyCount<'a> {
    pub(in crate::testkit) key: &'a [u8],
    /// Places of its records.
    pub(in crate::testkit) places: Vec<usize>,
}

/// The keys as lines, each with its records.
pub(in crate::testkit) fn list_keys(
    keys: &[KeyCount<'_>],
    records: &[StoredRecord],
    copies: &Copies<'_>,
) -> Vec<String> {
    let mut lines = Vec::new();
    let shown = |key: &KeyCount<'_>| excerpt(key.key, KEY_BYTES_SHOWN);
    let width = keys.iter().take(KEYS_MAX).map(|key| shown(key).chars().count()).max().unwrap_or(0);
    for key in keys.iter().take(KEYS_MAX) {
        let found = match key.places.len() {
            0 => "no record".to_owned(),
            several => count(several, "record", "records"),
        };
        let mark = if key.places.is_empty() { '-' } else { '+' };
        lines.push(format!("{mark} {}  {found}", pad(&shown(key), width)));
        for place in key.places.iter().take(RECORDS_OF_KEY_MAX) {
            let Some(record) = records.get(*place) else { continue };
            let note = copies.original_of(*place, &key.places).and_then(|other| copies.note(other));
            lines.push(format!("    {record}{}", note.map_or_else(String::new, |note| format!("; {note}"))));
        }
        if key.places.len() > RECORDS_OF_KEY_MAX {
            lines.push(format!("    … and {} more", key.places.len() - RECORDS_OF_KEY_MAX));
        }
    }
    if keys.len() > KEYS_MAX {
        lines.push(format!("… and {}", count(keys.len() - KEYS_MAX, "more key", "more keys")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::records::tests::record;

    #[test]
    fn a_long_list_is_cut_around_the_first_mark() {
        let records: Vec<StoredRecord> = (0..100).map(|offset| record(offset, "shop", offset + 1, "v")).collect();
        let lines = list_records(&records, 7, |place| (place == 50).then(|| ('+', "this one".to_owned())));
        assert_eq!(lines[0], "… 47 records before");
        assert_eq!(lines[1], "  offset 47, 'shop' sequence 48: \"v\"");
        assert_eq!(lines[4], "+ offset 50, 'shop' sequence 51: \"v\"; this one");
        assert_eq!(lines.last().unwrap(), "… and 40 more");
        assert_eq!(lines.len(), RECORDS_MAX + 2);
    }
}
