//! Every row of the producers table, what holes leave in doubt, and what in a log contradicts itself.

mod removal;
mod traffic;

use bytes::Bytes;
use tidelog_protocol::{
    AttemptId, BatchBuilder, Epoch, ErrorCode, Limits, Offset, ProducerId, ProducerName, Sequence, StreamId,
    StreamName, StreamSettings, check_batch,
};

use super::*;

/// The values of a batch's records.
fn builder(values: &[&str]) -> BatchBuilder {
    let mut builder = BatchBuilder::new();
    for value in values {
        builder.push_value(value.as_bytes(), &Limits::default()).unwrap();
    }
    builder
}

fn dense(stream: StreamId, first: u64, values: &[&str]) -> Bytes {
    builder(values).finish_dense(stream, Sequence::new(first))
}

fn sparse(stream: StreamId, previous: u64, records: &[(u64, &str)]) -> Bytes {
    let values: Vec<&str> = records.iter().map(|(_, value)| *value).collect();
    let sequences: Vec<Sequence> = records.iter().map(|(sequence, _)| Sequence::new(*sequence)).collect();
    builder(&values).finish_sparse(stream, Sequence::new(previous), &sequences).unwrap()
}

fn anonymous(stream: StreamId, values: &[&str]) -> Bytes {
    builder(values).finish_anonymous(stream)
}

fn attempt(number: u8) -> AttemptId {
    AttemptId::new([number; 16])
}

fn named(name: &str) -> ProducerName {
    ProducerName::new(name).unwrap()
}

const fn refused(code: ErrorCode, detail: u64) -> Verdict {
    Verdict::Refused(Refusal { code, detail })
}

const fn duplicate(base_offset: Option<u64>) -> Verdict {
    match base_offset {
        Some(offset) => Verdict::Duplicate { base_offset: Some(Offset::new(offset)) },
        None => Verdict::Duplicate { base_offset: None },
    }
}

const NEXT: Verdict = Verdict::Append { skip: 0 };

/// A log without bytes: positions count up, and what is admitted is applied.
#[derive(Debug, Default)]
struct Log {
    state: State,
    end: u64,
    changes: Vec<Change>,
}

impl Log {
    const ENTRY_LEN: u64 = 8;

    fn apply(&mut self, change: Change) -> Result<(), ReplayError> {
        self.end += Self::ENTRY_LEN;
        let applied = self.state.apply(&change);
        self.changes.push(change);
        applied
    }

    /// The next `len` positions can't be read any more.
    fn hole(&mut self, len: u64) {
        self.state.apply_hole(self.end..self.end + len);
        self.end += len;
    }

    fn stream(&mut self, name: &str) -> StreamId {
        let id = StreamId::new(self.end);
        let name = StreamName::new(name).unwrap();
        self.apply(Change::StreamCreated(StreamCreated {
            id,
            name,
            settings: StreamSettings::default(),
            created_ms: 5,
        }))
        .unwrap();
        id
    }

    fn remove(&mut self, stream: StreamId) {
        self.apply(Change::StreamRemoved(StreamRemoved { id: stream, decided_at: self.end })).unwrap();
    }

    /// Opens a producer from the epoch that it has.
    fn open(&mut self, name: &str, attempt: AttemptId) -> Grant {
        let name = named(name);
        let found = self.state.producers.describe(&name).epoch;
        let OpenDecision::Raise { id, epoch } = self.state.producers.open(&name, found, attempt, 100) else {
            panic!("not opened")
        };
        let decided_at = self.end;
        let id = id.unwrap_or(ProducerId::new(decided_at));
        self.apply(Change::EpochRaised(EpochRaised { id, name, epoch, attempt, decided_at })).unwrap();
        self.state.producers.attach(id, epoch, attempt).unwrap()
    }

    fn judge(&self, grant: &Grant, batch: &Bytes) -> Verdict {
        let header = check_batch(batch, &Limits::default()).unwrap();
        self.state.admit(grant, &Admission { header: &header, batch })
    }

    fn appended(&self, grant: &Grant, batch: &Bytes, skip: u32) -> BatchAppended {
        let header = check_batch(batch, &Limits::default()).unwrap();
        let base_offset = self.state.catalogue.stream(header.stream).map_or(Offset::new(0), |stream| stream.tail);
        BatchAppended {
            base_offset,
            span: header.count - skip,
            skip,
            header,
            producer: grant.producer,
            epoch: grant.epoch,
            wall_ms: 7,
            stored_bytes: Self::ENTRY_LEN,
            decided_at: self.end,
        }
    }

    /// What a broker does with a batch: judges it, and appends it if it is new.
    fn publish(&mut self, grant: &Grant, batch: &Bytes) -> Verdict {
        let verdict = self.judge(grant, batch);
        if let Verdict::Append { skip } = verdict {
            let appended = self.appended(grant, batch, skip);
            self.apply(Change::BatchAppended(appended)).unwrap();
        }
        verdict
    }

    fn tail(&self, stream: StreamId) -> u64 {
        self.state.catalogue.stream(stream).unwrap().tail.get()
    }
}

/// A stream, and a producer that has not written to it.
fn started() -> (Log, StreamId, Grant) {
    // As in a real log, whose first entry is that of its first start.
    let mut log = Log { end: 1_000, ..Log::default() };
    let stream = log.stream("orders");
    let grant = log.open("p", attempt(1));
    (log, stream, grant)
}

// The table.

#[test]
fn an_older_epoch_is_fenced_whatever_it_sends() {
    let (mut log, stream, old) = started();
    assert_eq!(log.publish(&old, &dense(stream, 1, &["a"])), NEXT);
    let new = log.open("p", attempt(2));
    for batch in
        [dense(stream, 2, &["b"]), dense(stream, 1, &["a"]), dense(stream, 9, &["x"]), sparse(stream, 1, &[(5, "e")])]
    {
        assert_eq!(log.publish(&old, &batch), refused(ErrorCode::Fenced, 2));
    }
    assert_eq!(log.tail(stream), 1);
    assert_eq!(log.publish(&new, &dense(stream, 2, &["b"])), NEXT, "the sequence goes on across epochs");
}

#[test]
fn a_higher_epoch_than_any_that_is_known_is_damage() {
    let (log, stream, grant) = started();
    let ahead = Grant { epoch: Epoch::new(2), ..grant };
    assert_eq!(log.judge(&ahead, &dense(stream, 1, &["a"])), refused(ErrorCode::Damaged, 1));
    let attached = log.state.producers.attach(grant.producer, Epoch::new(2), attempt(1));
    assert_eq!(attached, Err(Refusal { code: ErrorCode::Damaged, detail: 1 }));
    let opened = log.state.producers.open(&named("p"), Epoch::new(2), attempt(9), 100);
    assert_eq!(opened, OpenDecision::Refused(Refusal { code: ErrorCode::Damaged, detail: 1 }));
}

#[test]
fn the_first_sequence_of_an_unknown_producer_is_one() {
    let (mut log, stream, grant) = started();
    assert_eq!(log.publish(&grant, &dense(stream, 2, &["b"])), refused(ErrorCode::SequenceGap, 1));
    assert_eq!(log.publish(&grant, &sparse(stream, 3, &[(4, "d")])), refused(ErrorCode::SequenceGap, 0));
    assert_eq!(log.publish(&grant, &dense(stream, 1, &["a"])), NEXT);
}

#[test]
fn a_batch_that_starts_behind_the_last_one_is_appended() {
    let (mut log, stream, grant) = started();
    assert_eq!(log.publish(&grant, &dense(stream, 1, &["a", "b"])), NEXT);
    assert_eq!(log.publish(&grant, &dense(stream, 3, &["c"])), NEXT);
    assert_eq!(log.tail(stream), 3);
    let state = log.state.producers.sequence(grant.producer, stream).unwrap();
    assert_eq!((state.last.get(), state.last_offset.get(), state.is_sparse), (3, 2, false));
}

#[test]
fn sequences_of_two_streams_and_of_two_producers_are_their_own() {
    let (mut log, stream, grant) = started();
    let (other_stream, other) = (log.stream("refunds"), log.open("q", attempt(1)));
    assert_eq!(log.publish(&grant, &dense(stream, 1, &["a"])), NEXT);
    assert_eq!(log.publish(&grant, &dense(other_stream, 1, &["a"])), NEXT);
    assert_eq!(log.publish(&other, &dense(stream, 1, &["a"])), NEXT);
}

#[test]
fn a_resent_batch_is_a_duplicate_with_its_offset() {
    let (mut log, stream, grant) = started();
    let other = log.open("q", attempt(1));
    log.publish(&other, &dense(stream, 1, &["x", "y"]));
    let batches = [dense(stream, 1, &["a", "b"]), dense(stream, 3, &["c", "d"])];
    batches.iter().for_each(|batch| assert_eq!(log.publish(&grant, batch), NEXT));
    assert_eq!(log.publish(&grant, &batches[0]), duplicate(Some(2)));
    assert_eq!(log.publish(&grant, &batches[1]), duplicate(Some(4)));
    assert_eq!(log.tail(stream), 6);
}

#[test]
fn a_duplicate_that_was_cut_otherwise_has_an_offset_where_one_batch_holds_all_of_it() {
    let (mut log, stream, grant) = started();
    log.publish(&grant, &dense(stream, 1, &["a", "b", "c"]));
    log.publish(&grant, &dense(stream, 4, &["d"]));
    assert_eq!(log.publish(&grant, &dense(stream, 2, &["b", "c"])), duplicate(Some(1)));
    assert_eq!(log.publish(&grant, &dense(stream, 2, &["b"])), duplicate(Some(1)));
    assert_eq!(
        log.publish(&grant, &dense(stream, 3, &["c", "d"])),
        duplicate(None),
        "its parts need not be neighbours"
    );
}

#[test]
fn a_duplicate_that_is_no_longer_recent_is_one_without_an_offset() {
    let (mut log, stream, grant) = started();
    log.publish(&grant, &dense(stream, 1, &["a"]));
    log.publish(&grant, &dense(stream, 2, &["b"]));
    log.state.producers.forget_recent();
    assert_eq!(log.publish(&grant, &dense(stream, 1, &["a"])), duplicate(None));
    assert_eq!(log.publish(&grant, &dense(stream, 1, &["a", "b"])), duplicate(None));
    assert_eq!(log.publish(&grant, &dense(stream, 2, &["x"])), refused(ErrorCode::SequenceReused, 2), "kept for ever");
}

#[test]
fn another_last_record_under_the_last_sequence_is_reused() {
    let (mut log, stream, grant) = started();
    log.publish(&grant, &dense(stream, 1, &["a", "b"]));
    assert_eq!(log.publish(&grant, &dense(stream, 1, &["a", "x"])), refused(ErrorCode::SequenceReused, 2));
    assert_eq!(log.publish(&grant, &dense(stream, 2, &["x"])), refused(ErrorCode::SequenceReused, 2), "cut otherwise");
    assert_eq!(log.tail(stream), 2);
}

#[test]
fn a_recent_batch_with_the_same_bounds_and_other_content_is_reused() {
    let (mut log, stream, grant) = started();
    log.publish(&grant, &dense(stream, 1, &["a", "b"]));
    log.publish(&grant, &dense(stream, 3, &["c"]));
    assert_eq!(log.publish(&grant, &dense(stream, 1, &["x", "b"])), refused(ErrorCode::SequenceReused, 3));
    assert_eq!(log.publish(&grant, &dense(stream, 1, &["a", "x"])), refused(ErrorCode::SequenceReused, 3));
    assert_eq!(log.publish(&grant, &dense(stream, 2, &["x"])), refused(ErrorCode::SequenceReused, 3), "it ends alike");
    assert_eq!(log.publish(&grant, &dense(stream, 2, &["b"])), duplicate(Some(1)));
}

#[test]
fn an_overlapping_batch_is_stored_behind_what_is_there() {
    let (mut log, stream, grant) = started();
    log.publish(&grant, &dense(stream, 1, &["a", "b"]));
    let again = dense(stream, 1, &["a", "b", "c", "d"]);
    assert_eq!(log.publish(&grant, &again), Verdict::Append { skip: 2 });
    assert_eq!(log.tail(stream), 4);
    let state = log.state.producers.sequence(grant.producer, stream).unwrap();
    assert_eq!((state.last.get(), state.last_offset.get()), (4, 3));
    assert_eq!(log.publish(&grant, &again), duplicate(None), "its skipped records stand elsewhere");
    assert_eq!(log.publish(&grant, &dense(stream, 3, &["c", "d"])), duplicate(Some(2)));
}

#[test]
fn an_overlap_with_another_record_before_the_cut_is_reused() {
    let (mut log, stream, grant) = started();
    log.publish(&grant, &dense(stream, 1, &["a", "b"]));
    assert_eq!(log.publish(&grant, &dense(stream, 2, &["x", "c"])), refused(ErrorCode::SequenceReused, 2));
    assert_eq!(log.publish(&grant, &dense(stream, 1, &["a", "x", "c"])), refused(ErrorCode::SequenceReused, 2));
    assert_eq!(log.tail(stream), 2);
}

#[test]
fn what_was_skipped_of_a_batch_says_nothing_of_what_is_stored() {
    let (mut log, stream, grant) = started();
    log.publish(&grant, &dense(stream, 1, &["a", "b"]));
    // Only the record before the cut is compared, so this lie goes unseen; it is not stored either.
    assert_eq!(log.publish(&grant, &dense(stream, 1, &["x", "b", "c"])), Verdict::Append { skip: 2 });
    assert_eq!(log.publish(&grant, &dense(stream, 1, &["a", "b", "c"])), duplicate(None), "these are the stored ones");
}

#[test]
fn a_gap_names_the_expected_sequence_and_holds_until_it_is_filled() {
    let (mut log, stream, grant) = started();
    log.publish(&grant, &dense(stream, 1, &["a"]));
    assert_eq!(log.publish(&grant, &dense(stream, 3, &["c"])), refused(ErrorCode::SequenceGap, 2));
    assert_eq!(log.publish(&grant, &dense(stream, 4, &["d"])), refused(ErrorCode::SequenceGap, 2));
    assert_eq!(log.publish(&grant, &dense(stream, 2, &["b"])), NEXT);
    assert_eq!(log.publish(&grant, &dense(stream, 3, &["c"])), NEXT);
}

#[test]
fn sequences_reach_their_highest_value_without_overflow() {
    let (mut log, stream, grant) = started();
    let max = Sequence::MAX.get();
    assert_eq!(log.publish(&grant, &sparse(stream, 0, &[(max, "z")])), NEXT);
    assert_eq!(log.publish(&grant, &sparse(stream, 0, &[(max, "z")])), duplicate(Some(0)));
    assert_eq!(log.publish(&grant, &dense(stream, max, &["z"])), refused(ErrorCode::SequenceMode, max));
}

// Sparse sequences.

#[test]
fn sparse_batches_name_the_sequence_before_them() {
    let (mut log, stream, grant) = started();
    assert_eq!(log.publish(&grant, &sparse(stream, 0, &[(12, "a"), (17, "b")])), NEXT);
    assert_eq!(log.publish(&grant, &sparse(stream, 17, &[(20, "c")])), NEXT);
    assert_eq!(log.publish(&grant, &sparse(stream, 25, &[(30, "d")])), refused(ErrorCode::SequenceGap, 20));
    assert_eq!(log.publish(&grant, &sparse(stream, 0, &[(12, "a"), (17, "b")])), duplicate(Some(0)));
    assert_eq!(log.publish(&grant, &sparse(stream, 17, &[(20, "c")])), duplicate(Some(2)));
    assert_eq!(log.tail(stream), 3);
}

#[test]
fn an_id_that_committed_late_is_past_and_never_a_duplicate() {
    let (mut log, stream, grant) = started();
    log.publish(&grant, &sparse(stream, 0, &[(12, "a"), (17, "b")]));
    for late in [
        sparse(stream, 12, &[(15, "late")]),
        sparse(stream, 0, &[(15, "late")]),
        sparse(stream, 0, &[(12, "a")]),
        sparse(stream, 12, &[(17, "b")]),
        sparse(stream, 12, &[(15, "late"), (17, "b")]),
    ] {
        assert_eq!(log.publish(&grant, &late), refused(ErrorCode::SequencePast, 17));
    }
    let among = sparse(stream, 0, &[(12, "a"), (15, "late"), (17, "b")]);
    assert_eq!(
        log.publish(&grant, &among),
        refused(ErrorCode::SequenceReused, 17),
        "other content under the same bounds"
    );
}

#[test]
fn a_sparse_batch_whose_original_is_no_longer_recent_is_past() {
    let (mut log, stream, grant) = started();
    log.publish(&grant, &sparse(stream, 0, &[(12, "a")]));
    log.state.producers.forget_recent();
    assert_eq!(log.publish(&grant, &sparse(stream, 0, &[(12, "a")])), refused(ErrorCode::SequencePast, 12));
}

#[test]
fn a_sparse_batch_with_the_same_bounds_and_other_content_is_reused() {
    let (mut log, stream, grant) = started();
    log.publish(&grant, &sparse(stream, 0, &[(12, "a"), (17, "b")]));
    assert_eq!(
        log.publish(&grant, &sparse(stream, 0, &[(12, "x"), (17, "b")])),
        refused(ErrorCode::SequenceReused, 17)
    );
    assert_eq!(
        log.publish(&grant, &sparse(stream, 0, &[(12, "a"), (17, "x")])),
        refused(ErrorCode::SequenceReused, 17)
    );
}

#[test]
fn a_sparse_overlap_is_for_the_client_to_cut_anew() {
    let (mut log, stream, grant) = started();
    log.publish(&grant, &sparse(stream, 10, &[(12, "a")]));
    log.publish(&grant, &sparse(stream, 0, &[(12, "a"), (17, "b")]));
    let overlap = sparse(stream, 10, &[(12, "a"), (15, "late"), (17, "b"), (20, "c")]);
    assert_eq!(log.publish(&grant, &overlap), refused(ErrorCode::SequenceOverlap, 17));
    assert_eq!(log.publish(&grant, &sparse(stream, 17, &[(20, "c")])), NEXT);
}

#[test]
fn dense_may_become_sparse_and_never_dense_again() {
    let (mut log, stream, grant) = started();
    log.publish(&grant, &dense(stream, 1, &["a", "b"]));
    assert_eq!(log.publish(&grant, &sparse(stream, 2, &[(10, "c")])), NEXT);
    for batch in [dense(stream, 11, &["d"]), dense(stream, 1, &["a", "b"]), dense(stream, 20, &["x"])] {
        assert_eq!(log.publish(&grant, &batch), refused(ErrorCode::SequenceMode, 10));
    }
    let other = log.stream("refunds");
    assert_eq!(log.publish(&grant, &dense(other, 1, &["a"])), NEXT, "the mode is that of a stream");
}

// Anonymous producers and streams.

#[test]
fn anonymous_batches_are_taken_as_they_come_and_only_without_a_name() {
    let (mut log, stream, grant) = started();
    let nobody = log.state.producers.attach(ProducerId::ANONYMOUS, Epoch::NONE, attempt(0)).unwrap();
    let batch = anonymous(stream, &["a"]);
    assert_eq!(log.publish(&nobody, &batch), NEXT);
    assert_eq!(log.publish(&nobody, &batch), NEXT, "at least once");
    assert_eq!(log.publish(&nobody, &dense(stream, 1, &["a"])), refused(ErrorCode::Malformed, 0));
    assert_eq!(log.publish(&grant, &batch), refused(ErrorCode::Malformed, 0));
    assert_eq!(log.publish(&nobody, &anonymous(StreamId::new(9), &["a"])), refused(ErrorCode::StreamGone, 0));
    assert_eq!(log.tail(stream), 2);
    assert_eq!(log.state.producers.sequence(ProducerId::ANONYMOUS, stream), None, "nothing is kept of them");
}

#[test]
fn a_stream_that_is_not_there_is_gone() {
    let (log, _, grant) = started();
    assert_eq!(log.judge(&grant, &dense(StreamId::new(8), 1, &["a"])), refused(ErrorCode::StreamGone, 0));
}

#[test]
fn a_session_of_a_producer_that_is_not_there_is_not_found() {
    let (log, stream, grant) = started();
    let unknown = Grant { producer: ProducerId::new(8), ..grant };
    assert_eq!(log.judge(&unknown, &dense(stream, 1, &["a"])), refused(ErrorCode::NotFound, 0));
    let attached = log.state.producers.attach(ProducerId::new(8), Epoch::new(1), attempt(1));
    assert_eq!(attached, Err(Refusal { code: ErrorCode::NotFound, detail: 0 }));
}

// Opening.

#[test]
fn opening_is_compare_and_set_on_the_epoch_that_was_found() {
    let (mut log, _, grant) = started();
    let open = |log: &Log, found: u64, number: u8| {
        log.state.producers.open(&named("p"), Epoch::new(found), attempt(number), 100)
    };
    let fenced = |epoch: u64| OpenDecision::Refused(Refusal { code: ErrorCode::Fenced, detail: epoch });
    let first = OpenDecision::AlreadyOpen { id: grant.producer, epoch: Epoch::new(1) };
    assert_eq!(open(&log, 0, 1), first, "the retry of a lost answer is the same open");
    assert_eq!(open(&log, 1, 1), first, "whatever it found meanwhile");
    assert_eq!(open(&log, 0, 2), fenced(1), "somebody else was faster");
    assert_eq!(open(&log, 1, 2), OpenDecision::Raise { id: Some(grant.producer), epoch: Epoch::new(2) });
    log.open("p", attempt(2));
    assert_eq!(open(&log, 0, 1), fenced(2), "a retry from before a later session does not fence that one");
    assert_eq!(open(&log, 1, 1), fenced(2));
}

#[test]
fn a_session_resumes_with_its_epoch_and_attempt_and_no_other() {
    let (mut log, _, grant) = started();
    let attach = |log: &Log, number: u8| log.state.producers.attach(grant.producer, Epoch::new(1), attempt(number));
    assert_eq!(attach(&log, 1), Ok(grant));
    assert_eq!(attach(&log, 2), Err(Refusal { code: ErrorCode::Fenced, detail: 1 }));
    log.open("p", attempt(2));
    assert_eq!(attach(&log, 1), Err(Refusal { code: ErrorCode::Fenced, detail: 2 }));
    assert_eq!(attach(&log, 2), Err(Refusal { code: ErrorCode::Fenced, detail: 2 }), "the epoch is not its own");
}

#[test]
fn a_new_name_is_refused_at_the_limit_and_an_old_one_is_not() {
    let (log, _, grant) = started();
    let opened = log.state.producers.open(&named("q"), Epoch::NONE, attempt(1), 1);
    assert_eq!(opened, OpenDecision::Refused(Refusal { code: ErrorCode::LimitReached, detail: 1 }));
    let raised = OpenDecision::Raise { id: Some(grant.producer), epoch: Epoch::new(2) };
    assert_eq!(log.state.producers.open(&named("p"), Epoch::new(1), attempt(2), 1), raised);
    let gone = log.state.producers.open(&named("q"), Epoch::new(4), attempt(1), 100);
    assert_eq!(gone, OpenDecision::Refused(Refusal { code: ErrorCode::NotFound, detail: 0 }));
}

#[test]
fn streams_are_made_once_and_up_to_the_limit() {
    let (log, stream, _) = started();
    let admit = |name: &str, max: u64| log.state.catalogue.admit_creation(&StreamName::new(name).unwrap(), max);
    assert_eq!(admit("orders", 9), Err(CreateRefusal::Exists(stream)));
    assert_eq!(admit("orders", 1), Err(CreateRefusal::Exists(stream)));
    assert_eq!(admit("refunds", 1), Err(CreateRefusal::LimitReached));
    assert_eq!(admit("refunds", 2), Ok(()));
}

// Holes: positions are compared, no list is kept.

#[test]
fn keys_last_decided_before_a_hole_are_refused_and_those_decided_behind_it_run() {
    let (mut log, stream, grant) = started();
    let other = log.open("q", attempt(1));
    log.publish(&grant, &dense(stream, 1, &["a"]));
    log.hole(64);
    let next = dense(stream, 2, &["b"]);
    assert_eq!(log.judge(&grant, &next), refused(ErrorCode::Damaged, 0));
    assert_eq!(log.judge(&other, &dense(stream, 1, &["a"])), refused(ErrorCode::Damaged, 0), "absent keys too");
    let nobody = log.state.producers.attach(ProducerId::ANONYMOUS, Epoch::NONE, attempt(0)).unwrap();
    assert_eq!(
        log.judge(&nobody, &anonymous(stream, &["a"])),
        refused(ErrorCode::Damaged, 0),
        "the stream's end is not known"
    );
    assert!(log.state.stream_is_doubtful(stream) && log.state.producer_is_doubtful(grant.producer));

    // An entry of the producer that was found behind the hole proves the stream's end, the producer's epoch and its last
    // sequence there, and nobody else's.
    let found = log.appended(&grant, &next, 0);
    log.apply(Change::BatchAppended(found)).unwrap();
    assert_eq!(log.publish(&grant, &dense(stream, 3, &["c"])), NEXT);
    assert_eq!(log.publish(&nobody, &anonymous(stream, &["a"])), NEXT);
    assert_eq!(log.judge(&other, &dense(stream, 1, &["a"])), refused(ErrorCode::Damaged, 0));
    assert!(log.state.producer_is_doubtful(other.producer), "its epoch may have been raised in the hole");
}

#[test]
fn a_producer_that_is_proven_in_one_stream_is_still_in_doubt_in_another() {
    let (mut log, stream, grant) = started();
    let other = log.stream("refunds");
    log.publish(&grant, &dense(stream, 1, &["a"]));
    log.hole(64);
    let nobody = log.state.producers.attach(ProducerId::ANONYMOUS, Epoch::NONE, attempt(0)).unwrap();
    for found in
        [log.appended(&grant, &dense(other, 1, &["a"]), 0), log.appended(&nobody, &anonymous(stream, &["x"]), 0)]
    {
        log.apply(Change::BatchAppended(found)).unwrap();
    }
    assert!(!log.state.producer_is_doubtful(grant.producer) && !log.state.stream_is_doubtful(stream));
    assert_eq!(log.judge(&grant, &dense(stream, 2, &["b"])), refused(ErrorCode::Damaged, 0), "its last sequence there");
    assert_eq!(log.publish(&grant, &dense(other, 2, &["b"])), NEXT);
}

#[test]
fn what_was_made_behind_a_hole_is_not_in_doubt() {
    let (mut log, stream, grant) = started();
    log.hole(64);
    let (new_stream, new) = (log.stream("refunds"), log.open("q", attempt(1)));
    assert_eq!(log.publish(&new, &dense(new_stream, 1, &["a"])), NEXT);
    assert_eq!(
        log.judge(&new, &dense(stream, 1, &["a"])),
        refused(ErrorCode::Damaged, 0),
        "the old stream's end is in doubt"
    );
    assert_eq!(
        log.judge(&grant, &dense(new_stream, 1, &["a"])),
        refused(ErrorCode::Damaged, 0),
        "and the old producer's epoch"
    );
}

#[test]
fn names_and_identities_that_may_have_been_given_in_a_hole_are_in_doubt_not_absent() {
    let (mut log, _, grant) = started();
    assert!(!log.state.absent_name_is_doubtful());
    let inside = log.end + 8;
    log.hole(64);
    assert!(log.state.absent_name_is_doubtful());
    let lost = StreamId::new(inside);
    assert_eq!(log.judge(&grant, &dense(lost, 1, &["a"])), refused(ErrorCode::Damaged, 0), "it was not removed");
    assert!(log.state.producer_is_doubtful(ProducerId::new(inside)));
    let never = StreamId::new(log.end + 800);
    assert_eq!(log.judge(&grant, &dense(never, 1, &["a"])), refused(ErrorCode::StreamGone, 0));
}

#[test]
fn a_batch_behind_a_hole_shows_the_epoch_that_the_hole_hides() {
    let (mut log, stream, old) = started();
    log.publish(&old, &dense(stream, 1, &["a"]));
    log.hole(64);
    let new = Grant { epoch: Epoch::new(5), ..old };
    let found = log.appended(&new, &dense(stream, 2, &["b"]), 0);
    log.apply(Change::BatchAppended(found)).unwrap();
    assert_eq!(log.publish(&old, &dense(stream, 3, &["c"])), refused(ErrorCode::Fenced, 5), "the zombie stays out");
    assert_eq!(log.publish(&new, &dense(stream, 3, &["c"])), NEXT);
    let attached = log.state.producers.attach(old.producer, Epoch::new(5), attempt(1));
    assert_eq!(attached, Err(Refusal { code: ErrorCode::Fenced, detail: 5 }), "whose session it is, is lost");
    assert_eq!(log.open("p", attempt(3)).epoch, Epoch::new(6));
}

#[test]
fn records_behind_a_hole_are_told_and_nothing_goes_back() {
    let (mut log, stream, grant) = started();
    log.publish(&grant, &dense(stream, 1, &["a"]));
    let lost = log.appended(&grant, &dense(stream, 2, &["b", "c"]), 0);
    log.hole(8);
    let found = BatchAppended { base_offset: Offset::new(3), ..log.appended(&grant, &dense(stream, 4, &["d"]), 0) };
    let error = log.apply(Change::BatchAppended(found)).unwrap_err();
    assert!(error.what.contains("offset 3 on, where 1 comes next"), "{error}");
    assert_eq!(log.tail(stream), 4);
    // An older entry in a later place can't lower anything, and does not make its batch recent.
    log.apply(Change::BatchAppended(lost)).unwrap_err();
    assert_eq!(log.tail(stream), 4);
    let state = log.state.producers.sequence(grant.producer, stream).unwrap();
    assert_eq!((state.last.get(), state.last_offset.get()), (4, 3));
    assert_eq!(log.judge(&grant, &dense(stream, 4, &["d"])), duplicate(Some(3)));
}

// Step 20: what contradicts itself is told.

#[test]
fn a_log_that_holds_a_record_twice_or_leaves_one_out_is_told() {
    let (mut log, stream, grant) = started();
    log.publish(&grant, &dense(stream, 1, &["a", "b"]));
    let twice = log.appended(&grant, &dense(stream, 2, &["b", "c"]), 0);
    let error = log.apply(Change::BatchAppended(twice)).unwrap_err();
    assert!(error.what.contains("behind sequence 1, where 2 was the last"), "{error}");
    let without = log.appended(&grant, &dense(stream, 7, &["g"]), 0);
    log.apply(Change::BatchAppended(without)).unwrap_err();
}

#[test]
fn a_log_that_holds_what_was_fenced_is_told() {
    let (mut log, stream, old) = started();
    let new = log.open("p", attempt(2));
    let late = log.appended(&old, &dense(stream, 1, &["a"]), 0);
    let error = log.apply(Change::BatchAppended(late)).unwrap_err();
    assert!(error.what.contains("epoch 1, which epoch 2 had fenced"), "{error}");
    assert_eq!(log.state.producers.producer(new.producer).unwrap().epoch, Epoch::new(2));
}

#[test]
fn a_name_given_twice_is_told_and_stays_with_the_first() {
    let (mut log, stream, grant) = started();
    log.publish(&grant, &dense(stream, 1, &["a"]));
    let name = StreamName::new("orders").unwrap();
    let again = StreamCreated {
        id: StreamId::new(log.end),
        name: name.clone(),
        settings: StreamSettings::default(),
        created_ms: 9,
    };
    log.apply(Change::StreamCreated(again)).unwrap_err();
    assert_eq!(log.state.catalogue.find(&name), Some(stream));
    assert_eq!(log.tail(stream), 1, "its records are still there");
    let raised = EpochRaised {
        id: ProducerId::new(log.end),
        name: named("p"),
        epoch: Epoch::new(1),
        attempt: attempt(7),
        decided_at: log.end,
    };
    log.apply(Change::EpochRaised(raised)).unwrap_err();
    assert_eq!(log.state.producers.find(&named("p")), Some(grant.producer));
    let lowered = EpochRaised {
        id: grant.producer,
        name: named("p"),
        epoch: Epoch::new(1),
        attempt: attempt(8),
        decided_at: log.end,
    };
    log.apply(Change::EpochRaised(lowered)).unwrap_err();
    assert_eq!(log.state.producers.attach(grant.producer, Epoch::new(1), attempt(1)), Ok(grant));
}

// Lists.

#[test]
fn lists_come_in_pages_by_name() {
    let mut log = Log { end: 1_000, ..Log::default() };
    for name in ["c", "a", "b"] {
        log.stream(name);
        log.open(name, attempt(1));
    }
    let (page, more) = log.state.catalogue.list(None, 2);
    assert_eq!(page.iter().map(|stream| stream.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(more);
    let (page, more) = log.state.catalogue.list(Some(&page[1].name), 2);
    assert_eq!((page[0].name.as_str(), page.len(), more), ("c", 1, false));
    let (page, more) = log.state.producers.list(Some(&named("a")), 9);
    assert_eq!(page.iter().map(|producer| producer.name.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    assert!(!more);
}

// The recent batches.

#[test]
fn recent_batches_are_bounded_and_the_oldest_is_forgotten_first() {
    let (mut log, stream, grant) = started();
    let other = log.open("q", attempt(1));
    log.publish(&grant, &dense(stream, 1, &["a"]));
    let max = super::recent::RECENT_BATCHES_MAX as u64;
    let template = log.appended(&other, &dense(stream, 1, &["x"]), 0);
    for count in 0..max {
        let mut batch = template.clone();
        batch.header.first = Sequence::new(count + 1);
        batch.header.last = batch.header.first;
        batch.header.previous = Sequence::new(count);
        batch.base_offset = Offset::new(log.tail(stream));
        batch.decided_at = log.end;
        if count + 1 == max {
            assert_eq!(log.judge(&grant, &dense(stream, 1, &["a"])), duplicate(Some(0)), "the table is just full");
        }
        log.apply(Change::BatchAppended(batch)).unwrap();
    }
    assert_eq!(log.judge(&grant, &dense(stream, 1, &["a"])), duplicate(None));
    assert_eq!(log.judge(&other, &dense(stream, 1, &["x"])), duplicate(Some(1)));
}
