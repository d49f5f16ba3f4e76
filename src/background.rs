//! The two threads that wait for the disk so that nobody else has to: housekeeping, and reads for consumers that are
//! behind.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tidelog_storage::medium::Medium;
use tidelog_storage::{ColdReader, Housekeeping, Job, ReadError, ReadOutcome, ReadPlan};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::counters::Counters;
use crate::events::Event;
use crate::workers::ReadReply;

/// How often the free space is looked at when nothing else is to do.
const FREE_SPACE_INTERVAL: Duration = Duration::from_secs(5);

/// Runs jobs in order.
#[derive(Debug)]
pub(crate) struct HousekeepingThread {
    jobs: Sender<Job>,
    thread: JoinHandle<Housekeeping>,
}

impl HousekeepingThread {
    pub(crate) fn start(
        housekeeping: Housekeeping,
        medium: Arc<dyn Medium>,
        counters: Arc<Counters>,
        events: UnboundedSender<Event>,
    ) -> std::io::Result<Self> {
        let (jobs, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("tidelog-files".to_owned())
            .spawn(move || keep_house(housekeeping, medium.as_ref(), &counters, &receiver, &events))?;
        Ok(Self { jobs, thread })
    }

    /// Hands over a job. The outcome comes as an event.
    pub(crate) fn run(&self, job: Job) {
        // The thread ends only when this end is dropped.
        let _ = self.jobs.send(job);
    }

    /// Where jobs go, for one that is to be handed over later.
    pub(crate) fn jobs(&self) -> Sender<Job> {
        self.jobs.clone()
    }

    /// Finishes the job at hand and the footers, and ends the thread; returns what did the jobs. With `waits` false a thread
    /// that hangs is left behind.
    pub(crate) fn stop(self, waits: bool) -> Option<Housekeeping> {
        drop(self.jobs);
        if !waits {
            return None;
        }
        let ended = self.thread.join();
        if ended.is_err() {
            tracing::error!("the housekeeping thread panicked");
        }
        ended.ok()
    }
}

fn keep_house(
    mut housekeeping: Housekeeping,
    medium: &dyn Medium,
    counters: &Counters,
    jobs: &Receiver<Job>,
    events: &UnboundedSender<Event>,
) -> Housekeeping {
    loop {
        if let Ok(free) = medium.free_bytes() {
            counters.disk_free_bytes.set(free);
        }
        match jobs.recv_timeout(FREE_SPACE_INTERVAL) {
            Ok(job) => {
                let outcome = housekeeping.run(&job);
                if events.send(Event::Housekeeping(job, outcome)).is_err() {
                    write_footers(&mut housekeeping, jobs);
                    return housekeeping;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return housekeeping,
        }
    }
}

/// Of all that waits when the broker stops only the footers are written: they are small, and a start reads the whole
/// segment that has none.
fn write_footers(housekeeping: &mut Housekeeping, jobs: &Receiver<Job>) {
    for job in jobs.try_iter().filter(|job| matches!(job, Job::WriteFooter(_))) {
        if let Err(error) = housekeeping.run(&job) {
            tracing::warn!("{job} failed and is left to the next start: {error}");
        }
    }
}

/// A read for a consumer that is behind.
#[derive(Debug)]
pub(crate) struct ReadRequest {
    pub(crate) plan: ReadPlan,
    pub(crate) visible_end: u64,
    pub(crate) bytes_max: usize,
    pub(crate) reply: oneshot::Sender<(ReadPlan, Result<Vec<ReadOutcome>, ReadError>)>,
}

/// Reads from segment files.
#[derive(Debug)]
pub(crate) struct ReadThread {
    requests: Sender<ReadRequest>,
    thread: JoinHandle<()>,
}

impl ReadThread {
    pub(crate) fn start(mut reader: ColdReader) -> std::io::Result<Self> {
        let (requests, receiver) = channel::<ReadRequest>();
        let thread = std::thread::Builder::new().name("tidelog-read".to_owned()).spawn(move || {
            for mut request in receiver {
                let outcome = reader.read(&mut request.plan, request.visible_end, request.bytes_max);
                // Whoever asked may be gone.
                let _ = request.reply.send((request.plan, outcome));
            }
        })?;
        Ok(Self { requests, thread })
    }

    /// Asks for a read along `plan`.
    pub(crate) fn read(&self, plan: ReadPlan, visible_end: u64, bytes_max: usize) -> ReadReply {
        let (reply, receiver) = oneshot::channel();
        // If the thread is gone the reply is dropped, which the receiver sees.
        let _ = self.requests.send(ReadRequest { plan, visible_end, bytes_max, reply });
        receiver
    }

    /// Ends the thread.
    pub(crate) fn stop(self) {
        drop(self.requests);
        if self.thread.join().is_err() {
            tracing::error!("the read thread panicked");
        }
    }
}
