//! What a broker is started with, and the check that nothing impossible gets past.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidelog_protocol::{Limits, RECORD_BYTES_MAX_CEILING};
use tidelog_storage::MemoryCheckpoints;
use tidelog_storage::medium::Medium;

use crate::server::peers::CONNECTION_BYTES;

/// The QUIC port a broker listens on unless told otherwise.
pub const QUIC_PORT_DEFAULT: u16 = 7440;
/// The HTTP port of the monitor unless told otherwise.
pub const HTTP_PORT_DEFAULT: u16 = 7441;
/// The data folder unless told otherwise.
pub const DATA_FOLDER_DEFAULT: &str = "./tidelog-data";

const SEGMENT_BYTES_MIN: u64 = 64 << 10;
const SEGMENT_BYTES_MAX: u64 = 4 << 30;
/// Space in a segment beside the largest batch: headers, footers and the sealing entry.
const SEGMENT_SPARE_BYTES: u64 = 64 << 10;
/// QUIC's variable-length integers hold 62 bits; windows are kept far below.
const WINDOW_BYTES_MAX: u64 = 1 << 30;
const WINDOW_BYTES_MIN: u64 = 64 << 10;
const MEMORY_BUDGET_BYTES_MIN: u64 = 4 << 20;
const CONNECTIONS_MAX_CEILING: u64 = 1_000_000;
const QUIC_STREAMS_MAX_CEILING: u64 = 65_536;
const TIMEOUT_MIN: Duration = Duration::from_millis(10);
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Where the log is kept.
#[derive(Debug, Clone)]
pub enum MediumChoice {
    /// In this folder, which is made if it is missing. Survives everything the disk survives.
    Disk(PathBuf),
    /// In memory: gone when the broker stops.
    Memory,
    /// On a medium of the caller's own, such as a simulated disk.
    Custom(Arc<dyn Medium>),
}

/// Where checkpoints of the state are kept: a start goes on from the newest one instead of reading the whole log.
#[derive(Debug, Clone)]
pub enum CheckpointChoice {
    /// Beside the log if that is in a folder, otherwise nowhere.
    Beside,
    /// In memory that outlives the broker: for simulated disks.
    Memory(MemoryCheckpoints),
    /// Nowhere: every start reads the whole log.
    Nowhere,
}

/// Everything that can be set about a broker. `Default` is what `tidelog serve` runs with.
///
/// The fields are free; [`CheckedConfig::try_from`] refuses what cannot work, and starting a broker
/// goes through it.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// Where the log is kept.
    pub medium: MediumChoice,
    /// The UDP address clients connect to; port 0 means any free one. Loopback only.
    pub listen: SocketAddr,
    /// The TCP address of the monitor, `None` for no monitor; port 0 means any free one. Loopback
    /// only.
    pub http: Option<SocketAddr>,
    /// What clients may send; told to each in the hello.
    pub limits: Limits,
    /// Bytes appended and not yet durable; when they are reached, publishes wait.
    pub write_buffer_bytes: usize,
    /// A sync that takes longer than this poisons the broker.
    pub sync_timeout: Duration,
    /// Size of the segment that a start opens: small, so that starting costs next to nothing.
    pub segment_first_bytes: u64,
    /// The largest segment. Each one after a start is four times the size of the one before, up to this.
    pub segment_bytes: u64,
    /// Log after which the state is checkpointed anew, in bytes: about what a start after a crash reads. Up to four times as
    /// much if the log grows by this while a checkpoint is made, or soon after. Only where they are kept.
    pub checkpoint_bytes: u64,
    /// Where checkpoints are kept.
    pub checkpoints: CheckpointChoice,
    /// A connection that has not finished its handshake by then is dropped.
    pub handshake_timeout: Duration,
    /// A connection that was silent for so long is dropped.
    pub idle_timeout: Duration,
    /// Memory that all clients together can make the broker hold, in bytes: what they have sent and it has not taken yet,
    /// what was sent to them and is not acknowledged, what is queued or was read for consumers, and 48 KiB for each
    /// connection that there may be. When it is used up nothing is dropped: senders are slowed down by flow control and
    /// consumers wait for their turn. No connection alone gets more than a thirty-second in each direction. The write buffer has a limit of its own, and names cost what
    /// they cost.
    pub memory_budget_bytes: u32,
    /// Connections at one time; further ones are told `busy`. With the handshakes they may take half of the memory
    /// budget.
    pub connections_max: usize,
    /// Connections at one time that have not said hello yet; further ones are refused with their first packet. From a
    /// quarter of it on, a stranger has to show first that its address is its own.
    pub handshakes_max: usize,
    /// Publishing sessions at one time, of all connections; further ones are told `busy`.
    pub sessions_max: usize,
    /// Subscriptions at one time, of all connections; further ones are told `busy`.
    pub subscriptions_max: usize,
    /// QUIC streams that one connection may have open at one time: its sessions and subscriptions.
    pub quic_streams_per_connection_max: u32,
    /// Bytes one connection may have sent that the broker has not read yet, over all its QUIC
    /// streams. It begins with 16 KiB and grows to this as it is made use of, as far as the memory budget allows.
    pub connection_receive_window_bytes: u32,
    /// The same for one QUIC stream.
    pub quic_stream_receive_window_bytes: u32,
    /// Bytes one connection may have been sent that its client has not acknowledged yet. It grows likewise.
    pub send_window_bytes: u32,
}

impl Default for BrokerConfig {
    fn default() -> BrokerConfig {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        BrokerConfig {
            medium: MediumChoice::Disk(PathBuf::from(DATA_FOLDER_DEFAULT)),
            listen: SocketAddr::new(loopback, QUIC_PORT_DEFAULT),
            http: cfg!(feature = "http").then(|| SocketAddr::new(loopback, HTTP_PORT_DEFAULT)),
            limits: Limits::default(),
            write_buffer_bytes: 64 << 20,
            sync_timeout: Duration::from_secs(30),
            segment_first_bytes: 1 << 20,
            segment_bytes: 64 << 20,
            checkpoint_bytes: 64 << 20,
            checkpoints: CheckpointChoice::Beside,
            handshake_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            memory_budget_bytes: 128 << 20,
            connections_max: 1_024,
            handshakes_max: 256,
            sessions_max: 16_384,
            subscriptions_max: 16_384,
            quic_streams_per_connection_max: 1_024,
            connection_receive_window_bytes: 8 << 20,
            quic_stream_receive_window_bytes: 4 << 20,
            send_window_bytes: 2 << 20,
        }
    }
}

impl BrokerConfig {
    /// A broker for a test or a product's inside: in memory, on any free port, without a monitor.
    pub fn in_memory() -> BrokerConfig {
        BrokerConfig {
            medium: MediumChoice::Memory,
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            http: None,
            ..BrokerConfig::default()
        }
    }

    /// The same on disk: in `folder`, on any free port, without a monitor.
    pub fn on_disk(folder: impl Into<PathBuf>) -> BrokerConfig {
        BrokerConfig { medium: MediumChoice::Disk(folder.into()), ..BrokerConfig::in_memory() }
    }

    /// The data folder, if there is one; the certificate is kept there.
    pub fn folder(&self) -> Option<&Path> {
        match &self.medium {
            MediumChoice::Disk(folder) => Some(folder),
            MediumChoice::Memory | MediumChoice::Custom(_) => None,
        }
    }
}

/// A configuration in which every value is possible; it can be read and no longer changed.
#[derive(Debug, Clone)]
pub struct CheckedConfig(BrokerConfig);

impl Deref for CheckedConfig {
    type Target = BrokerConfig;

    fn deref(&self) -> &BrokerConfig {
        &self.0
    }
}

impl TryFrom<BrokerConfig> for CheckedConfig {
    type Error = ConfigError;

    fn try_from(config: BrokerConfig) -> Result<CheckedConfig, ConfigError> {
        loopback("listen", config.listen)?;
        if let Some(http) = config.http {
            if !cfg!(feature = "http") {
                return Err(ConfigError::NoMonitor { address: http });
            }
            loopback("http", http)?;
        }

        let record_bytes_max = u64::from(config.limits.record_bytes_max);
        let record_ceiling = u64::from(RECORD_BYTES_MAX_CEILING);
        between("limits.record_bytes_max", record_bytes_max, 1, record_ceiling)?;
        let batch_bytes = u64::from(config.limits.batch_content_bytes_max);
        between("limits.batch_content_bytes_max", batch_bytes, 1, record_ceiling)?;
        let batch_records = u64::from(config.limits.batch_records_max);
        between("limits.batch_records_max", batch_records, 1, u64::from(u32::MAX))?;

        let largest_batch = wide(config.limits.frame_bytes_max());
        // One group is written while the next is filled.
        let write_buffer_min = 2 * largest_batch;
        between("write_buffer_bytes", wide(config.write_buffer_bytes), write_buffer_min, u64::MAX)?;
        let segment_min = SEGMENT_BYTES_MIN.max(largest_batch + SEGMENT_SPARE_BYTES);
        between("segment_bytes", config.segment_bytes, segment_min, SEGMENT_BYTES_MAX)?;
        between("segment_first_bytes", config.segment_first_bytes, SEGMENT_BYTES_MIN, config.segment_bytes)?;

        between("checkpoint_bytes", config.checkpoint_bytes, 1, u64::MAX)?;

        let memory = u64::from(config.memory_budget_bytes);
        // The largest frames of a few clients at once, beside the connections themselves.
        between("memory_budget_bytes", memory, MEMORY_BUDGET_BYTES_MIN.max(4 * largest_batch), u64::from(u32::MAX))?;
        let peers_max = memory / 2 / u64::from(CONNECTION_BYTES);
        between("handshakes_max", wide(config.handshakes_max), 1, peers_max - 1)?;
        let connections_ceiling = CONNECTIONS_MAX_CEILING.min(peers_max - wide(config.handshakes_max));
        between("connections_max", wide(config.connections_max), 1, connections_ceiling)?;
        between("sessions_max", wide(config.sessions_max), 1, CONNECTIONS_MAX_CEILING)?;
        between("subscriptions_max", wide(config.subscriptions_max), 1, CONNECTIONS_MAX_CEILING)?;
        // The control stream and one to publish or read with.
        let quic_streams = u64::from(config.quic_streams_per_connection_max);
        between("quic_streams_per_connection_max", quic_streams, 2, QUIC_STREAMS_MAX_CEILING)?;
        for (setting, value) in [
            ("connection_receive_window_bytes", config.connection_receive_window_bytes),
            ("quic_stream_receive_window_bytes", config.quic_stream_receive_window_bytes),
            ("send_window_bytes", config.send_window_bytes),
        ] {
            between(setting, u64::from(value), WINDOW_BYTES_MIN, WINDOW_BYTES_MAX)?;
        }

        for (setting, value) in [
            ("sync_timeout", config.sync_timeout),
            ("handshake_timeout", config.handshake_timeout),
            ("idle_timeout", config.idle_timeout),
        ] {
            lasting(setting, value, TIMEOUT_MIN, TIMEOUT_MAX)?;
        }
        Ok(CheckedConfig(config))
    }
}

/// A value that no broker can be started with. Nothing was opened or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The address can be reached from other machines, and there is no authentication yet.
    #[error(
        "`{setting}` is {address}, which other machines can reach, and this broker cannot tell friend from \
         stranger yet; use a loopback address such as 127.0.0.1:{} and let other machines in through a tunnel",
        address.port()
    )]
    NotLoopback {
        /// The setting's name.
        setting: &'static str,
        /// What it was set to.
        address: SocketAddr,
    },
    /// A number outside of what can work.
    #[error("`{setting}` is {value}; set it to a number from {min} to {max}")]
    OutOfRange {
        /// The setting's name.
        setting: &'static str,
        /// What it was set to.
        value: u64,
        /// The smallest value that works with the other settings.
        min: u64,
        /// The largest value that works with the other settings.
        max: u64,
    },
    /// A time outside of what can work.
    #[error("`{setting}` is {value:?}; set it to a time from {min:?} to {max:?}")]
    DurationOutOfRange {
        /// The setting's name.
        setting: &'static str,
        /// What it was set to.
        value: Duration,
        /// The shortest time that works.
        min: Duration,
        /// The longest time that works.
        max: Duration,
    },
    /// An address for the monitor, in a build that has none.
    #[error("`http` is {address}, but this build has no monitor; set it to `None`, or build with the feature `http`")]
    NoMonitor {
        /// What it was set to.
        address: SocketAddr,
    },
}

fn loopback(setting: &'static str, address: SocketAddr) -> Result<(), ConfigError> {
    // `to_canonical`: ::ffff:127.0.0.1 is loopback, ::ffff:10.0.0.1 is not.
    if address.ip().to_canonical().is_loopback() { Ok(()) } else { Err(ConfigError::NotLoopback { setting, address }) }
}

fn between(setting: &'static str, value: u64, min: u64, max: u64) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(ConfigError::OutOfRange { setting, value, min, max }) }
}

fn lasting(setting: &'static str, value: Duration, min: Duration, max: Duration) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(ConfigError::DurationOutOfRange { setting, value, min, max })
    }
}

fn wide(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut BrokerConfig)) -> ConfigError {
        let mut config = BrokerConfig::default();
        change(&mut config);
        CheckedConfig::try_from(config).expect_err("the value is impossible")
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_defaults_can_be_started() {
        for config in [BrokerConfig::default(), BrokerConfig::in_memory(), BrokerConfig::on_disk("/somewhere")] {
            CheckedConfig::try_from(config).expect("every ready-made configuration works");
        }
    }

    #[test]
    fn the_largest_allowed_record_fits_the_default_sizes() {
        let mut config = BrokerConfig::default();
        config.limits.record_bytes_max = RECORD_BYTES_MAX_CEILING;
        CheckedConfig::try_from(config).expect("raising the record limit needs no other change");
    }

    #[test]
    fn listening_beyond_loopback_is_refused_and_says_what_to_type() {
        for open in ["0.0.0.0:7440", "[::]:7440", "192.0.2.1:7440", "[::ffff:192.0.2.1]:7440"] {
            let error = refusal(|config| config.listen = address(open));
            assert_eq!(error, ConfigError::NotLoopback { setting: "listen", address: address(open) });
            assert!(error.to_string().contains("127.0.0.1:7440"), "{error}");
        }
    }

    #[cfg(feature = "http")]
    #[test]
    fn the_monitor_beyond_loopback_is_refused_too() {
        let error = refusal(|config| config.http = Some(address("0.0.0.0:7441")));
        assert!(matches!(error, ConfigError::NotLoopback { setting: "http", .. }));
    }

    #[test]
    fn every_kind_of_loopback_is_allowed() {
        for local in ["127.0.0.1:0", "127.8.9.10:1", "[::1]:7440", "[::ffff:127.0.0.1]:7440"] {
            let config = BrokerConfig { listen: address(local), ..BrokerConfig::default() };
            CheckedConfig::try_from(config).expect("loopback is allowed");
        }
    }

    #[test]
    fn a_write_buffer_below_two_groups_names_the_smallest_that_works() {
        let error = refusal(|config| config.write_buffer_bytes = 1 << 20);
        let ConfigError::OutOfRange { setting, value, min, .. } = error else {
            panic!("unexpected {error}");
        };
        assert_eq!((setting, value), ("write_buffer_bytes", 1 << 20));
        let config = BrokerConfig { write_buffer_bytes: usize::try_from(min).unwrap(), ..BrokerConfig::default() };
        CheckedConfig::try_from(config).expect("the smallest value told is one that works");
    }

    #[test]
    fn a_segment_too_small_for_the_largest_batch_is_refused() {
        let error = refusal(|config| config.segment_bytes = 512 << 10);
        assert!(matches!(error, ConfigError::OutOfRange { setting: "segment_bytes", .. }));
    }

    #[test]
    fn numbers_and_times_that_stop_everything_are_refused() {
        let error = refusal(|config| config.connections_max = 0);
        assert!(matches!(error, ConfigError::OutOfRange { setting: "connections_max", .. }));
        let error = refusal(|config| config.idle_timeout = Duration::ZERO);
        assert!(matches!(error, ConfigError::DurationOutOfRange { setting: "idle_timeout", .. }));
    }

    #[test]
    fn more_connections_than_half_of_the_memory_budget_holds_are_refused() {
        let error = refusal(|config| config.connections_max = 5_000);
        let ConfigError::OutOfRange { setting: "connections_max", max, .. } = error else {
            panic!("unexpected {error}")
        };
        let config = BrokerConfig { connections_max: usize::try_from(max).unwrap(), ..BrokerConfig::default() };
        CheckedConfig::try_from(config).expect("the largest value told is one that works");
        let config = BrokerConfig { connections_max: 5_000, memory_budget_bytes: 1 << 30, ..BrokerConfig::default() };
        CheckedConfig::try_from(config).expect("with more memory there may be more connections");
    }

    #[test]
    fn only_a_disk_has_a_folder() {
        assert_eq!(BrokerConfig::on_disk("/x").folder(), Some(Path::new("/x")));
        assert_eq!(BrokerConfig::in_memory().folder(), None);
    }
}
