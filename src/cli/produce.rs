//! `tidelog produce`: a record a line, exactly once if the producer has a name.

use std::time::Duration;

use tidelog_client::{Ack, Client, Error, Publisher};
use tidelog_protocol::{ProducerName, Sequence, StreamSettings};
use tokio::time::{Instant, sleep_until};

use super::args::{AckArgument, ProduceArguments, Rate};
use super::connect::{self, connect, failed};
use super::exit::{CliError, Exit};
use super::lines::Lines;
use super::output::Output;
use super::receipts::Receipts;
use super::records::{Format, Parsed};

/// Lines sent between two looks at the receipts.
const LINES_PER_LOOK: u64 = 1_024;

/// Publishes the input.
///
/// # Errors
///
/// Those of the input, the connection and the broker; what was acknowledged before stays stored.
pub(crate) fn run(arguments: ProduceArguments) -> Result<(), CliError> {
    connect::run(async {
        let client = connect(&arguments.client).await?;
        let outcome = produce(&client, &arguments).await;
        client.close().await;
        outcome
    })
}

async fn produce(client: &Client, arguments: &ProduceArguments) -> Result<(), CliError> {
    let welcome = client.welcome().await.map_err(|error| failed(&error))?;
    let format = format(arguments);
    let lines = Lines::open(arguments.file.as_deref(), format.line_bytes_max(&welcome.limits))?;
    let is_sparse = arguments.sequence_from.is_some();
    let mut input = Input { lines, format, is_sparse, pace: arguments.rate.map(Pace::new), held: None };
    let stream = client
        .create_stream(&arguments.stream, StreamSettings::default(), true)
        .await
        .map_err(|error| failed(&error))?;
    let builder = match &arguments.producer {
        Some(name) => client.producer(name.clone()),
        None => client.anonymous_producer(),
    };
    let ack = match arguments.ack {
        AckArgument::Durable => Ack::Durable,
        AckArgument::Accepted => Ack::Accepted,
    };
    let builder = builder.ack(ack).sparse(is_sparse).receipts(arguments.receipts);
    let producer = builder.open().await.map_err(|error| failed(&error))?;
    let publisher = producer.stream(stream).await.map_err(|error| failed(&error))?;

    let mut receipts = match arguments.receipts {
        true => Some(Receipts::to_stdout()?),
        false => None,
    };
    let stored_before = match &arguments.producer {
        Some(name) => input.pass_stored(&publisher, name, receipts.as_mut()).await?,
        None => 0,
    };
    if let Some(receipts) = &mut receipts {
        receipts.flush()?;
    }

    let sent = send(&mut input, &publisher, receipts.as_mut()).await;
    // What was taken before an error of the input is stored all the same.
    let closed = close(&publisher, receipts.as_mut()).await;
    sent.and(closed)?;
    summarize(arguments, &publisher, stored_before)
}

fn format(arguments: &ProduceArguments) -> Format {
    match &arguments.key_separator {
        Some(separator) => Format::KeyAndValue(separator.clone().into_bytes()),
        None if arguments.ndjson => Format::Json,
        None => Format::Value,
    }
}

/// The records of the input, one at a time, not faster than asked for.
struct Input {
    lines: Lines,
    format: Format,
    /// Records bring their sequences.
    is_sparse: bool,
    pace: Option<Pace>,
    /// One that was read and is still to be sent.
    held: Option<Parsed>,
}

/// One record of the input, borrowed where it is only a value.
enum Next<'a> {
    Value(&'a [u8]),
    Parsed(Parsed, Option<Sequence>),
}

impl Input {
    /// The next record that is due. Cancel safe.
    async fn next(&mut self) -> Result<Option<Next<'_>>, CliError> {
        if let Some(pace) = &self.pace {
            pace.wait().await;
        }
        if let Some(parsed) = self.held.take() {
            if let Some(pace) = &mut self.pace {
                pace.count();
            }
            let sequence = sequence_of(&parsed, self.lines.number(), self.is_sparse)?;
            return Ok(Some(Next::Parsed(parsed, sequence)));
        }
        let number = self.lines.number() + 1;
        let Some(line) = self.lines.next().await? else { return Ok(None) };
        if let Some(pace) = &mut self.pace {
            pace.count();
        }
        if self.format == Format::Value {
            return Ok(Some(Next::Value(line)));
        }
        let parsed = self.format.parse(line, number)?;
        let sequence = sequence_of(&parsed, number, self.is_sparse)?;
        Ok(Some(Next::Parsed(parsed, sequence)))
    }

    /// Passes over what an earlier run stored, and checks that the last of it is what was stored last.
    async fn pass_stored(
        &mut self,
        publisher: &Publisher,
        name: &ProducerName,
        mut receipts: Option<&mut Receipts>,
    ) -> Result<u64, CliError> {
        let last = publisher.last_sequence().get();
        let (mut passed, mut at) = (0, 0);
        while at < last {
            let number = self.lines.number() + 1;
            let Some(line) = self.lines.next().await? else {
                // An input of sparse sequences of which nothing was passed over has nothing new, and that is all.
                return match passed {
                    0 if self.is_sparse => Ok(0),
                    _ => Err(too_short(passed, last, name)),
                };
            };
            if self.is_sparse || number == last {
                let parsed = self.format.parse(line, number)?;
                let sequence = sequence_of(&parsed, number, self.is_sparse)?.map_or(number, Sequence::get);
                if sequence <= at {
                    return Err(out_of_order(number, sequence, at));
                }
                if sequence > last {
                    // It goes on behind what is stored; only if nothing was passed over, nothing was taken on trust.
                    if passed > 0 {
                        let message = format!("the input passes over sequence {last}, which '{name}' has stored");
                        return Err(another_input(message));
                    }
                    self.held = Some(parsed);
                    return Ok(0);
                }
                if sequence == last && parsed.record.crc() != publisher.last_record_crc() {
                    return Err(another_input(format!("line {number} is not what '{name}' stored as {last}")));
                }
                at = sequence;
            } else {
                at = number;
            }
            passed += 1;
            if let Some(receipts) = receipts.as_deref_mut() {
                receipts.write_stored_before(at, publisher)?;
            }
        }
        Ok(passed)
    }
}

/// The record's own sequence, if records bring them: the offset that it had where it comes from, plus one, since offsets
/// start at 0 and sequences at 1.
fn sequence_of(parsed: &Parsed, number: u64, is_sparse: bool) -> Result<Option<Sequence>, CliError> {
    if !is_sparse {
        return Ok(None);
    }
    match parsed.offset.and_then(|offset| offset.checked_add(1)) {
        Some(sequence) => Ok(Some(Sequence::new(sequence))),
        None => {
            let message = format!("line {number} has no `offset` to take its sequence from");
            Err(CliError::new(Exit::No, "malformed_input", message)
                .with_hint("--sequence-from offset takes what `consume --json` prints"))
        }
    }
}

fn too_short(lines: u64, last: u64, name: &ProducerName) -> CliError {
    another_input(format!("the input has {lines} lines, and '{name}' has stored {last}"))
}

fn out_of_order(number: u64, sequence: u64, before: u64) -> CliError {
    let message = format!("line {number} has sequence {sequence}, and {before} came before it");
    CliError::new(Exit::Conflict, "sequence_past", message).with_hint("give records in the order of their offsets")
}

fn another_input(message: String) -> CliError {
    CliError::new(Exit::Conflict, "sequence_reused", message).with_hint("another file? use another --producer")
}

async fn send_one(publisher: &Publisher, next: Next<'_>) -> Result<Sequence, CliError> {
    let sent = match next {
        Next::Value(value) => publisher.send_value(value).await,
        Next::Parsed(parsed, None) => publisher.send(parsed.record).await,
        Next::Parsed(parsed, Some(sequence)) => publisher.send_at(sequence, parsed.record).await,
    };
    sent.map_err(|error| failed(&error))
}

async fn send(input: &mut Input, publisher: &Publisher, receipts: Option<&mut Receipts>) -> Result<(), CliError> {
    let Some(receipts) = receipts else {
        while let Some(next) = input.next().await? {
            send_one(publisher, next).await?;
        }
        return Ok(());
    };
    let is_sparse = input.is_sparse;
    let mut since_look = 0;
    // False when no further receipt can come: the next line that is sent tells why.
    let mut is_alive = true;
    loop {
        // A receipt is printed at once, also while the input or the window is waited for.
        let next = tokio::select! {
            biased;
            next = input.next() => next?,
            receipt = publisher.next_receipt(), if is_alive => {
                match receipt {
                    Some(receipt) => receipts.write(&receipt)?,
                    None => is_alive = false,
                }
                receipts.drain(publisher)?;
                continue;
            }
        };
        let Some(next) = next else { return Ok(()) };
        let mut sending = std::pin::pin!(send_one(publisher, next));
        let sequence = loop {
            tokio::select! {
                biased;
                sent = &mut sending => break sent?,
                receipt = publisher.next_receipt(), if is_alive => match receipt {
                    Some(receipt) => receipts.write(&receipt)?,
                    None => is_alive = false,
                },
            }
        };
        if is_sparse {
            receipts.note_sent(sequence.get());
        }
        since_look += 1;
        if since_look >= LINES_PER_LOOK {
            since_look = 0;
            receipts.drain(publisher)?;
        }
    }
}

async fn close(publisher: &Publisher, receipts: Option<&mut Receipts>) -> Result<(), CliError> {
    if let Some(receipts) = receipts {
        let closing = publisher.close();
        let printing = async {
            while let Some(receipt) = publisher.next_receipt().await {
                receipts.write(&receipt)?;
                receipts.drain(publisher)?;
            }
            receipts.flush()
        };
        let (closed, printed) = tokio::join!(closing, printing);
        closed.map_err(|error: Error| failed(&error))?;
        return printed;
    }
    publisher.close().await.map_err(|error| failed(&error))
}

fn summarize(arguments: &ProduceArguments, publisher: &Publisher, stored_before: u64) -> Result<(), CliError> {
    let published = publisher.published();
    let duplicates = publisher.duplicates() + stored_before;
    let last_offset = publisher.last_offset();
    if arguments.client.json {
        let summary = serde_json::json!({
            "stream": arguments.stream,
            "published": published,
            "duplicates": duplicates,
            "last_offset": last_offset,
        });
        let mut output = Output::stdout()?;
        output.write_line(summary.to_string().as_bytes())?;
        return output.flush();
    }
    let last_offset = last_offset.map_or_else(|| "unknown".to_owned(), |offset| offset.to_string());
    eprintln!("published {published}, duplicates {duplicates}, last offset {last_offset}");
    Ok(())
}

/// Spreads records evenly over time. One that comes late is followed by the next at once, so that the rate is kept.
struct Pace {
    started: Instant,
    per_second: f64,
    count: u64,
}

impl Pace {
    fn new(rate: Rate) -> Pace {
        Pace { started: Instant::now(), per_second: rate.per_second(), count: 0 }
    }

    /// Until the next record is due.
    async fn wait(&self) {
        let due = self.started + Duration::from_secs_f64(self.count as f64 / self.per_second);
        if due > Instant::now() {
            sleep_until(due).await;
        }
    }

    fn count(&mut self) {
        self.count += 1;
    }
}
