//! Roles of the controllers: each acts as a service account in `kube-system` and may do what its work needs.

use serde_json::Value;

use super::{Rule, binding, role_of};

const EVENTS: Rule = Rule("core events.k8s.io", "events", "create patch update");
const READ: &str = "get list watch";

/// (service account, what it may do beyond writing events)
const CONTROLLERS: &[(&str, &[Rule])] = &[
    (
        "deployment-controller",
        &[
            Rule("apps", "deployments", "get list watch update patch"),
            Rule("apps", "deployments/finalizers deployments/status", "update patch"),
            Rule("apps", "replicasets", "create delete get list patch update watch"),
            Rule("core", "pods", "get list update patch watch"),
        ],
    ),
    (
        "replicaset-controller",
        &[
            Rule("apps", "replicasets", "get list watch update patch"),
            Rule("apps", "replicasets/finalizers replicasets/status", "update patch"),
            Rule("core", "pods", "create delete get list patch update watch"),
        ],
    ),
    (
        "endpoint-controller",
        &[
            Rule("core", "pods services", READ),
            Rule("core", "endpoints", "create delete get list patch update watch"),
            Rule("core", "endpoints/restricted", "create"),
        ],
    ),
    (
        "endpointslice-controller",
        &[
            Rule("core", "nodes pods services", READ),
            Rule("core", "services/finalizers", "update"),
            Rule("discovery.k8s.io", "endpointslices", "create delete get list patch update watch"),
        ],
    ),
    (
        "endpointslicemirroring-controller",
        &[
            Rule("core", "endpoints services", READ),
            Rule("core", "endpoints/finalizers services/finalizers", "update"),
            Rule("discovery.k8s.io", "endpointslices", "create delete get list patch update watch"),
        ],
    ),
    ("generic-garbage-collector", &[Rule("*", "*", "delete get list patch update watch")]),
    (
        "namespace-controller",
        &[
            Rule("core", "namespaces", "delete get list watch"),
            Rule("core", "namespaces/finalize namespaces/status", "update patch"),
            Rule("*", "*", "delete deletecollection get list"),
        ],
    ),
    ("service-account-controller", &[Rule("core", "namespaces", READ), Rule("core", "serviceaccounts", "create get list watch")]),
    ("root-ca-cert-publisher", &[Rule("core", "namespaces", READ), Rule("core", "configmaps", "create get list patch update watch")]),
    (
        "node-controller",
        &[
            Rule("core", "nodes", "delete get list patch update watch"),
            Rule("core", "nodes/status pods/status", "patch update"),
            Rule("core", "pods", "delete get list patch watch"),
            Rule("coordination.k8s.io", "leases", READ),
        ],
    ),
    (
        "pod-garbage-collector",
        &[Rule("core", "pods", "delete get list watch"), Rule("core", "nodes", READ), Rule("core", "pods/status", "patch update")],
    ),
    (
        "service-controller",
        &[
            Rule("core", "services", "get list patch update watch"),
            Rule("core", "services/status", "patch update"),
            Rule("core", "nodes", READ),
        ],
    ),
    (
        "ingress-controller",
        &[
            Rule("networking.k8s.io", "ingresses ingressclasses", READ),
            Rule("networking.k8s.io", "ingresses/status", "patch update"),
            Rule("core", "services nodes secrets", READ),
            Rule("discovery.k8s.io", "endpointslices", READ),
        ],
    ),
    ("event-ttl-controller", &[Rule("core", "events", "delete get list watch")]),
    ("resourcequota-controller", &[Rule("*", "*", "list watch"), Rule("core", "resourcequotas/status", "patch update")]),
    ("clusterrole-aggregation-controller", &[Rule("rbac.authorization.k8s.io", "clusterroles", "escalate get list patch update watch")]),
];

pub(super) fn roles() -> Vec<Value> {
    let role = |(name, rules): &(&str, &[Rule])| {
        let all: Vec<Rule> = rules.iter().map(|r| Rule(r.0, r.1, r.2)).chain([EVENTS]).collect();
        role_of(&format!("system:controller:{name}"), &all)
    };
    CONTROLLERS.iter().map(role).collect()
}

pub(super) fn bindings() -> Vec<Value> {
    let bind = |(name, _): &(&str, &[Rule])| {
        let role = format!("system:controller:{name}");
        binding(&role, &role, &[("ServiceAccount", &format!("kube-system/{name}"))])
    };
    CONTROLLERS.iter().map(bind).collect()
}
