//! When records are due, and waiting for that moment more exactly than the runtime's timers do, which know milliseconds only.

use std::io::ErrorKind;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;
use tokio::time::Instant;

use crate::cli::exit::{CliError, Exit};

/// The moments at which one of several producers' records are due: theirs together come at an even rate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) started: Instant,
    pub(super) per_second: f64,
    /// Which of the producers this is, from 0, and how many there are.
    pub(super) place: u64,
    pub(super) producers: u64,
}

impl Pace {
    /// When this producer's record number `number`, from 0, is due.
    pub(super) fn due(&self, number: u64) -> Instant {
        let among_all = number * self.producers + self.place;
        self.started + Duration::from_secs_f64(among_all as f64 / self.per_second)
    }

    /// How many of this producer's records are due by `now`.
    pub(super) fn due_by(&self, now: Instant) -> u64 {
        let among_all = (now.saturating_duration_since(self.started).as_secs_f64() * self.per_second) as u64;
        // Those with numbers 0..=among_all are due, of which every one in so many is this producer's.
        (among_all + self.producers - self.place) / self.producers
    }
}

/// A timer of the operating system.
#[derive(Debug)]
pub(super) struct Timer {
    /// No pipe, but a descriptor that becomes readable like one, which is all that is asked of it.
    descriptor: Receiver,
}

impl Timer {
    /// A timer on the present runtime.
    ///
    /// # Errors
    ///
    /// If the system gives none.
    pub(super) fn new() -> Result<Self, CliError> {
        let failed =
            |error: std::io::Error| CliError::new(Exit::No, "no_timer", format!("could not get a timer: {error}"));
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let descriptor = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(|errno| failed(errno.into()))?;
        Ok(Self { descriptor: Receiver::from_owned_fd_unchecked(descriptor).map_err(failed)? })
    }

    /// Waits until `moment`. Cancel safe.
    pub(super) async fn until(&self, moment: Instant) {
        loop {
            let wait = moment.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return;
            }
            let nothing = Timespec { tv_sec: 0, tv_nsec: 0 };
            let value = Timespec::try_from(wait).unwrap_or(nothing);
            let setting = Itimerspec { it_interval: nothing, it_value: value };
            // Setting it forgets what it had to say before.
            if timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &setting).is_err() {
                return tokio::time::sleep_until(moment).await;
            }
            self.rang().await;
        }
    }

    async fn rang(&self) {
        // An error would come again and again; the loop above then looks at the clock as often.
        while self.descriptor.readable().await.is_ok() {
            match self.descriptor.try_read(&mut [0; 8]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn producers_take_turns_at_an_even_rate() {
        let started = Instant::now();
        let pace = |place| Pace { started, per_second: 1_000.0, place, producers: 4 };
        assert_eq!(pace(0).due(0), started);
        assert_eq!(pace(1).due(0), started + Duration::from_millis(1));
        assert_eq!(pace(3).due(2), started + Duration::from_millis(11));
    }

    #[test]
    fn what_is_due_by_a_moment_is_what_was_due_before_it() {
        let started = Instant::now();
        for place in 0..3 {
            let pace = Pace { started, per_second: 1_000.0, place, producers: 3 };
            for tenths in 0..400 {
                // Between two moments, where rounding can't matter.
                let now = started + Duration::from_micros(tenths * 100 + 50);
                let due = (0..100).filter(|number| pace.due(*number) <= now).count() as u64;
                assert_eq!(pace.due_by(now), due, "place {place}, {tenths} tenths");
            }
        }
    }

    #[tokio::test]
    async fn the_timer_never_rings_early() {
        let timer = Timer::new().unwrap();
        for micros in [0, 50, 300, 1_500] {
            let moment = Instant::now() + Duration::from_micros(micros);
            timer.until(moment).await;
            assert!(Instant::now() >= moment);
        }
        // Given up and set again: what it had to say before is not heard.
        let far = Instant::now() + Duration::from_secs(60);
        assert!(tokio::time::timeout(Duration::from_millis(5), timer.until(far)).await.is_err());
        let moment = Instant::now() + Duration::from_millis(2);
        timer.until(moment).await;
        assert!(Instant::now() >= moment);
    }
}
