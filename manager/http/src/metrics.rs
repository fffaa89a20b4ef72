//! Numbers for Prometheus.
//!
//! What is counted as it happens lives as long as the server ([`Counters`], [`Distribution`]); what
//! can be looked up is looked up when somebody asks, and put on a [`Sheet`] of that moment, so that
//! what is gone leaves nothing behind.

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use fcap_api::ErrorCode;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::refusal::Refusal;

/// Longest value of a label, in characters. Names that fcap gives and takes are shorter.
const MAX_VALUE: usize = 128;
/// The format's media type.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

fn owned(labels: &[(&'static str, &str)]) -> Labels {
    labels.iter().map(|(name, value)| (*name, value.chars().take(MAX_VALUE).collect())).collect()
}

/// Counts that only grow, one for each set of labels. Clones are the same counts.
#[derive(Clone, Debug, Default)]
pub struct Counters(Family<Labels, Counter<f64, AtomicU64>>);

impl Counters {
    /// Counts so much more; with 0, makes the count known before anything has happened.
    pub fn add(&self, labels: &[(&'static str, &str)], more: f64) {
        self.0.get_or_create(&owned(labels)).inc_by(more);
    }

    /// Forgets a count, because what it was of is gone.
    pub fn forget(&self, labels: &[(&'static str, &str)]) {
        self.0.remove(&owned(labels));
    }
}

/// How often what took how long. Clones are the same.
#[derive(Clone, Debug)]
pub struct Distribution(Histogram);

impl Distribution {
    /// Counted up to each of these bounds.
    pub fn new<const N: usize>(bounds: [f64; N]) -> Self {
        Self(Histogram::new(bounds))
    }

    /// Counts one of this size.
    pub fn observe(&self, value: f64) {
        self.0.observe(value);
    }
}

/// All numbers at one moment.
#[derive(Debug)]
pub struct Sheet(Registry);

impl Default for Sheet {
    fn default() -> Self {
        Self(Registry::with_prefix("fcap"))
    }
}

impl Sheet {
    /// A number that goes up and down, for each set of labels. `help` has no full stop.
    pub fn gauges<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'static str, &'a str); N], f64)>,
    ) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&owned(&labels)).set(value);
        }
        self.0.register(name, help, family);
    }

    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        self.0.register(name, help, gauge);
    }

    /// Counts that are kept elsewhere, for each set of labels. `_total` is added to the name.
    pub fn totals<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'static str, &'a str); N], f64)>,
    ) {
        let counters = Counters::default();
        values.into_iter().for_each(|(labels, value)| counters.add(&labels, value));
        self.counters(name, help, &counters);
    }

    /// A count that is kept elsewhere. `_total` is added to the name.
    pub fn total(&mut self, name: &str, help: &str, value: f64) {
        let counter = Counter::<f64, AtomicU64>::default();
        counter.inc_by(value);
        self.0.register(name, help, counter);
    }

    /// Counts. `_total` is added to the name.
    pub fn counters(&mut self, name: &str, help: &str, counters: &Counters) {
        self.0.register(name, help, counters.0.clone());
    }

    /// A distribution.
    pub fn distribution(&mut self, name: &str, help: &str, distribution: &Distribution) {
        self.0.register(name, help, distribution.0.clone());
    }

    /// In the text format that Prometheus and promtool read.
    fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.0)?;
        Ok(classic(&text))
    }
}

impl IntoResponse for Sheet {
    fn into_response(self) -> Response {
        match self.text() {
            Ok(text) => ([(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response(),
            Err(error) => Refusal::new(ErrorCode::Internal, error.to_string()).into_response(),
        }
    }
}

/// From OpenMetrics to the text format before it, which `promtool check metrics` wants: there, the
/// name of a counter ends with `_total` where it is described, too.
fn classic(text: &str) -> String {
    let counters: HashSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let described = ["# HELP ", "# TYPE "].into_iter().find_map(|start| {
            let (name, rest) = line.strip_prefix(start)?.split_once(' ')?;
            counters.contains(name).then(|| format!("{start}{name}_total {rest}"))
        });
        out.push_str(described.as_deref().unwrap_or(line));
        out.push('\n');
    }
    out
}

/// The requests that a server has answered.
#[derive(Clone, Debug)]
pub struct Requests {
    answered: Counters,
    seconds: Distribution,
}

impl Default for Requests {
    fn default() -> Self {
        let seconds = Distribution::new([0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0]);
        Self { answered: Counters::default(), seconds }
    }
}

impl Requests {
    /// Has requests to these be counted.
    pub fn count(&self, router: Router) -> Router {
        router.layer(middleware::from_fn_with_state(self.clone(), count))
    }

    /// Puts the counts on a sheet.
    pub fn put(&self, sheet: &mut Sheet) {
        sheet.counters("http_requests", "Requests by method, path and status", &self.answered);
        sheet.distribution(
            "http_request_duration_seconds",
            "Time until the answer to a request begins, of requests that do not wait for anything",
            &self.seconds,
        );
    }
}

async fn count(State(requests): State<Requests>, request: Request, next: Next) -> Response {
    // As it is written in the document: there are so many and no more.
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = request.method().clone();
    let begun = Instant::now();
    let response = next.run(request).await;
    let known = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD];
    let method = if known.contains(&method) { method.as_str() } else { "other" };
    let path = path.as_deref().unwrap_or("other");
    let status = response.status();
    let labels = [("method", method), ("path", path), ("status", status.as_str())];
    requests.answered.add(&labels, 1.0);
    if !path.ends_with("/wait") {
        requests.seconds.observe(begun.elapsed().as_secs_f64());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_is_what_prometheus_reads() {
        let mut sheet = Sheet::default();
        sheet.gauges("capsules", "Capsules", [([("state", "a\"b\\c\nd")], 2.0)]);
        sheet.total("moves", "Moves", 3.0);
        let downtime = Distribution::new([0.5]);
        downtime.observe(0.25);
        sheet.distribution("downtime_seconds", "Downtime", &downtime);
        let text = sheet.text().unwrap();
        assert_eq!(
            text,
            "# HELP fcap_capsules Capsules.\n# TYPE fcap_capsules gauge\n\
             fcap_capsules{state=\"a\\\"b\\\\c\\nd\"} 2.0\n\
             # HELP fcap_moves_total Moves.\n# TYPE fcap_moves_total counter\nfcap_moves_total 3.0\n\
             # HELP fcap_downtime_seconds Downtime.\n# TYPE fcap_downtime_seconds histogram\n\
             fcap_downtime_seconds_sum 0.25\nfcap_downtime_seconds_count 1\n\
             fcap_downtime_seconds_bucket{le=\"0.5\"} 1\nfcap_downtime_seconds_bucket{le=\"+Inf\"} 1\n"
        );
    }

    #[test]
    fn values_of_labels_are_bounded() {
        let mut sheet = Sheet::default();
        let long = "x".repeat(1000);
        sheet.gauges("capsules", "Capsules", [([("name", long.as_str())], 1.0)]);
        assert!(sheet.text().unwrap().len() < 2 * MAX_VALUE + 64);
    }
}
