//! One question: does the judgement of a batch stay cheap when many producers have written to many streams? Batches a second,
//! the check of their bytes aside.

mod work;

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use work::admission::Judged;

fn admission(criterion: &mut Criterion) {
    for (producers, streams) in [(1, 1), (1_000, 100)] {
        let pairs = producers * streams;
        let judged = Judged::new(producers, streams);
        let mut group = criterion.benchmark_group("admission");
        group.throughput(Throughput::Elements(judged.judge_next()));
        group.bench_function(format!("next, {pairs} pairs"), |bencher| bencher.iter(|| judged.judge_next()));
        group.throughput(Throughput::Elements(judged.judge_duplicates()));
        group.bench_function(format!("duplicate, {pairs} pairs"), |bencher| bencher.iter(|| judged.judge_duplicates()));
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = admission
}
criterion_main!(benches);
