//! The one reconcile runtime: changes become keys, keys become runs, failures are put off.
//!
//! A reconciler is told a key and reads snapshots itself; it never sees the change that woke it. Watches give latency,
//! the resync every ten minutes gives truth. A reconciler that wrote something and decides by counting should wait for
//! its writes with [`Informer::reached`] before it returns: the next run then sees them.

use std::fmt::{Debug, Display};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::Backoff;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::limits::{RECONCILE_BACKOFF, RECONCILE_CONCURRENCY, RESYNC_INTERVAL, STOP_GRACE};
use crate::{Change, Informer, Key, Object, Queue};

/// Brings the world nearer to what one key wants.
#[async_trait]
pub trait Reconciler: Send + Sync + 'static {
    type Key: Ord + Clone + Debug + Display + Send + Sync + 'static;
    /// [`crate::Error`] for most. An error is retried with backoff; its text goes to the log.
    type Error: std::error::Error + Send + 'static;

    /// `Ok(Some(d))`: call again after `d` even if nothing changes. Runs of different keys are concurrent, of one key
    /// never. Must bear being dropped at any await (a stopping server) and being called again.
    async fn reconcile(&self, key: Self::Key) -> Result<Option<Duration>, Self::Error>;
}

type Keys<K> = Box<dyn Fn() -> Vec<K> + Send + Sync>;
type Synced = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A reconciler with what wakes it. Built up, then [`Controller::run`].
pub struct Controller<R: Reconciler> {
    name: &'static str,
    reconciler: Arc<R>,
    queue: Queue<R::Key>,
    concurrency: usize,
    backoff: Backoff,
    resync: Duration,
    all_keys: Vec<Keys<R::Key>>,
    synced: Vec<Synced>,
}

impl<R: Reconciler> Controller<R> {
    pub fn new(name: &'static str, reconciler: R) -> Self {
        Self {
            name,
            reconciler: Arc::new(reconciler),
            queue: Queue::default(),
            concurrency: RECONCILE_CONCURRENCY,
            backoff: RECONCILE_BACKOFF,
            resync: RESYNC_INTERVAL,
            all_keys: Vec::new(),
            synced: Vec::new(),
        }
    }

    /// How many keys run at once.
    pub fn concurrency(mut self, n: usize) -> Self {
        self.concurrency = n.max(1);
        self
    }

    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    pub fn resync(mut self, every: Duration) -> Self {
        self.resync = every;
        self
    }

    /// For waking keys by other means than informers (a process that ended, a timer).
    pub fn queue(&self) -> Queue<R::Key> {
        self.queue.clone()
    }

    /// Changes of these objects wake the keys that `keys` names; the resync asks it for every object there is.
    pub fn watches<K, F>(mut self, informer: &Informer<K>, keys: F) -> Self
    where
        K: Object,
        F: Fn(&Change<K>) -> Vec<R::Key> + Send + Sync + 'static,
    {
        let (keys, queue) = (Arc::new(keys), self.queue.clone());
        let of_all = (keys.clone(), informer.clone());
        informer.on_change(move |change| keys(change).into_iter().for_each(|key| queue.add(key)));
        self.all_keys.push(Box::new(move || {
            let (keys, informer) = &of_all;
            let snapshot = informer.snapshot();
            let change = |o: &Arc<K>| Change { key: Key::of(&**o), old: None, new: Some(o.clone()) };
            snapshot.iter().flat_map(|object| keys(&change(object))).collect()
        }));
        self.reads(informer)
    }

    /// Its changes wake nothing, but nothing runs before it is complete.
    pub fn reads<K: Object>(mut self, informer: &Informer<K>) -> Self {
        let informer = informer.clone();
        self.synced.push(Box::pin(async move { informer.ready().await }));
        self
    }

    /// Runs until `stop` is cancelled; then lets running reconciles finish for up to 10 s.
    pub async fn run(self, stop: CancellationToken) {
        let Self { name, reconciler, queue, concurrency, backoff, resync, all_keys, synced } = self;
        for informer in synced {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = informer => {}
            }
        }
        tracing::debug!(controller = name, "started");
        let mut running = Running { name, reconciler, queue: queue.clone(), backoff, set: JoinSet::new(), keys: Vec::new() };
        let mut resync = tokio::time::interval_at(tokio::time::Instant::now() + resync, resync);
        resync.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = running.set.join_next_with_id() => running.ended(ended),
                _ = resync.tick() => all_keys.iter().flat_map(|keys| keys()).for_each(|key| queue.add(key)),
                key = queue.take(), if running.set.len() < concurrency => running.start(key),
            }
        }
        let rest = async {
            while let Some(ended) = running.set.join_next_with_id().await {
                running.ended(ended);
            }
        };
        if tokio::time::timeout(STOP_GRACE, rest).await.is_err() {
            tracing::warn!(controller = name, "reconciles still ran after {} s and were dropped", STOP_GRACE.as_secs());
        }
    }
}

type Outcome<R> = Result<Option<Duration>, <R as Reconciler>::Error>;

struct Running<R: Reconciler> {
    name: &'static str,
    reconciler: Arc<R>,
    queue: Queue<R::Key>,
    backoff: Backoff,
    set: JoinSet<Outcome<R>>,
    /// The key of each task, so that one that panicked is known; as many as may run at once.
    keys: Vec<(Id, R::Key)>,
}

impl<R: Reconciler> Running<R> {
    fn start(&mut self, key: R::Key) {
        let (reconciler, of_task) = (self.reconciler.clone(), key.clone());
        let handle = self.set.spawn(async move { reconciler.reconcile(of_task).await });
        self.keys.push((handle.id(), key));
    }

    fn ended(&mut self, ended: Result<(Id, Outcome<R>), tokio::task::JoinError>) {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, outcome.map_err(|e| e.to_string())),
            Err(e) => (e.id(), Err(e.to_string())),
        };
        let Some(at) = self.keys.iter().position(|(task, _)| *task == id) else { return };
        let (_, key) = self.keys.swap_remove(at);
        match outcome {
            Ok(again_after) => self.queue.done(key, again_after),
            Err(error) => {
                let wait = self.queue.failed(key.clone(), self.backoff);
                tracing::warn!(controller = self.name, %key, error, retry_in_ms = wait.as_millis() as u64, "reconcile failed");
            }
        }
    }
}

/// For [`Controller::watches`]: the object's own key.
pub fn own_key<K>(change: &Change<K>) -> Vec<Key> {
    vec![change.key.clone()]
}

/// For [`Controller::watches`]: the controlling owner of the given kind, in the object's namespace, before and after.
pub fn controller_of<K: Object>(kind: &'static str) -> impl Fn(&Change<K>) -> Vec<Key> + Send + Sync + 'static {
    move |change| {
        let owner = |o: &Arc<K>| controller_ref(&**o).filter(|r| r.kind == kind).map(|r| Key::new(&change.key.namespace, &r.name));
        change.both().filter_map(owner).collect()
    }
}

/// The owner reference with `controller: true`.
pub fn controller_ref<K: Object>(object: &K) -> Option<&OwnerReference> {
    object.meta().owner_references.as_deref()?.iter().find(|r| r.controller == Some(true))
}
