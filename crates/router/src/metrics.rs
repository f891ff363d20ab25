//! What went through, counted per Service. Written with one atomic add per figure; read by whoever wants to show them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper bounds of the latency buckets in milliseconds; one more bucket holds the rest.
pub const BUCKETS_MS: [u64; 13] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000];

/// The counters of one Service.
#[derive(Debug, Default)]
pub struct Service {
    /// By class of the answer's code: 1xx (upgrades) to 5xx.
    codes: [AtomicU64; 5],
    /// Answers that the router had to make itself: no endpoint, no connection, no answer in time.
    errors: AtomicU64,
    retries: AtomicU64,
    in_flight: AtomicU64,
    latency: [AtomicU64; BUCKETS_MS.len() + 1],
    latency_us_sum: AtomicU64,
}

/// The counters of one Service at one moment; they only grow, `in_flight` apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceCounts {
    pub codes: [u64; 5],
    pub errors: u64,
    pub retries: u64,
    pub in_flight: u64,
    /// Requests by time until the answer began; bounds are [`BUCKETS_MS`], not cumulative.
    pub latency: Vec<u64>,
    pub latency_us_sum: u64,
}

impl Service {
    pub fn count(&self, code: u16, took: Duration) {
        let class = usize::from(code / 100).clamp(1, 5) - 1;
        self.codes[class].fetch_add(1, Ordering::Relaxed);
        let ms = took.as_millis() as u64;
        let bucket = BUCKETS_MS.iter().position(|bound| ms < *bound).unwrap_or(BUCKETS_MS.len());
        self.latency[bucket].fetch_add(1, Ordering::Relaxed);
        self.latency_us_sum.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    pub fn error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub fn retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one request in flight until the guard goes.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    pub fn counts(&self) -> ServiceCounts {
        let read = |a: &AtomicU64| a.load(Ordering::Relaxed);
        ServiceCounts {
            codes: std::array::from_fn(|n| read(&self.codes[n])),
            errors: read(&self.errors),
            retries: read(&self.retries),
            in_flight: read(&self.in_flight),
            latency: self.latency.iter().map(read).collect(),
            latency_us_sum: read(&self.latency_us_sum),
        }
    }
}

pub struct InFlight(Arc<Service>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All Services' counters. A Service that goes and comes back goes on counting.
#[derive(Debug, Default)]
pub struct Metrics {
    services: Mutex<BTreeMap<String, Arc<Service>>>,
    /// Requests that no route took.
    unrouted: AtomicU64,
    /// Requests refused for being malformed.
    refused: AtomicU64,
}

/// All counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// By `namespace/name`.
    pub services: BTreeMap<String, ServiceCounts>,
    pub unrouted: u64,
    pub refused: u64,
}

impl Metrics {
    pub fn service(&self, name: &str) -> Arc<Service> {
        let mut services = self.services.lock().unwrap_or_else(|e| e.into_inner());
        services.entry(name.to_string()).or_default().clone()
    }

    pub fn unrouted(&self) {
        self.unrouted.fetch_add(1, Ordering::Relaxed);
    }

    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub fn counts(&self) -> Counts {
        let services = self.services.lock().unwrap_or_else(|e| e.into_inner());
        Counts {
            services: services.iter().map(|(name, s)| (name.clone(), s.counts())).collect(),
            unrouted: self.unrouted.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_class_and_latency() {
        let metrics = Metrics::default();
        let service = metrics.service("d/web");
        let guard = service.enter();
        service.count(200, Duration::from_millis(3));
        service.count(503, Duration::from_secs(60));
        let counts = metrics.counts().services.remove("d/web").unwrap();
        assert_eq!((counts.codes, counts.in_flight), ([0, 1, 0, 0, 1], 1));
        assert_eq!((counts.latency[2], counts.latency[13]), (1, 1));
        drop(guard);
        assert_eq!(service.counts().in_flight, 0);
    }
}
