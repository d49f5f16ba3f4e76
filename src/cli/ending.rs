//! What ends a broker in the foreground: a signal or, if it was asked to look at it, the end of its standard input.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use super::exit::{CliError, Exit};

/// Bytes read at once from an input of which nothing is wanted but its end.
const DISCARDED_BYTES: usize = 4_096;

/// The first event that ends the broker, and the signals that end its stop.
pub(crate) struct Ending {
    interrupt: Signal,
    terminate: Signal,
    /// Told once, when standard input has ended. None: it is not looked at.
    input: Option<Arc<Notify>>,
}

impl Ending {
    /// Watches for it from now on.
    ///
    /// # Errors
    ///
    /// Those of the machine: a signal can't be caught, a thread not be started.
    pub(crate) fn watch(until_stdin_closes: bool) -> Result<Ending, CliError> {
        let failed = |what: &str, error: &io::Error| {
            CliError::new(Exit::No, "start_failed", format!("could not {what}: {error}"))
        };
        let catch = |kind| signal(kind).map_err(|error| failed("catch signals", &error));
        let (interrupt, terminate) = (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?);
        let input = match until_stdin_closes {
            true => Some(watch_stdin().map_err(|error| failed("watch standard input", &error))?),
            false => None,
        };
        Ok(Ending { interrupt, terminate, input })
    }

    /// Waits for a signal or the end of the input. Cancel safe.
    pub(crate) async fn begun(&mut self) {
        let input = self.input.clone();
        let ended = async {
            match &input {
                Some(ended) => ended.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.signalled() => {}
            () = ended => {}
        }
    }

    /// Waits for a signal alone: nobody is in a hurry when an input ends while the broker is stopping. Cancel safe.
    pub(crate) async fn signalled(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Starts a thread that waits for the end of standard input. It is never joined: after a signal it still waits, and ends
/// with the process. (tokio's standard input would be waited for when its runtime is dropped.)
fn watch_stdin() -> io::Result<Arc<Notify>> {
    let ended = Arc::new(Notify::new());
    let told = Arc::clone(&ended);
    thread::Builder::new().name("tidelog-stdin".to_owned()).spawn(move || {
        match wait_for_end(io::stdin().lock()) {
            Ok(()) => tracing::info!("standard input has ended"),
            Err(error) => tracing::warn!(%error, "standard input can't be read, which counts as its end"),
        }
        told.notify_one();
    })?;
    Ok(ended)
}

/// Reads to the end and throws away what it reads.
fn wait_for_end(mut input: impl Read + AsFd) -> io::Result<()> {
    let mut discarded = [0; DISCARDED_BYTES];
    loop {
        match input.read(&mut discarded) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Whether reads block is a property of the open file, which whoever has the other copies may set.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_for_news(&input)?,
            Err(error) => return Err(error),
        }
    }
}

fn wait_for_news(input: &impl AsFd) -> io::Result<()> {
    match poll(&mut [PollFd::new(input, PollFlags::IN)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    #[test]
    fn what_comes_before_the_end_is_thrown_away() {
        let (reader, mut writer) = io::pipe().unwrap();
        let waiting = thread::spawn(|| wait_for_end(reader));
        for _ in 0..100 {
            writer.write_all(&[0; 10_000]).unwrap();
        }
        assert!(!waiting.is_finished());
        drop(writer);
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn an_input_that_does_not_block_is_waited_for_all_the_same_and_without_turning_round() {
        let (reader, mut writer) = UnixStream::pair().unwrap();
        reader.set_nonblocking(true).unwrap();
        let (told, news) = mpsc::channel();
        let waiting = thread::spawn(move || {
            let ended = wait_for_end(reader);
            told.send(()).unwrap();
            let used = clock_gettime(ClockId::ThreadCPUTime);
            (ended, used)
        });
        writer.write_all(b"not the end").unwrap();
        // There is no event for "it goes on waiting": an end that is told within this time is a wrong one.
        news.recv_timeout(Duration::from_millis(300)).unwrap_err();
        drop(writer);
        let (ended, used) = waiting.join().unwrap();
        ended.unwrap();
        // A thread that looks again and again would have used most of the time above.
        assert!(used.tv_sec == 0 && used.tv_nsec < 20_000_000, "{used:?}");
    }

    #[test]
    fn an_input_that_cannot_be_read_is_an_error_and_an_end() {
        // Open for writing only.
        let input = File::options().write(true).open("/dev/null").unwrap();
        wait_for_end(input).unwrap_err();
    }
}
