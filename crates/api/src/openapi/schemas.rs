//! `components.schemas`: every type that the kinds of one group and version are made of.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::prose::Prose;
use super::reference;
use crate::resource::{Row, Subresource};
use crate::schema::{self, Field, ListType, Schema, Type};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

/// Scalars with a name of their own.
fn named_scalars() -> [(String, Value); 8] {
    [
        ("io.k8s.apimachinery.pkg.api.resource.Quantity".into(), json!({"oneOf": [{"type": "string"}, {"type": "number"}]})),
        (
            "io.k8s.apimachinery.pkg.util.intstr.IntOrString".into(),
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
        ),
        ("io.k8s.apimachinery.pkg.runtime.RawExtension".into(), json!({"type": "object"})),
        (format!("{META}.Time"), json!({"type": "string", "format": "date-time"})),
        (format!("{META}.MicroTime"), json!({"type": "string", "format": "date-time"})),
        (format!("{META}.Duration"), json!({"type": "string"})),
        (format!("{META}.FieldsV1"), json!({"type": "object"})),
        (PATCH.into(), json!({"type": "object", "description": "A patch in the form that the Content-Type names."})),
    ]
}

/// The name of a row's own schema; rows without facts have one made of group, version and kind.
pub(super) fn name_of(group: &str, version: &str, kind: &str) -> String {
    schema::for_kind(group, version, kind).map_or_else(|| format!("{group}.{version}.{kind}"), |s| s.name.clone())
}

pub(super) fn of(rows: &[&Row], prose: &Prose) -> Map<String, Value> {
    let mut out = BTreeMap::new();
    let texts = |name: &str, mut schema: Value| {
        if let Some(text) = prose.of_type(name) {
            schema["description"] = text.into();
        }
        schema
    };
    out.extend(named_scalars().map(|(name, schema)| (name.clone(), texts(&name, schema))));
    let mut wanted: Vec<&'static Schema> = [STATUS, DELETE_OPTIONS].into_iter().filter_map(schema::named).collect();
    for row in rows {
        match schema::for_kind(row.group, row.version, row.kind) {
            Some(schema) => wanted.push(schema),
            None => open(row, &mut out),
        }
        wanted.extend(schema::for_kind(row.group, row.version, &format!("{}List", row.kind)));
        for sub in row.subresources.iter().filter(|s| exchanges_objects(s)) {
            let (group, version) = sub.group_version.map_or((row.group, row.version), |gv| gv.split_once('/').unwrap_or(("", gv)));
            wanted.extend(schema::for_kind(group, version, sub.kind));
        }
    }
    while let Some(schema) = wanted.pop() {
        if !out.contains_key(&schema.name) {
            wanted.extend(schema.fields.values().filter_map(|f| f.ty.object()));
            out.insert(schema.name.clone(), object(schema, prose));
        }
    }
    out.into_iter().collect()
}

/// Streams and proxies have parameters, which the facts have as kinds, and no bodies of a kind.
pub(super) fn exchanges_objects(sub: &Subresource) -> bool {
    !sub.kind.ends_with("Options")
}

/// A kind of whose fields nothing is known, and its list.
fn open(row: &Row, out: &mut BTreeMap<String, Value>) {
    let gvk = |kind: &str| json!([{"group": row.group, "version": row.version, "kind": kind}]);
    let name = name_of(row.group, row.version, row.kind);
    let meta = |name: &str| json!({"allOf": [reference(&format!("{META}.{name}"))]});
    out.insert(
        name.clone(),
        json!({
            "type": "object",
            "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": meta("ObjectMeta")},
            "x-kubernetes-preserve-unknown-fields": true,
            "x-kubernetes-group-version-kind": gvk(row.kind),
        }),
    );
    out.insert(
        format!("{name}List"),
        json!({
            "type": "object",
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": meta("ListMeta"),
                "items": {"type": "array", "items": reference(&name)},
            },
            "required": ["items"],
            "x-kubernetes-group-version-kind": gvk(&format!("{}List", row.kind)),
        }),
    );
    for name in ["ObjectMeta", "ListMeta"] {
        let mut wanted: Vec<&'static Schema> = schema::named(&format!("{META}.{name}")).into_iter().collect();
        while let Some(schema) = wanted.pop() {
            wanted.extend(schema.fields.values().filter_map(|f| f.ty.object()));
            out.entry(schema.name.clone()).or_insert_with(|| object(schema, &Prose::none()));
        }
    }
}

fn object(schema: &Schema, prose: &Prose) -> Value {
    let mut out = json!({"type": "object"});
    if let Some(text) = prose.of_type(&schema.name) {
        out["description"] = text.into();
    }
    let properties: Map<String, Value> =
        schema.fields.values().map(|f| (f.name.to_string(), property(f, prose.of_field(&schema.name, f.name)))).collect();
    if !properties.is_empty() {
        out["properties"] = properties.into();
    }
    let required: Vec<&str> = schema.fields.values().filter(|f| f.required).map(|f| f.name).collect();
    if !required.is_empty() {
        out["required"] = json!(required);
    }
    if schema.atomic {
        out["x-kubernetes-map-type"] = "atomic".into();
    }
    if !schema.kinds.is_empty() {
        let kinds = schema.kinds.iter().map(|k| json!({"group": k.group, "version": k.version, "kind": k.kind}));
        out["x-kubernetes-group-version-kind"] = kinds.collect();
    }
    out
}

fn property(field: &Field, text: Option<&str>) -> Value {
    let mut out = type_of(field.name, &field.ty);
    // Nothing may stand beside a reference: it is wrapped.
    if out.get("$ref").is_some() {
        out = json!({"allOf": [out]});
    }
    if let Some(text) = text {
        out["description"] = text.into();
    }
    if let Some(default) = &field.default {
        out["default"] = default.clone();
    }
    if matches!(field.ty, Type::List { .. }) {
        out["x-kubernetes-list-type"] = match &field.list {
            ListType::Atomic => "atomic".into(),
            ListType::Set => "set".into(),
            ListType::Map(keys) => {
                out["x-kubernetes-list-map-keys"] = json!(keys);
                "map".into()
            }
        };
    }
    if field.atomic {
        out["x-kubernetes-map-type"] = "atomic".into();
    }
    let strategies: Vec<&str> =
        [(field.patch_merge, "merge"), (field.patch_retain_keys, "retainKeys")].iter().filter(|(on, _)| *on).map(|(_, s)| *s).collect();
    if !strategies.is_empty() {
        out["x-kubernetes-patch-strategy"] = strategies.join(",").into();
    }
    if let Some(key) = field.patch_merge_key {
        out["x-kubernetes-patch-merge-key"] = key.into();
    }
    out
}

fn type_of(field: &str, ty: &Type) -> Value {
    match ty {
        Type::String => json!({"type": "string"}),
        Type::Bool => json!({"type": "boolean"}),
        Type::Int32 => json!({"type": "integer", "format": "int32"}),
        Type::Int64 => json!({"type": "integer", "format": "int64"}),
        Type::Float => json!({"type": "number", "format": "double"}),
        Type::Bytes => json!({"type": "string", "format": "byte"}),
        Type::Quantity => reference("io.k8s.apimachinery.pkg.api.resource.Quantity"),
        Type::IntOrString => reference("io.k8s.apimachinery.pkg.util.intstr.IntOrString"),
        Type::Time => reference(&format!("{META}.Time")),
        Type::MicroTime => reference(&format!("{META}.MicroTime")),
        Type::Duration => reference(&format!("{META}.Duration")),
        Type::Raw if field == "fieldsV1" => reference(&format!("{META}.FieldsV1")),
        Type::Raw => reference("io.k8s.apimachinery.pkg.runtime.RawExtension"),
        Type::Any => json!({"x-kubernetes-preserve-unknown-fields": true}),
        Type::Object(of) => reference(&of.name),
        Type::List { of, .. } => json!({"type": "array", "items": type_of(field, of)}),
        Type::Map(of) => json!({"type": "object", "additionalProperties": type_of(field, of)}),
    }
}
