//! What befalls the broker, and when: decided here, done where it happens.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::seeded::Seeded;
use crate::server::quic::Weather;

/// A moment in the life of a publish request, at which something can befall the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// The request has arrived; the broker has not looked at it.
    BeforeAccept,
    /// It has its place in the stream, in memory.
    AfterAccept,
    /// Its group is about to be written to the log.
    BeforeWrite,
    /// It is written, and a power cut may still take it.
    AfterWrite,
    /// It is about to be synced.
    BeforeSync,
    /// It is durable, and nobody knows.
    AfterSync,
    /// The answer is about to leave.
    BeforeAnswer,
    /// The answer has left; it arrives, unless the client notices first that its connection is gone.
    AfterAnswer,
}

impl Step {
    /// All of them, in their order.
    pub const ALL: [Self; 8] = [
        Self::BeforeAccept,
        Self::AfterAccept,
        Self::BeforeWrite,
        Self::AfterWrite,
        Self::BeforeSync,
        Self::AfterSync,
        Self::BeforeAnswer,
        Self::AfterAnswer,
    ];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeforeAccept => "before accept",
            Self::AfterAccept => "after accept",
            Self::BeforeWrite => "before write",
            Self::AfterWrite => "after write",
            Self::BeforeSync => "before sync",
            Self::AfterSync => "after sync",
            Self::BeforeAnswer => "before answer",
            Self::AfterAnswer => "after answer",
        })
    }
}

/// How the broker ends without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Death {
    /// As by SIGKILL: what was written is there afterwards, what was only in memory is not.
    Killed,
    /// The machine loses power: of what was not synced, any part may be there afterwards.
    PowerLost,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Killed => "killed",
            Self::PowerLost => "power lost",
        })
    }
}

/// What befalls it at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strike {
    Dies(Death),
    /// The connection breaks; what was about to pass is lost with it.
    Cut,
    /// It takes so much longer.
    Late(Duration),
    /// The network is away for so long.
    CutOff(Duration),
    SyncFails,
    WriteFails,
    /// The power fails while the bytes are written.
    Torn,
    /// The wall clock jumps by so many milliseconds.
    Jump(i64),
}

impl Strike {
    /// Whatever is written and synced can meet it.
    const fn is_of_the_disk(self) -> bool {
        matches!(self, Self::SyncFails | Self::WriteFails | Self::Torn)
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dies(death) => write!(f, "{death}"),
            Self::Cut => f.write_str("connection cut"),
            Self::Late(by) => write!(f, "late by {by:?}"),
            Self::CutOff(time) => write!(f, "network away for {time:?}"),
            Self::SyncFails => f.write_str("the sync fails"),
            Self::WriteFails => f.write_str("the write fails"),
            Self::Torn => f.write_str("the power fails within the write"),
            Self::Jump(by_ms) => write!(f, "the clock jumps by {by_ms} ms"),
        }
    }
}

/// Something that was asked for.
#[derive(Debug, Clone, Copy)]
struct Scripted {
    step: Step,
    /// So many occasions pass first.
    passes: u32,
    /// Then it strikes at so many.
    times: u32,
    strike: Strike,
}

/// What is so until it is taken back.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Standing {
    pub(super) answers_late: Duration,
    pub(super) deliveries_late: Duration,
    pub(super) disk_late: Duration,
    pub(super) latency: Duration,
}

/// Things that have befallen it, of which the first are kept for telling.
const TOLD_MAX: usize = 200;

/// The one place that knows what is to befall the broker, and what has.
#[derive(Debug, Default)]
pub(super) struct Ordeal {
    state: Mutex<State>,
    /// Told when the present life is to end.
    death: Notify,
    /// Told when something that lasts has changed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    script: Vec<Scripted>,
    standing: Standing,
    seeded: Option<Seeded>,
    cut_off_until: Option<Instant>,
    ending: Option<Ending>,
    /// The dead broker's connections are being cut: that alone leaves.
    is_cutting: bool,
    told: Vec<String>,
    untold: usize,
}

/// How the present life ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    pub(super) death: Death,
    /// Nothing more leaves. Otherwise what is under way leaves first.
    pub(super) is_sudden: bool,
}

impl Ordeal {
    // What is to come.

    /// Strikes at `times` occasions of `step`, from now on.
    pub(super) fn script(&self, step: Step, times: u32, strike: Strike) {
        self.script_after(step, 0, times, strike);
    }

    /// The same, behind so many occasions that pass.
    pub(super) fn script_after(&self, step: Step, passes: u32, times: u32, strike: Strike) {
        if times > 0 {
            self.lock().script.push(Scripted { step, passes, times, strike });
        }
    }

    /// Lets what follows from a seed befall it as well.
    pub(super) fn follow(&self, seeded: Seeded) {
        self.lock().seeded = Some(seeded);
    }

    /// What is late because of it already is so by the new measure.
    pub(super) fn change_standing(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.lock().standing);
        self.changed.notify_waiters();
    }

    /// Waits from now on for `once`, and for as long as `lasting` says of what is so meanwhile.
    pub(super) async fn late(&self, once: Duration, lasting: impl Fn(&Standing) -> Duration) {
        let since = Instant::now();
        loop {
            // Before the look at what is so: a change behind that wakes it.
            let changed = self.changed.notified();
            let due = since + once + lasting(&self.standing());
            if due <= Instant::now() {
                return;
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(due) => return,
                () = changed => {}
            }
        }
    }

    pub(super) fn standing(&self) -> Standing {
        self.lock().standing
    }

    /// Nothing arrives and nothing leaves for so long.
    pub(super) fn cut_off(&self, time: Duration) {
        self.lock().cut_off_until = Some(Instant::now() + time);
    }

    /// How long nothing arrives and nothing leaves.
    pub(super) fn cut_off_left(&self) -> Duration {
        let until = self.lock().cut_off_until;
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    /// Takes back everything that has not happened yet.
    pub(super) fn calm(&self) {
        let mut state = self.lock();
        state.script.clear();
        state.standing = Standing::default();
        state.seeded = None;
        state.cut_off_until = None;
        drop(state);
        self.changed.notify_waiters();
    }

    // What happens.

    /// A publish request is at `step`.
    pub(super) fn at(&self, step: Step) -> Option<Strike> {
        self.strikes(step, true)
    }

    /// A group is at `step` that holds no publish request: a new stream, say.
    pub(super) fn at_without_publishes(&self, step: Step) -> Option<Strike> {
        self.strikes(step, false)
    }

    fn strikes(&self, step: Step, has_publishes: bool) -> Option<Strike> {
        let mut state = self.lock();
        if state.ending.is_some() {
            return None;
        }
        let scripted = state.scripted(step, has_publishes);
        let strike = scripted.or_else(|| state.seeded.as_mut()?.at(step))?;
        state.tell(format!("{step}: {strike}"));
        Some(strike)
    }

    /// Notes something that befalls it in another way.
    pub(super) fn tell(&self, what: String) {
        self.lock().tell(what);
    }

    /// What has befallen it, in order.
    pub(super) fn told(&self) -> Vec<String> {
        let state = self.lock();
        let mut told = state.told.clone();
        if state.untold > 0 {
            told.push(format!("and {} more", state.untold));
        }
        told
    }

    // Lives.

    /// A life begins.
    pub(super) fn begin_life(&self) {
        self.lock().ending = None;
    }

    /// The present life ends here.
    pub(super) fn die(&self, ending: Ending) {
        self.lock().ending.get_or_insert(ending);
        self.death.notify_one();
    }

    /// Waits until the present life is to end.
    pub(super) async fn ended(&self) -> Ending {
        loop {
            if let Some(ending) = self.ending() {
                return ending;
            }
            self.death.notified().await;
        }
    }

    /// What was under way has left: nothing more does.
    pub(super) fn fall_silent(&self) {
        if let Some(ending) = &mut self.lock().ending {
            ending.is_sudden = true;
        }
    }

    /// Whether what is left of the dead broker may send that its connections are cut.
    pub(super) fn let_cut(&self, is_cutting: bool) {
        self.lock().is_cutting = is_cutting;
    }

    fn ending(&self) -> Option<Ending> {
        self.lock().ending
    }

    /// Nothing passes any more.
    pub(super) fn is_dead(&self) -> bool {
        self.ending().is_some_and(|ending| ending.is_sudden)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked has failed; the others may go on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn scripted(&mut self, step: Step, has_publishes: bool) -> Option<Strike> {
        // All that wait for this step see the occasion; the first that is due strikes.
        let mut due = None;
        let sees =
            |scripted: &&mut Scripted| scripted.step == step && (has_publishes || scripted.strike.is_of_the_disk());
        for scripted in self.script.iter_mut().filter(sees) {
            if scripted.passes > 0 {
                scripted.passes -= 1;
            } else if due.is_none() {
                scripted.times -= 1;
                due = Some(scripted.strike);
            }
        }
        self.script.retain(|scripted| scripted.times > 0);
        due
    }

    fn tell(&mut self, what: String) {
        if self.told.len() < TOLD_MAX { self.told.push(what) } else { self.untold += 1 }
    }
}

impl Weather for Ordeal {
    fn is_cut_off(&self) -> bool {
        let state = self.lock();
        let is_dead = state.ending.is_some_and(|ending| ending.is_sudden);
        is_dead && !state.is_cutting || state.cut_off_until.is_some_and(|until| Instant::now() < until)
    }

    fn delay(&self) -> Duration {
        self.lock().standing.latency
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_strikes_as_often_as_it_says_and_after_what_it_lets_pass() {
        let ordeal = Ordeal::default();
        ordeal.script_after(Step::BeforeAnswer, 2, 1, Strike::Cut);
        ordeal.script(Step::BeforeAnswer, 1, Strike::Late(Duration::from_millis(1)));
        let struck: Vec<_> = (0..4).map(|_| ordeal.at(Step::BeforeAnswer)).collect();
        assert_eq!(struck, [Some(Strike::Late(Duration::from_millis(1))), None, Some(Strike::Cut), None]);
        assert_eq!(ordeal.at(Step::AfterAnswer), None);
        assert_eq!(ordeal.told().len(), 2);
    }

    #[test]
    fn nothing_befalls_a_dead_broker_and_a_new_life_goes_on_with_the_script() {
        let ordeal = Ordeal::default();
        ordeal.script(Step::AfterSync, 1, Strike::Dies(Death::PowerLost));
        ordeal.die(Ending { death: Death::Killed, is_sudden: true });
        assert!(ordeal.is_dead() && ordeal.is_cut_off());
        assert_eq!(ordeal.at(Step::AfterSync), None);
        ordeal.begin_life();
        assert!(!ordeal.is_dead());
        assert_eq!(ordeal.at(Step::AfterSync), Some(Strike::Dies(Death::PowerLost)));
    }

    #[test]
    fn calm_takes_everything_back() {
        let ordeal = Ordeal::default();
        ordeal.script(Step::AfterSync, 9, Strike::Cut);
        ordeal.follow(Seeded::new(1, true));
        ordeal.change_standing(|standing| standing.latency = Duration::from_secs(1));
        ordeal.cut_off(Duration::from_secs(60));
        ordeal.calm();
        assert!((0..100).all(|_| Step::ALL.iter().all(|step| ordeal.at(*step).is_none())));
        assert!(ordeal.delay().is_zero() && !ordeal.is_cut_off());
    }
}
