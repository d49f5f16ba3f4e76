//! When a checkpoint is made, and how it gets to the disk without anybody waiting for it: what has changed is collected
//! where the durable fold lives, and written on a thread of its own.
//!
//! It is made when a segment is full and enough of the log has gone by, after a start that had none to go on from, and
//! when the broker stops. A failed one harms nothing; the next one has what it had.
//!
//! Each one is a copy of the one before with what has changed since, so its cost hardly depends on how much that is. A log
//! that grows by an interval while one is made would have one made all the time: 35 ms of a core for each 64 MiB with a thousand
//! streams, a quarter of the broker's processor time. So saving rests for [`REST_FACTOR`] times as long as it took, unless
//! the tail grows beyond [`TAIL_FACTOR_MAX`] intervals.

use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::Duration;

use tidelog_storage::{
    CheckpointSave, CheckpointStore, DiskCheckpoints, EntryMark, Housekeeping, Job, OpenedLog, SaveError, Stamp,
};
use tokio::time::Instant;

use crate::config::{BrokerConfig, CheckpointChoice};
use crate::sequencer::{Sequencer, Snapshot};
use crate::state::{ChangedKeys, State};
use crate::workers::Shell;

/// A start reads so much of the log without anybody noticing: no checkpoint is made for less.
const TAIL_BYTES_MIN: u64 = 256 << 10;

/// So many times as long as the last save took, none is begun.
const REST_FACTOR: u32 = 15;

/// Beyond so many intervals of log a checkpoint is made whether saving has rested or not: a start after a crash reads them,
/// at more than 1 GB/s.
const TAIL_FACTOR_MAX: u64 = 4;

/// A broker that stops waits so long for its last checkpoint, which only spares the next start some reading.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// Where the checkpoints of a broker are kept, if anywhere.
pub(crate) fn checkpoints_of(config: &BrokerConfig) -> Option<Box<dyn CheckpointStore>> {
    match &config.checkpoints {
        CheckpointChoice::Beside => Some(Box::new(DiskCheckpoints::new(config.folder()?))),
        CheckpointChoice::Memory(checkpoints) => Some(Box::new(checkpoints.clone())),
        CheckpointChoice::Nowhere => None,
    }
}

/// The checkpoints of a running broker.
#[derive(Debug)]
pub(crate) struct Checkpointing {
    /// Away while a save is under way; gone for good if one hangs, or if there is nowhere to save.
    store: Option<Box<dyn CheckpointStore>>,
    /// Log between two of them, in bytes.
    interval_bytes: u64,
    /// The newest one.
    newest: Option<EntryMark>,
    saving: Option<Saving>,
    /// When saving has rested.
    rested_at: Option<Instant>,
    /// Saves have threads of their own.
    has_threads: bool,
}

/// A save that is under way.
#[derive(Debug)]
struct Saving {
    mark: EntryMark,
    keys: ChangedKeys,
    outcome: Receiver<Saved>,
}

/// What came of a save.
#[derive(Debug)]
struct Saved {
    store: Box<dyn CheckpointStore>,
    result: Result<(), SaveError>,
    /// When saving has rested from this one; `None` if its caller did it itself.
    rested_at: Option<Instant>,
}

impl Checkpointing {
    /// Nothing is saved without a store.
    pub(crate) fn new(store: Option<Box<dyn CheckpointStore>>, interval_bytes: u64) -> Self {
        Self { store, interval_bytes, newest: None, saving: None, rested_at: None, has_threads: true }
    }

    /// Where a start finds the newest one.
    pub(crate) fn store_mut(&mut self) -> Option<&mut dyn CheckpointStore> {
        match &mut self.store {
            Some(store) => Some(store.as_mut()),
            None => None,
        }
    }

    /// A start has opened `log` and folded it into `state`, which nobody has seen yet.
    pub(crate) fn begin(&mut self, log: &OpenedLog, state: &mut State, shell: &Shell) {
        self.has_threads = matches!(shell, Shell::Threads);
        if self.store.is_none() {
            state.keep_no_journal();
            return;
        }
        self.newest = log.went_on_from;
        let tail_bytes = self.tail_bytes(&log.stamp);
        let is_due = match self.newest {
            Some(_) => tail_bytes >= self.interval_bytes,
            None => tail_bytes >= self.least_bytes(),
        };
        // Nothing in the log but this start tells of what is missing: the next one must not rest on an older stamp.
        let is_after_damage = self.newest.is_some() && !log.report.damages.is_empty();
        if is_due || is_after_damage {
            let keys = state.take_changed();
            let values = if self.newest.is_some() { state.values_of(&keys) } else { state.all_values() };
            self.save(Snapshot { stamp: log.stamp, values, keys });
        }
    }

    /// A segment is full and durable.
    pub(crate) fn handle_sealed(&mut self, sequencer: &mut Sequencer) {
        self.poll_saved(sequencer);
        let due_bytes = due_bytes(self.interval_bytes, self.rested_at, Instant::now());
        let is_due = sequencer.durable_stamp().is_some_and(|stamp| self.tail_bytes(&stamp) >= due_bytes);
        if is_due && self.saving.is_none() {
            self.make(sequencer);
        }
    }

    /// The broker has stopped in order: all is durable. Waits until the last checkpoint is, and the footer of the active
    /// segment, which spares the next start to read it.
    pub(crate) fn finish(&mut self, sequencer: &mut Sequencer, housekeeping: Option<Housekeeping>) {
        self.wait_for_saved(sequencer);
        let is_due = sequencer.durable_stamp().is_some_and(|stamp| self.tail_bytes(&stamp) >= self.least_bytes());
        if is_due {
            self.make(sequencer);
            self.wait_for_saved(sequencer);
        }
        let is_newest = sequencer.durable_stamp().is_some_and(|stamp| self.newest == Some(stamp.mark));
        let closing = sequencer.log().closing_index().filter(|_| is_newest).zip(housekeeping);
        if let Some((index, mut housekeeping)) = closing
            && let Err(error) = housekeeping.run(&Job::WriteFooter(index))
        {
            tracing::warn!("the footer of the active segment is left to the next start: {error}");
        }
    }

    fn least_bytes(&self) -> u64 {
        self.interval_bytes.min(TAIL_BYTES_MIN)
    }

    /// What a start would read if it went on from the newest one.
    fn tail_bytes(&self, stamp: &Stamp) -> u64 {
        stamp.mark.end().saturating_sub(self.newest.map_or(0, |newest| newest.end()))
    }

    fn make(&mut self, sequencer: &mut Sequencer) {
        if self.store.is_some()
            && let Some(snapshot) = sequencer.snapshot(self.newest.is_none())
        {
            self.save(snapshot);
        }
    }

    fn save(&mut self, snapshot: Snapshot) {
        let Some(mut store) = self.store.take() else { return };
        let Snapshot { stamp, values, keys } = snapshot;
        let save = CheckpointSave { stamp, builds_on: self.newest, changes: values };
        let (sender, outcome) = sync_channel(1);
        self.saving = Some(Saving { mark: stamp.mark, keys, outcome });
        if !self.has_threads {
            let result = store.save(save);
            let _ = sender.send(Saved { store, result, rested_at: None });
            return;
        }
        let thread = std::thread::Builder::new().name("tidelog-save".to_owned()).spawn(move || {
            let begun = Instant::now();
            let result = store.save(save);
            // The broker may be gone.
            let _ = sender.send(Saved { store, result, rested_at: rest(begun, Instant::now()) });
        });
        if let Err(error) = thread {
            tracing::warn!("no checkpoints are made any more, no thread could be started: {error}");
        }
    }

    fn poll_saved(&mut self, sequencer: &mut Sequencer) {
        let Some(saving) = self.saving.take() else { return };
        match saving.outcome.try_recv() {
            Ok(saved) => self.take_saved(saved, saving.mark, saving.keys, sequencer),
            Err(TryRecvError::Empty) => self.saving = Some(saving),
            Err(TryRecvError::Disconnected) => sequencer.checkpoint_failed(saving.keys),
        }
    }

    /// Waits for the save that is under way, but not for a disk that hangs: then nothing more is saved.
    fn wait_for_saved(&mut self, sequencer: &mut Sequencer) {
        let Some(saving) = self.saving.take() else { return };
        match saving.outcome.recv_timeout(STOP_WAIT) {
            Ok(saved) => self.take_saved(saved, saving.mark, saving.keys, sequencer),
            Err(RecvTimeoutError::Timeout) => tracing::warn!(
                "the checkpoint at position {} takes longer than {STOP_WAIT:?} and is left behind; nothing else is affected",
                saving.mark.end()
            ),
            Err(RecvTimeoutError::Disconnected) => sequencer.checkpoint_failed(saving.keys),
        }
    }

    fn take_saved(&mut self, saved: Saved, mark: EntryMark, keys: ChangedKeys, sequencer: &mut Sequencer) {
        let Saved { store, result, rested_at } = saved;
        self.store = Some(store);
        self.rested_at = rested_at;
        let Err(error) = result else {
            tracing::debug!("the checkpoint at position {} is durable", mark.end());
            self.newest = Some(mark);
            return;
        };
        tracing::warn!("the checkpoint at position {} was not saved: {error}; nothing else is affected", mark.end());
        if matches!(error, SaveError::NothingToBuildOn(_)) {
            self.newest = None;
        }
        sequencer.checkpoint_failed(keys);
    }
}

/// When saving has rested from a save that was begun and ended then.
fn rest(begun: Instant, ended: Instant) -> Option<Instant> {
    ended.checked_add(ended.duration_since(begun).saturating_mul(REST_FACTOR))
}

/// Log behind the newest checkpoint at which the next one is made, in bytes.
fn due_bytes(interval_bytes: u64, rested_at: Option<Instant>, now: Instant) -> u64 {
    match rested_at {
        Some(moment) if now < moment => interval_bytes.saturating_mul(TAIL_FACTOR_MAX),
        _ => interval_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saving_rests_for_a_multiple_of_what_it_took_unless_the_tail_grows_long() {
        let begun = Instant::now();
        let rested_at = rest(begun, begun + Duration::from_millis(40));
        assert_eq!(due_bytes(64, None, begun), 64, "nothing was saved yet");
        assert_eq!(due_bytes(64, rested_at, begun + Duration::from_millis(639)), 256);
        assert_eq!(due_bytes(64, rested_at, begun + Duration::from_millis(640)), 64);
        assert_eq!(due_bytes(u64::MAX, rested_at, begun), u64::MAX, "an interval may be anything");
    }
}
