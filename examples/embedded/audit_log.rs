//! Who has done what, kept by a broker within this process.

use std::path::Path;

use tidelog::{Broker, BrokerConfig, StartError};
use tidelog_client::{Client, ClientConfig, Producer, Publisher, ReaderEvent};
use tidelog_protocol::{ProducerName, Record, StreamName, StreamSettings};
use tokio::task::spawn_blocking;

const STREAM: &str = "audit";
const PRODUCER: &str = "audit-log";

/// Why the log can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditError {
    /// The folder is in use, foreign, damaged, or can't be written; the text says which, and what to do.
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Broker(#[from] tidelog_client::Error),
    #[error("the entries from {from} to {to} can't be read; `tidelog verify` says what is damaged")]
    Missing { from: u64, to: u64 },
}

/// What was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Counts all entries from 0, without gaps.
    pub(crate) number: u64,
    /// In milliseconds since 1970; never falling.
    pub(crate) time_ms: i64,
    pub(crate) who: String,
    pub(crate) action: String,
}

/// The audit log of this process. [`close`](Self::close) it in the end; what it has acknowledged is safe without, too.
pub(crate) struct AuditLog {
    // In the order in which they have to go.
    publisher: Publisher,
    producer: Producer,
    client: Client,
    broker: Broker,
}

impl AuditLog {
    /// Opens the log in `folder`, which is made if it is missing.
    pub(crate) async fn open(folder: &Path) -> Result<Self, AuditError> {
        let config = BrokerConfig::on_disk(folder);
        // Reads what it has to read of the log, so it does not belong on a runtime's thread.
        let broker = unwound(spawn_blocking(move || Broker::start(config)).await)?;
        let address = broker.address().parse().expect("a broker's own address is one");
        let client = Client::connect(ClientConfig::find(&address, None)?).await?;
        let stream = StreamName::new(STREAM).expect("this is a name");
        let stream = client.create_stream(&stream, StreamSettings::default(), true).await?;
        let producer = client.producer(ProducerName::new(PRODUCER).expect("this is a name")).open().await?;
        let publisher = producer.stream(&stream).await?;
        Ok(Self { publisher, producer, client, broker })
    }

    /// Where other processes of this machine may read.
    pub(crate) fn address(&self) -> String {
        self.broker.address()
    }

    /// Records an action and returns its number when it is on the disk. Many at a time share the disk's work; each waits
    /// some tenths of a millisecond where a sync takes that long.
    ///
    /// A process that is killed within this call may have recorded it or not.
    pub(crate) async fn record(&self, who: &str, action: &str) -> Result<u64, AuditError> {
        let record = Record::new(action.to_owned()).with_key(who.to_owned());
        let stored = self.publisher.publish(record).await?;
        Ok(stored.offset.expect("what was stored now has its place").get())
    }

    /// All that was ever recorded, in order.
    pub(crate) async fn entries(&self) -> Result<Vec<Entry>, AuditError> {
        let mut reader = self.client.reader(StreamName::new(STREAM).expect("this is a name")).open().await?;
        let mut entries = Vec::new();
        while let Some(event) = reader.next_batch().await? {
            match event {
                ReaderEvent::Batch(batch) => {
                    let time_ms = batch.time_ms();
                    for delivered in batch {
                        let delivered = delivered?;
                        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                        entries.push(Entry {
                            number: delivered.offset.get(),
                            time_ms,
                            who: delivered.record.key.as_deref().map(text).unwrap_or_default(),
                            action: text(&delivered.record.value),
                        });
                    }
                }
                ReaderEvent::Gap { from, to } | ReaderEvent::Damaged { from, to } => {
                    return Err(AuditError::Missing { from: from.get(), to: to.get() });
                }
                // There are no others yet.
                _ => {}
            }
        }
        Ok(entries)
    }

    /// Stops in order: what is under way becomes durable, the broker's threads are joined, the folder is free.
    pub(crate) async fn close(self) -> Result<(), AuditError> {
        let Self { publisher: _, producer, client, broker } = self;
        let closed = producer.close().await;
        client.close().await;
        unwound(spawn_blocking(move || broker.shutdown()).await);
        Ok(closed?)
    }
}

/// A blocking task's result; its panic goes on here.
fn unwound<T>(joined: Result<T, tokio::task::JoinError>) -> T {
    joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
