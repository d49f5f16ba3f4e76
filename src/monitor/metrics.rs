//! The counters as Prometheus text: read when they are asked for, in a registry of one broker.

use std::collections::HashMap;
use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto;
use prometheus::{Registry, TextEncoder};

use super::metric_table::{METRICS, MetricSpec, NANOS_PER_SECOND, Source, float};
use crate::counters::{Counters, HistogramSnapshot};

/// The content type of [`Metrics::text`].
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One broker's metrics.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// Metrics read from `counters` at each scrape.
    pub(super) fn new(counters: Arc<Counters>) -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(CountersCollector::new(counters)?))?;
        Ok(Metrics { registry })
    }

    /// All metrics in Prometheus's text format.
    pub(super) fn text(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

struct CountersCollector {
    counters: Arc<Counters>,
    descriptions: Vec<Desc>,
}

impl CountersCollector {
    fn new(counters: Arc<Counters>) -> Result<CountersCollector, prometheus::Error> {
        let descriptions = METRICS
            .iter()
            .map(|metric| {
                let labels = match metric.source {
                    Source::Refusals | Source::Reasons(_) => vec!["reason".to_owned()],
                    Source::BuildInfo => vec!["version".to_owned()],
                    _ => Vec::new(),
                };
                let (name, help) = (metric.name.to_owned(), metric.help.to_owned());
                Desc::new(name, help, labels, HashMap::new())
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(CountersCollector { counters, descriptions })
    }

    fn family(&self, metric: &MetricSpec) -> proto::MetricFamily {
        let counters = &self.counters;
        let (kind, metrics) = match metric.source {
            Source::Count(get) => {
                let counter = counter(get(counters));
                (proto::MetricType::COUNTER, vec![counter])
            }
            Source::Gauge(get) => (proto::MetricType::GAUGE, vec![gauge(get(counters))]),
            Source::Seconds(get) => {
                let snapshot = get(counters).snapshot();
                let histogram = histogram(&snapshot, NANOS_PER_SECOND);
                (proto::MetricType::HISTOGRAM, vec![histogram])
            }
            Source::Records(get) => {
                let histogram = histogram(&get(counters).snapshot(), 1.0);
                (proto::MetricType::HISTOGRAM, vec![histogram])
            }
            Source::Refusals => {
                let refusals = counters.refusals().map(|(code, count)| (code.name(), count));
                (proto::MetricType::COUNTER, by_reason(refusals))
            }
            Source::Reasons(get) => (proto::MetricType::COUNTER, by_reason(get(counters).into_iter())),
            Source::BuildInfo => {
                let mut metric = gauge(1.0);
                metric.set_label(vec![label("version", env!("CARGO_PKG_VERSION"))]);
                (proto::MetricType::GAUGE, vec![metric])
            }
        };
        let mut family = proto::MetricFamily::default();
        family.set_name(metric.name.to_owned());
        family.set_help(metric.help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        family
    }
}

impl Collector for CountersCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        METRICS.iter().map(|metric| self.family(metric)).collect()
    }
}

fn counter(value: u64) -> proto::Metric {
    let mut counter = proto::Counter::default();
    counter.set_value(float(value));
    let mut metric = proto::Metric::default();
    metric.set_counter(counter);
    metric
}

/// All reasons, those with zero too: a rate over a series that appears with its first event would miss that one.
fn by_reason(counts: impl Iterator<Item = (&'static str, u64)>) -> Vec<proto::Metric> {
    let metrics = counts.map(|(reason, count)| {
        let mut metric = counter(count);
        metric.set_label(vec![label("reason", reason)]);
        metric
    });
    metrics.collect()
}

fn gauge(value: f64) -> proto::Metric {
    let mut gauge = proto::Gauge::default();
    gauge.set_value(value);
    let mut metric = proto::Metric::default();
    metric.set_gauge(gauge);
    metric
}

/// `per_unit` is how many of the histogram's own units make one of the metric's base unit.
fn histogram(snapshot: &HistogramSnapshot, per_unit: f64) -> proto::Metric {
    let buckets = snapshot.buckets.iter().map(|(bound, count)| {
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(float(*bound) / per_unit);
        bucket.set_cumulative_count(*count);
        bucket
    });
    let mut histogram = proto::Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(snapshot.count);
    histogram.set_sample_sum(float(snapshot.sum) / per_unit);
    let mut metric = proto::Metric::default();
    metric.set_histogram(histogram);
    metric
}

fn label(name: &str, value: &str) -> proto::LabelPair {
    let mut label = proto::LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value.to_owned());
    label
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use tidelog_protocol::ErrorCode;

    use super::*;

    fn text(counters: &Arc<Counters>) -> String {
        Metrics::new(Arc::clone(counters)).unwrap().text().unwrap()
    }

    fn value<'a>(text: &'a str, series: &str) -> &'a str {
        text.lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
            .unwrap_or_else(|| panic!("{series} is not exported:\n{text}"))
    }

    #[test]
    fn values_are_those_of_the_counters_at_the_scrape() {
        let counters = Arc::new(Counters::new());
        let metrics = Metrics::new(Arc::clone(&counters)).unwrap();
        counters.records_published.add(3);
        assert_eq!(value(&metrics.text().unwrap(), "tidelog_records_published_total"), "3");
        counters.records_published.add(4);
        counters.log_bytes.set(1 << 40);
        counters.refuse(ErrorCode::SequenceGap);
        counters.set_recovery(Duration::from_millis(1_500));
        let text = metrics.text().unwrap();
        assert_eq!(value(&text, "tidelog_records_published_total"), "7");
        assert_eq!(value(&text, "tidelog_log_bytes"), "1099511627776");
        assert_eq!(value(&text, "tidelog_recovery_seconds"), "1.5");
        let refused = |reason: &str| format!("tidelog_publishes_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(value(&text, &refused("sequence_gap")), "1");
        assert_eq!(value(&text, &refused("fenced")), "0");
        let build = format!("tidelog_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
        assert_eq!(value(&text, &build), "1");
    }

    #[test]
    fn durations_are_exported_in_seconds_with_growing_buckets() {
        let counters = Arc::new(Counters::new());
        counters.log_sync_seconds.observe_duration(Duration::from_micros(250));
        counters.log_sync_seconds.observe_duration(Duration::from_secs(20));
        let text = text(&counters);
        let bucket = |bound: &str| format!("tidelog_log_sync_seconds_bucket{{le=\"{bound}\"}}");
        assert_eq!(value(&text, &bucket("0.0002")), "0");
        assert_eq!(value(&text, &bucket("0.0003")), "1");
        assert_eq!(value(&text, &bucket("10")), "1");
        assert_eq!(value(&text, &bucket("+Inf")), "2");
        assert_eq!(value(&text, "tidelog_log_sync_seconds_count"), "2");
        assert_eq!(value(&text, "tidelog_log_sync_seconds_sum"), "20.00025");
    }

    #[test]
    fn the_text_keeps_the_rules_that_promtool_checks() {
        let text = text(&Arc::new(Counters::new()));
        let mut seen = BTreeSet::new();
        let mut family: Option<(&str, &str)> = None;
        let mut help = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, words) = rest.split_once(' ').unwrap();
                assert!(words.ends_with('.'), "{name}: help is a sentence");
                help = name;
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(help, name, "HELP stands before TYPE");
                assert!(seen.insert(name), "{name} stands once");
                assert!(name.starts_with("tidelog_"));
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                for unit in ["_ms", "_millis", "_nanos", "_kib"] {
                    assert!(!name.contains(unit), "{name} uses a base unit");
                }
                family = Some((name, kind));
            } else {
                let (name, kind) = family.unwrap();
                let series = line.split(['{', ' ']).next().unwrap();
                let suffix = series.strip_prefix(name).unwrap();
                let suffixes: &[&str] = match kind {
                    "histogram" => &["_bucket", "_sum", "_count"],
                    _ => &[""],
                };
                assert!(suffixes.contains(&suffix), "{series} belongs to {name}");
            }
        }
        assert_eq!(seen.len(), METRICS.len());
    }

    #[test]
    fn two_brokers_in_one_process_do_not_share_numbers() {
        let (one, other) = (Arc::new(Counters::new()), Arc::new(Counters::new()));
        one.records_published.add(1);
        assert_eq!(value(&text(&one), "tidelog_records_published_total"), "1");
        assert_eq!(value(&text(&other), "tidelog_records_published_total"), "0");
    }
}
