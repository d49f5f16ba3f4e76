//! The window and the linger: a slow broker slows its producers down, and records wait for company only when that costs
//! them nothing. Counted in bytes and batches, never in time.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use harness::{Action, Broker};
use tidelog_client::{Producer, ProducerBuilder, Publisher};
use tidelog_protocol::{BatchHeader, CLIENT_WINDOW_BYTES_DEFAULT, ProducerName, StreamName};
use tokio::time::{Instant, sleep, timeout};

async fn open(broker: &Broker, options: impl FnOnce(ProducerBuilder) -> ProducerBuilder) -> (Producer, Arc<Publisher>) {
    let builder = options(broker.client().await.producer(ProducerName::new("p").unwrap()));
    let producer = builder.open().await.unwrap();
    let publisher = producer.stream(StreamName::new("s").unwrap()).await.unwrap();
    (producer, Arc::new(publisher))
}

/// Sends `records` of `bytes` each from a task of its own; counts what was taken.
fn spawn_sender(
    publisher: &Arc<Publisher>,
    records: u64,
    bytes: usize,
) -> (Arc<AtomicU64>, tokio::task::JoinHandle<()>) {
    let taken = Arc::new(AtomicU64::new(0));
    let (publisher, counter) = (Arc::clone(publisher), Arc::clone(&taken));
    let task = tokio::spawn(async move {
        for _ in 0..records {
            publisher.send_value(&vec![b'x'; bytes]).await.unwrap();
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    (taken, task)
}

/// The clock is paused: it moves on only when every task is idle.
async fn until_idle() {
    sleep(Duration::from_secs(1)).await;
}

/// Bytes of batches that have left the client.
fn sent_bytes(broker: &Broker) -> usize {
    broker.state().attachments.iter().flatten().map(Bytes::len).sum()
}

#[tokio::test(start_paused = true)]
async fn a_stalled_broker_stops_the_sender_at_the_window_and_lets_it_go_on_when_it_reads() {
    const WINDOW: usize = 100_000;
    let broker = Broker::new().with_stream("s");
    broker.read_batches(false);
    let (producer, publisher) = open(&broker, |builder| builder.window_bytes(WINDOW)).await;
    let (taken, sender) = spawn_sender(&publisher, 1000, 1000);
    until_idle().await;
    let held = producer.pending_bytes();
    assert!(held <= WINDOW && held > WINDOW - 1100, "{held} bytes of {WINDOW} are used");
    let at_stop = taken.load(Ordering::Relaxed);
    assert!((90..100).contains(&at_stop), "{at_stop} records of 1,000 bytes were taken");
    until_idle().await;
    assert_eq!(taken.load(Ordering::Relaxed), at_stop, "nothing moves while the broker stands");

    // While it moves the window is kept, too.
    let watch = async {
        let mut most = 0;
        while taken.load(Ordering::Relaxed) < 1000 {
            most = most.max(producer.pending_bytes());
            tokio::task::yield_now().await;
        }
        most
    };
    broker.read_batches(true);
    let most = watch.await;
    assert!(most <= WINDOW, "{most}");
    sender.await.unwrap();
    producer.close().await.unwrap();
    assert_eq!((broker.state().values("s").len(), producer.pending_bytes()), (1000, 0));
}

#[tokio::test(start_paused = true)]
async fn answers_that_do_not_come_hold_the_sender_up_as_well_and_so_does_a_lost_connection() {
    let broker = Broker::new().with_stream("s");
    broker.script(|arrival| if arrival.attachment == 0 { Action::Ignore } else { Action::Apply });
    let (producer, publisher) = open(&broker, |builder| builder.window_bytes(50_000)).await;
    let (taken, sender) = spawn_sender(&publisher, 300, 1000);
    until_idle().await;
    assert!(taken.load(Ordering::Relaxed) < 50);
    assert!(sent_bytes(&broker) <= 50_000, "what has left is still in the window");
    broker.cut_all();
    sender.await.unwrap();
    producer.close().await.unwrap();
    assert_eq!(broker.state().values("s").len(), 300);
}

#[tokio::test(start_paused = true)]
async fn the_window_is_4_mib_unless_asked_for_less_and_never_more_than_the_broker_allows() {
    for (asked, allowed, expected) in [(None, u32::MAX, 4 << 20), (Some(8 << 20), 1 << 20, 1 << 20)] {
        let broker = Broker::new().with_stream("s");
        broker.state().limits.window_bytes_max = allowed;
        broker.read_batches(false);
        let (producer, publisher) = open(&broker, |builder| match asked {
            Some(bytes) => builder.window_bytes(bytes),
            None => builder,
        })
        .await;
        let (_, sender) = spawn_sender(&publisher, 10_000, 10_000);
        until_idle().await;
        let held = producer.pending_bytes();
        assert!(held <= expected && held > expected - 11_000, "{held} of {expected}");
        sender.abort();
    }
    assert_eq!(CLIENT_WINDOW_BYTES_DEFAULT, 4 << 20);
}

#[tokio::test(start_paused = true)]
async fn all_streams_of_a_producer_share_the_window() {
    let broker = Broker::new().with_stream("s").with_stream("t");
    broker.read_batches(false);
    let (producer, publisher) = open(&broker, |builder| builder.window_bytes(10_000)).await;
    let other = producer.stream(StreamName::new("t").unwrap()).await.unwrap();
    publisher.send_value(&[b'x'; 9_000]).await.unwrap();
    let full = timeout(Duration::from_secs(1), other.send_value(&[b'y'; 2_000])).await;
    assert!(full.is_err(), "there was room");
    broker.read_batches(true);
    other.send_value(&[b'y'; 2_000]).await.unwrap();
    producer.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_producers_record_leaves_at_once() {
    let broker = Broker::new().with_stream("s");
    let (producer, publisher) = open(&broker, |builder| builder).await;
    let started = Instant::now();
    for _ in 0..20 {
        publisher.send_value(b"x").await.unwrap();
        publisher.flush().await.unwrap();
    }
    assert_eq!(started.elapsed(), Duration::ZERO, "no timer was waited for");
    assert_eq!(counts(&broker), [1; 20]);
    producer.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_busy_producers_records_travel_together() {
    let broker = Broker::new().with_stream("s");
    let (producer, publisher) = open(&broker, |builder| builder).await;
    publisher.send_value(b"x").await.unwrap();
    publisher.flush().await.unwrap();
    // A disk that takes its time: whatever comes meanwhile leaves with the next answers.
    broker.read_batches(false);
    for _ in 0..1000 {
        publisher.send_value(b"x").await.unwrap();
        tokio::task::yield_now().await;
    }
    until_idle().await;
    broker.read_batches(true);
    publisher.flush().await.unwrap();
    let counts = counts(&broker);
    assert_eq!(counts.iter().sum::<u32>(), 1001);
    assert!(counts.len() <= 8, "{counts:?}");
    assert!(counts.iter().max() > Some(&900), "{counts:?}");
    producer.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn large_batches_do_not_wait_for_answers() {
    let broker = Broker::new().with_stream("s");
    broker.script(|_| Action::Ignore);
    let (producer, publisher) = open(&broker, |builder| builder).await;
    let (_, sender) = spawn_sender(&publisher, 3000, 1000);
    until_idle().await;
    // 3 MB fit the window: all of it has left but for a batch that is still small.
    let sent = sent_bytes(&broker);
    assert!(sent > 2_900_000, "{sent} bytes have left, {} are pending", producer.pending_bytes());
    sender.abort();
}

fn counts(broker: &Broker) -> Vec<u32> {
    let batches = broker.state().attachments.concat();
    batches.iter().map(|batch| BatchHeader::decode(batch).unwrap().count).collect()
}
