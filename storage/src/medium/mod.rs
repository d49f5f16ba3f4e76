//! The folder a log lives in, behind one small trait: real files, memory, or a simulated machine.
//!
//! The log is written against [`Medium`] and [`MediumFile`] only, so that the code that must
//! survive a power cut is the very code that the simulated machine cuts the power of.
//!
//! What the log may rely on, on every medium:
//!
//! - Names are those of files in one flat folder. A rename is atomic and never replaces.
//! - A write is not durable before [`MediumFile::sync_data`] returned ok, and a name is not
//!   durable before [`Medium::sync_directory`] did.
//! - A torn 512-byte sector holds its old or its new bytes; a write never harms bytes of a sector
//!   that it does not change.
//! - After a failed [`MediumFile::sync_data`] a later one may return ok for bytes that never reach
//!   the disk, while reads still show them. Whoever gets such an error must write the bytes again
//!   or stop.

mod disk;
mod memory;
mod simulated;

use std::any::Any;
use std::fmt;
use std::io;
use std::sync::Arc;

pub use self::disk::DiskMedium;
pub use self::memory::MemoryMedium;
pub use self::simulated::{SimulatedMedium, SimulatedRng};

/// Name of the file that carries the lock of a folder; never listed, opened, renamed or removed
/// as a file of the log.
pub(crate) const LOCK_FILE_NAME: &str = "lock";

/// Longest file name a medium accepts, in bytes: the limit of every common file system.
const NAME_LEN_BYTES_MAX: usize = 255;

/// One file of a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileStat {
    /// Name within the folder, without any path.
    pub name: String,
    /// Length in bytes.
    pub len: u64,
}

/// Why a folder could not be locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another broker or reader holds the folder; nothing was changed. Stop it, or use another folder.
    #[error("the folder is in use by {}; stop it first, or use another folder", Holder(*.pid))]
    Held {
        /// The process that holds it, where it is known.
        pid: Option<u32>,
    },
    /// The lock file could not be opened, locked or written; whether the folder is in use is unknown.
    #[error("the folder could not be locked")]
    Io(#[from] io::Error),
}

impl From<LockError> for io::Error {
    /// A held lock becomes an error of kind [`io::ErrorKind::WouldBlock`].
    fn from(error: LockError) -> Self {
        match error {
            LockError::Held { .. } => io::Error::new(io::ErrorKind::WouldBlock, error),
            LockError::Io(error) => error,
        }
    }
}

/// Says who holds a lock, as far as it is known.
struct Holder(Option<u32>);

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(pid) => write!(formatter, "process {pid}"),
            None => formatter.write_str("another process"),
        }
    }
}

/// A flat folder of files.
///
/// Every method takes a plain file name; a name that is empty, longer than 255 bytes, `.`, `..`,
/// the lock file's, or that holds `/` or a zero byte is refused with
/// [`io::ErrorKind::InvalidInput`].
pub trait Medium: Send + Sync + fmt::Debug {
    /// Names and lengths of the files in the folder, sorted by name. Neither sub-folders nor the
    /// lock file are among them.
    ///
    /// # Errors
    ///
    /// The folder could not be read.
    fn list(&self) -> io::Result<Vec<FileStat>>;

    /// Makes an empty file, for reading and writing, that only its owner may access.
    ///
    /// Its name is not durable before [`Medium::sync_directory`].
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AlreadyExists`] if there is one of that name; it is not touched.
    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] if there is none of that name.
    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>>;

    /// Opens a file for reading only; works in a folder that may only be read. Writes through this
    /// handle fail.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] if there is none of that name.
    fn open_read(&self, name: &str) -> io::Result<Arc<dyn MediumFile>>;

    /// Gives a file another name, atomically. Never replaces a file. Open handles stay with the file.
    ///
    /// The change is not durable before [`Medium::sync_directory`].
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AlreadyExists`] if `to` is there, [`io::ErrorKind::NotFound`] if `from` is
    /// not; nothing is changed then.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Handles that are open can still be read.
    ///
    /// The change is not durable before [`Medium::sync_directory`].
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] if there is none of that name.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes every creation, rename and removal so far durable.
    ///
    /// # Errors
    ///
    /// Which of the changes are durable is unknown then.
    fn sync_directory(&self) -> io::Result<()>;

    /// Takes the folder: alone (`exclusive`, for a broker) or together with other readers. Held
    /// until the returned value is dropped, or the process ends. Never waits.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] if somebody else's lock is in the way.
    fn lock(&self, exclusive: bool) -> Result<Box<dyn Any + Send + Sync>, LockError>;

    /// Bytes that this process can still write, as the file system tells it: an estimate.
    ///
    /// # Errors
    ///
    /// The file system could not be asked.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Whether anything outlives the process: false for memory.
    fn is_persistent(&self) -> bool;

    /// The folder's path or a name for it, for messages.
    fn describe(&self) -> String;
}

/// One open file of a [`Medium`]; closed when the last reference is dropped.
pub trait MediumFile: Send + Sync + fmt::Debug {
    /// Reads up to `buffer.len()` bytes from `offset` on; less only at the end of the file, 0 at
    /// or behind it.
    ///
    /// # Errors
    ///
    /// The bytes could not be read; what `buffer` holds is unspecified.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes the chunks one after the other from `offset` on, in one system call where that is
    /// possible. Grows the file; a gap behind its former end reads as zeros.
    ///
    /// Not durable before [`MediumFile::sync_data`].
    ///
    /// # Errors
    ///
    /// Any part of the chunks may have been written. [`io::ErrorKind::WriteZero`] if the system
    /// takes no more without saying why, [`io::ErrorKind::StorageFull`] on a full disk.
    fn write_all_at(&self, chunks: &[&[u8]], offset: u64) -> io::Result<()>;

    /// As [`MediumFile::write_all_at`], for bytes that only zeros stand behind. A medium that is kept in pages may write
    /// zeros up to the end of the last page again: of a page that is written whole nothing has to be read first.
    ///
    /// # Errors
    ///
    /// As [`MediumFile::write_all_at`].
    fn append_at(&self, chunks: &[&[u8]], offset: u64) -> io::Result<()> {
        self.write_all_at(chunks, offset)
    }

    /// Makes the bytes written so far, and the length that is needed to read them, durable.
    ///
    /// # Errors
    ///
    /// What of them is durable is unknown, and a later ok proves nothing about these bytes unless
    /// they were written again in between.
    fn sync_data(&self) -> io::Result<()>;

    /// Gives an empty file `len` bytes that read as zeros, and takes their room on the disk, without writing them. Whether
    /// the medium can do that; if not, nothing was changed.
    ///
    /// Not durable before [`MediumFile::sync_data`].
    ///
    /// # Errors
    ///
    /// Any part of the room may be taken. [`io::ErrorKind::StorageFull`] on a full disk.
    fn allocate(&self, len: u64) -> io::Result<bool> {
        let _ = len;
        Ok(false)
    }

    /// Length in bytes.
    ///
    /// # Errors
    ///
    /// The file system could not be asked.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file holds no bytes.
    ///
    /// # Errors
    ///
    /// As [`MediumFile::len`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts the file, or grows it by zeros.
    ///
    /// Not durable before [`MediumFile::sync_data`].
    ///
    /// # Errors
    ///
    /// The length is unchanged.
    fn set_len(&self, len: u64) -> io::Result<()>;
}

/// Fills `buffer` from `offset` on.
///
/// # Errors
///
/// [`io::ErrorKind::UnexpectedEof`] if the file ends before the buffer is full, else as
/// [`MediumFile::read_at`]; what `buffer` holds is unspecified.
pub fn read_exact_at(file: &dyn MediumFile, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut rest = buffer;
    let mut position = offset;
    while !rest.is_empty() {
        let count = file.read_at(rest, position)?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the file ends at {position}, {} bytes before the end of the read", rest.len()),
            ));
        }
        rest = rest
            .get_mut(count..)
            .ok_or_else(|| io::Error::other("a read returned more bytes than it was asked for"))?;
        position += count as u64;
    }
    Ok(())
}

/// Refuses what is not the plain name of a file of the log.
fn check_name(name: &str) -> io::Result<()> {
    let is_plain = !name.is_empty()
        && name.len() <= NAME_LEN_BYTES_MAX
        && name != "."
        && name != ".."
        && name != LOCK_FILE_NAME
        && !name.contains(['/', '\0']);
    if is_plain {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} cannot be the name of a file of the log")))
    }
}
