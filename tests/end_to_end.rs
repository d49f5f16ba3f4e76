//! A real broker and the real client over QUIC: what goes in comes out, once, in order, also after restarts.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidelog::testkit::TestBroker;
use tidelog::{Broker, BrokerConfig, MediumChoice};
use tidelog_client::{Client, ClientConfig, ReaderEvent};
use tidelog_protocol::{ErrorCode, ProducerName, Record, StartAt, StreamName, StreamSettings};
use tidelog_storage::medium::SimulatedMedium;

async fn connect(broker: &Broker) -> Client {
    let config = ClientConfig::find(&broker.address().parse().unwrap(), None).unwrap();
    Client::connect(config).await.unwrap()
}

fn on_disk(folder: &std::path::Path) -> BrokerConfig {
    BrokerConfig { listen: "127.0.0.1:0".parse().unwrap(), http: None, ..BrokerConfig::on_disk(folder) }
}

fn name(text: &str) -> StreamName {
    StreamName::new(text).unwrap()
}

async fn values(client: &Client, stream: &str, from: StartAt) -> Vec<(u64, Bytes)> {
    let mut reader = client.reader(name(stream)).from(from).open().await.unwrap();
    let mut all = Vec::new();
    while let Some(event) = reader.next_batch().await.unwrap() {
        let ReaderEvent::Batch(batch) = event else { panic!("{event:?}") };
        for record in batch {
            let record = record.unwrap();
            all.push((record.offset.get(), record.record.value));
        }
    }
    all
}

#[tokio::test]
async fn records_come_out_as_they_went_in_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(on_disk(folder.path())).unwrap();
    let client = connect(&broker).await;
    let orders = client.create_stream(&name("orders"), StreamSettings::default(), true).await.unwrap();
    let producer = client.producer(ProducerName::new("shop").unwrap()).open().await.unwrap();
    let publisher = producer.stream(&orders).await.unwrap();
    for number in 0..10_000_u32 {
        publisher.send(Record::new(format!("order {number}").into_bytes())).await.unwrap();
    }
    publisher.flush().await.unwrap();
    assert_eq!((publisher.published(), publisher.duplicates()), (10_000, 0));
    producer.close().await.unwrap();

    let expected: Vec<_> = (0..10_000).map(|number| (number, Bytes::from(format!("order {number}")))).collect();
    assert_eq!(values(&client, "orders", StartAt::Start).await, expected);
    assert_eq!(values(&client, "orders", StartAt::Last { count: 3 }).await, expected[9_997..]);
    client.close().await;
    broker.shutdown();

    let broker = Broker::start(on_disk(folder.path())).unwrap();
    assert_eq!(broker.recovery_report().damages, []);
    let client = connect(&broker).await;
    assert_eq!(values(&client, "orders", StartAt::Start).await, expected);
    let producer = client.producer(ProducerName::new("shop").unwrap()).open().await.unwrap();
    let publisher = producer.stream(name("orders")).await.unwrap();
    assert_eq!(publisher.last_sequence().get(), 10_000);
    client.close().await;
    broker.shutdown();
}

#[tokio::test]
async fn a_time_is_found_however_far_into_a_segment_it_lies() {
    // In one segment, for the most part.
    let start = TestBroker::start().configure(|config| config.segment_first_bytes = 1 << 20);
    let broker = start.manual_clock(1_000).await;
    let client = broker.client().await;
    let events = client.create_stream(&name("events"), StreamSettings::default(), false).await.unwrap();
    let producer = client.anonymous_producer().open().await.unwrap();
    let publisher = producer.stream(&events).await.unwrap();
    for second in 0..30_u64 {
        for _ in 0..10 {
            publisher.send_value(&vec![second as u8; 64 << 10]).await.unwrap();
        }
        publisher.flush().await.unwrap();
        broker.clock().advance(Duration::from_secs(1));
    }
    for second in [0_u64, 1, 13, 28, 29] {
        let time_ms = 1_000 + second as i64 * 1_000;
        for earlier_ms in [0, 999] {
            let from = StartAt::Time { time_ms: time_ms - earlier_ms };
            let found = values(&client, "events", from).await;
            assert_eq!(found.first().map(|(offset, _)| *offset), Some(second * 10), "{time_ms} - {earlier_ms}");
            assert_eq!(found.len() as u64, 300 - second * 10);
        }
    }
    assert_eq!(values(&client, "events", StartAt::Time { time_ms: 1 << 40 }).await, []);
}

#[tokio::test]
async fn a_full_disk_refuses_publishes_serves_reads_and_recovers_by_itself() {
    let disk = SimulatedMedium::new(1);
    let medium = MediumChoice::Custom(Arc::new(disk.clone()));
    let broker = Broker::start(BrokerConfig { http: None, medium, ..BrokerConfig::in_memory() }).unwrap();
    let client = connect(&broker).await;
    let events = client.create_stream(&name("events"), StreamSettings::default(), false).await.unwrap();
    let producer = client.producer(ProducerName::new("p").unwrap()).open().await.unwrap();
    let publisher = producer.stream(&events).await.unwrap();
    disk.set_capacity_bytes(Some(disk.used_bytes() + (1 << 20)));
    let is_refused = || broker.counters().refused(ErrorCode::DiskFull) > 0;
    let mut sent = 0_u64;
    while !is_refused() {
        let mut value = vec![0; 64 << 10];
        value[..8].copy_from_slice(&sent.to_le_bytes());
        tokio::select! {
            taken = publisher.send_value(&value) => { taken.unwrap(); sent += 1; }
            // The window is full of what is refused.
            () = async { while !is_refused() { tokio::task::yield_now().await } } => {}
        }
    }
    let stored = values(&client, "events", StartAt::Start).await;
    assert!(!stored.is_empty() && (stored.len() as u64) < sent, "{} of {sent}", stored.len());

    disk.set_capacity_bytes(None);
    publisher.flush().await.unwrap();
    let numbers: Vec<_> = values(&client, "events", StartAt::Start)
        .await
        .into_iter()
        .map(|(_, value)| u64::from_le_bytes(value[..8].try_into().unwrap()))
        .collect();
    assert_eq!(numbers, (0..sent).collect::<Vec<_>>());
    client.close().await;
    broker.shutdown();
}

#[tokio::test]
async fn a_follower_sees_each_record_as_it_becomes_durable() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let events = client.create_stream(&name("events"), StreamSettings::default(), false).await.unwrap();
    let mut reader = client.reader(&events).follow(true).open().await.unwrap();
    let producer = client.anonymous_producer().open().await.unwrap();
    let publisher = producer.stream(&events).await.unwrap();
    for number in 0..200_u64 {
        publisher.send_value(&number.to_le_bytes()).await.unwrap();
        publisher.flush().await.unwrap();
        let Some(ReaderEvent::Batch(batch)) = reader.next_batch().await.unwrap() else { panic!("no batch") };
        assert_eq!(batch.base_offset().get(), number);
        let record = batch.into_iter().next().unwrap().unwrap();
        assert_eq!(record.record.value, number.to_le_bytes().as_slice());
    }
}
