//! A subscription: records of one stream, in offset order, on one QUIC stream. A consumer that is caught up is fed from
//! the groups that have just become durable, one that is behind from the log; QUIC's flow control is the back-pressure.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use tidelog_protocol::{
    Damaged, DeliverHeader, ErrorCode, FrameKind, Offset, ProducerId, Response, ResponseFrame, ResponseResult,
    SendHalf, StartAt, StreamId, WireError, encode_damaged, encode_end, encode_producer_name,
};
use tidelog_storage::{ReadOutcome, ReadPlan, StoredBatch};

use crate::engine::Engine;
use crate::live::LiveQueue;
use crate::sequencer::error_of;
use crate::server::allowance::Allowance;
use crate::server::frames::{FrameReader, SessionEnd, write_json};
use crate::server::outgoing::{GoOn, Outgoing};
use crate::state::owner_producer;

/// One read from the log, and one write to the consumer, take about this many bytes.
const BLOCK_BYTES: usize = 256 * 1_024;
/// And this many at first and for a consumer that was slow; twice as many with each block that it takes in time.
const BLOCK_BYTES_MIN: usize = 16 * 1_024;
/// A consumer that has not taken a block after this long gives its memory back: it is read again when it is wanted.
const TAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// Producers whose names a subscription remembers having told; beyond that it tells them again.
const NAMES_TOLD_MAX: usize = 4_096;

/// The request that opens the subscription.
#[derive(Debug)]
pub(crate) struct Subscribe {
    pub(crate) id: u64,
    pub(crate) stream: StreamId,
    pub(crate) from: StartAt,
    pub(crate) follow: bool,
}

/// Serves the subscription to its end.
pub(crate) async fn serve(
    engine: &Rc<Engine>,
    send: &mut dyn SendHalf,
    reader: &mut FrameReader,
    allowance: &Allowance,
    subscribe: Subscribe,
) -> Result<(), SessionEnd> {
    let peers = allowance.peers();
    let opened = if peers.counters.subscriptions.get() >= peers.limits.subscriptions_max {
        let message =
            format!("there are {} subscriptions, as many as the limit allows", peers.limits.subscriptions_max);
        Err(ResponseResult::Error(WireError::new(ErrorCode::Busy, message)))
    } else {
        Subscription::open(engine, allowance, &subscribe).await?
    };
    let _counted = opened.is_ok().then(|| peers.counters.hold(|counters| &counters.subscriptions));
    let (result, subscription) = match opened {
        Ok(subscription) => {
            let tail = Offset::new(subscription.tail());
            (
                ResponseResult::Ok(Response::Subscribed { start: Offset::new(subscription.next), tail }),
                Some(subscription),
            )
        }
        Err(refused) => (refused, None),
    };
    write_json(send, FrameKind::Response, &ResponseFrame { id: subscribe.id, result }).await?;
    let Some(mut subscription) = subscription else { return Ok(()) };
    subscription.run(send, reader).await
}

struct Subscription<'a> {
    engine: &'a Rc<Engine>,
    allowance: &'a Allowance,
    stream: StreamId,
    queue: Rc<LiveQueue>,
    /// The next offset to deliver.
    next: u64,
    /// Where it ends, unless it follows.
    end: Option<u64>,
    plan: Option<ReadPlan>,
    out: Outgoing,
    /// Bytes that the consumer has already of the next batch's frame.
    frame_skip: usize,
    block_bytes: usize,
    /// Producers whose names it has told.
    told: HashSet<ProducerId>,
}

impl<'a> Subscription<'a> {
    async fn open(
        engine: &'a Rc<Engine>,
        allowance: &'a Allowance,
        subscribe: &Subscribe,
    ) -> Result<Result<Subscription<'a>, ResponseResult>, SessionEnd> {
        let found = {
            let sequencer = engine.sequencer.borrow();
            let stream = sequencer.durable().catalogue.stream(subscribe.stream);
            stream.map(|stream| (stream.head.get(), stream.tail.get()))
        };
        let Some((head, tail)) = found else { return Ok(Err(error_of(ErrorCode::StreamGone))) };
        let queue = engine.hub.borrow_mut().follow(subscribe.stream, allowance.budget());
        let mut subscription = Self {
            engine,
            allowance,
            stream: subscribe.stream,
            queue,
            next: head,
            end: (!subscribe.follow).then_some(tail),
            plan: None,
            out: Outgoing::default(),
            frame_skip: 0,
            block_bytes: BLOCK_BYTES_MIN,
            told: HashSet::new(),
        };
        subscription.next = match subscribe.from {
            StartAt::Start => head,
            StartAt::End => tail,
            StartAt::Last { count } => tail.saturating_sub(count).max(head),
            StartAt::Offset { offset } if offset.get() > tail => {
                let message = format!("offset {offset} is past the end of the stream, which is {tail}");
                let error = WireError::new(ErrorCode::PositionPastEnd, message).with_detail(tail);
                return Ok(Err(ResponseResult::Error(error)));
            }
            StartAt::Offset { offset } => offset.get().max(head),
            StartAt::Time { time_ms } => subscription.first_at(time_ms).await?.unwrap_or(tail),
        };
        Ok(Ok(subscription))
    }

    /// The offset of the first batch that was ordered at `time_ms` or later.
    async fn first_at(&mut self, time_ms: i64) -> Result<Option<u64>, SessionEnd> {
        let mut from = self.next;
        loop {
            let plan = self.engine.sequencer.borrow().log().index().plan_time(self.stream.get(), from, time_ms);
            let Some(mut plan) = plan else { return Ok(None) };
            while !plan.is_used_up() {
                let _share = self.allowance.budget().take(self.block_share(1)).await;
                let (moved, outcomes) = self.read_log(plan, 1).await?;
                plan = moved;
                match outcomes.first() {
                    Some(ReadOutcome::Batch(batch)) => return Ok(Some(batch.base_offset)),
                    Some(ReadOutcome::Damaged { from, .. }) => return Ok(Some(*from)),
                    None => {}
                }
            }
            if plan.offset() <= from {
                return Ok(None);
            }
            from = plan.offset();
        }
    }

    /// Whether the stream has not been removed.
    fn is_there(&self) -> bool {
        self.engine.sequencer.borrow().durable().catalogue.stream(self.stream).is_some()
    }

    fn tail(&self) -> u64 {
        let sequencer = self.engine.sequencer.borrow();
        sequencer.durable().catalogue.stream(self.stream).map_or(self.next, |stream| stream.tail.get())
    }

    async fn run(&mut self, send: &mut dyn SendHalf, reader: &mut FrameReader) -> Result<(), SessionEnd> {
        loop {
            if self.end.is_some_and(|end| self.next >= end) {
                let end = Offset::new(self.end.unwrap_or(self.next));
                self.out.put_small(|out| encode_end(end, out));
                self.flush(send).await?;
                return Ok(());
            }
            if !self.is_there() {
                // What was gathered before is still the consumer's.
                self.flush(send).await?;
                let message = format!("the stream was removed; {} was the next offset to come", self.next);
                return Err(SessionEnd::failure(ErrorCode::StreamGone, message));
            }
            if self.take_live() {
                self.flush(send).await?;
                continue;
            }
            if self.next < self.tail() {
                self.catch_up().await?;
                self.flush(send).await?;
                continue;
            }
            if !self.queue.is_armed() {
                // Everything durable has been delivered; this thread alone moves the durable end, so nothing falls in
                // between.
                self.plan = None;
                self.queue.arm();
            }
            tokio::select! {
                biased;
                () = self.queue.news.notified() => {}
                end = reader.ended() => return Err(end),
            }
        }
    }

    /// Takes what the live queue has, up to about one block; `false` if there was nothing to deliver.
    fn take_live(&mut self) -> bool {
        let mut has_taken = false;
        while self.out.len() < BLOCK_BYTES
            && let Some((live, share)) = self.queue.pop()
        {
            if live.batch.next_offset() <= self.next {
                continue;
            }
            assert_eq!(live.batch.base_offset, self.next, "a live queue has no gaps");
            let handed = self.engine.now().monotonic;
            self.engine.counters.end_to_end_seconds.observe_duration(handed.saturating_sub(live.received));
            self.out.hold(share);
            self.put(live.batch);
            has_taken = true;
        }
        has_taken
    }

    /// Reads the next block from the log.
    async fn catch_up(&mut self) -> Result<(), SessionEnd> {
        let is_fresh = self.plan.is_none();
        let plan = match self.plan.take() {
            Some(plan) => plan,
            None => {
                let plan = self.engine.sequencer.borrow().log().index().plan(self.stream.get(), self.next);
                let Some(plan) = plan else {
                    // The stream has records and the log knows of none: they are lost.
                    self.tell_damage(self.next, self.tail());
                    return Ok(());
                };
                plan
            }
        };
        let tail = self.tail();
        let before = self.next;
        // Before the read, so that all who are behind hold no more than the budget together.
        let share = self.allowance.budget().take(self.block_share(self.block_bytes)).await;
        self.out.hold(share);
        let (plan, outcomes) = self.read_log(plan, self.block_bytes).await?;
        for outcome in outcomes {
            match outcome {
                ReadOutcome::Batch(batch) => self.put(batch),
                ReadOutcome::Damaged { .. } if self.frame_skip > 0 => {
                    let message = "a batch could not be read again of which a part was delivered already";
                    return Err(SessionEnd::failure(ErrorCode::Damaged, message));
                }
                ReadOutcome::Damaged { from, to } => self.tell_damage(from, to),
            }
        }
        self.out.settle();
        let is_used_up = plan.is_used_up();
        self.plan = (!is_used_up).then_some(plan);
        if is_used_up && is_fresh && self.next == before {
            // A fresh plan that leads nowhere: the last records of the stream can't be read.
            self.tell_damage(before, tail);
        }
        Ok(())
    }

    /// Memory for a read of so many bytes, which may end with one whole batch.
    fn block_share(&self, bytes: usize) -> u32 {
        u32::try_from(bytes + self.engine.limits.frame_bytes_max()).unwrap_or(u32::MAX)
    }

    async fn read_log(&self, plan: ReadPlan, bytes_max: usize) -> Result<(ReadPlan, Vec<ReadOutcome>), SessionEnd> {
        let visible_end = self.engine.sequencer.borrow().durable_position();
        let Ok((plan, outcome)) = self.engine.reads.read(plan, visible_end, bytes_max).await else {
            return Err(SessionEnd::failure(ErrorCode::Stopping, "the broker is stopping"));
        };
        match outcome {
            Ok(outcomes) => Ok((plan, outcomes)),
            Err(error) => {
                tracing::error!("{error}");
                Err(SessionEnd::failure(ErrorCode::Internal, format!("the log can't be read: {error}")))
            }
        }
    }

    fn tell_damage(&mut self, from: u64, to: u64) {
        if from < to {
            self.engine.counters.damaged_records.add(to - from);
            let damaged = Damaged { from: Offset::new(from), to: Offset::new(to) };
            self.out.put_small(|out| encode_damaged(&damaged, out));
            self.next = self.next.max(to);
        }
    }

    fn put(&mut self, batch: StoredBatch) {
        let producer = owner_producer(&batch.owner);
        let skip = std::mem::take(&mut self.frame_skip);
        if skip == 0 {
            self.tell_name(producer);
        }
        let delivered = batch.next_offset() - self.next.max(batch.base_offset);
        let header = DeliverHeader {
            base_offset: Offset::new(batch.base_offset),
            time_ms: batch.wall_ms,
            producer,
            skip: batch.skip,
        };
        let next = batch.next_offset();
        self.out.put_batch(&header, batch.payload, skip, self.next, delivered);
        self.next = next;
    }

    fn tell_name(&mut self, producer: ProducerId) {
        if producer == ProducerId::ANONYMOUS || self.told.contains(&producer) {
            return;
        }
        let sequencer = self.engine.sequencer.borrow();
        if let Some(state) = sequencer.durable().producers.producer(producer) {
            self.out.put_small(|out| encode_producer_name(producer, &state.name, out));
        }
        if self.told.len() >= NAMES_TOLD_MAX {
            self.told.clear();
        }
        self.told.insert(producer);
    }

    /// Writes what was put in. A consumer that takes it too slowly gives most of it back, and what is left of the block
    /// is read again once it has taken the little that it kept.
    async fn flush(&mut self, send: &mut dyn SendHalf) -> Result<(), SessionEnd> {
        let in_time = tokio::time::timeout(TAKE_TIMEOUT, self.out.write(send, self.allowance)).await;
        let records_delivered = &self.engine.counters.records_delivered;
        match in_time {
            Ok(written) => {
                records_delivered.add(written?);
                self.block_bytes = (2 * self.block_bytes).min(BLOCK_BYTES);
            }
            Err(_) => {
                self.engine.counters.reads_given_back.add(1);
                let (GoOn { offset, skip }, records) = self.out.give_back();
                records_delivered.add(records);
                if let Some(offset) = offset {
                    self.next = offset;
                    self.frame_skip = skip;
                    self.plan = None;
                    self.told.clear();
                    self.queue.disarm();
                }
                self.block_bytes = BLOCK_BYTES_MIN;
                self.out.write(send, self.allowance).await?;
            }
        }
        Ok(())
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        self.engine.hub.borrow_mut().unfollow(self.stream, &self.queue);
    }
}
