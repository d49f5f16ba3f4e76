//! A simulated machine: files whose unsynced bytes a power cut may lose, tear or reorder.
//!
//! The model, chosen to be at least as cruel as a real machine:
//!
//! - A write changes the page cache. Of each file, every 512-byte sector that was written since the
//!   last sync may or may not be on the disk after a power cut, each on its own: bytes are lost,
//!   torn, and land out of order. A sector itself is never torn.
//! - The system also writes sectors back on its own, so an older version of a sector can be the one
//!   that is found.
//! - A length that was not synced may or may not be there, whatever became of the bytes.
//! - Of the creations, renames and removals since the last sync of the folder a prefix is there. A
//!   file whose creation is lost is gone, though its bytes were synced.
//! - A failed sync returns its error once. What it did not write is then taken for clean: reads
//!   show it, later syncs return ok for it, and a power cut shows the old bytes. Measured on Linux.
//! - Space is taken by bytes that were written, not by a length that was set.
//!
//! Everything random follows from the seed and the calls that were made, so a seed replays exactly
//! as long as one thread makes the calls.

mod inode;
mod machine;
mod rng;

use std::any::Any;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use self::machine::{Machine, SyncFate, dead, stopped};
pub use self::rng::SimulatedRng;
use super::{FileStat, LockError, Medium, MediumFile, check_name};

/// A folder on a simulated machine that can lose power, be killed, and fail. Clones share it.
///
/// Faults are counted from 1, the next call, and strike once; 0 takes a fault back. A crash or kill
/// takes all of them back, but keeps the limits of the disk. Counters run on.
#[derive(Debug, Clone)]
pub struct SimulatedMedium {
    shared: Arc<Shared>,
    /// The only life in which this medium works, if it is bound to one.
    life: Option<u64>,
}

struct Shared {
    machine: Mutex<Machine>,
    /// Told whenever syncs are held or let go, or the machine's life ends.
    changed: Condvar,
}

impl fmt::Debug for Shared {
    /// Without the files: nobody wants to read their bytes.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl SimulatedMedium {
    /// An empty folder on a machine whose luck follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self::from_machine(Machine::new(seed))
    }

    fn from_machine(machine: Machine) -> Self {
        Self { shared: Arc::new(Shared { machine: Mutex::new(machine), changed: Condvar::new() }), life: None }
    }

    /// The same folder, for one process: every call fails after the next crash or kill, as those of
    /// an open file do. For programs whose threads may outlive the crash.
    pub fn for_this_life(&self) -> Self {
        let life = Some(self.machine().life);
        Self { shared: Arc::clone(&self.shared), life }
    }

    /// An independent machine in the same state, with the luck of another seed: many crashes can be
    /// tried from one moment. Files are copied when they are first written to. Handles stay with
    /// the first machine.
    pub fn fork(&self, seed: u64) -> Self {
        let mut machine = self.machine().clone();
        machine.rng = SimulatedRng::new(seed);
        Self::from_machine(machine)
    }

    // Ends of a life.

    /// Cuts the power and starts the machine again: unsynced sectors, lengths and names are there
    /// or not, as the seed has it. Open files are dead, locks are released.
    pub fn crash(&self) {
        self.machine().crash(false);
        self.shared.changed.notify_all();
    }

    /// Cuts the power so that nothing is left that was not synced or written back by the system.
    pub fn crash_losing_unsynced(&self) {
        self.machine().crash(true);
        self.shared.changed.notify_all();
    }

    /// Ends the process only, as SIGKILL does: the page cache stays. Open files are dead, locks are
    /// released.
    pub fn kill(&self) {
        self.machine().kill();
        self.shared.changed.notify_all();
    }

    /// Lets the system forget what it takes for clean and read it from the disk again. Changes
    /// nothing unless a sync has failed before.
    pub fn drop_caches(&self) {
        self.machine().drop_caches();
    }

    // Faults.

    /// The `n`-th operation from now (a write, sync, creation, rename, removal, change of length or
    /// sync of the folder) is the last that the machine takes part in, and it may be half done. It
    /// and everything after it fails, reads too, until [`Self::crash`] or [`Self::kill`].
    pub fn crash_at_operation(&self, n: u64) {
        self.machine().faults.stop.set(n);
    }

    /// Whether [`Self::crash_at_operation`] has struck.
    pub fn is_stopped(&self) -> bool {
        self.machine().is_stopped
    }

    /// The `n`-th sync of a file from now fails. What it does not write is taken for clean.
    pub fn fail_sync(&self, n: u64) {
        self.machine().faults.sync.set(n);
    }

    /// The `n`-th sync of the folder from now fails. Which names it makes durable is random; the
    /// others stay to be synced.
    pub fn fail_directory_sync(&self, n: u64) {
        self.machine().faults.directory_sync.set(n);
    }

    /// The `n`-th write from now fails with EIO; the first part of it may be written.
    pub fn fail_write(&self, n: u64) {
        self.machine().faults.write.set(n);
    }

    /// The `n`-th write from now gets stuck before its end, with [`io::ErrorKind::WriteZero`].
    pub fn short_write(&self, n: u64) {
        self.machine().faults.short_write.set(n);
    }

    /// Files may take this many bytes together; `None` is no limit. A write that needs more fails
    /// with [`io::ErrorKind::StorageFull`] after what fits; one into bytes that were written before
    /// never does. To set a length takes no space: who wants space must write.
    pub fn set_capacity_bytes(&self, capacity_bytes: Option<u64>) {
        self.machine().capacity_bytes = capacity_bytes;
    }

    /// There may be this many files; `None` is no limit. One more fails with
    /// [`io::ErrorKind::StorageFull`].
    pub fn set_files_max(&self, files_max: Option<usize>) {
        self.machine().files_max = files_max;
    }

    /// Flips bit `bit` (0 to 7) of a byte, in the page cache and on the disk.
    ///
    /// # Errors
    ///
    /// There is no such file, or it is shorter.
    pub fn flip_bit(&self, name: &str, offset: u64, bit: u8) -> io::Result<()> {
        let mut machine = self.machine();
        let node = machine.open(name)?;
        if machine.inode_mut(node)?.flip_bit(offset, bit) {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{name} is too short to flip a bit at {offset}")))
        }
    }

    /// The system writes something back on its own after one operation in `one_in`, on average; 0
    /// is never, so that what reaches the disk before a crash is what was synced.
    pub fn set_write_back(&self, one_in: u64) {
        self.machine().write_back_one_in = one_in;
    }

    /// From now on a sync of a file hangs until [`Self::release_syncs`] or the end of this life.
    pub fn hold_syncs(&self) {
        self.machine().holds_syncs = true;
    }

    /// Lets syncs go on. They make durable what was written before they were called.
    pub fn release_syncs(&self) {
        self.machine().release_syncs();
        self.shared.changed.notify_all();
    }

    /// Waits until a sync hangs because of [`Self::hold_syncs`].
    pub fn wait_for_held_sync(&self) {
        let mut machine = self.machine();
        while machine.held_syncs == 0 {
            machine = self.wait(machine);
        }
    }

    // Counters.

    /// Syncs of files since the machine was made, failed ones included.
    pub fn syncs(&self) -> u64 {
        self.machine().counters.syncs
    }

    /// Syncs of the folder since the machine was made, failed ones included.
    pub fn directory_syncs(&self) -> u64 {
        self.machine().counters.directory_syncs
    }

    /// Writes since the machine was made, failed ones included.
    pub fn writes(&self) -> u64 {
        self.machine().counters.writes
    }

    /// Everything that [`Self::crash_at_operation`] counts, since the machine was made.
    pub fn operations(&self) -> u64 {
        self.machine().counters.operations
    }

    /// Bytes that all files take together.
    pub fn used_bytes(&self) -> u64 {
        self.machine().used_bytes()
    }

    // The way in.

    fn machine(&self) -> MutexGuard<'_, Machine> {
        let machine = &self.shared.machine;
        // A test that panicked has failed; the others may go on.
        machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, machine: MutexGuard<'a, Machine>) -> MutexGuard<'a, Machine> {
        let changed = &self.shared.changed;
        changed.wait(machine).unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine, if it is running and this is its life.
    fn enter(&self) -> io::Result<MutexGuard<'_, Machine>> {
        let machine = self.machine();
        self.check(&machine)?;
        Ok(machine)
    }

    fn check(&self, machine: &Machine) -> io::Result<()> {
        if self.life.is_some_and(|life| life != machine.life) {
            return Err(dead());
        }
        if machine.is_stopped {
            return Err(stopped());
        }
        Ok(())
    }

    fn handle(&self, machine: &mut Machine, node: u64, is_writable: bool) -> Arc<dyn MediumFile> {
        machine.add_handle(node);
        Arc::new(SimulatedFile {
            medium: Self { shared: Arc::clone(&self.shared), life: Some(machine.life) },
            node,
            is_writable,
        })
    }

    fn open_file(&self, name: &str, is_writable: bool) -> io::Result<Arc<dyn MediumFile>> {
        check_name(name)?;
        let mut machine = self.enter()?;
        let node = machine.open(name).map_err(|error| explain("open", name, &error))?;
        Ok(self.handle(&mut machine, node, is_writable))
    }
}

impl Medium for SimulatedMedium {
    fn list(&self) -> io::Result<Vec<FileStat>> {
        let machine = self.enter()?;
        let stats = machine.list().map(|(name, len)| FileStat { name: name.clone(), len });
        Ok(stats.collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        check_name(name)?;
        let mut machine = self.enter()?;
        let node = machine.create(name).map_err(|error| explain("create", name, &error))?;
        Ok(self.handle(&mut machine, node, true))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        self.open_file(name, true)
    }

    fn open_read(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        self.open_file(name, false)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(from)?;
        check_name(to)?;
        let renamed = self.enter()?.rename(from, to);
        renamed.map_err(|error| explain("rename", &format!("{from} to {to}"), &error))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        let removed = self.enter()?.remove(name);
        removed.map_err(|error| explain("remove", name, &error))
    }

    fn sync_directory(&self) -> io::Result<()> {
        let synced = self.enter()?.sync_directory();
        synced.map_err(|error| explain("sync", "the folder", &error))
    }

    fn lock(&self, exclusive: bool) -> Result<Box<dyn Any + Send + Sync>, LockError> {
        let mut machine = self.enter()?;
        machine.holders.take(exclusive)?;
        Ok(Box::new(SimulatedLock { medium: self.clone(), life: machine.life }))
    }

    /// Without a limit, more than anybody writes; it fits a signed counter too.
    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.enter()?.free_bytes())
    }

    fn is_persistent(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        "a simulated machine".to_owned()
    }
}

/// A lock of the folder; gives it back when dropped, unless a crash or kill already has.
#[derive(Debug)]
struct SimulatedLock {
    medium: SimulatedMedium,
    life: u64,
}

impl Drop for SimulatedLock {
    fn drop(&mut self) {
        let mut machine = self.medium.machine();
        if machine.life == self.life {
            machine.holders.give_back();
        }
    }
}

/// An open file; works only in the life in which it was opened.
#[derive(Debug)]
struct SimulatedFile {
    medium: SimulatedMedium,
    node: u64,
    is_writable: bool,
}

impl SimulatedFile {
    fn enter_to_write(&self) -> io::Result<MutexGuard<'_, Machine>> {
        let machine = self.medium.enter()?;
        if self.is_writable { Ok(machine) } else { Err(Errno::BADF.into()) }
    }

    /// A sync that hangs. Another thread may write meanwhile: that is not part of it.
    fn sync_held(&self, mut machine: MutexGuard<'_, Machine>, fate: SyncFate) -> io::Result<()> {
        let in_flight = machine.inode(self.node)?.begin_sync();
        machine.held_syncs += 1;
        self.medium.shared.changed.notify_all();
        let releases = machine.sync_releases;
        while machine.sync_releases == releases {
            machine = self.medium.wait(machine);
        }
        self.medium.check(&machine)?;
        if fate == SyncFate::Works {
            machine.inode_mut(self.node)?.finish_sync(in_flight);
            return Ok(());
        }
        machine.end_sync(self.node, fate)
    }
}

impl MediumFile for SimulatedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let machine = self.medium.enter()?;
        Ok(machine.inode(self.node)?.read_at(buffer, offset))
    }

    fn write_all_at(&self, chunks: &[&[u8]], offset: u64) -> io::Result<()> {
        let mut machine = self.enter_to_write()?;
        machine.write(self.node, chunks, offset)
    }

    /// As if they were written: what has room taken and was never written reads as zeros either way.
    fn allocate(&self, len: u64) -> io::Result<bool> {
        let zeros = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        self.write_all_at(&[&zeros], 0)?;
        Ok(true)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut machine = self.medium.enter()?;
        let fate = machine.begin_sync();
        if machine.holds_syncs && fate != SyncFate::Stops {
            return self.sync_held(machine, fate);
        }
        machine.end_sync(self.node, fate)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.medium.enter()?.inode(self.node)?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.enter_to_write()?.set_len(self.node, len)
    }
}

impl Drop for SimulatedFile {
    fn drop(&mut self) {
        let mut machine = self.medium.machine();
        if self.medium.life == Some(machine.life) {
            machine.drop_handle(self.node);
        }
    }
}

/// Says what failed on which file; keeps the kind.
fn explain(action: &str, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("could not {action} {what}: {error}"))
}
