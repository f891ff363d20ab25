//! Deployments: the next move of each rollout.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::reconcile::{controller_of, own_key};
use client::{Change, Controller, Error, Informer, Key, Reconciler};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use plan::{Action, objects, rollout, selector};

use crate::apply::Applier;
use crate::{Shared, limits};

pub(crate) const IDENTITY: &str = "deployment-controller";

struct Deployments {
    shared: Shared,
    applier: Applier,
}

pub(crate) fn controller(shared: &Shared, applier: Applier) -> Controller<impl Reconciler> {
    let (deployments, sets) = (&shared.deployments, &shared.replica_sets);
    Controller::new(IDENTITY, Deployments { shared: shared.clone(), applier })
        .concurrency(limits::RECONCILE_CONCURRENCY)
        .watches(deployments, own_key)
        .watches(sets, controller_of("Deployment"))
        .watches(sets, adopters(deployments.clone()))
}

/// ReplicaSets without a managing owner wake every Deployment that would have them.
fn adopters(deployments: Informer<Deployment>) -> impl Fn(&Change<ReplicaSet>) -> Vec<Key> + Send + Sync + 'static {
    move |change| {
        let Some(set) = change.new.as_ref().filter(|s| objects::controller_of(&s.metadata).is_none()) else { return Vec::new() };
        let snapshot = deployments.snapshot();
        let wants = |d: &&Arc<Deployment>| {
            d.spec
                .as_ref()
                .is_some_and(|s| !selector::is_empty(&s.selector) && selector::matches(&s.selector, set.metadata.labels.as_ref()))
        };
        snapshot.in_namespace(&change.key.namespace).filter(wants).map(|d| Key::of(&**d)).collect()
    }
}

#[async_trait]
impl Reconciler for Deployments {
    type Key = Key;
    type Error = Error;

    async fn reconcile(&self, key: Key) -> Result<Option<Duration>, Error> {
        let Some(deployment) = self.shared.deployments.snapshot().by_key(&key).cloned() else { return Ok(None) };
        let about = client::reference(&*deployment);
        let snapshot = self.shared.replica_sets.snapshot();
        let sets: Vec<&ReplicaSet> = snapshot.in_namespace(&key.namespace).map(|s| &**s).collect();
        let mut s = rollout::Snapshot { deployment: &deployment, sets: &sets, create_failure: None };
        let (plan, reasons) = rollout::plan(&s, &self.shared.cx());
        self.applier.tell(&about, &reasons);
        let requeue = plan.requeue_after;
        let applied = self.applier.apply(&about, plan).await;
        // What was written must be known before the next move is thought of.
        let seen = applied.seen(&self.shared.replica_sets).await & applied.seen(&self.shared.deployments).await;
        let refused = applied.failed.as_ref().filter(|f| matches!(f.action, Action::Create { .. }) && !f.error.is_already_exists());
        if let Some(why) = refused.map(|f| f.error.to_string()) {
            s.create_failure = Some(&why);
            let (plan, _) = rollout::plan(&s, &self.shared.cx());
            self.applier.apply(&about, plan).await.seen(&self.shared.deployments).await;
        }
        applied.outcome(if seen { requeue } else { Some(limits::UNSEEN_RETRY) })
    }
}
