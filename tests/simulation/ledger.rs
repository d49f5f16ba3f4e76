//! What was promised to whom, and what anybody has seen; and whether a stream as it was read keeps all of it.

use std::collections::{BTreeMap, BTreeSet};

use tidelog_client::{DeliveredBatch, Receipt};
use tidelog_protocol::{ProducerName, StreamId};

use super::Checked;
use super::tally::Tally;
use super::value::{Mark, Numbering};
use crate::check;

/// A record as somebody saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sighting {
    pub(crate) mark: Mark,
    pub(crate) producer: Option<String>,
    pub(crate) sequence: u64,
    pub(crate) time_ms: i64,
}

/// What a program was told of one of its streams.
#[derive(Debug, Clone, Default)]
struct Promises {
    /// The highest sequence called durable.
    acknowledged: u64,
    /// Offsets told, by sequence.
    offsets: BTreeMap<u64, u64>,
    /// An open was answered with this epoch, and then told that the stream holds up to this sequence: whatever comes
    /// behind it was written under this epoch or a later one.
    takeovers: Vec<(u64, u64)>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// By name, as they were told.
    streams: BTreeMap<String, StreamId>,
    /// By stream and offset.
    seen: BTreeMap<(usize, u64), Sighting>,
    /// By program and stream.
    promises: BTreeMap<(String, usize), Promises>,
    /// Epochs told, by program: the highest, and all that a process was given.
    epochs: BTreeMap<String, (u64, BTreeSet<u64>)>,
    /// Opens tried, by program.
    opens: BTreeMap<String, u64>,
    /// What programs without a name have sent, and what of it was acknowledged, by stream.
    nameless: BTreeMap<usize, BTreeMap<(String, u64, u64), bool>>,
    pub(crate) tally: Tally,
}

/// What had been promised at a moment.
#[derive(Debug)]
pub(crate) struct Promised {
    stream: usize,
    /// Below this offset everything had been seen.
    seen_to: u64,
    acknowledged: Vec<(String, u64)>,
    nameless: Vec<(String, u64, u64)>,
}

impl Ledger {
    // Streams and producers.

    /// A stream was described.
    pub(crate) fn stream_is(&mut self, name: &str, id: StreamId) -> Checked {
        let known = *self.streams.entry(name.to_owned()).or_insert(id);
        check!(known == id, "stream {name} had id {known} and has {id}: it was lost and made again");
        Ok(())
    }

    /// Whether a stream of this name was told to exist.
    pub(crate) fn stream_of(&self, name: &str) -> Option<StreamId> {
        self.streams.get(name).copied()
    }

    /// A process is about to open its producer.
    pub(crate) fn opening(&mut self, program: &str) {
        *self.opens.entry(program.to_owned()).or_default() += 1;
    }

    /// It was given this epoch.
    pub(crate) fn opened(&mut self, program: &str, epoch: u64) -> Checked {
        self.told_epoch(program, epoch)?;
        let (_, given) = self.epochs.entry(program.to_owned()).or_default();
        check!(given.insert(epoch), "two processes of {program} were given epoch {epoch}");
        self.tally.processes += 1;
        Ok(())
    }

    /// Somebody was told that the program's epoch is this, or was.
    pub(crate) fn told_epoch(&mut self, program: &str, epoch: u64) -> Checked {
        let opens = self.opens.get(program).copied().unwrap_or(0);
        check!(epoch <= opens, "{program} was opened {opens} times, and its epoch is said to be {epoch}");
        let (highest, _) = self.epochs.entry(program.to_owned()).or_default();
        *highest = epoch.max(*highest);
        Ok(())
    }

    /// The highest epoch told.
    pub(crate) fn epoch_of(&self, program: &str) -> u64 {
        self.epochs.get(program).map_or(0, |(highest, _)| *highest)
    }

    /// The broker's present epoch of a producer, asked for after `before` had been told.
    pub(crate) fn epoch_is(&self, program: &str, before: u64, now: u64) -> Checked {
        check!(now >= before, "{program} was said to be at epoch {before} and is at {now} again");
        Ok(())
    }

    /// A process that was given `epoch` was then told that the stream holds its program's records up to `last`.
    /// When it asked, `before` had been told to be durable.
    pub(crate) fn took_over(&mut self, program: &str, stream: usize, epoch: u64, before: u64, last: u64) -> Checked {
        check!(
            last >= before,
            "{program} was told that {before} is durable in stream {stream}, and now {last} is its last"
        );
        let promises = self.promises.entry((program.to_owned(), stream)).or_default();
        promises.takeovers.push((last, epoch));
        // A position told is durable, whoever it is told to.
        promises.acknowledged = promises.acknowledged.max(last);
        Ok(())
    }

    /// The highest sequence that the program was told is durable in the stream.
    pub(crate) fn acknowledged_of(&self, program: &str, stream: usize) -> u64 {
        self.promises.get(&(program.to_owned(), stream)).map_or(0, |promises| promises.acknowledged)
    }

    // Acknowledgements.

    /// The program was told that everything up to this sequence is durable.
    pub(crate) fn acknowledged(&mut self, program: &str, stream: usize, up_to: u64) {
        let promises = self.promises.entry((program.to_owned(), stream)).or_default();
        self.tally.acknowledged += up_to.saturating_sub(promises.acknowledged);
        promises.acknowledged = promises.acknowledged.max(up_to);
    }

    /// It was given a receipt.
    pub(crate) fn receipt(&mut self, program: &str, stream: usize, receipt: &Receipt) -> Checked {
        let [first, last] = [receipt.first, receipt.last].map(|sequence| Numbering::of(program).number(sequence.get()));
        check!(
            last + 1 - first == u64::from(receipt.count),
            "{program} was given a receipt that counts wrong: {receipt:?}"
        );
        self.acknowledged(program, stream, last);
        self.tally.duplicates += if receipt.duplicate { u64::from(receipt.count) } else { u64::from(receipt.skip) };
        let Some(base) = receipt.base_offset else { return Ok(()) };
        for (number, offset) in (first + u64::from(receipt.skip)..=last).zip(base.get()..) {
            self.told_offset(program, stream, number, offset)?;
        }
        Ok(())
    }

    /// It was told where one of its records stands.
    pub(crate) fn told_offset(&mut self, program: &str, stream: usize, sequence: u64, offset: u64) -> Checked {
        let promises = self.promises.entry((program.to_owned(), stream)).or_default();
        let told = *promises.offsets.entry(sequence).or_insert(offset);
        check!(told == offset, "{program} was told offsets {told} and {offset} for its {sequence} in stream {stream}");
        Ok(())
    }

    /// A program without a name has handed over a record.
    pub(crate) fn sent_nameless(&mut self, mark: &Mark) {
        let key = (mark.program.clone(), mark.epoch, mark.number);
        self.nameless.entry(mark.stream).or_default().insert(key, false);
    }

    /// Everything up to `number` that this process of it has handed over was acknowledged.
    pub(crate) fn acknowledged_nameless(&mut self, program: &str, epoch: u64, stream: usize, number: u64) {
        let all = self.nameless.entry(stream).or_default();
        let range = (program.to_owned(), epoch, 0)..=(program.to_owned(), epoch, number);
        for (_, is_acknowledged) in all.range_mut(range) {
            self.tally.acknowledged += u64::from(!*is_acknowledged);
            *is_acknowledged = true;
        }
    }

    // What is seen.

    /// Somebody was given a batch of the stream. Returns the offset behind it.
    pub(crate) fn saw(&mut self, stream: usize, batch: &DeliveredBatch) -> Checked<u64> {
        let producer = batch.producer().map(ProducerName::as_str);
        for record in batch.records() {
            let record = record.map_err(|error| error.to_string())?;
            let offset = record.offset.get();
            let mark = Mark::of(&record.record.value).ok_or_else(|| {
                format!("what stands in stream {stream} at {offset} was never written: {:?}", record.record)
            })?;
            check!(mark.stream == stream, "a record of stream {} stands in {stream}: {mark:?}", mark.stream);
            let sequence = record.sequence.get();
            let seen = Sighting { mark, producer: producer.map(str::to_owned), sequence, time_ms: batch.time_ms() };
            self.tally.seen += 1;
            match self.seen.get(&(stream, offset)) {
                Some(before) => {
                    check!(
                        *before == seen,
                        "at {offset} of stream {stream} stood\n{before:?}\nand now stands\n{seen:?}"
                    );
                }
                None => {
                    self.is_possible(&seen)?;
                    self.seen.insert((stream, offset), seen);
                }
            }
        }
        Ok(batch.next_offset().get())
    }

    fn is_possible(&self, seen: &Sighting) -> Checked {
        let Sighting { mark, producer, sequence, .. } = seen;
        let Some(producer) = producer else {
            let key = (mark.program.clone(), mark.epoch, mark.number);
            let was_sent = self.nameless.get(&mark.stream).is_some_and(|all| all.contains_key(&key));
            check!(was_sent && *sequence == 0, "nobody has sent this: {seen:?}");
            return Ok(());
        };
        let numbering = Numbering::of(producer);
        let is_numbered = *sequence == numbering.sequence(mark.number);
        check!(*producer == mark.program && is_numbered, "it was written by another: {seen:?}");
        if numbering.is_own() {
            return Ok(());
        }
        let given = self.epochs.get(producer).is_some_and(|(_, given)| given.contains(&mark.epoch));
        check!(given, "nobody was given the epoch that this was written under: {seen:?}");
        Ok(())
    }

    /// What a reading of the whole stream that begins now must hold.
    pub(crate) fn promised(&self, stream: usize) -> Promised {
        let of_stream = self.promises.iter().filter(|((_, of), _)| *of == stream);
        let nameless = self.nameless.get(&stream).into_iter().flatten();
        Promised {
            stream,
            seen_to: self.seen.range((stream, 0)..(stream + 1, 0)).next_back().map_or(0, |((_, offset), _)| offset + 1),
            acknowledged: of_stream.map(|((name, _), promises)| (name.clone(), promises.acknowledged)).collect(),
            nameless: nameless.filter(|(_, acknowledged)| **acknowledged).map(|(key, _)| key.clone()).collect(),
        }
    }

    /// The whole stream was read, from 0 up to `end`, and all of it is among what was seen.
    pub(crate) fn audit(&mut self, promised: &Promised, end: u64) -> Checked {
        let Promised { stream, seen_to, .. } = *promised;
        self.tally.audits += 1;
        check!(end >= seen_to, "stream {stream} ends at {end}, and {} was seen by somebody", seen_to.saturating_sub(1));
        let mut outputs: BTreeMap<&str, Output> = BTreeMap::new();
        let mut nameless = BTreeSet::new();
        let mut time_ms = i64::MIN;
        for offset in 0..end {
            let seen =
                self.seen.get(&(stream, offset)).ok_or_else(|| format!("{offset} of stream {stream} is missing"))?;
            check!(seen.time_ms >= time_ms, "time falls at {offset} of stream {stream}");
            time_ms = seen.time_ms;
            let Mark { program, number, epoch, .. } = &seen.mark;
            if seen.producer.is_none() {
                nameless.insert((program.clone(), *epoch, *number));
                continue;
            }
            let output =
                outputs.entry(program).or_insert_with(|| Output::new(self.promises.get(&(program.clone(), stream))));
            output.next(*number, *epoch, offset).map_err(|text| {
                format!("at {offset} of stream {stream} stands {program}'s {number} of epoch {epoch}: {text}")
            })?;
        }
        for (program, up_to) in &promised.acknowledged {
            let last = outputs.get(program.as_str()).map_or(0, |output| output.last);
            check!(
                last >= *up_to,
                "{program} was told that {up_to} is durable in stream {stream}, and {last} is its last"
            );
        }
        let lost = promised.nameless.iter().find(|key| !nameless.contains(*key));
        check!(lost.is_none(), "{lost:?} was acknowledged and is not in stream {stream}");
        Ok(())
    }
}

/// A producer's records on the way through a stream.
struct Output<'a> {
    last: u64,
    epoch: u64,
    promises: Option<&'a Promises>,
    /// Takeovers by the sequence that they were told, and how many of them are behind.
    takeovers: Vec<(u64, u64)>,
    passed: usize,
    /// The highest epoch of those.
    epoch_min: u64,
}

impl<'a> Output<'a> {
    fn new(promises: Option<&'a Promises>) -> Self {
        let mut takeovers = promises.map(|promises| promises.takeovers.clone()).unwrap_or_default();
        takeovers.sort_unstable();
        Self { last: 0, epoch: 0, promises, takeovers, passed: 0, epoch_min: 0 }
    }

    fn next(&mut self, number: u64, epoch: u64, offset: u64) -> Checked {
        check!(number == self.last + 1, "the one before was {}", self.last);
        self.last = number;
        let told = self.promises.and_then(|promises| promises.offsets.get(&number));
        check!(told.is_none_or(|told| *told == offset), "its receipt said {told:?}");
        if epoch == 0 {
            return Ok(());
        }
        check!(epoch >= self.epoch, "the one before was of epoch {}", self.epoch);
        self.epoch = epoch;
        while let Some((_, from)) = self.takeovers.get(self.passed).filter(|(last, _)| *last < number) {
            self.epoch_min = self.epoch_min.max(*from);
            self.passed += 1;
        }
        check!(epoch >= self.epoch_min, "epoch {} had taken over before: a zombie wrote", self.epoch_min);
        Ok(())
    }
}
