//! Endpoints: who a request can go to, the connections kept to each, and the choice among them.
//!
//! An endpoint lives as long as some snapshot names it; connections and counts survive new snapshots. Knows HTTP
//! connections, not routes.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use plan::routes::{BackendProtocol, Backends};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::body::Body;
use crate::limits::{CONNECT_WITHIN, H2_PING_EVERY, H2_PING_WITHIN, HEADERS_BYTES_MAX, IDLE_FOR, IDLE_PER_ENDPOINT, SUSPECT_FOR};
use crate::metrics::{Metrics, Service};
use crate::tls;

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("no connection within {CONNECT_WITHIN:?}")]
    Slow,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
}

/// A connection on which one more request can be sent.
pub enum Sender {
    /// And whether it has been used before: then the endpoint may have closed it at this very moment.
    One(http1::SendRequest<Body>, bool),
    Two(http2::SendRequest<Body>),
}

struct Idle {
    sender: http1::SendRequest<Body>,
    since: Instant,
}

pub struct Endpoint {
    pub address: SocketAddrV4,
    pub protocol: BackendProtocol,
    outstanding: AtomicUsize,
    /// Milliseconds since `born` until which it is avoided.
    suspect_until: AtomicU64,
    born: Instant,
    gone: AtomicBool,
    idle: Mutex<Vec<Idle>>,
    shared: tokio::sync::Mutex<Option<http2::SendRequest<Body>>>,
}

impl Endpoint {
    fn new(address: SocketAddrV4, protocol: BackendProtocol) -> Self {
        Self {
            address,
            protocol,
            outstanding: AtomicUsize::new(0),
            suspect_until: AtomicU64::new(0),
            born: Instant::now(),
            gone: AtomicBool::new(false),
            idle: Mutex::default(),
            shared: tokio::sync::Mutex::default(),
        }
    }

    /// Counts one request until the guard goes.
    pub fn enter(self: &Arc<Self>) -> Outstanding {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        Outstanding(self.clone())
    }

    /// It could not be connected to: others first, for a while.
    pub fn suspect(&self) {
        self.suspect_until.store((self.born.elapsed() + SUSPECT_FOR).as_millis() as u64, Ordering::Relaxed);
    }

    fn is_suspect(&self) -> bool {
        let until = self.suspect_until.load(Ordering::Relaxed);
        until != 0 && (self.born.elapsed().as_millis() as u64) < until
    }

    /// An idle connection, or a new one. `fresh` is for requests that take the connection over.
    pub async fn connect(self: &Arc<Self>, fresh: bool) -> Result<Sender, ConnectError> {
        if self.protocol == BackendProtocol::H2c && !fresh {
            return self.connect_shared().await.map(Sender::Two);
        }
        if !fresh && let Some(sender) = self.take_idle() {
            return Ok(Sender::One(sender, true));
        }
        let stream = timeout(CONNECT_WITHIN, self.dial()).await.map_err(|_| ConnectError::Slow)??;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEADERS_BYTES_MAX.max(128 << 10));
        let (sender, connection) = match stream {
            Dialed::Plain(stream) => {
                let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
                (sender, tokio::spawn(async move { drop(connection.with_upgrades().await) }))
            }
            Dialed::Tls(stream) => {
                let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
                (sender, tokio::spawn(async move { drop(connection.with_upgrades().await) }))
            }
        };
        drop(connection);
        Ok(Sender::One(sender, false))
    }

    async fn dial(&self) -> std::io::Result<Dialed> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        match self.protocol {
            BackendProtocol::Https => Ok(Dialed::Tls(Box::new(tls::connect(stream, self.address).await?))),
            _ => Ok(Dialed::Plain(stream)),
        }
    }

    async fn connect_shared(&self) -> Result<http2::SendRequest<Body>, ConnectError> {
        let mut shared = self.shared.lock().await;
        if let Some(sender) = shared.as_ref().filter(|s| !s.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = timeout(CONNECT_WITHIN, TcpStream::connect(self.address)).await.map_err(|_| ConnectError::Slow)??;
        stream.set_nodelay(true)?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(H2_PING_EVERY).keep_alive_timeout(H2_PING_WITHIN);
        builder.adaptive_window(true);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        if !self.gone.load(Ordering::Relaxed) {
            *shared = Some(sender.clone());
        }
        Ok(sender)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The one used last, so that those not needed grow old. Connections still busy with the end of an answer stay.
    fn take_idle(&self) -> Option<http1::SendRequest<Body>> {
        let mut idle = self.lock();
        idle.retain(|i| !i.sender.is_closed() && i.since.elapsed() < IDLE_FOR);
        let at = idle.iter().rposition(|i| i.sender.is_ready())?;
        Some(idle.remove(at).sender)
    }

    /// After an answer has begun: the connection may be used again once it has ended.
    pub fn give_back(&self, sender: http1::SendRequest<Body>) {
        if self.gone.load(Ordering::Relaxed) || sender.is_closed() {
            return;
        }
        let mut idle = self.lock();
        if idle.len() >= IDLE_PER_ENDPOINT {
            idle.remove(0);
        }
        idle.push(Idle { sender, since: Instant::now() });
    }

    /// No snapshot names it any more: nothing new is sent on its connections; what is in flight ends in peace.
    fn leave(&self) {
        self.gone.store(true, Ordering::Relaxed);
        self.lock().clear();
        if let Ok(mut shared) = self.shared.try_lock() {
            *shared = None;
        }
    }
}

enum Dialed {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

pub struct Outstanding(Arc<Endpoint>);

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.0.outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A Service port, as the router sees it.
pub struct Backend {
    pub endpoints: Vec<Arc<Endpoint>>,
    pub problem: Option<String>,
    pub metrics: Arc<Service>,
}

impl Backend {
    /// The less busy of two taken at random, without those tried already and, while there are others, without those that
    /// refused a connection a moment ago.
    pub fn choose(&self, tried: &[SocketAddrV4]) -> Option<&Arc<Endpoint>> {
        if tried.is_empty()
            && let [only] = self.endpoints.as_slice()
        {
            return Some(only);
        }
        let untried: Vec<&Arc<Endpoint>> = self.endpoints.iter().filter(|e| !tried.contains(&e.address)).collect();
        let sound: Vec<&Arc<Endpoint>> = untried.iter().filter(|e| !e.is_suspect()).copied().collect();
        let from = if sound.is_empty() { untried } else { sound };
        let (a, b) = (*from.get(below(from.len()))?, *from.get(below(from.len()))?);
        Some(if b.outstanding.load(Ordering::Relaxed) < a.outstanding.load(Ordering::Relaxed) { b } else { a })
    }
}

/// A number below `n`, good enough to spread load (a Weyl sequence, mixed).
fn below(n: usize) -> usize {
    static NEXT: AtomicU32 = AtomicU32::new(0x9E37_79B9);
    let x = NEXT.fetch_add(0x9E37_79B9, Ordering::Relaxed);
    let x = (x ^ (x >> 16)).wrapping_mul(0x21F0_AAAD);
    let x = (x ^ (x >> 15)).wrapping_mul(0x735A_2D97);
    ((u64::from(x ^ (x >> 15)) * n as u64) >> 32) as usize
}

/// All backends at one revision.
#[derive(Default)]
pub struct Set {
    pub backends: HashMap<String, Backend>,
}

impl Set {
    /// The next snapshot's set. Endpoints that both have are the same; those that only the old has are left.
    pub fn next(&self, snapshot: Backends, metrics: &Metrics) -> Self {
        let mut old: BTreeMap<(SocketAddrV4, BackendProtocol), Arc<Endpoint>> = BTreeMap::new();
        for endpoint in self.backends.values().flat_map(|b| &b.endpoints) {
            old.insert((endpoint.address, endpoint.protocol), endpoint.clone());
        }
        let mut kept: BTreeMap<(SocketAddrV4, BackendProtocol), Arc<Endpoint>> = BTreeMap::new();
        let mut backends = HashMap::with_capacity(snapshot.backends.len());
        for (key, backend) in snapshot.backends {
            let endpoints = backend.endpoints.iter().map(|address| {
                let id = (*address, backend.protocol);
                let made = || old.remove(&id).unwrap_or_else(|| Arc::new(Endpoint::new(*address, backend.protocol)));
                kept.entry(id).or_insert_with(made).clone()
            });
            let endpoints = endpoints.collect();
            backends.insert(key, Backend { endpoints, problem: backend.problem, metrics: metrics.service(&backend.service) });
        }
        old.values().for_each(|endpoint| endpoint.leave());
        Self { backends }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(addresses: &[&str]) -> Backends {
        let endpoints = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let backend = plan::routes::Backend { service: "d/web".into(), endpoints, ..Default::default() };
        Backends { revision: 1, backends: [("d/web:80".to_string(), backend)].into() }
    }

    #[tokio::test]
    async fn endpoints_survive_snapshots_and_those_gone_are_left() {
        let metrics = Metrics::default();
        let first = Set::default().next(snapshot(&["10.0.0.1:80", "10.0.0.2:80"]), &metrics);
        let second = first.next(snapshot(&["10.0.0.2:80", "10.0.0.3:80"]), &metrics);
        let (a, b) = (&first.backends["d/web:80"].endpoints, &second.backends["d/web:80"].endpoints);
        assert!(Arc::ptr_eq(&a[1], &b[0]));
        assert!(a[0].gone.load(Ordering::Relaxed) && !a[1].gone.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn the_choice_avoids_the_tried_the_suspect_and_the_busy() {
        let metrics = Metrics::default();
        let set = Set::default().next(snapshot(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]), &metrics);
        let backend = &set.backends["d/web:80"];
        let tried = [backend.endpoints[0].address];
        backend.endpoints[1].suspect();
        for _ in 0..100 {
            assert_eq!(backend.choose(&tried).unwrap().address, backend.endpoints[2].address);
        }
        let all: Vec<_> = backend.endpoints.iter().map(|e| e.address).collect();
        assert!(backend.choose(&all).is_none());
        let busy: Vec<_> = (0..50).map(|_| backend.endpoints[0].enter()).collect();
        let chosen = (0..1000).filter(|_| backend.choose(&[]).unwrap().address == all[0]).count();
        assert!(chosen < 400, "{chosen}");
        drop(busy);
    }
}
