//! Answers about the cluster, from a zone snapshot alone.
//!
//! Kubernetes DNS specification 1.1.0. Pods search with `ndots:5`, so most questions here are for names that do not
//! exist: those are answered at once, `NXDOMAIN` for names that are not there and an empty answer for names that are
//! there without such a record (`AAAA`), both with the SOA record that lets resolvers remember it (RFC 2308).

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use plan::dns::{Records, Zone};

use crate::cidr::Cidr;
use crate::limits::DNS_TTL_SECONDS as TTL;

/// The version of the specification, as the specification wants it told.
const DNS_VERSION: &str = "1.1.0";

/// A zone with what is derived from it.
pub struct Index {
    zone: Arc<Zone>,
    /// The domain as a suffix: `.cluster.local`.
    suffix: String,
    /// Names that have no records but have names below them.
    between: HashSet<String>,
    /// Addresses whose names are ours to know, so that no question about them leaves.
    ranges: Vec<Cidr>,
}

/// What a question found here.
pub enum Found {
    /// Put into the response.
    Answered,
    /// It continues with another name, which is not ours: the records so far are in the response.
    Elsewhere(Name),
    /// Not ours at all.
    NotOurs,
}

impl Index {
    pub fn new(zone: Arc<Zone>, ranges: Vec<Cidr>) -> Self {
        let mut between = HashSet::from(["svc".to_string(), "pod".to_string()]);
        for name in zone.names.keys() {
            let mut rest = name.as_str();
            while let Some((_, parent)) = rest.split_once('.') {
                if !zone.names.contains_key(parent) && !between.contains(parent) {
                    between.insert(parent.to_string());
                }
                rest = parent;
            }
        }
        Self { suffix: format!(".{}", zone.domain), between, ranges, zone }
    }

    /// Nothing has been fed yet: nothing can be said about any name.
    pub fn is_empty(&self) -> bool {
        self.zone.domain.is_empty()
    }

    /// Fills `response` with what is known of the name.
    pub fn answer(&self, name: &Name, kind: RecordType, response: &mut Message) -> Found {
        let text = name.to_ascii().to_ascii_lowercase();
        let text = text.trim_end_matches('.');
        if text == self.zone.domain {
            self.answer_apex(name, kind, response);
            return Found::Answered;
        }
        if let Some(relative) = text.strip_suffix(&self.suffix) {
            return self.answer_name(name, relative, kind, response);
        }
        if text == "localhost" || text.ends_with(".localhost") {
            // RFC 6761 §6.3: never asked of anybody else.
            if kind == RecordType::A {
                push(response, name, RData::A(A(Ipv4Addr::LOCALHOST)));
            }
            return Found::Answered;
        }
        match text.strip_suffix(".in-addr.arpa").and_then(reversed) {
            Some(address) => self.answer_pointer(name, address, kind, response),
            None => Found::NotOurs,
        }
    }

    fn answer_apex(&self, name: &Name, kind: RecordType, response: &mut Message) {
        match kind {
            RecordType::SOA => push(response, name, self.soa()),
            RecordType::NS => push(response, name, RData::NS(hickory_proto::rr::rdata::NS(self.absolute("ns.dns")))),
            _ => self.no_data(response),
        }
    }

    fn answer_name(&self, name: &Name, relative: &str, kind: RecordType, response: &mut Message) -> Found {
        if let Some(records) = self.zone.names.get(relative) {
            if let Some(alias) = &records.alias {
                return self.answer_alias(name, alias, kind, response);
            }
            self.answer_records(name, records, kind, response);
        } else if relative == "dns-version" {
            if matches!(kind, RecordType::TXT | RecordType::ANY) {
                push(response, name, RData::TXT(TXT::new(vec![DNS_VERSION.to_string()])));
            }
        } else if let Some(address) = relative.strip_suffix(".pod").and_then(pod_address) {
            if matches!(kind, RecordType::A | RecordType::ANY) {
                push(response, name, RData::A(A(address)));
            }
        } else if !self.between.contains(relative) && !is_pod_parent(relative) {
            response.metadata.response_code = ResponseCode::NXDomain;
        }
        if response.answers.is_empty() {
            self.no_data(response);
        }
        Found::Answered
    }

    fn answer_records(&self, name: &Name, records: &Records, kind: RecordType, response: &mut Message) {
        if matches!(kind, RecordType::A | RecordType::ANY) {
            for address in &records.addresses {
                push(response, name, RData::A(A(*address)));
            }
        }
        if matches!(kind, RecordType::SRV | RecordType::ANY) {
            let weight = (100 / records.services.len().max(1)).max(1) as u16;
            let mut targets = HashSet::new();
            for srv in &records.services {
                let target = self.absolute(&srv.target);
                push(response, name, RData::SRV(SRV::new(0, weight, srv.port, target.clone())));
                let addresses = self.zone.names.get(&srv.target).filter(|_| targets.insert(&srv.target));
                for address in addresses.iter().flat_map(|r| &r.addresses) {
                    response.additionals.push(Record::from_rdata(target.clone(), TTL, RData::A(A(*address))));
                }
            }
        }
    }

    /// An ExternalName: what it stands for is followed here, and by the caller where it leaves the cluster. Resolvers of
    /// the simplest kind (musl) do not follow by themselves.
    fn answer_alias(&self, name: &Name, alias: &str, kind: RecordType, response: &mut Message) -> Found {
        let Ok(target) = Name::from_ascii(format!("{alias}.")) else {
            response.metadata.response_code = ResponseCode::ServFail;
            return Found::Answered;
        };
        push(response, name, RData::CNAME(CNAME(target.clone())));
        if kind == RecordType::CNAME {
            return Found::Answered;
        }
        Found::Elsewhere(target)
    }

    fn answer_pointer(&self, name: &Name, address: Ipv4Addr, kind: RecordType, response: &mut Message) -> Found {
        if let Some(names) = self.zone.pointers.get(&address) {
            if matches!(kind, RecordType::PTR | RecordType::ANY) {
                for target in names {
                    push(response, name, RData::PTR(PTR(self.absolute(target))));
                }
            } else {
                self.no_data(response);
            }
            return Found::Answered;
        }
        if self.ranges.iter().any(|r| r.contains(address)) {
            response.metadata.response_code = ResponseCode::NXDomain;
            self.no_data(response);
            return Found::Answered;
        }
        Found::NotOurs
    }

    fn no_data(&self, response: &mut Message) {
        let origin = Name::from_ascii(format!("{}.", self.zone.domain)).unwrap_or_default();
        response.authorities.push(Record::from_rdata(origin, TTL, self.soa()));
    }

    fn soa(&self) -> RData {
        RData::SOA(SOA::new(self.absolute("ns.dns"), self.absolute("hostmaster"), self.zone.revision as u32, 7200, 1800, 86_400, TTL))
    }

    fn absolute(&self, relative: &str) -> Name {
        Name::from_ascii(format!("{relative}{}.", self.suffix)).unwrap_or_default()
    }
}

fn push(response: &mut Message, name: &Name, data: RData) {
    response.answers.push(Record::from_rdata(name.clone(), TTL, data));
}

/// `5.0.42.10` of `5.0.42.10.in-addr.arpa`.
fn reversed(text: &str) -> Option<Ipv4Addr> {
    let address: Ipv4Addr = text.parse().ok()?;
    let [a, b, c, d] = address.octets();
    Some(Ipv4Addr::new(d, c, b, a))
}

/// `10-42-0-5.default`: an address with dashes and a namespace.
fn pod_address(text: &str) -> Option<Ipv4Addr> {
    let (address, namespace) = text.split_once('.')?;
    if namespace.is_empty() || namespace.contains('.') {
        return None;
    }
    address.replace('-', ".").parse().ok()
}

/// A namespace under `pod`: there are names below it.
fn is_pod_parent(relative: &str) -> bool {
    relative.strip_suffix(".pod").is_some_and(|namespace| !namespace.is_empty() && !namespace.contains('.'))
}
