//! What `tidelog bench` takes.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use tidelog_protocol::RECORD_BYTES_MAX_CEILING;

use super::{AckArgument, ClientArguments, Rate};

/// Bytes of a record's value unless told otherwise.
const SIZE_DEFAULT: u32 = 100;
/// Records that `consume` reads unless told otherwise.
const RECORDS_DEFAULT: u64 = 1_000_000;
/// More streams than this tell nothing new and take long to make and to remove.
const STREAMS_MAX: u64 = 10_000;
/// Each is a task of this process; more of them would measure the tool.
const PRODUCERS_MAX: u64 = 1_024;
/// Kept under way one by one; beyond this a window in bytes is what is meant.
const IN_FLIGHT_MAX: u64 = 1 << 20;

/// Measure a running broker, beside what its disk and QUIC alone do in the same run.
///
/// It works on streams of its own, which it removes at its end, also after an error or an interrupt; the
/// producers `tidelog-bench-N` stay, for the next run. What was written is read back, and the status is 1 if that is
/// not what was sent. The bytes written stay in the broker's log.
#[derive(Debug, Args)]
pub(crate) struct BenchArguments {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    Publish(BenchPublishArguments),
    Latency(BenchLatencyArguments),
    Consume(BenchConsumeArguments),
}

impl BenchCommand {
    pub(crate) fn common(&self) -> &BenchCommonArguments {
        match self {
            BenchCommand::Publish(arguments) => &arguments.common,
            BenchCommand::Latency(arguments) => &arguments.common,
            BenchCommand::Consume(arguments) => &arguments.common,
        }
    }
}

/// How fast records become durable, and how long each takes.
///
/// Each producer keeps a window full or a number of records under way. Latency is from a record's hand-over to its
/// acknowledgement; with --rate, from the moment it was due, whether or not it could be handed over then.
#[derive(Debug, Args)]
#[command(after_help = "Examples: tidelog bench publish; one record at a time from each of 16 clients: \
                        tidelog bench publish --producers 16 --connections 16 --in-flight 1")]
pub(crate) struct BenchPublishArguments {
    #[command(flatten)]
    pub(crate) common: BenchCommonArguments,

    /// Producers that publish at the same time.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=PRODUCERS_MAX))]
    pub(crate) producers: u64,

    /// Connections that they share evenly; at most one for each.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=PRODUCERS_MAX))]
    pub(crate) connections: u64,

    /// Bytes that each producer keeps under way, such as 4MiB.
    #[arg(long, value_name = "BYTES", default_value = "4MiB", conflicts_with = "in_flight")]
    pub(crate) window: ByteCount,

    /// Records that each producer keeps under way.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=IN_FLIGHT_MAX))]
    pub(crate) in_flight: Option<u64>,

    /// Streams; each record goes to any of them.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=STREAMS_MAX))]
    pub(crate) streams: u64,

    /// Publish this many records, over all producers.
    #[arg(long, value_name = "N", conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) records: Option<u64>,

    /// Publish for so long.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub(crate) duration: Duration,

    /// Publish this many records a second, over all producers, evenly.
    #[arg(long, value_name = "N/s")]
    pub(crate) rate: Option<Rate>,

    /// What a record is acknowledged by. With `accepted` the run ends when all are durable all the same.
    #[arg(long, value_name = "durable|accepted", default_value = "durable")]
    pub(crate) ack: AckArgument,

    /// Write all latencies to this file, a line for each: nanoseconds, percentile, count.
    #[arg(long, value_name = "FILE")]
    pub(crate) histogram: Option<PathBuf>,
}

/// How long a record takes from its producer to a consumer that waits for it.
///
/// From the moment a record was due to the moment the consumer has it; both are this process, on a connection each.
#[derive(Debug, Args)]
#[command(after_help = "Example: tidelog bench latency --rate 10000/s")]
pub(crate) struct BenchLatencyArguments {
    #[command(flatten)]
    pub(crate) common: BenchCommonArguments,

    /// Records a second, evenly.
    #[arg(long, value_name = "N/s", default_value = "1000/s")]
    pub(crate) rate: Rate,

    /// Publish for so long.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub(crate) duration: Duration,

    /// Write all latencies to this file, a line for each: nanoseconds, percentile, count.
    #[arg(long, value_name = "FILE")]
    pub(crate) histogram: Option<PathBuf>,
}

/// How fast a stream is read from its start.
///
/// The stream is filled first, so what is read is most likely in the broker's page cache.
#[derive(Debug, Args)]
#[command(after_help = "Example: tidelog bench consume --size 1024 --records 500000")]
pub(crate) struct BenchConsumeArguments {
    #[command(flatten)]
    pub(crate) common: BenchCommonArguments,

    /// Records to read.
    #[arg(long, value_name = "N", default_value_t = RECORDS_DEFAULT, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) records: u64,
}

impl BenchCommand {
    /// Where all latencies are to be written to.
    pub(crate) fn histogram(&self) -> Option<&Path> {
        match self {
            BenchCommand::Publish(arguments) => arguments.histogram.as_deref(),
            BenchCommand::Latency(arguments) => arguments.histogram.as_deref(),
            BenchCommand::Consume(_) => None,
        }
    }
}

/// What all of them take.
#[derive(Debug, Args)]
pub(crate) struct BenchCommonArguments {
    /// Bytes of a record.
    #[arg(long, value_name = "BYTES", default_value_t = SIZE_DEFAULT,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(RECORD_BYTES_MAX_CEILING)))]
    pub(crate) size: u32,

    #[command(flatten)]
    pub(crate) client: ClientArguments,
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("nothing can be measured in no time".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteCount(u64);

impl ByteCount {
    pub(crate) const fn get(self) -> u64 {
        self.0
    }
}

/// Units of a number of bytes; the longer ones first, since the shortest ends them all.
const UNITS: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

impl FromStr for ByteCount {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteCount, String> {
        let found = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
        let (number, factor) = found.unwrap_or((text, 1));
        match number.trim_end().parse::<u64>().ok().and_then(|number| number.checked_mul(factor)) {
            Some(bytes) if bytes > 0 => Ok(ByteCount(bytes)),
            _ => Err("not a number of bytes such as 65536, 64KiB or 4MiB".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Arguments, Command};
    use super::*;

    fn parse(line: &str) -> Result<BenchCommand, clap::Error> {
        let words = ["tidelog", "bench"].into_iter().chain(line.split(' '));
        match Arguments::try_parse_from(words)?.command {
            Command::Bench(arguments) => Ok(arguments.command),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_the_promised_ones() {
        let Ok(BenchCommand::Publish(publish)) = parse("publish") else { panic!() };
        assert_eq!((publish.common.size, publish.producers, publish.connections, publish.streams), (100, 1, 1, 1));
        assert_eq!((publish.window.get(), publish.in_flight, publish.records), (4 << 20, None, None));
        assert_eq!((publish.duration, publish.rate), (Duration::from_secs(5), None));
        assert_eq!(publish.ack, AckArgument::Durable);
        let Ok(BenchCommand::Latency(latency)) = parse("latency") else { panic!() };
        assert_eq!((latency.rate.per_second(), latency.duration), (1_000.0, Duration::from_secs(5)));
        let Ok(BenchCommand::Consume(consume)) = parse("consume") else { panic!() };
        assert_eq!((consume.records, consume.common.size), (1_000_000, 100));
    }

    #[test]
    fn what_cannot_be_meant_is_wrong_usage() {
        for line in [
            "publish --window 4MiB --in-flight 1",
            "publish --records 5 --duration 1s",
            "publish --duration 0s",
            "publish --size 0",
            "publish --in-flight 0",
            "publish --producers 0",
            "publish --window 0",
            "publish --window 4Mi",
            "publish --rate 0/s",
            "latency --records 5",
            "consume --records 0",
            "consume --group",
            "consume --histogram f",
            "nothing",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn bytes_are_counted_in_either_thousands() {
        let bytes = |text: &str| text.parse::<ByteCount>().map(ByteCount::get);
        assert_eq!(bytes("4MiB"), Ok(4 << 20));
        assert_eq!(bytes("4 MB"), Ok(4_000_000));
        assert_eq!(bytes("64KiB"), Ok(65_536));
        assert_eq!(bytes("100B"), Ok(100));
        assert_eq!(bytes("100"), Ok(100));
        assert!(bytes("18446744073709551615GiB").is_err());
    }
}
