//! A folder for one trial. What is tried here is what bytes do that have gone bad, not whether they reach a disk: where
//! the machine has a file system in memory, the trials run there, twenty times as many in the same time.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

const IN_MEMORY: &str = "/dev/shm";

/// Removed when dropped, unless the thread panics then.
#[derive(Debug)]
pub struct Scratch {
    folder: Option<TempDir>,
}

impl Scratch {
    pub fn new() -> Self {
        let beside_the_build = || Self::made_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
        Self { folder: Some(Self::made_in(Path::new(IN_MEMORY)).unwrap_or_else(|_| beside_the_build())) }
    }

    fn made_in(place: &Path) -> std::io::Result<TempDir> {
        tempfile::Builder::new().prefix("tidelog-damage-").tempdir_in(place)
    }

    pub fn path(&self) -> &Path {
        self.folder.as_ref().expect("held until it is dropped").path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        if let Some(folder) = self.folder.take() {
            let kept: PathBuf = folder.keep();
            eprintln!("the files of the failed trial are kept in {}", kept.display());
        }
    }
}
