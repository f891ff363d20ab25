//! The OpenAPI v3 documents, one a group and version: what `kubectl explain`, `apply` and `--validate` read.
//!
//! Schemas are made of the facts ([`crate::schema`]), paths of the rows, and the prose is merged in from `k8s-openapi`. A
//! document is made when it is first asked for and kept as bytes. Knows nothing of version 2: no client that finds this asks
//! for it.

mod paths;
mod prose;
mod schemas;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::resource::Row;

/// The release that is named in the documents, as in `/version`.
pub const RELEASE: &str = "v1.33.0";

/// `api/v1` or `apis/apps/v1`: how a group and version is named in the index and below `/openapi/v3/`.
fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// A fingerprint of what a document is made of; it changes when rows do, so clients may keep what they have.
fn fingerprint(rows: &[Row], group: &str, version: &str) -> String {
    let mut hash = DefaultHasher::new();
    (RELEASE, env!("CARGO_PKG_VERSION")).hash(&mut hash);
    for row in rows.iter().filter(|r| r.group == group && r.version == version) {
        (row.kind, row.plural, row.namespaced(), row.verbs).hash(&mut hash);
        row.subresources.iter().for_each(|s| (s.name, s.kind, s.verbs).hash(&mut hash));
    }
    format!("{:016X}", hash.finish())
}

/// `/openapi/v3`: where the documents are.
pub fn index(rows: &[Row]) -> Value {
    let paths: Map<String, Value> = rows
        .iter()
        .map(|row| {
            let path = path_of(row.group, row.version);
            let url = format!("/openapi/v3/{path}?hash={}", fingerprint(rows, row.group, row.version));
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// `/openapi/v3/<path>`, with `path` as the index has it (`apis/apps/v1`); `None` where no row is.
pub fn document(rows: &[Row], path: &str) -> Option<Bytes> {
    static MADE: Mutex<BTreeMap<(String, String), Bytes>> = Mutex::new(BTreeMap::new());
    let row = rows.iter().find(|r| path_of(r.group, r.version) == path)?;
    let key = (path.to_string(), fingerprint(rows, row.group, row.version));
    let made = |m: &Mutex<BTreeMap<_, Bytes>>| m.lock().unwrap_or_else(|e| e.into_inner()).get(&key).cloned();
    if let Some(bytes) = made(&MADE) {
        return Some(bytes);
    }
    // Made outside the lock: two first readers do the work twice, and nobody waits.
    let bytes = Bytes::from(build(rows, row.group, row.version).to_string());
    let mut documents = MADE.lock().unwrap_or_else(|e| e.into_inner());
    documents.retain(|(p, _), _| p != path);
    documents.insert(key, bytes.clone());
    Some(bytes)
}

fn build(rows: &[Row], group: &str, version: &str) -> Value {
    let rows: Vec<&Row> = rows.iter().filter(|r| r.group == group && r.version == version).collect();
    let prose = prose::of(group, version);
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": RELEASE},
        "paths": paths::of(&rows),
        "components": {
            "schemas": schemas::of(&rows, &prose),
            "securitySchemes": {"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer token"}},
        },
    })
}

/// A reference to a schema of the same document.
fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table;

    fn read(path: &str) -> Value {
        serde_json::from_slice(&document(table::all(), path).unwrap()).unwrap()
    }

    #[test]
    fn the_index_leads_to_every_document() {
        let index = index(table::all());
        let paths = index["paths"].as_object().unwrap();
        assert!(paths.contains_key("api/v1") && paths.contains_key("apis/apps/v1"));
        for (path, entry) in paths {
            assert!(entry["serverRelativeURL"].as_str().unwrap().starts_with(&format!("/openapi/v3/{path}?hash=")));
            assert!(document(table::all(), path).is_some(), "{path}");
        }
        assert!(document(table::all(), "apis/nothing/v1").is_none());
    }

    #[test]
    fn references_lead_somewhere() {
        fn references(value: &Value, into: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    into.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    map.values().for_each(|v| references(v, into));
                }
                Value::Array(list) => list.iter().for_each(|v| references(v, into)),
                _ => {}
            }
        }
        for path in index(table::all())["paths"].as_object().unwrap().keys() {
            let document = read(path);
            let mut found = Vec::new();
            references(&document, &mut found);
            assert!(!found.is_empty());
            for name in found {
                let name = name.strip_prefix("#/components/schemas/").unwrap();
                assert!(document["components"]["schemas"].get(name).is_some(), "{path}: {name}");
            }
        }
    }

    #[test]
    fn kubectl_finds_what_it_looks_for() {
        let apps = read("apis/apps/v1");
        let gvk = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
        let list = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments"];
        assert_eq!(list["get"]["x-kubernetes-group-version-kind"], gvk);
        assert!(apps["paths"]["/apis/apps/v1/deployments"]["get"].is_object());
        let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"], gvk);
        assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
        assert!(patch["requestBody"]["content"]["application/apply-patch+yaml"].is_object());
        let parameters: Vec<&str> = patch["parameters"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
        for name in ["dryRun", "fieldManager", "fieldValidation", "force"] {
            assert!(parameters.contains(&name), "{name}");
        }
        let scale = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["patch"];
        assert_eq!(scale["x-kubernetes-group-version-kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
        let core = read("api/v1");
        assert!(core["paths"]["/api/v1/nodes/{name}"]["delete"].is_object());
        assert!(core["paths"]["/api/v1/namespaces/{name}/finalize"]["put"].is_object());
    }

    #[test]
    fn schemas_carry_prose_and_what_merging_needs() {
        let apps = read("apis/apps/v1");
        let schemas = &apps["components"]["schemas"];
        let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(deployment["x-kubernetes-group-version-kind"], json!([{"group": "apps", "version": "v1", "kind": "Deployment"}]));
        assert!(deployment["description"].as_str().unwrap().starts_with("Deployment enables"));
        let spec = &schemas["io.k8s.api.apps.v1.DeploymentSpec"];
        assert_eq!(spec["required"], json!(["selector", "template"]));
        assert_eq!(spec["properties"]["replicas"]["format"], "int32");
        assert!(spec["properties"]["replicas"]["description"].as_str().unwrap().contains("pods"));
        assert_eq!(spec["properties"]["template"]["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.core.v1.PodTemplateSpec");
        assert_eq!(spec["properties"]["strategy"]["x-kubernetes-patch-strategy"], "retainKeys");
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-list-type"], "map");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(schemas["io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector"]["x-kubernetes-map-type"], "atomic");
    }

    #[test]
    fn every_row_of_the_table_has_prose() {
        for path in index(table::all())["paths"].as_object().unwrap().keys() {
            let document = read(path);
            for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
                if schema.get("x-kubernetes-group-version-kind").is_some() && !name.ends_with("List") {
                    assert!(schema["description"].is_string(), "{path}: {name}");
                }
            }
        }
    }
}
