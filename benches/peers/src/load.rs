//! The loads: the same loops for every broker.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Barrier, Notify};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::Outcome;
use crate::content::{Check, Contents, number_of};
use crate::peer::{Flight, Peer, Producer, Reader};

/// So long without anything new a load has failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Records that a publisher under a rate may have unanswered.
const LIVE_FLIGHT: u64 = 1024;
/// A load without a bound in flight looks at the clock after so many.
const CLOCK_EVERY: u64 = 256;
/// Numbers of records of one producer of several.
const NUMBERS_EACH: u64 = 1 << 40;

/// When a load ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stop {
    After(Duration),
    Records(u64),
}

/// What a load has done.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(crate) records: u64,
    /// Until the last acknowledgement.
    pub(crate) elapsed: Duration,
    /// From sending to the acknowledgement, if one was in flight.
    pub(crate) latencies: Vec<Duration>,
}

/// Publishes records from `first` on.
pub(crate) async fn publish(
    producer: &mut impl Producer,
    contents: &mut Contents,
    first: u64,
    flight: Flight,
    stop: Stop,
) -> Outcome<Published> {
    let (window, start) = (flight.records(), Instant::now());
    let mut latencies = Vec::new();
    let (mut sent, mut acknowledged) = (0, 0);
    loop {
        let more = match stop {
            Stop::After(duration) if start.elapsed() >= duration => 0,
            Stop::After(_) => u64::MAX,
            Stop::Records(records) => records - sent,
        };
        let now = Instant::now();
        let room = if flight == Flight::Unbounded { CLOCK_EVERY } else { window - (sent - acknowledged) };
        let batch = more.min(room);
        for _ in 0..batch {
            producer.send(contents.record(first + sent)).await?;
            sent += 1;
        }
        producer.flush().await?;
        if flight == Flight::Unbounded && more > 0 {
            continue;
        }
        if acknowledged == sent {
            break;
        }
        acknowledged += timeout(PATIENCE, producer.acknowledged()).await.map_err(|_| "no acknowledgement came")??;
        if flight == Flight::One {
            latencies.push(now.elapsed());
        }
        if acknowledged > sent {
            return Err(format!("{acknowledged} records were acknowledged, {sent} were sent").into());
        }
    }
    Ok(Published { records: sent, elapsed: start.elapsed(), latencies })
}

/// Publishes from several connections at a time, one record in flight each; `warm_up` goes before and is not counted.
pub(crate) async fn publish_from_many<P: Peer>(
    peer: &mut P,
    producers: u64,
    contents: &Contents,
    warm_up: Duration,
    duration: Duration,
) -> Outcome<(Published, u64)> {
    let barrier = Rc::new(Barrier::new(usize::try_from(producers)?));
    let mut tasks = Vec::new();
    for number in 0..producers {
        let mut producer = peer.producer(Flight::One).await?;
        let (mut contents, barrier) = (contents.clone(), Rc::clone(&barrier));
        tasks.push(spawn_local(async move {
            let first = number * NUMBERS_EACH;
            let warmed = publish(&mut producer, &mut contents, first, Flight::One, Stop::After(warm_up)).await;
            // Whoever fails must not leave the others waiting.
            barrier.wait().await;
            let warmed = warmed?.records;
            let first = first + warmed;
            let published = publish(&mut producer, &mut contents, first, Flight::One, Stop::After(duration)).await?;
            producer.settle().await?;
            Outcome::Ok((published, warmed))
        }));
    }
    let (mut all, mut warmed_up) = (Published::default(), 0);
    for task in tasks {
        let (published, warmed) = task.await??;
        all.records += published.records;
        all.elapsed = all.elapsed.max(published.elapsed);
        all.latencies.extend(published.latencies);
        warmed_up += warmed;
    }
    Ok((all, warmed_up))
}

/// Reads the records `0..count` from the start, checks them, and tells how long that took.
pub(crate) async fn read_all<P: Peer>(peer: &mut P, count: u64, contents: &mut Contents) -> Outcome<Duration> {
    let mut check = Check::default();
    let start = Instant::now();
    let mut reader = peer.reader(false).await?;
    while check.seen() < count {
        let mut take = |record: &[u8]| check.take(record);
        timeout(PATIENCE, reader.next(&mut take)).await.map_err(|_| "no record came")??;
    }
    let elapsed = start.elapsed();
    check.finish(count, contents)?;
    Ok(elapsed)
}

/// What a subscriber has seen.
#[derive(Debug)]
pub(crate) struct Live {
    /// Records sent, those that warm up included.
    pub(crate) sent: u64,
    /// Those that were due.
    pub(crate) due: u64,
    /// From the moment each was due until the subscriber had it, without those that warm up.
    pub(crate) latencies: Vec<Duration>,
}

/// Publishes at a rate and reads at the same time.
pub(crate) async fn live<P: Peer>(
    peer: &mut P,
    per_second: u32,
    contents: &mut Contents,
    warm_up: Duration,
    duration: Duration,
) -> Outcome<Live> {
    let interval = Duration::from_secs(1) / per_second;
    let count_in = |duration: Duration| (duration.as_nanos() / interval.as_nanos()) as u64;
    let (due, warm_up) = (count_in(warm_up + duration), count_in(warm_up));
    let mut reader = peer.reader(true).await?;
    let mut producer = peer.producer(Flight::Records(LIVE_FLIGHT)).await?;
    let timer = Timer::start(interval)?;
    let start = timer.start;
    let due_at = move |number: u64| start + interval * u32::try_from(number).unwrap_or(u32::MAX);

    let arrivals = Rc::new(Arrivals::new(usize::try_from(due)?));
    let subscriber = spawn_local({
        let arrivals = Rc::clone(&arrivals);
        async move {
            loop {
                let mut take = |record: &[u8]| {
                    let now = Instant::now();
                    let number = number_of(record).unwrap_or(u64::MAX);
                    arrivals.take(number, now.saturating_duration_since(due_at(number)));
                };
                if let Err(error) = reader.next(&mut take).await {
                    arrivals.fail(error.to_string());
                    return;
                }
                arrivals.news.notify_one();
            }
        }
    });

    let give_up = due_at(due) + Duration::from_millis(500);
    let (mut sent, mut acknowledged) = (0, 0);
    while sent < due && Instant::now() < give_up {
        let late = count_in(start.elapsed()) + 1;
        let batch = late.min(due).saturating_sub(sent).min(LIVE_FLIGHT - (sent - acknowledged));
        for _ in 0..batch {
            producer.send(contents.record(sent)).await?;
            sent += 1;
        }
        producer.flush().await?;
        let waits_for_room = sent - acknowledged == LIVE_FLIGHT;
        tokio::select! {
            ticked = timer.tick(), if !waits_for_room => ticked?,
            told = timeout(PATIENCE, producer.acknowledged()), if acknowledged < sent => {
                acknowledged += told.map_err(|_| "no acknowledgement came")??;
            }
        }
    }
    while acknowledged < sent {
        acknowledged += timeout(PATIENCE, producer.acknowledged()).await.map_err(|_| "no acknowledgement came")??;
    }
    // The publisher may have given up before all were due; what it has sent must arrive.
    while arrivals.seen.get() < sent && arrivals.flaw.borrow().is_none() {
        timeout(PATIENCE, arrivals.news.notified()).await.map_err(|_| "the subscriber gets nothing more")?;
    }
    subscriber.abort();
    if let Some(flaw) = arrivals.flaw.take() {
        return Err(flaw.into());
    }
    let times = arrivals.times.take();
    let (seen, unseen) = times.split_at(usize::try_from(sent)?);
    if unseen.iter().any(Option::is_some) || seen.iter().any(Option::is_none) {
        return Err(format!("{sent} records were sent, and the subscriber saw others").into());
    }
    // Of fewer than were due, the same share warms up.
    let warmed = warm_up * sent / due;
    let latencies = seen.iter().skip(usize::try_from(warmed)?).flatten().copied().collect();
    Ok(Live { sent, due, latencies })
}

/// What a subscriber has seen, by number: with several connections of one producer the order is free.
struct Arrivals {
    times: RefCell<Vec<Option<Duration>>>,
    seen: Cell<u64>,
    flaw: RefCell<Option<String>>,
    news: Notify,
}

impl Arrivals {
    fn new(count: usize) -> Self {
        Self {
            times: RefCell::new(vec![None; count]),
            seen: Cell::new(0),
            flaw: RefCell::new(None),
            news: Notify::new(),
        }
    }

    fn take(&self, number: u64, after: Duration) {
        self.seen.set(self.seen.get() + 1);
        match usize::try_from(number)
            .ok()
            .and_then(|number| self.times.borrow_mut().get_mut(number).map(|place| place.replace(after)))
        {
            Some(None) => {}
            _ => self.fail(format!("record {number} came twice or was never sent")),
        }
    }

    fn fail(&self, flaw: String) {
        self.flaw.borrow_mut().get_or_insert(flaw);
        self.news.notify_one();
    }
}

/// Ticks at an interval, to the precision of the kernel: the runtime's own timers are rounded to milliseconds.
struct Timer {
    descriptor: AsyncFd<OwnedFd>,
    start: Instant,
}

impl Timer {
    fn start(interval: Duration) -> Outcome<Self> {
        let descriptor = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let interval = Timespec { tv_sec: interval.as_secs().try_into()?, tv_nsec: interval.subsec_nanos().into() };
        let start = Instant::now();
        let each = Itimerspec { it_interval: interval, it_value: interval };
        timerfd_settime(&descriptor, TimerfdTimerFlags::empty(), &each)?;
        #[expect(deprecated, reason = "unsound only for types that let go of their descriptor; an `OwnedFd` keeps it")]
        let descriptor = AsyncFd::new(descriptor)?;
        Ok(Self { descriptor, start })
    }

    async fn tick(&self) -> Outcome<()> {
        loop {
            let mut ready = self.descriptor.readable().await?;
            let read = ready.try_io(|descriptor| {
                let mut expirations = [0; 8];
                Ok(rustix::io::read(descriptor.get_ref(), &mut expirations)?)
            });
            if let Ok(read) = read {
                read?;
                return Ok(());
            }
        }
    }
}
