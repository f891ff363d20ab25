//! An exec or attach: a connection of its own to the shim, seen by the agent as two channels.

use std::path::Path;

use bytes::Bytes;
use driver::{Error, Frame, Result, Session};
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};

use super::failed;
use super::link::{self, Frames};
use crate::limits;
use crate::proto::{self, Message, Request, ResizeArgs};

pub async fn open(dir: &Path, call: &str, args: impl Serialize) -> Result<Session> {
    let gone = |e: std::io::Error| failed("the pod's shim", e);
    let args = serde_json::to_value(args).map_err(|e| failed(call, e))?;
    let (reader, mut writer) = link::dial(dir).await.map_err(gone)?.into_split();
    writer.write_all(&proto::json_frame(&Request { id: 1, call: call.to_string(), args })).await.map_err(gone)?;
    let mut frames = Frames::new(reader);
    let (out, output) = mpsc::channel(limits::SESSION_FRAMES);
    let (input, inward) = mpsc::channel(limits::SESSION_FRAMES);
    let (done, over) = oneshot::channel();
    // The answer comes first, but an exec that fails at once says so before it.
    let first = tokio::time::timeout(limits::CALL, frames.next()).await.map_err(|e| failed(call, e))?.map_err(gone)?;
    let (_, payload) = first.ok_or_else(|| Error::Failed("the pod's shim is gone".into()))?;
    let message: Message = serde_json::from_slice(&payload).map_err(|e| failed(call, e))?;
    if let Some(failure) = message.error {
        return Err(failure.into());
    }
    if let Some(end) = ending(&message) {
        let _ = out.send(end).await;
        return Ok(Session { input, output });
    }
    tokio::spawn(outward(frames, out.clone(), done));
    tokio::spawn(feed(writer, inward, out, over));
    Ok(Session { input, output })
}

fn ending(message: &Message) -> Option<Frame> {
    let end = message.exit.as_ref()?;
    Some(Frame::Exit(match &end.error {
        Some(text) => Err(text.clone()),
        None => Ok(end.code),
    }))
}

/// From the shim to the agent. Output that nobody wants any more is read all the same, until the session is hung up.
async fn outward(mut frames: Frames, out: mpsc::Sender<Frame>, done: oneshot::Sender<()>) {
    loop {
        let frame = match frames.next().await {
            Ok(Some((proto::STDOUT, data))) => Frame::Stdout(Bytes::from(data)),
            Ok(Some((proto::STDERR, data))) => Frame::Stderr(Bytes::from(data)),
            Ok(Some((proto::JSON, text))) => match serde_json::from_slice(&text).ok().as_ref().and_then(ending) {
                Some(end) => end,
                None => continue,
            },
            Ok(Some(_)) => continue,
            Ok(None) | Err(_) => Frame::Exit(Err("the container has ended".into())),
        };
        let last = matches!(frame, Frame::Exit(_));
        let _ = out.send(frame).await;
        if last {
            break;
        }
    }
    let _ = done.send(());
}

/// From the agent to the shim. When both ends of the session are dropped it hangs up, and the shim kills what ran.
async fn feed(mut writer: OwnedWriteHalf, mut inward: mpsc::Receiver<Frame>, out: mpsc::Sender<Frame>, mut over: oneshot::Receiver<()>) {
    loop {
        let frame = tokio::select! {
            biased;
            _ = &mut over => return,
            frame = inward.recv() => frame,
        };
        let bytes = match frame {
            Some(Frame::Stdin(data)) => data.chunks(limits::CHUNK).flat_map(|c| proto::frame(proto::STDIN, c)).collect(),
            Some(Frame::CloseStdin) => proto::frame(proto::CLOSE_STDIN, &[]),
            Some(Frame::Resize { width, height }) => {
                let args = serde_json::to_value(ResizeArgs { width, height }).unwrap_or_default();
                proto::json_frame(&Request { id: 0, call: "resize".into(), args })
            }
            Some(Frame::Stdout(_) | Frame::Stderr(_) | Frame::Exit(_)) => continue,
            None => break,
        };
        let written = tokio::select! {
            biased;
            _ = &mut over => return,
            // A process that does not read holds up its writer, not a session that is dropped meanwhile.
            _ = out.closed(), if inward.is_closed() => break,
            written = writer.write_all(&bytes) => written,
        };
        if written.is_err() {
            break;
        }
    }
    tokio::select! {
        biased;
        _ = &mut over => {}
        _ = out.closed() => {}
    }
}
