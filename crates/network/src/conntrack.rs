//! Forgetting connections over `NFNL_SUBSYS_CTNETLINK`.
//!
//! A UDP client that keeps its port is one connection to the kernel, translated as the first packet was. When that
//! endpoint is gone the entry has to go too, or the client talks into the void until it pauses. TCP needs nothing: its
//! established connections are to live, and its new ones choose anew.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::netlink::{self, Message, Result, Socket};
use crate::nft::IPV4;
use crate::services::Moved;

const GET: u16 = (1 << 8) | 1;
const DELETE: u16 = (1 << 8) | 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const NESTED: u16 = 0x8000;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tuple {
    protocol: u8,
    source: SocketAddrV4,
    destination: SocketAddrV4,
}

/// Removes the entries of clients that are tied to somebody who is not an endpoint any more; returns how many.
/// `local` are the node's own addresses: node ports count on all of them.
pub fn forget(socket: &mut Socket, moved: &[Moved], local: &[Ipv4Addr]) -> Result<usize> {
    if moved.is_empty() {
        return Ok(0);
    }
    let mut stale = Vec::new();
    let list = Message::new(GET, 0).fixed(&[IPV4, 0, 0, 0]);
    socket.dump("list of tracked connections", list, &mut |_, payload| {
        let (Some(original), Some(reply)) = (netlink::attribute(&payload[4..], ORIGINAL), netlink::attribute(&payload[4..], REPLY)) else {
            return;
        };
        let (Some(to), Some(from)) = (parse(original), parse(reply)) else { return };
        if moved.iter().any(|m| concerns(m, to, local) && !m.endpoints.contains(&from.source)) {
            stale.push(original.to_vec());
        }
    })?;
    let mut removed = 0;
    for original in stale {
        let mut m = Message::new(DELETE, 0).fixed(&[IPV4, 0, 0, 0]);
        m.attr(ORIGINAL | NESTED, &original);
        match socket.request("cannot remove a tracked connection", m) {
            Ok(()) => removed += 1,
            Err(e) if e.is_missing() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(removed)
}

fn concerns(moved: &Moved, to: Tuple, local: &[Ipv4Addr]) -> bool {
    let node_port = moved.node_port == Some(to.destination.port()) && local.contains(to.destination.ip());
    to.protocol == moved.protocol && (node_port || moved.addresses.contains(&to.destination))
}

fn parse(tuple: &[u8]) -> Option<Tuple> {
    let ip = netlink::attribute(tuple, 1)?;
    let protocol = netlink::attribute(tuple, 2)?;
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(netlink::attribute(ip, kind)?).ok()?));
    let port = |kind| Some(u16::from_be_bytes(netlink::attribute(protocol, kind)?.try_into().ok()?));
    Some(Tuple {
        protocol: *netlink::attribute(protocol, 1)?.first()?,
        source: SocketAddrV4::new(address(1)?, port(2)?),
        destination: SocketAddrV4::new(address(2)?, port(3)?),
    })
}
