//! A bad network between a client and a broker: a UDP proxy that drops, doubles, delays and reorders datagrams, cuts the
//! line in one or both directions, holds back what was sent, and moves to another port as a NAT does.
//!
//! What becomes of the n-th datagram of a flow in a direction is a function of the seed, so that a seed repeats the
//! decisions; which datagrams there are depends on the clocks of both sides. It runs on a thread of its own: a test may
//! block, and cuts take effect at once.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use super::random::Random;

/// No datagram is longer.
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// Below the ports that systems give to whoever asks for any: while the proxy has closed its socket nobody takes the port.
const PORTS: std::ops::Range<u64> = 10_000..30_000;
/// Tries to find a free port, each on another loopback address.
const BINDS_MAX: usize = 100;

/// How often what happens to a datagram, in percent; the rest passes as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weather {
    pub dropped: u64,
    pub doubled: u64,
    /// Delayed by up to `delay_max`, and so overtaken by later ones.
    pub delayed: u64,
    pub delay_max: Duration,
}

/// What becomes of all datagrams in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gate {
    #[default]
    Open,
    Lose,
    /// Kept until [`UdpProxy::release`].
    Hold,
}

/// A state of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Line {
    pub up: Gate,
    pub down: Gate,
    /// The proxy's port is closed: a sender on the same machine is told that nobody listens there.
    pub is_refused: bool,
    /// Another port towards the broker, once when this state begins.
    pub rebinds: bool,
}

impl Line {
    pub const REFUSED: Self = Self { up: Gate::Lose, down: Gate::Lose, is_refused: true, rebinds: false };
    pub const SILENT: Self = Self { is_refused: false, ..Self::REFUSED };
    /// The broker hears everything, the client nothing.
    pub const ANSWERS_LOST: Self = Self { up: Gate::Open, down: Gate::Lose, is_refused: false, rebinds: false };
    /// What the client sends is late, and it hears nothing.
    pub const HELD: Self = Self { up: Gate::Hold, down: Gate::Lose, is_refused: false, rebinds: false };
    pub const OPEN: Self = Self { up: Gate::Open, down: Gate::Open, is_refused: false, rebinds: false };
    pub const REBOUND: Self = Self { rebinds: true, ..Self::OPEN };
}

/// What has happened so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub passed: u64,
    pub dropped: u64,
    pub doubled: u64,
    pub delayed: u64,
    /// Lost or held by a cut.
    pub cut: u64,
    pub released: u64,
}

impl Tally {
    pub fn with(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            dropped: self.dropped + other.dropped,
            doubled: self.doubled + other.doubled,
            delayed: self.delayed + other.delayed,
            cut: self.cut + other.cut,
            released: self.released + other.released,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

#[derive(Debug)]
struct State {
    weather: Weather,
    broker: SocketAddr,
    line: Line,
    /// The line's next states, each after so many datagrams of either direction.
    stages: VecDeque<(u64, Line)>,
    held: Vec<(Arc<UdpSocket>, Vec<u8>)>,
    is_released: bool,
    rebinds: bool,
    stops: bool,
    tally: Tally,
}

#[derive(Debug)]
struct Shared {
    seed: u64,
    address: SocketAddr,
    state: Mutex<State>,
    changed: Notify,
}

/// A running proxy; it ends when it is dropped.
#[derive(Debug)]
pub struct UdpProxy {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl UdpProxy {
    /// Starts one in front of `broker`.
    ///
    /// # Errors
    ///
    /// If no port is to be had.
    pub fn start(seed: u64, broker: SocketAddr, weather: Weather) -> io::Result<Self> {
        let front = bind_anywhere(seed)?;
        let state = State {
            weather,
            broker,
            line: Line::OPEN,
            stages: VecDeque::new(),
            held: Vec::new(),
            is_released: false,
            rebinds: false,
            stops: false,
            tally: Tally::default(),
        };
        let shared =
            Arc::new(Shared { seed, address: front.local_addr()?, state: Mutex::new(state), changed: Notify::new() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = Run { shared: Arc::clone(&shared), flows: HashMap::new(), front: None };
        let thread = std::thread::Builder::new()
            .name("udp-proxy".to_owned())
            .spawn(move || LocalSet::new().block_on(&runtime, run.run(front)))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Where clients find it.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// `tidelog://…` of a broker, reached through this proxy.
    pub fn url(&self, pin: &str) -> String {
        format!("tidelog://{}?pin={pin}", self.address())
    }

    /// Puts the line through these states, each after so many further datagrams of either direction; at once for 0.
    pub fn plan(&self, stages: impl IntoIterator<Item = (u64, Line)>) {
        let mut state = self.shared.lock();
        state.stages = stages.into_iter().collect();
        state.advance();
        drop(state);
        self.shared.changed.notify_one();
    }

    /// The line is whole again; what is held stays held.
    pub fn restore(&self) {
        self.plan([(0, Line::OPEN)]);
    }

    /// Sends what was held on to the broker, from the port that it would have come from.
    pub fn release(&self) {
        self.shared.lock().is_released = true;
        self.shared.changed.notify_one();
    }

    /// Clients that come from now on reach this broker; those that are there keep theirs.
    pub fn retarget(&self, broker: SocketAddr) {
        self.shared.lock().broker = broker;
    }

    pub fn tally(&self) -> Tally {
        self.shared.lock().tally
    }

    /// Datagrams that wait for [`release`](Self::release).
    pub fn held(&self) -> usize {
        self.shared.lock().held.len()
    }
}

impl Drop for UdpProxy {
    fn drop(&mut self) {
        self.shared.lock().stops = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the proxy's thread has panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Enters the states that are due.
    fn advance(&mut self) {
        while let Some((_, line)) = self.stages.pop_front_if(|(after, _)| *after == 0) {
            self.line = line;
            self.rebinds |= line.rebinds;
        }
    }

    /// A datagram has arrived: what the line does to those of its direction, which may have changed with this one.
    fn gate(&mut self, direction: Direction) -> Gate {
        let line = self.line;
        if let Some((after, _)) = self.stages.front_mut() {
            *after -= 1;
        }
        self.advance();
        match direction {
            Direction::Up => line.up,
            Direction::Down => line.down,
        }
    }
}

/// A free port on a loopback address of its own: whoever else binds any port of this machine does not collide with it.
fn bind_anywhere(seed: u64) -> io::Result<std::net::UdpSocket> {
    let process = u64::from(std::process::id());
    let mut random = Random::new(seed ^ process << 32 ^ u64::from(getrandom::u32().unwrap_or_default()));
    let mut last = io::Error::other("never tried");
    for _ in 0..BINDS_MAX {
        let [a, b, c] = [(); 3].map(|()| 1 + random.below(253) as u8);
        let port = PORTS.start + random.below(PORTS.end - PORTS.start);
        match std::net::UdpSocket::bind((Ipv4Addr::new(127, a, b, c), port as u16)) {
            Ok(socket) => {
                socket.set_nonblocking(true)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// One client's way to the broker.
#[derive(Debug)]
struct Flow {
    index: u64,
    client: SocketAddr,
    broker: SocketAddr,
    upstream: Mutex<Arc<UdpSocket>>,
    counts: Mutex<[u64; 2]>,
}

struct Run {
    shared: Arc<Shared>,
    flows: HashMap<SocketAddr, Arc<Flow>>,
    front: Option<Arc<UdpSocket>>,
}

/// Where answers leave: the front socket of the moment.
type Front = Arc<Mutex<Option<Arc<UdpSocket>>>>;

impl Run {
    async fn run(mut self, front: std::net::UdpSocket) {
        let shared = Arc::clone(&self.shared);
        self.front = Some(Arc::new(UdpSocket::from_std(front).expect("a socket that was just made")));
        let answers: Front = Arc::new(Mutex::new(self.front.clone()));
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let received = async {
                match &self.front {
                    Some(front) => front.recv_from(&mut buffer).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = shared.changed.notified() => {}
                received = received => {
                    // Errors are refusals of what was sent to a client that is gone.
                    if let Ok((len, client)) = received {
                        let datagram = buffer.get(..len).unwrap_or_default().to_vec();
                        self.carry_up(client, datagram, &answers).await;
                    }
                }
            }
            if !self.obey(&answers).await {
                return;
            }
        }
    }

    /// Does what was asked for meanwhile; `false` at the end.
    async fn obey(&mut self, answers: &Front) -> bool {
        let (line, rebinds, held) = {
            let mut state = self.shared.lock();
            if state.stops {
                return false;
            }
            let held =
                if std::mem::take(&mut state.is_released) { std::mem::take(&mut state.held) } else { Vec::new() };
            state.tally.released += held.len() as u64;
            (state.line, std::mem::take(&mut state.rebinds), held)
        };
        if line.is_refused != self.front.is_none() {
            self.front = None;
            *answers.lock().unwrap_or_else(PoisonError::into_inner) = None;
            if !line.is_refused {
                let front = UdpSocket::bind(self.shared.address).await.expect("nobody else takes this port");
                self.front = Some(Arc::new(front));
                answers.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.front);
            }
        }
        if rebinds {
            for flow in self.flows.values() {
                let socket = self.connect_up(flow, answers).await;
                *flow.upstream.lock().unwrap_or_else(PoisonError::into_inner) = socket;
            }
        }
        for (upstream, datagram) in held {
            // A broker that is gone does not get it.
            let _ = upstream.send(&datagram).await;
        }
        true
    }

    async fn carry_up(&mut self, client: SocketAddr, datagram: Vec<u8>, answers: &Front) {
        let flow = match self.flows.get(&client) {
            Some(flow) => Arc::clone(flow),
            None => self.new_flow(client, answers).await,
        };
        let upstream = Arc::clone(&flow.upstream.lock().unwrap_or_else(PoisonError::into_inner));
        let gate = self.shared.lock().gate(Direction::Up);
        match gate {
            Gate::Open => {
                let send = move |datagram: Vec<u8>| {
                    let upstream = Arc::clone(&upstream);
                    async move {
                        let _ = upstream.send(&datagram).await;
                    }
                };
                weather(&self.shared, &flow, Direction::Up, datagram, send).await;
            }
            Gate::Lose => self.shared.lock().tally.cut += 1,
            Gate::Hold => {
                let mut state = self.shared.lock();
                state.tally.cut += 1;
                state.held.push((upstream, datagram));
            }
        }
    }

    async fn new_flow(&mut self, client: SocketAddr, answers: &Front) -> Arc<Flow> {
        let broker = self.shared.lock().broker;
        let unconnected = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has ports");
        let flow = Arc::new(Flow {
            index: self.flows.len() as u64,
            client,
            broker,
            upstream: Mutex::new(Arc::new(unconnected)),
            counts: Mutex::default(),
        });
        let socket = self.connect_up(&flow, answers).await;
        *flow.upstream.lock().unwrap_or_else(PoisonError::into_inner) = socket;
        self.flows.insert(client, Arc::clone(&flow));
        flow
    }

    /// Another socket towards the broker, and the task that carries what comes back on it.
    async fn connect_up(&self, flow: &Arc<Flow>, answers: &Front) -> Arc<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has ports");
        socket.connect(flow.broker).await.expect("loopback is there");
        let socket = Arc::new(socket);
        let carry = carry_down(Arc::clone(&self.shared), Arc::clone(flow), Arc::clone(&socket), Arc::clone(answers));
        tokio::task::spawn_local(carry);
        socket
    }
}

async fn carry_down(shared: Arc<Shared>, flow: Arc<Flow>, upstream: Arc<UdpSocket>, answers: Front) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error is the refusal of something sent before to a broker that is gone; it may come back.
        let Ok(len) = upstream.recv(&mut buffer).await else { continue };
        let datagram = buffer.get(..len).unwrap_or_default().to_vec();
        let gate = shared.lock().gate(Direction::Down);
        // A line that changed with this datagram may want its socket closed.
        shared.changed.notify_one();
        if gate != Gate::Open {
            shared.lock().tally.cut += 1;
            continue;
        }
        let (client, answers) = (flow.client, Arc::clone(&answers));
        let send = move |datagram: Vec<u8>| {
            let front = answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
            async move {
                if let Some(front) = front {
                    let _ = front.send_to(&datagram, client).await;
                }
            }
        };
        weather(&shared, &flow, Direction::Down, datagram, send).await;
    }
}

/// What the weather makes of one datagram.
async fn weather<Sending>(
    shared: &Shared,
    flow: &Flow,
    direction: Direction,
    datagram: Vec<u8>,
    send: impl Fn(Vec<u8>) -> Sending + 'static,
) where
    Sending: Future<Output = ()> + 'static,
{
    let number = {
        let mut counts = flow.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let [up, down] = &mut *counts;
        let count = if direction == Direction::Up { up } else { down };
        *count += 1;
        *count
    };
    let mut random = Random::new(shared.seed ^ flow.index << 50 ^ (direction as u64) << 49 ^ number << 8);
    random.next();
    let (fate, again, delay) = (random.below(100), random.below(100), random.next());
    let (delay, is_doubled) = {
        let mut state = shared.lock();
        let Weather { dropped, doubled, delayed, delay_max } = state.weather;
        if fate < dropped {
            state.tally.dropped += 1;
            return;
        }
        let is_delayed = fate < dropped + delayed;
        let is_doubled = again < doubled;
        state.tally.passed += 1;
        state.tally.delayed += u64::from(is_delayed);
        state.tally.doubled += u64::from(is_doubled);
        let micros = delay % (delay_max.as_micros() as u64).max(1);
        (is_delayed.then(|| Duration::from_micros(micros)), is_doubled)
    };
    if is_doubled {
        send(datagram.clone()).await;
    }
    match delay {
        None => send(datagram).await,
        Some(delay) => {
            let sending = send(datagram);
            tokio::task::spawn_local(async move {
                // The delay is what the network does to it.
                tokio::time::sleep(delay).await;
                sending.await;
            });
        }
    }
}
