//! What a broker has to offer to be compared.

use std::path::Path;

use crate::Outcome;
use crate::process::Process;

/// How many records a producer may have unanswered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flight {
    /// The next one leaves when the one before is acknowledged.
    One,
    /// So many.
    Records(u64),
    /// As many as the client's own default lets through.
    Unbounded,
}

impl Flight {
    pub(crate) fn records(self) -> u64 {
        match self {
            Flight::One => 1,
            Flight::Records(records) => records,
            Flight::Unbounded => u64::MAX,
        }
    }
}

/// A running broker with at most one stream.
pub(crate) trait Peer: Sized {
    /// Which of its configurations.
    type Settings;
    type Producer: Producer + 'static;
    type Reader: Reader + 'static;

    /// Starts it on `folder`, which is empty or was left by an earlier life, and returns as soon as it has answered a
    /// question about the stream.
    async fn start(program: &Path, folder: &Path, settings: &Self::Settings) -> Outcome<Self>;

    fn process(&mut self) -> &mut Process;

    /// Makes the stream.
    async fn create(&mut self) -> Outcome<()>;

    /// How many records the stream has.
    async fn stored(&mut self) -> Outcome<u64>;

    /// A producer on a connection of its own (on several, if a connection of this broker takes one request at a time
    /// and `flight` is more).
    async fn producer(&mut self, flight: Flight) -> Outcome<Self::Producer>;

    /// A reader on a connection of its own, from the stream's start on.
    async fn reader(&mut self, follow: bool) -> Outcome<Self::Reader>;

    /// Stops it in good order.
    async fn stop(self) -> Outcome<()>;
}

pub(crate) trait Producer {
    /// Puts a record on its way; it has left after [`flush`](Self::flush) at the latest.
    async fn send(&mut self, record: &[u8]) -> Outcome<()>;

    async fn flush(&mut self) -> Outcome<()>;

    /// Waits until at least one more record is acknowledged and tells how many are. Cancel safe.
    async fn acknowledged(&mut self) -> Outcome<u64>;

    /// Waits until readers can see all that is acknowledged, where that is not the same.
    async fn settle(&mut self) -> Outcome<()> {
        Ok(())
    }
}

pub(crate) trait Reader {
    /// Waits until records have come and hands them to `take`, in order.
    async fn next(&mut self, take: &mut dyn FnMut(&[u8])) -> Outcome<()>;
}
