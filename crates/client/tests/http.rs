//! The TCP transport against a real TLS server on loopback: both HTTP versions, client certificates, tokens, upgrades.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use client::{Client, HttpSettings, HttpTransport, WatchEvent, WatchOptions};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::ConfigMap;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

struct Pki {
    ca: String,
    server: (String, String),
    client: (String, String),
}

fn pki() -> Pki {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, &ca_key);
    let leaf = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec![name.to_string()]).unwrap().signed_by(&key, &issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    };
    Pki { ca: ca.pem(), server: leaf("127.0.0.1"), client: leaf("me") }
}

/// Answers with what it saw; `/watch` streams; anything that asks for an upgrade becomes an echo.
async fn answer(mut request: Request<Incoming>, certs: usize) -> Result<Response<client::Body>, Infallible> {
    let whole = |code: u16, text: String| {
        let body = Full::new(Bytes::from(text)).map_err(|e| match e {}).boxed_unsync();
        Ok(Response::builder().status(code).body(body).unwrap())
    };
    let header = |name: &str| request.headers().get(name).map(|v| v.to_str().unwrap().to_string());
    if header("upgrade").is_some() {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut word = [0; 5];
            io.read_exact(&mut word).await.unwrap();
            io.write_all(&word).await.unwrap();
            io.shutdown().await.unwrap();
        });
        let mut response = whole(101, String::new())?;
        response.headers_mut().insert("upgrade", "echo".parse().unwrap());
        response.headers_mut().insert("connection", "upgrade".parse().unwrap());
        return Ok(response);
    }
    let path = request.uri().path().to_string();
    if request.uri().query().is_some_and(|q| q.contains("watch=true")) {
        let lines = [
            json!({"type": "ADDED", "object": {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a", "resourceVersion": "3"}}}),
            json!({"type": "BOOKMARK", "object": {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}}}),
            json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}),
        ];
        let text = lines.map(|l| l.to_string()).join("\n") + "\n";
        // In pieces that respect no line.
        let pieces: Vec<_> = text.as_bytes().chunks(7).map(|c| Ok(hyper::body::Frame::data(Bytes::copy_from_slice(c)))).collect();
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync();
        return Ok(Response::new(body));
    }
    match path.as_str() {
        "/prefix/missing" => whole(404, serde_json::to_string(&api::Status::not_found("", "pods", "x")).unwrap()),
        _ => {
            let seen = json!({ "version": format!("{:?}", request.version()), "path": path, "token": header("authorization"),
                "agent": header("user-agent"), "certs": certs, "host": request.uri().host().map(String::from).or(header("host")) });
            whole(200, seen.to_string())
        }
    }
}

async fn serve(pki: &Pki, alpn: &[&[u8]]) -> u16 {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(pki.ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let chain = vec![rustls::pki_types::CertificateDer::from_pem_slice(pki.server.0.as_bytes()).unwrap()];
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(pki.server.1.as_bytes()).unwrap())
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let certs = tls.get_ref().1.peer_certificates().map_or(0, <[_]>::len);
                let service = hyper::service::service_fn(move |request| answer(request, certs));
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection_with_upgrades(TokioIo::new(tls), service).await;
            });
        }
    });
    port
}

fn settings(pki: &Pki, port: u16) -> HttpSettings {
    HttpSettings { server: format!("https://127.0.0.1:{port}/prefix/"), ca_pem: Some(pki.ca.clone().into()), ..HttpSettings::default() }
}

#[tokio::test]
async fn speaks_the_newest_version_the_server_has_with_certificate_or_token() {
    let pki = pki();
    for (alpn, version) in [(&[&b"h2"[..], b"http/1.1"][..], "HTTP/2.0"), (&[&b"http/1.1"[..]][..], "HTTP/1.1"), (&[][..], "HTTP/1.1")] {
        let port = serve(&pki, alpn).await;
        let with_token = HttpSettings { bearer_token: Some("secret\n".into()), ..settings(&pki, port) };
        let client = Client::new(Arc::new(HttpTransport::new(&with_token).unwrap())).with_field_manager("test");
        let seen = client.get_path("/api/v1/nodes?limit=1").await.unwrap();
        assert_eq!((seen["version"].as_str(), seen["path"].as_str()), (Some(version), Some("/prefix/api/v1/nodes")));
        assert_eq!(
            (seen["token"].as_str(), seen["agent"].as_str(), seen["certs"].as_u64()),
            (Some("Bearer secret"), Some("test"), Some(0))
        );
        let with_cert = HttpSettings {
            client_cert_pem: Some(pki.client.0.clone().into()),
            client_key_pem: Some(pki.client.1.clone().into()),
            ..settings(&pki, port)
        };
        let client = Client::new(Arc::new(HttpTransport::new(&with_cert).unwrap()));
        let many = futures_util::future::join_all((0..20).map(|_| client.get_path("/x"))).await;
        assert!(many.iter().all(|seen| seen.as_ref().unwrap()["certs"] == 1));
        let missing = client.get_path("/missing").await.unwrap_err();
        assert!(missing.is_not_found());
        assert_eq!(missing.to_string(), r#"pods "x" not found"#);
    }
}

#[tokio::test]
async fn a_watch_is_lines_whatever_pieces_they_come_in() {
    let pki = pki();
    let port = serve(&pki, &[b"h2"]).await;
    let client = Client::new(Arc::new(HttpTransport::new(&settings(&pki, port)).unwrap()));
    let mut watch = client.watch::<ConfigMap>("", &WatchOptions::default()).await.unwrap();
    let added = watch.next().await.unwrap().unwrap();
    assert!(matches!(added, WatchEvent::Added(c) if c.metadata.name.as_deref() == Some("a")));
    let bookmark = watch.next().await.unwrap().unwrap();
    assert_eq!(bookmark, WatchEvent::Bookmark { resource_version: "9".into(), initial_events_end: false });
    assert!(watch.next().await.unwrap().unwrap_err().is_expired());
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn an_upgrade_hands_over_the_stream() {
    let pki = pki();
    let port = serve(&pki, &[b"h2", b"http/1.1"]).await;
    let transport = HttpTransport::new(&settings(&pki, port)).unwrap();
    let request = Request::get("/exec").header("connection", "Upgrade").header("upgrade", "echo").body(()).unwrap();
    let (response, mut io) = transport.upgrade(request).await.unwrap();
    assert_eq!((response.status(), response.headers()["upgrade"].to_str().unwrap()), (StatusCode::SWITCHING_PROTOCOLS, "echo"));
    io.write_all(b"hello").await.unwrap();
    let mut back = String::new();
    io.read_to_string(&mut back).await.unwrap();
    assert_eq!(back, "hello");
    let refused = transport.upgrade(Request::get("/missing").body(()).unwrap()).await.unwrap_err().to_string();
    assert_eq!(refused, r#"pods "x" not found"#);
}

#[tokio::test]
async fn what_cannot_be_reached_or_trusted_is_said_plainly() {
    let (pki, other) = (pki(), pki());
    let port = serve(&pki, &[b"h2"]).await;
    let fails = async |settings: HttpSettings| {
        let client = Client::new(Arc::new(HttpTransport::new(&settings).unwrap()));
        client.get_path("/version").await.unwrap_err().to_string()
    };
    let untrusted = fails(HttpSettings { ca_pem: Some(other.ca.clone().into()), ..settings(&pki, port) }).await;
    assert!(untrusted.contains("invalid peer certificate: "), "{untrusted}");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = listener.local_addr().unwrap().port();
    drop(listener);
    let refused = fails(settings(&pki, dead)).await;
    assert!(refused.contains(&format!("the API server at 127.0.0.1:{dead} cannot be reached")) && refused.contains("refused"), "{refused}");
    let bad = |server: &str| HttpTransport::new(&HttpSettings { server: server.into(), ..settings(&pki, 1) }).err().unwrap().to_string();
    assert!(bad("127.0.0.1").contains("is not a URL like https://127.0.0.1:6443"));
    let half = HttpSettings { client_cert_pem: Some(pki.client.0.clone().into()), ..settings(&pki, 1) };
    assert!(HttpTransport::new(&half).err().unwrap().to_string().contains("client-key: missing"));
}
