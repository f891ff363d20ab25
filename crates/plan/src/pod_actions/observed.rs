//! What is known of a pod on this machine: the planner's input, kept by the agent.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base::Timestamp;
use jiff::SignedDuration;

use crate::probes::Kind;

/// Everything known of one pod here. The agent changes it with each event; the planner only reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    pub sandbox: Sandbox,
    /// Init and app containers by name; one that is missing is [`State::Absent`].
    pub containers: BTreeMap<String, Container>,
    /// When this node accepted the pod: `status.startTime`.
    pub start_time: Option<Timestamp>,
    /// When the first plan with `ending` was made.
    pub ending_since: Option<Timestamp>,
    /// The node ends the pod: evicted, refused.
    pub terminal: Option<Terminal>,
    /// The API object is gone while something may still run.
    pub removed: bool,
    /// Teardown succeeded: nothing is left on this machine but logs.
    pub clean: bool,
}

static ABSENT: Container = Container::absent();

impl Observed {
    pub fn container(&self, name: &str) -> &Container {
        self.containers.get(name).unwrap_or(&ABSENT)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Sandbox {
    #[default]
    Absent,
    Creating,
    Failed {
        failures: u32,
        at: Timestamp,
    },
    Ready,
    Removing,
    /// Teardown failed.
    Stuck {
        failures: u32,
        at: Timestamp,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Of the newest attempt that was created, `None` before the first: `restartCount`.
    pub attempt: Option<u32>,
    pub state: State,
    /// How the attempt before ended.
    pub last: Option<Exit>,
    pub restarts: Option<Restarts>,
    /// Its startup probe has succeeded, or it has none and runs (`postStart` is over).
    pub started: bool,
    /// Its readiness probe succeeds, or it has none.
    pub ready: bool,
    /// Why it has to be stopped though the pod goes on.
    pub unhealthy: Option<Unhealthy>,
    /// It is being stopped, with SIGKILL at this time.
    pub stop_by: Option<Timestamp>,
    /// It ran in a sandbox that is gone: init containers have to run again.
    pub stale: bool,
    /// The image's digest reference, once known.
    pub image_id: String,
}

impl Container {
    pub const fn absent() -> Self {
        Self {
            attempt: None,
            state: State::Absent,
            last: None,
            restarts: None,
            started: false,
            ready: false,
            unhealthy: None,
            stop_by: None,
            stale: false,
            image_id: String::new(),
        }
    }

    pub fn next_attempt(&self) -> u32 {
        self.attempt.map_or(0, |n| n.saturating_add(1))
    }
}

impl Default for Container {
    fn default() -> Self {
        Self::absent()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Absent,
    /// An attempt is being made: pulling, creating, starting. `shown` is what the one before came to.
    Starting {
        shown: Option<Waiting>,
    },
    /// The attempt came to nothing; there is no container.
    Failed {
        waiting: Waiting,
        failures: u32,
        at: Timestamp,
    },
    Running {
        started_at: Timestamp,
    },
    Exited(Exit),
}

impl State {
    /// Something of it may be running.
    pub fn alive(&self) -> bool {
        matches!(self, State::Starting { .. } | State::Running { .. })
    }
}

/// `ContainerStateTerminated`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub code: i32,
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`
    pub reason: Cow<'static, str>,
    pub message: String,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
}

impl Exit {
    pub fn new(code: i32, finished_at: Timestamp) -> Self {
        let reason = if code == 0 { "Completed" } else { "Error" };
        Self { code, signal: None, reason: reason.into(), message: String::new(), started_at: None, finished_at }
    }
}

/// `ContainerStateWaiting`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub reason: Cow<'static, str>,
    pub message: String,
}

impl Waiting {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

/// How often a container was started again in a row, and when last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restarts {
    pub count: u32,
    pub at: Timestamp,
}

/// What makes the agent stop a container that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unhealthy {
    /// The probe that failed; `None`: the `postStart` hook did.
    pub probe: Option<Kind>,
    /// The probe's own `terminationGracePeriodSeconds`.
    pub grace: Option<SignedDuration>,
}

impl Unhealthy {
    pub(super) fn message(&self, container: &str, restarted: bool) -> String {
        let then = if restarted { ", will be restarted" } else { "" };
        match self.probe {
            Some(Kind::Startup) => format!("Container {container} failed startup probe{then}"),
            Some(_) => format!("Container {container} failed liveness probe{then}"),
            None => "FailedPostStartHook".to_string(),
        }
    }
}

/// `Succeeded` or `Failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Succeeded,
    Failed,
}

/// The node's reason for ending a pod: `status.reason` and `status.message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminal {
    pub reason: Cow<'static, str>,
    pub message: String,
}

impl Terminal {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}
