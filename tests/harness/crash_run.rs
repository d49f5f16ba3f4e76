//! A broker under load that is killed again and again.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::board::Board;
use super::broker::{Broker, Serve};
use super::failure::Failure;
use super::ledger::Ledger;
use super::load::{Load, check, make_streams};
use super::producer::Order;
use super::random::Random;

/// Everything is read and compared after so many cycles, and at the end.
const CYCLES_PER_CHECK: u64 = 5;

/// The plan of a run.
#[derive(Debug, Clone)]
pub struct CrashRun {
    pub seed: u64,
    pub cycles: u64,
    /// A deliberate defect of the broker.
    pub sabotage: Option<String>,
    /// The only thing that producers are told to do with their sessions, if it is not to be any of all.
    pub disturbance: Option<Order>,
    /// So long the whole run may take.
    pub deadline: Duration,
}

/// What a run has gone through.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    pub cycles: u64,
    pub kills: u64,
    pub kills_in_recovery: u64,
    pub disturbances: u64,
    pub receipts: u64,
    pub duplicates: u64,
    pub records: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} cycles, {} kills ({} before the broker was ready), {} sessions changed, {} records, {} acknowledged, {} of \
             them as duplicates",
            self.cycles,
            self.kills,
            self.kills_in_recovery,
            self.disturbances,
            self.records,
            self.receipts,
            self.duplicates
        )
    }
}

impl CrashRun {
    /// Carries it out in `folder`.
    ///
    /// # Errors
    ///
    /// The first broken promise, or what kept the run from going on.
    pub async fn run(&self, folder: &Path) -> Result<Figures, Failure> {
        let mut figures = Figures::default();
        let ended = timeout(self.deadline, self.run_to_end(folder, &mut figures)).await;
        let ended = ended.unwrap_or_else(|_| Err(Failure::Trouble(format!("not done within {:?}", self.deadline))));
        match ended {
            Ok(()) => Ok(figures),
            Err(failure) => Err(failure.at(format_args!("cycle {}", figures.cycles))),
        }
    }

    async fn run_to_end(&self, folder: &Path, figures: &mut Figures) -> Result<(), Failure> {
        let mut random = Random::new(self.seed);
        let mut serve = Serve { sabotage: self.sabotage.clone(), ..Serve::below(folder) };
        let mut broker = serve.start().await?;
        make_streams(&broker.client().await?).await?;
        let board = Arc::new(Board::new(self.seed, super::load::STREAMS.len()));
        let mut load = Load::start(&board, &broker.address());
        for cycle in 1..=self.cycles {
            figures.cycles = cycle;
            let receipts_max = if random.one_in(3) { 20 } else { 2_000 };
            board.wait_for_receipts(1 + random.below(receipts_max)).await?;
            if self.disturbance.is_some() || random.one_in(2) {
                load.disturb(&mut random, self.disturbance);
                figures.disturbances += 1;
                // One that is looked for gets the time to happen.
                let more = if self.disturbance.is_some() { 2_000 } else { 1 + random.below(receipts_max) };
                board.wait_for_receipts(more).await?;
            }
            let pin = broker.ready.pin.clone();
            let start_time = broker.start_time;
            broker.kill().await?;
            figures.kills += 1;
            if random.one_in(4) {
                load.disturb(&mut random, self.disturbance);
                figures.disturbances += 1;
            }
            broker = restart(&mut serve, &mut random, start_time, figures).await?;
            if broker.ready.pin != pin {
                return Err(Failure::violation("the broker has another key after a restart"));
            }
            if cycle % CYCLES_PER_CHECK == 0 {
                check(&broker.client().await?, &board).await?;
            }
        }
        load.finish().await?;
        figures.records = check(&broker.client().await?, &board).await?.iter().sum();
        figures.receipts = board.sum(Ledger::receipts);
        figures.duplicates = board.sum(Ledger::duplicates);
        stop(broker, &serve).await?;
        Ok(())
    }
}

/// Starts the broker again, now and then with one or more kills on the way: somewhere in its recovery, or as soon as it
/// is ready.
async fn restart(
    serve: &mut Serve,
    random: &mut Random,
    start_time: Duration,
    figures: &mut Figures,
) -> Result<Broker, Failure> {
    while random.one_in(3) {
        if random.one_in(3) {
            serve.start().await?.kill().await?;
        } else {
            let starting = serve.spawn().await?;
            // The moment of the fault, not a wait for anything: no event can be had from inside a recovery.
            sleep(start_time.mul_f64(random.below(1_000) as f64 / 1_000.0)).await;
            starting.kill().await?;
            figures.kills_in_recovery += 1;
        }
        figures.kills += 1;
    }
    serve.start().await
}

/// Stops the broker as its user would, and reads every byte it has left.
///
/// # Errors
///
/// A violation if it does not end with 0, or if there is any damage.
pub async fn stop(broker: Broker, serve: &Serve) -> Result<(), Failure> {
    let status = broker.terminate().await?;
    if !status.success() {
        return Err(Failure::Violation(format!("after SIGTERM the broker ended with {status}")));
    }
    verify(serve).await
}

/// `tidelog verify`.
///
/// # Errors
///
/// A violation if it finds anything.
pub async fn verify(serve: &Serve) -> Result<(), Failure> {
    let data = serve.data.to_str().expect("a path of our own");
    let output = serve.home.run(["verify", data, "--json"]).await;
    let text = String::from_utf8_lossy(&output.stdout);
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_default();
    if !output.status.success() || last["damages"] != 0 {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::Violation(format!("verify ends with {} and says: {text}{error}", output.status)));
    }
    Ok(())
}
