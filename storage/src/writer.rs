//! Commits groups: write, fdatasync, then the watermark. One at a time, in log order.
//!
//! Any failure poisons the writer for good. After a failed fdatasync the page cache holds bytes that will never reach
//! the disk, and a second fdatasync answers that all is well (measured on ext4, Linux 6.18), so nothing this writer could
//! say would be worth anything; only recovery, which writes the unproven tail again, can go on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::group::{Group, OpensSegment};
use crate::medium::{Medium, MediumFile};
use crate::segment::{SEGMENT_HEADER_LEN, file_offset, segment_name};
use crate::{Sabotage, Sabotages};

/// The log takes no more writes: what is on disk behind the durable position is unknown until it is opened again.
#[derive(Debug, thiserror::Error)]
#[error(
    "the log refuses writes after a failure to {step} ({segment}): {source}; restart the broker, which recovers all that was acknowledged"
)]
pub struct Poisoned {
    /// What was being done.
    pub step: &'static str,
    /// The segment's file name.
    pub segment: String,
    /// The first failure.
    #[source]
    pub source: io::Error,
}

/// In a file whose room was only taken, a group shorter than this is followed by all of it: one slow sync for so much log,
/// and not one for each small group. A longer group pays for its own.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// A segment that will not be written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// Its number.
    pub number: u64,
    /// The position behind its last entry.
    pub end: u64,
    /// Bytes of the file that are in use.
    pub file_len: u64,
}

/// A group that is durable and proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The durable position.
    pub end: u64,
    /// The segment that this group's opening of another one sealed.
    pub sealed: Option<Sealed>,
}

/// The one place that writes to the active segment.
#[derive(Debug)]
pub struct Writer {
    medium: Arc<dyn Medium>,
    file: Arc<dyn MediumFile>,
    number: u64,
    base: u64,
    /// Position behind all that was written, watermark included.
    end: u64,
    /// Where the active file ends, and up to where its blocks were written once: there a sync costs no commit of the file
    /// system's journal. Offsets in the file.
    file_len: u64,
    written_to: u64,
    /// A watermark was written and not synced.
    is_dirty: bool,
    poisoned: bool,
    sabotages: Sabotages,
    late_watermark: Option<(bytes::Bytes, u64)>,
}

impl Writer {
    pub(crate) fn new(
        medium: Arc<dyn Medium>,
        file: Arc<dyn MediumFile>,
        number: u64,
        base: u64,
        end: u64,
        sabotages: Sabotages,
    ) -> Self {
        Self {
            medium,
            file,
            number,
            base,
            end,
            // A start makes a file whose zeros were written.
            file_len: u64::MAX,
            written_to: u64::MAX,
            is_dirty: false,
            poisoned: false,
            sabotages,
            late_watermark: None,
        }
    }

    /// Writes, syncs and proves a group: the three steps one after the other.
    ///
    /// # Errors
    /// [`Poisoned`]: nothing of the group may be acknowledged, and no later group either.
    pub fn commit(&mut self, group: &mut Group) -> Result<Committed, Poisoned> {
        let sealed = self.write(group)?;
        self.sync()?;
        self.prove(group)?;
        Ok(Committed { end: group.end, sealed })
    }

    /// Step one: the group's bytes, behind the header of a new segment if the group begins one.
    ///
    /// # Errors
    /// [`Poisoned`].
    pub fn write(&mut self, group: &mut Group) -> Result<Option<Sealed>, Poisoned> {
        self.check()?;
        self.write_late_watermark()?;
        let sealed = match group.opens.take() {
            Some(opens) => Some(self.open_segment(opens)?),
            None => None,
        };
        let mut chunks: Vec<&[u8]> = group.chunks.iter().map(|chunk| chunk.bytes.as_ref()).collect();
        let position = group.chunks.first().map_or(group.end, |chunk| chunk.position);
        let zeros = self.zeros_behind(group.len(), file_offset(self.base, group.end));
        chunks.extend(ZEROS.get(..zeros));
        let written = self.file.append_at(&chunks, file_offset(self.base, position));
        self.or_poison("write a group", written)?;
        self.end = group.end;
        Ok(sealed)
    }

    /// How many zeros to write behind a group of `len` bytes that ends at `end` in the file, so that the groups behind it are
    /// synced as fast as in a file that was zeroed ahead.
    fn zeros_behind(&mut self, len: usize, end: u64) -> usize {
        if end <= self.written_to {
            return 0;
        }
        let room = usize::try_from(self.file_len.saturating_sub(end)).unwrap_or(usize::MAX);
        let zeros = if len < ZEROS.len() { room.min(ZEROS.len()) } else { 0 };
        self.written_to = end + zeros as u64;
        zeros
    }

    /// Step two: fdatasync, by the file descriptor that wrote.
    ///
    /// # Errors
    /// [`Poisoned`].
    pub fn sync(&mut self) -> Result<(), Poisoned> {
        self.check()?;
        if self.sabotages.has(Sabotage::AnswerBeforeSync) {
            return Ok(());
        }
        let mut synced = self.file.sync_data();
        if synced.is_err() && self.sabotages.has(Sabotage::RetryFailedSync) {
            synced = self.file.sync_data();
        }
        self.or_poison("sync the log", synced)?;
        self.is_dirty = false;
        Ok(())
    }

    /// Step three: the watermark behind the group, so that after a crash of the process no answered group is unproven.
    /// It is not synced by itself; [`Self::quiet`] or the next group does that.
    ///
    /// # Errors
    /// [`Poisoned`].
    pub fn prove(&mut self, group: &Group) -> Result<(), Poisoned> {
        self.check()?;
        if self.sabotages.has(Sabotage::AnswerBeforeWatermark) {
            self.late_watermark = Some((group.watermark.clone(), group.end));
            self.end = group.end + group.watermark.len() as u64;
            return Ok(());
        }
        let written = self.file.append_at(&[&group.watermark], file_offset(self.base, group.end));
        self.or_poison("write a watermark", written)?;
        self.end = group.end + group.watermark.len() as u64;
        self.is_dirty = true;
        Ok(())
    }

    /// Whether [`Self::quiet`] has something to sync.
    #[must_use]
    pub const fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Syncs the last watermark when no group has followed for a while, and at the end.
    ///
    /// # Errors
    /// [`Poisoned`].
    pub fn quiet(&mut self) -> Result<(), Poisoned> {
        self.write_late_watermark()?;
        if self.is_dirty { self.sync() } else { Ok(()) }
    }

    fn write_late_watermark(&mut self) -> Result<(), Poisoned> {
        if let Some((watermark, position)) = self.late_watermark.take() {
            let written = self.file.append_at(&[&watermark], file_offset(self.base, position));
            self.or_poison("write a watermark", written)?;
            self.is_dirty = true;
        }
        Ok(())
    }

    fn open_segment(&mut self, opens: OpensSegment) -> Result<Sealed, Poisoned> {
        // The base of the new segment claims that all before it is durable: so that has to be true first.
        if !self.sabotages.has(Sabotage::HeaderBeforeLastSync) {
            let synced = self.file.sync_data();
            self.or_poison("sync the last bytes of a segment", synced)?;
        }
        let header = opens.header;
        assert_eq!(header.base, self.end, "a segment begins where the one before ends");
        let sealed = Sealed { number: self.number, end: self.end, file_len: file_offset(self.base, self.end) };
        let previous = std::mem::replace(&mut self.file, Arc::clone(&opens.spare.file));
        self.number = header.number;
        self.base = header.base;
        self.file_len = header.file_len;
        self.written_to = if opens.spare.is_written { u64::MAX } else { 0 };
        let opened = write_header(self.medium.as_ref(), &opens.spare.file, &opens.spare.name, &header, self.sabotages);
        self.or_poison("open the next segment", opened)?;
        if self.sabotages.has(Sabotage::HeaderBeforeLastSync) {
            let synced = previous.sync_data();
            self.or_poison("sync the last bytes of a segment", synced)?;
        }
        self.is_dirty = false;
        Ok(sealed)
    }

    fn check(&self) -> Result<(), Poisoned> {
        if self.poisoned {
            let source = io::Error::other("an earlier write or sync failed");
            return Err(Poisoned { step: "go on", segment: segment_name(self.number), source });
        }
        Ok(())
    }

    /// The last sync has taken longer than is believed: nothing more is written, although it returned well in the end.
    pub fn distrust(&mut self, took: Duration) -> Poisoned {
        self.poisoned = true;
        let source = io::Error::new(io::ErrorKind::TimedOut, format!("it took {took:?}"));
        Poisoned { step: "sync in time", segment: segment_name(self.number), source }
    }

    fn or_poison<T>(&mut self, step: &'static str, outcome: io::Result<T>) -> Result<T, Poisoned> {
        outcome.map_err(|source| {
            self.poisoned = true;
            Poisoned { step, segment: segment_name(self.number), source }
        })
    }
}

/// Turns the file `name` into the segment of `header`: header, sync, rename, directory sync.
pub(crate) fn write_header(
    medium: &dyn Medium,
    file: &Arc<dyn MediumFile>,
    name: &str,
    header: &crate::SegmentHeader,
    sabotages: Sabotages,
) -> io::Result<()> {
    let bytes = header.encode();
    const _: () = assert!(2 * SEGMENT_HEADER_LEN == crate::segment::ENTRIES_AT as usize);
    file.append_at(&[&bytes, &bytes], 0)?;
    file.sync_data()?;
    medium.rename(name, &segment_name(header.number))?;
    if sabotages.has(Sabotage::NoDirectorySync) {
        return Ok(());
    }
    // The file's name lives in the directory: without this sync a power cut can lose the whole segment although every
    // byte in it was synced.
    medium.sync_directory()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::medium::MemoryMedium;

    fn writer(file_len: u64, written_to: u64) -> Writer {
        let medium = Arc::new(MemoryMedium::new());
        let file = medium.create("a").unwrap();
        Writer { file_len, written_to, ..Writer::new(medium, file, 1, 0, 0, Sabotages::default()) }
    }

    #[test]
    fn small_groups_in_room_that_was_only_taken_share_a_slow_sync() {
        let ahead = ZEROS.len() as u64;
        let mut writer = writer(1 << 20, 0);
        assert_eq!(writer.zeros_behind(100, 5_000), ZEROS.len());
        assert_eq!(writer.zeros_behind(100, 5_200), 0, "zeros were written there");
        assert_eq!(writer.zeros_behind(ZEROS.len() - 200, 5_000 + ahead), 0);
        assert_eq!(writer.zeros_behind(1, 5_001 + ahead), ZEROS.len(), "and here they end");
        // Large ones make their own way, and what they wrote counts.
        let end = 5_001 + 3 * ahead;
        assert_eq!(writer.zeros_behind(ZEROS.len(), end), 0);
        assert_eq!(writer.zeros_behind(1, end), 0);
        // The file does not grow.
        assert_eq!(writer.zeros_behind(100, (1 << 20) - 300), 300);
        assert_eq!(writer.zeros_behind(100, 1 << 20), 0);
    }

    #[test]
    fn nothing_is_written_behind_groups_where_zeros_were_written_ahead() {
        let mut writer = writer(1 << 20, u64::MAX);
        assert_eq!(writer.zeros_behind(100, 5_000), 0);
    }
}
