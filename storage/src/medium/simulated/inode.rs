//! One simulated file: what its page cache shows, and what would be on the disk.
//!
//! Only the cache is kept whole. Of the disk, only the sectors that differ are kept, so a power cut
//! costs no more than the sectors that were not synced.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::rng::SimulatedRng;

/// What a disk writes whole or not at all: a torn sector holds old or new bytes.
const SECTOR_SIZE_BYTES: usize = 512;

const ZEROS: [u8; SECTOR_SIZE_BYTES] = [0; SECTOR_SIZE_BYTES];

/// Unsynced lengths that are remembered as candidates for a power cut; older ones are forgotten.
const UNSYNCED_LENS_MAX: usize = 16;

/// Longest run of sectors that is written back at once behind the scenes.
const WRITE_BACK_RUN_MAX: u64 = 32;

/// A file without a name.
#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    /// What reads show. Shared between copies of a machine until one of them writes.
    cache: Arc<Vec<u8>>,
    /// Sectors of which the disk may hold something else than the cache, by number. May lie behind
    /// the cache's end: those were cut off, and are back if the cut is lost.
    differing: BTreeMap<u64, Sector>,
    /// Length on the disk.
    disk_len: LenChange,
    /// Lengths since `disk_len`, in order; the last is that of the cache.
    unsynced_lens: VecDeque<LenChange>,
    /// Parts that take no space: the file was grown over them without writing there.
    holes: Holes,
}

/// A length that the file has had.
#[derive(Debug, Clone, Copy, Default)]
struct LenChange {
    /// Counted from 0, the length of the new file.
    number: u64,
    len: u64,
}

/// A sector that the disk does not hold as the cache shows it.
#[derive(Debug, Clone)]
struct Sector {
    /// What the disk holds; `None` are zeros.
    disk: Option<Box<[u8; SECTOR_SIZE_BYTES]>>,
    /// Whether the next sync writes it. Not after a failed sync: the sector is then thought clean.
    is_dirty: bool,
}

/// The bytes that a sync found dirty when it began.
#[derive(Debug)]
pub(super) struct SyncInFlight {
    sectors: Vec<(u64, Box<[u8; SECTOR_SIZE_BYTES]>)>,
    len: LenChange,
}

impl Inode {
    pub(super) fn len(&self) -> u64 {
        self.cache.len() as u64
    }

    /// Bytes of the disk that the file takes.
    pub(super) fn allocated(&self) -> u64 {
        self.len() - self.holes.total()
    }

    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> usize {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        copy_start(buffer, self.cache.get(start..).unwrap_or_default())
    }

    /// How many of `count` bytes at `offset` can be written if the file may take `space` more bytes.
    pub(super) fn fitting(&self, offset: u64, count: u64, space: u64) -> u64 {
        let needed = |count: u64| {
            let end = offset + count;
            self.holes.overlap(offset, end) + end.saturating_sub(self.len().max(offset))
        };
        if needed(count) <= space {
            return count;
        }
        // What is needed only grows with the count: the last count that fits is found by halving.
        let (mut fits, mut too_many) = (0, count);
        while too_many - fits > 1 {
            let middle = fits + (too_many - fits) / 2;
            if needed(middle) <= space {
                fits = middle;
            } else {
                too_many = middle;
            }
        }
        fits
    }

    /// Writes at most `limit` of the chunks' bytes into the cache.
    pub(super) fn write(&mut self, chunks: &[&[u8]], offset: u64, limit: u64) {
        let mut position = offset;
        let mut left = usize::try_from(limit).unwrap_or(usize::MAX);
        for chunk in chunks {
            let part = chunk.get(..left).unwrap_or(chunk);
            self.write_part(part, position);
            position += part.len() as u64;
            left -= part.len();
        }
    }

    fn write_part(&mut self, bytes: &[u8], offset: u64) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len() as u64;
        for number in sector_of(offset)..=sector_of(end - 1) {
            self.touch(number);
        }
        if end > self.len() {
            self.grow(end);
        }
        self.holes.remove(offset, end);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(place) = Arc::make_mut(&mut self.cache).get_mut(start..start + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len > self.len() {
            self.grow(len);
        } else if len < self.len() {
            self.cut(len);
        }
    }

    /// Grows the file by a hole.
    fn grow(&mut self, len: u64) {
        let old_len = self.len();
        // Sectors that were cut off earlier and come back as zeros: the disk may still hold what
        // they were.
        let first_behind = old_len.div_ceil(SECTOR_SIZE_BYTES as u64);
        for (_, sector) in self.differing.range_mut(first_behind..) {
            sector.is_dirty = true;
        }
        let new_len = usize::try_from(len).unwrap_or(usize::MAX);
        Arc::make_mut(&mut self.cache).resize(new_len, 0);
        self.holes.insert(old_len, len);
        self.note_len();
    }

    fn cut(&mut self, len: u64) {
        let first_behind = len.div_ceil(SECTOR_SIZE_BYTES as u64);
        if !len.is_multiple_of(SECTOR_SIZE_BYTES as u64) {
            // The rest of this sector becomes zeros.
            self.touch(sector_of(len));
        }
        for number in first_behind..self.len().div_ceil(SECTOR_SIZE_BYTES as u64) {
            if self.differing.contains_key(&number) {
                continue;
            }
            if let Some(disk) = self.cached_sector(number) {
                let sector = Sector { disk: Some(disk), is_dirty: false };
                self.differing.insert(number, sector);
            }
        }
        for (_, sector) in self.differing.range_mut(first_behind..) {
            sector.is_dirty = false;
        }
        let new_len = usize::try_from(len).unwrap_or(usize::MAX);
        Arc::make_mut(&mut self.cache).truncate(new_len);
        self.holes.truncate(len);
        self.note_len();
    }

    /// Marks a sector as one that the next sync writes, and keeps what the disk holds of it.
    fn touch(&mut self, number: u64) {
        if let Some(sector) = self.differing.get_mut(&number) {
            sector.is_dirty = true;
            return;
        }
        // No entry means that the disk holds what the cache does.
        let sector = Sector { disk: self.cached_sector(number), is_dirty: true };
        self.differing.insert(number, sector);
    }

    /// A sector as the cache shows it; `None` if that is zeros only.
    fn cached_sector(&self, number: u64) -> Option<Box<[u8; SECTOR_SIZE_BYTES]>> {
        let start = sector_start(number);
        let rest = self.cache.get(start..)?;
        let bytes = rest.get(..SECTOR_SIZE_BYTES).unwrap_or(rest);
        if ZEROS.starts_with(bytes) {
            return None;
        }
        let mut sector = Box::new(ZEROS);
        copy_start(sector.as_mut_slice(), bytes);
        Some(sector)
    }

    fn cached_len(&self) -> LenChange {
        *self.unsynced_lens.back().unwrap_or(&self.disk_len)
    }

    fn note_len(&mut self) {
        let number = self.cached_len().number + 1;
        if self.unsynced_lens.len() == UNSYNCED_LENS_MAX {
            self.unsynced_lens.pop_front();
        }
        let len = self.len();
        self.unsynced_lens.push_back(LenChange { number, len });
    }

    /// Brings the length of the cache to the disk.
    fn land_len(&mut self) {
        self.disk_len = self.cached_len();
        self.unsynced_lens.clear();
        let first_behind = self.len().div_ceil(SECTOR_SIZE_BYTES as u64);
        self.differing.split_off(&first_behind);
    }

    /// A sync that works: everything that is dirty reaches the disk. What an earlier failed sync
    /// left behind does not.
    pub(super) fn sync(&mut self) {
        self.differing.retain(|_, sector| !sector.is_dirty);
        self.land_len();
    }

    /// A sync that takes its time: what is written while it runs is not part of it.
    pub(super) fn begin_sync(&self) -> SyncInFlight {
        let dirty = self.differing.iter().filter(|(_, sector)| sector.is_dirty);
        let sectors = dirty.map(|(number, _)| {
            let bytes = self.cached_sector(*number);
            (*number, bytes.unwrap_or_else(|| Box::new(ZEROS)))
        });
        SyncInFlight { sectors: sectors.collect(), len: self.cached_len() }
    }

    pub(super) fn finish_sync(&mut self, sync: SyncInFlight) {
        for (number, bytes) in sync.sectors {
            let cached = self.cached_sector(number);
            let is_unchanged = match &cached {
                Some(cached) => *cached == bytes,
                None => *bytes == ZEROS,
            };
            if is_unchanged {
                self.differing.remove(&number);
            } else if let Some(sector) = self.differing.get_mut(&number) {
                sector.disk = Some(bytes);
            }
        }
        if sync.len.number == self.cached_len().number {
            self.land_len();
        } else if sync.len.number > self.disk_len.number {
            self.disk_len = sync.len;
            self.unsynced_lens.retain(|change| change.number > sync.len.number);
        }
    }

    /// A sync that fails as Linux does it: some sectors reach the disk, the others do not but are
    /// taken for clean all the same, so that no later sync writes them. The length, which stands in
    /// the journal, stays to be written.
    pub(super) fn fail_sync(&mut self, rng: &mut SimulatedRng) {
        self.land_some(rng);
        self.differing.values_mut().for_each(|sector| sector.is_dirty = false);
    }

    /// A sync that the machine stops in the middle of.
    pub(super) fn half_sync(&mut self, rng: &mut SimulatedRng) {
        self.land_some(rng);
        if rng.chance(2) {
            self.land_len();
        }
    }

    fn land_some(&mut self, rng: &mut SimulatedRng) {
        let landing = Landing::draw(rng, self.dirty_count());
        let mut index = 0;
        self.differing.retain(|_, sector| {
            if !sector.is_dirty {
                return true;
            }
            index += 1;
            !landing.lands(index - 1, rng)
        });
    }

    /// What the system writes back on its own: a few sectors from anywhere, perhaps the length.
    pub(super) fn write_back(&mut self, rng: &mut SimulatedRng) {
        let first = self.differing.first_key_value().map(|(number, _)| *number);
        let last = self.differing.last_key_value().map(|(number, _)| *number);
        if let (Some(first), Some(last)) = (first, last) {
            let start = first + rng.below(last - first + 1);
            let run = 1 + rng.below(WRITE_BACK_RUN_MAX);
            let landed: Vec<u64> = self
                .differing
                .range(start..start.saturating_add(run))
                .filter(|(_, sector)| sector.is_dirty)
                .map(|(number, _)| *number)
                .collect();
            for number in landed {
                self.differing.remove(&number);
            }
        }
        if rng.chance(2) {
            self.land_len();
        }
    }

    /// A power cut: each unsynced sector has reached the disk or not, and so has each length.
    pub(super) fn crash(&mut self, rng: &mut SimulatedRng) {
        let candidates = self.unsynced_lens.len() as u64 + 1;
        let picked = rng.below(candidates).checked_sub(1);
        let change =
            picked.and_then(|picked| usize::try_from(picked).ok()).and_then(|picked| self.unsynced_lens.get(picked));
        let mut len = change.unwrap_or(&self.disk_len).len;
        // A file grows on the disk as its sectors arrive, so it may end between two lengths.
        if len > self.disk_len.len && rng.chance(4) {
            let sectors = (len - self.disk_len.len) / SECTOR_SIZE_BYTES as u64;
            len -= rng.below(sectors + 1) * SECTOR_SIZE_BYTES as u64;
        }
        let landing = Landing::draw(rng, self.dirty_count());
        self.settle(len, &landing, rng);
    }

    /// A power cut after which nothing is there that was not synced or written back.
    pub(super) fn crash_losing_unsynced(&mut self, rng: &mut SimulatedRng) {
        self.settle(self.disk_len.len, &Landing::Nothing, rng);
    }

    /// Makes the cache what the disk holds once the chosen sectors and this length are on it.
    fn settle(&mut self, len: u64, landing: &Landing, rng: &mut SimulatedRng) {
        let differing = std::mem::take(&mut self.differing);
        if len != self.len() || !differing.is_empty() {
            let final_len = usize::try_from(len).unwrap_or(usize::MAX);
            let cache = Arc::make_mut(&mut self.cache);
            cache.resize(cache.len().max(final_len), 0);
            let mut index = 0;
            for (number, sector) in differing {
                if sector.is_dirty {
                    index += 1;
                    if landing.lands(index - 1, rng) {
                        continue;
                    }
                }
                restore(cache, number, &sector);
            }
            cache.truncate(final_len);
        }
        self.disk_len = LenChange { number: self.cached_len().number + 1, len };
        self.unsynced_lens.clear();
        self.holes.truncate(len);
    }

    /// The system drops what it takes for clean, and reads it from the disk again.
    pub(super) fn drop_cache(&mut self) {
        let len = self.len();
        let cache = Arc::make_mut(&mut self.cache);
        self.differing.retain(|number, sector| {
            let is_kept = sector.is_dirty || number * SECTOR_SIZE_BYTES as u64 >= len;
            if !is_kept {
                restore(cache, *number, sector);
            }
            is_kept
        });
    }

    /// Changes one bit wherever the byte is stored. False if the file is shorter.
    pub(super) fn flip_bit(&mut self, offset: u64, bit: u8) -> bool {
        let mask = 1_u8 << (bit % 8);
        let index = usize::try_from(offset).unwrap_or(usize::MAX);
        let Some(byte) = Arc::make_mut(&mut self.cache).get_mut(index) else {
            return false;
        };
        *byte ^= mask;
        if let Some(sector) = self.differing.get_mut(&sector_of(offset)) {
            let disk = sector.disk.get_or_insert_with(|| Box::new(ZEROS));
            if let Some(byte) = disk.get_mut(index % SECTOR_SIZE_BYTES) {
                *byte ^= mask;
            }
        }
        true
    }

    fn dirty_count(&self) -> u64 {
        let dirty = self.differing.values().filter(|sector| sector.is_dirty);
        dirty.count() as u64
    }
}

/// Puts what the disk holds of a sector into the cache.
fn restore(cache: &mut [u8], number: u64, sector: &Sector) {
    let place = cache.get_mut(sector_start(number)..).unwrap_or_default();
    copy_start(place, sector.disk.as_deref().unwrap_or(&ZEROS));
}

/// Copies as many bytes as both have. Returns how many.
fn copy_start(to: &mut [u8], from: &[u8]) -> usize {
    let count = to.len().min(from.len());
    if let (Some(to), Some(from)) = (to.get_mut(..count), from.get(..count)) {
        to.copy_from_slice(from);
    }
    count
}

fn sector_of(offset: u64) -> u64 {
    offset / SECTOR_SIZE_BYTES as u64
}

fn sector_start(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX).saturating_mul(SECTOR_SIZE_BYTES)
}

/// Which of a number of dirty sectors reach the disk.
///
/// Independent coins alone would hardly ever show the plain cases, such as all but one.
#[derive(Debug)]
enum Landing {
    Nothing,
    Everything,
    /// Those before this one.
    Before(u64),
    /// This one and those behind it: reordered.
    From(u64),
    AllBut(u64),
    /// Each on its own, in so many of 256 cases.
    Each(u64),
}

impl Landing {
    fn draw(rng: &mut SimulatedRng, dirty_count: u64) -> Self {
        let picked = rng.below(dirty_count);
        match rng.below(8) {
            0 => Self::Nothing,
            1 => Self::Everything,
            2 => Self::Before(picked),
            3 => Self::From(picked),
            4 => Self::AllBut(picked),
            _ => Self::Each(1 + rng.below(255)),
        }
    }

    fn lands(&self, index: u64, rng: &mut SimulatedRng) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Before(end) => index < *end,
            Self::From(start) => index >= *start,
            Self::AllBut(lost) => index != *lost,
            Self::Each(of_256) => rng.below(256) < *of_256,
        }
    }
}

/// Ranges of a file that take no space: half-open, disjoint, by their start.
#[derive(Debug, Clone, Default)]
struct Holes {
    ranges: BTreeMap<u64, u64>,
}

impl Holes {
    fn total(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    fn overlap(&self, start: u64, end: u64) -> u64 {
        let before_end = self.ranges.range(..end);
        let parts = before_end.map(|(from, to)| (*to).min(end).saturating_sub((*from).max(start)));
        parts.sum()
    }

    /// Adds a range that overlaps none of the others.
    fn insert(&mut self, start: u64, end: u64) {
        self.ranges.insert(start, end);
    }

    fn remove(&mut self, start: u64, end: u64) {
        let hit = |(from, to): (&u64, &u64)| (*to > start).then_some((*from, *to));
        let hits: Vec<(u64, u64)> = self.ranges.range(..end).filter_map(hit).collect();
        for (from, to) in hits {
            self.ranges.remove(&from);
            if from < start {
                self.ranges.insert(from, start);
            }
            if end < to {
                self.ranges.insert(end, to);
            }
        }
    }

    fn truncate(&mut self, len: u64) {
        self.remove(len, u64::MAX);
    }
}
