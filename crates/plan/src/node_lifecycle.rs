//! Nodes that fall silent: Ready becomes Unknown, taints follow the conditions, pods that tolerate them not are evicted.
//!
//! Knows for how long nothing was heard of a node, by the listener's own clock: clocks of machines may differ, and may jump.
//! When no node is ready at all the fault is more likely here than there: then nobody is evicted.
//!
//! Source: upstream's node lifecycle and taint eviction controllers; detection here is a matter of seconds.

use std::time::Duration;

use base::Timestamp;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::conditions::{self, Condition};
use crate::{Action, Cx, Plan, Reason, Step, Target, objects, schedule};

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions that keep new pods away while they are True.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Silence after which a node counts as unreachable (upstream: 40 s).
    pub grace: Duration,
    /// The same for a node that was never heard of.
    pub startup_grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { grace: Duration::from_secs(10), startup_grace: Duration::from_secs(60) }
    }
}

pub struct Snapshot<'a> {
    pub node: &'a Node,
    /// Since the Lease, or the node's own report, was last seen to change.
    pub silent_for: Duration,
    /// The pods on the node.
    pub pods: &'a [&'a Pod],
    /// Some node of the cluster, this one included, is heard of and ready.
    pub some_node_is_ready: bool,
    pub config: Config,
}

/// Whether a node's own report, were it heard, says Ready.
pub fn ready(node: &Node) -> bool {
    node.status.as_ref().is_some_and(|s| conditions::find(&s.conditions, "Ready").is_some_and(|c| c.status() == "True"))
}

pub fn plan(s: &Snapshot, cx: &Cx) -> (Plan, Vec<Reason>) {
    let (mut plan, mut reasons) = (Plan::none(), Vec::new());
    let heard_once = s.node.status.as_ref().is_some_and(|x| conditions::find(&x.conditions, "Ready").is_some());
    let grace = if heard_once { s.config.grace } else { s.config.startup_grace };
    let mut wanted = s.node.clone();
    if s.silent_for >= grace {
        silence(&mut wanted, cx.now);
    } else {
        plan.requeue(grace - s.silent_for);
    }
    if ready(s.node) && !ready(&wanted) {
        let name = objects::name(s.node);
        reasons.push(Reason::normal("NodeNotReady", format!("Node {name} status is now: NodeNotReady")));
    }
    set_taints(&mut wanted, cx.now);
    plan.wave(Action::patch(s.node, &wanted, None)).wave(Action::patch(s.node, &wanted, Some("status")));
    if !ready(&wanted) && heard_once {
        plan.wave(s.pods.iter().filter_map(|p| not_ready(p, cx.now)));
    }
    if s.some_node_is_ready {
        evict(s, &wanted, cx, &mut plan, &mut reasons);
    }
    (plan, reasons)
}

/// All that the node reported of itself is unknown now.
fn silence(node: &mut Node, now: Timestamp) {
    let status = node.status.get_or_insert_default();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        let (reason, message) = match conditions::find(&status.conditions, kind) {
            Some(c) if c.status() == "Unknown" => continue,
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        let mut new = NodeCondition::make(kind, "Unknown", reason, message, now);
        new.last_heartbeat_time =
            conditions::find(&status.conditions, kind).and_then(|c| c.last_heartbeat_time.clone()).or(Some(Time(now)));
        conditions::set(&mut status.conditions, new);
    }
}

/// Our taints as the conditions have them; those of others stay.
fn set_taints(node: &mut Node, now: Timestamp) {
    let status =
        |kind: &str| node.status.as_ref().and_then(|s| conditions::find(&s.conditions, kind)).map_or("", |c| c.status()).to_string();
    let mut want: Vec<(&str, &str)> = match status("Ready").as_str() {
        "True" => vec![],
        "Unknown" => vec![(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")],
        _ => vec![(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")],
    };
    want.extend(PRESSURES.iter().filter(|(kind, _)| status(kind) == "True").map(|(_, taint)| (*taint, "NoSchedule")));
    let spec = node.spec.get_or_insert_default();
    if spec.unschedulable == Some(true) {
        want.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |t: &Taint| [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&t.key.as_str()) || PRESSURES.iter().any(|(_, p)| *p == t.key);
    let is = |t: &Taint, (key, effect): &(&str, &str)| t.key == *key && t.effect == *effect;
    let mut taints = spec.taints.take().unwrap_or_default();
    taints.retain(|t| !ours(t) || want.iter().any(|w| is(t, w)));
    for w in &want {
        if !taints.iter().any(|t| is(t, w)) {
            taints.push(Taint { key: w.0.into(), effect: w.1.into(), time_added: Some(Time(now)), value: None });
        }
    }
    spec.taints = (!taints.is_empty()).then_some(taints);
}

/// No Service sends anyone to a pod of a lost node.
fn not_ready(pod: &Pod, now: Timestamp) -> Option<Step> {
    if !objects::ready(pod) {
        return None;
    }
    let mut wanted = pod.clone();
    let old = conditions::find(&wanted.status.as_ref()?.conditions, "Ready")?.clone();
    let new = PodCondition { status: "False".into(), last_transition_time: Some(Time(now)), ..old };
    conditions::set(&mut wanted.status.get_or_insert_default().conditions, new);
    let action = Action::patch(pod, &wanted, Some("status"))?;
    Some(Step::from(action).done(Reason::warning("NodeNotReady", "Node is not ready").about(Target::of(pod))))
}

/// Pods that tolerate a NoExecute taint not, or no longer.
fn evict(s: &Snapshot, node: &Node, cx: &Cx, plan: &mut Plan, reasons: &mut Vec<Reason>) {
    let taints = node.spec.as_ref().and_then(|x| x.taints.as_deref()).unwrap_or(&[]);
    let taints: Vec<&Taint> = taints.iter().filter(|t| t.effect == "NoExecute").collect();
    let mut steps = Vec::new();
    for pod in s.pods.iter().filter(|p| objects::active(p)) {
        let tolerations = pod.spec.as_ref().and_then(|x| x.tolerations.as_deref()).unwrap_or(&[]);
        let Some(due) = taints.iter().filter_map(|t| until(tolerations, t)).min() else { continue };
        if due > cx.now {
            plan.requeue(Duration::try_from(due.duration_since(cx.now)).unwrap_or_default());
            continue;
        }
        let message = format!("Marking for deletion Pod {}/{}", objects::namespace(*pod), objects::name(*pod));
        reasons.push(Reason::normal("TaintManagerEviction", message).about(Target::of(*pod)));
        steps.push(Action::delete(*pod));
    }
    plan.wave(steps);
}

/// How long these tolerations bear the taint: the shortest of those that match; `None` is for ever, none at all is not a moment.
fn until(tolerations: &[Toleration], taint: &Taint) -> Option<Timestamp> {
    let matching: Vec<&Toleration> = tolerations.iter().filter(|t| schedule::tolerates(std::slice::from_ref(t), taint)).collect();
    let since = taint.time_added.as_ref().map_or(Timestamp::MIN, |t| t.0);
    if matching.is_empty() {
        return Some(Timestamp::MIN);
    }
    let seconds = matching.iter().filter_map(|t| t.toleration_seconds).min()?;
    Some(since.saturating_add(SignedDuration::from_secs(seconds.max(0))).unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Ids;
    use serde_json::{Value, json};

    fn node(ready: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n1", "uid": "n1", "resourceVersion": "1"}, "spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}]},
            "status": {"conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
        .unwrap()
    }

    fn pod(name: &str, tolerations: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d", "uid": name},
            "spec": {"nodeName": "n1", "containers": [], "tolerations": tolerations},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}))
        .unwrap()
    }

    fn run(node: &Node, silent: u64, pods: &[Pod], others: bool) -> (Plan, Vec<Reason>) {
        let refs: Vec<&Pod> = pods.iter().collect();
        let s =
            Snapshot { node, silent_for: Duration::from_secs(silent), pods: &refs, some_node_is_ready: others, config: Config::default() };
        plan(&s, &Cx { now: "2026-01-01T01:00:00Z".parse().unwrap(), ids: Ids::seeded(1) })
    }

    fn deleted(plan: &Plan) -> Vec<&str> {
        plan.actions().filter(|a| matches!(a, Action::Delete { .. })).map(|a| a.target().unwrap().name.as_str()).collect()
    }

    #[test]
    fn a_node_that_speaks_is_left_alone() {
        let (made, reasons) = run(&node("True"), 3, &[pod("a", json!([]))], true);
        assert!(made.is_empty() && reasons.is_empty());
        assert_eq!(made.requeue_after, Some(Duration::from_secs(7)));
    }

    #[test]
    fn silence_makes_it_unknown_tainted_and_empty() {
        let tolerant = pod("patient", json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]));
        let daemon = pod("daemon", json!([{"operator": "Exists"}]));
        let (made, reasons) = run(&node("True"), 10, &[pod("a", json!([])), tolerant, daemon], true);
        let patches: Vec<&Value> = made
            .actions()
            .filter_map(|a| match a {
                Action::Patch { target, patch, .. } if target.name == "n1" => Some(patch),
                _ => None,
            })
            .collect();
        let keys: Vec<&str> = patches[0]["spec"]["taints"].as_array().unwrap().iter().map(|t| t["key"].as_str().unwrap()).collect();
        assert_eq!(keys, ["mine", UNREACHABLE, UNREACHABLE]);
        assert_eq!(patches[1]["status"]["conditions"][0]["status"], "Unknown");
        assert_eq!(made.actions().filter(|a| matches!(a, Action::Patch { target, .. } if target.kind.kind == "Pod")).count(), 3);
        assert_eq!(deleted(&made), ["a"]);
        assert_eq!(made.requeue_after, Some(Duration::from_secs(300)));
        assert_eq!(reasons[0].message, "Node n1 status is now: NodeNotReady");
        assert_eq!(reasons[1].message, "Marking for deletion Pod d/a");
    }

    #[test]
    fn when_no_node_is_ready_nobody_is_evicted() {
        let (made, _) = run(&node("True"), 10, &[pod("a", json!([]))], false);
        assert!(deleted(&made).is_empty() && !made.is_empty());
    }

    #[test]
    fn conditions_become_taints_and_recovery_removes_them() {
        let mut n = node("False");
        n.status.as_mut().unwrap().conditions.as_mut().unwrap().push(NodeCondition::make(
            "DiskPressure",
            "True",
            "",
            "",
            Timestamp::UNIX_EPOCH,
        ));
        let taints = |n: &Node| -> Vec<String> {
            let mut n = n.clone();
            set_taints(&mut n, Timestamp::UNIX_EPOCH);
            n.spec.unwrap().taints.unwrap().iter().map(|t| format!("{}:{}", t.key, t.effect)).collect()
        };
        assert_eq!(
            taints(&n),
            [
                "mine:NoSchedule",
                "node.kubernetes.io/not-ready:NoSchedule",
                "node.kubernetes.io/not-ready:NoExecute",
                "node.kubernetes.io/disk-pressure:NoSchedule"
            ]
        );
        let mut back = node("True");
        back.spec.as_mut().unwrap().taints.as_mut().unwrap().push(Taint {
            key: UNREACHABLE.into(),
            effect: "NoExecute".into(),
            ..Taint::default()
        });
        assert_eq!(taints(&back), ["mine:NoSchedule"]);
    }
}
