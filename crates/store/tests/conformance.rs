//! What every store must do, run over each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use base::Ids;
use bytes::Bytes;
use store::limits::{HISTORY_EVENTS_MAX, WATCH_BATCHES};
use store::{Batch, Embedded, Entry, Error, Event, Expect, Keyring, Memory, Options, Revision, Store, Write};
use tokio::sync::mpsc::Receiver;

fn put(key: &str, expect: Expect, value: &str) -> Write {
    Write { key: key.into(), expect, value: Some(Bytes::copy_from_slice(value.as_bytes())) }
}

fn delete(key: &str, expect: Expect) -> Write {
    Write { key: key.into(), expect, value: None }
}

async fn set(store: &dyn Store, key: &str, value: &str) -> Revision {
    store.txn(vec![put(key, Expect::Any, value)]).await.unwrap()
}

async fn get(store: &dyn Store, key: &str) -> Option<(String, Revision)> {
    store.get(key).await.unwrap().map(|e| (String::from_utf8(e.value.to_vec()).unwrap(), e.revision))
}

async fn range(store: &dyn Store, prefix: &str) -> Vec<String> {
    store.range(prefix).await.unwrap().0.into_iter().map(|e| e.key).collect()
}

/// The next `n` events, one line each; checks that no revision is split over two batches.
async fn next(watch: &mut Receiver<Batch>, n: usize) -> Vec<String> {
    let mut out = Vec::new();
    let mut last = 0;
    while out.len() < n {
        let batch = tokio::time::timeout(Duration::from_secs(10), watch.recv()).await.expect("an event is missing").expect("cut off");
        assert!(batch[0].revision() > last, "a revision is split over two batches, or told twice");
        last = batch.last().unwrap().revision();
        out.extend(batch.iter().map(show));
    }
    out
}

fn show(event: &Event) -> String {
    let text = |b: &Bytes| String::from_utf8(b.to_vec()).unwrap();
    match event {
        Event::Put { entry, previous } => {
            format!("{} put {}={} was {}", entry.revision, entry.key, text(&entry.value), previous.as_ref().map_or("-".into(), text))
        }
        Event::Delete { key, revision, previous } => format!("{revision} delete {key} was {}@{}", text(&previous.value), previous.revision),
    }
}

async fn one_order_of_revisions(store: Arc<dyn Store>) {
    assert_eq!(store.range("").await.unwrap(), (vec![], 0));
    let a = set(&*store, "k/a", "1").await;
    let b = set(&*store, "k/b", "2").await;
    assert!(0 < a && a < b);
    assert_eq!(get(&*store, "k/a").await, Some(("1".into(), a)));
    assert_eq!(get(&*store, "k/c").await, None);
    let both = store.txn(vec![put("k/a", Expect::At(a), "3"), put("k/c", Expect::Absent, "4")]).await.unwrap();
    assert!(both > b);
    assert_eq!((get(&*store, "k/a").await.unwrap().1, get(&*store, "k/c").await.unwrap().1), (both, both));
    assert_eq!(store.txn(vec![]).await.unwrap(), both, "writing nothing takes no revision");
    assert_eq!(store.history().await, 0..both + 1);
}

async fn ranges_are_by_prefix_in_byte_order(store: Arc<dyn Store>) {
    for key in ["b/1", "a/2", "a/10", "a/1", "a0", "a", "a/é", "a/\u{10FFFF}"] {
        set(&*store, key, "x").await;
    }
    assert_eq!(range(&*store, "a/").await, ["a/1", "a/10", "a/2", "a/é", "a/\u{10FFFF}"]);
    assert_eq!(range(&*store, "a").await.len(), 7);
    assert_eq!(range(&*store, "c").await, Vec::<String>::new());
    let (entries, revision) = store.range("").await.unwrap();
    assert_eq!((entries.len(), revision), (8, 8));
}

async fn preconditions_hold_or_nothing_happens(store: Arc<dyn Store>) {
    let old = set(&*store, "k", "1").await;
    let new = set(&*store, "k", "2").await;
    let wrong = [
        put("k", Expect::Absent, "x"),
        put("k", Expect::At(old), "x"),
        put("none", Expect::At(new), "x"),
        delete("k", Expect::Absent),
        delete("k", Expect::At(old)),
        delete("none", Expect::Any),
        delete("none", Expect::Absent),
    ];
    for write in wrong {
        let found = if write.key == "k" { Some(new) } else { None };
        let expect = Error::Conflict { key: write.key.clone(), expected: write.expect.clone(), found };
        assert_eq!(store.txn(vec![write.clone()]).await, Err(expect.clone()));
        // Beside a good one it takes the good one down, before it and after it.
        let good = put("other", Expect::Absent, "x");
        assert_eq!(store.txn(vec![good.clone(), write.clone()]).await, Err(expect.clone()));
        assert_eq!(store.txn(vec![write, good]).await, Err(expect));
    }
    let twice = store.txn(vec![put("t", Expect::Any, "1"), put("t", Expect::Any, "2")]).await;
    assert!(matches!(twice, Err(Error::Conflict { .. })), "a key twice in one transaction has no meaning");
    assert_eq!((range(&*store, "").await, store.range("").await.unwrap().1), (vec!["k".to_string()], new));
    let gone = store.txn(vec![delete("k", Expect::At(new))]).await.unwrap();
    assert_eq!(get(&*store, "k").await, None);
    let back = store.txn(vec![put("k", Expect::Absent, "3")]).await.unwrap();
    assert!(back > gone);
}

async fn watches_tell_everything_once_in_order(store: Arc<dyn Store>) {
    set(&*store, "a", "1").await;
    set(&*store, "a", "2").await;
    let mut from_start = store.watch(0).await.unwrap();
    let mut from_one = store.watch(1).await.unwrap();
    let mut from_now = store.watch(2).await.unwrap();
    store.txn(vec![put("b", Expect::Absent, "1"), delete("a", Expect::Any), put("c", Expect::Any, "1")]).await.unwrap();
    set(&*store, "a", "3").await;
    let late = ["3 put b=1 was -", "3 delete a was 2@2", "3 put c=1 was -", "4 put a=3 was -"];
    assert_eq!(next(&mut from_now, 4).await, late);
    assert_eq!(next(&mut from_one, 5).await, [&["2 put a=2 was 1"][..], &late].concat());
    assert_eq!(next(&mut from_start, 6).await, [&["1 put a=1 was -", "2 put a=2 was 1"][..], &late].concat());
    let mut again = store.watch(2).await.unwrap();
    assert_eq!(next(&mut again, 4).await, late, "the past is told as the present was");
    let _ = store.txn(vec![delete("none", Expect::Any)]).await.unwrap_err();
    set(&*store, "d", "1").await;
    assert_eq!(next(&mut from_now, 1).await, ["5 put d=1 was -"]);
}

async fn compaction_forgets_the_past_and_keeps_the_present(store: Arc<dyn Store>) {
    for value in ["1", "2", "3", "4"] {
        set(&*store, "a", value).await;
    }
    set(&*store, "gone", "x").await;
    store.txn(vec![delete("gone", Expect::Any)]).await.unwrap();
    store.compact(3).await.unwrap();
    assert_eq!(store.history().await, 3..7);
    assert_eq!(store.watch(2).await.err(), Some(Error::Compacted(2)));
    let told = ["4 put a=4 was 3", "5 put gone=x was -", "6 delete gone was x@5"];
    assert_eq!(next(&mut store.watch(3).await.unwrap(), 3).await, told);
    store.compact(99).await.unwrap();
    store.compact(1).await.unwrap();
    assert_eq!(store.history().await, 6..7);
    assert_eq!((get(&*store, "a").await, range(&*store, "").await), (Some(("4".into(), 4)), vec!["a".to_string()]));
    let mut watch = store.watch(6).await.unwrap();
    assert_eq!(set(&*store, "a", "5").await, 7);
    assert_eq!(next(&mut watch, 1).await, ["7 put a=5 was 4"]);
}

async fn history_is_bounded(store: Arc<dyn Store>) {
    let total = HISTORY_EVENTS_MAX as u64 + 500;
    let writers = (0..50).map(|w| {
        let store = store.clone();
        tokio::spawn(async move {
            for i in 0..total / 50 {
                set(&*store, &format!("k/{w}"), &i.to_string()).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let history = store.history().await;
    assert_eq!(history.end, total + 1);
    // A bound may be reached a group late.
    assert!(history.end - history.start <= HISTORY_EVENTS_MAX as u64 + 64, "{history:?}");
    assert!(matches!(store.watch(history.start - 1).await, Err(Error::Compacted(_))));
    let mut watch = store.watch(history.start).await.unwrap();
    assert_eq!(next(&mut watch, (history.end - 1 - history.start) as usize).await.len() as u64, history.end - 1 - history.start);
}

async fn compare_and_set_loses_no_update(store: Arc<dyn Store>) {
    let mut watch = store.watch(0).await.unwrap();
    set(&*store, "n", "0").await;
    let adders = (0..16).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..20 {
                loop {
                    let (value, revision) = get(&*store, "n").await.unwrap();
                    let more = (value.parse::<u64>().unwrap() + 1).to_string();
                    match store.txn(vec![put("n", Expect::At(revision), &more)]).await {
                        Ok(_) => break,
                        Err(Error::Conflict { .. }) => {}
                        Err(e) => panic!("{e}"),
                    }
                }
            }
        })
    });
    for adder in adders.collect::<Vec<_>>() {
        adder.await.unwrap();
    }
    assert_eq!(get(&*store, "n").await.unwrap(), ("320".into(), 321), "refused writes take no revision");
    let told = next(&mut watch, 321).await;
    assert_eq!(told[320], "321 put n=320 was 319");
}

async fn a_reader_that_never_reads_is_cut_off(store: Arc<dyn Store>) {
    let mut lazy = store.watch(0).await.unwrap();
    let mut writes = tokio::task::JoinSet::new();
    for i in 0..WATCH_BATCHES * 2 {
        let store = store.clone();
        writes.spawn(async move { set(&*store, &format!("k/{}", i % 100), "x").await });
    }
    while let Some(done) = writes.join_next().await {
        done.unwrap();
    }
    let mut seen = BTreeSet::new();
    let drain = async {
        while let Some(batch) = lazy.recv().await {
            seen.extend(batch.iter().map(Event::revision));
        }
    };
    // A store that groups may have needed fewer batches than the channel holds: then nothing was lost.
    let cut = tokio::time::timeout(Duration::from_millis(500), drain).await.is_ok();
    assert!(cut || seen.len() == WATCH_BATCHES * 2);
    assert_eq!(seen.last().copied().unwrap() as usize, seen.len(), "no hole before the cut");
}

/// Random transactions against a model: a sorted map that is a plain program.
async fn agrees_with_a_model(store: Arc<dyn Store>) {
    let ids = Ids::seeded(42);
    let mut model: BTreeMap<String, (String, Revision)> = BTreeMap::new();
    let mut watch = store.watch(0).await.unwrap();
    let mut told = Vec::new();
    let mut revision = 0;
    for step in 0..400 {
        let mut writes = Vec::new();
        for _ in 0..=ids.next_u64() % 3 {
            let key = format!("k/{}", ids.next_u64() % 12);
            let expect = match (ids.next_u64() % 4, model.get(&key)) {
                (0, _) => Expect::Absent,
                (1, Some((_, at))) => Expect::At(*at),
                (2, _) => Expect::At(ids.next_u64() % (revision + 1)),
                _ => Expect::Any,
            };
            let value = (!ids.next_u64().is_multiple_of(3)).then(|| format!("{step}"));
            writes.push(Write { key, expect, value: value.map(Bytes::from) });
        }
        let mut after = model.clone();
        let mut seen = BTreeSet::new();
        let mut events = Vec::new();
        let fits = writes.iter().all(|w| {
            let at = model.get(&w.key).map(|(_, r)| *r);
            let expected = match w.expect {
                Expect::Absent => at.is_none(),
                Expect::At(r) => at == Some(r),
                Expect::Any => true,
            };
            let old = after.remove(&w.key);
            match &w.value {
                Some(v) => {
                    let v = String::from_utf8(v.to_vec()).unwrap();
                    events.push(format!("{} put {}={v} was {}", revision + 1, w.key, old.map_or("-".into(), |o| o.0)));
                    after.insert(w.key.clone(), (v, revision + 1));
                }
                None => events.extend(old.map(|(v, r)| format!("{} delete {} was {v}@{r}", revision + 1, w.key))),
            }
            expected && (w.value.is_some() || at.is_some()) && seen.insert(w.key.clone())
        });
        match store.txn(writes).await {
            Ok(at) => {
                assert!(fits, "step {step} should have been refused");
                assert_eq!(at, revision + 1);
                (model, revision) = (after, at);
                told.extend(events);
            }
            Err(Error::Conflict { .. }) => assert!(!fits, "step {step} should have been accepted"),
            Err(e) => panic!("{e}"),
        }
        if step % 37 == 0 {
            let entries: Vec<(String, (String, Revision))> = (store.range("").await.unwrap().0.into_iter())
                .map(|Entry { key, value, revision }| (key, (String::from_utf8(value.to_vec()).unwrap(), revision)))
                .collect();
            assert_eq!(entries, model.clone().into_iter().collect::<Vec<_>>());
        }
    }
    assert_eq!(next(&mut watch, told.len()).await, told);
    assert_eq!(next(&mut store.watch(0).await.unwrap(), told.len()).await, told);
}

macro_rules! suite {
    ($($case:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(std::sync::Arc::new(super::Memory::new())).await;
            })*
        }
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let dir = tempfile::tempdir().unwrap();
                let store = super::Embedded::open(dir.path(), super::Options::default()).unwrap();
                super::$case(std::sync::Arc::new(store)).await;
            })*
        }
    };
}

suite!(
    one_order_of_revisions,
    ranges_are_by_prefix_in_byte_order,
    preconditions_hold_or_nothing_happens,
    watches_tell_everything_once_in_order,
    compaction_forgets_the_past_and_keeps_the_present,
    history_is_bounded,
    compare_and_set_loses_no_update,
    a_reader_that_never_reads_is_cut_off,
    agrees_with_a_model,
);

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Embedded::open(dir.path(), Options::default()).unwrap();
    let store = open();
    for value in ["1", "2", "3"] {
        set(&store, "a", value).await;
    }
    set(&store, "b", "1").await;
    store.txn(vec![delete("b", Expect::Any)]).await.unwrap();
    drop(store);
    let store = open();
    assert_eq!((store.history().await, range(&store, "").await), (0..6, vec!["a".to_string()]));
    let told = ["2 put a=2 was 1", "3 put a=3 was 2", "4 put b=1 was -", "5 delete b was 1@4"];
    assert_eq!(next(&mut store.watch(1).await.unwrap(), 4).await, told);
    // Compacted to the end, the counter goes on all the same.
    store.compact(5).await.unwrap();
    set(&store, "c", "1").await;
    store.compact(6).await.unwrap();
    store.txn(vec![delete("c", Expect::Any)]).await.unwrap();
    drop(store);
    let store = open();
    assert_eq!(store.history().await, 6..8);
    assert_eq!(store.watch(5).await.err(), Some(Error::Compacted(5)));
    assert_eq!(set(&store, "c", "2").await, 8);
}

#[tokio::test]
async fn secrets_are_unreadable_on_disk_and_whole_in_events() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let open = |keys: &std::path::Path| {
        Embedded::open(dir.path(), Options { keyring: Some(Keyring::open(keys).unwrap()), ..Options::default() }).unwrap()
    };
    let store = open(&keys);
    set(&store, "core/secrets/a/b", "correct horse battery staple").await;
    set(&store, "core/configmaps/a/b", "plainly visible").await;
    drop(store);
    let file = std::fs::read(dir.path().join("log.redb")).unwrap();
    let holds = |needle: &str| file.windows(needle.len()).any(|w| w == needle.as_bytes());
    assert!(holds("plainly visible") && !holds("horse"));
    let store = open(&keys);
    assert_eq!(get(&store, "core/secrets/a/b").await.unwrap().0, "correct horse battery staple");
    store.txn(vec![delete("core/secrets/a/b", Expect::Any)]).await.unwrap();
    let told = next(&mut store.watch(2).await.unwrap(), 1).await;
    assert_eq!(told, ["3 delete core/secrets/a/b was correct horse battery staple@1"]);
    set(&store, "core/secrets/a/c", "x").await;
    drop(store);
    let stranger = open(&dir.path().join("other"));
    let refused = stranger.range("").await.unwrap_err().to_string();
    assert!(refused.contains("core/secrets/a/c: encrypted with key") && refused.contains("restore that file"), "{refused}");
}

#[test]
fn a_damaged_or_foreign_file_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    std::fs::write(&path, "this is not a store").unwrap();
    let refused = Embedded::open(dir.path(), Options::default()).err().unwrap().to_string();
    assert!(refused.contains(&dir.path().display().to_string()), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), b"this is not a store", "left as it was");
}
