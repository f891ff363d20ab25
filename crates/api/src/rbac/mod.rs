//! The roles and bindings that every cluster starts with, as objects, and how ClusterRoles aggregate.
//!
//! Source: `k8s.io/kubernetes` `plugin/pkg/auth/authorizer/rbac/bootstrappolicy` and "Using RBAC Authorization". Data only:
//! who may do what is decided by the server.

mod controllers;
mod users;

use serde_json::{Map, Value, json};

use crate::selector::Selector;

pub const API_VERSION: &str = "rbac.authorization.k8s.io/v1";
/// Put to `false` on a role or binding, it keeps the server from restoring what is missing in it.
pub const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";
const ALL: &str = "create delete deletecollection get list patch update watch";

/// Groups, resources and verbs, each separated by spaces; the core group is `core`.
struct Rule(&'static str, &'static str, &'static str);

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().map(|w| if w == "core" { "" } else { w }).collect()
}

fn rule(r: &Rule) -> Value {
    json!({"apiGroups": words(r.0), "resources": words(r.1), "verbs": words(r.2)})
}

fn urls(urls: &[&str]) -> Value {
    json!({"nonResourceURLs": urls, "verbs": ["get"]})
}

fn object(kind: &str, name: &str) -> Value {
    let mut object = json!({"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}});
    object["metadata"]["annotations"] = json!({AUTOUPDATE: "true"});
    object["metadata"]["labels"] = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
    object
}

fn cluster_role(name: &str, rules: Vec<Value>) -> Value {
    let mut role = object("ClusterRole", name);
    role["rules"] = rules.into();
    role
}

fn role_of(name: &str, rules: &[Rule]) -> Value {
    cluster_role(name, rules.iter().map(rule).collect())
}

/// `Group` and `User` subjects by name; `kube-system/x` is a service account.
fn binding(name: &str, role: &str, subjects: &[(&str, &str)]) -> Value {
    let mut binding = object("ClusterRoleBinding", name);
    binding["roleRef"] = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role});
    let one = |(kind, name): &(&str, &str)| match name.split_once('/') {
        Some((ns, name)) if *kind == "ServiceAccount" => json!({"kind": kind, "name": name, "namespace": ns}),
        _ => json!({"kind": kind, "name": name, "apiGroup": "rbac.authorization.k8s.io"}),
    };
    binding["subjects"] = subjects.iter().map(one).collect();
    binding
}

/// All of them: ClusterRoles, then ClusterRoleBindings. Aggregated roles have their rules.
pub fn bootstrap() -> Vec<Value> {
    let mut roles = users::roles();
    roles.extend(controllers::roles());
    // A role may aggregate an aggregated one (`admin` has `edit`, which has `view`): three steps.
    for _ in 0..3 {
        for i in 0..roles.len() {
            if let Some(rules) = aggregate(&roles[i], &roles) {
                roles[i]["rules"] = rules.into();
            }
        }
    }
    roles.extend(users::bindings());
    roles.extend(controllers::bindings());
    roles
}

/// The rules of a role with an `aggregationRule`: those of all roles that it selects, in order of their names, each once.
/// `None` for a role without one.
pub fn aggregate(role: &Value, all: &[Value]) -> Option<Vec<Value>> {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array()?;
    let selectors: Vec<Selector> = selectors.iter().filter_map(|s| Selector::from_value(s).ok()).collect();
    let mut chosen: Vec<&Value> = all
        .iter()
        .filter(|r| r["metadata"]["name"] != role["metadata"]["name"])
        .filter(|r| selectors.iter().any(|s| s.matches(&r["metadata"]["labels"])))
        .collect();
    chosen.sort_by_key(|r| r["metadata"]["name"].as_str().unwrap_or_default());
    let mut rules: Vec<Value> = Vec::new();
    for rule in chosen.into_iter().flat_map(|r| r["rules"].as_array().into_iter().flatten()) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    Some(rules)
}

fn with_labels(mut role: Value, labels: &[&str]) -> Value {
    if let Some(held) = role["metadata"]["labels"].as_object_mut() {
        held.extend(labels.iter().map(|l| (format!("rbac.authorization.k8s.io/aggregate-to-{l}"), json!("true"))));
    }
    role
}

fn aggregating(name: &str, to: &[&str]) -> Value {
    let mut role = cluster_role(name, vec![]);
    let labels = Map::from_iter([(format!("rbac.authorization.k8s.io/aggregate-to-{name}"), json!("true"))]);
    role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
    with_labels(role, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(role: &str, verb: &str, group: &str, resource: &str) -> bool {
        let all = bootstrap();
        let role = all.iter().find(|r| r["kind"] == "ClusterRole" && r["metadata"]["name"] == role).unwrap();
        let has = |list: &Value, want: &str| list.as_array().is_some_and(|l| l.iter().any(|v| v == "*" || v == want));
        role["rules"]
            .as_array()
            .unwrap()
            .iter()
            .any(|r| has(&r["verbs"], verb) && has(&r["apiGroups"], group) && has(&r["resources"], resource))
    }

    #[test]
    fn roles_allow_what_upstreams_do() {
        for (role, verb, group, resource, expect) in [
            ("cluster-admin", "frob", "x.io", "things", true),
            ("admin", "create", "rbac.authorization.k8s.io", "rolebindings", true),
            ("admin", "create", "", "pods", true),
            ("admin", "get", "", "configmaps", true),
            ("admin", "update", "", "namespaces", false),
            ("edit", "create", "apps", "deployments", true),
            ("edit", "get", "", "secrets", true),
            ("edit", "get", "", "pods", true),
            ("edit", "create", "", "pods/exec", true),
            ("edit", "create", "rbac.authorization.k8s.io", "roles", false),
            ("view", "get", "", "pods/log", true),
            ("view", "list", "apps", "deployments", true),
            ("view", "get", "", "secrets", false),
            ("view", "create", "", "pods", false),
            ("system:basic-user", "create", "authorization.k8s.io", "selfsubjectaccessreviews", true),
            ("system:node", "patch", "", "pods/status", true),
            ("system:kube-scheduler", "create", "", "pods/binding", true),
            ("system:controller:deployment-controller", "create", "apps", "replicasets", true),
            ("system:controller:deployment-controller", "get", "", "secrets", false),
        ] {
            assert_eq!(allows(role, verb, group, resource), expect, "{role} {verb} {group} {resource}");
        }
    }

    #[test]
    fn every_object_is_valid_and_every_binding_has_its_role() {
        let all = bootstrap();
        for o in &all {
            let row = crate::table::of(o).unwrap();
            assert_eq!((row.hooks.validate)(o, None), vec![], "{}", o["metadata"]["name"]);
            if o["kind"] == "ClusterRoleBinding" {
                assert!(all.iter().any(|r| r["kind"] == "ClusterRole" && r["metadata"]["name"] == o["roleRef"]["name"]), "{o}");
            }
        }
        let mut names: Vec<String> = all.iter().map(|o| format!("{}/{}", o["kind"], o["metadata"]["name"])).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
