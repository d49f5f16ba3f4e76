//! Reading in a run: a consumer that follows and notes what it is given, and a reader that reads all there is.

use std::sync::Arc;

use tidelog_client::{Client, DeliveredBatch, Error, ReaderEvent};
use tidelog_protocol::{Offset, StartAt, StreamName};

use super::board::Board;
use super::broker::connect;
use super::failure::Failure;
use super::payload::{self, Identity};

/// Follows a stream for ever and notes everything it is given.
///
/// # Errors
///
/// A violation for damage, gaps, records that were never sent and errors that a restart must not bring.
pub async fn follow(
    stream: usize,
    name: StreamName,
    board: Arc<Board>,
    address: String,
) -> Result<std::convert::Infallible, Failure> {
    let client = connect(&address).await?;
    let opening = client.reader(&name).follow(true).open();
    let mut reader = opening.await.map_err(|error| judge(&name, error))?;
    loop {
        let event = reader.next_batch().await.map_err(|error| judge(&name, error))?;
        let Some(event) = event else {
            return Err(Failure::Violation(format!("a follower of '{name}' was told that the stream has ended")));
        };
        let (base, records) = records(board.seed, &name, event)?;
        board.note(stream, |ledger| {
            (base..).zip(&records).try_for_each(|(offset, identity)| ledger.note_seen(offset, *identity))
        });
    }
}

/// Everything that the stream holds now, from offset 0 on.
///
/// # Errors
///
/// A violation if something can't be read or was never sent.
pub async fn read_all(client: &Client, name: &StreamName, seed: u64) -> Result<Vec<Identity>, Failure> {
    read_from(client, name, seed, 0).await
}

/// Everything that the stream holds now, from this offset on.
///
/// # Errors
///
/// A violation if something can't be read or was never sent.
pub async fn read_from(client: &Client, name: &StreamName, seed: u64, from: u64) -> Result<Vec<Identity>, Failure> {
    let opening = client.reader(name).from(StartAt::Offset { offset: Offset::new(from) }).open();
    let mut reader = opening.await.map_err(|error| judge(name, error))?;
    let mut all = Vec::new();
    while let Some(event) = reader.next_batch().await.map_err(|error| judge(name, error))? {
        let (base, mut records) = records(seed, name, event)?;
        let due = from + all.len() as u64;
        // A batch comes whole, though it may begin before what was asked for.
        let known = usize::try_from(due.saturating_sub(base)).unwrap_or(usize::MAX);
        if base > due || (base < due && !all.is_empty()) {
            return Err(Failure::Violation(format!("'{name}' goes on with offset {base} behind {due}")));
        }
        records.drain(..known.min(records.len()));
        all.extend(records);
    }
    Ok(all)
}

/// Base offset and records.
fn records(seed: u64, name: &StreamName, event: ReaderEvent) -> Result<(u64, Vec<Identity>), Failure> {
    let ReaderEvent::Batch(batch) = event else {
        return Err(Failure::Violation(format!("a reader of '{name}' was told {event:?}")));
    };
    let base = batch.base_offset().get();
    match identify(seed, &batch) {
        Ok(records) => Ok((base, records)),
        Err(what) => Err(Failure::Violation(format!("'{name}', in the batch from offset {base} on: {what}"))),
    }
}

fn identify(seed: u64, batch: &DeliveredBatch) -> Result<Vec<Identity>, String> {
    let mut all = Vec::new();
    for (due, record) in (batch.base_offset().get()..).zip(batch.records()) {
        let record = record.map_err(|error| error.to_string())?;
        let identity = payload::decode(seed, &record.record.value)?;
        let producer = batch.producer().map(ToString::to_string);
        if record.offset.get() != due
            || record.sequence.get() != identity.sequence
            || producer != Some(producer_name(identity.producer))
        {
            return Err(format!(
                "{identity} comes as offset {}, sequence {} of {producer:?}",
                record.offset, record.sequence
            ));
        }
        all.push(identity);
    }
    Ok(all)
}

/// The name under which a producer of this number publishes.
pub fn producer_name(producer: u8) -> String {
    format!("producer-{producer}")
}

fn judge(name: &StreamName, error: Error) -> Failure {
    match error {
        Error::TimedOut { .. } | Error::Unreachable { .. } | Error::Lost { .. } => {
            Failure::trouble(format_args!("reading '{name}'"), error)
        }
        refused => Failure::Violation(format!("reading '{name}': {refused}")),
    }
}
