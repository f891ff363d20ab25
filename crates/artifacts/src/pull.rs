//! Pull and push over a session: every byte verified against its digest, broken transfers resumed, nothing fetched twice.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{Either, Full};

use crate::images::{Manifest, Progress, parse_manifest, pick_platform};
use crate::remote::{Session, absolute, file_body, next_frame, read_limited};
use crate::{BlobStore, Digest, Error, Result, limits};

pub const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// What a name stands for in a registry.
pub struct Resolved {
    pub digest: Digest,
    pub manifest: Manifest,
    /// The index that led to the manifest, if one did.
    pub index: Option<Digest>,
}

type ProgressFn<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// Fetches manifest, configuration and layers of `wanted` (a tag or a digest) into `blobs`.
pub async fn pull(session: &Session, wanted: &str, blobs: &BlobStore, progress: ProgressFn<'_>) -> Result<Resolved> {
    let (mut digest, bytes) = manifest(session, wanted, blobs).await?;
    let mut index = None;
    let mut parsed = parse_manifest(&bytes)?;
    if let Manifest::Index(entries) = &parsed {
        let chosen = pick_platform(entries).ok_or_else(|| {
            let have: Vec<String> = entries.iter().map(|e| e.platform.clone()).collect();
            let arch = crate::images::machine_platform();
            Error::Invalid(format!("{} has no image for {arch}; it has {}", session.shown(), have.join(", ")))
        })?;
        index = Some(digest);
        let (d, bytes) = manifest(session, &chosen.digest.to_string(), blobs).await?;
        digest = d;
        parsed = parse_manifest(&bytes)?;
    }
    let Manifest::Image { config, layers, .. } = &parsed else {
        return Err(Error::Invalid(format!("{} is an index of indexes", session.shown())));
    };
    if layers.len() > limits::LAYERS_MAX {
        return Err(Error::Invalid(format!("{} has {} layers, {} at most", session.shown(), layers.len(), limits::LAYERS_MAX)));
    }
    let wanted: Vec<_> = std::iter::once(config).chain(layers).filter(|d| !blobs.has(&d.digest)).collect();
    let total: u64 = wanted.iter().map(|d| d.size).sum();
    let done = AtomicU64::new(0);
    let tell = |bytes: u64| progress(Progress { done: done.fetch_add(bytes, Ordering::Relaxed) + bytes, total });
    let fetches: Vec<BoxFuture<'_, Result<()>>> =
        wanted.iter().map(|d| fetch_blob(session, &d.digest, d.size, blobs, &tell).boxed()).collect();
    stream::iter(fetches).buffer_unordered(limits::FETCHES_AT_ONCE).try_collect::<Vec<()>>().await?;
    Ok(Resolved { digest, manifest: parsed, index })
}

async fn manifest(session: &Session, wanted: &str, blobs: &BlobStore) -> Result<(Digest, Vec<u8>)> {
    if let Ok(digest) = Digest::parse(wanted)
        && blobs.has(&digest)
    {
        return Ok((digest.clone(), blobs.read(&digest)?));
    }
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static(MANIFEST_TYPES));
    let response = session.get(Method::GET, &format!("manifests/{wanted}"), &headers).await?;
    if response.status() != StatusCode::OK {
        return Err(session.failure(response).await);
    }
    let bytes = read_limited(response.into_body(), limits::MANIFEST_BYTES_MAX).await?;
    let digest = Digest::of(&bytes);
    if let Ok(expected) = Digest::parse(wanted)
        && expected != digest
    {
        return Err(Error::DigestMismatch { expected: expected.to_string(), actual: digest.to_string() });
    }
    blobs.put(&bytes)?;
    Ok((digest, bytes.to_vec()))
}

async fn fetch_blob(session: &Session, digest: &Digest, size: u64, blobs: &BlobStore, tell: &(dyn Fn(u64) + Send + Sync)) -> Result<()> {
    let id = format!("pull-{}-{:x}", digest.hex(), std::process::id());
    let mut failures = 0;
    let mut told = 0;
    loop {
        let mut upload = blobs.upload(&id, false)?;
        let result = fetch_rest(session, digest, size, &mut upload, &mut told, tell).await;
        match result {
            Ok(()) => return upload.commit(digest),
            // A transfer that broke is continued where it stopped; anything else is an answer.
            Err(Error::Unreachable(_, why)) if failures < limits::FETCH_RESUMES_MAX => {
                failures += 1;
                tracing::debug!(%digest, failures, why, "resuming a blob");
                tokio::time::sleep(std::time::Duration::from_millis(200 << failures)).await;
            }
            Err(e) => {
                blobs.drop_upload(&id);
                return Err(e);
            }
        }
    }
}

async fn fetch_rest(
    session: &Session,
    digest: &Digest,
    size: u64,
    upload: &mut crate::Upload,
    told: &mut u64,
    tell: &(dyn Fn(u64) + Send + Sync),
) -> Result<()> {
    if upload.bytes() == size && size > 0 {
        return Ok(());
    }
    let mut headers = HeaderMap::new();
    if upload.bytes() > 0 {
        let range = format!("bytes={}-", upload.bytes());
        headers.insert(header::RANGE, HeaderValue::from_str(&range).map_err(|e| Error::Invalid(e.to_string()))?);
    }
    let response = session.get(Method::GET, &format!("blobs/{digest}"), &headers).await?;
    // A server that ignores the range starts over: skip what is here already.
    let mut skip = match response.status() {
        StatusCode::OK => upload.bytes(),
        StatusCode::PARTIAL_CONTENT => 0,
        _ => return Err(session.failure(response).await),
    };
    let mut body = response.into_body();
    while let Some(data) = next_frame(&mut body).await? {
        let from = skip.min(data.len() as u64);
        skip -= from;
        let data = &data[from as usize..];
        if upload.bytes() + data.len() as u64 > size {
            return Err(Error::Invalid(format!("blob {digest} is larger than its descriptor's {size} bytes")));
        }
        upload.write_all(data).map_err(Error::io(format!("write blob {digest}")))?;
        let news = upload.bytes().saturating_sub(*told);
        *told += news;
        tell(news);
    }
    if upload.bytes() < size {
        return Err(Error::Unreachable(session.shown().to_string(), format!("blob {digest} ended early")));
    }
    Ok(())
}

/// Pushes a manifest with all it names to `tag`. Blobs that the registry has are not sent again.
pub async fn push(session: &Session, tag: &str, digest: &Digest, blobs: &BlobStore, progress: ProgressFn<'_>) -> Result<()> {
    let bytes = blobs.read(digest)?;
    let Manifest::Image { config, layers, media_type } = parse_manifest(&bytes)? else {
        return Err(Error::Invalid("only single-platform images are pushed".into()));
    };
    let all: Vec<_> = std::iter::once(&config).chain(&layers).collect();
    let total = all.iter().map(|d| d.size).sum();
    let mut done = 0;
    for descriptor in all {
        push_blob(session, &descriptor.digest, blobs).await?;
        done += descriptor.size;
        progress(Progress { done, total });
    }
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(&media_type).map_err(|e| Error::Invalid(e.to_string()))?);
    let body = || Ok(Either::Left(Full::from(bytes.clone())));
    let response = session.request(Method::PUT, &format!("manifests/{tag}"), &headers, true, &body).await?;
    if response.status().is_success() { Ok(()) } else { Err(session.failure(response).await) }
}

async fn push_blob(session: &Session, digest: &Digest, blobs: &BlobStore) -> Result<()> {
    let empty = || Ok(Either::Left(Full::default()));
    let head = session.get(Method::HEAD, &format!("blobs/{digest}"), &HeaderMap::new()).await?;
    if head.status() == StatusCode::OK {
        return Ok(());
    }
    let response = session.request(Method::POST, "blobs/uploads/", &HeaderMap::new(), true, &empty).await?;
    if response.status() != StatusCode::ACCEPTED {
        return Err(session.failure(response).await);
    }
    let location = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let location = absolute(session.base(), location);
    let url = format!("{location}{}digest={digest}", if location.contains('?') { '&' } else { '?' });
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let length = blobs.size(digest).unwrap_or_default();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    let body = || Ok(file_body(blobs.file(digest)?));
    let response = session.request(Method::PUT, &url, &headers, true, &body).await?;
    if response.status().is_success() { Ok(()) } else { Err(session.failure(response).await) }
}
