//! Status conditions of every kind by one rule: a changed status moves `lastTransitionTime`, nothing else does.

use base::Timestamp;
use k8s_openapi::api::apps::v1::{DeploymentCondition, ReplicaSetCondition};
use k8s_openapi::api::core::v1::{NamespaceCondition, NodeCondition, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What the kinds' condition types have in common.
pub trait Condition: Clone {
    fn make(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Self;
    fn kind(&self) -> &str;
    fn status(&self) -> &str;
    fn reason(&self) -> &str;
    fn message(&self) -> &str;
    fn transition(&mut self) -> &mut Option<Time>;
}

macro_rules! condition {
    ($type:ty, $($update:ident)? $(; $($rest:tt)*)?) => {
        impl Condition for $type {
            fn make(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Self {
                Self {
                    type_: kind.into(),
                    status: status.into(),
                    reason: Some(reason.into()),
                    message: Some(message.into()),
                    last_transition_time: Some(Time(now)),
                    $($update: Some(Time(now)),)?
                    $($($rest)*)?
                }
            }
            fn kind(&self) -> &str {
                &self.type_
            }
            fn status(&self) -> &str {
                &self.status
            }
            fn reason(&self) -> &str {
                self.reason.as_deref().unwrap_or_default()
            }
            fn message(&self) -> &str {
                self.message.as_deref().unwrap_or_default()
            }
            fn transition(&mut self) -> &mut Option<Time> {
                &mut self.last_transition_time
            }
        }
    };
}
condition!(DeploymentCondition, last_update_time);
condition!(ReplicaSetCondition,);
condition!(PodCondition, ; ..Default::default());
condition!(NodeCondition, last_heartbeat_time);
condition!(NamespaceCondition,);

pub fn find<'a, C: Condition>(list: &'a Option<Vec<C>>, kind: &str) -> Option<&'a C> {
    list.iter().flatten().find(|c| c.kind() == kind)
}

/// Sets a condition; one with the same status keeps its transition time. The order of the list is kept.
pub fn set<C: Condition>(list: &mut Option<Vec<C>>, mut new: C) {
    let list = list.get_or_insert_default();
    match list.iter_mut().find(|c| c.kind() == new.kind()) {
        Some(old) => {
            if old.status() == new.status() {
                *new.transition() = old.transition().clone();
            }
            *old = new;
        }
        None => list.push(new),
    }
}

/// As [`set`], but leaves a condition alone that has this status and reason already: its times and message stay.
pub fn set_if_new<C: Condition>(list: &mut Option<Vec<C>>, new: C) {
    if find(list, new.kind()).is_none_or(|old| old.status() != new.status() || old.reason() != new.reason()) {
        set(list, new);
    }
}

pub fn remove<C: Condition>(list: &mut Option<Vec<C>>, kind: &str) {
    if let Some(conditions) = list {
        conditions.retain(|c| c.kind() != kind);
        if conditions.is_empty() {
            *list = None;
        }
    }
}
