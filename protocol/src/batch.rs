//! A batch: the unit of append, checksum and deduplication; every check that a broker makes on one.
//!
//! A batch is its [header](BatchHeader) and the content behind it:
//! ```text
//! content   [sparse: count x LEB128 delta] | count x (length LEB128 | record body)
//! ```
//! The first delta is relative to the header's `previous`, each is at least 1. The producer encodes a batch once; the same
//! bytes go to disk and to every consumer.

use bytes::Buf;

use crate::batch_header::{BATCH_HEADER_LEN, BATCH_VERSION, BatchHeader, CRC_LEN};
use crate::checksum::{append, hasher_of};
use crate::error::ErrorCode;
use crate::leb128::{self, NumberError};
use crate::limits::Limits;
use crate::position::Sequence;
use crate::record::{RecordError, check_body, take_bytes};

/// Why bytes are no batch, or a batch is not accepted. Nothing of it was stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// Fewer bytes than a header.
    #[error("a batch has {bytes} bytes; its header alone takes {BATCH_HEADER_LEN}")]
    Truncated {
        /// Bytes that are there.
        bytes: usize,
    },
    /// A version that this side does not know.
    #[error("a batch has layout version {version}; this side knows {BATCH_VERSION}")]
    UnknownVersion {
        /// The version.
        version: u8,
    },
    /// A codec that this side does not know.
    #[error("a batch has codec {codec}; this side knows 0")]
    UnknownCodec {
        /// The codec.
        codec: u8,
    },
    /// Flags that this side does not know, or that contradict each other.
    #[error("a batch has flags {flags:#06x}, which are unknown or contradict each other")]
    UnknownFlags {
        /// The flags.
        flags: u16,
    },
    /// The reserved bytes are not 0.
    #[error("a batch has {reserved:#010x} where zeros are reserved")]
    Reserved {
        /// What stands there.
        reserved: u32,
    },
    /// A batch has at least one record.
    #[error("a batch has no records")]
    NoRecords,
    /// The header's sequences and count contradict each other or the bounds 1 to 2^63 - 1.
    #[error("a batch of {count} records claims sequences {first} to {last} behind {previous}, which can't be")]
    Sequences {
        /// First sequence.
        first: Sequence,
        /// Last sequence.
        last: Sequence,
        /// Sequence before the first.
        previous: Sequence,
        /// Records.
        count: u32,
    },
    /// The length in the header is not that of the content.
    #[error("a batch claims {claimed} bytes of content where {present} are there")]
    ContentLength {
        /// What the header says.
        claimed: u32,
        /// Bytes behind the header.
        present: usize,
    },
    /// More content than the broker takes in one batch.
    #[error("a batch of {count} records has {bytes} bytes of content, the limit is {max}; send smaller batches")]
    ContentTooLarge {
        /// Records.
        count: u32,
        /// Bytes of content.
        bytes: usize,
        /// The limit for so many records.
        max: usize,
    },
    /// More records than the broker takes in one batch.
    #[error("a batch has {count} records, the limit is {max}; send smaller batches")]
    TooManyRecords {
        /// Records.
        count: u32,
        /// The limit.
        max: u32,
    },
    /// A number in the block of sequences is not in its one allowed form.
    #[error("sequence number {index} of a sparse batch is malformed: {fault}")]
    SequenceNumber {
        /// Which record's, from 0.
        index: u32,
        /// What is wrong with it.
        fault: NumberError,
    },
    /// The sequences of a sparse batch do not rise, pass 2^63 - 1 or are not those of the header.
    #[error("sequence number {index} of a sparse batch does not rise, or is not what the header says")]
    SequenceOrder {
        /// Which record's, from 0.
        index: u32,
    },
    /// A sparse batch needs one sequence for each record.
    #[error("a sparse batch of {count} records was given {sequences} sequences")]
    SequenceCount {
        /// Records.
        count: u32,
        /// Sequences given.
        sequences: usize,
    },
    /// A record is malformed or beyond a limit.
    #[error("record {index} of a batch: {fault}")]
    Record {
        /// Which record, from 0.
        index: u32,
        /// What is wrong with it.
        fault: RecordError,
    },
    /// The last record is not the one that the header's checksum is of.
    #[error("the last record of a batch has checksum {computed:08x}, the header says {claimed:08x}")]
    LastRecordChecksum {
        /// What the header says.
        claimed: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// The bytes are not what the producer encoded.
    #[error("a batch has checksum {computed:08x}, its header says {claimed:08x}: it was changed on the way")]
    ContentChecksum {
        /// What the header says.
        claimed: u32,
        /// What the bytes give.
        computed: u32,
    },
}

impl BatchError {
    /// The number that this error has on the wire.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            BatchError::ContentTooLarge { .. } | BatchError::TooManyRecords { .. } => ErrorCode::BatchTooLarge,
            BatchError::Record { fault, .. } => fault.code(),
            _ => ErrorCode::Malformed,
        }
    }
}

/// Checks everything that a broker must know of a batch before it stores one: header, lengths, limits, every record's
/// form, the block of sequences, both checksums. `batch` is exactly one batch. Allocates nothing and hashes the bytes
/// once.
///
/// # Errors
/// [`BatchError`] names what is wrong first; [`BatchError::code`] is the answer for it.
pub fn check_batch(batch: &[u8], limits: &Limits) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::decode(batch)?;
    let count = header.count;
    let content = batch.get(BATCH_HEADER_LEN..).unwrap_or_default();
    if content.len() as u64 != u64::from(header.content_len) {
        return Err(BatchError::ContentLength { claimed: header.content_len, present: content.len() });
    }
    if count > limits.batch_records_bound() {
        return Err(BatchError::TooManyRecords { count, max: limits.batch_records_bound() });
    }
    let max = limits.content_bytes_max(count);
    if content.len() > max {
        return Err(BatchError::ContentTooLarge { count, bytes: content.len(), max });
    }
    let mut rest = content;
    if header.is_sparse() {
        check_sequences(&header, &mut rest)?;
    }
    let mut last_body = &[][..];
    for index in 0..count {
        last_body = take_bytes(&mut rest, "length")
            .and_then(|body| check_body(body, limits).map(|()| body))
            .map_err(|fault| BatchError::Record { index, fault })?;
    }
    if !rest.is_empty() {
        let fault = RecordError::TrailingBytes { bytes: rest.len() };
        return Err(BatchError::Record { index: count - 1, fault });
    }
    check_checksums(batch, &header, last_body)?;
    Ok(header)
}

/// Walks the block of sequences off the front of `rest`.
fn check_sequences(header: &BatchHeader, rest: &mut &[u8]) -> Result<(), BatchError> {
    let mut sequence = header.previous.get();
    for index in 0..header.count {
        let delta = leb128::take(rest).map_err(|fault| BatchError::SequenceNumber { index, fault })?;
        sequence = match sequence.checked_add(delta) {
            Some(next) if delta > 0 && next <= header.last.get() => next,
            _ => return Err(BatchError::SequenceOrder { index }),
        };
        if index == 0 && sequence != header.first.get() {
            return Err(BatchError::SequenceOrder { index });
        }
    }
    if sequence != header.last.get() {
        return Err(BatchError::SequenceOrder { index: header.count - 1 });
    }
    Ok(())
}

/// Compares both checksums; `last_body` is the end of `batch`.
fn check_checksums(batch: &[u8], header: &BatchHeader, last_body: &[u8]) -> Result<(), BatchError> {
    let before = batch.get(CRC_LEN..batch.len() - last_body.len()).unwrap_or_default();
    // The last record ends the batch.
    let (mut content, last_record) = (hasher_of(before), hasher_of(last_body));
    append(&mut content, &last_record, last_body);
    let (content_crc, last_record_crc) = (content.finalize(), last_record.finalize());
    // The outer one first: if the bytes were changed on the way, that is what should be told.
    if content_crc != header.content_crc {
        return Err(BatchError::ContentChecksum { claimed: header.content_crc, computed: content_crc });
    }
    if last_record_crc != header.last_record_crc {
        return Err(BatchError::LastRecordChecksum { claimed: header.last_record_crc, computed: last_record_crc });
    }
    Ok(())
}

/// Whether the content checksum is that of the bytes: what a consumer checks on a batch from a broker that checked all
/// the rest. `false` for fewer bytes than a header.
#[must_use]
pub fn verify_content_crc(batch: &[u8]) -> bool {
    let Some((mut claimed, covered)) = batch.split_at_checked(CRC_LEN) else {
        return false;
    };
    batch.len() >= BATCH_HEADER_LEN && claimed.get_u32_le() == crc32fast::hash(covered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch_builder::BatchBuilder;
    use crate::position::StreamId;
    use crate::record::Record;
    use bytes::{Bytes, BytesMut};

    fn dense(values: &[&str], first: u64) -> Bytes {
        let mut builder = BatchBuilder::new();
        for value in values {
            builder.push_value(value.as_bytes(), &Limits::default()).unwrap();
        }
        builder.finish_dense(StreamId::new(7), Sequence::new(first))
    }

    fn sparse(previous: u64, sequences: &[u64]) -> Bytes {
        let mut builder = BatchBuilder::new();
        for _ in sequences {
            builder.push_value(b"v", &Limits::default()).unwrap();
        }
        let sequences: Vec<_> = sequences.iter().copied().map(Sequence::new).collect();
        builder.finish_sparse(StreamId::new(7), Sequence::new(previous), &sequences).unwrap()
    }

    /// The batch with its header changed and both lengths and the outer checksum made right again.
    fn forged(batch: &[u8], change: impl FnOnce(&mut BatchHeader), content: Option<&[u8]>) -> Vec<u8> {
        let mut header = BatchHeader::decode(batch).unwrap();
        let content = content.unwrap_or(&batch[BATCH_HEADER_LEN..]);
        header.content_len = content.len() as u32;
        change(&mut header);
        let mut out = [&header.encode()[..], content].concat();
        reseal(&mut out);
        out
    }

    fn reseal(batch: &mut [u8]) {
        let crc = crc32fast::hash(&batch[CRC_LEN..]);
        batch[..CRC_LEN].copy_from_slice(&crc.to_le_bytes());
    }

    fn check(batch: &[u8]) -> Result<BatchHeader, BatchError> {
        check_batch(batch, &Limits::default())
    }

    #[test]
    fn a_header_comes_back_from_its_bytes() {
        let header = check(&dense(&["a", "bc"], 41)).unwrap();
        assert_eq!((header.first.get(), header.last.get(), header.previous.get()), (41, 42, 40));
        assert_eq!((header.count, header.stream), (2, StreamId::new(7)));
        assert_eq!(header.last_record_crc, Record::new("bc").crc());
        assert_eq!(BatchHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn each_field_of_the_header_is_checked() {
        let batch = dense(&["a", "b"], 1);
        let with = |at: usize, byte: u8| {
            let mut changed = batch.to_vec();
            changed[at] = byte;
            check(&changed).unwrap_err()
        };
        assert_eq!(with(4, 2), BatchError::UnknownVersion { version: 2 });
        assert_eq!(with(5, 1), BatchError::UnknownCodec { codec: 1 });
        assert_eq!(with(6, 3), BatchError::UnknownFlags { flags: 3 });
        assert_eq!(with(7, 1), BatchError::UnknownFlags { flags: 0x100 });
        assert_eq!(with(55, 1), BatchError::Reserved { reserved: 0x0100_0000 });
        assert_eq!(with(8, 0), BatchError::NoRecords);
        assert_eq!(with(12, 0), BatchError::ContentLength { claimed: 0, present: 6 });
        assert!(matches!(with(0, batch[0] ^ 1), BatchError::ContentChecksum { .. }));
        assert!(matches!(with(16, 8), BatchError::ContentChecksum { .. }));
        assert_eq!(check(&batch[..55]), Err(BatchError::Truncated { bytes: 55 }));
    }

    #[test]
    fn count_and_records_must_agree_even_under_a_right_checksum() {
        let mut builder = BatchBuilder::new();
        for value in ["a", "b"] {
            builder.push_value(value.as_bytes(), &Limits::default()).unwrap();
        }
        let batch = builder.finish_anonymous(StreamId::new(7));
        let fewer = forged(&batch, |header| header.count = 1, None);
        let fault = RecordError::TrailingBytes { bytes: 3 };
        assert_eq!(check(&fewer), Err(BatchError::Record { index: 0, fault }));
        let more = forged(&batch, |header| header.count = 3, None);
        let fault = RecordError::Number { field: "length", fault: NumberError::Truncated };
        assert_eq!(check(&more), Err(BatchError::Record { index: 2, fault }));
    }

    #[test]
    fn a_forged_checksum_of_the_last_record_is_refused() {
        let forged = forged(&dense(&["a", "b"], 1), |header| header.last_record_crc ^= 1, None);
        assert!(matches!(check(&forged), Err(BatchError::LastRecordChecksum { .. })));
    }

    #[test]
    fn a_second_spelling_of_a_length_is_refused() {
        let batch = dense(&["a"], 1);
        let forged = forged(&batch, |_| (), Some(b"\x82\x00\x00a"));
        let fault = RecordError::Number { field: "length", fault: NumberError::NotMinimal };
        assert_eq!(check(&forged), Err(BatchError::Record { index: 0, fault }));
    }

    #[test]
    fn sparse_sequences_must_rise_and_be_those_of_the_header() {
        let batch = sparse(10, &[12, 15, 20]);
        assert!(check(&batch).is_ok());
        let records = &batch[BATCH_HEADER_LEN + 3..];
        let with = |block: &[u8]| check(&forged(&batch, |_| (), Some(&[block, records].concat())));
        assert_eq!(with(&[2, 0, 8]), Err(BatchError::SequenceOrder { index: 1 }));
        assert_eq!(with(&[3, 2, 5]), Err(BatchError::SequenceOrder { index: 0 }));
        assert_eq!(with(&[2, 3, 4]), Err(BatchError::SequenceOrder { index: 2 }));
        assert_eq!(with(&[2, 3, 6]), Err(BatchError::SequenceOrder { index: 2 }));
        let fault = NumberError::NotMinimal;
        assert_eq!(with(&[2, 0x83, 0, 5]), Err(BatchError::SequenceNumber { index: 1, fault }));
        let overflow = [2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 5];
        assert_eq!(with(&overflow), Err(BatchError::SequenceOrder { index: 1 }));
    }

    #[test]
    fn limits_of_the_broker_are_answered_by_their_own_codes() {
        let batch = dense(&["abc", "def"], 1);
        let code = |limits: Limits| check_batch(&batch, &limits).unwrap_err().code();
        assert_eq!(code(Limits { record_bytes_max: 2, ..Limits::default() }), ErrorCode::RecordTooLarge);
        assert_eq!(code(Limits { batch_records_max: 1, ..Limits::default() }), ErrorCode::BatchTooLarge);
        assert_eq!(code(Limits { batch_content_bytes_max: 9, ..Limits::default() }), ErrorCode::BatchTooLarge);
        let enough = Limits { batch_content_bytes_max: 10, ..Limits::default() };
        assert!(check_batch(&batch, &enough).is_ok());
    }

    #[test]
    fn the_content_checksum_covers_all_but_itself() {
        let batch = dense(&["abc"], 1);
        assert!(verify_content_crc(&batch));
        for at in 0..batch.len() {
            let mut changed = BytesMut::from(&batch[..]);
            changed[at] ^= 0x10;
            assert!(!verify_content_crc(&changed), "byte {at}");
        }
        assert!(!verify_content_crc(&batch[..3]));
        let mut short = [0; BATCH_HEADER_LEN - 1];
        reseal(&mut short);
        assert!(!verify_content_crc(&short));
    }
}
