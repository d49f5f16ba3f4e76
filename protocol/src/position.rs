//! What counts: ids, offsets, sequences and epochs, each a type of its own so that none is taken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a number; nothing is checked.
            #[must_use]
            pub const fn new(number: u64) -> Self {
                Self(number)
            }

            /// The number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The value `count` further on, or `None` past `u64::MAX`.
            #[must_use]
            pub const fn checked_add(self, count: u64) -> Option<Self> {
                match self.0.checked_add(count) {
                    Some(number) => Some(Self(number)),
                    None => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// One stream's life: a stream removed and made again under the same name has another id. Ids are never reused.
    StreamId
);
number!(
    /// One producer's name for ever. Ids are never reused.
    ProducerId
);
number!(
    /// A record's place in its stream: dense, from 0.
    Offset
);
number!(
    /// A record's place in its producer's output to one stream, from 1; chosen by the producer.
    Sequence
);
number!(
    /// One incarnation of a producer. A higher epoch fences every lower one.
    Epoch
);

impl ProducerId {
    /// The producer without a name: nothing is deduplicated for it and its records carry no sequence.
    pub const ANONYMOUS: Self = Self(0);
}

impl Sequence {
    /// No record yet, or a record of an anonymous producer.
    pub const NONE: Self = Self(0);
    /// The highest sequence: 2^63 - 1, so that it fits a signed 64-bit column of an outbox table.
    pub const MAX: Self = Self(u64::MAX >> 1);
}

impl Epoch {
    /// The epoch found for a producer that was never opened.
    pub const NONE: Self = Self(0);
}

/// Sixteen random bytes that a client draws for one attempt to open a producer, so that a retried open is recognised
/// and neither fences itself nor a later session. In JSON and in text 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AttemptId([u8; 16]);

impl AttemptId {
    /// Wraps sixteen bytes; drawing them at random is the caller's part.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The sixteen bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// The text is not 32 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an attempt id is 32 lower-case hex digits")]
pub struct AttemptIdError;

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AttemptId({self})")
    }
}

impl FromStr for AttemptId {
    type Err = AttemptIdError;

    fn from_str(text: &str) -> Result<Self, AttemptIdError> {
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
            return Err(AttemptIdError);
        };
        let pairs: &[[u8; 2]; 16] = pairs.try_into().map_err(|_| AttemptIdError)?;
        let mut bytes = [0; 16];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = hex_digit(*high)? << 4 | hex_digit(*low)?;
        }
        Ok(Self(bytes))
    }
}

fn hex_digit(digit: u8) -> Result<u8, AttemptIdError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(AttemptIdError),
    }
}

impl Serialize for AttemptId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AttemptId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_id_is_its_hex_digits() {
        let attempt = AttemptId::new([0x00, 0x01, 0x7f, 0x80, 0xff, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xab]);
        let text = "00017f80ff05060708090a0b0c0d0eab";
        assert_eq!(attempt.to_string(), text);
        assert_eq!(text.parse(), Ok(attempt));
        assert_eq!(serde_json::to_string(&attempt).unwrap(), format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<AttemptId>(&format!("\"{text}\"")).unwrap(), attempt);
    }

    #[test]
    fn other_texts_are_no_attempt_id() {
        for text in ["", "00", &"0".repeat(31), &"0".repeat(33), &"0".repeat(34), &"A".repeat(32), &"é".repeat(16)] {
            assert_eq!(text.parse::<AttemptId>(), Err(AttemptIdError), "{text}");
        }
    }

    #[test]
    fn numbers_are_plain_in_json_and_keep_all_64_bits() {
        assert_eq!(serde_json::to_string(&Offset::new(u64::MAX)).unwrap(), "18446744073709551615");
        assert_eq!(serde_json::from_str::<Sequence>("9223372036854775807").unwrap(), Sequence::MAX);
        assert!(serde_json::from_str::<Sequence>("-1").is_err());
        assert!(serde_json::from_str::<Sequence>("1.5").is_err());
    }

    #[test]
    fn counting_past_the_end_is_none() {
        assert_eq!(Offset::new(3).checked_add(4), Some(Offset::new(7)));
        assert_eq!(Offset::new(u64::MAX).checked_add(1), None);
    }
}
