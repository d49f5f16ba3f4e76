//! SIGKILL at any moment, in recovery too: what was acknowledged is there once, in its place, with its bytes, and what a
//! consumer has seen stays as it was.
//!
//! `TIDELOG_CYCLES` (50) says how many kills under load, `TIDELOG_SEED` repeats the plan of a run.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod harness;

use std::time::Duration;

use harness::crash_run::CrashRun;
use harness::folder::RunFolder;
use harness::ledger::Ledger;
use harness::payload::{self, Identity};
use harness::random::{Random, number_from_environment};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_or_seen_survives_kills_at_any_moment() {
    let cycles = number_from_environment("TIDELOG_CYCLES").unwrap_or(50);
    let seed = Random::seed_of_run();
    println!("TIDELOG_SEED={seed} TIDELOG_CYCLES={cycles}");
    let folder = RunFolder::new();
    let deadline = Duration::from_secs(60 + 10 * cycles);
    let run = CrashRun { seed, cycles, sabotage: None, disturbance: None, deadline };
    match run.run(folder.path()).await {
        Ok(figures) => println!("{figures}"),
        Err(failure) => panic!("seed {seed}: {failure}"),
    }
}

fn seen(identities: &[Identity]) -> Ledger {
    let mut ledger = Ledger::default();
    for (offset, identity) in (0..).zip(identities) {
        ledger.note_sent(identity.producer, identity.sequence);
        ledger.note_seen(offset, *identity).unwrap();
    }
    ledger
}

fn told(read: &[Identity], ledger: &Ledger) -> String {
    ledger.check_kept(read).and_then(|()| ledger.check_order(read)).unwrap_err()
}

#[test]
fn the_check_notices_what_is_lost_moved_doubled_or_invented() {
    let first = Identity::new(0, 1);
    let second = Identity::new(0, 2);
    let other = Identity::new(1, 1);
    let ledger = seen(&[first, second, other]);
    assert_eq!(ledger.check_kept(&[first, second, other]), Ok(()));
    assert_eq!(ledger.check_order(&[first, second, other]), Ok(()));
    assert_eq!(told(&[first, second], &ledger), "a consumer has seen p1:1 at offset 2, and nothing is there now");
    assert_eq!(told(&[first, other, second], &ledger), "a consumer has seen p0:2 at offset 1, and p1:1 is there now");
    assert_eq!(told(&[first, second, other, second], &ledger), "offset 3 has p0:2 where sequence 3 is due");
    assert_eq!(told(&[first, second, other, Identity::new(0, 3)], &ledger), "offset 3 has p0:3, which was never sent");
    let zombie = Identity { is_zombie: true, ..Identity::new(0, 3) };
    assert_eq!(
        told(&[first, second, other, zombie], &ledger),
        "offset 3 has zombie p0:3, sent by a session that was fenced by then"
    );
}

#[test]
fn a_consumer_that_is_given_a_gap_or_another_record_notices() {
    let mut ledger = seen(&[Identity::new(0, 1)]);
    assert_eq!(ledger.note_seen(0, Identity::new(0, 1)), Ok(()));
    assert!(ledger.note_seen(0, Identity::new(1, 1)).is_err());
    assert!(ledger.note_seen(2, Identity::new(0, 2)).is_err());
}

#[test]
fn a_session_that_is_told_too_little_or_too_much_notices() {
    let mut ledger = seen(&[Identity::new(0, 1), Identity::new(0, 2)]);
    assert_eq!(ledger.note_last_sequence(0, 2), Ok(()));
    assert!(ledger.note_last_sequence(0, 3).is_err());
}

#[test]
fn any_changed_bit_of_a_record_is_noticed() {
    let identity = Identity::new(3, 77);
    let bytes = payload::encode(9, identity);
    assert_eq!(payload::decode(9, &bytes), Ok(identity));
    assert!(payload::decode(10, &bytes).is_err(), "the record of another run");
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(payload::decode(9, &changed).is_err(), "bit {bit}");
    }
}
