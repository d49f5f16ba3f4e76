//! Carries rows of the outbox to the broker.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use tidelog_client::{Client, Producer, Publisher};
use tidelog_protocol::{ErrorCode, NameError, ProducerName, Record, Sequence, StreamName, StreamSettings};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::shop::{Row, Shop};

/// Rows under way at a time.
const ROWS_MAX: usize = 256;
/// So often it looks for rows of which nobody has told it: those of other processes, or of an earlier life.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After the client has given up; it has then tried for as long as its timeout says.
const WAIT_BEFORE_OPENING_AGAIN: Duration = Duration::from_secs(1);
/// As many sessions may have ended just before.
const OPEN_TRIES: u32 = 5;

/// Why the relay has stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error("the outbox can't be read or written")]
    Database(#[from] rusqlite::Error),
    /// `fenced` among them: another relay has taken over, and this one has nothing more to do.
    #[error("the broker refuses")]
    Broker(#[from] tidelog_client::Error),
    #[error("no such stream can be")]
    Name(#[from] NameError),
    /// Its ids mean other rows: an older backup, or another database under this name. To go on would leave out events.
    #[error(
        "row {id} of the outbox is not what '{stream}' has under this number: this is not the database that has \
         published it"
    )]
    AnotherDatabase { stream: String, id: u64 },
}

/// One relay of one database. Two of them do no harm: the later one fences the earlier.
#[derive(Debug)]
pub(crate) struct Relay {
    client: Client,
    shop: Shop,
    name: ProducerName,
}

impl Relay {
    pub(crate) fn new(client: Client, shop: Shop) -> Result<Self, RelayError> {
        // Sequences are this database's ids, so they belong to this database's own name.
        let name = ProducerName::new(format!("outbox-{}", shop.identity()?))?;
        Ok(Self { client, shop, name })
    }

    /// The producer that it publishes as.
    pub(crate) fn name(&self) -> &ProducerName {
        &self.name
    }

    /// Publishes what is in the outbox and what comes, until there is an error that does not go away by itself. `wake`
    /// says that there may be new rows.
    ///
    /// May be dropped at any point: the next one begins where the broker says.
    pub(crate) async fn run(&mut self, wake: &Notify) -> Result<(), RelayError> {
        self.publish(Some(wake)).await
    }

    /// Publishes what is in the outbox, and returns when it is durable.
    pub(crate) async fn drain(&mut self) -> Result<(), RelayError> {
        self.publish(None).await
    }

    async fn publish(&mut self, wake: Option<&Notify>) -> Result<(), RelayError> {
        loop {
            match self.session(wake).await {
                Err(RelayError::Broker(error)) if error.is_retryable() => {
                    eprintln!("the relay waits for the broker: {error}");
                    sleep(WAIT_BEFORE_OPENING_AGAIN).await;
                }
                ended => return ended,
            }
        }
    }

    async fn session(&mut self, wake: Option<&Notify>) -> Result<(), RelayError> {
        let producer = self.open().await?;
        let mut streams = Streams { client: &self.client, producer: &producer, publishers: HashMap::new() };
        loop {
            let rows = self.shop.next_rows(ROWS_MAX)?;
            if rows.is_empty() {
                let Some(wake) = wake else { return Ok(producer.close().await?) };
                // Nobody may have told, or it has passed: both are no error.
                let _ = timeout(LOOK_EVERY, wake.notified()).await;
                continue;
            }
            for row in &rows {
                let publisher = streams.publisher(&self.shop, &row.stream).await?;
                // An earlier life has published the others and could not note it. Nothing else can be behind: rows become
                // visible in the order of their ids.
                if row.id > publisher.last_sequence().get() {
                    publisher.send_at(Sequence::new(row.id), record(row)).await?;
                }
            }
            producer.flush().await?;
            self.shop.mark_published(&rows)?;
        }
    }

    /// Takes over from whoever was there. The last request of a session that has just ended may arrive between the two that
    /// opening consists of, which is refused as `fenced`, with nothing done: then it is opened again.
    async fn open(&self) -> Result<Producer, tidelog_client::Error> {
        let mut tries = 1;
        loop {
            match self.client.producer(self.name.clone()).sparse(true).open().await {
                Err(error) if error.code() == Some(ErrorCode::Fenced) && tries < OPEN_TRIES => tries += 1,
                opened => return opened,
            }
        }
    }
}

/// The streams that one session has published to.
struct Streams<'a> {
    client: &'a Client,
    producer: &'a Producer,
    publishers: HashMap<String, Publisher>,
}

impl Streams<'_> {
    async fn publisher(&mut self, shop: &Shop, stream: &str) -> Result<&Publisher, RelayError> {
        let new = match self.publishers.entry(stream.to_owned()) {
            Entry::Occupied(known) => return Ok(known.into_mut()),
            Entry::Vacant(new) => new,
        };
        let name = StreamName::new(stream)?;
        let description = self.client.create_stream(&name, StreamSettings::default(), true).await?;
        let publisher = self.producer.stream(&description).await?;
        compare(&publisher, shop)?;
        Ok(new.insert(publisher))
    }
}

/// Whether what the broker has last is what the database has under this number.
fn compare(publisher: &Publisher, shop: &Shop) -> Result<(), RelayError> {
    let last = publisher.last_sequence();
    if last == Sequence::NONE {
        return Ok(());
    }
    match shop.row_with_id(last.get())? {
        Some(row) if record(&row).crc() == publisher.last_record_crc() => Ok(()),
        _ => Err(RelayError::AnotherDatabase { stream: publisher.stream_name().to_string(), id: last.get() }),
    }
}

/// Of a row alone, no clock: the same row is the same record whenever it is sent.
fn record(row: &Row) -> Record {
    Record::new(row.value.clone()).with_key(row.key.clone())
}
