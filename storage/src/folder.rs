//! A folder that is being opened: its medium, with words for its failures.

use std::io;

use crate::error::OpenError;
use crate::medium::Medium;

/// The medium, with words for its failures.
#[derive(Clone, Copy)]
pub(crate) struct Folder<'m> {
    pub(crate) medium: &'m dyn Medium,
}

impl Folder<'_> {
    pub(crate) fn run<T>(&self, step: &'static str, outcome: io::Result<T>) -> Result<T, OpenError> {
        outcome.map_err(|source| self.error(step, source))
    }

    pub(crate) fn error(&self, step: &'static str, source: io::Error) -> OpenError {
        OpenError::Medium { step, folder: self.medium.describe(), source }
    }
}
