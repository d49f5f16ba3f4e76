//! A thousand brokers one after the other leave no thread, no file and no memory. Alone in its process, whose all is counted.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::path::PathBuf;

use tidelog::testkit::{Start, TestBroker};
use tidelog_protocol::{ProducerName, Record, StreamName, StreamSettings};

/// Tells the child from its parent.
const CHILD: &str = "TIDELOG_TEST_CHILD";
const WARM_UP: usize = 50;
/// What the allocator keeps more or less of at one moment than at another; a kibibyte for each broker would be more.
const MEMORY_SLACK_KIB: u64 = 768;
/// Freed memory goes back at once, and threads that come and go share what is kept: otherwise there is more of that the more
/// threads there were, up to some 200 MiB.
const ALLOCATOR: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_TRIM_THRESHOLD_", "131072"), ("MALLOC_MMAP_THRESHOLD_", "131072")];

#[derive(Debug, Clone)]
struct Usage {
    threads: Vec<String>,
    files: Vec<PathBuf>,
    memory_kib: u64,
}

fn usage() -> Usage {
    let list =
        |name: &str| std::fs::read_dir(format!("/proc/self/{name}")).unwrap().flatten().map(|entry| entry.path());
    let mut threads: Vec<_> = list("task").filter_map(|task| std::fs::read_to_string(task.join("comm")).ok()).collect();
    // The pool of the process, not a broker's: see `threadpool.rs` of sled 0.34.7.
    threads.retain(|name| !name.starts_with("sled-io-"));
    let files = list("fd").filter_map(|file| std::fs::read_link(file).ok()).collect();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let memory_kib = memory.trim().trim_end_matches(" kB").parse().unwrap();
    Usage { threads, files, memory_kib }
}

/// A broker that is used.
async fn a_life(start: Start, is_dropped: bool) {
    let broker = start.await;
    let client = broker.client().await;
    let orders = StreamName::new("orders").unwrap();
    client.create_stream(&orders, StreamSettings::default(), true).await.unwrap();
    let producer = client.producer(ProducerName::new("shop").unwrap()).open().await.unwrap();
    producer.stream(&orders).await.unwrap().publish(Record::new("a")).await.unwrap();
    if is_dropped {
        // In the middle of everything.
        return;
    }
    client.close().await;
    broker.stop().await;
}

fn lives(starts: usize, start: impl Fn() -> Start) -> (Usage, Usage) {
    let live = |count: usize| {
        // Gone with it are the tasks of clients that were dropped, which say farewell in their own time.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for life in 0..count {
                a_life(start(), life % 3 == 0).await;
            }
        });
    };
    live(WARM_UP);
    let before = usage();
    live(starts);
    (before, usage())
}

fn compare(what: &str, starts: usize, (before, after): &(Usage, Usage)) {
    println!(
        "{starts} starts {what}: {} threads -> {}, {} files -> {}, {} KiB -> {}",
        before.threads.len(),
        after.threads.len(),
        before.files.len(),
        after.files.len(),
        before.memory_kib,
        after.memory_kib
    );
    assert!(after.threads.len() <= before.threads.len(), "{before:#?} -> {after:#?}");
    assert!(after.files.len() <= before.files.len(), "{before:#?} -> {after:#?}");
    assert!(after.memory_kib <= before.memory_kib + MEMORY_SLACK_KIB, "{before:#?} -> {after:#?}");
}

#[test]
fn a_thousand_brokers_leave_nothing() {
    let starts = std::env::var("TIDELOG_STARTS").ok().map_or(1_000, |starts| starts.parse().unwrap());
    let folders = || {
        let temporary = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
        temporary.filter(|entry| entry.file_name().to_string_lossy().starts_with("tidelog-test-")).count()
    };
    if std::env::var_os(CHILD).is_none() {
        // With a folder for temporary files of its own, so that nobody else's are counted; and the environment of a process
        // with threads can't be changed safely.
        let own = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["a_thousand_brokers_leave_nothing", "--exact", "--nocapture"]);
        assert!(child.envs(ALLOCATOR).env("TMPDIR", own.path()).env(CHILD, "1").status().unwrap().success());
        return;
    }
    compare("in memory", starts, &lives(starts, TestBroker::start));
    compare("on disk", starts / 10, &lives(starts / 10, || TestBroker::start().on_disk()));
    assert_eq!(folders(), 0, "folders are left in {}", std::env::temp_dir().display());
}
