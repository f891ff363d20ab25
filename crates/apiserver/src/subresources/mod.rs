//! What is not plainly reading or writing an object: scale, binding, eviction, tokens, reviews.

mod pods;
mod reviews;
pub mod scale;
mod tokens;

use api::Status;
use bytes::Bytes;
use http::{HeaderMap, Response};

use crate::generic::{self, Cx};
use crate::request::not_found;
use crate::respond::Body;

pub async fn serve(cx: &mut Cx<'_>, headers: &HeaderMap, body: Bytes) -> Result<Response<Body>, Status> {
    match (cx.row.group, cx.row.plural, cx.info.subresource.as_str()) {
        (_, _, "status" | "finalize" | "ephemeralcontainers") => generic::serve(cx, headers, body).await,
        (_, _, "scale") => scale::serve(cx, headers, body).await,
        ("", "pods", "binding") | ("", "bindings", "") => pods::binding(cx, headers, body).await,
        ("", "pods", "eviction") => pods::eviction(cx, headers, body).await,
        ("", "serviceaccounts", "token") => tokens::request(cx, headers, body).await,
        ("authentication.k8s.io" | "authorization.k8s.io", _, "") => reviews::review(cx, headers, body),
        _ => Err(not_found()),
    }
}
