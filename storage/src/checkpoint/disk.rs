//! Checkpoints on a disk, in sled, which is trusted with nothing.
//!
//! Measured on sled 0.34.7: 119 single flipped bits in its files gave 60 panics and 21 silent losses of keys, and what its
//! `flush` had written was gone after a power cut. So each stored checkpoint is a folder of its own that nobody changes once
//! it has its number: sled works on a copy, on a thread that may hang or panic, and only a copy of files that are, by a
//! manifest beside them, exactly what it wrote. What it then returns is counted and digested.
//!
//! ```text
//! checkpoint/0000000000000007/manifest   what the files are
//! checkpoint/0000000000000007/sled/…     sled's files
//! checkpoint/new-N, checkpoint/reading-N a copy that sled is at work on; worth nothing
//! aside-4-checkpoint                     what start number 4 found odd
//! ```

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, RenameFlags, flock};

use super::contents::{Contents, Head};
use super::guard::run_guarded;
use super::manifest::{self, make_folder, sync_folder};
use super::{Checkpoint, CheckpointPairs, CheckpointSave, CheckpointStore, LoadError, SaveError};

/// The folder's name, beside the log's files.
const FOLDER: &str = "checkpoint";
const SLED: &str = "sled";
/// sled's cache; its default is a gigabyte.
const CACHE_BYTES: u64 = 16 << 20;
/// sled never shrinks its files by itself: beyond this, and a multiple of what they hold, they are written anew.
const SLACK_BYTES: u64 = 16 << 20;
const SLACK_FACTOR: u64 = 6;
/// Keys of ours begin with this, so that the head's key can't be one of them.
const PAIR_PREFIX: u8 = b'k';
const HEAD_KEY: &[u8] = b"head";
/// Turns of waiting until sled's threads have let go of its files.
const SETTLE_TURNS: u32 = 20_000;
const SETTLE_TURN: Duration = Duration::from_millis(1);

/// A start that waits longer than this for the checkpoint reads the log instead.
const LOAD_LIMIT: Duration = Duration::from_secs(10);
/// Nobody waits for a save but a broker that stops.
const SAVE_LIMIT: Duration = Duration::from_secs(30);

/// What is done before sled opens a folder.
pub type BeforeOpen = Arc<dyn Fn() + Send + Sync>;

/// Checkpoints in the folder `checkpoint` of a data folder.
#[derive(Clone)]
pub struct DiskCheckpoints {
    /// The data folder.
    folder: PathBuf,
    load_limit: Duration,
    save_limit: Duration,
    slack_bytes: u64,
    before_open: BeforeOpen,
}

impl fmt::Debug for DiskCheckpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskCheckpoints").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl DiskCheckpoints {
    /// Those of the log in `folder`. Whoever uses them holds the log's lock.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            load_limit: LOAD_LIMIT,
            save_limit: SAVE_LIMIT,
            slack_bytes: SLACK_BYTES,
            before_open: Arc::new(|| {}),
        }
    }

    /// With other limits on how long a load and a save may take.
    #[must_use]
    pub fn with_limits(self, load_limit: Duration, save_limit: Duration) -> Self {
        Self { load_limit, save_limit, ..self }
    }

    /// With so many bytes that the files may take beyond a multiple of what they hold before they are written anew.
    #[must_use]
    pub fn with_slack_bytes(self, slack_bytes: u64) -> Self {
        Self { slack_bytes, ..self }
    }

    /// With something done before each time that sled opens a folder: where tests put what sled may do there.
    #[must_use]
    pub fn with_before_open(self, before_open: BeforeOpen) -> Self {
        Self { before_open, ..self }
    }

    fn home(&self) -> PathBuf {
        self.folder.join(FOLDER)
    }

    /// The numbers of the stored checkpoints, ascending.
    fn stored(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(self.home())? {
            let name = entry?.file_name();
            let digits =
                name.to_str().filter(|name| name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_digit()));
            numbers.extend(digits.and_then(|digits| digits.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn path_of(&self, number: u64) -> PathBuf {
        self.home().join(format!("{number:016}"))
    }

    fn open(&self, folder: &Path) -> Result<sled::Db, String> {
        (self.before_open)();
        let config = sled::Config::new().path(folder).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        config.open().map_err(|error| format!("sled: {error}"))
    }

    /// An empty folder for sled to work in; what was left of earlier ones is removed. No two of this process have the same
    /// one: a thread that was given up may go on in its own at any time.
    fn workplace(&self, kind: &str) -> io::Result<PathBuf> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let prefix = format!("{kind}-");
        for entry in fs::read_dir(self.home())? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
                // Whoever was given up may be putting files into it: then the next one removes it.
                let _ = remove_folder(&entry.path());
            }
        }
        // One of an earlier process may have stayed.
        loop {
            let path = self.home().join(format!("{prefix}{}", COUNT.fetch_add(1, Ordering::Relaxed)));
            match make_folder(&path) {
                Ok(()) => return Ok(path),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn load_now(&self) -> Result<Option<Checkpoint>, LoadError> {
        let odd = |error: io::Error| LoadError::Odd(format!("{}: {error}", self.home().display()));
        let unavailable = |error: io::Error| LoadError::Unavailable(format!("{}: {error}", self.home().display()));
        match fs::symlink_metadata(self.home()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unavailable(error)),
            Ok(found) if !found.is_dir() => return Err(LoadError::Odd("it is no folder".to_owned())),
            Ok(_) => {}
        }
        let Some(newest) = self.stored().map_err(odd)?.pop() else { return Ok(None) };
        let copy = self.workplace("reading").map_err(unavailable)?;
        let contents = manifest::copy_checked(&self.path_of(newest), &copy).and_then(|()| {
            let db = self.open(&copy.join(SLED)).map_err(LoadError::Odd)?;
            let contents = read_all(&db).map_err(LoadError::Odd);
            drop(db);
            settle(&copy.join(SLED)).map_err(unavailable)?;
            contents
        });
        // A copy that can't be removed is removed before the next one is made.
        let _ = remove_folder(&copy);
        contents?.check().map(Some).map_err(LoadError::Odd)
    }

    fn save_now(&self, save: CheckpointSave) -> Result<(), SaveError> {
        let failed = |error: io::Error| SaveError::Failed(format!("{}: {error}", self.home().display()));
        match make_folder(&self.home()) {
            Ok(()) => sync_folder(&self.folder).map_err(failed)?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
        let older = self.stored().map_err(failed)?;
        let newest = older.last().copied();
        let copy = self.workplace("new").map_err(failed)?;
        let made = self.make(save, newest, &copy).and_then(|()| {
            manifest::seal(&copy).map_err(failed)?;
            let next = self.path_of(newest.unwrap_or(0) + 1);
            fs::rename(&copy, next).and_then(|()| sync_folder(&self.home())).map_err(failed)
        });
        if made.is_err() {
            let _ = remove_folder(&copy);
            return made;
        }
        for number in older {
            // Replaced by a newer one that is durable. One that stays is removed after the next save.
            let _ = remove_folder(&self.path_of(number));
        }
        Ok(())
    }

    fn make(&self, save: CheckpointSave, newest: Option<u64>, copy: &Path) -> Result<(), SaveError> {
        let failed = |error: io::Error| SaveError::Failed(format!("{}: {error}", copy.display()));
        let place = copy.join(SLED);
        let mut kept = CheckpointPairs::new();
        let mut head = Head::empty(save.stamp);
        if let Some(mark) = save.builds_on {
            let missing = |text: String| SaveError::NothingToBuildOn(text);
            let newest = newest.ok_or_else(|| missing("there is none".to_owned()))?;
            manifest::copy_checked(&self.path_of(newest), copy).map_err(|error| match error {
                LoadError::Odd(text) => missing(text),
                LoadError::Unavailable(text) => SaveError::Failed(text),
            })?;
            let db = self.open(&place).map_err(SaveError::Failed)?;
            head = read_head(&db).map_err(missing)?;
            if head.stamp.mark != mark {
                return Err(missing("it is another one".to_owned()));
            }
            if manifest::size(copy).map_err(failed)? <= self.slack_bytes + SLACK_FACTOR * head.bytes {
                return self.change(db, head, save, &place);
            }
            kept = read_all(&db).and_then(Contents::check).map_err(missing)?.pairs;
            head = Head::empty(save.stamp);
            drop(db);
            settle(&place).map_err(failed)?;
            remove_folder(&place).map_err(failed)?;
        }
        let db = self.open(&place).map_err(SaveError::Failed)?;
        for (key, value) in &kept {
            head.count_in(key, value);
            db.insert(stored_key(key), value.as_slice())
                .map_err(|error| SaveError::Failed(format!("sled: {error}")))?;
        }
        self.change(db, head, save, &place)
    }

    /// Makes the changes and stamps them, in one batch.
    fn change(&self, db: sled::Db, mut head: Head, save: CheckpointSave, place: &Path) -> Result<(), SaveError> {
        let failed = |error: sled::Error| SaveError::Failed(format!("sled: {error}"));
        let mut batch = sled::Batch::default();
        for (key, value) in save.changes {
            let stored = stored_key(&key);
            if let Some(old) = db.get(&stored).map_err(failed)? {
                head.count_out(&key, &old);
            }
            match value {
                Some(value) => {
                    head.count_in(&key, &value);
                    batch.insert(stored, value);
                }
                None => batch.remove(stored),
            }
        }
        head.stamp = save.stamp;
        batch.insert(HEAD_KEY, head.encode());
        db.apply_batch(batch).map_err(failed)?;
        db.flush().map_err(failed)?;
        drop(db);
        settle(place).map_err(|error| SaveError::Failed(format!("{}: {error}", place.display())))
    }
}

impl CheckpointStore for DiskCheckpoints {
    fn load(&mut self) -> Result<Option<Checkpoint>, LoadError> {
        let store = self.clone();
        let loaded = run_guarded("reading the checkpoint", self.load_limit, move || store.load_now());
        loaded.unwrap_or_else(|text| Err(LoadError::Odd(text)))
    }

    fn save(&mut self, save: CheckpointSave) -> Result<(), SaveError> {
        let store = self.clone();
        let saved = run_guarded("writing the checkpoint", self.save_limit, move || store.save_now(save));
        saved.unwrap_or_else(|text| Err(SaveError::Failed(text)))
    }

    fn set_aside(&mut self, label: &str) -> io::Result<Option<String>> {
        for attempt in 1..=ASIDE_ATTEMPTS {
            let again = if attempt == 1 { String::new() } else { format!("-{attempt}") };
            let name = format!("aside-{label}-{FOLDER}{again}");
            match rename_new(&self.home(), &self.folder.join(&name)) {
                Ok(()) => {
                    sync_folder(&self.folder)?;
                    return Ok(Some(name));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(ErrorKind::AlreadyExists, format!("aside-{label}-{FOLDER} and its like are all taken")))
    }
}

/// Names tried for what is set aside: starts that die before they are counted use the same label.
const ASIDE_ATTEMPTS: u32 = 1_000;

/// A rename that replaces nothing.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let here = rustix::fs::CWD;
    Ok(rustix::fs::renameat_with(here, from, here, to, RenameFlags::NOREPLACE)?)
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn stored_key(key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(key.len() + 1);
    stored.push(PAIR_PREFIX);
    stored.extend_from_slice(key);
    stored
}

fn read_head(db: &sled::Db) -> Result<Head, String> {
    let bytes = db.get(HEAD_KEY).map_err(|error| format!("sled: {error}"))?;
    let bytes = bytes.ok_or_else(|| "it has no stamp".to_owned())?;
    Head::decode(&bytes).ok_or_else(|| "its stamp can't be read, or is of another version".to_owned())
}

fn read_all(db: &sled::Db) -> Result<Contents, String> {
    let head = read_head(db)?;
    let mut pairs = CheckpointPairs::new();
    for pair in db.iter() {
        let (key, value) = pair.map_err(|error| format!("sled: {error}"))?;
        match key.split_first() {
            Some((&PAIR_PREFIX, key)) => drop(pairs.insert(key.to_vec(), value.to_vec())),
            _ if key == HEAD_KEY => {}
            _ => return Err("it holds a key that is not ours".to_owned()),
        }
    }
    Ok(Contents { head, pairs })
}

/// Waits until all threads of sled have let go of its files: until then they may still write. Each of them holds the open
/// file, and with it sled's lock.
fn settle(place: &Path) -> io::Result<()> {
    let file = File::open(place.join("db"))?;
    for _ in 0..SETTLE_TURNS {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => std::thread::sleep(SETTLE_TURN),
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::new(ErrorKind::TimedOut, "sled does not let go of its files"))
}
