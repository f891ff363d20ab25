//! What is no object: discovery, OpenAPI, version, health, metrics, the keys of tokens.

use std::sync::Arc;

use api::discovery::{self, Aggregated};
use api::{Reason, Status, Value};
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{Method, Request, Response, StatusCode};
use serde_json::json;

use crate::negotiate;
use crate::request::{Info, Query, not_found};
use crate::respond::{self, Body};
use crate::{Server, limits};

pub fn serve(server: &Arc<Server>, info: &Info, query: &Query, request: &Request<Body>) -> Result<Response<Body>, Status> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Status::new(Reason::MethodNotAllowed, "the server does not allow this method on the requested resource"));
    }
    let path = info.path.trim_end_matches('/');
    if let Some(health) =
        ["/healthz", "/livez", "/readyz"].iter().find(|h| path == **h || path.strip_prefix(**h).is_some_and(|r| r.starts_with('/')))
    {
        return Ok(health_of(server, health, &path[health.len()..], query));
    }
    match path {
        "" => Ok(document(request, &root())),
        "/version" => Ok(document(request, &version(server))),
        "/metrics" => Ok(metrics(server)),
        "/openid/v1/jwks" => Ok(typed(request, &server.config.token_key.jwks(), "application/jwk-set+json")),
        "/.well-known/openid-configuration" => Ok(document(request, &openid(server))),
        "/openapi/v2" => Err(Status::new(Reason::NotFound, "this server publishes OpenAPI v3 only: /openapi/v3")),
        _ if path == "/api" || path == "/apis" || path.starts_with("/api/") || path.starts_with("/apis/") => {
            discover(server, path, request)
        }
        _ if path == "/openapi/v3" || path.starts_with("/openapi/v3/") => openapi(path, request),
        _ => Err(not_found()),
    }
}

fn discover(server: &Server, path: &str, request: &Request<Body>) -> Result<Response<Body>, Status> {
    let rows = api::table::all();
    if matches!(path, "/api" | "/apis")
        && let Some(form) = aggregated(request)
    {
        return Ok(typed(request, &discovery::aggregated(rows, path == "/api", form), form.content_type()));
    }
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let found = match parts.as_slice() {
        ["api"] => Some(discovery::api_versions(&format!("{}:{}", address(server), server.config.api_port))),
        ["apis"] => Some(discovery::api_groups(rows)),
        ["api", version] => discovery::api_resources(rows, "", version),
        ["apis", group] => discovery::api_group(rows, group),
        ["apis", group, version] => discovery::api_resources(rows, group, version),
        _ => None,
    };
    Ok(document(request, &found.ok_or_else(not_found)?))
}

fn address(server: &Server) -> String {
    server.config.api_addresses.first().map_or_else(|| "127.0.0.1".into(), |a| a.to_string())
}

/// The aggregated form, where the client lists it before the plain one.
fn aggregated(request: &Request<Body>) -> Option<Aggregated> {
    let accept = request.headers().get(ACCEPT)?.to_str().ok()?;
    for clause in negotiate::clauses(accept) {
        match (clause.media, clause.param("g"), clause.param("v"), clause.param("as")) {
            ("application/json", "apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList") => return Some(Aggregated::V2),
            ("application/json", "apidiscovery.k8s.io", "v2beta1", "APIGroupDiscoveryList") => return Some(Aggregated::V2Beta1),
            ("application/json" | "*/*" | "application/*", "", "", "") => return None,
            _ => {}
        }
    }
    None
}

fn openapi(path: &str, request: &Request<Body>) -> Result<Response<Body>, Status> {
    let rows = api::table::all();
    match path.strip_prefix("/openapi/v3").map(|rest| rest.trim_start_matches('/')) {
        Some("") => Ok(document(request, &api::openapi::index(rows))),
        Some(group) => Ok(tagged(request, api::openapi::document(rows, group).ok_or_else(not_found)?, "application/json")),
        None => Err(not_found()),
    }
}

fn root() -> Value {
    let mut paths = vec![
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .into_iter()
    .map(String::from)
    .collect::<Vec<_>>();
    for row in api::table::all().iter().filter(|r| !r.group.is_empty()) {
        for path in [format!("/apis/{}", row.group), format!("/apis/{}/{}", row.group, row.version)] {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    paths.sort();
    json!({ "paths": paths })
}

fn version(server: &Server) -> Value {
    let v = &server.config.version;
    json!({
        "major": v.major,
        "minor": v.minor,
        "gitVersion": v.git_version,
        "gitCommit": v.git_commit,
        "gitTreeState": "clean",
        "buildDate": v.build_date,
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

fn openid(server: &Server) -> Value {
    let issuer = &server.config.issuer;
    json!({
        "issuer": issuer,
        "jwks_uri": format!("https://{}:{}/openid/v1/jwks", address(server), server.config.api_port),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

/// The checks behind the health endpoints; `?verbose` lists them, `?exclude=` leaves some out.
fn health_of(server: &Server, endpoint: &str, one: &str, query: &Query) -> Response<Body> {
    let mut checks: Vec<(&str, Result<(), &str>)> = vec![("ping", Ok(()))];
    if endpoint != "/livez" {
        let ready = server.state.get("core/namespaces//kube-system").is_some();
        checks.push(("bootstrap", if ready { Ok(()) } else { Err("default objects are being made") }));
    }
    if endpoint == "/readyz" {
        checks.push(("shutdown", if server.stopping.is_cancelled() { Err("the server is shutting down") } else { Ok(()) }));
    }
    let one = one.trim_start_matches('/');
    let excluded: Vec<&str> = query.all("exclude").collect();
    checks.retain(|(name, _)| (one.is_empty() || *name == one) && !excluded.contains(name));
    if checks.is_empty() && !one.is_empty() {
        return respond::status(&not_found());
    }
    let failed = checks.iter().any(|(_, r)| r.is_err());
    let code = if failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    if !failed && query.get("verbose").is_none() {
        return respond::text(code, "ok");
    }
    let mut lines = String::new();
    for (name, result) in checks {
        lines.push_str(&match result {
            Ok(()) => format!("[+]{name} ok\n"),
            Err(why) => format!("[-]{name} failed: {why}\n"),
        });
    }
    lines.push_str(&format!("{} check {}\n", endpoint.trim_start_matches('/'), if failed { "failed" } else { "passed" }));
    respond::text(code, lines)
}

fn metrics(server: &Server) -> Response<Body> {
    let snapshot = server.state.cache.snapshot();
    let watches = limits::WATCHES_MAX - server.watches.available_permits();
    let gauges = [
        ("apiserver_longrunning_requests", "Open watches.", watches as f64),
        ("apiserver_storage_objects", "Objects in the store.", snapshot.len() as f64),
        ("apiserver_storage_revision", "The newest revision.", snapshot.revision as f64),
    ];
    respond::bytes(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", server.metrics.render(&gauges))
}

fn document(request: &Request<Body>, value: &Value) -> Response<Body> {
    typed(request, value, "application/json")
}

/// A document with an ETag: clients cache discovery and OpenAPI by it.
fn typed(request: &Request<Body>, value: &Value, content_type: &'static str) -> Response<Body> {
    tagged(request, value.to_string().into(), content_type)
}

fn tagged(request: &Request<Body>, body: bytes::Bytes, content_type: &'static str) -> Response<Body> {
    let digest = ring::digest::digest(&ring::digest::SHA256, &body);
    let tag: String = digest.as_ref().iter().take(16).map(|b| format!("{b:02X}")).collect();
    let tag = format!("\"{tag}\"");
    let known = request.headers().get(IF_NONE_MATCH).and_then(|v| v.to_str().ok()).is_some_and(|v| v.split(',').any(|t| t.trim() == tag));
    let mut response = if known {
        let mut response = Response::new(respond::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let gzip = negotiate::accepts_gzip(request.headers());
        respond::packed(StatusCode::OK, content_type, body, gzip)
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public"));
    headers.append(VARY, HeaderValue::from_static("Accept"));
    if let Ok(value) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, value);
    }
    response
}
