//! An OCI distribution-spec 1.1 registry over the artifact store of this machine.
//!
//! Knows HTTP and the store. Does not know users: who may do what is asked of [`Access`]. What it acknowledged is on disk.

mod error;
pub mod limits;
mod manifests;
mod serve;
mod uploads;

use std::sync::Arc;

use artifacts::{BlobStore, Digest, Refs};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Body as HttpBody, Frame};

pub use error::Failure;
pub use serve::serve;

pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Pull,
    Push,
    Delete,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub address: Option<std::net::SocketAddr>,
    /// The local address that was dialled.
    pub local: Option<std::net::SocketAddr>,
}

/// Permission. `Err` carries the text for `UNAUTHORIZED`.
#[async_trait::async_trait]
pub trait Access: Send + Sync + 'static {
    /// `basic` is what an `Authorization: Basic` header held: user name and password.
    async fn allow(&self, peer: Peer, basic: Option<(&str, &str)>, action: Action, repository: &str) -> Result<(), String>;
}

pub struct Registry {
    pub(crate) blobs: BlobStore,
    pub(crate) refs: Refs,
    access: Arc<dyn Access>,
    ids: base::Ids,
}

/// A path below `/v2/`, taken apart. Repository names hold slashes, so the fixed words are looked for from the right.
#[derive(Debug, PartialEq, Eq)]
enum Route<'a> {
    Base,
    Catalog,
    Tags(&'a str),
    Manifest(&'a str, &'a str),
    Blob(&'a str, &'a str),
    StartUpload(&'a str),
    Upload(&'a str, &'a str),
    Referrers(&'a str, &'a str),
}

fn route(path: &str) -> Option<Route<'_>> {
    let rest = path.strip_prefix("/v2")?;
    match rest {
        "" | "/" => return Some(Route::Base),
        "/_catalog" => return Some(Route::Catalog),
        _ => {}
    }
    let rest = rest.strip_prefix('/')?;
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return Some(Route::Tags(name));
    }
    if let Some(name) = rest.strip_suffix("/blobs/uploads/").or(rest.strip_suffix("/blobs/uploads")) {
        return Some(Route::StartUpload(name));
    }
    let (front, last) = rest.rsplit_once('/')?;
    if let Some(name) = front.strip_suffix("/blobs/uploads") {
        return Some(Route::Upload(name, last));
    }
    let (name, word) = front.rsplit_once('/')?;
    match word {
        "manifests" => Some(Route::Manifest(name, last)),
        "blobs" => Some(Route::Blob(name, last)),
        "referrers" => Some(Route::Referrers(name, last)),
        _ => None,
    }
}

impl Registry {
    pub fn new(blobs: BlobStore, refs: Refs, access: Arc<dyn Access>, ids: base::Ids) -> Arc<Self> {
        Arc::new(Self { blobs, refs, access, ids })
    }

    /// The one path of every request; errors become distribution-spec's JSON here and nowhere else.
    pub async fn handle<B>(&self, peer: Peer, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin,
        B::Error: std::fmt::Display,
    {
        let head = request.method() == Method::HEAD;
        let mut response = match self.dispatch(peer, request).await {
            Ok(response) => response,
            Err(failure) => failure.response(),
        };
        response.headers_mut().insert("docker-distribution-api-version", header::HeaderValue::from_static("registry/2.0"));
        if head {
            *response.body_mut() = empty();
        }
        response
    }

    async fn dispatch<B>(&self, peer: Peer, request: Request<B>) -> Result<Response<Body>, Failure>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin,
        B::Error: std::fmt::Display,
    {
        let path = request.uri().path().to_string();
        let route = route(&path).ok_or(Failure::Unsupported)?;
        let name = match &route {
            Route::Base | Route::Catalog => "",
            Route::Tags(n) | Route::StartUpload(n) => n,
            Route::Manifest(n, _) | Route::Blob(n, _) | Route::Upload(n, _) | Route::Referrers(n, _) => n,
        };
        if !name.is_empty() && !artifacts::reference::valid_repository(name) {
            return Err(Failure::NameInvalid(name.to_string()));
        }
        let action = match *request.method() {
            Method::GET | Method::HEAD if !matches!(route, Route::Upload(..)) => Action::Pull,
            Method::DELETE if !matches!(route, Route::Upload(..)) => Action::Delete,
            _ => Action::Push,
        };
        let basic = basic_auth(request.headers());
        let basic = basic.as_ref().map(|(u, p)| (u.as_str(), p.as_str()));
        self.access.allow(peer, basic, action, name).await.map_err(Failure::Unauthorized)?;

        match (request.method().clone(), route) {
            (Method::GET | Method::HEAD, Route::Base) => json(StatusCode::OK, &serde_json::json!({})),
            (Method::GET, Route::Catalog) => self.catalog(request.uri().query()),
            (Method::GET, Route::Tags(name)) => self.tags(name, request.uri().query()),
            (Method::GET | Method::HEAD, Route::Manifest(name, reference)) => self.get_manifest(name, reference),
            (Method::PUT, Route::Manifest(name, reference)) => self.put_manifest(name, reference, request).await,
            (Method::DELETE, Route::Manifest(name, reference)) => self.delete_manifest(name, reference),
            (Method::GET | Method::HEAD, Route::Blob(_, digest)) => self.get_blob(digest, request.headers()),
            (Method::DELETE, Route::Blob(_, digest)) => self.delete_blob(digest),
            (Method::POST, Route::StartUpload(name)) => self.start_upload(name, request).await,
            (Method::PATCH, Route::Upload(name, id)) => self.patch_upload(name, id, request).await,
            (Method::PUT, Route::Upload(name, id)) => self.put_upload(name, id, request).await,
            (Method::GET, Route::Upload(name, id)) => self.upload_status(name, id),
            (Method::DELETE, Route::Upload(_, id)) => self.cancel_upload(id),
            (Method::GET, Route::Referrers(name, digest)) => self.referrers(name, digest, request.uri().query()),
            _ => Err(Failure::Unsupported),
        }
    }

    fn tags(&self, name: &str, query: Option<&str>) -> Result<Response<Body>, Failure> {
        let tags = self.refs.tags(name);
        if tags.is_empty() && self.refs.manifests(name).is_empty() {
            return Err(Failure::NameUnknown(name.to_string()));
        }
        let (page, next) = paginate(tags, query);
        let mut response = json(StatusCode::OK, &serde_json::json!({ "name": name, "tags": page }))?;
        link(&mut response, next.map(|(n, last)| format!("/v2/{name}/tags/list?n={n}&last={last}")));
        Ok(response)
    }

    fn catalog(&self, query: Option<&str>) -> Result<Response<Body>, Failure> {
        let (page, next) = paginate(self.refs.repositories(), query);
        let mut response = json(StatusCode::OK, &serde_json::json!({ "repositories": page }))?;
        link(&mut response, next.map(|(n, last)| format!("/v2/_catalog?n={n}&last={last}")));
        Ok(response)
    }

    fn get_blob(&self, digest: &str, headers: &HeaderMap) -> Result<Response<Body>, Failure> {
        let digest = Digest::parse(digest).map_err(|e| Failure::DigestInvalid(e.to_string()))?;
        let size = self.blobs.size(&digest).ok_or_else(|| Failure::BlobUnknown(digest.to_string()))?;
        let range = headers.get(header::RANGE).and_then(|v| v.to_str().ok());
        let (from, to, status) = match range {
            None => (0, size, StatusCode::OK),
            Some(text) => {
                let (from, to) = parse_range(text, size).ok_or(Failure::RangeInvalid)?;
                (from, to, StatusCode::PARTIAL_CONTENT)
            }
        };
        let file = self.blobs.file(&digest).map_err(Failure::from)?;
        let mut builder = Response::builder()
            .status(status)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, to - from)
            .header(header::ACCEPT_RANGES, "bytes")
            .header(header::ETAG, format!("\"{digest}\""))
            .header("docker-content-digest", digest.to_string());
        if status == StatusCode::PARTIAL_CONTENT {
            builder = builder.header(header::CONTENT_RANGE, format!("bytes {from}-{}/{size}", to.saturating_sub(1)));
        }
        builder.body(file_part(file, from, to - from)).map_err(Failure::internal)
    }

    /// A blob that a manifest of any repository names stays: it is shared.
    fn delete_blob(&self, digest: &str) -> Result<Response<Body>, Failure> {
        let digest = Digest::parse(digest).map_err(|e| Failure::DigestInvalid(e.to_string()))?;
        if !self.blobs.has(&digest) {
            return Err(Failure::BlobUnknown(digest.to_string()));
        }
        // Space is given back by the collection, which knows what is still referenced.
        status(StatusCode::ACCEPTED)
    }
}

/// `bytes=from-to`, `bytes=from-`, `bytes=-last` as half-open offsets (RFC 9110 §14).
fn parse_range(text: &str, size: u64) -> Option<(u64, u64)> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (from, to) = match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(from), Ok(to)) => (from, to.saturating_add(1).min(size)),
        (Ok(from), Err(_)) if to.is_empty() => (from, size),
        (Err(_), Ok(last)) if from.is_empty() => (size.saturating_sub(last), size),
        _ => return None,
    };
    (from < to).then_some((from, to))
}

fn query_value<'a>(query: Option<&'a str>, name: &str) -> Option<std::borrow::Cow<'a, str>> {
    let pair = query?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    percent_encoding::percent_decode_str(pair).decode_utf8().ok()
}

/// `n` and `last` of distribution-spec: the page and, if there is more, where the next one begins.
fn paginate(all: Vec<String>, query: Option<&str>) -> (Vec<String>, Option<(usize, String)>) {
    let last = query_value(query, "last");
    let mut rest: Vec<String> = all.into_iter().filter(|item| last.as_ref().is_none_or(|l| item.as_str() > l.as_ref())).collect();
    match query_value(query, "n").and_then(|n| n.parse::<usize>().ok()) {
        Some(n) if n < rest.len() => {
            rest.truncate(n);
            let next = rest.last().map(|l| (n, l.clone()));
            (rest, next)
        }
        _ => (rest, None),
    }
}

fn link(response: &mut Response<Body>, next: Option<String>) {
    if let Some(value) = next.and_then(|url| format!("<{url}>; rel=\"next\"").parse().ok()) {
        response.headers_mut().insert(header::LINK, value);
    }
}

fn basic_auth(headers: &HeaderMap) -> Option<(String, String)> {
    use base64::Engine as _;
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let decoded = base64::engine::general_purpose::STANDARD.decode(text.trim()).ok()?;
    let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some((user.to_string(), password.to_string()))
}

fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed_unsync()
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn json(code: StatusCode, value: &serde_json::Value) -> Result<Response<Body>, Failure> {
    let builder = Response::builder().status(code).header(header::CONTENT_TYPE, "application/json");
    builder.body(full(value.to_string())).map_err(Failure::internal)
}

fn status(code: StatusCode) -> Result<Response<Body>, Failure> {
    Response::builder().status(code).body(empty()).map_err(Failure::internal)
}

/// `length` bytes of a file from `from` on, in pieces.
fn file_part(mut file: std::fs::File, from: u64, length: u64) -> Body {
    use std::io::{Seek, SeekFrom};
    use tokio::io::AsyncReadExt;
    if let Err(e) = file.seek(SeekFrom::Start(from)) {
        tracing::warn!("seek in a blob: {e}");
        return empty();
    }
    let start = (tokio::fs::File::from_std(file), length);
    let stream = futures_util::stream::unfold(Some(start), |state| async move {
        let (mut file, left) = state?;
        if left == 0 {
            return None;
        }
        let mut buffer = vec![0; limits::PIECE_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX))];
        match file.read(&mut buffer).await {
            Ok(0) => Some((Err(std::io::Error::other("the blob is shorter than it was")), None)),
            Ok(n) => {
                buffer.truncate(n);
                Some((Ok(Frame::data(Bytes::from(buffer))), Some((file, left - n as u64))))
            }
            Err(e) => Some((Err(e), None)),
        }
    });
    StreamBody::new(stream).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart_from_the_right() {
        assert_eq!(route("/v2/"), Some(Route::Base));
        assert_eq!(route("/v2/a/b/manifests/1.0"), Some(Route::Manifest("a/b", "1.0")));
        assert_eq!(route("/v2/manifests/blobs/manifests/x"), Some(Route::Manifest("manifests/blobs", "x")));
        assert_eq!(route("/v2/a/blobs/uploads/"), Some(Route::StartUpload("a")));
        assert_eq!(route("/v2/a/blobs/uploads/id"), Some(Route::Upload("a", "id")));
        assert_eq!(route("/v2/a/tags/list"), Some(Route::Tags("a")));
        assert_eq!(route("/v3/a"), None);
        assert_eq!(route("/v2x"), None);
    }

    #[test]
    fn ranges_are_half_open_and_checked() {
        assert_eq!(parse_range("bytes=0-4", 10), Some((0, 5)));
        assert_eq!(parse_range("bytes=4-", 10), Some((4, 10)));
        assert_eq!(parse_range("bytes=-3", 10), Some((7, 10)));
        assert_eq!(parse_range("bytes=0-99", 10), Some((0, 10)));
        for bad in ["bytes=10-", "bytes=5-4", "bytes=", "bytes=-", "lines=0-1", "bytes=a-b"] {
            assert_eq!(parse_range(bad, 10), None, "{bad}");
        }
    }
}
