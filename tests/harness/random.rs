//! Random choices that a seed repeats. The seed fixes the plan of a run, not what the machine's scheduler makes of it.

/// SplitMix64 (Steele, Lea, Flood 2014): small, and any seed will do.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From `TIDELOG_SEED`, or a new one; to be printed, so that a failure can be looked at again.
    pub fn seed_of_run() -> u64 {
        number_from_environment("TIDELOG_SEED").unwrap_or_else(|| {
            // Short enough to be typed.
            u64::from(getrandom::u32().expect("the system gives random numbers"))
        })
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is above 0. The bias of the remainder does not matter here.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// Another series of its own.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

/// The number in an environment variable, if it is set.
pub fn number_from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}
