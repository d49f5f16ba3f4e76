//! The tidelog event broker as a library: one append-only log, exactly-once publishing, ordered delivery over QUIC.
//!
//! ```no_run
//! use tidelog::{Broker, BrokerConfig};
//!
//! let broker = Broker::start(BrokerConfig::in_memory())?;
//! println!("connect to {}", broker.address());
//! broker.shutdown();
//! # Ok::<(), tidelog::StartError>(())
//! ```
//!
//! [`Broker::start`] works from any runtime and from none: the broker has threads of its own, joined when it is dropped.
//! How the parts work together is told in `ARCHITECTURE.md`.
#![forbid(unsafe_code)]

mod anticipation;
mod assembly;
mod background;
pub mod broker;
mod budget;
mod checkpointing;
pub mod clock;
pub mod config;
pub mod counters;
pub mod damage;
mod engine;
mod events;
mod id_map;
pub mod in_process;
mod inline;
mod listening;
mod live;
pub mod local_broker;
mod log_thread;
#[cfg(feature = "http")]
pub mod monitor;
mod monitor_link;
mod outbox;
pub mod pending_answers;
pub mod repair;
mod report;
pub mod sequencer;
pub mod server;
pub mod state;
#[cfg(feature = "testkit")]
pub mod testkit;
mod workers;

pub use broker::{Broker, StartError};
pub use config::{BrokerConfig, CheckpointChoice, MediumChoice};
pub use local_broker::LocalBroker;
