//! Who owns whom over all kinds there are: discovered, watched by their metadata alone, kept as one graph.
//!
//! Kinds that other controllers watch anyway are fed from those informers. Events are left out: they own nothing, are owned
//! by nothing, and there are many.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use client::{CancellationToken, Change, Client, Error, Informer, PartialObject, Queue};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResourceList, ObjectMeta, OwnerReference};
use plan::gc::{Graph, Item};
use plan::{Kind, Target};

use crate::apply::path;
use crate::limits;

type GroupKind = (String, String);

#[derive(Default)]
struct State {
    graph: Graph,
    kinds: BTreeMap<GroupKind, Kind>,
    /// Kinds whose changes arrive here, and how to ask whether all that exists has arrived.
    fed: BTreeMap<GroupKind, Box<dyn Fn() -> bool + Send + Sync>>,
    discovered: bool,
}

/// Cheap to clone; all clones are one census.
#[derive(Clone)]
pub(crate) struct Census {
    state: Arc<Mutex<State>>,
    /// Where uids go that may have something to do; set before anything is fed.
    queue: Arc<OnceLock<Queue<String>>>,
}

impl Census {
    pub fn new() -> Self {
        Self { state: Arc::default(), queue: Arc::default() }
    }

    pub fn wakes(&self, queue: Queue<String>) {
        let _ = self.queue.set(queue);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes a kind's changes from an informer that holds all of it.
    pub fn feed<K: client::Kind + plan::action::Object>(&self, informer: &Informer<K>) {
        self.feed_from(Kind::of::<K>(), informer);
    }

    fn feed_from<K: client::Object>(&self, kind: Kind, informer: &Informer<K>) {
        let ready = informer.clone();
        self.lock().fed.insert(group_kind(&kind), Box::new(move || ready.is_ready()));
        let census = self.clone();
        informer.on_change(move |change| census.heard(&kind, change));
    }

    fn heard<K: client::Object>(&self, kind: &Kind, change: &Change<K>) {
        let uid = |o: &Arc<K>| o.meta().uid.clone().unwrap_or_default();
        let mut state = self.lock();
        let mut touched = Default::default();
        if let Some(old) = change.old.as_ref().filter(|old| change.new.as_ref().is_none_or(|new| uid(new) != uid(old))) {
            touched = state.graph.remove(&uid(old));
        }
        if let Some(new) = &change.new {
            touched.append(&mut state.graph.set(item(kind, new.meta())));
        }
        let idle = |i: &Item| i.owners.is_empty() && !i.deleting;
        let busy = |uid: &String| state.graph.get(uid).is_some_and(|i| !idle(i));
        if let Some(queue) = self.queue.get() {
            touched.into_iter().filter(busy).for_each(|uid| queue.add(uid));
        }
    }

    /// All kinds are known and all their objects are here.
    pub fn is_complete(&self) -> bool {
        let state = self.lock();
        state.discovered && state.fed.values().all(|ready| ready())
    }

    /// The kinds whose objects live in namespaces, once kinds are known.
    pub fn namespaced(&self) -> Option<Vec<Kind>> {
        let state = self.lock();
        state.discovered.then(|| state.kinds.values().filter(|k| k.namespaced).cloned().collect())
    }

    /// The kind that a reference names, if such a kind exists.
    pub fn kind_of(&self, owner: &OwnerReference) -> Option<Kind> {
        let (group, version) = owner.api_version.rsplit_once('/').unwrap_or(("", &owner.api_version));
        let known = self.lock().kinds.get(&(group.to_string(), owner.kind.clone())).cloned()?;
        Some(Kind { version: version.to_string().into(), ..known })
    }

    pub fn plan(&self, uid: &str) -> (Option<Item>, plan::Plan, Vec<plan::gc::Question>) {
        let state = self.lock();
        let (plan, questions) = plan::gc::plan(&state.graph, uid);
        (state.graph.get(uid).cloned(), plan, questions)
    }

    pub fn note_absent(&self, uid: &str, namespace: &str) {
        self.lock().graph.note_absent(uid, namespace);
    }

    /// Finds kinds, now and again, until `stop`: custom kinds come and go.
    pub async fn discover(self, client: Client, stop: CancellationToken) {
        // Held here: the last handle of an informer ends it.
        let mut informers: BTreeMap<GroupKind, Informer<PartialObject>> = BTreeMap::new();
        loop {
            let wait = match discovered(&client).await {
                Ok(kinds) => {
                    self.take_in(kinds, &client, &mut informers);
                    limits::DISCOVERY_INTERVAL
                }
                Err(error) => {
                    tracing::warn!(%error, "the kinds of the API are not known yet");
                    limits::DISCOVERY_RETRY
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn take_in(&self, kinds: Vec<Kind>, client: &Client, informers: &mut BTreeMap<GroupKind, Informer<PartialObject>>) {
        let known: BTreeMap<GroupKind, Kind> = kinds.into_iter().map(|k| (group_kind(&k), k)).collect();
        for (name, kind) in &known {
            if !self.lock().fed.contains_key(name) && kind.plural != "events" {
                let informer = Informer::start_path(client, path(kind, "", "", ""), "", "");
                self.feed_from(kind.clone(), &informer);
                informers.insert(name.clone(), informer);
            }
        }
        informers.retain(|name, _| known.contains_key(name));
        let mut state = self.lock();
        let held: Vec<GroupKind> = state.fed.keys().filter(|n| state.kinds.contains_key(*n) && !known.contains_key(*n)).cloned().collect();
        held.iter().for_each(|name| drop(state.fed.remove(name)));
        state.kinds = known;
        state.discovered = true;
    }
}

fn group_kind(kind: &Kind) -> GroupKind {
    (kind.group.to_string(), kind.kind.to_string())
}

fn item(kind: &Kind, meta: &ObjectMeta) -> Item {
    Item {
        target: Target {
            kind: kind.clone(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        },
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        owners: meta.owner_references.clone().unwrap_or_default(),
        finalizers: meta.finalizers.clone().unwrap_or_default(),
        deleting: meta.deletion_timestamp.is_some(),
    }
}

/// Every kind whose objects are kept and can be deleted, in its group's preferred version.
async fn discovered(client: &Client) -> Result<Vec<Kind>, Error> {
    let mut versions = vec![(String::new(), "v1".to_string())];
    let groups: APIGroupList = decoded(client, "/apis").await?;
    for group in groups.groups {
        let preferred = group.preferred_version.map(|v| v.version).or_else(|| group.versions.first().map(|v| v.version.clone()));
        versions.extend(preferred.map(|v| (group.name, v)));
    }
    let mut out = Vec::new();
    for (group, version) in versions {
        let path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let list: APIResourceList = decoded(client, &path).await?;
        for r in list.resources {
            let can = |verb: &str| r.verbs.iter().any(|v| v == verb);
            // Events are served under two groups, and are the same objects.
            let twice = r.name == "events" && !group.is_empty();
            if !r.name.contains('/') && can("list") && can("watch") && can("delete") && !twice {
                out.push(Kind {
                    group: group.clone().into(),
                    version: version.clone().into(),
                    kind: r.kind.into(),
                    plural: r.name.into(),
                    namespaced: r.namespaced,
                });
            }
        }
    }
    Ok(out)
}

async fn decoded<T: serde::de::DeserializeOwned>(client: &Client, path: &str) -> Result<T, Error> {
    let value = client.get_path(path).await?;
    serde_json::from_value(value).map_err(|source| Error::Decode { what: path.into(), source })
}

/// How long a reconcile waits that came before the census was complete.
pub(crate) const INCOMPLETE_RETRY: Duration = Duration::from_millis(200);
