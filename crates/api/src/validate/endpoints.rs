//! Endpoints and EndpointSlices.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{At, Out, meta};
use crate::limits::{SLICE_ENDPOINTS_MAX, SLICE_PORTS_MAX};
use crate::{Cause, names};

pub(super) const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const ADDRESSES_MAX: usize = 100;

pub fn endpoints(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    for subset in At::root(new).get("subsets").items() {
        let [ready, not_ready, ports] = ["addresses", "notReadyAddresses", "ports"].map(|f| subset.get(f));
        if !ready.given() && !not_ready.given() {
            out.required(&subset, "must specify `addresses` or `notReadyAddresses`");
        }
        for address in ready.items().iter().chain(&not_ready.items()) {
            out.address(&address.get("ip"));
            out.matches(&address.get("hostname"), names::dns1123_label);
            out.matches(&address.get("nodeName"), names::dns1123_subdomain);
        }
        let many = ports.items().len() > 1;
        for port in ports.items() {
            if many || port.get("name").given() {
                out.named(&port.get("name"), names::dns1123_label);
            }
            out.each(&port.get("port"), names::port_number(port.get("port").int().unwrap_or(0)));
            out.some_of(&port.get("protocol"), &PROTOCOLS);
            out.matches(&port.get("appProtocol"), names::qualified);
        }
    }
    out.0
}

pub fn endpoint_slice(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    let root = At::root(new);
    let family = root.get("addressType");
    out.some_of(&family, &["FQDN", "IPv4", "IPv6"]);
    if let Some(old) = old {
        out.immutable(&family, old);
    }
    let (all, ports) = (root.get("endpoints"), root.get("ports"));
    if all.items().len() > SLICE_ENDPOINTS_MAX {
        out.too_many(&all, all.items().len(), SLICE_ENDPOINTS_MAX);
    }
    for endpoint in all.items() {
        slice_addresses(&endpoint.get("addresses"), family.text(), &mut out);
        out.matches(&endpoint.get("hostname"), names::dns1123_label);
        out.matches(&endpoint.get("nodeName"), names::dns1123_subdomain);
    }
    if ports.items().len() > SLICE_PORTS_MAX {
        out.too_many(&ports, ports.items().len(), SLICE_PORTS_MAX);
    }
    let mut seen = BTreeSet::new();
    for port in ports.items() {
        let name = port.get("name");
        out.matches(&name, names::dns1123_label);
        if !seen.insert(name.text()) {
            out.duplicate(&name);
        }
        out.some_of(&port.get("protocol"), &PROTOCOLS);
        if port.get("port").is_set() {
            out.within(&port.get("port"), 1, 65535);
        }
        out.matches(&port.get("appProtocol"), names::qualified);
    }
    out.0
}

fn slice_addresses(at: &At, family: &str, out: &mut Out) {
    match at.items().len() {
        0 => out.required(at, "must contain at least 1 address"),
        n if n > ADDRESSES_MAX => out.too_many(at, n, ADDRESSES_MAX),
        _ => {}
    }
    for address in at.items() {
        match family {
            "IPv4" if address.text().parse::<std::net::Ipv4Addr>().is_err() => out.invalid(&address, "must be a valid IPv4 address"),
            "IPv6" if address.text().parse::<std::net::Ipv6Addr>().is_err() => out.invalid(&address, "must be a valid IPv6 address"),
            "IPv4" | "IPv6" => out.address(&address),
            _ => out.each(&address, names::dns1123_subdomain(address.text())),
        }
    }
}
