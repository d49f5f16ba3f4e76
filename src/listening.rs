//! A broker that clients reach over QUIC: put together behind a listener, run, stopped.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tidelog_protocol::{CloseCode, Connection};
use tidelog_storage::RecoveryReport;
use tidelog_storage::medium::Medium;

use crate::assembly::{Assembly, Parts, recover};
use crate::broker::StartError;
use crate::server::peers::Peers;
use crate::server::quic::Listener;
use crate::server::session;
use crate::workers::Shell;

/// What stands between a connection and its session.
#[derive(Clone)]
pub(crate) struct Between(Rc<Wrap>);

type Wrap = dyn Fn(Arc<dyn Connection>) -> Arc<dyn Connection>;

impl Between {
    #[cfg(feature = "testkit")]
    pub(crate) fn new(wrap: impl Fn(Arc<dyn Connection>) -> Arc<dyn Connection> + 'static) -> Self {
        Self(Rc::new(wrap))
    }

    /// `connection` with it in front.
    pub(crate) fn wrap(&self, connection: Arc<dyn Connection>) -> Arc<dyn Connection> {
        (self.0)(connection)
    }
}

impl std::fmt::Debug for Between {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Between").finish_non_exhaustive()
    }
}

/// A broker that listens.
pub(crate) struct Listening {
    assembly: Assembly,
    listener: Listener,
    report: RecoveryReport,
    between: Option<Between>,
}

impl Listening {
    /// Recovers the log, then listens, then puts the broker together. Within the runtime, and with [`Shell::Tasks`] the
    /// `LocalSet`, that is to run it. `listen` is called behind the lock that the log holds: two brokers making an
    /// identity in one folder would replace each other's.
    pub(crate) fn open(
        parts: &Parts,
        medium: &Arc<dyn Medium>,
        shell: &Shell,
        listen: impl FnOnce() -> Result<Listener, StartError>,
    ) -> Result<Self, StartError> {
        let recovered = recover(parts, medium)?;
        let peers = Peers::new(&parts.config, &parts.counters);
        let listener = listen()?.with_peers(Arc::clone(&peers));
        let report = recovered.report().clone();
        let assembly = Assembly::start(parts, recovered, peers, shell)?;
        Ok(Self { assembly, listener, report, between: None })
    }

    /// Puts something between each connection and its session.
    #[cfg(feature = "testkit")]
    pub(crate) fn with_between(self, between: Between) -> Self {
        Self { between: Some(between), ..self }
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    pub(crate) const fn recovery_report(&self) -> &RecoveryReport {
        &self.report
    }

    /// Serves whoever comes until the broker is told to stop; the connections are closed then.
    pub(crate) async fn run(&mut self, parts: &Parts) {
        let engine = self.assembly.engine();
        let (listener, between) = (&self.listener, &self.between);
        let accepting = async {
            while let Some(incoming) = listener.accept().await {
                let (engine, between) = (Rc::clone(&engine), between.clone());
                tokio::task::spawn_local(async move {
                    match incoming.handshake().await {
                        Ok(connection) => {
                            let admitted = Arc::clone(&connection);
                            let connection: Arc<dyn Connection> = match between {
                                Some(between) => between.wrap(connection),
                                None => connection,
                            };
                            session::serve(engine, connection, move || admitted.admit()).await;
                        }
                        Err(error) => tracing::debug!("a handshake failed: {error}"),
                    }
                });
            }
        };
        self.assembly.run(parts, accepting).await;
        self.listener.close(CloseCode::Stopping, "the broker is stopping").await;
    }

    /// Syncs what is left and ends what waits for the disk. The `LocalSet` that it ran in must be gone.
    pub(crate) fn stop(self) {
        let Self { assembly, listener, .. } = self;
        drop(listener);
        assembly.stop();
    }
}
