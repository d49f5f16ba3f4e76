//! One life of a broker, again and again from the same beginning: a log with a tail that its last owner was killed over, a
//! start, a load that fills a segment, and a clean stop. Something may happen to one of its system calls.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidelog_client::{Client, ClientConfig, Error};
use tidelog_protocol::{ErrorCode, ProducerName, StreamName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::board::Board;
use super::broker::{Broker, Serve};
use super::crash_run::stop;
use super::failure::Failure;
use super::fault::{Action, Fault, Fired, Tracer};
use super::ledger::Ledger;
use super::load::{Load, STREAMS, check, make_streams};

/// Records acknowledged in a life: more than its first segment holds.
const RECEIPTS: u64 = 2_600;
/// One life takes less than a second.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often a broker that has not yet noticed is asked how it is.
const ASK: Duration = Duration::from_millis(5);

/// Where all lives begin.
#[derive(Debug)]
pub struct Beginning {
    folder: PathBuf,
    serve: Serve,
    seed: u64,
    ledgers: Vec<Ledger>,
}

/// What became of a life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Nothing happened to it.
    Untouched,
    /// It was killed.
    Killed(Fired),
    /// It did not start, and said so.
    DidNotStart(Fired),
    /// It refused to write from then on.
    Poisoned(Fired),
    /// It went on as if nothing had happened, for it had happened to nothing that an answer rests on.
    WentOn(Fired),
}

impl Beginning {
    /// Makes it in `folder`.
    ///
    /// # Errors
    ///
    /// A broken promise on the way, or what kept it from being made.
    pub async fn make(folder: &Path, seed: u64) -> Result<Self, Failure> {
        let mut serve = Serve { data: folder.join("beginning"), http: true, ..Serve::below(folder) };
        let broker = serve.start().await?;
        make_streams(&broker.client().await?).await?;
        let board = Arc::new(Board::new(seed, STREAMS.len()));
        let load = Load::start(&board, &broker.address());
        board.wait_for_receipts(RECEIPTS).await?;
        broker.kill().await?;
        load.abort().await;
        board.check()?;
        Ok(Self { folder: folder.to_owned(), serve, seed, ledgers: board.ledgers() })
    }

    /// Lives once, with this fault and this deliberate defect, and once more without the fault: everything
    /// must then be as it was promised.
    ///
    /// # Errors
    ///
    /// The first broken promise, or what kept it from being carried out.
    pub async fn live(&self, fault: Fault, sabotage: Option<&str>) -> Result<End, Failure> {
        let lived = timeout(DEADLINE, self.live_to_end(fault, sabotage)).await;
        lived.unwrap_or_else(|_| Err(Failure::Trouble(format!("a life was not over within {DEADLINE:?}"))))
    }

    async fn live_to_end(&self, fault: Fault, sabotage: Option<&str>) -> Result<End, Failure> {
        let data = self.folder.join("life");
        let copied = copy_folder(&self.serve.data, &data);
        copied.map_err(|error| Failure::trouble("copying the beginning", error))?;
        let serve = Serve {
            data: data.clone(),
            sabotage: sabotage.map(str::to_owned),
            options: vec!["--sync-timeout".to_owned(), format!("{}ms", SYNC_TIMEOUT.as_millis())],
            ..self.serve.clone()
        };
        let board = Arc::new(Board::going_on(self.seed, self.ledgers.clone()));
        let end = first_life(&Serve { fault: Some(fault), ..serve.clone() }, &board).await?;
        let broker = serve.spawn().await?.ready().await?;
        Load::start(&board, &broker.address()).finish().await?;
        check(&broker.client().await?, &board).await?;
        stop(broker, &serve).await?;
        fs::remove_dir_all(&data).map_err(|error| Failure::trouble(data.display(), error))?;
        Ok(end)
    }
}

/// A sync that is longer under way than this makes the broker of a life refuse writes.
pub const SYNC_TIMEOUT: Duration = Duration::from_millis(400);

/// The life that something may happen to. Its clients end with it: they might wait for seconds for the rest of a handshake
/// that a killed broker had begun, and those that come back are tested elsewhere.
async fn first_life(serve: &Serve, board: &Arc<Board>) -> Result<End, Failure> {
    let mut broker = match serve.spawn().await?.outcome().await? {
        Ok(broker) => broker,
        Err(end) => {
            let Some(fired) = end.tracer.expect("it was traced").fired().await? else {
                return Err(Failure::Violation(format!("untouched, it did not start: {}", end.status)));
            };
            return Ok(if end.status.code().is_some() { End::DidNotStart(fired) } else { End::Killed(fired) });
        }
    };
    let tracer = broker.tracer.take().expect("it was traced");
    let mut load = Load::start(board, &broker.address());
    let end = run_to_end(serve, broker, tracer, &mut load, board).await;
    load.abort().await;
    board.check()?;
    end
}

async fn run_to_end(
    serve: &Serve,
    broker: Broker,
    mut tracer: Tracer,
    load: &mut Load,
    board: &Board,
) -> Result<End, Failure> {
    let target = board.sum(Ledger::receipts) + RECEIPTS;
    let fired = tokio::select! {
        fired = tracer.fired() => fired?,
        worked = work(load, board, target) => {
            worked?;
            None
        }
    };
    let Some(fired) = fired else {
        let status = broker.terminate().await?;
        return match tracer.fired().await? {
            Some(fired) if status.code().is_none() => Ok(End::Killed(fired)),
            // All that there was to acknowledge was acknowledged before.
            Some(fired) => Ok(End::WentOn(fired)),
            None if status.success() => Ok(End::Untouched),
            None => Err(Failure::Violation(format!("untouched, it ended with {status}"))),
        };
    };
    if serve.fault.as_ref().is_some_and(|fault| fault.action == Action::Kill) {
        broker.kill_if_running().await?;
        return Ok(End::Killed(fired));
    }
    let has_worked = tokio::select! {
        noticed = refuses_to_be_ready(&broker) => {
            noticed?;
            false
        }
        worked = work(load, board, target) => {
            worked?;
            true
        }
    };
    let has_to_stop =
        fired.thread == LOG_THREAD && serve.fault.as_ref().is_some_and(|fault| fault.action != Action::Shorten);
    if has_worked && !has_to_stop {
        let status = broker.terminate().await?;
        return match status.success() {
            true => Ok(End::WentOn(fired)),
            false => Err(Failure::Violation(format!("after {fired} it ended with {status}"))),
        };
    }
    // All may have been acknowledged just before, and only then.
    if timeout(SYNC_TIMEOUT * 5, refuses_to_be_ready(&broker)).await.is_err() {
        return Err(Failure::Violation(format!("after {fired} had failed it went on acknowledging")));
    }
    lives_on_poisoned(&broker, board).await.map_err(|failure| failure.at(format_args!("after {fired}")))?;
    broker.kill().await?;
    Ok(End::Poisoned(fired))
}

/// The thread that nobody is answered without.
pub const LOG_THREAD: &str = "tidelog-log";

/// Works until so many records are acknowledged, and then until everything sent is. Goes on where it was broken off.
async fn work(load: &mut Load, board: &Board, target: u64) -> Result<(), Failure> {
    board.wait(|streams| streams.iter().map(Ledger::receipts).sum::<u64>() >= target).await?;
    load.finish().await
}

/// Waits until `/readyz` says that the broker is poisoned.
pub async fn refuses_to_be_ready(broker: &Broker) -> Result<(), Failure> {
    loop {
        let answer = ask(broker, "/readyz")
            .await
            .map_err(|error| Failure::Violation(format!("it does not answer /readyz any more: {error}")))?;
        if answer.starts_with("HTTP/1.1 503") && answer.contains("poisoned") {
            return Ok(());
        }
        if !answer.starts_with("HTTP/1.1 200") {
            return Err(Failure::Violation(format!("/readyz says {answer}")));
        }
        // Its own notice is what is waited for; nothing tells of it but asking.
        sleep(ASK).await;
    }
}

async fn ask(broker: &Broker, path: &str) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(broker.ready.http.expect("it has a monitor")).await?;
    socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// What a broker still has to do after a failed write: serve everything that it has acknowledged, and take nothing more.
async fn lives_on_poisoned(broker: &Broker, board: &Board) -> Result<(), Failure> {
    check(&broker.client().await?, board).await?;
    let acknowledged = board.sum(Ledger::receipts);
    let address = broker.address().parse().map_err(|error| Failure::trouble("the address", error))?;
    let config = ClientConfig::find(&address, None).map_err(|error| Failure::trouble("finding trust", error))?;
    let mut patience = PATIENCE_MIN;
    loop {
        match publish(config.clone().with_timeout(patience)).await {
            Err(error) if is_poisoned(&error) => break,
            // Nobody was refused: on a busy machine it takes longer to be.
            Err(Error::TimedOut { .. }) if patience < PATIENCE_MAX => patience *= 4,
            outcome => return Err(Failure::Violation(format!("a publish ends with {outcome:?}"))),
        }
    }
    let now = board.sum(Ledger::receipts);
    match now == acknowledged {
        true => Ok(()),
        false => Err(Failure::Violation(format!("{} more records were acknowledged", now - acknowledged))),
    }
}

/// How long a client tries again that is refused, at first.
const PATIENCE_MIN: Duration = Duration::from_millis(150);
/// And in the end.
const PATIENCE_MAX: Duration = Duration::from_secs(30);

async fn publish(config: ClientConfig) -> Result<(), Error> {
    let client = Client::connect(config).await?;
    let producer = client.producer(ProducerName::new("latecomer").expect("a good name")).open().await?;
    let publisher = producer.stream(&StreamName::new(STREAMS[0]).expect("a good name")).await?;
    publisher.send_value(b"late").await?;
    publisher.flush().await
}

/// Whether this is the refusal, or what a client that was refused again and again makes of it.
fn is_poisoned(error: &Error) -> bool {
    match error {
        Error::TimedOut { cause: Some(cause), .. } => is_poisoned(cause),
        error => error.code() == Some(ErrorCode::Poisoned),
    }
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_folder(&entry.path(), &name)?,
            false => {
                fs::copy(entry.path(), name)?;
            }
        }
    }
    Ok(())
}
