//! How clients reach the broker: QUIC, TLS, and the sessions of its clients.

pub(crate) mod allowance;
pub(crate) mod deliver;
pub(crate) mod frames;
pub(crate) mod measure;
pub(crate) mod outgoing;
pub(crate) mod peers;
pub(crate) mod publish;
pub mod quic;
pub(crate) mod session;
pub mod tls;
