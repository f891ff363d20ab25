//! The router as clients and endpoints see it.

mod common;

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::*;
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use plan::routes::{BackendProtocol, Certificate, Route};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const HTTP: BackendProtocol = BackendProtocol::Http;

/// A port on which nobody listens.
async fn dead() -> SocketAddrV4 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    match listener.local_addr().unwrap() {
        std::net::SocketAddr::V4(at) => at,
        _ => unreachable!(),
    }
}

#[tokio::test]
async fn host_and_path_choose_the_backend_and_what_is_missing_is_named() {
    let (a, b) = (echo("a").await, echo("b").await);
    let edge = edge().await;
    let problem = plan::routes::Backend { problem: Some("service d/gone does not exist".into()), ..Default::default() };
    let mut all = backends(&[("d/a:80", HTTP, &[a.at]), ("d/b:80", HTTP, &[b.at]), ("d/empty:80", HTTP, &[])]);
    all.backends.insert("d/gone:80".into(), problem);
    edge.router.set_backends(all);
    edge.router.set_routes(routes(&[
        ("shop.example", "/", route("d/a:80")),
        ("shop.example", "/api", route("d/b:80")),
        ("shop.example", "/empty", route("d/empty:80")),
        ("shop.example", "/gone", route("d/gone:80")),
        ("only.example", "/x", route("d/a:80")),
    ]));
    assert!(edge.get("shop.example", "/?q=1").await.1.starts_with("a GET /?q=1\n"));
    assert!(edge.get("SHOP.example:8080", "/api/v1").await.1.starts_with("b GET /api/v1\n"));
    let (status, text) = edge.get("other.example", "/x").await;
    assert_eq!((status, text.as_str()), (404, "no Ingress has a rule for host \"other.example\" and path /x\n"));
    let (status, text) = edge.get("only.example", "/y").await;
    assert_eq!((status, text.as_str()), (404, "no Ingress has a rule for path /y of host only.example\n"));
    let (status, text) = edge.get("shop.example", "/empty").await;
    assert_eq!((status, text.as_str()), (503, "no endpoint of d/empty:80 is ready (Ingress d/i)\n"));
    let (status, text) = edge.get("shop.example", "/gone").await;
    assert_eq!((status, text.as_str()), (503, "service d/gone does not exist (Ingress d/i)\n"));
    let counts = edge.router.counts();
    assert_eq!((counts.unrouted, counts.services["d/a"].codes[1], counts.services["d/empty"].errors), (2, 1, 1));
    assert!(counts.services.values().all(|s| s.in_flight == 0));
}

#[tokio::test]
async fn headers_of_a_connection_end_here_and_the_client_is_told_of() {
    let a = echo("a").await;
    let edge = edge().await;
    edge.web(&[a.at]);
    let (_, text) = edge
        .raw_answer(
            "GET /x HTTP/1.1\r\nHost: h.example:81\r\nConnection: close, x-mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\n\
             X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nForwarded: for=6.6.6.6\r\nAccept: a/b\r\nTE: trailers\r\n\r\n",
        )
        .await;
    for line in [
        "host: h.example:81",
        "accept: a/b",
        "te: trailers",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: h.example:81",
        "x-real-ip: 127.0.0.1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} not in {text}");
    }
    for gone in ["x-mine", "keep-alive", "proxy-connection", "6.6.6.6", "connection:"] {
        assert!(!text.contains(gone), "{gone} in {text}");
    }
    let b = endpoint(|_| async {
        let response = Response::builder().header("connection", "x-hop").header("x-hop", "1").header("x-stays", "2");
        response.header("keep-alive", "9").body(full("b")).unwrap()
    });
    let b = b.await;
    edge.web(&[b.at]);
    let answer = edge.raw("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    assert!(answer.contains("x-stays") && !answer.contains("x-hop") && !answer.contains("keep-alive"), "{answer}");
}

#[tokio::test]
async fn requests_that_could_be_read_two_ways_are_refused_and_reach_nobody_twice() {
    let a = echo("a").await;
    let edge = edge().await;
    edge.web(&[a.at]);
    let refused = [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
        "GET /a/../secret HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a/%2e%2E/secret HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    for bytes in refused {
        let bytes = bytes.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
        let (status, text) = edge.raw_answer(&bytes).await;
        assert_eq!(status, 400, "{bytes:?}: {text}");
    }
    assert_eq!(edge.raw_answer("TRACE / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.0, 405);
    assert_eq!(edge.raw_answer("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n").await.0, 405);
    assert_eq!(a.requests.load(Ordering::SeqCst), 0);
    // Both lengths: read by the encoding, sent on with one length; what follows is a request of its own or nothing.
    for body in ["Content-Length: 6\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 6"] {
        let before = a.requests.load(Ordering::SeqCst);
        let answer = edge
            .raw(&format!(
                "POST / HTTP/1.1\r\nHost: a\r\n{body}\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            ))
            .await;
        let seen = a.requests.load(Ordering::SeqCst) - before;
        let answered = answer.matches("HTTP/1.1 ").count();
        assert!(seen <= answered, "{seen} requests behind {answered} answers: {answer}");
        assert!(!answer.contains("content-length: 6\n"), "{answer}");
    }
    // HTTP/1.0 needs no Host.
    assert_eq!(edge.raw_answer("GET / HTTP/1.0\r\n\r\n").await.0, 200);
    // Headers beyond the limit.
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(100 << 10));
    assert_eq!(edge.raw_answer(&long).await.0, 431);
}

#[tokio::test]
async fn bodies_stream_both_ways_without_waiting_for_their_end() {
    let a = endpoint(|request: Request<Incoming>| async move { Response::new(request.into_body().boxed_unsync()) }).await;
    let edge = edge().await;
    edge.web(&[a.at]);
    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nping\r\n").await.unwrap();
    let mut seen = Vec::new();
    for round in 0..5 {
        while !String::from_utf8_lossy(&seen).contains(if round == 0 { "ping" } else { "again" }) {
            let mut buffer = [0; 1024];
            let length = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer)).await.expect("held back").unwrap();
            seen.extend_from_slice(&buffer[..length]);
        }
        seen.clear();
        stream.write_all(b"5\r\nagain\r\n").await.unwrap();
    }
    // 100 MiB down: the router holds none of it.
    let big = endpoint(|_| async {
        let chunk = Bytes::from(vec![b'x'; 1 << 20]);
        let frames = futures_util::stream::iter((0..100).map(move |_| Ok(Frame::data(chunk.clone()))));
        Response::new(StreamBody::new(frames).boxed_unsync())
    });
    let big = big.await;
    edge.web(&[big.at]);
    let size = curl(&format!("-o /dev/null -w %{{size_download}} http://{}/", edge.http)).await;
    assert_eq!(size, (100u64 << 20).to_string());
    // And up, with "Expect: 100-continue" settled between curl and the router.
    let count = endpoint(|request: Request<Incoming>| async move {
        assert!(request.headers().get("expect").is_none());
        let mut total = 0;
        let mut body = request.into_body();
        while let Some(frame) = body.frame().await {
            total += frame.unwrap().data_ref().map_or(0, Bytes::len);
        }
        Response::new(full(total.to_string()))
    });
    let count = count.await;
    edge.web(&[count.at]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![7; 5 << 20]).unwrap();
    let text = curl(&format!("-H Expect:100-continue --data-binary @{} http://{}/", file.path().display(), edge.http)).await;
    assert_eq!(text, (5 << 20).to_string());
}

#[tokio::test]
async fn connections_to_endpoints_are_kept_and_one_closed_meanwhile_costs_no_request() {
    let a = echo("a").await;
    let edge = edge().await;
    edge.web(&[a.at]);
    for _ in 0..50 {
        assert_eq!(edge.get("h", "/").await.0, 200);
    }
    let made = a.connections.load(Ordering::SeqCst);
    assert!(made <= 3, "{made} connections for 50 requests");
    // An endpoint that closes after each answer without saying so.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let std::net::SocketAddr::V4(at) = listener.local_addr().unwrap() else { unreachable!() };
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            });
        }
    });
    edge.web(&[at]);
    for n in 0..200 {
        assert_eq!(edge.get("h", "/").await, (200, "ok".into()), "request {n}");
    }
}

#[tokio::test]
async fn a_refused_connection_is_tried_elsewhere_but_a_sent_request_never_twice() {
    let a = echo("a").await;
    let edge = edge().await;
    let (gone, gone2) = (dead().await, dead().await);
    edge.web(&[a.at, gone, gone2]);
    for _ in 0..40 {
        assert_eq!(edge.get("h", "/").await.0, 200);
    }
    assert!(edge.router.counts().services["d/web"].retries > 0);
    edge.web(&[gone, gone2]);
    let (status, text) = edge.get("h", "/").await;
    assert!(
        status == 502 && text.contains("no endpoint of d/web:80 could be connected to") && text.contains("connection refused"),
        "{text}"
    );
    edge.web_with(&[gone, gone2], HTTP, Route { retries: Some(0), ..route("d/web:80") });
    assert_eq!(edge.get("h", "/").await.0, 502);
    // Accepts, reads the request and hangs up: it may have been carried out.
    let count = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let std::net::SocketAddr::V4(at) = listener.local_addr().unwrap() else { unreachable!() };
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    edge.web(&[at]);
    let (status, text) = edge.raw_answer("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi").await;
    assert!(status == 502 && text.contains("broke off"), "{status} {text}");
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_route_bounds_the_time_until_an_answer_begins_not_its_length() {
    let a = endpoint(|request: Request<Incoming>| async move {
        if request.uri().path() == "/slow" {
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        let frames = futures_util::stream::unfold(0, |n| async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            (n < 5).then(|| (Ok(Frame::data(Bytes::from(format!("{n}")))), n + 1))
        });
        Response::new(StreamBody::new(frames).boxed_unsync())
    });
    let a = a.await;
    let edge = edge().await;
    edge.web_with(&[a.at], HTTP, Route { timeout_ms: Some(400), ..route("d/web:80") });
    assert_eq!(edge.get("h", "/").await, (200, "01234".into()));
    let began = Instant::now();
    let (status, text) = edge.get("h", "/slow").await;
    assert_eq!((status, text.as_str()), (504, "d/web:80 did not begin to answer within 400ms\n"));
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_come_and_go_under_load_without_a_lost_request() {
    let edge = Arc::new(edge().await);
    let first = echo("0").await;
    edge.web(&[first.at]);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (edge, stop) = (edge.clone(), stop.clone());
            tokio::spawn(async move {
                let client = edge.client();
                let mut sent = 0;
                while !stop.load(Ordering::SeqCst) {
                    let request = Request::post(format!("http://{}/", edge.http)).body(full("body")).unwrap();
                    let response = client.request(request).await.unwrap();
                    let status = response.status();
                    let text = response.into_body().collect().await.unwrap().to_bytes();
                    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&text));
                    sent += 1;
                }
                sent
            })
        })
        .collect();
    let mut current = first;
    for _ in 0..30 {
        let next = echo("n").await;
        edge.web(&[next.at, current.at]);
        tokio::time::sleep(Duration::from_millis(10)).await;
        // From here on the old one gets nothing new. A server accepts what is waiting before it goes.
        edge.web(&[next.at]);
        tokio::time::sleep(Duration::from_millis(5)).await;
        current.stop();
        tokio::time::sleep(Duration::from_millis(10)).await;
        current = next;
    }
    stop.store(true, Ordering::SeqCst);
    let mut total = 0;
    for client in clients {
        total += client.await.unwrap();
    }
    assert!(total > 100, "{total}");
}

fn certificate(hosts: &[&str]) -> Certificate {
    let made = rcgen::generate_simple_self_signed(hosts.iter().map(|h| h.to_string()).collect::<Vec<_>>()).unwrap();
    Certificate {
        secret: "d/t".into(),
        hosts: hosts.iter().map(|h| h.to_string()).collect(),
        certificate_pem: made.cert.pem(),
        key_pem: made.signing_key.serialize_pem(),
    }
}

#[tokio::test]
async fn tls_serves_the_certificate_of_the_name_and_both_http_versions() {
    let a = echo("a").await;
    let edge = edge().await;
    edge.web(&[a.at]);
    let (shop, wild) = (certificate(&["shop.example"]), certificate(&["*.wild.example"]));
    let mut table = routes(&[("", "/", route("d/web:80"))]);
    table.certificates = vec![shop.clone(), wild.clone()];
    assert!(edge.router.set_routes(table).is_empty());
    let directory = tempfile::tempdir().unwrap();
    let port = edge.https.port();
    for (host, certificate) in [("shop.example", &shop), ("a.wild.example", &wild)] {
        let file = directory.path().join(host);
        std::fs::write(&file, &certificate.certificate_pem).unwrap();
        for version in ["--http1.1", "--http2"] {
            let file = file.display();
            let arguments =
                format!("{version} --cacert {file} --resolve {host}:{port}:127.0.0.1 -w %{{http_version}} https://{host}:{port}/p");
            let text = curl(&arguments).await;
            assert!(text.starts_with("a GET /p\n") && text.contains("x-forwarded-proto: https"), "{text}");
            assert!(text.contains(&format!("host: {host}:{port}")), "{text}");
            assert!(text.ends_with(if version == "--http2" { "2" } else { "1.1" }), "{text}");
        }
    }
    let text = curl(&format!("-k https://127.0.0.1:{port}/")).await;
    assert!(text.starts_with("a GET /\n"), "unnamed clients get the self-signed one: {text}");
    let text = curl(&format!("--http2-prior-knowledge http://{}/plain", edge.http)).await;
    assert!(text.starts_with("a GET /plain\n"), "{text}");
    // Redirect to HTTPS, method and path kept.
    edge.web_with(&[a.at], HTTP, Route { redirect_https: true, ..route("d/web:80") });
    let answer = edge.raw("POST /x?y=1 HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 308") && answer.contains(&format!("location: https://shop.example:{port}/x?y=1")), "{answer}");
    let text = curl(&format!("-k https://127.0.0.1:{port}/")).await;
    assert!(text.starts_with("a GET /\n"), "{text}");
}

#[tokio::test]
async fn grpc_like_calls_pass_over_http2_with_their_trailers() {
    let a = endpoint(|request: Request<Incoming>| async move {
        assert_eq!(request.version(), http::Version::HTTP_2);
        assert_eq!(request.headers().get("te").map(|v| v.as_bytes()), Some(&b"trailers"[..]));
        let body = request.into_body().collect().await.unwrap();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let frames = vec![Ok(Frame::data(body.to_bytes())), Ok(Frame::trailers(trailers))];
        Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync())
    });
    let a = a.await;
    let edge = edge().await;
    edge.web_with(&[a.at], BackendProtocol::H2c, route("d/web:80"));
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).http2_only(true).build_http::<AnyBody>();
    for _ in 0..20 {
        let request = Request::post(format!("http://{}/svc/Method", edge.http)).header("te", "trailers").body(full("payload")).unwrap();
        let collected = client.request(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), "payload");
    }
    assert_eq!(a.connections.load(Ordering::SeqCst), 1, "calls share one connection");
}

#[tokio::test]
async fn websockets_pass_and_live_while_their_endpoint_is_taken_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let std::net::SocketAddr::V4(at) = listener.local_addr().unwrap() else { unreachable!() };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_close() || socket.send(message).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    let edge = edge().await;
    edge.web(&[at]);
    let stream = TcpStream::connect(edge.http).await.unwrap();
    let (mut socket, response) = tokio_tungstenite::client_async("ws://h.example/chat", stream).await.unwrap();
    assert_eq!(response.status(), 101);
    for n in 0..10 {
        if n == 5 {
            edge.web(&[]);
        }
        let text = format!("hello {n}").repeat(10_000);
        socket.send(text.clone().into()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap().into_text().unwrap().as_str(), text);
    }
    assert_eq!(edge.router.counts().services["d/web"].in_flight, 1);
    socket.close(None).await.unwrap();
    drop(socket);
    for _ in 0..100 {
        if edge.router.counts().services["d/web"].in_flight == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the connection is not released");
}

#[tokio::test]
async fn an_endpoint_that_declines_an_upgrade_answers_as_usual() {
    let a = echo("a").await;
    let edge = edge().await;
    edge.web(&[a.at]);
    let (status, text) = edge.raw_answer("GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n").await;
    assert_eq!(status, 200);
    assert!(text.contains("upgrade: other"), "{text}");
    let (_, text) = edge
        .raw_answer("GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n")
        .await;
    assert!(!text.contains("upgrade") && !text.contains("http2-settings"), "{text}");
}

#[tokio::test]
async fn a_stop_lets_requests_in_flight_end_and_takes_no_new_ones() {
    let a = endpoint(|_| async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        Response::new(full("done"))
    });
    let a = a.await;
    let mut edge = edge().await;
    edge.web(&[a.at]);
    let at = edge.http;
    let idle = TcpStream::connect(at).await.unwrap();
    let request = tokio::spawn(async move { curl(&format!("http://{at}/")).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    edge.stop.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(TcpStream::connect(at).await.is_err());
    assert_eq!(request.await.unwrap(), "done");
    let began = Instant::now();
    (&mut edge.serving).await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "an idle connection does not hold it up");
    drop(idle);
}

#[tokio::test]
async fn https_endpoints_are_spoken_to_by_tls() {
    let made = rcgen::generate_simple_self_signed(vec!["x".to_string()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let std::net::SocketAddr::V4(at) = listener.local_addr().unwrap() else { unreachable!() };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret").await;
        }
    });
    let edge = edge().await;
    edge.web_with(&[at], BackendProtocol::Https, route("d/web:80"));
    assert_eq!(edge.get("h", "/").await, (200, "secret".into()));
}

#[tokio::test]
async fn ten_thousand_routes_cost_a_request_nothing() {
    let a = echo("a").await;
    let edge = edge().await;
    let rules: Vec<(String, String)> = (0..10_000).map(|n| (format!("h{}.example", n / 10), format!("/p{}/x", n % 10))).collect();
    let rules: Vec<(&str, &str, Route)> = rules.iter().map(|(h, p)| (h.as_str(), p.as_str(), route("d/web:80"))).collect();
    edge.web(&[a.at]);
    let began = Instant::now();
    edge.router.set_routes(routes(&rules));
    let built = began.elapsed();
    assert!(edge.get("h999.example", "/p9/x/y").await.1.starts_with("a GET /p9/x/y\n"));
    assert_eq!(edge.get("h999.example", "/p9/z").await.0, 404);
    eprintln!("index of 10,000 routes built in {built:?}");
    assert!(built < Duration::from_secs(2));
}
