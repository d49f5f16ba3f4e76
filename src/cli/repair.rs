//! `tidelog repair`: shows what would settle the damage of a data folder that no broker runs on, and with `--yes` does it.

use std::sync::Arc;

use serde_json::json;
use tidelog::clock::{Clock as _, SystemClock};
use tidelog::damage::Findings;
use tidelog::repair::{Decisions, RepairError, RepairPlan, Repaired, misplaced, plan, repair};
use tidelog_storage::medium::Medium;
use tidelog_storage::{AsideFile, DiskCheckpoints, Misplaced, Sabotages};

use super::args::RepairArguments;
use super::damage_words;
use super::exit::{CliError, Exit, with_causes};
use super::output::Output;
use super::verify::{open_folder, unopened};

/// Repairs a folder, or shows what that would be.
///
/// # Errors
///
/// Status 1 if there is something to do and `--yes` was not given, 5 if a broker runs on the folder.
pub(crate) fn run(arguments: &RepairArguments) -> Result<(), CliError> {
    let folder = &arguments.folder;
    let medium: Arc<dyn Medium> = Arc::new(open_folder(folder)?);
    let mut out = Teller { output: Output::stdout()?, json: arguments.json };
    let sabotages = Sabotages::from_environment();
    let unopened = |error| unopened(folder, &error);
    let elsewhere = misplaced(medium.as_ref()).map_err(unopened)?;
    if !elsewhere.is_empty() {
        elsewhere.iter().try_for_each(|segment| out.misplaced(segment))?;
        if !arguments.yes {
            out.line("what else there is to do shows once they are put back")?;
            return Err(unchanged(arguments, out));
        }
    }
    if !arguments.yes {
        let plan = plan(medium.as_ref(), sabotages).map_err(unopened)?;
        out.plan(&plan)?;
        if plan.is_empty() {
            return out.finish("nothing to repair");
        }
        return Err(unchanged(arguments, out));
    }
    let mut checkpoints = DiskCheckpoints::new(folder);
    match repair(&medium, Some(&mut checkpoints), SystemClock::new().wall_ms(), sabotages) {
        Ok(repaired) => out.done(&repaired),
        Err(RepairError::Open(error)) => Err(unopened(error)),
        Err(error) => {
            out.output.flush()?;
            Err(CliError::new(Exit::No, "repair_failed", with_causes(&error))
                .with_hint(format!("mend the cause, then run `tidelog repair {} --yes` again", folder.display())))
        }
    }
}

/// There is something to do, and nobody said to do it.
fn unchanged(arguments: &RepairArguments, mut out: Teller) -> CliError {
    let folder = arguments.folder.display();
    if let Err(error) = out.output.flush() {
        return error;
    }
    CliError::new(Exit::No, "repair_needed", format!("{folder} needs a repair; nothing was changed"))
        .with_hint(format!("keep a copy of the folder, then `tidelog repair {folder} --yes` does what is shown"))
}

struct Teller {
    output: Output,
    json: bool,
}

impl Teller {
    fn line(&mut self, text: &str) -> Result<(), CliError> {
        if self.json { Ok(()) } else { self.output.write_line(text.as_bytes()) }
    }

    /// One thing, as text or as an object.
    fn tell(&mut self, text: &str, object: &serde_json::Value) -> Result<(), CliError> {
        match self.json {
            true => self.output.write_line(object.to_string().as_bytes()),
            false => self.output.write_line(text.as_bytes()),
        }
    }

    fn misplaced(&mut self, segment: &Misplaced) -> Result<(), CliError> {
        let Misplaced { name, belongs_at } = segment;
        let object = json!({ "put_back": name, "as": belongs_at });
        self.tell(&format!("put back: {name} holds {belongs_at} and gets that name again"), &object)
    }

    fn plan(&mut self, plan: &RepairPlan) -> Result<(), CliError> {
        let findings = &plan.findings;
        let open = plan.report.damages.iter().filter(|damage| !findings.state.is_settled(damage));
        for damage in open {
            self.tell(&damage_words::line(findings, damage), &damage_words::object(findings, damage))?;
        }
        for gap in findings.gaps.iter().filter(|gap| !gap.is_skipped) {
            let in_open_hole =
                |hole: &std::ops::Range<u64>| gap.between.start < hole.end && hole.start < gap.between.end;
            if findings.state.unrepaired_holes().iter().any(in_open_hole) {
                self.tell(&damage_words::gap_line(findings, gap), &damage_words::gap_object(findings, gap))?;
            }
        }
        for AsideFile { name, reason } in &plan.set_aside {
            let object = json!({ "set_aside": name, "reason": reason.word() });
            self.tell(
                &format!("set aside: {name} ({}) gets another name; nothing in it can be used", reason.word()),
                &object,
            )?;
        }
        for foreign in &plan.report.foreign {
            let object = json!({ "set_aside": foreign, "reason": "foreign" });
            self.tell(&format!("set aside: {foreign} belongs to another log; each start does this"), &object)?;
        }
        self.decisions(&plan.decisions)?;
        self.costs(findings, &plan.decisions)
    }

    fn decisions(&mut self, decisions: &Decisions) -> Result<(), CliError> {
        for stream in &decisions.streams {
            let (name, from, to) = (&stream.name, stream.skipped.start, stream.skipped.end);
            let made = if stream.is_renamed { " (its own name is lost)" } else { "" };
            let text = format!(
                "stream {name}{made}: goes on at offset {to}, which no lost record can have had; readers are told that \
                 {from}..{to} are damaged"
            );
            let object = json!({
                "stream": name, "stream_id": stream.id, "goes_on_at": to, "damaged": [from, to],
                "name_was_lost": stream.is_renamed,
            });
            self.tell(&text, &object)?;
        }
        for producer in &decisions.producers {
            let (name, epoch, next) = (&producer.name, producer.epoch, producer.next_epoch);
            let text = format!(
                "producer {name}: epoch {epoch} becomes {next}, which no lost entry can have given; sessions from before \
                 are fenced, and its last sequences stay as known"
            );
            let object = json!({ "producer": name, "producer_id": producer.id, "epoch": epoch, "next_epoch": next });
            self.tell(&text, &object)?;
        }
        for hole in &decisions.holes {
            let text = format!("positions {}..{}: leave nothing in doubt from here on", hole.start, hole.end);
            self.tell(&text, &json!({ "lifts": [hole.start, hole.end] }))?;
        }
        for hole in &decisions.healed {
            let text = format!("positions {}..{}: can be read again; nothing of them is lost", hole.start, hole.end);
            self.tell(&text, &json!({ "healed": [hole.start, hole.end] }))?;
        }
        match decisions.damages.len() {
            0 => Ok(()),
            count => self.line(&format!("{count} places without doubt about anything: told as known from here on")),
        }
    }

    /// What no repair gives back.
    fn costs(&mut self, findings: &Findings, decisions: &Decisions) -> Result<(), CliError> {
        if !decisions.holes.is_empty() {
            self.line(
                "cost: what stood there stays lost. A stream or producer that was made there can be made again, under \
                 another identity; one that was removed there is back",
            )?;
        }
        for producer in findings.nameless_producers() {
            let text = format!(
                "cost: producer id {producer} has lost its name; whoever it was starts anew, and what it sends again is \
                 stored again"
            );
            self.tell(&text, &json!({ "nameless_producer": producer }))?;
        }
        Ok(())
    }

    fn done(mut self, repaired: &Repaired) -> Result<(), CliError> {
        if repaired.decisions.is_empty() && repaired.set_aside.is_empty() && repaired.put_back.is_empty() {
            return self.finish("nothing to repair");
        }
        self.decisions(&repaired.decisions)?;
        for name in &repaired.set_aside {
            self.tell(&format!("set aside as {name}"), &json!({ "set_aside_as": name }))?;
        }
        self.finish("repaired")
    }

    fn finish(mut self, outcome: &str) -> Result<(), CliError> {
        self.tell(outcome, &json!({ "outcome": outcome.replace(' ', "_") }))?;
        self.output.flush()
    }
}
