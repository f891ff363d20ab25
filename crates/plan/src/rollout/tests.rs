//! Tables of upstream's cases, then a simulated world: a Deployment, its ReplicaSets and their pods under stale caches, at
//! random, with the invariants checked at each step.

use base::Ids;
use serde_json::{Value, json};

use super::*;
use crate::conditions::{self, Condition};

#[path = "sim.rs"]
mod sim;

fn cx() -> Cx {
    Cx { now: "2026-01-01T01:00:00Z".parse().unwrap(), ids: Ids::seeded(1) }
}

fn deployment(edit: impl Fn(&mut Value)) -> Deployment {
    let mut d = json!({"metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1, "resourceVersion": "1"},
        "spec": {"replicas": 10, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 10, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v2"}]}}}});
    edit(&mut d);
    serde_json::from_value(d).unwrap()
}

/// A settled ReplicaSet of `image`.
fn set(image: &str, spec: i32, available: i32, edit: impl Fn(&mut Value)) -> ReplicaSet {
    let mut rs = json!({"metadata": {"name": format!("web-{image}"), "namespace": "default", "uid": image, "generation": 1, "resourceVersion": "1",
            "creationTimestamp": format!("2026-01-01T00:00:0{}Z", &image[1..]), "labels": {"app": "web", "pod-template-hash": image},
            "annotations": {REVISION: &image[1..], DESIRED_REPLICAS: "10", MAX_REPLICAS: "13"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d", "controller": true, "blockOwnerDeletion": true}]},
        "spec": {"replicas": spec, "selector": {"matchLabels": {"app": "web", "pod-template-hash": image}},
            "template": {"metadata": {"labels": {"app": "web", "pod-template-hash": image}}, "spec": {"containers": [{"name": "c", "image": image}]}}},
        "status": {"replicas": spec, "readyReplicas": available, "availableReplicas": available, "observedGeneration": 1}});
    edit(&mut rs);
    serde_json::from_value(rs).unwrap()
}

/// What was counted before: nothing moves by being counted again.
fn counted(d: &mut Value) {
    d["status"] = json!({"replicas": 10, "updatedReplicas": 10, "readyReplicas": 10, "availableReplicas": 10});
}

fn run(d: &Deployment, sets: &[ReplicaSet]) -> Plan {
    let refs: Vec<&ReplicaSet> = sets.iter().collect();
    plan(&Snapshot { deployment: d, sets: &refs, create_failure: None }, &cx()).0
}

/// `name: size` of the ReplicaSets that change.
fn sizes(plan: &Plan) -> Vec<String> {
    plan.actions()
        .filter_map(|a| match a {
            Action::Create { target, object } => {
                Some(format!("{}: {}", if target.name.len() > 4 { "new" } else { "" }, object["spec"]["replicas"]))
            }
            Action::Patch { target, patch, .. } if target.kind.kind == "ReplicaSet" => {
                patch["spec"].get("replicas").map(|n| format!("{}: {n}", target.name))
            }
            _ => None,
        })
        .collect()
}

fn status(plan: &Plan, d: &Deployment) -> k8s_openapi::api::apps::v1::DeploymentStatus {
    let patch = plan.actions().find_map(|a| match a {
        Action::Patch { subresource: Some("status"), patch, .. } => Some(patch.clone()),
        _ => None,
    });
    crate::action::patched(d, &patch.unwrap()).unwrap().status.unwrap()
}

#[test]
fn room_rounds_surge_up_and_unavailable_down_and_never_is_nothing() {
    for (replicas, surge, unavailable, want) in [
        (10, json!("25%"), json!("25%"), (3, 2)),
        (1, json!("25%"), json!("25%"), (1, 0)),
        (10, json!(0), json!(0), (0, 1)),
        (10, json!("0%"), json!("5%"), (0, 1)),
        (3, json!(1), json!(9), (1, 3)),
        (0, json!("25%"), json!("25%"), (0, 0)),
    ] {
        let d = deployment(|d| {
            d["spec"]["replicas"] = json!(replicas);
            d["spec"]["strategy"]["rollingUpdate"] = json!({"maxSurge": surge, "maxUnavailable": unavailable});
        });
        let got = room(&d.spec.unwrap());
        assert_eq!((got.surge, got.unavailable), want, "{replicas} {surge} {unavailable}");
    }
}

#[test]
fn one_move_at_a_time() {
    let d = deployment(|_| {});
    for (sets, want) in [
        (vec![], vec!["new: 10"]),
        (vec![set("v1", 10, 10, |_| {})], vec!["new: 3"]),
        (vec![set("v1", 10, 10, |_| {}), set("v2", 3, 0, |_| {})], vec!["web-v1: 8"]),
        (vec![set("v1", 8, 8, |_| {}), set("v2", 5, 0, |_| {})], vec![]),
        (vec![set("v1", 8, 8, |_| {}), set("v2", 5, 2, |_| {})], vec!["web-v1: 6"]),
        (vec![set("v1", 10, 4, |_| {}), set("v2", 3, 0, |_| {})], vec!["web-v1: 8"]),
        (vec![set("v0", 1, 0, |_| {}), set("v1", 9, 9, |_| {}), set("v2", 3, 3, |_| {})], vec!["web-v0: 0", "web-v1: 5"]),
        (vec![set("v1", 0, 0, |_| {}), set("v2", 12, 12, |_| {})], vec!["web-v2: 10"]),
        // Still carries what its spec let go of: that takes room, and answers for nothing.
        (vec![set("v1", 8, 10, |rs| rs["status"]["replicas"] = json!(10)), set("v2", 3, 1, |_| {})], vec!["web-v1: 7"]),
        (vec![set("v1", 8, 10, |rs| rs["metadata"]["generation"] = json!(2)), set("v2", 3, 3, |_| {})], vec![]),
    ] {
        assert_eq!(
            sizes(&run(&d, &sets)),
            want,
            "{:?}",
            sets.iter().map(|s| (work::spec_replicas(s), work::status_available(s))).collect::<Vec<_>>()
        );
    }
}

#[test]
fn a_new_set_is_made_numbered_and_told_of() {
    let d = deployment(|d| {
        counted(d);
        d["metadata"]["annotations"] = json!({"note": "x", "kubectl.kubernetes.io/last-applied-configuration": "{}"});
    });
    let made = run(&d, &[set("v1", 10, 10, |_| {})]);
    let step = made.steps().next().unwrap();
    let rs: ReplicaSet = step.action.created().unwrap();
    let name = objects::name(&rs);
    assert_eq!(step.done.as_ref().unwrap().message, format!("Scaled up replica set {name} from 0 to 3"));
    let hash = name.strip_prefix("web-").unwrap();
    assert_eq!(rs.metadata.labels.as_ref().unwrap()[HASH_LABEL], hash);
    assert_eq!(rs.spec.as_ref().unwrap().selector.match_labels.as_ref().unwrap()[HASH_LABEL], hash);
    let notes = rs.metadata.annotations.as_ref().unwrap();
    assert_eq!((notes[REVISION].as_str(), notes[DESIRED_REPLICAS].as_str(), notes[MAX_REPLICAS].as_str()), ("2", "10", "13"));
    assert_eq!((notes["note"].as_str(), notes.len()), ("x", 4));
    let Action::Patch { patch, subresource: None, .. } = &made.waves[1][0].action else { panic!() };
    assert_eq!(patch["metadata"]["annotations"][REVISION], "2");
    let st = status(&made, &d);
    let progressing = conditions::find(&st.conditions, "Progressing").unwrap();
    assert_eq!(
        (progressing.reason(), progressing.message()),
        ("NewReplicaSetCreated", format!("Created new replica set {name:?}").as_str())
    );
    assert_eq!(conditions::find(&st.conditions, "Available").unwrap().reason(), "MinimumReplicasAvailable");
}

#[test]
fn a_rollback_reuses_the_old_set_and_counts_on() {
    let d = deployment(|d| d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("v1"));
    let made = run(&d, &[set("v1", 0, 0, |_| {}), set("v2", 10, 10, |_| {})]);
    let Action::Patch { target, patch, .. } = &made.waves[0][0].action else { panic!() };
    assert_eq!(target.name, "web-v1");
    assert_eq!(patch["metadata"]["annotations"], json!({REVISION: "3", REVISION_HISTORY: "1"}));
    assert_eq!(patch["spec"]["replicas"], 3);
}

#[test]
fn taken_names_are_hashed_anew() {
    let d = deployment(|_| {});
    let name = format!("web-{}", template_hash(&d.spec.as_ref().unwrap().template, None));
    let stranger = set("v1", 1, 1, |rs| {
        rs["metadata"]["name"] = json!(name);
        rs["metadata"]["ownerReferences"] = json!([]);
        rs["metadata"]["labels"] = json!({});
    });
    let made = run(&d, std::slice::from_ref(&stranger));
    assert!(sizes(&made).is_empty());
    let d2 = Deployment { status: Some(status(&made, &d)), ..d };
    assert_eq!(d2.status.as_ref().unwrap().collision_count, Some(1));
    assert_eq!(sizes(&run(&d2, &[stranger])), ["new: 10"]);
}

#[test]
fn scaling_in_the_midst_of_a_rollout_is_in_proportion() {
    let d = |n: i32| deployment(move |d| d["spec"]["replicas"] = json!(n));
    for (replicas, sets, want) in [
        // Upstream's example: 10 wanted, surge 3: 8 old and 5 new; 15 wanted makes 11 and 7.
        (15, vec![set("v1", 8, 8, |_| {}), set("v2", 5, 0, |_| {})], vec!["web-v1: 11", "web-v2: 7"]),
        (5, vec![set("v1", 8, 8, |_| {}), set("v2", 5, 0, |_| {})], vec!["web-v1: 5", "web-v2: 3"]),
        (0, vec![set("v1", 8, 8, |_| {}), set("v2", 5, 0, |_| {})], vec!["web-v1: 0", "web-v2: 0"]),
        (20, vec![set("v1", 0, 0, |_| {}), set("v2", 10, 10, |_| {})], vec!["web-v2: 20"]),
        (20, vec![set("v1", 10, 10, |_| {})], vec!["web-v1: 20"]),
        // Grown only when what was let go is gone.
        (20, vec![set("v1", 8, 8, |rs| rs["status"]["replicas"] = json!(9)), set("v2", 5, 0, |_| {})], vec![]),
    ] {
        assert_eq!(sizes(&run(&d(replicas), &sets)), want, "to {replicas}");
    }
}

#[test]
fn a_paused_one_scales_but_does_not_roll() {
    let paused = deployment(|d| {
        counted(d);
        d["spec"]["paused"] = json!(true);
    });
    let made = run(&paused, &[set("v1", 10, 10, |_| {})]);
    assert!(sizes(&made).is_empty());
    let st = status(&made, &paused);
    assert_eq!(conditions::find(&st.conditions, "Progressing").unwrap().message(), "Deployment is paused");
    let st = k8s_openapi::api::apps::v1::DeploymentStatus { updated_replicas: Some(10), ..st };
    let resumed = Deployment { status: Some(st), ..deployment(|_| {}) };
    let st = status(&run(&resumed, &[set("v1", 10, 10, |_| {}), set("v2", 3, 0, |_| {})]), &resumed);
    assert_eq!(conditions::find(&st.conditions, "Progressing").unwrap().reason(), "DeploymentResumed");
    let more = deployment(|d| {
        d["spec"]["paused"] = json!(true);
        d["spec"]["replicas"] = json!(12);
    });
    assert_eq!(sizes(&run(&more, &[set("v1", 10, 10, |_| {})])), ["web-v1: 12"]);
}

#[test]
fn recreate_waits_until_no_old_pod_runs() {
    let d = deployment(|d| d["spec"]["strategy"] = json!({"type": "Recreate"}));
    assert_eq!(sizes(&run(&d, &[set("v1", 10, 10, |_| {})])), ["web-v1: 0"]);
    let leaving = set("v1", 0, 0, |rs| rs["status"]["terminatingReplicas"] = json!(1));
    assert!(sizes(&run(&d, &[leaving])).is_empty(), "a terminating pod still runs");
    let unobserved = set("v1", 0, 0, |rs| rs["metadata"]["generation"] = json!(2));
    assert!(sizes(&run(&d, &[unobserved])).is_empty(), "it may still make some");
    assert_eq!(sizes(&run(&d, &[set("v1", 0, 0, |_| {})])), ["new: 10"]);
}

#[test]
fn the_deadline_is_told_when_it_passes_and_what_stops_pods_is_passed_on() {
    let with = |updated: &'static str| {
        deployment(move |d| {
            d["metadata"]["annotations"] = json!({REVISION: "2"});
            d["status"] = json!({"replicas": 13, "updatedReplicas": 5, "readyReplicas": 8, "availableReplicas": 8, "unavailableReplicas": 5,
                "conditions": [{"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated", "message": "m",
                    "lastUpdateTime": updated, "lastTransitionTime": updated}]});
        })
    };
    let failing = set("v2", 5, 0, |rs| {
        rs["status"]["conditions"] = json!([{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "no quota"}]);
    });
    let sets = [set("v1", 8, 8, |_| {}), failing];
    let early = with("2026-01-01T00:55:00Z");
    let made = run(&early, &sets);
    assert_eq!(made.requeue_after, Some(std::time::Duration::from_secs(301)));
    let st = status(&made, &early);
    assert_eq!(conditions::find(&st.conditions, "ReplicaFailure").unwrap().message(), "no quota");
    let late = with("2026-01-01T00:49:59Z");
    let st = status(&run(&late, &sets), &late);
    let p = conditions::find(&st.conditions, "Progressing").unwrap();
    assert_eq!(
        (p.status(), p.reason(), p.message()),
        ("False", "ProgressDeadlineExceeded", r#"ReplicaSet "web-v2" has timed out progressing."#)
    );
    let done = run(&late, &[set("v1", 0, 0, |_| {}), set("v2", 10, 10, |_| {})]);
    let st = status(&done, &late);
    let p = conditions::find(&st.conditions, "Progressing").unwrap();
    assert_eq!((p.reason(), p.message()), ("NewReplicaSetAvailable", r#"ReplicaSet "web-v2" has successfully progressed."#));
    assert_eq!((st.replicas, st.updated_replicas, st.available_replicas, st.unavailable_replicas), (Some(10), Some(10), Some(10), None));
}

#[test]
fn history_is_kept_to_its_limit_and_never_loses_a_set_that_has_pods() {
    let d = deployment(|d| d["spec"]["revisionHistoryLimit"] = json!(1));
    let sets = [
        set("v0", 0, 0, |_| {}),
        set("v1", 0, 0, |rs| rs["status"]["replicas"] = json!(1)),
        set("v3", 0, 0, |rs| rs["metadata"]["annotations"][REVISION] = json!("3")),
        set("v2", 10, 10, |rs| rs["metadata"]["annotations"][REVISION] = json!("9")),
    ];
    let gone = |made: &Plan| -> Vec<String> {
        made.actions().filter(|a| matches!(a, Action::Delete { .. })).map(|a| a.target().unwrap().name.clone()).collect()
    };
    assert!(gone(&run(&d, &sets)).is_empty(), "not complete while an old pod is left");
    let mut settled = sets.clone();
    settled[1].status.as_mut().unwrap().replicas = 0;
    assert_eq!(gone(&run(&d, &settled)), ["web-v0", "web-v1"]);
}

#[test]
fn a_set_that_cannot_be_made_is_told_in_the_condition() {
    let d = deployment(|_| {});
    let s = Snapshot { deployment: &d, sets: &[], create_failure: Some("exceeded quota") };
    let st = status(&plan(&s, &cx()).0, &d);
    let p = conditions::find(&st.conditions, "Progressing").unwrap();
    assert_eq!((p.status(), p.reason()), ("False", "ReplicaSetCreateError"));
    assert!(p.message().ends_with(": exceeded quota"), "{}", p.message());
}
