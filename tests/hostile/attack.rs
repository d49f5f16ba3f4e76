//! An independent QUIC client attacks while honest ones publish and read.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tidelog_client::{Client, ReaderEvent};
use tidelog_protocol::{ProducerName, Record, StreamId, StreamName, StreamSettings};
use tokio::process::Command;
use tokio::time::{Duration, Instant, sleep, timeout};

use super::child::{ChildBroker, Settings, data_below, mib};
use super::harness::failure::Failure;
use super::harness::folder::RunFolder;
use super::harness::random::{Random, number_from_environment};

const SECONDS: u64 = 9;
const ATTACKERS: u64 = 150;
/// The figure of the promise: what attackers may make the broker hold.
const MEMORY_BYTES_MAX: u64 = 128 << 20;
const BACKLOG_BYTES: usize = 8 << 20;
const RECORD_BYTES: usize = 200;
/// Honest records before the attack, for comparison.
const BEFORE: Duration = Duration::from_secs(2);
/// Whatever the attackers do, an honest record is stored and read within this.
const SERVED_WITHIN: Duration = Duration::from_secs(30);
/// All that `attack.py` knows.
const ALL: &[&str] = &[
    "half_open",
    "first_packets_only",
    "noise",
    "wrong_protocol",
    "silent",
    "byte_a_second",
    "garbage_hello",
    "garbage_frames",
    "huge_lengths",
    "half_frames",
    "gaps",
    "never_reading",
    "small_window",
    "flood",
    "churn",
    "storm",
];
/// Those that hold memory for as long as they can: without its bounds the broker has hundreds of megabytes more then.
const HEAVY: &[&str] = &["never_reading", "half_frames", "gaps", "small_window"];
const WAVES: [&[&str]; 3] = [ALL, HEAVY, HEAVY];
/// An attacker that was not told to go is gone by its idle timeout.
const GONE_WITHIN: Duration = Duration::from_secs(120);
/// What an allocator may keep more of after the second wave than after the first: each wave needs most at another moment.
/// What a connection leaves behind is measured closely where connections are killed.
const MEMORY_SLACK_BYTES: u64 = 32 << 20;

fn python() -> PathBuf {
    std::env::var_os("TIDELOG_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from)
}

pub(crate) fn why_not() -> Option<String> {
    let mut check = std::process::Command::new(python());
    check.args(["-c", "import aioquic"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match check.status() {
        Ok(status) if status.success() => None,
        _ => Some(format!(
            "{} has no aioquic; install it there, or name another one in TIDELOG_PYTHON",
            python().display()
        )),
    }
}

pub(crate) async fn run() -> Result<(), Failure> {
    let seconds = number_from_environment("TIDELOG_HOSTILE_SECONDS").unwrap_or(SECONDS);
    let seed = Random::seed_of_run();
    println!("TIDELOG_SEED={seed} TIDELOG_HOSTILE_SECONDS={seconds}");
    let folder = RunFolder::new();
    match attacked(&folder, seconds, seed).await {
        Err(failure) => Err(Failure::Violation(format!("seed {seed}: {failure}; kept in {}", folder.keep().display()))),
        done => done,
    }
}

async fn attacked(folder: &RunFolder, seconds: u64, seed: u64) -> Result<(), Failure> {
    let settings = Settings {
        data: Some(data_below(folder.path())),
        // The attackers' silence is noticed soon, so that the end can be seen.
        idle_timeout_ms: Some(10_000),
        // The first checkpoint, whose threads stay, is made before anything is measured.
        checkpoint_bytes: Some(1 << 20),
        ..Settings::default()
    };
    let broker = ChildBroker::start(&settings)?;
    let client = broker.client().await?;
    let backlog = client
        .create_stream(&name("backlog")?, StreamSettings::default(), false)
        .await
        .map_err(|error| refused(&error))?;
    fill(&client).await?;
    client.create_stream(&name("orders")?, StreamSettings::default(), false).await.map_err(|error| refused(&error))?;

    let honest = Arc::new(Honest::default());
    let publishing = tokio::spawn(publish(broker.client().await?, Arc::clone(&honest)));
    let reading = tokio::spawn(follow(broker.client().await?, Arc::clone(&honest)));
    sleep(BEFORE).await;
    wait_for_checkpoint(folder).await?;
    let (before, segments_before) = (broker.usage()?, segments(folder)?);
    let records_before = honest.published.load(Ordering::Relaxed);

    let mut waves = Vec::new();
    for (attacks, seed) in WAVES.into_iter().zip(seed..) {
        let mut wave = attack(&broker, backlog.id, seconds.div_ceil(WAVES.len() as u64), seed, attacks).await?;
        wait_for_attackers(&broker).await?;
        wave.left_bytes = broker.usage()?.memory_bytes;
        waves.push(wave);
    }
    let records_during = honest.published.load(Ordering::Relaxed) - records_before;

    honest.is_over.store(true, Ordering::Relaxed);
    let latencies = timeout(SERVED_WITHIN, publishing).await.map_err(|_| stalled("publisher"))?;
    let latencies = latencies.map_err(|error| Failure::trouble("publishing", error))??;
    timeout(SERVED_WITHIN, reading)
        .await
        .map_err(|_| stalled("reader"))?
        .map_err(|error| Failure::trouble("reading", error))??;
    client.close().await;
    let metrics = broker.metrics()?;
    let idle_after = broker.wait_until_idle().await?;
    // A segment that somebody reads stays open, up to 64 of them, and there are new ones by now; the newest may be open for
    // reading beside the writing.
    let files_more = (segments(folder)? - segments_before).min(64) + 1;
    let after = broker.usage_back_at(&before, files_more).await?;

    let (calm, attacked) = latencies.split_at(usize::try_from(records_before).unwrap_or_default().min(latencies.len()));
    let most = waves.iter().map(|wave| wave.most_bytes).max().unwrap_or_default();
    let left: Vec<_> = waves.iter().map(|wave| wave.left_bytes).collect();
    println!(
        "{ATTACKERS} attackers for {seconds} s: memory {} before, {} at most (budget in use: {}), {:?} after each wave, {} \
         once all are gone, {idle_after:?} later; files {} -> {}, \
         threads {} (and {} of sled) -> {} (and {})",
        mib(before.memory_bytes),
        mib(most),
        mib(waves.iter().map(|wave| wave.used_bytes).max().unwrap_or_default()),
        left.iter().map(|bytes| mib(*bytes)).collect::<Vec<_>>(),
        mib(after.memory_bytes),
        before.files.len(),
        after.files.len(),
        before.threads.len(),
        before.sled_threads,
        after.threads.len(),
        after.sled_threads
    );
    println!("honest durable publish, one in flight: {} before, {} under attack", figures(calm), figures(attacked));
    for name in ["connections_refused", "handshakes_failed", "frames_given_up", "reads_given_back", "memory_waits"] {
        let mut series: Vec<_> =
            metrics.iter().filter(|(series, value)| series.contains(name) && **value > 0.0).collect();
        series.sort_by_key(|(series, _)| (*series).clone());
        println!("{series:?}");
    }

    if records_during == 0 {
        return Err(Failure::violation("no honest record was stored during the attack"));
    }
    if most > before.memory_bytes + MEMORY_BYTES_MAX {
        return Err(Failure::Violation(format!("the attack took {} of memory", mib(most - before.memory_bytes))));
    }
    // What is left of the first heavy wave is what an allocator keeps; the next one, which is alike, must not add to it.
    if let [_, heavy, again] = left.as_slice()
        && *again > heavy + MEMORY_SLACK_BYTES
    {
        return Err(Failure::Violation(format!(
            "each attack leaves memory behind: {}, then {}",
            mib(*heavy),
            mib(*again)
        )));
    }
    broker.stop()
}

/// Segment files of the broker's log.
fn segments(folder: &RunFolder) -> Result<usize, Failure> {
    let data = data_below(folder.path());
    let files = std::fs::read_dir(&data).map_err(|error| Failure::trouble(data.display(), error))?;
    Ok(files.filter_map(Result::ok).filter(|file| file.file_name().to_string_lossy().starts_with("segment-")).count())
}

/// What one wave of attackers did to the broker.
#[derive(Debug)]
struct Wave {
    most_bytes: u64,
    used_bytes: u64,
    left_bytes: u64,
}

async fn attack(
    broker: &ChildBroker,
    backlog: StreamId,
    seconds: u64,
    seed: u64,
    attacks: &[&str],
) -> Result<Wave, Failure> {
    let address = broker.socket_addr();
    let mut attack = Command::new(python());
    attack
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hostile/attack.py"))
        .args([address.ip().to_string(), address.port().to_string(), backlog.to_string()])
        .args(["--seconds", &seconds.to_string(), "--connections", &ATTACKERS.to_string()])
        .args(["--seed", &seed.to_string()])
        .args(["--only", &attacks.join(",")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut attack = attack.spawn().map_err(|error| Failure::trouble("starting the attack", error))?;
    let mut wave = Wave { most_bytes: 0, used_bytes: 0, left_bytes: 0 };
    let status = loop {
        if let Some(status) = attack.try_wait().map_err(|error| Failure::trouble("the attack", error))? {
            break status;
        }
        wave.most_bytes = wave.most_bytes.max(broker.usage()?.memory_bytes);
        wave.used_bytes = wave.used_bytes.max(broker.metric("tidelog_memory_used_bytes")? as u64);
        sleep(Duration::from_millis(50)).await;
    };
    let output = attack.wait_with_output().await.map_err(|error| Failure::trouble("the attack", error))?;
    let told: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| Failure::trouble(format!("the attack ended with {status} and told nothing"), error))?;
    println!("{told}");
    let begun = |name: &str| told.get("attacks").and_then(|counts| counts.get(name)?.as_u64()).unwrap_or_default();
    // An attack of which a part was never begun, or that never got in, shows nothing.
    if let Some(none) = attacks.iter().chain(&["stood"]).find(|name| begun(name) == 0) {
        return Err(Failure::Trouble(format!("the attack was none, without {none}: {told}")));
    }
    Ok(wave)
}

/// Waits until there is a checkpoint, which the backlog is long enough for.
async fn wait_for_checkpoint(folder: &RunFolder) -> Result<(), Failure> {
    let checkpoints = data_below(folder.path()).join("checkpoint");
    let is_whole = |name: &OsStr| name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
    let made = async {
        while !std::fs::read_dir(&checkpoints)
            .is_ok_and(|mut found| found.any(|entry| entry.is_ok_and(|entry| is_whole(&entry.file_name()))))
        {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SERVED_WITHIN, made).await.map_err(|_| Failure::violation("no checkpoint is made"))
}

/// Waits until only the honest publisher, the follower and the client that made the streams are there.
async fn wait_for_attackers(broker: &ChildBroker) -> Result<(), Failure> {
    let since = Instant::now();
    loop {
        let metrics = broker.metrics()?;
        let of = |name: &str| metrics.get(name).copied().unwrap_or(f64::NAN);
        if of("tidelog_connections") == 3.0 && of("tidelog_handshakes_in_progress") == 0.0 {
            return Ok(());
        }
        if since.elapsed() > GONE_WITHIN {
            return Err(Failure::violation("attackers that are gone are still counted as connected"));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// What the honest clients have done.
#[derive(Debug, Default)]
struct Honest {
    published: AtomicU64,
    is_over: AtomicBool,
    /// How many records there are in all, once that is known.
    total: AtomicU64,
}

fn record(sequence: u64) -> Vec<u8> {
    let mut bytes = vec![(sequence % 253) as u8; RECORD_BYTES];
    bytes.splice(..8, sequence.to_le_bytes());
    bytes
}

/// Publishes one record after the other, each durable before the next; how long each took.
async fn publish(client: Client, honest: Arc<Honest>) -> Result<Vec<Duration>, Failure> {
    let producer = ProducerName::new("shop").map_err(|error| Failure::trouble("a name", error))?;
    let producer = client.producer(producer).open().await.map_err(|error| refused(&error))?;
    let publisher = producer.stream(name("orders")?).await.map_err(|error| refused(&error))?;
    let mut latencies = Vec::new();
    while !honest.is_over.load(Ordering::Relaxed) {
        let since = Instant::now();
        let stored = async {
            publisher.send(Record::new(record(latencies.len() as u64))).await?;
            publisher.flush().await
        };
        let stored = timeout(SERVED_WITHIN, stored).await.map_err(|_| stalled("publisher"))?;
        stored.map_err(|error| refused(&error))?;
        latencies.push(since.elapsed());
        honest.published.fetch_add(1, Ordering::Relaxed);
    }
    if publisher.duplicates() > 0 {
        return Err(Failure::Violation(format!("{} records were sent twice", publisher.duplicates())));
    }
    honest.total.store(latencies.len() as u64, Ordering::Relaxed);
    producer.close().await.map_err(|error| refused(&error))?;
    client.close().await;
    Ok(latencies)
}

/// Follows the stream until everything that was published has come, once and in order.
async fn follow(client: Client, honest: Arc<Honest>) -> Result<(), Failure> {
    let mut reader = client.reader(name("orders")?).follow(true).open().await.map_err(|error| refused(&error))?;
    let mut next = 0;
    loop {
        let total = honest.total.load(Ordering::Relaxed);
        if total > 0 && next == total {
            break;
        }
        // Looks at the total again now and then: the last record may have come before it was known.
        let Ok(event) = timeout(Duration::from_millis(100), reader.next_batch()).await else { continue };
        let Some(ReaderEvent::Batch(batch)) = event.map_err(|error| refused(&error))? else {
            return Err(Failure::violation("a follower was told of something else than records"));
        };
        for found in batch {
            let found = found.map_err(|error| refused(&error))?;
            if found.offset.get() != next || found.record.value != record(next) {
                return Err(Failure::Violation(format!("offset {next} is not what was published")));
            }
            next += 1;
        }
    }
    client.close().await;
    Ok(())
}

/// Something for attackers to subscribe to and not to read.
async fn fill(client: &Client) -> Result<(), Failure> {
    let producer = client.anonymous_producer().open().await.map_err(|error| refused(&error))?;
    let publisher = producer.stream(name("backlog")?).await.map_err(|error| refused(&error))?;
    for number in 0..BACKLOG_BYTES / 4_096 {
        publisher.send_value(&vec![number as u8; 4_096]).await.map_err(|error| refused(&error))?;
    }
    publisher.flush().await.map_err(|error| refused(&error))?;
    producer.close().await.map_err(|error| refused(&error))?;
    // The files that its readers have open are open from here on.
    let mut reader = client.reader(name("backlog")?).open().await.map_err(|error| refused(&error))?;
    while reader.next_batch().await.map_err(|error| refused(&error))?.is_some() {}
    Ok(())
}

fn figures(latencies: &[Duration]) -> String {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    let [p50, p99] = [50, 99].map(|percent| sorted.get(sorted.len().saturating_sub(1) * percent / 100).copied());
    let millis = |time: Option<Duration>| time.unwrap_or_default().as_secs_f64() * 1e3;
    format!("p50 {:.2} ms, p99 {:.2} ms of {}", millis(p50), millis(p99), latencies.len())
}

fn name(text: &str) -> Result<StreamName, Failure> {
    StreamName::new(text).map_err(|error| Failure::trouble("a name", error))
}

fn stalled(who: &str) -> Failure {
    Failure::Violation(format!("an honest {who} was not served within {SERVED_WITHIN:?}"))
}

fn refused(error: &dyn std::fmt::Display) -> Failure {
    Failure::Violation(format!("an honest client is refused: {error}"))
}
