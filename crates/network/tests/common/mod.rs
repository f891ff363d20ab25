//! A machine of its own for each test: a thread in fresh network and mount namespaces, without any uplink but the one a
//! test makes. Everything is gone with the thread, also when the test fails.

#![allow(dead_code)]

use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use network::{Cidr, Config, PodNet};
use ports::{Attachment, PodNetwork};

pub const SECOND: Duration = Duration::from_secs(1);

/// Runs a test on its own machine; skipped, with a word, where we are not root.
pub fn on_own_machine<F: Future<Output = ()>>(test: impl FnOnce(PathBuf) -> F + Send + 'static) {
    // SAFETY: geteuid cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: needs root");
        return;
    }
    let name = std::thread::current().name().unwrap_or("test").to_string();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        // SAFETY: this thread alone changes its namespaces; threads made by it inherit them.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
        assert_eq!(unshared, 0, "{}", std::io::Error::last_os_error());
        sh("mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(PathBuf::from("/mnt/run")));
    });
    if let Err(panic) = thread.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// A shell command that must succeed; its output.
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn config(run_dir: &Path) -> Config {
    Config {
        instance: "t1".into(),
        run_dir: run_dir.to_path_buf(),
        node_name: "n1".into(),
        node_address: Ipv4Addr::new(10, 42, 0, 1),
        pod_cidr: cidr("10.42.0.0/24"),
        cluster_cidr: cidr("10.42.0.0/16"),
        service_cidr: cidr("10.43.0.0/16"),
        dns_address: Ipv4Addr::new(10, 43, 0, 10),
        dns_port: 10053,
    }
}

pub fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

pub async fn start(run_dir: &Path) -> PodNet {
    PodNet::start(config(run_dir)).await.unwrap()
}

/// A pod: its attachment, and threads that run inside it.
pub struct Pod {
    pub netns: PathBuf,
    pub address: Ipv4Addr,
}

pub async fn pod(net: &PodNet, uid: &str) -> Pod {
    let attachment = net.attach(uid).await.unwrap();
    Pod { address: address(&attachment), netns: attachment.netns }
}

pub fn address(attachment: &Attachment) -> Ipv4Addr {
    match attachment.addresses[0] {
        std::net::IpAddr::V4(address) => address,
        other => panic!("{other}"),
    }
}

impl Pod {
    pub fn inside<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        network::netns::inside(&self.netns, f).unwrap()
    }

    pub fn at(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, port)
    }

    /// Answers every TCP connection, line by line, with `name client line`.
    pub fn serve_tcp(&self, port: u16, name: &str) {
        let listener = self.inside(move || TcpListener::bind(("0.0.0.0", port)).unwrap());
        serve_tcp(listener, name);
    }

    /// Answers every datagram with `name client text`.
    pub fn serve_udp(&self, port: u16, name: &str) {
        let socket = self.inside(move || UdpSocket::bind(("0.0.0.0", port)).unwrap());
        serve_udp(socket, name);
    }

    pub fn ask(&self, to: SocketAddrV4) -> Result<String, ErrorKind> {
        self.inside(move || ask(to))
    }
}

pub fn serve_tcp(listener: TcpListener, name: &str) {
    let name = name.to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), name) = (stream, name.clone()) else { return };
            std::thread::spawn(move || {
                let peer = stream.peer_addr().unwrap();
                let mut buffer = [0; 512];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    if stream.write_all(format!("{name} {} {text}", peer.ip()).as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

pub fn serve_udp(socket: UdpSocket, name: &str) {
    let name = name.to_string();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let _ = socket.send_to(format!("{name} {} {text}", from.ip()).as_bytes(), from);
        }
    });
}

pub fn connect(to: SocketAddrV4) -> Result<TcpStream, ErrorKind> {
    let stream = TcpStream::connect_timeout(&SocketAddr::V4(to), SECOND).map_err(|e| e.kind())?;
    stream.set_read_timeout(Some(SECOND)).unwrap();
    Ok(stream)
}

/// One line there and back over an open connection.
pub fn say(stream: &mut TcpStream, text: &str) -> Result<String, ErrorKind> {
    stream.write_all(text.as_bytes()).map_err(|e| e.kind())?;
    let mut buffer = [0; 512];
    let length = stream.read(&mut buffer).map_err(|e| e.kind())?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// `name client` of whoever answers at an address.
pub fn ask(to: SocketAddrV4) -> Result<String, ErrorKind> {
    let answer = say(&mut connect(to)?, "x")?;
    Ok(answer.trim_end_matches(" x").to_string())
}

pub fn ask_udp(socket: &UdpSocket, to: SocketAddrV4) -> Result<String, ErrorKind> {
    socket.set_read_timeout(Some(SECOND)).unwrap();
    socket.send_to(b"x", to).map_err(|e| e.kind())?;
    let mut buffer = [0; 512];
    let (length, _) = socket.recv_from(&mut buffer).map_err(|e| e.kind())?;
    Ok(String::from_utf8_lossy(&buffer[..length]).trim_end_matches(" x").to_string())
}

/// All that this machine's kernel holds of networks, for comparisons before and after.
pub fn listing() -> String {
    let addresses = sh("ip -o addr | cut -d' ' -f2-7; ip route show table all | grep -v cache; cat /proc/sys/net/ipv4/ip_forward");
    let mounts = sh("grep -c /mnt/run /proc/thread-self/mountinfo || true");
    format!("{addresses}\n{mounts}\n{}", sh("nft list ruleset 2>/dev/null || true"))
}

/// A second machine on a wire to this one: 192.0.2.1 here, 192.0.2.2 there with its default route to us.
pub fn outside() -> Pod {
    let netns = PathBuf::from("/mnt/outside");
    network::netns::create(&netns).unwrap();
    sh("ip link add up0 type veth peer name up1 && ip addr add 192.0.2.1/24 dev up0 && ip link set up0 up");
    let path = netns.display();
    sh(&format!(
        "mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && touch /run/netns/outside && mount --bind {path} /run/netns/outside"
    ));
    sh(
        "ip link set up1 netns outside && ip -n outside link set lo up && ip -n outside addr add 192.0.2.2/24 dev up1 && ip -n outside link set up1 up",
    );
    sh("ip route add default via 192.0.2.2");
    Pod { netns, address: Ipv4Addr::new(192, 0, 2, 2) }
}
