//! One frame: length, kind, body; and the decoder that cuts a QUIC stream's bytes into frames.
//!
//! ```text
//! 0 body_len u32 | 4 kind u8 | 5 flags u8 = 0 | 6 reserved u16 = 0 | 8 body
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::deliver::{DAMAGED_LEN, DELIVER_HEADER_LEN, END_LEN, GAP_LEN, PRODUCER_ID_LEN};
use crate::error::ErrorCode;
use crate::limits::{CONTROL_FRAME_BYTES_MAX, Limits, NAME_BYTES_MAX};
use crate::names::NameError;
use crate::publish::{ACCEPTED_LEN, ANSWERS_BODY_BYTES_MAX};

/// Bytes of a frame's header.
pub const FRAME_HEADER_LEN: usize = 8;

/// Bytes to make room for ahead of their arrival. A header alone must not make the receiver allocate what it claims.
const READ_AHEAD_BYTES_MAX: usize = 32 << 10;

/// What a frame's body is. The numbers are those of the wire and are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// JSON [`Hello`](crate::Hello), client to broker.
    Hello = 1,
    /// JSON [`Welcome`](crate::Welcome), broker to client.
    Welcome = 2,
    /// JSON [`RequestFrame`](crate::RequestFrame), client to broker.
    Request = 3,
    /// JSON [`ResponseFrame`](crate::ResponseFrame), broker to client.
    Response = 4,
    /// JSON [`WireError`](crate::WireError) that ends this QUIC stream, broker to client.
    Failure = 5,
    /// A batch, client to broker.
    Publish = 16,
    /// Final answers to batches, broker to client.
    Answers = 17,
    /// Batches that are ordered and not yet durable, broker to client.
    Accepted = 18,
    /// A batch and where it stands in its stream, broker to client.
    Deliver = 32,
    /// Offsets that retention took away, broker to client.
    Gap = 33,
    /// The end that the stream had when the subscription started, broker to client.
    End = 34,
    /// Offsets that can't be read, broker to client.
    Damaged = 35,
    /// The name of a producer whose id comes up next, broker to client.
    ProducerName = 36,
    /// Reserved for a reader's credit.
    Credit = 37,
}

impl FrameKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: &[FrameKind] = &[
        FrameKind::Hello,
        FrameKind::Welcome,
        FrameKind::Request,
        FrameKind::Response,
        FrameKind::Failure,
        FrameKind::Publish,
        FrameKind::Answers,
        FrameKind::Accepted,
        FrameKind::Deliver,
        FrameKind::Gap,
        FrameKind::End,
        FrameKind::Damaged,
        FrameKind::ProducerName,
        FrameKind::Credit,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The kind with this number, or `None` if this version knows none.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<FrameKind> {
        Some(match number {
            1 => FrameKind::Hello,
            2 => FrameKind::Welcome,
            3 => FrameKind::Request,
            4 => FrameKind::Response,
            5 => FrameKind::Failure,
            16 => FrameKind::Publish,
            17 => FrameKind::Answers,
            18 => FrameKind::Accepted,
            32 => FrameKind::Deliver,
            33 => FrameKind::Gap,
            34 => FrameKind::End,
            35 => FrameKind::Damaged,
            36 => FrameKind::ProducerName,
            37 => FrameKind::Credit,
            _ => return None,
        })
    }
}

/// Bytes that the body of a frame of this kind may have.
#[must_use]
pub fn frame_limit(kind: FrameKind, limits: &Limits) -> usize {
    match kind {
        FrameKind::Hello | FrameKind::Welcome | FrameKind::Request | FrameKind::Response | FrameKind::Failure => {
            CONTROL_FRAME_BYTES_MAX
        }
        FrameKind::Publish => limits.batch_bytes_max(),
        FrameKind::Answers => ANSWERS_BODY_BYTES_MAX,
        FrameKind::Accepted => ACCEPTED_LEN,
        FrameKind::Deliver => DELIVER_HEADER_LEN + limits.batch_bytes_max(),
        FrameKind::Gap => GAP_LEN,
        FrameKind::End => END_LEN,
        FrameKind::Damaged => DAMAGED_LEN,
        FrameKind::ProducerName => PRODUCER_ID_LEN + NAME_BYTES_MAX,
        FrameKind::Credit => CREDIT_LEN,
    }
}

/// Bytes of the reserved credit frame's body.
const CREDIT_LEN: usize = 8;

/// Why bytes are no frame, or a frame's body is not what its kind says. The QUIC stream can't go on: close it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A kind that this version does not know.
    #[error("a frame has unknown kind {kind}")]
    UnknownKind {
        /// The number of the kind.
        kind: u8,
    },
    /// The flags and the two bytes behind them are reserved.
    #[error("a {kind:?} frame has {reserved:#08x} where zeros are reserved")]
    Reserved {
        /// The frame's kind.
        kind: FrameKind,
        /// Flags and reserved bytes.
        reserved: u32,
    },
    /// The body is longer than the kind allows. Nothing was allocated for it.
    #[error("a {kind:?} frame has {body_len} bytes, the limit is {max}")]
    TooLong {
        /// The frame's kind.
        kind: FrameKind,
        /// Bytes of the body.
        body_len: usize,
        /// The limit for this kind.
        max: usize,
    },
    /// The body's length is not that of its fields.
    #[error("a {kind:?} frame has {body_len} bytes, which is not the length of its fields")]
    Length {
        /// The frame's kind.
        kind: FrameKind,
        /// Bytes of the body.
        body_len: usize,
    },
    /// A field has a value that it can't have.
    #[error("a {kind:?} frame has {value} as its {field}, which can't be")]
    Field {
        /// The frame's kind.
        kind: FrameKind,
        /// The field.
        field: &'static str,
        /// The value.
        value: u64,
    },
    /// A name in the frame breaks the rules for names.
    #[error("a {kind:?} frame has a bad name: {fault}")]
    Name {
        /// The frame's kind.
        kind: FrameKind,
        /// Which rule.
        fault: NameError,
    },
    /// A name in the frame is not even text.
    #[error("a {kind:?} frame has a name that is not UTF-8")]
    NameText {
        /// The frame's kind.
        kind: FrameKind,
    },
    /// The body is not the JSON that the kind asks for.
    #[error("a {kind:?} frame is not the JSON it should be: {fault}")]
    Json {
        /// The frame's kind.
        kind: FrameKind,
        /// What is wrong, and where.
        fault: serde_json::Error,
    },
}

impl FrameError {
    /// The number that this error has on the wire: always [`ErrorCode::Malformed`].
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        ErrorCode::Malformed
    }
}

impl From<FrameError> for ErrorCode {
    fn from(error: FrameError) -> Self {
        error.code()
    }
}

/// The header of a frame whose body has `body_len` bytes.
///
/// # Panics
/// If `body_len` is 4 GiB or more; the limits keep every body far below.
#[must_use]
pub fn encode_frame_header(kind: FrameKind, body_len: usize) -> [u8; FRAME_HEADER_LEN] {
    let body_len = u32::try_from(body_len).expect("the limits keep a frame far below 4 GiB");
    let mut header = [0; FRAME_HEADER_LEN];
    let mut rest = &mut header[..];
    rest.put_u32_le(body_len);
    rest.put_u8(kind.number());
    header
}

/// Appends a whole frame with `body` as JSON to `out`.
///
/// # Errors
/// [`FrameError::TooLong`] if the JSON is longer than a control frame may be, [`FrameError::Json`] if `body` has no JSON;
/// `out` is unchanged.
pub fn encode_json_frame(kind: FrameKind, body: &impl Serialize, out: &mut BytesMut) -> Result<(), FrameError> {
    let json = serde_json::to_vec(body).map_err(|fault| FrameError::Json { kind, fault })?;
    if json.len() > CONTROL_FRAME_BYTES_MAX {
        return Err(FrameError::TooLong { kind, body_len: json.len(), max: CONTROL_FRAME_BYTES_MAX });
    }
    out.put_slice(&encode_frame_header(kind, json.len()));
    out.put_slice(&json);
    Ok(())
}

/// Reads the body of a JSON frame; `kind` is only for the error.
///
/// # Errors
/// [`FrameError::Json`] says what is wrong and where.
pub fn decode_json<T: DeserializeOwned>(kind: FrameKind, body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(|fault| FrameError::Json { kind, fault })
}

/// One frame, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the body is.
    pub kind: FrameKind,
    /// The body; its length is within the kind's limit, its content is not checked.
    pub body: Bytes,
}

/// Cuts the bytes of one QUIC stream into frames.
///
/// Call [`next_frame`](Self::next_frame) until it gives `None` behind each [`push`](Self::push); then it holds at most one
/// unfinished frame and one chunk. A body is a slice of the receive buffer: keep it only as long as it is used.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    limits: Limits,
}

impl FrameDecoder {
    /// A decoder that refuses frames beyond `limits`.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { buffer: BytesMut::new(), limits }
    }

    /// Holds the frames that follow to other limits: those that a broker told in its welcome.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Takes in bytes as they arrived, copied once.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next whole frame, or `None` until more bytes arrive.
    ///
    /// # Errors
    /// [`FrameError`] as soon as the eight bytes of a header are there and say what can't be; the decoder is of no use
    /// afterwards, since nothing tells where the next frame would start.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<FRAME_HEADER_LEN>() else {
            return Ok(None);
        };
        let mut rest = &header[..];
        let body_len = rest.get_u32_le() as usize;
        let kind = rest.get_u8();
        let kind = FrameKind::from_number(kind).ok_or(FrameError::UnknownKind { kind })?;
        let reserved = rest.get_uint_le(3) as u32;
        if reserved != 0 {
            return Err(FrameError::Reserved { kind, reserved });
        }
        let max = frame_limit(kind, &self.limits);
        if body_len > max {
            return Err(FrameError::TooLong { kind, body_len, max });
        }
        let missing = (FRAME_HEADER_LEN + body_len).saturating_sub(self.buffer.len());
        if missing > 0 {
            // Only when it is full: asked for more behind each few bytes that arrive, the buffer would double each time.
            if self.buffer.capacity() == self.buffer.len() {
                self.buffer.reserve(missing.min(READ_AHEAD_BYTES_MAX));
            }
            return Ok(None);
        }
        self.buffer.advance(FRAME_HEADER_LEN);
        Ok(Some(Frame { kind, body: self.buffer.split_to(body_len).freeze() }))
    }

    /// Bytes of the unfinished frame, its header included, as far as they are known: 0 before its header is there. Within
    /// the limits if [`next_frame`](Self::next_frame) has just given `None`.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        self.buffer.first_chunk::<FRAME_HEADER_LEN>().map_or(0, |header| {
            let mut rest = &header[..];
            FRAME_HEADER_LEN + rest.get_u32_le() as usize
        })
    }

    /// Gives the memory of frames that have been given out back, if nothing is taken in: an idle QUIC stream should not
    /// hold what its largest frame needed.
    pub fn release(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// Bytes taken in and not yet given out: more than 0 at the end of a QUIC stream means that it was cut off.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder() -> FrameDecoder {
        FrameDecoder::new(Limits::default())
    }

    fn frame(kind: FrameKind, body: &[u8]) -> Vec<u8> {
        [&encode_frame_header(kind, body.len())[..], body].concat()
    }

    #[test]
    fn every_kind_leads_back_from_its_number_and_no_other_number_is_one() {
        let known: Vec<_> = (0..=u8::MAX).filter_map(FrameKind::from_number).collect();
        assert_eq!(known, FrameKind::ALL);
        for kind in FrameKind::ALL {
            assert_eq!(FrameKind::from_number(kind.number()), Some(*kind));
        }
    }

    #[test]
    fn frames_come_out_whole_however_the_bytes_arrive() {
        let bytes =
            [frame(FrameKind::Request, b"{}"), frame(FrameKind::Failure, b""), frame(FrameKind::End, &[7; 8])].concat();
        for size in 1..=bytes.len() {
            let mut decoder = decoder();
            let mut frames = Vec::new();
            for chunk in bytes.chunks(size) {
                decoder.push(chunk);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    frames.push((frame.kind, frame.body));
                }
            }
            let expected = [(FrameKind::Request, &b"{}"[..]), (FrameKind::Failure, b""), (FrameKind::End, &[7; 8])];
            assert_eq!(frames, expected.map(|(kind, body)| (kind, Bytes::copy_from_slice(body))));
            assert_eq!(decoder.buffered(), 0);
        }
    }

    #[test]
    fn a_length_beyond_the_kinds_limit_is_refused_on_the_header_alone() {
        let limits = Limits::default();
        for &kind in FrameKind::ALL {
            let max = frame_limit(kind, &limits);
            let mut decoder = decoder();
            decoder.push(&encode_frame_header(kind, max));
            assert!(decoder.next_frame().unwrap().is_none(), "{kind:?}");
            let mut decoder = self::decoder();
            decoder.push(&encode_frame_header(kind, max + 1));
            let refused = decoder.next_frame().unwrap_err();
            assert!(matches!(refused, FrameError::TooLong { body_len, .. } if body_len == max + 1), "{refused}");
            assert!(max + FRAME_HEADER_LEN <= limits.frame_bytes_max(), "{kind:?}");
        }
    }

    #[test]
    fn bytes_that_trickle_in_do_not_make_the_buffer_grow_ahead_of_them() {
        let mut decoder = decoder();
        decoder.push(&encode_frame_header(FrameKind::Publish, 1 << 20));
        for received in FRAME_HEADER_LEN + 1..100_000 {
            decoder.push(&[0]);
            assert!(decoder.next_frame().unwrap().is_none());
            assert!(decoder.buffer.capacity() <= 2 * received + READ_AHEAD_BYTES_MAX, "{received} received");
        }
    }

    #[test]
    fn a_header_alone_makes_nobody_allocate_what_it_claims() {
        let mut decoder = decoder();
        decoder.push(&encode_frame_header(FrameKind::Publish, 1 << 20));
        assert!(decoder.next_frame().unwrap().is_none());
        assert!(decoder.buffer.capacity() <= 2 * READ_AHEAD_BYTES_MAX, "{}", decoder.buffer.capacity());
    }

    #[test]
    fn the_length_of_an_unfinished_frame_is_told_as_soon_as_its_header_is_there() {
        let mut decoder = decoder();
        let bytes = frame(FrameKind::Request, b"{}");
        decoder.push(&bytes[..7]);
        assert_eq!((decoder.next_frame().unwrap(), decoder.frame_len()), (None, 0));
        decoder.push(&bytes[7..9]);
        assert_eq!((decoder.next_frame().unwrap(), decoder.frame_len()), (None, bytes.len()));
        decoder.release();
        decoder.push(&bytes[9..]);
        assert!(decoder.next_frame().unwrap().is_some(), "what is unfinished is not given back");
        assert_eq!(decoder.frame_len(), 0);
    }

    #[test]
    fn new_limits_hold_from_the_next_frame_on() {
        let mut decoder = decoder();
        decoder.push(&encode_frame_header(FrameKind::Publish, 3 << 20));
        decoder.set_limits(Limits { record_bytes_max: 4 << 20, ..Limits::default() });
        assert!(decoder.next_frame().unwrap().is_none());
    }

    #[test]
    fn unknown_kinds_and_reserved_bits_are_refused() {
        let header = |at: usize, byte: u8| {
            let mut decoder = decoder();
            let mut header = encode_frame_header(FrameKind::End, 8);
            header[at] = byte;
            decoder.push(&header);
            decoder.next_frame().unwrap_err()
        };
        assert!(matches!(header(4, 0), FrameError::UnknownKind { kind: 0 }));
        assert!(matches!(header(4, 99), FrameError::UnknownKind { kind: 99 }));
        assert!(matches!(header(5, 1), FrameError::Reserved { reserved: 1, .. }));
        assert!(matches!(header(6, 1), FrameError::Reserved { reserved: 0x100, .. }));
        assert!(matches!(header(7, 1), FrameError::Reserved { reserved: 0x1_0000, .. }));
        assert_eq!(ErrorCode::from(header(4, 0)), ErrorCode::Malformed);
    }

    #[test]
    fn json_beyond_a_control_frame_is_not_sent() {
        let mut out = BytesMut::new();
        let refused =
            encode_json_frame(FrameKind::Request, &"x".repeat(CONTROL_FRAME_BYTES_MAX), &mut out).unwrap_err();
        assert!(matches!(refused, FrameError::TooLong { .. }));
        assert!(out.is_empty());
        encode_json_frame(FrameKind::Request, &"x".repeat(CONTROL_FRAME_BYTES_MAX - 2), &mut out).unwrap();
        assert_eq!(out.len(), FRAME_HEADER_LEN + CONTROL_FRAME_BYTES_MAX);
    }

    #[test]
    fn json_nested_without_end_is_an_error() {
        let refused = decode_json::<serde_json::Value>(FrameKind::Request, "[".repeat(60_000).as_bytes());
        assert!(matches!(refused, Err(FrameError::Json { .. })));
    }
}
