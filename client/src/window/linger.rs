//! How long records wait for company before they leave: the adaptive linger. Pure, and without a clock.
//!
//! There is no time to set. While few batches are under way, whatever was taken in leaves at once: an idle producer pays
//! nothing for batching. While [`SMALL_IN_FLIGHT_MAX`] are unanswered, small batches stay open and grow: their records
//! could not have become durable before the answers that are due, so waiting for the next of these costs them nothing,
//! and the busier the producer and the slower the broker's disk, the more of them travel together. A batch that has
//! reached [`CONTENT_BYTES_SMALL`] gains little from more and leaves in any case.
//!
//! A producer of many streams has many batches under way at once, and few of them grow large; small batches are what it
//! pays for. So their open batches fill [`open_bytes_max`] of the window, and then [`lump_bytes`] leave, the
//! batches that were opened first, and each has then grown for as long as the window allows, twice as large as if all left
//! together each time that the same memory is full. And when few batches are under way, all leave as soon as the
//! producer pauses: when a turn of the runtime has brought no further record. If it goes on turn after turn, some leave
//! all the same, as many as fill [`lump_bytes`].

/// So many batches may be unanswered before small ones wait for company. One would leave the broker idle between a sync
/// and the next batch; many would be as many small batches.
pub(super) const SMALL_IN_FLIGHT_MAX: usize = 4;

/// Bytes of content from which on a batch needs no company.
pub(super) const CONTENT_BYTES_SMALL: usize = 64 * 1024;

/// So many open batches are those of a producer of few streams: they leave as soon as few are under way.
pub(super) const OPEN_FEW: usize = 16;

/// So many turns of the runtime in a row may bring further records before some of the open batches leave: a few
/// microseconds each where others hand records over from threads of their own.
const TURNS_MAX: u32 = 16;

/// Bytes of open batches at which some leave although others are under way, in a window of so many bytes.
///
/// The rest is what the broker syncs and what it gathers meanwhile: two groups. With a half, batches would be shorter by a
/// fifth; with three quarters a slow disk would have too little to sync at a time.
pub(super) const fn open_bytes_max(window_bytes: usize) -> usize {
    window_bytes / 8 * 5
}

/// Bytes that leave together, in a window of so many bytes: enough for the broker to go on with, and much for one sync. Many
/// small groups would cost it more than the batches in them.
pub(super) const fn lump_bytes(window_bytes: usize) -> usize {
    // Something has to leave of the smallest window, too.
    window_bytes / 8 + 1
}

/// Waits for a producer of many streams to pause.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// Records taken in when it was asked last.
    taken: u64,
    turns: u32,
    goes_on: bool,
}

impl Gathering {
    /// Whether to wait for another turn before any of `open` batches leave; asked once each turn while few are under way.
    /// `taken` counts the records that were taken in.
    pub(super) fn waits(&mut self, open: usize, taken: u64) -> bool {
        let brought_more = std::mem::replace(&mut self.taken, taken) != taken;
        self.goes_on = open > OPEN_FEW && brought_more;
        let waits = self.goes_on && self.turns < TURNS_MAX;
        self.turns = if waits { self.turns + 1 } else { 0 };
        waits
    }

    /// Whether the producer had not paused when it was asked last: its open batches can still grow.
    pub(super) const fn goes_on(&self) -> bool {
        self.goes_on
    }
}

/// Whether a batch that has grown from `before` to `after` bytes of content has just become large.
pub(super) const fn has_grown_up(before: usize, after: usize) -> bool {
    before < CONTENT_BYTES_SMALL && after >= CONTENT_BYTES_SMALL
}
