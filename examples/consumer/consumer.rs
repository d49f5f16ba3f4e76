//! Reads a stream on from where the ledger is.

use tidelog_client::{Client, DeliveredBatch, Reader, ReaderEvent};
use tidelog_protocol::{Offset, Record, StartAt, StreamName};

use crate::ledger::{Ledger, LedgerError, Source, Transfer};

/// Why the consumer has stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsumerError {
    #[error("the stream can't be read")]
    Broker(#[from] tidelog_client::Error),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the record at offset {offset} is no transfer")]
    NoTransfer { offset: u64 },
    /// Retention has removed them, or they are damaged. A balance without them would be wrong, so somebody has to look.
    #[error("the records from offset {from} to {to} can't be had")]
    Missing { from: Offset, to: Offset },
    #[error("this program does not know what to do with {event}")]
    Unexpected { event: String },
}

/// One consumer of one stream.
#[derive(Debug)]
pub(crate) struct Consumer<'a> {
    ledger: &'a mut Ledger,
    source: Source,
    reader: Reader,
    next_offset: u64,
}

impl<'a> Consumer<'a> {
    pub(crate) async fn open(
        client: &Client,
        stream: &StreamName,
        ledger: &'a mut Ledger,
    ) -> Result<Self, ConsumerError> {
        let description = client.stream_info(stream).await?;
        let source = Source { stream: stream.to_string(), stream_id: description.id.get() };
        let next_offset = ledger.next_offset(&source)?;
        let from = StartAt::Offset { offset: Offset::new(next_offset) };
        let reader = client.reader(&description).from(from).follow(true).open().await?;
        Ok(Self { ledger, source, reader, next_offset })
    }

    /// Everything before this offset is in the ledger, and nothing else is.
    pub(crate) const fn next_offset(&self) -> u64 {
        self.next_offset
    }

    /// Waits for the next records and handles them. A program does so for ever; it may be dropped at any point.
    pub(crate) async fn handle_batch(&mut self) -> Result<(), ConsumerError> {
        match self.reader.next_batch().await? {
            Some(ReaderEvent::Batch(batch)) => self.handle(batch),
            Some(ReaderEvent::Gap { from, to } | ReaderEvent::Damaged { from, to }) => {
                Err(ConsumerError::Missing { from, to })
            }
            // A reader that follows has no end, and there are no other events yet.
            other => Err(ConsumerError::Unexpected { event: format!("{other:?}") }),
        }
    }

    /// A batch is a transaction: a stream that has much to read has large ones, one that is read as it grows small ones.
    fn handle(&mut self, batch: DeliveredBatch) -> Result<(), ConsumerError> {
        let from = batch.base_offset().get();
        let mut transfers = Vec::new();
        for delivered in batch {
            let delivered = delivered?;
            let no_transfer = ConsumerError::NoTransfer { offset: delivered.offset.get() };
            transfers.push(transfer(&delivered.record).ok_or(no_transfer)?);
        }
        self.next_offset = self.ledger.apply(&self.source, from, &transfers)?;
        Ok(())
    }
}

/// The account is the key, the cents are the value.
fn transfer(record: &Record) -> Option<Transfer> {
    let account = std::str::from_utf8(record.key.as_ref()?).ok()?.to_owned();
    let cents = std::str::from_utf8(&record.value).ok()?.parse().ok()?;
    Some(Transfer { account, cents })
}
