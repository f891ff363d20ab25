//! What the server serves, told from the rows: the legacy lists and the aggregated documents.
//!
//! Sources: `metav1.APIResourceList` and its kin, and `apidiscovery.k8s.io/v2`. Knows nothing of HTTP; who asks picks the form.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::resource::{Resource, Row, Subresource};

/// Which form of the aggregated document is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregated {
    V2,
    V2Beta1,
}

impl Aggregated {
    pub fn version(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V2Beta1 => "v2beta1",
        }
    }

    /// The media type of the answer, its parameters included.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Self::V2Beta1 => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        }
    }
}

/// The values of `key` over the rows, in the order in which they first appear.
fn distinct<'r>(rows: impl Iterator<Item = &'r Row>, key: fn(&'r Resource) -> &'static str) -> Vec<&'static str> {
    let mut seen = BTreeSet::new();
    rows.map(|r| key(r)).filter(|k| seen.insert(*k)).collect()
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.into() } else { format!("{group}/{version}") }
}

/// `/api`. `address` is where clients reach the server, `host:port`.
pub fn api_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `/apis`
pub fn api_groups(rows: &[Row]) -> Value {
    let names = distinct(rows.iter().filter(|r| !r.group.is_empty()), |r| r.group);
    let groups: Vec<Value> = names.into_iter().map(|g| group(rows, g)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`, for a group that has rows.
pub fn api_group(rows: &[Row], name: &str) -> Option<Value> {
    if name.is_empty() || !rows.iter().any(|r| r.group == name) {
        return None;
    }
    let mut out = group(rows, name);
    out["kind"] = "APIGroup".into();
    out["apiVersion"] = "v1".into();
    Some(out)
}

/// A group and its versions, the preferred one first.
fn group(rows: &[Row], name: &str) -> Value {
    let versions: Vec<Value> = distinct(rows.iter().filter(|r| r.group == name), |r| r.version)
        .into_iter()
        .map(|v| json!({"groupVersion": group_version(name, v), "version": v}))
        .collect();
    json!({"name": name, "preferredVersion": versions.first(), "versions": versions})
}

/// `/api/v1` and `/apis/<group>/<version>`
pub fn api_resources(rows: &[Row], group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for row in rows.iter().filter(|r| r.group == group && r.version == version) {
        resources.push(legacy(row));
        resources.extend(row.subresources.iter().map(|s| legacy_subresource(row, s)));
    }
    if resources.is_empty() {
        return None;
    }
    let group_version = group_version(group, version);
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}))
}

fn legacy(row: &Resource) -> Value {
    let mut out = json!({
        "name": row.plural,
        "singularName": row.singular,
        "namespaced": row.namespaced(),
        "kind": row.kind,
        "verbs": row.verbs,
    });
    words(&mut out, row);
    out
}

/// Short names and categories, where there are any.
fn words(out: &mut Value, row: &Resource) {
    if !row.short.is_empty() {
        out["shortNames"] = json!(row.short);
    }
    if !row.categories.is_empty() {
        out["categories"] = json!(row.categories);
    }
}

fn legacy_subresource(row: &Resource, sub: &Subresource) -> Value {
    let mut out = json!({
        "name": format!("{}/{}", row.plural, sub.name),
        "singularName": "",
        "namespaced": row.namespaced(),
        "kind": sub.kind,
        "verbs": sub.verbs,
    });
    if let Some((group, version)) = sub.group_version.map(|gv| gv.split_once('/').unwrap_or(("", gv))) {
        out["group"] = group.into();
        out["version"] = version.into();
    }
    out
}

/// The aggregated document of `/api` (`core`) or of `/apis`.
pub fn aggregated(rows: &[Row], core: bool, form: Aggregated) -> Value {
    let names = distinct(rows.iter().filter(|r| r.group.is_empty() == core), |r| r.group);
    let items: Vec<Value> = names
        .into_iter()
        .map(|name| {
            let versions: Vec<Value> = distinct(rows.iter().filter(|r| r.group == name), |r| r.version)
                .into_iter()
                .map(|version| {
                    let of_version = rows.iter().filter(|r| r.group == name && r.version == version);
                    let resources: Vec<Value> = of_version.map(|r| aggregated_resource(r)).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if core { json!({}) } else { json!({"name": name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{}", form.version()),
        "metadata": {},
        "items": items,
    })
}

fn kind_of(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn aggregated_resource(row: &Resource) -> Value {
    let mut out = json!({
        "resource": row.plural,
        "responseKind": kind_of(row.group, row.version, row.kind),
        "scope": if row.namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": row.verbs,
    });
    words(&mut out, row);
    let subresources: Vec<Value> = row
        .subresources
        .iter()
        .map(|s| {
            let (group, version) = s.group_version.map_or((row.group, row.version), |gv| gv.split_once('/').unwrap_or(("", gv)));
            json!({"subresource": s.name, "responseKind": kind_of(group, version, s.kind), "verbs": s.verbs})
        })
        .collect();
    if !subresources.is_empty() {
        out["subresources"] = subresources.into();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table;

    fn named<'v>(list: &'v Value, key: &str, name: &str) -> &'v Value {
        list.as_array().unwrap().iter().find(|v| v[key] == name).unwrap_or(&Value::Null)
    }

    #[test]
    fn legacy_lists_name_every_row_and_subresource() {
        let apps = api_resources(table::all(), "apps", "v1").unwrap();
        assert_eq!(apps["groupVersion"], "apps/v1");
        let deployment = named(&apps["resources"], "name", "deployments");
        assert_eq!(deployment["kind"], "Deployment");
        assert_eq!(deployment["singularName"], "deployment");
        assert_eq!(deployment["shortNames"], json!(["deploy"]));
        assert_eq!(deployment["namespaced"], true);
        assert_eq!(
            *named(&apps["resources"], "name", "deployments/scale"),
            json!({"name": "deployments/scale", "singularName": "", "namespaced": true, "kind": "Scale", "group": "autoscaling", "version": "v1", "verbs": ["get", "patch", "update"]})
        );
        assert_eq!(named(&apps["resources"], "name", "deployments/status").get("group"), None);
        assert_eq!(api_resources(table::all(), "", "v1").unwrap()["groupVersion"], "v1");
        assert_eq!(api_resources(table::all(), "apps", "v9"), None);
    }

    #[test]
    fn groups_leave_out_core() {
        let groups = api_groups(table::all());
        assert_eq!(*named(&groups["groups"], "name", ""), Value::Null);
        assert_eq!(named(&groups["groups"], "name", "apps")["preferredVersion"], json!({"groupVersion": "apps/v1", "version": "v1"}));
        assert_eq!(api_group(table::all(), "apps").unwrap()["kind"], "APIGroup");
        assert_eq!(api_group(table::all(), "nothing"), None);
        assert_eq!(api_group(table::all(), ""), None);
        assert_eq!(api_versions("10.0.0.1:6443")["versions"], json!(["v1"]));
    }

    #[test]
    fn the_aggregated_document_holds_the_same() {
        let core = aggregated(table::all(), true, Aggregated::V2);
        assert_eq!(core["apiVersion"], "apidiscovery.k8s.io/v2");
        assert_eq!(core["items"].as_array().unwrap().len(), 1);
        let resources = &core["items"][0]["versions"][0]["resources"];
        let pods = named(resources, "resource", "pods");
        assert_eq!(pods["scope"], "Namespaced");
        assert_eq!(pods["responseKind"], json!({"group": "", "version": "v1", "kind": "Pod"}));
        assert_eq!(pods["categories"], json!(["all"]));
        let eviction = named(&pods["subresources"], "subresource", "eviction");
        assert_eq!(eviction["responseKind"], json!({"group": "policy", "version": "v1", "kind": "Eviction"}));
        assert_eq!(named(resources, "resource", "nodes")["scope"], "Cluster");

        let rest = aggregated(table::all(), false, Aggregated::V2Beta1);
        assert_eq!(rest["apiVersion"], "apidiscovery.k8s.io/v2beta1");
        let count = |doc: &Value| -> usize {
            let versions = doc["items"].as_array().unwrap().iter().flat_map(|i| i["versions"].as_array().unwrap());
            versions.map(|v| v["resources"].as_array().unwrap().len()).sum()
        };
        assert_eq!(count(&core) + count(&rest), table::all().len());
        let apps = rest["items"].as_array().unwrap().iter().find(|i| i["metadata"]["name"] == "apps");
        assert!(apps.is_some());
    }
}
