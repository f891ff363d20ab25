//! Whether a value is of a kind's form: types, unknown fields, nulls and empty values.
//!
//! Does to an untyped object what a trip through Kubernetes' Go types would: unknown fields go (and are told), nulls become
//! absent or zero, empty values that Go omits are dropped (so that defaulting sees "not given"), quantities and times take
//! their normal spelling. Knows no rule about what a value may be.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::{Field, Schema, Type};
use crate::quantity::Quantity;
use crate::{Cause, Status};

/// Objects within objects; serde_json stops at 128, so only built values come close.
const DEPTH_MAX: usize = 200;

/// What [`check`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// Paths of fields that the type does not have; they have been removed: `spec.template.spec.containers[0].foo`.
    pub unknown: Vec<String>,
    /// Values of a wrong type; they have been left as they are.
    pub errors: Vec<Cause>,
}

/// The `fieldValidation` parameter of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    Ignore,
    Warn,
    Strict,
}

impl Strictness {
    /// `Ignore`, `Warn` or `Strict`; without the parameter it is `Warn`.
    pub fn parse(parameter: Option<&str>) -> Result<Self, Status> {
        match parameter {
            None | Some("" | "Warn") => Ok(Self::Warn),
            Some("Ignore") => Ok(Self::Ignore),
            Some("Strict") => Ok(Self::Strict),
            Some(other) => Err(Status::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }
}

impl Check {
    /// The warnings to send along, or the 400 that refuses the object. `duplicates` are paths that decoding found twice.
    pub fn into_result(self, strictness: Strictness, api_version: &str, kind: &str, duplicates: &[String]) -> Result<Vec<String>, Status> {
        let version = api_version.rsplit('/').next().unwrap_or(api_version);
        let refuse = |why: String| Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"));
        if !self.errors.is_empty() {
            let each: Vec<String> = self.errors.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
            let mut status = refuse(each.join(", "));
            status.details = Some(crate::status::Details { kind: kind.into(), causes: self.errors, ..Default::default() });
            return Err(status);
        }
        let unknown = self.unknown.iter().map(|path| format!("unknown field {path:?}"));
        let told: Vec<String> = duplicates.iter().map(|path| format!("duplicate field {path:?}")).chain(unknown).collect();
        match strictness {
            Strictness::Strict if !told.is_empty() => Err(refuse(format!("strict decoding error: {}", told.join(", ")))),
            Strictness::Ignore => Ok(Vec::new()),
            _ => Ok(told),
        }
    }
}

/// Checks and normalises `object` in place.
pub fn check(schema: &Schema, object: &mut Value) -> Check {
    let mut walk = Walk { out: Check::default(), path: String::new(), depth: 0 };
    walk.object(schema, object);
    walk.out
}

struct Walk {
    out: Check,
    path: String,
    depth: usize,
}

impl Walk {
    /// Runs `f` one step down the path.
    fn within(&mut self, step: std::fmt::Arguments<'_>, f: impl FnOnce(&mut Self)) {
        use std::fmt::Write;
        let length = self.path.len();
        let _ = self.path.write_fmt(step);
        self.depth += 1;
        f(self);
        self.depth -= 1;
        self.path.truncate(length);
    }

    fn field(&mut self, name: &str, f: impl FnOnce(&mut Self)) {
        let dot = if self.path.is_empty() { "" } else { "." };
        self.within(format_args!("{dot}{name}"), f);
    }

    fn wrong(&mut self, value: &Value, detail: &str) {
        let field = if self.path.is_empty() { "<root>".into() } else { self.path.clone() };
        // The value is shown, but not one that may be large.
        let mut cause = Cause::type_invalid(field, value, detail);
        if value.is_object() || value.is_array() {
            cause.message = format!("Invalid value: {}: {detail}", if value.is_object() { "an object" } else { "a list" });
        }
        self.out.errors.push(cause);
    }

    fn object(&mut self, schema: &Schema, value: &mut Value) {
        if self.depth > DEPTH_MAX {
            return self.wrong(value, "nested too deeply");
        }
        let Value::Object(map) = value else {
            return self.wrong(value, "must be an object");
        };
        let unknown: Vec<String> = map.keys().filter(|k| !schema.fields.contains_key(k.as_str())).cloned().collect();
        for name in unknown {
            map.remove(&name);
            let dot = if self.path.is_empty() { "" } else { "." };
            self.out.unknown.push(format!("{}{dot}{name}", self.path));
        }
        map.retain(|_, v| !v.is_null());
        let mut empty = Vec::new();
        for (name, value) in map.iter_mut() {
            let Some(field) = schema.fields.get(name.as_str()) else { continue };
            self.field(name, |walk| walk.value(&field.ty, value));
            if omitted(field, value) {
                empty.push(field.name);
            }
        }
        for name in empty {
            map.remove(name);
        }
    }

    fn value(&mut self, ty: &Type, value: &mut Value) {
        match ty {
            Type::Object(of) => self.object(of.schema(), value),
            Type::List { of, .. } => self.list(of, value),
            Type::Map(of) => self.map(of, value),
            Type::Raw | Type::Any => {}
            scalar => {
                if let Err(detail) = normal(scalar, value) {
                    self.wrong(&value.clone(), &detail);
                }
            }
        }
    }

    fn list(&mut self, of: &Type, value: &mut Value) {
        let Value::Array(items) = value else {
            return self.wrong(value, "must be a list");
        };
        for (i, item) in items.iter_mut().enumerate() {
            zero_if_null(of, item);
            self.within(format_args!("[{i}]"), |walk| walk.value(of, item));
        }
    }

    fn map(&mut self, of: &Type, value: &mut Value) {
        let Value::Object(entries) = value else {
            return self.wrong(value, "must be an object");
        };
        for (key, item) in entries.iter_mut() {
            zero_if_null(of, item);
            self.field(key, |walk| walk.value(of, item));
        }
    }
}

/// True for what Go's JSON omits: the zero value of a field that is no pointer and may be left out.
fn omitted(field: &Field, value: &Value) -> bool {
    if field.pointer || field.keep_empty {
        return false;
    }
    match (&field.ty, value) {
        // A struct is written even when it is empty.
        (Type::Object(_) | Type::Raw | Type::Any | Type::Quantity | Type::Time | Type::MicroTime | Type::Duration, _) => false,
        (_, Value::String(s)) => s.is_empty(),
        (_, Value::Bool(b)) => !b,
        (_, Value::Number(n)) => n.as_f64() == Some(0.0),
        (_, Value::Array(items)) => items.is_empty(),
        (_, Value::Object(entries)) => entries.is_empty(),
        (_, Value::Null) => true,
    }
}

/// A null in a list or map is the zero value of its type.
fn zero_if_null(ty: &Type, value: &mut Value) {
    if !value.is_null() {
        return;
    }
    *value = match ty {
        Type::String | Type::Bytes => "".into(),
        Type::Bool => false.into(),
        Type::Int32 | Type::Int64 | Type::Float | Type::IntOrString => 0.into(),
        Type::Quantity => "0".into(),
        Type::List { .. } => Value::Array(Vec::new()),
        Type::Object(_) | Type::Map(_) => Value::Object(Map::new()),
        _ => Value::Null,
    };
}

/// Brings a scalar to its normal spelling, or says what it should have been.
fn normal(ty: &Type, value: &mut Value) -> Result<(), String> {
    match ty {
        Type::String => match value {
            Value::String(_) => Ok(()),
            Value::Number(_) | Value::Bool(_) => Err("must be a string (put it in quotes)".into()),
            _ => Err("must be a string".into()),
        },
        Type::Bool => value.is_boolean().then_some(()).ok_or_else(|| "must be true or false".into()),
        Type::Int32 => integer(value, i32::MIN.into(), i32::MAX.into()),
        Type::Int64 => integer(value, i64::MIN, i64::MAX),
        Type::Float => value.is_number().then_some(()).ok_or_else(|| "must be a number".into()),
        Type::IntOrString if value.is_string() => Ok(()),
        Type::IntOrString => integer(value, i32::MIN.into(), i32::MAX.into()).map_err(|_| "must be an integer or a string".into()),
        Type::Quantity => Quantity::from_value(value).map(|q| *value = q.to_string().into()).map_err(|e| e.to_string()),
        Type::Bytes => bytes(value),
        Type::Time => time(value, base::rfc3339),
        Type::MicroTime => time(value, base::rfc3339_micro),
        Type::Duration => value.is_string().then_some(()).ok_or_else(|| "must be a duration such as \"90s\"".into()),
        Type::Raw | Type::Any | Type::Object(_) | Type::List { .. } | Type::Map(_) => Ok(()),
    }
}

/// Whole numbers in any spelling (`3.0` too, as YAML tools write it) within the type's range.
fn integer(value: &mut Value, min: i64, max: i64) -> Result<(), String> {
    let Value::Number(number) = &*value else {
        return Err("must be an integer".into());
    };
    let whole = number.as_i64().or_else(|| {
        let f = number.as_f64()?;
        (f.fract() == 0.0 && f.abs() < 9e15).then_some(f as i64)
    });
    match whole {
        Some(n) if (min..=max).contains(&n) => {
            if !number.is_i64() && !number.is_u64() {
                *value = n.into();
            }
            Ok(())
        }
        None if !number.is_f64() => Err(format!("must be between {min} and {max}")),
        None => Err("must be an integer".into()),
        Some(_) => Err(format!("must be between {min} and {max}")),
    }
}

fn bytes(value: &mut Value) -> Result<(), String> {
    let Value::String(text) = &*value else {
        return Err("must be base64 text".into());
    };
    if text.contains(['\n', '\r']) {
        *value = text.replace(['\n', '\r'], "").into();
    }
    match STANDARD.decode(value.as_str().unwrap_or_default()) {
        Ok(_) => Ok(()),
        Err(e) => Err(format!("must be base64 text: {e}")),
    }
}

fn time(value: &mut Value, form: fn(jiff::Timestamp) -> String) -> Result<(), String> {
    let parsed = value.as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
    *value = form(parsed.ok_or("must be a time such as \"2006-01-02T15:04:05Z\"")?).into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::{for_api_version, for_kind};

    fn checked(mut object: Value) -> (Value, Check) {
        let schema = for_api_version(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap()).unwrap();
        let check = check(schema, &mut object);
        (object, check)
    }

    #[test]
    fn unknown_fields_are_named_and_pruned() {
        let (object, check) = checked(json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {
            "foo": 1, "template": {"spec": {"containers": [{"name": "a"}, {"name": "b", "Image": "x"}], "volumes": [{"name": "v", "emptyDir": {"bar": {}}}]}}
        }}));
        assert_eq!(check.unknown, ["spec.foo", "spec.template.spec.containers[1].Image", "spec.template.spec.volumes[0].emptyDir.bar"]);
        assert!(check.errors.is_empty());
        assert_eq!(object["spec"]["template"]["spec"]["volumes"][0], json!({"name": "v", "emptyDir": {}}));
    }

    #[test]
    fn wrong_types_name_the_field_and_the_way_out() {
        let (_, check) = checked(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"labels": {"a": 1}}, "spec": {
            "replicas": "two", "minReadySeconds": 3_000_000_000i64, "paused": "yes", "selector": [],
            "template": {"spec": {"containers": {"name": "a"}, "nodeSelector": {"x": true}, "terminationGracePeriodSeconds": 1.5}}
        }}));
        let told: Vec<String> = check.errors.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        assert_eq!(
            told,
            [
                r#"metadata.labels.a: Invalid value: 1: must be a string (put it in quotes)"#,
                r#"spec.minReadySeconds: Invalid value: 3000000000: must be between -2147483648 and 2147483647"#,
                r#"spec.paused: Invalid value: "yes": must be true or false"#,
                r#"spec.replicas: Invalid value: "two": must be an integer"#,
                r#"spec.selector: Invalid value: a list: must be an object"#,
                r#"spec.template.spec.containers: Invalid value: an object: must be a list"#,
                r#"spec.template.spec.nodeSelector.x: Invalid value: true: must be a string (put it in quotes)"#,
                r#"spec.template.spec.terminationGracePeriodSeconds: Invalid value: 1.5: must be an integer"#,
            ]
        );
        assert!(check.errors.iter().all(|c| c.reason == "FieldValueTypeInvalid"));
    }

    #[test]
    fn values_take_the_form_that_go_would_give_them() {
        for (kind, given, expect) in [
            // nulls
            ("v1/Pod", json!({"metadata": {"creationTimestamp": null, "labels": {"a": null}}}), json!({"metadata": {"labels": {"a": ""}}})),
            ("v1/Pod", json!({"spec": {"containers": [null]}}), json!({"spec": {"containers": [{}]}})),
            ("v1/Pod", json!({"spec": null}), json!({})),
            // zero values that Go omits, and those it keeps
            (
                "apps/v1/Deployment",
                json!({"spec": {"replicas": 0, "minReadySeconds": 0, "paused": false}}),
                json!({"spec": {"replicas": 0}}),
            ),
            (
                "v1/Service",
                json!({"spec": {"ports": [{"port": 80, "nodePort": 0, "protocol": "", "targetPort": 0}]}}),
                json!({"spec": {"ports": [{"port": 80}]}}),
            ),
            (
                "v1/Pod",
                json!({"spec": {"containers": [{"name": "", "env": [], "resources": {}}], "hostNetwork": false}}),
                json!({"spec": {"containers": [{"name": "", "resources": {}}]}}),
            ),
            (
                "v1/Pod",
                json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}], "securityContext": {}, "enableServiceLinks": false}}),
                json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}], "securityContext": {}, "enableServiceLinks": false}}),
            ),
            (
                "v1/Pod",
                json!({"status": {"containerStatuses": [{"name": "a", "ready": false, "restartCount": 0, "image": "", "imageID": ""}]}}),
                json!({"status": {"containerStatuses": [{"name": "a", "ready": false, "restartCount": 0, "image": "", "imageID": ""}]}}),
            ),
            // normal spellings
            (
                "v1/ResourceQuota",
                json!({"spec": {"hard": {"cpu": 0.5, "memory": "1024Mi", "pods": 10}}}),
                json!({"spec": {"hard": {"cpu": "500m", "memory": "1Gi", "pods": "10"}}}),
            ),
            (
                "v1/Pod",
                json!({"metadata": {"deletionTimestamp": "2024-05-01T12:00:00.5+02:00"}}),
                json!({"metadata": {"deletionTimestamp": "2024-05-01T10:00:00Z"}}),
            ),
            (
                "coordination.k8s.io/v1/Lease",
                json!({"spec": {"renewTime": "2024-05-01T12:00:00.5Z"}}),
                json!({"spec": {"renewTime": "2024-05-01T12:00:00.500000Z"}}),
            ),
            ("v1/Secret", json!({"data": {"a": "aGVs\nbG8="}}), json!({"data": {"a": "aGVsbG8="}})),
            ("apps/v1/Deployment", json!({"spec": {"replicas": 3.0}}), json!({"spec": {"replicas": 3}})),
            (
                "apps/v1/Deployment",
                json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}}}}),
                json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}}}}),
            ),
            // what is not looked into
            (
                "v1/Pod",
                json!({"metadata": {"managedFields": [{"fieldsV1": {"f:spec": {}}}]}}),
                json!({"metadata": {"managedFields": [{"fieldsV1": {"f:spec": {}}}]}}),
            ),
        ] {
            let (api_version, name) = kind.rsplit_once('/').unwrap();
            let mut object = given.clone();
            let check = check(for_api_version(api_version, name).unwrap(), &mut object);
            assert_eq!(check, Check::default(), "{given}");
            assert_eq!(object, expect, "{given}");
        }
    }

    #[test]
    fn bad_values_of_special_types_are_refused() {
        for (kind, object, field) in [
            ("Secret", json!({"data": {"a": "%%"}}), "data.a"),
            ("ResourceQuota", json!({"spec": {"hard": {"cpu": "1 core"}}}), "spec.hard.cpu"),
            ("Pod", json!({"metadata": {"creationTimestamp": "yesterday"}}), "metadata.creationTimestamp"),
            ("Service", json!({"spec": {"ports": [{"targetPort": true}]}}), "spec.ports[0].targetPort"),
            ("Service", json!([]), "<root>"),
        ] {
            let mut object = object;
            let check = check(for_kind("", "v1", kind).unwrap(), &mut object);
            assert_eq!(check.errors.iter().map(|c| c.field.as_str()).collect::<Vec<_>>(), [field]);
        }
    }

    #[test]
    fn strictness_decides_between_a_400_and_warnings() {
        let found = || Check { unknown: vec!["spec.foo".into()], errors: Vec::new() };
        let duplicates = ["spec.x".to_string()];
        let strict = found().into_result(Strictness::Strict, "apps/v1", "Deployment", &duplicates).unwrap_err();
        assert_eq!(
            strict.message,
            r#"Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: duplicate field "spec.x", unknown field "spec.foo""#
        );
        assert_eq!(strict.code, 400);
        let warnings = found().into_result(Strictness::Warn, "apps/v1", "Deployment", &duplicates).unwrap();
        assert_eq!(warnings, [r#"duplicate field "spec.x""#, r#"unknown field "spec.foo""#]);
        assert!(found().into_result(Strictness::Ignore, "apps/v1", "Deployment", &duplicates).unwrap().is_empty());
        let wrong = Check { errors: vec![Cause::type_invalid("spec.replicas", &"two".into(), "must be an integer")], ..found() };
        assert_eq!(
            wrong.into_result(Strictness::Ignore, "apps/v1", "Deployment", &[]).unwrap_err().message,
            r#"Deployment in version "v1" cannot be handled as a Deployment: spec.replicas: Invalid value: "two": must be an integer"#
        );
        assert!(Strictness::parse(Some("strict")).is_err());
    }
}
