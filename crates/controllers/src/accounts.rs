//! What every namespace is given: the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::reconcile::own_key;
use client::{Change, Controller, Error, Informer, Key, Reconciler};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use plan::{root_ca, serviceaccounts};

use crate::Shared;
use crate::apply::Applier;

pub(crate) const ACCOUNTS_IDENTITY: &str = "service-account-controller";
pub(crate) const ROOT_CA_IDENTITY: &str = "root-ca-cert-publisher";

struct Accounts {
    shared: Shared,
    accounts: Informer<ServiceAccount>,
    applier: Applier,
}

/// Changes of a namespace's object are the namespace's.
fn of_namespace<K>(change: &Change<K>) -> Vec<Key> {
    vec![Key::new("", &change.key.namespace)]
}

pub(crate) fn accounts(shared: &Shared, applier: Applier) -> Controller<impl Reconciler> {
    let accounts = shared.service_accounts.clone();
    Controller::new(ACCOUNTS_IDENTITY, Accounts { shared: shared.clone(), accounts: accounts.clone(), applier })
        .watches(&shared.namespaces, own_key)
        .watches(&accounts, of_namespace)
}

#[async_trait]
impl Reconciler for Accounts {
    type Key = Key;
    type Error = Error;

    async fn reconcile(&self, key: Key) -> Result<Option<Duration>, Error> {
        let Some(namespace) = self.shared.namespaces.snapshot().by_key(&key).cloned() else { return Ok(None) };
        let account = self.accounts.snapshot().get(&key.name, serviceaccounts::DEFAULT).cloned();
        let (plan, _) = serviceaccounts::plan(&namespace, account.as_deref());
        self.applier.apply(&client::reference(&*namespace), plan).await.outcome(None)
    }
}

struct RootCa {
    shared: Shared,
    maps: Informer<ConfigMap>,
    applier: Applier,
    pem: Arc<str>,
}

pub(crate) fn root_ca(shared: &Shared, applier: Applier, pem: Arc<str>) -> Controller<impl Reconciler> {
    let only = format!("metadata.name={}", root_ca::NAME);
    let maps = Informer::start_scoped(applier.client(), "", "", &only);
    Controller::new(ROOT_CA_IDENTITY, RootCa { shared: shared.clone(), maps: maps.clone(), applier, pem })
        .watches(&shared.namespaces, own_key)
        .watches(&maps, of_namespace)
}

#[async_trait]
impl Reconciler for RootCa {
    type Key = Key;
    type Error = Error;

    async fn reconcile(&self, key: Key) -> Result<Option<Duration>, Error> {
        let Some(namespace) = self.shared.namespaces.snapshot().by_key(&key).cloned() else { return Ok(None) };
        let map = self.maps.snapshot().get(&key.name, root_ca::NAME).cloned();
        let (plan, _) = root_ca::plan(&namespace, map.as_deref(), &self.pem);
        self.applier.apply(&client::reference(&*namespace), plan).await.outcome(None)
    }
}
