//! Roles of people, nodes and everybody.

use serde_json::{Value, json};

use super::{ALL, READ, Rule, WRITE, aggregating, binding, cluster_role, role_of, rule, urls, with_labels};

const DISCOVERY: &[&str] =
    &["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version", "/version/"];
const PUBLIC: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/"];
const MONITORING: &[&str] = &["/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/slis", "/readyz", "/readyz/*"];

const ADMIN: &[Rule] =
    &[Rule("authorization.k8s.io", "localsubjectaccessreviews", "create"), Rule("rbac.authorization.k8s.io", "rolebindings roles", ALL)];

const EDIT: &[Rule] = &[
    Rule("core", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy", READ),
    Rule("core", "serviceaccounts", "impersonate"),
    Rule("core", "pods pods/attach pods/exec pods/portforward pods/proxy", WRITE),
    Rule("core", "pods/eviction", "create"),
    Rule(
        "core",
        "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets serviceaccounts services services/proxy",
        WRITE,
    ),
    Rule("core", "serviceaccounts/token", "create"),
    Rule(
        "apps",
        "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets statefulsets/scale",
        WRITE,
    ),
    Rule("autoscaling", "horizontalpodautoscalers", WRITE),
    Rule("batch", "cronjobs jobs", WRITE),
    Rule("networking.k8s.io", "ingresses networkpolicies", WRITE),
    Rule("policy", "poddisruptionbudgets", WRITE),
    Rule("coordination.k8s.io", "leases", ALL),
];

const VIEW: &[Rule] = &[
    Rule(
        "core",
        "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers replicationcontrollers/scale serviceaccounts services services/status",
        READ,
    ),
    Rule(
        "core",
        "bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status resourcequotas resourcequotas/status",
        READ,
    ),
    Rule("core", "namespaces", READ),
    Rule("discovery.k8s.io", "endpointslices", READ),
    Rule(
        "apps",
        "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status",
        READ,
    ),
    Rule("autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status", READ),
    Rule("batch", "cronjobs cronjobs/status jobs jobs/status", READ),
    Rule("networking.k8s.io", "ingresses ingresses/status networkpolicies", READ),
    Rule("policy", "poddisruptionbudgets poddisruptionbudgets/status", READ),
];

/// What an agent does: its Node and Lease, the pods bound to it and what they mount, and what its kernel and edge route.
const NODE: &[Rule] = &[
    Rule("authentication.k8s.io", "tokenreviews", "create"),
    Rule("authorization.k8s.io", "localsubjectaccessreviews subjectaccessreviews", "create"),
    Rule("core", "services endpoints namespaces", READ),
    Rule("discovery.k8s.io", "endpointslices", READ),
    Rule("networking.k8s.io", "ingresses ingressclasses", READ),
    Rule("core", "nodes", "create get list watch patch update"),
    Rule("core", "nodes/status", "patch update"),
    Rule("core events.k8s.io", "events", "create patch update"),
    Rule("core", "pods", "create delete get list watch"),
    Rule("core", "pods/status", "patch update"),
    Rule("core", "pods/eviction", "create"),
    Rule("core", "configmaps secrets", READ),
    Rule("core", "serviceaccounts", "get"),
    Rule("core", "serviceaccounts/token", "create"),
    Rule("coordination.k8s.io", "leases", "create delete get list patch update watch"),
    Rule("node.k8s.io", "runtimeclasses", READ),
];

const SCHEDULER: &[Rule] = &[
    Rule("core events.k8s.io", "events", "create patch update"),
    Rule("coordination.k8s.io", "leases", "create get list update watch"),
    Rule("core", "nodes namespaces services", READ),
    Rule("core", "pods", "delete get list watch"),
    Rule("core", "bindings pods/binding", "create"),
    Rule("core", "pods/status", "patch update"),
    Rule("apps", "replicasets statefulsets", READ),
    Rule("policy", "poddisruptionbudgets", READ),
    Rule("scheduling.k8s.io", "priorityclasses", READ),
    Rule("node.k8s.io", "runtimeclasses", READ),
    Rule("authentication.k8s.io", "tokenreviews", "create"),
    Rule("authorization.k8s.io", "subjectaccessreviews", "create"),
];

pub(super) fn roles() -> Vec<Value> {
    let everything = json!({"nonResourceURLs": ["*"], "verbs": ["*"]});
    vec![
        cluster_role("cluster-admin", vec![rule(&Rule("*", "*", "*")), everything]),
        aggregating("admin", &[]),
        aggregating("edit", &["admin"]),
        aggregating("view", &["edit"]),
        with_labels(role_of("system:aggregate-to-admin", ADMIN), &["admin"]),
        with_labels(role_of("system:aggregate-to-edit", EDIT), &["edit"]),
        with_labels(role_of("system:aggregate-to-view", VIEW), &["view"]),
        role_of(
            "system:auth-delegator",
            &[Rule("authentication.k8s.io", "tokenreviews", "create"), Rule("authorization.k8s.io", "subjectaccessreviews", "create")],
        ),
        role_of(
            "system:basic-user",
            &[
                Rule("authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews", "create"),
                Rule("authentication.k8s.io", "selfsubjectreviews", "create"),
            ],
        ),
        cluster_role("system:discovery", vec![urls(DISCOVERY)]),
        role_of("system:kube-scheduler", SCHEDULER),
        cluster_role("system:monitoring", vec![urls(MONITORING)]),
        role_of("system:node", NODE),
        cluster_role("system:public-info-viewer", vec![urls(PUBLIC)]),
    ]
}

pub(super) fn bindings() -> Vec<Value> {
    const KNOWN: (&str, &str) = ("Group", "system:authenticated");
    vec![
        binding("cluster-admin", "cluster-admin", &[("Group", "system:masters")]),
        binding("system:basic-user", "system:basic-user", &[KNOWN]),
        binding("system:discovery", "system:discovery", &[KNOWN]),
        binding("system:kube-scheduler", "system:kube-scheduler", &[("User", "system:kube-scheduler")]),
        binding("system:monitoring", "system:monitoring", &[("Group", "system:monitoring")]),
        // Upstream's node authorizer narrows this to what a node's pods use; here the role is what a node has.
        binding("system:node", "system:node", &[("Group", "system:nodes")]),
        binding("system:public-info-viewer", "system:public-info-viewer", &[KNOWN, ("Group", "system:unauthenticated")]),
    ]
}
