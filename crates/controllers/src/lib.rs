//! The controllers, one file each: snapshots in, a pure planner's plan out, one applier that writes it.
//!
//! Knows which changes wake which keys and which planner answers. Decides nothing itself (that is `plan`), and reaches the
//! API only through `client`, each controller with an identity of its own.
//!
//! ```text
//! Shared informers ──> Reconciler (one per controller) ──> plan::… ──> Applier ──> API
//!                └──> Census (all kinds' metadata) ──> garbage collector, namespaces
//! ```

mod accounts;
mod apply;
mod census;
mod deployment;
mod endpoints;
mod gc;
mod ingress;
mod limits;
mod namespace;
mod nodes;
mod replicaset;
mod scheduler;
mod sweeps;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base::{Ids, SharedClock};
use client::{CancellationToken, Client, Informer};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use plan::Cx;
use tokio::task::JoinHandle;

pub use plan::node_lifecycle::Config as NodeLifecycle;

/// What a cluster may set.
#[derive(Debug, Clone)]
pub struct Config {
    /// The certificates by which pods know the API server, PEM: `kube-root-ca.crt` of every namespace.
    pub root_ca_pem: String,
    pub node_lifecycle: NodeLifecycle,
    pub event_ttl: Duration,
    /// Ended pods that may lie around.
    pub terminated_pods_max: usize,
}

impl Config {
    pub fn new(root_ca_pem: impl Into<String>) -> Self {
        Self {
            root_ca_pem: root_ca_pem.into(),
            node_lifecycle: NodeLifecycle::default(),
            event_ttl: plan::events_ttl::TTL,
            terminated_pods_max: plan::pod_gc::TERMINATED_MAX,
        }
    }
}

/// Informers that several controllers read, so that one copy of each kind serves all.
#[derive(Clone)]
struct Shared {
    clock: SharedClock,
    ids: Ids,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Informer<EndpointSlice>,
    nodes: Informer<Node>,
    namespaces: Informer<Namespace>,
    service_accounts: Informer<ServiceAccount>,
    ingresses: Informer<Ingress>,
    ingress_classes: Informer<IngressClass>,
}

impl Shared {
    fn start(reader: &Client, clock: SharedClock, ids: Ids) -> Self {
        Self {
            clock,
            ids,
            deployments: Informer::start(reader),
            replica_sets: Informer::start(reader),
            pods: Informer::start(reader),
            services: Informer::start(reader),
            endpoints: Informer::start(reader),
            slices: Informer::start(reader),
            nodes: Informer::start(reader),
            namespaces: Informer::start(reader),
            service_accounts: Informer::start(reader),
            ingresses: Informer::start(reader),
            ingress_classes: Informer::start(reader),
        }
    }

    fn cx(&self) -> Cx {
        Cx { now: self.clock.now(), ids: self.ids.clone() }
    }
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Starts all controllers and the scheduler; the handle ends some time after `stop`, when all have finished what they did.
///
/// `clients` gives a client that acts as the named one: `kube-scheduler` is the user `system:kube-scheduler`, every other
/// name a service account in `kube-system`. Informers read as `generic-garbage-collector`, which may read everything.
/// Needs a tokio runtime.
pub fn run(clients: &dyn Fn(&str) -> Client, clock: SharedClock, ids: Ids, config: Config, stop: CancellationToken) -> JoinHandle<()> {
    let shared = Shared::start(&clients(gc::IDENTITY), clock.clone(), ids.clone());
    let applier = |identity: &str, component: &str| apply::Applier::new(clients(identity), clock.clone(), ids.clone(), component);
    let own = |identity: &str| applier(identity, identity);

    let (collector, census) = gc::controller(own(gc::IDENTITY));
    census.feed(&shared.deployments);
    census.feed(&shared.replica_sets);
    census.feed(&shared.pods);
    census.feed(&shared.services);
    census.feed(&shared.endpoints);
    census.feed(&shared.slices);
    census.feed(&shared.nodes);
    census.feed(&shared.namespaces);
    census.feed(&shared.service_accounts);
    census.feed(&shared.ingresses);
    census.feed(&shared.ingress_classes);

    let root_ca = Arc::from(config.root_ca_pem);
    let tasks: Vec<Task> = vec![
        Box::pin(scheduler::controller(&shared, applier(scheduler::IDENTITY, scheduler::COMPONENT)).run(stop.clone())),
        Box::pin(deployment::controller(&shared, own(deployment::IDENTITY)).run(stop.clone())),
        Box::pin(replicaset::controller(&shared, own(replicaset::IDENTITY)).run(stop.clone())),
        Box::pin(endpoints::controller(&shared, own(endpoints::IDENTITY), own(endpoints::SLICES_IDENTITY)).run(stop.clone())),
        Box::pin(namespace::controller(&shared, &census, own(namespace::IDENTITY)).run(stop.clone())),
        Box::pin(accounts::accounts(&shared, own(accounts::ACCOUNTS_IDENTITY)).run(stop.clone())),
        Box::pin(accounts::root_ca(&shared, own(accounts::ROOT_CA_IDENTITY), root_ca).run(stop.clone())),
        Box::pin(nodes::controller(&shared, own(nodes::IDENTITY), config.node_lifecycle).run(stop.clone())),
        Box::pin(ingress::controller(&shared, own(ingress::IDENTITY)).run(stop.clone())),
        Box::pin(collector.run(stop.clone())),
        Box::pin(census.discover(clients(gc::IDENTITY), stop.clone())),
        Box::pin(sweeps::events(shared.clone(), own(sweeps::EVENTS_IDENTITY), config.event_ttl, stop.clone())),
        Box::pin(sweeps::pods(shared.clone(), own(sweeps::PODS_IDENTITY), config.terminated_pods_max, stop.clone())),
    ];
    let tasks: Vec<JoinHandle<()>> = tasks.into_iter().map(tokio::spawn).collect();
    tokio::spawn(async move {
        for task in tasks {
            if let Err(error) = task.await
                && error.is_panic()
            {
                tracing::error!(%error, "a controller ended");
            }
        }
    })
}

#[cfg(test)]
mod tests;
