//! `paths`: what may be done with each row and its subresources, and with which parameters.

use serde_json::{Map, Value, json};

use super::reference;
use super::schemas::{DELETE_OPTIONS, PATCH, STATUS, exchanges_objects, name_of};
use crate::resource::Row;
use crate::schema;

/// Query parameters: name, type, what it does.
type Parameter = (&'static str, &'static str, &'static str);

const WRITE: &[Parameter] = &[
    ("dryRun", "string", "\"All\" runs every step of the request but storing its result."),
    ("fieldManager", "string", "The name under which the fields that this request sets are owned; at most 128 characters."),
    (
        "fieldValidation",
        "string",
        "What happens to unknown or duplicate fields: \"Ignore\" drops them, \"Warn\" drops them and warns, \"Strict\" refuses the request.",
    ),
];
const FORCE: Parameter = ("force", "boolean", "Takes over fields that others own; for apply patches only.");
const SELECT: &[Parameter] = &[
    ("labelSelector", "string", "Restricts the objects by their labels."),
    ("fieldSelector", "string", "Restricts the objects by their fields."),
    ("limit", "integer", "The most objects to return; the answer then tells how to go on."),
    ("continue", "string", "Goes on where an earlier list with a limit ended."),
    ("resourceVersion", "string", "How fresh the answer has to be, or where a watch starts."),
    ("resourceVersionMatch", "string", "How resourceVersion is meant: \"Exact\" or \"NotOlderThan\"."),
    ("timeoutSeconds", "integer", "Ends the call after so many seconds."),
];
const WATCH: &[Parameter] = &[
    ("watch", "boolean", "Streams changes instead of listing."),
    ("allowWatchBookmarks", "boolean", "Lets the stream hold bookmarks of how far it has come."),
    ("sendInitialEvents", "boolean", "Starts the stream with the objects that exist, and a bookmark after them."),
];
const DELETE: &[Parameter] = &[
    ("dryRun", "string", "\"All\" runs every step of the request but storing its result."),
    ("gracePeriodSeconds", "integer", "How long the object may take to end; 0 ends it at once."),
    ("propagationPolicy", "string", "What happens to dependents: \"Orphan\", \"Background\" or \"Foreground\"."),
    ("orphanDependents", "boolean", "Deprecated; see propagationPolicy."),
];

const JSON: &str = "application/json";

pub(super) fn of(rows: &[&Row]) -> Map<String, Value> {
    let mut out = Map::new();
    for row in rows {
        let prefix = if row.group.is_empty() { format!("/api/{}", row.version) } else { format!("/apis/{}/{}", row.group, row.version) };
        let own = Kind::new(row, row.group, row.version, row.kind);
        let all = format!("{prefix}/{}", row.plural);
        let collection = if row.namespaced() { format!("{prefix}/namespaces/{{namespace}}/{}", row.plural) } else { all.clone() };
        let operations = [("get", "list"), ("post", "create"), ("delete", "deletecollection")];
        put(&mut out, &collection, row.namespaced(), false, own.operations(&operations, row.verbs));
        if row.namespaced() {
            put(&mut out, &all, false, false, own.operations(&[("get", "list")], row.verbs));
        }
        let item = format!("{collection}/{{name}}");
        let operations = [("get", "get"), ("put", "update"), ("patch", "patch"), ("delete", "delete")];
        put(&mut out, &item, row.namespaced(), true, own.operations(&operations, row.verbs));
        for sub in row.subresources {
            let (group, version) = sub.group_version.map_or((row.group, row.version), |gv| gv.split_once('/').unwrap_or(("", gv)));
            let kind = Kind { subresource: sub.name, objects: exchanges_objects(sub), ..Kind::new(row, group, version, sub.kind) };
            let operations = [("get", "get"), ("put", "update"), ("patch", "patch"), ("post", "create"), ("delete", "delete")];
            put(&mut out, &format!("{item}/{}", sub.name), row.namespaced(), true, kind.operations(&operations, sub.verbs));
        }
    }
    out
}

/// Adds a path that has any operation.
fn put(out: &mut Map<String, Value>, path: &str, namespaced: bool, named: bool, mut operations: Map<String, Value>) {
    if operations.is_empty() {
        return;
    }
    let segments = [(namespaced, "namespace"), (named, "name")];
    let parameters: Vec<Value> = segments
        .iter()
        .filter(|(there, _)| *there)
        .map(|(_, name)| {
            let text = format!("The {name} of the object.");
            json!({"name": name, "in": "path", "required": true, "description": text, "schema": {"type": "string", "uniqueItems": true}})
        })
        .collect();
    if !parameters.is_empty() {
        operations.insert("parameters".into(), parameters.into());
    }
    out.insert(path.into(), operations.into());
}

/// What an operation is about.
struct Kind<'r> {
    row: &'r Row,
    group: &'r str,
    version: &'r str,
    kind: &'r str,
    subresource: &'r str,
    /// Bodies are objects of the kind; not so for streams.
    objects: bool,
}

impl<'r> Kind<'r> {
    fn new(row: &'r Row, group: &'r str, version: &'r str, kind: &'r str) -> Self {
        Self { row, group, version, kind, subresource: "", objects: true }
    }

    /// The operations of one path: pairs of HTTP method and verb, of which those are made that `verbs` allows.
    fn operations(&self, pairs: &[(&str, &str)], verbs: &[&str]) -> Map<String, Value> {
        pairs.iter().filter(|(_, verb)| verbs.contains(verb)).map(|(method, verb)| (method.to_string(), self.operation(verb))).collect()
    }

    fn operation(&self, verb: &str) -> Value {
        let schema = name_of(self.group, self.version, self.kind);
        let known = self.objects;
        let list = format!("{schema}List");
        let answer = match verb {
            "list" => Some(list.as_str()),
            "delete" | "deletecollection" => Some(STATUS),
            _ => known.then_some(schema.as_str()),
        };
        let object = answer.map_or_else(|| json!({"type": "string"}), reference);
        let media = if answer.is_some() { JSON } else { "*/*" };
        let action = match verb {
            "create" => "post",
            "update" => "put",
            other => other,
        };
        let scope = if self.row.namespaced() { "Namespaced" } else { "" };
        let group = self.row.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
        let mut out = json!({
            "description": format!("{verb} {}{}", self.row.kind, if self.subresource.is_empty() { String::new() } else { format!(" ({})", self.subresource) }),
            "operationId": format!("{verb}{}{}{scope}{}{}", upper(group), upper(self.row.version), self.row.kind, upper(self.subresource)),
            "tags": [format!("{group}_{}", self.row.version)],
            "parameters": parameters(verb),
            "responses": {
                "200": {"description": "OK", "content": {media: {"schema": object}}},
                "401": {"description": "Unauthorized"},
            },
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": {"group": self.group, "version": self.version, "kind": self.kind},
        });
        if let Some(body) = self.body(verb, &schema, known) {
            out["requestBody"] = body;
        }
        out
    }

    fn body(&self, verb: &str, schema: &str, known: bool) -> Option<Value> {
        match verb {
            "create" | "update" if known => Some(json!({"required": true, "content": {"*/*": {"schema": reference(schema)}}})),
            "delete" | "deletecollection" => Some(json!({"content": {"*/*": {"schema": reference(DELETE_OPTIONS)}}})),
            "patch" => {
                let mut media = vec!["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];
                // A strategic merge needs the facts of the type.
                if schema::for_kind(self.group, self.version, self.kind).is_some() {
                    media.push("application/strategic-merge-patch+json");
                }
                let content: Map<String, Value> = media.iter().map(|m| (m.to_string(), json!({"schema": reference(PATCH)}))).collect();
                Some(json!({"required": true, "content": content}))
            }
            _ => None,
        }
    }
}

fn upper(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

fn parameters(verb: &str) -> Vec<Value> {
    let lists: &[&[Parameter]] = match verb {
        "create" | "update" => &[WRITE],
        "patch" => &[WRITE, &[FORCE]],
        "list" => &[SELECT, WATCH],
        "delete" => &[DELETE],
        "deletecollection" => &[DELETE, SELECT],
        _ => &[],
    };
    let parameter = |(name, kind, text): &Parameter| json!({"name": name, "in": "query", "description": text, "schema": {"type": kind, "uniqueItems": true}});
    lists.iter().flat_map(|l| l.iter()).map(parameter).collect()
}
