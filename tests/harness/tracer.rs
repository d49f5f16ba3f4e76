//! The tracer: stops another process at each of its system calls, counts those that touch a folder, and lets one of them
//! end as it was told. Runs as a process of its own, since everything about a traced process is told to one thread.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{self, user_regs_struct};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::time::Instant;

use super::fault::{Action, Fired, Kind, Said, Task};

/// While a call is held back the others are looked after so often.
const LOOK: Duration = Duration::from_micros(200);

/// Traces until the process has ended.
pub(super) fn run(task: &Task) -> io::Result<()> {
    let main = Pid::from_raw(task.pid);
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(main, options)?;
    ptrace::interrupt(main)?;
    let mut tracer = Tracer { task, main, counted: 0, has_fired: false, changed: HashMap::new(), held: HashMap::new() };
    say(&Said::Ready)?;
    while tracer.step()? {}
    say(&Said::Ended(tracer.counted))
}

fn say(said: &Said) -> io::Result<()> {
    let mut line = serde_json::to_string(said)?;
    line.push('\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(line.as_bytes())?;
    stdout.flush()
}

/// What is to be done when a call that was tampered with returns.
#[derive(Debug, Clone, Copy)]
enum Changed {
    /// It was none: this is its result.
    Result(i64),
    /// The length at this address was another one.
    Length { address: u64, bytes: u64 },
}

struct Tracer<'a> {
    task: &'a Task,
    main: Pid,
    counted: u64,
    has_fired: bool,
    /// Threads inside a call that was tampered with.
    changed: HashMap<Pid, Changed>,
    /// Threads that are held back before a call.
    held: HashMap<Pid, Instant>,
}

impl Tracer<'_> {
    /// Deals with one stop. False once the process has ended.
    fn step(&mut self) -> io::Result<bool> {
        let flags =
            WaitPidFlag::__WALL | if self.held.is_empty() { WaitPidFlag::empty() } else { WaitPidFlag::WNOHANG };
        let status = match waitpid(None, Some(flags)) {
            Ok(status) => status,
            Err(Errno::ECHILD) => return Ok(false),
            Err(Errno::EINTR) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        match status {
            WaitStatus::StillAlive => self.release(),
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _) => {
                self.held.remove(&pid);
                return Ok(pid != self.main);
            }
            WaitStatus::PtraceSyscall(pid) => self.stopped_at_call(pid)?,
            WaitStatus::Stopped(pid, signal) => go_on(pid, Some(signal)),
            WaitStatus::PtraceEvent(pid, _, _) => go_on(pid, None),
            _ => {}
        }
        Ok(true)
    }

    fn release(&mut self) {
        sleep(LOOK);
        let now = Instant::now();
        self.held.retain(|pid, until| {
            let stays = *until > now;
            if !stays {
                go_on(*pid, None);
            }
            stays
        });
    }

    fn stopped_at_call(&mut self, pid: Pid) -> io::Result<()> {
        // The process may be killed at any time.
        let Ok(registers) = ptrace::getregs(pid) else { return Ok(()) };
        if let Some(changed) = self.changed.remove(&pid) {
            undo(pid, registers, changed);
            go_on(pid, None);
            return Ok(());
        }
        // What a call is entered with; none on a file returns it.
        let is_entry = registers.rax as i64 == -i64::from(libc::ENOSYS);
        if is_entry && let Some((kind, path)) = self.counts(pid, &registers) {
            self.counted += 1;
            let fault = &self.task.fault;
            if (fault.from..fault.from.saturating_add(fault.calls)).contains(&self.counted) {
                if !self.has_fired {
                    self.has_fired = true;
                    say(&Said::Fired(Fired { n: self.counted, kind, thread: name_of(pid, self.main), path }))?;
                }
                return self.tamper(pid, registers, kind);
            }
        }
        go_on(pid, None);
        Ok(())
    }

    /// Kind and path of a call that is to be counted.
    fn counts(&self, pid: Pid, registers: &user_regs_struct) -> Option<(Kind, String)> {
        let fault = &self.task.fault;
        let kind = kind(registers)?;
        if !fault.kinds.is_empty() && !fault.kinds.contains(&kind) {
            return None;
        }
        let path = path(self.main, registers)?;
        let is_inside = path.strip_prefix(&self.task.data).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let is_thread = fault.thread.is_empty() || fault.thread == name_of(pid, self.main);
        (is_inside && is_thread).then_some((kind, path))
    }

    fn tamper(&mut self, pid: Pid, registers: user_regs_struct, kind: Kind) -> io::Result<()> {
        match self.task.fault.action {
            // It stays where it is until the signal ends it.
            Action::Kill => return Ok(kill(self.main, Signal::SIGKILL)?),
            Action::Fail(errno) => {
                // There is no such call, so nothing happens; the result is put in when it returns.
                let _ = ptrace::setregs(pid, user_regs_struct { orig_rax: u64::MAX, ..registers });
                self.changed.insert(pid, Changed::Result(-i64::from(errno)));
            }
            Action::Delay(milliseconds) => {
                self.held.insert(pid, Instant::now() + Duration::from_millis(milliseconds));
                return Ok(());
            }
            Action::Shorten if kind == Kind::Write => {
                if let Some(changed) = shorten(pid, self.main, registers) {
                    self.changed.insert(pid, changed);
                }
            }
            Action::Shorten => {}
        }
        go_on(pid, None);
        Ok(())
    }
}

fn go_on(pid: Pid, signal: Option<Signal>) {
    // It fails only if the thread was killed meanwhile, which the next wait tells.
    let _ = ptrace::syscall(pid, signal);
}

/// Has the kernel write the first half of the first buffer. The caller's list of buffers lies in its memory and is put
/// right again afterwards.
fn shorten(pid: Pid, main: Pid, registers: user_regs_struct) -> Option<Changed> {
    if ![libc::SYS_pwritev, libc::SYS_pwritev2, libc::SYS_writev].contains(&(registers.orig_rax as i64)) {
        return None;
    }
    let address = registers.rsi + 8;
    let memory = File::options().read(true).write(true).open(format!("/proc/{main}/mem")).ok()?;
    let mut word = [0; 8];
    memory.read_exact_at(&mut word, address).ok()?;
    let bytes = u64::from_le_bytes(word);
    if bytes < 2 {
        return None;
    }
    memory.write_all_at(&(bytes / 2).to_le_bytes(), address).ok()?;
    ptrace::setregs(pid, user_regs_struct { rdx: 1, ..registers }).ok()?;
    Some(Changed::Length { address, bytes })
}

fn undo(pid: Pid, registers: user_regs_struct, changed: Changed) {
    match changed {
        Changed::Result(result) => {
            let _ = ptrace::setregs(pid, user_regs_struct { rax: result as u64, ..registers });
        }
        Changed::Length { address, bytes } => {
            let memory = File::options().write(true).open(format!("/proc/{pid}/mem"));
            let _ = memory.and_then(|memory| memory.write_all_at(&bytes.to_le_bytes(), address));
        }
    }
}

fn kind(registers: &user_regs_struct) -> Option<Kind> {
    Some(match registers.orig_rax as i64 {
        libc::SYS_write
        | libc::SYS_writev
        | libc::SYS_pwrite64
        | libc::SYS_pwritev
        | libc::SYS_pwritev2
        | libc::SYS_ftruncate
        | libc::SYS_fallocate => Kind::Write,
        libc::SYS_fsync | libc::SYS_fdatasync | libc::SYS_sync_file_range => Kind::Sync,
        libc::SYS_openat if registers.rdx as i32 & libc::O_CREAT != 0 => Kind::Name,
        libc::SYS_rename
        | libc::SYS_renameat
        | libc::SYS_renameat2
        | libc::SYS_unlink
        | libc::SYS_unlinkat
        | libc::SYS_mkdir
        | libc::SYS_mkdirat => Kind::Name,
        _ => return None,
    })
}

/// The file, or for names relative to an open folder that folder.
fn path(main: Pid, registers: &user_regs_struct) -> Option<String> {
    let by_text = |address| text_at(main, address);
    match registers.orig_rax as i64 {
        libc::SYS_rename | libc::SYS_unlink | libc::SYS_mkdir => by_text(registers.rdi),
        libc::SYS_openat | libc::SYS_renameat | libc::SYS_renameat2 | libc::SYS_unlinkat | libc::SYS_mkdirat
            if registers.rdi as i32 == libc::AT_FDCWD =>
        {
            by_text(registers.rsi)
        }
        _ => {
            fs::read_link(format!("/proc/{main}/fd/{}", registers.rdi as i32)).ok()?.into_os_string().into_string().ok()
        }
    }
}

fn text_at(main: Pid, address: u64) -> Option<String> {
    let mut bytes = vec![0; libc::PATH_MAX as usize];
    let read = File::open(format!("/proc/{main}/mem")).and_then(|memory| memory.read_at(&mut bytes, address)).ok()?;
    bytes.truncate(read);
    let end = bytes.iter().position(|byte| *byte == 0)?;
    bytes.truncate(end);
    String::from_utf8(bytes).ok()
}

fn name_of(thread: Pid, main: Pid) -> String {
    let name = fs::read_to_string(format!("/proc/{main}/task/{thread}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}
