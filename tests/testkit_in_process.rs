//! A broker as part of the test's own task: no thread, no socket, time that passes by itself, and runs that a seed repeats.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::time::Duration;

use tidelog::testkit::{Step, TestBroker};
use tidelog_client::{Client, Publisher, ReaderEvent};
use tidelog_protocol::{ProducerName, Record, StreamName, StreamSettings};
use tokio::time::Instant;

fn orders() -> StreamName {
    StreamName::new("orders").unwrap()
}

async fn publisher(client: &Client) -> Publisher {
    client.create_stream(&orders(), StreamSettings::default(), true).await.unwrap();
    let producer = client.producer(ProducerName::new("shop").unwrap()).open().await.unwrap();
    producer.stream(&orders()).await.unwrap()
}

/// What is in the stream, and by the broker's clock when it was put there.
async fn stored(client: &Client) -> Vec<(String, i64)> {
    let mut reader = client.reader(orders()).open().await.unwrap();
    let mut stored = Vec::new();
    while let Some(ReaderEvent::Batch(batch)) = reader.next_batch().await.unwrap() {
        let records = batch.records().map(|record| String::from_utf8(record.unwrap().record.value.to_vec()).unwrap());
        stored.extend(records.map(|record| (record, batch.time_ms())));
    }
    stored
}

/// Ten records through whatever befalls the broker; all that can be seen of it.
async fn a_run(seed: u64) -> (Vec<String>, Vec<(String, i64)>, Duration, u64) {
    let began = Instant::now();
    TestBroker::start()
        .faults_from(seed)
        .in_process(async |broker| {
            let client = broker.client().await;
            let publisher = publisher(&client).await;
            for number in 0..10 {
                publisher.publish(Record::new(format!("order {number}"))).await.unwrap();
                // On the paused clock, so that records bear different times.
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            broker.faults().calm();
            let stored = stored(&client).await;
            broker.no_acknowledged_loss().await;
            (broker.faults().story(), stored, began.elapsed(), broker.rises())
        })
        .await
}

#[test]
fn a_seed_repeats_a_run_to_the_moment() {
    let run = |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(a_run(seed))
    };
    let mut stories = std::collections::BTreeSet::new();
    let mut rises = 0;
    for seed in 0..60 {
        let first = run(seed);
        let values: Vec<_> = first.1.iter().map(|(value, _)| value.clone()).collect();
        assert_eq!(values, (0..10).map(|number| format!("order {number}")).collect::<Vec<_>>(), "seed {seed}");
        assert_eq!(first, run(seed), "seed {seed}");
        rises += first.3;
        stories.insert(first.0);
    }
    println!("{} stories of 60, {rises} deaths", stories.len());
    assert!(stories.len() > 50 && rises > 30, "{} stories, {rises} deaths", stories.len());
}

#[tokio::test(start_paused = true)]
async fn waiting_takes_no_time() {
    // More than a day of it: who really waited would never come to the end.
    TestBroker::start()
        .in_process(async |broker| {
            let client = broker.client().await;
            let publisher = publisher(&client).await;
            let before = Instant::now();
            broker.faults().partition(Duration::from_secs(20));
            publisher.publish(Record::new("behind it")).await.unwrap();
            assert!(before.elapsed() >= Duration::from_secs(20));
            tokio::time::advance(Duration::from_secs(86_400)).await;
            publisher.publish(Record::new("a day later")).await.unwrap();
            let orders = broker.stream("orders").await;
            orders.expect(["behind it", "a day later"]).await;
            let missing = orders.check_expect(["never"]).await.unwrap_err();
            assert!(missing.to_string().contains("0 of 1 record came within 5 s"), "{missing}");
            orders.expect_no_more_for(Duration::from_secs(3_600)).await;
            let stored = stored(&client).await;
            let [(_, first), (_, second)] = stored.as_slice() else { panic!("{stored:?}") };
            assert!(second - first >= 86_400_000, "{stored:?}");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_works_on_a_runtime_with_threads_too() {
    TestBroker::start()
        .in_process(async |broker| {
            let client = broker.client().await;
            let publisher = publisher(&client).await;
            for step in Step::ALL {
                broker.faults().crash_at(step);
                publisher.publish(Record::new(step.to_string())).await.unwrap();
            }
            // Behind the last answer it may still be about to die.
            broker.risen(Step::ALL.len() as u64).await;
            let orders = broker.stream("orders").await;
            orders.expect(Step::ALL.map(|step| step.to_string())).await;
            broker.crash().await;
            broker.power_loss().await;
            broker.start_again().await;
            // The same look goes on where it was.
            orders.expect_no_more().await;
            publisher.publish(Record::new("behind all that")).await.unwrap();
            orders.expect(["behind all that"]).await;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn it_has_no_thread() {
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    // Other tests of this process come and go: only what this one's own broker would be called counts.
    let named = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.starts_with("tidelog-")).count()
    };
    TestBroker::start()
        .in_process(async |broker| {
            let client = broker.client().await;
            publisher(&client).await.publish(Record::new("a")).await.unwrap();
            assert_eq!(named(), 0, "of {} threads", threads());
        })
        .await;
}
