//! What the broker has promised so far about one stream, and whether what it holds now keeps it. Pure.

use std::collections::BTreeMap;

use tidelog_client::Receipt;

use super::payload::Identity;

/// What is known of a stream from outside.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    producers: BTreeMap<u8, Sent>,
    /// Where receipts said that records are.
    acknowledged: BTreeMap<Identity, u64>,
    /// The same by offset.
    places: BTreeMap<u64, Identity>,
    /// What a consumer has been given, dense from offset 0.
    seen: Vec<Identity>,
    receipts: u64,
    duplicates: u64,
}

/// One producer's part.
#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    /// The highest sequence that may have left; what is above was invented by the broker.
    highest: u64,
    /// The highest sequence acknowledged; producers' records are stored in order, so all below are, too.
    acknowledged: u64,
}

impl Ledger {
    /// Records acknowledged, retries that had been stored before included.
    pub fn receipts(&self) -> u64 {
        self.receipts
    }

    /// Records whose acknowledgement said that they had been stored before.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// How many records a consumer was given.
    pub fn seen(&self) -> u64 {
        self.seen.len() as u64
    }

    /// How many records were sent by all producers.
    pub fn sent(&self) -> u64 {
        self.producers.values().map(|sent| sent.highest).sum()
    }

    /// The last sequence that a producer has sent.
    pub fn highest_sent(&self, producer: u8) -> u64 {
        self.producers.get(&producer).map_or(0, |sent| sent.highest)
    }

    /// To be called before a record is sent.
    pub fn note_sent(&mut self, producer: u8, sequence: u64) {
        let sent = self.producers.entry(producer).or_default();
        sent.highest = sent.highest.max(sequence);
    }

    /// The last sequence of a producer that the broker says it has when a session is opened.
    ///
    /// # Errors
    ///
    /// If acknowledged records are missing, or there are some that were never sent.
    pub fn note_last_sequence(&mut self, producer: u8, last: u64) -> Result<(), String> {
        let sent = self.producers.entry(producer).or_default();
        if last < sent.acknowledged {
            return Err(format!(
                "p{producer} was acknowledged up to {}, and the broker says it has it up to {last}",
                sent.acknowledged
            ));
        }
        if last > sent.highest {
            return Err(format!("p{producer} has sent up to {}, and the broker says it has {last}", sent.highest));
        }
        Ok(())
    }

    /// What a receipt says.
    ///
    /// # Errors
    ///
    /// If it contradicts an earlier one, or speaks of records that must not be stored or were never sent.
    pub fn note_receipt(&mut self, producer: u8, receipt: &Receipt) -> Result<(), String> {
        let (first, last) = (receipt.first.get(), receipt.last.get());
        let sent = self.producers.entry(producer).or_default();
        if first == 0 || last > sent.highest || last - first + 1 != u64::from(receipt.count) {
            return Err(format!("p{producer} has sent up to {}, and was given {receipt:?}", sent.highest));
        }
        sent.acknowledged = sent.acknowledged.max(last);
        self.receipts += u64::from(receipt.count);
        self.duplicates += u64::from(if receipt.duplicate { receipt.count } else { receipt.skip });
        let Some(base) = receipt.base_offset else { return Ok(()) };
        for (sequence, offset) in (first + u64::from(receipt.skip)..=last).zip(base.get()..) {
            let identity = Identity::new(producer, sequence);
            if let Some(other) = self.acknowledged.insert(identity, offset).filter(|other| *other != offset) {
                return Err(format!("{identity} was acknowledged at offset {other}, now at {offset}"));
            }
            if let Some(other) = self.places.insert(offset, identity).filter(|other| *other != identity) {
                return Err(format!("offset {offset} was acknowledged for {other}, now for {identity}"));
            }
        }
        Ok(())
    }

    /// What a consumer was given.
    ///
    /// # Errors
    ///
    /// If it left a gap, or an earlier one was given another record there.
    pub fn note_seen(&mut self, offset: u64, identity: Identity) -> Result<(), String> {
        match usize::try_from(offset).ok().and_then(|index| self.seen.get(index)) {
            Some(earlier) if *earlier != identity => {
                Err(format!("a consumer has seen {earlier} at offset {offset}, now {identity} is there"))
            }
            Some(_) => Ok(()),
            None if offset == self.seen() => {
                self.seen.push(identity);
                Ok(())
            }
            None => Err(format!("a consumer was given offset {offset} behind {}", self.seen())),
        }
    }

    /// Whether all that had been acknowledged or seen is in what was read afterwards from offset 0 on.
    ///
    /// # Errors
    ///
    /// Names the first record that is not.
    pub fn check_kept(&self, read: &[Identity]) -> Result<(), String> {
        for (offset, identity) in (0..).zip(&self.seen) {
            let found = at(read, offset);
            if found != Some(identity) {
                return Err(format!("a consumer has seen {identity} at offset {offset}, and {}", now_there(found)));
            }
        }
        for (offset, identity) in &self.places {
            let found = at(read, *offset);
            if found != Some(identity) {
                return Err(format!("{identity} was acknowledged at offset {offset}, and {}", now_there(found)));
            }
        }
        let mut last = BTreeMap::new();
        for identity in read {
            last.insert(identity.producer, identity.sequence);
        }
        for (producer, sent) in &self.producers {
            let found = last.get(producer).copied().unwrap_or(0);
            if found < sent.acknowledged {
                return Err(format!(
                    "p{producer} was acknowledged up to {}, and the stream has it up to {found}",
                    sent.acknowledged
                ));
            }
        }
        Ok(())
    }

    /// Whether what had been acknowledged or seen from an offset on is in what was read from there on.
    ///
    /// # Errors
    ///
    /// Names the first record that is not.
    pub fn check_kept_from(&self, from: u64, read: &[Identity]) -> Result<(), String> {
        let behind = (0..).zip(&self.seen).skip_while(|(offset, _)| *offset < from);
        for (offset, identity) in behind.chain(self.places.range(from..).map(|(offset, identity)| (*offset, identity)))
        {
            let found = at(read, offset - from);
            if found != Some(identity) {
                return Err(format!(
                    "{identity} was acknowledged or seen at offset {offset}, and {}",
                    now_there(found)
                ));
            }
        }
        Ok(())
    }

    /// Whether each producer's records stand in the order of their sequences, without gaps and once, and whether all of
    /// them were sent.
    ///
    /// # Errors
    ///
    /// Names the first record that is out of place.
    pub fn check_order(&self, read: &[Identity]) -> Result<(), String> {
        let mut next: BTreeMap<u8, u64> = BTreeMap::new();
        for (offset, identity) in (0_u64..).zip(read) {
            if identity.is_zombie {
                return Err(format!("offset {offset} has {identity}, sent by a session that was fenced by then"));
            }
            let due = next.entry(identity.producer).or_insert(1);
            if identity.sequence != *due {
                return Err(format!("offset {offset} has {identity} where sequence {due} is due"));
            }
            *due += 1;
            if identity.sequence > self.highest_sent(identity.producer) {
                return Err(format!("offset {offset} has {identity}, which was never sent"));
            }
        }
        Ok(())
    }
}

fn at(read: &[Identity], offset: u64) -> Option<&Identity> {
    usize::try_from(offset).ok().and_then(|index| read.get(index))
}

fn now_there(found: Option<&Identity>) -> String {
    found.map_or_else(|| "nothing is there now".to_owned(), |found| format!("{found} is there now"))
}
