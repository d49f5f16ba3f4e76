//! What the machine can do without the log, for whoever wants to hold the broker's figures against it: syncs on the log's
//! own disk, and plain bytes over the client's own connection.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidelog_protocol::{
    ErrorCode, FrameKind, MEASURE_APPEND_BYTES_MAX, MEASURE_APPENDS_MAX, MEASURE_BYTES_MAX, MEASURE_SOURCE_BYTES_MAX,
    ReceiveHalf, Request, Response, ResponseFrame, ResponseResult, SendHalf, WireError, read, write_all,
};
use tidelog_storage::measure_syncs;
use tidelog_storage::medium::Medium;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::counters::Counters;
use crate::server::allowance::Allowance;
use crate::server::frames::{FrameReader, SessionEnd, write_json};

/// Bytes that one read takes, and that an echo gathers for one write: what its QUIC stream counts for.
const READ_BYTES: usize = 16 << 10;
/// What a source writes at once.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Measures syncs of the log's disk, one client's at a time, on a thread that lives as long as that takes: the network
/// thread serves everybody else meanwhile.
#[derive(Debug)]
pub(crate) struct SyncMeter {
    /// `None` without a disk, and in a broker without threads, whose disk is a simulated one.
    medium: Option<Arc<dyn Medium>>,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
    is_stopping: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl SyncMeter {
    pub(crate) fn new(medium: Option<Arc<dyn Medium>>, clock: Arc<dyn Clock>, counters: Arc<Counters>) -> Self {
        Self { medium, clock, counters, is_stopping: Arc::default(), thread: Mutex::default() }
    }

    /// Begins; the answer comes when it is done.
    pub(crate) fn measure(&self, append_bytes: u32, appends: u32) -> oneshot::Receiver<ResponseResult> {
        let (to, answer) = oneshot::channel();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let is_busy = thread.as_ref().is_some_and(|thread| !thread.is_finished());
        let medium = match (check(append_bytes, appends), &self.medium) {
            (Err(error), _) => Err(ResponseResult::Error(error)),
            (Ok(()), None) => Err(ResponseResult::Ok(Response::SyncsMeasured { nanoseconds: Vec::new() })),
            (Ok(()), Some(_)) if is_busy => {
                let message = "another client is measuring syncs";
                Err(ResponseResult::Error(WireError::new(ErrorCode::Busy, message)))
            }
            (Ok(()), Some(medium)) => Ok(Arc::clone(medium)),
        };
        let medium = match medium {
            Ok(medium) => medium,
            Err(at_once) => {
                // Whoever asked may be gone, here and below.
                let _ = to.send(at_once);
                return answer;
            }
        };
        let (clock, is_stopping) = (Arc::clone(&self.clock), Arc::clone(&self.is_stopping));
        let counted = self.counters.hold(|counters| &counters.measurements);
        let started = std::thread::Builder::new().name("tidelog-measure".to_owned()).spawn(move || {
            let clock = || clock.monotonic();
            let is_over = || is_stopping.load(Ordering::Relaxed);
            let measured = measure_syncs(medium.as_ref(), append_bytes, appends, &clock, &is_over);
            drop(counted);
            let _ = to.send(match measured {
                Ok(times) => {
                    ResponseResult::Ok(Response::SyncsMeasured { nanoseconds: times.into_iter().map(nanos).collect() })
                }
                Err(error) => ResponseResult::Error(failed(&error)),
            });
        });
        // Without a thread nobody answers, which the session tells.
        match started {
            Ok(started) => *thread = Some(started),
            Err(error) => tracing::warn!("no thread to measure syncs on: {error}"),
        }
        answer
    }

    /// Ends what is being measured. With `waits` false a thread that hangs in a sync is left behind.
    pub(crate) fn stop(self, waits: bool) {
        self.is_stopping.store(true, Ordering::Relaxed);
        let thread = self.thread.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let (Some(thread), true) = (thread, waits)
            && thread.join().is_err()
        {
            tracing::error!("the thread that measures syncs panicked");
        }
    }
}

fn check(append_bytes: u32, appends: u32) -> Result<(), WireError> {
    let bytes = u64::from(append_bytes) * u64::from(appends);
    let is_allowed = (1..=MEASURE_APPEND_BYTES_MAX).contains(&append_bytes)
        && (1..=MEASURE_APPENDS_MAX).contains(&appends)
        && bytes <= MEASURE_BYTES_MAX;
    if is_allowed {
        return Ok(());
    }
    let message = format!(
        "syncs are measured on 1 to {MEASURE_APPENDS_MAX} appends of 1 to {MEASURE_APPEND_BYTES_MAX} bytes, \
         {MEASURE_BYTES_MAX} bytes together at most"
    );
    Err(WireError::new(ErrorCode::Malformed, message))
}

fn failed(error: &io::Error) -> WireError {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::DiskFull,
        _ => ErrorCode::Internal,
    };
    WireError::new(code, format!("syncs could not be measured: {error}"))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Serves an echo, a sink or a source to its end.
pub(crate) async fn serve(
    send: &mut dyn SendHalf,
    reader: &mut FrameReader,
    allowance: &Allowance,
    id: u64,
    request: Request,
) -> Result<(), SessionEnd> {
    if let Request::Source { bytes } = request
        && bytes > MEASURE_SOURCE_BYTES_MAX
    {
        let message = format!("a source gives at most {MEASURE_SOURCE_BYTES_MAX} bytes");
        let result = ResponseResult::Error(WireError::new(ErrorCode::Malformed, message));
        write_json(send, FrameKind::Response, &ResponseFrame { id, result }).await?;
        return Ok(());
    }
    let _counted = allowance.peers().counters.hold(|counters| &counters.measurements);
    let receive = reader.raw()?;
    let result = ResponseResult::Ok(Response::Measuring);
    write_json(send, FrameKind::Response, &ResponseFrame { id, result }).await?;
    match request {
        Request::Echo => echo(send, receive, allowance).await,
        Request::Sink => {
            let bytes = sink(receive, allowance).await?;
            let result = ResponseResult::Ok(Response::Sunk { bytes });
            write_json(send, FrameKind::Response, &ResponseFrame { id, result }).await?;
            Ok(())
        }
        Request::Source { bytes } => source(send, allowance, bytes).await,
        request => unreachable!("{} does not measure", request.op()),
    }
}

async fn echo(send: &mut dyn SendHalf, receive: &mut dyn ReceiveHalf, allowance: &Allowance) -> Result<(), SessionEnd> {
    let mut gathered = BytesMut::with_capacity(READ_BYTES);
    loop {
        let has_ended = gather(receive, &mut gathered).await?;
        allowance.received(gathered.len());
        allowance.sent(gathered.len());
        write_all(send, &mut [gathered.split().freeze()]).await?;
        if has_ended {
            return Ok(());
        }
    }
}

/// Waits for bytes and takes what has arrived with them, as a session takes all batches that have arrived into one group;
/// whether that was the last.
async fn gather(receive: &mut dyn ReceiveHalf, into: &mut BytesMut) -> Result<bool, SessionEnd> {
    let gathering = poll_fn(|cx| {
        loop {
            let room = READ_BYTES.saturating_sub(into.len());
            if room == 0 {
                return Poll::Ready(Ok(false));
            }
            match receive.poll_read(cx, room) {
                Poll::Ready(Ok(Some(chunk))) => into.extend_from_slice(&chunk),
                Poll::Ready(Ok(None)) => return Poll::Ready(Ok(true)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if into.is_empty() => return Poll::Pending,
                Poll::Pending => return Poll::Ready(Ok(false)),
            }
        }
    });
    Ok(gathering.await?)
}

async fn sink(receive: &mut dyn ReceiveHalf, allowance: &Allowance) -> Result<u64, SessionEnd> {
    let mut bytes = 0;
    while let Some(chunk) = read(receive, READ_BYTES).await? {
        bytes += chunk.len() as u64;
        allowance.received(chunk.len());
    }
    Ok(bytes)
}

async fn source(send: &mut dyn SendHalf, allowance: &Allowance, bytes: u64) -> Result<(), SessionEnd> {
    let mut left = bytes;
    while left > 0 {
        let mut block = Bytes::from_static(&ZEROS);
        block.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= block.len() as u64;
        allowance.sent(block.len());
        write_all(send, &mut [block]).await?;
    }
    Ok(())
}
