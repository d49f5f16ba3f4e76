//! A disk that really fails: an image in memory whose free blocks have been given back, in a memory that is full. A write
//! to the page cache succeeds, the write-back does not, the kernel tells it once and then calls the page clean.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};
use tokio::time::timeout;

use super::board::Board;
use super::broker::{Broker, Serve};
use super::crash_run::{Figures, stop};
use super::failure::Failure;
use super::ledger::Ledger;
use super::life::refuses_to_be_ready;
use super::load::{Load, STREAMS, check, make_streams};
use super::mount::{FileSystem, Mount, output_of};
use super::pause::{pause, wake};
use super::random::Random;

const MEMORY_BYTES: u64 = 384 << 20;
const IMAGE_BYTES: u64 = 320 << 20;
const BLOCK_BYTES: u64 = 4_096;

/// More records than fit the blocks that the disk still takes.
const RECEIPTS_MAX: u64 = 1_000;

/// Blocks that the full disk still takes at most, before it fails: how many is drawn in each cycle.
const BLOCKS_LEFT_MAX: u64 = 40;

/// The plan of a run.
#[derive(Debug, Clone)]
pub struct BrokenDiskRun {
    pub seed: u64,
    pub cycles: u64,
    /// A deliberate defect of the broker.
    pub sabotage: Option<String>,
    pub deadline: Duration,
}

impl BrokenDiskRun {
    /// Carries it out in `folder`.
    ///
    /// # Errors
    ///
    /// The first broken promise, or what kept the run from going on.
    pub async fn run(&self, folder: &Path) -> Result<Figures, Failure> {
        // Made here, so that the broker inside is gone when it is unmounted, whatever happens.
        let mut disk = BrokenDisk::make(folder)?;
        let mut figures = Figures::default();
        let ended = timeout(self.deadline, self.run_to_end(folder, &mut disk, &mut figures)).await;
        let ended = ended.unwrap_or_else(|_| Err(Failure::Trouble(format!("not done within {:?}", self.deadline))));
        match ended {
            Ok(()) => Ok(figures),
            Err(failure) => Err(failure.at(format_args!("cycle {}", figures.cycles))),
        }
    }

    async fn run_to_end(&self, folder: &Path, disk: &mut BrokenDisk, figures: &mut Figures) -> Result<(), Failure> {
        let mut random = Random::new(self.seed);
        let data = disk.mount.path().join("data");
        let mut serve = Serve { sabotage: self.sabotage.clone(), http: true, data, ..Serve::below(folder) };
        let mut broker = serve.start().await?;
        make_streams(&broker.client().await?).await?;
        let board = Arc::new(Board::new(self.seed, STREAMS.len()));
        while figures.cycles < self.cycles {
            figures.cycles += 1;
            let load = Load::start(&board, &broker.address());
            board.wait_for_receipts(1).await?;
            board.quiet().await?;
            // A producer that has not begun yet may still open its session. What is durable by then must stay so.
            pause(broker.pid()).await?;
            disk.fill(&serve.data, random.below(BLOCKS_LEFT_MAX + 1))?;
            wake(broker.pid())?;
            board.pause(false);
            self.wait_for_poison(&broker, &board).await?;
            broker.kill().await?;
            load.abort().await;
            figures.kills += 1;
            disk.empty()?;
            broker = serve.start().await?;
            // Goes on behind what the broker says it has, which it thereby acknowledges.
            board.pause(false);
            Load::start(&board, &broker.address()).finish().await?;
            check(&broker.client().await?, &board).await?;
            stop(broker, &serve).await?;
            // Only what reached the disk is there now.
            disk.mount_again()?;
            broker = serve.start().await?;
            figures.records = check(&broker.client().await?, &board).await?.iter().sum();
        }
        figures.receipts = board.sum(Ledger::receipts);
        figures.duplicates = board.sum(Ledger::duplicates);
        stop(broker, &serve).await?;
        Ok(())
    }

    /// Waits until the broker refuses to write. A deliberate defect may keep it from noticing.
    async fn wait_for_poison(&self, broker: &Broker, board: &Board) -> Result<(), Failure> {
        let noticed = tokio::select! {
            noticed = refuses_to_be_ready(broker) => noticed.map(|()| true)?,
            went_on = board.wait_for_receipts(RECEIPTS_MAX) => went_on.map(|()| false)?,
        };
        match noticed || self.sabotage.is_some() {
            true => Ok(()),
            false => Err(Failure::Trouble("the disk did not fail".to_owned())),
        }
    }
}

/// See the module.
#[derive(Debug)]
struct BrokenDisk {
    // In this order: the limit is lifted while the device is there, and the image is unmounted before the memory it lies in.
    whole_writes: Option<WholeWrites>,
    mount: Mount,
    image: PathBuf,
    filler: PathBuf,
    _memory: Mount,
}

impl BrokenDisk {
    fn make(folder: &Path) -> Result<Self, Failure> {
        let point = folder.join("memory");
        let memory = Mount::in_memory(&point, &format!("size={MEMORY_BYTES}"))?;
        let image = point.join("disk.image");
        // Without a journal, whose blocks would fail as well and end the file system instead of a file.
        let words = ["-b", "4096", "-O", "^has_journal", "-E", "lazy_itable_init=0"];
        let mount = Mount::image(&image, IMAGE_BYTES, &folder.join("disk"), FileSystem::Ext4, &words)?;
        let whole_writes = Some(WholeWrites::only(&mount)?);
        Ok(Self { whole_writes, mount, image, filler: point.join("filler"), _memory: memory })
    }

    /// Takes the memory away from the blocks of the active segment that hold nothing yet, and gives all but `blocks_left`
    /// blocks of it to another file: what is written there from now on soon has nowhere to go.
    fn fill(&self, data: &Path, blocks_left: u64) -> Result<(), Failure> {
        let image = File::options().write(true).open(&self.image);
        let image = image.map_err(|error| Failure::trouble(self.image.display(), error))?;
        let entries = fs::read_dir(data).map_err(|error| Failure::trouble(data.display(), error))?;
        let names = entries.filter_map(Result::ok).map(|entry| entry.path());
        let segments =
            names.filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"segment-")));
        let active = segments.max().ok_or_else(|| Failure::violation("there is no segment"))?;
        punch_from_end(&active, &image).map_err(|error| Failure::trouble(active.display(), error))??;
        let filled = File::create(&self.filler).and_then(|filler| fill_up(&filler, blocks_left));
        filled.map_err(|error| Failure::trouble(self.filler.display(), error))
    }

    fn mount_again(&mut self) -> Result<(), Failure> {
        self.whole_writes = None;
        self.mount.mount_again()?;
        self.whole_writes = Some(WholeWrites::only(&self.mount)?);
        Ok(())
    }

    fn empty(&self) -> Result<(), Failure> {
        fs::remove_file(&self.filler).map_err(|error| Failure::trouble(self.filler.display(), error))
    }
}

/// Has the loop device below a mount ask for one block at a time.
///
/// It calls a write good of which only the beginning found room (`lo_complete_rq` in Linux's `drivers/block/loop.c` looks at
/// the length for reads only): of 17 blocks with room for one, fdatasync says that all are there. So a device that takes a
/// request of many blocks would be one that lies, and against that there is nothing that a broker can do; one that takes
/// single blocks fails, as a disk does.
#[derive(Debug)]
struct WholeWrites {
    limit: PathBuf,
    before: String,
}

impl WholeWrites {
    fn only(mount: &Mount) -> Result<Self, Failure> {
        let told = output_of("findmnt", &["-n".as_ref(), "-o".as_ref(), "SOURCE".as_ref(), mount.path().as_os_str()])?;
        let device = told.trim().strip_prefix("/dev/");
        let device = device.ok_or_else(|| Failure::trouble("findmnt", format!("{told:?} is no device")))?;
        let limit = PathBuf::from(format!("/sys/block/{device}/queue/max_sectors_kb"));
        let set = fs::read_to_string(&limit).and_then(|before| {
            fs::write(&limit, (BLOCK_BYTES / 1_024).to_string())?;
            Ok(before)
        });
        let before = set.map_err(|error| Failure::trouble(limit.display(), error))?;
        Ok(Self { limit, before })
    }
}

impl Drop for WholeWrites {
    fn drop(&mut self) {
        // The device keeps its limit when it is let go, and whoever takes it next would be slow.
        if let Err(error) = fs::write(&self.limit, &self.before) {
            eprintln!("{} is left as it is: {error}", self.limit.display());
        }
    }
}

/// Takes every free block but so many.
fn fill_up(mut filler: &File, blocks_left: u64) -> std::io::Result<()> {
    let block = vec![0xff; 1 << 20];
    for piece in [&block[..], &block[..BLOCK_BYTES as usize]] {
        loop {
            match filler.write(piece) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error),
            }
        }
    }
    let taken = filler.metadata()?.len();
    filler.set_len(taken.saturating_sub(blocks_left * BLOCK_BYTES))
}

fn punch_from_end(path: &Path, image: &File) -> std::io::Result<Result<(), Failure>> {
    // What is in the page cache only would be lost with the block that it belongs in, or bring it back.
    File::open(path)?.sync_all()?;
    let told = match output_of("filefrag", &["-v".as_ref(), "-b4096".as_ref(), path.as_os_str()]) {
        Ok(told) => told,
        Err(failure) => return Ok(Err(failure)),
    };
    let used = fs::read(path)?.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 / BLOCK_BYTES + 1);
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for (logical, physical, count) in told.lines().filter_map(extent) {
        let kept = used.saturating_sub(logical).min(count);
        if kept < count {
            fallocate(image, flags, (physical + kept) * BLOCK_BYTES, (count - kept) * BLOCK_BYTES)?;
        }
    }
    Ok(Ok(()))
}

/// First block in the file, first block on the disk, and how many: `0:  0..  255:  34816..  35071:  256: last,eof`.
fn extent(line: &str) -> Option<(u64, u64, u64)> {
    let mut fields = line.split(':').map(str::trim);
    fields.next()?.parse::<u64>().ok()?;
    let first = |field: &str| field.split("..").next()?.parse::<u64>().ok();
    Some((first(fields.next()?)?, first(fields.next()?)?, fields.next()?.parse().ok()?))
}
