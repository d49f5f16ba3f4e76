//! Why something was refused, failed or counted as a duplicate: small closed sets, so that a metric's label has few values.

use super::Count;

/// A closed set of reasons, each with a stable name.
pub trait Reason: Copy + 'static {
    /// All of them, in the order of their slots.
    const ALL: &'static [Self];

    /// The name in `snake_case`, as the label shows it; never changed.
    fn name(self) -> &'static str;

    /// Its place in [`Self::ALL`].
    fn slot(self) -> usize;
}

macro_rules! reasons {
    ($(#[$doc:meta])* $set:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $set {
            $($(#[$variant_doc])* $variant,)*
        }

        impl Reason for $set {
            const ALL: &'static [Self] = &[$(Self::$variant,)*];

            fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            fn slot(self) -> usize {
                self as usize
            }
        }
    };
}

reasons! {
    /// Why a connection was not taken. The client is told, and may come again.
    ConnectionRefusal {
        /// There are as many connections as the limit allows.
        Connections = "connections",
        /// So many handshakes are under way that no further one may begin.
        Handshakes = "handshakes",
        /// The hello was malformed, or of no version that this broker speaks.
        Hello = "hello",
        /// No hello came in time.
        Silent = "silent",
    }
}

reasons! {
    /// Why a handshake came to nothing.
    HandshakeFailure {
        /// It was not finished in time.
        TimedOut = "timed_out",
        /// The client speaks another protocol.
        ForeignProtocol = "foreign_protocol",
        /// The client broke off, or what it sent was no handshake.
        BrokenOff = "broken_off",
    }
}

reasons! {
    /// How it came that a record was sent again that is stored already.
    DuplicateCause {
        /// The batch is one of those stored last: its answer was lost, or not waited for.
        Resent = "resent",
        /// It was stored long ago: a producer begins its input anew.
        Replayed = "replayed",
        /// It leads a batch that has new records behind it.
        Overlapping = "overlapping",
    }
}

/// A count for each reason of a set.
#[derive(Debug)]
pub struct ByReason<R> {
    counts: Box<[Count]>,
    reasons: std::marker::PhantomData<R>,
}

impl<R: Reason> Default for ByReason<R> {
    fn default() -> Self {
        Self { counts: R::ALL.iter().map(|_| Count::default()).collect(), reasons: std::marker::PhantomData }
    }
}

impl<R: Reason> ByReason<R> {
    /// Adds `amount` for a reason.
    pub fn add(&self, reason: R, amount: u64) {
        if let Some(count) = self.counts.get(reason.slot()) {
            count.add(amount);
        }
    }

    /// The number so far for a reason.
    pub fn get(&self, reason: R) -> u64 {
        self.counts.get(reason.slot()).map_or(0, Count::get)
    }

    /// Every reason there is, by name, with its number so far.
    pub fn by_name(&self) -> Vec<(&'static str, u64)> {
        R::ALL.iter().map(|reason| (reason.name(), self.get(*reason))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots_are_their_own<R: Reason>() {
        for (slot, reason) in R::ALL.iter().enumerate() {
            assert_eq!(reason.slot(), slot);
            assert!(reason.name().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
        }
    }

    #[test]
    fn every_reason_has_a_slot_of_its_own() {
        slots_are_their_own::<ConnectionRefusal>();
        slots_are_their_own::<HandshakeFailure>();
        slots_are_their_own::<DuplicateCause>();
    }

    #[test]
    fn reasons_are_counted_apart() {
        let counts = ByReason::default();
        counts.add(DuplicateCause::Replayed, 3);
        assert_eq!(counts.by_name(), [("resent", 0), ("replayed", 3), ("overlapping", 0)]);
    }
}
