//! A producer's window: what was handed to it and is not durable yet, in the order in which it is sent. Pure: no socket,
//! no clock, no task.
//!
//! Records gather in one open batch for each stream. A closed batch keeps its bytes until the broker has answered that
//! they are durable, so that after a lost connection the very same bytes are sent again, in the same order. Answers come
//! in the order of sending, so that one queue and two counters are all that is needed.
//!
//! The parts: [`linger`] says when an open batch leaves, [`batch`] is a closed one, [`answers`] is what the broker makes of
//! them, [`stream`] what belongs to one stream.

mod answers;
mod batch;
mod linger;
mod spares;
mod staging;
mod stream;

use std::collections::VecDeque;

use bytes::Bytes;
use tidelog_protocol::{
    BATCH_HEADER_LEN, BatchBuilder, Limits, Record, SEQUENCE_DELTA_BYTES_MAX, Sequence, StreamId, StreamName,
};
use tokio::sync::oneshot;

use crate::connection::ProducerPosition;
use crate::error::Error;

pub use self::stream::{Acknowledgement, Receipt};
pub(crate) use self::stream::{Numbering, StreamWindow};

use self::batch::{Batch, Sent};
use self::linger::Gathering;
use self::spares::Spares;
use self::staging::Staging;

/// A batch is closed when it would grow beyond this; larger ones gain nothing and make answers coarse.
const BATCH_CONTENT_BYTES_PREFERRED: usize = 256 * 1024;

/// Closed batches that are not durable yet; as many may be open as there are streams.
pub(crate) const BATCHES_MAX: usize = 4096;

/// Receipts that wait to be taken, over all streams; further records wait until some are.
const RECEIPTS_MAX: usize = 4096;

/// Bytes that a record's length takes in its batch, at most.
const LENGTH_BYTES_MAX: usize = 5;

/// When a record counts as acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Ack {
    /// When it is durable: on the broker's disk, synced.
    #[default]
    Durable,
    /// When the broker has ordered it, in memory. That alone promises nothing: until the record is durable it is safe only
    /// as long as this producer lives, keeps its name and its stream, and does not give up; it keeps the record and sends
    /// it again if the broker loses it.
    Accepted,
}

/// What is appended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Body<'a> {
    Record(&'a Record),
    Value(&'a [u8]),
}

impl Body<'_> {
    /// Bytes of its encoding.
    fn encoded_len(&self) -> usize {
        match self {
            Body::Record(record) => record.encoded_len(),
            // Its flags.
            Body::Value(value) => 1 + value.len(),
        }
    }
}

/// Whether a record was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Push {
    /// It is in the window. `wake`: there is something to send now.
    Taken { sequence: Sequence, wake: bool },
    /// No room; nothing was changed.
    Full,
}

/// What an answers frame meant.
#[derive(Debug)]
pub(crate) enum Settled {
    /// All of it was final.
    Final,
    /// This attachment is of no more use, the window is to be sent again later: a batch was refused for now, or had to be
    /// cut.
    SendAgain(Error),
}

/// How a window is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WindowOptions {
    pub(crate) numbering: Numbering,
    pub(crate) ack: Ack,
    /// Bytes of all batches.
    pub(crate) bytes_max: usize,
    pub(crate) collect_receipts: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Window {
    options: WindowOptions,
    limits: Limits,
    content_bytes_max: usize,
    /// Closed batches, the oldest first. The first `sent` of them were handed to the present attachment.
    queue: VecDeque<Batch>,
    sent: usize,
    /// Ordinal of the last batch answered on the present attachment; the front of `queue` has the next.
    pub(crate) answered: u64,
    /// Bytes of all batches, open ones included.
    bytes: usize,
    /// Streams with an open batch, in the order of their first record.
    open: VecDeque<usize>,
    /// Streams whose open batch has come to need no company; it may have been closed since.
    large: Vec<usize>,
    /// Bytes of all open batches.
    open_bytes: usize,
    /// Records taken in, of all streams.
    taken: u64,
    gathering: Gathering,
    /// Records that are counted in and stand in none of the open batches yet.
    staging: Staging,
    spares: Spares,
    streams: Vec<StreamWindow>,
    /// Receipts that wait to be taken, each with its stream's slot, in the order in which their batches became durable.
    receipts: VecDeque<(usize, Receipt)>,
    /// Ends everything; the first one stays.
    pub(crate) failure: Option<Error>,
}

impl Window {
    pub(crate) fn new(options: WindowOptions, limits: Limits) -> Self {
        Self {
            options,
            content_bytes_max: BATCH_CONTENT_BYTES_PREFERRED.min(limits.batch_content_bytes_max as usize),
            limits,
            queue: VecDeque::new(),
            sent: 0,
            answered: 0,
            bytes: 0,
            open: VecDeque::new(),
            large: Vec::new(),
            open_bytes: 0,
            taken: 0,
            gathering: Gathering::default(),
            staging: Staging::default(),
            spares: Spares::new(options.bytes_max),
            streams: Vec::new(),
            receipts: VecDeque::new(),
            failure: None,
        }
    }

    pub(crate) fn ack(&self) -> Ack {
        self.options.ack
    }

    /// Bytes held for records that are not durable yet.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The slot of a stream that is already known.
    pub(crate) fn slot_of(&self, id: StreamId) -> Option<usize> {
        self.streams.iter().position(|stream| stream.id == id)
    }

    /// Adds a stream that holds of this producer what `found` says, or finds it.
    pub(crate) fn add_stream(&mut self, id: StreamId, name: StreamName, found: ProducerPosition) -> usize {
        if let Some(slot) = self.slot_of(id) {
            self.stream_mut(slot).closed = false;
            return slot;
        }
        self.streams.push(StreamWindow::new(id, name, self.options.numbering, found));
        self.streams.len() - 1
    }

    pub(crate) fn stream(&self, slot: usize) -> &StreamWindow {
        self.streams.get(slot).expect("slots come from add_stream and are never removed")
    }

    pub(crate) fn stream_mut(&mut self, slot: usize) -> &mut StreamWindow {
        self.streams.get_mut(slot).expect("slots come from add_stream and are never removed")
    }

    pub(crate) fn streams(&self) -> impl Iterator<Item = (usize, &StreamWindow)> {
        self.streams.iter().enumerate()
    }

    /// Nothing is waiting to become durable.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.open.is_empty()
    }

    /// Whether something was sent, on whatever attachment, and has no answer: it may be stored.
    pub(crate) fn has_unsettled(&self) -> bool {
        self.queue.iter().any(|batch| batch.sent != Sent::Never)
    }

    /// Records of a stream that are acknowledged in the way that was chosen.
    pub(crate) fn acknowledged(&self, slot: usize) -> u64 {
        let stream = self.stream(slot);
        match self.options.ack {
            Ack::Durable => stream.settled,
            Ack::Accepted => stream.settled.max(stream.accepted),
        }
    }

    /// Why `slot` takes no more records.
    pub(crate) fn failure_of(&self, slot: usize) -> Option<Error> {
        let stream = self.stream(slot);
        self.failure
            .clone()
            .or_else(|| stream.failure.as_deref().cloned())
            .or_else(|| stream.closed.then_some(Error::Closed))
    }

    /// Takes a record in if there is room. A single record is always taken by an empty window. With a sequence if the
    /// application numbers its records itself.
    pub(crate) fn push(&mut self, slot: usize, asked: Option<Sequence>, body: Body<'_>) -> Result<Push, Error> {
        if let Some(failure) = self.failure_of(slot) {
            return Err(failure);
        }
        let stream = self.stream(slot);
        let sequence = stream.next_sequence(asked)?;
        let is_sparse = self.options.numbering == Numbering::Sparse;
        // The block of sequences comes on top of what the builder knows of.
        let block_bytes = if is_sparse { (stream.sequences.len() + 1) * SEQUENCE_DELTA_BYTES_MAX } else { 0 };
        let content_bytes_max = self.content_bytes_max.saturating_sub(block_bytes);
        let fits = match body {
            Body::Record(record) => stream.builder.fits(record, content_bytes_max),
            Body::Value(value) => stream.builder.fits_value(value, content_bytes_max),
        } && stream.builder.count() < self.limits.batch_records_max;
        let starts_batch = stream.builder.is_empty() || !fits;
        let mut cost = body.encoded_len() + LENGTH_BYTES_MAX;
        cost += if starts_batch { BATCH_HEADER_LEN } else { 0 };
        cost += if is_sparse { SEQUENCE_DELTA_BYTES_MAX } else { 0 };
        let has_room = self.bytes == 0 || self.bytes + cost <= self.options.bytes_max;
        let awaits_receipts = self.options.collect_receipts && self.receipts.len() >= RECEIPTS_MAX;
        if !has_room || awaits_receipts || starts_batch && self.queue.len() >= BATCHES_MAX {
            return Ok(Push::Full);
        }
        if !fits {
            self.close_batch(slot);
        }
        let stages = self.open.len() > linger::OPEN_FEW && Staging::takes(body);
        if !stages && !self.staging.is_empty() {
            self.unstage();
        }
        let limits = &self.limits;
        let stream = self.streams.get_mut(slot).expect("slots come from add_stream and are never removed");
        let (bytes_before, content_before) = (stream.open_bytes(), stream.builder.content_len());
        match (body, stages) {
            (Body::Record(record), false) => stream.builder.push(record, limits)?,
            (Body::Value(value), false) => stream.builder.push_value(value, limits)?,
            (Body::Record(record), true) => stream.builder.count_in(record, limits)?,
            (Body::Value(value), true) => stream.builder.count_value_in(value, limits)?,
        }
        stream.count_in(sequence);
        let content = stream.builder.content_len();
        let added = stream.open_bytes() - bytes_before;
        self.bytes += added;
        self.open_bytes += added;
        self.taken += 1;
        if stages && self.staging.put(slot, body) {
            self.unstage();
        }
        if starts_batch {
            self.open.push_back(slot);
        }
        let has_grown_up = linger::has_grown_up(content_before, content);
        if has_grown_up {
            self.large.push(slot);
        }
        let wake = !fits || has_grown_up || self.has_few_sent() || self.has_too_many_open();
        Ok(Push::Taken { sequence, wake })
    }

    /// Writes what was only counted in to the open batches.
    fn unstage(&mut self) {
        for (slot, body) in self.staging.bodies() {
            let builder =
                &mut self.streams.get_mut(slot).expect("slots come from add_stream and are never removed").builder;
            if let Some(bytes) = builder.wants_buffer()
                && let Some(spare) = self.spares.take(bytes)
            {
                builder.use_buffer(spare);
            }
            builder.write_body(body);
        }
        self.staging.clear();
    }

    /// Whoever waits for the last record of a stream hears of it through this.
    pub(crate) fn watch_last(&mut self, slot: usize) -> oneshot::Receiver<Result<Acknowledgement, Error>> {
        self.stream_mut(slot).watch_last()
    }

    fn close_batch(&mut self, slot: usize) {
        self.unstage();
        if self.open.front() == Some(&slot) {
            self.open.pop_front();
        } else {
            self.open.retain(|open| *open != slot);
        }
        let numbering = self.options.numbering;
        let stream = self.stream_mut(slot);
        let open_bytes = stream.open_bytes();
        let count = stream.builder.count();
        let last = stream.taken;
        let (first, bytes) = match numbering {
            Numbering::Anonymous => (Sequence::NONE, stream.builder.finish_anonymous(stream.id)),
            Numbering::Dense => {
                let first = Sequence::new(last.get() + 1 - u64::from(count));
                (first, stream.builder.finish_dense(stream.id, first))
            }
            Numbering::Sparse => {
                let sequences = std::mem::take(&mut stream.sequences);
                let finished = stream.builder.finish_sparse(stream.id, stream.previous, &sequences);
                let first = sequences.first().copied().unwrap_or(last);
                (first, finished.expect("the sequences rise, and room was left for them"))
            }
        };
        stream.previous = last;
        let pushed_up_to = stream.pushed;
        self.bytes = self.bytes - open_bytes + bytes.len();
        self.open_bytes -= open_bytes;
        self.queue.push_back(Batch { slot, bytes, first, last, count, pushed_up_to, sent: Sent::Never });
    }

    /// The next batch to write, if any is due; it counts as sent.
    pub(crate) fn next_unsent(&mut self) -> Option<Bytes> {
        if self.sent == self.queue.len() {
            self.close_due();
        }
        let batch = self.queue.get_mut(self.sent)?;
        self.sent += 1;
        if batch.sent == Sent::Never {
            batch.sent = Sent::Here;
        }
        Some(batch.bytes.clone())
    }

    const fn has_few_sent(&self) -> bool {
        self.sent < linger::SMALL_IN_FLIGHT_MAX
    }

    const fn has_too_many_open(&self) -> bool {
        self.open_bytes >= linger::open_bytes_max(self.options.bytes_max)
    }

    /// Whether what is open had better wait for another turn of the runtime, since its producer goes on. To be asked once
    /// each turn in which nothing is being written.
    pub(crate) fn gathers(&mut self) -> bool {
        let may_wait = self.sent == self.queue.len() && self.has_few_sent() && !self.has_too_many_open();
        may_wait && self.gathering.waits(self.open.len(), self.taken)
    }

    fn close_due(&mut self) {
        let lump = linger::lump_bytes(self.options.bytes_max);
        let mut left = match (self.has_too_many_open(), self.has_few_sent()) {
            (true, _) => lump,
            (false, true) if self.gathering.goes_on() => lump,
            (false, true) => usize::MAX,
            (false, false) => 0,
        };
        while left > 0
            && let Some(slot) = self.open.front().copied()
        {
            let open_bytes = self.open_bytes;
            self.close_batch(slot);
            left = left.saturating_sub(open_bytes - self.open_bytes);
        }
        for slot in std::mem::take(&mut self.large) {
            if self.stream(slot).builder.content_len() >= linger::CONTENT_BYTES_SMALL {
                self.close_batch(slot);
            }
        }
    }

    /// Takes the first receipt of a stream.
    pub(crate) fn take_receipt(&mut self, slot: usize) -> Option<Receipt> {
        // The first of all in a producer of one stream, and never far in one that has its receipts taken.
        let place = self.receipts.iter().position(|(of, _)| *of == slot)?;
        self.receipts.remove(place).map(|(_, receipt)| receipt)
    }

    /// Takes the first receipt, with its stream.
    pub(crate) fn take_any_receipt(&mut self) -> Option<(StreamId, Receipt)> {
        let (slot, receipt) = self.receipts.pop_front()?;
        Some((self.stream(slot).id, receipt))
    }

    /// The attachment is gone: everything that is not answered is to be sent again, with ordinals from 1.
    pub(crate) fn start_anew(&mut self) {
        self.sent = 0;
        self.answered = 0;
        for batch in self.queue.iter_mut().filter(|batch| batch.sent == Sent::Here) {
            batch.sent = Sent::Earlier;
        }
        let (kept, dropped) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition::<VecDeque<_>, _>(|batch| self.stream(batch.slot).failure.is_none());
        self.queue = kept;
        self.bytes -= dropped.iter().map(|batch| batch.bytes.len()).sum::<usize>();
    }

    /// Compares what the broker has of a stream with what it told and what it was sent.
    pub(crate) fn check_last(&mut self, slot: usize, position: ProducerPosition) -> Result<(), Error> {
        let stream = self.stream(slot);
        let (found, sent) = (position.last_sequence, stream.written_up_to());
        if found < stream.told {
            return Err(Error::AcknowledgedLost { stream: stream.name.clone(), told: stream.told, found });
        }
        if found > sent {
            return Err(Error::WrittenByAnother { stream: stream.name.clone(), sent, found });
        }
        let own = self.queue.iter().filter(|batch| batch.slot == slot && batch.sent != Sent::Never);
        let shown = own.filter_map(|batch| batch.shown_stored_by(&position)).next();
        let stream = self.stream_mut(slot);
        stream.shown = stream.told.max(shown.unwrap_or(Sequence::NONE));
        stream.found = position;
        Ok(())
    }

    /// Ends one stream for a reason that settles none of its batches; other streams go on.
    pub(crate) fn fail_stream(&mut self, slot: usize, error: Error) {
        let in_doubt = self.queue.iter().any(|batch| batch.slot == slot && batch.sent != Sent::Never);
        self.end_stream(slot, if in_doubt { error.unsettled() } else { error });
    }

    /// What was not sent is given up.
    fn end_stream(&mut self, slot: usize, error: Error) {
        let mut index = 0;
        let sent = self.sent;
        let mut freed = 0;
        self.queue.retain(|batch| {
            // What is under way keeps its place: its answer is still to come.
            let keep = index < sent || batch.slot != slot;
            index += 1;
            if !keep {
                freed += batch.bytes.len();
            }
            keep
        });
        self.unstage();
        let stream = self.stream_mut(slot);
        stream.fail_watchers(&error);
        stream.failure.get_or_insert_with(|| Box::new(error));
        let open_bytes = stream.open_bytes();
        stream.builder = BatchBuilder::new();
        stream.sequences.clear();
        if open_bytes > 0 {
            freed += open_bytes;
            self.open_bytes -= open_bytes;
            self.open.retain(|open| *open != slot);
        }
        self.bytes -= freed;
    }

    /// Ends everything.
    pub(crate) fn fail(&mut self, error: Error) {
        let error = if self.has_unsettled() { error.unsettled() } else { error };
        for stream in &mut self.streams {
            stream.fail_watchers(&error);
        }
        self.failure.get_or_insert(error);
    }
}

#[cfg(test)]
mod own_sequences_tests;
#[cfg(test)]
mod tests;
