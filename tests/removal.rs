//! Streams that are removed and made again (B8), also on a full disk (B3): over QUIC with the real client, and the
//! sequencer with a real log on a simulated machine.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

mod scenarios;

use std::time::Duration;

use scenarios::histories::{self, FIRST, SECOND, dense, refused, stored, tail, written};
use scenarios::rig::Rig;
use tidelog::sequencer::Supply;
use tidelog::testkit::TestBroker;
use tidelog_client::{Client, Error, ErrorKind, ReaderEvent};
use tidelog_protocol::{
    ErrorCode, Offset, ProducerName, ResponseResult, StartAt, StreamDescription, StreamName, StreamSettings,
};
use tidelog_storage::{Job, Sabotages};
use tokio::sync::oneshot::error::TryRecvError;

fn name(text: &str) -> StreamName {
    StreamName::new(text).unwrap()
}

fn producer_name(text: &str) -> ProducerName {
    ProducerName::new(text).unwrap()
}

async fn make(client: &Client, stream: &str) -> StreamDescription {
    client.create_stream(&name(stream), StreamSettings::default(), false).await.unwrap()
}

#[track_caller]
fn assert_gone<T: std::fmt::Debug>(outcome: Result<T, Error>) {
    let error = outcome.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::StreamGone), "{error}");
    assert!(!error.is_retryable(), "{error}");
    assert_eq!(error.kind().exit_code(), 4);
}

// Over QUIC.

#[tokio::test]
async fn whoever_uses_a_removed_stream_is_told_at_once_and_one_of_its_name_is_another() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let old = make(&client, "orders").await;
    let other = make(&client, "refunds").await;
    let producer = client.producer(producer_name("shop")).open().await.unwrap();
    let publisher = producer.stream(&old).await.unwrap();
    let refunds = producer.stream(&other).await.unwrap();
    publisher.send_value(b"one").await.unwrap();
    publisher.flush().await.unwrap();
    // One that has nothing left to read, one that has read nothing, and one that waits for what will never come.
    let mut caught_up = client.reader(&old).follow(true).open().await.unwrap();
    assert!(matches!(caught_up.next_batch().await.unwrap(), Some(ReaderEvent::Batch(_))));
    let mut at_end = client.reader(&old).from(StartAt::End).follow(true).open().await.unwrap();
    let mut of_other = client.reader(&other).follow(true).open().await.unwrap();

    // Well within the minute that nobody is given to notice it himself.
    let (removed, first, second) = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::join!(client.remove_stream(old.id), caught_up.next_batch(), at_end.next_batch())
    })
    .await
    .unwrap();
    let removed = removed.unwrap().unwrap();
    assert_eq!((removed.id, removed.tail), (old.id, Offset::new(1)));
    assert_gone(first);
    assert_gone(second);
    assert!(client.remove_stream(old.id).await.unwrap().is_none(), "once is enough, and twice no harm");
    assert_eq!(client.stream_info(&name("orders")).await.unwrap_err().code(), Some(ErrorCode::NotFound));
    assert_eq!(client.list_streams().await.unwrap().len(), 1);
    assert_eq!(client.status().await.unwrap().streams, 1);

    // The name is free, and what was on its way to the old stream does not get there.
    let new = make(&client, "orders").await;
    assert_ne!(new.id, old.id);
    assert_eq!((new.head, new.tail, new.bytes), (Offset::new(0), Offset::new(0), 0));
    publisher.send_value(b"two").await.unwrap();
    assert_gone(publisher.flush().await);
    assert_gone(producer.stream(&old).await.map(drop));
    assert_gone(client.reader(&old).open().await.map(drop));
    // The session lives, and its other streams do.
    refunds.send_value(b"refund").await.unwrap();
    refunds.flush().await.unwrap();
    assert!(matches!(of_other.next_batch().await.unwrap(), Some(ReaderEvent::Batch(_))));
    let publisher = producer.stream(&new).await.unwrap();
    assert_eq!(publisher.last_sequence().get(), 0);
    publisher.send_value(b"first").await.unwrap();
    publisher.flush().await.unwrap();
    let orders = broker.stream("orders").await;
    orders.expect(["first"]).await;

    broker.restart().await;
    assert_eq!(broker.counters().recovery_damages, 0);
    assert_eq!(client.list_streams().await.unwrap().len(), 2);
    orders.expect_no_more().await;
    broker.stream("orders").await.expect(["first"]).await;
    assert_gone(client.reader(&old).open().await.map(drop));
    broker.no_acknowledged_loss().await;
}

#[tokio::test]
async fn a_position_past_the_end_of_a_stream_made_again_is_an_error_and_never_a_wait() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let old = make(&client, "orders").await;
    client.remove_stream(old.id).await.unwrap();
    let new = make(&client, "orders").await;
    let at = |offset| StartAt::Offset { offset: Offset::new(offset) };
    for follow in [false, true] {
        let error = client.reader(&new).from(at(1)).follow(follow).open().await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::PositionPastEnd), "{error}");
        client.reader(&new).from(at(0)).follow(follow).open().await.unwrap();
    }
}

#[tokio::test]
async fn on_a_full_disk_streams_are_removed_and_producers_opened_before_and_after_a_restart() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let events = make(&client, "events").await;
    let mut others = Vec::new();
    for number in 0..4 {
        others.push(make(&client, &format!("other-{number}")).await);
    }
    let producer = client.producer(producer_name("p")).open().await.unwrap();
    let publisher = producer.stream(&events).await.unwrap();
    broker.faults().full_disk(true);
    fill(&broker, &publisher).await;
    let fillers = fill_with_streams(&broker).await;
    works_on_a_full_disk(&client, &mut others, fillers, "before").await;
    drop((publisher, producer));
    client.close().await;

    broker.restart().await;
    let before = broker.counters();
    let client = broker.client().await;
    works_on_a_full_disk(&client, &mut others, fillers, "after").await;
    let stored = client.stream_info(&name("events")).await.unwrap().tail;
    let producer = client.producer(producer_name("p")).open().await.unwrap();
    let publisher = producer.stream(name("events")).await.unwrap();
    publisher.send_value(b"refused until there is space").await.unwrap();
    while broker.counters().since(&before).refused(ErrorCode::DiskFull) == 0 {
        tokio::task::yield_now().await;
    }
    broker.faults().full_disk(false);
    publisher.flush().await.unwrap();
    assert_eq!(client.stream_info(&name("events")).await.unwrap().tail.get(), stored.get() + 1);
    make(&client, "made-again").await;
    broker.no_acknowledged_loss().await;
}

/// Publishes until there is no room.
async fn fill(broker: &TestBroker, publisher: &tidelog_client::Publisher) {
    let is_refused = || broker.counters().refused(ErrorCode::DiskFull) > 0;
    let value = vec![0; 64 << 10];
    while !is_refused() {
        tokio::select! {
            taken = publisher.send_value(&value) => drop(taken.unwrap()),
            // The window is full of what is refused.
            () = async { while !is_refused() { tokio::task::yield_now().await } } => {}
        }
    }
}

/// Makes streams as long as there is room: nothing fits any more.
async fn fill_with_streams(broker: &TestBroker) -> usize {
    let hasty = Client::connect(broker.client_config().with_timeout(Duration::from_secs(1))).await.unwrap();
    for number in 0.. {
        let made = hasty.create_stream(&name(&format!("filler-{number}")), StreamSettings::default(), true).await;
        if let Err(error) = made {
            assert_eq!((error.kind(), error.code()), (ErrorKind::Busy, Some(ErrorCode::DiskFull)), "{error}");
            return number;
        }
    }
    unreachable!()
}

async fn works_on_a_full_disk(client: &Client, others: &mut Vec<StreamDescription>, fillers: usize, when: &str) {
    for _ in 0..2 {
        let gone = others.pop().unwrap();
        assert_eq!(client.remove_stream(gone.id).await.unwrap().unwrap().id, gone.id, "{when}");
        let producer = producer_name(&format!("{when}-{}", gone.name));
        client.producer(producer).open().await.unwrap();
    }
    assert_eq!(client.list_streams().await.unwrap().len(), 1 + fillers + others.len(), "{when}");
}

// The sequencer alone.

fn sound() -> Sabotages {
    Sabotages::default()
}

fn code(reply: ResponseResult) -> Option<u16> {
    match reply {
        ResponseResult::Ok(_) => None,
        ResponseResult::Error(error) => Some(error.code),
    }
}

#[test]
fn a_removal_is_answered_and_shown_once_it_is_durable() {
    let (mut rig, stream, _) = written(1, sound(), 2).unwrap();
    rig.told().removed.clear();
    let mut removed = rig.remove_stream(stream).unwrap();
    let mut again = rig.remove_stream(stream).unwrap();
    assert!(rig.hand_over());
    while rig.stage().is_some() {
        assert_eq!(removed.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(again.try_recv(), Err(TryRecvError::Empty), "what it rests on is not durable either");
        assert_eq!(tail(&rig, stream), 2, "readers still have it");
        assert!(rig.told().removed.is_empty());
        rig.step().unwrap();
    }
    assert_eq!(code(removed.try_recv().unwrap()), None);
    assert_eq!(code(again.try_recv().unwrap()), Some(ErrorCode::StreamGone.number()));
    assert_eq!(rig.told().removed, [stream]);
    assert_eq!(rig.sequencer().ordered(), rig.sequencer().durable());
}

#[test]
fn followers_get_what_was_ordered_before_the_removal_and_nothing_behind_it() {
    let (mut rig, stream, grant) = written(1, sound(), 0).unwrap();
    rig.told().delivered.clear();
    rig.publish(FIRST, &grant, &dense(stream, 1, &["a"])).unwrap();
    drop(rig.remove_stream(stream).unwrap());
    rig.publish(FIRST, &grant, &dense(stream, 2, &["b"])).unwrap();
    rig.commit().unwrap();
    let delivered: Vec<u64> = rig.told().delivered.drain(..).map(|(_, live)| live.batch.base_offset).collect();
    assert_eq!(delivered, [0]);
    assert_eq!(rig.told().removed, [stream]);
}

#[test]
fn memory_does_not_grow_with_streams_that_are_gone() {
    let (mut rig, kept, grant) = written(1, sound(), 0).unwrap();
    let value = "x".repeat(6_000);
    let mut next = 1;
    let mut highest = 0;
    let mut segments = 0;
    for round in 0..60 {
        // Some are removed with all of their records in the active segment, some behind it.
        let stream = rig.stream("passing").unwrap();
        for sequence in 1..=1 + round % 4 * 8 {
            rig.settle(FIRST, &grant, &dense(stream, sequence, &[&value])).unwrap();
        }
        rig.settle(FIRST, &grant, &dense(kept, next, &["kept"])).unwrap();
        next += 1;
        rig.removed(stream).unwrap();
        highest = highest.max(rig.sequencer().log().index().subjects());
        if round % 20 == 19 {
            rig.kill();
            segments = rig.open().unwrap().report.segments;
        }
    }
    assert!(segments > 20, "{segments}");
    assert!(highest <= 2, "{highest} streams are known, of which two were ever there");
    let read = rig.read(kept, 0).unwrap();
    assert_eq!(read.len() as u64, next - 1, "the one that stayed is found through all segments");
}

#[test]
fn a_poisoned_broker_removes_nothing() {
    let (mut rig, stream, _) = written(1, sound(), 1).unwrap();
    rig.life().sequencer.poison();
    let reply = rig.remove_stream(stream).unwrap();
    assert_eq!(code(rig.now_replied(reply).unwrap()), Some(ErrorCode::Poisoned.number()));
    rig.kill();
    histories::reopen(&mut rig).unwrap();
    assert_eq!(tail(&rig, stream), 1);
}

/// Nothing more fits, and nothing more can be prepared.
fn full(rig: &mut Rig, grant: &tidelog::state::Grant, stream: tidelog_protocol::StreamId, next: u64) -> u64 {
    while rig.run_job().unwrap() {}
    rig.disk.set_capacity_bytes(Some(rig.disk.used_bytes()));
    rig.life().sequencer.set_supply(Supply::Failed);
    let mut next = next;
    for size in [6_000, 1] {
        loop {
            let answer = rig.settle(FIRST, grant, &dense(stream, next, &["x".repeat(size).as_str()])).unwrap();
            if answer == refused(ErrorCode::DiskFull, 0) {
                break;
            }
            assert_eq!(answer, stored(next - 1, 0));
            next += 1;
        }
    }
    next
}

fn take_reserve(rig: &mut Rig) {
    rig.job(Job::TakeReserve).unwrap();
}

#[test]
fn a_full_disk_takes_opens_up_to_the_half_of_the_reserve_removals_last_and_no_batch() {
    let (mut rig, stream, grant) = written(1, sound(), 1).unwrap();
    let others: Vec<_> = (0..400).map(|number| rig.stream(&format!("s{number}")).unwrap()).collect();
    let next = full(&mut rig, &grant, stream, 2);
    let full = Some(ErrorCode::DiskFull.number());
    let reply = rig.remove_stream(others[0]).unwrap();
    assert_eq!(code(rig.now_replied(reply).unwrap()), full, "the reserve is not at hand yet");
    take_reserve(&mut rig);
    let mut opened = 0_u64;
    loop {
        let reply = rig.open_producer("other", opened, opened as u8).unwrap();
        rig.commit().unwrap();
        match code(rig.now_replied(reply).unwrap()) {
            None => opened += 1,
            refused => {
                assert_eq!(refused, full);
                break;
            }
        }
    }
    assert!((50..200).contains(&opened), "{opened}");
    assert!(rig.sequencer().log().is_on_reserve());
    assert_eq!(rig.settle(FIRST, &grant, &dense(stream, next, &["x"])).unwrap(), refused(ErrorCode::DiskFull, 0));
    let reply = rig.create_stream("more", false).unwrap();
    assert_eq!(code(rig.now_replied(reply).unwrap()), full, "a new stream helps nobody");
    // What is known already takes no room.
    let duplicate = rig.settle(FIRST, &grant, &dense(stream, 1, &["order 1"])).unwrap();
    assert_eq!(duplicate, histories::duplicate(0));
    let mut removed = 0;
    for other in &others {
        let reply = rig.remove_stream(*other).unwrap();
        rig.commit().unwrap();
        if code(rig.now_replied(reply).unwrap()) == full {
            break;
        }
        removed += 1;
    }
    assert!((50..400).contains(&removed), "{removed}");

    // What is left is for a start, which finds all of it.
    let before = rig.sequencer().durable().clone();
    rig.cut_power_losing_unsynced();
    histories::reopen(&mut rig).unwrap();
    assert_eq!(*rig.sequencer().durable(), before);
    assert!(rig.sequencer().log().is_on_reserve());
    rig.life().sequencer.set_supply(Supply::Failed);
    assert_eq!(rig.settle(FIRST, &grant, &dense(stream, next, &["x"])).unwrap(), refused(ErrorCode::DiskFull, 0));
    rig.removed(others[removed]).unwrap();

    // Free space lets everybody go on.
    rig.disk.set_capacity_bytes(None);
    rig.prepare_spare().unwrap();
    assert_eq!(rig.settle(FIRST, &grant, &dense(stream, next, &["x"])).unwrap(), stored(next - 1, 0));
    assert!(!rig.sequencer().log().is_on_reserve());
    rig.stream("more").unwrap();
    let before = rig.sequencer().durable().clone();
    rig.kill();
    histories::reopen(&mut rig).unwrap();
    assert_eq!(*rig.sequencer().durable(), before);
}

#[test]
fn a_stream_in_doubt_can_be_removed_and_stays_so() {
    let (mut rig, stream, grant) = written(2, sound(), 1).unwrap();
    let lost = dense(stream, 2, &["lost"]);
    rig.settle(FIRST, &grant, &lost).unwrap();
    let at = rig.sequencer().durable().producers.sequence(grant.producer, stream).unwrap().decided_at;
    let kept = rig.stream("kept").unwrap();
    rig.close().unwrap();
    // Both copies of the entry's header.
    let head = tidelog_protocol::BATCH_HEADER_LEN;
    let len = tidelog_storage::entry_len(0, lost.len(), head) as u64;
    rig.flip(at + 8);
    rig.flip(at + len - tidelog_storage::entry_len(0, 0, 0) as u64 / 2 - head as u64 + 8);
    rig.kill();
    rig.open().unwrap();
    assert!(rig.sequencer().durable().stream_is_doubtful(stream));
    rig.removed(stream).unwrap();
    for _ in 0..2 {
        rig.kill();
        rig.open().unwrap();
        let streams = rig.sequencer().durable().catalogue.list(None, 9).0;
        assert_eq!(streams.iter().map(|stream| stream.id).collect::<Vec<_>>(), [kept]);
        let nobody = tidelog::state::Grant {
            producer: tidelog_protocol::ProducerId::ANONYMOUS,
            epoch: tidelog_protocol::Epoch::NONE,
        };
        let batch = histories::builder(&["x"]).finish_anonymous(stream);
        assert_eq!(rig.settle(SECOND, &nobody, &batch).unwrap(), refused(ErrorCode::Damaged, 0));
    }
}
