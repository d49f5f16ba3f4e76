//! One question: how long does a start take on a log of many records, with a checkpoint at its end and without one? A whole
//! start on a real folder that is in the page cache: recovery, the fold, a new segment. What is measured without a checkpoint
//! is also what the log behind a checkpoint costs. Records of the log a second.

mod work;

use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;
use tidelog::BrokerConfig;
use tidelog::clock::SystemClock;
use tidelog::local_broker::{LocalBroker, LocalBrokerConfig, OneTurn};
use tidelog_storage::{CheckpointFate, CheckpointSave, CheckpointStore as _, DiskCheckpoints, Entropy, Sabotages};
use work::batches::{LONE_RECORD, Shape};
use work::log::{disk, disk_folder};
use work::rig::Rig;

/// Each has written to the one stream.
const PRODUCERS: u64 = 10;
/// So many batches of each are in one group.
const GROUP_ROUNDS: u64 = 10;
/// Some 4 KiB.
const SMALL_BATCH: Shape = Shape { records: 40, record_bytes: 100 };

fn recovery(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _entered = runtime.enter();
    for (records, shape) in [(1_000_000, SMALL_BATCH), (100_000, LONE_RECORD)] {
        let folder = written(records, shape);
        let mut group = criterion.benchmark_group("recovery");
        group.throughput(Throughput::Elements(records));
        for (name, has_checkpoint) in [("without a checkpoint", false), ("with a checkpoint", true)] {
            group.bench_function(format!("{records} records in batches of {}, {name}", shape.name()), |bencher| {
                bencher.iter_batched(
                    || copy_of(folder.path(), has_checkpoint),
                    |copy| {
                        let broker = start(copy.path());
                        // Neither its end nor the removal of its folder is measured.
                        (broker, copy)
                    },
                    BatchSize::PerIteration,
                );
                let copy = copy_of(folder.path(), has_checkpoint);
                let broker = start(copy.path());
                let report = broker.recovery_report();
                let is_used = matches!(report.checkpoint, CheckpointFate::Used { .. });
                assert_eq!(is_used, has_checkpoint, "{:?}", report.checkpoint);
                assert!(report.damages.is_empty(), "{:?}", report.damages);
            });
        }
        group.finish();
    }
}

fn start(folder: &Path) -> LocalBroker {
    LocalBroker::open(LocalBrokerConfig {
        broker: BrokerConfig::on_disk(folder),
        clock: Arc::new(SystemClock::new()),
        entropy: Entropy::System,
        pace: Rc::new(OneTurn),
        sabotages: Sabotages::default(),
    })
    .expect("a sound log opens")
}

/// A log of so many records with a checkpoint of all of it, as a broker leaves it that stops in order.
fn written(records: u64, shape: Shape) -> TempDir {
    let folder = disk_folder();
    let mut rig = Rig::start(&disk(folder.path()));
    let stream = rig.create_stream("bench");
    let producers: Vec<_> = (0..PRODUCERS).map(|index| rig.open_producer(&format!("producer-{index}"))).collect();
    let rounds = records / PRODUCERS / u64::from(shape.records);
    for round in 0..rounds {
        let batch = shape.dense(stream, 1 + round * u64::from(shape.records));
        producers.iter().for_each(|grant| rig.publish(grant, &batch));
        if round % GROUP_ROUNDS == 0 || round + 1 == rounds {
            rig.commit();
        }
    }
    rig.write_last_footer();
    let snapshot = rig.snapshot();
    let save = CheckpointSave { stamp: snapshot.stamp, builds_on: None, changes: snapshot.values };
    DiskCheckpoints::new(folder.path()).save(save).expect("nothing fails");
    folder
}

/// A start changes its folder, so each has one of its own; synced, so that nothing of it is written back meanwhile.
fn copy_of(folder: &Path, has_checkpoint: bool) -> TempDir {
    let copy = disk_folder();
    copy_into(folder, copy.path(), has_checkpoint);
    copy
}

fn copy_into(from: &Path, to: &Path, has_checkpoint: bool) {
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("a readable folder");
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            if has_checkpoint {
                fs::create_dir(&target).expect("an empty folder");
                copy_into(&path, &target, has_checkpoint);
            }
        } else {
            fs::copy(&path, &target).expect("a readable file");
            fs::File::open(&target).and_then(|file| file.sync_all()).expect("a file just written");
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = recovery
}
criterion_main!(benches);
