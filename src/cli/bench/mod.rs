//! `tidelog bench`: what a running broker does, beside what its machine does, in one run.
//!
//! Everything runs on one thread, as in the other client commands, so that many producers cost what many producers cost
//! and not what handing work between threads does.

mod due;
mod ledger;
mod load;
mod machine;
mod pace;
mod read_back;
mod report;
mod scene;

use std::io::{IsTerminal as _, Write as _};
use std::rc::Rc;
use std::time::Duration;

use serde_json::json;
use tidelog_client::Ack;
use tidelog_protocol::CLIENT_WINDOW_BYTES_DEFAULT;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep};

use self::ledger::{Lane, Payload};
use self::load::{Load, Tally, Task, Until};
use self::machine::Machine;
use self::pace::Pace;
use self::read_back::{StreamCheck, check_content, read_back};
use self::report::{Direction, Echoes, Latencies, Report, grouped};
use self::scene::{Producers, Scene};
use super::args::{AckArgument, BenchCommand, BenchConsumeArguments, BenchLatencyArguments, BenchPublishArguments};
use super::connect::{block_on, failed, interrupted};
use super::exit::{CliError, Exit};
use super::output::Output;

/// How often the progress line is renewed.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// A rate begins so long after the producers are ready.
const HEAD_START: Duration = Duration::from_millis(10);

/// Runs a workload, and removes what it brought.
///
/// # Errors
///
/// Those of the connection and of the broker; status 1 if what was read back is not what was sent.
pub(crate) fn run(command: &BenchCommand) -> Result<(), CliError> {
    let connections = match command {
        BenchCommand::Publish(arguments) => {
            check(arguments)?;
            arguments.connections
        }
        // One publishes, the other reads.
        BenchCommand::Latency(_) => 2,
        BenchCommand::Consume(_) => 1,
    };
    let common = command.common();
    block_on(async {
        let scene = tokio::select! {
            scene = Scene::open(common, connections) => scene?,
            interrupted = interrupted_or_told_to_end() => return Err(interrupted),
        };
        let tally = Rc::new(Tally::default());
        let tasks = LocalSet::new();
        let outcome = tokio::select! {
            outcome = tasks.run_until(work(command, &scene, &tally)) => outcome,
            interrupted = interrupted_or_told_to_end() => Err(interrupted),
            never = show_progress(&tally) => never,
        };
        // What was given up sends nothing more.
        drop(tasks);
        // Another interrupt ends the cleaning, too.
        let cleaned = tokio::select! {
            cleaned = scene.clean() => cleaned,
            interrupted = interrupted_or_told_to_end() => Err(interrupted),
        };
        scene.close().await;
        let report = outcome?;
        tell(&report, command)?;
        cleaned?;
        match report.problem {
            None => Ok(()),
            Some(problem) => Err(load::not_verified(format!("what was read back is not what was sent: {problem}"))),
        }
    })
}

/// Waits for one of the two signals after which there is time to remove the streams.
async fn interrupted_or_told_to_end() -> CliError {
    let told = async {
        match signal(SignalKind::terminate()) {
            Ok(mut told) => drop(told.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        interrupted = interrupted() => interrupted,
        () = told => CliError::new(Exit::Interrupted, "interrupted", "told to end"),
    }
}

/// What clap can't see by itself.
fn check(arguments: &BenchPublishArguments) -> Result<(), CliError> {
    let usage = |message: String| Err(CliError::new(Exit::Usage, "usage", message));
    if arguments.connections > arguments.producers {
        let (connections, producers) = (arguments.connections, arguments.producers);
        return usage(format!("{producers} producers can't share {connections} connections: each has one"));
    }
    if arguments.ack == AckArgument::Accepted && arguments.streams > 1 {
        return usage("--ack accepted is measured with one stream only".to_owned());
    }
    if arguments.records.is_some_and(|records| records < arguments.producers) {
        return usage(format!("each of {} producers needs at least one record", arguments.producers));
    }
    let window_bytes_max = u64::from(CLIENT_WINDOW_BYTES_DEFAULT);
    if arguments.window.get() > window_bytes_max {
        return usage(format!("a window has at most {window_bytes_max} bytes"));
    }
    let in_flight_bytes = arguments.in_flight.unwrap_or(0).saturating_mul(u64::from(arguments.common.size));
    if arguments.in_flight.is_some_and(|records| records > 1) && in_flight_bytes > window_bytes_max / 2 {
        return usage(format!(
            "so many records of {} bytes are more than half of the largest window, {window_bytes_max} bytes: give a \
             --window instead",
            arguments.common.size
        ));
    }
    Ok(())
}

async fn work(command: &BenchCommand, scene: &Scene, tally: &Rc<Tally>) -> Result<Report, CliError> {
    match command {
        BenchCommand::Publish(arguments) => publish(arguments, scene, tally).await,
        BenchCommand::Latency(arguments) => latency(arguments, scene, tally).await,
        BenchCommand::Consume(arguments) => consume(arguments, scene, tally).await,
    }
}

fn tell(report: &Report, command: &BenchCommand) -> Result<(), CliError> {
    if let (Some(file), Some(latencies)) = (command.histogram(), &report.latencies) {
        latencies.write(file)?;
    }
    let mut output = Output::stdout()?;
    match command.common().client.json {
        true => output.write_line(report.json().as_bytes())?,
        false => output.write(report.text().as_bytes())?,
    }
    output.flush()
}

/// Renews a line on a terminal; elsewhere it says nothing.
async fn show_progress(tally: &Tally) -> Result<Report, CliError> {
    if !std::io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let mut before = 0;
    loop {
        sleep(PROGRESS_INTERVAL).await;
        let records = tally.records.get();
        if records != before {
            let per_second = (records.saturating_sub(before)) as f64 / PROGRESS_INTERVAL.as_secs_f64();
            let line = format!("\r{} records, {}/s\x1b[K\r", grouped(records), grouped(per_second as u64));
            // Nobody's loss.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
        before = records;
    }
}

async fn publish(arguments: &BenchPublishArguments, scene: &Scene, tally: &Rc<Tally>) -> Result<Report, CliError> {
    let BenchPublishArguments { common, producers, in_flight, streams, ack, .. } = arguments;
    let size = common.size as usize;
    let ack = match ack {
        AckArgument::Durable => Ack::Durable,
        AckArgument::Accepted => Ack::Accepted,
    };
    let window_bytes = match in_flight {
        // The number of records is the bound, and not the window.
        Some(_) => u64::from(CLIENT_WINDOW_BYTES_DEFAULT),
        None => arguments.window.get(),
    };
    let echoes = Echoes {
        message_bytes: size,
        in_flight: usize::try_from(in_flight.unwrap_or(1)).unwrap_or(usize::MAX),
        at_once: usize::try_from(*producers).unwrap_or(usize::MAX),
        per_second: arguments.rate.map(|rate| rate.per_second()),
    };
    let mut machine = Machine::default();
    machine.measure_before(&scene.clients, &echoes).await?;

    let streams = scene.make_streams(*streams).await?;
    let producers = Producers::new(*producers, window_bytes, ack)?;
    tally.latencies.replace(Some(Latencies::new()));
    tally.late.replace(arguments.rate.map(|_| Latencies::new()));
    let opened = scene.open_producers(&producers, &streams).await?;
    let count = opened.len() as u64;
    let started = match arguments.rate {
        Some(_) => Instant::now() + HEAD_START,
        None => Instant::now(),
    };
    let mut loads = Vec::new();
    for ((producer, publishers), number) in opened.into_iter().zip(0..) {
        let until = match arguments.records {
            Some(records) => Until::Records(records / count + u64::from(number < records % count)),
            None => Until::Moment(started + arguments.duration),
        };
        let pace =
            arguments.rate.map(|rate| Pace { started, per_second: rate.per_second(), place: number, producers: count });
        let task = Task { number, size, until, in_flight: *in_flight, ack, pace };
        loads.push(Load::new(task, tally, producer, publishers)?);
    }
    let lanes = run_all(loads).await?;
    let time = tally.ended.get().unwrap_or(started).saturating_duration_since(started);

    machine.measure_after(&scene.clients, &echoes).await?;
    let problem = read_back(scene.first()?, &streams, &producers.names, &lanes, size).await?.err();
    Ok(Report {
        workload: "publish",
        options: vec![
            ("producers", json!(count)),
            ("connections", json!(arguments.connections)),
            ("streams", json!(arguments.streams)),
            ("in_flight", json!(in_flight)),
            ("window_bytes", json!(in_flight.is_none().then_some(window_bytes))),
            ("rate", json!(arguments.rate.map(|rate| rate.per_second()))),
            ("ack", json!(if ack == Ack::Accepted { "accepted" } else { "durable" })),
        ],
        size: size as u64,
        records: tally.records.get(),
        time,
        latencies: tally.latencies.take(),
        late: tally.late.take(),
        echoes,
        direction: Direction::Upload,
        machine,
        problem,
    })
}

async fn latency(arguments: &BenchLatencyArguments, scene: &Scene, tally: &Rc<Tally>) -> Result<Report, CliError> {
    let BenchLatencyArguments { common, rate, duration, .. } = arguments;
    let size = common.size as usize;
    let per_second = rate.per_second();
    let records = ((per_second * duration.as_secs_f64()) as u64).max(1);
    let echoes = Echoes { message_bytes: size, in_flight: 1, at_once: 1, per_second: Some(per_second) };
    let mut machine = Machine::default();
    machine.measure_before(&scene.clients, &echoes).await?;

    let streams = scene.make_streams(1).await?;
    let producers = Producers::new(1, u64::from(CLIENT_WINDOW_BYTES_DEFAULT), Ack::Durable)?;
    let (Some(stream), Some(reading)) = (streams.first(), scene.clients.last()) else { return Err(nothing_made()) };
    let reader = reading.reader(stream).follow(true).open().await.map_err(|error| failed(&error))?;
    let opened = scene.open_producers(&producers, &streams).await?;
    let pace = Pace { started: Instant::now() + HEAD_START, per_second, place: 0, producers: 1 };
    let until = Until::Records(records);
    tally.late.replace(Some(Latencies::new()));
    let mut loads = Vec::new();
    for (producer, publishers) in opened {
        let task = Task { number: 0, size, until, in_flight: None, ack: Ack::Durable, pace: Some(pace) };
        loads.push(Load::new(task, tally, producer, publishers)?);
    }
    let mut latencies = Latencies::new();
    let mut check = StreamCheck::new(&producers.names, vec![Lane::default()]);
    let mut ended = pace.started;
    let following = async {
        let mut reader = reader;
        let mut payload = Payload::new(size, 0);
        while check.records() < records {
            let Some(event) = reader.next_batch().await.map_err(|error| failed(&error))? else { break };
            ended = Instant::now();
            let batch = match check.take(event) {
                Ok((batch, _)) => batch,
                Err(problem) => return Ok(Some(problem)),
            };
            for number in batch.base_offset().get()..batch.next_offset().get() {
                latencies.add(ended.saturating_duration_since(pace.due(number)), 1);
            }
            if let Err(problem) = check_content(&batch, 0, &mut payload) {
                return Ok(Some(problem));
            }
        }
        Ok(None)
    };
    let (lanes, problem) = tokio::try_join!(run_all(loads), following)?;
    let time = ended.saturating_duration_since(pace.started);

    machine.measure_after(&scene.clients, &echoes).await?;
    check.set_sent(&lanes.into_iter().flatten().collect::<Vec<_>>());
    Ok(Report {
        workload: "latency",
        options: vec![("rate", json!(per_second))],
        size: size as u64,
        records: check.records(),
        time,
        latencies: Some(latencies),
        late: tally.late.take(),
        echoes,
        direction: Direction::Upload,
        machine,
        problem: problem.or_else(|| check.settle().err()),
    })
}

async fn consume(arguments: &BenchConsumeArguments, scene: &Scene, tally: &Rc<Tally>) -> Result<Report, CliError> {
    let BenchConsumeArguments { common, records } = arguments;
    let size = common.size as usize;
    let echoes = Echoes { message_bytes: size, in_flight: 1, at_once: 1, per_second: None };
    let mut machine = Machine::default();
    machine.measure_before(&scene.clients, &echoes).await?;

    let streams = scene.make_streams(1).await?;
    let producers = Producers::new(1, u64::from(CLIENT_WINDOW_BYTES_DEFAULT), Ack::Durable)?;
    let mut loads = Vec::new();
    for (producer, publishers) in scene.open_producers(&producers, &streams).await? {
        let until = Until::Records(*records);
        let task = Task { number: 0, size, until, in_flight: None, ack: Ack::Durable, pace: None };
        loads.push(Load::new(task, tally, producer, publishers)?);
    }
    let lanes = run_all(loads).await?;
    let Some(stream) = streams.first() else { return Err(nothing_made()) };

    tally.records.set(0);
    let mut check = StreamCheck::new(&producers.names, lanes.into_iter().flatten().collect());
    let mut problem = None;
    let started = Instant::now();
    let mut reader = scene.first()?.reader(stream).open().await.map_err(|error| failed(&error))?;
    while let Some(event) = reader.next_batch().await.map_err(|error| failed(&error))? {
        // The client library has compared each batch's checksum, so that equal chains are equal records.
        if let Err(what) = check.take(event) {
            problem = Some(what);
            break;
        }
        tally.records.set(check.records());
    }
    let time = started.elapsed();

    machine.measure_after(&scene.clients, &echoes).await?;
    Ok(Report {
        workload: "consume",
        options: Vec::new(),
        size: size as u64,
        records: check.records(),
        time,
        latencies: None,
        late: None,
        echoes,
        direction: Direction::Download,
        machine,
        problem: problem.or_else(|| check.settle().err()),
    })
}

fn nothing_made() -> CliError {
    CliError::new(Exit::No, "no_stream", "no stream was made")
}

/// Runs producers side by side; gives what each has sent, in their order.
///
/// # Errors
///
/// The first producer's that fails; the others are given up.
async fn run_all(loads: Vec<Load>) -> Result<Vec<Vec<Lane>>, CliError> {
    let mut lanes = vec![Vec::new(); loads.len()];
    let mut running = JoinSet::new();
    for (load, place) in loads.into_iter().zip(0_usize..) {
        running.spawn_local(async move { (place, load.run().await) });
    }
    while let Some(joined) = running.join_next().await {
        let Ok((place, sent)) = joined else {
            return Err(CliError::new(Exit::No, "internal", "a producer's task has panicked"));
        };
        if let Some(lanes) = lanes.get_mut(place) {
            *lanes = sent?;
        }
    }
    Ok(lanes)
}
