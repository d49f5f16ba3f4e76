//! The other commands of the binary, run as a user runs them, with an environment of their own.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tokio::process::Command;

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_tidelog");

/// Variables of whoever runs the tests that would change what the program does.
const VARIABLES: [&str; 6] =
    ["TIDELOG_SERVER", "TIDELOG_CA", "TIDELOG_TOKEN_FILE", "TIDELOG_LOG", "TIDELOG_SABOTAGE", "RUST_LOG"];

/// A home and a runtime folder, so that trust files of this run are its own.
#[derive(Debug, Clone)]
pub struct Home {
    folder: PathBuf,
}

impl Home {
    pub fn below(folder: &Path) -> Self {
        let folder = folder.join("home");
        std::fs::create_dir_all(&folder).expect("a folder of our own can be made");
        Self { folder }
    }

    /// Where a broker of this home leaves its trust file.
    pub fn trust_file(&self, port: u16) -> PathBuf {
        self.folder.join("tidelog").join(format!("{port}.json"))
    }

    /// Any program in this environment, in a working folder without anything; killed when dropped.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        command.env("HOME", &self.folder).env("XDG_RUNTIME_DIR", &self.folder).current_dir(&self.folder);
        command.kill_on_drop(true);
        command
    }

    /// The program under test with these words, nothing to read, and everything it writes kept.
    pub fn tidelog<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.command(Path::new(BINARY));
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    pub async fn run<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Output {
        self.tidelog(words).output().await.expect("the binary runs")
    }
}
