//! The workloads, and what each measures of a broker.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use tokio::time::sleep;

use crate::Outcome;
use crate::content::Contents;
use crate::load::{self, Published, Stop};
use crate::peer::{Flight, Peer, Producer as _};
use crate::process::{disk_bytes, own_cpu_time};
use crate::statistics::percentile;

const PRODUCERS: u64 = 16;
/// After a load, and after a start, memory is looked at when nothing has happened for so long.
const IDLE: Duration = Duration::from_secs(1);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Workload {
    /// One producer that waits for each acknowledgement, 100 B.
    One,
    /// 16 producers on 16 connections, each waits for each acknowledgement, 100 B.
    Sixteen,
    /// One producer with 1,024 records in flight, 100 B.
    Pipelined,
    /// The same with 1 KiB.
    #[value(name = "pipelined-1k")]
    Pipelined1K,
    /// Catch-up read of 100 B.
    Read,
    /// Catch-up read of 1 KiB.
    #[value(name = "read-1k")]
    Read1K,
    /// Publish to a live subscriber, 1,000 a second, 100 B.
    #[value(name = "live-1000")]
    Live1000,
    /// The same, 10,000 a second.
    #[value(name = "live-10000")]
    Live10000,
    /// Memory, start time and disk, empty and with a million of 100 B.
    Footprint,
}

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amounts {
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
    pub(crate) read_records: u64,
    pub(crate) read_records_1k: u64,
    pub(crate) footprint_records: u64,
}

impl Amounts {
    pub(crate) const FULL: Self = Self {
        warm_up: Duration::from_millis(500),
        duration: Duration::from_secs(2),
        read_records: 1_000_000,
        read_records_1k: 200_000,
        footprint_records: 1_000_000,
    };
    pub(crate) const QUICK: Self = Self {
        warm_up: Duration::from_millis(200),
        duration: Duration::from_millis(500),
        read_records: 200_000,
        read_records_1k: 50_000,
        footprint_records: 100_000,
    };
}

/// One figure of a workload.
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) decimals: usize,
    /// Whether its ratio to tidelog's is told.
    pub(crate) compared: bool,
}

const fn column(name: &'static str, title: &'static str, decimals: usize, compared: bool) -> Column {
    Column { name, title, decimals, compared }
}

const WAITING: &[Column] = &[
    column("per_second", "records/s", 0, true),
    column("p50_ms", "p50 ms", 3, true),
    column("p99_ms", "p99 ms", 2, true),
    column("server_us", "server CPU µs/record", 1, false),
    column("client_us", "client CPU µs/record", 1, false),
    column("fdatasync_ms", "fdatasync p50 just before, ms", 2, false),
];
const FLOWING: &[Column] = &[
    column("per_second", "records/s", 0, true),
    column("megabytes_per_second", "MB/s", 1, false),
    column("server_us", "server CPU µs/record", 2, false),
    column("client_us", "client CPU µs/record", 2, false),
    column("fdatasync_ms", "fdatasync p50 just before, ms", 2, false),
];
const LIVE: &[Column] = &[
    column("p50_ms", "p50 ms", 3, true),
    column("p99_ms", "p99 ms", 2, true),
    column("sent_percent", "sent of what was due, %", 0, false),
    column("fdatasync_ms", "fdatasync p50 just before, ms", 2, false),
];
const READING: &[Column] = &[
    column("per_second", "records/s", 0, true),
    column("megabytes_per_second", "MB/s", 1, false),
    column("server_us", "server CPU µs/record", 2, false),
    column("client_us", "client CPU µs/record", 2, false),
];
const FOOTPRINT: &[Column] = &[
    column("idle_mebibytes", "RSS idle MiB", 1, true),
    column("loaded_mebibytes", "RSS loaded MiB", 1, true),
    column("start_empty_ms", "start empty ms", 0, true),
    column("start_loaded_ms", "start loaded ms", 0, true),
    column("disk_bytes", "disk B/record", 0, true),
    column("load_per_second", "loaded with records/s", 0, false),
];

/// Figures by the names of the columns.
pub(crate) type Figures = BTreeMap<&'static str, f64>;

impl Workload {
    pub(crate) fn title(self, amounts: &Amounts) -> String {
        match self {
            Workload::One => "Publish, one in flight, 100 B".into(),
            Workload::Sixteen => "Publish, 16 producers on 16 connections, one in flight each, 100 B".into(),
            Workload::Pipelined => "Publish, one producer pipelined, 1,024 in flight, 100 B".into(),
            Workload::Pipelined1K => "Publish, one producer pipelined, 1,024 in flight, 1 KiB".into(),
            Workload::Read => format!("Catch-up read of {} records of 100 B", amounts.read_records),
            Workload::Read1K => format!("Catch-up read of {} records of 1 KiB", amounts.read_records_1k),
            Workload::Live1000 => "Publish to a live subscriber, 1,000/s, 100 B, from the moment due".into(),
            Workload::Live10000 => "Publish to a live subscriber, 10,000/s, 100 B, from the moment due".into(),
            Workload::Footprint => {
                format!("Memory, start and disk, empty and loaded with {} records of 100 B", amounts.footprint_records)
            }
        }
    }

    pub(crate) fn columns(self) -> &'static [Column] {
        match self {
            Workload::One | Workload::Sixteen => WAITING,
            Workload::Pipelined | Workload::Pipelined1K => FLOWING,
            Workload::Read | Workload::Read1K => READING,
            Workload::Live1000 | Workload::Live10000 => LIVE,
            Workload::Footprint => FOOTPRINT,
        }
    }

    /// Whether what an acknowledgement means has a say in the figures.
    pub(crate) fn depends_on_acknowledgement(self) -> bool {
        !matches!(self, Workload::Read | Workload::Read1K | Workload::Footprint)
    }

    pub(crate) fn is_pipelined(self) -> bool {
        matches!(self, Workload::Pipelined | Workload::Pipelined1K)
    }

    pub(crate) fn is_read(self) -> bool {
        matches!(self, Workload::Read | Workload::Read1K)
    }

    pub(crate) fn record_bytes(self) -> usize {
        match self {
            Workload::Pipelined1K | Workload::Read1K => 1024,
            _ => 100,
        }
    }

    /// Runs it once against a broker of its own in `folder`.
    pub(crate) async fn run<P: Peer>(
        self,
        program: &Path,
        folder: &Path,
        settings: &P::Settings,
        flight: Flight,
        amounts: &Amounts,
    ) -> Outcome<Figures> {
        fs::create_dir(folder)?;
        let contents = Contents::new(self.record_bytes());
        let mut run = Run { peer: P::start(program, folder, settings).await?, contents, amounts };
        if self == Workload::Footprint {
            return run.footprint(program, folder, settings, flight).await;
        }
        run.peer.create().await?;
        let figures = match self {
            Workload::One => run.one().await,
            Workload::Sixteen => run.sixteen().await,
            Workload::Pipelined | Workload::Pipelined1K => run.pipelined(flight).await,
            Workload::Read => run.read(amounts.read_records, flight).await,
            Workload::Read1K => run.read(amounts.read_records_1k, flight).await,
            Workload::Live1000 => run.live(1_000).await,
            Workload::Live10000 | Workload::Footprint => run.live(10_000).await,
        }?;
        run.peer.stop().await?;
        Ok(figures)
    }
}

struct Run<'a, P> {
    peer: P,
    contents: Contents,
    amounts: &'a Amounts,
}

impl<P: Peer> Run<'_, P> {
    async fn one(&mut self) -> Outcome<Figures> {
        let mut producer = self.peer.producer(Flight::One).await?;
        let warm_up = Stop::After(self.amounts.warm_up);
        let warmed = load::publish(&mut producer, &mut self.contents, 0, Flight::One, warm_up).await?.records;
        let before = self.cpu_times()?;
        let stop = Stop::After(self.amounts.duration);
        let published = load::publish(&mut producer, &mut self.contents, warmed, Flight::One, stop).await?;
        let spent = self.cpu_since(before, published.records)?;
        producer.settle().await?;
        self.expect_stored(warmed + published.records).await?;
        Ok(waiting(published, spent))
    }

    async fn sixteen(&mut self) -> Outcome<Figures> {
        let before = self.cpu_times()?;
        let Amounts { warm_up, duration, .. } = *self.amounts;
        let (published, warmed) =
            load::publish_from_many(&mut self.peer, PRODUCERS, &self.contents, warm_up, duration).await?;
        let spent = self.cpu_since(before, published.records + warmed)?;
        self.expect_stored(warmed + published.records).await?;
        Ok(waiting(published, spent))
    }

    async fn pipelined(&mut self, flight: Flight) -> Outcome<Figures> {
        let mut producer = self.peer.producer(flight).await?;
        let warm_up = Stop::After(self.amounts.warm_up);
        let warmed = load::publish(&mut producer, &mut self.contents, 0, flight, warm_up).await?.records;
        let before = self.cpu_times()?;
        let stop = Stop::After(self.amounts.duration);
        let published = load::publish(&mut producer, &mut self.contents, warmed, flight, stop).await?;
        let spent = self.cpu_since(before, published.records)?;
        self.expect_stored(warmed + published.records).await?;
        Ok(self.flowing(published.records, published.elapsed, spent))
    }

    async fn read(&mut self, records: u64, flight: Flight) -> Outcome<Figures> {
        self.load(records, flight).await?;
        let before = self.cpu_times()?;
        let elapsed = load::read_all(&mut self.peer, records, &mut self.contents).await?;
        let spent = self.cpu_since(before, records)?;
        Ok(self.flowing(records, elapsed, spent))
    }

    async fn live(&mut self, per_second: u32) -> Outcome<Figures> {
        let Amounts { warm_up, duration, .. } = *self.amounts;
        let mut seen = load::live(&mut self.peer, per_second, &mut self.contents, warm_up, duration).await?;
        self.expect_stored(seen.sent).await?;
        Ok(Figures::from([
            ("p50_ms", milliseconds(percentile(&mut seen.latencies, 50))),
            ("p99_ms", milliseconds(percentile(&mut seen.latencies, 99))),
            ("sent_percent", 100.0 * seen.sent as f64 / seen.due as f64),
        ]))
    }

    async fn footprint(
        mut self,
        program: &Path,
        folder: &Path,
        settings: &P::Settings,
        flight: Flight,
    ) -> Outcome<Figures> {
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let records = self.amounts.footprint_records;
        let mut figures = Figures::new();
        figures.insert("start_empty_ms", milliseconds(self.peer.process().start_time));
        sleep(IDLE).await;
        figures.insert("idle_mebibytes", mebibytes(self.peer.process().resident_bytes()?));
        self.peer.create().await?;
        let loaded = self.load(records, flight).await?;
        figures.insert("load_per_second", records as f64 / loaded.elapsed.as_secs_f64());
        sleep(IDLE).await;
        figures.insert("loaded_mebibytes", mebibytes(self.peer.process().resident_bytes()?));
        figures.insert("disk_bytes", disk_bytes(folder)? as f64 / records as f64);
        self.peer.stop().await?;
        let mut again = P::start(program, folder, settings).await?;
        figures.insert("start_loaded_ms", milliseconds(again.process().start_time));
        let stored = again.stored().await?;
        again.stop().await?;
        if stored != records {
            return Err(format!("{stored} records are there after a restart, {records} were acknowledged").into());
        }
        Ok(figures)
    }

    /// Publishes the records `0..records`.
    async fn load(&mut self, records: u64, flight: Flight) -> Outcome<Published> {
        let mut producer = self.peer.producer(flight).await?;
        let published = load::publish(&mut producer, &mut self.contents, 0, flight, Stop::Records(records)).await?;
        self.expect_stored(records).await?;
        Ok(published)
    }

    async fn expect_stored(&mut self, records: u64) -> Outcome<()> {
        match self.peer.stored().await? {
            stored if stored == records => Ok(()),
            stored => Err(format!("{records} records were acknowledged, {stored} are stored").into()),
        }
    }

    /// The broker's and this process' own.
    fn cpu_times(&mut self) -> Outcome<[Duration; 2]> {
        Ok([self.peer.process().cpu_time()?, own_cpu_time()])
    }

    /// Since `before`, in microseconds a record.
    fn cpu_since(&mut self, before: [Duration; 2], records: u64) -> Outcome<[f64; 2]> {
        let [server, client] = self.cpu_times()?;
        Ok([server.saturating_sub(before[0]), client - before[1]]
            .map(|spent| spent.as_secs_f64() * 1e6 / records as f64))
    }

    fn flowing(&self, records: u64, elapsed: Duration, [server, client]: [f64; 2]) -> Figures {
        let per_second = records as f64 / elapsed.as_secs_f64();
        let megabytes = per_second * self.contents.record_bytes() as f64 / 1e6;
        Figures::from([
            ("per_second", per_second),
            ("megabytes_per_second", megabytes),
            ("server_us", server),
            ("client_us", client),
        ])
    }
}

fn waiting(mut published: Published, [server, client]: [f64; 2]) -> Figures {
    Figures::from([
        ("per_second", published.records as f64 / published.elapsed.as_secs_f64()),
        ("p50_ms", milliseconds(percentile(&mut published.latencies, 50))),
        ("p99_ms", milliseconds(percentile(&mut published.latencies, 99))),
        ("server_us", server),
        ("client_us", client),
    ])
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
