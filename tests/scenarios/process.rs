//! A client program in miniature: opens a producer, numbers its records, keeps a window until it is answered, sends it
//! again in order after every crash. Older processes of a name go on after newer ones have come: zombies.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tidelog::sequencer::SessionKey;
use tidelog::state::Grant;
use tidelog_protocol::{AttemptId, BatchBuilder, Epoch, Limits, ProducerId, ProducerName, Sequence, StreamId};
use tidelog_storage::medium::SimulatedRng;

/// Batches that a process has sent and not been answered.
pub(crate) const WINDOW_BATCHES: usize = 6;
/// Answered batches that it may send again for no reason.
const REMEMBERED_BATCHES: usize = 6;

/// Batches for removed streams that it may still send.
const LATE_BATCHES: usize = 12;

/// How a program numbers its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbering {
    Dense,
    Sparse,
    Anonymous,
}

/// A batch of the window.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) bytes: Bytes,
    /// Numbers of its records, counted from 1 whatever their sequences are.
    pub(crate) first: u64,
    pub(crate) next: u64,
}

/// What goes to one stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Output {
    /// Number of the next record to make.
    pub(crate) next: u64,
    pub(crate) window: VecDeque<Made>,
    /// So many of the window were sent over the present session.
    pub(crate) sent: usize,
    pub(crate) remembered: VecDeque<Made>,
}

impl Output {
    /// The oldest batch of the window is stored.
    pub(crate) fn settle(&mut self) {
        if let Some(made) = self.window.pop_front() {
            self.sent -= 1;
            self.remembered.push_back(made);
            if self.remembered.len() > REMEMBERED_BATCHES {
                self.remembered.pop_front();
            }
        }
    }
}

/// How far a process is with its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Has to look its producer up and open it.
    New,
    /// Has asked for this open, perhaps in vain.
    Opening { found: Epoch },
    /// Owns this epoch, as far as it knows, and has no session.
    Opened { id: ProducerId, epoch: Epoch },
    /// Has asked to write.
    Attaching { id: ProducerId, epoch: Epoch },
    /// Writes.
    Attached { id: ProducerId, epoch: Epoch, session: SessionKey, grant: Grant },
    /// Somebody else owns its name: it must never write again.
    Ended,
}

/// One run of a client program.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) name: ProducerName,
    pub(crate) numbering: Numbering,
    pub(crate) attempt: AttemptId,
    pub(crate) stage: Stage,
    /// Its request was sent in this life of the broker, and waits.
    pub(crate) is_waiting: bool,
    pub(crate) outputs: BTreeMap<StreamId, Output>,
    /// Batches for streams that are gone, which may be sent all the same: a resend that was on its way, a zombie.
    pub(crate) late: VecDeque<Bytes>,
}

impl Process {
    pub(crate) fn new(name: &ProducerName, numbering: Numbering, attempt: AttemptId) -> Self {
        let stage = match numbering {
            Numbering::Anonymous => Stage::Opened { id: ProducerId::ANONYMOUS, epoch: Epoch::NONE },
            _ => Stage::New,
        };
        Self {
            name: name.clone(),
            numbering,
            attempt,
            stage,
            is_waiting: false,
            outputs: BTreeMap::new(),
            late: VecDeque::new(),
        }
    }

    /// The stream was removed: nothing of what it has not been answered will be stored, and it makes no more for it.
    pub(crate) fn give_up(&mut self, stream: StreamId) {
        let Some(output) = self.outputs.remove(&stream) else { return };
        self.late.extend(output.remembered.into_iter().chain(output.window).map(|made| made.bytes));
        while self.late.len() > LATE_BATCHES {
            self.late.pop_front();
        }
    }

    /// The broker is gone: what was not answered may or may not have been done.
    pub(crate) fn disconnect(&mut self) {
        self.is_waiting = false;
        match self.stage {
            Stage::Attaching { id, epoch } | Stage::Attached { id, epoch, .. } => {
                self.stage = Stage::Opened { id, epoch }
            }
            _ => {}
        }
        self.outputs.values_mut().for_each(|output| output.sent = 0);
    }

    /// Makes the next batch for a stream, as long as the window has room.
    pub(crate) fn make(&mut self, stream: StreamId, rng: &mut SimulatedRng) {
        let Some(output) = self.outputs.get_mut(&stream) else { return };
        if output.window.len() >= WINDOW_BATCHES {
            return;
        }
        let count = 1 + rng.below(4);
        let made = batch(&self.name, self.numbering, stream, output.next, count, false);
        output.next += count;
        output.window.push_back(made);
    }

    /// A batch with a hole in front of it.
    pub(crate) fn beyond(&self, stream: StreamId) -> Option<Bytes> {
        let output = self.outputs.get(&stream)?;
        let is_numbered = self.numbering != Numbering::Anonymous;
        is_numbered.then(|| batch(&self.name, self.numbering, stream, output.next + 2, 1, false).bytes)
    }

    /// A batch with the bounds of one that was answered, and other records.
    pub(crate) fn lie(&self, stream: StreamId) -> Option<Bytes> {
        let made = self.outputs.get(&stream)?.remembered.back()?;
        let is_numbered = self.numbering != Numbering::Anonymous;
        is_numbered.then(|| batch(&self.name, self.numbering, stream, made.first, made.next - made.first, true).bytes)
    }
}

/// The sequence of a program's record number `number`, which is 1 for the first.
pub(crate) fn sequence(numbering: Numbering, number: u64) -> u64 {
    match numbering {
        // Jumps of 1 to 3, always the same: the ids of an outbox.
        Numbering::Sparse => number * 2 + number % 2,
        _ => number,
    }
}

/// The number of the record with this sequence.
pub(crate) fn number(numbering: Numbering, of: u64) -> u64 {
    match numbering {
        Numbering::Sparse => of / 2,
        _ => of,
    }
}

/// Records `first..first + count` of a program; the same ones whichever of its processes makes them, unless it lies.
fn batch(name: &ProducerName, numbering: Numbering, stream: StreamId, first: u64, count: u64, is_lie: bool) -> Made {
    let limits = Limits::default();
    let mut builder = BatchBuilder::new();
    for number in first..first + count {
        let mut value = format!("{name} {stream} {number} {is_lie} ").into_bytes();
        let filler = if number % 29 == 0 { 1_500 } else { number % 97 };
        value.resize(value.len() + filler as usize, number as u8);
        builder.push_value(&value, &limits).unwrap();
    }
    let of = |number| Sequence::new(sequence(numbering, number));
    let bytes = match numbering {
        Numbering::Dense => builder.finish_dense(stream, of(first)),
        Numbering::Sparse => {
            let sequences: Vec<Sequence> = (first..first + count).map(of).collect();
            let previous = if first == 1 { Sequence::NONE } else { of(first - 1) };
            builder.finish_sparse(stream, previous, &sequences).unwrap()
        }
        Numbering::Anonymous => builder.finish_anonymous(stream),
    };
    Made { bytes, first, next: first + count }
}
