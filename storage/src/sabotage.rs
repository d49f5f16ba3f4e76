//! Deliberate defects, compiled only with the feature `sabotage`: each must turn a crash test red, which shows that the
//! test can fail.

macro_rules! sabotages {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// One deliberate defect.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Sabotage { $($(#[$doc])* $variant,)* }

        impl Sabotage {
            /// All of them.
            pub const ALL: &'static [Sabotage] = &[$(Sabotage::$variant,)*];

            /// The name in `TIDELOG_SABOTAGE`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Sabotage::$variant => $name,)* }
            }
        }
    };
}

sabotages! {
    /// Recovery syncs the unproven tail without writing it again first (history A1).
    SyncTailWithoutRewrite = "sync-tail-without-rewrite",
    /// After a crash the log goes on in the segment that was cut (A2).
    AppendBehindCut = "append-behind-cut",
    /// The salt of a segment is its number (A2, B2).
    SaltIsCounter = "salt-is-counter",
    /// An entry carries the end of what was written when it was encoded as proven, not what was synced (A5).
    StampAtEncode = "stamp-at-encode",
    /// Answers leave before the watermark that proves them is written (A5).
    AnswerBeforeWatermark = "answer-before-watermark",
    /// The copy of a header behind the payload is not used (A4).
    NoHeaderCopy = "no-header-copy",
    /// A group is written and synced in the middle of an atomic group (A7).
    SplitAtomicGroup = "split-atomic-group",
    /// The next segment's header is written before the last sync of the one before (B1).
    HeaderBeforeLastSync = "header-before-last-sync",
    /// Answers leave before the fdatasync (P1).
    AnswerBeforeSync = "answer-before-sync",
    /// New files' names are not synced (P1).
    NoDirectorySync = "no-directory-sync",
    /// A failed fdatasync is tried again and believed (A1).
    RetryFailedSync = "retry-failed-sync",
    /// Anything broken ends the log, below the durable position too (A4).
    CutAtAnyBadChecksum = "cut-at-any-bad-checksum",
    /// Producers' last sequences are forgotten at a restart (P2).
    ForgetProducers = "forget-producers",
    /// Consumers are given records that are not yet synced (P4).
    ServeUnsynced = "serve-unsynced",
    /// Any first sequence of a producer is taken (P2).
    AcceptAnyFirstSequence = "accept-any-first-sequence",
    /// Epochs are checked when a producer connects and never again (P5).
    FenceOnlyAtConnect = "fence-only-at-connect",
    /// Refusals leave before what they rest on is durable (A8).
    SendRefusalsAtOnce = "send-refusals-at-once",
    /// Everything at or below a producer's last sequence is a duplicate, whatever its content (B4).
    AnyOldIsDuplicate = "any-old-is-duplicate",
    /// A retried open raises the epoch again (B7).
    ReopenRaisesEpoch = "reopen-raises-epoch",
    /// Batches are stored without a look at their checksum (B2, hostile batch).
    TrustBatchChecksum = "trust-batch-checksum",
    /// A batch goes to whatever stream has the name now, although it names another one's id (B8).
    StreamByName = "stream-by-name",
    /// The entry that removes a stream goes while the stream's bytes stay (A9).
    DropDeletionEarly = "drop-deletion-early",
    /// A checkpoint counts in what is appended and not yet durable (A3).
    CheckpointFromOrderedFold = "checkpoint-from-the-ordered-fold",
    /// A checkpoint is used without a look at whether the log holds the entry that it was made at (A3).
    CheckpointWithoutBranchCheck = "checkpoint-without-branch-check",
    /// A repair lets streams go on where their last readable record ends, and producers under their last readable epoch.
    RepairKeepsOffsets = "repair-keeps-offsets",
}

/// The defects that are switched on; always none without the feature `sabotage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sabotages {
    #[cfg(feature = "sabotage")]
    bits: u64,
}

impl Sabotages {
    /// Whether `sabotage` is on.
    #[must_use]
    #[inline]
    pub const fn has(self, sabotage: Sabotage) -> bool {
        #[cfg(feature = "sabotage")]
        {
            self.bits & (1 << sabotage as u32) != 0
        }
        #[cfg(not(feature = "sabotage"))]
        {
            let _ = sabotage;
            false
        }
    }

    /// With `sabotage` on as well.
    #[cfg(feature = "sabotage")]
    #[must_use]
    pub const fn with(self, sabotage: Sabotage) -> Self {
        Self { bits: self.bits | (1 << sabotage as u32) }
    }

    /// Those named, comma-separated, in the environment variable `TIDELOG_SABOTAGE`.
    ///
    /// # Panics
    /// If a name is unknown: a sabotage run that sabotages nothing would prove nothing.
    #[must_use]
    pub fn from_environment() -> Self {
        #[cfg(feature = "sabotage")]
        {
            let names = std::env::var("TIDELOG_SABOTAGE").unwrap_or_default();
            names.split(',').filter(|name| !name.is_empty()).fold(Self::default(), |all, name| {
                let found = Sabotage::ALL.iter().find(|one| one.name() == name);
                all.with(*found.unwrap_or_else(|| panic!("unknown sabotage '{name}'")))
            })
        }
        #[cfg(not(feature = "sabotage"))]
        Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_the_feature_has_no_defect() {
        if cfg!(not(feature = "sabotage")) {
            assert!(Sabotage::ALL.iter().all(|one| !Sabotages::default().has(*one)));
            assert_eq!(size_of::<Sabotages>(), 0);
        }
    }
}
