//! Clients that come, begin to publish and to read, and are gone without a word.

use std::time::Duration;

use tidelog_protocol::{ProducerName, StartAt, StreamName, StreamSettings};
use tokio::time::{Instant, sleep};

use super::child::{ChildBroker, Settings, data_below, mib};
use super::harness::failure::Failure;
use super::harness::folder::RunFolder;
use super::harness::random::number_from_environment;

const CONNECTS: u64 = 500;
/// Clients that live at one time; they are killed together.
const AT_ONE_TIME: u64 = 50;
/// Clients at one time before memory is looked at: more than there ever are later, since an allocator keeps some of what
/// was needed at one time.
const WARM_UP_AT_ONE_TIME: u64 = 400;
const WARM_UP_ROUNDS: u64 = 2;
/// A killed client shows in nothing but its silence.
const IDLE_TIMEOUT_MS: u64 = 1_000;
/// Silence is noticed within this on the busiest machine.
const GONE_WITHIN: Duration = Duration::from_secs(120);
/// What memory may have grown by: a twentieth, and what an allocator keeps for itself in a process this small.
const MEMORY_SLACK_BYTES: u64 = 4 << 20;

pub(crate) async fn run() -> Result<(), Failure> {
    let connects = number_from_environment("TIDELOG_CONNECTS").unwrap_or(CONNECTS);
    println!("TIDELOG_CONNECTS={connects}");
    let folder = RunFolder::new();
    let data = Some(data_below(folder.path()));
    let broker = ChildBroker::start(&Settings { data, idle_timeout_ms: Some(IDLE_TIMEOUT_MS), ..Settings::default() })?;
    let client = broker.client().await?;
    let name = StreamName::new("events").map_err(|error| Failure::trouble("a name", error))?;
    client.create_stream(&name, StreamSettings::default(), true).await.map_err(|error| refused(&error))?;
    client.close().await;
    // Whatever is made once and kept is made now.
    for _ in 0..WARM_UP_ROUNDS {
        come_and_be_killed(broker.address().to_owned(), WARM_UP_AT_ONE_TIME).await?;
    }
    broker.wait_until_idle().await?;
    let before = broker.usage()?;
    let accepted_before = broker.metric("tidelog_connections_accepted_total")?;

    let (mut most, mut left) = (0.0_f64, connects);
    while left > 0 {
        let now = left.min(AT_ONE_TIME);
        // Those before are gone by their silence: no more at one time than in the warm-up.
        let since = Instant::now();
        while broker.metric("tidelog_connections")? > (WARM_UP_AT_ONE_TIME - AT_ONE_TIME) as f64 {
            if since.elapsed() > GONE_WITHIN {
                return Err(Failure::violation("clients that were killed are still counted as connected"));
            }
            sleep(Duration::from_millis(10)).await;
        }
        come_and_be_killed(broker.address().to_owned(), now).await?;
        left -= now;
        most = most.max(broker.metric("tidelog_connections")?);
    }
    let idle_after = broker.wait_until_idle().await?;
    let after = broker.usage_back_at(&before, 0).await?;
    println!(
        "{connects} connects and kills, at most {most} connections open; idle after {idle_after:?}; memory {} -> {}, \
         files {} -> {}, threads {} -> {}",
        mib(before.memory_bytes),
        mib(after.memory_bytes),
        before.files.len(),
        after.files.len(),
        before.threads.len(),
        after.threads.len()
    );
    let accepted = broker.metric("tidelog_connections_accepted_total")? - accepted_before;
    if accepted < connects as f64 {
        return Err(Failure::Violation(format!("only {accepted} of {connects} connections were accepted")));
    }
    if after.memory_bytes > before.memory_bytes + before.memory_bytes / 20 + MEMORY_SLACK_BYTES {
        return Err(Failure::Violation(format!("memory is left: {before:?} -> {after:?}")));
    }
    // And it serves as before.
    broker.client().await?.close().await;
    broker.stop()
}

/// Connects so many clients, lets each publish and read, and takes their runtime away: nothing says goodbye.
async fn come_and_be_killed(address: String, count: u64) -> Result<(), Failure> {
    let lives = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::trouble("a runtime", error))?;
        let tasks: Vec<_> = (0..count).map(|number| runtime.spawn(live(address.clone(), number))).collect();
        let lives = runtime.block_on(async {
            let mut lives = Vec::new();
            for task in tasks {
                lives.push(task.await.map_err(|error| Failure::trouble("a client", error))??);
            }
            Ok::<_, Failure>(lives)
        });
        // What would send their farewells goes first.
        runtime.shutdown_timeout(Duration::ZERO);
        lives.map(drop)
    });
    lives.await.map_err(|error| Failure::trouble("clients", error))?
}

/// A client with a publishing session and a subscription, alive as long as what is returned.
async fn live(address: String, number: u64) -> Result<impl Sized, Failure> {
    let client = super::harness::broker::connect(&address).await?;
    let name = StreamName::new("events").map_err(|error| Failure::trouble("a name", error))?;
    // From the end, so that no later client gets more than the ones before.
    let reader =
        client.reader(name.clone()).from(StartAt::End).follow(true).open().await.map_err(|error| refused(&error))?;
    // The same few names again and again: what a name costs stays, and is not what is looked for.
    let producer = ProducerName::new(format!("p{number}")).map_err(|error| Failure::trouble("a name", error))?;
    let publisher = if number.is_multiple_of(10) {
        let producer = client.producer(producer).open().await.map_err(|error| refused(&error))?;
        let publisher = producer.stream(name).await.map_err(|error| refused(&error))?;
        publisher.send_value(b"event").await.map_err(|error| refused(&error))?;
        Some((producer, publisher))
    } else {
        None
    };
    Ok((client, reader, publisher))
}

fn refused(error: &dyn std::fmt::Display) -> Failure {
    Failure::Violation(format!("a client is refused: {error}"))
}
