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
/// So often a program is killed in one run, at points that are drawn.
const KILLS_MAX: u64 = 3;
/// One run in so many kills at one point after the other instead. It has no factor in common with the number of faults that
/// runs lead with, so that over many runs each of them meets it.
const SWEEP_EVERY: u64 = 5;
/// So often a program is killed in such a run: up to its 170th wait or so.
const SWEEP_KILLS: usize = 48;

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
    match number(SEED_VARIABLE) {
        Some(seed) => trials_from(seed, 1, body).await,
        // Small numbers, so that they are easily typed.
        None => trials_from(new_seed() % 1_000_000_000, number(TRIALS_VARIABLE).unwrap_or(TRIALS), body).await,
    }
}

/// As [`trials`], with seeds that are given: `seed` and those that follow it, `runs` in all, whatever the environment says.
/// For a test that is to do the same each time, and for one that looks for a seed. In twelve runs in a row each of the
/// faults that lead has its turn.
pub async fn trials_from(seed: u64, runs: u64, body: impl AsyncFn(&Trial)) {
    for run in 0..runs {
        let trial = Trial::new(seed.wrapping_add(run));
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

    /// Runs a program that dies and is started again by `program`; in the end it is let come to its own end. Dropping its
    /// future is its death: what it has in memory is gone, what it has in a database or a broker is not. Tasks that it has
    /// spawned live on.
    ///
    /// It dies where it waits: up to three times, at points that follow from the seed; in every fifth run up to 48 times,
    /// each life a wait longer than the one before (later on several), so that no short program has a point where it never
    /// dies. Half of the deaths come when the wait begins, and what the program has asked for may not have left yet; the
    /// others when what it waits for is there.
    ///
    /// # Errors
    /// Those of the program, unless it dies by itself.
    pub async fn run<T, E, P>(&self, mut program: impl FnMut() -> P) -> Result<T, E>
    where
        P: Future<Output = Result<T, E>>,
    {
        for polls in self.deaths() {
            let mortal = Mortal { program: pin!(program()), polls, waits: self.luck(|rng| rng.chance(2)) };
            if let Some(end) = mortal.await {
                return end;
            }
        }
        program().await
    }

    /// How often each life of a program is polled.
    fn deaths(&self) -> Vec<u64> {
        if self.seed.is_multiple_of(SWEEP_EVERY) {
            // Each one at first, then in steps that grow, beginning at another place each time.
            let first = 1 + self.luck(|rng| rng.below(4));
            return std::iter::successors(Some(first), |polls| Some(polls + 1 + polls / 16))
                .take(SWEEP_KILLS)
                .collect();
        }
        let kills = self.luck(|rng| rng.below(KILLS_MAX + 1));
        // Early and late deaths are equally likely, whatever the length of the program.
        let polls = || {
            let magnitude = self.luck(|rng| rng.below(9));
            1 + self.luck(|rng| rng.below(1 << magnitude))
        };
        (0..kills).map(|_| polls()).collect()
    }

    fn luck<T>(&self, draw: impl FnOnce(&mut SimulatedRng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A program that dies after so many polls: `None` then.
struct Mortal<'a, P> {
    program: Pin<&'a mut P>,
    polls: u64,
    /// Whether it lives until it would be polled again.
    waits: bool,
}

impl<P: Future> Future for Mortal<'_, P> {
    type Output = Option<P::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls == 0 {
            return Poll::Ready(None);
        }
        self.polls -= 1;
        match self.program.as_mut().poll(cx) {
            Poll::Ready(end) => Poll::Ready(Some(end)),
            Poll::Pending if self.polls == 0 && !self.waits => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[test]
    fn one_run_in_five_kills_at_one_point_after_the_other() {
        for seed in 0..100 {
            let deaths = Trial::new(seed).deaths();
            assert_eq!(deaths, Trial::new(seed).deaths(), "seed {seed}");
            if seed.is_multiple_of(SWEEP_EVERY) {
                assert!(deaths.is_sorted() && deaths[0] <= 4 && (160..210).contains(&deaths[SWEEP_KILLS - 1]));
                assert!(deaths.windows(2).all(|two| two[1] - two[0] <= 1 + two[0] / 16));
            } else {
                assert!(deaths.len() as u64 <= KILLS_MAX && deaths.iter().all(|polls| (1..=256).contains(polls)));
            }
        }
    }
    #[tokio::test]
    async fn death_comes_when_a_wait_begins_or_when_it_is_over() {
        for waits in [false, true] {
            let (answer, mut answered) = tokio::sync::oneshot::channel();
            let mut mortal = Mortal { program: pin!(&mut answered), polls: 1, waits };
            let begun = poll_fn(|cx| Poll::Ready(Pin::new(&mut mortal).poll(cx).is_ready())).await;
            assert_eq!(begun, !waits);
            answer.send(()).unwrap();
            if waits {
                assert_eq!(mortal.await, None, "the answer is there, and nobody sees it");
            }
        }
    }
}
