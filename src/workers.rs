//! Who waits for the disk: the log's writer, housekeeping, and reads for consumers that are behind.
//!
//! Each is a steppable part of `tidelog-storage` in one of two shells: a thread of its own (a broker that serves), or a
//! task on the network thread (a broker that is simulated, with everything on one thread). The engine knows only these
//! ends, so it is the same in both.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidelog_storage::medium::Medium;
use tidelog_storage::{ColdReader, Group, Housekeeping, Job, ReadError, ReadOutcome, ReadPlan, Writer};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::background::{HousekeepingThread, ReadThread};
use crate::clock::Clock;
use crate::counters::Counters;
use crate::events::Event;
use crate::inline::{HousekeepingTask, LogTask, Pace, ReadTask};
use crate::log_thread::LogThread;

/// In which shell the disk is waited for.
#[derive(Debug, Clone)]
pub(crate) enum Shell {
    /// A thread for each.
    Threads,
    /// Tasks of the present `LocalSet`, which pause as this says.
    Tasks(Rc<dyn Pace>),
}

/// What a read for a consumer comes back with: the plan, moved on, and what was found.
pub(crate) type ReadReply = oneshot::Receiver<(ReadPlan, Result<Vec<ReadOutcome>, ReadError>)>;

/// Writes and syncs the log, one group at a time.
#[derive(Debug)]
pub(crate) enum LogWorker {
    Thread(LogThread),
    Task(LogTask),
}

impl LogWorker {
    pub(crate) fn start(
        shell: &Shell,
        writer: Writer,
        clock: Arc<dyn Clock>,
        sync_timeout: Duration,
        events: UnboundedSender<Event>,
    ) -> std::io::Result<Self> {
        Ok(match shell {
            Shell::Threads => Self::Thread(LogThread::start(writer, clock, sync_timeout, events)?),
            Shell::Tasks(pace) => Self::Task(LogTask::start(writer, clock, events, Rc::clone(pace))),
        })
    }

    /// Whether it runs beside the network thread, so that its news can be watched for.
    pub(crate) const fn is_thread(&self) -> bool {
        matches!(self, Self::Thread(_))
    }

    /// Hands over a group; `is_lone` if only one batch waits for it. The outcome comes as an event.
    pub(crate) fn commit(&self, group: Group, is_lone: bool) {
        match self {
            Self::Thread(thread) => thread.commit(group, is_lone),
            Self::Task(task) => task.commit(group),
        }
    }

    /// Syncs what is left and ends. With `waits` false a thread that hangs in a sync is left behind.
    pub(crate) fn stop(self, waits: bool) {
        match self {
            Self::Thread(thread) => thread.stop(waits),
            Self::Task(task) => task.stop(waits),
        }
    }
}

/// Does jobs beside the log, in order.
#[derive(Debug)]
pub(crate) enum HousekeepingWorker {
    Thread(HousekeepingThread),
    Task(HousekeepingTask),
}

impl HousekeepingWorker {
    pub(crate) fn start(
        shell: &Shell,
        housekeeping: Housekeeping,
        medium: Arc<dyn Medium>,
        counters: Arc<Counters>,
        events: UnboundedSender<Event>,
    ) -> std::io::Result<Self> {
        Ok(match shell {
            Shell::Threads => Self::Thread(HousekeepingThread::start(housekeeping, medium, counters, events)?),
            Shell::Tasks(pace) => {
                Self::Task(HousekeepingTask::start(housekeeping, medium, counters, events, Rc::clone(pace)))
            }
        })
    }

    /// Hands over a job. The outcome comes as an event.
    pub(crate) fn run(&self, job: Job) {
        match self {
            Self::Thread(thread) => thread.run(job),
            Self::Task(task) => task.run(job),
        }
    }

    /// Where jobs go, for one that is to be handed over later.
    pub(crate) fn jobs(&self) -> JobSender {
        match self {
            Self::Thread(thread) => JobSender::Thread(thread.jobs()),
            Self::Task(task) => JobSender::Task(task.jobs()),
        }
    }

    /// Ends once the job at hand is done; returns what did the jobs, if it can be had. With `waits` false a thread that
    /// hangs is left behind.
    pub(crate) fn stop(self, waits: bool) -> Option<Housekeeping> {
        match self {
            Self::Thread(thread) => thread.stop(waits),
            // Its task ends with the set that it runs in; what it has not done is left to the next start.
            Self::Task(task) => {
                drop(task);
                None
            }
        }
    }
}

/// Where jobs go.
#[derive(Debug, Clone)]
pub(crate) enum JobSender {
    Thread(std::sync::mpsc::Sender<Job>),
    Task(UnboundedSender<Job>),
}

impl JobSender {
    /// Hands over a job, if there is still somebody to do it.
    pub(crate) fn send(&self, job: Job) {
        // Whoever did the jobs is gone only when the broker stops.
        match self {
            Self::Thread(jobs) => drop(jobs.send(job)),
            Self::Task(jobs) => drop(jobs.send(job)),
        }
    }
}

/// Reads from segment files.
#[derive(Debug)]
pub(crate) enum ReadWorker {
    Thread(ReadThread),
    Task(ReadTask),
}

impl ReadWorker {
    pub(crate) fn start(shell: &Shell, reader: ColdReader) -> std::io::Result<Self> {
        Ok(match shell {
            Shell::Threads => Self::Thread(ReadThread::start(reader)?),
            Shell::Tasks(pace) => Self::Task(ReadTask::start(reader, Rc::clone(pace))),
        })
    }

    /// Asks for a read along `plan`.
    pub(crate) fn read(&self, plan: ReadPlan, visible_end: u64, bytes_max: usize) -> ReadReply {
        match self {
            Self::Thread(thread) => thread.read(plan, visible_end, bytes_max),
            Self::Task(task) => task.read(plan, visible_end, bytes_max),
        }
    }

    /// Ends it.
    pub(crate) fn stop(self) {
        match self {
            Self::Thread(thread) => thread.stop(),
            Self::Task(task) => drop(task),
        }
    }
}
