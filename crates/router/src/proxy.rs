//! One request, from its headers to its answer. Read top to bottom: each step is a function that either passes the
//! request on or answers it.
//!
//! ```text
//! handle        counts, and turns refusals into answers
//!   check       is it well formed, and for whom                      400
//!   route       which Ingress' rule                                  404, 308
//!   forward     prepare headers, bound the time                      504
//!     attempt   an endpoint, a connection, send; again elsewhere     503, 502
//!       only where nothing of the request has been sent
//!   answer      strip what was for the hop, stream the body, or join two upgraded connections
//! ```

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue, LOCATION, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use plan::routes::{Backends, Route, Routes};
use tokio::time::{Instant, timeout};

use crate::body::{self, Body, Streaming};
use crate::endpoint::{ConnectError, Endpoint, Outstanding, Sender, Set};
use crate::headers::{self, Client};
use crate::limits::{ANSWER_WITHIN, BODY_IDLE, RETRIES, UPGRADED_IDLE};
use crate::metrics::{Counts, InFlight, Metrics, Service};
use crate::table::Table;
use crate::tls::{Certificates, TlsError};

/// Kept connections that may turn out to be closed before a request insists on a new one.
const STALE_MAX: usize = 3;

/// The router: two immutable snapshots and what survives them. Cheap to share; all state is behind atomics.
pub struct Router {
    table: ArcSwap<Table>,
    backends: ArcSwap<Set>,
    certificates: Arc<Certificates>,
    metrics: Metrics,
    /// The port that redirects to HTTPS name; 443 is left out of URLs.
    https_port: u16,
}

/// Why a request is answered by the router itself.
struct Refusal {
    status: StatusCode,
    text: String,
    header: Option<(http::HeaderName, HeaderValue)>,
}

impl Refusal {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), header: None }
    }

    fn with(self, name: http::HeaderName, value: HeaderValue) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(body::text(format!("{}\n", self.text)));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// What travels with an answer's body and is released with its end.
type Held = (Outstanding, InFlight);

/// What `check` found out.
struct Checked {
    host: String,
    authority: String,
}

impl Router {
    pub fn new(https_port: u16) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self {
            table: ArcSwap::default(),
            backends: ArcSwap::default(),
            certificates: Certificates::new()?,
            metrics: Metrics::default(),
            https_port,
        }))
    }

    pub fn certificates(&self) -> &Arc<Certificates> {
        &self.certificates
    }

    /// Takes new routes at once, for every request that begins after. Returns what is wrong with certificates.
    pub fn set_routes(&self, routes: Routes) -> Vec<String> {
        let problems = self.certificates.replace(&routes.certificates);
        self.table.store(Arc::new(Table::new(routes)));
        problems
    }

    /// Takes new endpoints. When this returns, no new request goes to one that is not in them.
    pub fn set_backends(&self, backends: Backends) {
        let next = self.backends.load().next(backends, &self.metrics);
        self.backends.store(Arc::new(next));
    }

    pub fn counts(&self) -> Counts {
        self.metrics.counts()
    }

    pub async fn handle(self: Arc<Self>, request: Request<Incoming>, client: Client) -> Response<Body> {
        let checked = match check(&request) {
            Ok(checked) => checked,
            Err(refusal) => {
                self.metrics.refused();
                return refusal.into_response();
            }
        };
        let route = match self.route(&request, &checked, client) {
            Ok(route) => route,
            Err(refusal) => {
                self.metrics.unrouted();
                return refusal.into_response();
            }
        };
        let backends = self.backends.load_full();
        let Some(backend) = backends.backends.get(&route.backend) else {
            return Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("backend {} is not known yet", route.backend)).into_response();
        };
        let metrics = backend.metrics.clone();
        drop(backends);
        let began = Instant::now();
        let in_flight = metrics.enter();
        let response = match self.forward(request, &checked, &route, client, &metrics, in_flight).await {
            Ok(response) => response,
            Err(refusal) => {
                metrics.error();
                refusal.into_response()
            }
        };
        metrics.count(response.status().as_u16(), began.elapsed());
        response
    }

    fn route<B>(&self, request: &Request<B>, checked: &Checked, client: Client) -> Result<Arc<Route>, Refusal> {
        let table = self.table.load();
        let path = request.uri().path();
        let Some(route) = table.find(&checked.host, path).cloned() else {
            let why = if table.knows_host(&checked.host) {
                format!("no Ingress has a rule for path {path} of host {}", checked.host)
            } else {
                format!("no Ingress has a rule for host {:?} and path {path}", checked.host)
            };
            return Err(Refusal::new(StatusCode::NOT_FOUND, why));
        };
        if route.redirect_https && !client.tls {
            return Err(self.redirect(request, &checked.host));
        }
        Ok(route)
    }

    fn redirect<B>(&self, request: &Request<B>, host: &str) -> Refusal {
        let port = if self.https_port == 443 { String::new() } else { format!(":{}", self.https_port) };
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        let to = format!("https://{host}{port}{path}");
        let refusal = Refusal::new(StatusCode::PERMANENT_REDIRECT, format!("see {to}"));
        match HeaderValue::from_str(&to) {
            Ok(to) => refusal.with(LOCATION, to),
            Err(_) => Refusal::new(StatusCode::BAD_REQUEST, "the path cannot be put into a redirect"),
        }
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
        checked: &Checked,
        route: &Route,
        client: Client,
        metrics: &Arc<Service>,
        in_flight: InFlight,
    ) -> Result<Response<Body>, Refusal> {
        let within = route.timeout_ms.map_or(ANSWER_WITHIN, Duration::from_millis);
        let mut request = request;
        let upgrade = headers::upgrade(&request);
        // Taken before the request is sent on: afterwards nobody could join the two connections.
        let client_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let request = request.map(|incoming| Streaming::new(incoming, BODY_IDLE, ()).boxed_unsync());
        let asked = Asked { checked, route, client, upgrade };
        match timeout(within, self.attempts(request, asked, metrics)).await {
            Ok(Ok((response, outstanding))) => Ok(answer(response, client_side, (outstanding, in_flight))),
            Ok(Err(refusal)) => Err(refusal),
            Err(_) => {
                Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, format!("{} did not begin to answer within {within:?}", route.backend)))
            }
        }
    }

    /// Sends the request to an endpoint, and to others while nothing of it has been sent.
    async fn attempts(
        &self,
        mut request: Request<Body>,
        asked: Asked<'_>,
        metrics: &Arc<Service>,
    ) -> Result<(Response<Incoming>, Outstanding), Refusal> {
        let route = asked.route;
        let mut tried: Vec<SocketAddrV4> = Vec::new();
        let mut last = String::new();
        let retries = route.retries.unwrap_or(RETRIES);
        let mut stale = 0;
        loop {
            // Loaded anew each time: an endpoint that has been taken out meanwhile is not tried.
            let endpoint = self.choose(route, &tried, &last)?;
            let outstanding = endpoint.enter();
            let problem = match endpoint.connect(asked.upgrade.is_some() || stale > STALE_MAX).await {
                Ok(sender) => match self.send(&endpoint, sender, request, &asked).await {
                    Ok(response) => return Ok((response, outstanding)),
                    Err(Sent::Partly(_, Some(spare))) => {
                        request = *spare;
                        stale += 1;
                        continue;
                    }
                    Err(Sent::Partly(error, None)) => {
                        let text = format!("endpoint {} of {} broke off: {error}", endpoint.address, route.backend);
                        return Err(Refusal::new(StatusCode::BAD_GATEWAY, text));
                    }
                    // A kept connection had been closed: the same endpoint may well live, so it is not held against it.
                    Err(Sent::Not(back, error)) => {
                        request = *back;
                        stale += 1;
                        if stale <= STALE_MAX + 1 {
                            continue;
                        }
                        error.to_string()
                    }
                },
                Err(error) => describe(&error),
            };
            endpoint.suspect();
            last = format!("{}: {problem}", endpoint.address);
            tried.push(endpoint.address);
            if tried.len() > retries as usize {
                return Err(unreachable_endpoints(route, &last));
            }
            metrics.retry();
        }
    }

    fn choose(&self, route: &Route, tried: &[SocketAddrV4], last: &str) -> Result<Arc<Endpoint>, Refusal> {
        let backends = self.backends.load();
        let backend = backends.backends.get(&route.backend);
        if let Some(endpoint) = backend.and_then(|b| b.choose(tried)) {
            return Ok(endpoint.clone());
        }
        if !tried.is_empty() {
            return Err(unreachable_endpoints(route, last));
        }
        let why = match backend.and_then(|b| b.problem.as_deref()) {
            Some(problem) => format!("{problem} (Ingress {})", route.ingress),
            None => format!("no endpoint of {} is ready (Ingress {})", route.backend, route.ingress),
        };
        Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why).with(RETRY_AFTER, HeaderValue::from_static("1")))
    }

    async fn send(
        &self,
        endpoint: &Endpoint,
        sender: Sender,
        mut request: Request<Body>,
        asked: &Asked<'_>,
    ) -> Result<Response<Incoming>, Sent> {
        let h2 = matches!(sender, Sender::Two(_));
        headers::prepare(&mut request, &asked.checked.authority, asked.client, asked.upgrade.clone(), h2);
        match sender {
            Sender::One(mut sender, used) => {
                let spare = (used && is_repeatable(&request)).then(|| Box::new(copy(&request)));
                match sender.try_send_request(request).await {
                    Ok(response) => {
                        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                            endpoint.give_back(sender);
                        }
                        Ok(response)
                    }
                    Err(mut error) => Err(Sent::of(error.take_message(), error.into_error(), spare)),
                }
            }
            Sender::Two(mut sender) => match sender.try_send_request(request).await {
                Ok(response) => Ok(response),
                Err(mut error) => Err(Sent::of(error.take_message(), error.into_error(), None)),
            },
        }
    }
}

struct Asked<'a> {
    checked: &'a Checked,
    route: &'a Route,
    client: Client,
    upgrade: Option<HeaderValue>,
}

/// How far a failed request got.
enum Sent {
    Not(Box<Request<Body>>, hyper::Error),
    /// With a copy to send again where that is allowed: RFC 9110 §9.2.2, for a connection closed while idle.
    Partly(hyper::Error, Option<Box<Request<Body>>>),
}

impl Sent {
    fn of(message: Option<Request<Body>>, error: hyper::Error, spare: Option<Box<Request<Body>>>) -> Self {
        match message {
            Some(request) => Self::Not(Box::new(request), error),
            None => Self::Partly(error, spare),
        }
    }
}

/// Doing it twice is the same as doing it once, and there is no body that would be gone.
fn is_repeatable(request: &Request<Body>) -> bool {
    request.method().is_safe() && request.body().is_end_stream()
}

fn copy(request: &Request<Body>) -> Request<Body> {
    let mut copied = Request::new(body::empty());
    *copied.method_mut() = request.method().clone();
    *copied.uri_mut() = request.uri().clone();
    *copied.version_mut() = request.version();
    *copied.headers_mut() = request.headers().clone();
    copied
}

fn describe(error: &ConnectError) -> String {
    match error {
        ConnectError::Io(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => "connection refused".to_string(),
        e => e.to_string(),
    }
}

fn unreachable_endpoints(route: &Route, last: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_GATEWAY, format!("no endpoint of {} could be connected to; the last was {last}", route.backend))
}

/// Refuses what is malformed or not for a reverse proxy.
fn check<B>(request: &Request<B>) -> Result<Checked, Refusal> {
    let bad = |text: &str| Refusal::new(StatusCode::BAD_REQUEST, text);
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        let allowed = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} is not supported", request.method())).with(ALLOW, allowed));
    }
    let (host, authority) = headers::authority(request).map_err(bad)?;
    if request.headers().get(HOST).is_some() && request.version() == http::Version::HTTP_2 {
        let named = request.headers().get(HOST).map(HeaderValue::as_bytes);
        if named != Some(authority.as_bytes()) {
            return Err(bad("the Host header and :authority differ"));
        }
    }
    let path = request.uri().path();
    if path == "*" {
        return Err(bad("requests for the server as a whole (*) are not supported"));
    }
    if headers::has_dot_segments(path) {
        return Err(bad("the path holds '.' or '..' elements"));
    }
    Ok(Checked { host, authority })
}

fn answer(mut response: Response<Incoming>, client_side: Option<OnUpgrade>, held: Held) -> Response<Body> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switch(response, client_side, held);
    }
    headers::remove_hop_by_hop(response.headers_mut());
    *response.version_mut() = http::Version::default();
    response.map(|incoming| Streaming::new(incoming, BODY_IDLE, held).boxed_unsync())
}

/// Joins the client's and the endpoint's connection once both have switched protocols.
fn switch(mut response: Response<Incoming>, client_side: Option<OnUpgrade>, held: Held) -> Response<Body> {
    let Some(client_side) = client_side else {
        return Refusal::new(StatusCode::BAD_GATEWAY, "the endpoint switched protocols without being asked").into_response();
    };
    let endpoint_side = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        if let (Ok(client), Ok(endpoint)) = tokio::join!(client_side, endpoint_side) {
            let _ = crate::tunnel::join(TokioIo::new(client), TokioIo::new(endpoint), UPGRADED_IDLE).await;
        }
        drop(held);
    });
    // Connection and Upgrade belong to this answer: both hops switch.
    response.map(|_| body::empty())
}
