//! A test's broker among others, on both kinds of runtime, and what is left when the test fails.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::process::Command;
use std::sync::Arc;

use tidelog::testkit::TestBroker;
use tidelog_client::{Client, ReaderEvent};
use tidelog_protocol::{Record, StreamName, StreamSettings};

const BROKERS: usize = 64;

async fn publish(client: &Client, value: String) {
    let name = StreamName::new("orders").unwrap();
    client.create_stream(&name, StreamSettings::default(), true).await.unwrap();
    let producer = client.anonymous_producer().open().await.unwrap();
    producer.stream(&name).await.unwrap().publish(Record::new(value)).await.unwrap();
    producer.close().await.unwrap();
}

async fn values(client: &Client) -> Vec<Vec<u8>> {
    let mut reader = client.reader(StreamName::new("orders").unwrap()).open().await.unwrap();
    let mut values = Vec::new();
    while let Some(ReaderEvent::Batch(batch)) = reader.next_batch().await.unwrap() {
        values.extend(batch.records().map(|record| record.unwrap().record.value.to_vec()));
    }
    values
}

async fn many_side_by_side() {
    let mut brokers = Vec::new();
    for number in 0..BROKERS {
        let start = if number % 8 == 0 { TestBroker::start().on_disk() } else { TestBroker::start() };
        brokers.push(start.await);
    }
    let addresses: std::collections::BTreeSet<_> = brokers.iter().map(TestBroker::address).collect();
    assert_eq!(addresses.len(), BROKERS);
    for (number, broker) in brokers.iter().enumerate() {
        let client = broker.client().await;
        publish(&client, format!("of {number}")).await;
        client.close().await;
    }
    // Half of them die and rise, and none of them gets another's port.
    for broker in brokers.iter().step_by(2) {
        broker.crash().await;
    }
    for broker in brokers.iter().step_by(2) {
        broker.start_again().await;
    }
    for (number, broker) in brokers.iter().enumerate() {
        let client = broker.client().await;
        assert_eq!(values(&client).await, [format!("of {number}").into_bytes()]);
        assert_eq!(broker.rises(), u64::from(number % 2 == 0));
        broker.no_acknowledged_loss().await;
        client.close().await;
    }
}

#[tokio::test]
async fn sixty_four_live_in_one_process_on_one_thread() {
    many_side_by_side().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn and_on_a_runtime_with_threads() {
    many_side_by_side().await;
}

#[test]
fn nothing_of_the_process_is_changed() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let broker = TestBroker::start().await;
        let client = broker.client().await;
        publish(&client, "a".to_owned()).await;
    });
    assert!(rustls::crypto::CryptoProvider::get_default().is_none(), "the TLS provider is the program's to choose");
    assert!(!tracing::dispatcher::has_been_set(), "the tracing subscriber is the program's to set");
}

#[test]
fn a_broker_outlives_the_runtime_it_was_started_on() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let broker = runtime().block_on(async { TestBroker::start().await });
    runtime().block_on(async { publish(&broker.client().await, "a".to_owned()).await });
    assert_eq!(runtime().block_on(async { values(&broker.client().await).await }), [b"a".to_vec()]);
}

/// Fails as a child of the next test.
#[tokio::test]
async fn child_a_test_that_panics() {
    if std::env::var_os("TIDELOG_TEST_CHILD").is_none() {
        return;
    }
    let broker = TestBroker::start().on_disk().faults_from(7).await;
    broker.faults().calm();
    broker.crash().await;
    panic!("as wanted");
}

#[test]
fn a_test_that_panics_keeps_the_folder_and_tells_what_happened() {
    let temporary = tempfile::tempdir().unwrap();
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["child_a_test_that_panics", "--exact", "--nocapture"])
        .env("TIDELOG_TEST_CHILD", "1")
        .env("TMPDIR", temporary.path())
        .output()
        .unwrap();
    assert!(!run.status.success());
    let told = String::from_utf8(run.stderr).unwrap();
    assert!(told.contains("the test's broker had its faults from TIDELOG_SEED=7"), "{told}");
    assert!(told.contains("what has befallen the test's broker:\n  killed\n"), "{told}");
    let kept = told.lines().find_map(|line| line.strip_prefix("its folder is kept: ")).expect(&told);
    assert!(std::path::Path::new(kept).join("key.pem").exists(), "{kept}");
    assert!(std::path::Path::new(kept).starts_with(temporary.path()));
}

#[tokio::test]
#[should_panic(expected = "a broker in process has no address")]
async fn in_process_there_is_no_address() {
    TestBroker::start().in_process(async |broker| drop(broker.address().to_owned())).await;
}

#[tokio::test]
async fn a_real_folder_does_not_lose_power() {
    let broker = Arc::new(TestBroker::start().on_disk().await);
    // Panics elsewhere, so that this test succeeds and leaves no folder.
    let losing = Arc::clone(&broker);
    let panic = tokio::spawn(async move { losing.power_loss().await }).await.unwrap_err().into_panic();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("leave out `on_disk()`"), "{text}");
}
