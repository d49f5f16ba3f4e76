//! What a check says when it fails: a headline, where the test asked, what stands where, and what it most likely is.

mod alignment;
mod comparison;
mod copies;
mod excerpt;
mod listing;
mod order;

use std::error::Error;
use std::fmt;
use std::panic::Location;

pub(super) use comparison::{Ended, Found, compare, time};
pub(super) use copies::Copies;
pub(super) use excerpt::{KEY_BYTES_SHOWN, VALUE_BYTES_SHOWN, excerpt};
pub(super) use listing::{KeyCount, list_keys, list_records};
pub(super) use order::{disorder, disorder_by};

/// How a stream differs from what a test expected of it.
///
/// `Display` is the whole text, several lines long. `Debug` is the same, so that it can be read, too, where a test
/// unwraps it or returns it.
#[derive(Clone, PartialEq, Eq)]
pub struct Difference {
    report: Report,
    location: &'static Location<'static>,
}

/// What is said, without where it was asked.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// One line: which stream, and what is wrong.
    pub(super) headline: String,
    /// What stands where; lines without a common indent.
    pub(super) lines: Vec<String>,
    /// What it most likely is, where the data show it.
    pub(super) conclusion: Option<String>,
    /// What else is to be known: trouble with the connection.
    pub(super) remark: Option<String>,
}

impl Report {
    pub(super) fn new(headline: impl Into<String>) -> Self {
        Self { headline: headline.into(), ..Self::default() }
    }

    pub(super) fn at(self, location: &'static Location<'static>) -> Difference {
        Difference { report: self, location }
    }
}

impl Difference {
    /// The first line: which stream, and what is wrong with it.
    pub fn headline(&self) -> &str {
        &self.report.headline
    }

    /// Where the test asked.
    pub fn location(&self) -> &'static Location<'static> {
        self.location
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { headline, lines, conclusion, remark } = &self.report;
        write!(formatter, "{headline}\n  at {}:{}", self.location.file(), self.location.line())?;
        if !lines.is_empty() {
            formatter.write_str("\n")?;
        }
        for line in lines {
            write!(formatter, "\n  {}", line.trim_end())?;
        }
        for line in conclusion.iter().chain(remark) {
            write!(formatter, "\n\n  {line}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl Error for Difference {}

/// `1 record`, `2 records`.
pub(super) fn count(number: usize, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

/// The text with spaces behind it up to so many characters.
fn pad(text: &str, width: usize) -> String {
    let len = text.chars().count();
    format!("{text}{}", " ".repeat(width.saturating_sub(len)))
}
