//! One GET for a probe or hook: its own connection, no verification of certificates, redirects within the same host.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{join, refused};
use crate::limits::{PROBE_BODY_BYTES, PROBE_REDIRECTS};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub tls: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Target {
    pub fn url(&self) -> String {
        format!("{}://{}{}", if self.tls { "https" } else { "http" }, join(&self.host, self.port), self.path)
    }

    /// Where a redirect leads, if it stays on this host. To another host it is not followed: the answer counts as it is.
    fn redirected(&self, location: &str) -> Option<Self> {
        let uri: http::Uri = location.parse().ok()?;
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_string();
        let Some(authority) = uri.authority() else {
            let path = if path.starts_with('/') { path } else { format!("/{path}") };
            return Some(Self { path, ..self.clone() });
        };
        let tls = uri.scheme_str().map_or(self.tls, |s| s == "https");
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let host = authority.host().trim_matches(['[', ']']);
        (host == self.host).then(|| Self { tls, port, path, ..self.clone() })
    }
}

/// The status of the last answer. Errors are worded as Go's client words them.
pub(crate) async fn get(target: &Target, agent: &str) -> Result<u16, String> {
    let mut at = target.clone();
    for _ in 0..=PROBE_REDIRECTS {
        let (status, location) = once(&at, agent).await.map_err(|why| format!("Get \"{}\": {why}", at.url()))?;
        let next = if (300..400).contains(&status) { location.and_then(|l| at.redirected(&l)) } else { None };
        match next {
            Some(next) => at = next,
            None => return Ok(status),
        }
    }
    Err(format!("Get \"{}\": stopped after {PROBE_REDIRECTS} redirects", at.url()))
}

async fn once(target: &Target, agent: &str) -> Result<(u16, Option<String>), String> {
    let at = join(&target.host, target.port);
    let stream = tokio::net::TcpStream::connect(at.as_str()).await.map_err(|e| format!("dial tcp {at}: {}", refused(&e)))?;
    if !target.tls {
        return exchange(stream, target, agent).await;
    }
    let name = ServerName::try_from(target.host.clone()).map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(unverified()?);
    let stream = connector.connect(name, stream).await.map_err(|e| format!("tls: {e}"))?;
    exchange(stream, target, agent).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &Target,
    agent: &str,
) -> Result<(u16, Option<String>), String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    // Ends with the sender: one question, one connection.
    let driver = tokio::spawn(connection);
    let answer = sender
        .send_request(request(target, agent)?)
        .await
        .map_err(|e| if e.is_incomplete_message() { "EOF".to_string() } else { e.to_string() });
    let result = match answer {
        Ok(response) => {
            let status = response.status().as_u16();
            let location = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok()).map(String::from);
            // A body that is too long is no fault of the application's.
            let _ = Limited::new(response.into_body(), PROBE_BODY_BYTES).collect().await;
            Ok((status, location))
        }
        Err(why) => Err(why),
    };
    driver.abort();
    result
}

fn request(target: &Target, agent: &str) -> Result<Request<Empty<Bytes>>, String> {
    let has = |name: &str| target.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    let mut builder = Request::get(target.path.as_str());
    if !has("host") {
        builder = builder.header(header::HOST, join(&target.host, target.port));
    }
    if !has("user-agent") {
        builder = builder.header(header::USER_AGENT, agent);
    }
    if !has("accept") {
        builder = builder.header(header::ACCEPT, "*/*");
    }
    builder = builder.header(header::CONNECTION, "close");
    for (name, value) in target.headers.iter().filter(|(_, v)| !v.is_empty()) {
        builder = builder.header(name, value);
    }
    builder.body(Empty::new()).map_err(|e| e.to_string())
}

/// Accepts any certificate: a probe asks whether something answers, not who it is (as upstream).
#[derive(Debug)]
struct Anyone(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn unverified() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: OnceLock<Result<Arc<ClientConfig>, String>> = OnceLock::new();
    let make = || {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
        let config = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))).with_no_client_auth();
        Ok(Arc::new(config))
    };
    CONFIG.get_or_init(make).clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Answers every connection with what `answer` makes of the request's first line.
    async fn server(answer: fn(&str) -> String) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = vec![0u8; 4096];
                let n = stream.read(&mut buffer).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                let _ = stream.write_all(answer(&text).as_bytes()).await;
            }
        });
        port
    }

    fn target(port: u16, path: &str) -> Target {
        Target { tls: false, host: "127.0.0.1".into(), port, path: path.into(), headers: vec![("X-Test".into(), "yes".into())] }
    }

    #[tokio::test]
    async fn statuses_headers_and_redirects() {
        let port = server(|request| {
            let code = match request.split(' ').nth(1).unwrap_or_default() {
                "/ok" if request.to_lowercase().contains("x-test: yes") => "200 OK\r\nContent-Length: 2\r\n\r\nok",
                "/to-ok" => "302 Found\r\nLocation: /ok\r\nContent-Length: 0\r\n\r\n",
                "/away" => "302 Found\r\nLocation: http://elsewhere.example/\r\nContent-Length: 0\r\n\r\n",
                "/round" => "302 Found\r\nLocation: /round\r\nContent-Length: 0\r\n\r\n",
                _ => "503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
            };
            format!("HTTP/1.1 {code}")
        })
        .await;
        for (path, want) in [("/ok", 200), ("/to-ok", 200), ("/away", 302), ("/bad", 503)] {
            assert_eq!(get(&target(port, path), "test").await, Ok(want), "{path}");
        }
        assert!(get(&target(port, "/round"), "test").await.unwrap_err().ends_with("stopped after 10 redirects"));
    }

    #[tokio::test]
    async fn a_closed_port_is_told_in_gos_words() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let why = get(&target(port, "/"), "test").await.unwrap_err();
        assert_eq!(why, format!("Get \"http://127.0.0.1:{port}/\": dial tcp 127.0.0.1:{port}: connect: connection refused"));
    }
}
