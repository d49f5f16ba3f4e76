//! What `produce --receipts` prints: a line for each record that is durable.

use std::collections::VecDeque;

use tidelog_client::{Publisher, Receipt};
use tidelog_protocol::Sequence;

use super::exit::CliError;
use super::output::Output;

/// Prints receipts, at once when they come.
#[derive(Debug)]
pub(crate) struct Receipts {
    output: Output,
    /// Sequence, or line number of an anonymous producer, of the last receipt.
    sequence: u64,
    /// Sequences that were sent and are not acknowledged, if they jump. At most as many as the window holds records.
    sent: VecDeque<u64>,
}

impl Receipts {
    pub(crate) fn to_stdout() -> Result<Receipts, CliError> {
        Ok(Receipts { output: Output::stdout()?, sequence: 0, sent: VecDeque::new() })
    }

    /// For a record that an earlier run stored.
    pub(crate) fn write_stored_before(&mut self, sequence: u64, publisher: &Publisher) -> Result<(), CliError> {
        self.sequence = sequence;
        let is_last = sequence == publisher.last_sequence().get();
        let offset = publisher.last_offset().filter(|_| is_last);
        self.line(sequence, offset.map(|offset| offset.get()), true)
    }

    /// Remembers a sequence that need not follow the one before.
    pub(crate) fn note_sent(&mut self, sequence: u64) {
        self.sent.push_back(sequence);
    }

    /// Writes what is there already, and lets it out.
    pub(crate) fn drain(&mut self, publisher: &Publisher) -> Result<(), CliError> {
        while let Some(receipt) = publisher.try_next_receipt() {
            self.write(&receipt)?;
        }
        self.flush()
    }

    pub(crate) fn flush(&mut self) -> Result<(), CliError> {
        self.output.flush()
    }

    pub(crate) fn write(&mut self, receipt: &Receipt) -> Result<(), CliError> {
        if receipt.first != Sequence::NONE {
            self.sequence = receipt.first.get() - 1;
        }
        for index in 0..receipt.count {
            self.sequence = self.sent.pop_front().unwrap_or(self.sequence + 1);
            let is_duplicate = receipt.duplicate || index < receipt.skip;
            let offset = match receipt.base_offset {
                Some(base) if index >= receipt.skip => Some(base.get() + u64::from(index - receipt.skip)),
                _ => None,
            };
            self.line(self.sequence, offset, is_duplicate)?;
        }
        Ok(())
    }

    fn line(&mut self, sequence: u64, offset: Option<u64>, duplicate: bool) -> Result<(), CliError> {
        let offset = offset.map_or_else(|| "null".to_owned(), |offset| offset.to_string());
        let line = format!("{{\"sequence\":{sequence},\"offset\":{offset},\"duplicate\":{duplicate}}}");
        self.output.write_line(line.as_bytes())
    }
}
