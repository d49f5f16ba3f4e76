//! What has happened, to be read after a failure, and a number over all of it, to compare two runs by.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// Lines that are kept.
const LINES_MAX: usize = 400;

/// The history of one run; clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    started: Instant,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    lines: VecDeque<String>,
    events: u64,
    /// FNV-1a over every event.
    digest: u64,
}

impl Trace {
    /// Begins now, by tokio's clock.
    pub(crate) fn new() -> Self {
        let state = State { lines: VecDeque::new(), events: 0, digest: 0xcbf2_9ce4_8422_2325 };
        Self { started: Instant::now(), state: Arc::new(Mutex::new(state)) }
    }

    /// Something worth a line.
    pub(crate) fn line(&self, text: std::fmt::Arguments<'_>) {
        let now = self.started.elapsed();
        self.with(|state| {
            let mut line =
                if state.lines.len() >= LINES_MAX { state.lines.pop_front().unwrap() } else { String::new() };
            line.clear();
            let _ = write!(line, "{:>11.6} {text}", now.as_secs_f64());
            state.note(line.as_bytes());
            state.lines.push_back(line);
        });
    }

    /// Something too small for one: it only counts.
    pub(crate) fn count(&self, numbers: &[u64]) {
        let now = self.started.elapsed().as_nanos() as u64;
        self.with(|state| {
            state.note(&now.to_le_bytes());
            numbers.iter().for_each(|number| state.note(&number.to_le_bytes()));
        });
    }

    /// The number over all events, and how many there were.
    pub(crate) fn digest(&self) -> (u64, u64) {
        self.with(|state| (state.digest, state.events))
    }

    /// Virtual time since it began.
    pub(crate) fn elapsed(&self) -> std::time::Duration {
        self.started.elapsed()
    }

    /// The newest lines.
    pub(crate) fn text(&self) -> String {
        self.with(|state| state.lines.iter().map(|line| format!("  {line}\n")).collect())
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn note(&mut self, bytes: &[u8]) {
        self.events += 1;
        for byte in bytes {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
