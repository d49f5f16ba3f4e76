//! A publishing session: batches in, answers out, on one QUIC stream.

use std::cell::Cell;
use std::rc::Rc;

use bytes::BytesMut;
use tidelog_protocol::{
    AttemptId, Epoch, ErrorCode, FrameKind, ProducerId, ResponseFrame, ResponseResult, SendHalf, WireError, write_all,
};
use tokio::sync::oneshot;

use crate::budget::Share;
use crate::counters::Held;
use crate::engine::{AnsweredIn, Engine};
use crate::outbox::Outbox;
use crate::sequencer::{Ordered, SessionKey, Step, error_of};
use crate::server::allowance::Allowance;
use crate::server::frames::{FrameReader, SessionEnd, write_json};
use crate::state::Grant;

/// Batches of one session that may wait for their answers; beyond that the session is not read.
const UNANSWERED_MAX: u64 = 16_384;
/// So many without taking memory for them.
const UNANSWERED_FREE: u64 = 256;
/// What an answer and the entry that waits for it take.
const ANSWER_BYTES: u32 = 64;

/// The request that opens the session.
#[derive(Debug)]
pub(crate) struct Attach {
    pub(crate) id: u64,
    pub(crate) producer: ProducerId,
    pub(crate) epoch: Epoch,
    pub(crate) attempt: AttemptId,
    pub(crate) attachment: u64,
    pub(crate) accepted: bool,
}

/// Serves the session to its end.
pub(crate) async fn serve(
    engine: &Rc<Engine>,
    send: &mut dyn SendHalf,
    reader: &mut FrameReader,
    allowance: &Allowance,
    attach: Attach,
) -> Result<(), SessionEnd> {
    let peers = allowance.peers();
    if peers.counters.sessions.get() >= peers.limits.sessions_max {
        let message =
            format!("there are {} publishing sessions, as many as the limit allows", peers.limits.sessions_max);
        let result = ResponseResult::Error(WireError::new(ErrorCode::Busy, message));
        write_json(send, FrameKind::Response, &ResponseFrame { id: attach.id, result }).await?;
        return Ok(());
    }
    let (to, answer) = oneshot::channel();
    let grant = engine.sequencer.borrow_mut().attach(attach.producer, attach.epoch, attach.attempt, to);
    engine.touched();
    let result = answer.await.unwrap_or_else(|_| error_of(ErrorCode::Poisoned));
    let is_attached = matches!(result, ResponseResult::Ok(_));
    write_json(send, FrameKind::Response, &ResponseFrame { id: attach.id, result }).await?;
    let Ok(grant) = grant else { return Ok(()) };
    if !is_attached {
        return Ok(());
    }
    // The session before ends only now that what this one rests on is durable: what it is told must stay true.
    let outbox = Rc::new(Outbox::new(attach.accepted));
    let session = Session::open(engine, allowance, grant, attach.attachment, &outbox);
    let reading = Cell::new(true);
    let incoming = async {
        let end = session.read_batches(reader).await;
        reading.set(false);
        // Wakes the writer, which may have nothing left to wait for.
        outbox.filled.notify_one();
        end
    };
    let outgoing = session.write_answers(send, &reading);
    let (incoming, outgoing) = tokio::join!(
        async {
            tokio::select! {
                biased;
                // First: a session that is over takes no further batch.
                () = outbox_failed(&outbox) => Ok(()),
                end = incoming => end,
            }
        },
        outgoing
    );
    outgoing.and(incoming)
}

async fn outbox_failed(outbox: &Outbox) {
    while !outbox.has_failed() && !outbox.has_ended() {
        outbox.ended.notified().await;
    }
}

struct Session<'a> {
    engine: &'a Rc<Engine>,
    allowance: &'a Allowance,
    outbox: &'a Rc<Outbox>,
    grant: Grant,
    key: SessionKey,
    received: Cell<u64>,
    answered_in: Cell<AnsweredIn>,
    _counted: Held,
}

impl<'a> Session<'a> {
    fn open(
        engine: &'a Rc<Engine>,
        allowance: &'a Allowance,
        grant: Grant,
        attachment: u64,
        outbox: &'a Rc<Outbox>,
    ) -> Self {
        let mut hub = engine.hub.borrow_mut();
        let key = hub.open_session(&grant, attachment, outbox);
        if hub.note_attached(&grant) {
            engine.counters.reconnects.add(1);
        }
        drop(hub);
        let counted = engine.counters.hold(|counters| &counters.sessions);
        let (received, answered_in) = (Cell::new(0), Cell::new(engine.answered_in()));
        Self { engine, allowance, outbox, grant, key, received, answered_in, _counted: counted }
    }

    async fn read_batches(&self, reader: &mut FrameReader) -> Result<(), SessionEnd> {
        let mut share = None;
        // Of all batches that came with one read, and were dealt with without a wait.
        let mut received = None;
        while let Some(frame) = reader.next().await? {
            if frame.kind != FrameKind::Publish {
                let message = format!("a frame {:?} has no place in a publishing session", frame.kind);
                return Err(SessionEnd::failure(ErrorCode::Malformed, message));
            }
            let waits_for_each = self.unanswered() == 0;
            self.received.set(self.received.get() + 1);
            let mut now = match received {
                Some((reads, now)) if reads == reader.reads() => now,
                _ => self.engine.now(),
            };
            let step = self.engine.publish(self.key, &self.grant, &frame.body, &mut now).await;
            received = Some((reader.reads(), now));
            if waits_for_each && step == Step::Decided(Ordered::Appended) {
                self.engine.came_back(self.answered_in.get());
            }
            self.outbox.ordered(self.received.get(), step == Step::Decided(Ordered::Refused));
            while self.unanswered() >= self.unanswered_max(&mut share) {
                self.outbox.answered.notified().await;
                received = None;
            }
        }
        Ok(())
    }

    /// How many batches may wait for their answers: many if there is memory to spare, which goes back when none waits.
    fn unanswered_max(&self, share: &mut Option<Share>) -> u64 {
        match self.unanswered() {
            0 => *share = None,
            1..UNANSWERED_FREE => {}
            _ if share.is_none() => {
                let bytes = UNANSWERED_MAX as u32 * ANSWER_BYTES;
                *share = self.allowance.budget().try_take_spare(bytes);
            }
            _ => {}
        }
        if share.is_some() { UNANSWERED_MAX } else { UNANSWERED_FREE }
    }

    fn unanswered(&self) -> u64 {
        self.received.get().saturating_sub(self.outbox.answered_count())
    }

    async fn write_answers(&self, send: &mut dyn SendHalf, reading: &Cell<bool>) -> Result<(), SessionEnd> {
        let mut out = BytesMut::new();
        loop {
            let ends = self.outbox.take(&mut out);
            if !out.is_empty() {
                self.answered_in.set(self.engine.answered_in());
                let written = write_all(send, &mut [out.split().freeze()]).await;
                if let Err(error) = written {
                    self.outbox.end();
                    return Err(error.into());
                }
            }
            if ends {
                self.outbox.end();
                return Ok(());
            }
            if !reading.get() && self.unanswered() == 0 {
                return Ok(());
            }
            self.outbox.filled.notified().await;
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.engine.hub.borrow_mut().close_session(self.grant.producer, self.key);
    }
}
