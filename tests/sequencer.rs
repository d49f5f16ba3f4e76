//! The sequencer with a real log on a simulated machine, on one thread: what may leave it and when, what a restart finds,
//! and a crash model that holds both against a plain list.
//!
//! `cargo test` looks at 300 crash states; `TIDELOG_CRASH_STATES=100000` at that many (faster with `--release`).
//! A failure prints its seed; `TIDELOG_SEED=N` replays that one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

mod scenarios;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use scenarios::Checked;
use scenarios::crash::{self, Tally};
use scenarios::histories::{
    self, FIRST, SECOND, dense, duplicate, refused, reopen, resume, sparse, stored, tail, written,
};
use scenarios::rig::{Rig, Stage};
use tidelog::sequencer::{Ordered, SessionKey, Step, Supply};
use tidelog::state::{Grant, State};
use tidelog_protocol::{
    Answer, AttemptId, BATCH_HEADER_LEN, Epoch, ErrorCode, Limits, ProducerId, Response, ResponseResult, StreamId,
    StreamName, StreamSettings,
};
use tidelog_storage::{EntryKind, Facts, NewEntry, ReadOutcome, Sabotages, entry_len};
use tokio::sync::oneshot::error::TryRecvError;

const APPENDED: Step = Step::Decided(Ordered::Appended);
const DUPLICATE: Step = Step::Decided(Ordered::Duplicate);
const REFUSED: Step = Step::Decided(Ordered::Refused);

fn sound() -> Sabotages {
    Sabotages::default()
}

fn answers(rig: &mut Rig) -> Vec<(SessionKey, Answer)> {
    rig.told().answers.drain(..).collect()
}

// When answers leave (P1, A8).

#[test]
fn every_answer_waits_until_what_it_rests_on_is_durable() {
    let (mut rig, stream, grant) = written(1, sound(), 2).unwrap();
    let two = dense(stream, 2, &["order 2"]);
    // One record that is not durable: everything decided behind it rests on it, whatever it is about.
    assert_eq!(rig.publish(FIRST, &grant, &dense(stream, 3, &["order 3"])).unwrap(), APPENDED);
    assert_eq!(rig.publish(FIRST, &grant, &two).unwrap(), DUPLICATE);
    assert_eq!(rig.publish(FIRST, &grant, &dense(stream, 9, &["x"])).unwrap(), REFUSED);
    assert_eq!(rig.publish(FIRST, &grant, &Bytes::from_static(b"no batch")).unwrap(), REFUSED);
    let mut replies = vec![
        rig.create_stream("orders", true).unwrap(),
        rig.create_stream("orders", false).unwrap(),
        rig.create_stream("refunds", false).unwrap(),
        rig.open_producer("shop", 0, 1).unwrap(),
        rig.open_producer("shop", 0, 9).unwrap(),
        rig.open_producer("shop", 7, 9).unwrap(),
        rig.open_producer("another", 0, 1).unwrap(),
        rig.attach(grant.producer, grant.epoch, AttemptId::new([1; 16])).1,
        rig.attach(grant.producer, grant.epoch, AttemptId::new([9; 16])).1,
        rig.attach(ProducerId::ANONYMOUS, Epoch::NONE, AttemptId::new([0; 16])).1,
    ];
    assert!(rig.hand_over());
    for stage in [Stage::Taken, Stage::Written, Stage::Synced] {
        assert_eq!(rig.stage(), Some(stage));
        assert_eq!(answers(&mut rig), []);
        assert!(replies.iter_mut().all(|reply| reply.try_recv() == Err(TryRecvError::Empty)));
        assert_eq!(rig.sequencer().answers_waiting(), 4 + replies.len());
        rig.step().unwrap();
    }
    let left: Vec<Answer> = answers(&mut rig).into_iter().map(|(_, answer)| answer).collect();
    let expected = [stored(2, 0), duplicate(1), refused(ErrorCode::SequenceGap, 4), refused(ErrorCode::Malformed, 0)];
    assert_eq!(left, expected, "in the order of the batches");
    let codes: Vec<Option<u16>> = replies
        .into_iter()
        .map(|reply| match rig.now_replied(reply).unwrap() {
            ResponseResult::Ok(_) => None,
            ResponseResult::Error(error) => Some(error.code),
        })
        .collect();
    let [exists, fenced, damaged] =
        [ErrorCode::Exists, ErrorCode::Fenced, ErrorCode::Damaged].map(|code| Some(code.number()));
    assert_eq!(codes, [None, exists, None, None, fenced, damaged, None, None, fenced, None]);
}

#[test]
fn what_rests_on_nothing_new_is_answered_at_once() {
    let (mut rig, stream, grant) = written(1, sound(), 1).unwrap();
    rig.publish(FIRST, &grant, &dense(stream, 1, &["order 1"])).unwrap();
    rig.publish(SECOND, &grant, &dense(stream, 5, &["x"])).unwrap();
    assert_eq!(answers(&mut rig), [(FIRST, duplicate(0)), (SECOND, refused(ErrorCode::SequenceGap, 2))]);
    let reply = rig.create_stream("orders", true).unwrap();
    assert!(matches!(rig.now_replied(reply), Ok(ResponseResult::Ok(Response::Stream(_)))));
    assert_eq!(rig.sequencer().answers_waiting(), 0);
}

#[test]
fn a_commit_lets_go_only_what_rests_on_its_group() {
    let (mut rig, stream, grant) = written(1, sound(), 0).unwrap();
    rig.publish(FIRST, &grant, &dense(stream, 1, &["a"])).unwrap();
    rig.hand_over();
    rig.step().unwrap();
    // These arrive while the first is synced. The duplicate's original is in that sync, but not what came before its decision.
    rig.publish(FIRST, &grant, &dense(stream, 2, &["b"])).unwrap();
    rig.publish(FIRST, &grant, &dense(stream, 1, &["a"])).unwrap();
    rig.step().unwrap();
    rig.step().unwrap();
    assert_eq!(answers(&mut rig), [(FIRST, stored(0, 0))]);
    assert_eq!(tail(&rig, stream), 1, "readers see what is durable");
    assert_eq!(rig.sequencer().ordered().catalogue.stream(stream).unwrap().tail.get(), 2);
    rig.commit().unwrap();
    assert_eq!(answers(&mut rig), [(FIRST, stored(1, 0)), (FIRST, duplicate(0))]);
}

#[test]
fn what_is_in_the_stream_is_told_from_what_is_durable() {
    let (mut rig, stream, grant) = written(1, sound(), 1).unwrap();
    rig.publish(FIRST, &grant, &dense(stream, 2, &["b"])).unwrap();
    let position = |rig: &Rig| match rig.sequencer().producer_stream(grant.producer, stream) {
        ResponseResult::Ok(Response::ProducerStream { last_sequence, last_offset, sparse, .. }) => {
            (last_sequence.get(), last_offset.map(|offset| offset.get()), sparse)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(position(&rig), (1, Some(0), false));
    rig.commit().unwrap();
    assert_eq!(position(&rig), (2, Some(1), false));
    let code = |result: ResponseResult| match result {
        ResponseResult::Error(error) => error.code,
        other => panic!("{other:?}"),
    };
    let gone = rig.sequencer().producer_stream(grant.producer, StreamId::new(8));
    assert_eq!(code(gone), ErrorCode::StreamGone.number());
    let unknown = rig.sequencer().producer_stream(ProducerId::new(8), stream);
    assert_eq!(code(unknown), ErrorCode::NotFound.number());
}

// What consumers get (P3, P4).

#[test]
fn followers_get_durable_batches_in_order_and_as_they_were_sent() {
    let (mut rig, stream, grant) = written(1, sound(), 0).unwrap();
    let batches = [
        dense(stream, 1, &["a", "b"]),
        dense(stream, 2, &["b", "c"]),
        dense(stream, 4, &["d".repeat(4_000).as_str(); 5]),
    ];
    for batch in &batches {
        rig.publish(FIRST, &grant, batch).unwrap();
    }
    rig.hand_over();
    rig.step().unwrap();
    rig.step().unwrap();
    assert!(rig.told().delivered.is_empty(), "synced, and not yet proven");
    rig.commit().unwrap();
    let delivered: Vec<_> = rig.told().delivered.drain(..).collect();
    let places: Vec<(u64, u32, u32)> =
        delivered.iter().map(|(_, live)| (live.batch.base_offset, live.batch.span, live.batch.skip)).collect();
    assert_eq!(places, [(0, 2, 0), (2, 1, 1), (3, 5, 0)]);
    for ((of, live), batch) in delivered.iter().zip(&batches) {
        assert_eq!((*of, &live.batch.payload), (stream, batch));
    }
    let own: Vec<bool> = delivered.iter().map(|(_, live)| live.batch.payload.is_unique()).collect();
    assert_eq!(own, [true; 3], "a batch that is small beside a group buffer does not pin it");
    // Read back from the log they are the same.
    let read: Vec<Bytes> = rig
        .read(stream, 0)
        .unwrap()
        .into_iter()
        .map(|outcome| match outcome {
            ReadOutcome::Batch(batch) => batch.payload,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(read, batches);
}

#[test]
fn nothing_is_handed_over_where_nobody_follows() {
    let (mut rig, stream, grant) = written(1, sound(), 0).unwrap();
    rig.told().is_followed = false;
    rig.settle(FIRST, &grant, &dense(stream, 1, &["a"])).unwrap();
    assert!(rig.told().delivered.is_empty());
    assert_eq!(tail(&rig, stream), 1);
}

// The folds.

/// A little of everything.
fn varied(seed: u64) -> Checked<Rig> {
    let (mut rig, stream, grant) = written(seed, sound(), 3)?;
    rig.settle(FIRST, &grant, &dense(stream, 3, &["order 3", "order 4"]))?;
    let outbox = rig.session("outbox", 1)?;
    rig.settle(SECOND, &outbox, &sparse(stream, 0, 12, "a"))?;
    let nobody = Grant { producer: ProducerId::ANONYMOUS, epoch: Epoch::NONE };
    rig.settle(SECOND, &nobody, &histories::builder(&["x", "y"]).finish_anonymous(stream))?;
    rig.session("shop", 2)?;
    // Limits of zero are none, before a restart as behind it.
    let settings = StreamSettings { max_age_ms: Some(0), max_bytes: Some(7) };
    let reply = rig.create_stream_with(&StreamName::new("n".repeat(255)).unwrap(), false, &settings)?;
    rig.commit()?;
    rig.now_replied(reply)?;
    Ok(rig)
}

#[test]
fn at_rest_the_two_folds_are_one_and_a_start_folds_the_same_from_the_log() {
    for seed in 0..6 {
        let mut rig = varied(seed).unwrap();
        assert_eq!(rig.sequencer().ordered(), rig.sequencer().durable());
        let before = rig.sequencer().durable().clone();
        for start in 0..3 {
            histories::restart(&mut rig, seed + start).unwrap();
            assert_eq!(*rig.sequencer().durable(), before);
            assert_eq!(*rig.sequencer().ordered(), before);
        }
    }
}

#[test]
fn what_was_not_committed_shows_in_the_ordered_fold_alone_and_a_start_agrees_with_the_durable_one() {
    let (mut rig, stream, grant) = written(4, sound(), 2).unwrap();
    let before = rig.sequencer().durable().clone();
    rig.publish(FIRST, &grant, &dense(stream, 3, &["unsynced"])).unwrap();
    drop(rig.open_producer("shop", 1, 2).unwrap());
    assert_ne!(rig.sequencer().ordered(), rig.sequencer().durable());
    assert_eq!(*rig.sequencer().durable(), before);
    rig.cut_power_losing_unsynced();
    reopen(&mut rig).unwrap();
    assert_eq!(*rig.sequencer().durable(), before);
}

// Holes (A4, step 19).

/// Breaks both copies of the header of the entry that holds a producer's last batch.
fn break_entry(rig: &Rig, state: &State, grant: &Grant, stream: StreamId, batch: &Bytes) {
    let position = state.producers.sequence(grant.producer, stream).unwrap().decided_at;
    let len = entry_len(0, batch.len(), BATCH_HEADER_LEN) as u64;
    let copy_len = entry_len(0, 0, 0) as u64 / 2 + BATCH_HEADER_LEN as u64;
    rig.flip(position + 8);
    rig.flip(position + len - copy_len + 8);
}

#[test]
fn a_log_with_a_hole_folds_the_same_at_every_start_and_nothing_in_doubt_is_written_to() {
    let (mut rig, stream, grant) = written(2, sound(), 2).unwrap();
    let other = rig.session("other", 1).unwrap();
    let last = dense(stream, 3, &["order 3"]);
    rig.settle(FIRST, &grant, &last).unwrap();
    let before = rig.sequencer().durable().clone();
    // Behind it stand only entries of another stream and another producer.
    let refunds = rig.stream("refunds").unwrap();
    let refunder = rig.session("refunder", 1).unwrap();
    rig.settle(SECOND, &refunder, &dense(refunds, 1, &["a"])).unwrap();
    rig.close().unwrap();
    break_entry(&rig, &before, &grant, stream, &last);

    let mut folds = Vec::new();
    for start in 0..3 {
        rig.kill();
        let found = rig.open().unwrap();
        assert_eq!(found.report.damages.len(), 1, "{:?}", found.report.damages);
        assert_eq!(found.contradictions, [] as [String; 0]);
        folds.push(rig.sequencer().durable().clone());
        assert_eq!(folds[0], folds[start], "start {start}");

        // The stream's end, and what its producers wrote last, can't be proven: no offset is used again, no sequence, no
        // epoch and no name.
        let shop = Grant { epoch: Epoch::new(1), ..grant };
        assert_eq!(resume(&mut rig, &shop, 1).unwrap(), Err(ErrorCode::Damaged));
        let answer = rig.settle(FIRST, &shop, &last).unwrap();
        assert_eq!(answer, refused(ErrorCode::Damaged, 0), "its offset would be another record's");
        assert_eq!(rig.settle(FIRST, &other, &dense(refunds, 1, &["a"])).unwrap(), refused(ErrorCode::Damaged, 0));
        let damaged = |result: ResponseResult| {
            let ResponseResult::Error(error) = result else { panic!("{result:?}") };
            assert_eq!(error.code, ErrorCode::Damaged.number());
        };
        damaged(rig.sequencer().producer_stream(grant.producer, stream));
        damaged(rig.sequencer().producer_stream(other.producer, refunds));
        let inside = before.producers.sequence(grant.producer, stream).unwrap().decided_at + 200;
        damaged(rig.sequencer().producer_stream(refunder.producer, StreamId::new(inside / 8 * 8)));
        for reply in [
            rig.open_producer("shop", 1, 2).unwrap(),
            rig.open_producer("new", 0, 2).unwrap(),
            rig.create_stream("new", true).unwrap(),
        ] {
            rig.commit().unwrap();
            damaged(rig.now_replied(reply).unwrap());
        }
        let existing = rig.create_stream("refunds", true).unwrap();
        assert!(matches!(rig.now_replied(existing), Ok(ResponseResult::Ok(Response::Stream(_)))));

        // What was decided behind the hole runs.
        assert_eq!(resume(&mut rig, &refunder, 1).unwrap(), Ok(refunder));
        let gap = rig.settle(SECOND, &refunder, &dense(refunds, 9, &["x"])).unwrap();
        assert_eq!(gap, refused(ErrorCode::SequenceGap, 2));
        let damaged = rig.read(stream, 0).unwrap();
        assert_eq!(damaged.len(), 2, "what is before the hole is read as ever: {damaged:?}");
    }
    assert_eq!(rig.settle(SECOND, &refunder, &dense(refunds, 2, &["b"])).unwrap(), stored(1, 0));
    histories::restart(&mut rig, 0).unwrap_err();
    assert_eq!(tail(&rig, refunds), 2);
}

/// Step 20: entries that no sound broker writes, under right checksums.
#[test]
fn an_entry_that_contradicts_its_own_batch_is_told_at_the_next_start() {
    let (mut rig, stream, grant) = written(1, sound(), 1).unwrap();
    let refunds = rig.stream("refunds").unwrap();
    let (facts, batch) = (Facts::default(), dense(stream, 2, &["b", "c"]));
    let sane = NewEntry {
        kind: EntryKind::Records,
        subject: stream.get(),
        base_offset: 1,
        span: 2,
        skip: 0,
        owner: tidelog::state::owner(grant.producer, grant.epoch),
        facts: &facts,
        payload: &batch,
        head_len: BATCH_HEADER_LEN as u16,
    };
    let life = rig.life();
    let time = life.now.time;
    for entry in [NewEntry { subject: refunds.get(), ..sane }, NewEntry { span: 1, ..sane }, sane] {
        life.sequencer.log_mut().append(&[entry], time).unwrap();
    }
    rig.close().unwrap();
    let found = rig.open().unwrap();
    let told: Vec<&str> = found.contradictions.iter().map(|text| text.as_str()).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("holds a batch for") && told[1].contains("counts other records"), "{told:?}");
    assert_eq!(tail(&rig, stream), 3, "the sound one counts");
}

// Failures of the writer (P8, A1).

/// What a program has been told is stored: sequence and offset.
type Acked = BTreeMap<u64, u64>;

const ORDERS: u64 = 12;

fn order(stream: StreamId, sequence: u64) -> Bytes {
    dense(stream, sequence, &[&format!("order {sequence} {}", "x".repeat(sequence as usize * 50))])
}

/// Sends all orders, two before each commit, as far as it gets. What was sent before is sent again.
fn send_orders(rig: &mut Rig, acked: &mut Acked) -> Checked {
    let stream = rig.stream("orders")?;
    let grant = rig.session("shop", 1)?;
    for first in (1..=ORDERS).step_by(2) {
        for sequence in [first, first + 1] {
            rig.publish(FIRST, &grant, &order(stream, sequence))?;
        }
        let committed = rig.commit();
        for (sequence, (_, answer)) in (first..).zip(answers(rig)) {
            let offset = answer.base_offset.ok_or(format!("order {sequence}: {answer:?}"))?.get();
            let before = acked.insert(sequence, offset);
            check!(before.is_none_or(|before| before == offset), "order {sequence} moved from {before:?} to {offset}");
        }
        committed?;
    }
    rig.quiet()
}

fn check_orders(rig: &mut Rig, acked: &Acked) -> Checked {
    let Some(stream) = rig.sequencer().durable().catalogue.find(&StreamName::new("orders").unwrap()) else {
        check!(acked.is_empty(), "the stream is gone");
        return Ok(());
    };
    let mut there = Acked::new();
    for outcome in rig.read(stream, 0)? {
        let ReadOutcome::Batch(batch) = outcome else { return Err(format!("{outcome:?}")) };
        let sequence = there.len() as u64 + 1;
        check!(batch.payload == order(stream, sequence), "at {} stands not order {sequence}", batch.base_offset);
        there.insert(sequence, batch.base_offset);
    }
    let lost: Vec<_> = acked.iter().filter(|(sequence, offset)| there.get(sequence) != Some(offset)).collect();
    check!(lost.is_empty(), "acknowledged and not there: {lost:?}");
    Ok(())
}

/// Something breaks, the broker dies, and comes back: all that was acknowledged is there, and sending on ends with every
/// order once. `false` once the fault does not strike any more.
fn survives(seed: u64, set_fault: impl Fn(&Rig), die: impl Fn(&mut Rig)) -> Checked<bool> {
    let mut rig = Rig::started(seed, sound());
    let mut acked = Acked::new();
    set_fault(&rig);
    let sent = send_orders(&mut rig, &mut acked);
    check!(sent.is_err() || acked.len() as u64 == ORDERS, "all went well and {} were answered", acked.len());
    if rig.sequencer().is_poisoned() {
        check!(!rig.hand_over(), "a poisoned broker wrote on");
        check!(answers(&mut rig).is_empty(), "an answer left a poisoned broker");
    }
    die(&mut rig);
    reopen(&mut rig)?;
    check_orders(&mut rig, &acked)?;
    send_orders(&mut rig, &mut acked)?;
    check_orders(&mut rig, &acked)?;
    check!(acked.len() as u64 == ORDERS, "{} orders", acked.len());
    Ok(sent.is_err())
}

fn survives_at_every(set_fault: impl Fn(&Rig, u64), die: impl Fn(&mut Rig) + Copy) {
    for n in 1.. {
        match survives(n, |rig| set_fault(rig, n), die) {
            Ok(true) => {}
            Ok(false) => {
                assert!(n > 5, "the fault struck {} times only", n - 1);
                return;
            }
            Err(text) => panic!("the fault number {n}: {text}"),
        }
    }
}

#[test]
fn dying_at_any_operation_loses_nothing_that_was_acknowledged() {
    for die in [Rig::kill, Rig::cut_power, Rig::cut_power_losing_unsynced] {
        survives_at_every(|rig, n| rig.disk.crash_at_operation(n), die);
    }
}

#[test]
fn after_any_failed_sync_or_write_nothing_leaves_and_a_restart_finds_all_that_was_acknowledged() {
    for die in [Rig::kill, Rig::cut_power_losing_unsynced] {
        survives_at_every(|rig, n| rig.disk.fail_sync(n), die);
        survives_at_every(|rig, n| rig.disk.fail_write(n), die);
        survives_at_every(|rig, n| rig.disk.short_write(n), die);
    }
}

#[test]
fn what_waits_when_the_log_is_poisoned_is_never_answered() {
    let (mut rig, stream, grant) = written(1, sound(), 1).unwrap();
    rig.told().delivered.clear();
    rig.publish(FIRST, &grant, &dense(stream, 2, &["unknown"])).unwrap();
    let mut reply = rig.create_stream("unknown", true).unwrap();
    rig.hand_over();
    rig.step().unwrap();
    // The sync takes longer than anybody waits, and returns ok all the same.
    rig.life().sequencer.poison();
    rig.step().unwrap();
    rig.step().unwrap();
    assert_eq!(answers(&mut rig), []);
    assert!(rig.told().delivered.is_empty());
    assert_eq!(reply.try_recv(), Err(TryRecvError::Closed));
    assert_eq!(tail(&rig, stream), 1, "readers keep what was durable");

    // From here on everything is refused, and at once: nobody must wait for a log that does not move.
    assert_eq!(rig.publish(SECOND, &grant, &dense(stream, 3, &["x"])).unwrap(), REFUSED);
    assert_eq!(answers(&mut rig), [(SECOND, refused(ErrorCode::Poisoned, 0))]);
    assert_eq!(resume(&mut rig, &grant, 1).unwrap(), Err(ErrorCode::Poisoned));
    for reply in [rig.open_producer("late", 0, 1).unwrap(), rig.create_stream("late", true).unwrap()] {
        let Ok(ResponseResult::Error(error)) = rig.now_replied(reply) else { panic!("not refused") };
        assert_eq!(error.code, ErrorCode::Poisoned.number());
    }
    rig.kill();
    reopen(&mut rig).unwrap();
    assert_eq!(tail(&rig, stream), 2, "it was stored; that it was unknown is all that was said");
}

// Room.

#[test]
fn a_batch_waits_for_a_segment_that_is_coming_and_is_refused_if_there_will_be_none() {
    let (mut rig, stream, grant) = written(1, sound(), 0).unwrap();
    let batch = |sequence| dense(stream, sequence, &["x".repeat(6_000).as_str()]);
    let publish = |rig: &mut Rig, sequence: u64| {
        let life = rig.life();
        life.sequencer.publish(FIRST, &grant, &batch(sequence), life.now, &mut life.told)
    };
    let mut next = 1;
    while publish(&mut rig, next) == APPENDED {
        next += 1;
    }
    assert_eq!(publish(&mut rig, next), Step::NoRoom, "nothing was done");
    rig.commit().unwrap();
    assert_eq!(answers(&mut rig).len() as u64, next - 1);
    rig.life().sequencer.set_supply(Supply::Failed);
    assert_eq!(publish(&mut rig, next), REFUSED);
    assert_eq!(publish(&mut rig, next + 1), REFUSED);
    let full = [(FIRST, refused(ErrorCode::DiskFull, 0)), (FIRST, refused(ErrorCode::SequenceGap, next))];
    assert_eq!(answers(&mut rig), full, "what comes behind a refused batch is refused too");
    rig.prepare_spare().unwrap();
    assert_eq!(publish(&mut rig, next), APPENDED);
    rig.commit().unwrap();
    assert_eq!(answers(&mut rig), [(FIRST, stored(next - 1, 0))]);
    histories::restart(&mut rig, 0).unwrap();
    assert_eq!(tail(&rig, stream), next);
}

#[test]
fn names_are_refused_at_the_limits() {
    let mut rig = Rig::new(1, sound());
    rig.limits = Limits { streams_max: 1, producers_max: 1, ..Limits::default() };
    rig.open().unwrap();
    rig.stream("orders").unwrap();
    rig.session("shop", 1).unwrap();
    for reply in [rig.create_stream("refunds", true).unwrap(), rig.open_producer("other", 0, 1).unwrap()] {
        let Ok(ResponseResult::Error(error)) = rig.now_replied(reply) else { panic!("not refused") };
        assert_eq!(error.code, ErrorCode::LimitReached.number());
    }
    rig.stream("orders").unwrap();
    rig.session("shop", 2).unwrap();
}

#[test]
fn the_time_of_a_stream_never_falls_whatever_the_clock_does() {
    let (mut rig, stream, grant) = written(1, sound(), 1).unwrap();
    for (sequence, step_ms) in (2..).zip([1_000, -86_400_000, 5, 86_400_000 * 365, -86_400_000 * 365]) {
        rig.life().now.time.wall_ms += step_ms;
        rig.life().now.monotonic += Duration::from_millis(1);
        rig.settle(FIRST, &grant, &dense(stream, sequence, &["x"])).unwrap();
    }
    let times: Vec<i64> = rig
        .read(stream, 0)
        .unwrap()
        .into_iter()
        .map(|outcome| match outcome {
            ReadOutcome::Batch(batch) => batch.wall_ms,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(times.len(), 6);
    let handed: Vec<i64> = rig.told().delivered.iter().map(|(_, live)| live.batch.wall_ms).collect();
    assert_eq!(handed, times, "a follower is told the times that stand in the log");
    assert!(times.is_sorted(), "{times:?}");
}

// The histories that the sabotaged broker must fail in.

macro_rules! histories {
    ($($name:ident,)*) => {
        $(#[test]
        fn $name() {
            for seed in 0..6 {
                histories::$name(seed, sound()).unwrap_or_else(|text| panic!("seed {seed}: {text}"));
            }
        })*
    };
}

histories! {
    a_resent_batch_is_a_duplicate_after_a_restart,
    what_a_consumer_was_given_survives,
    the_first_sequence_is_one,
    an_older_session_is_fenced_at_its_next_batch,
    a_refusal_that_was_told_stays_true,
    only_what_is_stored_is_a_duplicate,
    a_retried_open_is_the_same_open,
    a_hostile_batch_costs_its_neighbours_nothing,
    a_stream_made_again_is_another_one,
    a_removed_stream_stays_removed,
    a_checkpoint_counts_in_only_what_is_durable,
    a_checkpoint_of_another_branch_is_not_believed,
}

// The crash model.

/// Deaths of one broker; its start after each is a crash state.
const CRASHES_PER_SEED: u64 = 10;

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

#[test]
fn whatever_was_told_survives_every_crash_once_in_order_and_unchanged() {
    if let Some(seed) = from_environment("TIDELOG_SEED") {
        let tally = crash::run(seed, CRASHES_PER_SEED, sound()).unwrap_or_else(|text| panic!("{text}"));
        println!("{tally:?}");
        return;
    }
    let wanted = from_environment("TIDELOG_CRASH_STATES").unwrap_or(300);
    let next_seed = AtomicU64::new(1);
    let all = Mutex::new(Tally::default());
    let total = || all.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || {
        while total().states < wanted {
            let seed = next_seed.fetch_add(1, Ordering::Relaxed);
            match std::panic::catch_unwind(|| crash::run(seed, CRASHES_PER_SEED, sound())) {
                Ok(Ok(tally)) => total().add(&tally),
                Ok(Err(text)) => return Some(format!("TIDELOG_SEED={seed}: {text}")),
                Err(_) => return Some(format!("TIDELOG_SEED={seed}: a panic, see above")),
            }
        }
        None
    };
    let failures: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..thread::available_parallelism().map_or(1, usize::from)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let tally = *total();
    println!("{tally:?}");
    // A model that meets nothing shows nothing.
    let met = [tally.undone, tally.stored, tally.overlaps, tally.duplicates, tally.fenced, tally.gaps, tally.reused];
    assert!(met.iter().all(|count| *count >= 20), "too little happened: {tally:?}");
    let seen = [tally.poisoned, tally.reopened, tally.delivered, tally.removed, tally.gone];
    assert!(seen.iter().all(|count| *count > 0), "too little happened: {tally:?}");
    assert!(tally.from_checkpoint >= 20 && tally.set_aside > 0, "too few checkpoints: {tally:?}");
    assert!(tally.poisoned > 0 && tally.reopened > 0 && tally.delivered > 0, "too little happened: {tally:?}");
}
