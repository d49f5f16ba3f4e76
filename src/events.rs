//! What the other threads tell the network thread.

use std::io;

use tidelog_storage::{Job, JobOutcome};

use crate::log_thread::LogOutcome;

/// News from another thread.
#[derive(Debug)]
pub(crate) enum Event {
    /// From the log thread.
    Log(LogOutcome),
    /// From the housekeeping thread.
    Housekeeping(Job, io::Result<JobOutcome>),
}
