//! The port that all lives of a test's broker have.

use std::net::{SocketAddr, UdpSocket};

use crate::server::quic::{ListenError, open_socket, open_socket_beside};

/// Discard (RFC 863): nobody speaks from there.
const NOBODY: u16 = 9;

/// A UDP port of this process.
///
/// Between two lives nobody listens there, so that clients are told so as they are by any machine; and yet nobody else
/// gets it, since a socket that only hears from a port where nobody is stays bound to it.
#[derive(Debug)]
pub(super) struct Port {
    address: SocketAddr,
    first: Option<UdpSocket>,
    _kept: UdpSocket,
}

impl Port {
    /// Takes `address`, or any free port of it if its own is 0.
    pub(super) fn open(address: SocketAddr) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Socket { address, source };
        let first = open_socket(address)?;
        let address = first.local_addr().map_err(failed)?;
        // Only from here on: a search for a free port passes those over that anybody may share, if the searcher does not.
        socket2::SockRef::from(&first).set_reuse_address(true).map_err(failed)?;
        let kept = open_socket_beside(address)?;
        kept.connect(SocketAddr::new(address.ip(), NOBODY)).map_err(failed)?;
        Ok(Self { address, first: Some(first), _kept: kept })
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// A socket to listen on, in one life.
    pub(super) fn socket(&mut self) -> Result<UdpSocket, ListenError> {
        match self.first.take() {
            Some(first) => Ok(first),
            None => open_socket_beside(self.address),
        }
    }
}
