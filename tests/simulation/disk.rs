//! The pace of the disk.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidelog::local_broker::{DiskWork, Pace};
use tidelog_storage::medium::{SimulatedMedium, SimulatedRng};
use tokio::sync::Notify;
use tokio::time::sleep;

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

pub(crate) type SharedPace = Rc<DiskPace>;
