//! Everything of a broker but its way in: recovered, put together, run and stopped. The same whether threads wait for the
//! disk or tasks do, and whatever the connections come through.

use std::rc::Rc;
use std::sync::Arc;

use tidelog_protocol::{MediumKind, PROTOCOL_VERSION, Welcome};
use tidelog_storage::medium::Medium;
use tidelog_storage::{
    CheckpointPairs, Entropy, Fold, LogOptions, OpenedLog, RecoveryReport, Replayed, Sabotage, Sabotages, open,
    open_from,
};
use tokio::sync::Notify;

use crate::broker::StartError;
use crate::checkpointing::{Checkpointing, checkpoints_of};
use crate::clock::Clock;
use crate::config::CheckedConfig;
use crate::counters::Counters;
use crate::engine::{Driver, Engine, EngineStart};
use crate::monitor_link::MonitorLink;
use crate::report;
use crate::sequencer::{Sequencer, SequencerStart};
use crate::server::measure::SyncMeter;
use crate::server::peers::Peers;
use crate::state::{self, ReplayError, State};
use crate::workers::{HousekeepingWorker, LogWorker, ReadWorker, Shell};

/// Turns of the runtime that answers get to leave before connections are closed.
const ANSWER_TURNS: usize = 64;

/// What a broker is made with.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: CheckedConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Entropy,
    pub(crate) sabotages: Sabotages,
    pub(crate) counters: Arc<Counters>,
    /// Told when the broker is to stop.
    pub(crate) stop: Arc<Notify>,
    pub(crate) link: MonitorLink,
}

/// A log that was opened, and its fold.
#[derive(Debug)]
pub(crate) struct Recovered {
    medium: Arc<dyn Medium>,
    log: OpenedLog,
    state: State,
    checkpointing: Checkpointing,
}

impl Recovered {
    pub(crate) const fn report(&self) -> &RecoveryReport {
        &self.log.report
    }
}

/// Opens the log and folds it, from the checkpoint on if there is one.
pub(crate) fn recover(parts: &Parts, medium: &Arc<dyn Medium>) -> Result<Recovered, StartError> {
    let Parts { config, sabotages, .. } = parts;
    let options = LogOptions {
        segment_first_bytes: config.segment_first_bytes,
        segment_bytes: config.segment_bytes,
        payload_bytes_max: config.limits.batch_bytes_max() as u32,
        entropy: parts.entropy.clone(),
        sabotages: *sabotages,
        ..LogOptions::default()
    };
    let mut state = State::new(*sabotages);
    let wall_ms = parts.clock.wall_ms();
    let mut contradictions = Vec::new();
    let mut checkpointing = Checkpointing::new(checkpoints_of(config), config.checkpoint_bytes);
    let mut folding = Folding { state: &mut state, contradictions: &mut contradictions };
    let log = match checkpointing.store_mut() {
        Some(checkpoints) => open_from(medium, &options, wall_ms, checkpoints, &mut folding)?,
        None => open(medium, &options, wall_ms, &mut |replayed| folding.take(replayed))?,
    };
    state.apply_end(log.report.end);
    // What contradicts earlier entries follows from holes between them. Once those are repaired, it is known.
    if state.has_known_holes() && state.unrepaired_holes().is_empty() {
        contradictions.iter().for_each(|error| tracing::debug!("behind repaired damage: {error}"));
    } else {
        contradictions.iter().for_each(|error| tracing::error!("damage in the log: {error}"));
    }
    if sabotages.has(Sabotage::ForgetProducers) {
        state.producers.forget_sequences();
    }
    tell(&log.report, &state, medium);
    Ok(Recovered { medium: Arc::clone(medium), log, state, checkpointing })
}

/// A state that a log is folded into.
struct Folding<'s> {
    state: &'s mut State,
    contradictions: &'s mut Vec<ReplayError>,
}

impl Fold for Folding<'_> {
    fn restore(&mut self, pairs: CheckpointPairs) -> Result<(), String> {
        self.state.restore(pairs)
    }

    fn take(&mut self, replayed: Replayed<'_>) {
        fold(self.state, replayed, self.contradictions);
    }
}

/// Contradictions kept for telling; more of them say nothing more.
const CONTRADICTIONS_MAX: usize = 1_000;

fn fold(state: &mut State, replayed: Replayed<'_>, contradictions: &mut Vec<ReplayError>) {
    match replayed {
        Replayed::Hole(hole) => state.apply_hole(hole),
        Replayed::Entry { head, .. } => match state::changes(head) {
            Ok(changes) => {
                for change in changes {
                    if let Err(error) = state.apply(&change)
                        && contradictions.len() < CONTRADICTIONS_MAX
                    {
                        contradictions.push(error);
                    }
                }
            }
            Err(error) => tracing::error!("damage in the log: {error}"),
        },
    }
}

/// The recovery report, in the log.
fn tell(report: &RecoveryReport, state: &State, medium: &Arc<dyn Medium>) {
    tracing::info!(
        log_id = %report.log_id,
        start = report.start_count,
        entries = report.entries,
        bytes_read = report.bytes_read,
        checkpoint = report::checkpoint_words(&report.checkpoint),
        segments = report.segments,
        end = report.end,
        "opened {}",
        medium.describe()
    );
    for line in report::report_lines(report, state) {
        tracing::warn!("{line}");
    }
}

/// The parts of a running broker.
#[derive(Debug)]
pub(crate) struct Assembly {
    engine: Rc<Engine>,
    driver: Driver,
    /// Held until everything else is gone.
    lock: Box<dyn std::any::Any + Send + Sync>,
}

impl Assembly {
    /// Puts a broker together on what was recovered. With [`Shell::Tasks`] within a `LocalSet`, which is to be dropped
    /// before [`Self::stop`].
    pub(crate) fn start(
        parts: &Parts,
        recovered: Recovered,
        peers: Arc<Peers>,
        shell: &Shell,
    ) -> Result<Self, StartError> {
        let Parts { config, clock, counters, sabotages, link, .. } = parts;
        let Recovered { medium, log, mut state, mut checkpointing } = recovered;
        checkpointing.begin(&log, &mut state, shell);
        let (event_sender, events) = tokio::sync::mpsc::unbounded_channel();
        let log_worker =
            LogWorker::start(shell, log.writer, Arc::clone(clock), config.sync_timeout, event_sender.clone())
                .map_err(StartError::Thread)?;
        let housekeeping =
            HousekeepingWorker::start(shell, log.housekeeping, Arc::clone(&medium), Arc::clone(counters), event_sender)
                .map_err(StartError::Thread)?;
        log.jobs.into_iter().for_each(|job| housekeeping.run(job));
        let reads = ReadWorker::start(shell, log.reader).map_err(StartError::Thread)?;

        counters.durable_position.set(log.durable);
        counters.log_bytes.set(log.durable);
        let welcome = Welcome {
            version: PROTOCOL_VERSION,
            broker: concat!("tidelog/", env!("CARGO_PKG_VERSION")).to_owned(),
            log_id: log.report.log_id.to_string(),
            start_count: log.report.start_count,
            medium: if medium.is_persistent() { MediumKind::Disk } else { MediumKind::Memory },
            limits: config.limits.clone(),
            time_ms: 0,
        };
        report::count(&log.report, &state, counters);
        link.set_status(&welcome, &log.report, &state);
        let mut sequencer = Sequencer::new(SequencerStart {
            state,
            log: log.appender,
            durable_position: log.durable,
            time: log.time,
            limits: config.limits.clone(),
            counters: Arc::clone(counters),
            sabotages: *sabotages,
        });
        sequencer.set_durable_stamp(log.stamp);
        let has_disk = medium.is_persistent() && matches!(shell, Shell::Threads);
        let syncs = SyncMeter::new(has_disk.then(|| Arc::clone(&medium)), Arc::clone(clock), Arc::clone(counters));
        let engine = Rc::new(Engine::new(EngineStart {
            sequencer,
            reads,
            syncs,
            counters: Arc::clone(counters),
            limits: config.limits.clone(),
            peers,
            welcome,
            clock: Arc::clone(clock),
            time: log.time,
            write_buffer_bytes: config.write_buffer_bytes,
            monitor: link.clone(),
        }));
        let driver = Driver::new(log_worker, housekeeping, checkpointing, events, config.sync_timeout, *sabotages);
        Ok(Self { engine, driver, lock: log.lock })
    }

    /// What sessions are served by.
    pub(crate) fn engine(&self) -> Rc<Engine> {
        Rc::clone(&self.engine)
    }

    /// Runs until the broker is told to stop, or `accepting` ends: what was accepted is then durable, unless the log is
    /// poisoned, and its answers have had their turns to leave.
    pub(crate) async fn run(&mut self, parts: &Parts, accepting: impl Future<Output = ()>) {
        let Self { engine, driver, .. } = self;
        let stop = Notify::new();
        let closing = async {
            parts.stop.notified().await;
            parts.link.stopping();
            // No new batch from here on; those that were taken become durable and are answered.
            engine.stop_taking();
            stop.notify_one();
        };
        let driving = driver.run(engine, &stop);
        tokio::select! {
            biased;
            ((), ()) = async { tokio::join!(driving, closing) } => {}
            () = accepting => {}
        }
        // One turn for the answers of the last group to be written out.
        for _ in 0..ANSWER_TURNS {
            tokio::task::yield_now().await;
        }
    }

    /// Syncs what is left and ends what waits for the disk. The sessions must be gone.
    pub(crate) fn stop(self) {
        let Self { engine, driver, lock } = self;
        let is_poisoned = engine.sequencer.borrow().is_poisoned();
        driver.stop(&engine, !is_poisoned);
        match Rc::try_unwrap(engine) {
            Ok(engine) => engine.stop(!is_poisoned),
            Err(_) => tracing::error!("a session has outlived the broker"),
        }
        drop(lock);
    }
}
