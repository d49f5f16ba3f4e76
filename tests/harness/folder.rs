//! A folder for one run: removed after success, kept and named after a failure.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Removed when dropped, unless the thread panics then or [`RunFolder::keep`] was called.
#[derive(Debug)]
pub struct RunFolder {
    folder: Option<TempDir>,
}

impl RunFolder {
    /// On the disk that the build is on: the temporary folder of a machine may be in memory.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("run-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("a folder can be made beside the build");
        Self { folder: Some(folder) }
    }

    pub fn path(&self) -> &Path {
        self.folder.as_ref().expect("held until it is dropped or kept").path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A new folder inside.
    pub fn join_new(&self, name: &str) -> PathBuf {
        let folder = self.join(name);
        std::fs::create_dir(&folder).expect("a folder of our own can be made");
        folder
    }

    /// Leaves the folder where it is, for whoever looks for the cause.
    pub fn keep(mut self) -> PathBuf {
        self.folder.take().expect("kept once").keep()
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        if let Some(folder) = self.folder.take() {
            eprintln!("the files of the failed run are kept in {}", folder.keep().display());
        }
    }
}
