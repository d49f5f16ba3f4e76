//! The first frame of each side: what is offered, and what the broker settles.

use serde::{Deserialize, Serialize};

use crate::limits::Limits;

/// What a client says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol versions that the client speaks; see [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION).
    pub versions: Vec<u16>,
    /// `name/version` of the client, for logs only.
    #[serde(default)]
    pub client: String,
    /// The credential, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// What the broker answers to a hello that it takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both sides speak from here on: the highest that both know.
    pub version: u16,
    /// `name/version` of the broker, for logs only.
    #[serde(default)]
    pub broker: String,
    /// Which log this is, 32 hex digits. Another one means that offsets and ids of earlier connections mean nothing here.
    pub log_id: String,
    /// Counts the broker's starts on this log. A lower one than seen before means that an older copy was restored.
    pub start_count: u64,
    /// What the log is kept on.
    pub medium: MediumKind,
    /// What the broker accepts.
    #[serde(default)]
    pub limits: Limits,
    /// The broker's clock in milliseconds since 1970.
    pub time_ms: i64,
}

/// What a log is kept on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MediumKind {
    /// Files: a durable answer survives power loss.
    Disk,
    /// Memory: a durable answer survives nothing but a lost connection.
    Memory,
}
