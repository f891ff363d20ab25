//! Links, addresses and routes over `NETLINK_ROUTE`.
//!
//! Knows `linux/rtnetlink.h`. Does not know what the links are for: [`crate::pods`] decides.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::cidr::Cidr;
use crate::netlink::{self, Message, NETLINK_ROUTE, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Result, Socket};

const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;

const AF_INET: u8 = libc::AF_INET as u8;
const IFF_UP: u32 = 1;
const TABLE_MAIN: u8 = 254;
const SCOPE_UNIVERSE: u8 = 0;
pub const SCOPE_LINK: u8 = 253;
pub const SCOPE_HOST: u8 = 254;
const TYPE_UNICAST: u8 = 1;
const TYPE_UNREACHABLE: u8 = 7;
/// The loopback link has this index in every network namespace.
pub const LOOPBACK: u32 = 1;
/// Our mark on routes (`rtm_protocol`), from the range that nobody has registered.
pub const PROTOCOL: u8 = 83;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub alias: String,
    pub group: u32,
    pub mtu: u32,
    pub up: bool,
    /// Packets can be sent. A link that is up may not be there yet: the kernel gets to it when the other end is up.
    pub sends: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Directly on a link.
    Link(u32),
    Gateway(u32, Ipv4Addr),
    /// Answered with "host unreachable".
    Unreachable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub to: Cidr,
    pub via: Via,
    /// The source address of what this machine itself sends by it.
    pub source: Option<Ipv4Addr>,
    pub protocol: u8,
    pub metric: u32,
}

pub fn open() -> Result<Socket> {
    Socket::open(NETLINK_ROUTE)
}

fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// A pair of links: `name` here, in `group`; `peer` in the namespace `peer_namespace` refers to.
pub fn add_veth(socket: &mut Socket, name: &str, group: u32, mtu: u32, peer: &str, peer_namespace: BorrowedFd) -> Result<()> {
    let mut m = Message::new(NEW_LINK, NLM_F_CREATE | NLM_F_EXCL).fixed(&link_header(0, 0, 0));
    m.string(3, name).u32(4, mtu).u32(27, group);
    m.nest(18, |m| {
        m.attr(1, b"veth");
        m.nest(2, |m| {
            m.nest(1, |m| {
                m.raw(&link_header(0, 0, 0));
                m.string(3, peer).u32(4, mtu).u32(28, peer_namespace.as_raw_fd() as u32);
            });
        });
    });
    socket.request(&format!("cannot create link {name}"), m)
}

/// Switches a link on and, if given, names its purpose.
pub fn raise(socket: &mut Socket, index: u32, alias: Option<&str>) -> Result<()> {
    let mut m = Message::new(NEW_LINK, 0).fixed(&link_header(index, IFF_UP, IFF_UP));
    if let Some(alias) = alias {
        m.attr(20, alias.as_bytes());
    }
    socket.request(&format!("cannot switch on link {index}"), m)
}

/// A link that is gone already counts as removed.
pub fn delete_link(socket: &mut Socket, index: u32) -> Result<()> {
    let m = Message::new(DEL_LINK, 0).fixed(&link_header(index, 0, 0));
    absent_is_fine(socket.request(&format!("cannot remove link {index}"), m))
}

pub fn links(socket: &mut Socket) -> Result<Vec<Link>> {
    let mut found = Vec::new();
    let m = Message::new(GET_LINK, 0).fixed(&link_header(0, 0, 0));
    socket.dump("list of links", m, &mut |_, payload| found.extend(parse_link(payload)))?;
    Ok(found)
}

pub fn link(socket: &mut Socket, name: &str) -> Result<Option<Link>> {
    let mut m = Message::new(GET_LINK, 0).fixed(&link_header(0, 0, 0));
    m.string(3, name);
    let mut found = None;
    absent_is_fine(socket.get(&format!("cannot find link {name}"), m, &mut |_, payload| found = parse_link(payload)))?;
    Ok(found)
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let index = u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?);
    let flags = u32::from_ne_bytes(payload.get(8..12)?.try_into().ok()?);
    let attributes = payload.get(16..)?;
    let text = |kind| netlink::attribute(attributes, kind).map(netlink::text).unwrap_or_default();
    let number = |kind| netlink::attribute(attributes, kind).and_then(ne32).unwrap_or(0);
    Some(Link {
        index,
        name: text(3),
        alias: text(20),
        group: number(27),
        mtu: number(4),
        up: flags & IFF_UP != 0,
        sends: text(6) != "noop",
    })
}

fn address_message(kind: u16, flags: u16, index: u32, address: Ipv4Addr, scope: u8) -> Message {
    let mut header = [AF_INET, 32, 0, scope, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut m = Message::new(kind, flags).fixed(&header);
    m.attr(2, &address.octets()).attr(1, &address.octets());
    m
}

/// A single address (/32). One that is there already stays.
pub fn add_address(socket: &mut Socket, index: u32, address: Ipv4Addr, scope: u8) -> Result<()> {
    let m = address_message(NEW_ADDRESS, NLM_F_CREATE | NLM_F_EXCL, index, address, scope);
    match socket.request(&format!("cannot add address {address} to link {index}"), m) {
        Err(e) if e.is_existing() => Ok(()),
        other => other,
    }
}

pub fn delete_address(socket: &mut Socket, index: u32, address: Ipv4Addr) -> Result<()> {
    let m = address_message(DEL_ADDRESS, 0, index, address, SCOPE_UNIVERSE);
    absent_is_fine(socket.request(&format!("cannot remove address {address} from link {index}"), m))
}

/// All IPv4 addresses of this machine, with their links.
pub fn addresses(socket: &mut Socket) -> Result<Vec<(u32, Ipv4Addr)>> {
    let mut found = Vec::new();
    let m = Message::new(GET_ADDRESS, 0).fixed(&[AF_INET, 0, 0, 0, 0, 0, 0, 0]);
    socket.dump("list of addresses", m, &mut |_, payload| {
        let index = payload.get(4..8).and_then(ne32);
        let address = payload.get(8..).and_then(|a| netlink::attribute(a, 2)).and_then(ipv4);
        found.extend(index.zip(address));
    })?;
    Ok(found)
}

fn route_message(kind: u16, flags: u16, route: &Route) -> Message {
    let (scope, what) = match route.via {
        Via::Link(_) => (SCOPE_LINK, TYPE_UNICAST),
        Via::Gateway(..) => (SCOPE_UNIVERSE, TYPE_UNICAST),
        Via::Unreachable => (SCOPE_UNIVERSE, TYPE_UNREACHABLE),
    };
    let header = [AF_INET, route.to.prefix(), 0, 0, TABLE_MAIN, route.protocol, scope, what, 0, 0, 0, 0];
    let mut m = Message::new(kind, flags).fixed(&header);
    if route.to.prefix() > 0 {
        m.attr(1, &route.to.network().octets());
    }
    match route.via {
        Via::Link(index) => {
            m.u32(4, index);
        }
        Via::Gateway(index, gateway) => {
            m.u32(4, index).attr(5, &gateway.octets());
        }
        Via::Unreachable => {}
    }
    if let Some(source) = route.source {
        m.attr(7, &source.octets());
    }
    if route.metric != 0 {
        m.u32(6, route.metric);
    }
    m
}

/// Adds a route, or puts it in the place of one with the same range and metric.
pub fn put_route(socket: &mut Socket, route: &Route) -> Result<()> {
    let m = route_message(NEW_ROUTE, NLM_F_CREATE | NLM_F_REPLACE, route);
    socket.request(&format!("cannot add route to {}", route.to), m)
}

pub fn delete_route(socket: &mut Socket, route: &Route) -> Result<()> {
    let m = route_message(DEL_ROUTE, 0, route);
    absent_is_fine(socket.request(&format!("cannot remove route to {}", route.to), m))
}

/// The IPv4 routes of the main table.
pub fn routes(socket: &mut Socket) -> Result<Vec<Route>> {
    let mut found = Vec::new();
    let m = Message::new(GET_ROUTE, 0).fixed(&[AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    socket.dump("list of routes", m, &mut |_, payload| found.extend(parse_route(payload)))?;
    Ok(found)
}

fn parse_route(payload: &[u8]) -> Option<Route> {
    let [_, prefix, _, _, table, protocol, _, what] = *payload.first_chunk()?;
    let attributes = payload.get(12..)?;
    if table != TABLE_MAIN || netlink::attribute(attributes, 15).and_then(ne32).is_some_and(|t| t != u32::from(TABLE_MAIN)) {
        return None;
    }
    let index = netlink::attribute(attributes, 4).and_then(ne32);
    let gateway = netlink::attribute(attributes, 5).and_then(ipv4);
    let via = match (what, index, gateway) {
        (TYPE_UNICAST, Some(index), Some(gateway)) => Via::Gateway(index, gateway),
        (TYPE_UNICAST, index, None) => Via::Link(index.unwrap_or(0)),
        _ => Via::Unreachable,
    };
    Some(Route {
        to: Cidr::new(netlink::attribute(attributes, 1).and_then(ipv4).unwrap_or(Ipv4Addr::UNSPECIFIED), prefix),
        via,
        source: netlink::attribute(attributes, 7).and_then(ipv4),
        protocol,
        metric: netlink::attribute(attributes, 6).and_then(ne32).unwrap_or(0),
    })
}

fn absent_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if e.is_missing() => Ok(()),
        other => other,
    }
}

fn ne32(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?))
}
