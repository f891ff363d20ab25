//! A shortened week of churn: disk and index stay bounded, however much is written. `STAITHE_CHURN_WRITES` makes it longer
//! (a week of one node's leases, statuses and events is some 500,000).

mod common;

use std::sync::Arc;

use base::Ids;
use common::Disk;
use store::{Cache, Embedded, Expect, Options, Store, Write};

const OBJECTS: u64 = 300;
const WRITES: u64 = 40_000;
const VALUE_BYTES: u64 = 2000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_stays_bounded() {
    let (disk, ids) = (Disk::default(), Ids::seeded(5));
    let options = || Options { history_events: 500, ..Options::default() };
    let store: Arc<dyn Store> = Arc::new(Embedded::open_with(disk.opener(), options()).unwrap());
    let cache = Cache::open(store.clone()).await.unwrap();
    let mut peak_early = 0;
    let writes = std::env::var("STAITHE_CHURN_WRITES").ok().and_then(|n| n.parse().ok()).unwrap_or(WRITES);
    for round in 0..writes / 100 {
        let mut writers = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let key = format!("core/pods/a/{}", ids.next_u64() % OBJECTS);
            let gone = ids.next_u64().is_multiple_of(10) && cache.snapshot().get(&key).is_some();
            let text = format!(r#"{{"metadata":{{"name":"x"}},"data":"{}"}}"#, "x".repeat((ids.next_u64() % (2 * VALUE_BYTES)) as usize));
            let write = Write { key, expect: Expect::Any, value: (!gone).then(|| text.into()) };
            let cache = cache.clone();
            // Two deletions of one key in a round: the second is refused, which is as well.
            writers.spawn(async move { drop(cache.txn(vec![write]).await) });
        }
        while writers.join_next().await.is_some() {}
        if round == 40 {
            peak_early = disk.lock().length_max;
        }
    }
    let (peak, live) = (disk.lock().length_max, (OBJECTS + 500) * (VALUE_BYTES + 200));
    assert!(peak < 6 * live, "the file grew to {peak} bytes for {live} live ones");
    assert!(peak <= peak_early * 3 / 2, "it grew from {peak_early} to {peak} bytes and would go on");
    let history = store.history().await;
    assert!(history.end - history.start < 500 + 700, "{history:?}");
    let before = store.range("").await.unwrap();
    drop((cache, store));
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let again = Embedded::open_with(disk.opener(), options()).unwrap();
    assert!(again.range("").await.unwrap() == before);
}
