//! What a walk does about what lies below the stamp of a checkpoint: as little as it can.

use crate::error::OpenError;
use crate::footer;
use crate::index::SegmentIndex;
use crate::medium::read_exact_at;
use crate::segment::file_offset;
use crate::survey::{End, Part};

use super::Walk;

/// A segment that lost its trailing zeros has something else in its last bytes.
const LAST_BYTES: u64 = 4_096;

impl Walk<'_> {
    /// A segment that lies wholly below the stamp: where it ends, if its footer fits. Otherwise it must be read.
    pub(super) fn pass_over(&mut self, part: &Part, next: &Part) -> Result<Option<u64>, OpenError> {
        let Some(footer) = self.footer_of(part).filter(|footer| footer.end <= next.header.base) else {
            return Ok(None);
        };
        if footer.end < next.header.base && self.decided_end(part, next)? != Some(footer.end) {
            return Ok(None);
        }
        if matches!(part.end, End::Within(_)) && footer.end == next.header.base {
            // Nobody but its own entries says that it reaches up to there.
            return Ok(None);
        }
        self.adopt(&footer);
        if part.file_len > file_offset(part.header.base, footer.end) && self.ends_in_zeros(part)? {
            self.look_behind(part, footer.end)?;
        }
        Ok(Some(footer.end))
    }

    /// The footer of a segment, if it is of just this one.
    pub(super) fn footer_of(&self, part: &Part) -> Option<SegmentIndex> {
        // One that can't be read is made anew.
        let footer = footer::read(self.folder.medium, part.header.number).ok()??;
        self.count_read(footer::encoded_len(&footer));
        (footer.salt == part.header.salt && footer.base == part.header.base).then_some(footer)
    }

    pub(super) fn adopt(&mut self, footer: &SegmentIndex) {
        if let Some(index) = &mut self.index {
            index.adopt(footer);
        }
    }

    fn ends_in_zeros(&self, part: &Part) -> Result<bool, OpenError> {
        let at = part.file_len.saturating_sub(LAST_BYTES);
        let mut bytes = vec![0; (part.file_len - at) as usize];
        self.folder.run("read a segment", read_exact_at(part.file.as_ref(), &mut bytes, at))?;
        self.count_read(bytes.len() as u64);
        Ok(bytes.iter().all(|byte| *byte == 0))
    }

    /// The log ends at `end`, before the stamp: what is missing was durable. The checkpoint holds what the fold needs of it.
    pub(super) fn lost_before_the_stamp(&mut self, segment: u64, end: u64) {
        let missing = end..self.from();
        self.hole(segment, missing.clone());
        self.findings.new_holes.push(missing);
    }
}
