//! Objects that pods refer to: read fresh when a container needs them, watched so that running pods get their changes.
//!
//! Only what the pods of this node name is asked for, object by object, which is all a node is allowed to read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use client::{Client, Informer, Kind as ApiKind};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Volume};
use plan::pod_actions::{app_containers, init_containers};

use crate::limits::LOOKUP_TIMEOUT;

/// What a volume's content or an environment comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    ConfigMap,
    Secret,
}

pub type Reference = (Kind, String, String);

enum Watcher {
    ConfigMap(#[allow(dead_code, reason = "held so that it runs")] Informer<ConfigMap>),
    Secret(#[allow(dead_code, reason = "held so that it runs")] Informer<Secret>),
}

struct Entry {
    _watcher: Watcher,
    pods: BTreeSet<String>,
}

type Entries = Arc<Mutex<BTreeMap<Reference, Entry>>>;

/// Called with the uid of a pod one of whose references changed; quick.
type Changed = Arc<dyn Fn(&str) + Send + Sync>;

pub struct Lookup {
    client: Client,
    entries: Entries,
    changed: Changed,
}

/// Why an object could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// As messages have it: `configmap "web" not found`.
    #[error("{kind} {name:?} not found")]
    NotFound { kind: &'static str, name: String },
    #[error("failed to read {kind} {name:?}: {why}")]
    Failed { kind: &'static str, name: String, why: String },
}

impl Lookup {
    pub fn new(client: Client, changed: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { client, entries: Arc::default(), changed: Arc::new(changed) }
    }

    pub async fn get<K: ApiKind>(&self, kind: &'static str, namespace: &str, name: &str) -> Result<K, LookupError> {
        let failed = |why: String| LookupError::Failed { kind, name: name.to_string(), why };
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, self.client.find::<K>(namespace, name)).await;
        let found = found.map_err(|_| failed("the API server does not answer".into()))?;
        found.map_err(|e| failed(e.to_string()))?.ok_or_else(|| LookupError::NotFound { kind, name: name.to_string() })
    }

    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<ConfigMap, LookupError> {
        self.get("configmap", namespace, name).await
    }

    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Secret, LookupError> {
        self.get("secret", namespace, name).await
    }

    /// Watches what a pod refers to. Called again it changes nothing.
    pub fn watch(&self, uid: &str, pod: &Pod) {
        let wanted = references(pod);
        let lock = || self.entries.lock().unwrap_or_else(|e| e.into_inner());
        let missing: Vec<Reference> = {
            let entries = lock();
            wanted.iter().filter(|r| !entries.contains_key(r)).cloned().collect()
        };
        // Started without the lock: an informer tells its first list at once, and telling needs the lock.
        let started: Vec<(Reference, Watcher)> = missing.into_iter().map(|r| (r.clone(), self.start(&r))).collect();
        let mut entries = lock();
        for (reference, watcher) in started {
            entries.entry(reference).or_insert(Entry { _watcher: watcher, pods: BTreeSet::new() });
        }
        for reference in &wanted {
            if let Some(entry) = entries.get_mut(reference) {
                entry.pods.insert(uid.to_string());
            }
        }
    }

    pub fn unwatch(&self, uid: &str) {
        let mut entries = self.entries.lock().unwrap_or_else(|e| e.into_inner());
        entries.retain(|_, entry| {
            entry.pods.remove(uid);
            !entry.pods.is_empty()
        });
    }

    fn start(&self, reference: &Reference) -> Watcher {
        let (kind, namespace, name) = reference;
        let field = format!("metadata.name={name}");
        let (weak, key, changed) = (Arc::downgrade(&self.entries), reference.clone(), self.changed.clone());
        let tell = move || {
            let Some(entries) = weak.upgrade() else { return };
            let pods = entries.lock().unwrap_or_else(|e| e.into_inner()).get(&key).map(|e| e.pods.clone()).unwrap_or_default();
            pods.iter().for_each(|uid| changed(uid));
        };
        match kind {
            Kind::ConfigMap => {
                let informer = Informer::<ConfigMap>::start_scoped(&self.client, namespace, "", &field);
                informer.on_change(move |_| tell());
                Watcher::ConfigMap(informer)
            }
            Kind::Secret => {
                let informer = Informer::<Secret>::start_scoped(&self.client, namespace, "", &field);
                informer.on_change(move |_| tell());
                Watcher::Secret(informer)
            }
        }
    }
}

/// Every ConfigMap and Secret that volumes of a pod are filled from, or its containers' environment.
pub fn references(pod: &Pod) -> BTreeSet<Reference> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let mut all = BTreeSet::new();
    let mut add = |kind: Kind, name: Option<&str>| {
        if let Some(name) = name.filter(|n| !n.is_empty()) {
            all.insert((kind, namespace.clone(), name.to_string()));
        }
    };
    for Volume { config_map, secret, projected, .. } in volumes {
        add(Kind::ConfigMap, config_map.as_ref().map(|c| c.name.as_str()));
        add(Kind::Secret, secret.as_ref().and_then(|s| s.secret_name.as_deref()));
        for source in projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            add(Kind::ConfigMap, source.config_map.as_ref().map(|c| c.name.as_str()));
            add(Kind::Secret, source.secret.as_ref().map(|s| s.name.as_str()));
        }
    }
    let containers = init_containers(pod).iter().chain(app_containers(pod));
    for container in containers {
        for source in container.env_from.iter().flatten() {
            add(Kind::ConfigMap, source.config_map_ref.as_ref().map(|r| r.name.as_str()));
            add(Kind::Secret, source.secret_ref.as_ref().map(|r| r.name.as_str()));
        }
        for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            add(Kind::ConfigMap, source.config_map_key_ref.as_ref().map(|r| r.name.as_str()));
            add(Kind::Secret, source.secret_key_ref.as_ref().map(|r| r.name.as_str()));
        }
    }
    all
}
