//! The edge process with its holder and its feed, as real processes. This file is the program as well: called with
//! `holder` or `edge` it is one of them, otherwise it runs the tests.

mod common;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use client::fake::FakeServer;
use client::{CancellationToken, Informer};
use common::*;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use router::edge::{self, Feeder, FeederOptions, HolderOptions, Sockets};
use serde_json::json;
use tokio::net::TcpStream;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("holder") => std::process::exit(edge::holder_main(&arguments[2..])),
        Some("edge") => return run_edge(&arguments[2]),
        _ => {}
    }
    let wanted = arguments.iter().skip(1).find(|a| !a.starts_with('-')).cloned().unwrap_or_default();
    let tests: [(&str, fn()); 6] = [
        ("feeding_an_edge_makes_it_route_and_resolve", feeding_an_edge_makes_it_route_and_resolve),
        ("a_killed_edge_comes_back_from_its_snapshot_without_the_agent", a_killed_edge_comes_back_from_its_snapshot_without_the_agent),
        ("a_new_build_takes_over_without_a_refused_connection", a_new_build_takes_over_without_a_refused_connection),
        ("ports_in_use_are_named_with_their_owner", ports_in_use_are_named_with_their_owner),
        ("a_killed_holder_takes_its_edge_along_and_the_next_starts", a_killed_holder_takes_its_edge_along_and_the_next_starts),
        ("down_ends_everything_and_removes_the_directory", down_ends_everything_and_removes_the_directory),
    ];
    for (name, test) in tests.iter().filter(|(name, _)| name.contains(&wanted)) {
        test();
        println!("test {name} ... ok");
    }
}

/// What the binary's `edge` command does, but for the DNS server.
fn run_edge(run_dir: &str) {
    let sockets = Sockets::inherited().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let edge = edge::Edge::start(Path::new(run_dir), sockets, 443).unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        tokio::spawn(async move {
            terminate.recv().await;
            stopped.cancel();
        });
        edge.serve(stop).await.unwrap();
    });
}

/// One run directory with its ports; everything ends with it.
struct Place {
    directory: tempfile::TempDir,
    options: HolderOptions,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Outside the range that outgoing connections take theirs from: a port is free again for moments in these tests.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let free = || -> SocketAddr {
            let port = || 20_000 + (std::process::id() as u16 % 100) * 100 + NEXT.fetch_add(1, Ordering::SeqCst) % 100;
            let mut candidates = std::iter::repeat_with(|| SocketAddr::from(([127, 0, 0, 1], port())));
            candidates.find(|at| std::net::TcpListener::bind(at).is_ok() && std::net::UdpSocket::bind(at).is_ok()).unwrap()
        };
        let run_dir = directory.path().to_path_buf();
        let me = std::env::current_exe().unwrap().display().to_string();
        let edge = vec![me, "edge".into(), run_dir.display().to_string()];
        let options = HolderOptions { run_dir, http: free(), https: free(), dns: free(), edge, build: "1".into() };
        Self { directory, options }
    }

    fn ensure(&self) -> std::io::Result<()> {
        let me = std::env::current_exe().unwrap().display().to_string();
        edge::ensure_holder(&[me, "holder".into()], &self.options)
    }

    fn run_dir(&self) -> &Path {
        self.directory.path()
    }

    fn http(&self) -> SocketAddr {
        self.options.http
    }

    fn holder(&self) -> i32 {
        let state: serde_json::Value = serde_json::from_slice(&fs::read(self.run_dir().join("edge/holder.json")).unwrap()).unwrap();
        state["pid"].as_i64().unwrap() as i32
    }

    fn edges(&self) -> Vec<i32> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.holder())).unwrap_or_default();
        children.split_whitespace().map(|p| p.parse().unwrap()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        edge::sweep(self.run_dir(), false);
    }
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: a pid of a process that this test started.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

fn eventually<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = f() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// One GET with curl: status and body.
fn get(at: SocketAddr, host: &str) -> (String, String) {
    let output = std::process::Command::new("curl")
        .args(["-sS", "--max-time", "10", "-w", "\n%{http_code}", "-H", &format!("Host: {host}"), &format!("http://{at}/")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.to_string(), body.to_string())
}

/// Creates an object, or changes it; its revision.
async fn put(server: &FakeServer, collection: &str, object: serde_json::Value) -> u64 {
    let (group, plural) = collection.rsplit_once('/').unwrap();
    let path = format!("{group}/namespaces/d/{plural}");
    let client = server.client();
    let done = match client.post::<_, serde_json::Value>(&path, &object).await {
        Err(e) if e.is_already_exists() => {
            let name = object["metadata"]["name"].as_str().unwrap();
            client.patch_path(&format!("{path}/{name}"), &client::Patch::Merge(object.clone())).await.unwrap()
        }
        other => other.unwrap(),
    };
    done["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

/// A world of one Service behind one Ingress; the revision of its endpoints.
async fn world(server: &FakeServer, endpoint: std::net::SocketAddrV4, ready: bool) -> u64 {
    put(
        server,
        "/api/v1/services",
        json!({"metadata": {"name": "web", "namespace": "d"}, "spec": {"clusterIP": "10.43.0.7", "ports": [{"port": 80}]}}),
    )
    .await;
    let revision = put(
        server,
        "/apis/discovery.k8s.io/v1/endpointslices",
        json!({"metadata": {"name": "web-1", "namespace": "d", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "ports": [{"port": endpoint.port()}], "endpoints": [{"addresses": [endpoint.ip().to_string()], "conditions": {"ready": ready}}]}),
    ).await;
    put(
        server,
        "/apis/networking.k8s.io/v1/ingresses",
        json!({"metadata": {"name": "web", "namespace": "d"}, "spec": {"ingressClassName": "staithe", "rules": [{"host": "shop.example",
            "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}}]}}]}}),
    )
    .await;
    revision
}

fn feeder(server: &FakeServer, run_dir: &Path) -> Feeder {
    let client = server.client();
    let (services, slices) = (Informer::<Service>::start(&client), Informer::<EndpointSlice>::start(&client));
    let sources = edge::Sources::start(&client, &client, services, slices);
    Feeder::new(FeederOptions { socket: edge::socket_path(run_dir), domain: "cluster.local".into() }, sources)
}

fn feeding_an_edge_makes_it_route_and_resolve() {
    let place = Place::new();
    place.ensure().unwrap();
    place.ensure().unwrap();
    runtime().block_on(async {
        let backend = echo("a").await;
        let server = FakeServer::default();
        world(&server, backend.at, true).await;
        let feeder = feeder(&server, place.run_dir());
        let (mut applied, mut reasons, stop) = (feeder.applied(), feeder.reasons(), CancellationToken::new());
        let task = tokio::spawn(feeder.run(stop.clone()));
        applied.wait_for(|r| *r > 0).await.unwrap();
        let http = place.http();
        let (status, body) = tokio::task::spawn_blocking(move || get(http, "shop.example")).await.unwrap();
        assert_eq!((status.as_str(), body.starts_with("a GET /\n")), ("200", true), "{body}");
        // Taken out: when the number is there, no request goes to it any more.
        let revision = world(&server, backend.at, false).await;
        let waited = applied.wait_for(|r| *r >= revision);
        tokio::time::timeout(Duration::from_secs(5), waited).await.unwrap().unwrap();
        let (status, body) = tokio::task::spawn_blocking(move || get(http, "shop.example")).await.unwrap();
        assert_eq!(status, "503", "{body}");
        // A broken Ingress becomes a reason.
        put(
            &server,
            "/apis/networking.k8s.io/v1/ingresses",
            json!({"metadata": {"name": "bad", "namespace": "d"}, "spec": {"ingressClassName": "staithe",
                "defaultBackend": {"service": {"name": "none", "port": {"number": 1}}}}}),
        )
        .await;
        let waited = reasons.wait_for(|r| r.iter().any(|r| r.code == "BackendNotFound"));
        drop(tokio::time::timeout(Duration::from_secs(5), waited).await.unwrap().unwrap());
        stop.cancel();
        task.await.unwrap();
        let kept = fs::read_to_string(place.run_dir().join("edge/dns.json")).unwrap();
        assert!(kept.contains("web.d.svc"), "{kept}");
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(place.run_dir().join("edge")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    });
}

fn a_killed_edge_comes_back_from_its_snapshot_without_the_agent() {
    let place = Place::new();
    place.ensure().unwrap();
    let runtime = runtime();
    let backend = runtime.block_on(async {
        let backend = echo("a").await;
        let server = FakeServer::default();
        world(&server, backend.at, true).await;
        let feeder = feeder(&server, place.run_dir());
        let (mut applied, stop) = (feeder.applied(), CancellationToken::new());
        let task = tokio::spawn(feeder.run(stop.clone()));
        applied.wait_for(|r| *r > 0).await.unwrap();
        stop.cancel();
        task.await.unwrap();
        backend
    });
    for round in 0..3 {
        let edge = eventually("an edge runs", || place.edges().first().copied());
        kill(edge, libc::SIGKILL);
        // Not refused: it waits in the holder's socket until the next edge is there.
        let (status, body) = get(place.http(), "shop.example");
        assert_eq!((status.as_str(), body.starts_with("a GET /")), ("200", true), "round {round}: {body}");
        assert_ne!(place.edges().first(), Some(&edge));
    }
    drop(backend);
}

fn a_new_build_takes_over_without_a_refused_connection() {
    let mut place = Place::new();
    place.ensure().unwrap();
    let (holder, edge) = (place.holder(), eventually("an edge runs", || place.edges().first().copied()));
    let at = place.http();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let knocking = std::thread::spawn(move || {
        let mut knocks = 0;
        while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
            assert_eq!(get(at, "nobody.example").0, "404");
            knocks += 1;
        }
        knocks
    });
    place.options.build = "2".into();
    place.ensure().unwrap();
    eventually("the old edge has gone and another serves", || {
        let edges = place.edges();
        (!edges.contains(&edge) && !edges.is_empty()).then_some(())
    });
    std::thread::sleep(Duration::from_millis(300));
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(knocking.join().unwrap() > 3);
    assert_eq!(place.holder(), holder, "the holder stays");
}

fn ports_in_use_are_named_with_their_owner() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind(place.options.https).unwrap();
    let error = place.ensure().unwrap_err().to_string();
    let port = taken.local_addr().unwrap().port();
    let me = format!("(pid {})", std::process::id());
    assert!(error.starts_with(&format!("port {port} (HTTPS, tcp) is in use by ")) && error.contains(&me), "{error}");
    assert!(error.ends_with("choose another port with --https-port"), "{error}");
    drop(taken);
    place.ensure().unwrap();
    let second = Place::new();
    let options = HolderOptions { dns: place.options.dns, ..second.options.clone() };
    let me = std::env::current_exe().unwrap().display().to_string();
    let error = edge::ensure_holder(&[me, "holder".into()], &options).unwrap_err().to_string();
    assert!(error.contains("(DNS, udp) is in use by") && error.contains("--dns-port"), "{error}");
}

fn a_killed_holder_takes_its_edge_along_and_the_next_starts() {
    let place = Place::new();
    place.ensure().unwrap();
    let (holder, edge) = (place.holder(), eventually("an edge runs", || place.edges().first().copied()));
    // It has to be serving, or the signal that ends it comes before it can be heard.
    eventually("it answers", || (get(place.http(), "x").0 == "404").then_some(()));
    kill(holder, libc::SIGKILL);
    eventually("the edge goes too", || (!PathBuf::from(format!("/proc/{edge}/fd/0")).exists()).then_some(()));
    place.ensure().unwrap();
    assert_ne!(place.holder(), holder);
    assert_eq!(get(place.http(), "x").0, "404");
}

fn down_ends_everything_and_removes_the_directory() {
    let place = Place::new();
    place.ensure().unwrap();
    let at = place.http();
    let holder = place.holder();
    let would = edge::sweep(place.run_dir(), true);
    assert_eq!(would, [format!("edge (holder pid {holder})"), format!("directory {}", place.run_dir().join("edge").display())]);
    assert!(place.run_dir().join("edge").exists());
    assert_eq!(edge::sweep(place.run_dir(), false), would);
    assert!(!place.run_dir().join("edge").exists());
    assert!(runtime().block_on(TcpStream::connect(at)).is_err());
    assert_eq!(edge::sweep(place.run_dir(), false), Vec::<String>::new());
}
