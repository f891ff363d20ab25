//! The client's half of OCI distribution-spec 1.1: one request at a time, with the two ways registries ask for credentials.
//!
//! HTTPS always, but for loopback and for hosts that the configuration names as plain.

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Either, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::{Error, Reference, Result, limits};

/// What a request may carry: nothing, a few bytes, or a stream from a file.
pub type RequestBody = Either<Full<Bytes>, UnsyncBoxBody<Bytes, std::io::Error>>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

/// How registries are reached. Cheap to clone.
#[derive(Clone)]
pub struct Remote {
    tls: Arc<rustls::ClientConfig>,
    plain_hosts: Arc<[String]>,
}

impl Remote {
    /// `plain_hosts`: registries (`host` or `host:port`) that speak plain HTTP, beside loopback; `extra_roots`: further CA
    /// certificates in DER.
    pub fn new(plain_hosts: Vec<String>, extra_roots: Vec<rustls::pki_types::CertificateDer<'static>>) -> Self {
        let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        use rustls::pki_types::pem::PemObject;
        let system = rustls::pki_types::CertificateDer::pem_file_iter("/etc/ssl/certs/ca-certificates.crt");
        roots.add_parsable_certificates(system.into_iter().flatten().flatten());
        roots.add_parsable_certificates(extra_roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        // The provider is fixed above and has both versions: this cannot fail.
        let tls = builder.expect("ring speaks TLS 1.2 and 1.3").with_root_certificates(roots).with_no_client_auth();
        Self { tls: Arc::new(tls), plain_hosts: plain_hosts.into() }
    }

    fn plain(&self, authority: &str) -> bool {
        let host = authority.rsplit_once(':').map_or(authority, |(h, _)| h);
        matches!(host, "localhost" | "127.0.0.1" | "[::1]") || self.plain_hosts.iter().any(|p| p == authority || p == host)
    }

    /// One exchange on a connection of its own.
    async fn exchange(&self, uri: &Uri, mut request: Request<RequestBody>) -> Result<Response<Incoming>> {
        let authority = uri.authority().map(|a| a.as_str().to_string()).unwrap_or_default();
        let unreachable = |e: &dyn std::fmt::Display| Error::Unreachable(authority.clone(), e.to_string());
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_string();
        let plain = uri.scheme_str() == Some("http");
        let port = uri.port_u16().unwrap_or(if plain { 80 } else { 443 });
        let work = async {
            let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(|e| unreachable(&e))?;
            tcp.set_nodelay(true).map_err(|e| unreachable(&e))?;
            let path = uri.path_and_query().map_or("/", |p| p.as_str());
            *request.uri_mut() = path.parse().map_err(|e| unreachable(&e))?;
            request.headers_mut().insert(header::HOST, HeaderValue::from_str(&authority).map_err(|e| unreachable(&e))?);
            request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(concat!("staithe/", env!("CARGO_PKG_VERSION"))));
            if plain {
                send(TokioIo::new(tcp), request).await.map_err(|e| unreachable(&e))
            } else {
                let name = rustls::pki_types::ServerName::try_from(host.clone()).map_err(|e| unreachable(&e))?;
                let tls = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, tcp).await.map_err(|e| unreachable(&e))?;
                send(TokioIo::new(tls), request).await.map_err(|e| unreachable(&e))
            }
        };
        timeout(limits::RESPONSE_TIMEOUT, work).await.map_err(|_| unreachable(&"no answer in time"))?
    }

    /// A conversation about one repository; keeps what the registry gave as a token.
    pub fn session(&self, reference: &Reference, credentials: Option<Credentials>) -> Session {
        let scheme = if self.plain(reference.host()) { "http" } else { "https" };
        Session {
            remote: self.clone(),
            base: format!("{scheme}://{}/v2/{}", reference.host(), reference.repository),
            shown: reference.to_string(),
            repository: reference.repository.clone(),
            credentials,
            authorization: Arc::default(),
        }
    }
}

async fn send<IO>(io: IO, request: Request<RequestBody>) -> hyper::Result<Response<Incoming>>
where
    IO: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

#[derive(Clone)]
pub struct Session {
    remote: Remote,
    /// `https://host/v2/repository`
    base: String,
    shown: String,
    repository: String,
    credentials: Option<Credentials>,
    authorization: Arc<Mutex<Option<HeaderValue>>>,
}

impl Session {
    /// Sends a request to `path` below the repository (or to an absolute URL), answering one demand for credentials and
    /// following redirects. `body` is called again for each attempt.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        push: bool,
        body: &(dyn Fn() -> Result<RequestBody> + Send + Sync),
    ) -> Result<Response<Incoming>> {
        let mut url = if path.contains("://") { path.to_string() } else { format!("{}/{path}", self.base) };
        let own = host_of(&self.base);
        let mut asked = false;
        for _ in 0..=limits::REDIRECTS_MAX {
            let uri: Uri = url.parse().map_err(|e| Error::Unreachable(self.shown.clone(), format!("{url}: {e}")))?;
            let mut request =
                Request::builder().method(method.clone()).uri(uri.clone()).body(body()?).map_err(|e| Error::Invalid(e.to_string()))?;
            *request.headers_mut() = headers.clone();
            // Credentials are for the registry, not for the storage it redirects to.
            if host_of(&url) == own
                && let Some(value) = self.authorization.lock().await.clone()
            {
                request.headers_mut().insert(header::AUTHORIZATION, value);
            }
            let response = self.remote.exchange(&uri, request).await?;
            match response.status() {
                StatusCode::UNAUTHORIZED if !asked => {
                    asked = true;
                    self.answer_challenge(&response, push).await?;
                }
                status if status.is_redirection() => {
                    let to = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
                    url = absolute(&url, to);
                }
                _ => return Ok(response),
            }
        }
        Err(Error::Unreachable(self.shown.clone(), "too many redirects".into()))
    }

    /// A GET or HEAD without a body.
    pub async fn get(&self, method: Method, path: &str, headers: &HeaderMap) -> Result<Response<Incoming>> {
        self.request(method, path, headers, false, &|| Ok(Either::Left(Full::default()))).await
    }

    async fn answer_challenge(&self, response: &Response<Incoming>, push: bool) -> Result<()> {
        let challenges: Vec<&str> = response.headers().get_all(header::WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok()).collect();
        let basic = self.credentials.as_ref().map(|c| {
            let pair = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", c.username, c.password));
            format!("Basic {pair}")
        });
        let value = if let Some(bearer) = challenges.iter().find(|c| c.to_ascii_lowercase().starts_with("bearer ")) {
            format!("Bearer {}", self.fetch_token(&bearer[7..], basic.as_deref(), push).await?)
        } else {
            basic.ok_or_else(|| Error::Unauthorized(self.shown.clone(), "the registry asks for a user name and a password".into()))?
        };
        let value = HeaderValue::from_str(&value).map_err(|e| Error::Invalid(e.to_string()))?;
        *self.authorization.lock().await = Some(value);
        Ok(())
    }

    /// The token flow of the distribution project (`WWW-Authenticate: Bearer realm=…,service=…,scope=…`).
    async fn fetch_token(&self, challenge: &str, basic: Option<&str>, push: bool) -> Result<String> {
        let parameter = |name: &str| {
            let start = challenge.find(&format!("{name}=\""))? + name.len() + 2;
            Some(challenge[start..].split('"').next().unwrap_or_default().to_string())
        };
        let denied = |why: String| Error::Unauthorized(self.shown.clone(), why);
        let realm = parameter("realm").ok_or_else(|| denied(format!("the registry's challenge has no realm: {challenge}")))?;
        let actions = if push { "pull,push" } else { "pull" };
        let scope = parameter("scope").unwrap_or_else(|| format!("repository:{}:{actions}", self.repository));
        let mut url = format!("{realm}{}scope={}", if realm.contains('?') { '&' } else { '?' }, encode(&scope));
        if let Some(service) = parameter("service") {
            url += &format!("&service={}", encode(&service));
        }
        let uri: Uri = url.parse().map_err(|e| denied(format!("{url}: {e}")))?;
        let mut request = Request::new(Either::Left(Full::default()));
        if let Some(basic) = basic {
            // A password goes out in the clear only where the registry itself is plain.
            if uri.scheme_str() != Some("https") && !self.base.starts_with("http://") {
                return Err(denied(format!("the token service {realm} is not HTTPS")));
            }
            request.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from_str(basic).map_err(|e| Error::Invalid(e.to_string()))?);
        }
        let response = self.remote.exchange(&uri, request).await?;
        if !response.status().is_success() {
            return Err(denied(format!("the token service answered {}: wrong user name or password?", response.status())));
        }
        let bytes = read_limited(response.into_body(), limits::MANIFEST_BYTES_MAX).await?;
        let answer: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| denied(format!("the token service's answer: {e}")))?;
        let token = answer["token"].as_str().or(answer["access_token"].as_str());
        token.map(str::to_string).ok_or_else(|| denied("the token service gave no token".into()))
    }

    /// Turns a failed answer into the error that a user reads.
    pub async fn failure(&self, response: Response<Incoming>) -> Error {
        let status = response.status();
        let text = match read_limited(response.into_body(), 64 << 10).await {
            Ok(bytes) => explain(&bytes).unwrap_or_else(|| status.to_string()),
            Err(_) => status.to_string(),
        };
        match status {
            StatusCode::NOT_FOUND => Error::NotFound(self.shown.clone()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Unauthorized(self.shown.clone(), text),
            _ => Error::Unreachable(self.shown.clone(), text),
        }
    }
}

/// `errors[0]` of distribution-spec's error body.
fn explain(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let first = &value["errors"][0];
    Some(format!("{}: {}", first["code"].as_str()?, first["message"].as_str().unwrap_or_default()))
}

/// A body as a whole, or an error once it is larger than `max` bytes or silent for too long.
pub async fn read_limited(mut body: Incoming, max: u64) -> Result<Bytes> {
    let mut all = Vec::new();
    while let Some(frame) = next_frame(&mut body).await? {
        all.extend_from_slice(&frame);
        if all.len() as u64 > max {
            return Err(Error::Invalid(format!("the registry's answer is larger than {max} bytes")));
        }
    }
    Ok(all.into())
}

/// The next bytes of a body; `None` at its end.
pub async fn next_frame(body: &mut Incoming) -> Result<Option<Bytes>> {
    let broken = |why: String| Error::Unreachable("registry".into(), why);
    loop {
        match timeout(limits::BODY_IDLE_TIMEOUT, body.frame()).await {
            Err(_) => return Err(broken("the transfer stalled".into())),
            Ok(None) => return Ok(None),
            Ok(Some(Err(e))) => return Err(broken(e.to_string())),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// A request body that streams a file.
pub fn file_body(file: std::fs::File) -> RequestBody {
    use tokio::io::AsyncReadExt;
    let file = tokio::fs::File::from_std(file);
    let stream = futures_util::stream::unfold(Some(file), |state| async move {
        let mut file = state?;
        let mut buffer = vec![0; 1 << 18];
        match file.read(&mut buffer).await {
            Ok(0) => None,
            Ok(n) => {
                buffer.truncate(n);
                Some((Ok(Frame::data(Bytes::from(buffer))), Some(file)))
            }
            Err(e) => Some((Err(e), None)),
        }
    });
    Either::Right(StreamBody::new(stream).boxed_unsync())
}

fn host_of(url: &str) -> &str {
    url.split("://").nth(1).unwrap_or_default().split('/').next().unwrap_or_default()
}

/// A `Location` may be relative to the host.
pub fn absolute(base: &str, location: &str) -> String {
    if location.contains("://") {
        return location.to_string();
    }
    let (scheme, rest) = base.split_once("://").unwrap_or(("https", base));
    format!("{scheme}://{}/{}", rest.split('/').next().unwrap_or_default(), location.trim_start_matches('/'))
}

fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') => (b as char).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

impl Session {
    /// `https://host/v2/repository`
    pub fn base(&self) -> &str {
        &self.base
    }
    pub fn shown(&self) -> &str {
        &self.shown
    }
}
