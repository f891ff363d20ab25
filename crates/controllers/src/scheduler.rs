//! The scheduler: a pod is bound within milliseconds of its creation, or told why not and tried again when that may help.
//!
//! Decisions are made one at a time, under a lock, on a cluster that is kept up to date event by event; the bindings that
//! follow from them are written side by side.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use client::reconcile::own_key;
use client::{Change, Controller, Error, Key, Queue, Reconciler};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use plan::schedule::{self, Cluster};
use plan::{Action, objects};

use crate::apply::Applier;
use crate::{Shared, limits};

/// Upstream's name: a user, not a service account.
pub(crate) const IDENTITY: &str = "kube-scheduler";
/// The component that events name.
pub(crate) const COMPONENT: &str = "default-scheduler";

#[derive(Default)]
struct State {
    cluster: Cluster,
    /// Pods that fit nowhere.
    waiting: BTreeSet<Key>,
}

struct Scheduler {
    shared: Shared,
    applier: Applier,
    state: Arc<Mutex<State>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|e| e.into_inner())
}

pub(crate) fn controller(shared: &Shared, applier: Applier) -> Controller<impl Reconciler> {
    let state = Arc::new(Mutex::new(State::default()));
    let scheduler = Scheduler { shared: shared.clone(), applier, state: state.clone() };
    // The cluster hears of a change before the queue does.
    let controller = Controller::new(COMPONENT, scheduler).concurrency(limits::BIND_CONCURRENCY);
    let queue = controller.queue();
    let on = |apply: fn(&mut State, &Change<Pod>) -> bool| (state.clone(), queue.clone(), apply);
    let (pods_state, pods_queue, pods_apply) = on(pod_changed);
    shared.pods.on_change(move |change| heard(&pods_state, &pods_queue, |s| pods_apply(s, change)));
    let (nodes_state, nodes_queue) = (state.clone(), queue.clone());
    shared.nodes.on_change(move |change| heard(&nodes_state, &nodes_queue, |s| node_changed(s, change)));
    shared.namespaces.on_change(move |change| heard(&state, &queue, |s| namespace_changed(s, change)));
    controller.watches(&shared.pods, wanting).reads(&shared.nodes).reads(&shared.namespaces)
}

/// Pods that wait for a node, when they begin to or ask for something else. That they were told why they wait is no news.
fn wanting(change: &Change<Pod>) -> Vec<Key> {
    let same = |old: &Pod, new: &Pod| schedule::wants(old) && old.spec == new.spec && old.metadata.labels == new.metadata.labels;
    match (&change.old, &change.new) {
        (Some(old), Some(new)) if same(old, new) => Vec::new(),
        (_, Some(new)) if schedule::wants(new) => own_key(change),
        _ => Vec::new(),
    }
}

/// Takes a change in; where it may have made room, all who wait are tried again.
fn heard(state: &Mutex<State>, queue: &Queue<Key>, apply: impl FnOnce(&mut State) -> bool) {
    let mut state = lock(state);
    if apply(&mut state) {
        std::mem::take(&mut state.waiting).into_iter().for_each(|key| queue.add(key));
    }
}

fn pod_changed(state: &mut State, change: &Change<Pod>) -> bool {
    match &change.new {
        Some(pod) => {
            if let Some(old) = change.old.as_ref().filter(|old| objects::uid(&***old) != objects::uid(&**pod)) {
                state.cluster.remove_pod(objects::uid(&**old));
            }
            let before = change.old.as_ref();
            let placed = !objects::node_of(pod).is_empty();
            let news = before.is_none_or(|old| {
                objects::node_of(old).is_empty()
                    || objects::terminated(old) != objects::terminated(pod)
                    || old.spec != pod.spec
                    || old.metadata.labels != pod.metadata.labels
            });
            if placed && news {
                state.cluster.set_pod(pod.clone());
            }
            // A newcomer may be what an affinity waits for; an ended one leaves room.
            placed && news
        }
        None => {
            if let Some(old) = &change.old {
                state.cluster.remove_pod(objects::uid(&**old));
                state.waiting.remove(&change.key);
            }
            true
        }
    }
}

fn node_changed(state: &mut State, change: &Change<Node>) -> bool {
    let Some(node) = &change.new else {
        state.cluster.remove_node(&change.key.name);
        return false;
    };
    let matters = |n: &Node| {
        let status = n.status.clone().unwrap_or_default();
        (n.spec.clone(), n.metadata.labels.clone(), status.allocatable, status.capacity)
    };
    // Most changes of a node are its heartbeat.
    let news = change.old.as_ref().is_none_or(|old| matters(old) != matters(node));
    if news {
        state.cluster.set_node(node.clone());
    }
    news
}

fn namespace_changed(state: &mut State, change: &Change<Namespace>) -> bool {
    let empty = Default::default();
    let labels = change.new.as_ref().map(|ns| ns.metadata.labels.as_ref().unwrap_or(&empty));
    state.cluster.set_namespace(&change.key.name, labels);
    false
}

#[async_trait]
impl Reconciler for Scheduler {
    type Key = Key;
    type Error = Error;

    async fn reconcile(&self, key: Key) -> Result<Option<Duration>, Error> {
        let Some(pod) = self.shared.pods.snapshot().by_key(&key).cloned() else { return Ok(None) };
        let (plan, reasons) = {
            let mut state = lock(&self.state);
            if state.cluster.has_pod(objects::uid(&*pod)) {
                // Placed already; its binding is on the way to the cache.
                return Ok(None);
            }
            let (plan, reasons) = schedule::plan(&state.cluster, &pod, &self.shared.cx());
            for action in plan.actions() {
                if let Action::Bind { node, .. } = action {
                    state.cluster.assume(&pod, node);
                }
            }
            if !reasons.is_empty() {
                state.waiting.insert(key.clone());
            }
            (plan, reasons)
        };
        let about = client::reference(&*pod);
        self.applier.tell(&about, &reasons);
        let applied = self.applier.apply(&about, plan).await;
        if let Some(failure) = &applied.failed
            && matches!(failure.action, Action::Bind { .. })
        {
            self.forget(&key, &pod);
        }
        applied.outcome((!reasons.is_empty()).then_some(limits::UNSCHEDULABLE_RETRY))
    }
}

impl Scheduler {
    /// The binding was refused: the pod takes no room, unless the cache knows better by now.
    fn forget(&self, key: &Key, pod: &Pod) {
        let mut state = lock(&self.state);
        state.cluster.remove_pod(objects::uid(pod));
        if let Some(now) = self.shared.pods.snapshot().by_key(key) {
            state.cluster.set_pod(now.clone());
        }
    }
}
