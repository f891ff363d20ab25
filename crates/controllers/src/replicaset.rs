//! ReplicaSets: pods made and deleted, then the status that tells of it.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use client::reconcile::{controller_of, own_key};
use client::{Change, Controller, Error, Informer, Key, Reconciler};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use plan::{objects, replicas, selector};

use crate::apply::Applier;
use crate::{Shared, limits};

pub(crate) const IDENTITY: &str = "replicaset-controller";

struct ReplicaSets {
    shared: Shared,
    applier: Applier,
}

pub(crate) fn controller(shared: &Shared, applier: Applier) -> Controller<impl Reconciler> {
    let (sets, pods) = (&shared.replica_sets, &shared.pods);
    Controller::new(IDENTITY, ReplicaSets { shared: shared.clone(), applier })
        .concurrency(limits::RECONCILE_CONCURRENCY)
        .watches(sets, own_key)
        .watches(pods, controller_of("ReplicaSet"))
        .watches(pods, adopters(sets.clone()))
}

/// Pods without a managing owner wake every ReplicaSet that would have them.
fn adopters(sets: Informer<ReplicaSet>) -> impl Fn(&Change<Pod>) -> Vec<Key> + Send + Sync + 'static {
    move |change| {
        let Some(pod) = change.new.as_ref().filter(|p| objects::controller_of(&p.metadata).is_none()) else { return Vec::new() };
        let snapshot = sets.snapshot();
        let wants = |rs: &&std::sync::Arc<ReplicaSet>| {
            rs.spec
                .as_ref()
                .is_some_and(|s| !selector::is_empty(&s.selector) && selector::matches(&s.selector, pod.metadata.labels.as_ref()))
        };
        snapshot.in_namespace(&change.key.namespace).filter(wants).map(|rs| Key::of(&**rs)).collect()
    }
}

#[async_trait]
impl Reconciler for ReplicaSets {
    type Key = Key;
    type Error = Error;

    async fn reconcile(&self, key: Key) -> Result<Option<Duration>, Error> {
        let sets = self.shared.replica_sets.snapshot();
        let Some(set) = sets.by_key(&key) else { return Ok(None) };
        let about = client::reference(&**set);
        let related: BTreeSet<String> = match objects::controller_of(&set.metadata) {
            Some(owner) => {
                let same = |rs: &&std::sync::Arc<ReplicaSet>| objects::controller_of(&rs.metadata).is_some_and(|o| o.uid == owner.uid);
                sets.in_namespace(&key.namespace).filter(same).map(|rs| objects::uid(&**rs).to_string()).collect()
            }
            None => [objects::uid(&**set).to_string()].into(),
        };
        let cx = self.shared.cx();
        let pods = self.shared.pods.snapshot();
        let in_namespace: Vec<&Pod> = pods.in_namespace(&key.namespace).map(|p| &**p).collect();
        let snapshot = replicas::Snapshot { set, pods: &in_namespace, related: &related };
        let (plan, reasons) = replicas::plan(&snapshot, &cx);
        self.applier.tell(&about, &reasons);
        let applied = self.applier.apply(&about, plan).await;
        let seen = applied.seen(&self.shared.pods).await;

        // The status is of the pods as they are now.
        let pods = self.shared.pods.snapshot();
        let in_namespace: Vec<&Pod> = pods.in_namespace(&key.namespace).map(|p| &**p).collect();
        let text = applied.failed.as_ref().and_then(|f| Some((f.reason.as_ref()?.code, f.error.to_string())));
        let failure = text.as_ref().filter(|_| applied.failed.as_ref().is_some_and(|f| !f.error.is_conflict()));
        let status = replicas::status(
            &replicas::Snapshot { set, pods: &in_namespace, related: &related },
            failure.map(|(code, text)| (*code, text.as_str())),
            &cx,
        );
        let again = if seen { status.requeue_after } else { Some(limits::UNSEEN_RETRY) };
        let told = self.applier.apply(&about, status).await;
        if applied.failed.is_some() {
            return applied.outcome(again);
        }
        told.outcome(again)
    }
}
