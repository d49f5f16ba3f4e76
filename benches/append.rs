//! One question: what does the broker's own work on a batch cost (check, judge, assign, encode, answer), without network
//! and disk? A log in memory; the batch goes through the whole sequencer, group by group.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tidelog::counters::Counters;
use tidelog::sequencer::{LiveBatch, Now, Sequencer, SequencerStart, SessionKey, Sink};
use tidelog::state::{Grant, State};
use tidelog_protocol::{
    Answer, BatchBuilder, Epoch, Limits, ProducerId, Response, ResponseResult, StreamId, StreamName, StreamSettings,
};
use tidelog_storage::medium::{Medium, MemoryMedium};
use tidelog_storage::{Job, JobOutcome, LogOptions, OpenedLog, ReplayTime, Sabotages, open};
use tokio::sync::oneshot;

const RECORD_BYTES: usize = 100;
/// Batches in one group.
const GROUP_BATCHES: u64 = 64;

/// Takes answers and gives them to nobody.
struct Nobody;

impl Sink for Nobody {
    fn answer(&mut self, _session: SessionKey, answer: Answer) {
        black_box(answer);
    }

    fn wants(&self, _stream: StreamId) -> bool {
        false
    }

    fn deliver(&mut self, _stream: StreamId, _batch: LiveBatch) {}

    fn remove(&mut self, _stream: StreamId) {}
}

struct Bench {
    sequencer: Sequencer,
    writer: tidelog_storage::Writer,
    housekeeping: tidelog_storage::Housekeeping,
    stream: StreamId,
}

impl Bench {
    fn start() -> Self {
        let medium: Arc<dyn Medium> = Arc::new(MemoryMedium::new());
        let log = open(&medium, &LogOptions::default(), 0, &mut |_| {}).expect("an empty log opens");
        let OpenedLog { appender, writer, housekeeping, durable, time, .. } = log;
        let sequencer = Sequencer::new(SequencerStart {
            state: State::new(Sabotages::default()),
            log: appender,
            durable_position: durable,
            time,
            limits: Limits::default(),
            counters: Arc::new(Counters::new()),
            sabotages: Sabotages::default(),
        });
        let mut bench = Self { sequencer, writer, housekeeping, stream: StreamId::new(0) };
        let (to, mut answer) = oneshot::channel();
        let name = StreamName::new("bench").expect("a good name");
        let created = bench.sequencer.create_stream(&name, true, &StreamSettings::default(), NOW, to);
        created.expect("there is room");
        bench.commit();
        let Ok(ResponseResult::Ok(Response::Stream(stream))) = answer.try_recv() else { panic!("no stream was made") };
        bench.stream = stream.id;
        bench
    }

    fn commit(&mut self) {
        while let Some(mut group) = self.sequencer.take_group() {
            let bytes = group.share();
            let committed = self.writer.commit(&mut group).expect("memory takes all");
            self.sequencer.handle_committed(committed.end, &bytes, Duration::ZERO, &mut Nobody);
        }
        if let Some(len) = self.sequencer.log().spare_wanted()
            && let Ok(JobOutcome::Spare(spare)) = self.housekeeping.run(&Job::PrepareSpare { len })
        {
            self.sequencer.log_mut().put_spare(spare);
        }
    }
}

const NOW: Now = Now { time: ReplayTime { wall_ms: 1, log_ms: 1 }, monotonic: Duration::ZERO };

fn publish(criterion: &mut Criterion) {
    let grant = Grant { producer: ProducerId::ANONYMOUS, epoch: Epoch::NONE };
    let limits = Limits::default();
    for records in [1_u64, 600] {
        let mut group = criterion.benchmark_group("publish");
        group.throughput(Throughput::Elements(records * GROUP_BATCHES));
        group.bench_function(
            format!("{GROUP_BATCHES} batches of {records} x {RECORD_BYTES} B, one group"),
            |bencher| {
                let mut bench = Bench::start();
                let mut builder = BatchBuilder::new();
                for _ in 0..records {
                    builder.push_value(&[7; RECORD_BYTES], &limits).expect("a small record fits");
                }
                let batch = builder.finish_anonymous(bench.stream);
                let mut count = 0_u32;
                bencher.iter_batched(
                    || count += 1,
                    |()| {
                        for _ in 0..GROUP_BATCHES {
                            let step = bench.sequencer.publish(SessionKey(1), &grant, &batch, NOW, &mut Nobody);
                            black_box(step);
                        }
                        bench.commit();
                        // The log is in memory: begin anew before it fills that.
                        if bench.sequencer.log().content_end() > 1 << 30 {
                            bench = Bench::start();
                        }
                    },
                    BatchSize::PerIteration,
                );
            },
        );
        group.finish();
    }
}

criterion_group!(benches, publish);
criterion_main!(benches);
