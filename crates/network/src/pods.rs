//! The pod network of one node: routed pods, no bridge.
//!
//! A pod has a namespace, a link pair and one address. Inside: the address as /32, `169.254.1.1` on the link and the
//! default route by it. Outside: `169.254.1.1` and a route to the address. The kernel is the record: after a restart the
//! links' aliases say whose they are and the routes which address, so there is no file that could disagree.
//!
//! Knows nothing of containers or of the API: a pod is a uid here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ports::{Attachment, NetworkError, PodNetwork};
use tokio::sync::Notify;

use crate::cidr::Cidr;
use crate::instance::Instance;
use crate::netlink::{self, Error};
use crate::rtnl::{self, LOOPBACK, PROTOCOL, Route, Via};
use crate::{fence, firewall, limits, netns, nft, sysctl};

/// The gateway that every pod sees; never leaves the link.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const POD_LINK: &str = "eth0";
const DEFAULT_MTU: u32 = 1500;
/// The range's first addresses: the network itself, and the one a node without uplink gives itself.
const RESERVED: u64 = 2;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub instance: String,
    /// `<run>`: namespaces are mounted under `netns/`, what to restore is under `network/`.
    pub run_dir: PathBuf,
    /// This node's name in the API.
    pub node_name: String,
    pub node_address: Ipv4Addr,
    /// This node's part of the pod range.
    pub pod_cidr: Cidr,
    /// The whole pod range.
    pub cluster_cidr: Cidr,
    pub service_cidr: Cidr,
    pub dns_address: Ipv4Addr,
    /// Where the node's DNS server listens, UDP and TCP, on all addresses.
    pub dns_port: u16,
}

/// The network of one node. See the module. Cheap to clone.
#[derive(Clone)]
pub struct PodNet(Arc<Inner>);

struct Inner {
    config: Config,
    instance: Instance,
    mtu: u32,
    state: Mutex<State>,
    /// Told whenever a pod has gone for good.
    gone: Notify,
    warnings: Vec<String>,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<String, Ipv4Addr>,
    /// On their way out; their addresses are not free yet.
    leaving: BTreeMap<String, Ipv4Addr>,
    /// Where the search for a free address goes on, so that addresses are reused as late as possible.
    next: u64,
}

impl PodNet {
    /// Sets the node up (ranges, fence, forwarding) and finds the pods that are there already.
    pub async fn start(config: Config) -> Result<Self, NetworkError> {
        blocking(move || Inner::set_up(config).map(|inner| Self(Arc::new(inner)))).await
    }

    /// What the operator should know: wide routes that are shadowed, firewalls that could not be opened.
    pub fn warnings(&self) -> &[String] {
        &self.0.warnings
    }

    pub fn config(&self) -> &Config {
        &self.0.config
    }
}

impl Inner {
    fn set_up(config: Config) -> Result<Self, NetworkError> {
        let instance = Instance::new(&config.instance);
        let mut route = rtnl::open().map_err(failed)?;
        let mut filter = nft::open().map_err(failed)?;
        nft::probe(&mut filter).map_err(failed)?;
        let mut warnings = check_ranges(&config, &instance, &mut route)?;
        claim_node_address(&config, &mut route)?;
        netns::prepare(&config.run_dir.join("netns"))
            .map_err(|e| NetworkError::Failed(format!("cannot prepare {}: {e}", config.run_dir.join("netns").display())))?;
        sysctl::set(&config.run_dir, "net.ipv4.ip_forward", "1")
            .map_err(|e| NetworkError::Failed(format!("cannot switch on net.ipv4.ip_forward: {e}")))?;
        put_fence_routes(&config).map_err(failed)?;
        fence::write(&mut filter, &config).map_err(failed)?;
        warnings.extend(firewall::open(&mut filter, &config).map_err(failed)?);
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let mtu = uplink_mtu(&mut route).map_err(failed)?;
        let state = recover(&config, &instance, &mut route).map_err(failed)?;
        Ok(Self { config, instance, mtu, state: Mutex::new(state), gone: Notify::new(), warnings })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn path(&self, uid: &str) -> PathBuf {
        self.config.run_dir.join("netns").join(uid)
    }

    fn attachment(&self, uid: &str, address: Ipv4Addr) -> Attachment {
        Attachment { netns: self.path(uid), addresses: vec![IpAddr::V4(address)] }
    }

    /// Holds the lock throughout: the kernel does links one at a time anyway.
    fn attach_now(&self, uid: &str) -> Result<Attachment, NetworkError> {
        let mut state = self.lock();
        if let Some(address) = state.pods.get(uid) {
            return Ok(self.attachment(uid, *address));
        }
        let address = self.free_address(&mut state)?;
        if let Err(e) = self.connect(uid, address) {
            let mut leftover = rtnl::open().map_err(failed)?;
            let _ = self.disconnect(uid, &mut leftover);
            return Err(failed(e));
        }
        state.pods.insert(uid.to_string(), address);
        Ok(self.attachment(uid, address))
    }

    fn free_address(&self, state: &mut State) -> Result<Ipv4Addr, NetworkError> {
        let range = self.config.pod_cidr;
        let used: BTreeSet<Ipv4Addr> = state.pods.values().chain(state.leaving.values()).copied().collect();
        // The last address is left out too: some programs take it for a broadcast address.
        let usable = range.size().saturating_sub(RESERVED + 1).max(1);
        for step in 0..usable {
            let n = RESERVED + (state.next + step) % usable;
            let Some(address) = range.nth(n).filter(|a| !used.contains(a) && *a != self.config.node_address) else { continue };
            state.next = (n - RESERVED + 1) % usable;
            let _ = fs::write(next_file(&self.config.run_dir), state.next.to_string());
            return Ok(address);
        }
        Err(NetworkError::Exhausted(range.to_string()))
    }

    fn connect(&self, uid: &str, address: Ipv4Addr) -> netlink::Result<()> {
        let mut host = rtnl::open()?;
        let name = self.instance.link_name(uid);
        // What a crash left half made.
        self.disconnect(uid, &mut host)?;
        let path = self.path(uid);
        let mut pod = netns::create(&path).map_err(|e| Error::new(format!("cannot make network namespace {}", path.display()), e))?;
        rtnl::add_veth(&mut host, &name, self.instance.tag, self.mtu, POD_LINK, pod.fd.as_fd())?;

        rtnl::raise(&mut pod.route, LOOPBACK, None)?;
        let inner = find_link(&mut pod.route, POD_LINK)?;
        rtnl::add_address(&mut pod.route, inner, address, 0)?;
        rtnl::raise(&mut pod.route, inner, None)?;
        let gateway = Route { to: Cidr::new(GATEWAY, 32), via: Via::Link(inner), source: None, protocol: PROTOCOL, metric: 0 };
        rtnl::put_route(&mut pod.route, &gateway)?;
        let default = Route { to: Cidr::new(Ipv4Addr::UNSPECIFIED, 0), via: Via::Gateway(inner, GATEWAY), ..gateway };
        rtnl::put_route(&mut pod.route, &default)?;

        let outer = find_link(&mut host, &name)?;
        for (key, value) in [("ipv6.conf.{}.disable_ipv6", "1"), ("ipv4.conf.{}.route_localnet", "1")] {
            sysctl::wish(&format!("net.{}", key.replace("{}", &name)), value);
        }
        rtnl::raise(&mut host, outer, Some(&self.instance.alias(uid)))?;
        rtnl::add_address(&mut host, outer, GATEWAY, rtnl::SCOPE_LINK)?;
        await_sending(&mut pod.route, POD_LINK)?;
        // Last, for a link with a route is what counts as attached after a crash.
        rtnl::put_route(&mut host, &self.pod_route(outer, address))
    }

    fn pod_route(&self, link: u32, address: Ipv4Addr) -> Route {
        let source = Some(self.config.node_address);
        Route { to: Cidr::new(address, 32), via: Via::Link(link), source, protocol: PROTOCOL, metric: self.instance.tag }
    }

    fn disconnect(&self, uid: &str, host: &mut netlink::Socket) -> netlink::Result<()> {
        let path = self.path(uid);
        netns::remove(&path).map_err(|e| Error::new(format!("cannot remove network namespace {}", path.display()), e))?;
        match rtnl::link(host, &self.instance.link_name(uid))? {
            Some(link) => rtnl::delete_link(host, link.index),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl PodNetwork for PodNet {
    async fn attach(&self, uid: &str) -> Result<Attachment, NetworkError> {
        check_uid(uid)?;
        loop {
            let gone = self.0.gone.notified();
            if !self.0.lock().leaving.contains_key(uid) {
                break;
            }
            gone.await;
        }
        let (net, uid) = (self.0.clone(), uid.to_string());
        blocking(move || net.attach_now(&uid)).await
    }

    /// The link is removed in the background (it takes the kernel some 20 ms); the address is free after that.
    async fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        check_uid(uid)?;
        {
            let mut state = self.0.lock();
            let Some(address) = state.pods.remove(uid) else { return Ok(()) };
            state.leaving.insert(uid.to_string(), address);
        }
        let (net, uid) = (self.0.clone(), uid.to_string());
        tokio::task::spawn_blocking(move || {
            let done = rtnl::open().and_then(|mut host| net.disconnect(&uid, &mut host));
            let mut state = net.lock();
            if let (Some(address), Err(error)) = (state.leaving.remove(&uid), done) {
                tracing::warn!(uid, %error, "pod link not removed; it is tried again when the pod is seen next");
                state.pods.insert(uid, address);
            }
            drop(state);
            net.gone.notify_waiters();
        });
        Ok(())
    }

    async fn list(&self) -> Result<BTreeMap<String, Attachment>, NetworkError> {
        Ok(self.0.lock().pods.iter().map(|(uid, address)| (uid.clone(), self.0.attachment(uid, *address))).collect())
    }

    fn node_address(&self) -> IpAddr {
        self.0.config.node_address.into()
    }

    fn dns_address(&self) -> IpAddr {
        self.0.config.dns_address.into()
    }
}

/// A uid becomes a file name.
fn check_uid(uid: &str) -> Result<(), NetworkError> {
    let fine = !uid.is_empty() && uid.len() <= 128 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if fine { Ok(()) } else { Err(NetworkError::Failed(format!("{uid:?} cannot be a pod's uid"))) }
}

fn next_file(run_dir: &Path) -> PathBuf {
    run_dir.join("network").join("next-address")
}

fn failed(e: Error) -> NetworkError {
    let privilege = matches!(e.errno(), libc::EPERM | libc::EACCES);
    NetworkError::Failed(if privilege { format!("{e}: the pod network needs root (CAP_NET_ADMIN)") } else { e.to_string() })
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T, NetworkError> + Send + 'static) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(f).await.unwrap_or_else(|e| Err(NetworkError::Failed(e.to_string())))
}

fn find_link(socket: &mut netlink::Socket, name: &str) -> netlink::Result<u32> {
    let missing = || Error::new(format!("link {name}"), std::io::Error::from_raw_os_error(libc::ENODEV));
    rtnl::link(socket, name)?.map(|l| l.index).ok_or_else(missing)
}

/// The end that was up first sends only after the kernel has noticed that the other is up too: a matter of moments, but
/// the pod's first packet must not be the one that is lost.
fn await_sending(socket: &mut netlink::Socket, name: &str) -> netlink::Result<()> {
    let deadline = Instant::now() + limits::LINK_SENDS_WITHIN;
    while !rtnl::link(socket, name)?.is_some_and(|link| link.sends) {
        if Instant::now() > deadline {
            return Err(Error::new(format!("link {name} does not send"), std::io::Error::from_raw_os_error(libc::ETIMEDOUT)));
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// What is not a pod of this node stops here: an unreachable route for the pod range, and the service range by `lo`,
/// because the host's own packets look up their route before the Service's address is translated.
pub(crate) fn put_fence_routes(config: &Config) -> netlink::Result<()> {
    let tag = Instance::new(&config.instance).tag;
    let pods = Route { to: config.cluster_cidr, via: Via::Unreachable, source: None, protocol: PROTOCOL, metric: tag };
    let services = Route { to: config.service_cidr, via: Via::Link(LOOPBACK), source: Some(config.node_address), ..pods };
    let mut socket = rtnl::open()?;
    rtnl::put_route(&mut socket, &pods)?;
    rtnl::put_route(&mut socket, &services)
}

/// Refuses ranges that this machine uses for something else; warns of those that merely lie inside a wider route.
fn check_ranges(config: &Config, instance: &Instance, route: &mut netlink::Socket) -> Result<Vec<String>, NetworkError> {
    let clash = |text: String| Err(NetworkError::Failed(text));
    if config.cluster_cidr.overlaps(config.service_cidr) {
        return clash(format!("the pod range {} and the service range {} overlap", config.cluster_cidr, config.service_cidr));
    }
    if !config.cluster_cidr.contains(config.pod_cidr.network()) || config.pod_cidr.prefix() < config.cluster_cidr.prefix() {
        return clash(format!("the node's pod range {} is not part of the pod range {}", config.pod_cidr, config.cluster_cidr));
    }
    let links = rtnl::links(route).map_err(failed)?;
    let mut warnings = Vec::new();
    for taken in rtnl::routes(route).map_err(failed)? {
        let ours = taken.protocol == PROTOCOL && taken.metric == instance.tag;
        if ours || taken.to.prefix() == 0 {
            continue;
        }
        for (range, what, setting) in [(config.cluster_cidr, "pod", "--pod-cidr"), (config.service_cidr, "service", "--service-cidr")] {
            if !taken.to.overlaps(range) {
                continue;
            }
            let by = match taken.via {
                Via::Link(index) | Via::Gateway(index, _) => {
                    links.iter().find(|l| l.index == index).map_or(String::new(), |l| format!(" by {}", l.name))
                }
                Via::Unreachable => String::new(),
            };
            let text = format!("the {what} range {range} overlaps with the route to {}{by} of this machine", taken.to);
            if taken.to.prefix() < range.prefix() {
                warnings.push(format!("{text}; addresses in it are now the cluster's. To avoid that, choose another with {setting}"));
            } else {
                return clash(format!("{text}; choose another range with {setting}"));
            }
        }
    }
    Ok(warnings)
}

/// The node's address must be one of this machine; one out of the pod range is put on `lo`.
fn claim_node_address(config: &Config, route: &mut netlink::Socket) -> Result<(), NetworkError> {
    let known = rtnl::addresses(route).map_err(failed)?;
    if known.iter().any(|(_, address)| *address == config.node_address) {
        return Ok(());
    }
    if !config.pod_cidr.contains(config.node_address) {
        return Err(NetworkError::Failed(format!("{} is not an address of this machine; choose one with --node-ip", config.node_address)));
    }
    rtnl::raise(route, LOOPBACK, None).map_err(failed)?;
    rtnl::add_address(route, LOOPBACK, config.node_address, 0).map_err(failed)
}

/// Pods get the MTU of the link with the default route.
fn uplink_mtu(route: &mut netlink::Socket) -> netlink::Result<u32> {
    let default = rtnl::routes(route)?.into_iter().filter(|r| r.to.prefix() == 0).min_by_key(|r| r.metric);
    let Some(Via::Link(index) | Via::Gateway(index, _)) = default.map(|r| r.via) else { return Ok(DEFAULT_MTU) };
    Ok(rtnl::links(route)?.into_iter().find(|l| l.index == index).map_or(DEFAULT_MTU, |l| l.mtu))
}

/// Pods that are whole (namespace, link, route) are kept; pieces of others are removed.
fn recover(config: &Config, instance: &Instance, route: &mut netlink::Socket) -> netlink::Result<State> {
    let next = fs::read_to_string(next_file(&config.run_dir)).ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut state = State { next, ..State::default() };
    let routes = rtnl::routes(route)?;
    for link in rtnl::links(route)?.into_iter().filter(|l| l.group == instance.tag) {
        let uid = instance.uid_of(&link.alias).filter(|uid| check_uid(uid).is_ok());
        let address = routes.iter().find(|r| r.via == Via::Link(link.index) && r.to.prefix() == 32).map(|r| r.to.network());
        match (uid, address) {
            (Some(uid), Some(address)) if netns::is_namespace(&config.run_dir.join("netns").join(uid)) => {
                state.pods.insert(uid.to_string(), address);
            }
            _ => rtnl::delete_link(route, link.index)?,
        }
    }
    for entry in fs::read_dir(config.run_dir.join("netns")).into_iter().flatten().flatten() {
        if !state.pods.contains_key(entry.file_name().to_string_lossy().as_ref()) {
            let _ = netns::remove(&entry.path());
        }
    }
    Ok(state)
}
