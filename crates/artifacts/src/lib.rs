//! Content-addressed blobs, safe unpacking, image import and the OCI client: what every packaging is delivered through.
//!
//! Knows OCI's formats (image-spec 1.1, distribution-spec 1.1). Does not know pods, users or the API: credentials and
//! policies are handed in, and the registry that serves these blobs over HTTP is another room.

pub mod blobs;
pub mod digest;
pub mod images;
pub mod import;
pub mod layers;
pub mod limits;
pub mod pull;
pub mod reference;
pub mod refs;
pub mod remote;
pub mod unpack;

pub use blobs::{BlobStore, Upload};
pub use digest::Digest;
pub use images::{Image, ImageConfig, Images, Progress};
pub use reference::Reference;
pub use refs::Refs;
pub use remote::{Credentials, Remote};

/// What can go wrong with an artifact; the text is what a user reads in an event.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("couldn't parse image name {0:?}: {1}")]
    BadReference(String, String),
    #[error("{0} not found")]
    NotFound(String),
    #[error("{0}: access denied: {1}")]
    Unauthorized(String, String),
    #[error("{0}: {1}")]
    Unreachable(String, String),
    #[error("content does not match its digest: expected {expected}, got {actual}")]
    DigestMismatch { expected: String, actual: String },
    #[error("{0}")]
    Invalid(String),
    #[error("{0}: {1}")]
    Io(String, #[source] std::io::Error),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Closure for `map_err`: names what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |e| Error::Io(what, e)
    }
}
