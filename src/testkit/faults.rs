//! Faults on command, named after what an operator would see.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::clock::TestClock;
use super::disk::Disk;
use super::ordeal::{Death, Ordeal, Step, Strike};
use super::wire::Wire;

/// What can befall a [`TestBroker`](super::TestBroker).
///
/// A fault strikes at the next occasion, once or as often as it says; what lasts, lasts until it is given as zero or
/// until [`calm`](Self::calm). After a death that was asked for here the broker is started again at once, as by whatever
/// watches over it in production: on the same disk, port and key. Publish requests are what occasions are counted by: a
/// client sends several records in one, if they are there at the same time.
#[derive(Debug)]
pub struct Faults {
    pub(super) ordeal: Arc<Ordeal>,
    pub(super) wire: Arc<Wire>,
    pub(super) disk: Disk,
    pub(super) clock: Arc<TestClock>,
}

impl Faults {
    // Network.

    /// The next `times` answers to publishers are lost, each with its connection. What they were to say has happened:
    /// the records are stored, and who has published them does not know.
    pub fn lose_answers(&self, times: u32) {
        self.ordeal.script(Step::BeforeAnswer, times, Strike::Cut);
    }

    /// The next `times` publish requests are delivered twice: the connection breaks behind each, before its answer, and
    /// the client sends it again while the first is on its way to the disk.
    pub fn deliver_twice(&self, times: u32) {
        self.ordeal.script(Step::AfterAccept, times, Strike::Cut);
    }

    /// The next `times` publish requests are lost with their connection, before the broker has seen them.
    pub fn lose_requests(&self, times: u32) {
        self.ordeal.script(Step::BeforeAccept, times, Strike::Cut);
    }

    /// Answers to publishers leave so much later, from now on.
    pub fn delay_answers(&self, by: Duration) {
        self.ordeal.change_standing(|standing| standing.answers_late = by);
    }

    /// Records leave for consumers so much later, each batch of them, from now on: what a slow consumer is to the
    /// broker, and a slow broker to the consumer.
    pub fn slow_consumers(&self, by: Duration) {
        self.ordeal.change_standing(|standing| standing.deliveries_late = by);
    }

    /// Cuts all connections now. Returns how many there were.
    pub fn cut_connections(&self) -> usize {
        let cut = self.wire.connections.cut();
        self.ordeal.tell(format!("{cut} connections cut"));
        cut
    }

    /// The network is away for so long, from now on: nothing arrives and nothing leaves, and nobody is told.
    pub fn partition(&self, time: Duration) {
        self.ordeal.tell(format!("network away for {time:?}"));
        self.ordeal.cut_off(time);
    }

    /// Every round trip takes so much longer, from now on.
    pub fn latency(&self, more: Duration) {
        self.ordeal.change_standing(|standing| standing.latency = more);
    }

    // Crashes.

    /// The broker is killed when the next publish request is at `step`, as by SIGKILL.
    pub fn crash_at(&self, step: Step) {
        self.ordeal.script(step, 1, Strike::Dies(Death::Killed));
    }

    /// The same when so many requests have passed there.
    pub fn crash_at_nth(&self, step: Step, passes: u32) {
        self.ordeal.script_after(step, passes, 1, Strike::Dies(Death::Killed));
    }

    /// The power fails when the next publish request is at `step`: of what was not synced any part is there afterwards,
    /// in any order.
    ///
    /// # Panics
    /// On a real folder, whose page cache is this machine's: leave out `on_disk()`.
    #[track_caller]
    pub fn power_loss_at(&self, step: Step) {
        self.must_simulate("loses power");
        self.ordeal.script(step, 1, Strike::Dies(Death::PowerLost));
    }

    /// The next write to the log gets only partly there, and the broker dies with it: by the loss of power, on a real
    /// folder killed.
    pub fn torn_write(&self) {
        self.ordeal.script(Step::BeforeWrite, 1, Strike::Torn);
    }

    // Disk.

    /// The next sync of the log fails. The broker acknowledges nothing more (`poisoned`) until it is started again.
    pub fn failing_fsync(&self) {
        self.ordeal.script(Step::BeforeSync, 1, Strike::SyncFails);
    }

    /// The next write to the log fails. As after a failing sync.
    pub fn failing_write(&self) {
        self.ordeal.script(Step::BeforeWrite, 1, Strike::WriteFails);
    }

    /// Every sync of the log takes so much longer, from now on. More than the broker's `sync_timeout` is a disk that
    /// hangs, which poisons it.
    pub fn slow_disk(&self, by: Duration) {
        self.ordeal.change_standing(|standing| standing.disk_late = by);
    }

    /// The disk is full, or has space again. What was prepared ahead can still be written: publishes are refused
    /// (`disk_full`) when that is used up.
    pub fn full_disk(&self, is_full: bool) {
        self.ordeal.tell(format!("disk full: {is_full}"));
        self.disk.set_full(is_full);
    }

    /// Flips a bit in the middle of these bytes of a record, in the first place where the log has them: readers are told
    /// of damage there. Consumers that are caught up have been served already. Bytes that stand twice, in two records or
    /// as part of another, may not be those that were meant: the [story](Self::story) says where the bit was.
    ///
    /// # Errors
    /// No segment has these bytes, or they could not be changed.
    pub fn flip_bit(&self, bytes_of_record: &[u8]) -> io::Result<()> {
        let place = self.disk.flip_bit_within(bytes_of_record)?;
        self.ordeal.tell(format!("a bit flipped in {place}"));
        Ok(())
    }

    // Time.

    /// The broker's wall clock jumps, either way.
    pub fn clock_jump_ms(&self, by_ms: i64) {
        self.ordeal.tell(format!("the clock jumps by {by_ms} ms"));
        self.clock.jump_ms(by_ms);
    }

    // The end of it.

    /// Takes back everything that has not struck yet and ends everything that lasts, for what is late already too. A full
    /// disk stays full. [In process](super::Start::in_process), what has left during a partition or with more latency
    /// arrives when it was to. Stopping or dropping the broker begins with this.
    pub fn calm(&self) {
        self.ordeal.calm();
    }

    /// What has befallen the broker so far, in order: a line each.
    #[must_use]
    pub fn story(&self) -> Vec<String> {
        self.ordeal.told()
    }

    #[track_caller]
    pub(super) fn must_simulate(&self, what: &str) {
        assert!(
            self.disk.can_lose_power(),
            "a broker in a real folder never {what}: the page cache is this machine's; leave out `on_disk()`, and the \
             broker is on a simulated disk"
        );
    }
}
