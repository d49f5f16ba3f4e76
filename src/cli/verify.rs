//! `tidelog verify`: reads every byte of a data folder that no broker runs on, and names all damage.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::json;
use tidelog::state::{Change, changes};
use tidelog_protocol::StreamId;
use tidelog_storage::medium::DiskMedium;
use tidelog_storage::{Damage, DamageKind, OpenError, Replayed, VerifyReport};

use super::args::VerifyArguments;
use super::exit::{CliError, Exit, with_causes};
use super::output::Output;

/// What a folder holds besides its damage.
#[derive(Debug, Default)]
struct Holdings {
    /// Removed ones too.
    streams: HashMap<StreamId, String>,
    removed: HashSet<StreamId>,
    /// Of streams that are there.
    records: u64,
    records_of: HashMap<StreamId, u64>,
    broken_entries: Vec<String>,
}

/// Verifies a folder.
///
/// # Errors
///
/// Status 1 if damage was found, 5 if a broker runs on the folder.
pub(crate) fn run(arguments: &VerifyArguments) -> Result<(), CliError> {
    let mut output = Output::stdout()?;
    let medium = DiskMedium::open_existing(&arguments.folder).map_err(|error| {
        let message = format!("could not open {}: {error}", arguments.folder.display());
        CliError::new(Exit::No, "folder_unreadable", message).with_hint("name the folder given to `serve --data`")
    })?;
    let mut holdings = Holdings::default();
    let report = tidelog_storage::verify(&medium, &mut |replayed| holdings.count(&replayed))
        .map_err(|error| unopened(&arguments.folder, &error))?;
    if arguments.json {
        write_json(&report, &holdings, &mut output)?;
    } else {
        write_text(&report, &holdings, &mut output)?;
    }
    output.flush()?;
    let lost = report.damages.len() + holdings.broken_entries.len() + report.foreign.len();
    if lost == 0 {
        return Ok(());
    }
    let message = format!("{} is damaged in {lost} places", arguments.folder.display());
    Err(CliError::new(Exit::No, "damaged", message)
        .with_hint("records beside the damage are served as before; keep a copy of the folder before anything else"))
}

impl Holdings {
    fn count(&mut self, replayed: &Replayed<'_>) {
        let Replayed::Entry { head, .. } = replayed else { return };
        match changes(head) {
            Ok(all) => {
                for change in all {
                    match change {
                        Change::StreamCreated(created) => {
                            self.streams.insert(created.id, created.name.to_string());
                        }
                        // Its bytes stay where they are, so damage in them is still named.
                        Change::StreamRemoved(removed) => {
                            self.removed.insert(removed.id);
                            self.records -= self.records_of.remove(&removed.id).unwrap_or(0);
                        }
                        Change::BatchAppended(batch) => {
                            let span = u64::from(batch.span);
                            self.records += span;
                            *self.records_of.entry(batch.header.stream).or_default() += span;
                        }
                        Change::EpochRaised(_) => {}
                    }
                }
            }
            Err(error) => self.broken_entries.push(error.to_string()),
        }
    }

    /// Streams that are there.
    fn live(&self) -> usize {
        self.streams.keys().filter(|id| !self.removed.contains(id)).count()
    }

    fn stream(&self, damage: &Damage) -> Option<&str> {
        let id = StreamId::new(damage.subject?);
        self.streams.get(&id).map(String::as_str)
    }
}

fn unopened(folder: &Path, error: &OpenError) -> CliError {
    let message = with_causes(error);
    match error {
        OpenError::Locked(_) => CliError::new(Exit::Conflict, "folder_in_use", message)
            .with_hint(format!("stop the broker on {} first", folder.display())),
        _ => CliError::new(Exit::No, "unreadable", message),
    }
}

fn write_text(report: &VerifyReport, holdings: &Holdings, output: &mut Output) -> Result<(), CliError> {
    for damage in &report.damages {
        let place =
            format!("segment {} positions {}..{}", damage.segment, damage.positions.start, damage.positions.end);
        let line = match (&damage.offsets, holdings.stream(damage)) {
            (Some(offsets), Some(stream)) => {
                format!("damaged: {stream} offsets {}..{} ({}; {place})", offsets.start, offsets.end, word(damage.kind))
            }
            _ => format!("damaged: {place} ({})", word(damage.kind)),
        };
        output.write_line(line.as_bytes())?;
    }
    for entry in &holdings.broken_entries {
        output.write_line(format!("damaged: {entry}").as_bytes())?;
    }
    for file in &report.foreign {
        output.write_line(format!("foreign: {file} belongs to another log").as_bytes())?;
    }
    for file in &report.stale_footers {
        output.write_line(format!("note: {file} is stale; the next start makes it anew").as_bytes())?;
    }
    if let Some(cut) = &report.cut {
        let line = format!(
            "note: positions {}..{} behind the end are not provably stored; the next start leaves them where they are",
            cut.start, cut.end
        );
        output.write_line(line.as_bytes())?;
    }
    let (segments, entries) = (report.segments, report.entries);
    let (streams, records, end) = (holdings.live(), holdings.records, report.end);
    output.write_line(
        format!("{segments} segments, {entries} entries, {streams} streams, {records} records, log end {end}")
            .as_bytes(),
    )
}

fn write_json(report: &VerifyReport, holdings: &Holdings, output: &mut Output) -> Result<(), CliError> {
    for damage in &report.damages {
        let object = json!({
            "damaged": word(damage.kind),
            "loses_data": damage.kind.loses_data(),
            "segment": damage.segment,
            "positions": [damage.positions.start, damage.positions.end],
            "stream": holdings.stream(damage),
            "offsets": damage.offsets.as_ref().map(|offsets| [offsets.start, offsets.end]),
        });
        output.write_line(object.to_string().as_bytes())?;
    }
    for entry in &holdings.broken_entries {
        output.write_line(json!({ "damaged": entry, "loses_data": true }).to_string().as_bytes())?;
    }
    let object = json!({
        "log_id": report.log_id.map(|id| id.to_string()),
        "segments": report.segments,
        "entries": report.entries,
        "streams": holdings.live(),
        "records": holdings.records,
        "proven": report.proven,
        "end": report.end,
        "not_provably_stored": report.cut.as_ref().map(|cut| [cut.start, cut.end]),
        "foreign": report.foreign,
        "stale_footers": report.stale_footers,
        "damages": report.damages.len() + holdings.broken_entries.len(),
    });
    output.write_line(object.to_string().as_bytes())
}

const fn word(kind: DamageKind) -> &'static str {
    match kind {
        DamageKind::SegmentHeaderCopy => "segment_header_copy",
        DamageKind::SegmentHeader => "segment_header",
        DamageKind::SegmentMissing => "segment_missing",
        DamageKind::EntryCopy => "entry_copy",
        DamageKind::Payload => "payload",
        DamageKind::Hole => "hole",
    }
}
