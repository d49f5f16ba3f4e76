//! Reading back what was published, and comparing it with what was acknowledged.

use std::collections::HashMap;

use tidelog_client::{Client, DeliveredBatch, ReaderEvent};
use tidelog_protocol::{Offset, ProducerName, StreamDescription};

use super::ledger::{Lane, Payload};
use crate::cli::connect::failed;
use crate::cli::exit::CliError;

/// What is read of one stream, held against what its producers sent.
#[derive(Debug)]
pub(super) struct StreamCheck {
    lanes: Vec<Lane>,
    producers: HashMap<ProducerName, usize>,
    next: Offset,
}

impl StreamCheck {
    /// For a stream into which the producers have sent `lanes`, in the order of the producers.
    pub(super) fn new(names: &[ProducerName], lanes: Vec<Lane>) -> Self {
        Self { lanes, producers: names.iter().cloned().zip(0..).collect(), next: Offset::new(0) }
    }

    /// Takes the next event; gives the batch and the place of its producer.
    ///
    /// # Errors
    ///
    /// In words, if it does not follow what was read before.
    pub(super) fn take(&mut self, event: ReaderEvent) -> Result<(DeliveredBatch, usize), String> {
        let batch = match event {
            ReaderEvent::Batch(batch) => batch,
            ReaderEvent::Gap { from, to } => return Err(format!("offsets {from}..{to} are gone")),
            ReaderEvent::Damaged { from, to } => return Err(format!("offsets {from}..{to} are damaged")),
            other => return Err(format!("unexpected: {other:?}")),
        };
        if batch.base_offset() != self.next {
            return Err(format!("offset {} came where {} is due", batch.base_offset(), self.next));
        }
        let place = batch.producer().and_then(|name| self.producers.get(name)).copied();
        let Some(lane) = place.and_then(|place| self.lanes.get_mut(place)) else {
            return Err(format!("offset {} is of a stranger", self.next));
        };
        let (first, last) = batch.sequences();
        if last.get() + 1 - first.get() != batch.len() {
            return Err(format!("sequences {first} to {last} have {} offsets", batch.len()));
        }
        lane.read(first, last, batch.content_crc())?;
        self.next = batch.next_offset();
        Ok((batch, place.unwrap_or_default()))
    }

    /// Notes what the producers have sent, if that was not known from the start.
    pub(super) fn set_sent(&mut self, sent: &[Lane]) {
        for (lane, sent) in self.lanes.iter_mut().zip(sent) {
            lane.set_sent(sent);
        }
    }

    /// How many records were read.
    pub(super) fn records(&self) -> u64 {
        self.next.get()
    }

    /// Whether all that was sent has been read.
    ///
    /// # Errors
    ///
    /// In words, if not.
    pub(super) fn settle(&self) -> Result<(), String> {
        self.lanes.iter().try_for_each(Lane::settle)
    }
}

/// Compares the content of each record with what its producer made of it.
pub(super) fn check_content(batch: &DeliveredBatch, stream: u32, payload: &mut Payload) -> Result<(), String> {
    for record in batch.records() {
        let record = record.map_err(|error| error.to_string())?;
        let sequence = record.sequence.get();
        if record.record.value != payload.of(stream, sequence) {
            return Err(format!(
                "the record at offset {} has another value than number {sequence} was sent with",
                record.offset
            ));
        }
    }
    Ok(())
}

/// Reads streams from the start to their ends, each record's content included. `lanes` has for each producer what it sent to
/// each stream.
///
/// # Errors
///
/// The outer one if the streams can't be read; the inner one, in words, if they are not what was sent.
pub(super) async fn read_back(
    client: &Client,
    streams: &[StreamDescription],
    names: &[ProducerName],
    lanes: &[Vec<Lane>],
    size: usize,
) -> Result<Result<(), String>, CliError> {
    let mut payloads: Vec<_> = (0..names.len() as u64).map(|number| Payload::new(size, number)).collect();
    for (stream, place) in streams.iter().zip(0..) {
        let sent = lanes.iter().filter_map(|lanes| lanes.get(place).copied()).collect();
        let mut check = StreamCheck::new(names, sent);
        let mut reader = client.reader(stream).open().await.map_err(|error| failed(&error))?;
        let mut problem = None;
        while let Some(event) = reader.next_batch().await.map_err(|error| failed(&error))? {
            let checked = check.take(event).and_then(|(batch, producer)| match payloads.get_mut(producer) {
                Some(payload) => check_content(&batch, place as u32, payload),
                None => Ok(()),
            });
            if let Err(what) = checked {
                problem = Some(what);
                break;
            }
        }
        if let Err(what) = problem.map_or_else(|| check.settle(), Err) {
            return Ok(Err(format!("stream number {place}: {what}")));
        }
    }
    Ok(Ok(()))
}
