//! What holds for every record, batch and chunk of bytes, not only for chosen ones.

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use tidelog_protocol::{
    Answer, BATCH_HEADER_LEN, BatchBuilder, BatchHeader, BatchRecords, Delivery, ErrorCode, FrameDecoder, Header,
    Hello, Limits, Offset, Outcome, Record, RequestFrame, ResponseFrame, Sequence, StreamId, Welcome, WireError,
    check_batch, check_body, decode_accepted, decode_answers, decode_damaged, decode_end, decode_gap, decode_json,
    decode_producer_name, encode_answers, verify_content_crc,
};

const STREAM: StreamId = StreamId::new(11);

fn bytes(len: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..len).prop_map(Bytes::from)
}

fn record() -> impl Strategy<Value = Record> {
    let header = (bytes(140), bytes(20)).prop_map(|(name, value)| Header { name, value });
    let timestamp = any::<i64>().prop_flat_map(|time| (0u32..64).prop_map(move |shift| time >> shift));
    (prop::option::of(bytes(140)), vec(header, 0..4), prop::option::of(timestamp), bytes(300))
        .prop_map(|(key, headers, timestamp_ms, value)| Record { key, headers, timestamp_ms, value })
}

fn encoded(record: &Record) -> Bytes {
    let mut out = BytesMut::new();
    record.encode_into(&mut out);
    out.freeze()
}

/// Which sequences a batch gets.
#[derive(Debug, Clone)]
enum Numbering {
    Dense(u64),
    Anonymous,
    Sparse(u64, Vec<u64>),
}

fn batch() -> impl Strategy<Value = (Vec<Record>, Vec<Sequence>, Bytes)> {
    let sparse = |count: usize| {
        (0u64..1 << 40, vec((1u64..1 << 40, 0u32..40), count)).prop_map(|(previous, steps)| {
            let mut before = previous;
            let rise = |(step, shift): (u64, u32)| {
                before += (step >> shift).max(1);
                before
            };
            Numbering::Sparse(previous, steps.into_iter().map(rise).collect())
        })
    };
    vec(record(), 1..8)
        .prop_flat_map(move |records| {
            let last_first = Sequence::MAX.get() - records.len() as u64 + 1;
            let dense = prop_oneof![1..1000u64, 1..=last_first].prop_map(Numbering::Dense);
            let numbering = prop_oneof![dense, Just(Numbering::Anonymous), sparse(records.len())];
            (Just(records), numbering)
        })
        .prop_map(|(records, numbering)| {
            let mut builder = BatchBuilder::new();
            for record in &records {
                builder.push(record, &Limits::default()).expect("the record is small");
            }
            let (sequences, batch) = match numbering {
                Numbering::Dense(first) => (
                    (first..first + records.len() as u64).map(Sequence::new).collect(),
                    builder.finish_dense(STREAM, Sequence::new(first)),
                ),
                Numbering::Anonymous => (vec![Sequence::NONE; records.len()], builder.finish_anonymous(STREAM)),
                Numbering::Sparse(previous, sequences) => {
                    let sequences: Vec<_> = sequences.into_iter().map(Sequence::new).collect();
                    let batch = builder.finish_sparse(STREAM, Sequence::new(previous), &sequences);
                    (sequences, batch.expect("the sequences rise"))
                }
            };
            (records, sequences, batch)
        })
}

/// Sets the outer checksum right, so that what is behind it gets tested too.
fn reseal(batch: &mut [u8]) {
    if let Some((crc, covered)) = batch.split_at_mut_checked(4) {
        crc.copy_from_slice(&crc32fast::hash(covered).to_le_bytes());
    }
}

/// Builds a batch anew from what `BatchRecords` gives of an accepted one.
fn rebuilt(header: &BatchHeader, batch: &Bytes) -> Bytes {
    let mut builder = BatchBuilder::new();
    let mut sequences = Vec::new();
    for item in BatchRecords::new(batch).expect("an accepted batch opens") {
        let (sequence, record) = item.expect("every record of an accepted batch decodes");
        builder.push(&record, &Limits::default()).expect("an accepted record is within the limits");
        sequences.push(sequence);
    }
    if header.is_anonymous() {
        builder.finish_anonymous(header.stream)
    } else if header.is_sparse() {
        builder.finish_sparse(header.stream, header.previous, &sequences).expect("accepted sequences rise")
    } else {
        builder.finish_dense(header.stream, header.first)
    }
}

proptest! {
    #[test]
    fn a_record_comes_back_and_its_length_and_checksum_are_known_ahead(record in record()) {
        let body = encoded(&record);
        prop_assert_eq!(body.len(), record.encoded_len());
        prop_assert_eq!(record.crc(), crc32fast::hash(&body));
        prop_assert_eq!(check_body(&body, &Limits::default()), Ok(()));
        prop_assert_eq!(Record::decode(&body), Ok(record.clone()));
        prop_assert_eq!(record.detach(), record);
    }

    #[test]
    fn whatever_decodes_as_a_record_is_its_one_encoding(flags in 0u8..9, behind in vec(prop_oneof![0u8..4, any::<u8>()], 0..40)) {
        let body = Bytes::from([vec![flags], behind].concat());
        let decoded = Record::decode(&body);
        prop_assert_eq!(decoded.is_ok(), check_body(&body, &Limits::default()).is_ok());
        if let Ok(record) = decoded {
            prop_assert_eq!(encoded(&record), body);
        }
    }

    #[test]
    fn a_batch_passes_the_check_and_gives_its_records_back((records, sequences, batch) in batch()) {
        let header = check_batch(&batch, &Limits::default()).unwrap();
        prop_assert!(verify_content_crc(&batch));
        prop_assert_eq!(header.count as usize, records.len());
        prop_assert_eq!(header.last_record_crc, records.last().unwrap().crc());
        prop_assert_eq!(&header.encode()[..], &batch[..BATCH_HEADER_LEN]);
        let expected: Vec<_> = sequences.into_iter().zip(records).collect();
        let given: Result<Vec<_>, _> = BatchRecords::new(&batch).unwrap().collect();
        prop_assert_eq!(given, Ok(expected.clone()));
        for skip in 0..=expected.len() {
            let behind: Result<Vec<_>, _> = BatchRecords::new(&batch).unwrap().skip(skip).collect();
            prop_assert_eq!(behind.as_deref(), Ok(&expected[skip..]));
        }
    }

    #[test]
    fn every_truncation_and_every_extension_of_a_batch_is_refused((_, _, batch) in batch()) {
        for len in 0..batch.len() {
            prop_assert!(check_batch(&batch[..len], &Limits::default()).is_err(), "cut to {}", len);
        }
        let mut longer = batch.to_vec();
        longer.push(0);
        prop_assert!(check_batch(&longer, &Limits::default()).is_err());
    }

    #[test]
    fn every_flipped_bit_of_a_batch_is_refused((_, _, batch) in batch()) {
        let mut changed = batch.to_vec();
        for bit in 0..changed.len() * 8 {
            changed[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(check_batch(&changed, &Limits::default()).is_err(), "bit {}", bit);
            prop_assert!(!verify_content_crc(&changed), "bit {}", bit);
            changed[bit / 8] ^= 1 << (bit % 8);
        }
    }

    /// A producer may sign any bytes: behind a right checksum, only a form that the builder itself makes is accepted.
    #[test]
    fn what_is_accepted_with_forged_checksums_is_built_again_to_the_same_bytes(
        (_, _, batch) in batch(),
        changes in vec((any::<prop::sample::Index>(), prop_oneof![0u8..4, any::<u8>()]), 1..4),
    ) {
        let mut changed = batch.to_vec();
        for (at, byte) in changes {
            let at = at.index(changed.len());
            changed[at] = byte;
        }
        // Header fields and the last record's checksum are also right when the content is what changed.
        if let Ok(header) = BatchHeader::decode(&changed) {
            let mut rest = BatchRecords::new(&Bytes::from(changed.clone())).into_iter().flatten();
            let last = rest.by_ref().last().and_then(Result::ok);
            if let Some((_, record)) = last {
                changed[48..52].copy_from_slice(&record.crc().to_le_bytes());
            }
            reseal(&mut changed);
            let changed = Bytes::from(changed);
            if let Ok(accepted) = check_batch(&changed, &Limits::default()) {
                prop_assert_eq!(accepted.count, header.count);
                prop_assert_eq!(rebuilt(&accepted, &changed), changed);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_by_every_decoder_without_panic(body in vec(any::<u8>(), 0..200)) {
        let shared = Bytes::from(body.clone());
        prop_assert!(check_batch(&body, &Limits::default()).is_err());
        let _ = BatchRecords::new(&shared).map(|records| records.last());
        let _ = Record::decode(&shared);
        let _ = decode_answers(&body);
        let _ = decode_accepted(&body);
        let _ = Delivery::decode(shared);
        let _ = decode_gap(&body);
        let _ = decode_damaged(&body);
        let _ = decode_end(&body);
        let _ = decode_producer_name(&body);
        let _ = RequestFrame::decode(&body);
        let kind = tidelog_protocol::FrameKind::Hello;
        prop_assert!(decode_json::<Hello>(kind, &body).is_err());
        prop_assert!(decode_json::<Welcome>(kind, &body).is_err());
        prop_assert!(decode_json::<ResponseFrame>(kind, &body).is_err());
        prop_assert!(decode_json::<WireError>(kind, &body).is_err());
    }

    #[test]
    fn arbitrary_chunks_never_make_the_decoder_hold_more_than_it_was_given(chunks in vec(vec(prop_oneof![0u8..40, any::<u8>()], 0..50), 0..20)) {
        let mut decoder = FrameDecoder::new(Limits::default());
        let mut left = 0;
        'bytes: for chunk in chunks {
            decoder.push(&chunk);
            left += chunk.len();
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => left -= frame.body.len() + 8,
                    Ok(None) => break,
                    Err(error) => {
                        prop_assert_eq!(ErrorCode::from(error), ErrorCode::Malformed);
                        break 'bytes;
                    }
                }
            }
            prop_assert_eq!(decoder.buffered(), left);
        }
    }

    #[test]
    fn answers_come_back(up_to in 50u64.., answers in vec(answer(), 1..50)) {
        let mut out = BytesMut::new();
        encode_answers(up_to, &answers, &mut out);
        prop_assert_eq!(decode_answers(&out[8..]).unwrap(), (up_to, answers));
    }
}

fn answer() -> impl Strategy<Value = Answer> {
    let refused = (prop::sample::select(ErrorCode::ALL), any::<u64>())
        .prop_map(|(code, detail)| Outcome::Refused { code, detail });
    let outcome = prop_oneof![Just(Outcome::Stored), Just(Outcome::Duplicate), refused];
    let offset = prop::option::of((0..u64::MAX).prop_map(Offset::new));
    (outcome, offset, any::<u32>()).prop_map(|(outcome, base_offset, skip)| Answer { outcome, base_offset, skip })
}
