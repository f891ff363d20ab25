//! Errors in distribution-spec's form and codes.

use http::{Response, StatusCode, header};

use crate::{Body, full};

#[derive(Debug)]
pub enum Failure {
    BlobUnknown(String),
    UploadUnknown(String),
    UploadInvalid(String),
    DigestInvalid(String),
    ManifestBlobUnknown(String),
    ManifestInvalid(String),
    ManifestUnknown(String),
    NameInvalid(String),
    NameUnknown(String),
    SizeInvalid(String),
    RangeInvalid,
    /// An upload's next chunk does not begin where the last one ended; the number of bytes that are here.
    OutOfOrder(u64),
    Unauthorized(String),
    Unsupported,
    Full(String),
    Internal(String),
}

impl Failure {
    pub fn internal(e: impl std::fmt::Display) -> Self {
        Failure::Internal(e.to_string())
    }

    fn parts(&self) -> (StatusCode, &'static str, String) {
        use Failure::*;
        match self {
            BlobUnknown(d) => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN", format!("blob {d} is not in this registry")),
            UploadUnknown(id) => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", format!("there is no upload {id}")),
            UploadInvalid(why) => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", why.clone()),
            DigestInvalid(why) => (StatusCode::BAD_REQUEST, "DIGEST_INVALID", why.clone()),
            ManifestBlobUnknown(d) => (StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN", format!("the manifest names {d}: push it first")),
            ManifestInvalid(why) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID", why.clone()),
            ManifestUnknown(r) => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", format!("{r} is not in this repository")),
            NameInvalid(n) => (StatusCode::BAD_REQUEST, "NAME_INVALID", format!("{n:?} is not a repository name")),
            NameUnknown(n) => (StatusCode::NOT_FOUND, "NAME_UNKNOWN", format!("there is no repository {n}")),
            SizeInvalid(why) => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", why.clone()),
            RangeInvalid => (StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", "the range is outside of the blob".into()),
            OutOfOrder(have) => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", format!("the next chunk begins at byte {have}")),
            Unauthorized(why) => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED", why.clone()),
            Unsupported => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the registry does not have this operation".into()),
            Full(why) => (StatusCode::INSUFFICIENT_STORAGE, "DENIED", why.clone()),
            Internal(why) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", why.clone()),
        }
    }

    pub fn response(self) -> Response<Body> {
        let (status, code, message) = self.parts();
        let body = serde_json::json!({ "errors": [{ "code": code, "message": message, "detail": null }] });
        let mut response = Response::new(full(body.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Basic realm=\"staithe\""));
        }
        if let Failure::OutOfOrder(have) = self
            && let Ok(value) = format!("0-{}", have.saturating_sub(1)).parse()
        {
            headers.insert(header::RANGE, value);
        }
        response
    }
}

impl From<artifacts::Error> for Failure {
    fn from(e: artifacts::Error) -> Self {
        use artifacts::Error::*;
        match e {
            DigestMismatch { .. } => Failure::DigestInvalid(e.to_string()),
            NotFound(what) => Failure::BlobUnknown(what),
            Io(_, ref io) if io.kind() == std::io::ErrorKind::StorageFull => Failure::Full("the registry's disk is full".into()),
            other => Failure::Internal(other.to_string()),
        }
    }
}
