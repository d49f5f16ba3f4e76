//! Producers: records in, each stored once and in order.

use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use tidelog_protocol::{
    CLIENT_WINDOW_BYTES_DEFAULT, Epoch, ErrorCode, Offset, ProducerId, ProducerName, Record, Request, Sequence,
    StreamDescription, StreamName,
};
use tokio::task::JoinHandle;

use crate::connection::Client;
use crate::error::Error;
use crate::session::{Session, Shared};
use crate::target::StreamTarget;
use crate::window::{Body, Push, Receipt, Window};

/// How a producer is opened; made by [`Client::producer`] and [`Client::anonymous_producer`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ProducerBuilder {
    client: Client,
    name: Option<ProducerName>,
    window_bytes: usize,
    receipts: bool,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client, name: Option<ProducerName>) -> Self {
        Self { client, name, window_bytes: CLIENT_WINDOW_BYTES_DEFAULT as usize, receipts: false }
    }

    /// Bytes of records that may wait to become durable, over all streams of the producer (default 4 MiB, never more
    /// than the broker allows). Beyond that [`Publisher::send`] waits.
    pub fn window_bytes(mut self, bytes: usize) -> Self {
        self.window_bytes = bytes;
        self
    }

    /// Collect a [`Receipt`] for each batch. They must be taken with [`Publisher::next_receipt`], from another task than
    /// the one that sends or between sends: when some thousands wait, sending waits too.
    pub fn receipts(mut self, collect: bool) -> Self {
        self.receipts = collect;
        self
    }

    /// Opens the producer. With a name this fences every older session of that name.
    ///
    /// # Errors
    ///
    /// `fenced` if another session opened the name at the same time; those of the connection.
    pub async fn open(self) -> Result<Producer, Error> {
        let limits = self.client.welcome().await?.limits;
        let attempt = self.client.entropy().attempt()?;
        let (id, epoch) = match &self.name {
            None => (ProducerId::ANONYMOUS, Epoch::NONE),
            Some(name) => {
                // Compare and set: whoever opens between these two is not fenced by us, we are refused instead. The
                // attempt's id makes a retry whose first answer was lost find its own epoch.
                let found = self.client.producer_request(Request::FindProducer { name: name.clone() }).await?;
                let request = Request::OpenProducer { name: name.clone(), found: found.epoch, attempt };
                let opened = self.client.producer_request(request).await?;
                (opened.id, opened.epoch)
            }
        };
        let window_bytes = self.window_bytes.min(limits.window_bytes_max as usize);
        let window = Window::new(self.name.is_none(), window_bytes, limits, self.receipts);
        let shared = Arc::new(Shared::new(window));
        let session = Session::new(self.client.clone(), Arc::clone(&shared), id, epoch, attempt);
        let task = Mutex::new(Some(tokio::spawn(session.run())));
        let opened = Opened { client: self.client, name: self.name, id, epoch, shared, task };
        Ok(Producer { opened: Arc::new(opened) })
    }
}

/// An open producer.
///
/// With a name, every record has a sequence in its stream, and a record is stored once whatever happens to connections
/// and brokers meanwhile. A program that is started again learns from [`Publisher::last_sequence`] where it was; if its
/// own records have stable numbers it goes on from there, and they are stored once through its own restarts, too.
///
/// Without a name it is at-least-once: what was not acknowledged when a connection is lost is sent again, and is then in
/// the stream twice if only the acknowledgement was lost; and what was refused for a while may come after later records.
///
/// Dropping it and its publishers gives up what is not durable yet; use [`close`](Self::close).
pub struct Producer {
    opened: Arc<Opened>,
}

struct Opened {
    client: Client,
    name: Option<ProducerName>,
    id: ProducerId,
    epoch: Epoch,
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        let window = self.shared.lock();
        if window.failure.is_none() && !window.is_empty() {
            tracing::warn!(producer = ?self.name, "producer dropped with records that may not be stored; close it");
        }
        drop(window);
        self.shared.stop();
    }
}

impl Producer {
    /// Its name; `None` if it is anonymous.
    pub fn name(&self) -> Option<&ProducerName> {
        self.opened.name.as_ref()
    }

    /// The broker's number for the name.
    pub fn id(&self) -> ProducerId {
        self.opened.id
    }

    /// Counts the sessions of this name; this session's.
    pub fn epoch(&self) -> Epoch {
        self.opened.epoch
    }

    /// Prepares publishing to a stream and learns what it holds of this producer. A second call for the same stream
    /// gives another handle to the same place in it.
    ///
    /// # Errors
    ///
    /// `not_found` if there is no such stream; `sequence_mode` if this producer's sequences jump in it, which this
    /// handle can't go on with; those of the connection.
    pub async fn stream(&self, stream: impl Into<StreamTarget>) -> Result<Publisher, Error> {
        let opened = &self.opened;
        let description = stream.into().resolve(&opened.client).await?;
        let (last, last_offset, last_record_crc) = if opened.name.is_none() {
            (Sequence::NONE, None, 0)
        } else {
            let found = opened.client.producer_position(opened.id, description.id).await?;
            if found.sparse {
                return Err(Error::refused(
                    ErrorCode::SequenceMode,
                    format!("this producer's sequences in '{}' are not consecutive", description.name),
                    None,
                ));
            }
            (found.last_sequence, found.last_offset, found.last_record_crc)
        };
        let slot = opened.shared.lock().add_stream(description.id, description.name.clone(), last, last_offset);
        Ok(Publisher { opened: Arc::clone(opened), slot, description, last_record_crc })
    }

    /// Waits until everything that was sent on all streams is durable.
    ///
    /// # Errors
    ///
    /// The error that ended the producer or one of its streams.
    pub async fn flush(&self) -> Result<(), Error> {
        let targets: Vec<u64> = self.opened.shared.lock().streams().map(|(_, stream)| stream.pushed).collect();
        self.opened
            .wait(|window| {
                let mut flushed = Some(Ok(()));
                for ((_, stream), target) in window.streams().zip(&targets) {
                    if stream.settled < *target {
                        match stream.failure.as_ref().or(window.failure.as_ref()) {
                            Some(error) => return Some(Err(error.clone())),
                            None => flushed = None,
                        }
                    }
                }
                flushed
            })
            .await
    }

    /// Waits until everything is durable, then ends the session. Publishers that are left can't be used any more.
    ///
    /// # Errors
    ///
    /// As for [`flush`](Self::flush); the session is ended all the same.
    pub async fn close(self) -> Result<(), Error> {
        let flushed = self.flush().await;
        self.opened.shared.stop();
        let task = self.opened.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            // It ends by itself; that a runtime in shutdown has cancelled it is as good.
            let _ = task.await;
        }
        flushed
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Producer")
            .field("name", &self.opened.name)
            .field("id", &self.opened.id)
            .field("epoch", &self.opened.epoch)
            .finish_non_exhaustive()
    }
}

impl Opened {
    /// Waits until `check` has an answer, looking again whenever something was answered.
    async fn wait<T>(&self, mut check: impl FnMut(&mut Window) -> Option<T>) -> T {
        loop {
            // Registered before the look, so that no change is missed.
            let mut changed = pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            if let Some(answer) = check(&mut self.shared.lock()) {
                return answer;
            }
            changed.await;
        }
    }
}

/// A producer's end of one stream.
///
/// Numbers are as of now unless they say otherwise. Calls may come from several tasks; the order of their records is
/// then the order in which they were taken in.
pub struct Publisher {
    opened: Arc<Opened>,
    slot: usize,
    description: StreamDescription,
    last_record_crc: u32,
}

impl Publisher {
    /// The stream's name.
    pub fn stream_name(&self) -> &StreamName {
        &self.description.name
    }

    /// The stream as it was when this publisher was made.
    pub fn description(&self) -> &StreamDescription {
        &self.description
    }

    /// The last sequence that is durable: before the first send, what an earlier session has left.
    /// [`Sequence::NONE`] if there is none or the producer is anonymous.
    pub fn last_sequence(&self) -> Sequence {
        self.opened.shared.lock().stream(self.slot).told
    }

    /// The offset of the last durable record, where known.
    pub fn last_offset(&self) -> Option<Offset> {
        self.opened.shared.lock().stream(self.slot).last_offset
    }

    /// The checksum ([`Record::crc`]) of the last durable record as it was when this publisher was made; 0 if there was
    /// none. A program that goes on from its input's record number [`last_sequence`](Self::last_sequence) compares it
    /// with that record, so that other input is noticed.
    pub fn last_record_crc(&self) -> u32 {
        self.last_record_crc
    }

    /// Records of this publisher that the broker stored.
    pub fn published(&self) -> u64 {
        self.opened.shared.lock().stream(self.slot).published
    }

    /// Records of this publisher that the broker had stored before, among them those whose first acknowledgement was
    /// lost with a connection.
    pub fn duplicates(&self) -> u64 {
        self.opened.shared.lock().stream(self.slot).duplicates
    }

    /// Takes a record into the window, waiting for room, and gives its sequence ([`Sequence::NONE`] if anonymous). It is
    /// durable when [`flush`](Self::flush) returns or its receipt comes.
    ///
    /// Cancel safe: if the future is dropped before it is ready the record was not taken.
    ///
    /// # Errors
    ///
    /// [`Error::Record`] if the record is beyond the broker's limits, which ends nothing; otherwise the error that ended
    /// the producer or this stream.
    pub async fn send(&self, record: Record) -> Result<Sequence, Error> {
        self.append(Body::Record(&record)).await
    }

    /// [`send`](Self::send) of a record that is only a value, without making one.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    pub async fn send_value(&self, value: &[u8]) -> Result<Sequence, Error> {
        self.append(Body::Value(value)).await
    }

    async fn append(&self, body: Body<'_>) -> Result<Sequence, Error> {
        let pushed = self.opened.shared.lock().push(self.slot, body)?;
        let (sequence, wake) = match pushed {
            Push::Taken { sequence, wake } => (sequence, wake),
            Push::Full => self.append_when_room(body).await?,
        };
        if wake {
            self.opened.shared.work.notify_one();
        }
        Ok(sequence)
    }

    async fn append_when_room(&self, body: Body<'_>) -> Result<(Sequence, bool), Error> {
        let slot = self.slot;
        self.opened
            .wait(|window| match window.push(slot, body) {
                Ok(Push::Taken { sequence, wake }) => Some(Ok((sequence, wake))),
                Ok(Push::Full) => None,
                Err(error) => Some(Err(error)),
            })
            .await
    }

    /// Waits until everything that was sent here before is durable.
    ///
    /// # Errors
    ///
    /// The error that ended the producer or this stream: what was not acknowledged may or may not be stored.
    pub async fn flush(&self) -> Result<(), Error> {
        let slot = self.slot;
        let target = self.opened.shared.lock().stream(slot).pushed;
        self.opened
            .wait(|window| {
                let stream = window.stream(slot);
                if stream.settled >= target {
                    return Some(Ok(()));
                }
                stream.failure.as_ref().or(window.failure.as_ref()).map(|error| Err(error.clone()))
            })
            .await
    }

    /// Takes no more records and waits until all are durable.
    ///
    /// # Errors
    ///
    /// As for [`flush`](Self::flush).
    pub async fn close(&self) -> Result<(), Error> {
        self.opened.shared.lock().stream_mut(self.slot).closed = true;
        self.opened.shared.changed.notify_waiters();
        self.flush().await
    }

    /// The next batch that became durable, if the producer was opened with [`ProducerBuilder::receipts`]. `None` when no
    /// more can come: after [`close`](Self::close) has been called and all is durable, or after an error, which
    /// [`flush`](Self::flush) tells. Cancel safe.
    pub async fn next_receipt(&self) -> Option<Receipt> {
        let slot = self.slot;
        let receipt = self
            .opened
            .wait(|window| {
                if let Some(receipt) = window.take_receipt(slot) {
                    return Some(Some(receipt));
                }
                let stream = window.stream(slot);
                let ended = window.failure.is_some()
                    || stream.failure.is_some()
                    || stream.closed && stream.settled == stream.pushed;
                ended.then_some(None)
            })
            .await;
        self.after_taking(receipt)
    }

    /// A receipt that is already there.
    pub fn try_next_receipt(&self) -> Option<Receipt> {
        let receipt = self.opened.shared.lock().take_receipt(self.slot);
        self.after_taking(receipt)
    }

    /// A receipt taken is room for a sender that waits.
    fn after_taking(&self, receipt: Option<Receipt>) -> Option<Receipt> {
        if receipt.is_some() {
            self.opened.shared.changed.notify_waiters();
        }
        receipt
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Publisher")
            .field("producer", &self.opened.name)
            .field("stream", &self.description.name)
            .finish_non_exhaustive()
    }
}
