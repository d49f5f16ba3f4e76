//! What programs write: values that say by whom, where and as what they were written.

use std::fmt;

/// The identity of a record, as its value tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The producer's name, or that of a program without one.
    pub(crate) program: String,
    /// Index of the stream.
    pub(crate) stream: usize,
    /// The record's sequence, or its number if its producer has no name.
    pub(crate) number: u64,
    /// The epoch under which it was written; of a program without a name, its process.
    pub(crate) epoch: u64,
}

impl Mark {
    /// The value: the mark, and filler that follows from it.
    pub(crate) fn value(&self) -> Vec<u8> {
        let mut value = self.to_string().into_bytes();
        let filler = if self.number.is_multiple_of(29) { 1_500 } else { self.number * 37 % 120 };
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
