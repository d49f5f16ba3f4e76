//! How long a test's broker takes to be there and to be gone.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a bench that fails says where")]

use std::future::IntoFuture as _;
use std::time::Duration;

use tidelog::testkit::{Start, TestBroker};
use tokio::time::Instant;

const STARTS: usize = 1_000;
const WARM_UP: usize = 20;
const AT_ONCE: usize = 64;

fn main() {
    // `cargo test --benches` and the like only ask whether it runs.
    let starts = if std::env::args().any(|argument| argument == "--bench") { STARTS } else { 20 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        one_after_the_other("in memory", starts, TestBroker::start).await;
        one_after_the_other("on disk", starts / 4, || TestBroker::start().on_disk()).await;
        at_once("in memory", TestBroker::start).await;
        at_once("on disk", || TestBroker::start().on_disk()).await;
    });
}

async fn one_after_the_other(what: &str, starts: usize, start: impl Fn() -> Start) {
    let (mut up, mut down, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for life in 0..WARM_UP + starts {
        let began = Instant::now();
        let broker = start().await;
        let is_up = Instant::now();
        broker.stop().await;
        if life >= WARM_UP {
            up.push(is_up - began);
            down.push(is_up.elapsed());
            both.push(began.elapsed());
        }
    }
    println!("{what}, {starts} starts: up {}, gone {}, both {}", figures(up), figures(down), figures(both));
}

async fn at_once(what: &str, start: impl Fn() -> Start) {
    let began = Instant::now();
    let starting: Vec<_> = (0..AT_ONCE).map(|_| tokio::spawn(start().into_future())).collect();
    let mut brokers = Vec::new();
    for broker in starting {
        brokers.push(broker.await.unwrap());
    }
    let up = began.elapsed();
    let stopping: Vec<_> = brokers.into_iter().map(|broker| tokio::spawn(broker.stop())).collect();
    for stopped in stopping {
        stopped.await.unwrap();
    }
    println!("{what}, {AT_ONCE} at once: up after {:.1} ms, gone after {:.1} ms", millis(up), millis(began.elapsed()));
}

fn figures(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: usize| millis(times[(times.len() - 1) * part / 100]);
    format!("p50 {:.2} ms p99 {:.2} ms max {:.2} ms", at(50), at(99), at(100))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
