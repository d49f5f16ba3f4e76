//! Lines of an input as records: a value each, a key and a value, or a JSON object.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use tidelog_protocol::{Limits, Record};

use super::exit::{CliError, Exit};

/// What a line is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Format {
    /// The value.
    Value,
    /// The key up to the first separator, the value behind it.
    KeyAndValue(Vec<u8>),
    /// An object as `consume --json` prints it.
    Json,
}

/// A line as it is to be published.
#[derive(Debug, PartialEq)]
pub(crate) struct Parsed {
    pub(crate) record: Record,
    /// The object's own offset, where it has one: its place in the stream that it came from.
    pub(crate) offset: Option<u64>,
}

impl Format {
    /// Bytes of the longest line that can be a record under these limits.
    pub(crate) fn line_bytes_max(&self, limits: &Limits) -> usize {
        let record = limits.record_bytes_max as usize;
        match self {
            Format::Value => record,
            Format::KeyAndValue(separator) => record + separator.len(),
            // Every byte of it escaped as six, and room for names and numbers.
            Format::Json => record * 6 + (1 << 20),
        }
    }

    /// Line number `number`.
    ///
    /// # Errors
    ///
    /// If it is not of this format.
    pub(crate) fn parse(&self, line: &[u8], number: u64) -> Result<Parsed, CliError> {
        match self {
            Format::Value => Ok(Parsed { record: Record::new(line.to_vec()), offset: None }),
            Format::KeyAndValue(separator) => {
                let Some(at) = line.windows(separator.len()).position(|window| window == separator) else {
                    let separator = String::from_utf8_lossy(separator);
                    return Err(malformed(number, &format!("has no {separator:?} between key and value")));
                };
                let (key, rest) = line.split_at(at);
                let value = rest.get(separator.len()..).unwrap_or_default();
                Ok(Parsed { record: Record::new(value.to_vec()).with_key(key.to_vec()), offset: None })
            }
            Format::Json => {
                let object: Object = serde_json::from_slice(line)
                    .map_err(|error| malformed(number, &format!("is not such an object: {error}")))?;
                object.into_parsed().map_err(|why| malformed(number, &why))
            }
        }
    }
}

fn malformed(number: u64, why: &str) -> CliError {
    CliError::new(Exit::No, "malformed_input", format!("line {number} {why}"))
        .with_hint("the lines before it are stored; mend it and run the same command again")
}

/// What `consume --json` prints, as far as it makes a record. Other fields are ignored.
#[derive(Debug, Deserialize)]
struct Object {
    offset: Option<u64>,
    timestamp: Option<Timestamp>,
    key: Option<String>,
    key_base64: Option<String>,
    #[serde(default)]
    headers: Headers,
    #[serde(default)]
    headers_base64: Headers,
    value: Option<String>,
    value_base64: Option<String>,
}

/// RFC 3339, or milliseconds since 1970.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Timestamp {
    Milliseconds(i64),
    Text(String),
}

impl Object {
    fn into_parsed(self) -> Result<Parsed, String> {
        let value = one_of("value", self.value, self.value_base64)?;
        let mut record = Record::new(value.ok_or("has neither `value` nor `value_base64`")?);
        record.key = one_of("key", self.key, self.key_base64)?;
        record.timestamp_ms = match self.timestamp {
            None => None,
            Some(Timestamp::Milliseconds(timestamp_ms)) => Some(timestamp_ms),
            Some(Timestamp::Text(text)) => {
                let time = text.parse::<jiff::Timestamp>();
                Some(time.map_err(|error| format!("has a bad `timestamp`: {error}"))?.as_millisecond())
            }
        };
        for (name, value) in self.headers.0 {
            record = record.with_header(name.into_bytes(), value.into_bytes());
        }
        for (name, value) in self.headers_base64.0 {
            record = record.with_header(name.into_bytes(), decode("headers_base64", &value)?);
        }
        Ok(Parsed { record, offset: self.offset })
    }
}

fn one_of(name: &str, text: Option<String>, encoded: Option<String>) -> Result<Option<Bytes>, String> {
    match (text, encoded) {
        (Some(_), Some(_)) => Err(format!("has both `{name}` and `{name}_base64`")),
        (Some(text), None) => Ok(Some(Bytes::from(text))),
        (None, Some(encoded)) => decode(&format!("{name}_base64"), &encoded).map(|bytes| Some(Bytes::from(bytes))),
        (None, None) => Ok(None),
    }
}

fn decode(name: &str, encoded: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(encoded).map_err(|error| format!("has a bad `{name}`: {error}"))
}

/// An object of names and values in the order in which they stand there; a name with several values has an array.
#[derive(Debug, Default)]
struct Headers(Vec<(String, String)>);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeadersVisitor)
    }
}

struct HeadersVisitor;

impl<'de> Visitor<'de> for HeadersVisitor {
    type Value = Headers;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of texts, or of arrays of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
        let mut headers = Vec::new();
        while let Some((name, values)) = map.next_entry::<String, OneOrMore>()? {
            match values {
                OneOrMore::One(value) => headers.push((name, value)),
                OneOrMore::More(values) => headers.extend(values.into_iter().map(|value| (name.clone(), value))),
            }
        }
        Ok(Headers(headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(line: &str) -> Result<Parsed, String> {
        Format::Json.parse(line.as_bytes(), 7).map_err(|error| format!("{error:?}"))
    }

    #[test]
    fn an_object_becomes_the_record_that_it_describes() {
        let line = r#"{"offset":41,"time":"2024-05-01T12:00:00.000Z","producer":"p","sequence":3,
            "timestamp":"1970-01-01T00:00:01.500Z","key":"k","headers":{"z":"1","a":["2","3"]},
            "headers_base64":{"b":"/wA="},"value":"v\u0000ä"}"#;
        let record = Record::new("v\0ä")
            .with_key("k")
            .with_timestamp_ms(1_500)
            .with_header("z", "1")
            .with_header("a", "2")
            .with_header("a", "3")
            .with_header("b", &b"\xff\0"[..]);
        assert_eq!(json(line).unwrap(), Parsed { record, offset: Some(41) });
        let plain = json(r#"{"value_base64":"/w==","key":null,"timestamp":-5,"headers":{}}"#).unwrap();
        assert_eq!(plain.record, Record::new(&b"\xff"[..]).with_timestamp_ms(-5));
        assert_eq!(plain.offset, None);
        assert_eq!(json(r#"{"value":"","key_base64":""}"#).unwrap().record, Record::new("").with_key(""));
    }

    #[test]
    fn what_is_no_such_object_is_told_with_its_line() {
        for (line, why) in [
            ("", "line 7"),
            ("text", "line 7"),
            (r#"["value"]"#, "line 7"),
            (r#"{"value":"a"} {"value":"b"}"#, "trailing"),
            (r#"{"key":"k"}"#, "neither"),
            (r#"{"value":{"a":1}}"#, "line 7"),
            (r#"{"value":"a","value_base64":"/w=="}"#, "both"),
            (r#"{"value_base64":"no!"}"#, "value_base64"),
            (r#"{"value":"a","timestamp":"yesterday"}"#, "timestamp"),
            (r#"{"value":"a","headers":["h"]}"#, "an object of texts"),
            (r#"{"value":"a","offset":-1}"#, "line 7"),
        ] {
            let error = json(line).unwrap_err();
            assert!(error.contains("line 7") && error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn a_line_is_split_at_the_first_separator() {
        let format = Format::KeyAndValue(b"::".to_vec());
        let split = |line: &[u8]| format.parse(line, 1).unwrap().record;
        assert_eq!(split(b"k::v::w"), Record::new("v::w").with_key("k"));
        assert_eq!(split(b"::"), Record::new("").with_key(""));
        let error = format.parse(b"k:v", 3).unwrap_err();
        assert_eq!(error.exit(), Exit::No);
        assert!(format!("{error:?}").contains("line 3"), "{error:?}");
    }
}
