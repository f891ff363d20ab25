//! A list of 20,000 pods: from a snapshot to the bytes of the answer, beside what other servers do.
//!
//! `cargo bench -p store --bench list`. Also: what one change costs with so many objects, and loading them.

use std::hint::black_box;
use std::sync::Arc;

use serde_json::{Value, json};
use store::cache::encode;
use store::{Cache, Embedded, Expect, Memory, Options, Store, Write};
use tokio::time::Instant;

const PODS: usize = 20_000;
const ROUNDS: usize = 9;

fn pod(n: usize) -> Value {
    let env: Vec<Value> = (0..10).map(|i| json!({ "name": format!("SETTING_{i}"), "value": format!("value-{n}-{i}") })).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": format!("web-{n:05}"), "namespace": format!("team-{}", n % 50), "uid": format!("0e1f-{n}"),
            "labels": { "app": "web", "tier": format!("t{}", n % 3), "pod-template-hash": "7c5d9f" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7c5d9f", "uid": "u", "controller": true }] },
        "spec": { "nodeName": format!("n{}", n % 100), "containers": [{ "name": "web", "image": "registry.local/web@sha256:00", "env": env,
            "resources": { "requests": { "cpu": "100m", "memory": "64Mi" }, "limits": { "memory": "128Mi" } },
            "readinessProbe": { "httpGet": { "path": "/ready", "port": 8080 }, "periodSeconds": 5 } }] },
        "status": { "phase": "Running", "podIP": format!("10.42.{}.{}", n / 250, n % 250),
            "conditions": [{ "type": "Ready", "status": "True" }, { "type": "PodScheduled", "status": "True" }] },
    })
}

/// The median in milliseconds.
fn time<T>(name: &str, mut f: impl FnMut() -> T) {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            black_box(f());
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{name:<55} {:>9.3} ms", times[ROUNDS / 2]);
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!("load {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let values: Vec<Value> = (0..PODS).map(pod).collect();
    for value in &values {
        let meta = &value["metadata"];
        let key = format!("core/pods/{}/{}", meta["namespace"].as_str().unwrap_or(""), meta["name"].as_str().unwrap_or(""));
        let write = Write { key, expect: Expect::Absent, value: Some(value.to_string().into()) };
        store.txn(vec![write]).await.expect("a write");
    }
    on_disk(&values).await;
    let start = Instant::now();
    let cache = Cache::open(store.clone()).await.expect("a cache");
    println!("{:<55} {:>9.3} ms", "loading 20,000 pods from memory, with history", start.elapsed().as_secs_f64() * 1e3);
    let snapshot = cache.snapshot();
    let bytes: usize = snapshot.range("core/pods/").map(|o| o.json().len()).sum();
    println!("{PODS} pods, {} bytes each", bytes / PODS);

    time("list as shared chunks (what is served)", || {
        let snapshot = cache.snapshot();
        encode::list("v1", "PodList", snapshot.revision, "", None, snapshot.range("core/pods/"))
    });
    time("one namespace of fifty as shared chunks", || {
        let snapshot = cache.snapshot();
        encode::list("v1", "PodList", snapshot.revision, "", None, snapshot.range("core/pods/team-7/"))
    });
    time("the same with a label selector", || {
        let snapshot = cache.snapshot();
        let chosen = snapshot.range("core/pods/").filter(|o| o.label("tier") == Some("t1"));
        encode::list("v1", "PodList", snapshot.revision, "", None, chosen)
    });
    time("chunks copied into one buffer", || {
        let snapshot = cache.snapshot();
        encode::list("v1", "PodList", snapshot.revision, "", None, snapshot.range("core/pods/")).concat()
    });
    time("peer: serialise parsed objects by reference", || serde_json::to_vec(&values).expect("JSON"));
    time("peer: clone parsed objects, then serialise", || {
        let list = json!({ "kind": "PodList", "items": values.clone() });
        serde_json::to_vec(&list).expect("JSON")
    });

    let writes = 5000;
    let start = Instant::now();
    for (n, value) in values.iter().enumerate().take(writes) {
        let key = format!("core/pods/team-{}/web-{:05}", n % 50, n);
        cache.txn(vec![Write { key, expect: Expect::Any, value: Some(value.to_string().into()) }]).await.expect("a write");
    }
    let each = start.elapsed().as_secs_f64() * 1e6 / writes as f64;
    println!("{:<55} {each:>9.3} us", "one change among 20,000, until it is visible");
}

/// From opening the file to a cache that answers: what a server's start waits for.
async fn on_disk(values: &[Value]) {
    let dir = tempfile::Builder::new().prefix("bench").tempdir_in(".").expect("a directory");
    let store = Embedded::open(dir.path(), Options::default()).expect("a store");
    for (i, values) in values.chunks(500).enumerate() {
        let write = |(n, v): (usize, &Value)| Write {
            key: format!("core/pods/a/{:05}", i * 500 + n),
            expect: Expect::Absent,
            value: Some(v.to_string().into()),
        };
        store.txn(values.iter().enumerate().map(write).collect()).await.expect("a write");
    }
    drop(store);
    let start = Instant::now();
    let store = Embedded::open(dir.path(), Options::default()).expect("a store");
    let opened = start.elapsed().as_secs_f64() * 1e3;
    let cache = Cache::open(Arc::new(store)).await.expect("a cache");
    let ready = start.elapsed().as_secs_f64() * 1e3;
    println!("{:<55} {opened:>9.3} ms", "opening a store of 20,000 pods, all checksums verified");
    println!("{:<55} {ready:>9.3} ms", "the same, until its cache answers");
    assert_eq!(cache.snapshot().len(), PODS);
}
