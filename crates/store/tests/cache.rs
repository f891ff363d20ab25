//! The cache: what is written is seen, what is seen is told, lists and watches agree.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::Ids;
use serde_json::{Value, json};
use store::cache::{EventType, Object, Watcher, encode};
use store::limits::{
    HELD_SNAPSHOT_TTL, HELD_SNAPSHOTS_MAX, HISTORY_EVENTS_MAX, RING_EVENTS_MAX, RING_EVENTS_MIN, RING_FRESH, WATCH_BATCHES,
};
use store::{Cache, Embedded, Error, Expect, Memory, Options, Revision, Store, Write};

fn value(name: &str, app: &str, n: u64) -> String {
    json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "name": name, "uid": format!("uid-{name}"), "labels": { "app": app } }, "n": n })
        .to_string()
}

fn put(key: &str, app: &str, n: u64) -> Write {
    let name = key.rsplit('/').next().unwrap();
    Write { key: key.into(), expect: Expect::Any, value: Some(value(name, app, n).into()) }
}

fn delete(key: &str) -> Write {
    Write { key: key.into(), expect: Expect::Any, value: None }
}

async fn memory() -> Cache {
    Cache::open(Arc::new(Memory::new())).await.unwrap()
}

/// `TYPE name@revision n`, of an event as it goes over the wire.
fn show(bytes: &[u8]) -> String {
    assert!(bytes.ends_with(b"}\n"));
    let event: Value = serde_json::from_slice(bytes).unwrap();
    let (kind, object) = (event["type"].as_str().unwrap(), &event["object"]);
    let meta = &object["metadata"];
    format!("{kind} {}@{} {}", meta["name"].as_str().unwrap(), meta["resourceVersion"].as_str().unwrap(), object["n"])
}

async fn next(watcher: &mut Watcher, n: usize) -> Vec<String> {
    let mut out = Vec::new();
    while out.len() < n {
        let changes = tokio::time::timeout(Duration::from_secs(10), watcher.next()).await.expect("an event is missing").unwrap();
        out.extend(changes.iter().map(|c| show(&c.encoded())));
    }
    out
}

#[tokio::test]
async fn objects_are_wire_bytes_and_lists_share_them() {
    let cache = memory().await;
    for key in ["core/pods/a/x", "core/pods/b/y", "core/nodes//n1"] {
        cache.txn(vec![put(key, "web", 0)]).await.unwrap();
    }
    let snapshot = cache.snapshot();
    let keys = |prefix| snapshot.range(prefix).map(|o| o.key.to_string()).collect::<Vec<_>>();
    assert_eq!(keys("core/pods/"), ["core/pods/a/x", "core/pods/b/y"]);
    assert_eq!(keys("core/pods/b/"), ["core/pods/b/y"]);
    assert_eq!(snapshot.range_after("core/pods/", "core/pods/a/x").map(|o| o.name()).collect::<Vec<_>>(), ["y"]);
    let node = snapshot.get("core/nodes//n1").unwrap();
    assert_eq!((node.name(), node.namespace(), &*node.uid, node.label("app")), ("n1", "", "uid-n1", Some("web")));
    let chunks = encode::list("v1", "PodList", snapshot.revision, "to\"ken", Some(7), snapshot.range("core/pods/"));
    let list: Value = serde_json::from_slice(&chunks.concat()).unwrap();
    assert_eq!(list["metadata"], json!({"resourceVersion": "3", "continue": "to\"ken", "remainingItemCount": 7}));
    assert_eq!((list["kind"].as_str(), list["items"].as_array().unwrap().len()), (Some("PodList"), 2));
    assert_eq!(list["items"][1]["metadata"]["resourceVersion"], "2");
    let shared = snapshot.get("core/pods/b/y").unwrap().item();
    assert_eq!(chunks[2].as_ptr(), shared.as_ptr(), "a list copies no object");
    let empty = encode::list("v1", "PodList", 9, "", None, []).concat();
    assert_eq!(serde_json::from_slice::<Value>(&empty).unwrap()["items"], json!([]));
}

async fn writers_read_their_writes(store: Arc<dyn Store>) {
    let cache = Cache::open(store).await.unwrap();
    let writers = (0..8).map(|w| {
        let cache = cache.clone();
        tokio::spawn(async move {
            for n in 0..30 {
                let key = format!("core/pods/a/{w}");
                let revision = cache.txn(vec![put(&key, "web", n), put(&format!("core/pods/b/{w}"), "web", n)]).await.unwrap();
                let snapshot = cache.snapshot();
                assert!(snapshot.revision >= revision);
                assert_eq!(snapshot.get(&key).unwrap().revision, revision);
                let pairs = |ns: &str| snapshot.range(ns).map(|o| o.revision).collect::<Vec<_>>();
                assert_eq!(pairs("core/pods/a/"), pairs("core/pods/b/"), "a transaction is visible whole");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_visible_in_memory() {
    writers_read_their_writes(Arc::new(Memory::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_visible_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    writers_read_their_writes(Arc::new(Embedded::open(dir.path(), Options::default()).unwrap())).await;
}

#[tokio::test]
async fn a_watch_tells_what_happened_from_any_revision_on() {
    let cache = memory().await;
    for n in 1..=3 {
        cache.txn(vec![put("core/pods/a/x", "web", n)]).await.unwrap();
    }
    cache.txn(vec![put("core/podtemplates/a/x", "web", 0)]).await.unwrap();
    cache.txn(vec![put("core/pods/b/y", "web", 1)]).await.unwrap();
    cache.txn(vec![delete("core/pods/a/x")]).await.unwrap();
    let all = ["ADDED x@1 1", "MODIFIED x@2 2", "MODIFIED x@3 3", "ADDED y@5 1", "DELETED x@6 3"];
    for (after, from) in [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3), (5, 4)] {
        let mut watcher = cache.watch("core/pods/", after).unwrap();
        assert_eq!(next(&mut watcher, all.len() - from).await, all[from..]);
        assert!(watcher.take().unwrap().is_empty());
    }
    let mut in_b = cache.watch("core/pods/b/", 0).unwrap();
    assert_eq!(next(&mut in_b, 1).await, ["ADDED y@5 1"]);
    let (snapshot, mut now) = cache.watch_now("core/pods/").unwrap();
    assert_eq!((snapshot.revision, snapshot.range("core/pods/").count()), (6, 1));
    cache.txn(vec![put("core/pods/b/y", "web", 2)]).await.unwrap();
    assert_eq!(next(&mut now, 1).await, ["MODIFIED y@7 2"]);
}

#[tokio::test]
async fn a_selector_sees_objects_enter_and_leave() {
    let cache = memory().await;
    let mut watcher = cache.watch("core/pods/", 0).unwrap();
    for (app, n) in [("db", 1), ("web", 2), ("web", 3), ("db", 4), ("db", 5), ("web", 6)] {
        cache.txn(vec![put("core/pods/a/x", app, n)]).await.unwrap();
    }
    cache.txn(vec![delete("core/pods/a/x")]).await.unwrap();
    cache.txn(vec![put("core/pods/a/z", "db", 8)]).await.unwrap();
    cache.txn(vec![delete("core/pods/a/z")]).await.unwrap();
    let seen: Vec<String> = (watcher.take().unwrap().iter())
        .filter_map(|c| c.seen_by(|o| o.label("app") == Some("web")))
        .map(|(kind, object)| show(&encode::event(kind, &object)))
        .collect();
    // It leaves with its last state within the view, under the revision of the leaving.
    assert_eq!(seen, ["ADDED x@2 2", "MODIFIED x@3 3", "DELETED x@4 3", "ADDED x@6 6", "DELETED x@7 6"]);
}

/// Whoever lists and then watches knows at every bookmark exactly what the cache holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_and_watch_add_up_to_the_state() {
    let cache = memory().await;
    let web = |o: &Object| o.label("app") == Some("web");
    let writer = tokio::spawn({
        let (cache, ids) = (cache.clone(), Ids::seeded(3));
        async move {
            for n in 0..3000 {
                let key = format!("core/pods/a/{}", ids.next_u64() % 40);
                let app = if ids.next_u64().is_multiple_of(2) { "web" } else { "db" };
                let write = if ids.next_u64().is_multiple_of(4) { delete(&key) } else { put(&key, app, n) };
                let _ = cache.txn(vec![write]).await;
                if n % 50 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    });
    let (snapshot, mut watcher) = cache.watch_now("core/pods/").unwrap();
    let entry = |o: &Object| (o.key.to_string(), o.json());
    let mut view: BTreeMap<_, _> = snapshot.range("core/pods/").filter(|o| web(o)).map(|o| entry(o)).collect();
    let mut compared = 0;
    loop {
        let done = writer.is_finished();
        for change in watcher.take().unwrap() {
            assert!(change.revision > snapshot.revision);
            match change.seen_by(web) {
                Some((EventType::Deleted, object)) => assert!(view.remove(&*object.key).is_some(), "a deletion of nothing"),
                Some((EventType::Added, object)) => assert!(view.insert(object.key.to_string(), object.json()).is_none()),
                Some((EventType::Modified, object)) => assert!(view.insert(object.key.to_string(), object.json()).is_some()),
                None => {}
            }
        }
        let now = cache.snapshot();
        if watcher.told() == now.revision {
            let state: BTreeMap<_, _> = now.range("core/pods/").filter(|o| web(o)).map(|o| entry(o)).collect();
            assert_eq!(view, state);
            compared += 1;
            if done {
                break;
            }
        }
        tokio::task::yield_now().await;
    }
    assert!(compared > 10);
}

#[tokio::test]
async fn a_watcher_that_lags_is_cut_off_and_others_are_not() {
    let cache = memory().await;
    let mut slow = cache.watch("core/pods/", 0).unwrap();
    let mut quiet = cache.watch("core/nodes/", 0).unwrap();
    for n in 0..RING_EVENTS_MAX as u64 + 1 {
        cache.txn(vec![put("core/pods/a/x", "web", n)]).await.unwrap();
    }
    assert!(matches!(slow.take(), Err(Error::Compacted(0))));
    assert!(matches!(cache.watch("core/pods/", 0), Err(Error::Compacted(0))));
    assert_eq!(cache.watch("core/pods/", 1).unwrap().take().unwrap().len(), store::limits::WATCH_EVENTS_AT_ONCE);
    assert!(quiet.take().unwrap().is_empty());
    assert_eq!(quiet.told(), RING_EVENTS_MAX as u64 + 1, "a bookmark lets a quiet watch move on");
}

#[tokio::test(start_paused = true)]
async fn a_ring_keeps_little_of_what_is_old() {
    let cache = memory().await;
    for n in 0..2 * RING_EVENTS_MIN as u64 {
        cache.txn(vec![put("core/pods/a/x", "web", n)]).await.unwrap();
    }
    cache.watch("core/pods/", 0).unwrap();
    tokio::time::sleep(RING_FRESH + Duration::from_secs(1)).await;
    let last = cache.txn(vec![put("core/pods/a/x", "web", 9)]).await.unwrap();
    assert!(cache.watch("core/pods/", 0).is_err());
    cache.watch("core/pods/", last - RING_EVENTS_MIN as Revision).unwrap();
}

#[tokio::test(start_paused = true)]
async fn pages_are_read_from_the_snapshot_of_the_first() {
    let cache = memory().await;
    for n in 0..10 {
        cache.txn(vec![put(&format!("core/pods/a/{n}"), "web", n)]).await.unwrap();
    }
    let first = cache.snapshot();
    cache.hold(&first);
    for n in 0..10 {
        cache.txn(vec![delete(&format!("core/pods/a/{n}"))]).await.unwrap();
    }
    let held = cache.held(10).unwrap();
    assert_eq!(held.range_after("core/pods/", "core/pods/a/4").count(), 5);
    assert!(cache.held(5).is_none() && cache.held(20).is_some());
    for n in 0..HELD_SNAPSHOTS_MAX as u64 {
        cache.txn(vec![put("core/pods/a/x", "web", n)]).await.unwrap();
        cache.hold(&cache.snapshot());
    }
    assert!(cache.held(10).is_none(), "held snapshots are bounded in number");
    cache.txn(vec![put("core/pods/a/x", "web", 0)]).await.unwrap();
    assert!(cache.held(30).is_some());
    tokio::time::sleep(HELD_SNAPSHOT_TTL).await;
    assert!(cache.held(30).is_none(), "and in time");
}

#[tokio::test]
async fn watches_resume_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let open = || async { Cache::open(Arc::new(Embedded::open(dir.path(), Options::default()).unwrap())).await.unwrap() };
    let cache = open().await;
    cache.txn(vec![put("core/pods/a/x", "web", 1)]).await.unwrap();
    cache.txn(vec![put("core/pods/a/x", "db", 2), put("core/nodes//n", "", 0)]).await.unwrap();
    cache.txn(vec![put("core/pods/a/y", "web", 3)]).await.unwrap();
    cache.txn(vec![delete("core/pods/a/x")]).await.unwrap();
    drop(cache);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let cache = open().await;
    assert_eq!(cache.revision(), 4);
    let mut watcher = cache.watch("core/pods/", 1).unwrap();
    let changes = watcher.next().await.unwrap();
    let (all, web): (Vec<_>, Vec<_>) = (changes.iter())
        .map(|c| (show(&c.encoded()), c.seen_by(|o| o.label("app") == Some("web")).map(|(k, o)| show(&encode::event(k, &o)))))
        .unzip();
    assert_eq!(all, ["MODIFIED x@2 2", "ADDED y@3 3", "DELETED x@4 2"]);
    assert_eq!(web.into_iter().flatten().collect::<Vec<_>>(), ["DELETED x@2 1", "ADDED y@3 3"]);
    cache.txn(vec![put("core/pods/a/y", "web", 5)]).await.unwrap();
    assert_eq!(next(&mut watcher, 1).await, ["MODIFIED y@5 5"]);
}

/// Nothing yields to the task that follows the store while `n` writes happen: it is cut off by then.
async fn outrun(n: usize) -> (Cache, Watcher) {
    let store = Arc::new(Memory::new());
    let cache = Cache::open(store.clone()).await.unwrap();
    cache.txn(vec![put("core/pods/a/gone", "web", 0)]).await.unwrap();
    let watcher = cache.watch("core/pods/", 1).unwrap();
    store.txn(vec![delete("core/pods/a/gone")]).await.unwrap();
    for i in 0..n as u64 {
        store.txn(vec![put(&format!("core/pods/a/{}", i % 10), "web", i)]).await.unwrap();
    }
    let last = n as Revision + 2;
    tokio::time::timeout(Duration::from_secs(10), cache.reached(last)).await.expect("the cache caught up");
    assert_eq!(cache.snapshot().revision, last);
    assert_eq!(cache.snapshot().range("core/pods/").count(), 10);
    (cache, watcher)
}

#[tokio::test]
async fn a_cache_that_was_outrun_catches_up_without_a_gap() {
    let (_cache, mut watcher) = outrun(WATCH_BATCHES + 100).await;
    let mut seen = 0;
    while seen < WATCH_BATCHES + 101 {
        for change in watcher.next().await.unwrap() {
            assert_eq!(change.revision, seen as Revision + 2);
            seen += 1;
        }
    }
}

#[tokio::test]
async fn a_cache_that_was_outrun_too_far_loads_again_and_cuts_its_watchers() {
    let (cache, mut watcher) = outrun(WATCH_BATCHES + HISTORY_EVENTS_MAX + 100).await;
    assert!(matches!(watcher.next().await, Err(Error::Compacted(_))));
    let revision = cache.revision();
    let mut fresh = cache.watch("core/pods/", revision).unwrap();
    cache.txn(vec![put("core/pods/a/0", "web", 7)]).await.unwrap();
    assert_eq!(next(&mut fresh, 1).await, [format!("MODIFIED 0@{} 7", revision + 1)]);
}

#[tokio::test]
async fn ten_thousand_watchers_cost_no_memory_each_event() {
    let cache = memory().await;
    let mut watchers: Vec<Watcher> = (0..10_000).map(|_| cache.watch("core/pods/", 0).unwrap()).collect();
    cache.txn(vec![put("core/pods/a/x", "web", 1)]).await.unwrap();
    let first = watchers[0].next().await.unwrap()[0].encoded();
    for watcher in &mut watchers[1..] {
        assert_eq!(watcher.next().await.unwrap()[0].encoded().as_ptr(), first.as_ptr(), "an event is encoded once");
    }
}
