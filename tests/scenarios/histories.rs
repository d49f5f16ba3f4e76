//! Histories, each a function that says what was wrong: green on the broker as it is, red on a sabotaged one.
//!
//! A seed varies how much was there before, and how the broker dies.

use bytes::Bytes;
use tidelog::sequencer::SessionKey;
use tidelog::state::Grant;
use tidelog_protocol::{
    Answer, AttemptId, BatchBuilder, Epoch, ErrorCode, Limits, Offset, Outcome, ProducerId, Response, ResponseResult,
    Sequence, StreamId,
};
use tidelog_storage::{ReadOutcome, Sabotages};

use super::Checked;
use super::rig::Rig;
use crate::check;

pub(crate) const FIRST: SessionKey = SessionKey(1);
pub(crate) const SECOND: SessionKey = SessionKey(2);

pub(crate) fn builder(values: &[&str]) -> BatchBuilder {
    let mut builder = BatchBuilder::new();
    for value in values {
        builder.push_value(value.as_bytes(), &Limits::default()).unwrap();
    }
    builder
}

pub(crate) fn dense(stream: StreamId, first: u64, values: &[&str]) -> Bytes {
    builder(values).finish_dense(stream, Sequence::new(first))
}

pub(crate) fn sparse(stream: StreamId, previous: u64, sequence: u64, value: &str) -> Bytes {
    builder(&[value]).finish_sparse(stream, Sequence::new(previous), &[Sequence::new(sequence)]).unwrap()
}

pub(crate) fn stored(base_offset: u64, skip: u32) -> Answer {
    Answer { outcome: Outcome::Stored, base_offset: Some(Offset::new(base_offset)), skip }
}

pub(crate) fn duplicate(base_offset: u64) -> Answer {
    Answer { outcome: Outcome::Duplicate, base_offset: Some(Offset::new(base_offset)), skip: 0 }
}

pub(crate) fn refused(code: ErrorCode, detail: u64) -> Answer {
    Answer { outcome: Outcome::Refused { code, detail }, base_offset: None, skip: 0 }
}

/// A broker with a stream and a producer that has written `count` records to it, all of it durable.
pub(crate) fn written(seed: u64, sabotages: Sabotages, count: u64) -> Checked<(Rig, StreamId, Grant)> {
    let mut rig = Rig::started(seed, sabotages);
    let stream = rig.stream("orders")?;
    let grant = rig.session("shop", 1)?;
    for sequence in 1..=count {
        let answer = rig.settle(FIRST, &grant, &dense(stream, sequence, &[&format!("order {sequence}")]))?;
        check!(answer == stored(sequence - 1, 0), "order {sequence}: {answer:?}");
    }
    Ok((rig, stream, grant))
}

/// Dies by what follows from the seed, and starts again.
pub(crate) fn restart(rig: &mut Rig, seed: u64) -> Checked {
    match seed % 3 {
        0 => rig.kill(),
        1 => rig.cut_power(),
        _ => rig.cut_power_losing_unsynced(),
    }
    reopen(rig)
}

pub(crate) fn reopen(rig: &mut Rig) -> Checked {
    let found = rig.open().map_err(|error| error.to_string())?;
    check!(found.contradictions.is_empty(), "the log contradicts itself: {:?}", found.contradictions);
    check!(found.report.damages.is_empty(), "damage where there is none: {:?}", found.report.damages);
    Ok(())
}

/// Attaches again with the epoch and attempt of before.
pub(crate) fn resume(rig: &mut Rig, grant: &Grant, attempt: u8) -> Checked<Result<Grant, ErrorCode>> {
    let (granted, reply) = rig.attach(grant.producer, grant.epoch, AttemptId::new([attempt; 16]));
    let reply = rig.now_replied(reply)?;
    check!(
        granted.is_ok() == (matches!(reply, ResponseResult::Ok(Response::Attached))),
        "{granted:?}, and told {reply:?}"
    );
    Ok(granted)
}

pub(crate) fn tail(rig: &Rig, stream: StreamId) -> u64 {
    rig.sequencer().durable().catalogue.stream(stream).map_or(0, |stream| stream.tail.get())
}

/// P2: what a producer has written outlives the process: sent again, it is a duplicate and stands where it stood.
pub(crate) fn a_resent_batch_is_a_duplicate_after_a_restart(seed: u64, sabotages: Sabotages) -> Checked {
    let count = 1 + seed % 5;
    let (mut rig, stream, grant) = written(seed, sabotages, count)?;
    restart(&mut rig, seed)?;
    let grant = resume(&mut rig, &grant, 1)?.map_err(|code| format!("not resumed: {code:?}"))?;
    for sequence in 1..=count {
        let answer = rig.settle(FIRST, &grant, &dense(stream, sequence, &[&format!("order {sequence}")]))?;
        check!(answer == duplicate(sequence - 1), "order {sequence} sent again: {answer:?}");
    }
    check!(tail(&rig, stream) == count, "{count} orders became {}", tail(&rig, stream));
    Ok(())
}

/// A3: what a checkpoint counts in no crash undoes; otherwise a batch that is sent again would be a duplicate of nothing.
pub(crate) fn a_checkpoint_counts_in_only_what_is_durable(seed: u64, sabotages: Sabotages) -> Checked {
    let count = 1 + seed % 5;
    let (mut rig, stream, grant) = written(seed, sabotages, count)?;
    let lost = dense(stream, count + 1, &["lost with the power"]);
    rig.publish(FIRST, &grant, &lost)?;
    rig.save_checkpoint();
    rig.cut_power_losing_unsynced();
    // Somebody else's records take the place in the log.
    rig.open().map_err(|error| error.to_string())?;
    check!(rig.checkpoints.set_aside_names().is_empty(), "an honest checkpoint was set aside");
    let other = rig.session("other", 2)?;
    rig.settle(SECOND, &other, &dense(stream, 1, &["found instead"]))?;
    let grant = resume(&mut rig, &grant, 1)?.map_err(|code| format!("not resumed: {code:?}"))?;
    let answer = rig.settle(FIRST, &grant, &lost)?;
    check!(answer == stored(count + 1, 0), "what a power cut took was sent again: {answer:?}");
    restart(&mut rig, seed)
}

/// A3: a checkpoint of another branch of the log, of which a copy was made and went on by itself, tells nothing of this one.
pub(crate) fn a_checkpoint_of_another_branch_is_not_believed(seed: u64, sabotages: Sabotages) -> Checked {
    let (mut rig, stream, grant) = written(seed, sabotages, 1 + seed % 5)?;
    rig.save_checkpoint();
    rig.close()?;
    let mut copy = rig.copy(seed);
    reopen(&mut copy)?;
    let other = resume(&mut copy, &grant, 1)?.map_err(|code| format!("not resumed: {code:?}"))?;
    for sequence in 2 + seed % 5..12 + seed % 5 {
        copy.settle(FIRST, &other, &dense(stream, sequence, &["only in the copy"]))?;
    }
    copy.save_checkpoint();
    reopen(&mut rig)?;
    let grant = resume(&mut rig, &grant, 1)?.map_err(|code| format!("not resumed: {code:?}"))?;
    let stranger = rig.session("stranger", 3)?;
    for sequence in 1..30 {
        rig.settle(SECOND, &stranger, &dense(stream, sequence, &["only in the original"]))?;
    }
    rig.checkpoints.replace_with(&copy.checkpoints);
    restart(&mut rig, seed)?;
    let names = rig.checkpoints.set_aside_names();
    check!(names.len() == 1, "set aside: {names:?}");
    let first = 2 + seed % 5;
    let answer = rig.settle(FIRST, &grant, &dense(stream, first, &["new"]))?;
    check!(answer.outcome == Outcome::Stored, "a record that only a copy of the log has: {answer:?}");
    Ok(())
}

/// P4: what a consumer has been given is there after a power cut, at the same offset with the same bytes.
pub(crate) fn what_a_consumer_was_given_survives(seed: u64, sabotages: Sabotages) -> Checked {
    let (mut rig, stream, grant) = written(seed, sabotages, seed % 3)?;
    rig.told().delivered.clear();
    rig.publish(FIRST, &grant, &dense(stream, seed % 3 + 1, &["the newest"]))?;
    rig.hand_over();
    // Written, and not synced.
    rig.step()?;
    let given = std::mem::take(&mut rig.told().delivered);
    let tail_shown = tail(&rig, stream);
    rig.cut_power_losing_unsynced();
    reopen(&mut rig)?;
    check!(tail(&rig, stream) >= tail_shown, "a tail of {tail_shown} was shown and is {}", tail(&rig, stream));
    for (stream, live) in given {
        let there = rig.read(stream, live.batch.base_offset)?;
        let is_there = matches!(there.first(), Some(ReadOutcome::Batch(batch)) if batch.payload == live.batch.payload);
        check!(is_there, "a consumer was given {:?}, and there is {there:?}", live.batch);
    }
    Ok(())
}

/// P2: a producer that has written nothing begins with 1, so that records that were lost on the way are noticed.
pub(crate) fn the_first_sequence_is_one(seed: u64, sabotages: Sabotages) -> Checked {
    let (mut rig, stream, grant) = written(seed, sabotages, 0)?;
    let answer = rig.settle(FIRST, &grant, &dense(stream, 2 + seed, &["not the first"]))?;
    check!(answer == refused(ErrorCode::SequenceGap, 1), "{answer:?}");
    restart(&mut rig, seed)?;
    check!(tail(&rig, stream) == 0, "a record was stored all the same");
    Ok(())
}

/// P5: a session that was let in writes no more once its name has been opened anew, after a restart neither.
pub(crate) fn an_older_session_is_fenced_at_its_next_batch(seed: u64, sabotages: Sabotages) -> Checked {
    let count = seed % 3;
    let (mut rig, stream, old) = written(seed, sabotages, count)?;
    rig.session("shop", 2)?;
    let late = dense(stream, count + 1, &["from before"]);
    let answer = rig.settle(FIRST, &old, &late)?;
    check!(answer == refused(ErrorCode::Fenced, 2), "{answer:?}");
    restart(&mut rig, seed)?;
    check!(resume(&mut rig, &old, 1)? == Err(ErrorCode::Fenced), "the older session was let in again");
    check!(tail(&rig, stream) == count, "what was fenced is stored");
    Ok(())
}

/// A8: whoever is told a refusal can rely on it: what it rests on is not undone by a power cut.
pub(crate) fn a_refusal_that_was_told_stays_true(seed: u64, sabotages: Sabotages) -> Checked {
    let count = seed % 3;
    let (mut rig, stream, grant) = written(seed, sabotages, count)?;
    rig.told().answers.clear();
    // In the buffer and no further: another record, the answer to a gap behind it, and a newer session that fences this one.
    rig.publish(FIRST, &grant, &dense(stream, count + 1, &["unsynced"]))?;
    rig.publish(FIRST, &grant, &dense(stream, count + 9, &["behind a gap"]))?;
    let opened = rig.open_producer("shop", 1, 2)?;
    rig.publish(FIRST, &grant, &dense(stream, count + 2, &["fenced"]))?;
    let mut stale = rig.open_producer("shop", 1, 3)?;
    let told: Vec<Answer> = rig.told().answers.drain(..).map(|(_, answer)| answer).collect();
    let stale_reply = stale.try_recv().ok();
    drop(opened);
    rig.cut_power_losing_unsynced();
    reopen(&mut rig)?;
    let last = rig.sequencer().durable().producers.sequence(grant.producer, stream).map_or(0, |state| state.last.get());
    let epoch = rig.sequencer().durable().producers.producer(grant.producer).map_or(Epoch::NONE, |state| state.epoch);
    for answer in told {
        let is_true = match answer.outcome {
            Outcome::Refused { code: ErrorCode::SequenceGap, detail } => detail == last + 1,
            Outcome::Refused { code: ErrorCode::Fenced, detail } => detail <= epoch.get(),
            _ => false,
        };
        check!(is_true, "told {answer:?}, and after the power cut the last sequence is {last}, the epoch {epoch}");
    }
    check!(stale_reply.is_none() || epoch > Epoch::new(1), "a newer open was told to have been late: {stale_reply:?}");
    // Nobody was told that it is over, so the session goes on.
    let grant = resume(&mut rig, &grant, 1)?.map_err(|code| format!("not resumed: {code:?}"))?;
    let answer = rig.settle(FIRST, &grant, &dense(stream, count + 1, &["unsynced"]))?;
    check!(answer == stored(count, 0), "{answer:?}");
    Ok(())
}

/// B4 and A6: other records under a sequence that is stored are no duplicate, and neither is an id that committed late.
pub(crate) fn only_what_is_stored_is_a_duplicate(seed: u64, sabotages: Sabotages) -> Checked {
    let count = 1 + seed % 4;
    let (mut rig, stream, grant) = written(seed, sabotages, count)?;
    let other = dense(stream, count, &["another file"]);
    let answer = rig.settle(FIRST, &grant, &other)?;
    check!(answer == refused(ErrorCode::SequenceReused, count), "other content: {answer:?}");
    let overlap = dense(stream, count, &["another file", "its next line"]);
    let answer = rig.settle(FIRST, &grant, &overlap)?;
    check!(answer == refused(ErrorCode::SequenceReused, count), "an overlap with other content: {answer:?}");
    let outbox = rig.session("outbox", 1)?;
    for (previous, sequence) in [(0, 12), (12, 17)] {
        let answer = rig.settle(SECOND, &outbox, &sparse(stream, previous, sequence, "committed"))?;
        check!(matches!(answer.outcome, Outcome::Stored), "id {sequence}: {answer:?}");
    }
    let answer = rig.settle(SECOND, &outbox, &sparse(stream, 12, 15, "committed late"))?;
    check!(answer == refused(ErrorCode::SequencePast, 17), "an id that committed late: {answer:?}");
    Ok(())
}

/// B7: the retry of an open whose answer was lost is the same open; one from before a later session does not fence that.
pub(crate) fn a_retried_open_is_the_same_open(seed: u64, sabotages: Sabotages) -> Checked {
    let mut rig = Rig::started(seed, sabotages);
    let stream = rig.stream("orders")?;
    let id =
        |rig: &Rig| rig.sequencer().durable().producers.find(&"shop".parse().unwrap()).unwrap_or(ProducerId::ANONYMOUS);
    let lost = rig.open_producer("shop", 0, 1)?;
    rig.commit()?;
    drop(lost);
    if seed.is_multiple_of(2) {
        restart(&mut rig, seed)?;
    }
    let retried = rig.open_producer("shop", 0, 1)?;
    rig.commit()?;
    let opened = rig.now_replied(retried)?;
    let is_first =
        matches!(&opened, ResponseResult::Ok(Response::Producer(producer)) if producer.epoch == Epoch::new(1));
    check!(is_first, "the retry of the first open was answered {opened:?}");
    let newer = rig.session("shop", 2)?;
    check!(newer == Grant { producer: id(&rig), epoch: Epoch::new(2) }, "{newer:?}");
    let again = rig.open_producer("shop", 0, 1)?;
    rig.commit()?;
    let again = rig.now_replied(again)?;
    check!(matches!(&again, ResponseResult::Error(error) if error.code == ErrorCode::Fenced.number()), "{again:?}");
    let answer = rig.settle(SECOND, &newer, &dense(stream, 1, &["from the live session"]))?;
    check!(answer == stored(0, 0), "{answer:?}");
    Ok(())
}

/// B2: a batch whose checksum is wrong is refused before it stands in the log, where recovery would cut at it and take what
/// others were told is stored with it.
pub(crate) fn a_hostile_batch_costs_its_neighbours_nothing(seed: u64, sabotages: Sabotages) -> Checked {
    let count = seed % 3;
    let (mut rig, stream, grant) = written(seed, sabotages, count)?;
    let hostile = rig.session("hostile", 1)?;
    rig.told().answers.clear();
    let mut bytes = dense(stream, 1, &["not what its checksum says"]).to_vec();
    let at = bytes.len() - 1 - (seed as usize % 20);
    bytes[at] ^= 1;
    rig.publish(SECOND, &hostile, &Bytes::from(bytes))?;
    rig.publish(FIRST, &grant, &dense(stream, count + 1, &["honest"]))?;
    rig.commit()?;
    let mut answers = rig.told().answers.clone();
    answers.retain(|(session, _)| *session == FIRST);
    let [(_, told)] = answers.make_contiguous() else { return Err(format!("{answers:?}")) };
    check!(told.outcome == Outcome::Stored, "{told:?}");
    let offset = told.base_offset.map_or(0, Offset::get);
    // All of the group was synced; the watermark that proves it was not.
    rig.cut_power_losing_unsynced();
    reopen(&mut rig)?;
    let there = rig.read(stream, offset)?;
    let is_there = there.iter().any(|outcome| {
        matches!(outcome, ReadOutcome::Batch(batch) if batch.base_offset == offset && batch.payload.ends_with(b"honest"))
    });
    check!(is_there, "stored at {offset}, and there is {there:?}");
    Ok(())
}

fn codes(answers: &[(SessionKey, Answer)]) -> Vec<Answer> {
    answers.iter().map(|(_, answer)| *answer).collect()
}

/// B8: what was on its way to a removed stream never gets into the one that has its name now: not a batch in flight, not a
/// late duplicate, not a zombie's; and what was written to the old one says nothing about the new one.
pub(crate) fn a_stream_made_again_is_another_one(seed: u64, sabotages: Sabotages) -> Checked {
    let count = 1 + seed % 3;
    let (mut rig, old, zombie) = written(seed, sabotages, count)?;
    let grant = rig.session("shop", 2)?;
    rig.told().answers.clear();
    let gone = refused(ErrorCode::StreamGone, 0);
    let next = |stream, at: u64| dense(stream, count + at, &["in flight"]);
    // In one group: a batch, the removal, the batches that were in flight, the new stream, and more of those.
    rig.publish(FIRST, &grant, &next(old, 1))?;
    let removed = rig.remove_stream(old)?;
    rig.publish(FIRST, &grant, &next(old, 2))?;
    let created = rig.create_stream("orders", false)?;
    rig.publish(FIRST, &grant, &next(old, 2))?;
    rig.publish(FIRST, &grant, &dense(old, 1, &["order 1"]))?;
    rig.publish(SECOND, &zombie, &next(old, 1))?;
    let again = rig.remove_stream(old)?;
    rig.commit()?;
    let answers: Vec<_> = rig.told().answers.drain(..).collect();
    check!(codes(&answers) == [stored(count, 0), gone, gone, gone, gone], "{answers:?}");
    match rig.now_replied(removed)? {
        ResponseResult::Ok(Response::Stream(stream)) if stream.id == old && stream.tail.get() == count + 1 => {}
        other => return Err(format!("removed: {other:?}")),
    }
    let again = rig.now_replied(again)?;
    check!(matches!(&again, ResponseResult::Error(error) if error.code == ErrorCode::StreamGone.number()), "{again:?}");
    let new = match rig.now_replied(created)? {
        ResponseResult::Ok(Response::Stream(stream)) if stream.tail == Offset::new(0) => stream.id,
        other => return Err(format!("made again: {other:?}")),
    };
    check!(new != old, "an id was given twice");
    restart(&mut rig, seed)?;
    let grant = resume(&mut rig, &grant, 2)?.map_err(|code| format!("not resumed: {code:?}"))?;
    let position = rig.sequencer().producer_stream(grant.producer, new);
    let is_new = matches!(position, ResponseResult::Ok(Response::ProducerStream { last_sequence, .. }) if last_sequence == Sequence::NONE);
    check!(is_new, "what was written to the old stream is told of the new one: {position:?}");
    let answer = rig.settle(FIRST, &grant, &next(new, 2))?;
    check!(answer == refused(ErrorCode::SequenceGap, 1), "{answer:?}");
    let answer = rig.settle(FIRST, &grant, &dense(new, 1, &["the first of the new one"]))?;
    check!(answer == stored(0, 0), "{answer:?}");
    let answer = rig.settle(FIRST, &grant, &next(old, 1))?;
    check!(answer == gone, "{answer:?}");
    check!(tail(&rig, new) == 1, "{} records", tail(&rig, new));
    Ok(())
}

/// A9: a removal that was told is there after every crash, as long as there are bytes of the stream; one that was not told
/// may be undone, and then all of the stream is there.
pub(crate) fn a_removed_stream_stays_removed(seed: u64, sabotages: Sabotages) -> Checked {
    let count = 1 + seed % 3;
    let (mut rig, stream, grant) = written(seed, sabotages, count)?;
    drop(rig.remove_stream(stream)?);
    rig.hand_over();
    rig.step()?;
    rig.cut_power_losing_unsynced();
    reopen(&mut rig)?;
    // The disk may have written it back all the same.
    if rig.sequencer().durable().catalogue.stream(stream).is_some() {
        check!(tail(&rig, stream) == count, "half of a removal: {} of {count} records", tail(&rig, stream));
        rig.removed(stream)?;
    }
    for start in 0..3 {
        restart(&mut rig, seed + start)?;
        check!(tail(&rig, stream) == 0, "start {start}: the removed stream is back");
        let grant = resume(&mut rig, &grant, 1)?.map_err(|code| format!("not resumed: {code:?}"))?;
        let answer = rig.settle(FIRST, &grant, &dense(stream, count + 1, &["late"]))?;
        check!(answer == refused(ErrorCode::StreamGone, 0), "start {start}: {answer:?}");
        check!(rig.sequencer().durable().catalogue.is_empty(), "start {start}: it is listed");
    }
    let new = rig.stream("orders")?;
    check!(new != stream, "an id was given twice");
    restart(&mut rig, seed)?;
    check!(rig.sequencer().durable().catalogue.len() == 1 && tail(&rig, new) == 0, "not the new stream alone");
    Ok(())
}
