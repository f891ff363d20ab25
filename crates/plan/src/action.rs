//! What a plan consists of: writes to the API as data, with their preconditions.
//!
//! Knows how a write is spelled; does not know how it is sent. One applier in `controllers` and one in the tests' simulated
//! world execute every planner's actions.

use std::borrow::Cow;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, Metadata, NamespaceResourceScope, Resource, ResourceScope};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::Reason;

/// Which kind, as a request path and an object reference need it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// Empty for the core group.
    pub group: Cow<'static, str>,
    pub version: Cow<'static, str>,
    pub kind: Cow<'static, str>,
    pub plural: Cow<'static, str>,
    pub namespaced: bool,
}

/// Whether a typed kind lives in namespaces, from its type.
pub trait Scoped: ResourceScope {
    const NAMESPACED: bool;
}
impl Scoped for NamespaceResourceScope {
    const NAMESPACED: bool = true;
}
impl Scoped for ClusterResourceScope {
    const NAMESPACED: bool = false;
}

/// A typed object that has a place of its own in the API.
pub trait Object: Resource<Scope: Scoped> + Metadata<Ty = ObjectMeta> + Clone + PartialEq + Serialize + DeserializeOwned {}
impl<K> Object for K where K: Resource<Scope: Scoped> + Metadata<Ty = ObjectMeta> + Clone + PartialEq + Serialize + DeserializeOwned {}

impl Kind {
    pub const fn of<K: Resource<Scope: Scoped>>() -> Self {
        Self {
            group: Cow::Borrowed(K::GROUP),
            version: Cow::Borrowed(K::VERSION),
            kind: Cow::Borrowed(K::KIND),
            plural: Cow::Borrowed(K::URL_PATH_SEGMENT),
            namespaced: <K::Scope as Scoped>::NAMESPACED,
        }
    }

    /// `apps/v1`, or `v1` in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// One object, by name and, as a precondition, by uid (empty: whatever bears the name).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub kind: Kind,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl Target {
    pub fn of<K: Object>(object: &K) -> Self {
        let meta = object.metadata();
        Self {
            kind: Kind::of::<K>(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        }
    }
}

/// `DeleteOptions.propagationPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

impl Propagation {
    pub fn as_str(self) -> &'static str {
        match self {
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
            Propagation::Orphan => "Orphan",
        }
    }
}

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// POST. The object has its name already.
    Create { target: Target, object: Value },
    /// JSON merge patch. The preconditions (`metadata.uid`, and `metadata.resourceVersion` of what the planner saw) are in it.
    Patch { target: Target, subresource: Option<&'static str>, patch: Value },
    /// DELETE with the target's uid as precondition.
    Delete { target: Target, resource_version: Option<String>, propagation: Option<Propagation>, grace_seconds: Option<i64> },
    /// DELETE of all objects of a kind in a namespace.
    DeleteCollection { kind: Kind, namespace: String },
    /// POST `pods/binding`.
    Bind { pod: Target, node: String },
    /// PUT `namespaces/finalize`: the namespace as it shall be.
    Finalize { target: Target, object: Value },
}

impl Action {
    pub fn create<K: Object>(object: &K) -> Self {
        Action::Create { target: Target::of(object), object: value(object) }
    }

    /// The patch from what was seen to what shall be; `None` where nothing differs. Without a subresource the status is not
    /// part of it, with `status` nothing else is.
    pub fn patch<K: Object>(seen: &K, wanted: &K, subresource: Option<&'static str>) -> Option<Self> {
        if seen == wanted {
            return None;
        }
        let (mut from, mut to) = (value(seen), value(wanted));
        for side in [&mut from, &mut to].into_iter().filter_map(Value::as_object_mut) {
            side.retain(|field, _| (field == "status") == (subresource == Some("status")));
        }
        let mut patch = merge_diff(&from, &to)?;
        let meta = patch.as_object_mut()?.entry("metadata").or_insert_with(|| Value::Object(Map::new())).as_object_mut()?;
        for (field, precondition) in [("uid", &seen.metadata().uid), ("resourceVersion", &seen.metadata().resource_version)] {
            if let Some(it) = precondition {
                meta.insert(field.into(), Value::String(it.clone()));
            }
        }
        Some(Action::Patch { target: Target::of(seen), subresource, patch })
    }

    /// Deletes what was seen: the same uid, whatever its revision.
    pub fn delete<K: Object>(object: &K) -> Self {
        Action::Delete { target: Target::of(object), resource_version: None, propagation: None, grace_seconds: None }
    }

    /// Deletes what was seen only if it has not changed since.
    pub fn delete_as_seen<K: Object>(object: &K) -> Self {
        let resource_version = object.metadata().resource_version.clone();
        Action::Delete { target: Target::of(object), resource_version, propagation: None, grace_seconds: None }
    }

    /// The object it touches; of a collection, nothing.
    pub fn target(&self) -> Option<&Target> {
        match self {
            Action::Create { target, .. }
            | Action::Patch { target, .. }
            | Action::Delete { target, .. }
            | Action::Finalize { target, .. } => Some(target),
            Action::Bind { pod, .. } => Some(pod),
            Action::DeleteCollection { .. } => None,
        }
    }

    /// The typed object of a create of kind `K`.
    pub fn created<K: Object>(&self) -> Option<K> {
        match self {
            Action::Create { target, object } if target.kind == Kind::of::<K>() => serde_json::from_value(object.clone()).ok(),
            _ => None,
        }
    }
}

/// An action and what is told of it. `failed` carries the words before the error: `Error creating`.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub action: Action,
    pub done: Option<Reason>,
    pub failed: Option<Reason>,
}

impl From<Action> for Step {
    fn from(action: Action) -> Self {
        Self { action, done: None, failed: None }
    }
}

impl Step {
    pub fn done(self, reason: Reason) -> Self {
        Self { done: Some(reason), ..self }
    }

    pub fn failed(self, reason: Reason) -> Self {
        Self { failed: Some(reason), ..self }
    }
}

/// Waves of steps. The steps of one wave may run together; a wave starts only when all of the one before it succeeded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    pub waves: Vec<Vec<Step>>,
    /// When to look again though nothing changed.
    pub requeue_after: Option<Duration>,
}

impl Plan {
    /// Nothing to do.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds one wave; an empty one is none.
    pub fn wave(&mut self, steps: impl IntoIterator<Item: Into<Step>>) -> &mut Self {
        let steps: Vec<Step> = steps.into_iter().map(Into::into).collect();
        if !steps.is_empty() {
            self.waves.push(steps);
        }
        self
    }

    /// Look again after `wait` at the latest.
    pub fn requeue(&mut self, wait: Duration) -> &mut Self {
        self.requeue_after = Some(self.requeue_after.map_or(wait, |before| before.min(wait)));
        self
    }

    pub fn is_empty(&self) -> bool {
        self.waves.is_empty()
    }

    pub fn actions(&self) -> impl Iterator<Item = &Action> {
        self.steps().map(|s| &s.action)
    }

    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.waves.iter().flatten()
    }
}

fn value<K: Serialize>(object: &K) -> Value {
    // k8s-openapi's types have string keys only and no failing serialisers.
    serde_json::to_value(object).unwrap_or(Value::Null)
}

/// RFC 7396: the merge patch that turns `from` into `to`; `None` where they are equal.
pub fn merge_diff(from: &Value, to: &Value) -> Option<Value> {
    let (Value::Object(a), Value::Object(b)) = (from, to) else {
        return (from != to).then(|| to.clone());
    };
    let mut patch = Map::new();
    for (field, wanted) in b {
        match a.get(field) {
            None => {
                patch.insert(field.clone(), wanted.clone());
            }
            Some(had) => {
                if let Some(inner) = merge_diff(had, wanted) {
                    patch.insert(field.clone(), inner);
                }
            }
        }
    }
    for field in a.keys().filter(|f| !b.contains_key(*f)) {
        patch.insert(field.clone(), Value::Null);
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// RFC 7396: applies a merge patch in place.
pub fn merge(to: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *to = patch.clone();
        return;
    };
    if !to.is_object() {
        *to = Value::Object(Map::new());
    }
    if let Value::Object(have) = to {
        for (field, value) in fields {
            if value.is_null() {
                have.remove(field);
            } else {
                merge(have.entry(field.clone()).or_insert(Value::Null), value);
            }
        }
    }
}

/// The object as a patch of its kind leaves it: for dry runs and simulated worlds.
pub fn patched<K: Object>(seen: &K, patch: &Value) -> Result<K, serde_json::Error> {
    let mut object = value(seen);
    merge(&mut object, patch);
    serde_json::from_value(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};
    use serde_json::json;

    #[test]
    fn a_patch_holds_the_difference_and_its_preconditions() {
        let mut seen = Pod::default();
        seen.metadata.name = Some("a".into());
        seen.metadata.uid = Some("u".into());
        seen.metadata.resource_version = Some("7".into());
        seen.metadata.labels = Some([("x".to_string(), "1".to_string())].into());
        let mut wanted = seen.clone();
        wanted.metadata.labels = None;
        wanted.status = Some(PodStatus { phase: Some("Failed".into()), ..PodStatus::default() });
        let Some(Action::Patch { patch, .. }) = Action::patch(&seen, &wanted, None) else { panic!() };
        assert_eq!(patch, json!({"metadata": {"labels": null, "uid": "u", "resourceVersion": "7"}}));
        let Some(Action::Patch { patch, .. }) = Action::patch(&seen, &wanted, Some("status")) else { panic!() };
        assert_eq!(patch, json!({"metadata": {"uid": "u", "resourceVersion": "7"}, "status": {"phase": "Failed"}}));
        assert_eq!(Action::patch(&seen, &seen.clone(), None), None);
    }

    #[test]
    fn kinds_know_their_paths() {
        let k = Kind::of::<Node>();
        assert_eq!((k.api_version().as_str(), &*k.plural, k.namespaced), ("v1", "nodes", false));
    }
}
