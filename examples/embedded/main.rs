//! A program with an audit log of its own: the broker inside the product, on disk for good, nothing beside it to install or
//! to watch over.
//!
//! What was recorded is there after any end of the program, SIGKILL and a power cut included; the next start finds it.
//! There is one writer: a folder that another process has is refused. Other processes may read at
//! [`AuditLog::address`](audit_log::AuditLog::address) while it runs, for example with
//! `tidelog consume audit --server 'tidelog://…'`.
//!
//! ```sh
//! cargo run --example embedded                 # in a temporary folder
//! cargo run --example embedded -- ./audit-log  # twice: the second run finds what the first has left
//! cargo test --example embedded                # killed by SIGKILL again and again
//! ```
//!
//! Rests on: a durable acknowledgement is sent only after fdatasync covers the record. It then survives SIGKILL, power loss and
//! restart; offsets are dense and start at 0, so that an audit can prove that nothing is missing.

mod audit_log;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::path::PathBuf;

use crate::audit_log::AuditLog;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let folder = std::env::args().nth(1).map_or_else(|| temporary.path().join("audit-log"), PathBuf::from);

    let log = AuditLog::open(&folder).await?;
    println!("{} entries from earlier lives; readers are served at {}", log.entries().await?.len(), log.address());
    for action in ["signed in", "changed the price of a pear", "signed out"] {
        let number = log.record("anna", action).await?;
        println!("entry {number} is on the disk");
    }
    if let Err(error) = AuditLog::open(&folder).await {
        println!("a second one in the same folder: {error}");
    }
    log.close().await?;

    let log = AuditLog::open(&folder).await?;
    for entry in log.entries().await? {
        println!("{} at {} ms: {} {}", entry.number, entry.time_ms, entry.who, entry.action);
    }
    log.close().await?;
    Ok(())
}
