//! Standard output, written by the block: what a command has found goes here and nothing else does.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;

use super::exit::{CliError, Exit};

/// What is gathered before it is written.
const BLOCK_BYTES: usize = 64 << 10;

/// Standard output with a block of its own.
///
/// The standard library's writes by the line, which costs a system call for each record. Nothing
/// is written when this is dropped: a command that succeeds calls [`Output::flush`], and sees
/// whether its last block arrived.
#[derive(Debug)]
pub(crate) struct Output<W = File> {
    writer: W,
    block: Vec<u8>,
}

impl Output {
    /// The process's standard output.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub(crate) fn stdout() -> Result<Output, CliError> {
        let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
        Ok(Output::to(File::from(stdout)))
    }
}

impl<W: Write> Output<W> {
    fn to(writer: W) -> Output<W> {
        Output { writer, block: Vec::with_capacity(BLOCK_BYTES) }
    }

    /// Adds `bytes`; writes when the block is full.
    ///
    /// # Errors
    ///
    /// A closed pipe ends the command quietly, everything else with status 1.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        if self.block.len() + bytes.len() > BLOCK_BYTES {
            self.write_block()?;
        }
        if bytes.len() > BLOCK_BYTES {
            return self.writer.write_all(bytes).map_err(failed);
        }
        self.block.extend_from_slice(bytes);
        Ok(())
    }

    /// Adds `bytes` and a line end.
    ///
    /// # Errors
    ///
    /// As [`Output::write`].
    pub(crate) fn write_line(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.write(bytes)?;
        self.write(b"\n")
    }

    /// Writes what was added so far: at the end, and whenever somebody may be waiting for it.
    ///
    /// # Errors
    ///
    /// As [`Output::write`].
    pub(crate) fn flush(&mut self) -> Result<(), CliError> {
        self.write_block()?;
        self.writer.flush().map_err(failed)
    }

    fn write_block(&mut self) -> Result<(), CliError> {
        let written = self.writer.write_all(&self.block);
        // After a failed write nobody knows what arrived; the command ends, and nothing is written
        // a second time.
        self.block.clear();
        written.map_err(failed)
    }
}

fn failed(error: io::Error) -> CliError {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return CliError::closed_pipe();
    }
    CliError::new(Exit::No, "output_failed", format!("could not write to standard output: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes each write; fails with `failure` if there is one.
    #[derive(Default)]
    struct Pipe {
        writes: Vec<Vec<u8>>,
        failure: Option<io::ErrorKind>,
    }

    impl Write for &mut Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.failure {
                Some(kind) => Err(kind.into()),
                None => {
                    self.writes.push(bytes.to_vec());
                    Ok(bytes.len())
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_gathered_into_blocks() {
        let mut pipe = Pipe::default();
        let mut output = Output::to(&mut pipe);
        for _ in 0..20_000 {
            output.write_line(b"0123456789").unwrap();
        }
        output.flush().unwrap();
        assert!(pipe.writes.len() < 10, "{} writes", pipe.writes.len());
        let whole = pipe.writes.concat();
        assert_eq!(whole.len(), 20_000 * 11);
        assert!(whole.chunks(11).all(|line| line == b"0123456789\n"));
    }

    #[test]
    fn a_piece_above_the_block_keeps_its_place() {
        let mut pipe = Pipe::default();
        let mut output = Output::to(&mut pipe);
        let large = vec![b'x'; BLOCK_BYTES + 1];
        output.write(b"before").unwrap();
        output.write(&large).unwrap();
        output.write(b"behind").unwrap();
        assert_eq!(output.block.len(), 6);
        output.flush().unwrap();
        assert_eq!(pipe.writes.concat(), [b"before", &large[..], b"behind"].concat());
    }

    #[test]
    fn a_closed_pipe_is_a_quiet_end() {
        let mut pipe = Pipe { failure: Some(io::ErrorKind::BrokenPipe), ..Pipe::default() };
        let mut output = Output::to(&mut pipe);
        output.write(b"x").unwrap();
        let error = output.flush().unwrap_err();
        assert_eq!(error, CliError::closed_pipe());
        assert_eq!(error.exit(), Exit::Done);
    }

    #[test]
    fn any_other_failure_ends_with_status_1() {
        let mut pipe = Pipe { failure: Some(io::ErrorKind::StorageFull), ..Pipe::default() };
        let mut output = Output::to(&mut pipe);
        output.write(b"x").unwrap();
        assert_eq!(output.flush().unwrap_err().exit(), Exit::No);
    }
}
