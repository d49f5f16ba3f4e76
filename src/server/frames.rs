//! The frames of one QUIC stream, and how it ends.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidelog_protocol::{
    CloseCode, ErrorCode, Frame, FrameDecoder, FrameKind, ReceiveHalf, SendHalf, TransportError, WireError,
    encode_json_frame, write_all,
};
use tokio::time::{Instant, timeout_at};

use crate::engine::Engine;
use crate::server::allowance::{Allowance, FrameShare};

/// One read takes at most this many bytes from the transport, unless a longer frame is due.
const READ_BYTES: usize = 16 * 1_024;
/// Frames up to this many bytes are part of what their QUIC stream counts for.
const SMALL_FRAME_BYTES: usize = 4 * 1_024;
/// A frame that was given memory and is not finished after this long is given up if somebody waits for memory.
const FRAME_TIMEOUT: Duration = Duration::from_secs(5);
/// And looked at again after this long if nobody does.
const FRAME_TIMEOUT_AGAIN: Duration = Duration::from_secs(1);

/// Why a QUIC stream or a connection ends early.
#[derive(Debug)]
pub(crate) enum SessionEnd {
    /// The peer broke the protocol, or was refused: it is told so.
    Failure(WireError),
    /// The transport is gone.
    Transport(TransportError),
}

impl From<TransportError> for SessionEnd {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

impl SessionEnd {
    pub(crate) fn failure(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Failure(WireError::new(code, message))
    }
}

impl From<tidelog_protocol::FrameError> for SessionEnd {
    fn from(error: tidelog_protocol::FrameError) -> Self {
        Self::Failure(WireError::new(error.code(), error.to_string()))
    }
}

/// The frames of one QUIC stream.
///
/// A length is read, checked, and paid for from the common budget before what it announces is read.
pub(crate) struct FrameReader {
    receive: Box<dyn ReceiveHalf>,
    decoder: FrameDecoder,
    /// Of the connection.
    allowance: Rc<Allowance>,
    paid: Option<Paid>,
    reads: u64,
}

/// Memory for the frame that is being read, or that whoever asked for it is still busy with.
struct Paid {
    share: FrameShare,
    /// By then it is finished, or it may be given up.
    deadline: Instant,
}

impl FrameReader {
    pub(crate) fn new(receive: Box<dyn ReceiveHalf>, engine: &Engine, allowance: &Rc<Allowance>) -> Self {
        let decoder = FrameDecoder::new(engine.limits.clone());
        Self { receive, decoder, allowance: Rc::clone(allowance), paid: None, reads: 0 }
    }

    /// The next frame, or `None` when the peer has finished. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, SessionEnd> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            self.pay().await;
            let due = self.decoder.frame_len().saturating_sub(self.decoder.buffered());
            match self.read(READ_BYTES.max(due)).await? {
                Some(chunk) => {
                    self.reads += 1;
                    self.decoder.push(&chunk);
                    self.allowance.received(chunk.len());
                }
                None if self.decoder.buffered() == 0 => return Ok(None),
                None => return Err(SessionEnd::failure(ErrorCode::Malformed, "the QUIC stream ends inside a frame")),
            }
        }
    }

    /// How often bytes were read: frames between which it does not change were received at the same time.
    pub(crate) const fn reads(&self) -> u64 {
        self.reads
    }

    /// Takes memory for the frame whose header is there. Meanwhile nothing is read, so flow control stops the sender.
    async fn pay(&mut self) {
        let len = self.decoder.frame_len();
        if len <= SMALL_FRAME_BYTES {
            return;
        }
        // A frame is far below 4 GiB, since its length was checked.
        let len = len as u32;
        if self.paid.as_ref().is_none_or(|paid| paid.share.bytes() < len) {
            // Not on top of what the one before needed: two that hold a part and wait for the rest would wait for ever.
            self.paid = None;
            let share = self.allowance.frame(len).await;
            self.paid = Some(Paid { share, deadline: Instant::now() + FRAME_TIMEOUT });
        }
    }

    /// Reads, and gives back what the frames before needed as soon as it has to wait.
    async fn read(&mut self, bytes_max: usize) -> Result<Option<Bytes>, SessionEnd> {
        loop {
            let Self { receive, decoder, paid, .. } = self;
            let deadline = paid.as_ref().filter(|_| decoder.buffered() > 0).map(|paid| paid.deadline);
            let reading = poll_fn(|cx| {
                let read = receive.poll_read(cx, bytes_max);
                if read.is_pending() && decoder.buffered() == 0 {
                    decoder.release();
                    *paid = None;
                }
                read
            });
            let read = match deadline {
                Some(deadline) => match timeout_at(deadline, reading).await {
                    Ok(read) => read,
                    Err(_) => {
                        self.judge_slowness()?;
                        continue;
                    }
                },
                None => reading.await,
            };
            return Ok(read?);
        }
    }

    /// A frame that takes long is in nobody's way as long as nobody waits for memory.
    fn judge_slowness(&mut self) -> Result<(), SessionEnd> {
        let Some(paid) = &mut self.paid else { return Ok(()) };
        if self.allowance.budget().is_short() {
            self.allowance.peers().counters.frames_given_up.add(1);
            let message = format!("a frame was not finished within {FRAME_TIMEOUT:?} while others waited for memory");
            return Err(SessionEnd::failure(ErrorCode::TimedOut, message));
        }
        paid.deadline = Instant::now() + FRAME_TIMEOUT_AGAIN;
        Ok(())
    }

    /// The bytes behind the frames so far, as they come: nothing is a frame any more.
    ///
    /// # Errors
    ///
    /// If the peer has sent some before it was told that it may.
    pub(crate) fn raw(&mut self) -> Result<&mut dyn ReceiveHalf, SessionEnd> {
        if self.decoder.buffered() > 0 {
            let message = "bytes came before the answer to the request in front of them";
            return Err(SessionEnd::failure(ErrorCode::Malformed, message));
        }
        self.decoder.release();
        self.paid = None;
        Ok(self.receive.as_mut())
    }

    /// Waits until the peer gives the QUIC stream up; whatever it sends until then is a violation.
    pub(crate) async fn ended(&mut self) -> SessionEnd {
        match self.next().await {
            Ok(None) => std::future::pending().await,
            Ok(Some(frame)) => {
                SessionEnd::failure(ErrorCode::Malformed, format!("a frame {:?} has no place here", frame.kind))
            }
            Err(end) => end,
        }
    }

    pub(crate) fn stop(&mut self) {
        self.receive.stop(CloseCode::Done.number());
    }
}

/// Encodes one JSON frame.
pub(crate) fn json_frame(kind: FrameKind, body: &impl serde::Serialize) -> Bytes {
    let mut out = BytesMut::new();
    // Plain data below the limit: lists are cut to pages that fit.
    if let Err(error) = encode_json_frame(kind, body, &mut out) {
        tracing::error!("a frame {kind:?} could not be encoded: {error}");
    }
    out.freeze()
}

/// Writes one JSON frame.
pub(crate) async fn write_json(
    send: &mut dyn SendHalf,
    kind: FrameKind,
    body: &impl serde::Serialize,
) -> Result<(), TransportError> {
    write_all(send, &mut [json_frame(kind, body)]).await
}

/// Tells the peer why its QUIC stream ends, as far as it still listens.
pub(crate) async fn write_failure(send: &mut dyn SendHalf, end: SessionEnd) {
    match end {
        SessionEnd::Failure(failure) => {
            tracing::debug!("a QUIC stream ends: {}", failure.message);
            // Whoever is told may be gone.
            let _ = write_json(send, FrameKind::Failure, &failure).await;
            send.finish();
        }
        SessionEnd::Transport(error) => tracing::debug!("a QUIC stream is gone: {error}"),
    }
}
