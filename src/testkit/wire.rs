//! Between a connection and the broker's session: sees requests and answers pass, and lets things befall them.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tidelog_protocol::{
    BoxFuture, CloseCode, Connection, Duplex, FRAME_HEADER_LEN, FrameDecoder, FrameKind, Limits, ReceiveHalf, SendHalf,
    TransportError,
};

use super::clock::TestClock;
use super::ordeal::{Ending, Ordeal, Standing, Step, Strike};
use super::witness::{SessionWitness, Witness};
use crate::listening::Between;

/// What a client is told whose connection is cut: nothing that a program could take for an answer.
const CUT: &str = "the connection was cut";

/// All connections of one broker.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) ordeal: Arc<Ordeal>,
    pub(super) witness: Arc<Witness>,
    pub(super) clock: Arc<TestClock>,
    pub(super) limits: Limits,
    pub(super) connections: Connections,
}

/// Those that are open.
#[derive(Default)]
pub(super) struct Connections(Mutex<Vec<Weak<dyn Connection>>>);

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").finish_non_exhaustive()
    }
}

impl Connections {
    fn add(&self, connection: &Arc<dyn Connection>) {
        let mut open = self.lock();
        open.retain(|connection| connection.strong_count() > 0);
        open.push(Arc::downgrade(connection));
    }

    /// Cuts all of them; says how many there were.
    pub(super) fn cut(&self) -> usize {
        let open = self.take();
        open.cut();
        open.0.len()
    }

    /// All of them, to be cut when nobody uses them any more.
    pub(super) fn take(&self) -> OpenConnections {
        OpenConnections(self.lock().drain(..).filter_map(|connection| connection.upgrade()).collect())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<dyn Connection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections that stay open.
pub(super) struct OpenConnections(Vec<Arc<dyn Connection>>);

impl OpenConnections {
    pub(super) fn cut(&self) {
        self.0.iter().for_each(|connection| connection.close(CloseCode::TimedOut, CUT));
    }
}

impl Wire {
    /// What the broker puts between its connections and their sessions.
    pub(super) fn between(self: &Arc<Self>) -> Between {
        let wire = Arc::clone(self);
        Between::new(move |connection| {
            wire.connections.add(&connection);
            Arc::new(WiredConnection { inner: connection, wire: Arc::clone(&wire) })
        })
    }

    /// Does what befalls at `step`; whether what is about to pass does not.
    fn strike(&self, step: Step, connection: &Arc<dyn Connection>, late: &mut Duration) -> bool {
        match self.ordeal.at(step) {
            Some(Strike::Dies(death)) => {
                // Behind an answer the broker lives until that has left.
                self.ordeal.die(Ending { death, is_sudden: step != Step::AfterAnswer });
                step != Step::AfterAnswer
            }
            Some(Strike::Cut) => {
                connection.close(CloseCode::TimedOut, CUT);
                true
            }
            Some(Strike::Late(by)) => {
                *late += by;
                false
            }
            Some(Strike::CutOff(time)) => {
                self.ordeal.cut_off(time);
                false
            }
            Some(Strike::Jump(by_ms)) => {
                self.clock.jump_ms(by_ms);
                false
            }
            // Of the disk: scripted for its own steps.
            Some(Strike::SyncFails | Strike::WriteFails | Strike::Torn) | None => false,
        }
    }
}

struct WiredConnection {
    inner: Arc<dyn Connection>,
    wire: Arc<Wire>,
}

impl Connection for WiredConnection {
    fn open(&self) -> BoxFuture<'_, Result<Duplex, TransportError>> {
        self.inner.open()
    }

    fn accept(&self) -> BoxFuture<'_, Result<Duplex, TransportError>> {
        Box::pin(async {
            let Duplex { send, receive } = self.inner.accept().await?;
            let session = Arc::new(Mutex::new(SessionWitness::default()));
            let passage = || Passage {
                connection: Arc::clone(&self.inner),
                wire: Arc::clone(&self.wire),
                session: Arc::clone(&session),
                frames: Some(FrameDecoder::new(self.wire.limits.clone())),
                late: None,
            };
            let receive = WiredReceive { inner: receive, passage: passage(), given: 0, kept: None };
            let send = WiredSend { inner: send, passage: passage(), headers: Headers::default(), is_looked_at: false };
            Ok(Duplex { send: Box::new(send), receive: Box::new(receive) })
        })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        if !self.wire.ordeal.is_dead() {
            self.inner.close(code, reason);
        }
    }

    fn closed(&self) -> BoxFuture<'_, TransportError> {
        self.inner.closed()
    }

    fn remote(&self) -> String {
        self.inner.remote()
    }

    fn set_receive_window(&self, bytes: u32) {
        self.inner.set_receive_window(bytes);
    }

    fn set_send_window(&self, bytes: u32) {
        self.inner.set_send_window(bytes);
    }
}

/// One direction of a QUIC stream.
struct Passage {
    connection: Arc<dyn Connection>,
    wire: Arc<Wire>,
    session: Arc<Mutex<SessionWitness>>,
    /// `None` once something other than frames has passed.
    frames: Option<FrameDecoder>,
    /// Runs while something is late.
    late: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Passage {
    /// Waits until what is late is due.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(late) = &mut self.late {
            std::task::ready!(late.as_mut().poll(cx));
            self.late = None;
        }
        Poll::Ready(())
    }

    /// What is about to pass is late by `once`, and by what is so and may change.
    fn is_late_by(&mut self, once: Duration, lasting: impl Fn(&Standing) -> Duration + Send + 'static) {
        let ordeal = Arc::clone(&self.wire.ordeal);
        if !(once + lasting(&ordeal.standing())).is_zero() {
            self.late = Some(Box::pin(async move { ordeal.late(once, lasting).await }));
        }
    }

    /// The frames that `bytes` complete.
    fn see(&mut self, bytes: &[u8], mut frame: impl FnMut(&mut SessionWitness, FrameKind, &Bytes)) {
        let session = Arc::clone(&self.session);
        let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(frames) = &mut self.frames else { return };
        frames.push(bytes);
        loop {
            match frames.next_frame() {
                Ok(Some(seen)) => frame(&mut session, seen.kind, &seen.body),
                Ok(None) => return,
                Err(_) => {
                    self.frames = None;
                    return;
                }
            }
        }
    }

    fn lost() -> TransportError {
        TransportError::Lost(CUT.to_owned())
    }
}

struct WiredReceive {
    inner: Box<dyn ReceiveHalf>,
    passage: Passage,
    /// Publish requests that the session was given with the last bytes.
    given: usize,
    /// Bytes that are late.
    kept: Option<Bytes>,
}

impl ReceiveHalf for WiredReceive {
    fn poll_read(&mut self, cx: &mut Context<'_>, bytes_max: usize) -> Poll<Result<Option<Bytes>, TransportError>> {
        let wire = Arc::clone(&self.passage.wire);
        if wire.ordeal.is_dead() {
            return Poll::Pending;
        }
        let mut late = Duration::ZERO;
        // The session comes for more: what it was given has its place in the stream.
        for _ in 0..std::mem::take(&mut self.given) {
            if wire.strike(Step::AfterAccept, &self.passage.connection, &mut late) {
                return if wire.ordeal.is_dead() { Poll::Pending } else { Poll::Ready(Err(Passage::lost())) };
            }
        }
        if self.kept.is_none() {
            let read = std::task::ready!(self.inner.poll_read(cx, bytes_max))?;
            let Some(bytes) = read else { return Poll::Ready(Ok(None)) };
            let mut requests = 0;
            let witness = Arc::clone(&wire.witness);
            self.passage.see(&bytes, |session, kind, body| {
                requests += usize::from(kind == FrameKind::Publish);
                witness.request(session, kind, body);
            });
            for _ in 0..requests {
                if wire.strike(Step::BeforeAccept, &self.passage.connection, &mut late) {
                    return if wire.ordeal.is_dead() { Poll::Pending } else { Poll::Ready(Err(Passage::lost())) };
                }
            }
            self.given = requests;
            self.kept = Some(bytes);
            self.passage.is_late_by(late, |_| Duration::ZERO);
        }
        std::task::ready!(self.passage.poll_late(cx));
        // Less may be asked for by now, but never less than a header.
        let bytes = self.kept.take().map(|mut bytes| {
            let now = bytes.split_to(bytes.len().min(bytes_max));
            self.kept = Some(bytes).filter(|rest| rest.has_remaining());
            now
        });
        Poll::Ready(Ok(bytes))
    }

    fn stop(&mut self, code: u32) {
        self.inner.stop(code);
    }
}

struct WiredSend {
    inner: Box<dyn SendHalf>,
    passage: Passage,
    headers: Headers,
    /// What is to be written was looked at, and nothing of it has left yet.
    is_looked_at: bool,
}

/// Where frames begin in what is sent.
#[derive(Debug, Clone, Default)]
struct Headers {
    /// The bytes of an unfinished header.
    header: Vec<u8>,
    /// Bytes of the present frame's body that are still to come.
    body_left: usize,
}

impl Headers {
    /// Goes on behind `bytes`, and tells the frames whose headers end within them.
    fn pass(&mut self, mut bytes: &[u8], mut frame: impl FnMut(FrameKind)) {
        while !bytes.is_empty() {
            if self.body_left > 0 {
                let part = self.body_left.min(bytes.len());
                self.body_left -= part;
                bytes.advance(part);
                continue;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(FRAME_HEADER_LEN - self.header.len()));
            self.header.extend_from_slice(now);
            bytes = rest;
            if self.header.len() == FRAME_HEADER_LEN {
                let mut header = self.header.as_slice();
                self.body_left = header.get_u32_le() as usize;
                FrameKind::from_number(header.get_u8()).into_iter().for_each(&mut frame);
                self.header.clear();
            }
        }
    }
}

impl WiredSend {
    /// Looks at what is about to leave; `false` if it does not.
    fn look(&mut self, chunks: &[Bytes]) -> bool {
        let (mut has_answers, mut has_records) = (false, false);
        let mut headers = self.headers.clone();
        for chunk in chunks {
            headers.pass(chunk, |kind| {
                has_answers |= kind == FrameKind::Answers;
                has_records |= kind == FrameKind::Deliver;
            });
        }
        let mut late = Duration::ZERO;
        if has_answers && self.passage.wire.strike(Step::BeforeAnswer, &self.passage.connection, &mut late) {
            return false;
        }
        self.passage.is_late_by(late, move |standing| {
            let answers = if has_answers { standing.answers_late } else { Duration::ZERO };
            answers + if has_records { standing.deliveries_late } else { Duration::ZERO }
        });
        true
    }
}

impl SendHalf for WiredSend {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, TransportError>> {
        let wire = Arc::clone(&self.passage.wire);
        if wire.ordeal.is_dead() {
            return Poll::Pending;
        }
        if self.passage.frames.is_some() && !std::mem::replace(&mut self.is_looked_at, true) && !self.look(chunks) {
            return if wire.ordeal.is_dead() { Poll::Pending } else { Poll::Ready(Err(Passage::lost())) };
        }
        std::task::ready!(self.passage.poll_late(cx));
        if wire.ordeal.is_dead() {
            return Poll::Pending;
        }
        let before = chunks.to_vec();
        let written = std::task::ready!(self.inner.poll_write(cx, chunks))?;
        self.is_looked_at = false;
        let mut answers = 0;
        let mut left = written;
        for chunk in before {
            let taken = chunk.get(..chunk.len().min(left)).unwrap_or_default();
            left -= taken.len();
            self.headers.pass(taken, |_| {});
            let witness = Arc::clone(&wire.witness);
            self.passage.see(taken, |session, kind, body| {
                answers += usize::from(kind == FrameKind::Answers);
                witness.answer(session, kind, body);
            });
        }
        for _ in 0..answers {
            let mut too_late = Duration::ZERO;
            wire.strike(Step::AfterAnswer, &self.passage.connection, &mut too_late);
        }
        Poll::Ready(Ok(written))
    }

    fn finish(&mut self) {
        self.inner.finish();
    }

    fn reset(&mut self, code: u32) {
        self.inner.reset(code);
    }
}
