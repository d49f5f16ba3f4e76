//! What a broker counts, as plain numbers of one moment.

use std::fmt;

use tidelog_protocol::ErrorCode;

use crate::counters::{ConnectionRefusal, Counters, DuplicateCause, HandshakeFailure, Reason};

macro_rules! test_counters {
    (
        counts { $($(#[$count_doc:meta])* $count:ident = $count_of:expr,)* }
        levels { $($(#[$level_doc:meta])* $level:ident = $level_of:expr,)* }
    ) => {
        /// What a broker has counted until one moment.
        ///
        /// Each number is true by itself; two of them may be a moment apart. A broker that is started again counts from 0;
        /// a [`TestBroker`](super::TestBroker) goes on over all its lives.
        /// `Display` is a table of those that are not 0.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct TestCounters {
            $($(#[$count_doc])* pub $count: u64,)*
            $($(#[$level_doc])* pub $level: u64,)*
            /// Whether a sync has failed or hangs, so that nothing is acknowledged any more.
            pub poisoned: bool,
            /// Refused batches by code; those that are 0 are left out.
            refused: Vec<(ErrorCode, u64)>,
            /// Suppressed duplicates by cause; those that are 0 are left out.
            duplicates: Vec<(&'static str, u64)>,
        }

        impl TestCounters {
            /// The numbers now.
            pub fn of(counters: &Counters) -> Self {
                Self {
                    $($count: $count_of(counters),)*
                    $($level: $level_of(counters),)*
                    poisoned: counters.is_poisoned(),
                    refused: counters.refusals().filter(|(_, count)| *count > 0).collect(),
                    duplicates: counters.duplicates.by_name().into_iter().filter(|(_, count)| *count > 0).collect(),
                }
            }

            /// What has come since an earlier moment. What goes up and down, and `poisoned`, is as it is now.
            #[must_use]
            pub fn since(&self, earlier: &Self) -> Self {
                let refused = self.refused.iter().map(|(code, count)| (*code, count.saturating_sub(earlier.refused(*code))));
                let duplicates = self
                    .duplicates
                    .iter()
                    .map(|(cause, count)| (*cause, count.saturating_sub(earlier.duplicates_named(cause))));
                Self {
                    $($count: self.$count.saturating_sub(earlier.$count),)*
                    $($level: self.$level,)*
                    poisoned: self.poisoned,
                    refused: refused.filter(|(_, count)| *count > 0).collect(),
                    duplicates: duplicates.filter(|(_, count)| *count > 0).collect(),
                }
            }

            fn rows(&self) -> Vec<(String, u64)> {
                let mut rows = vec![$((stringify!($count).to_owned(), self.$count),)*];
                rows.extend(self.refused.iter().map(|(code, count)| (format!("  refused {}", code.name()), *count)));
                rows.extend(self.duplicates.iter().map(|(cause, count)| (format!("  duplicates {cause}"), *count)));
                rows.extend([$((stringify!($level).to_owned(), self.$level),)*]);
                rows.push(("poisoned".to_owned(), u64::from(self.poisoned)));
                rows
            }
        }
    };
}

test_counters! {
    counts {
        /// Records that were given their place in a stream. They are durable once synced; one that a death takes before is
        /// counted again when it comes again.
        records_published = |counters: &Counters| counters.records_published.get(),
        /// Bytes of those records as they stand in their batches.
        bytes_published = |counters: &Counters| counters.bytes_published.get(),
        /// Records that a producer sent again and that were already stored.
        duplicates_suppressed = |counters: &Counters| counters.duplicates_suppressed.get(),
        /// Batches that were refused, for whatever reason; see [`Self::refused`].
        publishes_refused = |counters: &Counters| counters.refusals().map(|(_, count)| count).sum(),
        /// Records handed to the transport for a consumer.
        records_delivered = |counters: &Counters| counters.records_delivered.get(),
        /// Producer sessions that were attached again, on another QUIC stream and with the same epoch.
        reconnects = |counters: &Counters| counters.reconnects.get(),
        /// Connections that have said hello.
        connections_accepted = |counters: &Counters| counters.connections_total.get(),
        /// Connections that were not taken.
        connections_refused = |counters: &Counters| sum::<ConnectionRefusal>(&counters.connections_refused),
        /// Handshakes that came to nothing.
        handshakes_failed = |counters: &Counters| sum::<HandshakeFailure>(&counters.handshakes_failed),
        /// Syncs of the log that ended well.
        syncs = |counters: &Counters| counters.syncs.get(),
        /// Records found unreadable, at recovery or when they were to be read.
        damaged_records = |counters: &Counters| counters.damaged_records.get(),
        /// How often somebody had to wait for a part of the memory that peers may make the broker hold.
        memory_waits = |counters: &Counters| counters.memory_waits.get(),
    }
    levels {
        /// Connections open now: those that have said hello.
        connections = |counters: &Counters| counters.connections.get(),
        /// Publishing sessions open now.
        sessions = |counters: &Counters| counters.sessions.get(),
        /// Subscriptions open now.
        subscriptions = |counters: &Counters| counters.subscriptions.get(),
        /// QUIC streams that clients have open now, control streams aside.
        quic_streams = |counters: &Counters| counters.quic_streams.get(),
        /// What is taken of the memory that peers may make the broker hold, in bytes.
        memory_used_bytes = |counters: &Counters| counters.memory_used_bytes.get(),
        /// Bytes of all segment files.
        log_bytes = |counters: &Counters| counters.log_bytes.get(),
        /// Bytes appended and not yet durable.
        write_buffer_bytes = |counters: &Counters| counters.write_buffer_bytes.get(),
        /// The log position below which everything is synced.
        durable_position = |counters: &Counters| counters.durable_position.get(),
        /// Places of damage that the start's recovery found.
        recovery_damages = |counters: &Counters| counters.recovery_damages.get(),
        /// Bytes behind the end of the log that it could not prove to be stored and left where they were.
        recovery_cut_bytes = |counters: &Counters| counters.recovery_cut_bytes.get(),
    }
}

impl TestCounters {
    /// How many batches were refused with this code.
    pub fn refused(&self, code: ErrorCode) -> u64 {
        self.refused.iter().find(|(refused, _)| *refused == code).map_or(0, |(_, count)| *count)
    }

    /// How many records were suppressed as duplicates that came about in this way.
    pub fn duplicates(&self, cause: DuplicateCause) -> u64 {
        self.duplicates_named(cause.name())
    }

    fn duplicates_named(&self, cause: &str) -> u64 {
        self.duplicates.iter().find(|(name, _)| *name == cause).map_or(0, |(_, count)| *count)
    }
}

impl From<&Counters> for TestCounters {
    fn from(counters: &Counters) -> Self {
        Self::of(counters)
    }
}

impl fmt::Display for TestCounters {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<(String, u64)> = self.rows().into_iter().filter(|(_, number)| *number > 0).collect();
        let name_width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let number_width = rows.iter().map(|(_, number)| number.to_string().len()).max().unwrap_or(0);
        for (place, (name, number)) in rows.iter().enumerate() {
            let end = if place > 0 { "\n" } else { "" };
            write!(formatter, "{end}{name:name_width$}  {number:>number_width$}")?;
        }
        if rows.is_empty() {
            formatter.write_str("nothing was counted")?;
        }
        Ok(())
    }
}

fn sum<R: Reason>(counts: &crate::counters::ByReason<R>) -> u64 {
    counts.by_name().iter().map(|(_, count)| count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_has_the_counters_numbers_and_shows_those_that_are_not_0() {
        let counters = Counters::new();
        assert_eq!(TestCounters::of(&counters), TestCounters::default());
        assert_eq!(TestCounters::of(&counters).to_string(), "nothing was counted");

        counters.records_published.add(12);
        counters.refuse(ErrorCode::Fenced);
        counters.refuse(ErrorCode::Fenced);
        counters.refuse(ErrorCode::Busy);
        counters.duplicate(DuplicateCause::Replayed, 5);
        counters.connections.set(1);
        counters.connections_refused.add(ConnectionRefusal::Silent, 2);
        counters.poison();
        let taken = TestCounters::from(&counters);
        assert_eq!((taken.publishes_refused, taken.refused(ErrorCode::Fenced)), (3, 2));
        assert_eq!((taken.duplicates(DuplicateCause::Replayed), taken.duplicates(DuplicateCause::Resent)), (5, 0));
        assert_eq!(
            taken.to_string(),
            "\
records_published      12
duplicates_suppressed   5
publishes_refused       3
connections_refused     2
  refused fenced        2
  refused busy          1
  duplicates replayed   5
connections             1
poisoned                1"
        );
    }

    #[test]
    fn what_came_since_is_the_difference_of_counts_and_the_present_level() {
        let counters = Counters::new();
        counters.records_published.add(12);
        counters.refuse(ErrorCode::Busy);
        counters.connections.set(3);
        let before = TestCounters::of(&counters);
        counters.records_published.add(30);
        counters.refuse(ErrorCode::Fenced);
        counters.duplicate(DuplicateCause::Resent, 1);
        counters.connections.set(2);
        let since = TestCounters::of(&counters).since(&before);
        assert_eq!((since.records_published, since.publishes_refused, since.connections), (30, 1, 2));
        assert_eq!((since.refused(ErrorCode::Fenced), since.refused(ErrorCode::Busy)), (1, 0));
        assert_eq!(since.duplicates(DuplicateCause::Resent), 1);
    }
}
