//! `tidelog serve --until-stdin-closes`: a broker that a test in any language starts, and that goes with the test however
//! that ends.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use harness::broker::Ready;
use harness::command::{BINARY, Home};
use harness::folder::RunFolder;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// Nothing here takes a second; what takes this long hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// As a test starts it: in memory, on any port, its ready line to descriptor 3.
const SERVE: [&str; 9] = [BINARY, "serve", "--memory", "--listen", "127.0.0.1:0", "--http", "off", "--ready-fd", "3"];
const UNTIL_STDIN_CLOSES: &str = "--until-stdin-closes";

/// A broker in memory whose standard input this test holds.
struct Served {
    child: Child,
    /// None once it is closed.
    stdin: Option<ChildStdin>,
    /// Its standard output, on which the ready line came; it ends with the process.
    stdout: BufReader<ChildStdout>,
    ready: Ready,
    home: Home,
}

impl Served {
    /// Its log goes to the file `name` in `folder`, which is its home as well.
    async fn start(folder: &Path, name: &str, options: &[&str]) -> Self {
        let home = Home::below(folder);
        // Descriptor 3 is closed behind the ready line, standard output stays.
        let mut shell = home.command(Path::new("sh"));
        shell.args(["-c", "exec \"$@\" 3>&1", "sh"]).args(SERVE).args(options);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(fs::File::create(folder.join(name)).unwrap());
        let mut child = shell.spawn().unwrap();
        let stdin = child.stdin.take();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let ready = ready(&mut stdout).await;
        Self { child, stdin, stdout, ready, home }
    }

    /// Publishes one record and reads it back.
    async fn is_of_use(&self) {
        let server = format!("tidelog://{}?pin={}", self.ready.listen, self.ready.pin);
        let mut produce = self.home.tidelog(["produce", "orders", "--producer", "shop", "--server", &server]);
        let mut produce = produce.stdin(Stdio::piped()).spawn().unwrap();
        produce.stdin.take().unwrap().write_all(b"one order\n").await.unwrap();
        let produced = timeout(DEADLINE, produce.wait_with_output()).await.unwrap().unwrap();
        assert!(produced.status.success(), "{produced:?}");
        let consumed = ended(self.home.tidelog(["consume", "orders", "--server", &server])).await;
        assert_eq!(String::from_utf8_lossy(&consumed.stdout), "one order\n", "{consumed:?}");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.ready.pid).unwrap()).unwrap(), signal).unwrap();
    }

    /// Closes its standard input and waits for its end.
    async fn close(mut self) -> Option<i32> {
        self.stdin = None;
        self.end().await
    }

    /// Its exit status, and that nothing of it is left.
    async fn end(mut self) -> Option<i32> {
        let status = timeout(DEADLINE, self.child.wait()).await.expect("it ends in time").unwrap();
        // Ends only when nobody has it open any more: no process that it started lives on.
        let mut rest = String::new();
        timeout(DEADLINE, self.stdout.read_to_string(&mut rest)).await.unwrap().unwrap();
        assert_eq!(rest, "");
        for file in trust_files(&self.home, self.ready.listen.port()) {
            assert_ne!(owner(&file), Some(self.ready.pid), "{}", file.display());
        }
        status.code()
    }
}

async fn ready(stdout: &mut BufReader<ChildStdout>) -> Ready {
    let mut line = String::new();
    timeout(DEADLINE, stdout.read_line(&mut line)).await.unwrap().unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
}

async fn ended(mut command: Command) -> Output {
    timeout(DEADLINE, command.output()).await.expect("it ends in time").unwrap()
}

/// What a broker on this port leaves while it runs.
fn trust_files(home: &Home, port: u16) -> Vec<PathBuf> {
    let mut files = vec![home.trust_file(port)];
    if rustix::process::geteuid().is_root() {
        files.push(PathBuf::from(format!("/run/tidelog/{port}.json")));
    }
    files
}

/// The process that a trust file speaks of, if it is there.
fn owner(file: &Path) -> Option<u32> {
    let text = fs::read(file).ok()?;
    let object: serde_json::Value = serde_json::from_slice(&text).unwrap();
    Some(u32::try_from(object["pid"].as_u64().unwrap()).unwrap())
}

/// All files below, as paths.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn the_end_of_standard_input_ends_the_broker_in_order() {
    let folder = RunFolder::new();
    let served = Served::start(folder.path(), "log", &[UNTIL_STDIN_CLOSES]).await;
    for file in trust_files(&served.home, served.ready.listen.port()) {
        assert_eq!(owner(&file), Some(served.ready.pid), "{}", file.display());
    }
    served.is_of_use().await;
    assert_eq!(served.close().await, Some(0));
    let log = fs::read_to_string(folder.join("log")).unwrap();
    assert!(log.contains("standard input has ended"), "{log}");
    // Home and working folder are in there too, and the log was this test's.
    assert_eq!(files_below(folder.path()), [folder.join("log")]);
}

#[tokio::test]
async fn what_comes_through_standard_input_does_not_matter() {
    let folder = RunFolder::new();
    let mut served = Served::start(folder.path(), "log", &[UNTIL_STDIN_CLOSES]).await;
    // More than a pipe holds: it is read.
    let stdin = served.stdin.as_mut().unwrap();
    timeout(DEADLINE, stdin.write_all(&[b'\n'; 300_000])).await.unwrap().unwrap();
    served.is_of_use().await;
    assert_eq!(served.close().await, Some(0));
}

#[tokio::test]
async fn a_signal_ends_it_while_standard_input_is_open() {
    let folder = RunFolder::new();
    for signal in [Signal::TERM, Signal::INT] {
        let served = Served::start(folder.path(), "log", &[UNTIL_STDIN_CLOSES]).await;
        served.signal(signal);
        assert_eq!(served.end().await, Some(0), "{signal:?}");
    }
}

#[tokio::test]
async fn an_input_that_has_ended_before_the_start_is_an_end_as_well() {
    let folder = RunFolder::new();
    let home = Home::below(folder.path());
    let words = ["serve", "--memory", "--listen", "127.0.0.1:0", "--http", "off", UNTIL_STDIN_CLOSES];
    // Nothing to read: `/dev/null`.
    let output = ended(home.tidelog(words)).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(files_below(folder.path()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn without_the_option_the_end_of_standard_input_means_nothing() {
    let folder = RunFolder::new();
    let mut served = Served::start(folder.path(), "log", &[]).await;
    let other = Served::start(folder.path(), "other", &[UNTIL_STDIN_CLOSES]).await;
    served.stdin = None;
    // Closed later, and gone.
    assert_eq!(other.close().await, Some(0));
    served.is_of_use().await;
    assert!(served.child.try_wait().unwrap().is_none());
    served.signal(Signal::TERM);
    assert_eq!(served.end().await, Some(0));
}

/// A shell that starts a broker and alone holds the other ends of its standard input and its log. A second one, which lives
/// on, tells the broker's exit status on standard output.
const PARENT: &str = r#"
    mkfifo input log
    ( "$@" 3>&1 <input 2>log; echo "ended $?" ) &
    exec 9>input 8<log
    read -r _
"#;

#[tokio::test]
async fn a_broker_goes_with_a_parent_that_is_killed() {
    let folder = RunFolder::new();
    let home = Home::below(folder.path());
    let mut parent = home.command(Path::new("sh"));
    parent.args(["-c", PARENT, "sh"]).args(SERVE).arg(UNTIL_STDIN_CLOSES);
    let mut parent = parent.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(parent.stdout.take().unwrap());
    let ready = ready(&mut stdout).await;
    assert_eq!(owner(&home.trust_file(ready.listen.port())), Some(ready.pid));
    parent.kill().await.unwrap();
    // By now nobody reads its log any more; what it says there must not be its end.
    let mut rest = String::new();
    timeout(DEADLINE, stdout.read_to_string(&mut rest)).await.expect("the broker ends").unwrap();
    assert_eq!(rest, "ended 0\n");
    for file in trust_files(&home, ready.listen.port()) {
        assert_ne!(owner(&file), Some(ready.pid), "{}", file.display());
    }
}

#[tokio::test]
async fn brokers_of_one_user_do_not_disturb_each_other() {
    const BROKERS: usize = 8;
    let folder = RunFolder::new();
    let mut starting = tokio::task::JoinSet::new();
    for number in 0..BROKERS {
        let folder = folder.path().to_owned();
        starting.spawn(async move { Served::start(&folder, &number.to_string(), &[UNTIL_STDIN_CLOSES]).await });
    }
    let mut brokers = starting.join_all().await;
    let staying = brokers.split_off(BROKERS / 2);
    let mut stopping = tokio::task::JoinSet::new();
    for broker in brokers {
        stopping.spawn(broker.close());
    }
    assert_eq!(stopping.join_all().await, [Some(0); BROKERS / 2]);
    for broker in staying {
        // Found by its trust file alone.
        let server = broker.ready.listen.to_string();
        let output = ended(broker.home.tidelog(["stream", "create", "orders", "--server", &server])).await;
        assert!(output.status.success(), "{output:?}");
        assert_eq!(broker.close().await, Some(0));
    }
    let logs: Vec<_> = (0..BROKERS).map(|number| folder.join(&number.to_string())).collect();
    let mut left = files_below(folder.path());
    left.sort();
    assert_eq!(left, logs);
}
