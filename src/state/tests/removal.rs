//! Streams that are removed, and made again under their names.

use super::*;

fn streams(log: &Log) -> Vec<String> {
    log.state.catalogue.list(None, 100).0.into_iter().map(|stream| stream.name.to_string()).collect()
}

fn orders() -> StreamName {
    StreamName::new("orders").unwrap()
}

#[test]
fn nothing_is_kept_of_a_removed_stream() {
    let mut log = Log { end: 1_000, ..Log::default() };
    let kept = log.stream("kept");
    let grants = ["p", "q"].map(|name| log.open(name, attempt(1)));
    for grant in &grants {
        log.publish(grant, &dense(kept, 1, &["a"]));
    }
    let before = log.state.clone();
    for round in 0..3 {
        let stream = log.stream("orders");
        for grant in &grants {
            assert_eq!(log.publish(grant, &dense(stream, 1, &["a", "b"])), NEXT, "round {round}");
        }
        log.publish(&grants[0], &sparse(stream, 2, &[(9, "c")]));
        log.remove(stream);
        assert_eq!(streams(&log), ["kept"]);
        assert_eq!(log.state.catalogue.find(&orders()), None);
        assert_eq!(log.state.producers.sequence(grants[0].producer, stream), None);
    }
    // Who wrote last shows the epoch too, and stays; all else is as it was, so that it can go on for ever.
    let epochs = |state: &State| grants.map(|grant| state.producers.producer(grant.producer).unwrap().epoch);
    assert_eq!(epochs(&log.state), epochs(&before));
    assert_eq!(log.state.catalogue, before.catalogue);
    assert_eq!(log.state.producers.recent_len(), before.producers.recent_len());
    assert_eq!(log.publish(&grants[0], &dense(kept, 1, &["a"])), duplicate(Some(0)), "the others lose nothing");
}

#[test]
fn batches_for_a_removed_stream_are_refused_whatever_they_are_and_whoever_has_its_name() {
    let (mut log, old, grant) = started();
    let batches = [dense(old, 1, &["a"]), dense(old, 2, &["b"]), dense(old, 9, &["gap"]), sparse(old, 1, &[(5, "x")])];
    log.publish(&grant, &batches[0]);
    log.remove(old);
    let check = |log: &Log| {
        for batch in &batches {
            assert_eq!(log.judge(&grant, batch), refused(ErrorCode::StreamGone, 0));
        }
    };
    check(&log);
    let new = log.stream("orders");
    check(&log);
    assert_ne!(new, old);
    assert_eq!(log.tail(new), 0);
    assert_eq!(log.publish(&grant, &dense(new, 1, &["another"])), NEXT);
    check(&log);
}

#[test]
fn a_removed_stream_counts_no_more_against_the_limit() {
    let (mut log, stream, _) = started();
    let other = StreamName::new("other").unwrap();
    assert_eq!(log.state.catalogue.admit_creation(&other, 1), Err(CreateRefusal::LimitReached));
    log.remove(stream);
    assert_eq!(log.state.catalogue.admit_creation(&other, 1), Ok(()));
    assert_eq!(log.state.catalogue.admit_creation(&orders(), 1), Ok(()));
}

#[test]
fn what_contradicts_a_removal_is_told() {
    let (mut log, stream, grant) = started();
    let late = log.appended(&grant, &dense(stream, 1, &["a"]), 0);
    log.remove(stream);
    let error = log.apply(Change::StreamRemoved(StreamRemoved { id: stream, decided_at: log.end })).unwrap_err();
    assert!(error.what.contains("of which nothing is known"), "{error}");
    let error = log.apply(Change::BatchAppended(BatchAppended { decided_at: log.end, ..late })).unwrap_err();
    assert!(error.what.contains("of which nothing is known"), "{error}");
    assert_eq!(streams(&log), [] as [&str; 0]);
}

#[test]
fn a_name_given_behind_a_hole_shows_the_removal_that_the_hole_hides() {
    let (mut log, old, grant) = started();
    log.publish(&grant, &dense(old, 1, &["a"]));
    log.hole(64);
    assert_eq!(log.judge(&grant, &dense(old, 2, &["b"])), refused(ErrorCode::Damaged, 0), "it may have been removed");
    let new = log.stream("orders");
    assert_eq!(log.state.catalogue.find(&orders()), Some(new), "it was");
    assert_eq!(log.state.catalogue.stream(old), None, "and does not come back");
    assert_eq!(log.state.producers.sequence(grant.producer, old), None);
    log.remove(new);
    assert_eq!(log.state.catalogue.find(&orders()), None);
}

#[test]
fn a_stream_in_doubt_can_be_removed() {
    let (mut log, stream, grant) = started();
    log.hole(64);
    assert!(log.state.stream_is_doubtful(stream));
    log.remove(stream);
    assert_eq!(streams(&log), [] as [&str; 0]);
    // Nothing tells it from one that was made in the hole.
    assert_eq!(log.judge(&grant, &dense(stream, 1, &["a"])), refused(ErrorCode::Damaged, 0));
    assert_eq!(log.judge(&grant, &dense(StreamId::new(log.end), 1, &["a"])), refused(ErrorCode::StreamGone, 0));
}
