//! The real binary: a broker on a real folder and `tidelog produce`, one of them under callgrind.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde::Deserialize;

use crate::callgrind;

/// Lines of 100 bytes that are published: the first lot, and how many more there are in the second.
const LINES: u64 = 50_000;
const MORE_LINES: u64 = 200_000;

/// Which process is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    Serve,
    Produce,
    Consume,
}

pub(crate) const ALL: &[Process] = &[Process::Serve, Process::Produce, Process::Consume];

impl Process {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Serve => "tidelog serve, produced to",
            Self::Produce => "tidelog produce",
            Self::Consume => "tidelog consume",
        }
    }
}

/// Instructions for each record, start and end of the process aside.
pub(crate) fn count(process: Process, folder: &Path) -> Result<f64, String> {
    let few = least(process, folder, LINES)?;
    let many = least(process, folder, LINES + MORE_LINES)?;
    Ok((many as f64 - few as f64) / MORE_LINES as f64)
}

/// Threads of sled's pool spin here, as long as they please, when the first of them comes up at the broker's end.
const SPINS: &str = "sled::lazy::Lazy";

/// The least of a few runs: what a thread does while it waits comes on top of what the records take.
fn least(process: Process, folder: &Path, lines: u64) -> Result<u64, String> {
    // Only the broker has several threads at work.
    let runs = if process == Process::Serve { 3 } else { 1 };
    let mut least = run(process, folder, lines)?;
    for _ in 1..runs {
        least = least.min(run(process, folder, lines)?);
    }
    Ok(least)
}

/// Publishes so many lines, and consumes them if that is what is counted; all instructions of the process.
fn run(process: Process, folder: &Path, lines: u64) -> Result<u64, String> {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|error| error.to_string())?;
    let out = callgrind::out_file(folder, &format!("{} {lines}", process.name()));
    let program = |counts: bool| match counts {
        true => {
            let mut command = callgrind::command(&out);
            command.arg(BINARY);
            command
        }
        false => Command::new(BINARY),
    };
    let input = scratch.path().join("input");
    let text: String = (0..lines).map(|line| format!("{line:0>99}\n")).collect();
    fs::write(&input, text).map_err(|error| format!("{}: {error}", input.display()))?;

    let broker = Broker::start(program(process == Process::Serve), &scratch.path().join("data"))?;
    let mut produce = program(process == Process::Produce);
    produce.args(["produce", "bench", "--producer", "bench", "--file"]).arg(&input);
    broker.ask(produce)?;
    if process == Process::Consume {
        let mut consume = program(true);
        consume.args(["consume", "bench"]);
        broker.ask(consume)?;
    }
    broker.stop()?;
    callgrind::total_without(&out, Some(SPINS))
}

const BINARY: &str = env!("CARGO_BIN_EXE_tidelog");

/// A broker on a port of its own; killed when this is dropped.
struct Broker {
    child: Child,
    server: String,
}

#[derive(Debug, Deserialize)]
struct Ready {
    listen: String,
    pin: String,
}

impl Broker {
    fn start(program: Command, data: &Path) -> Result<Self, String> {
        // The ready line wants a descriptor above the standard ones.
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"exec "$@" 3>&1 >&2"#, "sh"]).arg(program.get_program()).args(program.get_args());
        shell.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.arg("serve").arg("--data").arg(data);
        shell.args(["--listen", "127.0.0.1:0", "--http", "off", "--ready-fd", "3"]);
        let mut child = spawn(shell.env("TIDELOG_LOG", "warn").stderr(Stdio::null()).stdout(Stdio::piped()))?;
        let stdout = child.stdout.take().expect("piped");
        let mut broker = Self { child, server: String::new() };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map_err(|error| error.to_string())?;
        let ready: Ready = serde_json::from_str(&line).map_err(|_| "the broker did not start".to_owned())?;
        broker.server = format!("tidelog://{}?pin={}", ready.listen, ready.pin);
        Ok(broker)
    }

    /// Runs a command against it to its end.
    fn ask(&self, mut command: Command) -> Result<(), String> {
        command.args(["--server", &self.server, "--timeout", "300s"]);
        let output = command.stdout(Stdio::null()).output().map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    fn stop(mut self) -> Result<(), String> {
        let pid = i32::try_from(self.child.id()).map_err(|error| error.to_string())?;
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).map_err(|error| error.to_string())?;
        let status = self.child.wait().map_err(|error| error.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("the broker ended with {status}")) }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(command: &mut Command) -> Result<Child, String> {
    command.spawn().map_err(|error| format!("{command:?}: {error}"))
}
