//! What programs were told to be stored, as it passed on the wire; and whether it still is.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tidelog_client::{Client, Error, ReaderEvent};
use tidelog_protocol::{BatchHeader, FrameKind, Outcome, Request, RequestFrame, StreamId, decode_answers};

/// A batch that a program has sent.
#[derive(Debug, Clone, Copy)]
struct Sent {
    stream: StreamId,
    count: u32,
    content_crc: u32,
}

/// A batch that a program was told to be stored.
#[derive(Debug, Clone, Copy)]
struct Stored {
    sent: Sent,
    /// Where; not known of a duplicate that is long ago.
    base_offset: Option<u64>,
    /// Records of it that had been stored before.
    skip: u32,
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
                session.unanswered.push_back(header.map(|header| Sent {
                    stream: header.stream,
                    count: header.count,
                    content_crc: header.content_crc,
                }));
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
            let Some(Some(sent)) = session.unanswered.pop_front() else { continue };
            if matches!(answer.outcome, Outcome::Stored | Outcome::Duplicate) {
                let base_offset = answer.base_offset.map(|offset| offset.get());
                seen.stored.push(Stored { sent, base_offset, skip: answer.skip });
            }
        }
    }

    /// How many records programs were told to be stored, duplicates included.
    pub(super) fn acknowledged(&self) -> u64 {
        self.lock().stored.iter().map(|stored| u64::from(stored.sent.count)).sum()
    }

    /// Reads every stream of which something was acknowledged.
    pub(super) async fn check(&self, client: &Client) -> Result<Result<(), AcknowledgedLoss>, Error> {
        // Before anything is read: what is acknowledged later may not be there when it is.
        let (stored, removed) = {
            let seen = self.lock();
            (seen.stored.clone(), seen.removed.clone())
        };
        let streams: HashMap<_, _> =
            client.list_streams().await?.into_iter().map(|stream| (stream.id, stream.name)).collect();
        let mut lines = Vec::new();
        let mut batches: HashMap<StreamId, Batches> = HashMap::new();
        for Stored { sent, base_offset, skip } in stored.into_iter().filter(|it| !removed.contains(&it.sent.stream)) {
            let Some(name) = streams.get(&sent.stream) else {
                lines.push(format!("the stream with id {} is gone, with {} records", sent.stream, sent.count));
                continue;
            };
            let found = match batches.entry(sent.stream) {
                Entry::Occupied(read) => read.into_mut(),
                Entry::Vacant(unread) => unread.insert(Batches::read(client, name).await?),
            };
            let is_there = match base_offset {
                Some(offset) => found.at.get(&offset) == Some(&sent.content_crc),
                None => found.checksums.contains(&sent.content_crc),
            };
            if !is_there {
                let count = u64::from(sent.count - skip.min(sent.count));
                lines.push(match base_offset {
                    Some(offset) => format!("stream '{name}', offsets {offset}..{}", offset + count),
                    None => format!("stream '{name}', {count} records that were called duplicates"),
                });
            }
        }
        Ok(if lines.is_empty() { Ok(()) } else { Err(AcknowledgedLoss { lines }) })
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The batches of a stream as a reader gets them.
#[derive(Debug, Default)]
struct Batches {
    /// The checksum of the batch whose first record that is kept stands there.
    at: HashMap<u64, u32>,
    checksums: HashSet<u32>,
}

impl Batches {
    async fn read(client: &Client, stream: &tidelog_protocol::StreamName) -> Result<Self, Error> {
        let mut reader = client.reader(stream.clone()).open().await?;
        let mut batches = Self::default();
        while let Some(event) = reader.next_batch().await? {
            // Gaps and damage are no records: what was acknowledged there is missed.
            if let ReaderEvent::Batch(batch) = event {
                batches.at.insert(batch.base_offset().get(), batch.content_crc());
                batches.checksums.insert(batch.content_crc());
            }
        }
        Ok(batches)
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
