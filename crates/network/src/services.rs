//! Service load balancing in the kernel: what the planner decided, as nftables objects, and the difference of two such.
//!
//! Two verdict maps lead from address and port, or from a port of the node, to a chain per Service port; the chain picks
//! an endpoint at random and translates the destination. So one connection costs two lookups whatever the number of
//! Services, and one Service's change touches its own chain only. Knows nftables, not Kubernetes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;

use plan::services::{Port, Table};

use crate::cidr::Cidr;
use crate::instance::{Instance, fnv};
use crate::limits;
use crate::netlink::{Result, Socket};
use crate::nft::{
    self, Batch, DESTINATION, DESTINATION_PORT, Data, Element, Expr, Fib, Fields, Hook, MetaKey, R0, R1, R2, R4, RTN_LOCAL, SOURCE,
    STATE_NEW, Set, Type, Values, Verdict,
};

const ADDRESSES: &str = "service-addresses";
const NODE_PORTS: &str = "node-ports";
const REFUSED_ADDRESSES: &str = "refused-addresses";
const REFUSED_NODE_PORTS: &str = "refused-node-ports";
const BY_ADDRESS: [Type; 3] = [Type::Address, Type::Protocol, Type::Port];
const BY_PORT: [Type; 2] = [Type::Protocol, Type::Port];
const ENDPOINT: [Type; 2] = [Type::Address, Type::Port];
const DSTNAT: i32 = -100;
const FILTER: i32 = 0;
const TCP: u8 = libc::IPPROTO_TCP as u8;

/// What one chain does with a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    /// For listings.
    comment: String,
    /// Clients from the cluster go to this chain instead.
    insiders_to: Option<String>,
    endpoints: BTreeSet<SocketAddrV4>,
    /// The map of clients and their endpoints, and how many seconds it remembers.
    affinity: Option<(String, u32)>,
}

/// The kernel objects of some Service ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Objects {
    chains: BTreeMap<String, Chain>,
    /// Set name and key, with the chain for maps.
    elements: BTreeMap<(&'static str, Fields), Option<String>>,
}

impl Objects {
    fn of<'a>(ports: impl IntoIterator<Item = (&'a String, &'a Port)>) -> Self {
        let mut objects = Self::default();
        for (key, port) in ports {
            objects.add(key, port);
        }
        objects
    }

    fn add(&mut self, key: &str, port: &Port) {
        let name = format!("svc-{:016x}", fnv(key));
        let protocol = port.protocol.number();
        let by_address = |at: &SocketAddrV4| Fields::new().address(*at.ip()).protocol(protocol).port(at.port());
        let inside = (!port.endpoints.is_empty()).then(|| self.chain(&name, key, port, &port.endpoints, None));
        for at in &port.inside {
            match &inside {
                Some(chain) => self.elements.insert((ADDRESSES, by_address(at)), Some(chain.clone())),
                // The fence refuses what is addressed to the service range; naming it here keeps listings complete.
                None => self.elements.insert((REFUSED_ADDRESSES, by_address(at)), None),
            };
        }
        let outside = match &port.outside_endpoints {
            Some(endpoints) if inside.is_some() || !endpoints.is_empty() => {
                Some(self.chain(&format!("{name}-ext"), key, port, endpoints, inside.clone()))
            }
            _ => inside,
        };
        let (addresses, ports) = match &outside {
            Some(_) => (ADDRESSES, NODE_PORTS),
            None => (REFUSED_ADDRESSES, REFUSED_NODE_PORTS),
        };
        for at in &port.outside {
            self.elements.insert((addresses, by_address(at)), outside.clone());
        }
        if let Some(number) = port.node_port {
            self.elements.insert((ports, Fields::new().protocol(protocol).port(number)), outside);
        }
    }

    fn chain(&mut self, name: &str, key: &str, port: &Port, endpoints: &BTreeSet<SocketAddrV4>, insiders_to: Option<String>) -> String {
        let affinity = port.affinity_seconds.map(|seconds| (format!("aff-{}", name.trim_start_matches("svc-")), seconds));
        let chain = Chain { comment: key.to_string(), insiders_to, endpoints: endpoints.clone(), affinity };
        self.chains.insert(name.to_string(), chain);
        name.to_string()
    }

    fn affinity_maps(&self) -> BTreeMap<&str, u32> {
        self.chains.values().filter_map(|c| c.affinity.as_ref()).map(|(name, seconds)| (name.as_str(), *seconds)).collect()
    }
}

/// What changed for clients that hold on to an endpoint without connections (UDP): where they look, who may answer now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    pub protocol: u8,
    pub addresses: BTreeSet<SocketAddrV4>,
    pub node_port: Option<u16>,
    pub endpoints: BTreeSet<SocketAddrV4>,
}

/// The writer of one instance's Service table. Remembers what the kernel holds.
pub struct Writer {
    table: String,
    cluster_cidr: Cidr,
    written: Table,
    /// The kernel's handle of the table we made; `None` before the first write.
    handle: Option<u64>,
}

impl Writer {
    pub fn new(instance: &str, cluster_cidr: Cidr) -> Self {
        let table = Instance::new(instance).services_table();
        Self { table, cluster_cidr, written: Table::new(), handle: None }
    }

    /// Makes the kernel hold `wanted`: by difference, or whole where this writer has not written before or somebody has
    /// removed the table. Clients' endpoints (affinity) survive both.
    pub fn apply(&mut self, socket: &mut Socket, wanted: Table) -> Result<Vec<Moved>> {
        let handle = nft::table_handle(socket, &self.table)?;
        let whole = self.handle.is_none() || handle != self.handle;
        let written = if whole { Table::new() } else { std::mem::take(&mut self.written) };
        let changed: BTreeSet<&String> = written.keys().chain(wanted.keys()).filter(|key| written.get(*key) != wanted.get(*key)).collect();
        let pick = |table: &Table| Objects::of(changed.iter().filter_map(|key| table.get_key_value(*key)));
        let (old, new) = (pick(&written), pick(&wanted));
        let result = if whole { self.write_whole(socket, &new) } else { self.write_difference(socket, &old, &new) };
        if let Err(error) = result {
            // What the kernel holds is not known any more: the next attempt writes it whole.
            self.handle = None;
            return Err(error);
        }
        self.forget_gone(socket, &old, &new)?;
        let moved = moved(&written, &wanted, &changed);
        self.handle = nft::table_handle(socket, &self.table)?;
        self.written = wanted;
        Ok(moved)
    }

    /// Whether the table is still the one we wrote.
    pub fn is_intact(&self, socket: &mut Socket) -> Result<bool> {
        Ok(self.handle.is_some() && nft::table_handle(socket, &self.table)? == self.handle)
    }

    fn write_whole(&self, socket: &mut Socket, new: &Objects) -> Result<()> {
        let remembered = self.remembered(socket, new);
        let mut b = Batch::new(&self.table);
        b.add_table().delete_table().add_table();
        self.add_frame(&mut b);
        self.difference(&mut b, &Objects::default(), new);
        for (map, elements) in remembered {
            b.add_elements(&map, elements);
        }
        b.commit(socket)
    }

    fn write_difference(&self, socket: &mut Socket, old: &Objects, new: &Objects) -> Result<()> {
        let mut b = Batch::new(&self.table);
        self.difference(&mut b, old, new);
        b.commit(socket)
    }

    /// Maps, sets and the chains that look into them.
    fn add_frame(&self, b: &mut Batch) {
        b.add_set(&Set { name: ADDRESSES, key: &BY_ADDRESS, values: Values::Verdict, dynamic: None });
        b.add_set(&Set { name: NODE_PORTS, key: &BY_PORT, values: Values::Verdict, dynamic: None });
        b.add_set(&Set { name: REFUSED_ADDRESSES, key: &BY_ADDRESS, values: Values::None, dynamic: None });
        b.add_set(&Set { name: REFUSED_NODE_PORTS, key: &BY_PORT, values: Values::None, dynamic: None });

        b.add_chain("services");
        let lookup = [Expr::FindVerdict { map: ADDRESSES.into(), key: R0 }];
        b.add_rule("services", "by address", address_key().into_iter().chain(lookup));
        let lookup = [Expr::FindVerdict { map: NODE_PORTS.into(), key: R0 }];
        b.add_rule("services", "by port of the node", to_this_node().into_iter().chain(port_key()).chain(lookup));
        for (chain, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
            b.add_base_chain(chain, "nat", hook, DSTNAT);
            b.add_rule(chain, "", [Expr::Do(Verdict::Jump("services".into()))]);
        }

        b.add_chain("refused");
        let tcp = [Expr::Meta(MetaKey::L4Protocol, R0), Expr::Equal(R0, vec![TCP]), Expr::RejectTcp];
        b.add_rule("refused", "no endpoint is ready", tcp);
        b.add_rule("refused", "no endpoint is ready", [Expr::Reject]);
        for (chain, hook) in [("filter-input", Hook::Input), ("filter-forward", Hook::Forward), ("filter-output", Hook::Output)] {
            b.add_base_chain(chain, "filter", hook, FILTER);
            let first_packet = || {
                let new = STATE_NEW.to_ne_bytes().to_vec();
                [Expr::ConntrackState(R0), Expr::And(R0, new), Expr::Differs(R0, vec![0; 4])].into_iter()
            };
            let refuse = || Expr::Do(Verdict::Goto("refused".into()));
            let lookup = [Expr::Find { set: REFUSED_ADDRESSES.into(), key: R0 }, refuse()];
            b.add_rule(chain, "", first_packet().chain(address_key()).chain(lookup));
            if hook != Hook::Forward {
                let lookup = [Expr::Find { set: REFUSED_NODE_PORTS.into(), key: R0 }, refuse()];
                b.add_rule(chain, "", first_packet().chain(to_this_node()).chain(port_key()).chain(lookup));
            }
        }
    }

    /// The steps from one set of objects to another, in an order in which every reference has its target.
    fn difference(&self, b: &mut Batch, old: &Objects, new: &Objects) {
        let (old_maps, new_maps) = (old.affinity_maps(), new.affinity_maps());
        // A map's timeout cannot be changed; a new one takes its place.
        let gone_maps: Vec<&str> = old_maps.iter().filter(|(name, s)| new_maps.get(*name) != Some(*s)).map(|(name, _)| *name).collect();
        let added_maps = || new_maps.iter().filter(|(name, s)| old_maps.get(*name) != Some(*s));
        let rewritten = |name: &&String| new.chains.get(*name) != old.chains.get(*name);

        let removed = |(key, to): &(&(&'static str, Fields), &Option<String>)| new.elements.get(*key) != Some(*to);
        let added = |(key, to): &(&(&'static str, Fields), &Option<String>)| old.elements.get(*key) != Some(*to);
        for (set, elements) in by_set(old.elements.iter().filter(removed)) {
            b.delete_elements(set, elements);
        }
        for name in old.chains.keys().filter(rewritten) {
            b.flush_chain(name);
        }
        for name in &gone_maps {
            b.delete_set(name);
        }
        for name in old.chains.keys().filter(|name| !new.chains.contains_key(*name)) {
            b.delete_chain(name);
        }
        for name in new.chains.keys().filter(|name| !old.chains.contains_key(*name)) {
            b.add_chain(name);
        }
        for (name, seconds) in added_maps() {
            let dynamic = Some((*seconds, limits::AFFINITY_CLIENTS_MAX));
            b.add_set(&Set { name, key: &[Type::Address], values: Values::Fields(&ENDPOINT), dynamic });
        }
        for name in new.chains.keys().filter(rewritten) {
            self.add_rules(b, name, &new.chains[name]);
        }
        for (set, elements) in by_set(new.elements.iter().filter(added)) {
            b.add_elements(set, elements);
        }
    }

    fn add_rules(&self, b: &mut Batch, name: &str, chain: &Chain) {
        let comment = chain.comment.as_str();
        if let Some(inside) = &chain.insiders_to {
            let goto = || [Expr::Do(Verdict::Goto(inside.clone()))];
            b.add_rule(name, comment, nft::in_range(SOURCE, self.cluster_cidr).into_iter().chain(goto()));
            let from_node = [Expr::Fib(Fib::SourceType, R0), Expr::Equal(R0, RTN_LOCAL.to_ne_bytes().to_vec())];
            b.add_rule(name, comment, from_node.into_iter().chain(goto()));
        }
        if chain.endpoints.is_empty() {
            b.add_rule(name, comment, [Expr::Do(Verdict::Drop)]);
            return;
        }
        // Address in R1, port in R2: one after the other, as the maps hold them.
        let translate = || [Expr::Dnat { address: R1, port: Some(R2) }];
        let remember = || chain.affinity.iter().map(|(map, _)| Expr::Remember { map: map.clone(), key: R4, value: R1 });
        if let Some((map, _)) = &chain.affinity {
            let again = [Expr::Load(SOURCE, R4), Expr::FindValue { map: map.clone(), key: R4, into: R1 }];
            b.add_rule(name, comment, again.into_iter().chain(remember()).chain(translate()));
        }
        let elements =
            chain.endpoints.iter().enumerate().map(|(n, at)| Element::to(Fields::new().integer(n as u32), Data::Fields(endpoint(at))));
        let map = b.anonymous_map(&[Type::Integer], &ENDPOINT, elements);
        let pick = [
            Expr::Load(SOURCE, R4),
            Expr::Random { below: chain.endpoints.len() as u32, into: R0 },
            Expr::FindIn { map, key: R0, into: R1 },
        ];
        b.add_rule(name, comment, pick.into_iter().chain(remember()).chain(translate()));
    }

    /// Clients remembered by the table there is, as far as their endpoints are still wanted.
    fn remembered(&self, socket: &mut Socket, new: &Objects) -> Vec<(String, Vec<Element>)> {
        let mut all = Vec::new();
        for chain in new.chains.values() {
            let Some((map, _)) = &chain.affinity else { continue };
            let Ok(mut elements) = nft::elements(socket, &self.table, map) else { continue };
            elements.retain(|e| is_wanted(e, &chain.endpoints));
            all.push((map.clone(), elements));
        }
        all
    }

    /// Clients of endpoints that are gone choose again.
    fn forget_gone(&self, socket: &mut Socket, old: &Objects, new: &Objects) -> Result<()> {
        for (name, chain) in &new.chains {
            let (Some((map, _)), Some(before)) = (&chain.affinity, old.chains.get(name)) else { continue };
            if before.affinity != chain.affinity || before.endpoints.is_subset(&chain.endpoints) {
                continue;
            }
            let stale = nft::elements(socket, &self.table, map)?.into_iter().filter(|e| !is_wanted(e, &chain.endpoints));
            // One by one: an element may time out meanwhile, and that must not keep the others.
            for element in stale {
                let mut b = Batch::new(&self.table);
                b.delete_elements(map, [Element::key(element.key)]);
                match b.commit(socket) {
                    Err(e) if !e.is_missing() => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn is_wanted(element: &Element, endpoints: &BTreeSet<SocketAddrV4>) -> bool {
    let Some(Data::Fields(value)) = &element.data else { return false };
    endpoints.iter().any(|at| endpoint(at) == *value)
}

fn endpoint(at: &SocketAddrV4) -> Fields {
    Fields::new().address(*at.ip()).port(at.port())
}

fn address_key() -> [Expr; 3] {
    [Expr::Load(DESTINATION, R0), Expr::Meta(MetaKey::L4Protocol, R1), Expr::Load(DESTINATION_PORT, R2)]
}

fn port_key() -> [Expr; 2] {
    [Expr::Meta(MetaKey::L4Protocol, R0), Expr::Load(DESTINATION_PORT, R1)]
}

fn to_this_node() -> [Expr; 2] {
    [Expr::Fib(Fib::DestinationType, R0), Expr::Equal(R0, RTN_LOCAL.to_ne_bytes().to_vec())]
}

type ElementRef<'a> = (&'a (&'static str, Fields), &'a Option<String>);

fn by_set<'a>(elements: impl Iterator<Item = ElementRef<'a>>) -> BTreeMap<&'static str, Vec<Element>> {
    let mut sets: BTreeMap<&'static str, Vec<Element>> = BTreeMap::new();
    for ((set, key), chain) in elements {
        let data = chain.as_ref().map(|c| Data::Verdict(Verdict::Goto(c.clone())));
        sets.entry(set).or_default().push(Element { key: key.clone(), data, expires_ms: None });
    }
    sets
}

/// UDP ports whose answerers changed.
fn moved(old: &Table, new: &Table, changed: &BTreeSet<&String>) -> Vec<Moved> {
    let mut all = Vec::new();
    for key in changed {
        let (before, after) = (old.get(*key), new.get(*key));
        let Some(any) = after.or(before).filter(|p| p.protocol == plan::services::Protocol::Udp) else { continue };
        let ports = || before.into_iter().chain(after);
        all.push(Moved {
            protocol: any.protocol.number(),
            addresses: ports().flat_map(|p| p.inside.iter().chain(&p.outside)).copied().collect(),
            node_port: ports().find_map(|p| p.node_port),
            endpoints: after.map(|p| p.endpoints.iter().chain(p.outside_endpoints.iter().flatten()).copied().collect()).unwrap_or_default(),
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use plan::services::Protocol;

    fn port(inside: &[&str], endpoints: &[&str]) -> Port {
        let set = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect();
        Port {
            protocol: Protocol::Tcp,
            inside: set(inside),
            outside: BTreeSet::new(),
            node_port: None,
            endpoints: set(endpoints),
            outside_endpoints: None,
            affinity_seconds: None,
        }
    }

    #[test]
    fn a_port_with_endpoints_leads_to_a_chain_and_one_without_is_refused() {
        let mut p = port(&["10.43.0.7:80"], &["10.42.0.5:8080"]);
        p.node_port = Some(30080);
        let key = "d/web:80/tcp".to_string();
        let with = Objects::of([(&key, &p)]);
        assert_eq!(with.chains.len(), 1);
        assert_eq!(with.elements.keys().map(|(set, _)| *set).collect::<Vec<_>>(), [NODE_PORTS, ADDRESSES]);
        p.endpoints.clear();
        let without = Objects::of([(&key, &p)]);
        assert!(without.chains.is_empty());
        assert_eq!(without.elements.keys().map(|(set, _)| *set).collect::<Vec<_>>(), [REFUSED_ADDRESSES, REFUSED_NODE_PORTS]);
    }

    #[test]
    fn local_policy_sends_insiders_to_all_and_outsiders_to_local_endpoints_only() {
        let mut p = port(&["10.43.0.7:80"], &["10.42.0.5:8080"]);
        p.node_port = Some(30080);
        p.outside_endpoints = Some(BTreeSet::new());
        let key = "d/web:80/tcp".to_string();
        let objects = Objects::of([(&key, &p)]);
        let external = objects.chains.iter().find(|(name, _)| name.ends_with("-ext")).unwrap();
        assert!(external.1.endpoints.is_empty() && external.1.insiders_to.is_some());
    }

    #[test]
    fn moved_names_every_place_a_udp_client_may_hold_on_to() {
        let mut before = port(&["10.43.0.7:53"], &["10.42.0.5:53", "10.42.0.6:53"]);
        before.protocol = Protocol::Udp;
        let mut after = before.clone();
        after.endpoints.pop_first();
        let key = "d/dns:53/udp".to_string();
        let (old, new) = (Table::from([(key.clone(), before)]), Table::from([(key.clone(), after)]));
        let all = moved(&old, &new, &BTreeSet::from([&key]));
        assert_eq!(all[0].endpoints, ["10.42.0.6:53".parse().unwrap()].into());
        assert_eq!(all[0].addresses.len(), 1);
    }
}
