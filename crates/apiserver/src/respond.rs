//! Making responses: bytes, chunks, YAML, gzip, errors, warnings.

use std::collections::VecDeque;
use std::io::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use api::{Reason, Status, Value};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER, VARY, WARNING};
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full};

pub use client::Body;

use crate::limits;
use crate::negotiate::{Format, Wire};

/// A body of shared chunks: a list's items are written without being copied together.
pub struct Chunks {
    parts: VecDeque<Bytes>,
    bytes: u64,
}

impl Chunks {
    pub fn new(parts: VecDeque<Bytes>) -> Self {
        let bytes = parts.iter().map(|p| p.len() as u64).sum();
        Self { parts, bytes }
    }
}

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let next = self.parts.pop_front();
        self.bytes -= next.as_ref().map_or(0, |p| p.len() as u64);
        Poll::Ready(next.map(|p| Ok(Frame::data(p))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes)
    }
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub fn empty() -> Body {
    full(Bytes::new())
}

pub fn bytes(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

pub fn text(code: StatusCode, body: impl Into<String>) -> Response<Body> {
    bytes(code, "text/plain; charset=utf-8", body.into())
}

/// A JSON document that the server made.
pub fn json(code: StatusCode, value: &Value) -> Response<Body> {
    bytes(code, "application/json", value.to_string())
}

/// A whole document in the form that was asked for.
pub fn document(code: StatusCode, format: &Format, body: Vec<Bytes>) -> Response<Body> {
    let total: usize = body.iter().map(Bytes::len).sum();
    if format.wire == Wire::Yaml || format.pretty {
        let joined = body.concat();
        let written = match serde_json::from_slice::<Value>(&joined) {
            Ok(value) if format.wire == Wire::Yaml => api::decode::to_yaml(&value).into_bytes(),
            Ok(value) => serde_json::to_vec_pretty(&value)
                .map(|mut v| {
                    v.push(b'\n');
                    v
                })
                .unwrap_or(joined),
            Err(_) => joined,
        };
        return compressed(code, format, VecDeque::from([Bytes::from(written)]), total);
    }
    compressed(code, format, body.into(), total)
}

/// A document of the server's own, compressed where it is worth it.
pub fn packed(code: StatusCode, content_type: &'static str, body: Bytes, gzip: bool) -> Response<Body> {
    let total = body.len();
    let mut response = compressed(code, &Format { gzip, ..Format::JSON }, VecDeque::from([body]), total);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn compressed(code: StatusCode, format: &Format, parts: VecDeque<Bytes>, total: usize) -> Response<Body> {
    let gzip = format.gzip && total >= limits::GZIP_BYTES_MIN;
    let body = match gzip.then(|| deflate(&parts)).flatten() {
        Some(packed) => full(packed),
        None => Chunks::new(parts).boxed_unsync(),
    };
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    if gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response
}

fn deflate(parts: &VecDeque<Bytes>) -> Option<Vec<u8>> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for part in parts {
        out.write_all(part).ok()?;
    }
    out.finish().ok()
}

pub fn status(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(status).unwrap_or_default();
    let mut response = bytes(code, "application/json", body);
    if status.reason == Reason::TooManyRequests {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(limits::RETRY_AFTER_SECONDS));
    }
    response
}

/// `Warning: 299 - "text"`, RFC 7234 §5.5: quotes and backslashes escaped, control characters left out.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for text in warnings {
        let mut quoted = String::with_capacity(text.len() + 10);
        quoted.push_str("299 - \"");
        for c in text.chars().filter(|c| !c.is_control()) {
            if matches!(c, '"' | '\\') {
                quoted.push('\\');
            }
            quoted.push(c);
        }
        quoted.push('"');
        if let Ok(value) = HeaderValue::from_bytes(quoted.as_bytes()) {
            response.headers_mut().append(WARNING, value);
        }
    }
}
