//! What the machine does without the broker's log, in the same run: the disk, and QUIC between the same two processes.

use std::time::Duration;

use tidelog_client::{Client, Echo};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::pace::{Pace, Timer};
use super::report::Echoes;
use crate::cli::connect::failed;
use crate::cli::exit::CliError;

/// One page, as a lone record's commit writes.
const SMALL_APPEND_BYTES: u32 = 4_096;
const SMALL_APPENDS: u32 = 256;
/// As much as a busy broker's commit writes.
const LARGE_APPEND_BYTES: u32 = 1 << 20;
const LARGE_APPENDS: u32 = 48;
/// Sent each way: some tenth of a second's worth, so that the windows that grow at its beginning hardly count.
const STREAM_BYTES: u64 = 64 << 20;
/// Echoes of all producers together, and of each at least.
const ECHOES: usize = 4_096;
const ECHOES_MIN: usize = 32;
/// And at most, if there are few.
const ECHOES_MAX: usize = 512;
/// Of all producers together if the workload has a rate, and the least rate, so that a slow one is not waited for.
const PACED_ECHOES: u64 = 512;
const PACED_PER_SECOND_MIN: f64 = 256.0;

/// What was measured, before and after the workload.
#[derive(Debug, Default)]
pub(super) struct Machine {
    before: Measured,
    after: Measured,
}

#[derive(Debug, Default)]
struct Measured {
    syncs: Vec<Duration>,
    echoes: Vec<Duration>,
    append_time: Duration,
    upload_time: Duration,
    download_time: Duration,
}

impl Machine {
    /// Measures before the workload. Each producer has its echo, on the connection that is its own.
    ///
    /// # Errors
    ///
    /// Those of the connection and of the broker.
    pub(super) async fn measure_before(&mut self, clients: &[Client], echoes: &Echoes) -> Result<(), CliError> {
        self.before = measure(clients, echoes).await?;
        Ok(())
    }

    /// And after it.
    ///
    /// # Errors
    ///
    /// As before.
    pub(super) async fn measure_after(&mut self, clients: &[Client], echoes: &Echoes) -> Result<(), CliError> {
        self.after = measure(clients, echoes).await?;
        Ok(())
    }

    /// An append of 4 KiB with its fdatasync; `None` in memory.
    pub(super) fn fdatasync_p50(&self) -> Option<Duration> {
        median(self.before.syncs.iter().chain(&self.after.syncs))
    }

    /// The same before and after the workload: two figures that differ much say that the machine had other things to do.
    pub(super) fn fdatasync_p50_each(&self) -> Option<(Duration, Duration)> {
        Some((median(&self.before.syncs)?, median(&self.after.syncs)?))
    }

    pub(super) fn echo_p50(&self) -> Option<Duration> {
        median(self.before.echoes.iter().chain(&self.after.echoes))
    }

    pub(super) fn echo_p50_each(&self) -> Option<(Duration, Duration)> {
        Some((median(&self.before.echoes)?, median(&self.after.echoes)?))
    }

    /// Appends of 1 MiB, each with its fdatasync; `None` in memory.
    pub(super) fn append_bytes_per_second(&self) -> Option<f64> {
        let bytes = u64::from(LARGE_APPEND_BYTES) * u64::from(LARGE_APPENDS);
        rate(bytes, self.before.append_time, self.after.append_time)
    }

    pub(super) fn upload_bytes_per_second(&self) -> Option<f64> {
        rate(STREAM_BYTES, self.before.upload_time, self.after.upload_time)
    }

    pub(super) fn download_bytes_per_second(&self) -> Option<f64> {
        rate(STREAM_BYTES, self.before.download_time, self.after.download_time)
    }
}

/// Of the same number of bytes twice.
fn rate(bytes: u64, before: Duration, after: Duration) -> Option<f64> {
    let seconds = (before + after).as_secs_f64();
    (seconds > 0.0).then(|| 2.0 * bytes as f64 / seconds)
}

fn median<'a>(times: impl IntoIterator<Item = &'a Duration>) -> Option<Duration> {
    let mut times: Vec<_> = times.into_iter().copied().collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

async fn measure(clients: &[Client], echoes: &Echoes) -> Result<Measured, CliError> {
    let Some(first) = clients.first() else { return Ok(Measured::default()) };
    let measure = first.measure();
    let told = |error| failed(&error);
    let syncs = measure.syncs(SMALL_APPEND_BYTES, SMALL_APPENDS).await.map_err(told)?.unwrap_or_default();
    let appends = measure.syncs(LARGE_APPEND_BYTES, LARGE_APPENDS).await.map_err(told)?.unwrap_or_default();
    let echoes = echo(clients, echoes).await?;
    let upload_time = measure.upload(STREAM_BYTES).await.map_err(told)?;
    let download_time = measure.download(STREAM_BYTES).await.map_err(told)?;
    Ok(Measured { syncs, echoes, append_time: appends.iter().sum(), upload_time, download_time })
}

async fn echo(clients: &[Client], echoes: &Echoes) -> Result<Vec<Duration>, CliError> {
    let count = (ECHOES / echoes.at_once.max(1)).clamp(ECHOES_MIN, ECHOES_MAX).max(4 * echoes.in_flight);
    let mut opened = Vec::new();
    for client in clients.iter().cycle().take(echoes.at_once) {
        opened.push(client.measure().echo(echoes.message_bytes).await.map_err(|error| failed(&error))?);
    }
    let mut running = JoinSet::new();
    for (place, mut echo) in opened.into_iter().enumerate() {
        let in_flight = echoes.in_flight;
        match echoes.per_second {
            None => {
                running.spawn(async move { echo.round_trips(in_flight, count).await.map_err(|error| failed(&error)) });
            }
            Some(per_second) => {
                let pace = Pace {
                    started: Instant::now(),
                    per_second: per_second.max(PACED_PER_SECOND_MIN),
                    place: place as u64,
                    producers: echoes.at_once as u64,
                };
                running.spawn(async move { paced(&mut echo, pace, PACED_ECHOES / pace.producers.max(1)).await });
            }
        }
    }
    let mut times = Vec::new();
    while let Some(joined) = running.join_next().await {
        // It neither panics nor is it given up before this set is.
        let Ok(measured) = joined else { continue };
        times.extend(measured?);
    }
    Ok(times)
}

/// One after the other, each counted from the moment at which it is due. Behind one that took longer than the pace the
/// next is due at once.
async fn paced(echo: &mut Echo, pace: Pace, count: u64) -> Result<Vec<Duration>, CliError> {
    let timer = Timer::new()?;
    let mut times = Vec::new();
    for number in 0..count.max(1) {
        let due = pace.due(number).max(Instant::now());
        timer.until(due).await;
        echo.round_trips(1, 1).await.map_err(|error| failed(&error))?;
        times.push(due.elapsed());
    }
    Ok(times)
}
