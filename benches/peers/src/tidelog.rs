//! tidelog itself, through its own client.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tidelog_client::{Ack, Client, ClientConfig, Producer, Publisher, ReaderEvent};
use tidelog_protocol::{ProducerName, StreamDescription, StreamName, StreamSettings};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::Outcome;
use crate::peer::{self, Flight, Peer};
use crate::process::Process;

const STREAM: &str = "bench";

pub(crate) struct TidelogSettings {
    /// What its acknowledgements mean. Each is told for itself only if it means durable.
    pub(crate) ack: Ack,
}

pub(crate) struct Tidelog {
    process: Process,
    ack: Ack,
    config: ClientConfig,
    client: Client,
    producers: u64,
}

impl Peer for Tidelog {
    type Settings = TidelogSettings;
    type Producer = TidelogProducer;
    type Reader = TidelogReader;

    async fn start(program: &Path, folder: &Path, settings: &TidelogSettings) -> Outcome<Self> {
        // The shell gives the broker its standard output as file descriptor 3, and becomes the broker.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "exec \"$0\" serve --data data --listen 127.0.0.1:0 --http off --ready-fd 3 3>&1 1>&2"])
            .arg(program)
            .stdout(Stdio::piped())
            .env("HOME", folder)
            .env("XDG_RUNTIME_DIR", folder);
        let mut process = Process::spawn(command, folder)?;
        let mut ready = BufReader::new(process.stdout().ok_or("no standard output")?);
        let mut line = String::new();
        timeout(Duration::from_secs(60), ready.read_line(&mut line)).await??;
        let told: serde_json::Value = serde_json::from_str(&line).map_err(|error| format!("not ready: {error}"))?;
        let (Some(listen), Some(pin)) = (told["listen"].as_str(), told["pin"].as_str()) else {
            return Err(format!("no address in {line}").into());
        };
        let config = ClientConfig::find(&format!("tidelog://{listen}?pin={pin}").parse()?, None)?;
        let client = process
            .until_answered(async || {
                let client = Client::connect(config.clone()).await?;
                client.list_streams().await?;
                Ok(client)
            })
            .await?;
        Ok(Self { process, ack: settings.ack, config, client, producers: 0 })
    }

    fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    async fn create(&mut self) -> Outcome<()> {
        self.client.create_stream(&StreamName::new(STREAM)?, StreamSettings::default(), false).await?;
        Ok(())
    }

    async fn stored(&mut self) -> Outcome<u64> {
        let StreamDescription { head, tail, .. } = self.client.stream_info(&StreamName::new(STREAM)?).await?;
        Ok(tail.get() - head.get())
    }

    async fn producer(&mut self, flight: Flight) -> Outcome<TidelogProducer> {
        let client = Client::connect(self.config.clone()).await?;
        self.producers += 1;
        let name = ProducerName::new(format!("bench-{}", self.producers))?;
        let receipts = flight != Flight::Unbounded && self.ack == Ack::Durable;
        let producer = client.producer(name).ack(self.ack).receipts(receipts).open().await?;
        let publisher = producer.stream(StreamName::new(STREAM)?).await?;
        Ok(TidelogProducer { _client: client, _producer: producer, publisher, receipts, sent: 0, acknowledged: 0 })
    }

    async fn reader(&mut self, follow: bool) -> Outcome<TidelogReader> {
        let client = Client::connect(self.config.clone()).await?;
        let reader = client.reader(StreamName::new(STREAM)?).follow(follow).open().await?;
        Ok(TidelogReader { _client: client, reader })
    }

    async fn stop(self) -> Outcome<()> {
        self.client.close().await;
        self.process.stop().await
    }
}

pub(crate) struct TidelogProducer {
    _client: Client,
    _producer: Producer,
    publisher: Publisher,
    /// Whether each batch's acknowledgement is told, or only when all are there.
    receipts: bool,
    sent: u64,
    acknowledged: u64,
}

impl peer::Producer for TidelogProducer {
    async fn send(&mut self, record: &[u8]) -> Outcome<()> {
        self.publisher.send_value(record).await?;
        self.sent += 1;
        Ok(())
    }

    async fn flush(&mut self) -> Outcome<()> {
        Ok(())
    }

    async fn acknowledged(&mut self) -> Outcome<u64> {
        if !self.receipts {
            self.publisher.acknowledged().await?;
            return Ok(self.sent - std::mem::replace(&mut self.acknowledged, self.sent));
        }
        let mut count = 0;
        let mut receipt = self.publisher.next_receipt().await;
        while let Some(told) = receipt {
            if told.duplicate || told.skip != 0 {
                return Err("a new record is told to be a duplicate".into());
            }
            count += u64::from(told.count);
            receipt = self.publisher.try_next_receipt();
        }
        if count == 0 {
            // No receipt comes only after an error, and `flush` tells which.
            self.publisher.flush().await?;
            return Err("the producer has ended".into());
        }
        Ok(count)
    }

    async fn settle(&mut self) -> Outcome<()> {
        Ok(self.publisher.flush().await?)
    }
}

pub(crate) struct TidelogReader {
    _client: Client,
    reader: tidelog_client::Reader,
}

impl peer::Reader for TidelogReader {
    async fn next(&mut self, take: &mut dyn FnMut(&[u8])) -> Outcome<()> {
        match self.reader.next_batch().await? {
            Some(ReaderEvent::Batch(batch)) => {
                for delivered in batch {
                    take(&delivered?.record.value);
                }
                Ok(())
            }
            Some(other) => Err(format!("not records: {other:?}").into()),
            None => Err("the stream ended".into()),
        }
    }
}
