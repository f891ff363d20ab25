//! Pods that nobody will clean up: too many ended ones, those of nodes that are gone, those deleted before they had a node.
//!
//! Source: upstream's pod garbage collector.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::limits::SWEEP_MAX;
use crate::{Action, Cx, Plan, Reason, Target, objects};

/// Ended pods that may lie around (upstream: `--terminated-pod-gc-threshold`).
pub const TERMINATED_MAX: usize = 12_500;
/// How long a node must be unknown before its pods are given up.
pub const QUARANTINE: Duration = Duration::from_secs(40);

pub struct Snapshot<'a> {
    pub pods: &'a [&'a Pod],
    /// Nodes that exist or were missed for less than [`QUARANTINE`].
    pub nodes: &'a BTreeSet<String>,
    pub terminated_max: usize,
}

pub fn plan(s: &Snapshot, _: &Cx) -> (Plan, Vec<Reason>) {
    let mut plan = Plan::none();
    let mut ended: Vec<&Pod> = s.pods.iter().copied().filter(|p| objects::terminated(p) && !objects::deleting(*p)).collect();
    ended.sort_by_key(|p| (objects::created_at(*p), objects::name(*p)));
    let surplus = ended.len().saturating_sub(s.terminated_max);
    let homeless = |p: &&&Pod| {
        let node = objects::node_of(p);
        if node.is_empty() { objects::deleting(**p) } else { !s.nodes.contains(node) }
    };
    let lost: Vec<&Pod> = s.pods.iter().filter(homeless).copied().collect();
    let counted: BTreeSet<&str> = lost.iter().map(|p| objects::uid(*p)).collect();
    let gone = lost.iter().copied().chain(ended.into_iter().take(surplus).filter(|p| !counted.contains(objects::uid(*p))));
    // Nobody would confirm a grace period.
    plan.wave(gone.take(SWEEP_MAX).map(|p| Action::Delete {
        target: Target::of(p),
        resource_version: None,
        propagation: None,
        grace_seconds: Some(0),
    }));
    (plan, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Ids;
    use serde_json::json;

    #[test]
    fn the_oldest_ended_the_orphaned_and_the_never_placed() {
        let pod = |name: &str, node: &str, phase: &str, deleting: bool| -> Pod {
            let mut p = json!({"metadata": {"name": name, "namespace": "d", "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"containers": [], "nodeName": node}, "status": {"phase": phase}});
            if deleting {
                p["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            serde_json::from_value(p).unwrap()
        };
        let all = [
            pod("a-done", "n1", "Succeeded", false),
            pod("b-done", "n1", "Failed", false),
            pod("runs", "n1", "Running", false),
            pod("lost", "gone", "Running", false),
            pod("leaving", "n1", "Running", true),
            pod("unplaced", "", "Pending", true),
            pod("waiting", "", "Pending", false),
        ];
        let refs: Vec<&Pod> = all.iter().collect();
        let s = Snapshot { pods: &refs, nodes: &["n1".to_string()].into(), terminated_max: 1 };
        let (made, _) = plan(&s, &Cx { now: base::Timestamp::UNIX_EPOCH, ids: Ids::seeded(1) });
        let mut names: Vec<&str> = made.actions().map(|a| a.target().unwrap().name.as_str()).collect();
        names.sort();
        assert_eq!(names, ["a-done", "lost", "unplaced"]);
    }
}
