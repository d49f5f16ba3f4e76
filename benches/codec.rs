//! One question: what does a batch cost to build, to check, and to look at? Bytes of the values a second.

mod work;

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidelog_protocol::{BatchBuilder, Limits, StreamId, check_batch, verify_content_crc};
use work::batches::{LARGE_RECORDS, SMALL_RECORDS, build, decode};

fn codec(criterion: &mut Criterion) {
    let limits = Limits::default();
    let stream = StreamId::new(8);
    for shape in [SMALL_RECORDS, LARGE_RECORDS] {
        let mut group = criterion.benchmark_group("codec");
        group.throughput(Throughput::Bytes(shape.value_bytes()));
        let name = shape.name();
        let (values, batch) = (shape.values(), shape.dense(stream, 1));
        let mut builder = BatchBuilder::new();
        group.bench_function(format!("build {name}, producer"), |bencher| {
            bencher.iter(|| build(&mut builder, black_box(&values), stream, 1));
        });
        group.bench_function(format!("check {name}, broker"), |bencher| {
            bencher.iter(|| check_batch(black_box(&batch), &limits).expect("a sound batch"));
        });
        group.bench_function(format!("verify and decode {name}, consumer"), |bencher| {
            bencher.iter(|| {
                assert!(verify_content_crc(black_box(&batch)), "a sound batch");
                decode(&batch)
            });
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = codec
}
criterion_main!(benches);
