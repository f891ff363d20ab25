//! Logs, exec, attach, cp and port-forward: kubectl through the server to an agent that is a fake.

mod common;

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use common::Cluster;
use common::agent::Agent;
use ports::{NodeRequest, Tunnels as _};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

async fn cluster() -> (Cluster, Agent) {
    let c = Cluster::start().await;
    let agent = Agent::default();
    c.world.nodes.register("n1", Arc::new(agent.clone()));
    for name in ["one", "two"] {
        let second = if name == "two" { r#",{"name":"side","image":"y"}"# } else { "" };
        let pod = format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}"}},"spec":{{"nodeName":"n1","containers":[{{"name":"main","image":"x","stdin":true,"tty":true}}{second}]}}}}"#
        );
        c.apply(&pod, &[]).await;
        let status = r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}],"containerStatuses":[{"name":"main","ready":true,"restartCount":0,"image":"x","imageID":"","state":{"running":{}}}]}}"#;
        c.kubectl(&["patch", "pod", name, "--subresource=status", "--type=merge", "-p", status]).await;
    }
    (c, agent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs() {
    let (c, agent) = cluster().await;
    assert_eq!(c.kubectl(&["logs", "one"]).await, "main line 0\nmain line 1\nmain line 2\n");
    assert_eq!(c.kubectl(&["logs", "-f", "one", "--limit-bytes=15"]).await, "main line 0\nmai");
    c.kubectl(&["logs", "two", "-c", "side", "--tail=5", "--since=1h", "--timestamps", "-p"]).await;
    match agent.asked.lock().unwrap().last().unwrap() {
        NodeRequest::Logs { container, options, .. } => {
            assert_eq!(container, "side");
            assert_eq!(
                (options.tail_lines, options.since_seconds, options.timestamps, options.previous),
                (Some(5), Some(3600), true, true)
            );
        }
        other => panic!("{other:?}"),
    }
    let answer = c.world.get("/api/v1/namespaces/default/pods/two/log").await;
    assert_eq!(answer.code, 400);
    assert_eq!(answer.message(), "a container name must be specified for pod two, choose one of: [main side]");
    let answer = c.world.get("/api/v1/namespaces/default/pods/two/log?container=x").await;
    assert_eq!(answer.message(), "container x is not valid for pod two");
    assert_eq!(c.world.get("/api/v1/namespaces/default/pods/one/log?tailLines=-1").await.code, 422);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_carries_streams_and_exit_codes() {
    let (c, _) = cluster().await;
    for websockets in ["true", "false"] {
        let run = |args: &'static [&'static str]| {
            let mut command = c.command(args);
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
            command
        };
        let ran = c.finish(run(&["exec", "one", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]), None).await;
        assert_eq!((ran.out.as_str(), ran.ok), ("out\n", false), "{}", ran.err);
        assert!(ran.err.contains("err\n") && ran.err.contains("exit code 3"), "{}", ran.err);
        let ran = c.finish(run(&["exec", "-i", "one", "--", "cat"]), Some("through\nand through\n")).await;
        assert_eq!((ran.out.as_str(), ran.ok), ("through\nand through\n", true), "websockets={websockets}: {}", ran.err);
        // More than fits any buffer, both ways.
        let big = "0123456789abcdef\n".repeat(100_000);
        let ran = c.finish(run(&["exec", "-i", "one", "--", "cat"]), Some(&big)).await;
        assert!(ran.ok && ran.out == big, "websockets={websockets}: {} of {} bytes: {}", ran.out.len(), big.len(), ran.err);
        let ran = c.finish(run(&["exec", "one", "--", "/no/such/file"]), None).await;
        assert!(!ran.ok && ran.err.contains("/no/such/file"), "{}", ran.err);
        let ran = c.finish(run(&["exec", "one", "-c", "nope", "--", "true"]), None).await;
        assert!(!ran.ok && ran.err.contains("nope"), "{}", ran.err);
    }
    let ran = c.run(&["exec", "absent", "--", "true"]).await;
    assert!(ran.err.contains(r#"pods "absent" not found"#), "{}", ran.err);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_files() {
    let (c, _) = cluster().await;
    let source = c.dir.path().join("source.txt");
    std::fs::write(&source, "cargo").unwrap();
    let target = c.dir.path().join("there.txt");
    c.kubectl(&["cp", source.to_str().unwrap(), &format!("one:{}", target.display())]).await;
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "cargo");
    let back = c.dir.path().join("back.txt");
    c.kubectl(&["cp", &format!("one:{}", target.display()), back.to_str().unwrap()]).await;
    assert_eq!(std::fs::read_to_string(&back).unwrap(), "cargo");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attaches() {
    let (c, agent) = cluster().await;
    let mut child =
        c.command(&["attach", "-i", "one"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    tokio::time::timeout(Duration::from_secs(20), out.read_line(&mut line)).await.unwrap().unwrap();
    assert_eq!(line.trim(), "hello");
    stdin.write_all(b"exit\n").await.unwrap();
    let status = tokio::time::timeout(Duration::from_secs(20), child.wait()).await.unwrap().unwrap();
    assert!(status.success());
    assert!(matches!(agent.asked.lock().unwrap().last(), Some(NodeRequest::Attach { stdin: true, .. })));
    c.stop().await;
}

/// Answers every connection with what it sends, in upper case.
async fn shouter() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                all.make_ascii_uppercase();
                stream.write_all(&all).await.unwrap();
            });
        }
    });
    port
}

async fn shout(port: u16, text: &[u8]) -> Vec<u8> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(text).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut all)).await.expect("an answer").unwrap();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwards_several_ports_and_connections() {
    let (c, _) = cluster().await;
    let (first, second) = (shouter().await, shouter().await);
    for websockets in ["true", "false"] {
        let (a, b) = (format!(":{first}"), format!(":{second}"));
        let mut command = c.command(&["port-forward", "one", &a, &b, ":1"]);
        command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut local = Vec::new();
        while local.len() < 3 {
            let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await.unwrap().unwrap().unwrap();
            if let Some(rest) = line.strip_prefix("Forwarding from 127.0.0.1:") {
                local.push(rest.split(' ').next().unwrap().parse::<u16>().unwrap());
            }
        }
        let big = vec![b'x'; 700_000];
        let (one, two, three) = tokio::join!(shout(local[0], b"hello"), shout(local[1], b"world"), shout(local[0], &big));
        assert_eq!((one.as_slice(), two.as_slice()), (&b"HELLO"[..], &b"WORLD"[..]), "websockets={websockets}");
        assert_eq!(three.len(), big.len());
        for i in 0..20 {
            assert_eq!(shout(local[i % 2], b"again").await, b"AGAIN");
        }
        // Nothing listens on port 1: kubectl says so and the connection ends.
        assert_eq!(shout(local[2], b"x").await, b"");
        child.kill().await.unwrap();
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).await.unwrap();
        assert!(err.contains("error forwarding port 1 to pod"), "{err}");
    }
    c.stop().await;
}

/// What the Python client speaks: two channels a port, each begun by the port's number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwards_over_channels() {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};
    let (c, _) = cluster().await;
    let (first, second) = (shouter().await, 1u16);
    let url = format!("wss://kubernetes/api/v1/namespaces/default/pods/one/portforward?ports={first},{second}");
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "v4.channel.k8s.io".parse().unwrap());
    let connector = common::client(c.pki.ca_pem(), Some(&c.pki.client("root", "system:masters").unwrap()));
    let stream = common::connect(c.address, &connector).await.unwrap();
    let (mut socket, answer) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "v4.channel.k8s.io");
    let mut heads = Vec::new();
    let mut failure = String::new();
    socket.send(Message::Binary(bytes::Bytes::from_static(b"\0hello"))).await.unwrap();
    while heads.len() < 4 || failure.is_empty() {
        let message = tokio::time::timeout(Duration::from_secs(10), socket.next()).await.unwrap().unwrap().unwrap();
        let Message::Binary(bytes) = message else { continue };
        match bytes.len() {
            3 if heads.len() < 4 => heads.push((bytes[0], u16::from_le_bytes([bytes[1], bytes[2]]))),
            _ if bytes[0] == 3 => failure = String::from_utf8_lossy(&bytes[1..]).into_owned(),
            _ => panic!("{bytes:?}"),
        }
    }
    assert_eq!(heads, [(0, first), (1, first), (2, second), (3, second)]);
    assert!(failure.contains("port 1"), "{failure}");
    socket.close(None).await.unwrap();
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_requests() {
    let (c, _) = cluster().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 4096];
            let n = stream.read(&mut head).await.unwrap();
            let head = String::from_utf8_lossy(&head[..n]).into_owned();
            let body = format!("you said: {head}");
            let answer = format!("HTTP/1.1 201 Created\r\ncontent-length: {}\r\nx-mine: yes\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let answer = c.world.get(&format!("/api/v1/namespaces/default/pods/one:{port}/proxy/a/b%20c?d=e")).await;
    assert_eq!((answer.code, answer.headers["x-mine"].to_str().unwrap()), (201, "yes"), "{}", answer.text());
    assert!(answer.text().starts_with("you said: GET /a/b%20c?d=e HTTP/1.1"), "{}", answer.text());
    let service = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"ports":[{"name":"http","port":80}]}}"#;
    c.apply(service, &[]).await;
    let url = "/api/v1/namespaces/default/services/web:http/proxy/";
    let answer = c.world.get(url).await;
    assert!(answer.code == 503 && answer.message().contains(r#"no endpoints available for service "web""#), "{}", answer.text());
    let slice = format!(
        r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{{"name":"web-1","labels":{{"kubernetes.io/service-name":"web"}}}},"addressType":"IPv4","endpoints":[{{"addresses":["192.0.2.9"],"conditions":{{"ready":true}},"targetRef":{{"kind":"Pod","name":"one","namespace":"default"}}}}],"ports":[{{"name":"http","port":{port},"protocol":"TCP"}}]}}"#
    );
    c.apply(&slice, &[]).await;
    assert!(c.world.get(url).await.text().starts_with("you said: GET / HTTP/1.1"));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_why_there_is_no_stream() {
    let (c, _) = cluster().await;
    let upgrade = |path: &str| {
        http::Request::builder()
            .uri(format!("/api/v1/namespaces/default/pods/{path}"))
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", "v9.channel.k8s.io")
            .body(bytes::Bytes::new())
            .unwrap()
    };
    let answer = c.world.send(upgrade("one/exec?command=true&stdout=1")).await;
    assert!(answer.code == 400 && answer.message().contains("no WebSocket protocol in common"), "{}", answer.text());
    assert_eq!(c.world.get("/api/v1/namespaces/default/pods/one/exec?command=true&stdout=1").await.message(), "Upgrade request required");
    assert!(c.world.get("/api/v1/namespaces/default/pods/one/exec?command=true").await.message().contains("at least 1 of stdin"));
    c.kubectl(&["run", "pending", "--image=x"]).await;
    let answer = c.world.get("/api/v1/namespaces/default/pods/pending/log").await;
    assert!(answer.message().contains("does not have a host assigned"), "{}", answer.text());
    let pod =
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"lost"},"spec":{"nodeName":"n9","containers":[{"name":"m","image":"x"}]}}"#;
    c.apply(pod, &[]).await;
    let answer = c.world.get("/api/v1/namespaces/default/pods/lost/log").await;
    assert!(answer.code == 503 && answer.message().contains(r#"the agent of node "n9" is not connected"#), "{}", answer.text());
    c.stop().await;
}
