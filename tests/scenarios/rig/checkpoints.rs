//! Checkpoints of the rig's broker: saved when a scenario says so, kept in memory that outlives it. Each start goes on from
//! the newest one, and is held against a start that reads the whole log.

use std::sync::Arc;

use tidelog::state::{Change, State, changes};
use tidelog_storage::medium::{Medium, SimulatedMedium};
use tidelog_storage::{
    CheckpointFate, CheckpointPairs, CheckpointSave, CheckpointStore as _, Fold, LogOptions, MemoryCheckpoints,
    OpenedLog, RecoveryReport, Replayed, Sabotages, SaveError, open,
};

use super::Rig;

/// A log's fold, and what in it contradicts itself.
pub(super) struct Folded {
    pub(super) changes: Vec<Change>,
    pub(super) state: State,
    pub(super) contradictions: Vec<String>,
}

impl Folded {
    pub(super) fn new(sabotages: Sabotages) -> Self {
        Self { changes: Vec::new(), state: State::new(sabotages), contradictions: Vec::new() }
    }
}

impl Fold for Folded {
    fn restore(&mut self, pairs: CheckpointPairs) -> Result<(), String> {
        self.state.restore(pairs)
    }

    fn take(&mut self, replayed: Replayed<'_>) {
        match replayed {
            Replayed::Entry { head, .. } => match changes(head) {
                Ok(changes) => {
                    for change in changes {
                        self.contradictions.extend(self.state.apply(&change).err().map(|error| error.to_string()));
                        self.changes.push(change);
                    }
                }
                Err(error) => self.contradictions.push(error.to_string()),
            },
            Replayed::Hole(range) => self.state.apply_hole(range),
        }
    }
}

/// What a start without a checkpoint comes to.
pub(super) struct Whole {
    pub(super) changes: Vec<Change>,
    state: State,
    report: RecoveryReport,
}

pub(super) fn open_whole(disk: &SimulatedMedium, options: &LogOptions, wall_ms: i64) -> Whole {
    // Whatever is to fail on the first machine does not here.
    disk.crash_at_operation(0);
    disk.fail_sync(0);
    disk.fail_write(0);
    disk.short_write(0);
    disk.fail_directory_sync(0);
    let medium: Arc<dyn Medium> = Arc::new(disk.for_this_life());
    let mut folded = Folded::new(options.sabotages);
    let log = open(&medium, options, wall_ms, &mut |replayed| folded.take(replayed));
    let report = log.expect("what opens from a checkpoint opens without one").report;
    Whole { changes: folded.changes, state: folded.state, report }
}

/// How a start from a checkpoint differs from one without: not at all.
pub(super) fn difference(whole: &Whole, log: &OpenedLog, state: &State) -> Option<String> {
    let told = |report: &RecoveryReport| {
        (report.log_id, report.start_count, report.end, report.cut.clone(), report.last_time, report.segments)
    };
    let fate = &log.report.checkpoint;
    if told(&whole.report) != told(&log.report) {
        return Some(format!("with {fate:?}: {:?} instead of {:?}", told(&log.report), told(&whole.report)));
    }
    if whole.state != *state {
        return Some(format!("with {fate:?} the state is {state:?} instead of {:?}", whole.state));
    }
    let is_used = matches!(fate, CheckpointFate::Used { .. });
    let reads_more = log.report.entries > whole.report.entries;
    (is_used && reads_more).then(|| format!("{} entries were read of {}", log.report.entries, whole.report.entries))
}

impl Rig {
    /// A copy of the folder, on a machine of its own; no broker runs there.
    pub(crate) fn copy(&self, seed: u64) -> Self {
        Self {
            disk: self.disk.fork(seed),
            options: self.options.clone(),
            limits: self.limits.clone(),
            wall_ms: self.wall_ms,
            checkpoints: self.checkpoints.fork(),
            newest_checkpoint: None,
            life: None,
            lives: self.lives,
            seed: seed.wrapping_add(0xC0),
        }
    }

    /// A copy of the folder goes on by itself: its checkpoint, and where that was made.
    pub(crate) fn branch(&self, seed: u64) -> Option<(MemoryCheckpoints, u64)> {
        let mut copy = self.copy(seed);
        // It takes part in nothing else, so nothing that it finds is looked at.
        copy.open().ok()?;
        copy.stream("elsewhere").ok()?;
        copy.save_checkpoint();
        let made_at = copy.durable_position();
        Some((copy.checkpoints.clone(), made_at))
    }

    /// All below is durable; 0 if no broker runs.
    pub(crate) fn durable_position(&self) -> u64 {
        self.life.as_ref().map_or(0, |life| life.sequencer.durable_position())
    }

    /// Saves a checkpoint, as the broker does behind the scenes.
    pub(crate) fn save_checkpoint(&mut self) {
        let builds_on = self.newest_checkpoint;
        let life = self.life.as_mut().expect("the broker runs");
        let Some(snapshot) = life.sequencer.snapshot(builds_on.is_none()) else { return };
        let save = CheckpointSave { stamp: snapshot.stamp, builds_on, changes: snapshot.values };
        match self.checkpoints.save(save) {
            Ok(()) => self.newest_checkpoint = Some(snapshot.stamp.mark),
            Err(error) => {
                if matches!(error, SaveError::NothingToBuildOn(_)) {
                    self.newest_checkpoint = None;
                }
                life.sequencer.checkpoint_failed(snapshot.keys);
            }
        }
    }
}
