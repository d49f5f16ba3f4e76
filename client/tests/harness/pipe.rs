//! Connections in memory: pairs of ends with QUIC streams made of two pipes each.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use tidelog_protocol::{BoxFuture, CloseCode, Connection, Duplex, ReceiveHalf, SendHalf, TransportError};
use tokio::sync::{mpsc, watch};

/// One end of a connection in memory.
pub struct MemoryConnection {
    shared: Arc<SharedConnection>,
    /// 0 or 1.
    side: usize,
    opened: mpsc::UnboundedSender<Duplex>,
    accepted: tokio::sync::Mutex<mpsc::UnboundedReceiver<Duplex>>,
}

struct SharedConnection {
    /// Why it ended, for each side.
    ended: watch::Sender<Option<[TransportError; 2]>>,
    pipes: Mutex<Vec<Arc<Pipe>>>,
}

impl MemoryConnection {
    pub fn pair() -> (Arc<Self>, Arc<Self>) {
        let shared = Arc::new(SharedConnection { ended: watch::Sender::new(None), pipes: Mutex::default() });
        let (to_second, at_second) = mpsc::unbounded_channel();
        let (to_first, at_first) = mpsc::unbounded_channel();
        let end = |side, opened, accepted| {
            let accepted = tokio::sync::Mutex::new(accepted);
            Arc::new(Self { shared: Arc::clone(&shared), side, opened, accepted })
        };
        (end(0, to_second, at_first), end(1, to_first, at_second))
    }

    /// Ends it for both sides as a broken network does.
    pub fn cut(&self, reason: &str) {
        self.end([TransportError::Lost(reason.into()), TransportError::Lost(reason.into())]);
    }

    fn end(&self, errors: [TransportError; 2]) {
        let first = self.shared.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert_with(|| errors.clone());
            first
        });
        if first {
            for pipe in self.shared.pipes.lock().unwrap().drain(..) {
                let mut state = pipe.lock();
                state.lost = Some(errors.clone());
                state.wake();
            }
        }
    }

    fn error(&self) -> Option<TransportError> {
        self.shared.ended.borrow().as_ref().map(|errors| errors[self.side].clone())
    }
}

impl Connection for MemoryConnection {
    fn open(&self) -> BoxFuture<'_, Result<Duplex, TransportError>> {
        Box::pin(async {
            if let Some(error) = self.error() {
                return Err(error);
            }
            let (up, down) = (Arc::<Pipe>::default(), Arc::<Pipe>::default());
            self.shared.pipes.lock().unwrap().extend([Arc::clone(&up), Arc::clone(&down)]);
            let end = |send: &Arc<Pipe>, receive: &Arc<Pipe>, side| Duplex {
                send: Box::new(PipeEnd { pipe: Arc::clone(send), side }),
                receive: Box::new(PipeEnd { pipe: Arc::clone(receive), side }),
            };
            let _ = self.opened.send(end(&down, &up, 1 - self.side));
            Ok(end(&up, &down, self.side))
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Duplex, TransportError>> {
        Box::pin(async {
            let mut accepted = self.accepted.lock().await;
            tokio::select! {
                biased;
                error = self.closed() => Err(error),
                duplex = accepted.recv() => duplex.ok_or_else(|| TransportError::Lost("dropped".into())),
            }
        })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        let ours = TransportError::Lost("closed by this side".into());
        let theirs = TransportError::Closed { code: code as u32, reason: reason.into() };
        self.end(if self.side == 0 { [ours, theirs] } else { [theirs, ours] });
    }

    fn closed(&self) -> BoxFuture<'_, TransportError> {
        Box::pin(async {
            let mut ended = self.shared.ended.subscribe();
            let ended = ended.wait_for(Option::is_some).await.unwrap();
            ended.as_ref().unwrap()[self.side].clone()
        })
    }

    fn remote(&self) -> String {
        "memory".into()
    }
}

impl Drop for MemoryConnection {
    fn drop(&mut self) {
        self.close(CloseCode::Done, "dropped");
    }
}

#[derive(Default)]
struct Pipe {
    state: Mutex<PipeState>,
}

#[derive(Default)]
struct PipeState {
    chunks: VecDeque<Bytes>,
    finished: bool,
    reset: Option<u32>,
    stopped: Option<u32>,
    lost: Option<[TransportError; 2]>,
    reader: Option<Waker>,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, PipeState> {
        self.state.lock().unwrap()
    }
}

impl PipeState {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

struct PipeEnd {
    pipe: Arc<Pipe>,
    side: usize,
}

impl SendHalf for PipeEnd {
    fn poll_write(&mut self, _: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, TransportError>> {
        let mut state = self.pipe.lock();
        if let Some(lost) = &state.lost {
            return Poll::Ready(Err(lost[self.side].clone()));
        }
        if let Some(code) = state.stopped {
            return Poll::Ready(Err(TransportError::Stopped { code }));
        }
        // A little at a time, so that callers meet partly written chunks.
        let Some(chunk) = chunks.iter_mut().find(|chunk| !chunk.is_empty()) else { return Poll::Ready(Ok(0)) };
        let taken = chunk.split_to(chunk.len().min(1000));
        let written = taken.len();
        state.chunks.push_back(taken);
        state.wake();
        Poll::Ready(Ok(written))
    }

    fn finish(&mut self) {
        let mut state = self.pipe.lock();
        state.finished = true;
        state.wake();
    }

    fn reset(&mut self, code: u32) {
        let mut state = self.pipe.lock();
        state.reset.get_or_insert(code);
        state.wake();
    }
}

impl ReceiveHalf for PipeEnd {
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        bytes_max: usize,
    ) -> Poll<Result<Option<Bytes>, TransportError>> {
        let mut state = self.pipe.lock();
        // As QUIC does: what has arrived can still be read after the connection is gone, but not after a reset.
        if let Some(code) = state.reset {
            return Poll::Ready(Err(TransportError::Reset { code }));
        }
        if let Some(chunk) = state.chunks.front_mut() {
            let taken = chunk.split_to(chunk.len().min(bytes_max));
            if !chunk.has_remaining() {
                state.chunks.pop_front();
            }
            return Poll::Ready(Ok(Some(taken)));
        }
        if let Some(lost) = &state.lost {
            return Poll::Ready(Err(lost[self.side].clone()));
        }
        if state.finished {
            return Poll::Ready(Ok(None));
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }

    fn stop(&mut self, code: u32) {
        self.pipe.lock().stopped.get_or_insert(code);
    }
}
