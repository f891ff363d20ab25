//! One client for every organ: the same requests in process or over HTTPS, informers, and the reconcile runtime.
//!
//! Knows how to speak the API; does not know any kind but through `k8s_openapi::Resource`.

pub mod transport;

pub use transport::{Body, Transport};
