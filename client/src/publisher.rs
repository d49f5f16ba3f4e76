//! A producer's end of one stream: records in, acknowledgements and receipts out.

use std::fmt;
use std::sync::Arc;

use tidelog_protocol::{Offset, Record, Sequence, StreamDescription, StreamName};

use crate::error::Error;
use crate::producer::Opened;
use crate::window::{Acknowledgement, Body, Push, Receipt, Window};

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
    pub(crate) fn new(opened: Arc<Opened>, slot: usize, description: StreamDescription, last_record_crc: u32) -> Self {
        Self { opened, slot, description, last_record_crc }
    }

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
    /// durable when [`flush`](Self::flush) returns or its receipt comes. [`publish`](Self::publish) waits for that.
    ///
    /// Cancel safe: if the future is dropped before it is ready the record was not taken.
    ///
    /// # Errors
    ///
    /// [`Error::Record`] if the record is beyond the broker's limits, `sequence_mode` if the producer is
    /// [sparse](crate::ProducerBuilder::sparse): the record was not taken, and nothing has ended. Otherwise the error that ended
    /// the producer or this stream.
    pub async fn send(&self, record: Record) -> Result<Sequence, Error> {
        self.append(None, Body::Record(&record)).await
    }

    /// [`send`](Self::send) of a record that is only a value, without making one.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    pub async fn send_value(&self, value: &[u8]) -> Result<Sequence, Error> {
        self.append(None, Body::Value(value)).await
    }

    /// [`send`](Self::send) of a record that the application has numbered itself: by the number of a line, the offset of a
    /// source plus one, the id of an outbox row. The same record must have the same number whenever it is sent; then it
    /// is stored once through restarts of the application, too.
    ///
    /// - Dense, the default: each number is one more than the one before. The first may be any from 1 to one more than
    ///   [`last_sequence`](Self::last_sequence): what is stored already is a duplicate, a success. Of those only the last
    ///   one stored is compared; if it is another record, that is `sequence_reused`.
    /// - [Sparse](crate::ProducerBuilder::sparse): each number is above the one before, and the first above
    ///   [`last_sequence`](Self::last_sequence). Anything else is refused as `sequence_past`, never taken for a
    ///   duplicate: that a higher number is stored does not show that this one is.
    ///
    /// Cancel safe as [`send`](Self::send) is: the number can be given again.
    ///
    /// ```
    /// # use tidelog_client::*;
    /// # use tidelog_protocol::*;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let broker = tidelog::Broker::start(tidelog::BrokerConfig::in_memory())?;
    /// # let client = Client::connect(ClientConfig::find(&broker.address().parse()?, None)?).await?;
    /// # let orders = client.create_stream(&StreamName::new("orders")?, StreamSettings::default(), true).await?;
    /// let lines = ["one", "two", "three"];
    /// // The same input sent twice, as after a crash: its lines are stored once.
    /// for published in [3, 0] {
    ///     let producer = client.producer(ProducerName::new("import")?).open().await?;
    ///     let publisher = producer.stream(&orders).await?;
    ///     for (number, line) in (1..).zip(lines) {
    ///         publisher.send_at(Sequence::new(number), Record::new(line)).await?;
    ///     }
    ///     producer.close().await?;
    ///     assert_eq!((publisher.published(), publisher.duplicates()), (published, 3 - published));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// `sequence_gap` or `sequence_past` if the number does not fit: the record was not taken, nothing has ended, and
    /// records that do fit can follow. Otherwise as for [`send`](Self::send).
    pub async fn send_at(&self, sequence: Sequence, record: Record) -> Result<Sequence, Error> {
        self.append(Some(sequence), Body::Record(&record)).await
    }

    /// [`send_at`](Self::send_at) of a record that is only a value, without making one.
    ///
    /// # Errors
    ///
    /// As for [`send_at`](Self::send_at).
    pub async fn send_value_at(&self, sequence: Sequence, value: &[u8]) -> Result<Sequence, Error> {
        self.append(Some(sequence), Body::Value(value)).await
    }

    async fn append(&self, sequence: Option<Sequence>, body: Body<'_>) -> Result<Sequence, Error> {
        // Without the wait's registration where there is room: that is once for each record.
        let pushed = self.opened.shared.lock().push(self.slot, sequence, body)?;
        let (taken, wake) = match pushed {
            Push::Taken { sequence, wake } => (sequence, wake),
            Push::Full => {
                let taken = |_: &mut Window, taken, wake| (taken, wake);
                self.append_when_room(sequence, body, taken).await?
            }
        };
        if wake {
            self.opened.shared.work.notify_one();
        }
        Ok(taken)
    }

    /// Takes the record as soon as there is room, and gives what `taken` makes of it before anybody else comes.
    async fn append_when_room<T>(
        &self,
        sequence: Option<Sequence>,
        body: Body<'_>,
        mut taken: impl FnMut(&mut Window, Sequence, bool) -> T,
    ) -> Result<T, Error> {
        let slot = self.slot;
        self.opened
            .wait(|window| match window.push(slot, sequence, body) {
                Ok(Push::Taken { sequence, wake }) => Some(Ok(taken(window, sequence, wake))),
                Ok(Push::Full) => None,
                Err(error) => Some(Err(error)),
            })
            .await
    }

    /// Sends a record and waits until it is acknowledged in the way that the producer was opened for: by default, until
    /// it is durable. Many calls at a time travel together; one after the other they cost a round trip and a sync each.
    ///
    /// If the future is dropped before it is ready, the record was either not taken or is sent as any other, once: the
    /// wait is given up, not the record.
    ///
    /// ```
    /// # use tidelog_client::*;
    /// # use tidelog_protocol::*;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let broker = tidelog::Broker::start(tidelog::BrokerConfig::in_memory())?;
    /// # let client = Client::connect(ClientConfig::find(&broker.address().parse()?, None)?).await?;
    /// # let orders = client.create_stream(&StreamName::new("orders")?, StreamSettings::default(), true).await?;
    /// let producer = client.producer(ProducerName::new("shop")?).open().await?;
    /// let publisher = producer.stream(&orders).await?;
    /// let told = publisher.publish(Record::new("two apples")).await?;
    /// assert!(told.durable);
    /// assert_eq!((told.sequence, told.offset), (Sequence::new(1), Some(Offset::new(0))));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send); the error that ended the producer or this stream before the record was acknowledged,
    /// and then it may be stored.
    pub async fn publish(&self, record: Record) -> Result<Acknowledgement, Error> {
        self.append_and_wait(None, Body::Record(&record)).await
    }

    /// [`publish`](Self::publish) of a record that the application has numbered itself, as for
    /// [`send_at`](Self::send_at). If the future is dropped, [`last_sequence`](Self::last_sequence) after a
    /// [`flush`](Self::flush) tells whether it was taken.
    ///
    /// # Errors
    ///
    /// As for [`publish`](Self::publish) and [`send_at`](Self::send_at).
    pub async fn publish_at(&self, sequence: Sequence, record: Record) -> Result<Acknowledgement, Error> {
        self.append_and_wait(Some(sequence), Body::Record(&record)).await
    }

    async fn append_and_wait(&self, sequence: Option<Sequence>, body: Body<'_>) -> Result<Acknowledgement, Error> {
        let slot = self.slot;
        // Taken and watched in one step, so that no later record is watched instead.
        let watched = self.append_when_room(sequence, body, |window, _, _| window.watch_last(slot)).await?;
        self.opened.shared.work.notify_one();
        watched.await.unwrap_or(Err(Error::Closed))
    }

    /// Waits until everything that was sent here before is acknowledged in the way that the producer was opened for. With
    /// [`Ack::Durable`](crate::Ack::Durable) that is what [`flush`](Self::flush) waits for.
    ///
    /// Cancel safe: it only waits.
    ///
    /// # Errors
    ///
    /// As for [`flush`](Self::flush).
    pub async fn acknowledged(&self) -> Result<(), Error> {
        self.wait_until(|window, slot| window.acknowledged(slot)).await
    }

    /// Waits until more than `records` of those that were sent here are acknowledged in the way that the producer was opened
    /// for, and gives how many are: for programs that keep a number of records under way.
    ///
    /// Cancel safe: it only waits.
    ///
    /// # Errors
    ///
    /// As for [`flush`](Self::flush).
    pub async fn acknowledged_beyond(&self, records: u64) -> Result<u64, Error> {
        let slot = self.slot;
        self.opened
            .wait(|window| {
                let acknowledged = window.acknowledged(slot);
                if acknowledged > records {
                    return Some(Ok(acknowledged));
                }
                let ended = window.stream(slot).failure.as_deref().or(window.failure.as_ref());
                ended.map(|error| Err(error.clone()))
            })
            .await
    }

    /// Waits until everything that was sent here before is durable.
    ///
    /// Cancel safe: it only waits.
    ///
    /// # Errors
    ///
    /// The error that ended the producer or this stream, also if all that was sent before is durable. What was not
    /// acknowledged may or may not be stored; [`Error::is_safe_to_resend`] tells whether any of it may be.
    pub async fn flush(&self) -> Result<(), Error> {
        self.wait_until(|window, slot| window.stream(slot).settled).await
    }

    /// Waits until `reached` counts all records that were taken in by now.
    async fn wait_until(&self, reached: impl Fn(&Window, usize) -> u64) -> Result<(), Error> {
        let slot = self.slot;
        let target = self.opened.shared.lock().stream(slot).pushed;
        self.opened
            .wait(|window| {
                let ended = window.stream(slot).failure.as_deref().or(window.failure.as_ref());
                match ended {
                    // Closed, but all of it was done before.
                    Some(Error::Closed) | None if reached(window, slot) >= target => Some(Ok(())),
                    ended => ended.map(|error| Err(error.clone())),
                }
            })
            .await
    }

    /// Takes no more records and waits until all are durable.
    ///
    /// Cancel safe: once it was polled no more records are taken, and it can be called again to wait.
    ///
    /// # Errors
    ///
    /// As for [`flush`](Self::flush).
    pub async fn close(&self) -> Result<(), Error> {
        self.opened.shared.lock().stream_mut(self.slot).closed = true;
        self.opened.shared.changed.notify_waiters();
        self.flush().await
    }

    /// The next batch that became durable, if the producer was opened with [`ProducerBuilder::receipts`](crate::ProducerBuilder::receipts). `None` when no
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
