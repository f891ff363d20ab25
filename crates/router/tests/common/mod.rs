//! A router on loopback with endpoints behind it, and clients before it.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use client::CancellationToken;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use plan::routes::{Backend, BackendProtocol, Backends, Path, Route, Routes};
use router::Router;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub type AnyBody = UnsyncBoxBody<Bytes, hyper::Error>;

pub fn full(text: impl Into<Bytes>) -> AnyBody {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Something behind the router.
pub struct Endpoint {
    pub at: SocketAddrV4,
    pub connections: Arc<AtomicUsize>,
    pub requests: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Endpoint {
    /// Stops accepting; connections there are live on.
    pub fn stop(&self) {
        self.task.abort();
    }
}

pub async fn endpoint<F, R>(answer: F) -> Endpoint
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<AnyBody>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let SocketAddr::V4(at) = listener.local_addr().unwrap() else { unreachable!() };
    let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (connected, requested) = (connections.clone(), requests.clone());
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            connected.fetch_add(1, Ordering::SeqCst);
            let (answer, requested) = (answer.clone(), requested.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    requested.fetch_add(1, Ordering::SeqCst);
                    let answer = answer(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            });
        }
    });
    Endpoint { at, connections, requests, task }
}

/// Answers `name METHOD /path`, then every header as a line, then the body.
pub async fn echo(name: &'static str) -> Endpoint {
    endpoint(move |request: Request<Incoming>| async move {
        let mut text = format!("{name} {} {}\n", request.method(), request.uri());
        for (header, value) in request.headers() {
            text.push_str(&format!("{header}: {}\n", value.to_str().unwrap_or("?")));
        }
        let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        text.push_str(&String::from_utf8_lossy(&body));
        Response::new(full(text))
    })
    .await
}

/// A router that serves.
pub struct Edge {
    pub router: Arc<Router>,
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub stop: CancellationToken,
    pub serving: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub async fn edge() -> Edge {
    let bind = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (http, https) = (bind(), bind());
    let (at, at_tls) = (http.local_addr().unwrap(), https.local_addr().unwrap());
    let router = Router::new(at_tls.port()).unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(router::server::serve(router.clone(), http, https, stop.clone()));
    Edge { router, http: at, https: at_tls, stop, serving }
}

pub fn route(backend: &str) -> Route {
    Route { ingress: "d/i".into(), backend: backend.into(), ..Route::default() }
}

/// `(host, prefix, route)` rules.
pub fn routes(rules: &[(&str, &str, Route)]) -> Routes {
    let mut routes = Routes { revision: 1, ..Routes::default() };
    for (host, path, route) in rules {
        let path = Path { path: path.to_string(), exact: false, route: route.clone() };
        routes.hosts.entry(host.to_string()).or_default().paths.push(path);
    }
    routes
}

pub fn backends(all: &[(&str, BackendProtocol, &[SocketAddrV4])]) -> Backends {
    let backend = |(key, protocol, endpoints): &(&str, BackendProtocol, &[SocketAddrV4])| {
        let service = key.split(':').next().unwrap().to_string();
        (key.to_string(), Backend { service, protocol: *protocol, endpoints: endpoints.iter().copied().collect(), problem: None })
    };
    Backends { revision: 1, backends: all.iter().map(backend).collect::<BTreeMap<_, _>>() }
}

impl Edge {
    /// One backend `d/web:80` for every host and path.
    pub fn web(&self, endpoints: &[SocketAddrV4]) {
        self.web_with(endpoints, BackendProtocol::Http, route("d/web:80"));
    }

    pub fn web_with(&self, endpoints: &[SocketAddrV4], protocol: BackendProtocol, route: Route) {
        self.router.set_backends(backends(&[("d/web:80", protocol, endpoints)]));
        self.router.set_routes(routes(&[("", "/", route)]));
    }

    /// Status and body of one GET on a connection of its own.
    pub async fn get(&self, host: &str, path: &str) -> (u16, String) {
        self.raw_answer(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
    }

    /// Everything that comes back for some bytes, until the router closes.
    pub async fn raw(&self, bytes: &str) -> String {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut all)).await;
        String::from_utf8_lossy(&all).into_owned()
    }

    pub async fn raw_answer(&self, bytes: &str) -> (u16, String) {
        let answer = self.raw(bytes).await;
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        (status, if chunked { unchunk(body) } else { body.to_string() })
    }

    /// A client that keeps connections, over HTTP/1.1.
    pub fn client(&self) -> hyper_util::client::legacy::Client<hyper_util::client::legacy::connect::HttpConnector, AnyBody> {
        hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http()
    }
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((length, tail)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap_or(0);
        if length == 0 || tail.len() < length {
            break;
        }
        body.push_str(&tail[..length]);
        rest = tail[length..].trim_start_matches("\r\n");
    }
    body
}

/// The output of curl.
pub async fn curl(arguments: &str) -> String {
    let output = tokio::process::Command::new("curl").args(["-sS", "--max-time", "10"]).args(arguments.split(' ')).output().await.unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
