//! How clients reach the broker: QUIC, TLS, and the sessions of its clients.

pub(crate) mod deliver;
pub(crate) mod frames;
pub(crate) mod publish;
pub mod quic;
pub(crate) mod session;
pub mod tls;
