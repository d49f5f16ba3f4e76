//! NATS JetStream: its client protocol by hand, one acknowledgement for each message.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use memchr::{memchr, memmem};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::Outcome;
use crate::peer::{self, Flight, Peer};
use crate::process::{Process, free_address};
use crate::tcp::Wire;

const CONNECT: &[u8] =
    b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"0\",\"protocol\":1,\
\"headers\":true,\"no_responders\":true,\"echo\":true}\r\n";
const ACKNOWLEDGED: &[u8] = b"{\"stream\":\"bench\",\"seq\":";

/// When JetStream syncs what it has acknowledged.
pub(crate) struct NatsSettings {
    pub(crate) sync_always: bool,
}

pub(crate) struct Nats {
    process: Process,
    address: SocketAddr,
    control: NatsConnection,
    connections: u64,
}

impl Peer for Nats {
    type Settings = NatsSettings;
    type Producer = NatsProducer;
    type Reader = NatsReader;

    async fn start(program: &Path, folder: &Path, settings: &NatsSettings) -> Outcome<Self> {
        let address = free_address()?;
        let sync = if settings.sync_always { "sync_interval: always" } else { "" };
        let config = format!("listen: \"{address}\"\njetstream {{ store_dir: \"{}\"\n{sync} }}\n", folder.display());
        fs::write(folder.join("nats.conf"), config)?;
        let mut command = Command::new(program);
        command.arg("-c").arg(folder.join("nats.conf")).stdout(Stdio::null());
        let mut process = Process::spawn(command, folder)?;
        let control = process
            .until_answered(async || {
                let mut control = NatsConnection::connect(address, "_INBOX.control").await?;
                // That there is no such stream is an answer, too; that nobody listens is none.
                control.request("$JS.API.STREAM.INFO.bench", "").await?;
                Ok(control)
            })
            .await?;
        Ok(Self { process, address, control, connections: 0 })
    }

    fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    async fn create(&mut self) -> Outcome<()> {
        let stream = json!({
            "name": "bench", "subjects": ["bench"], "retention": "limits", "storage": "file", "num_replicas": 1,
            "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "discard": "old",
        });
        let answer = self.control.request("$JS.API.STREAM.CREATE.bench", &stream.to_string()).await?;
        refusal(&answer)
    }

    async fn stored(&mut self) -> Outcome<u64> {
        let answer = self.control.request("$JS.API.STREAM.INFO.bench", "").await?;
        refusal(&answer)?;
        answer["state"]["messages"].as_u64().ok_or_else(|| format!("no count in {answer}").into())
    }

    async fn producer(&mut self, _: Flight) -> Outcome<NatsProducer> {
        self.connections += 1;
        let inbox = format!("_INBOX.p{}", self.connections);
        let connection = NatsConnection::connect(self.address, &inbox).await?;
        Ok(NatsProducer { connection, head: format!("PUB bench {inbox} "), last_sequence: 0 })
    }

    async fn reader(&mut self, _follow: bool) -> Outcome<NatsReader> {
        self.connections += 1;
        let inbox = format!("_INBOX.r{}", self.connections);
        let connection = NatsConnection::connect(self.address, &inbox).await?;
        // What the clients' "ordered consumer" is: pushed, with flow control, without acknowledgements.
        let consumer = json!({ "stream_name": "bench", "config": {
            "deliver_subject": inbox, "deliver_policy": "all", "ack_policy": "none", "max_deliver": 1,
            "flow_control": true, "idle_heartbeat": 5_000_000_000_u64, "mem_storage": true, "num_replicas": 1,
            "replay_policy": "instant", "inactive_threshold": 300_000_000_000_u64,
        }});
        let answer = self.control.request("$JS.API.CONSUMER.CREATE.bench", &consumer.to_string()).await?;
        refusal(&answer)?;
        Ok(NatsReader { connection })
    }

    async fn stop(self) -> Outcome<()> {
        self.process.stop().await
    }
}

fn refusal(answer: &Value) -> Outcome<()> {
    match &answer["error"] {
        Value::Null => Ok(()),
        error => Err(format!("JetStream refuses: {error}").into()),
    }
}

/// What the server says.
enum Operation<'a> {
    Message { reply: &'a [u8], header: &'a [u8], payload: &'a [u8] },
    Ping,
    Other,
}

/// The first whole operation in `input`, and its length.
fn parse(input: &[u8]) -> Outcome<Option<(Operation<'_>, usize)>> {
    let Some(end) = memchr(b'\n', input) else { return Ok(None) };
    let line = input[..end].trim_ascii_end();
    let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let has_header = match words.next() {
        Some(b"MSG") => false,
        Some(b"HMSG") => true,
        Some(b"PING") => return Ok(Some((Operation::Ping, end + 1))),
        Some(b"-ERR") => return Err(format!("NATS says {}", String::from_utf8_lossy(line)).into()),
        _ => return Ok(Some((Operation::Other, end + 1))),
    };
    // Subject, subscription, perhaps a subject for replies, then one or two lengths.
    let rest: Vec<&[u8]> = words.collect();
    let lengths = if has_header { 2 } else { 1 };
    let (reply, header_bytes, total_bytes) = match (&rest[..], lengths) {
        ([_, _, total], 1) => (&b""[..], 0, number(total)?),
        ([_, _, reply, total], 1) => (*reply, 0, number(total)?),
        ([_, _, header, total], 2) => (&b""[..], number(header)?, number(total)?),
        ([_, _, reply, header, total], 2) => (*reply, number(header)?, number(total)?),
        _ => return Err(format!("not understood: {}", String::from_utf8_lossy(line)).into()),
    };
    let body = end + 1;
    let Some(content) = input.get(body..body + total_bytes + 2) else { return Ok(None) };
    if header_bytes > total_bytes {
        return Err("a header is longer than its message".into());
    }
    let (header, payload) = content[..total_bytes].split_at(header_bytes);
    Ok(Some((Operation::Message { reply, header, payload }, body + total_bytes + 2)))
}

fn number(digits: &[u8]) -> Outcome<usize> {
    let mut value = 0_usize;
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10).ok_or("not a number")?;
        value =
            value.checked_mul(10).and_then(|value| value.checked_add(digit.into())).ok_or("a number is too large")?;
    }
    Ok(value)
}

/// A connection that is subscribed to one inbox.
pub(crate) struct NatsConnection {
    wire: Wire,
    inbox: String,
}

impl NatsConnection {
    async fn connect(address: SocketAddr, inbox: &str) -> Outcome<Self> {
        let mut wire = Wire::connect(address).await?;
        let output = wire.output();
        output.extend_from_slice(CONNECT);
        output.extend_from_slice(format!("SUB {inbox} 1\r\nPING\r\n").as_bytes());
        wire.flush().await?;
        // The server's PONG comes behind the subscription.
        loop {
            let line = wire.line().await?;
            match line.split(' ').next() {
                Some("PONG") => return Ok(Self { wire, inbox: inbox.to_owned() }),
                Some("-ERR") => return Err(line.into()),
                _ => {}
            }
        }
    }

    async fn request(&mut self, subject: &str, body: &str) -> Outcome<Value> {
        let request = format!("PUB {subject} {} {}\r\n{body}\r\n", self.inbox, body.len());
        self.wire.output().extend_from_slice(request.as_bytes());
        let mut answer = None;
        while answer.is_none() {
            self.take(|message| {
                let Operation::Message { header, payload, .. } = message else { return Ok(()) };
                if payload.is_empty() && !header.is_empty() {
                    return Err(String::from_utf8_lossy(header).trim().to_owned().into());
                }
                answer = Some(serde_json::from_slice(payload)?);
                Ok(())
            })
            .await?;
        }
        answer.ok_or_else(|| "no answer".into())
    }

    /// Waits for more and hands every whole message to `each`.
    async fn take(&mut self, mut each: impl FnMut(&Operation<'_>) -> Outcome<()>) -> Outcome<()> {
        loop {
            self.wire.flush().await?;
            let (mut at, mut messages, mut pings) = (0, 0_u64, 0_u64);
            let input = self.wire.input();
            while let Some((operation, length)) = parse(input.get(at..).unwrap_or_default())? {
                at += length;
                match operation {
                    Operation::Ping => pings += 1,
                    Operation::Message { .. } => {
                        messages += 1;
                        each(&operation)?;
                    }
                    Operation::Other => {}
                }
            }
            self.wire.consume(at);
            for _ in 0..pings {
                self.wire.output().extend_from_slice(b"PONG\r\n");
            }
            if messages > 0 {
                return Ok(());
            }
            self.wire.flush().await?;
            self.wire.fill().await?;
        }
    }
}

pub(crate) struct NatsProducer {
    connection: NatsConnection,
    /// What a publish begins with, up to its length.
    head: String,
    last_sequence: usize,
}

impl peer::Producer for NatsProducer {
    async fn send(&mut self, record: &[u8]) -> Outcome<()> {
        let output = self.connection.wire.output();
        output.extend_from_slice(self.head.as_bytes());
        output.extend_from_slice(record.len().to_string().as_bytes());
        output.extend_from_slice(b"\r\n");
        output.extend_from_slice(record);
        output.extend_from_slice(b"\r\n");
        Ok(())
    }

    async fn flush(&mut self) -> Outcome<()> {
        self.connection.wire.flush().await
    }

    async fn acknowledged(&mut self) -> Outcome<u64> {
        let mut count = 0;
        let last = &mut self.last_sequence;
        self.connection
            .take(|message| {
                let Operation::Message { payload, .. } = message else { return Ok(()) };
                let refused = || format!("JetStream answers {}", String::from_utf8_lossy(payload));
                let rest = payload.strip_prefix(ACKNOWLEDGED).ok_or_else(refused)?;
                // Only the sequence may follow: not that it is a duplicate.
                let sequence = rest
                    .strip_suffix(b"}")
                    .ok_or_else(refused)
                    .and_then(|digits| number(digits).map_err(|_| refused()))?;
                if sequence <= *last {
                    return Err(format!("sequence {sequence} was acknowledged behind {last}").into());
                }
                *last = sequence;
                count += 1;
                Ok(())
            })
            .await?;
        Ok(count)
    }
}

pub(crate) struct NatsReader {
    connection: NatsConnection,
}

impl peer::Reader for NatsReader {
    async fn next(&mut self, take: &mut dyn FnMut(&[u8])) -> Outcome<()> {
        let mut replies = Vec::new();
        self.connection
            .take(|message| {
                let Operation::Message { reply, header, payload } = message else { return Ok(()) };
                if header.is_empty() {
                    take(payload);
                } else if memmem::find(header, b"FlowControl").is_some() {
                    replies.push(reply.to_vec());
                } else if let Some(at) = memmem::find(header, b"Nats-Consumer-Stalled: ") {
                    let subject = &header[at + b"Nats-Consumer-Stalled: ".len()..];
                    replies.push(subject.split(|byte| *byte == b'\r').next().unwrap_or_default().to_vec());
                }
                Ok(())
            })
            .await?;
        for reply in replies {
            let output = self.connection.wire.output();
            output.extend_from_slice(b"PUB ");
            output.extend_from_slice(&reply);
            output.extend_from_slice(b" 0\r\n\r\n");
        }
        self.connection.wire.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_when_it_is_whole() {
        let input = b"MSG bench 1 $JS.ACK.x 5\r\nhello\r\nPING\r\n";
        for end in 0..32 {
            assert!(parse(&input[..end]).unwrap().is_none(), "{end} bytes");
        }
        let Some((Operation::Message { reply, header, payload }, 32)) = parse(input).unwrap() else {
            panic!("no message")
        };
        assert_eq!((reply, header, payload), (&b"$JS.ACK.x"[..], &b""[..], &b"hello"[..]));
        assert!(matches!(parse(&input[32..]).unwrap(), Some((Operation::Ping, 6))));
    }

    #[test]
    fn a_header_is_cut_from_its_message() {
        let input = b"HMSG inbox 1 12 14\r\nNATS/1.0\r\n\r\nhi\r\n";
        let Some((Operation::Message { reply, header, payload }, 36)) = parse(input).unwrap() else {
            panic!("no message")
        };
        assert_eq!((reply, header, payload), (&b""[..], &b"NATS/1.0\r\n\r\n"[..], &b"hi"[..]));
    }

    #[test]
    fn an_error_is_an_error() {
        assert!(parse(b"-ERR 'Authorization Violation'\r\n").is_err());
        assert!(parse(b"MSG bench 1 x\r\n").is_err());
    }
}
