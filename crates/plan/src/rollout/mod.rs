//! Deployments: from one template to the next, never fewer ready than allowed and never more pods than allowed.
//!
//! Knows ReplicaSets by their spec and status. Does not know pods or nodes.
//!
//! Source: upstream's deployment controller, with one rule of our own: **while a ReplicaSet has not observed its last
//! change of spec, no other is grown or shrunk**, and a ReplicaSet counts for surge with the larger of spec and status, for
//! availability with the smaller. So the two promises hold for pods as they are, not only for the sum of the specs. What it
//! asks of its caller: a snapshot that holds the caller's own earlier writes.

mod scale;
mod status;
mod work;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{Action, Cx, Plan, Reason, Step, objects, owners, selector};
use work::{Rs, Work};

pub use work::{DESIRED_REPLICAS, HASH_LABEL, MAX_REPLICAS, REVISION, REVISION_HISTORY, template_hash};

pub struct Snapshot<'a> {
    pub deployment: &'a Deployment,
    /// All ReplicaSets of the namespace.
    pub sets: &'a [&'a ReplicaSet],
    /// What the API answered when the new ReplicaSet could not be created, if that is how the last plan ended.
    pub create_failure: Option<&'a str>,
}

/// How many pods may be missing and how many more there may be, as whole numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub surge: i32,
    pub unavailable: i32,
}

/// The strategy's percentages as numbers: surge rounds up, unavailable down, and both cannot be 0. `Recreate` has neither.
pub fn room(spec: &DeploymentSpec) -> Room {
    let replicas = spec.replicas.unwrap_or(1);
    if is_recreate(spec) {
        return Room { surge: 0, unavailable: 0 };
    }
    let rolling = spec.strategy.as_ref().and_then(|s| s.rolling_update.clone()).unwrap_or_default();
    let quarter = || IntOrString::String("25%".into());
    let surge = objects::int_or_percent(&rolling.max_surge.unwrap_or_else(quarter), replicas, true).max(0);
    let unavailable = objects::int_or_percent(&rolling.max_unavailable.unwrap_or_else(quarter), replicas, false).max(0);
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    Room { surge, unavailable: unavailable.min(replicas) }
}

fn is_recreate(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

/// The next step of a Deployment, and its status.
pub fn plan(s: &Snapshot, cx: &Cx) -> (Plan, Vec<Reason>) {
    let mut plan = Plan::none();
    let Some(spec) = &s.deployment.spec else { return (plan, Vec::new()) };
    if selector::is_empty(&spec.selector) {
        let why = "This deployment is selecting all pods. A non-empty selector is required.";
        return (plan, vec![Reason::warning("SelectingAll", why)]);
    }
    let claim = owners::claim(s.deployment, &spec.selector, s.sets.iter().copied());
    if !claim.patches.is_empty() {
        plan.wave(claim.patches);
        return (plan, Vec::new());
    }
    let mut work = Work::new(s, spec, claim.owned, cx);
    if objects::deleting(s.deployment) {
        work.current_status();
        return (work.finish(), Vec::new());
    }
    work.note_pause();
    if work.spec.paused == Some(true) || work.is_scaling() {
        work.sync_revisions(false);
        work.scale();
        if work.spec.paused == Some(true) {
            work.clean_up();
        }
        work.current_status();
    } else if is_recreate(spec) {
        recreate(&mut work);
    } else {
        rolling(&mut work);
    }
    (work.finish(), Vec::new())
}

/// One move of a rolling update: grow the new, or else shrink the old.
fn rolling(work: &mut Work) {
    work.sync_revisions(true);
    if work.collided {
        return;
    }
    if work.settled() && !work.grow_new() && !work.shrink_old() && work.complete() {
        work.clean_up();
    }
    work.rollout_status();
}

/// All of the old go before the first of the new comes.
fn recreate(work: &mut Work) {
    work.sync_revisions(false);
    if !work.stop_old() && work.old_is_gone() {
        work.sync_revisions(true);
        if work.collided {
            return;
        }
        let wanted = work.replicas;
        if let Some(new) = work.new.filter(|new| work.spec_of(*new) != wanted) {
            work.resize(new, wanted);
        }
        if work.complete() {
            work.clean_up();
        }
    }
    work.rollout_status();
}

/// Whether two templates say the same, the hash label aside.
fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let labels = |t: &PodTemplateSpec| {
        let mut l = t.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        l.remove(HASH_LABEL);
        l
    };
    let rest = |t: &PodTemplateSpec| {
        t.metadata.as_ref().map(|m| (m.annotations.clone().unwrap_or_default(), m.finalizers.clone())).unwrap_or_default()
    };
    a.spec == b.spec && labels(a) == labels(b) && rest(a) == rest(b)
}

/// The step that makes a working copy real.
fn step_of(rs: &Rs) -> Option<Step> {
    let action = match &rs.seen {
        None => Action::create(&rs.now),
        Some(seen) => Action::patch(*seen, &rs.now, None)?,
    };
    let before = rs.seen.map_or(0, work::spec_replicas);
    let after = work::spec_replicas(&rs.now);
    let mut step = Step::from(action).failed(Reason::warning("ReplicaSetCreateError", "Failed to create new replica set"));
    if rs.seen.is_some() {
        step.failed = None;
    }
    if before == after {
        return Some(step);
    }
    let way = if after > before { "up" } else { "down" };
    let message = format!("Scaled {way} replica set {} from {before} to {after}", objects::name(&rs.now));
    Some(step.done(Reason::normal("ScalingReplicaSet", message)))
}

#[cfg(test)]
mod tests;
