//! Runs what may hang or panic on a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

/// What `work` returns. After `limit` its thread is left to itself, and what it returns then is dropped.
pub(super) fn run_guarded<T: Send + 'static>(
    what: &str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (done, outcome) = sync_channel(1);
    let thread = std::thread::Builder::new().name("tidelog-check".to_owned()).spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(work));
        // Nobody waits any more after the limit.
        let _ = done.send(outcome);
    });
    let thread = thread.map_err(|error| format!("{what}: no thread could be started: {error}"))?;
    match outcome.recv_timeout(limit) {
        Ok(outcome) => {
            let _ = thread.join();
            outcome.map_err(|panic| format!("{what} panicked: {}", panic_text(panic.as_ref())))
        }
        Err(RecvTimeoutError::Timeout) => Err(format!("{what} took longer than {limit:?}")),
        Err(RecvTimeoutError::Disconnected) => Err(format!("{what} ended without a word")),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_and_a_hang_are_errors() {
        let second = Duration::from_secs(60);
        assert_eq!(run_guarded("it", second, || 5), Ok(5));
        let panicked = run_guarded("it", second, || -> u8 { panic!("ouch") });
        assert_eq!(panicked, Err("it panicked: ouch".to_owned()));
        let (release, held) = sync_channel::<()>(0);
        let hung = run_guarded("it", Duration::from_millis(20), move || held.recv().is_ok());
        assert_eq!(hung, Err("it took longer than 20ms".to_owned()));
        drop(release);
    }
}
