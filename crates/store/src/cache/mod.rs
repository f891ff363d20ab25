//! What the API reads from: all of the store in memory, as wire bytes.
//!
//! ```text
//! let snapshot = cache.snapshot();                       // one atomic load; never changes
//! let pod = snapshot.get("core/pods/default/web");       // Option<&Arc<Object>>, pod.json() is the answer's body
//! let list = encode::list("v1", "PodList", snapshot.revision, "", None, snapshot.range("core/pods/default/"));
//!
//! let revision = cache.txn(vec![Write { key, expect: Expect::At(pod.revision), value }]).await?;
//! // durable, and in every snapshot taken from now on; Error::Conflict: take a new snapshot and decide again
//!
//! let mut watcher = cache.watch("core/pods/default/", revision)?;   // Error::Compacted: answer 410 Expired
//! for change in watcher.next().await? { send(change.encoded()) }   // or change.seen_by(selector)
//! // every minute or so, when nothing is being sent: watcher.take()? then encode::bookmark(.., watcher.told(), false)
//! ```
//!
//! A list and its revision, and a list and the watch that follows it, come from one snapshot. `sendInitialEvents`:
//! `let (snapshot, watcher) = cache.watch_now(prefix)`, the snapshot's objects as ADDED, a bookmark, then the watcher.
//! A list in pages: `hold` the first page's snapshot, put its revision and the last key into the token, go on with
//! `held(revision)` and `range_after`; `None` from `held` is 410.
//!
//! Design: an ordered persistent map (`imbl::OrdMap`) behind an atomic pointer. The one writer, the task that follows the
//! store, copies a few nodes a change; readers never wait for it and it never waits for them. Values are parsed once,
//! when they arrive, for labels, uid and the place of the revision.

pub mod encode;
mod object;
mod ring;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwap;
use imbl::OrdMap;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use encode::EventType;
pub use object::Object;
pub use ring::{Change, Watcher};

use crate::limits::{HELD_SNAPSHOT_TTL, HELD_SNAPSHOTS_MAX};
use crate::{Batch, Entry, Error, Event, Revision, Store, Write};
use ring::Ring;

type Objects = OrdMap<Arc<str>, Arc<Object>>;

/// All objects at one revision.
#[derive(Debug, Default)]
pub struct Snapshot {
    objects: Objects,
    pub revision: Revision,
}

impl Snapshot {
    pub fn get(&self, key: &str) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// Objects whose key begins with `prefix`, by key.
    pub fn range<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Arc<Object>> {
        self.from(Bound::Included(prefix)).take_while(move |object| object.key.starts_with(prefix))
    }

    /// Those of them whose key is greater than `after`.
    pub fn range_after<'a>(&'a self, prefix: &'a str, after: &'a str) -> impl Iterator<Item = &'a Arc<Object>> {
        // A prefix is itself never a key: to begin after it is to begin at its first.
        self.from(Bound::Excluded(after.max(prefix))).take_while(move |object| object.key.starts_with(prefix))
    }

    fn from<'a>(&'a self, start: Bound<&'a str>) -> impl Iterator<Item = &'a Arc<Object>> {
        self.objects.range::<_, str>((start, Bound::Unbounded)).map(|(_, object)| object)
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

/// Cheap to clone; the last one to go stops following the store.
#[derive(Clone)]
pub struct Cache {
    shared: Arc<Shared>,
    _guard: Arc<Guard>,
}

struct Guard(AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Shared {
    store: Arc<dyn Store>,
    published: Arc<ArcSwap<Snapshot>>,
    rings: Mutex<Rings>,
    progress: watch::Sender<Revision>,
    held: Mutex<VecDeque<(Instant, Arc<Snapshot>)>>,
}

/// One ring a kind, made when first needed.
struct Rings {
    of: BTreeMap<Box<str>, Arc<Ring>>,
    /// Of a kind without a ring nothing happened since.
    since: Revision,
}

impl Rings {
    fn get(&mut self, key: &str) -> Arc<Ring> {
        let kind = kind_of(key);
        if let Some(ring) = self.of.get(kind) {
            return ring.clone();
        }
        let ring = Arc::new(Ring::new(self.since));
        self.of.insert(kind.into(), ring.clone());
        ring
    }
}

/// `core/pods/` of `core/pods/default/web`: the part that names the kind.
fn kind_of(key: &str) -> &str {
    key.match_indices('/').nth(1).map_or(key, |(at, _)| &key[..=at])
}

impl Cache {
    /// Reads all of the store and follows it from then on. Needs a tokio runtime.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        let history = store.history().await;
        let shared = Arc::new(Shared {
            store,
            published: Arc::default(),
            rings: Mutex::new(Rings { of: BTreeMap::new(), since: history.start }),
            progress: watch::Sender::new(0),
            held: Mutex::default(),
        });
        // First the state, then the events that led to it (for watches that resume after a restart), then new ones.
        let (entries, revision) = shared.store.range("").await?;
        shared.publish(load(entries), revision);
        let (mut events, mut told) = match shared.store.watch(history.start).await {
            Err(Error::Compacted(_)) => (shared.restart(revision).await?, revision),
            events => (events?, history.start),
        };
        while told < revision
            && let Some(batch) = events.recv().await
        {
            shared.apply(&batch);
            told = batch.last().map_or(told, Event::revision);
        }
        let task = tokio::spawn(shared.clone().follow(events));
        Ok(Self { shared, _guard: Arc::new(Guard(task.abort_handle())) })
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.published.load_full()
    }

    pub fn revision(&self) -> Revision {
        self.shared.published.load().revision
    }

    /// Writes all or nothing; when it returns, that is durable and visible in [`Cache::snapshot`].
    pub async fn txn(&self, writes: Vec<Write>) -> Result<Revision, Error> {
        let revision = self.shared.store.txn(writes).await?;
        self.reached(revision).await;
        Ok(revision)
    }

    /// Waits until snapshots are at least as new as `revision`; for reads and watches of a revision that this cache has
    /// not seen yet. The caller bounds the wait.
    pub async fn reached(&self, revision: Revision) {
        // The sender lives in `shared`, which we hold: it cannot be gone.
        let _ = self.shared.progress.subscribe().wait_for(|at| *at >= revision).await;
    }

    /// Changes after a revision of keys that begin with `prefix`, which names at least a kind (`core/pods/`).
    /// [`Error::Compacted`] if that is too long ago.
    pub fn watch(&self, prefix: &str, after: Revision) -> Result<Watcher, Error> {
        let ring = self.shared.rings().get(prefix);
        Watcher::new(ring, self.shared.published.clone(), prefix, after)
    }

    /// The present state and the changes after it.
    pub fn watch_now(&self, prefix: &str) -> Result<(Arc<Snapshot>, Watcher), Error> {
        let snapshot = self.snapshot();
        let watcher = self.watch(prefix, snapshot.revision)?;
        Ok((snapshot, watcher))
    }

    /// Keeps a snapshot for the pages of a list that are still to be read: for five minutes, of at most 64 lists.
    pub fn hold(&self, snapshot: &Arc<Snapshot>) {
        let mut held = self.shared.held();
        held.retain(|(at, s)| at.elapsed() < HELD_SNAPSHOT_TTL && s.revision != snapshot.revision);
        if held.len() >= HELD_SNAPSHOTS_MAX {
            held.pop_front();
        }
        held.push_back((Instant::now(), snapshot.clone()));
    }

    /// A snapshot that is held, or is the present one. `None`: answer 410.
    pub fn held(&self, revision: Revision) -> Option<Arc<Snapshot>> {
        let now = self.snapshot();
        if now.revision == revision {
            return Some(now);
        }
        let mut held = self.shared.held();
        held.retain(|(at, _)| at.elapsed() < HELD_SNAPSHOT_TTL);
        held.iter().find(|(_, s)| s.revision == revision).map(|(_, s)| s.clone())
    }
}

fn load(entries: Vec<Entry>) -> Objects {
    let object = |e: Entry| Arc::new(Object::new(e.key.into(), e.revision, &e.value));
    entries.into_iter().map(object).map(|o| (o.key.clone(), o)).collect()
}

impl Shared {
    fn rings(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn held(&self) -> MutexGuard<'_, VecDeque<(Instant, Arc<Snapshot>)>> {
        self.held.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn publish(&self, objects: Objects, revision: Revision) {
        self.published.store(Arc::new(Snapshot { objects, revision }));
        self.progress.send_replace(revision);
    }

    async fn follow(self: Arc<Self>, mut events: mpsc::Receiver<Batch>) {
        loop {
            while let Some(batch) = events.recv().await {
                self.apply(&batch);
            }
            // Cut off as too slow, or the store is gone.
            let revision = self.published.load().revision;
            tracing::warn!(revision, "the cache lost the store's events and reads it again");
            match self.restart(revision).await {
                Ok(fresh) => events = fresh,
                Err(Error::Closed) => return,
                Err(error) => {
                    tracing::error!(%error, "the cache cannot follow the store");
                    tokio::time::sleep(crate::limits::RETRY_INTERVAL).await;
                }
            }
        }
    }

    /// Where events were missed: resumes if the store still has them, else loads afresh and cuts all watchers off.
    async fn restart(&self, revision: Revision) -> Result<mpsc::Receiver<Batch>, Error> {
        match self.store.watch(revision).await {
            Err(Error::Compacted(_)) => {}
            resumed => return resumed,
        }
        let (entries, revision) = self.store.range("").await?;
        let events = self.store.watch(revision).await?;
        let mut rings = self.rings();
        self.publish(load(entries), revision);
        rings.since = revision;
        rings.of.values().for_each(|ring| ring.reset(revision));
        Ok(events)
    }

    fn apply(&self, batch: &Batch) {
        let Some(last) = batch.last().map(Event::revision) else { return };
        let now = Instant::now();
        let before = self.published.load_full();
        let mut objects = before.objects.clone();
        let mut touched: BTreeSet<&str> = BTreeSet::new();
        let mut rings = self.rings();
        for event in batch.iter() {
            // Events of the past fill the rings only: the map is already as new as they are.
            let change = if event.revision() <= before.revision { past(&objects, event) } else { step(&mut objects, event) };
            if let Some(change) = change {
                rings.get(event.key()).push(Arc::new(change), now);
                touched.insert(kind_of(event.key()));
            }
        }
        self.publish(objects, last.max(before.revision));
        touched.into_iter().for_each(|kind| rings.get(kind).wake());
    }
}

/// Puts one event into the map.
fn step(objects: &mut Objects, event: &Event) -> Option<Change> {
    match event {
        Event::Put { entry, .. } => {
            let key = objects.get_key_value(entry.key.as_str()).map_or_else(|| entry.key.as_str().into(), |(key, _)| key.clone());
            let object = Arc::new(Object::new(key.clone(), entry.revision, &entry.value));
            let previous = objects.insert(key, object.clone());
            Some(Change::new(object, previous, false))
        }
        Event::Delete { key, revision, .. } => {
            let previous = objects.remove(key.as_str())?;
            Some(Change::new(Arc::new(previous.at_revision(*revision)), Some(previous), true))
        }
    }
}

/// The change that an event once was.
fn past(objects: &Objects, event: &Event) -> Option<Change> {
    let key: Arc<str> = event.key().into();
    match event {
        Event::Put { entry, previous } => {
            let current = objects.get(&*key).filter(|o| o.revision == entry.revision).cloned();
            let object = current.unwrap_or_else(|| Arc::new(Object::new(key.clone(), entry.revision, &entry.value)));
            // Its revision is not known and not told: the event's own is what watchers see.
            let previous = previous.as_ref().map(|value| Arc::new(Object::new(key, 0, value)));
            Some(Change::new(object, previous, false))
        }
        Event::Delete { revision, previous, .. } => {
            let previous = Arc::new(Object::new(key, previous.revision, &previous.value));
            Some(Change::new(Arc::new(previous.at_revision(*revision)), Some(previous), true))
        }
    }
}
