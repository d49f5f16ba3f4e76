//! An order service with an outbox: what is in the database is in the stream, once and in the order of its commits.
//!
//! A service that writes to its database and then publishes loses the event when it dies in between; one that publishes
//! first tells of an order that there is not. With an outbox the event is a row of the same database transaction
//! ([`shop`]), and a relay carries rows to the broker ([`relay`]). A relay alone only moves the question: it dies between
//! publishing a row and noting that it has. Here it asks the broker: rows are published under a name, with the row's id as
//! the sequence, and the broker says which one it has last.
//!
//! ```sh
//! cargo run --example outbox                                # with a broker of its own, in memory
//! cargo run --example outbox -- 'tidelog://HOST:PORT?pin=…' # or TIDELOG_SERVER=…
//! cargo test --example outbox                               # service and broker killed, answers lost
//! ```
//!
//! Rests on: a record of (producer, stream, sequence) is in the stream at most once, for ever, and records of one producer
//! stand in the order of their sequences.

mod relay;
mod shop;
#[cfg(test)]
mod tests;

use std::error::Error;

use tidelog::{Broker, BrokerConfig};
use tidelog_client::{Client, ClientConfig, ReaderEvent};
use tidelog_protocol::StreamName;
use tokio::sync::Notify;

use crate::relay::Relay;
use crate::shop::{ORDERS, Order, PAYMENTS, Shop};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = std::env::args().nth(1).or_else(|| std::env::var("TIDELOG_SERVER").ok());
    let (address, _broker) = match server {
        Some(address) => (address, None),
        None => {
            let broker = Broker::start(BrokerConfig::in_memory())?;
            (broker.address(), Some(broker))
        }
    };
    let client = Client::connect(ClientConfig::find(&address.parse()?, None)?).await?;
    // A service keeps its database; a demonstration leaves nothing behind.
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("shop.sqlite");

    let mut shop = Shop::open(&path)?;
    let wake = Notify::new();
    let mut relay = Relay::new(client.clone(), Shop::open(&path)?)?;
    println!("publishing as '{}'", relay.name());
    let work = async {
        for number in 1..=5 {
            shop.place(&Order { number, item: format!("book {number}") })?;
            wake.notify_one();
            tokio::task::yield_now().await;
        }
        shop.pay(2)
    };
    tokio::select! {
        ended = relay.run(&wake) => ended?,
        done = work => drop(done?),
    }
    relay.drain().await?;
    for stream in [ORDERS, PAYMENTS] {
        print_stream(&client, stream).await?;
    }
    client.close().await;
    Ok(())
}

async fn print_stream(client: &Client, stream: &str) -> Result<(), Box<dyn Error>> {
    let mut reader = client.reader(StreamName::new(stream)?).open().await?;
    while let Some(event) = reader.next_batch().await? {
        match event {
            ReaderEvent::Batch(batch) => {
                for delivered in batch {
                    let delivered = delivered?;
                    let value = String::from_utf8_lossy(&delivered.record.value);
                    println!("{stream} {}: row {}: {value}", delivered.offset, delivered.sequence);
                }
            }
            missing => println!("{stream}: {missing:?}"),
        }
    }
    Ok(())
}
