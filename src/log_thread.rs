//! The thread that writes and syncs the log. One group at a time; a shell around [`Writer`].

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tidelog_storage::{Group, Poisoned, Writer};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use crate::anticipation::Anticipation;
use crate::clock::Clock;
use crate::events::{Event, LogOutcome};

/// After this long without a group the last watermark is synced by itself.
pub(crate) const QUIET: Duration = Duration::from_millis(5);

/// After a lone batch the next one is watched for so long before the thread sleeps: a producer that waits for each answer
/// sends its next record within this, and waking a sleeping thread on an idle core takes a third of an fdatasync.
const WATCH: Duration = Duration::from_micros(100);

/// A group to commit.
#[derive(Debug)]
struct Task {
    group: Group,
    /// Only one producer is waiting for it.
    is_lone: bool,
}

/// The network thread's end of it.
#[derive(Debug)]
pub(crate) struct LogThread {
    tasks: Sender<Task>,
    thread: JoinHandle<()>,
}

impl LogThread {
    pub(crate) fn start(
        writer: Writer,
        clock: Arc<dyn Clock>,
        sync_timeout: Duration,
        events: UnboundedSender<Event>,
    ) -> std::io::Result<LogThread> {
        let (tasks, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("tidelog-log".to_owned())
            .spawn(move || run(writer, clock.as_ref(), sync_timeout, &receiver, &events))?;
        Ok(LogThread { tasks, thread })
    }

    /// Hands over a group; `is_lone` if only one batch waits for it. The outcome comes as an event.
    pub(crate) fn commit(&self, group: Group, is_lone: bool) {
        // The thread ends early only when poisoned, and it has said so then.
        let _ = self.tasks.send(Task { group, is_lone });
    }

    /// Syncs what is left and ends the thread. With `waits` false a thread that hangs in a sync is left behind.
    pub(crate) fn stop(self, waits: bool) {
        drop(self.tasks);
        if waits && self.thread.join().is_err() {
            tracing::error!("the log thread panicked");
        }
    }
}

fn run(
    mut writer: Writer,
    clock: &dyn Clock,
    sync_timeout: Duration,
    tasks: &Receiver<Task>,
    events: &UnboundedSender<Event>,
) {
    let (mut was_lone, mut next) = (false, Anticipation::new(WATCH));
    loop {
        let watched = if was_lone && next.comes_soon() { watch(tasks) } else { None };
        let task = match watched {
            Some(task) => Ok(task),
            None if writer.is_dirty() => tasks.recv_timeout(QUIET),
            None => tasks.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        if let Ok(task) = &task {
            was_lone = task.is_lone;
            next.end();
        } else {
            was_lone = false;
        }
        let outcome = match task {
            Ok(mut task) => {
                let outcome = commit(&mut writer, &mut task.group, clock);
                next.begin();
                outcome
            }
            // Nobody waits for this sync, so that nobody but this thread notices if it hangs.
            Err(RecvTimeoutError::Timeout) => match quiet(&mut writer, clock, sync_timeout) {
                Ok(()) => continue,
                Err(poisoned) => LogOutcome::Poisoned(poisoned),
            },
            Err(RecvTimeoutError::Disconnected) => {
                if let Err(poisoned) = writer.quiet() {
                    tracing::error!("{poisoned}");
                }
                return;
            }
        };
        let ends = matches!(outcome, LogOutcome::Poisoned(_));
        if events.send(Event::Log(outcome)).is_err() || ends {
            return;
        }
    }
}

fn quiet(writer: &mut Writer, clock: &dyn Clock, sync_timeout: Duration) -> Result<(), Poisoned> {
    let before = clock.monotonic();
    writer.quiet()?;
    let took = clock.monotonic().saturating_sub(before);
    if took > sync_timeout { Err(writer.distrust(took)) } else { Ok(()) }
}

/// The next task, if it comes within [`WATCH`].
fn watch(tasks: &Receiver<Task>) -> Option<Task> {
    let until = Instant::now() + WATCH;
    loop {
        match tasks.try_recv() {
            Ok(task) => return Some(task),
            // Whoever else wants this core gets it.
            Err(TryRecvError::Empty) if Instant::now() < until => std::thread::yield_now(),
            Err(_) => return None,
        }
    }
}

fn commit(writer: &mut Writer, group: &mut Group, clock: &dyn Clock) -> LogOutcome {
    let steps = |writer: &mut Writer, group: &mut Group| {
        let sealed = writer.write(group)?;
        let before = clock.monotonic();
        writer.sync()?;
        let sync = clock.monotonic().saturating_sub(before);
        writer.prove(group)?;
        Ok(LogOutcome::Committed { end: group.end(), sealed, sync })
    };
    steps(writer, group).unwrap_or_else(LogOutcome::Poisoned)
}
