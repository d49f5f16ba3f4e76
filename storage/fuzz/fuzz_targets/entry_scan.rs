//! Arbitrary bytes as the entries of the only segment, behind a valid header.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tidelog_storage_fuzz::{ENTRIES_AT, Edit, Files, check, fixture, lengthen, mend_entries};

#[derive(Debug, Arbitrary)]
struct Input {
    /// Start from real entries, or from nothing.
    is_real: bool,
    edits: Vec<Edit>,
    is_mended: bool,
    edits_after: Vec<Edit>,
    is_short: bool,
}

fuzz_target!(|input: Input| {
    const NAME: &str = "segment-0000000000000001";
    let mut segment = fixture().remove(NAME).expect("it has a first segment");
    let mut entries = segment.split_off(ENTRIES_AT);
    if !input.is_real {
        entries.clear();
    }
    input.edits.iter().for_each(|edit| edit.apply(&mut entries));
    segment.extend(entries);
    if input.is_mended {
        mend_entries(&mut segment);
    }
    let mut entries = segment.split_off(ENTRIES_AT);
    input.edits_after.iter().for_each(|edit| edit.apply(&mut entries));
    segment.extend(entries);
    if !input.is_short {
        lengthen(&mut segment);
    }
    check(&Files::from([(NAME.to_owned(), segment)]));
});
