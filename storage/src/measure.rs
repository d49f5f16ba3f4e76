//! What the disk alone takes for an append and its sync, to hold the log's figures against.

use std::io;
use std::time::Duration;

use crate::housekeeping::{SPARE_PREFIX, zeroed_file};
use crate::medium::Medium;

/// Behind [`SPARE_PREFIX`]: what a crash leaves behind goes at the next start like any other spare.
const NAME: &str = "measure-sync";

/// So many times the file's bytes must be free: what is measured must not be in the way of what is stored.
const FREE_FACTOR: u64 = 4;

/// Appends `appends` blocks of `append_bytes` to a file zeroed ahead, beside the log's own, each synced before the next, and
/// gives the time of each by `clock`, which tells the time since a fixed moment. The file is removed.
///
/// Ends early, with what it has, once `is_over` says so. Blocks the calling thread.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`] unless four times the bytes of all appends are free; otherwise the medium's.
pub fn measure_syncs(
    medium: &dyn Medium,
    append_bytes: u32,
    appends: u32,
    clock: &dyn Fn() -> Duration,
    is_over: &dyn Fn() -> bool,
) -> io::Result<Vec<Duration>> {
    let len = u64::from(append_bytes) * u64::from(appends);
    if medium.free_bytes()? / FREE_FACTOR < len {
        return Err(io::Error::new(io::ErrorKind::StorageFull, "too little is free to measure on"));
    }
    let name = format!("{SPARE_PREFIX}{NAME}");
    // One that could not be removed at its end.
    remove(medium, &name)?;
    let file = zeroed_file(medium, &name, len)?;
    // Zeros may be written as nothing at all.
    let block = vec![0xa5; append_bytes as usize];
    let mut times = Vec::with_capacity(appends as usize);
    let mut outcome = Ok(());
    for append in 0..u64::from(appends) {
        if is_over() {
            break;
        }
        let before = clock();
        outcome = file.write_all_at(&[&block], append * u64::from(append_bytes)).and_then(|()| file.sync_data());
        if outcome.is_err() {
            break;
        }
        times.push(clock().saturating_sub(before));
    }
    drop(file);
    outcome.and(remove(medium, &name)).map(|()| times)
}

/// Gone is gone: a start that has found such a file removes it when it comes to that, whoever has made it again by then.
fn remove(medium: &dyn Medium, name: &str) -> io::Result<()> {
    match medium.remove(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::medium::MemoryMedium;

    #[test]
    fn each_append_has_a_time_and_nothing_is_left() {
        let medium = MemoryMedium::new();
        let ticks = Cell::new(0);
        let clock = || {
            ticks.set(ticks.get() + 1);
            Duration::from_millis(ticks.get())
        };
        let times = measure_syncs(&medium, 4_096, 3, &clock, &|| false).unwrap();
        assert_eq!(times, [Duration::from_millis(1); 3]);
        assert_eq!(medium.list().unwrap(), []);
    }

    #[test]
    fn it_ends_early_when_told_to_and_leaves_nothing_then_either() {
        let medium = MemoryMedium::new();
        let asked = Cell::new(0);
        let is_over = || {
            asked.set(asked.get() + 1);
            asked.get() > 2
        };
        let times = measure_syncs(&medium, 512, 100, &|| Duration::ZERO, &is_over).unwrap();
        assert_eq!(times.len(), 2);
        assert_eq!(medium.list().unwrap(), []);
    }

    #[test]
    fn a_start_that_clears_up_meanwhile_is_no_trouble() {
        let medium = MemoryMedium::new();
        let clears_up = || {
            // The first time it is there.
            let _ = medium.remove("spare-measure-sync");
            false
        };
        assert_eq!(measure_syncs(&medium, 512, 2, &|| Duration::ZERO, &clears_up).unwrap().len(), 2);
    }

    #[test]
    fn what_an_earlier_one_left_behind_is_in_nobodys_way() {
        let medium = MemoryMedium::new();
        medium.create("spare-measure-sync").unwrap();
        measure_syncs(&medium, 512, 1, &|| Duration::ZERO, &|| false).unwrap();
        assert_eq!(medium.list().unwrap(), []);
    }
}
