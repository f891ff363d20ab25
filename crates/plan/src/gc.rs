//! Garbage collection by owner: dangling dependents, background, foreground and orphaning deletion.
//!
//! Knows metadata only. Does not know whether an owner that it has never seen exists: it asks ([`Question`]), and whoever
//! plans looks the owner up and plans again.
//!
//! Source: upstream's garbage collector and its `blockOwnerDeletion` rules.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use crate::limits::ABSENT_OWNERS_MAX;
use crate::{Action, Kind, Plan, Propagation, Target};

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// One object, as far as its deletion goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub target: Target,
    pub resource_version: String,
    pub owners: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
    pub deleting: bool,
}

impl Item {
    fn waits_for_dependents(&self) -> bool {
        self.deleting && self.has(FOREGROUND)
    }

    fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|f| f == finalizer)
    }
}

/// An owner named in a reference but not known: does it exist (with this uid, in this namespace or without one)?
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    pub owner: OwnerReference,
    /// The dependent's namespace, which is the owner's if its kind has one.
    pub namespace: String,
}

/// Who owns whom, over all kinds.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    items: BTreeMap<String, Item>,
    dependents: BTreeMap<String, BTreeSet<String>>,
    /// Owners that were looked for and not found, by uid and the namespace looked in.
    absent: BTreeSet<(String, String)>,
}

impl Graph {
    /// Takes in an object as it is now. Returns the uids that may have something to do because of it.
    pub fn set(&mut self, item: Item) -> BTreeSet<String> {
        let uid = item.target.uid.clone();
        let mut touched: BTreeSet<String> = [uid.clone()].into();
        let before = self.items.get(&uid);
        let left: Vec<String> =
            before.iter().flat_map(|b| &b.owners).map(|o| o.uid.clone()).filter(|o| !item.owners.iter().any(|n| n.uid == *o)).collect();
        if item.waits_for_dependents() && !before.is_some_and(Item::waits_for_dependents) {
            touched.extend(self.dependents_of(&uid).map(|d| d.target.uid.clone()));
        }
        for owner in left {
            self.unlink(&owner, &uid);
            touched.insert(owner);
        }
        for owner in &item.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            // An owner that waits may wait for one more.
            if self.items.get(&owner.uid).is_some_and(Item::waits_for_dependents) {
                touched.insert(owner.uid.clone());
            }
        }
        self.items.insert(uid, item);
        touched
    }

    /// Forgets an object that is gone. Returns its dependents, and the owners that may have waited for it.
    pub fn remove(&mut self, uid: &str) -> BTreeSet<String> {
        let Some(item) = self.items.remove(uid) else { return BTreeSet::new() };
        let mut touched: BTreeSet<String> = self.dependents.get(uid).cloned().unwrap_or_default();
        for namespace in [item.target.namespace.clone(), String::new()] {
            self.note_absent(uid, &namespace);
        }
        for dependent in self.dependents.get(uid).into_iter().flatten().cloned().collect::<Vec<_>>() {
            if let Some(d) = self.items.get(&dependent) {
                let namespace = d.target.namespace.clone();
                self.note_absent(uid, &namespace);
            }
        }
        for owner in item.owners {
            self.unlink(&owner.uid, uid);
            touched.insert(owner.uid);
        }
        touched
    }

    /// Answers a [`Question`] with no.
    pub fn note_absent(&mut self, uid: &str, namespace: &str) {
        if self.absent.len() >= ABSENT_OWNERS_MAX {
            self.absent.clear();
        }
        self.absent.insert((uid.into(), namespace.into()));
    }

    pub fn get(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }

    pub fn dependents_of(&self, uid: &str) -> impl Iterator<Item = &Item> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|d| self.items.get(d))
    }

    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.values()
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(set) = self.dependents.get_mut(owner) {
            set.remove(dependent);
            if set.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    /// The owner, if it is where its kind and the dependent's namespace say.
    fn owner(&self, reference: &OwnerReference, dependent: &Item) -> Option<&Item> {
        self.items.get(&reference.uid).filter(|o| {
            let placed = o.target.namespace.is_empty() || o.target.namespace == dependent.target.namespace;
            placed && o.target.kind.kind == reference.kind && o.target.name == reference.name
        })
    }
}

/// What the collector does about one object, or what it must know before it can tell.
pub fn plan(graph: &Graph, uid: &str) -> (Plan, Vec<Question>) {
    let mut plan = Plan::none();
    let Some(item) = graph.get(uid) else { return (plan, Vec::new()) };
    if item.deleting {
        if item.has(ORPHAN) {
            plan.wave(graph.dependents_of(uid).map(|d| without_owners(d, &[uid]))).wave([without_finalizer(item, ORPHAN)]);
        } else if item.has(FOREGROUND) && !graph.dependents_of(uid).any(|d| blocks(d, uid)) {
            plan.wave([without_finalizer(item, FOREGROUND)]);
        }
        return (plan, Vec::new());
    }
    let (mut solid, mut leaving, mut waiting, mut questions) = (false, Vec::new(), false, Vec::new());
    for reference in &item.owners {
        match graph.owner(reference, item) {
            Some(owner) if owner.waits_for_dependents() && reference.block_owner_deletion == Some(true) => {
                waiting = true;
                leaving.push(reference.uid.as_str());
            }
            Some(_) => solid = true,
            None if graph.absent.contains(&(reference.uid.clone(), item.target.namespace.clone())) => leaving.push(reference.uid.as_str()),
            None => questions.push(Question { owner: reference.clone(), namespace: item.target.namespace.clone() }),
        }
    }
    if leaving.is_empty() && questions.is_empty() {
        return (plan, questions);
    }
    if solid {
        if !leaving.is_empty() {
            plan.wave([without_owners(item, &leaving)]);
        }
    } else if questions.is_empty() {
        plan.wave([delete(graph, item, waiting)]);
    }
    (plan, questions)
}

/// Whether the owner's foreground deletion waits for this dependent.
fn blocks(dependent: &Item, owner: &str) -> bool {
    dependent.owners.iter().any(|o| o.uid == owner && o.block_owner_deletion == Some(true))
}

fn delete(graph: &Graph, item: &Item, waiting: bool) -> Action {
    let propagation = if waiting && graph.dependents_of(&item.target.uid).next().is_some() {
        // The owner waits for us; so we wait for ours.
        Propagation::Foreground
    } else if item.has(ORPHAN) {
        Propagation::Orphan
    } else if item.has(FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    Action::Delete {
        target: item.target.clone(),
        resource_version: Some(item.resource_version.clone()),
        propagation: Some(propagation),
        grace_seconds: None,
    }
}

fn without_owners(item: &Item, gone: &[&str]) -> Action {
    let kept: Vec<&OwnerReference> = item.owners.iter().filter(|o| !gone.contains(&o.uid.as_str())).collect();
    patch(item, json!({"ownerReferences": if kept.is_empty() { json!(null) } else { json!(kept) }}))
}

fn without_finalizer(item: &Item, finalizer: &str) -> Action {
    let kept: Vec<&String> = item.finalizers.iter().filter(|f| *f != finalizer).collect();
    patch(item, json!({"finalizers": if kept.is_empty() { json!(null) } else { json!(kept) }}))
}

fn patch(item: &Item, mut metadata: serde_json::Value) -> Action {
    metadata["uid"] = json!(item.target.uid);
    metadata["resourceVersion"] = json!(item.resource_version);
    Action::Patch { target: item.target.clone(), subresource: None, patch: json!({ "metadata": metadata }) }
}

/// The kind as a reference in an [`OwnerReference`] names it, its plural looked up by the caller.
pub fn kind_of(reference: &OwnerReference, plural: &str, namespaced: bool) -> Kind {
    let (group, version) = reference.api_version.rsplit_once('/').unwrap_or(("", &reference.api_version));
    Kind {
        group: group.to_string().into(),
        version: version.to_string().into(),
        kind: reference.kind.clone().into(),
        plural: plural.to_string().into(),
        namespaced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(uid: &str, owners: &[(&str, bool)], edit: impl Fn(&mut Item)) -> Item {
        let owner = |(uid, block): &(&str, bool)| OwnerReference {
            api_version: "v1".into(),
            kind: "Thing".into(),
            name: uid.to_string(),
            uid: uid.to_string(),
            block_owner_deletion: Some(*block),
            controller: None,
        };
        let kind = Kind { group: "".into(), version: "v1".into(), kind: "Thing".into(), plural: "things".into(), namespaced: true };
        let target = Target { kind, namespace: "default".into(), name: uid.into(), uid: uid.into() };
        let mut item =
            Item { target, resource_version: "5".into(), owners: owners.iter().map(owner).collect(), finalizers: vec![], deleting: false };
        edit(&mut item);
        item
    }

    fn graph(items: Vec<Item>) -> Graph {
        let mut g = Graph::default();
        items.into_iter().for_each(|i| drop(g.set(i)));
        g
    }

    fn first(g: &Graph, uid: &str) -> Option<Action> {
        plan(g, uid).0.actions().next().cloned()
    }

    #[test]
    fn a_dependent_goes_when_all_its_owners_are_gone() {
        let mut g = graph(vec![item("a", &[], |_| {}), item("b", &[], |_| {}), item("c", &[("a", false), ("b", false)], |_| {})]);
        assert_eq!(first(&g, "c"), None);
        assert!(g.remove("a").contains("c"));
        let Some(Action::Patch { patch, .. }) = first(&g, "c") else { panic!() };
        assert_eq!(patch["metadata"]["ownerReferences"].as_array().unwrap().len(), 1);
        g.remove("b");
        let Some(Action::Delete { resource_version, propagation, .. }) = first(&g, "c") else { panic!() };
        assert_eq!((resource_version.as_deref(), propagation), (Some("5"), Some(Propagation::Background)));
    }

    #[test]
    fn an_unknown_owner_is_asked_for_and_never_guessed() {
        let mut g = graph(vec![item("c", &[("x", false)], |_| {})]);
        let (made, questions) = plan(&g, "c");
        assert!(made.is_empty());
        assert_eq!(questions[0].owner.uid, "x");
        g.note_absent("x", "default");
        assert!(matches!(first(&g, "c"), Some(Action::Delete { .. })));
    }

    #[test]
    fn an_owner_of_another_namespace_is_no_owner() {
        let g = graph(vec![item("a", &[], |i| i.target.namespace = "other".into()), item("c", &[("a", false)], |_| {})]);
        assert_eq!(plan(&g, "c").1.len(), 1);
    }

    #[test]
    fn foreground_deletion_waits_for_those_who_block_it() {
        let foreground = |i: &mut Item| {
            i.deleting = true;
            i.finalizers = vec![FOREGROUND.into()];
        };
        let mut g = graph(vec![
            item("a", &[], |_| {}),
            item("b", &[("a", true)], |_| {}),
            item("c", &[("b", true)], |_| {}),
            item("d", &[("a", false)], |_| {}),
        ]);
        let touched = g.set(item("a", &[], foreground));
        assert!(touched.contains("a") && touched.contains("b"));
        assert_eq!(first(&g, "a"), None, "b blocks");
        assert!(matches!(first(&g, "b"), Some(Action::Delete { propagation: Some(Propagation::Foreground), .. })));
        assert_eq!(first(&g, "d"), None, "does not block, goes afterwards");
        g.set(item("b", &[("a", true)], foreground));
        assert!(matches!(first(&g, "c"), Some(Action::Delete { propagation: Some(Propagation::Background), .. })));
        assert!(g.remove("c").contains("b"));
        let Some(Action::Patch { patch, .. }) = first(&g, "b") else { panic!() };
        assert!(patch["metadata"]["finalizers"].is_null());
        assert!(g.remove("b").contains("a"));
        assert!(matches!(first(&g, "a"), Some(Action::Patch { .. })));
        g.remove("a");
        assert!(matches!(first(&g, "d"), Some(Action::Delete { .. })));
    }

    #[test]
    fn orphaning_frees_the_dependents_first() {
        let g = graph(vec![
            item("a", &[], |i| {
                i.deleting = true;
                i.finalizers = vec!["mine".into(), ORPHAN.into()];
            }),
            item("b", &[("a", true)], |_| {}),
        ]);
        let (made, _) = plan(&g, "a");
        assert_eq!(made.waves.len(), 2);
        let Action::Patch { target, patch, .. } = &made.waves[0][0].action else { panic!() };
        assert!(target.name == "b" && patch["metadata"]["ownerReferences"].is_null());
        let Action::Patch { patch, .. } = &made.waves[1][0].action else { panic!() };
        assert_eq!(patch["metadata"]["finalizers"], json!(["mine"]));
    }

    #[test]
    fn what_is_deleted_in_the_background_is_left_to_its_deletion() {
        let g = graph(vec![item("a", &[], |i| i.deleting = true), item("b", &[("a", true)], |_| {})]);
        assert_eq!((first(&g, "a"), first(&g, "b")), (None, None));
    }
}
