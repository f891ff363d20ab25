//! The server: its configuration, and the one path from a request to its answer.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use api::{Reason, Resource, Status, Value};
use async_trait::async_trait;
use base::{Ids, SharedClock};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use ports::{Authorizer as _, Identity, Tunnels};
use store::Cache;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::admission::Allocators;
use crate::authn::Caller;
use crate::authz::{MASTERS, Rbac};
use crate::generic::Cx;
use crate::metrics::Metrics;
use crate::request::{Info, Query, not_found};
use crate::respond::{self, Body};
use crate::state::State;
use crate::token::TokenKey;
use crate::{endpoints, generic, limits, negotiate, serve, streams, subresources};

/// What `/version` says. Clients look at major and minor.
#[derive(Debug, Clone)]
pub struct Version {
    pub major: &'static str,
    pub minor: &'static str,
    /// `v1.33.0+staithe0.1.0`
    pub git_version: String,
    pub git_commit: String,
    /// RFC 3339, or empty.
    pub build_date: String,
}

impl Default for Version {
    fn default() -> Self {
        let git_version = format!("v1.33.0+staithe{}", env!("CARGO_PKG_VERSION"));
        Version { major: "1", minor: "33", git_version, git_commit: String::new(), build_date: "1970-01-01T00:00:00Z".into() }
    }
}

/// All that a server is made of; nothing is read from the environment.
pub struct Config {
    pub cache: Arc<Cache>,
    pub clock: SharedClock,
    pub ids: Ids,
    pub tunnels: Arc<dyn Tunnels>,
    /// Signs service-account tokens: [`crate::pki::Pki::token_key`].
    pub token_key: Arc<TokenKey>,
    /// `iss` of tokens and their default audience.
    pub issuer: String,
    pub cluster_domain: String,
    /// The range of Service addresses: its first address and prefix length. IPv4, /8 to /29.
    pub service_cidr: (IpAddr, u8),
    pub node_ports: RangeInclusive<u16>,
    /// Where the API answers: the endpoints of the `kubernetes` Service.
    pub api_addresses: Vec<IpAddr>,
    pub api_port: u16,
    /// How long pods stay on a node that is not ready or unreachable, unless they say so themselves.
    pub default_toleration_seconds: i64,
    pub version: Version,
}

impl Config {
    /// The defaults of ARCHITECTURE.md around what has none.
    pub fn new(cache: Arc<Cache>, clock: SharedClock, ids: Ids, tunnels: Arc<dyn Tunnels>, token_key: Arc<TokenKey>) -> Config {
        Config {
            cache,
            clock,
            ids,
            tunnels,
            token_key,
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            cluster_domain: "cluster.local".into(),
            service_cidr: (IpAddr::from([10, 43, 0, 0]), 16),
            node_ports: 30_000..=32_767,
            api_addresses: vec![IpAddr::from([127, 0, 0, 1])],
            api_port: 6443,
            default_toleration_seconds: 10,
            version: Version::default(),
        }
    }
}

pub struct Server {
    pub(crate) config: Config,
    pub(crate) state: Arc<State>,
    pub(crate) rbac: Rbac,
    pub(crate) allocators: Allocators,
    pub(crate) metrics: Metrics,
    /// Ends watches and streams.
    pub(crate) stopping: CancellationToken,
    in_flight: Semaphore,
    pub(crate) watches: Arc<Semaphore>,
}

/// The server's own identity, for what it writes at start and on behalf of admission.
pub(crate) fn internal() -> Identity {
    Identity::new("system:apiserver", &[MASTERS])
}

impl Server {
    /// A server over a store that is open. Call [`Server::bootstrap`] before serving.
    pub fn new(config: Config) -> Arc<Server> {
        let state = Arc::new(State::new(config.cache.clone()));
        let allocators = Allocators::new(config.service_cidr, config.node_ports.clone(), config.ids.clone());
        Arc::new(Server {
            rbac: Rbac::new(state.clone()),
            state,
            allocators,
            metrics: Metrics::default(),
            stopping: CancellationToken::new(),
            in_flight: Semaphore::new(limits::REQUESTS_IN_FLIGHT_MAX),
            watches: Arc::new(Semaphore::new(limits::WATCHES_MAX)),
            config,
        })
    }

    /// Ends all watches and streams; requests in flight go on.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// For in-process clients: the same path as over TLS, with this identity.
    pub fn transport(self: &Arc<Self>, identity: Identity) -> Arc<dyn client::Transport> {
        Arc::new(InProcess { server: self.clone(), identity })
    }

    /// Answers one request. Never fails: an error is a `Status` in the response.
    pub async fn handle(self: &Arc<Self>, caller: Caller, mut request: Request<Body>) -> Response<Body> {
        let method = request.method().clone();
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let info = match Info::parse(&method, request.uri().path(), &query) {
            Ok(info) => info,
            Err(status) => return respond::status(&status),
        };
        let response = match self.admit(caller, request.headers(), &info) {
            Ok(who) => self.dispatch(who, &info, query, &mut request).await.unwrap_or_else(|status| respond::status(&status)),
            Err(status) => respond::status(&status),
        };
        self.metrics.count(&info, response.status());
        response
    }

    /// Authentication and authorization.
    fn admit(&self, caller: Caller, headers: &HeaderMap, info: &Info) -> Result<Identity, Status> {
        let who = self.authenticate(caller, headers)?;
        let what = info.attributes();
        match self.rbac.authorize(&who, &what) {
            Ok(()) => Ok(who),
            Err(why) if info.is_resource => Err(Status::forbidden(&info.group, &info.resource, &info.name, &why)),
            Err(why) => Err(Status::new(Reason::Forbidden, format!("forbidden: {why}"))),
        }
    }

    async fn dispatch(
        self: &Arc<Self>,
        who: Identity,
        info: &Info,
        query: Query,
        request: &mut Request<Body>,
    ) -> Result<Response<Body>, Status> {
        if !info.is_resource {
            return endpoints::serve(self, info, &query, request);
        }
        let row = api::table::by_path(&info.group, &info.version, &info.resource).ok_or_else(not_found)?;
        if info.namespace.is_empty() && row.namespaced() && (!info.name.is_empty() || info.verb == "create") && !row.virtual_kind {
            return Err(Status::bad_request("an empty namespace may not be set when a resource name is provided"));
        }
        if !info.namespace.is_empty() && !row.namespaced() && row.plural != "namespaces" {
            return Err(not_found());
        }
        if is_stream(&info.subresource) {
            return self.stream(info, &query, request).await;
        }
        let verb = if info.subresource.is_empty() && info.verb == "watch" { "watch" } else { info.verb.as_str() };
        let allowed = match info.subresource.as_str() {
            "" => row.verbs.contains(&verb),
            sub => row.subresources.iter().find(|s| s.name == sub).ok_or_else(not_found)?.verbs.contains(&verb),
        };
        // Objects are made in their collection and changed where they are.
        let misplaced = match verb {
            "create" => info.subresource.is_empty() && !info.name.is_empty(),
            "update" | "patch" => info.name.is_empty(),
            _ => false,
        };
        if !allowed || misplaced {
            let message = "the server does not allow this method on the requested resource";
            return Err(Status::new(Reason::MethodNotAllowed, message));
        }
        let views = !matches!(verb, "create" | "update" | "patch") || info.subresource.is_empty();
        let format = negotiate::format(request.headers(), &query, views)?;
        let mut cx = Cx { server: self, who, info, query: &query, row, format, warnings: Vec::new() };
        if verb == "watch" {
            return generic::watch(&mut cx).await;
        }
        // The body first: a client that is slow to send one must not hold a place that others could use.
        let (headers, body) = read_body(request).await?;
        let _permit = self.in_flight.try_acquire().map_err(|_| {
            Status::new(Reason::TooManyRequests, "the server has received too many requests and has asked us to try again later")
        })?;
        let mut response = if info.subresource.is_empty() && !row.virtual_kind {
            generic::serve(&mut cx, &headers, body).await?
        } else {
            subresources::serve(&mut cx, &headers, body).await?
        };
        respond::warn(&mut response, &cx.warnings);
        Ok(response)
    }

    async fn stream(self: &Arc<Self>, info: &Info, query: &Query, request: &mut Request<Body>) -> Result<Response<Body>, Status> {
        if info.subresource == "proxy" && info.group.is_empty() && !info.name.is_empty() {
            return streams::proxy(self, info, request).await;
        }
        if info.resource != "pods" || !info.group.is_empty() || info.name.is_empty() {
            return Err(not_found());
        }
        let target = streams::Target::find(self, &info.namespace, &info.name)?;
        match info.subresource.as_str() {
            "log" => streams::logs(self, target, query).await,
            "exec" => streams::exec(self, target, query, false, request).await,
            "attach" => streams::exec(self, target, query, true, request).await,
            _ => streams::port_forward(self, target, query, request).await,
        }
    }

    /// The stored pod, or 404.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Result<Value, Status> {
        self.state.value(&format!("core/pods/{namespace}/{name}")).ok_or_else(|| Status::not_found("", "pods", name))
    }

    /// A request of the server's own through the whole path; a JSON answer.
    pub(crate) async fn ask(self: &Arc<Self>, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Status> {
        let body = body.map(|b| b.to_string()).unwrap_or_default();
        let content = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, content)
            .header(http::header::USER_AGENT, "staithe-apiserver")
            .body(respond::full(body))
            .map_err(Status::internal)?;
        let response = Box::pin(self.handle(Caller::Proven(internal()), request)).await;
        let ok = response.status().is_success();
        let bytes = response.into_body().collect().await.map_err(Status::internal)?.to_bytes();
        if ok {
            return serde_json::from_slice(&bytes).map_err(Status::internal);
        }
        Err(serde_json::from_slice(&bytes).unwrap_or_else(Status::internal))
    }
}

fn is_stream(subresource: &str) -> bool {
    matches!(subresource, "log" | "exec" | "attach" | "portforward" | "proxy")
}

async fn read_body(request: &mut Request<Body>) -> Result<(HeaderMap, Bytes), Status> {
    let body = std::mem::replace(request.body_mut(), respond::empty());
    let bytes = match *request.method() {
        Method::GET | Method::HEAD => Bytes::new(),
        _ => serve::collect(body).await?,
    };
    Ok((request.headers().clone(), bytes))
}

struct InProcess {
    server: Arc<Server>,
    identity: Identity,
}

#[async_trait]
impl client::Transport for InProcess {
    async fn send(&self, request: Request<Bytes>) -> std::io::Result<Response<Body>> {
        let request = request.map(respond::full);
        Ok(self.server.handle(Caller::Proven(self.identity.clone()), request).await)
    }
}

/// `Resource` rows are handed around by reference: they live as long as the program.
pub(crate) type RowRef = &'static Resource;

/// Success as upstream's `Status` has it, for what has no object to show.
pub(crate) fn success(code: StatusCode, details: Value) -> Response<Body> {
    let mut body = serde_json::json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" });
    if details.is_object() {
        body["details"] = details;
    }
    if code != StatusCode::OK {
        body["code"] = code.as_u16().into();
    }
    respond::json(code, &body)
}
