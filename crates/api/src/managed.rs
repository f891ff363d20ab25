//! `metadata.managedFields`: which manager owns which field of an object, kept on every write.
//!
//! Source: `k8s.io/apimachinery` `managedfields` and `sigs.k8s.io/structured-merge-diff`. Knows owners; [`crate::apply`]
//! merges.

use std::collections::BTreeMap;

use base::Timestamp;
use serde_json::{Map, Value, json};

use crate::fieldset::FieldSet;
use crate::limits::UPDATE_MANAGERS_MAX;
use crate::schema::Schema;
use crate::typed;

const ANCIENT: &str = "ancient-changes";

/// Who writes what kind, and how it is noted.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    /// The kind's type; `None` merges objects field by field and lists as one value.
    pub schema: Option<&'a Schema>,
    /// Of the object as it is written: `apps/v1`.
    pub api_version: &'a str,
    /// `fieldManager` of the request, or what its user agent is called; empty is `unknown`.
    pub manager: &'a str,
    /// `status`, `scale` …; empty for the object itself.
    pub subresource: &'a str,
    pub now: Timestamp,
}

impl Writer<'_> {
    pub(crate) fn id(&self, operation: Operation) -> Id {
        let manager = if self.manager.is_empty() { "unknown" } else { self.manager };
        let api_version = if operation == Operation::Update { self.api_version } else { "" };
        Id { operation, manager: manager.into(), subresource: self.subresource.into(), api_version: api_version.into() }
    }

    /// Fields that a write of this subresource does not reach.
    pub(crate) fn unreachable(&self) -> FieldSet {
        let has_status = self.schema.is_none_or(|s| s.fields.contains_key("status"));
        match self.subresource {
            "" if has_status => FieldSet::of_fields(&[&["status"]]),
            "status" => FieldSet::of_fields(&[&["spec"]]),
            _ => FieldSet::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Apply,
    Update,
}

/// What makes two entries one. An applier is the same at every version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    pub operation: Operation,
    pub manager: String,
    pub api_version: String,
    pub subresource: String,
}

impl Id {
    /// As conflicts name it: `"kubectl-client-side-apply" using apps/v1`.
    pub(crate) fn shown(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text += &format!(" with subresource {:?}", self.subresource);
        }
        if self.operation == Operation::Update {
            text += &format!(" using {}", self.api_version);
        }
        text
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owned {
    pub fields: FieldSet,
    pub api_version: String,
    pub time: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Managers(pub BTreeMap<Id, Owned>);

impl Managers {
    /// From `metadata.managedFields`. `None` if an entry is not of the form that this server writes.
    pub(crate) fn decode(entries: &Value) -> Option<Managers> {
        let mut all = BTreeMap::new();
        for entry in entries.as_array().into_iter().flatten() {
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_string();
            let operation = match entry["operation"].as_str()? {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            };
            let api_version = text("apiVersion");
            if api_version.is_empty() || entry["fieldsType"] != "FieldsV1" {
                return None;
            }
            let fields = match &entry["fieldsV1"] {
                Value::Null => FieldSet::new(),
                fields => FieldSet::from_fields_v1(fields)?,
            };
            let id = Id {
                operation,
                manager: text("manager"),
                subresource: text("subresource"),
                api_version: if operation == Operation::Update { api_version.clone() } else { String::new() },
            };
            all.insert(id, Owned { fields, api_version, time: entry["time"].as_str().map(String::from) });
        }
        Some(Managers(all))
    }

    /// In upstream's order: appliers first, then by time, name, version, subresource.
    pub(crate) fn encode(&self) -> Option<Value> {
        let mut sorted: Vec<(&Id, &Owned)> = self.0.iter().collect();
        sorted.sort_by_key(|(id, o)| (id.operation, o.time.clone(), id.manager.clone(), o.api_version.clone(), id.subresource.clone()));
        let entries: Vec<Value> = sorted.into_iter().map(|(id, owned)| entry(id, owned)).collect();
        (!entries.is_empty()).then_some(Value::Array(entries))
    }

    /// Takes from everyone else what a write changed or removed; managers that own nothing more are dropped.
    pub(crate) fn yield_to(&mut self, writer: Option<&Id>, change: &typed::Comparison) {
        self.0.retain(|id, owned| {
            if Some(id) != writer {
                owned.fields.subtract(&change.modified);
                owned.fields.subtract(&change.added);
                // Under what is gone nothing is left to own.
                owned.fields.subtract_below(&change.removed);
            }
            !owned.fields.is_empty()
        });
    }

    /// Merges the oldest updates of one version until no more than [`UPDATE_MANAGERS_MAX`] are left.
    fn cap(&mut self) {
        let mut updates: Vec<(Option<String>, Id)> =
            self.0.iter().filter(|(id, _)| id.operation == Operation::Update).map(|(id, o)| (o.time.clone(), id.clone())).collect();
        updates.sort();
        let mut count = updates.len();
        let mut first: BTreeMap<String, Id> = BTreeMap::new();
        for (_, id) in updates {
            if count <= UPDATE_MANAGERS_MAX {
                return;
            }
            let bucket = Id { manager: ANCIENT.into(), subresource: String::new(), ..id.clone() };
            let Some(earlier) = first.get(&id.api_version).cloned() else {
                first.insert(id.api_version.clone(), id);
                continue;
            };
            let oldest = self.0.remove(&earlier);
            let (Some(mut oldest), Some(next)) = (oldest, self.0.remove(&id)) else { continue };
            oldest.fields.union(&next.fields);
            oldest.time = next.time;
            self.0.insert(bucket.clone(), oldest);
            first.insert(id.api_version.clone(), bucket);
            count -= 1;
        }
    }
}

fn entry(id: &Id, owned: &Owned) -> Value {
    let mut map = Map::new();
    map.insert("manager".into(), json!(id.manager));
    map.insert("operation".into(), json!(format!("{:?}", id.operation)));
    map.insert("apiVersion".into(), json!(owned.api_version));
    if let Some(time) = &owned.time {
        map.insert("time".into(), json!(time));
    }
    map.insert("fieldsType".into(), json!("FieldsV1"));
    map.insert("fieldsV1".into(), owned.fields.to_fields_v1());
    if !id.subresource.is_empty() {
        map.insert("subresource".into(), json!(id.subresource));
    }
    Value::Object(map)
}

/// Fields that nobody owns: identity and what the server writes.
pub(crate) fn unowned() -> FieldSet {
    let metadata =
        ["name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation", "managedFields", "resourceVersion"];
    let mut set = FieldSet::of_fields(&[&["apiVersion"], &["kind"], &["metadata"]]);
    metadata.iter().for_each(|m| set.union(&FieldSet::of_fields(&[&["metadata", m]])));
    set
}

pub(crate) fn take(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

pub(crate) fn put(object: &mut Value, managers: &Managers) {
    if let (Some(meta), Some(entries)) = (object.get_mut("metadata").and_then(Value::as_object_mut), managers.encode()) {
        meta.insert("managedFields".into(), entries);
    }
}

fn of(object: Option<&Value>) -> Managers {
    object.and_then(|o| Managers::decode(&o["metadata"]["managedFields"])).unwrap_or_default()
}

/// Called with the result of every write that is no apply, after defaulting, before storing: notes in `after` what the writer
/// changed since `before` (`None` for a new object) and takes it from its former owners.
///
/// `after` may bring managed fields of its own: an empty list (or a list of one empty entry) forgets them all, a well-formed
/// one is taken, anything else is replaced by those of `before`.
pub fn update(writer: &Writer, before: Option<&Value>, after: &mut Value) {
    let given = take(after);
    let reset = |v: &Value| v.as_array().is_some_and(|a| a.is_empty() || (a.len() == 1 && a[0].as_object().is_some_and(Map::is_empty)));
    let mut managers = match &given {
        Some(given) if writer.subresource.is_empty() => {
            if reset(given) {
                Managers::default()
            } else {
                Managers::decode(given).filter(|m| !m.0.is_empty()).unwrap_or_else(|| of(before))
            }
        }
        _ => of(before),
    };
    // An object whose fields nobody tracks is tracked from its first apply on.
    if managers.0.is_empty() && before.is_some() {
        return;
    }
    note(writer, before, after, &mut managers);
    managers.cap();
    put(after, &managers);
}

/// The heart of [`update`], without the form in which managers are kept.
pub(crate) fn note(writer: &Writer, before: Option<&Value>, after: &Value, managers: &mut Managers) {
    let nothing = Value::Object(Map::new());
    let mut change = typed::compare(writer.schema, before.unwrap_or(&nothing), after);
    let skip = writer.unreachable();
    for set in [&mut change.added, &mut change.modified, &mut change.removed] {
        set.subtract_below(&skip);
    }
    managers.yield_to(None, &change);
    let mut mine = change.modified;
    mine.union(&change.added);
    mine.subtract(&unowned());
    if mine.is_empty() {
        return;
    }
    let id = writer.id(Operation::Update);
    if let Some(earlier) = managers.0.get(&id) {
        mine.union(&earlier.fields);
    }
    let time = Some(base::rfc3339(writer.now));
    managers.0.insert(id, Owned { fields: mine, api_version: writer.api_version.into(), time });
}
