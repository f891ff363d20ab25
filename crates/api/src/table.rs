//! The resource table: every built-in kind as one row.
//!
//! Knows names, verbs, subresources and which hooks belong to a kind. Does not know how anything is served: the generic
//! path, discovery, OpenAPI, RBAC and printing read the rows.

use std::sync::{Arc, LazyLock};

use crate::columns as c;
use crate::defaults as d;
use crate::fields as f;
use crate::resource::{Alias, Hooks, Resource, Row, Scope, Subresource};
use crate::validate as v;

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// Namespaces are deleted one by one.
const NO_COLLECTION: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const GET: &[&str] = &["get"];
const STREAM: &[&str] = &["create", "get"];
const CHANGE: &[&str] = &["get", "patch", "update"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

const fn sub(name: &'static str, kind: &'static str, verbs: &'static [&'static str]) -> Subresource {
    Subresource { name, kind, group_version: None, verbs }
}

const fn foreign(name: &'static str, group_version: &'static str, kind: &'static str, verbs: &'static [&'static str]) -> Subresource {
    Subresource { name, kind, group_version: Some(group_version), verbs }
}

const SCALE: Subresource = foreign("scale", "autoscaling/v1", "Scale", CHANGE);

const POD: &[Subresource] = &[
    sub("attach", "PodAttachOptions", STREAM),
    sub("binding", "Binding", CREATE),
    sub("ephemeralcontainers", "Pod", CHANGE),
    foreign("eviction", "policy/v1", "Eviction", CREATE),
    sub("exec", "PodExecOptions", STREAM),
    sub("log", "Pod", GET),
    sub("portforward", "PodPortForwardOptions", STREAM),
    sub("proxy", "PodProxyOptions", PROXY),
    sub("status", "Pod", CHANGE),
];

/// A namespaced kind with every verb that checks nothing but its metadata. `singular` is the kind in lower case.
fn kind(group: &'static str, version: &'static str, kind: &'static str, names: (&'static str, &'static str)) -> Resource {
    Resource {
        group,
        version,
        kind,
        plural: names.0,
        singular: names.1,
        short: &[],
        categories: &[],
        scope: Scope::Namespaced,
        verbs: ALL,
        subresources: &[],
        columns: c::CREATED_AT,
        has_status: false,
        counts_generation: false,
        virtual_kind: false,
        alias: None,
        hooks: Hooks { default: d::none, validate: v::metadata_only, fields: f::none, cells: c::created_at },
    }
}

/// A kind that is answered and never stored.
fn question(group: &'static str, version: &'static str, name: &'static str, names: (&'static str, &'static str), scope: Scope) -> Resource {
    let row = kind(group, version, name, names);
    Resource { scope, verbs: CREATE, virtual_kind: true, hooks: Hooks { validate: v::review, ..row.hooks }, ..row }
}

fn core() -> Vec<Resource> {
    let kind = |name, names| kind("", "v1", name, names);
    vec![
        question("", "v1", "Binding", ("bindings", "binding"), Scope::Namespaced),
        Resource {
            short: &["cm"],
            columns: c::core::CONFIG_MAP,
            hooks: Hooks { default: d::none, validate: v::config::config_map, fields: f::none, cells: c::core::config_map },
            ..kind("ConfigMap", ("configmaps", "configmap"))
        },
        Resource {
            short: &["ep"],
            columns: c::network::ENDPOINTS,
            hooks: Hooks {
                default: d::network::endpoints,
                validate: v::endpoints::endpoints,
                fields: f::none,
                cells: c::network::endpoints,
            },
            ..kind("Endpoints", ("endpoints", "endpoints"))
        },
        Resource {
            short: &["ev"],
            columns: c::core::EVENT,
            hooks: Hooks { default: d::none, validate: v::event::core_event, fields: f::event, cells: c::core::event },
            ..kind("Event", ("events", "event"))
        },
        Resource {
            short: &["limits"],
            hooks: Hooks { default: d::policy::limit_range, validate: v::policy::limit_range, fields: f::none, cells: c::created_at },
            ..kind("LimitRange", ("limitranges", "limitrange"))
        },
        Resource {
            short: &["ns"],
            scope: Scope::Cluster,
            verbs: NO_COLLECTION,
            subresources: const { &[sub("finalize", "Namespace", &["update"]), sub("status", "Namespace", CHANGE)] },
            columns: c::core::NAMESPACE,
            has_status: true,
            hooks: Hooks { default: d::core::namespace, validate: v::core::namespace, fields: f::namespace, cells: c::core::namespace },
            ..kind("Namespace", ("namespaces", "namespace"))
        },
        Resource {
            short: &["no"],
            scope: Scope::Cluster,
            subresources: const { &[sub("proxy", "NodeProxyOptions", PROXY), sub("status", "Node", CHANGE)] },
            columns: c::core::NODE,
            has_status: true,
            hooks: Hooks { default: d::core::node, validate: v::node::node, fields: f::node, cells: c::core::node },
            ..kind("Node", ("nodes", "node"))
        },
        Resource {
            short: &["po"],
            categories: &["all"],
            subresources: POD,
            columns: c::pod::COLUMNS,
            has_status: true,
            hooks: Hooks { default: d::pod::pod, validate: v::pod::pod, fields: f::pod, cells: c::pod::cells },
            ..kind("Pod", ("pods", "pod"))
        },
        Resource {
            short: &["quota"],
            subresources: const { &[sub("status", "ResourceQuota", CHANGE)] },
            columns: c::core::RESOURCE_QUOTA,
            has_status: true,
            hooks: Hooks { default: d::none, validate: v::policy::resource_quota, fields: f::none, cells: c::core::resource_quota },
            ..kind("ResourceQuota", ("resourcequotas", "resourcequota"))
        },
        Resource {
            columns: c::core::SECRET,
            hooks: Hooks { default: d::core::secret, validate: v::config::secret, fields: f::secret, cells: c::core::secret },
            ..kind("Secret", ("secrets", "secret"))
        },
        Resource {
            short: &["sa"],
            subresources: const { &[foreign("token", "authentication.k8s.io/v1", "TokenRequest", CREATE)] },
            columns: c::core::SERVICE_ACCOUNT,
            hooks: Hooks { default: d::none, validate: v::core::service_account, fields: f::none, cells: c::core::service_account },
            ..kind("ServiceAccount", ("serviceaccounts", "serviceaccount"))
        },
        Resource {
            short: &["svc"],
            categories: &["all"],
            subresources: const { &[sub("proxy", "ServiceProxyOptions", PROXY), sub("status", "Service", CHANGE)] },
            columns: c::network::SERVICE,
            has_status: true,
            hooks: Hooks { default: d::network::service, validate: v::service::service, fields: f::service, cells: c::network::service },
            ..kind("Service", ("services", "service"))
        },
    ]
}

fn apps() -> Vec<Resource> {
    let kind = |name, names| kind("apps", "v1", name, names);
    vec![
        Resource {
            columns: c::workloads::CONTROLLER_REVISION,
            hooks: Hooks {
                default: d::none,
                validate: v::workloads::controller_revision,
                fields: f::none,
                cells: c::workloads::controller_revision,
            },
            ..kind("ControllerRevision", ("controllerrevisions", "controllerrevision"))
        },
        Resource {
            short: &["deploy"],
            categories: &["all"],
            subresources: const { &[SCALE, sub("status", "Deployment", CHANGE)] },
            columns: c::workloads::DEPLOYMENT,
            has_status: true,
            counts_generation: true,
            hooks: Hooks {
                default: d::workloads::deployment,
                validate: v::workloads::deployment,
                fields: f::none,
                cells: c::workloads::deployment,
            },
            ..kind("Deployment", ("deployments", "deployment"))
        },
        Resource {
            short: &["rs"],
            categories: &["all"],
            subresources: const { &[SCALE, sub("status", "ReplicaSet", CHANGE)] },
            columns: c::workloads::REPLICA_SET,
            has_status: true,
            counts_generation: true,
            hooks: Hooks {
                default: d::workloads::replica_set,
                validate: v::workloads::replica_set,
                fields: f::replica_set,
                cells: c::workloads::replica_set,
            },
            ..kind("ReplicaSet", ("replicasets", "replicaset"))
        },
    ]
}

fn events() -> Resource {
    Resource {
        short: &["ev"],
        columns: c::core::EVENT,
        alias: Some(Alias { group: "", to_storage: crate::events::to_core, from_storage: crate::events::from_core }),
        hooks: Hooks { default: d::none, validate: v::event::new_event, fields: f::new_event, cells: c::core::new_event },
        ..kind("events.k8s.io", "v1", "Event", ("events", "event"))
    }
}

fn reviews() -> Vec<Resource> {
    let authn = |name, names| question("authentication.k8s.io", "v1", name, names, Scope::Cluster);
    let authz = |name, names, scope| question("authorization.k8s.io", "v1", name, names, scope);
    vec![
        authn("SelfSubjectReview", ("selfsubjectreviews", "selfsubjectreview")),
        authn("TokenReview", ("tokenreviews", "tokenreview")),
        authz("LocalSubjectAccessReview", ("localsubjectaccessreviews", "localsubjectaccessreview"), Scope::Namespaced),
        authz("SelfSubjectAccessReview", ("selfsubjectaccessreviews", "selfsubjectaccessreview"), Scope::Cluster),
        authz("SelfSubjectRulesReview", ("selfsubjectrulesreviews", "selfsubjectrulesreview"), Scope::Cluster),
        authz("SubjectAccessReview", ("subjectaccessreviews", "subjectaccessreview"), Scope::Cluster),
    ]
}

fn networking() -> Vec<Resource> {
    vec![
        Resource {
            short: &["ing"],
            subresources: const { &[sub("status", "Ingress", CHANGE)] },
            columns: c::network::INGRESS,
            has_status: true,
            counts_generation: true,
            hooks: Hooks { default: d::none, validate: v::ingress::ingress, fields: f::none, cells: c::network::ingress },
            ..kind("networking.k8s.io", "v1", "Ingress", ("ingresses", "ingress"))
        },
        Resource {
            scope: Scope::Cluster,
            columns: c::network::INGRESS_CLASS,
            counts_generation: true,
            hooks: Hooks {
                default: d::network::ingress_class,
                validate: v::ingress::ingress_class,
                fields: f::none,
                cells: c::network::ingress_class,
            },
            ..kind("networking.k8s.io", "v1", "IngressClass", ("ingressclasses", "ingressclass"))
        },
    ]
}

fn rbac() -> Vec<Resource> {
    let kind = |name, names, scope| Resource { scope, ..kind("rbac.authorization.k8s.io", "v1", name, names) };
    let binding = |validate| Hooks { default: d::rbac::binding, validate, fields: f::none, cells: c::rbac::binding };
    vec![
        Resource {
            columns: c::rbac::BINDING,
            hooks: binding(v::rbac::cluster_role_binding),
            ..kind("ClusterRoleBinding", ("clusterrolebindings", "clusterrolebinding"), Scope::Cluster)
        },
        Resource {
            hooks: Hooks { default: d::none, validate: v::rbac::cluster_role, fields: f::none, cells: c::created_at },
            ..kind("ClusterRole", ("clusterroles", "clusterrole"), Scope::Cluster)
        },
        Resource {
            columns: c::rbac::BINDING,
            hooks: binding(v::rbac::role_binding),
            ..kind("RoleBinding", ("rolebindings", "rolebinding"), Scope::Namespaced)
        },
        Resource {
            hooks: Hooks { default: d::none, validate: v::rbac::role, fields: f::none, cells: c::created_at },
            ..kind("Role", ("roles", "role"), Scope::Namespaced)
        },
    ]
}

fn rest() -> Vec<Resource> {
    vec![
        Resource {
            short: &["pc"],
            scope: Scope::Cluster,
            columns: c::workloads::PRIORITY_CLASS,
            counts_generation: true,
            hooks: Hooks {
                default: d::policy::priority_class,
                validate: v::policy::priority_class,
                fields: f::none,
                cells: c::workloads::priority_class,
            },
            ..kind("scheduling.k8s.io", "v1", "PriorityClass", ("priorityclasses", "priorityclass"))
        },
        Resource {
            columns: c::core::LEASE,
            hooks: Hooks { default: d::none, validate: v::core::lease, fields: f::none, cells: c::core::lease },
            ..kind("coordination.k8s.io", "v1", "Lease", ("leases", "lease"))
        },
        Resource {
            scope: Scope::Cluster,
            columns: c::workloads::RUNTIME_CLASS,
            hooks: Hooks { default: d::none, validate: v::node::runtime_class, fields: f::none, cells: c::workloads::runtime_class },
            ..kind("node.k8s.io", "v1", "RuntimeClass", ("runtimeclasses", "runtimeclass"))
        },
        Resource {
            columns: c::network::ENDPOINT_SLICE,
            counts_generation: true,
            hooks: Hooks {
                default: d::network::endpoint_slice,
                validate: v::endpoints::endpoint_slice,
                fields: f::none,
                cells: c::network::endpoint_slice,
            },
            ..kind("discovery.k8s.io", "v1", "EndpointSlice", ("endpointslices", "endpointslice"))
        },
    ]
}

static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
    let groups = [core(), apps(), vec![events()], reviews(), networking(), rbac(), rest()];
    groups.into_iter().flatten().map(Arc::new).collect()
});

/// Every built-in row; groups are in the order in which discovery lists them, rows of one group stand together.
pub fn all() -> &'static [Row] {
    &ROWS
}

/// The row that a URL names: `/apis/<group>/<version>/…/<plural>`.
pub fn by_path(group: &str, version: &str, plural: &str) -> Option<&'static Row> {
    all().iter().find(|r| r.plural == plural && r.group == group && r.version == version)
}

pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Row> {
    all().iter().find(|r| r.kind == kind && r.group == group && r.version == version)
}

/// [`by_kind`] from an object's `apiVersion` and `kind`.
pub fn of(object: &serde_json::Value) -> Option<&'static Row> {
    let api_version = object["apiVersion"].as_str()?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    by_kind(group, version, object["kind"].as_str()?)
}

/// What a person calls a kind: `deploy`, `Deployment`, `deployments.apps`, `deployments.v1.apps`; the first row wins.
pub fn find(word: &str) -> Option<&'static Row> {
    let word = word.to_lowercase();
    let (name, group) = word.split_once('.').map_or((word.as_str(), None), |(n, g)| (n, Some(g)));
    let named = |r: &&Row| r.plural == name || r.singular == name || r.short.contains(&name);
    let placed =
        |r: &&Row| group.is_none_or(|g| r.group == g || g.strip_prefix(r.version).is_some_and(|g| g.trim_start_matches('.') == r.group));
    all().iter().filter(named).find(placed)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn words_of_people_find_rows() {
        for (word, expect) in [
            ("po", Some("pods")),
            ("Pod", Some("pods")),
            ("deploy", Some("deployments.apps")),
            ("deployments.apps", Some("deployments.apps")),
            ("deployments.v1.apps", Some("deployments.apps")),
            ("events.events.k8s.io", Some("events.events.k8s.io")),
            ("ev", Some("events")),
            ("pods.v1.", Some("pods")),
            ("deployments.extensions", None),
            ("unicorns", None),
        ] {
            assert_eq!(find(word).map(|r| r.qualified()).as_deref(), expect, "{word}");
        }
    }

    #[test]
    fn rows_are_consistent() {
        let mut keys = BTreeSet::new();
        for row in all() {
            assert!(keys.insert((row.group, row.version, row.plural)), "{} twice", row.qualified());
            assert_eq!(row.singular, row.kind.to_lowercase(), "{}", row.kind);
            assert!(row.verbs.is_sorted(), "{}", row.kind);
            assert!(row.subresources.iter().map(|s| s.name).is_sorted(), "{}", row.kind);
            assert_eq!(row.has_status, row.subresources.iter().any(|s| s.name == "status"), "{}", row.kind);
            let object = serde_json::json!({"metadata": {"name": "x"}});
            assert_eq!((row.hooks.cells)(&object, jiff::Timestamp::UNIX_EPOCH).len(), row.columns.len(), "{}", row.kind);
            let mut empty = object.clone();
            (row.hooks.default)(&mut empty);
            (row.hooks.validate)(&empty, Some(&object));
            assert!(std::ptr::eq(by_path(row.group, row.version, row.plural).unwrap(), row));
            assert!(by_kind(row.group, row.version, row.kind).is_some());
        }
    }
}
