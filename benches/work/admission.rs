//! A state of many producers that have written to many streams, and batches to be judged against it.

use bytes::Bytes;
use tidelog::state::{Admission, BatchAppended, Change, EpochRaised, Grant, State, StreamCreated, Verdict};
use tidelog_protocol::{
    AttemptId, BatchHeader, Epoch, Limits, Offset, ProducerId, ProducerName, StreamId, StreamName, StreamSettings,
    check_batch,
};
use tidelog_storage::Sabotages;
use tidelog_storage::medium::SimulatedRng;

use super::batches::{LONE_RECORD, Shape};

/// Batches to be judged, one after the other: more pairs than a cache line or a branch predictor remembers.
const SAMPLE: usize = 1_024;
/// What each pair has written before.
const SHAPE: Shape = LONE_RECORD;

/// A checked batch and who sent it.
struct Sent {
    grant: Grant,
    header: BatchHeader,
    batch: Bytes,
}

impl Sent {
    fn new(grant: Grant, batch: Bytes) -> Self {
        let header = check_batch(&batch, &Limits::default()).expect("a sound batch");
        Self { grant, header, batch }
    }
}

/// See the module's documentation.
pub(crate) struct Judged {
    state: State,
    next: Vec<Sent>,
    duplicates: Vec<Sent>,
}

impl Judged {
    /// Every producer has written one batch to every stream; the batches to judge are of pairs drawn at random.
    pub(crate) fn new(producers: u64, streams: u64) -> Self {
        let mut state = State::new(Sabotages::default());
        state.keep_no_journal();
        let mut position = 4_096;
        let mut place = || {
            position += 256;
            position
        };
        let streams: Vec<StreamId> = (0..streams)
            .map(|index| {
                let id = StreamId::new(place());
                let name = StreamName::new(format!("stream-{index}")).expect("a good name");
                let created = StreamCreated { id, name, settings: StreamSettings::default(), created_ms: 0 };
                apply(&mut state, Change::StreamCreated(created));
                id
            })
            .collect();
        let epoch = Epoch::new(1);
        let producers: Vec<ProducerId> = (0..producers)
            .map(|index| {
                let id = ProducerId::new(place());
                let name = ProducerName::new(format!("producer-{index}")).expect("a good name");
                let attempt = AttemptId::new([1; 16]);
                apply(&mut state, Change::EpochRaised(EpochRaised { id, name, epoch, attempt, decided_at: id.get() }));
                id
            })
            .collect();
        for stream in &streams {
            let first = Sent::new(Grant { producer: ProducerId::ANONYMOUS, epoch }, SHAPE.dense(*stream, 1));
            for (index, producer) in (0..).zip(&producers) {
                let batch = BatchAppended {
                    header: first.header,
                    producer: *producer,
                    epoch,
                    base_offset: Offset::new(index * u64::from(SHAPE.records)),
                    span: SHAPE.records,
                    skip: 0,
                    wall_ms: 0,
                    stored_bytes: 256,
                    decided_at: place(),
                };
                apply(&mut state, Change::BatchAppended(batch));
            }
        }
        let mut rng = SimulatedRng::new(7);
        let mut draw = |first: u64| {
            let mut one = || {
                let stream = *pick(&streams, &mut rng);
                let grant = Grant { producer: *pick(&producers, &mut rng), epoch };
                Sent::new(grant, SHAPE.dense(stream, first))
            };
            (0..SAMPLE).map(|_| one()).collect()
        };
        let (next, duplicates) = (draw(u64::from(SHAPE.records) + 1), draw(1));
        Self { state, next, duplicates }
    }

    /// Judges one new batch of each pair drawn; returns how many.
    pub(crate) fn judge_next(&self) -> u64 {
        self.judge(&self.next, |verdict| verdict == Verdict::Append { skip: 0 })
    }

    /// Judges batches that are stored already; returns how many.
    pub(crate) fn judge_duplicates(&self) -> u64 {
        self.judge(&self.duplicates, |verdict| matches!(verdict, Verdict::Duplicate { .. }))
    }

    fn judge(&self, sent: &[Sent], is_right: impl Fn(Verdict) -> bool) -> u64 {
        for Sent { grant, header, batch } in sent {
            let verdict = self.state.admit(grant, &Admission { header, batch });
            assert!(is_right(verdict), "{verdict:?}");
        }
        sent.len() as u64
    }
}

fn apply(state: &mut State, change: Change) {
    state.apply(&change).expect("changes follow one another");
}

fn pick<'a, T>(from: &'a [T], rng: &mut SimulatedRng) -> &'a T {
    from.get(rng.below(from.len() as u64) as usize).expect("below the length")
}
