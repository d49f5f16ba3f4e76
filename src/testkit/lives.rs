//! The lives of a test's broker, one after the other on the same disk: on a thread of its own behind QUIC, or as part of the
//! caller's own task behind the transport within the process.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

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
use crate::in_process::{Cut, Loss, Network};
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
    /// The broker stops in order, and a new life begins. One that is dead only begins a new one.
    Restart(oneshot::Sender<()>),
    /// The broker stops in order, and the thread ends.
    Stop,
}

/// Where the broker is.
#[derive(Debug, Clone)]
pub(super) struct Phase {
    /// Lives that have begun to serve.
    pub(super) lives: u64,
    pub(super) at: At,
}

/// See [`Phase`].
#[derive(Debug, Clone)]
pub(super) enum At {
    Starting,
    Up {
        pin: String,
    },
    Dead,
    /// It could not start again, or has stopped.
    Over(Option<Arc<Failure>>),
}

/// What kept it from starting.
#[derive(Debug)]
pub(super) struct Failure {
    text: String,
    /// Until somebody has taken it.
    error: Mutex<Option<StartError>>,
}

impl Failure {
    pub(super) fn new(error: StartError) -> Self {
        Self { text: with_causes(&error), error: Mutex::new(Some(error)) }
    }

    /// The error itself, for the first who asks.
    pub(super) fn take(&self) -> StartError {
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner).take();
        error.unwrap_or_else(|| StartError::Thread(std::io::Error::other(self.text.clone())))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// An error in one line, and behind it those causes that it does not tell of itself.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
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
    /// In order. Whoever is told wants a new life.
    Stopped(Option<oneshot::Sender<()>>),
    /// Whoever is told has asked for it, and for what is to follow.
    Died(Death, Option<oneshot::Sender<()>>),
    /// Before it had stopped, as it was told to.
    DiedAtLast(Death, Option<oneshot::Sender<()>>),
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
        self.is_up(door.pin());
        let end = local.block_on(runtime, self.until_the_end(&parts.stop, listening.run(&parts)));
        let connections = self.wire.connections.take();
        // Sessions go with the set that they run in; what they shared is then this thread's alone.
        {
            let _entered = runtime.enter();
            drop(local);
        }
        if let End::Died(..) | End::DiedAtLast(..) = end {
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
            End::Stopped(_) => listening.stop(),
            // No goodbye: nothing is written or synced any more.
            End::Died(..) | End::DiedAtLast(..) => drop(listening),
        }
        Ok(end)
    }

    async fn live_in_process(&mut self, network: &Network) -> Result<End, StartError> {
        let mut broker =
            LocalBroker::of_parts(self.parts()?, &self.disk.medium(), self.pace())?.with_between(self.wire.between());
        let mut listener = network.listen();
        self.is_up(String::new());
        let stop = Arc::clone(broker.stop());
        let end = self.until_the_end(&stop, broker.run(&mut listener)).await;
        match end {
            End::Stopped(_) => broker.close(),
            End::Died(..) | End::DiedAtLast(..) => {
                let client = Loss { noticed_after: self.ordeal.cut_off_left(), ..Loss::CLEAN };
                network.broker_dies(|_| Cut { client, broker: Loss::CLEAN });
                drop(broker);
            }
        }
        Ok(end)
    }

    /// Behind the end of a life: whether another one is to begin, once it is time for it.
    async fn goes_on(&mut self, ended: Result<End, StartError>) -> bool {
        let by_command = match ended {
            Err(error) => {
                self.over(Some(error));
                return false;
            }
            Ok(End::Stopped(told)) => return self.begins_again(told),
            Ok(End::DiedAtLast(death, told)) => {
                self.disk.dies(death);
                return self.begins_again(told);
            }
            Ok(End::Died(death, told)) => {
                self.disk.dies(death);
                told
            }
        };
        self.life += 1;
        // Whatever else ends a broker, whoever watches over it starts it again.
        let Some(told) = by_command else { return true };
        self.is_at(At::Dead);
        // Whoever asked may be gone.
        let _ = told.send(());
        loop {
            match self.commands.recv().await {
                Some(Command::Live) => return true,
                Some(Command::Restart(told)) => {
                    let _ = told.send(());
                    return true;
                }
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

    /// Behind a stop in order: if somebody is told of it, who wants that.
    fn begins_again(&mut self, told: Option<oneshot::Sender<()>>) -> bool {
        let Some(told) = told else {
            self.over(None);
            return false;
        };
        self.life += 1;
        self.is_at(At::Starting);
        // Whoever asked may be gone.
        let _ = told.send(());
        true
    }

    fn over(&self, error: Option<StartError>) {
        self.is_at(At::Over(error.map(|error| Arc::new(Failure::new(error)))));
    }

    fn is_up(&self, pin: String) {
        self.phase.send_replace(Phase { lives: self.life, at: At::Up { pin } });
    }

    fn is_at(&self, at: At) {
        self.phase.send_modify(|phase| phase.at = at);
    }

    fn pace(&self) -> Rc<OrdealPace> {
        let (ordeal, clock) = (Arc::clone(&self.ordeal), Arc::clone(&self.clock));
        Rc::new(OrdealPace { ordeal, disk: self.disk.clone(), clock, batches: Cell::new(0) })
    }

    /// What a life is made of. With it the one before is forgotten.
    fn parts(&self) -> Result<Parts, StartError> {
        self.ordeal.begin_life();
        self.counters.begin_life();
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
                    command @ (Some(Command::Stop | Command::Restart(_)) | None) => {
                        let told = match command {
                            Some(Command::Restart(told)) => Some(told),
                            _ => None,
                        };
                        // What is late must not keep it, and the test is over for what has not struck.
                        self.ordeal.calm();
                        stop.notify_one();
                        tokio::select! {
                            biased;
                            () = &mut serving => return End::Stopped(told),
                            Ending { death, .. } = self.ordeal.ended() => return End::DiedAtLast(death, told),
                        }
                    }
                },
                () = &mut serving => return End::Stopped(None),
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
