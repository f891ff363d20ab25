//! Services in a real kernel: what clients on pods, on the node and outside see.

mod common;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::Path;
use std::time::Duration;

use common::*;
use network::services::Writer;
use network::{PodNet, nft};
use plan::services::{Port, Protocol, Table};

const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 43, 0, 7), 80);
const NODE: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 1);

fn port(protocol: Protocol, endpoints: &[SocketAddrV4]) -> Port {
    Port {
        protocol,
        inside: [VIP].into(),
        outside: BTreeSet::new(),
        node_port: None,
        endpoints: endpoints.iter().copied().collect(),
        outside_endpoints: None,
        affinity_seconds: None,
    }
}

fn tcp(endpoints: &[SocketAddrV4]) -> Port {
    port(Protocol::Tcp, endpoints)
}

fn table(ports: &[(&str, Port)]) -> Table {
    ports.iter().map(|(key, port)| (key.to_string(), port.clone())).collect()
}

struct Machine {
    net: PodNet,
    writer: Writer,
    socket: network::netlink::Socket,
}

impl Machine {
    async fn start(run: &Path) -> Self {
        Self { net: start(run).await, writer: Writer::new("t1", cidr("10.42.0.0/16")), socket: nft::open().unwrap() }
    }

    fn apply(&mut self, table: Table) {
        let moved = self.writer.apply(&mut self.socket, table).unwrap();
        network::forget_moved(&mut self.socket, &moved).unwrap();
    }

    fn web(&mut self, port: Port) {
        self.apply(table(&[("d/web:80/tcp", port)]));
    }

    async fn pod(&self, name: &str) -> Pod {
        let pod = pod(&self.net, name).await;
        pod.serve_tcp(8080, name);
        pod.serve_udp(5353, name);
        pod
    }
}

/// Who answers, over many connections: name and the client it saw.
fn answers(mut ask: impl FnMut() -> Result<String, ErrorKind>) -> BTreeSet<String> {
    (0..40).map(|_| ask().unwrap_or_else(|e| e.to_string())).collect()
}

fn set(all: &[String]) -> BTreeSet<String> {
    all.iter().cloned().collect()
}

#[test]
fn a_cluster_address_leads_pods_and_node_to_every_endpoint_with_true_client_addresses() {
    on_own_machine(|run| async move {
        let mut m = Machine::start(&run).await;
        let (a, b, c) = (m.pod("a").await, m.pod("b").await, m.pod("c").await);
        m.web(tcp(&[a.at(8080), b.at(8080)]));
        assert_eq!(answers(|| c.ask(VIP)), set(&[format!("a {}", c.address), format!("b {}", c.address)]));
        assert_eq!(answers(|| ask(VIP)), set(&["a 10.42.0.1".into(), "b 10.42.0.1".into()]));
        // A pod that reaches itself sees the node, and reaches itself.
        assert_eq!(answers(|| a.ask(VIP)), set(&["a 10.42.0.1".into(), format!("b {}", a.address)]));
    });
}

#[test]
fn a_service_without_endpoints_refuses_at_once_and_serves_when_one_comes() {
    on_own_machine(|run| async move {
        outside();
        let mut m = Machine::start(&run).await;
        let (a, c) = (m.pod("a").await, m.pod("c").await);
        let mut none = tcp(&[]);
        none.node_port = Some(30080);
        none.outside = [SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 9), 80)].into();
        m.web(none.clone());
        let external = *none.outside.first().unwrap();
        for to in [VIP, SocketAddrV4::new(NODE, 30080), external] {
            assert_eq!(c.ask(to), Err(ErrorKind::ConnectionRefused), "{to}");
        }
        for to in [VIP, SocketAddrV4::new(NODE, 30080)] {
            assert_eq!(ask(to), Err(ErrorKind::ConnectionRefused), "{to}");
        }
        let udp = c.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        udp.connect(VIP).unwrap();
        udp.send(b"x").unwrap();
        assert_eq!(udp.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        none.endpoints.insert(a.at(8080));
        m.web(none);
        for to in [VIP, SocketAddrV4::new(NODE, 30080), external] {
            assert_eq!(c.ask(to).unwrap(), format!("a {}", c.address), "{to}");
        }
        // An unknown port of a known address, and an unknown address.
        assert_eq!(c.ask(SocketAddrV4::new(*VIP.ip(), 81)), Err(ErrorKind::ConnectionRefused));
        assert_eq!(ask("10.43.1.1:80".parse().unwrap()), Err(ErrorKind::ConnectionRefused));
    });
}

#[test]
fn an_endpoint_taken_out_gets_no_new_connection_and_keeps_its_old_ones() {
    on_own_machine(|run| async move {
        let mut m = Machine::start(&run).await;
        let (a, b, c) = (m.pod("a").await, m.pod("b").await, m.pod("c").await);
        m.web(tcp(&[a.at(8080)]));
        let mut old = c.inside(|| connect(VIP).unwrap());
        assert!(say(&mut old, "1").unwrap().starts_with("a "));
        m.web(tcp(&[b.at(8080)]));
        assert_eq!(answers(|| c.ask(VIP)), set(&[format!("b {}", c.address)]));
        assert!(say(&mut old, "2").unwrap().starts_with("a "));
        m.web(tcp(&[]));
        assert_eq!(c.ask(VIP), Err(ErrorKind::ConnectionRefused));
        assert!(say(&mut old, "3").unwrap().starts_with("a "));
        m.apply(Table::new());
        assert!(say(&mut old, "4").unwrap().starts_with("a "));
    });
}

#[test]
fn a_node_port_answers_on_every_address_of_the_node() {
    on_own_machine(|run| async move {
        let other = outside();
        let mut m = Machine::start(&run).await;
        let (a, c) = (m.pod("a").await, m.pod("c").await);
        let mut web = tcp(&[a.at(8080)]);
        web.node_port = Some(30080);
        m.web(web);
        let at = |address: [u8; 4]| SocketAddrV4::new(address.into(), 30080);
        assert_eq!(ask(at([10, 42, 0, 1])).unwrap(), "a 10.42.0.1");
        assert_eq!(ask(at([127, 0, 0, 1])).unwrap(), "a 10.42.0.1");
        assert_eq!(c.ask(at([10, 42, 0, 1])).unwrap(), format!("a {}", c.address));
        assert_eq!(other.ask(at([192, 0, 2, 1])).unwrap(), "a 192.0.2.2", "the pod sees who it is");
        assert_eq!(a.ask(at([192, 0, 2, 1])).unwrap(), "a 10.42.0.1");
    });
}

#[test]
fn local_traffic_policy_drops_outsiders_where_no_endpoint_is_here() {
    on_own_machine(|run| async move {
        let other = outside();
        let mut m = Machine::start(&run).await;
        let (a, c) = (m.pod("a").await, m.pod("c").await);
        let mut web = tcp(&[a.at(8080)]);
        web.node_port = Some(30080);
        web.outside_endpoints = Some(BTreeSet::new());
        m.web(web.clone());
        let (inner, outer) = (SocketAddrV4::new(NODE, 30080), SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 30080));
        assert_eq!(other.ask(outer), Err(ErrorKind::TimedOut));
        assert!(c.ask(inner).is_ok() && ask(inner).is_ok(), "insiders go anywhere");
        web.outside_endpoints = Some([a.at(8080)].into());
        m.web(web);
        assert_eq!(other.ask(outer).unwrap(), "a 192.0.2.2");
    });
}

#[test]
fn a_client_with_affinity_keeps_its_endpoint_until_that_goes() {
    on_own_machine(|run| async move {
        let mut m = Machine::start(&run).await;
        let pods = [m.pod("a").await, m.pod("b").await, m.pod("d").await];
        let c = m.pod("c").await;
        let sticky = |left: &[&Pod]| Port { affinity_seconds: Some(100), ..tcp(&left.iter().map(|p| p.at(8080)).collect::<Vec<_>>()) };
        m.web(sticky(&pods.iter().collect::<Vec<_>>()));
        let mine = answers(|| c.ask(VIP));
        assert_eq!(mine.len(), 1, "{mine:?}");
        // Another writer, as after a restart, writes the table whole: the client stays where it is.
        m.writer = Writer::new("t1", cidr("10.42.0.0/16"));
        m.web(sticky(&pods.iter().collect::<Vec<_>>()));
        assert_eq!(answers(|| c.ask(VIP)), mine);
        let taken = mine.first().unwrap().split(' ').next().unwrap().to_string();
        let names = ["a", "b", "d"];
        let left: Vec<&Pod> = pods.iter().zip(names).filter(|(_, name)| **name != *taken).map(|(pod, _)| pod).collect();
        m.web(sticky(&left));
        let next = answers(|| c.ask(VIP));
        assert!(next.len() == 1 && next != mine, "{next:?} after {mine:?}");
        // Back again: the client keeps its new endpoint.
        m.web(sticky(&pods.iter().collect::<Vec<_>>()));
        assert_eq!(answers(|| c.ask(VIP)), next);
        // And loses it when affinity goes.
        m.web(tcp(&pods.iter().map(|p| p.at(8080)).collect::<Vec<_>>()));
        assert_eq!(answers(|| c.ask(VIP)).len(), 3);
    });
}

#[test]
fn affinity_ends_after_its_time() {
    on_own_machine(|run| async move {
        let mut m = Machine::start(&run).await;
        let (a, b, c) = (m.pod("a").await, m.pod("b").await, m.pod("c").await);
        m.web(Port { affinity_seconds: Some(1), ..tcp(&[a.at(8080), b.at(8080)]) });
        let seen = answers(|| {
            std::thread::sleep(Duration::from_millis(10));
            c.ask(VIP)
        });
        assert_eq!(seen.len(), 1, "each connection renews it");
        let mut changed = false;
        for _ in 0..12 {
            std::thread::sleep(Duration::from_millis(1300));
            changed |= !seen.contains(&c.ask(VIP).unwrap());
            if changed {
                break;
            }
        }
        assert!(changed);
    });
}

#[test]
fn a_udp_client_moves_on_when_its_endpoint_goes() {
    on_own_machine(|run| async move {
        let mut m = Machine::start(&run).await;
        let (a, b, c) = (m.pod("a").await, m.pod("b").await, m.pod("c").await);
        let dns =
            |endpoints: &[SocketAddrV4]| table(&[("d/dns:80/udp", Port { node_port: Some(30053), ..port(Protocol::Udp, endpoints) })]);
        m.apply(dns(&[a.at(5353)]));
        let (udp, by_node_port) = c.inside(|| (UdpSocket::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("0.0.0.0:0").unwrap()));
        let node = SocketAddrV4::new(NODE, 30053);
        assert!(ask_udp(&udp, VIP).unwrap().starts_with("a "));
        assert!(ask_udp(&by_node_port, node).unwrap().starts_with("a "));
        m.apply(dns(&[a.at(5353), b.at(5353)]));
        assert!(ask_udp(&udp, VIP).unwrap().starts_with("a "), "one more endpoint moves nobody");
        m.apply(dns(&[b.at(5353)]));
        assert!(ask_udp(&udp, VIP).unwrap().starts_with("b "));
        assert!(ask_udp(&by_node_port, node).unwrap().starts_with("b "));
        let host = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert_eq!(ask_udp(&host, VIP).unwrap(), "b 10.42.0.1");
        m.apply(dns(&[]));
        assert!(ask_udp(&udp, VIP).is_err());
        m.apply(dns(&[a.at(5353)]));
        assert!(ask_udp(&udp, VIP).unwrap().starts_with("a "), "the same socket is served again");
    });
}

#[test]
fn services_of_programs_on_the_node_itself_work_from_everywhere() {
    on_own_machine(|run| async move {
        let mut m = Machine::start(&run).await;
        let c = m.pod("c").await;
        serve_tcp(TcpListener::bind("0.0.0.0:6443").unwrap(), "api");
        m.web(tcp(&[SocketAddrV4::new(NODE, 6443)]));
        assert_eq!(c.ask(VIP).unwrap(), format!("api {}", c.address));
        assert_eq!(ask(VIP).unwrap(), "api 10.42.0.1");
    });
}

#[test]
fn one_services_change_leaves_the_others_alone_and_listings_are_readable() {
    on_own_machine(|run| async move {
        let mut m = Machine::start(&run).await;
        let at = |n: u8| SocketAddrV4::new(Ipv4Addr::new(10, 42, 0, n), 8080);
        let service = |n: u8, endpoints: &[SocketAddrV4]| {
            let inside = [SocketAddrV4::new(Ipv4Addr::new(10, 43, 1, n), 80)].into();
            (format!("d/s{n}:80/tcp"), Port { inside, ..tcp(endpoints) })
        };
        let mut all: Table = (1..=200).map(|n| service(n, &[at(5), at(6)])).collect();
        m.apply(all.clone());
        let handle = || {
            sh(
                "nft -a list chain ip t1-services $(nft list map ip t1-services service-addresses | grep -o '10.43.1.9 .*svc-[0-9a-f]*' | head -1 | grep -o 'svc-.*') | grep -o 'handle [0-9]*' | tail -1",
            )
        };
        let before = handle();
        all.extend([service(1, &[at(7)]), service(201, &[at(8)])]);
        all.remove("d/s2:80/tcp");
        m.apply(all.clone());
        assert_eq!(handle(), before, "its rule was not written again");
        let listing = sh("nft list table ip t1-services");
        assert!(listing.contains("10.43.1.1 . tcp . 80 : goto svc-"), "{listing}");
        assert!(listing.contains("map { 0 : 10.42.0.7 . 8080 } comment \"d/s1:80/tcp\""), "{listing}");
        assert!(listing.contains("map { 0 : 10.42.0.5 . 8080, 1 : 10.42.0.6 . 8080 } comment \"d/s9:80/tcp\""), "{listing}");
        assert!(!listing.contains("d/s2:80/tcp") && listing.contains("d/s201:80/tcp"));
        // The difference led to what a whole write leads to.
        let changed = sh("nft -nn list table ip t1-services");
        m.writer = Writer::new("t1", cidr("10.42.0.0/16"));
        m.apply(all);
        let sorted = |text: &str| {
            let mut words: Vec<String> = text
                .split(['\n', ','])
                .map(|l| l.trim().trim_end_matches('}').trim().trim_start_matches("elements = { ").to_string())
                .collect();
            words.sort();
            words
        };
        assert_eq!(sorted(&sh("nft -nn list table ip t1-services")), sorted(&changed));
        // Somebody sweeps everything: the next write notices.
        sh("nft delete table ip t1-services");
        assert!(!m.writer.is_intact(&mut m.socket).unwrap());
        m.apply(Table::new());
        assert!(m.writer.is_intact(&mut m.socket).unwrap());
    });
}

#[test]
fn a_thousand_services_are_written_at_once_and_one_changes_quickly() {
    on_own_machine(|run| async move {
        let mut m = Machine::start(&run).await;
        let service = |n: u32, shift: u8| {
            let inside = [SocketAddrV4::new(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 43, 8, 0)) + n), 80)].into();
            let endpoints: Vec<_> =
                (0..5).map(|e| SocketAddrV4::new(Ipv4Addr::new(10, 42, (n % 200) as u8, 10 + e + shift), 8080)).collect();
            (format!("d/s{n}:80/tcp"), Port { inside, ..tcp(&endpoints) })
        };
        let mut all: Table = (0..1000).map(|n| service(n, 0)).collect();
        let began = std::time::Instant::now();
        m.apply(all.clone());
        let whole = began.elapsed();
        all.extend([service(500, 50)]);
        let began = std::time::Instant::now();
        m.apply(all);
        let one = began.elapsed();
        eprintln!("1,000 services x 5 endpoints: {whole:?}; one changed: {one:?}");
        assert!(whole < Duration::from_secs(10) && one < Duration::from_secs(1));
    });
}

#[test]
fn what_the_kernel_refuses_is_named_and_changes_nothing() {
    on_own_machine(|_| async {
        let mut socket = nft::open().unwrap();
        let mut batch = nft::Batch::new("x");
        batch.add_table().add_chain("good").flush_chain("missing");
        let error = batch.commit(&mut socket).unwrap_err();
        assert_eq!(error.errno(), libc::ENOENT);
        assert!(error.to_string().contains("chain x missing"), "{error}");
        assert_eq!(nft::table_handle(&mut socket, "x").unwrap(), None);
    });
}
