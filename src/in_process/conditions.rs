//! What befalls bytes on their way.

use std::fmt;
use std::time::Duration;

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that connected.
    Client,
    /// The one that listened.
    Broker,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Client, Self::Broker];

    /// The other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Broker,
            Self::Broker => Self::Client,
        }
    }
}

/// Bytes that are about to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// The connection, counted from 0 on each network.
    pub connection: u64,
    /// The QUIC stream within it: even for those that the client opened, odd for the broker's.
    pub quic_stream: u64,
    /// Where they go.
    pub toward: Side,
    /// How many; at least one.
    pub bytes: usize,
}

/// What becomes of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// They arrive. What is sent later on the same QUIC stream never arrives earlier.
    Arrives {
        /// So much later.
        after: Duration,
    },
    /// The connection breaks while they leave.
    Breaks {
        /// So many of them still leave; all if it is more.
        kept_bytes: usize,
        /// How it breaks.
        cut: Cut,
    },
}

/// How a connection breaks. From then on nothing leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// What becomes of the client's end.
    pub client: Loss,
    /// What becomes of the broker's end.
    pub broker: Loss,
}

impl Cut {
    /// Everything under way is lost, and both sides know at once.
    pub const CLEAN: Self = Self { client: Loss::CLEAN, broker: Loss::CLEAN };

    pub(super) const fn at(&self, side: Side) -> Loss {
        match side {
            Side::Client => self.client,
            Side::Broker => self.broker,
        }
    }
}

/// A broken connection as one side sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Whether what was under way to it still arrives, as far as it is not later than the notice.
    pub lands: bool,
    /// When it notices; until then it takes the connection for a good one.
    pub noticed_after: Duration,
}

impl Loss {
    /// Nothing lands, and it knows at once.
    pub const CLEAN: Self = Self { lands: false, noticed_after: Duration::ZERO };
}

/// What becomes of a client's try to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// It reaches whoever listens then.
    Reaches {
        /// So much later.
        after: Duration,
    },
    /// Nobody answers.
    Fails {
        /// The client gives up after this.
        after: Duration,
    },
}

/// Decides what befalls what is on its way.
pub trait Conditions: Send + Sync + fmt::Debug {
    /// A client tries to connect.
    fn connect(&self) -> Attempt {
        Attempt::Reaches { after: Duration::ZERO }
    }

    /// Bytes are about to leave. Must not use the network itself.
    fn send(&self, passage: &Passage) -> Fate {
        let _ = passage;
        Fate::Arrives { after: Duration::ZERO }
    }

    /// One side of a connection closes it: how long until the other side knows.
    fn close(&self, connection: u64) -> Duration {
        let _ = connection;
        Duration::ZERO
    }
}

/// Everything arrives at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fair;

impl Conditions for Fair {}
