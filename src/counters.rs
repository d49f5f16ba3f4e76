//! What one broker counts about itself: plain atomics, read by the monitor and by tests.
//!
//! All accesses are relaxed: every number is true by itself, and two numbers read together may be
//! a moment apart. Counting costs one or two uncontended additions and never allocates, so it is
//! done once for a batch, not once for a record.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tidelog_protocol::ErrorCode;

mod reasons;

pub use reasons::{ByReason, ConnectionRefusal, DuplicateCause, HandshakeFailure, Reason};

/// Error codes are small numbers that are never reused; there is a slot for each up to this one.
const ERROR_CODES_MAX: usize = 64;

/// Upper bounds of the buckets of a duration, in nanoseconds: 50 µs to 10 s, densest around one
/// millisecond, where a durable answer of a healthy disk is.
const DURATION_BOUNDS_NANOS: &[u64] = &[
    50_000,
    100_000,
    200_000,
    300_000,
    400_000,
    500_000,
    700_000,
    1_000_000,
    1_500_000,
    2_000_000,
    3_000_000,
    5_000_000,
    7_000_000,
    10_000_000,
    20_000_000,
    30_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// Upper bounds of the buckets of a number of records: the powers of two to a million.
const RECORDS_BOUNDS: &[u64] = &[
    1,
    2,
    4,
    8,
    16,
    32,
    64,
    128,
    256,
    512,
    1 << 10,
    1 << 11,
    1 << 12,
    1 << 13,
    1 << 14,
    1 << 15,
    1 << 16,
    1 << 17,
    1 << 18,
    1 << 19,
    1 << 20,
];

/// Whether anything is counted. Not so only in the build that `benches/metrics-cost` compares with, to see what counting
/// costs: limits that are held against a count are not held there.
const COUNTS: bool = !cfg!(tidelog_unmetered);

/// A number that only grows while the broker runs.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        if COUNTS {
            self.0.fetch_add(amount, Ordering::Relaxed);
        }
    }

    /// The number so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Level(AtomicU64);

impl Level {
    /// Replaces the number.
    pub fn set(&self, value: u64) {
        if COUNTS {
            self.0.store(value, Ordering::Relaxed);
        }
    }

    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        if COUNTS {
            self.0.fetch_add(amount, Ordering::Relaxed);
        }
    }

    /// Takes away `amount`, which must have been added before.
    pub fn subtract(&self, amount: u64) {
        if COUNTS {
            self.0.fetch_sub(amount, Ordering::Relaxed);
        }
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How often a value fell into each of a fixed set of buckets, and the sum of all values.
#[derive(Debug)]
pub struct Histogram {
    /// Inclusive upper bounds, ascending.
    bounds: &'static [u64],
    /// One more than there are bounds: the last one counts what is above all of them.
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    /// A histogram of durations, kept in nanoseconds.
    pub fn of_durations() -> Histogram {
        Histogram::with_bounds(DURATION_BOUNDS_NANOS)
    }

    /// A histogram of numbers of records.
    pub fn of_records() -> Histogram {
        Histogram::with_bounds(RECORDS_BOUNDS)
    }

    fn with_bounds(bounds: &'static [u64]) -> Histogram {
        Histogram { bounds, buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    /// Counts one value, in the histogram's own unit (nanoseconds or records).
    pub fn observe(&self, value: u64) {
        if !COUNTS {
            return;
        }
        let index = self.bounds.partition_point(|bound| *bound < value);
        // There is a bucket behind the last bound, so the index always exists.
        if let Some(bucket) = self.buckets.get(index) {
            bucket.fetch_add(1, Ordering::Relaxed);
            self.sum.fetch_add(value, Ordering::Relaxed);
        }
    }

    /// Counts one duration.
    pub fn observe_duration(&self, duration: Duration) {
        self.observe(nanos(duration));
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let mut total = 0;
        let mut cumulative: Vec<u64> = Vec::with_capacity(self.buckets.len());
        for bucket in &self.buckets {
            total += bucket.load(Ordering::Relaxed);
            cumulative.push(total);
        }
        HistogramSnapshot {
            // `zip` leaves out the last bucket, which has no bound: `count` stands for it.
            buckets: self.bounds.iter().copied().zip(cumulative).collect(),
            sum: self.sum.load(Ordering::Relaxed),
            count: total,
        }
    }
}

/// A histogram as it was at one moment, in the histogram's own unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// Each bucket's inclusive upper bound, and how many values were at or below it.
    pub buckets: Vec<(u64, u64)>,
    /// All values added up.
    pub sum: u64,
    /// How many values there were.
    pub count: u64,
}

/// Everything one broker counts.
#[derive(Debug)]
pub struct Counters {
    /// Records stored: appended and durable.
    pub records_published: Count,
    /// Bytes of those records as they stand in their batches.
    pub bytes_published: Count,
    /// Records that a producer sent again and that were already stored.
    pub duplicates_suppressed: Count,
    /// The same, by how it came to that.
    pub duplicates: ByReason<DuplicateCause>,
    /// Records handed to the transport for a consumer.
    pub records_delivered: Count,
    /// Connections open now: those that have said hello.
    pub connections: Level,
    /// Connections accepted since the start.
    pub connections_total: Count,
    /// Connections that have not said hello yet.
    pub handshakes_in_progress: Level,
    /// Handshakes that came to nothing.
    pub handshakes_failed: ByReason<HandshakeFailure>,
    /// Connections that were not taken.
    pub connections_refused: ByReason<ConnectionRefusal>,
    /// Producer sessions that were attached again, on another QUIC stream and with the same epoch.
    pub reconnects: Count,
    /// Publishing sessions open now.
    pub sessions: Level,
    /// Subscriptions open now.
    pub subscriptions: Level,
    /// QUIC streams that clients have open now, control streams aside.
    pub quic_streams: Level,
    /// Measurements of the machine that run now: syncs, echoes, sinks and sources.
    pub measurements: Level,
    /// The memory that peers may make the broker hold, in bytes.
    pub memory_budget_bytes: Level,
    /// What of it is taken.
    pub memory_used_bytes: Level,
    /// How often somebody had to wait for a part of it.
    pub memory_waits: Count,
    /// Frames given up because they were not finished while others waited for memory.
    pub frames_given_up: Count,
    /// Blocks read for a consumer and given back because it took nothing of them.
    pub reads_given_back: Count,
    /// Bytes of all segment files.
    pub log_bytes: Level,
    /// Bytes appended and not yet durable.
    pub write_buffer_bytes: Level,
    /// The log position below which everything is synced.
    pub durable_position: Level,
    /// Syncs of the log that ended well.
    pub syncs: Count,
    /// Records found unreadable, at recovery or when they were to be read.
    pub damaged_records: Count,
    /// How long the start's recovery took, in nanoseconds.
    pub recovery_nanos: Level,
    /// Entries that the start's recovery read.
    pub recovery_entries: Level,
    /// Places of damage that it found.
    pub recovery_damages: Level,
    /// Bytes behind the end of the log that it could not prove to be stored and left where they were.
    pub recovery_cut_bytes: Level,
    /// Files that it set aside.
    pub recovery_files_set_aside: Level,
    /// Free bytes of the file system that holds the log.
    pub disk_free_bytes: Level,
    /// Received to durable answer.
    pub publish_seconds: Histogram,
    /// Received to handed to a caught-up consumer.
    pub end_to_end_seconds: Histogram,
    /// One sync of the log.
    pub log_sync_seconds: Histogram,
    /// Records made durable by one sync.
    pub group_commit_records: Histogram,
    refused: [Count; ERROR_CODES_MAX],
    poisoned: AtomicBool,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters::new()
    }
}

impl Counters {
    /// All zero.
    pub fn new() -> Counters {
        Counters {
            records_published: Count::default(),
            bytes_published: Count::default(),
            duplicates_suppressed: Count::default(),
            duplicates: ByReason::default(),
            records_delivered: Count::default(),
            connections: Level::default(),
            connections_total: Count::default(),
            handshakes_in_progress: Level::default(),
            handshakes_failed: ByReason::default(),
            connections_refused: ByReason::default(),
            reconnects: Count::default(),
            sessions: Level::default(),
            subscriptions: Level::default(),
            quic_streams: Level::default(),
            measurements: Level::default(),
            memory_budget_bytes: Level::default(),
            memory_used_bytes: Level::default(),
            memory_waits: Count::default(),
            frames_given_up: Count::default(),
            reads_given_back: Count::default(),
            log_bytes: Level::default(),
            write_buffer_bytes: Level::default(),
            durable_position: Level::default(),
            syncs: Count::default(),
            damaged_records: Count::default(),
            recovery_nanos: Level::default(),
            recovery_entries: Level::default(),
            recovery_damages: Level::default(),
            recovery_cut_bytes: Level::default(),
            recovery_files_set_aside: Level::default(),
            disk_free_bytes: Level::default(),
            publish_seconds: Histogram::of_durations(),
            end_to_end_seconds: Histogram::of_durations(),
            log_sync_seconds: Histogram::of_durations(),
            group_commit_records: Histogram::of_records(),
            refused: std::array::from_fn(|_| Count::default()),
            poisoned: AtomicBool::new(false),
        }
    }

    /// Counts one refused batch.
    pub fn refuse(&self, code: ErrorCode) {
        if let Some(count) = self.refused.get(usize::from(code.number())) {
            count.add(1);
        }
    }

    /// How many batches were refused with `code`.
    pub fn refused(&self, code: ErrorCode) -> u64 {
        self.refused.get(usize::from(code.number())).map_or(0, Count::get)
    }

    /// Every error code there is, by ascending number, with how many batches it refused.
    pub fn refusals(&self) -> impl Iterator<Item = (ErrorCode, u64)> + '_ {
        self.refused
            .iter()
            .zip(0u16..)
            .filter_map(|(count, number)| ErrorCode::from_number(number).map(|code| (code, count.get())))
    }

    /// Counts records that were stored already.
    pub fn duplicate(&self, cause: DuplicateCause, records: u64) {
        self.duplicates_suppressed.add(records);
        self.duplicates.add(cause, records);
    }

    /// Raises a level by one until the guard is dropped.
    pub fn hold(self: &Arc<Self>, level: fn(&Counters) -> &Level) -> Held {
        level(self).add(1);
        Held { counters: Arc::clone(self), level }
    }

    /// Counts a connection as open until the guard is dropped.
    pub fn connection(self: &Arc<Self>) -> OpenConnection {
        self.connections.add(1);
        self.connections_total.add(1);
        OpenConnection { counters: Arc::clone(self) }
    }

    /// Notes how long the start's recovery took.
    pub fn set_recovery(&self, took: Duration) {
        self.recovery_nanos.set(nanos(took));
    }

    /// Notes that a sync failed or hangs: nothing is acknowledged until the broker is restarted.
    /// Never taken back.
    pub fn poison(&self) {
        self.poisoned.store(true, Ordering::Relaxed);
    }

    /// Whether a sync failed or hangs.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    /// The broker that they belong to is another one from here on; what was counted stays.
    #[cfg(feature = "testkit")]
    pub(crate) fn begin_life(&self) {
        self.poisoned.store(false, Ordering::Relaxed);
    }
}

/// One open connection; dropping it counts the connection as closed.
#[derive(Debug)]
pub struct OpenConnection {
    counters: Arc<Counters>,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.counters.connections.subtract(1);
    }
}

/// One of what a [`Level`] counts; dropping it takes it away.
#[derive(Debug)]
pub struct Held {
    counters: Arc<Counters>,
    level: fn(&Counters) -> &Level,
}

impl Drop for Held {
    fn drop(&mut self) {
        (self.level)(&self.counters).subtract(1);
    }
}

/// Whole nanoseconds; 584 years are all that fits, and more than anything here lasts.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_ascend_so_that_a_value_has_one_bucket() {
        for bounds in [DURATION_BOUNDS_NANOS, RECORDS_BOUNDS] {
            assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    #[test]
    fn a_value_on_a_bound_counts_below_it_and_one_above_counts_above() {
        let histogram = Histogram::of_records();
        histogram.observe(4);
        histogram.observe(5);
        let snapshot = histogram.snapshot();
        let at = |bound| snapshot.buckets.iter().find(|(upper, _)| *upper == bound).map(|(_, count)| *count);
        assert_eq!(at(2), Some(0));
        assert_eq!(at(4), Some(1));
        assert_eq!(at(8), Some(2));
        assert_eq!((snapshot.sum, snapshot.count), (9, 2));
    }

    #[test]
    fn a_value_above_all_bounds_is_in_the_count_alone() {
        let histogram = Histogram::of_durations();
        histogram.observe_duration(Duration::from_secs(60));
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.buckets.last(), Some(&(10_000_000_000, 0)));
        assert_eq!(snapshot.count, 1);
        assert_eq!(snapshot.sum, 60_000_000_000);
    }

    #[test]
    fn zero_falls_into_the_first_bucket() {
        let histogram = Histogram::of_durations();
        histogram.observe_duration(Duration::ZERO);
        assert_eq!(histogram.snapshot().buckets.first(), Some(&(50_000, 1)));
    }

    #[test]
    fn refusals_are_counted_by_their_reason() {
        let counters = Counters::new();
        counters.refuse(ErrorCode::Fenced);
        counters.refuse(ErrorCode::Fenced);
        counters.refuse(ErrorCode::Busy);
        assert_eq!(counters.refused(ErrorCode::Fenced), 2);
        assert_eq!(counters.refused(ErrorCode::Busy), 1);
        assert_eq!(counters.refused(ErrorCode::NotFound), 0);
        let sum: u64 = counters.refusals().map(|(_, count)| count).sum();
        assert_eq!(sum, 3);
    }

    #[test]
    fn every_error_code_has_a_slot() {
        assert!(ErrorCode::from_number(ERROR_CODES_MAX as u16).is_none());
        assert!(ErrorCode::from_number(u16::MAX).is_none());
        let names: Vec<_> = Counters::new().refusals().map(|(code, _)| code.name()).collect();
        assert!(names.contains(&"malformed") && names.contains(&"fenced"));
    }

    #[test]
    fn a_connection_is_counted_while_its_guard_lives() {
        let counters = Arc::new(Counters::new());
        let first = counters.connection();
        let second = counters.connection();
        assert_eq!(counters.connections.get(), 2);
        drop(first);
        assert_eq!(counters.connections.get(), 1);
        drop(second);
        assert_eq!(counters.connections.get(), 0);
        assert_eq!(counters.connections_total.get(), 2);
    }

    #[test]
    fn poison_stays() {
        let counters = Counters::new();
        assert!(!counters.is_poisoned());
        counters.poison();
        assert!(counters.is_poisoned());
    }
}
