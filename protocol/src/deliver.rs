//! What a subscription receives: batches with their place in the stream, and what stands between them.
//!
//! ```text
//! Deliver       0 base_offset u64 | 8 time_ms i64 | 16 producer u64 | 24 skip u32 | 28 reserved u32 = 0 | 32 batch
//! Gap           0 from u64 | 8 to u64 | 16 cause u8 | 17 seven zeros
//! End           0 tail u64
//! Damaged       0 from u64 | 8 to u64
//! ProducerName  0 producer u64 | 8 name
//! ```
//! Ranges are half-open: `from..to`.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::batch_header::BATCH_HEADER_LEN;
use crate::frame::{FRAME_HEADER_LEN, FrameError, FrameKind, encode_frame_header};
use crate::names::ProducerName;
use crate::position::{Offset, ProducerId};
use crate::publish::fixed;

/// Bytes that stand before the batch in a deliver frame's body.
pub const DELIVER_HEADER_LEN: usize = 32;

pub(crate) const GAP_LEN: usize = 24;
pub(crate) const END_LEN: usize = 8;
pub(crate) const DAMAGED_LEN: usize = 16;
pub(crate) const PRODUCER_ID_LEN: usize = 8;

/// The cause byte and the seven zeros behind it, as one number.
const RETENTION: u64 = 1;

/// Where a delivered batch stands, from the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeliverHeader {
    /// Offset of record number [`skip`](Self::skip) of the batch; the records behind it follow without gaps.
    pub base_offset: Offset,
    /// The broker's clock when it ordered the batch, in milliseconds since 1970; it never falls within a stream.
    pub time_ms: i64,
    /// Who published it.
    pub producer: ProducerId,
    /// Leading records of the batch that are not part of the stream here: they were stored before.
    pub skip: u32,
}

/// A batch and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Where it stands.
    pub header: DeliverHeader,
    /// The batch, byte for byte as its producer sent it. Not checked: see
    /// [`verify_content_crc`](crate::verify_content_crc).
    pub batch: Bytes,
}

/// The frame header and the deliver header before a batch of `batch_len` bytes, so that the batch itself can follow as it
/// lies in the broker's buffer.
#[must_use]
pub fn encode_deliver_header(header: &DeliverHeader, batch_len: usize) -> [u8; FRAME_HEADER_LEN + DELIVER_HEADER_LEN] {
    let mut out = [0; FRAME_HEADER_LEN + DELIVER_HEADER_LEN];
    let mut rest = &mut out[..];
    rest.put_slice(&encode_frame_header(FrameKind::Deliver, DELIVER_HEADER_LEN + batch_len));
    rest.put_u64_le(header.base_offset.get());
    rest.put_i64_le(header.time_ms);
    rest.put_u64_le(header.producer.get());
    rest.put_u32_le(header.skip);
    out
}

impl Delivery {
    /// Takes a deliver frame's body apart; the batch is a slice of it.
    ///
    /// # Errors
    /// [`FrameError`] if the body is shorter than both headers, or the reserved bytes are not 0.
    pub fn decode(mut body: Bytes) -> Result<Delivery, FrameError> {
        let kind = FrameKind::Deliver;
        if body.len() < DELIVER_HEADER_LEN + BATCH_HEADER_LEN {
            return Err(FrameError::Length { kind, body_len: body.len() });
        }
        let batch = body.split_off(DELIVER_HEADER_LEN);
        let mut rest = &body[..];
        let header = DeliverHeader {
            base_offset: Offset::new(rest.get_u64_le()),
            time_ms: rest.get_i64_le(),
            producer: ProducerId::new(rest.get_u64_le()),
            skip: rest.get_u32_le(),
        };
        let reserved = rest.get_u32_le();
        if reserved != 0 {
            return Err(FrameError::Reserved { kind, reserved });
        }
        Ok(Delivery { header, batch })
    }
}

/// Offsets that the subscription passes over because their records are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The first offset that is gone.
    pub from: Offset,
    /// The offset behind the last one that is gone; above `from`.
    pub to: Offset,
    /// Why they are gone.
    pub cause: GapCause,
}

/// Why records are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapCause {
    /// Retention dropped them.
    Retention,
}

/// Offsets whose records were stored and can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damaged {
    /// The first offset that can't be read.
    pub from: Offset,
    /// The offset behind the last one that can't be read; above `from`.
    pub to: Offset,
}

/// Appends a whole gap frame.
pub fn encode_gap(gap: &Gap, out: &mut BytesMut) {
    out.put_slice(&encode_frame_header(FrameKind::Gap, GAP_LEN));
    out.put_u64_le(gap.from.get());
    out.put_u64_le(gap.to.get());
    out.put_u64_le(match gap.cause {
        GapCause::Retention => RETENTION,
    });
}

/// Reads the body of a gap frame.
///
/// # Errors
/// [`FrameError`] if the length is another one, the range is empty, or the cause is unknown.
pub fn decode_gap(body: &[u8]) -> Result<Gap, FrameError> {
    let kind = FrameKind::Gap;
    let mut rest = fixed::<GAP_LEN>(kind, body)?;
    let (from, to) = decode_offsets(kind, &mut rest)?;
    let cause = match rest.get_u64_le() {
        RETENTION => GapCause::Retention,
        value => return Err(FrameError::Field { kind, field: "cause", value }),
    };
    Ok(Gap { from, to, cause })
}

/// Appends a whole damaged frame.
pub fn encode_damaged(damaged: &Damaged, out: &mut BytesMut) {
    out.put_slice(&encode_frame_header(FrameKind::Damaged, DAMAGED_LEN));
    out.put_u64_le(damaged.from.get());
    out.put_u64_le(damaged.to.get());
}

/// Reads the body of a damaged frame.
///
/// # Errors
/// [`FrameError`] if the length is another one or the range is empty.
pub fn decode_damaged(body: &[u8]) -> Result<Damaged, FrameError> {
    let kind = FrameKind::Damaged;
    let (from, to) = decode_offsets(kind, &mut fixed::<DAMAGED_LEN>(kind, body)?)?;
    Ok(Damaged { from, to })
}

fn decode_offsets(kind: FrameKind, rest: &mut &[u8]) -> Result<(Offset, Offset), FrameError> {
    let from = Offset::new(rest.get_u64_le());
    let to = Offset::new(rest.get_u64_le());
    if from < to { Ok((from, to)) } else { Err(FrameError::Field { kind, field: "to", value: to.get() }) }
}

/// Appends a whole end frame: `tail` is the first offset that the subscription does not deliver.
pub fn encode_end(tail: Offset, out: &mut BytesMut) {
    out.put_slice(&encode_frame_header(FrameKind::End, END_LEN));
    out.put_u64_le(tail.get());
}

/// Reads the body of an end frame.
///
/// # Errors
/// [`FrameError::Length`] if it is not eight bytes.
pub fn decode_end(body: &[u8]) -> Result<Offset, FrameError> {
    Ok(Offset::new(fixed::<END_LEN>(FrameKind::End, body)?.get_u64_le()))
}

/// Appends a whole frame that names `producer` for the rest of the subscription.
pub fn encode_producer_name(producer: ProducerId, name: &ProducerName, out: &mut BytesMut) {
    out.put_slice(&encode_frame_header(FrameKind::ProducerName, PRODUCER_ID_LEN + name.as_str().len()));
    out.put_u64_le(producer.get());
    out.put_slice(name.as_str().as_bytes());
}

/// Reads the body of a producer name frame.
///
/// # Errors
/// [`FrameError`] if the id is cut off or the name breaks the rules for names.
pub fn decode_producer_name(body: &[u8]) -> Result<(ProducerId, ProducerName), FrameError> {
    let kind = FrameKind::ProducerName;
    let (mut producer, name) =
        body.split_at_checked(PRODUCER_ID_LEN).ok_or(FrameError::Length { kind, body_len: body.len() })?;
    let name = std::str::from_utf8(name).map_err(|_| FrameError::NameText { kind })?;
    let name = ProducerName::new(name).map_err(|fault| FrameError::Name { kind, fault })?;
    Ok((ProducerId::new(producer.get_u64_le()), name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::NameError;

    fn body(encode: impl FnOnce(&mut BytesMut)) -> Bytes {
        let mut out = BytesMut::new();
        encode(&mut out);
        assert_eq!(out.len() - FRAME_HEADER_LEN, out[0] as usize);
        out.freeze().slice(FRAME_HEADER_LEN..)
    }

    #[test]
    fn a_delivery_comes_back_with_its_batch_uncopied() {
        let header = DeliverHeader { base_offset: Offset::new(5), time_ms: -1, producer: ProducerId::new(9), skip: 3 };
        let batch = [7u8; BATCH_HEADER_LEN + 2];
        let frame = [&encode_deliver_header(&header, batch.len())[..], &batch].concat();
        assert_eq!(frame[0] as usize, frame.len() - FRAME_HEADER_LEN);
        let body = Bytes::from(frame).slice(FRAME_HEADER_LEN..);
        let delivery = Delivery::decode(body.clone()).unwrap();
        assert_eq!((delivery.header, &delivery.batch[..]), (header, &batch[..]));
        assert!(body.as_ptr_range().contains(&delivery.batch.as_ptr()));
    }

    #[test]
    fn a_delivery_without_room_for_a_batch_or_with_reserved_bits_is_refused() {
        let short = Delivery::decode(Bytes::from_static(&[0; DELIVER_HEADER_LEN + BATCH_HEADER_LEN - 1]));
        assert!(matches!(short, Err(FrameError::Length { body_len: 87, .. })));
        let mut bytes = [0; DELIVER_HEADER_LEN + BATCH_HEADER_LEN];
        bytes[31] = 1;
        let reserved = Delivery::decode(Bytes::copy_from_slice(&bytes));
        assert!(matches!(reserved, Err(FrameError::Reserved { reserved: 0x0100_0000, .. })));
    }

    #[test]
    fn what_stands_between_batches_comes_back() {
        let (from, to) = (Offset::new(3), Offset::new(u64::MAX));
        let gap = Gap { from, to, cause: GapCause::Retention };
        assert_eq!(decode_gap(&body(|out| encode_gap(&gap, out))).unwrap(), gap);
        let damaged = Damaged { from, to };
        assert_eq!(decode_damaged(&body(|out| encode_damaged(&damaged, out))).unwrap(), damaged);
        assert_eq!(decode_end(&body(|out| encode_end(to, out))).unwrap(), to);
        let (producer, name) = (ProducerId::new(4), ProducerName::new("p").unwrap());
        let named = body(|out| encode_producer_name(producer, &name, out));
        assert_eq!(decode_producer_name(&named).unwrap(), (producer, name));
    }

    #[test]
    fn an_empty_range_is_refused() {
        let (from, to) = (Offset::new(3), Offset::new(3));
        let gap = body(|out| encode_gap(&Gap { from, to, cause: GapCause::Retention }, out));
        assert!(matches!(decode_gap(&gap), Err(FrameError::Field { field: "to", value: 3, .. })));
        let damaged = body(|out| encode_damaged(&Damaged { from, to }, out));
        assert!(matches!(decode_damaged(&damaged), Err(FrameError::Field { field: "to", value: 3, .. })));
    }

    #[test]
    fn an_unknown_cause_other_lengths_and_bad_names_are_refused() {
        let (from, to) = (Offset::new(3), Offset::new(4));
        let mut gap = body(|out| encode_gap(&Gap { from, to, cause: GapCause::Retention }, out)).to_vec();
        gap[17] = 1;
        assert!(matches!(decode_gap(&gap), Err(FrameError::Field { field: "cause", value: 0x101, .. })));
        assert!(matches!(decode_gap(&gap[..23]), Err(FrameError::Length { body_len: 23, .. })));
        assert!(matches!(decode_damaged(&[0; 17]), Err(FrameError::Length { body_len: 17, .. })));
        assert!(matches!(decode_end(&[]), Err(FrameError::Length { body_len: 0, .. })));
        assert!(matches!(decode_producer_name(&[0; 7]), Err(FrameError::Length { body_len: 7, .. })));
        let empty = decode_producer_name(&[0; 8]);
        assert!(matches!(empty, Err(FrameError::Name { fault: NameError::Empty { .. }, .. })));
        assert!(matches!(decode_producer_name(&[0xff; 9]), Err(FrameError::NameText { .. })));
    }
}
