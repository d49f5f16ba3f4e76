//! `tidelog verify`: reads every byte of a data folder that no broker runs on, and names all damage.

use std::path::Path;

use serde_json::json;
use tidelog::damage::Findings;
use tidelog_storage::medium::DiskMedium;
use tidelog_storage::{OpenError, VerifyReport};

use super::args::VerifyArguments;
use super::damage_words;
use super::exit::{CliError, Exit, with_causes};
use super::output::Output;

/// Verifies a folder.
///
/// # Errors
///
/// Status 1 if damage was found that no repair has settled, 5 if a broker runs on the folder.
pub(crate) fn run(arguments: &VerifyArguments) -> Result<(), CliError> {
    let mut output = Output::stdout()?;
    let medium = open_folder(&arguments.folder)?;
    let mut findings = Findings::default();
    let report = tidelog_storage::verify(&medium, &mut |replayed| findings.count(&replayed))
        .map_err(|error| unopened(&arguments.folder, &error))?;
    if arguments.json {
        write_json(&report, &findings, &mut output)?;
    } else {
        write_text(&report, &findings, &mut output)?;
    }
    output.flush()?;
    let unsettled = report.damages.iter().filter(|damage| !findings.state.is_settled(damage)).count()
        + findings.broken_entries.len()
        + report.foreign.len();
    if unsettled == 0 {
        return Ok(());
    }
    let folder = arguments.folder.display();
    let message = format!("{folder} is damaged in {unsettled} places");
    Err(CliError::new(Exit::No, "damaged", message).with_hint(format!(
        "records beside the damage are served as before; keep a copy of the folder, then see what \
         `tidelog repair {folder}` would do"
    )))
}

/// The medium of a folder that is there.
pub(crate) fn open_folder(folder: &Path) -> Result<DiskMedium, CliError> {
    DiskMedium::open_existing(folder).map_err(|error| {
        let message = format!("could not open {}: {error}", folder.display());
        CliError::new(Exit::No, "folder_unreadable", message).with_hint("name the folder given to `serve --data`")
    })
}

/// Why a folder was not opened.
pub(crate) fn unopened(folder: &Path, error: &OpenError) -> CliError {
    let message = with_causes(error);
    match error {
        OpenError::Locked(_) => CliError::new(Exit::Conflict, "folder_in_use", message)
            .with_hint(format!("stop the broker on {} first", folder.display())),
        OpenError::OtherBranch { .. } | OpenError::Contradiction { .. } => {
            CliError::new(Exit::No, "unreadable", message)
                .with_hint(format!("see what `tidelog repair {}` would set aside", folder.display()))
        }
        _ => CliError::new(Exit::No, "unreadable", message),
    }
}

fn write_text(report: &VerifyReport, findings: &Findings, output: &mut Output) -> Result<(), CliError> {
    for damage in &report.damages {
        output.write_line(damage_words::line(findings, damage).as_bytes())?;
    }
    for gap in &findings.gaps {
        output.write_line(damage_words::gap_line(findings, gap).as_bytes())?;
    }
    for entry in &findings.broken_entries {
        output.write_line(format!("damaged: {entry}").as_bytes())?;
    }
    for file in &report.foreign {
        output.write_line(format!("foreign: {file} belongs to another log").as_bytes())?;
    }
    for file in &report.stale_footers {
        output.write_line(format!("note: {file} does not fit its segment; the next start makes it anew").as_bytes())?;
    }
    if let Some(cut) = &report.cut {
        let line = format!(
            "note: positions {}..{} behind the end are not provably stored; the next start leaves them where they are",
            cut.start, cut.end
        );
        output.write_line(line.as_bytes())?;
    }
    let (segments, entries, end) = (report.segments, report.entries, report.end);
    let (streams, records) = (findings.state.catalogue.len(), findings.records);
    output.write_line(
        format!("{segments} segments, {entries} entries, {streams} streams, {records} records, log end {end}")
            .as_bytes(),
    )
}

fn write_json(report: &VerifyReport, findings: &Findings, output: &mut Output) -> Result<(), CliError> {
    for damage in &report.damages {
        output.write_line(damage_words::object(findings, damage).to_string().as_bytes())?;
    }
    for gap in &findings.gaps {
        output.write_line(damage_words::gap_object(findings, gap).to_string().as_bytes())?;
    }
    for entry in &findings.broken_entries {
        output.write_line(json!({ "damaged": entry, "loses_data": true, "repaired": false }).to_string().as_bytes())?;
    }
    let settled = report.damages.iter().filter(|damage| findings.state.is_settled(damage)).count();
    let object = json!({
        "log_id": report.log_id.map(|id| id.to_string()),
        "segments": report.segments,
        "entries": report.entries,
        "streams": findings.state.catalogue.len(),
        "records": findings.records,
        "proven": report.proven,
        "end": report.end,
        "not_provably_stored": report.cut.as_ref().map(|cut| [cut.start, cut.end]),
        "foreign": report.foreign,
        "stale_footers": report.stale_footers,
        "damages": report.damages.len() + findings.broken_entries.len(),
        "repaired": settled,
    });
    output.write_line(object.to_string().as_bytes())
}
