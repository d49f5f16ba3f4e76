//! How many instructions does a record take? Counted by callgrind, so that the answer is the same on a busy machine and a
//! quiet one, and a regression of a few percent shows.
//!
//! ```text
//! cargo bench --bench instructions                   # counts, beside the baseline
//! cargo bench --bench instructions -- --check        # fails if a count is above the baseline by more than its tolerance
//! cargo bench --bench instructions -- --renew        # writes the baseline: benches/instructions.json
//! cargo bench --bench instructions -- --only WORD --json FILE --keep FOLDER
//! ```
//!
//! Needs valgrind. Each piece of work runs in a process of its own: once to warm up, then within [`measured`], which is all
//! that callgrind counts. `serve`, `produce` and `consume` are the real binary, each under callgrind with the others at
//! their own speed; what is told is the difference between a long load and a short one, so that start and end do not
//! count. Kernel work is not counted anywhere, and the processor is the one that valgrind emulates.

#[path = "work/callgrind.rs"]
mod callgrind;
#[path = "work/processes.rs"]
mod processes;
#[path = "work/whole.rs"]
mod whole;
mod work;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use tidelog_protocol::{BatchBuilder, Limits, StreamId, check_batch, verify_content_crc};
use work::admission::Judged;
use work::batches::{LARGE_RECORDS, LONE_RECORD, SMALL_RECORDS, Shape, build, decode};
use work::rig::Rig;

/// The one function within which callgrind counts.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    work();
}

/// A count above the baseline by more than this fails, in percent. Two runs of one build differ by the seeds of hash maps
/// alone, which is below 0.5.
const TOLERANCE_PERCENT: f64 = 3.0;
/// With a runtime and futures around the work, a change anywhere moves what is inlined where: 2.4 % were seen.
const WHOLE_TOLERANCE_PERCENT: f64 = 5.0;
/// The real binary has threads, and how much travels together depends on their pace.
const PROCESS_TOLERANCE_PERCENT: f64 = 25.0;

/// A piece of work within one process: its name, what is counted, and the work, which returns how many of that it did.
struct Piece {
    name: &'static str,
    per: &'static str,
    work: fn() -> u64,
}

const PIECES: &[Piece] = &[
    Piece { name: "build 600 x 100 B", per: "record", work: || build_batches(SMALL_RECORDS) },
    Piece { name: "build 60 x 1024 B", per: "record", work: || build_batches(LARGE_RECORDS) },
    Piece { name: "check 600 x 100 B", per: "record", work: || check_batches(SMALL_RECORDS) },
    Piece { name: "check 60 x 1024 B", per: "record", work: || check_batches(LARGE_RECORDS) },
    Piece { name: "verify and decode 600 x 100 B", per: "record", work: || decode_batches(SMALL_RECORDS) },
    Piece { name: "verify and decode 60 x 1024 B", per: "record", work: || decode_batches(LARGE_RECORDS) },
    Piece { name: "judge next, 1 pair", per: "batch", work: || judge(1, 1, Judged::judge_next) },
    Piece { name: "judge next, 100000 pairs", per: "batch", work: || judge(1_000, 100, Judged::judge_next) },
    Piece { name: "judge duplicate, 1 pair", per: "batch", work: || judge(1, 1, Judged::judge_duplicates) },
    Piece { name: "judge duplicate, 100000 pairs", per: "batch", work: || judge(1_000, 100, Judged::judge_duplicates) },
    Piece { name: "sequencer, batches of 1 x 100 B", per: "record", work: || sequence(LONE_RECORD, 4_096) },
    Piece { name: "sequencer, batches of 600 x 100 B", per: "record", work: || sequence(SMALL_RECORDS, 256) },
    Piece { name: "broker and producer, one at a time", per: "record", work: || publish(1_000, true) },
    Piece { name: "broker and producer, pipelined", per: "record", work: || publish(100_000, false) },
    Piece { name: "broker and producer, 1000 streams at random", per: "record", work: publish_at_random },
    Piece { name: "broker, producer and follower", per: "record", work: follow },
    Piece { name: "broker and reader from the log", per: "record", work: read_back },
];

fn build_batches(shape: Shape) -> u64 {
    const BATCHES: u64 = 64;
    let values = shape.values();
    let mut builder = BatchBuilder::new();
    let mut work = || {
        for _ in 0..BATCHES {
            black_box(build(&mut builder, &values, StreamId::new(8), 1));
        }
    };
    work();
    measured(&mut work);
    BATCHES * u64::from(shape.records)
}

fn check_batches(shape: Shape) -> u64 {
    const BATCHES: u64 = 64;
    let (batch, limits) = (shape.dense(StreamId::new(8), 1), Limits::default());
    let mut work = || {
        for _ in 0..BATCHES {
            black_box(check_batch(black_box(&batch), &limits).expect("a sound batch"));
        }
    };
    work();
    measured(&mut work);
    BATCHES * u64::from(shape.records)
}

fn decode_batches(shape: Shape) -> u64 {
    const BATCHES: u64 = 64;
    let batch = shape.dense(StreamId::new(8), 1);
    let mut work = || {
        for _ in 0..BATCHES {
            assert!(verify_content_crc(black_box(&batch)), "a sound batch");
            black_box(decode(&batch));
        }
    };
    work();
    measured(&mut work);
    BATCHES * u64::from(shape.records)
}

fn judge(producers: u64, streams: u64, how: fn(&Judged) -> u64) -> u64 {
    let judged = Judged::new(producers, streams);
    let mut batches = 0;
    let mut work = || batches = how(&judged);
    work();
    measured(&mut work);
    batches
}

/// Groups of 64 batches of a named producer through check, judgement, encoding, both folds and the answers; what writes
/// them is not counted.
fn sequence(shape: Shape, batches: u64) -> u64 {
    const GROUP_BATCHES: usize = 64;
    let mut rig = Rig::in_memory();
    let (stream, grant) = (rig.create_stream("bench"), rig.open_producer("bench"));
    let all: Vec<_> = (0..2 * batches).map(|at| shape.dense(stream, 1 + at * u64::from(shape.records))).collect();
    let (warm_up, counted) = all.split_at(batches as usize);
    for group in warm_up.chunks(GROUP_BATCHES) {
        group.iter().for_each(|batch| rig.publish(&grant, batch));
        rig.commit();
    }
    for group in counted.chunks(GROUP_BATCHES) {
        let mut taken = None;
        measured(&mut || {
            group.iter().for_each(|batch| rig.publish(&grant, batch));
            taken = rig.take_group();
        });
        let (mut group, bytes) = taken.expect("something was appended");
        let end = rig.write(&mut group);
        measured(&mut || rig.settle(end, &bytes));
        rig.supply();
    }
    batches * u64::from(shape.records)
}

fn publish(records: u64, one_at_a_time: bool) -> u64 {
    let value = value();
    let whole = whole::Whole::start();
    let work = || match one_at_a_time {
        true => whole.publish_each(records, &value),
        false => whole.publish(records, &value),
    };
    work();
    measured(&mut || work());
    records
}

fn publish_at_random() -> u64 {
    const RECORDS: u64 = 100_000;
    let value = value();
    let whole = whole::Whole::start();
    let publishers = whole.publishers(1_000);
    let work = || whole.publish_at_random(&publishers, RECORDS, &value);
    work();
    measured(&mut || work());
    RECORDS
}

fn follow() -> u64 {
    const RECORDS: u64 = 50_000;
    let value = value();
    let whole = whole::Whole::start();
    let mut reader = whole.follow();
    let mut work = || whole.publish_and_follow(RECORDS, &value, &mut reader);
    work();
    measured(&mut work);
    RECORDS
}

fn read_back() -> u64 {
    const RECORDS: u64 = 50_000;
    let whole = whole::Whole::start();
    whole.publish(RECORDS, &value());
    whole.read_back(RECORDS);
    measured(&mut || whole.read_back(RECORDS));
    RECORDS
}

fn value() -> Vec<u8> {
    vec![7; 100]
}

/// What was counted.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Counted {
    instructions: f64,
    /// In percent.
    tolerance: f64,
}

/// The file beside this one.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Baseline {
    /// With another compiler the counts are others.
    compiler: String,
    /// By what was measured and per what.
    counts: BTreeMap<String, Counted>,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What was asked for.
#[derive(Debug, Default)]
struct Arguments {
    only: Option<String>,
    json: Option<PathBuf>,
    keep: Option<PathBuf>,
    check: bool,
    renew: bool,
    /// In a child: this piece.
    piece: Option<String>,
}

impl Arguments {
    fn parse() -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--only" => parsed.only = Some(value()?),
                "--json" => parsed.json = Some(value()?.into()),
                "--keep" => parsed.keep = Some(value()?.into()),
                "--piece" => parsed.piece = Some(value()?),
                "--check" => parsed.check = true,
                "--renew" => parsed.renew = true,
                // Cargo says so to every bench.
                "--bench" => {}
                _ => return Err(format!("{word}: see the head of benches/instructions.rs")),
            }
        }
        Ok(parsed)
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|word| name.contains(word.as_str()))
    }
}

fn run() -> Result<ExitCode, String> {
    let arguments = Arguments::parse()?;
    if let Some(name) = &arguments.piece {
        let piece = PIECES.iter().find(|piece| piece.name == name).ok_or(format!("there is no {name}"))?;
        println!("{}", (piece.work)());
        return Ok(ExitCode::SUCCESS);
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|error| error.to_string())?;
    let folder = arguments.keep.as_deref().unwrap_or(folder.path());
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let baseline_file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.json"));
    let mut baseline: Baseline = match std::fs::read_to_string(baseline_file) {
        Ok(text) => serde_json::from_str(&text).map_err(|error| format!("{}: {error}", baseline_file.display()))?,
        Err(_) => Baseline::default(),
    };
    let compiler = compiler()?;
    if baseline.compiler != compiler {
        println!("the baseline is of {:?}, this is {compiler}: counts may differ for that alone", baseline.compiler);
    }

    let mut table = Table::new(&baseline, arguments.check);
    for piece in PIECES.iter().filter(|piece| arguments.wants(piece.name)) {
        let instructions = callgrind::count_piece(piece.name, folder)?;
        let name = format!("{}, per {}", piece.name, piece.per);
        let is_whole = piece.name.starts_with("broker");
        let tolerance = if is_whole { WHOLE_TOLERANCE_PERCENT } else { TOLERANCE_PERCENT };
        table.put(name, Counted { instructions, tolerance });
    }
    for process in processes::ALL.iter().filter(|process| arguments.wants(process.name())) {
        let instructions = processes::count(*process, folder)?;
        let name = format!("{}, per record", process.name());
        table.put(name, Counted { instructions, tolerance: PROCESS_TOLERANCE_PERCENT });
    }
    let Table { counts, failures, .. } = table;

    if let Some(file) = &arguments.json {
        write_json(file, &counts)?;
    }
    if arguments.renew {
        baseline.counts.extend(counts);
        baseline.compiler = compiler;
        write_json(baseline_file, &baseline)?;
    }
    if arguments.check && !failures.is_empty() {
        failures.iter().for_each(|failure| println!("{failure}"));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints each count as it comes, beside the baseline.
struct Table<'b> {
    baseline: &'b Baseline,
    checks: bool,
    counts: BTreeMap<String, Counted>,
    failures: Vec<String>,
}

impl<'b> Table<'b> {
    fn new(baseline: &'b Baseline, checks: bool) -> Self {
        println!("{:<52} {:>12} {:>12} {:>8}", "instructions", "now", "baseline", "");
        Self { baseline, checks, counts: BTreeMap::new(), failures: Vec::new() }
    }

    fn put(&mut self, name: String, counted: Counted) {
        let now = counted.instructions;
        match self.baseline.counts.get(&name) {
            Some(before) => {
                let percent = 100.0 * (now / before.instructions - 1.0);
                let verdict = if percent > before.tolerance {
                    let tolerance = before.tolerance;
                    self.failures.push(format!("{name}: {percent:+.1} %, {tolerance} % are tolerated"));
                    "WORSE"
                } else if percent < -before.tolerance {
                    // Else a later regression would hide in what was gained.
                    "better: renew the baseline"
                } else {
                    ""
                };
                println!("{name:<52} {now:>12.1} {:>12.1} {percent:>+7.1}% {verdict}", before.instructions);
            }
            None => {
                if self.checks {
                    self.failures.push(format!("{name} has no baseline; --renew makes one"));
                }
                println!("{name:<52} {now:>12.1} {:>12}", "-");
            }
        }
        self.counts.insert(name, counted);
    }
}

fn write_json(file: &Path, value: &impl Serialize) -> Result<(), String> {
    let mut text = serde_json::to_string_pretty(value).map_err(|error| error.to_string())?;
    text.push('\n');
    std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}

/// What this was built with, as far as it can be known: the compiler that cargo would use.
fn compiler() -> Result<String, String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output =
        std::process::Command::new(rustc).arg("--version").output().map_err(|error| format!("rustc: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
