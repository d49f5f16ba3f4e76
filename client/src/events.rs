//! What happens to a client's connection, for whoever wants to show or log it.

use std::fmt;
use std::time::Duration;

use tokio::sync::broadcast;

use crate::error::Error;

/// Events that wait for a slow listener, each; beyond that it loses the oldest.
pub(crate) const EVENTS_MAX: usize = 64;

/// Something that happened to the connection of a [`Client`](crate::Client).
///
/// Nothing has to be done about any of these: calls, producers and readers ride them out for as long as the client's
/// timeout allows, and say so themselves when they can't.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// The broker has welcomed this client.
    #[non_exhaustive]
    Connected {
        /// Where it is.
        address: String,
        /// Whether this client was connected before. The log is the same then.
        resumed: bool,
        /// How often that log was opened; higher than before if the broker was restarted meanwhile.
        start_count: u64,
    },
    /// The connection is gone. Another one is made when something needs it, which is at once if records are under way or
    /// a reader waits.
    #[non_exhaustive]
    Lost {
        /// Why, as far as it is known.
        error: Error,
    },
    /// A try to connect failed; the next one follows.
    #[non_exhaustive]
    Reconnecting {
        /// How many tries in a row have failed.
        attempt: u32,
        /// How long until the next one.
        delay: Duration,
        /// Why the last one failed.
        error: Error,
    },
    /// Trying was given up: for the timeout it helped nothing, or it can't help. Calls that waited have ended with this
    /// error; the next call tries anew.
    #[non_exhaustive]
    GaveUp {
        /// Why.
        error: Error,
    },
    /// The listener was too slow: so many events were dropped here, the oldest ones.
    #[non_exhaustive]
    Missed {
        /// How many.
        count: u64,
    },
}

/// The events of a client from [`Client::events`](crate::Client::events) on.
///
/// Up to 64 wait to be taken. A listener that falls behind further loses the oldest, is told how many, and holds nobody
/// up.
pub struct ConnectionEvents {
    receiver: broadcast::Receiver<ConnectionEvent>,
}

impl ConnectionEvents {
    pub(crate) fn new(receiver: broadcast::Receiver<ConnectionEvent>) -> Self {
        Self { receiver }
    }

    /// The next event; `None` when the client was closed, or the last of its clones, producers and readers was dropped.
    ///
    /// Cancel safe: an event is given once it is ready, and not before.
    pub async fn next(&mut self) -> Option<ConnectionEvent> {
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(ConnectionEvent::Missed { count }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl fmt::Debug for ConnectionEvents {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ConnectionEvents").field("waiting", &self.receiver.len()).finish()
    }
}
