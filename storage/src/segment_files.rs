//! The segment files that readers have open, and where each segment begins and ends: its own header says the one, the
//! next one's the other, and where a header can't be read the one behind it says both.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use crate::medium::{Medium, MediumFile, read_exact_at};
use crate::segment::{self, HeaderCopy, Predecessor, SEGMENT_HEADER_LEN, SegmentHeader, segment_name};

/// Segment files kept open for reading.
const FILES_MAX: usize = 64;

/// Why a read failed; reading again may work.
#[derive(Debug, thiserror::Error)]
#[error("could not read {file}: {source}")]
pub struct ReadError {
    /// The file.
    pub file: String,
    /// The failure.
    #[source]
    pub source: io::Error,
}

/// A segment's file, and what its header says or should say.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(crate) header: SegmentHeader,
    pub(crate) file: Arc<dyn MediumFile>,
}

/// A segment whose header can't be read from its own file, or whose end not from the next one's, as recovery worked them
/// out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KnownSegment {
    pub(crate) header: SegmentHeader,
    /// Position behind its last entry.
    pub(crate) end: u64,
}

/// The segment files of a log, for reading.
#[derive(Debug)]
pub(crate) struct SegmentFiles {
    medium: Arc<dyn Medium>,
    /// The most recently used last.
    files: VecDeque<Arc<OpenSegment>>,
    /// Segments of which the files themselves do not tell all.
    known: Vec<KnownSegment>,
}

impl SegmentFiles {
    pub(crate) fn new(medium: Arc<dyn Medium>, known: Vec<KnownSegment>) -> Self {
        Self { medium, files: VecDeque::new(), known }
    }

    /// A segment's file and header; `None` if there is no such file any more, or nothing that says where it belongs.
    pub(crate) fn open(&mut self, number: u64) -> Result<Option<Arc<OpenSegment>>, ReadError> {
        if let Some(at) = self.files.iter().position(|open| open.header.number == number)
            && let Some(open) = self.files.remove(at)
        {
            self.files.push_back(Arc::clone(&open));
            return Ok(Some(open));
        }
        let name = segment_name(number);
        let file = match self.medium.open_read(&name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ReadError { file: name, source }),
        };
        let header = match self.header_in_file(number) {
            // What stands in the file is not what it should be; the segment behind it knows.
            Err(error) if is_damage(&error) => self.infer_header(number),
            read => read.map(Some),
        };
        let Some(header) = header.map_err(|source| ReadError { file: name, source })? else { return Ok(None) };
        let open = Arc::new(OpenSegment { header, file });
        self.files.push_back(Arc::clone(&open));
        if self.files.len() > FILES_MAX {
            self.files.pop_front();
        }
        Ok(Some(open))
    }

    /// The newest segment file that is older than `number`.
    pub(crate) fn older(&self, number: u64) -> Result<Option<u64>, ReadError> {
        self.older_number(number).map_err(|source| ReadError { file: segment_name(number), source })
    }

    /// The position behind the last entry of a sealed segment; `None` if nothing says so.
    pub(crate) fn end_of(&self, number: u64) -> io::Result<Option<u64>> {
        match self.known.iter().find(|known| known.header.number == number) {
            Some(known) => Ok(Some(known.end)),
            None => Ok(self.successor(number)?.map(|(after, _)| after.base)),
        }
    }

    /// The header of the segment behind `number`, and what it says of that one; `None` if no segment names it.
    fn successor(&self, number: u64) -> io::Result<Option<(SegmentHeader, Predecessor)>> {
        let mut numbers: Vec<u64> =
            self.medium.list()?.iter().filter_map(|file| segment::segment_number(&file.name)).collect();
        numbers.sort_unstable();
        let mut damaged = Vec::new();
        for later in numbers.into_iter().filter(|later| *later > number) {
            let mut header = match self.header_in_file(later) {
                Err(error) if is_damage(&error) => {
                    damaged.push(later);
                    continue;
                }
                read => read?,
            };
            // Back through those between, each by what the one behind it says.
            while let Some(lost) = damaged.pop() {
                if let Some(its) = header.predecessor.filter(|its| its.number == lost) {
                    header = self.inferred(&header, &its)?;
                }
            }
            if let Some(before) = header.predecessor
                && before.number == number
            {
                return Ok(Some((header, before)));
            }
        }
        Ok(None)
    }

    /// The header of a segment whose own copies have both become unreadable while the log was open.
    fn infer_header(&self, number: u64) -> io::Result<Option<SegmentHeader>> {
        self.successor(number)?.map(|(after, its)| self.inferred(&after, &its)).transpose()
    }

    /// The header of the segment before `after`, which names it as `its`.
    fn inferred(&self, after: &SegmentHeader, its: &Predecessor) -> io::Result<SegmentHeader> {
        let older = match self.older_number(its.number)? {
            Some(older) => self.header_in_file(older).ok(),
            None => None,
        };
        let predecessor =
            older.map(|header| Predecessor { number: header.number, salt: header.salt, base: header.base });
        Ok(SegmentHeader { number: its.number, salt: its.salt, base: its.base, predecessor, ..*after })
    }

    fn header_in_file(&self, number: u64) -> io::Result<SegmentHeader> {
        match self.known.iter().find(|known| known.header.number == number) {
            Some(known) => Ok(known.header),
            None => read_header(self.medium.open_read(&segment_name(number))?.as_ref(), number),
        }
    }

    fn older_number(&self, number: u64) -> io::Result<Option<u64>> {
        let files = self.medium.list()?;
        Ok(files.iter().filter_map(|file| segment::segment_number(&file.name)).filter(|older| *older < number).max())
    }
}

/// Whether a header can't be read because of what the file holds, and not because reading failed.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// Reads the header of the segment with this number from its file, from either copy.
fn read_header(file: &dyn MediumFile, number: u64) -> io::Result<SegmentHeader> {
    for copy in 0..2 {
        let mut bytes = vec![0; SEGMENT_HEADER_LEN];
        read_exact_at(file, &mut bytes, copy * SEGMENT_HEADER_LEN as u64)?;
        if let HeaderCopy::Valid(header) = segment::SegmentHeader::decode(&bytes)
            && header.number == number
        {
            return Ok(header);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "neither copy of the segment's header can be read"))
}
