//! When records without an acknowledgement were due. Pure.
//!
//! The moments stand once, in one short queue, and each stream's records name them by number: where a thousand streams are
//! written to, hardly two records in a row are of one stream, and what is noted for each is written to memory that has left
//! the processor's caches.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// The moments at which records were due, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Moments {
    /// How many records without an acknowledgement were due then.
    queue: VecDeque<(Instant, u64)>,
    /// Number of the first one. Numbers wrap around.
    first: u32,
}

/// Records of one stream without an acknowledgement, in their order: how many, and the number of their moment.
#[derive(Debug, Default)]
pub(super) struct Waiting(VecDeque<(u32, u32)>);

impl Moments {
    /// Notes the next record of a stream, which was due `at`: no earlier than any before it.
    pub(super) fn note(&mut self, waiting: &mut Waiting, at: Instant) {
        match self.queue.back_mut() {
            Some((last, records)) if *last == at => *records += 1,
            _ => self.queue.push_back((at, 1)),
        }
        let number = self.first.wrapping_add(self.queue.len() as u32 - 1);
        match waiting.0.back_mut() {
            Some((count, moment)) if *moment == number && *count < u32::MAX => *count += 1,
            _ => waiting.0.push_back((1, number)),
        }
    }

    /// The next `records` of a stream are acknowledged: tells for each part of them how long after it was due. `false` if
    /// there are not so many.
    pub(super) fn acknowledge(
        &mut self,
        waiting: &mut Waiting,
        records: u64,
        now: Instant,
        mut tell: impl FnMut(Duration, u64),
    ) -> bool {
        let mut left = records;
        while left > 0 {
            let Some((count, number)) = waiting.0.front_mut() else { return false };
            let place = number.wrapping_sub(self.first) as usize;
            let Some((at, outstanding)) = self.queue.get_mut(place) else { return false };
            let these = left.min(u64::from(*count));
            tell(now.saturating_duration_since(*at), these);
            left -= these;
            *outstanding -= these;
            *count -= these as u32;
            if *count == 0 {
                waiting.0.pop_front();
            }
        }
        while self.queue.front().is_some_and(|(_, outstanding)| *outstanding == 0) {
            self.queue.pop_front();
            self.first = self.first.wrapping_add(1);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_record_is_told_from_its_own_moment_in_whatever_order_streams_are_answered() {
        // Numbers wrap around in between.
        let mut moments = Moments { first: u32::MAX - 1, ..Moments::default() };
        let started = Instant::now();
        let at = |ms| started + Duration::from_millis(ms);
        let (mut one, mut other) = (Waiting::default(), Waiting::default());
        for ms in 0..4 {
            moments.note(&mut one, at(ms));
            moments.note(&mut other, at(ms));
            moments.note(&mut other, at(ms));
        }
        let mut acknowledge = |waiting: &mut Waiting, records, now| {
            let mut told = Vec::new();
            let is_known =
                moments.acknowledge(waiting, records, now, |time, count| told.push((time.as_millis(), count)));
            (is_known, told, moments.queue.len())
        };
        assert_eq!(acknowledge(&mut other, 5, at(10)), (true, vec![(10, 2), (9, 2), (8, 1)], 4));
        assert_eq!(acknowledge(&mut one, 2, at(11)), (true, vec![(11, 1), (10, 1)], 2));
        assert_eq!(acknowledge(&mut other, 3, at(12)), (true, vec![(10, 1), (9, 2)], 2));
        assert_eq!(acknowledge(&mut one, 3, at(13)), (false, vec![(11, 1), (10, 1)], 2), "there were two");
    }
}
