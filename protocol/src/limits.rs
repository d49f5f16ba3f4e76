//! Every maximum of the protocol, with its unit and reason, and the limits that a broker tells in its welcome.

use serde::{Deserialize, Serialize};

use crate::batch_header::BATCH_HEADER_LEN;
use crate::deliver::DELIVER_HEADER_LEN;
use crate::frame::FRAME_HEADER_LEN;
use crate::leb128;

/// The application protocol of the TLS handshake: anything else that listens there is refused before a byte is sent.
pub const ALPN: &[u8] = b"tidelog/1";

/// The version that [`Hello`](crate::Hello) offers and [`Welcome`](crate::Welcome) settles.
pub const PROTOCOL_VERSION: u16 = 1;

/// Bytes of one record unless configured: key, headers and value together, as the application gave them. Larger events
/// belong in an object store, with the event naming them.
pub const RECORD_BYTES_MAX_DEFAULT: u32 = 1 << 20;

/// Bytes of one record at the most, whatever is configured: a record is held whole in memory, several times over.
pub const RECORD_BYTES_MAX_CEILING: u32 = 16 << 20;

/// Bytes that a record's encoding may take beyond what the application gave: flags, timestamp, key length, header count,
/// and two lengths for each header, all at their longest.
pub const RECORD_OVERHEAD_BYTES_MAX: usize =
    1 + leb128::encoded_len(u64::MAX) + LENGTH_BYTES_MAX + LENGTH_BYTES_MAX + HEADERS_COUNT_MAX * 2 * LENGTH_BYTES_MAX;

/// Bytes of a LEB128 length below 2^32.
const LENGTH_BYTES_MAX: usize = leb128::encoded_len(u32::MAX as u64);

/// Bytes that one record of a sparse batch may take in the block of sequences; whoever fills a sparse batch leaves
/// so much room for each.
pub const SEQUENCE_DELTA_BYTES_MAX: usize = leb128::encoded_len(u64::MAX >> 1);

/// Bytes of a batch's content unless it holds a single record: large enough that headers and syncs cost nothing, small
/// enough that a group of writes stays even.
pub const BATCH_CONTENT_BYTES_MAX: u32 = 1 << 20;

/// Bytes of a record's key: keys are compared and kept by name, they are not a second value.
pub const KEY_BYTES_MAX: u32 = 64 << 10;

/// Bytes of a record's headers, names and values together.
pub const HEADERS_BYTES_MAX: u32 = 64 << 10;

/// Headers of one record: each costs a consumer an allocation's share, empty ones too.
pub const HEADERS_COUNT_MAX: usize = 256;

/// Records of one batch: bounds the walk over a megabyte of empty ones.
pub const BATCH_RECORDS_MAX: u32 = 65_536;

/// Bytes of a JSON frame's body: every request and answer is far smaller, and a peer that is not yet trusted can make
/// the other side hold no more.
pub const CONTROL_FRAME_BYTES_MAX: usize = 64 << 10;

/// Streams or producers in one page of a listing: with the longest names they still fit one JSON frame.
pub const LIST_ITEMS_MAX: u32 = 128;

/// Bytes of batches that a client keeps unanswered unless told otherwise: bandwidth times delay of 1 GB/s and 4 ms.
pub const CLIENT_WINDOW_BYTES_DEFAULT: u32 = 4 << 20;

/// Bytes of the largest UDP payload that both sides offer; the path decides by probing what is used, from 1,200 on.
/// Loopback takes 64 KiB, but ten such segments, as many as quinn gives to the kernel at once, must fit 64 KiB.
pub const UDP_PAYLOAD_BYTES_MAX: u16 = 6_000;

/// Bytes of the first congestion window of a connection, of both sides: ten datagrams, as RFC 9002, 7.2 has it, without its
/// bound for datagrams that no path of the internet takes. QUIC libraries begin with some 12,000 bytes, of which one datagram
/// of this size is half; a sender may then have one of them unacknowledged, and its receiver, which has had only one,
/// delays the acknowledgement: the rest of a burst waits up to 25 ms.
pub const INITIAL_CONGESTION_WINDOW_BYTES: u64 = 10 * UDP_PAYLOAD_BYTES_MAX as u64;

/// Milliseconds that each side asks the other to delay an acknowledgement at most; QUIC's default is 25. It is what a
/// sender waits for whose congestion window has room for one datagram only, as after losses.
pub const ACKNOWLEDGEMENT_DELAY_MS_MAX: u64 = 5;

/// Bytes of a name.
pub const NAME_BYTES_MAX: usize = 255;

/// Bytes of one append of a `measure_sync` request.
pub const MEASURE_APPEND_BYTES_MAX: u32 = 1 << 20;

/// Appends of a `measure_sync` request: their times fit one control frame several times over.
pub const MEASURE_APPENDS_MAX: u32 = 1_024;

/// Bytes of all appends of a `measure_sync` request: what it takes of the disk while it runs.
pub const MEASURE_BYTES_MAX: u64 = 64 << 20;

/// Bytes that a `source` request gives at most.
pub const MEASURE_SOURCE_BYTES_MAX: u64 = 1 << 30;

/// What one broker accepts, told in its welcome.
///
/// A value that the other side left out is the default. Values above this crate's own ceilings
/// ([`RECORD_BYTES_MAX_CEILING`], [`BATCH_CONTENT_BYTES_MAX`], [`BATCH_RECORDS_MAX`]) count as those ceilings wherever
/// they bound a length, so that a peer can't talk anybody into larger buffers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes of one record: key, headers and value together.
    pub record_bytes_max: u32,
    /// Bytes of a batch's content unless it holds a single record.
    pub batch_content_bytes_max: u32,
    /// Bytes of a key.
    pub key_bytes_max: u32,
    /// Bytes of one record's headers together.
    pub headers_bytes_max: u32,
    /// Records of one batch.
    pub batch_records_max: u32,
    /// Bytes of unanswered batches that one session may have.
    pub window_bytes_max: u32,
    /// Streams of the broker.
    pub streams_max: u64,
    /// Named producers of the broker.
    pub producers_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            record_bytes_max: RECORD_BYTES_MAX_DEFAULT,
            batch_content_bytes_max: BATCH_CONTENT_BYTES_MAX,
            key_bytes_max: KEY_BYTES_MAX,
            headers_bytes_max: HEADERS_BYTES_MAX,
            batch_records_max: BATCH_RECORDS_MAX,
            window_bytes_max: CLIENT_WINDOW_BYTES_DEFAULT,
            streams_max: 100_000,
            producers_max: 100_000,
        }
    }
}

impl Limits {
    /// Bytes of the largest frame under these limits, its header included: what a receiver has to be able to hold.
    #[must_use]
    pub fn frame_bytes_max(&self) -> usize {
        let deliver = DELIVER_HEADER_LEN + self.batch_bytes_max();
        FRAME_HEADER_LEN + deliver.max(CONTROL_FRAME_BYTES_MAX).max(crate::publish::ANSWERS_BODY_BYTES_MAX)
    }

    /// Bytes of the largest batch, its header included.
    #[must_use]
    pub fn batch_bytes_max(&self) -> usize {
        BATCH_HEADER_LEN + self.content_bytes_max(1).max(self.content_bytes_max(2))
    }

    /// Bytes of content that a batch of `count` records may have: "1 MiB or one record".
    #[must_use]
    pub fn content_bytes_max(&self, count: u32) -> usize {
        let shared = self.batch_content_bytes_max.min(BATCH_CONTENT_BYTES_MAX) as usize;
        let single = SEQUENCE_DELTA_BYTES_MAX
            + LENGTH_BYTES_MAX
            + RECORD_OVERHEAD_BYTES_MAX
            + self.record_bytes_bound() as usize;
        if count == 1 { single.max(shared) } else { shared }
    }

    /// `record_bytes_max`, never above the ceiling.
    pub(crate) fn record_bytes_bound(&self) -> u32 {
        self.record_bytes_max.min(RECORD_BYTES_MAX_CEILING)
    }

    /// `batch_records_max`, never above the ceiling.
    pub(crate) fn batch_records_bound(&self) -> u32 {
        self.batch_records_max.min(BATCH_RECORDS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_beyond_the_ceilings_do_not_raise_what_is_held() {
        let greedy = Limits {
            record_bytes_max: u32::MAX,
            batch_content_bytes_max: u32::MAX,
            batch_records_max: u32::MAX,
            ..Limits::default()
        };
        assert!(greedy.frame_bytes_max() < (RECORD_BYTES_MAX_CEILING as usize) + (8 << 10));
        assert_eq!(greedy.content_bytes_max(2), BATCH_CONTENT_BYTES_MAX as usize);
    }

    #[test]
    fn tiny_limits_still_leave_room_for_control_frames() {
        let tiny = Limits { record_bytes_max: 1, batch_content_bytes_max: 1, ..Limits::default() };
        assert!(tiny.frame_bytes_max() >= FRAME_HEADER_LEN + CONTROL_FRAME_BYTES_MAX);
    }

    #[test]
    fn what_a_peer_leaves_out_is_the_default_and_what_it_adds_is_ignored() {
        let limits: Limits = serde_json::from_str(r#"{"record_bytes_max":5,"groups_max":9}"#).unwrap();
        assert_eq!(limits, Limits { record_bytes_max: 5, ..Limits::default() });
    }
}
