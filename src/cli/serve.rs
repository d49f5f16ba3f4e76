//! `tidelog serve`: a broker in the foreground, from its start to what ends it.

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tidelog::broker::{Broker, StartError};
use tidelog::config::{BrokerConfig, MediumChoice};
use tidelog::monitor::MonitorError;
use tidelog::server::quic::ListenError;
use tidelog_client::{Pin, TrustEnvironment, TrustFile};
use tidelog_storage::OpenError;
use tidelog_storage::medium::LockError;
use tracing_subscriber::EnvFilter;

use super::args::ServeArguments;
use super::ending::Ending;
use super::exit::{CliError, Exit, with_causes};
use super::ready::{ReadyFd, ReadyLine};

/// Says what is logged, as `tracing-subscriber` filters are written: `debug`, `tidelog=trace`.
const LOG_VARIABLE: &str = "TIDELOG_LOG";
const LOG_DEFAULT: &str = "info";

/// The trust file's name in the data folder.
const DATA_TRUST_FILE: &str = "broker.json";

/// Runs a broker until SIGINT, SIGTERM or, if that is asked for, the end of standard input.
pub(crate) fn run(arguments: ServeArguments) -> Result<(), CliError> {
    // First of all, before anything is opened.
    let ready = arguments.ready_fd.map(ReadyFd::take).transpose()?;
    log_to_stderr()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::new(Exit::No, "start_failed", format!("could not start: {error}")))?;
    let result = runtime.block_on(serve(arguments, ready));
    // A start or stop that a signal broke off may still be busy on its thread; the process is about
    // to end, and a log that is cut off anywhere is recovered like after any crash.
    runtime.shutdown_background();
    result
}

async fn serve(arguments: ServeArguments, ready: Option<ReadyFd>) -> Result<(), CliError> {
    // Before the broker, so that a signal during a long recovery is not lost.
    let mut ending = Ending::watch(arguments.until_stdin_closes)?;
    let config = config(&arguments);
    let data = config.folder().map(Path::to_owned);
    let starting = tokio::task::spawn_blocking(move || Broker::start(config));
    let broker = tokio::select! {
        started = starting => match started {
            Ok(started) => started.map_err(|error| start_error(&error))?,
            Err(panic) => return Err(internal(&panic)),
        },
        () = ending.begun() => {
            tracing::info!("stopped before the broker was ready");
            return Ok(());
        }
    };

    let listen = broker.local_addr();
    let http = broker.http_addr();
    let trust = TrustFiles::write(data.as_deref(), listen, broker.pin());
    tell_ready(data.as_deref(), listen, http, broker.pin());
    if let Some(ready) = ready {
        let line = ReadyLine {
            listen: listen.to_string(),
            http: http.map(|address| address.to_string()),
            pin: broker.pin(),
            pid: std::process::id(),
        };
        if let Err(error) = ready.announce(&line) {
            tracing::warn!(%error, "nobody reads the ready line; the broker runs on");
        }
    }

    ending.begun().await;
    tracing::info!("stopping; a further signal ends the process at once");
    // While the port is still taken: as soon as it is free, another broker may leave files of the same names.
    trust.remove();
    let stopping = tokio::task::spawn_blocking(move || broker.shutdown());
    tokio::select! {
        stopped = stopping => stopped.map(drop).map_err(|panic| internal(&panic)),
        () = ending.signalled() => Err(CliError::new(
            Exit::Interrupted,
            "interrupted",
            "ended by a signal before everything was closed",
        )
        .with_hint("nothing acknowledged is lost; the next start reads the log's end again")),
    }
}

fn config(arguments: &ServeArguments) -> BrokerConfig {
    let medium = if arguments.memory { MediumChoice::Memory } else { MediumChoice::Disk(arguments.data.clone()) };
    BrokerConfig {
        medium,
        listen: arguments.listen,
        http: arguments.http.address(),
        sync_timeout: arguments.sync_timeout,
        ..BrokerConfig::default()
    }
}

fn log_to_stderr() -> Result<(), CliError> {
    let filter = match std::env::var(LOG_VARIABLE) {
        Ok(text) => EnvFilter::try_new(&text).map_err(|error| {
            let message = format!("{LOG_VARIABLE}={text} cannot be understood: {error}");
            CliError::new(Exit::Usage, "usage", message)
                .with_hint(format!("set it to one of error, warn, info, debug and trace: {LOG_VARIABLE}=debug"))
        })?,
        Err(_) => EnvFilter::new(LOG_DEFAULT),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // It would tell them on standard error, and panic in whichever thread had something to log.
        .log_internal_errors(false)
        .init();
    Ok(())
}

/// One line for people; scripts take `--ready-fd`.
fn tell_ready(data: Option<&Path>, listen: SocketAddr, http: Option<SocketAddr>, pin: &str) {
    let http = http.map_or("off".to_owned(), |address| format!("http://{address}"));
    let data = data.map_or("in memory".to_owned(), |folder| folder.display().to_string());
    // Nobody may be left to read it; the broker runs on.
    let _ = writeln!(io::stderr(), "tidelog is ready on {listen} (monitor {http}, data {data}, pin {pin})");
}

fn start_error(error: &StartError) -> CliError {
    let (exit, name) = match error {
        StartError::Config(_) => (Exit::Usage, "usage"),
        StartError::Listen(ListenError::InUse { .. }) | StartError::Monitor(MonitorError::InUse { .. }) => {
            (Exit::Conflict, "address_in_use")
        }
        StartError::Log(OpenError::Locked(LockError::Held { .. })) => (Exit::Conflict, "folder_in_use"),
        StartError::Folder { .. } => (Exit::No, "folder_unusable"),
        StartError::Log(_) => (Exit::No, "log_unusable"),
        StartError::Identity(_) => (Exit::No, "identity_unusable"),
        // Sockets and threads that the machine refuses, and what later versions add.
        _ => (Exit::No, "start_failed"),
    };
    CliError::new(exit, name, with_causes(error))
}

fn internal(panic: &tokio::task::JoinError) -> CliError {
    CliError::new(Exit::No, "internal", format!("the broker failed: {panic}"))
        .with_hint("this is a defect of tidelog; please report the lines above")
}

/// The files by which programs on this machine find the broker and know its key.
struct TrustFiles {
    content: Option<TrustFile>,
    written: Vec<PathBuf>,
}

impl TrustFiles {
    /// Writes them where programs look. A place that cannot be written is told and left out: those
    /// who look there need `?pin=` then.
    fn write(data: Option<&Path>, listen: SocketAddr, pin: &str) -> TrustFiles {
        let environment = TrustEnvironment::of_process();
        TrustFiles::write_to(trust_places(data, listen.port(), &environment), listen, pin)
    }

    fn write_to(places: Vec<TrustPlace>, listen: SocketAddr, pin: &str) -> TrustFiles {
        let pin: Pin = match pin.parse() {
            Ok(pin) => pin,
            Err(error) => {
                tracing::error!(%error, pin, "the broker's own pin is malformed; no trust file is written");
                return TrustFiles { content: None, written: Vec::new() };
            }
        };
        let content = TrustFile { address: listen.to_string(), pin, pid: std::process::id() };
        let mut written = Vec::new();
        for place in places {
            match content.write(&place.path).and_then(|()| place.open_to_readers()) {
                Ok(()) => written.push(place.path),
                Err(error) => {
                    let path = place.path.display();
                    tracing::warn!(%path, %error, "could not write a trust file; commands that look there need ?pin=");
                }
            }
        }
        TrustFiles { content: Some(content), written }
    }

    /// Removes what was written, unless another broker has replaced it since.
    fn remove(self) {
        let Some(content) = self.content else {
            return;
        };
        for path in self.written {
            if let Err(error) = content.remove(&path) {
                tracing::warn!(path = %path.display(), %error, "could not remove a trust file");
            }
        }
    }
}

/// Where a trust file goes, and who may read it.
#[derive(Debug, PartialEq, Eq)]
struct TrustPlace {
    path: PathBuf,
    /// Every user of the machine, not the broker's alone.
    for_everybody: bool,
}

impl TrustPlace {
    /// The file holds no secret: with the pin a client knows the broker, and gains no access.
    fn open_to_readers(&self) -> io::Result<()> {
        if !self.for_everybody {
            return Ok(());
        }
        if let Some(folder) = self.path.parent() {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        }
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o644))
    }
}

fn trust_places(data: Option<&Path>, port: u16, environment: &TrustEnvironment) -> Vec<TrustPlace> {
    let private = |path| TrustPlace { path, for_everybody: false };
    let mut places: Vec<_> = data.map(|folder| private(folder.join(DATA_TRUST_FILE))).into_iter().collect();
    places.extend(environment.user_file(port).map(private));
    // Root's broker is the machine's.
    if environment.user == 0 {
        places.push(TrustPlace { path: environment.system_file(port), for_everybody: true });
    }
    places
}

#[cfg(test)]
mod tests {
    use tidelog::config::ConfigError;

    use super::*;

    const PIN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn arguments(line: &[&str]) -> ServeArguments {
        use clap::Parser as _;
        let words = ["tidelog", "serve"].iter().chain(line);
        let super::super::args::Command::Serve(arguments) =
            super::super::args::Arguments::try_parse_from(words).unwrap().command
        else {
            panic!("`serve` was typed")
        };
        arguments
    }

    #[test]
    fn what_kept_the_broker_from_starting_decides_the_status() {
        let address = "127.0.0.1:7440".parse().unwrap();
        let exit = |error: StartError| start_error(&error).exit();
        assert_eq!(exit(ListenError::InUse { address }.into()), Exit::Conflict);
        assert_eq!(exit(MonitorError::InUse { address }.into()), Exit::Conflict);
        assert_eq!(exit(OpenError::Locked(LockError::Held { pid: Some(7) }).into()), Exit::Conflict);
        assert_eq!(exit(ConfigError::NotLoopback { setting: "listen", address }.into()), Exit::Usage);
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(exit(StartError::Folder { folder: "/d".to_owned(), source }), Exit::No);
        assert_eq!(exit(StartError::Thread(io::Error::other("no threads left"))), Exit::No);
    }

    #[test]
    fn options_become_the_configuration() {
        let words = ["--data", "/d", "--listen", "[::1]:9", "--http", "off", "--sync-timeout", "2s"];
        let config = config(&arguments(&words));
        assert_eq!(config.folder(), Some(Path::new("/d")));
        assert_eq!(config.listen.to_string(), "[::1]:9");
        assert_eq!(config.http, None);
        assert_eq!(config.sync_timeout.as_secs(), 2);
        let config = super::config(&arguments(&["--memory"]));
        assert!(matches!(config.medium, MediumChoice::Memory));
        assert_eq!(config.http.unwrap().to_string(), "127.0.0.1:7441");
        assert_eq!(config.sync_timeout, BrokerConfig::default().sync_timeout);
    }

    #[test]
    fn trust_files_are_written_where_they_can_be_and_removed_again() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("broker.json");
        let everybody = folder.path().join("run/tidelog/7440.json");
        let blocked = folder.path().join("file");
        fs::write(&blocked, "").unwrap();
        let places = vec![
            TrustPlace { path: blocked.join("7440.json"), for_everybody: false },
            TrustPlace { path: data.clone(), for_everybody: false },
            TrustPlace { path: everybody.clone(), for_everybody: true },
        ];
        let files = TrustFiles::write_to(places, "127.0.0.1:7440".parse().unwrap(), PIN);
        assert_eq!(files.written, [data.clone(), everybody.clone()]);
        let text = fs::read_to_string(&data).unwrap();
        let content: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(content["address"], "127.0.0.1:7440");
        assert_eq!(content["pin"], PIN);
        assert_eq!(content["pid"], std::process::id());
        assert_eq!(mode(&data), 0o600);
        assert_eq!(mode(&everybody), 0o644);
        assert_eq!(mode(everybody.parent().unwrap()), 0o755);
        files.remove();
        assert!(!data.exists() && !everybody.exists());
    }

    #[test]
    fn a_broker_in_memory_leaves_no_file_in_a_data_folder() {
        let environment = TrustEnvironment::of_process();
        let in_memory = trust_places(None, 7440, &environment);
        let on_disk = trust_places(Some(Path::new("/d")), 7440, &environment);
        assert_eq!(on_disk.len(), in_memory.len() + 1);
        assert_eq!(on_disk[0].path, Path::new("/d/broker.json"));
        assert!(!on_disk[0].for_everybody);
    }
}
