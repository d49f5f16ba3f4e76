//! The embedding face: starts a broker on a thread and runtime of its own, from any thread, and stops it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use tidelog_storage::medium::{DiskMedium, Medium, MemoryMedium};
use tidelog_storage::{Entropy, OpenError, RecoveryReport, Sabotages};
use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::assembly::Parts;
use crate::clock::{Clock, SystemClock};
use crate::config::{BrokerConfig, CheckedConfig, ConfigError, MediumChoice};
use crate::counters::Counters;
use crate::listening::Listening;
use crate::monitor_link::MonitorLink;
use crate::server::quic::{ListenError, Listener, open_socket};
use crate::server::tls::{Identity, IdentityError};
use crate::workers::Shell;

/// Why a broker did not start. Nothing is left running, and the folder is as it was or as a crash would leave it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration can't work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data folder can't be used.
    #[error(
        "the data folder {folder} can't be used: {source}; choose another one, or give this user the right to write there"
    )]
    Folder {
        /// The folder.
        folder: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The log can't be opened.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// The certificate can't be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The address can't be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The HTTP address can't be listened on.
    #[cfg(feature = "http")]
    #[error(transparent)]
    Monitor(#[from] crate::monitor::MonitorError),
    /// A thread or its runtime could not be made.
    #[error("could not start a thread of the broker: {0}")]
    Thread(#[source] std::io::Error),
}

/// A running broker. Dropping it stops it as [`Broker::shutdown`] does.
///
/// It has a thread and a runtime of its own, so it can be started from any runtime and from none, and several can live in
/// one process: nothing of it is global.
#[derive(Debug)]
pub struct Broker {
    thread: Option<JoinHandle<()>>,
    stop: Arc<Notify>,
    local_addr: SocketAddr,
    pin: String,
    report: RecoveryReport,
    counters: Arc<Counters>,
    #[cfg(feature = "http")]
    monitor: Option<crate::monitor::Monitor>,
}

/// What the network thread says when it is ready.
struct Ready {
    local_addr: SocketAddr,
    pin: String,
    report: RecoveryReport,
}

impl Broker {
    /// Starts a broker and returns when it is ready: the log recovered, the address listened on.
    ///
    /// Blocks meanwhile: a few milliseconds, and longer the more log there is to read.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: BrokerConfig) -> Result<Broker, StartError> {
        Self::start_with_clock(config, Arc::new(SystemClock::new()))
    }

    /// As [`Self::start`], with a clock of the caller's.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_with_clock(config: BrokerConfig, clock: Arc<dyn Clock>) -> Result<Broker, StartError> {
        let config = CheckedConfig::try_from(config)?;
        let counters = Arc::new(Counters::new());
        #[cfg(feature = "http")]
        let state = config.http.map(|_| Arc::new(crate::monitor::MonitorState::new(Arc::clone(&counters))));
        #[cfg(feature = "http")]
        let monitor = match (config.http, &state) {
            (Some(address), Some(state)) => Some(crate::monitor::Monitor::start(address, Arc::clone(state))?),
            _ => None,
        };
        let link = MonitorLink {
            #[cfg(feature = "http")]
            state,
        };
        let stop = Arc::new(Notify::new());
        let (ready, outcome) = sync_channel(1);
        let parts = Parts {
            config,
            clock,
            entropy: Entropy::System,
            sabotages: Sabotages::from_environment(),
            counters: Arc::clone(&counters),
            stop: Arc::clone(&stop),
            link,
        };
        let thread = std::thread::Builder::new()
            .name("tidelog-network".to_owned())
            .spawn(move || run(parts, &ready))
            .map_err(StartError::Thread)?;
        let ready = match outcome.recv() {
            Ok(Ok(ready)) => ready,
            Ok(Err(error)) => {
                join(thread);
                return Err(error);
            }
            Err(_) => {
                join(thread);
                return Err(StartError::Thread(std::io::Error::other("the network thread panicked")));
            }
        };
        Ok(Broker {
            thread: Some(thread),
            stop,
            local_addr: ready.local_addr,
            pin: ready.pin,
            report: ready.report,
            counters,
            #[cfg(feature = "http")]
            monitor,
        })
    }

    /// The address that clients connect to, with the port that was chosen for port 0.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The address of `/livez`, `/readyz` and `/metrics`, if they are served.
    #[must_use]
    pub fn http_addr(&self) -> Option<SocketAddr> {
        #[cfg(feature = "http")]
        {
            self.monitor.as_ref().map(crate::monitor::Monitor::local_addr)
        }
        #[cfg(not(feature = "http"))]
        None
    }

    /// The pin of the broker's key: 64 lower-case hex digits, for `?pin=` in an address.
    #[must_use]
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// `tidelog://HOST:PORT?pin=…`: all that a client needs.
    #[must_use]
    pub fn address(&self) -> String {
        format!("tidelog://{}?pin={}", self.local_addr, self.pin)
    }

    /// What the start found in the log.
    #[must_use]
    pub const fn recovery_report(&self) -> &RecoveryReport {
        &self.report
    }

    /// The broker's counters.
    #[must_use]
    pub const fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Stops: connections are closed with a clean code, what was accepted is written and synced, the threads are joined.
    /// Blocks until that is done. A thread that hangs in a sync past its time limit is left behind, and that is logged.
    pub fn shutdown(mut self) {
        self.stop_and_join();
    }

    fn stop_and_join(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            join(thread);
        }
        #[cfg(feature = "http")]
        if let Some(monitor) = self.monitor.take() {
            monitor.stop();
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("the broker's network thread panicked");
    }
}

/// The network thread.
fn run(parts: Parts, ready: &SyncSender<Result<Ready, StartError>>) {
    let started = parts.clock.monotonic();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(StartError::Thread(error)));
            return;
        }
    };
    let local = LocalSet::new();
    let opened = local.block_on(&runtime, async { open(&parts) });
    parts.counters.set_recovery(parts.clock.monotonic().saturating_sub(started));
    match opened {
        Ok((mut listening, is_ready)) => {
            parts.link.ready();
            let _ = ready.send(Ok(is_ready));
            local.block_on(&runtime, listening.run(&parts));
            // Sessions go with the set that they run in; what they shared is then this thread's alone.
            drop(local);
            listening.stop();
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }
}

fn open(parts: &Parts) -> Result<(Listening, Ready), StartError> {
    let config = &parts.config;
    // Before the folder is touched: a broker that can't be reached has no business in it.
    let socket = open_socket(config.listen)?;
    let medium = open_medium(config)?;
    let mut pin = String::new();
    let listening = Listening::open(parts, &medium, &Shell::Threads, || {
        let identity = Identity::load_or_make(config.folder())?;
        identity.pin().clone_into(&mut pin);
        Ok(Listener::start(socket, identity.server_config()?, identity.reset_key(), config)?)
    })?;
    let ready = Ready { local_addr: listening.local_addr(), pin, report: listening.recovery_report().clone() };
    Ok((listening, ready))
}

pub(crate) fn open_medium(config: &CheckedConfig) -> Result<Arc<dyn Medium>, StartError> {
    Ok(match &config.medium {
        MediumChoice::Disk(folder) => Arc::new(
            DiskMedium::open(folder)
                .map_err(|source| StartError::Folder { folder: folder.display().to_string(), source })?,
        ),
        MediumChoice::Memory => Arc::new(MemoryMedium::new()),
        MediumChoice::Custom(medium) => Arc::clone(medium),
    })
}
