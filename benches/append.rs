//! One question: what does the broker's own work on a batch cost (check, judge, assign, encode, answer), without network
//! and disk? A log in memory; the batch goes through the whole sequencer, group by group.

mod work;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tidelog::state::Grant;
use tidelog_protocol::{BatchBuilder, Epoch, Limits, ProducerId, StreamId};
use work::batches::{LONE_RECORD, SMALL_RECORDS, Shape};
use work::rig::Rig;

/// Batches in one group.
const GROUP_BATCHES: u64 = 64;

const NOBODY: Grant = Grant { producer: ProducerId::ANONYMOUS, epoch: Epoch::NONE };

fn publish(criterion: &mut Criterion) {
    for shape in [LONE_RECORD, SMALL_RECORDS] {
        let Shape { records, .. } = shape;
        let mut group = criterion.benchmark_group("publish");
        group.throughput(Throughput::Elements(u64::from(records) * GROUP_BATCHES));
        group.bench_function(format!("{GROUP_BATCHES} batches of {}, one group", shape.name()), |bencher| {
            let mut begun = Begun::start();
            let batch = anonymous(begun.stream, shape);
            bencher.iter_batched(
                || (),
                |()| {
                    for _ in 0..GROUP_BATCHES {
                        begun.rig.publish(&NOBODY, &batch);
                    }
                    begun.rig.commit();
                    begun.begin_anew_if_long();
                },
                BatchSize::PerIteration,
            );
        });
        group.bench_function(
            format!("{GROUP_BATCHES} batches of {}, one group, a named producer", shape.name()),
            |bencher| {
                let mut begun = Begun::start();
                // Both the set-up and the measured part need it, one after the other.
                let begun = std::cell::RefCell::new(&mut begun);
                bencher.iter_batched(
                    || begun.borrow_mut().next_batches(shape),
                    |batches| {
                        let begun = &mut **begun.borrow_mut();
                        for batch in &batches {
                            begun.rig.publish(&begun.grant, batch);
                        }
                        begun.rig.commit();
                        begun.begin_anew_if_long();
                        batches
                    },
                    BatchSize::PerIteration,
                );
            },
        );
        group.finish();
    }
}

/// A rig with a stream, and a producer that writes to it.
struct Begun {
    rig: Rig,
    stream: StreamId,
    grant: Grant,
    next: u64,
}

impl Begun {
    fn start() -> Self {
        let mut rig = Rig::in_memory();
        let (stream, grant) = (rig.create_stream("bench"), rig.open_producer("bench"));
        Self { rig, stream, grant, next: 1 }
    }

    fn begin_anew_if_long(&mut self) {
        if self.rig.is_long() {
            *self = Self::start();
        }
    }

    fn next_batches(&mut self, shape: Shape) -> Vec<Bytes> {
        let next = |_| {
            let batch = shape.dense(self.stream, self.next);
            self.next += u64::from(shape.records);
            batch
        };
        (0..GROUP_BATCHES).map(next).collect()
    }
}

fn anonymous(stream: StreamId, shape: Shape) -> Bytes {
    let limits = Limits::default();
    let mut builder = BatchBuilder::new();
    for value in shape.values() {
        builder.push_value(&value, &limits).expect("a small record fits");
    }
    builder.finish_anonymous(stream)
}

criterion_group!(benches, publish);
criterion_main!(benches);
