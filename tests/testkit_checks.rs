//! The checks of the test kit: each passes when it is right and fails when it is wrong, with a text that is compared here
//! as a whole, since the text is what they are for.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

use std::time::Duration;

use tidelog::testkit::{Difference, StreamCheck, TestCounters};
use tidelog::{Broker, BrokerConfig};
use tidelog_client::{Client, ClientConfig, Publisher};
use tidelog_protocol::{ErrorCode, ProducerName, Record, StreamName, StreamSettings};
use tokio::time::{Instant, timeout};

/// A wait that is to pass: nothing comes in it, however long it is.
const SHORT: Duration = Duration::from_millis(50);

/// For what takes milliseconds, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Scene {
    broker: Broker,
    client: Client,
}

impl Scene {
    async fn begin() -> Self {
        Self::with(BrokerConfig { http: None, ..BrokerConfig::in_memory() }).await
    }

    async fn with(config: BrokerConfig) -> Self {
        let broker = Broker::start(config).unwrap();
        let config = ClientConfig::find(&broker.address().parse().unwrap(), None).unwrap();
        let client = Client::connect(config).await.unwrap();
        Self { broker, client }
    }

    async fn create(&self, stream: &str) {
        let name = StreamName::new(stream).unwrap();
        self.client.create_stream(&name, StreamSettings::default(), true).await.unwrap();
    }

    /// Opens a publisher; an anonymous one where the name is empty.
    async fn publisher(&self, producer: &str, stream: &str) -> Publisher {
        let builder = match producer {
            "" => self.client.anonymous_producer(),
            name => self.client.producer(ProducerName::new(name).unwrap()),
        };
        self.create(stream).await;
        builder.open().await.unwrap().stream(StreamName::new(stream).unwrap()).await.unwrap()
    }

    async fn publish(&self, producer: &str, values: &[&str]) {
        let publisher = self.publisher(producer, "orders").await;
        for value in values {
            publisher.publish(Record::new(value.as_bytes().to_vec())).await.unwrap();
        }
    }

    async fn publish_keyed(&self, producer: &str, records: &[(&str, &str)]) {
        let publisher = self.publisher(producer, "orders").await;
        for (key, value) in records {
            let record = Record::new(value.as_bytes().to_vec()).with_key(key.as_bytes().to_vec());
            publisher.publish(record).await.unwrap();
        }
    }

    fn orders(&self) -> StreamCheck {
        StreamCheck::new(self.client.clone(), "orders")
    }
}

/// The whole text of a failure, the line in this file aside.
#[track_caller]
fn assert_fails<T: std::fmt::Debug>(checked: Result<T, Difference>, text: &str) {
    let difference = checked.unwrap_err();
    assert_eq!(difference.location().file(), file!());
    let shown = difference.to_string().replace(&format!("{}:{}", file!(), difference.location().line()), "HERE");
    assert!(shown == text, "the text is\n{shown}\n\nand not\n{text}");
    assert_eq!(format!("{difference:?}"), difference.to_string());
    assert_eq!(text.lines().next(), Some(difference.headline()));
}

#[tokio::test]
async fn what_was_expected_passes_on_one_thread() {
    everything_passes().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_expected_passes_on_several_threads() {
    everything_passes().await;
}

async fn everything_passes() {
    let scene = Scene::begin().await;
    scene.publish_keyed("shop", &[("1", "created"), ("2", "created"), ("1", "paid"), ("1", "paid")]).await;
    scene.publish("", &["bare"]).await;
    let orders = scene.orders();
    orders.expect(["created", "created"]).await;
    orders.expect(vec![b"paid".to_vec()]).await;
    orders.expect([String::from("paid")].iter()).await;
    orders.expect::<&str>([]).await;
    orders.expect(["bare"]).await;
    orders.expect_no_more().await;
    let begin = Instant::now();
    orders.expect_no_more_for(SHORT).await;
    assert!(begin.elapsed() >= SHORT);
    let at_once = scene.orders().within(Duration::ZERO);
    at_once.expect(["created"]).await;
    at_once.expect(["created", "paid"]).await;
    at_once.expect_count(5).await;
    orders.expect_count(5).await;
    orders.expect_exactly_once("2").await;
    orders.expect_exactly_once(["2", "2"]).await;
    orders.expect_exactly_once(b"2").await;
    orders.expect_exactly_once(Vec::from(["2".to_owned()])).await;
    orders.expect_ordered("1").await;
    orders.expect_ordered_by("1", |record| record.offset).await;

    let records = orders.records().await;
    assert_eq!(records.len(), 5);
    assert_eq!((records[2].offset, records[2].text().as_ref()), (2, "paid"));
    assert_eq!((records[2].producer.as_deref(), records[2].sequence), (Some("shop"), 3));
    assert_eq!((records[4].producer.as_deref(), records[4].sequence), (None, 0));
    assert_eq!(format!("{:?}", records[2]), r#"offset 2, 'shop' sequence 3, key "1": "paid""#);
}

#[tokio::test]
async fn a_missing_record_is_told_without_waiting_for_the_rest() {
    let scene = Scene::begin().await;
    scene.publish("shop", &["created", "shipped"]).await;
    // The limit is never reached: the first record that differs ends it.
    let orders = scene.orders().within(Duration::from_secs(3_600));
    assert_fails(
        orders.check_expect(["created", "paid", "shipped", "closed"]).await,
        r#"stream 'orders' is not as expected: 1 missing
  at HERE

       expected   found
    1  "created"  "created"  offset 0, 'shop' sequence 1
  - 2  "paid"                missing
    3  "shipped"  "shipped"  offset 1, 'shop' sequence 2
  - 4  "closed"              not there yet"#,
    );
}

#[tokio::test]
async fn a_record_that_nobody_expects_is_told() {
    let scene = Scene::begin().await;
    scene.publish("shop", &["created"]).await;
    scene.publish("intruder", &["fake"]).await;
    scene.publish("shop", &["paid", "shipped", "closed"]).await;
    assert_fails(
        scene.orders().check_expect(["created", "paid", "shipped"]).await,
        r#"stream 'orders' is not as expected: 1 not expected
  at HERE

       expected   found
    1  "created"  "created"  offset 0, 'shop' sequence 1
  +               "fake"     offset 1, 'intruder' sequence 1
    2  "paid"     "paid"     offset 2, 'shop' sequence 2
    3  "shipped"  "shipped"  offset 3, 'shop' sequence 3
  … and 1 more record behind"#,
    );
}

#[tokio::test]
async fn a_record_that_is_there_twice_is_told_with_its_likely_cause() {
    let scene = Scene::begin().await;
    scene.publish("", &["created", "paid", "paid", "shipped", "shipped"]).await;
    assert_fails(
        scene.orders().check_expect(["created", "paid", "shipped", "closed"]).await,
        r#"stream 'orders' is not as expected: 2 not expected
  at HERE

       expected   found
    1  "created"  "created"  offset 0, anonymous
    2  "paid"     "paid"     offset 1, anonymous
  +               "paid"     offset 2, anonymous; same value as offset 1, anonymous
    3  "shipped"  "shipped"  offset 3, anonymous
  +               "shipped"  offset 4, anonymous; same value as offset 3, anonymous
  - 4  "closed"              not there yet

  Most likely: published without a producer name and sent again (2 records). What a producer with a name sends again is stored once."#,
    );
}

#[tokio::test]
async fn a_copy_of_what_an_earlier_check_has_passed_is_told() {
    let scene = Scene::begin().await;
    scene.publish("shop", &["created", "created", "paid"]).await;
    let orders = scene.orders();
    orders.expect(["created"]).await;
    assert_fails(
        orders.check_expect(["paid"]).await,
        r#"stream 'orders' is not as expected: 1 not expected
  at HERE

       expected  found
  +              "created"  offset 1, 'shop' sequence 2; same value as offset 0, 'shop' sequence 1
    1  "paid"    "paid"     offset 2, 'shop' sequence 3

  Most likely: 'shop' published it as two records, sequences 1 and 2. What is sent again under its own sequence (`send_at`) is stored once."#,
    );
    // A failure has moved nothing.
    orders.expect(["created", "paid"]).await;
    assert_fails(
        orders.within(Duration::ZERO).check_expect(["created"]).await,
        r#"stream 'orders': 0 of 1 record came within 0 s
  at HERE

       expected   found
  - 1  "created"         did not come; an earlier check has passed this value at offset 0"#,
    );
}

#[tokio::test]
async fn records_that_changed_places_are_told_with_their_likely_cause() {
    let scene = Scene::begin().await;
    scene.publish("shop", &["created", "shipped", "paid", "closed"]).await;
    assert_fails(
        scene.orders().check_expect(["created", "paid", "shipped", "closed"]).await,
        r#"stream 'orders' is not as expected: 1 out of order
  at HERE

       expected   found
    1  "created"  "created"  offset 0, 'shop' sequence 1
  - 2  "paid"                out of order: at offset 2
    3  "shipped"  "shipped"  offset 1, 'shop' sequence 2
  +               "paid"     offset 2, 'shop' sequence 3; out of order: expected as number 2
    4  "closed"   "closed"   offset 3, 'shop' sequence 4

  Most likely: 'shop' published them in this order; its sequences ascend."#,
    );

    let scene = Scene::begin().await;
    scene.publish("shop", &["created"]).await;
    scene.publish("web", &["seen"]).await;
    scene.publish("shop", &["paid"]).await;
    assert_fails(
        scene.orders().check_expect(["created", "paid", "seen"]).await,
        r#"stream 'orders' is not as expected: 1 out of order
  at HERE

       expected   found
    1  "created"  "created"  offset 0, 'shop' sequence 1
  - 2  "paid"                out of order: at offset 2
    3  "seen"     "seen"     offset 1, 'web' sequence 1
  +               "paid"     offset 2, 'shop' sequence 2; out of order: expected as number 2

  Most likely: a race between producers, here 'shop' and 'web'. Only records of one producer have an order."#,
    );
}

#[tokio::test]
async fn a_changed_value_is_shown_where_it_differs() {
    let scene = Scene::begin().await;
    let order =
        |total: &str| format!(r#"{{"customer":"Ada Lovelace","items":["apple","pear"],"total":{total},"paid":true}}"#);
    scene.publish("shop", &["created", &order("12.00"), "shipped"]).await;
    assert_fails(
        scene.orders().check_expect(["created", &order("11.50"), "shipped"]).await,
        r#"stream 'orders' is not as expected: 1 changed
  at HERE

       expected                          found
    1  "created"                         "created"                         offset 0, 'shop' sequence 1
  ! 2  "…"],"total":11.50,"paid":true}"  "…"],"total":12.00,"paid":true}"  offset 1, 'shop' sequence 2; differs from byte 61 on
    3  "shipped"                         "shipped"                         offset 2, 'shop' sequence 3"#,
    );
    let orders = scene.orders();
    assert_fails(
        orders.check_expect([&b"created"[..], &[0xff, 0x00]]).await,
        r#"stream 'orders' is not as expected: 1 changed
  at HERE

       expected   found
    1  "created"  "created"                                               offset 0, 'shop' sequence 1
  ! 2  0xff00     "{"customer":"Ada Lovelace","items":["app…" (78 bytes)  offset 1, 'shop' sequence 2; differs from byte 0 on
  … and 1 more record behind"#,
    );
}

#[tokio::test]
async fn what_did_not_come_in_time_is_told_beside_what_came() {
    let scene = Scene::begin().await;
    scene.create("orders").await;
    let orders = scene.orders().within(SHORT);
    assert_fails(
        orders.check_expect(["created", "paid"]).await,
        r#"stream 'orders': 0 of 2 records came within 50 ms
  at HERE

       expected   found
  - 1  "created"         did not come
  - 2  "paid"            did not come"#,
    );
    scene.publish("shop", &["created"]).await;
    assert_fails(
        orders.check_expect(["created", "paid"]).await,
        r#"stream 'orders': 1 of 2 records came within 50 ms
  at HERE

       expected   found
    1  "created"  "created"  offset 0, 'shop' sequence 1
  - 2  "paid"                did not come"#,
    );
    assert_fails(
        orders.check_count(2).await,
        r#"stream 'orders' has 1 of 2 records after 50 ms
  at HERE

    offset 0, 'shop' sequence 1: "created""#,
    );
}

#[tokio::test]
async fn a_stream_that_is_not_there_is_told_with_those_that_are() {
    let scene = Scene::begin().await;
    assert_fails(
        scene.orders().check_records().await,
        "stream 'orders' can't be read: there is no stream 'orders', and no other either
  at HERE",
    );
    scene.create("refunds").await;
    scene.create("order").await;
    assert_fails(
        scene.orders().check_no_more().await,
        "stream 'orders' can't be read: there is no stream 'orders'; there are: order, refunds
  at HERE",
    );
    assert_fails(
        scene.orders().within(SHORT).check_expect(["created"]).await,
        r#"stream 'orders': 0 of 1 record came within 50 ms
  at HERE

       expected   found
  - 1  "created"         did not come

  There is no stream 'orders'; there are: order, refunds."#,
    );
    assert_fails(
        scene.orders().within(SHORT).check_exactly_once(["1", "2"]).await,
        r#"stream 'orders': 2 of 2 keys without exactly one record after 50 ms
  at HERE

  - "1"  no record
  - "2"  no record

  There is no stream 'orders'; there are: order, refunds."#,
    );
    assert_fails(
        StreamCheck::new(scene.client.clone(), "a b").check_count(1).await,
        "stream 'a b' can't be read: a stream name has ' ' at byte 1; only A-Z a-z 0-9 . _ - are allowed
  at HERE",
    );
}

#[tokio::test]
async fn another_number_of_records_is_told() {
    let scene = Scene::begin().await;
    scene.publish("", &["created", "created", "paid", "paid", "shipped"]).await;
    let orders = scene.orders();
    assert_fails(
        orders.check_count(3).await,
        r#"stream 'orders' has 5 records instead of 3
  at HERE

    offset 0, anonymous: "created"
    offset 1, anonymous: "created"; same value as offset 0, anonymous
    offset 2, anonymous: "paid"
  + offset 3, anonymous: "paid"; same value as offset 2, anonymous
  + offset 4, anonymous: "shipped"

  Most likely: published without a producer name and sent again (2 records). What a producer with a name sends again is stored once."#,
    );
    assert_fails(
        orders.check_count(0).await,
        r#"stream 'orders' has 5 records instead of 0
  at HERE

  + offset 0, anonymous: "created"
  + offset 1, anonymous: "created"; same value as offset 0, anonymous
  + offset 2, anonymous: "paid"
  + offset 3, anonymous: "paid"; same value as offset 2, anonymous
  + offset 4, anonymous: "shipped""#,
    );
}

#[tokio::test]
async fn what_stands_behind_the_expected_is_told() {
    let scene = Scene::begin().await;
    scene.publish("shop", &["created", "paid", "created", "shipped"]).await;
    let orders = scene.orders();
    orders.expect(["created", "paid"]).await;
    assert_fails(
        orders.check_no_more().await,
        r#"stream 'orders' has 2 records more than expected
  at HERE

  + offset 2, 'shop' sequence 3: "created"; same value as offset 0, 'shop' sequence 1
  + offset 3, 'shop' sequence 4: "shipped""#,
    );
    orders.expect(["created"]).await;
    orders.expect(["shipped"]).await;
    orders.expect_no_more().await;

    let publisher = scene.publisher("late", "orders").await;
    let quiet = orders.check_no_more_for(Duration::from_secs(3_600));
    let (checked, published) = tokio::join!(quiet, publisher.publish(Record::new("late")));
    published.unwrap();
    assert_fails(
        checked,
        r#"stream 'orders' has 1 record more than expected
  at HERE

  + offset 4, 'late' sequence 1: "late""#,
    );
}

#[tokio::test]
async fn keys_without_exactly_one_record_are_told() {
    let scene = Scene::begin().await;
    scene.publish_keyed("shop", &[("1", "created"), ("2", "created")]).await;
    scene.publish_keyed("", &[("3", "created"), ("3", "created"), ("4", "created")]).await;
    let orders = scene.orders().within(SHORT);
    orders.expect_exactly_once(["1", "2", "4"]).await;
    assert_fails(
        orders.check_exactly_once(["1", "3", "nine"]).await,
        r#"stream 'orders': 2 of 3 keys without exactly one record
  at HERE

  + "3"     2 records
      offset 2, anonymous, key "3": "created"
      offset 3, anonymous, key "3": "created"; same value as offset 2, anonymous
  - "nine"  no record

  Most likely: published without a producer name and sent again. What a producer with a name sends again is stored once."#,
    );
    assert_fails(
        orders.check_exactly_once("nine").await,
        r#"stream 'orders': 1 of 1 key without exactly one record after 50 ms
  at HERE

  - "nine"  no record"#,
    );
}

#[tokio::test]
async fn records_of_a_key_out_of_order_are_told() {
    let scene = Scene::begin().await;
    scene.publish_keyed("shop", &[("1", "on"), ("1", "off"), ("2", "on"), ("1", "on")]).await;
    let publisher = scene.publisher("clock", "orders").await;
    for (value, timestamp_ms) in [("first", 10), ("second", 30), ("third", 20)] {
        publisher.publish(Record::new(value).with_key("3").with_timestamp_ms(timestamp_ms)).await.unwrap();
    }
    let orders = scene.orders().within(SHORT);
    assert_fails(
        orders.check_ordered("1").await,
        r#"stream 'orders': 1 of 3 records of key "1" out of order
  at HERE

    offset 0, 'shop' sequence 1, key "1": "on"
    offset 1, 'shop' sequence 2, key "1": "off"
  ! offset 3, 'shop' sequence 4, key "1": "on"; same value as offset 0, and others in between"#,
    );
    orders.expect_ordered("2").await;
    assert_fails(
        orders.check_ordered("3").await,
        r#"stream 'orders': 1 of 3 records of key "3" out of order
  at HERE

    offset 4, 'clock' sequence 1, key "3", timestamp 10: "first"
    offset 5, 'clock' sequence 2, key "3", timestamp 30: "second"
  ! offset 6, 'clock' sequence 3, key "3", timestamp 20: "third"; offset 5 has the later timestamp 30"#,
    );
    assert_fails(
        orders.check_ordered("nine").await,
        r#"stream 'orders' has no record of key "nine" after 50 ms
  at HERE"#,
    );
    orders.expect_ordered_by("1", |record| record.sequence).await;
    assert_fails(
        orders.check_ordered_by("3", |record| record.text().len()).await,
        r#"stream 'orders': 1 of 3 records of key "3" out of order
  at HERE

    offset 4, 'clock' sequence 1, key "3", timestamp 10: "first"
    offset 5, 'clock' sequence 2, key "3", timestamp 30: "second"
  ! offset 6, 'clock' sequence 3, key "3", timestamp 20: "third"; 5 comes behind 6 of offset 5"#,
    );
}

#[tokio::test]
async fn a_long_list_is_shown_around_the_first_difference() {
    let scene = Scene::begin().await;
    let publisher = scene.publisher("shop", "orders").await;
    let values: Vec<String> = (0..3_000).map(|number| format!("order {number}")).collect();
    for value in values.iter().filter(|value| *value != "order 1500" && *value != "order 1520") {
        publisher.send_value(value.as_bytes()).await.unwrap();
    }
    publisher.flush().await.unwrap();
    assert_fails(
        scene.orders().check_expect(&values).await,
        r#"stream 'orders' is not as expected: 2 missing
  at HERE

          expected      found
  … 1497 as expected
    1498  "order 1497"  "order 1497"  offset 1497, 'shop' sequence 1498
    1499  "order 1498"  "order 1498"  offset 1498, 'shop' sequence 1499
    1500  "order 1499"  "order 1499"  offset 1499, 'shop' sequence 1500
  - 1501  "order 1500"                missing
    1502  "order 1501"  "order 1501"  offset 1500, 'shop' sequence 1501
    1503  "order 1502"  "order 1502"  offset 1501, 'shop' sequence 1502
    1504  "order 1503"  "order 1503"  offset 1502, 'shop' sequence 1503
  … 13 as expected
    1518  "order 1517"  "order 1517"  offset 1516, 'shop' sequence 1517
    1519  "order 1518"  "order 1518"  offset 1517, 'shop' sequence 1518
    1520  "order 1519"  "order 1519"  offset 1518, 'shop' sequence 1519
  - 1521  "order 1520"                missing
    1522  "order 1521"  "order 1521"  offset 1519, 'shop' sequence 1520
    1523  "order 1522"  "order 1522"  offset 1520, 'shop' sequence 1521
    1524  "order 1523"  "order 1523"  offset 1521, 'shop' sequence 1522
  … 976 as expected
  … and 500 more records expected, not compared
  … and 500 more records behind"#,
    );
}

#[tokio::test]
async fn a_panic_tells_where_the_test_asked() {
    let scene = Scene::begin().await;
    scene.publish("shop", &["created"]).await;
    let orders = scene.orders();
    let asked = line!() + 1;
    let ended = tokio::spawn(async move { orders.expect(["paid"]).await }).await;
    let text = *ended.unwrap_err().into_panic().downcast::<String>().unwrap();
    assert!(text.contains(&format!("\n  at {}:{asked}\n", file!())), "{text}");
    assert!(text.starts_with("stream 'orders' is not as expected: 1 changed\n"), "{text}");
}

#[tokio::test]
async fn a_stream_and_its_records_are_waited_for() {
    let scene = Scene::begin().await;
    // The checks run first, on the same thread, and find nothing yet.
    let orders = scene.orders().within(Duration::from_secs(3_600));
    let other = scene.orders().within(Duration::from_secs(3_600));
    let checks = async { tokio::join!(orders.expect(["created", "paid"]), other.expect_count(2)) };
    let publishing = async {
        tokio::task::yield_now().await;
        scene.publish_keyed("shop", &[("1", "created"), ("2", "paid")]).await;
    };
    // Long before their limit: they end as what they wait for comes.
    timeout(PATIENCE, async { tokio::join!(biased; checks, publishing) }).await.unwrap();
    let once = orders.check_exactly_once(["1", "2", "3"]);
    let publishing = scene.publish_keyed("web", &[("3", "seen")]);
    let (checked, ()) = timeout(PATIENCE, async { tokio::join!(biased; once, publishing) }).await.unwrap();
    checked.unwrap();
    orders.expect(["seen"]).await;
}

#[tokio::test]
async fn another_stream_of_the_name_is_told() {
    let scene = Scene::begin().await;
    scene.publish("shop", &["created"]).await;
    let orders = scene.orders();
    orders.expect(["created"]).await;
    let info = scene.client.stream_info(&StreamName::new("orders").unwrap()).await.unwrap();
    scene.client.remove_stream(info.id).await.unwrap();
    scene.publish("shop", &["created", "paid"]).await;
    assert_fails(
        orders.check_expect(["paid"]).await,
        r#"stream 'orders' can't be read: it was removed since it was first looked at
  at HERE

       expected  found
  - 1  "paid"           not read"#,
    );
    assert_fails(
        orders.check_no_more().await,
        "stream 'orders' can't be read: it was removed since it was first looked at
  at HERE",
    );
}

#[tokio::test]
async fn damage_is_told_and_never_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        || BrokerConfig { listen: "127.0.0.1:0".parse().unwrap(), http: None, ..BrokerConfig::on_disk(folder.path()) };
    let damaged = "0123456789abcdef".repeat(100);
    let scene = Scene::with(config()).await;
    scene.publish_keyed("shop", &[("1", "created"), ("2", &damaged), ("3", "paid")]).await;
    scene.client.close().await;
    scene.broker.shutdown();
    damage(folder.path(), &damaged.as_bytes()[200..1_000]);

    let scene = Scene::with(config()).await;
    let orders = scene.orders().within(SHORT);
    orders.expect(["created"]).await;
    assert_fails(
        orders.check_expect([damaged.as_str(), "paid"]).await,
        r#"stream 'orders' can't be read: the offsets 1..2 are damaged
  at HERE

       expected                                                  found
  - 1  "0123456789abcdef0123456789abcdef01234567…" (1600 bytes)         not read
  - 2  "paid"                                                           not read"#,
    );
    for checked in [
        orders.check_records().await.map(|_| ()),
        orders.check_count(3).await,
        orders.check_count(1).await,
        orders.check_no_more().await,
        orders.check_no_more_for(SHORT).await,
        orders.check_exactly_once("1").await,
        orders.check_exactly_once("3").await,
        orders.check_ordered("1").await,
        orders.check_ordered("3").await,
    ] {
        assert_fails(
            checked,
            "stream 'orders' can't be read: the offsets 1..2 are damaged
  at HERE",
        );
    }
}

/// Overwrites one byte in the middle of `content`, wherever in the folder it is.
fn damage(folder: &std::path::Path, content: &[u8]) {
    let mut damaged = 0;
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            continue;
        }
        let mut bytes = std::fs::read(&entry).unwrap();
        if let Some(at) = bytes.windows(content.len()).position(|window| window == content) {
            bytes[at + content.len() / 2] ^= 1;
            std::fs::write(&entry, bytes).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1, "the content is in one file");
}

#[tokio::test]
async fn a_broker_that_is_gone_is_told() {
    let scene = Scene::begin().await;
    scene.publish("shop", &["created"]).await;
    let orders = scene.orders().within(SHORT);
    orders.expect(["created"]).await;
    scene.broker.shutdown();
    let text = orders.check_expect(["paid"]).await.unwrap_err().to_string();
    assert!(text.starts_with("stream 'orders': 0 of 1 record came within 50 ms\n"), "{text}");
    assert!(text.contains("\n\n  The broker can't be reached: "), "{text}");
}

#[tokio::test]
async fn counters_are_those_of_the_broker() {
    let scene = Scene::begin().await;
    let before = TestCounters::of(scene.broker.counters());
    scene.publish("shop", &["created", "paid"]).await;
    scene.orders().expect(["created", "paid"]).await;
    let counted = TestCounters::of(scene.broker.counters()).since(&before);
    assert_eq!((counted.records_published, counted.records_delivered), (2, 2), "{counted}");
    assert_eq!((counted.connections, counted.refused(ErrorCode::Fenced)), (1, 0), "{counted}");
    assert!(counted.syncs >= 2 && counted.bytes_published > 0, "{counted}");
    assert!(counted.to_string().starts_with("records_published "), "{counted}");
}
