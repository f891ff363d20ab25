//! The transport over TCP: TLS (or plain for `http://`), HTTP/2 where the server has it, else HTTP/1.1; pooled.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::limits::{CONNECT_TIMEOUT, CONNECTION_WINDOW_BYTES, PING_INTERVAL, PING_TIMEOUT, POOL_IDLE_TIMEOUT, STREAM_WINDOW_BYTES};
use crate::{Body, Transport};

/// A duplex byte stream after `101 Switching Protocols`; `TokioIo` of it speaks tokio's traits.
pub type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// Where the roots of a machine are, if no CA is named: Debian and Ubuntu, Fedora, Alpine.
const SYSTEM_ROOTS: [&str; 3] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What a kubeconfig says about one server and one user.
#[derive(Clone, Default)]
pub struct HttpSettings {
    /// `https://host:6443`, with a path prefix if the API is behind one.
    pub server: String,
    /// `None`: the machine's own roots.
    pub ca_pem: Option<Vec<u8>>,
    /// The name in the server's certificate, if it is not the URL's host.
    pub tls_server_name: Option<String>,
    pub client_cert_pem: Option<Vec<u8>>,
    pub client_key_pem: Option<Vec<u8>>,
    pub bearer_token: Option<String>,
}

pub struct HttpTransport {
    pool: legacy::Client<Connector, Full<Bytes>>,
    /// For upgrades, which HTTP/2 does not know.
    http1: Connector,
    base: Uri,
    authorization: Option<HeaderValue>,
}

fn invalid(what: &str, why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{what}: {why}"))
}

impl HttpTransport {
    /// Only checks and prepares; the first request connects. Errors name the setting.
    pub fn new(settings: &HttpSettings) -> io::Result<Self> {
        let base: Uri = settings.server.parse().map_err(|e| invalid("server", format!("{:?} is not a URL: {e}", settings.server)))?;
        let (Some(scheme), Some(_)) = (base.scheme(), base.host()) else {
            return Err(invalid("server", format!("{:?} is not a URL like https://127.0.0.1:6443", settings.server)));
        };
        let tls = if *scheme == Scheme::HTTPS { Some(tls_config(settings)?) } else { None };
        let authorization = settings.bearer_token.as_deref().map(bearer).transpose()?;
        let connector = |alpn: &[&[u8]]| {
            let tls = tls.clone().map(|mut config| {
                config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
                TlsConnector::from(Arc::new(config))
            });
            Connector { tls, server_name: settings.tls_server_name.clone() }
        };
        let pool = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .http2_keep_alive_while_idle(true)
            .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
            .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .build(connector(&[b"h2", b"http/1.1"]));
        Ok(Self { pool, http1: connector(&[b"http/1.1"]), base, authorization })
    }

    pub fn server(&self) -> &Uri {
        &self.base
    }

    /// Adds the server and the token to a request that names only a path.
    fn address<B>(&self, mut request: Request<B>) -> io::Result<Request<B>> {
        let prefix = self.base.path().trim_end_matches('/');
        let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
        let mut parts = self.base.clone().into_parts();
        parts.path_and_query = Some(format!("{prefix}{path}").parse().map_err(|e| invalid("path", e))?);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|e| invalid("path", e))?;
        if let Some(token) = &self.authorization {
            request.headers_mut().entry(header::AUTHORIZATION).or_insert_with(|| token.clone());
        }
        Ok(request)
    }

    /// A request on a connection of its own that asks for an upgrade (WebSocket: exec, attach, port-forward). With 101
    /// the stream is handed over; any other answer is an error whose text is the answer's.
    pub async fn upgrade(&self, request: Request<()>) -> io::Result<(Response<()>, Upgraded)> {
        let mut request = self.address(request)?;
        let stream = self.http1.connect(request.uri().clone()).await?;
        if let Some(authority) = request.uri().authority() {
            let host = HeaderValue::from_str(authority.as_str()).map_err(|e| invalid("server", e))?;
            request.headers_mut().insert(header::HOST, host);
        }
        *request.uri_mut() = request.uri().path_and_query().map_or_else(|| Uri::from_static("/"), |pq| Uri::from(pq.clone()));
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(io::Error::other)?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "upgraded connection ended");
            }
        });
        let response = sender.send_request(request.map(|()| Full::<Bytes>::default())).await.map_err(io::Error::other)?;
        if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
            let code = response.status().as_u16();
            let body = response.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
            return Err(io::Error::other(crate::error::status_of(code, &body).message));
        }
        let (parts, _) = Response::new(()).into_parts();
        let mut head = Response::from_parts(parts, ());
        *head.status_mut() = response.status();
        *head.headers_mut() = response.headers().clone();
        let upgraded = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
        Ok((head, TokioIo::new(upgraded)))
    }
}

#[async_trait]
impl Transport for HttpTransport {
    async fn send(&self, request: Request<Bytes>) -> io::Result<Response<Body>> {
        let request = self.address(request.map(Full::new))?;
        let response = self.pool.request(request).await.map_err(|e| explain(&self.base, &e))?;
        Ok(response.map(|body| body.map_err(io::Error::other).boxed_unsync()))
    }
}

/// The innermost cause is the one that helps: `connection refused`, `certificate expired`.
fn explain(base: &Uri, error: &legacy::Error) -> io::Error {
    let mut cause: &dyn std::error::Error = error;
    let mut kind = io::ErrorKind::Other;
    while let Some(source) = cause.source() {
        if let Some(io) = source.downcast_ref::<io::Error>() {
            kind = io.kind();
        }
        cause = source;
    }
    let authority = base.authority().map_or("", |a| a.as_str());
    io::Error::new(kind, format!("the API server at {authority} cannot be reached: {cause}"))
}

fn bearer(token: &str) -> io::Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim())).map_err(|e| invalid("token", e))?;
    value.set_sensitive(true);
    Ok(value)
}

fn tls_config(settings: &HttpSettings) -> io::Result<rustls::ClientConfig> {
    let system = || SYSTEM_ROOTS.iter().find_map(|path| std::fs::read(path).ok());
    let pem = match &settings.ca_pem {
        Some(pem) => pem.clone(),
        None => system().ok_or_else(|| invalid("certificate-authority", "none is given and this machine has no roots of its own"))?,
    };
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&pem) {
        // One odd certificate in a machine's bundle must not hide the others.
        let _ = roots.add(cert.map_err(|e| invalid("certificate-authority", e))?);
    }
    if roots.is_empty() {
        return Err(invalid("certificate-authority", "holds no usable certificate"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| invalid("TLS", e))?
        .with_root_certificates(roots);
    match (&settings.client_cert_pem, &settings.client_key_pem) {
        (Some(cert), Some(key)) => {
            let chain =
                CertificateDer::pem_slice_iter(cert).collect::<Result<Vec<_>, _>>().map_err(|e| invalid("client-certificate", e))?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| invalid("client-key", e))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| invalid("client-certificate", e))
        }
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(_), None) => Err(invalid("client-key", "missing beside client-certificate")),
        (None, Some(_)) => Err(invalid("client-certificate", "missing beside client-key")),
    }
}

#[derive(Clone)]
struct Connector {
    tls: Option<TlsConnector>,
    server_name: Option<String>,
}

impl Connector {
    async fn connect(&self, uri: Uri) -> io::Result<Stream> {
        let connecting = async {
            let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_string();
            let port = uri.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
            let tcp = TcpStream::connect((host.as_str(), port)).await?;
            tcp.set_nodelay(true)?;
            let Some(tls) = &self.tls else { return Ok(Stream::Plain(TokioIo::new(tcp))) };
            let name = self.server_name.clone().unwrap_or(host);
            let name = ServerName::try_from(name).map_err(|e| invalid("server", e))?;
            Ok(Stream::Tls(Box::new(TokioIo::new(tls.connect(name, tcp).await?))))
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())))
        })
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(uri).await })
    }
}

enum Stream {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Self::Tls(stream) if stream.inner().get_ref().1.alpn_protocol() == Some(b"h2") => Connected::new().negotiated_h2(),
            _ => Connected::new(),
        }
    }
}

/// One call for both kinds of stream.
macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Stream::Tls($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $call
            }
        }
    };
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        either!(self, s => s.poll_read(cx, buf))
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, s => s.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, s => s.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, s => s.poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(s) => s.is_write_vectored(),
            Self::Tls(s) => s.is_write_vectored(),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        either!(self, s => s.poll_write_vectored(cx, bufs))
    }
}
