//! The DNS server of a node: the cluster's names from a snapshot, all others from the machine's resolvers.
//!
//! It runs in the edge process on sockets that are handed in, so that names resolve while the server is down. Knows the
//! DNS wire format (RFC 1035, EDNS RFC 6891, TCP RFC 7766); does not know the API: zones come from a watch channel.

mod upstream;
mod zone;

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use client::CancellationToken;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use plan::dns::Zone;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::cidr::Cidr;
use crate::limits::{DNS_CNAME_MAX, DNS_PLAIN_UDP_BYTES, DNS_QUESTIONS_MAX, DNS_TCP_IDLE, DNS_TCP_MAX, DNS_UDP_BYTES};
use upstream::{Upstream, random};
use zone::{Found, Index};

#[derive(Debug, Clone)]
pub struct Options {
    /// Pod and service ranges: names of their addresses are known here or nowhere, and resolvers in them are ourselves.
    pub ranges: Vec<Cidr>,
    /// The machine's own resolver configuration.
    pub resolv_conf: PathBuf,
}

impl Options {
    pub fn new(ranges: Vec<Cidr>) -> Self {
        Self { ranges, resolv_conf: PathBuf::from("/etc/resolv.conf") }
    }
}

/// What has been answered since the start.
#[derive(Debug, Default)]
pub struct Counters {
    pub questions: AtomicU64,
    pub forwarded: AtomicU64,
    pub failed: AtomicU64,
}

struct Server {
    index: ArcSwap<Index>,
    upstream: Upstream,
    counters: Arc<Counters>,
    /// Questions being answered.
    busy: Arc<Semaphore>,
}

/// Serves until it is told to stop. Before the first zone every question fails (`SERVFAIL`), because "no such name"
/// would be remembered by clients.
pub async fn serve(
    udp: UdpSocket,
    tcp: TcpListener,
    mut zone: watch::Receiver<Arc<Zone>>,
    options: Options,
    counters: Arc<Counters>,
    stop: CancellationToken,
) -> io::Result<()> {
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    let udp = Arc::new(tokio::net::UdpSocket::from_std(udp)?);
    let tcp = tokio::net::TcpListener::from_std(tcp)?;
    let index = |zone: &Arc<Zone>| Arc::new(Index::new(zone.clone(), options.ranges.clone()));
    let server = Arc::new(Server {
        index: ArcSwap::new(index(&zone.borrow_and_update())),
        upstream: Upstream::new(options.resolv_conf.clone(), options.ranges.clone()),
        counters,
        busy: Arc::new(Semaphore::new(DNS_QUESTIONS_MAX)),
    });
    let renewals = async {
        while zone.changed().await.is_ok() {
            server.index.store(index(&zone.borrow_and_update()));
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        () = renewals => Ok(()),
        () = serve_udp(server.clone(), udp) => Ok(()),
        () = serve_tcp(server.clone(), tcp) => Ok(()),
    }
}

async fn serve_udp(server: Arc<Server>, socket: Arc<tokio::net::UdpSocket>) {
    let mut buffer = vec![0; 4096];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(got) => got,
            // An answer of ours that could not be delivered (ICMP) shows up here too.
            Err(_) => {
                tokio::task::yield_now().await;
                continue;
            }
        };
        let Ok(permit) = server.busy.clone().try_acquire_owned() else { continue };
        let (server, socket, question) = (server.clone(), socket.clone(), buffer[..length].to_vec());
        tokio::spawn(async move {
            if let Some(answer) = server.respond(&question, false).await {
                let _ = socket.send_to(&answer, from).await;
            }
            drop(permit);
        });
    }
}

async fn serve_tcp(server: Arc<Server>, listener: tokio::net::TcpListener) {
    let connections = Arc::new(Semaphore::new(DNS_TCP_MAX));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "DNS over TCP: cannot accept");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let server = server.clone();
        tokio::spawn(async move {
            let _ = converse(server, stream).await;
            drop(permit);
        });
    }
}

/// Questions of one connection, one after the other.
async fn converse(server: Arc<Server>, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let length = usize::from(timeout(DNS_TCP_IDLE, stream.read_u16()).await??);
        let mut question = vec![0; length];
        timeout(DNS_TCP_IDLE, stream.read_exact(&mut question)).await??;
        let Some(answer) = server.respond(&question, true).await else { return Ok(()) };
        let framed = [&(answer.len() as u16).to_be_bytes(), answer.as_slice()].concat();
        timeout(DNS_TCP_IDLE, stream.write_all(&framed)).await??;
    }
}

impl Server {
    /// The answer's bytes; `None` for what deserves none (an answer, or less than a header).
    async fn respond(&self, bytes: &[u8], tcp: bool) -> Option<Vec<u8>> {
        self.counters.questions.fetch_add(1, Ordering::Relaxed);
        let query = match Message::from_vec(bytes) {
            Ok(query) => query,
            Err(_) => return malformed(bytes),
        };
        if query.metadata.message_type == MessageType::Response {
            return None;
        }
        let mut response = self.answer(&query).await;
        if response.metadata.response_code == ResponseCode::ServFail {
            self.counters.failed.fetch_add(1, Ordering::Relaxed);
        }
        let room = match (&query.edns, tcp) {
            (_, true) => usize::from(u16::MAX),
            (Some(edns), false) => usize::from(edns.max_payload()).clamp(DNS_PLAIN_UDP_BYTES, DNS_UDP_BYTES),
            (None, false) => DNS_PLAIN_UDP_BYTES,
        };
        fit(&mut response, room)
    }

    async fn answer(&self, query: &Message) -> Message {
        let mut response = Message::response(query.metadata.id, query.metadata.op_code);
        response.metadata.recursion_desired = query.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.metadata.checking_disabled = query.metadata.checking_disabled;
        response.add_queries(query.queries.iter().cloned());
        let dnssec_ok = query.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok);
        if let Some(asked) = &query.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(DNS_UDP_BYTES as u16).set_version(0).set_dnssec_ok(dnssec_ok);
            response.set_edns(edns);
            if asked.version() > 0 {
                response.metadata.response_code = ResponseCode::BADVERS;
                return response;
            }
        }
        let [question] = query.queries.as_slice() else {
            response.metadata.response_code = ResponseCode::FormErr;
            return response;
        };
        if query.metadata.op_code != OpCode::Query {
            response.metadata.response_code = ResponseCode::NotImp;
            return response;
        }
        if question.query_class() != DNSClass::IN || self.upstream.is_probe(question.name()) {
            response.metadata.response_code = ResponseCode::Refused;
            return response;
        }
        self.resolve(question.name().clone(), question.query_type(), dnssec_ok, &mut response).await;
        response
    }

    /// Follows the name through the zone and, where it leads out of it, through the upstream resolvers.
    async fn resolve(&self, mut name: hickory_proto::rr::Name, kind: RecordType, dnssec_ok: bool, response: &mut Message) {
        let index = self.index.load_full();
        if index.is_empty() {
            response.metadata.response_code = ResponseCode::ServFail;
            return;
        }
        for _ in 0..DNS_CNAME_MAX {
            match index.answer(&name, kind, response) {
                Found::Answered => {
                    response.metadata.authoritative = true;
                    rotate(response);
                    return;
                }
                Found::Elsewhere(next) => name = next,
                Found::NotOurs => return self.forward(&name, kind, dnssec_ok, response).await,
            }
        }
        response.metadata.response_code = ResponseCode::ServFail;
    }

    async fn forward(&self, name: &hickory_proto::rr::Name, kind: RecordType, dnssec_ok: bool, response: &mut Message) {
        self.counters.forwarded.fetch_add(1, Ordering::Relaxed);
        let Some(found) = self.upstream.resolve(name, kind, dnssec_ok).await else {
            response.metadata.response_code = ResponseCode::ServFail;
            return;
        };
        response.metadata.response_code = found.metadata.response_code;
        response.metadata.authentic_data = found.metadata.authentic_data;
        response.answers.extend(found.answers);
        response.authorities.extend(found.authorities);
        response.additionals.extend(found.additionals);
    }
}

/// Clients take the first address: let it be another each time.
fn rotate(response: &mut Message) {
    let fixed = response.answers.iter().take_while(|r| r.record_type() == RecordType::CNAME).count();
    let addresses = &mut response.answers[fixed..];
    if addresses.len() > 1 {
        let by = (random() % addresses.len() as u64) as usize;
        addresses.rotate_left(by);
    }
}

/// `FORMERR` with the question's id, where there is at least that.
fn malformed(bytes: &[u8]) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes(bytes.get(0..2)?.try_into().ok()?);
    let is_answer = bytes.get(2)? & 0x80 != 0;
    if bytes.len() < 12 || is_answer {
        return None;
    }
    Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok()
}

/// Makes an answer fit: first without what is merely helpful, then with as many records as go in and the mark that
/// there are more. Some resolvers never ask again over TCP, so a part is better than none.
fn fit(response: &mut Message, room: usize) -> Option<Vec<u8>> {
    let mut bytes = response.to_vec().ok()?;
    if bytes.len() > room && !response.additionals.is_empty() {
        response.additionals.clear();
        bytes = response.to_vec().ok()?;
    }
    if bytes.len() > room {
        response.metadata.truncation = true;
        response.authorities.clear();
        let answers = std::mem::take(&mut response.answers);
        // The largest number that fits lies in fits..over.
        let (mut fits, mut over) = (0, answers.len() + 1);
        while over - fits > 1 {
            let middle = (fits + over) / 2;
            response.answers = answers[..middle].to_vec();
            *(if response.to_vec().ok()?.len() <= room { &mut fits } else { &mut over }) = middle;
        }
        response.answers = answers[..fits].to_vec();
        bytes = response.to_vec().ok()?;
    }
    Some(bytes)
}

/// Binds both sockets of a DNS server to one address: what the edge's holder does, and tests.
pub fn bind(at: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let tcp = TcpListener::bind(at)?;
    let udp = UdpSocket::bind(tcp.local_addr()?)?;
    Ok((udp, tcp))
}
