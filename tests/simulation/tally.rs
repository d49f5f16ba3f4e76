//! How much has happened: a simulation that meets nothing shows nothing.

/// Counts over a run, or many.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Sudden ends of a broker, in the middle of starts too.
    pub(crate) crashes: u64,
    /// Of these, at a disk operation; within a start; at a message; at a moment.
    pub(crate) at_operation: u64,
    pub(crate) in_start: u64,
    pub(crate) at_message: u64,
    pub(crate) at_moment: u64,
    /// Orderly ends.
    pub(crate) stops: u64,
    /// Lives in which a write or sync failed or hung.
    pub(crate) faults: u64,
    /// Lives in which the disk filled up, and publishes that were refused because of it.
    pub(crate) full: u64,
    pub(crate) refused_full: u64,
    /// Brokers that took no more writes.
    pub(crate) poisoned: u64,
    /// Messages sent, connections broken, passages held up.
    pub(crate) messages: u64,
    pub(crate) breaks: u64,
    pub(crate) stalls: u64,
    /// Of the breaks, those that were planned.
    pub(crate) planned_breaks: u64,
    /// Records that programs were told are durable.
    pub(crate) acknowledged: u64,
    /// Records that were answered as stored before.
    pub(crate) duplicates: u64,
    /// Processes that were opened, told that they are fenced, and told so late: woken after a successor had written.
    pub(crate) processes: u64,
    pub(crate) fenced: u64,
    pub(crate) woken: u64,
    /// Batches that no honest client sends, each answered as it should be.
    pub(crate) probes: u64,
    /// Records seen by consumers, and whole streams read and checked.
    pub(crate) seen: u64,
    pub(crate) audits: u64,
    /// Segments that starts found.
    pub(crate) segments: u64,
    /// Virtual time, in milliseconds.
    pub(crate) time_ms: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        let Self {
            crashes,
            at_operation,
            in_start,
            at_message,
            at_moment,
            stops,
            faults,
            full,
            refused_full,
            poisoned,
            messages,
            breaks,
            stalls,
            planned_breaks,
            acknowledged,
            duplicates,
            processes,
            fenced,
            woken,
            probes,
            seen,
            audits,
            segments,
            time_ms,
        } = other;
        self.crashes += crashes;
        self.at_operation += at_operation;
        self.in_start += in_start;
        self.at_message += at_message;
        self.at_moment += at_moment;
        self.stops += stops;
        self.faults += faults;
        self.full += full;
        self.refused_full += refused_full;
        self.poisoned += poisoned;
        self.messages += messages;
        self.breaks += breaks;
        self.stalls += stalls;
        self.planned_breaks += planned_breaks;
        self.acknowledged += acknowledged;
        self.duplicates += duplicates;
        self.processes += processes;
        self.fenced += fenced;
        self.woken += woken;
        self.probes += probes;
        self.seen += seen;
        self.audits += audits;
        self.segments += segments;
        self.time_ms += time_ms;
    }
}
