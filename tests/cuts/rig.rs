//! One cut from beginning to end: a broker, a proxy, a client that is watched, and somebody to repair the line.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidelog::{Broker, BrokerConfig};
use tidelog_client::{Address, Client, ClientConfig, QuicConnector, Trust, TrustEnvironment};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::harness::udp_proxy::{Tally, UdpProxy};

use super::plan::{Death, Plan, Step, Trouble};
use super::sequence::{self, Progress};
use super::watch::{Moment, Watch, WatchedConnector};

/// A whole case takes a second at most; this one hangs.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// Both sides give a connection up after the shorter one of their times: a client that has nothing to send notices soon
/// enough that its line is cut.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// The smallest window there is: some records use it up.
const WINDOW_BYTES: u32 = 64 << 10;

/// What a case was like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// Records that the broker was sent again although it had them.
    pub duplicates: u64,
    /// Connections that the client made.
    pub connections: u64,
    pub line: Tally,
}

impl Outcome {
    pub fn with(self, other: Self) -> Self {
        Self {
            duplicates: self.duplicates + other.duplicates,
            connections: self.connections + other.connections,
            line: self.line.with(other.line),
        }
    }
}

/// Carries a plan out.
///
/// # Errors
///
/// Says which promise was broken, or that nothing came of the plan.
pub async fn run(plan: Plan) -> Result<Outcome, String> {
    match timeout(HANGS_AFTER, run_to_its_end(plan)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("it hangs for {HANGS_AFTER:?}")),
    }
}

async fn run_to_its_end(plan: Plan) -> Result<Outcome, String> {
    let mut config = BrokerConfig { idle_timeout: IDLE_TIMEOUT, ..BrokerConfig::in_memory() };
    if plan.step == Step::Credit {
        config.quic_stream_receive_window_bytes = WINDOW_BYTES;
    }
    let broker = Broker::start(config).map_err(|error| error.to_string())?;
    let proxy = UdpProxy::start(plan.seed, broker.local_addr(), plan.weather()).map_err(|error| error.to_string())?;
    let proxy = Arc::new(proxy);
    let repairer = Arc::new(Repairer { plan, proxy: Arc::clone(&proxy), dies: Notify::new(), state: Mutex::default() });
    let mut progress = Progress::default();
    let url = proxy.url(broker.pin());
    let first = session(&url, &repairer, &plan, &mut progress);
    if plan.death == Death::Never {
        first.await?;
    } else {
        // The first run of the program, dropped with all that it has not settled. One that never noticed comes to its end.
        tokio::select! {
            biased;
            () = repairer.dies.notified() => {}
            ended = first => ended?,
        }
        // Whatever of it is still on its way stays there; the line is there for the next one.
        proxy.restore();
        session(&url, &repairer, &plan, &mut progress).await?;
    }
    proxy.restore();
    proxy.release();
    let connections = repairer.connections_if_cut()?;
    let direct = connector(&broker.address())?;
    let client = Client::connect(ClientConfig::new(Arc::new(direct))).await.map_err(|error| error.to_string())?;
    sequence::settle(&client, &plan, &progress).await?;
    let suppressed = broker.counters().duplicates_suppressed.get();
    if plan.death == Death::Never && suppressed < progress.duplicates {
        return Err(format!("receipts tell of {} duplicates, the broker of {suppressed}", progress.duplicates));
    }
    let outcome = Outcome { duplicates: suppressed, connections, line: proxy.tally() };
    // Joins threads; nothing else runs on this one meanwhile that they could wait for.
    drop(proxy);
    broker.shutdown();
    Ok(outcome)
}

async fn session(url: &str, repairer: &Arc<Repairer>, plan: &Plan, progress: &mut Progress) -> Result<(), String> {
    let told = Arc::clone(repairer);
    let watch = Watch::new(move |moment| told.handle(moment));
    let connector = WatchedConnector::new(connector(url)?, watch);
    let client = Client::connect(ClientConfig::new(Arc::new(connector))).await.map_err(|error| error.to_string())?;
    sequence::run(&client, plan, progress).await
}

fn connector(url: &str) -> Result<QuicConnector, String> {
    let address: Address = url.parse().map_err(|error: tidelog_client::AddressError| format!("{url}: {error}"))?;
    let trust = Trust::find(&address, None, &TrustEnvironment::of_process()).map_err(|error| error.to_string())?;
    QuicConnector::new(&address, &trust).map_err(|error| error.to_string())
}

/// Cuts the line when the client is where the plan says, and repairs it when the client has noticed.
struct Repairer {
    plan: Plan,
    proxy: Arc<UdpProxy>,
    /// The program's run is to end.
    dies: Notify,
    state: Mutex<Fired>,
}

#[derive(Debug, Default)]
struct Fired {
    occurrences: u64,
    is_cut: bool,
    connections: u64,
    is_released: bool,
}

impl Repairer {
    fn handle(&self, moment: Moment) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.connections += u64::from(moment == Moment::Connecting);
        if state.is_cut {
            if moment == Moment::Connecting {
                if self.plan.death == Death::WhenNoticed {
                    self.dies.notify_one();
                }
                self.proxy.restore();
            }
            if let Trouble::Late { until, .. } = self.plan.trouble
                && (moment == until || moment == Moment::Closing)
                && state.connections > 1
                && !state.is_released
            {
                state.is_released = true;
                self.proxy.release();
            }
            return;
        }
        state.occurrences += u64::from(self.plan.step.is_at(moment));
        if state.occurrences == self.plan.occurrence {
            state.is_cut = true;
            self.proxy.plan(self.plan.trouble.stages(self.plan.after));
            if self.plan.death == Death::AtOnce {
                self.dies.notify_one();
            }
        }
    }

    fn connections_if_cut(&self) -> Result<u64, String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_cut { Ok(state.connections) } else { Err(format!("nothing was cut: {state:?}")) }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { duplicates, connections, line } = self;
        write!(
            formatter,
            "{duplicates} duplicates suppressed, {connections} connections, {} datagrams passed, {} cut, {} late",
            line.passed, line.cut, line.released
        )
    }
}
