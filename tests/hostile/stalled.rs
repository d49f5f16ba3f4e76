//! A hundred readers that have a backlog before them and do not read.

use tidelog_client::{Client, ReaderEvent};
use tidelog_protocol::{ProducerName, Record, StreamName, StreamSettings};
use tokio::time::{Duration, Instant, sleep};

use super::child::{ChildBroker, RECEIVE_BUFFER_BYTES, Settings, data_below, mib};
use super::harness::failure::Failure;
use super::harness::folder::RunFolder;
use super::harness::random::number_from_environment;
use super::raw::{self, RawClient};

const BACKLOG_BYTES: u64 = 64 << 20;
const RECORD_BYTES: usize = 8_192;
const READERS: usize = 100;
/// What a reader lets the broker send ahead. Half of them take nothing but that; the others acknowledge more than they
/// read, as long as there is room.
const WINDOWS_BYTES: [u32; 2] = [16 << 10, 1 << 20];
/// What a hundred connections, their subscriptions and what is under way to them may cost: 160 KiB each.
const MEMORY_BYTES_MAX: u64 = 16 << 20;
const LIVE_RECORDS: u64 = 500;
const STALLED_WITHIN: Duration = Duration::from_secs(60);

pub(crate) async fn run() -> Result<(), Failure> {
    let backlog = number_from_environment("TIDELOG_BACKLOG_BYTES").unwrap_or(BACKLOG_BYTES);
    println!("TIDELOG_BACKLOG_BYTES={backlog}");
    let folder = RunFolder::new();
    match with_backlog(&folder, backlog / RECORD_BYTES as u64).await {
        Err(failure) => Err(Failure::Violation(format!("{failure}; kept in {}", folder.keep().display()))),
        done => done,
    }
}

async fn with_backlog(folder: &RunFolder, records: u64) -> Result<(), Failure> {
    let broker = ChildBroker::start(&Settings { data: Some(data_below(folder.path())), ..Settings::default() })?;
    let client = broker.client().await?;
    let name = StreamName::new("backlog").map_err(|error| Failure::trouble("a name", error))?;
    let stream =
        client.create_stream(&name, StreamSettings::default(), false).await.map_err(|error| refused(&error))?;
    publish(&client, &name, 0..records).await?;
    // As it is with one who has read it all, so that what a reader needs once is there.
    read(&client, &name, records).await?;
    let before = broker.usage()?;

    let mut readers = Vec::new();
    for number in 0..READERS {
        let window = WINDOWS_BYTES.get(number % 2).copied().unwrap_or_default();
        let reader = RawClient::connect(broker.socket_addr(), raw::config(window)?).await?;
        let subscription = reader.subscribe(stream.id).await?;
        readers.push((reader, subscription));
    }
    // Each has been given a block once and has not taken it.
    let since = Instant::now();
    let mut most = before.memory_bytes;
    while broker.metric("tidelog_reads_given_back_total")? < READERS as f64 {
        if since.elapsed() > STALLED_WITHIN {
            return Err(Failure::violation("readers that do not read hold what was read for them"));
        }
        most = most.max(broker.usage()?.memory_bytes);
        sleep(Duration::from_millis(20)).await;
    }
    let stalled = broker.usage()?;
    let used = broker.metric("tidelog_memory_used_bytes")?;

    // Others are served, with what is there and with what is new.
    let others = Instant::now();
    read(&client, &name, records).await?;
    publish(&client, &name, records..records + LIVE_RECORDS).await?;
    read(&client, &name, records + LIVE_RECORDS).await?;
    let others = others.elapsed();
    let after = broker.usage()?;
    println!(
        "{READERS} stalled readers before {records} records of {RECORD_BYTES} bytes: memory {} before, {} at most, {} \
         stalled (budget in use: {}), {} after others have read all of it twice in {others:?}",
        mib(before.memory_bytes),
        mib(most),
        mib(stalled.memory_bytes),
        mib(used as u64),
        mib(after.memory_bytes)
    );
    let max = before.memory_bytes + MEMORY_BYTES_MAX + RECEIVE_BUFFER_BYTES;
    if stalled.memory_bytes > max || after.memory_bytes > max {
        return Err(Failure::Violation(format!("memory grows with readers that do not read: more than {}", mib(max))));
    }

    // One that reads on gets all of it, in order, although most was given back meanwhile.
    let (reader, (_send, mut receive, mut decoder)) = readers.swap_remove(0);
    let mut next = 0;
    while next < records + LIVE_RECORDS {
        let frame = raw::next_frame(&mut receive, &mut decoder).await?;
        next = check_frame(frame, next)?;
    }
    drop((readers, reader));
    client.close().await;
    broker.wait_until_idle().await?;
    broker.stop()
}

/// The offset behind a frame that goes on at `next`.
fn check_frame(frame: tidelog_protocol::Frame, next: u64) -> Result<u64, Failure> {
    if frame.kind != tidelog_protocol::FrameKind::Deliver {
        return Ok(next);
    }
    let delivery = tidelog_protocol::Delivery::decode(frame.body).map_err(|error| refused(&error))?;
    if delivery.header.base_offset.get() != next || !tidelog_protocol::verify_content_crc(&delivery.batch) {
        return Err(Failure::Violation(format!("offset {next} did not come as it was stored")));
    }
    let records = tidelog_protocol::BatchRecords::new(&delivery.batch).map_err(|error| refused(&error))?;
    Ok(next + u64::from(records.header().count - delivery.header.skip))
}

fn record(offset: u64) -> Vec<u8> {
    let mut bytes = vec![(offset % 251) as u8; RECORD_BYTES];
    bytes.splice(..8, offset.to_le_bytes());
    bytes
}

async fn publish(client: &Client, name: &StreamName, offsets: std::ops::Range<u64>) -> Result<(), Failure> {
    let producer = ProducerName::new("writer").map_err(|error| Failure::trouble("a name", error))?;
    let producer = client.producer(producer).open().await.map_err(|error| refused(&error))?;
    let publisher = producer.stream(name.clone()).await.map_err(|error| refused(&error))?;
    for offset in offsets {
        publisher.send(Record::new(record(offset))).await.map_err(|error| refused(&error))?;
    }
    publisher.flush().await.map_err(|error| refused(&error))?;
    producer.close().await.map_err(|error| refused(&error))
}

async fn read(client: &Client, name: &StreamName, records: u64) -> Result<(), Failure> {
    let mut reader = client.reader(name.clone()).open().await.map_err(|error| refused(&error))?;
    let mut next = 0;
    while let Some(event) = reader.next_batch().await.map_err(|error| refused(&error))? {
        let ReaderEvent::Batch(batch) = event else {
            return Err(Failure::Violation(format!("a reader was told {event:?}")));
        };
        for found in batch {
            let found = found.map_err(|error| refused(&error))?;
            if found.offset.get() != next || found.record.value != record(next) {
                return Err(Failure::Violation(format!("offset {next} is not what was published")));
            }
            next += 1;
        }
    }
    if next == records { Ok(()) } else { Err(Failure::Violation(format!("{next} records instead of {records}"))) }
}

fn refused(error: &dyn std::fmt::Display) -> Failure {
    Failure::Violation(format!("a client is refused: {error}"))
}
