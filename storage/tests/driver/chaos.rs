//! A seeded run: work, die, come back, compare, again and again.

use tidelog_storage::medium::SimulatedRng;
use tidelog_storage::{EntryKind, Sabotages, verify};

use super::{Checked, Driver, NotOpen, Spec, payload, small_options};
use crate::check;

/// Starts that may fail in a row before the faults end.
const FAULTY_STARTS_MAX: u64 = 4;

/// One machine with its luck, and the process on it that has none.
struct Chaos {
    rng: SimulatedRng,
    driver: Driver,
    /// Something may fail that is not the log's fault.
    has_fault: bool,
    is_full: bool,
    /// Wall clock at the last start.
    states: u64,
}

/// Dies `crashes` times by what follows from `seed`. Returns how many crash states were looked at.
pub(crate) fn run(seed: u64, crashes: u64, sabotages: Sabotages) -> Checked<u64> {
    let mut rng = SimulatedRng::new(seed);
    let mut options = small_options();
    options.sabotages = sabotages;
    let driver = Driver::new(rng.next_u64(), options);
    let mut chaos = Chaos { rng, driver, has_fault: false, is_full: false, states: 0 };
    for crash in 0..crashes {
        chaos.start().map_err(|text| format!("crash {crash}: start: {text}"))?;
        chaos.live().map_err(|text| format!("crash {crash}: {text}"))?;
        chaos.die();
    }
    chaos.end_of_faults();
    chaos.start().map_err(|text| format!("at the end: {text}"))?;
    Ok(chaos.states)
}

impl Chaos {
    /// Starts until it works, dying in the middle of some starts.
    fn start(&mut self) -> Checked {
        for attempt in 0.. {
            if attempt < FAULTY_STARTS_MAX && self.rng.chance(3) {
                let reach = [6, 25, 60][self.rng.below(3) as usize];
                self.set_fault(reach);
            } else if attempt >= FAULTY_STARTS_MAX {
                self.end_of_faults();
            }
            self.states += 1;
            // A look from outside changes nothing and sees what the start will see.
            let verified = match self.rng.chance(4) {
                true => Some(verify(&self.driver.disk, &mut |_| ()).map_err(|error| error.to_string())?),
                false => None,
            };
            match self.driver.open_judged() {
                Ok(report) => {
                    let is_same = verified.is_none_or(|seen| {
                        let told = (report.proven, report.end, report.cut.clone(), report.entries, report.segments);
                        (seen.proven, seen.end, seen.cut, seen.entries, seen.segments) == told
                            && seen.damages.is_empty()
                    });
                    check!(is_same, "verify saw something else than the start: {report:?}");
                    return Ok(());
                }
                Err(NotOpen::Wrong(text)) => {
                    check!(self.driver.disk.is_stopped(), "{text}");
                    // The machine stopped while everything was read back; nothing was wrong before.
                }
                Err(NotOpen::Refused(error)) => {
                    let may_fail = self.has_fault || self.is_full;
                    check!(may_fail, "refused for no reason: {error}");
                }
            }
            self.die();
        }
        Ok(())
    }

    fn end_of_faults(&mut self) {
        self.has_fault = false;
        self.is_full = false;
        self.driver.disk.set_capacity_bytes(None);
    }

    /// Something breaks within the next `reach` operations or so.
    fn set_fault(&mut self, reach: u64) {
        let disk = &self.driver.disk;
        let at = 1 + self.rng.below(reach);
        match self.rng.below(8) {
            0..=3 => disk.crash_at_operation(at),
            4 => disk.fail_sync(1 + at / 4),
            5 => disk.fail_write(1 + at / 2),
            6 => disk.short_write(1 + at / 2),
            _ => disk.fail_directory_sync(1 + at / 12),
        }
        self.has_fault = true;
    }

    /// The process ends, or the whole machine does.
    fn die(&mut self) {
        match self.rng.below(8) {
            0..=2 => self.driver.kill(),
            3 | 4 => self.driver.cut_power_losing_unsynced(),
            _ => self.driver.cut_power(),
        }
        if self.rng.chance(4) {
            self.driver.disk.drop_caches();
        }
        self.has_fault = false;
        if self.rng.chance(2) {
            self.end_of_faults();
        }
        // Clocks jump, a day either way.
        self.driver.wall_ms += match self.rng.below(6) {
            0 => -86_400_000,
            1 => 86_400_000,
            _ => 1_000,
        };
    }

    /// Works until something fails, or for a while.
    fn live(&mut self) -> Checked {
        if !self.has_fault && self.rng.chance(2) {
            let reach = [20, 100, 250][self.rng.below(3) as usize];
            self.set_fault(reach);
        } else if self.rng.chance(6) {
            let used = self.driver.disk.used_bytes();
            self.driver.disk.set_capacity_bytes(Some(used + self.rng.below(300 << 10)));
            self.is_full = true;
        }
        for _ in 0..self.rng.below(120) {
            if self.act()? == Way::Down {
                return Ok(());
            }
        }
        if self.rng.chance(8) {
            let closed = self.driver.close();
            check!(closed.is_ok() || self.has_fault, "an orderly end failed: {closed:?}");
        }
        Ok(())
    }

    fn act(&mut self) -> Checked<Way> {
        let life = self.driver.life();
        life.time.wall_ms += 3;
        life.time.log_ms += 3;
        match self.rng.below(24) {
            0..=7 => {
                let count = if self.rng.chance(4) { 2 + self.rng.below(4) } else { 1 };
                let specs: Vec<Spec> = (0..count).map(|_| self.spec()).collect();
                if self.driver.try_append(&specs).is_err() {
                    return Ok(self.beside(|driver| driver.prepare_spare()));
                }
            }
            8 | 9 => {
                self.driver.take_group();
            }
            10..=17 => return Ok(self.at_the_writer(Driver::step)),
            18 => return Ok(self.at_the_writer(Driver::commit)),
            19 => return Ok(self.at_the_writer(Driver::quiet)),
            20 | 21 => return Ok(self.beside(|driver| driver.run_job().map(|_| ()))),
            22 => return Ok(self.beside(Driver::prepare_spare)),
            _ => {
                let subject = 1 + self.rng.below(4);
                let from = self.rng.below(self.driver.model.next_offset(subject) + 1);
                if let Err(text) = self.driver.read_back(subject, from) {
                    check!(self.driver.disk.is_stopped(), "{text}");
                    return Ok(Way::Down);
                }
            }
        }
        Ok(Way::On)
    }

    /// A failure at the writer ends the process: it is poisoned.
    fn at_the_writer(&mut self, act: impl FnOnce(&mut Driver) -> Checked) -> Way {
        match act(&mut self.driver) {
            Ok(()) => Way::On,
            Err(_) => {
                assert!(self.has_fault || self.is_full, "the writer failed for no reason");
                Way::Down
            }
        }
    }

    /// A failure beside the log harms nothing, unless the machine has stopped.
    fn beside(&mut self, act: impl FnOnce(&mut Driver) -> std::io::Result<()>) -> Way {
        match act(&mut self.driver) {
            Err(_) if self.driver.disk.is_stopped() => Way::Down,
            outcome => {
                assert!(outcome.is_ok() || self.has_fault || self.is_full, "a job failed for no reason: {outcome:?}");
                Way::On
            }
        }
    }

    fn spec(&mut self) -> Spec {
        let subject = 1 + self.rng.below(4);
        if self.rng.chance(6) {
            let value = self.rng.next_u64().to_le_bytes();
            return Spec::fact(subject, &value);
        }
        let len = match self.rng.below(4) {
            0 => self.rng.below(32),
            1 => 4_092,
            _ => self.rng.below(1_500),
        };
        let mut content = vec![0; len as usize];
        self.rng.fill(&mut content);
        let mut spec = Spec { span: 1 + self.rng.below(5) as u32, ..Spec::records(subject, &content) };
        if self.rng.chance(8) {
            spec.skip = 1;
        }
        if self.rng.chance(10) {
            let fact = Spec::fact(subject, b"carried along");
            spec.facts = fact.facts;
        }
        if self.rng.chance(12) {
            spec = Spec { kind: EntryKind::Commit, span: 0, skip: 0, ..spec };
            spec.payload = payload(b"a cursor");
            spec.head_len = 8;
        }
        spec
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    On,
    Down,
}
