//! What a broker tells about itself: whether it works, in what state it is, and its counters.
//!
//! The state kept here needs no network; with the feature `http` it is served read-only, on a port
//! and a thread of its own, so that a broker that is stuck can still be asked why.

#[cfg(feature = "http")]
mod http;
#[cfg(feature = "http")]
mod metric_table;
#[cfg(feature = "http")]
mod metrics;

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::counters::Counters;

#[cfg(feature = "http")]
pub use http::{Monitor, MonitorError};

/// Whether a broker can be used, and if not, why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// The log is being read after a start; nobody is served yet.
    Recovering = 0,
    /// Everything works.
    Ready = 1,
    /// A sync failed or hangs: reads are served, publishes are refused until a restart.
    Poisoned = 2,
    /// The broker is shutting down.
    Stopping = 3,
}

impl Health {
    /// The state's stable name.
    pub fn name(self) -> &'static str {
        match self {
            Health::Recovering => "recovering",
            Health::Ready => "ready",
            Health::Poisoned => "poisoned",
            Health::Stopping => "stopping",
        }
    }

    /// Why the broker is not ready; `None` if it is.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Health::Ready => None,
            Health::Recovering => Some("the log is being read; publishes and reads start behind it"),
            Health::Poisoned => Some(
                "a write to the log failed or hangs; reads are served, publishes are refused; mend the disk and \
                 restart the broker",
            ),
            Health::Stopping => Some("the broker is shutting down"),
        }
    }

    fn from_number(number: u8) -> Health {
        match number {
            1 => Health::Ready,
            2 => Health::Poisoned,
            3 => Health::Stopping,
            _ => Health::Recovering,
        }
    }
}

/// Facts about a broker that are settled when its start is over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatusSnapshot {
    /// The log's identity, in hex; empty until it is known.
    pub log_id: String,
    /// How often this log was opened, this time included.
    pub start_count: u64,
    /// Where the log is kept, for people.
    pub medium: String,
    /// What recovery did and found, a sentence each; empty when there was nothing to tell.
    pub recovery: Vec<String>,
    /// The same in numbers and positions, for programs.
    pub report: RecoveryFacts,
}

/// What recovery did and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryFacts {
    /// Segments of the log, without the one that the start opened.
    pub segments: u64,
    /// Entries read.
    pub entries: u64,
    /// Bytes read of segments and footers.
    pub bytes_read: u64,
    /// What became of the checkpoint: `used`, `none`, `set aside` or `unavailable`.
    pub checkpoint: &'static str,
    /// Below this position everything was proven to have been durable.
    pub proven: u64,
    /// Where the log ended.
    pub end: u64,
    /// Unproven bytes that were written again before they were synced.
    pub rewritten_bytes: u64,
    /// What lies behind the end and is not provably stored, as positions.
    pub cut: Option<Range<u64>>,
    /// All that is broken.
    pub damages: Vec<DamageFacts>,
    /// Files set aside, under their new names.
    pub set_aside: Vec<String>,
}

/// One place of damage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamageFacts {
    /// What is broken, in `snake_case`.
    pub kind: &'static str,
    /// The segment's number.
    pub segment: u64,
    /// The log positions concerned.
    pub positions: Range<u64>,
    /// The stream's id, where it is known.
    pub stream: Option<u64>,
    /// Its offsets, where they are known.
    pub offsets: Option<Range<u64>>,
    /// Whether anything that was stored can't be read because of it.
    pub loses_data: bool,
    /// A repair has settled it: it is known, and nothing is in doubt because of it.
    pub repaired: bool,
}

/// Everything the monitor shows, shared between the broker, which writes it, and the monitor.
#[derive(Debug)]
pub struct MonitorState {
    counters: Arc<Counters>,
    health: AtomicU8,
    status: Mutex<StatusSnapshot>,
}

impl MonitorState {
    /// The state of a broker that has just begun to start.
    pub fn new(counters: Arc<Counters>) -> MonitorState {
        MonitorState { counters, health: AtomicU8::new(Health::Recovering as u8), status: Mutex::default() }
    }

    /// The broker's counters.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The state of health now. A poisoned broker is poisoned until it stops, whatever was set
    /// since.
    pub fn health(&self) -> Health {
        let health = Health::from_number(self.health.load(Ordering::Relaxed));
        if health == Health::Ready && self.counters.is_poisoned() { Health::Poisoned } else { health }
    }

    /// Changes the state of health.
    pub fn set_health(&self, health: Health) {
        if health == Health::Poisoned {
            self.counters.poison();
        }
        self.health.store(health as u8, Ordering::Relaxed);
    }

    /// The facts told last.
    pub fn status(&self) -> StatusSnapshot {
        // A snapshot is replaced whole, so a panic elsewhere cannot have left half of one.
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.clone()
    }

    /// Replaces the facts.
    pub fn set_status(&self, status: StatusSnapshot) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> MonitorState {
        MonitorState::new(Arc::new(Counters::new()))
    }

    #[test]
    fn a_new_broker_is_recovering() {
        assert_eq!(state().health(), Health::Recovering);
    }

    #[test]
    fn every_health_survives_its_number() {
        for health in [Health::Recovering, Health::Ready, Health::Poisoned, Health::Stopping] {
            assert_eq!(Health::from_number(health as u8), health);
            assert_eq!(health.reason().is_none(), health == Health::Ready);
        }
    }

    #[test]
    fn a_poisoned_broker_cannot_be_called_ready() {
        let state = state();
        state.set_health(Health::Poisoned);
        state.set_health(Health::Ready);
        assert_eq!(state.health(), Health::Poisoned);
        state.set_health(Health::Stopping);
        assert_eq!(state.health(), Health::Stopping);
    }

    #[test]
    fn poisoning_the_counters_alone_is_seen() {
        let state = state();
        state.set_health(Health::Ready);
        assert_eq!(state.health(), Health::Ready);
        state.counters().poison();
        assert_eq!(state.health(), Health::Poisoned);
    }
}
