//! What is counted, in the format of Prometheus. No label has more values than there are kinds, methods and codes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, header};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::error::{ApiError, Result};
use crate::lanes::{Lane, Lanes};
use crate::state::State;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    resource: String,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerbLabels {
    verb: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabels {
    part: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabels {
    lane: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InLaneLabels {
    lane: &'static str,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AuditLabels {
    outcome: &'static str,
}

type Number = gauge::Gauge<i64, AtomicI64>;

/// See the module.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter<u64, AtomicU64>>,
    seconds: Family<VerbLabels, Histogram, fn() -> Histogram>,
    writes: Family<PartLabels, Histogram, fn() -> Histogram>,
    audited: Family<AuditLabels, Counter<u64, AtomicU64>>,
    audit_failing: Number,
    lane_seats: Family<LaneLabels, Number>,
    lane_requests: Family<InLaneLabels, Number>,
    lane_refused: Family<LaneLabels, Counter<u64, AtomicU64>>,
    watches: Family<ResourceLabels, Number>,
    objects: Family<ResourceLabels, Number>,
    revision: Number,
    ring_events: Number,
    ring_bytes: Number,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// Powers of about three from a tenth of a millisecond to ten seconds.
fn histogram() -> Histogram {
    Histogram::new([0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0])
}

/// Methods that are counted by their own names.
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

impl Metrics {
    /// All at zero.
    pub fn new() -> Metrics {
        let mut registry = Registry::default();
        let metrics = Metrics {
            requests: Family::default(),
            seconds: Family::new_with_constructor(histogram as fn() -> Histogram),
            writes: Family::new_with_constructor(histogram as fn() -> Histogram),
            audited: Family::default(),
            audit_failing: Number::default(),
            lane_seats: Family::default(),
            lane_requests: Family::default(),
            lane_refused: Family::default(),
            watches: Family::default(),
            objects: Family::default(),
            revision: Number::default(),
            ring_events: Number::default(),
            ring_bytes: Number::default(),
            registry: Registry::default(),
        };
        registry.register(
            "muster_requests",
            "Requests that were answered",
            metrics.requests.clone(),
        );
        registry.register(
            "muster_request_seconds",
            "Time until the answer began",
            metrics.seconds.clone(),
        );
        registry.register(
            "muster_write_seconds",
            "Time until the store had a write, and from then on until reads showed it",
            metrics.writes.clone(),
        );
        registry.register(
            "muster_audit_events",
            "Events of the audit log, by whether they are written or lost",
            metrics.audited.clone(),
        );
        registry.register(
            "muster_audit_failing",
            "Whether the audit log cannot be written, so that nothing is changed",
            metrics.audit_failing.clone(),
        );
        registry.register(
            "muster_lane_seats",
            "Requests that a lane works on at once",
            metrics.lane_seats.clone(),
        );
        registry.register(
            "muster_lane_requests",
            "Requests of a lane that are worked on (seated), wait for that, or go on after their answer began (lasting)",
            metrics.lane_requests.clone(),
        );
        registry.register(
            "muster_lane_refused",
            "Requests that were told to come again",
            metrics.lane_refused.clone(),
        );
        registry.register("muster_watches", "Watches that are open", metrics.watches.clone());
        registry.register("muster_objects", "Objects that are stored", metrics.objects.clone());
        registry.register(
            "muster_hub_revision",
            "The newest revision that reads show",
            metrics.revision.clone(),
        );
        registry.register(
            "muster_hub_ring_events",
            "Events that watches can resume from",
            metrics.ring_events.clone(),
        );
        registry.register(
            "muster_hub_ring_bytes",
            "Bytes of those events",
            metrics.ring_bytes.clone(),
        );
        Metrics { registry, ..metrics }
    }

    /// Counts a request. Resources that are not served count as one, so that nobody can make up labels.
    pub(crate) fn request(&self, verb: &str, resource: &str, code: u16, took: Duration) {
        let verb = if METHODS.contains(&verb) { verb } else { "other" };
        let resource = if code == 404 || code == 401 { "" } else { resource };
        let labels = RequestLabels {
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            code,
        };
        self.requests.get_or_create(&labels).inc();
        let labels = VerbLabels { verb: verb.to_owned() };
        self.seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts a write that happened: how long the store took, and how long it was until reads showed it.
    pub(crate) fn write(&self, stored: Duration, shown: Duration) {
        for (part, took) in [("store", stored), ("show", shown)] {
            let histogram = self.writes.get_or_create(&PartLabels { part });
            histogram.observe(took.as_secs_f64());
        }
    }

    fn count_lanes(&self, lanes: &Lanes) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for lane in Lane::ALL {
            let (census, lane) = (lanes.census(lane), lane.name());
            if census.seats > 0 {
                self.lane_seats
                    .get_or_create(&LaneLabels { lane })
                    .set(number(census.seats));
            }
            for (state, count) in [
                ("seated", census.seated),
                ("waiting", census.waiting),
                ("lasting", census.lasting),
            ] {
                self.lane_requests
                    .get_or_create(&InLaneLabels { lane, state })
                    .set(number(count));
            }
            let refused = self.lane_refused.get_or_create(&LaneLabels { lane });
            refused.inner().store(census.refused, Ordering::Relaxed);
        }
    }

    /// Counts a watch for as long as the result lives.
    pub(crate) fn watch(&self, resource: &str) -> Gauge {
        let labels = ResourceLabels {
            resource: resource.to_owned(),
        };
        let number = self.watches.get_or_create(&labels).clone();
        number.inc();
        Gauge(Arc::new(number))
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

/// Something that is counted while it is there.
pub(crate) struct Gauge(Arc<Number>);

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// `GET /metrics`.
pub(super) fn show(state: &State) -> Result<Response> {
    let metrics = &state.metrics;
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    for kind in state.resources.kinds() {
        let labels = ResourceLabels {
            resource: kind.stored.qualified(),
        };
        metrics
            .objects
            .get_or_create(&labels)
            .set(number(state.hub.count(kind.id)));
    }
    let (events, bytes) = state.hub.ring_size();
    metrics.ring_events.set(number(events));
    metrics.ring_bytes.set(number(bytes));
    metrics
        .revision
        .set(i64::try_from(state.hub.revision()).unwrap_or(i64::MAX));
    metrics.count_lanes(&state.lanes);
    if let Some(audit) = state.audit() {
        let counts = audit.log.counts();
        for (outcome, count) in [("written", counts.written), ("lost", counts.lost)] {
            let counter = metrics.audited.get_or_create(&AuditLabels { outcome });
            counter.inner().store(count, Ordering::Relaxed);
        }
        metrics.audit_failing.set(audit.log.is_failing().into());
    }
    let mut text = String::new();
    encode(&mut text, &metrics.registry).map_err(|error| ApiError::internal(error.to_string()))?;
    let mut response = Response::new(Body::from(text));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}
