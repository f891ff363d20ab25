//! `topologySpreadConstraints`: how uneven the pods of one selector may lie over zones, hosts or whatever a label names.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::Misfit;
use super::cluster::{Cluster, NodeInfo};
use super::filter::{passing, selects, tolerates};
use crate::{objects, selector};

struct Constraint {
    key: String,
    max_skew: i64,
    hard: bool,
    /// Whether the pod itself counts.
    counts_self: bool,
    /// Matching pods by domain, over the nodes that count.
    domains: BTreeMap<String, i64>,
    min: i64,
}

pub(super) struct Spread(Vec<Constraint>);

impl Spread {
    pub fn new(cluster: &Cluster, pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else { return Self(Vec::new()) };
        let each = spec.topology_spread_constraints.iter().flatten().map(|c| {
            let mut wanted = c.label_selector.clone().unwrap_or_default();
            add_keys(&mut wanted, c.match_label_keys.as_deref().unwrap_or(&[]), pod);
            let honours_affinity = c.node_affinity_policy.as_deref() != Some("Ignore");
            let honours_taints = c.node_taints_policy.as_deref() == Some("Honor");
            let mut domains: BTreeMap<String, i64> = BTreeMap::new();
            for (_, info) in cluster.nodes() {
                let Some(domain) = info.label(&c.topology_key).filter(|_| eligible(spec, info, honours_affinity, honours_taints)) else {
                    continue;
                };
                let here = info.pods.values().filter(|p| {
                    objects::namespace(&***p) == objects::namespace(pod)
                        && !objects::deleting(&***p)
                        && c.label_selector.is_some()
                        && selector::matches(&wanted, p.metadata.labels.as_ref())
                });
                *domains.entry(domain.into()).or_default() += here.count() as i64;
            }
            let too_few = i64::from(c.min_domains.unwrap_or(1)) > domains.len() as i64;
            Constraint {
                key: c.topology_key.clone(),
                max_skew: c.max_skew.into(),
                hard: c.when_unsatisfiable == "DoNotSchedule",
                counts_self: c.label_selector.is_some() && selector::matches(&wanted, pod.metadata.labels.as_ref()),
                min: if too_few { 0 } else { domains.values().copied().min().unwrap_or(0) },
                domains,
            }
        });
        Self(each.collect())
    }

    pub fn misfit(&self, info: &NodeInfo) -> Option<Misfit> {
        const UNEVEN: &str = "node(s) didn't match pod topology spread constraints";
        self.0.iter().filter(|c| c.hard).find_map(|c| match info.label(&c.key) {
            None => Some(Misfit { why: format!("{UNEVEN} (missing required label)"), fixed: true }),
            Some(domain) => {
                let here = c.domains.get(domain).copied().unwrap_or(0) + i64::from(c.counts_self);
                (here - c.min > c.max_skew).then(|| passing(UNEVEN))
            }
        })
    }

    /// How many matching pods the wishes (not the demands) find in the node's domains: fewer is better.
    pub fn crowd(&self, info: &NodeInfo) -> i64 {
        let soft = self.0.iter().filter(|c| !c.hard);
        soft.filter_map(|c| Some(c.domains.get(info.label(&c.key)?).copied().unwrap_or(0))).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn eligible(spec: &PodSpec, info: &NodeInfo, honours_affinity: bool, honours_taints: bool) -> bool {
    let Some(node) = &info.node else { return false };
    let tolerations = spec.tolerations.as_deref().unwrap_or(&[]);
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or(&[]);
    (!honours_affinity || selects(spec, node))
        && (!honours_taints || taints.iter().all(|t| t.effect == "PreferNoSchedule" || tolerates(tolerations, t)))
}

/// `matchLabelKeys`: the pod's own values of these labels are asked for too.
pub(super) fn add_keys(selector: &mut LabelSelector, keys: &[String], pod: &Pod) {
    for key in keys {
        if let Some(value) = pod.metadata.labels.as_ref().and_then(|l| l.get(key)) {
            selector.match_labels.get_or_insert_default().insert(key.clone(), value.clone());
        }
    }
}
