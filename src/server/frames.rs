//! The frames of one QUIC stream, and how it ends.

use bytes::{Bytes, BytesMut};
use tidelog_protocol::{
    CloseCode, ErrorCode, Frame, FrameDecoder, FrameKind, ReceiveHalf, SendHalf, TransportError, WireError,
    encode_json_frame, read, write_all,
};

use crate::engine::Engine;

/// One read takes at most this many bytes from the transport.
pub(crate) const READ_BYTES: usize = 256 * 1_024;
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
pub(crate) struct FrameReader {
    receive: Box<dyn ReceiveHalf>,
    decoder: FrameDecoder,
}

impl FrameReader {
    pub(crate) fn new(receive: Box<dyn ReceiveHalf>, engine: &Engine) -> Self {
        Self { receive, decoder: FrameDecoder::new(engine.limits.clone()) }
    }

    /// The next frame, or `None` when the peer has finished. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, SessionEnd> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            match read(self.receive.as_mut(), READ_BYTES).await? {
                Some(chunk) => self.decoder.push(&chunk),
                None if self.decoder.buffered() == 0 => return Ok(None),
                None => return Err(SessionEnd::failure(ErrorCode::Malformed, "the QUIC stream ends inside a frame")),
            }
        }
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
