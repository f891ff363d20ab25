//! Pure planners: a snapshot in, a plan and its reasons out. No I/O, no clock, no chance.
//!
//! A planner is `plan(&Snapshot, key, &Cx) -> (Plan, Vec<Reason>)`, with the key left out where the snapshot is about one
//! object. A plan is data ([`Action`]s in [`Step`]s in waves) and leaves whoever applies it no choice to make; "cannot
//! place" is a [`Reason`], not an error. Objects are typed (`k8s-openapi`, v1.33) and borrowed from the caller's snapshot.

pub mod action;
pub mod conditions;
pub mod objects;
pub mod owners;
pub mod selector;

pub mod dns;
pub mod endpoints;
pub mod events_ttl;
pub mod gc;
pub mod ingress_status;
pub mod invariants;
pub mod limits;
pub mod namespace;
pub mod node_lifecycle;
pub mod pod_actions;
pub mod pod_gc;
pub mod pod_status;
pub mod probes;
pub mod replicas;
pub mod rollout;
pub mod root_ca;
pub mod routes;
pub mod schedule;
pub mod serviceaccounts;
pub mod services;

pub use action::{Action, Kind, Plan, Propagation, Step, Target};

use base::{Ids, Timestamp};

/// What a planner knows beside its snapshot: the time, and where new names come from.
#[derive(Debug, Clone)]
pub struct Cx {
    pub now: Timestamp,
    pub ids: Ids,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// `Normal` as an Event's type.
    Normal,
    /// `Warning` as an Event's type.
    Warning,
}

impl Severity {
    /// The `type` of an Event.
    pub fn event_type(self) -> &'static str {
        match self {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        }
    }
}

/// Why a planner decided as it did, or what keeps it from deciding: feeds Events, `describe`, the console and dry runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Upstream's event reason where there is one: `ScalingReplicaSet`, `FailedScheduling` …
    pub code: &'static str,
    pub message: String,
    pub severity: Severity,
    /// The object it is about, where that is not the one planned for.
    pub about: Option<Target>,
}

impl Reason {
    pub fn normal(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), severity: Severity::Normal, about: None }
    }

    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), severity: Severity::Warning, about: None }
    }

    pub fn about(self, target: Target) -> Self {
        Self { about: Some(target), ..self }
    }
}
