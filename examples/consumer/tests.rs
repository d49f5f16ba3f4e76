//! The consumer is killed where it waits and within its database, the broker at any step; deliveries are late and the network
//! is away. The balances are those of a model.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidelog::testkit::{TestBroker, Trial, trials};
use tidelog_client::Client;
use tidelog_protocol::{StreamName, StreamSettings};

use crate::consumer::{Consumer, ConsumerError};
use crate::ledger::{Ledger, LedgerError, Source, Transfer};
use crate::publish;

const COUNT: usize = 60;

fn stream() -> StreamName {
    StreamName::new("transfers").unwrap()
}

fn transfers() -> Vec<(&'static str, i64)> {
    (0..COUNT).map(|number| (["anna", "ben", "carla"][number % 3], (number * number) as i64 + 1)).collect()
}

fn model() -> BTreeMap<String, i64> {
    let mut balances = BTreeMap::new();
    for (account, cents) in transfers() {
        *balances.entry(account.to_owned()).or_default() += cents;
    }
    balances
}

async fn bank(client: &Client) {
    client.create_stream(&stream(), StreamSettings::default(), true).await.unwrap();
    // In parts, so that the consumer gets batches of many sizes.
    for count in (0..=COUNT).step_by(5) {
        publish(client, &stream(), &transfers()[..count]).await.unwrap();
    }
}

/// One life of the consumer, until it has handled everything.
async fn consume(broker: &TestBroker, database: &Path, fuse: &Fuse) -> Result<(), Box<dyn Error>> {
    let client = Client::connect(broker.client_config()).await?;
    client.create_stream(&stream(), StreamSettings::default(), true).await?;
    let mut ledger = Ledger::open(database)?;
    fuse.put_in(&mut ledger)?;
    let mut consumer = Consumer::open(&client, &stream(), &mut ledger).await?;
    while consumer.next_offset() < COUNT as u64 {
        consumer.handle_batch().await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_transfer_is_in_the_balances_once_whatever_dies() {
    trials(async |trial: &Trial| {
        let broker = trial.broker().await;
        match trial.seed() % 3 {
            0 => broker.faults().slow_consumers(Duration::from_millis(3)),
            1 => broker.faults().partition(Duration::from_millis(50)),
            _ => {}
        }
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("ledger.sqlite");
        let fuse = Fuse::from_seed(trial.seed());
        let client = broker.client().await;
        let consumer = trial.run(|| fuse.until_it_holds(|| consume(&broker, &database, &fuse)));
        let ((), consumed) = tokio::join!(bank(&client), consumer);
        consumed.unwrap();

        assert_eq!(Ledger::open(&database).unwrap().balances().unwrap(), model());
        broker.faults().calm();
        broker.no_acknowledged_loss().await;
    })
    .await;
}

fn source() -> Source {
    Source { stream: "transfers".to_owned(), stream_id: 7 }
}

fn cents(cents: i64) -> [Transfer; 1] {
    [Transfer { account: "anna".to_owned(), cents }]
}

#[test]
fn a_balance_whose_place_cant_be_noted_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(&folder.path().join("ledger.sqlite")).unwrap();
    ledger.apply(&source(), 0, &cents(5)).unwrap();
    let refuse = "CREATE TEMP TRIGGER refuse BEFORE UPDATE ON progress BEGIN SELECT RAISE(ABORT, 'refused'); END";
    ledger.database.execute_batch(refuse).unwrap();
    ledger.apply(&source(), 1, &cents(2)).unwrap_err();
    assert_eq!(ledger.balances().unwrap()["anna"], 5);
    ledger.database.execute_batch("DROP TRIGGER refuse").unwrap();
    ledger.apply(&source(), 1, &cents(2)).unwrap();
    assert_eq!(ledger.balances().unwrap()["anna"], 7);
}

#[test]
fn whoever_was_overtaken_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    let (mut first, mut second) = (Ledger::open(&path).unwrap(), Ledger::open(&path).unwrap());
    for from in [0, 1] {
        first.apply(&source(), from, &cents(5)).unwrap();
        let overtaken = second.apply(&source(), from, &cents(5));
        assert!(matches!(overtaken, Err(LedgerError::ReadByAnother { .. })), "{overtaken:?}");
    }
    assert_eq!(first.balances().unwrap()["anna"], 10);
}

#[tokio::test]
async fn another_stream_under_the_name_is_not_read() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(&folder.path().join("ledger.sqlite")).unwrap();
    let made = client.create_stream(&stream(), StreamSettings::default(), false).await.unwrap();
    publish(&client, &stream(), &transfers()[..2]).await.unwrap();
    Consumer::open(&client, &stream(), &mut ledger).await.unwrap().handle_batch().await.unwrap();
    client.remove_stream(made.id).await.unwrap();
    client.create_stream(&stream(), StreamSettings::default(), false).await.unwrap();
    let refused = Consumer::open(&client, &stream(), &mut ledger).await;
    assert!(matches!(refused, Err(ConsumerError::Ledger(LedgerError::AnotherStream { .. }))), "{refused:?}");
}

#[tokio::test]
async fn damage_stops_it_before_a_balance_is_wrong() {
    let broker = TestBroker::start().await;
    let client = broker.client().await;
    client.create_stream(&stream(), StreamSettings::default(), false).await.unwrap();
    let account = "an account that is long enough to have a middle of its own, which no copy of its beginning covers";
    publish(&client, &stream(), &[(account, 1)]).await.unwrap();
    broker.faults().flip_bit(account.as_bytes()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(&folder.path().join("ledger.sqlite")).unwrap();
    let mut consumer = Consumer::open(&client, &stream(), &mut ledger).await.unwrap();
    let stopped = consumer.handle_batch().await;
    assert!(matches!(stopped, Err(ConsumerError::Missing { .. })), "{stopped:?}");
    assert_eq!(consumer.next_offset(), 0);
}

/// Ends the consumer within its database, as a kill would: some of SQLite's steps are done, and no more.
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

    fn put_in(&self, ledger: &mut Ledger) -> rusqlite::Result<()> {
        let left = Arc::clone(&self.left);
        let burns =
            move || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err();
        ledger.database.progress_handler(1, Some(burns))
    }

    /// Starts the consumer again as often as its database has ended it.
    async fn until_it_holds<T>(&self, life: impl AsyncFn() -> Result<T, Box<dyn Error>>) -> Result<T, Box<dyn Error>> {
        loop {
            let lives = self.lives.fetch_add(1, Ordering::Relaxed);
            let steps =
                if lives < FUSES { (self.seed + lives).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54 } else { u64::MAX };
            self.left.store(steps, Ordering::Relaxed);
            let ended = life().await;
            let is_burnt = self.left.load(Ordering::Relaxed) == 0;
            if ended.is_ok() || !is_burnt {
                return ended;
            }
        }
    }
}
