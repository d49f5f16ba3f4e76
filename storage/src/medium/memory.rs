//! A folder in memory: for brokers whose data may end with the process.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::{FileStat, LockError, Medium, MediumFile, check_name};

/// Unit in which memory is taken: small beside a segment, large beside its own bookkeeping.
const PAGE_SIZE_BYTES: usize = 64 * 1_024;

/// Longest file, in bytes. Bounds the page table: 8 bytes for every 64 KiB.
const FILE_LEN_BYTES_MAX: u64 = 1 << 36;

/// A folder in memory. Clones share it, so a broker started again in the same process finds its
/// files; it is gone with the last clone and the last open file.
///
/// Pages that were never written to, or only with zeros, take no memory. Nothing is ever durable:
/// both syncs return ok and do nothing.
#[derive(Debug, Clone, Default)]
pub struct MemoryMedium {
    folder: Arc<Mutex<Folder>>,
}

#[derive(Debug, Default)]
struct Folder {
    files: BTreeMap<String, Arc<MemoryFile>>,
    holders: Holders,
}

impl MemoryMedium {
    /// An empty folder.
    pub fn new() -> Self {
        Self::default()
    }

    fn folder(&self) -> MutexGuard<'_, Folder> {
        // Nothing below panics while it holds the folder half changed.
        self.folder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str) -> io::Result<Arc<MemoryFile>> {
        check_name(name)?;
        self.folder().files.get(name).cloned().ok_or_else(|| missing(name))
    }
}

impl Medium for MemoryMedium {
    fn list(&self) -> io::Result<Vec<FileStat>> {
        let folder = self.folder();
        let stat = |(name, file): (&String, &Arc<MemoryFile>)| FileStat { name: name.clone(), len: file.pages().len };
        Ok(folder.files.iter().map(stat).collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        check_name(name)?;
        let mut folder = self.folder();
        if folder.files.contains_key(name) {
            return Err(occupied(name));
        }
        let file = Arc::new(MemoryFile::default());
        folder.files.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        Ok(self.find(name)?)
    }

    fn open_read(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        Ok(Arc::new(ReadOnly(self.find(name)?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(from)?;
        check_name(to)?;
        let mut folder = self.folder();
        if folder.files.contains_key(to) {
            return Err(occupied(to));
        }
        let file = folder.files.remove(from).ok_or_else(|| missing(from))?;
        folder.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        match self.folder().files.remove(name) {
            Some(_) => Ok(()),
            None => Err(missing(name)),
        }
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, exclusive: bool) -> Result<Box<dyn Any + Send + Sync>, LockError> {
        self.folder().holders.take(exclusive)?;
        Ok(Box::new(MemoryLock(self.clone())))
    }

    /// Memory has no limit of its own that could be told. The answer fits a signed counter too.
    fn free_bytes(&self) -> io::Result<u64> {
        Ok(i64::MAX.unsigned_abs())
    }

    fn is_persistent(&self) -> bool {
        false
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}

/// Who holds the lock of a folder that only this process can see.
#[derive(Debug, Clone, Default)]
pub(super) enum Holders {
    #[default]
    Nobody,
    Broker,
    /// How many.
    Readers(usize),
}

impl Holders {
    pub(super) fn take(&mut self, exclusive: bool) -> Result<(), LockError> {
        *self = match (&*self, exclusive) {
            (Self::Nobody, true) => Self::Broker,
            (Self::Nobody, false) => Self::Readers(1),
            (Self::Readers(count), false) => Self::Readers(count + 1),
            (Self::Broker, _) => {
                return Err(LockError::Held { pid: Some(std::process::id()) });
            }
            (Self::Readers(_), true) => return Err(LockError::Held { pid: None }),
        };
        Ok(())
    }

    pub(super) fn give_back(&mut self) {
        *self = match self {
            Self::Readers(count) if *count > 1 => Self::Readers(*count - 1),
            _ => Self::Nobody,
        };
    }
}

/// A lock of the folder; gives it back when dropped.
#[derive(Debug)]
struct MemoryLock(MemoryMedium);

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.0.folder().holders.give_back();
    }
}

/// A file: pages that exist only where something other than zeros was written.
#[derive(Debug, Default)]
struct MemoryFile {
    pages: RwLock<Pages>,
}

#[derive(Default)]
struct Pages {
    len: u64,
    /// Page `i` holds the bytes from `i * PAGE_SIZE_BYTES` on. A page that is absent, or behind the
    /// end of this table, is all zeros; so is what a page holds behind the end of the file.
    table: Vec<Option<Box<[u8]>>>,
}

impl fmt::Debug for Pages {
    /// Without the bytes: nobody wants to read them.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut pages = formatter.debug_struct("Pages");
        pages.field("len", &self.len).finish_non_exhaustive()
    }
}

impl MemoryFile {
    fn pages(&self) -> std::sync::RwLockReadGuard<'_, Pages> {
        self.pages.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn pages_mut(&self) -> std::sync::RwLockWriteGuard<'_, Pages> {
        self.pages.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MediumFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let pages = self.pages();
        let available = pages.len.saturating_sub(offset);
        let count = usize::try_from(available).unwrap_or(usize::MAX).min(buffer.len());
        let mut rest = buffer.get_mut(..count).unwrap_or_default();
        let mut position = offset;
        while !rest.is_empty() {
            let (index, start) = place(position);
            let step = rest.len().min(PAGE_SIZE_BYTES - start);
            let (part, behind) = rest.split_at_mut(step);
            let page = pages.table.get(index).and_then(Option::as_deref);
            match page.and_then(|page| page.get(start..start + step)) {
                Some(bytes) => part.copy_from_slice(bytes),
                None => part.fill(0),
            }
            rest = behind;
            position += step as u64;
        }
        Ok(count)
    }

    fn write_all_at(&self, chunks: &[&[u8]], offset: u64) -> io::Result<()> {
        let total: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        if total == 0 {
            return Ok(());
        }
        let end = offset.saturating_add(total);
        check_len(end)?;
        let mut pages = self.pages_mut();
        let mut position = offset;
        for chunk in chunks {
            pages.write(chunk, position);
            position += chunk.len() as u64;
        }
        pages.len = pages.len.max(end);
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<bool> {
        self.set_len(len)?;
        Ok(true)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.pages().len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        check_len(len)?;
        let mut pages = self.pages_mut();
        if len < pages.len {
            pages.cut(len);
        }
        pages.len = len;
        Ok(())
    }
}

impl Pages {
    /// Stores bytes; the caller has checked the limit and sets the length.
    fn write(&mut self, bytes: &[u8], offset: u64) {
        let mut rest = bytes;
        let mut position = offset;
        while !rest.is_empty() {
            let (index, start) = place(position);
            let (part, behind) = rest.split_at(rest.len().min(PAGE_SIZE_BYTES - start));
            let is_present = self.table.get(index).is_some_and(Option::is_some);
            if is_present || part.iter().any(|byte| *byte != 0) {
                if self.table.len() <= index {
                    self.table.resize(index + 1, None);
                }
                if let Some(slot) = self.table.get_mut(index) {
                    let page = slot.get_or_insert_with(|| vec![0; PAGE_SIZE_BYTES].into());
                    if let Some(place) = page.get_mut(start..start + part.len()) {
                        place.copy_from_slice(part);
                    }
                }
            }
            rest = behind;
            position += part.len() as u64;
        }
    }

    /// Gives back what lies behind `len`, and zeros the rest of the page that it falls into, so
    /// that a file that grows again does not show its former bytes.
    fn cut(&mut self, len: u64) {
        let (index, start) = place(len);
        self.table.truncate(index + 1);
        if let Some(slot) = self.table.get_mut(index) {
            if start == 0 {
                *slot = None;
            } else if let Some(behind) = slot.as_deref_mut().and_then(|page| page.get_mut(start..)) {
                behind.fill(0);
            }
        }
    }
}

/// A file that refuses writes.
#[derive(Debug)]
struct ReadOnly(Arc<MemoryFile>);

impl MediumFile for ReadOnly {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_all_at(&self, _chunks: &[&[u8]], _offset: u64) -> io::Result<()> {
        Err(opened_for_reading())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(opened_for_reading())
    }
}

/// The page that holds the byte at `offset`, and the byte's place in it.
fn place(offset: u64) -> (usize, usize) {
    let page_size = PAGE_SIZE_BYTES as u64;
    // Offsets are below FILE_LEN_BYTES_MAX here, or the page does not exist anyway.
    let index = usize::try_from(offset / page_size).unwrap_or(usize::MAX);
    let start = usize::try_from(offset % page_size).unwrap_or(0);
    (index, start)
}

fn check_len(len: u64) -> io::Result<()> {
    if len <= FILE_LEN_BYTES_MAX {
        return Ok(());
    }
    Err(io::Error::new(
        ErrorKind::FileTooLarge,
        format!("a file in memory cannot be {len} bytes long; the limit is {FILE_LEN_BYTES_MAX}"),
    ))
}

fn missing(name: &str) -> io::Error {
    io::Error::new(ErrorKind::NotFound, format!("there is no file {name} in memory"))
}

fn occupied(name: &str) -> io::Error {
    io::Error::new(ErrorKind::AlreadyExists, format!("there is already a file {name} in memory"))
}

fn opened_for_reading() -> io::Error {
    io::Error::new(ErrorKind::PermissionDenied, "the file is open for reading only")
}
