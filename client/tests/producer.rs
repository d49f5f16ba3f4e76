//! Producers against a broker that loses connections, answers and records.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use harness::{Action, Broker};
use tidelog_client::{Client, Error, ErrorKind, Producer, Publisher};
use tidelog_protocol::{
    BatchHeader, ErrorCode, Offset, ProducerName, Record, Sequence, StreamName, StreamSettings, TransportError,
};
use tokio::time::{Instant, timeout};

fn name(text: &str) -> StreamName {
    StreamName::new(text).unwrap()
}

async fn open(client: &Client) -> Producer {
    client.producer(ProducerName::new("p").unwrap()).open().await.unwrap()
}

async fn open_on(broker: &Broker, stream: &str) -> (Producer, Publisher) {
    let producer = open(&broker.client().await).await;
    let publisher = producer.stream(&name(stream)).await.unwrap();
    (producer, publisher)
}

/// Sends numbered values one at a time, each as a batch of its own as long as few are unanswered.
async fn send_numbers(publisher: &Publisher, numbers: std::ops::Range<u64>) {
    for number in numbers {
        publisher.send_value(number.to_string().as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
    }
}

fn numbers(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn records_are_stored_in_order_with_sequences_from_one() {
    let broker = Broker::new().with_stream("s");
    let (producer, publisher) = open_on(&broker, "s").await;
    assert_eq!(publisher.last_sequence(), Sequence::NONE);
    assert_eq!(publisher.send(Record::new("0").with_key("k")).await.unwrap(), Sequence::new(1));
    assert_eq!(publisher.send_value(b"1").await.unwrap(), Sequence::new(2));
    publisher.flush().await.unwrap();
    assert_eq!((publisher.published(), publisher.duplicates()), (2, 0));
    assert_eq!(publisher.last_offset(), Some(Offset::new(1)));
    assert_eq!(publisher.last_sequence(), Sequence::new(2));
    producer.close().await.unwrap();
    assert_eq!(broker.state().values("s"), numbers(0..2));
    assert!(matches!(publisher.send_value(b"late").await, Err(Error::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_restarted_producer_learns_where_it_was() {
    let broker = Broker::new().with_stream("s");
    let (producer, publisher) = open_on(&broker, "s").await;
    publisher.send_value(b"first").await.unwrap();
    let last = Record::new("second");
    publisher.send(last.clone()).await.unwrap();
    producer.close().await.unwrap();

    let (producer, publisher) = open_on(&broker, "s").await;
    assert_eq!(producer.epoch().get(), 2);
    assert_eq!(publisher.last_sequence(), Sequence::new(2));
    assert_eq!(publisher.last_offset(), Some(Offset::new(1)));
    assert_eq!(publisher.last_record_crc(), last.crc());
    assert_eq!(publisher.send_value(b"third").await.unwrap(), Sequence::new(3));
    producer.close().await.unwrap();
    assert_eq!(broker.state().values("s"), ["first", "second", "third"]);
}

#[tokio::test(start_paused = true)]
async fn a_window_cut_in_the_middle_is_sent_again_with_the_same_bytes_in_the_same_order() {
    let broker = Broker::new().with_stream("s");
    // Two answered, two stored without an answer, then the connection goes with the fifth.
    broker.script(|arrival| match (arrival.attachment, arrival.ordinal) {
        (0, 1 | 2) => Action::Apply,
        (0, 3 | 4) => Action::ApplySilently,
        (0, _) => Action::Cut,
        _ => Action::Apply,
    });
    let (producer, publisher) = open_on(&broker, "s").await;
    send_numbers(&publisher, 0..40).await;
    publisher.flush().await.unwrap();
    let sent = broker.state().attachments.clone();
    assert_eq!(sent.len(), 2);
    assert!(sent[0].len() >= 5, "the cut came in the middle: {}", sent[0].len());
    let unanswered = &sent[0][2..];
    assert_eq!(sent[1][..unanswered.len()], *unanswered);
    assert_eq!(broker.state().values("s"), numbers(0..40));
    assert_eq!((publisher.published(), publisher.duplicates()), (38, 2));
    producer.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_cuts_leave_each_record_once() {
    let broker = Broker::new().with_stream("a").with_stream("b");
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    broker.script(move |_| match counted.fetch_add(1, Ordering::Relaxed) % 7 {
        3 => Action::ApplyAndCut,
        6 => Action::Cut,
        _ => Action::Apply,
    });
    let client = broker.client().await;
    let producer = open(&client).await;
    let a = producer.stream(&name("a")).await.unwrap();
    let b = producer.stream(&name("b")).await.unwrap();
    for number in 0..300 {
        send_numbers(&a, number..number + 1).await;
        send_numbers(&b, number..number + 1).await;
        if number % 10 == 0 {
            producer.flush().await.unwrap();
        }
    }
    producer.flush().await.unwrap();
    assert!(broker.state().attachments.len() > 5, "{}", broker.state().attachments.len());
    assert_eq!(broker.state().values("a"), numbers(0..300));
    assert_eq!(broker.state().values("b"), numbers(0..300));
    assert_eq!(a.published() + a.duplicates(), 300);
    producer.close().await.unwrap();
    client.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_lost_acknowledged_records_is_told_and_gets_nothing_more() {
    let broker = Broker::new().with_stream("s");
    let (producer, publisher) = open_on(&broker, "s").await;
    send_numbers(&publisher, 0..5).await;
    publisher.flush().await.unwrap();
    {
        let mut state = broker.state();
        let stream = state.named("s").id;
        state.last.get_mut(&(producer.id(), stream)).unwrap().sequence = 3;
    }
    broker.cut_all();
    // The clock is paused: it moves on only when every task is idle, so the reconnect has run its course by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let attachments = broker.state().attachments.len();
    let error = match publisher.send_value(b"5").await {
        Ok(_) => publisher.flush().await.unwrap_err(),
        Err(error) => error,
    };
    assert!(
        matches!(&error, Error::AcknowledgedLost { told, found, .. } if told.get() == 5 && found.get() == 3),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Failed);
    let sent: usize = broker.state().attachments[attachments..].iter().map(Vec::len).sum();
    assert_eq!(sent, 0, "nothing was renumbered");
    assert!(producer.close().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn refused_for_now_is_sent_again_until_it_is_taken() {
    for code in [ErrorCode::Busy, ErrorCode::Stopping, ErrorCode::Poisoned, ErrorCode::DiskFull] {
        let broker = Broker::new().with_stream("s");
        broker.script(move |arrival| match (arrival.attachment, arrival.ordinal) {
            (0..4, 2) => Action::Refuse(code),
            // What follows a refused batch is refused, too, until the gap is filled.
            (0..4, 3..) => Action::Refuse(ErrorCode::SequenceGap),
            _ => Action::Apply,
        });
        let (producer, publisher) = open_on(&broker, "s").await;
        send_numbers(&publisher, 0..20).await;
        publisher.flush().await.unwrap();
        assert_eq!(broker.state().values("s"), numbers(0..20));
        producer.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn refused_for_the_whole_timeout_ends_as_busy() {
    let broker = Broker::new().with_stream("s");
    broker.script(|_| Action::Refuse(ErrorCode::DiskFull));
    let (_producer, publisher) = open_on(&broker, "s").await;
    let started = Instant::now();
    publisher.send_value(b"x").await.unwrap();
    let error = publisher.flush().await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Busy, Some(ErrorCode::DiskFull)), "{error}");
    let waited = started.elapsed();
    assert!(waited > Duration::from_secs(28) && waited < Duration::from_secs(32), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_never_answers_is_given_up_after_the_timeout() {
    let broker = Broker::new().with_stream("s");
    broker.script(|_| Action::Ignore);
    let (_producer, publisher) = open_on(&broker, "s").await;
    // Idle time does not count. That it passes is the point; the clock is paused, so it costs nothing.
    tokio::time::sleep(Duration::from_secs(100)).await;
    let started = Instant::now();
    publisher.send_value(b"x").await.unwrap();
    let error = publisher.flush().await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    let waited = started.elapsed();
    assert!(waited >= Duration::from_secs(30) && waited < Duration::from_secs(32), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_newer_session_fences_the_older_one_for_good() {
    let broker = Broker::new().with_stream("s");
    let (_old, old) = open_on(&broker, "s").await;
    old.send_value(b"old").await.unwrap();
    old.flush().await.unwrap();
    let (new_producer, new) = open_on(&broker, "s").await;
    // The fence is met when attaching again ...
    broker.cut_all();
    old.send_value(b"zombie").await.unwrap();
    let error = old.flush().await.unwrap_err();
    assert_eq!((error.code(), error.kind()), (Some(ErrorCode::Fenced), ErrorKind::Conflict), "{error}");
    assert!(!error.is_retryable());
    // ... or in the answer to a batch.
    broker.script(|_| Action::Refuse(ErrorCode::Fenced));
    new.send_value(b"zombie, too").await.unwrap();
    assert_eq!(new.flush().await.unwrap_err().code(), Some(ErrorCode::Fenced));
    assert!(new.send_value(b"x").await.is_err());
    assert_eq!(broker.state().values("s"), ["old"]);
    assert_eq!(new_producer.close().await.unwrap_err().code(), Some(ErrorCode::Fenced));
}

#[tokio::test(start_paused = true)]
async fn a_superseded_session_does_not_fight_back() {
    let broker = Broker::new().with_stream("s");
    broker.script(|_| Action::Fail(ErrorCode::Superseded));
    let (_producer, publisher) = open_on(&broker, "s").await;
    publisher.send_value(b"x").await.unwrap();
    assert_eq!(publisher.flush().await.unwrap_err().code(), Some(ErrorCode::Superseded));
    assert_eq!(broker.state().attachments.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_removed_stream_ends_its_publisher_only() {
    let broker = Broker::new().with_stream("gone").with_stream("kept");
    let client = broker.client().await;
    let producer = open(&client).await;
    let gone = producer.stream(&name("gone")).await.unwrap();
    let kept = producer.stream(&name("kept")).await.unwrap();
    broker.state().streams.remove(0);
    gone.send_value(b"x").await.unwrap();
    kept.send_value(b"y").await.unwrap();
    let error = gone.flush().await.unwrap_err();
    assert_eq!((error.code(), error.kind()), (Some(ErrorCode::StreamGone), ErrorKind::NotFound));
    kept.flush().await.unwrap();
    broker.cut_all();
    kept.send_value(b"z").await.unwrap();
    kept.flush().await.unwrap();
    assert_eq!(broker.state().values("kept"), ["y", "z"]);
    assert!(producer.close().await.is_err(), "what was not stored is told");
}

#[tokio::test(start_paused = true)]
async fn opening_is_retried_without_fencing_itself_when_its_answer_is_lost() {
    let broker = Broker::new().with_stream("s");
    let client = broker.client().await;
    broker.state().cut_after = Some("open_producer");
    let producer = open(&client).await;
    assert_eq!(producer.epoch().get(), 1);
    let opened = broker.state().requests.iter().filter(|op| **op == "open_producer").count();
    assert_eq!(opened, 2);
    let publisher = producer.stream(&name("s")).await.unwrap();
    publisher.send_value(b"x").await.unwrap();
    producer.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn making_a_stream_is_not_repeated_when_its_answer_is_lost() {
    let broker = Broker::new();
    let client = broker.client().await;
    broker.state().cut_after = Some("create_stream");
    let error = client.create_stream(&name("s"), StreamSettings::default(), false).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }) && !error.is_safe_to_resend(), "{error}");
    broker.state().cut_after = Some("create_stream");
    let made = client.create_stream(&name("s"), StreamSettings::default(), true).await.unwrap();
    assert_eq!(made.name, name("s"));
    let refused = client.create_stream(&name("s"), StreamSettings::default(), false).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Exists));
}

#[tokio::test(start_paused = true)]
async fn a_removal_whose_answer_is_lost_is_done_once_and_never_meets_another_stream() {
    let broker = Broker::new().with_stream("s").with_stream("t");
    let client = broker.client().await;
    let [s, t] = [client.stream_info(&name("s")).await.unwrap(), client.stream_info(&name("t")).await.unwrap()];
    assert_eq!(client.remove_stream(s.id).await.unwrap().map(|stream| stream.id), Some(s.id));
    broker.state().cut_after = Some("remove_stream");
    // Whether it was this request or another's that removed it can't be told any more; it is gone.
    assert_eq!(client.remove_stream(t.id).await.unwrap(), None);
    assert!(broker.state().streams.is_empty());
    let again = client.create_stream(&name("t"), StreamSettings::default(), false).await.unwrap();
    assert_eq!(client.remove_stream(t.id).await.unwrap(), None);
    assert_eq!(client.list_streams().await.unwrap(), [again]);
}

#[tokio::test(start_paused = true)]
async fn another_log_at_the_same_address_is_not_written_to() {
    let broker = Broker::new().with_stream("s");
    let (_producer, publisher) = open_on(&broker, "s").await;
    publisher.send_value(b"x").await.unwrap();
    publisher.flush().await.unwrap();
    broker.state().log_id = "b".repeat(32);
    broker.cut_all();
    publisher.send_value(b"y").await.unwrap();
    let error = publisher.flush().await.unwrap_err();
    assert!(matches!(error, Error::AnotherLog { .. }), "{error}");
    assert_eq!(broker.state().values("s"), ["x"]);
}

#[tokio::test(start_paused = true)]
async fn an_anonymous_producer_is_at_least_once() {
    let broker = Broker::new().with_stream("s");
    broker.script(|arrival| match (arrival.attachment, arrival.ordinal) {
        (0, 1) => Action::ApplySilently,
        (0, _) => Action::Cut,
        _ => Action::Apply,
    });
    let producer = broker.client().await.anonymous_producer().open().await.unwrap();
    let publisher = producer.stream(&name("s")).await.unwrap();
    send_numbers(&publisher, 0..2).await;
    producer.close().await.unwrap();
    assert_eq!(broker.state().values("s"), ["0", "0", "1"]);
}

#[tokio::test(start_paused = true)]
async fn a_send_that_is_given_up_while_it_waits_for_room_was_not_taken() {
    let broker = Broker::new().with_stream("s");
    broker.script(|arrival| if arrival.attachment == 0 { Action::Ignore } else { Action::Apply });
    let client = broker.client().await;
    let producer = client.producer(ProducerName::new("p").unwrap()).window_bytes(100).open().await.unwrap();
    let publisher = producer.stream(&name("s")).await.unwrap();
    publisher.send_value(b"first").await.unwrap();
    let big = [b'x'; 200];
    assert!(timeout(Duration::from_secs(1), publisher.send_value(&big)).await.is_err(), "there was no room");
    broker.cut_all();
    assert_eq!(publisher.send_value(b"second").await.unwrap(), Sequence::new(2));
    producer.close().await.unwrap();
    assert_eq!(broker.state().values("s"), ["first", "second"]);
}

#[tokio::test(start_paused = true)]
async fn receipts_name_the_offsets_of_every_record_once() {
    let broker = Broker::new().with_stream("s");
    let client = broker.client().await;
    let producer = client.producer(ProducerName::new("p").unwrap()).receipts(true).open().await.unwrap();
    let publisher = producer.stream(&name("s")).await.unwrap();
    let take = async {
        let mut next = 1;
        while let Some(receipt) = publisher.next_receipt().await {
            assert_eq!(receipt.first.get(), next);
            assert_eq!(receipt.base_offset, Some(Offset::new(next - 1)));
            assert!(!receipt.duplicate);
            next = receipt.last.get() + 1;
        }
        next - 1
    };
    let send = async {
        send_numbers(&publisher, 0..100).await;
        publisher.close().await.unwrap();
    };
    let (received, ()) = tokio::join!(take, send);
    assert_eq!(received, 100);
    assert!(matches!(publisher.send_value(b"x").await, Err(Error::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_record_beyond_the_limits_is_refused_here_and_harms_nothing() {
    let broker = Broker::new().with_stream("s");
    broker.state().limits.record_bytes_max = 10;
    let (producer, publisher) = open_on(&broker, "s").await;
    let error = publisher.send_value(b"more than ten bytes").await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Usage, Some(ErrorCode::RecordTooLarge)));
    publisher.send_value(b"ten bytes!").await.unwrap();
    producer.close().await.unwrap();
    assert_eq!(broker.state().values("s"), ["ten bytes!"]);
}

#[tokio::test(start_paused = true)]
async fn trust_and_access_errors_end_at_once_others_are_tried_again() {
    let broker = Broker::new();
    broker.state().connect_errors.push_back(TransportError::Untrusted("another key".into()));
    let error = Client::connect(broker.config()).await.unwrap_err();
    assert_eq!((error.kind(), broker.state().connects), (ErrorKind::Access, 1));

    let unreachable = || TransportError::Unreachable("nobody".into());
    broker.state().connect_errors.extend([unreachable(), unreachable(), unreachable()]);
    Client::connect(broker.config()).await.unwrap();
    assert_eq!(broker.state().connects, 5);

    broker.state().token = Some("secret".into());
    let error = Client::connect(broker.config().with_token("guess")).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Access, Some(ErrorCode::Unauthorized)));
    Client::connect(broker.config().with_token("secret")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nobody_there_is_told_after_the_timeout() {
    let broker = Broker::new();
    broker.state().connect_errors.extend((0..1000).map(|_| TransportError::Unreachable("here: nobody".into())));
    let started = Instant::now();
    let error = Client::connect(broker.config().with_timeout(Duration::from_secs(3))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("here: nobody"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(4));
    assert!(broker.state().connects < 20, "tries back off");
}

#[tokio::test(start_paused = true)]
async fn listing_goes_through_all_pages() {
    let broker = Broker::new();
    for number in 0..300 {
        broker.state().add_stream(&format!("s{number:03}"));
    }
    let streams = broker.client().await.list_streams().await.unwrap();
    let names: Vec<String> = streams.iter().map(|stream| stream.name.to_string()).collect();
    assert_eq!(names, (0..300).map(|number| format!("s{number:03}")).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_closed_client_is_closed_for_everybody() {
    let broker = Broker::new().with_stream("s");
    let client = broker.client().await;
    let producer = open(&client).await;
    let publisher = producer.stream(&name("s")).await.unwrap();
    client.close().await;
    assert!(matches!(client.stream_info(&name("s")).await, Err(Error::Closed)));
    let ended = match publisher.send_value(b"x").await {
        Ok(_) => publisher.flush().await,
        Err(error) => Err(error),
    };
    assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn several_tasks_share_a_publisher_on_a_multi_thread_runtime() {
    let broker = Broker::new().with_stream("s");
    let count = Arc::new(AtomicU64::new(0));
    broker.script(move |_| if count.fetch_add(1, Ordering::Relaxed) % 50 == 49 { Action::Cut } else { Action::Apply });
    let (producer, publisher) = open_on(&broker, "s").await;
    let publisher = Arc::new(publisher);
    let mut tasks = Vec::new();
    for task in 0..4_u32 {
        let publisher = Arc::clone(&publisher);
        tasks.push(tokio::spawn(async move {
            for number in 0..5_000_u32 {
                publisher.send_value(format!("{task} {number}").as_bytes()).await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    producer.close().await.unwrap();
    let values = broker.state().values("s");
    assert_eq!(values.len(), 20_000);
    for task in 0..4 {
        let prefix = format!("{task} ");
        let own: Vec<&str> = values.iter().filter_map(|value| value.strip_prefix(&prefix)).collect();
        assert_eq!(own, (0..5_000).map(|number| number.to_string()).collect::<Vec<_>>());
    }
    let batches: Vec<Bytes> = broker.state().attachments.concat();
    let headers = batches.iter().map(|batch| BatchHeader::decode(batch).unwrap());
    assert!(headers.map(|header| header.count).max().unwrap() > 1, "busy records travel together");
}
