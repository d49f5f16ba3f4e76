//! The monitor's HTTP side: read-only, for probes, Prometheus and people.
//!
//! It runs on a thread and a runtime of its own and shares nothing with the broker but atomics and
//! one short lock, so that asking costs the broker nothing and a stuck broker still answers.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::metrics::{CONTENT_TYPE, Metrics};
use super::{Health, MonitorState, RecoveryFacts};

/// Connections at one time; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// How long a stop waits for answers that are under way; they are a few kilobytes each.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// What keeps the monitor from starting. Nothing is left open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MonitorError {
    /// Somebody else has the address.
    #[error(
        "{address} for HTTP is in use, perhaps by another broker; stop that one, or choose another address \
         (port 0 takes any free one)"
    )]
    InUse {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// The socket could not be opened.
    #[error("could not listen on {address} for HTTP")]
    Socket {
        /// The address that was asked for.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread or its runtime could not be made.
    #[error("could not start the monitor's thread")]
    Thread(#[source] io::Error),
    /// The metrics contradict each other; a defect of this program.
    #[error("could not set up the metrics: {0}")]
    Metrics(String),
}

/// A running monitor; dropping it stops it and joins its thread.
pub struct Monitor {
    local_addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

impl Monitor {
    /// Serves `state` on `address`; port 0 takes any free one. Answers from the moment it returns.
    ///
    /// # Errors
    ///
    /// [`MonitorError`], first of all an address in use.
    pub fn start(address: SocketAddr, state: Arc<MonitorState>) -> Result<Monitor, MonitorError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => MonitorError::InUse { address },
            _ => MonitorError::Socket { address, source },
        };
        let socket = TcpListener::bind(address).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let local_addr = socket.local_addr().map_err(failed)?;
        let metrics =
            Metrics::new(Arc::clone(state.counters())).map_err(|error| MonitorError::Metrics(error.to_string()))?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(MonitorError::Thread)?;
        let listener = {
            let _inside = runtime.enter();
            BoundedListener {
                socket: tokio::net::TcpListener::from_std(socket).map_err(failed)?,
                slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            }
        };
        let router = router(Arc::new(Shown { state, metrics }));
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("tidelog-monitor".to_owned())
            .spawn(move || runtime.block_on(serve(listener, router, stopped)))
            .map_err(MonitorError::Thread)?;
        Ok(Monitor { local_addr, stop: Some(stop), thread: Some(thread) })
    }

    /// The address really listened on.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops serving and waits for the thread to end, half a second at the most.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the monitor's thread had panicked; the broker itself is not affected");
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.end();
    }
}

/// Serves until `stopped` fires or its sender is dropped.
async fn serve(listener: BoundedListener, router: Router, stopped: oneshot::Receiver<()>) {
    let (end, ended) = oneshot::channel::<()>();
    let server = axum::serve(listener, router).with_graceful_shutdown(async {
        let _ = ended.await;
    });
    let mut server = pin!(server.into_future());
    tokio::select! {
        _ = &mut server => {}
        _ = stopped => {
            drop(end);
            // A client that does not take its answer is cut off: the runtime goes with this thread.
            let _ = tokio::time::timeout(STOP_TIMEOUT, server).await;
        }
    }
}

/// Takes no more connections than it has slots.
struct BoundedListener {
    socket: tokio::net::TcpListener,
    slots: Arc<Semaphore>,
}

impl axum::serve::Listener for BoundedListener {
    type Io = HeldStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (HeldStream, SocketAddr) {
        // The semaphore is never closed; were it, accepting nothing more would be right.
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
            return std::future::pending().await;
        };
        let (stream, address) = axum::serve::Listener::accept(&mut self.socket).await;
        (HeldStream { stream, _slot: slot }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

struct Shown {
    state: Arc<MonitorState>,
    metrics: Metrics,
}

fn router(shown: Arc<Shown>) -> Router {
    // `get` answers HEAD too and refuses every other method with 405.
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(status))
        .with_state(shown)
}

/// The process runs and this thread answers; nothing about the broker's health.
async fn livez() -> Response {
    plain(StatusCode::OK, "ok\n".to_owned())
}

/// 200 if producers and consumers can be served, otherwise 503 and the reason.
async fn readyz(State(shown): State<Arc<Shown>>) -> Response {
    let health = shown.state.health();
    match health.reason() {
        None => plain(StatusCode::OK, format!("{}\n", health.name())),
        Some(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{}: {reason}\n", health.name())),
    }
}

async fn metrics(State(shown): State<Arc<Shown>>) -> Response {
    match shown.metrics.text() {
        Ok(text) => answer(StatusCode::OK, CONTENT_TYPE, text),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

async fn status(State(shown): State<Arc<Shown>>) -> Response {
    let mut text = status_json(&shown.state).to_string();
    text.push('\n');
    answer(StatusCode::OK, "application/json", text)
}

fn status_json(state: &MonitorState) -> serde_json::Value {
    let status = state.status();
    let health: Health = state.health();
    serde_json::json!({
        "state": health.name(),
        "reason": health.reason(),
        "log_id": status.log_id,
        "start_count": status.start_count,
        "medium": status.medium,
        "durable_position": state.counters().durable_position.get(),
        "recovery": status.recovery,
        "recovery_report": report_json(&status.report, state),
        "version": env!("CARGO_PKG_VERSION"),
        "protocol_versions": [tidelog_protocol::PROTOCOL_VERSION],
    })
}

/// Numbers and positions; a range is `{"from":…,"to":…}`, half-open.
fn report_json(report: &RecoveryFacts, state: &MonitorState) -> serde_json::Value {
    let range = |range: &Range<u64>| serde_json::json!({"from": range.start, "to": range.end});
    let damages: Vec<_> = report
        .damages
        .iter()
        .map(|damage| {
            serde_json::json!({
                "kind": damage.kind,
                "segment": damage.segment,
                "positions": range(&damage.positions),
                "stream_id": damage.stream,
                "offsets": damage.offsets.as_ref().map(range),
                "loses_data": damage.loses_data,
                "repaired": damage.repaired,
            })
        })
        .collect();
    serde_json::json!({
        "seconds": state.counters().recovery_nanos.get() as f64 / 1e9,
        "segments": report.segments,
        "entries": report.entries,
        "bytes_read": report.bytes_read,
        "checkpoint": report.checkpoint,
        "proven": report.proven,
        "end": report.end,
        "rewritten_bytes": report.rewritten_bytes,
        "cut": report.cut.as_ref().map(range),
        "damages": damages,
        "set_aside": report.set_aside,
    })
}

fn plain(status: StatusCode, text: String) -> Response {
    answer(status, "text/plain; charset=utf-8", text)
}

fn answer(status: StatusCode, content_type: &'static str, text: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, text).into_response()
}

/// A connection that gives its slot back when it is closed.
struct HeldStream {
    stream: TcpStream,
    _slot: OwnedSemaphorePermit,
}

impl AsyncRead for HeldStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for HeldStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;
    use crate::counters::Counters;
    use crate::monitor::{DamageFacts, StatusSnapshot};

    fn start() -> (Monitor, Arc<MonitorState>) {
        let state = Arc::new(MonitorState::new(Arc::new(Counters::new())));
        let address = "127.0.0.1:0".parse().unwrap();
        let monitor = Monitor::start(address, Arc::clone(&state)).unwrap();
        (monitor, state)
    }

    /// Status line and headers, and the body.
    fn ask(monitor: &Monitor, method: &str, path: &str) -> (String, String) {
        let mut stream = std::net::TcpStream::connect(monitor.local_addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    #[test]
    fn a_broker_is_alive_before_it_is_ready() {
        let (monitor, state) = start();
        let (head, body) = ask(&monitor, "GET", "/livez");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(body, "ok\n");
        let (head, body) = ask(&monitor, "GET", "/readyz");
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(body.starts_with("recovering: "), "{body}");
        state.set_health(Health::Ready);
        let (head, body) = ask(&monitor, "GET", "/readyz");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(body, "ready\n");
    }

    #[test]
    fn a_poisoned_or_stopping_broker_is_not_ready_and_says_why() {
        let (monitor, state) = start();
        state.set_health(Health::Ready);
        for (health, expected) in
            [(Health::Poisoned, "poisoned: a write to the log failed"), (Health::Stopping, "stopping: ")]
        {
            state.set_health(health);
            let (head, body) = ask(&monitor, "GET", "/readyz");
            assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
            assert!(body.starts_with(expected), "{body}");
        }
        assert!(ask(&monitor, "GET", "/livez").0.starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn metrics_are_served_as_prometheus_text() {
        let (monitor, state) = start();
        state.counters().records_published.add(12);
        let (head, body) = ask(&monitor, "GET", "/metrics");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        assert!(body.contains("\ntidelog_records_published_total 12\n"), "{body}");
    }

    #[test]
    fn the_status_is_json_with_stable_fields() {
        let (monitor, state) = start();
        state.set_health(Health::Ready);
        state.counters().durable_position.set(4_096);
        state.set_status(StatusSnapshot {
            log_id: "0badcafe".to_owned(),
            start_count: 3,
            medium: "/data".to_owned(),
            recovery: vec!["a torn entry was cut off".to_owned()],
            report: RecoveryFacts {
                entries: 5,
                cut: Some(100..200),
                damages: vec![DamageFacts {
                    kind: "payload",
                    segment: 2,
                    positions: 10..20,
                    stream: Some(4_096),
                    offsets: Some(7..9),
                    loses_data: true,
                    repaired: false,
                }],
                ..RecoveryFacts::default()
            },
        });
        let (head, body) = ask(&monitor, "GET", "/api/v1/status");
        assert!(head.contains("content-type: application/json"), "{head}");
        let status: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status["state"], "ready");
        assert_eq!(status["log_id"], "0badcafe");
        assert_eq!(status["durable_position"], 4_096);
        assert_eq!(status["recovery"][0], "a torn entry was cut off");
        let report = &status["recovery_report"];
        assert_eq!((&report["entries"], &report["cut"]["to"]), (&5.into(), &200.into()));
        assert_eq!(report["set_aside"], serde_json::json!([]));
        let damage = &report["damages"][0];
        assert_eq!((&damage["kind"], &damage["stream_id"]), (&"payload".into(), &4_096.into()));
        assert_eq!(damage["offsets"], serde_json::json!({"from": 7, "to": 9}));
        assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(status["protocol_versions"][0], 1);
    }

    #[test]
    fn only_reading_is_possible() {
        let (monitor, _state) = start();
        let (head, body) = ask(&monitor, "HEAD", "/metrics");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(body, "");
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            for path in ["/livez", "/readyz", "/metrics", "/api/v1/status"] {
                let (head, _) = ask(&monitor, method, path);
                assert!(head.starts_with("HTTP/1.1 405 "), "{method} {path}: {head}");
            }
        }
        assert!(ask(&monitor, "GET", "/").0.starts_with("HTTP/1.1 404 "));
    }

    #[test]
    fn an_address_in_use_is_told_as_such() {
        let (monitor, state) = start();
        let error = Monitor::start(monitor.local_addr(), state).unwrap_err();
        assert!(matches!(error, MonitorError::InUse { .. }), "{error}");
    }

    #[test]
    fn stopping_frees_the_address_though_a_client_hangs() {
        let (monitor, state) = start();
        let address = monitor.local_addr();
        // Half a request: the server waits for the rest.
        let mut hanging = std::net::TcpStream::connect(address).unwrap();
        hanging.write_all(b"GET /livez HTTP/1.1\r\n").unwrap();
        monitor.stop();
        Monitor::start(address, state).expect("the address is free again");
    }

    #[test]
    fn connections_above_the_limit_wait_for_a_slot() {
        let (monitor, _state) = start();
        let mut idle: Vec<_> =
            (0..CONNECTIONS_MAX).map(|_| std::net::TcpStream::connect(monitor.local_addr()).unwrap()).collect();
        // Each idle client sends one request and keeps its connection, so each has its slot.
        for stream in &mut idle {
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
        }
        let mut late = std::net::TcpStream::connect(monitor.local_addr()).unwrap();
        late.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        late.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut answer = String::new();
        assert!(late.read_to_string(&mut answer).is_err(), "no slot is free");
        drop(idle);
        late.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        late.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}
