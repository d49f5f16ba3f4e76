//! Hands groups to the log thread and takes in what the other threads report: when a group is closed is decided here.

use std::time::Duration;

use tidelog_protocol::{ErrorCode, WireError};
use tidelog_storage::{FillPace, GroupBytes, Job, JobOutcome, Sabotage, Sabotages};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::Engine;
use crate::anticipation::Anticipation;
use crate::checkpointing::Checkpointing;
use crate::events::{Event, LogOutcome};
use crate::sequencer::Supply;
use crate::workers::{HousekeepingWorker, LogWorker};

/// How long after a file could not be prepared it is tried again: soon at first, so that a moment without space costs
/// hardly more than that moment, then twice as long each time, so that a disk that stays full is left in peace.
const SUPPLY_RETRY_MIN: Duration = Duration::from_millis(20);
const SUPPLY_RETRY_MAX: Duration = Duration::from_secs(1);

/// A group of this size is closed although more arrives: a producer that never pauses would otherwise fill its whole window
/// before anything of it is synced, and disk and network would take turns instead of working at the same time.
const GROUP_BYTES: usize = 1 << 20;

/// A log that fills its files faster than this gets files whose room is only taken: zeroing them would keep disk and processor
/// busy about as much as the log itself does.
const HASTE_BYTES_PER_SECOND: f64 = 256e6;
/// One that fills them more slowly than this can wait for the next, even on a disk that is slow to sync.
const LEISURE_BYTES_PER_SECOND: f64 = 32e6;

/// A lone batch up to this size waits for the disk's answer more than for its bytes.
const LONE_BYTES: usize = 16 << 10;

/// While a lone batch is synced its outcome is watched for so long: a good fdatasync, and then it is not worth a core.
const OUTCOME_WATCH: Duration = Duration::from_micros(300);
/// After its answer the producer's next batch is watched for so long: a round trip, and what the producer makes of it.
const NEXT_WATCH: Duration = Duration::from_micros(100);

/// Hands groups to the log thread and takes in what the other threads report.
#[derive(Debug)]
pub(crate) struct Driver {
    log: LogWorker,
    housekeeping: HousekeepingWorker,
    checkpointing: Checkpointing,
    events: UnboundedReceiver<Event>,
    sync_timeout: Duration,
    sabotages: Sabotages,
    in_commit: Option<Commit>,
    /// A lone batch has just been answered: its producer's next one is worth watching for.
    watches_next: bool,
    next: Anticipation,
    is_preparing: bool,
    /// When the last file was asked for, and its bytes.
    prepared: Option<(Instant, u64)>,
    /// Files could not be made: the reserve is to be made whole when they can be again.
    is_short_of_space: bool,
    /// The wait before the next try, if this one fails.
    supply_retry: Duration,
    /// Watching takes a core that somebody else may need if there is only one, and finds nothing if the log is kept by
    /// this very thread.
    has_cores: bool,
}

/// A group that is with the log thread.
#[derive(Debug)]
struct Commit {
    bytes: GroupBytes,
    /// Only one small batch waits for it.
    is_lone: bool,
    /// By then it is done, or the disk hangs.
    deadline: Instant,
}

impl Driver {
    pub(crate) fn new(
        log: LogWorker,
        housekeeping: HousekeepingWorker,
        checkpointing: Checkpointing,
        events: UnboundedReceiver<Event>,
        sync_timeout: Duration,
        sabotages: Sabotages,
    ) -> Self {
        let has_cores = log.is_thread() && std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
        Self {
            log,
            housekeeping,
            checkpointing,
            events,
            sync_timeout,
            sabotages,
            in_commit: None,
            watches_next: false,
            next: Anticipation::new(NEXT_WATCH),
            is_preparing: false,
            prepared: None,
            is_short_of_space: false,
            supply_retry: SUPPLY_RETRY_MIN,
            has_cores,
        }
    }

    /// Syncs what is left and ends the threads. A log thread that hangs is left behind if `waits` is false.
    pub(crate) fn stop(mut self, engine: &Engine, waits: bool) {
        if !waits {
            tracing::warn!("the log is poisoned: its thread may hang in a sync and is left behind");
        }
        drop(self.events);
        self.log.stop(waits);
        let housekeeping = self.housekeeping.stop(waits);
        if waits {
            self.checkpointing.finish(&mut engine.sequencer.borrow_mut(), housekeeping);
        }
    }

    /// Runs until it is told to stop; everything appended is then durable, unless the log is poisoned.
    pub(crate) async fn run(&mut self, engine: &Engine, stop: &Notify) {
        let mut stopping = false;
        loop {
            self.supply(engine);
            if std::mem::take(&mut self.watches_next) {
                self.watch(NEXT_WATCH, || engine.sequencer.borrow().log().has_group()).await;
            }
            self.hand_over(engine).await;
            if stopping && self.in_commit.is_none() {
                return;
            }
            let hangs = async {
                match &self.in_commit {
                    Some(commit) => tokio::time::sleep_until(commit.deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.notified(), if !stopping => stopping = true,
                event = self.events.recv() => match event {
                    Some(event) => self.handle(engine, event),
                    None => return,
                },
                () = engine.appended.notified(), if self.in_commit.is_none() => {}
                () = hangs => {
                    tracing::error!(
                        "fdatasync has taken longer than {:?}: nothing more is acknowledged. The disk hangs; restart the \
                         broker once it answers again, all that was acknowledged is there",
                        self.sync_timeout
                    );
                    self.poison(engine);
                }
            }
        }
    }

    /// Closes the open group when everything that has arrived has been read: closing at the first append would sync a
    /// group of one and make the rest wait for it. A session reads all that it has before it lets go of the thread, so
    /// one alone has no rest. Producers that are expected back are waited for ([`Gathering`](super::Gathering)).
    async fn hand_over(&mut self, engine: &Engine) {
        if self.in_commit.is_some() || !engine.sequencer.borrow().log().has_group() {
            return;
        }
        let mut held_since = None;
        while engine.hub.borrow().sessions() > 1 && engine.sequencer.borrow().log().buffered_bytes() < GROUP_BYTES {
            let before = engine.appends.get();
            tokio::task::yield_now().await;
            if engine.appends.get() != before {
                continue;
            }
            let Some(hold) = engine.gathering.hold().filter(|_| self.has_cores) else { break };
            if held_since.get_or_insert_with(Instant::now).elapsed() >= hold {
                break;
            }
            // Whoever else wants this core gets it.
            std::thread::yield_now();
        }
        let Some(group) = engine.sequencer.borrow_mut().take_group() else { return };
        self.next.end();
        engine.gathering.close();
        let (bytes, bytes_in_group) = (group.share(), group.len());
        engine.counters.write_buffer_bytes.set(engine.sequencer.borrow().undurable_bytes());
        if self.sabotages.has(Sabotage::ServeUnsynced) {
            engine.with_sequencer(|sequencer, hub| sequencer.apply_durable(group.end(), &bytes, hub));
        }
        let is_lone =
            self.has_cores && bytes_in_group <= LONE_BYTES && engine.sequencer.borrow().answers_waiting() == 1;
        self.in_commit = Some(Commit { bytes, is_lone, deadline: Instant::now() + self.sync_timeout });
        self.log.commit(group, is_lone);
        if is_lone {
            self.watch(OUTCOME_WATCH, || false).await;
        }
    }

    /// Looks for news again and again for a while before this thread sleeps. Everything that arrives meanwhile is dealt
    /// with as ever.
    async fn watch(&self, time: Duration, is_over: impl Fn() -> bool) {
        let until = Instant::now() + time;
        while self.events.is_empty() && !is_over() && Instant::now() < until {
            tokio::task::yield_now().await;
            // Whoever else wants this core gets it.
            std::thread::yield_now();
        }
    }

    fn supply(&mut self, engine: &Engine) {
        if self.is_preparing {
            return;
        }
        if let Some(len) = engine.sequencer.borrow().log().spare_wanted() {
            self.is_preparing = true;
            let before = self.prepared.replace((Instant::now(), len));
            let pace = before.map_or(FillPace::Ordinary, |(at, len)| pace(len, at.elapsed()));
            self.housekeeping.run(Job::PrepareSpare { len, pace });
        }
    }

    fn handle(&mut self, engine: &Engine, event: Event) {
        match event {
            Event::Log(LogOutcome::Committed { end, sealed, sync }) => {
                let Some(Commit { bytes, is_lone, .. }) = self.in_commit.take() else { return };
                self.watches_next = is_lone && self.next.comes_soon();
                self.next.begin();
                engine.counters.syncs.add(1);
                engine.counters.log_sync_seconds.observe_duration(sync);
                engine.gathering.answer(sync);
                let now = engine.now().monotonic;
                let waiting = engine.with_sequencer(|sequencer, hub| {
                    sequencer.handle_committed(end, &bytes, now, hub);
                    sequencer.undurable_bytes()
                });
                engine.counters.write_buffer_bytes.set(waiting);
                engine.counters.log_bytes.set(end);
                engine.room.notify_waiters();
                if let Some(sealed) = sealed {
                    self.housekeeping.run(Job::TrimSegment { number: sealed.number, file_len: sealed.file_len });
                    let footers = engine.sequencer.borrow_mut().log_mut().index_mut().take_sealed();
                    footers.into_iter().for_each(|index| self.housekeeping.run(Job::WriteFooter(index)));
                    self.checkpointing.handle_sealed(&mut engine.sequencer.borrow_mut());
                }
            }
            Event::Log(LogOutcome::Poisoned(poisoned)) => {
                tracing::error!("{poisoned}");
                self.poison(engine);
            }
            Event::Housekeeping(job, outcome) => self.handle_housekeeping(engine, &job, outcome),
        }
    }

    fn handle_housekeeping(&mut self, engine: &Engine, job: &Job, outcome: std::io::Result<JobOutcome>) {
        let is_spare = matches!(job, Job::PrepareSpare { .. });
        match outcome {
            Ok(JobOutcome::Spare(spare)) => {
                self.is_preparing = false;
                self.supply_retry = SUPPLY_RETRY_MIN;
                engine.with_sequencer(|sequencer, _| {
                    sequencer.log_mut().put_spare(spare);
                    sequencer.set_supply(Supply::Coming);
                });
                engine.room.notify_waiters();
                if std::mem::take(&mut self.is_short_of_space) {
                    self.housekeeping.run(Job::FillReserve);
                }
            }
            Ok(JobOutcome::Reserve(reserve)) => {
                if let Some(reserve) = reserve {
                    engine.sequencer.borrow_mut().log_mut().put_reserve(reserve);
                    engine.room.notify_waiters();
                }
            }
            Ok(JobOutcome::FooterWritten { segment }) => {
                engine.sequencer.borrow_mut().log_mut().index_mut().footer_written(segment);
            }
            Ok(JobOutcome::Done) => {}
            Err(error) if is_spare => {
                if !std::mem::replace(&mut self.is_short_of_space, true) {
                    tracing::warn!(
                        "the next segment file can't be prepared: {error}; publishes are refused once the active one is \
                         full, and taken again as soon as there is space; producers are opened and streams removed \
                         from the reserve meanwhile"
                    );
                }
                engine.sequencer.borrow_mut().set_supply(Supply::Failed);
                let has_reserve = engine.sequencer.borrow().log().has_reserve();
                if !has_reserve {
                    self.housekeeping.run(Job::TakeReserve);
                }
                engine.room.notify_waiters();
                self.retry_supply(job);
            }
            Err(error) if matches!(job, Job::FillReserve) => {
                if !std::mem::replace(&mut self.is_short_of_space, true) {
                    tracing::warn!("the reserve for a full disk can't be made whole: {error}; it is tried again");
                }
            }
            // Derived files and leftovers: the next start tries again.
            Err(error) => tracing::warn!("{job} failed and is left to the next start: {error}"),
        }
    }

    /// Tries again later; until then `is_preparing` keeps a second try from starting.
    fn retry_supply(&mut self, job: &Job) {
        let Job::PrepareSpare { len, pace } = *job else { return };
        let jobs = self.housekeeping.jobs();
        let wait = self.supply_retry;
        self.supply_retry = (wait * 2).min(SUPPLY_RETRY_MAX);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(wait).await;
            // The reserve first: it is small, and what helps most.
            jobs.send(Job::FillReserve);
            jobs.send(Job::PrepareSpare { len, pace });
        });
    }

    fn poison(&mut self, engine: &Engine) {
        self.in_commit = None;
        let failure = WireError::new(
            ErrorCode::Poisoned,
            "the broker's log refuses writes after a failure; what was not answered is not known to be stored",
        );
        engine.with_sequencer(|sequencer, hub| {
            sequencer.poison();
            hub.fail_sessions(&failure);
        });
        engine.monitor.poisoned();
        engine.room.notify_waiters();
    }
}

/// The pace of a log that has filled so many bytes in this time.
fn pace(len: u64, took: Duration) -> FillPace {
    match len as f64 {
        bytes if bytes > HASTE_BYTES_PER_SECOND * took.as_secs_f64() => FillPace::Haste,
        bytes if bytes < LEISURE_BYTES_PER_SECOND * took.as_secs_f64() => FillPace::Leisure,
        _ => FillPace::Ordinary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_file_is_made_at_the_pace_at_which_the_log_fills_them() {
        for (mib, ms, expected) in [
            (64, 0, FillPace::Haste),
            (64, 200, FillPace::Haste),
            (1, 1, FillPace::Haste),
            (64, 300, FillPace::Ordinary),
            (64, 2_000, FillPace::Ordinary),
            (64, 2_200, FillPace::Leisure),
            (1, 1_000, FillPace::Leisure),
        ] {
            assert_eq!(pace(mib << 20, Duration::from_millis(ms)), expected, "{mib} MiB in {ms} ms");
        }
    }
}
