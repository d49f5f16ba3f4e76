//! A broker under load whose disk loses, again and again, everything that was not synced.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use tokio::time::timeout;

use super::board::{Board, Phase};
use super::broker::{Broker, Serve};
use super::crash_run::{Figures, stop};
use super::failure::Failure;
use super::fault::{self, Action, Fault, Kind};
use super::ledger::Ledger;
use super::life::LOG_THREAD;
use super::load::{Load, check, make_streams};
use super::mount::{Cutter, FileSystem, Mount};
use super::random::Random;

const PAGE_BYTES: u64 = 4096;
/// How long a sync is held back so that pages can be written back before it.
const HELD_BACK_MS: u64 = 15;
/// Pages of one file that are looked at; those of a larger segment would take longer than a cycle.
const PAGES_MAX: u64 = 8_192;

/// The plan of a run.
#[derive(Debug, Clone)]
pub struct PowerRun {
    pub seed: u64,
    pub cuts: u64,
    pub file_system: FileSystem,
    /// A deliberate defect of the broker.
    pub sabotage: Option<String>,
    /// Cuts only when a new segment has just come into use, and at once.
    pub at_new_segments: bool,
    /// So long the whole run may take.
    pub deadline: Duration,
}

impl PowerRun {
    /// Carries it out in `folder`.
    ///
    /// # Errors
    ///
    /// The first broken promise, or what kept the run from going on.
    pub async fn run(&self, folder: &Path) -> Result<Figures, Failure> {
        // Made here, so that the broker inside is gone when it is unmounted, whatever happens.
        let mut mount = Mount::make(folder, self.file_system)?;
        let mut figures = Figures::default();
        let ended = timeout(self.deadline, self.run_to_end(folder, &mut mount, &mut figures)).await;
        let ended = ended.unwrap_or_else(|_| Err(Failure::Trouble(format!("not done within {:?}", self.deadline))));
        match ended {
            Ok(()) => Ok(figures),
            Err(failure) => Err(failure.at(format_args!("cycle {}", figures.cycles))),
        }
    }

    async fn run_to_end(&self, folder: &Path, mount: &mut Mount, figures: &mut Figures) -> Result<(), Failure> {
        let mut random = Random::new(self.seed);
        let mut serve =
            Serve { sabotage: self.sabotage.clone(), data: mount.path().join("data"), ..Serve::below(folder) };
        let can_hold_back = fault::why_not().is_none();
        let mut broker = serve.start().await?;
        make_streams(&broker.client().await?).await?;
        let board = Arc::new(Board::new(self.seed, super::load::STREAMS.len()));
        let mut load = Load::start(&board, &broker.address());
        for cut in 1..=self.cuts {
            figures.cycles = cut;
            if random.one_in(2) {
                board.wait_for_receipts(1).await?;
                load.disturb(&mut random, None);
                figures.disturbances += 1;
            }
            let cutter = mount.cutter()?;
            self.wait_for_the_moment(&serve.data, &board, &mut random).await?;
            if serve.fault.is_some() || (!self.at_new_segments && random.one_in(2)) {
                write_back(&serve.data, &mut random);
            }
            if !self.at_new_segments && random.one_in(2) {
                broker.kill().await?;
                cutter.cut()?;
                mount.mount_again()?;
                self.hold_back(&mut serve, &mut random, can_hold_back);
                broker = serve.start().await?;
            } else {
                cut_below(broker, cutter, &board).await?;
                // Programs on the machine are gone with it.
                load.abort().await;
                mount.mount_again()?;
                board.set_phase(Phase::Open);
                self.hold_back(&mut serve, &mut random, can_hold_back);
                broker = serve.start().await?;
                load = Load::start(&board, &broker.address());
            }
            figures.kills += 1;
            check(&broker.client().await?, &board).await?;
        }
        load.finish().await?;
        figures.records = check(&broker.client().await?, &board).await?.iter().sum();
        figures.receipts = board.sum(Ledger::receipts);
        figures.duplicates = board.sum(Ledger::duplicates);
        stop(broker, &serve).await?;
        Ok(())
    }

    /// Has every second broker's log wait a while between write and sync: only then are there pages to be written back in
    /// any order, and a cut finds some of a group on the disk and some not.
    fn hold_back(&self, serve: &mut Serve, random: &mut Random, can: bool) {
        let holds = can && !self.at_new_segments && random.one_in(2);
        serve.fault = holds.then(|| Fault {
            kinds: vec![Kind::Sync],
            thread: LOG_THREAD.to_owned(),
            calls: u64::MAX,
            ..Fault::at(1, Action::Delay(HELD_BACK_MS))
        });
    }

    /// Soon, late, or with the first answer that comes from a new segment, whose name may be all that is not stored.
    async fn wait_for_the_moment(&self, data: &Path, board: &Board, random: &mut Random) -> Result<(), Failure> {
        match random.below(3) {
            0 | 1 if self.at_new_segments => wait_for_new_segment(data, board).await,
            0 => board.wait_for_receipts(1 + random.below(20)).await,
            1 => board.wait_for_receipts(1 + random.below(4_000)).await,
            _ => wait_for_new_segment(data, board).await,
        }
    }
}

/// Looks whenever a record is acknowledged or seen.
async fn wait_for_new_segment(data: &Path, board: &Board) -> Result<(), Failure> {
    let before = segments(data);
    board.wait(|_| segments(data) > before).await
}

/// How many segments there are.
fn segments(data: &Path) -> usize {
    let Ok(entries) = fs::read_dir(data) else { return 0 };
    entries.filter_map(Result::ok).filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"segment-")).count()
}

/// Cuts the disk off below a broker that is at work.
async fn cut_below(broker: Broker, cutter: Cutter, board: &Board) -> Result<(), Failure> {
    // An answer that leaves while the cut is under way was decided before it or is a lie, so it counts. What readers are
    // told by a broker whose disk is gone does not.
    board.set_phase(Phase::Cutting);
    let cut = cutter.cut();
    board.set_phase(Phase::Closed);
    cut?;
    // It may have ended by itself: that is as good as any end without a disk.
    broker.kill_if_running().await
}

/// Has random pages of the newest files written to the disk, as the kernel may at any moment and in any order.
fn write_back(data: &Path, random: &mut Random) {
    let Ok(entries) = fs::read_dir(data) else { return };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let Ok(file) = File::open(&path) else { continue };
        let pages = file.metadata().map_or(0, |metadata| metadata.len() / PAGE_BYTES);
        for page in 0..pages.min(PAGES_MAX) {
            if random.one_in(2) {
                // Starts the write of the page if it is dirty, and does not wait for it.
                let _ = fadvise(&file, page * PAGE_BYTES, std::num::NonZeroU64::new(PAGE_BYTES), Advice::DontNeed);
            }
        }
    }
}
