//! The footer of a sealed segment: its index in a file of its own, derived from the segment and rebuilt whenever
//! anything about it does not fit.
//!
//! ```text
//! magic u32 | version u32 | segment u64 | salt 8 | base u64 | end u64 | subjects u64
//! per subject, ascending: subject u64 | first u64 | next u64 | first_wall_ms i64 | previous u64 | points u64 | points × (offset u64, position u64)
//! crc32 of all before u32
//! ```

use std::collections::BTreeMap;
use std::io;

use bytes::{Buf, BufMut};

use crate::index::{SegmentIndex, SubjectIndex};
use crate::medium::{Medium, read_exact_at};
use crate::plan::Point;
use crate::segment::{Salt, name_number};

const MAGIC: u32 = u32::from_le_bytes(*b"TLFT");
const VERSION: u32 = 1;
const FIXED_LEN: usize = 48;
const SUBJECT_LEN: usize = 48;
const POINT_LEN: usize = 16;
/// A footer can't be larger than its segment could make it; anything beyond is damage.
const FOOTER_BYTES_MAX: u64 = 1 << 30;
const TEMPORARY_NAME: &str = "footer.new";

/// The file name of a segment's footer.
pub(crate) fn footer_name(segment: u64) -> String {
    format!("footer-{segment:016}")
}

/// Whether a file name is a footer's, and of which segment.
pub(crate) fn footer_number(name: &str) -> Option<u64> {
    name_number(name.strip_prefix("footer-")?)
}

/// Writes a footer and reads it back.
pub(crate) fn write(medium: &dyn Medium, index: &SegmentIndex) -> io::Result<()> {
    let name = footer_name(index.number);
    if read(medium, index.number)?.is_some_and(|there| there == *index) {
        return Ok(());
    }
    for leftover in [TEMPORARY_NAME, name.as_str()] {
        match medium.remove(leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let file = medium.create(TEMPORARY_NAME)?;
    file.write_all_at(&[&encode(index)], 0)?;
    file.sync_data()?;
    medium.rename(TEMPORARY_NAME, &name)?;
    medium.sync_directory()?;
    match read(medium, index.number)? {
        Some(there) if there == *index => Ok(()),
        _ => Err(io::Error::other(format!("{name} does not read back as it was written"))),
    }
}

/// Reads the footer of a segment; `None` if there is none or anything about it does not fit.
pub(crate) fn read(medium: &dyn Medium, segment: u64) -> io::Result<Option<SegmentIndex>> {
    let file = match medium.open_read(&footer_name(segment)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let len = file.len()?;
    if len > FOOTER_BYTES_MAX {
        return Ok(None);
    }
    let mut bytes = vec![0; len as usize];
    read_exact_at(file.as_ref(), &mut bytes, 0)?;
    Ok(decode(&bytes).filter(|index| index.number == segment))
}

/// Bytes of a footer's file.
pub(crate) fn encoded_len(index: &SegmentIndex) -> u64 {
    let points: usize = index.subjects.values().map(|subject| subject.points.len()).sum();
    (FIXED_LEN + index.subjects.len() * SUBJECT_LEN + points * POINT_LEN + 4) as u64
}

fn encode(index: &SegmentIndex) -> Vec<u8> {
    let mut out = Vec::with_capacity(encoded_len(index) as usize);
    out.put_u32_le(MAGIC);
    out.put_u32_le(VERSION);
    out.put_u64_le(index.number);
    out.put_slice(index.salt.as_bytes());
    out.put_u64_le(index.base);
    out.put_u64_le(index.end);
    out.put_u64_le(index.subjects.len() as u64);
    for (subject, found) in &index.subjects {
        out.put_u64_le(*subject);
        out.put_u64_le(found.first_offset);
        out.put_u64_le(found.next_offset);
        out.put_i64_le(found.first_wall_ms);
        out.put_u64_le(found.previous);
        out.put_u64_le(found.points.len() as u64);
        for point in &found.points {
            out.put_u64_le(point.offset);
            out.put_u64_le(point.position);
        }
    }
    out.put_u32_le(crc32fast::hash(&out));
    out
}

fn decode(bytes: &[u8]) -> Option<SegmentIndex> {
    let (mut fields, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    if crc32fast::hash(fields) != u32::from_le_bytes(*crc.first_chunk()?) || fields.len() < FIXED_LEN {
        return None;
    }
    if fields.get_u32_le() != MAGIC || fields.get_u32_le() != VERSION {
        return None;
    }
    let number = fields.get_u64_le();
    let salt = Salt::new(fields.get_u64_le());
    let base = fields.get_u64_le();
    let end = fields.get_u64_le();
    let count = fields.get_u64_le();
    let mut subjects = BTreeMap::new();
    for _ in 0..count {
        if fields.len() < SUBJECT_LEN {
            return None;
        }
        let subject = fields.get_u64_le();
        let first_offset = fields.get_u64_le();
        let next_offset = fields.get_u64_le();
        let first_wall_ms = fields.get_i64_le();
        let previous = fields.get_u64_le();
        let points_len = usize::try_from(fields.get_u64_le()).ok()?;
        let (mut points_bytes, rest) = fields.split_at_checked(points_len.checked_mul(POINT_LEN)?)?;
        fields = rest;
        let points: Vec<Point> = (0..points_len)
            .map(|_| Point { offset: points_bytes.get_u64_le(), position: points_bytes.get_u64_le() })
            .collect();
        // A checksum that is right by chance must not lead a reader out of the segment, or in a circle.
        let fits = previous < number
            && points.iter().all(|point| (base..end).contains(&point.position))
            && points.is_sorted_by(|point, next| point.position < next.position);
        if !fits {
            return None;
        }
        subjects.insert(subject, SubjectIndex { first_offset, next_offset, first_wall_ms, previous, points });
    }
    fields.is_empty().then_some(SegmentIndex { number, salt, base, end, subjects })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> SegmentIndex {
        let points = vec![Point { offset: 5, position: 4_096 }, Point { offset: 9, position: 65_536 }];
        let subject = SubjectIndex { first_offset: 5, next_offset: 12, first_wall_ms: -1, previous: 2, points };
        let subjects = BTreeMap::from([(7, subject.clone()), (8, subject)]);
        SegmentIndex { number: 3, salt: Salt::new(11), base: 4_000, end: 70_000, subjects }
    }

    #[test]
    fn a_footer_reads_back() {
        assert_eq!(decode(&encode(&index())), Some(index()));
    }

    #[test]
    fn a_footer_that_leads_out_of_its_segment_or_in_a_circle_does_not_fit() {
        let changed = |change: fn(&mut SubjectIndex)| {
            let mut bad = index();
            change(bad.subjects.get_mut(&8).unwrap());
            decode(&encode(&bad))
        };
        assert_eq!(changed(|_| {}), Some(index()));
        assert_eq!(changed(|subject| subject.previous = 3), None);
        assert_eq!(changed(|subject| subject.points[0].position = 3_992), None);
        assert_eq!(changed(|subject| subject.points[1].position = 70_000), None);
        assert_eq!(changed(|subject| subject.points.reverse()), None);
    }

    #[test]
    fn no_flipped_bit_and_no_cut_goes_unseen() {
        let good = encode(&index());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bad), None, "bit {bit}");
        }
        for len in 0..good.len() {
            assert_eq!(decode(&good[..len]), None, "cut to {len}");
        }
    }
}
