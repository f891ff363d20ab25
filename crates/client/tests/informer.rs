//! Informers against a server that restarts, forgets and fails.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::Status;
use client::fake::FakeServer;
use client::{Change, Client, DeleteOptions, Informer, Key, PartialObject, Patch};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;

fn config_map(namespace: &str, name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({
        "metadata": { "name": name, "namespace": namespace, "labels": { "v": value } }, "data": { "v": value },
    }))
    .unwrap()
}

async fn put(client: &Client, name: &str, value: &str) {
    let patch = Patch::Merge(json!({ "data": { "v": value }, "metadata": { "labels": { "v": value } } }));
    match client.patch::<ConfigMap>("a", name, &patch, "").await {
        Err(e) if e.is_not_found() => drop(client.create(&config_map("a", name, value)).await.unwrap()),
        done => drop(done.unwrap()),
    }
}

/// What an informer holds, as `name=value` in order.
fn held(informer: &Informer<ConfigMap>) -> Vec<String> {
    let show = |c: &Arc<ConfigMap>| format!("{}={}", c.metadata.name.clone().unwrap(), c.data.clone().unwrap()["v"]);
    informer.snapshot().iter().map(show).collect()
}

/// Every step of every object, as `name: old -> new`.
fn record(informer: &Informer<ConfigMap>) -> Arc<Mutex<Vec<String>>> {
    let log = Arc::new(Mutex::new(Vec::new()));
    let to = log.clone();
    informer.on_change(move |change: &Change<ConfigMap>| {
        let show = |c: &Option<Arc<ConfigMap>>| c.as_ref().map_or("-".into(), |c| c.data.clone().unwrap()["v"].clone());
        to.lock().unwrap().push(format!("{}: {} -> {}", change.key.name, show(&change.old), show(&change.new)));
    });
    log
}

async fn settle() {
    tokio::time::sleep(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn follows_every_change_and_tells_each_once() {
    let server = FakeServer::new();
    let client = server.client();
    put(&client, "x", "1").await;
    let informer = Informer::<ConfigMap>::start(&client);
    assert!(informer.snapshot().is_empty() && !informer.is_ready());
    informer.ready().await;
    let log = record(&informer);
    let before = informer.snapshot();
    put(&client, "x", "2").await;
    put(&client, "y", "1").await;
    client.delete::<ConfigMap>("a", "x", &DeleteOptions::default()).await.unwrap();
    settle().await;
    assert_eq!(held(&informer), ["y=1"]);
    assert_eq!(*log.lock().unwrap(), ["x: - -> 1", "x: 1 -> 2", "y: - -> 1", "x: 2 -> -"]);
    assert_eq!(before.get("a", "x").unwrap().data.clone().unwrap()["v"], "1", "a snapshot never changes");
    let watches = server.requests().iter().filter(|r| r.contains("watch=true")).count();
    assert_eq!(watches, 1, "one watch carried all of it");
}

#[tokio::test(start_paused = true)]
async fn resumes_after_a_cut_without_listing_again() {
    let server = FakeServer::new();
    let client = server.client();
    put(&client, "x", "1").await;
    let informer = Informer::<ConfigMap>::start(&client);
    informer.ready().await;
    let log = record(&informer);
    for round in 2..5 {
        server.cut_watches();
        put(&client, "x", &round.to_string()).await;
        settle().await;
    }
    assert_eq!(held(&informer), ["x=4"]);
    assert_eq!(*log.lock().unwrap(), ["x: - -> 1", "x: 1 -> 2", "x: 2 -> 3", "x: 3 -> 4"]);
    let lists = server.requests().iter().filter(|r| r.starts_with("GET") && !r.contains("watch=true")).count();
    assert_eq!(lists, 1);
}

#[tokio::test(start_paused = true)]
async fn lists_again_when_history_is_gone_and_tells_the_difference() {
    let server = FakeServer::new();
    let client = server.client();
    for name in ["gone", "kept", "stays"] {
        put(&client, name, "1").await;
    }
    let informer = Informer::<ConfigMap>::start(&client);
    informer.ready().await;
    settle().await;
    let log = record(&informer);
    log.lock().unwrap().clear();
    // None of these calls yields: the informer learns of the cut when all of it is past.
    server.cut_watches();
    client.delete::<ConfigMap>("a", "gone", &DeleteOptions::default()).await.unwrap();
    put(&client, "kept", "2").await;
    put(&client, "new", "1").await;
    server.compact();
    server.fail_next(Status::internal("starting"));
    settle().await;
    assert_eq!(held(&informer), ["kept=2", "new=1", "stays=1"]);
    let mut told = log.lock().unwrap().clone();
    told.sort();
    assert_eq!(told, ["gone: 1 -> -", "kept: 1 -> 2", "new: - -> 1"]);
}

#[tokio::test(start_paused = true)]
async fn becomes_ready_once_a_failing_server_answers() {
    let server = FakeServer::new();
    let client = server.client();
    put(&client, "x", "1").await;
    for _ in 0..5 {
        server.fail_next(Status::new(api::Reason::ServiceUnavailable, "not yet"));
    }
    let informer = Informer::<ConfigMap>::start(&client);
    informer.ready().await;
    assert_eq!(held(&informer), ["x=1"]);
}

#[tokio::test(start_paused = true)]
async fn selectors_show_objects_entering_and_leaving() {
    let server = FakeServer::new();
    let client = server.client();
    put(&client, "x", "1").await;
    let informer = Informer::<ConfigMap>::start_scoped(&client, "a", "v=1", "");
    informer.ready().await;
    let log = record(&informer);
    put(&client, "x", "2").await;
    put(&client, "y", "1").await;
    put(&client, "x", "1").await;
    settle().await;
    assert_eq!(held(&informer), ["x=1", "y=1"]);
    assert_eq!(*log.lock().unwrap(), ["x: - -> 1", "x: 2 -> -", "y: - -> 1", "x: - -> 1"]);
}

#[tokio::test(start_paused = true)]
async fn a_writer_can_wait_for_its_own_write() {
    let server = FakeServer::new();
    let client = server.client();
    let informer = Informer::<ConfigMap>::start(&client);
    informer.ready().await;
    for i in 0..50 {
        let made = client.create(&config_map("a", &format!("x{i}"), "1")).await.unwrap();
        assert!(informer.reached(&made.metadata.resource_version.unwrap()).await);
        assert_eq!(informer.snapshot().len(), i + 1);
    }
    assert!(!informer.reached("999").await, "waits for a bounded time only");
}

#[tokio::test(start_paused = true)]
async fn long_lists_come_in_pages() {
    let server = FakeServer::new();
    let client = server.client();
    let total = 2 * client::limits::LIST_PAGE as usize + 1;
    for i in 0..total {
        client.create(&config_map(if i % 2 == 0 { "a" } else { "b" }, &format!("x{i}"), "1")).await.unwrap();
    }
    let informer = Informer::<ConfigMap>::start(&client);
    informer.ready().await;
    let snapshot = informer.snapshot();
    assert_eq!((snapshot.len(), snapshot.in_namespace("a").count(), snapshot.in_namespace("b").count()), (total, total / 2 + 1, total / 2));
    assert_eq!(snapshot.in_namespace("c").count(), 0);
    let pages = server.requests().iter().filter(|r| r.contains("limit=")).count();
    assert_eq!(pages, 3);
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_lags_gets_each_key_once() {
    let server = FakeServer::new();
    let client = server.client();
    put(&client, "x", "1").await;
    let informer = Informer::<PartialObject>::start_path(&client, "/api/v1/configmaps", "", "");
    informer.ready().await;
    let mut changes = informer.subscribe();
    for i in 0..10 {
        put(&client, "x", &i.to_string()).await;
        put(&client, "y", &i.to_string()).await;
    }
    settle().await;
    assert_eq!(changes.next().await.into_iter().collect::<Vec<_>>(), [Key::new("a", "x"), Key::new("a", "y")]);
    put(&client, "y", "done").await;
    assert_eq!(changes.next().await.into_iter().collect::<Vec<_>>(), [Key::new("a", "y")]);
    assert_eq!(informer.snapshot().get("a", "y").unwrap().metadata.labels.clone().unwrap()["v"], "done");
}
