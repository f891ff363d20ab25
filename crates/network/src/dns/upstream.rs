//! Everything that is not the cluster's: asked of the resolvers that this machine uses itself.
//!
//! The list comes from the host's `resolv.conf`, which is looked at again while we run. Addresses of our own are left
//! out of it, and a probe finds out whether a resolver sends our questions back to us: a loop is answered with
//! `SERVFAIL` instead of being fed.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use crate::cidr::Cidr;
use crate::limits::{
    DNS_CACHE_MAX, DNS_CACHE_SECONDS_MAX, DNS_RESOLV_CONF_CHECK, DNS_TTL_SECONDS, DNS_UDP_BYTES, DNS_UPSTREAM_ANSWER, DNS_UPSTREAM_ROUNDS,
};

/// The name under which loop probes are asked for. No such domain exists.
const PROBE_DOMAIN: &str = "staithe-loop-check.";

type Question = (Name, RecordType, bool);

struct Kept {
    message: Message,
    at: Instant,
    seconds: u32,
}

struct Servers {
    list: Vec<SocketAddr>,
    modified: Option<SystemTime>,
    looked: Option<Instant>,
}

pub struct Upstream {
    resolv_conf: PathBuf,
    /// Never asked: they are ourselves.
    own: Vec<Cidr>,
    servers: Mutex<Servers>,
    /// Where the last good answer came from.
    preferred: AtomicUsize,
    cache: Mutex<HashMap<Question, Kept>>,
    probe: String,
    looping: AtomicBool,
}

impl Upstream {
    pub fn new(resolv_conf: PathBuf, own: Vec<Cidr>) -> Self {
        Self {
            resolv_conf,
            own,
            servers: Mutex::new(Servers { list: Vec::new(), modified: None, looked: None }),
            preferred: AtomicUsize::new(0),
            cache: Mutex::default(),
            probe: format!("{:016x}.{PROBE_DOMAIN}", random()),
            looping: AtomicBool::new(false),
        }
    }

    /// Our own probe, come back to us.
    pub fn is_probe(&self, name: &Name) -> bool {
        let back = name.to_ascii() == self.probe;
        if back && !self.looping.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "an upstream resolver sends questions back to this server; names outside the cluster do not resolve until {} names another",
                self.resolv_conf.display()
            );
        }
        back
    }

    /// The answer to a question, from the cache or from a resolver; `None` where no resolver gave one.
    pub async fn resolve(&self, name: &Name, kind: RecordType, dnssec_ok: bool) -> Option<Message> {
        let question = (name.to_lowercase(), kind, dnssec_ok);
        if let Some(message) = self.cached(&question) {
            return Some(message);
        }
        let (servers, renewed) = self.servers();
        if renewed && !servers.is_empty() {
            self.send_probe(servers[0]);
        }
        if self.looping.load(Ordering::Relaxed) {
            return None;
        }
        let first = self.preferred.load(Ordering::Relaxed);
        for turn in 0..servers.len() * DNS_UPSTREAM_ROUNDS {
            let at = (first + turn) % servers.len();
            let asked = timeout(DNS_UPSTREAM_ANSWER, exchange(servers[at], name, kind, dnssec_ok)).await;
            let Ok(Ok(message)) = asked else { continue };
            // A server that cannot answer does not keep others from being asked.
            if matches!(message.metadata.response_code, ResponseCode::ServFail | ResponseCode::Refused) && turn + 1 < servers.len() {
                continue;
            }
            self.preferred.store(at, Ordering::Relaxed);
            self.keep(question, &message);
            return Some(message);
        }
        None
    }

    fn cached(&self, question: &Question) -> Option<Message> {
        let cache = lock(&self.cache);
        let kept = cache.get(question)?;
        let age = kept.at.elapsed().as_secs() as u32;
        if age >= kept.seconds {
            return None;
        }
        let mut message = kept.message.clone();
        for record in message.answers.iter_mut().chain(&mut message.authorities).chain(&mut message.additionals) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(message)
    }

    fn keep(&self, question: Question, message: &Message) {
        if !matches!(message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return;
        }
        let shortest = message.answers.iter().chain(&message.authorities).map(|r| r.ttl).min();
        let seconds = shortest.unwrap_or(DNS_TTL_SECONDS).min(DNS_CACHE_SECONDS_MAX);
        if seconds == 0 {
            return;
        }
        let mut cache = lock(&self.cache);
        if cache.len() >= DNS_CACHE_MAX {
            cache.retain(|_, kept| (kept.at.elapsed().as_secs() as u32) < kept.seconds);
            if cache.len() >= DNS_CACHE_MAX {
                cache.clear();
            }
        }
        cache.insert(question, Kept { message: message.clone(), at: Instant::now(), seconds });
    }

    /// The resolvers, and whether the list is new.
    fn servers(&self) -> (Vec<SocketAddr>, bool) {
        let mut servers = lock(&self.servers);
        if servers.looked.is_some_and(|at| at.elapsed() < DNS_RESOLV_CONF_CHECK) {
            return (servers.list.clone(), false);
        }
        servers.looked = Some(Instant::now());
        let modified = fs::metadata(&self.resolv_conf).and_then(|m| m.modified()).ok();
        if servers.modified.is_some() && servers.modified == modified {
            return (servers.list.clone(), false);
        }
        servers.modified = modified;
        let list = parse(&fs::read_to_string(&self.resolv_conf).unwrap_or_default(), &self.own);
        let renewed = list != servers.list;
        servers.list = list;
        if renewed {
            self.looping.store(false, Ordering::Relaxed);
            lock(&self.cache).clear();
        }
        (servers.list.clone(), renewed)
    }

    /// Asks for a name that only we know; if the question arrives here, it went in a circle.
    fn send_probe(&self, server: SocketAddr) {
        let Ok(name) = Name::from_ascii(&self.probe) else { return };
        tokio::spawn(async move {
            let _ = timeout(Duration::from_secs(5), exchange(server, &name, RecordType::HINFO, false)).await;
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// The `nameserver` lines, without those that are ourselves.
fn parse(text: &str, own: &[Cidr]) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).filter_map(|rest| {
        // A zone (`fe80::1%eth0`) needs an interface number that an address alone cannot carry.
        rest.trim().parse::<IpAddr>().ok()
    });
    let ours = |address: &IpAddr| matches!(address, IpAddr::V4(a) if own.iter().any(|r| r.contains(*a)));
    addresses.filter(|a| !ours(a)).map(|a| SocketAddr::new(a, 53)).collect()
}

async fn exchange(server: SocketAddr, name: &Name, kind: RecordType, dnssec_ok: bool) -> io::Result<Message> {
    let mut message = Message::query();
    message.metadata.id = random() as u16;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(DNS_UDP_BYTES as u16).set_version(0).set_dnssec_ok(dnssec_ok);
    message.set_edns(edns);
    let bytes = message.to_vec().map_err(io::Error::other)?;
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let Some(answer) = matching(&buffer[..length], &message) else { continue };
        if !answer.metadata.truncation {
            return Ok(answer);
        }
        return exchange_tcp(server, &bytes, &message).await;
    }
}

async fn exchange_tcp(server: SocketAddr, bytes: &[u8], asked: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let length = usize::from(stream.read_u16().await?);
    let mut buffer = vec![0; length];
    stream.read_exact(&mut buffer).await?;
    matching(&buffer, asked).ok_or_else(|| io::Error::other("the resolver answered something else"))
}

/// Only an answer to this very question counts: anybody may send packets.
fn matching(bytes: &[u8], asked: &Message) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let same = answer.metadata.id == asked.metadata.id && answer.queries.first() == asked.queries.first();
    same.then_some(answer)
}

/// From the operating system: ids of questions must not be guessed.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read_without_our_own() {
        let own = ["10.43.0.0/16".parse().unwrap()];
        let text = "# comment\nsearch example\nnameserver 192.0.2.1\nnameserver 10.43.0.10\n nameserver\t::1\nnameserver fe80::1%eth0\noptions ndots:2\n";
        let list: Vec<String> = parse(text, &own).iter().map(|a| a.to_string()).collect();
        assert_eq!(list, ["192.0.2.1:53", "[::1]:53"]);
    }
}
