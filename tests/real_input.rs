//! A real file of events through the command line: every line comes out once, in order, byte for byte, also if broker and
//! producer are killed in turn while it goes in.
//!
//! `TIDELOG_EVENTS_FILE` names the file, 100,000 lines or more; without it the tests count as ignored. `TIDELOG_SEED`
//! repeats the moments of the kills.
#![allow(clippy::indexing_slicing, reason = "a JSON object gives null for a field that it does not have")]

mod harness;

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use harness::broker::{Broker, Serve};
use harness::command::Home;
use harness::crash_run;
use harness::failure::Failure;
use harness::folder::RunFolder;
use harness::random::Random;
use harness::trial;
use libtest_mimic::{Arguments, Failed};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

const LINES_MIN: usize = 100_000;
const DEADLINE: Duration = Duration::from_secs(300);

/// Kills are so far apart that about this many fit into the file.
const KILLS_ABOUT: u64 = 16;

fn main() -> ExitCode {
    let file = std::env::var_os("TIDELOG_EVENTS_FILE").map(PathBuf::from);
    let reason = file.is_none().then(|| "TIDELOG_EVENTS_FILE names no file of events".to_owned());
    let file = file.unwrap_or_default();
    let again = file.clone();
    let trials = vec![
        trial::new("a_real_file_comes_out_as_it_went_in_also_after_a_restart", reason.clone(), move || {
            run(|folder, _| Box::pin(in_and_out(folder, Input::read(&file))))
        }),
        trial::new("a_real_file_is_stored_once_although_both_sides_are_killed", reason, move || {
            run(|folder, random| Box::pin(killed_in_turn(folder, Input::read(&again), random)))
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

type Run<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>> + 'a>>;

fn run(test: impl FnOnce(PathBuf, Random) -> Run<'static>) -> Result<(), Failed> {
    let seed = Random::seed_of_run();
    println!("TIDELOG_SEED={seed}");
    let folder = RunFolder::new();
    let test = test(folder.path().to_owned(), Random::new(seed));
    let ended = trial::block_on(async { timeout(DEADLINE, test).await });
    let ended = ended.unwrap_or_else(|_| Err(Failure::Trouble(format!("not done within {DEADLINE:?}"))));
    ended.map_err(|failure| format!("seed {seed}: {failure}; kept in {}", folder.keep().display()).into())
}

/// The file, and how it has to come out.
struct Input {
    path: String,
    lines: u64,
    /// Ends with a line end even if the file does not.
    expected: Vec<u8>,
}

impl Input {
    fn read(path: &Path) -> Self {
        let mut expected = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if !expected.ends_with(b"\n") {
            expected.push(b'\n');
        }
        let lines = expected.split(|byte| *byte == b'\n').count() - 1;
        assert!(lines >= LINES_MIN, "{} has {lines} lines, at least {LINES_MIN} are wanted", path.display());
        let path = path.canonicalize().expect("it was read");
        Self { path: path.to_str().expect("a name in UTF-8").to_owned(), lines: lines as u64, expected }
    }

    /// `consume` gives exactly this file.
    async fn check(&self, home: &Home, broker: &Broker, stream: &str) -> Result<(), Failure> {
        let server = broker.ready.listen.to_string();
        let output = home.run(["consume", stream, "--server", &server]).await;
        if !output.status.success() {
            return Err(violation("consume", &output));
        }
        if output.stdout == self.expected {
            return Ok(());
        }
        let same = output.stdout.iter().zip(&self.expected).take_while(|(left, right)| left == right).count();
        Err(Failure::Violation(format!(
            "'{stream}' comes out as {} bytes instead of {}, and differs from byte {same} on",
            output.stdout.len(),
            self.expected.len()
        )))
    }

    fn check_summary(&self, line: &str) -> Result<(), Failure> {
        let summary: Value = serde_json::from_str(line).unwrap_or_default();
        let sum = summary["published"].as_u64().zip(summary["duplicates"].as_u64()).map(|(one, two)| one + two);
        if sum != Some(self.lines) || summary["last_offset"].as_u64() != Some(self.lines - 1) {
            return Err(Failure::Violation(format!("{} lines went in, and produce ends with {line}", self.lines)));
        }
        println!("{}", line.trim_end());
        Ok(())
    }
}

fn violation(command: &str, output: &std::process::Output) -> Failure {
    Failure::Violation(format!("{command} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
}

async fn in_and_out(folder: PathBuf, input: Input) -> Result<(), Failure> {
    let mut serve = Serve::below(&folder);
    let home = serve.home.clone();
    let broker = serve.start().await?;
    let server = broker.ready.listen.to_string();
    let words = ["produce", "flights", "--producer", "import", "--file", &input.path, "--server", &server, "--json"];
    // Once to bring it in, once more to find that nothing is left to do.
    for _ in 0..2 {
        let output = home.run(words).await;
        if !output.status.success() {
            return Err(violation("produce", &output));
        }
        input.check_summary(&String::from_utf8_lossy(&output.stdout))?;
        input.check(&home, &broker, "flights").await?;
    }
    let status = broker.terminate().await?;
    if !status.success() {
        return Err(Failure::Violation(format!("after SIGTERM the broker ended with {status}")));
    }
    let broker = serve.start().await?;
    input.check(&home, &broker, "flights").await?;
    crash_run::stop(broker, &serve).await
}

async fn killed_in_turn(folder: PathBuf, input: Input, mut random: Random) -> Result<(), Failure> {
    let mut serve = Serve::below(&folder);
    let home = serve.home.clone();
    let mut broker = serve.start().await?;
    let mut produce = Produce::start(&home, &broker, &input)?;
    let (mut broker_kills, mut produce_kills) = (0, 0);
    let mut is_brokers_turn = random.one_in(2);
    let summary = loop {
        let fresh = 1 + random.below(2 * input.lines / KILLS_ABOUT);
        if let Some(summary) = produce.read(fresh).await? {
            break summary;
        }
        if is_brokers_turn {
            broker.kill().await?;
            broker_kills += 1;
            broker = serve.start().await?;
        } else {
            produce.process.kill().await.map_err(|error| Failure::trouble("killing produce", error))?;
            produce_kills += 1;
            produce = Produce::start(&home, &broker, &input)?;
        }
        is_brokers_turn = !is_brokers_turn;
    };
    produce.end().await?;
    println!("{broker_kills} kills of the broker, {produce_kills} of the producer");
    input.check_summary(&summary)?;
    input.check(&home, &broker, "flights").await?;
    crash_run::stop(broker, &serve).await
}

/// `tidelog produce` at work.
struct Produce {
    process: Child,
    receipts: BufReader<ChildStdout>,
    /// Of the last receipt.
    sequence: u64,
}

impl Produce {
    fn start(home: &Home, broker: &Broker, input: &Input) -> Result<Self, Failure> {
        let server = broker.ready.listen.to_string();
        let words = ["produce", "flights", "--producer", "import", "--file", &input.path, "--server", &server];
        let mut command = home.tidelog(words.into_iter().chain(["--receipts", "--json"]));
        let mut process =
            command.stderr(Stdio::inherit()).spawn().map_err(|error| Failure::trouble("starting produce", error))?;
        let receipts = BufReader::new(process.stdout.take().expect("piped"));
        Ok(Self { process, receipts, sequence: 0 })
    }

    /// Reads receipts until so many tell of records that had not been stored before. The summary, if it comes before.
    async fn read(&mut self, fresh: u64) -> Result<Option<String>, Failure> {
        let mut left = fresh;
        while left > 0 {
            let mut line = String::new();
            let read = self.receipts.read_line(&mut line).await;
            read.map_err(|error| Failure::trouble("reading receipts", error))?;
            let Ok(object) = serde_json::from_str::<Value>(&line) else {
                let status = self.process.wait().await.map_err(|error| Failure::trouble("waiting", error))?;
                return Err(Failure::Violation(format!("produce ended with {status}, its last line being {line:?}")));
            };
            if object.get("published").is_some() {
                return Ok(Some(line));
            }
            self.sequence += 1;
            // One producer has the stream for itself, so each line's place is known.
            let place = object["offset"].as_u64().unwrap_or(self.sequence - 1);
            if object["sequence"] != self.sequence || place != self.sequence - 1 {
                return Err(Failure::Violation(format!("receipt number {} is {line}", self.sequence)));
            }
            if object["duplicate"] == false {
                left -= 1;
            }
        }
        Ok(None)
    }

    async fn end(mut self) -> Result<(), Failure> {
        let status = self.process.wait().await.map_err(|error| Failure::trouble("waiting", error))?;
        if !status.success() {
            return Err(Failure::Violation(format!("produce gave its summary and ended with {status}")));
        }
        Ok(())
    }
}
