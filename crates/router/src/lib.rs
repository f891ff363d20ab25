//! The L7 router: Ingress by host and path, TLS, HTTP/1.1, HTTP/2, WebSocket; and the edge process that carries it.
//!
//! ```text
//! server      connections in: limits, TLS, HTTP/1.1 and HTTP/2, draining
//! proxy       one request top to bottom: check, route, forward, answer
//!   table     host and path -> route           tls       server name -> certificate
//!   endpoint  backend -> endpoint -> connection headers  what a proxy does to them
//! edge        the process: feed, feeder, holder of the sockets
//! ```
//! It reads two immutable snapshots (`plan::routes`) and knows no API object. What it does not do: rewrite paths, cache,
//! compress, authenticate.

mod body;
pub mod edge;
mod endpoint;
mod headers;
pub mod limits;
pub mod metrics;
mod proxy;
pub mod server;
mod table;
mod tls;
mod tunnel;

pub use proxy::Router;
pub use tls::TlsError;
