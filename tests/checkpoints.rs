//! A broker with checkpoints on a real folder: a start reads the tail and knows all the same, and stops, crashes and odd
//! checkpoints change nothing but how much is read.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

use std::fs;
use std::path::Path;

use tidelog::testkit::StreamCheck;
use tidelog::{Broker, BrokerConfig, CheckpointChoice};
use tidelog_client::{Client, ClientConfig, ReaderEvent};
use tidelog_protocol::{ProducerName, StartAt, StreamName, StreamSettings};
use tidelog_storage::CheckpointFate;

/// Bytes of a watermark entry, which is the last of a log that was closed in order.
const WATERMARK_BYTES: u64 = 208;
/// So many starts take far longer than a checkpoint.
const TRIES_MAX: usize = 100;

async fn connect(broker: &Broker) -> Client {
    let config = ClientConfig::find(&broker.address().parse().unwrap(), None).unwrap();
    Client::connect(config).await.unwrap()
}

fn name(text: &str) -> StreamName {
    StreamName::new(text).unwrap()
}

/// Publishes `count` records of about 107 bytes as producer `shop`, and waits for all answers.
async fn publish(client: &Client, stream: &str, count: u64) -> u64 {
    let orders = client.create_stream(&name(stream), StreamSettings::default(), true).await.unwrap();
    let producer = client.producer(ProducerName::new("shop").unwrap()).open().await.unwrap();
    let publisher = producer.stream(&orders).await.unwrap();
    let first = publisher.last_sequence().get() + 1;
    for sequence in first..first + count {
        publisher.send_value(format!("{sequence:0>107}").as_bytes()).await.unwrap();
    }
    publisher.flush().await.unwrap();
    producer.close().await.unwrap();
    first + count - 1
}

/// The values of a stream's first and last records, and how many there are.
async fn ends(client: &Client, stream: &str) -> (String, String, u64) {
    let mut values = Vec::new();
    for from in [StartAt::Start, StartAt::Last { count: 1 }] {
        let mut reader = client.reader(name(stream)).from(from).open().await.unwrap();
        let event = reader.next_batch().await.unwrap().unwrap();
        let ReaderEvent::Batch(batch) = event else { panic!("{event:?}") };
        let record = batch.into_iter().next().unwrap().unwrap();
        values.push((String::from_utf8(record.record.value.to_vec()).unwrap(), record.offset.get()));
    }
    (values[0].0.trim_start_matches('0').to_owned(), values[1].0.trim_start_matches('0').to_owned(), values[1].1 + 1)
}

/// The stream has these records and no others, each in its place.
async fn expect_all(client: &Client, stream: &str, count: u64) {
    let stream = StreamCheck::new(client.clone(), stream);
    stream.expect((1..=count).map(|sequence| format!("{sequence:0>107}"))).await;
    stream.expect_no_more().await;
}

fn used_end(broker: &Broker) -> Option<u64> {
    match &broker.recovery_report().checkpoint {
        CheckpointFate::Used { end, .. } => Some(*end),
        _ => None,
    }
}

/// Fails if a file is renamed or removed meanwhile.
fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_folder(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_start_after_a_million_records_reads_the_tail_and_not_the_log() {
    const MILLION: u64 = 1_000_000;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let broker = Broker::start(BrokerConfig::on_disk(&data)).unwrap();
    let client = connect(&broker).await;
    assert_eq!(publish(&client, "orders", MILLION).await, MILLION);
    client.close().await;
    // As SIGKILL would leave it.
    let killed = (0..TRIES_MAX).find_map(|attempt| {
        let killed = folder.path().join(format!("killed-{attempt}"));
        copy_folder(&data, &killed).ok().map(|()| killed)
    });
    let killed = killed.expect("a copy of the folder");
    broker.shutdown();

    // Every start but one without a checkpoint reads a part, and all know the same.
    let mut starts = Vec::new();
    for (folder, checkpoints) in
        [(&data, CheckpointChoice::Beside), (&killed, CheckpointChoice::Nowhere), (&killed, CheckpointChoice::Beside)]
    {
        let broker = Broker::start(BrokerConfig { checkpoints, ..BrokerConfig::on_disk(folder) }).unwrap();
        let report = broker.recovery_report().clone();
        assert_eq!(report.damages, []);
        let client = connect(&broker).await;
        let (first, last, count) = ends(&client, "orders").await;
        assert_eq!((first.as_str(), last.as_str(), count), ("1", "1000000", MILLION));
        let producer = client.producer(ProducerName::new("shop").unwrap()).open().await.unwrap();
        assert_eq!(producer.stream(name("orders")).await.unwrap().last_sequence().get(), MILLION);
        client.close().await;
        drop(broker);
        starts.push(report);
    }
    // The last one has stopped in order without a batch: that is enough for the next one to read nothing again.
    let broker = Broker::start(BrokerConfig::on_disk(&killed)).unwrap();
    let after_stop = broker.recovery_report().clone();
    assert_eq!(used(&after_stop), after_stop.end - WATERMARK_BYTES, "{after_stop:?}");
    drop(broker);
    let [stopped, whole, crashed] = starts.try_into().unwrap();
    println!("in order: {} entries, {} bytes", stopped.entries, stopped.bytes_read);
    println!("killed:   {} entries, {} bytes", crashed.entries, crashed.bytes_read);
    println!("whole:    {} entries, {} bytes", whole.entries, whole.bytes_read);
    assert!(matches!(stopped.checkpoint, CheckpointFate::Used { .. }));
    assert!(matches!(crashed.checkpoint, CheckpointFate::Used { .. }), "{:?}", crashed.checkpoint);
    assert!(whole.entries > 100);
    // The last watermark.
    assert_eq!(stopped.entries, 1);
    // At most what one segment and one interval hold.
    let tail_bytes = whole.end - used(&crashed);
    assert!(tail_bytes < (64 << 20) + (64 << 20), "the tail has {tail_bytes} bytes");
    assert!(crashed.entries < whole.entries, "{} of {}", crashed.entries, whole.entries);
}

fn used(report: &tidelog_storage::RecoveryReport) -> u64 {
    match report.checkpoint {
        CheckpointFate::Used { end, .. } => end,
        ref fate => panic!("{fate:?}"),
    }
}

#[tokio::test]
async fn starts_go_on_from_checkpoints_in_small_segments_and_duplicates_stay_duplicates() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut config = BrokerConfig::on_disk(&data);
    config.limits.batch_content_bytes_max = 16 << 10;
    config.limits.record_bytes_max = 8 << 10;
    config.segment_first_bytes = 128 << 10;
    config.segment_bytes = 512 << 10;
    config.checkpoint_bytes = 100 << 10;
    let mut total = 0;
    let mut newest = 0;
    for life in 0..6 {
        let broker = Broker::start(config.clone()).unwrap();
        let end = used_end(&broker);
        assert_eq!(end.is_some(), life > 0, "life {life}: {:?}", broker.recovery_report().checkpoint);
        assert!(end.unwrap_or(1) > newest, "life {life}");
        newest = end.unwrap_or(0);
        // A stop in order leaves less than that without a checkpoint, in however many batches.
        let report = broker.recovery_report();
        assert!(life == 0 || report.end - newest < config.checkpoint_bytes, "life {life}: {report:?}");
        let client = connect(&broker).await;
        total += 9_000;
        assert_eq!(publish(&client, "orders", 9_000).await, total, "life {life}");
        expect_all(&client, "orders", total).await;
        client.close().await;
        // A crash in the middle of the life, once its first checkpoint is durable: that has a thread of its own.
        let crashed = (0..TRIES_MAX).find_map(|attempt| {
            let killed = folder.path().join(format!("killed-{life}-{attempt}"));
            copy_folder(&data, &killed).ok()?;
            let medium = tidelog::MediumChoice::Disk(killed);
            let crashed = Broker::start(BrokerConfig { medium, ..config.clone() }).unwrap();
            used_end(&crashed).is_some().then_some(crashed)
        });
        let crashed = crashed.unwrap_or_else(|| panic!("life {life}: no checkpoint became durable"));
        let client = connect(&crashed).await;
        expect_all(&client, "orders", total).await;
        assert_eq!(publish(&client, "orders", 10).await, total + 10, "life {life}");
        client.close().await;
        drop(crashed);
        broker.shutdown();
    }
}

#[tokio::test]
async fn an_odd_checkpoint_is_told_and_set_aside_and_the_broker_serves_all() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let config = BrokerConfig { checkpoint_bytes: 1, ..BrokerConfig::on_disk(&data) };
    let broker = Broker::start(config.clone()).unwrap();
    let client = connect(&broker).await;
    publish(&client, "orders", 500).await;
    client.close().await;
    broker.shutdown();
    let manifest = fs::read_dir(data.join("checkpoint")).unwrap().next().unwrap().unwrap().path().join("manifest");
    fs::write(manifest, "nonsense").unwrap();
    let broker = Broker::start(config.clone()).unwrap();
    let fate = broker.recovery_report().checkpoint.clone();
    let CheckpointFate::SetAside { name: Some(aside), .. } = fate else { panic!("{fate:?}") };
    assert!(data.join(aside).is_dir());
    let client = connect(&broker).await;
    expect_all(&client, "orders", 500).await;
    assert_eq!(publish(&client, "orders", 1).await, 501);
    client.close().await;
    broker.shutdown();
    let broker = Broker::start(config).unwrap();
    assert!(used_end(&broker).is_some(), "{:?}", broker.recovery_report().checkpoint);
}
