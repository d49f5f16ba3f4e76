//! Each fault of the kit does what it says, seen from a client; what was promised holds through all of them.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::sync::Arc;
use std::time::Duration;

use tidelog::testkit::{Step, TestBroker};
use tidelog_client::{Client, ConnectionEvent, Producer, Publisher, ReaderEvent};
use tidelog_protocol::{ErrorCode, ProducerName, Record, StreamName, StreamSettings};

async fn publisher(client: &Client) -> (Producer, Publisher) {
    let stream = StreamName::new("orders").unwrap();
    let stream = client.create_stream(&stream, StreamSettings::default(), true).await.unwrap();
    let producer = client.producer(ProducerName::new("shop").unwrap()).open().await.unwrap();
    let publisher = producer.stream(&stream).await.unwrap();
    (producer, publisher)
}

/// A client goes on asking a broker that is poisoned or full for as long as it has patience.
async fn impatient_client(broker: &TestBroker) -> Client {
    Client::connect(broker.client_config().with_timeout(Duration::from_millis(300))).await.unwrap()
}

async fn values(client: &Client) -> Vec<String> {
    let mut reader = client.reader(StreamName::new("orders").unwrap()).open().await.unwrap();
    let mut values = Vec::new();
    while let Some(event) = reader.next_batch().await.unwrap() {
        let ReaderEvent::Batch(batch) = event else { panic!("{event:?}") };
        values.extend(batch.records().map(|record| String::from_utf8(record.unwrap().record.value.to_vec()).unwrap()));
    }
    values
}

/// Publishes ten records one by one while something befalls the broker, and reads them back from it.
async fn ten_records(broker: &TestBroker) {
    let client = broker.client().await;
    let (producer, publisher) = publisher(&client).await;
    for number in 0..10 {
        let stored = publisher.publish(Record::new(format!("order {number}"))).await.unwrap();
        assert_eq!(stored.offset.map(|offset| offset.get()), Some(number), "{:?}", broker.faults().story());
    }
    producer.close().await.unwrap();
    let expected: Vec<_> = (0..10).map(|number| format!("order {number}")).collect();
    assert_eq!(values(&client).await, expected);
    client.close().await;
    broker.no_acknowledged_loss().await;
    assert!(broker.acknowledged() >= 10);
}

#[tokio::test]
async fn lost_answers_are_found_out_as_duplicates() {
    let broker = TestBroker::start().await;
    broker.faults().lose_answers(3);
    ten_records(&broker).await;
    assert_eq!(broker.counters().duplicates_suppressed, 3);
    assert_eq!(broker.faults().story().len(), 3);
}

#[tokio::test]
async fn requests_that_are_delivered_twice_are_stored_once() {
    let broker = TestBroker::start().await;
    broker.faults().deliver_twice(3);
    ten_records(&broker).await;
    assert_eq!(broker.counters().duplicates_suppressed, 3);
}

#[tokio::test]
async fn lost_requests_are_sent_again() {
    let broker = TestBroker::start().await;
    broker.faults().lose_requests(3);
    ten_records(&broker).await;
    assert_eq!((broker.counters().duplicates_suppressed, broker.counters().reconnects), (0, 3));
}

#[tokio::test]
async fn a_broker_that_dies_at_any_step_rises_and_goes_on() {
    for step in Step::ALL {
        let broker = TestBroker::start().await;
        broker.faults().crash_at_nth(step, 4);
        ten_records(&broker).await;
        assert_eq!(broker.rises(), 1, "{step}");
        // What was stored before it died is found out; what was only in its memory is not there.
        let is_stored = !matches!(step, Step::BeforeAccept | Step::AfterAccept | Step::BeforeWrite);
        let duplicates = broker.counters().duplicates_suppressed;
        // An answer that has left may still be on its way when its client notices that nobody is there any more.
        let is_told = step == Step::AfterAnswer && duplicates == 0;
        assert_eq!(duplicates, u64::from(is_stored && !is_told), "{step}");
    }
}

#[tokio::test]
async fn who_only_waits_is_told_of_a_death_at_once() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let (_producer, publisher) = publisher(&client).await;
    // Long enough for the request to be acknowledged by QUIC: from then on the client has nothing to send.
    broker.faults().slow_disk(Duration::from_millis(200));
    broker.faults().crash_at(Step::BeforeAnswer);
    let since = tokio::time::Instant::now();
    publisher.publish(Record::new("an order")).await.unwrap();
    assert_eq!(broker.rises(), 1);
    assert!(since.elapsed() < Duration::from_secs(4), "not only by the next keep-alive");
}

#[tokio::test]
async fn power_that_is_lost_at_any_step_takes_nothing_that_was_acknowledged() {
    for step in Step::ALL {
        let broker = TestBroker::start().faults_from(step as u64).await;
        broker.faults().calm();
        broker.faults().power_loss_at(step);
        ten_records(&broker).await;
        assert_eq!(broker.rises(), 1, "{step}");
    }
}

#[tokio::test]
async fn a_torn_write_is_no_record() {
    for seed in 0..10 {
        let broker = TestBroker::start().faults_from(seed).await;
        broker.faults().calm();
        broker.faults().torn_write();
        ten_records(&broker).await;
        assert_eq!(broker.rises(), 1);
    }
}

#[tokio::test]
async fn a_folder_dies_and_rises_too() {
    let broker = TestBroker::start().on_disk().await;
    broker.faults().crash_at_nth(Step::AfterWrite, 2);
    broker.faults().torn_write();
    ten_records(&broker).await;
    assert_eq!(broker.rises(), 2);
    let folder = broker.folder().unwrap().to_owned();
    assert!(folder.join("broker.lock").exists() || folder.join("lock").exists(), "it is a real folder");
    broker.stop().await;
    assert!(!folder.exists(), "it is removed when all is well");
}

#[tokio::test]
async fn a_broker_that_was_killed_is_down_until_it_is_started_again() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let (_producer, publisher) = publisher(&client).await;
    publisher.publish(Record::new("before")).await.unwrap();
    let mut events = client.events();
    broker.crash().await;
    assert!(matches!(events.next().await, Some(ConnectionEvent::Lost { .. })));
    let refused = Client::connect(broker.client_config().with_timeout(Duration::from_millis(300))).await;
    assert!(refused.is_err(), "nobody listens");
    broker.power_loss().await;
    broker.start_again().await;
    publisher.publish(Record::new("behind")).await.unwrap();
    assert_eq!(values(&client).await, ["before", "behind"]);
    broker.no_acknowledged_loss().await;
}

#[tokio::test]
async fn a_failing_sync_poisons_until_the_broker_is_started_again() {
    for broker in [TestBroker::start().await, TestBroker::start().on_disk().await] {
        let client = impatient_client(&broker).await;
        let (_producer, publisher) = publisher(&client).await;
        publisher.publish(Record::new("before")).await.unwrap();
        broker.faults().failing_fsync();
        let error = publisher.publish(Record::new("lost?")).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::Poisoned), "{error}");
        broker.crash().await;
        broker.start_again().await;
        broker.no_acknowledged_loss().await;
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_takes_again() {
    for broker in [TestBroker::start().await, TestBroker::start().on_disk().await] {
        let client = impatient_client(&broker).await;
        let (_producer, publisher) = publisher(&client).await;
        broker.faults().full_disk(true);
        let mut stored = 0;
        let error = loop {
            match publisher.publish(Record::new(vec![7; 60_000])).await {
                Ok(_) => stored += 1,
                Err(error) => break error,
            }
            assert!(stored < 10_000, "it was never full");
        };
        assert_eq!(error.code(), Some(ErrorCode::DiskFull), "{error}");
        broker.faults().full_disk(false);
        // It tries again by itself.
        let client = broker.client().await;
        let (_producer, publisher) = self::publisher(&client).await;
        publisher.publish(Record::new("again")).await.unwrap();
        broker.no_acknowledged_loss().await;
    }
}

#[tokio::test]
async fn a_flipped_bit_is_told_as_damage_and_as_a_loss() {
    for broker in [TestBroker::start().await, TestBroker::start().on_disk().await] {
        let client = broker.client().await;
        let (_producer, publisher) = publisher(&client).await;
        let value = "an order that is long enough to have a middle of its own, which no copy of its beginning covers";
        publisher.publish(Record::new(value)).await.unwrap();
        publisher.publish(Record::new("a neighbour")).await.unwrap();
        broker.faults().flip_bit(value.as_bytes()).unwrap();
        let mut reader = client.reader(StreamName::new("orders").unwrap()).open().await.unwrap();
        let damage = reader.next_batch().await.unwrap().unwrap();
        assert!(matches!(damage, ReaderEvent::Damaged { from, to } if (from.get(), to.get()) == (0, 1)), "{damage:?}");
        // Panics elsewhere, so that this test succeeds and leaves no folder.
        let broker = Arc::new(broker);
        let checking = Arc::clone(&broker);
        let checked = tokio::spawn(async move { checking.no_acknowledged_loss().await }).await;
        let panic = checked.unwrap_err().into_panic();
        let text = panic.downcast_ref::<String>().unwrap();
        assert_eq!(text, "acknowledged records are lost:\n  stream 'orders', offsets 0..1");
    }
}

#[tokio::test]
async fn what_is_late_is_late() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let (_producer, publisher) = publisher(&client).await;
    let by = Duration::from_millis(60);
    let faults = broker.faults();
    type Change<'a> = (&'static str, Box<dyn Fn(Duration) + 'a>);
    let changes: [Change<'_>; 3] = [
        ("answers", Box::new(|by| faults.delay_answers(by))),
        ("the disk", Box::new(|by| faults.slow_disk(by))),
        ("the network", Box::new(|by| faults.latency(by))),
    ];
    for (what, change) in changes {
        change(by);
        let since = tokio::time::Instant::now();
        publisher.publish(Record::new(what)).await.unwrap();
        assert!(since.elapsed() >= by, "{what}");
        change(Duration::ZERO);
    }
    faults.slow_consumers(by);
    let since = tokio::time::Instant::now();
    assert_eq!(values(&client).await, ["answers", "the disk", "the network"]);
    assert!(since.elapsed() >= by, "deliveries");
}

#[tokio::test]
async fn a_network_that_comes_back_is_no_loss() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let (_producer, publisher) = publisher(&client).await;
    let time = Duration::from_millis(150);
    broker.faults().partition(time);
    let since = tokio::time::Instant::now();
    publisher.publish(Record::new("behind it")).await.unwrap();
    assert!(since.elapsed() >= time);
    assert_eq!(broker.faults().cut_connections(), 1);
    publisher.publish(Record::new("behind the cut")).await.unwrap();
    assert_eq!(values(&client).await, ["behind it", "behind the cut"]);
}

#[tokio::test]
async fn records_bear_the_time_of_the_tests_clock() {
    let broker = TestBroker::start().manual_clock(1_000_000).await;
    let client = broker.client().await;
    let (_producer, publisher) = publisher(&client).await;
    publisher.publish(Record::new("a")).await.unwrap();
    broker.clock().advance(Duration::from_secs(60));
    publisher.publish(Record::new("b")).await.unwrap();
    // Time within a stream never falls.
    broker.faults().clock_jump_ms(-3_600_000);
    publisher.publish(Record::new("c")).await.unwrap();
    broker.clock().jump_ms(7_200_000);
    publisher.publish(Record::new("d")).await.unwrap();
    let mut reader = client.reader(StreamName::new("orders").unwrap()).open().await.unwrap();
    let mut times = Vec::new();
    while let Some(ReaderEvent::Batch(batch)) = reader.next_batch().await.unwrap() {
        times.push(batch.time_ms());
    }
    assert_eq!(times, [1_000_000, 1_060_000, 1_060_000, 4_660_000]);
}
