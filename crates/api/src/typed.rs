//! Objects seen through their type: the set of their fields, what differs between two, merging, and taking fields out.
//!
//! Source: `sigs.k8s.io/structured-merge-diff`, `typed`. Knows shapes and sets, not owners.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::fieldset::{FieldSet, Step, show};
use crate::schema::{Schema, Type};
use crate::shape::{Shape, Spot};

/// What names an item of a keyed list or a set; a key that is absent has its default, or the item has no name.
fn step_of(shape: Shape<'_>, item: &Value) -> Result<Step, String> {
    let Shape::Keyed(keys, spot) = shape else { return Ok(Step::Value(item.to_string())) };
    let mut named = Map::new();
    for key in keys {
        let given = item.get(*key).filter(|v| !v.is_null()).cloned();
        let value = given.or_else(|| spot.child(key).field()?.default.clone());
        let value = value.ok_or_else(|| {
            format!("associative list with keys has an element that omits key field {key:?} (and doesn't have default value)")
        })?;
        named.insert(key.to_string(), value);
    }
    Ok(Step::Key(Value::Object(named).to_string()))
}

fn item_spot<'a>(shape: Shape<'a>) -> Spot<'a> {
    match shape {
        Shape::Keyed(_, spot) => spot,
        _ => Spot::Unknown,
    }
}

fn child_spot<'a>(shape: Shape<'a>, spot: Spot<'a>, key: &str) -> Spot<'a> {
    match shape {
        Shape::Map(of) => of,
        Shape::Struct(schema) => Spot::Schema(schema).child(key),
        _ => spot.child(key),
    }
}

/// The items of a list under their names, in order; items without a name (in stored objects) are passed over.
fn items<'v>(shape: Shape<'_>, list: Option<&'v Value>) -> Vec<(Step, &'v Value)> {
    let all = list.and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|v| Some((step_of(shape, v).ok()?, v))).collect()
}

/// All fields that an object fills.
pub(crate) fn fields(schema: Option<&Schema>, object: &Value) -> FieldSet {
    let mut set = FieldSet::new();
    fill(Spot::of(schema), object, &mut set);
    set
}

fn fill(spot: Spot<'_>, value: &Value, set: &mut FieldSet) {
    let shape = spot.shape(Some(value), None);
    match shape {
        Shape::Leaf => set.member = true,
        Shape::Struct(_) | Shape::Map(_) => {
            for (key, v) in value.as_object().into_iter().flatten() {
                let mut below = FieldSet::new();
                fill(child_spot(shape, spot, key), v, &mut below);
                let declared = matches!(shape, Shape::Struct(s) if s.fields.contains_key(key.as_str()));
                below.member |= !declared || v.is_null() || v.as_object().is_some_and(Map::is_empty);
                if !below.is_empty() {
                    set.children.insert(Step::Field(key.clone()), below);
                }
            }
        }
        Shape::Set | Shape::Keyed(..) => {
            let named = items(shape, Some(value));
            let mut counts: BTreeMap<&Step, usize> = BTreeMap::new();
            named.iter().for_each(|(step, _)| *counts.entry(step).or_default() += 1);
            for (step, v) in &named {
                let below = set.children.entry(step.clone()).or_default();
                below.member = true;
                // Items of one name are owned together.
                if counts[step] == 1 {
                    fill(item_spot(shape), v, below);
                }
            }
        }
    }
}

/// What an applied configuration must not have: items without a key, two items of one key. The text is upstream's.
pub(crate) fn check(schema: Option<&Schema>, object: &Value) -> Result<(), String> {
    check_at(Spot::of(schema), object, &mut Vec::new())
}

fn check_at(spot: Spot<'_>, value: &Value, path: &mut Vec<Step>) -> Result<(), String> {
    let shape = spot.shape(Some(value), None);
    match shape {
        Shape::Leaf => {}
        Shape::Struct(_) | Shape::Map(_) => {
            for (key, v) in value.as_object().into_iter().flatten() {
                path.push(Step::Field(key.clone()));
                check_at(child_spot(shape, spot, key), v, path)?;
                path.pop();
            }
        }
        Shape::Set | Shape::Keyed(..) => {
            let mut seen = BTreeSet::new();
            for (i, v) in value.as_array().into_iter().flatten().enumerate() {
                let step = step_of(shape, v).map_err(|e| format!("{}: element {i}: {e}", show(path)))?;
                if !seen.insert(step.clone()) {
                    return Err(format!("{}: duplicate entries for key {step}", show(path)));
                }
                path.push(step);
                check_at(item_spot(shape), v, path)?;
                path.pop();
            }
        }
    }
    Ok(())
}

/// What became of an object.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    pub added: FieldSet,
    pub modified: FieldSet,
    pub removed: FieldSet,
}

pub(crate) fn compare(schema: Option<&Schema>, left: &Value, right: &Value) -> Comparison {
    let mut walk = Walk { out: Comparison::default(), path: Vec::new() };
    walk.compare(Spot::of(schema), Some(left), Some(right));
    walk.out
}

/// Go writes structs, and lists that are not `omitempty`, also when nothing is in them: who fills one does not own it itself.
fn always_there(spot: Spot<'_>) -> Option<&'static Value> {
    static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));
    let field = spot.field()?;
    match &field.ty {
        Type::Object(_) if !field.pointer => Some(&EMPTY),
        Type::List { .. } | Type::Map(_) if field.keep_empty => Some(&Value::Null),
        _ => None,
    }
}

struct Walk {
    out: Comparison,
    path: Vec<Step>,
}

impl Walk {
    fn compare<'v>(&mut self, spot: Spot<'_>, left: Option<&'v Value>, right: Option<&'v Value>) {
        let shape = spot.shape(left, right);
        let filled = |v: Option<&Value>| match v {
            Some(Value::Object(m)) => !m.is_empty(),
            Some(Value::Array(a)) => !a.is_empty(),
            _ => false,
        };
        // Nothing on both sides is a leaf: so `null`, `{}` and absence are told apart.
        if matches!(shape, Shape::Leaf) || !(filled(left) || filled(right)) {
            if let (Some(l), Some(r)) = (left, right) {
                if l != r {
                    self.out.modified.insert(&self.path);
                }
                return;
            }
        } else if matches!(shape, Shape::Struct(_) | Shape::Map(_)) {
            let names = |v: Option<&'v Value>| v.and_then(Value::as_object).into_iter().flatten().map(|(k, _)| k.clone());
            let keys: BTreeSet<String> = names(left).chain(names(right)).collect();
            for key in keys {
                let below = child_spot(shape, spot, &key);
                let of = |v: Option<&'v Value>| v.and_then(|v| v.get(&key).or_else(|| always_there(below).filter(|_| v.is_object())));
                let (l, r) = (of(left), of(right));
                self.step(Step::Field(key.clone()), |w| w.compare(below, l, r));
            }
        } else {
            self.compare_lists(shape, left, right);
        }
        match (left, right) {
            (None, _) => self.out.added.insert(&self.path),
            (_, None) => self.out.removed.insert(&self.path),
            _ => {}
        }
    }

    fn compare_lists(&mut self, shape: Shape<'_>, left: Option<&Value>, right: Option<&Value>) {
        let mut all: BTreeMap<Step, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
        items(shape, left).into_iter().for_each(|(step, v)| all.entry(step).or_default().0.push(v));
        items(shape, right).into_iter().for_each(|(step, v)| all.entry(step).or_default().1.push(v));
        for (step, (l, r)) in all {
            self.step(step, |w| match (&l[..], &r[..]) {
                (l, r) if l.len() < 2 && r.len() < 2 => w.compare(item_spot(shape), l.first().copied(), r.first().copied()),
                // Items of one name are compared together.
                ([], _) => w.out.added.insert(&w.path),
                (_, []) => w.out.removed.insert(&w.path),
                (l, r) if l == r => {}
                _ => w.out.modified.insert(&w.path),
            });
        }
    }

    fn step(&mut self, step: Step, then: impl FnOnce(&mut Self)) {
        self.path.push(step);
        then(self);
        self.path.pop();
    }
}

/// `right` over `left`: what `right` does not have stays, what it has wins; `null` takes away.
pub(crate) fn merge(schema: Option<&Schema>, left: &Value, right: &Value) -> Value {
    merge_at(Spot::of(schema), Some(left), right).unwrap_or(Value::Null)
}

fn merge_at(spot: Spot<'_>, left: Option<&Value>, right: &Value) -> Option<Value> {
    if right.is_null() {
        return None;
    }
    let shape = spot.shape(left, Some(right));
    match (shape, right) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(r)) => {
            let mut out = left.and_then(Value::as_object).cloned().unwrap_or_default();
            for (key, v) in r {
                let below = out.get(key).cloned();
                match merge_at(child_spot(shape, spot, key), below.as_ref(), v) {
                    Some(merged) => out.insert(key.clone(), merged),
                    None => out.remove(key),
                };
            }
            Some(Value::Object(out))
        }
        (Shape::Set | Shape::Keyed(..), Value::Array(r)) if left.is_some_and(Value::is_array) => Some(merge_lists(shape, left, r)),
        _ => Some(right.clone()),
    }
}

/// The order is the right side's; what only the left has keeps its place before what followed it.
fn merge_lists(shape: Shape<'_>, left: Option<&Value>, right: &[Value]) -> Value {
    let left = items(shape, left);
    let right: Vec<(Step, &Value)> = right.iter().filter_map(|v| Some((step_of(shape, v).ok()?, v))).collect();
    let wanted: BTreeSet<&Step> = right.iter().map(|(s, _)| s).collect();
    let mut done: BTreeSet<&Step> = BTreeSet::new();
    let mut rest = left.iter().peekable();
    let mut out = Vec::with_capacity(left.len() + right.len());
    for (step, value) in &right {
        while let Some((s, v)) = rest.next_if(|(s, _)| !wanted.contains(s) || done.contains(s)) {
            if !wanted.contains(s) {
                out.push((*v).clone());
            }
        }
        let below = left.iter().find(|(s, _)| s == step).map(|(_, v)| *v);
        out.extend(merge_at(item_spot(shape), below, value));
        done.insert(step);
    }
    out.extend(rest.filter(|(s, _)| !wanted.contains(s)).map(|(_, v)| (*v).clone()));
    Value::Array(out)
}

/// The object without the fields of a set. What is emptied by it goes, too.
pub(crate) fn remove(schema: Option<&Schema>, object: &Value, set: &FieldSet) -> Value {
    remove_at(Spot::of(schema), object, set).unwrap_or_else(|| Value::Object(Map::new()))
}

fn remove_at(spot: Spot<'_>, value: &Value, set: &FieldSet) -> Option<Value> {
    let shape = spot.shape(Some(value), None);
    let keep = |spot: Spot<'_>, step: &Step, v: &Value| match set.children.get(step) {
        None => Some(v.clone()),
        Some(gone) if gone.member => None,
        Some(gone) => remove_at(spot, v, gone),
    };
    match (shape, value) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(map)) => {
            let kept = map.iter().filter_map(|(k, v)| Some((k.clone(), keep(child_spot(shape, spot, k), &Step::Field(k.clone()), v)?)));
            let kept: Map<String, Value> = kept.collect();
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        (Shape::Set | Shape::Keyed(..), Value::Array(list)) => {
            let kept = list.iter().filter_map(|v| match step_of(shape, v) {
                Ok(step) => keep(item_spot(shape), &step, v),
                Err(_) => Some(v.clone()),
            });
            let kept: Vec<Value> = kept.collect();
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        _ => Some(value.clone()),
    }
}
