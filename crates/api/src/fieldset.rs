//! Sets of fields of an object, as `metadata.managedFields` holds them (`FieldsV1`).
//!
//! Source: `sigs.k8s.io/structured-merge-diff`, `fieldpath`. Knows paths, not types or owners.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// `f:name`
    Field(String),
    /// `k:{"name":"web"}`: an item of a keyed list, by its keys as canonical JSON.
    Key(String),
    /// `v:"a"`: an item of a set, as JSON.
    Value(String),
    /// `i:0`
    Index(usize),
}

impl Step {
    fn parse(text: &str) -> Option<Step> {
        let (kind, rest) = text.split_once(':')?;
        // Parsed and written again: two spellings of one JSON value are one step.
        let canonical = |s: &str| serde_json::from_str::<Value>(s).ok().map(|v| v.to_string());
        match kind {
            "f" => Some(Step::Field(rest.to_string())),
            "k" => canonical(rest).map(Step::Key),
            "v" => canonical(rest).map(Step::Value),
            "i" => rest.parse().ok().map(Step::Index),
            _ => None,
        }
    }

    fn to_key(&self) -> String {
        match self {
            Step::Field(s) => format!("f:{s}"),
            Step::Key(s) => format!("k:{s}"),
            Step::Value(s) => format!("v:{s}"),
            Step::Index(i) => format!("i:{i}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Field(s) => write!(f, ".{s}"),
            Step::Key(s) => {
                let keys: Map<String, Value> = serde_json::from_str(s).unwrap_or_default();
                let each: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                write!(f, "[{}]", each.join(","))
            }
            Step::Value(s) => write!(f, "[={s}]"),
            Step::Index(i) => write!(f, "[{i}]"),
        }
    }
}

/// A path as messages show it: `.spec.containers[name="web"].image`.
pub fn show(path: &[Step]) -> String {
    path.iter().map(Step::to_string).collect()
}

/// A set of paths as a tree. The root itself is never in the set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// The path that leads here is in the set.
    pub member: bool,
    pub children: BTreeMap<Step, FieldSet>,
}

impl FieldSet {
    pub fn new() -> Self {
        Self::default()
    }

    /// The set of these top-level or nested fields.
    pub fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Self::new();
        for path in paths {
            set.insert(&path.iter().map(|p| Step::Field(p.to_string())).collect::<Vec<_>>());
        }
        set
    }

    pub fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(FieldSet::is_empty)
    }

    pub fn insert(&mut self, path: &[Step]) {
        let mut node = self;
        for step in path {
            node = node.children.entry(step.clone()).or_default();
        }
        node.member = true;
    }

    pub fn union(&mut self, other: &FieldSet) {
        self.member |= other.member;
        for (step, child) in &other.children {
            self.children.entry(step.clone()).or_default().union(child);
        }
    }

    /// Takes out the paths that `other` holds; paths below them stay.
    pub fn subtract(&mut self, other: &FieldSet) {
        self.member &= !other.member;
        self.children.retain(|step, child| {
            if let Some(gone) = other.children.get(step) {
                child.subtract(gone);
            }
            !child.is_empty()
        });
    }

    /// Takes out the paths that `other` holds and all below them.
    pub fn subtract_below(&mut self, other: &FieldSet) {
        self.member &= !other.member;
        self.children.retain(|step, child| match other.children.get(step) {
            Some(gone) if gone.member => false,
            Some(gone) => {
                child.subtract_below(gone);
                !child.is_empty()
            }
            None => true,
        });
    }

    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let children = self.children.iter().filter_map(|(step, child)| {
            let both = child.intersection(other.children.get(step)?);
            (!both.is_empty()).then(|| (step.clone(), both))
        });
        FieldSet { member: self.member && other.member, children: children.collect() }
    }

    /// Every field that has something below it in the set is in the result, too: removing an owner's fields removes the
    /// structs that only they filled.
    pub fn with_parents(&self) -> FieldSet {
        let children = self.children.iter().map(|(step, child)| {
            let mut filled = child.with_parents();
            filled.member |= matches!(step, Step::Field(_)) && !filled.children.is_empty();
            (step.clone(), filled)
        });
        FieldSet { member: self.member, children: children.collect() }
    }

    /// Every path in the set, parents first.
    pub fn paths(&self) -> Vec<Vec<Step>> {
        let mut all = Vec::new();
        self.collect(&mut Vec::new(), &mut all);
        all
    }

    fn collect(&self, at: &mut Vec<Step>, all: &mut Vec<Vec<Step>>) {
        for (step, child) in &self.children {
            at.push(step.clone());
            if child.member {
                all.push(at.clone());
            }
            child.collect(at, all);
            at.pop();
        }
    }

    /// From `FieldsV1`. `None` if it is not of that form.
    pub fn from_fields_v1(fields: &Value) -> Option<FieldSet> {
        let mut set = FieldSet::new();
        for (key, below) in fields.as_object()? {
            if key == "." {
                set.member = true;
                continue;
            }
            let mut child = FieldSet::from_fields_v1(below)?;
            child.member |= child.children.is_empty();
            set.children.insert(Step::parse(key)?, child);
        }
        Some(set)
    }

    /// To `FieldsV1`.
    pub fn to_fields_v1(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        for (step, child) in &self.children {
            map.insert(step.to_key(), child.to_fields_v1());
        }
        Value::Object(map)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(v: Value) -> FieldSet {
        FieldSet::from_fields_v1(&v).unwrap()
    }

    #[test]
    fn sets_round_trip() {
        let v = json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}, "f:finalizers": {"v:\"a\"": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:image": {}}}, "f:list": {"i:0": {}}}});
        assert_eq!(set(v.clone()).to_fields_v1(), v);
        let paths: Vec<String> = set(v).paths().iter().map(|p| show(p)).collect();
        assert_eq!(
            paths,
            [
                ".metadata.finalizers[=\"a\"]",
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.containers[name=\"web\"]",
                ".spec.containers[name=\"web\"].image",
                ".spec.list[0]"
            ]
        );
        assert!(FieldSet::from_fields_v1(&json!({"x:a": {}})).is_none());
    }

    #[test]
    fn one_key_has_one_spelling() {
        let a = set(json!({"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {}}));
        let b = set(json!({"k:{ \"protocol\": \"TCP\", \"containerPort\": 80 }": {}}));
        assert_eq!(a, b);
    }

    #[test]
    fn sets_are_sets() {
        let a = set(json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}, "f:d": {}}));
        let b = set(json!({"f:a": {".": {}, "f:b": {}}}));
        let mut exact = a.clone();
        exact.subtract(&b);
        assert_eq!(exact, set(json!({"f:a": {"f:c": {}}, "f:d": {}})));
        let mut below = a.clone();
        below.subtract_below(&b);
        assert_eq!(below, set(json!({"f:d": {}})));
        assert_eq!(a.intersection(&b), b);
        let mut all = exact.clone();
        all.union(&b);
        assert_eq!(all, a);
        assert_eq!(set(json!({"f:a": {"f:b": {}}})).with_parents(), set(json!({"f:a": {".": {}, "f:b": {}}})));
    }
}
