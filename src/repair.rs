//! Repairs a log that no broker runs on: settles what its damage has left in doubt, so that streams and producers go on.
//!
//! Nothing that is lost comes back. A repair decides what the lost entries can have said at most, and goes on beyond that:
//! a stream at an offset that no lost record can have had, a producer under an epoch that no lost entry can have given.
//! Both follow from the bytes that are lost, since neither a record nor an epoch takes less than so many of them. What is
//! decided is appended to the log as facts; what can't be used gets another name. Nothing is deleted or overwritten.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use tidelog_protocol::{AttemptId, Epoch, Offset, ProducerId, ProducerName, StreamId, StreamName, StreamSettings};
use tidelog_storage::medium::Medium;
use tidelog_storage::{
    AsideFile, CheckpointPairs, CheckpointStore, Damage, DamageKind, FactAppender, Fold, LogOptions, Misplaced,
    OpenError, RepairWriteError, Replayed, Sabotage, Sabotages, VerifyReport, misplaced_segments, open, open_from,
    put_back, set_aside, survey_for_repair,
};

use crate::damage::Findings;
use crate::state::{Change, DamageSettled, EpochRaised, OffsetsSkipped, OwnedFact, State, StreamCreated};

/// The fewest bytes of the log that a record takes: its length and its flags.
pub const RECORD_BYTES_MIN: u64 = 2;
/// Fewer bytes than any entry takes that raises an epoch: its header and its fact, both twice.
pub const EPOCH_BYTES_MIN: u64 = 256;

/// A stream whose end may be lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRepair {
    /// Its identity.
    pub id: StreamId,
    /// Its name.
    pub name: StreamName,
    /// Its name is lost with the entry that made it, and this one is given to it.
    pub is_renamed: bool,
    /// The offset behind its last readable record, and the one that it goes on at. What is between is told to readers as
    /// damaged.
    pub skipped: Range<u64>,
}

/// A producer whose newest epoch may be lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerRepair {
    /// Its identity.
    pub id: ProducerId,
    /// Its name.
    pub name: ProducerName,
    /// The last epoch that can be read.
    pub epoch: Epoch,
    /// The one from here on: every session from before is fenced, and the producer is opened again from this one.
    pub next_epoch: Epoch,
}

/// What a repair would do.
#[derive(Debug, Clone)]
pub struct RepairPlan {
    /// Files to be set aside: nothing in them can be used.
    pub set_aside: Vec<AsideFile>,
    /// What the log holds without those.
    pub report: VerifyReport,
    /// The same, in names.
    pub findings: Findings,
    /// What will be appended.
    pub decisions: Decisions,
}

/// What settles the damage of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decisions {
    /// Streams that go on further on.
    pub streams: Vec<StreamRepair>,
    /// Producers that go on under a new epoch.
    pub producers: Vec<ProducerRepair>,
    /// Ranges that leave nothing in doubt any more.
    pub holes: Vec<Range<u64>>,
    /// Ranges that could not be read once, and can be read again.
    pub healed: Vec<Range<u64>>,
    /// Other damage that is told as known from now on.
    pub damages: Vec<Damage>,
}

impl Decisions {
    /// Whether there is nothing to append.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl RepairPlan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set_aside.is_empty() && self.decisions.is_empty()
    }
}

/// What a repair has done.
#[derive(Debug, Clone)]
pub struct Repaired {
    /// What was decided and appended.
    pub decisions: Decisions,
    /// Segments that were put back under their own names.
    pub put_back: Vec<Misplaced>,
    /// Files that were set aside, under their new names.
    pub set_aside: Vec<String>,
}

/// Why a repair stopped. Running it again goes on from where it stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// The log can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What was decided can't be written.
    #[error(transparent)]
    Write(#[from] RepairWriteError),
    /// The checkpoint can't be set aside; nothing is settled yet.
    #[error(
        "could not set the checkpoint aside: {0}; nothing is settled yet, and running the repair again goes on from here"
    )]
    Checkpoint(#[source] io::Error),
    /// A file can't be set aside; all else is done.
    #[error("could not set a file aside: {0}; all else is done, and running the repair again goes on from here")]
    SetAside(#[source] io::Error),
}

/// The segments that stand under another one's name; [`repair`] puts them back before it looks at anything else, and
/// [`plan`] judges the folder as if they were unreadable.
///
/// # Errors
/// [`OpenError`].
pub fn misplaced(medium: &dyn Medium) -> Result<Vec<Misplaced>, OpenError> {
    misplaced_segments(medium)
}

/// Reads all of a log under an exclusive lock and says what a repair would do. Changes nothing.
///
/// # Errors
/// [`OpenError`]: the folder is in use, of an unknown format, can't be read, or nothing in it can.
pub fn plan(medium: &dyn Medium, sabotages: Sabotages) -> Result<RepairPlan, OpenError> {
    let findings = std::cell::RefCell::new(Findings::default());
    let make_fold = || {
        *findings.borrow_mut() = Findings::default();
        |replayed: tidelog_storage::Replayed<'_>| findings.borrow_mut().count(&replayed)
    };
    let (survey, _) = survey_for_repair(medium, make_fold)?;
    let mut findings = findings.into_inner();
    findings.state.apply_end(survey.report.end);
    let decisions = decide(&findings, &survey.report.damages, sabotages);
    Ok(RepairPlan { set_aside: survey.set_aside, report: survey.report, findings, decisions })
}

/// Repairs the log on `medium`, at this wall clock in milliseconds since 1970. Does nothing if there is nothing to do, and
/// may be stopped and run again at any moment.
///
/// `checkpoints` are those of the log: what one knows of a lost end gets into the log first, and then it is set aside, since
/// it holds nothing of what can be read again.
///
/// # Errors
/// [`RepairError`].
pub fn repair(
    medium: &Arc<dyn Medium>,
    mut checkpoints: Option<&mut dyn CheckpointStore>,
    wall_ms: i64,
    sabotages: Sabotages,
) -> Result<Repaired, RepairError> {
    let put_back = put_back(medium.as_ref())?;
    if let Some(checkpoints) = &mut checkpoints {
        hear_witness(medium, *checkpoints, wall_ms, sabotages);
    }
    let plan = plan(medium.as_ref(), sabotages)?;
    if plan.is_empty() {
        return Ok(Repaired { decisions: plan.decisions, put_back, set_aside: Vec::new() });
    }
    // Opened without them, the log goes on behind all that the files to be set aside can have held.
    let distrusted = plan.set_aside.iter().map(|file| file.name.clone()).collect();
    let options = LogOptions { distrusted, sabotages, ..LogOptions::default() };
    let mut findings = Findings::default();
    let mut log = open(medium, &options, wall_ms, &mut |replayed| findings.count(&replayed))?;
    findings.state.apply_end(log.report.end);
    let decisions = decide(&findings, &log.report.damages, sabotages);
    if let Some(checkpoints) = &mut checkpoints {
        checkpoints.set_aside(&log.report.start_count.to_string()).map_err(RepairError::Checkpoint)?;
    }
    let mut facts = FactAppender::new(&mut log)?;
    // First the keys, then what lifts the doubt: a repair that is stopped in between leaves doubt, never a wrong answer.
    for fact in decisions.key_facts(wall_ms, &mut new_attempt) {
        facts.push(fact.borrow())?;
    }
    facts.commit()?;
    for fact in decisions.settling_facts() {
        facts.push(fact.borrow())?;
    }
    facts.commit()?;
    let set_aside = set_aside(medium, log.report.start_count, &plan.set_aside).map_err(RepairError::SetAside)?;
    drop(log);
    Ok(Repaired { decisions, put_back, set_aside })
}

/// Starts as a broker would: if the log has lost its end and a checkpoint was made behind it, that start says so in the log.
/// What is read without the checkpoint afterwards knows of it, and nothing is given out again.
fn hear_witness(medium: &Arc<dyn Medium>, checkpoints: &mut dyn CheckpointStore, wall_ms: i64, sabotages: Sabotages) {
    /// Checks what a checkpoint holds, and keeps nothing.
    struct Checked(State);

    impl Fold for Checked {
        fn restore(&mut self, pairs: CheckpointPairs) -> Result<(), String> {
            self.0.restore(pairs)
        }

        fn take(&mut self, _: Replayed<'_>) {}
    }

    if matches!(checkpoints.load(), Ok(None)) {
        return;
    }
    let options = LogOptions { sabotages, ..LogOptions::default() };
    // A folder that no broker starts on is what the rest of the repair is for.
    if let Err(error) = open_from(medium, &options, wall_ms, checkpoints, &mut Checked(State::new(sabotages))) {
        tracing::debug!("the checkpoint could not be heard: {error}");
    }
}

/// Decides what settles a log's damage. Pure.
#[must_use]
pub fn decide(findings: &Findings, damages: &[Damage], sabotages: Sabotages) -> Decisions {
    let state = &findings.state;
    let is_lost = |hole: &Range<u64>| {
        let holes = damages.iter().filter(|damage| damage.kind == DamageKind::Hole);
        holes.into_iter().any(|damage| damage.positions.start < hole.end && hole.start < damage.positions.end)
    };
    let (holes, healed): (Vec<_>, Vec<_>) = state.unrepaired_holes().iter().cloned().partition(is_lost);
    // What can be read again leaves nothing in doubt.
    let mut doubting = state.clone();
    for hole in &healed {
        let settled = DamageSettled { kind: DamageKind::Hole, positions: hole.clone() };
        doubting.apply(&Change::DamageSettled(settled)).expect("settling damage contradicts nothing");
    }
    let lost_since = |decided_at| match sabotages.has(Sabotage::RepairKeepsOffsets) {
        true => 0,
        false => state.lost_bytes_since(decided_at),
    };
    let mut streams: Vec<StreamRepair> = Vec::new();
    for id in doubting.streams_in_doubt() {
        let stream = state.catalogue.stream(id).expect("a stream in doubt is known");
        let tail = stream.tail.get();
        let next = tail.saturating_add(lost_since(stream.decided_at) / RECORD_BYTES_MIN);
        streams.push(StreamRepair { id, name: stream.name.clone(), is_renamed: false, skipped: tail..next });
    }
    let mut names: BTreeSet<StreamName> = BTreeSet::new();
    for (id, stream) in findings.nameless_streams() {
        let Some(name) = free_name(id, |name| state.catalogue.find(name).is_some() || names.contains(name)) else {
            continue;
        };
        names.insert(name.clone());
        let tail = stream.next_offset;
        let next = tail.saturating_add(lost_since(stream.decided_at) / RECORD_BYTES_MIN);
        streams.push(StreamRepair { id, name, is_renamed: true, skipped: tail..next });
    }
    let in_doubt = doubting.producers_in_doubt().into_iter();
    let producers = in_doubt.map(|id| {
        let producer = state.producers.producer(id).expect("a producer in doubt is known");
        let epoch = producer.epoch;
        let lost = lost_since(producer.decided_at) / EPOCH_BYTES_MIN;
        let next_epoch = Epoch::new(epoch.get().saturating_add(lost).saturating_add(1));
        ProducerRepair { id, name: producer.name.clone(), epoch, next_epoch }
    });
    let producers = producers.collect();
    let is_in_hole = |damage: &Damage| {
        let all = holes.iter().chain(&healed);
        all.into_iter().any(|hole| hole.start <= damage.positions.start && damage.positions.end <= hole.end)
    };
    let is_open = |damage: &&Damage| !state.is_settled(damage) && !is_in_hole(damage);
    let damages = damages.iter().filter(is_open).cloned().collect();
    Decisions { streams, producers, holes, healed, damages }
}

impl Decisions {
    /// What moves streams and producers on.
    fn key_facts(&self, wall_ms: i64, attempt: &mut dyn FnMut() -> AttemptId) -> Vec<OwnedFact> {
        let mut facts = Vec::new();
        for stream in &self.streams {
            if stream.is_renamed {
                let (id, name) = (stream.id, stream.name.clone());
                let settings = StreamSettings { max_age_ms: None, max_bytes: None };
                facts.push(StreamCreated { id, name, settings, created_ms: wall_ms }.to_fact());
            }
            let next_offset = Offset::new(stream.skipped.end);
            facts.push(OffsetsSkipped { stream: stream.id, next_offset, decided_at: 0 }.to_fact());
        }
        for producer in &self.producers {
            let (id, name, epoch) = (producer.id, producer.name.clone(), producer.next_epoch);
            // Nobody knows this attempt: the producer belongs to whoever opens it next.
            facts.push(EpochRaised { id, name, epoch, attempt: attempt(), decided_at: 0 }.to_fact());
        }
        facts
    }

    /// What says that the damage is settled.
    fn settling_facts(&self) -> Vec<OwnedFact> {
        let holes = self.holes.iter().chain(&self.healed);
        let holes = holes.map(|positions| DamageSettled { kind: DamageKind::Hole, positions: positions.clone() });
        let damages = self.damages.iter();
        let damages = damages.map(|damage| DamageSettled { kind: damage.kind, positions: damage.positions.clone() });
        holes.chain(damages).map(|settled| settled.to_fact()).collect()
    }
}

/// A name for a stream that has lost its own.
fn free_name(id: StreamId, is_taken: impl Fn(&StreamName) -> bool) -> Option<StreamName> {
    let names =
        (0..100).map(|copy| if copy == 0 { format!("recovered-{id}") } else { format!("recovered-{id}-{copy}") });
    names.filter_map(|name| StreamName::new(name).ok()).find(|name| !is_taken(name))
}

fn new_attempt() -> AttemptId {
    let mut bytes = [0; 16];
    let random = ring::rand::SystemRandom::new();
    ring::rand::SecureRandom::fill(&random, &mut bytes).expect("the system's random numbers are there");
    AttemptId::new(bytes)
}
