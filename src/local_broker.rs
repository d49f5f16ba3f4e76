//! A whole broker on the caller's thread, without a thread of its own: for simulations under a manual clock.
//!
//! It is the broker that [`Broker`](crate::Broker) runs, down to each line that decides: recovery, sequencer, driver and
//! sessions. Only who waits for the disk is another, a task instead of a thread, and connections come from a
//! [`Network`](crate::in_process::Network). With a simulated medium, a seeded [`Entropy`] and tokio's paused clock
//! everything that it does follows from what it is given, so a run can be replayed.

use std::rc::Rc;
use std::sync::Arc;

use tidelog_protocol::{CloseCode, Connection};
use tidelog_storage::medium::Medium;
use tidelog_storage::{Entropy, RecoveryReport, Sabotages};
use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::assembly::{Assembly, Parts, recover};
use crate::broker::{StartError, open_medium};
use crate::clock::Clock;
use crate::config::{BrokerConfig, CheckedConfig};
use crate::counters::Counters;
use crate::in_process::Listener;
pub use crate::inline::{DiskWork, OneTurn, Pace};
use crate::listening::Between;
use crate::monitor_link::MonitorLink;
use crate::server::peers::Peers;
use crate::server::session;
use crate::workers::Shell;

/// What a [`LocalBroker`] is made with.
#[derive(Debug)]
pub struct LocalBrokerConfig {
    /// As for any broker; addresses and the limits of QUIC connections are not used.
    pub broker: BrokerConfig,
    /// Its time. Timeouts within the broker run by tokio's clock.
    pub clock: Arc<dyn Clock>,
    /// Where salts and identities come from.
    pub entropy: Entropy,
    /// How long the disk seems to work.
    pub pace: Rc<dyn Pace>,
    /// Deliberate defects; nothing without the feature `sabotage`.
    pub sabotages: Sabotages,
}

/// A broker on the caller's current-thread runtime.
///
/// Dropping it ends it as SIGKILL does: nothing more is written, synced or said. What that means for its connections is
/// up to their [`Network`](crate::in_process::Network), which is to be told first
/// ([`broker_dies`](crate::in_process::Network::broker_dies)); otherwise they are closed.
#[derive(Debug)]
pub struct LocalBroker {
    /// First, so that all tasks are gone before what they share.
    local: LocalSet,
    assembly: Assembly,
    parts: Parts,
    report: RecoveryReport,
    between: Option<Between>,
}

impl LocalBroker {
    /// Recovers the log and puts the broker together; it does nothing before [`Self::run`]. Within a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub fn open(config: LocalBrokerConfig) -> Result<Self, StartError> {
        let parts = Parts {
            config: CheckedConfig::try_from(config.broker)?,
            clock: config.clock,
            entropy: config.entropy,
            sabotages: config.sabotages,
            counters: Arc::new(Counters::new()),
            stop: Arc::new(Notify::new()),
            link: MonitorLink::default(),
        };
        let medium = open_medium(&parts.config)?;
        Self::of_parts(parts, &medium, config.pace)
    }

    pub(crate) fn of_parts(parts: Parts, medium: &Arc<dyn Medium>, pace: Rc<dyn Pace>) -> Result<Self, StartError> {
        let recovered = recover(&parts, medium)?;
        let report = recovered.report().clone();
        let local = LocalSet::new();
        let assembly = {
            let _entered = local.enter();
            Assembly::start(&parts, recovered, Peers::new(&parts.config, &parts.counters), &Shell::Tasks(pace))?
        };
        Ok(Self { local, assembly, parts, report, between: None })
    }

    /// Puts something between each connection and its session.
    #[cfg(feature = "testkit")]
    pub(crate) fn with_between(self, between: Between) -> Self {
        Self { between: Some(between), ..self }
    }

    /// What the start found in the log.
    #[must_use]
    pub const fn recovery_report(&self) -> &RecoveryReport {
        &self.report
    }

    /// The broker's counters.
    #[must_use]
    pub const fn counters(&self) -> &Arc<Counters> {
        &self.parts.counters
    }

    /// Told when [`Self::run`] is to come to an orderly end.
    #[must_use]
    pub const fn stop(&self) -> &Arc<Notify> {
        &self.parts.stop
    }

    /// Serves whoever comes over `listener` until it is told to stop: what was accepted is then durable and answered, and
    /// the connections are closed. To be called once; dropping the future and then the broker is its sudden end.
    pub async fn run(&mut self, listener: &mut Listener) {
        let Self { local, assembly, parts, between, .. } = self;
        let engine = assembly.engine();
        let mut served: Vec<std::sync::Weak<dyn Connection>> = Vec::new();
        let accepting = async {
            while let Some(connection) = listener.accept().await {
                if served.len() == served.capacity() {
                    served.retain(|connection| connection.strong_count() > 0);
                }
                served.push(Arc::downgrade(&connection));
                let connection = match between {
                    Some(between) => between.wrap(connection),
                    None => connection,
                };
                tokio::task::spawn_local(session::serve(Rc::clone(&engine), connection, || {}));
            }
            // Somebody else listens now: whoever is connected is still served.
            std::future::pending::<()>().await;
        };
        local.run_until(assembly.run(parts, accepting)).await;
        for connection in served.iter().filter_map(std::sync::Weak::upgrade) {
            connection.close(CloseCode::Stopping, "the broker is stopping");
        }
    }

    /// Ends a broker whose [`Self::run`] has come to its end: syncs what is left and gives the folder free.
    pub fn close(self) {
        let Self { local, assembly, .. } = self;
        drop(local);
        assembly.stop();
    }
}
