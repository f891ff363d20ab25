//! The default roles and their bindings, from the table in `roles.txt`.

use api::Value;
use serde_json::json;

const TABLE: &str = include_str!("roles.txt");

/// Every ClusterRole and ClusterRoleBinding, roles first.
pub fn all() -> Vec<Value> {
    let (mut roles, mut bindings): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    for line in TABLE.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let role = roles.last_mut();
        match (word, role) {
            ("role", _) => roles.push(role_of(rest)),
            ("to", Some(role)) => {
                let name = role["metadata"]["name"].as_str().unwrap_or_default().to_string();
                match bindings.last_mut().filter(|b| b["metadata"]["name"] == name.as_str()) {
                    Some(binding) => binding["subjects"].as_array_mut().into_iter().for_each(|s| s.push(subject(rest))),
                    None => bindings.push(binding(&name, subject(rest))),
                }
            }
            ("aggregate", Some(role)) => {
                let label = format!("rbac.authorization.k8s.io/{rest}");
                role["aggregationRule"] = json!({ "clusterRoleSelectors": [{ "matchLabels": { label: "true" } }] });
            }
            ("allow" | "path", Some(role)) => {
                let rule = rule(word, rest);
                role["rules"].as_array_mut().into_iter().for_each(|r| r.push(rule.clone()));
            }
            _ => {}
        }
    }
    roles.extend(bindings);
    roles
}

fn meta(name: &str, words: &[&str]) -> Value {
    let mut labels = json!({ "kubernetes.io/bootstrapping": "rbac-defaults" });
    for (key, value) in words.iter().filter_map(|w| w.split_once('=')) {
        labels[format!("rbac.authorization.k8s.io/{key}")] = value.into();
    }
    json!({ "name": name, "labels": labels, "annotations": { "rbac.authorization.kubernetes.io/autoupdate": "true" } })
}

fn role_of(rest: &str) -> Value {
    let words: Vec<&str> = rest.split(' ').collect();
    json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": meta(words[0], &words[1..]), "rules": [] })
}

fn binding(name: &str, subject: Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": meta(name, &[]),
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
        "subjects": [subject],
    })
}

fn subject(word: &str) -> Value {
    let (kind, name) = word.split_once(':').unwrap_or(("g", word));
    match (kind, name.split_once('/')) {
        ("s", Some((namespace, name))) => json!({ "kind": "ServiceAccount", "namespace": namespace, "name": name }),
        ("u", _) => json!({ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name }),
        _ => json!({ "kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": name }),
    }
}

fn rule(word: &str, rest: &str) -> Value {
    let parts: Vec<Vec<&str>> = rest.split('|').map(|p| p.trim().split(',').collect()).collect();
    let at = |i: usize| parts.get(i).cloned().unwrap_or_default();
    if word == "path" {
        return json!({ "verbs": at(0), "nonResourceURLs": at(1) });
    }
    let groups: Vec<&str> = at(1).into_iter().map(|g| if g == "core" { "" } else { g }).collect();
    json!({ "verbs": at(0), "apiGroups": groups, "resources": at(2) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_understood() {
        for line in TABLE.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let word = line.split(' ').next().unwrap();
            assert!(["role", "to", "allow", "path", "aggregate"].contains(&word), "{line}");
            if word == "allow" {
                assert_eq!(line.split('|').count(), 3, "{line}");
            }
        }
        let all = all();
        assert!(all.iter().any(|r| r["metadata"]["name"] == "cluster-admin" && r["kind"] == "ClusterRoleBinding"));
        assert!(all.iter().filter(|r| r["kind"] == "ClusterRole").all(|r| !r["rules"].as_array().unwrap().is_empty()));
    }
}
