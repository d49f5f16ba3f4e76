//! What the broker's machine and the connection to it can do without the log: what a benchmark is held against.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidelog_protocol::{Request, Response, read, write_all};
use tokio::time::{Instant, timeout};

use crate::channel::Channel;
use crate::connection::{Client, wrong_answer};
use crate::error::Error;
use crate::link::Link;

/// Bytes that are sent at once by [`Measure::upload`].
static BLOCK: [u8; 64 << 10] = [0x5a; 64 << 10];

/// Bytes asked of the transport at once.
const READ_BYTES: usize = 64 << 10;

/// Measures what a broker's figures can be held against; made by [`Client::measure`].
///
/// Each measurement goes over the client's present connection and is not tried again: figures that a lost connection is
/// part of mean nothing. The broker stores nothing of them.
///
/// ```
/// # use std::time::Duration;
/// # use tidelog_client::*;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = tidelog::Broker::start(tidelog::BrokerConfig::in_memory())?;
/// # let client = Client::connect(ClientConfig::find(&broker.address().parse()?, None)?).await?;
/// let measure = client.measure();
/// let mut echoes = measure.echo(100).await?.round_trips(1, 50).await?;
/// echoes.sort_unstable();
/// println!("a round trip takes {:?}", echoes[25]);
/// let took = measure.download(1 << 20).await?;
/// println!("{} MB/s down", (1 << 20) as f64 / took.as_secs_f64() / 1e6);
/// // This broker keeps its log in memory.
/// assert_eq!(measure.syncs(4_096, 16).await?, None);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Measure {
    client: Client,
}

impl Measure {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Lets the broker append `appends` blocks of `append_bytes` to a file of zeros beside its log, each synced before the
    /// next, and gives the time that each took there; `None` if the log is kept in memory. Limits:
    /// [`MEASURE_APPENDS_MAX`](tidelog_protocol::MEASURE_APPENDS_MAX),
    /// [`MEASURE_APPEND_BYTES_MAX`](tidelog_protocol::MEASURE_APPEND_BYTES_MAX),
    /// [`MEASURE_BYTES_MAX`](tidelog_protocol::MEASURE_BYTES_MAX).
    ///
    /// # Errors
    ///
    /// `malformed` beyond the limits, `unknown_request` from a broker that is too old; [`Error::TimedOut`] caused by `busy`
    /// if other clients were measuring all the time, by `disk_full` if there is no room; those of the connection.
    pub async fn syncs(&self, append_bytes: u32, appends: u32) -> Result<Option<Vec<Duration>>, Error> {
        match self.client.request(Request::MeasureSync { append_bytes, appends }).await? {
            Response::SyncsMeasured { nanoseconds } if nanoseconds.is_empty() => Ok(None),
            Response::SyncsMeasured { nanoseconds } => {
                Ok(Some(nanoseconds.into_iter().map(Duration::from_nanos).collect()))
            }
            other => Err(wrong_answer("measure_sync", &other)),
        }
    }

    /// Opens an echo for messages of `message_bytes` each, at least 1.
    ///
    /// # Errors
    ///
    /// `unknown_request` from a broker that is too old; those of the connection.
    pub async fn echo(&self, message_bytes: usize) -> Result<Echo, Error> {
        let opened = self.open(Request::Echo).await?;
        let timeout = self.client.timeout();
        Ok(Echo { opened, message_bytes: message_bytes.max(1), timeout, sent: 0, came_back: 0 })
    }

    /// Sends `bytes` to the broker, which drops them, and gives the time from the first until the broker has told that it
    /// has read the last.
    ///
    /// # Errors
    ///
    /// As for [`echo`](Self::echo); [`Error::TimedOut`] if it takes longer than the client's timeout.
    pub async fn upload(&self, bytes: u64) -> Result<Duration, Error> {
        self.in_time(async {
            let mut opened = self.open(Request::Sink).await?;
            let started = Instant::now();
            let mut left = bytes;
            while left > 0 {
                let mut block = Bytes::from_static(&BLOCK);
                block.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                left -= block.len() as u64;
                write_all(opened.channel.outgoing.as_mut(), &mut [block]).await?;
            }
            opened.channel.outgoing.finish();
            match opened.channel.response().await? {
                Response::Sunk { bytes: sunk } if sunk == bytes => Ok(started.elapsed()),
                Response::Sunk { bytes: sunk } => {
                    Err(Error::protocol(format!("it read {sunk} bytes of {bytes} that were sent")))
                }
                other => Err(wrong_answer("sink", &other)),
            }
        })
        .await
    }

    /// Lets the broker send `bytes`, which are dropped, and gives the time from the request to the last. At most
    /// [`MEASURE_SOURCE_BYTES_MAX`](tidelog_protocol::MEASURE_SOURCE_BYTES_MAX).
    ///
    /// # Errors
    ///
    /// `malformed` beyond the limit; as for [`upload`](Self::upload).
    pub async fn download(&self, bytes: u64) -> Result<Duration, Error> {
        self.in_time(async {
            let started = Instant::now();
            let mut opened = self.open(Request::Source { bytes }).await?;
            // Some may have come together with the response.
            let mut received = opened.channel.incoming.undecoded() as u64;
            while let Some(chunk) = read(opened.channel.incoming.raw(), READ_BYTES).await? {
                received += chunk.len() as u64;
            }
            match received == bytes {
                true => Ok(started.elapsed()),
                false => Err(Error::protocol(format!("it sent {received} bytes where {bytes} were asked for"))),
            }
        })
        .await
    }

    async fn open(&self, request: Request) -> Result<Opened, Error> {
        let op = request.op();
        let link = self.client.link().await?;
        match link.open(request).await? {
            (channel, Response::Measuring) => Ok(Opened { channel, _link: link }),
            (_, other) => Err(wrong_answer(op, &other)),
        }
    }

    async fn in_time<T>(&self, measuring: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match timeout(self.client.timeout(), measuring).await {
            Ok(measured) => measured,
            Err(_) => Err(self.client.timed_out("measuring", None)),
        }
    }
}

/// A QUIC stream for a measurement.
struct Opened {
    channel: Channel,
    /// Keeps the connection open.
    _link: Arc<Link>,
}

/// Messages that come back from the broker as they are; made by [`Measure::echo`].
pub struct Echo {
    opened: Opened,
    message_bytes: usize,
    timeout: Duration,
    /// Bytes of all that was sent and of all that came back. Byte number n is [`pattern`] of n.
    sent: usize,
    came_back: usize,
}

impl Echo {
    /// Sends `count` messages, at most `in_flight` of them (at least 1) before the first of these has come back, and gives
    /// the time that each took, in the order of sending. As a producer does, it sends what it may in one write, and takes
    /// what has come in one go.
    ///
    /// If the future is dropped, what was under way is lost with this echo: the next call ends with an error.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] if something else comes back; [`Error::TimedOut`] if nothing does within the client's timeout;
    /// those of the connection.
    pub async fn round_trips(&mut self, in_flight: usize, count: usize) -> Result<Vec<Duration>, Error> {
        let in_flight = in_flight.max(1);
        let mut times = Vec::with_capacity(count);
        // How many were sent at one moment and are still due, and that moment.
        let mut due = VecDeque::new();
        let start = self.came_back;
        let mut sent = 0;
        while times.len() < count {
            let more = (count - sent).min(in_flight - (sent - times.len()));
            if more > 0 {
                due.push_back((more, Instant::now()));
                sent += more;
                self.send(more * self.message_bytes).await?;
            }
            self.receive().await?;
            let now = Instant::now();
            for _ in times.len()..(self.came_back - start) / self.message_bytes {
                let Some((left, at)) = due.front_mut() else { break };
                times.push(now - *at);
                *left -= 1;
                if *left == 0 {
                    due.pop_front();
                }
            }
        }
        Ok(times)
    }

    async fn send(&mut self, bytes: usize) -> Result<(), Error> {
        let messages: BytesMut = (self.sent..self.sent + bytes).map(pattern).collect();
        self.sent += bytes;
        Ok(write_all(self.opened.channel.outgoing.as_mut(), &mut [messages.freeze()]).await?)
    }

    /// Waits for bytes, and takes all that have come.
    async fn receive(&mut self) -> Result<(), Error> {
        let came_before = self.came_back;
        let receiving = poll_fn(|context| {
            loop {
                match self.opened.channel.incoming.raw().poll_read(context, READ_BYTES) {
                    Poll::Ready(Ok(Some(chunk))) => {
                        let mut expected = (self.came_back..self.sent).map(pattern);
                        if !chunk.iter().all(|came| expected.next() == Some(*came)) {
                            return Poll::Ready(Err(Error::protocol("what comes back is not what was sent")));
                        }
                        self.came_back += chunk.len();
                    }
                    Poll::Ready(Ok(None)) => {
                        return Poll::Ready(Err(Error::Lost { reason: "the broker ended the echo".into() }));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                    Poll::Pending if self.came_back == came_before => return Poll::Pending,
                    Poll::Pending => return Poll::Ready(Ok(())),
                }
            }
        });
        match timeout(self.timeout, receiving).await {
            Ok(received) => received,
            Err(_) => Err(Error::TimedOut { waited: self.timeout, doing: "measuring", cause: None }),
        }
    }
}

impl fmt::Debug for Echo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Echo").field("message_bytes", &self.message_bytes).finish_non_exhaustive()
    }
}

/// A prime period, so that no message of a usual length equals the one before.
fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}
