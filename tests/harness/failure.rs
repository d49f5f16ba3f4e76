//! How a run ends that does not end well: the broker broke a promise, or the run itself could not be carried out.

use std::fmt;

/// Why a run ended early.
#[derive(Debug, Clone)]
pub enum Failure {
    /// The broker broke a promise: what a deliberate defect must lead to.
    Violation(String),
    /// Something kept the run from going on; it says nothing about the broker.
    Trouble(String),
}

impl Failure {
    pub fn violation(what: impl Into<String>) -> Self {
        Self::Violation(what.into())
    }

    /// With where it was in front.
    pub fn at(self, place: impl fmt::Display) -> Self {
        match self {
            Self::Violation(what) => Self::Violation(format!("{place}: {what}")),
            Self::Trouble(what) => Self::Trouble(format!("{place}: {what}")),
        }
    }

    /// With `doing` in front, for errors of the machine.
    pub fn trouble(doing: impl fmt::Display, error: impl fmt::Display) -> Self {
        Self::Trouble(format!("{doing}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violation(what) => write!(formatter, "broken promise: {what}"),
            Self::Trouble(what) => write!(formatter, "the run could not go on: {what}"),
        }
    }
}
