//! `tidelog produce`: a record a line, exactly once if the producer has a name.

use tidelog_client::{Client, Error, Publisher, Receipt};
use tidelog_protocol::{ProducerName, Record, Sequence, StreamSettings};

use super::args::ProduceArguments;
use super::connect::{self, connect, failed};
use super::exit::{CliError, Exit};
use super::lines::Lines;
use super::output::Output;

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
    let mut lines = Lines::open(arguments.file.as_deref(), welcome.limits.record_bytes_max as usize)?;
    let stream = client
        .create_stream(&arguments.stream, StreamSettings::default(), true)
        .await
        .map_err(|error| failed(&error))?;
    let builder = match &arguments.producer {
        Some(name) => client.producer(name.clone()),
        None => client.anonymous_producer(),
    };
    let producer = builder.receipts(arguments.receipts).open().await.map_err(|error| failed(&error))?;
    let publisher = producer.stream(stream).await.map_err(|error| failed(&error))?;

    let mut receipts = match arguments.receipts {
        true => Some(Receipts { output: Output::stdout()?, sequence: 0 }),
        false => None,
    };
    let stored_before = match &arguments.producer {
        Some(name) => pass_stored(&mut lines, &publisher, name).await?,
        None => 0,
    };
    if let Some(receipts) = &mut receipts {
        receipts.write_stored_before(stored_before, &publisher)?;
    }

    let sent = send(&mut lines, &publisher, receipts.as_mut()).await;
    // What was taken before an error of the input is stored all the same.
    let closed = close(&publisher, receipts.as_mut()).await;
    sent.and(closed)?;
    summarize(arguments, &publisher, stored_before)
}

/// Passes over the lines that an earlier run stored, and checks that the last of them is that line.
async fn pass_stored(lines: &mut Lines, publisher: &Publisher, name: &ProducerName) -> Result<u64, CliError> {
    let last = publisher.last_sequence().get();
    while lines.number() < last {
        let is_last = lines.number() + 1 == last;
        let Some(line) = lines.next().await? else {
            let count = lines.number();
            let message = format!("the input has {count} lines, and '{name}' has stored {last}");
            return Err(another_input(message));
        };
        if is_last && Record::new(line.to_vec()).crc() != publisher.last_record_crc() {
            return Err(another_input(format!("line {last} is not what '{name}' stored as {last}")));
        }
    }
    Ok(last)
}

fn another_input(message: String) -> CliError {
    CliError::new(Exit::Conflict, "sequence_reused", message).with_hint("another file? use another --producer")
}

async fn send(lines: &mut Lines, publisher: &Publisher, receipts: Option<&mut Receipts>) -> Result<(), CliError> {
    let Some(receipts) = receipts else {
        while let Some(line) = lines.next().await? {
            publisher.send_value(line).await.map_err(|error| failed(&error))?;
        }
        return Ok(());
    };
    let mut since_look = 0;
    // False when no further receipt can come: the next line that is sent tells why.
    let mut is_alive = true;
    loop {
        // A receipt is printed at once, also while the input or the window is waited for.
        let line = tokio::select! {
            biased;
            line = lines.next() => line?,
            receipt = publisher.next_receipt(), if is_alive => {
                match receipt {
                    Some(receipt) => receipts.write(&receipt)?,
                    None => is_alive = false,
                }
                receipts.drain(publisher)?;
                continue;
            }
        };
        let Some(line) = line else { return Ok(()) };
        let mut sending = std::pin::pin!(publisher.send_value(line));
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => {
                    sent.map_err(|error| failed(&error))?;
                    break;
                }
                receipt = publisher.next_receipt(), if is_alive => match receipt {
                    Some(receipt) => receipts.write(&receipt)?,
                    None => is_alive = false,
                },
            }
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
            receipts.output.flush()
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

/// Prints a line for each record that is durable.
struct Receipts {
    output: Output,
    /// Sequence, or line number of an anonymous producer, of the last receipt.
    sequence: u64,
}

impl Receipts {
    fn write_stored_before(&mut self, last: u64, publisher: &Publisher) -> Result<(), CliError> {
        for sequence in 1..=last {
            let offset = publisher.last_offset().filter(|_| sequence == last);
            self.line(sequence, offset.map(|offset| offset.get()), true)?;
        }
        self.sequence = last;
        self.output.flush()
    }

    /// Writes what is there already, and lets it out.
    fn drain(&mut self, publisher: &Publisher) -> Result<(), CliError> {
        while let Some(receipt) = publisher.try_next_receipt() {
            self.write(&receipt)?;
        }
        self.output.flush()
    }

    fn write(&mut self, receipt: &Receipt) -> Result<(), CliError> {
        if receipt.first != Sequence::NONE {
            self.sequence = receipt.first.get() - 1;
        }
        for index in 0..receipt.count {
            self.sequence += 1;
            let is_duplicate = receipt.duplicate || index < receipt.skip;
            let offset = match receipt.base_offset {
                Some(base) if index >= receipt.skip => Some(base.get() + u64::from(index - receipt.skip)),
                _ => None,
            };
            self.line(self.sequence, offset, is_duplicate)?;
        }
        Ok(())
    }

    fn line(&mut self, sequence: u64, offset: Option<u64>, duplicate: bool) -> Result<(), CliError> {
        let offset = offset.map_or_else(|| "null".to_owned(), |offset| offset.to_string());
        let line = format!("{{\"sequence\":{sequence},\"offset\":{offset},\"duplicate\":{duplicate}}}");
        self.output.write_line(line.as_bytes())
    }
}
