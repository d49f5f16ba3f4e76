//! The consumer's database: balances, and how far the streams behind them were read.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS balances (account TEXT PRIMARY KEY, cents INTEGER NOT NULL);
    -- The stream's id as well: one that was removed and made again has its name, and other records.
    CREATE TABLE IF NOT EXISTS progress (stream TEXT PRIMARY KEY, stream_id INTEGER NOT NULL, next_offset INTEGER NOT NULL);
";

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    #[error("the ledger can't be read or written")]
    Database(#[from] rusqlite::Error),
    /// Two consumers work on one ledger, and the other one was faster.
    #[error("'{stream}' was read beyond offset {next_offset} by somebody else")]
    ReadByAnother { stream: String, next_offset: u64 },
    #[error("'{stream}' is not the stream that this ledger was made from, but another one under its name")]
    AnotherStream { stream: String },
}

/// A stream as the ledger knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) stream: String,
    pub(crate) stream_id: u64,
}

/// A change of one account's balance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) account: String,
    pub(crate) cents: i64,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) database: Connection,
}

impl Ledger {
    /// Opens the database, which is made if it is missing.
    pub(crate) fn open(path: &Path) -> rusqlite::Result<Self> {
        let mut database = Connection::open(path)?;
        database.busy_timeout(Duration::from_secs(5))?;
        database.pragma_update(None, "journal_mode", "wal")?;
        let transaction = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(SCHEMA)?;
        transaction.commit()?;
        Ok(Self { database })
    }

    /// Where to read on; 0 if the stream was never read.
    pub(crate) fn next_offset(&self, source: &Source) -> Result<u64, LedgerError> {
        let query = "SELECT stream_id, next_offset FROM progress WHERE stream = ?1";
        let found: Option<(u64, u64)> =
            self.database.query_row(query, [&source.stream], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        match found {
            None => Ok(0),
            Some((stream_id, next_offset)) if source.stream_id == stream_id => Ok(next_offset),
            Some(_) => Err(LedgerError::AnotherStream { stream: source.stream.clone() }),
        }
    }

    /// Carries out the transfers that stand at the offsets from `from` on, and notes that: all of it or nothing.
    pub(crate) fn apply(&mut self, source: &Source, from: u64, transfers: &[Transfer]) -> Result<u64, LedgerError> {
        let transaction = self.database.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut add = transaction.prepare(
            "INSERT INTO balances (account, cents) VALUES (?1, ?2)
             ON CONFLICT (account) DO UPDATE SET cents = cents + excluded.cents",
        )?;
        for transfer in transfers {
            add.execute((&transfer.account, transfer.cents))?;
        }
        drop(add);
        let next_offset = from + transfers.len() as u64;
        // Only from where these records begin: whoever was overtaken changes nothing.
        let moved = match from {
            0 => transaction.execute(
                "INSERT INTO progress (stream, stream_id, next_offset) VALUES (?1, ?2, ?3) ON CONFLICT (stream) DO NOTHING",
                (&source.stream, source.stream_id, next_offset),
            )?,
            _ => transaction.execute(
                "UPDATE progress SET next_offset = ?3 WHERE stream = ?1 AND stream_id = ?2 AND next_offset = ?4",
                (&source.stream, source.stream_id, next_offset, from),
            )?,
        };
        if moved == 0 {
            return Err(LedgerError::ReadByAnother { stream: source.stream.clone(), next_offset: from });
        }
        transaction.commit()?;
        Ok(next_offset)
    }

    pub(crate) fn balances(&self) -> rusqlite::Result<BTreeMap<String, i64>> {
        let mut query = self.database.prepare("SELECT account, cents FROM balances")?;
        query.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    }
}
