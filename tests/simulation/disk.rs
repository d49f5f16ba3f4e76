//! The pace of the disk, and the clock of the machine.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tidelog::clock::Clock;
use tidelog::local_broker::{DiskWork, Pace};
use tidelog_storage::medium::{SimulatedMedium, SimulatedRng};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::trace::Trace;

/// How long the disk works; it never comes back from the operation at which the machine has stopped.
#[derive(Debug)]
pub(crate) struct DiskPace {
    pub(crate) disk: SimulatedMedium,
    pub(crate) rng: RefCell<SimulatedRng>,
    /// The next sync takes longer than the broker waits.
    pub(crate) hangs: Cell<bool>,
    pub(crate) trace: Trace,
    /// Told when the machine has stopped.
    pub(crate) death: Arc<Notify>,
}

/// Longer than the broker of these tests waits for a sync.
pub(crate) const HANG: Duration = Duration::from_secs(4);
/// So long it waits.
pub(crate) const SYNC_TIMEOUT: Duration = Duration::from_secs(2);

impl DiskPace {
    fn time(&self, behind: DiskWork) -> Duration {
        let mut rng = self.rng.borrow_mut();
        let micros = match behind {
            DiskWork::Sync if self.hangs.replace(false) => return HANG,
            // Bytes that were written and are not synced yet are what a power cut takes: most of the time passes here.
            DiskWork::Write | DiskWork::Sync if rng.chance(60) => rng.below(300_000),
            DiskWork::Write => rng.below(6_000),
            DiskWork::Sync => rng.below(2_000),
            DiskWork::File => rng.below(20_000),
            _ => rng.below(4) * 50,
        };
        Duration::from_micros(micros)
    }
}

impl Pace for DiskPace {
    fn pause(&self, behind: DiskWork) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(async move {
            let time = self.time(behind);
            self.trace.count(&[behind as u64, time.as_nanos() as u64, self.disk.operations()]);
            if self.disk.is_stopped() {
                self.death.notify_one();
                std::future::pending::<()>().await;
            }
            match time.is_zero() {
                true => tokio::task::yield_now().await,
                false => sleep(time).await,
            }
        })
    }
}

/// Monotonic time is tokio's, which a simulation moves; the wall clock jumps besides.
#[derive(Debug)]
pub(crate) struct SimulatedClock {
    started: Instant,
    wall_ms: AtomicI64,
}

impl SimulatedClock {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), wall_ms: AtomicI64::new(1_700_000_000_000) }
    }

    pub(crate) fn jump(&self, by_ms: i64) {
        self.wall_ms.fetch_add(by_ms, Ordering::Relaxed);
    }
}

impl Clock for SimulatedClock {
    fn wall_ms(&self) -> i64 {
        self.wall_ms.load(Ordering::Relaxed) + self.started.elapsed().as_millis() as i64
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

pub(crate) type SharedPace = Rc<DiskPace>;
