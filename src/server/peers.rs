//! What peers may take of the broker, each and all together, and who is refused because of it.

use std::sync::Arc;

use crate::budget::{Budget, Share};
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
        // No connection alone gets more than a thirty-second of everything.
        let window_max = config.memory_budget_bytes / 32;
        Arc::new(Self {
            budget: Budget::new(config.memory_budget_bytes, Arc::clone(counters)),
            counters: Arc::clone(counters),
            limits: PeerLimits {
                connections_max: config.connections_max as u64,
                handshakes_max: config.handshakes_max as u64,
                subscriptions_max: config.subscriptions_max as u64,
                sessions_max: config.sessions_max as u64,
                receive_window_bytes_max: config.connection_receive_window_bytes.min(window_max),
                send_window_bytes_max: config.send_window_bytes.min(window_max),
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
        } else if let Some(share) = self.budget.try_take(CONNECTION_BYTES) {
            return Ok(Stranger {
                counted: Some(self.counters.hold(|counters| &counters.handshakes_in_progress)),
                _share: share,
            });
        } else {
            ConnectionRefusal::Memory
        };
        self.counters.connections_refused.add(refusal, 1);
        Err(refusal)
    }

    /// Whether so many handshakes are under way that a stranger has to show first that its address is its own.
    pub(crate) fn is_crowded(&self) -> bool {
        self.counters.handshakes_in_progress.get() >= self.limits.handshakes_max / 4
    }
}

/// A connection's share of the budget, and its place among the strangers until it is admitted.
#[derive(Debug)]
pub(crate) struct Stranger {
    counted: Option<Held>,
    _share: Share,
}

impl Stranger {
    /// It has said hello and is counted as a connection from here on.
    pub(crate) fn admit(&mut self) {
        self.counted = None;
    }
}
