//! How a request reaches an API server. Two implementations: a TLS connection here, and the server itself in process.

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

/// A response body: whole, or a stream for watches and logs.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Sends one request; the path and query are the Kubernetes API's (`/api/v1/pods?watch=1`). The identity is the
    /// transport's: a client certificate, a token, or what the in-process server was told when it made the transport.
    async fn send(&self, request: http::Request<Bytes>) -> std::io::Result<http::Response<Body>>;
}
