//! The broker's disk: a simulated one in memory, or a real folder with faults in front of it.

use std::any::Any;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tidelog_storage::medium::{DiskMedium, FileStat, LockError, Medium, MediumFile, SimulatedMedium, read_exact_at};

use super::ordeal::Death;

/// See the module's documentation. Clones share it.
#[derive(Debug, Clone)]
pub(super) enum Disk {
    Simulated(SimulatedMedium),
    Folder(FaultyFolder),
}

impl Disk {
    /// What the next life of the broker keeps its log on.
    pub(super) fn medium(&self) -> Arc<dyn Medium> {
        match self {
            Self::Simulated(medium) => Arc::new(medium.for_this_life()),
            Self::Folder(folder) => Arc::new(folder.clone()),
        }
    }

    /// The broker has died: what is found afterwards?
    pub(super) fn dies(&self, death: Death) {
        match (self, death) {
            (Self::Simulated(medium), Death::Killed) => medium.kill(),
            (Self::Simulated(medium), Death::PowerLost) => medium.crash(),
            // A kill leaves a real folder as it is. Who asks for more is told that it can't be had.
            (Self::Folder(folder), _) => folder.faults.clear(),
        }
    }

    /// Whether power can be lost: not with a real folder, whose page cache is the machine's.
    pub(super) const fn can_lose_power(&self) -> bool {
        matches!(self, Self::Simulated(_))
    }

    pub(super) fn fail_next_sync(&self) {
        match self {
            Self::Simulated(medium) => medium.fail_sync(1),
            Self::Folder(folder) => folder.faults.sync_fails.store(true, Ordering::Relaxed),
        }
    }

    pub(super) fn fail_next_write(&self) {
        match self {
            Self::Simulated(medium) => medium.fail_write(1),
            Self::Folder(folder) => folder.faults.write_fails.store(true, Ordering::Relaxed),
        }
    }

    /// The machine stops within the next write, on a folder the process.
    pub(super) fn tear_next_write(&self) {
        match self {
            Self::Simulated(medium) => medium.crash_at_operation(1),
            Self::Folder(folder) => folder.faults.write_tears.store(true, Ordering::Relaxed),
        }
    }

    /// Set once the write of [`Self::tear_next_write`] was reached.
    pub(super) fn has_stopped(&self) -> Option<Death> {
        match self {
            Self::Simulated(medium) => medium.is_stopped().then_some(Death::PowerLost),
            Self::Folder(folder) => folder.faults.has_torn.load(Ordering::Relaxed).then_some(Death::Killed),
        }
    }

    /// From now on nothing can be written where nothing was written before; or it can again.
    pub(super) fn set_full(&self, is_full: bool) {
        match self {
            Self::Simulated(medium) => medium.set_capacity_bytes(is_full.then(|| medium.used_bytes())),
            Self::Folder(folder) => folder.faults.is_full.store(is_full, Ordering::Relaxed),
        }
    }

    /// Flips a bit in the middle of `bytes`, in the first place where a segment has them.
    pub(super) fn flip_bit_within(&self, bytes: &[u8]) -> io::Result<String> {
        let medium: Arc<dyn Medium> = match self {
            Self::Simulated(medium) => Arc::new(medium.clone()),
            Self::Folder(folder) => Arc::clone(&folder.medium) as Arc<dyn Medium>,
        };
        if bytes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no bytes have no bit"));
        }
        for FileStat { name, len } in medium.list()?.into_iter().filter(|file| file.name.starts_with("segment-")) {
            let mut contents = vec![0; usize::try_from(len).unwrap_or_default()];
            read_exact_at(medium.open_read(&name)?.as_ref(), &mut contents, 0)?;
            let Some(at) = contents.windows(bytes.len()).position(|window| window == bytes) else { continue };
            let at = at + bytes.len() / 2;
            match self {
                Self::Simulated(medium) => medium.flip_bit(&name, at as u64, 3)?,
                Self::Folder(_) => {
                    let flipped = contents.get(at).map_or(0, |byte| byte ^ 1 << 3);
                    medium.open(&name)?.write_all_at(&[&[flipped]], at as u64)?;
                }
            }
            return Ok(format!("{name} at byte {at}"));
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "no segment has these bytes"))
    }
}

/// A real folder. What fails is decided here; all else is the disk's.
#[derive(Debug, Clone)]
pub(super) struct FaultyFolder {
    medium: Arc<DiskMedium>,
    faults: Arc<Faults>,
}

#[derive(Debug, Default)]
struct Faults {
    sync_fails: AtomicBool,
    write_fails: AtomicBool,
    write_tears: AtomicBool,
    has_torn: AtomicBool,
    is_full: AtomicBool,
    /// One write at a time, so that what is full is judged by the length it had.
    writing: Mutex<()>,
}

impl Faults {
    /// A new life: what was asked for and has not struck stays with the ordeal, not here.
    fn clear(&self) {
        for fault in [&self.sync_fails, &self.write_fails, &self.write_tears, &self.has_torn] {
            fault.store(false, Ordering::Relaxed);
        }
    }

    fn takes(fault: &AtomicBool) -> bool {
        fault.swap(false, Ordering::Relaxed)
    }

    fn check_alive(&self) -> io::Result<()> {
        if self.has_torn.load(Ordering::Relaxed) { Err(io::Error::other("the broker was killed")) } else { Ok(()) }
    }
}

fn full() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "the disk is full, as the test wants it")
}

impl FaultyFolder {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { medium: Arc::new(DiskMedium::open(path)?), faults: Arc::default() })
    }

    fn file(&self, file: Arc<dyn MediumFile>) -> Arc<dyn MediumFile> {
        Arc::new(FaultyFile { file, faults: Arc::clone(&self.faults) })
    }
}

impl Medium for FaultyFolder {
    fn list(&self) -> io::Result<Vec<FileStat>> {
        self.medium.list()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        self.faults.check_alive()?;
        Ok(self.file(self.medium.create(name)?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        Ok(self.file(self.medium.open(name)?))
    }

    fn open_read(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        self.medium.open_read(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.faults.check_alive()?;
        self.medium.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.faults.check_alive()?;
        self.medium.remove(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.faults.check_alive()?;
        self.medium.sync_directory()
    }

    fn lock(&self, exclusive: bool) -> Result<Box<dyn Any + Send + Sync>, LockError> {
        self.medium.lock(exclusive)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        if self.faults.is_full.load(Ordering::Relaxed) { Ok(0) } else { self.medium.free_bytes() }
    }

    fn is_persistent(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        self.medium.describe()
    }
}

struct FaultyFile {
    file: Arc<dyn MediumFile>,
    faults: Arc<Faults>,
}

impl fmt::Debug for FaultyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FaultyFile").field(&self.file).finish()
    }
}

impl MediumFile for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_all_at(&self, chunks: &[&[u8]], offset: u64) -> io::Result<()> {
        let _one = self.faults.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.faults.check_alive()?;
        let len: usize = chunks.iter().map(|chunk| chunk.len()).sum();
        if self.faults.is_full.load(Ordering::Relaxed) && offset + len as u64 > self.file.len()? {
            return Err(full());
        }
        let tears = Faults::takes(&self.faults.write_tears);
        if tears || Faults::takes(&self.faults.write_fails) {
            // Some of it gets there.
            let bytes = chunks.concat();
            self.file.write_all_at(&[bytes.get(..len / 2).unwrap_or_default()], offset)?;
            self.faults.has_torn.store(tears, Ordering::Relaxed);
            return Err(io::Error::other("the write fails, as the test wants it"));
        }
        self.file.write_all_at(chunks, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.faults.check_alive()?;
        if Faults::takes(&self.faults.sync_fails) {
            return Err(io::Error::other("the sync fails, as the test wants it"));
        }
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.faults.check_alive()?;
        if self.faults.is_full.load(Ordering::Relaxed) && len > self.file.len()? {
            return Err(full());
        }
        self.file.set_len(len)
    }
}
