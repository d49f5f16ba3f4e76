//! Where producers and consumers of a run note what they were told, and where the run waits for it.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::failure::Failure;
use super::ledger::Ledger;

/// Whether what comes in now counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Everything counts.
    Open,
    /// The disk is being cut off: what is acknowledged or seen counts still, errors are the cut's.
    Cutting,
    /// The machine is gone for those outside: nothing they are told counts.
    Closed,
}

/// Shared by all tasks of a run.
#[derive(Debug)]
pub struct Board {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    paused: watch::Sender<bool>,
    /// Seed of all records.
    pub seed: u64,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    streams: Vec<Ledger>,
    /// Producers that may send at present, or wait for answers.
    sending: BTreeSet<u8>,
    failure: Option<Failure>,
}

impl Board {
    pub fn new(seed: u64, streams: usize) -> Self {
        Self::going_on(seed, vec![Ledger::default(); streams])
    }

    /// With what was noted before.
    pub fn going_on(seed: u64, streams: Vec<Ledger>) -> Self {
        let state = State { phase: Phase::Open, streams, sending: BTreeSet::new(), failure: None };
        Self { state: Mutex::new(state), changed: watch::Sender::new(()), paused: watch::Sender::new(false), seed }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_phase(&self, phase: Phase) {
        self.lock().phase = phase;
    }

    /// Keeps producers from sending, or lets them go on. What they have sent goes on.
    pub fn pause(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// Keeps producers from sending and waits until all that they have sent is acknowledged.
    ///
    /// # Errors
    ///
    /// What goes wrong meanwhile.
    pub async fn quiet(&self) -> Result<(), Failure> {
        self.pause(true);
        self.wait_for_state(|state| state.sending.is_empty()).await
    }

    /// Notes whether a producer may send, or waits for answers, until it says otherwise.
    pub fn set_sending(&self, producer: u8, sends: bool) {
        let mut state = self.lock();
        let is_news = if sends { state.sending.insert(producer) } else { state.sending.remove(&producer) };
        drop(state);
        if is_news {
            self.changed.send_replace(());
        }
    }

    /// Follows [`Board::pause`].
    pub fn paused(&self) -> watch::Receiver<bool> {
        self.paused.subscribe()
    }

    /// Notes something that a stream's ledger judges; what it finds wrong ends the run.
    pub fn note<T>(&self, stream: usize, note: impl FnOnce(&mut Ledger) -> Result<T, String>) -> Option<T> {
        let mut state = self.lock();
        if state.phase == Phase::Closed {
            return None;
        }
        let noted = note(state.streams.get_mut(stream).expect("a stream of this run"));
        let noted = match noted {
            Ok(noted) => Some(noted),
            Err(what) => {
                state.failure.get_or_insert(Failure::Violation(what));
                None
            }
        };
        drop(state);
        self.changed.send_replace(());
        noted
    }

    /// Notes what is about to be sent, which counts in every phase.
    pub fn note_sent(&self, stream: usize, producer: u8, sequence: u64) {
        self.lock().streams.get_mut(stream).expect("a stream of this run").note_sent(producer, sequence);
    }

    /// Ends the run, unless the broker is being cut off.
    pub fn fail(&self, failure: Failure) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.failure.get_or_insert(failure);
        }
        drop(state);
        self.changed.send_replace(());
    }

    /// A copy of what is known of a stream now.
    pub fn ledger(&self, stream: usize) -> Ledger {
        self.lock().streams.get(stream).expect("a stream of this run").clone()
    }

    /// A copy of what is known of all of them.
    pub fn ledgers(&self) -> Vec<Ledger> {
        self.lock().streams.clone()
    }

    /// The sum of a figure over all streams.
    pub fn sum(&self, figure: impl Fn(&Ledger) -> u64) -> u64 {
        self.lock().streams.iter().map(figure).sum()
    }

    /// # Errors
    ///
    /// What has gone wrong so far.
    pub fn check(&self) -> Result<(), Failure> {
        self.lock().failure.clone().map_or(Ok(()), Err)
    }

    /// Waits until `holds`.
    ///
    /// # Errors
    ///
    /// What goes wrong meanwhile.
    pub async fn wait(&self, holds: impl Fn(&[Ledger]) -> bool) -> Result<(), Failure> {
        self.wait_for_state(|state| holds(&state.streams)).await
    }

    async fn wait_for_state(&self, holds: impl Fn(&State) -> bool) -> Result<(), Failure> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            self.check()?;
            if holds(&self.lock()) {
                return Ok(());
            }
            changed.changed().await.map_err(|error| Failure::trouble("waiting", error))?;
        }
    }

    /// Waits until that many more records are acknowledged.
    ///
    /// # Errors
    ///
    /// What goes wrong meanwhile.
    pub async fn wait_for_receipts(&self, more: u64) -> Result<(), Failure> {
        let target = self.sum(Ledger::receipts) + more;
        self.wait(|streams| streams.iter().map(Ledger::receipts).sum::<u64>() >= target).await
    }
}
