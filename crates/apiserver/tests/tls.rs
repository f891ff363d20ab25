//! The listener: who is believed, and what slow, greedy or broken connections get.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Cluster, client, connect};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Sends and reads until the server closes or says no more for a while.
async fn talk(c: &Cluster, connector: &TlsConnector, request: &[u8]) -> String {
    let Ok(mut stream) = connect(c.address, connector).await else { return "no connection".into() };
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let mut buffer = [0; 8192];
    while let Ok(Ok(n)) = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut buffer)).await {
        if n == 0 {
            break;
        }
        answer.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_tokens_prove_who_asks() {
    let c = Cluster::start().await;
    let get = |path: &str, extra: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{extra}\r\n").into_bytes();
    let whoami =
        b"POST /apis/authentication.k8s.io/v1/selfsubjectreviews HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";

    let nobody = client(c.pki.ca_pem(), None);
    assert!(talk(&c, &nobody, &get("/healthz", "")).await.ends_with("ok"));
    assert!(talk(&c, &nobody, &get("/api/v1/pods", "")).await.contains("403 Forbidden"));
    assert!(talk(&c, &nobody, &get("/api/v1/pods", "authorization: Bearer junk\r\n")).await.contains("401 Unauthorized"));
    assert!(talk(&c, &nobody, &get("/api/v1/pods", "authorization: Basic YTpi\r\n")).await.contains("401 Unauthorized"));

    let ann = client(c.pki.ca_pem(), Some(&c.pki.client("ann", "devs").unwrap()));
    let answer = talk(&c, &ann, whoami).await;
    assert!(answer.contains(r#""username":"ann""#) && answer.contains(r#""devs""#), "{answer}");
    let admin = client(c.pki.ca_pem(), Some(&c.pki.client("root", "system:masters").unwrap()));
    assert!(talk(&c, &admin, &get("/api/v1/pods", "")).await.contains("200 OK"));

    let elsewhere = tempfile::tempdir().unwrap();
    let other = apiserver::pki::Pki::open(elsewhere.path(), Arc::new(base::SystemClock)).unwrap();
    let stranger = client(c.pki.ca_pem(), Some(&other.client("root", "system:masters").unwrap()));
    let answer = talk(&c, &stranger, &get("/api/v1/pods", "")).await;
    assert!(!answer.contains("200 OK") && !answer.contains("403"), "a certificate of another CA: {answer}");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_and_greedy_requests_are_refused() {
    let c = Cluster::start().await;
    let admin = client(c.pki.ca_pem(), Some(&c.pki.client("root", "system:masters").unwrap()));
    let post = "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let announced = talk(&c, &admin, format!("{post}content-length: 99999999\r\n\r\n").as_bytes()).await;
    assert!(announced.contains("413 ") && announced.contains(r#""reason":"RequestEntityTooLarge""#), "{announced}");
    let mut chunked = format!("{post}transfer-encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..4 {
        chunked.extend_from_slice(b"100000\r\n");
        chunked.extend(std::iter::repeat_n(b'x', 0x10_0000));
        chunked.extend_from_slice(b"\r\n");
    }
    let answer = talk(&c, &admin, &chunked).await;
    assert!(answer.contains("413 "), "an endless body is cut: {}", &answer[..answer.len().min(200)]);
    let long = format!("GET /api HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "y".repeat(200_000));
    assert!(talk(&c, &admin, long.as_bytes()).await.contains("431 "));
    let many = format!("GET /api HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(500));
    assert!(talk(&c, &admin, many.as_bytes()).await.contains("431 "));
    assert!(talk(&c, &admin, b"NONSENSE\r\n\r\n").await.contains("400 "));
    // Not TLS at all, and nothing at all: neither holds anything up.
    let mut plain = TcpStream::connect(c.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let _silent = TcpStream::connect(c.address).await.unwrap();
    assert!(talk(&c, &admin, b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.ends_with("ok"));
    assert!(c.kubectl(&["get", "cm"]).await.is_empty(), "nothing was made");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_ends_watches_and_returns() {
    let c = Cluster::start().await;
    let admin = client(c.pki.ca_pem(), Some(&c.pki.client("root", "system:masters").unwrap()));
    let mut watch = connect(c.address, &admin).await.unwrap();
    watch.write_all(b"GET /api/v1/namespaces?watch=1 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut buffer = [0; 4096];
    assert!(watch.read(&mut buffer).await.unwrap() > 0);
    let mut kubectl = c.command(&["get", "ns", "-w"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let began = std::time::Duration::from_secs(4);
    tokio::time::timeout(began, c.stop()).await.expect("well within the grace period");
    let rest = tokio::time::timeout(Duration::from_secs(2), async {
        let mut all = Vec::new();
        let _ = watch.read_to_end(&mut all).await;
        all
    });
    let rest = rest.await.expect("the watch ends");
    assert!(rest.ends_with(b"0\r\n\r\n"), "with its last chunk, not torn: {}", String::from_utf8_lossy(&rest));
    kubectl.kill().await.unwrap();
}
