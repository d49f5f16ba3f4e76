//! One producer of a run: sends, notes its receipts, and changes sessions when it is told to.

use std::sync::Arc;

use tidelog_client::{Client, Error, Producer, Publisher};
use tidelog_protocol::{ErrorCode, ProducerName, StreamName};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::board::Board;
use super::broker::connect;
use super::failure::Failure;
use super::payload::{self, Identity};

/// Who sends what, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Index of the stream in the run.
    pub stream: usize,
    pub stream_name: StreamName,
    /// Its number in the records.
    pub producer: u8,
    pub name: ProducerName,
    pub window_bytes: usize,
    /// Records sent and not acknowledged at most.
    pub in_flight: u64,
}

/// What a producer can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Give up the session with what is under way; a new one goes on from what the broker has.
    Abandon,
    /// Open a new session while the old one goes on sending, which has to be refused.
    TakeOver,
    /// The same, but the new session dies as soon as it is open: the old one has to be refused all the same.
    Claim,
    /// Send what was begun, wait until everything is acknowledged, and end.
    Stop,
}

/// Sends until it is told to stop.
///
/// # Errors
///
/// A violation for every error that an honest producer must not see.
pub async fn run(
    plan: Plan,
    board: Arc<Board>,
    address: String,
    mut orders: mpsc::UnboundedReceiver<Order>,
) -> Result<(), Failure> {
    let mut zombies = JoinSet::new();
    let mut session = Session::open(&plan, &board, &address).await?;
    let mut paused = board.paused();
    let mut stop_at = u64::MAX;
    while session.settled < stop_at {
        let identity = Identity::new(plan.producer, session.next);
        let has_room = session.next <= stop_at && session.next - session.settled <= plan.in_flight;
        let may_send = has_room && !*paused.borrow_and_update();
        board.set_sending(plan.producer, may_send || session.settled + 1 < session.next);
        if may_send && session.value.is_empty() {
            session.value = payload::encode(board.seed, identity);
        }
        tokio::select! {
            // The sender is the board's, which is there.
            _ = paused.changed() => {}
            order = orders.recv(), if stop_at == u64::MAX => match order {
                Some(Order::Abandon) => {
                    drop(session);
                    session = Session::open(&plan, &board, &address).await?;
                }
                Some(Order::TakeOver) => {
                    let (client, producer) = open(&plan, &address).await?;
                    // From here on, before the new session has sent anything, the old one must be refused.
                    zombies.spawn(session.haunt(plan.clone(), Arc::clone(&board)));
                    session = Session::start(&plan, &board, client, producer).await?;
                }
                Some(Order::Claim) => {
                    claim(&plan, &address).await?;
                    session.haunt(plan.clone(), Arc::clone(&board)).await?;
                    session = Session::open(&plan, &board, &address).await?;
                }
                Some(Order::Stop) | None => stop_at = board.ledger(plan.stream).highest_sent(plan.producer),
            },
            receipt = session.publisher.next_receipt() => match receipt {
                Some(receipt) => {
                    session.settled = receipt.last.get();
                    board.note(plan.stream, |ledger| ledger.note_receipt(plan.producer, &receipt));
                }
                None => return Err(session.failure(&plan).await),
            },
            sent = session.send(&plan, &board), if may_send => {
                let sequence = sent.map_err(|error| judge(&plan, "sending", error))?;
                if sequence != identity.sequence {
                    return Err(Failure::Violation(format!("{identity} was given the sequence {sequence}")));
                }
                session.next += 1;
                session.value.clear();
            }
        }
    }
    board.set_sending(plan.producer, false);
    while let Some(ended) = zombies.join_next().await {
        ended.map_err(|error| Failure::trouble("a fenced session", error))??;
    }
    session.producer.close().await.map_err(|error| judge(&plan, "closing", error))?;
    session.client.close().await;
    Ok(())
}

async fn open(plan: &Plan, address: &str) -> Result<(Client, Producer), Failure> {
    let client = connect(address).await?;
    let builder = client.producer(plan.name.clone()).window_bytes(plan.window_bytes).receipts(true);
    let producer = builder.open().await.map_err(|error| judge(plan, "opening", error))?;
    Ok((client, producer))
}

/// Opens a session and lets it die before it has asked for anything else.
async fn claim(plan: &Plan, address: &str) -> Result<(), Failure> {
    let (plan, address) = (plan.clone(), address.to_owned());
    // Closed when whoever waits for this is gone: nobody must claim anything after the end of the load.
    let (_waiting, given_up) = oneshot::channel::<()>();
    let claiming = tokio::task::spawn_blocking(move || {
        // On a thread of its own, the session's task gets no turn between the opening and the end.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| Failure::trouble("claiming", error))?.block_on(async {
            let (client, producer) = tokio::select! {
                opened = open(&plan, &address) => opened?,
                _ = given_up => return Ok(()),
            };
            drop(producer);
            client.close().await;
            Ok(())
        })
    });
    claiming.await.map_err(|error| Failure::trouble("claiming", error))?
}

/// One epoch of the producer.
struct Session {
    client: Client,
    producer: Producer,
    publisher: Publisher,
    /// Sequence of the next record.
    next: u64,
    /// All up to here are acknowledged.
    settled: u64,
    /// The bytes of the record number `next`, empty until they are needed.
    value: Vec<u8>,
}

impl Session {
    async fn open(plan: &Plan, board: &Board, address: &str) -> Result<Self, Failure> {
        let (client, producer) = open(plan, address).await?;
        Self::start(plan, board, client, producer).await
    }

    async fn start(plan: &Plan, board: &Board, client: Client, producer: Producer) -> Result<Self, Failure> {
        let publisher = producer.stream(&plan.stream_name).await.map_err(|error| judge(plan, "attaching", error))?;
        let last = publisher.last_sequence().get();
        board.note(plan.stream, |ledger| ledger.note_last_sequence(plan.producer, last));
        Ok(Self { client, producer, publisher, next: last + 1, settled: last, value: Vec::new() })
    }

    /// Cancel safe, as the client's `send_value` is.
    async fn send(&self, plan: &Plan, board: &Board) -> Result<u64, Error> {
        board.note_sent(plan.stream, plan.producer, self.next);
        Ok(self.publisher.send_value(&self.value).await?.get())
    }

    /// Why no more receipts come.
    async fn failure(&self, plan: &Plan) -> Failure {
        match self.publisher.flush().await {
            Ok(()) => Failure::Violation(format!("{} is told that nothing more comes, and no reason", plan.name)),
            Err(error) => judge(plan, "publishing", error),
        }
    }

    /// Goes on sending after another session has been opened, with records that nobody may ever see. Ends when the
    /// broker has refused it.
    async fn haunt(self, plan: Plan, board: Arc<Board>) -> Result<(), Failure> {
        let own = self.next;
        let mut next = own;
        let refused = loop {
            let identity = Identity { producer: plan.producer, is_zombie: true, sequence: next };
            let value = payload::encode(board.seed, identity);
            tokio::select! {
                Some(receipt) = self.publisher.next_receipt() => {
                    if receipt.last.get() >= own {
                        let what = format!("{} was taken over, and its old session was given {receipt:?}", plan.name);
                        return Err(Failure::Violation(what));
                    }
                    board.note(plan.stream, |ledger| ledger.note_receipt(plan.producer, &receipt));
                }
                sent = self.publisher.send_value(&value) => match sent {
                    Ok(_) => next += 1,
                    Err(error) => break error,
                },
            }
        };
        match refused {
            // The second is what the client finds out by itself when it comes back just before the takeover.
            error if error.code() == Some(ErrorCode::Fenced) => Ok(()),
            Error::WrittenByAnother { .. } => Ok(()),
            other => {
                let what = format!("{} was taken over, and its old session was told {other:?}, not fenced", plan.name);
                Err(Failure::Violation(what))
            }
        }
    }
}

/// What an error means that an honest producer meets.
fn judge(plan: &Plan, doing: &str, error: Error) -> Failure {
    match error {
        Error::TimedOut { .. } | Error::Unreachable { .. } | Error::Lost { .. } => {
            Failure::trouble(format_args!("{doing} as {}", plan.name), error)
        }
        refused => Failure::Violation(format!("{doing} as {}: {refused}", plan.name)),
    }
}
