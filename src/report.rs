//! A recovery report in words.

use tidelog_storage::{Damage, DamageKind, RecoveryReport};

/// What a start found that somebody should know of, a line each.
#[must_use]
pub(crate) fn report_lines(report: &RecoveryReport) -> Vec<String> {
    let mut lines: Vec<String> = report.damages.iter().map(damage_line).collect();
    if let Some(cut) = &report.cut {
        lines.push(format!(
            "positions {}..{} behind the end of the log are not provably stored and were left where they are; they may \
             include stored records, there is no proof",
            cut.start, cut.end
        ));
    }
    lines.extend(report.set_aside.iter().map(|file| format!("a file of another log was set aside as {file}")));
    lines
}

/// One place of damage in words.
#[must_use]
fn damage_line(damage: &Damage) -> String {
    let what = match damage.kind {
        DamageKind::SegmentHeaderCopy => "one of two headers can't be read; nothing is lost",
        DamageKind::SegmentHeader => "its headers can't be read; its place is known from its successor",
        DamageKind::SegmentMissing => "the file is missing",
        DamageKind::EntryCopy => "an entry's header or its copy can't be read; nothing is lost",
        DamageKind::Payload => "records can't be read",
        DamageKind::Hole => "nothing can be read",
    };
    let positions = &damage.positions;
    let mut line =
        format!("damaged: segment {} positions {}..{}: {what}", damage.segment, positions.start, positions.end);
    if let (Some(subject), Some(offsets)) = (damage.subject, &damage.offsets) {
        line.push_str(&format!(" (stream id {subject} offsets {}..{})", offsets.start, offsets.end));
    }
    line
}
