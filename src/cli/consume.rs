//! `tidelog consume`: the records of a stream, in order.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use tidelog_client::{Client, DeliveredBatch, DeliveredRecord, Reader, ReaderEvent};
use tidelog_protocol::{Offset, Sequence, StreamName};

use super::args::ConsumeArguments;
use super::connect::{self, connect, failed};
use super::exit::{CliError, Exit};
use super::output::Output;
use super::time;

/// Prints records.
///
/// # Errors
///
/// Those of the connection, the broker and the output; status 1 if damage was met.
pub(crate) fn run(arguments: ConsumeArguments) -> Result<(), CliError> {
    connect::run(async {
        let client = connect(&arguments.client).await?;
        let outcome = consume(&client, &arguments).await;
        client.close().await;
        outcome
    })
}

async fn consume(client: &Client, arguments: &ConsumeArguments) -> Result<(), CliError> {
    let mut output = Output::stdout()?;
    let from = arguments.from.start_at(now_ms());
    let reader = client.reader(arguments.stream.clone()).from(from).follow(arguments.follow);
    let mut reader = reader.open().await.map_err(|error| failed(&error))?;
    let mut left = arguments.count.unwrap_or(u64::MAX);
    let mut damaged = None;
    while left > 0 {
        let event = match next(&mut reader, &mut output).await {
            Ok(Some(event)) => event,
            Ok(None) => break,
            Err(error) => {
                // What was received before the error is the reader's all the same.
                output.flush()?;
                return Err(error);
            }
        };
        match event {
            ReaderEvent::Batch(batch) => left = print(&batch, left, arguments.client.json, &mut output)?,
            ReaderEvent::Gap { from, to } => {
                output.flush()?;
                eprintln!("gap: {} offsets {from}..{to}, retention", arguments.stream);
            }
            ReaderEvent::Damaged { from, to } => {
                output.flush()?;
                eprintln!("damaged: {} offsets {from}..{to}", arguments.stream);
                damaged.get_or_insert((from, to));
                if !arguments.skip_damaged {
                    break;
                }
            }
            _ => {}
        }
    }
    output.flush()?;
    match damaged {
        Some((from, to)) => Err(damage(&arguments.stream, from, to, arguments.skip_damaged)),
        None => Ok(()),
    }
}

fn damage(stream: &StreamName, from: Offset, to: Offset, has_skipped: bool) -> CliError {
    let error = CliError::new(Exit::No, "damaged", format!("offsets {from}..{to} of {stream} can't be read"));
    match has_skipped {
        true => error,
        false => error.with_hint("--skip-damaged goes on behind it"),
    }
}

/// The next event; what is gathered is let out before waiting.
async fn next(reader: &mut Reader, output: &mut Output) -> Result<Option<ReaderEvent>, CliError> {
    let ready = tokio::select! {
        biased;
        event = reader.next_batch() => Some(event),
        () = std::future::ready(()) => None,
    };
    let event = match ready {
        Some(event) => event,
        None => {
            output.flush()?;
            reader.next_batch().await
        }
    };
    event.map_err(|error| failed(&error))
}

/// Prints up to `left` records; returns how many are left.
fn print(batch: &DeliveredBatch, mut left: u64, json: bool, output: &mut Output) -> Result<u64, CliError> {
    for record in batch.records() {
        if left == 0 {
            break;
        }
        let record = record.map_err(|error| failed(&error))?;
        if json {
            output.write_line(object(batch, &record).to_string().as_bytes())?;
        } else {
            output.write_line(&record.record.value)?;
        }
        left -= 1;
    }
    Ok(left)
}

fn object(batch: &DeliveredBatch, delivered: &DeliveredRecord) -> Value {
    let record = &delivered.record;
    let mut object = Map::new();
    object.insert("offset".to_owned(), json!(delivered.offset));
    object.insert("time".to_owned(), json!(time::rfc3339(batch.time_ms())));
    object.insert("producer".to_owned(), json!(batch.producer()));
    let sequence = (delivered.sequence != Sequence::NONE).then_some(delivered.sequence);
    object.insert("sequence".to_owned(), json!(sequence));
    if let Some(timestamp_ms) = record.timestamp_ms {
        object.insert("timestamp".to_owned(), json!(time::rfc3339(timestamp_ms)));
    }
    match &record.key {
        Some(key) => insert(&mut object, "key", key),
        None => drop(object.insert("key".to_owned(), Value::Null)),
    }
    let (mut headers, mut encoded) = (Map::new(), Map::new());
    for header in &record.headers {
        let name = String::from_utf8_lossy(&header.name).into_owned();
        match std::str::from_utf8(&header.value) {
            Ok(text) => add(&mut headers, name, json!(text)),
            Err(_) => add(&mut encoded, name, json!(STANDARD.encode(&header.value))),
        }
    }
    object.insert("headers".to_owned(), Value::Object(headers));
    if !encoded.is_empty() {
        object.insert("headers_base64".to_owned(), Value::Object(encoded));
    }
    insert(&mut object, "value", &record.value);
    Value::Object(object)
}

/// A name with one value has the value, one with several an array of them.
fn add(headers: &mut Map<String, Value>, name: String, value: Value) {
    match headers.get_mut(&name) {
        None => drop(headers.insert(name, value)),
        Some(Value::Array(values)) => values.push(value),
        Some(first) => *first = json!([first.take(), value]),
    }
}

/// Bytes as text, or base64-encoded under another name if they are none.
fn insert(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), json!(text)),
        Err(_) => object.insert(format!("{name}_base64"), json!(STANDARD.encode(bytes))),
    };
}

#[expect(clippy::disallowed_methods, reason = "an age on the command line counts back from this machine's clock")]
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
