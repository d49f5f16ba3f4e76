//! LEB128 numbers in their one allowed form: the shortest.
//!
//! Seven bits a byte, the lowest first, the high bit set on every byte but the last. A number has exactly one encoding
//! here, because checksums of records are compared and a second spelling would make equal records look different.

use bytes::BufMut;

/// Why bytes are not a number in the shortest LEB128 form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NumberError {
    /// The bytes end inside the number.
    #[error("the bytes end inside the number")]
    Truncated,
    /// The last byte adds nothing: the same number has a shorter form, and only that one is allowed.
    #[error("the number is not in its shortest form")]
    NotMinimal,
    /// The number does not fit in 64 bits.
    #[error("the number does not fit in 64 bits")]
    TooLarge,
}

/// What takes bytes in order: a buffer, or a checksum that needs no copy of them.
pub(crate) trait Sink {
    fn put(&mut self, bytes: &[u8]);
}

/// Any `BufMut` as a [`Sink`].
pub(crate) struct Buffer<'a, B>(pub(crate) &'a mut B);

impl<B: BufMut> Sink for Buffer<'_, B> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        self.0.put_slice(bytes);
    }
}

impl Sink for crc32fast::Hasher {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        self.update(bytes);
    }
}

/// Bytes that `number` takes: 1 to 10.
#[inline]
pub(crate) const fn encoded_len(number: u64) -> usize {
    let bits = 64 - (number | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Appends `number` in its shortest form.
#[inline]
pub(crate) fn put(sink: &mut impl Sink, mut number: u64) {
    while number >= 0x80 {
        sink.put(&[(number & 0x7f) as u8 | 0x80]);
        number >>= 7;
    }
    sink.put(&[number as u8]);
}

/// Takes one number off the front of `bytes`.
#[inline]
pub(crate) fn take(bytes: &mut &[u8]) -> Result<u64, NumberError> {
    match bytes.split_first() {
        Some((&first, rest)) if first < 0x80 => {
            *bytes = rest;
            Ok(u64::from(first))
        }
        Some(_) => take_long(bytes),
        None => Err(NumberError::Truncated),
    }
}

fn take_long(bytes: &mut &[u8]) -> Result<u64, NumberError> {
    let mut number = 0u64;
    let mut shift = 0u32;
    let mut rest = *bytes;
    loop {
        let (&byte, behind) = rest.split_first().ok_or(NumberError::Truncated)?;
        rest = behind;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for the one bit that is left of 64; any continuation of it is too much as well.
        if shift == 63 && byte > 1 {
            return Err(NumberError::TooLarge);
        }
        number |= bits << shift;
        if byte < 0x80 {
            if byte == 0 && shift > 0 {
                return Err(NumberError::NotMinimal);
            }
            *bytes = rest;
            return Ok(number);
        }
        shift += 7;
    }
}

/// Maps small negative and positive numbers to small unsigned ones: 0, -1, 1, -2 become 0, 1, 2, 3.
#[inline]
pub(crate) const fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

/// The reverse of [`zigzag`].
#[inline]
pub(crate) const fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(number: u64) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut Buffer(&mut out), number);
        out
    }

    #[test]
    fn edge_numbers_take_the_documented_bytes() {
        assert_eq!(encoded(0), [0x00]);
        assert_eq!(encoded(0x7f), [0x7f]);
        assert_eq!(encoded(0x80), [0x80, 0x01]);
        assert_eq!(encoded(300), [0xac, 0x02]);
        assert_eq!(encoded(u64::MAX), [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
    }

    #[test]
    fn a_longer_spelling_is_refused() {
        for spelling in [&[0x80, 0x00][..], &[0xff, 0x00], &[0x81, 0x80, 0x00]] {
            assert_eq!(take(&mut &*spelling), Err(NumberError::NotMinimal), "{spelling:x?}");
        }
    }

    #[test]
    fn more_than_64_bits_are_refused() {
        let mut bytes = [0xff; 10];
        bytes[9] = 0x02;
        assert_eq!(take(&mut &bytes[..]), Err(NumberError::TooLarge));
        assert_eq!(take(&mut &[0xff; 11][..]), Err(NumberError::TooLarge));
        bytes[9] = 0x81;
        assert_eq!(take(&mut &bytes[..]), Err(NumberError::TooLarge));
    }

    #[test]
    fn an_unfinished_number_is_refused_and_takes_nothing() {
        assert_eq!(take(&mut &[][..]), Err(NumberError::Truncated));
        let mut bytes = &[0x80, 0x80][..];
        assert_eq!(take(&mut bytes), Err(NumberError::Truncated));
        assert_eq!(bytes.len(), 2);
    }

    proptest! {
        #[test]
        fn a_number_comes_back_and_its_length_is_known_ahead(number: u64, shift in 0u32..64) {
            let number = number >> shift;
            let bytes = encoded(number);
            prop_assert_eq!(bytes.len(), encoded_len(number));
            let mut rest = &bytes[..];
            prop_assert_eq!(take(&mut rest), Ok(number));
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn what_decodes_is_spelled_as_it_would_be_encoded(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut rest = &bytes[..];
            if let Ok(number) = take(&mut rest) {
                let taken = bytes.len() - rest.len();
                prop_assert_eq!(&bytes[..taken], &encoded(number)[..]);
            }
        }

        #[test]
        fn zigzag_comes_back(number: i64) {
            prop_assert_eq!(unzigzag(zigzag(number)), number);
        }
    }
}
