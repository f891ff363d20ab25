//! Pod network, Service load balancing in the kernel, DNS.
//!
//! ```text
//! pods       PodNet: a namespace, a link pair and an address for each pod        (ports::PodNetwork)
//! proxy      ServiceProxy: Services and EndpointSlices -> plan::services -> services::Writer -> nftables
//! dns        the DNS server of a node, fed with plan::dns zones
//! sweep      everything of an instance out of the kernel again
//! ```
//! Below them: `netlink` (framing), `rtnl` (links, addresses, routes), `nft` (nftables), `conntrack`. No `ip`, `nft` or
//! `iptables` binary is called, ever. IPv4 only.

pub mod cidr;
mod conntrack;
pub mod dns;
mod fence;
mod firewall;
pub mod instance;
pub mod limits;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod pods;
mod proxy;
pub mod rtnl;
pub mod services;
mod sweep;
mod sysctl;

pub use cidr::Cidr;
pub use instance::node_address;
pub use pods::{Config, PodNet};
pub use proxy::{ServiceProxy, Sources};
pub use sweep::sweep;

/// Lets UDP clients of endpoints that are gone choose anew; node ports count on every address of this machine.
pub fn forget_moved(socket: &mut netlink::Socket, moved: &[services::Moved]) -> netlink::Result<usize> {
    if moved.is_empty() {
        return Ok(0);
    }
    let local: Vec<_> = rtnl::addresses(&mut rtnl::open()?)?.into_iter().map(|(_, address)| address).collect();
    conntrack::forget(socket, moved, &local)
}
