//! The thread that writes and syncs the log. One group at a time; a shell around [`Writer`].

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tidelog_storage::{Group, Poisoned, Sealed, Writer};
use tokio::sync::mpsc::UnboundedSender;

use crate::clock::Clock;
use crate::events::Event;

/// After this long without a group the last watermark is synced by itself.
const QUIET: Duration = Duration::from_millis(5);

/// A group is durable, or it is not known whether it is.
#[derive(Debug)]
pub(crate) enum LogOutcome {
    /// Durable up to here.
    Committed {
        /// The durable position.
        end: u64,
        /// The segment that was sealed on the way.
        sealed: Option<Sealed>,
        /// How long fdatasync took.
        sync: Duration,
    },
    /// No further group will be taken.
    Poisoned(Poisoned),
}

/// The network thread's end of it.
#[derive(Debug)]
pub(crate) struct LogThread {
    groups: Sender<Group>,
    thread: JoinHandle<()>,
}

impl LogThread {
    pub(crate) fn start(
        writer: Writer,
        clock: Arc<dyn Clock>,
        events: UnboundedSender<Event>,
    ) -> std::io::Result<LogThread> {
        let (groups, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("tidelog-log".to_owned())
            .spawn(move || run(writer, clock.as_ref(), &receiver, &events))?;
        Ok(LogThread { groups, thread })
    }

    /// Hands over a group. The outcome comes as an event.
    pub(crate) fn commit(&self, group: Group) {
        // The thread ends early only when poisoned, and it has said so then.
        let _ = self.groups.send(group);
    }

    /// Syncs what is left and ends the thread. With `waits` false a thread that hangs in a sync is left behind.
    pub(crate) fn stop(self, waits: bool) {
        drop(self.groups);
        if waits && self.thread.join().is_err() {
            tracing::error!("the log thread panicked");
        }
    }
}

fn run(mut writer: Writer, clock: &dyn Clock, groups: &Receiver<Group>, events: &UnboundedSender<Event>) {
    loop {
        let group = match writer.is_dirty() {
            true => groups.recv_timeout(QUIET),
            false => groups.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let outcome = match group {
            Ok(mut group) => commit(&mut writer, &mut group, clock),
            Err(RecvTimeoutError::Timeout) => match writer.quiet() {
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
