//! Every bound of this crate, in one place.

use std::time::Duration;

/// How long the kernel may take to answer a netlink request.
pub const NETLINK_ANSWER: Duration = Duration::from_secs(10);
/// Receive buffer of netlink sockets, in bytes: the acknowledgements and errors of a whole batch have to fit.
pub const NETLINK_RECEIVE_BYTES: i32 = 4 << 20;
/// Set elements sent in one netlink attribute, in bytes. An attribute's length is 16 bits.
pub const SET_ELEMENTS_BYTES: usize = 48 << 10;

/// How long the kernel may take until a new link sends.
pub const LINK_SENDS_WITHIN: Duration = Duration::from_secs(2);

/// Changes of Services and EndpointSlices that arrive this close together are applied together.
pub const SERVICES_SETTLE: Duration = Duration::from_millis(10);
/// How often the kernel's tables are checked against what was last written, whoever changed them.
pub const SERVICES_CHECK: Duration = Duration::from_secs(20);
/// The wait after the kernel refused an update of the service table: first, and at most.
pub const SERVICES_RETRY_MIN: Duration = Duration::from_millis(200);
pub const SERVICES_RETRY_MAX: Duration = Duration::from_secs(10);
/// Clients remembered for one Service with `sessionAffinity: ClientIP`.
pub const AFFINITY_CLIENTS_MAX: u32 = 65_536;

/// Bytes of the largest DNS message taken over UDP or sent without fragmenting (RFC 9715).
pub const DNS_UDP_BYTES: usize = 1232;
/// Bytes of an answer over UDP to a client that speaks no EDNS (RFC 1035 §4.2.1).
pub const DNS_PLAIN_UDP_BYTES: usize = 512;
/// Seconds a client may keep an answer about the cluster.
pub const DNS_TTL_SECONDS: u32 = 5;
/// How long one upstream resolver may take, and how often the list of them is gone through.
pub const DNS_UPSTREAM_ANSWER: Duration = Duration::from_millis(1500);
pub const DNS_UPSTREAM_ROUNDS: usize = 2;
/// Questions being answered at once; what comes beyond is dropped over UDP (clients ask again).
pub const DNS_QUESTIONS_MAX: usize = 2048;
/// DNS connections over TCP at once, and how long one may be silent.
pub const DNS_TCP_MAX: usize = 256;
pub const DNS_TCP_IDLE: Duration = Duration::from_secs(10);
/// Upstream answers kept, and for how long at most whatever their TTL.
pub const DNS_CACHE_MAX: usize = 4096;
pub const DNS_CACHE_SECONDS_MAX: u32 = 60;
/// How often the host's resolver configuration is looked at.
pub const DNS_RESOLV_CONF_CHECK: Duration = Duration::from_secs(5);
/// CNAMEs followed within one answer.
pub const DNS_CNAME_MAX: usize = 8;
