//! What must hold whatever the planners do: judged by their property tests, by the simulator and by watchers of real rollouts.
//!
//! Each check answers with the sentence that says what is broken.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::{objects, rollout, schedule};

/// No node carries more than it has: neither of a resource, nor pods, nor one host port twice.
pub fn within_allocatable(cluster: &schedule::Cluster) -> Result<(), String> {
    for (name, info) in cluster.nodes() {
        let mut used = schedule::Resources::default();
        for pod in info.pods.values() {
            used.add(&schedule::requests(pod));
        }
        for (resource, amount) in used.iter().filter(|(_, n)| *n > 0) {
            let has = info.allocatable.get(resource);
            if amount > has {
                return Err(format!("node {name} carries {amount} of {resource} and has {has}"));
            }
            if amount != info.used.get(resource) {
                return Err(format!("node {name} is counted with {} of {resource} and carries {amount}", info.used.get(resource)));
            }
        }
        let room = info.allocatable.get("pods");
        if info.pods.len() as i64 > room {
            return Err(format!("node {name} carries {} pods and has room for {room}", info.pods.len()));
        }
    }
    Ok(())
}

/// Pods of a Deployment: neither more than `replicas + maxSurge` that are to stay, nor (where nothing fails by itself) fewer
/// ready than `replicas - maxUnavailable`.
pub fn rollout_bounds(deployment: &Deployment, pods: &[&Pod], nothing_fails: bool) -> Result<(), String> {
    let Some(spec) = &deployment.spec else { return Ok(()) };
    let (replicas, room) = (spec.replicas.unwrap_or(1), rollout::room(spec));
    let active = pods.iter().filter(|p| objects::active(p)).count() as i32;
    if active > replicas + room.surge {
        return Err(format!("{active} pods, {replicas} wanted and {} more allowed", room.surge));
    }
    let ready = pods.iter().filter(|p| objects::active(p) && objects::ready(p)).count() as i32;
    if nothing_fails && ready < replicas - room.unavailable {
        return Err(format!("{ready} ready, {replicas} wanted and {} may be missing", room.unavailable));
    }
    Ok(())
}

/// What is published as ready is ready (or the Service publishes all), and all that is ready is published.
pub fn endpoints_are_ready(
    service: &Service,
    pods: &[&Pod],
    slices: &[&EndpointSlice],
    endpoints: Option<&Endpoints>,
) -> Result<(), String> {
    let Some(spec) = &service.spec else { return Ok(()) };
    let Some(selector) = spec.selector.as_ref().filter(|s| !s.is_empty()) else { return Ok(()) };
    let all = spec.publish_not_ready_addresses == Some(true);
    let has_address = |p: &Pod| p.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
    let wanted: BTreeSet<&str> = pods
        .iter()
        .filter(|p| crate::selector::matches_pairs(selector, p.metadata.labels.as_ref()) && !objects::terminated(p) && has_address(p))
        .filter(|p| all || (objects::ready(p) && !objects::deleting(**p)))
        .map(|p| objects::uid(*p))
        .collect();
    let published: Vec<&str> = slices
        .iter()
        .flat_map(|s| &s.endpoints)
        .filter(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true))
        .filter_map(|e| e.target_ref.as_ref()?.uid.as_deref())
        .collect();
    let once: BTreeSet<&str> = published.iter().copied().collect();
    if once.len() != published.len() {
        return Err("a pod is published twice".into());
    }
    if once != wanted {
        return Err(format!("slices publish {once:?}, ready are {wanted:?}"));
    }
    let old: BTreeSet<&str> = endpoints
        .iter()
        .flat_map(|e| e.subsets.iter().flatten())
        .flat_map(|s| s.addresses.iter().flatten())
        .filter_map(|a| a.target_ref.as_ref()?.uid.as_deref())
        .collect();
    match old.iter().find(|uid| !wanted.contains(*uid)) {
        Some(uid) => Err(format!("Endpoints publish {uid}, which is not ready")),
        None => Ok(()),
    }
}
