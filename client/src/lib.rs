//! The client of the tidelog event broker.
//!
//! A [`Client`] is one broker: found by an [`Address`], believed because of a [`Trust`], reached again by itself when the
//! connection is lost. From it come [`Producer`]s, whose records are stored once and in order whatever happens
//! meanwhile, and [`Reader`]s, which account for every offset of a stream.
//!
//! ```
//! use tidelog_client::{Client, ClientConfig, ReaderEvent};
//! use tidelog_protocol::{ProducerName, Record, StreamName, StreamSettings};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A broker for this example; a real one is started by `tidelog serve`, and told by an address such as
//! // `127.0.0.1:7440` if it runs on this machine, with `?pin=…` if it does not.
//! let broker = tidelog::Broker::start(tidelog::BrokerConfig::in_memory())?;
//! let address = broker.address().parse()?;
//!
//! let client = Client::connect(ClientConfig::find(&address, None)?).await?;
//! let orders = client.create_stream(&StreamName::new("orders")?, StreamSettings::default(), true).await?;
//!
//! let producer = client.producer(ProducerName::new("shop")?).open().await?;
//! let publisher = producer.stream(&orders).await?;
//! // Each of these is in the stream once when `close` returns, whatever happens to connection and broker meanwhile.
//! publisher.send_value(b"two apples").await?;
//! publisher.send(Record::new("a pear").with_key("customer 7")).await?;
//! producer.close().await?;
//!
//! let mut values = Vec::new();
//! let mut reader = client.reader(&orders).open().await?;
//! while let Some(event) = reader.next_batch().await? {
//!     if let ReaderEvent::Batch(batch) = event {
//!         for record in batch {
//!             values.push(record?.record.value);
//!         }
//!     }
//! }
//! assert_eq!(values, ["two apples", "a pear"]);
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! The other ways to publish: [waiting for each record](Publisher::publish), [not waiting for the
//! disk](ProducerBuilder::ack), [with numbers of the application's own](Publisher::send_at), [which may
//! jump](ProducerBuilder::sparse). What happens to the connection can be [listened to](Client::events).
//!
//! Every future of this crate may be dropped while it waits, and leaves everything usable: those that take or give records
//! say what that means for them; a request that was dropped may have been done.
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
mod measure;
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
pub use measure::{Echo, Measure};
pub use pin::{Pin, PinError};
pub use producer::{Producer, ProducerBuilder};
pub use publisher::Publisher;
pub use quic::QuicConnector;
pub use target::StreamTarget;
pub use tls::TlsError;
pub use trust::{Trust, TrustEnvironment, TrustError, TrustFile, TrustFileError};
pub use window::{Ack, Acknowledgement, Receipt};
