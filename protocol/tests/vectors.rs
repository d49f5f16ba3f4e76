//! Holds `PROTOCOL.md` and this crate together: every vector and table of the document is read out of it and compared.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::{Bytes, BytesMut};
use tidelog_protocol::{
    ALPN, Answer, BATCH_CONTENT_BYTES_MAX, BATCH_RECORDS_MAX, BatchBuilder, BatchRecords, CONTROL_FRAME_BYTES_MAX,
    CloseCode, Damaged, DeliverHeader, Delivery, ErrorCode, FRAME_HEADER_LEN, Frame, FrameDecoder, FrameKind, Gap,
    GapCause, HEADERS_BYTES_MAX, HEADERS_COUNT_MAX, Hello, KEY_BYTES_MAX, LIST_ITEMS_MAX, Limits, MediumKind,
    NAME_BYTES_MAX, Offset, Outcome, ProducerId, ProducerName, RECORD_BYTES_MAX_CEILING, RECORD_BYTES_MAX_DEFAULT,
    Record, Request, RequestFrame, ResponseFrame, ResponseResult, Sequence, StreamId, Welcome, WireError, check_batch,
    check_body, decode_accepted, decode_answers, decode_damaged, decode_end, decode_gap, decode_json,
    decode_producer_name, encode_accepted, encode_answers, encode_damaged, encode_deliver_header, encode_end,
    encode_frame_header, encode_gap, encode_json_frame, encode_producer_name, frame_limit,
};

const DOCUMENT: &str = include_str!("../PROTOCOL.md");
const STREAM: StreamId = StreamId::new(4096);

/// The fenced blocks of the document whose first word is `word`, by the rest of that line.
fn blocks(word: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut lines = DOCUMENT.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```").filter(|info| !info.is_empty()) else { continue };
        let text: Vec<_> = lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
        let (first, name) = info.split_once(' ').unwrap_or((info, ""));
        if first == word {
            let before = found.insert(name.to_owned(), text.join("\n"));
            assert!(before.is_none(), "{name} stands twice in the document");
        }
    }
    found
}

/// The bytes of a vector: hex digits up to `#`, or a line of text in single quotes.
fn hex(name: &str, text: &str) -> Bytes {
    let mut bytes = Vec::new();
    for line in text.lines() {
        if let Some(text) = line.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
            bytes.extend_from_slice(text.as_bytes());
            continue;
        }
        let digits = line.split('#').next().unwrap_or_default();
        for byte in digits.split_whitespace() {
            assert_eq!(byte.len(), 2, "{name}: {byte}");
            bytes.push(u8::from_str_radix(byte, 16).unwrap_or_else(|error| panic!("{name}: {byte}: {error}")));
        }
    }
    bytes.into()
}

/// The rows of the table behind `heading`, their cells without spaces and back quotes.
fn table(heading: &str) -> Vec<Vec<String>> {
    let behind = DOCUMENT.split_once(heading).unwrap_or_else(|| panic!("{heading} is not in the document")).1;
    let rows = behind.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
    rows.skip(2).map(cells).collect()
}

/// Compares the vectors of one kind with what this crate encodes, both ways round.
fn compare(word: &str, encoded: &[(&str, Bytes)]) {
    let mut documented = blocks(word);
    for (name, bytes) in encoded {
        let text = documented.remove(*name).unwrap_or_else(|| panic!("{word} {name} is not documented: {bytes:02x?}"));
        let vector = hex(name, &text);
        assert!(vector == bytes, "{name} is documented as\n{vector:02x?}\nand encoded as\n{bytes:02x?}");
    }
    assert!(documented.is_empty(), "documented and not encoded: {:?}", documented.keys());
}

fn records() -> Vec<(&'static str, Record)> {
    let full = Record::new("v1").with_timestamp_ms(1_700_000_000_000).with_key("k").with_header("a", "");
    vec![
        ("value", Record::new("hello")),
        ("empty", Record::new("")),
        ("empty_key", Record::new("x").with_key("")),
        ("before_1970", Record::new("").with_timestamp_ms(-1)),
        ("full", full.with_header("a", "b")),
        ("long_key", Record::new("").with_key("k".repeat(200))),
    ]
}

fn encoded(record: &Record) -> Bytes {
    let mut out = BytesMut::new();
    record.encode_into(&mut out);
    out.freeze()
}

#[test]
fn records_are_encoded_and_decoded_as_documented() {
    let records = records();
    compare("record", &records.iter().map(|(name, record)| (*name, encoded(record))).collect::<Vec<_>>());
    for (name, record) in records {
        let vector = hex(name, &blocks("record")[name]);
        assert_eq!(Record::decode(&vector), Ok(record), "{name}");
    }
}

#[test]
fn records_documented_as_malformed_are_refused_for_the_documented_reason() {
    let refused = blocks("malformed-record");
    assert!(refused.len() >= 8, "{}", refused.len());
    for (reason, text) in refused {
        let bytes = hex(&reason, &text);
        let error = check_body(&bytes, &Limits::default()).unwrap_err();
        assert_eq!((error.code(), error.to_string()), (ErrorCode::Malformed, reason));
        assert_eq!(Record::decode(&bytes), Err(error));
    }
}

/// A batch of the records `a` and `bc`, its sequences chosen by `finish`.
fn batch(finish: impl FnOnce(&mut BatchBuilder) -> Bytes) -> Bytes {
    let mut builder = BatchBuilder::new();
    builder.push_value(b"a", &Limits::default()).expect("small");
    builder.push(&Record::new("bc").with_key("k"), &Limits::default()).expect("small");
    finish(&mut builder)
}

fn sparse(builder: &mut BatchBuilder) -> Bytes {
    let sequences = [12, 300].map(Sequence::new);
    builder.finish_sparse(STREAM, Sequence::new(10), &sequences).expect("the sequences rise")
}

#[test]
fn batches_are_encoded_and_decoded_as_documented() {
    let batches = [
        ("dense", batch(|builder| builder.finish_dense(STREAM, Sequence::new(41))), [41, 42]),
        ("anonymous", batch(|builder| builder.finish_anonymous(STREAM)), [0, 0]),
        ("sparse", batch(sparse), [12, 300]),
    ];
    compare("batch", &batches.iter().map(|(name, batch, _)| (*name, batch.clone())).collect::<Vec<_>>());
    for (name, _, sequences) in batches {
        let vector = hex(name, &blocks("batch")[name]);
        assert_eq!(check_batch(&vector, &Limits::default()).unwrap().stream, STREAM);
        let records: Vec<_> = BatchRecords::new(&vector).unwrap().map(Result::unwrap).collect();
        assert_eq!(records[0], (Sequence::new(sequences[0]), Record::new("a")), "{name}");
        assert_eq!(records[1], (Sequence::new(sequences[1]), Record::new("bc").with_key("k")), "{name}");
    }
}

fn json(kind: FrameKind, body: &impl serde::Serialize) -> Bytes {
    let mut out = BytesMut::new();
    encode_json_frame(kind, body, &mut out).expect("small");
    out.freeze()
}

fn frame(encode: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::new();
    encode(&mut out);
    out.freeze()
}

fn hello() -> Hello {
    Hello { versions: vec![1], client: "tidelog-client/0.1.0".to_owned(), token: None }
}

fn welcome() -> Welcome {
    Welcome {
        version: 1,
        broker: "tidelog/0.1.0".to_owned(),
        log_id: "00112233445566778899aabbccddeeff".to_owned(),
        start_count: 3,
        medium: MediumKind::Disk,
        limits: Limits::default(),
        time_ms: 1_700_000_000_000,
    }
}

fn answers() -> Vec<Answer> {
    let refused = Outcome::Refused { code: ErrorCode::SequenceGap, detail: 43 };
    vec![
        Answer { outcome: Outcome::Stored, base_offset: Some(Offset::new(1000)), skip: 0 },
        Answer { outcome: Outcome::Duplicate, base_offset: None, skip: 0 },
        Answer { outcome: refused, base_offset: None, skip: 0 },
    ]
}

const DELIVER_HEADER: DeliverHeader = DeliverHeader {
    base_offset: Offset::new(1000),
    time_ms: 1_700_000_000_001,
    producer: ProducerId::new(8192),
    skip: 1,
};
const GAP: Gap = Gap { from: Offset::new(0), to: Offset::new(900), cause: GapCause::Retention };
const DAMAGED: Damaged = Damaged { from: Offset::new(7), to: Offset::new(9) };

fn producer_name() -> ProducerName {
    ProducerName::new("p").expect("a good name")
}

#[test]
fn frames_are_encoded_as_documented() {
    let anonymous = batch(|builder| builder.finish_anonymous(STREAM));
    let followed_by = |header: &[u8]| Bytes::from([header, &anonymous[..]].concat());
    let failure = WireError::new(ErrorCode::Superseded, "another connection resumed this session");
    compare(
        "frame",
        &[
            ("hello", json(FrameKind::Hello, &hello())),
            ("welcome", json(FrameKind::Welcome, &welcome())),
            ("failure", json(FrameKind::Failure, &failure)),
            ("publish", followed_by(&encode_frame_header(FrameKind::Publish, anonymous.len()))),
            ("answers", frame(|out| encode_answers(9, &answers(), out))),
            ("accepted", frame(|out| encode_accepted(9, out))),
            ("deliver", followed_by(&encode_deliver_header(&DELIVER_HEADER, anonymous.len()))),
            ("gap", frame(|out| encode_gap(&GAP, out))),
            ("end", frame(|out| encode_end(Offset::new(1001), out))),
            ("damaged", frame(|out| encode_damaged(&DAMAGED, out))),
            ("producer_name", frame(|out| encode_producer_name(ProducerId::new(8192), &producer_name(), out))),
        ],
    );
}

#[test]
fn documented_frames_are_decoded_to_what_they_say() {
    for (name, text) in blocks("frame") {
        let vector = hex(&name, &text);
        let mut decoder = FrameDecoder::new(Limits::default());
        decoder.push(&vector);
        let Frame { kind, body } = decoder.next_frame().unwrap().expect("the vector is a whole frame");
        assert_eq!((decoder.buffered(), body.len()), (0, vector.len() - FRAME_HEADER_LEN), "{name}");
        match kind {
            FrameKind::Hello => assert_eq!(decode_json::<Hello>(kind, &body).unwrap(), hello()),
            FrameKind::Welcome => assert_eq!(decode_json::<Welcome>(kind, &body).unwrap(), welcome()),
            FrameKind::Failure => {
                let failure: WireError = decode_json(kind, &body).unwrap();
                assert_eq!(failure.error_code(), Some(ErrorCode::Superseded));
            }
            FrameKind::Publish => assert!(check_batch(&body, &Limits::default()).is_ok()),
            FrameKind::Answers => assert_eq!(decode_answers(&body).unwrap(), (9, answers())),
            FrameKind::Accepted => assert_eq!(decode_accepted(&body).unwrap(), 9),
            FrameKind::Deliver => {
                let delivery = Delivery::decode(body).unwrap();
                assert_eq!(delivery.header, DELIVER_HEADER);
                assert_eq!(delivery.batch, batch(|builder| builder.finish_anonymous(STREAM)));
            }
            FrameKind::Gap => assert_eq!(decode_gap(&body).unwrap(), GAP),
            FrameKind::End => assert_eq!(decode_end(&body).unwrap(), Offset::new(1001)),
            FrameKind::Damaged => assert_eq!(decode_damaged(&body).unwrap(), DAMAGED),
            FrameKind::ProducerName => {
                assert_eq!(decode_producer_name(&body).unwrap(), (ProducerId::new(8192), producer_name()));
            }
            FrameKind::Request | FrameKind::Response | FrameKind::Credit => panic!("{name} has no vector"),
        }
    }
}

#[test]
fn every_request_is_documented_and_spelled_as_it_is_sent() {
    let mut left: BTreeSet<_> = Request::OPS.iter().copied().collect();
    for line in blocks("json")["requests"].lines() {
        let request = RequestFrame::decode(line.as_bytes()).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(serde_json::to_string(&request).unwrap(), line);
        left.remove(request.request.op());
    }
    assert!(left.is_empty(), "not documented: {left:?}");
}

#[test]
fn every_response_is_documented_and_spelled_as_it_is_sent() {
    let mut kinds = HashSet::new();
    for line in blocks("json")["responses"].lines() {
        let response: ResponseFrame = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(serde_json::to_string(&response).unwrap(), line);
        kinds.insert(match response.result {
            ResponseResult::Ok(response) => std::mem::discriminant(&response),
            ResponseResult::Error(error) => {
                let code = error.error_code().expect("a known code");
                let WireError { message, detail, .. } = error.clone();
                assert_eq!(WireError { detail, ..WireError::new(code, message) }, error);
                continue;
            }
        });
    }
    assert_eq!(kinds.len(), 11, "one line for each kind of response");
}

#[test]
fn the_tables_of_numbers_are_those_of_the_code() {
    let errors: Vec<_> = ErrorCode::ALL
        .iter()
        .map(|code| {
            let retryable = if code.is_retryable() { "yes" } else { "no" };
            vec![code.number().to_string(), code.name().to_owned(), retryable.to_owned()]
        })
        .collect();
    let documented: Vec<_> = table("## Error numbers").into_iter().map(|row| row[..3].to_vec()).collect();
    assert_eq!(documented, errors);

    let kinds: Vec<_> =
        FrameKind::ALL.iter().map(|kind| vec![kind.number().to_string(), format!("{kind:?}")]).collect();
    let documented = table("### Kinds");
    assert_eq!(documented.iter().map(|row| row[..2].to_vec()).collect::<Vec<_>>(), kinds);
    let limits = Limits::default();
    for (row, &kind) in documented.iter().zip(FrameKind::ALL) {
        let bytes = match kind {
            FrameKind::Publish | FrameKind::Deliver => continue,
            _ => row[4].replace(',', "").parse(),
        };
        assert_eq!(bytes, Ok(frame_limit(kind, &limits)), "{kind:?}");
    }

    let close: Vec<_> = (0..).map_while(CloseCode::from_number).map(CloseCode::number).collect();
    let documented: Vec<u32> = table("## Close codes").iter().map(|row| row[0].parse().unwrap()).collect();
    assert_eq!(documented, close);
}

#[test]
fn the_documented_limits_are_those_of_the_code() {
    let documented: Vec<(String, u64)> =
        table("## Limits").into_iter().map(|row| (row[0].clone(), row[1].replace(',', "").parse().unwrap())).collect();
    let limits = [
        ("a record", u64::from(RECORD_BYTES_MAX_DEFAULT)),
        ("a record, whatever is configured", u64::from(RECORD_BYTES_MAX_CEILING)),
        ("a batch's content, unless it is one record", u64::from(BATCH_CONTENT_BYTES_MAX)),
        ("a key", u64::from(KEY_BYTES_MAX)),
        ("a record's headers together", u64::from(HEADERS_BYTES_MAX)),
        ("headers of a record", HEADERS_COUNT_MAX as u64),
        ("records of a batch", u64::from(BATCH_RECORDS_MAX)),
        ("body of a JSON frame", CONTROL_FRAME_BYTES_MAX as u64),
        ("answers of a frame", tidelog_protocol::ANSWERS_PER_FRAME_MAX as u64),
        ("items of a listing's page", u64::from(LIST_ITEMS_MAX)),
        ("a name", NAME_BYTES_MAX as u64),
        ("a UDP payload", u64::from(tidelog_protocol::UDP_PAYLOAD_BYTES_MAX)),
        ("a connection's first congestion window", tidelog_protocol::INITIAL_CONGESTION_WINDOW_BYTES),
        ("the delay of an acknowledgement that is asked for", tidelog_protocol::ACKNOWLEDGEMENT_DELAY_MS_MAX),
    ];
    assert_eq!(documented, limits.map(|(name, limit)| (name.to_owned(), limit)));
    let alpn = std::str::from_utf8(ALPN).expect("the ALPN is text");
    assert!(DOCUMENT.contains(&format!("ALPN `{alpn}`")));
}
