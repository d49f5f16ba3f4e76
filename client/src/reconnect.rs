//! The task that connects, again and again, on behalf of everybody who waits for a connection.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tidelog_protocol::{Connector, Hello, PROTOCOL_VERSION};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::connection::Shared;
use crate::error::Error;
use crate::link::Link;
use crate::retry::Backoff;

/// A broker that has taken the connection answers the hello within this, or another try is made.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Tries to connect until it works, is pointless, or the timeout has passed. A task of its own, so that no caller that
/// gives up takes the try away from the others.
pub(crate) async fn reconnect(weak: Weak<Shared>) {
    let Some(config) = weak.upgrade().map(|shared| shared.config.clone()) else { return };
    let started = Instant::now();
    let deadline = started + config.timeout;
    let hello = Hello { versions: vec![PROTOCOL_VERSION], client: config.name.clone(), token: config.token.clone() };
    let mut backoff = Backoff::default();
    let mut cause = None;
    let mut attempt = 0;
    let outcome = loop {
        let on_loss = {
            let weak = Weak::clone(&weak);
            move || {
                if let Some(shared) = weak.upgrade() {
                    shared.note_loss();
                }
            }
        };
        let next = match timeout_at(deadline, connect_once(config.connector.as_ref(), &hello, on_loss)).await {
            Ok(Ok(link)) => break Ok(link),
            Ok(Err(error)) if !error.is_retryable() => break Err(error),
            Ok(Err(error)) => {
                tracing::debug!(%error, "no connection to the broker yet");
                let delay = backoff.next_delay(config.entropy.jitter());
                attempt += 1;
                if let Some(shared) = weak.upgrade().filter(|_| Instant::now() + delay < deadline) {
                    shared.note_retry(attempt, delay, &error);
                }
                cause = Some(error);
                Instant::now() + delay
            }
            Err(_) => deadline,
        };
        if next >= deadline {
            let cause = cause.map(Box::new);
            break Err(Error::TimedOut { waited: config.timeout, doing: "connecting to the broker", cause });
        }
        sleep_until(next).await;
        if weak.strong_count() == 0 {
            return;
        }
    };
    if let Some(shared) = weak.upgrade() {
        shared.conclude(outcome);
    }
}

async fn connect_once(
    connector: &dyn Connector,
    hello: &Hello,
    on_loss: impl FnOnce() + Send + 'static,
) -> Result<Arc<Link>, Error> {
    let connection = connector.connect().await?;
    match timeout(HELLO_TIMEOUT, Link::establish(connection, hello, on_loss)).await {
        Ok(established) => established,
        Err(_) => Err(Error::Unreachable {
            reason: format!("it took the connection, but did not answer within {} s", HELLO_TIMEOUT.as_secs()),
        }),
    }
}
