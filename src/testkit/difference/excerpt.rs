//! Bytes as a short text.

/// Bytes shown of a value that stands alone.
pub(in crate::testkit) const VALUE_BYTES_SHOWN: usize = 80;

/// Bytes shown of a key.
pub(in crate::testkit) const KEY_BYTES_SHOWN: usize = 32;

/// Bytes shown of a value beside another one.
pub(super) const CELL_BYTES_SHOWN: usize = 40;

/// What is shown before the first byte that differs, if what leads up to it is cut.
const LEAD_BYTES: usize = 12;

/// The bytes as text in quotes where they are UTF-8, else in hexadecimal; at most `shown` bytes of them, and how many
/// there are if that is not all.
///
/// Quotes within the text stay as they are, since much of what is stored is JSON.
pub(in crate::testkit) fn excerpt(bytes: &[u8], shown: usize) -> String {
    window(bytes, 0, shown)
}

/// Two values of which the first byte that differs is in sight, and that byte where one of the two had to be cut.
pub(super) fn excerpts_that_differ(left: &[u8], right: &[u8]) -> (String, String, Option<usize>) {
    let common = left.iter().zip(right).take_while(|(left, right)| left == right).count();
    let cut = left.len().max(right.len()) > CELL_BYTES_SHOWN;
    // Both begin at the same byte, so that they can be compared by eye.
    let from = if cut && common > CELL_BYTES_SHOWN / 2 { common - LEAD_BYTES } else { 0 };
    (window(left, from, CELL_BYTES_SHOWN), window(right, from, CELL_BYTES_SHOWN), cut.then_some(common))
}

/// At most `shown` bytes from about `from` on.
fn window(bytes: &[u8], from: usize, shown: usize) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else {
        let from = from.min(bytes.len());
        let to = from.saturating_add(shown).min(bytes.len());
        let hex: String =
            bytes.iter().skip(from).take(to - from).flat_map(|byte| [byte >> 4, byte & 15]).map(hex_digit).collect();
        return framed("0x", &hex, "", from, to, bytes.len());
    };
    let from = text.floor_char_boundary(from);
    let to = text.floor_char_boundary(from.saturating_add(shown));
    let mut readable = String::with_capacity(shown);
    for character in text.get(from..to).unwrap_or_default().chars() {
        match character {
            '"' | '\'' => readable.push(character),
            other => readable.extend(other.escape_debug()),
        }
    }
    framed("\"", &readable, "\"", from, to, text.len())
}

fn framed(open: &str, middle: &str, close: &str, from: usize, to: usize, len: usize) -> String {
    let before = if from > 0 { "…" } else { "" };
    let (behind, bytes) = if to < len { ("…", format!(" ({len} bytes)")) } else { ("", String::new()) };
    format!("{open}{before}{middle}{behind}{close}{bytes}")
}

fn hex_digit(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).unwrap_or('?')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shown_as_text_and_the_rest_in_hexadecimal() {
        assert_eq!(excerpt(b"", 80), r#""""#);
        assert_eq!(excerpt("ä\t{\"a\":'b\\'}".as_bytes(), 80), r#""ä\t{"a":'b\\'}""#);
        assert_eq!(excerpt(&[0, 0xff, 0x1a], 80), "0x00ff1a");
    }

    #[test]
    fn what_is_cut_says_how_long_it_is_and_is_cut_between_characters() {
        assert_eq!(excerpt("äöü".as_bytes(), 3), "\"ä…\" (6 bytes)");
        assert_eq!(excerpt(&[0xff; 100], 2), "0xffff… (100 bytes)");
        assert_eq!(excerpt(&[b'x'; 80], 80).len(), 82);
    }

    #[test]
    fn the_first_byte_that_differs_is_in_sight() {
        let (left, right, at) = excerpts_that_differ(b"short", b"shirt");
        assert_eq!((left.as_str(), right.as_str(), at), ("\"short\"", "\"shirt\"", None));

        let lead = "0123456789".repeat(10);
        let (left, right, at) =
            excerpts_that_differ(format!("{lead}a").as_bytes(), format!("{lead}{}", "b".repeat(60)).as_bytes());
        assert_eq!(at, Some(100));
        assert_eq!(left, r#""…890123456789a""#);
        assert_eq!(right, format!(r#""…890123456789{}…" (160 bytes)"#, "b".repeat(28)));

        // One is the other's beginning.
        let (left, right, at) = excerpts_that_differ(lead.as_bytes(), format!("{lead}!").as_bytes());
        assert_eq!((left.as_str(), right.as_str(), at), (r#""…890123456789""#, r#""…890123456789!""#, Some(100)));
    }
}
