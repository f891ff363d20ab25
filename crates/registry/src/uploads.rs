//! Blobs on their way in: monolithic, chunked, resumed, or mounted from another repository.

use std::io::Write;

use artifacts::{Digest, Upload};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Body as HttpBody;

use crate::{Body, Failure, Registry, empty, query_value, status};

impl Registry {
    pub(crate) async fn start_upload<B>(&self, name: &str, request: Request<B>) -> Result<Response<Body>, Failure>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin,
        B::Error: std::fmt::Display,
    {
        let query = request.uri().query().map(str::to_string);
        // Blobs are shared by all repositories: a mount only asks whether the blob is here.
        if let Some(mount) = query_value(query.as_deref(), "mount")
            && let Ok(digest) = Digest::parse(&mount)
            && self.blobs.has(&digest)
        {
            return created(name, &digest);
        }
        let id = self.ids.uid();
        if let Some(digest) = query_value(query.as_deref(), "digest") {
            let digest = Digest::parse(&digest).map_err(|e| Failure::DigestInvalid(e.to_string()))?;
            let mut upload = self.blobs.upload(&id, true)?;
            return match receive(request.into_body(), &mut upload).await {
                Ok(()) => self.finish(name, upload, &digest).await,
                Err(e) => {
                    self.blobs.drop_upload(&id);
                    Err(e)
                }
            };
        }
        drop(self.blobs.upload(&id, true)?);
        progress(StatusCode::ACCEPTED, name, &id, 0)
    }

    fn resume(&self, id: &str, headers: &HeaderMap) -> Result<Upload, Failure> {
        let have = self.blobs.upload_size(id).ok_or_else(|| Failure::UploadUnknown(id.to_string()))?;
        if let Some(range) = headers.get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok()) {
            let from = range.trim_start_matches("bytes ").split('-').next().and_then(|n| n.parse::<u64>().ok());
            match from {
                Some(from) if from == have => {}
                Some(_) => return Err(Failure::OutOfOrder(have)),
                None => return Err(Failure::UploadInvalid(format!("Content-Range {range:?} is not <from>-<to>"))),
            }
        }
        Ok(self.blobs.upload(id, false)?)
    }

    pub(crate) async fn patch_upload<B>(&self, name: &str, id: &str, request: Request<B>) -> Result<Response<Body>, Failure>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin,
        B::Error: std::fmt::Display,
    {
        let mut upload = self.resume(id, request.headers())?;
        receive(request.into_body(), &mut upload).await?;
        progress(StatusCode::ACCEPTED, name, id, upload.bytes())
    }

    pub(crate) async fn put_upload<B>(&self, name: &str, id: &str, request: Request<B>) -> Result<Response<Body>, Failure>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin,
        B::Error: std::fmt::Display,
    {
        let digest = query_value(request.uri().query(), "digest");
        let digest = digest.ok_or_else(|| Failure::DigestInvalid("the upload is closed without ?digest=".into()))?;
        let digest = Digest::parse(&digest).map_err(|e| Failure::DigestInvalid(e.to_string()))?;
        let mut upload = self.resume(id, request.headers())?;
        receive(request.into_body(), &mut upload).await?;
        self.finish(name, upload, &digest).await
    }

    async fn finish(&self, name: &str, upload: Upload, digest: &Digest) -> Result<Response<Body>, Failure> {
        let expected = digest.clone();
        // The sync may take long; it must not hold up other connections.
        let commit = tokio::task::spawn_blocking(move || upload.commit(&expected));
        commit.await.map_err(Failure::internal)??;
        created(name, digest)
    }

    pub(crate) fn upload_status(&self, name: &str, id: &str) -> Result<Response<Body>, Failure> {
        let have = self.blobs.upload_size(id).ok_or_else(|| Failure::UploadUnknown(id.to_string()))?;
        progress(StatusCode::NO_CONTENT, name, id, have)
    }

    pub(crate) fn cancel_upload(&self, id: &str) -> Result<Response<Body>, Failure> {
        if self.blobs.drop_upload(id) { status(StatusCode::NO_CONTENT) } else { Err(Failure::UploadUnknown(id.to_string())) }
    }
}

async fn receive<B>(mut body: B, upload: &mut Upload) -> Result<(), Failure>
where
    B: HttpBody<Data = Bytes> + Send + Unpin,
    B::Error: std::fmt::Display,
{
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::UploadInvalid(format!("the transfer broke: {e}")))?;
        if let Some(data) = frame.data_ref() {
            upload.write_all(data).map_err(|e| Failure::from(artifacts::Error::Io("write an upload".into(), e)))?;
        }
    }
    Ok(())
}

fn created(name: &str, digest: &Digest) -> Result<Response<Body>, Failure> {
    Response::builder()
        .status(StatusCode::CREATED)
        .header(header::LOCATION, format!("/v2/{name}/blobs/{digest}"))
        .header("docker-content-digest", digest.to_string())
        .body(empty())
        .map_err(Failure::internal)
}

fn progress(code: StatusCode, name: &str, id: &str, have: u64) -> Result<Response<Body>, Failure> {
    Response::builder()
        .status(code)
        .header(header::LOCATION, format!("/v2/{name}/blobs/uploads/{id}"))
        .header(header::RANGE, format!("0-{}", have.saturating_sub(1)))
        .header(header::CONTENT_LENGTH, 0)
        .header("docker-upload-uuid", id)
        .body(empty())
        .map_err(Failure::internal)
}
