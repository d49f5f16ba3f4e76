//! What a folder holds before any entry is read: the headers of its segments, and the chain that they make. Steps 2 to 5
//! of recovery; writes nothing.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::error::OpenError;
use crate::folder::Folder;
use crate::medium::{FileStat, MediumFile, read_exact_at};
use crate::report::{Damage, DamageKind};
use crate::segment::{self, ENTRIES_AT, HeaderCopy, LogId, Predecessor, SEGMENT_HEADER_LEN, SegmentHeader};

/// The highest number that still has a successor whose name is as long as all others.
const NUMBER_MAX: u64 = 9_999_999_999_999_998;

/// One segment of the log.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) header: SegmentHeader,
    pub(crate) file: Arc<dyn MediumFile>,
    pub(crate) file_len: u64,
    /// Where its entries end.
    pub(crate) end: End,
    /// Its own headers can't be read; this one was worked out.
    pub(crate) is_inferred: bool,
}

/// What is known about the end of a segment from those behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// This is the base of its successor, which was proven durable before that was begun.
    At(u64),
    /// Its successor is lost, and with it the decision where this one ends: it ends where its own entries do, and
    /// nothing of it stands at or behind this position. What a start cut off must not come back.
    Within(u64),
    /// It is the newest.
    Open,
}

/// What the folder holds.
#[derive(Debug)]
pub(crate) struct Survey {
    /// The log's segments, oldest first.
    pub(crate) chain: Vec<Part>,
    /// Segments of other logs, and branches of this one.
    pub(crate) foreign: Vec<String>,
    /// Segments behind the chain of which nothing can be read.
    pub(crate) unreadable_behind: Option<UnreadableBehind>,
    /// Files among or behind the chain of which nothing can be used.
    pub(crate) unusable: Vec<String>,
    pub(crate) number_max: u64,
    pub(crate) damages: Vec<Damage>,
}

/// Segments that are newer than every readable one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnreadableBehind {
    pub(crate) count: u64,
    /// The most that they can hold of the log.
    pub(crate) bytes: u64,
}

/// A segment file without a header that fits its name.
struct Unreadable {
    number: u64,
    name: String,
    file: Arc<dyn MediumFile>,
    len: u64,
}

/// Reads all headers and follows the chain back from the newest one.
///
/// The files named in `distrusted` count as unreadable, whatever their headers say.
pub(crate) fn survey(folder: Folder<'_>, files: &[FileStat], distrusted: &[String]) -> Result<Survey, OpenError> {
    let found = read_headers(folder, files, distrusted)?;
    let Headers { mut readable, unreadable, number_max, mut damages } = found;
    let foreign = set_foreign_apart(folder, &mut readable)?;
    let mut foreign: Vec<String> = foreign.into_iter().map(|part| part.name).collect();
    let Some(active) = readable.pop() else {
        if unreadable.is_empty() {
            let unusable = Vec::new();
            return Ok(Survey { chain: Vec::new(), foreign, unreadable_behind: None, unusable, number_max, damages });
        }
        return Err(OpenError::NoReadableHeader { folder: folder.medium.describe(), segments: unreadable.len() });
    };
    let behind = || unreadable.iter().filter(|file| file.number > active.header.number);
    let unreadable_behind = behind().next().map(|_| UnreadableBehind {
        count: behind().count() as u64,
        bytes: behind().map(|file| file.len.saturating_sub(ENTRIES_AT).next_multiple_of(8).max(8)).sum(),
    });
    let mut chain = Chain { folder, parts: vec![active], readable, unreadable, damages: Vec::new() };
    while chain.go_back()? {}
    let Chain { mut parts, readable, damages: mut of_chain, unreadable, .. } = chain;
    for lost in &unreadable {
        // Nobody names it: what it held shows as a hole between its neighbours.
        let next = parts.iter().rfind(|part| part.header.number > lost.number);
        if let Some(next) = next {
            let header = SegmentHeader { number: lost.number, ..next.header };
            of_chain.push(header_damage(DamageKind::SegmentHeader, &header));
        }
    }
    parts.reverse();
    damages.append(&mut of_chain);
    foreign.extend(readable.into_iter().map(|part| part.name));
    let unusable = unreadable.into_iter().map(|lost| lost.name).collect();
    Ok(Survey { chain: parts, foreign, unreadable_behind, unusable, number_max, damages })
}

/// The segment files, by whether their header can be read.
struct Headers {
    /// Ascending by number.
    readable: Vec<Part>,
    unreadable: Vec<Unreadable>,
    number_max: u64,
    damages: Vec<Damage>,
}

fn read_headers(folder: Folder<'_>, files: &[FileStat], distrusted: &[String]) -> Result<Headers, OpenError> {
    let (mut readable, mut unreadable, mut damages) = (Vec::new(), Vec::new(), Vec::new());
    let mut number_max = 0;
    for stat in files {
        // Files that were set aside keep their numbers taken.
        let taken = stat.name.find("segment-").and_then(|at| segment::segment_number(stat.name.get(at..)?));
        number_max = number_max.max(taken.unwrap_or(0));
        if number_max > NUMBER_MAX {
            return Err(contradiction(folder, &stat.name));
        }
        let Some(number) = segment::segment_number(&stat.name) else { continue };
        let name = stat.name.clone();
        let file = folder.run("open a segment", folder.medium.open_read(&name))?;
        match read_copies(folder, &name, file.as_ref())? {
            Copies::Readable { header, is_whole } if header.number == number && !distrusted.contains(&name) => {
                if !is_whole {
                    damages.push(header_damage(DamageKind::SegmentHeaderCopy, &header));
                }
                let end = End::Open;
                readable.push(Part { name, header, file, file_len: stat.len, end, is_inferred: false });
            }
            _ => unreadable.push(Unreadable { number, name, file, len: stat.len }),
        }
    }
    readable.sort_by_key(|part| part.header.number);
    Ok(Headers { readable, unreadable, number_max, damages })
}

/// Takes the segments of other logs out. One that is newer than all of this log's may stand in the place of a segment
/// that was acknowledged: then nobody but the owner of the folder can tell what to do.
fn set_foreign_apart(folder: Folder<'_>, readable: &mut Vec<Part>) -> Result<Vec<Part>, OpenError> {
    let mut counts: BTreeMap<[u8; 16], usize> = BTreeMap::new();
    for part in readable.iter() {
        *counts.entry(part.header.log_id.0).or_default() += 1;
    }
    if counts.len() < 2 {
        return Ok(Vec::new());
    }
    let own = counts.iter().max_by_key(|(_, count)| **count).map(|(id, _)| LogId(*id));
    let is_own = |part: &Part| Some(part.header.log_id) == own;
    let rivals = counts.values().filter(|count| counts.values().max() == Some(*count)).count();
    if let Some(newest) = readable.last().filter(|newest| !is_own(newest) || rivals > 1) {
        return Err(OpenError::OtherBranch { file: newest.name.clone(), folder: folder.medium.describe() });
    }
    let (own, foreign) = std::mem::take(readable).into_iter().partition(is_own);
    *readable = own;
    Ok(foreign)
}

/// The chain under construction, newest first.
struct Chain<'m> {
    folder: Folder<'m>,
    parts: Vec<Part>,
    readable: Vec<Part>,
    unreadable: Vec<Unreadable>,
    damages: Vec<Damage>,
}

impl Chain<'_> {
    /// Adds the segment before the oldest one so far; false if there is none.
    fn go_back(&mut self) -> Result<bool, OpenError> {
        let Some(current) = self.parts.last().map(|part| part.header) else { return Ok(false) };
        let Some(before) = current.predecessor else { return Ok(false) };
        if before.number >= current.number || before.base > current.base {
            return Err(contradiction(self.folder, &segment::segment_name(current.number)));
        }
        if let Some(found) = self.readable.iter().position(|part| part.header.number == before.number) {
            let part = self.readable.remove(found);
            if part.header.salt != before.salt || part.header.log_id != current.log_id {
                let folder = self.folder.medium.describe();
                return Err(OpenError::OtherBranch { file: part.name, folder });
            }
            if part.header.base != before.base {
                return Err(contradiction(self.folder, &part.name));
            }
            let end = match self.is_unreadable_between(before.number, current.number) {
                true => End::Within(current.base),
                false => End::At(current.base),
            };
            self.parts.push(Part { end, ..part });
            return Ok(true);
        }
        // Who comes before it, only its own header said.
        let header =
            SegmentHeader { number: before.number, salt: before.salt, base: before.base, predecessor: None, ..current };
        if let Some(found) = self.unreadable.iter().position(|file| file.number == before.number) {
            self.damages.push(header_damage(DamageKind::SegmentHeader, &header));
            let Unreadable { name, file, len, .. } = self.unreadable.remove(found);
            let end = End::At(current.base);
            self.parts.push(Part { name, header, file, file_len: len, end, is_inferred: true });
        } else {
            let missing = header_damage(DamageKind::SegmentMissing, &header);
            self.damages.push(Damage { positions: before.base..current.base, ..missing });
        }
        Ok(self.skip_to_older(&before))
    }

    /// Goes on with the newest segment that is older than `lost`, whose own link back is lost too.
    fn skip_to_older(&mut self, lost: &Predecessor) -> bool {
        let is_older = |part: &Part| part.header.number < lost.number && part.header.base <= lost.base;
        let Some(found) = self.readable.iter().rposition(is_older) else { return false };
        let part = self.readable.remove(found);
        // Only of neighbours by number it is sure that nothing stood between them.
        let end = match part.header.number + 1 == lost.number {
            true => End::At(lost.base),
            false => End::Within(lost.base),
        };
        if let Some(inferred) = self.parts.last_mut().filter(|last| last.header.number == lost.number) {
            inferred.header.predecessor =
                Some(Predecessor { number: part.header.number, salt: part.header.salt, base: part.header.base });
        }
        self.parts.push(Part { end, ..part });
        true
    }

    fn is_unreadable_between(&self, older: u64, newer: u64) -> bool {
        self.unreadable.iter().any(|file| older < file.number && file.number < newer)
    }
}

fn header_damage(kind: DamageKind, header: &SegmentHeader) -> Damage {
    let positions: Range<u64> = header.base..header.base;
    Damage { kind, segment: header.number, positions, subject: None, offsets: None }
}

fn contradiction(folder: Folder<'_>, file: &str) -> OpenError {
    OpenError::Contradiction { file: file.to_owned(), folder: folder.medium.describe() }
}

/// A segment's header, if either copy of it can be read.
pub(crate) fn readable_header(
    folder: Folder<'_>,
    name: &str,
    file: &dyn MediumFile,
) -> Result<Option<SegmentHeader>, OpenError> {
    Ok(match read_copies(folder, name, file)? {
        Copies::Readable { header, .. } => Some(header),
        Copies::Unreadable => None,
    })
}

enum Copies {
    Readable { header: SegmentHeader, is_whole: bool },
    Unreadable,
}

fn read_copies(folder: Folder<'_>, name: &str, file: &dyn MediumFile) -> Result<Copies, OpenError> {
    let mut failure = None;
    let copies = [0, SEGMENT_HEADER_LEN as u64].map(|at| {
        let mut bytes = vec![0; SEGMENT_HEADER_LEN];
        match read_exact_at(file, &mut bytes, at) {
            Ok(()) => SegmentHeader::decode(&bytes),
            Err(error) => {
                failure = Some(error).filter(|error| error.kind() != io::ErrorKind::UnexpectedEof);
                HeaderCopy::Invalid
            }
        }
    });
    match copies {
        [HeaderCopy::Unknown { format, incompatible }, _] | [_, HeaderCopy::Unknown { format, incompatible }] => {
            Err(OpenError::UnknownFormat { file: name.to_owned(), format, incompatible })
        }
        [HeaderCopy::Valid(header), other] | [other @ HeaderCopy::Invalid, HeaderCopy::Valid(header)] => {
            Ok(Copies::Readable { header, is_whole: other == HeaderCopy::Valid(header) })
        }
        [HeaderCopy::Invalid, HeaderCopy::Invalid] => match failure {
            // The next try may read it, and what is decided without it is decided for good.
            Some(error) => Err(folder.error("read the header of a segment", error)),
            None => Ok(Copies::Unreadable),
        },
    }
}
