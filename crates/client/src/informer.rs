//! A local copy of one kind, kept true by list and watch.
//!
//! Readers take an immutable [`Snapshot`] (one atomic load); the only writer is the informer's own task. The map is a
//! persistent ordered map (`imbl::OrdMap`): a change copies a few nodes of 64 entries, never 20,000 of them, and a
//! snapshot taken before it stays as it was. Listeners are called by that task after the snapshot holds the change, so
//! whoever is woken by a change also sees it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use base::Backoff;
use imbl::OrdMap;
use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::client::{Client, Kind, ListOptions, WatchOptions, path};
use crate::limits::{INFORMER_BACKOFF, LIST_PAGE, REACHED_TIMEOUT, WATCH_SLACK, WATCH_TIMEOUT};
use crate::{Error, WatchEvent};

/// Namespace and name; the namespace is empty for cluster-scoped objects. Ordered by namespace, then name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub fn of<K: Object>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// What an informer can hold: anything with `ObjectMeta`.
pub trait Object: DeserializeOwned + Send + Sync + 'static {
    fn meta(&self) -> &ObjectMeta;
    fn meta_mut(&mut self) -> &mut ObjectMeta;
}

impl<K: Metadata<Ty = ObjectMeta> + DeserializeOwned + Send + Sync + 'static> Object for K {
    fn meta(&self) -> &ObjectMeta {
        self.metadata()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.metadata_mut()
    }
}

/// Only the metadata of an object of any kind, for those who watch all kinds (the garbage collector).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PartialObject {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
}

impl Object for PartialObject {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// All objects of one kind at one revision.
#[derive(Debug)]
pub struct Snapshot<K> {
    objects: OrdMap<Key, Arc<K>>,
    revision: u64,
}

impl<K> Snapshot<K> {
    fn empty() -> Self {
        Self { objects: OrdMap::new(), revision: 0 }
    }

    /// From objects at hand, for tests of whoever reads snapshots.
    pub fn of(objects: impl IntoIterator<Item = K>) -> Self
    where
        K: Object,
    {
        Self { objects: objects.into_iter().map(|o| (Key::of(&o), Arc::new(o))).collect(), revision: 1 }
    }

    /// The server's revision that this state is at least as new as; 0 before the first list.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<K>> {
        self.objects.get(&Key::new(namespace, name))
    }

    pub fn by_key(&self, key: &Key) -> Option<&Arc<K>> {
        self.objects.get(key)
    }

    /// In the order of namespace and name.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<K>> {
        self.objects.values()
    }

    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.objects.keys()
    }

    pub fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<K>> {
        self.objects.range(Key::new(namespace, "")..).take_while(move |(k, _)| k.namespace == namespace).map(|(_, o)| o)
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

/// One object's step: created (`old` is `None`), updated, or deleted (`new` is `None`).
#[derive(Debug)]
pub struct Change<K> {
    pub key: Key,
    pub old: Option<Arc<K>>,
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The object as it is, or as it last was.
    pub fn object(&self) -> Option<&Arc<K>> {
        self.new.as_ref().or(self.old.as_ref())
    }

    /// Old and new, whichever there are: both name whom the change concerns.
    pub fn both(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(self.new.iter())
    }
}

type Listener<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

struct Shared<K> {
    state: ArcSwap<Snapshot<K>>,
    listeners: Mutex<Vec<Listener<K>>>,
    /// `None` until the first list is in.
    progress: watch::Sender<Option<u64>>,
}

/// Ends the task when the last handle goes.
struct Guard(AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A handle on a running list and watch. Cheap to clone; the last one to go stops it.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
    _guard: Arc<Guard>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), _guard: self._guard.clone() }
    }
}

impl<K: Kind> Informer<K> {
    /// All objects of a kind. Needs a tokio runtime.
    pub fn start(client: &Client) -> Self {
        Self::start_scoped(client, "", "", "")
    }

    /// Those of one namespace (`""`: all) that the selectors (`""`: all) take.
    pub fn start_scoped(client: &Client, namespace: &str, labels: &str, fields: &str) -> Self {
        Self::start_path(client, path::<K>(namespace, "", ""), labels, fields)
    }
}

impl<K: Object> Informer<K> {
    /// Whatever is under a list path, as [`PartialObject`] for example.
    pub fn start_path(client: &Client, path: impl Into<String>, labels: &str, fields: &str) -> Self {
        let shared = Arc::new(Shared {
            state: ArcSwap::from_pointee(Snapshot::empty()),
            listeners: Mutex::new(Vec::new()),
            progress: watch::Sender::new(None),
        });
        let source =
            Source { client: client.clone(), path: path.into(), labels: labels.into(), fields: fields.into(), shared: shared.clone() };
        let task = tokio::spawn(source.run());
        Self { shared, _guard: Arc::new(Guard(task.abort_handle())) }
    }

    /// The newest state known. `managedFields` are left out of it, for memory's sake: an update without them keeps
    /// the server's.
    pub fn snapshot(&self) -> Arc<Snapshot<K>> {
        self.shared.state.load_full()
    }

    pub fn is_ready(&self) -> bool {
        self.shared.progress.borrow().is_some()
    }

    /// Waits for the first complete list.
    pub async fn ready(&self) {
        // The sender lives in `shared`, which we hold: it cannot be gone.
        let _ = self.shared.progress.subscribe().wait_for(Option::is_some).await;
    }

    /// Waits until the snapshot is as new as a write's `metadata.resourceVersion`, so that the next decision sees what
    /// the last one did. False after 5 s: decide again later.
    pub async fn reached(&self, resource_version: &str) -> bool {
        let Ok(wanted) = resource_version.parse::<u64>() else { return true };
        let mut progress = self.shared.progress.subscribe();
        let there = progress.wait_for(|at| at.is_some_and(|at| at >= wanted));
        tokio::time::timeout(REACHED_TIMEOUT, there).await.is_ok()
    }

    /// Waits until the snapshot is as `wanted`: for deletions, whose answers name no revision. False after 5 s.
    pub async fn until(&self, wanted: impl Fn(&Snapshot<K>) -> bool + Send) -> bool {
        let mut progress = self.shared.progress.subscribe();
        let there = progress.wait_for(|_| wanted(&self.shared.state.load()));
        tokio::time::timeout(REACHED_TIMEOUT, there).await.is_ok()
    }

    /// Calls `listener` for every object there is (as created) and for every change from now on, from the informer's
    /// task: it must be quick and must not wait. The snapshot already holds the change.
    pub fn on_change(&self, listener: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut listeners = self.shared.lock();
        for (key, object) in &self.shared.state.load().objects {
            listener(&Change { key: key.clone(), old: None, new: Some(object.clone()) });
        }
        listeners.push(Box::new(listener));
    }

    /// The keys that changed, to be waited for. A reader that lags gets each key once, not each change.
    pub fn subscribe(&self) -> Changes {
        let pending = Arc::new(Pending { keys: Mutex::default(), notify: Notify::new() });
        let weak = Arc::downgrade(&pending);
        self.on_change(move |change| {
            if let Some(pending) = weak.upgrade() {
                pending.keys.lock().unwrap_or_else(|e| e.into_inner()).insert(change.key.clone());
                pending.notify.notify_one();
            }
        });
        Changes(pending)
    }
}

struct Pending {
    keys: Mutex<BTreeSet<Key>>,
    notify: Notify,
}

/// See [`Informer::subscribe`].
pub struct Changes(Arc<Pending>);

impl Changes {
    /// All keys that changed since the last call; waits for one. Cancel safe.
    pub async fn next(&mut self) -> BTreeSet<Key> {
        loop {
            let keys = std::mem::take(&mut *self.0.keys.lock().unwrap_or_else(|e| e.into_inner()));
            if !keys.is_empty() {
                return keys;
            }
            self.0.notify.notified().await;
        }
    }
}

impl<K: Object> Shared<K> {
    fn lock(&self) -> MutexGuard<'_, Vec<Listener<K>>> {
        self.listeners.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Makes a new state visible, then tells what changed.
    fn publish(&self, objects: OrdMap<Key, Arc<K>>, revision: u64, changes: &[Change<K>]) {
        let listeners = self.lock();
        self.state.store(Arc::new(Snapshot { objects, revision }));
        for change in changes {
            listeners.iter().for_each(|listener| listener(change));
        }
        drop(listeners);
        self.progress.send_replace(Some(revision));
    }

    /// A fresh list: what differs from the state before is what changed.
    fn replace(&self, objects: OrdMap<Key, Arc<K>>, revision: u64) {
        let before = self.state.load_full();
        let mut changes = Vec::new();
        for (key, old) in &before.objects {
            let new = objects.get(key).cloned();
            if new.as_ref().is_none_or(|new| !same_version::<K>(old, new)) {
                changes.push(Change { key: key.clone(), old: Some(old.clone()), new });
            }
        }
        let created = objects.iter().filter(|(key, _)| !before.objects.contains_key(*key));
        changes.extend(created.map(|(key, new)| Change { key: key.clone(), old: None, new: Some(new.clone()) }));
        self.publish(objects, revision, &changes);
    }

    fn put(&self, object: K) {
        let key = Key::of(&object);
        let revision = parse(object.meta().resource_version.as_deref());
        let state = self.state.load_full();
        let new = Arc::new(object);
        let mut objects = state.objects.clone();
        let old = objects.insert(key.clone(), new.clone());
        self.publish(objects, revision.max(state.revision), &[Change { key, old, new: Some(new) }]);
    }

    fn remove(&self, object: K) {
        let key = Key::of(&object);
        let revision = parse(object.meta().resource_version.as_deref());
        let state = self.state.load_full();
        let mut objects = state.objects.clone();
        // The last state is the deleted object itself: it may have changed since we saw it.
        let changes = match objects.remove(&key) {
            Some(_) => vec![Change { key, old: Some(Arc::new(object)), new: None }],
            None => Vec::new(),
        };
        self.publish(objects, revision.max(state.revision), &changes);
    }

    fn advance(&self, revision: u64) {
        let state = self.state.load_full();
        if revision > state.revision {
            self.publish(state.objects.clone(), revision, &[]);
        }
    }
}

/// Same object, same revision. Without revisions nothing is known to be the same.
fn same_version<K: Object>(a: &K, b: &K) -> bool {
    let (a, b) = (a.meta(), b.meta());
    a.resource_version.is_some() && a.resource_version == b.resource_version && a.uid == b.uid
}

fn parse(resource_version: Option<&str>) -> u64 {
    resource_version.and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// How one watch ended.
enum End {
    /// By the server, as agreed: resume.
    Closed,
    /// The revision is gone: list again.
    Expired,
    Failed(Error),
}

struct Source<K> {
    client: Client,
    path: String,
    labels: String,
    fields: String,
    shared: Arc<Shared<K>>,
}

impl<K: Object> Source<K> {
    async fn run(self) {
        let mut failures = Failures { backoff: INFORMER_BACKOFF, count: 0 };
        loop {
            let mut revision = match self.list().await {
                Ok(revision) => revision,
                Err(e) => {
                    failures.wait("list", &self.path, &e).await;
                    continue;
                }
            };
            loop {
                let before = revision.clone();
                match self.watch(&mut revision).await {
                    End::Expired => break,
                    End::Failed(e) => {
                        if revision != before {
                            failures.count = 0;
                        }
                        failures.wait("watch", &self.path, &e).await;
                    }
                    // A server that ends each watch at once must not make us spin.
                    End::Closed if revision == before => tokio::time::sleep(failures.backoff.initial).await,
                    End::Closed => failures.count = 0,
                }
            }
            // Expired again right after a list would spin too.
            tokio::time::sleep(failures.backoff.initial).await;
        }
    }

    async fn list(&self) -> Result<String, Error> {
        let mut objects = OrdMap::new();
        let mut options = ListOptions {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            limit: LIST_PAGE,
            ..ListOptions::default()
        };
        loop {
            let page = self.client.list_path::<K>(&self.path, &options).await?;
            for mut object in page.items {
                object.meta_mut().managed_fields = None;
                objects.insert(Key::of(&object), Arc::new(object));
            }
            if page.continue_token.is_empty() {
                self.shared.replace(objects, parse(Some(&page.resource_version)));
                return Ok(page.resource_version);
            }
            options.continue_token = page.continue_token;
        }
    }

    async fn watch(&self, revision: &mut String) -> End {
        let options = WatchOptions {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            resource_version: revision.clone(),
            timeout: Some(WATCH_TIMEOUT),
            send_initial_events: false,
        };
        let failed = |e: Error| if e.is_expired() { End::Expired } else { End::Failed(e) };
        let mut watch = match self.client.watch_path::<K>(&self.path, &options).await {
            Ok(watch) => watch,
            Err(e) => return failed(e),
        };
        let deadline = tokio::time::Instant::now() + WATCH_TIMEOUT + WATCH_SLACK;
        loop {
            let Ok(next) = tokio::time::timeout_at(deadline, watch.next()).await else { return End::Closed };
            match next {
                None => return End::Closed,
                Some(Err(e)) => return failed(e),
                Some(Ok(event)) => self.apply(event, revision),
            }
        }
    }

    fn apply(&self, event: WatchEvent<K>, revision: &mut String) {
        match event {
            WatchEvent::Added(mut object) | WatchEvent::Modified(mut object) => {
                object.meta_mut().managed_fields = None;
                note(revision, &object);
                self.shared.put(object);
            }
            WatchEvent::Deleted(object) => {
                note(revision, &object);
                self.shared.remove(object);
            }
            WatchEvent::Bookmark { resource_version, .. } => {
                self.shared.advance(parse(Some(&resource_version)));
                *revision = resource_version;
            }
        }
    }
}

fn note<K: Object>(revision: &mut String, object: &K) {
    if let Some(seen) = &object.meta().resource_version {
        revision.clone_from(seen);
    }
}

struct Failures {
    backoff: Backoff,
    count: u32,
}

impl Failures {
    async fn wait(&mut self, verb: &str, path: &str, error: &Error) {
        self.count = self.count.saturating_add(1);
        let wait: Duration = self.backoff.after(self.count);
        tracing::warn!(path, %error, failures = self.count, retry_in_ms = wait.as_millis() as u64, "cannot {verb}");
        tokio::time::sleep(wait).await;
    }
}
