//! The reconcile runtime: nothing is lost, nothing runs twice at once, failures wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use client::fake::FakeServer;
use client::reconcile::{controller_of, own_key};
use client::{CancellationToken, Client, Controller, DeleteOptions, Error, Informer, Key, Patch, Reconciler};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::json;

/// Keeps one Secret for each ConfigMap, with the same value.
struct Mirror {
    client: Client,
    sources: Informer<ConfigMap>,
    copies: Informer<Secret>,
    running: Mutex<BTreeSet<Key>>,
    busiest: AtomicUsize,
    runs: Mutex<BTreeMap<String, usize>>,
    failures: AtomicUsize,
}

#[async_trait]
impl Reconciler for Mirror {
    type Key = Key;
    type Error = Error;

    async fn reconcile(&self, key: Key) -> Result<Option<Duration>, Error> {
        {
            let mut running = self.running.lock().unwrap();
            assert!(running.insert(key.clone()), "{key} runs twice at once");
            self.busiest.fetch_max(running.len(), Ordering::Relaxed);
        }
        *self.runs.lock().unwrap().entry(key.name.clone()).or_default() += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let done = self.bring(&key).await;
        self.running.lock().unwrap().remove(&key);
        done
    }
}

impl Mirror {
    async fn bring(&self, key: &Key) -> Result<Option<Duration>, Error> {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.fetch_sub(1, Ordering::Relaxed);
            return Err(api::Status::internal("try again").into());
        }
        let source = self.sources.snapshot().by_key(key).cloned();
        let copy = self.copies.snapshot().by_key(key).cloned();
        match (source, copy) {
            (Some(source), None) => {
                let secret: Secret = serde_json::from_value(json!({
                    "metadata": { "namespace": key.namespace, "name": key.name, "ownerReferences": [{
                        "apiVersion": "v1", "kind": "ConfigMap", "name": key.name, "uid": source.metadata.uid, "controller": true }] },
                    "stringData": source.data,
                }))
                .unwrap();
                let made = self.client.create(&secret).await?;
                self.copies.reached(made.metadata.resource_version.as_deref().unwrap_or_default()).await;
            }
            (Some(source), Some(copy)) if source.data != copy.string_data => {
                let patch = Patch::Merge(json!({ "stringData": source.data }));
                self.client.patch::<Secret>(&key.namespace, &key.name, &patch, "").await?;
            }
            (None, Some(_)) => self.client.delete::<Secret>(&key.namespace, &key.name, &DeleteOptions::default()).await?,
            _ => {}
        }
        Ok(None)
    }
}

async fn start(server: &FakeServer) -> (Arc<Mirror>, CancellationToken, tokio::task::JoinHandle<()>) {
    struct Shared(Arc<Mirror>);
    #[async_trait]
    impl Reconciler for Shared {
        type Key = Key;
        type Error = Error;
        async fn reconcile(&self, key: Key) -> Result<Option<Duration>, Error> {
            self.0.reconcile(key).await
        }
    }
    let client = server.client();
    let (sources, copies) = (Informer::start(&client), Informer::start(&client));
    let mirror = Arc::new(Mirror {
        client,
        sources: sources.clone(),
        copies: copies.clone(),
        running: Mutex::default(),
        busiest: AtomicUsize::new(0),
        runs: Mutex::default(),
        failures: AtomicUsize::new(0),
    });
    let stop = CancellationToken::new();
    let controller = Controller::new("mirror", Shared(mirror.clone()))
        .concurrency(3)
        .watches(&sources, own_key)
        .watches(&copies, controller_of("ConfigMap"));
    let task = tokio::spawn(controller.run(stop.clone()));
    (mirror, stop, task)
}

async fn settle() {
    tokio::time::sleep(Duration::from_secs(300)).await;
}

async fn make(client: &Client, name: &str, value: &str) {
    let object: ConfigMap = serde_json::from_value(json!({"metadata": {"name": name, "namespace": "a"}, "data": {"v": value}})).unwrap();
    client.create(&object).await.unwrap();
}

fn copies(server: &FakeServer) -> Vec<String> {
    let show = |o: &serde_json::Value| format!("{}={}", o["metadata"]["name"].as_str().unwrap(), o["stringData"]["v"].as_str().unwrap());
    server.objects("/api/v1/secrets").iter().map(show).collect()
}

#[tokio::test(start_paused = true)]
async fn the_world_follows_what_is_wanted() {
    let server = FakeServer::new();
    let client = server.client();
    for i in 0..10 {
        make(&client, &format!("x{i}"), "1").await;
    }
    let (mirror, stop, task) = start(&server).await;
    settle().await;
    assert_eq!(copies(&server).len(), 10);
    assert_eq!(mirror.busiest.load(Ordering::Relaxed), 3, "bounded concurrency, and used");
    client.patch::<ConfigMap>("a", "x1", &Patch::Merge(json!({"data": {"v": "2"}})), "").await.unwrap();
    client.delete::<ConfigMap>("a", "x2", &DeleteOptions::default()).await.unwrap();
    client.delete::<Secret>("a", "x3", &DeleteOptions::default()).await.unwrap();
    settle().await;
    assert!(copies(&server).contains(&"x1=2".into()));
    assert!(!copies(&server).iter().any(|c| c.starts_with("x2=")));
    assert!(copies(&server).contains(&"x3=1".into()), "a copy that someone deleted comes back");
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_until_they_succeed() {
    let server = FakeServer::new();
    let (mirror, stop, task) = start(&server).await;
    settle().await;
    mirror.failures.store(6, Ordering::Relaxed);
    make(&server.client(), "x", "1").await;
    settle().await;
    assert_eq!(copies(&server), ["x=1"]);
    let runs = mirror.runs.lock().unwrap()["x"];
    assert!((7..=9).contains(&runs), "{runs} runs for 6 failures");
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_resync_wakes_every_key_though_nothing_changes() {
    let server = FakeServer::new();
    make(&server.client(), "x", "1").await;
    let (mirror, stop, task) = start(&server).await;
    settle().await;
    let before = mirror.runs.lock().unwrap()["x"];
    tokio::time::sleep(client::limits::RESYNC_INTERVAL).await;
    assert_eq!(mirror.runs.lock().unwrap()["x"], before + 1);
    stop.cancel();
    task.await.unwrap();
}

struct Odd(Mutex<Vec<(String, u64)>>, tokio::time::Instant);

#[async_trait]
impl Reconciler for Odd {
    type Key = Key;
    type Error = Error;

    async fn reconcile(&self, key: Key) -> Result<Option<Duration>, Error> {
        let runs = {
            let mut log = self.0.lock().unwrap();
            log.push((key.name.clone(), self.1.elapsed().as_secs()));
            log.iter().filter(|(name, _)| *name == key.name).count()
        };
        match key.name.as_str() {
            "again" if runs < 4 => Ok(Some(Duration::from_secs(7))),
            "panics" if runs == 1 => panic!("a bug in one reconcile"),
            "slow" => {
                tokio::time::sleep(Duration::from_secs(3)).await;
                self.0.lock().unwrap().push(("slow ended".into(), self.1.elapsed().as_secs()));
                Ok(None)
            }
            _ => Ok(None),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn requeues_survives_panics_and_lets_runs_finish_when_stopped() {
    let log = Arc::new(Odd(Mutex::default(), tokio::time::Instant::now()));
    struct Shared(Arc<Odd>);
    #[async_trait]
    impl Reconciler for Shared {
        type Key = Key;
        type Error = Error;
        async fn reconcile(&self, key: Key) -> Result<Option<Duration>, Error> {
            self.0.reconcile(key).await
        }
    }
    let controller = Controller::new("odd", Shared(log.clone()));
    let (queue, stop) = (controller.queue(), CancellationToken::new());
    let task = tokio::spawn(controller.run(stop.clone()));
    queue.add(Key::new("", "again"));
    queue.add(Key::new("", "panics"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let runs = |name: &str| log.0.lock().unwrap().iter().filter(|(n, _)| n == name).map(|(_, at)| *at).collect::<Vec<_>>();
    assert_eq!(runs("again"), [0, 7, 14, 21]);
    assert_eq!(runs("panics").len(), 2);
    queue.add(Key::new("", "slow"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.cancel();
    task.await.unwrap();
    assert_eq!(runs("slow ended").len(), 1, "a running reconcile was let finish");
}
