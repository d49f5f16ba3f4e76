//! The command line as clap parses it: every option with its meaning, and nothing that does anything.

mod bench;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tidelog::config::{DATA_FOLDER_DEFAULT, HTTP_PORT_DEFAULT, QUIC_PORT_DEFAULT};
use tidelog_protocol::{Offset, ProducerName, StartAt, StreamName};

pub(crate) use bench::{
    BenchArguments, BenchCommand, BenchCommonArguments, BenchConsumeArguments, BenchLatencyArguments,
    BenchPublishArguments,
};

/// An event broker whose safe way is the fast way.
///
/// Producers append records to named streams, consumers read them in order. What is acknowledged is
/// on disk, once, and in order.
#[derive(Debug, Parser)]
#[command(
    name = "tidelog",
    version,
    max_term_width = 100,
    after_help = "Example: `tidelog serve` in one terminal; in another, \
                  `echo hello | tidelog produce greetings` and `tidelog consume greetings`."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands that work.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Serve(ServeArguments),
    Stream(StreamArguments),
    Produce(ProduceArguments),
    Consume(ConsumeArguments),
    Bench(BenchArguments),
    Verify(VerifyArguments),
    Repair(RepairArguments),
}

impl Command {
    /// Whether errors are to be told as JSON.
    pub(crate) fn json(&self) -> bool {
        match self {
            Command::Serve(_) => false,
            Command::Stream(arguments) => arguments.command.client().json,
            Command::Produce(arguments) => arguments.client.json,
            Command::Consume(arguments) => arguments.client.json,
            Command::Bench(arguments) => arguments.command.common().client.json,
            Command::Verify(arguments) => arguments.json,
            Command::Repair(arguments) => arguments.json,
        }
    }
}

/// Run a broker in the foreground until SIGINT or SIGTERM.
///
/// Without any option it keeps its log in ./tidelog-data, makes itself a certificate on the first
/// start, and lets the other commands on this machine find it. Messages go to standard error; set
/// TIDELOG_LOG to `debug` for more of them or `warn` for fewer.
#[derive(Debug, Args)]
#[command(after_help = "Example: tidelog serve --data /var/lib/tidelog --http off")]
pub(crate) struct ServeArguments {
    /// Keep log, key and certificate in this folder; it is made if it is missing.
    #[arg(long, value_name = "DIR", default_value = DATA_FOLDER_DEFAULT)]
    pub(crate) data: PathBuf,

    /// Listen for clients on this UDP address. Port 0 takes any free one. Only addresses of this
    /// machine itself (loopback) are allowed.
    #[arg(long, value_name = "ADDR", default_value_t = loopback(QUIC_PORT_DEFAULT))]
    pub(crate) listen: SocketAddr,

    /// Serve /livez, /readyz, /metrics and /api/v1/status on this TCP address, or `off`. Port 0
    /// takes any free one. Only addresses of this machine itself (loopback) are allowed.
    #[arg(long, value_name = "ADDR|off", default_value_t = HttpChoice::On(loopback(HTTP_PORT_DEFAULT)))]
    pub(crate) http: HttpChoice,

    /// Keep everything in memory; it is gone when the broker stops.
    #[arg(long, conflicts_with = "data")]
    pub(crate) memory: bool,

    /// When the disk has not finished a sync after so long, acknowledge nothing more until a restart.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) sync_timeout: Duration,

    /// When ready, write one line of JSON (listen, http, pin, pid) to this open file descriptor and
    /// close it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(3..))]
    pub(crate) ready_fd: Option<i32>,

    /// Run only as long as standard input is open, and stop at its end as on SIGTERM. A test keeps a pipe
    /// to the broker's standard input open: when the test's process ends in any way, SIGKILL included, the
    /// pipe is closed and the broker goes too. What comes through it is thrown away.
    #[arg(long)]
    pub(crate) until_stdin_closes: bool,
}

/// Where the monitor listens, if it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpChoice {
    Off,
    On(SocketAddr),
}

impl HttpChoice {
    pub(crate) fn address(self) -> Option<SocketAddr> {
        match self {
            HttpChoice::Off => None,
            HttpChoice::On(address) => Some(address),
        }
    }
}

impl fmt::Display for HttpChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HttpChoice::Off => f.write_str("off"),
            HttpChoice::On(address) => address.fmt(f),
        }
    }
}

impl FromStr for HttpChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<HttpChoice, String> {
        if text == "off" {
            return Ok(HttpChoice::Off);
        }
        text.parse()
            .map(HttpChoice::On)
            .map_err(|_| format!("neither `off` nor an address such as 127.0.0.1:{HTTP_PORT_DEFAULT}"))
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// What every command that asks a broker takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ClientArguments {
    /// The broker: HOST:PORT, or tidelog://HOST:PORT?pin=… with the SHA-256 of its key.
    #[arg(long, value_name = "ADDR", env = "TIDELOG_SERVER", default_value_t = loopback(QUIC_PORT_DEFAULT).to_string())]
    pub(crate) server: String,

    /// Trust a broker whose certificate one of the authorities in this PEM file vouches for.
    #[arg(long, value_name = "FILE", env = "TIDELOG_CA")]
    pub(crate) ca: Option<PathBuf>,

    /// Read the access token from this file, which nobody else may read.
    #[arg(long, value_name = "FILE", env = "TIDELOG_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// Give up after so long without any progress.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,

    /// Print one JSON object a line, errors too.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make, list, look at and remove streams.
#[derive(Debug, Args)]
pub(crate) struct StreamArguments {
    #[command(subcommand)]
    pub(crate) command: StreamCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StreamCommand {
    /// Make a stream.
    #[command(after_help = "Example: tidelog stream create orders --if-not-exists")]
    Create {
        /// The stream's name: 1 to 255 of the characters A-Z a-z 0-9 . _ -
        #[arg(value_name = "NAME")]
        name: StreamName,

        /// Succeed if the stream is there already.
        #[arg(long)]
        if_not_exists: bool,

        #[command(flatten)]
        client: ClientArguments,
    },

    /// List all streams.
    #[command(after_help = "Example: tidelog stream ls --json")]
    Ls {
        #[command(flatten)]
        client: ClientArguments,
    },

    /// Remove a stream for good, with all its records.
    ///
    /// Producers and consumers of it end with `stream_gone`. A stream that is made under its name
    /// later is another one and begins with offset 0. Without --yes nothing is removed, and what
    /// would go is told.
    #[command(after_help = "Example: tidelog stream rm orders --yes")]
    Rm {
        /// The stream's name.
        #[arg(value_name = "NAME")]
        name: StreamName,

        /// Yes, remove it.
        #[arg(long)]
        yes: bool,

        #[command(flatten)]
        client: ClientArguments,
    },

    /// Show one stream: its first and next offset, its size, its age.
    #[command(after_help = "Example: tidelog stream info orders")]
    Info {
        /// The stream's name.
        #[arg(value_name = "NAME")]
        name: StreamName,

        #[command(flatten)]
        client: ClientArguments,
    },
}

impl StreamCommand {
    fn client(&self) -> &ClientArguments {
        match self {
            StreamCommand::Create { client, .. }
            | StreamCommand::Ls { client }
            | StreamCommand::Rm { client, .. }
            | StreamCommand::Info { client, .. } => client,
        }
    }
}

/// Publish a record a line, from standard input or a file.
///
/// The stream is made if it is missing. With --producer a line's number is its sequence, so the
/// same command run again after any crash of either side goes on where it stopped, and every line is
/// in the stream exactly once. Without it, a retry may store a line twice.
#[derive(Debug, Args)]
#[command(after_help = "Example: tidelog produce orders --producer import-2024 --file orders.txt")]
pub(crate) struct ProduceArguments {
    /// The stream to publish to.
    #[arg(value_name = "STREAM")]
    pub(crate) stream: StreamName,

    /// Publish under this name, exactly once. Two runs of the same name exclude each other.
    #[arg(long, value_name = "NAME")]
    pub(crate) producer: Option<ProducerName>,

    /// Read from this file instead of standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// What a record is acknowledged by: `durable`, on the broker's disk, or `accepted`, ordered in its
    /// memory. With both, the command ends well only when all of its records are durable, and sends again
    /// what the broker has lost until then; receipts are of durable records.
    #[arg(long, value_name = "durable|accepted", default_value = "durable")]
    pub(crate) ack: AckArgument,

    /// Take what stands before the first SEP of a line as the record's key, and the rest as its value.
    #[arg(long, value_name = "SEP", value_parser = clap::builder::NonEmptyStringValueParser::new(), conflicts_with = "ndjson")]
    pub(crate) key_separator: Option<String>,

    /// Take a JSON object a line, as `consume --json` prints them: `value` or `value_base64`, and if
    /// they are there `key` or `key_base64`, `headers`, `headers_base64`, `timestamp` (RFC 3339, or
    /// milliseconds since 1970).
    #[arg(long)]
    pub(crate) ndjson: bool,

    /// Take the sequence of a record from its object's `offset`, plus one, instead of counting lines: a
    /// stream that is copied so is copied once, wherever the copy is taken up again. Offsets must rise.
    #[arg(long, value_name = "offset", requires = "ndjson", requires = "producer")]
    pub(crate) sequence_from: Option<SequenceFrom>,

    /// Send this many records a second, evenly.
    #[arg(long, value_name = "N/s")]
    pub(crate) rate: Option<Rate>,

    /// Print a receipt for each record as soon as it is durable.
    #[arg(long)]
    pub(crate) receipts: bool,

    #[command(flatten)]
    pub(crate) client: ClientArguments,
}

/// What counts as acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum AckArgument {
    /// On the broker's disk.
    Durable,
    /// Ordered in the broker's memory.
    Accepted,
}

/// Where sequences come from, if not from the number of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SequenceFrom {
    /// The object's offset, plus one.
    Offset,
}

/// Records a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rate(f64);

impl Rate {
    pub(crate) const fn per_second(self) -> f64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let number = text.strip_suffix("/s").unwrap_or(text);
        match number.parse::<f64>() {
            // So that neither a wait nor a sum of waits leaves what a clock can hold.
            Ok(rate) if (1e-6..=1e9).contains(&rate) => Ok(Rate(rate)),
            _ => Err("not a number of records a second such as 1000/s or 0.5/s".to_owned()),
        }
    }
}

/// Read a stream's records in order, a line each.
///
/// Without --follow it stops at the end that the stream had when the command started.
#[derive(Debug, Args)]
#[command(after_help = "Example: tidelog consume orders --from -5 --follow --json")]
pub(crate) struct ConsumeArguments {
    /// The stream to read.
    #[arg(value_name = "STREAM")]
    pub(crate) stream: StreamName,

    /// Where to begin: `start`, `end`, an offset, -N for the last N records, a time as RFC 3339
    /// (2024-05-01T12:00:00Z) or an age (10m).
    #[arg(long, value_name = "start|end|OFFSET|-N|TIME", default_value = "start", allow_hyphen_values = true)]
    pub(crate) from: FromArgument,

    /// Go on with new records as they come.
    #[arg(long)]
    pub(crate) follow: bool,

    /// Stop after this many records.
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,

    /// Go on behind records that can't be read. They are told all the same, and the status is still 1.
    #[arg(long)]
    pub(crate) skip_damaged: bool,

    #[command(flatten)]
    pub(crate) client: ClientArguments,
}

/// Read every byte of a broker's data folder and name all damage; changes nothing.
///
/// The broker must not be running. Ends with 1 if damage was found that no repair has settled.
#[derive(Debug, Args)]
#[command(after_help = "Example: tidelog verify ./tidelog-data")]
pub(crate) struct VerifyArguments {
    /// The data folder.
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,

    /// Print one JSON object a line, errors too.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show what would settle the damage of a broker's data folder; with --yes, do it.
///
/// What is lost stays lost. A repair lets streams and producers go on of which nobody can tell any more how far
/// they were: streams at an offset that no lost record can have had (readers are told of the gap as damaged),
/// producers under an epoch that fences every session from before. New streams and producers can be made again.
/// Segments that were renamed get their names back; files of which nothing can be used get another name. Nothing is
/// deleted. It may be stopped and run again at any moment.
///
/// The broker must not be running. Ends with 0 if there is nothing to do or it is done, and with 1 if there is
/// something to do and --yes was not given.
#[derive(Debug, Args)]
#[command(after_help = "Example: tidelog repair ./tidelog-data, and when that looks right: \
                        tidelog repair ./tidelog-data --yes")]
pub(crate) struct RepairArguments {
    /// The data folder. Keep a copy of it first.
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,

    /// Do what is shown without it.
    #[arg(long)]
    pub(crate) yes: bool,

    /// Print one JSON object a line, errors too.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where reading begins, as it was typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FromArgument {
    Start,
    End,
    Offset(Offset),
    Last(u64),
    /// Milliseconds since 1970 UTC.
    Time(i64),
    Age(Duration),
}

impl FromArgument {
    /// The same as the broker is asked for it. An age is counted back from `now_ms`.
    pub(crate) fn start_at(self, now_ms: i64) -> StartAt {
        match self {
            FromArgument::Start => StartAt::Start,
            FromArgument::End => StartAt::End,
            FromArgument::Offset(offset) => StartAt::Offset { offset },
            FromArgument::Last(count) => StartAt::Last { count },
            FromArgument::Time(time_ms) => StartAt::Time { time_ms },
            FromArgument::Age(age) => {
                let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
                StartAt::Time { time_ms: now_ms.saturating_sub(age_ms) }
            }
        }
    }
}

impl FromStr for FromArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<FromArgument, String> {
        match text {
            "start" => return Ok(FromArgument::Start),
            "end" => return Ok(FromArgument::End),
            _ => {}
        }
        if let Ok(offset) = text.parse() {
            return Ok(FromArgument::Offset(Offset::new(offset)));
        }
        if let Some(count) = text.strip_prefix('-').and_then(|count| count.parse().ok()) {
            return match count {
                0 => Err("the last 0 records are none; `end` waits for new ones".to_owned()),
                count => Ok(FromArgument::Last(count)),
            };
        }
        if let Ok(time) = text.parse::<jiff::Timestamp>() {
            return Ok(FromArgument::Time(time.as_millisecond()));
        }
        if let Ok(age) = humantime::parse_duration(text) {
            return Ok(FromArgument::Age(age));
        }
        Err("neither `start`, `end`, an offset, -N, a time such as 2024-05-01T12:00:00Z nor an age such as 10m"
            .to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    use super::*;

    fn serve(line: &[&str]) -> Result<ServeArguments, clap::Error> {
        let words = ["tidelog", "serve"].iter().chain(line);
        match Arguments::try_parse_from(words)?.command {
            Command::Serve(arguments) => Ok(arguments),
            other => panic!("{other:?}"),
        }
    }

    /// Any set of arguments as a command of its own.
    #[derive(Debug, Parser)]
    struct Alone<A: Args> {
        #[command(flatten)]
        arguments: A,
    }

    fn parse<A: Args>(line: &[&str]) -> Result<A, clap::Error> {
        Alone::try_parse_from(["test"].iter().chain(line)).map(|alone: Alone<A>| alone.arguments)
    }

    #[test]
    fn clap_finds_no_contradiction() {
        Arguments::command().debug_assert();
        Alone::<StreamArguments>::command().debug_assert();
        Alone::<ProduceArguments>::command().debug_assert();
        Alone::<ConsumeArguments>::command().debug_assert();
        Alone::<BenchArguments>::command().debug_assert();
        Alone::<VerifyArguments>::command().debug_assert();
        Alone::<RepairArguments>::command().debug_assert();
    }

    #[test]
    fn serve_without_options_has_the_promised_defaults() {
        let arguments = serve(&[]).unwrap();
        assert_eq!(arguments.data, PathBuf::from("./tidelog-data"));
        assert_eq!(arguments.listen.to_string(), "127.0.0.1:7440");
        assert_eq!(arguments.http.to_string(), "127.0.0.1:7441");
        assert!(!arguments.memory);
        assert_eq!(arguments.ready_fd, None);
        assert!(!arguments.until_stdin_closes);
    }

    #[test]
    fn serve_options_are_taken() {
        let arguments = serve(&["--data", "/d", "--listen", "[::1]:0", "--http", "off", "--ready-fd", "9"]).unwrap();
        assert_eq!(arguments.data, PathBuf::from("/d"));
        assert_eq!(arguments.listen.to_string(), "[::1]:0");
        assert_eq!(arguments.http.address(), None);
        assert_eq!(arguments.ready_fd, Some(9));
        let arguments =
            serve(&["--memory", "--listen", "127.0.0.1:0", "--http", "off", "--until-stdin-closes"]).unwrap();
        assert!(arguments.memory && arguments.until_stdin_closes);
    }

    #[test]
    fn serve_refuses_what_cannot_be_meant() {
        let kind = |line: &[&str]| serve(line).unwrap_err().kind();
        assert_eq!(kind(&["--memory", "--data", "/d"]), ErrorKind::ArgumentConflict);
        assert_eq!(kind(&["--ready-fd", "2"]), ErrorKind::ValueValidation);
        assert_eq!(kind(&["--listen", "7440"]), ErrorKind::ValueValidation);
        assert_eq!(kind(&["--http", "on"]), ErrorKind::ValueValidation);
        assert_eq!(kind(&["extra"]), ErrorKind::UnknownArgument);
    }

    #[test]
    fn every_way_to_say_where_to_begin_is_understood() {
        let from = |text: &str| parse::<ConsumeArguments>(&["s", "--from", text]).unwrap().from;
        assert_eq!(from("start"), FromArgument::Start);
        assert_eq!(from("end"), FromArgument::End);
        assert_eq!(from("0"), FromArgument::Offset(Offset::new(0)));
        assert_eq!(from("18446744073709551615"), FromArgument::Offset(Offset::new(u64::MAX)));
        assert_eq!(from("-5"), FromArgument::Last(5));
        assert_eq!(from("1970-01-01T00:00:01.5Z"), FromArgument::Time(1_500));
        assert_eq!(from("1970-01-01T02:00:00+01:00"), FromArgument::Time(3_600_000));
        assert_eq!(from("10m"), FromArgument::Age(Duration::from_secs(600)));
        for text in ["", "-", "-0", "-x", "yesterday", "1.5", "18446744073709551616"] {
            let error = parse::<ConsumeArguments>(&["s", "--from", text]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}: {error}");
        }
    }

    #[test]
    fn an_age_is_counted_back_from_now() {
        let age = FromArgument::Age(Duration::from_secs(1));
        assert_eq!(age.start_at(5_000), StartAt::Time { time_ms: 4_000 });
        let ages = FromArgument::Age(Duration::MAX);
        assert!(matches!(ages.start_at(0), StartAt::Time { time_ms } if time_ms < 0));
        assert_eq!(FromArgument::Last(3).start_at(0), StartAt::Last { count: 3 });
    }

    #[test]
    fn client_options_have_the_promised_defaults() {
        let arguments = parse::<ProduceArguments>(&["orders"]).unwrap();
        assert_eq!(arguments.client.server, "127.0.0.1:7440");
        assert_eq!(arguments.client.timeout, Duration::from_secs(30));
        assert!(!arguments.client.json);
        let arguments = parse::<ProduceArguments>(&["orders", "--timeout", "1m 5s"]).unwrap();
        assert_eq!(arguments.client.timeout, Duration::from_secs(65));
    }

    #[test]
    fn a_bad_name_is_wrong_usage() {
        for name in [".own", "with space", "", "a.dead.b"] {
            let error = parse::<ProduceArguments>(&[name]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{name}: {error}");
        }
    }
}
