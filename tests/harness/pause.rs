//! Stops a process for a while, as a whole.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

use super::failure::Failure;

/// Stops all threads of `pid`. One that is in a system call finishes that first; it is waited for.
///
/// # Errors
///
/// There is no such process.
pub async fn pause(pid: Pid) -> Result<(), Failure> {
    kill_process(pid, Signal::STOP).map_err(|error| Failure::trouble("pausing", error))?;
    while !is_stopped(pid).map_err(|error| Failure::trouble("pausing", error))? {
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Lets it go on.
///
/// # Errors
///
/// There is no such process.
pub fn wake(pid: Pid) -> Result<(), Failure> {
    kill_process(pid, Signal::CONT).map_err(|error| Failure::trouble("waking", error))
}

/// The kernel's word for each thread, behind its name in brackets: T is stopped.
fn is_stopped(pid: Pid) -> std::io::Result<bool> {
    for thread in fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid()))? {
        // One that has ended meanwhile is as good.
        let stat = fs::read_to_string(thread?.path().join("stat")).unwrap_or_default();
        if stat.rsplit(") ").next().is_some_and(|state| !state.is_empty() && !state.starts_with('T')) {
            return Ok(false);
        }
    }
    Ok(true)
}
