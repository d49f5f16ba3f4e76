//! A consumer whose effect is in its database once for each record: balances of accounts from a stream of transfers.
//!
//! A consumer that notes its place before it handles a record loses that record when it dies in between; one that notes it
//! behind handles the record again. Here the place is a row of the same database, written in the same transaction as the
//! effect ([`ledger`]): there is no in between. After any end the next life reads on from the row ([`consumer`]), and a
//! second consumer of the same database is found out by it.
//!
//! ```sh
//! cargo run --example consumer                                # with a broker of its own, in memory
//! cargo run --example consumer -- 'tidelog://HOST:PORT?pin=…' # or TIDELOG_SERVER=…
//! cargo test --example consumer                               # consumer and broker killed, deliveries late
//! ```
//!
//! Rests on: offsets are dense, and what a consumer has seen, every later one sees at the same offset with the same bytes;
//! consumers see only durable records, so a broker that dies takes nothing back.

mod consumer;
mod ledger;
#[cfg(test)]
mod tests;

use std::error::Error;

use tidelog::{Broker, BrokerConfig};
use tidelog_client::{Client, ClientConfig};
use tidelog_protocol::{ProducerName, Record, Sequence, StreamName, StreamSettings};

use crate::consumer::Consumer;
use crate::ledger::Ledger;

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
    let transfers = StreamName::new("transfers")?;
    client.create_stream(&transfers, StreamSettings::default(), true).await?;
    let end = publish(&client, &transfers, &[("anna", 500), ("ben", 120), ("anna", -70), ("ben", 30)]).await?;

    // A service keeps its database; a demonstration leaves nothing behind.
    let folder = tempfile::tempdir()?;
    let mut ledger = Ledger::open(&folder.path().join("ledger.sqlite"))?;
    let mut consumer = Consumer::open(&client, &transfers, &mut ledger).await?;
    while consumer.next_offset() < end {
        consumer.handle_batch().await?;
    }
    for (account, cents) in ledger.balances()? {
        println!("{account}: {cents} cents");
    }
    client.close().await;
    Ok(())
}

/// Publishes transfers, once however often it is called with the same ones, and gives the offset behind them.
async fn publish(
    client: &Client,
    stream: &StreamName,
    transfers: &[(&str, i64)],
) -> Result<u64, tidelog_client::Error> {
    let name = ProducerName::new("bank").expect("this is a name");
    let producer = client.producer(name).open().await?;
    let publisher = producer.stream(stream).await?;
    let begin = publisher.last_sequence().get();
    for (number, (account, cents)) in (1..).zip(transfers).skip_while(|(number, _)| *number <= begin) {
        let record = Record::new(cents.to_string()).with_key((*account).to_owned());
        publisher.send_at(Sequence::new(number), record).await?;
    }
    producer.close().await?;
    Ok(publisher.last_offset().map_or(0, |offset| offset.get() + 1))
}
