//! Working copies of a Deployment and its ReplicaSets: decided on in place, turned into patches at the end.

use std::collections::BTreeMap;

use base::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Room, Snapshot, room, same_template, step_of};
use crate::conditions::{self, Condition};
use crate::{Action, Cx, Plan, limits, objects};

/// Label and selector key that keep the pods of one template apart from those of the next.
pub const HASH_LABEL: &str = "pod-template-hash";
pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The Deployment's replicas when the ReplicaSet was last sized: tells a scaling from a rollout.
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// Replicas and surge when the ReplicaSet was last sized: the base of proportional scaling.
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of a Deployment that are its own and not its ReplicaSets'.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

/// A ReplicaSet as seen (`None`: not made yet) and as it shall be.
pub(super) struct Rs<'a> {
    pub seen: Option<&'a ReplicaSet>,
    pub now: ReplicaSet,
}

pub(super) struct Work<'a> {
    pub deployment: &'a Deployment,
    pub spec: &'a DeploymentSpec,
    pub replicas: i32,
    pub room: Room,
    /// Oldest first.
    pub sets: Vec<Rs<'a>>,
    /// Index of the one whose template is the Deployment's.
    pub new: Option<usize>,
    pub annotations: BTreeMap<String, String>,
    pub status: DeploymentStatus,
    pub delete: Vec<&'a ReplicaSet>,
    /// The name for the new ReplicaSet belongs to something else: the next plan hashes anew.
    pub collided: bool,
    pub now: Timestamp,
    pub plan: Plan,
    taken: Vec<&'a str>,
    create_failure: Option<&'a str>,
}

pub(super) fn spec_replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

pub(super) fn status_replicas(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |s| s.replicas)
}

pub(super) fn status_available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

/// The ReplicaSet's controller has seen its present spec.
pub(super) fn observed(set: &ReplicaSet) -> bool {
    set.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0) >= set.metadata.generation.unwrap_or(0)
}

fn revision_of(meta: &ObjectMeta) -> i64 {
    objects::annotation(meta, REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// The name part of a template. Nobody compares hashes: the template itself is compared, so this may change over versions.
pub fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut bytes = serde_json::to_vec(template).unwrap_or_default();
    bytes.extend(collisions.unwrap_or(0).to_le_bytes());
    objects::safe_encode(objects::fnv1a(&bytes))
}

impl<'a> Work<'a> {
    pub fn new(s: &Snapshot<'a>, spec: &'a DeploymentSpec, mut owned: Vec<&'a ReplicaSet>, cx: &Cx) -> Self {
        owned.sort_by_key(|rs| (objects::created_at(*rs), objects::name(*rs)));
        let template = |rs: &ReplicaSet| rs.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
        let new = owned.iter().position(|rs| same_template(&template(rs), &spec.template));
        Self {
            deployment: s.deployment,
            spec,
            replicas: spec.replicas.unwrap_or(1),
            room: room(spec),
            sets: owned.into_iter().map(|rs| Rs { seen: Some(rs), now: rs.clone() }).collect(),
            new,
            annotations: s.deployment.metadata.annotations.clone().unwrap_or_default(),
            status: s.deployment.status.clone().unwrap_or_default(),
            delete: Vec::new(),
            collided: false,
            now: cx.now,
            plan: Plan::none(),
            taken: s.sets.iter().map(|rs| objects::name(*rs)).collect(),
            create_failure: s.create_failure,
        }
    }

    /// Indices of the ReplicaSets of earlier templates, oldest first.
    pub fn old(&self) -> impl Iterator<Item = usize> + use<> {
        let new = self.new;
        (0..self.sets.len()).filter(move |i| Some(*i) != new)
    }

    pub fn spec_of(&self, i: usize) -> i32 {
        spec_replicas(&self.sets[i].now)
    }

    /// Available for sure: never more than its spec leaves standing.
    pub fn available_of(&self, i: usize) -> i32 {
        status_available(&self.sets[i].now).min(self.spec_of(i))
    }

    /// Every ReplicaSet has seen its present spec, so its status says what there is.
    pub fn settled(&self) -> bool {
        self.sets.iter().all(|rs| rs.seen.is_some_and(observed))
    }

    /// No pod of an old ReplicaSet runs, one that is terminating included.
    pub fn old_is_gone(&self) -> bool {
        self.old().filter_map(|i| self.sets[i].seen).all(|rs| {
            let terminating = rs.status.as_ref().and_then(|s| s.terminating_replicas).unwrap_or(0);
            observed(rs) && status_replicas(rs) == 0 && terminating == 0
        })
    }

    /// Sizes a ReplicaSet and notes for which Deployment it was sized.
    pub fn resize(&mut self, i: usize, to: i32) {
        let (desired, max) = (self.replicas, self.replicas + self.room.surge);
        let set = &mut self.sets[i].now;
        if let Some(spec) = &mut set.spec {
            spec.replicas = Some(to);
        }
        let notes = set.metadata.annotations.get_or_insert_default();
        notes.insert(DESIRED_REPLICAS.into(), desired.to_string());
        notes.insert(MAX_REPLICAS.into(), max.to_string());
    }

    /// Numbers the new ReplicaSet one past the highest old one, makes it if asked to, and the Deployment follows.
    pub fn sync_revisions(&mut self, create: bool) {
        let top = self.old().map(|i| revision_of(&self.sets[i].now.metadata)).max().unwrap_or(0);
        if self.new.is_none() && create && !self.make_new(top + 1) {
            return;
        }
        let Some(new) = self.new else { return };
        let made = self.sets[new].seen.is_none();
        self.annotate(new, top + 1);
        if let Some(spec) = &mut self.sets[new].now.spec {
            spec.min_ready_seconds = self.spec.min_ready_seconds;
        }
        let revision = revision_of(&self.sets[new].now.metadata).to_string();
        self.annotations.insert(REVISION.into(), revision);
        let name = objects::name(&self.sets[new].now).to_string();
        if made {
            self.progressing("True", "NewReplicaSetCreated", format!("Created new replica set {name:?}"));
        } else if self.has_deadline() && conditions::find(&self.status.conditions, "Progressing").is_none() {
            self.progressing("True", "FoundNewReplicaSet", format!("Found new replica set {name:?}"));
        }
    }

    /// `false` where the name is taken by a ReplicaSet that is not ours or has another template.
    fn make_new(&mut self, revision: i64) -> bool {
        let hash = template_hash(&self.spec.template, self.status.collision_count);
        let name = format!("{}-{hash}", objects::name(self.deployment));
        if self.taken.contains(&name.as_str()) {
            self.status.collision_count = Some(self.status.collision_count.unwrap_or(0) + 1);
            self.collided = true;
            return false;
        }
        let mut template = self.spec.template.clone();
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(HASH_LABEL.into(), hash.clone());
        let labels = labels.clone();
        let mut selector = self.spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash);
        let set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: self.deployment.metadata.namespace.clone(),
                labels: Some(labels),
                owner_references: Some(vec![objects::controller_ref(self.deployment)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(0),
                min_ready_seconds: self.spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        };
        self.sets.push(Rs { seen: None, now: set });
        let new = self.sets.len() - 1;
        self.new = Some(new);
        self.annotate(new, revision);
        // Only from here on is it clear how much room the others leave.
        let size = if self.others_settled(new) { self.new_size(new) } else { 0 };
        self.resize(new, size);
        true
    }

    fn others_settled(&self, new: usize) -> bool {
        self.sets.iter().enumerate().all(|(i, rs)| i == new || rs.seen.is_some_and(observed))
    }

    /// The Deployment's annotations, the revision, and the revisions it had before it was rolled back to.
    fn annotate(&mut self, i: usize, revision: i64) {
        let notes = self.sets[i].now.metadata.annotations.get_or_insert_default();
        for (key, value) in self.annotations.iter().filter(|(k, _)| !NOT_COPIED.contains(&k.as_str())) {
            notes.insert(key.clone(), value.clone());
        }
        let had = notes.get(REVISION).and_then(|r| r.parse::<i64>().ok());
        if had.unwrap_or(0) >= revision {
            return;
        }
        notes.insert(REVISION.into(), revision.to_string());
        if let Some(had) = had {
            let mut history: Vec<String> = notes
                .get(REVISION_HISTORY)
                .map(|h| h.split(',').filter(|p| !p.is_empty()).map(str::to_string).collect())
                .unwrap_or_default();
            history.push(had.to_string());
            while history.iter().map(|p| p.len() + 1).sum::<usize>() > limits::REVISION_HISTORY_BYTES_MAX {
                history.remove(0);
            }
            notes.insert(REVISION_HISTORY.into(), history.join(","));
        }
    }

    pub fn has_deadline(&self) -> bool {
        self.spec.progress_deadline_seconds.is_some_and(|s| s != i32::MAX)
    }

    pub fn progressing(&mut self, status: &str, reason: &str, message: String) {
        if self.has_deadline() {
            conditions::set_if_new(&mut self.status.conditions, Condition::make("Progressing", status, reason, &message, self.now));
        }
    }

    /// ReplicaSets, then the Deployment's annotations, then its status.
    pub fn finish(mut self) -> Plan {
        if let Some(why) = self.create_failure {
            let creating = self.sets.iter().find(|rs| rs.seen.is_none()).map(|rs| objects::name(&rs.now).to_string());
            if let Some(name) = creating {
                let message = format!("Failed to create new replica set {name:?}: {why}");
                conditions::remove(&mut self.status.conditions, "Progressing");
                self.progressing("False", "ReplicaSetCreateError", message);
                self.sets.retain(|rs| rs.seen.is_some());
            }
        }
        let sets: Vec<_> = self.sets.iter().filter_map(step_of).collect();
        self.plan.wave(sets).wave(self.delete.iter().map(|rs| Action::delete_as_seen(*rs)));
        let mut wanted = self.deployment.clone();
        wanted.metadata.annotations = (!self.annotations.is_empty()).then_some(self.annotations);
        let notes = Action::patch(self.deployment, &wanted, None);
        wanted.status = Some(self.status);
        let status = Action::patch(self.deployment, &wanted, Some("status"));
        self.plan.wave(notes).wave(status);
        self.plan
    }
}
