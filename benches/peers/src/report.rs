//! What was measured, as Markdown for people and JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::candidate::{Candidate, Programs};
use crate::statistics::Summary;
use crate::workload::{Amounts, Column, Figures, Workload};

/// Everything of one run.
pub(crate) struct Report {
    pub(crate) amounts: Amounts,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) candidates: Vec<Candidate>,
    /// Who can't be measured, and why.
    pub(crate) missing: BTreeMap<Candidate, String>,
    /// By workload, candidate and round.
    pub(crate) figures: BTreeMap<(Workload, Candidate, usize), Figures>,
    pub(crate) failures: Vec<String>,
    /// p50 and p99 of an fdatasync in milliseconds, each time it was looked at.
    pub(crate) fdatasync: Vec<[f64; 2]>,
    pub(crate) rounds: usize,
    /// What the machine is and what else ran on it.
    pub(crate) machine: Vec<String>,
}

impl Report {
    /// Of a candidate's figure over all rounds.
    fn summary(&self, workload: Workload, candidate: Candidate, name: &str) -> Option<Summary> {
        Summary::of((0..self.rounds).filter_map(|round| self.figure(workload, candidate, round, name)))
    }

    /// Of the ratios to tidelog's figure of the same round.
    fn ratio(&self, workload: Workload, candidate: Candidate, name: &str) -> Option<Summary> {
        Summary::of((0..self.rounds).filter_map(|round| {
            let own = self.figure(workload, Candidate::Tidelog, round, name)?;
            Some(self.figure(workload, candidate, round, name)? / own)
        }))
    }

    fn figure(&self, workload: Workload, candidate: Candidate, round: usize, name: &str) -> Option<f64> {
        self.figures.get(&(workload, candidate, round))?.get(name).copied()
    }

    pub(crate) fn markdown(&self, programs: &Programs) -> String {
        let mut text = String::from("# tidelog beside other brokers\n\n");
        for line in &self.machine {
            let _ = writeln!(text, "- {line}");
        }
        for (at, name) in ["p50", "p99"].into_iter().enumerate() {
            let over = Summary::of(self.fdatasync.iter().map(|times| times[at]));
            if let Some(Summary { median, least, most }) = over {
                let _ = writeln!(
                    text,
                    "- fdatasync of 4 KiB appended to a zeroed file, {name}: {median:.2} ms ({least:.2} to {most:.2} over {} looks)",
                    self.fdatasync.len()
                );
            }
        }
        let _ = writeln!(
            text,
            "- {} rounds; each figure is the median over them (least to most), each ratio (×) the median of the rounds' own \
             ratios to tidelog. Every measurement has a server of its own on an empty folder.\n",
            self.rounds
        );
        let _ = writeln!(text, "| | version | what an acknowledgement means |\n| --- | --- | --- |");
        for candidate in &self.candidates {
            let version = match self.missing.get(candidate) {
                Some(reason) => format!("NOT MEASURED: {reason}"),
                None => candidate.version(programs).unwrap_or_else(|error| error.to_string()),
            };
            let _ = writeln!(text, "| {} | {version} | {} |", candidate.title(), candidate.acknowledgement());
        }
        for workload in &self.workloads {
            self.table(&mut text, *workload);
        }
        if !self.failures.is_empty() {
            text.push_str("\n## Failed\n\n");
            for failure in &self.failures {
                let _ = writeln!(text, "- {failure}");
            }
        }
        text
    }

    fn table(&self, text: &mut String, workload: Workload) {
        let columns = workload.columns();
        let _ = write!(text, "\n## {}\n\n|", workload.title(&self.amounts));
        let means = workload.depends_on_acknowledgement();
        if means {
            text.push_str(" | acknowledged means");
        }
        let mut rule = String::from(if means { "| --- | ---" } else { "| ---" });
        for column in columns {
            let _ = write!(text, " | {}", column.title);
            rule.push_str(" | ---:");
            if column.compared {
                text.push_str(" | ×");
                rule.push_str(" | ---:");
            }
        }
        let _ = writeln!(text, " |\n{rule} |");
        let mut notes = Vec::new();
        for candidate in self.candidates.iter().filter(|candidate| candidate.takes_part(workload)) {
            let mark = candidate.note(workload).map_or(String::new(), |note| {
                notes.push(note);
                format!(" ({})", notes.len())
            });
            let _ = write!(text, "| {}{mark}", candidate.title());
            if means {
                let _ = write!(text, " | {}", candidate.acknowledgement().split(';').next().unwrap_or_default());
            }
            match self.missing.get(candidate) {
                Some(reason) => {
                    let _ = write!(text, " | not measured: {reason}");
                    let cells: usize = columns.iter().map(|column| 1 + usize::from(column.compared)).sum();
                    text.push_str(&" |".repeat(cells - 1));
                }
                None => columns.iter().for_each(|column| self.cells(text, workload, *candidate, column)),
            }
            text.push_str(" |\n");
        }
        for (number, note) in notes.iter().enumerate() {
            let _ = write!(text, "\n({}) {note}.", number + 1);
        }
        if !notes.is_empty() {
            text.push('\n');
        }
    }

    fn cells(&self, text: &mut String, workload: Workload, candidate: Candidate, column: &Column) {
        let cell = self.summary(workload, candidate, column.name).map_or(
            "failed".into(),
            |Summary { median, least, most }| {
                let [median, least, most] = [median, least, most].map(|value| number(value, column.decimals));
                match self.rounds {
                    1 => median,
                    _ => format!("{median} ({least} to {most})"),
                }
            },
        );
        let _ = write!(text, " | {cell}");
        if column.compared {
            let ratio =
                self.ratio(workload, candidate, column.name).map_or("?".into(), |ratio| ratio_text(ratio.median));
            let _ = write!(text, " | {ratio}");
        }
    }

    pub(crate) fn json(&self, programs: &Programs) -> Value {
        let candidates: Vec<Value> = self
            .candidates
            .iter()
            .map(|candidate| {
                json!({
                    "candidate": candidate.title(),
                    "version": candidate.version(programs).ok(),
                    "missing": self.missing.get(candidate),
                    "acknowledgement": candidate.acknowledgement(),
                })
            })
            .collect();
        let figures: Vec<Value> = self
            .figures
            .iter()
            .map(|((workload, candidate, round), figures)| {
                let (workload, candidate) = (workload.title(&self.amounts), candidate.title());
                json!({ "workload": workload, "candidate": candidate, "round": round, "figures": figures })
            })
            .collect();
        json!({
            "machine": self.machine,
            "fdatasync_4k_ms": self.fdatasync.iter().map(|[p50, p99]| json!({ "p50": p50, "p99": p99 })).collect::<Vec<_>>(),
            "rounds": self.rounds,
            "candidates": candidates,
            "figures": figures,
            "failures": self.failures,
        })
    }
}

/// To some three digits that mean something.
fn ratio_text(ratio: f64) -> String {
    match ratio {
        ..0.1 => number(ratio, 4),
        ..10.0 => number(ratio, 2),
        _ => number(ratio, 0),
    }
}

/// With commas between thousands.
fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(whole, part)| (whole, Some(part)));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    match fraction {
        Some(fraction) => format!("{grouped}.{fraction}"),
        None => grouped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_commas_and_their_decimals() {
        assert_eq!(number(1_234_567.0, 0), "1,234,567");
        assert_eq!(number(999.5, 1), "999.5");
        assert_eq!(number(1000.25, 2), "1,000.25");
    }
}
