//! Which of the nodes that will do is best: free room, few siblings, and what the pod would like.

use super::cluster::{self, Cluster, NodeInfo};
use super::filter::{Asked, tolerates};
use crate::{objects, selector};

const FULL: i64 = 100;

/// The best node; among equals the one with fewer pods, then the first by name.
pub(super) fn best<'a>(_: &'a Cluster, asked: &Asked, fits: &[(&'a str, &'a NodeInfo)]) -> Option<&'a str> {
    if let [(only, _)] = fits {
        return Some(only);
    }
    let mut totals = vec![0_i64; fits.len()];
    let mut count = |weight: i64, scores: Vec<i64>| totals.iter_mut().zip(scores).for_each(|(t, s)| *t += weight * s);
    let each = |f: &dyn Fn(&NodeInfo) -> i64| fits.iter().map(|(_, info)| f(info)).collect::<Vec<_>>();

    count(1, each(&|i| free(asked, i)));
    let owner = objects::controller_of(&asked.pod.metadata).map(|o| o.uid.clone()).unwrap_or_default();
    count(2, fewer_is_better(each(&|i| i.by_owner.get(&owner).copied().unwrap_or(0) as i64)));
    count(3, fewer_is_better(each(&|i| disliked_taints(asked, i))));
    count(2, more_is_better(each(&|i| wished_node(asked, i))));
    if !asked.spread.is_empty() {
        count(2, fewer_is_better(each(&|i| asked.spread.crowd(i))));
    }
    if asked.affinity.has_wishes() {
        count(2, more_is_better(each(&|i| asked.affinity.score(i))));
    }
    let ranked = fits.iter().zip(totals).max_by(|((a, x), s), ((b, y), t)| s.cmp(t).then(y.pods.len().cmp(&x.pods.len())).then(b.cmp(a)));
    ranked.map(|((name, _), _)| *name)
}

/// The share of CPU and memory left after the pod came.
fn free(asked: &Asked, info: &NodeInfo) -> i64 {
    let mine = cluster::weight(&asked.resources);
    let share = |n: usize, name: &str| {
        let total = info.allocatable.get(name);
        if total <= 0 { 0 } else { (i128::from(total - info.weight[n] - mine[n]).max(0) * i128::from(FULL) / i128::from(total)) as i64 }
    };
    (share(0, "cpu") + share(1, "memory")) / 2
}

fn disliked_taints(asked: &Asked, info: &NodeInfo) -> i64 {
    let taints = info.node.iter().flat_map(|n| n.spec.iter()).flat_map(|s| s.taints.iter().flatten());
    let tolerations = asked.spec.tolerations.as_deref().unwrap_or(&[]);
    taints.filter(|t| t.effect == "PreferNoSchedule" && !tolerates(tolerations, t)).count() as i64
}

fn wished_node(asked: &Asked, info: &NodeInfo) -> i64 {
    let affinity = asked.spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let wishes = affinity.iter().flat_map(|a| a.preferred_during_scheduling_ignored_during_execution.iter().flatten());
    let Some(node) = &info.node else { return 0 };
    wishes.filter(|w| selector::node_term_matches(&w.preference, node)).map(|w| i64::from(w.weight)).sum()
}

fn more_is_better(scores: Vec<i64>) -> Vec<i64> {
    let (min, max) = (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0));
    scores.into_iter().map(|s| if max == min { 0 } else { FULL * (s - min) / (max - min) }).collect()
}

fn fewer_is_better(scores: Vec<i64>) -> Vec<i64> {
    let max = scores.iter().copied().max().unwrap_or(0);
    scores.into_iter().map(|s| if max == 0 { FULL } else { FULL * (max - s) / max }).collect()
}
