//! Three programs that are wrong in ways that go unnoticed for long, and that a few trials find; and their corrected twins.
//!
//! `TIDELOG_SEEDS=20` does all of it from so many starting seeds and counts the runs that catch each program.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tidelog::testkit::{TestBroker, Trial, trials_from};
use tidelog_client::{Client, Error, Producer, ReaderEvent};
use tidelog_protocol::{
    ErrorCode, Offset, ProducerName, Record, Sequence, StartAt, StreamDescription, StreamName, StreamSettings,
};

/// Records of each program.
const COUNT: u64 = 20;
/// The runs of `trials`, unless somebody asks for more.
const RUNS: u64 = 24;

/// What a program keeps when it dies: a database of its own, each of whose calls is a transaction and a round trip.
#[derive(Default)]
struct Database {
    /// How far it is.
    place: Cell<u64>,
    /// What it has done.
    effects: RefCell<Vec<String>>,
}

impl Database {
    async fn note_place(&self, place: u64) {
        tokio::task::yield_now().await;
        self.place.set(place);
        tokio::task::yield_now().await;
    }

    async fn take_effect(&self, value: &str) {
        tokio::task::yield_now().await;
        self.effects.borrow_mut().push(value.to_owned());
        tokio::task::yield_now().await;
    }

    /// Both in one transaction.
    async fn take_effect_and_note_place(&self, value: &str, place: u64) {
        tokio::task::yield_now().await;
        self.effects.borrow_mut().push(value.to_owned());
        self.place.set(place);
        tokio::task::yield_now().await;
    }
}

fn order(number: u64) -> String {
    format!("order {number}")
}

fn all_orders() -> Vec<String> {
    (1..=COUNT).map(order).collect()
}

async fn stream(client: &Client) -> Result<StreamDescription, Error> {
    client.create_stream(&StreamName::new("orders").unwrap(), StreamSettings::default(), true).await
}

// Producers.

/// Wrong: what was on its way when a connection broke is sent again, and nobody can tell that it is the same.
async fn anonymous_producer(broker: &TestBroker, database: &Database) -> Result<(), Error> {
    let client = Client::connect(broker.client_config()).await?;
    let producer = client.anonymous_producer().open().await?;
    let publisher = producer.stream(&stream(&client).await?).await?;
    for number in database.place.get() + 1..=COUNT {
        publisher.publish(Record::new(order(number))).await?;
        database.note_place(number).await;
    }
    producer.close().await
}

/// Right: under a name, and with numbers that are the same when it is started again.
async fn named_producer(broker: &TestBroker, database: &Database) -> Result<(), Error> {
    let client = Client::connect(broker.client_config()).await?;
    let producer = open(&client, "shop").await?;
    let publisher = producer.stream(&stream(&client).await?).await?;
    for number in database.place.get() + 1..=COUNT {
        publisher.publish_at(Sequence::new(number), Record::new(order(number))).await?;
        database.note_place(number).await;
    }
    producer.close().await
}

/// The last request of a life that has just ended may arrive between the two that opening consists of: then again.
async fn open(client: &Client, name: &str) -> Result<Producer, Error> {
    loop {
        match client.producer(ProducerName::new(name).unwrap()).open().await {
            Err(error) if error.code() == Some(ErrorCode::Fenced) => {}
            opened => return opened,
        }
    }
}

async fn producer_trial(trial: &Trial, program: impl AsyncFn(&TestBroker, &Database) -> Result<(), Error>) {
    let broker = trial.broker().await;
    let database = Database::default();
    trial.run(|| program(&broker, &database)).await.unwrap();
    broker.faults().calm();
    broker.no_acknowledged_loss().await;
    let client = broker.client().await;
    let mut reader = client.reader(stream(&client).await.unwrap()).open().await.unwrap();
    let mut found = Vec::new();
    while let Some(event) = reader.next_batch().await.unwrap() {
        found.extend(values(event).into_iter().map(|(_, value)| value));
    }
    assert_eq!(found, all_orders());
}

// Consumers.

/// Reads on from the place that the database has, and gives each record and the place behind it to `handle`.
async fn consumer(
    broker: &TestBroker,
    database: &Database,
    handle: impl AsyncFn(&Database, &str, u64),
) -> Result<(), Error> {
    let client = Client::connect(broker.client_config()).await?;
    let from = StartAt::Offset { offset: Offset::new(database.place.get()) };
    let mut reader = client.reader(&stream(&client).await?).from(from).open().await?;
    while let Some(event) = reader.next_batch().await? {
        for (offset, value) in values(event) {
            handle(database, &value, offset + 1).await;
        }
    }
    Ok(())
}

/// Wrong: when it dies in between, nobody handles the record.
async fn notes_before_it_handles(database: &Database, value: &str, place: u64) {
    database.note_place(place).await;
    database.take_effect(value).await;
}

/// Wrong: when it dies in between, the record is handled again.
async fn handles_before_it_notes(database: &Database, value: &str, place: u64) {
    database.take_effect(value).await;
    database.note_place(place).await;
}

/// Right: there is no in between.
async fn handles_and_notes_at_once(database: &Database, value: &str, place: u64) {
    database.take_effect_and_note_place(value, place).await;
}

async fn consumer_trial(trial: &Trial, handle: impl AsyncFn(&Database, &str, u64)) {
    let broker = trial.broker().await;
    named_producer(&broker, &Database::default()).await.unwrap();
    let database = Database::default();
    trial.run(|| consumer(&broker, &database, &handle)).await.unwrap();
    assert_eq!(*database.effects.borrow(), all_orders());
}

fn values(event: ReaderEvent) -> Vec<(u64, String)> {
    let ReaderEvent::Batch(batch) = event else { panic!("{event:?}") };
    let records = batch.into_iter().map(Result::unwrap);
    records.map(|it| (it.offset.get(), String::from_utf8(it.record.value.to_vec()).unwrap())).collect()
}

// Whether they are caught.

/// Whether trials from `seed` on fail.
fn is_caught(seed: u64, runs: u64, body: impl AsyncFn(&Trial)) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    catch_unwind(AssertUnwindSafe(|| runtime.block_on(trials_from(seed, runs, body)))).is_err()
}

/// Whatever the seed: the default effort finds it.
fn must_be_caught(what: &str, body: impl AsyncFn(&Trial)) {
    let starts: u64 = std::env::var("TIDELOG_SEEDS").ok().and_then(|starts| starts.parse().ok()).unwrap_or(0);
    for start in 0..starts {
        let first = start * 1_000_003;
        let caught: Vec<_> =
            (first..first + RUNS).filter(|seed| is_caught(*seed, 1, &body)).map(|seed| seed - first + 1).collect();
        println!(
            "{what}, seeds from {first}: caught by {} of {RUNS} runs, first by run {:?}",
            caught.len(),
            caught.first()
        );
        assert!(!caught.is_empty());
    }
    for start in 0..4 {
        assert!(is_caught(start * 333_333_331, RUNS, &body), "{what}, seeds from {start}");
    }
}

#[test]
fn a_producer_without_a_name_is_caught() {
    must_be_caught("anonymous producer", async |trial| producer_trial(trial, anonymous_producer).await);
}

#[test]
fn a_consumer_that_notes_its_place_first_is_caught() {
    must_be_caught("place before effect", async |trial| consumer_trial(trial, notes_before_it_handles).await);
}

#[test]
fn a_consumer_that_notes_its_place_behind_is_caught() {
    must_be_caught("effect before place", async |trial| consumer_trial(trial, handles_before_it_notes).await);
}

#[tokio::test]
async fn a_producer_with_a_name_and_numbers_passes() {
    trials_from(1, RUNS, async |trial| producer_trial(trial, named_producer).await).await;
}

#[tokio::test]
async fn a_consumer_that_does_both_at_once_passes() {
    trials_from(1, RUNS, async |trial| consumer_trial(trial, handles_and_notes_at_once).await).await;
}
