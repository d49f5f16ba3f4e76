//! The machine's clock is set a year forward or back, again and again, while the broker works and while it is stopped:
//! nothing is lost, doubled or moved by it, and the times within a stream never fall.
//!
//! `TIDELOG_CLOCK_JUMPS` (100) says how often, `TIDELOG_SEED` repeats the plan of a run.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod harness;

use std::sync::Arc;

use harness::board::Board;
use harness::broker::connect;
use harness::folder::RunFolder;
use harness::load::{Load, STREAMS, check, make_streams};
use harness::random::{Random, number_from_environment};
use tidelog::broker::Broker;
use tidelog::config::BrokerConfig;
use tidelog::testkit::{StreamCheck, TestClock};

const YEAR_MS: i64 = 366 * 24 * 60 * 60 * 1_000;
/// Every so many jumps happen while the broker is stopped.
const JUMPS_PER_RESTART: u64 = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_by_years_changes_nothing() {
    let jumps = number_from_environment("TIDELOG_CLOCK_JUMPS").unwrap_or(100);
    let seed = Random::seed_of_run();
    println!("TIDELOG_SEED={seed} TIDELOG_CLOCK_JUMPS={jumps}");
    let mut random = Random::new(seed);
    let folder = RunFolder::new();
    let clock = Arc::new(TestClock::of_the_machine());
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
            clock.jump_ms(by_ms);
            broker = start(&config, &clock).await;
        } else {
            clock.jump_ms(by_ms);
        }
    }
    load.finish().await.unwrap();
    let client = connect(&broker.address()).await.unwrap();
    let counts = check(&client, &board).await.unwrap();
    println!("{jumps} jumps, {} records", counts.iter().sum::<u64>());
    for stream in STREAMS {
        let records = StreamCheck::new(client.clone(), stream).records().await;
        let falls: Vec<_> = records.windows(2).filter(|pair| pair[1].time_ms < pair[0].time_ms).collect();
        assert!(falls.is_empty(), "times fall in '{stream}': {falls:?}");
    }
    client.close().await;
    tokio::task::spawn_blocking(move || broker.shutdown()).await.unwrap();
}

async fn start(config: &BrokerConfig, clock: &Arc<TestClock>) -> Broker {
    let (config, clock) = (config.clone(), Arc::clone(clock));
    tokio::task::spawn_blocking(move || Broker::start_with_clock(config, clock)).await.unwrap().unwrap()
}
