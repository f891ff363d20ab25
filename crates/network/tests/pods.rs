//! The pod network on a real kernel.

mod common;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

use common::*;
use network::PodNet;
use ports::{NetworkError, PodNetwork};

#[test]
fn pods_reach_each_other_and_the_node_with_their_own_addresses() {
    on_own_machine(|run| async move {
        let net = start(&run).await;
        let (a, b) = (pod(&net, "a").await, pod(&net, "b").await);
        assert_ne!(a.address, b.address);
        b.serve_tcp(80, "b");
        serve_tcp(TcpListener::bind("0.0.0.0:7000").unwrap(), "node");
        assert_eq!(a.ask(b.at(80)).unwrap(), format!("b {}", a.address));
        assert_eq!(b.ask(b.at(80)).unwrap(), format!("b {}", b.address));
        assert_eq!(ask(b.at(80)).unwrap(), "b 10.42.0.1", "the node speaks with its own address");
        let node = SocketAddrV4::new(Ipv4Addr::new(10, 42, 0, 1), 7000);
        assert_eq!(a.ask(node).unwrap(), format!("node {}", a.address));
        assert_eq!(a.ask(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7000)), Err(ErrorKind::ConnectionRefused));
    });
}

#[test]
fn attaching_twice_is_one_pod_and_addresses_are_reused_late() {
    on_own_machine(|run| async move {
        let net = start(&run).await;
        let first = net.attach("a").await.unwrap();
        assert_eq!(net.attach("a").await.unwrap(), first);
        net.detach("a").await.unwrap();
        net.detach("a").await.unwrap();
        let again = net.attach("a").await.unwrap();
        assert_ne!(again.addresses, first.addresses);
        assert!(net.attach("../x").await.is_err());
        assert_eq!(net.list().await.unwrap().len(), 1);
    });
}

#[test]
fn a_restarted_agent_finds_whole_pods_and_removes_pieces() {
    on_own_machine(|run| async move {
        let net = start(&run).await;
        let (a, b) = (net.attach("a").await.unwrap(), net.attach("b").await.unwrap());
        let next = address(&net.attach("c").await.unwrap());
        net.detach("c").await.unwrap();
        drop(net);
        sh("umount /mnt/run/netns/b");
        let net = start(&run).await;
        let found = net.list().await.unwrap();
        assert_eq!(found.get("a"), Some(&a));
        assert!(!found.contains_key("b"), "without its namespace it is a piece");
        let b2 = net.attach("b").await.unwrap();
        assert_ne!(b2.addresses, b.addresses);
        assert!(address(&b2) > next, "the search goes on where it was");
    });
}

#[test]
fn a_full_range_says_so_and_a_freed_address_serves_again() {
    on_own_machine(|run| async move {
        let config = network::Config { pod_cidr: cidr("10.42.7.0/29"), node_address: Ipv4Addr::new(10, 42, 7, 1), ..config(&run) };
        let net = PodNet::start(config).await.unwrap();
        for n in 0..5 {
            net.attach(&format!("p{n}")).await.unwrap();
        }
        assert!(matches!(net.attach("p5").await, Err(NetworkError::Exhausted(range)) if range == "10.42.7.0/29"));
        net.detach("p3").await.unwrap();
        // The address is free once the link is gone.
        let mut tries = 0;
        while net.attach("p5").await.is_err() {
            tries += 1;
            assert!(tries < 100);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn down_leaves_the_machine_as_it_was() {
    on_own_machine(|run| async move {
        sh("nft add table ip foreign && nft add chain ip foreign FORWARD '{ type filter hook forward priority 0; policy drop; }'");
        sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
        let before = listing();
        let net = start(&run).await;
        pod(&net, "a").await;
        let would = network::sweep("t1", &run, true);
        let during = listing();
        assert_ne!(before, during);
        let done = network::sweep("t1", &run, false);
        assert_eq!(would, done);
        assert!(done.iter().all(|line| !line.starts_with("cannot")), "{done:?}");
        for part in [
            "nftables table ip t1",
            "firewall rule in table foreign",
            "link veth",
            "route 10.42.0.0/16",
            "address 10.42.0.1 on lo",
            "namespace ",
            "ip_forward back to 0",
        ] {
            assert!(done.iter().any(|line| line.contains(part)), "{part}: {done:?}");
        }
        assert_eq!(listing(), before);
        assert_eq!(network::sweep("t1", &run, false), Vec::<String>::new(), "nothing is left to sweep");
    });
}

#[test]
fn two_instances_share_a_machine_and_one_goes_alone() {
    on_own_machine(|run| async move {
        let one = start(&run).await;
        let two = PodNet::start(network::Config {
            instance: "t2".into(),
            run_dir: "/mnt/run2".into(),
            node_address: Ipv4Addr::new(10, 52, 0, 1),
            pod_cidr: cidr("10.52.0.0/24"),
            cluster_cidr: cidr("10.52.0.0/16"),
            service_cidr: cidr("10.53.0.0/16"),
            dns_address: Ipv4Addr::new(10, 53, 0, 10),
            dns_port: 10054,
            ..config(&run)
        });
        let two = two.await.unwrap();
        let (a, b) = (pod(&one, "x").await, pod(&two, "x").await);
        b.serve_tcp(80, "b");
        assert!(a.ask(b.at(80)).is_ok());
        network::sweep("t1", &run, false);
        assert!(ask(b.at(80)).is_ok(), "the other still forwards and answers");
        assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
        network::sweep("t2", std::path::Path::new("/mnt/run2"), false);
    });
}

#[test]
fn ranges_in_use_are_refused_with_the_way_out() {
    on_own_machine(|run| async move {
        let error = |config: network::Config| async { PodNet::start(config).await.err().unwrap().to_string() };
        sh("ip link add d0 type veth peer name d1 && ip addr add 10.42.3.1/24 dev d0 && ip link set d0 up && ip link set d1 up");
        let text = error(config(&run)).await;
        assert_eq!(
            text,
            "the pod range 10.42.0.0/16 overlaps with the route to 10.42.3.0/24 by d0 of this machine; choose another range with --pod-cidr"
        );
        sh("ip link del d0");
        let text = error(network::Config { service_cidr: cidr("10.42.128.0/17"), ..config(&run) }).await;
        assert!(text.contains("overlap"), "{text}");
        let text = error(network::Config { node_address: Ipv4Addr::new(198, 51, 100, 1), ..config(&run) }).await;
        assert_eq!(text, "198.51.100.1 is not an address of this machine; choose one with --node-ip");
        // A wider route is only shadowed.
        sh("ip link add d0 type veth peer name d1 && ip link set d0 up && ip link set d1 up && ip route add 10.0.0.0/8 dev d0");
        let net = start(&run).await;
        assert_eq!(net.warnings().len(), 2, "{:?}", net.warnings());
        assert!(net.warnings()[0].contains("10.0.0.0/8"));
    });
}

#[test]
fn pods_leave_with_the_nodes_address_and_nothing_of_theirs_does() {
    on_own_machine(|run| async move {
        let other = outside();
        let net = PodNet::start(network::Config { node_address: Ipv4Addr::new(192, 0, 2, 1), ..config(&run) }).await.unwrap();
        let a = pod(&net, "a").await;
        other.serve_tcp(80, "other");
        assert_eq!(a.ask(other.at(80)).unwrap(), "other 192.0.2.1");
        // Nobody has these addresses: the way to them must end here, not at the default route.
        for gone in ["10.42.0.200:80", "10.42.9.9:80", "10.43.0.99:80"] {
            let to: SocketAddrV4 = gone.parse().unwrap();
            let (from_pod, from_node) = (a.ask(to), ask(to));
            assert!(matches!(from_pod, Err(ErrorKind::HostUnreachable | ErrorKind::ConnectionRefused)), "{gone} {from_pod:?}");
            assert!(matches!(from_node, Err(ErrorKind::HostUnreachable | ErrorKind::ConnectionRefused)), "{gone} {from_node:?}");
        }
        let leaked = other.inside(|| sh("cat /proc/net/dev; ip neigh"));
        assert!(!leaked.contains("10.42.") && !leaked.contains("10.43."), "{leaked}");
    });
}

#[test]
fn a_pod_cannot_speak_as_another_nor_to_the_nodes_loopback() {
    on_own_machine(|run| async move {
        let net = start(&run).await;
        let a = pod(&net, "a").await;
        let node = std::net::UdpSocket::bind("10.42.0.1:9").unwrap();
        node.set_read_timeout(Some(SECOND / 4)).unwrap();
        let send_from = |source: Ipv4Addr| {
            a.inside(move || std::net::UdpSocket::bind((source, 0)).unwrap().send_to(b"x", "10.42.0.1:9").unwrap());
            node.recv_from(&mut [0; 8]).is_ok()
        };
        a.inside(|| sh("ip addr add 10.42.0.77/32 dev eth0"));
        assert!(send_from(a.address));
        assert!(!send_from(Ipv4Addr::new(10, 42, 0, 77)));
        serve_tcp(TcpListener::bind("127.0.0.1:7001").unwrap(), "loopback");
        let answer = a.inside(|| {
            sh("ip route add 127.0.0.1/32 via 169.254.1.1 dev eth0 table 7 onlink && ip rule add to 127.0.0.1 table 7 priority 0 && echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet");
            sh("ip link set lo down");
            ask(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7001))
        });
        assert!(answer.is_err(), "{answer:?}");
    });
}

#[test]
fn a_firewall_that_drops_lets_pods_pass_and_says_what_it_cannot_open() {
    on_own_machine(|run| async move {
        sh("nft -f - <<'X'
table ip filter {
  chain DOCKER-USER { return; }
  chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; }
  chain INPUT { type filter hook input priority 0; policy drop; iif lo accept; }
}
table inet firewalld { }
X");
        let net = start(&run).await;
        let (a, b) = (pod(&net, "a").await, pod(&net, "b").await);
        b.serve_tcp(80, "b");
        assert!(a.ask(b.at(80)).is_ok());
        serve_tcp(TcpListener::bind("0.0.0.0:7000").unwrap(), "node");
        assert!(a.ask(SocketAddrV4::new(Ipv4Addr::new(10, 42, 0, 1), 7000)).is_ok());
        assert!(sh("nft list chain ip filter DOCKER-USER").contains("10.42.0.0/16"), "Docker keeps what is in its user's chain");
        let again = start(&run).await;
        assert_eq!(sh("nft list table ip filter | grep -c t1/pods").trim(), "3", "once each, however often we start");
        assert_eq!(again.warnings().len(), 1);
        assert!(again.warnings()[0].contains("firewall-cmd"));
    });
}

#[test]
fn a_node_without_uplink_names_itself_out_of_its_pod_range() {
    on_own_machine(|_| async {
        assert_eq!(network::node_address(cidr("10.42.0.0/24")).unwrap(), Ipv4Addr::new(10, 42, 0, 1));
        outside();
        assert_eq!(network::node_address(cidr("10.42.0.0/24")).unwrap(), Ipv4Addr::new(192, 0, 2, 1));
    });
}

#[test]
fn iptables_still_reads_its_own_tables_with_our_rules_in_them() {
    on_own_machine(|run| async move {
        if std::process::Command::new("iptables-nft").arg("--version").output().is_err() {
            eprintln!("skipped: no iptables-nft here");
            return;
        }
        sh(
            "iptables-nft -N DOCKER-USER && iptables-nft -A DOCKER-USER -j RETURN && iptables-nft -A FORWARD -j DOCKER-USER && iptables-nft -P FORWARD DROP && iptables-nft -P INPUT DROP",
        );
        let net = start(&run).await;
        let (a, b) = (pod(&net, "a").await, pod(&net, "b").await);
        b.serve_tcp(80, "b");
        assert!(a.ask(b.at(80)).is_ok());
        let rules = sh("iptables-nft -S");
        assert!(rules.contains("-A DOCKER-USER -s 10.42.0.0/16") && rules.contains("-A DOCKER-USER -d 10.42.0.0/16"), "{rules}");
        assert!(rules.contains("-A INPUT -s 10.42.0.0/16"), "{rules}");
        sh("iptables-nft -A FORWARD -s 192.0.2.0/24 -j ACCEPT");
        network::sweep("t1", &run, false);
        assert!(!sh("iptables-nft -S").contains("10.42."));
    });
}

#[test]
fn many_pods_come_at_once_and_leave_nothing() {
    on_own_machine(|run| async move {
        let net = start(&run).await;
        let before = listing();
        let began = std::time::Instant::now();
        let all: Vec<_> = (0..100)
            .map(|n| {
                tokio::spawn({
                    let net = net.clone();
                    async move { net.attach(&format!("p{n}")).await.unwrap().addresses }
                })
            })
            .collect();
        let mut addresses = std::collections::BTreeSet::new();
        for one in all {
            addresses.extend(one.await.unwrap());
        }
        eprintln!("100 pods attached in {:?}", began.elapsed());
        assert_eq!(addresses.len(), 100);
        for n in 0..100 {
            net.detach(&format!("p{n}")).await.unwrap();
        }
        let deadline = std::time::Instant::now() + SECOND * 20;
        while listing() != before {
            assert!(std::time::Instant::now() < deadline);
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
}
