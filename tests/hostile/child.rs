//! A broker as a child process of the tests, with settings that the command line does not have, looked at from outside:
//! by its metrics, and by what the system says of its memory, files and threads.
#![allow(dead_code, reason = "not every trial looks at everything")]

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidelog::{Broker, BrokerConfig};
use tidelog_client::{Client, ClientConfig};
use tokio::time::{Instant, sleep};

use super::harness::failure::Failure;

/// Tells this binary that it is a broker.
const VARIABLE: &str = "TIDELOG_TEST_BROKER";
/// Longer than anything here takes on a busy machine.
const WITHIN: Duration = Duration::from_secs(120);

/// What takes longer to be given back is not given back.
const SETTLED_WITHIN: Duration = Duration::from_secs(20);

/// QUIC's buffer for what arrives: 32 times 64 payloads. It is the broker's and nobody's else; beside an idle broker next to
/// nothing of it is resident, after much traffic, or where a start has used the memory before, all of it.
pub(crate) const RECEIVE_BUFFER_BYTES: u64 = 32 * 64 * tidelog_protocol::UDP_PAYLOAD_BYTES_MAX as u64;

/// What differs from the defaults.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// In memory without.
    pub(crate) data: Option<PathBuf>,
    pub(crate) idle_timeout_ms: Option<u64>,
    pub(crate) streams_max: Option<u64>,
    pub(crate) memory_budget_bytes: Option<u32>,
    pub(crate) checkpoint_bytes: Option<u64>,
}

/// What the child says once it is ready.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    address: String,
    http: SocketAddr,
}

pub(crate) fn settings_of_this_process() -> Option<Settings> {
    let text = std::env::var(VARIABLE).ok()?;
    Some(serde_json::from_str(&text).expect("the tests write what they read"))
}

/// Serves until standard input ends, which it does with the test at the latest.
pub(crate) fn serve(settings: &Settings) -> ExitCode {
    let mut config = settings.data.as_ref().map_or_else(BrokerConfig::in_memory, BrokerConfig::on_disk);
    config.http = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    if let Some(millis) = settings.idle_timeout_ms {
        config.idle_timeout = Duration::from_millis(millis);
    }
    if let Some(streams) = settings.streams_max {
        config.limits.streams_max = streams;
    }
    if let Some(bytes) = settings.memory_budget_bytes {
        config.memory_budget_bytes = bytes;
    }
    if let Some(bytes) = settings.checkpoint_bytes {
        config.checkpoint_bytes = bytes;
    }
    let broker = Broker::start(config).expect("the broker starts");
    let ready = Ready { address: broker.address(), http: broker.http_addr().expect("it has a monitor") };
    println!("{}", serde_json::to_string(&ready).expect("plain data"));
    // Whatever it says: it is the end.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    broker.shutdown();
    ExitCode::SUCCESS
}

/// A running child; killed when dropped.
#[derive(Debug)]
pub(crate) struct ChildBroker {
    child: Child,
    ready: Ready,
    pub(crate) start_time: Duration,
}

impl Drop for ChildBroker {
    fn drop(&mut self) {
        // Gone by itself is told by whoever looks at it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process has of the machine.
#[derive(Debug, Clone)]
pub(crate) struct Usage {
    /// Memory that no file stands behind.
    pub(crate) memory_bytes: u64,
    /// What its open files are.
    pub(crate) files: Vec<String>,
    /// The names of its threads, without sled's.
    pub(crate) threads: Vec<String>,
    /// Threads of sled, which are for the process and not for a database: 7 from its first use on, and one more whenever
    /// it has work while fewer than 7 wait. Some of those stay (`sled/src/threadpool.rs`, version 0.34.7).
    pub(crate) sled_threads: usize,
}

/// What clients have of the broker, by its own metrics.
const LEVELS: [&str; 6] = [
    "tidelog_connections",
    "tidelog_handshakes_in_progress",
    "tidelog_producer_sessions",
    "tidelog_subscriptions",
    "tidelog_quic_streams",
    "tidelog_memory_used_bytes",
];

impl ChildBroker {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    ///
    /// Trouble if it does not start.
    pub(crate) fn start(settings: &Settings) -> Result<Self, Failure> {
        let since = Instant::now();
        let trouble = |error: &dyn std::fmt::Display| Failure::trouble("starting the broker", error);
        let text = serde_json::to_string(settings).map_err(|error| trouble(&error))?;
        let mut child = Command::new(std::env::current_exe().map_err(|error| trouble(&error))?)
            .env(VARIABLE, text)
            // Freed memory goes back at once and by the same rule each time, so that levels can be compared.
            .env("MALLOC_TRIM_THRESHOLD_", "131072")
            .env("MALLOC_MMAP_THRESHOLD_", "131072")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| trouble(&error))?;
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).map_err(|error| trouble(&error))?;
        let start_time = since.elapsed();
        match serde_json::from_str(&line) {
            Ok(ready) => Ok(Self { child, ready, start_time }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(trouble(&error))
            }
        }
    }

    /// `tidelog://HOST:PORT?pin=…`
    pub(crate) fn address(&self) -> &str {
        &self.ready.address
    }

    /// Where it listens.
    pub(crate) fn socket_addr(&self) -> SocketAddr {
        let place = self.ready.address.trim_start_matches("tidelog://").split('?').next().unwrap_or_default();
        place.parse().expect("an address with a port")
    }

    /// An honest client.
    ///
    /// # Errors
    ///
    /// A violation if the broker does not serve it.
    pub(crate) async fn client(&self) -> Result<Client, Failure> {
        let address = self.address().parse().map_err(|error| Failure::trouble(self.address(), error))?;
        let config = ClientConfig::find(&address, None).map_err(|error| Failure::trouble("finding trust", error))?;
        Client::connect(config).await.map_err(|error| Failure::violation(format!("an honest client: {error}")))
    }

    /// Its metrics, by series.
    ///
    /// # Errors
    ///
    /// A violation if it is not there any more or does not answer.
    pub(crate) fn metrics(&self) -> Result<HashMap<String, f64>, Failure> {
        let gone = |error: &dyn std::fmt::Display| Failure::violation(format!("the broker's monitor: {error}"));
        let mut stream = TcpStream::connect(self.ready.http).map_err(|error| gone(&error))?;
        stream.set_read_timeout(Some(WITHIN)).map_err(|error| gone(&error))?;
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).map_err(|error| gone(&error))?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(|error| gone(&error))?;
        let lines = text.lines().filter(|line| line.starts_with("tidelog_"));
        Ok(lines
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(series, value)| Some((series.to_owned(), value.parse().ok()?)))
            .collect())
    }

    /// One of them; 0 if there is none of this name.
    ///
    /// # Errors
    ///
    /// As for [`Self::metrics`].
    pub(crate) fn metric(&self, series: &str) -> Result<f64, Failure> {
        Ok(self.metrics()?.get(series).copied().unwrap_or_default())
    }

    /// Waits until clients have no more of it than before any came, and says how long that took.
    ///
    /// # Errors
    ///
    /// A violation if something stays.
    pub(crate) async fn wait_until_idle(&self) -> Result<Duration, Failure> {
        let since = Instant::now();
        loop {
            let metrics = self.metrics()?;
            let left: Vec<_> = LEVELS
                .iter()
                .map(|name| (*name, metrics.get(*name).copied().unwrap_or(f64::NAN)))
                .filter(|(_, value)| *value != 0.0)
                .collect();
            if left.is_empty() {
                return Ok(since.elapsed());
            }
            if since.elapsed() > WITHIN {
                return Err(Failure::Violation(format!("after {WITHIN:?} there is still {left:?}")));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// What it has of the machine now.
    ///
    /// # Errors
    ///
    /// A violation if it is not there any more.
    pub(crate) fn usage(&self) -> Result<Usage, Failure> {
        let folder = PathBuf::from(format!("/proc/{}", self.child.id()));
        let gone = |error: std::io::Error| Failure::violation(format!("the broker is gone: {error}"));
        let listed = |name: &str| std::fs::read_dir(folder.join(name)).map_err(gone);
        // What is closed, or ends, while it is looked at is not there.
        let paths = |entry: std::io::Result<std::fs::DirEntry>| Some(entry.ok()?.path());
        let files = listed("fd")?.filter_map(paths).filter_map(|path| std::fs::read_link(path).ok());
        let mut files: Vec<_> = files.map(|file| file.display().to_string()).collect();
        let names =
            listed("task")?.filter_map(paths).filter_map(|path| std::fs::read_to_string(path.join("comm")).ok());
        let mut threads: Vec<_> = names.map(|name| name.trim().to_owned()).collect();
        let all = threads.len();
        threads.retain(|name| !name.starts_with("sled-io-"));
        let sled_threads = all - threads.len();
        files.sort_unstable();
        threads.sort_unstable();
        let status = std::fs::read_to_string(folder.join("status")).map_err(gone)?;
        let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
        let kib: u64 = kib.and_then(|kib| kib.trim().parse().ok()).unwrap_or_default();
        if kib == 0 {
            return Err(Failure::violation("the broker is gone: it has no memory"));
        }
        Ok(Usage { memory_bytes: kib * 1_024, files, threads, sled_threads })
    }

    /// What it has of the machine once it has no more threads than `before`, and no more files than then and
    /// `files_more`. That is waited for a while: the monitor closes a connection a little later than the one that asked.
    ///
    /// # Errors
    ///
    /// As for [`Self::usage`], and a violation if they do not come back.
    pub(crate) async fn usage_back_at(&self, before: &Usage, files_more: usize) -> Result<Usage, Failure> {
        let since = Instant::now();
        loop {
            let usage = self.usage()?;
            if usage.files.len() <= before.files.len() + files_more && usage.threads.len() <= before.threads.len() {
                return Ok(usage);
            }
            if since.elapsed() > SETTLED_WITHIN {
                return Err(Failure::Violation(format!("files or threads are left: {before:#?} -> {usage:#?}")));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops it as a signal would, and waits for it.
    ///
    /// # Errors
    ///
    /// A violation if it ends in any other way than well.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        drop(self.child.stdin.take());
        let status = self.child.wait().map_err(|error| Failure::trouble("waiting for the broker", error))?;
        if status.success() { Ok(()) } else { Err(Failure::Violation(format!("the broker ended with {status}"))) }
    }
}

/// As text.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Where a trial keeps its log.
pub(crate) fn data_below(folder: &Path) -> PathBuf {
    folder.join("data")
}
