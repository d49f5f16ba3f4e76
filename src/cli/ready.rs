//! `--ready-fd`: tells whoever started the broker, once, that it is ready and where.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use serde::Serialize;

use super::exit::{CliError, Exit};

/// What a broker that is ready says of itself, as one line of JSON.
#[derive(Debug, Serialize)]
pub(crate) struct ReadyLine<'a> {
    /// The address clients connect to.
    pub(crate) listen: String,
    /// The monitor's address, `null` without one.
    pub(crate) http: Option<String>,
    /// The key's fingerprint.
    pub(crate) pin: &'a str,
    /// This process.
    pub(crate) pid: u32,
}

/// The file descriptor that the line goes to.
#[derive(Debug)]
pub(crate) struct ReadyFd(File);

impl ReadyFd {
    /// Takes over the descriptor that this process was started with. To be called before anything
    /// else is opened: a number that nobody handed over could otherwise be a file of our own.
    ///
    /// # Errors
    ///
    /// Wrong usage, if it is not open or is standard input, output or error.
    pub(crate) fn take(number: RawFd) -> Result<ReadyFd, CliError> {
        let refused = |reason: &str| {
            let message = format!("--ready-fd {number}: {reason}");
            CliError::new(Exit::Usage, "usage", message)
                .with_hint("open one for it, as in: tidelog serve --ready-fd 3 3>ready.json")
        };
        if number <= 2 {
            return Err(refused("the descriptors 0 to 2 have their own uses"));
        }
        let owned = own(number).map_err(|error| refused(&error.to_string()))?;
        Ok(ReadyFd(File::from(owned)))
    }

    /// Writes the line and closes the descriptor.
    ///
    /// # Errors
    ///
    /// If nobody reads it any more.
    pub(crate) fn announce(mut self, line: &ReadyLine<'_>) -> io::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.0.write_all(text.as_bytes())
    }
}

#[expect(unsafe_code, reason = "a number from the command line becomes a descriptor here and nowhere else")]
fn own(number: RawFd) -> io::Result<OwnedFd> {
    assert!(number > 2, "0 to 2 belong to the standard streams");
    // SAFETY: `BorrowedFd` and `OwnedFd` want an open descriptor, and `OwnedFd` that nobody else in
    // this process closes or uses it. `fcntl(F_GETFD)`, which is harmless on any number, says
    // whether it is open. It was handed over by whoever started this process, under the contract
    // of `--ready-fd`, and `ReadyFd::take` runs before this process opens anything itself; the
    // standard streams, the only descriptors that other code reaches by number, are excluded.
    unsafe {
        rustix::io::fcntl_getfd(BorrowedFd::borrow_raw(number))?;
        Ok(OwnedFd::from_raw_fd(number))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::IntoRawFd as _;

    use super::*;

    fn line(http: Option<String>) -> ReadyLine<'static> {
        ReadyLine { listen: "127.0.0.1:7440".to_owned(), http, pin: "ab", pid: 7 }
    }

    #[test]
    fn the_line_is_written_and_the_descriptor_closed() {
        let (mut reader, writer) = io::pipe().unwrap();
        let fd = ReadyFd::take(OwnedFd::from(writer).into_raw_fd()).unwrap();
        fd.announce(&line(Some("127.0.0.1:7441".to_owned()))).unwrap();
        let mut text = String::new();
        // Ends only when the descriptor is closed.
        reader.read_to_string(&mut text).unwrap();
        let expected = r#"{"listen":"127.0.0.1:7440","http":"127.0.0.1:7441","pin":"ab","pid":7}"#;
        assert_eq!(text, format!("{expected}\n"));
    }

    #[test]
    fn without_a_monitor_http_is_null() {
        let text = serde_json::to_string(&line(None)).unwrap();
        assert!(text.contains(r#""http":null"#), "{text}");
    }

    #[test]
    fn standard_streams_and_descriptors_not_open_are_wrong_usage() {
        // Above the limit of open files of any machine.
        for number in [0, 1, 2, i32::MAX] {
            let error = ReadyFd::take(number).unwrap_err();
            assert_eq!(error.exit(), Exit::Usage, "{number}");
        }
    }

    #[test]
    fn a_reader_that_is_gone_is_an_error_and_no_crash() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let fd = ReadyFd::take(OwnedFd::from(writer).into_raw_fd()).unwrap();
        assert!(fd.announce(&line(None)).is_err());
    }
}
