//! What a client does from its connection to its close, which of it is known to have happened, and what must be true of it.

use std::collections::BTreeMap;

use tidelog_client::{Client, Publisher, Reader, ReaderEvent};
use tidelog_protocol::{ProducerName, StartAt, StreamName, StreamSettings};

use super::plan::{Death, Plan, ROUNDS};

pub const STREAM: &str = "cuts";
pub const PRODUCER: &str = "cutter";

/// What the runs of one program have seen, over all of them.
#[derive(Debug, Default)]
pub struct Progress {
    /// The highest sequence that was handed to the client.
    pub sent: u64,
    /// The highest sequence that was called durable.
    pub acknowledged: u64,
    /// Offsets by sequence, from receipts.
    pub receipts: BTreeMap<u64, u64>,
    /// Records that receipts called duplicates.
    pub duplicates: u64,
    /// The next offset due to the consumer.
    pub seen: u64,
}

pub fn stream_name() -> StreamName {
    StreamName::new(STREAM).expect("a plain name")
}

pub fn producer_name() -> ProducerName {
    ProducerName::new(PRODUCER).expect("a plain name")
}

/// The record of a sequence; its own number in front, filled up with bytes that depend on it.
pub fn value(plan: &Plan, sequence: u64) -> Vec<u8> {
    let mut value = sequence.to_le_bytes().to_vec();
    value.resize(8 + plan.record_bytes, sequence as u8);
    value
}

/// Connects, makes the stream, opens the producer, publishes what is missing, reads all of it, closes.
///
/// # Errors
///
/// Says what went wrong: nothing may.
pub async fn run(client: &Client, plan: &Plan, progress: &mut Progress) -> Result<(), String> {
    let stream = client.create_stream(&stream_name(), StreamSettings::default(), true).await.map_err(|e| fault(&e))?;
    let builder = client.producer(producer_name()).receipts(true);
    let producer = builder.open().await.map_err(|e| fault(&e))?;
    let publisher = producer.stream(&stream).await.map_err(|e| fault(&e))?;
    let last = publisher.last_sequence().get();
    if last < progress.acknowledged || last > progress.sent {
        return Err(format!(
            "the broker has up to {last}; acknowledged are {}, sent {}",
            progress.acknowledged, progress.sent
        ));
    }
    let mut reader = None;
    if plan.follows {
        reader = Some(follow(client, progress).await?);
    }
    let mut receipt_due = last + 1;
    for round in 1..=ROUNDS {
        let end = round * plan.records;
        for sequence in (last + 1).max(end + 1 - plan.records)..=end {
            progress.sent = progress.sent.max(sequence);
            let given = publisher.send_value(&value(plan, sequence)).await.map_err(|e| fault(&e))?;
            if given.get() != sequence {
                return Err(format!("record {sequence} was given the sequence {given}"));
            }
        }
        publisher.flush().await.map_err(|e| fault(&e))?;
        take_receipts(&publisher, &mut receipt_due, progress)?;
        if let Some(reader) = &mut reader {
            read_up_to(reader, end, plan, progress).await?;
        }
    }
    let mut reader = match reader {
        Some(reader) => reader,
        None => follow(client, progress).await?,
    };
    read_up_to(&mut reader, plan.total(), plan, progress).await?;
    drop(reader);
    if publisher.published() + publisher.duplicates() != plan.total() - last {
        return Err(format!("{} stored and {} duplicates", publisher.published(), publisher.duplicates()));
    }
    producer.close().await.map_err(|e| fault(&e))?;
    client.close().await;
    Ok(())
}

fn fault(error: &tidelog_client::Error) -> String {
    format!("the client gave up: {error}")
}

/// A reader from where the last one stopped.
async fn follow(client: &Client, progress: &Progress) -> Result<Reader, String> {
    let from = StartAt::Offset { offset: tidelog_protocol::Offset::new(progress.seen) };
    client.reader(stream_name()).from(from).follow(true).open().await.map_err(|e| fault(&e))
}

/// Notes what has been called durable: each record once, in order.
fn take_receipts(publisher: &Publisher, due: &mut u64, progress: &mut Progress) -> Result<(), String> {
    while let Some(receipt) = publisher.try_next_receipt() {
        if receipt.first.get() != *due {
            return Err(format!("{receipt:?} where {due} is due"));
        }
        *due = receipt.last.get() + 1;
        progress.acknowledged = progress.acknowledged.max(receipt.last.get());
        progress.duplicates += u64::from(if receipt.duplicate { receipt.count } else { receipt.skip });
        let Some(base) = receipt.base_offset else { return Err(format!("{receipt:?} names no offset")) };
        let kept = receipt.first.get() + u64::from(receipt.skip);
        for (sequence, offset) in (kept..*due).zip(base.get()..) {
            if let Some(before) = progress.receipts.insert(sequence, offset) {
                return Err(format!(
                    "record {sequence} has a second receipt, for {offset}; the first was for {before}"
                ));
            }
        }
    }
    Ok(())
}

/// Takes what the reader gives until `end` records were seen; each has to be the next one.
async fn read_up_to(reader: &mut Reader, end: u64, plan: &Plan, progress: &mut Progress) -> Result<(), String> {
    while progress.seen < end {
        let event = reader.next_batch().await.map_err(|e| fault(&e))?;
        let Some(ReaderEvent::Batch(batch)) = event else {
            return Err(format!("the consumer was given {event:?} where offset {} is due", progress.seen));
        };
        for record in batch {
            let record = record.map_err(|e| fault(&e))?;
            check(plan, progress.seen, record.offset.get(), &record.record.value)?;
            progress.seen += 1;
        }
    }
    Ok(())
}

/// One producer alone fills the stream: sequence n is at offset n - 1, or something was lost, doubled or moved.
fn check(plan: &Plan, due: u64, offset: u64, bytes: &[u8]) -> Result<(), String> {
    if offset != due {
        return Err(format!("offset {offset} came where {due} is due"));
    }
    if bytes != value(plan, due + 1) {
        let number = bytes.first_chunk().map(|number| u64::from_le_bytes(*number));
        return Err(format!("offset {offset} has record {number:?} instead of {}", due + 1));
    }
    Ok(())
}

/// Holds the stream against what is known of it, over a connection that nothing disturbs; then the producer goes on.
///
/// # Errors
///
/// Says which promise is broken.
pub async fn settle(client: &Client, plan: &Plan, progress: &Progress) -> Result<(), String> {
    let mut reader = client.reader(stream_name()).open().await.map_err(|e| fault(&e))?;
    let mut due = 0;
    while let Some(event) = reader.next_batch().await.map_err(|e| fault(&e))? {
        let ReaderEvent::Batch(batch) = event else { return Err(format!("{event:?}")) };
        for record in batch {
            let record = record.map_err(|e| fault(&e))?;
            check(plan, due, record.offset.get(), &record.record.value)?;
            due += 1;
        }
    }
    if due != plan.total() || progress.seen != due || progress.acknowledged > due {
        return Err(format!("{due} records of {}; {progress:?}", plan.total()));
    }
    if let Some((sequence, offset)) = progress.receipts.iter().find(|(sequence, offset)| **sequence != **offset + 1) {
        return Err(format!("the receipt of record {sequence} names offset {offset}"));
    }
    if plan.death == Death::Never && progress.receipts.len() as u64 != due {
        return Err(format!("{} receipts of {due} records", progress.receipts.len()));
    }
    let producer = client.producer(producer_name()).open().await.map_err(|e| fault(&e))?;
    let publisher = producer.stream(stream_name()).await.map_err(|e| fault(&e))?;
    let given = publisher.send_value(b"the next").await.map_err(|e| fault(&e))?;
    publisher.flush().await.map_err(|e| fault(&e))?;
    let place = publisher.last_offset().map(|offset| offset.get());
    if (given.get(), place) != (due + 1, Some(due)) {
        return Err(format!("the next record became {given} at {place:?} behind {due} records"));
    }
    producer.close().await.map_err(|e| fault(&e))?;
    client.close().await;
    Ok(())
}
