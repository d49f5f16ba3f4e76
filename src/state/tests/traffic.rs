//! Random traffic, honest and not, held against a plain list.

use bytes::Bytes;
use proptest::prelude::*;
use tidelog_protocol::{BatchRecords, Epoch, ErrorCode, Limits, ProducerId, StreamId, check_batch};
#[cfg(feature = "sabotage")]
use tidelog_storage::Sabotages;

use super::*;

const PRODUCERS: usize = 3;
const STREAMS: usize = 2;

/// One thing that a client does, honest or not.
#[derive(Debug, Clone)]
enum Act {
    /// A batch that starts `ahead` of the expected sequence, from a session `epochs_ago`, whose record number `lie` is not
    /// what the producer says under that sequence otherwise.
    Dense {
        producer: usize,
        stream: usize,
        ahead: i64,
        count: u64,
        epochs_ago: u64,
        lie: Option<usize>,
    },
    /// A batch that names the sequence before it `ahead` of the last one; gaps between its sequences.
    Sparse {
        producer: usize,
        stream: usize,
        ahead: i64,
        gaps: Vec<u64>,
        epochs_ago: u64,
        lie: Option<usize>,
    },
    /// Some batch of before, byte for byte.
    Resend {
        pick: prop::sample::Index,
        epochs_ago: u64,
    },
    Open {
        producer: usize,
    },
    Anonymous {
        stream: usize,
    },
    /// A stream is removed, and made again under its name.
    Remake {
        stream: usize,
    },
    /// The broker starts again from its log.
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let who = (0..PRODUCERS, 0..STREAMS);
    let epochs_ago = prop_oneof![9 => Just(0_u64), 1 => 1..3_u64];
    let lie = prop_oneof![4 => Just(None), 1 => (0..4_usize).prop_map(Some)];
    let ahead = prop_oneof![4 => Just(0_i64), 4 => -8..0_i64, 1 => 1..4_i64];
    prop_oneof![
        8 => (who.clone(), ahead.clone(), 1..5_u64, epochs_ago.clone(), lie.clone()).prop_map(
            |((producer, stream), ahead, count, epochs_ago, lie)| Act::Dense { producer, stream, ahead, count, epochs_ago, lie }
        ),
        // The last producer is the sparse one, most of the time.
        3 => (0..STREAMS, ahead, prop::collection::vec(1..4_u64, 1..4), epochs_ago.clone(), lie).prop_map(
            |(stream, ahead, gaps, epochs_ago, lie)| Act::Sparse { producer: PRODUCERS - 1, stream, ahead, gaps, epochs_ago, lie }
        ),
        4 => (any::<prop::sample::Index>(), epochs_ago).prop_map(|(pick, epochs_ago)| Act::Resend { pick, epochs_ago }),
        1 => (0..PRODUCERS).prop_map(|producer| Act::Open { producer }),
        1 => (0..STREAMS).prop_map(|stream| Act::Anonymous { stream }),
        1 => (0..STREAMS).prop_map(|stream| Act::Remake { stream }),
        1 => Just(Act::Restart),
    ]
}

/// A record in a stream, as the model keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stored {
    producer: ProducerId,
    sequence: u64,
    value: Bytes,
}

struct Traffic {
    log: Log,
    streams: Vec<StreamId>,
    gone: Vec<StreamId>,
    producers: Vec<ProducerId>,
    model: Vec<Vec<Stored>>,
    /// Every batch that was sent by a named producer, with the place of its stream.
    sent: Vec<(ProducerId, usize, Bytes)>,
    /// Those of them that were stored as they came.
    whole: Vec<(ProducerId, Bytes)>,
    attempts: u8,
}

impl Traffic {
    fn new() -> Self {
        let mut log = Log { end: 1_000, ..Log::default() };
        let streams = (0..STREAMS).map(|number| log.stream(&format!("s{number}"))).collect();
        let producers = (0..PRODUCERS).map(|number| log.open(&format!("p{number}"), attempt(0)).producer).collect();
        let model = vec![Vec::new(); STREAMS];
        Self { log, streams, gone: Vec::new(), producers, model, sent: Vec::new(), whole: Vec::new(), attempts: 0 }
    }

    fn written(&self, producer: ProducerId, stream: usize) -> Vec<(usize, &Stored)> {
        self.model[stream].iter().enumerate().filter(|(_, stored)| stored.producer == producer).collect()
    }

    fn last(&self, producer: usize, stream: usize) -> u64 {
        self.written(self.producers[producer], stream).last().map_or(0, |(_, stored)| stored.sequence)
    }

    fn epoch(&self, producer: ProducerId) -> u64 {
        self.log.state.producers.producer(producer).unwrap().epoch.get()
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Dense { producer, stream, ahead, count, epochs_ago, lie } => {
                let expected = self.last(producer, stream) + 1;
                let first = expected.saturating_add_signed(ahead).max(1);
                let values: Vec<String> = (0..count).map(|at| value(first + at, lie == Some(at as usize))).collect();
                let values: Vec<&str> = values.iter().map(String::as_str).collect();
                let batch = dense(self.streams[stream], first, &values);
                self.publish(self.producers[producer], stream, batch, epochs_ago);
            }
            Act::Sparse { producer, stream, ahead, gaps, epochs_ago, lie } => {
                let previous = self.last(producer, stream).saturating_add_signed(ahead);
                let mut sequence = previous;
                let mut records = Vec::new();
                for (at, gap) in gaps.iter().enumerate() {
                    sequence += gap;
                    records.push((sequence, value(sequence, lie == Some(at))));
                }
                let records: Vec<(u64, &str)> =
                    records.iter().map(|(sequence, value)| (*sequence, value.as_str())).collect();
                let batch = sparse(self.streams[stream], previous, &records);
                self.publish(self.producers[producer], stream, batch, epochs_ago);
            }
            Act::Resend { pick, epochs_ago } => {
                if !self.sent.is_empty() {
                    let (producer, stream, batch) = self.sent[pick.index(self.sent.len())].clone();
                    self.publish(producer, stream, batch, epochs_ago);
                }
            }
            Act::Open { producer } => {
                self.attempts = self.attempts.wrapping_add(1);
                self.log.open(&format!("p{producer}"), attempt(self.attempts));
            }
            Act::Anonymous { stream } => {
                let nobody = Grant { producer: ProducerId::ANONYMOUS, epoch: Epoch::NONE };
                assert_eq!(self.log.publish(&nobody, &anonymous(self.streams[stream], &["nobody"])), NEXT);
                let value = Bytes::from_static(b"nobody");
                self.model[stream].push(Stored { producer: ProducerId::ANONYMOUS, sequence: 0, value });
            }
            Act::Remake { stream } => {
                let id = self.streams[stream];
                self.log.remove(id);
                self.gone.push(id);
                self.streams[stream] = self.log.stream(&format!("s{stream}"));
                self.model[stream].clear();
            }
            Act::Restart => {
                let mut state = State::default();
                for change in &self.log.changes {
                    state.apply(change).unwrap();
                }
                assert_eq!(state, self.log.state, "the fold of the log is the state");
                self.log.state = state;
            }
        }
    }

    fn publish(&mut self, producer: ProducerId, stream: usize, batch: Bytes, epochs_ago: u64) {
        let current = self.epoch(producer);
        let epoch = current.saturating_sub(epochs_ago).max(1);
        let grant = Grant { producer, epoch: Epoch::new(epoch) };
        let header = check_batch(&batch, &Limits::default()).unwrap();
        let records: Vec<(u64, Bytes)> = BatchRecords::new(&batch)
            .unwrap()
            .map(|record| record.map(|(sequence, record)| (sequence.get(), record.value)).unwrap())
            .collect();
        let written: Vec<(usize, Stored)> =
            self.written(producer, stream).into_iter().map(|(at, stored)| (at, stored.clone())).collect();
        let find = |sequence: u64| written.iter().find(|(_, stored)| stored.sequence == sequence);
        let last = written.last().map_or(0, |(_, stored)| stored.sequence);
        let was_whole = self.whole.contains(&(producer, batch.clone()));
        self.sent.push((producer, stream, batch.clone()));

        let verdict = self.log.publish(&grant, &batch);
        if header.stream != self.streams[stream] {
            assert_eq!(verdict, refused(ErrorCode::StreamGone, 0), "it was meant for the one before");
            return;
        }
        if epoch < current {
            assert_eq!(verdict, refused(ErrorCode::Fenced, current));
            return;
        }
        match verdict {
            Verdict::Append { skip } => {
                let (skipped, new) = records.split_at(skip as usize);
                assert_eq!(
                    header.previous.get() + u64::from(skip),
                    last,
                    "nothing is left out and nothing comes twice"
                );
                assert!(skip == 0 || !header.is_sparse(), "sparse batches are never cut");
                if let Some((sequence, value)) = skipped.last() {
                    assert_eq!(
                        find(*sequence).map(|(_, stored)| &stored.value),
                        Some(value),
                        "the cut is where it was"
                    );
                }
                for (sequence, value) in new {
                    assert_eq!(find(*sequence), None, "a sequence is stored once");
                    self.model[stream].push(Stored { producer, sequence: *sequence, value: value.clone() });
                }
                if skip == 0 {
                    self.whole.push((producer, batch));
                }
            }
            Verdict::Duplicate { base_offset } => {
                assert!(
                    records.iter().all(|(sequence, _)| find(*sequence).is_some()),
                    "a duplicate is of what is stored"
                );
                let (last_sequence, last_value) = records.last().unwrap();
                if header.is_sparse() || *last_sequence == last {
                    assert_eq!(&find(*last_sequence).unwrap().1.value, last_value);
                }
                if header.is_sparse() {
                    assert!(was_whole, "a sparse duplicate is the very batch that was stored");
                }
                if let Some(base_offset) = base_offset {
                    for (at, (sequence, _)) in (base_offset.get() as usize..).zip(&records) {
                        assert_eq!(find(*sequence).unwrap().0, at, "that is where it is stored");
                    }
                }
                assert!(!was_whole || base_offset.is_some(), "a recent batch's offset is known");
            }
            Verdict::Refused(refusal) => {
                assert!(
                    !was_whole || refusal.code == ErrorCode::SequenceMode,
                    "an honest retry was refused: {refusal:?}"
                );
                let is_next = header.previous.get() == last;
                let turns_dense = self
                    .log
                    .state
                    .producers
                    .sequence(producer, self.streams[stream])
                    .is_some_and(|state| state.is_sparse)
                    && !header.is_sparse();
                assert!(!is_next || turns_dense, "the next batch was refused: {refusal:?}");
                // However it was cut: as long as nothing is left out and the old records are those that are stored.
                let is_honest = !header.is_sparse()
                    && header.previous.get() <= last
                    && records
                        .iter()
                        .filter(|(sequence, _)| *sequence <= last)
                        .all(|(sequence, value)| find(*sequence).is_some_and(|(_, stored)| stored.value == *value));
                assert!(!is_honest || turns_dense, "an honest batch, cut otherwise, was refused: {refusal:?}");
                let expected = match refusal.code {
                    ErrorCode::SequenceGap if header.is_sparse() => last,
                    ErrorCode::SequenceGap => last + 1,
                    ErrorCode::SequenceMode
                    | ErrorCode::SequenceReused
                    | ErrorCode::SequencePast
                    | ErrorCode::SequenceOverlap => last,
                    other => panic!("refused for {other:?}"),
                };
                assert_eq!(refusal.detail, expected);
            }
        }
    }

    /// What must hold at any time.
    fn check(&self) {
        for (number, stream) in self.streams.iter().enumerate() {
            assert_eq!(self.log.tail(*stream), self.model[number].len() as u64, "offsets are dense");
            for producer in &self.producers {
                let sequences: Vec<u64> =
                    self.written(*producer, number).iter().map(|(_, stored)| stored.sequence).collect();
                assert!(sequences.is_sorted_by(|one, next| one < next), "each once, in order: {sequences:?}");
                let state = self.log.state.producers.sequence(*producer, *stream);
                assert_eq!(state.map_or(0, |state| state.last.get()), sequences.last().copied().unwrap_or(0));
            }
        }
        for (stream, producer) in self.gone.iter().flat_map(|gone| self.producers.iter().map(move |of| (*gone, *of))) {
            assert_eq!(self.log.state.producers.sequence(producer, stream), None, "nothing is kept of what is gone");
        }
    }
}

fn value(sequence: u64, is_lie: bool) -> String {
    if is_lie { format!("another {sequence}") } else { format!("record {sequence}") }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_clients_send_each_record_is_stored_once_in_order_and_a_duplicate_is_of_what_is_stored(
        acts in prop::collection::vec(act(), 1..80),
    ) {
        let mut traffic = Traffic::new();
        for act in acts {
            traffic.act(act);
            traffic.check();
        }
    }
}

#[cfg(feature = "sabotage")]
mod sabotaged {
    //! Without its check the property above fails: it is able to.

    use super::*;
    use tidelog_storage::Sabotage;

    fn with(sabotage: Sabotage) -> Traffic {
        let mut traffic = Traffic::new();
        let mut state = State::new(Sabotages::default().with(sabotage));
        for change in &traffic.log.changes {
            state.apply(change).unwrap();
        }
        traffic.log.state = state;
        traffic
    }

    fn run(mut traffic: Traffic, acts: &[Act]) {
        for act in acts {
            traffic.act(act.clone());
            traffic.check();
        }
    }

    const NEXT_ONE: Act = Act::Dense { producer: 0, stream: 0, ahead: 0, count: 2, epochs_ago: 0, lie: None };

    #[test]
    #[should_panic(expected = "a duplicate is of what is stored")]
    fn any_old_is_duplicate() {
        let sparse =
            |ahead, gap| Act::Sparse { producer: 2, stream: 0, ahead, gaps: vec![gap], epochs_ago: 0, lie: None };
        run(with(Sabotage::AnyOldIsDuplicate), &[sparse(0, 5), sparse(-4, 2)]);
    }

    #[test]
    #[should_panic(expected = "nothing is left out")]
    fn accept_any_first_sequence() {
        run(
            with(Sabotage::AcceptAnyFirstSequence),
            &[Act::Dense { producer: 0, stream: 0, ahead: 3, count: 1, epochs_ago: 0, lie: None }],
        );
    }

    #[test]
    #[should_panic(expected = "Fenced")]
    fn fence_only_at_connect() {
        let old = Act::Dense { producer: 0, stream: 0, ahead: 0, count: 1, epochs_ago: 1, lie: None };
        run(with(Sabotage::FenceOnlyAtConnect), &[NEXT_ONE, Act::Open { producer: 0 }, old]);
    }
}
