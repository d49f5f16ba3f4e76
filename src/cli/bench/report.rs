//! What a workload comes to, in numbers, and how it is told.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::machine::Machine;
use crate::cli::exit::{CliError, Exit};

/// Latencies from a nanosecond to an hour, three digits of each.
const LATENCY_NANOS_MAX: u64 = 3_600_000_000_000;
const LATENCY_DIGITS: u8 = 3;

/// A smaller share of what the connection carries says nothing.
const WORTH_TELLING: f64 = 0.01;

/// The percentiles that are told, with their names in JSON.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)];

/// How long things took.
#[derive(Debug)]
pub(super) struct Latencies {
    histogram: Histogram<u64>,
}

impl Latencies {
    pub(super) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NANOS_MAX, LATENCY_DIGITS);
        Self { histogram: histogram.expect("these bounds are allowed") }
    }

    /// Counts `records` that took `time` each.
    pub(super) fn add(&mut self, time: Duration, records: u64) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.histogram.saturating_record_n(nanos.max(1), records);
    }

    fn seconds_at(&self, quantile: f64) -> f64 {
        self.histogram.value_at_quantile(quantile) as f64 / 1e9
    }

    fn max_seconds(&self) -> f64 {
        self.histogram.max() as f64 / 1e9
    }

    /// Writes every latency that occurred, with the share of those up to it and how many there were.
    ///
    /// # Errors
    ///
    /// If the file can't be written.
    pub(super) fn write(&self, file: &Path) -> Result<(), CliError> {
        let write = || -> std::io::Result<()> {
            let mut out = BufWriter::new(File::create(file)?);
            writeln!(out, "# nanoseconds percentile count; {} in all", self.histogram.len())?;
            for step in self.histogram.iter_recorded() {
                let (value, percentile) = (step.value_iterated_to(), step.quantile() * 100.0);
                writeln!(out, "{value} {percentile:.6} {}", step.count_at_value())?;
            }
            out.flush()
        };
        write().map_err(|error| {
            let message = format!("could not write the histogram to {}: {error}", file.display());
            CliError::new(Exit::No, "output_failed", message)
        })
    }
}

/// How the machine is asked for its echo: as the workload asks the broker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Echoes {
    pub(super) message_bytes: usize,
    /// Of each.
    pub(super) in_flight: usize,
    /// Producers that wait for their answers at the same time.
    pub(super) at_once: usize,
    /// Messages a second, of all together, if the workload has a rate. Then an echo's time counts from the moment at which
    /// it was due, like a record's, and holds the same wake-ups of threads that sleep in between.
    pub(super) per_second: Option<f64>,
}

/// What a workload's bytes are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Upload,
    Download,
}

/// What a workload came to.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) workload: &'static str,
    /// The options that say what was measured, as JSON has them.
    pub(super) options: Vec<(&'static str, Value)>,
    pub(super) size: u64,
    pub(super) records: u64,
    pub(super) time: Duration,
    pub(super) latencies: Option<Latencies>,
    /// How late records were handed over.
    pub(super) late: Option<Latencies>,
    pub(super) echoes: Echoes,
    pub(super) direction: Direction,
    pub(super) machine: Machine,
    /// What is wrong with what was read back.
    pub(super) problem: Option<String>,
}

impl Report {
    fn records_per_second(&self) -> f64 {
        self.records as f64 / self.time.as_secs_f64()
    }

    fn bytes_per_second(&self) -> f64 {
        self.records_per_second() * self.size as f64
    }

    /// What one record can't do without: its way there and back, and a sync if there is a disk.
    fn least_seconds(&self) -> Option<f64> {
        let echo = self.machine.echo_p50()?;
        Some((echo + self.machine.fdatasync_p50().unwrap_or_default()).as_secs_f64())
    }

    /// The median latency, as a multiple of that.
    fn latency_multiple(&self) -> Option<f64> {
        Some(self.latencies.as_ref()?.seconds_at(0.5) / self.least_seconds()?)
    }

    fn wire_bytes_per_second(&self) -> Option<f64> {
        match self.direction {
            Direction::Upload => self.machine.upload_bytes_per_second(),
            Direction::Download => self.machine.download_bytes_per_second(),
        }
    }

    /// The bytes of records, as a share of what the connection carries without a broker.
    fn throughput_multiple(&self) -> Option<f64> {
        Some(self.bytes_per_second() / self.wire_bytes_per_second()?)
    }

    /// One object; its fields are a promise.
    pub(super) fn json(&self) -> String {
        let machine = &self.machine;
        let latency = self.latencies.as_ref().map(|latencies| {
            let mut all = serde_json::Map::new();
            for (name, quantile) in QUANTILES {
                all.insert(name.to_owned(), json!(latencies.seconds_at(quantile)));
            }
            all.insert("max".to_owned(), json!(latencies.max_seconds()));
            all
        });
        let mut object = json!({
            "workload": self.workload,
            "records": self.records,
            "seconds": self.time.as_secs_f64(),
            "records_per_second": self.records_per_second(),
            "bytes_per_second": self.bytes_per_second(),
            "latency_seconds": latency,
            "machine": {
                "fdatasync_p50_seconds": machine.fdatasync_p50().map(|time| time.as_secs_f64()),
                "echo_p50_seconds": machine.echo_p50().map(|time| time.as_secs_f64()),
                "append_bytes_per_second": machine.append_bytes_per_second(),
                "upload_bytes_per_second": machine.upload_bytes_per_second(),
                "download_bytes_per_second": machine.download_bytes_per_second(),
            },
            "sent_late_p50_seconds": self.late.as_ref().map(|late| late.seconds_at(0.5)),
            "latency_p50_multiple": self.latency_multiple(),
            "throughput_multiple": self.throughput_multiple(),
            "size": self.size,
            "verified": self.problem.is_none(),
        });
        if let Some(object) = object.as_object_mut() {
            object.extend(self.options.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        }
        object.to_string()
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a `String` cannot fail, here and below.
        let _ = writeln!(
            text,
            "{}   {} records of {} B in {:.3} s: {} records/s, {}",
            self.workload,
            grouped(self.records),
            self.size,
            self.time.as_secs_f64(),
            grouped(self.records_per_second() as u64),
            megabytes(self.bytes_per_second())
        );
        if let Some(latencies) = &self.latencies {
            let [p50, p90, p99, p999] = QUANTILES.map(|(_, quantile)| millis(latencies.seconds_at(quantile)));
            let max = millis(latencies.max_seconds());
            let _ = writeln!(text, "latency   p50 {p50}  p90 {p90}  p99 {p99}  p99.9 {p999}  max {max}");
        }
        if let Some(late) = &self.late {
            let [p50, p99] = [0.5, 0.99].map(|quantile| millis(late.seconds_at(quantile)));
            let _ = writeln!(text, "of that   p50 {p50}  p99 {p99} between a record's moment and its hand-over");
        }
        let _ = writeln!(text, "machine   {}", self.machine_words());
        let _ = writeln!(text, "that is   {}", self.multiples());
        let _ = match &self.problem {
            None => writeln!(text, "verified  read back: all there, in order, once, with the checksums that were sent"),
            Some(problem) => writeln!(text, "NOT what was sent: {problem}"),
        };
        text
    }

    fn machine_words(&self) -> String {
        let machine = &self.machine;
        let each = |(before, after): (Duration, Duration)| {
            format!("(before {}, after {})", millis(before.as_secs_f64()), millis(after.as_secs_f64()))
        };
        let mut words = Vec::new();
        match (machine.fdatasync_p50(), machine.fdatasync_p50_each()) {
            (Some(p50), Some(both)) => {
                words.push(format!("fdatasync of 4 KiB p50 {} {}", millis(p50.as_secs_f64()), each(both)));
            }
            _ => words.push("no disk: the log is in memory".to_owned()),
        }
        if let (Some(p50), Some(both)) = (machine.echo_p50(), machine.echo_p50_each()) {
            let Echoes { message_bytes, in_flight, at_once, per_second } = self.echoes;
            let how = match (per_second, at_once) {
                (Some(per_second), _) => format!("{per_second} a second"),
                (None, 1) => format!("{in_flight} in flight"),
                (None, _) => format!("{at_once} times {in_flight} in flight"),
            };
            let p50 = millis(p50.as_secs_f64());
            words.push(format!("QUIC echo of {message_bytes} B, {how}, p50 {p50} {}", each(both)));
        }
        let rates = [
            ("1 MiB appends with fdatasync", machine.append_bytes_per_second()),
            ("QUIC upload", machine.upload_bytes_per_second()),
            ("QUIC download", machine.download_bytes_per_second()),
        ];
        words.extend(rates.iter().filter_map(|(name, rate)| Some(format!("{name} {}", megabytes((*rate)?)))));
        words.join("\n          ")
    }

    fn multiples(&self) -> String {
        let mut words = Vec::new();
        if let Some(multiple) = self.latency_multiple() {
            let of = if self.machine.fdatasync_p50().is_some() { "(fdatasync + echo)" } else { "the echo" };
            words.push(format!("p50 {multiple:.2} x {of}"));
        }
        if let Some(multiple) = self.throughput_multiple().filter(|multiple| *multiple >= WORTH_TELLING) {
            let of = match self.direction {
                Direction::Upload => "the upload",
                Direction::Download => "the download",
            };
            words.push(format!("{multiple:.2} x {of}, in bytes of records"));
        }
        words.join(", ")
    }
}

fn millis(seconds: f64) -> String {
    format!("{:.3} ms", seconds * 1e3)
}

fn megabytes(bytes_per_second: f64) -> String {
    format!("{:.1} MB/s", bytes_per_second / 1e6)
}

/// Digits in groups of three.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(problem: Option<String>) -> Report {
        let mut latencies = Latencies::new();
        latencies.add(Duration::from_millis(1), 99);
        latencies.add(Duration::from_millis(7), 1);
        Report {
            workload: "publish",
            options: vec![("streams", json!(3))],
            size: 100,
            records: 100,
            time: Duration::from_secs(2),
            latencies: Some(latencies),
            late: None,
            echoes: Echoes { message_bytes: 100, in_flight: 1, at_once: 1, per_second: None },
            direction: Direction::Upload,
            machine: Machine::default(),
            problem,
        }
    }

    #[test]
    fn json_has_the_promised_fields() {
        let value: Value = serde_json::from_str(&report(None).json()).unwrap();
        assert_eq!(value["workload"], "publish");
        assert_eq!((value["records"].as_u64(), value["seconds"].as_f64()), (Some(100), Some(2.0)));
        assert_eq!(value["records_per_second"], 50.0);
        assert_eq!(value["bytes_per_second"], 5_000.0);
        let near = |name: &str, seconds: f64| {
            let told = value["latency_seconds"][name].as_f64().unwrap();
            assert!((told / seconds - 1.0).abs() < 2e-3, "{name}: {told}");
        };
        near("p50", 0.001);
        near("p90", 0.001);
        near("p99", 0.001);
        near("p999", 0.007);
        near("max", 0.007);
        let machine: Vec<_> = value["machine"].as_object().unwrap().keys().map(String::as_str).collect();
        for field in
            ["fdatasync_p50_seconds", "echo_p50_seconds", "upload_bytes_per_second", "download_bytes_per_second"]
        {
            assert!(machine.contains(&field), "{field}");
        }
        assert_eq!(value["verified"], true);
        assert_eq!(value["streams"], 3);
    }

    #[test]
    fn what_is_wrong_with_what_was_read_is_told() {
        let report = report(Some("record 5 is another one".to_owned()));
        assert!(report.text().contains("NOT what was sent: record 5 is another one"));
        assert!(report.json().contains("\"verified\":false"));
    }

    #[test]
    fn digits_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
