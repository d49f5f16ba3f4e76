//! Checkpoints in memory, for simulated machines: like the real ones they may be lost, stale, holed, or come from another
//! history; the tests decide when.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::contents::{Contents, Head};
use super::{Checkpoint, CheckpointSave, CheckpointStore, LoadError, SaveError};

/// Checkpoints before the newest one that [`MemoryCheckpoints::go_back`] can return to.
const OLDER_MAX: usize = 16;

/// Checkpoints in memory. Clones share them, so they survive the broker that a test kills.
#[derive(Debug, Clone, Default)]
pub struct MemoryCheckpoints {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Clone, Default)]
struct Kept {
    /// The newest last.
    saved: Vec<Contents>,
    set_aside: Vec<String>,
    fails: bool,
    is_unreadable: bool,
}

impl MemoryCheckpoints {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same checkpoints, from now on apart: as in a copy of the folder.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { kept: Arc::new(Mutex::new(self.kept().clone())) }
    }

    /// Puts the checkpoints of `other` in the place of these.
    pub fn replace_with(&self, other: &Self) {
        let others = other.kept().saved.clone();
        self.kept().saved = others;
    }

    /// Removes all of them.
    pub fn clear(&self) {
        self.kept().saved.clear();
    }

    /// Forgets the newest `count` of them: an older one has come back.
    pub fn go_back(&self, count: usize) {
        let mut kept = self.kept();
        let left = kept.saved.len().saturating_sub(count);
        kept.saved.truncate(left);
    }

    /// Loses one key of the newest one, the stamp intact; false if there is none to lose.
    pub fn lose_key(&self, number: usize) -> bool {
        let mut kept = self.kept();
        let Some(newest) = kept.saved.last_mut() else { return false };
        let count = newest.pairs.len().max(1);
        let Some(key) = newest.pairs.keys().nth(number % count).cloned() else { return false };
        newest.pairs.remove(&key);
        true
    }

    /// Changes one bit of a value of the newest one; false if there is none.
    pub fn flip_value(&self, number: usize) -> bool {
        let mut kept = self.kept();
        let Some(newest) = kept.saved.last_mut() else { return false };
        let count = newest.pairs.len().max(1);
        let Some(byte) = newest.pairs.values_mut().nth(number % count).and_then(|value| value.last_mut()) else {
            return false;
        };
        *byte ^= 1;
        true
    }

    /// Saves fail from now on, or no longer.
    pub fn fail_saves(&self, fails: bool) {
        self.kept().fails = fails;
    }

    /// Nothing can be read from now on, or it can again.
    pub fn fail_loads(&self, fails: bool) {
        self.kept().is_unreadable = fails;
    }

    /// How many can be returned to.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept().saved.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was set aside, by its names.
    #[must_use]
    pub fn set_aside_names(&self) -> Vec<String> {
        self.kept().set_aside.clone()
    }
}

impl CheckpointStore for MemoryCheckpoints {
    fn load(&mut self) -> Result<Option<Checkpoint>, LoadError> {
        let kept = self.kept();
        if kept.is_unreadable {
            return Err(LoadError::Unavailable("the memory is out of reach".to_owned()));
        }
        let newest = kept.saved.last().cloned();
        newest.map(|contents| contents.check().map_err(LoadError::Odd)).transpose()
    }

    fn save(&mut self, save: CheckpointSave) -> Result<(), SaveError> {
        let mut kept = self.kept();
        if kept.fails {
            return Err(SaveError::Failed("the memory is full".to_owned()));
        }
        let before = match save.builds_on {
            None => None,
            Some(mark) => {
                let newest = kept.saved.last().filter(|newest| newest.head.stamp.mark == mark);
                Some(newest.cloned().ok_or_else(|| SaveError::NothingToBuildOn("it is another one".to_owned()))?)
            }
        };
        let mut contents =
            before.unwrap_or_else(|| Contents { head: Head::empty(save.stamp), pairs: Default::default() });
        for (key, value) in save.changes {
            if let Some(old) = contents.pairs.remove(&key) {
                contents.head.count_out(&key, &old);
            }
            if let Some(value) = value {
                contents.head.count_in(&key, &value);
                contents.pairs.insert(key, value);
            }
        }
        contents.head.stamp = save.stamp;
        kept.saved.push(contents);
        if kept.saved.len() > OLDER_MAX {
            kept.saved.remove(0);
        }
        Ok(())
    }

    fn set_aside(&mut self, label: &str) -> io::Result<Option<String>> {
        let mut kept = self.kept();
        if kept.saved.is_empty() {
            return Ok(None);
        }
        kept.saved.clear();
        let name = format!("aside-{label}-checkpoint");
        kept.set_aside.push(name.clone());
        Ok(Some(name))
    }
}
