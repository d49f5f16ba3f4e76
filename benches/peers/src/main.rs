//! tidelog beside other brokers; `README.md` says what is compared and what is not.
#![expect(clippy::disallowed_methods, reason = "this measures, so it reads the clock")]

mod candidate;
mod content;
mod durable_streams;
mod load;
mod machine;
mod nats;
mod options;
mod peer;
mod process;
mod redis;
mod report;
mod statistics;
mod tcp;
mod tidelog;
mod workload;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser as _, ValueEnum as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::candidate::{Candidate, Programs};
use crate::machine::Processors;
use crate::options::Options;
use crate::report::Report;
use crate::statistics::percentile;
use crate::workload::{Amounts, Workload};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything that was measured verified.
fn run(options: &Options) -> Outcome<bool> {
    fs::create_dir_all(&options.folder)?;
    let folder = tempfile::Builder::new().prefix("peers-").tempdir_in(options.folder.canonicalize()?)?;
    // Not resolved: a program may go by the name that it is called by.
    let there =
        |path: &Option<PathBuf>| path.as_ref().filter(|path| path.is_file()).map(std::path::absolute).transpose();
    let programs = Programs {
        tidelog: options.tidelog.canonicalize().map_err(|error| format!("{}: {error}", options.tidelog.display()))?,
        nats: there(&options.nats_server)?,
        redis: there(&options.redis_server)?,
        durable_streams: there(&options.durable_streams)?,
    };
    let chosen = |candidate: &Candidate| {
        let own = matches!(candidate, Candidate::Tidelog | Candidate::TidelogWindow);
        own || options.only.is_empty() || options.only.contains(candidate)
    };
    let candidates: Vec<Candidate> = Candidate::value_variants().iter().copied().filter(chosen).collect();
    let missing: BTreeMap<Candidate, String> = candidates
        .iter()
        .filter(|candidate| candidate.program(&programs).is_none())
        .map(|candidate| (*candidate, "no such program here".to_owned()))
        .collect();
    let all = Workload::value_variants().iter().copied();
    let workloads =
        all.filter(|workload| options.workloads.is_empty() || options.workloads.contains(workload)).collect();
    let mut report = Report {
        amounts: if options.quick { Amounts::QUICK } else { Amounts::FULL },
        workloads,
        candidates,
        missing,
        figures: BTreeMap::new(),
        failures: Vec::new(),
        fdatasync: Vec::new(),
        rounds: usize::try_from(options.rounds)?,
        machine: vec![machine::description()],
    };
    let before = Processors::now()?;
    measure(&mut report, &programs, folder.path())?;
    let others = Processors::now()?.others_since(before);
    report
        .machine
        .push(format!("other programs and the kernel used {:.0} % of all processors meanwhile", others * 100.0));
    print!("{}", report.markdown(&programs));
    if let Some(file) = &options.json {
        fs::write(file, serde_json::to_vec_pretty(&report.json(&programs))?)?;
    }
    Ok(report.failures.is_empty())
}

fn measure(report: &mut Report, programs: &Programs, folder: &Path) -> Outcome<()> {
    let (amounts, workloads) = (report.amounts, report.workloads.clone());
    for round in 0..report.rounds {
        for workload in &workloads {
            for candidate in order(&report.candidates, round) {
                let Some(program) = candidate.program(programs) else { continue };
                if !candidate.takes_part(*workload) {
                    continue;
                }
                let started = Instant::now();
                let mut times = machine::fdatasync_times(folder)?;
                let sync = [50, 99].map(|percent| percentile(&mut times, percent).as_secs_f64() * 1e3);
                report.fdatasync.push(sync);
                let place = folder.join("server");
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                // One thread for all clients of a measurement; whatever a failed one has left ends with the runtime.
                let measured = LocalSet::new().block_on(&runtime, async {
                    tokio::select! {
                        measured = candidate.run(*workload, program, &place, &amounts) => Ok(measured),
                        // Servers end with what is dropped now.
                        interrupted = interruption() => Err(interrupted),
                    }
                });
                runtime.shutdown_timeout(Duration::from_secs(5));
                let measured = measured.map_err(|interrupted| interrupted.map_or_else(|error| error, Into::into))?;
                let outcome = if measured.is_ok() { "done" } else { "FAILED" };
                match measured {
                    Ok(mut figures) => {
                        figures.insert("fdatasync_ms", sync[0]);
                        report.figures.insert((*workload, candidate, round), figures);
                    }
                    Err(error) => {
                        let failure = format!("{workload:?}, {}, round {}: {error}", candidate.title(), round + 1);
                        report.failures.push(failure);
                    }
                }
                if place.exists() {
                    fs::remove_dir_all(&place)?;
                }
                machine::settle(folder)?;
                let seconds = started.elapsed().as_secs_f64();
                eprintln!("round {}: {workload:?}, {}: {outcome} in {seconds:.1} s", round + 1, candidate.title());
            }
        }
    }
    Ok(())
}

/// Waits for SIGINT or SIGTERM.
async fn interruption() -> Outcome<&'static str> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminated.recv() => Ok("terminated"),
        _ = interrupted.recv() => Ok("interrupted"),
    }
}

/// Each round begins with another one, and every second goes backwards, so that nobody always follows the same.
fn order(candidates: &[Candidate], round: usize) -> Vec<Candidate> {
    let mut order = candidates.to_vec();
    order.rotate_left(round % candidates.len().max(1));
    if round % 2 == 1 {
        order.reverse();
    }
    order
}
