use tidelog_protocol::{Answer, BatchHeader, ErrorCode, Offset, Outcome, check_batch};

use super::*;

const STORED: Answer = Answer { outcome: Outcome::Stored, base_offset: None, skip: 0 };
const DUPLICATE: Answer = Answer { outcome: Outcome::Duplicate, base_offset: None, skip: 0 };

fn refused(code: ErrorCode) -> Answer {
    Answer { outcome: Outcome::Refused { code, detail: 0 }, base_offset: None, skip: 0 }
}

const OPTIONS: WindowOptions =
    WindowOptions { numbering: Numbering::Dense, ack: Ack::Durable, bytes_max: 1 << 20, collect_receipts: false };

fn window() -> Window {
    Window::new(WindowOptions { collect_receipts: true, ..OPTIONS }, Limits::default())
}

fn position(last: u64, last_record_crc: u32) -> ProducerPosition {
    ProducerPosition { last_sequence: Sequence::new(last), last_offset: None, last_record_crc, sparse: false }
}

fn add(window: &mut Window, name: &str, last: u64) -> usize {
    let id = StreamId::new(100 + window.streams.len() as u64);
    window.add_stream(id, StreamName::new(name).unwrap(), position(last, 0))
}

fn push(window: &mut Window, slot: usize, value: &[u8]) -> Push {
    window.push(slot, None, Body::Value(value)).unwrap()
}

fn drain(window: &mut Window) -> Vec<Bytes> {
    std::iter::from_fn(|| window.next_unsent()).collect()
}

fn bounds(batch: &Bytes) -> (u64, u64) {
    let header: BatchHeader = check_batch(batch, &Limits::default()).unwrap();
    (header.first.get(), header.last.get())
}

#[test]
fn an_idle_producers_record_leaves_at_once_and_a_busy_ones_travel_together() {
    let mut window = window();
    let slot = add(&mut window, "s", 0);
    for sequence in 1..=4 {
        assert_eq!(push(&mut window, slot, b"x"), Push::Taken { sequence: Sequence::new(sequence), wake: true });
        let sent = drain(&mut window);
        assert_eq!(sent.iter().map(bounds).collect::<Vec<_>>(), [(sequence, sequence)]);
    }
    for _ in 5..=50 {
        assert!(matches!(push(&mut window, slot, b"x"), Push::Taken { wake: false, .. }));
        assert!(drain(&mut window).is_empty());
    }
    window.settle(1, &[STORED]).unwrap();
    let sent = drain(&mut window);
    assert_eq!(sent.iter().map(bounds).collect::<Vec<_>>(), [(5, 50)]);
}

#[test]
fn a_large_batch_does_not_wait_for_answers() {
    let mut window = window();
    let slot = add(&mut window, "s", 0);
    for _ in 0..linger::SMALL_IN_FLIGHT_MAX {
        push(&mut window, slot, b"x");
        drain(&mut window);
    }
    assert!(matches!(push(&mut window, slot, &[0; 1000]), Push::Taken { wake: false, .. }));
    assert!(matches!(push(&mut window, slot, &[0; 65_000]), Push::Taken { wake: true, .. }));
    assert_eq!(drain(&mut window).len(), 1);
}

#[test]
fn batches_stay_near_the_preferred_size() {
    let mut window = window();
    let slot = add(&mut window, "s", 0);
    while push(&mut window, slot, &[7; 10_000]) != Push::Full {}
    let sent = drain(&mut window);
    assert!(sent.len() >= 3);
    assert!(sent.iter().all(|batch| batch.len() <= BATCH_CONTENT_BYTES_PREFERRED + BATCH_HEADER_LEN));
}

#[test]
fn a_full_window_refuses_and_an_empty_one_takes_any_record() {
    let mut window = Window::new(WindowOptions { bytes_max: 1000, ..OPTIONS }, Limits::default());
    let slot = add(&mut window, "s", 0);
    assert!(matches!(push(&mut window, slot, &[1; 5000]), Push::Taken { .. }));
    assert_eq!(push(&mut window, slot, b"y"), Push::Full);
    assert_eq!(window.stream(slot).pushed, 1);
    drain(&mut window);
    assert_eq!(push(&mut window, slot, b"y"), Push::Full);
    window.settle(1, &[STORED]).unwrap();
    assert!(window.is_empty());
    assert_eq!(window.bytes, 0);
    assert!(matches!(push(&mut window, slot, b"y"), Push::Taken { .. }));
}

#[test]
fn the_smallest_window_holds_one_record_at_a_time_and_sends_it() {
    let mut window = Window::new(WindowOptions { bytes_max: 1, ..OPTIONS }, Limits::default());
    let slots = ["a", "b"].map(|name| add(&mut window, name, 0));
    for ordinal in 1..=4 {
        let slot = slots[ordinal as usize % 2];
        assert!(matches!(push(&mut window, slot, b"x"), Push::Taken { wake: true, .. }));
        assert_eq!(push(&mut window, slot, b"y"), Push::Full);
        assert!(!window.gathers());
        assert_eq!(drain(&mut window).len(), 1);
        window.settle(ordinal, &[STORED]).unwrap();
    }
}

#[test]
fn batches_are_counted_too() {
    let mut window = window();
    let slots: Vec<usize> = (0..=BATCHES_MAX).map(|number| add(&mut window, &format!("s{number}"), 0)).collect();
    for &slot in &slots[..BATCHES_MAX] {
        assert!(matches!(push(&mut window, slot, b""), Push::Taken { .. }));
    }
    assert!(matches!(push(&mut window, slots[BATCHES_MAX], b""), Push::Taken { .. }), "none is under way yet");
    assert_eq!(drain(&mut window).len(), BATCHES_MAX + 1);
    assert_eq!(push(&mut window, slots[0], b""), Push::Full);
    window.settle(2, &[STORED, STORED]).unwrap();
    assert!(matches!(push(&mut window, slots[0], b""), Push::Taken { .. }));
}

/// A window with so many streams, one record of each under way.
fn busy_window(streams: usize) -> (Window, Vec<usize>) {
    let mut window = Window::new(OPTIONS, Limits::default());
    let slots: Vec<usize> = (0..streams).map(|number| add(&mut window, &format!("s{number}"), 0)).collect();
    for &slot in &slots {
        push(&mut window, slot, b"x");
    }
    assert_eq!(drain(&mut window).len(), slots.len());
    (window, slots)
}

#[test]
fn batches_of_many_streams_leave_oldest_first_and_in_lumps_when_they_fill_their_part_of_the_window() {
    let (mut window, slots) = busy_window(100);
    let most = linger::open_bytes_max(OPTIONS.bytes_max);
    let mut round = slots.iter().cycle();
    let mut wakes = 0;
    while window.open_bytes < most {
        assert_eq!(wakes, 0, "their part is not full yet");
        assert!(drain(&mut window).is_empty());
        let pushed = push(&mut window, *round.next().unwrap(), &[0; 100]);
        wakes += usize::from(matches!(pushed, Push::Taken { wake: true, .. }));
    }
    assert_eq!(wakes, 1);
    let oldest: Vec<_> = window.open.iter().copied().collect();
    let sent = drain(&mut window);
    let lump: usize = sent.iter().map(Bytes::len).sum();
    assert!(lump >= linger::lump_bytes(OPTIONS.bytes_max), "{lump}");
    assert!(sent.len() < slots.len() / 2, "the others grow on");
    let streams = |batch: &Bytes| check_batch(batch, &Limits::default()).unwrap().stream;
    let expected: Vec<_> = oldest[..sent.len()].iter().map(|slot| window.stream(*slot).id).collect();
    assert_eq!(sent.iter().map(streams).collect::<Vec<_>>(), expected);
}

#[test]
fn with_the_answers_all_leave_if_the_producer_has_paused_and_the_oldest_if_it_goes_on() {
    for goes_on in [false, true] {
        let (mut window, slots) = busy_window(100);
        for &slot in &slots {
            push(&mut window, slot, &[0; 5_000]);
        }
        assert!(drain(&mut window).is_empty());
        let answered = slots.len() - linger::SMALL_IN_FLIGHT_MAX + 1;
        window.settle(answered as u64, &vec![STORED; answered]).unwrap();
        while window.gathers() {
            if goes_on {
                push(&mut window, slots[0], b"x");
            }
        }
        let sent: usize = drain(&mut window).iter().map(Bytes::len).sum();
        let lump = linger::lump_bytes(OPTIONS.bytes_max);
        let expected = if goes_on { lump..lump + 10_000 } else { 500_000..510_000 };
        assert!(expected.contains(&sent), "{sent}");
    }
}

#[test]
fn a_producer_of_many_streams_is_waited_for_while_it_goes_on_and_not_for_ever() {
    let mut window = Window::new(OPTIONS, Limits::default());
    let slots: Vec<usize> = (0..100).map(|number| add(&mut window, &format!("s{number}"), 0)).collect();
    push(&mut window, slots[0], b"x");
    assert!(!window.gathers(), "few streams: at once");
    for &slot in &slots {
        push(&mut window, slot, b"x");
    }
    assert!(window.gathers(), "it has brought more");
    assert!(!window.gathers(), "it pauses");
    let mut turns = 0;
    push(&mut window, slots[0], b"x");
    while window.gathers() {
        turns += 1;
        push(&mut window, slots[0], b"x");
    }
    assert!((2..100).contains(&turns), "{turns}");
    // With answers to come, those are what it waits for.
    drain(&mut window);
    push(&mut window, slots[0], b"x");
    assert!(!window.gathers());
}

#[test]
fn records_of_many_streams_come_whole_and_in_order_whatever_their_size() {
    let mut window = Window::new(OPTIONS, Limits::default());
    let slots: Vec<usize> = (0..40).map(|number| add(&mut window, &format!("s{number}"), 0)).collect();
    // Longer ones go straight to their batches, those before them first.
    let value = |number: usize| vec![number as u8; if number.is_multiple_of(7) { 1_500 } else { number % 300 }];
    let mut expected = vec![Vec::new(); slots.len()];
    for number in 0..800 {
        let place = number * 31 % slots.len();
        let pushed = match number % 3 {
            0 => window.push(slots[place], None, Body::Record(&Record::new(value(number)).with_key("key"))),
            _ => window.push(slots[place], None, Body::Value(&value(number))),
        };
        assert!(matches!(pushed.unwrap(), Push::Taken { .. }), "there is room");
        expected[place].push(value(number));
    }
    let mut found = vec![Vec::new(); slots.len()];
    for batch in drain(&mut window) {
        let header = check_batch(&batch, &Limits::default()).unwrap();
        let records = tidelog_protocol::BatchRecords::new(&batch).unwrap();
        found[(header.stream.get() - 100) as usize].extend(records.map(|record| record.unwrap().1.value.to_vec()));
    }
    assert_eq!(found, expected);
}

#[test]
fn a_stream_that_ends_takes_its_staged_records_along_and_no_others() {
    let (mut window, slots) = busy_window(40);
    for &slot in &slots {
        push(&mut window, slot, b"y");
    }
    window.fail_stream(slots[39], Error::Closed);
    window.settle(40, &[STORED; 40]).unwrap();
    let left = drain(&mut window);
    assert_eq!(left.iter().map(bounds).collect::<Vec<_>>(), [(2, 2); 39]);
    window.settle(79, &[STORED; 39]).unwrap();
    assert_eq!((window.bytes, window.open_bytes), (0, 0));
}

#[test]
fn what_is_sent_again_is_the_same_in_the_same_order() {
    let mut window = window();
    let (a, b) = (add(&mut window, "a", 10), add(&mut window, "b", 0));
    let mut sent = Vec::new();
    for number in 0..3_u8 {
        push(&mut window, a, &[number]);
        push(&mut window, b, &[number; 2]);
        sent.extend(drain(&mut window));
    }
    assert_eq!(bounds(&sent[0]), (11, 11));
    window.settle(2, &[STORED, STORED]).unwrap();
    push(&mut window, a, b"late");
    window.start_anew();
    let again = drain(&mut window);
    assert_eq!(again[..sent.len() - 2], sent[2..]);
    // Ordinals start anew with the attachment.
    let answers = vec![DUPLICATE; again.len()];
    window.settle(again.len() as u64, &answers).unwrap();
    assert!(window.is_empty());
    assert_eq!(window.bytes, 0);
}

#[test]
fn answers_count_records_offsets_and_receipts() {
    let mut window = window();
    let slot = add(&mut window, "s", 0);
    for _ in 0..3 {
        push(&mut window, slot, b"x");
    }
    drain(&mut window);
    push(&mut window, slot, b"y");
    drain(&mut window);
    let overlapping = Answer { outcome: Outcome::Stored, base_offset: Some(Offset::new(40)), skip: 1 };
    window.settle(2, &[overlapping, DUPLICATE]).unwrap();
    let stream = window.stream(slot);
    assert_eq!((stream.published, stream.duplicates), (2, 2));
    assert_eq!(stream.last_offset, Some(Offset::new(41)));
    assert_eq!((stream.told, stream.settled), (Sequence::new(4), 4));
    let receipt = window.take_receipt(slot).unwrap();
    assert_eq!((receipt.first.get(), receipt.last.get(), receipt.skip, receipt.duplicate), (1, 3, 1, false));
    assert_eq!(receipt.base_offset, Some(Offset::new(40)));
    assert!(window.take_receipt(slot).unwrap().duplicate);
    assert!(window.take_receipt(slot).is_none());
}

#[test]
fn receipts_that_nobody_takes_hold_the_sender_up() {
    let mut window = window();
    let slot = add(&mut window, "s", 0);
    for ordinal in 1..=RECEIPTS_MAX as u64 {
        push(&mut window, slot, b"x");
        assert_eq!(drain(&mut window).len(), 1);
        window.settle(ordinal, &[STORED]).unwrap();
    }
    assert_eq!(push(&mut window, slot, b"x"), Push::Full);
    window.take_receipt(slot).unwrap();
    assert!(matches!(push(&mut window, slot, b"x"), Push::Taken { .. }));
}

#[test]
fn receipts_come_in_the_order_of_answers_and_tell_the_checksum_that_was_sent() {
    let mut window = window();
    let slots = ["a", "b"].map(|name| add(&mut window, name, 0));
    let mut sent = Vec::new();
    for slot in [0, 1, 0] {
        push(&mut window, slots[slot], b"x");
        sent.extend(drain(&mut window));
    }
    window.settle(3, &[STORED, STORED, STORED]).unwrap();
    let crc = |index: usize| check_batch(&sent[index], &Limits::default()).unwrap().content_crc;
    // One that was taken through its stream is not there for all any more.
    let receipt = window.take_receipt(slots[1]).unwrap();
    assert_eq!((receipt.last.get(), receipt.content_crc), (1, crc(1)));
    for (last, index) in [(1, 0), (2, 2)] {
        let (stream, receipt) = window.take_any_receipt().unwrap();
        assert_eq!((stream.get(), receipt.last.get(), receipt.content_crc), (100, last, crc(index)));
    }
    assert!(window.take_any_receipt().is_none());
}

#[test]
fn a_refusal_for_now_keeps_the_batch_and_all_behind_it() {
    let mut window = window();
    let slot = add(&mut window, "s", 0);
    let mut sent = Vec::new();
    for _ in 0..3 {
        push(&mut window, slot, b"x");
        sent.extend(drain(&mut window));
    }
    let settled = window.settle(3, &[STORED, refused(ErrorCode::Busy), refused(ErrorCode::SequenceGap)]).unwrap();
    assert!(matches!(settled, Settled::SendAgain(error) if error.code() == Some(ErrorCode::Busy)));
    window.start_anew();
    assert_eq!(drain(&mut window), sent[1..]);
    assert!(window.failure_of(slot).is_none());
}

#[test]
fn a_final_refusal_ends_its_stream_only() {
    let mut window = window();
    let (a, b) = (add(&mut window, "a", 0), add(&mut window, "b", 0));
    push(&mut window, a, b"1");
    drain(&mut window);
    push(&mut window, a, b"2");
    push(&mut window, b, b"1");
    drain(&mut window);
    push(&mut window, a, b"3");
    window.settle(1, &[refused(ErrorCode::StreamGone)]).unwrap();
    assert_eq!(window.failure_of(a).unwrap().code(), Some(ErrorCode::StreamGone));
    assert!(window.push(a, None, Body::Value(b"4")).is_err());
    // The answer to what was under way still comes, whatever it says.
    window.settle(3, &[refused(ErrorCode::Busy), STORED]).unwrap();
    assert_eq!(window.stream(b).published, 1);
    assert!(window.failure_of(b).is_none());
    assert!(window.is_empty());
    assert_eq!(window.bytes, 0);
}

#[test]
fn batches_of_a_failed_stream_are_not_sent_again() {
    let mut window = window();
    let (a, b) = (add(&mut window, "a", 0), add(&mut window, "b", 0));
    push(&mut window, a, b"1");
    drain(&mut window);
    push(&mut window, a, b"2");
    push(&mut window, b, b"1");
    drain(&mut window);
    window.settle(1, &[refused(ErrorCode::SequenceReused)]).unwrap();
    window.start_anew();
    let again = drain(&mut window);
    assert_eq!(again.len(), 1);
    window.settle(1, &[STORED]).unwrap();
    assert_eq!((window.stream(b).published, window.bytes), (1, 0));
}

#[test]
fn fencing_ends_everything() {
    let mut window = window();
    let slot = add(&mut window, "s", 0);
    push(&mut window, slot, b"x");
    drain(&mut window);
    let error = window.settle(1, &[refused(ErrorCode::Fenced)]).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Fenced));
}

#[test]
fn answers_to_what_was_not_sent_are_refused() {
    let mut window = window();
    let slot = add(&mut window, "s", 0);
    push(&mut window, slot, b"x");
    drain(&mut window);
    for (up_to, count) in [(2, 1), (2, 2), (1, 2), (0, 1)] {
        let error = window.settle(up_to, &vec![STORED; count]).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
    }
    window.settle(1, &[STORED]).unwrap();
}

#[test]
fn what_was_told_durable_must_still_be_there() {
    let mut window = window();
    let slot = add(&mut window, "s", 5);
    push(&mut window, slot, b"x");
    drain(&mut window);
    window.settle(1, &[STORED]).unwrap();
    assert!(window.check_last(slot, position(6, 0)).is_ok());
    let lost = window.check_last(slot, position(5, 0)).unwrap_err();
    assert!(matches!(lost, Error::AcknowledgedLost { told, found, .. } if told.get() == 6 && found.get() == 5));
    let foreign = window.check_last(slot, position(7, 0)).unwrap_err();
    assert!(matches!(foreign, Error::WrittenByAnother { sent, found, .. } if sent.get() == 6 && found.get() == 7));
}

#[test]
fn a_record_beyond_the_limits_changes_nothing() {
    let mut window = Window::new(WindowOptions { bytes_max: 4 << 20, ..OPTIONS }, Limits::default());
    let slot = add(&mut window, "s", 0);
    let error = window.push(slot, None, Body::Value(&vec![0; (1 << 20) + 1])).unwrap_err();
    assert!(matches!(error, Error::Record(_)), "{error}");
    assert!(window.is_empty());
    assert!(matches!(push(&mut window, slot, b"x"), Push::Taken { sequence, .. } if sequence.get() == 1));
}

#[test]
fn anonymous_batches_have_no_sequences() {
    let mut window = Window::new(WindowOptions { numbering: Numbering::Anonymous, ..OPTIONS }, Limits::default());
    let slot = add(&mut window, "s", 0);
    assert!(matches!(push(&mut window, slot, b"x"), Push::Taken { sequence: Sequence::NONE, .. }));
    let sent = drain(&mut window);
    assert!(check_batch(&sent[0], &Limits::default()).unwrap().is_anonymous());
    window.settle(1, &[STORED]).unwrap();
    assert_eq!((window.stream(slot).settled, window.stream(slot).told), (1, Sequence::NONE));
}
