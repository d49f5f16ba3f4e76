//! One question: how fast are consumers served that are behind, once the bytes are in the page cache? Blocks of 256 KiB from a
//! real folder, every checksum looked at; a stream that has the log to itself, and one that shares it with fifteen others.

mod work;

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use work::batches::{SMALL_RECORDS, Shape};
use work::log::DiskLog;

/// What a subscription reads at once, in bytes.
const BLOCK_BYTES: usize = 256 << 10;
const LOG_BYTES: u64 = 48 << 20;

fn cold_read(criterion: &mut Criterion) {
    /// Some 4 KiB.
    const SMALL_BATCH: Shape = Shape { records: 40, record_bytes: 100 };
    for (name, subjects, shape) in [
        ("a stream alone, batches of 60 KB", 1, SMALL_RECORDS),
        ("a stream alone, batches of 4 KB", 1, SMALL_BATCH),
        ("one of 16 streams, batches of 4 KB", 16, SMALL_BATCH),
    ] {
        let mut log = DiskLog::new(subjects);
        log.fill(shape, LOG_BYTES);
        let mut plan = log.plan(0);
        // How much a block holds in the mean; the last one of a round may be short.
        let blocks = 64;
        let bytes: usize = (0..blocks).map(|_| log.read(&mut plan, 0, BLOCK_BYTES)).sum();
        let mut group = criterion.benchmark_group("cold read");
        group.throughput(Throughput::Bytes(bytes as u64 / blocks));
        group.bench_function(name, |bencher| bencher.iter(|| log.read(&mut plan, 0, BLOCK_BYTES)));
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = cold_read
}
criterion_main!(benches);
