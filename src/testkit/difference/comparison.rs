//! Values that were expected beside the records that were found. Pure.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;

use super::alignment::{Alignment, Row, align};
use super::copies::Copies;
use super::excerpt::{CELL_BYTES_SHOWN, excerpt, excerpts_that_differ};
use super::{Report, count, pad};
use crate::testkit::records::StoredRecord;

/// Equal rows shown on either side of a difference.
const CONTEXT_ROWS: usize = 3;

/// Rows shown.
const ROWS_MAX: usize = 24;

/// Why a check looked no further.
#[derive(Debug, Clone)]
pub(in crate::testkit) enum Ended {
    /// A record differs from what was expected.
    Differs,
    /// So long it waited.
    TimeLimit(Duration),
    /// It can't be read on.
    Stopped(String),
}

/// What was read of a stream.
#[derive(Debug, Clone, Copy)]
pub(in crate::testkit) struct Found<'a> {
    pub(in crate::testkit) records: &'a [StoredRecord],
    /// How many of them were read by earlier checks and are not meant now.
    pub(in crate::testkit) passed: usize,
    /// Records behind these that were not read.
    pub(in crate::testkit) more: u64,
}

/// How the next records differ from `expected`; `None` if they do not. What stands behind them does not matter.
pub(in crate::testkit) fn compare(stream: &str, expected: &[Bytes], found: Found<'_>, ended: &Ended) -> Option<Report> {
    let copies = Copies::of(found.records);
    let next = found.records.get(found.passed..).unwrap_or_default();
    let mut numbers: HashMap<&[u8], u32> = HashMap::new();
    let mut number = |value| {
        let new = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        *numbers.entry(value).or_insert(new)
    };
    let expected_numbers: Vec<u32> = expected.iter().map(|value| number(&**value)).collect();
    let found_numbers: Vec<u32> = next.iter().map(|record| number(&*record.value)).collect();
    let alignment = align(&expected_numbers, &found_numbers, |place| copies.other(found.passed + place).is_some());
    if alignment.not_compared == 0 && alignment.rows.iter().all(|row| row.is_same()) {
        return None;
    }
    let comparison = Comparison { expected, next, found, ended, copies, alignment };
    Some(Report {
        headline: comparison.headline(stream),
        lines: comparison.lines(),
        conclusion: comparison.conclusion(),
        remark: None,
    })
}

struct Comparison<'a> {
    expected: &'a [Bytes],
    /// The records that are compared.
    next: &'a [StoredRecord],
    found: Found<'a>,
    ended: &'a Ended,
    copies: Copies<'a>,
    alignment: Alignment,
}

impl Comparison<'_> {
    /// From which row on there is nothing but expected values, and nothing of the stream.
    fn tail(&self) -> usize {
        let rows = &self.alignment.rows;
        if self.alignment.behind > 0 || self.found.more > 0 {
            return rows.len();
        }
        rows.iter().rposition(|row| row.found().is_some()).map_or(0, |last| last + 1)
    }

    fn headline(&self, stream: &str) -> String {
        let rows = &self.alignment.rows;
        let tail = self.tail();
        let number = |matches: fn(&Row) -> bool| rows.iter().take(tail).filter(|row| matches(row)).count();
        let differences = [
            (number(|row| matches!(row, Row::Missing { found_at: None, .. })), "missing"),
            (number(|row| matches!(row, Row::Changed { .. })), "changed"),
            (number(|row| matches!(row, Row::Unexpected { expected_at: Some(_), .. })), "out of order"),
            (number(|row| matches!(row, Row::Unexpected { expected_at: None, .. })), "not expected"),
        ];
        let told: Vec<String> = differences
            .iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| format!("{number} {what}"))
            .collect();
        let all = self.expected.len();
        match self.ended {
            Ended::Stopped(reason) => format!("stream '{stream}' can't be read: {reason}"),
            Ended::TimeLimit(limit) if told.is_empty() => {
                let came = rows.iter().filter(|row| row.is_same()).count();
                format!("stream '{stream}': {came} of {} came within {}", count(all, "record", "records"), time(*limit))
            }
            _ => format!("stream '{stream}' is not as expected: {}", told.join(", ")),
        }
    }

    fn lines(&self) -> Vec<String> {
        let rows = &self.alignment.rows;
        let tail = self.tail();
        let near = |place: usize| {
            let from = place.saturating_sub(CONTEXT_ROWS);
            rows.iter().skip(from).take(place - from + CONTEXT_ROWS + 1).any(|row| !row.is_same())
        };
        let shown: Vec<usize> = (0..rows.len()).filter(|place| near(*place)).take(ROWS_MAX).collect();
        let cells: Vec<Cells> =
            shown.iter().filter_map(|place| rows.get(*place).map(|row| self.cells(*row, *place >= tail))).collect();
        let width = |cell: fn(&Cells) -> &str, heading: &str| {
            let widths = cells.iter().map(|cells| cell(cells).chars().count());
            widths.chain([heading.len()]).max().unwrap_or(0)
        };
        let number = width(|cells| &cells.number, "");
        let expected = width(|cells| &cells.expected, "expected");
        let found = width(|cells| &cells.found, "found");
        let line = |mark: char, place: &str, left: &str, right: &str, note: &str| {
            let blank = " ".repeat(number.saturating_sub(place.len()));
            format!("{mark} {blank}{place}  {}  {}  {note}", pad(left, expected), pad(right, found))
        };

        let mut lines = vec![line(' ', "", "expected", "found", "")];
        let mut next = 0;
        for (place, cells) in shown.iter().zip(&cells) {
            if *place > next {
                lines.push(format!("… {} as expected", place - next));
            }
            next = place + 1;
            lines.push(line(cells.mark, &cells.number, &cells.expected, &cells.found, &cells.note));
        }
        let rest = rows.get(next..).unwrap_or_default();
        let different = rest.iter().filter(|row| !row.is_same()).count();
        if different > 0 {
            lines.push(format!("… and {}, {different} of which differ", count(rest.len(), "more row", "more rows")));
        } else if !rest.is_empty() {
            lines.push(format!("… {} as expected", rest.len()));
        }
        if self.alignment.not_compared > 0 {
            let not_compared = count(self.alignment.not_compared, "more record", "more records");
            lines.push(format!("… and {not_compared} expected, not compared"));
        }
        let behind = self.alignment.behind as u64 + self.found.more;
        if behind > 0 {
            let behind = if behind == 1 { "1 more record".to_owned() } else { format!("{behind} more records") };
            lines.push(format!("… and {behind} behind"));
        }
        lines
    }

    fn cells(&self, row: Row, is_tail: bool) -> Cells {
        let value = |place: usize| self.expected.get(place).map_or_else(String::new, |value| short(value));
        let number = |place: usize| (place + 1).to_string();
        match row {
            Row::Same { expected, found } => Cells {
                mark: ' ',
                number: number(expected),
                expected: value(expected),
                found: value(expected),
                note: self.place(found),
            },
            Row::Changed { expected, found } => {
                let left = self.expected.get(expected).map_or(&[][..], |value| value);
                let right = self.next.get(found).map_or(&[][..], |record| &record.value);
                let (left, right, differs_at) = excerpts_that_differ(left, right);
                let differs_at = differs_at.map_or_else(String::new, |byte| format!("; differs from byte {byte} on"));
                let note = format!("{}{differs_at}", self.place(found));
                Cells { mark: '!', number: number(expected), expected: left, found: right, note }
            }
            Row::Missing { expected, found_at } => {
                let earlier = || self.expected.get(expected).and_then(|value| self.copies.first(value));
                let note = match found_at {
                    Some(found) => format!("out of order: at {}", self.offset(found)),
                    None => match (is_tail, self.ended) {
                        (true, Ended::TimeLimit(_)) => "did not come".to_owned(),
                        (true, Ended::Stopped(_)) => "not read".to_owned(),
                        (true, Ended::Differs) => "not there yet".to_owned(),
                        (false, _) => "missing".to_owned(),
                    },
                };
                // Told only where an earlier check has passed it: what this one found is in the table.
                let note = match earlier().filter(|place| *place < self.found.passed) {
                    Some(place) if found_at.is_none() => {
                        let record = self.found.records.get(place).map_or(0, |record| record.offset);
                        format!("{note}; an earlier check has passed this value at offset {record}")
                    }
                    _ => note,
                };
                Cells { mark: '-', number: number(expected), expected: value(expected), found: String::new(), note }
            }
            Row::Unexpected { found, expected_at } => {
                let place = self.found.passed + found;
                let why = match expected_at {
                    Some(expected) => Some(format!("out of order: expected as number {}", expected + 1)),
                    None => self.copies.other(place).and_then(|other| self.copies.note(other)),
                };
                let why = why.map_or_else(String::new, |why| format!("; {why}"));
                let value = self.next.get(found).map_or_else(String::new, |record| short(&record.value));
                let note = format!("{}{why}", self.place(found));
                Cells { mark: '+', number: String::new(), expected: String::new(), found: value, note }
            }
        }
    }

    fn place(&self, found: usize) -> String {
        self.next.get(found).map_or_else(String::new, StoredRecord::place)
    }

    fn offset(&self, found: usize) -> String {
        self.next.get(found).map_or_else(String::new, |record| format!("offset {}", record.offset))
    }

    fn conclusion(&self) -> Option<String> {
        let rows = &self.alignment.rows;
        if rows.iter().any(|row| matches!(row, Row::Changed { .. })) {
            return None;
        }
        let surplus = rows.iter().filter_map(|row| match row {
            Row::Unexpected { found, expected_at: None } => Some(self.found.passed + found),
            _ => None,
        });
        let pairs: Option<Vec<(usize, usize)>> =
            surplus.map(|place| self.copies.other(place).map(|other| (place, other))).collect();
        let twice = pairs.and_then(|pairs| self.copies.explain(&pairs));
        twice.or_else(|| self.conclusion_on_order())
    }

    /// Why records stand in another order, if they are all there.
    fn conclusion_on_order(&self) -> Option<String> {
        let mut crossings: Vec<(&StoredRecord, &StoredRecord)> = Vec::new();
        for row in &self.alignment.rows {
            match *row {
                Row::Unexpected { found, expected_at: Some(expected) } => {
                    let moved = self.next.get(found)?;
                    for other in &self.alignment.rows {
                        if let Row::Same { expected: other_expected, found: other_found } = *other
                            && (other_expected < expected) != (other_found < found)
                        {
                            crossings.push((moved, self.next.get(other_found)?));
                        }
                    }
                }
                Row::Same { .. } | Row::Missing { found_at: Some(_), .. } => {}
                _ => return None,
            }
        }
        let (moved, passed) = crossings.first()?;
        if crossings.iter().all(|(moved, passed)| moved.producer != passed.producer) {
            let name = |record: &StoredRecord| match &record.producer {
                Some(name) => format!("'{name}'"),
                None => "an anonymous producer".to_owned(),
            };
            return Some(format!(
                "Most likely: a race between producers, here {} and {}. Only records of one producer have an order.",
                name(moved),
                name(passed)
            ));
        }
        let name = moved.producer.as_deref()?;
        // The sequences are the order in which a producer has given its records away.
        let in_its_order = crossings.iter().all(|(moved, passed)| {
            moved.producer.as_deref() == Some(name)
                && passed.producer.as_deref() == Some(name)
                && (moved.sequence < passed.sequence) == (moved.offset < passed.offset)
        });
        in_its_order.then(|| format!("Most likely: '{name}' published them in this order; its sequences ascend."))
    }
}

/// One row of the table as text.
struct Cells {
    mark: char,
    number: String,
    expected: String,
    found: String,
    note: String,
}

fn short(value: &[u8]) -> String {
    excerpt(value, CELL_BYTES_SHOWN)
}

/// `5 s`, `100 ms`.
pub(in crate::testkit) fn time(duration: Duration) -> String {
    if duration.subsec_nanos() == 0 {
        return format!("{} s", duration.as_secs());
    }
    format!("{} ms", duration.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::records::tests::record;

    fn conclusion(expected: &[&str], found: &[(&str, u64, &str)]) -> Option<String> {
        let expected: Vec<Bytes> = expected.iter().map(|value| Bytes::copy_from_slice(value.as_bytes())).collect();
        let records: Vec<StoredRecord> = found
            .iter()
            .zip(0..)
            .map(|((producer, sequence, value), offset)| record(offset, producer, *sequence, value))
            .collect();
        let found = Found { records: &records, passed: 0, more: 0 };
        compare("s", &expected, found, &Ended::Differs).unwrap().conclusion
    }

    #[test]
    fn a_cause_is_told_only_where_the_records_show_it() {
        let in_order = conclusion(&["a", "b"], &[("shop", 1, "b"), ("shop", 2, "a")]);
        assert_eq!(in_order.unwrap(), "Most likely: 'shop' published them in this order; its sequences ascend.");
        let race = conclusion(&["a", "b"], &[("", 0, "b"), ("shop", 2, "a")]);
        assert!(
            race.unwrap().starts_with("Most likely: a race between producers, here 'shop' and an anonymous producer.")
        );
        // Anonymous producers may be one or several.
        assert_eq!(conclusion(&["a", "b"], &[("", 0, "b"), ("", 0, "a")]), None);
        // Something else is wrong as well.
        assert_eq!(conclusion(&["a", "b", "c"], &[("s", 1, "b"), ("s", 2, "a"), ("s", 3, "x")]), None);
        assert_eq!(conclusion(&["a", "b", "c"], &[("s", 1, "b"), ("s", 2, "a")]), None);
        // Partly by one producer, partly a race.
        let mixed = [("shop", 1, "c"), ("web", 1, "b"), ("shop", 2, "a")];
        assert_eq!(conclusion(&["a", "b", "c"], &mixed), None);
    }

    #[test]
    fn nothing_is_told_where_nothing_differs() {
        let records = [record(0, "", 0, "a"), record(1, "", 0, "b")];
        let found = Found { records: &records, passed: 1, more: 9 };
        assert!(compare("s", &[Bytes::from_static(b"b")], found, &Ended::Differs).is_none());
    }

    #[test]
    fn many_differences_are_counted_beyond_those_shown() {
        let expected: Vec<Bytes> = (0..100).map(|number| Bytes::from(format!("{number}"))).collect();
        let found = Found { records: &[], passed: 0, more: 0 };
        let report = compare("s", &expected, found, &Ended::TimeLimit(Duration::from_millis(1_500))).unwrap();
        assert_eq!(report.headline, "stream 's': 0 of 100 records came within 1500 ms");
        assert_eq!(report.lines.len(), 1 + ROWS_MAX + 1);
        assert_eq!(report.lines.last().unwrap(), "… and 76 more rows, 76 of which differ");
    }
}
