//! The state of a simulated machine: names, files, the journal of the folder, faults, counters.

use std::collections::BTreeMap;
use std::io;

use rustix::io::Errno;

use super::inode::Inode;
use super::rng::SimulatedRng;
use crate::medium::memory::Holders;

/// Longest simulated file, in bytes.
const FILE_LEN_BYTES_MAX: u64 = 1 << 30;

/// How often, on average, an operation is followed by the system writing something back on its own:
/// often enough that old versions of a sector land, seldom enough that much stays unsynced.
const WRITE_BACK_ONE_IN: u64 = 8;

/// What everything in one simulated machine shares.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) rng: SimulatedRng,
    nodes: BTreeMap<u64, Node>,
    next_node: u64,
    /// The folder as programs see it.
    names: BTreeMap<String, u64>,
    /// The folder as it would be after a power cut now.
    disk_names: BTreeMap<String, u64>,
    /// What leads from `disk_names` to `names`, in order.
    journal: Vec<Change>,
    pub(super) holders: Holders,
    /// Counts crashes and kills: what was opened in an earlier life is dead.
    pub(super) life: u64,
    /// Set by `crash_at_operation`: nothing works until the next crash or kill.
    pub(super) is_stopped: bool,
    pub(super) faults: Faults,
    pub(super) counters: Counters,
    pub(super) capacity_bytes: Option<u64>,
    pub(super) files_max: Option<usize>,
    pub(super) write_back_one_in: u64,
    pub(super) holds_syncs: bool,
    /// Syncs that hang now.
    pub(super) held_syncs: u64,
    /// Counts the times that all of them were let go.
    pub(super) sync_releases: u64,
}

/// A file and how many handles of this life are open on it.
#[derive(Debug, Clone, Default)]
struct Node {
    inode: Inode,
    handles: u64,
}

/// One change of the folder.
#[derive(Debug, Clone)]
enum Change {
    Create { name: String, node: u64 },
    Rename { from: String, to: String },
    Remove { name: String },
}

/// Faults that are waiting for their moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    pub(super) stop: Countdown,
    pub(super) sync: Countdown,
    pub(super) directory_sync: Countdown,
    pub(super) write: Countdown,
    pub(super) short_write: Countdown,
}

/// Strikes at the n-th tick from the time it was set, once.
#[derive(Debug, Clone, Default)]
pub(super) struct Countdown(u64);

impl Countdown {
    /// 0 takes it back.
    pub(super) fn set(&mut self, ticks: u64) {
        self.0 = ticks;
    }

    fn tick(&mut self) -> bool {
        let strikes = self.0 == 1;
        self.0 = self.0.saturating_sub(1);
        strikes
    }
}

/// What has been done since the machine was made.
#[derive(Debug, Clone, Default)]
pub(super) struct Counters {
    pub(super) operations: u64,
    pub(super) syncs: u64,
    pub(super) directory_syncs: u64,
    pub(super) writes: u64,
}

/// How a sync will end, decided when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SyncFate {
    Works,
    Fails,
    /// The machine stops in the middle of it.
    Stops,
}

impl Machine {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: SimulatedRng::new(seed),
            nodes: BTreeMap::new(),
            next_node: 0,
            names: BTreeMap::new(),
            disk_names: BTreeMap::new(),
            journal: Vec::new(),
            holders: Holders::default(),
            life: 0,
            is_stopped: false,
            faults: Faults::default(),
            counters: Counters::default(),
            capacity_bytes: None,
            files_max: None,
            write_back_one_in: WRITE_BACK_ONE_IN,
            holds_syncs: false,
            held_syncs: 0,
            sync_releases: 0,
        }
    }

    // Looking.

    pub(super) fn list(&self) -> impl Iterator<Item = (&String, u64)> {
        let len = |node| self.nodes.get(node).map_or(0, |node| node.inode.len());
        self.names.iter().map(move |(name, node)| (name, len(node)))
    }

    pub(super) fn used_bytes(&self) -> u64 {
        let nodes = self.names.values().filter_map(|node| self.nodes.get(node));
        nodes.map(|node| node.inode.allocated()).sum()
    }

    pub(super) fn inode(&self, node: u64) -> io::Result<&Inode> {
        match self.nodes.get(&node) {
            Some(node) => Ok(&node.inode),
            None => Err(dead()),
        }
    }

    // Names.

    pub(super) fn create(&mut self, name: &str) -> io::Result<u64> {
        let happens = self.begin();
        if self.names.contains_key(name) {
            return self.end(Err(Errno::EXIST.into()));
        }
        if self.files_max.is_some_and(|max| self.names.len() >= max) {
            return self.end(Err(Errno::NOSPC.into()));
        }
        let node = self.next_node;
        if happens {
            self.next_node += 1;
            self.nodes.insert(node, Node::default());
            let name = name.to_owned();
            self.change(Change::Create { name, node });
        }
        self.end(Ok(node))
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let happens = self.begin();
        if self.names.contains_key(to) {
            return self.end(Err(Errno::EXIST.into()));
        }
        if !self.names.contains_key(from) {
            return self.end(Err(Errno::NOENT.into()));
        }
        if happens {
            let (from, to) = (from.to_owned(), to.to_owned());
            self.change(Change::Rename { from, to });
        }
        self.end(Ok(()))
    }

    pub(super) fn remove(&mut self, name: &str) -> io::Result<()> {
        let happens = self.begin();
        if !self.names.contains_key(name) {
            return self.end(Err(Errno::NOENT.into()));
        }
        if happens {
            let name = name.to_owned();
            self.change(Change::Remove { name });
        }
        self.end(Ok(()))
    }

    pub(super) fn sync_directory(&mut self) -> io::Result<()> {
        self.counters.directory_syncs += 1;
        let fails = self.faults.directory_sync.tick();
        self.begin();
        if fails || self.is_stopped {
            self.commit_some();
            return self.end(Err(Errno::IO.into()));
        }
        self.commit(self.journal.len());
        Ok(())
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.names, &change);
        self.journal.push(change);
    }

    /// Brings the first changes to the disk.
    fn commit(&mut self, count: usize) {
        for change in self.journal.drain(..count.min(self.journal.len())) {
            apply(&mut self.disk_names, &change);
        }
        self.forget_unreachable();
    }

    /// Brings a random number of changes to the disk, in their order: file systems journal them.
    fn commit_some(&mut self) {
        let count = self.rng.below(self.journal.len() as u64 + 1);
        self.commit(usize::try_from(count).unwrap_or(usize::MAX));
    }

    // Handles.

    pub(super) fn open(&mut self, name: &str) -> io::Result<u64> {
        match self.names.get(name) {
            Some(node) => Ok(*node),
            None => Err(Errno::NOENT.into()),
        }
    }

    pub(super) fn add_handle(&mut self, node: u64) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.handles += 1;
        }
    }

    pub(super) fn drop_handle(&mut self, number: u64) {
        let Some(node) = self.nodes.get_mut(&number) else {
            return;
        };
        node.handles = node.handles.saturating_sub(1);
        if node.handles == 0 && !self.names.values().any(|named| *named == number) {
            self.forget_unreachable();
        }
    }

    /// Gives back files that no name, no handle and no power cut leads to any more.
    fn forget_unreachable(&mut self) {
        let mut reachable: Vec<u64> = self.names.values().copied().collect();
        reachable.extend(self.disk_names.values());
        reachable.extend(self.journal.iter().filter_map(|change| match change {
            Change::Create { node, .. } => Some(node),
            _ => None,
        }));
        reachable.sort_unstable();
        self.nodes.retain(|number, node| node.handles > 0 || reachable.binary_search(number).is_ok());
    }

    // Bytes.

    pub(super) fn write(&mut self, node: u64, chunks: &[&[u8]], offset: u64) -> io::Result<()> {
        let total: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        check_len(offset.saturating_add(total))?;
        self.counters.writes += 1;
        let fails = self.faults.write.tick();
        let is_short = self.faults.short_write.tick();
        self.begin();
        let mut limit = total;
        let mut result = Ok(());
        if self.is_stopped || fails {
            limit = self.rng.below(total + 1);
            result = Err(Errno::IO.into());
        } else if is_short {
            limit = self.rng.below(total);
            result = Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "the simulated disk took no more bytes and gave no reason",
            ));
        }
        let space = self.free_bytes();
        let Some(found) = self.nodes.get_mut(&node) else {
            return Err(dead());
        };
        let fits = found.inode.fitting(offset, limit, space);
        if fits < limit {
            limit = fits;
            result = result.and(Err(Errno::NOSPC.into()));
        }
        found.inode.write(chunks, offset, limit);
        self.write_back(node);
        self.end(result)
    }

    pub(super) fn set_len(&mut self, node: u64, len: u64) -> io::Result<()> {
        check_len(len)?;
        if self.begin() {
            let Some(found) = self.nodes.get_mut(&node) else {
                return Err(dead());
            };
            found.inode.set_len(len);
            self.write_back(node);
        }
        self.end(Ok(()))
    }

    /// Counts a sync and says how it will end.
    pub(super) fn begin_sync(&mut self) -> SyncFate {
        self.counters.syncs += 1;
        let fails = self.faults.sync.tick();
        self.begin();
        if self.is_stopped {
            SyncFate::Stops
        } else if fails {
            SyncFate::Fails
        } else {
            SyncFate::Works
        }
    }

    /// Ends a sync. One that works covers what is written by now.
    pub(super) fn end_sync(&mut self, node: u64, fate: SyncFate) -> io::Result<()> {
        let Some(found) = self.nodes.get_mut(&node) else {
            return Err(dead());
        };
        match fate {
            SyncFate::Works => {
                found.inode.sync();
                Ok(())
            }
            SyncFate::Fails => {
                found.inode.fail_sync(&mut self.rng);
                Err(Errno::IO.into())
            }
            SyncFate::Stops => {
                found.inode.half_sync(&mut self.rng);
                Err(stopped())
            }
        }
    }

    pub(super) fn inode_mut(&mut self, node: u64) -> io::Result<&mut Inode> {
        match self.nodes.get_mut(&node) {
            Some(node) => Ok(&mut node.inode),
            None => Err(dead()),
        }
    }

    pub(super) fn free_bytes(&self) -> u64 {
        match self.capacity_bytes {
            Some(capacity) => capacity.saturating_sub(self.used_bytes()),
            None => i64::MAX.unsigned_abs(),
        }
    }

    /// Now and then the system writes something back that nobody asked for.
    fn write_back(&mut self, node: u64) {
        if !self.rng.chance(self.write_back_one_in) {
            return;
        }
        if let Some(found) = self.nodes.get_mut(&node) {
            found.inode.write_back(&mut self.rng);
        }
        if self.rng.chance(4) {
            self.commit_some();
        }
    }

    // Faults.

    /// Counts an operation. False if the machine stops at it, and it does not happen; one that
    /// happens may still be followed by the stop.
    fn begin(&mut self) -> bool {
        self.counters.operations += 1;
        if self.faults.stop.tick() {
            self.is_stopped = true;
            return self.rng.chance(2);
        }
        true
    }

    /// A machine that has stopped answers nothing any more.
    fn end<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if self.is_stopped { Err(stopped()) } else { result }
    }

    pub(super) fn crash(&mut self, loses_unsynced: bool) {
        if !loses_unsynced {
            self.commit_some();
        }
        self.journal.clear();
        self.names.clone_from(&self.disk_names);
        self.begin_life();
        for node in self.nodes.values_mut() {
            if loses_unsynced {
                node.inode.crash_losing_unsynced(&mut self.rng);
            } else {
                node.inode.crash(&mut self.rng);
            }
        }
    }

    pub(super) fn kill(&mut self) {
        self.begin_life();
    }

    fn begin_life(&mut self) {
        self.life += 1;
        self.is_stopped = false;
        self.faults = Faults::default();
        self.holders = Holders::default();
        self.release_syncs();
        for node in self.nodes.values_mut() {
            node.handles = 0;
        }
        self.forget_unreachable();
    }

    pub(super) fn release_syncs(&mut self) {
        self.holds_syncs = false;
        self.held_syncs = 0;
        self.sync_releases += 1;
    }

    pub(super) fn drop_caches(&mut self) {
        for node in self.nodes.values_mut() {
            node.inode.drop_cache();
        }
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: &Change) {
    match change {
        Change::Create { name, node } => {
            names.insert(name.clone(), *node);
        }
        Change::Rename { from, to } => {
            if let Some(node) = names.remove(from) {
                names.insert(to.clone(), node);
            }
        }
        Change::Remove { name } => {
            names.remove(name);
        }
    }
}

fn check_len(len: u64) -> io::Result<()> {
    if len <= FILE_LEN_BYTES_MAX {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::FileTooLarge,
        format!("a simulated file cannot be {len} bytes long; the limit is {FILE_LEN_BYTES_MAX}"),
    ))
}

/// The answer to everything after the machine stopped.
pub(super) fn stopped() -> io::Error {
    io::Error::other("the simulated machine has stopped; crash or kill it to start it again")
}

/// The answer to a handle of an earlier life.
pub(super) fn dead() -> io::Error {
    io::Error::other("the simulated machine was started again since; open the folder anew")
}
