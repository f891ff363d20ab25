//! Affinity and anti-affinity between pods, both ways: what the pod asks of others, and what those placed ask of it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::Misfit;
use super::cluster::{Cluster, NodeInfo};
use super::filter::passing;
use super::spread::add_keys;
use crate::{objects, selector};

/// A term and the domains (values of its topology key) where a matching pod is.
struct Near {
    key: String,
    domains: BTreeSet<String>,
    weight: i64,
}

#[derive(Default)]
pub(super) struct PodAffinity {
    required: Vec<Near>,
    /// No pod anywhere matches all required terms and the pod itself does: it may be the first.
    first_of_its_kind: bool,
    repelled: Vec<Near>,
    /// Topology key and value where a placed pod wants this one away.
    forbidden: BTreeSet<(String, String)>,
    /// Wishes; the weight is negative for anti-affinity.
    preferred: Vec<Near>,
}

impl PodAffinity {
    pub fn new(cluster: &Cluster, pod: &Pod) -> Self {
        let mut out = Self { forbidden: forbidden(cluster, pod), ..Self::default() };
        let Some(affinity) = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()) else { return out };
        if let Some(to) = &affinity.pod_affinity {
            let required = to.required_during_scheduling_ignored_during_execution.as_deref().unwrap_or(&[]);
            out.required = required.iter().map(|t| near(cluster, pod, t, 0)).collect();
            out.first_of_its_kind =
                out.required.iter().all(|n| n.domains.is_empty()) && required.iter().all(|t| Term::new(pod, t).matches(cluster, pod));
            let wishes = to.preferred_during_scheduling_ignored_during_execution.iter().flatten();
            out.preferred.extend(wishes.map(|w| near(cluster, pod, &w.pod_affinity_term, w.weight.into())));
        }
        if let Some(from) = &affinity.pod_anti_affinity {
            let required = from.required_during_scheduling_ignored_during_execution.iter().flatten();
            out.repelled = required.map(|t| near(cluster, pod, t, 0)).collect();
            let wishes = from.preferred_during_scheduling_ignored_during_execution.iter().flatten();
            out.preferred.extend(wishes.map(|w| near(cluster, pod, &w.pod_affinity_term, -i64::from(w.weight))));
        }
        out
    }

    pub fn misfit(&self, info: &NodeInfo) -> Option<Misfit> {
        let there = |n: &Near| info.label(&n.key).is_some_and(|d| n.domains.contains(d));
        let near_enough = |n: &Near| there(n) || (self.first_of_its_kind && info.label(&n.key).is_some());
        if !self.required.iter().all(near_enough) {
            return Some(Misfit { why: "node(s) didn't match pod affinity rules".into(), fixed: true });
        }
        if self.repelled.iter().any(there) {
            return Some(passing("node(s) didn't match pod anti-affinity rules"));
        }
        let unwelcome = |(key, value): &(String, String)| info.label(key) == Some(value.as_str());
        self.forbidden.iter().any(unwelcome).then(|| passing("node(s) didn't satisfy existing pods anti-affinity rules"))
    }

    pub fn score(&self, info: &NodeInfo) -> i64 {
        self.preferred.iter().filter(|n| info.label(&n.key).is_some_and(|d| n.domains.contains(d))).map(|n| n.weight).sum()
    }

    pub fn has_wishes(&self) -> bool {
        !self.preferred.is_empty()
    }
}

/// A term with its selector and namespaces worked out for the pod that states it.
struct Term<'a> {
    term: &'a PodAffinityTerm,
    labels: Option<LabelSelector>,
    home: &'a str,
}

impl<'a> Term<'a> {
    fn new(stated_by: &'a Pod, term: &'a PodAffinityTerm) -> Self {
        let mut labels = term.label_selector.clone();
        if let Some(selector) = &mut labels {
            add_keys(selector, term.match_label_keys.as_deref().unwrap_or(&[]), stated_by);
        }
        Self { term, labels, home: objects::namespace(stated_by) }
    }

    fn matches(&self, cluster: &Cluster, other: &Pod) -> bool {
        let namespace = objects::namespace(other);
        let listed = self.term.namespaces.as_deref().unwrap_or(&[]);
        let in_namespace = match &self.term.namespace_selector {
            None if listed.is_empty() => namespace == self.home,
            None => listed.iter().any(|n| n == namespace),
            Some(by) => listed.iter().any(|n| n == namespace) || selector::matches(by, cluster.namespace_labels(namespace)),
        };
        in_namespace && self.labels.as_ref().is_some_and(|s| selector::matches(s, other.metadata.labels.as_ref()))
    }
}

fn near(cluster: &Cluster, pod: &Pod, term: &PodAffinityTerm, weight: i64) -> Near {
    let stated = Term::new(pod, term);
    let mut domains = BTreeSet::new();
    for (_, info) in cluster.nodes() {
        if let Some(domain) = info.label(&term.topology_key)
            && !domains.contains(domain)
            && info.pods.values().any(|p| stated.matches(cluster, p))
        {
            domains.insert(domain.to_string());
        }
    }
    Near { key: term.topology_key.clone(), domains, weight }
}

/// Where pods that are placed already want none like this one.
fn forbidden(cluster: &Cluster, pod: &Pod) -> BTreeSet<(String, String)> {
    let mut out = BTreeSet::new();
    for (_, info) in cluster.nodes().filter(|(_, i)| i.repelling > 0) {
        for placed in info.pods.values() {
            let anti = placed.spec.as_ref().and_then(|s| s.affinity.as_ref()).and_then(|a| a.pod_anti_affinity.as_ref());
            for term in anti.iter().flat_map(|a| a.required_during_scheduling_ignored_during_execution.iter().flatten()) {
                if let Some(domain) = info.label(&term.topology_key).filter(|_| Term::new(placed, term).matches(cluster, pod)) {
                    out.insert((term.topology_key.clone(), domain.to_string()));
                }
            }
        }
    }
    out
}
