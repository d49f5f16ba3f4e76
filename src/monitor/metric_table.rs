//! Every metric: its name, what it tells, and where its value comes from.

use crate::counters::{Counters, Histogram};

pub(super) const NANOS_PER_SECOND: f64 = 1e9;

/// Where a metric's value comes from.
pub(super) enum Source {
    Count(fn(&Counters) -> u64),
    Gauge(fn(&Counters) -> f64),
    Seconds(fn(&Counters) -> &Histogram),
    Records(fn(&Counters) -> &Histogram),
    Refusals,
    Reasons(fn(&Counters) -> Vec<(&'static str, u64)>),
    BuildInfo,
}

pub(super) struct MetricSpec {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) source: Source,
}

/// Every metric there is. Names and units are a promise to dashboards and alerts: entries may be
/// added, never changed.
pub(super) const METRICS: &[MetricSpec] = &[
    MetricSpec {
        name: "tidelog_records_published_total",
        help: "Records given their place in a stream; durable, and answered, one sync later.",
        source: Source::Count(|counters| counters.records_published.get()),
    },
    MetricSpec {
        name: "tidelog_bytes_published_total",
        help: "Bytes of the records given their place in a stream, as they stand in their batches.",
        source: Source::Count(|counters| counters.bytes_published.get()),
    },
    MetricSpec {
        name: "tidelog_duplicates_suppressed_total",
        help: "Records that a producer sent again and that were already stored.",
        source: Source::Count(|counters| counters.duplicates_suppressed.get()),
    },
    MetricSpec {
        name: "tidelog_publishes_refused_total",
        help: "Batches refused, by the reason given to the producer.",
        source: Source::Refusals,
    },
    MetricSpec {
        name: "tidelog_records_delivered_total",
        help: "Records handed to the network for a consumer.",
        source: Source::Count(|counters| counters.records_delivered.get()),
    },
    MetricSpec {
        name: "tidelog_publish_seconds",
        help: "Time from a batch's arrival to its durable answer.",
        source: Source::Seconds(|counters| &counters.publish_seconds),
    },
    MetricSpec {
        name: "tidelog_end_to_end_seconds",
        help: "Time from a batch's arrival to the moment it is handed to a consumer that keeps up.",
        source: Source::Seconds(|counters| &counters.end_to_end_seconds),
    },
    MetricSpec {
        name: "tidelog_log_sync_seconds",
        help: "Duration of one sync of the log.",
        source: Source::Seconds(|counters| &counters.log_sync_seconds),
    },
    MetricSpec {
        name: "tidelog_group_commit_records",
        help: "Records made durable by one sync.",
        source: Source::Records(|counters| &counters.group_commit_records),
    },
    MetricSpec {
        name: "tidelog_write_buffer_bytes",
        help: "Bytes appended and not yet durable.",
        source: Source::Gauge(|counters| float(counters.write_buffer_bytes.get())),
    },
    MetricSpec {
        name: "tidelog_connections",
        help: "Connections open now.",
        source: Source::Gauge(|counters| float(counters.connections.get())),
    },
    MetricSpec {
        name: "tidelog_log_bytes",
        help: "Bytes of all segment files.",
        source: Source::Gauge(|counters| float(counters.log_bytes.get())),
    },
    MetricSpec {
        name: "tidelog_disk_free_bytes",
        help: "Free bytes of the file system that holds the log.",
        source: Source::Gauge(|counters| float(counters.disk_free_bytes.get())),
    },
    MetricSpec {
        name: "tidelog_damaged_records_total",
        help: "Records found unreadable, at recovery or when they were to be read.",
        source: Source::Count(|counters| counters.damaged_records.get()),
    },
    MetricSpec {
        name: "tidelog_recovery_seconds",
        help: "How long the recovery of the last start took.",
        source: Source::Gauge(|counters| float(counters.recovery_nanos.get()) / NANOS_PER_SECOND),
    },
    MetricSpec {
        name: "tidelog_duplicates_total",
        help: "Records that a producer sent again and that were already stored, by how it came to that: resent (one of the batches stored last), replayed (stored long ago), overlapping (in front of new records).",
        source: Source::Reasons(|counters| counters.duplicates.by_name()),
    },
    MetricSpec {
        name: "tidelog_producer_reconnects_total",
        help: "Producer sessions attached again with the same epoch, after a lost connection or beside a live one.",
        source: Source::Count(|counters| counters.reconnects.get()),
    },
    MetricSpec {
        name: "tidelog_producer_sessions",
        help: "Publishing sessions open now.",
        source: Source::Gauge(|counters| float(counters.sessions.get())),
    },
    MetricSpec {
        name: "tidelog_subscriptions",
        help: "Subscriptions open now.",
        source: Source::Gauge(|counters| float(counters.subscriptions.get())),
    },
    MetricSpec {
        name: "tidelog_quic_streams",
        help: "QUIC streams that clients have open now, control streams aside.",
        source: Source::Gauge(|counters| float(counters.quic_streams.get())),
    },
    MetricSpec {
        name: "tidelog_measurements",
        help: "Measurements of the machine that run now, as `tidelog bench` asks for them.",
        source: Source::Gauge(|counters| float(counters.measurements.get())),
    },
    MetricSpec {
        name: "tidelog_connections_accepted_total",
        help: "Connections that have said hello since the start.",
        source: Source::Count(|counters| counters.connections_total.get()),
    },
    MetricSpec {
        name: "tidelog_connections_refused_total",
        help: "Connections not taken, by reason: connections or handshakes (as many as the limit allows), hello (malformed or of another version), silent (no hello in time).",
        source: Source::Reasons(|counters| counters.connections_refused.by_name()),
    },
    MetricSpec {
        name: "tidelog_handshakes_in_progress",
        help: "Connections that have not said hello yet.",
        source: Source::Gauge(|counters| float(counters.handshakes_in_progress.get())),
    },
    MetricSpec {
        name: "tidelog_handshakes_failed_total",
        help: "Handshakes that came to nothing, by reason: timed_out, foreign_protocol, broken_off.",
        source: Source::Reasons(|counters| counters.handshakes_failed.by_name()),
    },
    MetricSpec {
        name: "tidelog_memory_budget_bytes",
        help: "Memory that clients together may make the broker hold.",
        source: Source::Gauge(|counters| float(counters.memory_budget_bytes.get())),
    },
    MetricSpec {
        name: "tidelog_memory_used_bytes",
        help: "Memory taken from that budget.",
        source: Source::Gauge(|counters| float(counters.memory_used_bytes.get())),
    },
    MetricSpec {
        name: "tidelog_memory_waits_total",
        help: "Times that a frame, a read or a QUIC stream had to wait for memory from that budget.",
        source: Source::Count(|counters| counters.memory_waits.get()),
    },
    MetricSpec {
        name: "tidelog_frames_given_up_total",
        help: "Frames given up because they were not finished in time while others waited for memory.",
        source: Source::Count(|counters| counters.frames_given_up.get()),
    },
    MetricSpec {
        name: "tidelog_reads_given_back_total",
        help: "Blocks read for a consumer and given back because it did not take them in time; they are read again when it does.",
        source: Source::Count(|counters| counters.reads_given_back.get()),
    },
    MetricSpec {
        name: "tidelog_poisoned",
        help: "1 once a write or sync of the log has failed or hangs, until the restart that this needs.",
        source: Source::Gauge(|counters| f64::from(u8::from(counters.is_poisoned()))),
    },
    MetricSpec {
        name: "tidelog_durable_position_bytes",
        help: "The log position below which everything is synced.",
        source: Source::Gauge(|counters| float(counters.durable_position.get())),
    },
    MetricSpec {
        name: "tidelog_recovery_entries",
        help: "Entries that the recovery of the last start read.",
        source: Source::Gauge(|counters| float(counters.recovery_entries.get())),
    },
    MetricSpec {
        name: "tidelog_recovery_damages",
        help: "Places of damage that the recovery of the last start found.",
        source: Source::Gauge(|counters| float(counters.recovery_damages.get())),
    },
    MetricSpec {
        name: "tidelog_recovery_cut_bytes",
        help: "Bytes behind the end of the log that the last start could not prove to be stored.",
        source: Source::Gauge(|counters| float(counters.recovery_cut_bytes.get())),
    },
    MetricSpec {
        name: "tidelog_recovery_files_set_aside",
        help: "Files that the recovery of the last start set aside.",
        source: Source::Gauge(|counters| float(counters.recovery_files_set_aside.get())),
    },
    MetricSpec {
        name: "tidelog_build_info",
        help: "Always 1; the label tells the broker's version.",
        source: Source::BuildInfo,
    },
];

/// Prometheus counts in floating point: exact up to 2^53.
pub(super) fn float(value: u64) -> f64 {
    value as f64
}
