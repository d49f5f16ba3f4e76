//! The lines of an input, read by the block on a thread of its own, so that a slow pipe holds up nothing else.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use tokio::sync::mpsc;

use super::exit::{CliError, Exit};

/// One read takes at most this many bytes.
const BLOCK_BYTES: usize = 256 << 10;
/// Blocks that may wait.
const BLOCKS_MAX: usize = 8;

/// The lines of an input, without their line ends; all other bytes are kept.
#[derive(Debug)]
pub(crate) struct Lines {
    blocks: mpsc::Receiver<io::Result<Vec<u8>>>,
    block: Vec<u8>,
    /// Where the next line begins in `block`.
    at: usize,
    line_bytes_max: usize,
    name: String,
    has_ended: bool,
    /// The number of the line last given, from 1.
    number: u64,
}

impl Lines {
    /// Reads `file`, or standard input if there is none. A line longer than `line_bytes_max` ends it with an error.
    ///
    /// # Errors
    ///
    /// If the file can't be opened.
    pub(crate) fn open(file: Option<&Path>, line_bytes_max: usize) -> Result<Lines, CliError> {
        let (sender, blocks) = mpsc::channel(BLOCKS_MAX);
        let name = file.map_or_else(|| "standard input".to_owned(), |file| file.display().to_string());
        let source: Box<dyn Read + Send> = match file {
            Some(path) => Box::new(File::open(path).map_err(|error| unreadable(&name, &error))?),
            None => Box::new(io::stdin()),
        };
        std::thread::Builder::new()
            .name("tidelog-input".to_owned())
            .spawn(move || read_blocks(source, &sender))
            .map_err(|error| unreadable(&name, &error))?;
        Ok(Lines { blocks, block: Vec::new(), at: 0, line_bytes_max, name, has_ended: false, number: 0 })
    }

    /// The number of the line last given, from 1.
    pub(crate) const fn number(&self) -> u64 {
        self.number
    }

    /// The next line, or `None` at the end. An input without a last line end has a last line all the same.
    ///
    /// # Errors
    ///
    /// If the input fails, or a line is too long.
    pub(crate) async fn next(&mut self) -> Result<Option<&[u8]>, CliError> {
        let mut searched = self.at;
        let end = loop {
            let unsearched = self.block.get(searched..).unwrap_or_default();
            if let Some(found) = memchr::memchr(b'\n', unsearched) {
                break searched + found;
            }
            if self.block.len() - self.at > self.line_bytes_max {
                return Err(self.too_long());
            }
            if self.has_ended {
                if self.at == self.block.len() {
                    return Ok(None);
                }
                break self.block.len();
            }
            self.block.drain(..self.at);
            self.at = 0;
            searched = self.block.len();
            match self.blocks.recv().await {
                Some(Ok(block)) if self.block.is_empty() => self.block = block,
                Some(Ok(block)) => self.block.extend_from_slice(&block),
                Some(Err(error)) => return Err(unreadable(&self.name, &error)),
                None => self.has_ended = true,
            }
        };
        if end - self.at > self.line_bytes_max {
            return Err(self.too_long());
        }
        let line = self.at..end;
        self.at = (end + 1).min(self.block.len());
        self.number += 1;
        Ok(self.block.get(line))
    }

    fn too_long(&self) -> CliError {
        let (number, limit) = (self.number + 1, self.line_bytes_max);
        let message = format!("line {number} of {} is longer than a record may be ({limit} bytes)", self.name);
        CliError::new(Exit::Usage, "record_too_large", message)
            .with_hint("the lines before it are stored; shorten it and run the same command again")
    }
}

fn unreadable(name: &str, error: &io::Error) -> CliError {
    CliError::new(Exit::No, "input_failed", format!("could not read {name}: {error}"))
}

fn read_blocks(mut source: Box<dyn Read + Send>, sender: &mpsc::Sender<io::Result<Vec<u8>>>) {
    loop {
        let mut block = vec![0; BLOCK_BYTES];
        let read = match source.read(&mut block) {
            Ok(0) => return,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                // Whoever reads may be gone.
                let _ = sender.blocking_send(Err(error));
                return;
            }
        };
        block.truncate(read);
        if sender.blocking_send(Ok(block)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(content: &[u8], limit: usize) -> Result<Vec<Vec<u8>>, CliError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("input");
        std::fs::write(&file, content).unwrap();
        let mut lines = Lines::open(Some(&file), limit)?;
        let mut all = Vec::new();
        while let Some(line) = lines.next().await? {
            all.push(line.to_vec());
        }
        Ok(all)
    }

    #[tokio::test]
    async fn all_bytes_but_the_line_ends_are_kept() {
        assert_eq!(lines(b"", 10).await.unwrap(), [] as [&[u8]; 0]);
        assert_eq!(lines(b"\n", 10).await.unwrap(), [b""]);
        assert_eq!(lines(b"a\r\n\n\xff\0", 10).await.unwrap(), [&b"a\r"[..], b"", b"\xff\0"]);
    }

    #[tokio::test]
    async fn lines_span_blocks() {
        let mut content = vec![b'x'; BLOCK_BYTES - 1];
        content.extend_from_slice(b"yz\nend");
        let all = lines(&content, BLOCK_BYTES * 2).await.unwrap();
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [BLOCK_BYTES + 1, 3]);
    }

    #[tokio::test]
    async fn a_line_over_the_limit_is_told_by_its_number() {
        let error = lines(b"ok\ntoo long\n", 7).await.unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
        assert!(format!("{error:?}").contains("line 2"), "{error:?}");
        assert_eq!(lines(b"ok\njust so\n", 7).await.unwrap().len(), 2);
    }
}
