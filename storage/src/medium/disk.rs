//! A real folder: files through the system calls of Linux, errors that name the path.

use std::any::Any;
use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, Dir, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, fallocate, flock, fstatvfs,
    fsync, openat, renameat_with, statat, unlinkat,
};
use rustix::io::{Errno, pwritev, retry_on_intr};

use super::{FileStat, LOCK_FILE_NAME, LockError, Medium, MediumFile, check_name};

/// Chunks that one `pwritev` takes: `IOV_MAX` of Linux.
const CHUNKS_PER_WRITE_MAX: usize = 1_024;

/// What the page cache reads and writes at least.
const PAGE_BYTES: u64 = 4_096;
static ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

/// Decimal digits of a process id, with some room; nothing longer is read from a lock file.
const PID_TEXT_LEN_BYTES_MAX: usize = 20;

/// Access of a new folder: its owner alone.
const FOLDER_MODE: u32 = 0o700;

/// Access of a new file: its owner alone.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// A folder of a real file system.
///
/// Names are resolved against the open folder, so it may be moved while it is in use.
#[derive(Debug)]
pub struct DiskMedium {
    path: PathBuf,
    folder: OwnedFd,
}

impl DiskMedium {
    /// Opens the folder; makes it, and the folders above it, if it is not there.
    ///
    /// New folders may be accessed by their owner only, and are durable when this returns.
    ///
    /// # Errors
    ///
    /// The folder could not be made, opened or made durable; the text names the path. Folders that
    /// were already made stay.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let is_new = make_folders(path)?;
        let medium = Self::open_existing(path)?;
        // An earlier process may have made the folder and been cut off before it synced the
        // parent, so the parent is synced even if the folder was there. Only then may it be one
        // that this process is not allowed to open.
        match sync_parent(path) {
            Err(error) if is_new || error.kind() != ErrorKind::PermissionDenied => Err(error),
            _ => Ok(medium),
        }
    }

    /// Opens a folder that must be there; makes and changes nothing. Read access is enough for
    /// reading.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such folder, [`ErrorKind::NotADirectory`] if it is
    /// something else; the text names the path.
    pub fn open_existing(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let folder = open_folder(path)?;
        Ok(Self { path: path.to_path_buf(), folder })
    }

    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<Arc<dyn MediumFile>> {
        check_name(name)?;
        let path = self.path.join(name);
        // O_NONBLOCK means nothing to a regular file, but keeps a named pipe that lies in the
        // folder from blocking the open for ever.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = retry_on_intr(|| openat(&self.folder, name, flags, FILE_MODE));
        let file = match opened {
            Ok(descriptor) => File::from(descriptor),
            Err(Errno::LOOP) => {
                return Err(io::Error::new(
                    ErrorKind::InvalidInput,
                    format!("could not open {}: it is a symbolic link, and those are not followed", path.display()),
                ));
            }
            Err(errno) => return Err(explain("open", &path, errno.into())),
        };
        let kind = file.metadata().map_err(|error| explain("look at", &path, error))?;
        if !kind.is_file() {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                format!("could not open {}: it is not a file", path.display()),
            ));
        }
        Ok(Arc::new(DiskFile { file, path }))
    }

    /// Opens the lock file; `None` if it is not there and only a shared lock is wanted.
    fn open_lock_file(&self, exclusive: bool) -> io::Result<Option<File>> {
        let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = if exclusive { flags | OFlags::RDWR | OFlags::CREATE } else { flags | OFlags::RDONLY };
        match retry_on_intr(|| openat(&self.folder, LOCK_FILE_NAME, flags, FILE_MODE)) {
            Ok(descriptor) => Ok(Some(File::from(descriptor))),
            Err(Errno::NOENT) if !exclusive => Ok(None),
            Err(errno) => Err(explain("open", &self.lock_path(), errno.into())),
        }
    }

    /// An open folder of its own to lock: a lock belongs to the open, so that of `self.folder`
    /// would not conflict with another lock taken through the same medium.
    fn reopen_folder(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        retry_on_intr(|| openat(&self.folder, ".", flags, Mode::empty()))
            .map_err(|errno| explain("open", &self.path, errno.into()))
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join(LOCK_FILE_NAME)
    }
}

impl Medium for DiskMedium {
    /// Names that are not UTF-8 are no names of the log and are left out. What is neither a file
    /// nor a folder is listed; opening it fails.
    fn list(&self) -> io::Result<Vec<FileStat>> {
        let explain_list = |errno: Errno| explain("list", &self.path, errno.into());
        let mut files = Vec::new();
        for entry in Dir::read_from(&self.folder).map_err(explain_list)? {
            let entry = entry.map_err(explain_list)?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if matches!(name, "." | ".." | LOCK_FILE_NAME) {
                continue;
            }
            let stat = match statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Removed since the folder was read.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(explain("look at", &self.path.join(name), errno.into())),
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                continue;
            }
            files.push(FileStat { name: name.to_owned(), len: u64::try_from(stat.st_size).unwrap_or(0) });
        }
        files.sort_unstable();
        Ok(files)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        self.open_file(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        self.open_file(name, OFlags::RDWR)
    }

    fn open_read(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        self.open_file(name, OFlags::RDONLY)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(from)?;
        check_name(to)?;
        let flags = RenameFlags::NOREPLACE;
        retry_on_intr(|| renameat_with(&self.folder, from, &self.folder, to, flags)).map_err(|errno| {
            let error = io::Error::from(errno);
            let from = self.path.join(from);
            io::Error::new(error.kind(), format!("could not rename {} to {to}: {error}", from.display()))
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        retry_on_intr(|| unlinkat(&self.folder, name, AtFlags::empty()))
            .map_err(|errno| explain("remove", &self.path.join(name), errno.into()))
    }

    fn sync_directory(&self) -> io::Result<()> {
        retry_on_intr(|| fsync(&self.folder)).map_err(|errno| explain("sync the folder", &self.path, errno.into()))
    }

    /// A lock by `flock` on the file `lock`, which is made if needed and then holds the broker's
    /// process id. A reader makes nothing: where there is no such file it locks the folder itself,
    /// and that is why a broker locks both.
    fn lock(&self, exclusive: bool) -> Result<Box<dyn Any + Send + Sync>, LockError> {
        let Some(file) = self.open_lock_file(exclusive)? else {
            let folder = self.reopen_folder()?;
            return match try_flock(&folder, FlockOperation::NonBlockingLockShared) {
                Ok(()) => Ok(Box::new(folder)),
                Err(Errno::WOULDBLOCK) => Err(LockError::Held { pid: None }),
                Err(errno) => Err(explain("lock", &self.path, errno.into()).into()),
            };
        };
        let operation =
            if exclusive { FlockOperation::NonBlockingLockExclusive } else { FlockOperation::NonBlockingLockShared };
        match try_flock(&file, operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(LockError::Held { pid: read_holder(&file) });
            }
            Err(errno) => return Err(explain("lock", &self.lock_path(), errno.into()).into()),
        }
        if !exclusive {
            return Ok(Box::new(file));
        }
        let folder = self.reopen_folder()?;
        // Some network file systems cannot lock a folder. Brokers are kept apart by the file;
        // only a reader of a folder that never had one goes unnoticed then.
        if try_flock(&folder, operation) == Err(Errno::WOULDBLOCK) {
            return Err(LockError::Held { pid: None });
        }
        write_holder(&file).map_err(|error| explain("write", &self.lock_path(), error))?;
        Ok(Box::new((file, folder)))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = retry_on_intr(|| fstatvfs(&self.folder))
            .map_err(|errno| explain("ask for the free space of", &self.path, errno.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn is_persistent(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

/// A regular file of a [`DiskMedium`].
#[derive(Debug)]
struct DiskFile {
    file: File,
    /// Where it was when it was opened.
    path: PathBuf,
}

impl DiskFile {
    fn explain(&self, action: &str, error: io::Error) -> io::Error {
        // The file may have been renamed since: only the system knows what it is called now.
        let link = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let path = std::fs::read_link(link).unwrap_or_else(|_| self.path.clone());
        explain(action, &path, error)
    }
}

impl MediumFile for DiskFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        // A short read in the middle of a file is allowed by the system, but not by the trait.
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.explain("read", error)),
            }
        }
        Ok(done)
    }

    fn write_all_at(&self, chunks: &[&[u8]], offset: u64) -> io::Result<()> {
        let mut position = offset;
        let mut chunks = chunks.iter().filter(|chunk| !chunk.is_empty()).peekable();
        let mut slices = Vec::with_capacity(chunks.size_hint().1.unwrap_or(0).min(CHUNKS_PER_WRITE_MAX));
        while chunks.peek().is_some() {
            slices.clear();
            slices.extend(chunks.by_ref().take(CHUNKS_PER_WRITE_MAX).map(|chunk| IoSlice::new(chunk)));
            let mut rest = slices.as_mut_slice();
            while !rest.is_empty() {
                let count = retry_on_intr(|| pwritev(&self.file, rest, position))
                    .map_err(|errno| self.explain("write", errno.into()))?;
                if count == 0 {
                    let error = io::Error::new(ErrorKind::WriteZero, "the system took no bytes and gave no reason");
                    return Err(self.explain("write", error));
                }
                position += count as u64;
                IoSlice::advance_slices(&mut rest, count);
            }
        }
        Ok(())
    }

    fn append_at(&self, chunks: &[&[u8]], offset: u64) -> io::Result<()> {
        let end = chunks.iter().fold(offset, |end, chunk| end + chunk.len() as u64);
        let rest = (end.next_multiple_of(PAGE_BYTES) - end) as usize;
        let mut padded = Vec::with_capacity(chunks.len() + 1);
        padded.extend_from_slice(chunks);
        padded.extend(ZEROS.get(..rest));
        self.write_all_at(&padded, offset)
    }

    fn allocate(&self, len: u64) -> io::Result<bool> {
        match retry_on_intr(|| fallocate(&self.file, FallocateFlags::empty(), 0, len)) {
            Ok(()) => Ok(true),
            // Not every file system can.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(errno) => Err(self.explain("take room for", errno.into())),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data().map_err(|error| self.explain("sync", error))
    }

    fn len(&self) -> io::Result<u64> {
        match self.file.metadata() {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) => Err(self.explain("look at", error)),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len).map_err(|error| self.explain("set the length of", error))
    }
}

/// Makes the folder and those above it, each durable in its parent. Returns whether the folder
/// itself is new.
fn make_folders(path: &Path) -> io::Result<bool> {
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let mut missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    missing.reverse();
    let mut is_new = false;
    for folder in missing {
        is_new = match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
            Ok(()) => {
                sync_parent(folder)?;
                true
            }
            // Another process was faster; opening it says whether it is a folder.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => return Err(explain("make the folder", folder, error)),
        };
    }
    Ok(is_new)
}

/// Makes the folder's name durable.
fn sync_parent(path: &Path) -> io::Result<()> {
    // The parent of a path like `data/..` or `.` is not its text without the last part.
    let parent = match path.canonicalize() {
        Ok(path) => path.parent().map(Path::to_path_buf),
        Err(error) => return Err(explain("resolve", path, error)),
    };
    let Some(parent) = parent else {
        return Ok(());
    };
    let folder = open_folder(&parent)?;
    retry_on_intr(|| fsync(&folder)).map_err(|errno| explain("sync the folder", &parent, errno.into()))
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    retry_on_intr(|| openat(CWD, path, flags, Mode::empty()))
        .map_err(|errno| explain("open the folder", path, errno.into()))
}

fn try_flock(file: impl std::os::fd::AsFd, operation: FlockOperation) -> Result<(), Errno> {
    retry_on_intr(|| flock(&file, operation))
}

/// The process that holds the lock of this file, if it is a broker.
fn read_holder(file: &File) -> Option<u32> {
    // Readers write no id. If a shared lock can be had then readers hold it, and the id in the
    // file is that of a broker that has ended.
    if try_flock(file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    let mut buffer = [0; PID_TEXT_LEN_BYTES_MAX];
    let count = file.read_at(&mut buffer, 0).ok()?;
    let text = std::str::from_utf8(buffer.get(..count)?).ok()?;
    text.trim().parse().ok()
}

/// Leaves this process's id in the lock file, for the message of whoever comes next.
fn write_holder(mut file: &File) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes())
}

/// Says what failed on which path; keeps the kind.
fn explain(action: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("could not {action} {}: {error}", path.display()))
}
