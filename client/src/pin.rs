//! The fingerprint by which a client knows a broker's key.

use std::fmt;
use std::str::FromStr;

use rustls::server::ParsedCertificate;
use rustls_pki_types::CertificateDer;

/// SHA-256 over the SubjectPublicKeyInfo of a broker's certificate.
///
/// A pin names a key, not a certificate: it stays the same when the certificate is renewed with the same key. Written
/// as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin([u8; 32]);

impl Pin {
    /// The pin with these bytes.
    pub const fn new(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The digest itself.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The pin of a certificate's key.
    ///
    /// # Errors
    ///
    /// [`PinError::Certificate`] if these bytes are not an X.509 version 3 certificate.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, PinError> {
        let parsed = ParsedCertificate::try_from(certificate)
            .map_err(|error| PinError::Certificate { reason: error.to_string() })?;
        Ok(Self::of_public_key(&parsed.subject_public_key_info()))
    }

    /// The pin of a key given as the DER of its SubjectPublicKeyInfo.
    pub fn of_public_key(subject_public_key_info: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, subject_public_key_info);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Pin({self})")
    }
}

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(PinError::Length { digits: text.chars().count() });
        }
        let mut bytes = [0; 32];
        for (index, (byte, pair)) in bytes.iter_mut().zip(digits.chunks_exact(2)).enumerate() {
            let &[high, low] = pair else { return Err(PinError::Length { digits: digits.len() }) };
            let (Some(high), Some(low)) = (hex_value(high), hex_value(low)) else {
                return Err(PinError::Digit { position: index * 2 });
            };
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }
}

/// One spelling for one pin: capital letters are refused, so that pins can be compared as text.
fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Why something is not a pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// Too short or too long.
    #[error("a pin has 64 hexadecimal digits, this has {digits} characters")]
    Length {
        /// Characters found.
        digits: usize,
    },
    /// A character that is no digit.
    #[error("a pin is written in 0-9 and a-f (lower case); near character {position} it is not")]
    Digit {
        /// Place of the pair of digits, counted from 0.
        position: usize,
    },
    /// The certificate has no readable key.
    #[error("the certificate can't be read: {reason}")]
    Certificate {
        /// What the parser said.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_agree() {
        let text = "00ff102030405060708090a0b0c0d0e0f0112233445566778899aabbccddeeff";
        let pin: Pin = text.parse().unwrap();
        assert_eq!(pin.as_bytes()[..3], [0x00, 0xff, 0x10]);
        assert_eq!(pin.to_string(), text);
    }

    #[test]
    fn capitals_and_wrong_lengths_are_refused() {
        let capitals = "A".repeat(64);
        assert_eq!(capitals.parse::<Pin>(), Err(PinError::Digit { position: 0 }));
        assert_eq!("ab".parse::<Pin>(), Err(PinError::Length { digits: 2 }));
        let wide = "é".repeat(32);
        assert_eq!(wide.parse::<Pin>(), Err(PinError::Digit { position: 0 }));
    }

    #[test]
    fn a_renewed_certificate_of_the_same_key_has_the_same_pin() {
        let key = rcgen::KeyPair::generate().unwrap();
        let first = rcgen::CertificateParams::new(vec!["one".into()]).unwrap().self_signed(&key).unwrap();
        let second = rcgen::CertificateParams::new(vec!["two".into()]).unwrap().self_signed(&key).unwrap();
        assert_ne!(first.der(), second.der());
        let pin = Pin::of_certificate(first.der()).unwrap();
        assert_eq!(pin, Pin::of_certificate(second.der()).unwrap());
        assert_eq!(pin, Pin::of_public_key(&rcgen::PublicKeyData::subject_public_key_info(&key)));
    }
}
