//! One record: what the application gave, and its one encoding.
//!
//! ```text
//! body   flags u8 (1 key, 2 timestamp, 4 headers) | [timestamp] | [key] | [headers] | value = the rest
//! timestamp   zigzag LEB128, milliseconds
//! key         length LEB128 | bytes
//! headers     count LEB128 (1 to 256) | count x (name length LEB128 | name | value length LEB128 | value)
//! ```
//! Numbers are LEB128 in their shortest form, so one record has exactly one encoding and its checksum can be compared.

use bytes::{BufMut, Bytes};

use crate::error::ErrorCode;
use crate::leb128::{self, Buffer, NumberError, Sink};
use crate::limits::{HEADERS_COUNT_MAX, Limits};

const HAS_KEY: u8 = 1;
const HAS_TIMESTAMP: u8 = 2;
const HAS_HEADERS: u8 = 4;

/// One event. An absent key differs from an empty one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// What the record is about, if the application says so.
    pub key: Option<Bytes>,
    /// Names and values in the application's order; names may repeat.
    pub headers: Vec<Header>,
    /// The application's own time in milliseconds since 1970, never the client's or the broker's clock: a resent record
    /// must have the same bytes.
    pub timestamp_ms: Option<i64>,
    /// The event itself.
    pub value: Bytes,
}

/// One header of a record. Neither part needs to be UTF-8.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// The name; names may repeat within a record.
    pub name: Bytes,
    /// The value.
    pub value: Bytes,
}

/// Why bytes are no record, or a record is not accepted. Nothing was stored or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Key, headers and value together are more than the broker takes.
    #[error("a record has {bytes} bytes, the limit is {max}; send less, or raise the broker's record limit")]
    TooLarge {
        /// Bytes of key, headers and value.
        bytes: usize,
        /// The limit.
        max: u32,
    },
    /// The key is too long.
    #[error("a record's key has {bytes} bytes, the limit is {max}")]
    KeyTooLarge {
        /// Bytes of the key.
        bytes: usize,
        /// The limit.
        max: u32,
    },
    /// Names and values of the headers together are too long.
    #[error("a record's headers have {bytes} bytes together, the limit is {max}")]
    HeadersTooLarge {
        /// Bytes of all names and values.
        bytes: usize,
        /// The limit.
        max: u32,
    },
    /// Too many headers.
    #[error("a record has {count} headers, the limit is {HEADERS_COUNT_MAX}")]
    TooManyHeaders {
        /// How many there are.
        count: u64,
    },
    /// The batch under construction has no room; it is unchanged. Finish it and push again.
    #[error("the batch is full with {count} records and {content_len} bytes; finish it first")]
    BatchFull {
        /// Records in the batch.
        count: u32,
        /// Bytes of content in the batch.
        content_len: usize,
    },
    /// A record's body has at least its flags.
    #[error("a record's body is empty")]
    Empty,
    /// Flags that this version does not know.
    #[error("a record has unknown flags {flags:#04x}")]
    UnknownFlags {
        /// The flags byte.
        flags: u8,
    },
    /// A number is not in its one allowed form.
    #[error("a record's {field} is malformed: {fault}")]
    Number {
        /// Which number.
        field: &'static str,
        /// What is wrong with it.
        fault: NumberError,
    },
    /// A length points behind the end.
    #[error("a record's {field} claims {claimed} bytes where {left} are left")]
    Overrun {
        /// What the length belongs to.
        field: &'static str,
        /// The length.
        claimed: u64,
        /// Bytes that are there.
        left: usize,
    },
    /// The flags announce headers and there are none; such a record is written without the flag.
    #[error("a record announces headers and has none")]
    NoHeaders,
    /// Bytes stand behind the last record of a batch.
    #[error("{bytes} bytes stand behind the last record of a batch")]
    TrailingBytes {
        /// How many.
        bytes: usize,
    },
}

impl RecordError {
    /// The number that this error has on the wire.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            RecordError::TooLarge { .. }
            | RecordError::KeyTooLarge { .. }
            | RecordError::HeadersTooLarge { .. }
            | RecordError::TooManyHeaders { .. } => ErrorCode::RecordTooLarge,
            RecordError::BatchFull { .. } => ErrorCode::BatchTooLarge,
            RecordError::Empty
            | RecordError::UnknownFlags { .. }
            | RecordError::Number { .. }
            | RecordError::Overrun { .. }
            | RecordError::NoHeaders
            | RecordError::TrailingBytes { .. } => ErrorCode::Malformed,
        }
    }
}

impl Record {
    /// A record with only a value.
    #[must_use]
    pub fn new(value: impl Into<Bytes>) -> Self {
        Self { value: value.into(), ..Self::default() }
    }

    /// The same record with this key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The same record with this time of the application, in milliseconds since 1970.
    #[must_use]
    pub fn with_timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }

    /// The same record with one more header behind the others.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.headers.push(Header { name: name.into(), value: value.into() });
        self
    }

    /// Bytes of the encoded body.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let prefixed = |bytes: &Bytes| leb128::encoded_len(bytes.len() as u64) + bytes.len();
        let timestamp = self.timestamp_ms.map_or(0, |timestamp| leb128::encoded_len(leb128::zigzag(timestamp)));
        let key = self.key.as_ref().map_or(0, prefixed);
        let headers = if self.headers.is_empty() {
            0
        } else {
            let each = |header: &Header| prefixed(&header.name) + prefixed(&header.value);
            leb128::encoded_len(self.headers.len() as u64) + self.headers.iter().map(each).sum::<usize>()
        };
        1 + timestamp + key + headers + self.value.len()
    }

    /// Appends the body, [`encoded_len`](Self::encoded_len) bytes.
    ///
    /// # Panics
    /// If `out` is a fixed buffer without that much room.
    pub fn encode_into(&self, out: &mut impl BufMut) {
        self.write(&mut Buffer(out));
    }

    /// CRC-32 of the encoded body, computed without encoding it anywhere.
    #[must_use]
    pub fn crc(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        self.write(&mut hasher);
        hasher.finalize()
    }

    fn write(&self, sink: &mut impl Sink) {
        fn prefixed(sink: &mut impl Sink, bytes: &[u8]) {
            leb128::put(sink, bytes.len() as u64);
            sink.put(bytes);
        }
        let flag = |present: bool, flag: u8| if present { flag } else { 0 };
        sink.put(&[flag(self.key.is_some(), HAS_KEY)
            | flag(self.timestamp_ms.is_some(), HAS_TIMESTAMP)
            | flag(!self.headers.is_empty(), HAS_HEADERS)]);
        if let Some(timestamp_ms) = self.timestamp_ms {
            leb128::put(sink, leb128::zigzag(timestamp_ms));
        }
        if let Some(key) = &self.key {
            prefixed(sink, key);
        }
        if !self.headers.is_empty() {
            leb128::put(sink, self.headers.len() as u64);
            for header in &self.headers {
                prefixed(sink, &header.name);
                prefixed(sink, &header.value);
            }
        }
        sink.put(&self.value);
    }

    /// Reads a body; the parts are slices of it and keep its buffer alive ([`detach`](Self::detach) cuts them loose).
    ///
    /// Form is checked, and the number of headers; the other limits are not.
    ///
    /// # Errors
    /// [`RecordError`] if the bytes are not the one encoding of a record.
    pub fn decode(body: &Bytes) -> Result<Record, RecordError> {
        Self::decode_part(body, body)
    }

    /// Reads `body`, which lies within `source`, so that one reference count pays for each part and none for the body.
    pub(crate) fn decode_part(source: &Bytes, body: &[u8]) -> Result<Record, RecordError> {
        let parts = Parts::read(body)?;
        let mut headers = Vec::new();
        if parts.headers_count > 0 {
            headers.reserve_exact(parts.headers_count);
            let mut rest = parts.headers;
            for _ in 0..parts.headers_count {
                let name = source.slice_ref(take_bytes(&mut rest, "header name")?);
                let value = source.slice_ref(take_bytes(&mut rest, "header value")?);
                headers.push(Header { name, value });
            }
        }
        Ok(Record {
            key: parts.key.map(|key| source.slice_ref(key)),
            headers,
            timestamp_ms: parts.timestamp_ms,
            value: source.slice_ref(parts.value),
        })
    }

    /// The same record in memory of its own, so that a small record kept for long does not keep a large buffer.
    #[must_use]
    pub fn detach(&self) -> Record {
        let copy = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
        Record {
            key: self.key.as_ref().map(copy),
            headers: self
                .headers
                .iter()
                .map(|header| Header { name: copy(&header.name), value: copy(&header.value) })
                .collect(),
            timestamp_ms: self.timestamp_ms,
            value: copy(&self.value),
        }
    }

    /// Checks sizes and number of headers against `limits`.
    ///
    /// # Errors
    /// [`RecordError`] names the limit and by how much it is exceeded.
    pub fn check(&self, limits: &Limits) -> Result<(), RecordError> {
        let headers_bytes = self.headers.iter().map(|header| header.name.len() + header.value.len()).sum();
        Sizes {
            key: self.key.as_ref().map_or(0, Bytes::len),
            headers_count: self.headers.len() as u64,
            headers: headers_bytes,
            value: self.value.len(),
        }
        .check(limits)
    }
}

/// Checks that `body` is the one encoding of a record within `limits`, without allocating.
///
/// # Errors
/// [`RecordError`] names what is wrong first.
#[inline]
pub fn check_body(body: &[u8], limits: &Limits) -> Result<(), RecordError> {
    // Most records are only a value, and this walk is most of what checking a batch costs besides its checksum.
    if let Some((0, value)) = body.split_first() {
        return Sizes { key: 0, headers_count: 0, headers: 0, value: value.len() }.check(limits);
    }
    let parts = Parts::read(body)?;
    Sizes {
        key: parts.key.map_or(0, <[u8]>::len),
        headers_count: parts.headers_count as u64,
        headers: parts.headers_bytes,
        value: parts.value.len(),
    }
    .check(limits)
}

/// Checks a record of only a value against `limits`.
pub(crate) fn check_value(value: &[u8], limits: &Limits) -> Result<(), RecordError> {
    Sizes { key: 0, headers_count: 0, headers: 0, value: value.len() }.check(limits)
}

/// What limits are about: bytes as the application gave them, without the encoding's own.
struct Sizes {
    key: usize,
    headers_count: u64,
    headers: usize,
    value: usize,
}

impl Sizes {
    #[inline]
    fn check(&self, limits: &Limits) -> Result<(), RecordError> {
        if self.key > limits.key_bytes_max as usize {
            return Err(RecordError::KeyTooLarge { bytes: self.key, max: limits.key_bytes_max });
        }
        if self.headers_count > HEADERS_COUNT_MAX as u64 {
            return Err(RecordError::TooManyHeaders { count: self.headers_count });
        }
        if self.headers > limits.headers_bytes_max as usize {
            return Err(RecordError::HeadersTooLarge { bytes: self.headers, max: limits.headers_bytes_max });
        }
        let bytes = self.key + self.headers + self.value;
        let max = limits.record_bytes_bound();
        if bytes > max as usize {
            return Err(RecordError::TooLarge { bytes, max });
        }
        Ok(())
    }
}

/// A body taken apart, nothing copied.
struct Parts<'a> {
    timestamp_ms: Option<i64>,
    key: Option<&'a [u8]>,
    headers_count: usize,
    /// The headers behind their count, each checked.
    headers: &'a [u8],
    /// Bytes of names and values, without their lengths.
    headers_bytes: usize,
    value: &'a [u8],
}

impl<'a> Parts<'a> {
    #[inline]
    fn read(body: &'a [u8]) -> Result<Self, RecordError> {
        let (&flags, mut rest) = body.split_first().ok_or(RecordError::Empty)?;
        let mut parts =
            Self { timestamp_ms: None, key: None, headers_count: 0, headers: &[], headers_bytes: 0, value: &[] };
        if flags != 0 {
            parts.read_optional(flags, &mut rest)?;
        }
        parts.value = rest;
        Ok(parts)
    }

    fn read_optional(&mut self, flags: u8, rest: &mut &'a [u8]) -> Result<(), RecordError> {
        if flags & !(HAS_KEY | HAS_TIMESTAMP | HAS_HEADERS) != 0 {
            return Err(RecordError::UnknownFlags { flags });
        }
        if flags & HAS_TIMESTAMP != 0 {
            self.timestamp_ms = Some(leb128::unzigzag(take_number(rest, "timestamp")?));
        }
        if flags & HAS_KEY != 0 {
            self.key = Some(take_bytes(rest, "key")?);
        }
        if flags & HAS_HEADERS != 0 {
            let count = take_number(rest, "header count")?;
            if count == 0 {
                return Err(RecordError::NoHeaders);
            }
            self.headers_count = usize::try_from(count)
                .ok()
                .filter(|&count| count <= HEADERS_COUNT_MAX)
                .ok_or(RecordError::TooManyHeaders { count })?;
            let headers = *rest;
            for _ in 0..self.headers_count {
                self.headers_bytes += take_bytes(rest, "header name")?.len();
                self.headers_bytes += take_bytes(rest, "header value")?.len();
            }
            self.headers = headers.get(..headers.len() - rest.len()).unwrap_or_default();
        }
        Ok(())
    }
}

fn take_number(rest: &mut &[u8], field: &'static str) -> Result<u64, RecordError> {
    leb128::take(rest).map_err(|fault| RecordError::Number { field, fault })
}

/// Takes a length and so many bytes behind it off the front.
#[inline]
pub(crate) fn take_bytes<'a>(rest: &mut &'a [u8], field: &'static str) -> Result<&'a [u8], RecordError> {
    let claimed = take_number(rest, field)?;
    let split = usize::try_from(claimed).ok().and_then(|claimed| rest.split_at_checked(claimed));
    let (bytes, behind) = split.ok_or(RecordError::Overrun { field, claimed, left: rest.len() })?;
    *rest = behind;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(record: &Record) -> Bytes {
        let mut out = Vec::new();
        record.encode_into(&mut out);
        out.into()
    }

    fn decode(body: &'static [u8]) -> Result<Record, RecordError> {
        let decoded = Record::decode(&Bytes::from_static(body));
        assert_eq!(decoded.is_ok(), check_body(body, &Limits::default()).is_ok(), "decode and check_body disagree");
        decoded
    }

    #[test]
    fn an_empty_key_is_not_an_absent_one() {
        let absent = Record::new("v");
        let empty = Record::new("v").with_key("");
        assert_eq!(&encoded(&absent)[..], b"\x00v");
        assert_eq!(&encoded(&empty)[..], b"\x01\x00v");
        assert_ne!(Record::decode(&encoded(&empty)), Record::decode(&encoded(&absent)));
    }

    #[test]
    fn parts_stand_in_the_documented_order() {
        let record = Record::new("v").with_header("n", "w").with_key("k").with_timestamp_ms(-1);
        assert_eq!(&encoded(&record)[..], b"\x07\x01\x01k\x01\x01n\x01wv");
    }

    #[test]
    fn other_spellings_of_a_record_are_refused() {
        let field = "key";
        assert_eq!(decode(b""), Err(RecordError::Empty));
        assert_eq!(decode(b"\x08"), Err(RecordError::UnknownFlags { flags: 8 }));
        assert_eq!(decode(b"\x80v"), Err(RecordError::UnknownFlags { flags: 0x80 }));
        assert_eq!(decode(b"\x01\x81\x00k"), Err(RecordError::Number { field, fault: NumberError::NotMinimal }));
        assert_eq!(decode(b"\x01"), Err(RecordError::Number { field, fault: NumberError::Truncated }));
        assert_eq!(decode(b"\x01\x02k"), Err(RecordError::Overrun { field, claimed: 2, left: 1 }));
        assert_eq!(decode(b"\x04\x00v"), Err(RecordError::NoHeaders));
        assert_eq!(decode(b"\x04\x81\x02"), Err(RecordError::TooManyHeaders { count: 257 }));
        assert_eq!(
            decode(b"\x04\x01\x00"),
            Err(RecordError::Number { field: "header value", fault: NumberError::Truncated })
        );
    }

    #[test]
    fn a_length_near_the_end_of_the_number_space_is_refused_without_overflow() {
        let body = b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01k";
        assert_eq!(decode(body), Err(RecordError::Overrun { field: "key", claimed: u64::MAX, left: 1 }));
    }

    #[test]
    fn every_limit_holds_at_its_edge_and_not_beyond_it() {
        let limits = Limits { record_bytes_max: 10, key_bytes_max: 3, headers_bytes_max: 4, ..Limits::default() };
        let verdict = |record: Record| {
            let check = record.check(&limits);
            assert_eq!(check_body(&encoded(&record), &limits), check);
            check
        };
        assert_eq!(verdict(Record::new("0123456789")), Ok(()));
        assert_eq!(verdict(Record::new("0123456789a")), Err(RecordError::TooLarge { bytes: 11, max: 10 }));
        assert_eq!(verdict(Record::new("345").with_key("012").with_header("67", "89")), Ok(()));
        assert_eq!(
            verdict(Record::new("3456").with_key("012").with_header("67", "89")),
            Err(RecordError::TooLarge { bytes: 11, max: 10 })
        );
        assert_eq!(verdict(Record::new("").with_key("0123")), Err(RecordError::KeyTooLarge { bytes: 4, max: 3 }));
        assert_eq!(
            verdict(Record::new("").with_header("01", "2").with_header("3", "4")),
            Err(RecordError::HeadersTooLarge { bytes: 5, max: 4 })
        );
    }

    #[test]
    fn the_number_of_headers_is_limited_even_if_they_are_empty() {
        let with = |count: usize| Record { headers: vec![Header::default(); count], ..Record::default() };
        let limits = Limits::default();
        assert_eq!(with(256).check(&limits), Ok(()));
        assert_eq!(check_body(&encoded(&with(256)), &limits), Ok(()));
        assert_eq!(with(257).check(&limits), Err(RecordError::TooManyHeaders { count: 257 }));
        assert_eq!(Record::decode(&encoded(&with(257))), Err(RecordError::TooManyHeaders { count: 257 }));
    }

    #[test]
    fn decoding_copies_nothing_and_detaching_copies_all() {
        let body = encoded(&Record::new("value").with_key("key").with_header("name", "text"));
        let record = Record::decode(&body).unwrap();
        let within = |part: &Bytes| body.as_ptr_range().contains(&part.as_ptr());
        assert!(within(&record.value) && within(record.key.as_ref().unwrap()) && within(&record.headers[0].value));
        let detached = record.detach();
        assert_eq!(detached, record);
        assert!(!within(&detached.value) && !within(detached.key.as_ref().unwrap()));
        assert!(!within(&detached.headers[0].name) && !within(&detached.headers[0].value));
    }

    #[test]
    fn the_checksum_is_that_of_the_encoded_body() {
        let record = Record::new("v").with_key("k").with_timestamp_ms(i64::MIN).with_header("a", "b");
        assert_eq!(record.crc(), crc32fast::hash(&encoded(&record)));
    }
}
