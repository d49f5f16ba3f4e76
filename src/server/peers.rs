//! What peers may take of the broker, each and all together, and who is refused because of it.

use std::sync::Arc;

use crate::budget::Budget;
use crate::config::CheckedConfig;
use crate::counters::{ConnectionRefusal, Counters, Held};

/// What a connection counts for in the memory budget as long as it lives: the two windows that it always has, and 16 KiB
/// for the state that QUIC, TLS and its first QUIC streams need.
pub(crate) const CONNECTION_BYTES: u32 = 2 * WINDOW_BYTES + (16 << 10);
/// Each window of a connection that has not shown yet that it makes use of it, in bytes.
pub(crate) const WINDOW_BYTES: u32 = 16 << 10;
/// What each further QUIC stream counts for: its task, its buffers, and a frame that is too small to be counted by itself.
pub(crate) const QUIC_STREAM_BYTES: u32 = 16 << 10;
/// QUIC streams that a connection has for nothing.
pub(crate) const QUIC_STREAMS_FREE: u32 = 4;

/// The limits of one broker.
#[derive(Debug, Clone)]
pub(crate) struct PeerLimits {
    pub(crate) connections_max: u64,
    pub(crate) handshakes_max: u64,
    pub(crate) subscriptions_max: u64,
    pub(crate) sessions_max: u64,
    pub(crate) receive_window_bytes_max: u32,
    pub(crate) send_window_bytes_max: u32,
    /// What all unfinished frames of one connection may take together.
    pub(crate) frames_bytes_max: u32,
}

/// The peers of one broker.
#[derive(Debug)]
pub(crate) struct Peers {
    pub(crate) budget: Budget,
    pub(crate) counters: Arc<Counters>,
    pub(crate) limits: PeerLimits,
}

impl Peers {
    pub(crate) fn new(config: &CheckedConfig, counters: &Arc<Counters>) -> Arc<Self> {
        let memory = config.memory_budget_bytes;
        // No connection alone gets more than a thirty-second of everything, unless one frame needs it.
        let (window_max, frame_max) = (memory / 32, u32::try_from(config.limits.frame_bytes_max()).unwrap_or(u32::MAX));
        // What connections count for is put aside, so that there is always a place for one more: the configuration holds
        // it below half of the budget.
        let connections = config.connections_max as u64 + config.handshakes_max as u64;
        let put_aside = u32::try_from(connections * u64::from(CONNECTION_BYTES)).unwrap_or(u32::MAX);
        counters.memory_budget_bytes.set(u64::from(memory));
        Arc::new(Self {
            budget: Budget::new(memory.saturating_sub(put_aside), Arc::clone(counters)),
            counters: Arc::clone(counters),
            limits: PeerLimits {
                connections_max: config.connections_max as u64,
                handshakes_max: config.handshakes_max as u64,
                subscriptions_max: config.subscriptions_max as u64,
                sessions_max: config.sessions_max as u64,
                receive_window_bytes_max: config.connection_receive_window_bytes.min(window_max),
                send_window_bytes_max: config.send_window_bytes.min(window_max),
                frames_bytes_max: window_max.max(frame_max),
            },
        })
    }

    /// Lets a stranger begin its handshake, or counts why not.
    pub(crate) fn meet(&self) -> Result<Stranger, ConnectionRefusal> {
        let strangers = self.counters.handshakes_in_progress.get();
        let refusal = if strangers >= self.limits.handshakes_max {
            ConnectionRefusal::Handshakes
        } else if self.counters.connections.get() + strangers
            >= self.limits.connections_max + self.limits.handshakes_max
        {
            ConnectionRefusal::Connections
        } else {
            self.counters.memory_used_bytes.add(u64::from(CONNECTION_BYTES));
            let counted = Some(self.counters.hold(|counters| &counters.handshakes_in_progress));
            return Ok(Stranger { counted, counters: Arc::clone(&self.counters) });
        };
        self.counters.connections_refused.add(refusal, 1);
        Err(refusal)
    }

    /// Whether so many handshakes are under way that a stranger has to show first that its address is its own.
    pub(crate) fn is_crowded(&self) -> bool {
        self.counters.handshakes_in_progress.get() >= self.limits.handshakes_max / 4
    }
}

/// A connection's place in the budget, and among the strangers until it is admitted.
#[derive(Debug)]
pub(crate) struct Stranger {
    counted: Option<Held>,
    counters: Arc<Counters>,
}

impl Stranger {
    /// It has said hello and is counted as a connection from here on.
    pub(crate) fn admit(&mut self) {
        self.counted = None;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.counters.memory_used_bytes.subtract(u64::from(CONNECTION_BYTES));
    }
}
