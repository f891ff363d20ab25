//! Asking containers how they are: HTTP, TCP, gRPC and commands, on the beat that `plan::probes` gives.

mod grpc;
pub(crate) mod http;

use std::net::IpAddr;
use std::time::Duration;

use base::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, HTTPGetAction, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use plan::probes::{Course, Kind, Settings};

use crate::limits::PROBE_MESSAGE_BYTES;
use crate::pod::{Message, PodCx, run_exec};

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure(String),
    /// It could not be asked: counts neither way.
    Unknown(String),
}

/// The life of one probe of one attempt; ends when nothing more can change. `None` where there is no such probe.
pub(crate) fn task(
    cx: PodCx,
    spec: &Spec,
    attempt: u32,
    kind: Kind,
    started_at: Timestamp,
    verdict: Option<bool>,
) -> Option<impl Future<Output = ()> + Send + 'static> {
    let probe = match kind {
        Kind::Startup => spec.startup_probe.clone(),
        Kind::Liveness => spec.liveness_probe.clone(),
        Kind::Readiness => spec.readiness_probe.clone(),
    }?;
    let course = Course::new(kind, Settings::of(&probe), started_at, cx.shared.config.clock.now(), verdict);
    Some(run(cx, spec.clone(), attempt, probe, course))
}

async fn run(cx: PodCx, spec: Spec, attempt: u32, probe: Probe, mut course: Course) {
    let clock = cx.shared.config.clock.clone();
    while let Some(next) = course.next() {
        let wait = next.at.duration_since(clock.now());
        if wait > jiff::SignedDuration::ZERO {
            tokio::time::sleep(wait.unsigned_abs()).await;
        }
        let timeout = course.settings.timeout.unsigned_abs();
        let outcome = ask(&cx, &spec, &probe, timeout).await;
        let success = match &outcome {
            Outcome::Success => true,
            Outcome::Failure(why) => {
                if next.counts {
                    tell(&cx, &spec, format!("{} probe failed: {}", course.kind.title(), cut(why)));
                }
                false
            }
            Outcome::Unknown(why) => {
                if next.counts {
                    let text = format!("{} probe errored and resulted in unknown state: {}", course.kind.title(), cut(why));
                    tell(&cx, &spec, text);
                }
                course.skip(next, clock.now());
                continue;
            }
        };
        if let Some(value) = course.answer(next, success, clock.now()) {
            cx.send(Message::Verdict { container: spec.name.clone(), attempt, kind: course.kind, value }).await;
        }
    }
}

fn tell(cx: &PodCx, spec: &Spec, text: String) {
    cx.shared.recorder.warning(&cx.about(&spec.name), "Unhealthy", text);
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(PROBE_MESSAGE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// One question, answered within `timeout`.
async fn ask(cx: &PodCx, spec: &Spec, probe: &Probe, timeout: Duration) -> Outcome {
    let limited = |what: String| move |_: tokio::time::error::Elapsed| Outcome::Failure(what);
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        let late = format!("command timed out: {:?} timed out after {}s", command.join(" "), timeout.as_secs());
        return match tokio::time::timeout(timeout, run_exec(cx, &spec.name, &command)).await.map_err(limited(late)) {
            Ok(Ok((0, _))) => Outcome::Success,
            Ok(Ok((_, output))) => Outcome::Failure(output),
            Ok(Err(why)) => Outcome::Unknown(why),
            Err(outcome) => outcome,
        };
    }
    if let Some(get) = &probe.http_get {
        let target = match http_target(cx, spec, get) {
            Ok(target) => target,
            Err(why) => return Outcome::Unknown(why),
        };
        let late = format!("Get \"{}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)", target.url());
        return match tokio::time::timeout(timeout, http::get(&target, "kube-probe/1.33")).await.map_err(limited(late)) {
            Ok(Ok(status)) if (200..400).contains(&status) => Outcome::Success,
            Ok(Ok(status)) => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
            Ok(Err(why)) => Outcome::Failure(why),
            Err(outcome) => outcome,
        };
    }
    if let Some(socket) = &probe.tcp_socket {
        let (host, port) = match tcp_target(cx, spec, socket) {
            Ok(target) => target,
            Err(why) => return Outcome::Unknown(why),
        };
        let late = format!("dial tcp {}: i/o timeout", join(&host, port));
        return match tokio::time::timeout(timeout, tcp(&host, port)).await.map_err(limited(late)) {
            Ok(Ok(())) => Outcome::Success,
            Ok(Err(why)) => Outcome::Failure(why),
            Err(outcome) => outcome,
        };
    }
    if let Some(call) = &probe.grpc {
        let Some(host) = cx.address() else { return Outcome::Unknown("the pod has no address".into()) };
        let Ok(port) = u16::try_from(call.port) else { return Outcome::Unknown(format!("invalid port number: {}", call.port)) };
        let at = join(&host.to_string(), port);
        let late = format!("timeout: failed to connect service \"{at}\" within {}s: context deadline exceeded", timeout.as_secs());
        let asked = grpc::check(&at, call.service.as_deref().unwrap_or_default());
        return match tokio::time::timeout(timeout, asked).await.map_err(limited(late)) {
            Ok(Ok(())) => Outcome::Success,
            Ok(Err(why)) => Outcome::Failure(why),
            Err(outcome) => outcome,
        };
    }
    Outcome::Unknown("missing probe handler".into())
}

pub(crate) async fn tcp(host: &str, port: u16) -> Result<(), String> {
    let at = join(host, port);
    tokio::net::TcpStream::connect(at.as_str()).await.map(drop).map_err(|e| format!("dial tcp {at}: {}", refused(&e)))
}

/// A connection's error as Go words it, since that is what users search for.
fn refused(e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".into(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        _ => e.to_string(),
    }
}

fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn host(cx: &PodCx, given: Option<&str>) -> Result<String, String> {
    match given.filter(|h| !h.is_empty()) {
        Some(host) => Ok(host.to_string()),
        None => cx.address().as_ref().map(IpAddr::to_string).ok_or_else(|| "the pod has no address".to_string()),
    }
}

/// A number, or the name of one of the container's ports.
fn port(spec: &Spec, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => *n,
        IntOrString::String(name) => match spec.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name)) {
            Some(found) => found.container_port,
            None => name.parse().map_err(|_| format!("couldn't find port: {name:?} in container {}", spec.name))?,
        },
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

pub(crate) fn tcp_target(cx: &PodCx, spec: &Spec, action: &TCPSocketAction) -> Result<(String, u16), String> {
    Ok((host(cx, action.host.as_deref())?, port(spec, &action.port)?))
}

pub(crate) fn http_target(cx: &PodCx, spec: &Spec, action: &HTTPGetAction) -> Result<http::Target, String> {
    let path = action.path.clone().unwrap_or_default();
    let headers = action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
    Ok(http::Target {
        tls: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
        host: host(cx, action.host.as_deref())?,
        port: port(spec, &action.port)?,
        path: if path.starts_with('/') { path } else { format!("/{path}") },
        headers,
    })
}
