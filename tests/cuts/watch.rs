//! A connector that tells which protocol step a client is at: it reads along, frame by frame, what the client writes into
//! QUIC and takes out of it, before the first packet of it leaves and before the answer to it is acted upon.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tidelog_client::QuicConnector;
use tidelog_protocol::{
    BoxFuture, CloseCode, Connection, Connector, Duplex, Frame, FrameDecoder, FrameKind, Limits, ReceiveHalf,
    RequestFrame, SendHalf, TransportError,
};

/// Where the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// It is about to connect.
    Connecting,
    /// It has handed a frame to QUIC, of which nothing has left yet; a request with its name.
    Sent(FrameKind, &'static str),
    /// It wants to send and has no credit.
    Blocked,
    /// It was given a frame.
    Received(FrameKind),
    /// It is about to close the connection.
    Closing,
}

/// Who is told. Called from within the client, on its thread.
#[derive(Clone)]
pub struct Watch(Arc<Mutex<dyn FnMut(Moment) + Send>>);

impl Watch {
    pub fn new(tell: impl FnMut(Moment) + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(tell)))
    }

    fn tell(&self, moment: Moment) {
        let mut tell = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (*tell)(moment);
    }
}

/// See the module's documentation.
pub struct WatchedConnector {
    inner: QuicConnector,
    watch: Watch,
}

impl WatchedConnector {
    pub fn new(inner: QuicConnector, watch: Watch) -> Self {
        Self { inner, watch }
    }
}

impl Connector for WatchedConnector {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Connection>, TransportError>> {
        Box::pin(async {
            self.watch.tell(Moment::Connecting);
            let inner = self.inner.connect().await?;
            Ok(Arc::new(Watched { inner, watch: self.watch.clone() }) as Arc<dyn Connection>)
        })
    }
}

struct Watched<Inner> {
    inner: Inner,
    watch: Watch,
}

impl Connection for Watched<Arc<dyn Connection>> {
    fn open(&self) -> BoxFuture<'_, Result<Duplex, TransportError>> {
        Box::pin(async {
            let Duplex { send, receive } = self.inner.open().await?;
            let (sent, received) = (self.watch.clone(), self.watch.clone());
            Ok(Duplex {
                send: Box::new(WatchedHalf { inner: send, frames: decoder(), watch: sent }),
                receive: Box::new(WatchedHalf { inner: receive, frames: decoder(), watch: received }),
            })
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Duplex, TransportError>> {
        self.inner.accept()
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.watch.tell(Moment::Closing);
        self.inner.close(code, reason);
    }

    fn closed(&self) -> BoxFuture<'_, TransportError> {
        self.inner.closed()
    }

    fn remote(&self) -> String {
        self.inner.remote()
    }
}

struct WatchedHalf<Inner: ?Sized> {
    frames: FrameDecoder,
    watch: Watch,
    inner: Box<Inner>,
}

fn decoder() -> FrameDecoder {
    FrameDecoder::new(Limits::default())
}

impl<Inner: ?Sized> WatchedHalf<Inner> {
    fn tell(&mut self, bytes: &[u8], moment: impl Fn(&Frame) -> Moment) {
        self.frames.push(bytes);
        while let Some(frame) = self.frames.next_frame().expect("neither side breaks the protocol") {
            self.watch.tell(moment(&frame));
        }
    }
}

impl SendHalf for WatchedHalf<dyn SendHalf> {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, TransportError>> {
        let offered = chunks.to_vec();
        let written = self.inner.poll_write(cx, chunks);
        match &written {
            Poll::Ready(Ok(written)) => {
                let mut left = *written;
                for chunk in offered {
                    let taken = chunk.slice(..chunk.len().min(left));
                    left -= taken.len();
                    self.tell(&taken, |frame| {
                        let is_request = frame.kind == FrameKind::Request;
                        let request = is_request.then(|| RequestFrame::decode(&frame.body));
                        let op =
                            request.map_or("", |request| request.expect("a client knows its requests").request.op());
                        Moment::Sent(frame.kind, op)
                    });
                }
            }
            Poll::Pending => self.watch.tell(Moment::Blocked),
            Poll::Ready(Err(_)) => {}
        }
        written
    }

    fn finish(&mut self) {
        self.inner.finish();
    }

    fn reset(&mut self, code: u32) {
        self.inner.reset(code);
    }
}

impl ReceiveHalf for WatchedHalf<dyn ReceiveHalf> {
    fn poll_read(&mut self, cx: &mut Context<'_>, bytes_max: usize) -> Poll<Result<Option<Bytes>, TransportError>> {
        let read = self.inner.poll_read(cx, bytes_max);
        if let Poll::Ready(Ok(Some(bytes))) = &read {
            self.tell(bytes, |frame| Moment::Received(frame.kind));
        }
        read
    }

    fn stop(&mut self, code: u32) {
        self.inner.stop(code);
    }
}
