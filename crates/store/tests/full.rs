//! A disk that is full or breaks: writes are refused with the reason, reads go on, and when the disk recovers so does
//! the store.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::Disk;
use store::limits::RETRY_INTERVAL;
use store::{Cache, Embedded, Error, Expect, Options, Revision, Store, Write};

fn put(key: &str, bytes: usize) -> Vec<Write> {
    vec![Write { key: key.into(), expect: Expect::Any, value: Some(vec![b'x'; bytes].into()) }]
}

/// Fills until it is refused; gives what was acknowledged and the reason.
async fn fill(store: &dyn Store) -> (Vec<(String, Revision)>, String) {
    let mut acknowledged = Vec::new();
    for i in 0..10_000 {
        let key = format!("k/{i:05}");
        match store.txn(put(&key, 3000)).await {
            Ok(revision) => acknowledged.push((key, revision)),
            Err(Error::ReadOnly(why)) => return (acknowledged, why),
            Err(e) => panic!("{e}"),
        }
    }
    panic!("this disk never fills");
}

async fn holds(store: &dyn Store, acknowledged: &[(String, Revision)]) {
    let (entries, _) = store.range("k/").await.unwrap();
    let found: Vec<(String, Revision)> = entries.into_iter().map(|e| (e.key, e.revision)).collect();
    assert_eq!(found, acknowledged);
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_lets_them_in_again() {
    let disk = Disk::default();
    let store: Arc<dyn Store> = Arc::new(Embedded::open_with(disk.opener(), Options::default()).unwrap());
    let cache = Cache::open(store.clone()).await.unwrap();
    let full_at = disk.lock().bytes.len() as u64 + (1 << 20);
    disk.lock().full_at = Some(full_at);
    let (mut acknowledged, why) = fill(&*store).await;
    assert!(acknowledged.len() > 50 && !why.is_empty());
    holds(&*store, &acknowledged).await;
    assert_eq!(cache.snapshot().range("k/").count(), acknowledged.len());
    // At once again: refused without touching the disk. A while later: tried, and refused again.
    assert!(matches!(store.txn(put("k/no", 1)).await, Err(Error::ReadOnly(_))));
    tokio::time::sleep(RETRY_INTERVAL).await;
    assert!(matches!(store.txn(put("k/no", 1 << 21)).await, Err(Error::ReadOnly(_))));
    disk.lock().full_at = None;
    tokio::time::sleep(RETRY_INTERVAL).await;
    let revision = cache.txn(put("k/zzzzz", 3000)).await.unwrap();
    acknowledged.push(("k/zzzzz".into(), revision));
    holds(&*store, &acknowledged).await;
    assert_eq!(cache.snapshot().get("k/zzzzz").unwrap().revision, revision);
    drop((cache, store));
    // The task that followed the store goes with its next turn.
    tokio::time::sleep(Duration::from_millis(50)).await;
    holds(&Embedded::open_with(disk.opener(), Options::default()).unwrap(), &acknowledged).await;
}

#[tokio::test]
async fn a_breaking_disk_never_shows_what_it_did_not_keep() {
    let disk = Disk::default();
    let store: Arc<dyn Store> = Arc::new(Embedded::open_with(disk.opener(), Options::default()).unwrap());
    let mut events = store.watch(0).await.unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..4 {
        disk.lock().broken = Some(std::io::ErrorKind::Other);
        let failed = store.txn(put(&format!("k/{round}-lost"), 10)).await;
        assert!(matches!(failed, Err(Error::ReadOnly(_))), "{failed:?}");
        disk.lock().broken = None;
        tokio::time::sleep(RETRY_INTERVAL).await;
        let key = format!("k/{round}-kept");
        let revision = store.txn(put(&key, 10)).await.unwrap();
        acknowledged.push((key, revision));
    }
    holds(&*store, &acknowledged).await;
    for (key, revision) in &acknowledged {
        let batch = tokio::time::timeout(Duration::from_secs(5), events.recv()).await.unwrap().unwrap();
        assert_eq!((batch.len(), batch[0].key(), batch[0].revision()), (1, key.as_str(), *revision));
    }
}

/// The same on a real file system: a small tmpfs in a mount namespace of this thread's own.
#[test]
fn a_real_full_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    std::thread::spawn(move || {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        use rustix::thread::{UnshareFlags, unshare_unsafe};
        // SAFETY: only this thread's view of mounts changes; no file descriptors are unshared.
        if unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.is_err() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), Some(c"size=4m")).unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(full_tmpfs(&path));
    })
    .join()
    .unwrap();
}

async fn full_tmpfs(path: &Path) {
    let ballast = path.join("ballast");
    std::fs::write(&ballast, vec![1; 1 << 20]).unwrap();
    let store = Embedded::open(&path.join("store"), Options::default()).unwrap();
    let (mut acknowledged, why) = fill(&store).await;
    assert!(why.contains("No space left on device"), "{why}");
    holds(&store, &acknowledged).await;
    std::fs::remove_file(&ballast).unwrap();
    tokio::time::sleep(RETRY_INTERVAL).await;
    let revision = store.txn(put("k/zzzzz", 3000)).await.unwrap();
    acknowledged.push(("k/zzzzz".into(), revision));
    drop(store);
    holds(&Embedded::open(&path.join("store"), Options::default()).unwrap(), &acknowledged).await;
}
