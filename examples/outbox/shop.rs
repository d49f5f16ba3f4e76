//! The service's database: orders, and the outbox that is written with them.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, Result, TransactionBehavior};

/// The stream that tells of new orders.
pub(crate) const ORDERS: &str = "orders";
/// The stream that tells of payments.
pub(crate) const PAYMENTS: &str = "payments";

const SCHEMA: &str = "
    -- Says which database this is: a copy that goes its own way needs another one.
    CREATE TABLE IF NOT EXISTS identity (name TEXT NOT NULL);
    INSERT INTO identity SELECT lower(hex(randomblob(8))) WHERE NOT EXISTS (SELECT 1 FROM identity);
    CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY, item TEXT NOT NULL, paid INTEGER NOT NULL DEFAULT 0);
    -- AUTOINCREMENT: an id is never given twice, not even when rows are deleted.
    CREATE TABLE IF NOT EXISTS outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        stream TEXT NOT NULL,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        published INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX IF NOT EXISTS outbox_unpublished ON outbox (id) WHERE published = 0;
";

/// What a customer has ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    /// The customer's own number for it: an order that is sent again is the same order.
    pub(crate) number: i64,
    pub(crate) item: String,
}

/// An event on its way to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: u64,
    pub(crate) stream: String,
    pub(crate) key: String,
    pub(crate) value: String,
}

/// The service. Each connection to the database is one; the relay has its own.
#[derive(Debug)]
pub(crate) struct Shop {
    pub(crate) database: Connection,
}

impl Shop {
    /// Opens the database, which is made if it is missing.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut database = Connection::open(path)?;
        database.busy_timeout(Duration::from_secs(5))?;
        database.pragma_update(None, "journal_mode", "wal")?;
        // A commit is synced before it returns: what a customer was told survives a power cut.
        database.pragma_update(None, "synchronous", "full")?;
        let transaction = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(SCHEMA)?;
        transaction.commit()?;
        Ok(Self { database })
    }

    /// Takes an order: it and its event, in one transaction. `false` if it was taken before.
    ///
    /// SQLite has one writer at a time, so ids are given in the order of commits. Where transactions run side by side, as
    /// in PostgreSQL, an id can become visible after a higher one, and the broker refuses it (`sequence_past`) rather
    /// than to put it in the wrong place: take the id under a lock that is held until the commit.
    pub(crate) fn place(&mut self, order: &Order) -> Result<bool> {
        let transaction = self.database.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let placed = transaction.execute(
            "INSERT INTO orders (number, item) VALUES (?1, ?2) ON CONFLICT (number) DO NOTHING",
            (order.number, &order.item),
        )?;
        if placed == 0 {
            return Ok(false);
        }
        transaction.execute(
            "INSERT INTO outbox (stream, key, value) VALUES (?1, ?2, ?3)",
            (ORDERS, format!("order {}", order.number), format!("placed: {}", order.item)),
        )?;
        transaction.commit()?;
        Ok(true)
    }

    /// Notes that an order is paid. `false` if it is not there, or paid already.
    pub(crate) fn pay(&mut self, number: i64) -> Result<bool> {
        let transaction = self.database.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let paid = transaction.execute("UPDATE orders SET paid = 1 WHERE number = ?1 AND paid = 0", [number])?;
        if paid == 0 {
            return Ok(false);
        }
        transaction.execute(
            "INSERT INTO outbox (stream, key, value) VALUES (?1, ?2, 'paid')",
            (PAYMENTS, format!("order {number}")),
        )?;
        transaction.commit()?;
        Ok(true)
    }

    // For the relay.

    /// Which database this is.
    pub(crate) fn identity(&self) -> Result<String> {
        self.database.query_row("SELECT name FROM identity", (), |row| row.get(0))
    }

    /// The first rows, in the order of their commits, that are not known to be published.
    pub(crate) fn next_rows(&self, count: usize) -> Result<Vec<Row>> {
        self.database
            .prepare("SELECT id, stream, key, value FROM outbox WHERE published = 0 ORDER BY id LIMIT ?1")?
            .query_map([count], Self::row)?
            .collect()
    }

    /// One row, published or not.
    pub(crate) fn row_with_id(&self, id: u64) -> Result<Option<Row>> {
        self.database.query_row("SELECT id, stream, key, value FROM outbox WHERE id = ?1", [id], Self::row).optional()
    }

    /// The broker has these rows. They could be deleted here, but for the last one of each stream, which the relay compares
    /// with the broker's when it begins.
    pub(crate) fn mark_published(&mut self, rows: &[Row]) -> Result<()> {
        let transaction = self.database.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut mark = transaction.prepare("UPDATE outbox SET published = 1 WHERE id = ?1")?;
        for row in rows {
            mark.execute([row.id])?;
        }
        drop(mark);
        transaction.commit()
    }

    fn row(row: &rusqlite::Row<'_>) -> Result<Row> {
        Ok(Row { id: row.get(0)?, stream: row.get(1)?, key: row.get(2)?, value: row.get(3)? })
    }
}
