use std::sync::Arc;

use base::Ids;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::*;
use crate::invariants;

fn node(name: &str, edit: impl Fn(&mut Value)) -> Arc<Node> {
    let mut n = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": if name < "n2" { "a" } else { "b" }}},
        "spec": {}, "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "4", "ephemeral-storage": "10Gi"}}
    });
    edit(&mut n);
    Arc::new(serde_json::from_value(n).unwrap())
}

fn pod(name: &str, edit: impl Fn(&mut Value)) -> Pod {
    let mut p = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "500m"}}}]}
    });
    edit(&mut p);
    serde_json::from_value(p).unwrap()
}

fn cluster(nodes: &[Arc<Node>]) -> Cluster {
    let mut c = Cluster::default();
    nodes.iter().for_each(|n| c.set_node(n.clone()));
    c
}

fn why(c: &Cluster, pod: &Pod) -> String {
    explain(&place(c, pod).expect_err("fits"))
}

#[test]
fn what_fits_nowhere_says_why_in_upstreams_words() {
    let plain = node("n1", |_| {});
    let too_big = pod("p", |p| p["spec"]["containers"][0]["resources"]["requests"] = json!({"cpu": "3"}));
    assert_eq!(
        why(&cluster(std::slice::from_ref(&plain)), &too_big),
        "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
    );
    let hungry = pod("p", |p| p["spec"]["containers"][0]["resources"]["requests"] = json!({"cpu": "3", "memory": "1Ti"}));
    let tainted = node("n2", |n| n["spec"]["taints"] = json!([{"key": "dedicated", "value": "db", "effect": "NoSchedule"}]));
    let cordoned = node("n3", |n| n["spec"]["unschedulable"] = json!(true));
    assert_eq!(
        why(&cluster(&[plain.clone(), tainted, cordoned]), &hungry),
        "0/3 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 node(s) had untolerated taint {dedicated: db}, \
         1 node(s) were unschedulable. preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, \
         2 Preemption is not helpful for scheduling."
    );
    let elsewhere = pod("p", |p| p["spec"]["nodeSelector"] = json!({"disk": "ssd"}));
    assert_eq!(
        why(&cluster(&[plain]), &elsewhere),
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. preemption: 0/1 nodes are available: \
         1 Preemption is not helpful for scheduling."
    );
    assert_eq!(why(&cluster(&[]), &elsewhere), "no nodes available to schedule pods");
}

#[test]
fn a_plan_binds_or_tells_the_pod() {
    let cx = Cx { now: base::Timestamp::UNIX_EPOCH, ids: Ids::seeded(1) };
    let (made, reasons) = plan(&cluster(&[node("n1", |_| {})]), &pod("web-x", |_| {}), &cx);
    assert!(reasons.is_empty());
    let step = made.steps().next().unwrap();
    assert!(matches!(&step.action, Action::Bind { node, .. } if node == "n1"));
    assert_eq!(step.done.as_ref().unwrap().message, "Successfully assigned default/web-x to n1");

    let (made, reasons) = plan(&cluster(&[]), &pod("web-x", |_| {}), &cx);
    assert_eq!((reasons[0].code, reasons[0].severity), ("FailedScheduling", crate::Severity::Warning));
    let Some(Action::Patch { patch, .. }) = made.actions().next() else { panic!() };
    assert_eq!(patch["status"]["conditions"][0]["reason"], "Unschedulable");
    // Told once: the same message again is no write.
    let mut told = pod("web-x", |_| {});
    told.status = Some(serde_json::from_value(patch["status"].clone()).unwrap());
    let later = Cx { now: "2026-01-01T00:00:00Z".parse().unwrap(), ..cx };
    assert!(plan(&cluster(&[]), &told, &later).0.is_empty());
    for foreign in [json!({"schedulerName": "mine"}), json!({"schedulingGates": [{"name": "g"}]}), json!({"nodeName": "n1"})] {
        let p = pod("p", |p| p["spec"].as_object_mut().unwrap().extend(foreign.as_object().unwrap().clone()));
        assert!(!wants(&p), "{foreign}");
    }
}

#[test]
fn hosts_ports_tolerations_and_affinity() {
    let c =
        cluster(&[node("n1", |_| {}), node("n2", |n| n["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoExecute"}]))]);
    for (tolerations, fits) in [
        (json!([{"key": "k", "operator": "Exists"}]), true),
        (json!([{"operator": "Exists"}]), true),
        (json!([{"key": "k", "value": "v", "effect": "NoExecute"}]), true),
        (json!([{"key": "k", "value": "w"}]), false),
        (json!([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]), false),
    ] {
        let p = pod("p", |p| {
            p["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "n2"});
            p["spec"]["tolerations"] = tolerations.clone();
        });
        assert_eq!(place(&c, &p).is_ok(), fits, "{tolerations}");
    }

    let mut c = cluster(&[node("n1", |_| {})]);
    let with_port = |name: &str, ip: &str| {
        pod(name, |p| p["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 80, "hostIP": ip}]))
    };
    c.assume(&with_port("a", "10.0.0.1"), "n1");
    assert!(place(&c, &with_port("b", "10.0.0.2")).is_ok());
    assert!(why(&c, &with_port("b", "")).contains("1 node(s) didn't have free ports for the requested pod ports"));
    c.remove_pod("a");
    assert!(place(&c, &with_port("b", "")).is_ok());

    let apart = |name: &str| {
        pod(name, |p| {
            p["spec"]["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}});
        })
    };
    let mut c = cluster(&[node("n1", |_| {}), node("n2", |_| {})]);
    c.assume(&apart("a"), "n1");
    assert_eq!(place(&c, &apart("b")).unwrap(), "n2");
    assert_eq!(place(&c, &pod("plain", |_| {})).unwrap(), "n2", "a placed pod's anti-affinity holds for those who have none");
    c.assume(&apart("b"), "n2");
    assert!(why(&c, &apart("c")).contains("2 node(s) didn't match pod anti-affinity rules"));
    assert!(why(&c, &pod("plain", |_| {})).contains("2 node(s) didn't satisfy existing pods anti-affinity rules"));

    let together = pod("t", |p| {
        p["metadata"]["labels"] = json!({"app": "cache"});
        p["spec"]["affinity"] = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "cache"}}}]}});
    });
    let mut c = cluster(&[node("n1", |_| {}), node("n2", |_| {})]);
    assert!(place(&c, &together).is_ok(), "the first of its kind");
    c.assume(&pod("old", |p| p["metadata"]["labels"] = json!({"app": "cache"})), "n2");
    assert_eq!(place(&c, &together).unwrap(), "n2");
}

#[test]
fn topology_spread_keeps_the_skew() {
    let spread = |name: &str, when: &'static str| {
        pod(name, move |p| {
            p["spec"]["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": when,
                "labelSelector": {"matchLabels": {"app": "web"}}}]);
        })
    };
    let full = node("n2", |n| n["status"]["allocatable"]["pods"] = json!("1"));
    let mut c = cluster(&[node("n1", |_| {}), full]);
    for (name, want) in [("a", "n1"), ("b", "n2"), ("c", "n1")] {
        assert_eq!(place(&c, &spread(name, "DoNotSchedule")).unwrap(), want);
        c.assume(&spread(name, "DoNotSchedule"), want);
    }
    let message = why(&c, &spread("d", "DoNotSchedule"));
    assert!(message.contains("1 Too many pods") && message.contains("1 node(s) didn't match pod topology spread constraints"), "{message}");
    assert_eq!(place(&c, &spread("d", "ScheduleAnyway")).unwrap(), "n1");
}

#[test]
fn siblings_spread_and_wishes_count() {
    let owned = |name: &str| {
        pod(name, |p| {
            p["metadata"]["ownerReferences"] =
                json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}])
        })
    };
    let mut c = cluster(&[node("n1", |_| {}), node("n2", |_| {}), node("n3", |_| {})]);
    let mut places = Vec::new();
    for name in ["a", "b", "c"] {
        let at = place(&c, &owned(name)).unwrap().to_string();
        c.assume(&owned(name), &at);
        places.push(at);
    }
    places.sort();
    assert_eq!(places, ["n1", "n2", "n3"]);
    let wish = pod("w", |p| {
        p["spec"]["affinity"] = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 50, "preference": {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n3"]}]}}]}});
    });
    assert_eq!(place(&c, &wish).unwrap(), "n3");
}

/// Random pods come and go; at every step no node holds more than it has.
#[test]
fn nothing_is_placed_beyond_what_a_node_has() {
    for seed in 0..200 {
        let ids = Ids::seeded(seed);
        let pick = |n: u64| ids.next_u64() % n;
        let nodes: Vec<_> = (0..1 + pick(4))
            .map(|i| {
                let (cpu, memory, pods) = (1 + pick(4), 1 + pick(8), 1 + pick(6));
                node(&format!("n{i}"), |n| {
                    n["status"]["allocatable"] = json!({"cpu": cpu.to_string(), "memory": format!("{memory}Gi"), "pods": pods.to_string()})
                })
            })
            .collect();
        let mut c = cluster(&nodes);
        let mut placed: Vec<String> = Vec::new();
        for step in 0..60 {
            if pick(4) == 0 && !placed.is_empty() {
                let gone = placed.swap_remove(pick(placed.len() as u64) as usize);
                c.remove_pod(&gone);
            } else {
                let (cpu, memory) = (pick(1500), pick(3000));
                let p = pod(&format!("p{step}"), |p| {
                    p["spec"]["containers"][0]["resources"]["requests"] =
                        json!({"cpu": format!("{cpu}m"), "memory": format!("{memory}Mi")});
                });
                if let Ok(at) = place(&c, &p) {
                    let at = at.to_string();
                    c.assume(&p, &at);
                    placed.push(objects::uid(&p).into());
                }
            }
            if let Err(broken) = invariants::within_allocatable(&c) {
                panic!("seed {seed}, step {step}: {broken}");
            }
        }
    }
}
