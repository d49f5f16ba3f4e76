//! Arbitrary bytes as control requests and responses. What decodes says the same when it is encoded again; what does not is
//! answered in words that fit a frame, under its id if it has one; and nobody allocates more for it than its length allows.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use tidelog_protocol::{
    FRAME_HEADER_LEN, FrameKind, Limits, RequestFrame, ResponseFrame, ResponseResult, WireError, decode_json,
    encode_json_frame, frame_limit,
};
use tidelog_protocol_fuzz::bounded;

fuzz_target!(|body: &[u8]| {
    if body.len() > frame_limit(FrameKind::Request, &Limits::default()) {
        return;
    }
    match bounded(body.len(), || RequestFrame::decode(body)) {
        Ok(request) => {
            assert!(tidelog_protocol::Request::OPS.contains(&request.request.op()));
            same(FrameKind::Request, &request);
        }
        Err(refused) => {
            assert!(!refused.error.message.is_empty());
            let result = ResponseResult::Error(refused.error);
            let response = ResponseFrame { id: refused.id.unwrap_or(0), result };
            let mut frame = BytesMut::new();
            encode_json_frame(FrameKind::Response, &response, &mut frame).expect("every refusal can be told");
            let told = decode_json::<ResponseFrame>(FrameKind::Response, &frame[FRAME_HEADER_LEN..]);
            assert_eq!(told.expect("what was encoded decodes"), response);
        }
    }
    check::<ResponseFrame>(FrameKind::Response, body);
    check::<WireError>(FrameKind::Failure, body);
});

fn check<T>(kind: FrameKind, body: &[u8])
where
    T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug,
{
    if let Ok(value) = bounded(body.len(), || decode_json::<T>(kind, body)) {
        same(kind, &value);
    }
}

fn same<T>(kind: FrameKind, value: &T)
where
    T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug,
{
    let mut frame = BytesMut::new();
    // A text of control characters grows when it is escaped, perhaps beyond a frame.
    if encode_json_frame(kind, value, &mut frame).is_ok() {
        assert_eq!(decode_json::<T>(kind, &frame[FRAME_HEADER_LEN..]).expect("what was encoded decodes"), *value);
    }
}
