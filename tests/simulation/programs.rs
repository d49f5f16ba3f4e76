//! Programs that publish: processes that open a producer, number their records on from what the broker has, send them in
//! bursts, and die, close, or are taken over while they sleep.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tidelog_client::{Ack, Client, Error, Producer, Publisher};
use tidelog_protocol::{ErrorCode, Sequence};
use tidelog_storage::medium::SimulatedRng;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::Checked;
use super::value::{Mark, Numbering};
use super::world::{World, producer_name, stream_name};
use crate::check;

/// Processes of one program that may be alive at once: one owner and its zombies.
const PROCESSES_MAX: usize = 3;

/// A program and its processes.
pub(crate) struct Program {
    world: Rc<World>,
    name: String,
    numbering: Numbering,
    streams: Vec<usize>,
    alive: Cell<usize>,
    /// Processes started.
    processes: Cell<u64>,
}

impl Program {
    pub(crate) fn new(world: &Rc<World>, name: &str, streams: Vec<usize>) -> Rc<Self> {
        let (world, name, numbering) = (Rc::clone(world), name.to_owned(), Numbering::of(name));
        Rc::new(Self { world, name, numbering, streams, alive: Cell::new(0), processes: Cell::new(0) })
    }

    /// Runs process after process until nothing bad happens any more, and then one to its good end.
    pub(crate) async fn run(self: Rc<Self>) -> Checked {
        let mut rng = self.world.luck();
        while !self.world.is_calm() {
            let (ended, mut has_ended) = tokio::sync::oneshot::channel::<()>();
            let (program, luck) = (Rc::clone(&self), self.world.luck());
            self.alive.set(self.alive.get() + 1);
            spawn_local(async move {
                let process = Process::new(&program, luck);
                program.world.watch(&program.name, async { process.run().await.map(|_| ()) }).await;
                program.alive.set(program.alive.get() - 1);
                drop(ended);
            });
            // A successor comes while it is still there: it is a zombie from then on.
            let life = Duration::from_millis(20 + rng.below(6_000));
            let is_alone = timeout(life, &mut has_ended).await.is_ok();
            if !is_alone && self.alive.get() >= PROCESSES_MAX {
                let _ = has_ended.await;
            }
            if is_alone {
                sleep(Duration::from_millis(rng.below(400))).await;
            }
        }
        while Process::new(&self, self.world.luck()).run().await? == End::Early {}
        Ok(())
    }

    fn has_name(&self) -> bool {
        self.numbering != Numbering::Nameless
    }

    fn has_successor(&self, number: u64) -> bool {
        self.processes.get() > number
    }
}

/// One run of a program.
struct Process {
    program: Rc<Program>,
    rng: SimulatedRng,
    number: u64,
    /// What it writes under. Of a program without a name this tells its processes' records apart.
    epoch: u64,
}

/// What a process has of one stream.
struct Line {
    publisher: Publisher,
    stream: usize,
    /// The next record's number.
    next: u64,
    /// Up to this one all are durable once everything sent is.
    pushed: u64,
}

/// Whether a process goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    On,
    Gone,
}

/// How a process came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// All that it had sent is durable.
    Good,
    /// It has died, given up or been fenced.
    Early,
}

impl Process {
    fn new(program: &Rc<Program>, rng: SimulatedRng) -> Self {
        program.processes.set(program.processes.get() + 1);
        Self { program: Rc::clone(program), rng, number: program.processes.get(), epoch: program.processes.get() }
    }

    async fn run(mut self) -> Checked<End> {
        let world = Rc::clone(&self.program.world);
        let Some(client) = world.client(&mut self.rng).await? else { return Ok(End::Early) };
        let Some(producer) = self.open(&client).await? else { return Ok(End::Early) };
        if self.program.has_name() {
            self.epoch = producer.epoch().get();
        }
        let Some(mut lines) = self.attach(&producer).await? else { return Ok(End::Early) };
        loop {
            if world.is_calm() && !self.program.has_successor(self.number) {
                return self.finish(producer, lines).await;
            }
            match self.act(&mut lines).await? {
                Way::On => {}
                Way::Gone if self.rng.chance(2) => return Ok(End::Early),
                Way::Gone => return self.finish(producer, lines).await,
            }
        }
    }

    async fn open(&mut self, client: &Client) -> Checked<Option<Producer>> {
        let Program { world, name, .. } = self.program.as_ref();
        let has_name = self.program.has_name();
        let builder = match has_name {
            true => client.producer(producer_name(name)),
            false => client.anonymous_producer(),
        };
        let window_bytes = [2_000, 20_000, 200_000][self.rng.below(3) as usize];
        if has_name {
            world.ledger.borrow_mut().opening(name);
        }
        let ack = if self.rng.chance(3) { Ack::Accepted } else { Ack::Durable };
        let builder = builder.window_bytes(window_bytes).receipts(self.rng.chance(2)).ack(ack);
        let opened = builder.sparse(self.program.numbering == Numbering::Sparse).open().await;
        if let Err(error) = &opened
            && error.code() == Some(ErrorCode::Fenced)
        {
            self.told_fenced(error)?;
            return Ok(None);
        }
        let Some(producer) = world.patiently(opened)? else { return Ok(None) };
        if has_name {
            world.trace.line(format_args!("{name}: process {} is epoch {}", self.number, producer.epoch()));
            world.ledger.borrow_mut().opened(name, producer.epoch().get())?;
        }
        Ok(Some(producer))
    }

    async fn attach(&mut self, producer: &Producer) -> Checked<Option<Vec<Line>>> {
        let Program { world, name, numbering, streams, .. } = self.program.as_ref();
        let mut lines = Vec::new();
        for &stream in streams {
            let before = world.ledger.borrow().acknowledged_of(name, stream);
            let publisher = producer.stream(stream_name(stream)).await;
            let Some(publisher) = world.patiently(publisher)? else { return Ok(None) };
            world.ledger.borrow_mut().stream_is(stream_name(stream).as_str(), publisher.description().id)?;
            let last = numbering.number(publisher.last_sequence().get());
            if self.program.has_name() {
                world.ledger.borrow_mut().took_over(name, stream, self.epoch, before, last)?;
            }
            // What is stored already is a duplicate.
            let back = if *numbering == Numbering::Own { self.rng.below(20).min(last) } else { 0 };
            lines.push(Line { publisher, stream, next: last + 1 - back, pushed: last });
        }
        Ok(Some(lines))
    }

    async fn act(&mut self, lines: &mut [Line]) -> Checked<Way> {
        let chosen = self.rng.below(lines.len() as u64) as usize;
        let line = &mut lines[chosen];
        let way = match self.rng.below(20) {
            0..=9 => self.send(line).await?,
            10..=13 => self.flush(line).await?,
            14..=18 => {
                let longest = [2, 30, 400][self.rng.below(3) as usize];
                sleep(Duration::from_micros(self.rng.below(longest * 1_000))).await;
                Way::On
            }
            _ if self.rng.chance(8) => return Ok(Way::Gone),
            _ if self.rng.chance(4) => match line.publisher.acknowledged().await {
                Ok(()) => Way::On,
                Err(error) => self.end_with(&error)?,
            },
            _ if self.rng.chance(6) => {
                // It hangs: whoever succeeds it meanwhile must not be disturbed when it wakes.
                sleep(Duration::from_millis(self.rng.below(9_000))).await;
                Way::On
            }
            _ => Way::On,
        };
        lines.iter().try_for_each(|line| self.take_receipts(line))?;
        Ok(way)
    }

    async fn send(&mut self, line: &mut Line) -> Checked<Way> {
        for _ in 0..=self.rng.below(12) {
            let numbering = self.program.numbering;
            let epoch = if numbering.is_own() { 0 } else { self.epoch };
            let mark = Mark { program: self.program.name.clone(), stream: line.stream, number: line.next, epoch };
            if !self.program.has_name() {
                self.program.world.ledger.borrow_mut().sent_nameless(&mark);
            }
            let (value, expected) = (mark.value(), numbering.sequence(line.next));
            let sent = match numbering.is_own() {
                true => line.publisher.send_value_at(Sequence::new(expected), &value).await,
                false => line.publisher.send_value(&value).await,
            };
            match sent {
                Ok(sequence) => {
                    check!(sequence.get() == expected, "the client numbers {sequence} what should be {expected}");
                    line.pushed = line.pushed.max(line.next);
                    line.next += 1;
                }
                Err(error) => return self.end_with(&error),
            }
        }
        Ok(Way::On)
    }

    async fn flush(&self, line: &Line) -> Checked<Way> {
        match line.publisher.flush().await {
            Ok(()) => {
                let mut ledger = self.program.world.ledger.borrow_mut();
                match self.program.has_name() {
                    true => ledger.acknowledged(&self.program.name, line.stream, line.pushed),
                    false => ledger.acknowledged_nameless(&self.program.name, self.epoch, line.stream, line.pushed),
                }
                Ok(Way::On)
            }
            Err(error) => self.end_with(&error),
        }
    }

    fn take_receipts(&self, line: &Line) -> Checked {
        while let Some(receipt) = line.publisher.try_next_receipt() {
            if self.program.has_name() {
                self.program.world.ledger.borrow_mut().receipt(&self.program.name, line.stream, &receipt)?;
            }
        }
        Ok(())
    }

    /// An orderly end: all that was sent is durable then.
    async fn finish(&self, producer: Producer, lines: Vec<Line>) -> Checked<End> {
        for line in &lines {
            if self.flush(line).await? == Way::Gone {
                return Ok(End::Early);
            }
            self.take_receipts(line)?;
        }
        let closed = producer.close().await;
        match closed {
            Ok(()) => Ok(End::Good),
            Err(error) => self.end_with(&error).map(|_| End::Early),
        }
    }

    /// The producer has ended; whether it may.
    fn end_with(&self, error: &Error) -> Checked<Way> {
        if error.code() == Some(ErrorCode::Fenced) {
            self.told_fenced(error)?;
            return Ok(Way::Gone);
        }
        if matches!(error, Error::WrittenByAnother { .. }) {
            // A zombie that looks at its stream before it hears that it is one. Somebody else must have written.
            let epoch = self.program.world.ledger.borrow().epoch_of(&self.program.name);
            check!(epoch > self.epoch, "its epoch {} is the newest, and yet: {error}", self.epoch);
            return Ok(Way::Gone);
        }
        self.program.world.patiently::<()>(Err(error.clone()))?;
        Ok(Way::Gone)
    }

    /// It was told that a newer process owns its name. That must be so, and stay so.
    fn told_fenced(&self, error: &Error) -> Checked {
        let Program { world, name, .. } = self.program.as_ref();
        let has_name = self.program.has_name();
        check!(has_name && self.program.processes.get() > 1, "it is alone, and yet: {error}");
        world.trace.line(format_args!("{name}: process {} is fenced: {error}", self.number));
        let mut ledger = world.ledger.borrow_mut();
        ledger.tally.fenced += 1;
        ledger.tally.woken += u64::from(self.program.has_successor(self.number));
        if let Error::Refused { detail: Some(epoch), .. } = error {
            ledger.told_epoch(name, *epoch)?;
        }
        Ok(())
    }
}
