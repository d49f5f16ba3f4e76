//! One connection: its two ends, their QUIC streams, and how it comes to an end.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tidelog_protocol::{BoxFuture, CloseCode, Connection, Duplex, TransportError};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::NetworkLimits;
use super::conditions::{Conditions, Cut, Side};
use super::pipe::{Pipe, ReceiveEnd, SendEnd};

/// What the two ends share.
pub(super) struct Line {
    number: u64,
    pub(super) conditions: Arc<dyn Conditions>,
    state: Mutex<LineState>,
    /// Why it is over, as each side sees it.
    ended_for_client: watch::Sender<Option<TransportError>>,
    ended_for_broker: watch::Sender<Option<TransportError>>,
}

#[derive(Default)]
struct LineState {
    is_cut: bool,
    pipes: Vec<Weak<Pipe>>,
}

impl Line {
    /// A connection: the line, the client's end and the broker's.
    pub(super) fn open(
        number: u64,
        limits: NetworkLimits,
        conditions: &Arc<dyn Conditions>,
    ) -> (Arc<Self>, Arc<End>, Arc<End>) {
        let line = Arc::new(Self {
            number,
            conditions: Arc::clone(conditions),
            state: Mutex::default(),
            ended_for_client: watch::Sender::new(None),
            ended_for_broker: watch::Sender::new(None),
        });
        let (to_broker, at_broker) = unbounded_channel();
        let (to_client, at_client) = unbounded_channel();
        let end = |side, opened, accepted| {
            Arc::new(End {
                line: Arc::clone(&line),
                side,
                limits,
                slots: Arc::new(Semaphore::new(limits.quic_streams_max)),
                opened,
                accepted: tokio::sync::Mutex::new(accepted),
                quic_streams: AtomicU64::new(0),
            })
        };
        let (client, broker) = (end(Side::Client, to_broker, at_client), end(Side::Broker, to_client, at_broker));
        (line, client, broker)
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Breaks it. A second break changes nothing.
    pub(super) fn cut(self: &Arc<Self>, cut: &Cut, why: &str) {
        let Some(pipes) = self.sever() else { return };
        for pipe in &pipes {
            pipe.sever(cut.at(pipe.toward()).lands);
        }
        for side in Side::BOTH {
            self.notice_after(cut.at(side).noticed_after, side, TransportError::Lost(why.to_owned()));
        }
    }

    fn close(self: &Arc<Self>, side: Side, code: CloseCode, reason: &str) {
        // What has not arrived when the other side learns of it never does; a line that is cut says nothing any more.
        if let Some(pipes) = self.sever() {
            pipes.iter().for_each(|pipe| pipe.sever(pipe.toward() != side));
            let told = TransportError::Closed { code: code.number(), reason: reason.to_owned() };
            self.notice_after(self.conditions.close(self.number), side.other(), told);
        }
        self.notice(side, &TransportError::Lost("this side closed the connection".to_owned()));
    }

    /// Nothing leaves from here on; the pipes, if this is what ended it.
    fn sever(&self) -> Option<Vec<Arc<Pipe>>> {
        let mut state = self.lock();
        if std::mem::replace(&mut state.is_cut, true) {
            return None;
        }
        Some(state.pipes.iter().filter_map(Weak::upgrade).collect())
    }

    fn notice_after(self: &Arc<Self>, after: Duration, side: Side, error: TransportError) {
        if after.is_zero() {
            return self.notice(side, &error);
        }
        let line = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            line.notice(side, &error);
        });
    }

    /// One side knows that it is over; the first reason stays.
    fn notice(&self, side: Side, error: &TransportError) {
        let is_news = self.ended(side).send_if_modified(|ended| {
            let is_news = ended.is_none();
            ended.get_or_insert_with(|| error.clone());
            is_news
        });
        if is_news {
            let pipes: Vec<_> = self.lock().pipes.iter().filter_map(Weak::upgrade).collect();
            pipes.iter().for_each(|pipe| pipe.lose(side, error));
        }
    }

    fn error(&self, side: Side) -> Option<TransportError> {
        self.ended(side).borrow().clone()
    }

    const fn ended(&self, side: Side) -> &watch::Sender<Option<TransportError>> {
        match side {
            Side::Client => &self.ended_for_client,
            Side::Broker => &self.ended_for_broker,
        }
    }

    fn lock(&self) -> MutexGuard<'_, LineState> {
        // Every state in it is a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One end of a connection. Dropping it closes the connection.
pub(super) struct End {
    line: Arc<Line>,
    side: Side,
    limits: NetworkLimits,
    /// QUIC streams that this side may still open.
    slots: Arc<Semaphore>,
    opened: UnboundedSender<Duplex>,
    accepted: tokio::sync::Mutex<UnboundedReceiver<Duplex>>,
    quic_streams: AtomicU64,
}

impl End {
    fn open_with(&self, slot: OwnedSemaphorePermit) -> Duplex {
        let quic_stream = 2 * self.quic_streams.fetch_add(1, Ordering::Relaxed) + self.side as u64;
        let slot = Arc::new(slot);
        let mut state = self.line.lock();
        let pipe = |toward| Arc::new(Pipe::new(quic_stream, toward, self.limits.window_bytes, state.is_cut));
        let (there, back) = (pipe(self.side.other()), pipe(self.side));
        if state.pipes.len() == state.pipes.capacity() {
            state.pipes.retain(|pipe| pipe.strong_count() > 0);
        }
        state.pipes.extend([Arc::downgrade(&there), Arc::downgrade(&back)]);
        let is_cut = state.is_cut;
        drop(state);
        let half = |send: &Arc<Pipe>, receive: &Arc<Pipe>, slot: Option<Arc<OwnedSemaphorePermit>>| Duplex {
            send: Box::new(SendEnd::new(Arc::clone(send), Arc::clone(&self.line), slot.clone())),
            receive: Box::new(ReceiveEnd::new(Arc::clone(receive), slot)),
        };
        if !is_cut {
            // The other side may be gone already; then nobody answers.
            let _ = self.opened.send(half(&back, &there, Some(slot)));
        }
        half(&there, &back, None)
    }
}

impl Connection for End {
    fn open(&self) -> BoxFuture<'_, Result<Duplex, TransportError>> {
        Box::pin(async {
            if let Some(error) = self.line.error(self.side) {
                return Err(error);
            }
            tokio::select! {
                biased;
                error = self.closed() => Err(error),
                slot = Arc::clone(&self.slots).acquire_owned() => match slot {
                    Ok(slot) => Ok(self.open_with(slot)),
                    Err(_) => Err(TransportError::Lost("the connection is gone".to_owned())),
                },
            }
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Duplex, TransportError>> {
        Box::pin(async {
            let mut accepted = self.accepted.lock().await;
            tokio::select! {
                biased;
                error = self.closed() => Err(error),
                duplex = accepted.recv() => match duplex {
                    Some(duplex) => Ok(duplex),
                    // The other end is gone, which this side has not noticed yet.
                    None => Err(self.closed().await),
                },
            }
        })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.line.close(self.side, code, reason);
    }

    fn closed(&self) -> BoxFuture<'_, TransportError> {
        Box::pin(async {
            let mut ended = self.line.ended(self.side).subscribe();
            let ended = ended.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
            ended.unwrap_or_else(|| TransportError::Lost("the connection is gone".to_owned()))
        })
    }

    fn remote(&self) -> String {
        format!("in process, connection {}", self.line.number)
    }
}

impl fmt::Debug for End {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("End").field("line", &self.line.number).field("side", &self.side).finish_non_exhaustive()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.line.close(self.side, CloseCode::Done, "");
    }
}
