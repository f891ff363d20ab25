//! A pod's status as its node tells it, pure.
//!
//! Source: `core/v1 PodStatus` and the documented pod lifecycle: phase, conditions and container states with the reasons
//! that kubectl prints. Conditions of others (`PodScheduled`, readiness gates, `DisruptionTarget`) are kept as they are.

use base::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as Spec, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP,
    Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pod_actions::{
    self, Container, Exit, Observed, Phase, Plan, Sandbox, State, Waiting, app_containers, init_containers, is_sidecar, outcome,
};

/// What a status says of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    pub host_ip: String,
    /// Empty until the network is there.
    pub pod_ips: Vec<String>,
    /// The scheme of container ids: the driver's name.
    pub runtime: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// `status.qosClass`, from CPU and memory of all containers.
pub fn qos(pod: &Pod) -> Qos {
    let (mut any, mut guaranteed) = (false, true);
    for container in init_containers(pod).iter().chain(app_containers(pod)) {
        let resources = container.resources.as_ref();
        for resource in ["cpu", "memory"] {
            let amount = |side: Option<&std::collections::BTreeMap<String, _>>| {
                side.and_then(|m| m.get(resource))
                    .and_then(|q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| q.0.parse::<api::quantity::Quantity>().ok())
                    .filter(|q| !q.is_zero())
            };
            let limit = amount(resources.and_then(|r| r.limits.as_ref()));
            let request = amount(resources.and_then(|r| r.requests.as_ref())).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// The id of a container in its status: `container://<uid>.<name>.<attempt>`.
pub fn container_id(runtime: &str, uid: &str, container: &str, attempt: u32) -> String {
    format!("{runtime}://{uid}.{container}.{attempt}")
}

/// The whole status. `pod.status` is the one before: its times stay where nothing changed.
pub fn status(pod: &Pod, observed: &Observed, plan: &Plan, facts: &Facts, now: Timestamp) -> PodStatus {
    let before = pod.status.clone().unwrap_or_default();
    let ended_before = before.phase.as_deref().filter(|p| matches!(*p, "Succeeded" | "Failed"));
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let build = |specs: &[Spec], old: Option<&Vec<ContainerStatus>>| -> Vec<ContainerStatus> {
        specs
            .iter()
            .map(|spec| {
                let old = old.and_then(|l| l.iter().find(|s| s.name == spec.name));
                // Of a pod that ended before this agent knew it, only the API remembers how.
                if ended_before.is_some()
                    && observed.container(&spec.name).state == State::Absent
                    && let Some(old) = old
                {
                    return old.clone();
                }
                container_status(pod, spec, observed, plan, facts, uid)
            })
            .collect()
    };
    let init = build(init_containers(pod), before.init_container_statuses.as_ref());
    let mut apps = build(app_containers(pod), before.container_statuses.as_ref());
    apps.sort_by(|a, b| a.name.cmp(&b.name));
    let phase = match ended_before {
        Some(phase) => phase.to_string(),
        None => phase(pod, observed, plan).to_string(),
    };
    let (reason, message) = match (&plan.terminal, ended_before) {
        (_, Some(_)) => (before.reason.clone(), before.message.clone()),
        (Some(t), None) => (Some(t.reason.to_string()), Some(t.message.clone())),
        (None, None) => (None, None),
    };
    let conditions = conditions(pod, observed, &phase, &init, &apps, now);
    let addresses = if facts.pod_ips.is_empty() { before.pod_ips.clone() } else { ips(&facts.pod_ips) };
    PodStatus {
        phase: Some(phase),
        reason,
        message,
        conditions: Some(conditions),
        host_ip: Some(facts.host_ip.clone()),
        host_ips: Some(vec![HostIP { ip: facts.host_ip.clone() }]),
        pod_ip: addresses.as_ref().and_then(|a| a.first()).map(|a| a.ip.clone()),
        pod_ips: addresses,
        start_time: observed.start_time.map(Time).or(before.start_time.clone()),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: (!apps.is_empty()).then_some(apps),
        qos_class: before.qos_class.clone().or_else(|| Some(qos(pod).as_str().to_string())),
        ..before
    }
}

fn ips(list: &[String]) -> Option<Vec<PodIP>> {
    (!list.is_empty()).then(|| list.iter().map(|ip| PodIP { ip: ip.clone() }).collect())
}

fn phase(pod: &Pod, observed: &Observed, plan: &Plan) -> &'static str {
    let specs = || init_containers(pod).iter().chain(app_containers(pod));
    let alive = specs().any(|c| observed.container(&c.name).state.alive());
    let apps_ran = |s: &State| matches!(s, State::Running { .. } | State::Exited(_));
    if !alive {
        if plan.terminal.is_some() {
            return "Failed";
        }
        match outcome(pod, observed) {
            Some(Phase::Succeeded) => return "Succeeded",
            Some(Phase::Failed) => return "Failed",
            None => {}
        }
        // A deleted pod whose containers are gone has ended, whatever its restart policy would have said.
        if plan.ending {
            let fine = app_containers(pod).iter().all(|c| matches!(&observed.container(&c.name).state, State::Exited(e) if e.code == 0));
            return if fine { "Succeeded" } else { "Failed" };
        }
    }
    let apps = app_containers(pod);
    let began = |c: &Spec| {
        let container = observed.container(&c.name);
        apps_ran(&container.state) || container.last.is_some()
    };
    if !apps.is_empty() && apps.iter().all(began) { "Running" } else { "Pending" }
}

// ---- containers ----------------------------------------------------------------------------------------------------

fn container_status(pod: &Pod, spec: &Spec, observed: &Observed, plan: &Plan, facts: &Facts, uid: &str) -> ContainerStatus {
    let container = observed.container(&spec.name);
    let id = |n: u32| container_id(&facts.runtime, uid, &spec.name, n);
    let (state, last) = states(pod, spec, observed, container, plan, &id);
    let running = matches!(container.state, State::Running { .. });
    let init_done = matches!(&container.state, State::Exited(e) if e.code == 0);
    let is_init = init_containers(pod).iter().any(|c| c.name == spec.name);
    let plain_init = is_init && !is_sidecar(spec);
    ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        image_id: container.image_id.clone(),
        container_id: container.attempt.map(id),
        ready: if plain_init { init_done } else { running && container.ready && container.started },
        started: Some(running && (container.started || plain_init)),
        restart_count: container.attempt.map_or(0, |n| i32::try_from(n).unwrap_or(i32::MAX)),
        state: Some(state),
        last_state: Some(last.unwrap_or_default()),
        ..ContainerStatus::default()
    }
}

/// `state` and `lastState` of a container.
fn states(
    pod: &Pod,
    spec: &Spec,
    observed: &Observed,
    container: &Container,
    plan: &Plan,
    id: &dyn Fn(u32) -> String,
) -> (ContainerState, Option<ContainerState>) {
    let newest = container.attempt.unwrap_or(0);
    let last = container.last.as_ref().map(|e| terminated(e, Some(id(newest.saturating_sub(1)))));
    let planned = plan.waiting.get(&spec.name);
    match &container.state {
        State::Running { started_at } => {
            let running = ContainerStateRunning { started_at: Some(Time(*started_at)) };
            (ContainerState { running: Some(running), ..ContainerState::default() }, last)
        }
        State::Exited(exit) => {
            let ended = terminated(exit, Some(id(newest)));
            match planned {
                // One that could not be started shows why while it waits for the next try.
                Some(w) => (waiting(w), Some(ended)),
                None => (ended, last),
            }
        }
        State::Failed { waiting: failed, .. } => {
            (waiting(planned.unwrap_or(failed)), container.last.as_ref().map(|e| terminated(e, Some(id(newest)))))
        }
        State::Starting { shown } => match (shown, &container.last) {
            (Some(shown), _) => (waiting(shown), container.last.as_ref().map(|e| terminated(e, Some(id(newest))))),
            (None, Some(exit)) => (terminated(exit, Some(id(newest))), None),
            (None, None) => (creating(pod, observed), None),
        },
        State::Absent => (creating(pod, observed), container.last.as_ref().map(|e| terminated(e, Some(id(newest))))),
    }
}

fn creating(pod: &Pod, observed: &Observed) -> ContainerState {
    let reason = if initialized(pod, observed) { "ContainerCreating" } else { "PodInitializing" };
    waiting(&Waiting { reason: reason.into(), message: String::new() })
}

fn waiting(w: &Waiting) -> ContainerState {
    let message = (!w.message.is_empty()).then(|| w.message.clone());
    let waiting = ContainerStateWaiting { reason: Some(w.reason.to_string()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn terminated(exit: &Exit, container_id: Option<String>) -> ContainerState {
    let terminated = ContainerStateTerminated {
        exit_code: exit.code,
        signal: exit.signal.filter(|s| *s != 0),
        reason: Some(exit.reason.to_string()),
        message: (!exit.message.is_empty()).then(|| exit.message.clone()),
        started_at: exit.started_at.map(Time),
        finished_at: Some(Time(exit.finished_at)),
        container_id,
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

// ---- conditions ----------------------------------------------------------------------------------------------------

/// All init containers have succeeded, sidecars have started.
fn initialized(pod: &Pod, observed: &Observed) -> bool {
    incomplete(pod, observed).is_empty()
}

fn incomplete(pod: &Pod, observed: &Observed) -> Vec<String> {
    let begun = app_containers(pod).iter().any(|c| {
        let container = observed.container(&c.name);
        container.state != State::Absent && !container.stale
    });
    let undone = |c: &&Spec| {
        let container = observed.container(&c.name);
        match (&container.state, is_sidecar(c)) {
            (State::Exited(e), false) => e.code != 0 || container.stale,
            (State::Running { .. }, true) => !container.started,
            _ => true,
        }
    };
    if begun { Vec::new() } else { init_containers(pod).iter().filter(undone).map(|c| c.name.clone()).collect() }
}

struct Verdict {
    kind: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
}

fn conditions(
    pod: &Pod,
    observed: &Observed,
    phase: &str,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
    now: Timestamp,
) -> Vec<PodCondition> {
    let sidecars = init.iter().filter(|s| init_containers(pod).iter().any(|c| c.name == s.name && is_sidecar(c)));
    let unready: Vec<&str> = sidecars.chain(apps).filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    let ended = match phase {
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ => None,
    };
    let containers_ready = match ended {
        Some(reason) => Verdict { kind: "ContainersReady", status: false, reason, message: String::new() },
        None if unready.is_empty() => Verdict { kind: "ContainersReady", status: true, reason: "", message: String::new() },
        None => {
            let message = format!("containers with unready status: [{}]", unready.join(" "));
            Verdict { kind: "ContainersReady", status: false, reason: "ContainersNotReady", message }
        }
    };
    let undone = incomplete(pod, observed);
    let is_initialized = match ended {
        Some("PodCompleted") => Verdict { kind: "Initialized", status: true, reason: "PodCompleted", message: String::new() },
        _ if undone.is_empty() => Verdict { kind: "Initialized", status: true, reason: "", message: String::new() },
        _ => {
            let message = format!("containers with incomplete status: [{}]", undone.join(" "));
            Verdict { kind: "Initialized", status: false, reason: "ContainersNotInitialized", message }
        }
    };
    let sandbox = observed.sandbox == Sandbox::Ready;
    let to_start = Verdict { kind: "PodReadyToStartContainers", status: sandbox, reason: "", message: String::new() };
    let is_ready = ready(pod, &containers_ready);
    let ours = [to_start, is_initialized, is_ready, containers_ready];
    let before = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let mut all: Vec<PodCondition> = ours.iter().map(|v| condition(v, &before, now)).collect();
    all.extend(before.into_iter().filter(|c| ours.iter().all(|v| v.kind != c.type_)));
    all
}

fn ready(pod: &Pod, containers: &Verdict) -> Verdict {
    let gates = pod.spec.as_ref().and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default();
    if !containers.status || gates.is_empty() {
        return Verdict { kind: "Ready", status: containers.status, reason: containers.reason, message: containers.message.clone() };
    }
    let known = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let closed: Vec<String> = gates
        .iter()
        .filter_map(|gate| {
            let name = &gate.condition_type;
            match known.iter().find(|c| c.type_ == *name) {
                None => Some(format!("corresponding condition of pod readiness gate {name:?} does not exist.")),
                Some(c) if c.status != "True" => {
                    Some(format!("the status of pod readiness gate {name:?} is not \"True\", but {}", c.status))
                }
                Some(_) => None,
            }
        })
        .collect();
    let reason = if closed.is_empty() { "" } else { "ReadinessGatesNotReady" };
    Verdict { kind: "Ready", status: closed.is_empty(), reason, message: closed.join(", ") }
}

fn condition(verdict: &Verdict, before: &[PodCondition], now: Timestamp) -> PodCondition {
    let status = if verdict.status { "True" } else { "False" };
    let same = before.iter().find(|c| c.type_ == verdict.kind && c.status == status);
    let since = same.and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(now));
    PodCondition {
        type_: verdict.kind.to_string(),
        status: status.to_string(),
        reason: (!verdict.reason.is_empty()).then(|| verdict.reason.to_string()),
        message: (!verdict.message.is_empty()).then(|| verdict.message.clone()),
        last_transition_time: Some(since),
        ..same.cloned().unwrap_or_default()
    }
}

/// Whether the plan's view makes a difference to who reads statuses only: exported for the agent's own tests.
pub fn is_ready(status: &PodStatus) -> bool {
    status.conditions.as_deref().unwrap_or_default().iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// A pod in whose end nothing is left to do.
pub fn has_ended(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Containers as the API knew them, for an agent that starts anew and whose driver has forgotten them.
pub fn remembered(pod: &Pod, now: Timestamp) -> Vec<(String, Container)> {
    let status = pod.status.clone().unwrap_or_default();
    let all = status.init_container_statuses.into_iter().chain(status.container_statuses).flatten();
    all.filter(|s| s.container_id.as_deref().is_some_and(|id| !id.is_empty()))
        .map(|s| {
            let attempt = u32::try_from(s.restart_count).ok();
            let exit = match s.state.as_ref() {
                Some(ContainerState { terminated: Some(t), .. }) => from_terminated(t, now),
                Some(ContainerState { running: Some(r), .. }) => lost(r.started_at.as_ref().map(|t| t.0), now),
                _ => match s.last_state.as_ref().and_then(|l| l.terminated.as_ref()) {
                    Some(t) => from_terminated(t, now),
                    None => lost(None, now),
                },
            };
            let restarts = attempt.filter(|n| *n > 0).map(|count| pod_actions::Restarts { count, at: exit.started_at.unwrap_or(now) });
            let last = s.last_state.as_ref().and_then(|l| l.terminated.as_ref()).map(|t| from_terminated(t, now));
            let container =
                Container { attempt, state: State::Exited(exit), last, restarts, image_id: s.image_id, stale: true, ..Container::absent() };
            (s.name, container)
        })
        .collect()
}

fn from_terminated(t: &ContainerStateTerminated, now: Timestamp) -> Exit {
    Exit {
        code: t.exit_code,
        signal: t.signal,
        reason: t.reason.clone().unwrap_or_else(|| "Error".into()).into(),
        message: t.message.clone().unwrap_or_default(),
        started_at: t.started_at.as_ref().map(|t| t.0),
        finished_at: t.finished_at.as_ref().map_or(now, |t| t.0),
    }
}

/// A container that ran when the machine or its shim went away.
pub fn lost(started_at: Option<Timestamp>, now: Timestamp) -> Exit {
    Exit {
        reason: "ContainerStatusUnknown".into(),
        message: "The container could not be located when its pod was looked for on the node".into(),
        started_at,
        ..Exit::new(137, now)
    }
}
