//! The application's own sequences, dense and sparse, and what is acknowledged when.

use tidelog_protocol::{Answer, BatchRecords, ErrorCode, Offset, Outcome, check_batch};

use super::*;

const STORED: Answer = Answer { outcome: Outcome::Stored, base_offset: None, skip: 0 };

fn refused(code: ErrorCode, last: u64) -> Answer {
    Answer { outcome: Outcome::Refused { code, detail: last }, base_offset: None, skip: 0 }
}

fn stored_at(offset: u64) -> Answer {
    Answer { base_offset: Some(Offset::new(offset)), ..STORED }
}

fn window(numbering: Numbering, ack: Ack) -> Window {
    let options = WindowOptions { numbering, ack, bytes_max: 1 << 20, collect_receipts: true };
    Window::new(options, Limits::default())
}

fn found(last: u64, record: &str, last_offset: Option<u64>) -> ProducerPosition {
    ProducerPosition {
        last_sequence: Sequence::new(last),
        last_offset: last_offset.map(Offset::new),
        last_record_crc: Record::new(record.to_owned()).crc(),
        sparse: true,
    }
}

/// A window with one stream, which holds this producer's records up to `last`.
fn with_stream(numbering: Numbering, last: u64) -> (Window, usize) {
    let mut window = window(numbering, Ack::Durable);
    let slot = window.add_stream(StreamId::new(100), StreamName::new("s").unwrap(), found(last, "", None));
    (window, slot)
}

fn give(window: &mut Window, slot: usize, sequence: u64) -> Result<Push, Error> {
    window.push(slot, Some(Sequence::new(sequence)), Body::Value(sequence.to_string().as_bytes()))
}

fn take(window: &mut Window, slot: usize, sequences: &[u64]) {
    for &sequence in sequences {
        assert!(matches!(give(window, slot, sequence), Ok(Push::Taken { .. })), "{sequence}");
    }
}

/// Sequences of each batch that is sent now, with the one before it, checked as the broker does.
fn send(window: &mut Window) -> Vec<(u64, Vec<u64>)> {
    std::iter::from_fn(|| window.next_unsent()).map(|batch| sequences(&batch)).collect()
}

fn sequences(batch: &Bytes) -> (u64, Vec<u64>) {
    let header = check_batch(batch, &Limits::default()).unwrap();
    let records = BatchRecords::new(batch).unwrap().map(|record| {
        let (sequence, record) = record.unwrap();
        assert_eq!(record.value, sequence.to_string());
        sequence.get()
    });
    (header.previous.get(), records.collect())
}

fn code(pushed: Result<Push, Error>) -> (ErrorCode, Option<u64>) {
    match pushed {
        Err(Error::Refused { code: Some(code), detail, .. }) => (code, detail),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_sparse_batch_names_the_sequence_before_it() {
    let (mut window, slot) = with_stream(Numbering::Sparse, 10);
    take(&mut window, slot, &[12]);
    assert_eq!(send(&mut window), [(10, vec![12])]);
    take(&mut window, slot, &[15, 1000]);
    assert_eq!(send(&mut window), [(12, vec![15, 1000])]);
    window.settle(2, &[stored_at(3), stored_at(8)]).unwrap();
    assert_eq!((window.stream(slot).told.get(), window.bytes), (1000, 0));
    window.take_receipt(slot).unwrap();
    let receipt = window.take_receipt(slot).unwrap();
    assert_eq!((receipt.first.get(), receipt.last.get(), receipt.count), (15, 1000, 2));
}

#[test]
fn a_sparse_record_that_comes_too_late_is_refused_and_never_called_a_duplicate() {
    let (mut window, slot) = with_stream(Numbering::Sparse, 10);
    take(&mut window, slot, &[12, 17]);
    assert_eq!(code(give(&mut window, slot, 15)), (ErrorCode::SequencePast, Some(17)));
    assert_eq!(code(give(&mut window, slot, 17)), (ErrorCode::SequencePast, Some(17)));
    assert_eq!(code(give(&mut window, slot, 9)), (ErrorCode::SequencePast, Some(17)));
    assert_eq!(code(window.push(slot, None, Body::Value(b"x"))).0, ErrorCode::SequenceMode);
    take(&mut window, slot, &[20]);
    assert_eq!(send(&mut window), [(10, vec![12, 17, 20])], "nothing has ended, and nothing of them was taken");
    window.settle(1, &[STORED]).unwrap();
    assert_eq!((window.stream(slot).published, window.stream(slot).duplicates), (3, 0));
}

#[test]
fn sparse_batches_leave_room_for_their_sequences() {
    let (mut window, slot) = with_stream(Numbering::Sparse, 0);
    // Empty records and jumps that need nine bytes each: the sequences are the larger part.
    let mut sequence = 0;
    while window.bytes < 600_000 {
        sequence += 1 << 48;
        let asked = Some(Sequence::new(sequence));
        match window.push(slot, asked, Body::Value(b"")).unwrap() {
            Push::Taken { .. } => {}
            Push::Full => panic!("full at {} bytes", window.bytes),
        }
        if sequence >= Sequence::MAX.get() - (1 << 49) {
            break;
        }
    }
    while let Some(batch) = window.next_unsent() {
        check_batch(&batch, &Limits::default()).unwrap();
        assert!(batch.len() <= BATCH_CONTENT_BYTES_PREFERRED + BATCH_HEADER_LEN);
    }
    let queued: usize = window.queue.iter().map(|batch| batch.bytes.len()).sum();
    assert_eq!(window.bytes, queued, "what was reserved for sequences is given back");
}

#[test]
fn a_sparse_batch_that_the_broker_no_longer_remembers_is_a_duplicate_only_when_it_is_shown_to_be_there() {
    let (mut window, slot) = with_stream(Numbering::Sparse, 10);
    for sequence in [12, 17, 20] {
        take(&mut window, slot, &[sequence]);
        send(&mut window);
    }
    // The answers are lost; the broker has the first two, and says so.
    window.start_anew();
    window.check_last(slot, found(17, "17", Some(90))).unwrap();
    assert_eq!(send(&mut window).len(), 3);
    let past = refused(ErrorCode::SequencePast, 17);
    assert!(matches!(window.settle(3, &[past, past, stored_at(95)]), Ok(Settled::Final)));
    let receipts: Vec<_> = std::iter::from_fn(|| window.take_receipt(slot)).collect();
    let told: Vec<_> = receipts.iter().map(|receipt| (receipt.last.get(), receipt.duplicate)).collect();
    assert_eq!(told, [(12, true), (17, true), (20, false)]);
    assert_eq!(receipts[0].base_offset, None);
    assert_eq!(receipts[1].base_offset, Some(Offset::new(90)), "the broker told where its last record is");
    assert!(window.failure_of(slot).is_none());
}

#[test]
fn without_proof_a_sparse_batch_at_or_before_the_last_is_never_a_success() {
    // The same end, but another record: somebody else's.
    for (last, record) in [(17, "another"), (16, "16")] {
        let (mut window, slot) = with_stream(Numbering::Sparse, 10);
        take(&mut window, slot, &[12, 15, 17]);
        send(&mut window);
        window.start_anew();
        window.check_last(slot, found(last, record, Some(90))).unwrap();
        send(&mut window);
        window.settle(1, &[refused(ErrorCode::SequencePast, last)]).unwrap();
        let error = window.failure_of(slot).unwrap();
        assert_eq!(error.code(), Some(ErrorCode::SequencePast));
        assert!(!error.is_retryable() && !error.is_safe_to_resend(), "{error}");
        assert_eq!((window.stream(slot).settled, window.stream(slot).duplicates), (0, 0));
        assert!(window.take_receipt(slot).is_none());
    }
}

#[test]
fn a_first_refusal_as_past_is_no_success_either() {
    let (mut window, slot) = with_stream(Numbering::Sparse, 10);
    take(&mut window, slot, &[12]);
    send(&mut window);
    window.settle(1, &[refused(ErrorCode::SequencePast, 17)]).unwrap();
    let error = window.failure_of(slot).unwrap();
    assert_eq!(error.code(), Some(ErrorCode::SequencePast));
    assert!(error.is_safe_to_resend(), "it was sent once, and refused: {error}");
    assert_eq!(window.stream(slot).settled, 0);
}

#[test]
fn an_overlapping_sparse_batch_is_cut_anew_behind_what_is_shown_to_be_stored() {
    let (mut window, slot) = with_stream(Numbering::Sparse, 10);
    take(&mut window, slot, &[12, 15, 17]);
    send(&mut window);
    take(&mut window, slot, &[20]);
    send(&mut window);
    window.start_anew();
    // The record with its first sequence is there, and it is this one; nothing lies between it and the one before.
    window.check_last(slot, found(12, "12", Some(90))).unwrap();
    send(&mut window);
    let answers = [refused(ErrorCode::SequenceOverlap, 12), refused(ErrorCode::SequenceGap, 12)];
    let settled = window.settle(2, &answers).unwrap();
    assert!(matches!(settled, Settled::SendAgain(error) if error.code() == Some(ErrorCode::SequenceOverlap)));
    window.start_anew();
    window.check_last(slot, found(12, "12", Some(90))).unwrap();
    assert_eq!(send(&mut window), [(12, vec![15, 17]), (17, vec![20])]);
    window.settle(2, &[stored_at(91), stored_at(93)]).unwrap();
    let receipts: Vec<_> = std::iter::from_fn(|| window.take_receipt(slot)).collect();
    let told: Vec<_> =
        receipts.iter().map(|receipt| (receipt.first.get(), receipt.last.get(), receipt.duplicate)).collect();
    assert_eq!(told, [(12, 12, true), (15, 17, false), (20, 20, false)]);
    let stream = window.stream(slot);
    assert_eq!((stream.settled, stream.published, stream.duplicates), (4, 3, 1));
    assert_eq!(window.bytes, 0);
}

#[test]
fn an_overlapping_sparse_batch_with_records_that_nothing_shows_ends_the_stream() {
    let (mut window, slot) = with_stream(Numbering::Sparse, 10);
    take(&mut window, slot, &[12, 15, 17, 20]);
    send(&mut window);
    window.start_anew();
    // 17 is there, and is this record. Of 12 and 15, which may have been committed late, that says nothing.
    window.check_last(slot, found(17, "17", Some(90))).unwrap();
    send(&mut window);
    window.settle(1, &[refused(ErrorCode::SequenceOverlap, 17)]).unwrap();
    assert_eq!(window.failure_of(slot).unwrap().code(), Some(ErrorCode::SequenceOverlap));
    let stream = window.stream(slot);
    assert_eq!((stream.settled, stream.duplicates), (0, 0));
}

#[test]
fn dense_numbers_may_begin_at_any_that_is_stored_and_then_leave_no_gap() {
    let (mut window, slot) = with_stream(Numbering::Dense, 10);
    assert_eq!(code(give(&mut window, slot, 12)), (ErrorCode::SequenceGap, Some(11)));
    assert_eq!(code(give(&mut window, slot, 0)).0, ErrorCode::Malformed);
    assert_eq!(code(give(&mut window, slot, 1 << 63)).0, ErrorCode::Malformed);
    take(&mut window, slot, &[8, 9]);
    assert_eq!(code(give(&mut window, slot, 9)), (ErrorCode::SequencePast, Some(9)));
    assert_eq!(code(give(&mut window, slot, 11)), (ErrorCode::SequenceGap, Some(10)));
    take(&mut window, slot, &[10, 11]);
    assert_eq!(send(&mut window), [(7, vec![8, 9, 10, 11])]);
    // The broker skips what it has; what was told at first use stays the mark for what must not be lost.
    window.start_anew();
    window.check_last(slot, found(10, "10", None)).unwrap();
    send(&mut window);
    window.settle(1, &[Answer { skip: 3, ..stored_at(40) }]).unwrap();
    let stream = window.stream(slot);
    assert_eq!((stream.published, stream.duplicates, stream.told.get()), (1, 3, 11));
    assert_eq!(stream.last_offset, Some(Offset::new(40)));
}

#[test]
fn a_producer_without_a_name_has_no_sequences_to_give() {
    let (mut window, slot) = with_stream(Numbering::Anonymous, 0);
    assert_eq!(code(give(&mut window, slot, 1)).0, ErrorCode::SequenceMode);
}

#[test]
fn accepted_is_told_once_without_an_offset_and_keeps_the_record() {
    let mut window = window(Numbering::Dense, Ack::Accepted);
    let slot = window.add_stream(StreamId::new(100), StreamName::new("s").unwrap(), found(0, "", None));
    take(&mut window, slot, &[1]);
    let mut first = window.watch_last(slot);
    send(&mut window);
    take(&mut window, slot, &[2]);
    let mut second = window.watch_last(slot);
    send(&mut window);
    assert!(first.try_recv().is_err());
    window.accept(1).unwrap();
    let told = first.try_recv().unwrap().unwrap();
    assert_eq!((told.sequence.get(), told.durable, told.offset, told.duplicate), (1, false, None, false));
    assert!(second.try_recv().is_err());
    assert_eq!((window.acknowledged(slot), window.stream(slot).settled), (1, 0));
    assert!(window.take_receipt(slot).is_none(), "receipts are of durable records");
    // Lost with the broker's memory: it is sent again, and accepted again.
    window.start_anew();
    assert_eq!(send(&mut window).len(), 2);
    window.accept(2).unwrap();
    assert!(!second.try_recv().unwrap().unwrap().durable);
    window.settle(2, &[stored_at(5), stored_at(6)]).unwrap();
    assert_eq!(window.take_receipt(slot).unwrap().base_offset, Some(Offset::new(5)));
    assert!(window.is_empty());
    // Counts from before that come late change nothing; more than was sent is a lie.
    window.accept(1).unwrap();
    assert!(matches!(window.accept(3), Err(Error::Protocol { .. })));
}

#[test]
fn whoever_waits_for_a_durable_record_is_told_its_offset() {
    let (mut window, slot) = with_stream(Numbering::Dense, 0);
    let mut watched: Vec<_> = (1..=3)
        .map(|sequence| {
            take(&mut window, slot, &[sequence]);
            window.watch_last(slot)
        })
        .collect();
    send(&mut window);
    window.accept(1).unwrap();
    assert!(watched[0].try_recv().is_err(), "accepted is not what was asked for");
    window.settle(1, &[Answer { skip: 1, ..stored_at(70) }]).unwrap();
    let told: Vec<_> = watched.iter_mut().map(|watched| watched.try_recv().unwrap().unwrap()).collect();
    let offsets: Vec<_> =
        told.iter().map(|told| (told.offset.map(Offset::get), told.duplicate, told.durable)).collect();
    assert_eq!(offsets, [(None, true, true), (Some(70), false, true), (Some(71), false, true)]);
}

#[test]
fn whoever_waits_for_a_record_hears_of_the_end() {
    let (mut window, slot) = with_stream(Numbering::Dense, 0);
    take(&mut window, slot, &[1]);
    let mut first = window.watch_last(slot);
    send(&mut window);
    window.settle(1, &[refused(ErrorCode::StreamGone, 0)]).unwrap();
    assert_eq!(first.try_recv().unwrap().unwrap_err().code(), Some(ErrorCode::StreamGone));
    let (mut window, slot) = with_stream(Numbering::Dense, 0);
    take(&mut window, slot, &[1]);
    let mut first = window.watch_last(slot);
    window.fail(Error::Closed);
    assert!(matches!(first.try_recv().unwrap(), Err(Error::Closed)));
}

#[test]
fn an_end_with_unanswered_records_is_not_safe_to_resend() {
    let fenced = || Error::refused(ErrorCode::Fenced, "no".into(), None);
    let (mut window, slot) = with_stream(Numbering::Dense, 0);
    take(&mut window, slot, &[1]);
    window.fail(fenced());
    assert!(window.failure.as_ref().unwrap().is_safe_to_resend(), "nothing was sent");

    let (mut window, slot) = with_stream(Numbering::Dense, 0);
    take(&mut window, slot, &[1]);
    send(&mut window);
    window.fail(fenced());
    let error = window.failure.clone().unwrap();
    assert!(!error.is_safe_to_resend() && error.code() == Some(ErrorCode::Fenced), "{error}");

    let (mut window, slot) = with_stream(Numbering::Dense, 0);
    take(&mut window, slot, &[1]);
    send(&mut window);
    let error = window.settle(1, &[refused(ErrorCode::Fenced, 2)]).unwrap_err();
    window.fail(error);
    assert!(window.failure.as_ref().unwrap().is_safe_to_resend(), "the answer was that nothing is stored");

    let (mut window, slot) = with_stream(Numbering::Dense, 0);
    take(&mut window, slot, &[1]);
    send(&mut window);
    window.start_anew();
    send(&mut window);
    let error = window.settle(1, &[refused(ErrorCode::Fenced, 2)]).unwrap_err();
    window.fail(error);
    assert!(
        !window.failure.as_ref().unwrap().is_safe_to_resend(),
        "the first time it was sent it may have been stored"
    );
}
