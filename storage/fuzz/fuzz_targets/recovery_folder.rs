//! An arbitrary set of files: the fixture's, with files changed, lost, renamed, doubled and mixed.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tidelog_storage_fuzz::{Edit, Files, check, fixture, lengthen, mend_entries, mend_header};

#[derive(Debug, Arbitrary)]
enum Change {
    Edit { file: u8, edit: Edit },
    MendHeader { file: u8 },
    MendEntries { file: u8 },
    Remove { file: u8 },
    Rename { file: u8, to: Name },
    Double { file: u8, to: Name },
    Make { name: Name, bytes: Vec<u8> },
}

#[derive(Debug, Arbitrary)]
enum Name {
    Segment(u8),
    Footer(u8),
    Aside(u64),
    Reserve,
    FooterNew,
    LastSegment,
    Odd,
}

impl Name {
    fn text(&self) -> String {
        match self {
            Self::Segment(number) => format!("segment-{:016}", number % 8),
            Self::Footer(number) => format!("footer-{:016}", number % 8),
            Self::Aside(number) => format!("aside-1-segment-{number}"),
            Self::Reserve => "spare-reserve-0".to_owned(),
            Self::FooterNew => "footer.new".to_owned(),
            Self::LastSegment => "segment-9999999999999999".to_owned(),
            Self::Odd => "segment-+000000000000001".to_owned(),
        }
    }
}

fn name_of(files: &Files, index: u8) -> Option<String> {
    files.keys().nth(usize::from(index) % files.len().max(1)).cloned()
}

fn apply(change: &Change, files: &mut Files) -> Option<()> {
    match change {
        Change::Edit { file, edit } => edit.apply(files.get_mut(&name_of(files, *file)?)?),
        Change::MendHeader { file } => mend_header(files.get_mut(&name_of(files, *file)?)?),
        Change::MendEntries { file } => mend_entries(files.get_mut(&name_of(files, *file)?)?),
        Change::Remove { file } => {
            files.remove(&name_of(files, *file)?);
        }
        Change::Rename { file, to } => {
            let bytes = files.remove(&name_of(files, *file)?)?;
            files.insert(to.text(), bytes);
        }
        Change::Double { file, to } => {
            let bytes = files.get(&name_of(files, *file)?)?.clone();
            files.insert(to.text(), bytes);
        }
        Change::Make { name, bytes } => {
            files.insert(name.text(), bytes.clone());
        }
    }
    Some(())
}

fuzz_target!(|input: (Vec<Change>, bool)| {
    let (changes, is_short) = input;
    let mut files = fixture();
    for change in changes.iter().take(16) {
        let _ = apply(change, &mut files);
    }
    if !is_short && let Some(newest) = files.get_mut("segment-0000000000000005") {
        lengthen(newest);
    }
    check(&files);
});
