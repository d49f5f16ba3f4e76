//! Faults from a seed: the outages that a program has to live with and that nobody has to mend by hand.
//!
//! The n-th occasion of a step is decided by the seed, the step and n alone. So a seed brings the same faults to the same
//! occasions again, whatever the threads of a program do in between.

use std::time::Duration;

use tidelog_storage::medium::SimulatedRng;

use super::ordeal::{Death, Step, Strike};

/// Faults of one run; afterwards it is calm, so that every program comes to its end.
const FAULTS_MAX: u32 = 6;
/// Beside the one that leads, a fault strikes at one occasion in so many.
const ONE_IN: u64 = 12;

/// The faults that runs lead with in turn, so that a few runs in a row have had all of them.
const LEADING: [(Step, Strike); 12] = [
    (Step::BeforeAnswer, Strike::Cut),
    (Step::AfterSync, Strike::Dies(Death::Killed)),
    (Step::AfterAccept, Strike::Cut),
    (Step::BeforeSync, Strike::Dies(Death::PowerLost)),
    (Step::AfterAnswer, Strike::Dies(Death::Killed)),
    (Step::BeforeWrite, Strike::Torn),
    (Step::BeforeAnswer, Strike::Dies(Death::PowerLost)),
    (Step::AfterWrite, Strike::Dies(Death::Killed)),
    (Step::BeforeAccept, Strike::Cut),
    (Step::AfterAccept, Strike::Dies(Death::Killed)),
    (Step::BeforeAccept, Strike::CutOff(Duration::from_millis(40))),
    (Step::BeforeAnswer, Strike::Late(Duration::from_millis(20))),
];

/// Occasions among which the leading fault strikes.
const LEADING_OCCASIONS: u64 = 3;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Seeded {
    seed: u64,
    /// A loss of power, where it can't be had, is a kill.
    loses_power: bool,
    left: u32,
    /// Occasions so far, by step.
    occasions: [u64; Step::ALL.len()],
}

impl Seeded {
    pub(super) fn new(seed: u64, loses_power: bool) -> Self {
        Self { seed, loses_power, left: FAULTS_MAX, occasions: [0; Step::ALL.len()] }
    }

    /// What befalls the broker at this occasion of `step`.
    pub(super) fn at(&mut self, step: Step) -> Option<Strike> {
        let occasions = self.occasions.get_mut(step as usize)?;
        *occasions += 1;
        let occasion = *occasions;
        if self.left == 0 {
            return None;
        }
        let strike = self.leads(step, occasion).or_else(|| self.drawn(step, occasion))?;
        self.left -= 1;
        Some(match strike {
            Strike::Dies(Death::PowerLost) if !self.loses_power => Strike::Dies(Death::Killed),
            strike => strike,
        })
    }

    fn leads(&self, step: Step, occasion: u64) -> Option<Strike> {
        let kinds = LEADING.len() as u64;
        let (at, strike) = LEADING.get(usize::try_from(self.seed % kinds).ok()?)?;
        let due = 1 + self.seed / kinds % LEADING_OCCASIONS;
        (*at == step && occasion == due).then_some(*strike)
    }

    fn drawn(&self, step: Step, occasion: u64) -> Option<Strike> {
        let mut rng = SimulatedRng::new(self.seed ^ (step as u64 + 1) << 56 ^ occasion << 32);
        if !rng.chance(ONE_IN) {
            return None;
        }
        let death = if rng.chance(2) { Death::PowerLost } else { Death::Killed };
        let late = Duration::from_millis(1 + rng.below(20));
        Some(match (step, rng.below(6)) {
            (Step::BeforeWrite, 0) => Strike::Torn,
            (Step::BeforeWrite | Step::AfterWrite | Step::BeforeSync | Step::AfterSync, 0..=2) => Strike::Dies(death),
            (Step::BeforeWrite | Step::AfterWrite | Step::BeforeSync | Step::AfterSync, _) => Strike::Late(late),
            (_, 0) => Strike::Dies(death),
            (Step::AfterAnswer, 1) => Strike::Jump(rng.below(7_200_000) as i64 - 3_600_000),
            (_, 1) => Strike::CutOff(late * 2),
            (Step::BeforeAnswer, 2 | 3) => Strike::Late(late),
            _ => Strike::Cut,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strikes(seed: u64, occasions: usize) -> Vec<(Step, Strike)> {
        let mut seeded = Seeded::new(seed, true);
        let all = (0..occasions).flat_map(|_| Step::ALL);
        all.filter_map(|step| Some((step, seeded.at(step)?))).collect()
    }

    #[test]
    fn a_seed_brings_the_same_faults_again_and_comes_to_an_end() {
        for seed in 0..200 {
            let first = strikes(seed, 1_000);
            assert_eq!(first, strikes(seed, 1_000));
            assert_eq!(first.len(), FAULTS_MAX as usize, "seed {seed}");
        }
    }

    #[test]
    fn runs_in_a_row_lead_with_every_fault() {
        for begin in [0, 7, u64::MAX - 100] {
            for (step, strike) in LEADING {
                let struck = (0..LEADING.len() as u64).any(|run| {
                    let occasions = LEADING_OCCASIONS as usize;
                    strikes(begin + run, occasions).contains(&(step, strike))
                });
                assert!(struck, "from {begin}: {step}, {strike}");
            }
        }
    }
}
