//! Requests: typed over `k8s_openapi` kinds, and dynamic over paths and JSON values.
//!
//! One convention for namespaces everywhere: `""` means "cluster-scoped", and for lists and watches of namespaced kinds
//! "all namespaces".

use std::sync::Arc;
use std::time::Duration;

use api::Status;
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, header};
use http_body_util::BodyExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ListableResource, Metadata, Resource};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::status_of;
use crate::limits::{ERROR_BODY_BYTES_MAX, REQUEST_TIMEOUT, RESPONSE_BYTES_MAX, STREAM_HEAD_TIMEOUT};
use crate::watch::Watch;
use crate::{Body, Error, Transport};

/// A kind with a list, metadata and JSON forms: all of `k8s_openapi`'s top-level kinds, and our own.
pub trait Kind:
    Resource + ListableResource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Clone + Send + Sync + 'static
{
}

impl<K> Kind for K where
    K: Resource + ListableResource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Clone + Send + Sync + 'static
{
}

#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    pub label_selector: String,
    pub field_selector: String,
    /// 0: all at once.
    pub limit: u32,
    /// `metadata.continue` of the page before.
    pub continue_token: String,
    /// `""`: the newest state.
    pub resource_version: String,
}

impl ListOptions {
    pub fn labels(selector: impl Into<String>) -> Self {
        Self { label_selector: selector.into(), ..Self::default() }
    }

    pub fn fields(selector: impl Into<String>) -> Self {
        Self { field_selector: selector.into(), ..Self::default() }
    }
}

#[derive(Debug, Clone, Default)]
pub struct WatchOptions {
    pub label_selector: String,
    pub field_selector: String,
    /// Events after this revision; `""`: the present state as ADDED events, then changes.
    pub resource_version: String,
    /// The server ends the watch after this long. `None`: its own choice.
    pub timeout: Option<Duration>,
    pub send_initial_events: bool,
}

/// A list and the one revision all of it was read at.
#[derive(Debug, Clone)]
pub struct ObjectList<K> {
    pub items: Vec<K>,
    pub resource_version: String,
    /// Not empty: there is more, ask with it.
    pub continue_token: String,
    pub remaining_item_count: Option<i64>,
}

/// A patch and its kind (RFC 7386, Kubernetes' strategic merge, RFC 6902, server-side apply).
#[derive(Debug, Clone)]
pub enum Patch {
    Merge(Value),
    Strategic(Value),
    Json(Value),
    /// `object` needs `apiVersion` and `kind`; `force` takes fields from other managers.
    Apply {
        manager: String,
        force: bool,
        object: Value,
    },
}

impl Patch {
    pub fn content_type(&self) -> &'static str {
        match self {
            Self::Merge(_) => "application/merge-patch+json",
            Self::Strategic(_) => "application/strategic-merge-patch+json",
            Self::Json(_) => "application/json-patch+json",
            Self::Apply { .. } => "application/apply-patch+yaml",
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    /// Preconditions: another object of the same name, or a changed one, is a conflict.
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    /// `Foreground`, `Background` or `Orphan`.
    pub propagation: Option<&'static str>,
}

impl DeleteOptions {
    /// Only the object with this uid.
    pub fn uid(uid: impl Into<String>) -> Self {
        Self { uid: Some(uid.into()), ..Self::default() }
    }

    fn body(&self) -> Value {
        let mut body = json!({ "kind": "DeleteOptions", "apiVersion": "v1" });
        if let Some(seconds) = self.grace_period_seconds {
            body["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(policy) = self.propagation {
            body["propagationPolicy"] = policy.into();
        }
        if let Some(uid) = &self.uid {
            body["preconditions"]["uid"] = uid.as_str().into();
        }
        if let Some(revision) = &self.resource_version {
            body["preconditions"]["resourceVersion"] = revision.as_str().into();
        }
        body
    }
}

/// The URL path of a kind (name empty), an object, or a subresource of one.
pub fn path<K: Resource>(namespace: &str, name: &str, subresource: &str) -> String {
    let mut path = if K::GROUP.is_empty() { format!("/api/{}", K::VERSION) } else { format!("/apis/{}/{}", K::GROUP, K::VERSION) };
    if !namespace.is_empty() {
        path += &format!("/namespaces/{namespace}");
    }
    path += &format!("/{}", K::URL_PATH_SEGMENT);
    for part in [name, subresource] {
        if !part.is_empty() {
            path += &format!("/{}", utf8_percent_encode(part, PATH));
        }
    }
    path
}

/// Letters that names may have and paths too; `:` is in RBAC names.
const PATH: &percent_encoding::AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b':').remove(b'~');

/// `?a=b&c=d` of the pairs whose value is not empty.
pub(crate) fn query(pairs: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, value) in pairs.iter().filter(|(_, v)| !v.is_empty()) {
        out.push(if out.is_empty() { '?' } else { '&' });
        out += name;
        out.push('=');
        out.extend(utf8_percent_encode(value, PATH));
    }
    out
}

/// Speaks to one API server with one identity. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    agent: Arc<str>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.agent)
    }
}

impl Client {
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport, agent: "staithe".into() }
    }

    /// The name written into `managedFields` (`fieldManager`) and sent as `User-Agent`.
    pub fn with_field_manager(mut self, name: &str) -> Self {
        self.agent = name.into();
        self
    }

    // ---- dynamic ---------------------------------------------------------------------------------------------------

    /// One request, its answer still a stream. A status of 400 or more is an [`Error::Api`].
    pub async fn send(&self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<Response<Body>, Error> {
        let mut request = Request::builder().method(method).uri(path).header(header::USER_AGENT, &*self.agent);
        request = request.header(header::ACCEPT, "application/json");
        if !content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let request = request.body(body).map_err(|e| Status::bad_request(format!("{path}: {e}")))?;
        self.send_request(request).await
    }

    /// Like [`Client::send`], with headers of the caller's own (`Accept: …;as=Table`).
    pub async fn send_request(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let path = request.uri().path().to_string();
        let response = tokio::time::timeout(STREAM_HEAD_TIMEOUT.max(REQUEST_TIMEOUT), self.transport.send(request))
            .await
            .map_err(|_| Error::timeout(&path, REQUEST_TIMEOUT))??;
        if response.status().as_u16() < 400 {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let body = collect(response.into_body(), ERROR_BODY_BYTES_MAX).await.unwrap_or_default();
        Err(status_of(code, &body).into())
    }

    /// One request and its whole answer.
    pub async fn bytes(&self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<Bytes, Error> {
        let whole = async {
            let response = self.send(method, path, content_type, body).await?;
            Ok(collect(response.into_body(), RESPONSE_BYTES_MAX).await?)
        };
        tokio::time::timeout(REQUEST_TIMEOUT, whole).await.map_err(|_| Error::timeout(path, REQUEST_TIMEOUT))?
    }

    /// One request with a JSON answer of any shape; `content_type` may be empty when there is no body.
    pub async fn request(&self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<Value, Error> {
        let bytes = self.bytes(method, path, content_type, body).await?;
        decode(path, &bytes)
    }

    pub async fn get_path(&self, path: &str) -> Result<Value, Error> {
        self.request(Method::GET, path, "", Bytes::new()).await
    }

    /// The body of an answer as it comes: logs, watches in their wire form.
    pub async fn stream(&self, path: &str) -> Result<Body, Error> {
        let head = self.send(Method::GET, path, "", Bytes::new());
        let response = tokio::time::timeout(STREAM_HEAD_TIMEOUT, head).await.map_err(|_| Error::timeout(path, STREAM_HEAD_TIMEOUT))??;
        Ok(response.into_body())
    }

    /// POSTs to a path that answers with something else than it was sent: reviews, tokens, bindings.
    pub async fn post<B: Serialize, R: DeserializeOwned>(&self, path: &str, body: &B) -> Result<R, Error> {
        let body = encode(path, body)?;
        let bytes = self.bytes(Method::POST, path, "application/json", body).await?;
        decode(path, &bytes)
    }

    // ---- typed -----------------------------------------------------------------------------------------------------

    pub async fn get<K: Kind>(&self, namespace: &str, name: &str) -> Result<K, Error> {
        self.call(Method::GET, &path::<K>(namespace, name, ""), "", Bytes::new()).await
    }

    /// `None` when it does not exist.
    pub async fn find<K: Kind>(&self, namespace: &str, name: &str) -> Result<Option<K>, Error> {
        match self.get(namespace, name).await {
            Ok(object) => Ok(Some(object)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub async fn list<K: Kind>(&self, namespace: &str, options: &ListOptions) -> Result<ObjectList<K>, Error> {
        self.list_path(&path::<K>(namespace, "", ""), options).await
    }

    pub(crate) async fn list_path<K: DeserializeOwned>(&self, path: &str, options: &ListOptions) -> Result<ObjectList<K>, Error> {
        let limit = if options.limit == 0 { String::new() } else { options.limit.to_string() };
        let query = query(&[
            ("labelSelector", &options.label_selector),
            ("fieldSelector", &options.field_selector),
            ("limit", &limit),
            ("continue", &options.continue_token),
            ("resourceVersion", &options.resource_version),
        ]);
        let bytes = self.bytes(Method::GET, &format!("{path}{query}"), "", Bytes::new()).await?;
        let list: WireList<K> = decode(path, &bytes)?;
        Ok(ObjectList {
            items: list.items.unwrap_or_default(),
            resource_version: list.metadata.resource_version,
            continue_token: list.metadata.continue_token,
            remaining_item_count: list.metadata.remaining_item_count,
        })
    }

    pub async fn watch<K: Kind>(&self, namespace: &str, options: &WatchOptions) -> Result<Watch<K>, Error> {
        self.watch_path(&path::<K>(namespace, "", ""), options).await
    }

    pub(crate) async fn watch_path<K: DeserializeOwned>(&self, path: &str, options: &WatchOptions) -> Result<Watch<K>, Error> {
        let timeout = options.timeout.map(|t| t.as_secs().max(1).to_string()).unwrap_or_default();
        let initial = if options.send_initial_events { "true" } else { "" };
        let matching = if options.send_initial_events { "NotOlderThan" } else { "" };
        let query = query(&[
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("labelSelector", &options.label_selector),
            ("fieldSelector", &options.field_selector),
            ("resourceVersion", &options.resource_version),
            ("timeoutSeconds", &timeout),
            ("sendInitialEvents", initial),
            ("resourceVersionMatch", matching),
        ]);
        Ok(Watch::new(self.stream(&format!("{path}{query}")).await?, path))
    }

    /// Creates in the namespace that the object's metadata names.
    pub async fn create<K: Kind>(&self, object: &K) -> Result<K, Error> {
        let path = path::<K>(namespace_of(object), "", "") + &self.manager();
        self.call(Method::POST, &path, "application/json", encode(&path, object)?).await
    }

    /// Replaces; with `metadata.resourceVersion` set only that revision, else a conflict.
    pub async fn update<K: Kind>(&self, object: &K) -> Result<K, Error> {
        self.put(object, "").await
    }

    pub async fn update_status<K: Kind>(&self, object: &K) -> Result<K, Error> {
        self.put(object, "status").await
    }

    async fn put<K: Kind>(&self, object: &K, subresource: &str) -> Result<K, Error> {
        let name = object.metadata().name.as_deref().unwrap_or_default();
        if name.is_empty() {
            return Err(Status::bad_request("resource name may not be empty").into());
        }
        let path = path::<K>(namespace_of(object), name, subresource) + &self.manager();
        self.call(Method::PUT, &path, "application/json", encode(&path, object)?).await
    }

    /// `subresource` is `""`, `status` or `scale` (whose answer is then not a `K`: use [`Client::patch_path`]).
    pub async fn patch<K: Kind>(&self, namespace: &str, name: &str, patch: &Patch, subresource: &str) -> Result<K, Error> {
        let path = path::<K>(namespace, name, subresource);
        let bytes = self.patch_bytes(&path, patch).await?;
        decode(&path, &bytes)
    }

    pub async fn patch_path(&self, path: &str, patch: &Patch) -> Result<Value, Error> {
        decode(path, &self.patch_bytes(path, patch).await?)
    }

    async fn patch_bytes(&self, path: &str, patch: &Patch) -> Result<Bytes, Error> {
        let (body, query) = match patch {
            Patch::Merge(v) | Patch::Strategic(v) | Patch::Json(v) => (v, self.manager()),
            Patch::Apply { manager, force, object } => {
                (object, query(&[("fieldManager", manager), ("force", if *force { "true" } else { "" })]))
            }
        };
        let body = encode(path, body)?;
        // A path may bring parameters of its own (`?dryRun=All`).
        let query = if path.contains('?') { query.replacen('?', "&", 1) } else { query };
        self.bytes(Method::PATCH, &format!("{path}{query}"), patch.content_type(), body).await
    }

    pub async fn delete<K: Kind>(&self, namespace: &str, name: &str, options: &DeleteOptions) -> Result<(), Error> {
        self.delete_path(&path::<K>(namespace, name, ""), options).await.map(drop)
    }

    /// Answers what the server did: the object while it is still going, else a `Status`.
    pub async fn delete_path(&self, path: &str, options: &DeleteOptions) -> Result<Value, Error> {
        let body = encode(path, &options.body())?;
        self.request(Method::DELETE, path, "application/json", body).await
    }

    fn manager(&self) -> String {
        query(&[("fieldManager", &self.agent)])
    }

    async fn call<K: DeserializeOwned>(&self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<K, Error> {
        let bytes = self.bytes(method, path, content_type, body).await?;
        decode(path, &bytes)
    }
}

#[derive(Deserialize)]
struct WireList<K> {
    #[serde(default)]
    metadata: WireListMeta,
    items: Option<Vec<K>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct WireListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    continue_token: String,
    remaining_item_count: Option<i64>,
}

fn namespace_of<K: Kind>(object: &K) -> &str {
    object.metadata().namespace.as_deref().unwrap_or_default()
}

fn encode<B: Serialize + ?Sized>(what: &str, body: &B) -> Result<Bytes, Error> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|e| Error::decode(what, e))
}

fn decode<R: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<R, Error> {
    serde_json::from_slice(bytes).map_err(|e| Error::decode(what, e))
}

/// A body in one piece; larger than `bytes_max` is an error.
pub(crate) async fn collect(mut body: Body, bytes_max: usize) -> std::io::Result<Bytes> {
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if first.as_ref().map_or(0, Bytes::len) + rest.len() + data.len() > bytes_max {
            return Err(std::io::Error::other(format!("the answer has more than {bytes_max} bytes")));
        }
        match first {
            None => first = Some(data),
            Some(_) => rest.extend_from_slice(&data),
        }
    }
    Ok(match first {
        None => Bytes::new(),
        Some(first) if rest.is_empty() => first,
        Some(first) => [&first[..], &rest[..]].concat().into(),
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::{Node, Pod};
    use k8s_openapi::api::rbac::v1::ClusterRole;

    use super::*;

    #[test]
    fn paths_are_the_kubernetes_apis() {
        assert_eq!(path::<Pod>("default", "web", "status"), "/api/v1/namespaces/default/pods/web/status");
        assert_eq!(path::<Pod>("", "", ""), "/api/v1/pods");
        assert_eq!(path::<Node>("", "n1", ""), "/api/v1/nodes/n1");
        assert_eq!(path::<Deployment>("a", "", ""), "/apis/apps/v1/namespaces/a/deployments");
        assert_eq!(path::<ClusterRole>("", "system:node/x", ""), "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node%2Fx");
        assert_eq!(query(&[("labelSelector", "a in (b,c)"), ("x", ""), ("limit", "5")]), "?labelSelector=a%20in%20%28b%2Cc%29&limit=5");
    }

    #[test]
    fn delete_options_say_only_what_was_set() {
        assert_eq!(DeleteOptions::default().body(), json!({"kind": "DeleteOptions", "apiVersion": "v1"}));
        let all = DeleteOptions {
            grace_period_seconds: Some(0),
            uid: Some("u".into()),
            resource_version: Some("7".into()),
            propagation: Some("Orphan"),
        };
        let body = all.body();
        assert_eq!(body["preconditions"], json!({"uid": "u", "resourceVersion": "7"}));
        assert_eq!((body["gracePeriodSeconds"].as_i64(), body["propagationPolicy"].as_str()), (Some(0), Some("Orphan")));
    }
}
