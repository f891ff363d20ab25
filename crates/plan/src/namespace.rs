//! Deleting a namespace: first what is in it, then itself.
//!
//! Knows how many objects of each kind are left. Does not know how they are counted.
//! Source: upstream's namespaced resources deleter and its conditions.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};

use crate::conditions::{self, Condition};
use crate::{Action, Cx, Kind, Plan, Reason, Target, objects};

/// The finalizer in `spec.finalizers` that is ours to remove.
pub const FINALIZER: &str = "kubernetes";

/// What is left of one kind in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub kind: Kind,
    /// All of them, and those whose deletion nobody asked for yet.
    pub total: usize,
    pub alive: usize,
    /// Finalizers that hold deletions up, by how many objects.
    pub finalizers: BTreeMap<String, usize>,
}

pub struct Snapshot<'a> {
    pub namespace: &'a Namespace,
    /// Kinds of which something is left.
    pub content: &'a [Content],
    /// The content was counted at the API itself, after the namespace was marked: only then does "nothing left" count.
    pub verified: bool,
}

pub fn plan(s: &Snapshot, cx: &Cx) -> (Plan, Vec<Reason>) {
    let mut plan = Plan::none();
    if !objects::deleting(s.namespace) {
        return (plan, Vec::new());
    }
    if s.content.is_empty() {
        let ours = |f: &String| f == FINALIZER;
        let finalizers = s.namespace.spec.as_ref().and_then(|x| x.finalizers.clone()).unwrap_or_default();
        if s.verified && finalizers.iter().any(ours) {
            let mut wanted = s.namespace.clone();
            wanted.spec.get_or_insert_default().finalizers = Some(finalizers.into_iter().filter(|f| !ours(f)).collect());
            if let Ok(object) = serde_json::to_value(&wanted) {
                plan.wave([Action::Finalize { target: Target::of(s.namespace), object }]);
            }
        }
        return (plan, Vec::new());
    }
    let name = objects::name(s.namespace);
    plan.wave(s.content.iter().filter(|c| c.alive > 0).map(|c| Action::DeleteCollection { kind: c.kind.clone(), namespace: name.into() }));
    let mut wanted = s.namespace.clone();
    let status = wanted.status.get_or_insert_default();
    status.phase = Some("Terminating".into());
    for (kind, status_word, reason, message) in told(s.content) {
        let new = NamespaceCondition::make(kind, status_word, reason, &message, cx.now);
        if conditions::find(&status.conditions, kind).is_none_or(|c| c.status() != status_word || c.message() != message) {
            conditions::set(&mut status.conditions, new);
        }
    }
    plan.wave(Action::patch(s.namespace, &wanted, Some("status")));
    (plan, Vec::new())
}

/// The conditions in upstream's words.
fn told(content: &[Content]) -> Vec<(&'static str, &'static str, &'static str, String)> {
    let left: Vec<String> = content
        .iter()
        .map(|c| {
            let group = if c.kind.group.is_empty() { String::new() } else { c.kind.group.to_string() };
            format!("{}.{group} has {} resource instances", c.kind.plural, c.total)
        })
        .collect();
    let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, n) in content.iter().flat_map(|c| &c.finalizers) {
        *finalizers.entry(name).or_default() += n;
    }
    let held: Vec<String> = finalizers.iter().map(|(f, n)| format!("{f} in {n} resource instances")).collect();
    vec![
        ("NamespaceDeletionDiscoveryFailure", "False", "ResourcesDiscovered", "All resources successfully discovered".into()),
        ("NamespaceDeletionGroupVersionParsingFailure", "False", "ParsedGroupVersions", "All legacy kube types successfully parsed".into()),
        (
            "NamespaceDeletionContentFailure",
            "False",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization".into(),
        ),
        ("NamespaceContentRemaining", "True", "SomeResourcesRemain", format!("Some resources are remaining: {}", left.join(", "))),
        if held.is_empty() {
            ("NamespaceFinalizersRemaining", "False", "ContentHasNoFinalizers", "All content-preserving finalizers finished".into())
        } else {
            let message = format!("Some content in the namespace has finalizers remaining: {}", held.join(", "));
            ("NamespaceFinalizersRemaining", "True", "SomeFinalizersRemain", message)
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Ids;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    #[test]
    fn content_first_then_the_finalizer_and_only_when_counted_at_the_source() {
        let cx = Cx { now: base::Timestamp::UNIX_EPOCH, ids: Ids::seeded(1) };
        let mut ns: Namespace = serde_json::from_value(
            json!({"metadata": {"name": "shop", "uid": "n", "resourceVersion": "1"}, "spec": {"finalizers": ["kubernetes"]}}),
        )
        .unwrap();
        let run = |ns: &Namespace, content: &[Content], verified| plan(&Snapshot { namespace: ns, content, verified }, &cx).0;
        assert!(run(&ns, &[], true).is_empty(), "not deleted");
        ns.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(cx.now));

        let pods = Content { kind: Kind::of::<Pod>(), total: 3, alive: 1, finalizers: [("x/y".to_string(), 2)].into() };
        let made = run(&ns, std::slice::from_ref(&pods), false);
        assert!(matches!(&made.waves[0][0].action, Action::DeleteCollection { namespace, .. } if namespace == "shop"));
        let Action::Patch { patch, .. } = &made.waves[1][0].action else { panic!() };
        let text = patch.to_string();
        assert!(text.contains("Some resources are remaining: pods. has 3 resource instances"), "{text}");
        assert!(text.contains("finalizers remaining: x/y in 2 resource instances"), "{text}");
        let going = run(&ns, &[Content { alive: 0, ..pods }], false);
        assert!(!going.actions().any(|a| matches!(a, Action::DeleteCollection { .. })), "asked once");

        assert!(run(&ns, &[], false).is_empty());
        let made = run(&ns, &[], true);
        let Some(Action::Finalize { object, .. }) = made.actions().next() else { panic!() };
        assert_eq!(object["spec"]["finalizers"], json!([]));
    }
}
