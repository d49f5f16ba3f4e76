//! A UDP socket bound to one broker, so that the kernel can tell when nobody listens there any more.
//!
//! An unconnected socket never hears of a closed port, and a client of a broker that was killed would learn it from its
//! idle timer alone. A connected one gets "connection refused" as soon as anything is sent, at least on the same
//! machine. quinn's own socket drops such errors; this one keeps them for [`ConnectedSocket::refused`].

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::sync::Notify;

/// With less than this loopback loses packets at a few hundred megabytes a second (measured).
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// One socket for one connection: it keeps a single waker for writability.
pub(super) struct ConnectedSocket {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    refusal: Notify,
}

impl ConnectedSocket {
    /// Makes a socket that talks to `remote` only.
    pub(super) fn new(remote: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(remote), Type::DGRAM, Some(Protocol::UDP))?;
        // Best effort: what the system allows (`net.core.rmem_max`) is enough to work, only slower.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
        socket.set_nonblocking(true)?;
        let local: SocketAddr = match remote {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        socket.bind(&local.into())?;
        // Elsewhere than on Linux a connected socket refuses to be told the destination again, as quinn does.
        if cfg!(target_os = "linux") {
            socket.connect(&remote.into())?;
        }
        let socket = std::net::UdpSocket::from(socket);
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self { io: tokio::net::UdpSocket::from_std(socket)?, state, refusal: Notify::new() })
    }

    /// Waits until the system says that nobody listens on the other side.
    ///
    /// The system tells it once, to whoever calls next: a send, a receive, or the question asked here.
    pub(super) async fn refused(&self) {
        loop {
            tokio::select! {
                () = self.refusal.notified() => return,
                ready = self.io.ready(Interest::ERROR) => {
                    let told = self.io.take_error();
                    if ready.is_err() || matches!(told, Ok(Some(error)) if is_refusal(&error)) {
                        return;
                    }
                    // Something else, or somebody else was told: wait for the next.
                    let _ = self.io.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
                }
            }
        }
    }

    fn note(&self, error: &io::Error) {
        if is_refusal(error) {
            self.refusal.notify_one();
        }
    }
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

impl AsyncUdpSocket for ConnectedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.io.try_io(Interest::WRITABLE, || self.state.try_send((&self.io).into(), transmit)) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                // To QUIC a datagram that can't be sent is one that was lost: probes for a larger size, a network that
                // is away for a moment.
                self.note(&error);
                Ok(())
            }
            sent => sent,
        }
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_recv_ready(context))?;
            match self.io.try_io(Interest::READABLE, || self.state.recv((&self.io).into(), buffers, meta)) {
                Ok(received) => return Poll::Ready(Ok(received)),
                // Not ready after all, or a trouble of the network; in both cases there may be more to receive.
                Err(error) => self.note(&error),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

impl fmt::Debug for ConnectedSocket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ConnectedSocket").field("io", &self.io).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Writable(Arc<ConnectedSocket>);

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.io.poll_send_ready(context)
    }
}
