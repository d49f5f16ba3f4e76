//! `tidelog repair` as a shell sees it: the plan with 1, the deed with 0, and 5 while a broker runs.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test may panic")]

mod harness;

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use harness::broker::{Broker, Serve};
use harness::folder::RunFolder;
use serde_json::Value;
use tidelog_storage::medium::DiskMedium;
use tidelog_storage::{EntryKind, Replayed, verify};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(60);

async fn ended(mut command: Command) -> Output {
    timeout(DEADLINE, command.output()).await.expect("it ends in time").unwrap()
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("ended by a signal: {output:?}"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn objects(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn produce(serve: &Serve, broker: &Broker, words: &[&str], input: &str) -> Output {
    let mut command = serve.home.tidelog(words.iter().copied());
    command.args(["--server", &broker.ready.listen.to_string(), "--timeout", "10s"]).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that is refused does not read its input to the end.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    timeout(DEADLINE, child.wait_with_output()).await.unwrap().unwrap()
}

/// Makes both headers of the last batch unreadable.
fn break_last_batch(folder: &Path) {
    let mut last = None;
    verify(&DiskMedium::open_existing(folder).unwrap(), &mut |replayed| {
        if let Replayed::Entry { head, .. } = replayed
            && head.header.kind == EntryKind::Records
        {
            last = Some(head.header);
        }
    })
    .unwrap();
    let header = last.unwrap();
    let copy = (104 + u64::from(header.payload_len)).next_multiple_of(8);
    let segments = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let bases = segments.filter_map(|path| {
        let bytes = fs::read(&path).unwrap();
        let is_segment = path.file_name().unwrap().to_str().unwrap().starts_with("segment-");
        is_segment.then(|| (u64::from_le_bytes(bytes[48..56].try_into().unwrap()), path, bytes))
    });
    let (base, path, mut bytes) =
        bases.filter(|(base, ..)| *base <= header.position).max_by_key(|(base, ..)| *base).unwrap();
    for at in [header.position + 40, header.position + copy + 40] {
        bytes[(8_192 + at - base) as usize] ^= 4;
    }
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn the_plan_is_shown_with_1_and_done_with_0() {
    let folder = RunFolder::new();
    let mut serve = Serve::below(folder.path());
    let broker = serve.start().await.unwrap();
    let data = serve.data.to_str().unwrap().to_owned();
    produce(&serve, &broker, &["produce", "lines", "--producer", "p"], "first\nsecond\n").await;
    produce(&serve, &broker, &["produce", "lines"], "third\n").await;

    let running = ended(serve.home.tidelog(["repair", &data])).await;
    assert_eq!(status(&running), 5, "{}", text(&running));
    broker.terminate().await.unwrap();
    let sound = ended(serve.home.tidelog(["repair", &data, "--json"])).await;
    assert_eq!((status(&sound), objects(&sound)[0]["outcome"].as_str()), (0, Some("nothing_to_repair")));
    let missing = ended(serve.home.tidelog(["repair", folder.join("missing").to_str().unwrap()])).await;
    assert_eq!(status(&missing), 1);

    break_last_batch(&serve.data);
    let broker = serve.start().await.unwrap();
    let refused = produce(&serve, &broker, &["produce", "lines"], "fourth\n").await;
    assert_ne!(status(&refused), 0, "{}", text(&refused));
    broker.terminate().await.unwrap();

    let plan = ended(serve.home.tidelog(["repair", &data])).await;
    assert_eq!(status(&plan), 1, "{}", text(&plan));
    for part in ["stream lines: goes on at offset", "producer p: epoch 1 becomes", "nothing was changed", "--yes"] {
        assert!(text(&plan).contains(part), "{part:?} is not in {}", text(&plan));
    }
    let again = ended(serve.home.tidelog(["repair", &data, "--json"])).await;
    assert_eq!(status(&again), 1);
    let told = objects(&again);
    let stream = told.iter().find(|object| object["goes_on_at"].is_u64()).unwrap();
    assert_eq!((stream["stream"].as_str(), stream["damaged"][0].as_u64()), (Some("lines"), Some(2)), "{told:?}");
    let goes_on_at = stream["goes_on_at"].as_u64().unwrap();
    assert!(goes_on_at >= 3);

    let done = ended(serve.home.tidelog(["repair", &data, "--yes"])).await;
    assert_eq!(status(&done), 0, "{}", text(&done));
    assert!(text(&done).ends_with("repaired\n"), "{}", text(&done));
    let nothing = ended(serve.home.tidelog(["repair", &data, "--yes"])).await;
    assert_eq!((status(&nothing), text(&nothing).as_str()), (0, "nothing to repair\n"));
    let verified = ended(serve.home.tidelog(["verify", &data])).await;
    assert_eq!(status(&verified), 0, "{}", text(&verified));
    assert!(text(&verified).contains("repaired: segment"), "{}", text(&verified));
    assert!(text(&verified).contains("lines offsets 2.."), "{}", text(&verified));

    let broker = serve.start().await.unwrap();
    let stored = produce(&serve, &broker, &["produce", "lines", "--receipts", "--json"], "fourth\n").await;
    assert_eq!(objects(&stored)[0]["offset"].as_u64(), Some(goes_on_at), "{}", text(&stored));
    // The same input again: what was stored before is not stored twice, and the rest goes on.
    let input = "first\nsecond\nfifth\n";
    let resumed = produce(&serve, &broker, &["produce", "lines", "--producer", "p"], input).await;
    assert_eq!(status(&resumed), 0, "{}", text(&resumed));
    produce(&serve, &broker, &["produce", "new", "--producer", "q"], "x\n").await;
    let server = broker.ready.listen.to_string();
    let read = ended(serve.home.tidelog(["consume", "lines", "--skip-damaged", "--server", &server])).await;
    assert_eq!((status(&read), &read.stdout[..]), (1, &b"first\nsecond\nfourth\nfifth\n"[..]), "{}", text(&read));
    assert!(text(&read).contains(&format!("damaged: lines offsets 2..{goes_on_at}")), "{}", text(&read));
}
