//! What the other threads tell the network thread.

use std::io;
use std::time::Duration;

use tidelog_storage::{Job, JobOutcome, Poisoned, Sealed};

/// News from another thread.
#[derive(Debug)]
pub(crate) enum Event {
    /// From the log thread.
    Log(LogOutcome),
    /// From the housekeeping thread.
    Housekeeping(Job, io::Result<JobOutcome>),
}

/// A group is durable, or it is not known whether it is.
#[derive(Debug)]
pub(crate) enum LogOutcome {
    /// Durable up to here.
    Committed {
        /// The durable position.
        end: u64,
        /// The segment that was sealed on the way.
        sealed: Option<Sealed>,
        /// How long fdatasync took.
        sync: Duration,
    },
    /// No further group will be taken.
    Poisoned(Poisoned),
}
