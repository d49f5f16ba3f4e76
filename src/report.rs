//! A recovery report in words.

use tidelog_protocol::StreamId;
use tidelog_storage::{CheckpointFate, Damage, DamageKind, RecoveryReport};

use crate::counters::Counters;
use crate::state::State;

/// Counts what a start found.
pub(crate) fn count(report: &RecoveryReport, state: &State, counters: &Counters) {
    let unsettled = || report.damages.iter().filter(|damage| !state.is_settled(damage));
    counters.recovery_entries.set(report.entries);
    counters.recovery_damages.set(unsettled().count() as u64);
    counters.recovery_cut_bytes.set(report.cut.as_ref().map_or(0, |cut| cut.end - cut.start));
    counters.recovery_files_set_aside.set(report.set_aside.len() as u64);
    let unreadable = unsettled().filter(|damage| damage.kind.loses_data()).filter_map(|damage| damage.offsets.clone());
    counters.damaged_records.add(unreadable.map(|offsets| offsets.end - offsets.start).sum());
}

/// What a start found that somebody should know of, a line each; streams by the names that `state` has for them.
#[must_use]
pub(crate) fn report_lines(report: &RecoveryReport, state: &State) -> Vec<String> {
    let mut lines: Vec<String> = report.damages.iter().map(|damage| damage_line(damage, state)).collect();
    if !state.unrepaired_holes().is_empty() {
        lines.push(
            "streams and producers whose newest entries may be lost refuse with `damaged`, and no new ones can be made: \
             stop the broker and see what `tidelog repair` would do"
                .to_owned(),
        );
    }
    if let Some(cut) = &report.cut {
        lines.push(format!(
            "positions {}..{} behind the end of the log are not provably stored and were left where they are; they may \
             include stored records, there is no proof",
            cut.start, cut.end
        ));
    }
    match &report.checkpoint {
        CheckpointFate::SetAside { why, name: Some(name) } => lines.push(format!(
            "the checkpoint was odd ({why}): it was set aside as {name}, and the whole log was read instead; nothing is lost"
        )),
        CheckpointFate::SetAside { why, name: None } => lines.push(format!(
            "the checkpoint was odd ({why}) and could not be moved; the whole log was read instead; nothing is lost"
        )),
        CheckpointFate::Unavailable { why } => lines.push(format!(
            "the checkpoint could not be read ({why}); the whole log was read instead; nothing is lost"
        )),
        CheckpointFate::Absent | CheckpointFate::Used { .. } => {}
    }
    lines.extend(report.set_aside.iter().map(|file| format!("a file of another log was set aside as {file}")));
    lines
}

/// What became of the checkpoint, in a word or two.
#[must_use]
pub(crate) const fn checkpoint_words(fate: &CheckpointFate) -> &'static str {
    match fate {
        CheckpointFate::Absent => "none",
        CheckpointFate::Used { .. } => "used",
        CheckpointFate::SetAside { .. } => "set aside",
        CheckpointFate::Unavailable { .. } => "unavailable",
    }
}

/// One place of damage in words.
#[must_use]
fn damage_line(damage: &Damage, state: &State) -> String {
    let what = match damage.kind {
        DamageKind::SegmentHeaderCopy => "one of two headers can't be read; nothing is lost",
        DamageKind::SegmentHeader => "its headers can't be read; its place is known from its successor",
        DamageKind::SegmentMissing => "the file is missing",
        DamageKind::EntryCopy => "an entry's header or its copy can't be read; nothing is lost",
        DamageKind::Payload => "records can't be read",
        DamageKind::Hole => "nothing can be read",
    };
    let positions = &damage.positions;
    let status = if state.is_settled(damage) { "repaired" } else { "damaged" };
    let mut line =
        format!("{status}: segment {} positions {}..{}: {what}", damage.segment, positions.start, positions.end);
    if let (Some(subject), Some(offsets)) = (damage.subject, &damage.offsets) {
        let name = state.catalogue.stream(StreamId::new(subject)).map(|stream| stream.name.as_str());
        let stream = name.map_or_else(|| format!("stream id {subject}"), |name| format!("stream '{name}'"));
        line.push_str(&format!(" ({stream} offsets {}..{})", offsets.start, offsets.end));
    }
    line
}

/// The report in numbers and positions, for programs.
#[cfg(feature = "http")]
#[must_use]
pub(crate) fn facts(report: &RecoveryReport, state: &State) -> crate::monitor::RecoveryFacts {
    crate::monitor::RecoveryFacts {
        segments: report.segments as u64,
        entries: report.entries,
        bytes_read: report.bytes_read,
        checkpoint: checkpoint_words(&report.checkpoint),
        proven: report.proven,
        end: report.end,
        rewritten_bytes: report.rewritten_bytes,
        cut: report.cut.clone(),
        damages: report.damages.iter().map(|damage| damage_facts(damage, state)).collect(),
        set_aside: report.set_aside.clone(),
    }
}

#[cfg(feature = "http")]
fn damage_facts(damage: &Damage, state: &State) -> crate::monitor::DamageFacts {
    crate::monitor::DamageFacts {
        kind: match damage.kind {
            DamageKind::SegmentHeaderCopy => "segment_header_copy",
            DamageKind::SegmentHeader => "segment_header",
            DamageKind::SegmentMissing => "segment_missing",
            DamageKind::EntryCopy => "entry_copy",
            DamageKind::Payload => "payload",
            DamageKind::Hole => "hole",
        },
        segment: damage.segment,
        positions: damage.positions.clone(),
        stream: damage.subject,
        offsets: damage.offsets.clone(),
        loses_data: damage.kind.loses_data(),
        repaired: state.is_settled(damage),
    }
}
