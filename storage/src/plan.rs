//! How to read one subject: which segments to look at, and where in them.

use std::collections::VecDeque;

/// A subject's entries stand at most this many bytes behind a point, in the log. The price: an index point, 16 bytes, for
/// each entry of a stream whose entries are further apart.
pub(crate) const POINT_SPACING_BYTES: u64 = 16 * 1_024;
/// An offset, and the position of the entry that begins with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) offset: u64,
    pub(crate) position: u64,
}

/// Where to look next.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Ask the footer of this segment; and, unless it has been there already, older ones if it does not go back far
    /// enough.
    Footer { segment: u64, goes_back: bool },
    /// These points of this segment.
    Points { segment: u64, end: u64, points: VecDeque<Point> },
}

/// How to read one subject from an offset on; it moves as it is read. When it is used up, the index makes a new one.
#[derive(Debug, Clone)]
pub struct ReadPlan {
    pub(crate) subject: u64,
    pub(crate) offset: u64,
    pub(crate) wall_ms_min: Option<i64>,
    /// The newest segment first; read from the back.
    pub(crate) path: Vec<Step>,
}

impl ReadPlan {
    /// The next offset that it will read.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether everything that it knew of has been read.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.path.is_empty()
    }
}
