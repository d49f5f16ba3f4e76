//! The seam between sessions and what carries their bytes: QUIC on a network, or memory within a process.
//!
//! Traits only; this crate does no I/O. A connection has many bidirectional QUIC streams; each is two halves that are
//! polled, so that a session can wait for several things at once.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use crate::error::CloseCode;

/// A future behind a pointer, as trait objects return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The sending half of a QUIC stream.
pub trait SendHalf: Send {
    /// Takes as much of `chunks` as flow control allows, at least one byte unless all are empty, and gives the number of
    /// bytes taken. A chunk taken whole is left empty, one taken in part is advanced.
    ///
    /// # Errors
    /// [`TransportError`] if the other side wants no more, or the connection is gone.
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, TransportError>>;

    /// Ends the QUIC stream behind what was written; the other side reads all of it.
    fn finish(&mut self);

    /// Ends the QUIC stream at once; what the other side has not read may be lost.
    fn reset(&mut self, code: u32);
}

/// The receiving half of a QUIC stream.
pub trait ReceiveHalf: Send {
    /// The next bytes, at most `bytes_max` and at least one, or `None` when the other side has finished.
    ///
    /// # Errors
    /// [`TransportError`] if the other side reset the QUIC stream, or the connection is gone.
    fn poll_read(&mut self, cx: &mut Context<'_>, bytes_max: usize) -> Poll<Result<Option<Bytes>, TransportError>>;

    /// Tells the other side to send no more.
    fn stop(&mut self, code: u32);
}

/// A bidirectional QUIC stream.
pub struct Duplex {
    /// What this side says.
    pub send: Box<dyn SendHalf>,
    /// What the other side says.
    pub receive: Box<dyn ReceiveHalf>,
}

impl std::fmt::Debug for Duplex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Duplex").finish_non_exhaustive()
    }
}

/// A connection between a client and a broker.
pub trait Connection: Send + Sync {
    /// Opens a QUIC stream; waits while the other side allows no more of them.
    fn open(&self) -> BoxFuture<'_, Result<Duplex, TransportError>>;

    /// Waits for a QUIC stream that the other side opens.
    fn accept(&self) -> BoxFuture<'_, Result<Duplex, TransportError>>;

    /// Closes the connection at once, with all its QUIC streams.
    fn close(&self, code: CloseCode, reason: &str);

    /// Waits until the connection is closed, and tells why.
    fn closed(&self) -> BoxFuture<'_, TransportError>;

    /// The other side's address, for logs.
    fn remote(&self) -> String;

    /// Changes how many bytes the other side may send ahead of being read, over all QUIC streams of this connection. A
    /// transport without such a window has nothing to do.
    fn set_receive_window(&self, bytes: u32) {
        let _ = bytes;
    }

    /// Changes how many bytes may be sent ahead of being acknowledged, likewise.
    fn set_send_window(&self, bytes: u32) {
        let _ = bytes;
    }
}

/// Makes connections to one broker.
pub trait Connector: Send + Sync {
    /// Connects once, without retries.
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Connection>, TransportError>>;
}

/// Why bytes do not get through.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The other side closed the connection.
    #[error("the other side closed the connection (code {code}): {reason}")]
    Closed {
        /// A [`CloseCode`], if this version knows it.
        code: u32,
        /// What the other side said.
        reason: String,
    },
    /// The other side gave up sending on this QUIC stream.
    #[error("the other side reset the QUIC stream (code {code})")]
    Reset {
        /// A [`CloseCode`], if this version knows it.
        code: u32,
    },
    /// The other side wants no more of this QUIC stream.
    #[error("the other side stopped the QUIC stream (code {code})")]
    Stopped {
        /// A [`CloseCode`], if this version knows it.
        code: u32,
    },
    /// The connection broke; what was under way may or may not have arrived.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// Nobody answers.
    #[error("the broker can't be reached: {0}")]
    Unreachable(String),
    /// Who answers is not who was expected.
    #[error("the broker is not trusted: {0}")]
    Untrusted(String),
    /// Who answers speaks something else.
    #[error("what listens there does not speak this protocol: {0}")]
    ForeignProtocol(String),
}

/// Writes all of `chunks`, which are empty afterwards. Cancel safe: what was taken is gone from `chunks`, so calling it
/// again goes on.
///
/// # Errors
/// Those of [`SendHalf::poll_write`].
pub async fn write_all(send: &mut dyn SendHalf, chunks: &mut [Bytes]) -> Result<(), TransportError> {
    // Where the chunks start that are not written yet, so that a long list is walked once.
    let mut start = 0;
    poll_fn(|cx| {
        loop {
            let left = chunks.get_mut(start..).unwrap_or_default();
            let written = left.iter().take_while(|chunk| chunk.is_empty()).count();
            start += written;
            let Some(left) = left.get_mut(written..).filter(|left| !left.is_empty()) else {
                return Poll::Ready(Ok(()));
            };
            if ready!(send.poll_write(cx, left))? == 0 {
                // Neither progress nor a wake-up to come: going on would spin.
                return Poll::Ready(Err(TransportError::Lost("the transport takes no bytes".to_owned())));
            }
        }
    })
    .await
}

/// The next bytes, at most `bytes_max`, or `None` when the other side has finished. Cancel safe.
///
/// # Errors
/// Those of [`ReceiveHalf::poll_read`].
pub async fn read(receive: &mut dyn ReceiveHalf, bytes_max: usize) -> Result<Option<Bytes>, TransportError> {
    poll_fn(|cx| receive.poll_read(cx, bytes_max)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::Waker;

    /// Takes at most `room` bytes a write and every other time none yet.
    struct Narrow {
        room: usize,
        waits: bool,
        taken: Vec<u8>,
    }

    impl SendHalf for Narrow {
        fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, TransportError>> {
            self.waits = !self.waits;
            if self.waits {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut written = 0;
            for chunk in chunks {
                let part = chunk.split_to(chunk.len().min(self.room - written));
                self.taken.extend_from_slice(&part);
                written += part.len();
            }
            Poll::Ready(Ok(written))
        }

        fn finish(&mut self) {}

        fn reset(&mut self, _code: u32) {}
    }

    fn run(send: &mut Narrow, chunks: &mut [Bytes]) -> Result<(), TransportError> {
        let mut writing = pin!(write_all(send, chunks));
        for _ in 0..100 {
            if let Poll::Ready(result) = writing.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return result;
            }
        }
        panic!("writing does not end");
    }

    #[test]
    fn everything_is_written_in_order_through_a_narrow_transport() {
        for room in 1..12 {
            let mut send = Narrow { room, waits: false, taken: Vec::new() };
            let mut chunks = ["", "abc", "", "d", "efghi", ""].map(Bytes::from);
            assert_eq!(run(&mut send, &mut chunks), Ok(()));
            assert_eq!(send.taken, b"abcdefghi");
            assert!(chunks.iter().all(Bytes::is_empty));
        }
    }

    #[test]
    fn a_transport_that_takes_nothing_is_given_up() {
        let mut send = Narrow { room: 0, waits: false, taken: Vec::new() };
        assert!(matches!(run(&mut send, &mut [Bytes::from("a")]), Err(TransportError::Lost(_))));
    }
}
