//! Whether a node will do. The order is upstream's: the first rule that refuses a node is the reason that is told.

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Taint, Toleration};

use super::Misfit;
use super::affinity::PodAffinity;
use super::cluster::{self, Cluster, HostPort, NodeInfo};
use super::resources::{self, Resources};
use super::spread::Spread;
use crate::selector;

/// Taint of nodes with `spec.unschedulable`, which a toleration overrides.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// What a pod asks of its place, worked out once for all nodes.
pub(super) struct Asked<'a> {
    pub pod: &'a Pod,
    pub spec: PodSpec,
    pub resources: Resources,
    ports: Vec<HostPort>,
    pub spread: Spread,
    pub affinity: PodAffinity,
}

impl<'a> Asked<'a> {
    pub fn new(cluster: &Cluster, pod: &'a Pod) -> Self {
        Self {
            pod,
            spec: pod.spec.clone().unwrap_or_default(),
            resources: resources::of_pod(pod),
            ports: cluster::host_ports(pod),
            spread: Spread::new(cluster, pod),
            affinity: PodAffinity::new(cluster, pod),
        }
    }

    fn tolerations(&self) -> &[Toleration] {
        self.spec.tolerations.as_deref().unwrap_or(&[])
    }

    /// Empty where the pod fits.
    pub fn misfits(&self, info: &NodeInfo) -> Vec<Misfit> {
        let Some(node) = &info.node else { return vec![fixed("node(s) are unknown")] };
        if let Some(why) = self.refused(node) {
            return vec![fixed(why)];
        }
        if self.ports.iter().any(|mine| info.ports.iter().any(|held| conflict(mine, held))) {
            return vec![passing("node(s) didn't have free ports for the requested pod ports")];
        }
        let missing = self.missing(info);
        if !missing.is_empty() {
            return missing;
        }
        self.spread.misfit(info).or_else(|| self.affinity.misfit(info)).into_iter().collect()
    }

    /// What about the node itself keeps the pod away.
    fn refused(&self, node: &Node) -> Option<String> {
        let spec = node.spec.as_ref();
        let cordon = Taint { key: UNSCHEDULABLE.into(), effect: "NoSchedule".into(), ..Taint::default() };
        if spec.and_then(|s| s.unschedulable) == Some(true) && !tolerates(self.tolerations(), &cordon) {
            return Some("node(s) were unschedulable".into());
        }
        let repelling = |t: &&Taint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute") && !tolerates(self.tolerations(), t);
        if let Some(taint) = spec.and_then(|s| s.taints.iter().flatten().find(repelling)) {
            return Some(format!("node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value.as_deref().unwrap_or_default()));
        }
        (!selects(&self.spec, node)).then(|| "node(s) didn't match Pod's node affinity/selector".into())
    }

    fn missing(&self, info: &NodeInfo) -> Vec<Misfit> {
        let mut out = Vec::new();
        let pods_max = info.allocatable.get("pods");
        if pods_max > 0 && info.pods.len() as i64 + 1 > pods_max {
            out.push(passing("Too many pods"));
        }
        for (name, amount) in self.resources.iter().filter(|(_, n)| *n > 0) {
            if amount > info.allocatable.get(name) - info.used.get(name) {
                out.push(passing(format!("Insufficient {name}")));
            }
        }
        out
    }
}

fn fixed(why: impl Into<String>) -> Misfit {
    Misfit { why: why.into(), fixed: true }
}

pub(super) fn passing(why: impl Into<String>) -> Misfit {
    Misfit { why: why.into(), fixed: false }
}

/// `nodeSelector` and required node affinity.
pub(super) fn selects(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let pairs = spec.node_selector.iter().flatten().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    pairs && required.is_none_or(|r| selector::node_matches(r, node))
}

/// One of the tolerations is for this taint.
pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|t| {
        let key = t.key.as_deref().unwrap_or_default();
        let effect = t.effect.as_deref().unwrap_or_default();
        let value = || t.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
        (effect.is_empty() || effect == taint.effect)
            && (key.is_empty() || key == taint.key)
            && match t.operator.as_deref().unwrap_or("Equal") {
                "Exists" => true,
                _ => !key.is_empty() && value(),
            }
    })
}

fn conflict(a: &HostPort, b: &HostPort) -> bool {
    const ANY: &str = "0.0.0.0";
    a.1 == b.1 && a.2 == b.2 && (a.0 == b.0 || a.0 == ANY || b.0 == ANY)
}
