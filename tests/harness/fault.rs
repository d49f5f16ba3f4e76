//! Faults at chosen system calls of the real broker: what is asked for, and the process that brings it about.
//!
//! Calls are counted over all threads of the broker and only if they touch its data folder, so the n-th one is the same
//! kind of moment in every run. A tracer of its own does that, because `strace` counts for each thread apart: whatever a
//! thread does later than another one's n-th call would never be reached.

use std::fmt;
use std::path::Path;
use std::process::{ExitCode, Stdio};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use super::failure::Failure;

/// The variable by which a test binary is told to be the tracer of another process.
const TRACER_VARIABLE: &str = "TIDELOG_TRACER";

/// What a call does to the data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Bytes or the length of a file.
    Write,
    /// fsync, fdatasync and their kin, of files and folders.
    Sync,
    /// Names: made, changed, removed.
    Name,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// The process is killed before the call has any effect.
    Kill,
    /// The call has no effect and fails with this error number.
    Fail(i32),
    /// The call begins only after so many milliseconds.
    Delay(u64),
    /// A write takes the first half of its first buffer.
    Shorten,
}

/// When it happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The kinds that are counted; empty for all.
    pub kinds: Vec<Kind>,
    /// Only calls of the thread of this name are counted, if it is not empty.
    pub thread: String,
    /// The first counted call that it happens to, from 1.
    pub from: u64,
    /// How many calls in a row it happens to.
    pub calls: u64,
    pub action: Action,
}

impl Fault {
    /// Something that happens to the n-th call of any kind, and once.
    pub fn at(n: u64, action: Action) -> Self {
        Self { kinds: Vec::new(), thread: String::new(), from: n, calls: 1, action }
    }
}

/// The call that it happened to first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fired {
    /// Its number.
    pub n: u64,
    pub kind: Kind,
    pub thread: String,
    /// The file, or the folder of the name.
    pub path: String,
}

impl fmt::Display for Fired {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Path::new(&self.path).file_name().unwrap_or_default().display();
        write!(formatter, "call {}: {:?} of {} by {}", self.n, self.kind, name, self.thread)
    }
}

/// What the tracer is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) pid: i32,
    pub(super) data: String,
    pub(super) fault: Fault,
}

/// What the tracer says, a line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Said {
    /// The process is traced and may go on.
    Ready,
    /// For the first time.
    Fired(Fired),
    /// The process has ended after so many counted calls.
    Ended(u64),
}

/// Why no fault can be brought about here, if none can.
pub fn why_not() -> Option<String> {
    if cfg!(not(all(target_os = "linux", target_arch = "x86_64"))) {
        return Some("system calls are counted on Linux on x86-64 only".to_owned());
    }
    if rustix::process::geteuid().is_root() {
        return None;
    }
    // A container may forbid it, and so may the machine's owner.
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match scope.trim() {
        "" | "0" => None,
        scope => Some(format!("tracing needs root: kernel.yama.ptrace_scope is {scope}")),
    }
}

/// To be called first by the `main` of a test binary: if this process was started to trace another, it does that and the
/// answer is how it ended.
pub fn run_tracer_if_asked() -> Option<ExitCode> {
    let task = std::env::var(TRACER_VARIABLE).ok()?;
    let task: Task = serde_json::from_str(&task).expect("a task of our own making");
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    match super::tracer::run(&task) {
        Ok(()) => return Some(ExitCode::SUCCESS),
        Err(error) => eprintln!("the tracer: {error}"),
    }
    let _ = task;
    Some(ExitCode::FAILURE)
}

/// A running tracer. The traced process dies with it.
#[derive(Debug)]
pub struct Tracer {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Tracer {
    /// Traces a process that waits for it.
    ///
    /// # Errors
    ///
    /// Those of the machine.
    pub async fn attach(pid: u32, data: &Path, fault: &Fault) -> Result<Self, Failure> {
        let pid = i32::try_from(pid).expect("a process id");
        // The folder may not be there yet, the one above it is.
        let parent = data.parent().expect("a folder of our own").canonicalize();
        let parent = parent.map_err(|error| Failure::trouble(data.display(), error))?;
        let data = parent.join(data.file_name().expect("a folder of our own"));
        let data = data.into_os_string().into_string().expect("a path of our own");
        let task = serde_json::to_string(&Task { pid, data, fault: fault.clone() }).expect("plain data");
        let program = std::env::current_exe().map_err(|error| Failure::trouble("the tracer", error))?;
        let mut command = Command::new(program);
        command.env(TRACER_VARIABLE, task).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| Failure::trouble("the tracer", error))?;
        let said = BufReader::new(child.stdout.take().expect("piped"));
        let mut tracer = Self { child, said };
        match tracer.next().await? {
            Said::Ready => Ok(tracer),
            other => Err(Failure::Trouble(format!("the tracer began with {other:?}"))),
        }
    }

    /// Waits until it has happened; `None` if the process ended untouched.
    ///
    /// # Errors
    ///
    /// Those of the machine.
    pub async fn fired(&mut self) -> Result<Option<Fired>, Failure> {
        match self.next().await? {
            Said::Fired(fired) => Ok(Some(fired)),
            Said::Ended(_) => Ok(None),
            Said::Ready => Err(Failure::Trouble("the tracer was ready twice".to_owned())),
        }
    }

    async fn next(&mut self) -> Result<Said, Failure> {
        let mut line = String::new();
        self.said.read_line(&mut line).await.map_err(|error| Failure::trouble("the tracer", error))?;
        serde_json::from_str(&line).map_err(|error| Failure::trouble(format_args!("the tracer said '{line}'"), error))
    }

    /// Lets the process go on untraced; a call that is held back goes with the tracer.
    ///
    /// # Errors
    ///
    /// Those of the machine.
    pub async fn end(mut self) -> Result<(), Failure> {
        self.child.wait().await.map(drop).map_err(|error| Failure::trouble("the tracer", error))
    }
}
