//! What programs were told to be stored, as it passed on the wire; and whether it still is.

use std::collections::hash_map::{DefaultHasher, Entry};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::hash::{Hash as _, Hasher as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tidelog_client::{Client, Error, ReaderEvent};
use tidelog_protocol::{
    BatchHeader, BatchRecords, ErrorCode, FrameKind, Outcome, Record, Request, RequestFrame, Sequence, StreamId,
    StreamName, decode_answers,
};

/// A batch that a program has sent and that is not answered yet.
#[derive(Debug)]
struct Sent {
    header: BatchHeader,
    batch: Bytes,
}

/// A batch that a program was told to be stored.
#[derive(Debug, Clone)]
struct Stored {
    stream: StreamId,
    count: u32,
    content_crc: u32,
    /// Where; not known of a duplicate that is long ago.
    base_offset: Option<u64>,
    /// Records of it that had been stored before.
    skip: u32,
    /// The fingerprints of those records that had been: nobody knows how they were cut into batches then.
    before: Vec<u64>,
}

impl Stored {
    /// What there is to be told of its loss.
    fn lost(&self, stream: &StreamName) -> String {
        let count = u64::from(self.count - self.skip.min(self.count));
        match self.base_offset {
            Some(offset) => format!("stream '{stream}', offsets {offset}..{}", offset + count),
            None => format!("stream '{stream}', {count} records that were called duplicates"),
        }
    }
}

/// Tells records of one stream apart. Two producers may have sent the same one; then either counts for both.
fn fingerprint(sequence: Sequence, record: &Record) -> u64 {
    let mut hasher = DefaultHasher::new();
    sequence.get().hash(&mut hasher);
    record.key.hash(&mut hasher);
    record.value.hash(&mut hasher);
    record.timestamp_ms.hash(&mut hasher);
    for header in &record.headers {
        header.name.hash(&mut hasher);
        header.value.hash(&mut hasher);
    }
    hasher.finish()
}

/// The batches of one QUIC stream that are not answered yet.
#[derive(Debug, Default)]
pub(super) struct SessionWitness {
    unanswered: VecDeque<Option<Sent>>,
}

/// Sees all that passes between programs and broker.
#[derive(Debug, Default)]
pub(super) struct Witness {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    stored: Vec<Stored>,
    /// Somebody has asked for their removal.
    removed: HashSet<StreamId>,
}

/// Something was acknowledged and is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcknowledgedLoss {
    lines: Vec<String>,
}

impl fmt::Display for AcknowledgedLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "acknowledged records are lost:")?;
        self.lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl std::error::Error for AcknowledgedLoss {}

impl Witness {
    /// A frame has arrived at the broker.
    pub(super) fn request(&self, session: &mut SessionWitness, kind: FrameKind, body: &Bytes) {
        match kind {
            FrameKind::Publish => {
                let header = BatchHeader::decode(body).ok();
                session.unanswered.push_back(header.map(|header| Sent { header, batch: body.clone() }));
            }
            FrameKind::Request => {
                if let Ok(RequestFrame { request: Request::RemoveStream { stream }, .. }) = RequestFrame::decode(body) {
                    self.lock().removed.insert(stream);
                }
            }
            _ => {}
        }
    }

    /// A frame has left the broker.
    pub(super) fn answer(&self, session: &mut SessionWitness, kind: FrameKind, body: &Bytes) {
        if kind != FrameKind::Answers {
            return;
        }
        let Ok((_, answers)) = decode_answers(body) else { return };
        let mut seen = self.lock();
        for answer in answers {
            let Some(Some(Sent { header, batch })) = session.unanswered.pop_front() else { continue };
            let before = match answer.outcome {
                Outcome::Stored => answer.skip,
                Outcome::Duplicate => header.count,
                Outcome::Refused { .. } => continue,
            };
            seen.stored.push(Stored {
                stream: header.stream,
                count: header.count,
                content_crc: header.content_crc,
                base_offset: answer.base_offset.map(|offset| offset.get()),
                skip: answer.skip,
                before: fingerprints(&batch, before),
            });
        }
    }

    /// How many records programs were told to be stored, duplicates included.
    pub(super) fn acknowledged(&self) -> u64 {
        self.lock().stored.iter().map(|stored| u64::from(stored.count)).sum()
    }

    /// Reads every stream of which something was acknowledged.
    pub(super) async fn check(&self, client: &Client) -> Result<Result<(), AcknowledgedLoss>, Error> {
        // Before anything is read: what is acknowledged later may not be there when it is.
        let stored = self.lock().stored.clone();
        let streams: HashMap<_, _> =
            client.list_streams().await?.into_iter().map(|stream| (stream.id, stream.name)).collect();
        let mut lines = Vec::new();
        let mut batches: HashMap<StreamId, Batches> = HashMap::new();
        for stored in stored {
            let Some(name) = streams.get(&stored.stream) else {
                if !self.is_removed(stored.stream) {
                    lines.push(format!("the stream with id {} is gone, with {} records", stored.stream, stored.count));
                }
                continue;
            };
            let found = match batches.entry(stored.stream) {
                Entry::Occupied(read) => read.into_mut(),
                Entry::Vacant(unread) => match Batches::read(client, name).await {
                    Ok(found) => unread.insert(found),
                    // Just now.
                    Err(error) if has_gone(&error) && self.is_removed(stored.stream) => continue,
                    Err(error) => return Err(error),
                },
            };
            if !found.have(&stored) {
                lines.push(stored.lost(name));
            }
        }
        Ok(if lines.is_empty() { Ok(()) } else { Err(AcknowledgedLoss { lines }) })
    }

    /// Somebody has asked for its removal, which may have been refused.
    fn is_removed(&self, stream: StreamId) -> bool {
        self.lock().removed.contains(&stream)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn has_gone(error: &Error) -> bool {
    matches!(error.code(), Some(ErrorCode::StreamGone | ErrorCode::NotFound))
}

/// Of the first records of a batch.
fn fingerprints(batch: &Bytes, records: u32) -> Vec<u64> {
    // The broker has checked every one of them before it took the batch.
    let of_batch = BatchRecords::new(batch).into_iter().flatten().flatten();
    of_batch.take(records as usize).map(|(sequence, record)| fingerprint(sequence, &record)).collect()
}

/// The batches of a stream as a reader gets them.
#[derive(Debug, Default)]
struct Batches {
    /// The checksum of the batch whose first record that is kept stands there.
    at: HashMap<u64, u32>,
    /// Of each record, where it stands.
    records: HashMap<u64, Vec<u64>>,
}

impl Batches {
    async fn read(client: &Client, stream: &StreamName) -> Result<Self, Error> {
        let mut reader = client.reader(stream.clone()).open().await?;
        let mut batches = Self::default();
        while let Some(event) = reader.next_batch().await? {
            // Gaps and damage are no records: what was acknowledged there is missed.
            if let ReaderEvent::Batch(batch) = event {
                batches.at.insert(batch.base_offset().get(), batch.content_crc());
                for record in batch {
                    let record = record?;
                    let places = batches.records.entry(fingerprint(record.sequence, &record.record)).or_default();
                    places.push(record.offset.get());
                }
            }
        }
        Ok(batches)
    }

    /// What is new of it stands as it was sent where it was said to be; what had been there before stands in order.
    fn have(&self, stored: &Stored) -> bool {
        let is_new = stored.before.len() < stored.count as usize;
        if is_new && stored.base_offset.is_none_or(|offset| self.at.get(&offset) != Some(&stored.content_crc)) {
            return false;
        }
        // Of a duplicate the first offset may be known; records between its own may be others'.
        let mut from = if is_new { 0 } else { stored.base_offset.unwrap_or_default() };
        let is_first_known = !is_new && stored.base_offset.is_some();
        stored.before.iter().enumerate().all(|(index, record)| {
            let places = self.records.get(record).map(Vec::as_slice).unwrap_or_default();
            let Some(&place) = places.iter().find(|place| **place >= from) else { return false };
            let is_right = index > 0 || !is_first_known || place == from;
            from = place + 1;
            is_right
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_names_stream_and_offsets() {
        let loss = AcknowledgedLoss { lines: vec!["stream 'orders', offsets 3..5".to_owned()] };
        assert_eq!(loss.to_string(), "acknowledged records are lost:\n  stream 'orders', offsets 3..5");
    }
}
