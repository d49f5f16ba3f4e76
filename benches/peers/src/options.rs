//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::candidate::Candidate;
use crate::workload::Workload;

/// tidelog beside other brokers: the same workloads, on this machine, in one run.
///
/// Prints a Markdown table for each workload. Ends with 1 if anything failed or did not verify.
#[derive(Debug, Parser)]
#[command(name = "peers", max_term_width = 100)]
pub(crate) struct Options {
    /// A look in a minute or two: one round, and little of everything. No figures to quote.
    #[arg(long)]
    pub(crate) quick: bool,

    /// Measure everything so many times, in another order each time.
    #[arg(long, value_name = "N", default_value_t = 3, default_value_if("quick", "true", "1"))]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,

    /// Only these, beside tidelog.
    #[arg(long, value_name = "PEER,…", value_delimiter = ',')]
    pub(crate) only: Vec<Candidate>,

    /// Only these.
    #[arg(long, value_name = "WORKLOAD,…", value_delimiter = ',')]
    pub(crate) workloads: Vec<Workload>,

    /// Write every figure of every round to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Make the temporary folder for all servers' data in this one, which must be on a real disk.
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target"))]
    pub(crate) folder: PathBuf,

    /// The broker, a release build.
    #[arg(long, value_name = "FILE")]
    pub(crate) tidelog: PathBuf,

    /// NATS' server; without it JetStream is told to be missing.
    #[arg(long, value_name = "FILE")]
    pub(crate) nats_server: Option<PathBuf>,

    /// Redis' server.
    #[arg(long, value_name = "FILE")]
    pub(crate) redis_server: Option<PathBuf>,

    /// durable-streams' server; the folder above its own is named after its version.
    #[arg(long, value_name = "FILE")]
    pub(crate) durable_streams: Option<PathBuf>,
}
