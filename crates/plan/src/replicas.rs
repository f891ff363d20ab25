//! ReplicaSets: as many pods as wanted, made from the template; the least valuable go first.
//!
//! Knows pods, their owners and what deleting one costs. Does not know Deployments beyond `related`, nor nodes beyond names.
//! Source: upstream's replicaset controller and `ActivePodsWithRanks`.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use base::Timestamp;
use jiff::SignedDuration;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::conditions::{self, Condition};
use crate::{Action, Cx, Plan, Reason, Step, limits, objects, owners, selector};

/// `controller.kubernetes.io/pod-deletion-cost`: pods that cost less are deleted first; 0 where absent or malformed.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub struct Snapshot<'a> {
    pub set: &'a ReplicaSet,
    /// All pods of the namespace.
    pub pods: &'a [&'a Pod],
    /// Uids of the ReplicaSets with the same managing owner, this one included: their pods are spread as one.
    pub related: &'a BTreeSet<String>,
}

impl<'a> Snapshot<'a> {
    fn claim(&self) -> owners::Claim<'a, Pod> {
        owners::claim(self.set, &self.set.spec.as_ref().map(|s| s.selector.clone()).unwrap_or_default(), self.live())
    }

    /// Pods of ours that were told to go and still run.
    fn terminating(&self) -> i32 {
        let ours = |p: &&&Pod| objects::controller_of(&p.metadata).is_some_and(|o| o.uid == objects::uid(self.set));
        self.pods.iter().filter(ours).filter(|p| objects::deleting(**p) && !objects::terminated(p)).count() as i32
    }

    fn live(&self) -> impl Iterator<Item = &'a Pod> + use<'a> {
        self.pods.iter().copied().filter(|p| objects::active(p))
    }
}

/// Pods to adopt, release, create and delete. The status is [`status`]'s, once the outcome of this is known.
pub fn plan(s: &Snapshot, cx: &Cx) -> (Plan, Vec<Reason>) {
    let mut plan = Plan::none();
    let Some(spec) = s.set.spec.as_ref().filter(|spec| !objects::deleting(s.set) && !selector::is_empty(&spec.selector)) else {
        return (plan, Vec::new());
    };
    let claim = s.claim();
    if !claim.patches.is_empty() {
        // Counted when seen: until then neither missing nor too many can be told.
        plan.wave(claim.patches);
        return (plan, Vec::new());
    }
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    match claim.owned.len().cmp(&wanted) {
        Ordering::Less => create(s.set, (wanted - claim.owned.len()).min(limits::BURST_REPLICAS_MAX), cx, &mut plan),
        Ordering::Greater => {
            let surplus = (claim.owned.len() - wanted).min(limits::BURST_REPLICAS_MAX);
            let steps = ranked(s, claim.owned, cx.now).into_iter().take(surplus).map(|pod| {
                Step::from(Action::delete(pod))
                    .done(Reason::normal("SuccessfulDelete", format!("Deleted pod: {}", objects::name(pod))))
                    .failed(Reason::warning("FailedDelete", "Error deleting"))
            });
            plan.wave(steps);
        }
        Ordering::Equal => {}
    }
    (plan, Vec::new())
}

/// Waves of 1, 2, 4 …: what is refused (a quota, a webhook) is refused once and not five hundred times.
fn create(set: &ReplicaSet, count: usize, cx: &Cx, plan: &mut Plan) {
    let (mut left, mut wave) = (count, 1);
    while left > 0 {
        let size = wave.min(left);
        plan.wave((0..size).map(|_| {
            let pod = new_pod(set, cx);
            Step::from(Action::create(&pod))
                .done(Reason::normal("SuccessfulCreate", format!("Created pod: {}", objects::name(&pod))))
                .failed(Reason::warning("FailedCreate", "Error creating"))
        }));
        left -= size;
        wave *= 2;
    }
}

/// A pod of the set's template, named, owned, and nothing else added: defaults are the server's.
pub fn new_pod(set: &ReplicaSet, cx: &Cx) -> Pod {
    let template = set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
    let prefix = format!("{}-", objects::name(set));
    let base = prefix.get(..limits::GENERATED_NAME_BASE_MAX).unwrap_or(&prefix);
    let PodTemplateSpec { metadata, spec } = template;
    let from = metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            name: Some(format!("{base}{}", cx.ids.suffix(5))),
            generate_name: Some(prefix),
            namespace: Some(objects::namespace(set).into()),
            labels: from.labels,
            annotations: from.annotations,
            finalizers: from.finalizers,
            owner_references: Some(vec![objects::controller_ref(set)]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

/// The pods in the order in which they are deleted.
fn ranked<'a>(s: &Snapshot<'a>, mut pods: Vec<&'a Pod>, now: Timestamp) -> Vec<&'a Pod> {
    let mut crowd: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in s.live().filter(|p| objects::controller_of(&p.metadata).is_some_and(|o| s.related.contains(&o.uid))) {
        *crowd.entry(objects::node_of(pod)).or_default() += 1;
    }
    let company = |pod: &Pod| crowd.get(objects::node_of(pod)).copied().unwrap_or(0);
    pods.sort_by(|a, b| {
        let (a, b): (&Pod, &Pod) = (a, b);
        let unassigned = |p: &Pod| !objects::node_of(p).is_empty();
        unassigned(a)
            .cmp(&unassigned(b))
            .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
            .then_with(|| objects::ready(a).cmp(&objects::ready(b)))
            .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
            .then_with(|| company(b).cmp(&company(a)))
            .then_with(|| age_rank(objects::ready_since(a), now).cmp(&age_rank(objects::ready_since(b), now)))
            .then_with(|| restarts(b).cmp(&restarts(a)))
            .then_with(|| age_rank(objects::created_at(a), now).cmp(&age_rank(objects::created_at(b), now)))
            .then_with(|| objects::uid(a).cmp(objects::uid(b)))
    });
    pods
}

fn phase_rank(pod: &Pod) -> u8 {
    match objects::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    objects::annotation(&pod.metadata, DELETION_COST).and_then(|c| c.parse().ok()).unwrap_or(0)
}

fn restarts(pod: &Pod) -> i32 {
    pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten()).map(|c| c.restart_count).max().unwrap_or(0)
}

/// Young before old, by powers of two of the age, so that pods of nearly one age fall by chance (their uid) and not in order
/// of their nodes. What has no time yet counts as just now.
fn age_rank(since: Option<Timestamp>, now: Timestamp) -> u32 {
    let age_ns = since.map_or(0, |t| now.as_nanosecond() - t.as_nanosecond()).max(0) as u128;
    age_ns.checked_ilog2().unwrap_or(0)
}

/// The status as the snapshot shows it; `failure` is what the last plan's application ran into: the reason (`FailedCreate`,
/// `FailedDelete`) and the error.
pub fn status(s: &Snapshot, failure: Option<(&str, &str)>, cx: &Cx) -> Plan {
    let mut plan = Plan::none();
    let Some(spec) = &s.set.spec else { return plan };
    let owned = s.claim().owned;
    let template_labels = spec.template.as_ref().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.clone()).unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let count = |want: &dyn Fn(&Pod) -> bool| owned.iter().filter(|p| want(p)).count() as i32;
    let labelled = |p: &Pod| template_labels.iter().all(|(k, v)| p.metadata.labels.as_ref().and_then(|l| l.get(k)) == Some(v));

    let before = s.set.status.clone().unwrap_or_default();
    let mut status = ReplicaSetStatus {
        replicas: owned.len() as i32,
        fully_labeled_replicas: Some(count(&labelled)),
        ready_replicas: Some(count(&objects::ready)),
        // A Deployment that recreates waits for those, too.
        terminating_replicas: Some(s.terminating()),
        available_replicas: Some(count(&|p| objects::available(p, min_ready, cx.now))),
        observed_generation: s.set.metadata.generation,
        ..before
    };
    match failure {
        Some((reason, message)) => {
            conditions::set_if_new(&mut status.conditions, ReplicaSetCondition::make("ReplicaFailure", "True", reason, message, cx.now));
        }
        None => conditions::remove(&mut status.conditions, "ReplicaFailure"),
    }
    if let Some(wait) = until_available(&owned, min_ready, cx.now) {
        plan.requeue(wait);
    }
    let mut wanted = s.set.clone();
    wanted.status = Some(status);
    plan.wave(Action::patch(s.set, &wanted, Some("status")));
    plan
}

/// When the next ready pod becomes available by age alone.
fn until_available(owned: &[&Pod], min_ready: i32, now: Timestamp) -> Option<std::time::Duration> {
    let due = owned
        .iter()
        .filter(|p| !objects::available(p, min_ready, now))
        .filter_map(|p| objects::ready_since(p))
        .map(|t| t + SignedDuration::from_secs(min_ready.into()))
        .min()?;
    Some(std::time::Duration::try_from(due.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Ids;
    use serde_json::json;

    fn cx() -> Cx {
        Cx { now: "2026-01-01T01:00:00Z".parse().unwrap(), ids: Ids::seeded(1) }
    }

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": "web-7c5", "namespace": "default", "uid": "rs", "generation": 3, "resourceVersion": "1"},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                     "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}
        }))
        .unwrap()
    }

    fn pod(name: &str, node: &str, ready: bool, edit: impl Fn(&mut serde_json::Value)) -> Pod {
        let mut p = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1", "labels": {"app": "web"},
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7c5", "uid": "rs", "controller": true}]},
            "spec": {"containers": [], "nodeName": node},
            "status": {"phase": if ready { "Running" } else { "Pending" }, "conditions": [
                {"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
        });
        edit(&mut p);
        serde_json::from_value(p).unwrap()
    }

    fn run(set: &ReplicaSet, pods: &[Pod]) -> Plan {
        let refs: Vec<&Pod> = pods.iter().collect();
        plan(&Snapshot { set, pods: &refs, related: &["rs".to_string()].into() }, &cx()).0
    }

    #[test]
    fn missing_pods_come_in_doubling_waves_with_upstreams_words() {
        let plan = run(&set(6), &[]);
        assert_eq!(plan.waves.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 3]);
        let step = plan.steps().next().unwrap();
        let pod: Pod = step.action.created().unwrap();
        assert!(objects::name(&pod).starts_with("web-7c5-") && objects::name(&pod).len() == 13);
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("web-7c5-"));
        assert_eq!(step.done.as_ref().unwrap().message, format!("Created pod: {}", objects::name(&pod)));
        let owner = objects::controller_of(&pod.metadata).unwrap();
        assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.block_owner_deletion), ("ReplicaSet", "rs", Some(true)));
    }

    #[test]
    fn the_least_valuable_go_first() {
        let cost = |c: &'static str| move |p: &mut serde_json::Value| p["metadata"]["annotations"] = json!({ DELETION_COST: c });
        let pods = [
            pod("old", "n1", true, |_| {}),
            pod("cheap", "n2", true, cost("-5")),
            pod("dear", "n2", true, cost("100")),
            pod("homeless", "", false, |_| {}),
            pod("unready", "n1", false, |_| {}),
            pod("restarted", "n3", true, |p| {
                p["status"]["containerStatuses"] = json!([{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 4}]);
            }),
            pod("fresh", "n4", true, |p| p["status"]["conditions"][0]["lastTransitionTime"] = json!("2026-01-01T00:59:59Z")),
        ];
        let plan = run(&set(0), &pods);
        let order: Vec<&str> = plan.actions().map(|a| a.target().unwrap().name.as_str()).collect();
        assert_eq!(order, ["homeless", "unready", "cheap", "old", "fresh", "restarted", "dear"]);
    }

    #[test]
    fn orphans_are_adopted_and_strangers_released_before_anything_is_counted() {
        let pods = [
            pod("orphan", "n1", true, |p| p["metadata"]["ownerReferences"] = json!([])),
            pod("stranger", "n1", true, |p| p["metadata"]["labels"] = json!({"app": "other"})),
            pod("others", "n1", true, |p| p["metadata"]["ownerReferences"][0]["uid"] = json!("someone")),
        ];
        let plan = run(&set(3), &pods);
        let patches: Vec<_> = plan
            .actions()
            .map(|a| match a {
                Action::Patch { target, patch, .. } => (target.name.as_str(), patch["metadata"]["ownerReferences"].clone()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(patches.len(), 2);
        assert_eq!(patches[0].0, "orphan");
        assert_eq!(patches[0].1[0]["uid"], "rs");
        assert_eq!(patches[1], ("stranger", json!(null)));
    }

    #[test]
    fn status_counts_and_waits_for_min_ready_seconds() {
        let mut set = set(3);
        set.spec.as_mut().unwrap().min_ready_seconds = Some(30);
        let pods = [
            pod("a", "n1", true, |_| {}),
            pod("b", "n1", true, |p| p["status"]["conditions"][0]["lastTransitionTime"] = json!("2026-01-01T00:59:50Z")),
            pod("c", "n1", false, |_| {}),
            pod("gone", "n1", true, |p| p["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:59:50Z")),
            pod("failed", "n1", true, |p| p["status"]["phase"] = json!("Failed")),
        ];
        let refs: Vec<&Pod> = pods.iter().collect();
        let s = Snapshot { set: &set, pods: &refs, related: &BTreeSet::new() };
        let plan = status(&s, Some(("FailedCreate", "no room")), &cx());
        assert_eq!(plan.requeue_after, Some(std::time::Duration::from_secs(20)));
        let Some(Action::Patch { patch, subresource, .. }) = plan.actions().next() else { panic!() };
        assert_eq!(*subresource, Some("status"));
        let st = &patch["status"];
        assert_eq!((&st["replicas"], &st["readyReplicas"], &st["availableReplicas"]), (&json!(3), &json!(2), &json!(1)));
        assert_eq!((&st["observedGeneration"], &st["terminatingReplicas"]), (&json!(3), &json!(1)));
        assert_eq!(st["conditions"][0]["reason"], "FailedCreate");
    }
}
