//! QUIC: the only file (with its socket) that knows quinn. Everything else speaks to the traits of the protocol crate.

mod socket;

use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    AckFrequencyConfig, AsyncUdpSocket, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    ReadError, RecvStream, SendStream, TokioRuntime, TransportConfig, TransportErrorCode, VarInt, WriteError,
};
use tidelog_protocol::{
    ACKNOWLEDGEMENT_DELAY_MS_MAX, BoxFuture, CloseCode, Connection, Connector, Duplex, INITIAL_CONGESTION_WINDOW_BYTES,
    ReceiveHalf, SendHalf, TransportError, UDP_PAYLOAD_BYTES_MAX,
};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::address::Address;
use crate::tls::{self, TlsError};
use crate::trust::Trust;
use socket::ConnectedSocket;

/// The longest a single handshake may take; the caller decides how often it is tried again.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// A host may have several addresses, not all of which answer; later ones get their turn while earlier ones are silent.
const NEXT_ADDRESS_DELAY: Duration = Duration::from_millis(250);

/// More addresses than this of one host are not tried.
const ADDRESSES_MAX: usize = 8;

/// Three keep-alives unanswered are a dead broker. Half of the client's usual patience without progress, so that a
/// connection nobody answers on is replaced in time.
const IDLE_TIMEOUT_MS: u32 = 15_000;

const REFUSED: &str = "connection refused";

const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Until the first answer: what is lost then is sent again after three times this. quinn's third of a second would
/// make a client wait a second for a broker that is back after a few milliseconds.
const INITIAL_ROUND_TRIP: Duration = Duration::from_millis(50);

/// Unread bytes of one QUIC stream that the broker may send ahead.
const STREAM_RECEIVE_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// Unread bytes of the whole connection that the broker may send ahead; quinn's default is no bound.
const RECEIVE_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Unacknowledged bytes held for sending again: twice a producer's usual window.
const SEND_WINDOW_BYTES: u64 = 8 * 1024 * 1024;

/// How long [`Connection::closed`] waits for the farewell to leave after a local close.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(50);

/// Time for what had arrived before the system said that nobody is there any more.
const LAST_WORDS: Duration = Duration::from_millis(5);
/// Turns of the runtime for the same, should it have had none within that time.
const LAST_TURNS: usize = 4;

/// Connects to one broker over QUIC.
pub struct QuicConnector {
    host: String,
    port: u16,
    place: String,
    trust_origin: String,
    config: quinn::ClientConfig,
}

impl QuicConnector {
    /// Prepares connections to `address`, believed to be the right broker by `trust`. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`TlsError`] if the file of authorities is no use.
    pub fn new(address: &Address, trust: &Trust) -> Result<Self, TlsError> {
        let crypto = QuicClientConfig::try_from(tls::client_config(trust)?)
            .map_err(|error| TlsError::Provider { reason: error.to_string() })?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport_config()));
        Ok(Self {
            host: address.host().into(),
            port: address.port(),
            place: address.place(),
            trust_origin: trust.origin(),
            config,
        })
    }

    async fn connect_any(&self) -> Result<Arc<dyn Connection>, TransportError> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port))
            .await
            .map_err(|error| TransportError::Unreachable(format!("{}: {error}", self.host)))?;
        let mut tries = JoinSet::new();
        for (address, turn) in found.take(ADDRESSES_MAX).zip(0_u32..) {
            let config = self.config.clone();
            // The zone of a link-local address is for the system, not part of the name in the certificate.
            let name = self.host.split('%').next().unwrap_or_default().to_owned();
            tries.spawn(async move {
                sleep(NEXT_ADDRESS_DELAY * turn).await;
                connect_one(address, config, &name).await
            });
        }
        let mut worst = TransportError::Unreachable(format!("{} has no address", self.host));
        while let Some(tried) = tries.join_next().await {
            match tried {
                Ok(Ok(connection)) => return Ok(Arc::new(connection)),
                Ok(Err(error)) if matches!(worst, TransportError::Unreachable(_)) => worst = error,
                Ok(Err(_)) => {}
                Err(error) => worst = TransportError::Unreachable(format!("the try was given up: {error}")),
            }
        }
        Err(self.explain(worst))
    }

    fn explain(&self, error: TransportError) -> TransportError {
        match error {
            TransportError::Unreachable(reason) => TransportError::Unreachable(format!("{}: {reason}", self.place)),
            TransportError::Untrusted(reason) => TransportError::Untrusted(format!(
                "the broker at {} is not the one that {} speaks of: {reason}",
                self.place, self.trust_origin
            )),
            other => other,
        }
    }
}

impl Connector for QuicConnector {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Connection>, TransportError>> {
        Box::pin(self.connect_any())
    }
}

impl fmt::Debug for QuicConnector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("QuicConnector").field("place", &self.place).finish_non_exhaustive()
    }
}

/// Takes payloads as large as are asked for; both ends must say so, or nothing comes of it.
fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(UDP_PAYLOAD_BYTES_MAX).expect("it is within what QUIC allows");
    config
}

fn transport_config() -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(UDP_PAYLOAD_BYTES_MAX);
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_CONGESTION_WINDOW_BYTES);
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements.max_ack_delay(Some(Duration::from_millis(ACKNOWLEDGEMENT_DELAY_MS_MAX)));
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_ROUND_TRIP)
        .stream_receive_window(VarInt::from_u32(STREAM_RECEIVE_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        // Brokers open no QUIC streams and send no datagrams.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(congestion))
        .ack_frequency_config(Some(acknowledgements));
    transport
}

/// An endpoint for each connection: a socket of its own, whose refusal concerns this broker only.
async fn connect_one(
    remote: SocketAddr,
    config: quinn::ClientConfig,
    name: &str,
) -> Result<QuicConnection, TransportError> {
    let unreachable = |reason: String| TransportError::Unreachable(reason);
    let socket = ConnectedSocket::new(remote).map_err(|error| unreachable(format!("no socket: {error}")))?;
    let socket = Arc::new(socket);
    let endpoint = Endpoint::new_with_abstract_socket(
        endpoint_config(),
        None,
        Arc::clone(&socket) as Arc<dyn AsyncUdpSocket>,
        Arc::new(TokioRuntime),
    )
    .map_err(|error| unreachable(format!("no endpoint: {error}")))?;
    let connecting = endpoint.connect_with(config, remote, name).map_err(|error| unreachable(error.to_string()))?;
    let handshake = timeout(HANDSHAKE_TIMEOUT, connecting);
    let connected = tokio::select! {
        connected = handshake => connected,
        () = socket.refused() => return Err(unreachable(REFUSED.into())),
    };
    match connected {
        Ok(Ok(connection)) => {
            let refused = Arc::new(AtomicBool::new(false));
            tokio::spawn(watch_refusal(connection.clone(), socket, Arc::clone(&refused)));
            Ok(QuicConnection { connection, refused, sent_before_close: AtomicU64::new(0), _endpoint: endpoint })
        }
        Ok(Err(error)) => Err(handshake_error(error)),
        Err(_) => Err(unreachable(format!("no answer within {} s", HANDSHAKE_TIMEOUT.as_secs()))),
    }
}

/// Ends a connection as soon as the system says that nobody is there any more.
async fn watch_refusal(connection: quinn::Connection, socket: Arc<ConnectedSocket>, refused: Arc<AtomicBool>) {
    tokio::select! {
        _ = connection.closed() => {}
        () = socket.refused() => {
            // The system tells this before it gives out what had arrived until then: the last answers, and a farewell that
            // says why.
            if timeout(LAST_WORDS, connection.closed()).await.is_ok() {
                return;
            }
            for _ in 0..LAST_TURNS {
                tokio::task::yield_now().await;
            }
            if connection.close_reason().is_none() {
                refused.store(true, Ordering::Release);
                connection.close(VarInt::from_u32(CloseCode::Done as u32), b"");
            }
        }
    }
}

/// TLS alerts, RFC 8446 section 6, as QUIC carries them.
mod alert {
    /// Everything that says "this certificate won't do", or that its key did not sign.
    pub(super) const CERTIFICATE: [u8; 8] = [42, 43, 44, 45, 46, 48, 49, 51];
    pub(super) const NO_APPLICATION_PROTOCOL: u8 = 120;
    pub(super) const PROTOCOL_VERSION: u8 = 70;
}

/// What a connection that never came to be died of.
fn handshake_error(error: ConnectionError) -> TransportError {
    let is = |code: TransportErrorCode, number: u8| code == TransportErrorCode::crypto(number);
    match error {
        ConnectionError::VersionMismatch => TransportError::ForeignProtocol("it speaks another version of QUIC".into()),
        ConnectionError::TransportError(ref ours)
            if alert::CERTIFICATE.into_iter().any(|number| is(ours.code, number)) =>
        {
            TransportError::Untrusted(ours.reason.clone())
        }
        ConnectionError::TransportError(ref ours) if is(ours.code, alert::NO_APPLICATION_PROTOCOL) => {
            TransportError::ForeignProtocol("it does not speak tidelog/1".into())
        }
        ConnectionError::ConnectionClosed(ref theirs)
            if is(theirs.error_code, alert::NO_APPLICATION_PROTOCOL)
                || is(theirs.error_code, alert::PROTOCOL_VERSION) =>
        {
            TransportError::ForeignProtocol("it does not speak tidelog/1".into())
        }
        ConnectionError::ConnectionClosed(ref theirs)
            if theirs.error_code == TransportErrorCode::CONNECTION_REFUSED =>
        {
            TransportError::Closed {
                code: CloseCode::Busy as u32,
                reason: "the broker takes no further connection now".into(),
            }
        }
        ConnectionError::ApplicationClosed(_) => lost_error(error),
        other => TransportError::Unreachable(other.to_string()),
    }
}

/// What a connection that stood died of.
fn lost_error(error: ConnectionError) -> TransportError {
    match error {
        ConnectionError::ApplicationClosed(close) => TransportError::Closed {
            // Codes above 32 bits are not ours; the largest number stands for all of them.
            code: u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX),
            reason: String::from_utf8_lossy(&close.reason).into_owned(),
        },
        ConnectionError::LocallyClosed => TransportError::Lost("it is closed on this side".into()),
        other => TransportError::Lost(other.to_string()),
    }
}

struct QuicConnection {
    connection: quinn::Connection,
    /// It was closed because nobody listens on the other side.
    refused: Arc<AtomicBool>,
    /// Datagrams that had been sent when this side closed it.
    sent_before_close: AtomicU64,
    _endpoint: Endpoint,
}

impl Connection for QuicConnection {
    fn open(&self) -> BoxFuture<'_, Result<Duplex, TransportError>> {
        Box::pin(async { self.connection.open_bi().await.map(duplex).map_err(lost_error) })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Duplex, TransportError>> {
        Box::pin(async { self.connection.accept_bi().await.map(duplex).map_err(lost_error) })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.connection.close(VarInt::from_u32(code as u32), reason.as_bytes());
        // Behind the close, so that what is counted from here on is the farewell.
        self.sent_before_close.store(self.connection.stats().udp_tx.datagrams, Ordering::Release);
    }

    /// After a local close this waits until the farewell has left, so that a process may end then; quinn's `wait_idle`
    /// would also wait for late packets of the peer, some 90 ms.
    fn closed(&self) -> BoxFuture<'_, TransportError> {
        Box::pin(async {
            let error = self.connection.closed().await;
            if self.refused.load(Ordering::Acquire) {
                return TransportError::Lost(REFUSED.into());
            }
            if matches!(error, ConnectionError::LocallyClosed) {
                // quinn-proto counts no close frames that it sends, but a closed connection sends nothing else.
                let before = self.sent_before_close.load(Ordering::Acquire);
                let farewell = async {
                    while self.connection.stats().udp_tx.datagrams <= before {
                        sleep(Duration::from_millis(1)).await;
                    }
                };
                let _ = timeout(FAREWELL_TIMEOUT, farewell).await;
            }
            lost_error(error)
        })
    }

    fn remote(&self) -> String {
        self.connection.remote_address().to_string()
    }
}

fn duplex((send, receive): (SendStream, RecvStream)) -> Duplex {
    Duplex { send: Box::new(QuicSend(send)), receive: Box::new(QuicReceive(receive)) }
}

struct QuicSend(SendStream);

impl SendHalf for QuicSend {
    fn poll_write(&mut self, context: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, TransportError>> {
        // The future keeps nothing between polls: quinn stores the waker with the connection.
        let write = pin!(self.0.write_chunks(chunks));
        write.poll(context).map(|written| match written {
            Ok(written) => Ok(written.bytes),
            Err(WriteError::Stopped(code)) => Err(TransportError::Stopped { code: code_of(code) }),
            Err(WriteError::ConnectionLost(error)) => Err(lost_error(error)),
            Err(error @ (WriteError::ClosedStream | WriteError::ZeroRttRejected)) => {
                Err(TransportError::Lost(error.to_string()))
            }
        })
    }

    fn finish(&mut self) {
        // Fails only if it was finished or reset before, which is as good.
        let _ = self.0.finish();
    }

    fn reset(&mut self, code: u32) {
        let _ = self.0.reset(VarInt::from_u32(code));
    }
}

struct QuicReceive(RecvStream);

impl ReceiveHalf for QuicReceive {
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        bytes_max: usize,
    ) -> Poll<Result<Option<Bytes>, TransportError>> {
        let read = pin!(self.0.read_chunk(bytes_max, true));
        read.poll(context).map(|chunk| match chunk {
            Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
            Err(ReadError::Reset(code)) => Err(TransportError::Reset { code: code_of(code) }),
            Err(ReadError::ConnectionLost(error)) => Err(lost_error(error)),
            Err(error @ (ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected)) => {
                Err(TransportError::Lost(error.to_string()))
            }
        })
    }

    fn stop(&mut self, code: u32) {
        let _ = self.0.stop(VarInt::from_u32(code));
    }
}

fn code_of(code: VarInt) -> u32 {
    u32::try_from(code.into_inner()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
