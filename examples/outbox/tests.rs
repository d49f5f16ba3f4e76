//! The service is killed where it waits and within its database, the broker at any step; answers and requests are lost. Each
//! order is in the stream once, in the order of its commit.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidelog::testkit::{TestBroker, Trial, trials};
use tidelog_client::{Client, ReaderEvent};
use tidelog_protocol::{Offset, Sequence, StartAt, StreamName};
use tokio::sync::Notify;

use crate::relay::{Relay, RelayError};
use crate::shop::{ORDERS, Order, PAYMENTS, Shop};

const COUNT: i64 = 24;
/// So many come while the relay runs; then it is waited for, and started anew.
const PART: usize = 4;

fn order(number: i64) -> Order {
    Order { number, item: format!("item {number}") }
}

/// One life of the service: customers send all their orders, again if need be.
async fn service(broker: &TestBroker, database: &Path, fuse: &Fuse) -> Result<(), Box<dyn Error>> {
    let client = Client::connect(broker.client_config()).await?;
    let mut shop = Shop::open(database)?;
    let mut relay = Relay::new(client.clone(), fuse.put_in(Shop::open(database)?)?)?;
    shop = fuse.put_in(shop)?;
    let wake = Notify::new();
    for first in (1..=COUNT).step_by(PART) {
        let customers = async {
            for number in first..first + PART as i64 {
                if shop.place(&order(number))? {
                    wake.notify_one();
                }
                if number % 3 == 0 {
                    shop.pay(number)?;
                }
                tokio::task::yield_now().await;
            }
            Ok::<_, rusqlite::Error>(())
        };
        tokio::select! {
            ended = relay.run(&wake) => ended?,
            done = customers => done?,
        }
        relay.drain().await?;
    }
    client.close().await;
    Ok(())
}

/// What the stream has: sequences, keys and values.
async fn read(client: &Client, stream: &str) -> Vec<(Sequence, String, String)> {
    let mut reader = client.reader(StreamName::new(stream).unwrap()).open().await.unwrap();
    let mut found = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    while let Some(event) = reader.next_batch().await.unwrap() {
        let ReaderEvent::Batch(batch) = event else { panic!("{event:?}") };
        found.extend(batch.into_iter().map(|delivered| {
            let delivered = delivered.unwrap();
            (delivered.sequence, text(&delivered.record.key.unwrap()), text(&delivered.record.value))
        }));
    }
    found
}

/// What it must have: the outbox.
fn outbox(database: &Path, stream: &str) -> Vec<(Sequence, String, String)> {
    let shop = Shop::open(database).unwrap();
    let mut rows = shop.database.prepare("SELECT id, key, value FROM outbox WHERE stream = ?1 ORDER BY id").unwrap();
    let rows = rows.query_map([stream], |row| Ok((Sequence::new(row.get(0)?), row.get(1)?, row.get(2)?))).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn every_order_is_in_the_stream_once_and_in_order_whatever_dies() {
    trials(async |trial: &Trial| {
        let broker = trial.broker().await;
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("shop.sqlite");
        let fuse = Fuse::from_seed(trial.seed());
        trial.run(|| fuse.until_it_holds(|| service(&broker, &database, &fuse))).await.unwrap();

        broker.faults().calm();
        broker.no_acknowledged_loss().await;
        let client = broker.client().await;
        for (stream, count) in [(ORDERS, COUNT), (PAYMENTS, COUNT / 3)] {
            let found = read(&client, stream).await;
            assert_eq!(found, outbox(&database, stream));
            assert_eq!(found.len() as i64, count, "{stream}");
        }
        let keys: Vec<_> = read(&client, ORDERS).await.into_iter().map(|(_, key, _)| key).collect();
        assert_eq!(keys, (1..=COUNT).map(|number| format!("order {number}")).collect::<Vec<_>>());
        client.close().await;
    })
    .await;
}

#[test]
fn an_order_whose_event_cant_be_written_is_not_placed() {
    let folder = tempfile::tempdir().unwrap();
    let mut shop = Shop::open(&folder.path().join("shop.sqlite")).unwrap();
    let refuse = "CREATE TEMP TRIGGER refuse BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'refused'); END";
    shop.database.execute_batch(refuse).unwrap();
    shop.place(&order(1)).unwrap_err();
    shop.database.execute_batch("DROP TRIGGER refuse").unwrap();
    assert!(shop.place(&order(1)).unwrap(), "it was not there");
    assert!(!shop.place(&order(1)).unwrap(), "now it is");
    assert_eq!(shop.next_rows(9).unwrap().len(), 1);
}

#[tokio::test]
async fn an_older_copy_of_the_database_is_noticed() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let folder = tempfile::tempdir().unwrap();
    let (database, backup) = (folder.path().join("shop.sqlite"), folder.path().join("backup.sqlite"));
    let mut shop = Shop::open(&database).unwrap();
    shop.place(&order(1)).unwrap();
    shop.database.execute("VACUUM INTO ?1", [backup.to_str().unwrap()]).unwrap();
    shop.place(&order(2)).unwrap();
    Relay::new(client.clone(), shop).unwrap().drain().await.unwrap();

    // Order 3 gets the id that order 2 had.
    let mut restored = Shop::open(&backup).unwrap();
    restored.place(&order(3)).unwrap();
    let ended = Relay::new(client.clone(), restored).unwrap().drain().await;
    assert!(matches!(ended, Err(RelayError::AnotherDatabase { id: 2, .. })), "{ended:?}");
    assert_eq!(read(&client, ORDERS).await.len(), 2);
}

#[tokio::test]
async fn a_second_relay_takes_over_from_the_first() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("shop.sqlite");
    let mut shop = Shop::open(&database).unwrap();
    let wake = Notify::new();
    let mut first = Relay::new(broker.client().await, Shop::open(&database).unwrap()).unwrap();
    let mut second = Relay::new(broker.client().await, Shop::open(&database).unwrap()).unwrap();
    shop.place(&order(1)).unwrap();
    first.drain().await.unwrap();
    let (ended, ()) = tokio::join!(first.run(&wake), async {
        // The first has its session now, since it publishes this.
        shop.place(&order(2)).unwrap();
        wake.notify_one();
        let orders = StreamName::new(ORDERS).unwrap();
        let reader = client.reader(orders).from(StartAt::Offset { offset: Offset::new(1) }).follow(true);
        let mut reader = reader.open().await.unwrap();
        reader.next_batch().await.unwrap().unwrap();
        shop.place(&order(3)).unwrap();
        second.drain().await.unwrap();
        shop.place(&order(4)).unwrap();
        wake.notify_one();
    });
    let Err(RelayError::Broker(error)) = ended else { panic!("{ended:?}") };
    assert_eq!(error.name(), "fenced");
    second.drain().await.unwrap();
    let found = read(&client, ORDERS).await;
    assert_eq!(found, outbox(&database, ORDERS));
    assert_eq!(found.len(), 4);
}

/// Ends the service within its database, as a kill would: some of SQLite's steps are done, and no more.
struct Fuse {
    /// Steps that are left; far more than there are when the fuse is to hold.
    left: Arc<AtomicU64>,
    lives: AtomicU64,
    seed: u64,
}

const FUSES: u64 = 4;

impl Fuse {
    fn from_seed(seed: u64) -> Self {
        Self { left: Arc::default(), lives: AtomicU64::new(0), seed }
    }

    fn put_in(&self, mut shop: Shop) -> rusqlite::Result<Shop> {
        let left = Arc::clone(&self.left);
        let burns =
            move || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err();
        shop.database.progress_handler(1, Some(burns))?;
        Ok(shop)
    }

    /// Starts the service again as often as its database has ended it.
    async fn until_it_holds<T>(&self, life: impl AsyncFn() -> Result<T, Box<dyn Error>>) -> Result<T, Box<dyn Error>> {
        loop {
            let lives = self.lives.fetch_add(1, Ordering::Relaxed);
            let steps =
                if lives < FUSES { (self.seed + lives).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52 } else { u64::MAX };
            self.left.store(steps, Ordering::Relaxed);
            let ended = life().await;
            let is_burnt = self.left.load(Ordering::Relaxed) == 0;
            if ended.is_ok() || !is_burnt {
                return ended;
            }
        }
    }
}
