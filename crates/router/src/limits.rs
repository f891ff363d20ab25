//! Every bound of this crate, in one place.

use std::time::Duration;

/// Connections of clients at once, plain and TLS together. More wait in the listening sockets.
pub const CONNECTIONS_MAX: usize = 20_000;
/// A request's headers with its request line, in bytes.
pub const HEADERS_BYTES_MAX: usize = 64 << 10;
/// How long a client may take for its next request's headers, the pause before it included.
pub const HEADERS_WITHIN: Duration = Duration::from_secs(75);
pub const TLS_WITHIN: Duration = Duration::from_secs(10);
/// Requests at once on one HTTP/2 connection of a client.
pub const STREAMS_MAX: u32 = 250;
/// How often a silent HTTP/2 client is asked whether it lives, and how long it may take to say so.
pub const H2_PING_EVERY: Duration = Duration::from_secs(30);
pub const H2_PING_WITHIN: Duration = Duration::from_secs(15);
/// A body of which no byte moves for so long is given up.
pub const BODY_IDLE: Duration = Duration::from_secs(300);
/// An upgraded connection (WebSocket) on which nothing moves for so long is closed.
pub const UPGRADED_IDLE: Duration = Duration::from_secs(3600);

/// How long until an endpoint accepts a connection.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How long until an answer begins, unless the route says otherwise.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How many other endpoints are tried when one cannot be connected to, unless the route says otherwise.
pub const RETRIES: u32 = 2;
/// An endpoint that could not be connected to is avoided for so long, while there are others.
pub const SUSPECT_FOR: Duration = Duration::from_secs(1);
/// Idle connections kept to one endpoint.
pub const IDLE_PER_ENDPOINT: usize = 64;
/// How long they are kept: less than the 5 s after which common servers close theirs, since a request that meets that
/// moment may be lost.
pub const IDLE_FOR: Duration = Duration::from_secs(4);

/// How long requests in flight may take when the edge stops.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// How long a stopping edge waits for first requests on connections it has accepted.
pub const DRAIN_LINGER: Duration = Duration::from_millis(250);
/// One frame of the feed, in bytes.
pub const FRAME_BYTES_MAX: usize = 256 << 20;
/// Changes of objects that arrive this close together are fed together.
pub const FEED_SETTLE: Duration = Duration::from_millis(5);
/// How long the edge may take to apply a snapshot.
pub const FEED_ANSWER: Duration = Duration::from_secs(20);
/// The wait before the edge is connected to again: first, and at most.
pub const FEED_RETRY_MIN: Duration = Duration::from_millis(50);
pub const FEED_RETRY_MAX: Duration = Duration::from_secs(2);
/// How often a connected edge is asked for its counters, which also shows that it lives.
pub const FEED_CHECK: Duration = Duration::from_secs(10);

/// The wait before a dead edge is started again: first, and at most.
pub const RESTART_MIN: Duration = Duration::from_millis(100);
pub const RESTART_MAX: Duration = Duration::from_secs(10);
/// An edge that ran for so long is a healthy one: the next wait is short again.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(30);
/// How long a holder may take to bind and start.
pub const HOLDER_STARTS_WITHIN: Duration = Duration::from_secs(10);
