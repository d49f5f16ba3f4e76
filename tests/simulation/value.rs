//! What programs write: values that say by whom, where and as what they were written.

use std::fmt;

/// How a program numbers its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbering {
    /// It has no name and numbers nothing: at least once.
    Nameless,
    /// The client does, on from what the broker has.
    Client,
    /// By itself, without jumps; after a restart it begins some way back, as a program does that is not sure.
    Own,
    /// By itself, with jumps: the ids of an outbox.
    Sparse,
}

impl Numbering {
    /// That of the program of this name.
    pub(crate) fn of(program: &str) -> Self {
        match program {
            "nobody" => Self::Nameless,
            "dora" => Self::Own,
            "erin" => Self::Sparse,
            _ => Self::Client,
        }
    }

    /// Whether a record has the same bytes whichever process sends it.
    pub(crate) const fn is_own(self) -> bool {
        matches!(self, Self::Own | Self::Sparse)
    }

    /// The sequence of the record with this number, which is 1 for the first.
    pub(crate) const fn sequence(self, number: u64) -> u64 {
        match self {
            Self::Nameless => 0,
            Self::Sparse => number * 2 + number % 2,
            Self::Client | Self::Own => number,
        }
    }

    /// The number of the record with this sequence.
    pub(crate) const fn number(self, sequence: u64) -> u64 {
        match self {
            Self::Sparse => sequence / 2,
            _ => sequence,
        }
    }
}

/// The identity of a record, as its value tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The producer's name, or that of a program without one.
    pub(crate) program: String,
    /// Index of the stream.
    pub(crate) stream: usize,
    /// The record's number among those of its program, or of its process if that has no name.
    pub(crate) number: u64,
    /// The epoch under which it was written; 0 if it would be the same under any; of a program without a name, its process.
    pub(crate) epoch: u64,
}

impl Mark {
    /// The value: the mark, and filler that follows from it.
    pub(crate) fn value(&self) -> Vec<u8> {
        let mut value = self.to_string().into_bytes();
        let filler = if self.number.is_multiple_of(11) { 1_800 } else { self.number * 37 % 400 };
        value.resize(value.len() + filler as usize, self.number as u8);
        value
    }

    /// The mark of a value, if every byte of it is as [`Self::value`] makes it.
    pub(crate) fn of(value: &[u8]) -> Option<Self> {
        let end = value.iter().enumerate().filter(|(_, byte)| **byte == b' ').nth(3)?.0;
        let text = std::str::from_utf8(value.get(..end)?).ok()?;
        let mut parts = text.split(' ');
        let mark = Self {
            program: parts.next()?.to_owned(),
            stream: parts.next()?.parse().ok()?,
            number: parts.next()?.parse().ok()?,
            epoch: parts.next()?.parse().ok()?,
        };
        (mark.value() == value).then_some(mark)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} {} {} ", self.program, self.stream, self.number, self.epoch)
    }
}
