//! One record in flight, durable: how long a publish takes, beside what this machine's disk and QUIC take alone, all
//! measured in one run.
//!
//!     cargo run --release --example latency [FOLDER]
//!
//! The folder must be on a real disk (a temporary one beside the build by default: /tmp may be memory, where fdatasync
//! means nothing). Rounds of the three measurements alternate, since machines drift.
#![expect(clippy::disallowed_methods, reason = "an example measures, so it reads the clock")]

use std::error::Error;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidelog::config::CheckedConfig;
use tidelog::server::quic::{Listener, open_socket};
use tidelog::server::tls::Identity;
use tidelog::{Broker, BrokerConfig};
use tidelog_client::{Address, Client, ClientConfig, Publisher, QuicConnector, Trust, TrustEnvironment};
use tidelog_protocol::{
    Connection as _, Connector as _, Duplex, ProducerName, StreamName, StreamSettings, read, write_all,
};

const ROUNDS: usize = 10;
const PER_ROUND: usize = 300;
const RECORD_BYTES: usize = 100;
const APPEND_BYTES: usize = 4_096;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let parent = std::env::args().nth(1).unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/target").to_owned());
    let folder = tempfile::Builder::new().prefix("latency-").tempdir_in(parent)?;
    let listen = "127.0.0.1:0".parse()?;
    let broker =
        Broker::start(BrokerConfig { listen, http: None, ..BrokerConfig::on_disk(folder.path().join("data")) })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(&broker, folder.path()))?;
    broker.shutdown();
    Ok(())
}

async fn measure(broker: &Broker, folder: &Path) -> Outcome<()> {
    let disk = zeroed_file(folder)?;
    let mut echo = start_echo().await?;
    let client = Client::connect(ClientConfig::find(&broker.address().parse()?, None)?).await?;
    let stream = client.create_stream(&StreamName::new("latency")?, StreamSettings::default(), true).await?;
    let producer = client.producer(ProducerName::new("latency")?).open().await?;
    let publisher = producer.stream(&stream).await?;

    let (mut syncs, mut echoes, mut publishes) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (sync, echoed, published) =
            (sync_round(&disk, round)?, echo_round(&mut echo).await?, publish_round(&publisher).await?);
        // The first round warms everything up.
        if round > 0 {
            syncs.extend(sync);
            echoes.extend(echoed);
            publishes.extend(published);
        }
    }
    let sum = percentile(&mut syncs, 50) + percentile(&mut echoes, 50);
    for (name, times) in
        [("fdatasync 4 KiB", &mut syncs), ("QUIC echo 100 B", &mut echoes), ("durable publish", &mut publishes)]
    {
        let [p50, p90, p99] = [50, 90, 99].map(|percent| percentile(times, percent).as_secs_f64() * 1e3);
        println!("{name}: p50 {p50:.3} ms  p90 {p90:.3} ms  p99 {p99:.3} ms");
    }
    let ratio = percentile(&mut publishes, 50).as_secs_f64() / sum.as_secs_f64();
    println!("durable publish p50 = {ratio:.2} x (fdatasync p50 + echo p50)");
    for (name, histogram) in [
        ("its fdatasync", &broker.counters().log_sync_seconds),
        ("received to answered", &broker.counters().publish_seconds),
    ] {
        let seen = histogram.snapshot();
        println!("broker, {name}: mean {:.3} ms", seen.sum as f64 / seen.count.max(1) as f64 / 1e6);
    }
    client.close().await;
    Ok(())
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
}

fn zeroed_file(folder: &Path) -> Outcome<File> {
    let mut file = File::create(folder.join("machine"))?;
    for _ in 0..=ROUNDS {
        file.write_all(&vec![0; PER_ROUND * APPEND_BYTES])?;
    }
    file.sync_all()?;
    Ok(file)
}

fn sync_round(file: &File, round: usize) -> Outcome<Vec<Duration>> {
    let block = [7; APPEND_BYTES];
    let mut times = Vec::with_capacity(PER_ROUND);
    for append in 0..PER_ROUND {
        let start = Instant::now();
        file.write_all_at(&block, ((round * PER_ROUND + append) * APPEND_BYTES) as u64)?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// An echo with the broker's own QUIC settings, on a thread of its own like the broker's.
async fn start_echo() -> Outcome<Duplex> {
    let identity = Identity::load_or_make(None)?;
    let config = CheckedConfig::try_from(BrokerConfig { listen: "127.0.0.1:0".parse()?, ..BrokerConfig::in_memory() })?;
    let socket = open_socket(config.listen)?;
    let address: Address = format!("tidelog://{}?pin={}", socket.local_addr()?, identity.pin()).parse()?;
    let (tls, reset_key) = (identity.server_config()?, identity.reset_key());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = Listener::start(socket, tls, reset_key, &config).expect("a listener");
            let connection = listener.accept().await.expect("a client").handshake().await.expect("a handshake");
            let Duplex { mut send, mut receive } = connection.accept().await.expect("a QUIC stream");
            while let Ok(Some(chunk)) = read(receive.as_mut(), 65_536).await {
                if write_all(send.as_mut(), &mut [chunk]).await.is_err() {
                    break;
                }
            }
        });
    });
    let connector = QuicConnector::new(&address, &Trust::find(&address, None, &TrustEnvironment::of_process())?)?;
    let connection = Arc::new(connector).connect().await?;
    Ok(connection.open().await?)
}

async fn echo_round(echo: &mut Duplex) -> Outcome<Vec<Duration>> {
    let mut times = Vec::with_capacity(PER_ROUND);
    for _ in 0..PER_ROUND {
        let start = Instant::now();
        write_all(echo.send.as_mut(), &mut [Bytes::from_static(&[7; RECORD_BYTES])]).await?;
        let mut received = 0;
        while received < RECORD_BYTES {
            received += read(echo.receive.as_mut(), 65_536).await?.map_or(RECORD_BYTES, |chunk| chunk.len());
        }
        times.push(start.elapsed());
    }
    Ok(times)
}

async fn publish_round(publisher: &Publisher) -> Outcome<Vec<Duration>> {
    let mut times = Vec::with_capacity(PER_ROUND);
    for _ in 0..PER_ROUND {
        let start = Instant::now();
        publisher.send_value(&[7; RECORD_BYTES]).await?;
        publisher.flush().await?;
        times.push(start.elapsed());
    }
    Ok(times)
}
