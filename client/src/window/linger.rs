//! How long records wait for company before they leave: the adaptive linger. Pure, and without a clock.
//!
//! There is no time to set. While few batches are under way, whatever was taken in leaves at once: an idle producer pays
//! nothing for batching. While [`SMALL_IN_FLIGHT_MAX`] are unanswered, small batches stay open and grow: their records
//! could not have become durable before the answers that are due, so waiting for the next of these costs them nothing,
//! and the busier the producer and the slower the broker's disk, the more of them travel together. A batch that has
//! reached [`CONTENT_BYTES_SMALL`] gains little from more and leaves in any case. A producer of many streams has many
//! batches under way at once and few of them grow large: its open ones leave together when they fill half of the window,
//! so that the broker has one half to work on while the other fills.

/// So many batches may be unanswered before small ones wait for company. One would leave the broker idle between a sync
/// and the next batch; many would be as many small batches.
pub(super) const SMALL_IN_FLIGHT_MAX: usize = 4;

/// Bytes of content from which on a batch needs no company.
pub(super) const CONTENT_BYTES_SMALL: usize = 64 * 1024;

/// Which of the open batches are to be closed and sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    All,
    /// Those of at least [`CONTENT_BYTES_SMALL`].
    Large,
    None,
}

/// What is due while `in_flight` batches are unanswered, the open ones fill half of the window or do not, and some of them
/// are large, or none.
pub(super) const fn due(in_flight: usize, is_half_open: bool, has_large: bool) -> Due {
    match (in_flight < SMALL_IN_FLIGHT_MAX || is_half_open, has_large) {
        (true, _) => Due::All,
        (false, true) => Due::Large,
        (false, false) => Due::None,
    }
}

/// Whether a batch that has grown from `before` to `after` bytes of content has just become large.
pub(super) const fn has_grown_up(before: usize, after: usize) -> bool {
    before < CONTENT_BYTES_SMALL && after >= CONTENT_BYTES_SMALL
}
