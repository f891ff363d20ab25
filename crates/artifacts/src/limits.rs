//! Every bound of this crate.

use std::time::Duration;

/// A manifest or an image configuration larger than this is refused (distribution-spec asks for at least 4 MiB).
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Unpacked bytes of one layer; a zip bomb stops here.
pub const LAYER_BYTES_MAX: u64 = 64 << 30;
/// Entries of one layer.
pub const LAYER_ENTRIES_MAX: u64 = 4_000_000;
/// Layers of one image; overlayfs itself takes 500.
pub const LAYERS_MAX: usize = 256;
/// Links followed while one path is resolved, as the kernel's.
pub const LINKS_FOLLOWED_MAX: usize = 40;
/// Layers fetched at once.
pub const FETCHES_AT_ONCE: usize = 3;
/// Times a broken transfer is resumed before it is an error.
pub const FETCH_RESUMES_MAX: u32 = 4;
/// From connect to response headers.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Silence within a body.
pub const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Redirects followed for one blob.
pub const REDIRECTS_MAX: usize = 5;
/// An upload that nobody touched for this long is dropped.
pub const UPLOAD_IDLE_MAX: Duration = Duration::from_secs(24 * 3600);
