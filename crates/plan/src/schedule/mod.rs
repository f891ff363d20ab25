//! Scheduling: on which node a pod fits and is best placed, and in upstream's words why it fits nowhere.
//!
//! Knows what nodes offer, what the pods on them take, and what a pod asks of its place. Does not know how long a pod has
//! waited (the controller's queue) and evicts nobody: there is no preemption, and the messages say so as upstream's do.

mod affinity;
mod cluster;
mod filter;
mod resources;
mod score;
mod spread;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodCondition};

use crate::conditions::{self, Condition};
use crate::{Action, Cx, Plan, Reason, Step, Target, objects};

pub use cluster::{Cluster, NodeInfo};
pub use filter::tolerates;
pub use resources::{Resources, of_pod as requests};

/// The default scheduler's name: pods that name another are not ours.
pub const SCHEDULER: &str = "default-scheduler";

/// Whether the pod waits for this scheduler. A pod with scheduling gates waits for whoever removes them.
pub fn wants(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    objects::node_of(pod).is_empty()
        && objects::active(pod)
        && spec.scheduler_name.as_deref().is_none_or(|s| s == SCHEDULER)
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
}

/// Why a node will not do. `fixed` where nothing that leaves the node would change it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Misfit {
    pub why: String,
    pub fixed: bool,
}

/// The best node for the pod, or the reasons of each node.
pub fn place<'a>(cluster: &'a Cluster, pod: &Pod) -> Result<&'a str, BTreeMap<&'a str, Vec<Misfit>>> {
    let asked = filter::Asked::new(cluster, pod);
    let mut fits = Vec::new();
    let mut misfits = BTreeMap::new();
    for (name, info) in cluster.nodes() {
        match asked.misfits(info) {
            none if none.is_empty() => fits.push((name, info)),
            some => {
                misfits.insert(name, some);
            }
        }
    }
    score::best(cluster, &asked, &fits).ok_or(misfits)
}

/// `0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu. preemption: …`
pub fn explain(misfits: &BTreeMap<&str, Vec<Misfit>>) -> String {
    if misfits.is_empty() {
        return "no nodes available to schedule pods".into();
    }
    let total = misfits.len();
    let mut by_reason: BTreeMap<&str, usize> = BTreeMap::new();
    for misfit in misfits.values().flatten() {
        *by_reason.entry(&misfit.why).or_default() += 1;
    }
    let fixed = misfits.values().filter(|m| m.iter().any(|m| m.fixed)).count();
    let preemption = [("No preemption victims found for incoming pod", total - fixed), ("Preemption is not helpful for scheduling", fixed)];
    format!(
        "0/{total} nodes are available: {}. preemption: 0/{total} nodes are available: {}.",
        counted(by_reason),
        counted(preemption.into_iter().filter(|(_, n)| *n > 0))
    )
}

fn counted<'a>(reasons: impl IntoIterator<Item = (&'a str, usize)>) -> String {
    let mut each: Vec<String> = reasons.into_iter().map(|(why, n)| format!("{n} {why}")).collect();
    each.sort();
    each.join(", ")
}

/// Binds the pod, or says on the pod why it waits.
pub fn plan(cluster: &Cluster, pod: &Pod, cx: &Cx) -> (Plan, Vec<Reason>) {
    let mut plan = Plan::none();
    if !wants(pod) {
        return (plan, Vec::new());
    }
    match place(cluster, pod) {
        Ok(node) => {
            let message = format!("Successfully assigned {}/{} to {node}", objects::namespace(pod), objects::name(pod));
            let bind = Action::Bind { pod: Target::of(pod), node: node.to_string() };
            plan.wave([Step::from(bind).done(Reason::normal("Scheduled", message))]);
            (plan, Vec::new())
        }
        Err(misfits) => {
            let message = explain(&misfits);
            let condition = PodCondition::make("PodScheduled", "False", "Unschedulable", &message, cx.now);
            let mut wanted = pod.clone();
            let status = wanted.status.get_or_insert_default();
            let same = conditions::find(&status.conditions, "PodScheduled")
                .is_some_and(|c| c.status() == "False" && c.reason() == "Unschedulable" && c.message() == message);
            if !same {
                conditions::set(&mut status.conditions, condition);
            }
            plan.wave(Action::patch(pod, &wanted, Some("status")));
            (plan, vec![Reason::warning("FailedScheduling", message)])
        }
    }
}

#[cfg(test)]
mod tests;
