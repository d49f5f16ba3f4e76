//! Arbitrary bytes as the body of a hello and of a welcome. What decodes says the same when it is encoded again, and nobody
//! allocates more for it than its length allows.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use tidelog_protocol::{FRAME_HEADER_LEN, FrameKind, Hello, Welcome, decode_json, encode_json_frame, frame_limit};
use tidelog_protocol_fuzz::bounded;

fuzz_target!(|body: &[u8]| {
    check::<Hello>(FrameKind::Hello, body);
    check::<Welcome>(FrameKind::Welcome, body);
});

fn check<T>(kind: FrameKind, body: &[u8])
where
    T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug,
{
    if body.len() > frame_limit(kind, &tidelog_protocol::Limits::default()) {
        return;
    }
    let Ok(value) = bounded(body.len(), || decode_json::<T>(kind, body)) else { return };
    let mut frame = BytesMut::new();
    // A text of control characters grows when it is escaped, perhaps beyond a frame.
    if encode_json_frame(kind, &value, &mut frame).is_ok() {
        assert_eq!(decode_json::<T>(kind, &frame[FRAME_HEADER_LEN..]).expect("what was encoded decodes"), value);
    }
}
