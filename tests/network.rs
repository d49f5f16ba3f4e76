//! A bad network between the client and the broker: the line cut at each step of the protocol, and datagrams dropped,
//! doubled and reordered all the time. Whatever happens to them, the same sequence again settles it.
//!
//! `TIDELOG_CUTS` cuts of each step (6 unless told; 25 in CI, 500 in a soak), from `TIDELOG_SEED`, or a new one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod cuts;
mod harness;

use std::cell::{Cell, RefCell};
use std::net::UdpSocket;
use std::time::Duration;

use cuts::plan::{Death, Plan, Step, Trouble};
use cuts::rig::{self, Outcome};
use cuts::watch::Moment;
use harness::random::{Random, number_from_environment};
use harness::udp_proxy::{UdpProxy, Weather};
use tidelog_protocol::FrameKind;
use tokio::time::Instant;

/// Cuts of one step unless told otherwise: one of each kind.
const CUTS: u64 = 6;

/// Cases that run at the same time: most of a case is waiting for somebody's patience.
const CASES_AT_ONCE: usize = 8;

/// Cuts a step as often as asked for and gives what all of it came to.
async fn cut(step: Step) -> Outcome {
    let cuts = number_from_environment("TIDELOG_CUTS").unwrap_or(CUTS);
    let seed = Random::seed_of_run();
    run_all(&format!("{step:?}"), seed, (0..cuts).map(|index| Plan::new(seed, step, index)).collect()).await
}

/// Carries plans out, some at a time, and gives what all of it came to.
///
/// On one thread: the packets of what a client has written leave only after whoever watches has been told of it.
async fn run_all(what: &str, seed: u64, plans: Vec<Plan>) -> Outcome {
    println!("{what}: TIDELOG_SEED={seed} TIDELOG_CUTS={}", plans.len());
    let queue = RefCell::new(plans.iter().enumerate());
    let next = || queue.borrow_mut().next();
    let (total, failures) = (Cell::new(Outcome::default()), RefCell::new(Vec::new()));
    let work = async || {
        while let Some((index, plan)) = next() {
            let began = Instant::now();
            match rig::run(*plan).await {
                Ok(outcome) => {
                    println!("{what} {index}: {plan}: {outcome}; {:?}", began.elapsed());
                    total.set(total.get().with(outcome));
                }
                Err(what) => failures.borrow_mut().push(format!("{index}: {plan}: {what}")),
            }
        }
    };
    together([(); CASES_AT_ONCE].map(|()| work())).await;
    let failures = failures.take();
    assert!(failures.is_empty(), "TIDELOG_SEED={seed} TIDELOG_CUTS={}: {failures:#?}", plans.len());
    println!("{what}: {} cuts: {}", plans.len(), total.get());
    total.get()
}

/// Polls all of them until each is done.
async fn together(futures: impl IntoIterator<Item = impl Future<Output = ()>>) {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        futures.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[tokio::test]
async fn a_cut_handshake_is_settled_by_another() {
    cut(Step::Handshake).await;
}

#[tokio::test]
async fn a_cut_hello_is_settled_by_another() {
    cut(Step::Hello).await;
}

#[tokio::test]
async fn a_stream_whose_creation_was_cut_is_made_once() {
    cut(Step::CreateStream).await;
}

#[tokio::test]
async fn a_producer_whose_opening_was_cut_does_not_fence_itself() {
    cut(Step::OpenProducer).await;
}

#[tokio::test]
async fn an_attachment_that_was_cut_takes_over_from_itself() {
    cut(Step::Attach).await;
}

#[tokio::test]
async fn an_attachment_that_arrives_late_does_not_end_the_one_that_lives() {
    let seed = Random::seed_of_run();
    let until = Moment::Sent(FrameKind::Publish, "");
    let late = |index| Trouble::Late { datagrams: 1 + index % 4, until };
    let plan =
        |index| Plan { trouble: late(index), after: 0, death: Death::Never, ..Plan::new(seed, Step::Attach, index) };
    let outcome = run_all("late attachments", seed, (0..8).map(plan).collect()).await;
    assert!(outcome.line.released > 0, "{outcome}: nothing was late");
}

#[tokio::test]
async fn a_publish_that_was_cut_is_stored_once() {
    let outcome = cut(Step::Publish).await;
    assert!(
        outcome.duplicates > 0,
        "no batch was sent again that the broker had: the cuts do not hit what they should"
    );
}

#[tokio::test]
async fn an_answer_that_was_cut_is_given_again() {
    cut(Step::Answer).await;
}

#[tokio::test]
async fn a_subscription_that_was_cut_begins_where_it_should() {
    cut(Step::Subscribe).await;
}

#[tokio::test]
async fn a_delivery_that_was_cut_goes_on_behind_what_was_seen() {
    cut(Step::Deliver).await;
}

#[tokio::test]
async fn a_cut_while_credit_is_waited_for_leaves_nothing_half_sent() {
    cut(Step::Credit).await;
}

#[tokio::test]
async fn a_close_that_was_cut_leaves_everything_stored() {
    cut(Step::Close).await;
}

#[tokio::test]
async fn everything_is_stored_once_while_datagrams_are_dropped_doubled_and_reordered() {
    let seed = Random::seed_of_run();
    for dropped in [5, 10, 20] {
        let weather = Weather { dropped, doubled: 5, delayed: 20, delay_max: Duration::from_millis(5) };
        let plans = (0..6).map(|index| Plan::in_weather(seed ^ dropped << 40 ^ index << 32, weather)).collect();
        let outcome = run_all(&format!("{dropped} % lost"), seed, plans).await;
        let line = outcome.line;
        assert!(line.dropped > 0 && line.doubled > 0 && line.delayed > 0, "{line:?}");
    }
}

/// Which of 500 datagrams arrive, and how often, in a weather that comes from this seed.
fn arrivals(seed: u64) -> Vec<u16> {
    let weather = Weather { dropped: 20, doubled: 10, ..Weather::default() };
    let broker = UdpSocket::bind("127.0.0.1:0").unwrap();
    let proxy = UdpProxy::start(seed, broker.local_addr().unwrap(), weather).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut arrivals = Vec::new();
    let mut buffer = [0; 8];
    for number in 0..500_u16 {
        client.send_to(&number.to_le_bytes(), proxy.address()).unwrap();
        let handled = loop {
            let tally = proxy.tally();
            if tally.passed + tally.dropped > u64::from(number) {
                break tally;
            }
            std::thread::yield_now();
        };
        while (arrivals.len() as u64) < handled.passed + handled.doubled {
            let (len, _) = broker.recv_from(&mut buffer).unwrap();
            arrivals.push(u16::from_le_bytes(buffer[..len].try_into().unwrap()));
        }
    }
    arrivals
}

#[test]
fn a_seed_repeats_what_the_proxy_does_to_each_datagram() {
    let seed = Random::seed_of_run();
    println!("TIDELOG_SEED={seed}");
    let first = arrivals(seed);
    assert!(first.len() > 300 && first.len() < 500, "{} of 500 datagrams arrived", first.len());
    assert_eq!(arrivals(seed), first);
    assert_ne!(arrivals(seed ^ 1), first);
}
