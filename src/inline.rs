//! Log, housekeeping and reads as tasks on the network thread: a whole broker on one thread, for simulations. The disk is
//! then a simulated one that never really waits; how long its work seems to take is up to a [`Pace`].

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use tidelog_storage::medium::Medium;
use tidelog_storage::{ColdReader, Group, Housekeeping, Job, Poisoned, ReadPlan, Writer};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::background::ReadRequest;
use crate::clock::Clock;
use crate::counters::Counters;
use crate::events::{Event, LogOutcome};
use crate::log_thread::QUIET;
use crate::workers::ReadReply;

/// A piece of work that a disk has just done, well or badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskWork {
    /// The bytes of a group were written.
    Write,
    /// They were synced; nobody knows of it yet.
    Sync,
    /// The watermark behind them was written, or an older one synced.
    Watermark,
    /// A file beside the log was prepared, written or removed.
    File,
    /// A block was read for a consumer.
    Read,
}

/// How time passes while the disk works, in a broker without threads.
///
/// Nobody learns how the work ended before the pause is over; meanwhile the rest of the broker goes on. A pause that never
/// ends is a broker that dies there.
pub trait Pace: fmt::Debug {
    /// Waits behind `work`.
    fn pause(&self, work: DiskWork) -> Pin<Box<dyn Future<Output = ()> + '_>>;

    /// A group with so many batches of records is taken up; all that is written and synced until the next one is its.
    fn take_up(&self, batches: u64) {
        let _ = batches;
    }

    /// Waits before a group is written or synced; not called before any other work.
    fn before(&self, work: DiskWork) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        let _ = work;
        Box::pin(std::future::ready(()))
    }
}

/// The least pause: everything else that can go on does so first.
#[derive(Debug, Clone, Copy, Default)]
pub struct OneTurn;

impl Pace for OneTurn {
    fn pause(&self, _: DiskWork) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(tokio::task::yield_now())
    }
}

/// Writes and syncs the log.
#[derive(Debug)]
pub(crate) struct LogTask {
    groups: UnboundedSender<Group>,
    writer: Rc<RefCell<Writer>>,
}

impl LogTask {
    pub(crate) fn start(
        writer: Writer,
        clock: Arc<dyn Clock>,
        events: UnboundedSender<Event>,
        pace: Rc<dyn Pace>,
    ) -> Self {
        let (groups, receiver) = unbounded_channel();
        let writer = Rc::new(RefCell::new(writer));
        let log = Log { writer: Rc::clone(&writer), clock, pace };
        tokio::task::spawn_local(log.run(receiver, events));
        Self { groups, writer }
    }

    pub(crate) fn commit(&self, group: Group) {
        // The task ends early only when poisoned, and it has said so then.
        let _ = self.groups.send(group);
    }

    /// Syncs what is left, unless the log is poisoned.
    pub(crate) fn stop(self, waits: bool) {
        if waits && let Err(poisoned) = self.writer.borrow_mut().quiet() {
            tracing::error!("{poisoned}");
        }
    }
}

struct Log {
    writer: Rc<RefCell<Writer>>,
    clock: Arc<dyn Clock>,
    pace: Rc<dyn Pace>,
}

impl Log {
    async fn run(self, mut groups: UnboundedReceiver<Group>, events: UnboundedSender<Event>) {
        loop {
            let is_dirty = self.writer.borrow().is_dirty();
            let group = match is_dirty {
                true => tokio::time::timeout(QUIET, groups.recv()).await,
                false => Ok(groups.recv().await),
            };
            let outcome = match group {
                Ok(Some(mut group)) => self.commit(&mut group).await.unwrap_or_else(LogOutcome::Poisoned),
                Ok(None) => return,
                Err(_) => {
                    let synced = self.writer.borrow_mut().quiet();
                    self.pace.pause(DiskWork::Watermark).await;
                    match synced {
                        Ok(()) => continue,
                        Err(poisoned) => LogOutcome::Poisoned(poisoned),
                    }
                }
            };
            let ends = matches!(outcome, LogOutcome::Poisoned(_));
            if events.send(Event::Log(outcome)).is_err() || ends {
                return;
            }
        }
    }

    async fn commit(&self, group: &mut Group) -> Result<LogOutcome, Poisoned> {
        self.pace.take_up(group.batches());
        self.pace.before(DiskWork::Write).await;
        let written = self.writer.borrow_mut().write(group);
        self.pace.pause(DiskWork::Write).await;
        let sealed = written?;
        self.pace.before(DiskWork::Sync).await;
        let before = self.clock.monotonic();
        let synced = self.writer.borrow_mut().sync();
        self.pace.pause(DiskWork::Sync).await;
        synced?;
        let sync = self.clock.monotonic().saturating_sub(before);
        let proven = self.writer.borrow_mut().prove(group);
        self.pace.pause(DiskWork::Watermark).await;
        proven?;
        Ok(LogOutcome::Committed { end: group.end(), sealed, sync })
    }
}

/// Runs jobs in order.
#[derive(Debug)]
pub(crate) struct HousekeepingTask {
    jobs: UnboundedSender<Job>,
}

impl HousekeepingTask {
    pub(crate) fn start(
        mut housekeeping: Housekeeping,
        medium: Arc<dyn Medium>,
        counters: Arc<Counters>,
        events: UnboundedSender<Event>,
        pace: Rc<dyn Pace>,
    ) -> Self {
        let (jobs, mut receiver) = unbounded_channel();
        tokio::task::spawn_local(async move {
            while let Some(job) = receiver.recv().await {
                if let Ok(free) = medium.free_bytes() {
                    counters.disk_free_bytes.set(free);
                }
                let outcome = housekeeping.run(&job);
                pace.pause(DiskWork::File).await;
                if events.send(Event::Housekeeping(job, outcome)).is_err() {
                    return;
                }
            }
        });
        Self { jobs }
    }

    pub(crate) fn run(&self, job: Job) {
        // The task ends only with the broker.
        let _ = self.jobs.send(job);
    }

    pub(crate) fn jobs(&self) -> UnboundedSender<Job> {
        self.jobs.clone()
    }
}

/// Reads from segment files.
#[derive(Debug)]
pub(crate) struct ReadTask {
    requests: UnboundedSender<ReadRequest>,
}

impl ReadTask {
    pub(crate) fn start(mut reader: ColdReader, pace: Rc<dyn Pace>) -> Self {
        let (requests, mut receiver) = unbounded_channel::<ReadRequest>();
        tokio::task::spawn_local(async move {
            while let Some(mut request) = receiver.recv().await {
                let outcome = reader.read(&mut request.plan, request.visible_end, request.bytes_max);
                pace.pause(DiskWork::Read).await;
                // Whoever asked may be gone.
                let _ = request.reply.send((request.plan, outcome));
            }
        });
        Self { requests }
    }

    pub(crate) fn read(&self, plan: ReadPlan, visible_end: u64, bytes_max: usize) -> ReadReply {
        let (reply, receiver) = oneshot::channel();
        // If the task is gone the reply is dropped, which the receiver sees.
        let _ = self.requests.send(ReadRequest { plan, visible_end, bytes_max, reply });
        receiver
    }
}
