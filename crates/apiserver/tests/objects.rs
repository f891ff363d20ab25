//! Reading and writing objects, in process: what clients rely on and kubectl does not show.

mod common;

use std::time::Duration;

use api::Value;
use bytes::Bytes;
use common::{DEPLOYMENT, World, world};
use http::Request;
use http_body_util::BodyExt as _;
use ports::Identity;
use serde_json::json;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn config_map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "k": "v" } })
}

fn pod(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "x" }] } })
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

async fn deployment(w: &World) -> Value {
    let request = Request::post(DEPLOYMENTS).header("content-type", "application/yaml").body(Bytes::from(DEPLOYMENT)).unwrap();
    World::must(w.send(request).await)
}

/// Events of a watch as values, until it is quiet for a moment.
async fn events(w: &World, path: &str) -> Vec<Value> {
    let response = w.server.transport(common::masters()).send(Request::get(path).body(Bytes::new()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let mut all = Vec::new();
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(Duration::from_millis(300), body.frame()).await {
        all.extend_from_slice(frame.data_ref().unwrap());
    }
    all.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect()
}

fn kinds(events: &[Value]) -> Vec<String> {
    let name = |e: &Value| e["object"]["metadata"]["name"].as_str().unwrap_or_default().to_string();
    events.iter().map(|e| format!("{} {}", e["type"].as_str().unwrap(), name(e)).trim().to_string()).collect()
}

#[tokio::test]
async fn metadata_is_the_servers() {
    let w = world().await;
    let mut body = config_map("a");
    body["metadata"]["uid"] = "mine".into();
    body["metadata"]["creationTimestamp"] = "2001-01-01T00:00:00Z".into();
    body["metadata"]["selfLink"] = "/x".into();
    let made = World::must(w.call("POST", CONFIG_MAPS, body).await);
    let meta = &made["metadata"];
    assert!(meta["uid"] != "mine" && meta["creationTimestamp"] != "2001-01-01T00:00:00Z" && meta["selfLink"].is_null());
    assert_eq!(meta["namespace"], "default");
    assert_eq!(meta["managedFields"][0]["operation"], "Update");
    assert_eq!(World::must(w.get(&format!("{CONFIG_MAPS}/a")).await), made, "what was answered is what is there");

    let generated = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "generateName": "gen-" } });
    let made = World::must(w.call("POST", CONFIG_MAPS, generated).await);
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("gen-") && name.len() == 9, "{name}");

    let mut body = config_map("b");
    body["metadata"]["resourceVersion"] = "5".into();
    assert_eq!(w.call("POST", CONFIG_MAPS, body).await.message(), "resourceVersion should not be set on objects to be created");
    let mut body = config_map("b");
    body["metadata"]["namespace"] = "other".into();
    assert!(w.call("POST", CONFIG_MAPS, body).await.message().contains("does not match the namespace sent on the request"));
}

#[tokio::test]
async fn updates_are_locked_by_revision_uid_and_name() {
    let w = world().await;
    let made = World::must(w.call("POST", CONFIG_MAPS, config_map("a")).await);
    let url = format!("{CONFIG_MAPS}/a");
    let mut first = made.clone();
    first["data"]["k"] = "1".into();
    let first = World::must(w.call("PUT", &url, first).await);
    assert!(revision(&first) > revision(&made));
    assert_eq!(first["metadata"]["uid"], made["metadata"]["uid"]);

    let stale = w.call("PUT", &url, made.clone()).await;
    assert_eq!(stale.code, 409);
    assert!(stale.message().contains("the object has been modified; please apply your changes to the latest version and try again"));
    let mut unconditional = config_map("a");
    unconditional["data"]["k"] = "2".into();
    let second = World::must(w.call("PUT", &url, unconditional.clone()).await);
    assert_eq!(second["data"]["k"], "2");
    assert_eq!(World::must(w.call("PUT", &url, unconditional).await), second, "what changes nothing writes nothing");

    let mut wrong = config_map("a");
    wrong["metadata"]["uid"] = "other".into();
    let answer = w.call("PUT", &url, wrong).await;
    assert!(answer.code == 409 && answer.message().contains("Precondition failed: UID in precondition: other"), "{}", answer.text());
    assert_eq!(w.call("PUT", &url, config_map("b")).await.code, 400);
    assert_eq!(w.call("PUT", &format!("{CONFIG_MAPS}/none"), config_map("none")).await.code, 404);
    let patch = json!({ "metadata": { "resourceVersion": "1" }, "data": { "k": "3" } });
    assert_eq!(w.call("PATCH", &url, patch).await.code, 409);
}

#[tokio::test]
async fn dry_runs_change_nothing() {
    let w = world().await;
    let before = w.get(CONFIG_MAPS).await.json();
    let made = World::must(w.call("POST", &format!("{CONFIG_MAPS}?dryRun=All"), config_map("a")).await);
    assert!(made["metadata"]["uid"].is_string());
    assert_eq!(w.get(CONFIG_MAPS).await.json(), before);
    World::must(w.call("POST", CONFIG_MAPS, config_map("a")).await);
    let before = w.get(CONFIG_MAPS).await.json();
    World::must(w.call("PATCH", &format!("{CONFIG_MAPS}/a?dryRun=All"), json!({ "data": { "x": "y" } })).await);
    World::must(w.call("DELETE", &format!("{CONFIG_MAPS}/a?dryRun=All"), Value::Null).await);
    assert_eq!(w.get(CONFIG_MAPS).await.json(), before);
    assert_eq!(w.call("POST", &format!("{CONFIG_MAPS}?dryRun=Some"), config_map("b")).await.code, 422);
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let w = world().await;
    let made = deployment(&w).await;
    assert_eq!((&made["metadata"]["generation"], &made["spec"]["strategy"]["type"]), (&json!(1), &json!("RollingUpdate")));
    let url = format!("{DEPLOYMENTS}/web");
    let mut both = made.clone();
    both["spec"]["replicas"] = 9.into();
    both["status"] = json!({ "replicas": 4, "observedGeneration": 1 });
    let written = World::must(w.call("PUT", &format!("{url}/status"), both.clone()).await);
    assert_eq!(
        (&written["spec"]["replicas"], &written["status"]["replicas"], &written["metadata"]["generation"]),
        (&json!(2), &json!(4), &json!(1))
    );
    both["metadata"]["resourceVersion"] = written["metadata"]["resourceVersion"].clone();
    both["status"]["replicas"] = 7.into();
    let written = World::must(w.call("PUT", &url, both).await);
    assert_eq!(
        (&written["spec"]["replicas"], &written["status"]["replicas"], &written["metadata"]["generation"]),
        (&json!(9), &json!(4), &json!(2))
    );
    let labelled = World::must(w.call("PATCH", &url, json!({ "metadata": { "labels": { "a": "b" } } })).await);
    assert_eq!(labelled["metadata"]["generation"], 2, "metadata is nothing that is wanted");

    let scale = World::must(w.get(&format!("{url}/scale")).await);
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!("Scale"), &json!(9), &json!("app=web")));
    let scaled = World::must(w.call("PATCH", &format!("{url}/scale"), json!({ "spec": { "replicas": 3 } })).await);
    assert_eq!(scaled["spec"]["replicas"], 3);
    assert_eq!(World::must(w.get(&url).await)["spec"]["replicas"], 3);
    let mut put = scale.clone();
    assert_eq!(w.call("PUT", &format!("{url}/scale"), put.clone()).await.code, 409, "an old Scale");
    put["metadata"]["resourceVersion"] = scaled["metadata"]["resourceVersion"].clone();
    put["spec"]["replicas"] = (-1).into();
    let answer = w.call("PUT", &format!("{url}/scale"), put).await;
    assert!(answer.code == 422 && answer.message().contains("must be greater than or equal to 0"), "{}", answer.text());
}

#[tokio::test]
async fn lists_in_pages_show_one_moment() {
    let w = world().await;
    for i in 0..7 {
        World::must(w.call("POST", CONFIG_MAPS, config_map(&format!("c{i}"))).await);
    }
    let first = w.get(&format!("{CONFIG_MAPS}?limit=3")).await.json();
    assert_eq!((first["items"].as_array().unwrap().len(), &first["metadata"]["remainingItemCount"]), (3, &json!(4)));
    World::must(w.call("DELETE", &format!("{CONFIG_MAPS}/c5"), Value::Null).await);
    World::must(w.call("POST", CONFIG_MAPS, config_map("c9")).await);
    let mut names: Vec<String> = Vec::new();
    let mut page = first.clone();
    loop {
        names.extend(page["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_string()));
        assert_eq!(page["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        page = World::must(w.get(&format!("{CONFIG_MAPS}?limit=3&continue={token}")).await);
    }
    assert_eq!(names, ["c0", "c1", "c2", "c3", "c4", "c5", "c6"]);
    assert_eq!(w.get(&format!("{CONFIG_MAPS}?limit=3&continue=junk")).await.code, 400);
    let old = first["metadata"]["resourceVersion"].as_str().unwrap();
    let exact = World::must(w.get(&format!("{CONFIG_MAPS}?resourceVersion={old}&resourceVersionMatch=Exact")).await);
    assert_eq!(exact["items"].as_array().unwrap().len(), 7, "still held for the pages");
    assert_eq!(w.get(&format!("{CONFIG_MAPS}?resourceVersion=1&resourceVersionMatch=Exact")).await.code, 410);
    assert_eq!(w.get(&format!("{CONFIG_MAPS}?resourceVersionMatch=Exact")).await.code, 422);
    assert_eq!(w.get(&format!("{CONFIG_MAPS}?resourceVersion=x")).await.code, 422);
    assert_eq!(w.get(&format!("{CONFIG_MAPS}?labelSelector=a%20in")).await.code, 400);
    assert_eq!(w.get(&format!("{CONFIG_MAPS}?fieldSelector=spec.x=1")).await.code, 400);
}

#[tokio::test(start_paused = true)]
async fn revisions_of_the_future_are_waited_for_a_while() {
    let w = world().await;
    let answer = w.get(&format!("{CONFIG_MAPS}?resourceVersion=99999")).await;
    assert!(answer.code == 504 && answer.message().starts_with("Too large resource version: 99999"), "{}", answer.text());
    assert_eq!(answer.json()["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}

#[tokio::test]
async fn watches_tell_state_and_changes() {
    let w = world().await;
    let a = World::must(w.call("POST", CONFIG_MAPS, config_map("a")).await);
    World::must(w.call("PATCH", &format!("{CONFIG_MAPS}/a"), json!({ "metadata": { "labels": { "in": "yes" } } })).await);
    World::must(w.call("POST", CONFIG_MAPS, config_map("b")).await);
    World::must(w.call("PATCH", &format!("{CONFIG_MAPS}/a"), json!({ "metadata": { "labels": { "in": "no" } } })).await);
    World::must(w.call("DELETE", &format!("{CONFIG_MAPS}/b"), Value::Null).await);
    let rv = revision(&a);

    let since = events(&w, &format!("{CONFIG_MAPS}?watch=1&resourceVersion={rv}")).await;
    assert_eq!(kinds(&since), ["MODIFIED a", "ADDED b", "MODIFIED a", "DELETED b"]);
    let revisions: Vec<u64> = since.iter().map(|e| revision(&e["object"])).collect();
    assert!(revisions.is_sorted() && revisions[0] > rv, "{revisions:?}");
    assert_eq!(kinds(&events(&w, &format!("{CONFIG_MAPS}?watch=1")).await), ["ADDED a"]);
    assert_eq!(kinds(&events(&w, &format!("{CONFIG_MAPS}?watch=1&resourceVersion=0")).await), ["ADDED a"]);
    let view = events(&w, &format!("{CONFIG_MAPS}?watch=1&resourceVersion={rv}&labelSelector=in%3Dyes")).await;
    assert_eq!(kinds(&view), ["ADDED a", "DELETED a"], "what enters and leaves the view");
    let one = events(&w, &format!("{CONFIG_MAPS}?watch=1&resourceVersion={rv}&fieldSelector=metadata.name%3Db")).await;
    assert_eq!(kinds(&one), ["ADDED b", "DELETED b"]);
    let url = format!("{CONFIG_MAPS}?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan");
    let initial = events(&w, &url).await;
    assert_eq!(kinds(&initial), ["ADDED a", "BOOKMARK"]);
    assert_eq!(initial[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let table = Request::get(format!("{CONFIG_MAPS}?watch=1")).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let response = w.server.transport(common::masters()).send(table.body(Bytes::new()).unwrap()).await.unwrap();
    let frame = response.into_body().frame().await.unwrap().unwrap().into_data().unwrap();
    let event: Value = serde_json::from_slice(&frame).unwrap();
    assert_eq!((&event["object"]["kind"], &event["object"]["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
}

#[tokio::test(start_paused = true)]
async fn watches_end_and_bookmark_in_time() {
    let w = world().await;
    let path = format!("{CONFIG_MAPS}?watch=1&allowWatchBookmarks=true&timeoutSeconds=150");
    let began = tokio::time::Instant::now();
    let answer = w.get(&path).await;
    assert_eq!(began.elapsed().as_secs(), 150);
    let bookmarks: Vec<Value> = answer.text().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(kinds(&bookmarks), ["BOOKMARK", "BOOKMARK"]);
    let waiting = tokio::spawn({
        let server = w.server.clone();
        async move {
            let request = Request::get(format!("{CONFIG_MAPS}?watch=1")).body(Bytes::new()).unwrap();
            server.transport(common::masters()).send(request).await.unwrap().into_body().collect().await.unwrap();
        }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    w.server.stop();
    waiting.await.unwrap();
}

#[tokio::test]
async fn a_watch_of_forgotten_history_is_told_so() {
    let w = world().await;
    let made = World::must(w.call("POST", CONFIG_MAPS, config_map("a")).await);
    for i in 0..store::limits::RING_EVENTS_MAX + 10 {
        let patch = json!({ "data": { "k": i.to_string() } });
        World::must(w.call("PATCH", &format!("{CONFIG_MAPS}/a"), patch).await);
    }
    let told = events(&w, &format!("{CONFIG_MAPS}?watch=1&resourceVersion={}", revision(&made))).await;
    assert_eq!(
        (&told[0]["type"], &told[0]["object"]["code"], &told[0]["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
}

#[tokio::test]
async fn deletion_waits_for_finalizers_and_grace() {
    let w = world().await;
    let mut held = config_map("held");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    World::must(w.call("POST", CONFIG_MAPS, held).await);
    let url = format!("{CONFIG_MAPS}/held");
    let going = World::must(w.call("DELETE", &url, Value::Null).await);
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    let more = json!({ "metadata": { "finalizers": ["example.com/hold", "example.com/more"] } });
    let answer = w.call("PATCH", &url, more).await;
    assert!(answer.code == 422 && answer.message().contains("no new finalizers can be added"), "{}", answer.text());
    World::must(w.call("PATCH", &url, json!({ "metadata": { "finalizers": null } })).await);
    assert_eq!(w.get(&url).await.code, 404);

    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        World::must(w.call("POST", CONFIG_MAPS, config_map(finalizer.to_lowercase().as_str())).await);
        let url = format!("{CONFIG_MAPS}/{}", finalizer.to_lowercase());
        let body = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy });
        let going = World::must(w.call("DELETE", &url, body).await);
        assert_eq!(going["metadata"]["finalizers"], json!([finalizer]));
    }

    World::must(w.call("POST", PODS, pod("p")).await);
    let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "p" }, "target": { "kind": "Node", "name": "n1" } });
    World::must(w.call("POST", &format!("{PODS}/p/binding"), binding.clone()).await);
    let bound = World::must(w.get(&format!("{PODS}/p")).await);
    assert_eq!((&bound["spec"]["nodeName"], &bound["status"]["conditions"][0]["type"]), (&json!("n1"), &json!("PodScheduled")));
    let again = w.call("POST", &format!("{PODS}/p/binding"), binding).await;
    assert!(again.code == 409 && again.message().contains("is already assigned to node"), "{}", again.text());
    let going = World::must(w.call("DELETE", &format!("{PODS}/p"), Value::Null).await);
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    let shorter = World::must(w.call("DELETE", &format!("{PODS}/p?gracePeriodSeconds=5"), Value::Null).await);
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    assert_eq!(World::must(w.get(&format!("{PODS}/p")).await)["metadata"]["deletionGracePeriodSeconds"], 5);
    let wrong = json!({ "preconditions": { "uid": "other" }, "gracePeriodSeconds": 0 });
    assert_eq!(w.call("DELETE", &format!("{PODS}/p"), wrong).await.code, 409);
    World::must(w.call("DELETE", &format!("{PODS}/p?gracePeriodSeconds=0"), Value::Null).await);
    assert_eq!(w.get(&format!("{PODS}/p")).await.code, 404);

    World::must(w.call("POST", PODS, pod("e")).await);
    let eviction = json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": "e" } });
    assert_eq!(w.call("POST", &format!("{PODS}/e/eviction"), eviction).await.code, 201);
    assert_eq!(w.get(&format!("{PODS}/e")).await.code, 404, "it had no node: it goes at once");
    let left = World::must(w.call("DELETE", CONFIG_MAPS, Value::Null).await);
    assert_eq!(left["kind"], "ConfigMapList");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_addresses_are_given_once() {
    let w = world().await;
    let url = "/api/v1/namespaces/default/services";
    let service = |name: &str, spec: Value| json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec });
    let ports = json!([{ "port": 80 }]);
    let makes = (0..60).map(|i| w.call("POST", url, service(&format!("s{i}"), json!({ "type": "NodePort", "ports": ports }))));
    let made: Vec<Value> = futures_util::future::join_all(makes).await.into_iter().map(World::must).collect();
    let unique = |of: fn(&Value) -> String| made.iter().map(of).collect::<std::collections::BTreeSet<_>>().len();
    assert_eq!(unique(|s| s["spec"]["clusterIP"].to_string()), 60);
    assert_eq!(unique(|s| s["spec"]["ports"][0]["nodePort"].to_string()), 60);

    let taken = made[0]["spec"]["clusterIP"].as_str().unwrap().to_string();
    let node_port = made[0]["spec"]["ports"][0]["nodePort"].clone();
    let answer = w.call("POST", url, service("x", json!({ "clusterIP": taken, "ports": ports }))).await;
    assert!(answer.code == 422 && answer.message().contains("provided IP is already allocated"), "{}", answer.text());
    let answer = w.call("POST", url, service("x", json!({ "clusterIP": "192.0.2.1", "ports": ports }))).await;
    assert!(answer.message().contains("is not in the valid range. The range of valid IPs is 10.43.0.0/16"), "{}", answer.text());
    let answer = w.call("POST", url, service("x", json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": node_port }] }))).await;
    assert!(
        answer.message().contains("spec.ports[0].nodePort") && answer.message().contains("provided port is already allocated"),
        "{}",
        answer.text()
    );
    let answer = w.call("POST", url, service("x", json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 99 }] }))).await;
    assert!(answer.message().contains("The range of valid ports is 30000-32767"), "{}", answer.text());
    World::must(w.call("DELETE", &format!("{url}/s0"), Value::Null).await);
    let again = World::must(w.call("POST", url, service("x", json!({ "clusterIP": taken, "ports": ports }))).await);
    assert_eq!((&again["spec"]["clusterIP"], &again["spec"]["clusterIPs"]), (&json!(taken), &json!([taken])), "released with its Service");

    let headless = World::must(w.call("POST", url, service("h", json!({ "clusterIP": "None", "ports": ports }))).await);
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    let external = World::must(w.call("POST", url, service("e", json!({ "type": "ExternalName", "externalName": "a.example" }))).await);
    assert!(external["spec"]["clusterIP"].is_null(), "{external}");
    // An update that leaves out what was allocated keeps it; another type gives it back.
    let kept = World::must(w.call("PUT", &format!("{url}/s1"), service("s1", json!({ "type": "NodePort", "ports": ports }))).await);
    assert_eq!(
        (&kept["spec"]["clusterIP"], &kept["spec"]["ports"][0]["nodePort"]),
        (&made[1]["spec"]["clusterIP"], &made[1]["spec"]["ports"][0]["nodePort"])
    );
    let plain = World::must(w.call("PATCH", &format!("{url}/s1"), json!({ "spec": { "type": "ClusterIP" } })).await);
    assert!(plain["spec"]["ports"][0]["nodePort"].is_null(), "{plain}");
    let kubernetes = World::must(w.get(&format!("{url}/kubernetes")).await);
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.43.0.1");
    assert_eq!(World::must(w.get("/api/v1/namespaces/kube-system/services/kube-dns").await)["spec"]["clusterIP"], "10.43.0.10");
    let endpoints = World::must(w.get("/api/v1/namespaces/default/endpoints/kubernetes").await);
    assert_eq!(endpoints["subsets"][0]["addresses"][0]["ip"], "192.0.2.1");
}

#[tokio::test]
async fn pods_are_admitted() {
    let w = world().await;
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "quiet" },
        "automountServiceAccountToken": false, "imagePullSecrets": [{ "name": "reg" }],
    });
    World::must(w.call("POST", "/api/v1/namespaces/default/serviceaccounts", account).await);
    let mut p = pod("a");
    p["spec"]["serviceAccountName"] = "quiet".into();
    let made = World::must(w.call("POST", PODS, p).await);
    assert!(made["spec"]["volumes"].is_null() && made["spec"]["imagePullSecrets"][0]["name"] == "reg", "{made}");
    let made = World::must(w.call("POST", PODS, pod("b")).await);
    assert_eq!(made["spec"]["containers"][0]["volumeMounts"][0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!((&made["spec"]["priority"], &made["spec"]["preemptionPolicy"]), (&json!(0), &json!("PreemptLowerPriority")));
    assert_eq!(made["spec"]["tolerations"].as_array().unwrap().len(), 2);
    for (field, value, expect) in [
        ("serviceAccountName", "ghost", r#"error looking up service account default/ghost: serviceaccount "ghost" not found"#),
        ("priorityClassName", "ghost", "no PriorityClass with name ghost was found"),
        ("runtimeClassName", "ghost", r#"pod rejected: RuntimeClass "ghost" not found"#),
    ] {
        let mut p = pod("c");
        p["spec"][field] = value.into();
        let answer = w.call("POST", PODS, p).await;
        assert!(answer.code == 403 && answer.message().contains(expect), "{}", answer.text());
    }
    let mut p = pod("d");
    p["spec"]["runtimeClassName"] = "container".into();
    p["spec"]["priorityClassName"] = "system-node-critical".into();
    assert_eq!(World::must(w.call("POST", PODS, p).await)["spec"]["priority"], 2_000_001_000);
    let limits = json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": { "name": "l" },
        "spec": { "limits": [{ "type": "Container", "default": { "memory": "64Mi" }, "defaultRequest": { "cpu": "50m" }, "max": { "memory": "1Gi" } }] },
    });
    World::must(w.call("POST", "/api/v1/namespaces/default/limitranges", limits).await);
    let made = World::must(w.call("POST", PODS, pod("e")).await);
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({ "limits": { "memory": "64Mi" }, "requests": { "cpu": "50m", "memory": "64Mi" } })
    );
    let mut p = pod("f");
    p["spec"]["containers"][0]["resources"]["limits"]["memory"] = "2Gi".into();
    let answer = w.call("POST", PODS, p).await;
    assert!(
        answer.code == 403 && answer.message().contains("maximum memory usage per Container is 1Gi, but limit is 2Gi"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn namespaces_end_in_order() {
    let w = world().await;
    let ns = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } });
    let made = World::must(w.call("POST", "/api/v1/namespaces", ns).await);
    assert_eq!((&made["spec"]["finalizers"], &made["status"]["phase"]), (&json!(["kubernetes"]), &json!("Active")));
    assert_eq!(made["metadata"]["labels"]["kubernetes.io/metadata.name"], "shop");
    World::must(w.call("DELETE", "/api/v1/namespaces/shop", Value::Null).await);
    let going = World::must(w.get("/api/v1/namespaces/shop").await);
    assert_eq!(going["status"]["phase"], "Terminating");
    let answer = w.call("POST", "/api/v1/namespaces/shop/configmaps", config_map("x")).await;
    assert_eq!((answer.code, &answer.json()["details"]["causes"][0]["reason"]), (403, &json!("NamespaceTerminating")));
    let mut done = going.clone();
    done["spec"]["finalizers"] = json!([]);
    World::must(w.call("PUT", "/api/v1/namespaces/shop/finalize", done).await);
    assert_eq!(w.get("/api/v1/namespaces/shop").await.code, 404);
}

#[tokio::test]
async fn events_are_one_object_under_two_groups() {
    let w = world().await;
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": { "name": "e1" }, "reason": "Started", "message": "it runs", "type": "Normal",
        "involvedObject": { "kind": "Pod", "namespace": "default", "name": "p" }, "source": { "component": "agent" },
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z", "count": 1,
    });
    World::must(w.call("POST", "/api/v1/namespaces/default/events", event).await);
    let new = World::must(w.get("/apis/events.k8s.io/v1/namespaces/default/events/e1").await);
    assert_eq!((&new["apiVersion"], &new["note"], &new["regarding"]["name"]), (&json!("events.k8s.io/v1"), &json!("it runs"), &json!("p")));
    let list = World::must(w.get("/apis/events.k8s.io/v1/namespaces/default/events").await);
    assert_eq!(list["items"][0]["note"], "it runs");
    let list = World::must(w.get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp").await);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn objects_are_shown_as_asked() {
    let w = world().await;
    World::must(w.call("POST", CONFIG_MAPS, config_map("a")).await);
    let get = |path: String, accept: &'static str, encoding: &'static str| {
        let request = Request::get(path).header("accept", accept).header("accept-encoding", encoding).body(Bytes::new()).unwrap();
        w.send(request)
    };
    let answer = get(format!("{CONFIG_MAPS}/a"), "application/yaml", "").await;
    assert!(answer.headers["content-type"] == "application/yaml" && answer.text().contains("kind: ConfigMap"), "{}", answer.text());
    let answer = get(format!("{CONFIG_MAPS}/a"), "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", "").await.json();
    assert!(answer["kind"] == "PartialObjectMetadata" && answer["data"].is_null());
    let answer = get(CONFIG_MAPS.into(), "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", "").await.json();
    assert_eq!(answer["items"][0]["metadata"]["name"], "a");
    let answer = get(format!("{CONFIG_MAPS}?includeObject=None"), "application/json;as=Table;v=v1;g=meta.k8s.io", "").await.json();
    assert_eq!((&answer["kind"], &answer["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
    assert!(get(format!("{CONFIG_MAPS}/a?pretty=true"), "application/json", "").await.text().contains("\n  \"kind\""));
    for i in 0..80 {
        let mut big = config_map(&format!("big{i}"));
        big["data"]["k"] = "x".repeat(4_000).into();
        World::must(w.call("POST", CONFIG_MAPS, big).await);
    }
    let plain = get(CONFIG_MAPS.into(), "application/json", "").await;
    let packed = get(CONFIG_MAPS.into(), "application/json", "gzip").await;
    assert!(packed.headers["content-encoding"] == "gzip" && packed.body.len() * 5 < plain.body.len());
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed.body[..]), &mut unpacked).unwrap();
    assert_eq!(unpacked, plain.body);
}

#[tokio::test]
async fn who_may_do_what() {
    let w = world().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = |name: &str, rules: Value| json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": name }, "rules": rules });
    let bind = |name: &str, role: &str, user: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user }],
        })
    };
    let ann = || Identity::new("ann", &[]);
    let answer = w.call_as(ann(), "GET", CONFIG_MAPS, Value::Null).await;
    let expect = r#"configmaps is forbidden: User "ann" cannot list resource "configmaps" in API group "" in the namespace "default""#;
    assert_eq!((answer.code, answer.message().as_str()), (403, expect));
    let rules = json!([
        { "apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"] },
        { "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles", "clusterrolebindings"], "verbs": ["*"], "resourceNames": [] },
    ]);
    World::must(w.call("POST", &format!("{rbac}/clusterroles"), role("ann", rules)).await);
    World::must(w.call("POST", &format!("{rbac}/clusterrolebindings"), bind("ann", "ann", "ann")).await);
    assert_eq!(w.call_as(ann(), "GET", CONFIG_MAPS, Value::Null).await.code, 200, "in force with the answer to the write");
    // `*` on roles includes escalate and bind; without them nobody gives what they lack.
    let rules = json!([{ "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles", "clusterrolebindings"], "verbs": ["create", "get"] }]);
    World::must(w.call("POST", &format!("{rbac}/clusterroles"), role("bob", rules)).await);
    World::must(w.call("POST", &format!("{rbac}/clusterrolebindings"), bind("bob", "bob", "bob")).await);
    let bob = || Identity::new("bob", &[]);
    let secrets = json!([{ "apiGroups": [""], "resources": ["secrets"], "verbs": ["get"] }]);
    let answer = w.call_as(bob(), "POST", &format!("{rbac}/clusterroles"), role("more", secrets)).await;
    assert!(
        answer.code == 403 && answer.message().contains("attempting to grant RBAC permissions not currently held"),
        "{}",
        answer.text()
    );
    let answer = w.call_as(bob(), "POST", &format!("{rbac}/clusterrolebindings"), bind("up", "cluster-admin", "bob")).await;
    assert_eq!(answer.code, 403);
    World::must(w.call("DELETE", &format!("{rbac}/clusterrolebindings/ann"), Value::Null).await);
    assert_eq!(w.call_as(ann(), "GET", CONFIG_MAPS, Value::Null).await.code, 403);

    let impersonate = Request::get(CONFIG_MAPS).header("impersonate-user", "system:admin").header("impersonate-group", "system:masters");
    let answer = w.send_as(bob(), impersonate.body(Bytes::new()).unwrap()).await;
    assert!(answer.code == 403 && answer.message().contains(r#"cannot impersonate resource "users""#), "{}", answer.text());
    let review = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": { "user": "bob", "resourceAttributes": { "verb": "get", "group": "rbac.authorization.k8s.io", "resource": "clusterroles" } } });
    let answer = World::must(w.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review).await);
    assert_eq!(answer["status"]["allowed"], true);
    // A role labelled for aggregation reaches those that collect it.
    let mut extra = role("extra", json!([{ "apiGroups": ["x.example"], "resources": ["things"], "verbs": ["get"] }]));
    extra["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] = "true".into();
    World::must(w.call("POST", &format!("{rbac}/clusterroles"), extra).await);
    World::must(w.call("POST", &format!("{rbac}/clusterrolebindings"), bind("eve", "edit", "eve")).await);
    let review = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": { "user": "eve", "resourceAttributes": { "verb": "get", "group": "x.example", "resource": "things" } } });
    assert_eq!(World::must(w.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review).await)["status"]["allowed"], true);
}

#[tokio::test]
async fn agents_write_what_is_theirs() {
    let w = world().await;
    let agent = |name: &str| Identity::node(name);
    let node =
        |name: &str| json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name }, "status": { "capacity": { "cpu": "2" } } });
    let made = World::must(w.call_as(agent("n1"), "POST", "/api/v1/nodes", node("n1")).await);
    assert_eq!(made["status"]["capacity"]["cpu"], "2", "a node registers with its status");
    assert_eq!(w.call_as(agent("n1"), "POST", "/api/v1/nodes", node("n2")).await.code, 403);
    let mut p = pod("p");
    p["spec"]["nodeName"] = "n1".into();
    World::must(w.call("POST", PODS, p).await);
    let running = json!({ "status": { "phase": "Running" } });
    let answer = w.call_as(agent("n2"), "PATCH", &format!("{PODS}/p/status"), running.clone()).await;
    assert!(answer.code == 403 && answer.message().contains("spec.nodeName set to itself"), "{}", answer.text());
    World::must(w.call_as(agent("n1"), "PATCH", &format!("{PODS}/p/status"), running).await);
    assert_eq!(w.call_as(agent("n2"), "DELETE", &format!("{PODS}/p"), Value::Null).await.code, 403);
    World::must(w.call_as(agent("n1"), "DELETE", &format!("{PODS}/p?gracePeriodSeconds=0"), Value::Null).await);
    let lease = |name: &str| json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": name }, "spec": {} });
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    World::must(w.call_as(agent("n1"), "POST", leases, lease("n1")).await);
    assert_eq!(w.call_as(agent("n1"), "POST", leases, lease("n2")).await.code, 403);
}

#[tokio::test]
async fn tokens_live_as_long_as_what_they_are_bound_to() {
    use apiserver::Caller;
    let w = world().await;
    World::must(w.call("POST", PODS, pod("p")).await);
    let url = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "boundObjectRef": { "kind": "Pod", "apiVersion": "v1", "name": "p" } } });
    let token = World::must(w.call("POST", url, request.clone()).await)["status"]["token"].as_str().unwrap().to_string();
    let whoami = |token: String| {
        let server = w.server.clone();
        async move {
            let body = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#;
            let request =
                Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews").header("authorization", format!("Bearer {token}"));
            let full = http_body_util::Full::new(Bytes::from(body)).map_err(|n| match n {}).boxed_unsync();
            let response = server.handle(Caller::Unproven, request.body(full).unwrap()).await;
            let code = response.status().as_u16();
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            (code, serde_json::from_slice::<Value>(&bytes).unwrap())
        }
    };
    let (code, me) = whoami(token.clone()).await;
    assert_eq!((code, &me["status"]["userInfo"]["username"]), (201, &json!("system:serviceaccount:default:default")), "{me}");
    assert_eq!(me["status"]["userInfo"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": token } });
    let review = World::must(w.call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review).await);
    assert_eq!(review["status"]["authenticated"], true);
    World::must(w.call("DELETE", &format!("{PODS}/p"), Value::Null).await);
    assert_eq!(whoami(token.clone()).await.0, 401, "its pod is gone");
    assert_eq!(whoami("junk".into()).await.0, 401);
    let answer = w.call("POST", url, request).await;
    assert_eq!(answer.code, 404, "no token for a pod that is not there");
    let short = json!({ "spec": { "expirationSeconds": 10 } });
    assert_eq!(w.call("POST", url, short).await.code, 422);
    let unbound = w.call_as(Identity::node("n1"), "POST", url, json!({ "spec": {} })).await;
    assert_eq!(unbound.code, 403);
}

#[tokio::test]
async fn bad_input_is_a_status_and_changes_nothing() {
    let w = world().await;
    let before = w.get(CONFIG_MAPS).await.json();
    let big = format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"big"}},"data":{{"k":"{}"}}}}"#, "x".repeat(3 << 20));
    let deep = "[".repeat(100_000);
    let table: &[(&str, &str, &str, &[u8], u16)] = &[
        ("POST", CONFIG_MAPS, "application/json", b"", 400),
        ("POST", CONFIG_MAPS, "application/json", b"{", 400),
        ("POST", CONFIG_MAPS, "application/json", b"[]", 400),
        ("POST", CONFIG_MAPS, "application/json", b"null", 400),
        ("POST", CONFIG_MAPS, "application/json", b"\xff\xfe", 400),
        ("POST", CONFIG_MAPS, "application/json", deep.as_bytes(), 400),
        ("POST", CONFIG_MAPS, "application/yaml", b"a: [", 400),
        ("POST", CONFIG_MAPS, "application/yaml", b"a: &a [*a]", 400),
        ("POST", CONFIG_MAPS, "application/vnd.kubernetes.protobuf", b"k8s\0\xff\xff\xff\xff", 400),
        ("POST", CONFIG_MAPS, "application/vnd.kubernetes.protobuf", b"{}", 400),
        ("POST", CONFIG_MAPS, "text/html", b"{}", 415),
        ("POST", CONFIG_MAPS, "application/json", big.as_bytes(), 413),
        ("POST", CONFIG_MAPS, "application/json", br#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"x"}}"#, 400),
        ("POST", CONFIG_MAPS, "application/json", br#"{"apiVersion":"v2","kind":"ConfigMap","metadata":{"name":"x"}}"#, 400),
        ("POST", CONFIG_MAPS, "application/json", br#"{"metadata":{"name":"../x"}}"#, 422),
        ("POST", CONFIG_MAPS, "application/json", br#"{"metadata":[]}"#, 400),
        ("POST", CONFIG_MAPS, "application/json", br#"{"metadata":{}}"#, 422),
        ("POST", CONFIG_MAPS, "application/json", br#"{"metadata":{"name":"x"},"data":{"k":1}}"#, 400),
        ("PATCH", CONFIG_MAPS, "application/merge-patch+json", b"{}", 405),
        ("PATCH", "/api/v1/namespaces/default/configmaps/x", "application/json", b"{}", 415),
        ("PATCH", "/api/v1/namespaces/default/configmaps/x", "application/apply-patch+yaml", b"{}", 400),
        ("POST", "/api/v1/configmaps", "application/json", b"{}", 400),
        ("POST", "/api/v1/namespaces/default/unicorns", "application/json", b"{}", 404),
        ("GET", "/api/v9/pods", "", b"", 404),
        ("GET", "/api/v1/namespaces/default/configmaps/%2e%2e", "", b"", 400),
        ("GET", "/api/v1/namespaces/default/configmaps/a%2Fb", "", b"", 400),
        ("GET", "/api/v1/namespaces/default/configmaps/%ff", "", b"", 400),
        ("GET", "/api/v1/namespaces/default/configmaps?limit=many", "", b"", 400),
        ("GET", "/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=soon", "", b"", 400),
        ("GET", "/nowhere", "", b"", 404),
        ("POST", "/version", "", b"", 405),
        ("TRACE", "/api/v1/pods", "", b"", 405),
    ];
    for (method, path, content, body, code) in table {
        let request = Request::builder().method(*method).uri(*path).header("content-type", *content);
        let answer = w.send(request.body(Bytes::copy_from_slice(body)).unwrap()).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        assert_eq!(answer.code, *code, "{method} {path} {shown}: {}", answer.text());
        let status = answer.json();
        assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(code)), "{method} {path}");
        assert!(!status["message"].as_str().unwrap_or_default().is_empty(), "{method} {path}");
    }
    assert_eq!(w.get(CONFIG_MAPS).await.json()["items"], before["items"]);
    let warned = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "w" }, "dato": {} });
    let answer = w.call("POST", CONFIG_MAPS, warned.clone()).await;
    assert_eq!((answer.code, answer.headers["warning"].to_str().unwrap()), (201, r#"299 - "unknown field \"dato\"""#));
    let mut strict = warned;
    strict["metadata"]["name"] = "s".into();
    let answer = w.call("POST", &format!("{CONFIG_MAPS}?fieldValidation=Strict"), strict).await;
    assert!(answer.code == 400 && answer.message().contains(r#"strict decoding error: unknown field "dato""#), "{}", answer.text());
}

#[tokio::test]
async fn patches_on_a_hot_object_all_count() {
    let w = world().await;
    World::must(w.call("POST", CONFIG_MAPS, config_map("hot")).await);
    let patches = (0..6).map(|i| w.call("PATCH", "/api/v1/namespaces/default/configmaps/hot", json!({ "data": { format!("k{i}"): "v" } })));
    for answer in futures_util::future::join_all(patches).await {
        World::must(answer);
    }
    let hot = World::must(w.get("/api/v1/namespaces/default/configmaps/hot").await);
    assert_eq!(hot["data"].as_object().unwrap().len(), 7);
}

#[tokio::test]
async fn discovery_is_tagged_and_complete() {
    let w = world().await;
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let answer = w.send(Request::get("/apis").header("accept", accept).body(Bytes::new()).unwrap()).await;
    assert!(answer.headers["content-type"].to_str().unwrap().contains("as=APIGroupDiscoveryList"));
    assert_eq!(answer.json()["kind"], "APIGroupDiscoveryList");
    let tag = answer.headers["etag"].clone();
    let again = Request::get("/apis").header("accept", accept).header("if-none-match", tag).body(Bytes::new()).unwrap();
    assert_eq!(w.send(again).await.code, 304);
    for path in [
        "/api",
        "/apis",
        "/apis/apps",
        "/apis/apps/v1",
        "/api/v1",
        "/openapi/v3",
        "/openapi/v3/api/v1",
        "/openapi/v3/apis/apps/v1",
        "/version",
        "/openid/v1/jwks",
        "/.well-known/openid-configuration",
    ] {
        assert_eq!(w.get(path).await.code, 200, "{path}");
    }
    assert_eq!(w.get("/apis/nope").await.code, 404);
    let anonymous =
        ports::Identity { username: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..Default::default() };
    assert_eq!(w.call_as(anonymous.clone(), "GET", "/healthz", Value::Null).await.code, 200);
    let answer = w.call_as(anonymous, "GET", "/metrics", Value::Null).await;
    assert_eq!((answer.code, answer.message().as_str()), (403, r#"forbidden: User "system:anonymous" cannot get path "/metrics""#));
}

#[tokio::test]
async fn ten_thousand_watches_hear_of_one_change() {
    let w = world().await;
    let mut bodies = Vec::new();
    for _ in 0..10_000 {
        let request = Request::get(format!("{CONFIG_MAPS}?watch=1")).body(Bytes::new()).unwrap();
        bodies.push(w.server.transport(common::masters()).send(request).await.unwrap().into_body());
    }
    World::must(w.call("POST", CONFIG_MAPS, config_map("news")).await);
    for body in &mut bodies {
        let frame = tokio::time::timeout(Duration::from_secs(5), body.frame()).await.unwrap().unwrap().unwrap().into_data().unwrap();
        assert!(frame.starts_with(br#"{"type":"ADDED""#));
    }
}
