//! Nodes that fall silent. Silence is measured here, from when a sign of life was last seen to change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use client::{Change, Controller, Error, Informer, Key, Reconciler};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use plan::{conditions, node_lifecycle, objects};
use tokio::time::Instant;

use crate::Shared;
use crate::apply::Applier;

pub(crate) const IDENTITY: &str = "node-controller";
/// Where agents renew their Leases.
const LEASES: &str = "kube-node-lease";

/// When each node last gave a sign of life. Monotonic: a jump of the wall clock kills no node.
type Heard = Arc<Mutex<BTreeMap<String, Instant>>>;

struct Nodes {
    shared: Shared,
    applier: Applier,
    heard: Heard,
    /// The watch ends with its last handle, and without it every node would seem to have fallen silent.
    _leases: Informer<Lease>,
    config: node_lifecycle::Config,
}

pub(crate) fn controller(shared: &Shared, applier: Applier, config: node_lifecycle::Config) -> Controller<impl Reconciler> {
    let heard = Heard::default();
    let leases: Informer<Lease> = Informer::start_scoped(applier.client(), LEASES, "", "");
    let by_lease = heard.clone();
    leases.on_change(move |change| {
        if let Some(new) = &change.new {
            let renewed = |l: &Arc<Lease>| l.spec.as_ref().and_then(|s| s.renew_time.clone());
            if change.old.as_ref().is_none_or(|old| renewed(old) != renewed(new)) {
                note(&by_lease, &change.key.name);
            }
        }
    });
    let by_report = heard.clone();
    shared.nodes.on_change(move |change| match &change.new {
        None => drop(lock(&by_report).remove(&change.key.name)),
        Some(new) if change.old.as_ref().is_none_or(|old| reported(old) != reported(new)) => note(&by_report, &change.key.name),
        Some(_) => {}
    });
    let nodes = shared.nodes.clone();
    Controller::new(IDENTITY, Nodes { shared: shared.clone(), applier, heard, _leases: leases.clone(), config })
        .watches(&shared.nodes, move |change| of_node(&nodes, change))
        .watches(&shared.pods, newly_bound)
        .reads(&leases)
}

fn lock(heard: &Heard) -> std::sync::MutexGuard<'_, BTreeMap<String, Instant>> {
    heard.lock().unwrap_or_else(|e| e.into_inner())
}

fn note(heard: &Heard, node: &str) {
    lock(heard).insert(node.into(), Instant::now());
}

/// What only the agent itself writes: our own patches of the node are no sign of its life.
fn reported(node: &Node) -> Option<(&str, &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>)> {
    let ready = conditions::find(&node.status.as_ref()?.conditions, "Ready")?;
    (ready.status != "Unknown").then_some((ready.status.as_str(), &ready.last_heartbeat_time))
}

/// Whether any node is ready decides for all of them.
fn of_node(nodes: &Informer<Node>, change: &Change<Node>) -> Vec<Key> {
    let ready = |n: &Option<Arc<Node>>| n.as_ref().is_some_and(|n| node_lifecycle::ready(n));
    if ready(&change.old) == ready(&change.new) { vec![change.key.clone()] } else { nodes.snapshot().keys().cloned().collect() }
}

/// A node with taints may get a pod that does not bear them.
fn newly_bound(change: &Change<Pod>) -> Vec<Key> {
    let node = |p: &Option<Arc<Pod>>| p.as_ref().map_or(String::new(), |p| objects::node_of(p).to_string());
    let (old, new) = (node(&change.old), node(&change.new));
    if new.is_empty() || old == new { Vec::new() } else { vec![Key::new("", new)] }
}

#[async_trait]
impl Reconciler for Nodes {
    type Key = Key;
    type Error = Error;

    async fn reconcile(&self, key: Key) -> Result<Option<Duration>, Error> {
        let nodes = self.shared.nodes.snapshot();
        let Some(node) = nodes.by_key(&key) else { return Ok(None) };
        let silent = |name: &str| lock(&self.heard).get(name).map_or(Duration::ZERO, Instant::elapsed);
        let lives = |n: &Arc<Node>| node_lifecycle::ready(n) && silent(objects::name(&**n)) < self.config.grace;
        let silent_for = silent(&key.name);
        let tainted = node.spec.as_ref().is_some_and(|s| s.taints.iter().flatten().any(|t| t.effect == "NoExecute"));
        let all = self.shared.pods.snapshot();
        // A healthy node's pods are not looked at.
        let pods: Vec<&Pod> = if tainted || !lives(node) {
            all.iter().map(|p| &**p).filter(|p| objects::node_of(p) == key.name).collect()
        } else {
            Vec::new()
        };
        let s =
            node_lifecycle::Snapshot { node, silent_for, pods: &pods, some_node_is_ready: nodes.iter().any(lives), config: self.config };
        let (plan, reasons) = node_lifecycle::plan(&s, &self.shared.cx());
        let about = client::reference(&**node);
        self.applier.tell(&about, &reasons);
        let requeue = plan.requeue_after;
        let applied = self.applier.apply(&about, plan).await;
        let _ = applied.seen(&self.shared.nodes).await;
        applied.outcome(requeue)
    }
}
