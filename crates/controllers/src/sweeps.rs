//! What is swept by the clock and not by changes: expired events, pods that nobody cleans up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client::{CancellationToken, Error, ListOptions};
use k8s_openapi::api::core::v1::{Event, ObjectReference, Pod};
use plan::{events_ttl, objects, pod_gc};
use tokio::time::Instant;

use crate::apply::Applier;
use crate::{Shared, limits};

pub(crate) const EVENTS_IDENTITY: &str = "event-ttl-controller";
pub(crate) const PODS_IDENTITY: &str = "pod-garbage-collector";

/// `false` when it is time to stop.
async fn slept(wait: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = stop.cancelled() => false,
        () = tokio::time::sleep(wait) => true,
    }
}

/// Deletes expired events. They are read page by page: nobody else in here needs them in memory.
pub(crate) async fn events(shared: Shared, applier: Applier, ttl: Duration, stop: CancellationToken) {
    let mut wait = Duration::ZERO;
    while slept(wait, &stop).await {
        wait = match sweep_events(&shared, &applier, ttl).await {
            Ok(next) => next.min(limits::EVENTS_INTERVAL),
            Err(error) => {
                tracing::warn!(%error, "events were not swept");
                limits::POD_GC_INTERVAL
            }
        };
    }
}

async fn sweep_events(shared: &Shared, applier: &Applier, ttl: Duration) -> Result<Duration, Error> {
    let mut next = limits::EVENTS_INTERVAL;
    let mut options = ListOptions { limit: limits::PAGE, ..ListOptions::default() };
    loop {
        let page = applier.client().list::<Event>("", &options).await?;
        let (plan, _) = events_ttl::plan(&page.items, ttl, &shared.cx());
        next = plan.requeue_after.map_or(next, |n| n.min(next));
        if let Some(failure) = applier.apply(&ObjectReference::default(), plan).await.failed
            && !failure.error.is_conflict()
        {
            return Err(failure.error);
        }
        if page.continue_token.is_empty() {
            return Ok(next.max(Duration::from_secs(1)));
        }
        options.continue_token = page.continue_token;
    }
}

/// Deletes ended pods beyond the threshold, and those of nodes that are gone.
pub(crate) async fn pods(shared: Shared, applier: Applier, terminated_max: usize, stop: CancellationToken) {
    shared.pods.ready().await;
    shared.nodes.ready().await;
    // Since when a node that pods name is missing.
    let mut missing: BTreeMap<String, Instant> = BTreeMap::new();
    while slept(limits::POD_GC_INTERVAL, &stop).await {
        let (pods, nodes) = (shared.pods.snapshot(), shared.nodes.snapshot());
        let pods: Vec<&Pod> = pods.iter().map(|p| &**p).collect();
        let mut known: BTreeSet<String> = nodes.keys().map(|k| k.name.clone()).collect();
        let named: BTreeSet<&str> = pods.iter().map(|p| objects::node_of(p)).filter(|n| !n.is_empty() && !known.contains(*n)).collect();
        missing.retain(|node, _| named.contains(node.as_str()));
        for node in &named {
            if missing.entry(node.to_string()).or_insert_with(Instant::now).elapsed() < pod_gc::QUARANTINE {
                known.insert(node.to_string());
            }
        }
        let (plan, _) = pod_gc::plan(&pod_gc::Snapshot { pods: &pods, nodes: &known, terminated_max }, &shared.cx());
        if let Some(failure) = applier.apply(&ObjectReference::default(), plan).await.failed
            && !failure.error.is_conflict()
        {
            tracing::warn!(error = %failure.error, "pods were not swept");
        }
    }
}
