//! The controllers together, over a server in memory and paused time.

use std::sync::{Arc, Mutex};

use client::Informer;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use plan::invariants;
use serde_json::{Value, json};

mod cluster;

use cluster::Cluster;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn deployment(replicas: i32) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default", "generation": 1},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}}})
}

fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"clusterIP": "10.43.0.9", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}})
}

fn done(c: &Cluster, replicas: i64) -> bool {
    let d = &c.objects("/apis/apps/v1/deployments")[0];
    let status = &d["status"];
    let progressed = status["conditions"].as_array().into_iter().flatten().any(|x| x["reason"] == "NewReplicaSetAvailable");
    progressed
        && status["observedGeneration"] == d["metadata"]["generation"]
        && (&status["availableReplicas"], &status["updatedReplicas"], &status["replicas"])
            == (&replicas.into(), &replicas.into(), &replicas.into())
}

fn ready_endpoints(c: &Cluster) -> usize {
    let slices = c.objects("/apis/discovery.k8s.io/v1/endpointslices");
    slices.iter().flat_map(|s| s["endpoints"].as_array().into_iter().flatten()).filter(|e| e["conditions"]["ready"] == true).count()
}

#[tokio::test(start_paused = true)]
async fn a_deployment_becomes_ready_pods_behind_a_service_and_goes_with_all_it_owns() {
    let (c, ended) = Cluster::start(&["n1", "n2"]).await;
    c.create("/api/v1/namespaces/default/services", service()).await;
    c.create(DEPLOYMENTS, deployment(4)).await;
    c.until("the rollout is done", |c| done(c, 4)).await;
    c.until("all four are published", |c| ready_endpoints(c) == 4).await;
    let subsets = c.objects("/api/v1/endpoints")[0]["subsets"].clone();
    assert_eq!(subsets[0]["addresses"].as_array().map(Vec::len), Some(4), "{subsets}");
    assert_eq!(subsets[0]["ports"], json!([{"port": 8080, "protocol": "TCP"}]));

    let pods = c.objects("/api/v1/pods");
    for node in ["n1", "n2"] {
        assert_eq!(pods.iter().filter(|p| p["spec"]["nodeName"] == node).count(), 2, "spread over {node}");
    }
    let set = c.objects("/apis/apps/v1/replicasets")[0]["metadata"]["name"].as_str().unwrap().to_string();
    let pod = pods[0]["metadata"]["name"].as_str().unwrap().to_string();
    let node = pods[0]["spec"]["nodeName"].as_str().unwrap();
    for event in [
        format!("ScalingReplicaSet: Scaled up replica set {set} from 0 to 4"),
        format!("SuccessfulCreate: Created pod: {pod}"),
        format!("Scheduled: Successfully assigned default/{pod} to {node}"),
    ] {
        c.until(&event, |c| c.events().contains(&event)).await;
    }
    assert_eq!(c.objects("/api/v1/serviceaccounts")[0]["metadata"]["name"], "default");
    assert_eq!(c.objects("/api/v1/configmaps")[0]["data"]["ca.crt"], "PEM");

    c.client().delete_path(&format!("{DEPLOYMENTS}/web"), &Default::default()).await.unwrap();
    c.until("sets and pods are collected", |c| c.objects("/apis/apps/v1/replicasets").is_empty() && c.objects("/api/v1/pods").is_empty())
        .await;
    c.until("nobody is published", |c| ready_endpoints(c) == 0).await;
    c.client().delete_path("/api/v1/namespaces/default/services/web", &Default::default()).await.unwrap();
    c.until("the slices and the Endpoints go", |c| {
        c.objects("/apis/discovery.k8s.io/v1/endpointslices").is_empty() && c.objects("/api/v1/endpoints").is_empty()
    })
    .await;
    c.stop.cancel();
    ended.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_rolling_update_keeps_its_bounds_as_a_watcher_sees_them() {
    let (c, _) = Cluster::start(&["n1"]).await;
    c.create(DEPLOYMENTS, deployment(5)).await;
    c.until("the first rollout is done", |c| done(c, 5)).await;

    let pods: Informer<Pod> = Informer::start(&c.client());
    pods.ready().await;
    let wanted: Deployment = serde_json::from_value(deployment(5)).unwrap();
    let broken: Arc<Mutex<Vec<String>>> = Arc::default();
    let (seen, watched) = (broken.clone(), pods.clone());
    pods.on_change(move |_| {
        let snapshot = watched.snapshot();
        let all: Vec<&Pod> = snapshot.iter().map(|p| &**p).collect();
        if let Err(why) = invariants::rollout_bounds(&wanted, &all, true) {
            seen.lock().unwrap().push(why);
        }
    });
    for image in ["v2", "v3", "v1"] {
        let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
        c.patch(&format!("{DEPLOYMENTS}/web"), patch).await;
        c.until(image, |c| done(c, 5) && c.objects("/api/v1/pods").iter().all(|p| p["spec"]["containers"][0]["image"] == image)).await;
    }
    assert_eq!(*broken.lock().unwrap(), Vec::<String>::new());
    let sets = c.objects("/apis/apps/v1/replicasets");
    assert_eq!(sets.len(), 3, "the third update rolled back to the first set");
    let revisions: Vec<&str> =
        sets.iter().filter_map(|s| s["metadata"]["annotations"]["deployment.kubernetes.io/revision"].as_str()).collect();
    assert!(revisions.contains(&"4") && !revisions.contains(&"1"), "{revisions:?}");
    assert_eq!(c.objects("/apis/apps/v1/deployments")[0]["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "4");

    c.patch(&format!("{DEPLOYMENTS}/web"), json!({"spec": {"replicas": 2}})).await;
    c.until("scaled down", |c| done(c, 2) && c.objects("/api/v1/pods").len() == 2).await;
    c.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn what_fits_nowhere_is_told_and_bound_when_there_is_room() {
    let (c, _) = Cluster::start(&["n1"]).await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "big", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "3"}}}]}});
    c.create("/api/v1/namespaces/default/pods", pod.clone()).await;
    c.until("the first is bound", |c| c.objects("/api/v1/pods")[0]["spec"]["nodeName"] == "n1").await;
    let mut second = pod;
    second["metadata"]["name"] = json!("late");
    c.create("/api/v1/namespaces/default/pods", second).await;
    let message =
        "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    c.until("the event", |c| c.events().contains(&format!("FailedScheduling: {message}"))).await;
    let count = |c: &Cluster| c.objects("/api/v1/events").iter().find(|e| e["reason"] == "FailedScheduling").map(|e| e["count"].clone());
    assert_eq!(count(&c), Some(json!(1)), "told once");
    let condition = c.objects("/api/v1/pods")[1]["status"]["conditions"][0].clone();
    assert_eq!((&condition["reason"], &condition["message"]), (&json!("Unschedulable"), &json!(message)));
    c.client().delete_path("/api/v1/namespaces/default/pods/big", &Default::default()).await.unwrap();
    c.until("the second is bound", |c| c.objects("/api/v1/pods")[0]["spec"]["nodeName"] == "n1").await;
    c.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_loses_its_pods_to_one_that_speaks() {
    let (c, _) = Cluster::start(&["n1"]).await;
    let dying = c.node("n2").await;
    c.create(DEPLOYMENTS, deployment(4)).await;
    c.until("the rollout is done", |c| done(c, 4)).await;
    dying.abort();
    let on = |c: &Cluster, node: &str| c.objects("/api/v1/pods").iter().filter(|p| p["spec"]["nodeName"] == node).count();
    assert_eq!(on(&c, "n2"), 2);
    c.until("its pods run elsewhere", |c| on(c, "n1") == 4 && on(c, "n2") == 0 && done(c, 4)).await;
    let node = c.objects("/api/v1/nodes").into_iter().find(|n| n["metadata"]["name"] == "n2").unwrap();
    assert_eq!(node["status"]["conditions"][0]["status"], "Unknown");
    assert_eq!(node["spec"]["taints"][0]["key"], "node.kubernetes.io/unreachable");
    c.until("the event", |c| c.events().iter().any(|e| e == "NodeNotReady: Node n2 status is now: NodeNotReady")).await;
    let back = tokio::spawn({
        let c = c.clone();
        async move {
            c.patch(
                "/api/v1/nodes/n2/status",
                json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-06-01T00:00:00Z"}]}}),
            )
            .await
        }
    });
    back.await.unwrap();
    c.until("the taints go", |c| c.objects("/api/v1/nodes").iter().all(|n| n["spec"]["taints"].is_null())).await;
    c.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_refused_pod_is_told_on_its_owners_and_made_later() {
    let (c, _) = Cluster::start(&["n1"]).await;
    *c.refuse.lock().unwrap() = Some(("POST /api/v1/namespaces/default/pods".into(), "exceeded quota: small".into()));
    c.create(DEPLOYMENTS, deployment(2)).await;
    c.until("the event", |c| c.events().iter().any(|e| e == "FailedCreate: Error creating: exceeded quota: small")).await;
    let told = |c: &Cluster, collection: &str| {
        let conditions = c.objects(collection)[0]["status"]["conditions"].clone();
        conditions.as_array().into_iter().flatten().any(|x| x["type"] == "ReplicaFailure" && x["reason"] == "FailedCreate")
    };
    c.until("both conditions", |c| told(c, "/apis/apps/v1/replicasets") && told(c, "/apis/apps/v1/deployments")).await;
    *c.refuse.lock().unwrap() = None;
    c.until("it goes on", |c| done(c, 2)).await;
    assert!(!told(&c, "/apis/apps/v1/replicasets"));
    c.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_namespace_is_emptied_before_it_goes() {
    let (c, _) = Cluster::start(&["n1"]).await;
    let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "finalizers": ["held-by-spec"]}, "spec": {"finalizers": ["kubernetes"]}});
    c.create("/api/v1/namespaces", shop).await;
    c.until("its account", |c| c.objects("/api/v1/serviceaccounts").iter().any(|a| a["metadata"]["namespace"] == "shop")).await;
    let mut map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "shop", "finalizers": ["x/held"]}});
    c.create("/api/v1/namespaces/shop/configmaps", map.clone()).await;
    c.client().delete_path("/api/v1/namespaces/shop", &Default::default()).await.unwrap();
    let remaining = |c: &Cluster| {
        c.objects("/api/v1/namespaces").iter().find(|n| n["metadata"]["name"] == "shop").map(|n| n["status"]["conditions"].to_string())
    };
    c.until("what holds it up", |c| remaining(c).is_some_and(|t| t.contains("x/held in 1 resource instances"))).await;
    map["metadata"]["finalizers"] = json!([]);
    c.patch("/api/v1/namespaces/shop/configmaps/settings", json!({"metadata": {"finalizers": null}})).await;
    c.until("it goes", |c| remaining(c).is_none()).await;
    for collection in ["/api/v1/serviceaccounts", "/api/v1/configmaps"] {
        assert!(c.objects(collection).iter().all(|o| o["metadata"]["namespace"] != "shop"), "{collection}");
    }
    c.stop.cancel();
}
