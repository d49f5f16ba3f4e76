//! Which records have the same value, and what that says. Pure.

use std::collections::HashMap;

use crate::testkit::records::StoredRecord;

/// The records of a stream by their values.
pub(in crate::testkit) struct Copies<'a> {
    records: &'a [StoredRecord],
    by_value: HashMap<&'a [u8], Vec<usize>>,
}

impl<'a> Copies<'a> {
    pub(in crate::testkit) fn of(records: &'a [StoredRecord]) -> Self {
        let mut by_value: HashMap<&[u8], Vec<usize>> = HashMap::new();
        for (place, record) in records.iter().enumerate() {
            by_value.entry(&record.value).or_default().push(place);
        }
        Self { records, by_value }
    }

    /// The first one of `places` with the same value as the record at `place`, unless it is that one. The places ascend.
    pub(in crate::testkit) fn original_of(&self, place: usize, places: &[usize]) -> Option<usize> {
        let value = &self.records.get(place)?.value;
        let is_same = |other: &usize| self.records.get(*other).is_some_and(|other| other.value == *value);
        places.iter().copied().find(is_same).filter(|other| *other < place)
    }

    /// The first other record with the same value as the one at `place`.
    pub(in crate::testkit) fn other(&self, place: usize) -> Option<usize> {
        let record = self.records.get(place)?;
        self.by_value.get(&*record.value)?.iter().copied().find(|other| *other != place)
    }

    /// The first record with the same value as the one at `place`, unless it is that one.
    pub(in crate::testkit) fn original(&self, place: usize) -> Option<usize> {
        self.other(place).filter(|other| *other < place)
    }

    /// The first record with this value.
    pub(super) fn first(&self, value: &[u8]) -> Option<usize> {
        self.by_value.get(value)?.first().copied()
    }

    /// `same value as offset 3, 'shop' sequence 4`.
    pub(in crate::testkit) fn note(&self, other: usize) -> Option<String> {
        let other = self.records.get(other)?;
        Some(format!("same value as offset {}, {}", other.offset, other.origin()))
    }

    /// What it most likely is that each of these records stands in the stream twice; only if that is one thing, for
    /// all of them, and shown by the records.
    pub(in crate::testkit) fn explain(&self, pairs: &[(usize, usize)]) -> Option<String> {
        let mut causes = pairs.iter().map(|(copy, original)| {
            let (copy, original) = (self.records.get(*copy)?, self.records.get(*original)?);
            copy.has_same_content(original).then(|| Cause::of(copy, original))
        });
        let first = causes.next()??;
        if !causes.all(|cause| cause.is_some_and(|cause| cause.is_alike(&first))) {
            return None;
        }
        let number = match pairs.len() {
            1 => String::new(),
            several => format!(" ({several} records)"),
        };
        Some(match first {
            Cause::Anonymous => format!(
                "Most likely: published without a producer name and sent again{number}. What a producer with a name sends \
                 again is stored once."
            ),
            Cause::SameProducer { name, copy, original } => format!(
                "Most likely: '{name}' published it as two records, sequences {original} and {copy}{number}. What is sent \
                 again under its own sequence (`send_at`) is stored once."
            ),
            Cause::TwoProducers { copy, original } => format!(
                "Most likely: both {original} and {copy} published it{number}. What is stored once is a sequence of one \
                 producer."
            ),
        })
    }
}

enum Cause {
    Anonymous,
    SameProducer { name: String, copy: u64, original: u64 },
    TwoProducers { copy: String, original: String },
}

impl Cause {
    fn of(copy: &StoredRecord, original: &StoredRecord) -> Self {
        let name = |producer: &Option<String>| match producer {
            Some(name) => format!("'{name}'"),
            None => "an anonymous producer".to_owned(),
        };
        match (&copy.producer, &original.producer) {
            (None, None) => Self::Anonymous,
            (Some(name), Some(other)) if name == other => {
                Self::SameProducer { name: name.clone(), copy: copy.sequence, original: original.sequence }
            }
            (copy, original) => Self::TwoProducers { copy: name(copy), original: name(original) },
        }
    }

    fn is_alike(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Anonymous, Self::Anonymous) => true,
            (Self::SameProducer { name, .. }, Self::SameProducer { name: other, .. }) => name == other,
            (
                Self::TwoProducers { copy, original },
                Self::TwoProducers { copy: other_copy, original: other_original },
            ) => (copy, original) == (other_copy, other_original),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::records::tests::record;

    #[test]
    fn a_cause_is_told_only_if_the_records_show_it_for_all() {
        let records = [
            record(0, "", 0, "a"),
            record(1, "", 0, "a"),
            record(2, "shop", 1, "b"),
            record(3, "shop", 2, "b"),
            record(4, "web", 1, "b"),
        ];
        let copies = Copies::of(&records);
        assert_eq!((copies.other(0), copies.original(0), copies.original(1)), (Some(1), None, Some(0)));
        assert!(copies.explain(&[(1, 0)]).unwrap().contains("without a producer name"));
        assert!(copies.explain(&[(3, 2)]).unwrap().contains("'shop' published it as two records, sequences 1 and 2."));
        assert!(copies.explain(&[(4, 2)]).unwrap().contains("both 'shop' and 'web'"));
        assert_eq!(copies.explain(&[(1, 0), (3, 2)]), None);
        assert_eq!(copies.explain(&[]), None);
    }

    #[test]
    fn what_differs_in_its_key_is_not_sent_again() {
        let mut records = [record(0, "", 0, "a"), record(1, "", 0, "a")];
        records[1].key = Some(bytes::Bytes::from_static(b"k"));
        assert_eq!(Copies::of(&records).explain(&[(1, 0)]), None);
    }
}
