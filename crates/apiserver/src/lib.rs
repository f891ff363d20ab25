//! The Kubernetes API server: untyped, driven by the resource table.
//!
//! One path serves every kind: [`Server::handle`] authenticates, authorizes and dispatches; `generic` reads and writes
//! objects by their row; what a kind needs beyond its row is an entry in `admission` or a subresource. Knows HTTP and
//! the store's cache. Does not know any controller, and reaches nodes only through [`ports::Tunnels`].

mod admission;
mod authn;
mod authz;
mod bootstrap;
mod endpoints;
mod generic;
pub mod limits;
mod metrics;
mod negotiate;
pub mod pki;
mod request;
mod respond;
mod serve;
mod server;
mod state;
mod streams;
mod subresources;
mod token;

pub use authn::Caller;
pub use serve::serve_tls;
pub use server::{Config, Server, Version};
pub use token::TokenKey;
