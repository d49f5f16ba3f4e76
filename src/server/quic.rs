//! QUIC as the broker speaks it: with the weather of the test kit below it, all of the broker that knows quinn.
//!
//! A stranger gets little: until [`QuicConnection::admit`] a connection has one QUIC stream. The two windows are small and
//! stay so until the session finds that they are made use of. When many strangers come at once, each has to show first that
//! its address is its own, and above a limit they are refused with their first packet, before they cost a handshake. Early data is never accepted, datagrams and one-way QUIC streams are off.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, AsyncUdpSocket, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    Runtime as _, TokioRuntime, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use tidelog_protocol::{
    ACKNOWLEDGEMENT_DELAY_MS_MAX, ALPN, BoxFuture, CloseCode, Connection, Duplex, INITIAL_CONGESTION_WINDOW_BYTES,
    ReceiveHalf, SendHalf, TransportError, UDP_PAYLOAD_BYTES_MAX,
};

#[cfg(feature = "testkit")]
pub(crate) use self::weather::Weather;
use crate::config::CheckedConfig;
use crate::counters::{Counters, HandshakeFailure};
use crate::server::peers::{Peers, Stranger, WINDOW_BYTES};

#[cfg(feature = "testkit")]
mod weather;

/// Asked for the socket's two buffers: a burst of 4 MiB waits in the kernel instead of being lost.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// QUIC streams before a connection is admitted: the one for the hello.
const STRANGER_QUIC_STREAMS: u32 = 1;
/// Handshakes begun and not yet taken by [`Listener::accept`].
const HANDSHAKES_WAITING_MAX: usize = 1_024;
/// Early packets kept for one such handshake, and for all of them.
const HANDSHAKE_BUFFER_BYTES: u64 = 16 << 10;
const HANDSHAKE_BUFFER_BYTES_TOTAL: u64 = 4 << 20;
/// At most one stateless reset in this time: after a restart all clients of the broker before want one. Resets are smaller
/// than what they answer, so they amplify nothing.
const RESET_INTERVAL: Duration = Duration::from_millis(1);
/// Turns of the runtime given to the connections to send their close. They send in their first; the
/// rest are for those whose wake-up is still on its way.
const CLOSE_TURNS: usize = 8;
/// TLS alert 120, `no_application_protocol` (RFC 7301), as QUIC carries it (RFC 9001, section 4.8).
const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

/// What keeps a broker from listening. Nothing is left open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Somebody else has the address, most likely another broker.
    #[error(
        "{address} is in use, perhaps by another broker; stop that one, or choose another address \
         (port 0 takes any free one)"
    )]
    InUse {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// The socket could not be opened.
    #[error("could not listen on {address}")]
    Socket {
        /// The address that was asked for.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The TLS configuration cannot be used for QUIC.
    #[error("TLS could not be set up for QUIC: {0}")]
    Tls(String),
}

/// Opens the UDP socket for `address`. Needs no runtime, so that an address in use is told before
/// anything else is started.
///
/// # Errors
///
/// [`ListenError::InUse`] or [`ListenError::Socket`].
pub fn open_socket(address: SocketAddr) -> Result<UdpSocket, ListenError> {
    bind(address, false)
}

/// The same for an address that another socket of this process stays bound to, and lets others have.
///
/// # Errors
///
/// As [`open_socket`].
#[cfg(feature = "testkit")]
pub(crate) fn open_socket_beside(address: SocketAddr) -> Result<UdpSocket, ListenError> {
    bind(address, true)
}

fn bind(address: SocketAddr, is_shared: bool) -> Result<UdpSocket, ListenError> {
    let open = || -> io::Result<UdpSocket> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::DGRAM,
            Some(socket2::Protocol::UDP),
        )?;
        enlarge_buffers(&socket);
        socket.set_reuse_address(is_shared)?;
        socket.bind(&address.into())?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    open().map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { address },
        _ => ListenError::Socket { address, source },
    })
}

/// Asks for larger socket buffers; the kernel may grant less, which costs speed and nothing else.
fn enlarge_buffers(socket: &socket2::Socket) {
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    // Linux counts its own bookkeeping in and answers twice what it grants.
    let granted = |answer: io::Result<usize>| match answer {
        Ok(bytes) if cfg!(target_os = "linux") => bytes / 2,
        Ok(bytes) => bytes,
        Err(_) => 0,
    };
    let receive_bytes = granted(socket.recv_buffer_size());
    let send_bytes = granted(socket.send_buffer_size());
    if receive_bytes.min(send_bytes) < SOCKET_BUFFER_BYTES {
        tracing::info!(
            receive_bytes,
            send_bytes,
            wanted_bytes = SOCKET_BUFFER_BYTES,
            "the socket buffers are smaller than wanted; bursts may be resent. To allow more, set \
             net.core.rmem_max and net.core.wmem_max with sysctl"
        );
    }
}

/// Where clients arrive.
#[derive(Debug)]
pub struct Listener {
    endpoint: Endpoint,
    local_addr: SocketAddr,
    peers: Arc<Peers>,
    handshake_timeout: Duration,
    /// What a connection gets once it is admitted.
    quic_streams_max: VarInt,
}

impl Listener {
    /// Listens on `socket`. Must be called inside the tokio runtime that is to do the work. `tls` and `reset_key` are
    /// those of an [`Identity`](super::tls::Identity).
    ///
    /// # Errors
    ///
    /// [`ListenError`]; the socket is closed then.
    pub fn start(
        socket: UdpSocket,
        tls: rustls::ServerConfig,
        reset_key: ring::hmac::Key,
        config: &CheckedConfig,
    ) -> Result<Listener, ListenError> {
        Self::start_on(socket, |socket| socket, tls, reset_key, config)
    }

    /// As [`Self::start`], over bad weather.
    #[cfg(feature = "testkit")]
    pub(crate) fn start_in(
        weather: Arc<dyn Weather>,
        socket: UdpSocket,
        tls: rustls::ServerConfig,
        reset_key: ring::hmac::Key,
        config: &CheckedConfig,
    ) -> Result<Listener, ListenError> {
        Self::start_on(socket, |socket| weather::over(socket, weather), tls, reset_key, config)
    }

    /// `cover` puts something over the socket, or leaves it as it is.
    fn start_on(
        socket: UdpSocket,
        cover: impl FnOnce(Arc<dyn AsyncUdpSocket>) -> Arc<dyn AsyncUdpSocket>,
        tls: rustls::ServerConfig,
        reset_key: ring::hmac::Key,
        config: &CheckedConfig,
    ) -> Result<Listener, ListenError> {
        let failed = |source| ListenError::Socket { address: config.listen, source };
        let socket = cover(TokioRuntime.wrap_udp_socket(socket).map_err(failed)?);
        let local_addr = socket.local_addr().map_err(failed)?;
        let crypto = QuicServerConfig::try_from(tls).map_err(|error| ListenError::Tls(error.to_string()))?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server
            .transport_config(Arc::new(transport(config)))
            .max_incoming(HANDSHAKES_WAITING_MAX)
            .incoming_buffer_size(HANDSHAKE_BUFFER_BYTES)
            .incoming_buffer_size_total(HANDSHAKE_BUFFER_BYTES_TOTAL);
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new_with_abstract_socket(endpoint_config(reset_key), Some(server), socket, runtime)
            .map_err(failed)?;
        Ok(Listener {
            endpoint,
            local_addr,
            peers: Peers::new(config, &Arc::new(Counters::new())),
            handshake_timeout: config.handshake_timeout,
            quic_streams_max: VarInt::from_u32(config.quic_streams_per_connection_max),
        })
    }

    /// Counts connections among those of a whole broker; without it, this listener has limits of its own.
    pub(crate) fn with_peers(self, peers: Arc<Peers>) -> Listener {
        Listener { peers, ..self }
    }

    /// The address really listened on, with the port that was chosen for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The next client; `None` once the listener is closed. A client above a limit is refused here and not returned.
    ///
    /// Cancel safe: a client that was not returned is returned by the next call.
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            let incoming = self.endpoint.accept().await?;
            if self.peers.is_crowded() && !incoming.remote_address_validated() && incoming.may_retry() {
                // Costs a packet and no memory. It fails only if it may not be done.
                let _ = incoming.retry();
                continue;
            }
            match self.peers.meet() {
                Ok(stranger) => {
                    return Some(Incoming {
                        incoming,
                        stranger,
                        peers: Arc::clone(&self.peers),
                        handshake_timeout: self.handshake_timeout,
                        quic_streams_max: self.quic_streams_max,
                    });
                }
                Err(refusal) => {
                    tracing::debug!(refusal = ?refusal, "a connection is refused");
                    incoming.refuse();
                    // A storm of them must not keep the others from their turn.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Closes every connection and takes no new ones. Returns when each connection has sent its
    /// close once, without waiting for anybody to confirm it: a client that misses it finds out by
    /// its own timeout.
    ///
    /// On a current-thread runtime, as the broker's is, all closes have left by then; on others
    /// most have.
    pub async fn close(&self, code: CloseCode, reason: &str) {
        self.endpoint.close(close_code(code), reason.as_bytes());
        for _ in 0..CLOSE_TURNS {
            tokio::task::yield_now().await;
        }
    }
}

/// A broker that was killed and started again knows its own connection IDs and reset tokens: both come from the same secret.
/// Without them it would take a client's next packet for noise, and the client would wait for its idle timeout.
fn endpoint_config(reset_key: ring::hmac::Key) -> EndpointConfig {
    let digest = ring::hmac::sign(&reset_key, b"connection ids");
    let id_key = digest.as_ref().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config
        .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)))
        .min_reset_interval(RESET_INTERVAL)
        .max_udp_payload_size(UDP_PAYLOAD_BYTES_MAX)
        .expect("it is within what QUIC allows");
    config
}

fn transport(config: &CheckedConfig) -> quinn::TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(UDP_PAYLOAD_BYTES_MAX);
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_CONGESTION_WINDOW_BYTES);
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements.max_ack_delay(Some(Duration::from_millis(ACKNOWLEDGEMENT_DELAY_MS_MAX)));
    let mut transport = quinn::TransportConfig::default();
    let idle = u32::try_from(config.idle_timeout.as_millis()).unwrap_or(u32::MAX);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(STRANGER_QUIC_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .stream_receive_window(VarInt::from_u32(config.quic_stream_receive_window_bytes))
        .send_window(u64::from(WINDOW_BYTES))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle))))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(congestion))
        .ack_frequency_config(Some(acknowledgements));
    transport
}

/// A client that has sent its first packet.
#[derive(Debug)]
pub struct Incoming {
    incoming: quinn::Incoming,
    stranger: Stranger,
    peers: Arc<Peers>,
    handshake_timeout: Duration,
    quic_streams_max: VarInt,
}

impl Incoming {
    /// Where the packet came from; not proven until the handshake is done.
    pub fn remote_addr(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Shakes hands. Dropping the future gives the client up.
    ///
    /// # Errors
    ///
    /// [`TransportError::ForeignProtocol`] for a client that does not speak tidelog's protocol,
    /// [`TransportError::Lost`] for one that was too slow or broke off.
    pub async fn handshake(self) -> Result<Arc<QuicConnection>, TransportError> {
        let peers = Arc::clone(&self.peers);
        let timeout = self.handshake_timeout;
        match tokio::time::timeout(timeout, self.shake_hands()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => {
                let failure = match error {
                    TransportError::ForeignProtocol(_) => HandshakeFailure::ForeignProtocol,
                    _ => HandshakeFailure::BrokenOff,
                };
                peers.counters.handshakes_failed.add(failure, 1);
                Err(error)
            }
            Err(_) => {
                peers.counters.handshakes_failed.add(HandshakeFailure::TimedOut, 1);
                Err(TransportError::Lost(format!("the handshake was not finished within {timeout:?}")))
            }
        }
    }

    async fn shake_hands(self) -> Result<Arc<QuicConnection>, TransportError> {
        let connecting = self.incoming.accept().map_err(connection_error)?;
        let connection = connecting.await.map_err(connection_error)?;
        // TLS has refused every other protocol already; this is for the day it does not.
        let protocol = connection
            .handshake_data()
            .and_then(|data| data.downcast::<HandshakeData>().ok())
            .and_then(|data| data.protocol);
        if protocol.as_deref() != Some(ALPN) {
            connection.close(close_code(CloseCode::ProtocolError), b"unknown protocol");
            return Err(TransportError::ForeignProtocol("the client did not ask for tidelog's protocol".to_owned()));
        }
        let stranger = Mutex::new(self.stranger);
        Ok(Arc::new(QuicConnection { connection, stranger, quic_streams_max: self.quic_streams_max }))
    }
}

/// One client's connection. It is closed when the last handle to it and to its QUIC streams goes.
#[derive(Debug)]
pub struct QuicConnection {
    connection: quinn::Connection,
    /// Its share of the memory, and its place among the strangers until it is admitted.
    stranger: Mutex<Stranger>,
    quic_streams_max: VarInt,
}

impl QuicConnection {
    /// Gives the connection its full number of QUIC streams. To be called once the hello was accepted.
    pub fn admit(&self) {
        self.connection.set_max_concurrent_bi_streams(self.quic_streams_max);
        self.stranger.lock().unwrap_or_else(PoisonError::into_inner).admit();
    }
}

impl Connection for QuicConnection {
    fn open(&self) -> BoxFuture<'_, Result<Duplex, TransportError>> {
        Box::pin(async {
            let halves = self.connection.open_bi().await;
            halves.map(duplex).map_err(connection_error)
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Duplex, TransportError>> {
        Box::pin(async {
            let halves = self.connection.accept_bi().await;
            halves.map(duplex).map_err(connection_error)
        })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.connection.close(close_code(code), reason.as_bytes());
    }

    fn closed(&self) -> BoxFuture<'_, TransportError> {
        Box::pin(async { connection_error(self.connection.closed().await) })
    }

    fn remote(&self) -> String {
        self.connection.remote_address().to_string()
    }

    fn set_receive_window(&self, bytes: u32) {
        self.connection.set_receive_window(VarInt::from_u32(bytes));
    }

    fn set_send_window(&self, bytes: u32) {
        self.connection.set_send_window(u64::from(bytes));
    }
}

fn duplex((send, receive): (quinn::SendStream, quinn::RecvStream)) -> Duplex {
    Duplex { send: Box::new(QuicSend(send)), receive: Box::new(QuicReceive(receive)) }
}

struct QuicSend(quinn::SendStream);

impl SendHalf for QuicSend {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, TransportError>> {
        if chunks.iter().all(Bytes::is_empty) {
            return Poll::Ready(Ok(0));
        }
        // The future holds nothing between polls, so making it anew each time loses nothing.
        let write = pin!(self.0.write_chunks(chunks));
        write.poll(cx).map(|result| match result {
            Ok(written) => Ok(written.bytes),
            Err(quinn::WriteError::Stopped(code)) => Err(TransportError::Stopped { code: code_number(code) }),
            Err(quinn::WriteError::ConnectionLost(error)) => Err(connection_error(error)),
            Err(error @ (quinn::WriteError::ClosedStream | quinn::WriteError::ZeroRttRejected)) => {
                Err(TransportError::Lost(error.to_string()))
            }
        })
    }

    fn finish(&mut self) {
        // Fails only if it was finished or reset before, and then it is what was wanted.
        let _ = self.0.finish();
    }

    fn reset(&mut self, code: u32) {
        let _ = self.0.reset(VarInt::from_u32(code));
    }
}

struct QuicReceive(quinn::RecvStream);

impl ReceiveHalf for QuicReceive {
    fn poll_read(&mut self, cx: &mut Context<'_>, bytes_max: usize) -> Poll<Result<Option<Bytes>, TransportError>> {
        // Stateless between polls, as above.
        let read = pin!(self.0.read_chunk(bytes_max, true));
        read.poll(cx).map(|result| match result {
            Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
            Err(quinn::ReadError::Reset(code)) => Err(TransportError::Reset { code: code_number(code) }),
            Err(quinn::ReadError::ConnectionLost(error)) => Err(connection_error(error)),
            Err(error) => Err(TransportError::Lost(error.to_string())),
        })
    }

    fn stop(&mut self, code: u32) {
        let _ = self.0.stop(VarInt::from_u32(code));
    }
}

fn close_code(code: CloseCode) -> VarInt {
    VarInt::from_u32(code.number())
}

/// Our own codes are 32 bits wide; a peer that sends a wider one means nothing we know.
fn code_number(code: VarInt) -> u32 {
    u32::try_from(code.into_inner()).unwrap_or(u32::MAX)
}

fn connection_error(error: ConnectionError) -> TransportError {
    match error {
        ConnectionError::ApplicationClosed(close) => TransportError::Closed {
            code: code_number(close.error_code),
            reason: String::from_utf8_lossy(&close.reason).into_owned(),
        },
        ConnectionError::VersionMismatch => {
            TransportError::ForeignProtocol("the QUIC versions do not match".to_owned())
        }
        ConnectionError::TransportError(error) if u64::from(error.code) == NO_APPLICATION_PROTOCOL => {
            TransportError::ForeignProtocol("the client did not ask for tidelog's protocol".to_owned())
        }
        ConnectionError::LocallyClosed => TransportError::Lost("this side closed the connection".to_owned()),
        other => TransportError::Lost(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
