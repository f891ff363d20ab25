//! Whose things are whose: one machine may hold several environments, each with its own instance name.
//!
//! Everything put into the kernel carries the instance: nftables tables by name, links by group and alias, routes by
//! protocol and metric. So a restarted agent finds its own and `down` removes its own, from the kernel alone.

use std::net::Ipv4Addr;

use crate::cidr::Cidr;
use crate::netlink::Result;
use crate::rtnl;

/// Names made from the instance name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub name: String,
    /// The group of links and the metric of routes: 24 bits of the name's hash, never small.
    pub tag: u32,
}

impl Instance {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_string(), tag: 0x0100_0000 | (fnv(name) as u32 & 0x00ff_ffff) }
    }

    /// The table that fences pod and service ranges in.
    pub fn fence_table(&self) -> String {
        self.name.clone()
    }

    pub fn services_table(&self) -> String {
        format!("{}-services", self.name)
    }

    /// The host's end of a pod's link: 15 letters, the most a link's name may have.
    pub fn link_name(&self, uid: &str) -> String {
        format!("veth{:011x}", fnv(&self.alias(uid)) & 0xfff_ffff_ffff)
    }

    /// What the host's end says about itself (`ip link` shows it).
    pub fn alias(&self, uid: &str) -> String {
        format!("{}/{uid}", self.name)
    }

    /// The pod in an alias of ours.
    pub fn uid_of<'a>(&self, alias: &'a str) -> Option<&'a str> {
        alias.strip_prefix(&self.name)?.strip_prefix('/')
    }
}

/// FNV-1a, 64 bits: short stable names, no secrecy wanted.
pub fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The address of this machine as others see it: what the default route says, else the first usable address of the
/// node's pod range, which [`crate::pods::PodNet::start`] then puts on `lo`.
pub fn node_address(pod_cidr: Cidr) -> Result<Ipv4Addr> {
    let mut socket = rtnl::open()?;
    let routes = rtnl::routes(&mut socket)?;
    let default =
        routes.iter().filter(|r| r.to.prefix() == 0).filter(|r| !matches!(r.via, rtnl::Via::Unreachable)).min_by_key(|r| r.metric);
    if let Some(route) = default {
        if let Some(source) = route.source {
            return Ok(source);
        }
        let (rtnl::Via::Gateway(index, _) | rtnl::Via::Link(index)) = route.via else { return Ok(own(pod_cidr)) };
        if let Some((_, address)) = rtnl::addresses(&mut socket)?.into_iter().find(|(link, a)| *link == index && !a.is_loopback()) {
            return Ok(address);
        }
    }
    Ok(own(pod_cidr))
}

fn own(pod_cidr: Cidr) -> Ipv4Addr {
    pod_cidr.nth(1).unwrap_or(pod_cidr.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_short_and_tell_instances_apart() {
        let (a, b) = (Instance::new("staithe"), Instance::new("staithe-2"));
        assert_ne!(a.tag, b.tag);
        assert_eq!(a.link_name("u1").len(), 15);
        assert_ne!(a.link_name("u1"), b.link_name("u1"));
        assert_eq!(a.uid_of(&a.alias("u1")), Some("u1"));
        assert_eq!(a.uid_of(&b.alias("u1")), None);
    }
}
