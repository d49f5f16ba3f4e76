//! Redis Streams: RESP by hand, XADD and XREAD.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use memchr::memchr;
use tokio::process::Command;

use crate::Outcome;
use crate::peer::{self, Flight, Peer};
use crate::process::{Process, free_address};
use crate::tcp::Wire;

/// When Redis syncs its file of commands.
pub(crate) struct RedisSettings {
    pub(crate) sync_always: bool,
}

pub(crate) struct Redis {
    process: Process,
    address: SocketAddr,
    control: Wire,
}

impl Peer for Redis {
    type Settings = RedisSettings;
    type Producer = RedisProducer;
    type Reader = RedisReader;

    async fn start(program: &Path, folder: &Path, settings: &RedisSettings) -> Outcome<Self> {
        let address = free_address()?;
        let mut command = Command::new(program);
        command
            .args(["--bind", "127.0.0.1", "--port", &address.port().to_string()])
            .arg("--dir")
            .arg(folder)
            .args(["--appendonly", "yes", "--save", "", "--appendfsync"])
            .arg(if settings.sync_always { "always" } else { "everysec" })
            .stdout(Stdio::null());
        let mut process = Process::spawn(command, folder)?;
        let control = process
            .until_answered(async || {
                let mut control = Wire::connect(address).await?;
                // While it loads its file it answers with an error.
                length(&mut control).await?;
                Ok(control)
            })
            .await?;
        Ok(Self { process, address, control })
    }

    fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    async fn create(&mut self) -> Outcome<()> {
        // The first XADD does.
        Ok(())
    }

    async fn stored(&mut self) -> Outcome<u64> {
        length(&mut self.control).await
    }

    async fn producer(&mut self, _: Flight) -> Outcome<RedisProducer> {
        Ok(RedisProducer { wire: Wire::connect(self.address).await? })
    }

    async fn reader(&mut self, follow: bool) -> Outcome<RedisReader> {
        Ok(RedisReader { wire: Wire::connect(self.address).await?, last_id: b"0-0".to_vec(), follow, entries_left: 0 })
    }

    async fn stop(self) -> Outcome<()> {
        self.process.stop().await
    }
}

async fn length(wire: &mut Wire) -> Outcome<u64> {
    wire.output().extend_from_slice(b"*2\r\n$4\r\nXLEN\r\n$5\r\nbench\r\n");
    wire.flush().await?;
    let line = wire.line().await?;
    let number = line.strip_prefix(':').ok_or_else(|| format!("Redis answers {line}"))?;
    Ok(number.parse()?)
}

pub(crate) struct RedisProducer {
    wire: Wire,
}

impl peer::Producer for RedisProducer {
    async fn send(&mut self, record: &[u8]) -> Outcome<()> {
        let output = self.wire.output();
        output.extend_from_slice(b"*5\r\n$4\r\nXADD\r\n$5\r\nbench\r\n$1\r\n*\r\n$1\r\nv\r\n$");
        output.extend_from_slice(record.len().to_string().as_bytes());
        output.extend_from_slice(b"\r\n");
        output.extend_from_slice(record);
        output.extend_from_slice(b"\r\n");
        Ok(())
    }

    async fn flush(&mut self) -> Outcome<()> {
        self.wire.flush().await
    }

    async fn acknowledged(&mut self) -> Outcome<u64> {
        loop {
            // Each answer is the id of the new entry.
            let (mut at, mut count) = (0, 0);
            while let Some((_, length)) = bulk(&self.wire.input()[at..])? {
                at += length;
                count += 1;
            }
            self.wire.consume(at);
            if count > 0 {
                return Ok(count);
            }
            self.wire.fill().await?;
        }
    }
}

pub(crate) struct RedisReader {
    wire: Wire,
    last_id: Vec<u8>,
    follow: bool,
    /// Entries of the running answer that are still to come.
    entries_left: u64,
}

impl RedisReader {
    async fn ask(&mut self) -> Outcome<()> {
        let (id, output) = (self.last_id.clone(), self.wire.output());
        let words: &[&[u8]] = if self.follow {
            &[b"XREAD", b"BLOCK", b"0", b"COUNT", READ_COUNT, b"STREAMS", b"bench", &id]
        } else {
            &[b"XREAD", b"COUNT", READ_COUNT, b"STREAMS", b"bench", &id]
        };
        output.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            output.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            output.extend_from_slice(word);
            output.extend_from_slice(b"\r\n");
        }
        self.wire.flush().await?;
        // One stream: its name, and its entries.
        for expected in ["*1", "*2", "$5", "bench"] {
            let line = self.wire.line().await?;
            if line != expected {
                return Err(format!("Redis answers {line} where {expected} was due").into());
            }
        }
        let line = self.wire.line().await?;
        self.entries_left = line.strip_prefix('*').ok_or_else(|| format!("Redis answers {line}"))?.parse()?;
        Ok(())
    }
}

/// Entries that one XREAD asks for at most.
const READ_COUNT: &[u8] = b"1000";

impl peer::Reader for RedisReader {
    async fn next(&mut self, take: &mut dyn FnMut(&[u8])) -> Outcome<()> {
        if self.entries_left == 0 {
            self.ask().await?;
        }
        loop {
            let input = self.wire.input();
            let (mut at, mut count) = (0, 0);
            let mut id_at = None;
            while count < self.entries_left {
                let Some((id, value, length)) = entry(&input[at..])? else { break };
                take(value);
                id_at = Some((at + id.0, at + id.1));
                at += length;
                count += 1;
            }
            if let Some((from, to)) = id_at {
                self.last_id.clear();
                self.last_id.extend_from_slice(&input[from..to]);
                self.wire.consume(at);
                self.entries_left -= count;
                return Ok(());
            }
            self.wire.fill().await?;
        }
    }
}

/// A whole entry: where its id stands, its one value, its length.
type Entry<'a> = ((usize, usize), &'a [u8], usize);

fn entry(input: &[u8]) -> Outcome<Option<Entry<'_>>> {
    const FIELDS: &[u8] = b"*2\r\n$1\r\nv\r\n";
    let Some(head) = input.get(..4) else { return Ok(None) };
    if head != b"*2\r\n" {
        return Err("Redis gives an entry of another shape".into());
    }
    let Some((id, id_bytes)) = bulk(&input[4..])? else { return Ok(None) };
    let id_end = 4 + id_bytes - 2;
    let fields = 4 + id_bytes;
    let Some(found) = input.get(fields..fields + FIELDS.len()) else { return Ok(None) };
    if found != FIELDS {
        return Err("Redis gives other fields than were added".into());
    }
    let value = fields + FIELDS.len();
    let Some((bytes, length)) = bulk(&input[value..])? else { return Ok(None) };
    Ok(Some(((id_end - id.len(), id_end), bytes, value + length)))
}

/// A whole bulk string, and its length with head and end.
fn bulk(input: &[u8]) -> Outcome<Option<(&[u8], usize)>> {
    let Some(end) = memchr(b'\n', input) else { return Ok(None) };
    let line = input[..end].trim_ascii_end();
    let digits = line.strip_prefix(b"$").ok_or_else(|| format!("Redis answers {}", String::from_utf8_lossy(line)))?;
    let bytes: usize = std::str::from_utf8(digits)?.parse()?;
    let from = end + 1;
    Ok(input.get(from..from + bytes + 2).map(|content| (&content[..bytes], from + bytes + 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_taken_when_it_is_whole() {
        let input = b"*2\r\n$5\r\n123-0\r\n*2\r\n$1\r\nv\r\n$3\r\nabc\r\n";
        for end in 0..input.len() {
            assert!(entry(&input[..end]).unwrap().is_none(), "{end} bytes");
        }
        let (id, value, length) = entry(input).unwrap().unwrap();
        assert_eq!((&input[id.0..id.1], value, length), (&b"123-0"[..], &b"abc"[..], input.len()));
    }

    #[test]
    fn an_error_is_no_acknowledgement() {
        assert!(bulk(b"-OOM command not allowed\r\n").is_err());
        assert_eq!(bulk(b"$3\r\n1-0\r\n").unwrap(), Some((&b"1-0"[..], 9)));
        assert_eq!(bulk(b"$3\r\n1-").unwrap(), None);
    }
}
