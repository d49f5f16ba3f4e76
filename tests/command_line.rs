//! The commands as a shell sees them: exit status, what goes to which output, and what a failure says.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use harness::broker::{Broker, Serve};
use harness::command::BINARY;
use harness::folder::RunFolder;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// Nothing here takes a second; what takes this long hangs.
const DEADLINE: Duration = Duration::from_secs(60);

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
        let mut serve = Serve::below(folder.path());
        let broker = serve.start().await.unwrap();
        Self { serve, broker, folder }
    }

    /// Its address without the pin: trust comes from the file that the broker left.
    fn server(&self) -> String {
        self.broker.ready.listen.to_string()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.serve.home.tidelog(words.iter().copied());
        command.args(["--server", &self.server(), "--timeout", "10s"]);
        command
    }

    async fn run(&self, words: &[&str]) -> Output {
        ended(self.command(words)).await
    }

    async fn produce(&self, input: &[u8], words: &[&str]) -> Output {
        let mut command = self.command(words);
        command.stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let writing = async {
            // A command that refuses its input early does not read it to the end.
            let _ = stdin.write_all(input).await;
            drop(stdin);
        };
        let (output, ()) = timeout(DEADLINE, async { tokio::join!(child.wait_with_output(), writing) }).await.unwrap();
        output.unwrap()
    }

    async fn consume(&self, words: &[&str]) -> String {
        let output = self.run(&[&["consume"], words].concat()).await;
        assert_eq!(status(&output), 0, "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

async fn ended(mut command: Command) -> Output {
    timeout(DEADLINE, command.output()).await.expect("it ends in time").unwrap()
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("ended by a signal: {output:?}"))
}

/// Status and sentence of a failure; nothing may have gone to standard output.
fn assert_refused(output: &Output, code: i32, sentence: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(status(output), code, "{error}");
    assert!(error.contains(sentence), "{sentence:?} is not in {error:?}");
    assert_eq!(output.stdout, b"", "{error}");
}

/// The one object that a failure with `--json` is.
fn error_object(output: &Output) -> Value {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(error.lines().count(), 1, "{error:?}");
    let object: Value = serde_json::from_str(&error).unwrap();
    let fields: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["code", "error", "hint", "message"]);
    assert_eq!(object["code"], status(output));
    object
}

fn objects(output: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Names and contents of all files in a folder.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

/// A broker that is expected to end by itself.
async fn serve_in_vain(serve: &Serve) -> Output {
    let mut command = serve.home.tidelog(["serve", "--http", "off"]);
    command.arg("--data").arg(&serve.data).arg("--listen").arg(serve.listen.to_string());
    ended(command).await
}

#[tokio::test]
async fn the_ready_line_says_where_and_who_and_is_all_that_is_printed() {
    let scene = Scene::start().await;
    let ready = &scene.broker.ready;
    assert!(ready.listen.ip().is_loopback() && ready.listen.port() != 0, "{ready:?}");
    assert_eq!(ready.http, None);
    assert!(ready.pin.len() == 64 && ready.pin.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
    assert!(fs::read(format!("/proc/{}/cmdline", ready.pid)).unwrap().starts_with(BINARY.as_bytes()), "{ready:?}");
    let status = scene.broker.terminate().await.unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn the_ready_descriptor_is_closed_behind_the_line() {
    let folder = RunFolder::new();
    let serve = Serve::below(folder.path());
    let mut shell = serve.home.command(Path::new("sh"));
    shell.args(["-c", "exec \"$@\" 3>&1 1>&2", "sh", BINARY, "serve", "--http", "127.0.0.1:0", "--ready-fd", "3"]);
    shell.args(["--listen", "127.0.0.1:0", "--data"]).arg(&serve.data);
    let mut broker = shell.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut text = String::new();
    // Ends only when the broker, which runs on, has closed it.
    timeout(DEADLINE, broker.stdout.take().unwrap().read_to_string(&mut text)).await.unwrap().unwrap();
    let ready: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(text.lines().count(), 1);
    let http: std::net::SocketAddr = ready["http"].as_str().unwrap().parse().unwrap();
    assert!(tokio::net::TcpStream::connect(http).await.is_ok());
    assert!(broker.try_wait().unwrap().is_none());
    signal(&broker, Signal::TERM);
    assert_eq!(timeout(DEADLINE, broker.wait()).await.unwrap().unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_broker_whose_log_nobody_reads_any_more_runs_on_and_stops_in_order() {
    let folder = RunFolder::new();
    let home = Serve::below(folder.path()).home;
    let mut shell = home.command(Path::new("sh"));
    shell.args(["-c", "exec \"$@\" 3>&1", "sh", BINARY, "serve", "--memory", "--http", "off", "--ready-fd", "3"]);
    // So that each of its threads has something to log.
    shell.args(["--listen", "127.0.0.1:0"]).env("TIDELOG_LOG", "trace");
    let mut broker = shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = broker.stderr.take().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(broker.stdout.take().unwrap());
    // The log of a start may be more than a pipe holds.
    let mut discarded = tokio::io::sink();
    tokio::select! {
        read = timeout(DEADLINE, stdout.read_line(&mut line)) => drop(read.unwrap().unwrap()),
        _ = tokio::io::copy(&mut log, &mut discarded) => panic!("the broker has ended"),
    }
    drop(log);
    let ready: Value = serde_json::from_str(&line).unwrap();
    let server = ready["listen"].as_str().unwrap();
    let output = ended(home.tidelog(["stream", "create", "lines", "--server", server])).await;
    assert_eq!(status(&output), 0, "{output:?}");
    signal(&broker, Signal::TERM);
    assert_eq!(timeout(DEADLINE, broker.wait()).await.unwrap().unwrap().code(), Some(0));
    let port = server.rsplit(':').next().unwrap().parse().unwrap();
    assert!(!home.trust_file(port).exists());
}

#[tokio::test]
async fn trust_files_stand_while_the_broker_runs_and_go_with_it() {
    let scene = Scene::start().await;
    let in_data = scene.serve.data.join("broker.json");
    let of_user = scene.serve.home.trust_file(scene.broker.ready.listen.port());
    for path in [&in_data, &of_user] {
        let object: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(object["address"], scene.server());
        assert_eq!(object["pin"], scene.broker.ready.pin);
        assert_eq!(object["pid"], scene.broker.ready.pid);
    }
    scene.broker.terminate().await.unwrap();
    assert!(!in_data.exists() && !of_user.exists());
}

#[tokio::test]
async fn the_key_stays_from_start_to_start() {
    let mut scene = Scene::start().await;
    let pin = scene.broker.ready.pin.clone();
    scene.broker.terminate().await.unwrap();
    scene.broker = scene.serve.start().await.unwrap();
    assert_eq!(scene.broker.ready.pin, pin);
}

#[tokio::test]
async fn lines_go_in_and_come_out() {
    let scene = Scene::start().await;
    // Empty lines, a carriage return, bytes that are no text, and no last line end.
    let input = b"one\n\ntwo\r\n\xff\xfe\0\nlast";
    let output = scene.produce(input, &["produce", "lines", "--producer", "p"]).await;
    assert_eq!(status(&output), 0, "{output:?}");
    assert_eq!(output.stdout, b"");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "published 5, duplicates 0, last offset 4\n");
    let output = scene.run(&["consume", "lines"]).await;
    assert_eq!(output.stdout, [&input[..], b"\n"].concat());
    assert_eq!(output.stderr, b"");
}

#[tokio::test]
async fn the_same_input_again_adds_nothing() {
    let scene = Scene::start().await;
    let words = ["produce", "lines", "--producer", "p", "--json"];
    scene.produce(b"a\nb\n", &words).await;
    let output = scene.produce(b"a\nb\nc\n", &words).await;
    let expected = json!({ "stream": "lines", "published": 1, "duplicates": 2, "last_offset": 2 });
    assert_eq!(objects(&output.stdout), [expected]);
    assert_eq!(scene.consume(&["lines"]).await, "a\nb\nc\n");
}

#[tokio::test]
async fn receipts_come_in_the_order_of_the_lines_with_their_offsets() {
    let scene = Scene::start().await;
    let words = ["produce", "lines", "--producer", "p", "--receipts"];
    let output = scene.produce(b"a\nb\nc\n", &words).await;
    let receipt = |sequence: u64, offset: Option<u64>, duplicate: bool| json!({ "sequence": sequence, "offset": offset, "duplicate": duplicate });
    let fresh = [receipt(1, Some(0), false), receipt(2, Some(1), false), receipt(3, Some(2), false)];
    assert_eq!(objects(&output.stdout), fresh);

    let again = scene.produce(b"a\nb\nc\nd\n", &words).await;
    let again = objects(&again.stdout);
    assert_eq!(again.len(), 4);
    for (object, sequence) in again.iter().zip(1..) {
        assert_eq!(object["sequence"], sequence);
        assert_eq!(object["duplicate"], sequence < 4);
        // Where an earlier run's line stands may no longer be known; a wrong place is worse than none.
        assert!(object["offset"] == sequence - 1 || (object["offset"].is_null() && sequence < 4), "{object}");
    }
    assert_eq!(again[3]["offset"], 3);
}

#[tokio::test]
async fn a_receipt_is_printed_at_once() {
    let scene = Scene::start().await;
    let mut command = scene.command(&["produce", "lines", "--producer", "p", "--receipts"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut receipts = BufReader::new(child.stdout.take().unwrap()).lines();
    for sequence in 1..=3 {
        stdin.write_all(b"a line\n").await.unwrap();
        // The input stays open: nothing else can bring the receipt out.
        let line = timeout(DEADLINE, receipts.next_line()).await.unwrap().unwrap().unwrap();
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["sequence"], sequence);
    }
    drop(stdin);
    assert_eq!(timeout(DEADLINE, child.wait()).await.unwrap().unwrap().code(), Some(0));
}

#[tokio::test]
async fn consume_begins_where_it_is_told_and_stops_after_its_count() {
    let scene = Scene::start().await;
    let input: String = (0..20).map(|number| format!("{number}\n")).collect();
    scene.produce(input.as_bytes(), &["produce", "lines"]).await;
    assert_eq!(scene.consume(&["lines", "--from", "-5"]).await, "15\n16\n17\n18\n19\n");
    assert_eq!(scene.consume(&["lines", "--from", "18"]).await, "18\n19\n");
    assert_eq!(scene.consume(&["lines", "--from", "-100", "--count", "2"]).await, "0\n1\n");
    assert_eq!(scene.consume(&["lines", "--from", "3", "--count", "1"]).await, "3\n");
    assert_eq!(scene.consume(&["lines", "--from", "end"]).await, "");
    assert_eq!(scene.consume(&["lines", "--from", "10m"]).await, input);
    assert_eq!(scene.consume(&["lines", "--from", "2001-01-01T00:00:00Z"]).await, input);
    assert_eq!(scene.consume(&["lines", "--count", "0"]).await, "");
}

#[tokio::test]
async fn consume_as_json_has_the_promised_fields() {
    let scene = Scene::start().await;
    scene.produce(b"text\n\xff\x00\n", &["produce", "lines", "--producer", "p"]).await;
    let records = objects(scene.consume(&["lines", "--json"]).await.as_bytes());
    assert_eq!(records.len(), 2);
    let expected = |offset: u64, time: &Value| json!({ "offset": offset, "time": time, "producer": "p", "sequence": offset + 1, "key": null, "headers": {} });
    for (record, offset) in records.iter().zip(0..) {
        let mut left = record.clone();
        let object = left.as_object_mut().unwrap();
        object.remove("value");
        object.remove("value_base64");
        assert_eq!(left, expected(offset, &record["time"]));
        let time = record["time"].as_str().unwrap();
        assert!(time.len() == "2024-05-01T12:00:00.000Z".len() && time.ends_with('Z'), "{time}");
    }
    assert_eq!(records[0]["value"], "text");
    assert!(records[1].get("value").is_none());
    assert_eq!(records[1]["value_base64"], "/wA=");
}

#[tokio::test]
async fn a_follower_gets_what_comes_and_ends_with_130_when_it_is_interrupted() {
    let scene = Scene::start().await;
    scene.produce(b"before\n", &["produce", "lines"]).await;
    let (mut child, mut lines) = follow(&scene, "lines");
    assert_eq!(next(&mut lines).await, "before");
    scene.produce(b"behind\n", &["produce", "lines"]).await;
    assert_eq!(next(&mut lines).await, "behind");
    signal(&child, Signal::INT);
    assert_eq!(timeout(DEADLINE, child.wait()).await.unwrap().unwrap().code(), Some(130));
}

#[tokio::test]
async fn a_follower_rides_out_a_killed_broker() {
    let mut scene = Scene::start().await;
    scene.produce(b"before\n", &["produce", "lines"]).await;
    let (mut child, mut lines) = follow(&scene, "lines");
    assert_eq!(next(&mut lines).await, "before");
    scene.broker.kill().await.unwrap();
    scene.broker = scene.serve.start().await.unwrap();
    scene.produce(b"behind\n", &["produce", "lines"]).await;
    assert_eq!(next(&mut lines).await, "behind");
    child.kill().await.unwrap();
}

fn follow(scene: &Scene, stream: &str) -> (Child, tokio::io::Lines<BufReader<ChildStdout>>) {
    let mut child = scene.command(&["consume", stream, "--follow"]).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

async fn next(lines: &mut tokio::io::Lines<BufReader<ChildStdout>>) -> String {
    timeout(DEADLINE, lines.next_line()).await.expect("a line in time").unwrap().unwrap()
}

#[tokio::test]
async fn a_closed_pipe_ends_a_command_quietly() {
    let scene = Scene::start().await;
    let input = "a line that is not short\n".repeat(50_000);
    scene.produce(input.as_bytes(), &["produce", "lines"]).await;
    // More than a pipe holds, so that it is closed while there is something to write.
    let mut child = scene.command(&["consume", "lines"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(next(&mut lines).await, "a line that is not short");
    drop(lines);
    let output = timeout(DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!((status(&output), &output.stderr[..]), (0, &b""[..]));
}

#[tokio::test]
async fn streams_are_made_listed_and_shown() {
    let scene = Scene::start().await;
    assert_eq!(status(&scene.run(&["stream", "create", "orders"]).await), 0);
    assert_refused(&scene.run(&["stream", "create", "orders"]).await, 5, "orders");
    assert_eq!(status(&scene.run(&["stream", "create", "orders", "--if-not-exists"]).await), 0);
    scene.produce(b"a\nb\n", &["produce", "orders"]).await;
    let listed = objects(&scene.run(&["stream", "ls", "--json"]).await.stdout);
    assert_eq!(listed.len(), 1);
    let fields: Vec<&str> = listed[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["bytes", "created", "head", "id", "name", "tail"]);
    assert_eq!((&listed[0]["name"], &listed[0]["head"], &listed[0]["tail"]), (&json!("orders"), &json!(0), &json!(2)));
    assert_eq!(objects(&scene.run(&["stream", "info", "orders", "--json"]).await.stdout), listed);
}

#[tokio::test]
async fn a_stream_is_removed_with_yes_alone_and_one_of_its_name_begins_anew() {
    let scene = Scene::start().await;
    assert_refused(&scene.run(&["stream", "rm", "orders", "--yes"]).await, 4, "orders");
    scene.produce(b"a\nb\n", &["produce", "orders", "--producer", "p"]).await;
    let bytes = objects(&scene.run(&["stream", "ls", "--json"]).await.stdout)[0]["bytes"].to_string();
    let unsure = scene.run(&["stream", "rm", "orders"]).await;
    assert_refused(&unsure, 2, &format!("stream 'orders' with 2 records (offsets 0..2), {bytes} bytes"));
    assert_eq!(error_object(&scene.run(&["stream", "rm", "orders", "--json"]).await)["error"], "not_confirmed");
    assert_eq!(scene.consume(&["orders"]).await, "a\nb\n", "it is still there");

    let (mut child, mut lines) = follow(&scene, "orders");
    assert_eq!((next(&mut lines).await, next(&mut lines).await), ("a".to_owned(), "b".to_owned()));
    let removed = scene.run(&["stream", "rm", "orders", "--yes", "--json"]).await;
    assert_eq!(status(&removed), 0, "{removed:?}");
    let removed = objects(&removed.stdout);
    assert_eq!((&removed[0]["name"], &removed[0]["tail"]), (&json!("orders"), &json!(2)));
    let ended = timeout(DEADLINE, child.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(4), "the follower is told");
    assert_refused(&scene.run(&["stream", "info", "orders"]).await, 4, "orders");
    assert_eq!(scene.run(&["stream", "ls"]).await.stdout, b"");
    assert_refused(&scene.run(&["stream", "rm", "orders", "--yes"]).await, 4, "orders");
    assert_refused(&scene.run(&["consume", "orders"]).await, 4, "orders");

    // The same input under the same name is new to the new stream.
    scene.produce(b"a\nb\nc\n", &["produce", "orders", "--producer", "p"]).await;
    assert_eq!(scene.consume(&["orders"]).await, "a\nb\nc\n");
    let Scene { serve, broker, folder: _folder } = scene;
    broker.terminate().await.unwrap();
    let verified = serve.home.run(["verify", serve.data.to_str().unwrap(), "--json"]).await;
    let verified = &objects(&verified.stdout)[0];
    assert_eq!((&verified["streams"], &verified["records"], &verified["damages"]), (&json!(1), &json!(3), &json!(0)));
}

#[tokio::test]
async fn what_is_not_there_is_told_with_4() {
    let scene = Scene::start().await;
    assert_refused(&scene.run(&["consume", "nothing"]).await, 4, "nothing");
    assert_refused(&scene.run(&["stream", "info", "nothing"]).await, 4, "nothing");
    scene.produce(b"a\n", &["produce", "one"]).await;
    assert_refused(&scene.run(&["consume", "one", "--from", "7"]).await, 4, "7");
    assert_refused(&scene.run(&["consume", "one", "--from", "7", "--follow"]).await, 4, "7");
    let error = error_object(&scene.run(&["consume", "nothing", "--json"]).await);
    assert_eq!(error["error"], "not_found");
    assert_ne!(error["hint"], "");
}

#[tokio::test]
async fn bad_names_and_words_are_told_with_2() {
    let scene = Scene::start().await;
    assert_refused(&scene.run(&["consume", "no/slash"]).await, 2, "no/slash");
    assert_refused(&scene.run(&["stream", "create", ".hidden"]).await, 2, ".hidden");
    assert_refused(&scene.run(&["stream", "create", ""]).await, 2, "empty");
    assert_refused(&scene.run(&["stream", "create", "orders.dead.billing"]).await, 2, "orders.dead.billing");
    assert_refused(&scene.produce(b"a\n", &["produce", "s", "--producer", "a b"]).await, 2, "a b");
    assert_refused(&scene.run(&["consume", "s", "--from", "yesterday"]).await, 2, "yesterday");
    assert_refused(&scene.run(&["consume", "s", "--wrong"]).await, 2, "--wrong");
    let error = error_object(&scene.run(&["consume", "no/slash", "--json"]).await);
    assert_eq!(error["code"], 2);
    let mut bad_address = scene.serve.home.tidelog(["consume", "s", "--server", "not an address"]);
    bad_address.args(["--timeout", "1s"]);
    assert_refused(&ended(bad_address).await, 2, "not an address");
}

#[tokio::test]
async fn a_record_over_the_limit_is_told_with_2_and_what_came_before_it_is_stored() {
    let scene = Scene::start().await;
    let mut input = b"fits\n".to_vec();
    input.resize(input.len() + (1 << 20) + 1, b'x');
    input.extend_from_slice(b"\nbehind\n");
    assert_refused(&scene.produce(&input, &["produce", "lines", "--producer", "p"]).await, 2, "line 2");
    assert_eq!(scene.consume(&["lines"]).await, "fits\n");
    let error = error_object(&scene.produce(&input, &["produce", "lines", "--producer", "p", "--json"]).await);
    assert_eq!(error["error"], "record_too_large");
    // The largest record that the limit allows.
    let mut input = vec![b'x'; 1 << 20];
    input.push(b'\n');
    let output = scene.produce(&input, &["produce", "large"]).await;
    assert_eq!(status(&output), 0, "{output:?}");
    assert_eq!(scene.consume(&["large"]).await.as_bytes(), input);
}

#[tokio::test]
async fn another_input_for_the_same_producer_is_told_with_5_and_stores_nothing() {
    let scene = Scene::start().await;
    let words = ["produce", "lines", "--producer", "p"];
    scene.produce(b"a\nb\nc\n", &words).await;
    assert_refused(&scene.produce(b"a\nb\nX\nd\n", &words).await, 5, "line 3 is not what 'p' stored as 3");
    assert_refused(&scene.produce(b"a\nb\n", &words).await, 5, "2 lines");
    assert_refused(&scene.produce(b"", &words).await, 5, "0 lines");
    assert_eq!(scene.consume(&["lines"]).await, "a\nb\nc\n");
    let output = scene.produce(b"a\nb\n", &[&words[..], &["--json"]].concat()).await;
    assert_eq!(error_object(&output)["error"], "sequence_reused");
}

#[tokio::test]
async fn an_input_that_cannot_be_read_is_told_with_1() {
    let scene = Scene::start().await;
    let missing = scene.folder.join("no-such-file");
    let output = scene.run(&["produce", "lines", "--file", missing.to_str().unwrap()]).await;
    assert_refused(&output, 1, "no-such-file");
}

#[tokio::test]
async fn another_pin_is_told_with_6() {
    let scene = Scene::start().await;
    let pin = "0".repeat(64);
    let address = format!("tidelog://{}?pin={pin}", scene.server());
    let mut command = scene.serve.home.tidelog(["consume", "lines", "--timeout", "10s", "--json", "--server"]);
    let output = ended({
        command.arg(&address);
        command
    })
    .await;
    let error = error_object(&output);
    assert_eq!((status(&output), &error["error"]), (6, &json!("untrusted")));
    assert!(error["message"].as_str().unwrap().contains("pin"), "{error}");
}

#[tokio::test]
async fn no_trust_is_told_with_6_and_where_it_was_looked_for() {
    let folder = RunFolder::new();
    let home = Serve::below(folder.path()).home;
    // A port on which no broker has left a trust file: this very test holds it.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let server = format!("127.0.0.1:{port}");
    let output = ended(home.tidelog(["consume", "lines", "--server", &server])).await;
    assert_refused(&output, 6, &format!("{port}.json"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("pin") && error.contains("--ca"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_told_with_3() {
    let folder = RunFolder::new();
    let home = Serve::below(folder.path()).home;
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = format!("tidelog://127.0.0.1:{port}?pin={}", "0".repeat(64));
    let output = ended(home.tidelog(["consume", "lines", "--timeout", "300ms", "--server", &server])).await;
    assert_refused(&output, 3, "refused");
}

#[tokio::test]
async fn silence_is_told_with_3_when_the_timeout_is_over() {
    let folder = RunFolder::new();
    let home = Serve::below(folder.path()).home;
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = format!("tidelog://{}?pin={}", silent.local_addr().unwrap(), "0".repeat(64));
    let started = tokio::time::Instant::now();
    let output = ended(home.tidelog(["consume", "lines", "--timeout", "1s", "--json", "--server", &server])).await;
    let waited = started.elapsed();
    assert_eq!(status(&output), 3, "{output:?}");
    assert_eq!(error_object(&output)["error"], "timed_out");
    assert!(waited >= Duration::from_secs(1) && waited < Duration::from_secs(5), "{waited:?}");
}

#[tokio::test]
async fn another_protocol_is_told_with_3() {
    let folder = RunFolder::new();
    let home = Serve::below(folder.path()).home;
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let private = rustls_pki_types::PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let server = format!("tidelog://{}?pin={}", endpoint.local_addr().unwrap(), "0".repeat(64));
    let accepting = async {
        while let Some(incoming) = endpoint.accept().await {
            // It fails, as it should: the client wants another protocol.
            if let Ok(connecting) = incoming.accept() {
                let _ = connecting.await;
            }
        }
    };
    let command = ended(home.tidelog(["consume", "lines", "--timeout", "10s", "--json", "--server", &server]));
    let output = tokio::select! {
        output = command => output,
        () = accepting => panic!("the other server ended"),
    };
    let error = error_object(&output);
    assert_eq!((status(&output), &error["error"]), (3, &json!("foreign_protocol")), "{error}");
}

#[tokio::test]
async fn a_folder_in_use_is_told_with_5_and_by_whom() {
    let scene = Scene::start().await;
    let other = Serve { listen: "127.0.0.1:0".parse().unwrap(), ..scene.serve.clone() };
    let pid = scene.broker.ready.pid.to_string();
    assert_refused(&serve_in_vain(&other).await, 5, &pid);
    let data = scene.serve.data.to_str().unwrap();
    assert_refused(&scene.serve.home.run(["verify", data]).await, 5, &pid);
    // The broker that runs is none the worse for it.
    assert_eq!(status(&scene.produce(b"a\n", &["produce", "lines"]).await), 0);
}

#[tokio::test]
async fn an_address_in_use_is_told_with_5() {
    let scene = Scene::start().await;
    let other = Serve { data: scene.folder.join("other"), ..scene.serve.clone() };
    assert_refused(&serve_in_vain(&other).await, 5, &scene.server());
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_told_with_1() {
    let folder = RunFolder::new();
    let file = folder.join("file");
    fs::write(&file, "not a folder").unwrap();
    for data in [file.join("data"), file.clone()] {
        let serve = Serve { data: data.clone(), ..Serve::below(folder.path()) };
        assert_refused(&serve_in_vain(&serve).await, 1, data.to_str().unwrap());
    }
    assert_eq!(fs::read(&file).unwrap(), b"not a folder");
}

#[tokio::test]
async fn a_folder_in_a_format_of_the_future_is_told_with_1_and_left_untouched() {
    let scene = Scene::start().await;
    scene.produce(b"a\nb\n", &["produce", "lines"]).await;
    let serve = scene.serve.clone();
    assert_eq!(scene.broker.terminate().await.unwrap().code(), Some(0));
    let newest = contents(&serve.data).into_keys().filter(|name| name.starts_with("segment-")).max().unwrap();
    let path = serve.data.join(newest);
    let mut bytes = fs::read(&path).unwrap();
    for header in bytes[..8_192].chunks_exact_mut(4_096) {
        header[4] = 2;
        let crc = crc32fast::hash(&header[..4_092]);
        header[4_092..].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(&path, bytes).unwrap();
    let mut before = contents(&serve.data);
    assert_refused(&serve_in_vain(&serve).await, 1, "format 2");
    let data = serve.data.to_str().unwrap();
    assert_eq!(status(&serve.home.run(["verify", data]).await), 1);
    let mut after = contents(&serve.data);
    // Holds the process id of the last one that looked.
    before.remove("lock");
    after.remove("lock");
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    assert!(before == after, "a file was changed");
}

#[tokio::test]
async fn a_folder_of_something_else_is_no_log() {
    let folder = RunFolder::new();
    let serve = Serve::below(folder.path());
    let missing = folder.join("missing");
    assert_refused(&serve.home.run(["verify", missing.to_str().unwrap()]).await, 1, "missing");
    assert!(!missing.exists());
}

#[tokio::test]
async fn damage_is_told_with_1_by_stream_and_offsets() {
    let scene = Scene::start().await;
    let marker = "here the disk will rot";
    scene.produce(b"first\n", &["produce", "lines"]).await;
    scene.produce(format!("{marker}\n").as_bytes(), &["produce", "lines"]).await;
    scene.produce(b"third\n", &["produce", "lines"]).await;
    let mut serve = scene.serve.clone();
    scene.broker.terminate().await.unwrap();
    let data = serve.data.to_str().unwrap().to_owned();
    let clean = serve.home.run(["verify", &data, "--json"]).await;
    assert_eq!(status(&clean), 0, "{clean:?}");
    assert_eq!(objects(&clean.stdout).last().unwrap()["damages"], 0);

    let rotten = contents(&serve.data).into_iter().find_map(|(name, mut bytes)| {
        let at = bytes.windows(marker.len()).position(|window| window == marker.as_bytes())?;
        bytes[at] ^= 1;
        Some((name, bytes))
    });
    let (name, bytes) = rotten.expect("records are stored as they are");
    fs::write(serve.data.join(name), bytes).unwrap();
    let output = serve.home.run(["verify", &data, "--json"]).await;
    assert_eq!(status(&output), 1);
    let told = objects(&output.stdout);
    assert_eq!((&told[0]["stream"], &told[0]["offsets"]), (&json!("lines"), &json!([1, 2])), "{told:?}");

    let broker = serve.start().await.unwrap();
    let server = broker.ready.listen.to_string();
    let output = serve.home.run(["consume", "lines", "--server", &server]).await;
    assert_eq!((status(&output), &output.stdout[..]), (1, &b"first\n"[..]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("damaged: lines offsets 1..2"), "{output:?}");
    let output = serve.home.run(["consume", "lines", "--skip-damaged", "--server", &server]).await;
    assert_eq!((status(&output), &output.stdout[..]), (1, &b"first\nthird\n"[..]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("damaged: lines offsets 1..2"), "{output:?}");
}

#[tokio::test]
async fn produce_rides_out_a_killed_broker() {
    let mut scene = Scene::start().await;
    let mut command = scene.command(&["produce", "lines", "--producer", "p", "--receipts"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut receipts = BufReader::new(child.stdout.take().unwrap()).lines();
    stdin.write_all(b"before\n").await.unwrap();
    next(&mut receipts).await;
    scene.broker.kill().await.unwrap();
    stdin.write_all(b"while it is down\n").await.unwrap();
    scene.broker = scene.serve.start().await.unwrap();
    next(&mut receipts).await;
    stdin.write_all(b"behind\n").await.unwrap();
    drop(stdin);
    let output = timeout(DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(status(&output), 0, "{output:?}");
    assert_eq!(scene.consume(&["lines"]).await, "before\nwhile it is down\nbehind\n");
}

#[tokio::test]
async fn a_second_run_under_the_same_name_takes_over_and_the_first_ends_with_5() {
    let scene = Scene::start().await;
    let words = ["produce", "lines", "--producer", "p", "--receipts"];
    let mut first = scene.command(&words).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = first.stdin.take().unwrap();
    let mut receipts = BufReader::new(first.stdout.take().unwrap()).lines();
    stdin.write_all(b"a\n").await.unwrap();
    next(&mut receipts).await;
    assert_eq!(status(&scene.produce(b"a\nb\n", &words).await), 0);
    // The first has nothing under way, so it finds out with this line.
    let _ = stdin.write_all(b"c\n").await;
    drop(stdin);
    let output = timeout(DEADLINE, first.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(status(&output), 5, "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("another session"), "{output:?}");
    assert_eq!(scene.consume(&["lines"]).await, "a\nb\n");
}

#[tokio::test]
async fn help_and_version_go_to_standard_output() {
    let folder = RunFolder::new();
    let home = Serve::below(folder.path()).home;
    let output = home.run(["--version"]).await;
    assert_eq!((status(&output), &output.stderr[..]), (0, &b""[..]));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("tidelog "), "{output:?}");
    for command in ["serve", "stream", "produce", "consume", "verify"] {
        let output = home.run([command, "--help"]).await;
        assert_eq!((status(&output), &output.stderr[..]), (0, &b""[..]), "{command}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("Usage: tidelog"), "{command}");
    }
}

#[tokio::test]
async fn an_address_beyond_this_machine_is_refused() {
    let folder = RunFolder::new();
    let serve = Serve { listen: "0.0.0.0:0".parse().unwrap(), ..Serve::below(folder.path()) };
    assert_refused(&serve_in_vain(&serve).await, 2, "0.0.0.0");
}
