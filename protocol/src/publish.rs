//! What the broker answers to batches: fixed layouts, one answer a batch.
//!
//! ```text
//! Answers   0 up_to u64 | 8 count u32 | 12 reserved u32 = 0 | 16 count x answer
//! answer    0 outcome u8 | 1 reserved u8 = 0 | 2 code u16 | 4 skip u32 | 8 base_offset u64 | 16 detail u64
//! Accepted  0 up_to u64
//! ```
//! A batch has no number of its own: the n-th publish frame of a QUIC stream is ordinal n, from 1.

use bytes::{Buf, BufMut, BytesMut};

use crate::error::ErrorCode;
use crate::frame::{FrameError, FrameKind, encode_frame_header};
use crate::position::Offset;

/// Answers of one frame: more are split over several, so that a receiver holds a bounded one.
pub const ANSWERS_PER_FRAME_MAX: usize = 4096;

const ANSWERS_HEADER_LEN: usize = 16;
const ANSWER_LEN: usize = 24;

/// Bytes of the body of the longest answers frame.
pub(crate) const ANSWERS_BODY_BYTES_MAX: usize = ANSWERS_HEADER_LEN + ANSWERS_PER_FRAME_MAX * ANSWER_LEN;

/// Bytes of the body of an accepted frame.
pub(crate) const ACCEPTED_LEN: usize = 8;

const STORED: u8 = 0;
const DUPLICATE: u8 = 1;
const REFUSED: u8 = 2;

/// Stands for an offset that is not known. No record has it: offsets would have to reach 2^64 - 1.
const OFFSET_UNKNOWN: u64 = u64::MAX;

/// The final answer to one batch. It leaves the broker only when what it says can no longer be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// What became of the batch.
    pub outcome: Outcome,
    /// Offset of the first record of the batch that was kept, which is record number [`skip`](Self::skip); of a
    /// duplicate, where it was stored before. `None` if not known or refused.
    pub base_offset: Option<Offset>,
    /// Leading records of the batch that were stored before and not again.
    pub skip: u32,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its records, but for the skipped ones, are now in the stream.
    Stored,
    /// All of its records were in the stream already.
    Duplicate,
    /// Nothing of it was stored.
    Refused {
        /// Why. A number that this version does not know comes out as [`ErrorCode::Internal`]: final, cause unknown.
        code: ErrorCode,
        /// The sequence expected, or the last one stored, where the code says so; else 0.
        detail: u64,
    },
}

/// Appends whole frames with `answers`, those of the ordinals up to and with `up_to`, in order and none left out: one
/// frame, several for more than [`ANSWERS_PER_FRAME_MAX`], none for none.
///
/// # Panics
/// If there are more answers than ordinals up to `up_to`.
pub fn encode_answers(up_to: u64, answers: &[Answer], out: &mut BytesMut) {
    assert!(answers.len() as u64 <= up_to, "every answer belongs to a batch");
    let mut ordinal = up_to - answers.len() as u64;
    for part in answers.chunks(ANSWERS_PER_FRAME_MAX) {
        ordinal += part.len() as u64;
        let body_len = ANSWERS_HEADER_LEN + part.len() * ANSWER_LEN;
        out.put_slice(&encode_frame_header(FrameKind::Answers, body_len));
        out.put_u64_le(ordinal);
        out.put_u32_le(part.len() as u32);
        out.put_u32_le(0);
        for answer in part {
            encode_answer(answer, out);
        }
    }
}

fn encode_answer(answer: &Answer, out: &mut BytesMut) {
    let (outcome, code, detail) = match answer.outcome {
        Outcome::Stored => (STORED, 0, 0),
        Outcome::Duplicate => (DUPLICATE, 0, 0),
        Outcome::Refused { code, detail } => (REFUSED, code.number(), detail),
    };
    out.put_u8(outcome);
    out.put_u8(0);
    out.put_u16_le(code);
    out.put_u32_le(answer.skip);
    out.put_u64_le(answer.base_offset.map_or(OFFSET_UNKNOWN, Offset::get));
    out.put_u64_le(detail);
}

/// Reads the body of an answers frame: the ordinal of the last answer, and the answers in order.
///
/// # Errors
/// [`FrameError`] if the length is not that of the count, or a field has a value that it can't have.
pub fn decode_answers(body: &[u8]) -> Result<(u64, Vec<Answer>), FrameError> {
    let kind = FrameKind::Answers;
    let (mut header, answers) =
        body.split_at_checked(ANSWERS_HEADER_LEN).ok_or(FrameError::Length { kind, body_len: body.len() })?;
    let up_to = header.get_u64_le();
    let count = header.get_u32_le();
    let reserved = header.get_u32_le();
    if reserved != 0 {
        return Err(FrameError::Reserved { kind, reserved });
    }
    let (answers, []) = answers.as_chunks::<ANSWER_LEN>() else {
        return Err(FrameError::Length { kind, body_len: body.len() });
    };
    if answers.len() as u64 != u64::from(count) {
        return Err(FrameError::Length { kind, body_len: body.len() });
    }
    if count == 0 || answers.len() > ANSWERS_PER_FRAME_MAX || u64::from(count) > up_to {
        return Err(FrameError::Field { kind, field: "count", value: u64::from(count) });
    }
    let answers = answers.iter().map(decode_answer).collect::<Result<_, _>>()?;
    Ok((up_to, answers))
}

fn decode_answer(answer: &[u8; ANSWER_LEN]) -> Result<Answer, FrameError> {
    let kind = FrameKind::Answers;
    let mut rest = &answer[..];
    let outcome = rest.get_u8();
    let reserved = rest.get_u8();
    let code = rest.get_u16_le();
    let skip = rest.get_u32_le();
    let base_offset = rest.get_u64_le();
    let detail = rest.get_u64_le();
    if reserved != 0 {
        return Err(FrameError::Reserved { kind, reserved: u32::from(reserved) });
    }
    let outcome = match (outcome, code) {
        (STORED, 0) => Outcome::Stored,
        (DUPLICATE, 0) => Outcome::Duplicate,
        (REFUSED, 1..) => {
            Outcome::Refused { code: ErrorCode::from_number(code).unwrap_or(ErrorCode::Internal), detail }
        }
        (STORED | DUPLICATE | REFUSED, code) => {
            return Err(FrameError::Field { kind, field: "code", value: u64::from(code) });
        }
        (outcome, _) => return Err(FrameError::Field { kind, field: "outcome", value: u64::from(outcome) }),
    };
    if detail != 0 && !matches!(outcome, Outcome::Refused { .. }) {
        return Err(FrameError::Field { kind, field: "detail", value: detail });
    }
    let base_offset = (base_offset != OFFSET_UNKNOWN).then(|| Offset::new(base_offset));
    Ok(Answer { outcome, base_offset, skip })
}

/// Appends a whole frame: every batch up to and with ordinal `up_to` is ordered, which promises nothing yet.
pub fn encode_accepted(up_to: u64, out: &mut BytesMut) {
    out.put_slice(&encode_frame_header(FrameKind::Accepted, ACCEPTED_LEN));
    out.put_u64_le(up_to);
}

/// Reads the body of an accepted frame.
///
/// # Errors
/// [`FrameError::Length`] if it is not eight bytes.
pub fn decode_accepted(body: &[u8]) -> Result<u64, FrameError> {
    let mut fields = fixed::<ACCEPTED_LEN>(FrameKind::Accepted, body)?;
    Ok(fields.get_u64_le())
}

/// The body of a frame of fixed length.
pub(crate) fn fixed<const N: usize>(kind: FrameKind, body: &[u8]) -> Result<&[u8], FrameError> {
    if body.len() == N { Ok(body) } else { Err(FrameError::Length { kind, body_len: body.len() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{FRAME_HEADER_LEN, FrameDecoder};
    use crate::limits::Limits;

    fn stored(offset: u64) -> Answer {
        Answer { outcome: Outcome::Stored, base_offset: Some(Offset::new(offset)), skip: 0 }
    }

    fn body(up_to: u64, answers: &[Answer]) -> Vec<u8> {
        let mut out = BytesMut::new();
        encode_answers(up_to, answers, &mut out);
        out[FRAME_HEADER_LEN..].to_vec()
    }

    #[test]
    fn answers_come_back_in_order() {
        let refused = Outcome::Refused { code: ErrorCode::SequenceGap, detail: 12 };
        let answers = [
            Answer { skip: 3, ..stored(0) },
            Answer { outcome: Outcome::Duplicate, base_offset: None, skip: 0 },
            Answer { outcome: refused, base_offset: None, skip: 0 },
        ];
        assert_eq!(decode_answers(&body(9, &answers)).unwrap(), (9, answers.to_vec()));
    }

    #[test]
    fn more_answers_than_a_frame_holds_go_out_in_several() {
        let answers: Vec<_> = (0..ANSWERS_PER_FRAME_MAX as u64 + 1).map(stored).collect();
        let mut out = BytesMut::new();
        encode_answers(5000, &answers, &mut out);
        let mut decoder = FrameDecoder::new(Limits::default());
        decoder.push(&out);
        let (first_up_to, mut together) = decode_answers(&decoder.next_frame().unwrap().unwrap().body).unwrap();
        let (last_up_to, behind) = decode_answers(&decoder.next_frame().unwrap().unwrap().body).unwrap();
        assert_eq!((first_up_to, last_up_to, behind.len()), (4999, 5000, 1));
        together.extend(behind);
        assert_eq!(together, answers);
        assert_eq!(decoder.buffered(), 0);
    }

    #[test]
    fn no_answers_are_no_frame() {
        let mut out = BytesMut::new();
        encode_answers(0, &[], &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn a_refusal_of_a_newer_broker_stays_a_refusal() {
        let mut body =
            body(1, &[Answer { outcome: Outcome::Refused { code: ErrorCode::Busy, detail: 5 }, ..stored(0) }]);
        body[ANSWERS_HEADER_LEN + 2..ANSWERS_HEADER_LEN + 4].copy_from_slice(&999u16.to_le_bytes());
        let (_, answers) = decode_answers(&body).unwrap();
        assert_eq!(answers[0].outcome, Outcome::Refused { code: ErrorCode::Internal, detail: 5 });
    }

    #[test]
    fn fields_that_contradict_each_other_are_refused() {
        let good = body(2, &[stored(1), stored(2)]);
        let with = |at: usize, byte: u8| {
            let mut body = good.clone();
            body[at] = byte;
            decode_answers(&body).unwrap_err()
        };
        assert!(matches!(with(0, 1), FrameError::Field { field: "count", value: 2, .. }));
        assert!(matches!(with(8, 3), FrameError::Length { .. }));
        assert!(matches!(with(12, 1), FrameError::Reserved { .. }));
        assert!(matches!(with(16, 3), FrameError::Field { field: "outcome", value: 3, .. }));
        assert!(matches!(with(16, 2), FrameError::Field { field: "code", value: 0, .. }));
        assert!(matches!(with(17, 1), FrameError::Reserved { .. }));
        assert!(matches!(with(18, 1), FrameError::Field { field: "code", value: 1, .. }));
        assert!(matches!(with(32, 1), FrameError::Field { field: "detail", value: 1, .. }));
        assert!(matches!(decode_answers(&good[..15]), Err(FrameError::Length { body_len: 15, .. })));
        assert!(matches!(decode_answers(&good[..63]), Err(FrameError::Length { body_len: 63, .. })));
        assert!(matches!(decode_answers(&[0; 16]), Err(FrameError::Field { field: "count", value: 0, .. })));
    }

    #[test]
    fn accepted_comes_back_and_has_one_length() {
        let mut out = BytesMut::new();
        encode_accepted(u64::MAX, &mut out);
        assert_eq!(decode_accepted(&out[FRAME_HEADER_LEN..]).unwrap(), u64::MAX);
        assert!(matches!(decode_accepted(&[0; 7]), Err(FrameError::Length { body_len: 7, .. })));
        assert!(matches!(decode_accepted(&[0; 9]), Err(FrameError::Length { body_len: 9, .. })));
    }
}
