//! Footers that change under a running log: whatever they say, reads end and nothing panics.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tidelog_storage_fuzz::{Edit, fixture, folder, lengthen, mend_footer, read_all, start};

#[derive(Debug, Arbitrary)]
struct Input {
    footers: Vec<(u8, Vec<Edit>, bool)>,
}

fuzz_target!(|input: Input| {
    let mut files = fixture();
    if let Some(newest) = files.get_mut("segment-0000000000000005") {
        lengthen(newest);
    }
    let medium = folder(&files);
    let (mut log, fold) = start(&medium).expect("the fixture starts");
    for (segment, edits, is_mended) in input.footers.iter().take(8) {
        let name = format!("footer-{:016}", 1 + segment % 5);
        let file = medium.open(&name).expect("a start has written it");
        let mut bytes = vec![0; file.len().expect("memory") as usize];
        file.read_at(&mut bytes, 0).expect("memory");
        edits.iter().for_each(|edit| edit.apply(&mut bytes));
        if *is_mended {
            mend_footer(&mut bytes);
        }
        file.set_len(bytes.len() as u64).expect("memory");
        file.write_all_at(&[&bytes], 0).expect("memory");
    }
    read_all(&mut log, &fold);
});
