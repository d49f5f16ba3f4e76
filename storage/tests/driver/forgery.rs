//! Entries made by hand, byte by byte as `FORMAT.md` has them, with or without the right salt.

use super::{HEADER_LEN, payload};

/// A batch of one record as an attacker, or a newer version, would write it.
#[derive(Debug, Clone)]
pub(crate) struct Forgery {
    pub(crate) salt: [u8; 8],
    pub(crate) position: u64,
    pub(crate) flags: u16,
    pub(crate) subject: u64,
}

impl Forgery {
    /// The whole entry; a multiple of eight bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let payload = payload(b"never published");
        let mut header = Vec::new();
        header.extend(b"TLEh\0\0\0\0");
        header.extend(self.position.to_le_bytes());
        header.extend(self.position.to_le_bytes());
        header.extend((payload.len() as u32).to_le_bytes());
        header.extend(&payload[..4]);
        header.extend([1, 1]);
        header.extend(self.flags.to_le_bytes());
        header.extend([0; 4]);
        header.extend([0; 8]);
        header.extend(self.subject.to_le_bytes());
        header.extend(0_u64.to_le_bytes());
        header.extend(1_u32.to_le_bytes());
        header.extend(0_u32.to_le_bytes());
        header.extend([0; 32]);
        assert_eq!(header.len() as u64, HEADER_LEN);
        let crc = crc_of(self.salt, &header[8..]);
        header[4..8].copy_from_slice(&crc.to_le_bytes());
        let mut entry = header.clone();
        entry.extend(&payload);
        entry.resize(entry.len().next_multiple_of(8), 0);
        header[..4].copy_from_slice(b"TLEc");
        entry.extend(header);
        entry
    }
}

/// The checksum of a header and all that it covers, from byte 8 on.
pub(crate) fn crc_of(salt: [u8; 8], covered: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt);
    hasher.update(covered);
    hasher.finalize()
}

/// The salt in the header of a segment file.
pub(crate) fn salt_in(segment: &[u8]) -> [u8; 8] {
    *segment[40..].first_chunk().unwrap()
}
