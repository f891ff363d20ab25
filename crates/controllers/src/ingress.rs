//! Where each Ingress is reached.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::reconcile::own_key;
use client::{Change, Controller, Error, Informer, Key, Reconciler};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use plan::{ingress_status, node_lifecycle};

use crate::Shared;
use crate::apply::Applier;

pub(crate) const IDENTITY: &str = "ingress-controller";

struct Ingresses {
    shared: Shared,
    applier: Applier,
}

pub(crate) fn controller(shared: &Shared, applier: Applier) -> Controller<impl Reconciler> {
    let (by_node, by_class) = (shared.ingresses.clone(), shared.ingress_classes.clone());
    let all = shared.ingresses.clone();
    Controller::new(IDENTITY, Ingresses { shared: shared.clone(), applier })
        .watches(&shared.ingresses, own_key)
        .watches(&by_class, move |_: &Change<IngressClass>| all.snapshot().keys().cloned().collect())
        .watches(&shared.nodes, move |change| of_node(&by_node, change))
}

/// A node's heartbeat moves no Ingress.
fn of_node(ingresses: &Informer<Ingress>, change: &Change<Node>) -> Vec<Key> {
    let shown = |n: &Arc<Node>| (node_lifecycle::ready(n), n.status.as_ref().and_then(|s| s.addresses.clone()), n.metadata.labels.clone());
    if change.old.as_ref().map(shown) == change.new.as_ref().map(shown) {
        Vec::new()
    } else {
        ingresses.snapshot().keys().cloned().collect()
    }
}

#[async_trait]
impl Reconciler for Ingresses {
    type Key = Key;
    type Error = Error;

    async fn reconcile(&self, key: Key) -> Result<Option<Duration>, Error> {
        let Some(ingress) = self.shared.ingresses.snapshot().by_key(&key).cloned() else { return Ok(None) };
        let (classes, nodes) = (self.shared.ingress_classes.snapshot(), self.shared.nodes.snapshot());
        let classes: Vec<&IngressClass> = classes.iter().map(|c| &**c).collect();
        let nodes: Vec<&Node> = nodes.iter().map(|n| &**n).collect();
        let (plan, reasons) = ingress_status::plan(&ingress_status::Snapshot { ingress: &ingress, classes: &classes, nodes: &nodes });
        let about = client::reference(&*ingress);
        self.applier.tell(&about, &reasons);
        self.applier.apply(&about, plan).await.outcome(None)
    }
}
