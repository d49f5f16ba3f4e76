//! Feeds arbitrary bytes in arbitrary chunks to the frame decoder and each frame's body to the decoder of its kind.
//!
//! The first byte is a seed for the sizes of the chunks, the rest is what a peer sends. Nothing may panic, and what
//! decodes must encode to a body that decodes to the same again.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use tidelog_protocol::{
    BatchRecords, Delivery, FRAME_HEADER_LEN, Frame, FrameDecoder, FrameKind, Hello, Limits, RequestFrame,
    ResponseFrame, Welcome, WireError, check_batch, decode_accepted, decode_answers, decode_damaged, decode_end,
    decode_gap, decode_json, decode_producer_name, encode_accepted, encode_answers, encode_damaged,
    encode_deliver_header, encode_end, encode_gap, encode_json_frame, encode_producer_name,
};
use tidelog_protocol_fuzz::bounded;

fuzz_target!(|input: &[u8]| bounded(input.len(), || run(input)));

fn run(input: &[u8]) {
    let Some((&seed, mut rest)) = input.split_first() else { return };
    let mut decoder = FrameDecoder::new(Limits::default());
    let mut size = usize::from(seed);
    while !rest.is_empty() {
        // Any sequence that reaches every size will do.
        size = size.wrapping_mul(5).wrapping_add(3) % 251;
        let (chunk, behind) = rest.split_at(size.clamp(1, rest.len()));
        rest = behind;
        decoder.push(chunk);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => decode(frame),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

// What these checks allocate themselves counts, too: it stays below the slack, but for bodies that are held twice.
fn decode(Frame { kind, body }: Frame) {
    match kind {
        FrameKind::Hello => json::<Hello>(kind, &body),
        FrameKind::Welcome => json::<Welcome>(kind, &body),
        FrameKind::Request => {
            let whole = RequestFrame::decode(&body);
            assert_eq!(whole.is_ok(), decode_json::<RequestFrame>(kind, &body).is_ok());
            json::<RequestFrame>(kind, &body);
        }
        FrameKind::Response => json::<ResponseFrame>(kind, &body),
        FrameKind::Failure => json::<WireError>(kind, &body),
        FrameKind::Publish => {
            let checked = check_batch(&body, &Limits::default());
            let records = BatchRecords::new(&body).map(|records| records.last());
            assert!(checked.is_err() || matches!(records, Ok(Some(Ok(_)))));
        }
        FrameKind::Answers => {
            if let Ok((up_to, answers)) = decode_answers(&body) {
                let again = encoded(|out| encode_answers(up_to, &answers, out));
                assert_eq!(decode_answers(&again).expect("what was encoded decodes"), (up_to, answers));
            }
        }
        FrameKind::Accepted => {
            same(&body, decode_accepted(&body).ok(), |up_to, out| encode_accepted(*up_to, out));
        }
        FrameKind::Deliver => {
            if let Ok(delivery) = Delivery::decode(body.clone()) {
                let header = encode_deliver_header(&delivery.header, delivery.batch.len());
                assert_eq!([&header[FRAME_HEADER_LEN..], &delivery.batch].concat(), body);
                if let Ok(records) = BatchRecords::new(&delivery.batch) {
                    records.skip(delivery.header.skip as usize).for_each(drop);
                }
            }
        }
        FrameKind::Gap => same(&body, decode_gap(&body).ok(), encode_gap),
        FrameKind::End => same(&body, decode_end(&body).ok(), |tail, out| encode_end(*tail, out)),
        FrameKind::Damaged => same(&body, decode_damaged(&body).ok(), encode_damaged),
        FrameKind::ProducerName => same(&body, decode_producer_name(&body).ok(), |(id, name), out| {
            encode_producer_name(*id, name, out);
        }),
        FrameKind::Credit => {}
    }
}

fn encoded(encode: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::new();
    encode(&mut out);
    out.freeze().slice(FRAME_HEADER_LEN..)
}

/// These bodies have exactly one encoding.
fn same<T>(body: &[u8], decoded: Option<T>, encode: impl FnOnce(&T, &mut BytesMut)) {
    if let Some(value) = decoded {
        assert_eq!(encoded(|out| encode(&value, out)), body);
    }
}

fn json<T>(kind: FrameKind, body: &[u8])
where
    T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug,
{
    if let Ok(value) = decode_json::<T>(kind, body) {
        let mut out = BytesMut::new();
        // A text of control characters grows when it is escaped, perhaps beyond a frame.
        if encode_json_frame(kind, &value, &mut out).is_ok() {
            let again: T = decode_json(kind, &out[FRAME_HEADER_LEN..]).expect("what was encoded decodes");
            assert_eq!(again, value);
        }
    }
}
