use jiff::Timestamp;
use serde_json::{Value, json};

use crate::table;

const NOW: &str = "2026-01-01T01:00:00Z";

/// The cells of an object that is five minutes old, without name and age, as text.
fn cells(kind: &str, mut object: Value) -> String {
    let row = table::find(kind).unwrap();
    object["metadata"]["name"] = json!("x");
    object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:55:00Z");
    let cells = (row.hooks.cells)(&object, NOW.parse::<Timestamp>().unwrap());
    assert_eq!(cells.len(), row.columns.len());
    let keep = |name: &str| !matches!(name, "Name" | "Age");
    let shown =
        cells.iter().zip(row.columns).filter(|(_, c)| keep(c.name)).map(|(v, _)| v.as_str().map_or_else(|| v.to_string(), String::from));
    let age = cells.iter().zip(row.columns).find(|(_, c)| c.name == "Age");
    assert!(age.is_none_or(|(v, _)| v == "5m"), "{age:?}");
    shown.collect::<Vec<_>>().join(" | ")
}

/// Ready, Status and Restarts of a pod with `n` containers and some init containers.
fn pod(n: usize, init: Value, status: Value) -> String {
    let containers: Vec<Value> = (0..n).map(|i| json!({"name": format!("c{i}")})).collect();
    let all = cells("pod", json!({"spec": {"containers": containers, "initContainers": init}, "status": status}));
    all.split(" | ").take(3).collect::<Vec<_>>().join(" | ")
}

fn running(ready: bool) -> Value {
    json!({"ready": ready, "restartCount": 0, "state": {"running": {}}})
}

fn waiting(reason: &str) -> Value {
    json!({"restartCount": 0, "state": {"waiting": {"reason": reason}}})
}

fn ended(code: i64, reason: &str) -> Value {
    json!({"restartCount": 0, "state": {"terminated": {"exitCode": code, "reason": reason}}})
}

#[test]
fn pods_are_told_in_a_word() {
    let crashed = json!({"ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:50:00Z"}}});
    let side = json!([{"name": "s", "restartPolicy": "Always"}]);
    let one = json!([{"name": "i"}]);
    for (n, init, status, expect) in [
        (1, json!([]), json!({"phase": "Pending"}), "0/1 | Pending | 0"),
        (1, json!([]), json!({"phase": "Running", "containerStatuses": [running(true)]}), "1/1 | Running | 0"),
        (2, json!([]), json!({"phase": "Running", "containerStatuses": [running(true), running(false)]}), "1/2 | Running | 0"),
        (1, json!([]), json!({"phase": "Pending", "containerStatuses": [waiting("ContainerCreating")]}), "0/1 | ContainerCreating | 0"),
        (1, json!([]), json!({"phase": "Running", "containerStatuses": [crashed]}), "0/1 | CrashLoopBackOff | 3 (10m ago)"),
        (1, json!([]), json!({"phase": "Succeeded", "containerStatuses": [ended(0, "Completed")]}), "0/1 | Completed | 0"),
        (1, json!([]), json!({"phase": "Failed", "containerStatuses": [ended(3, "")]}), "0/1 | ExitCode:3 | 0"),
        (1, json!([]), json!({"phase": "Failed", "containerStatuses": [ended(137, "OOMKilled")]}), "0/1 | OOMKilled | 0"),
        (1, json!([]), json!({"phase": "Failed", "reason": "Evicted"}), "0/1 | Evicted | 0"),
        (
            2,
            json!([]),
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [ended(0, "Completed"), running(true)]}),
            "1/2 | Running | 0",
        ),
        (2, json!([]), json!({"phase": "Running", "containerStatuses": [ended(0, "Completed"), running(true)]}), "1/2 | NotReady | 0"),
        (
            1,
            one.clone(),
            json!({"phase": "Pending", "initContainerStatuses": [waiting("PodInitializing")], "containerStatuses": [waiting("PodInitializing")]}),
            "0/1 | Init:0/1 | 0",
        ),
        (1, one.clone(), json!({"phase": "Pending", "initContainerStatuses": [running(false)]}), "0/1 | Init:0/1 | 0"),
        (
            1,
            one.clone(),
            json!({"phase": "Pending", "initContainerStatuses": [waiting("CrashLoopBackOff")]}),
            "0/1 | Init:CrashLoopBackOff | 0",
        ),
        (1, one.clone(), json!({"phase": "Pending", "initContainerStatuses": [ended(1, "Error")]}), "0/1 | Init:Error | 0"),
        (1, one.clone(), json!({"phase": "Pending", "initContainerStatuses": [ended(1, "")]}), "0/1 | Init:ExitCode:1 | 0"),
        (
            1,
            one,
            json!({"phase": "Pending", "initContainerStatuses": [ended(0, "Completed")], "containerStatuses": [waiting("PodInitializing")]}),
            "0/1 | PodInitializing | 0",
        ),
        (
            1,
            side,
            json!({"phase": "Running", "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "restartCount": 2, "state": {"running": {}}}], "containerStatuses": [running(true)]}),
            "2/2 | Running | 2",
        ),
        (
            1,
            json!([]),
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated", "status": "False"}]}),
            "0/1 | SchedulingGated | 0",
        ),
    ] {
        assert_eq!(pod(n, init, status.clone()), expect, "{status}");
    }
    let leaving = json!({"metadata": {"deletionTimestamp": NOW}, "spec": {"containers": [{}], "nodeName": "n1"},
        "status": {"phase": "Running", "podIP": "10.1.0.2", "podIPs": [{"ip": "10.1.0.2"}], "containerStatuses": [running(true)]}});
    assert_eq!(cells("pod", leaving), "1/1 | Terminating | 0 | 10.1.0.2 | n1 | <none> | <none>");
    let gated = json!({"spec": {"readinessGates": [{"conditionType": "a"}, {"conditionType": "b"}]}, "status": {"phase": "Running", "conditions": [{"type": "a", "status": "True"}]}});
    assert_eq!(cells("pod", gated), "0/0 | Running | 0 | <none> | <none> | <none> | 1/2");
}

#[test]
fn services_and_what_is_behind_them() {
    for (spec, status, expect) in [
        (
            json!({"type": "ClusterIP", "clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1"], "ports": [{"port": 443, "protocol": "TCP"}]}),
            json!({}),
            "ClusterIP | 10.43.0.1 | <none> | 443/TCP | <none>",
        ),
        (
            json!({"type": "NodePort", "clusterIP": "10.43.0.2", "selector": {"app": "a", "b": "c"}, "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}),
            json!({}),
            "NodePort | 10.43.0.2 | <none> | 80:30080/TCP,53/UDP | app=a,b=c",
        ),
        (json!({"type": "LoadBalancer", "clusterIP": "10.43.0.3"}), json!({}), "LoadBalancer | 10.43.0.3 | <pending> | <none> | <none>"),
        (
            json!({"type": "LoadBalancer", "clusterIP": "10.43.0.3", "externalIPs": ["9.9.9.9"]}),
            json!({"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}),
            "LoadBalancer | 10.43.0.3 | 1.2.3.4,9.9.9.9 | <none> | <none>",
        ),
        (json!({"type": "ClusterIP", "clusterIP": "None"}), json!({}), "ClusterIP | None | <none> | <none> | <none>"),
        (json!({"type": "ExternalName", "externalName": "a.example"}), json!({}), "ExternalName | <none> | a.example | <none> | <none>"),
    ] {
        assert_eq!(cells("service", json!({"spec": spec, "status": status})), expect);
    }
    let subsets = json!([{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"port": 80}, {"port": 81}]}]);
    assert_eq!(cells("endpoints", json!({"subsets": subsets})), "10.0.0.1:80,10.0.0.2:80,10.0.0.1:81 + 1 more...");
    assert_eq!(cells("endpoints", json!({})), "<none>");
    let slice =
        json!({"addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}]});
    assert_eq!(cells("endpointslice", slice), "IPv4 | 80 | 10.0.0.1,10.0.0.2");
    assert_eq!(cells("endpointslice", json!({"addressType": "IPv4"})), "IPv4 | <unset> | <unset>");
    let ingress = json!({"spec": {"ingressClassName": "c", "rules": [{"host": "a"}, {"host": "b"}, {}], "tls": [{}]}, "status": {"loadBalancer": {"ingress": [{"ip": "1.1.1.1"}]}}});
    assert_eq!(cells("ingress", ingress), "c | a,b | 1.1.1.1 | 80, 443");
    assert_eq!(cells("ingress", json!({"spec": {"rules": [{}]}})), "<none> | * |  | 80");
    assert_eq!(
        cells("ingressclass", json!({"spec": {"controller": "x.io/c", "parameters": {"kind": "K", "apiGroup": "g.io", "name": "n"}}})),
        "x.io/c | K.g.io/n"
    );
}

#[test]
fn workloads() {
    let template = json!({"spec": {"containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "j:2"}]}});
    let spec = json!({"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template});
    let status = json!({"replicas": 4, "readyReplicas": 2, "updatedReplicas": 1, "availableReplicas": 2});
    assert_eq!(cells("deployment", json!({"spec": spec, "status": status})), "2/3 | 1 | 2 | a,b | i:1,j:2 | app=web");
    assert_eq!(cells("replicaset", json!({"spec": spec, "status": status})), "3 | 4 | 2 | a,b | i:1,j:2 | app=web");
    let revision = json!({"metadata": {"ownerReferences": [{"controller": true, "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db"}]}, "revision": 2});
    assert_eq!(cells("controllerrevision", revision), "statefulset.apps/db | 2");
}

#[test]
fn nodes_and_events() {
    let node = json!({"metadata": {"labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "nodeInfo": {"kubeletVersion": "v1.33.0", "osImage": "Debian", "kernelVersion": "6.1"}}});
    assert_eq!(
        cells("node", node),
        "Ready,SchedulingDisabled | control-plane,worker | v1.33.0 | 10.0.0.1 | <none> | Debian | 6.1 | <unknown>"
    );
    assert!(cells("node", json!({"status": {}})).starts_with("Unknown | <none>"));
    let event = json!({"type": "Normal", "reason": "Pulled", "message": " done ", "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec"},
        "source": {"component": "kubelet", "host": "n1"}, "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:59:00Z", "count": 4});
    let expect = "60s | Normal | Pulled | pod/p | spec | kubelet, n1 | done | 60m | 4";
    assert_eq!(cells("events", event.clone()), expect);
    let mut new = event;
    crate::events::from_core(&mut new);
    assert_eq!(cells("events.events.k8s.io", new), expect);
    let series = json!({"type": "Warning", "reason": "R", "involvedObject": {"kind": "Node"}, "eventTime": "2026-01-01T00:30:00.000000Z",
        "series": {"count": 7, "lastObservedTime": "2026-01-01T00:59:30.000000Z"}, "reportingComponent": "c"});
    assert_eq!(cells("events", series), "30s | Warning | R | node |  | c |  | 30m | 7");
}

#[test]
fn the_rest() {
    assert_eq!(cells("configmap", json!({"data": {"a": "1"}, "binaryData": {"b": ""}})), "2");
    assert_eq!(cells("secret", json!({"type": "Opaque", "data": {"a": ""}})), "Opaque | 1");
    assert_eq!(cells("namespace", json!({"status": {"phase": "Active"}})), "Active");
    assert_eq!(cells("serviceaccount", json!({})), "0");
    assert_eq!(cells("lease", json!({"spec": {"holderIdentity": "n1"}})), "n1");
    assert_eq!(cells("runtimeclass", json!({"handler": "vm"})), "vm");
    assert_eq!(cells("priorityclass", json!({"value": 5})), "5 | false | PreemptLowerPriority");
    let quota = json!({"status": {"hard": {"requests.cpu": "2", "limits.cpu": "4", "pods": "3"}, "used": {"pods": "1"}}});
    assert_eq!(cells("quota", quota), "pods: 1/3, requests.cpu: 0/2 | limits.cpu: 0/4");
    let binding = json!({"roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "User", "name": "v"},
        {"kind": "Group", "name": "g"}, {"kind": "ServiceAccount", "name": "s", "namespace": "ns"}]});
    assert_eq!(cells("rolebinding", binding), "ClusterRole/view | u, v | g | ns/s");
    assert_eq!(cells("role", json!({})), "2026-01-01T00:55:00Z");
}
