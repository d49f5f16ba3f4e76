//! The thread that a test's broker lives on: one life after the other on the same disk and port.

use std::rc::Rc;
use std::sync::Arc;

use tidelog_storage::{Entropy, Sabotages};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::LocalSet;

use super::clock::TestClock;
use super::disk::Disk;
use super::fate::{Death, Ending, Fate};
use super::pace::FatefulPace;
use super::port::Port;
use super::wire::Wire;
use crate::assembly::Parts;
use crate::broker::StartError;
use crate::config::{BrokerConfig, CheckedConfig};
use crate::counters::Counters;
use crate::listening::Listening;
use crate::monitor_link::MonitorLink;
use crate::server::quic::Listener;
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

/// All that one life leaves to the next.
#[derive(Debug)]
pub(super) struct Lives {
    pub(super) config: BrokerConfig,
    pub(super) disk: Disk,
    pub(super) port: Port,
    pub(super) fate: Arc<Fate>,
    pub(super) wire: Arc<Wire>,
    pub(super) clock: Arc<TestClock>,
    pub(super) counters: Arc<Counters>,
    pub(super) commands: UnboundedReceiver<Command>,
    pub(super) phase: watch::Sender<Phase>,
    /// Of a broker without a folder.
    pub(super) identity: Option<Identity>,
}

/// How a life has ended.
enum End {
    Stopped,
    Died(Death, Option<oneshot::Sender<()>>),
}

impl Lives {
    /// Lives until told to stop.
    pub(super) fn run(mut self) {
        let mut life = 1;
        loop {
            let dead_by_command = match self.live(life) {
                Ok(End::Stopped) => return drop(self.phase.send_replace(Phase::Over(None))),
                Err(error) => return drop(self.phase.send_replace(Phase::Over(Some(Arc::new(error))))),
                Ok(End::Died(death, told)) => {
                    self.disk.dies(death);
                    told
                }
            };
            life += 1;
            // Whatever else ends a broker, whoever watches over it starts it again.
            let Some(told) = dead_by_command else { continue };
            self.phase.send_replace(Phase::Dead);
            // Whoever asked may be gone.
            let _ = told.send(());
            if !self.rise() {
                return drop(self.phase.send_replace(Phase::Over(None)));
            }
        }
    }

    /// Waits for the command that begins a new life; `false` if none is to come.
    fn rise(&mut self) -> bool {
        loop {
            match self.commands.blocking_recv() {
                Some(Command::Live) => return true,
                Some(Command::Die(death, told)) => {
                    // The dead do not die, but their machine may still lose its power.
                    self.disk.dies(death);
                    let _ = told.send(());
                }
                Some(Command::Stop) | None => return false,
            }
        }
    }

    fn live(&mut self, life: u64) -> Result<End, StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
        let local = LocalSet::new();
        self.fate.begin_life();
        let stop = Arc::new(Notify::new());
        let parts = Parts {
            config: CheckedConfig::try_from(self.config.clone())?,
            clock: Arc::clone(&self.clock) as Arc<_>,
            entropy: Entropy::System,
            sabotages: Sabotages::from_environment(),
            counters: Arc::clone(&self.counters),
            stop: Arc::clone(&stop),
            link: MonitorLink::default(),
        };
        let mut listening = local.block_on(&runtime, async { self.open(&parts) })?;
        let pin = self.identity.as_ref().map(|identity| identity.pin().to_owned()).unwrap_or_default();
        self.phase.send_replace(Phase::Up { life, pin });
        let end = local.block_on(&runtime, self.until_the_end(&mut listening, &parts));
        let _entered = runtime.enter();
        // Sessions go with the set that they run in; what they shared is then this thread's alone.
        drop(local);
        match end {
            End::Stopped => listening.stop(),
            // No goodbye: nothing is written, synced or said any more.
            End::Died(..) => drop(listening),
        }
        Ok(end)
    }

    fn open(&mut self, parts: &Parts) -> Result<Listening, StartError> {
        let pace =
            FatefulPace { fate: Arc::clone(&self.fate), disk: self.disk.clone(), clock: Arc::clone(&self.clock) };
        let (port, identity) = (&mut self.port, &mut self.identity);
        let (folder, weather) = (self.config.folder(), Arc::clone(&self.fate) as Arc<_>);
        let listening = Listening::open(parts, &self.disk.medium(), &Shell::Tasks(Rc::new(pace)), || {
            let identity = match identity {
                Some(identity) => identity,
                none => none.insert(Identity::load_or_make(folder)?),
            };
            let socket = port.socket()?;
            let tls = identity.server_config()?;
            Ok(Listener::start_in(weather, socket, tls, identity.reset_key(), &parts.config)?)
        })?;
        Ok(listening.with_between(self.wire.between()))
    }

    async fn until_the_end(&mut self, listening: &mut Listening, parts: &Parts) -> End {
        let mut serving = std::pin::pin!(listening.run(parts));
        loop {
            tokio::select! {
                biased;
                Ending { death, is_sudden } = self.fate.ended() => {
                    if !is_sudden {
                        let mut last = std::pin::pin!(async {
                            for _ in 0..LAST_TURNS {
                                tokio::task::yield_now().await;
                            }
                        });
                        tokio::select! {
                            biased;
                            () = &mut last => {}
                            () = &mut serving => {}
                        }
                        self.fate.fall_silent();
                    }
                    return End::Died(death, None);
                }
                command = self.commands.recv() => match command {
                    Some(Command::Die(death, told)) => {
                        self.fate.die(Ending { death, is_sudden: true });
                        return End::Died(death, Some(told));
                    }
                    Some(Command::Live) => {}
                    Some(Command::Stop) | None => {
                        parts.stop.notify_one();
                        serving.as_mut().await;
                        return End::Stopped;
                    }
                },
                () = &mut serving => return End::Stopped,
            }
        }
    }
}
