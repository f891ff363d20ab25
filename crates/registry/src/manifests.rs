//! Manifests, tags and referrers: the management half of distribution-spec.

use artifacts::images::{Manifest, parse_manifest};
use artifacts::{Digest, reference::valid_tag};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Body as HttpBody;
use serde_json::{Value, json};

use crate::{Body, Failure, Registry, full, limits, query_value, status};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

async fn whole<B>(mut body: B) -> Result<Vec<u8>, Failure>
where
    B: HttpBody<Data = Bytes> + Send + Unpin,
    B::Error: std::fmt::Display,
{
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::ManifestInvalid(format!("the transfer broke: {e}")))?;
        bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d));
        if bytes.len() > limits::MANIFEST_BYTES_MAX {
            return Err(Failure::SizeInvalid(format!("a manifest may have {} bytes at most", limits::MANIFEST_BYTES_MAX)));
        }
    }
    Ok(bytes)
}

impl Registry {
    fn resolve(&self, name: &str, reference: &str) -> Result<(Digest, String), Failure> {
        let unknown = || Failure::ManifestUnknown(format!("{name}:{reference}"));
        let digest = match Digest::parse(reference) {
            Ok(digest) => digest,
            Err(_) => self.refs.resolve(name, reference).ok_or_else(unknown)?,
        };
        let media_type = self.refs.linked(name, &digest).ok_or_else(unknown)?;
        Ok((digest, media_type))
    }

    pub(crate) fn get_manifest(&self, name: &str, reference: &str) -> Result<Response<Body>, Failure> {
        let (digest, media_type) = self.resolve(name, reference)?;
        let bytes = self.blobs.read(&digest)?;
        Response::builder()
            .header(header::CONTENT_TYPE, media_type)
            .header(header::CONTENT_LENGTH, bytes.len())
            .header(header::ETAG, format!("\"{digest}\""))
            .header("docker-content-digest", digest.to_string())
            .body(full(bytes))
            .map_err(Failure::internal)
    }

    pub(crate) async fn put_manifest<B>(&self, name: &str, reference: &str, request: Request<B>) -> Result<Response<Body>, Failure>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin,
        B::Error: std::fmt::Display,
    {
        let declared = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_string();
        let bytes = whole(request.into_body()).await?;

        let digest = Digest::of(&bytes);
        let tag = match Digest::parse(reference) {
            Ok(expected) if expected != digest => {
                return Err(Failure::DigestInvalid(format!("the manifest's digest is {digest}, not {expected}")));
            }
            Ok(_) => None,
            Err(_) if valid_tag(reference) => Some(reference),
            Err(_) => return Err(Failure::ManifestInvalid(format!("{reference:?} is neither a tag nor a digest"))),
        };
        let manifest = parse_manifest(&bytes).map_err(|e| Failure::ManifestInvalid(e.to_string()))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| Failure::ManifestInvalid(e.to_string()))?;
        self.check_references(&manifest)?;
        let default = if matches!(manifest, Manifest::Index(_)) { OCI_INDEX } else { OCI_MANIFEST };
        let media_type = value["mediaType"].as_str().map(str::to_string).or(Some(declared).filter(|d| !d.is_empty()));

        self.blobs.put(&bytes)?;
        self.refs.link(name, &digest, media_type.as_deref().unwrap_or(default))?;
        if let Some(tag) = tag {
            self.refs.tag(name, tag, &digest)?;
        }
        let mut builder = Response::builder()
            .status(StatusCode::CREATED)
            .header(header::LOCATION, format!("/v2/{name}/manifests/{digest}"))
            .header("docker-content-digest", digest.to_string());
        if let Some(subject) = value["subject"]["digest"].as_str() {
            builder = builder.header("oci-subject", subject);
        }
        builder.body(crate::empty()).map_err(Failure::internal)
    }

    /// What a manifest names must be here first: a pull of what was acknowledged never fails half-way.
    fn check_references(&self, manifest: &Manifest) -> Result<(), Failure> {
        let missing = match manifest {
            Manifest::Image { config, layers, .. } => std::iter::once(config).chain(layers).find(|d| !self.blobs.has(&d.digest)),
            Manifest::Index(entries) => entries.iter().find(|d| !self.blobs.has(&d.digest)),
        };
        match missing {
            Some(descriptor) => Err(Failure::ManifestBlobUnknown(descriptor.digest.to_string())),
            None => Ok(()),
        }
    }

    pub(crate) fn delete_manifest(&self, name: &str, reference: &str) -> Result<Response<Body>, Failure> {
        let gone = match Digest::parse(reference) {
            Ok(digest) => self.refs.unlink(name, &digest),
            Err(_) => self.refs.untag(name, reference),
        };
        if gone { status(StatusCode::ACCEPTED) } else { Err(Failure::ManifestUnknown(format!("{name}:{reference}"))) }
    }

    /// Manifests of the repository whose `subject` is this digest, as an image index.
    pub(crate) fn referrers(&self, name: &str, subject: &str, query: Option<&str>) -> Result<Response<Body>, Failure> {
        let subject = Digest::parse(subject).map_err(|e| Failure::DigestInvalid(e.to_string()))?;
        let wanted = query_value(query, "artifactType");
        let mut found = Vec::new();
        for digest in self.refs.manifests(name) {
            let Ok(bytes) = self.blobs.read(&digest) else { continue };
            let Ok(value) = serde_json::from_slice::<Value>(&bytes) else { continue };
            if value["subject"]["digest"].as_str() != Some(&subject.to_string()) {
                continue;
            }
            let artifact_type = value["artifactType"].as_str().or(value["config"]["mediaType"].as_str()).unwrap_or_default();
            if wanted.as_ref().is_some_and(|w| w != artifact_type) {
                continue;
            }
            let mut descriptor = json!({
                "mediaType": value["mediaType"].as_str().unwrap_or(OCI_MANIFEST), "digest": digest,
                "size": bytes.len(), "artifactType": artifact_type,
            });
            if let Some(annotations) = value.get("annotations") {
                descriptor["annotations"] = annotations.clone();
            }
            found.push(descriptor);
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found });
        let mut builder = Response::builder().header(header::CONTENT_TYPE, OCI_INDEX);
        if wanted.is_some() {
            builder = builder.header("oci-filters-applied", "artifactType");
        }
        builder.body(full(index.to_string())).map_err(Failure::internal)
    }
}
