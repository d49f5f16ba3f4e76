//! What a listener hears of a client's connection.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod harness;

use std::time::Duration;

use harness::Broker;
use tidelog_client::{Client, ConnectionEvent, ConnectionEvents, Error, ErrorKind};
use tidelog_protocol::TransportError;
use tokio::time::timeout;

async fn next(events: &mut ConnectionEvents) -> ConnectionEvent {
    // The clock is paused: this passes only when every task is idle.
    timeout(Duration::from_secs(100), events.next()).await.expect("an event comes").expect("the client is open")
}

async fn nothing(events: &mut ConnectionEvents) {
    let event = timeout(Duration::from_secs(100), events.next()).await;
    assert!(event.is_err(), "{event:?}");
}

fn unreachable(broker: &Broker, times: usize) {
    let error = || TransportError::Unreachable("here: nobody".into());
    broker.state().connect_errors.extend((0..times).map(|_| error()));
}

#[tokio::test(start_paused = true)]
async fn a_loss_the_tries_and_the_return_are_told_in_order() {
    let broker = Broker::new();
    let client = broker.client().await;
    let mut events = client.events();
    nothing(&mut events).await;
    broker.cut_all();
    // Told although nothing needs the connection; nothing is tried before something does.
    let ConnectionEvent::Lost { error, .. } = next(&mut events).await else { panic!("no loss") };
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    nothing(&mut events).await;
    unreachable(&broker, 3);
    broker.state().start_count = 2;
    client.status().await.unwrap_err();
    for number in 1..=3 {
        let ConnectionEvent::Reconnecting { attempt, delay, error, .. } = next(&mut events).await else {
            panic!("no try number {number}")
        };
        assert_eq!(attempt, number);
        let whole = Duration::from_millis(20 << (number - 1));
        assert!(delay >= whole / 2 && delay <= whole, "{delay:?}");
        assert!(error.to_string().contains("here: nobody"));
    }
    let ConnectionEvent::Connected { address, resumed, start_count, .. } = next(&mut events).await else {
        panic!("not connected")
    };
    assert_eq!((address.as_str(), resumed, start_count), ("memory", true, 2));
    nothing(&mut events).await;
    client.close().await;
    assert!(events.next().await.is_none(), "closed");
    assert!(client.events().next().await.is_none(), "nothing will happen any more");
}

#[tokio::test(start_paused = true)]
async fn giving_up_is_told_and_the_next_call_tries_anew() {
    let broker = Broker::new();
    let client = Client::connect(broker.config().with_timeout(Duration::from_secs(2))).await.unwrap();
    let mut events = client.events();
    broker.cut_all();
    assert!(matches!(next(&mut events).await, ConnectionEvent::Lost { .. }));
    unreachable(&broker, 1000);
    let error = client.list_streams().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    let told = loop {
        match next(&mut events).await {
            ConnectionEvent::Reconnecting { .. } => {}
            ConnectionEvent::GaveUp { error, .. } => break error,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(told, Error::TimedOut { .. }), "{told}");
    broker.state().connect_errors.clear();
    client.list_streams().await.unwrap();
    assert!(matches!(next(&mut events).await, ConnectionEvent::Connected { resumed: true, .. }));
}

#[tokio::test(start_paused = true)]
async fn each_loss_and_each_return_is_told_once() {
    let broker = Broker::new();
    let client = broker.client().await;
    let mut events = client.events();
    for _ in 0..5 {
        broker.cut_all();
        assert!(matches!(next(&mut events).await, ConnectionEvent::Lost { .. }));
        client.list_streams().await.unwrap();
        assert!(matches!(next(&mut events).await, ConnectionEvent::Connected { .. }));
    }
    nothing(&mut events).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_listener_loses_the_oldest_and_is_told_how_many() {
    let broker = Broker::new();
    let client = broker.client().await;
    let (mut slow, mut quick) = (client.events(), client.events());
    let mut heard = 0;
    for _ in 0..50 {
        broker.cut_all();
        client.list_streams().await.unwrap();
        assert!(matches!(next(&mut quick).await, ConnectionEvent::Lost { .. }));
        assert!(matches!(next(&mut quick).await, ConnectionEvent::Connected { .. }));
        heard += 2;
    }
    let ConnectionEvent::Missed { count, .. } = next(&mut slow).await else { panic!("not told") };
    assert_eq!(count, heard - 64);
    for _ in 0..32 {
        assert!(matches!(next(&mut slow).await, ConnectionEvent::Lost { .. }));
        assert!(matches!(next(&mut slow).await, ConnectionEvent::Connected { .. }));
    }
    nothing(&mut slow).await;
}

#[tokio::test(start_paused = true)]
async fn an_older_copy_of_the_log_is_another_log() {
    let broker = Broker::new();
    broker.state().start_count = 7;
    let client = broker.client().await;
    let mut events = client.events();
    broker.state().start_count = 3;
    broker.cut_all();
    let error = client.list_streams().await.unwrap_err();
    assert!(matches!(&error, Error::AnotherLog { .. }), "{error}");
    assert!(error.to_string().contains("start number 3"), "{error}");
    assert!(matches!(next(&mut events).await, ConnectionEvent::Lost { .. }));
    assert!(matches!(next(&mut events).await, ConnectionEvent::GaveUp { error: Error::AnotherLog { .. }, .. }));
}
