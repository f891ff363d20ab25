//! nftables: tables, chains, sets, maps and rules encoded as netlink messages and committed as one transaction.
//!
//! Knows the kernel's `linux/netfilter/nf_tables.h`. Does not know Services or pods: what is written is decided by
//! [`crate::fence`] and [`crate::services`]. A [`Batch`] belongs to one table; either all of it takes effect or nothing.

use std::net::Ipv4Addr;

use crate::limits;
use crate::netlink::{self, Error, Message, NETLINK_NETFILTER, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, Result, Socket};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const DEL_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const DEL_CHAIN: u16 = SUBSYSTEM | 5;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const DEL_RULE: u16 = SUBSYSTEM | 8;
const NEW_SET: u16 = SUBSYSTEM | 9;
const DEL_SET: u16 = SUBSYSTEM | 11;
const NEW_ELEMENT: u16 = SUBSYSTEM | 12;
const GET_ELEMENT: u16 = SUBSYSTEM | 13;
const DEL_ELEMENT: u16 = SUBSYSTEM | 14;

const SET_ANONYMOUS: u32 = 0x1;
const SET_CONSTANT: u32 = 0x2;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;

/// `NFPROTO_INET` and `NFPROTO_IPV4`.
pub const INET: u8 = 1;
pub const IPV4: u8 = 2;

/// The first 32-bit register; a concatenation lies in those that follow.
pub const R0: u32 = 8;
pub const R1: u32 = 9;
pub const R2: u32 = 10;
/// Beyond what a lookup of three fields uses.
pub const R4: u32 = 12;

/// Types as the `nft` tool numbers them: only so that its listings can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Integer,
    Address,
    Protocol,
    Port,
}

impl Type {
    fn number(self) -> u32 {
        match self {
            Type::Integer => 4,
            Type::Address => 7,
            Type::Protocol => 12,
            Type::Port => 13,
        }
    }
}

fn type_number(types: &[Type]) -> u32 {
    types.iter().fold(0, |number, t| (number << 6) | t.number())
}

/// Bytes of a concatenation: every field takes a whole register.
fn type_bytes(types: &[Type]) -> u32 {
    4 * types.len() as u32
}

/// A key or value made of fields, each padded to a register.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fields(Vec<u8>);

impl Fields {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn address(mut self, a: Ipv4Addr) -> Self {
        self.0.extend_from_slice(&a.octets());
        self
    }

    pub fn protocol(mut self, p: u8) -> Self {
        self.0.extend_from_slice(&[p, 0, 0, 0]);
        self
    }

    pub fn port(mut self, p: u16) -> Self {
        self.0.extend_from_slice(&p.to_be_bytes());
        self.0.extend_from_slice(&[0, 0]);
        self
    }

    pub fn integer(mut self, n: u32) -> Self {
        self.0.extend_from_slice(&n.to_ne_bytes());
        self
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// What an element of a map leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    Fields(Fields),
    Verdict(Verdict),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub key: Fields,
    pub data: Option<Data>,
    /// Milliseconds, in sets with a timeout.
    pub expires_ms: Option<u64>,
}

impl Element {
    pub fn key(key: Fields) -> Self {
        Self { key, data: None, expires_ms: None }
    }

    pub fn to(key: Fields, data: Data) -> Self {
        Self { key, data: Some(data), expires_ms: None }
    }
}

/// What a map's values are.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    None,
    Verdict,
    Fields(&'a [Type]),
}

#[derive(Debug, Clone, Copy)]
pub struct Set<'a> {
    pub name: &'a str,
    pub key: &'a [Type],
    pub values: Values<'a>,
    /// Rules add elements, which time out after so many seconds; at most `size` of them.
    pub dynamic: Option<(u32, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    InterfaceIn = 4,
    InterfaceOut = 5,
    L4Protocol = 16,
    GroupIn = 21,
    GroupOut = 22,
}

/// Where a header field lies: base, offset and length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field(u32, u32, u32);

pub const SOURCE: Field = Field(1, 12, 4);
pub const DESTINATION: Field = Field(1, 16, 4);
/// Of TCP, UDP and SCTP alike.
pub const DESTINATION_PORT: Field = Field(2, 2, 2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fib {
    /// `RTN_LOCAL` (2) for one of this machine's addresses.
    DestinationType,
    SourceType,
    /// The interface by which the source would be reached, if it is the one it came by; else 0.
    SourceInterface,
}

pub const RTN_LOCAL: u32 = 2;
/// The first packet of a connection (`NF_CT_STATE_BIT(IP_CT_NEW)`).
pub const STATE_NEW: u32 = 8;
/// Destination NAT was applied to the connection (`IPS_DST_NAT`).
pub const STATUS_DNAT: u32 = 0x20;

/// One expression of a rule: the kernel's virtual machine has nothing else.
#[derive(Debug, Clone)]
pub enum Expr {
    Load(Field, u32),
    Meta(MetaKey, u32),
    ConntrackStatus(u32),
    /// A bit of [`STATE_NEW`] and its like.
    ConntrackState(u32),
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`, in tables of family inet.
    Family(u32),
    Fib(Fib, u32),
    /// `register & mask`, in place.
    And(u32, Vec<u8>),
    Equal(u32, Vec<u8>),
    Differs(u32, Vec<u8>),
    Set(u32, Vec<u8>),
    /// Look up the registers from the first on; a verdict map ends the rule with its verdict.
    Find {
        set: String,
        key: u32,
    },
    FindVerdict {
        map: String,
        key: u32,
    },
    FindValue {
        map: String,
        key: u32,
        into: u32,
    },
    /// A map that lives and dies with the rule.
    FindIn {
        map: Anonymous,
        key: u32,
        into: u32,
    },
    /// A number below the given one.
    Random {
        below: u32,
        into: u32,
    },
    /// Put a key into a dynamic set, or renew it.
    Note {
        set: String,
        key: u32,
    },
    /// Put key and value into a dynamic map, or renew them.
    Remember {
        map: String,
        key: u32,
        value: u32,
    },
    /// Address and, if given, port from registers.
    Dnat {
        address: u32,
        port: Option<u32>,
    },
    Snat {
        address: u32,
    },
    Masquerade,
    /// TCP reset, or ICMP port unreachable.
    RejectTcp,
    Reject,
    Count,
    Do(Verdict),
}

/// Made by [`Batch::anonymous_map`].
#[derive(Debug, Clone, Copy)]
pub struct Anonymous(u32);

/// `packet's field in range`: the two expressions of a prefix match.
pub fn in_range(field: Field, range: Cidr) -> [Expr; 3] {
    [Expr::Load(field, R0), Expr::And(R0, range.mask().octets().to_vec()), Expr::Equal(R0, range.network().octets().to_vec())]
}

pub fn not_in_range(field: Field, range: Cidr) -> [Expr; 3] {
    let [load, and, _] = in_range(field, range);
    [load, and, Expr::Differs(R0, range.network().octets().to_vec())]
}

pub use crate::cidr::Cidr;

/// A transaction on one table.
pub struct Batch {
    family: u8,
    table: String,
    messages: Vec<(Message, String)>,
    sets: u32,
}

impl Batch {
    pub fn new(table: &str) -> Self {
        Self::of(IPV4, table)
    }

    pub fn of(family: u8, table: &str) -> Self {
        let mut begin = Message::new(BATCH_BEGIN, 0);
        begin.raw(&generic(0, 10));
        Self { family, table: table.to_string(), messages: vec![(begin, format!("nftables transaction on table {table}"))], sets: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.messages.len() == 1
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        Message::new(kind, flags).fixed(&generic(self.family, 0))
    }

    fn push(&mut self, message: Message, label: String) {
        self.messages.push((message, label));
    }

    pub fn add_table(&mut self) -> &mut Self {
        let mut m = self.message(NEW_TABLE, NLM_F_CREATE);
        m.string(1, &self.table);
        let label = format!("nftables table {}", self.table);
        self.push(m, label);
        self
    }

    /// Removes the table with all that is in it; it must exist, so say [`Batch::add_table`] before where that is unsure.
    pub fn delete_table(&mut self) -> &mut Self {
        let mut m = self.message(DEL_TABLE, 0);
        m.string(1, &self.table);
        let label = format!("removal of nftables table {}", self.table);
        self.push(m, label);
        self
    }

    pub fn add_chain(&mut self, name: &str) -> &mut Self {
        self.chain_message(NEW_CHAIN, NLM_F_CREATE, name, |_| {})
    }

    pub fn add_base_chain(&mut self, name: &str, kind: &str, hook: Hook, priority: i32) -> &mut Self {
        self.chain_message(NEW_CHAIN, NLM_F_CREATE, name, |m| {
            m.nest(4, |m| {
                m.be32(1, hook as u32).be32(2, priority as u32);
            });
            m.string(7, kind);
        })
    }

    pub fn delete_chain(&mut self, name: &str) -> &mut Self {
        self.chain_message(DEL_CHAIN, 0, name, |_| {})
    }

    fn chain_message(&mut self, kind: u16, flags: u16, name: &str, more: impl FnOnce(&mut Message)) -> &mut Self {
        let mut m = self.message(kind, flags);
        m.string(1, &self.table).string(3, name);
        more(&mut m);
        let label = format!("nftables chain {} {name}", self.table);
        self.push(m, label);
        self
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, name: &str) -> &mut Self {
        let mut m = self.message(DEL_RULE, 0);
        m.string(1, &self.table).string(2, name);
        let label = format!("nftables rules of chain {} {name}", self.table);
        self.push(m, label);
        self
    }

    pub fn add_rule(&mut self, chain: &str, comment: &str, exprs: impl IntoIterator<Item = Expr>) -> &mut Self {
        self.rule(NLM_F_CREATE | NLM_F_APPEND, chain, comment, exprs)
    }

    /// Puts a rule before all others of its chain.
    pub fn insert_rule(&mut self, chain: &str, comment: &str, exprs: impl IntoIterator<Item = Expr>) -> &mut Self {
        self.rule(NLM_F_CREATE, chain, comment, exprs)
    }

    fn rule(&mut self, flags: u16, chain: &str, comment: &str, exprs: impl IntoIterator<Item = Expr>) -> &mut Self {
        let mut m = self.message(NEW_RULE, flags);
        m.string(1, &self.table).string(2, chain);
        m.nest(4, |m| exprs.into_iter().for_each(|e| encode(m, &e)));
        if !comment.is_empty() {
            m.attr(7, &comment_bytes(comment));
        }
        let label = format!("nftables rule in {} {chain} ({comment})", self.table);
        self.push(m, label);
        self
    }

    pub fn delete_rule(&mut self, chain: &str, handle: u64) -> &mut Self {
        let mut m = self.message(DEL_RULE, 0);
        m.string(1, &self.table).string(2, chain).be64(3, handle);
        let label = format!("nftables rule {handle} in {} {chain}", self.table);
        self.push(m, label);
        self
    }

    pub fn add_set(&mut self, set: &Set) -> &mut Self {
        let mut flags = if matches!(set.values, Values::None) { 0 } else { SET_MAP };
        if set.dynamic.is_some() {
            flags |= SET_TIMEOUT | SET_EVAL;
        }
        self.set_message(set, flags);
        self
    }

    fn set_message(&mut self, set: &Set, flags: u32) -> u32 {
        self.sets += 1;
        let mut m = self.message(NEW_SET, NLM_F_CREATE);
        m.string(1, &self.table).string(2, set.name).be32(3, flags);
        m.be32(4, type_number(set.key)).be32(5, type_bytes(set.key));
        match set.values {
            Values::None => {}
            Values::Verdict => {
                m.be32(6, 0xffff_ff00).be32(7, 16);
            }
            Values::Fields(types) => {
                m.be32(6, type_number(types)).be32(7, type_bytes(types));
            }
        }
        if let Some((seconds, size)) = set.dynamic {
            m.nest(9, |m| {
                m.be32(1, size);
            });
            m.be64(11, u64::from(seconds) * 1000);
        }
        if set.key == [Type::Integer] {
            // For listings: the key is in host byte order.
            m.attr(13, &[0, 4, 1, 0, 0, 0]);
        }
        m.be32(10, self.sets);
        let label = format!("nftables set {} {}", self.table, set.name);
        self.push(m, label);
        self.sets
    }

    pub fn delete_set(&mut self, name: &str) -> &mut Self {
        let mut m = self.message(DEL_SET, 0);
        m.string(1, &self.table).string(2, name);
        let label = format!("nftables set {} {name}", self.table);
        self.push(m, label);
        self
    }

    pub fn add_elements(&mut self, set: &str, elements: impl IntoIterator<Item = Element>) -> &mut Self {
        self.elements(NEW_ELEMENT, NLM_F_CREATE, set, 0, elements)
    }

    pub fn delete_elements(&mut self, set: &str, elements: impl IntoIterator<Item = Element>) -> &mut Self {
        self.elements(DEL_ELEMENT, 0, set, 0, elements)
    }

    /// A map for one rule of the same batch.
    pub fn anonymous_map(&mut self, key: &[Type], values: &[Type], elements: impl IntoIterator<Item = Element>) -> Anonymous {
        let set = Set { name: "__map%d", key, values: Values::Fields(values), dynamic: None };
        let id = self.set_message(&set, SET_MAP | SET_ANONYMOUS | SET_CONSTANT);
        self.elements(NEW_ELEMENT, NLM_F_CREATE, set.name, id, elements);
        Anonymous(id)
    }

    fn elements(&mut self, kind: u16, flags: u16, set: &str, id: u32, all: impl IntoIterator<Item = Element>) -> &mut Self {
        let mut all = all.into_iter().peekable();
        while all.peek().is_some() {
            let mut m = self.message(kind, flags);
            m.string(1, &self.table).string(2, set);
            if id != 0 {
                m.be32(4, id);
            }
            m.nest(3, |m| {
                let start = m.size();
                while m.size() - start < limits::SET_ELEMENTS_BYTES {
                    let Some(element) = all.next() else { break };
                    encode_element(m, &element);
                }
            });
            let label = format!("nftables elements of {} {set}", self.table);
            self.push(m, label);
        }
        self
    }

    /// Applies everything at once. On refusal nothing has changed, and the error names what was refused.
    pub fn commit(mut self, socket: &mut Socket) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let label = self.messages[0].1.clone();
        let mut end = Message::new(BATCH_END, 0);
        end.raw(&generic(0, 10));
        if let Some((last, _)) = self.messages.last_mut() {
            *last = std::mem::replace(last, Message::new(0, 0)).with_flags(NLM_F_ACK);
        }
        self.messages.push((end, label));
        let mut first = None;
        socket.exchange(&mut self.messages, &mut |error| {
            first.get_or_insert(error);
        })?;
        first.map_or(Ok(()), Err)
    }
}

fn generic(family: u8, resource: u16) -> [u8; 4] {
    let [hi, lo] = resource.to_be_bytes();
    [family, 0, hi, lo]
}

/// User data in the `nft` tool's own form: kind 0, length, text with its NUL.
fn comment_bytes(comment: &str) -> Vec<u8> {
    let text: String = comment.chars().take(120).collect();
    let mut bytes = vec![0, text.len() as u8 + 1];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

fn encode_element(m: &mut Message, element: &Element) {
    m.nest(1, |m| {
        m.nest(1, |m| {
            m.attr(1, element.key.bytes());
        });
        match &element.data {
            None => {}
            Some(Data::Fields(fields)) => {
                m.nest(2, |m| {
                    m.attr(1, fields.bytes());
                });
            }
            Some(Data::Verdict(verdict)) => {
                m.nest(2, |m| encode_verdict(m, verdict));
            }
        }
        if let Some(ms) = element.expires_ms {
            m.be64(5, ms);
        }
    });
}

fn encode_verdict(m: &mut Message, verdict: &Verdict) {
    let (code, chain): (i32, Option<&str>) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Return => (-5, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
    };
    m.nest(2, |m| {
        m.be32(1, code as u32);
        if let Some(chain) = chain {
            m.string(2, chain);
        }
    });
}

fn encode(m: &mut Message, expr: &Expr) {
    let mut put = |name: &str, fill: &dyn Fn(&mut Message)| {
        m.nest(1, |m| {
            m.string(1, name);
            m.nest(2, |m| fill(m));
        });
    };
    let data = |m: &mut Message, kind: u16, bytes: &[u8]| {
        m.nest(kind, |m| {
            m.attr(1, bytes);
        });
    };
    let compare = |m: &mut Message, register: u32, operator: u32, bytes: &[u8]| {
        m.be32(1, register).be32(2, operator);
        data(m, 3, bytes);
    };
    let find = |m: &mut Message, set: &str, key: u32, into: Option<u32>| {
        m.string(1, set).be32(2, key);
        if let Some(into) = into {
            m.be32(3, into);
        }
    };
    match expr {
        Expr::Load(Field(base, offset, length), register) => put("payload", &|m| {
            m.be32(1, *register).be32(2, *base).be32(3, *offset).be32(4, *length);
        }),
        Expr::Meta(key, register) => put("meta", &|m| {
            m.be32(2, *key as u32).be32(1, *register);
        }),
        Expr::ConntrackState(register) => put("ct", &|m| {
            m.be32(2, 0).be32(1, *register);
        }),
        Expr::Family(register) => put("meta", &|m| {
            m.be32(2, 15).be32(1, *register);
        }),
        Expr::ConntrackStatus(register) => put("ct", &|m| {
            m.be32(2, 2).be32(1, *register);
        }),
        Expr::Fib(what, register) => put("fib", &|m| {
            let (result, flags) = match what {
                Fib::DestinationType => (3, 2),
                Fib::SourceType => (3, 1),
                Fib::SourceInterface => (1, 1 | 8),
            };
            m.be32(1, *register).be32(2, result).be32(3, flags);
        }),
        Expr::And(register, mask) => put("bitwise", &|m| {
            m.be32(1, *register).be32(2, *register).be32(3, mask.len() as u32);
            data(m, 4, mask);
            data(m, 5, &vec![0; mask.len()]);
        }),
        Expr::Equal(register, bytes) => put("cmp", &|m| compare(m, *register, 0, bytes)),
        Expr::Differs(register, bytes) => put("cmp", &|m| compare(m, *register, 1, bytes)),
        Expr::Set(register, bytes) => put("immediate", &|m| {
            m.be32(1, *register);
            data(m, 2, bytes);
        }),
        Expr::Find { set, key } => put("lookup", &|m| find(m, set, *key, None)),
        Expr::FindVerdict { map, key } => put("lookup", &|m| find(m, map, *key, Some(0))),
        Expr::FindValue { map, key, into } => put("lookup", &|m| find(m, map, *key, Some(*into))),
        Expr::FindIn { map, key, into } => put("lookup", &|m| {
            find(m, "__map%d", *key, Some(*into));
            m.be32(4, map.0);
        }),
        Expr::Random { below, into } => put("numgen", &|m| {
            m.be32(1, *into).be32(2, *below).be32(3, 1).be32(4, 0);
        }),
        Expr::Note { set, key } => put("dynset", &|m| {
            m.string(1, set).be32(3, 1).be32(4, *key);
        }),
        Expr::Remember { map, key, value } => put("dynset", &|m| {
            m.string(1, map).be32(3, 1).be32(4, *key).be32(5, *value);
        }),
        Expr::Dnat { address, port } => put("nat", &|m| {
            m.be32(1, 1).be32(2, u32::from(IPV4)).be32(3, *address);
            if let Some(port) = port {
                m.be32(5, *port);
            }
        }),
        Expr::Snat { address } => put("nat", &|m| {
            m.be32(1, 0).be32(2, u32::from(IPV4)).be32(3, *address);
        }),
        // NF_NAT_RANGE_PROTO_RANDOM_FULLY: two clients never race for one port.
        Expr::Masquerade => put("masq", &|m| {
            m.be32(1, 1 << 4);
        }),
        Expr::RejectTcp => put("reject", &|m| {
            m.be32(1, 1);
        }),
        Expr::Reject => put("reject", &|m| {
            m.be32(1, 0).attr(2, &[3]);
        }),
        Expr::Count => put("counter", &|_| {}),
        Expr::Do(verdict) => put("immediate", &|m| {
            m.be32(1, 0);
            m.nest(2, |m| encode_verdict(m, verdict));
        }),
    }
}

// ---- reading -------------------------------------------------------------------------------------------------------

/// A chain as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub family: u8,
    pub table: String,
    pub name: String,
    /// Hook number and whether its policy is to drop; `None` for chains that are only jumped to.
    pub base: Option<(u32, bool)>,
}

/// A rule as far as its owner has to know it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub family: u8,
    pub table: String,
    pub chain: String,
    pub handle: u64,
    pub comment: String,
}

pub fn open() -> Result<Socket> {
    Socket::open(NETLINK_NETFILTER)
}

/// The kernel's handle of a table: another number means that somebody made it anew.
pub fn table_handle(socket: &mut Socket, table: &str) -> Result<Option<u64>> {
    let mut m = Message::new(GET_TABLE, 0).fixed(&generic(IPV4, 0));
    m.string(1, table);
    let mut handle = None;
    let asked = socket.get(&format!("nftables table {table}"), m, &mut |_, payload| {
        handle = be64(netlink::attribute(&payload[4..], 4));
    });
    match asked {
        Err(e) if e.is_missing() => Ok(None),
        Err(e) => Err(e),
        Ok(()) => Ok(handle),
    }
}

pub fn tables(socket: &mut Socket) -> Result<Vec<(u8, String)>> {
    let mut found = Vec::new();
    let m = Message::new(GET_TABLE, 0).fixed(&generic(0, 0));
    socket.dump("list of nftables tables", m, &mut |_, payload| {
        found.push((payload[0], netlink::attribute(&payload[4..], 1).map(netlink::text).unwrap_or_default()));
    })?;
    Ok(found)
}

pub fn chains(socket: &mut Socket) -> Result<Vec<Chain>> {
    let mut found = Vec::new();
    let m = Message::new(GET_CHAIN, 0).fixed(&generic(0, 0));
    socket.dump("list of nftables chains", m, &mut |_, payload| {
        let attributes = &payload[4..];
        let hook = netlink::attribute(attributes, 4).and_then(|hook| be32(netlink::attribute(hook, 1)));
        found.push(Chain {
            family: payload[0],
            table: netlink::attribute(attributes, 1).map(netlink::text).unwrap_or_default(),
            name: netlink::attribute(attributes, 3).map(netlink::text).unwrap_or_default(),
            base: hook.map(|hook| (hook, be32(netlink::attribute(attributes, 5)) == Some(0))),
        });
    })?;
    Ok(found)
}

/// All rules that carry a comment, in all tables.
pub fn commented_rules(socket: &mut Socket) -> Result<Vec<Rule>> {
    let mut found = Vec::new();
    let m = Message::new(GET_RULE, 0).fixed(&generic(0, 0));
    socket.dump("list of nftables rules", m, &mut |_, payload| {
        let attributes = &payload[4..];
        let comment = netlink::attribute(attributes, 7).and_then(comment_of);
        let (Some(comment), Some(handle)) = (comment, be64(netlink::attribute(attributes, 3))) else { return };
        found.push(Rule {
            family: payload[0],
            table: netlink::attribute(attributes, 1).map(netlink::text).unwrap_or_default(),
            chain: netlink::attribute(attributes, 2).map(netlink::text).unwrap_or_default(),
            handle,
            comment,
        });
    })?;
    Ok(found)
}

/// The elements of a map with plain values: key, value, milliseconds left.
pub fn elements(socket: &mut Socket, table: &str, set: &str) -> Result<Vec<Element>> {
    let mut found = Vec::new();
    let mut m = Message::new(GET_ELEMENT, 0).fixed(&generic(IPV4, 0));
    m.string(1, table).string(2, set);
    socket.dump(&format!("elements of nftables set {table} {set}"), m, &mut |_, payload| {
        let Some(list) = netlink::attribute(&payload[4..], 3) else { return };
        for (_, element) in netlink::attributes(list) {
            let value = |kind| netlink::attribute(element, kind).and_then(|d| netlink::attribute(d, 1)).map(|v| Fields(v.to_vec()));
            let Some(key) = value(1) else { continue };
            found.push(Element { key, data: value(2).map(Data::Fields), expires_ms: be64(netlink::attribute(element, 5)) });
        }
    })?;
    Ok(found)
}

fn comment_of(userdata: &[u8]) -> Option<String> {
    let [0, length, text @ ..] = userdata else { return None };
    Some(netlink::text(text.get(..usize::from(*length))?))
}

fn be32(value: Option<&[u8]>) -> Option<u32> {
    Some(u32::from_be_bytes(value?.try_into().ok()?))
}

fn be64(value: Option<&[u8]>) -> Option<u64> {
    Some(u64::from_be_bytes(value?.try_into().ok()?))
}

/// Removes a table if it is there; tells whether it was.
pub fn remove_table(socket: &mut Socket, table: &str) -> Result<bool> {
    if table_handle(socket, table)?.is_none() {
        return Ok(false);
    }
    let mut batch = Batch::new(table);
    batch.delete_table();
    match batch.commit(socket) {
        Err(e) if e.is_missing() => Ok(false),
        other => other.map(|()| true),
    }
}

/// Whether this kernel knows nftables at all.
pub fn probe(socket: &mut Socket) -> Result<()> {
    tables(socket).map(|_| ()).map_err(|e| Error { hint: Some("the kernel needs CONFIG_NF_TABLES and nf_nat".into()), ..e })
}
