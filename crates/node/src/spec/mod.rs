//! From a pod's specification and an image to what a driver runs: everything looked up, resolved and decided.
//!
//! Source: `core/v1 Container`, `SecurityContext`, `ResourceRequirements`. Knows no runtime; the words of its errors are
//! the ones that users of Kubernetes know.

mod env;
mod expand;
mod security;
mod services;
mod users;

use std::collections::BTreeMap;
use std::path::PathBuf;

use driver::{Mount, Resources, Root};
use k8s_openapi::api::core::v1::{Container as Spec, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use plan::pod_actions::{app_containers, init_containers, is_sidecar};
use plan::pod_status::{Qos, qos};

use crate::images::Image;
use crate::pod::PodCx;
use crate::{files, termination, volumes};

pub(crate) use env::{Fields, field, resource as resource_field};
pub(crate) use expand::expand;

/// Why a container cannot be made as it is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// What it refers to is missing or contradicts itself; it may come.
    #[error("{0}")]
    Config(String),
    /// The image and the specification do not make a container.
    #[error("{0}")]
    Container(String),
}

impl SpecError {
    /// The container's `waiting.reason`.
    pub fn waiting_reason(&self) -> &'static str {
        match self {
            Self::Config(_) => "CreateContainerConfigError",
            Self::Container(_) => "CreateContainerError",
        }
    }
}

/// What the containers of a pod share.
pub(crate) fn pod(cx: &PodCx, netns: Option<PathBuf>) -> Result<driver::Pod, String> {
    let spec = cx.pod.spec.clone().unwrap_or_default();
    let sysctls = spec.security_context.as_ref().and_then(|s| s.sysctls.clone()).unwrap_or_default();
    let hostname = if cx.host_network() { files::node_hostname() } else { files::hostname(&cx.pod) };
    let logs = cx.paths().logs;
    std::fs::create_dir_all(&logs).map_err(|e| format!("{}: {e}", logs.display()))?;
    Ok(driver::Pod {
        uid: cx.uid.clone(),
        namespace: cx.namespace().to_string(),
        name: cx.name().to_string(),
        hostname,
        netns,
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        share_process_namespace: spec.share_process_namespace == Some(true),
        resources: Resources { pids_limit: cx.shared.config.pod_pids_limit, ..pod_resources(&cx.pod) },
        sysctls: sysctls.into_iter().map(|s| (s.name, s.value)).collect(),
        log_dir: logs,
    })
}

/// One attempt of a container, fully decided.
pub(crate) async fn container(cx: &PodCx, spec: &Spec, attempt: u32, image: &Image) -> Result<driver::Container, SpecError> {
    let variables = env::variables(cx, spec).await?;
    let map: BTreeMap<String, String> = variables.iter().cloned().collect();
    let args = arguments(spec, image, &map)?;
    let (cx2, spec2, map2) = (cx.clone(), spec.clone(), map.clone());
    let image2 = image.clone();
    // Layers and volumes are read: not on the runtime's own threads.
    let work = tokio::task::spawn_blocking(move || {
        let security = security::security(&cx2, &spec2, &image2)?;
        let mut mounts = volumes::mounts(&cx2, &spec2, &map2).map_err(SpecError::Config)?;
        let message = own_mounts(&cx2, &spec2, attempt, &mut mounts)?;
        Ok::<_, SpecError>((security, mounts, message))
    });
    let (security, mounts, message) = work.await.map_err(|e| SpecError::Container(e.to_string()))??;
    let cwd = spec.working_dir.clone().filter(|d| !d.is_empty()).unwrap_or_else(|| image.working_dir.clone());
    let hostname = if cx.host_network() { files::node_hostname() } else { files::hostname(&cx.pod) };
    Ok(driver::Container {
        name: spec.name.clone(),
        attempt,
        root: Root::Layers(image.layers.clone()),
        args,
        env: env::with_image(variables, image, &hostname),
        cwd: if cwd.is_empty() { "/".into() } else { cwd.into() },
        mounts,
        security,
        resources: resources(spec, qos(&cx.pod), cx.shared.memory_bytes),
        tty: spec.tty == Some(true),
        stdin: spec.stdin == Some(true),
        stdin_once: spec.stdin_once == Some(true),
        ephemeral_storage_limit_bytes: limit(spec.resources.as_ref(), "ephemeral-storage").map_or(0, |q| bytes(&q)),
        termination_message: Some(message),
    })
}

/// `command` replaces the image's entrypoint and its arguments, `args` only the arguments.
fn arguments(spec: &Spec, image: &Image, env: &BTreeMap<String, String>) -> Result<Vec<String>, SpecError> {
    let expanded = |list: &Option<Vec<String>>| list.as_ref().filter(|l| !l.is_empty()).map(|l| l.iter().map(|a| expand(a, env)).collect());
    let (command, args): (Option<Vec<String>>, Option<Vec<String>>) = (expanded(&spec.command), expanded(&spec.args));
    let all: Vec<String> = match (command, args) {
        (Some(command), args) => command.into_iter().chain(args.unwrap_or_default()).collect(),
        (None, Some(args)) => image.entrypoint.iter().cloned().chain(args).collect(),
        (None, None) => image.entrypoint.iter().chain(&image.cmd).cloned().collect(),
    };
    if all.is_empty() {
        return Err(SpecError::Container(format!(
            "no command specified: neither the container nor the image {} names one",
            spec.image.as_deref().unwrap_or_default()
        )));
    }
    Ok(all)
}

/// The files every container gets unless it mounts something there itself, and its termination message.
fn own_mounts(cx: &PodCx, spec: &Spec, attempt: u32, mounts: &mut Vec<Mount>) -> Result<PathBuf, SpecError> {
    let paths = cx.paths();
    let failed = |e: std::io::Error| SpecError::Container(format!("the termination message's file: {e}"));
    let file = termination::file(&paths, &spec.name, attempt);
    files::create_message(&file).map_err(failed)?;
    let target = spec.termination_message_path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/dev/termination-log".into());
    let mut own = vec![Mount { source: file.clone(), target: target.into(), ..Mount::default() }];
    for name in ["hosts", "resolv.conf", "hostname"] {
        own.push(Mount { source: paths.etc.join(name), target: PathBuf::from("/etc").join(name), ..Mount::default() });
    }
    own.retain(|o| !mounts.iter().any(|m| m.target == o.target));
    mounts.extend(own);
    Ok(file)
}

/// `SIGTERM`, `TERM`, `RTMIN+3` or a number; 0 where there is none.
pub(crate) fn signal_number(name: &str) -> i32 {
    let name = name.trim().to_ascii_uppercase();
    if let Ok(number) = name.parse::<i32>() {
        return if (1..=64).contains(&number) { number } else { 0 };
    }
    const NAMES: [(&str, i32); 10] = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ABRT", libc::SIGABRT),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("TERM", libc::SIGTERM),
        ("WINCH", libc::SIGWINCH),
        ("PWR", libc::SIGPWR),
    ];
    let short = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(real_time) = short.strip_prefix("RTMIN+") {
        return real_time.parse::<i32>().ok().map(|n| libc::SIGRTMIN() + n).filter(|n| *n <= 64).unwrap_or(0);
    }
    NAMES.iter().find(|(n, _)| *n == short).map_or(0, |(_, number)| *number)
}

// ---- resources -----------------------------------------------------------------------------------------------------

fn amount(map: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<api::quantity::Quantity> {
    map.and_then(|m| m.get(name)).and_then(|q| q.0.parse().ok())
}

pub(crate) fn limit(resources: Option<&ResourceRequirements>, name: &str) -> Option<api::quantity::Quantity> {
    amount(resources.and_then(|r| r.limits.as_ref()), name)
}

/// A request; one that is not given is the limit.
pub(crate) fn request(resources: Option<&ResourceRequirements>, name: &str) -> Option<api::quantity::Quantity> {
    amount(resources.and_then(|r| r.requests.as_ref()), name).or_else(|| limit(resources, name))
}

fn bytes(q: &api::quantity::Quantity) -> u64 {
    u64::try_from(q.as_bytes()).unwrap_or(0)
}

fn cpu(q: &api::quantity::Quantity) -> u64 {
    u64::try_from(q.as_millis()).unwrap_or(0)
}

fn resources(spec: &Spec, class: Qos, memory_of_node: u64) -> Resources {
    let r = spec.resources.as_ref();
    let memory_request_bytes = request(r, "memory").map_or(0, |q| bytes(&q));
    Resources {
        cpu_limit_millis: limit(r, "cpu").map_or(0, |q| cpu(&q)),
        cpu_request_millis: request(r, "cpu").map_or(0, |q| cpu(&q)),
        memory_limit_bytes: limit(r, "memory").map_or(0, |q| bytes(&q)),
        memory_request_bytes,
        pids_limit: 0,
        oom_score_adj: oom_score_adj(class, memory_request_bytes, memory_of_node),
    }
}

/// Who goes first when memory ends (upstream's numbers): best effort, then burstable by how little it asked for.
fn oom_score_adj(class: Qos, request: u64, node: u64) -> i32 {
    match class {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let part = (1000 * u128::from(request)) / u128::from(node.max(1));
            i32::try_from(1000 - part.min(1000) as i64).unwrap_or(999).clamp(3, 999)
        }
    }
}

/// Limits of the whole pod exist where every container has one; requests add up.
fn pod_resources(pod: &Pod) -> Resources {
    let running = || app_containers(pod).iter().chain(init_containers(pod).iter().filter(|c| is_sidecar(c)));
    let total = |name: &str, of: fn(&api::quantity::Quantity) -> u64| -> u64 {
        let each: Option<Vec<u64>> = running().map(|c| limit(c.resources.as_ref(), name).map(|q| of(&q))).collect();
        let sum: u64 = each.unwrap_or_default().iter().sum();
        let first = init_containers(pod).iter().filter_map(|c| limit(c.resources.as_ref(), name)).map(|q| of(&q)).max().unwrap_or(0);
        let init_unlimited = init_containers(pod).iter().any(|c| limit(c.resources.as_ref(), name).is_none());
        if sum == 0 || init_unlimited { 0 } else { sum.max(first) }
    };
    let requested = |name: &str, of: fn(&api::quantity::Quantity) -> u64| -> u64 {
        running().filter_map(|c| request(c.resources.as_ref(), name)).map(|q| of(&q)).sum()
    };
    Resources {
        cpu_limit_millis: total("cpu", cpu),
        cpu_request_millis: requested("cpu", cpu),
        memory_limit_bytes: total("memory", bytes),
        memory_request_bytes: requested("memory", bytes),
        ..Resources::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_follow_the_table_of_the_documentation() {
        let image = Image { entrypoint: vec!["ep".into()], cmd: vec!["c".into()], ..Image::default() };
        let list = |l: &[&str]| (!l.is_empty()).then(|| l.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        let env = [("A".to_string(), "1".to_string())].into();
        let cases: [(&[&str], &[&str], &[&str]); 4] =
            [(&[], &[], &["ep", "c"]), (&["x"], &[], &["x"]), (&[], &["$(A)"], &["ep", "1"]), (&["x"], &["y$$(A)"], &["x", "y$(A)"])];
        for (command, args, want) in cases {
            let spec = Spec { command: list(command), args: list(args), ..Spec::default() };
            assert_eq!(arguments(&spec, &image, &env).unwrap(), want);
        }
        assert!(arguments(&Spec::default(), &Image::default(), &env).is_err());
    }

    #[test]
    fn signals_and_scores() {
        for (name, number) in [("SIGTERM", 15), ("quit", 3), ("9", 9), ("", 0), ("SIGWHAT", 0), ("999", 0), ("SIGRTMIN+3", 37)] {
            assert_eq!(signal_number(name), number, "{name}");
        }
        assert_eq!(oom_score_adj(Qos::Burstable, 0, 100), 999);
        assert_eq!(oom_score_adj(Qos::Burstable, 50, 100), 500);
        assert_eq!(oom_score_adj(Qos::Burstable, 100, 100), 3);
    }
}
