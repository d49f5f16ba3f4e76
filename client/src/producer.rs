//! Producers: records in, each stored once and in order.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use tidelog_protocol::{
    CLIENT_WINDOW_BYTES_DEFAULT, Epoch, ErrorCode, ProducerId, ProducerName, Request, Sequence, StreamId,
};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::connection::{Client, ProducerPosition};
use crate::error::Error;
use crate::publisher::Publisher;
use crate::session::{Session, Shared};
use crate::target::StreamTarget;
use crate::window::{Ack, Numbering, Receipt, Window, WindowOptions};

/// How a producer is opened; made by [`Client::producer`] and [`Client::anonymous_producer`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ProducerBuilder {
    client: Client,
    name: Option<ProducerName>,
    window_bytes: usize,
    ack: Ack,
    sparse: bool,
    receipts: bool,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client, name: Option<ProducerName>) -> Self {
        Self {
            client,
            name,
            window_bytes: CLIENT_WINDOW_BYTES_DEFAULT as usize,
            ack: Ack::default(),
            sparse: false,
            receipts: false,
        }
    }

    /// Bytes of records that may wait to become durable, over all streams of the producer (default 4 MiB, never more
    /// than the broker allows). Beyond that [`Publisher::send`] waits, which is how a slow broker slows its producers
    /// down. A single record larger than the window has it for itself.
    pub fn window_bytes(mut self, bytes: usize) -> Self {
        self.window_bytes = bytes;
        self
    }

    /// When a record counts as acknowledged for [`Publisher::publish`] and [`Publisher::acknowledged`]; by default when
    /// it is durable.
    ///
    /// With [`Ack::Accepted`] they do not wait for the broker's disk. The producer keeps every record until it is durable
    /// all the same and sends it again after a lost connection or a restart of the broker, so that nothing is lost unless
    /// this process ends first, gives up after the client's timeout, is fenced, or the stream is removed.
    /// [`Publisher::flush`], [`Producer::close`] and receipts speak of durable records in both modes.
    ///
    /// ```
    /// # use tidelog_client::*;
    /// # use tidelog_protocol::*;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let broker = tidelog::Broker::start(tidelog::BrokerConfig::in_memory())?;
    /// # let client = Client::connect(ClientConfig::find(&broker.address().parse()?, None)?).await?;
    /// # let readings = client.create_stream(&StreamName::new("readings")?, StreamSettings::default(), true).await?;
    /// let producer = client.producer(ProducerName::new("sensor")?).ack(Ack::Accepted).open().await?;
    /// let publisher = producer.stream(&readings).await?;
    /// for celsius in ["19.5", "19.7", "19.6"] {
    ///     let told = publisher.publish(Record::new(celsius)).await?;
    ///     // Ordered, perhaps not yet durable: then it has no offset.
    ///     assert!(told.durable || told.offset.is_none());
    /// }
    /// // Before the process ends it has to wait: what is only accepted lives in this producer.
    /// producer.close().await?;
    /// assert_eq!(publisher.last_offset(), Some(Offset::new(2)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn ack(mut self, ack: Ack) -> Self {
        self.ack = ack;
        self
    }

    /// The application numbers its records itself, with numbers that rise and may jump, such as the ids of an outbox
    /// table: each goes in by [`Publisher::send_at`] or [`Publisher::publish_at`]. For good: a stream that has sparse
    /// sequences of a producer takes no others of it any more. Anonymous producers have no sequences.
    ///
    /// Numbers that rise without jumps need no option, see [`Publisher::send_at`].
    ///
    /// Records must be given in the order of their numbers, so the numbers must become visible to the application in
    /// that order. Ids that a database hands out do not, when transactions commit in another order than they began: if
    /// 15 commits after 17 was published, 15 is refused as `sequence_past`. It is not in the stream, and nothing will
    /// ever take it for a duplicate. Read an outbox by a number that is given at commit, or wait until all lower ids are
    /// settled.
    ///
    /// ```
    /// # use tidelog_client::*;
    /// # use tidelog_protocol::*;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let broker = tidelog::Broker::start(tidelog::BrokerConfig::in_memory())?;
    /// # let client = Client::connect(ClientConfig::find(&broker.address().parse()?, None)?).await?;
    /// # let events = client.create_stream(&StreamName::new("events")?, StreamSettings::default(), true).await?;
    /// // Rows of an outbox table, by id: some were rolled back.
    /// let rows = [(3, "order 1 paid"), (4, "order 1 sent"), (9, "order 2 paid")];
    ///
    /// /// What runs after every start: nothing is remembered but what the broker holds.
    /// async fn publish_outbox(
    ///     client: &Client,
    ///     events: &StreamDescription,
    ///     rows: &[(u64, &'static str)],
    /// ) -> Result<u64, Box<dyn std::error::Error>> {
    ///     let producer = client.producer(ProducerName::new("outbox")?).sparse(true).open().await?;
    ///     let publisher = producer.stream(events).await?;
    ///     let last = publisher.last_sequence().get();
    ///     for (id, text) in rows.iter().filter(|(id, _)| *id > last) {
    ///         publisher.send_at(Sequence::new(*id), Record::new(*text)).await?;
    ///     }
    ///     producer.close().await?;
    ///     Ok(publisher.published())
    /// }
    ///
    /// assert_eq!(publish_outbox(&client, &events, &rows[..2]).await?, 2);
    /// // Started again: goes on behind row 4.
    /// assert_eq!(publish_outbox(&client, &events, &rows).await?, 1);
    ///
    /// // Row 7 was committed after row 9 had been published. It is not stored, and nobody says it is.
    /// let producer = client.producer(ProducerName::new("outbox")?).sparse(true).open().await?;
    /// let publisher = producer.stream(&events).await?;
    /// let late = publisher.publish_at(Sequence::new(7), Record::new("order 3 paid")).await.unwrap_err();
    /// assert_eq!(late.code(), Some(ErrorCode::SequencePast));
    /// # Ok(())
    /// # }
    /// ```
    pub fn sparse(mut self, sparse: bool) -> Self {
        self.sparse = sparse;
        self
    }

    /// Collect a [`Receipt`](crate::Receipt) for each batch. They must be taken with [`Publisher::next_receipt`], from another task than
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
        let numbering = match (&self.name, self.sparse) {
            (None, _) => Numbering::Anonymous,
            (Some(_), false) => Numbering::Dense,
            (Some(_), true) => Numbering::Sparse,
        };
        let options =
            WindowOptions { numbering, ack: self.ack, bytes_max: window_bytes, collect_receipts: self.receipts };
        let window = Window::new(options, limits);
        let shared = Arc::new(Shared::new(window));
        let session = Session::new(self.client.clone(), Arc::clone(&shared), id, epoch, attempt);
        let task = Mutex::new(Some(tokio::spawn(session.run())));
        let opened = Opened { client: self.client, name: self.name, id, epoch, numbering, shared, task };
        Ok(Producer { opened: Arc::new(opened) })
    }
}

/// An open producer.
///
/// With a name, every record has a sequence in its stream, and a record is stored once whatever happens to connections
/// and brokers meanwhile. A program that is started again learns from [`Publisher::last_sequence`] where it was; if its
/// own records have stable numbers it goes on from there, and they are stored once through its own restarts, too. If
/// they have none, a record that is handed in again after a restart gets a new sequence and is another record.
///
/// Without a name it is at-least-once: what was not acknowledged when a connection is lost is sent again, and is then in
/// the stream twice if only the acknowledgement was lost; and what was refused for a while may come after later records.
///
/// Dropping it and its publishers gives up what is not durable yet; use [`close`](Self::close).
pub struct Producer {
    opened: Arc<Opened>,
}

pub(crate) struct Opened {
    client: Client,
    pub(crate) name: Option<ProducerName>,
    id: ProducerId,
    epoch: Epoch,
    numbering: Numbering,
    pub(crate) shared: Arc<Shared>,
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
    /// `not_found` if there is no such stream; `sequence_mode` if this producer's sequences are sparse in it and the
    /// producer was not opened as [`sparse`](ProducerBuilder::sparse); those of the connection.
    pub async fn stream(&self, stream: impl Into<StreamTarget>) -> Result<Publisher, Error> {
        let opened = &self.opened;
        let description = stream.into().resolve(&opened.client).await?;
        let found = match opened.name {
            None => {
                ProducerPosition { last_sequence: Sequence::NONE, last_offset: None, last_record_crc: 0, sparse: false }
            }
            Some(_) => opened.client.producer_position(opened.id, description.id).await?,
        };
        if found.sparse && opened.numbering == Numbering::Dense {
            return Err(Error::refused(
                ErrorCode::SequenceMode,
                format!("this producer's sequences in '{}' are not consecutive", description.name),
                None,
            ));
        }
        let slot = opened.shared.lock().add_stream(description.id, description.name.clone(), found);
        Ok(Publisher::new(Arc::clone(opened), slot, description, found.last_record_crc))
    }

    /// Bytes held for records that are not durable yet; at most the [window](ProducerBuilder::window_bytes), but for a
    /// single record that is larger.
    pub fn pending_bytes(&self) -> usize {
        self.opened.shared.lock().bytes()
    }

    /// The next batch that became durable on any of its streams, if the producer was opened with
    /// [`receipts`](ProducerBuilder::receipts), and that stream. `None` when the producer has ended, which
    /// [`flush`](Self::flush) tells, or one of its streams has. Waits for ever if nothing was sent whose receipt is still to
    /// be taken. Cancel safe.
    pub async fn next_receipt(&self) -> Option<(StreamId, Receipt)> {
        let next = self.opened.wait(|window| {
            let has_ended = window.failure.is_some() || window.streams().any(|(_, stream)| stream.failure.is_some());
            window.take_any_receipt().map(Some).or(has_ended.then_some(None))
        });
        self.after_taking(next.await)
    }

    /// A receipt of any of its streams that is already there.
    pub fn try_next_receipt(&self) -> Option<(StreamId, Receipt)> {
        let receipt = self.opened.shared.lock().take_any_receipt();
        self.after_taking(receipt)
    }

    /// A receipt taken is room for a sender that waits.
    fn after_taking<T>(&self, receipt: Option<T>) -> Option<T> {
        if receipt.is_some() {
            self.opened.shared.changed.notify_waiters();
        }
        receipt
    }

    /// Waits until everything that was sent on all streams is durable.
    ///
    /// Cancel safe: it only waits.
    ///
    /// # Errors
    ///
    /// The error that ended the producer, or one of its streams with records that are not durable. An ended producer has
    /// its error told here even if everything sent before is durable.
    pub async fn flush(&self) -> Result<(), Error> {
        let targets: Vec<u64> = self.opened.shared.lock().streams().map(|(_, stream)| stream.pushed).collect();
        self.opened
            .wait(|window| {
                if let Some(error) = window.failure.as_ref().filter(|error| !matches!(error, Error::Closed)) {
                    return Some(Err(error.clone()));
                }
                let mut flushed = Some(Ok(()));
                for ((_, stream), target) in window.streams().zip(&targets) {
                    if stream.settled < *target {
                        match stream.failure.as_deref().or(window.failure.as_ref()) {
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
    /// Cancel safe: if the future is dropped while it waits for records to become durable, the producer is as it was, and
    /// can be used and closed again.
    ///
    /// # Errors
    ///
    /// As for [`flush`](Self::flush); the session is ended all the same.
    pub async fn close(&self) -> Result<(), Error> {
        let flushed = self.flush().await;
        self.opened.shared.stop();
        let mut task = self.opened.task.lock().await;
        if let Some(handle) = task.as_mut() {
            // It ends by itself; that a runtime in shutdown has cancelled it is as good.
            let _ = handle.await;
            *task = None;
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
    pub(crate) async fn wait<T>(&self, mut check: impl FnMut(&mut Window) -> Option<T>) -> T {
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
