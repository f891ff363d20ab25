//! A server over the memory store, in process and over TLS on loopback, and kubectl against it.
#![allow(dead_code)]

pub mod agent;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use api::Value;
use apiserver::pki::{Pki, server_names};
use apiserver::{Config, Server, TokenKey};
use base::{Ids, SharedClock, SystemClock};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt as _;
use ports::{Identity, NodeHandler, Tunnels};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use store::{Cache, Memory};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
pub struct Nodes(Mutex<BTreeMap<String, Arc<dyn NodeHandler>>>);

impl Tunnels for Nodes {
    fn register(&self, node: &str, handler: Arc<dyn NodeHandler>) {
        self.0.lock().unwrap().insert(node.into(), handler);
    }

    fn node(&self, node: &str) -> Option<Arc<dyn NodeHandler>> {
        self.0.lock().unwrap().get(node).cloned()
    }
}

pub struct World {
    pub server: Arc<Server>,
    pub nodes: Arc<Nodes>,
}

pub fn masters() -> Identity {
    Identity::new("system:admin", &["system:masters"])
}

async fn server_with(clock: SharedClock, key: Arc<TokenKey>, port: u16) -> World {
    let cache = Arc::new(Cache::open(Arc::new(Memory::default())).await.unwrap());
    let nodes = Arc::new(Nodes::default());
    let mut config = Config::new(cache, clock, Ids::seeded(7), nodes.clone(), key);
    config.api_addresses = vec!["192.0.2.1".parse().unwrap()];
    config.api_port = port;
    let server = Server::new(config);
    server.bootstrap().await.unwrap();
    World { server, nodes }
}

pub async fn world() -> World {
    server_with(Arc::new(SystemClock), Arc::new(TokenKey::generate().unwrap()), 6443).await
}

pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_string()
    }
}

impl World {
    pub async fn send_as(&self, who: Identity, request: Request<Bytes>) -> Answer {
        let response = self.server.transport(who).send(request).await.unwrap();
        let (code, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Answer { code, headers, body }
    }

    pub async fn send(&self, request: Request<Bytes>) -> Answer {
        self.send_as(masters(), request).await
    }

    pub async fn call(&self, method: &str, path: &str, body: Value) -> Answer {
        self.call_as(masters(), method, path, body).await
    }

    pub async fn call_as(&self, who: Identity, method: &str, path: &str, body: Value) -> Answer {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let content = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let method: Method = method.parse().unwrap();
        self.send_as(who, Request::builder().method(method).uri(path).header("content-type", content).body(body).unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, Value::Null).await
    }

    /// A call that must succeed.
    #[track_caller]
    pub fn must(answer: Answer) -> Value {
        assert!(answer.code < 400, "{}: {}", answer.code, answer.text());
        answer.json()
    }
}

/// A server over TLS and what kubectl needs to reach it.
pub struct Cluster {
    pub world: World,
    pub address: SocketAddr,
    pub dir: tempfile::TempDir,
    pub pki: Arc<Pki>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

pub struct Ran {
    pub ok: bool,
    pub out: String,
    pub err: String,
}

impl Cluster {
    pub async fn start() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let clock: SharedClock = Arc::new(SystemClock);
        let pki = Arc::new(Pki::open(dir.path(), clock.clone()).unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let world = server_with(clock, pki.token_key(), address.port()).await;
        let tls = Arc::new(pki.tls(&server_names("10.43.0.1", "cluster.local", &[])).unwrap());
        pki.write_admin_kubeconfig(&format!("https://{address}"), "staithe").unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(apiserver::serve_tls(world.server.clone(), listener, tls, shutdown.clone()));
        Cluster { world, address, dir, pki, shutdown, task }
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("admin.kubeconfig")
    }

    pub fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("kubectl");
        command.args(args).env("KUBECONFIG", self.kubeconfig()).env("HOME", self.dir.path()).kill_on_drop(true);
        command.stdin(std::process::Stdio::null());
        command
    }

    pub async fn run(&self, args: &[&str]) -> Ran {
        self.finish(self.command(args), None).await
    }

    pub async fn run_with(&self, args: &[&str], input: &str) -> Ran {
        self.finish(self.command(args), Some(input)).await
    }

    pub async fn finish(&self, mut command: tokio::process::Command, input: Option<&str>) -> Ran {
        use tokio::io::AsyncWriteExt as _;
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        if input.is_some() {
            command.stdin(std::process::Stdio::piped());
        }
        let mut child = command.spawn().unwrap();
        if let Some(input) = input {
            child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        }
        let done =
            tokio::time::timeout(std::time::Duration::from_secs(60), child.wait_with_output()).await.expect("kubectl hangs").unwrap();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        Ran { ok: done.status.success(), out: text(&done.stdout), err: text(&done.stderr) }
    }

    /// kubectl that must succeed; its output.
    #[track_caller]
    pub fn ok(ran: Ran) -> String {
        assert!(ran.ok, "kubectl failed: {}{}", ran.out, ran.err);
        ran.out
    }

    pub async fn kubectl(&self, args: &[&str]) -> String {
        let ran = self.run(args).await;
        assert!(ran.ok, "kubectl {args:?} failed: {}{}", ran.out, ran.err);
        ran.out
    }

    pub async fn apply(&self, manifest: &str, extra: &[&str]) -> String {
        let args: Vec<&str> = ["apply", "-f", "-"].iter().chain(extra).copied().collect();
        let ran = self.run_with(&args, manifest).await;
        assert!(ran.ok, "kubectl {args:?} failed: {}{}", ran.out, ran.err);
        ran.out
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

/// A TLS client that trusts `ca_pem` and shows `pair`.
pub fn client(ca_pem: &str, pair: Option<&apiserver::pki::Pair>) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let config = match pair {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let cert = CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![cert], PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap()).unwrap()
        }
    };
    TlsConnector::from(Arc::new(config))
}

pub async fn connect(address: SocketAddr, connector: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    connector.connect(ServerName::try_from("kubernetes.default.svc").unwrap(), tcp).await
}

pub const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: registry.local/web:1
        ports: [{containerPort: 80, name: http}]
        env: [{name: A, value: "1"}]
"#;
