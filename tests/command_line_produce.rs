//! `tidelog produce` with its options, as a shell sees it: what goes in as text, keys or objects comes out as records.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod harness;

use std::process::{Output, Stdio};
use std::time::Duration;

use harness::broker::{Broker, Serve};
use harness::folder::RunFolder;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;
use tokio::time::{Instant, timeout};

/// Nothing here takes a second; what takes this long hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// A broker of its own for one test, and the commands of its user.
struct Scene {
    serve: Serve,
    broker: Broker,
    // Dropped last.
    _folder: RunFolder,
}

impl Scene {
    async fn start() -> Self {
        let folder = RunFolder::new();
        let mut serve = Serve::below(folder.path());
        let broker = serve.start().await.unwrap();
        Self { serve, broker, _folder: folder }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.serve.home.tidelog(words.iter().copied());
        command.args(["--server", &self.broker.ready.listen.to_string(), "--timeout", "10s"]);
        command
    }

    async fn produce(&self, input: &str, words: &[&str]) -> Output {
        let mut command = self.command(&[&["produce"], words].concat());
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let writing = async {
            // A command that refuses its input early does not read it to the end.
            let _ = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
        };
        let (output, ()) = timeout(DEADLINE, async { tokio::join!(child.wait_with_output(), writing) }).await.unwrap();
        output.unwrap()
    }

    /// Publishes and gives how many were stored, and how many had been before.
    async fn published(&self, input: &str, words: &[&str]) -> (u64, u64) {
        let output = self.produce(input, &[words, &["--json"]].concat()).await;
        assert_eq!(status(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
        let lines = objects(&output.stdout);
        let summary = lines.last().unwrap();
        (summary["published"].as_u64().unwrap(), summary["duplicates"].as_u64().unwrap())
    }

    async fn consume(&self, words: &[&str]) -> String {
        let mut command = self.command(&[&["consume"], words].concat());
        let output = timeout(DEADLINE, command.output()).await.expect("it ends in time").unwrap();
        assert_eq!(status(&output), 0, "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn consume_json(&self, stream: &str) -> Vec<Value> {
        objects(self.consume(&[stream, "--json"]).await.as_bytes())
    }
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("ended by a signal: {output:?}"))
}

fn assert_refused(output: &Output, code: i32, sentence: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(status(output), code, "{error}");
    assert!(error.contains(sentence), "{sentence:?} is not in {error:?}");
}

fn objects(output: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn lines(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("{object}\n")).collect()
}

#[tokio::test]
async fn what_consume_prints_as_json_produce_takes_back_unchanged() {
    let scene = Scene::start().await;
    let input = lines(&[
        json!({ "value": "plain" }),
        json!({ "key": "k", "headers": { "a": ["1", "2"], "b": "" }, "timestamp": "2024-05-01T12:00:00.250Z", "value": "" }),
        json!({ "key_base64": "/wA=", "headers_base64": { "c": "/w==" }, "value_base64": "/wD/" }),
        json!({ "value": "quoted \"\u{0}\n\u{e4}", "something_else": 7 }),
    ]);
    assert_eq!(scene.published(&input, &["first", "--ndjson"]).await, (4, 0));
    let printed = scene.consume(&["first", "--json"]).await;
    let records = objects(printed.as_bytes());
    assert_eq!(records[0]["value"], "plain");
    assert_eq!(records[1]["key"], "k");
    assert_eq!(records[1]["headers"], json!({ "a": ["1", "2"], "b": "" }));
    assert_eq!(records[1]["timestamp"], "2024-05-01T12:00:00.250Z");
    assert_eq!(records[2]["key_base64"], "/wA=");
    assert_eq!(records[2]["headers_base64"], json!({ "c": "/w==" }));
    assert_eq!(records[2]["value_base64"], "/wD/");
    assert_eq!(records[3]["value"], "quoted \"\u{0}\n\u{e4}");
    assert_eq!(scene.published(&printed, &["second", "--ndjson"]).await, (4, 0));
    let strip = |records: Vec<Value>| -> Vec<Value> {
        records
            .into_iter()
            .map(|mut record| {
                record.as_object_mut().unwrap().remove("time");
                record
            })
            .collect()
    };
    assert_eq!(strip(scene.consume_json("second").await), strip(records));
}

#[tokio::test]
async fn objects_are_counted_as_lines_are_and_compared_as_a_whole() {
    let scene = Scene::start().await;
    let input = lines(&[json!({ "value": "a", "key": "1" }), json!({ "value": "b", "key": "2" })]);
    let words = ["s", "--producer", "p", "--ndjson"];
    assert_eq!(scene.published(&input, &words).await, (2, 0));
    assert_eq!(scene.published(&input, &words).await, (0, 2));
    let other = lines(&[json!({ "value": "a", "key": "1" }), json!({ "value": "b", "key": "3" })]);
    assert_refused(&scene.produce(&other, &words).await, 5, "line 2 is not what 'p' stored as 2");
}

#[tokio::test]
async fn a_stream_is_copied_once_wherever_the_copy_is_taken_up_again() {
    let scene = Scene::start().await;
    let words = ["copy", "--producer", "copier", "--ndjson", "--sequence-from", "offset"];
    let input: String = (0..20).map(|number| format!("record {number}\n")).collect();
    scene.produce(&input, &["source"]).await;
    let printed = scene.consume(&["source", "--json", "--count", "10"]).await;
    assert_eq!(scene.published(&printed, &words).await, (10, 0));
    // From the start again, with more behind it.
    let printed = scene.consume(&["source", "--json", "--count", "15"]).await;
    assert_eq!(scene.published(&printed, &words).await, (5, 10));
    // From the middle of what is there, and from just behind it.
    let printed = scene.consume(&["source", "--json", "--from", "12", "--count", "5"]).await;
    assert_eq!(scene.published(&printed, &words).await, (2, 3));
    let printed = scene.consume(&["source", "--json", "--from", "17"]).await;
    assert_eq!(scene.published(&printed, &words).await, (3, 0));
    assert_eq!(scene.published("", &words).await, (0, 0));
    assert_eq!(scene.consume(&["copy"]).await, input);
    let sequences: Vec<u64> =
        scene.consume_json("copy").await.iter().map(|record| record["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences, (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn offsets_that_jump_keep_their_numbers_also_in_receipts() {
    let scene = Scene::start().await;
    let input = lines(&[7, 8, 20, 4_000_000_000_u64].map(|offset| json!({ "offset": offset, "value": "v" })));
    let words = ["s", "--producer", "p", "--ndjson", "--sequence-from", "offset", "--receipts"];
    for duplicate in [false, true] {
        let output = scene.produce(&input, &words).await;
        let receipts = objects(&output.stdout);
        let sequences: Vec<u64> = receipts.iter().map(|receipt| receipt["sequence"].as_u64().unwrap()).collect();
        assert_eq!(sequences, [8, 9, 21, 4_000_000_001]);
        assert!(receipts.iter().all(|receipt| receipt["duplicate"] == duplicate), "{receipts:?}");
        assert_eq!(receipts[3]["offset"], 3);
    }
}

#[tokio::test]
async fn another_source_for_the_same_copier_is_told_with_5_and_stores_nothing() {
    let scene = Scene::start().await;
    let words = ["s", "--producer", "p", "--ndjson", "--sequence-from", "offset"];
    let record = |offset: u64, value: &str| json!({ "offset": offset, "value": value });
    let stored = lines(&[record(0, "a"), record(4, "b"), record(9, "c")]);
    assert_eq!(scene.published(&stored, &words).await, (3, 0));
    let other_last = lines(&[record(0, "a"), record(9, "X"), record(10, "d")]);
    assert_refused(&scene.produce(&other_last, &words).await, 5, "line 2 is not what 'p' stored as 10");
    let without_last = lines(&[record(0, "a"), record(4, "b"), record(10, "d")]);
    assert_refused(&scene.produce(&without_last, &words).await, 5, "passes over sequence 10");
    let too_short = lines(&[record(0, "a"), record(4, "b")]);
    assert_refused(&scene.produce(&too_short, &words).await, 5, "2 lines");
    let back_and_forth = lines(&[record(4, "b"), record(0, "a"), record(9, "c")]);
    assert_refused(&scene.produce(&back_and_forth, &words).await, 5, "line 2 has sequence 1, and 5 came before it");
    // Behind what is stored, too: what came before it is stored, what comes late is refused.
    let late = lines(&[record(9, "c"), record(20, "e"), record(15, "d")]);
    assert_refused(&scene.produce(&late, &words).await, 5, "sequence 16 is not behind 21");
    assert_eq!(scene.consume(&["s"]).await, "a\nb\nc\ne\n");
    // A line's number is no sequence of this producer any more.
    assert_refused(&scene.produce("a\n", &["s", "--producer", "p"]).await, 5, "not consecutive");
}

#[tokio::test]
async fn a_key_stands_before_the_separator() {
    let scene = Scene::start().await;
    let words = ["s", "--key-separator", "::", "--producer", "p"];
    assert_eq!(scene.published("k::v::w\n::\n", &words).await, (2, 0));
    let records = scene.consume_json("s").await;
    assert_eq!((&records[0]["key"], &records[0]["value"]), (&json!("k"), &json!("v::w")));
    assert_eq!((&records[1]["key"], &records[1]["value"]), (&json!(""), &json!("")));
    assert_refused(&scene.produce("k::v::w\n::\nnone\n", &words).await, 1, "line 3 has no \"::\"");
    assert_eq!(scene.published("k::v::w\n::\nx::y\n", &words).await, (1, 2));
}

#[tokio::test]
async fn a_line_that_is_no_object_is_told_and_what_stood_before_it_is_stored() {
    let scene = Scene::start().await;
    let words = ["s", "--producer", "p", "--ndjson", "--json"];
    let output = scene.produce("{\"value\":\"a\"}\nvalue b\n", &words).await;
    assert_eq!(status(&output), 1);
    let error = &objects(&output.stderr)[0];
    assert_eq!((&error["error"], &error["code"]), (&json!("malformed_input"), &json!(1)));
    assert!(error["message"].as_str().unwrap().contains("line 2"), "{error}");
    assert_eq!(scene.consume(&["s"]).await, "a\n");
    let no_offset = ["s", "--producer", "q", "--ndjson", "--sequence-from", "offset"];
    assert_refused(&scene.produce("{\"value\":\"a\"}\n", &no_offset).await, 1, "line 1 has no `offset`");
}

#[tokio::test]
async fn accepted_ends_only_when_all_is_durable_and_its_receipts_have_offsets() {
    let mut scene = Scene::start().await;
    let words = ["produce", "s", "--producer", "p", "--ack", "accepted", "--receipts"];
    let mut child = scene.command(&words).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut receipts = BufReader::new(child.stdout.take().unwrap()).lines();
    stdin.write_all(b"a\n").await.unwrap();
    let line = timeout(DEADLINE, receipts.next_line()).await.unwrap().unwrap().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&line).unwrap(),
        json!({ "sequence": 1, "offset": 0, "duplicate": false })
    );
    // What is accepted while the broker dies is the producer's to send again.
    scene.broker.kill().await.unwrap();
    stdin.write_all(b"b\nc\n").await.unwrap();
    drop(stdin);
    scene.broker = scene.serve.start().await.unwrap();
    for sequence in 2..=3 {
        let line = timeout(DEADLINE, receipts.next_line()).await.unwrap().unwrap().unwrap();
        let receipt: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&receipt["sequence"], &receipt["offset"]), (&json!(sequence), &json!(sequence - 1)));
    }
    assert_eq!(timeout(DEADLINE, child.wait()).await.unwrap().unwrap().code(), Some(0));
    assert_eq!(scene.consume(&["s"]).await, "a\nb\nc\n");
}

#[tokio::test]
async fn a_rate_is_not_exceeded() {
    let scene = Scene::start().await;
    let started = Instant::now();
    let input: String = (0..21).map(|number| format!("{number}\n")).collect();
    assert_eq!(scene.published(&input, &["s", "--rate", "100/s"]).await, (21, 0));
    // The first leaves at once, the last twenty hundredths of a second later. Being slower is no failure.
    assert!(started.elapsed() >= Duration::from_millis(200), "{:?}", started.elapsed());
}

#[tokio::test]
async fn options_that_cannot_be_meant_are_refused_with_2() {
    let scene = Scene::start().await;
    for words in [
        &["--ack", "perhaps"][..],
        &["--rate", "0/s"],
        &["--rate", "fast"],
        &["--key-separator", ""],
        &["--key-separator", ":", "--ndjson"],
        &["--sequence-from", "offset"],
        &["--sequence-from", "offset", "--ndjson"],
        &["--sequence-from", "line", "--ndjson", "--producer", "p"],
    ] {
        assert_eq!(status(&scene.produce("", &[&["s"], words].concat()).await), 2, "{words:?}");
    }
}
