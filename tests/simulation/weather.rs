//! The network: late, broken at any byte, half open, from a seed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidelog::in_process::{Attempt, Conditions, Cut, Fate, Loss, Passage, Side};
use tidelog_storage::medium::SimulatedRng;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::trace::Trace;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Weather {
    state: Mutex<State>,
    trace: Trace,
    /// Told when the broker has died of a message.
    death: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    rng: SimulatedRng,
    is_calm: bool,
    /// The broker's machine is gone: nothing leaves it, and nothing arrives.
    is_dead: bool,
    /// The broker dies with the passage that counts this down to 0.
    passages_left: Option<u64>,
    /// The connection breaks of the passage that counts this down to 0.
    breaks_in: Option<u64>,
    /// Directions of connections that are held up: until then nothing arrives.
    stalls: BTreeMap<(u64, bool), Instant>,
    messages: u64,
    breaks: u64,
    stalled: u64,
    planned: u64,
}

impl Weather {
    pub(crate) fn new(seed: u64, trace: Trace, death: Arc<Notify>) -> Self {
        let state = State {
            rng: SimulatedRng::new(seed),
            is_calm: false,
            is_dead: true,
            passages_left: None,
            breaks_in: None,
            stalls: BTreeMap::new(),
            messages: 0,
            breaks: 0,
            stalled: 0,
            planned: 0,
        };
        Self { state: Mutex::new(state), trace, death }
    }

    /// The broker lives, and dies with the passage of this number from now, if there is one.
    pub(crate) fn begin_life(&self, dies_at_passage: Option<u64>) {
        let mut state = self.lock();
        state.is_dead = false;
        state.passages_left = dies_at_passage;
        state.stalls.clear();
    }

    /// Nothing leaves the broker from here on.
    pub(crate) fn end_life(&self) {
        let mut state = self.lock();
        state.is_dead = true;
        state.passages_left = None;
    }

    /// The n-th passage from now is lost with its connection.
    pub(crate) fn break_at(&self, n: u64) {
        self.lock().breaks_in = Some(n);
    }

    pub(crate) fn clear_up(&self) {
        self.lock().is_calm = true;
    }

    /// How a connection to a dead broker ends.
    pub(crate) fn end_of_broker(&self) -> Cut {
        self.lock().end_of_broker()
    }

    /// Connections broken because of [`Self::break_at`].
    pub(crate) fn planned_breaks(&self) -> u64 {
        self.lock().planned
    }

    /// Messages, breaks and stalls so far.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let state = self.lock();
        (state.messages, state.breaks, state.stalled)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end_of_broker(&mut self) -> Cut {
        Cut { client: self.loss(), broker: Loss::CLEAN }
    }

    fn loss(&mut self) -> Loss {
        let noticed_after = match self.rng.below(4) {
            0 => Duration::ZERO,
            1 => self.millis(20),
            2 => self.millis(500),
            _ => self.millis(6_000),
        };
        Loss { lands: self.rng.chance(2), noticed_after }
    }

    fn millis(&mut self, below: u64) -> Duration {
        Duration::from_micros(self.rng.below(below * 1_000))
    }

    fn fate(&mut self, passage: &Passage) -> Fate {
        if self.is_dead {
            return Fate::Breaks { kept_bytes: 0, cut: self.end_of_broker() };
        }
        if self.is_calm {
            return Fate::Arrives { after: Duration::from_millis(1) };
        }
        if self.rng.chance(150) {
            self.breaks += 1;
            let kept_bytes = self.rng.below(passage.bytes as u64 + 1) as usize;
            return Fate::Breaks { kept_bytes, cut: Cut { client: self.loss(), broker: self.loss() } };
        }
        let now = Instant::now();
        let direction = (passage.connection, passage.toward == Side::Broker);
        if self.rng.chance(120) {
            self.stalled += 1;
            let until = now + self.millis(3_000);
            self.stalls.insert(direction, until);
        }
        let held = self.stalls.get(&direction).map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let after = match self.rng.below(4) {
            0 | 1 => Duration::ZERO,
            2 => self.millis(3),
            _ => self.millis(25),
        };
        Fate::Arrives { after: held + after }
    }
}

impl Conditions for Weather {
    fn connect(&self) -> Attempt {
        let mut state = self.lock();
        if state.is_calm {
            return Attempt::Reaches { after: Duration::from_millis(1) };
        }
        let after = state.millis(5);
        if state.rng.chance(25) { Attempt::Fails { after: after * 40 } } else { Attempt::Reaches { after } }
    }

    fn send(&self, passage: &Passage) -> Fate {
        let mut state = self.lock();
        state.messages += 1;
        let mut fate = state.fate(passage);
        if let Some(left) = state.breaks_in.filter(|left| *left > 0 && !state.is_dead) {
            state.breaks_in = Some(left - 1);
            if left == 1 {
                state.planned += 1;
                let kept_bytes = state.rng.below(passage.bytes as u64) as usize;
                fate = Fate::Breaks { kept_bytes, cut: Cut { client: state.loss(), broker: state.loss() } };
            }
        }
        if let Some(left) = state.passages_left.filter(|_| !state.is_dead) {
            state.passages_left = Some(left.saturating_sub(1));
            if left <= 1 {
                state.is_dead = true;
                let kept_bytes = state.rng.below(passage.bytes as u64 + 1) as usize;
                fate = Fate::Breaks { kept_bytes, cut: state.end_of_broker() };
                self.death.notify_one();
            }
        }
        drop(state);
        let Passage { connection, quic_stream, toward, bytes } = *passage;
        if let Fate::Breaks { kept_bytes, cut } = &fate {
            self.trace.line(format_args!(
                "connection {connection} breaks toward the {toward:?}, {kept_bytes} of {bytes} bytes left; noticed \
                 after {:?} and {:?}",
                cut.client.noticed_after, cut.broker.noticed_after
            ));
        }
        let after = if let Fate::Arrives { after } = &fate { after.as_nanos() as u64 } else { u64::MAX };
        self.trace.count(&[connection, quic_stream, toward as u64, bytes as u64, after]);
        fate
    }

    fn close(&self, connection: u64) -> Duration {
        let mut state = self.lock();
        let after = match (state.is_calm, state.rng.below(8)) {
            (true, _) => Duration::from_millis(1),
            (false, 0) => state.millis(5_000),
            (false, _) => state.millis(20),
        };
        drop(state);
        self.trace.count(&[connection, after.as_nanos() as u64]);
        after
    }
}
