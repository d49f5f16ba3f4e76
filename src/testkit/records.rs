//! Records as the broker keeps them, in a form that a test reads and compares.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use bytes::Bytes;
use tidelog_client::{DeliveredBatch, Error};

use super::difference::{KEY_BYTES_SHOWN, VALUE_BYTES_SHOWN, excerpt};

/// One record as the broker keeps it.
///
/// `Display` and `Debug` are one short line, so that a list of them can be read: offset, producer and sequence, what else
/// there is, and the value; as text where it is UTF-8, else in hexadecimal, cut after 80 bytes. It shares the memory of the
/// batch that it came in.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredRecord {
    /// Its place in the stream.
    pub offset: u64,
    /// The broker's clock when it ordered the batch, in milliseconds since 1970; never falling within a stream.
    pub time_ms: i64,
    /// Who published it; `None` if anonymous.
    pub producer: Option<String>,
    /// Its place in its producer's output, from 1; 0 if anonymous.
    pub sequence: u64,
    /// What it is about, if the application said so.
    pub key: Option<Bytes>,
    /// Names and values in the application's order; names may repeat.
    pub headers: Vec<(Bytes, Bytes)>,
    /// The application's own time in milliseconds since 1970, if it gave one.
    pub timestamp_ms: Option<i64>,
    /// The event itself.
    pub value: Bytes,
}

impl StoredRecord {
    /// The value as text; what is not UTF-8 is replaced by `U+FFFD`.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.value)
    }

    /// The key as text, if there is one; what is not UTF-8 is replaced by `U+FFFD`.
    pub fn key_text(&self) -> Option<Cow<'_, str>> {
        self.key.as_deref().map(String::from_utf8_lossy)
    }

    /// All that the application gave is the same: what a retry sends again.
    pub(super) fn has_same_content(&self, other: &Self) -> bool {
        self.value == other.value
            && self.key == other.key
            && self.headers == other.headers
            && self.timestamp_ms == other.timestamp_ms
    }

    /// `'shop' sequence 4`, or `anonymous`.
    pub(super) fn origin(&self) -> String {
        match &self.producer {
            Some(name) => format!("'{name}' sequence {}", self.sequence),
            None => "anonymous".to_owned(),
        }
    }

    /// Everything but the value.
    pub(super) fn place(&self) -> String {
        let mut place = format!("offset {}, {}", self.offset, self.origin());
        // Writing to a string can't fail.
        if let Some(key) = &self.key {
            let _ = write!(place, ", key {}", excerpt(key, KEY_BYTES_SHOWN));
        }
        if let Some(timestamp_ms) = self.timestamp_ms {
            let _ = write!(place, ", timestamp {timestamp_ms}");
        }
        match self.headers.len() {
            0 => {}
            1 => place.push_str(", 1 header"),
            count => {
                let _ = write!(place, ", {count} headers");
            }
        }
        place
    }
}

impl fmt::Display for StoredRecord {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.place(), excerpt(&self.value, VALUE_BYTES_SHOWN))
    }
}

impl fmt::Debug for StoredRecord {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The records of a batch, behind those that are there already.
pub(super) fn unpack(batch: DeliveredBatch, into: &mut impl Extend<StoredRecord>) -> Result<(), Error> {
    let time_ms = batch.time_ms();
    let producer = batch.producer().map(|name| name.as_str().to_owned());
    for delivered in batch {
        let delivered = delivered?;
        let record = delivered.record;
        into.extend(Some(StoredRecord {
            offset: delivered.offset.get(),
            time_ms,
            producer: producer.clone(),
            sequence: delivered.sequence.get(),
            key: record.key,
            headers: record.headers.into_iter().map(|header| (header.name, header.value)).collect(),
            timestamp_ms: record.timestamp_ms,
            value: record.value,
        }));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A record of `producer`, or an anonymous one where that is empty.
    pub(in crate::testkit) fn record(offset: u64, producer: &str, sequence: u64, value: &str) -> StoredRecord {
        StoredRecord {
            offset,
            time_ms: 0,
            producer: (!producer.is_empty()).then(|| producer.to_owned()),
            sequence,
            key: None,
            headers: Vec::new(),
            timestamp_ms: None,
            value: Bytes::copy_from_slice(value.as_bytes()),
        }
    }

    #[test]
    fn a_record_is_one_short_line() {
        let mut shown = record(3, "shop", 4, "two \"apples\"\n");
        assert_eq!(shown.to_string(), r#"offset 3, 'shop' sequence 4: "two "apples"\n""#);
        shown.key = Some(Bytes::from_static(b"customer 7"));
        shown.timestamp_ms = Some(1_700);
        shown.headers.push((Bytes::from_static(b"trace"), Bytes::from_static(b"1")));
        shown.value = Bytes::from(vec![0xff; 1_000]);
        let hex = "ff".repeat(80);
        let line = format!(
            r#"offset 3, 'shop' sequence 4, key "customer 7", timestamp 1700, 1 header: 0x{hex}… (1000 bytes)"#
        );
        assert_eq!(format!("{shown:?}"), line);
        assert_eq!(record(0, "", 0, "").to_string(), r#"offset 0, anonymous: """#);
    }

    #[test]
    fn text_is_given_where_there_is_some() {
        let mut shown = record(0, "", 0, "plain");
        assert_eq!(shown.text(), "plain");
        assert_eq!(shown.key_text(), None);
        shown.key = Some(Bytes::from_static(b"\xffk"));
        assert_eq!(shown.key_text().unwrap(), "\u{fffd}k");
    }
}
