//! One question: how fast does the log become durable? Append, write, fdatasync and watermark of one group after the other on
//! a real file; the files of coming segments are zeroed meanwhile, and not counted. The folder is beside the build.

mod work;

use std::cell::RefCell;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tidelog_protocol::StreamId;
use work::batches::Shape;
use work::log::DiskLog;

/// A log is begun anew when so much was written to it, in bytes.
const LOG_BYTES_MAX: u64 = 256 << 20;

fn group_commit(criterion: &mut Criterion) {
    let some = Shape { records: 37, record_bytes: 100 };
    let many = Shape { records: 37 * 16, record_bytes: 100 };
    for (name, shape, batches) in [("4 KiB", some, 1), ("1 MiB", many, 16)] {
        let batch = shape.dense(StreamId::new(8), 1);
        let mut group = criterion.benchmark_group("group commit");
        group.throughput(Throughput::Bytes(batches * batch.len() as u64));
        group.bench_function(format!("groups of {name}"), |bencher| {
            let log = RefCell::new(DiskLog::new(1));
            bencher.iter_batched(
                || {
                    let mut log = log.borrow_mut();
                    log.keep_house();
                    if log.written() > LOG_BYTES_MAX {
                        *log = DiskLog::new(1);
                    }
                },
                |()| {
                    let mut log = log.borrow_mut();
                    for _ in 0..batches {
                        log.append(0, &batch, shape.records);
                    }
                    log.commit();
                },
                BatchSize::PerIteration,
            );
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = group_commit
}
criterion_main!(benches);
