//! What the API server asks of this node: logs, exec, attach, port-forward, stats. The end of the node's tunnel.

use std::sync::Arc;

use api::{Reason, Status};
use async_trait::async_trait;
use base::Timestamp;
use bytes::Bytes;
use driver::{Exec, Frame as Piece};
use ports::{Frame, LogOptions, NodeHandler, NodeRequest, SESSION_FRAMES_MAX, Session};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::agent::{Agent, Shared, View};
use crate::limits::{FORWARD_CHUNK, LOG_POLL};
use crate::logs::{Reader, Wanted, attempts};
use crate::pod::Paths;
use crate::stats;

#[async_trait]
impl NodeHandler for Agent {
    async fn open(&self, request: NodeRequest) -> Result<Session, Status> {
        let shared = self.shared();
        match request {
            NodeRequest::Logs { namespace, pod, uid, container, options } => {
                logs(shared, &namespace, &pod, &uid, &container, options).await
            }
            NodeRequest::Exec { namespace, pod, uid, container, command, tty, stdin } => {
                let view = running(shared, &namespace, &pod, &uid, &container)?;
                let exec = Exec { args: command, tty, stdin };
                let session = view.driver()?.exec(&view.uid, &container, &exec).await.map_err(|e| failed(&e))?;
                Ok(relay(session))
            }
            NodeRequest::Attach { namespace, pod, uid, container, .. } => {
                let view = running(shared, &namespace, &pod, &uid, &container)?;
                let session = view.driver()?.attach(&view.uid, &container).await.map_err(|e| failed(&e))?;
                Ok(relay(session))
            }
            NodeRequest::PortForward { namespace, pod, uid, port } => {
                let view = find(shared, &namespace, &pod, &uid)?;
                let stream = view.driver()?.dial(&view.uid, port).await.map_err(|e| failed(&e))?;
                Ok(forward(stream))
            }
            NodeRequest::Stats => {
                let summary = stats::summary(shared).await;
                let (input, _) = mpsc::channel(1);
                let (tx, output) = mpsc::channel(1);
                // The channel has room for it.
                let _ = tx.try_send(Frame::new(Frame::STDOUT, summary.to_string()));
                Ok(Session { input, output })
            }
        }
    }
}

fn failed(error: &driver::Error) -> Status {
    match error {
        driver::Error::NotFound(_) => Status::new(Reason::NotFound, error.to_string()),
        driver::Error::Invalid(_) | driver::Error::Unsupported(_) => Status::bad_request(error.to_string()),
        driver::Error::Failed(_) => Status::internal(error),
    }
}

fn find(shared: &Shared, namespace: &str, pod: &str, uid: &str) -> Result<View, Status> {
    let found = shared.view(uid).filter(|_| !uid.is_empty()).or_else(|| shared.view_by_name(namespace, pod).filter(|_| uid.is_empty()));
    found.ok_or_else(|| Status::not_found("", "pods", pod))
}

fn running(shared: &Shared, namespace: &str, pod: &str, uid: &str, container: &str) -> Result<View, Status> {
    let view = find(shared, namespace, pod, uid)?;
    match view.containers.get(container) {
        Some(c) if c.running => Ok(view),
        Some(_) => Err(Status::internal(format!("container not found (\"{container}\"): it is not running"))),
        None => Err(Status::bad_request(format!("container {container} is not valid for pod {pod}"))),
    }
}

// ---- streams -------------------------------------------------------------------------------------------------------

/// Between a driver's session and a tunnel's: the same messages in the other's words.
fn relay(session: driver::Session) -> Session {
    let (input, mut frames) = mpsc::channel::<Frame>(SESSION_FRAMES_MAX);
    let (out, output) = mpsc::channel(SESSION_FRAMES_MAX);
    let driver::Session { input: pieces, output: mut results } = session;
    let inward = tokio::spawn(async move {
        while let Some(frame) = frames.recv().await {
            let piece = match frame.channel {
                Frame::STDIN => Piece::Stdin(frame.data),
                Frame::CLOSE if frame.data.first() == Some(&Frame::STDIN) => Piece::CloseStdin,
                Frame::RESIZE => match resize(&frame.data) {
                    Some(piece) => piece,
                    None => continue,
                },
                _ => continue,
            };
            if pieces.send(piece).await.is_err() {
                // The process reads no more; whatever else comes is dropped until the caller hangs up.
                while frames.recv().await.is_some() {}
                return;
            }
        }
    });
    tokio::spawn(async move {
        loop {
            let piece = tokio::select! {
                biased;
                piece = results.recv() => piece,
                // The caller hung up: dropping both ends of the driver's session ends the command.
                () = out.closed() => None,
            };
            let frame = match piece {
                Some(Piece::Stdout(data)) => Frame::new(Frame::STDOUT, data),
                Some(Piece::Stderr(data)) => Frame::new(Frame::STDERR, data),
                Some(Piece::Exit(result)) => {
                    let _ = out.send(Frame::new(Frame::ERROR, exit_status(&result))).await;
                    break;
                }
                Some(_) => continue,
                None => break,
            };
            if out.send(frame).await.is_err() {
                break;
            }
        }
        inward.abort();
    });
    Session { input, output }
}

fn resize(data: &Bytes) -> Option<Piece> {
    let size: serde_json::Value = serde_json::from_slice(data).ok()?;
    let side = |name: &str| size[name].as_u64().and_then(|n| u16::try_from(n).ok());
    Some(Piece::Resize { width: side("Width")?, height: side("Height")? })
}

/// The `Status` that ends an exec: kubectl takes the exit code from its causes.
fn exit_status(result: &Result<i32, String>) -> String {
    let status = match result {
        Ok(0) => json!({ "metadata": {}, "status": "Success" }),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Err(why) => json!({
            "metadata": {},
            "status": "Failure",
            "message": why,
            "reason": "InternalError",
            "code": 500,
        }),
    };
    status.to_string()
}

/// Bytes both ways between a tunnel's session and a connection into the pod.
fn forward(stream: tokio::net::TcpStream) -> Session {
    let (input, mut frames) = mpsc::channel::<Frame>(SESSION_FRAMES_MAX);
    let (out, output) = mpsc::channel(SESSION_FRAMES_MAX);
    let (mut from, mut to) = stream.into_split();
    let inward = tokio::spawn(async move {
        while let Some(frame) = frames.recv().await {
            if frame.channel == Frame::CLOSE {
                break;
            }
            if to.write_all(&frame.data).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
        // Kept until the caller hangs up: dropping the receiver would look like the end of the session.
        while frames.recv().await.is_some() {}
    });
    tokio::spawn(async move {
        let mut buffer = vec![0u8; FORWARD_CHUNK];
        loop {
            let n = tokio::select! {
                biased;
                n = from.read(&mut buffer) => n,
                () = out.closed() => break,
            };
            match n {
                Ok(0) | Err(_) => {
                    let _ = out.send(Frame::new(Frame::CLOSE, vec![Frame::STDOUT])).await;
                    break;
                }
                Ok(n) => {
                    if out.send(Frame::new(Frame::STDOUT, Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                        break;
                    }
                }
            }
        }
        drop(out);
        inward.abort();
    });
    Session { input, output }
}

// ---- logs ----------------------------------------------------------------------------------------------------------

async fn logs(
    shared: &Arc<Shared>,
    namespace: &str,
    pod: &str,
    uid: &str,
    container: &str,
    options: LogOptions,
) -> Result<Session, Status> {
    let view = find(shared, namespace, pod, uid)?;
    let Some(state) = view.containers.get(container) else {
        return Err(Status::bad_request(format!("container {container} is not valid for pod {pod}")));
    };
    let dir = Paths::new(shared, &view.uid, namespace, pod).logs.join(container);
    let known = attempts(&dir);
    let attempt = match (options.previous, state.attempt) {
        (true, Some(n)) => n
            .checked_sub(1)
            .filter(|n| known.contains(n))
            .ok_or_else(|| Status::bad_request(format!("previous terminated container \"{container}\" in pod \"{pod}\" not found")))?,
        (true, None) => {
            return Err(Status::bad_request(format!("previous terminated container \"{container}\" in pod \"{pod}\" not found")));
        }
        (false, Some(n)) => n,
        // Of a pod that ended long ago only files are left.
        (false, None) => *known.last().ok_or_else(|| {
            let waiting = if state.waiting.is_empty() { "ContainerCreating" } else { &state.waiting };
            Status::bad_request(format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {waiting}"))
        })?,
    };
    let wanted = wanted(shared, &options)?;
    let (input, mut hung_up) = mpsc::channel::<Frame>(1);
    let (out, output) = mpsc::channel(SESSION_FRAMES_MAX);
    let (shared, container) = (shared.clone(), container.to_string());
    tokio::spawn(async move {
        let pump = pump(&shared, &view.uid, &container, dir, attempt, wanted, &options, &out);
        tokio::select! {
            biased;
            () = async { while hung_up.recv().await.is_some() {} }, if options.follow => {}
            () = out.closed() => {}
            result = pump => if let Err(e) = result {
                tracing::debug!("a log was not read to its end: {e}");
            },
        }
    });
    Ok(Session { input, output })
}

fn wanted(shared: &Shared, options: &LogOptions) -> Result<Wanted, Status> {
    let since = match (&options.since_time, options.since_seconds) {
        (Some(time), _) => Some(time.parse::<Timestamp>().map_err(|e| Status::bad_request(format!("sinceTime: {e}")))?),
        (None, Some(seconds)) => shared.config.clock.now().checked_sub(jiff::SignedDuration::from_secs(seconds)).ok(),
        (None, None) => None,
    };
    let positive = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
    Ok(Wanted { since, timestamps: options.timestamps, tail: positive(options.tail_lines), limit_bytes: positive(options.limit_bytes) })
}

/// Sends what the log has and, when following, what it gets, until its container has ended and will not come back.
#[allow(clippy::too_many_arguments)]
async fn pump(
    shared: &Shared,
    uid: &str,
    container: &str,
    dir: std::path::PathBuf,
    mut attempt: u32,
    wanted: Wanted,
    options: &LogOptions,
    out: &mpsc::Sender<Frame>,
) -> std::io::Result<()> {
    let mut reader = open(&dir, attempt, wanted.clone()).await?;
    loop {
        // Asked before reading: what was written before the end is then read before the end is believed.
        let goes_on = options.follow && !options.previous && still(shared, uid, container, attempt);
        let (chunk, back) = read(reader).await?;
        reader = back;
        if !chunk.is_empty() {
            // The caller that hung up is noticed by the send.
            if out.send(Frame::new(Frame::STDOUT, chunk)).await.is_err() {
                return Ok(());
            }
            continue;
        }
        if reader.is_over() || !goes_on {
            return Ok(());
        }
        if let Some(next) = attempts(&dir).into_iter().find(|n| *n > attempt) {
            attempt = next;
            reader = open(&dir, attempt, Wanted { tail: None, since: None, ..wanted.clone() }).await?;
            continue;
        }
        tokio::time::sleep(LOG_POLL).await;
    }
}

/// Whether more may come: the attempt runs, or its container will be started again.
fn still(shared: &Shared, uid: &str, container: &str, attempt: u32) -> bool {
    let Some(view) = shared.view(uid) else { return false };
    let Some(state) = view.containers.get(container) else { return false };
    state.running || state.attempt.is_some_and(|n| n > attempt) || (state.comes_back && !view.ending)
}

async fn open(dir: &std::path::Path, attempt: u32, wanted: Wanted) -> std::io::Result<Reader> {
    let path = dir.join(format!("{attempt}.log"));
    tokio::task::spawn_blocking(move || Reader::open(&path, wanted)).await.map_err(std::io::Error::other)?
}

async fn read(mut reader: Reader) -> std::io::Result<(Bytes, Reader)> {
    tokio::task::spawn_blocking(move || reader.read().map(|chunk| (chunk, reader))).await.map_err(std::io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_told_as_kubectl_reads_them() {
        let status: serde_json::Value = serde_json::from_str(&exit_status(&Ok(7))).unwrap();
        assert_eq!(status["details"]["causes"][0]["message"], "7");
        assert_eq!(status["message"], "command terminated with non-zero exit code: exit status 7");
        assert!(exit_status(&Ok(0)).contains("Success"));
    }

    #[test]
    fn terminals_are_resized() {
        assert!(matches!(resize(&Bytes::from_static(b"{\"Width\":80,\"Height\":24}")), Some(Piece::Resize { width: 80, height: 24 })));
        assert!(resize(&Bytes::from_static(b"{}")).is_none());
    }
}
