//! Role-based access control: who may do what, from the Role and Binding objects in the cache.
//!
//! The index is built from snapshots and only where objects changed; a request parses nothing. Source: Kubernetes'
//! "Using RBAC Authorization", `k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use api::{Status, Value};
use arc_swap::ArcSwap;
use ports::{Attributes, Authorizer, Identity};
use store::cache::Watcher;

use crate::state::State;

pub const GROUP: &str = "rbac.authorization.k8s.io";
/// Members may do everything: the way in when roles are broken.
pub const MASTERS: &str = "system:masters";

/// One `PolicyRule`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    pub names: Vec<String>,
    pub urls: Vec<String>,
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter().filter_map(|v| v.as_str()).map(String::from).collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|l| l == "*" || l == wanted)
}

impl Rule {
    pub fn of(value: &Value) -> Rule {
        Rule {
            verbs: strings(&value["verbs"]),
            groups: strings(&value["apiGroups"]),
            resources: strings(&value["resources"]),
            names: strings(&value["resourceNames"]),
            urls: strings(&value["nonResourceURLs"]),
        }
    }

    fn all_of(role: &Value) -> Vec<Rule> {
        role["rules"].as_array().map(Vec::as_slice).unwrap_or_default().iter().map(Rule::of).collect()
    }

    pub fn allows(&self, what: &Attributes) -> bool {
        if !has(&self.verbs, &what.verb) {
            return false;
        }
        if !what.path.is_empty() {
            return self.urls.iter().any(|url| url_matches(url, &what.path));
        }
        has(&self.groups, &what.group)
            && self.allows_resource(&what.resource, &what.subresource)
            && (self.names.is_empty() || self.names.contains(&what.name))
    }

    fn allows_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|r| match r.split_once('/') {
            None if r == "*" => true,
            None => subresource.is_empty() && r == resource,
            Some(("*", sub)) => sub == subresource && !subresource.is_empty(),
            Some((res, sub)) => res == resource && sub == subresource,
        })
    }

    /// Whether this rule alone grants what `asked` (a rule of single items) grants.
    fn covers(&self, asked: &Rule) -> bool {
        let within = |have: &[String], want: &[String]| want.iter().all(|w| has(have, w));
        if !asked.urls.is_empty() {
            return within(&self.verbs, &asked.verbs) && asked.urls.iter().all(|a| self.urls.iter().any(|url| url_matches(url, a)));
        }
        let resources = asked.resources.iter().all(|a| {
            let (resource, sub) = a.split_once('/').unwrap_or((a, ""));
            has(&self.resources, a) || self.allows_resource(resource, sub)
        });
        let names = self.names.is_empty() || (!asked.names.is_empty() && asked.names.iter().all(|n| self.names.contains(n)));
        within(&self.verbs, &asked.verbs) && within(&self.groups, &asked.groups) && resources && names
    }

    /// The single grants that this rule consists of.
    fn pieces(&self) -> Vec<Rule> {
        let mut pieces = Vec::new();
        let one = |s: &String| vec![s.clone()];
        for verb in &self.verbs {
            for url in &self.urls {
                pieces.push(Rule { verbs: one(verb), urls: one(url), ..Rule::default() });
            }
            for group in &self.groups {
                for resource in &self.resources {
                    let piece = Rule { verbs: one(verb), groups: one(group), resources: one(resource), ..Rule::default() };
                    if self.names.is_empty() {
                        pieces.push(piece);
                        continue;
                    }
                    pieces.extend(self.names.iter().map(|name| Rule { names: one(name), ..piece.clone() }));
                }
            }
        }
        pieces
    }

    fn display(&self) -> String {
        let lists = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.names),
            ("NonResourceURLs", &self.urls),
            ("Verbs", &self.verbs),
        ];
        let shown: Vec<String> = lists.iter().filter(|(_, l)| !l.is_empty()).map(|(n, l)| format!("{n}:{l:?}")).collect();
        format!("{{{}}}", shown.join(", "))
    }

    pub fn to_value(&self) -> Value {
        let mut out = serde_json::json!({ "verbs": self.verbs });
        for (key, list) in
            [("apiGroups", &self.groups), ("resources", &self.resources), ("resourceNames", &self.names), ("nonResourceURLs", &self.urls)]
        {
            if !list.is_empty() {
                out[key] = serde_json::json!(list);
            }
        }
        out
    }
}

fn anything() -> Vec<Rule> {
    let all = || vec!["*".to_string()];
    let resources = Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() };
    vec![resources, Rule { verbs: all(), urls: all(), ..Rule::default() }]
}

fn url_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

/// `User:name` or `Group:name`.
type Subject = String;
type Rules = Arc<[Rule]>;

/// What every subject was given.
#[derive(Default)]
struct Index {
    everywhere: BTreeMap<Subject, Vec<Rules>>,
    /// By namespace.
    within: BTreeMap<String, BTreeMap<Subject, Vec<Rules>>>,
    cluster_roles: BTreeMap<String, Rules>,
    roles: BTreeMap<(String, String), Rules>,
}

/// A parsed object and the revision it was parsed at.
type Parsed = BTreeMap<String, (u64, Arc<Value>)>;

/// What the index was built from, and the means to see that it is out of date.
#[derive(Default)]
struct Source {
    parsed: Parsed,
    /// One a kind; empty: read everything.
    watchers: Vec<Watcher>,
}

pub struct Rbac {
    state: Arc<State>,
    source: Mutex<Source>,
    /// The store's revision that the index was last compared with.
    seen: AtomicU64,
    index: ArcSwap<Index>,
}

impl Rbac {
    pub fn new(state: Arc<State>) -> Rbac {
        Rbac { state, source: Mutex::default(), seen: AtomicU64::new(u64::MAX), index: ArcSwap::default() }
    }

    /// The index of the newest snapshot. Most questions find that nothing changed at all, the others that no role did.
    fn index(&self) -> Arc<Index> {
        let revision = self.state.cache.revision();
        if self.seen.load(Ordering::Acquire) != revision {
            let mut source = self.source.lock().unwrap_or_else(|e| e.into_inner());
            if self.seen.load(Ordering::Acquire) != revision {
                if self.changed(&mut source) {
                    self.rebuild(&mut source);
                }
                self.seen.store(revision, Ordering::Release);
            }
        }
        self.index.load_full()
    }

    /// Whether a role or binding changed since the last time. A watcher that fell behind is an "I do not know": yes.
    fn changed(&self, source: &mut Source) -> bool {
        let quiet = !source.watchers.is_empty() && source.watchers.iter_mut().all(|w| w.take().is_ok_and(|changes| changes.is_empty()));
        !quiet
    }

    fn rebuild(&self, source: &mut MutexGuard<'_, Source>) {
        let kinds = ["clusterrolebindings", "clusterroles", "rolebindings", "roles"];
        // Watched from before the snapshot that is read: a change in between is seen twice, never missed.
        let from = self.state.cache.revision();
        source.watchers = kinds.iter().filter_map(|kind| self.state.cache.watch(&format!("{GROUP}/{kind}/"), from).ok()).collect();
        if source.watchers.len() < kinds.len() {
            source.watchers.clear();
        }
        let mut known = std::mem::take(&mut source.parsed);
        for object in self.state.list(&format!("{GROUP}/")) {
            let same = known.remove(&*object.key).filter(|(revision, _)| *revision == object.revision);
            let entry = same.or_else(|| Some((object.revision, Arc::new(serde_json::from_slice(&object.json()).ok()?))));
            if let Some(entry) = entry {
                source.parsed.insert(object.key.to_string(), entry);
            }
        }
        self.index.store(Arc::new(build(&source.parsed)));
    }

    /// All rules that hold for `who` in a namespace (or everywhere, when it is empty).
    pub fn rules_of(&self, who: &Identity, namespace: &str) -> Vec<Rule> {
        let index = self.index();
        if who.groups.iter().any(|g| g == MASTERS) {
            return anything();
        }
        index.rules(who, namespace).flat_map(|r| r.iter().cloned()).collect()
    }

    /// Whether `who` holds all of `asked`; the message of what is missing otherwise.
    fn holds(&self, who: &Identity, namespace: &str, asked: &[Rule]) -> Result<(), String> {
        let held = self.rules_of(who, namespace);
        let missing: Vec<Rule> = asked.iter().flat_map(Rule::pieces).filter(|piece| !held.iter().any(|rule| rule.covers(piece))).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let mut lines: Vec<String> = missing.iter().map(Rule::display).collect();
        lines.dedup();
        let groups = who.groups.iter().map(|g| format!("{g:?}")).collect::<Vec<_>>().join(" ");
        Err(format!(
            "user {:?} (groups=[{groups}]) is attempting to grant RBAC permissions not currently held:\n{}",
            who.username,
            lines.join("\n")
        ))
    }

    /// Nobody gives what they do not have: checked on every write of a role or binding.
    pub fn check_escalation(
        &self,
        who: &Identity,
        plural: &str,
        namespace: &str,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let gives = |v: &Value| ["rules", "aggregationRule", "subjects", "roleRef"].map(|field| v[field].clone());
        let unchanged = old.is_some_and(|old| gives(old) == gives(object));
        if unchanged || who.groups.iter().any(|g| g == MASTERS) {
            return Ok(());
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let may = |verb: &str, resource: &str, namespace: &str, name: &str| {
            let what = Attributes {
                verb: verb.into(),
                group: GROUP.into(),
                resource: resource.into(),
                namespace: namespace.into(),
                name: name.into(),
                ..Attributes::default()
            };
            self.authorize(who, &what).is_ok()
        };
        let asked: Rules = match plural {
            "roles" | "clusterroles" => {
                if may("escalate", plural, namespace, name) {
                    return Ok(());
                }
                // What a role will collect is not known yet: it may be anything.
                if object["aggregationRule"].is_object() { anything().into() } else { Rule::all_of(object).into() }
            }
            "rolebindings" | "clusterrolebindings" => {
                let role = object["roleRef"]["name"].as_str().unwrap_or_default();
                let cluster = object["roleRef"]["kind"] == "ClusterRole";
                let (resource, within) = if cluster { ("clusterroles", "") } else { ("roles", namespace) };
                if may("bind", resource, namespace, role) {
                    return Ok(());
                }
                let index = self.index();
                let found = if cluster { index.cluster_roles.get(role) } else { index.roles.get(&(within.to_string(), role.to_string())) };
                found.cloned().ok_or_else(|| Status::not_found(GROUP, resource, role))?
            }
            _ => return Ok(()),
        };
        self.holds(who, namespace, &asked).map_err(|why| Status::forbidden(GROUP, plural, name, &why))
    }
}

impl Index {
    fn rules<'a>(&'a self, who: &'a Identity, namespace: &str) -> impl Iterator<Item = &'a Rules> {
        let within = self.within.get(namespace).filter(|_| !namespace.is_empty());
        let subjects = std::iter::once(format!("User:{}", who.username)).chain(who.groups.iter().map(|g| format!("Group:{g}")));
        subjects.flat_map(move |s| {
            let here = within.and_then(|w| w.get(&s)).into_iter().flatten();
            self.everywhere.get(&s).into_iter().flatten().chain(here)
        })
    }
}

impl Authorizer for Rbac {
    fn authorize(&self, who: &Identity, what: &Attributes) -> Result<(), String> {
        if who.groups.iter().any(|g| g == MASTERS) {
            return Ok(());
        }
        let index = self.index();
        if index.rules(who, &what.namespace).any(|rules| rules.iter().any(|rule| rule.allows(what))) {
            return Ok(());
        }
        if !what.path.is_empty() {
            return Err(format!("User {:?} cannot {} path {:?}", who.username, what.verb, what.path));
        }
        let resource = if what.subresource.is_empty() { what.resource.clone() } else { format!("{}/{}", what.resource, what.subresource) };
        let place =
            if what.namespace.is_empty() { "at the cluster scope".to_string() } else { format!("in the namespace {:?}", what.namespace) };
        Err(format!("User {:?} cannot {} resource {resource:?} in API group {:?} {place}", who.username, what.verb, what.group))
    }
}

fn build(parsed: &Parsed) -> Index {
    let mut index = Index::default();
    let mut bindings = Vec::new();
    let mut aggregated = Vec::new();
    for (key, (_, object)) in parsed {
        let mut parts = key.splitn(4, '/').skip(1);
        let (plural, namespace, name) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        match plural {
            "clusterroles" => {
                if object["aggregationRule"].is_object() {
                    aggregated.push((name, object));
                }
                index.cluster_roles.insert(name.to_string(), Rule::all_of(object).into());
            }
            "roles" => {
                index.roles.insert((namespace.to_string(), name.to_string()), Rule::all_of(object).into());
            }
            _ => bindings.push((plural, namespace, object)),
        }
    }
    for (name, rules) in aggregated_rules(aggregated, parsed) {
        index.cluster_roles.insert(name, rules);
    }
    for (plural, namespace, binding) in bindings {
        let role = binding["roleRef"]["name"].as_str().unwrap_or_default().to_string();
        let rules = match binding["roleRef"]["kind"].as_str() {
            Some("ClusterRole") => index.cluster_roles.get(&role),
            Some("Role") if plural == "rolebindings" => index.roles.get(&(namespace.to_string(), role)),
            _ => None,
        };
        let Some(rules) = rules.cloned() else { continue };
        for subject in binding["subjects"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let name = subject["name"].as_str().unwrap_or_default();
            let subject = match subject["kind"].as_str() {
                Some("User") => format!("User:{name}"),
                Some("Group") => format!("Group:{name}"),
                Some("ServiceAccount") => {
                    let ns = subject["namespace"].as_str().filter(|ns| !ns.is_empty()).unwrap_or(namespace);
                    format!("User:system:serviceaccount:{ns}:{name}")
                }
                _ => continue,
            };
            let place =
                if plural == "clusterrolebindings" { &mut index.everywhere } else { index.within.entry(namespace.into()).or_default() };
            place.entry(subject).or_default().push(rules.clone());
        }
    }
    index
}

/// The rules of the roles that collect those of others. One may collect another (`admin` has `edit`, which has `view`).
fn aggregated_rules(roles: Vec<(&str, &Arc<Value>)>, parsed: &Parsed) -> Vec<(String, Rules)> {
    const DEPTH_MAX: usize = 3;
    let prefix = format!("{GROUP}/clusterroles/");
    let mut all: Vec<Value> = parsed.iter().filter(|(key, _)| key.starts_with(&prefix)).map(|(_, (_, role))| (**role).clone()).collect();
    for _ in 0..DEPTH_MAX {
        for i in 0..all.len() {
            if let Some(rules) = api::rbac::aggregate(&all[i], &all) {
                all[i]["rules"] = rules.into();
            }
        }
    }
    let of = |name: &str| all.iter().find(|r| r["metadata"]["name"] == name).map(Rule::all_of).unwrap_or_default();
    roles.into_iter().map(|(name, _)| (name.to_string(), of(name).into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(groups: &[&str], resources: &[&str], names: &[&str], verbs: &[&str]) -> Rule {
        Rule::of(&json!({ "apiGroups": groups, "resources": resources, "resourceNames": names, "verbs": verbs }))
    }

    fn ask(verb: &str, group: &str, resource: &str, name: &str) -> Attributes {
        let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: sub.into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn rules_allow_what_they_say() {
        let pods = rule(&[""], &["pods", "pods/log"], &[], &["get", "list"]);
        let one = rule(&[""], &["secrets"], &["a"], &["get"]);
        let scale = rule(&["apps"], &["*/scale"], &[], &["*"]);
        let table: &[(&Rule, Attributes, bool)] = &[
            (&pods, ask("get", "", "pods", "x"), true),
            (&pods, ask("get", "", "pods/log", "x"), true),
            (&pods, ask("get", "", "pods/exec", "x"), false),
            (&pods, ask("delete", "", "pods", "x"), false),
            (&pods, ask("get", "apps", "pods", "x"), false),
            (&one, ask("get", "", "secrets", "a"), true),
            (&one, ask("get", "", "secrets", "b"), false),
            (&one, ask("get", "", "secrets", ""), false),
            (&scale, ask("patch", "apps", "deployments/scale", "d"), true),
            (&scale, ask("patch", "apps", "deployments", "d"), false),
        ];
        for (rule, what, expect) in table {
            assert_eq!(rule.allows(what), *expect, "{rule:?} {what:?}");
        }
        let url = Rule::of(&json!({ "nonResourceURLs": ["/healthz", "/apis/*"], "verbs": ["get"] }));
        let path = |p: &str| Attributes { verb: "get".into(), path: p.into(), ..Attributes::default() };
        assert!(url.allows(&path("/healthz")) && url.allows(&path("/apis/apps")) && !url.allows(&path("/metrics")));
    }

    #[test]
    fn coverage_is_checked_piece_by_piece() {
        let held = [rule(&[""], &["pods"], &[], &["get"]), rule(&[""], &["pods"], &[], &["list"]), rule(&["apps"], &["*"], &[], &["*"])];
        let covered = |asked: &Rule| asked.pieces().iter().all(|p| held.iter().any(|h| h.covers(p)));
        assert!(covered(&rule(&[""], &["pods"], &[], &["get", "list"])), "from two rules together");
        assert!(covered(&rule(&[""], &["pods"], &["a"], &["get"])), "less than is held");
        assert!(covered(&rule(&["apps"], &["deployments/scale"], &[], &["update"])));
        assert!(!covered(&rule(&[""], &["pods", "secrets"], &[], &["get"])));
        assert!(!covered(&rule(&["*"], &["deployments"], &[], &["get"])));
        assert!(!covered(&rule(&[""], &["*"], &[], &["get"])));
    }
}
