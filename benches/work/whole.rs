//! A whole broker and its clients on this one thread, over a network within the process and a log in memory: sessions,
//! frames, sequencer, driver, answers and the client's window, without QUIC, TLS, disk and kernel. Its clocks stand still
//! unless everything waits, so that one run is like the other.

use std::rc::Rc;
use std::sync::Arc;

use tidelog::BrokerConfig;
use tidelog::clock::ManualClock;
use tidelog::in_process::Network;
use tidelog::local_broker::{LocalBroker, LocalBrokerConfig, OneTurn};
use tidelog_client::{Client, ClientConfig, Producer, Publisher, Reader, ReaderEvent};
use tidelog_protocol::{ProducerName, StartAt, StreamName, StreamSettings};
use tidelog_storage::{Entropy, Sabotages};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

/// Bytes of a segment.
const SEGMENT_BYTES: u64 = 32 << 20;

/// See the module's documentation.
pub(crate) struct Whole {
    /// First, so that all tasks are gone before the runtime.
    local: LocalSet,
    runtime: Runtime,
    client: Client,
    producer: Producer,
    publisher: Publisher,
}

impl Whole {
    /// A broker with one stream, and a client that has a producer attached.
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime");
        let local = LocalSet::new();
        let (client, producer, publisher) = local.block_on(&runtime, async {
            let network = Network::default();
            let mut broker = LocalBroker::open(LocalBrokerConfig {
                // One segment is enough for all: no file is zeroed while somebody counts.
                broker: BrokerConfig {
                    segment_first_bytes: SEGMENT_BYTES,
                    segment_bytes: SEGMENT_BYTES,
                    ..BrokerConfig::in_memory()
                },
                clock: Arc::new(ManualClock::new(1)),
                entropy: Entropy::Seeded(1),
                pace: Rc::new(OneTurn),
                sabotages: Sabotages::default(),
            })
            .expect("an empty log opens");
            let mut listener = network.listen();
            tokio::task::spawn_local(async move { broker.run(&mut listener).await });
            let client = Client::connect(ClientConfig::new(network.connector()).with_seed(1)).await;
            let client = client.expect("the broker answers");
            let name = StreamName::new("bench").expect("a good name");
            let stream = client.create_stream(&name, StreamSettings::default(), true).await.expect("a stream");
            let name = ProducerName::new("bench").expect("a good name");
            let producer = client.producer(name).open().await.expect("a producer");
            let publisher = producer.stream(&stream).await.expect("a publisher");
            (client, producer, publisher)
        });
        Self { local, runtime, client, producer, publisher }
    }

    /// Publishes so many records, pipelined, and waits until all are durable.
    pub(crate) fn publish(&self, records: u64, value: &[u8]) {
        self.local.block_on(&self.runtime, self.send(records, value));
    }

    /// Publishes so many records, each once the one before is durable.
    pub(crate) fn publish_each(&self, records: u64, value: &[u8]) {
        self.local.block_on(&self.runtime, async {
            for _ in 0..records {
                self.send(1, value).await;
            }
        });
    }

    /// The producer's ends of so many further streams.
    pub(crate) fn publishers(&self, streams: u32) -> Vec<Publisher> {
        self.local.block_on(&self.runtime, async {
            let mut publishers = Vec::new();
            for number in 0..streams {
                let name = StreamName::new(format!("bench-{number}")).expect("a good name");
                let made = self.client.create_stream(&name, StreamSettings::default(), true).await;
                publishers.push(self.producer.stream(&made.expect("a stream")).await.expect("a publisher"));
            }
            publishers
        })
    }

    /// Publishes so many records, pipelined, each to any of these streams, and waits until all are durable.
    pub(crate) fn publish_at_random(&self, publishers: &[Publisher], records: u64, value: &[u8]) {
        self.local.block_on(&self.runtime, async {
            let mut random = 1_u64;
            for _ in 0..records {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let publisher = publishers.get((random % publishers.len() as u64) as usize).expect("one of them");
                publisher.send_value(value).await.expect("nothing fails");
            }
            self.producer.flush().await.expect("nothing fails");
        });
    }

    async fn send(&self, records: u64, value: &[u8]) {
        for _ in 0..records {
            self.publisher.send_value(value).await.expect("nothing fails");
        }
        self.producer.flush().await.expect("nothing fails");
    }

    /// A consumer of the stream from its end on that is caught up.
    pub(crate) fn follow(&self) -> Reader {
        let stream = self.publisher.description();
        let opening = self.client.reader(stream).from(StartAt::End).follow(true).open();
        self.local.block_on(&self.runtime, opening).expect("the stream is there")
    }

    /// Publishes so many records while the consumer takes them.
    pub(crate) fn publish_and_follow(&self, records: u64, value: &[u8], reader: &mut Reader) {
        self.local.block_on(&self.runtime, async {
            tokio::join!(self.send(records, value), take(reader, records));
        });
    }

    /// Reads the first so many records of the stream from the log.
    pub(crate) fn read_back(&self, records: u64) {
        let stream = self.publisher.description();
        self.local.block_on(&self.runtime, async {
            let mut reader = self.client.reader(stream).from(StartAt::Start).open().await.expect("the stream is there");
            take(&mut reader, records).await;
        });
    }
}

/// Takes so many records.
async fn take(reader: &mut Reader, records: u64) {
    let mut left = records;
    while left > 0 {
        match reader.next_batch().await.expect("nothing fails").expect("more is to come") {
            ReaderEvent::Batch(batch) => {
                for record in batch {
                    assert!(!record.expect("a sound record").record.value.is_empty());
                    left -= 1;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}
