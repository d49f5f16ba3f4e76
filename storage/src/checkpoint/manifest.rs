//! What the files of a stored checkpoint are: each with its length and checksum, written when they were synced. sled is
//! never shown a byte that is not as it wrote it: opened on damaged files it may hang, panic, or lose keys silently.
//!
//! ```text
//! tidelog checkpoint 1
//! LENGTH CRC32 PATH          per file, ascending by path
//! end CRC32                  over all lines before
//! ```

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use super::LoadError;

/// The manifest's file name.
const NAME: &str = "manifest";
const TITLE: &str = "tidelog checkpoint 1\n";
/// A manifest has a few lines; anything beyond is none.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// Makes a folder that only its owner may enter.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Syncs every file below `folder` and the folders themselves, then writes the manifest of them, synced as well.
pub(super) fn seal(folder: &Path) -> io::Result<()> {
    let mut text = TITLE.to_owned();
    for path in files_below(folder)? {
        let file = File::open(folder.join(&path))?;
        // sled's own flush is no more than a hint to the system: a power cut afterwards took everything in 6 of 6 tries.
        file.sync_all()?;
        let bytes = fs::read(folder.join(&path))?;
        text.push_str(&format!("{} {:08x} {path}\n", bytes.len(), crc32fast::hash(&bytes)));
    }
    text.push_str(&format!("end {:08x}\n", crc32fast::hash(text.as_bytes())));
    for inner in folders_below(folder)? {
        sync_folder(&folder.join(inner))?;
    }
    let path = folder.join(NAME);
    fs::write(&path, text)?;
    File::open(&path)?.sync_all()?;
    sync_folder(folder)
}

/// Copies the files that the manifest in `from` names to `to`, each checked on the way.
pub(super) fn copy_checked(from: &Path, to: &Path) -> Result<(), LoadError> {
    let odd = |text: String| LoadError::Odd(format!("{}: {text}", from.display()));
    let listed = read(from).map_err(odd)?;
    let there = files_below(from).map_err(|error| odd(format!("it can't be listed: {error}")))?;
    if let Some(extra) = there.iter().find(|path| *path != NAME && !listed.iter().any(|file| file.path == **path)) {
        return Err(odd(format!("{extra} does not belong to it")));
    }
    let failed = |path: &str, error: io::Error| LoadError::Unavailable(format!("could not copy {path}: {error}"));
    for inner in folders_below(from).map_err(|error| odd(format!("it can't be listed: {error}")))? {
        make_folder(&to.join(&inner)).map_err(|error| failed(&inner, error))?;
    }
    for file in &listed {
        let bytes = fs::read(from.join(&file.path)).map_err(|error| odd(format!("{}: {error}", file.path)))?;
        if bytes.len() as u64 != file.len {
            return Err(odd(format!("{} has {} bytes of {}", file.path, bytes.len(), file.len)));
        }
        if crc32fast::hash(&bytes) != file.crc {
            return Err(odd(format!("{} is not as it was written", file.path)));
        }
        fs::write(to.join(&file.path), bytes).map_err(|error| failed(&file.path, error))?;
    }
    Ok(())
}

/// Bytes of all files below `folder`.
pub(super) fn size(folder: &Path) -> io::Result<u64> {
    files_below(folder)?.iter().map(|path| Ok(fs::metadata(folder.join(path))?.len())).sum()
}

struct Listed {
    path: String,
    len: u64,
    crc: u32,
}

fn read(folder: &Path) -> Result<Vec<Listed>, String> {
    let path = folder.join(NAME);
    let len = fs::metadata(&path).map_err(|error| format!("{NAME}: {error}"))?.len();
    if len > MANIFEST_BYTES_MAX {
        return Err(format!("{NAME} has {len} bytes"));
    }
    let text = fs::read_to_string(&path).map_err(|error| format!("{NAME}: {error}"))?;
    parse(&text).ok_or_else(|| format!("{NAME} is not as it was written"))
}

fn parse(text: &str) -> Option<Vec<Listed>> {
    let (covered, crc) = text.strip_suffix('\n')?.rsplit_once("\nend ")?;
    let covered = text.get(..=covered.len())?;
    // Exactly as it is written: no other spelling of the same number.
    if crc != format!("{:08x}", crc32fast::hash(covered.as_bytes())) {
        return None;
    }
    let mut listed = Vec::new();
    for line in covered.strip_prefix(TITLE)?.lines() {
        let mut words = line.splitn(3, ' ');
        let len = words.next()?.parse().ok()?;
        let crc = u32::from_str_radix(words.next()?, 16).ok()?;
        listed.push(Listed { len, crc, path: words.next()?.to_owned() });
    }
    Some(listed)
}

/// Paths of all files below `folder`, relative to it, ascending.
fn files_below(folder: &Path) -> io::Result<Vec<String>> {
    walk(folder).map(|(files, _)| files)
}

/// The same of the folders, outer ones first.
fn folders_below(folder: &Path) -> io::Result<Vec<String>> {
    walk(folder).map(|(_, folders)| folders)
}

fn walk(folder: &Path) -> io::Result<(Vec<String>, Vec<String>)> {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    let mut waiting = vec![String::new()];
    while let Some(at) = waiting.pop() {
        for entry in fs::read_dir(folder.join(&at))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().ok_or_else(|| io::Error::other("a name in it is not text"))?;
            let path = if at.is_empty() { name.to_owned() } else { format!("{at}/{name}") };
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(path.clone());
                waiting.push(path);
            } else if kind.is_file() {
                files.push(path);
            } else {
                return Err(io::Error::other(format!("{path} is neither file nor folder")));
            }
        }
    }
    files.sort();
    folders.sort();
    Ok((files, folders))
}
