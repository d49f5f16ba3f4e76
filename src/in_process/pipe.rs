//! One direction of a QUIC stream: a bounded queue of bytes, some of them still on the way.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tidelog_protocol::{ReceiveHalf, SendHalf, TransportError};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep_until};

use super::conditions::{Fate, Passage, Side};
use super::line::Line;

/// See the module's documentation.
pub(super) struct Pipe {
    quic_stream: u64,
    toward: Side,
    window_bytes: usize,
    state: Mutex<PipeState>,
}

#[derive(Default)]
struct PipeState {
    chunks: VecDeque<Chunk>,
    /// Bytes that were taken from the writer and not read yet.
    held_bytes: usize,
    /// When the last bytes arrive: later ones never do so earlier.
    last_due: Option<Instant>,
    is_finished: bool,
    reset: Option<u32>,
    stopped: Option<u32>,
    /// What is written from here on leaves the writer and arrives nowhere.
    is_severed: bool,
    lost_for_writer: Option<TransportError>,
    lost_for_reader: Option<TransportError>,
    writer: Option<Waker>,
    reader: Option<Waker>,
}

struct Chunk {
    bytes: Bytes,
    /// When it arrives; `None` if it is there.
    due: Option<Instant>,
}

impl Pipe {
    pub(super) fn new(quic_stream: u64, toward: Side, window_bytes: usize, is_severed: bool) -> Self {
        let state = PipeState { is_severed, ..PipeState::default() };
        Self { quic_stream, toward, window_bytes, state: Mutex::new(state) }
    }

    pub(super) const fn toward(&self) -> Side {
        self.toward
    }

    /// Nothing leaves any more; what has left arrives if `lands`.
    pub(super) fn sever(&self, lands: bool) {
        let mut state = self.lock();
        state.is_severed = true;
        if !lands {
            state.drop_late();
        }
    }

    /// One side knows that the connection is over.
    pub(super) fn lose(&self, side: Side, error: &TransportError) {
        let mut state = self.lock();
        if side == self.toward {
            state.drop_late();
            state.lost_for_reader.get_or_insert_with(|| error.clone());
        } else {
            state.lost_for_writer.get_or_insert_with(|| error.clone());
        }
        state.wake();
    }

    fn lock(&self) -> MutexGuard<'_, PipeState> {
        // Every state in it is a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PipeState {
    fn wake(&mut self) {
        [self.reader.take(), self.writer.take()].into_iter().flatten().for_each(Waker::wake);
    }

    /// Loses what is still on the way.
    fn drop_late(&mut self) {
        if self.chunks.iter().any(|chunk| chunk.due.is_some()) {
            let now = Instant::now();
            self.chunks.retain(|chunk| chunk.due.is_none_or(|due| due <= now));
        }
    }

    /// Takes up to `taken` bytes out of `chunks`, of which the first `kept` are put on their way.
    fn take(&mut self, chunks: &mut [Bytes], taken: usize, kept: usize, due: Option<Instant>) {
        let (mut taken, mut kept) = (taken, kept);
        for chunk in chunks {
            let mut bytes = chunk.split_to(chunk.len().min(taken));
            taken -= bytes.len();
            self.held_bytes += bytes.len();
            bytes.truncate(kept);
            kept -= bytes.len();
            if !bytes.is_empty() {
                self.chunks.push_back(Chunk { bytes, due });
            }
        }
    }
}

/// The writer's end. Dropped unfinished it finishes, as quinn's does.
pub(super) struct SendEnd {
    pipe: Arc<Pipe>,
    line: Arc<Line>,
    _slot: Option<Arc<OwnedSemaphorePermit>>,
}

impl SendEnd {
    pub(super) const fn new(pipe: Arc<Pipe>, line: Arc<Line>, slot: Option<Arc<OwnedSemaphorePermit>>) -> Self {
        Self { pipe, line, _slot: slot }
    }

    /// How many bytes may be taken of `total`, and whether they go anywhere.
    fn poll_room(&self, cx: &mut Context<'_>, total: usize) -> Poll<Result<(usize, bool), TransportError>> {
        let mut state = self.pipe.lock();
        if let Some(error) = &state.lost_for_writer {
            return Poll::Ready(Err(error.clone()));
        }
        if let Some(code) = state.stopped {
            return Poll::Ready(Err(TransportError::Stopped { code }));
        }
        if state.is_finished || state.reset.is_some() {
            return Poll::Ready(Err(TransportError::Lost("this QUIC stream was ended by this side".to_owned())));
        }
        let room = self.pipe.window_bytes - state.held_bytes;
        if room == 0 && total > 0 {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok((room.min(total), state.is_severed)))
    }
}

impl SendHalf for SendEnd {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, TransportError>> {
        let total = chunks.iter().map(Bytes::len).sum();
        let (taken, is_severed) = std::task::ready!(self.poll_room(cx, total))?;
        if taken == 0 {
            return Poll::Ready(Ok(0));
        }
        if is_severed {
            self.pipe.lock().take(chunks, taken, 0, None);
            return Poll::Ready(Ok(taken));
        }
        let pipe = &self.pipe;
        let (quic_stream, toward) = (pipe.quic_stream, pipe.toward);
        // Asked without a lock held: a break locks every pipe of the line.
        let passage = Passage { connection: self.line.number(), quic_stream, toward, bytes: taken };
        let (after, kept, cut) = match self.line.conditions.send(&passage) {
            Fate::Arrives { after } => (after, taken, None),
            Fate::Breaks { kept_bytes, cut } => (Duration::ZERO, kept_bytes.min(taken), Some(cut)),
        };
        let mut state = pipe.lock();
        let due = (!after.is_zero()).then(|| Instant::now() + after).max(state.last_due);
        state.last_due = due;
        state.take(chunks, taken, kept, due);
        if due.is_none() || state.chunks.len() == 1 {
            state.reader.take().into_iter().for_each(Waker::wake);
        }
        drop(state);
        if let Some(cut) = cut {
            self.line.cut(&cut, "the connection broke");
        }
        Poll::Ready(Ok(taken))
    }

    fn finish(&mut self) {
        let mut state = self.pipe.lock();
        if !state.is_severed {
            state.is_finished = true;
            state.wake();
        }
    }

    fn reset(&mut self, code: u32) {
        let mut state = self.pipe.lock();
        if !state.is_severed && !state.is_finished {
            state.reset.get_or_insert(code);
            state.chunks.clear();
            state.wake();
        }
    }
}

impl Drop for SendEnd {
    fn drop(&mut self) {
        if self.pipe.lock().reset.is_none() {
            self.finish();
        }
    }
}

/// The reader's end. Dropped it stops the writer, as quinn's does.
pub(super) struct ReceiveEnd {
    pipe: Arc<Pipe>,
    /// Runs while the next bytes are on their way.
    arrival: Option<Pin<Box<Sleep>>>,
    _slot: Option<Arc<OwnedSemaphorePermit>>,
}

impl ReceiveEnd {
    pub(super) const fn new(pipe: Arc<Pipe>, slot: Option<Arc<OwnedSemaphorePermit>>) -> Self {
        Self { pipe, arrival: None, _slot: slot }
    }

    /// Whether bytes that are due then are there.
    fn poll_arrival(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        match &mut self.arrival {
            Some(arrival) if arrival.deadline() == due => arrival.as_mut().poll(cx),
            Some(arrival) => {
                arrival.as_mut().reset(due);
                arrival.as_mut().poll(cx)
            }
            None => self.arrival.insert(Box::pin(sleep_until(due))).as_mut().poll(cx),
        }
    }
}

impl ReceiveHalf for ReceiveEnd {
    fn poll_read(&mut self, cx: &mut Context<'_>, bytes_max: usize) -> Poll<Result<Option<Bytes>, TransportError>> {
        let pipe = Arc::clone(&self.pipe);
        let mut state = pipe.lock();
        if let Some(code) = state.reset {
            return Poll::Ready(Err(TransportError::Reset { code }));
        }
        state.reader = Some(cx.waker().clone());
        // What has arrived can be read after the connection is gone, as with QUIC.
        if let Some(due) = state.chunks.front().and_then(|chunk| chunk.due)
            && self.poll_arrival(cx, due).is_pending()
        {
            return Poll::Pending;
        }
        if let Some(chunk) = state.chunks.front_mut() {
            let bytes = chunk.bytes.split_to(chunk.bytes.len().min(bytes_max));
            if chunk.bytes.is_empty() {
                state.chunks.pop_front();
            }
            state.held_bytes -= bytes.len();
            state.writer.take().into_iter().for_each(Waker::wake);
            return Poll::Ready(Ok(Some(bytes)));
        }
        if state.is_finished {
            return Poll::Ready(Ok(None));
        }
        if let Some(error) = &state.lost_for_reader {
            return Poll::Ready(Err(error.clone()));
        }
        Poll::Pending
    }

    fn stop(&mut self, code: u32) {
        let mut state = self.pipe.lock();
        if !state.is_severed && !state.is_finished {
            state.stopped.get_or_insert(code);
            state.chunks.clear();
            state.held_bytes = 0;
            state.wake();
        }
    }
}

impl Drop for ReceiveEnd {
    fn drop(&mut self) {
        self.stop(0);
    }
}
