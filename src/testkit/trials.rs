//! Many small runs of one test, each with faults of its own and with a program that is killed and started again.

use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::{Context, Poll};

use tidelog_storage::medium::SimulatedRng;

use super::broker::{Start, TestBroker, new_seed};

/// Runs the default effort has: each of the faults that runs lead with twice.
const TRIALS: u64 = 24;
/// Says how many runs there are.
const TRIALS_VARIABLE: &str = "TIDELOG_TRIALS";
/// Says the seed of the one run that there is.
const SEED_VARIABLE: &str = "TIDELOG_SEED";
/// So often a program is killed in one run.
const KILLS_MAX: u64 = 3;

/// One run: see [`trials`].
#[derive(Debug)]
pub struct Trial {
    seed: u64,
    rng: Mutex<SimulatedRng>,
}

/// Runs a test again and again, each time with other faults: 24 times, or `TIDELOG_TRIALS`. A failing run prints its
/// seed; with `TIDELOG_SEED` set to it that run alone is repeated.
///
/// ```
/// use tidelog::testkit::{Trial, trials};
/// # async fn publish_orders(url: &str) -> Result<(), tidelog_client::Error> {
/// #     use tidelog_client::{Client, ClientConfig};
/// #     use tidelog_protocol::{ProducerName, StreamName, StreamSettings};
/// #     let client = Client::connect(ClientConfig::find(&url.parse().unwrap(), None)?).await?;
/// #     let stream = client.create_stream(&StreamName::new("orders").unwrap(), StreamSettings::default(), true).await?;
/// #     let producer = client.producer(ProducerName::new("shop").unwrap()).open().await?;
/// #     let publisher = producer.stream(&stream).await?;
/// #     for number in 1..=3 {
/// #         publisher.send_value_at(tidelog_protocol::Sequence::new(number), format!("order {number}").as_bytes()).await?;
/// #     }
/// #     producer.close().await
/// # }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// trials(async |trial: &Trial| {
///     let broker = trial.broker().await;
///     // Killed at any point where it waits, and started again, until it comes to its end.
///     trial.run(|| publish_orders(broker.address())).await.unwrap();
///
///     broker.faults().calm();
///     broker.no_acknowledged_loss().await;
/// })
/// .await;
/// # }
/// ```
pub async fn trials(body: impl AsyncFn(&Trial)) {
    let number = |variable: &str| -> Option<u64> { std::env::var(variable).ok()?.trim().parse().ok() };
    let (first, runs) = match number(SEED_VARIABLE) {
        Some(seed) => (seed, 1),
        // Small numbers, so that they are easily typed; in a row, so that the faults that lead take turns.
        None => (new_seed() % 1_000_000_000, number(TRIALS_VARIABLE).unwrap_or(TRIALS)),
    };
    for run in 0..runs {
        let trial = Trial::new(first + run);
        let told = TellSeed { seed: trial.seed, run: run + 1, runs };
        body(&trial).await;
        drop(told);
    }
}

impl Trial {
    fn new(seed: u64) -> Self {
        Self { seed, rng: Mutex::new(SimulatedRng::new(seed)) }
    }

    /// What all that befalls this run follows from.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// A broker with this run's faults.
    pub async fn broker(&self) -> TestBroker {
        self.start().await
    }

    /// The same, to be told [otherwise](Start) before it starts.
    pub fn start(&self) -> Start {
        TestBroker::start().faults_from(self.seed)
    }

    /// Runs a program that dies up to three times, at points where it waits that follow from the seed, and is started
    /// again by `program`; then it is let come to its end. Dropping its future is its death: what it has in memory is
    /// gone, what it has in a database or a broker is not. Tasks that it has spawned live on.
    ///
    /// # Errors
    /// Those of the program, unless it dies by itself.
    pub async fn run<T, E, P>(&self, mut program: impl FnMut() -> P) -> Result<T, E>
    where
        P: Future<Output = Result<T, E>>,
    {
        let kills = self.luck(|rng| rng.below(KILLS_MAX + 1));
        for _ in 0..kills {
            // Early and late deaths are equally likely, whatever the length of the program.
            let polls = self.luck(|rng| {
                let magnitude = rng.below(9);
                1 + rng.below(1 << magnitude)
            });
            let mortal = Mortal { program: pin!(program()), polls };
            if let Some(end) = mortal.await {
                return end;
            }
        }
        program().await
    }

    fn luck<T>(&self, draw: impl FnOnce(&mut SimulatedRng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A program that dies after so many polls: `None` then.
struct Mortal<'a, P> {
    program: Pin<&'a mut P>,
    polls: u64,
}

impl<P: Future> Future for Mortal<'_, P> {
    type Output = Option<P::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls == 0 {
            return Poll::Ready(None);
        }
        self.polls -= 1;
        self.program.as_mut().poll(cx).map(Some)
    }
}

/// Says the seed of a run that panics.
struct TellSeed {
    seed: u64,
    run: u64,
    runs: u64,
}

impl Drop for TellSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { seed, run, runs } = self;
            eprintln!("run {run} of {runs} has failed; {SEED_VARIABLE}={seed} repeats it alone");
        }
    }
}
