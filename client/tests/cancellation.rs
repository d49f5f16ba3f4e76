//! Futures that are dropped at every point at which they can wait: nothing is lost, doubled or stuck.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod harness;

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use harness::{Action, Broker};
use tidelog_client::{Ack, Client, Error, ReaderEvent};
use tidelog_protocol::{ProducerName, Record, Sequence, StreamName};

/// More polls than any of these futures needs; whoever gets here has looked at every one.
const POLLS_MAX: usize = 50;

fn name(text: &str) -> StreamName {
    StreamName::new(text).unwrap()
}

/// Polls a future up to `polls` times, each time when it was woken, and drops it then. `None` if it was not ready.
async fn poll_times<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut done = 0;
    poll_fn(|context| {
        if done == polls {
            return Poll::Ready(None);
        }
        done += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            // Never polled without a reason, but given up without one.
            Poll::Pending if done == polls => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// A broker that loses a connection now and then, so that the futures meet everything that can make them wait.
fn restless() -> Broker {
    let broker = Broker::new().with_stream("s");
    let mut arrivals = 0;
    broker.script(move |_| {
        arrivals += 1;
        match arrivals % 7 {
            3 => Action::Cut,
            5 => Action::ApplyAndCut,
            _ => Action::Apply,
        }
    });
    broker
}

#[tokio::test(start_paused = true)]
async fn a_send_that_is_dropped_was_not_taken() {
    for polls in 0..POLLS_MAX {
        let broker = restless();
        // Room for one record at a time: every send but the first waits.
        let builder = broker.client().await.producer(ProducerName::new("p").unwrap()).window_bytes(1);
        let producer = builder.open().await.unwrap();
        let publisher = producer.stream(name("s")).await.unwrap();
        let mut taken = Vec::new();
        for number in 0..20_u64 {
            let value = number.to_string();
            let sent = poll_times(polls, publisher.send_value(value.as_bytes())).await;
            if let Some(sequence) = sent {
                taken.push(value);
                assert_eq!(sequence.unwrap().get(), taken.len() as u64, "what was dropped has used no sequence");
            }
        }
        producer.close().await.unwrap();
        assert_eq!(broker.state().values("s"), taken, "{polls} polls");
        if polls > 0 {
            assert!(!taken.is_empty());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_is_dropped_is_stored_once_or_was_not_taken() {
    for ack in [Ack::Durable, Ack::Accepted] {
        let mut dropped_and_stored = 0;
        for polls in 0..POLLS_MAX {
            let broker = restless();
            let builder = broker.client().await.producer(ProducerName::new("p").unwrap()).window_bytes(200).ack(ack);
            let producer = builder.open().await.unwrap();
            let publisher = producer.stream(name("s")).await.unwrap();
            let mut acknowledged = BTreeSet::new();
            for number in 0..20_u64 {
                let told = poll_times(polls, publisher.publish(Record::new(number.to_string()))).await;
                if told.is_some_and(|told| told.is_ok()) {
                    acknowledged.insert(number);
                }
            }
            producer.close().await.unwrap();
            let stored: Vec<u64> = broker.state().values("s").iter().map(|value| value.parse().unwrap()).collect();
            assert!(stored.is_sorted_by(|a, b| a < b), "once, and in order: {stored:?}");
            let stored: BTreeSet<u64> = stored.into_iter().collect();
            assert!(stored.is_superset(&acknowledged), "{acknowledged:?} were acknowledged, {stored:?} are stored");
            dropped_and_stored += stored.len() - acknowledged.len();
        }
        assert!(dropped_and_stored > 0, "some were given up while their answers were waited for");
    }
}

#[tokio::test(start_paused = true)]
async fn a_number_whose_send_was_dropped_can_be_given_again() {
    for sparse in [false, true] {
        for polls in 1..POLLS_MAX {
            let broker = restless();
            let builder =
                broker.client().await.producer(ProducerName::new("p").unwrap()).window_bytes(1).sparse(sparse);
            let producer = builder.open().await.unwrap();
            let publisher = producer.stream(name("s")).await.unwrap();
            for number in 1..=10_u64 {
                let sequence = Sequence::new(number);
                while poll_times(polls, publisher.send_at(sequence, Record::new(number.to_string()))).await.is_none() {
                    // On the paused clock: the client's tasks run until they too wait for it.
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            }
            producer.close().await.unwrap();
            let stored: Vec<u64> = broker.state().values("s").iter().map(|value| value.parse().unwrap()).collect();
            assert_eq!(stored, (1..=10).collect::<Vec<_>>(), "{polls} polls, sparse: {sparse}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn flush_and_close_can_be_given_up_and_tried_again() {
    for polls in 0..POLLS_MAX {
        let broker = restless();
        let producer = broker.client().await.producer(ProducerName::new("p").unwrap()).open().await.unwrap();
        let publisher = producer.stream(name("s")).await.unwrap();
        for number in 0..20_u64 {
            publisher.send_value(number.to_string().as_bytes()).await.unwrap();
            let _ = poll_times(polls, publisher.flush()).await;
            let _ = poll_times(polls, producer.flush()).await;
        }
        if poll_times(polls, producer.close()).await.is_none() && producer.pending_bytes() > 0 {
            publisher.send_value(b"20").await.unwrap();
        }
        if poll_times(polls, publisher.close()).await.is_none() && polls > 0 {
            assert!(matches!(publisher.send_value(b"late").await, Err(Error::Closed)));
        }
        publisher.close().await.unwrap();
        producer.close().await.unwrap();
        let stored = broker.state().values("s");
        let expected: Vec<String> = (0..stored.len()).map(|number| number.to_string()).collect();
        assert!(stored == expected && stored.len() >= 20, "{polls} polls: {stored:?}");
    }
}

async fn fill(client: &Client, records: u64) {
    let producer = client.producer(ProducerName::new("filler").unwrap()).open().await.unwrap();
    let publisher = producer.stream(name("s")).await.unwrap();
    for number in 0..records {
        publisher.publish(Record::new(number.to_string())).await.unwrap();
    }
    producer.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reader_whose_next_batch_is_dropped_misses_and_repeats_nothing() {
    let broker = Broker::new().with_stream("s");
    let client = broker.client().await;
    fill(&client, 30).await;
    // Each subscription is cut after three batches.
    broker.state().deliveries_max = Some(3);
    for polls in 1..POLLS_MAX {
        let mut reader = client.reader(name("s")).open().await.unwrap();
        let mut values = Vec::new();
        let mut given_up = 0;
        loop {
            assert!(given_up < 1_000, "nothing comes any more behind {values:?}");
            let event = match poll_times(polls, reader.next_batch()).await {
                Some(event) => event.unwrap(),
                None => {
                    given_up += 1;
                    // As above.
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                    continue;
                }
            };
            let Some(event) = event else { break };
            let ReaderEvent::Batch(batch) = event else { panic!("{event:?}") };
            assert_eq!(batch.base_offset().get(), values.len() as u64);
            values.extend(batch.into_iter().map(|record| record.unwrap().record.value));
        }
        let expected: Vec<String> = (0..30).map(|number: u64| number.to_string()).collect();
        assert_eq!(values, expected, "{polls} polls");
    }
}

#[tokio::test(start_paused = true)]
async fn opening_and_asking_can_be_given_up_at_any_point() {
    for polls in 0..POLLS_MAX {
        let broker = restless();
        let Some(client) = poll_times(polls, Client::connect(broker.config())).await else { continue };
        let client = client.unwrap();
        let _ = poll_times(polls, client.stream_info(&name("s"))).await;
        let opened = poll_times(polls, client.producer(ProducerName::new("p").unwrap()).open()).await;
        drop(opened);
        // Whatever was given up, the next session works.
        let producer = client.producer(ProducerName::new("p").unwrap()).open().await.unwrap();
        let _ = poll_times(polls, producer.stream(name("s"))).await;
        let publisher = producer.stream(name("s")).await.unwrap();
        publisher.publish(Record::new("x")).await.unwrap();
        producer.close().await.unwrap();
        client.close().await;
        assert_eq!(broker.state().values("s"), ["x"]);
    }
}
