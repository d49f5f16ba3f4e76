//! How a client reaches its broker.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidelog_protocol::Connector;

use crate::address::Address;
use crate::entropy::Entropy;
use crate::error::Error;
use crate::quic::QuicConnector;
use crate::trust::{Trust, TrustEnvironment};

/// So long without progress a call goes on trying unless configured otherwise.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// How a [`Client`](crate::Client) reaches its broker.
#[derive(Clone)]
pub struct ClientConfig {
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) token: Option<String>,
    pub(crate) name: String,
    pub(crate) timeout: Duration,
    pub(crate) entropy: Entropy,
}

impl ClientConfig {
    /// Over connections that `connector` makes.
    pub fn new(connector: Arc<dyn Connector>) -> Self {
        Self {
            connector,
            token: None,
            name: concat!("tidelog-client/", env!("CARGO_PKG_VERSION")).into(),
            timeout: TIMEOUT_DEFAULT,
            entropy: Entropy::System,
        }
    }

    /// Over QUIC, with trust that is already known.
    ///
    /// # Errors
    ///
    /// [`Error::Tls`] if the file of authorities is no use.
    pub fn quic(address: &Address, trust: &Trust) -> Result<Self, Error> {
        Ok(Self::new(Arc::new(QuicConnector::new(address, trust)?)))
    }

    /// Over QUIC, with trust looked for as [`Trust::find`] does in this process' environment.
    ///
    /// # Errors
    ///
    /// [`Error::Trust`] if there is none, [`Error::Tls`] if the file of authorities is no use.
    pub fn find(address: &Address, authorities: Option<&Path>) -> Result<Self, Error> {
        Self::quic(address, &Trust::find(address, authorities, &TrustEnvironment::of_process())?)
    }

    /// The credential that is shown to the broker.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// `name/version` of the program, for the broker's logs.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// So long without progress, tries to reconnect included, ends a call with [`Error::TimedOut`].
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Takes the random numbers of this client (how long it waits before it tries again, the identities of producers'
    /// sessions) from a seed instead of the operating system: for tests and simulations that replay a run.
    ///
    /// Every client of one broker needs a seed of its own, in later runs against the same log, too: two sessions with
    /// one identity are one session to the broker, and neither fences the other. Clients made from clones of this
    /// configuration draw from the same sequence of numbers, so they differ.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.entropy = Entropy::seeded(seed);
        self
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the token.
        formatter
            .debug_struct("ClientConfig")
            .field("name", &self.name)
            .field("timeout", &self.timeout)
            .field("has_token", &self.token.is_some())
            .finish_non_exhaustive()
    }
}
