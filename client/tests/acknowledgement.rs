//! What a caller is told of its records, and when: durable, accepted, the end of its producer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod harness;

use std::time::Duration;

use harness::{Action, Broker};
use tidelog_client::{Ack, Error, ErrorKind, Producer, Publisher};
use tidelog_protocol::{ErrorCode, Offset, ProducerName, Record, StreamName};
use tokio::time::timeout;

fn name(text: &str) -> StreamName {
    StreamName::new(text).unwrap()
}

async fn open(broker: &Broker, ack: Ack) -> (Producer, Publisher) {
    let builder = broker.client().await.producer(ProducerName::new("p").unwrap()).ack(ack).receipts(true);
    let producer = builder.open().await.unwrap();
    let publisher = producer.stream(name("s")).await.unwrap();
    (producer, publisher)
}

/// The clock is paused: it moves on only when every task is idle, so what has not come by then does not come.
async fn never<T>(future: impl Future<Output = T>) {
    assert!(timeout(Duration::from_secs(1), future).await.is_err(), "it came");
}

#[tokio::test(start_paused = true)]
async fn publish_waits_until_the_record_is_durable_and_tells_its_offset() {
    let broker = Broker::new().with_stream("s");
    let (producer, publisher) = open(&broker, Ack::Durable).await;
    for number in 0..3 {
        let told = publisher.publish(Record::new("x")).await.unwrap();
        assert_eq!((told.sequence.get(), told.offset), (number + 1, Some(Offset::new(number))));
        assert!(told.durable && !told.duplicate);
    }
    broker.script(|_| Action::Order);
    never(publisher.publish(Record::new("x"))).await;
    never(publisher.acknowledged()).await;
    never(publisher.flush()).await;
    broker.script(|_| Action::Apply);
    assert_eq!(publisher.publish(Record::new("x")).await.unwrap().offset, Some(Offset::new(4)));
    producer.close().await.unwrap();
    assert_eq!(broker.state().values("s").len(), 5, "a wait that was given up has not taken the record back");
}

#[tokio::test(start_paused = true)]
async fn calls_at_one_time_travel_together_and_each_is_told_of_its_own_record() {
    let broker = Broker::new().with_stream("s");
    let (producer, publisher) = open(&broker, Ack::Durable).await;
    let publisher = std::sync::Arc::new(publisher);
    let calls: Vec<_> = (0..100_u64)
        .map(|number| {
            let publisher = std::sync::Arc::clone(&publisher);
            tokio::spawn(async move { (number, publisher.publish(Record::new(number.to_string())).await.unwrap()) })
        })
        .collect();
    for call in calls {
        let (number, told) = call.await.unwrap();
        let offset = told.offset.unwrap().get();
        assert_eq!(told.sequence.get(), offset + 1);
        assert_eq!(broker.state().values("s")[usize::try_from(offset).unwrap()], number.to_string());
    }
    assert!(broker.state().attachments[0].len() < 50, "{} batches", broker.state().attachments[0].len());
    producer.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn accepted_does_not_wait_for_the_disk_but_flush_and_receipts_do() {
    let broker = Broker::new().with_stream("s");
    broker.script(|_| Action::Order);
    let (producer, publisher) = open(&broker, Ack::Accepted).await;
    let told = publisher.publish(Record::new("a")).await.unwrap();
    assert_eq!((told.sequence.get(), told.durable, told.offset), (1, false, None));
    publisher.send_value(b"b").await.unwrap();
    publisher.acknowledged().await.unwrap();
    assert!(producer.pending_bytes() > 0, "kept until it is durable");
    assert_eq!(publisher.last_sequence().get(), 0, "nothing is durable");
    assert_eq!(publisher.try_next_receipt(), None);
    never(publisher.flush()).await;
    broker.script(|_| Action::Apply);
    publisher.send_value(b"c").await.unwrap();
    publisher.flush().await.unwrap();
    assert_eq!((publisher.last_sequence().get(), producer.pending_bytes()), (3, 0));
    let receipt = publisher.try_next_receipt().unwrap();
    assert_eq!((receipt.first.get(), receipt.base_offset), (1, Some(Offset::new(0))));
    producer.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_accepted_and_lost_with_the_broker_is_sent_again() {
    let broker = Broker::new().with_stream("s");
    broker.script(|arrival| if arrival.attachment == 0 { Action::AcceptAndLose } else { Action::Apply });
    let (producer, publisher) = open(&broker, Ack::Accepted).await;
    for value in ["a", "b", "c"] {
        assert!(!publisher.publish(Record::new(value)).await.unwrap().durable);
    }
    assert!(broker.state().values("s").is_empty(), "the broker has told, and has nothing");
    broker.cut_all();
    publisher.flush().await.unwrap();
    assert_eq!(broker.state().values("s"), ["a", "b", "c"]);
    producer.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_older_broker_that_never_tells_accepted_is_waited_for_until_durable() {
    let broker = Broker::new().with_stream("s");
    let (producer, publisher) = open(&broker, Ack::Accepted).await;
    let told = publisher.publish(Record::new("a")).await.unwrap();
    assert!(told.durable && told.offset == Some(Offset::new(0)));
    publisher.acknowledged().await.unwrap();
    producer.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_ended_producer_says_so_although_all_it_sent_is_durable() {
    let broker = Broker::new().with_stream("s").with_stream("t");
    let (producer, publisher) = open(&broker, Ack::Durable).await;
    let on_t = producer.stream(name("t")).await.unwrap();
    publisher.publish(Record::new("a")).await.unwrap();
    // Another session takes the name; this one hears of it when it sends, to another stream.
    let (other, _) = open(&broker, Ack::Durable).await;
    broker.cut_all();
    let fenced = on_t.publish(Record::new("zombie")).await.unwrap_err();
    assert_eq!(fenced.code(), Some(ErrorCode::Fenced));
    assert!(fenced.is_safe_to_resend(), "it was never sent: {fenced}");
    for told in [publisher.flush().await, publisher.acknowledged().await, publisher.close().await] {
        assert_eq!(told.unwrap_err().code(), Some(ErrorCode::Fenced));
    }
    for told in [producer.flush().await, producer.close().await] {
        assert_eq!(told.unwrap_err().code(), Some(ErrorCode::Fenced));
    }
    assert_eq!(broker.state().values("s"), ["a"]);
    drop(other);
}

#[tokio::test(start_paused = true)]
async fn a_loss_that_is_noticed_while_nothing_is_under_way_is_told_by_the_next_flush() {
    let broker = Broker::new().with_stream("s").with_stream("t");
    let (producer, publisher) = open(&broker, Ack::Durable).await;
    let on_t = producer.stream(name("t")).await.unwrap();
    publisher.publish(Record::new("a")).await.unwrap();
    publisher.flush().await.unwrap();
    let stream = broker.state().named("s").id;
    broker.state().last.get_mut(&(producer.id(), stream)).unwrap().sequence = 0;
    broker.cut_all();
    let lost = on_t.publish(Record::new("b")).await.unwrap_err();
    assert!(matches!(lost, Error::AcknowledgedLost { .. }), "{lost}");
    assert!(matches!(publisher.flush().await, Err(Error::AcknowledgedLost { .. })));
    assert!(matches!(producer.flush().await, Err(Error::AcknowledgedLost { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_producer_that_is_fenced_with_unanswered_records_does_not_call_them_unstored() {
    let broker = Broker::new().with_stream("s");
    broker.script(|_| Action::ApplySilently);
    let (_producer, publisher) = open(&broker, Ack::Durable).await;
    publisher.send_value(b"stored, but who knows").await.unwrap();
    never(publisher.flush()).await;
    let (_other, _) = open(&broker, Ack::Durable).await;
    broker.cut_all();
    let error = publisher.flush().await.unwrap_err();
    assert!(matches!(&error, Error::Unsettled { .. }), "{error}");
    assert_eq!((error.code(), error.kind()), (Some(ErrorCode::Fenced), ErrorKind::Conflict));
    assert!(!error.is_safe_to_resend());
}

#[tokio::test(start_paused = true)]
async fn a_closed_producer_is_no_error_to_whoever_had_everything_stored() {
    let broker = Broker::new().with_stream("s");
    let (producer, publisher) = open(&broker, Ack::Durable).await;
    publisher.publish(Record::new("a")).await.unwrap();
    producer.close().await.unwrap();
    publisher.flush().await.unwrap();
    producer.close().await.unwrap();
    assert!(matches!(publisher.publish(Record::new("b")).await, Err(Error::Closed)));
}
