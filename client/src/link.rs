//! One connection to the broker, from hello to loss, with its control stream.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tidelog_protocol::{
    CloseCode, Connection, ErrorCode, Frame, FrameKind, Hello, Limits, PROTOCOL_VERSION, Request, RequestFrame,
    Response, ResponseFrame, ResponseResult, Welcome, decode_json, write_all,
};
use tokio::sync::{mpsc, oneshot};

use crate::channel::{Channel, failure, json_frame, unexpected};
use crate::error::Error;

/// Requests that wait to be sent or answered; more callers wait for their turn.
const REQUESTS_MAX: usize = 64;

struct Call {
    request: Request,
    reply: oneshot::Sender<Result<Response, Error>>,
}

/// A connection that has been welcomed. It stays up until it is lost or the last owner drops it.
pub(crate) struct Link {
    connection: Arc<dyn Connection>,
    welcome: Welcome,
    calls: mpsc::Sender<Call>,
    /// Set when it is lost: why.
    loss: Arc<OnceLock<Error>>,
}

impl Link {
    /// Says hello and starts the task that owns the control stream; that calls `on_loss` when the connection is lost, and
    /// not if the last owner drops it.
    pub(crate) async fn establish(
        connection: Arc<dyn Connection>,
        hello: &Hello,
        on_loss: impl FnOnce() + Send + 'static,
    ) -> Result<Arc<Self>, Error> {
        let greeted = greet(connection.as_ref(), hello).await;
        if greeted.is_err() {
            connection.close(CloseCode::Done, "");
        }
        let (channel, welcome) = greeted?;
        let (calls, waiting) = mpsc::channel(REQUESTS_MAX);
        let loss = Arc::new(OnceLock::new());
        let control =
            Control { connection: Arc::clone(&connection), channel, waiting, pending: VecDeque::new(), last_id: 0 };
        let told = Arc::clone(&loss);
        tokio::spawn(async move {
            if let Some(error) = control.run().await {
                // Set once: here.
                let _ = told.set(error);
                on_loss();
            }
        });
        Ok(Arc::new(Self { connection, welcome, calls, loss }))
    }

    pub(crate) fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.loss.get().is_some()
    }

    /// Why it is lost, if it is.
    pub(crate) fn loss(&self) -> Option<Error> {
        self.loss.get().cloned()
    }

    /// The broker's place, for people.
    pub(crate) fn remote(&self) -> String {
        self.connection.remote()
    }

    /// One request, without retries. If it is lost, whether the broker has acted on it is not known.
    pub(crate) async fn request(&self, request: Request) -> Result<Response, Error> {
        let gone = || Error::Lost { reason: "the control stream ended".into() };
        let (reply, answer) = oneshot::channel();
        self.calls.send(Call { request, reply }).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Opens a QUIC stream with `request` as its first frame.
    pub(crate) async fn open(&self, request: Request) -> Result<(Channel, Response), Error> {
        let duplex = self.connection.open().await?;
        let mut channel = Channel::new(duplex, self.welcome.limits.clone());
        let response = channel.begin(request).await?;
        Ok((channel, response))
    }

    /// Says goodbye and waits until that has left.
    pub(crate) async fn close(&self) {
        self.connection.close(CloseCode::Done, "");
        self.connection.closed().await;
    }
}

async fn greet(connection: &dyn Connection, hello: &Hello) -> Result<(Channel, Welcome), Error> {
    let duplex = connection.open().await?;
    let mut channel = Channel::new(duplex, Limits::default());
    channel.write_json(FrameKind::Hello, hello).await?;
    let frame = channel.incoming.next().await?;
    let welcome: Welcome = match frame.kind {
        FrameKind::Welcome => decode_json(frame.kind, &frame.body)?,
        FrameKind::Failure => return Err(failure(&frame)),
        other => return Err(unexpected(other)),
    };
    if welcome.version != PROTOCOL_VERSION {
        return Err(Error::refused(
            ErrorCode::UnsupportedVersion,
            format!("the broker chose protocol version {}, which was not offered", welcome.version),
            None,
        ));
    }
    channel.incoming.set_limits(welcome.limits.clone());
    Ok((channel, welcome))
}

/// The task behind a link: writes requests, hands out answers, notices the loss.
struct Control {
    connection: Arc<dyn Connection>,
    channel: Channel,
    waiting: mpsc::Receiver<Call>,
    /// Requests without an answer, in the order they were sent.
    pending: VecDeque<(u64, oneshot::Sender<Result<Response, Error>>)>,
    last_id: u64,
}

impl Control {
    /// Gives the reason if the connection was lost.
    async fn run(mut self) -> Option<Error> {
        let error = self.serve().await;
        match &error {
            Some(error) => {
                tracing::debug!(%error, remote = %self.connection.remote(), "connection to the broker lost");
                let code =
                    if matches!(error, Error::Protocol { .. }) { CloseCode::ProtocolError } else { CloseCode::Done };
                self.connection.close(code, "");
                self.waiting.close();
                for (_, reply) in self.pending.drain(..) {
                    // A caller that has given up needs no answer.
                    let _ = reply.send(Err(error.clone()));
                }
            }
            None => self.connection.close(CloseCode::Done, ""),
        }
        error
    }

    /// Until the last owner of the link is gone (`None`) or the connection is.
    async fn serve(&mut self) -> Option<Error> {
        let connection = Arc::clone(&self.connection);
        let mut closed = connection.closed();
        let mut unwritten = [Bytes::new()];
        loop {
            let idle = unwritten.iter().all(Bytes::is_empty);
            tokio::select! {
                biased;
                written = write_all(self.channel.outgoing.as_mut(), &mut unwritten), if !idle => {
                    if let Err(error) = written {
                        return Some(error.into());
                    }
                }
                frame = self.channel.incoming.next() => {
                    if let Err(error) = frame.and_then(|frame| self.answer(&frame)) {
                        return Some(error);
                    }
                }
                call = self.waiting.recv(), if idle && self.pending.len() < REQUESTS_MAX => {
                    unwritten = [self.send(call?)];
                }
                error = &mut closed => return Some(error.into()),
            }
        }
    }

    fn send(&mut self, call: Call) -> Bytes {
        self.last_id += 1;
        match json_frame(FrameKind::Request, &RequestFrame { id: self.last_id, request: call.request }) {
            Ok(frame) => {
                self.pending.push_back((self.last_id, call.reply));
                frame
            }
            Err(error) => {
                let _ = call.reply.send(Err(error));
                Bytes::new()
            }
        }
    }

    fn answer(&mut self, frame: &Frame) -> Result<(), Error> {
        match frame.kind {
            FrameKind::Response => {
                let response: ResponseFrame = decode_json(frame.kind, &frame.body)?;
                let place = self.pending.iter().position(|(id, _)| *id == response.id);
                let Some((_, reply)) = place.and_then(|place| self.pending.remove(place)) else {
                    return Err(Error::protocol(format!("it answered request {}, which is not open", response.id)));
                };
                let _ = reply.send(match response.result {
                    ResponseResult::Ok(response) => Ok(response),
                    ResponseResult::Error(error) => Err(error.into()),
                });
                Ok(())
            }
            FrameKind::Failure => Err(failure(frame)),
            other => Err(unexpected(other)),
        }
    }
}
