//! The random numbers of the simulated machine: a seed replays exactly, on every platform.

/// A small deterministic generator (splitmix64): fast, seedable, not secret.
///
/// Tests may use it to draw their own workload, so that one seed replays a whole run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedRng {
    state: u64,
}

impl SimulatedRng {
    /// A generator whose every number follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        // Constants of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
        // generators", 2014).
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number in `0..limit`; 0 if `limit` is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        // The high half of the product is even enough: the bias is below `limit` / 2^64.
        let product = u128::from(self.next_u64()) * u128::from(limit);
        u64::try_from(product >> 64).unwrap_or(0)
    }

    /// True once in `one_in` times on average; never if it is 0.
    pub fn chance(&mut self, one_in: u64) -> bool {
        one_in != 0 && self.below(one_in) == 0
    }

    /// Fills the buffer with random bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for part in buffer.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            part.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        }
    }
}
