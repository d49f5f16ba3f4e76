//! Names of streams, producers and groups, checked when they are made.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::NAME_BYTES_MAX;

/// What a name belongs to; only for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameKind {
    /// A stream.
    Stream,
    /// A producer.
    Producer,
    /// A consumer group.
    Group,
}

impl fmt::Display for NameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NameKind::Stream => "stream",
            NameKind::Producer => "producer",
            NameKind::Group => "group",
        })
    }
}

/// Why a text is no name. Nothing was changed; choose another name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// A name has at least one character.
    #[error("a {kind} name is empty; it needs 1 to {NAME_BYTES_MAX} of the characters A-Z a-z 0-9 . _ -")]
    Empty {
        /// What was to be named.
        kind: NameKind,
    },
    /// A name is at most [`NAME_BYTES_MAX`] bytes long.
    #[error("a {kind} name is {bytes} bytes long; at most {NAME_BYTES_MAX} are allowed")]
    TooLong {
        /// What was to be named.
        kind: NameKind,
        /// Length of the refused text in bytes.
        bytes: usize,
    },
    /// Only letters, digits, `.`, `_` and `-` of ASCII are allowed.
    #[error("a {kind} name has {character:?} at byte {position}; only A-Z a-z 0-9 . _ - are allowed")]
    Character {
        /// What was to be named.
        kind: NameKind,
        /// The first character that is not allowed.
        character: char,
        /// Where it stands, in bytes from 0.
        position: usize,
    },
    /// Names that start with a dot are the broker's own.
    #[error("a {kind} name starts with '.'; such names are the broker's own")]
    LeadingDot {
        /// What was to be named.
        kind: NameKind,
    },
    /// `.dead.` marks dead-letter streams.
    #[error("a {kind} name has '.dead.' at byte {position}; that marks the broker's dead-letter streams")]
    Reserved {
        /// What was to be named.
        kind: NameKind,
        /// Where it stands, in bytes from 0.
        position: usize,
    },
}

fn check(kind: NameKind, name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { kind });
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong { kind, bytes: name.len() });
    }
    let allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-');
    if let Some((position, character)) = name.char_indices().find(|&(_, character)| !allowed(character)) {
        return Err(NameError::Character { kind, character, position });
    }
    if name.starts_with('.') {
        return Err(NameError::LeadingDot { kind });
    }
    // For all three kinds, not only streams: a dead-letter stream is called `<stream>.dead.<group>`, and one such name
    // must not come from two different pairs.
    if let Some(position) = name.find(".dead.") {
        return Err(NameError::Reserved { kind, position });
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:expr) => {
        $(#[$doc])*
        ///
        /// 1 to [`NAME_BYTES_MAX`] bytes of `A-Z a-z 0-9 . _ -`, not starting with `.`, without `.dead.`. A value that
        /// exists keeps the rule: there is no other way to make one. Clones share the text: a broker holds each name several times.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `name` and keeps a copy.
            ///
            /// # Errors
            /// [`NameError`] names the rule that is broken and where.
            pub fn new(name: impl AsRef<str>) -> Result<Self, NameError> {
                let name = name.as_ref();
                check($kind, name)?;
                Ok(Self(name.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(name: String) -> Result<Self, NameError> {
                check($kind, &name)?;
                Ok(Self(name.into()))
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::try_from(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// The name of a stream.
    StreamName,
    NameKind::Stream
);
name!(
    /// The name of a producer.
    ProducerName,
    NameKind::Producer
);
name!(
    /// The name of a consumer group.
    GroupName,
    NameKind::Group
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_allowed_character_and_the_longest_name_are_taken() {
        for name in ["a", "0", "-", "_", "A.b_c-9", "orders.", "a.dead", "dead.a", &"x".repeat(NAME_BYTES_MAX)] {
            assert_eq!(StreamName::new(name).unwrap().as_str(), name);
            assert_eq!(name.parse::<ProducerName>().unwrap().to_string(), name);
            assert_eq!(GroupName::try_from(name.to_owned()).unwrap().as_ref(), name);
        }
    }

    #[test]
    fn each_broken_rule_is_named_with_its_place() {
        let kind = NameKind::Stream;
        assert_eq!(StreamName::new(""), Err(NameError::Empty { kind }));
        assert_eq!(StreamName::new("x".repeat(256)), Err(NameError::TooLong { kind, bytes: 256 }));
        assert_eq!(StreamName::new("ab/c"), Err(NameError::Character { kind, character: '/', position: 2 }));
        assert_eq!(StreamName::new("éa"), Err(NameError::Character { kind, character: 'é', position: 0 }));
        assert_eq!(StreamName::new("a\0"), Err(NameError::Character { kind, character: '\0', position: 1 }));
        assert_eq!(StreamName::new(".a"), Err(NameError::LeadingDot { kind }));
        assert_eq!(StreamName::new("a.dead.b"), Err(NameError::Reserved { kind, position: 1 }));
    }

    #[test]
    fn the_dead_letter_mark_is_refused_in_producers_and_groups_too() {
        assert!(matches!(ProducerName::new("a.dead.b"), Err(NameError::Reserved { position: 1, .. })));
        assert!(matches!(GroupName::new("b.dead.c"), Err(NameError::Reserved { position: 1, .. })));
    }

    #[test]
    fn json_is_a_checked_string() {
        let name = StreamName::new("orders").unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"orders\"");
        assert_eq!(serde_json::from_str::<StreamName>("\"orders\"").unwrap(), name);
        let refused = serde_json::from_str::<StreamName>("\"a b\"").unwrap_err();
        assert!(refused.to_string().contains("' ' at byte 1"), "{refused}");
    }

    #[test]
    fn display_keeps_to_the_width_it_is_given() {
        assert_eq!(
            format!("{:>4}|{:<4}|", StreamName::new("ab").unwrap(), StreamName::new("cd").unwrap()),
            "  ab|cd  |"
        );
    }
}
