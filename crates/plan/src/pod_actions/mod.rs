//! What the agent does next for one pod: from the pod as wanted and as observed, pure.
//!
//! Source: `core/v1 PodSpec` and the documented pod lifecycle (init containers in order, sidecars, restart policies with
//! back-off, termination with grace, sidecars last and in reverse). Does not know images, drivers or volumes: an action
//! names a container, and whoever executes it reports back through [`Observed`].

mod observed;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use base::Timestamp;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container as Spec, Pod};

use crate::limits::{GRACE_MIN, PREPARE_BACKOFF, PULL_BACKOFF, RESTART_BACKOFF, RESTART_BACKOFF_RESET};
use crate::{Cx, Reason};

pub use observed::{Container, Exit, Observed, Phase, Restarts, Sandbox, State, Terminal, Unhealthy, Waiting};

/// One thing to do. Each is done beside the others; the next plan sees it under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Volumes, network, the driver's pod.
    Prepare,
    /// Image, creation, start, `postStart`. `restarts` is the container's new restart memory.
    Start { container: String, attempt: u32, restarts: Option<Restarts> },
    /// `preStop` (when `hook`), the stop signal, and SIGKILL at `by`. Given again with an earlier `by`, that one holds.
    Stop { container: String, by: Timestamp, hook: bool },
    /// All containers are dead: the driver's pod, network and volumes go. Logs stay.
    Teardown,
    /// Nothing of a deleted pod is left here: tell the API server.
    Finish,
}

/// What to do, what a status shows of the plan, and when to plan again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Containers that wait for their back-off: what their status says.
    pub waiting: BTreeMap<String, Waiting>,
    /// The pod is being ended, since when is for the caller to remember in [`Observed::ending_since`].
    pub ending: bool,
    /// Ended by the node: the phase is `Failed` for this reason.
    pub terminal: Option<Terminal>,
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |t| t.min(at)));
    }
}

/// A reason, and the container it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub container: String,
    pub reason: Reason,
}

/// `restartPolicy` of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub fn of(pod: &Pod) -> Self {
        match pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }
}

/// A restartable init container.
pub fn is_sidecar(container: &Spec) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub fn init_containers(pod: &Pod) -> &[Spec] {
    pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
}

pub fn app_containers(pod: &Pod) -> &[Spec] {
    pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default()
}

/// `web_default(uid)`, as back-off messages name a pod.
fn pod_id(pod: &Pod) -> String {
    let m = &pod.metadata;
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    format!("{}_{}({})", text(&m.name), text(&m.namespace), text(&m.uid))
}

/// Plans for one pod. `observed` must hold what is under way: a container being started is [`State::Starting`], one being
/// stopped has `stop_by`, a sandbox being made is [`Sandbox::Creating`].
pub fn plan(pod: &Pod, observed: &Observed, cx: &Cx) -> (Plan, Vec<Told>) {
    let mut planner = Planner { pod, observed, now: cx.now, plan: Plan::default(), reasons: Vec::new() };
    planner.run();
    (planner.plan, planner.reasons)
}

struct Planner<'a> {
    pod: &'a Pod,
    observed: &'a Observed,
    now: Timestamp,
    plan: Plan,
    reasons: Vec<Told>,
}

/// Why a pod ends.
enum End {
    Deleted,
    /// By the node, with the grace that is left.
    Node(Terminal, SignedDuration),
    /// Its containers are done.
    Completed,
}

impl Planner<'_> {
    fn run(&mut self) {
        if let Some(end) = self.end() {
            return self.end_pod(end);
        }
        match &self.observed.sandbox {
            Sandbox::Absent => self.plan.actions.push(Action::Prepare),
            Sandbox::Creating | Sandbox::Removing => {}
            Sandbox::Failed { failures, at } | Sandbox::Stuck { failures, at } => self.again(*failures, *at, Action::Prepare),
            Sandbox::Ready => self.run_containers(),
        }
        if let Some(deadline) = self.active_deadline() {
            self.plan.wake(deadline);
        }
    }

    fn again(&mut self, failures: u32, at: Timestamp, action: Action) {
        let retry = after(at, PREPARE_BACKOFF.after(failures));
        if retry <= self.now { self.plan.actions.push(action) } else { self.plan.wake(retry) }
    }

    // ---- running ---------------------------------------------------------------------------------------------------

    fn run_containers(&mut self) {
        let apps_begun = app_containers(self.pod).iter().any(|c| self.begun(c));
        if !self.init_done(apps_begun) {
            return;
        }
        for spec in app_containers(self.pod) {
            self.keep(spec, RestartPolicy::of(self.pod));
        }
    }

    /// Brings the init containers forward; true when app containers may run.
    fn init_done(&mut self, apps_begun: bool) -> bool {
        let specs = init_containers(self.pod);
        for (i, spec) in specs.iter().enumerate() {
            let begun_behind = apps_begun || specs[i + 1..].iter().any(|s| self.begun(s));
            if is_sidecar(spec) {
                self.keep(spec, RestartPolicy::Always);
                let up = matches!(self.state(&spec.name), State::Running { .. }) && self.observed.container(&spec.name).started;
                if !up && !begun_behind {
                    return false;
                }
                continue;
            }
            if apps_begun {
                continue;
            }
            let container = self.observed.container(&spec.name);
            let exited = matches!(container.state, State::Exited(_));
            if container.stale && exited {
                self.start(spec, container, container.restarts);
                return false;
            }
            if !matches!(&container.state, State::Exited(e) if e.code == 0) {
                let policy = match RestartPolicy::of(self.pod) {
                    RestartPolicy::Always => RestartPolicy::OnFailure,
                    other => other,
                };
                self.keep(spec, policy);
                return false;
            }
        }
        true
    }

    /// Starts, restarts or stops one container so that it runs as its policy wants.
    fn keep(&mut self, spec: &Spec, policy: RestartPolicy) {
        let container = self.observed.container(&spec.name);
        match &container.state {
            State::Absent => self.start(spec, container, None),
            State::Starting { .. } => {}
            State::Failed { waiting, failures, at } => self.retry(spec, container, waiting, *failures, *at),
            State::Running { .. } => {
                if let Some(why) = &container.unhealthy {
                    let grace = why.grace.unwrap_or_else(|| self.spec_grace());
                    self.stop(
                        spec,
                        container,
                        after_signed(self.now, grace.max(SignedDuration::from_secs(1))),
                        why.message(&spec.name, policy != RestartPolicy::Never),
                    );
                }
            }
            State::Exited(exit) => {
                if restarts(policy, exit) {
                    self.restart(spec, container, exit);
                }
            }
        }
    }

    fn start(&mut self, spec: &Spec, container: &Container, restarts: Option<Restarts>) {
        let attempt = container.next_attempt();
        self.plan.actions.push(Action::Start { container: spec.name.clone(), attempt, restarts });
    }

    fn restart(&mut self, spec: &Spec, container: &Container, exit: &Exit) {
        if let Some(until) = container.restarts.and_then(|r| r.until(exit.finished_at)).filter(|t| *t > self.now) {
            let step = container.restarts.map_or(0, |r| RESTART_BACKOFF.after(r.count).as_secs());
            let id = pod_id(self.pod);
            let message = format!("back-off {} restarting failed container={} pod={id}", go_duration(step), spec.name);
            self.plan.waiting.insert(spec.name.clone(), Waiting::new("CrashLoopBackOff", message));
            self.plan.wake(until);
            self.tell(spec, Reason::warning("BackOff", format!("Back-off restarting failed container {} in pod {id}", spec.name)));
            return;
        }
        let next = Restarts::next(container.restarts, exit.finished_at, self.now);
        self.start(spec, container, Some(next));
    }

    /// An attempt that came to nothing: no image, no configuration, no container.
    fn retry(&mut self, spec: &Spec, container: &Container, waiting: &Waiting, failures: u32, at: Timestamp) {
        let pull = matches!(&*waiting.reason, "ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName");
        let wait = if pull { PULL_BACKOFF.after(failures) } else { PREPARE_BACKOFF.after(failures.saturating_add(2)) };
        let retry = after(at, wait);
        if retry <= self.now {
            return self.start(spec, container, container.restarts);
        }
        self.plan.wake(retry);
        let image = spec.image.clone().unwrap_or_default();
        if waiting.reason == "ErrImagePull" && self.now >= after(at, crate::limits::PULL_ERROR_SHOWN) {
            let message = format!("Back-off pulling image \"{image}\": ErrImagePull: {}", waiting.message);
            self.plan.waiting.insert(spec.name.clone(), Waiting::new("ImagePullBackOff", message));
            self.tell(spec, Reason::normal("BackOff", format!("Back-off pulling image \"{image}\"")));
            self.tell(spec, Reason::warning("Failed", "Error: ImagePullBackOff"));
        } else if waiting.reason == "ErrImagePull" {
            self.plan.wake(after(at, crate::limits::PULL_ERROR_SHOWN));
        }
    }

    // ---- ending ----------------------------------------------------------------------------------------------------

    fn end(&self) -> Option<End> {
        if self.pod.metadata.deletion_timestamp.is_some() || self.observed.removed {
            return Some(End::Deleted);
        }
        // What has ended once never runs again, whatever this machine remembers of it.
        if matches!(self.pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")) {
            return Some(End::Completed);
        }
        if let Some(terminal) = &self.observed.terminal {
            return Some(End::Node(terminal.clone(), SignedDuration::from_secs(1)));
        }
        if self.active_deadline().is_some_and(|t| t <= self.now) {
            let terminal = Terminal::new("DeadlineExceeded", "Pod was active on the node longer than the specified deadline");
            return Some(End::Node(terminal, self.spec_grace()));
        }
        outcome(self.pod, self.observed).map(|_| End::Completed)
    }

    fn active_deadline(&self) -> Option<Timestamp> {
        let seconds = self.pod.spec.as_ref()?.active_deadline_seconds?;
        Some(after_signed(self.observed.start_time?, SignedDuration::from_secs(seconds)))
    }

    fn end_pod(&mut self, end: End) {
        self.plan.ending = true;
        let since = self.observed.ending_since.unwrap_or(self.now);
        let (deleted, grace) = match end {
            End::Deleted => {
                let given = self.pod.metadata.deletion_grace_period_seconds.map(SignedDuration::from_secs);
                let grace = if self.observed.removed { SignedDuration::ZERO } else { given.unwrap_or_else(|| self.spec_grace()) };
                (true, grace)
            }
            End::Node(terminal, grace) => {
                self.plan.terminal = Some(terminal);
                (false, grace)
            }
            End::Completed => (false, self.spec_grace()),
        };
        let by = after_signed(since, grace.max(SignedDuration::from_secs(1)));
        if self.stop_containers(by) {
            return;
        }
        match self.observed.sandbox {
            Sandbox::Creating | Sandbox::Removing => {}
            Sandbox::Stuck { failures, at } => self.again(failures, at, Action::Teardown),
            Sandbox::Absent if deleted && self.observed.clean => self.plan.actions.push(Action::Finish),
            Sandbox::Absent if self.observed.clean => {}
            _ => self.plan.actions.push(Action::Teardown),
        }
    }

    /// Stops what lives: app and init containers together, then sidecars, the last first. True while any lives.
    fn stop_containers(&mut self, by: Timestamp) -> bool {
        let (sidecars, plain): (Vec<&Spec>, Vec<&Spec>) = init_containers(self.pod).iter().partition(|c| is_sidecar(c));
        let mut any = false;
        for spec in plain.into_iter().chain(app_containers(self.pod)) {
            any |= self.stop_if_alive(spec, by);
        }
        if any && by > self.now {
            return true;
        }
        let by_sidecar = by.max(after(self.now, GRACE_MIN));
        for spec in sidecars.into_iter().rev() {
            let stopping = self.observed.container(&spec.name).stop_by;
            let alive = self.stop_if_alive(spec, stopping.map_or(by_sidecar, |t| t.min(by_sidecar)));
            any |= alive;
            // In reverse order while there is time; all at once after the deadline.
            if alive && by > self.now {
                self.plan.wake(by);
                return true;
            }
        }
        any
    }

    fn stop_if_alive(&mut self, spec: &Spec, by: Timestamp) -> bool {
        let container = self.observed.container(&spec.name);
        if !container.state.alive() {
            return false;
        }
        self.stop(spec, container, by, format!("Stopping container {}", spec.name));
        true
    }

    fn stop(&mut self, spec: &Spec, container: &Container, by: Timestamp, why: String) {
        let running = matches!(container.state, State::Running { .. });
        match container.stop_by {
            Some(before) if before <= by => return,
            Some(_) => {}
            None if running => self.tell(spec, Reason::normal("Killing", why)),
            None => {}
        }
        let hook = running && container.stop_by.is_none() && spec.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some());
        self.plan.actions.push(Action::Stop { container: spec.name.clone(), by, hook });
    }

    fn tell(&mut self, spec: &Spec, reason: Reason) {
        self.reasons.push(Told { container: spec.name.clone(), reason });
    }

    fn state(&self, name: &str) -> &State {
        &self.observed.container(name).state
    }

    /// An attempt was made in the sandbox that is there now.
    fn begun(&self, spec: &Spec) -> bool {
        let container = self.observed.container(&spec.name);
        container.state != State::Absent && !container.stale
    }

    fn spec_grace(&self) -> SignedDuration {
        SignedDuration::from_secs(self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30))
    }
}

/// Whether a container that exited so is started again.
pub fn restarts(policy: RestartPolicy, exit: &Exit) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => exit.code != 0,
        RestartPolicy::Never => false,
    }
}

/// How a pod ended by itself: `Some` when no container of it will run again. Sidecars do not count.
pub fn outcome(pod: &Pod, observed: &Observed) -> Option<Phase> {
    let policy = RestartPolicy::of(pod);
    let exit = |name: &str| match &observed.container(name).state {
        State::Exited(exit) => Some(exit.clone()),
        _ => None,
    };
    let apps = app_containers(pod);
    let begun = apps.iter().any(|c| observed.container(&c.name).state != State::Absent);
    if policy == RestartPolicy::Never && !begun {
        let failed = init_containers(pod).iter().filter(|c| !is_sidecar(c)).filter_map(|c| exit(&c.name)).any(|e| e.code != 0);
        if failed {
            return Some(Phase::Failed);
        }
    }
    let exits: Vec<Exit> = apps.iter().filter_map(|c| exit(&c.name)).collect();
    if exits.len() < apps.len() || exits.is_empty() || exits.iter().any(|e| restarts(policy, e)) {
        return None;
    }
    Some(if exits.iter().all(|e| e.code == 0) { Phase::Succeeded } else { Phase::Failed })
}

impl Restarts {
    /// The memory after one more restart, decided at `now` for an exit at `finished`.
    fn next(before: Option<Restarts>, finished: Timestamp, now: Timestamp) -> Self {
        let fresh = before.is_none_or(|r| r.forgotten(finished));
        Self { count: if fresh { 1 } else { before.map_or(1, |r| r.count.saturating_add(1)) }, at: now }
    }

    fn forgotten(&self, finished: Timestamp) -> bool {
        finished > after(self.at, RESTART_BACKOFF_RESET)
    }

    /// Until when an exit at `finished` waits.
    fn until(&self, finished: Timestamp) -> Option<Timestamp> {
        (!self.forgotten(finished)).then(|| after(finished, RESTART_BACKOFF.after(self.count)))
    }
}

/// `1m20s`, as Go writes durations.
fn go_duration(seconds: u64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    }
}

fn after(t: Timestamp, by: std::time::Duration) -> Timestamp {
    t.checked_add(by).unwrap_or(Timestamp::MAX)
}

fn after_signed(t: Timestamp, by: SignedDuration) -> Timestamp {
    t.checked_add(by).unwrap_or(Timestamp::MAX)
}
