//! durable-streams: HTTP/1.1 by hand, one append for each record.
//!
//! A stream of bytes has no records: here each append is one, and as all have one size a reader can cut them again. A
//! connection's next request is looked at when the one before is answered, so more in flight means more connections; or,
//! as its own clients do, many records in one append.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::process::Command;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};

use crate::Outcome;
use crate::peer::{self, Flight, Peer};
use crate::process::{Process, free_address};
use crate::tcp::Wire;

/// More connections than these make it no faster here.
const CONNECTIONS_MAX: u64 = 256;
/// Where one connection takes many records at a time: of one append, and of all that wait.
const APPEND_BYTES_MAX: usize = 1 << 20;
const WINDOW_BYTES: usize = 4 << 20;

pub(crate) struct DurableStreamsSettings {
    pub(crate) record_bytes: usize,
}

pub(crate) struct DurableStreams {
    process: Process,
    address: SocketAddr,
    control: Http,
    record_bytes: usize,
}

impl Peer for DurableStreams {
    type Settings = DurableStreamsSettings;
    type Producer = DurableStreamsProducer;
    type Reader = DurableStreamsReader;

    async fn start(program: &Path, folder: &Path, settings: &DurableStreamsSettings) -> Outcome<Self> {
        let address = free_address()?;
        let mut command = Command::new(program);
        command
            .args(["--host", "127.0.0.1", "--port", &address.port().to_string(), "--data-dir"])
            .arg(folder.join("data"))
            .stdout(Stdio::null());
        let mut process = Process::spawn(command, folder)?;
        let control = process
            .until_answered(async || {
                let mut control = Http { wire: Wire::connect(address).await? };
                // That there is no such stream is an answer, too.
                control.request("HEAD /bench", "", b"").await?;
                Ok(control)
            })
            .await?;
        Ok(Self { process, address, control, record_bytes: settings.record_bytes })
    }

    fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    async fn create(&mut self) -> Outcome<()> {
        let head = self.control.request("PUT /bench", "Content-Type: application/octet-stream\r\n", b"").await?;
        self.control.wire.exactly(head.content_length).await?;
        head.expect_success()
    }

    async fn stored(&mut self) -> Outcome<u64> {
        let head = self.control.request("HEAD /bench", "", b"").await?;
        head.expect_success()?;
        let bytes = head.next_offset()?;
        if bytes % self.record_bytes as u64 != 0 {
            return Err(format!("{bytes} bytes are not whole records of {}", self.record_bytes).into());
        }
        Ok(bytes / self.record_bytes as u64)
    }

    async fn producer(&mut self, flight: Flight) -> Outcome<DurableStreamsProducer> {
        let shared = Rc::new(Shared::new());
        let (connections, append_bytes) = match flight {
            Flight::Unbounded => (1, APPEND_BYTES_MAX),
            Flight::One | Flight::Records(_) => (flight.records().min(CONNECTIONS_MAX), 0),
        };
        let mut workers = Vec::new();
        for _ in 0..connections {
            let http = Http { wire: Wire::connect(self.address).await? };
            workers.push(spawn_local(append_all(http, Rc::clone(&shared), append_bytes)));
        }
        Ok(DurableStreamsProducer { shared, workers })
    }

    async fn reader(&mut self, follow: bool) -> Outcome<DurableStreamsReader> {
        let mut http = Http { wire: Wire::connect(self.address).await? };
        let live = if follow { "&live=sse" } else { "" };
        let head = http.request(&format!("GET /bench?offset=-1{live}"), "", b"").await?;
        head.expect_success()?;
        if follow != head.chunked {
            return Err("the body comes in another form than expected".into());
        }
        Ok(DurableStreamsReader { http, follow, record_bytes: self.record_bytes, events: Vec::new(), data: Vec::new() })
    }

    async fn stop(self) -> Outcome<()> {
        // Asked to end it waits, for 25 s, until all connections are closed.
        drop(self.control);
        self.process.stop().await
    }
}

struct Head {
    status: u16,
    content_length: usize,
    chunked: bool,
    next_offset: Option<String>,
}

impl Head {
    fn parse(text: &str) -> Outcome<Self> {
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).ok_or("no status")?.parse()?;
        let mut head = Self { status, content_length: 0, chunked: false, next_offset: None };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => head.content_length = value.parse()?,
                "transfer-encoding" => head.chunked = value.eq_ignore_ascii_case("chunked"),
                "stream-next-offset" => head.next_offset = Some(value.to_owned()),
                _ => {}
            }
        }
        Ok(head)
    }

    fn expect_success(&self) -> Outcome<()> {
        match self.status {
            200..300 => Ok(()),
            status => Err(format!("durable-streams answers with status {status}").into()),
        }
    }

    /// Bytes before the stream's end.
    fn next_offset(&self) -> Outcome<u64> {
        let offset = self.next_offset.as_deref().and_then(|offset| offset.split_once('_')).ok_or("no next offset")?;
        Ok(offset.1.parse()?)
    }
}

struct Http {
    wire: Wire,
}

impl Http {
    /// Sends a request and waits for the head of the answer.
    async fn request(&mut self, line: &str, headers: &str, body: &[u8]) -> Outcome<Head> {
        let output = self.wire.output();
        output.extend_from_slice(line.as_bytes());
        output.extend_from_slice(b" HTTP/1.1\r\nHost: bench\r\n");
        output.extend_from_slice(headers.as_bytes());
        output.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        output.extend_from_slice(body);
        self.wire.flush().await?;
        let is_head = line.starts_with("HEAD");
        loop {
            if let Some(end) = memchr::memmem::find(self.wire.input(), b"\r\n\r\n") {
                let mut head = Head::parse(std::str::from_utf8(&self.wire.input()[..end])?)?;
                self.wire.consume(end + 4);
                if is_head {
                    head.content_length = 0;
                }
                return Ok(head);
            }
            self.wire.fill().await?;
        }
    }
}

/// What a producer and its connections share.
struct Shared {
    queue: RefCell<VecDeque<Vec<u8>>>,
    queued: Notify,
    /// Of records that are not acknowledged.
    bytes: Cell<usize>,
    /// Acknowledged and not yet told, or what went wrong.
    acknowledged: RefCell<Outcome<u64>>,
    changed: Notify,
}

impl Shared {
    fn new() -> Self {
        let (queued, changed) = (Notify::new(), Notify::new());
        let (queue, bytes, acknowledged) = (RefCell::default(), Cell::new(0), RefCell::new(Ok(0)));
        Self { queue, queued, bytes, acknowledged, changed }
    }
}

/// One connection: takes records from the queue when those before are acknowledged; one, or as many as there are up to
/// `append_bytes`.
async fn append_all(mut http: Http, shared: Rc<Shared>, append_bytes: usize) {
    let mut body = Vec::new();
    loop {
        body.clear();
        let mut records = 0;
        while let Some(next) =
            shared.queue.borrow_mut().pop_front_if(|next| body.len() + next.len() <= append_bytes || body.is_empty())
        {
            body.extend_from_slice(&next);
            records += 1;
        }
        if records == 0 {
            shared.queued.notified().await;
            continue;
        }
        let appended = append(&mut http, &body).await;
        let mut acknowledged = shared.acknowledged.borrow_mut();
        match (appended, acknowledged.as_mut()) {
            (Ok(()), Ok(count)) => *count += records,
            (Err(error), Ok(_)) => *acknowledged = Err(error),
            (_, Err(_)) => return,
        }
        shared.bytes.set(shared.bytes.get() - body.len());
        shared.changed.notify_one();
    }
}

async fn append(http: &mut Http, record: &[u8]) -> Outcome<()> {
    let head = http.request("POST /bench", "Content-Type: application/octet-stream\r\n", record).await?;
    http.wire.exactly(head.content_length).await?;
    head.expect_success()
}

pub(crate) struct DurableStreamsProducer {
    shared: Rc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Drop for DurableStreamsProducer {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.abort();
        }
    }
}

impl peer::Producer for DurableStreamsProducer {
    async fn send(&mut self, record: &[u8]) -> Outcome<()> {
        while self.shared.bytes.get() + record.len() > WINDOW_BYTES && self.shared.acknowledged.borrow().is_ok() {
            self.shared.changed.notified().await;
        }
        self.shared.bytes.set(self.shared.bytes.get() + record.len());
        self.shared.queue.borrow_mut().push_back(record.to_vec());
        // Wakes one connection that has nothing to do; if all are busy, each looks again when it is done.
        self.shared.queued.notify_one();
        Ok(())
    }

    async fn flush(&mut self) -> Outcome<()> {
        Ok(())
    }

    async fn acknowledged(&mut self) -> Outcome<u64> {
        loop {
            match &mut *self.shared.acknowledged.borrow_mut() {
                Ok(0) => {}
                Ok(count) => return Ok(std::mem::take(count)),
                Err(error) => return Err(error.to_string().into()),
            }
            self.shared.changed.notified().await;
        }
    }
}

pub(crate) struct DurableStreamsReader {
    http: Http,
    follow: bool,
    record_bytes: usize,
    /// Received text of the server's events that is not yet looked at.
    events: Vec<u8>,
    /// Stream bytes that do not make a whole record yet.
    data: Vec<u8>,
}

impl peer::Reader for DurableStreamsReader {
    async fn next(&mut self, take: &mut dyn FnMut(&[u8])) -> Outcome<()> {
        if self.follow {
            while self.data.len() < self.record_bytes {
                self.next_event().await?;
            }
            let whole = self.data.len() - self.data.len() % self.record_bytes;
            self.data[..whole].chunks(self.record_bytes).for_each(take);
            self.data.drain(..whole);
            return Ok(());
        }
        while self.http.wire.input().len() < self.record_bytes {
            self.http.wire.fill().await?;
        }
        let input = self.http.wire.input();
        let whole = input.len() - input.len() % self.record_bytes;
        input[..whole].chunks(self.record_bytes).for_each(take);
        self.http.wire.consume(whole);
        Ok(())
    }
}

impl DurableStreamsReader {
    /// Reads the next chunk of the body and takes whole lines of events from it.
    async fn next_event(&mut self) -> Outcome<()> {
        let length = usize::from_str_radix(&self.http.wire.line().await?, 16)?;
        if length == 0 {
            return Err("the server ended the events".into());
        }
        let chunk = self.http.wire.exactly(length + 2).await?;
        self.events.extend_from_slice(&chunk[..length]);
        let Some(end) = memchr::memrchr(b'\n', &self.events) else { return Ok(()) };
        // Control events hold JSON, which is no base64; data events nothing else.
        for line in self.events[..end].split(|byte| *byte == b'\n') {
            if let Some(text) = line.strip_prefix(b"data:").filter(|text| !text.starts_with(b"{")) {
                STANDARD.decode_vec(text, &mut self.data)?;
            }
        }
        self.events.drain(..=end);
        Ok(())
    }
}
