//! Damage in words, and as JSON: the same for every command that tells it.

use serde_json::{Value, json};
use tidelog::damage::{Findings, Gap};
use tidelog_storage::{Damage, DamageKind};

/// The stable word for a kind of damage.
pub(crate) const fn word(kind: DamageKind) -> &'static str {
    match kind {
        DamageKind::SegmentHeaderCopy => "segment_header_copy",
        DamageKind::SegmentHeader => "segment_header",
        DamageKind::SegmentMissing => "segment_missing",
        DamageKind::EntryCopy => "entry_copy",
        DamageKind::Payload => "payload",
        DamageKind::Hole => "hole",
    }
}

/// What damage means for whoever reads the log.
const fn meaning(kind: DamageKind) -> &'static str {
    match kind {
        DamageKind::SegmentHeaderCopy => "the other copy of the header serves; nothing is lost",
        DamageKind::SegmentHeader => "its place is known from its neighbours",
        DamageKind::SegmentMissing => "the file is missing",
        DamageKind::EntryCopy => "the other copy serves; nothing is lost",
        DamageKind::Payload => "its records can't be read",
        DamageKind::Hole => "nothing of it can be read",
    }
}

/// One place of damage, as a line.
pub(crate) fn line(findings: &Findings, damage: &Damage) -> String {
    let status = if findings.state.is_settled(damage) { "repaired" } else { "damaged" };
    let positions = &damage.positions;
    let place = format!("segment {} positions {}..{}", damage.segment, positions.start, positions.end);
    let (kind, meaning) = (word(damage.kind), meaning(damage.kind));
    match (&damage.offsets, damage.subject) {
        (Some(offsets), Some(subject)) => {
            let stream =
                findings.stream_of(damage).map_or_else(|| format!("stream id {subject}"), |name| name.to_owned());
            format!("{status}: {stream} offsets {}..{} ({kind}; {place}): {meaning}", offsets.start, offsets.end)
        }
        _ => format!("{status}: {place} ({kind}): {meaning}"),
    }
}

/// One place of damage, as an object.
pub(crate) fn object(findings: &Findings, damage: &Damage) -> Value {
    json!({
        "damaged": word(damage.kind),
        "loses_data": damage.kind.loses_data(),
        "repaired": findings.state.is_settled(damage),
        "segment": damage.segment,
        "positions": [damage.positions.start, damage.positions.end],
        "stream": findings.stream_of(damage),
        "stream_id": damage.subject,
        "offsets": damage.offsets.as_ref().map(|offsets| [offsets.start, offsets.end]),
    })
}

fn gap_stream(findings: &Findings, gap: &Gap) -> String {
    findings.stream_name(gap.stream).map_or_else(|| format!("stream id {}", gap.stream), ToOwned::to_owned)
}

/// Offsets that hold no record, as a line.
pub(crate) fn gap_line(findings: &Findings, gap: &Gap) -> String {
    let (stream, offsets, between) = (gap_stream(findings, gap), &gap.offsets, &gap.between);
    let place = format!("between positions {} and {}", between.start, between.end);
    match gap.is_skipped {
        true => {
            format!("note: {stream} offsets {}..{} were passed over by a repair ({place})", offsets.start, offsets.end)
        }
        false => format!("lost: {stream} offsets {}..{} ({place})", offsets.start, offsets.end),
    }
}

/// Offsets that hold no record, as an object.
pub(crate) fn gap_object(findings: &Findings, gap: &Gap) -> Value {
    json!({
        "lost": !gap.is_skipped,
        "passed_over": gap.is_skipped,
        "stream": findings.stream_name(gap.stream),
        "stream_id": gap.stream,
        "offsets": [gap.offsets.start, gap.offsets.end],
        "between": [gap.between.start, gap.between.end],
    })
}
