//! A disk that is filled and freed again and again, in bytes or in names of files, below one broker that is never
//! restarted: publishes are refused before they are acknowledged, reads and deletions go on, and once there is space everything that was
//! sent is stored, once and in order.
//!
//! Mounts small file systems, so it needs root and runs only if `TIDELOG_MOUNT_TESTS=1` asks for it; otherwise it counts as
//! ignored. `TIDELOG_FULL_DISK_CYCLES` (200) says how often, half of it each, `TIDELOG_SEED` repeats the plan of a run. In memory, since
//! nothing here is about what a power cut leaves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod harness;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use harness::board::Board;
use harness::broker::connect;
use harness::failure::Failure;
use harness::folder::RunFolder;
use harness::ledger::Ledger;
use harness::load::{Load, STREAMS, check, check_from, make_streams};
use harness::mount::{FileSystem, Mount, why_not};
use harness::random::{Random, number_from_environment};
use harness::trial;
use libtest_mimic::{Arguments, Failed};
use tidelog::broker::Broker;
use tidelog::config::BrokerConfig;
use tidelog_client::Client;
use tidelog_protocol::{ErrorCode, StreamDescription, StreamName, StreamSettings};
use tokio::time::timeout;

/// More than is written in a run of so many cycles.
const CYCLES_PER_DISK: u64 = 100;
const DISK_BYTES: u64 = 320 << 20;
/// The smallest that holds the largest batch.
const SEGMENT_BYTES: u64 = 256 << 10;
const RECORD_BYTES_MAX: u32 = 128 << 10;
/// Names of files that a small disk has room for.
const NAMES: u64 = 4_096;
/// Everything is read again after so many cycles; in between what has come since.
const CYCLES_PER_CHECK: u64 = 25;

fn main() -> ExitCode {
    let not = || why_not(FileSystem::Ext4);
    let trials = vec![
        trial::new("a_disk_without_bytes_costs_nothing_but_the_wait", not(), || run(Shortage::Bytes)),
        trial::new("a_disk_without_names_costs_nothing_but_the_wait", not(), || run(Shortage::Names)),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// What the disk runs out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shortage {
    Bytes,
    Names,
}

fn run(shortage: Shortage) -> Result<(), Failed> {
    let cycles = number_from_environment("TIDELOG_FULL_DISK_CYCLES").unwrap_or(200).div_ceil(2);
    let seed = Random::seed_of_run();
    println!("TIDELOG_SEED={seed}, {cycles} cycles without {shortage:?}");
    let folder = RunFolder::new();
    let shares = cycles.div_ceil(CYCLES_PER_DISK);
    let names = if shortage == Shortage::Names { NAMES * shares } else { 0 };
    let options = format!("size={},nr_inodes={names}", DISK_BYTES * shares);
    let outcome = Mount::in_memory(&folder.join("disk"), &options).and_then(|disk| {
        let cycling = async {
            timeout(Duration::from_secs(60 + 5 * cycles), fill_and_free(disk.path(), shortage, seed, cycles)).await
        };
        trial::block_on(cycling).unwrap_or_else(|_| Err(Failure::Trouble("not done in time".to_owned())))
    });
    outcome.map_err(|failure| format!("seed {seed}: {failure}; kept in {}", folder.keep().display()).into())
}

async fn fill_and_free(disk: &Path, shortage: Shortage, seed: u64, cycles: u64) -> Result<(), Failure> {
    let mut config = BrokerConfig {
        segment_first_bytes: SEGMENT_BYTES,
        segment_bytes: SEGMENT_BYTES,
        ..BrokerConfig::on_disk(disk.join("data"))
    };
    config.limits.record_bytes_max = RECORD_BYTES_MAX;
    config.limits.batch_content_bytes_max = RECORD_BYTES_MAX;
    let broker = Broker::start(config.clone()).map_err(|error| Failure::trouble("starting the broker", error))?;
    let client = connect(&broker.address()).await?;
    make_streams(&client).await?;
    let board = Arc::new(Board::new(seed, STREAMS.len()));
    let mut load = Load::start(&board, &broker.address());
    let mut random = Random::new(seed);
    let refusals = || broker.counters().refused(ErrorCode::DiskFull);
    let mut checked = vec![0; STREAMS.len()];
    for cycle in 1..=cycles {
        board.wait_for_receipts(1 + random.below(200)).await?;
        // What is sent while the disk is being filled would need another, larger one.
        board.pause(true);
        let doomed = match cycle % CYCLES_PER_CHECK {
            0 => Some(make_stream(&client, &format!("doomed-{cycle}")).await?),
            _ => None,
        };
        let before = refusals();
        let filler =
            Filler::fill(&disk.join("filler"), shortage).map_err(|error| Failure::trouble("filling", error))?;
        board.pause(false);
        while refusals() == before {
            // Its counter is all that the refused tell; what they send meanwhile fills the active segment.
            tokio::time::sleep(Duration::from_millis(1)).await;
            board.check()?;
        }
        // Full as it is, everything that was acknowledged can be read.
        if cycle % CYCLES_PER_CHECK == 0 {
            check(&client, &board).await?;
        } else {
            checked = check_from(&client, &board, &checked).await?;
        }
        if let Some(doomed) = doomed {
            remove(&client, &doomed).await?;
        }
        if broker.counters().is_poisoned() {
            return Err(Failure::violation("a full disk has poisoned the broker"));
        }
        let acknowledged = board.sum(Ledger::receipts);
        filler.free().map_err(|error| Failure::trouble("freeing", error))?;
        board.wait_for_receipts(1).await.map_err(|failure| failure.at(format_args!("after {acknowledged} records")))?;
    }
    load.finish().await?;
    let counts = check(&client, &board).await?;
    println!("{cycles} cycles, {} records, {} refusals", counts.iter().sum::<u64>(), refusals());
    client.close().await;
    broker.shutdown();
    let broker = Broker::start(config).map_err(|error| Failure::trouble("starting the broker again", error))?;
    check(&connect(&broker.address()).await?, &board).await?;
    match broker.recovery_report().damages.is_empty() {
        true => Ok(()),
        false => Err(Failure::Violation(format!("{:?}", broker.recovery_report().damages))),
    }
}

async fn make_stream(client: &Client, name: &str) -> Result<StreamDescription, Failure> {
    let name = StreamName::new(name).expect("a name of letters, digits and a dash");
    let made = client.create_stream(&name, StreamSettings::default(), false).await;
    made.map_err(|error| Failure::trouble("making a stream", error))
}

/// A deletion has room on a full disk, and is one.
async fn remove(client: &Client, stream: &StreamDescription) -> Result<(), Failure> {
    let removed = client.remove_stream(stream.id).await;
    removed.map_err(|error| Failure::Violation(format!("a full disk refused a deletion: {error}")))?;
    match client.stream_info(&stream.name).await {
        Err(error) if error.code() == Some(ErrorCode::NotFound) => Ok(()),
        other => Err(Failure::Violation(format!("a removed stream is still there: {other:?}"))),
    }
}

/// What takes the place that there is.
struct Filler {
    path: std::path::PathBuf,
}

impl Filler {
    fn fill(path: &Path, shortage: Shortage) -> std::io::Result<Self> {
        let is_full = |error: &std::io::Error| error.kind() == std::io::ErrorKind::StorageFull;
        match shortage {
            Shortage::Bytes => {
                let mut file = File::create(path)?;
                let block = vec![0xff; 1 << 20];
                loop {
                    match file.write_all(&block) {
                        Ok(()) => {}
                        Err(error) if is_full(&error) => break,
                        Err(error) => return Err(error),
                    }
                }
            }
            Shortage::Names => {
                fs::create_dir(path)?;
                for number in 0_u64.. {
                    match File::create(path.join(number.to_string())) {
                        Ok(_) => {}
                        Err(error) if is_full(&error) => break,
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(Self { path: path.to_owned() })
    }

    fn free(self) -> std::io::Result<()> {
        match self.path.is_dir() {
            true => fs::remove_dir_all(&self.path),
            false => fs::remove_file(&self.path),
        }
    }
}
