//! Where a client's random numbers come from: the operating system, or a seed, for runs that can be replayed.

use std::sync::{Arc, Mutex, PoisonError};

use tidelog_protocol::AttemptId;

use crate::error::Error;

/// A source of random numbers. Clones draw from the same one.
#[derive(Debug, Clone)]
pub(crate) enum Entropy {
    System,
    /// The state of a SplitMix64 generator.
    Seeded(Arc<Mutex<u64>>),
}

impl Entropy {
    pub(crate) fn seeded(seed: u64) -> Self {
        Self::Seeded(Arc::new(Mutex::new(seed)))
    }

    /// A random number for [`Backoff::next_delay`](crate::retry::Backoff::next_delay); without a source of randomness
    /// simply the longest wait.
    pub(crate) fn jitter(&self) -> u32 {
        match self {
            Self::System => getrandom::u32().unwrap_or(u32::MAX),
            Self::Seeded(state) => (next(state) >> 32) as u32,
        }
    }

    /// The identity of one opening of a producer.
    ///
    /// # Errors
    ///
    /// [`Error::Randomness`]: an identity that another session may have, too, would let the two write as one.
    pub(crate) fn attempt(&self) -> Result<AttemptId, Error> {
        let mut bytes = [0; 16];
        match self {
            Self::System => {
                getrandom::fill(&mut bytes).map_err(|error| Error::Randomness { reason: error.to_string() })?;
            }
            Self::Seeded(state) => {
                let (low, high) = bytes.split_at_mut(8);
                low.copy_from_slice(&next(state).to_le_bytes());
                high.copy_from_slice(&next(state).to_le_bytes());
            }
        }
        Ok(AttemptId::new(bytes))
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): every number once in 2^64.
fn next(state: &Mutex<u64>) -> u64 {
    // Whoever panicked here left a whole number behind.
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_again_and_another_seed_others() {
        let draw = |seed| {
            let entropy = Entropy::seeded(seed);
            (entropy.jitter(), entropy.attempt().unwrap(), entropy.clone().attempt().unwrap())
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let (_, first, second) = draw(7);
        assert_ne!(first, second, "clones go on, they do not begin anew");
    }

    #[test]
    fn the_systems_attempts_differ() {
        assert_ne!(Entropy::System.attempt().unwrap(), Entropy::System.attempt().unwrap());
    }
}
