//! Whether to look out for what comes next instead of going to sleep: worth it only while it has come soon.

use std::time::Duration;

use tokio::time::Instant;

/// How soon the next one came, the last time.
#[derive(Debug)]
pub(crate) struct Anticipation {
    /// What comes within twice this would have come within this if nobody had been asleep: waking a thread on an idle core
    /// takes 35-40 µs.
    soon: Duration,
    waits_since: Option<Instant>,
    comes_soon: bool,
}

impl Anticipation {
    /// Of something that is looked out for during `watch`.
    pub(crate) const fn new(watch: Duration) -> Self {
        Self { soon: watch.saturating_mul(2), waits_since: None, comes_soon: true }
    }

    /// From now on the next one may come.
    pub(crate) fn begin(&mut self) {
        self.waits_since = Some(Instant::now());
    }

    /// It is there.
    pub(crate) fn end(&mut self) {
        if let Some(since) = self.waits_since.take() {
            self.comes_soon = since.elapsed() <= self.soon;
        }
    }

    /// Whether the last one came soon; true before there was any.
    pub(crate) const fn comes_soon(&self) -> bool {
        self.comes_soon
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_came_late_is_not_looked_out_for_until_one_comes_soon_again() {
        let mut next = Anticipation::new(Duration::from_millis(10));
        assert!(next.comes_soon());
        for (after_ms, comes_soon) in [(20, true), (21, false), (5, true), (300, false)] {
            next.begin();
            tokio::time::advance(Duration::from_millis(after_ms)).await;
            next.end();
            assert_eq!(next.comes_soon(), comes_soon, "after {after_ms} ms");
            // Nothing was waited for.
            next.end();
            assert_eq!(next.comes_soon(), comes_soon);
        }
    }
}
