//! What every field of every built-in kind is: type, list and map semantics, patch tags, protobuf number.
//!
//! The facts are a text file (`facts.txt`, written by `xtask/facts` from the Go types and the published JSON schemas of
//! Kubernetes v1.33), parsed at first use. Knows no prose (see [`crate::openapi`]) and no rules beyond structure: what a value
//! may be is the table's affair.

mod check;

use std::collections::BTreeMap;
use std::sync::OnceLock;

pub use check::{Check, Strictness, check};
use serde_json::Value;

const FACTS: &str = include_str!("facts.txt");

/// An object type: a kind, or a struct within one.
#[derive(Debug)]
pub struct Schema {
    /// As OpenAPI names it: `io.k8s.api.core.v1.Pod`.
    pub name: String,
    /// What it is registered as; empty for structs within kinds.
    pub kinds: Vec<Gvk>,
    /// The whole struct is owned and replaced as one value (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
    /// By JSON name; fields of inlined structs included.
    pub fields: BTreeMap<&'static str, Field>,
    /// By protobuf number.
    pub(crate) wire: BTreeMap<u32, Wire>,
}

/// Group, version, kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gvk {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
}

/// One field of an object.
#[derive(Debug, Clone)]
pub struct Field {
    pub name: &'static str,
    pub ty: Type,
    pub required: bool,
    /// A Go pointer: a zero that was given is kept apart from none (`replicas: 0`).
    pub pointer: bool,
    /// An empty value is written out (no `omitempty`), as `restartCount: 0`.
    pub keep_empty: bool,
    /// What server-side apply merges a list by; [`ListType::Atomic`] for all that is not a list.
    pub list: ListType,
    /// A map or struct that is owned and replaced as one value.
    pub atomic: bool,
    /// Strategic merge patch merges the list or struct instead of replacing it.
    pub patch_merge: bool,
    /// Strategic merge patch drops the fields that the patch does not name.
    pub patch_retain_keys: bool,
    pub patch_merge_key: Option<&'static str>,
    /// Stands in for a missing key of an item in a keyed list.
    pub default: Option<Value>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    String,
    Bool,
    Int32,
    Int64,
    Float,
    /// Base64 in JSON.
    Bytes,
    Quantity,
    Time,
    MicroTime,
    Duration,
    IntOrString,
    /// A JSON document that is kept as it is (`RawExtension`, `FieldsV1`); bytes on the protobuf wire.
    Raw,
    /// Any JSON value; has no protobuf form here.
    Any,
    Object(Ref),
    /// `wrapped`: protobuf puts the list in a message of its own.
    List {
        of: Box<Type>,
        wrapped: bool,
    },
    Map(Box<Type>),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    /// Keyed by these fields of its items.
    Map(Vec<&'static str>),
}

/// A type by its place in the table of all types; follows itself: `field.fields["spec"]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ref(u32);

impl std::ops::Deref for Ref {
    type Target = Schema;

    fn deref(&self) -> &Schema {
        self.schema()
    }
}

impl Ref {
    pub fn schema(self) -> &'static Schema {
        &graph().types[self.0 as usize]
    }
}

/// What a protobuf number of a message is.
#[derive(Debug, Clone)]
pub(crate) enum Wire {
    Field(&'static str),
    /// A struct whose fields are the owner's in JSON.
    Inline(Ref),
}

impl Type {
    /// The object type this is, or a list or map of.
    pub fn object(&self) -> Option<&'static Schema> {
        match self {
            Type::Object(of) => Some(of.schema()),
            Type::List { of, .. } | Type::Map(of) => of.object(),
            _ => None,
        }
    }

    /// The type of a list's items or a map's values.
    pub fn items(&self) -> Option<&Type> {
        match self {
            Type::List { of, .. } | Type::Map(of) => Some(of),
            _ => None,
        }
    }
}

impl Schema {
    /// The field's type, by a path of JSON names; lists and maps are passed through without an index.
    pub fn at(&self, path: &[&str]) -> Option<&Field> {
        let (first, rest) = path.split_first()?;
        let field = self.fields.get(*first)?;
        if rest.is_empty() { Some(field) } else { field.ty.object()?.at(rest) }
    }
}

/// The type of a built-in kind. The kinds of `meta/v1` that serve every group (`DeleteOptions`, `Status` …) are found under any.
pub fn for_kind(group: &str, version: &str, kind: &str) -> Option<&'static Schema> {
    // The keys live longer than what is asked for: a shorter borrow lets them be compared.
    let kinds: &BTreeMap<(&str, &str, &str), Ref> = &graph().kinds;
    kinds.get(&(group, version, kind)).map(|r| r.schema()).or_else(|| {
        let shared = kinds.get(&("", "v1", kind))?.schema();
        shared.name.starts_with("io.k8s.apimachinery.").then_some(shared)
    })
}

/// The type of a kind given as `apiVersion` and `kind` are: `apps/v1`, `Deployment`.
pub fn for_api_version(api_version: &str, kind: &str) -> Option<&'static Schema> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    for_kind(group, version, kind)
}

/// A type by its OpenAPI name: `io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta`.
pub fn named(name: &str) -> Option<&'static Schema> {
    graph().types.iter().find(|t| t.name == name)
}

/// `metadata` of every kind.
pub fn object_meta() -> Option<&'static Schema> {
    named("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
}

/// Every type there is.
pub fn all() -> impl Iterator<Item = &'static Schema> {
    graph().types.iter()
}

struct Graph {
    types: Vec<Schema>,
    kinds: BTreeMap<(&'static str, &'static str, &'static str), Ref>,
}

fn graph() -> &'static Graph {
    static GRAPH: OnceLock<Graph> = OnceLock::new();
    GRAPH.get_or_init(|| parse(FACTS))
}

/// The lines of one `type` in the facts.
struct Block {
    name: &'static str,
    marks: Vec<&'static str>,
    lines: Vec<Vec<&'static str>>,
}

fn blocks(facts: &'static str) -> (Vec<Block>, BTreeMap<&'static str, &'static str>) {
    let (mut blocks, mut packages) = (Vec::new(), BTreeMap::new());
    for line in facts.lines().filter(|l| !l.starts_with('#')) {
        let mut words = line.split_whitespace();
        match (line.starts_with(' '), words.next()) {
            (true, Some(first)) => {
                if let Some(block) = blocks.last_mut() {
                    let block: &mut Block = block;
                    block.lines.push(std::iter::once(first).chain(words).collect());
                }
            }
            (false, Some("type")) => {
                blocks.push(Block { name: words.next().unwrap_or_default(), marks: words.collect(), lines: Vec::new() });
            }
            (false, Some("package")) => {
                packages.insert(words.next().unwrap_or_default(), words.next().unwrap_or_default());
            }
            _ => {}
        }
    }
    (blocks, packages)
}

/// The facts are our own and part of the binary; a test reads every line of them, so unknown words are not expected here.
fn parse(facts: &'static str) -> Graph {
    let (blocks, packages) = blocks(facts);
    let ids: BTreeMap<&str, Ref> = blocks.iter().enumerate().map(|(i, b)| (b.name, Ref(i as u32))).collect();
    let by_id = |r: Ref| &blocks[r.0 as usize];
    let mut types = Vec::with_capacity(blocks.len());
    let mut kinds = BTreeMap::new();
    for (i, block) in blocks.iter().enumerate() {
        let (package, short) = block.name.rsplit_once('.').unwrap_or(("", block.name));
        let mut schema = Schema {
            name: format!("{}.{short}", packages.get(package).copied().unwrap_or(package)),
            kinds: block.marks.iter().filter_map(|m| m.strip_prefix("kind=")).filter_map(gvk).collect(),
            atomic: block.marks.contains(&"atomic"),
            fields: BTreeMap::new(),
            wire: BTreeMap::new(),
        };
        for k in &schema.kinds {
            kinds.insert((k.group, k.version, k.kind), Ref(i as u32));
        }
        flatten(block, &ids, &by_id, &mut schema.fields);
        for words in &block.lines {
            let inline = words[0] == "~";
            let number = words[1].parse().unwrap_or(0);
            if number != 0 {
                let wire = if inline { ids.get(words[2]).map(|r| Wire::Inline(*r)) } else { Some(Wire::Field(words[0])) };
                schema.wire.extend(wire.map(|w| (number, w)));
            }
        }
        types.push(schema);
    }
    Graph { types, kinds }
}

/// The fields of a block, those of inlined blocks among them.
fn flatten<'b>(block: &Block, ids: &BTreeMap<&str, Ref>, by_id: &dyn Fn(Ref) -> &'b Block, into: &mut BTreeMap<&'static str, Field>) {
    for words in &block.lines {
        if words[0] == "~" {
            if let Some(inner) = ids.get(words[2]) {
                flatten(by_id(*inner), ids, by_id, into);
            }
        } else {
            into.insert(words[0], field(words, ids));
        }
    }
}

/// `v1/Pod` or `apps/v1/Deployment`.
fn gvk(text: &'static str) -> Option<Gvk> {
    let (api_version, kind) = text.rsplit_once('/')?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    Some(Gvk { group, version, kind })
}

fn field(words: &[&'static str], ids: &BTreeMap<&str, Ref>) -> Field {
    let (name, marks) = (words[0], &words[3..]);
    let valued = |key: &str| marks.iter().find_map(|m| m.strip_prefix(key)?.strip_prefix('='));
    let strategy: Vec<&str> = valued("strategy").unwrap_or("").split(',').collect();
    let list = match valued("list") {
        Some("set") => ListType::Set,
        Some("map") => ListType::Map(valued("keys").unwrap_or("").split(',').collect()),
        _ => ListType::Atomic,
    };
    Field {
        name,
        ty: type_of(words[2], ids),
        required: marks.contains(&"required"),
        pointer: marks.contains(&"ptr"),
        keep_empty: marks.contains(&"keep"),
        list,
        atomic: marks.contains(&"atomic"),
        patch_merge: strategy.contains(&"merge"),
        patch_retain_keys: strategy.contains(&"retainKeys"),
        patch_merge_key: valued("merge"),
        default: valued("default").and_then(|d| serde_json::from_str(d).ok()),
    }
}

fn type_of(code: &str, ids: &BTreeMap<&str, Ref>) -> Type {
    if let Some(of) = code.strip_prefix('[') {
        return Type::List { of: Box::new(type_of(of, ids)), wrapped: false };
    }
    if let Some(of) = code.strip_prefix('<') {
        return Type::List { of: Box::new(type_of(of, ids)), wrapped: true };
    }
    if let Some(of) = code.strip_prefix('{') {
        return Type::Map(Box::new(type_of(of, ids)));
    }
    match code {
        "string" => Type::String,
        "bool" => Type::Bool,
        "int32" => Type::Int32,
        "int64" => Type::Int64,
        "float" => Type::Float,
        "bytes" => Type::Bytes,
        "quantity" => Type::Quantity,
        "time" => Type::Time,
        "micro-time" => Type::MicroTime,
        "duration" => Type::Duration,
        "int-or-string" => Type::IntOrString,
        "raw" => Type::Raw,
        other => ids.get(other).map_or(Type::Any, |r| Type::Object(*r)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_facts_is_understood() {
        let (blocks, packages) = blocks(FACTS);
        let ids: BTreeMap<&str, Ref> = blocks.iter().enumerate().map(|(i, b)| (b.name, Ref(i as u32))).collect();
        assert_eq!(ids.len(), blocks.len(), "two types of one name");
        for block in &blocks {
            assert!(packages.contains_key(block.name.rsplit_once('.').unwrap().0), "{}", block.name);
            assert!(
                block.marks.iter().all(|m| *m == "atomic" || m.strip_prefix("kind=").is_some_and(|k| gvk(k).is_some())),
                "{}",
                block.name
            );
            for words in &block.lines {
                let at = format!("{}: {words:?}", block.name);
                assert!(words.len() >= 3 && words[1].parse::<u32>().is_ok(), "{at}");
                let code = words[2].trim_start_matches(['[', '<', '{']);
                assert!(code == "any" || type_of(code, &ids) != Type::Any, "{at}");
                for mark in &words[3..] {
                    let word = mark.split('=').next().unwrap();
                    assert!(["ptr", "required", "keep", "atomic", "list", "keys", "strategy", "merge", "default"].contains(&word), "{at}");
                }
            }
        }
    }

    #[test]
    fn kinds_are_found_with_what_merging_needs() {
        let deployment = for_kind("apps", "v1", "Deployment").unwrap();
        assert_eq!(deployment.name, "io.k8s.api.apps.v1.Deployment");
        let at = |path: &str| deployment.at(&path.split('.').collect::<Vec<_>>()).unwrap();
        let containers = at("spec.template.spec.containers");
        assert_eq!(containers.list, ListType::Map(vec!["name"]));
        assert!(containers.required && containers.patch_merge);
        assert_eq!(containers.patch_merge_key, Some("name"));
        let ports = at("spec.template.spec.containers.ports");
        assert_eq!(ports.list, ListType::Map(vec!["containerPort", "protocol"]));
        assert_eq!(ports.patch_merge_key, Some("containerPort"));
        assert_eq!(at("spec.template.spec.containers.ports.protocol").default, Some("TCP".into()));
        assert!(at("spec.replicas").pointer);
        assert!(at("spec.strategy").patch_retain_keys && !at("spec.strategy").patch_merge);
        let volumes = at("spec.template.spec.volumes");
        assert!(volumes.patch_merge && volumes.patch_retain_keys);
        assert_eq!(at("metadata.finalizers").list, ListType::Set);
        assert_eq!(at("spec.template.spec.nodeSelector").ty, Type::Map(Box::new(Type::String)));
        assert!(at("spec.template.spec.nodeSelector").atomic);
        assert!(at("spec.selector").ty.object().unwrap().atomic);
        assert!(deployment.at(&["spec", "template", "spec", "volumes", "configMap"]).is_some(), "inlined structs are flat");
        assert_eq!(at("spec.template.spec.containers.resources.limits").ty, Type::Map(Box::new(Type::Quantity)));
    }

    #[test]
    fn shared_kinds_are_found_in_every_group() {
        assert!(for_kind("apps", "v1", "DeleteOptions").is_some());
        assert!(for_kind("", "v1", "Status").is_some());
        assert!(for_kind("apps", "v1", "Pod").is_none());
        assert!(for_api_version("autoscaling/v1", "Scale").is_some());
        assert!(for_api_version("v1", "Pod").is_some());
        for (api_version, kind) in [
            ("authentication.k8s.io/v1", "TokenRequest"),
            ("authorization.k8s.io/v1", "SelfSubjectAccessReview"),
            ("policy/v1", "Eviction"),
            ("v1", "Binding"),
            ("discovery.k8s.io/v1", "EndpointSlice"),
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        ] {
            assert!(for_api_version(api_version, kind).is_some(), "{kind}");
        }
    }
}
