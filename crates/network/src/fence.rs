//! The fence: the nftables table that stands whatever Services there are.
//!
//! It keeps pod and service addresses on this machine, gives pods the way out, leads DNS to this node's server, and lets
//! a pod reach itself through its Service. Written whole at every start of the agent, in one transaction. Services
//! themselves are in a table of their own ([`crate::services`]), so that neither rewrites the other.

use crate::instance::Instance;
use crate::netlink::{Result, Socket};
use crate::nft::{self, Batch, DESTINATION, DESTINATION_PORT, Expr, Fib, Hook, MetaKey, R0, R1, SOURCE, Set, Type, Values, Verdict};
use crate::pods::Config;
use crate::rtnl::LOOPBACK;

const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;
const DNS_PORT: u16 = 53;
/// Before `dstnat` (-100), where the Services are.
const BEFORE_SERVICES: i32 = -101;
const RAW: i32 = -300;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;
/// How long a pod is remembered as somebody who may meet itself: first packets only, so a minute is plenty.
const SELF_SECONDS: u32 = 60;
const SELF_MAX: u32 = 65_536;

pub fn write(socket: &mut Socket, config: &Config) -> Result<()> {
    let instance = Instance::new(&config.instance);
    let mut b = Batch::new(&instance.fence_table());
    b.add_table().delete_table().add_table();
    let from_pod = || [Expr::Meta(MetaKey::GroupIn, R0), Expr::Equal(R0, instance.tag.to_ne_bytes().to_vec())];

    b.add_base_chain("raw", "filter", Hook::Prerouting, RAW);
    let loopback_from_outside = [
        Expr::Meta(MetaKey::InterfaceIn, R0),
        Expr::Differs(R0, LOOPBACK.to_ne_bytes().to_vec()),
        Expr::Load(DESTINATION, R0),
        Expr::And(R0, vec![255, 0, 0, 0]),
        Expr::Equal(R0, vec![127, 0, 0, 0]),
        Expr::Do(Verdict::Drop),
    ];
    b.add_rule("raw", "loopback addresses stay on lo", loopback_from_outside);
    let spoofed = [Expr::Fib(Fib::SourceInterface, R0), Expr::Equal(R0, vec![0; 4]), Expr::Do(Verdict::Drop)];
    b.add_rule("raw", "a pod speaks only with its own address", from_pod().into_iter().chain(spoofed));

    // Concatenation of an address with itself, looked up as source and destination: nftables cannot compare two fields.
    let pair = [Type::Address, Type::Address];
    b.add_set(&Set { name: "self", key: &pair, values: Values::None, dynamic: Some((SELF_SECONDS, SELF_MAX)) });
    b.add_base_chain("prerouting", "nat", Hook::Prerouting, BEFORE_SERVICES);
    let remember = [Expr::Load(SOURCE, R0), Expr::Load(SOURCE, R1), Expr::Note { set: "self".into(), key: R0 }];
    b.add_rule("prerouting", "pods that open connections", from_pod().into_iter().chain(remember));
    b.add_base_chain("output", "nat", Hook::Output, BEFORE_SERVICES);
    for chain in ["prerouting", "output"] {
        for protocol in [UDP, TCP] {
            let rule = to_service(config, protocol, DNS_PORT).into_iter().chain([
                // To the address that routes to pods name as source, so that answers leave as they are expected.
                Expr::Set(R0, config.node_address.octets().to_vec()),
                Expr::Set(R1, config.dns_port.to_be_bytes().to_vec()),
                Expr::Dnat { address: R0, port: Some(R1) },
            ]);
            b.add_rule(chain, "DNS to this node's server", rule);
        }
    }

    b.add_base_chain("filter-input", "filter", Hook::Input, FILTER);
    for protocol in [UDP, TCP] {
        let rule = [
            Expr::Meta(MetaKey::InterfaceIn, R0),
            Expr::Differs(R0, LOOPBACK.to_ne_bytes().to_vec()),
            Expr::Meta(MetaKey::L4Protocol, R0),
            Expr::Equal(R0, vec![protocol]),
            Expr::Load(DESTINATION_PORT, R0),
            Expr::Equal(R0, config.dns_port.to_be_bytes().to_vec()),
            Expr::ConntrackStatus(R0),
            Expr::And(R0, nft::STATUS_DNAT.to_ne_bytes().to_vec()),
            Expr::Equal(R0, vec![0; 4]),
            Expr::Do(Verdict::Drop),
        ];
        b.add_rule("filter-input", "the DNS server answers only through the Service address", rule);
    }
    for (chain, hook) in [("filter-forward", Hook::Forward), ("filter-output", Hook::Output)] {
        b.add_base_chain(chain, "filter", hook, FILTER);
        let unserved = || nft::in_range(DESTINATION, config.service_cidr).into_iter();
        let tcp = [Expr::Meta(MetaKey::L4Protocol, R0), Expr::Equal(R0, vec![TCP]), Expr::RejectTcp];
        b.add_rule(chain, "no endpoint behind this service address", unserved().chain(tcp));
        b.add_rule(chain, "no endpoint behind this service address", unserved().chain([Expr::Reject]));
    }
    postrouting(&mut b, config, &instance);
    b.commit(socket)
}

fn to_service(config: &Config, protocol: u8, port: u16) -> [Expr; 6] {
    [
        Expr::Load(DESTINATION, R0),
        Expr::Equal(R0, config.dns_address.octets().to_vec()),
        Expr::Meta(MetaKey::L4Protocol, R0),
        Expr::Equal(R0, vec![protocol]),
        Expr::Load(DESTINATION_PORT, R0),
        Expr::Equal(R0, port.to_be_bytes().to_vec()),
    ]
}

fn postrouting(b: &mut Batch, config: &Config, instance: &Instance) {
    b.add_base_chain("postrouting", "nat", Hook::Postrouting, SRCNAT);
    let as_node = || [Expr::Set(R0, config.node_address.octets().to_vec()), Expr::Snat { address: R0 }];
    let translated = || [Expr::ConntrackStatus(R0), Expr::And(R0, nft::STATUS_DNAT.to_ne_bytes().to_vec()), Expr::Differs(R0, vec![0; 4])];
    let leaves_by_link = || [Expr::Meta(MetaKey::InterfaceOut, R0), Expr::Differs(R0, LOOPBACK.to_ne_bytes().to_vec())];

    let itself = [Expr::Load(SOURCE, R0), Expr::Load(DESTINATION, R1), Expr::Find { set: "self".into(), key: R0 }];
    b.add_rule("postrouting", "a pod that reaches itself", itself.into_iter().chain(as_node()));

    let localhost = [Expr::Load(SOURCE, R0), Expr::And(R0, vec![255, 0, 0, 0]), Expr::Equal(R0, vec![127, 0, 0, 0])];
    b.add_rule("postrouting", "localhost to a pod", leaves_by_link().into_iter().chain(localhost).chain(as_node()));

    let to_pod = [Expr::Meta(MetaKey::GroupOut, R0), Expr::Equal(R0, instance.tag.to_ne_bytes().to_vec())];
    b.add_rule("postrouting", "pods of this node see the true client", to_pod.into_iter().chain([Expr::Do(Verdict::Return)]));

    let way_out = leaves_by_link()
        .into_iter()
        .chain(nft::in_range(SOURCE, config.pod_cidr))
        .chain(nft::not_in_range(DESTINATION, config.cluster_cidr))
        .chain([Expr::Masquerade]);
    b.add_rule("postrouting", "pods leave with the node's address", way_out);

    let passing =
        leaves_by_link().into_iter().chain(translated()).chain(nft::not_in_range(SOURCE, config.cluster_cidr)).chain([Expr::Masquerade]);
    b.add_rule("postrouting", "answers from elsewhere come back through here", passing);
}

/// Writes the fence if it is not there.
pub fn ensure(socket: &mut Socket, config: &Config) -> Result<()> {
    match nft::table_handle(socket, &Instance::new(&config.instance).fence_table())? {
        Some(_) => Ok(()),
        None => write(socket, config),
    }
}
