//! The broker inside a test: up in milliseconds, misbehaving on command.
//!
//! A [`TestBroker`] is the broker itself, in the test's process: the same log, the same sessions, QUIC and TLS on a free
//! port. A program under test needs its [address](TestBroker::address) and nothing else. What hurts in production can be
//! [asked for](Faults), one fault at a time or [from a seed](Start::faults_from); [`trials`] runs a test under many seeds
//! and kills the program as well. What has become of it is checked: [stream by stream](TestBroker::stream), by what was
//! [acknowledged](TestBroker::no_acknowledged_loss), and by [counters](TestBroker::counters).
//!
//! A broker has one thread, which is gone when the [`TestBroker`] is dropped; any number of them live in one process.
//! Nothing is global: tracing subscriber and TLS provider of the embedding program stay as they are.

mod broker;
mod clock;
mod difference;
mod disk;
mod faults;
mod lives;
mod ordeal;
mod pace;
mod port;
mod records;
mod seeded;
mod stream_check;
mod test_counters;
mod trials;
mod weather;
mod wire;
mod witness;

pub use broker::{Start, TestBroker};
pub use clock::TestClock;
pub use difference::Difference;
pub use faults::Faults;
pub use ordeal::{Death, Step};
pub use records::StoredRecord;
pub use stream_check::{IntoKeys, StreamCheck};
pub use test_counters::TestCounters;
pub use trials::{Trial, trials, trials_from};
pub use witness::AcknowledgedLoss;

// What the guide shows runs.
#[cfg(doctest)]
#[doc = include_str!("../../TESTING.md")]
struct Guide;
