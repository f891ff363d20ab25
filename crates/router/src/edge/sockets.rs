//! The edge's listening sockets: bound by the holder, inherited by the edge.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::holder::HolderOptions;
use super::ports;

/// `name=descriptor` for each socket, separated by commas.
pub const VARIABLE: &str = "STAITHE_EDGE_SOCKETS";
/// Connections that may wait while no edge runs; the kernel cuts it down to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

#[derive(Debug, Default)]
pub struct Sockets {
    pub http: Option<TcpListener>,
    pub https: Option<TcpListener>,
    pub dns_udp: Option<UdpSocket>,
    pub dns_tcp: Option<TcpListener>,
}

impl Sockets {
    /// Binds all of them; the error names the port, its purpose and, where it can be seen, who has it.
    pub fn bind(options: &HolderOptions) -> io::Result<Self> {
        Ok(Self {
            http: Some(listen(options.http, "HTTP", "--http-port")?),
            https: Some(listen(options.https, "HTTPS", "--https-port")?),
            dns_udp: Some(UdpSocket::bind(options.dns).map_err(|e| explain(e, "udp", options.dns, "DNS", "--dns-port"))?),
            dns_tcp: Some(listen(options.dns, "DNS", "--dns-port")?),
        })
    }

    fn named(&self) -> Vec<(&'static str, RawFd)> {
        let tcp = |s: &Option<TcpListener>| s.as_ref().map(AsRawFd::as_raw_fd);
        let all = [
            ("http", tcp(&self.http)),
            ("https", tcp(&self.https)),
            ("dns-udp", self.dns_udp.as_ref().map(AsRawFd::as_raw_fd)),
            ("dns-tcp", tcp(&self.dns_tcp)),
        ];
        all.into_iter().filter_map(|(name, fd)| Some((name, fd?))).collect()
    }

    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        self.named().into_iter().map(|(_, fd)| fd).collect()
    }

    pub(super) fn variable(&self) -> String {
        self.named().iter().map(|(name, fd)| format!("{name}={fd}")).collect::<Vec<_>>().join(",")
    }

    /// What the holder handed down. Call it once, first thing: it takes the descriptors into ownership.
    pub fn inherited() -> io::Result<Self> {
        let missing = || io::Error::new(io::ErrorKind::InvalidInput, format!("{VARIABLE} is not set: the edge is started by its holder"));
        let text = std::env::var(VARIABLE).map_err(|_| missing())?;
        let mut sockets = Self::default();
        for part in text.split(',') {
            let (name, number) = part.split_once('=').ok_or_else(missing)?;
            let number: RawFd = number.parse().map_err(|_| missing())?;
            let fd = take(number)?;
            match name {
                "http" => sockets.http = Some(fd.into()),
                "https" => sockets.https = Some(fd.into()),
                "dns-udp" => sockets.dns_udp = Some(fd.into()),
                "dns-tcp" => sockets.dns_tcp = Some(fd.into()),
                _ => {}
            }
        }
        Ok(sockets)
    }
}

fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl on any number is harmless; it fails for what is not open.
    if number < 3 || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{VARIABLE} names descriptor {number}, which is not open")));
    }
    // SAFETY: open (just checked), and handed down to us by the variable's contract, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn listen(at: SocketAddr, purpose: &str, setting: &str) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(at).map_err(|e| explain(e, "tcp", at, purpose, setting))?;
    // SAFETY: a descriptor that we own; listening again only changes the backlog.
    unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) };
    Ok(listener)
}

fn explain(error: io::Error, protocol: &str, at: SocketAddr, purpose: &str, setting: &str) -> io::Error {
    let text = match error.kind() {
        io::ErrorKind::AddrInUse => {
            let by = ports::owner(protocol, at.port()).map_or("another process".to_string(), |owner| owner);
            format!("port {} ({purpose}, {protocol}) is in use by {by}; stop it or choose another port with {setting}", at.port())
        }
        io::ErrorKind::PermissionDenied => format!("port {} ({purpose}) needs root; choose a port above 1023 with {setting}", at.port()),
        io::ErrorKind::AddrNotAvailable => format!("{} ({purpose}) is not an address of this machine", at.ip()),
        _ => format!("cannot listen on {at} ({purpose}): {error}"),
    };
    io::Error::new(error.kind(), text)
}
