//! `tidelog bench` as a shell sees it: what it prints, what it leaves behind, and how it ends.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod harness;

use std::process::{Output, Stdio};
use std::time::Duration;

use harness::broker::{Broker, Serve};
use harness::folder::RunFolder;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

/// Workloads here take some seconds; what takes this long hangs.
const DEADLINE: Duration = Duration::from_secs(120);

/// A broker of its own for one test, and the commands of its user.
struct Scene {
    serve: Serve,
    broker: Broker,
    // Dropped last.
    folder: RunFolder,
}

impl Scene {
    async fn start() -> Self {
        let folder = RunFolder::new();
        let serve = Serve::below(folder.path());
        Self::with(serve, folder).await
    }

    async fn with(mut serve: Serve, folder: RunFolder) -> Self {
        let broker = serve.start().await.unwrap();
        Self { serve, broker, folder }
    }

    fn command(&self, words: &str) -> Command {
        let mut command = self.serve.home.tidelog(words.split(' '));
        command.args(["--server", &self.broker.ready.listen.to_string(), "--timeout", "30s"]);
        command
    }

    async fn run(&self, words: &str) -> Output {
        timeout(DEADLINE, self.command(words).output()).await.expect("it ends in time").unwrap()
    }

    /// The one object that a workload prints.
    async fn bench(&self, words: &str) -> Value {
        let output = self.run(&format!("bench {words} --json")).await;
        assert_eq!(status(&output), 0, "{words}: {output:?}");
        assert_eq!(output.stderr, b"", "no progress but on a terminal");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["verified"], true, "{text}");
        object
    }

    /// The names of all streams that there are.
    async fn streams(&self) -> String {
        let output = self.run("stream ls").await;
        assert_eq!(status(&output), 0, "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("ended by a signal: {output:?}"))
}

fn number(object: &Value, field: &str) -> f64 {
    let value = field.split('.').fold(object, |object, name| &object[name]);
    value.as_f64().unwrap_or_else(|| panic!("{field} is not a number in {object}"))
}

/// The fields that all workloads have, with values that can be.
fn assert_whole(object: &Value, workload: &str, records: u64) {
    assert_eq!((&object["workload"], &object["records"]), (&Value::from(workload), &Value::from(records)), "{object}");
    let (seconds, rate) = (number(object, "seconds"), number(object, "records_per_second"));
    assert!(seconds > 0.0 && (rate * seconds / records as f64 - 1.0).abs() < 1e-6, "{object}");
    assert!((number(object, "bytes_per_second") / rate - number(object, "size")).abs() < 1e-6, "{object}");
    for field in ["echo_p50_seconds", "upload_bytes_per_second", "download_bytes_per_second"] {
        assert!(number(object, &format!("machine.{field}")) > 0.0, "{field}: {object}");
    }
}

fn assert_latencies(object: &Value) {
    let told: Vec<_> = ["p50", "p90", "p99", "p999", "max"]
        .map(|name| number(object, &format!("latency_seconds.{name}")))
        .into_iter()
        .collect();
    assert!(told[0] > 0.0 && told.is_sorted(), "{object}");
}

#[tokio::test]
async fn every_workload_tells_what_it_measured_and_leaves_no_stream() {
    let scene = Scene::start().await;
    for (words, records) in [
        ("publish --records 20000", 20_000),
        ("publish --records 301 --in-flight 1 --producers 3 --connections 2", 301),
        ("publish --records 5000 --in-flight 100 --streams 20 --producers 2 --size 7", 5_000),
        ("publish --records 500 --rate 2000/s --producers 2", 500),
        ("publish --records 3000 --ack accepted --in-flight 10", 3_000),
        ("publish --records 20 --size 200000 --window 1MiB", 20),
    ] {
        let object = scene.bench(words).await;
        assert_whole(&object, "publish", records);
        assert_latencies(&object);
        assert!(number(&object, "machine.fdatasync_p50_seconds") > 0.0, "{object}");
        assert!(number(&object, "latency_p50_multiple") > 0.0, "{object}");
    }
    let object = scene.bench("latency --rate 1000/s --duration 300ms").await;
    assert_whole(&object, "latency", 300);
    assert_latencies(&object);
    let object = scene.bench("consume --records 30000 --size 50").await;
    assert_whole(&object, "consume", 30_000);
    assert_eq!(object["latency_seconds"], Value::Null);
    assert!(number(&object, "throughput_multiple") > 0.0, "{object}");
    assert_eq!(scene.streams().await, "");
}

#[tokio::test]
async fn a_duration_and_a_rate_are_kept() {
    let scene = Scene::start().await;
    let object = scene.bench("publish --duration 400ms --in-flight 1").await;
    assert!(number(&object, "seconds") >= 0.399, "{object}");
    // From the moment each was due: 200 of them take 100 ms, however fast the broker is.
    let object = scene.bench("publish --records 200 --rate 2000/s").await;
    assert!((0.0995..10.0).contains(&number(&object, "seconds")), "{object}");
}

#[tokio::test]
async fn a_broker_in_memory_has_no_disk_to_measure() {
    let folder = RunFolder::new();
    // `--data` excludes `--memory`, so the broker is run by hand.
    let home = harness::command::Home::below(folder.path());
    let mut command = home.command(std::path::Path::new("sh"));
    command.args(["-c", "exec \"$@\" 3>&1 1>&2 0</dev/null", "sh", harness::command::BINARY]);
    command.args(["serve", "--memory", "--http", "off", "--listen", "127.0.0.1:0", "--ready-fd", "3"]);
    let mut broker = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut ready = String::new();
    let mut stdout = tokio::io::BufReader::new(broker.stdout.take().unwrap());
    tokio::io::AsyncBufReadExt::read_line(&mut stdout, &mut ready).await.unwrap();
    let ready: Value = serde_json::from_str(&ready).unwrap();
    let server = format!("tidelog://{}?pin={}", ready["listen"].as_str().unwrap(), ready["pin"].as_str().unwrap());
    let run = |words: &'static str| {
        let mut command = home.tidelog(words.split(' '));
        command.args(["--server", &server]);
        async move { timeout(DEADLINE, command.output()).await.expect("it ends in time").unwrap() }
    };
    let output = run("bench publish --records 1000 --json").await;
    assert_eq!(status(&output), 0, "{output:?}");
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_whole(&object, "publish", 1_000);
    assert_eq!(object["machine"]["fdatasync_p50_seconds"], Value::Null);
    let output = run("bench publish --records 1000").await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("in memory") && text.contains("x the echo"), "{text}");
    broker.kill().await.unwrap();
}

#[tokio::test]
async fn an_interrupt_ends_it_and_its_streams_go_all_the_same() {
    let scene = Scene::start().await;
    let bench = scene.command("bench publish --streams 3 --duration 1h").spawn().unwrap();
    let looking = async { while scene.streams().await.lines().count() < 3 {} };
    timeout(DEADLINE, looking).await.expect("it makes its streams");
    let pid = i32::try_from(bench.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::INT).unwrap();
    let output = timeout(DEADLINE, bench.wait_with_output()).await.expect("it ends in time").unwrap();
    assert_eq!(status(&output), 130, "{output:?}");
    assert_eq!(output.stdout, b"");
    assert_eq!(scene.streams().await, "");
}

#[tokio::test]
async fn an_error_in_the_middle_ends_it_and_the_other_streams_go_all_the_same() {
    let scene = Scene::start().await;
    let bench = scene.command("bench publish --streams 3 --duration 1h --json").spawn().unwrap();
    let looking = async {
        loop {
            let streams = scene.streams().await;
            if streams.lines().count() == 3 {
                break streams;
            }
        }
    };
    let streams = timeout(DEADLINE, looking).await.expect("it makes its streams");
    // Somebody removes one while it is published to.
    let output = scene.run(&format!("stream rm {} --yes", streams.lines().next().unwrap())).await;
    assert_eq!(status(&output), 0, "{output:?}");
    let output = timeout(DEADLINE, bench.wait_with_output()).await.expect("it ends in time").unwrap();
    assert_eq!(status(&output), 4, "{output:?}");
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"], "stream_gone", "{error}");
    assert_eq!(scene.streams().await, "");
}

#[tokio::test]
async fn a_record_that_it_did_not_send_is_noticed() {
    let scene = Scene::start().await;
    let bench = scene.command("bench publish --duration 3s --rate 2000/s --json").spawn().unwrap();
    let looking = async {
        loop {
            let streams = scene.streams().await;
            if streams.lines().count() == 1 {
                break streams;
            }
        }
    };
    let streams = timeout(DEADLINE, looking).await.expect("it makes its stream");
    // Somebody else publishes there.
    let file = scene.folder.join("line");
    std::fs::write(&file, b"a stranger's\n").unwrap();
    let output = scene.run(&format!("produce {} --file {}", streams.trim(), file.display())).await;
    assert_eq!(status(&output), 0, "{output:?}");
    let output = timeout(DEADLINE, bench.wait_with_output()).await.expect("it ends in time").unwrap();
    assert_eq!(status(&output), 1, "{output:?}");
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["verified"], false, "{object}");
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"], "not_verified", "{error}");
    assert_eq!(scene.streams().await, "");
}

#[tokio::test]
async fn what_cannot_be_measured_is_wrong_usage() {
    let scene = Scene::start().await;
    for words in [
        "publish --connections 2",
        "publish --producers 3 --records 2",
        "publish --ack accepted --streams 2",
        "publish --window 5MiB",
        "publish --size 100000 --in-flight 1000",
        "publish --size 2000000 --in-flight 1",
        "publish --window 1MiB --in-flight 1",
        "publish --records 1 --duration 1s",
        "publish --size 0",
        "latency --rate 0/s",
        "consume --group",
        "consume --records 0",
    ] {
        let output = scene.run(&format!("bench {words}")).await;
        assert_eq!(status(&output), 2, "{words}: {output:?}");
        assert_eq!(output.stdout, b"", "{words}");
    }
    assert_eq!(scene.streams().await, "");
}

#[tokio::test]
async fn all_latencies_go_to_a_file_if_it_is_asked_for() {
    let scene = Scene::start().await;
    let file = scene.folder.join("latencies");
    scene.bench(&format!("publish --records 500 --in-flight 1 --histogram {}", file.display())).await;
    let text = std::fs::read_to_string(file).unwrap();
    let lines: Vec<Vec<f64>> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(' ').map(|number| number.parse().unwrap()).collect())
        .collect();
    assert!(lines.is_sorted_by(|before, after| before[0] < after[0] && before[1] <= after[1]), "{text}");
    assert_eq!(lines.iter().map(|line| line[2]).sum::<f64>(), 500.0);
    assert_eq!(lines.last().unwrap()[1], 100.0);
}
