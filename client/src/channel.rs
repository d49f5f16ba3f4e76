//! One QUIC stream as frames: JSON out, frames in.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tidelog_protocol::{
    CloseCode, Duplex, Frame, FrameDecoder, FrameKind, Limits, ReceiveHalf, Request, RequestFrame, Response,
    ResponseFrame, ResponseResult, SendHalf, WireError, decode_json, encode_json_frame, write_all,
};

use crate::error::Error;

/// Bytes asked of the transport at once; what it gives is usually one datagram's worth.
const READ_BYTES: usize = 64 * 1024;

/// A QUIC stream that carries frames both ways. The halves are fields so that both can be waited for at once.
///
/// Dropping it ends both directions at once: whoever needs what was sent to arrive waits for the answer to it.
pub(crate) struct Channel {
    pub(crate) outgoing: Box<dyn SendHalf>,
    pub(crate) incoming: Incoming,
}

/// The frames that the broker sends.
pub(crate) struct Incoming {
    receive: Box<dyn ReceiveHalf>,
    decoder: FrameDecoder,
}

impl Channel {
    pub(crate) fn new(duplex: Duplex, limits: Limits) -> Self {
        Self {
            outgoing: duplex.send,
            incoming: Incoming { receive: duplex.receive, decoder: FrameDecoder::new(limits) },
        }
    }

    /// Writes one JSON frame. Not cancel safe: a part of it may have been written.
    pub(crate) async fn write_json(&mut self, kind: FrameKind, body: &impl Serialize) -> Result<(), Error> {
        let frame = json_frame(kind, body)?;
        write_all(self.outgoing.as_mut(), &mut [frame]).await?;
        Ok(())
    }

    /// Sends the request that gives a new QUIC stream its purpose and waits for the answer.
    pub(crate) async fn begin(&mut self, request: Request) -> Result<Response, Error> {
        self.write_json(FrameKind::Request, &RequestFrame { id: 0, request }).await?;
        self.response().await
    }

    /// The answer to that request, and to one that has a second.
    pub(crate) async fn response(&mut self) -> Result<Response, Error> {
        let frame = self.incoming.next().await?;
        match frame.kind {
            FrameKind::Response => match decode_json::<ResponseFrame>(frame.kind, &frame.body)?.result {
                ResponseResult::Ok(response) => Ok(response),
                ResponseResult::Error(error) => Err(error.into()),
            },
            FrameKind::Failure => Err(failure(&frame)),
            other => Err(unexpected(other)),
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.outgoing.reset(CloseCode::Done as u32);
        self.incoming.receive.stop(CloseCode::Done as u32);
    }
}

impl Incoming {
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.decoder.set_limits(limits);
    }

    /// What comes behind the frames so far, for a QUIC stream that carries bytes from there on.
    pub(crate) fn raw(&mut self) -> &mut dyn ReceiveHalf {
        self.receive.as_mut()
    }

    /// Bytes that have come and are no part of any frame so far.
    pub(crate) fn undecoded(&self) -> usize {
        self.decoder.buffered()
    }

    /// The next frame that is already here.
    pub(crate) fn buffered(&mut self) -> Result<Option<Frame>, Error> {
        Ok(self.decoder.next_frame()?)
    }

    /// The next frame. A QUIC stream that ends is an error: every one of them ends with a frame that says so.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Frame, Error>> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Poll::Ready(Ok(frame));
            }
            match ready!(self.receive.poll_read(context, READ_BYTES))? {
                Some(chunk) => self.decoder.push(&chunk),
                None => return Poll::Ready(Err(Error::Lost { reason: "the broker ended the QUIC stream".into() })),
            }
        }
    }

    /// [`poll_next`](Self::poll_next) as a future. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Frame, Error> {
        poll_fn(|context| self.poll_next(context)).await
    }
}

pub(crate) fn json_frame(kind: FrameKind, body: &impl Serialize) -> Result<Bytes, Error> {
    let mut frame = BytesMut::new();
    encode_json_frame(kind, body, &mut frame)?;
    Ok(frame.freeze())
}

/// The error that a [`FrameKind::Failure`] carries.
pub(crate) fn failure(frame: &Frame) -> Error {
    match decode_json::<WireError>(frame.kind, &frame.body) {
        Ok(error) => error.into(),
        Err(error) => error.into(),
    }
}

pub(crate) fn unexpected(kind: FrameKind) -> Error {
    Error::protocol(format!("a {kind:?} frame has no place here"))
}
