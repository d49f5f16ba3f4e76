//! Producers that are paused, taken over, and woken: what they had under way, and what they send afterwards, must not get in.
//!
//! The zombie is the real `tidelog produce`, stopped by SIGSTOP, behind a proxy that may hold back what it had sent until
//! after the take-over. The broker is the real `tidelog serve`, killed and started again in between in two of three runs.

use std::fmt;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Pid;
use serde_json::Value;
use tidelog_client::{Client, Error, Producer, Publisher, ReaderEvent};
use tidelog_protocol::{ProducerName, StreamName};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::{sleep, timeout};

use super::broker::{Broker, Serve, connect};
use super::failure::Failure;
use super::folder::RunFolder;
use super::pause::{pause, wake};
use super::random::Random;
use super::udp_proxy::{Line, UdpProxy, Weather};

const STREAM: &str = "haunted";
const NAME: &str = "one-at-a-time";

/// Nothing here takes a second; what takes this long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// Between two looks at something that tells no one when it changes.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The documented exit status of a producer that was taken over.
const EXIT_CONFLICT: i32 = 5;

/// When the broker is killed and started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Restart {
    Never,
    BeforeTakeOver,
    AfterTakeOver,
}

/// One zombie.
#[derive(Debug, Clone)]
pub struct ZombieRun {
    pub seed: u64,
    pub index: u64,
    /// Deliberate defects, by name; needs a binary with the feature `sabotage`.
    pub sabotage: Option<String>,
}

/// What runs came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    pub zombies: u64,
    /// Datagrams of theirs that arrived after the take-over.
    pub late: u64,
    pub restarts: u64,
    /// Records that they had under way when they were paused, and those of them that were stored before the take-over.
    pub under_way: u64,
    pub in_time: u64,
}

impl Figures {
    pub fn with(self, other: Self) -> Self {
        Self {
            zombies: self.zombies + other.zombies,
            late: self.late + other.late,
            restarts: self.restarts + other.restarts,
            under_way: self.under_way + other.under_way,
            in_time: self.in_time + other.in_time,
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { zombies, late, restarts, under_way, in_time } = self;
        write!(
            formatter,
            "{zombies} zombies, {restarts} restarts, {late} late datagrams, {in_time} of {under_way} records in time"
        )
    }
}

impl ZombieRun {
    /// Carries it out.
    ///
    /// # Errors
    ///
    /// A violation if anything of the zombie got in after the take-over, or it did not end as it should.
    pub async fn run(&self) -> Result<Figures, Failure> {
        let folder = RunFolder::new();
        let ended = timeout(HANGS_AFTER, self.haunt(&folder)).await;
        let ended = ended.unwrap_or_else(|_| Err(Failure::violation(format!("it hangs for {HANGS_AFTER:?}"))));
        ended.map_err(|failure| {
            let kept = folder.keep();
            let place = format!("zombie {} of seed {}, kept in {}", self.index, self.seed, kept.display());
            match failure {
                Failure::Violation(what) => Failure::Violation(format!("{what} ({place})")),
                Failure::Trouble(what) => Failure::Trouble(format!("{what} ({place})")),
            }
        })
    }

    async fn haunt(&self, folder: &RunFolder) -> Result<Figures, Failure> {
        let mut random = Random::new(self.seed ^ self.index << 32).fork();
        let is_held = self.index.is_multiple_of(2);
        let restart = match self.index % 3 {
            0 => Restart::Never,
            1 => Restart::AfterTakeOver,
            _ => Restart::BeforeTakeOver,
        };
        let mut serve = Serve { sabotage: self.sabotage.clone(), ..Serve::below(folder.path()) };
        let mut broker = serve.start().await?;
        let proxy = UdpProxy::start(random.next(), broker.ready.listen, Weather::default())
            .map_err(|error| Failure::trouble("the proxy", error))?;

        // A life that is well.
        let mut zombie = Zombie::start(&serve, &proxy.url(&broker.ready.pin))?;
        let settled = 1 + random.below(20);
        zombie.send(1..=settled).await?;
        zombie.receipts_up_to(settled).await?;

        // Then it is paused with something under way.
        if is_held {
            proxy.plan([(0, Line::HELD)]);
        }
        let under_way = settled + 1 + random.below(20);
        zombie.send(settled + 1..=under_way).await?;
        let mut acknowledged = settled;
        if is_held {
            wait_for(|| proxy.held() > 0).await;
        } else if random.one_in(2) {
            acknowledged += 1;
            zombie.receipts_up_to(acknowledged).await?;
        }
        zombie.pause().await?;
        if restart == Restart::BeforeTakeOver {
            broker.kill().await?;
            broker = serve.start().await?;
        }

        // Some that take over die at once: the new epoch alone has to keep the zombie out.
        let dies = self.index / 2 % 2 == 1;
        let (mut taker, stored) = if dies {
            (None, claim(&broker.address()).await?)
        } else {
            let taker = Taker::take_over(&broker).await?;
            let last = taker.last;
            (Some(taker), last)
        };
        let arrived = if is_held { settled } else { under_way };
        if stored < acknowledged || stored > arrived {
            let what = format!("{stored} are stored; acknowledged {acknowledged}, arrived at most {arrived}");
            return Err(Failure::violation(what));
        }
        if let Some(taker) = &mut taker {
            taker.send(random.below(4)).await?;
        }
        if restart == Restart::AfterTakeOver {
            broker.kill().await?;
            broker = serve.start().await?;
        }

        // What it had sent arrives, then it wakes and goes on.
        let held = proxy.held() as u64;
        proxy.restore();
        proxy.release();
        wait_for(|| proxy.tally().released == held).await;
        zombie.wake()?;
        zombie.haunt(under_way + 1..=under_way + 1 + random.below(20)).await?;
        if let Some(taker) = &mut taker {
            taker.send(random.below(4)).await?;
        }
        let receipts = zombie.end().await?;
        if let Some((sequence, offset)) = receipts
            .iter()
            .find(|(sequence, offset)| *sequence > stored || offset.is_some_and(|offset| offset + 1 != *sequence))
        {
            return Err(Failure::violation(format!("the zombie has a receipt of record {sequence} at {offset:?}")));
        }
        let mut taker = match taker {
            Some(taker) => taker,
            None => Taker::take_over(&broker).await?,
        };
        if taker.last != stored {
            return Err(Failure::violation(format!(
                "{} are stored; when it was taken over, {stored} were",
                taker.last
            )));
        }
        taker.send(1).await?;
        let sent = taker.close().await?;
        check(&broker, stored, sent).await?;
        broker.terminate().await?;
        Ok(Figures {
            zombies: 1,
            late: held,
            restarts: u64::from(restart != Restart::Never),
            under_way: under_way - settled,
            in_time: stored - settled,
        })
    }
}

async fn wait_for(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        sleep(LOOK_AGAIN).await;
    }
}

/// The process that is paused.
struct Zombie {
    child: Child,
    pid: Pid,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    receipts: Vec<(u64, Option<u64>)>,
}

impl Zombie {
    fn start(serve: &Serve, server: &str) -> Result<Self, Failure> {
        let words = ["produce", STREAM, "--producer", NAME, "--receipts", "--json", "--server", server];
        let mut command = serve.home.tidelog(words);
        command.stdin(Stdio::piped());
        let mut child = command.spawn().map_err(|error| Failure::trouble("starting a producer", error))?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).expect("it was just started");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Ok(Self { child, pid, input, output, receipts: Vec::new() })
    }

    /// Gives it lines to publish.
    async fn send(&mut self, sequences: std::ops::RangeInclusive<u64>) -> Result<(), Failure> {
        let lines: String = sequences.map(|sequence| format!("{}\n", zombie_line(sequence))).collect();
        let input = self.input.as_mut().expect("taken at the end only");
        let written = input.write_all(lines.as_bytes()).await;
        written.map_err(|error| Failure::violation(format!("the producer has ended: {error}")))
    }

    /// The same after it was taken over: it may have ended by now.
    async fn haunt(&mut self, sequences: std::ops::RangeInclusive<u64>) -> Result<(), Failure> {
        let _ = self.send(sequences).await;
        Ok(())
    }

    async fn receipts_up_to(&mut self, sequence: u64) -> Result<(), Failure> {
        while self.receipts.last().is_none_or(|(last, _)| *last < sequence) {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).await.map_err(|error| Failure::trouble("receipts", error))?;
            if read == 0 {
                return Err(Failure::violation(format!("the receipts end before that of record {sequence}")));
            }
            self.receipts.extend(receipt(&line)?);
        }
        Ok(())
    }

    async fn pause(&self) -> Result<(), Failure> {
        pause(self.pid).await
    }

    fn wake(&self) -> Result<(), Failure> {
        wake(self.pid)
    }

    /// Waits for its end, which must be that of one that was taken over, and gives all of its receipts.
    async fn end(mut self) -> Result<Vec<(u64, Option<u64>)>, Failure> {
        drop(self.input.take());
        let (mut rest, mut said) = (String::new(), String::new());
        let mut errors = self.child.stderr.take().expect("piped");
        let (read, heard) = tokio::join!(self.output.read_to_string(&mut rest), errors.read_to_string(&mut said));
        read.and(heard).map_err(|error| Failure::trouble("reading what it said", error))?;
        let status = self.child.wait().await.map_err(|error| Failure::trouble("waiting", error))?;
        if status.code() != Some(EXIT_CONFLICT) || !said.contains("fenced") {
            return Err(Failure::violation(format!("the zombie ended with {status}, saying {said:?} and {rest:?}")));
        }
        for line in rest.lines() {
            self.receipts.extend(receipt(line)?);
        }
        Ok(self.receipts)
    }
}

fn zombie_line(sequence: u64) -> String {
    format!("the zombie's {sequence}")
}

fn receipt(line: &str) -> Result<Option<(u64, Option<u64>)>, Failure> {
    let value: Value = serde_json::from_str(line).map_err(|error| Failure::trouble(line, error))?;
    Ok(value["sequence"].as_u64().map(|sequence| (sequence, value["offset"].as_u64())))
}

/// Opens a session of the name, which dies before it asks for anything else, and gives what is stored of the name.
async fn claim(address: &str) -> Result<u64, Failure> {
    let address = address.to_owned();
    let claiming = tokio::task::spawn_blocking(move || {
        // On a thread of its own, the session's task gets no turn between the opening and the end.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| Failure::trouble("claiming", error))?.block_on(async {
            let client = connect(&address).await?;
            let producer = client.producer(producer_name()).open().await.map_err(refused)?;
            let id = producer.id();
            drop(producer);
            let stream = client.stream_info(&stream_name()).await.map_err(refused)?;
            let position = client.producer_position(id, stream.id).await.map_err(refused)?;
            client.close().await;
            Ok(position.last_sequence.get())
        })
    });
    claiming.await.map_err(|error| Failure::trouble("claiming", error))?
}

/// Whoever has the name now.
struct Taker {
    client: Client,
    producer: Producer,
    publisher: Publisher,
    /// What was stored of the name when it was taken over.
    last: u64,
    sent: u64,
}

impl Taker {
    async fn take_over(broker: &Broker) -> Result<Self, Failure> {
        let client = broker.client().await?;
        let producer = client.producer(producer_name()).open().await.map_err(refused)?;
        let publisher = producer.stream(stream_name()).await.map_err(refused)?;
        let last = publisher.last_sequence().get();
        Ok(Self { client, producer, publisher, last, sent: 0 })
    }

    async fn send(&mut self, records: u64) -> Result<(), Failure> {
        for _ in 0..records {
            self.sent += 1;
            self.publisher.send_value(taker_line(self.sent).as_bytes()).await.map_err(refused)?;
        }
        self.publisher.flush().await.map_err(refused)
    }

    /// Closes and gives the number of records.
    async fn close(self) -> Result<u64, Failure> {
        self.producer.close().await.map_err(refused)?;
        self.client.close().await;
        Ok(self.sent)
    }
}

fn taker_line(number: u64) -> String {
    format!("the taker's {number}")
}

fn refused(error: Error) -> Failure {
    Failure::violation(format!("whoever has the name was refused: {error}"))
}

fn producer_name() -> ProducerName {
    ProducerName::new(NAME).expect("a plain name")
}

fn stream_name() -> StreamName {
    StreamName::new(STREAM).expect("a plain name")
}

/// The stream is what was stored before the take-over, then what the taker has sent, and nothing else.
async fn check(broker: &Broker, stored: u64, sent: u64) -> Result<(), Failure> {
    let expected: Vec<String> = (1..=stored).map(zombie_line).chain((1..=sent).map(taker_line)).collect();
    let client = broker.client().await?;
    let mut reader = client.reader(stream_name()).open().await.map_err(refused)?;
    let mut found = Vec::new();
    while let Some(event) = reader.next_batch().await.map_err(refused)? {
        let ReaderEvent::Batch(batch) = event else { return Err(Failure::violation(format!("{event:?}"))) };
        for record in batch {
            let record = record.map_err(|error| Failure::violation(error.to_string()))?;
            found.push(String::from_utf8_lossy(&record.record.value).into_owned());
        }
    }
    client.close().await;
    if found != expected {
        return Err(Failure::violation(format!("the stream has {found:?} instead of {expected:?}")));
    }
    Ok(())
}
