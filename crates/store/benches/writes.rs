//! Durable writes a second, with 1 and with 64 clients, beside etcd's puts in the same run, interleaved.
//!
//! `cargo bench -p store --bench writes [-- SECONDS]`. Values of 1 KiB over 1,000 keys; every write is fsynced before it
//! counts. Ours is called in process, as the API server calls it; etcd is called over gRPC on loopback, as its users call
//! it, in a network namespace of its own. Without root or etcd only ours is measured.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use store::{Embedded, Expect, Options, Store, Write};
use tokio::time::Instant;

const VALUE_BYTES: usize = 1024;
const KEYS: u64 = 1000;
const ROUNDS: usize = 3;
const PORT: u16 = 2379;

/// One measurement: writes a second and CPU microseconds a write.
type Sample = (f64, f64);

fn main() {
    let seconds = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(2);
    let alone = isolate().is_err();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(run(Duration::from_secs(seconds), alone));
}

/// A network namespace with only loopback, so that nothing else is on the port.
fn isolate() -> std::io::Result<()> {
    // SAFETY: the process has one thread yet; only its network changes.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    if up.success() { Ok(()) } else { Err(std::io::Error::other("ip link set lo up")) }
}

async fn run(time: Duration, alone: bool) {
    let dir = tempfile::Builder::new().prefix("bench").tempdir_in(".").expect("a directory");
    let etcd = if alone { None } else { Etcd::start(&dir.path().join("etcd")).await };
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&dir.path().join("store"), Options::default()).expect("a store"));
    println!("load {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    for clients in [1, 64] {
        let (mut ours, mut theirs): (Vec<Sample>, Vec<Sample>) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(measure_store(&store, clients, time).await);
            if let Some(etcd) = &etcd {
                theirs.push(etcd.measure(clients, time).await);
                theirs.push(etcd.measure(clients, time).await);
            }
            ours.push(measure_store(&store, clients, time).await);
        }
        let show = |name: &str, samples: &[Sample]| {
            let (rate, cpu) = (median(samples, |s| s.0), median(samples, |s| s.1));
            let all = samples.iter().map(|s| format!("{:.0}", s.0)).collect::<Vec<_>>().join(" ");
            println!("{clients:>3} clients  {name:<8} {rate:>8.0} writes/s  {cpu:>6.0} us CPU a write  (rounds: {all})");
        };
        show("staithe", &ours);
        if !theirs.is_empty() {
            show("etcd", &theirs);
            println!("{clients:>3} clients  ratio of medians {:.2}", median(&ours, |s| s.0) / median(&theirs, |s| s.0));
        }
    }
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs `write(n)` from so many clients for a while; gives writes a second.
async fn drive<F, Fut>(clients: u64, time: Duration, write: F) -> (u64, f64)
where
    F: Fn(u64, u64) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let start = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (stop, count, write) = (stop.clone(), count.clone(), write.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let n = count.fetch_add(1, Ordering::Relaxed);
                    write(client, n).await;
                }
            })
        })
        .collect();
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("a client");
    }
    let done = count.load(Ordering::Relaxed);
    (done, done as f64 / start.elapsed().as_secs_f64())
}

/// User and system time of a process in microseconds.
fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // utime and stime in ticks of 10 ms.
    let ticks: f64 = fields.get(11..13).unwrap_or_default().iter().filter_map(|t| t.parse::<f64>().ok()).sum();
    ticks * 10_000.0
}

async fn measure_store(store: &Arc<dyn Store>, clients: u64, time: Duration) -> Sample {
    let before = cpu(std::process::id());
    let (store, value) = (store.clone(), Bytes::from(vec![b'x'; VALUE_BYTES]));
    let (done, rate) = drive(clients, time, move |_, n| {
        let (store, value) = (store.clone(), value.clone());
        async move {
            let write = Write { key: format!("core/pods/bench/{}", n % KEYS), expect: Expect::Any, value: Some(value) };
            store.txn(vec![write]).await.expect("a write");
        }
    })
    .await;
    (rate, (cpu(std::process::id()) - before) / done as f64)
}

/// Debian's etcd, a child of this process.
struct Etcd {
    child: Child,
    connections: Vec<h2::client::SendRequest<Bytes>>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Etcd {
    async fn start(dir: &std::path::Path) -> Option<Self> {
        let url = format!("http://127.0.0.1:{PORT}");
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(dir)
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--listen-peer-urls", "http://127.0.0.1:2380"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut etcd = Self { child, connections: Vec::new() };
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if let Some(sender) = connect().await
                && put(sender.clone(), "ready", Bytes::from_static(b"x")).await.is_some()
            {
                etcd.connections.push(sender);
                break;
            }
        }
        for _ in 1..8 {
            etcd.connections.push(connect().await?);
        }
        Some(etcd)
    }

    async fn measure(&self, clients: u64, time: Duration) -> Sample {
        let pid = self.child.id();
        let before = cpu(pid);
        let (connections, value) = (self.connections.clone(), Bytes::from(vec![b'x'; VALUE_BYTES]));
        let (done, rate) = drive(clients, time, move |client, n| {
            let (sender, value) = (connections[client as usize % connections.len()].clone(), value.clone());
            async move { put(sender, &format!("core/pods/bench/{}", n % KEYS), value).await.expect("a put") }
        })
        .await;
        // Only etcd's own time: its client's (this process) is not counted against it.
        (rate, (cpu(pid) - before) / done as f64)
    }
}

async fn connect() -> Option<h2::client::SendRequest<Bytes>> {
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", PORT)).await.ok()?;
    tcp.set_nodelay(true).ok()?;
    let (sender, connection) = h2::client::handshake(tcp).await.ok()?;
    tokio::spawn(connection);
    Some(sender)
}

/// `etcdserverpb.KV/Put`, encoded by hand: gRPC's five bytes, then fields 1 and 2.
async fn put(sender: h2::client::SendRequest<Bytes>, key: &str, value: Bytes) -> Option<()> {
    let mut message = BytesMut::new();
    for (tag, bytes) in [(0x0a, key.as_bytes()), (0x12, &value[..])] {
        message.put_u8(tag);
        let mut length = bytes.len();
        while length >= 0x80 {
            message.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(bytes);
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put(message);
    let request = http::Request::post(format!("http://127.0.0.1:{PORT}/etcdserverpb.KV/Put"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .ok()?;
    let mut sender = sender.ready().await.ok()?;
    let (response, mut body) = sender.send_request(request, false).ok()?;
    body.send_data(framed.freeze(), true).ok()?;
    let mut body = response.await.ok()?.into_body();
    while let Some(data) = body.data().await {
        let _ = body.flow_control().release_capacity(data.ok()?.len());
    }
    let trailers = body.trailers().await.ok()??;
    (trailers.get("grpc-status")? == "0").then_some(())
}
