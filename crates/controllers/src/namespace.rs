//! Namespaces that are being deleted: emptied, counted at the API itself, and let go.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use client::reconcile::own_key;
use client::{Controller, Error, Key, Reconciler};
use plan::namespace::{self, Content};
use plan::{Kind, objects};
use serde_json::Value;

use crate::apply::{Applier, path};
use crate::census::{Census, INCOMPLETE_RETRY};
use crate::{Shared, limits};

pub(crate) const IDENTITY: &str = "namespace-controller";

struct Namespaces {
    shared: Shared,
    census: Census,
    applier: Applier,
}

pub(crate) fn controller(shared: &Shared, census: &Census, applier: Applier) -> Controller<impl Reconciler> {
    Controller::new(IDENTITY, Namespaces { shared: shared.clone(), census: census.clone(), applier }).watches(&shared.namespaces, own_key)
}

#[async_trait]
impl Reconciler for Namespaces {
    type Key = Key;
    type Error = Error;

    async fn reconcile(&self, key: Key) -> Result<Option<Duration>, Error> {
        let Some(namespace) = self.shared.namespaces.snapshot().by_key(&key).cloned().filter(|ns| objects::deleting(&**ns)) else {
            return Ok(None);
        };
        let Some(kinds) = self.census.namespaced() else { return Ok(Some(INCOMPLETE_RETRY)) };
        let mut content = Vec::new();
        for kind in kinds {
            content.extend(self.left(&key.name, kind).await?);
        }
        let s = namespace::Snapshot { namespace: &namespace, content: &content, verified: true };
        let (plan, reasons) = namespace::plan(&s, &self.shared.cx());
        let about = client::reference(&*namespace);
        self.applier.tell(&about, &reasons);
        let applied = self.applier.apply(&about, plan).await;
        applied.outcome((!content.is_empty()).then_some(limits::NAMESPACE_RETRY))
    }
}

impl Namespaces {
    /// What is left of a kind; `None` where nothing is, or the kind is gone itself.
    async fn left(&self, namespace: &str, kind: Kind) -> Result<Option<Content>, Error> {
        let list = match self.applier.client().get_path(&format!("{}?limit={}", path(&kind, namespace, "", ""), limits::PAGE)).await {
            Err(e) if e.is_not_found() => return Ok(None),
            list => list?,
        };
        let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let unseen = list["metadata"]["remainingItemCount"].as_u64().unwrap_or(0) as usize;
        let going = items.iter().filter(|o| !o["metadata"]["deletionTimestamp"].is_null());
        let mut finalizers: BTreeMap<String, usize> = BTreeMap::new();
        for name in going.clone().flat_map(|o| o["metadata"]["finalizers"].as_array().into_iter().flatten()).filter_map(Value::as_str) {
            *finalizers.entry(name.into()).or_default() += 1;
        }
        let total = items.len() + unseen;
        Ok((total > 0).then(|| Content { kind, total, alive: total - going.count(), finalizers }))
    }
}
