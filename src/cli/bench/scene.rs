//! What a run brings to the broker, and takes away again: connections, streams, producers.

use std::cell::RefCell;
use std::time::Duration;

use ring::rand::{SecureRandom as _, SystemRandom};
use tidelog_client::{Ack, Client, Producer, Publisher};
use tidelog_protocol::{ErrorCode, ProducerName, StreamDescription, StreamId, StreamName, StreamSettings};

use crate::cli::args::BenchCommonArguments;
use crate::cli::connect::{connect, failed};
use crate::cli::exit::{CliError, Exit};

/// Streams that are made, or removed, at the same time: as many requests as a connection may have under way.
const REQUESTS_AT_ONCE: usize = 64;

/// A broker that does not answer for so long keeps the streams; they are told.
const CLEANING_TIMEOUT: Duration = Duration::from_secs(10);

/// A run's connections and streams.
pub(super) struct Scene {
    pub(super) clients: Vec<Client>,
    /// Those that were asked for: one whose answer was given up may be there, and then its name tells which it is.
    streams: RefCell<Vec<(StreamName, Option<StreamId>)>>,
    prefix: String,
}

impl Scene {
    /// Connects so many times.
    ///
    /// # Errors
    ///
    /// Those of the connection; a record that is beyond the broker's limits.
    pub(super) async fn open(arguments: &BenchCommonArguments, connections: u64) -> Result<Self, CliError> {
        let mut random = [0; 8];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| CliError::new(Exit::No, "no_random", "the system gives no random numbers"))?;
        let prefix = format!("bench-{:016x}", u64::from_le_bytes(random));
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(connect(&arguments.client).await?);
        }
        let scene = Self { clients, streams: RefCell::default(), prefix };
        let record_bytes_max = scene.first()?.welcome().await.map_err(|error| failed(&error))?.limits.record_bytes_max;
        if arguments.size > record_bytes_max {
            let message =
                format!("this broker takes records of up to {record_bytes_max} bytes, not {}", arguments.size);
            return Err(CliError::named(Exit::Usage, ErrorCode::RecordTooLarge.name().to_owned(), message));
        }
        Ok(scene)
    }

    /// The connection for everything that is not a producer's.
    pub(super) fn first(&self) -> Result<&Client, CliError> {
        self.clients.first().ok_or_else(|| CliError::new(Exit::Usage, "usage", "at least one connection is needed"))
    }

    /// Makes streams of this run's own.
    ///
    /// # Errors
    ///
    /// Those of the connection and of the broker.
    pub(super) async fn make_streams(&self, count: u64) -> Result<Vec<StreamDescription>, CliError> {
        let client = self.first()?;
        let mut made = Vec::new();
        let names: Vec<_> = (0..count).map(|number| format!("{}-{number}", self.prefix)).collect();
        for names in names.chunks(REQUESTS_AT_ONCE) {
            let mut making = Vec::new();
            for name in names {
                let name =
                    StreamName::new(name).map_err(|error| CliError::new(Exit::No, "bad_name", error.to_string()))?;
                self.streams.borrow_mut().push((name.clone(), None));
                let client = client.clone();
                making.push(tokio::spawn(
                    async move { client.create_stream(&name, StreamSettings::default(), true).await },
                ));
            }
            for making in making {
                // It neither panics nor is it cancelled before the runtime is.
                let Ok(answer) = making.await else { continue };
                let stream = answer.map_err(|error| failed(&error))?;
                if let Some((_, id)) = self.streams.borrow_mut().iter_mut().find(|(name, _)| *name == stream.name) {
                    *id = Some(stream.id);
                }
                made.push(stream);
            }
        }
        Ok(made)
    }

    /// Opens producers and their ends of the streams, spread over the connections.
    ///
    /// # Errors
    ///
    /// Those of the connection and of the broker.
    pub(super) async fn open_producers(
        &self,
        producers: &Producers,
        streams: &[StreamDescription],
    ) -> Result<Vec<(Producer, Vec<Publisher>)>, CliError> {
        let mut opened = Vec::new();
        for (name, client) in producers.names.iter().zip(self.clients.iter().cycle()) {
            let builder = client.producer(name.clone()).window_bytes(producers.window_bytes).ack(producers.ack);
            let producer = builder.receipts(true).open().await.map_err(|error| failed(&error))?;
            let mut publishers = Vec::new();
            for stream in streams {
                publishers.push(producer.stream(stream).await.map_err(|error| failed(&error))?);
            }
            opened.push((producer, publishers));
        }
        Ok(opened)
    }

    /// Removes the streams that were made; says which could not be.
    ///
    /// # Errors
    ///
    /// If any is left.
    pub(super) async fn clean(&self) -> Result<(), CliError> {
        let streams = self.streams.take();
        if streams.is_empty() {
            return Ok(());
        }
        let cleaning = async {
            let client = self.first()?;
            for streams in streams.chunks(REQUESTS_AT_ONCE) {
                let removing: Vec<_> =
                    streams.iter().map(|(name, id)| tokio::spawn(remove(client.clone(), name.clone(), *id))).collect();
                for removing in removing {
                    if let Ok(removed) = removing.await {
                        removed.map_err(|error| failed(&error))?;
                    }
                }
            }
            Ok(())
        };
        let cleaned = match tokio::time::timeout(CLEANING_TIMEOUT, cleaning).await {
            Ok(cleaned) => cleaned,
            Err(_) => Err(CliError::new(Exit::Unreachable, "timed_out", "the broker does not answer")),
        };
        cleaned.map_err(|error: CliError| {
            let left = format!("streams named '{}-N' may be left; remove them with `tidelog stream rm`", self.prefix);
            error.with_addition(&left)
        })
    }

    /// Closes the connections.
    pub(super) async fn close(&self) {
        for client in &self.clients {
            client.close().await;
        }
    }
}

async fn remove(client: Client, name: StreamName, id: Option<StreamId>) -> Result<(), tidelog_client::Error> {
    let id = match id {
        Some(id) => id,
        None => match client.stream_info(&name).await {
            Ok(stream) => stream.id,
            Err(error) if error.code() == Some(ErrorCode::NotFound) => return Ok(()),
            Err(error) => return Err(error),
        },
    };
    client.remove_stream(id).await.map(|_| ())
}

/// How a run's producers are opened.
#[derive(Debug)]
pub(super) struct Producers {
    pub(super) names: Vec<ProducerName>,
    pub(super) window_bytes: usize,
    pub(super) ack: Ack,
}

impl Producers {
    /// So many. A broker keeps a producer's name for ever, so every run uses the same ones, on streams that are new.
    ///
    /// # Errors
    ///
    /// None: the names are good ones.
    pub(super) fn new(count: u64, window_bytes: u64, ack: Ack) -> Result<Self, CliError> {
        let name = |number| ProducerName::new(format!("tidelog-bench-{number}"));
        let names: Result<Vec<_>, _> = (0..count).map(name).collect();
        let names = names.map_err(|error| CliError::new(Exit::No, "bad_name", error.to_string()))?;
        Ok(Self { names, window_bytes: usize::try_from(window_bytes).unwrap_or(usize::MAX), ack })
    }
}
