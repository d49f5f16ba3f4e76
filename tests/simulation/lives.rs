//! The broker's lives and deaths, and the whole of a simulation.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidelog::config::{BrokerConfig, MediumChoice};
use tidelog::local_broker::{LocalBroker, LocalBrokerConfig};
use tidelog_protocol::{ErrorCode, Limits, StreamSettings};
use tidelog_storage::medium::SimulatedRng;
use tidelog_storage::{Entropy, Sabotages};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

use super::Checked;
use super::consumers;
use super::disk::{DiskPace, SYNC_TIMEOUT, SharedPace};
use super::programs::Program;
use super::stranger;
use super::tally::Tally;
use super::world::{World, stream_name};
use crate::check;

/// Programs with a name.
const NAMES: [&str; 5] = ["anna", "bert", "carl", "dora", "erin"];
/// Streams; the last one is written to by everybody.
const STREAMS: usize = 3;
/// Starts that may fail in a row before the faults end.
const FAULTY_STARTS_MAX: u64 = 4;
/// When nothing is in the way everything comes to its end within this.
const REST: Duration = Duration::from_secs(60);

/// What came of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    /// A number over everything that has happened, and how much that was.
    pub(crate) digest: (u64, u64),
}

/// Lets a broker die `crashes` times by what follows from `seed`. An error says what was wrong and what led there.
pub(crate) fn run(seed: u64, crashes: u64, sabotages: Sabotages) -> Checked<Outcome> {
    simulate(seed, sabotages, async |lives| lives.run(crashes).await)
}

/// Lets exactly this happen to what follows from `seed`, then nothing bad any more. The outcome's tally says whether it
/// came to it.
pub(crate) fn run_once(seed: u64, mishap: Mishap, sabotages: Sabotages) -> Checked<Outcome> {
    simulate(seed, sabotages, async |lives| lives.run_once(mishap).await)
}

fn simulate(seed: u64, sabotages: Sabotages, lives: impl AsyncFnOnce(Lives) -> Checked<Outcome>) -> Checked<Outcome> {
    let panics = panics::counted();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let local = LocalSet::new();
    let (outcome, trace) = local.block_on(&runtime, async {
        let world = World::new(seed, sabotages);
        let outcome = lives(Lives::new(&world)).await;
        (outcome, world.trace.clone())
    });
    drop((local, runtime));
    let outcome = match panics::counted() - panics {
        0 => outcome,
        count => Err(format!("{count} panics in tasks, see above")),
    };
    outcome.map_err(|text| format!("{text}\nwhat led there (seconds):\n{}", trace.text()))
}

/// A task that panics is gone without a word: here it is counted, on each thread.
mod panics {
    use std::cell::Cell;
    use std::sync::Once;

    thread_local! {
        static COUNT: Cell<u64> = const { Cell::new(0) };
    }

    /// Panics of this thread since this was called first.
    pub(super) fn counted() -> u64 {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                COUNT.set(COUNT.get() + 1);
                before(info);
            }));
        });
        COUNT.get()
    }
}

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mishap {
    /// The power fails at the n-th disk operation of the first life.
    PowerFailsAtOperation(u64),
    /// The power fails at the n-th message.
    PowerFailsAtMessage(u64),
    /// The n-th message is lost with its connection.
    ConnectionBreaksAtMessage(u64),
}

/// How a life is to end.
#[derive(Debug, Clone, Copy)]
enum End {
    /// At the n-th disk operation.
    Operation(u64),
    /// At the n-th message.
    Message(u64),
    /// At a moment.
    Moment,
    /// In good order.
    Stop,
    /// At a moment, some time after something has failed.
    Fault,
}

struct Lives {
    world: Rc<World>,
    rng: SimulatedRng,
    /// The disk's pace in the present life.
    pace: Option<SharedPace>,
    /// The broker of the last life took no more writes in the end.
    is_poisoned: bool,
    tally: Tally,
}

impl Lives {
    fn new(world: &Rc<World>) -> Self {
        Self { world: Rc::clone(world), rng: world.luck(), pace: None, is_poisoned: false, tally: Tally::default() }
    }

    async fn run(mut self, crashes: u64) -> Checked<Outcome> {
        self.spawn_actors();
        while self.tally.crashes < crashes {
            let broker = self.start().await?;
            self.live(broker).await?;
            sleep(Duration::from_millis(self.rng.below(800))).await;
        }
        self.clear_up().await
    }

    async fn run_once(mut self, mishap: Mishap) -> Checked<Outcome> {
        /// Long enough for some hundred messages.
        const LIFE: Duration = Duration::from_millis(400);
        self.spawn_actors();
        let broker = self.start().await?;
        let end = match mishap {
            Mishap::PowerFailsAtOperation(n) => {
                self.world.disk.crash_at_operation(n);
                End::Operation(n)
            }
            Mishap::PowerFailsAtMessage(n) => End::Message(n),
            Mishap::ConnectionBreaksAtMessage(n) => {
                self.world.weather.break_at(n);
                End::Stop
            }
        };
        self.live_until(broker, end, LIFE).await?;
        self.clear_up().await
    }

    /// Nothing bad happens any more: everything comes to its end and is compared.
    async fn clear_up(mut self) -> Checked<Outcome> {
        let world = Rc::clone(&self.world);
        world.trace.line(format_args!("it clears up"));
        world.clear_up();
        let broker = self.start().await?;
        self.come_to_rest(broker).await?;
        world.verdict()?;
        self.verify()?;
        let (messages, breaks, stalls) = world.weather.counts();
        let planned_breaks = world.weather.planned_breaks();
        let time_ms = world.trace.elapsed().as_millis() as u64;
        let mut tally = Tally { messages, breaks, stalls, planned_breaks, time_ms, ..self.tally };
        tally.add(&world.ledger.borrow().tally);
        Ok(Outcome { tally, digest: world.trace.digest() })
    }

    fn spawn_actors(&self) {
        let world = &self.world;
        let programs = NAMES.iter().enumerate().map(|(at, name)| Program::new(world, name, vec![at % 2, STREAMS - 1]));
        let nameless = Program::new(world, "nobody", vec![STREAMS - 1]);
        let programs: Vec<_> = programs.chain([nameless]).collect();
        let actors = Rc::clone(world);
        spawn_local(async move {
            let world = actors;
            let made = make_streams(Rc::clone(&world));
            world.watch("whoever makes the streams", made).await;
            let programs = programs.into_iter().map(|program| {
                let world = Rc::clone(&world);
                spawn_local(async move { world.watch("a program", program.run()).await })
            });
            let programs: Vec<_> = programs.collect();
            for stream in [0, STREAMS - 1, STREAMS - 1] {
                let world = Rc::clone(&world);
                spawn_local(async move {
                    let following = consumers::follow(Rc::clone(&world), stream);
                    world.watch("a consumer", following).await;
                });
            }
            let roaming = Rc::clone(&world);
            spawn_local(async move {
                roaming.watch("a stranger", stranger::roam(Rc::clone(&roaming), STREAMS - 1)).await;
            });
            let auditing = Rc::clone(&world);
            spawn_local(async move {
                auditing.watch("an auditor", consumers::keep_auditing(Rc::clone(&auditing), STREAMS)).await;
            });
            let asking = Rc::clone(&world);
            spawn_local(async move {
                asking.watch("a clerk", consumers::keep_asking(Rc::clone(&asking), NAMES.to_vec())).await;
            });
            for program in programs {
                let _ = program.await;
            }
            world.is_done.set(true);
            world.changed.notify_waiters();
        });
    }

    // Starts.

    /// Starts until it works, dying in the middle of some starts.
    async fn start(&mut self) -> Checked<LocalBroker> {
        let world = Rc::clone(&self.world);
        for attempt in 0.. {
            self.world.clock.jump_ms([0, 0, 0, 86_400_000, -86_400_000][self.rng.below(5) as usize]);
            let may_fail = attempt < FAULTY_STARTS_MAX && !world.is_calm() && self.rng.chance(4);
            if may_fail {
                let reach = [6, 25, 60][self.rng.below(3) as usize];
                world.disk.crash_at_operation(1 + self.rng.below(reach));
            }
            match self.open() {
                Ok(broker) => {
                    // The rest of it strikes in this life, or never.
                    world.disk.crash_at_operation(0);
                    let report = broker.recovery_report();
                    world.trace.line(format_args!("start {}: {report:?}", report.start_count));
                    check!(report.damages.is_empty(), "damage where there is none: {:?}", report.damages);
                    check!(report.set_aside.is_empty(), "set aside for no reason: {:?}", report.set_aside);
                    self.tally.segments += report.segments as u64;
                    return Ok(broker);
                }
                Err(error) => {
                    check!(world.disk.is_stopped(), "the broker did not start, for no reason: {error}");
                    world.trace.line(format_args!("a start that dies: {error}"));
                    self.tally.crashes += 1;
                    self.tally.in_start += 1;
                    self.cut_power();
                }
            }
        }
        Err("it never starts".to_owned())
    }

    fn open(&mut self) -> Result<LocalBroker, tidelog::StartError> {
        let world = &self.world;
        let pace = Rc::new(DiskPace {
            disk: world.disk.clone(),
            rng: RefCell::new(world.luck()),
            hangs: Cell::new(false),
            trace: world.trace.clone(),
            death: Arc::clone(&world.death),
        });
        self.pace = Some(Rc::clone(&pace));
        let limits = Limits {
            record_bytes_max: 4 << 10,
            batch_content_bytes_max: 8 << 10,
            key_bytes_max: 1 << 10,
            headers_bytes_max: 1 << 10,
            ..Limits::default()
        };
        let broker = BrokerConfig {
            medium: MediumChoice::Custom(Arc::new(world.disk.for_this_life())),
            limits,
            // Small, so that a run goes through many segments and writers wait for room.
            write_buffer_bytes: 256 << 10,
            segment_first_bytes: 64 << 10,
            segment_bytes: 192 << 10,
            sync_timeout: SYNC_TIMEOUT,
            ..BrokerConfig::in_memory()
        };
        LocalBroker::open(LocalBrokerConfig {
            broker,
            clock: Arc::clone(&world.clock) as _,
            entropy: Entropy::Seeded(world.luck().next_u64()),
            pace,
            sabotages: world.sabotages,
        })
    }

    // Lives.

    async fn live(&mut self, broker: LocalBroker) -> Checked {
        let end = self.choose_end();
        let longest = [300, 2_000, 6_000][self.rng.below(3) as usize];
        let time = Duration::from_micros(1 + self.rng.below(longest * 1_000));
        self.live_until(broker, end, time).await
    }

    async fn live_until(&mut self, mut broker: LocalBroker, end: End, time: Duration) -> Checked {
        let world = Rc::clone(&self.world);
        world.trace.line(format_args!("this life ends by {end:?} or after {time:?}"));
        world.weather.begin_life(if let End::Message(n) = end { Some(n) } else { None });
        let full_disk = self.may_fill_the_disk(time);
        let mut listener = world.network.listen();
        let stop = Arc::clone(broker.stop());
        let has_ended = {
            let mut running = std::pin::pin!(broker.run(&mut listener));
            let at_moment = tokio::select! {
                biased;
                () = world.violated.notified() => return world.verdict(),
                () = world.death.notified() => false,
                () = &mut running => return Err("the broker stopped by itself".to_owned()),
                () = sleep(time) => true,
            };
            if at_moment && matches!(end, End::Stop) {
                stop.notify_one();
                tokio::select! {
                    biased;
                    () = world.violated.notified() => return world.verdict(),
                    () = &mut running => true,
                    () = sleep(REST) => return Err("the broker does not stop".to_owned()),
                }
            } else {
                match end {
                    _ if at_moment => self.tally.at_moment += 1,
                    End::Message(_) => self.tally.at_message += 1,
                    _ => self.tally.at_operation += 1,
                }
                false
            }
        };
        full_disk.abort();
        // A start needs room that nobody may have taken from it; a disk that stays full is another test's matter.
        world.disk.set_capacity_bytes(None);
        let refused = broker.counters().refusals().find(|(code, _)| *code == ErrorCode::DiskFull);
        self.tally.refused_full += refused.map_or(0, |(_, count)| count);
        self.is_poisoned = broker.counters().is_poisoned();
        self.tally.poisoned += u64::from(self.is_poisoned);
        if has_ended {
            world.trace.line(format_args!("the broker has stopped"));
            self.tally.stops += 1;
            broker.close();
            drop(listener);
            world.weather.end_life();
            if self.rng.chance(2) {
                self.cut_power();
            }
            return Ok(());
        }
        world.weather.end_life();
        world.network.broker_dies(|_| world.weather.end_of_broker());
        drop(broker);
        drop(listener);
        self.tally.crashes += 1;
        self.cut_power();
        Ok(())
    }

    fn choose_end(&mut self) -> End {
        let disk = &self.world.disk;
        let reach = [8, 40, 150][self.rng.below(3) as usize];
        let at = 1 + self.rng.below(reach);
        match self.rng.below(16) {
            0..=3 => {
                disk.crash_at_operation(at);
                End::Operation(at)
            }
            4..=8 => End::Message(at * 4),
            9..=11 => End::Moment,
            12 => End::Stop,
            _ => {
                self.tally.faults += 1;
                match self.rng.below(7) {
                    0..=2 => disk.fail_sync(1 + self.rng.below(12)),
                    3 => disk.fail_write(1 + self.rng.below(20)),
                    4 => disk.short_write(1 + self.rng.below(20)),
                    5 => disk.fail_directory_sync(1 + self.rng.below(3)),
                    _ => self.pace.iter().for_each(|pace| pace.hangs.set(true)),
                }
                End::Fault
            }
        }
    }

    /// Lets the disk fill up in some lives, and have room again in some of these.
    fn may_fill_the_disk(&mut self, life: Duration) -> JoinHandle<()> {
        let fills = self.rng.chance(5);
        let room = self.rng.below(150 << 10);
        let until = life.mul_f64(self.rng.below(1_500) as f64 / 1_000.0);
        let world = Rc::clone(&self.world);
        if fills {
            self.tally.full += 1;
            world.trace.line(format_args!("the disk has room for {room} more bytes for {until:?}"));
            world.disk.set_capacity_bytes(Some(world.disk.used_bytes() + room));
        }
        spawn_local(async move {
            if fills {
                sleep(until).await;
                world.disk.set_capacity_bytes(None);
            }
        })
    }

    /// The process ends, or the whole machine does.
    fn cut_power(&mut self) {
        let disk = &self.world.disk;
        // A broker that refuses writes is started again on the machine as it is: the page cache may lie then.
        let how = if self.is_poisoned { self.rng.below(3) } else { self.rng.below(8) };
        self.is_poisoned = false;
        match how {
            0 | 1 => disk.kill(),
            2..=4 => disk.crash_losing_unsynced(),
            _ => disk.crash(),
        }
        if self.rng.chance(4) {
            disk.drop_caches();
        }
        self.world.trace.line(format_args!("the end: {}", ["killed", "power cut"][usize::from(how > 1)]));
    }

    // The end.

    /// Nothing is in the way any more: everybody finishes, and everything is read and compared.
    async fn come_to_rest(&mut self, mut broker: LocalBroker) -> Checked {
        let world = Rc::clone(&self.world);
        world.weather.begin_life(None);
        let mut listener = world.network.listen();
        let stop = Arc::clone(broker.stop());
        let mut rng = world.luck();
        let finishing = async {
            while !world.is_done.get() {
                let mut changed = std::pin::pin!(world.changed.notified());
                changed.as_mut().enable();
                if !world.is_done.get() {
                    changed.await;
                }
            }
            for stream in 0..STREAMS {
                consumers::audit(&world, stream, &mut rng).await?;
            }
            consumers::ask_for_epochs(&world, &NAMES, &mut rng).await
        };
        let finishing = async {
            let finished = finishing.await;
            stop.notify_one();
            finished
        };
        let ended = timeout(REST, async {
            tokio::select! {
                biased;
                () = world.violated.notified() => world.verdict(),
                ((), finished) = async { tokio::join!(broker.run(&mut listener), finishing) } => finished,
            }
        });
        ended.await.unwrap_or_else(|_| Err("it does not come to rest although nothing is in the way".to_owned()))?;
        broker.close();
        Ok(())
    }

    /// Every byte of the log is as it should be.
    fn verify(&self) -> Checked {
        let report = tidelog_storage::verify(&self.world.disk, &mut |_| ()).map_err(|error| error.to_string())?;
        check!(report.damages.is_empty() && report.foreign.is_empty(), "the log is damaged: {report:?}");
        Ok(())
    }
}

/// Makes the streams, and finds them made when the answer was lost.
async fn make_streams(world: Rc<World>) -> Checked {
    let mut rng = world.luck();
    let mut index = 0;
    while index < STREAMS {
        let Some(client) = world.client(&mut rng).await? else { continue };
        while index < STREAMS {
            let made = client.create_stream(&stream_name(index), StreamSettings::default(), true).await;
            let Some(made) = world.patiently(made)? else { break };
            world.ledger.borrow_mut().stream_is(made.name.as_str(), made.id)?;
            index += 1;
        }
    }
    Ok(())
}
