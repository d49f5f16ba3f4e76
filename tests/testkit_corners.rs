//! The kit where it is easily wrong: what is asked for while nobody lives, taken back too late, counted twice, or not told.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::sync::Arc;
use std::time::Duration;

use tidelog::testkit::{Step, TestBroker};
use tidelog_client::{Client, ConnectionEvent, Producer, Publisher};
use tidelog_protocol::{ErrorCode, ProducerName, Record, Sequence, StreamName, StreamSettings};
use tokio::time::Instant;

const MOMENT: Duration = Duration::from_millis(50);
/// Far less than any delay that is to be cut short here.
const SOON: Duration = Duration::from_secs(5);

fn orders() -> StreamName {
    StreamName::new("orders").unwrap()
}

async fn publisher(client: &Client) -> (Producer, Publisher) {
    let stream = client.create_stream(&orders(), StreamSettings::default(), true).await.unwrap();
    let producer = client.producer(ProducerName::new("shop").unwrap()).open().await.unwrap();
    let publisher = producer.stream(&stream).await.unwrap();
    (producer, publisher)
}

async fn impatient_client(broker: &TestBroker) -> Client {
    Client::connect(broker.client_config().with_timeout(Duration::from_millis(300))).await.unwrap()
}

/// What a program sends that numbers its records itself, from `first` to `last`, in one go.
async fn rows(broker: &TestBroker, first: u64, last: u64) {
    let client = broker.client().await;
    let (producer, publisher) = publisher(&client).await;
    for row in first..=last {
        publisher.send_at(Sequence::new(row), Record::new(format!("row {row}"))).await.unwrap();
    }
    producer.close().await.unwrap();
    client.close().await;
}

async fn panic_of(task: impl Future<Output = ()> + Send + 'static) -> String {
    let panic = tokio::spawn(task).await.expect_err("it must panic").into_panic();
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast::<&str>().unwrap()).to_owned(),
    }
}

// The witness.

#[tokio::test]
async fn duplicates_that_are_cut_otherwise_are_no_loss() {
    let broker = TestBroker::start().await;
    // In a batch each.
    for row in 1..=5 {
        rows(&broker, row, row).await;
    }
    // In one batch, then in pieces, one of which is new in part.
    rows(&broker, 1, 5).await;
    rows(&broker, 6, 9).await;
    rows(&broker, 7, 8).await;
    rows(&broker, 8, 11).await;
    rows(&broker, 2, 10).await;
    broker.stream("orders").await.expect((1..=11).map(|row| format!("row {row}"))).await;
    broker.no_acknowledged_loss().await;
    // What is called a duplicate is looked for all the same.
    broker.faults().flip_bit(b"row 3").unwrap();
    let text = panic_of(async move { broker.no_acknowledged_loss().await }).await;
    assert!(text.starts_with("acknowledged records are lost:\n  stream 'orders', offset"), "{text}");
}

#[tokio::test]
async fn a_removal_that_did_not_happen_excuses_nothing() {
    let broker = TestBroker::start().await;
    let client = impatient_client(&broker).await;
    let (_producer, publisher) = publisher(&client).await;
    let value = "a value that is long enough to have a middle that nothing else covers, not even its own beginning";
    publisher.publish(Record::new(value)).await.unwrap();
    broker.faults().failing_write();
    let stream = client.list_streams().await.unwrap().remove(0);
    client.remove_stream(stream.id).await.unwrap_err();
    broker.crash().await;
    broker.start_again().await;
    broker.stream("orders").await.expect([value]).await;
    broker.faults().flip_bit(value.as_bytes()).unwrap();
    let text = panic_of(async move { broker.no_acknowledged_loss().await }).await;
    assert!(text.contains("offsets 0..1"), "{text}");
}

#[tokio::test]
async fn a_poisoned_broker_and_one_with_a_full_disk_can_be_checked() {
    for broker in [TestBroker::start().await, TestBroker::start().on_disk().await] {
        let client = impatient_client(&broker).await;
        let (_producer, publisher) = publisher(&client).await;
        publisher.publish(Record::new("before")).await.unwrap();
        broker.faults().full_disk(true);
        broker.no_acknowledged_loss().await;
        broker.faults().failing_fsync();
        publisher.publish(Record::new("lost?")).await.unwrap_err();
        broker.no_acknowledged_loss().await;
        broker.stream("orders").await.expect(["before"]).await;
        assert_eq!(broker.acknowledged(), 1);
    }
}

#[tokio::test]
async fn a_log_that_is_gone_is_a_loss() {
    let broker = TestBroker::start().on_disk().await;
    rows(&broker, 1, 3).await;
    broker.crash().await;
    for entry in std::fs::read_dir(broker.folder().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        // The key stays, so that clients find it.
        if path.extension().is_none_or(|extension| extension != "pem") {
            let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        }
    }
    broker.start_again().await;
    // Panics elsewhere, so that this test succeeds and leaves no folder.
    let broker = Arc::new(broker);
    let checking = Arc::clone(&broker);
    let text = panic_of(async move { checking.no_acknowledged_loss().await }).await;
    assert!(text.starts_with("acknowledged records are lost:\n  the stream with id "), "{text}");
}

// Lives.

#[tokio::test]
async fn the_dead_have_risen_as_often_as_they_have() {
    let broker = TestBroker::start().await;
    assert_eq!(broker.rises(), 0);
    broker.crash().await;
    assert_eq!(broker.rises(), 0);
    broker.start_again().await;
    broker.start_again().await;
    assert_eq!(broker.rises(), 1);
    broker.risen(1).await;
    broker.crash().await;
    assert_eq!(broker.rises(), 1);
    // It has risen once, wherever it is now.
    tokio::time::timeout(SOON, broker.risen(1)).await.unwrap();
    broker.crash().await;
    broker.start_again().await;
    assert_eq!(broker.rises(), 2);
}

#[tokio::test]
async fn what_keeps_a_broker_from_starting_again_is_told() {
    let broker = TestBroker::start().on_disk().await;
    rows(&broker, 1, 3).await;
    broker.crash().await;
    // Somebody else has the folder.
    let other = tidelog::Broker::start(tidelog::BrokerConfig {
        medium: tidelog::MediumChoice::Disk(broker.folder().unwrap().to_owned()),
        ..tidelog::BrokerConfig::in_memory()
    })
    .unwrap();
    // Panics elsewhere, so that this test succeeds and leaves no folder.
    let broker = Arc::new(broker);
    let starting = Arc::clone(&broker);
    let text = panic_of(async move { starting.start_again().await }).await;
    assert!(text.starts_with("the test's broker does not start again: "), "{text}");
    assert!(!text.contains("could not start a thread"), "{text}");
    assert!(text.contains("in use"), "{text}");
    drop(other);
}

#[tokio::test]
async fn a_broker_that_is_to_die_while_it_stops_does_not_hang() {
    for step in [Step::AfterWrite, Step::AfterSync, Step::BeforeAnswer] {
        let broker = TestBroker::start().await;
        let client = broker.client().await;
        let (_producer, publisher) = publisher(&client).await;
        publisher.publish(Record::new("before")).await.unwrap();
        broker.faults().slow_disk(MOMENT);
        broker.faults().crash_at(step);
        publisher.send(Record::new("under way")).await.unwrap();
        // The request is with the broker, and the disk is slow.
        tokio::time::timeout(MOMENT / 2, std::future::pending::<()>()).await.unwrap_err();
        let since = Instant::now();
        broker.stop().await;
        assert!(since.elapsed() < SOON, "{step}: {:?}", since.elapsed());
    }
}

#[tokio::test]
async fn a_disk_that_hangs_does_not_keep_a_test_from_its_end() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let (_producer, publisher) = publisher(&client).await;
    broker.faults().slow_disk(Duration::from_secs(3_600));
    publisher.send(Record::new("under way")).await.unwrap();
    tokio::time::timeout(MOMENT, std::future::pending::<()>()).await.unwrap_err();
    let since = Instant::now();
    drop(broker);
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_full_disk_and_a_death() {
    for broker in [TestBroker::start().await, TestBroker::start().on_disk().await] {
        rows(&broker, 1, 3).await;
        broker.faults().full_disk(true);
        broker.crash().await;
        broker.start_again().await;
        broker.no_acknowledged_loss().await;
        broker.faults().full_disk(false);
        rows(&broker, 4, 5).await;
        broker.stream("orders").await.expect((1..=5).map(|row| format!("row {row}"))).await;
    }
}

#[tokio::test]
async fn faults_that_are_asked_for_while_nobody_lives_strike_in_the_next_life() {
    let broker = TestBroker::start().await;
    rows(&broker, 1, 1).await;
    broker.crash().await;
    broker.faults().lose_answers(1);
    broker.faults().crash_at(Step::AfterSync);
    assert_eq!(broker.faults().cut_connections(), 0);
    broker.faults().flip_bit(b"not there").unwrap_err();
    broker.start_again().await;
    rows(&broker, 2, 2).await;
    broker.risen(2).await;
    rows(&broker, 3, 3).await;
    assert_eq!(broker.counters().duplicates_suppressed, 2, "{:?}", broker.faults().story());
    broker.stream("orders").await.expect(["row 1", "row 2", "row 3"]).await;
    broker.no_acknowledged_loss().await;
}

#[tokio::test]
async fn clients_are_told_that_the_broker_stops_and_not_that_it_dies() {
    enum Ends {
        Stops,
        IsDropped,
        Dies,
    }
    for ends in [Ends::Stops, Ends::IsDropped, Ends::Dies] {
        let broker = TestBroker::start().await;
        let client = broker.client().await;
        let mut events = client.events();
        let since = Instant::now();
        let mut kept = None;
        let is_told = match ends {
            Ends::Stops => {
                broker.stop().await;
                true
            }
            Ends::IsDropped => {
                // The client is there to hear it.
                tokio::task::spawn_blocking(move || drop(broker)).await.unwrap();
                true
            }
            Ends::Dies => {
                broker.crash().await;
                kept = Some(broker);
                false
            }
        };
        let event = events.next().await;
        let Some(ConnectionEvent::Lost { error, .. }) = &event else { panic!("{event:?}") };
        println!("{error} after {:?}", since.elapsed());
        assert_eq!(error.to_string().contains("the broker is stopping"), is_told, "{error}");
        drop(kept);
    }
}

#[tokio::test]
async fn a_restart_is_in_order_and_ends_what_a_life_was_poisoned_with() {
    for broker in [TestBroker::start().await, TestBroker::start().on_disk().await] {
        let client = impatient_client(&broker).await;
        let mut events = client.events();
        let (_producer, publisher) = publisher(&client).await;
        broker.faults().slow_disk(MOMENT);
        publisher.send(Record::new("under way")).await.unwrap();
        tokio::time::timeout(MOMENT / 2, std::future::pending::<()>()).await.unwrap_err();
        broker.restart().await;
        // It was stored and answered before the broker stopped.
        publisher.flush().await.unwrap();
        assert_eq!(broker.counters().duplicates_suppressed, 0);
        let Some(ConnectionEvent::Lost { error, .. }) = events.next().await else { panic!("it was not told") };
        assert!(error.to_string().contains("the broker is stopping"), "{error}");

        broker.faults().failing_fsync();
        publisher.publish(Record::new("lost?")).await.unwrap_err();
        assert!(broker.counters().poisoned);
        broker.restart().await;
        assert!(!broker.counters().poisoned);
        broker.crash().await;
        broker.restart().await;
        assert_eq!(broker.rises(), 3);
        let client = broker.client().await;
        let (_producer, publisher) = self::publisher(&client).await;
        publisher.publish(Record::new("again")).await.unwrap();
        broker.no_acknowledged_loss().await;
        broker.stop().await;
    }
}

// Steps.

#[tokio::test]
async fn steps_are_those_of_publish_requests() {
    for step in Step::ALL {
        let broker = TestBroker::start().await;
        broker.faults().crash_at(step);
        let client = broker.client().await;
        let (_producer, publisher) = publisher(&client).await;
        assert!(broker.faults().story().is_empty(), "{step}: a stream and a producer are no publish request");
        publisher.publish(Record::new("a")).await.unwrap();
        broker.risen(1).await;
        assert_eq!(broker.rises(), 1);
    }
}

// Time.

#[tokio::test]
async fn latency_that_becomes_less_holds_up_nothing() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    broker.faults().latency(Duration::from_secs(20));
    tokio::time::timeout(MOMENT, client.list_streams()).await.unwrap_err();
    broker.faults().latency(Duration::from_millis(5));
    let since = Instant::now();
    client.list_streams().await.unwrap();
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
}

#[tokio::test]
async fn calm_ends_what_lasts_at_once() {
    let long = Duration::from_secs(25);
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let (_producer, publisher) = publisher(&client).await;
    let mut reader = client.reader(orders()).follow(true).open().await.unwrap();
    let since = Instant::now();
    for change in [
        (|broker, by| broker.faults().slow_disk(by)) as fn(&TestBroker, Duration),
        |broker, by| broker.faults().delay_answers(by),
        |broker, by| broker.faults().partition(by),
        |broker, by| broker.faults().latency(by),
    ] {
        change(&broker, long);
        let published = publisher.publish(Record::new("a"));
        tokio::pin!(published);
        tokio::time::timeout(MOMENT, &mut published).await.unwrap_err();
        broker.faults().calm();
        published.await.unwrap();
    }
    broker.faults().slow_consumers(long);
    publisher.publish(Record::new("last")).await.unwrap();
    let mut read = 0;
    let reading = async {
        while read < 5 {
            if let Some(tidelog_client::ReaderEvent::Batch(batch)) = reader.next_batch().await.unwrap() {
                read += batch.len();
            }
        }
    };
    tokio::pin!(reading);
    tokio::time::timeout(MOMENT, &mut reading).await.unwrap_err();
    broker.faults().calm();
    reading.await;
    assert!(since.elapsed() < long, "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn in_process_nobody_is_told_while_the_network_is_away() {
    let away = Duration::from_secs(10);
    TestBroker::start()
        .in_process(async |broker| {
            for kill in [false, true] {
                let client = broker.client().await;
                let mut events = client.events();
                broker.faults().partition(away);
                let since = Instant::now();
                if kill {
                    broker.crash().await;
                    broker.start_again().await;
                } else {
                    broker.faults().cut_connections();
                }
                let event = events.next().await;
                assert!(since.elapsed() >= away, "kill {kill}: {event:?} after {:?}", since.elapsed());
                client.close().await;
            }
        })
        .await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "the test's broker has risen 0 of 1 times within 30s")]
async fn a_death_that_does_not_come_is_not_waited_for_without_end() {
    TestBroker::start()
        .in_process(async |broker| {
            broker.faults().crash_at(Step::AfterSync);
            broker.risen(1).await;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn in_process_a_folder_is_as_good_and_goes_with_the_broker() {
    let folder = TestBroker::start()
        .on_disk()
        .in_process(async |broker| {
            let client = broker.client().await;
            let (_producer, publisher) = publisher(&client).await;
            for step in [Step::AfterWrite, Step::AfterSync, Step::BeforeAnswer] {
                broker.faults().crash_at(step);
                publisher.publish(Record::new(step.to_string())).await.unwrap();
            }
            broker.restart().await;
            broker.stream("orders").await.expect(["after write", "after sync", "before answer"]).await;
            assert_eq!(broker.rises(), 4);
            broker.no_acknowledged_loss().await;
            broker.folder().unwrap().to_owned()
        })
        .await;
    assert!(!folder.exists());
}

// Odd ends.

#[tokio::test]
async fn no_bytes_have_no_bit_to_flip() {
    let broker = TestBroker::start().await;
    rows(&broker, 1, 1).await;
    assert_eq!(broker.faults().flip_bit(b"").unwrap_err().kind(), std::io::ErrorKind::NotFound);
}

#[tokio::test]
async fn it_listens_where_it_is_told_to() {
    if std::net::UdpSocket::bind("[::1]:0").is_err() {
        eprintln!("this machine has no IPv6");
        return;
    }
    let broker = TestBroker::start().configure(|config| config.listen = "[::1]:0".parse().unwrap()).await;
    assert!(broker.address().starts_with("tidelog://[::1]:"), "{}", broker.address());
    broker.faults().crash_at(Step::AfterSync);
    rows(&broker, 1, 3).await;
    broker.risen(1).await;
    broker.no_acknowledged_loss().await;
}

#[tokio::test]
async fn the_log_is_where_the_kit_says_whatever_is_configured() {
    let folder = tempfile::tempdir().unwrap();
    let broker = TestBroker::start()
        .configure(|config| config.medium = tidelog::MediumChoice::Disk(folder.path().join("not here")))
        .await;
    rows(&broker, 1, 1).await;
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    broker.power_loss().await;
    broker.start_again().await;
    broker.no_acknowledged_loss().await;
}

// Faults that must be able to fail.

/// Whether a record is there after a death between its write and its sync.
async fn is_there(seed: u64, die: impl FnOnce(&TestBroker)) -> bool {
    let broker = TestBroker::start().faults_from(seed).await;
    broker.faults().calm();
    let client = broker.client().await;
    let (_producer, publisher) = publisher(&client).await;
    die(&broker);
    publisher.publish(Record::new("a")).await.unwrap();
    assert_eq!(broker.rises(), 1);
    broker.counters().duplicates_suppressed == 1
}

#[tokio::test]
async fn a_loss_of_power_takes_some_of_what_was_not_synced_and_a_kill_nothing() {
    let (mut taken, mut left) = (0, 0);
    for seed in 0..16 {
        match is_there(seed, |broker| broker.faults().power_loss_at(Step::AfterWrite)).await {
            true => left += 1,
            false => taken += 1,
        }
        assert!(is_there(seed, |broker| broker.faults().crash_at(Step::AfterWrite)).await, "seed {seed}");
    }
    assert!(taken > 0, "what was not synced was there each time");
    assert!(left > 0, "what was not synced was gone each time");
}

#[tokio::test]
async fn a_torn_write_leaves_a_part_that_is_no_record() {
    let mut torn = 0;
    for seed in 0..16 {
        let start = TestBroker::start().faults_from(seed);
        let is_folder = seed % 4 == 0;
        let broker = if is_folder { start.on_disk().await } else { start.await };
        broker.faults().calm();
        let client = broker.client().await;
        let (_producer, publisher) = publisher(&client).await;
        broker.faults().torn_write();
        publisher.publish(Record::new(vec![7; 8 << 10])).await.unwrap();
        let counted = broker.counters();
        assert_eq!((broker.rises(), counted.duplicates_suppressed), (1, 0));
        let has_part = counted.recovery_cut_bytes > 0;
        assert!(has_part || !is_folder, "a folder keeps what was written: {counted}");
        torn += u64::from(has_part);
    }
    println!("{torn}");
    assert!((5..16).contains(&torn), "{torn} of 16 have left a part of it");
}

#[tokio::test]
async fn behind_an_answer_it_dies_and_the_answer_arrives() {
    let mut told = 0;
    for _ in 0..10 {
        let broker = TestBroker::start().await;
        let client = broker.client().await;
        let (_producer, publisher) = publisher(&client).await;
        broker.faults().crash_at(Step::AfterAnswer);
        publisher.publish(Record::new("a")).await.unwrap();
        broker.risen(1).await;
        told += 1 - broker.counters().duplicates_suppressed;
    }
    println!("{told}");
    assert!(told > 0, "no answer has ever arrived");
}

#[tokio::test]
async fn while_the_network_is_away_nothing_arrives_and_nothing_leaves() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let (_producer, publisher) = publisher(&client).await;
    publisher.publish(Record::new("before")).await.unwrap();
    let counted = broker.counters();
    broker.faults().partition(Duration::from_secs(60));
    let published = publisher.publish(Record::new("behind"));
    tokio::pin!(published);
    tokio::time::timeout(2 * MOMENT, &mut published).await.unwrap_err();
    assert_eq!(broker.counters().since(&counted).records_published, 0, "it has arrived");
    broker.faults().calm();
    published.await.unwrap();
    // The other way: what is stored already is not told.
    broker.faults().slow_disk(2 * MOMENT);
    let published = publisher.publish(Record::new("stored"));
    tokio::pin!(published);
    tokio::time::timeout(MOMENT, &mut published).await.unwrap_err();
    broker.faults().partition(Duration::from_secs(60));
    tokio::time::timeout(4 * MOMENT, &mut published).await.unwrap_err();
    assert_eq!(broker.counters().since(&counted).records_published, 2, "it had arrived before");
    broker.faults().calm();
    published.await.unwrap();
    assert_eq!(broker.counters().duplicates_suppressed, 0);
}

#[tokio::test]
async fn a_poisoned_publish_is_told_so() {
    let broker = TestBroker::start().await;
    let client = impatient_client(&broker).await;
    let (_producer, publisher) = publisher(&client).await;
    broker.faults().failing_write();
    let error = publisher.publish(Record::new("a")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Poisoned), "{error}");
}
