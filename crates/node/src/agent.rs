//! The agent's frame: what all its parts share, one worker a pod, and what is found on the machine at the start.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use api::Status;
use client::{Change, Informer, Recorder};
use driver::{Driver, Event, PodState};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::limits::{DRIVER_AGAIN, RESYNC, STARTS_MAX};
use crate::lookup::Lookup;
use crate::machine::{self, Amounts};
use crate::pod::{Handle, Message, Recovered, Worker, remove_files};
use crate::stats::Samples;
use crate::volumes::Tokens;
use crate::{collect, node};

/// A container as others than its worker see it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ContainerView {
    pub attempt: Option<u32>,
    pub running: bool,
    /// The reason it waits, or empty.
    pub waiting: String,
    /// It will be started again after it exits.
    pub comes_back: bool,
    pub started_at: Option<base::Timestamp>,
}

/// A pod as others than its worker see it.
#[derive(Clone)]
pub(crate) struct View {
    pub uid: String,
    pub pod: Arc<Pod>,
    pub driver: Option<Arc<dyn Driver>>,
    pub containers: BTreeMap<String, ContainerView>,
    /// Its sandbox is there.
    pub ready: bool,
    pub ending: bool,
    /// Digests of the images its containers were made from.
    pub images: BTreeSet<String>,
}

impl View {
    pub fn driver(&self) -> Result<&Arc<dyn Driver>, Status> {
        self.driver.as_ref().ok_or_else(|| Status::internal("the pod has no runtime yet"))
    }

    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }
}

/// Why the node is not ready before its agent has asked what runs.
const STARTING: &str = "container runtime is starting";

/// What the agent's parts share.
pub(crate) struct Shared {
    pub config: Config,
    pub recorder: Recorder,
    pub services: Informer<Service>,
    pub node_ip: IpAddr,
    pub lookup: Lookup,
    pub tokens: Tokens,
    pub samples: Samples,
    /// Turns for the heavy part of starting.
    pub starts: Semaphore,
    pub memory_bytes: u64,
    pub capacity: Amounts,
    pub allocatable: Amounts,
    /// Woken when `unready` may answer otherwise.
    pub readiness_changed: Notify,
    unready: Mutex<Option<String>>,
    workers: Arc<Mutex<BTreeMap<String, Handle>>>,
    views: Mutex<BTreeMap<String, View>>,
    /// Pods that have gone from here and wait in the API for others' finalizers.
    finished: Mutex<BTreeSet<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Shared {
    /// Why this node runs no pods now.
    pub fn unready(&self) -> Option<String> {
        lock(&self.unready).clone()
    }

    /// The agent does not know yet how it is with this node.
    pub fn is_starting(&self) -> bool {
        lock(&self.unready).as_deref() == Some(STARTING)
    }

    pub fn set_unready(&self, why: Option<String>) {
        *lock(&self.unready) = why;
        self.readiness_changed.notify_one();
    }

    pub fn view(&self, uid: &str) -> Option<View> {
        lock(&self.views).get(uid).cloned()
    }

    pub fn view_by_name(&self, namespace: &str, name: &str) -> Option<View> {
        lock(&self.views).values().find(|v| v.namespace() == namespace && v.name() == name).cloned()
    }

    pub fn views(&self) -> Vec<View> {
        lock(&self.views).values().cloned().collect()
    }

    pub fn show(&self, view: View) {
        lock(&self.views).insert(view.uid.clone(), view);
    }

    fn forget(&self, uid: &str) {
        lock(&self.workers).remove(uid);
        lock(&self.views).remove(uid);
        self.tokens.forget(uid);
        self.samples.forget(uid);
    }

    pub async fn tell(&self, uid: &str, message: Message) {
        let inbox = lock(&self.workers).get(uid).map(|h| h.inbox.clone());
        if let Some(inbox) = inbox {
            // A worker that has just ended needs no telling.
            let _ = inbox.send(message).await;
        }
    }

    /// The driver of a RuntimeClass; without one, `container`.
    pub async fn driver_for(&self, class: Option<&str>) -> Result<Arc<dyn Driver>, String> {
        let handler = match class.filter(|c| !c.is_empty()) {
            None => "container".to_string(),
            Some(name) => {
                let found: Result<RuntimeClass, _> = self.lookup.get("RuntimeClass", "", name).await;
                found.map_err(|e| format!("failed to get sandbox runtime: {e}"))?.handler
            }
        };
        let none = || format!("failed to get sandbox runtime: no runtime for \"{handler}\" is configured");
        self.config.drivers.get(&handler).cloned().ok_or_else(none)
    }
}

/// The agent of one node. Cheap to clone.
#[derive(Clone)]
pub struct Agent {
    shared: Arc<Shared>,
}

impl Agent {
    /// Needs a tokio runtime; nothing runs before [`Agent::run`] but the watch of Services.
    pub fn new(config: Config) -> Self {
        let capacity = machine::capacity(&config.capacity, &config.data_dir);
        let workers: Arc<Mutex<BTreeMap<String, Handle>>> = Arc::default();
        let told = workers.clone();
        let refresh = move |uid: &str| {
            if let Some(handle) = lock(&told).get(uid) {
                // A full queue means that the worker is about to plan anyway, and the slow resync finds what was missed.
                let _ = handle.inbox.try_send(Message::Refresh);
            }
        };
        let shared = Shared {
            recorder: Recorder::start(&config.client, config.clock.clone(), config.ids.clone(), "kubelet", &config.node_name),
            services: Informer::start(&config.client),
            node_ip: config.network.node_address(),
            lookup: Lookup::new(config.client.clone(), refresh),
            tokens: Tokens::default(),
            samples: Samples::default(),
            starts: Semaphore::new(STARTS_MAX),
            memory_bytes: capacity.memory_bytes,
            capacity,
            allocatable: machine::allocatable(capacity, config.reserved),
            readiness_changed: Notify::new(),
            unready: Mutex::new(Some(STARTING.into())),
            workers,
            views: Mutex::default(),
            finished: Mutex::default(),
            config,
        };
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Runs until `stop`. Pods go on running after it: the next agent takes them over.
    pub async fn run(&self, stop: CancellationToken) {
        let shared = &self.shared;
        let node = tokio::spawn(node::run(shared.clone(), stop.clone()));
        // Before anything is asked: an exit between the question and the subscription would be missed.
        let events: Vec<(Arc<dyn Driver>, mpsc::Receiver<Event>)> =
            shared.config.drivers.values().map(|d| (d.clone(), d.events())).collect();
        let recovered = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            found = recover(shared) => Arc::new(Mutex::new(found)),
        };
        let field = format!("spec.nodeName={}", shared.config.node_name);
        let pods = Informer::<Pod>::start_scoped(&shared.config.client, "", "", &field);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = async { tokio::join!(pods.ready(), shared.services.ready()); } => {}
        }
        let (listener, found) = (shared.clone(), recovered.clone());
        let tasks = Arc::new(Mutex::new(tokio::task::JoinSet::new()));
        let workers = tasks.clone();
        pods.on_change(move |change| changed(&listener, &found, &workers, change));
        let left = std::mem::take(&mut *lock(&recovered));
        orphans(shared, left).await;
        for (driver, events) in events {
            lock(&tasks).spawn(watch_driver(shared.clone(), driver, events));
        }
        lock(&tasks).spawn(collect::run(shared.clone()));
        shared.set_unready(None);
        stop.cancelled().await;
        drop(pods);
        // Workers are dropped where they wait: nothing of theirs outlives them but what runs.
        lock(&tasks).abort_all();
        node.abort();
        lock(&shared.workers).clear();
    }
}

type Found = Arc<Mutex<BTreeMap<String, Recovered>>>;
type Tasks = Arc<Mutex<tokio::task::JoinSet<()>>>;

/// From the informer's task: quick, and never waiting.
fn changed(shared: &Arc<Shared>, found: &Found, tasks: &Tasks, change: &Change<Pod>) {
    let uid = |pod: &Option<Arc<Pod>>| pod.as_ref().and_then(|p| p.metadata.uid.clone()).unwrap_or_default();
    let (old, new) = (uid(&change.old), uid(&change.new));
    let mut workers = lock(&shared.workers);
    if !old.is_empty()
        && old != new
        && let Some(handle) = workers.get(&old)
    {
        handle.pods.send_replace(None);
    }
    if old != new {
        lock(&shared.finished).remove(&old);
    }
    let Some(pod) = change.new.as_ref().filter(|_| !new.is_empty()) else { return };
    if let Some(handle) = workers.get(&new) {
        handle.pods.send_replace(Some(pod.clone()));
        return;
    }
    if lock(&shared.finished).contains(&new) {
        return;
    }
    let recovered = lock(found).remove(&new).unwrap_or_default();
    let (worker, handle) = Worker::new(shared.clone(), pod.clone(), recovered);
    workers.insert(new.clone(), handle);
    let shared = shared.clone();
    let mut tasks = lock(tasks);
    while tasks.try_join_next().is_some() {}
    tasks.spawn(async move {
        let finished = worker.run().await;
        if finished {
            lock(&shared.finished).insert(new.clone());
        }
        shared.forget(&new);
    });
}

/// What drivers and network still have of before, by pod.
async fn recover(shared: &Shared) -> BTreeMap<String, Recovered> {
    let mut found: BTreeMap<String, Recovered> = BTreeMap::new();
    for driver in shared.config.drivers.values() {
        for state in retry(driver.name(), shared, || driver.recover()).await {
            let uid = state.pod.uid.clone();
            found.entry(uid).or_default().state = Some(state);
        }
    }
    for (uid, attachment) in retry("the pod network", shared, || shared.config.network.list()).await {
        found.entry(uid).or_default().addresses = attachment.addresses;
    }
    // Files without anything that runs: a machine that was switched off.
    for base in [&shared.config.data_dir, &shared.config.run_dir] {
        for entry in std::fs::read_dir(base.join("pods")).into_iter().flatten().flatten() {
            found.entry(entry.file_name().to_string_lossy().into_owned()).or_default();
        }
    }
    for recovered in found.values_mut() {
        if let (Some(PodState { pod, .. }), true) = (&recovered.state, recovered.addresses.is_empty())
            && pod.netns.is_none()
        {
            recovered.addresses = vec![shared.node_ip];
        }
    }
    found
}

/// Without knowing what runs nothing may be started: asked until there is an answer.
async fn retry<T, E, F>(what: &str, shared: &Shared, ask: impl Fn() -> F) -> T
where
    E: std::fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(e) => {
                tracing::warn!("{what} cannot say what runs: {e}");
                shared.set_unready(Some(format!("container runtime status check may not have completed yet: {what}: {e}")));
                tokio::time::sleep(DRIVER_AGAIN).await;
            }
        }
    }
}

/// What no pod of the API stands for any more is taken away.
async fn orphans(shared: &Shared, found: BTreeMap<String, Recovered>) {
    for (uid, _) in found {
        tracing::info!("pod {uid} is gone from the API: what is left of it here is removed");
        for driver in shared.config.drivers.values() {
            if let Err(e) = driver.remove_pod(&uid).await {
                tracing::warn!("pod {uid}: {e}");
            }
        }
        if let Err(e) = shared.config.network.detach(&uid).await {
            tracing::warn!("pod {uid}: {e}");
        }
        let data = shared.config.data_dir.join("pods").join(&uid);
        let memory = shared.config.run_dir.join("pods").join(&uid).join("volumes");
        if let Ok(Err(e)) = tokio::task::spawn_blocking(move || remove_files(&data, &memory)).await {
            tracing::warn!("pod {uid}: {e}");
        }
    }
}

/// A driver's events to the workers, and now and then the whole truth.
async fn watch_driver(shared: Arc<Shared>, driver: Arc<dyn Driver>, mut events: mpsc::Receiver<Event>) {
    let mut resync = tokio::time::interval_at(tokio::time::Instant::now() + RESYNC, RESYNC);
    resync.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            _ = resync.tick() => {
                compare(&shared, &driver).await;
                continue;
            }
        };
        match event {
            Some(Event::Container { uid, container }) => shared.tell(&uid, Message::Container(container)).await,
            Some(Event::PodLost { uid }) => shared.tell(&uid, Message::Lost).await,
            None => {
                tokio::time::sleep(DRIVER_AGAIN).await;
                events = driver.events();
                compare(&shared, &driver).await;
            }
        }
    }
}

/// Tells workers what the driver has, as if each state had just been reached; what they know already changes nothing.
async fn compare(shared: &Shared, driver: &Arc<dyn Driver>) {
    // Those that were ready before the question, or a pod made meanwhile would seem lost.
    let ours = |v: &View| v.ready && v.driver.as_ref().is_some_and(|d| d.name() == driver.name());
    let before: Vec<String> = shared.views().into_iter().filter(ours).map(|v| v.uid).collect();
    let states = match driver.recover().await {
        Ok(states) => states,
        Err(e) => {
            tracing::warn!("{}: {e}", driver.name());
            return;
        }
    };
    for uid in before.iter().filter(|uid| !states.iter().any(|s| s.pod.uid == **uid)) {
        shared.tell(uid, Message::Lost).await;
    }
    for state in states {
        for container in state.containers {
            shared.tell(&state.pod.uid, Message::Container(container)).await;
        }
    }
}
