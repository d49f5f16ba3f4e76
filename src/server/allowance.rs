//! What one connection may make the broker hold: two windows that begin small and grow as they are made use of, and shares
//! of the common budget for whatever is larger.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use tidelog_protocol::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::budget::{Budget, Share};
use crate::server::peers::{Peers, QUIC_STREAM_BYTES, QUIC_STREAMS_FREE, WINDOW_BYTES};

/// One connection's allowance, shared by all its QUIC streams.
pub(crate) struct Allowance {
    peers: Arc<Peers>,
    connection: Arc<dyn Connection>,
    receive: Window,
    send: Window,
    quic_streams: Cell<u32>,
    is_admitted: Cell<bool>,
    /// What its unfinished frames may take, so that one connection alone can't be in the way of all others.
    frames: Arc<Semaphore>,
}

/// A window that grows.
struct Window {
    bytes: Cell<u32>,
    bytes_max: u32,
    /// Bytes that have passed since it was as large as it is.
    passed: Cell<u64>,
    /// What it has taken beyond its first size. It stays taken until the connection ends: what the other side was once
    /// allowed to send can't be taken back.
    taken: RefCell<Option<Share>>,
}

impl Window {
    fn new(bytes_max: u32) -> Self {
        Self { bytes: Cell::new(WINDOW_BYTES), bytes_max, passed: Cell::new(0), taken: RefCell::default() }
    }

    /// Counts bytes that have passed, and doubles the window if that many did and there is memory to spare; the new size,
    /// if it has one.
    fn pass(&self, bytes: usize, budget: &Budget) -> Option<u32> {
        let (window, passed) = (self.bytes.get(), self.passed.get() + bytes as u64);
        self.passed.set(passed);
        if passed < u64::from(window) || window >= self.bytes_max {
            return None;
        }
        self.passed.set(0);
        let grown = window.saturating_mul(2).min(self.bytes_max);
        let more = budget.try_take_spare(grown - window)?;
        match &mut *self.taken.borrow_mut() {
            Some(taken) => taken.merge(more),
            none => *none = Some(more),
        }
        self.bytes.set(grown);
        Some(grown)
    }
}

impl Allowance {
    pub(crate) fn new(peers: &Arc<Peers>, connection: &Arc<dyn Connection>) -> Rc<Self> {
        Rc::new(Self {
            peers: Arc::clone(peers),
            connection: Arc::clone(connection),
            receive: Window::new(peers.limits.receive_window_bytes_max),
            send: Window::new(peers.limits.send_window_bytes_max),
            quic_streams: Cell::new(0),
            is_admitted: Cell::new(false),
            frames: Arc::new(Semaphore::new(peers.limits.frames_bytes_max as usize)),
        })
    }

    /// The hello was accepted: from here on the windows may grow.
    pub(crate) fn admit(&self) {
        self.is_admitted.set(true);
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.peers.budget
    }

    pub(crate) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// Bytes were read and made something of: whoever sends like that may send further ahead.
    pub(crate) fn received(&self, bytes: usize) {
        if self.is_admitted.get()
            && let Some(window) = self.receive.pass(bytes, self.budget())
        {
            self.connection.set_receive_window(window);
        }
    }

    /// Bytes were taken for sending: as many before them were acknowledged, so more may be under way.
    pub(crate) fn sent(&self, bytes: usize) {
        if self.is_admitted.get()
            && let Some(window) = self.send.pass(bytes, self.budget())
        {
            self.connection.set_send_window(window);
        }
    }

    /// Takes memory for a frame, first from what this connection may have of it. Cancel safe.
    pub(crate) async fn frame(&self, bytes: u32) -> FrameShare {
        let own = Arc::clone(&self.frames).acquire_many_owned(bytes).await.expect("the semaphore is never closed");
        FrameShare { share: self.budget().take(bytes).await, _own: own }
    }

    /// A place for one more QUIC stream. The first few belong to the connection, further ones wait for memory.
    pub(crate) async fn quic_stream(self: &Rc<Self>) -> QuicStreamPlace {
        let is_free = self.quic_streams.get() < QUIC_STREAMS_FREE;
        let share = if is_free { None } else { Some(self.budget().take(QUIC_STREAM_BYTES).await) };
        self.quic_streams.set(self.quic_streams.get() + 1);
        QuicStreamPlace { allowance: Rc::clone(self), _share: share }
    }
}

/// Memory for a frame.
pub(crate) struct FrameShare {
    share: Share,
    _own: OwnedSemaphorePermit,
}

impl FrameShare {
    pub(crate) const fn bytes(&self) -> u32 {
        self.share.bytes()
    }
}

/// A QUIC stream's place; dropping it makes room for another one.
pub(crate) struct QuicStreamPlace {
    allowance: Rc<Allowance>,
    _share: Option<Share>,
}

impl QuicStreamPlace {
    pub(crate) fn allowance(&self) -> &Rc<Allowance> {
        &self.allowance
    }
}

impl Drop for QuicStreamPlace {
    fn drop(&mut self) {
        let quic_streams = &self.allowance.quic_streams;
        quic_streams.set(quic_streams.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Counters;

    #[test]
    fn a_window_doubles_with_each_of_its_sizes_that_passes_as_long_as_there_is_memory_to_spare() {
        let counters = Arc::new(Counters::new());
        let budget = Budget::new(256 << 10, Arc::clone(&counters));
        let window = Window::new(1 << 20);
        assert_eq!(window.pass(WINDOW_BYTES as usize - 1, &budget), None);
        assert_eq!(window.pass(1, &budget), Some(2 * WINDOW_BYTES));
        assert_eq!(window.pass(WINDOW_BYTES as usize, &budget), None);
        assert_eq!(window.pass(WINDOW_BYTES as usize, &budget), Some(4 * WINDOW_BYTES));
        assert_eq!(window.pass(1 << 20, &budget), Some(8 * WINDOW_BYTES));
        // Another 128 KiB would take from what is kept for those who can't do without.
        assert_eq!(window.pass(1 << 20, &budget), None);
        assert_eq!(counters.memory_used_bytes.get(), u64::from(7 * WINDOW_BYTES));
        drop(window);
        assert_eq!(counters.memory_used_bytes.get(), 0);
    }

    #[test]
    fn a_window_stops_at_its_limit() {
        let budget = Budget::new(1 << 20, Arc::new(Counters::new()));
        let window = Window::new(20 << 10);
        assert_eq!(window.pass(1 << 20, &budget), Some(20 << 10));
        assert_eq!(window.pass(1 << 20, &budget), None);
    }
}
