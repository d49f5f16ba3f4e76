//! Tests that may have to be left out, and then count as ignored and never as passed.

use std::future::Future;

use libtest_mimic::{Failed, Trial};

/// A trial; ignored, with the reason printed, if there is one against it.
pub fn new(
    name: impl Into<String>,
    reason_against: Option<String>,
    run: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    let name = name.into();
    if let Some(reason) = &reason_against {
        eprintln!("{name} is ignored: {reason}");
    }
    Trial::test(name, run).with_ignored_flag(reason_against.is_some())
}

/// Runs it on a runtime like that of `#[tokio::test]`.
pub fn block_on<T>(run: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime can be made").block_on(run)
}
