//! What a row of the resource table holds.

use std::sync::Arc;

use serde_json::Value;

use crate::Cause;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Namespaced,
    Cluster,
}

/// What a write is compared with and turned into before it is stored; all pure.
pub struct Hooks {
    /// Fills in what the user left out (Kubernetes' defaulting). Runs on every decode, also of patches' results.
    pub default: fn(&mut Value),
    /// Checks a new object (`old` is `None`) or an update. Field paths as Kubernetes spells them: `spec.template.spec.containers[0].image`.
    pub validate: fn(new: &Value, old: Option<&Value>) -> Vec<Cause>,
    /// What field selectors may name beyond `metadata.name` and `metadata.namespace`: `(path, value)`.
    pub fields: fn(&Value) -> Vec<(&'static str, String)>,
    /// What `kubectl get` shows: the cells of one row, in the order of `columns` (the Name and Age columns included).
    pub cells: fn(&Value, now: jiff::Timestamp) -> Vec<Value>,
}

/// A column of `kubectl get` (`metav1.TableColumnDefinition`). Priority 0 is shown always, 1 with `-o wide`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `boolean`, `date`
    pub kind: &'static str,
    /// `name` for the Name column, else empty
    pub format: &'static str,
    pub priority: u8,
}

/// A subresource that the generic path or a stream serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subresource {
    /// `status`, `scale`, `log`, `exec`, `binding`, `token` …
    pub name: &'static str,
    pub kind: &'static str,
    /// Group and version of `kind` where they differ from the parent's, as `autoscaling/v1` for `Scale`.
    pub group_version: Option<&'static str>,
    pub verbs: &'static [&'static str],
}

/// One kind: all that discovery, routing, storage, printing and RBAC need to know of it.
pub struct Resource {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub scope: Scope,
    /// From `create delete deletecollection get list patch update watch`.
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    pub columns: &'static [Column],
    /// `spec` changes bump `metadata.generation`; `status` is writable only through `/status`.
    pub has_status: bool,
    pub counts_generation: bool,
    /// Answered from the request alone and never stored: reviews, TokenRequest.
    pub virtual_kind: bool,
    /// Set where objects are stored as another group's row of the same plural has them.
    pub alias: Option<Alias>,
    pub hooks: Hooks,
}

/// One stored object under two groups: `events` of `events.k8s.io` are the core group's. Whoever reads the store for such a
/// row converts every object with `from_storage`, and with `to_storage` before writing.
#[derive(Clone, Copy)]
pub struct Alias {
    /// The group that the store's keys are made of.
    pub group: &'static str,
    pub to_storage: fn(&mut Value),
    pub from_storage: fn(&mut Value),
}

/// How rows are passed around: built-in rows and, later, rows of CRDs alike.
pub type Row = Arc<Resource>;

impl Resource {
    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// `apps/v1`, or `v1` in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `deployments.apps`, or `pods` in the core group.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_string() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The store's prefix of one namespace (or of all, with `None`): `apps/deployments/default/`. The core group is `core`;
    /// cluster-scoped objects have an empty namespace part, `core/nodes//`.
    pub fn prefix(&self, namespace: Option<&str>) -> String {
        let group = self.alias.map_or(self.group, |a| a.group);
        let group = if group.is_empty() { "core" } else { group };
        match (self.scope, namespace) {
            (Scope::Cluster, _) => format!("{group}/{}//", self.plural),
            (Scope::Namespaced, Some(ns)) => format!("{group}/{}/{ns}/", self.plural),
            (Scope::Namespaced, None) => format!("{group}/{}/", self.plural),
        }
    }

    /// The store's key of one object: [`Resource::prefix`] and its name.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        format!("{}{name}", self.prefix(Some(namespace)))
    }
}
