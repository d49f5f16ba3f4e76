//! What all actors of a simulation share, and how each of them ends.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidelog::in_process::{Network, NetworkLimits};
use tidelog::testkit::TestClock;
use tidelog_client::{Client, ClientConfig, Error};
use tidelog_protocol::{ProducerName, StreamName};
use tidelog_storage::Sabotages;
use tidelog_storage::medium::{SimulatedMedium, SimulatedRng};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Checked;
use super::ledger::Ledger;
use super::trace::Trace;
use super::weather::Weather;

/// A program gives up after so long without progress.
const PATIENCE: Duration = Duration::from_secs(12);

/// See the module's documentation.
pub(crate) struct World {
    pub(crate) disk: SimulatedMedium,
    pub(crate) network: Network,
    pub(crate) weather: Arc<Weather>,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) ledger: RefCell<Ledger>,
    pub(crate) trace: Trace,
    pub(crate) sabotages: Sabotages,
    /// The broker's machine has stopped, or is to.
    pub(crate) death: Arc<Notify>,
    /// Since when nothing bad happens any more: programs finish their work.
    calm_since: Cell<Option<Instant>>,
    /// All programs are done: consumers read to the end.
    pub(crate) is_done: Cell<bool>,
    /// Told when either has changed.
    pub(crate) changed: Notify,
    rng: RefCell<SimulatedRng>,
    violation: RefCell<Option<String>>,
    pub(crate) violated: Notify,
}

impl World {
    /// Within a runtime whose clock is paused.
    pub(crate) fn new(seed: u64, sabotages: Sabotages) -> Rc<Self> {
        let mut rng = SimulatedRng::new(seed);
        let (trace, death) = (Trace::new(), Arc::new(Notify::new()));
        let weather = Arc::new(Weather::new(rng.next_u64(), trace.clone(), Arc::clone(&death)));
        // Small, so that writers wait for readers now and then.
        let limits = NetworkLimits { window_bytes: 16 << 10, quic_streams_max: 64 };
        let network = Network::new(limits, Arc::clone(&weather) as _);
        Rc::new(Self {
            disk: SimulatedMedium::new(rng.next_u64()),
            network,
            weather,
            clock: Arc::new(TestClock::of_tokio(1_700_000_000_000)),
            ledger: RefCell::default(),
            trace,
            sabotages,
            death,
            calm_since: Cell::new(None),
            is_done: Cell::new(false),
            changed: Notify::new(),
            rng: RefCell::new(rng),
            violation: RefCell::new(None),
            violated: Notify::new(),
        })
    }

    /// Luck of an actor's own.
    pub(crate) fn luck(&self) -> SimulatedRng {
        SimulatedRng::new(self.rng.borrow_mut().next_u64())
    }

    /// A client of a new process; `None` if the broker was not reached in time.
    pub(crate) async fn client(&self, rng: &mut SimulatedRng) -> Checked<Option<Client>> {
        let config = ClientConfig::new(self.network.connector()).with_timeout(PATIENCE).with_seed(rng.next_u64());
        self.patiently(Client::connect(config).await)
    }

    /// What came of a call, or `None` if it took too long: whoever asked gives up then, as people do.
    pub(crate) fn patiently<T>(&self, outcome: Result<T, Error>) -> Checked<Option<T>> {
        match outcome {
            Ok(done) => Ok(Some(done)),
            Err(error @ (Error::TimedOut { .. } | Error::Lost { .. })) => {
                // What began before may still run out of patience.
                if self.calm_since.get().is_some_and(|since| since.elapsed() > PATIENCE + Duration::from_secs(1)) {
                    return Err(format!("nothing is in the way, and yet: {error}"));
                }
                self.trace.line(format_args!("somebody gives up: {error}"));
                Ok(None)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Runs an actor: what it finds wrong ends the simulation.
    pub(crate) async fn watch(&self, who: &str, acts: impl Future<Output = Checked>) {
        if let Err(text) = acts.await {
            self.violation.borrow_mut().get_or_insert_with(|| format!("{who}: {text}"));
            self.violated.notify_one();
        }
    }

    /// What somebody has found wrong.
    pub(crate) fn verdict(&self) -> Checked {
        match &*self.violation.borrow() {
            Some(text) => Err(text.clone()),
            None => Ok(()),
        }
    }

    /// Nothing bad happens any more.
    pub(crate) fn is_calm(&self) -> bool {
        self.calm_since.get().is_some()
    }

    pub(crate) fn clear_up(&self) {
        self.weather.clear_up();
        self.calm_since.set(Some(Instant::now()));
        self.changed.notify_waiters();
    }
}

/// The name of the stream with this index.
pub(crate) fn stream_name(index: usize) -> StreamName {
    StreamName::new(format!("stream-{index}")).unwrap()
}

pub(crate) fn producer_name(name: &str) -> ProducerName {
    ProducerName::new(name).unwrap()
}
