//! The running broker on its network thread: the sequencer, live delivery, and the ends of the other threads. Sessions
//! call it by function call; the driver ([`driver`]) hands groups to the log thread and takes in what the threads report.

mod driver;
mod gathering;

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidelog_protocol::{Limits, Welcome};
use tidelog_storage::ReplayTime;
use tokio::sync::Notify;

pub(crate) use self::driver::Driver;
pub(crate) use self::gathering::AnsweredIn;
use self::gathering::Gathering;
use crate::clock::Clock;
use crate::counters::Counters;
use crate::live::Hub;
use crate::monitor_link::MonitorLink;
use crate::sequencer::{Now, Sequencer, SessionKey, Step};
use crate::server::measure::SyncMeter;
use crate::server::peers::Peers;
use crate::state::Grant;
use crate::workers::ReadWorker;

/// What sessions share. Lives on the network thread alone.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) sequencer: RefCell<Sequencer>,
    pub(crate) hub: RefCell<Hub>,
    pub(crate) reads: ReadWorker,
    pub(crate) syncs: SyncMeter,
    pub(crate) counters: Arc<Counters>,
    pub(crate) limits: Limits,
    pub(crate) peers: Arc<Peers>,
    pub(crate) welcome: Welcome,
    clock: Arc<dyn Clock>,
    /// Log time at `started`.
    log_ms_at_start: u64,
    started: Duration,
    /// Something was appended.
    appended: Notify,
    appends: Cell<u64>,
    gathering: Gathering,
    /// There may be room again: in the write buffer, or in a new segment.
    room: Notify,
    write_buffer_bytes: u64,
    is_stopping: Cell<bool>,
    monitor: MonitorLink,
}

/// What an engine starts from.
#[derive(Debug)]
pub(crate) struct EngineStart {
    pub(crate) sequencer: Sequencer,
    pub(crate) reads: ReadWorker,
    pub(crate) syncs: SyncMeter,
    pub(crate) counters: Arc<Counters>,
    pub(crate) limits: Limits,
    pub(crate) peers: Arc<Peers>,
    pub(crate) welcome: Welcome,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) time: ReplayTime,
    pub(crate) write_buffer_bytes: usize,
    pub(crate) monitor: MonitorLink,
}

impl Engine {
    pub(crate) fn new(start: EngineStart) -> Self {
        Self {
            started: start.clock.monotonic(),
            log_ms_at_start: start.time.log_ms,
            sequencer: RefCell::new(start.sequencer),
            hub: RefCell::default(),
            reads: start.reads,
            syncs: start.syncs,
            counters: start.counters,
            limits: start.limits,
            peers: start.peers,
            welcome: start.welcome,
            clock: start.clock,
            appended: Notify::new(),
            appends: Cell::new(0),
            gathering: Gathering::default(),
            room: Notify::new(),
            write_buffer_bytes: start.write_buffer_bytes as u64,
            is_stopping: Cell::new(false),
            monitor: start.monitor,
        }
    }

    /// Wall clock, log time and monotonic time.
    pub(crate) fn now(&self) -> Now {
        let monotonic = self.clock.monotonic();
        let running_ms = monotonic.saturating_sub(self.started).as_millis() as u64;
        let time = ReplayTime { wall_ms: self.clock.wall_ms(), log_ms: self.log_ms_at_start + running_ms };
        Now { time, monotonic }
    }

    /// How long the broker has been up.
    pub(crate) fn uptime(&self) -> Duration {
        self.clock.monotonic().saturating_sub(self.started)
    }

    /// Judges a batch and appends it, once there is room. `now` is when it was received, and later if it had to wait.
    pub(crate) async fn publish(&self, session: SessionKey, grant: &Grant, batch: &Bytes, now: &mut Now) -> Step {
        loop {
            // Before the look, so that no room that comes meanwhile is missed.
            let room = self.room.notified();
            if self.has_room() {
                let step = self.try_publish(session, grant, batch, *now);
                if step != Step::NoRoom {
                    return step;
                }
            }
            room.await;
            *now = self.now();
        }
    }

    fn try_publish(&self, session: SessionKey, grant: &Grant, batch: &Bytes, now: Now) -> Step {
        let mut sequencer = self.sequencer.borrow_mut();
        let step = sequencer.publish(session, grant, batch, now, &mut *self.hub.borrow_mut());
        drop(sequencer);
        self.touched();
        step
    }

    /// Takes no further batch: their senders wait until they are told that the broker stops.
    pub(crate) fn stop_taking(&self) {
        self.is_stopping.set(true);
    }

    /// Ends the threads that it shares with nobody. With `waits` false one that hangs in a sync is left behind.
    pub(crate) fn stop(self, waits: bool) {
        self.reads.stop();
        self.syncs.stop(waits);
    }

    fn has_room(&self) -> bool {
        if self.is_stopping.get() {
            return false;
        }
        let sequencer = self.sequencer.borrow();
        sequencer.is_poisoned() || sequencer.undurable_bytes() < self.write_buffer_bytes
    }

    /// Something may have been appended, or may want a new segment.
    pub(crate) fn touched(&self) {
        self.appends.set(self.appends.get() + 1);
        self.appended.notify_one();
    }

    /// What a session that writes its answers at this moment was answered with.
    pub(crate) fn answered_in(&self) -> AnsweredIn {
        self.gathering.present()
    }

    /// A session that waits for each answer has published again: its last one was `answered`.
    pub(crate) fn came_back(&self, answered: AnsweredIn) {
        self.gathering.came(answered);
    }

    /// Waits until there may be room.
    pub(crate) fn room(&self) -> impl Future<Output = ()> + '_ {
        self.room.notified()
    }

    fn with_sequencer<T>(&self, act: impl FnOnce(&mut Sequencer, &mut Hub) -> T) -> T {
        act(&mut self.sequencer.borrow_mut(), &mut self.hub.borrow_mut())
    }
}
