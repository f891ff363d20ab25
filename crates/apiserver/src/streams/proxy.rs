//! `pods/NAME/proxy`, `services/NAME/proxy` and `nodes/NAME/proxy`: one HTTP request to what runs in the cluster, over the
//! agent's tunnel.
//!
//! Names are `name`, `name:port` or `http:name:port` (a port by number or name). Plain HTTP only; no upgrades.

use std::sync::Arc;

use api::{Reason, Status, Value};
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use ports::{Frame, NodeRequest, Session};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::Target;
use crate::request::{Info, not_found};
use crate::respond::{self, Body};
use crate::{Server, limits, serve};

pub async fn proxy(server: &Arc<Server>, info: &Info, request: &mut Request<Body>) -> Result<Response<Body>, Status> {
    let (name, port) = split(&info.name)?;
    let (target, port) = match info.resource.as_str() {
        "pods" => {
            let target = Target::find(server, &info.namespace, name)?;
            let port = pod_port(&target.object, port)?;
            (target, port)
        }
        "services" => behind(server, &info.namespace, name, port)?,
        "nodes" => return node(server, name, &info.rest).await,
        _ => return Err(not_found()),
    };
    let session = target
        .handler
        .open(NodeRequest::PortForward { namespace: target.namespace.clone(), pod: target.pod.clone(), uid: target.uid.clone(), port })
        .await?;
    let sent = tokio::time::timeout(limits::PROXY_TIMEOUT, send(session, &info.rest, request));
    match sent.await {
        Ok(answer) => answer,
        Err(_) => {
            Err(Status::new(Reason::Timeout, format!("pod {} did not answer within {} s", target.pod, limits::PROXY_TIMEOUT.as_secs())))
        }
    }
}

/// `[scheme:]name[:port]`
fn split(name: &str) -> Result<(&str, &str), Status> {
    let parts: Vec<&str> = name.split(':').collect();
    match parts.as_slice() {
        [name] => Ok((name, "")),
        [name, port] | ["http" | "", name, port] => Ok((name, port)),
        ["https", _, _] => Err(Status::bad_request("the proxy speaks plain HTTP only, not https")),
        _ => Err(Status::bad_request(format!("invalid name {name:?}: must be name, name:port or http:name:port"))),
    }
}

fn list<'v>(object: &'v Value, field: &str) -> &'v [Value] {
    object[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|p| u16::try_from(p).ok())
}

fn pod_port(pod: &Value, asked: &str) -> Result<u16, Status> {
    let ports = || list(&pod["spec"], "containers").iter().flat_map(|c| list(c, "ports"));
    let found = match asked {
        "" => ports().find_map(|p| number(&p["containerPort"])).or(Some(80)),
        text => {
            text.parse().ok().filter(|p| *p > 0).or_else(|| ports().find(|p| p["name"] == text).and_then(|p| number(&p["containerPort"])))
        }
    };
    found.ok_or_else(|| Status::bad_request(format!("no port {asked:?} in the pod")))
}

/// A ready pod behind a Service, and its port there.
fn behind(server: &Server, namespace: &str, name: &str, asked: &str) -> Result<(Target, u16), Status> {
    let service =
        server.state.value(&format!("core/services/{namespace}/{name}")).ok_or_else(|| Status::not_found("", "services", name))?;
    let all = list(&service["spec"], "ports");
    let wanted = match asked {
        "" => all.first(),
        text => all.iter().find(|p| p["name"] == text || number(&p["port"]) == text.parse().ok()),
    };
    let wanted =
        wanted.ok_or_else(|| Status::new(Reason::ServiceUnavailable, format!("no service port {asked:?} found for service {name:?}")))?;
    for slice in server.state.values(&format!("discovery.k8s.io/endpointslices/{namespace}/")) {
        if slice["metadata"]["labels"]["kubernetes.io/service-name"] != name {
            continue;
        }
        let named = |p: &&Value| p["name"].as_str().unwrap_or_default() == wanted["name"].as_str().unwrap_or_default();
        let Some(port) = list(&slice, "ports").iter().find(named).and_then(|p| number(&p["port"])) else { continue };
        let ready = list(&slice, "endpoints").iter().filter(|e| e["conditions"]["ready"] != false && e["targetRef"]["kind"] == "Pod");
        for endpoint in ready {
            if let Ok(target) = Target::find(server, namespace, endpoint["targetRef"]["name"].as_str().unwrap_or_default()) {
                return Ok((target, port));
            }
        }
    }
    Err(Status::new(Reason::ServiceUnavailable, format!("no endpoints available for service {name:?}")))
}

/// Of a node only its statistics are served.
async fn node(server: &Server, name: &str, rest: &str) -> Result<Response<Body>, Status> {
    if rest.trim_end_matches('/') != "stats/summary" {
        return Err(not_found());
    }
    let away = || Status::new(Reason::ServiceUnavailable, format!("the agent of node {name:?} is not connected"));
    let mut session = server.config.tunnels.node(name).ok_or_else(away)?.open(NodeRequest::Stats).await?;
    let mut body = Vec::new();
    while let Ok(Some(frame)) = tokio::time::timeout(limits::PROXY_TIMEOUT, session.output.recv()).await {
        if frame.channel == Frame::STDOUT {
            body.extend_from_slice(&frame.data);
        }
    }
    Ok(respond::bytes(StatusCode::OK, "application/json", body))
}

/// A tunnel session as a stream of bytes.
fn bytes_of(session: Session) -> DuplexStream {
    let Session { input, mut output } = session;
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut read, mut write) = tokio::io::split(far);
    tokio::spawn(async move {
        let mut buffer = vec![0; 32 * 1024];
        while let Ok(n) = read.read(&mut buffer).await {
            if n == 0 || input.send(Frame::new(Frame::STDIN, Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(frame) = output.recv().await {
            if frame.channel == Frame::STDOUT && write.write_all(&frame.data).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    });
    near
}

/// Headers that speak of this hop, or prove who the caller is to us and to nobody else.
fn forwardable(headers: &HeaderMap) -> HeaderMap {
    let mut out = headers.clone();
    for name in [CONNECTION, UPGRADE, TRANSFER_ENCODING, CONTENT_LENGTH, AUTHORIZATION, COOKIE, HOST, ACCEPT_ENCODING] {
        out.remove(name);
    }
    for name in ["keep-alive", "te", "trailer", "proxy-authorization", "proxy-connection"] {
        out.remove(name);
    }
    let impersonating: Vec<_> = out.keys().filter(|k| k.as_str().starts_with("impersonate-")).cloned().collect();
    impersonating.into_iter().for_each(|name| drop(out.remove(name)));
    out
}

async fn send(session: Session, rest: &str, request: &mut Request<Body>) -> Result<Response<Body>, Status> {
    let failed = |e: &dyn std::fmt::Display| Status::new(Reason::ServiceUnavailable, format!("error trying to reach service: {e}"));
    let body = serve::collect(std::mem::replace(request.body_mut(), respond::empty())).await?;
    let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
    let mut outgoing = Request::builder()
        .method(request.method().clone())
        .uri(format!("/{rest}{query}"))
        .body(Full::new(body))
        .map_err(|e| Status::bad_request(e.to_string()))?;
    *outgoing.headers_mut() = forwardable(request.headers());
    outgoing.headers_mut().insert(HOST, http::HeaderValue::from_static("localhost"));
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(bytes_of(session))).await.map_err(|e| failed(&e))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a proxied connection ended");
        }
    });
    let mut answer = client.send_request(outgoing).await.map_err(|e| failed(&e))?;
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        answer.headers_mut().remove(name);
    }
    Ok(answer.map(|body| body.map_err(std::io::Error::other).boxed_unsync()))
}
