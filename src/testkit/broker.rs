//! A broker of a test's own.

use std::future::{Future, IntoFuture};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;
use tidelog_client::{Client, ClientConfig};
use tidelog_storage::medium::{SimulatedMedium, SimulatedRng};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};

use super::clock::TestClock;
use super::disk::{Disk, FaultyFolder};
use super::faults::Faults;
use super::lives::{At, Command, Failure, Lives, Phase, QuicDoor, with_causes};
use super::ordeal::{Death, Ordeal};
use super::port::Port;
use super::records::StoredRecord;
use super::seeded::Seeded;
use super::stream_check::StreamCheck;
use super::test_counters::TestCounters;
use super::weather::OrdealNetwork;
use super::wire::{Connections, Wire};
use super::witness::Witness;
use crate::broker::StartError;
use crate::config::{BrokerConfig, CheckedConfig, CheckpointChoice, MediumChoice};
use crate::counters::Counters;
use crate::in_process::{Network, NetworkLimits};

/// Small, so that a broker is up at once and takes little memory.
const SEGMENT_FIRST_BYTES: u64 = 64 << 10;

/// Far more than a start takes: what was to kill it has not struck.
const RISEN_TIMEOUT: Duration = Duration::from_secs(30);

/// A broker of a test's own: up in milliseconds, reached by a URL, gone when it is dropped.
///
/// ```
/// use tidelog::testkit::TestBroker;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = TestBroker::start().await;
/// // All that the program under test needs: `tidelog://127.0.0.1:PORT?pin=…`.
/// let url = broker.address();
/// # assert!(url.starts_with("tidelog://127.0.0.1:"));
///
/// # use tidelog_client::{Client, ClientConfig};
/// # use tidelog_protocol::{ProducerName, Record, StreamName, StreamSettings};
/// # let client = Client::connect(ClientConfig::find(&url.parse()?, None)?).await?;
/// # let stream = client.create_stream(&StreamName::new("orders")?, StreamSettings::default(), true).await?;
/// # let producer = client.producer(ProducerName::new("shop")?).open().await?;
/// # let publisher = producer.stream(&stream).await?;
/// // The next answer is lost with its connection: whatever the program does now, its record must be there once.
/// broker.faults().lose_answers(1);
/// # publisher.publish(Record::new("two apples").with_key("order 1")).await?;
///
/// let orders = broker.stream("orders").await;
/// orders.expect(["two apples"]).await;
/// orders.expect_exactly_once("order 1").await;
/// orders.expect_no_more().await;
/// assert_eq!(broker.counters().duplicates_suppressed, 1);
/// # Ok(())
/// # }
/// ```
///
/// It is the broker that `tidelog serve` runs, with QUIC and TLS, on a thread of its own. Its log is on a simulated disk
/// in memory, or [in a folder](Start::on_disk). Its time is the machine's: in a test with a paused clock (`start_paused`)
/// use one [in process](Start::in_process), since QUIC's timers are over at once there. When the test panics, what has
/// befallen the broker is printed, with the seed, if its faults came from one.
#[derive(Debug)]
pub struct TestBroker {
    reach: Reach,
    faults: Faults,
    counters: Arc<Counters>,
    commands: UnboundedSender<Command>,
    phase: watch::Receiver<Phase>,
    thread: Option<JoinHandle<()>>,
    folder: Option<TempDir>,
    seed: Option<u64>,
}

/// How clients reach it.
#[derive(Debug)]
enum Reach {
    Nowhere,
    Quic {
        address: String,
    },
    InProcess {
        network: Network,
        /// Clients that were given a way so far.
        clients: AtomicU64,
    },
}

/// How a [`TestBroker`] is to be; awaiting it starts the broker.
#[derive(Debug, Clone)]
#[must_use = "it starts when it is awaited"]
pub struct Start {
    config: BrokerConfig,
    on_disk: bool,
    manual_clock_ms: Option<i64>,
    seed: Option<u64>,
}

impl Start {
    /// In a temporary folder on this machine's disk, which is removed when the test succeeds and kept, its path printed,
    /// when it panics.
    pub fn on_disk(mut self) -> Self {
        self.on_disk = true;
        self
    }

    /// With a clock that stands at `wall_ms` (milliseconds since 1970-01-01 UTC) until it is
    /// [advanced](TestClock::advance).
    pub fn manual_clock(mut self, wall_ms: i64) -> Self {
        self.manual_clock_ms = Some(wall_ms);
        self
    }

    /// Lets the outages that follow from `seed` befall it: at most six, lost and doubled requests, lost and late answers,
    /// deaths at any step, losses of power, torn writes, a network that is away, a clock that jumps. The same seed
    /// brings the same faults to the same occasions again.
    pub fn faults_from(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// With other settings. Where the log is kept is not among them, and there is no monitor.
    pub fn configure(mut self, change: impl FnOnce(&mut BrokerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Starts it, and says why not instead of panicking.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn try_start(self) -> Result<TestBroker, StartError> {
        let port = Port::open(self.config.listen)?;
        let local_addr = port.address();
        let clock = self.manual_clock_ms.map_or_else(TestClock::of_the_machine, TestClock::manual);
        let (mut broker, lives) = self.prepare(clock, false)?;
        let thread = std::thread::Builder::new()
            .name("tidelog-test".to_owned())
            .spawn(|| lives.run_behind_quic(QuicDoor::new(port)))
            .map_err(StartError::Thread)?;
        broker.thread = Some(thread);
        let pin = broker.up().await.map_err(|failure| failure.take())?;
        broker.reach = Reach::Quic { address: format!("tidelog://{local_addr}?pin={pin}") };
        Ok(broker)
    }

    /// Runs `body` with a broker that has neither thread nor socket: both are parts of the caller's own task, joined by a
    /// transport within the process. Time is tokio's. So on a current-thread runtime with a paused clock, as
    /// `#[tokio::test(start_paused = true)]` has it, waiting takes no time, and with [a seed](Self::faults_from) all that
    /// happens follows from it, to the byte.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidelog::testkit::TestBroker;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
    /// TestBroker::start()
    ///     .in_process(async |broker| {
    ///         let client = broker.client().await;
    ///         broker.faults().partition(Duration::from_secs(3));
    ///         // Takes three seconds of the test's time and none of anybody's.
    ///         assert!(client.list_streams().await.unwrap().is_empty());
    ///     })
    ///     .await;
    /// # });
    /// ```
    ///
    /// # Panics
    /// If it does not start.
    pub async fn in_process<T>(self, body: impl AsyncFnOnce(&TestBroker) -> T) -> T {
        // 2024-01-01: a date that nobody takes for a mistake.
        let clock = TestClock::of_tokio(self.manual_clock_ms.unwrap_or(1_704_067_200_000));
        let (mut broker, lives) = match self.prepare(clock, true) {
            Ok(prepared) => prepared,
            Err(error) => panic!("the test's broker does not start: {}", with_causes(&error)),
        };
        let conditions = Arc::new(OrdealNetwork(Arc::clone(&broker.faults.ordeal)));
        let network = Network::new(NetworkLimits::default(), conditions);
        broker.reach = Reach::InProcess { network: network.clone(), clients: AtomicU64::new(0) };
        let mut lives = pin!(lives.run_in_process(network));
        let test = async {
            if let Err(error) = broker.up().await {
                panic!("the test's broker does not start: {error}");
            }
            body(&broker).await
        };
        let value = tokio::select! {
            biased;
            value = test => value,
            () = &mut lives => panic!("the test's broker did not start again"),
        };
        let _ = broker.commands.send(Command::Stop);
        lives.await;
        value
    }

    /// A broker that does not live yet.
    fn prepare(self, clock: TestClock, is_replayed: bool) -> Result<(TestBroker, Lives), StartError> {
        let Self { mut config, on_disk, seed, .. } = self;
        let failed = |folder: &Path, source| StartError::Folder { folder: folder.display().to_string(), source };
        let folder = match on_disk {
            true => Some(
                tempfile::Builder::new()
                    .prefix("tidelog-test-")
                    .tempdir()
                    .map_err(|source| failed(&std::env::temp_dir(), source))?,
            ),
            false => None,
        };
        let disk = match &folder {
            Some(folder) => {
                config.medium = MediumChoice::Disk(folder.path().to_owned());
                Disk::Folder(FaultyFolder::open(folder.path()).map_err(|source| failed(folder.path(), source))?)
            }
            None => {
                config.medium = MediumChoice::Memory;
                config.checkpoints = CheckpointChoice::Nowhere;
                Disk::Simulated(SimulatedMedium::new(seed.unwrap_or_default()))
            }
        };
        let limits = CheckedConfig::try_from(config.clone())?.limits.clone();
        let ordeal = Arc::new(Ordeal::default());
        if let Some(seed) = seed {
            ordeal.follow(Seeded::new(seed, disk.can_lose_power()));
        }
        let clock = Arc::new(clock);
        let wire = Arc::new(Wire {
            ordeal: Arc::clone(&ordeal),
            witness: Arc::new(Witness::default()),
            clock: Arc::clone(&clock),
            limits,
            connections: Connections::default(),
        });
        let counters = Arc::new(Counters::new());
        let (commands, receiver) = unbounded_channel();
        let (phase, phases) = watch::channel(Phase { lives: 0, at: At::Starting });
        let lives = Lives {
            config,
            disk: disk.clone(),
            ordeal: Arc::clone(&ordeal),
            wire: Arc::clone(&wire),
            clock: Arc::clone(&clock),
            counters: Arc::clone(&counters),
            commands: receiver,
            phase,
            seed: seed.filter(|_| is_replayed),
            life: 1,
        };
        let broker = TestBroker {
            reach: Reach::Nowhere,
            faults: Faults { ordeal, wire, disk, clock },
            counters,
            commands,
            phase: phases,
            thread: None,
            folder,
            seed,
        };
        Ok((broker, lives))
    }
}

impl IntoFuture for Start {
    type Output = TestBroker;
    type IntoFuture = Pin<Box<dyn Future<Output = TestBroker> + Send>>;

    /// Starts the broker.
    ///
    /// # Panics
    /// If it does not start; [`try_start`](Start::try_start) says why instead.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async {
            match self.try_start().await {
                Ok(broker) => broker,
                Err(error) => panic!("the test's broker does not start: {}", with_causes(&error)),
            }
        })
    }
}

impl TestBroker {
    /// A broker in memory, on any free port, ready when this is awaited. What it returns can first be told
    /// [otherwise](Start).
    pub fn start() -> Start {
        let config = BrokerConfig { segment_first_bytes: SEGMENT_FIRST_BYTES, ..BrokerConfig::in_memory() };
        Start { config, on_disk: false, manual_clock_ms: None, seed: None }
    }

    /// `tidelog://127.0.0.1:PORT?pin=…`: all that a client needs. The same in all lives of the broker.
    ///
    /// # Panics
    /// If the broker is [in process](Start::in_process), where there is none: use [`client`](Self::client).
    #[must_use]
    #[track_caller]
    pub fn address(&self) -> &str {
        match &self.reach {
            Reach::Quic { address } => address,
            _ => panic!("a broker in process has no address: use `client()` or `client_config()`"),
        }
    }

    /// How a client reaches it, for one with other settings.
    ///
    /// # Panics
    /// Never in practice: the address is the broker's own.
    #[must_use]
    pub fn client_config(&self) -> ClientConfig {
        match &self.reach {
            Reach::InProcess { network, clients } => {
                let config = ClientConfig::new(network.connector());
                let number = clients.fetch_add(1, Ordering::Relaxed) + 1;
                match self.seed {
                    Some(seed) => config.with_seed(seed ^ number << 40),
                    None => config,
                }
            }
            _ => {
                let address = self.address().parse().expect("the broker's own address is one");
                ClientConfig::find(&address, None).expect("the pin is in the address")
            }
        }
    }

    /// A client of it, connected.
    ///
    /// # Panics
    /// If it can't be reached.
    pub async fn client(&self) -> Client {
        match Client::connect(self.client_config()).await {
            Ok(client) => client,
            Err(error) => panic!("the test's broker can't be reached: {error}"),
        }
    }

    /// What can befall it.
    #[must_use]
    pub const fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Its clock.
    #[must_use]
    pub fn clock(&self) -> &TestClock {
        &self.faults.clock
    }

    /// What it has counted so far, over all its lives.
    #[must_use]
    pub fn counters(&self) -> TestCounters {
        TestCounters::of(&self.counters)
    }

    /// Its folder, if it is [on disk](Start::on_disk).
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_ref().map(TempDir::path)
    }

    // Lives.

    /// Kills it now, as SIGKILL does. It stays dead until [`start_again`](Self::start_again).
    pub async fn crash(&self) {
        self.die(Death::Killed).await;
    }

    /// Its machine loses power now: of what was not synced any part is there afterwards, in any order. It stays dead
    /// until [`start_again`](Self::start_again).
    ///
    /// # Panics
    /// On a real folder: leave out `on_disk()`.
    pub async fn power_loss(&self) {
        self.faults.must_simulate("loses power");
        self.die(Death::PowerLost).await;
    }

    /// Starts it again after [`crash`](Self::crash) or [`power_loss`](Self::power_loss), on the same disk, port and
    /// key. Nothing happens if it is up.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start_again(&self) {
        // Its thread is gone only with the broker.
        let _ = self.commands.send(Command::Live);
        if let Err(error) = self.up().await {
            panic!("the test's broker does not start again: {error}");
        }
    }

    /// Stops it in order and starts it again, on the same disk, port and key, as for a new version or new settings of the
    /// machine. It begins with [`calm`](Faults::calm). If it is dead, it is only started again.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn restart(&self) {
        let (told, stopped) = oneshot::channel();
        let _ = self.commands.send(Command::Restart(told));
        // It is over, if nobody answers.
        let _ = stopped.await;
        if let Err(failure) = self.up().await {
            panic!("the test's broker does not start again: {failure}");
        }
    }

    /// Waits until it has died and risen so often, from faults of any kind. A first life is not counted, a
    /// [restart](Self::restart) is.
    ///
    /// # Panics
    /// If it does not start again, or has not risen so often within 30 s.
    pub async fn risen(&self, times: u64) {
        match tokio::time::timeout(RISEN_TIMEOUT, self.wait_for(|phase| phase.lives > times)).await {
            Ok(At::Over(Some(failure))) => panic!("the test's broker does not start again: {failure}"),
            Ok(_) => {}
            Err(_) => panic!("the test's broker has risen {} of {times} times within {RISEN_TIMEOUT:?}", self.rises()),
        }
    }

    /// How often it has risen from the dead, or was [restarted](Self::restart).
    #[must_use]
    pub fn rises(&self) -> u64 {
        self.phase.borrow().lives.saturating_sub(1)
    }

    /// Stops it in order: what was accepted is durable and answered, connections are closed, its thread is gone.
    pub async fn stop(mut self) {
        let _ = self.commands.send(Command::Stop);
        self.wait_for(|_| false).await;
        self.join();
    }

    // Checks.

    /// A look at a stream, over a connection of its own. There need not be such a stream yet.
    ///
    /// # Panics
    /// If the broker can't be reached.
    pub async fn stream(&self, name: &str) -> StreamCheck {
        StreamCheck::new(self.client().await, name)
    }

    /// All records of a stream, from its start to its present end.
    ///
    /// # Panics
    /// If there is no such stream, or not all of it can be read.
    pub async fn records(&self, stream: &str) -> Vec<StoredRecord> {
        self.stream(stream).await.records().await
    }

    /// Every record that a program was told to be durable is where it was said to be, with the bytes that were sent:
    /// panics with stream and offsets of what is lost. Streams that somebody has removed are left out.
    ///
    /// # Panics
    /// See above; and if the broker can't be read.
    pub async fn no_acknowledged_loss(&self) {
        let client = self.client().await;
        let checked = self.faults.wire.witness.check(&client).await;
        client.close().await;
        match checked {
            Ok(Ok(())) => {}
            Ok(Err(loss)) => panic!("{loss}"),
            Err(error) => panic!("what was acknowledged can't be read: {error}"),
        }
    }

    /// How many records programs were told to be durable, duplicates included.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.faults.wire.witness.acknowledged()
    }

    async fn die(&self, death: Death) {
        let (told, dead) = oneshot::channel();
        self.faults.ordeal.tell(death.to_string());
        let _ = self.commands.send(Command::Die(death, told));
        // It is over, if nobody answers.
        let _ = dead.await;
    }

    /// Waits until it is up.
    async fn up(&self) -> Result<String, Arc<Failure>> {
        match self.wait_for(|phase| matches!(phase.at, At::Up { .. })).await {
            At::Up { pin } => Ok(pin),
            At::Over(Some(failure)) => Err(failure),
            _ => {
                let gone = std::io::Error::other("it is gone; see above if it has panicked");
                Err(Arc::new(Failure::new(StartError::Thread(gone))))
            }
        }
    }

    /// Waits until it is so, or over.
    async fn wait_for(&self, mut is_so: impl FnMut(&Phase) -> bool) -> At {
        let mut phases = self.phase.clone();
        let phase = phases.wait_for(|phase| is_so(phase) || matches!(phase.at, At::Over(_))).await;
        // The sender is gone only when it is over.
        phase.map_or(At::Over(None), |phase| phase.at.clone())
    }

    /// Waits for its thread. One that has panicked has found a bug in the broker, which no test may pass over.
    fn join(&mut self) {
        let has_panicked = self.thread.take().is_some_and(|thread| thread.join().is_err());
        assert!(!has_panicked || std::thread::panicking(), "the test's broker has panicked: see above");
    }

    fn tell_what_happened(&self) {
        if let Some(seed) = self.seed {
            eprintln!("the test's broker had its faults from TIDELOG_SEED={seed}");
        }
        let story = self.faults.story();
        if !story.is_empty() {
            eprintln!("what has befallen the test's broker:");
            story.iter().for_each(|line| eprintln!("  {line}"));
        }
    }
}

impl Drop for TestBroker {
    /// Stops it in order and waits for its thread.
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        self.join();
        if std::thread::panicking() {
            self.tell_what_happened();
            if let Some(folder) = self.folder.take() {
                eprintln!("its folder is kept: {}", folder.keep().display());
            }
        }
    }
}

/// A seed that no other run has had, from the operating system.
pub(super) fn new_seed() -> u64 {
    let mut entropy = tidelog_storage::Entropy::System;
    // Without random numbers any seed is as good.
    entropy.next_u64().unwrap_or_else(|_| SimulatedRng::new(u64::from(std::process::id())).next_u64())
}
