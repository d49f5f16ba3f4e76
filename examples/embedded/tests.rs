//! The process is killed while it records, and started again in the same folder: what it was told to be stored is there.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tidelog::StartError;

use crate::audit_log::{AuditError, AuditLog};

const FOLDER_VARIABLE: &str = "AUDIT_LOG_TEST_FOLDER";
const LIFE_VARIABLE: &str = "AUDIT_LOG_TEST_LIFE";
const STORED: &str = "stored: ";

#[tokio::test]
async fn the_next_start_finds_what_was_recorded() {
    let folder = tempfile::tempdir().unwrap();
    for life in 0..3 {
        let log = AuditLog::open(folder.path()).await.unwrap();
        let found: Vec<_> =
            log.entries().await.unwrap().into_iter().map(|entry| (entry.number, entry.action)).collect();
        assert_eq!(found, (0..life * 2).map(|number| (number, format!("action {number}"))).collect::<Vec<_>>());
        for number in life * 2..life * 2 + 2 {
            assert_eq!(log.record("anna", &format!("action {number}")).await.unwrap(), number);
        }
        log.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_folder_in_use_is_refused_and_free_after_the_close() {
    let folder = tempfile::tempdir().unwrap();
    let log = AuditLog::open(folder.path()).await.unwrap();
    let Err(refused) = AuditLog::open(folder.path()).await else { panic!("two writers in one folder") };
    assert!(matches!(refused, AuditError::Start(StartError::Log(_))), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains("in use") && text.contains(&std::process::id().to_string()), "{text}");
    log.record("anna", "is not disturbed").await.unwrap();
    log.close().await.unwrap();
    AuditLog::open(folder.path()).await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn what_was_acknowledged_survives_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = 0;
    for life in 0..5 {
        let acknowledged = Life::start(folder.path(), life).killed_after(10 * life + 1);
        let log = AuditLog::open(folder.path()).await.unwrap();
        let entries = log.entries().await.unwrap();
        log.close().await.unwrap();
        assert!(entries.iter().map(|entry| entry.number).eq(0..entries.len() as u64), "numbers have no gaps");
        let of_life: Vec<_> = entries.iter().filter(|entry| entry.who == format!("life {life}")).collect();
        let stored = of_life.len() as u64;
        // One may have been stored and not told any more.
        assert!((acknowledged..=acknowledged + 1).contains(&stored), "{acknowledged} acknowledged, {stored} stored");
        assert!(of_life.iter().map(|entry| &entry.action).eq(&actions(stored)));
        expected += stored;
        assert_eq!(entries.len() as u64, expected, "earlier lives keep what they had");
    }
}

fn actions(count: u64) -> Vec<String> {
    (0..count).map(|number| format!("action {number}")).collect()
}

/// A process of this test that records until it is killed.
struct Life(Child);

impl Life {
    fn start(folder: &Path, life: u64) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::a_life_that_is_killed", "--ignored", "--nocapture"])
            .env(FOLDER_VARIABLE, folder)
            .env(LIFE_VARIABLE, life.to_string())
            // Ends when this process does, see below.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Kills it when it has told of so many entries, and says of how many it has told by then.
    fn killed_after(mut self, entries: u64) -> u64 {
        let mut told = 0;
        for line in BufReader::new(self.0.stdout.take().unwrap()).lines() {
            if line.unwrap().contains(STORED) {
                told += 1;
                if told == entries {
                    // SIGKILL. What it has written before is still to be read.
                    self.0.kill().unwrap();
                }
            }
        }
        assert!(told >= entries, "it has ended by itself");
        told
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // Fails if it is gone already.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

#[test]
#[ignore = "a process that another test starts and kills"]
fn a_life_that_is_killed() {
    let (Ok(folder), Ok(life)) = (std::env::var(FOLDER_VARIABLE), std::env::var(LIFE_VARIABLE)) else { return };
    std::thread::spawn(|| {
        // Nobody writes: it ends with the test that has started this process, however that ends.
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let log = AuditLog::open(Path::new(&folder)).await.unwrap();
        for number in 0.. {
            log.record(&format!("life {life}"), &format!("action {number}")).await.unwrap();
            println!("{STORED}{number}");
        }
    });
}
