//! Roles and their bindings. Whether a writer may grant what they grant is authorization.

use serde_json::Value;

use super::{At, Out, meta};
use crate::{Cause, names};

const GROUP: &str = "rbac.authorization.k8s.io";

pub fn role(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    rules(new, old, true)
}

pub fn cluster_role(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = rules(new, old, false);
    let mut out = Out::default();
    let aggregation = At::root(new).get("aggregationRule");
    if aggregation.is_set() {
        let selectors = aggregation.get("clusterRoleSelectors");
        if !selectors.given() {
            out.required(&selectors, "at least one clusterRoleSelector required if aggregationRule is non-nil");
        }
        selectors.items().iter().for_each(|s| out.label_selector(s));
    }
    causes.append(&mut out.0);
    causes
}

fn rules(new: &Value, old: Option<&Value>, namespaced: bool) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::path_segment, &mut out);
    for rule in At::root(new).get("rules").items() {
        let [verbs, urls, groups, resources, objects] =
            ["verbs", "nonResourceURLs", "apiGroups", "resources", "resourceNames"].map(|f| rule.get(f));
        if !verbs.given() {
            out.required(&verbs, "verbs must contain at least one value");
        }
        if urls.given() {
            if namespaced {
                out.invalid(&urls, "namespaced rules cannot apply to non-resource URLs");
            }
            if groups.given() || resources.given() || objects.given() {
                out.invalid(&urls, "rules cannot apply to both regular resources and non-resource URLs");
            }
            continue;
        }
        if !groups.given() {
            out.required(&groups, "resource rules must supply at least one api group");
        }
        if !resources.given() {
            out.required(&resources, "resource rules must supply at least one resource");
        }
    }
    out.0
}

pub fn role_binding(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    binding(new, old, &["ClusterRole", "Role"])
}

pub fn cluster_role_binding(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    binding(new, old, &["ClusterRole"])
}

fn binding(new: &Value, old: Option<&Value>, kinds: &[&str]) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::path_segment, &mut out);
    let root = At::root(new);
    let role = root.get("roleRef");
    if role.get("apiGroup").text() != GROUP {
        out.0.push(Cause::not_supported("roleRef.apiGroup", &role.get("apiGroup").text().into(), &[GROUP]));
    }
    if !kinds.contains(&role.get("kind").text()) {
        out.0.push(Cause::not_supported("roleRef.kind", &role.get("kind").text().into(), kinds));
    }
    out.named(&role.get("name"), names::path_segment);
    for subject in root.get("subjects").items() {
        subject_of(&subject, kinds.len() == 1, &mut out);
    }
    if let Some(old) = old
        && new["roleRef"] != old["roleRef"]
    {
        out.invalid(&role, "cannot change roleRef");
    }
    out.0
}

fn subject_of(subject: &At, cluster: bool, out: &mut Out) {
    let group = subject.get("apiGroup");
    if !subject.get("name").given() {
        out.required(&subject.get("name"), "");
    }
    let mut of_group = |wanted: &str| {
        if group.text() != wanted {
            out.0.push(Cause::not_supported(&*group.path, &group.text().into(), &[wanted]));
        }
    };
    match subject.get("kind").text() {
        "ServiceAccount" => {
            of_group("");
            out.matches(&subject.get("name"), names::dns1123_subdomain);
            if cluster && !subject.get("namespace").given() {
                out.required(&subject.get("namespace"), "");
            }
        }
        "User" | "Group" => of_group(GROUP),
        other => {
            let kinds = ["Group", "ServiceAccount", "User"];
            out.0.push(Cause::not_supported(&*subject.get("kind").path, &other.into(), &kinds));
        }
    }
}
