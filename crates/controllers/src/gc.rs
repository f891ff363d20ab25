//! The garbage collector: dependents go with their owners.

use std::time::Duration;

use async_trait::async_trait;
use client::{Controller, Error, Reconciler};
use plan::gc::Question;

use crate::apply::{Applier, path, reference};
use crate::census::{Census, INCOMPLETE_RETRY};
use crate::limits;

pub(crate) const IDENTITY: &str = "generic-garbage-collector";

struct Collector {
    census: Census,
    applier: Applier,
}

/// The controller, and the census that wakes it.
pub(crate) fn controller(applier: Applier) -> (Controller<impl Reconciler>, Census) {
    let census = Census::new();
    let controller = Controller::new(IDENTITY, Collector { census: census.clone(), applier }).concurrency(limits::RECONCILE_CONCURRENCY);
    census.wakes(controller.queue());
    (controller, census)
}

#[async_trait]
impl Reconciler for Collector {
    /// The object's uid.
    type Key = String;
    type Error = Error;

    async fn reconcile(&self, uid: String) -> Result<Option<Duration>, Error> {
        if !self.census.is_complete() {
            return Ok(Some(INCOMPLETE_RETRY));
        }
        let (_, _, questions) = self.census.plan(&uid);
        for question in &questions {
            if let Some(wait) = self.answer(question).await? {
                return Ok(Some(wait));
            }
        }
        let (Some(item), plan, questions) = self.census.plan(&uid) else { return Ok(None) };
        if !questions.is_empty() {
            return Ok(Some(limits::OWNER_RETRY));
        }
        self.applier.apply(&reference(&item.target), plan).await.outcome(None)
    }
}

impl Collector {
    /// Looks an unknown owner up. `Some`: it exists, or cannot be looked up; ask again then.
    async fn answer(&self, question: &Question) -> Result<Option<Duration>, Error> {
        let owner = &question.owner;
        let Some(kind) = self.census.kind_of(owner) else {
            tracing::debug!(kind = owner.kind, version = owner.api_version, "an owner's kind is unknown; its dependent stays");
            return Ok(Some(limits::DISCOVERY_INTERVAL));
        };
        match self.applier.client().get_path(&path(&kind, &question.namespace, &owner.name, "")).await {
            Ok(found) if found["metadata"]["uid"] == owner.uid => Ok(Some(limits::OWNER_RETRY)),
            Err(e) if !e.is_not_found() => Err(e),
            _ => {
                self.census.note_absent(&owner.uid, &question.namespace);
                Ok(None)
            }
        }
    }
}
