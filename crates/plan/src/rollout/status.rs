//! What a Deployment's status says: counts, and the conditions Available, Progressing and ReplicaFailure in upstream's words.

use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus};

use super::work::{Work, spec_replicas, status_available, status_replicas};
use crate::conditions::{self, Condition};
use crate::objects;

const PROGRESSING: &str = "Progressing";
const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

impl Work<'_> {
    /// Progressing says so while a rollout is paused and when it goes on.
    pub fn note_pause(&mut self) {
        let reason = conditions::find(&self.status.conditions, PROGRESSING).map(|c| c.reason().to_string());
        if reason.as_deref() == Some(TIMED_OUT) {
            return;
        }
        let paused = reason.as_deref() == Some("DeploymentPaused");
        match self.spec.paused == Some(true) {
            true if !paused => self.progressing("Unknown", "DeploymentPaused", "Deployment is paused".into()),
            false if paused => self.progressing("Unknown", "DeploymentResumed", "Deployment is resumed".into()),
            _ => {}
        }
    }

    /// Counts and Available; the other conditions stay.
    pub fn current_status(&mut self) {
        let before = std::mem::take(&mut self.status);
        // Of the ReplicaSets as they were seen: what this plan changes is not observed yet.
        let seen: Vec<_> = self.sets.iter().filter_map(|rs| rs.seen).collect();
        let ready: i32 = seen.iter().map(|rs| rs.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0)).sum();
        let available: i32 = seen.iter().map(|rs| status_available(rs)).sum();
        let total: i32 = seen.iter().map(|rs| spec_replicas(rs)).sum();
        let updated = self.new.and_then(|i| self.sets[i].seen).map_or(0, status_replicas);
        let positive = |n: i32| (n > 0).then_some(n);
        self.status = DeploymentStatus {
            observed_generation: self.deployment.metadata.generation,
            replicas: positive(seen.iter().map(|rs| status_replicas(rs)).sum()),
            updated_replicas: positive(updated),
            ready_replicas: positive(ready),
            available_replicas: positive(available),
            unavailable_replicas: positive(total - available),
            ..before
        };
        let enough = available >= self.replicas - self.room.unavailable;
        let (status, reason, message) = match enough {
            true => ("True", "MinimumReplicasAvailable", "Deployment has minimum availability."),
            false => ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability."),
        };
        conditions::set_if_new(&mut self.status.conditions, DeploymentCondition::make("Available", status, reason, message, self.now));
    }

    /// All pods are of the new template, and all are available.
    pub fn complete(&self) -> bool {
        let seen = self.sets.iter().filter_map(|rs| rs.seen);
        let (mut replicas, mut available) = (0, 0);
        for rs in seen {
            replicas += status_replicas(rs);
            available += status_available(rs);
        }
        let updated = self.new.and_then(|i| self.sets[i].seen).map_or(0, status_replicas);
        updated == self.replicas && replicas == self.replicas && available == self.replicas
    }

    /// [`Work::current_status`], and how the rollout fares against its deadline.
    pub fn rollout_status(&mut self) {
        let before = self.deployment.status.clone().unwrap_or_default();
        self.current_status();
        if !self.has_deadline() {
            conditions::remove(&mut self.status.conditions, PROGRESSING);
        } else {
            self.progress(&before);
        }
        conditions::remove(&mut self.status.conditions, "ReplicaFailure");
        if let Some(failure) = self.replica_failure() {
            conditions::set(&mut self.status.conditions, failure);
        }
    }

    fn progress(&mut self, before: &DeploymentStatus) {
        let current = conditions::find(&self.status.conditions, PROGRESSING).cloned();
        let done_before = current.as_ref().is_some_and(|c| c.reason() == COMPLETE);
        if done_before && self.status.replicas == self.status.updated_replicas {
            return;
        }
        let who = match self.new {
            Some(i) => format!("ReplicaSet {:?}", objects::name(&self.sets[i].now)),
            None => format!("Deployment {:?}", objects::name(self.deployment)),
        };
        if self.complete() {
            self.progressing("True", COMPLETE, format!("{who} has successfully progressed."));
        } else if self.has_moved(before) {
            // A fresh update time, that is, a fresh deadline.
            let new = DeploymentCondition::make(PROGRESSING, "True", "ReplicaSetUpdated", &format!("{who} is progressing."), self.now);
            conditions::set(&mut self.status.conditions, new);
        } else if let Some(left) = current.as_ref().and_then(|c| self.time_left(c)) {
            if left.is_zero() {
                self.progressing("False", TIMED_OUT, format!("{who} has timed out progressing."));
            } else {
                self.plan.requeue(left);
            }
            return;
        }
        // Whoever made progress now is looked at again when the deadline from now is over.
        if !self.complete()
            && let Some(left) = conditions::find(&self.status.conditions, PROGRESSING).and_then(|c| self.time_left(c))
        {
            self.plan.requeue(left.max(Duration::from_secs(1)));
        }
    }

    fn has_moved(&self, before: &DeploymentStatus) -> bool {
        let n = |v: Option<i32>| v.unwrap_or(0);
        let old = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
        n(self.status.updated_replicas) > n(before.updated_replicas)
            || old(&self.status) < old(before)
            || n(self.status.ready_replicas) > n(before.ready_replicas)
            || n(self.status.available_replicas) > n(before.available_replicas)
    }

    /// Until the deadline; `None` where none runs (finished, or timed out already).
    fn time_left(&self, condition: &DeploymentCondition) -> Option<Duration> {
        if matches!(condition.reason(), COMPLETE | TIMED_OUT) {
            return None;
        }
        let deadline = SignedDuration::from_secs(self.spec.progress_deadline_seconds?.into());
        let due = condition.last_update_time.as_ref()?.0 + deadline;
        // Kubernetes' times are whole seconds: one more, so that waking up is never too early.
        if due < self.now {
            Some(Duration::ZERO)
        } else {
            Duration::try_from(due.duration_since(self.now)).ok().map(|d| d + Duration::from_secs(1))
        }
    }

    /// The failure of the new ReplicaSet, or else of an old one.
    fn replica_failure(&self) -> Option<DeploymentCondition> {
        let order = self.new.into_iter().chain(self.old());
        let found =
            order.filter_map(|i| self.sets[i].seen).find_map(|rs| conditions::find(&rs.status.as_ref()?.conditions, "ReplicaFailure"))?;
        let mut made = DeploymentCondition::make("ReplicaFailure", found.status(), found.reason(), found.message(), self.now);
        made.last_transition_time = found.last_transition_time.clone();
        made.last_update_time = found.last_transition_time.clone();
        Some(made)
    }
}
