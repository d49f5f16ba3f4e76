//! What a log is opened with.

use crate::{Entropy, Sabotages};

/// Sizes and sources of one log. All sizes are in bytes.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// The segment that a start opens: small, so that starting costs next to nothing.
    pub segment_first_bytes: u64,
    /// The largest segment prepared ahead. Segments grow fourfold from the first one to this size, so that a burst just
    /// after a start does not wait until a full-sized file has been zeroed.
    pub segment_bytes: u64,
    /// The largest payload of one entry, and of one atomic group together; at most [`crate::entry::PAYLOAD_BYTES_MAX`].
    pub payload_bytes_max: u32,
    /// Segment files whose headers are not to be believed, by name: they count as unreadable, so that the log goes on
    /// without them and behind all that they can have held. For `repair`; otherwise empty.
    pub distrusted: Vec<String>,
    /// Where salts come from.
    pub entropy: Entropy,
    /// Deliberate defects for the crash tests; nothing without the feature `sabotage`.
    pub sabotages: Sabotages,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_first_bytes: 1 << 20,
            segment_bytes: 64 << 20,
            payload_bytes_max: 17 << 20,
            distrusted: Vec::new(),
            entropy: Entropy::System,
            sabotages: Sabotages::default(),
        }
    }
}

/// The clocks of a log's entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReplayTime {
    /// Milliseconds since the Unix epoch, by the wall clock.
    pub wall_ms: i64,
    /// Milliseconds of log time: runs with the monotonic clock, moves over a stop by the wall clock, never goes back.
    pub log_ms: u64,
}
