//! `tidelog serve` as a process: started, killed and started again on the same folder and port.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tidelog_client::{Client, ClientConfig};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdout};
use tokio::time::{Instant, timeout};

use super::command::{self, Home};
use super::failure::Failure;
use super::fault::{Fault, Tracer};

/// A start takes milliseconds; this is for a machine that is busy with something else.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How a broker is started.
#[derive(Debug, Clone)]
pub struct Serve {
    pub data: PathBuf,
    /// Port 0 until the first start has found one.
    pub listen: SocketAddr,
    pub home: Home,
    /// Deliberate defects, by name; needs a binary with the feature `sabotage`.
    pub sabotage: Option<String>,
    /// What happens to its system calls.
    pub fault: Option<Fault>,
    /// Whether it has a monitor, on any port.
    pub http: bool,
    /// Further words of its command line.
    pub options: Vec<String>,
    /// Standard error of all starts, one behind the other.
    pub log: PathBuf,
}

/// The ready line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    pub listen: SocketAddr,
    pub http: Option<SocketAddr>,
    pub pin: String,
    pub pid: u32,
}

/// A broker that may not be ready yet.
#[derive(Debug)]
pub struct Starting {
    child: Child,
    ready: BufReader<ChildStdout>,
    log: PathBuf,
    since: Instant,
    /// None as long as the port is not known.
    trust: Option<SystemTrust>,
    tracer: Option<Tracer>,
}

/// A broker that was ready. It is killed when this is dropped.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    /// Tells what becomes of the fault that it was started with.
    pub tracer: Option<Tracer>,
    pub ready: Ready,
    /// From the start of the process to its ready line.
    pub start_time: Duration,
    trust: SystemTrust,
}

/// A broker that ended before it was ready.
#[derive(Debug)]
pub struct End {
    pub status: ExitStatus,
    pub tracer: Option<Tracer>,
}

/// The trust file that a broker run by root leaves for the whole machine. A killed one can't remove it, so it is removed
/// here: another test's broker may get the port.
#[derive(Debug)]
struct SystemTrust {
    path: PathBuf,
    pid: u32,
}

impl SystemTrust {
    fn new(listen: SocketAddr, pid: u32) -> Self {
        Self { path: PathBuf::from(format!("/run/tidelog/{}.json", listen.port())), pid }
    }

    fn is_there(&self) -> bool {
        let text = fs::read(&self.path).unwrap_or_default();
        serde_json::from_slice(&text).is_ok_and(|file: serde_json::Value| file["pid"] == self.pid)
    }
}

impl Drop for SystemTrust {
    fn drop(&mut self) {
        if self.is_there() {
            // Gone by itself is as good.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Serve {
    /// On any port, with its data and everything else below `folder`.
    pub fn below(folder: &Path) -> Self {
        Self {
            data: folder.join("data"),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            home: Home::below(folder),
            sabotage: None,
            fault: None,
            http: false,
            options: Vec::new(),
            log: folder.join("broker.log"),
        }
    }

    /// Starts the process and does not wait for anything that it does.
    ///
    /// # Errors
    ///
    /// Those of the machine.
    pub async fn spawn(&self) -> Result<Starting, Failure> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(|error| Failure::trouble(self.log.display(), error))?;
        // The shell makes its standard output descriptor 3 and is then replaced by the broker, which keeps its number.
        // Handing over a descriptor from here would show it to every process started at the same moment.
        // A broker that is to be traced waits for its tracer first.
        let mut serve = self.home.command(Path::new("sh"));
        let script = match self.fault {
            Some(_) => "read -r _ && exec \"$@\" 3>&1 1>&2 0</dev/null",
            None => "exec \"$@\" 3>&1 1>&2 0</dev/null",
        };
        serve.args(["-c", script, "sh", command::BINARY, "serve", "--ready-fd", "3"]);
        serve.args(["--http", if self.http { "127.0.0.1:0" } else { "off" }]);
        serve.arg("--data").arg(&self.data).arg("--listen").arg(self.listen.to_string()).args(&self.options);
        if let Some(sabotage) = &self.sabotage {
            serve.env("TIDELOG_SABOTAGE", sabotage);
        }
        serve.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = serve.spawn().map_err(|error| Failure::trouble("starting the broker", error))?;
        let ready = BufReader::new(child.stdout.take().expect("piped"));
        let trust = child.id().filter(|_| self.listen.port() != 0).map(|pid| SystemTrust::new(self.listen, pid));
        let mut tracer = None;
        if let Some(fault) = &self.fault {
            tracer = Some(Tracer::attach(child.id().expect("it runs"), &self.data, fault).await?);
            let told = child.stdin.take().expect("piped").write_all(b"\n").await;
            told.map_err(|error| Failure::trouble("starting the broker", error))?;
        }
        Ok(Starting { child, ready, log: self.log.clone(), since: Instant::now(), trust, tracer })
    }

    /// Starts a broker, waits until it is ready and keeps its port for later starts.
    ///
    /// # Errors
    ///
    /// A violation if it does not become ready: whatever happened to it before, it has to start.
    pub async fn start(&mut self) -> Result<Broker, Failure> {
        let broker = self.spawn().await?.ready().await?;
        self.listen = broker.ready.listen;
        Ok(broker)
    }
}

impl Starting {
    /// Waits until the broker is ready.
    ///
    /// # Errors
    ///
    /// A violation if it ends instead, or takes too long.
    pub async fn ready(self) -> Result<Broker, Failure> {
        let log = self.log.clone();
        self.outcome().await?.map_err(|end| {
            Failure::Violation(format!("the broker did not start: {}; {}", end.status, last_lines(&log)))
        })
    }

    /// Waits until the broker is ready or has ended.
    ///
    /// # Errors
    ///
    /// A violation if it takes too long.
    pub async fn outcome(mut self) -> Result<Result<Broker, End>, Failure> {
        let mut line = String::new();
        let read = timeout(READY_WITHIN, self.ready.read_line(&mut line)).await;
        if read.is_err() {
            return Err(Failure::Violation(format!("the broker was not ready within {READY_WITHIN:?}")));
        }
        let Ok(ready) = serde_json::from_str::<Ready>(&line) else {
            let status = self.child.wait().await.map_err(|error| Failure::trouble("waiting", error))?;
            return Ok(Err(End { status, tracer: self.tracer }));
        };
        let trust = self.trust.unwrap_or_else(|| SystemTrust::new(ready.listen, ready.pid));
        let start_time = self.since.elapsed();
        Ok(Ok(Broker { child: self.child, tracer: self.tracer, ready, start_time, trust }))
    }

    /// SIGKILL, and waits until its port and folder are free.
    ///
    /// # Errors
    ///
    /// Those of the machine.
    pub async fn kill(mut self) -> Result<(), Failure> {
        self.child.kill().await.map_err(|error| Failure::trouble("killing the broker", error))
    }
}

impl Broker {
    /// The address with the pin, which needs no trust file.
    pub fn address(&self) -> String {
        format!("tidelog://{}?pin={}", self.ready.listen, self.ready.pin)
    }

    /// A client of its own connection.
    ///
    /// # Errors
    ///
    /// Trouble if the broker does not answer.
    pub async fn client(&self) -> Result<Client, Failure> {
        connect(&self.address()).await
    }

    /// SIGKILL, and waits until its port and folder are free.
    ///
    /// # Errors
    ///
    /// A violation if it had ended before by itself.
    pub async fn kill(mut self) -> Result<(), Failure> {
        if let Some(status) = self.child.try_wait().map_err(|error| Failure::trouble("waiting", error))? {
            return Err(Failure::Violation(format!("the broker had ended by itself: {status}")));
        }
        self.child.kill().await.map_err(|error| Failure::trouble("killing the broker", error))
    }

    /// SIGKILL, whether or not it has ended before.
    ///
    /// # Errors
    ///
    /// Those of the machine.
    pub async fn kill_if_running(mut self) -> Result<(), Failure> {
        match self.child.kill().await {
            Err(error) if error.kind() != std::io::ErrorKind::InvalidInput => {
                Err(Failure::trouble("killing the broker", error))
            }
            _ => Ok(()),
        }
    }

    /// Sends a signal and goes on.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a child can be signalled");
    }

    /// Its process, which no other can be as long as this value lives.
    pub fn pid(&self) -> Pid {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        pid.expect("it runs")
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    ///
    /// A violation if it leaves its trust file to whoever gets the port next.
    pub async fn terminate(mut self) -> Result<ExitStatus, Failure> {
        self.signal(Signal::TERM);
        let status =
            self.child.wait().await.map_err(|error| Failure::trouble("waiting for the broker's end", error))?;
        // One that was killed meanwhile can't remove it.
        if status.code().is_some() && self.trust.is_there() {
            return Err(Failure::Violation(format!("the broker has left {}", self.trust.path.display())));
        }
        Ok(status)
    }
}

/// A client of its own connection.
///
/// # Errors
///
/// Trouble if the broker does not answer.
pub async fn connect(address: &str) -> Result<Client, Failure> {
    let address = address.parse().map_err(|error| Failure::trouble(address, error))?;
    let config = ClientConfig::find(&address, None).map_err(|error| Failure::trouble("finding trust", error))?;
    Client::connect(config).await.map_err(|error| Failure::trouble("connecting", error))
}

/// The end of a broker's own log.
pub fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
