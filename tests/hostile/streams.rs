//! Many streams: made, written to, and there again after a start.

use std::sync::Arc;

use tidelog_client::Client;
use tidelog_protocol::{StreamDescription, StreamName, StreamSettings};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant};

use super::child::{ChildBroker, RECEIVE_BUFFER_BYTES, Settings, Usage, data_below, mib};
use super::harness::failure::Failure;
use super::harness::folder::RunFolder;
use super::harness::random::number_from_environment;

const STREAMS: u64 = 2_000;
/// Requests under way at one time.
const AT_ONE_TIME: u64 = 256;
const START_WITHIN: Duration = Duration::from_secs(10);
const FILES_MAX: usize = 512;
const BYTES_A_STREAM_MAX: u64 = 1_024;
/// The same while running, without what a start has used and given back.
const BYTES_A_STREAM_RUNNING_MAX: u64 = 700;
/// Appends that one sync is to stand for, at least, while all streams are written to.
const APPENDS_A_SYNC_MIN: u64 = 8;

pub(crate) async fn run() -> Result<(), Failure> {
    let streams = number_from_environment("TIDELOG_STREAMS").unwrap_or(STREAMS);
    println!("TIDELOG_STREAMS={streams}");
    let folder = RunFolder::new();
    match with_streams(&folder, streams).await {
        Err(failure) => Err(Failure::Violation(format!("{failure}; kept in {}", folder.keep().display()))),
        done => done,
    }
}

async fn with_streams(folder: &RunFolder, count: u64) -> Result<(), Failure> {
    let settings = Settings { data: Some(data_below(folder.path())), streams_max: Some(count), ..Settings::default() };
    let broker = ChildBroker::start(&settings)?;
    let empty = broker.usage()?;
    let client = Arc::new(broker.client().await?);

    let syncs = broker.metric("tidelog_log_sync_seconds_count")?;
    let making = Instant::now();
    let streams = make(&client, count).await?;
    let (making, syncs_making) = (making.elapsed(), broker.metric("tidelog_log_sync_seconds_count")? - syncs);

    let syncs = broker.metric("tidelog_log_sync_seconds_count")?;
    let writing = Instant::now();
    write_to_each(&client, &streams).await?;
    let (writing, syncs_writing) = (writing.elapsed(), broker.metric("tidelog_log_sync_seconds_count")? - syncs);
    let running = broker.usage()?;
    client.close().await;
    broker.stop()?;

    let broker = ChildBroker::start(&settings)?;
    let client = broker.client().await?;
    let found = client.list_streams().await.map_err(|error| refused(&error))?;
    client.close().await;
    let started = broker.usage()?;
    let bytes_a_stream = |usage: &Usage| usage.memory_bytes.saturating_sub(empty.memory_bytes) / count;
    let bytes_running = bytes_a_stream(&running);
    let bytes_started = bytes_a_stream(&started).saturating_sub(RECEIVE_BUFFER_BYTES / count);
    println!(
        "{count} streams made in {making:?} with {syncs_making} syncs, one record for each in {writing:?} with \
         {syncs_writing} syncs; running: {}, {} files, {bytes_running} bytes a stream; started in {:?}: {}, {} files, {bytes_started} bytes \
         a stream",
        mib(running.memory_bytes),
        running.files.len(),
        broker.start_time,
        mib(started.memory_bytes),
        started.files.len()
    );

    let mut expected: Vec<_> = streams.iter().map(|stream| (stream.name.clone(), stream.id)).collect();
    expected.sort();
    if found.iter().map(|stream| (stream.name.clone(), stream.id)).ne(expected) {
        return Err(Failure::violation("the streams are not those that were made"));
    }
    if let Some(stream) = found.iter().find(|stream| stream.tail.get() != 1) {
        return Err(Failure::Violation(format!("{} has its end at {} and not at 1", stream.name, stream.tail)));
    }
    if broker.start_time > START_WITHIN {
        return Err(Failure::Violation(format!("the start took {:?}", broker.start_time)));
    }
    if running.files.len().max(started.files.len()) > FILES_MAX {
        return Err(Failure::Violation(format!("{} files are open", running.files.len().max(started.files.len()))));
    }
    for (what, syncs) in [("making", syncs_making), ("writing to", syncs_writing)] {
        if syncs * APPENDS_A_SYNC_MIN as f64 > count as f64 {
            return Err(Failure::Violation(format!("{what} {count} streams took {syncs} syncs")));
        }
    }
    // What a broker has for itself shows beside few streams.
    if count >= 20_000 && (bytes_started > BYTES_A_STREAM_MAX || bytes_running > BYTES_A_STREAM_RUNNING_MAX) {
        return Err(Failure::Violation(format!(
            "a stream takes {bytes_running} bytes of memory, {bytes_started} after a start"
        )));
    }
    broker.stop()
}

/// Makes them, many requests at a time.
async fn make(client: &Arc<Client>, count: u64) -> Result<Vec<StreamDescription>, Failure> {
    let mut tasks = JoinSet::new();
    let mut streams = Vec::new();
    for number in 0..count {
        let client = Arc::clone(client);
        let name = StreamName::new(format!("stream-{number:06}")).map_err(|error| Failure::trouble("a name", error))?;
        tasks.spawn(async move { client.create_stream(&name, StreamSettings::default(), true).await });
        if tasks.len() as u64 >= AT_ONE_TIME {
            streams.extend(next(&mut tasks).await?);
        }
    }
    while let Some(stream) = next(&mut tasks).await? {
        streams.push(stream);
    }
    Ok(streams)
}

async fn next(
    tasks: &mut JoinSet<Result<StreamDescription, tidelog_client::Error>>,
) -> Result<Option<StreamDescription>, Failure> {
    let Some(made) = tasks.join_next().await else { return Ok(None) };
    let made = made.map_err(|error| Failure::trouble("making a stream", error))?;
    made.map(Some).map_err(|error| refused(&error))
}

/// One record for each, of one session.
async fn write_to_each(client: &Client, streams: &[StreamDescription]) -> Result<(), Failure> {
    let producer = client.anonymous_producer().open().await.map_err(|error| refused(&error))?;
    for some in streams.chunks(AT_ONE_TIME as usize) {
        let mut publishers = Vec::new();
        for stream in some {
            let publisher = producer.stream(stream).await.map_err(|error| refused(&error))?;
            publisher.send_value(b"event").await.map_err(|error| refused(&error))?;
            publishers.push(publisher);
        }
        for publisher in publishers {
            publisher.flush().await.map_err(|error| refused(&error))?;
        }
    }
    producer.close().await.map_err(|error| refused(&error))
}

fn refused(error: &dyn std::fmt::Display) -> Failure {
    Failure::Violation(format!("a client is refused: {error}"))
}
