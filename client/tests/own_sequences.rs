//! Records that the application numbers itself, against a broker that loses connections and forgets recent batches.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod harness;

use harness::{Action, Broker};
use tidelog_client::{Error, Producer, Publisher};
use tidelog_protocol::{ErrorCode, ProducerName, Record, Sequence, StreamName};

fn name(text: &str) -> StreamName {
    StreamName::new(text).unwrap()
}

async fn open(broker: &Broker, sparse: bool) -> (Producer, Publisher) {
    let builder = broker.client().await.producer(ProducerName::new("p").unwrap()).sparse(sparse).receipts(true);
    let producer = builder.open().await.unwrap();
    let publisher = producer.stream(name("s")).await.unwrap();
    (producer, publisher)
}

/// Sends records whose value is their number, each as a batch of its own.
async fn send(publisher: &Publisher, sequences: impl IntoIterator<Item = u64>) {
    for sequence in sequences {
        let sent = publisher.send_at(Sequence::new(sequence), Record::new(sequence.to_string())).await;
        assert_eq!(sent.unwrap().get(), sequence);
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
    }
}

fn values(broker: &Broker) -> Vec<u64> {
    broker.state().values("s").iter().map(|value| value.parse().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn an_input_sent_again_from_its_beginning_is_stored_once() {
    let broker = Broker::new().with_stream("s");
    for (end, published, duplicates) in [(5, 5, 0), (9, 4, 5), (9, 0, 9)] {
        let (producer, publisher) = open(&broker, false).await;
        send(&publisher, 1..=end).await;
        producer.close().await.unwrap();
        assert_eq!((publisher.published(), publisher.duplicates()), (published, duplicates));
    }
    assert_eq!(values(&broker), (1..=9).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_number_that_does_not_fit_is_refused_here_and_ends_nothing() {
    let broker = Broker::new().with_stream("s");
    let (producer, publisher) = open(&broker, false).await;
    send(&publisher, 1..=3).await;
    let gap = publisher.send_value_at(Sequence::new(5), b"5").await.unwrap_err();
    assert!(matches!(gap, Error::Refused { code: Some(ErrorCode::SequenceGap), detail: Some(4), .. }), "{gap}");
    assert!(gap.is_safe_to_resend() && !gap.is_retryable());
    let past = publisher.publish_at(Sequence::new(2), Record::new("2")).await.unwrap_err();
    assert_eq!(past.code(), Some(ErrorCode::SequencePast));
    send(&publisher, 4..=4).await;
    assert_eq!(publisher.send_value(b"5").await.unwrap().get(), 5, "counting goes on from there");
    producer.close().await.unwrap();
    assert_eq!(values(&broker), [1, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_outbox_goes_on_behind_the_last_id_stored() {
    let broker = Broker::new().with_stream("s");
    let rows = [3, 7, 8, 1000, 1001, 5_000_000_000];
    for last_visible in [8, 1001, u64::MAX] {
        let (producer, publisher) = open(&broker, true).await;
        let last = publisher.last_sequence().get();
        send(&publisher, rows.into_iter().filter(|row| *row > last && *row <= last_visible)).await;
        producer.close().await.unwrap();
    }
    assert_eq!(values(&broker), rows);
}

#[tokio::test(start_paused = true)]
async fn an_id_that_was_committed_late_is_never_called_stored() {
    let broker = Broker::new().with_stream("s");
    let (producer, publisher) = open(&broker, true).await;
    send(&publisher, [12, 17]).await;
    let late = publisher.publish_at(Sequence::new(15), Record::new("15")).await.unwrap_err();
    assert_eq!(late.code(), Some(ErrorCode::SequencePast), "{late}");
    producer.close().await.unwrap();
    // In the next session, too.
    let (producer, publisher) = open(&broker, true).await;
    let late = publisher.publish_at(Sequence::new(15), Record::new("15")).await.unwrap_err();
    assert_eq!(late.code(), Some(ErrorCode::SequencePast), "{late}");
    send(&publisher, [20]).await;
    producer.close().await.unwrap();
    assert_eq!(values(&broker), [12, 17, 20]);
    assert_eq!(publisher.duplicates(), 0);
}

#[tokio::test(start_paused = true)]
async fn sparse_batches_whose_answers_are_lost_are_stored_once() {
    // With a broker that still knows them, and with one that was started again from a checkpoint and does not.
    for forgets in [false, true] {
        let broker = Broker::new().with_stream("s");
        let forgetful = broker.clone();
        broker.script(move |arrival| match (arrival.attachment, arrival.ordinal) {
            (0, 1..=2) | (1, 2) => Action::ApplySilently,
            (0, 3) | (1, 3) => {
                if forgets {
                    forgetful.state().recent.clear();
                }
                Action::Cut
            }
            _ => Action::Apply,
        });
        let (producer, publisher) = open(&broker, true).await;
        send(&publisher, [12, 17, 20, 21, 400]).await;
        producer.close().await.unwrap();
        assert_eq!(values(&broker), [12, 17, 20, 21, 400], "{forgets}");
        let mut receipts = Vec::new();
        while let Some(receipt) = publisher.try_next_receipt() {
            receipts.push(receipt.last.get());
        }
        assert_eq!(receipts.last(), Some(&400));
        assert!(receipts.is_sorted());
        assert_eq!(publisher.published() + publisher.duplicates(), 5);
        assert!(publisher.duplicates() >= 2, "{}", publisher.duplicates());
    }
}

#[tokio::test(start_paused = true)]
async fn a_sparse_batch_that_overlaps_is_cut_and_its_rest_is_stored() {
    let broker = Broker::new().with_stream("s");
    broker.read_batches(false);
    let (producer, publisher) = open(&broker, true).await;
    // One batch of three, on an attachment that is lost before the broker has read it.
    for sequence in [12, 15, 17] {
        publisher.send_at(Sequence::new(sequence), Record::new(sequence.to_string())).await.unwrap();
    }
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    // Another copy of this very session has stored the first record by itself.
    let stream = broker.state().named("s").id;
    let mut alone = tidelog_protocol::BatchBuilder::new();
    alone.push(&Record::new("12"), &broker.state().limits).unwrap();
    let alone = alone.finish_sparse(stream, Sequence::NONE, &[Sequence::new(12)]).unwrap();
    broker.append(stream, producer.id(), alone);
    broker.cut_all();
    broker.read_batches(true);
    producer.close().await.unwrap();
    assert_eq!(values(&broker), [12, 15, 17]);
    assert_eq!((publisher.published(), publisher.duplicates()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn sparse_sequences_are_for_good_and_dense_ones_are_not() {
    let broker = Broker::new().with_stream("s");
    let (dense, publisher) = open(&broker, false).await;
    send(&publisher, 1..=2).await;
    dense.close().await.unwrap();
    let (sparse, publisher) = open(&broker, true).await;
    let refused = publisher.send_value(b"x").await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::SequenceMode), "a sparse producer gives sequences");
    send(&publisher, [10]).await;
    sparse.close().await.unwrap();
    let builder = broker.client().await.producer(ProducerName::new("p").unwrap());
    let refused = builder.open().await.unwrap().stream(name("s")).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::SequenceMode));
    assert_eq!(values(&broker), [1, 2, 10]);
}

#[tokio::test(start_paused = true)]
async fn a_producer_without_a_name_takes_no_sequences() {
    let broker = Broker::new().with_stream("s");
    let producer = broker.client().await.anonymous_producer().sparse(true).open().await.unwrap();
    let publisher = producer.stream(name("s")).await.unwrap();
    let refused = publisher.send_value_at(Sequence::new(1), b"x").await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::SequenceMode));
    publisher.send_value(b"1").await.unwrap();
    producer.close().await.unwrap();
    assert_eq!(values(&broker), [1]);
}
