//! A server as a child process, and what the kernel counts for it.

use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, Timespec, clock_gettime};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{sleep, timeout};

use crate::Outcome;

/// A start takes milliseconds; this is for a machine that is busy with something else.
const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(1);

/// A child process; killed when dropped.
pub(crate) struct Process {
    child: Child,
    since: Instant,
    pid: i32,
    log: std::path::PathBuf,
    /// From the start of the process to its first answer.
    pub(crate) start_time: Duration,
}

impl Process {
    /// Starts `command` with its messages in `folder/log`.
    pub(crate) fn spawn(mut command: Command, folder: &Path) -> Outcome<Self> {
        let log = folder.join("log");
        let messages = OpenOptions::new().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stderr(messages).current_dir(folder).kill_on_drop(true);
        let since = Instant::now();
        let child = command.spawn().map_err(|error| format!("could not start {command:?}: {error}"))?;
        let pid = i32::try_from(child.id().ok_or("it ended at once")?)?;
        Ok(Self { child, since, pid, log, start_time: Duration::ZERO })
    }

    pub(crate) fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Asks until there is an answer, which ends the start.
    pub(crate) async fn until_answered<T>(&mut self, mut ask: impl AsyncFnMut() -> Outcome<T>) -> Outcome<T> {
        loop {
            match ask().await {
                Ok(answer) => {
                    self.start_time = self.since.elapsed();
                    return Ok(answer);
                }
                Err(error) => {
                    if let Some(status) = self.child.try_wait()? {
                        let messages = fs::read_to_string(&self.log).unwrap_or_default();
                        return Err(
                            format!("the server ended with {status} while it started: {}", messages.trim()).into()
                        );
                    }
                    if self.since.elapsed() > READY_WITHIN {
                        return Err(format!("the server does not answer: {error}").into());
                    }
                    sleep(ASKED_AGAIN_AFTER).await;
                }
            }
        }
    }

    /// Asks it to end and waits for that.
    pub(crate) async fn stop(mut self) -> Outcome<()> {
        let pid = Pid::from_raw(self.pid).ok_or("no process")?;
        kill_process(pid, Signal::TERM)?;
        match timeout(STOPPED_WITHIN, self.child.wait()).await {
            Ok(ended) => {
                ended?;
                Ok(())
            }
            Err(_) => Err("the server did not end when it was asked to".into()),
        }
    }

    /// Bytes of memory that are resident.
    pub(crate) fn resident_bytes(&self) -> Outcome<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kibibytes * 1024)
    }

    /// Processor time that its threads have used, of those that live.
    pub(crate) fn cpu_time(&self) -> Outcome<Duration> {
        let mut nanoseconds = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            // A thread may end while they are counted.
            let Ok(statistics) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            nanoseconds += statistics.split(' ').next().ok_or("no time")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }
}

/// Processor time that this process has used.
pub(crate) fn own_cpu_time() -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ProcessCPUTime);
    // Never negative: it counts from 0.
    Duration::new(tv_sec.unsigned_abs(), u32::try_from(tv_nsec).unwrap_or(0))
}

/// A loopback port that nobody has just now.
pub(crate) fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Bytes that the files below `folder` occupy on the disk.
pub(crate) fn disk_bytes(folder: &Path) -> Outcome<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // A server may remove files while they are counted.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}
