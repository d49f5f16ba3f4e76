//! Who is compared, in which configuration, and what it promises.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use tidelog_client::Ack;

use crate::Outcome;
use crate::durable_streams::{DurableStreams, DurableStreamsSettings};
use crate::nats::{Nats, NatsSettings};
use crate::peer::Flight;
use crate::redis::{Redis, RedisSettings};
use crate::tidelog::{Tidelog, TidelogSettings};
use crate::workload::{Amounts, Figures, Workload};

const PIPELINED: Flight = Flight::Records(1024);

/// A broker in one configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Candidate {
    /// tidelog; always there, since the rest is compared with it.
    Tidelog,
    /// tidelog with as many in flight as its client lets through by default; only where one producer is pipelined.
    TidelogWindow,
    /// tidelog with acknowledgements that do not wait for the disk; only where each is waited for.
    TidelogAccepted,
    /// NATS JetStream as it comes.
    Nats,
    /// NATS JetStream, `sync_interval: always`.
    NatsAlways,
    /// Redis Streams, `appendfsync everysec`.
    Redis,
    /// Redis Streams, `appendfsync always`.
    RedisAlways,
    /// durable-streams (Rust, HTTP) as it comes.
    DurableStreams,
    /// durable-streams with many records in an append; only where one producer is pipelined.
    DurableStreamsBatched,
}

/// Where the programs are; `None` if there is none.
pub(crate) struct Programs {
    pub(crate) tidelog: PathBuf,
    pub(crate) nats: Option<PathBuf>,
    pub(crate) redis: Option<PathBuf>,
    pub(crate) durable_streams: Option<PathBuf>,
}

impl Candidate {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Candidate::Tidelog => "tidelog",
            Candidate::TidelogWindow => "tidelog, its client's default window (4 MiB)",
            Candidate::TidelogAccepted => "tidelog, `Ack::Accepted`",
            Candidate::Nats => "JetStream, default",
            Candidate::NatsAlways => "JetStream, sync always",
            Candidate::Redis => "Redis Streams, everysec",
            Candidate::RedisAlways => "Redis Streams, always",
            Candidate::DurableStreams => "durable-streams",
            Candidate::DurableStreamsBatched => "durable-streams, batched by its client (4 MiB)",
        }
    }

    /// What is true of a record when it is acknowledged.
    pub(crate) fn acknowledgement(self) -> &'static str {
        match self {
            Candidate::Tidelog | Candidate::TidelogWindow => "fdatasync done; stored once, retries included",
            Candidate::TidelogAccepted => {
                "in the broker's memory, in order; its producer keeps it and sends it again until it is durable"
            }
            Candidate::Nats => "written to the page cache; synced every 2 min: power loss takes it",
            Candidate::NatsAlways => "fsync done; one for each message",
            Candidate::Redis => {
                "in memory and, unless a sync is running, in the page cache; synced every second: power loss takes it"
            }
            Candidate::RedisAlways => "fsync done; one for all commands of a turn",
            Candidate::DurableStreams | Candidate::DurableStreamsBatched => {
                "fdatasync done; one for all appends that wait"
            }
        }
    }

    pub(crate) fn program(self, programs: &Programs) -> Option<&Path> {
        match self {
            Candidate::Tidelog | Candidate::TidelogWindow | Candidate::TidelogAccepted => Some(&programs.tidelog),
            Candidate::Nats | Candidate::NatsAlways => programs.nats.as_deref(),
            Candidate::Redis | Candidate::RedisAlways => programs.redis.as_deref(),
            Candidate::DurableStreams | Candidate::DurableStreamsBatched => programs.durable_streams.as_deref(),
        }
    }

    /// What the program says it is.
    pub(crate) fn version(self, programs: &Programs) -> Outcome<String> {
        let program = self.program(programs).ok_or("missing")?;
        if matches!(self, Candidate::DurableStreams | Candidate::DurableStreamsBatched) {
            // It has no option for that; the folder that it was installed in has its version.
            let folder = program.ancestors().nth(2).and_then(Path::file_name).unwrap_or_default();
            return Ok(folder.to_string_lossy().into_owned());
        }
        let output = Command::new(program).arg("--version").output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().chars().take(60).collect())
    }

    /// Whether there is anything to say about a workload in this configuration that is not in the row of another one.
    pub(crate) fn takes_part(self, workload: Workload) -> bool {
        match self {
            Candidate::TidelogWindow | Candidate::DurableStreamsBatched => workload.is_pipelined(),
            Candidate::TidelogAccepted => matches!(workload, Workload::One | Workload::Sixteen),
            // When it syncs has no part in how it reads and starts.
            Candidate::NatsAlways | Candidate::RedisAlways => workload.depends_on_acknowledgement(),
            Candidate::Tidelog | Candidate::Nats | Candidate::Redis | Candidate::DurableStreams => true,
        }
    }

    /// How this candidate's figures of a workload come about, where that needs saying.
    pub(crate) fn note(self, workload: Workload) -> Option<&'static str> {
        match (self, workload) {
            (Candidate::DurableStreams, Workload::Pipelined | Workload::Pipelined1K) => {
                Some("256 connections, one in flight each: a connection takes one append at a time")
            }
            (Candidate::DurableStreamsBatched, Workload::Pipelined | Workload::Pipelined1K) => {
                Some("one connection; what has gathered since the last append goes in one, of up to 1 MiB")
            }
            (Candidate::DurableStreams, Workload::Live1000 | Workload::Live10000) => {
                Some("up to 256 connections of the publisher; server-sent events in base64")
            }
            (Candidate::DurableStreams, Workload::Read | Workload::Read1K) => {
                Some("one body of bytes; records are not told apart by the server")
            }
            _ => None,
        }
    }

    /// Runs a workload once, in a folder that does not exist yet.
    pub(crate) async fn run(
        self,
        workload: Workload,
        program: &Path,
        folder: &Path,
        amounts: &Amounts,
    ) -> Outcome<Figures> {
        match self {
            Candidate::Tidelog | Candidate::TidelogWindow | Candidate::TidelogAccepted => {
                let ack = if self == Candidate::TidelogAccepted { Ack::Accepted } else { Ack::Durable };
                let unbounded = self == Candidate::TidelogWindow || workload.is_read();
                let flight = if unbounded { Flight::Unbounded } else { PIPELINED };
                workload.run::<Tidelog>(program, folder, &TidelogSettings { ack }, flight, amounts).await
            }
            Candidate::Nats | Candidate::NatsAlways => {
                let settings = NatsSettings { sync_always: self == Candidate::NatsAlways };
                workload.run::<Nats>(program, folder, &settings, PIPELINED, amounts).await
            }
            Candidate::Redis | Candidate::RedisAlways => {
                let settings = RedisSettings { sync_always: self == Candidate::RedisAlways };
                workload.run::<Redis>(program, folder, &settings, PIPELINED, amounts).await
            }
            Candidate::DurableStreams | Candidate::DurableStreamsBatched => {
                let settings = DurableStreamsSettings { record_bytes: workload.record_bytes() };
                // A reader wants the records in order, which several connections can't promise.
                let one = self == Candidate::DurableStreamsBatched || workload.is_read();
                let flight = if one { Flight::Unbounded } else { Flight::Records(256) };
                workload.run::<DurableStreams>(program, folder, &settings, flight, amounts).await
            }
        }
    }
}
