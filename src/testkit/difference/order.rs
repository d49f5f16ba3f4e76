//! Whether the records of one key stand in order. Pure.

use std::collections::HashMap;
use std::fmt::Debug;

use crate::testkit::records::StoredRecord;

/// What can be told from the records alone to be out of order: by place in `records`, all of one key, what is wrong.
///
/// The sequences of each producer ascend; the timestamps of those that have one do not fall; no value comes again after
/// another one.
pub(in crate::testkit) fn disorder(records: &[StoredRecord]) -> HashMap<usize, String> {
    let mut last_sequences: HashMap<&str, &StoredRecord> = HashMap::new();
    let mut latest: Option<(i64, u64)> = None;
    let mut last_places: HashMap<&[u8], usize> = HashMap::new();
    let mut wrong = HashMap::new();
    for (place, record) in records.iter().enumerate() {
        let mut faults = Vec::new();
        if let Some(producer) = &record.producer {
            if let Some(last) = last_sequences.get(producer.as_str())
                && last.sequence >= record.sequence
            {
                faults.push(format!("{} is at offset {} already", last.origin(), last.offset));
            } else {
                last_sequences.insert(producer, record);
            }
        }
        if let Some(timestamp_ms) = record.timestamp_ms {
            match latest {
                Some((later, offset)) if later > timestamp_ms => {
                    faults.push(format!("offset {offset} has the later timestamp {later}"));
                }
                _ => latest = Some((timestamp_ms, record.offset)),
            }
        }
        if let Some(last) = last_places.insert(&record.value, place)
            && last + 1 < place
        {
            let offset = records.get(last).map_or(0, |last| last.offset);
            faults.push(format!("same value as offset {offset}, and others in between"));
        }
        if !faults.is_empty() {
            wrong.insert(place, faults.join("; "));
        }
    }
    wrong
}

/// The same by what the application makes of each record, which must not fall.
pub(in crate::testkit) fn disorder_by<O: Ord + Debug>(
    records: &[StoredRecord],
    order: impl Fn(&StoredRecord) -> O,
) -> HashMap<usize, String> {
    let mut highest: Option<(O, u64)> = None;
    let mut wrong = HashMap::new();
    for (place, record) in records.iter().enumerate() {
        let this = order(record);
        match &highest {
            Some((before, offset)) if *before > this => {
                wrong.insert(place, format!("{this:?} comes behind {before:?} of offset {offset}"));
            }
            _ => highest = Some((this, record.offset)),
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::records::tests::record;

    fn faults(records: &[StoredRecord]) -> Vec<(usize, String)> {
        let mut all: Vec<_> = disorder(records).into_iter().collect();
        all.sort();
        all
    }

    #[test]
    fn values_that_stay_or_change_are_in_order() {
        let records = [
            record(0, "shop", 1, "created"),
            record(4, "shop", 2, "created"),
            record(5, "web", 1, "paid"),
            record(9, "shop", 7, "shipped"),
        ];
        assert_eq!(faults(&records), []);
        assert_eq!(faults(&[]), []);
    }

    #[test]
    fn each_rule_is_told() {
        let mut records = [
            record(0, "shop", 3, "a"),
            record(1, "shop", 2, "b"),
            record(2, "", 0, "a"),
            record(3, "", 0, "c"),
            record(4, "", 0, "d"),
            record(5, "", 0, "e"),
        ];
        records[3].timestamp_ms = Some(20);
        records[5].timestamp_ms = Some(10);
        assert_eq!(
            faults(&records),
            [
                (1, "'shop' sequence 3 is at offset 0 already".to_owned()),
                (2, "same value as offset 0, and others in between".to_owned()),
                (5, "offset 3 has the later timestamp 20".to_owned()),
            ]
        );
    }

    #[test]
    fn numbers_of_the_application_may_stay_and_must_not_fall() {
        let records: Vec<StoredRecord> =
            ["1", "2", "2", "5", "3", "4", "5"].iter().zip(0..).map(|(text, at)| record(at, "", 0, text)).collect();
        let wrong = disorder_by(&records, |record| record.text().parse::<u32>().unwrap());
        assert_eq!(wrong.len(), 2);
        assert_eq!(wrong[&4], "3 comes behind 5 of offset 3");
        assert_eq!(wrong[&5], "4 comes behind 5 of offset 3");
    }
}
