//! Connections within a process: what QUIC is on a network, without sockets, packets and keys.
//!
//! A [`Network`] joins any number of clients with the one broker that listens on it. Its connections behave as those of
//! QUIC do, as far as sessions and clients can see: many bidirectional QUIC streams, each in order and none in the way of
//! another; windows that a reader who does not read fills, so that the writer waits; a number of QUIC streams that may be
//! open; resets and stops with their codes; a close with code and reason that drops what has not arrived.
//!
//! What becomes of bytes on the way is up to [`Conditions`]: at once and all of them ([`Fair`]), or as ill as a test
//! wants it. Time on the way is tokio's, so that a paused clock passes it in no time.

mod conditions;
mod line;
mod pipe;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tidelog_protocol::{BoxFuture, Connection, Connector, TransportError};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub use self::conditions::{Attempt, Conditions, Cut, Fair, Fate, Loss, Passage, Side};
use self::line::{End, Line};

/// Limits of the connections of a [`Network`].
#[derive(Debug, Clone, Copy)]
pub struct NetworkLimits {
    /// Bytes that may be under way or unread in one direction of a QUIC stream; at least 1.
    pub window_bytes: usize,
    /// QUIC streams that either side of a connection may have opened and the other not dropped.
    pub quic_streams_max: usize,
}

impl Default for NetworkLimits {
    fn default() -> Self {
        Self { window_bytes: 1 << 20, quic_streams_max: 1_024 }
    }
}

/// A network within the process. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    limits: NetworkLimits,
    conditions: Arc<dyn Conditions>,
    state: Mutex<State>,
    connections: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Who listens, and the count of those who have.
    listener: Option<UnboundedSender<Arc<End>>>,
    listeners: u64,
    lines: Vec<Weak<Line>>,
}

impl Default for Network {
    fn default() -> Self {
        Self::new(NetworkLimits::default(), Arc::new(Fair))
    }
}

impl Network {
    /// A network on which nobody listens yet.
    #[must_use]
    pub fn new(limits: NetworkLimits, conditions: Arc<dyn Conditions>) -> Self {
        let limits = NetworkLimits { window_bytes: limits.window_bytes.max(1), ..limits };
        let shared = Shared { limits, conditions, state: Mutex::default(), connections: AtomicU64::new(0) };
        Self { shared: Arc::new(shared) }
    }

    /// What a client connects with.
    #[must_use]
    pub fn connector(&self) -> Arc<dyn Connector> {
        Arc::new(self.clone())
    }

    /// Listens, in the place of whoever did before.
    #[must_use]
    pub fn listen(&self) -> Listener {
        let (sender, incoming) = unbounded_channel();
        let mut state = self.shared.lock();
        state.listener = Some(sender);
        state.listeners += 1;
        Listener { shared: Arc::clone(&self.shared), number: state.listeners, incoming }
    }

    /// Ends every connection as the sudden end of the broker's machine does: nothing leaves it any more and nothing more
    /// arrives there. Its clients notice after as long as `client_notices` says for each. Whether what was already under
    /// way to them still arrives is up to `lands`.
    pub fn broker_dies(&self, mut cut: impl FnMut(u64) -> Cut) {
        let lines = {
            let mut state = self.shared.lock();
            state.listener = None;
            std::mem::take(&mut state.lines)
        };
        for line in lines.iter().filter_map(Weak::upgrade) {
            line.cut(&cut(line.number()), "the other side has fallen silent");
        }
    }
}

impl Connector for Network {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Connection>, TransportError>> {
        Box::pin(async {
            match self.shared.conditions.connect() {
                Attempt::Reaches { after } if after.is_zero() => {}
                Attempt::Reaches { after } => tokio::time::sleep(after).await,
                Attempt::Fails { after } => {
                    tokio::time::sleep(after).await;
                    return Err(TransportError::Unreachable("nobody answered".to_owned()));
                }
            }
            let mut state = self.shared.lock();
            let refused = || TransportError::Unreachable("nobody listens".to_owned());
            let Some(listener) = &state.listener else { return Err(refused()) };
            let number = self.shared.connections.fetch_add(1, Ordering::Relaxed);
            let (line, client, broker) = Line::open(number, self.shared.limits, &self.shared.conditions);
            listener.send(broker).map_err(|_| refused())?;
            if state.lines.len() == state.lines.capacity() {
                state.lines.retain(|line| line.strong_count() > 0);
            }
            state.lines.push(Arc::downgrade(&line));
            Ok(client as Arc<dyn Connection>)
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every state in it is a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// The broker's place on a [`Network`]; dropping it refuses further connections.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    number: u64,
    incoming: UnboundedReceiver<Arc<End>>,
}

impl Listener {
    /// Waits for the next client; `None` once somebody else listens in this one's place. Cancel safe.
    pub async fn accept(&mut self) -> Option<Arc<dyn Connection>> {
        Some(self.incoming.recv().await? as Arc<dyn Connection>)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.listeners == self.number {
            state.listener = None;
        }
    }
}
