//! Readers against a broker that loses connections, stores more meanwhile, and delivers what it should not.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod harness;

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use harness::{Broker, Stored, deliver_frame};
use tidelog_client::{Error, ErrorKind, Reader, ReaderEvent};
use tidelog_protocol::{
    BatchBuilder, Damaged, ErrorCode, FrameKind, Gap, GapCause, Limits, Offset, ProducerId, Sequence, StartAt,
    StreamId, StreamName, WireError, encode_damaged, encode_gap, encode_json_frame,
};
use tokio::time::timeout;

/// A batch of named or anonymous records with these numbers as values; sequences are number + 1.
fn batch(stream: StreamId, numbers: std::ops::Range<u64>, named: bool) -> Bytes {
    let mut builder = BatchBuilder::new();
    let first = Sequence::new(numbers.start + 1);
    for number in numbers {
        builder.push_value(number.to_string().as_bytes(), &Limits::default()).unwrap();
    }
    if named { builder.finish_dense(stream, first) } else { builder.finish_anonymous(stream) }
}

/// A broker with stream `s` that holds `batches` batches of three records by producer `p`.
fn broker_with(batches: u64) -> (Broker, StreamId, ProducerId) {
    let broker = Broker::new();
    let (stream, producer) = {
        let mut state = broker.state();
        (state.add_stream("s"), state.add_producer("p"))
    };
    for number in 0..batches {
        broker.append(stream, producer, batch(stream, number * 3..number * 3 + 3, true));
    }
    (broker, stream, producer)
}

async fn open(broker: &Broker, from: StartAt, follow: bool) -> Result<Reader, Error> {
    let stream = StreamName::new("s").unwrap();
    broker.client().await.reader(&stream).from(from).follow(follow).open().await
}

/// Reads to the end: (offset, value) of every record, checking that events join.
async fn read_all(reader: &mut Reader) -> Result<Vec<(u64, String)>, Error> {
    let mut all = Vec::new();
    while let Some(event) = reader.next_batch().await? {
        let ReaderEvent::Batch(batch) = event else { panic!("{event:?}") };
        assert_eq!(batch.records().count() as u64, batch.len());
        for record in batch {
            let record = record?;
            all.push((record.offset.get(), String::from_utf8(record.record.value.to_vec()).unwrap()));
        }
    }
    Ok(all)
}

fn expected(offsets: std::ops::Range<u64>) -> Vec<(u64, String)> {
    offsets.map(|offset| (offset, offset.to_string())).collect()
}

const fn at(offset: u64) -> StartAt {
    StartAt::Offset { offset: Offset::new(offset) }
}

#[tokio::test(start_paused = true)]
async fn every_record_comes_once_in_order_with_its_place() {
    let (broker, _, _) = broker_with(4);
    let mut reader = open(&broker, StartAt::Start, false).await.unwrap();
    let Some(ReaderEvent::Batch(first)) = reader.next_batch().await.unwrap() else { panic!("no batch") };
    assert_eq!(first.producer().map(ToString::to_string).as_deref(), Some("p"));
    assert_eq!((first.base_offset().get(), first.next_offset().get(), first.time_ms()), (0, 3, 1_000));
    let sequences: Vec<u64> = first.records().map(|record| record.unwrap().sequence.get()).collect();
    assert_eq!(sequences, [1, 2, 3]);
    assert_eq!(read_all(&mut reader).await.unwrap(), expected(3..12));
    assert_eq!(reader.next_offset().get(), 12);
    assert!(reader.next_batch().await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_empty_stream_ends_at_once() {
    let (broker, _, _) = broker_with(0);
    let mut reader = open(&broker, StartAt::Start, false).await.unwrap();
    assert!(reader.next_batch().await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn reading_goes_on_behind_the_last_offset_after_every_cut() {
    let (broker, _, _) = broker_with(10);
    broker.state().deliveries_max = Some(3);
    let mut reader = open(&broker, StartAt::Start, false).await.unwrap();
    let mut all = Vec::new();
    loop {
        match reader.next_batch().await.unwrap() {
            Some(ReaderEvent::Batch(batch)) => all.extend(batch.map_offsets()),
            Some(other) => panic!("{other:?}"),
            None => break,
        }
    }
    assert_eq!(all, (0..30).collect::<Vec<_>>());
    assert!(broker.state().connects >= 3, "{}", broker.state().connects);
}

trait MapOffsets {
    fn map_offsets(self) -> Vec<u64>;
}

impl MapOffsets for tidelog_client::DeliveredBatch {
    fn map_offsets(self) -> Vec<u64> {
        self.into_iter().map(|record| record.unwrap().offset.get()).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn without_follow_the_end_is_where_it_was_at_the_start_even_after_a_cut() {
    let (broker, stream, producer) = broker_with(3);
    broker.state().deliveries_max = Some(1);
    let mut reader = open(&broker, StartAt::Start, false).await.unwrap();
    assert_eq!(reader.end().map(Offset::get), Some(9));
    for number in 3..6 {
        broker.append(stream, producer, batch(stream, number * 3..number * 3 + 3, true));
    }
    assert_eq!(read_all(&mut reader).await.unwrap(), expected(0..9));
}

#[tokio::test(start_paused = true)]
async fn a_start_in_the_middle_of_a_batch_skips_to_it() {
    let (broker, _, _) = broker_with(3);
    let mut reader = open(&broker, at(4), false).await.unwrap();
    assert_eq!(read_all(&mut reader).await.unwrap(), expected(4..9));
    let mut reader = open(&broker, StartAt::Last { count: 1 }, false).await.unwrap();
    assert_eq!(read_all(&mut reader).await.unwrap(), expected(8..9));
}

#[tokio::test(start_paused = true)]
async fn an_end_in_the_middle_of_a_batch_cuts_it_off() {
    let (broker, stream, _) = broker_with(1);
    let longer = batch(stream, 0..5, false);
    let stored = Stored { base_offset: 0, skip: 0, count: 5, producer: ProducerId::ANONYMOUS, batch: longer };
    broker.state().deliveries.push_back(deliver_frame(&stored));
    let mut reader = open(&broker, StartAt::Start, false).await.unwrap();
    assert_eq!(read_all(&mut reader).await.unwrap(), expected(0..3));
}

#[tokio::test(start_paused = true)]
async fn records_that_were_duplicates_are_left_out() {
    let (broker, stream, producer) = broker_with(1);
    // Records 1 to 4 in a batch whose first two were stored before.
    let overlapping = batch(stream, 1..5, true);
    let stored = Stored { base_offset: 3, skip: 2, count: 4, producer, batch: overlapping };
    {
        let mut state = broker.state();
        state.streams[0].batches.push(stored);
        state.streams[0].tail = 5;
    }
    let mut reader = open(&broker, StartAt::Start, false).await.unwrap();
    assert_eq!(read_all(&mut reader).await.unwrap(), expected(0..5));
    let mut reader = open(&broker, at(4), false).await.unwrap();
    assert_eq!(read_all(&mut reader).await.unwrap(), expected(4..5));
}

#[tokio::test(start_paused = true)]
async fn a_follower_waits_for_ever_and_gets_what_comes() {
    let (broker, stream, producer) = broker_with(1);
    let mut reader = open(&broker, StartAt::End, true).await.unwrap();
    assert!(timeout(Duration::from_secs(1_000), reader.next_batch()).await.is_err());
    broker.append(stream, producer, batch(stream, 3..5, true));
    broker.append(stream, ProducerId::ANONYMOUS, batch(stream, 5..6, false));
    let Some(ReaderEvent::Batch(first)) = reader.next_batch().await.unwrap() else { panic!("no batch") };
    assert_eq!(first.map_offsets(), [3, 4]);
    // As a stream of futures-core, too.
    let polled = std::future::poll_fn(|context| Pin::new(&mut reader).poll_next(context)).await;
    let Some(Ok(ReaderEvent::Batch(second))) = polled else { panic!("{polled:?}") };
    assert_eq!(second.producer(), None);
    assert_eq!(second.records().next().unwrap().unwrap().sequence, Sequence::NONE);
    let mut context = Context::from_waker(Waker::noop());
    assert!(matches!(Pin::new(&mut reader).poll_next(&mut context), Poll::Pending));
    broker.cut_all();
    broker.append(stream, producer, batch(stream, 6..7, true));
    let Some(ReaderEvent::Batch(third)) = reader.next_batch().await.unwrap() else { panic!("no batch") };
    assert_eq!(third.map_offsets(), [6]);
}

#[tokio::test(start_paused = true)]
async fn records_that_are_due_and_do_not_come_end_in_a_timeout() {
    let (broker, _, _) = broker_with(3);
    broker.state().deliveries.push_back(Bytes::new());
    let mut reader = open(&broker, StartAt::Start, false).await.unwrap();
    let error = reader.next_batch().await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert!(reader.next_batch().await.unwrap().is_none(), "an error is final");
}

#[tokio::test(start_paused = true)]
async fn gaps_and_damage_are_told_where_they_are() {
    let (broker, stream, producer) = broker_with(4);
    let mut frames = BytesMut::new();
    let gap = Gap { from: Offset::new(0), to: Offset::new(3), cause: GapCause::Retention };
    encode_gap(&gap, &mut frames);
    encode_damaged(&Damaged { from: Offset::new(3), to: Offset::new(6) }, &mut frames);
    let stored = Stored {
        base_offset: 6,
        skip: 0,
        count: 3,
        producer: ProducerId::ANONYMOUS,
        batch: batch(stream, 6..9, false),
    };
    frames.extend_from_slice(&deliver_frame(&stored));
    // What lies behind the reader's end is not its business.
    encode_damaged(&Damaged { from: Offset::new(9), to: Offset::new(99) }, &mut frames);
    broker.state().deliveries.push_back(frames.freeze());
    let _ = producer;
    let mut reader = open(&broker, at(1), false).await.unwrap();
    let bounds = |event: Option<ReaderEvent>| match event {
        Some(ReaderEvent::Gap { from, to }) => ("gap", from.get(), to.get()),
        Some(ReaderEvent::Damaged { from, to }) => ("damaged", from.get(), to.get()),
        Some(ReaderEvent::Batch(batch)) => ("batch", batch.base_offset().get(), batch.next_offset().get()),
        other => panic!("{other:?}"),
    };
    assert_eq!(bounds(reader.next_batch().await.unwrap()), ("gap", 1, 3));
    assert_eq!(bounds(reader.next_batch().await.unwrap()), ("damaged", 3, 6));
    assert_eq!(bounds(reader.next_batch().await.unwrap()), ("batch", 6, 9));
    assert_eq!(bounds(reader.next_batch().await.unwrap()), ("damaged", 9, 12));
    assert!(reader.next_batch().await.unwrap().is_none());
}

/// The error of a reader whose subscription delivers exactly this.
async fn delivered(broker: &Broker, frames: Bytes) -> Error {
    broker.state().deliveries.push_back(frames);
    let mut reader = open(broker, StartAt::Start, false).await.unwrap();
    loop {
        match reader.next_batch().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the reader ended without an error"),
            Err(error) => return error,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_dense_is_not_believed() {
    let (broker, stream, _) = broker_with(4);
    let anonymous = |base_offset, numbers: std::ops::Range<u64>| {
        let count = u32::try_from(numbers.end - numbers.start).unwrap();
        let batch = batch(stream, numbers, false);
        deliver_frame(&Stored { base_offset, skip: 0, count, producer: ProducerId::ANONYMOUS, batch })
    };
    let join = |frames: &[Bytes]| Bytes::from(frames.concat());
    // A hole, a repetition, an overlap.
    for second in [anonymous(4, 4..6), anonymous(0, 0..3), anonymous(2, 2..6)] {
        let error = delivered(&broker, join(&[anonymous(0, 0..3), second])).await;
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
    }
    let mut gap = BytesMut::new();
    encode_gap(&Gap { from: Offset::new(5), to: Offset::new(6), cause: GapCause::Retention }, &mut gap);
    let error = delivered(&broker, gap.freeze()).await;
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn foreign_and_damaged_batches_are_not_believed() {
    let (broker, stream, _) = broker_with(1);
    let stored =
        |batch: Bytes, producer, skip| deliver_frame(&Stored { base_offset: 0, skip, count: 3, producer, batch });
    let mut damaged = batch(stream, 0..3, false).to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let error = delivered(&broker, stored(damaged.into(), ProducerId::ANONYMOUS, 0)).await;
    assert!(matches!(&error, Error::ChecksumMismatch { offset, .. } if offset.get() == 0), "{error}");
    assert_eq!(error.kind(), ErrorKind::Failed);

    let other_stream = batch(StreamId::new(77), 0..3, false);
    let error = delivered(&broker, stored(other_stream, ProducerId::ANONYMOUS, 0)).await;
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    let error = delivered(&broker, stored(batch(stream, 0..3, true), ProducerId::new(9), 0)).await;
    assert!(error.to_string().contains("producer 9"), "{error}");
    let error = delivered(&broker, stored(batch(stream, 0..3, false), ProducerId::ANONYMOUS, 3)).await;
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_position_past_the_end_is_an_error_and_never_a_wait() {
    let (broker, _, _) = broker_with(2);
    let error = open(&broker, at(7), true).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::PositionPastEnd));
    // An older copy of the log under the same id: the end is now before the reader.
    let mut reader = open(&broker, at(6), true).await.unwrap();
    {
        let mut state = broker.state();
        state.streams[0].batches.pop();
        state.streams[0].tail = 3;
    }
    broker.cut_all();
    let error = reader.next_batch().await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::PositionPastEnd), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_failure_in_the_middle_decides_whether_to_go_on() {
    let (broker, _, _) = broker_with(2);
    let failure = |code| {
        let mut frame = BytesMut::new();
        encode_json_frame(FrameKind::Failure, &WireError::new(code, "told by the test"), &mut frame).unwrap();
        frame.freeze()
    };
    let error = delivered(&broker, failure(ErrorCode::StreamGone)).await;
    assert_eq!((error.code(), error.kind()), (Some(ErrorCode::StreamGone), ErrorKind::NotFound));
    broker.state().deliveries.push_back(failure(ErrorCode::Busy));
    let mut reader = open(&broker, StartAt::Start, false).await.unwrap();
    assert_eq!(read_all(&mut reader).await.unwrap(), expected(0..6));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_does_not_exist_is_not_found() {
    let broker = Broker::new();
    let error = open(&broker, StartAt::Start, false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
