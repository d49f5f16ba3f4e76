//! Records on their way to the open batches of many streams.
//!
//! The open batches of a thousand streams do not fit a processor's nearest caches. Each record that goes straight to its
//! batch waits for memory, since the lock around the window is given back only when all that was written has arrived:
//! 150 ns, more than all else together. So records are written one behind the other first, and some hundred of them go
//! to their batches at a time, where the waits overlap.

use bytes::BufMut;

use super::Body;

/// Bytes gathered before they go to their batches: they fit the nearest cache.
const STAGED_BYTES: usize = 16 * 1024;

/// Longer records go to their batches at once: copying them twice costs more than waiting once.
const STAGED_BODY_BYTES_MAX: usize = 1024;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Staging {
    bytes: Vec<u8>,
    /// Of which stream each record is, and how long its body.
    records: Vec<(usize, usize)>,
}

impl Staging {
    /// Whether such a record goes this way.
    pub(super) fn takes(body: Body<'_>) -> bool {
        body.encoded_len() <= STAGED_BODY_BYTES_MAX
    }

    /// Takes a record in; whether that is enough now.
    pub(super) fn put(&mut self, slot: usize, body: Body<'_>) -> bool {
        match body {
            Body::Record(record) => record.encode_into(&mut self.bytes),
            Body::Value(value) => {
                // Its flags.
                self.bytes.put_u8(0);
                self.bytes.put_slice(value);
            }
        }
        self.records.push((slot, body.encoded_len()));
        self.bytes.len() >= STAGED_BYTES
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// What is here, in the order in which it came, and where it goes.
    pub(super) fn bodies(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let mut rest = self.bytes.as_slice();
        self.records.iter().map_while(move |(slot, len)| {
            let (body, behind) = rest.split_at_checked(*len)?;
            rest = behind;
            Some((*slot, body))
        })
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
    }
}
