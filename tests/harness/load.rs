//! The load of a run: three producers on two streams, and a consumer of each.

use std::future::Future;
use std::sync::Arc;

use tidelog_client::Client;
use tidelog_protocol::{ProducerName, StreamName, StreamSettings};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::board::Board;
use super::consumer::{follow, producer_name, read_all, read_from};
use super::failure::Failure;
use super::ledger::Ledger;
use super::producer::{self, Order, Plan};
use super::random::Random;

/// The streams' names.
pub const STREAMS: [&str; 2] = ["orders", "payments"];

/// Stream, window in bytes and records in flight: one with a few in flight, one in bursts, one as fast as it goes.
const PRODUCERS: [(usize, usize, u64); 3] = [(0, 16 << 10, 2), (0, 256 << 10, 200), (1, 128 << 10, u64::MAX)];

/// Everything that talks to the broker.
#[derive(Debug)]
pub struct Load {
    board: Arc<Board>,
    producers: JoinSet<()>,
    consumers: JoinSet<()>,
    orders: Vec<mpsc::UnboundedSender<Order>>,
}

impl Load {
    /// Starts it all.
    pub fn start(board: &Arc<Board>, address: &str) -> Self {
        let (mut producers, mut consumers, mut orders) = (JoinSet::new(), JoinSet::new(), Vec::new());
        for (number, (stream, window_bytes, in_flight)) in (0_u8..).zip(PRODUCERS) {
            let name = ProducerName::new(producer_name(number)).expect("a good name");
            let stream_name = stream_name(stream);
            let plan = Plan { stream, stream_name, producer: number, name, window_bytes, in_flight };
            let (sender, receiver) = mpsc::unbounded_channel();
            orders.push(sender);
            let run = producer::run(plan, Arc::clone(board), address.to_owned(), receiver);
            producers.spawn(tell(Arc::clone(board), run));
        }
        for stream in 0..STREAMS.len() {
            let run = follow(stream, stream_name(stream), Arc::clone(board), address.to_owned());
            consumers.spawn(tell(Arc::clone(board), run));
        }
        Self { board: Arc::clone(board), producers, consumers, orders }
    }

    /// Tells one of the producers to change its session, in this way or any.
    pub fn disturb(&self, random: &mut Random, order: Option<Order>) {
        let any = match random.below(3) {
            0 => Order::TakeOver,
            1 => Order::Claim,
            _ => Order::Abandon,
        };
        let order = order.unwrap_or(any);
        let chosen = random.below(self.orders.len() as u64);
        if let Some(sender) = usize::try_from(chosen).ok().and_then(|chosen| self.orders.get(chosen)) {
            // One that has failed has told so.
            let _ = sender.send(order);
        }
    }

    /// Waits until everything sent is acknowledged, and everything acknowledged was consumed.
    ///
    /// # Errors
    ///
    /// What goes wrong meanwhile.
    pub async fn finish(&mut self) -> Result<(), Failure> {
        for sender in &self.orders {
            let _ = sender.send(Order::Stop);
        }
        while self.producers.join_next().await.is_some() {
            self.board.check()?;
        }
        self.board.wait(|streams| streams.iter().all(|stream| stream.seen() == stream.sent())).await?;
        self.consumers.shutdown().await;
        Ok(())
    }

    /// Ends all of it at once, as if the programs had been killed.
    pub async fn abort(mut self) {
        self.producers.shutdown().await;
        self.consumers.shutdown().await;
    }
}

/// Reads what has come behind `from` in each stream, holds it against what was acknowledged there, and returns where each
/// ends now. Does not keep anybody from sending.
///
/// # Errors
///
/// A violation names the first difference.
pub async fn check_from(client: &Client, board: &Board, from: &[u64]) -> Result<Vec<u64>, Failure> {
    let mut ends = Vec::new();
    for (stream, from) in from.iter().enumerate() {
        let known: Ledger = board.ledger(stream);
        let read = read_from(client, &stream_name(stream), board.seed, *from).await?;
        let judged = known.check_kept_from(*from, &read);
        judged.map_err(|what| Failure::Violation(format!("'{}': {what}", stream_name(stream))))?;
        ends.push(from + read.len() as u64);
    }
    Ok(ends)
}

async fn tell<T>(board: Arc<Board>, run: impl Future<Output = Result<T, Failure>>) {
    if let Err(failure) = run.await {
        board.fail(failure);
    }
}

fn stream_name(stream: usize) -> StreamName {
    StreamName::new(STREAMS.get(stream).expect("a stream of the run")).expect("a good name")
}

/// Makes the streams.
///
/// # Errors
///
/// If the broker refuses.
pub async fn make_streams(client: &Client) -> Result<(), Failure> {
    for stream in 0..STREAMS.len() {
        let made = client.create_stream(&stream_name(stream), StreamSettings::default(), false).await;
        made.map_err(|error| Failure::Violation(format!("making a stream: {error}")))?;
    }
    Ok(())
}

/// Reads everything and holds it against everything known. Nothing is sent meanwhile: a stream that grows while it is
/// read takes longer to read the next time, and grows the more.
///
/// # Errors
///
/// A violation names the first difference.
pub async fn check(client: &Client, board: &Board) -> Result<Vec<u64>, Failure> {
    board.pause(true);
    let mut counts = Vec::new();
    for stream in 0..STREAMS.len() {
        // What is acknowledged while the reader reads may lie behind its end.
        let known: Ledger = board.ledger(stream);
        let read = read_all(client, &stream_name(stream), board.seed).await?;
        let judged = known.check_kept(&read).and_then(|()| board.ledger(stream).check_order(&read));
        judged.map_err(|what| Failure::Violation(format!("'{}': {what}", stream_name(stream))))?;
        counts.push(read.len() as u64);
    }
    board.pause(false);
    board.check()?;
    Ok(counts)
}
