//! The DNS server as clients see it, over real sockets.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use client::CancellationToken;
use common::*;
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use network::dns::{self, Options};
use plan::dns::Zone;
use serde_json::json;
use tokio::sync::watch;

fn zone() -> Zone {
    let many: Vec<String> = (1..=200).map(|n| format!("10.42.1.{n}")).collect();
    serde_json::from_value(json!({
        "domain": "cluster.local", "revision": 7,
        "names": {
            "web.shop.svc": { "addresses": ["10.43.0.7"], "services": [{ "port": 80, "target": "web.shop.svc" }] },
            "_http._tcp.web.shop.svc": { "services": [{ "port": 80, "target": "web.shop.svc" }] },
            "db.shop.svc": { "addresses": ["10.42.0.5", "10.42.0.6"] },
            "db-0.db.shop.svc": { "addresses": ["10.42.0.5"] },
            "many.shop.svc": { "addresses": many },
            "ext.shop.svc": { "alias": "www.example.org" },
            "near.shop.svc": { "alias": "web.shop.svc.cluster.local" },
            "loop.shop.svc": { "alias": "loop.shop.svc.cluster.local" },
        },
        "pointers": { "10.43.0.7": ["web.shop.svc"], "10.42.0.5": ["db-0.db.shop.svc"] },
    }))
    .unwrap()
}

struct Server {
    at: SocketAddr,
    zone: watch::Sender<Arc<Zone>>,
    stop: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A server on loopback, on a runtime of its own; resolvers come from a file.
fn serve(zone: Zone, resolv_conf: &Path) -> Server {
    let (udp, tcp) = dns::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = udp.local_addr().unwrap();
    let (sender, receiver) = watch::channel(Arc::new(zone));
    let options = Options { ranges: vec![cidr("10.42.0.0/16"), cidr("10.43.0.0/16")], resolv_conf: resolv_conf.to_path_buf() };
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(dns::serve(udp, tcp, receiver, options, Arc::default(), stopped)).unwrap();
    });
    Server { at, zone: sender, stop }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 4711;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn exchange(at: SocketAddr, question: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    socket.send_to(question, at).unwrap();
    let mut buffer = [0; 65_535];
    let length = socket.recv(&mut buffer).ok()?;
    Some(buffer[..length].to_vec())
}

impl Server {
    fn ask_message(&self, message: &Message) -> Message {
        Message::from_vec(&exchange(self.at, &message.to_vec().unwrap()).expect("no answer")).unwrap()
    }

    fn ask(&self, name: &str, kind: RecordType) -> Message {
        self.ask_message(&question(name, kind))
    }

    /// The code, and the answers as text.
    fn check(&self, name: &str, kind: RecordType, code: ResponseCode, answers: &[&str]) {
        let response = self.ask(name, kind);
        let mut got: Vec<String> = response.answers.iter().map(|r| format!("{} {}", r.record_type(), r.data)).collect();
        got.sort();
        assert_eq!((response.metadata.response_code, got), (code, answers.iter().map(|a| a.to_string()).collect()), "{name} {kind}");
        assert_eq!(response.metadata.id, 4711);
        assert!(response.metadata.recursion_available && response.metadata.recursion_desired);
        if answers.is_empty() && matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
            assert_eq!(response.authorities[0].record_type(), RecordType::SOA, "{name} {kind}: nobody can remember this");
        }
    }
}

#[test]
fn names_of_the_cluster_resolve_as_the_specification_says() {
    on_own_machine(|_| async {
        use RecordType::*;
        use ResponseCode::{NXDomain, NoError};
        let s = serve(zone(), Path::new("/nonexistent"));
        for (name, kind, code, answers) in [
            ("web.shop.svc.cluster.local.", A, NoError, &["A 10.43.0.7"][..]),
            ("WEB.Shop.svc.Cluster.LOCAL.", A, NoError, &["A 10.43.0.7"]),
            ("web.shop.svc.cluster.local.", AAAA, NoError, &[]),
            ("web.shop.svc.cluster.local.", MX, NoError, &[]),
            ("_http._tcp.web.shop.svc.cluster.local.", SRV, NoError, &["SRV 0 100 80 web.shop.svc.cluster.local."]),
            ("_http._tcp.web.shop.svc.cluster.local.", A, NoError, &[]),
            ("db.shop.svc.cluster.local.", A, NoError, &["A 10.42.0.5", "A 10.42.0.6"]),
            ("db-0.db.shop.svc.cluster.local.", A, NoError, &["A 10.42.0.5"]),
            ("db-1.db.shop.svc.cluster.local.", A, NXDomain, &[]),
            ("nope.shop.svc.cluster.local.", A, NXDomain, &[]),
            ("nope.shop.svc.cluster.local.", AAAA, NXDomain, &[]),
            // What pods' search lists make of names from outside.
            ("www.example.org.shop.svc.cluster.local.", A, NXDomain, &[]),
            ("www.example.org.svc.cluster.local.", A, NXDomain, &[]),
            ("www.example.org.cluster.local.", A, NXDomain, &[]),
            // There are names below these.
            ("shop.svc.cluster.local.", A, NoError, &[]),
            ("svc.cluster.local.", A, NoError, &[]),
            ("_tcp.web.shop.svc.cluster.local.", A, NoError, &[]),
            ("cluster.local.", A, NoError, &[]),
            ("10-42-0-5.shop.pod.cluster.local.", A, NoError, &["A 10.42.0.5"]),
            ("10-42-0.shop.pod.cluster.local.", A, NXDomain, &[]),
            ("5.0.42.10.in-addr.arpa.", PTR, NoError, &["PTR db-0.db.shop.svc.cluster.local."]),
            ("9.9.42.10.in-addr.arpa.", PTR, NXDomain, &[]),
            ("near.shop.svc.cluster.local.", A, NoError, &["A 10.43.0.7", "CNAME web.shop.svc.cluster.local."]),
            ("near.shop.svc.cluster.local.", CNAME, NoError, &["CNAME web.shop.svc.cluster.local."]),
            ("dns-version.cluster.local.", TXT, NoError, &["TXT 1.1.0"]),
            ("localhost.", A, NoError, &["A 127.0.0.1"]),
        ] {
            s.check(name, kind, code, answers);
        }
        assert_eq!(s.ask("loop.shop.svc.cluster.local.", A).metadata.response_code, ResponseCode::ServFail);
        let srv = s.ask("_http._tcp.web.shop.svc.cluster.local.", SRV);
        assert_eq!(srv.additionals.iter().map(|r| r.data.to_string()).collect::<Vec<_>>(), ["10.43.0.7"]);
        assert!(srv.metadata.authoritative);
        let soa = s.ask("nope.shop.svc.cluster.local.", A);
        assert_eq!(soa.authorities[0].name.to_string(), "cluster.local.");
        assert!(matches!(&soa.authorities[0].data, RData::SOA(soa) if soa.serial == 7 && soa.minimum == 5));
        // The name comes back spelled as it was asked for.
        assert_eq!(s.ask("WEB.shop.svc.cluster.local.", A).answers[0].name.to_string(), "WEB.shop.svc.cluster.local.");
    });
}

#[test]
fn answers_fit_what_the_client_takes_and_tcp_takes_all() {
    on_own_machine(|_| async {
        let s = serve(zone(), Path::new("/nonexistent"));
        let name = "many.shop.svc.cluster.local.";
        let sized = |size: Option<u16>| {
            let mut q = question(name, RecordType::A);
            if let Some(size) = size {
                let mut edns = Edns::new();
                edns.set_max_payload(size).set_version(0);
                q.set_edns(edns);
            }
            exchange(s.at, &q.to_vec().unwrap()).unwrap()
        };
        for (size, limit) in [(None, 512), (Some(256), 512), (Some(1232), 1232), (Some(4096), 1232)] {
            let bytes = sized(size);
            let response = Message::from_vec(&bytes).unwrap();
            assert!(bytes.len() <= limit && response.metadata.truncation && response.answers.len() > 20, "{size:?} {}", bytes.len());
            assert_eq!(response.edns.is_some(), size.is_some());
        }
        let mut stream = TcpStream::connect(s.at).unwrap();
        for _ in 0..2 {
            let q = question(name, RecordType::A).to_vec().unwrap();
            stream.write_all(&[&(q.len() as u16).to_be_bytes(), q.as_slice()].concat()).unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer).unwrap();
            let answer = Message::from_vec(&answer).unwrap();
            assert_eq!((answer.answers.len(), answer.metadata.truncation), (200, false));
        }
        // Clients take the first: it is another one each time.
        let firsts: std::collections::BTreeSet<String> =
            (0..20).map(|_| s.ask("db.shop.svc.cluster.local.", RecordType::A).answers[0].data.to_string()).collect();
        assert_eq!(firsts.len(), 2);
    });
}

#[test]
fn malformed_and_strange_questions_are_answered_with_their_codes() {
    on_own_machine(|_| async {
        let s = serve(zone(), Path::new("/nonexistent"));
        let code = |message: &Message| s.ask_message(message).metadata.response_code;
        let mut update = question("web.shop.svc.cluster.local.", RecordType::A);
        update.metadata.op_code = OpCode::Notify;
        assert_eq!(code(&update), ResponseCode::NotImp);
        let mut chaos = question("version.bind.", RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(code(&chaos), ResponseCode::Refused);
        let mut two = question("a.", RecordType::A);
        two.add_query(Query::query(Name::from_str("b.").unwrap(), RecordType::A));
        assert_eq!(code(&two), ResponseCode::FormErr);
        let mut future = question("web.shop.svc.cluster.local.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_version(3);
        future.set_edns(edns);
        assert_eq!(u16::from(code(&future)), 16, "BADVERS");
        let garbage = exchange(s.at, &[0x12, 0x67, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 200, 1, 2]).unwrap();
        let garbage = Message::from_vec(&garbage).unwrap();
        assert_eq!((garbage.metadata.id, garbage.metadata.response_code), (0x1267, ResponseCode::FormErr));
        // Deserve nothing, and do no harm.
        for silent in [&[1, 2, 3][..], &[0, 1, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0]] {
            UdpSocket::bind("127.0.0.1:0").unwrap().send_to(silent, s.at).unwrap();
        }
        s.check("web.shop.svc.cluster.local.", RecordType::A, ResponseCode::NoError, &["A 10.43.0.7"]);
    });
}

#[test]
fn before_the_first_zone_every_name_fails_and_a_new_zone_counts_at_once() {
    on_own_machine(|_| async {
        let s = serve(Zone::default(), Path::new("/nonexistent"));
        s.check("web.shop.svc.cluster.local.", RecordType::A, ResponseCode::ServFail, &[]);
        s.zone.send_replace(Arc::new(zone()));
        std::thread::sleep(Duration::from_millis(50));
        s.check("web.shop.svc.cluster.local.", RecordType::A, ResponseCode::NoError, &["A 10.43.0.7"]);
    });
}

/// An upstream resolver on port 53 of a loopback address; counts its questions.
fn upstream(address: &str, answer: impl Fn(&Message) -> Option<Message> + Send + Clone + 'static) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let udp = UdpSocket::bind((address, 53)).unwrap();
    let tcp = TcpListener::bind((address, 53)).unwrap();
    let (counted, over_udp) = (count.clone(), answer.clone());
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let q = Message::from_vec(&buffer[..length]).unwrap();
            if !q.queries[0].name().to_ascii().ends_with("loop-check.") {
                counted.fetch_add(1, Ordering::SeqCst);
            }
            let Some(mut response) = over_udp(&q) else { continue };
            if response.to_vec().unwrap().len() > 1232 {
                response.answers.clear();
                response.metadata.truncation = true;
            }
            udp.send_to(&response.to_vec().unwrap(), from).unwrap();
        }
    });
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut q = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut q).unwrap();
            let response = answer(&Message::from_vec(&q).unwrap()).unwrap().to_vec().unwrap();
            stream.write_all(&[&(response.len() as u16).to_be_bytes(), response.as_slice()].concat()).unwrap();
        }
    });
    count
}

fn reply(q: &Message, code: ResponseCode, answers: Vec<RData>) -> Message {
    let mut response = Message::response(q.metadata.id, OpCode::Query);
    response.metadata.response_code = code;
    response.add_queries(q.queries.iter().cloned());
    let name = q.queries[0].name().clone();
    response.add_answers(answers.into_iter().map(|data| Record::from_rdata(name.clone(), 30, data)));
    response
}

fn resolv_conf(text: &str) -> std::path::PathBuf {
    let path = std::path::PathBuf::from("/mnt/resolv.conf");
    std::fs::write(&path, text).unwrap();
    path
}

fn known(q: &Message) -> Option<Message> {
    let name = q.queries[0].name().to_lowercase().to_ascii();
    let address = |last| RData::A(A(std::net::Ipv4Addr::new(192, 0, 2, last)));
    Some(match (name.as_str(), q.queries[0].query_type()) {
        ("www.example.org.", RecordType::A) => reply(q, ResponseCode::NoError, vec![address(80)]),
        ("big.example.org.", RecordType::A) => reply(q, ResponseCode::NoError, (1..=150).map(address).collect()),
        ("alias.example.org.", RecordType::A) => {
            reply(q, ResponseCode::NoError, vec![RData::CNAME(CNAME(Name::from_str("www.example.org.").unwrap()))])
        }
        ("www.example.org.", _) => {
            let mut none = reply(q, ResponseCode::NoError, vec![]);
            let (m, r) = (Name::from_str("ns.example.org.").unwrap(), Name::root());
            none.add_authority(Record::from_rdata(Name::from_str("example.org.").unwrap(), 30, RData::SOA(SOA::new(m, r, 1, 1, 1, 1, 30))));
            none
        }
        _ => reply(q, ResponseCode::NXDomain, vec![]),
    })
}

#[test]
fn other_names_go_to_the_machines_resolvers_and_are_remembered() {
    on_own_machine(|_| async {
        let count = upstream("127.0.0.2", known);
        let s = serve(zone(), &resolv_conf("nameserver 10.43.0.10\nnameserver 127.0.0.2\n"));
        s.check("www.example.org.", RecordType::A, ResponseCode::NoError, &["A 192.0.2.80"]);
        s.check("WWW.example.org.", RecordType::A, ResponseCode::NoError, &["A 192.0.2.80"]);
        assert_eq!(count.load(Ordering::SeqCst), 1, "the second came from the cache");
        s.check("www.example.org.", RecordType::AAAA, ResponseCode::NoError, &[]);
        s.check("ext.shop.svc.cluster.local.", RecordType::A, ResponseCode::NoError, &["A 192.0.2.80", "CNAME www.example.org."]);
        let big = s.ask("big.example.org.", RecordType::A);
        assert!(big.metadata.truncation && big.answers.len() > 10, "asked over TCP for us, cut for the client");
        assert_eq!(s.ask("nope.example.org.", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(s.ask("8.2.0.192.in-addr.arpa.", RecordType::PTR).metadata.response_code, ResponseCode::NXDomain);
    });
}

#[test]
fn a_dead_resolver_is_passed_over_and_none_at_all_fails_in_time() {
    on_own_machine(|_| async {
        // The first never answers, the second has trouble of its own.
        let _silent = upstream("127.0.0.3", |_| None);
        let _failing = upstream("127.0.0.4", |q| Some(reply(q, ResponseCode::ServFail, vec![])));
        let _good = upstream("127.0.0.2", known);
        let s = serve(zone(), &resolv_conf("nameserver 127.0.0.3\nnameserver 127.0.0.4\nnameserver 127.0.0.2\n"));
        s.check("www.example.org.", RecordType::A, ResponseCode::NoError, &["A 192.0.2.80"]);
        let began = Instant::now();
        assert_eq!(s.ask("nope.example.org.", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
        assert!(began.elapsed() < Duration::from_secs(1), "the one that answered is asked first");
        let none = serve(zone(), Path::new("/nonexistent"));
        assert_eq!(none.ask("www.example.org.", RecordType::A).metadata.response_code, ResponseCode::ServFail);
    });
}

#[test]
fn a_resolver_that_asks_us_is_found_out() {
    on_own_machine(|_| async {
        let at = Arc::new(std::sync::OnceLock::new());
        let us = at.clone();
        let forwarded = upstream("127.0.0.2", move |q| {
            let us: &SocketAddr = us.get()?;
            Message::from_vec(&exchange(*us, &q.to_vec().ok()?)?).ok()
        });
        let s = serve(zone(), &resolv_conf("nameserver 127.0.0.2\n"));
        at.set(s.at).unwrap();
        let began = Instant::now();
        assert_eq!(s.ask("www.example.org.", RecordType::A).metadata.response_code, ResponseCode::ServFail);
        std::thread::sleep(Duration::from_millis(500));
        let before = forwarded.load(Ordering::SeqCst);
        assert_eq!(s.ask("other.example.org.", RecordType::A).metadata.response_code, ResponseCode::ServFail);
        assert_eq!(forwarded.load(Ordering::SeqCst), before, "the circle is not fed any more");
        assert!(began.elapsed() < Duration::from_secs(8));
        s.check("web.shop.svc.cluster.local.", RecordType::A, ResponseCode::NoError, &["A 10.43.0.7"]);
    });
}

#[test]
fn pods_and_the_node_ask_the_service_address_and_nobody_else_is_answered() {
    on_own_machine(|run| async move {
        let other = outside();
        let config = network::Config { node_address: std::net::Ipv4Addr::new(192, 0, 2, 1), ..config(&run) };
        let net = network::PodNet::start(config).await.unwrap();
        let a = pod(&net, "a").await;
        let (udp, tcp) = dns::bind("0.0.0.0:10053".parse().unwrap()).unwrap();
        let (_zone, receiver) = watch::channel(Arc::new(zone()));
        let options = Options { ranges: vec![], resolv_conf: "/nonexistent".into() };
        tokio::spawn(dns::serve(udp, tcp, receiver, options, Arc::default(), CancellationToken::new()));
        let query = || question("web.shop.svc.cluster.local.", RecordType::A).to_vec().unwrap();
        let ask = move |to: &'static str| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(SECOND)).unwrap();
            // Connected, as resolvers are: an answer from another address would not count.
            socket.connect(to).unwrap();
            socket.send(&query()).unwrap();
            socket.recv(&mut [0; 512]).is_ok()
        };
        let over_tcp = || TcpStream::connect_timeout(&"10.43.0.10:53".parse().unwrap(), SECOND).is_ok();
        let results = tokio::task::spawn_blocking(move || {
            (
                (a.inside(move || ask("10.43.0.10:53")), a.inside(over_tcp)),
                (ask("10.43.0.10:53"), over_tcp()),
                other.inside(move || ask("192.0.2.1:10053")),
                ask("127.0.0.1:10053"),
            )
        });
        assert_eq!(results.await.unwrap(), ((true, true), (true, true), false, true));
    });
}
