//! Two segments, each with an edited header: what a start makes of how they follow each other.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tidelog_storage_fuzz::{ENTRIES_AT, Edit, Files, check, fixture, lengthen, mend_header};

#[derive(Debug, Arbitrary)]
struct Segment {
    /// Which of the fixture's segments it is, and under which number.
    source: u8,
    number: u8,
    /// To its header, before the checksums are put right, and after.
    edits: Vec<Edit>,
    is_mended: bool,
    edits_after: Vec<Edit>,
    /// A header that reads well in one copy only.
    damages_copy: Option<bool>,
    /// Nothing but the header.
    is_bare: bool,
    is_short: bool,
}

impl Segment {
    fn bytes(&self, files: &Files) -> Vec<u8> {
        let name = format!("segment-{:016}", 1 + self.source % 5);
        let mut header = files[&name].clone();
        let entries = header.split_off(ENTRIES_AT);
        self.edits.iter().take(8).for_each(|edit| edit.apply(&mut header));
        if self.is_mended {
            mend_header(&mut header);
        }
        self.edits_after.iter().take(8).for_each(|edit| edit.apply(&mut header));
        if let Some(second) = self.damages_copy
            && let Some(byte) = header.get_mut(if second { ENTRIES_AT / 2 } else { 0 })
        {
            *byte ^= 1;
        }
        if !self.is_bare {
            header.extend(entries);
        }
        if !self.is_short {
            lengthen(&mut header);
        }
        header
    }
}

fuzz_target!(|segments: [Segment; 2]| {
    let fixture = fixture();
    let named = |segment: &Segment| (format!("segment-{:016}", 1 + segment.number % 8), segment.bytes(&fixture));
    check(&segments.iter().map(named).collect());
});
