//! Service addresses and node ports: each given once.
//!
//! What is taken is read from the Services themselves, so nothing is ever leaked or released: writers of Services take
//! turns (`Allocators::lock`), and each sees what the one before it wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex as StdMutex};

use api::{Cause, Status, Value};
use base::Ids;
use serde_json::json;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{Admission, items, list};
use crate::state::State;

/// What one Service holds.
#[derive(Default, Clone)]
struct Held {
    revision: u64,
    addresses: Vec<Ipv4Addr>,
    ports: Vec<u16>,
}

pub struct Allocators {
    turn: Arc<Mutex<()>>,
    held: StdMutex<BTreeMap<String, Held>>,
    base: Ipv4Addr,
    prefix: u8,
    node_ports: RangeInclusive<u16>,
    ids: Ids,
}

/// What is taken by others than the Service at hand.
struct Taken {
    addresses: BTreeSet<Ipv4Addr>,
    ports: BTreeSet<u16>,
}

fn v4(value: &Value) -> Option<Ipv4Addr> {
    value.as_str()?.parse().ok()
}

impl Held {
    fn of(service: &Value, revision: u64) -> Held {
        let spec = &service["spec"];
        let mut addresses: Vec<Ipv4Addr> = items(spec, "clusterIPs").iter().filter_map(v4).collect();
        addresses.extend(v4(&spec["clusterIP"]));
        let mut ports: Vec<u16> = items(spec, "ports").iter().filter_map(|p| port(&p["nodePort"])).collect();
        ports.extend(port(&spec["healthCheckNodePort"]));
        Held { revision, addresses, ports }
    }
}

fn port(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0)
}

impl Allocators {
    pub fn new(cidr: (IpAddr, u8), node_ports: RangeInclusive<u16>, ids: Ids) -> Allocators {
        let IpAddr::V4(address) = cidr.0 else {
            // Checked where flags are read; an IPv6 range never gets here.
            return Allocators::new((IpAddr::from([10, 43, 0, 0]), 16), node_ports, ids);
        };
        let prefix = cidr.1.clamp(8, 29);
        let base = Ipv4Addr::from(u32::from(address) & (u32::MAX << (32 - prefix)));
        Allocators { turn: Arc::default(), held: StdMutex::default(), base, prefix, node_ports, ids }
    }

    /// Writers of Services hold this from admission until their write is in the cache.
    pub async fn lock(&self) -> OwnedMutexGuard<()> {
        self.turn.clone().lock_owned().await
    }

    /// The `n`-th address of the range; 1 is the `kubernetes` Service, 10 is DNS.
    pub fn nth(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + n)
    }

    fn size(&self) -> u32 {
        1 << (32 - self.prefix)
    }

    pub fn range(&self) -> String {
        format!("{}/{}", self.base, self.prefix)
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        let offset = u32::from(address).wrapping_sub(u32::from(self.base));
        offset > 0 && offset < self.size() - 1
    }

    /// Reads what changed since the last time and adds it up.
    fn taken(&self, state: &State, own_key: &str) -> Taken {
        let mut held = self.held.lock().unwrap_or_else(|e| e.into_inner());
        let mut next = BTreeMap::new();
        for object in state.list("core/services/") {
            let known = held.remove(&*object.key).filter(|h| h.revision == object.revision);
            let entry = known.unwrap_or_else(|| Held::of(&serde_json::from_slice(&object.json()).unwrap_or_default(), object.revision));
            next.insert(object.key.to_string(), entry);
        }
        *held = next;
        let others = || held.iter().filter(|(key, _)| *key != own_key).map(|(_, h)| h);
        Taken { addresses: others().flat_map(|h| h.addresses.clone()).collect(), ports: others().flat_map(|h| h.ports.clone()).collect() }
    }

    /// A free address, from the upper part of the range first: the lower is for those who choose their own.
    fn free_address(&self, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        let last = self.size() - 1;
        let split = (last / 16).clamp(16.min(last / 2), 256);
        let scan = |from: u32, to: u32| {
            let span = to.saturating_sub(from).max(1);
            let start = (self.ids.next_u64() % u64::from(span)) as u32;
            // The first and tenth are the cluster's own, also before their Services stand.
            let offsets = (0..span).map(move |i| from + (start + i) % span).filter(|n| !matches!(n, 1 | 10));
            offsets.map(|n| self.nth(n)).find(|a| self.contains(*a) && !taken.contains(a))
        };
        scan(split, last).or_else(|| scan(2, split))
    }

    fn free_port(&self, taken: &BTreeSet<u16>) -> Option<u16> {
        let (low, high) = (*self.node_ports.start(), *self.node_ports.end());
        let span = u64::from(high - low) + 1;
        let start = self.ids.next_u64() % span;
        (0..span).map(|i| low + ((start + i) % span) as u16).find(|p| !taken.contains(p))
    }
}

fn kind_of(service: &Value) -> &str {
    service["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

fn has_node_ports(service: &Value) -> bool {
    match kind_of(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

pub fn admit(cx: &Admission, service: &mut Value) -> Result<(), Status> {
    let name = service["metadata"]["name"].as_str().unwrap_or_default().to_string();
    if let Some(old) = cx.old {
        carry_over(service, old);
    }
    let mut taken = cx.server.allocators.taken(&cx.server.state, &cx.row.key(cx.namespace, &name));
    let mut causes = Vec::new();
    addresses(cx, service, &mut taken, &mut causes)?;
    ports(cx, service, &mut taken, &mut causes)?;
    if causes.is_empty() { Ok(()) } else { Err(Status::invalid("", "Service", &name, causes)) }
}

/// What an update leaves out stays as it was given; what the new type does not have goes.
fn carry_over(service: &mut Value, old: &Value) {
    let external = |s: &Value| kind_of(s) == "ExternalName";
    let empty = |v: &Value| v.as_str().unwrap_or_default().is_empty();
    if !external(service) && !external(old) {
        if empty(&service["spec"]["clusterIP"]) && items(&service["spec"], "clusterIPs").is_empty() {
            for field in ["clusterIP", "clusterIPs"] {
                service["spec"][field] = old["spec"][field].clone();
            }
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if service["spec"][field].is_null() && !old["spec"][field].is_null() {
                service["spec"][field] = old["spec"][field].clone();
            }
        }
    }
    if external(service)
        && !external(old)
        && service["spec"]["clusterIP"] == old["spec"]["clusterIP"]
        && let Some(spec) = service["spec"].as_object_mut()
    {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
    }
    drop_of_other_types(service, old);
    let (needs, had) = (has_node_ports(service), has_node_ports(old));
    let old_ports = items(&old["spec"], "ports").to_vec();
    let same = |a: &Value, b: &Value| a["port"] == b["port"] && a["protocol"] == b["protocol"];
    for port_spec in list(&mut service["spec"], "ports").iter_mut() {
        let Some(before) = old_ports.iter().find(|o| same(o, port_spec)).filter(|_| had) else { continue };
        if needs && port(&port_spec["nodePort"]).is_none() {
            port_spec["nodePort"] = before["nodePort"].clone();
        } else if !needs
            && port_spec["nodePort"] == before["nodePort"]
            && let Some(map) = port_spec.as_object_mut()
        {
            map.remove("nodePort");
        }
    }
    if items(&service["spec"], "ports").is_empty()
        && let Some(spec) = service["spec"].as_object_mut()
    {
        spec.remove("ports");
    }
}

/// Fields that only the old type has go with it, unless the update gave them a value of its own.
fn drop_of_other_types(service: &mut Value, old: &Value) {
    let balanced = |s: &Value| kind_of(s) == "LoadBalancer";
    let external = |s: &Value| matches!(kind_of(s), "NodePort" | "LoadBalancer") || !items(&s["spec"], "externalIPs").is_empty();
    let checked = |s: &Value| balanced(s) && s["spec"]["externalTrafficPolicy"] == "Local";
    let table: [(&str, bool); 4] = [
        ("healthCheckNodePort", checked(old) && !checked(service)),
        ("externalTrafficPolicy", external(old) && !external(service)),
        ("allocateLoadBalancerNodePorts", balanced(old) && !balanced(service)),
        ("loadBalancerClass", balanced(old) && !balanced(service)),
    ];
    for (field, gone) in table {
        if gone
            && service["spec"][field] == old["spec"][field]
            && let Some(spec) = service["spec"].as_object_mut()
        {
            spec.remove(field);
        }
    }
}

fn addresses(cx: &Admission, service: &mut Value, taken: &mut Taken, causes: &mut Vec<Cause>) -> Result<(), Status> {
    if kind_of(service) == "ExternalName" {
        return Ok(());
    }
    let spec = &mut service["spec"];
    let first = items(spec, "clusterIPs").first().and_then(|v| v.as_str()).map(String::from);
    let given = spec["clusterIP"].as_str().filter(|s| !s.is_empty()).map(String::from).or(first);
    let unchanged = cx.old.is_some_and(|old| old["spec"]["clusterIP"].as_str() == given.as_deref());
    if items(spec, "ipFamilies").iter().any(|f| f == "IPv6") || spec["ipFamilyPolicy"] == "RequireDualStack" {
        let value = spec["ipFamilies"].clone();
        causes.push(Cause::invalid("spec.ipFamilies", &value, "this cluster is not configured for IPv6: only IPv4 is served"));
        return Ok(());
    }
    let allocators = &cx.server.allocators;
    let address = match given.as_deref() {
        Some("None") => "None".to_string(),
        Some(text) if unchanged => text.to_string(),
        Some(text) => {
            let mut refuse = |why: String| {
                causes.push(Cause::invalid("spec.clusterIPs", &json!([text]), &format!("failed to allocate IP {text}: {why}")))
            };
            match text.parse::<Ipv4Addr>() {
                // What is no address at all is validation's to tell.
                Err(_) => return Ok(()),
                Ok(a) if !allocators.contains(a) => {
                    refuse(format!("the provided IP ({a}) is not in the valid range. The range of valid IPs is {}", allocators.range()));
                }
                Ok(a) if taken.addresses.contains(&a) => refuse("provided IP is already allocated".into()),
                Ok(_) => {}
            }
            text.to_string()
        }
        None => match allocators.free_address(&taken.addresses) {
            Some(a) => a.to_string(),
            None => return Err(Status::internal(format!("failed to allocate a serviceIP: range {} is full", allocators.range()))),
        },
    };
    spec["clusterIP"] = address.as_str().into();
    spec["clusterIPs"] = json!([address]);
    if spec["ipFamilies"].is_null() {
        spec["ipFamilies"] = json!(["IPv4"]);
    }
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = "SingleStack".into();
    }
    Ok(())
}

fn ports(cx: &Admission, service: &mut Value, taken: &mut Taken, causes: &mut Vec<Cause>) -> Result<(), Status> {
    if !has_node_ports(service) {
        return Ok(());
    }
    let allocators = &cx.server.allocators;
    let full = || Status::internal("failed to allocate a nodePort: range is full");
    let own: Vec<u16> = cx.old.map(|old| Held::of(old, 0).ports).unwrap_or_default();
    let check = |p: u16, field: String, taken: &Taken, causes: &mut Vec<Cause>| {
        let range = &allocators.node_ports;
        if own.contains(&p) {
            // Already this Service's.
        } else if !range.contains(&p) {
            let why = format!("provided port is not in the valid range. The range of valid ports is {}-{}", range.start(), range.end());
            causes.push(Cause::invalid(field, &p.into(), &why));
        } else if taken.ports.contains(&p) {
            causes.push(Cause::invalid(field, &p.into(), "provided port is already allocated"));
        }
    };
    let mut used: Vec<u16> = items(&service["spec"], "ports").iter().filter_map(|p| port(&p["nodePort"])).collect();
    let count = items(&service["spec"], "ports").len();
    for i in 0..count {
        let entry = &mut list(&mut service["spec"], "ports")[i];
        match port(&entry["nodePort"]) {
            Some(p) => check(p, format!("spec.ports[{i}].nodePort"), taken, causes),
            None => {
                let all: BTreeSet<u16> = taken.ports.iter().chain(&used).copied().collect();
                let p = allocators.free_port(&all).ok_or_else(full)?;
                entry["nodePort"] = p.into();
                used.push(p);
            }
        }
    }
    if kind_of(service) == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local" {
        match port(&service["spec"]["healthCheckNodePort"]) {
            Some(p) => check(p, "spec.healthCheckNodePort".into(), taken, causes),
            None => {
                let all: BTreeSet<u16> = taken.ports.iter().chain(&used).copied().collect();
                service["spec"]["healthCheckNodePort"] = allocators.free_port(&all).ok_or_else(full)?.into();
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_until_there_are_none() {
        let a = Allocators::new((IpAddr::from([10, 0, 0, 7]), 28), 30000..=30001, Ids::seeded(1));
        assert_eq!(a.range(), "10.0.0.0/28");
        let mut taken = BTreeSet::new();
        while let Some(next) = a.free_address(&taken) {
            assert!(a.contains(next) && taken.insert(next), "{next}");
        }
        assert_eq!(taken.len(), 12, "16 less network, broadcast, the first and the tenth: {taken:?}");
        assert!(
            !a.contains("10.0.0.0".parse().unwrap())
                && !a.contains("10.0.0.15".parse().unwrap())
                && !a.contains("10.0.1.1".parse().unwrap())
        );
        let mut ports = BTreeSet::new();
        while let Some(next) = a.free_port(&ports) {
            assert!(ports.insert(next));
        }
        assert_eq!(ports.len(), 2);
    }
}
