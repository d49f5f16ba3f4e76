//! Files of a medium in a line: what tests of media share.

use std::sync::Arc;

use tidelog_storage::medium::{Medium, MediumFile, read_exact_at};

pub(crate) fn read_all(file: &dyn MediumFile) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(file.len().unwrap()).unwrap()];
    read_exact_at(file, &mut bytes, 0).unwrap();
    bytes
}

pub(crate) fn content(medium: &dyn Medium, name: &str) -> Vec<u8> {
    read_all(medium.open_read(name).unwrap().as_ref())
}

/// A file that survives: bytes, name and folder are synced.
pub(crate) fn durable_file(medium: &dyn Medium, name: &str, bytes: &[u8]) -> Arc<dyn MediumFile> {
    let file = medium.create(name).unwrap();
    file.write_all_at(&[bytes], 0).unwrap();
    file.sync_data().unwrap();
    medium.sync_directory().unwrap();
    file
}

pub(crate) fn names(medium: &dyn Medium) -> Vec<String> {
    let files = medium.list().unwrap();
    files.into_iter().map(|file| file.name).collect()
}
