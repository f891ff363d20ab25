//! Endpoints and EndpointSlices of every Service, each written as upstream's controller of that kind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::reconcile::own_key;
use client::{Change, Controller, Error, Informer, Key, Reconciler};
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use plan::endpoints::{self, ENDPOINTS_MANAGED_BY, SERVICE_NAME};
use plan::{Action, Plan, selector};

use crate::apply::Applier;
use crate::{Shared, limits};

pub(crate) const IDENTITY: &str = "endpoint-controller";
pub(crate) const SLICES_IDENTITY: &str = "endpointslice-controller";
const ZONE: &str = "topology.kubernetes.io/zone";

struct EndpointsOf {
    shared: Shared,
    legacy: Applier,
    slices: Applier,
}

pub(crate) fn controller(shared: &Shared, legacy: Applier, slices: Applier) -> Controller<impl Reconciler> {
    Controller::new(IDENTITY, EndpointsOf { shared: shared.clone(), legacy, slices })
        .concurrency(limits::RECONCILE_CONCURRENCY)
        .watches(&shared.services, own_key)
        .watches(&shared.endpoints, own_key)
        .watches(&shared.slices, of_slice)
        .watches(&shared.pods, selecting(shared.services.clone()))
        .reads(&shared.nodes)
}

fn of_slice(change: &Change<EndpointSlice>) -> Vec<Key> {
    let service = |s: &Arc<EndpointSlice>| s.metadata.labels.as_ref()?.get(SERVICE_NAME).map(|name| Key::new(&change.key.namespace, name));
    change.both().filter_map(service).collect()
}

/// The Services that select the pod as it was or as it is. A pod that changed in nothing that an endpoint shows wakes none.
fn selecting(services: Informer<Service>) -> impl Fn(&Change<Pod>) -> Vec<Key> + Send + Sync + 'static {
    move |change| {
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && shown(old) == shown(new)
        {
            return Vec::new();
        }
        let snapshot = services.snapshot();
        let selects = |s: &&Arc<Service>| {
            let pairs = s.spec.as_ref().and_then(|s| s.selector.as_ref());
            pairs.is_some_and(|pairs| change.both().any(|p| selector::matches_pairs(pairs, p.metadata.labels.as_ref())))
        };
        snapshot.in_namespace(&change.key.namespace).filter(selects).map(|s| Key::of(&**s)).collect()
    }
}

/// All of a pod that its endpoints depend on.
fn shown(pod: &Pod) -> impl PartialEq + '_ {
    let status = pod.status.as_ref();
    (
        &pod.metadata.labels,
        &pod.metadata.uid,
        pod.metadata.deletion_timestamp.is_some(),
        plan::objects::terminated(pod),
        plan::objects::ready(pod),
        plan::objects::node_of(pod),
        status.map(|s| (&s.pod_ip, &s.pod_ips)),
    )
}

#[async_trait]
impl Reconciler for EndpointsOf {
    type Key = Key;
    type Error = Error;

    async fn reconcile(&self, key: Key) -> Result<Option<Duration>, Error> {
        let endpoints = self.shared.endpoints.snapshot().by_key(&key).cloned();
        let Some(service) = self.shared.services.snapshot().by_key(&key).cloned() else {
            return self.left_behind(endpoints).await;
        };
        let (pods, slices, nodes) = (self.shared.pods.snapshot(), self.shared.slices.snapshot(), self.shared.nodes.snapshot());
        let pods: Vec<&Pod> = pods.in_namespace(&key.namespace).map(|p| &**p).collect();
        let ours = |s: &&EndpointSlice| s.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME)) == Some(&key.name);
        let slices: Vec<&EndpointSlice> = slices.in_namespace(&key.namespace).map(|s| &**s).filter(ours).collect();
        let zone =
            |n: &Arc<k8s_openapi::api::core::v1::Node>| Some((n.metadata.name.clone()?, n.metadata.labels.as_ref()?.get(ZONE)?.clone()));
        let zones: BTreeMap<String, String> = nodes.iter().filter_map(zone).collect();
        let s = endpoints::Snapshot { service: &service, pods: &pods, slices: &slices, endpoints: endpoints.as_deref(), zones: &zones };
        let (plan, reasons) = endpoints::plan(&s, &self.shared.cx());

        let about = client::reference(&*service);
        self.slices.tell(&about, &reasons);
        let (slices_plan, legacy_plan) = split(plan);
        let slices = self.slices.apply(&about, slices_plan).await;
        let legacy = self.legacy.apply(&about, legacy_plan).await;
        let seen = slices.seen(&self.shared.slices).await & legacy.seen(&self.shared.endpoints).await;
        let again = (!seen).then_some(limits::UNSEEN_RETRY);
        let later = slices.outcome(again)?;
        Ok(legacy.outcome(again)?.or(later))
    }
}

impl EndpointsOf {
    /// Endpoints of ours outlive their Service only until somebody looks. Slices have an owner and go by themselves.
    async fn left_behind(&self, endpoints: Option<Arc<Endpoints>>) -> Result<Option<Duration>, Error> {
        let (label, value) = ENDPOINTS_MANAGED_BY;
        let ours = |e: &Arc<Endpoints>| e.metadata.labels.as_ref().and_then(|l| l.get(label)).map(String::as_str) == Some(value);
        let Some(endpoints) = endpoints.filter(ours) else { return Ok(None) };
        let mut plan = Plan::none();
        plan.wave([Action::delete(&*endpoints)]);
        self.legacy.apply(&client::reference(&*endpoints), plan).await.outcome(None)
    }
}

/// The waves for slices and those for Endpoints.
fn split(plan: Plan) -> (Plan, Plan) {
    let (mut slices, mut legacy) = (Plan::none(), Plan::none());
    for wave in plan.waves {
        let of_slices = |s: &plan::Step| s.action.target().is_some_and(|t| t.kind == plan::Kind::of::<EndpointSlice>());
        let (a, b): (Vec<_>, Vec<_>) = wave.into_iter().partition(of_slices);
        slices.wave(a);
        legacy.wave(b);
    }
    (slices, legacy)
}
