//! The steps of the log, as the broker's own tasks come to them: where its disk is slow or fails, and where it dies.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::clock::TestClock;
use super::disk::Disk;
use super::ordeal::{Death, Ending, Ordeal, Step, Strike};
use crate::inline::{DiskWork, Pace};

/// The pace of a broker that something may befall.
#[derive(Debug)]
pub(super) struct OrdealPace {
    pub(super) ordeal: Arc<Ordeal>,
    pub(super) disk: Disk,
    pub(super) clock: Arc<TestClock>,
    /// Batches of the group that is taken up.
    pub(super) batches: Cell<u64>,
}

impl OrdealPace {
    async fn at(&self, step: Step) {
        let strike = match self.batches.get() {
            0 => self.ordeal.at_without_publishes(step),
            _ => self.ordeal.at(step),
        };
        match strike {
            None | Some(Strike::Cut) => {}
            Some(Strike::Dies(death)) => self.dies(death).await,
            Some(Strike::Late(by)) => self.ordeal.late(by, |_| Duration::ZERO).await,
            Some(Strike::CutOff(time)) => self.ordeal.cut_off(time),
            Some(Strike::SyncFails) => self.disk.fail_next_sync(),
            Some(Strike::WriteFails) => self.disk.fail_next_write(),
            Some(Strike::Torn) => self.disk.tear_next_write(),
            Some(Strike::Jump(by_ms)) => self.clock.jump_ms(by_ms),
        }
    }

    async fn dies(&self, death: Death) {
        self.ordeal.die(Ending { death, is_sudden: true });
        std::future::pending::<()>().await;
    }

    async fn stops_with_the_disk(&self) {
        if let Some(death) = self.disk.has_stopped() {
            self.dies(death).await;
        }
    }
}

impl Pace for OrdealPace {
    fn take_up(&self, batches: u64) {
        self.batches.set(batches);
    }

    fn pause(&self, work: DiskWork) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(async move {
            self.stops_with_the_disk().await;
            match work {
                DiskWork::Write => self.at(Step::AfterWrite).await,
                DiskWork::Sync => self.at(Step::AfterSync).await,
                _ => {}
            }
            tokio::task::yield_now().await;
        })
    }

    fn before(&self, work: DiskWork) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(async move {
            match work {
                DiskWork::Write => self.at(Step::BeforeWrite).await,
                DiskWork::Sync => {
                    self.ordeal.late(Duration::ZERO, |standing| standing.disk_late).await;
                    self.at(Step::BeforeSync).await;
                }
                _ => {}
            }
        })
    }
}
