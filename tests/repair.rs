//! What a repair makes of a log whose state can't be proven any more: nothing that was given out is given out again,
//! everything goes on, and it may be stopped at any moment.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

mod scenarios;

use std::sync::Arc;

use bytes::Bytes;
use scenarios::histories::{dense, refused, resume, stored, tail, written};
use scenarios::rig::Rig;
use scenarios::{Checked, histories};
use tidelog::repair::{RepairPlan, Repaired, plan, repair};
use tidelog::sequencer::SessionKey;
use tidelog::state::{Grant, State};
use tidelog_protocol::{BATCH_HEADER_LEN, Epoch, ErrorCode, ProducerName, StreamId, StreamName};
use tidelog_storage::medium::{Medium, MediumFile, SimulatedMedium, read_exact_at};
use tidelog_storage::{AsideReason, FactKind, Replayed, Sabotages, entry_len, verify};

const FIRST: SessionKey = SessionKey(1);
const SECOND: SessionKey = SessionKey(2);

fn medium(disk: &SimulatedMedium) -> Arc<dyn Medium> {
    Arc::new(disk.for_this_life())
}

fn repaired(rig: &Rig) -> Repaired {
    repair(&medium(&rig.disk), None, rig.wall_ms, rig.options.sabotages).unwrap()
}

fn planned(rig: &Rig) -> RepairPlan {
    plan(medium(&rig.disk).as_ref(), Sabotages::default()).unwrap()
}

/// Flips a bit in both headers of an entry with this payload and head.
fn break_entry_at(rig: &Rig, position: u64, payload_len: usize, head_len: usize) {
    let len = entry_len(0, payload_len, head_len) as u64;
    let copy_len = entry_len(0, 0, 0) as u64 / 2 + head_len as u64;
    rig.flip(position + 8);
    rig.flip(position + len - copy_len + 8);
}

fn break_batch(rig: &Rig, state: &State, grant: &Grant, stream: StreamId, batch: &Bytes) {
    let position = state.producers.sequence(grant.producer, stream).unwrap().decided_at;
    break_entry_at(rig, position, batch.len(), BATCH_HEADER_LEN);
}

/// Three records of "orders" by "shop", of which the last is lost; nothing decides either of them anew behind it. A
/// refund, which does not lie in the hole. The broker is down.
fn with_a_lost_order(sabotages: Sabotages) -> Checked<(Rig, StreamId, Grant, StreamId, Grant)> {
    let (mut rig, stream, grant) = written(2, sabotages, 2)?;
    let last = dense(stream, 3, &["order 3"]);
    rig.settle(FIRST, &grant, &last)?;
    let before = rig.sequencer().durable().clone();
    let refunds = rig.stream("refunds")?;
    let refunder = rig.session("refunder", 1)?;
    rig.settle(SECOND, &refunder, &dense(refunds, 1, &["a"]))?;
    rig.close()?;
    rig.kill();
    break_batch(&rig, &before, &grant, stream, &last);
    Ok((rig, stream, grant, refunds, refunder))
}

/// Nothing is in doubt: the stream and its producer go on beyond all that was given out, and new names can be made.
fn goes_on(rig: &mut Rig, stream: StreamId, zombie: &Grant, given_out: u64) -> Checked {
    let found = rig.open().map_err(|error| error.to_string())?;
    check!(found.state.unrepaired_holes().is_empty(), "a hole is left: {:?}", found.state.unrepaired_holes());
    let unsettled: Vec<_> = found.report.damages.iter().filter(|damage| !found.state.is_settled(damage)).collect();
    check!(unsettled.is_empty(), "damage is left: {unsettled:?}");
    check!(tail(rig, stream) >= given_out, "goes on at {} although {given_out} were given out", tail(rig, stream));
    // A session from before is fenced, whatever epoch the lost entries gave.
    let answer = rig.settle(FIRST, zombie, &dense(stream, 3, &["a zombie"]))?;
    check!(matches!(answer, fenced if fenced == refused(ErrorCode::Fenced, epoch(rig, zombie))), "{answer:?}");
    let shop = rig.session("shop", 7)?;
    check!(shop.producer == zombie.producer && shop.epoch > zombie.epoch, "{shop:?} after {zombie:?}");
    let last = rig.sequencer().durable().producers.sequence(shop.producer, stream).map_or(0, |state| state.last.get());
    let next = tail(rig, stream);
    let answer = rig.settle(FIRST, &shop, &dense(stream, last + 1, &["again"]))?;
    check!(answer == stored(next, 0), "{answer:?} instead of offset {next}");
    let outcomes = rig.read(stream, 0)?;
    let mut end = 0;
    for outcome in &outcomes {
        let (from, to) = match outcome {
            tidelog_storage::ReadOutcome::Batch(batch) => (batch.base_offset, batch.next_offset()),
            tidelog_storage::ReadOutcome::Damaged { from, to } => (*from, *to),
        };
        check!(from == end, "offsets {end}..{from} are not told: {outcomes:?}");
        end = to;
    }
    check!(end == next + 1, "read to {end} instead of {}", next + 1);
    rig.stream("made-after-the-repair")?;
    rig.session("opened-after-the-repair", 1)?;
    histories::restart(rig, 0).map_or_else(|text| Err(format!("the start after: {text}")), |()| Ok(())).or_else(
        |text| {
            // The hole is still there to be told, and nothing else.
            if text.contains("damage where there is none") { Ok(()) } else { Err(text) }
        },
    )
}

fn epoch(rig: &Rig, grant: &Grant) -> u64 {
    rig.sequencer().durable().producers.producer(grant.producer).map_or(0, |state| state.epoch.get())
}

fn a_lost_order_is_repaired(sabotages: Sabotages) -> Checked {
    let (mut rig, stream, grant, refunds, refunder) = with_a_lost_order(sabotages)?;
    let plan = planned(&rig);
    let before = files(&rig.disk);
    check!(plan.decisions.streams.len() == 1 && plan.decisions.producers.len() == 1, "{:?}", plan.decisions);
    check!(plan.decisions.streams[0].name.as_str() == "orders", "{:?}", plan.decisions);
    check!(files(&rig.disk) == before, "a plan has changed something");
    repaired(&rig);
    check!(planned(&rig).is_empty(), "a second repair would do something: {:?}", planned(&rig).decisions);
    let after = files(&rig.disk);
    repaired(&rig);
    check!(files(&rig.disk) == after, "a second repair has done something");
    goes_on(&mut rig, stream, &grant, 3)?;
    // Whoever was not in doubt notices nothing.
    let found = rig.sequencer().durable().producers.producer(refunder.producer).unwrap().epoch;
    check!(found == refunder.epoch && tail(&rig, refunds) == 1, "the neighbours were moved");
    check!(resume(&mut rig, &refunder, 1)? == Ok(refunder), "the neighbour's session was cut off");
    Ok(())
}

/// Every file but the lock and what is prepared ahead.
fn files(disk: &SimulatedMedium) -> Vec<(String, Vec<u8>)> {
    let all = disk.list().unwrap().into_iter().filter(|file| file.name.contains("segment-"));
    all.map(|file| {
        let open: Arc<dyn MediumFile> = disk.open_read(&file.name).unwrap();
        let mut bytes = vec![0; file.len as usize];
        read_exact_at(open.as_ref(), &mut bytes, 0).unwrap();
        (file.name, bytes)
    })
    .collect()
}

#[test]
fn a_stream_and_its_producer_go_on_beyond_what_was_lost() {
    a_lost_order_is_repaired(Sabotages::default()).unwrap();
}

#[test]
fn a_repair_may_be_stopped_at_every_call_and_run_again() {
    let (rig, stream, grant, ..) = with_a_lost_order(Sabotages::default()).unwrap();
    let mut stops = 0;
    for at in 1.. {
        let mut hurt = fork(&rig, at);
        hurt.disk.crash_at_operation(at);
        let stopped = repair(&medium(&hurt.disk), None, hurt.wall_ms, Sabotages::default());
        match at % 3 {
            0 => hurt.disk.kill(),
            1 => hurt.disk.crash(),
            _ => hurt.disk.crash_losing_unsynced(),
        }
        // A broker may run in between: what is repaired by then is right, and the rest refuses.
        if at % 2 == 0 {
            hurt.open().unwrap();
            let answer = hurt.settle(FIRST, &grant, &dense(stream, 3, &["a zombie"])).unwrap();
            assert!(matches!(answer.outcome, tidelog_protocol::Outcome::Refused { .. }), "call {at}: {answer:?}");
            hurt.close().unwrap();
        }
        repaired(&hurt);
        assert!(planned(&hurt).is_empty(), "call {at}");
        goes_on(&mut hurt, stream, &grant, 3).unwrap_or_else(|text| panic!("stopped at call {at}: {text}"));
        if stopped.is_ok() {
            break;
        }
        stops += 1;
    }
    assert!(stops > 10, "only {stops} calls");
}

/// The same moment on another machine.
fn fork(rig: &Rig, seed: u64) -> Rig {
    let mut fork = Rig::new(seed, rig.options.sabotages);
    fork.disk = rig.disk.fork(seed);
    fork.wall_ms = rig.wall_ms;
    fork
}

#[test]
fn what_a_repair_decided_and_lost_again_is_not_given_out_again() {
    // A large loss, and so a long way that the repair moves the stream on.
    let (mut rig, stream, grant) = written(3, Sabotages::default(), 2).unwrap();
    let large = dense(stream, 3, &[&"x".repeat(6_000)]);
    rig.settle(FIRST, &grant, &large).unwrap();
    let before = rig.sequencer().durable().clone();
    rig.stream("refunds").unwrap();
    rig.close().unwrap();
    rig.kill();
    break_batch(&rig, &before, &grant, stream, &large);
    repaired(&rig);
    rig.open().unwrap();
    let shop = rig.session("shop", 7).unwrap();
    let again = dense(stream, 3, &["again"]);
    let first = tail(&rig, stream);
    assert_eq!(rig.settle(FIRST, &shop, &again).unwrap(), stored(first, 0));
    let behind = rig.sequencer().durable().clone();
    rig.close().unwrap();
    rig.kill();
    // What moved the stream on is lost, and all that has shown since that it was moved; that the loss was repaired is not.
    break_batch(&rig, &behind, &shop, stream, &again);
    let mut moves = Vec::new();
    verify(&rig.disk, &mut |replayed| {
        if let Replayed::Entry { head, .. } = replayed
            && head.facts().any(|fact| fact.kind == FactKind::NextOffset)
        {
            moves.push((head.header.position, u64::from(head.header.fact_len)));
        }
    })
    .unwrap();
    let [(position, facts_len)] = moves[..] else { panic!("{moves:?}") };
    rig.flip(position + 8);
    rig.flip(position + 104 + facts_len + 8);
    repaired(&rig);
    goes_on(&mut rig, stream, &grant, first + 1).unwrap();
}

#[test]
fn a_lost_end_of_unknown_size_is_passed_over_by_more_than_a_log_can_hold() {
    [false, true].into_iter().for_each(a_lost_end);
}

fn a_lost_end(is_started_between: bool) {
    let (mut rig, stream, grant) = written(4, Sabotages::default(), 2).unwrap();
    rig.close().unwrap();
    rig.kill();
    rig.open().unwrap();
    let shop = rig.session("shop", 9).unwrap();
    for sequence in 3..40 {
        rig.settle(FIRST, &shop, &dense(stream, sequence, &["lost"])).unwrap();
    }
    rig.close().unwrap();
    rig.kill();
    let newest = files(&rig.disk).pop().unwrap().0;
    for copy in [0, 4_096] {
        rig.disk.flip_bit(&newest, copy + 60, 1).unwrap();
    }
    if is_started_between {
        // A start has written down where the log goes on; later ones find nothing else there than any hole.
        for _ in 0..2 {
            rig.open().unwrap();
            rig.close().unwrap();
            rig.kill();
        }
    }
    let done = repaired(&rig);
    assert_eq!(done.decisions.streams[0].skipped, 2..2 + (1 << 40));
    assert_eq!(done.set_aside.len(), 1, "{done:?}");
    assert!(done.set_aside[0].starts_with("aside-") && done.set_aside[0].contains("-unreadable-segment-"), "{done:?}");
    goes_on(&mut rig, stream, &grant, 39).unwrap();
    rig.kill();
    rig.open().unwrap();
    assert!(rig.sequencer().durable().unrepaired_holes().is_empty(), "setting a file aside changes no decision");
}

#[test]
fn a_stream_whose_name_is_lost_gets_another_one_and_keeps_its_records() {
    let (mut rig, ..) = written(5, Sabotages::default(), 2).unwrap();
    let refunds = rig.stream("refunds").unwrap();
    let refunder = rig.session("refunder", 1).unwrap();
    rig.settle(SECOND, &refunder, &dense(refunds, 1, &["a", "b"])).unwrap();
    rig.close().unwrap();
    rig.kill();
    let created = tidelog::state::StreamCreated {
        id: refunds,
        name: StreamName::new("refunds").unwrap(),
        settings: Default::default(),
        created_ms: 0,
    };
    let facts = created.to_facts().unwrap().as_bytes().len() as u64;
    rig.flip(refunds.get() + 8);
    rig.flip(refunds.get() + 104 + facts + 8);
    let done = repaired(&rig);
    let found = done.decisions.streams.iter().find(|stream| stream.id == refunds).unwrap();
    assert!(found.is_renamed && found.skipped.start == 2, "{found:?}");
    rig.open().unwrap();
    let name = StreamName::new(format!("recovered-{refunds}")).unwrap();
    assert_eq!(rig.sequencer().durable().catalogue.find(&name), Some(refunds));
    assert!(tail(&rig, refunds) >= 2);
    assert_eq!(rig.read(refunds, 0).unwrap().len(), 1);
    let shop = rig.session("shop", 3).unwrap();
    let next = tail(&rig, refunds);
    assert_eq!(rig.settle(FIRST, &shop, &dense(refunds, 1, &["c"])).unwrap(), stored(next, 0));
    assert!(planned_is_empty(&mut rig));
}

fn planned_is_empty(rig: &mut Rig) -> bool {
    rig.close().unwrap();
    rig.kill();
    planned(rig).is_empty()
}

#[test]
fn a_segment_that_comes_back_leaves_nothing_in_doubt_and_moves_nothing() {
    let (mut rig, stream, grant) = written(6, Sabotages::default(), 2).unwrap();
    for life in 0..2 {
        rig.close().unwrap();
        rig.kill();
        rig.open().unwrap();
        rig.stream(if life == 0 { "one" } else { "two" }).unwrap();
    }
    rig.close().unwrap();
    rig.kill();
    let (name, bytes) = files(&rig.disk).swap_remove(1);
    rig.disk.remove(&name).unwrap();
    // A broker finds it missing, and writes that down.
    rig.open().unwrap();
    assert!(!rig.sequencer().durable().unrepaired_holes().is_empty());
    rig.close().unwrap();
    rig.kill();
    let file = rig.disk.create(&name).unwrap();
    file.write_all_at(&[&bytes], 0).unwrap();
    file.sync_data().unwrap();
    rig.disk.sync_directory().unwrap();
    let done = repaired(&rig);
    assert!(done.decisions.streams.is_empty() && done.decisions.producers.is_empty(), "{:?}", done.decisions);
    assert_eq!(done.decisions.healed.len(), 1, "{:?}", done.decisions);
    rig.open().unwrap();
    assert_eq!(tail(&rig, stream), 2);
    assert_eq!(resume(&mut rig, &grant, 1).unwrap(), Ok(grant));
    assert!(rig.sequencer().durable().catalogue.find(&StreamName::new("one").unwrap()).is_some());
}

#[test]
fn a_file_of_another_branch_is_set_aside_where_a_start_refuses() {
    let (mut rig, stream, grant) = written(7, Sabotages::default(), 2).unwrap();
    rig.close().unwrap();
    rig.kill();
    let mut other = fork(&rig, 99);
    for branch in [&mut rig, &mut other] {
        branch.open().unwrap();
        branch.session("shop", 5).unwrap();
        branch.close().unwrap();
        branch.kill();
        branch.open().unwrap();
        branch.close().unwrap();
        branch.kill();
    }
    let name = files(&rig.disk)[1].0.clone();
    let bytes = files(&other.disk)[1].1.clone();
    rig.disk.remove(&name).unwrap();
    let file = rig.disk.create(&name).unwrap();
    file.write_all_at(&[&bytes], 0).unwrap();
    file.sync_data().unwrap();
    rig.disk.sync_directory().unwrap();
    rig.open().unwrap_err();
    let plan = planned(&rig);
    assert_eq!(plan.set_aside.len(), 1);
    assert_eq!((&plan.set_aside[0].name, plan.set_aside[0].reason), (&name, AsideReason::OtherBranch));
    let done = repaired(&rig);
    assert!(done.set_aside[0].ends_with(&format!("-branch-{name}")), "{done:?}");
    let aside = files(&rig.disk).into_iter().find(|(other, _)| *other == done.set_aside[0]).unwrap();
    assert_eq!(aside.1, bytes, "set aside as it was");
    goes_on(&mut rig, stream, &grant, 2).unwrap();
}

#[test]
fn a_sound_log_is_left_alone() {
    let (mut rig, ..) = written(8, Sabotages::default(), 2).unwrap();
    rig.close().unwrap();
    rig.kill();
    let before = files(&rig.disk);
    let done = repaired(&rig);
    assert!(done.decisions.is_empty() && done.set_aside.is_empty() && done.put_back.is_empty());
    assert_eq!(files(&rig.disk), before);
}

#[test]
fn an_epoch_that_was_raised_in_a_hole_stays_fenced() {
    let (mut rig, stream, grant) = written(9, Sabotages::default(), 2).unwrap();
    // The raise is the one entry that is lost; its session still thinks it may write.
    let position = rig.sequencer().log().content_end() + entry_len(0, 0, 0) as u64;
    let newer = rig.session("shop", 4).unwrap();
    rig.stream("behind").unwrap();
    rig.close().unwrap();
    rig.kill();
    let raised = tidelog::state::EpochRaised {
        id: grant.producer,
        name: ProducerName::new("shop").unwrap(),
        epoch: Epoch::new(2),
        attempt: tidelog_protocol::AttemptId::new([4; 16]),
        decided_at: position,
    };
    let facts = raised.to_facts().unwrap().as_bytes().len() as u64;
    rig.flip(position + 8);
    rig.flip(position + 104 + facts + 8);
    repaired(&rig);
    goes_on(&mut rig, stream, &newer, 2).unwrap();
}

#[cfg(feature = "sabotage")]
#[test]
fn a_repair_that_keeps_the_offsets_is_found() {
    let text = a_lost_order_is_repaired(Sabotages::default().with(tidelog_storage::Sabotage::RepairKeepsOffsets));
    let text = text.unwrap_err();
    assert!(text.contains("were given out"), "{text}");
}
