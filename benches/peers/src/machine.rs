//! What the machine itself reaches, and what else runs on it.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Outcome;

const APPENDS: usize = 100;
const APPEND_BYTES: usize = 4096;

/// Appends 4 KiB to a file that was zeroed and synced before, with an fdatasync after each.
pub(crate) fn fdatasync_times(folder: &Path) -> Outcome<Vec<Duration>> {
    let path = folder.join("fdatasync");
    let mut file = File::create_new(&path)?;
    file.write_all(&vec![0; APPENDS * APPEND_BYTES])?;
    file.sync_all()?;
    let block = [7; APPEND_BYTES];
    let mut times = Vec::with_capacity(APPENDS);
    for append in 0..APPENDS {
        let start = Instant::now();
        file.write_all_at(&block, (append * APPEND_BYTES) as u64)?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    fs::remove_file(path)?;
    Ok(times)
}

/// Settles that the files of a measurement are removed (what of them was never written then never will be), so that
/// nobody pays for another's bytes.
pub(crate) fn settle(folder: &Path) -> Outcome<()> {
    Ok(File::open(folder)?.sync_all()?)
}

/// Processor time since the machine and this process were started.
#[derive(Clone, Copy)]
pub(crate) struct Processors {
    since: Instant,
    busy: Duration,
    own: Duration,
}

impl Processors {
    pub(crate) fn now() -> Outcome<Self> {
        let tick = |count: u64| Duration::from_millis(count * 1000 / rustix::param::clock_ticks_per_second());
        let stat = fs::read_to_string("/proc/stat")?;
        let total = stat.lines().next().ok_or("no processors")?;
        // user nice system idle iowait irq softirq steal
        let counts: Vec<u64> = total.split_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>()?;
        let busy =
            counts.iter().enumerate().take(7).filter(|(at, _)| ![3, 4].contains(at)).map(|(_, count)| count).sum();
        let own = fs::read_to_string("/proc/self/stat")?;
        let (_, fields) = own.rsplit_once(')').ok_or("no process name in its statistics")?;
        // Of this process and of the children that have ended.
        let own: Vec<u64> = fields.split_whitespace().skip(11).take(4).map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { since: Instant::now(), busy: tick(busy), own: tick(own.iter().sum()) })
    }

    /// The share of all processors that other programs have used from `earlier` until now.
    pub(crate) fn others_since(self, earlier: Self) -> f64 {
        let spent = (self.since - earlier.since).as_secs_f64() * processors() as f64;
        let others = (self.busy - earlier.busy).saturating_sub(self.own.saturating_sub(earlier.own));
        others.as_secs_f64() / spent
    }
}

pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Kernel and load, in words.
pub(crate) fn description() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("Linux {}, {} processors", kernel.trim().split('-').next().unwrap_or_default(), processors())
}
