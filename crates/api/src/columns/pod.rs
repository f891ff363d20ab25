//! Pods: what state the containers are in, told in one word.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, NAME, NONE, age, count, list, name, or, text, wide};
use crate::printer;
use crate::resource::Column;

pub const COLUMNS: &[Column] = &[
    NAME,
    text("Ready"),
    text("Status"),
    text("Restarts"),
    AGE,
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];

pub fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let seen = Seen::of(pod);
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let restarts = match seen.last_restart {
        Some(time) if seen.restarts != 0 => format!("{} ({} ago)", seen.restarts, printer::age_of(&json!(time), now)),
        _ => seen.restarts.to_string(),
    };
    vec![
        name(pod),
        json!(format!("{}/{}", seen.ready, seen.total)),
        json!(seen.word),
        json!(restarts),
        age(pod, now),
        json!(or(&status["podIPs"][0]["ip"], or(&status["podIP"], NONE))),
        json!(or(&spec["nodeName"], NONE)),
        json!(or(&status["nominatedNodeName"], NONE)),
        json!(gates(spec, status)),
    ]
}

/// The Status cell alone: `Running`, `Init:0/1`, `CrashLoopBackOff`, `Terminating` …
pub fn status(pod: &Value) -> String {
    Seen::of(pod).word
}

fn gates(spec: &Value, status: &Value) -> String {
    let gates = list(&spec["readinessGates"]);
    let met = gates.iter().filter(|g| condition(status, or(&g["conditionType"], "")) == Some("True")).count();
    if gates.is_empty() { NONE.into() } else { format!("{met}/{}", gates.len()) }
}

fn condition<'v>(status: &'v Value, kind: &str) -> Option<&'v str> {
    list(&status["conditions"]).iter().find(|c| c["type"] == kind)?["status"].as_str()
}

#[derive(Default)]
struct Seen<'v> {
    word: String,
    ready: usize,
    total: usize,
    restarts: i64,
    /// RFC 3339; they compare as text.
    last_restart: Option<&'v str>,
}

/// An init container that runs beside the others: a sidecar.
fn is_sidecar(spec: &Value, name: &Value) -> bool {
    list(&spec["initContainers"]).iter().any(|c| c["name"] == *name && c["restartPolicy"] == "Always")
}

/// `Reason`, or `Signal:9`, or `ExitCode:1`.
fn ended(terminated: &Value) -> String {
    match (or(&terminated["reason"], ""), count(&terminated["signal"])) {
        ("", 0) => format!("ExitCode:{}", count(&terminated["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.into(),
    }
}

impl<'v> Seen<'v> {
    fn of(pod: &'v Value) -> Self {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let sidecars = list(&spec["initContainers"]).iter().filter(|c| c["restartPolicy"] == "Always").count();
        let mut seen = Seen {
            word: or(&status["reason"], or(&status["phase"], "")).to_string(),
            total: list(&spec["containers"]).len() + sidecars,
            ..Seen::default()
        };
        if list(&status["conditions"]).iter().any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated") {
            seen.word = "SchedulingGated".into();
        }
        let initializing = seen.init_containers(spec, status);
        if !initializing || condition(status, "Initialized") == Some("True") {
            (seen.restarts, seen.last_restart) = (0, None);
            for container in list(&status["initContainerStatuses"]).iter().filter(|c| is_sidecar(spec, &c["name"])) {
                seen.count_restarts(container);
            }
            seen.containers(status);
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            if status["reason"] == "NodeLost" {
                seen.word = "Unknown".into();
            } else if !matches!(status["phase"].as_str(), Some("Failed" | "Succeeded")) {
                seen.word = "Terminating".into();
            }
        }
        seen
    }

    fn count_restarts(&mut self, container: &'v Value) {
        self.restarts += count(&container["restartCount"]);
        self.last_restart = self.last_restart.max(container["lastState"]["terminated"]["finishedAt"].as_str());
    }

    /// True while the pod waits for an init container.
    fn init_containers(&mut self, spec: &Value, status: &'v Value) -> bool {
        let wanted = list(&spec["initContainers"]).len();
        for (i, container) in list(&status["initContainerStatuses"]).iter().enumerate() {
            self.count_restarts(container);
            let state = &container["state"];
            let (waiting, terminated) = (&state["waiting"], &state["terminated"]);
            if terminated.is_object() && count(&terminated["exitCode"]) == 0 {
                continue;
            }
            if is_sidecar(spec, &container["name"]) && container["started"] == true {
                self.ready += usize::from(container["ready"] == true);
                continue;
            }
            let reason = or(&waiting["reason"], "");
            self.word = if terminated.is_object() {
                format!("Init:{}", ended(terminated))
            } else if !reason.is_empty() && reason != "PodInitializing" {
                format!("Init:{reason}")
            } else {
                format!("Init:{i}/{wanted}")
            };
            return true;
        }
        false
    }

    fn containers(&mut self, status: &'v Value) {
        let mut running = false;
        // From the last to the first: the first one's word is what is shown.
        for container in list(&status["containerStatuses"]).iter().rev() {
            self.count_restarts(container);
            let state = &container["state"];
            let reason = or(&state["waiting"]["reason"], "");
            if !reason.is_empty() {
                self.word = reason.into();
            } else if state["terminated"].is_object() {
                self.word = ended(&state["terminated"]);
            } else if container["ready"] == true && state["running"].is_object() {
                running = true;
                self.ready += 1;
            }
        }
        if self.word == "Completed" && running {
            let ready = condition(status, "Ready") == Some("True");
            self.word = if ready { "Running" } else { "NotReady" }.into();
        }
    }
}
