//! The embedding face: starts a broker on a thread and runtime of its own, from any thread, and stops it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use tidelog_protocol::{CloseCode, MediumKind, PROTOCOL_VERSION, Welcome};
use tidelog_storage::medium::{DiskMedium, Medium, MemoryMedium};
use tidelog_storage::{LogOptions, OpenError, OpenedLog, RecoveryReport, Replayed, Sabotage, Sabotages};
use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::background::{HousekeepingThread, ReadThread};
use crate::clock::{Clock, SystemClock};
use crate::config::{BrokerConfig, CheckedConfig, ConfigError, MediumChoice};
use crate::counters::Counters;
use crate::engine::{Driver, Engine, EngineStart};
use crate::log_thread::LogThread;
use crate::monitor_link::MonitorLink;
use crate::report;
use crate::sequencer::{Sequencer, SequencerStart};
use crate::server::quic::{ListenError, Listener, open_socket};
use crate::server::session;
use crate::server::tls::{Identity, IdentityError};
use crate::state::{self, State};

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
        let parts = Parts { config, clock, counters: Arc::clone(&counters), stop: Arc::clone(&stop), link };
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

struct Parts {
    config: CheckedConfig,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
    stop: Arc<Notify>,
    link: MonitorLink,
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
        Ok((mut running, is_ready)) => {
            parts.link.ready();
            let _ = ready.send(Ok(is_ready));
            local.block_on(&runtime, running.run(&parts));
            // Sessions go with the set that they run in; what they shared is then this thread's alone.
            drop(local);
            running.stop();
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }
}

/// A broker's parts while it runs.
struct Running {
    engine: Rc<Engine>,
    driver: Driver,
    listener: Listener,
    /// Held until everything else is gone.
    lock: Box<dyn std::any::Any + Send + Sync>,
}

fn open(parts: &Parts) -> Result<(Running, Ready), StartError> {
    let config = &parts.config;
    let sabotages = Sabotages::from_environment();
    // Before the folder is touched: a broker that can't be reached has no business in it.
    let socket = open_socket(config.listen)?;
    let medium = open_medium(config)?;
    let options = LogOptions {
        segment_first_bytes: config.segment_first_bytes,
        segment_bytes: config.segment_bytes,
        payload_bytes_max: config.limits.batch_bytes_max() as u32,
        sabotages,
        ..LogOptions::default()
    };
    let (log, state) = recover(&medium, &options, parts.clock.wall_ms(), sabotages)?;
    tell(&log.report, &medium);
    // Behind the lock that the log holds: two brokers making an identity in one folder would replace each other's.
    let identity = Identity::load_or_make(config.folder())?;
    let listener = Listener::start(socket, identity.server_config()?, identity.reset_key(), config)?;

    let (event_sender, events) = tokio::sync::mpsc::unbounded_channel();
    let log_thread =
        LogThread::start(log.writer, Arc::clone(&parts.clock), event_sender.clone()).map_err(StartError::Thread)?;
    let housekeeping =
        HousekeepingThread::start(log.housekeeping, Arc::clone(&medium), Arc::clone(&parts.counters), event_sender)
            .map_err(StartError::Thread)?;
    log.jobs.into_iter().for_each(|job| housekeeping.run(job));
    let reads = ReadThread::start(log.reader).map_err(StartError::Thread)?;

    parts.counters.durable_position.set(log.durable);
    parts.counters.log_bytes.set(log.durable);
    let welcome = Welcome {
        version: PROTOCOL_VERSION,
        broker: concat!("tidelog/", env!("CARGO_PKG_VERSION")).to_owned(),
        log_id: log.report.log_id.to_string(),
        start_count: log.report.start_count,
        medium: if medium.is_persistent() { MediumKind::Disk } else { MediumKind::Memory },
        limits: config.limits.clone(),
        time_ms: 0,
    };
    parts.link.set_status(&welcome, &log.report);
    let sequencer = Sequencer::new(SequencerStart {
        state,
        log: log.appender,
        durable_position: log.durable,
        time: log.time,
        limits: config.limits.clone(),
        counters: Arc::clone(&parts.counters),
        sabotages,
    });
    let engine = Rc::new(Engine::new(EngineStart {
        sequencer,
        reads,
        counters: Arc::clone(&parts.counters),
        limits: config.limits.clone(),
        welcome,
        clock: Arc::clone(&parts.clock),
        time: log.time,
        write_buffer_bytes: config.write_buffer_bytes,
        monitor: parts.link.clone(),
    }));
    let ready = Ready { local_addr: listener.local_addr(), pin: identity.pin().to_owned(), report: log.report };
    let driver = Driver::new(log_thread, housekeeping, events, config.sync_timeout, sabotages);
    Ok((Running { engine, driver, listener, lock: log.lock }, ready))
}

fn open_medium(config: &CheckedConfig) -> Result<Arc<dyn Medium>, StartError> {
    Ok(match &config.medium {
        MediumChoice::Disk(folder) => Arc::new(
            DiskMedium::open(folder)
                .map_err(|source| StartError::Folder { folder: folder.display().to_string(), source })?,
        ),
        MediumChoice::Memory => Arc::new(MemoryMedium::new()),
        MediumChoice::Custom(medium) => Arc::clone(medium),
    })
}

/// Opens the log and folds it.
fn recover(
    medium: &Arc<dyn Medium>,
    options: &LogOptions,
    wall_ms: i64,
    sabotages: Sabotages,
) -> Result<(OpenedLog, State), StartError> {
    let mut state = State::new(sabotages);
    let log = tidelog_storage::open(medium, options, wall_ms, &mut |replayed| fold(&mut state, replayed))?;
    if sabotages.has(Sabotage::ForgetProducers) {
        state.producers.forget_sequences();
    }
    Ok((log, state))
}

fn fold(state: &mut State, replayed: Replayed<'_>) {
    match replayed {
        Replayed::Hole(hole) => state.apply_hole(hole),
        Replayed::Entry { head, .. } => match state::changes(head) {
            Ok(changes) => {
                for change in changes {
                    if let Err(error) = state.apply(&change) {
                        tracing::error!("damage in the log: {error}");
                    }
                }
            }
            Err(error) => tracing::error!("damage in the log: {error}"),
        },
    }
}

/// The recovery report, in the log.
fn tell(report: &RecoveryReport, medium: &Arc<dyn Medium>) {
    tracing::info!(
        log_id = %report.log_id,
        start = report.start_count,
        entries = report.entries,
        segments = report.segments,
        end = report.end,
        "opened {}",
        medium.describe()
    );
    for line in report::report_lines(report) {
        tracing::warn!("{line}");
    }
}

impl Running {
    async fn run(&mut self, parts: &Parts) {
        let engine = Rc::clone(&self.engine);
        let accepting = async {
            while let Some(incoming) = self.listener.accept().await {
                let engine = Rc::clone(&engine);
                tokio::task::spawn_local(async move {
                    match incoming.handshake().await {
                        Ok(connection) => {
                            let admitted = Arc::clone(&connection);
                            session::serve(engine, connection, move || admitted.admit()).await;
                        }
                        Err(error) => tracing::debug!("a handshake failed: {error}"),
                    }
                });
            }
        };
        let stop = Notify::new();
        let closing = async {
            parts.stop.notified().await;
            parts.link.stopping();
            // No new batch from here on; those that were taken become durable and are answered.
            engine.stop_taking();
            stop.notify_one();
        };
        let driving = self.driver.run(&engine, &stop);
        tokio::select! {
            () = accepting => {}
            ((), ()) = async { tokio::join!(driving, closing) } => {}
        }
        // One turn for the answers of the last group to be written out.
        for _ in 0..ANSWER_TURNS {
            tokio::task::yield_now().await;
        }
        self.listener.close(CloseCode::Stopping, "the broker is stopping").await;
    }

    fn stop(self) {
        let Self { engine, driver, listener, lock } = self;
        drop(listener);
        let is_poisoned = engine.sequencer.borrow().is_poisoned();
        driver.stop(!is_poisoned);
        match Rc::try_unwrap(engine) {
            Ok(engine) => engine.stop(),
            Err(_) => tracing::error!("a session has outlived the broker"),
        }
        drop(lock);
    }
}

/// Turns of the runtime that answers get to leave before connections are closed.
const ANSWER_TURNS: usize = 64;
