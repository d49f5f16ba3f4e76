//! Live delivery: batches go from the group that made them durable to the consumers that are caught up, without being read
//! back. A consumer that falls behind loses its queue, not its records: it reads them from the log.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use tidelog_protocol::{Answer, Epoch, ErrorCode, ProducerId, StreamId, WireError};
use tokio::sync::Notify;

use crate::budget::{Budget, Share};
use crate::id_map::IdMap;
use crate::outbox::Outbox;
use crate::sequencer::{LiveBatch, SessionKey, Sink};
use crate::state::Grant;

/// Batches that wait for one consumer, at most; beyond that it reads from the log.
const QUEUE_BATCHES_MAX: usize = 512;
/// And their bytes: slices pin the group buffers that they stand in.
const QUEUE_BYTES_MAX: usize = 1 << 20;
/// What a queued batch costs beside its bytes.
const BATCH_BYTES: usize = 128;

/// A consumer's queue of batches that have just become durable.
#[derive(Debug)]
pub(crate) struct LiveQueue {
    state: RefCell<LiveState>,
    budget: Budget,
    /// The stream has new durable records, queued or not.
    pub(crate) news: Notify,
}

#[derive(Debug, Default)]
struct LiveState {
    batches: VecDeque<(LiveBatch, Share)>,
    bytes: usize,
    is_armed: bool,
}

impl LiveQueue {
    fn new(budget: Budget) -> Self {
        Self { state: RefCell::default(), budget, news: Notify::new() }
    }

    /// The consumer has everything that is durable: from here on batches are queued for it.
    pub(crate) fn arm(&self) {
        self.state.borrow_mut().is_armed = true;
    }

    /// Whether it is queued for.
    pub(crate) fn is_armed(&self) -> bool {
        self.state.borrow().is_armed
    }

    /// The consumer is behind again: it reads from the log.
    pub(crate) fn disarm(&self) {
        let mut state = self.state.borrow_mut();
        state.batches.clear();
        state.bytes = 0;
        state.is_armed = false;
    }

    /// The next batch, and the memory that it takes.
    pub(crate) fn pop(&self) -> Option<(LiveBatch, Share)> {
        let mut state = self.state.borrow_mut();
        let (batch, share) = state.batches.pop_front()?;
        state.bytes -= batch.batch.payload.len();
        Some((batch, share))
    }

    fn push(&self, batch: LiveBatch) {
        if self.is_armed() && !self.queue(batch) {
            self.disarm();
        }
        self.news.notify_one();
    }

    /// `false` if there is no room for it, in the queue or in the common budget.
    fn queue(&self, batch: LiveBatch) -> bool {
        let mut state = self.state.borrow_mut();
        let len = batch.batch.payload.len();
        let is_full = state.bytes + len > QUEUE_BYTES_MAX || state.batches.len() >= QUEUE_BATCHES_MAX;
        if is_full && !state.batches.is_empty() {
            return false;
        }
        let Some(share) = self.budget.try_take((len + BATCH_BYTES) as u32) else { return false };
        state.bytes += len;
        state.batches.push_back((batch, share));
        true
    }
}

/// Who comes after whom: the epoch, and within it the number of the attachment.
type Turn = (Epoch, u64);

/// All sessions that something is delivered to.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    /// In order, so that a simulated broker fails them in the same order whenever it is run again.
    outboxes: BTreeMap<SessionKey, Rc<Outbox>>,
    /// The one session that writes as a producer.
    writers: IdMap<ProducerId, (SessionKey, Turn)>,
    followers: IdMap<StreamId, Vec<Rc<LiveQueue>>>,
    /// The epoch with which each producer attached last since the start.
    attached: IdMap<ProducerId, Epoch>,
    next_key: u64,
}

impl Hub {
    /// A new publishing session. The one before of the same named producer ends: superseded if this one resumes it,
    /// fenced if this one is of a later epoch. One of an earlier epoch or attachment, which was let in before or was long
    /// under way and comes late, ends at once.
    pub(crate) fn open_session(&mut self, grant: &Grant, attachment: u64, outbox: &Rc<Outbox>) -> SessionKey {
        self.next_key += 1;
        let key = SessionKey(self.next_key);
        let turn = (grant.epoch, attachment);
        if let Some((_, living)) = self.writers.get(&grant.producer)
            && *living > turn
        {
            outbox.fail(taken_over(grant.epoch, living.0));
            return key;
        }
        self.outboxes.insert(key, Rc::clone(outbox));
        if grant.producer != ProducerId::ANONYMOUS
            && let Some((before, (epoch, _))) = self.writers.insert(grant.producer, (key, turn))
            && let Some(outbox) = self.outboxes.remove(&before)
        {
            outbox.fail(taken_over(epoch, grant.epoch));
        }
        key
    }

    /// Notes that a producer attaches; `true` if it did so before with the same epoch.
    pub(crate) fn note_attached(&mut self, grant: &Grant) -> bool {
        grant.producer != ProducerId::ANONYMOUS
            && self.attached.insert(grant.producer, grant.epoch).is_some_and(|epoch| epoch == grant.epoch)
    }

    /// How many publishing sessions there are.
    pub(crate) fn sessions(&self) -> usize {
        self.outboxes.len()
    }

    /// The session is over.
    pub(crate) fn close_session(&mut self, producer: ProducerId, key: SessionKey) {
        self.outboxes.remove(&key);
        if self.writers.get(&producer).is_some_and(|(writer, _)| *writer == key) {
            self.writers.remove(&producer);
        }
    }

    /// Ends every publishing session with this.
    pub(crate) fn fail_sessions(&mut self, failure: &WireError) {
        for outbox in self.outboxes.values() {
            outbox.fail(failure.clone());
        }
    }

    /// A new consumer of a stream.
    pub(crate) fn follow(&mut self, stream: StreamId, budget: &Budget) -> Rc<LiveQueue> {
        let queue = Rc::new(LiveQueue::new(budget.clone()));
        self.followers.entry(stream).or_default().push(Rc::clone(&queue));
        queue
    }

    /// The consumer is gone.
    pub(crate) fn unfollow(&mut self, stream: StreamId, queue: &Rc<LiveQueue>) {
        if let Some(queues) = self.followers.get_mut(&stream) {
            queues.retain(|other| !Rc::ptr_eq(other, queue));
            if queues.is_empty() {
                self.followers.remove(&stream);
            }
        }
    }
}

fn taken_over(epoch: Epoch, by: Epoch) -> WireError {
    if epoch == by {
        let message = "the same producer session was resumed on another connection, which goes on in its place";
        return WireError::new(ErrorCode::Superseded, message);
    }
    let message = format!("the producer was opened again: epoch {epoch} is over, {by} writes now");
    WireError::new(ErrorCode::Fenced, message).with_detail(by.get())
}

impl Sink for Hub {
    fn answer(&mut self, session: SessionKey, answer: Answer) {
        if let Some(outbox) = self.outboxes.get(&session) {
            outbox.push(answer);
        }
    }

    fn wants(&self, stream: StreamId) -> bool {
        self.followers.contains_key(&stream)
    }

    fn deliver(&mut self, stream: StreamId, batch: LiveBatch) {
        if let Some(queues) = self.followers.get(&stream) {
            for queue in queues {
                queue.push(batch.clone());
            }
        }
    }

    fn remove(&mut self, stream: StreamId) {
        // They look the stream up and find that it is gone.
        self.followers.get(&stream).into_iter().flatten().for_each(|queue| queue.news.notify_one());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::time::Duration;
    use tidelog_storage::StoredBatch;

    fn grant(producer: ProducerId, epoch: u64) -> Grant {
        Grant { producer, epoch: Epoch::new(epoch) }
    }

    fn batch(base_offset: u64, len: usize) -> LiveBatch {
        let payload = Bytes::from(vec![0; len]);
        let batch = StoredBatch { base_offset, span: 1, skip: 0, wall_ms: 0, owner: [0; 16], payload };
        LiveBatch { batch, received: Duration::ZERO }
    }

    fn budget() -> Budget {
        Budget::new(16 << 20, std::sync::Arc::new(crate::counters::Counters::new()))
    }

    fn queue() -> LiveQueue {
        LiveQueue::new(budget())
    }

    #[test]
    fn without_memory_the_consumer_is_sent_to_the_log_and_what_was_queued_is_given_back() {
        let budget = budget();
        let queue = LiveQueue::new(budget.clone());
        queue.arm();
        queue.push(batch(0, 1_000));
        let rest = budget.try_take((16 << 20) - 1_000 - 128).unwrap();
        queue.push(batch(1, 1));
        assert!(!queue.is_armed() && queue.pop().is_none());
        drop(rest);
        assert!(budget.try_take(16 << 20).is_some());
    }

    #[test]
    fn an_epoch_that_attaches_again_is_a_reconnect_and_another_one_is_not() {
        let mut hub = Hub::default();
        let producer = ProducerId::new(8);
        let seen = [1, 1, 2, 2, 2].map(|epoch| hub.note_attached(&grant(producer, epoch)));
        assert_eq!(seen, [false, true, false, true, true]);
        assert!(!hub.note_attached(&grant(ProducerId::ANONYMOUS, 2)));
        assert!(!hub.note_attached(&grant(ProducerId::ANONYMOUS, 2)));
    }

    #[test]
    fn a_consumer_that_falls_behind_loses_its_queue_and_is_told_of_news_all_the_same() {
        let queue = queue();
        queue.push(batch(0, 10));
        assert!(queue.pop().is_none(), "nothing is queued for one that is not caught up");
        queue.arm();
        queue.push(batch(1, QUEUE_BYTES_MAX));
        queue.push(batch(2, 1));
        assert!(!queue.is_armed());
        assert!(queue.pop().is_none());
        queue.arm();
        queue.push(batch(3, 1));
        assert_eq!(queue.pop().map(|(live, _)| live.batch.base_offset), Some(3));
    }

    #[test]
    fn the_newer_session_of_a_producer_supersedes_the_older() {
        let mut hub = Hub::default();
        let (old, new) = (Rc::new(Outbox::new(false)), Rc::new(Outbox::new(false)));
        let producer = ProducerId::new(8);
        let old_key = hub.open_session(&grant(producer, 1), 0, &old);
        let new_key = hub.open_session(&grant(producer, 1), 0, &new);
        assert!(old.has_failed() && !new.has_failed());
        hub.close_session(producer, old_key);
        assert_eq!(hub.writers.get(&producer), Some(&(new_key, (Epoch::new(1), 0))));
    }

    #[test]
    fn a_resumed_session_supersedes_and_a_new_one_fences_the_one_before() {
        let mut hub = Hub::default();
        let outboxes = [(); 3].map(|()| Rc::new(Outbox::new(false)));
        for (outbox, epoch) in outboxes.iter().zip([1, 1, 2]) {
            hub.open_session(&grant(ProducerId::new(8), epoch), 0, outbox);
        }
        let told = outboxes.map(|outbox| {
            let mut out = bytes::BytesMut::new();
            outbox.take(&mut out);
            let text = String::from_utf8_lossy(&out).into_owned();
            ["superseded", "fenced"].into_iter().find(|name| text.contains(&format!("\"name\":\"{name}\"")))
        });
        assert_eq!(told, [Some("superseded"), Some("fenced"), None]);
    }

    #[test]
    fn an_older_attachment_that_arrives_late_is_superseded_by_the_living_one() {
        let mut hub = Hub::default();
        let [first, third, second, fourth] = [(); 4].map(|()| Rc::new(Outbox::new(false)));
        let grant = grant(ProducerId::new(8), 1);
        for (attachment, outbox) in [(1, &first), (3, &third), (2, &second)] {
            hub.open_session(&grant, attachment, outbox);
        }
        assert!(first.has_failed() && second.has_failed() && !third.has_failed());
        hub.open_session(&grant, 4, &fourth);
        assert!(third.has_failed() && !fourth.has_failed());
    }

    #[test]
    fn an_older_session_that_opens_late_ends_itself_and_not_the_live_one() {
        let mut hub = Hub::default();
        let (live, late) = (Rc::new(Outbox::new(false)), Rc::new(Outbox::new(false)));
        let producer = ProducerId::new(8);
        let live_key = hub.open_session(&grant(producer, 2), 0, &live);
        let late_key = hub.open_session(&grant(producer, 1), 0, &late);
        assert!(late.has_failed() && !live.has_failed());
        hub.close_session(producer, late_key);
        assert_eq!(hub.writers.get(&producer), Some(&(live_key, (Epoch::new(2), 0))));
    }

    #[test]
    fn a_queue_is_bounded_in_batches_too() {
        let queue = queue();
        queue.arm();
        (0..QUEUE_BATCHES_MAX as u64).for_each(|offset| queue.push(batch(offset, 0)));
        assert!(queue.is_armed());
        queue.push(batch(QUEUE_BATCHES_MAX as u64, 0));
        assert!(!queue.is_armed() && queue.pop().is_none());
    }

    #[test]
    fn one_batch_larger_than_the_bound_still_passes() {
        let queue = queue();
        queue.arm();
        queue.push(batch(0, 2 * QUEUE_BYTES_MAX));
        assert!(queue.is_armed() && queue.pop().is_some());
        queue.push(batch(1, QUEUE_BYTES_MAX / 2));
        queue.push(batch(2, QUEUE_BYTES_MAX / 2));
        assert!(queue.is_armed(), "what was taken does not count any more");
    }

    #[test]
    fn sessions_without_a_name_live_beside_each_other() {
        let mut hub = Hub::default();
        let (one, two) = (Rc::new(Outbox::new(false)), Rc::new(Outbox::new(false)));
        let first = hub.open_session(&grant(ProducerId::ANONYMOUS, 1), 0, &one);
        hub.open_session(&grant(ProducerId::ANONYMOUS, 1), 0, &two);
        assert!(!one.has_failed() && !two.has_failed());
        hub.close_session(ProducerId::ANONYMOUS, first);
        hub.fail_sessions(&WireError::new(ErrorCode::Poisoned, "poisoned"));
        assert!(!one.has_failed() && two.has_failed(), "a closed session hears no more");
    }

    #[test]
    fn answers_go_to_their_session_and_nowhere_once_it_is_superseded() {
        let mut hub = Hub::default();
        let (old, new) = (Rc::new(Outbox::new(false)), Rc::new(Outbox::new(false)));
        let answer = Answer { outcome: tidelog_protocol::Outcome::Stored, base_offset: None, skip: 0 };
        let old_key = hub.open_session(&grant(ProducerId::new(8), 1), 0, &old);
        hub.answer(old_key, answer);
        let new_key = hub.open_session(&grant(ProducerId::new(8), 1), 0, &new);
        hub.answer(old_key, answer);
        hub.answer(new_key, answer);
        let mut out = bytes::BytesMut::new();
        for outbox in [&old, &new] {
            outbox.take(&mut out);
            assert_eq!(outbox.answered_count(), 1);
        }
    }

    #[test]
    fn a_stream_is_wanted_as_long_as_somebody_follows_it() {
        let mut hub = Hub::default();
        let stream = StreamId::new(8);
        let (one, two) = (hub.follow(stream, &budget()), hub.follow(stream, &budget()));
        [&one, &two].into_iter().for_each(|queue| queue.arm());
        hub.deliver(stream, batch(0, 1));
        hub.unfollow(stream, &one);
        assert!(hub.wants(stream) && !hub.wants(StreamId::new(9)));
        hub.deliver(stream, batch(1, 1));
        let offsets = |queue: &LiveQueue| {
            std::iter::from_fn(|| queue.pop()).map(|(live, _)| live.batch.base_offset).collect::<Vec<_>>()
        };
        assert_eq!((offsets(&one), offsets(&two)), (vec![0], vec![0, 1]));
        hub.unfollow(stream, &two);
        assert!(!hub.wants(stream));
    }
}
