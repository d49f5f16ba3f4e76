//! Where random salts and identities come from.

/// The source of salts and log identities.
///
/// A salt keeps stale and forged bytes from verifying, so a real log takes it from the operating system; a simulated
/// run takes it from a seed, so that the run can be replayed.
#[derive(Debug, Clone)]
pub enum Entropy {
    /// The operating system's random numbers.
    System,
    /// A generator with this state (splitmix64, Steele, Lea and Flood 2014): repeatable, for simulations alone.
    Seeded(u64),
}

impl Entropy {
    /// The next eight random bytes.
    ///
    /// # Errors
    /// The operating system's, if it has no random numbers to give.
    pub fn next_u64(&mut self) -> std::io::Result<u64> {
        match self {
            Entropy::System => {
                let mut bytes = [0; 8];
                getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
                Ok(u64::from_le_bytes(bytes))
            }
            Entropy::Seeded(state) => {
                *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mut mixed = *state;
                mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                Ok(mixed ^ (mixed >> 31))
            }
        }
    }
}
