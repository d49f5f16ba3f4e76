//! The client of the tidelog event broker.
//!
//! A [`Client`] is one broker: found by an [`Address`], believed because of a [`Trust`], reached again by itself when the
//! connection is lost. From it come [`Producer`]s, whose records are stored once and in order whatever happens
//! meanwhile, and [`Reader`]s, which account for every offset of a stream.
//!
//! ```no_run
//! use tidelog_client::{Client, ClientConfig, ReaderEvent};
//! use tidelog_protocol::{ProducerName, StreamName, StreamSettings};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(ClientConfig::find(&"127.0.0.1:7440".parse()?, None)?).await?;
//! let orders = client.create_stream(&StreamName::new("orders")?, StreamSettings::default(), true).await?;
//!
//! let producer = client.producer(ProducerName::new("shop")?).open().await?;
//! let publisher = producer.stream(&orders).await?;
//! publisher.send_value(b"two apples").await?;
//! producer.close().await?;
//!
//! let mut reader = client.reader(&orders).open().await?;
//! while let Some(event) = reader.next_batch().await? {
//!     if let ReaderEvent::Batch(batch) = event {
//!         for record in batch {
//!             let record = record?;
//!             println!("{}: {:?}", record.offset, record.record.value);
//!         }
//!     }
//! }
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! Works on the caller's tokio runtime, of either flavour, with timers and I/O enabled. Keeps no global state, and
//! neither reads nor sets the process' default TLS provider.
#![forbid(unsafe_code)]

mod address;
mod channel;
mod config;
mod connection;
mod consumer;
mod entropy;
mod error;
mod events;
mod link;
mod pin;
mod producer;
mod publisher;
mod quic;
mod reconnect;
mod retry;
mod session;
mod target;
mod tls;
mod trust;
mod window;

pub use address::{Address, AddressError, DEFAULT_PORT};
pub use config::{ClientConfig, TIMEOUT_DEFAULT};
pub use connection::{Client, ProducerPosition};
pub use consumer::{DeliveredBatch, DeliveredRecord, DeliveredRecords, Reader, ReaderBuilder, ReaderEvent};
pub use error::{Error, ErrorKind};
pub use events::{ConnectionEvent, ConnectionEvents};
pub use pin::{Pin, PinError};
pub use producer::{Producer, ProducerBuilder};
pub use publisher::Publisher;
pub use quic::QuicConnector;
pub use target::StreamTarget;
pub use tls::TlsError;
pub use trust::{Trust, TrustEnvironment, TrustError, TrustFile, TrustFileError};
pub use window::{Ack, Acknowledgement, Receipt};
