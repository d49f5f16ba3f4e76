//! The lives of a test's broker, one after the other on the same disk: on a thread of its own behind QUIC, or as part of the
//! caller's own task behind the transport within the process.

use std::rc::Rc;
use std::sync::Arc;

use tidelog_storage::{Entropy, Sabotages};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::LocalSet;

use super::clock::TestClock;
use super::disk::Disk;
use super::ordeal::{Death, Ending, Ordeal};
use super::pace::OrdealPace;
use super::port::Port;
use super::wire::Wire;
use crate::assembly::Parts;
use crate::broker::StartError;
use crate::config::{BrokerConfig, CheckedConfig};
use crate::counters::Counters;
use crate::in_process::{Cut, Network};
use crate::listening::Listening;
use crate::local_broker::LocalBroker;
use crate::monitor_link::MonitorLink;
use crate::server::quic::{Listener, Weather};
use crate::server::tls::Identity;
use crate::workers::Shell;

/// Turns of the runtime that what is under way gets to leave in, when the broker dies behind an answer.
const LAST_TURNS: usize = 32;

/// What the test asks of the thread.
#[derive(Debug)]
pub(super) enum Command {
    /// The broker dies now and stays dead.
    Die(Death, oneshot::Sender<()>),
    /// A new life begins, if none is.
    Live,
    /// The broker stops in order, and the thread ends.
    Stop,
}

/// Where the broker is.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    Starting,
    Up {
        life: u64,
        pin: String,
    },
    Dead,
    /// It could not start again, or has stopped.
    Over(Option<Arc<StartError>>),
}

/// All that one life leaves to the next, whatever clients come by.
#[derive(Debug)]
pub(super) struct Lives {
    pub(super) config: BrokerConfig,
    pub(super) disk: Disk,
    pub(super) ordeal: Arc<Ordeal>,
    pub(super) wire: Arc<Wire>,
    pub(super) clock: Arc<TestClock>,
    pub(super) counters: Arc<Counters>,
    pub(super) commands: UnboundedReceiver<Command>,
    pub(super) phase: watch::Sender<Phase>,
    /// Salts follow from it, where a run is to be replayed to the byte.
    pub(super) seed: Option<u64>,
    /// The present life, from 1.
    pub(super) life: u64,
}

/// How a life has ended.
enum End {
    Stopped,
    Died(Death, Option<oneshot::Sender<()>>),
}

impl Lives {
    /// Lives behind QUIC until told to stop. Blocks its thread; each life has a runtime of its own, which goes with it,
    /// so that nothing is sent any more by what QUIC leaves behind.
    pub(super) fn run_behind_quic(mut self, mut door: QuicDoor) {
        loop {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return self.over(Some(StartError::Thread(error))),
            };
            let ended = self.live_behind_quic(&mut door, &runtime);
            if !runtime.block_on(self.goes_on(ended)) {
                return;
            }
        }
    }

    /// Lives within the process until told to stop.
    pub(super) async fn run_in_process(mut self, network: Network) {
        loop {
            let ended = self.live_in_process(&network).await;
            if !self.goes_on(ended).await {
                return;
            }
        }
    }

    fn live_behind_quic(&mut self, door: &mut QuicDoor, runtime: &Runtime) -> Result<End, StartError> {
        let local = LocalSet::new();
        let parts = self.parts()?;
        let shell = Shell::Tasks(self.pace());
        let weather = Arc::clone(&self.ordeal) as Arc<_>;
        let mut listening = local
            .block_on(runtime, async {
                Listening::open(&parts, &self.disk.medium(), &shell, || door.open(weather, &parts.config))
            })?
            .with_between(self.wire.between());
        self.phase.send_replace(Phase::Up { life: self.life, pin: door.pin() });
        let end = local.block_on(runtime, self.until_the_end(&parts.stop, listening.run(&parts)));
        let connections = self.wire.connections.take();
        // Sessions go with the set that they run in; what they shared is then this thread's alone.
        {
            let _entered = runtime.enter();
            drop(local);
        }
        if let End::Died(..) = end {
            // Nothing of what was under way leaves: a connection that is closed sends only that it is. Whoever sends to a
            // dead broker is told by its machine; whoever only waits would learn of it by its next keep-alive, seconds later
            // for each death in a test.
            self.ordeal.let_cut(true);
            connections.cut();
            runtime.block_on(last_turns());
            self.ordeal.let_cut(false);
        }
        drop(connections);
        let _entered = runtime.enter();
        match end {
            End::Stopped => listening.stop(),
            // No goodbye: nothing is written or synced any more.
            End::Died(..) => drop(listening),
        }
        Ok(end)
    }

    async fn live_in_process(&mut self, network: &Network) -> Result<End, StartError> {
        let mut broker =
            LocalBroker::of_parts(self.parts()?, &self.disk.medium(), self.pace())?.with_between(self.wire.between());
        let mut listener = network.listen();
        self.phase.send_replace(Phase::Up { life: self.life, pin: String::new() });
        let stop = Arc::clone(broker.stop());
        let end = self.until_the_end(&stop, broker.run(&mut listener)).await;
        match end {
            End::Stopped => broker.close(),
            End::Died(..) => {
                network.broker_dies(|_| Cut::CLEAN);
                drop(broker);
            }
        }
        Ok(end)
    }

    /// Behind the end of a life: whether another one is to begin, once it is time for it.
    async fn goes_on(&mut self, ended: Result<End, StartError>) -> bool {
        let by_command = match ended {
            Ok(End::Stopped) => {
                self.over(None);
                return false;
            }
            Err(error) => {
                self.over(Some(error));
                return false;
            }
            Ok(End::Died(death, told)) => {
                self.disk.dies(death);
                told
            }
        };
        self.life += 1;
        // Whatever else ends a broker, whoever watches over it starts it again.
        let Some(told) = by_command else { return true };
        self.phase.send_replace(Phase::Dead);
        // Whoever asked may be gone.
        let _ = told.send(());
        loop {
            match self.commands.recv().await {
                Some(Command::Live) => return true,
                Some(Command::Die(death, told)) => {
                    // The dead do not die, but their machine may still lose its power.
                    self.disk.dies(death);
                    let _ = told.send(());
                }
                Some(Command::Stop) | None => {
                    self.over(None);
                    return false;
                }
            }
        }
    }

    fn over(&self, error: Option<StartError>) {
        self.phase.send_replace(Phase::Over(error.map(Arc::new)));
    }

    fn pace(&self) -> Rc<OrdealPace> {
        let (ordeal, clock) = (Arc::clone(&self.ordeal), Arc::clone(&self.clock));
        Rc::new(OrdealPace { ordeal, disk: self.disk.clone(), clock })
    }

    /// What a life is made of. With it the one before is forgotten.
    fn parts(&self) -> Result<Parts, StartError> {
        self.ordeal.begin_life();
        Ok(Parts {
            config: CheckedConfig::try_from(self.config.clone())?,
            clock: Arc::clone(&self.clock) as Arc<_>,
            entropy: self.seed.map_or(Entropy::System, |seed| Entropy::Seeded(seed ^ self.life << 32)),
            sabotages: Sabotages::from_environment(),
            counters: Arc::clone(&self.counters),
            stop: Arc::new(Notify::new()),
            link: MonitorLink::default(),
        })
    }

    /// Serves until the broker dies or has stopped.
    async fn until_the_end(&mut self, stop: &Notify, serving: impl Future<Output = ()>) -> End {
        let mut serving = std::pin::pin!(serving);
        loop {
            tokio::select! {
                biased;
                Ending { death, is_sudden } = self.ordeal.ended() => {
                    if !is_sudden {
                        tokio::select! {
                            biased;
                            () = last_turns() => {}
                            () = &mut serving => {}
                        }
                        self.ordeal.fall_silent();
                    }
                    return End::Died(death, None);
                }
                command = self.commands.recv() => match command {
                    Some(Command::Die(death, told)) => {
                        self.ordeal.die(Ending { death, is_sudden: true });
                        return End::Died(death, Some(told));
                    }
                    Some(Command::Live) => {}
                    Some(Command::Stop) | None => {
                        stop.notify_one();
                        serving.as_mut().await;
                        return End::Stopped;
                    }
                },
                () = &mut serving => return End::Stopped,
            }
        }
    }
}

/// Lets what is under way leave.
async fn last_turns() {
    for _ in 0..LAST_TURNS {
        tokio::task::yield_now().await;
    }
}

/// Where QUIC's clients come in: the same port and key in every life.
#[derive(Debug)]
pub(super) struct QuicDoor {
    port: Port,
    identity: Option<Identity>,
}

impl QuicDoor {
    pub(super) const fn new(port: Port) -> Self {
        Self { port, identity: None }
    }

    fn open(&mut self, weather: Arc<dyn Weather>, config: &CheckedConfig) -> Result<Listener, StartError> {
        let identity = match &mut self.identity {
            Some(identity) => identity,
            none => none.insert(Identity::load_or_make(config.folder())?),
        };
        let tls = identity.server_config()?;
        Ok(Listener::start_in(weather, self.port.socket()?, tls, identity.reset_key(), config)?)
    }

    fn pin(&self) -> String {
        self.identity.as_ref().map(|identity| identity.pin().to_owned()).unwrap_or_default()
    }
}
