//! The machine's clock is set a year forward or back, again and again, while the broker works and while it is stopped:
//! nothing is lost, doubled or moved by it, and the times within a stream never fall.
//!
//! `TIDELOG_CLOCK_JUMPS` (100) says how often, `TIDELOG_SEED` repeats the plan of a run.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use harness::board::Board;
use harness::broker::connect;
use harness::folder::RunFolder;
use harness::load::{Load, STREAMS, check, make_streams};
use harness::random::{Random, number_from_environment};
use tidelog::broker::Broker;
use tidelog::clock::{Clock, SystemClock};
use tidelog::config::BrokerConfig;
use tidelog_client::{Client, ReaderEvent};
use tidelog_protocol::StreamName;

const YEAR_MS: i64 = 366 * 24 * 60 * 60 * 1_000;
/// Every so many jumps happen while the broker is stopped.
const JUMPS_PER_RESTART: u64 = 10;

/// The machine's clocks, with somebody at the wall clock.
#[derive(Debug)]
struct JumpingClock {
    system: SystemClock,
    offset_ms: AtomicI64,
}

impl JumpingClock {
    fn jump(&self, by_ms: i64) {
        self.offset_ms.fetch_add(by_ms, Ordering::Relaxed);
    }
}

impl Clock for JumpingClock {
    fn wall_ms(&self) -> i64 {
        self.system.wall_ms() + self.offset_ms.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> Duration {
        self.system.monotonic()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_by_years_changes_nothing() {
    let jumps = number_from_environment("TIDELOG_CLOCK_JUMPS").unwrap_or(100);
    let seed = Random::seed_of_run();
    println!("TIDELOG_SEED={seed} TIDELOG_CLOCK_JUMPS={jumps}");
    let mut random = Random::new(seed);
    let folder = RunFolder::new();
    let clock = Arc::new(JumpingClock { system: SystemClock::new(), offset_ms: AtomicI64::new(0) });
    let mut config = BrokerConfig::on_disk(folder.join("data"));
    let mut broker = start(&config, &clock).await;
    // Clients find it again where it was.
    config.listen = broker.local_addr();
    make_streams(&connect(&broker.address()).await.unwrap()).await.unwrap();
    let board = Arc::new(Board::new(seed, STREAMS.len()));
    let mut load = Load::start(&board, &broker.address());
    for jump in 1..=jumps {
        board.wait_for_receipts(1 + random.below(100)).await.unwrap();
        let by_ms = if random.one_in(2) { YEAR_MS } else { -YEAR_MS };
        if jump % JUMPS_PER_RESTART == 0 {
            load.disturb(&mut random, None);
            tokio::task::spawn_blocking(move || broker.shutdown()).await.unwrap();
            clock.jump(by_ms);
            broker = start(&config, &clock).await;
        } else {
            clock.jump(by_ms);
        }
    }
    load.finish().await.unwrap();
    let client = connect(&broker.address()).await.unwrap();
    let counts = check(&client, &board).await.unwrap();
    println!("{jumps} jumps, {} records", counts.iter().sum::<u64>());
    for stream in STREAMS {
        let times = times(&client, stream).await;
        let falls = times.windows(2).filter(|pair| pair[1] < pair[0]).count();
        assert_eq!(falls, 0, "times fall in '{stream}': {times:?}");
    }
    client.close().await;
    tokio::task::spawn_blocking(move || broker.shutdown()).await.unwrap();
}

async fn start(config: &BrokerConfig, clock: &Arc<JumpingClock>) -> Broker {
    let (config, clock) = (config.clone(), Arc::clone(clock));
    tokio::task::spawn_blocking(move || Broker::start_with_clock(config, clock)).await.unwrap().unwrap()
}

/// The time of each batch.
async fn times(client: &Client, stream: &str) -> Vec<i64> {
    let mut reader = client.reader(StreamName::new(stream).unwrap()).open().await.unwrap();
    let mut times = Vec::new();
    while let Some(event) = reader.next_batch().await.unwrap() {
        let ReaderEvent::Batch(batch) = event else { panic!("{event:?}") };
        times.push(batch.time_ms());
    }
    times
}
